//! The CI's signed statement about this job (OIDC Core §2), to be sent once and never again.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::clock::from_epoch_seconds;
use crate::message::safe_text;
use crate::secret::Secret;

/// The largest assertion that the token endpoint takes, in bytes.
pub const LARGEST: usize = 16_384;

/// An identity token whose claims could be read. Its signature is the server's to verify.
///
/// It is not `Clone`: it is moved into the one request that spends it.
pub struct IdentityToken {
    text: Secret,
    claims: Claims,
}

/// What the token says of itself (RFC 7519 §4.1), unverified: good enough to decide and to explain, not to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// `iss`, who signed it.
    pub issuer: Option<String>,
    /// `sub`, who it is about.
    pub subject: Option<String>,
    /// `aud`, for whom it is meant; one or several.
    pub audience: Vec<String>,
    /// `jti`, its unique number.
    pub jti: Option<String>,
    /// `iat`, when it was issued.
    pub issued_at: Option<SystemTime>,
    /// `exp`, when it ends.
    pub expires_at: Option<SystemTime>,
}

/// What identifies a token without being it: SHA-256 of issuer and `jti`, or of the whole token where it has no `jti`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// Why a text is no identity token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Nothing but blanks.
    #[error("it is empty")]
    Empty,
    /// Over the 16 384 bytes that the token endpoint takes. So many were read; there may be more.
    #[error("it has more than the {LARGEST} bytes that the token endpoint takes")]
    Oversized(usize),
    /// Not the three segments of a JWS (RFC 7515 §7.1).
    #[error("it is not a JWT: three base64url segments parted by dots were expected")]
    NotThreeSegments,
    /// The middle segment is no JSON object.
    #[error("it is not a JWT: its claims are not a JSON object")]
    Claims,
}

impl IdentityToken {
    /// Reads a token as a source handed it out; blanks around it are dropped.
    pub fn parse(text: &Secret) -> Result<Self, Malformed> {
        let text = text.expose().trim();
        if text.is_empty() {
            return Err(Malformed::Empty);
        }
        if text.len() > LARGEST {
            return Err(Malformed::Oversized(text.len()));
        }
        let claims = Claims::peek(text)?;
        Ok(IdentityToken { text: Secret::new(text.to_owned()), claims })
    }

    /// What it says of itself.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The text in this claim, one that is none of [`Claims`].
    pub fn claim(&self, name: &str) -> Option<String> {
        self.segment(1).get(name)?.as_str().map(str::to_owned)
    }

    /// The text in this field of its header (RFC 7515 §4.1), such as `alg` or `kid`.
    pub fn header(&self, name: &str) -> Option<String> {
        self.segment(0).get(name)?.as_str().map(str::to_owned)
    }

    /// What the token endpoint requires of every identity token and this one lacks, whatever the rule says
    /// (docs/protocol.md §5.1); in sentences that are safe to show.
    pub fn complaints(&self) -> Vec<String> {
        /// The longest life that an issuer allows unless it is registered with another.
        const USUAL_MAXIMUM: Duration = Duration::from_secs(3600);
        let Claims { subject, issued_at, expires_at, .. } = &self.claims;
        let there = [("sub", subject.is_some()), ("iat", issued_at.is_some()), ("exp", expires_at.is_some())];
        let missing = there.iter().filter(|(_, is_there)| !is_there);
        let mut complaints: Vec<String> = missing
            .map(|(name, _)| format!("the identity token has no `{name}`, which the endpoint requires"))
            .collect();
        if self.header("kid").is_none() {
            complaints.push("the identity token's header has no `kid`, which the endpoint requires".to_owned());
        }
        let algorithm = self.header("alg").unwrap_or_default();
        if !is_accepted(&algorithm) {
            complaints.push(format!(
                "the identity token is signed with `{}`; RS, PS and ES with 256, 384 or 512 are accepted",
                safe_text(&algorithm)
            ));
        }
        let life = expires_at.zip(*issued_at).and_then(|(end, begin)| end.duration_since(begin).ok());
        if let Some(life) = life.filter(|life| *life > USUAL_MAXIMUM) {
            complaints.push(format!(
                "the identity token's whole life is {} s, and an issuer's maximum is {} s unless it is registered with more",
                life.as_secs(),
                USUAL_MAXIMUM.as_secs()
            ));
        }
        complaints
    }

    /// The header (0) or the claims (1), all of them.
    fn segment(&self, number: usize) -> serde_json::Map<String, serde_json::Value> {
        let segment = self.text.expose().split('.').nth(number).unwrap_or_default();
        let bytes = URL_SAFE_NO_PAD.decode(segment).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// What identifies it in the ledger of spent tokens.
    pub fn fingerprint(&self) -> Fingerprint {
        match &self.claims.jti {
            // A single use is counted for each issuer and `jti` (RFC 7523 §3). The lengths keep the parts apart.
            Some(jti) => {
                let issuer = self.claims.issuer.as_deref().unwrap_or_default();
                Fingerprint::of(&[b"jti", issuer.as_bytes(), jti.as_bytes()])
            }
            None => Fingerprint::of(&[b"token", self.text.expose().as_bytes()]),
        }
    }

    /// The token itself, for the one request that spends it or the one file that hands it on.
    pub fn expose(&self) -> &str {
        self.text.expose()
    }
}

impl fmt::Debug for IdentityToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityToken").field("text", &self.text).field("claims", &self.claims).finish()
    }
}

impl Fingerprint {
    fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Fingerprint(hash.finalize().into())
    }
}

/// Lower-case hexadecimal, as it stands in the ledger.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl Claims {
    /// Reads the claims of any JWT, identity token or not.
    pub(crate) fn peek(token: &str) -> Result<Claims, Malformed> {
        let segments: Vec<&str> = token.split('.').collect();
        let [_header, payload, _signature] = segments[..] else { return Err(Malformed::NotThreeSegments) };
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Malformed::NotThreeSegments)?;
        let Wire { iss, sub, aud, jti, iat, exp } = serde_json::from_slice(&payload).map_err(|_| Malformed::Claims)?;
        // RFC 7519 §2: a NumericDate may have a fraction.
        let moment = |seconds: Option<f64>| seconds.filter(|s| *s >= 0.0).map(|s| from_epoch_seconds(s as u64));
        Ok(Claims {
            issuer: iss,
            subject: sub,
            audience: match aud {
                None => Vec::new(),
                Some(Audience::One(one)) => vec![one],
                Some(Audience::Several(several)) => several,
            },
            jti,
            issued_at: moment(iat),
            expires_at: moment(exp),
        })
    }
}

/// The signature algorithms that the endpoint takes (docs/protocol.md §5.1).
fn is_accepted(algorithm: &str) -> bool {
    let (family, bits) = algorithm.split_at_checked(2).unwrap_or_default();
    ["RS", "PS", "ES"].contains(&family) && ["256", "384", "512"].contains(&bits)
}

#[derive(Deserialize)]
struct Wire {
    iss: Option<String>,
    sub: Option<String>,
    aud: Option<Audience>,
    jti: Option<String>,
    iat: Option<f64>,
    exp: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> Result<IdentityToken, Malformed> {
        parse(&format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims)))
    }

    fn parse(text: &str) -> Result<IdentityToken, Malformed> {
        IdentityToken::parse(&Secret::new(text.to_owned()))
    }

    #[test]
    fn claims_are_read_without_verifying() {
        let token = token(r#"{"iss":"https://i","sub":"repo:o/r","aud":["a","b"],"jti":"7","iat":10.5,"exp":310}"#);
        let claims = token.expect("well formed").claims().clone();
        assert_eq!(claims.issuer.as_deref(), Some("https://i"));
        assert_eq!(claims.audience, ["a", "b"]);
        assert_eq!(claims.jti.as_deref(), Some("7"));
        assert_eq!(claims.issued_at, Some(from_epoch_seconds(10)));
        assert_eq!(claims.expires_at, Some(from_epoch_seconds(310)));
    }

    #[test]
    fn a_text_that_is_no_token_is_refused_with_the_reason() {
        for (text, reason) in [
            (" \n".to_owned(), Malformed::Empty),
            ("a".repeat(LARGEST + 1), Malformed::Oversized(LARGEST + 1)),
            ("abc".to_owned(), Malformed::NotThreeSegments),
            ("a.!!.c".to_owned(), Malformed::NotThreeSegments),
            ("a.b.c.d".to_owned(), Malformed::NotThreeSegments),
            (format!("a.{}.c", URL_SAFE_NO_PAD.encode("[1]")), Malformed::Claims),
        ] {
            assert_eq!(parse(&text).err(), Some(reason), "{text:.20}");
        }
        let largest = format!("e30.e30.{}", "a".repeat(LARGEST - 8));
        assert!(parse(&largest).is_ok(), "exactly the largest is taken");
    }

    #[test]
    fn a_fingerprint_follows_issuer_and_jti_and_not_the_signature() {
        let one = token(r#"{"iss":"i","jti":"7","exp":1}"#).expect("well formed").fingerprint();
        let same = token(r#"{"iss":"i","jti":"7","exp":2}"#).expect("well formed").fingerprint();
        let other_issuer = token(r#"{"iss":"j","jti":"7"}"#).expect("well formed").fingerprint();
        let shifted = token(r#"{"iss":"i7","jti":""}"#).expect("well formed").fingerprint();
        assert_eq!(one, same);
        assert_ne!(one, other_issuer);
        assert_ne!(one, shifted);
        let without = |exp| token(&format!(r#"{{"iss":"i","exp":{exp}}}"#)).expect("well formed").fingerprint();
        assert_ne!(without(1), without(2), "without a jti the whole token counts");
    }

    #[test]
    fn what_every_token_needs_is_missed() {
        let signed = |header: &str, claims: &str| {
            let text = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
            parse(&format!("{text}.c2ln")).expect("well formed")
        };
        let header = r#"{"alg":"RS256","kid":"1"}"#;
        let whole = signed(header, r#"{"sub":"s","iat":100,"exp":3700,"ref":"main","n":1}"#);
        assert_eq!(whole.complaints(), Vec::<String>::new());
        assert_eq!((whole.claim("ref").as_deref(), whole.claim("n"), whole.claim("x")), (Some("main"), None, None));
        assert_eq!(whole.header("kid").as_deref(), Some("1"));
        for (header, claims, word) in [
            (header, r#"{"iat":100,"exp":400}"#, "`sub`"),
            (header, r#"{"sub":"s","exp":400}"#, "`iat`"),
            (header, r#"{"sub":"s","iat":100}"#, "`exp`"),
            (header, r#"{"sub":"s","iat":100,"exp":3701}"#, "3601 s"),
            (r#"{"alg":"RS256"}"#, r#"{"sub":"s","iat":100,"exp":400}"#, "`kid`"),
            (r#"{"alg":"HS256","kid":"1"}"#, r#"{"sub":"s","iat":100,"exp":400}"#, "`HS256`"),
            (r#"{"alg":"EdDSA","kid":"1"}"#, r#"{"sub":"s","iat":100,"exp":400}"#, "`EdDSA`"),
            (r#"{"kid":"1"}"#, r#"{"sub":"s","iat":100,"exp":400}"#, "signed with ``"),
        ] {
            let complaints = signed(header, claims).complaints();
            assert!(complaints.len() == 1 && complaints[0].contains(word), "{header} {claims}: {complaints:?}");
        }
    }

    #[test]
    fn debug_hides_the_token() {
        let text = format!("{:?}", token(r#"{"jti":"7"}"#).expect("well formed"));
        assert!(!text.contains("e30."), "{text}");
        assert!(text.starts_with("IdentityToken") && text.contains(r#"jti: Some("7")"#), "{text}");
        let fingerprint = token(r#"{"jti":"7"}"#).expect("well formed").fingerprint();
        assert_eq!(format!("{fingerprint:?}"), format!("Fingerprint({fingerprint})"));
    }
}
