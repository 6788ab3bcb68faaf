//! The identity token (OIDC Core §2) that the CI signs for a job, to be exchanged once.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::clock::from_epoch_seconds;
use crate::hexadecimal::hexadecimal;
use crate::message::safe_text;
use crate::secret::Secret;
use crate::wrapping::Wrapping;

/// Maximum size of an assertion at the token endpoint, in bytes.
pub const LARGEST: usize = 16_384;

/// An identity token with readable claims. The server verifies its signature.
///
/// It is not `Clone`: it is moved into the one request that spends it.
pub struct IdentityToken {
    text: Secret,
    claims: Claims,
}

/// The claims of the token (RFC 7519 §4.1), not verified: good enough for decisions and messages, not for trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// `iss`, the issuer.
    pub issuer: Option<String>,
    /// `sub`, the subject.
    pub subject: Option<String>,
    /// `aud`, one or several audiences.
    pub audience: Vec<String>,
    /// `jti`, the unique id.
    pub jti: Option<String>,
    /// `iat`, when the token was issued.
    pub issued_at: Option<SystemTime>,
    /// `exp`, when the token expires.
    pub expires_at: Option<SystemTime>,
}

/// Identifies a token without revealing it: SHA-256 of issuer and `jti`, or of the whole token if it has no `jti`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// Why a text is not an identity token: a JWT (RFC 7519) as a JWS in compact form (RFC 7515 §7.1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Only white space.
    #[error("it is empty")]
    Empty,
    /// Larger than the 16 384 bytes that the token endpoint accepts. The value is the number of bytes read; there may
    /// be more.
    #[error("it has more than the {LARGEST} bytes that the token endpoint takes")]
    Oversized(usize),
    /// Not three parts.
    #[error("it is not a JWT: three base64url segments parted by dots were expected")]
    NotThreeSegments,
    /// Five parts: a JWE.
    #[error("it is an encrypted token (JWE, five segments), and a signed one (JWS, three segments) was expected")]
    Encrypted,
    /// This part is not base64url (RFC 4648 §5).
    #[error("it is not a JWT: its {0} is not base64url, or a part of it is missing")]
    Encoding(&'static str),
    /// The first part is not a JSON object.
    #[error("it is not a JWT: its header is not a JSON object")]
    Header,
    /// The header lacks `alg` (RFC 7515 §4.1.1).
    #[error("it is not a JWT: its header does not name a signature algorithm (`alg`)")]
    NoAlgorithm,
    /// The middle part is not a JSON object with claims of the right types.
    #[error("it is not a JWT: its claims are not a JSON object, or one of them has the wrong type")]
    Claims,
    /// The last part is empty.
    #[error("it is not signed: its signature is empty")]
    Unsigned,
    /// A token or another value, surrounded by something else.
    #[error("{0}")]
    Wrapped(Wrapping),
}

impl Malformed {
    /// Returns an instruction for the user.
    pub fn cure(&self) -> String {
        match self {
            Malformed::Oversized(_) => "ask the identity provider for a token with fewer claims".to_owned(),
            Malformed::Encrypted => "have the identity provider sign the token and not encrypt it".to_owned(),
            Malformed::Unsigned => "have the identity provider sign the token (RS256 or ES256)".to_owned(),
            Malformed::Encoding(_) => {
                "take the token whole: it may have been cut, or changed on the way (a limit on a variable's length, `cut`, \
                 a mask `***`)"
                    .to_owned()
            }
            Malformed::Wrapped(wrapping) => wrapping.cure(),
            Malformed::Empty
            | Malformed::NotThreeSegments
            | Malformed::Header
            | Malformed::NoAlgorithm
            | Malformed::Claims => "it has to hold one OIDC identity token and nothing else; look who writes it".to_owned(),
        }
    }
}

impl IdentityToken {
    /// Parses a token as a source returned it. Ignores surrounding white space.
    ///
    /// # Errors
    /// Fails with what is wrong with the text, or with what surrounds the token if one is found in it.
    pub fn parse(text: &Secret) -> Result<Self, Malformed> {
        IdentityToken::exactly(text.expose()).map_err(|reason| match reason {
            Malformed::Empty | Malformed::Oversized(_) => reason,
            reason => {
                let is_token = |text: &str| IdentityToken::exactly(text).is_ok();
                Wrapping::of_token(text.expose(), is_token).map_or(reason, Malformed::Wrapped)
            }
        })
    }

    /// Like [`parse`](Self::parse), without searching for a token in other text.
    pub(crate) fn exactly(text: &str) -> Result<Self, Malformed> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Malformed::Empty);
        }
        let is_of_a_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.len() > LARGEST && text.bytes().take(LARGEST).all(is_of_a_token) {
            return Err(Malformed::Oversized(text.len()));
        }
        let claims = Claims::peek(text)?;
        let segments: Vec<&str> = text.split('.').collect();
        let decoded =
            |number: usize, name| URL_SAFE_NO_PAD.decode(segments[number]).map_err(|_| Malformed::Encoding(name));
        let header: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&decoded(0, "header")?).map_err(|_| Malformed::Header)?;
        if header.get("alg").and_then(|name| name.as_str()).unwrap_or_default().is_empty() {
            return Err(Malformed::NoAlgorithm);
        }
        if segments[2].is_empty() {
            return Err(Malformed::Unsigned);
        }
        decoded(2, "signature")?;
        Ok(IdentityToken { text: Secret::new(text.to_owned()), claims })
    }

    /// Returns the token's claims.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Returns the text value of a claim that is not part of [`Claims`].
    pub fn claim(&self, name: &str) -> Option<String> {
        self.segment(1).get(name)?.as_str().map(str::to_owned)
    }

    /// Returns the text value of a header field (RFC 7515 §4.1), such as `alg` or `kid`.
    pub fn header(&self, name: &str) -> Option<String> {
        self.segment(0).get(name)?.as_str().map(str::to_owned)
    }

    /// Returns which requirements of the token endpoint this token does not meet, independent of the rule
    /// (docs/reference/protocol.md §5.1), as sentences that are safe to show.
    pub fn complaints(&self) -> Vec<String> {
        /// The maximum lifetime unless the issuer is registered with another one.
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

    /// Returns all fields of the header (0) or of the claims (1).
    fn segment(&self, number: usize) -> serde_json::Map<String, serde_json::Value> {
        let segment = self.text.expose().split('.').nth(number).unwrap_or_default();
        let bytes = URL_SAFE_NO_PAD.decode(segment).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Returns the fingerprint that identifies the token in the ledger.
    pub fn fingerprint(&self) -> Fingerprint {
        match &self.claims.jti {
            // The server counts uses per issuer and `jti` (RFC 7523 §3). Length prefixes keep the parts apart.
            Some(jti) => {
                let issuer = self.claims.issuer.as_deref().unwrap_or_default();
                Fingerprint::of(&[b"jti", issuer.as_bytes(), jti.as_bytes()])
            }
            None => Fingerprint::of(&[b"token", self.text.expose().as_bytes()]),
        }
    }

    /// Returns a fingerprint of the claims that all tokens of one source share.
    pub(crate) fn lasting_claims(&self) -> Fingerprint {
        /// Claims that differ from token to token: registered ones (RFC 7519 §4.1, OIDC Core §2), and those of Entra.
        const OF_ONE_TOKEN: [&str; 12] =
            ["jti", "iat", "nbf", "exp", "auth_time", "nonce", "at_hash", "c_hash", "sid", "uti", "rh", "aio"];
        let header = serde_json::Value::from(self.segment(0)).to_string();
        let mut claims = self.segment(1);
        claims.retain(|name, _| !OF_ONE_TOKEN.contains(&name.as_str()));
        let claims = serde_json::Value::from(claims).to_string();
        Fingerprint::of(&[b"lasting claims", header.as_bytes(), claims.as_bytes()])
    }

    /// Returns the token's text, for the request that spends it or the file that delivers it.
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

/// Formats lower-case hexadecimal, as in the ledger.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hexadecimal(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl Claims {
    /// Reads the claims of any JWT, even if it is not an identity token.
    pub(crate) fn peek(token: &str) -> Result<Claims, Malformed> {
        let segments: Vec<&str> = token.split('.').collect();
        let payload = match segments[..] {
            [_header, payload, _signature] => payload,
            [_header, _key, _vector, _text, _tag] => return Err(Malformed::Encrypted),
            _ => return Err(Malformed::NotThreeSegments),
        };
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Malformed::Encoding("payload"))?;
        let RawClaims { iss, sub, aud, jti, iat, exp } =
            serde_json::from_slice(&payload).map_err(|_| Malformed::Claims)?;
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

/// Returns whether the endpoint accepts this signature algorithm (docs/reference/protocol.md §5.1).
fn is_accepted(algorithm: &str) -> bool {
    let (family, bits) = algorithm.split_at_checked(2).unwrap_or_default();
    ["RS", "PS", "ES"].contains(&family) && ["256", "384", "512"].contains(&bits)
}

#[derive(Deserialize)]
struct RawClaims {
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

    /// `{"alg":"RS256"}`
    const HEADER: &str = "eyJhbGciOiJSUzI1NiJ9";

    fn token(claims: &str) -> Result<IdentityToken, Malformed> {
        parse(&format!("{HEADER}.{}.c2ln", URL_SAFE_NO_PAD.encode(claims)))
    }

    fn parse(text: &str) -> Result<IdentityToken, Malformed> {
        IdentityToken::parse(&Secret::new(text.to_owned()))
    }

    #[test]
    fn claims_are_parsed_without_verification() {
        let token = token(r#"{"iss":"https://i","sub":"repo:o/r","aud":["a","b"],"jti":"7","iat":10.5,"exp":310}"#);
        let claims = token.expect("well formed").claims().clone();
        assert_eq!(claims.issuer.as_deref(), Some("https://i"));
        assert_eq!(claims.audience, ["a", "b"]);
        assert_eq!(claims.jti.as_deref(), Some("7"));
        assert_eq!(claims.issued_at, Some(from_epoch_seconds(10)));
        assert_eq!(claims.expires_at, Some(from_epoch_seconds(310)));
    }

    #[test]
    fn malformed_token_is_refused_with_the_reason() {
        let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let claims = encoded(r#"{"jti":"7"}"#);
        for (text, reason) in [
            (" \n".to_owned(), Malformed::Empty),
            ("a".repeat(LARGEST + 1), Malformed::Oversized(LARGEST + 1)),
            ("abc".to_owned(), Malformed::NotThreeSegments),
            (format!("{HEADER}.{claims}"), Malformed::NotThreeSegments),
            ("a.!!.c".to_owned(), Malformed::Encoding("payload")),
            ("a.b.c.d".to_owned(), Malformed::NotThreeSegments),
            (format!("{HEADER}.a.b.c.d"), Malformed::Encrypted),
            (format!("{HEADER}.{}.c2ln", encoded("[1]")), Malformed::Claims),
            (format!("{HEADER}.{}.c2ln", encoded(r#"{"iss":5}"#)), Malformed::Claims),
            (format!("a.{claims}.c2ln"), Malformed::Encoding("header")),
            (format!("{}.{claims}.c2ln", encoded("[]")), Malformed::Header),
            (format!("{}.{claims}.c2ln", encoded("{}")), Malformed::NoAlgorithm),
            (format!("{}.{claims}.c2ln", encoded(r#"{"alg":1}"#)), Malformed::NoAlgorithm),
            (format!("{HEADER}.{claims}."), Malformed::Unsigned),
            (format!("{HEADER}.{claims}.a"), Malformed::Encoding("signature")),
        ] {
            assert_eq!(parse(&text).err(), Some(reason), "{text:.60}");
        }
        let largest = format!("{HEADER}.e30.{}", "A".repeat(LARGEST - HEADER.len() - 5));
        assert_eq!(largest.len(), LARGEST);
        let largest = parse(&largest).map(|token| token.expose().len());
        assert_eq!(largest.ok(), Some(LARGEST), "exactly the largest is taken");
    }

    #[test]
    fn wrapping_of_a_token_is_named() {
        use Wrapping as W;
        use base64::engine::general_purpose::STANDARD;
        let jwt = format!("{HEADER}.{}.c2ln", URL_SAFE_NO_PAD.encode(r#"{"jti":"7","sub":"repo:o/r"}"#));
        let json = |place: &str| W::Json(place.to_owned());
        let (begin, end) = jwt.split_at(30);
        let utf_16: String = jwt.chars().flat_map(|c| [c, '\0']).collect();
        for (text, wrapping) in [
            (format!("\"{jwt}\""), W::Quotes),
            (format!("'{jwt}'"), W::Quotes),
            (format!("\"{jwt}"), W::Quotes),
            (format!("{jwt}'"), W::Quotes),
            (format!("`{jwt}`"), W::Quotes),
            (format!("\u{201c}{jwt}\u{201d}"), W::Quotes),
            (format!("\\\"{jwt}\\\""), W::Quotes),
            (format!("Bearer {jwt}"), W::Scheme),
            (format!("bearer  {jwt}\n"), W::Scheme),
            (format!("Authorization: Bearer {jwt}"), W::Scheme),
            (format!(r#"{{"count":1,"value":"{jwt}"}}"#), json(".value")),
            (format!(r#"{{"token":"{jwt}"}}"#), json(".token")),
            (format!(r#"{{"access_token":"{jwt}","expires_in":3}}"#), json(".access_token")),
            (format!("{{\n  \"id_token\" : \"{jwt}\"\n}}\n"), json(".id_token")),
            (format!(r#"{{"data":{{"a-b":["{jwt}"]}}}}"#), json(".data[][0]")),
            (format!(r#"[{{"svids":[{{"svid":"{jwt}"}}]}}]"#), json(".[0].svids[0].svid")),
            (format!(r#"{{"{0}":{{"{0}":{{"{0}":"{jwt}"}}}}}}"#, "abcdefghijklmnop"), json(".. | strings")),
            (r#"{"message":"denied"}"#.to_owned(), W::OtherJson),
            (format!("\u{feff}{jwt}"), W::ByteOrderMark),
            (utf_16, W::Utf16),
            (format!("{jwt}\0"), W::Nul),
            (format!("{jwt}\u{200b}"), W::NotText),
            (format!("\u{fffd}{jwt}"), W::NotText),
            ("${{ steps.t.outputs.token }}".to_owned(), W::Unexpanded("${{ … }}")),
            ("{{ .Values.token }}".to_owned(), W::Unexpanded("{{ … }}")),
            ("$(ID_TOKEN)".to_owned(), W::Unexpanded("$(…)")),
            ("${CI_JOB_JWT}".to_owned(), W::Unexpanded("${…}")),
            ("$CI_JOB_JWT_V2".to_owned(), W::Unexpanded("$NAME")),
            ("%ID_TOKEN%".to_owned(), W::Unexpanded("%NAME%")),
            ("$env:ID_TOKEN".to_owned(), W::Unexpanded("$env:NAME")),
            ("<paste the token here>".to_owned(), W::Placeholder),
            ("eyJhbGciOi...".to_owned(), W::Placeholder),
            ("null".to_owned(), W::Null),
            ("/var/run/secrets/token".to_owned(), W::Path),
            ("./token.jwt".to_owned(), W::Path),
            ("C:\\token.jwt".to_owned(), W::Path),
            ("file:///run/token".to_owned(), W::Path),
            ("https://ci.example/token".to_owned(), W::Url),
            ("<!DOCTYPE html><html></html>".to_owned(), W::WebPage),
            ("-----BEGIN PRIVATE KEY-----\nabc".to_owned(), W::Pem),
            ("sk-ant-api03-x".to_owned(), W::OtherCredential("an API key")),
            (format!("{begin}\n{end}"), W::Wrapped),
            (format!("{begin}\r\n {end}"), W::Wrapped),
            (format!("{jwt}\n{jwt}"), W::Several),
            (jwt.replace('.', "%2E"), W::PercentEncoded),
            (format!("{jwt}%0A"), W::PercentEncoded),
            (format!("{jwt}%"), W::PromptMark),
            (format!("{jwt}\\n"), W::EscapedLineBreak),
            (format!("{jwt}\\r\\n"), W::EscapedLineBreak),
            ("***".to_owned(), W::Masked),
            ("@/run/token".to_owned(), W::Path),
            (format!("{jwt}=="), W::StandardBase64),
            (STANDARD.encode(&jwt), W::EncodedAgain),
            (STANDARD.encode(format!("{jwt}\n")), W::EncodedAgain),
            (format!("ANTHROPIC_IDENTITY_TOKEN={jwt}"), W::Assignment),
            (format!("export TOKEN='{jwt}'"), W::Assignment),
            (format!("token: {jwt}"), W::Scheme),
            (format!("id_token: {jwt}"), W::Assignment),
            (format!("fetched a token\n{jwt}"), W::Beside),
            (format!("{jwt},"), W::Beside),
            (format!("\u{1b}[32m{jwt}\u{1b}[0m"), W::Beside),
        ] {
            let error = parse(&text).expect_err(&text);
            assert_eq!(error, Malformed::Wrapped(wrapping), "{text:?}");
            let (said, cure) = (error.to_string(), error.cure());
            assert!(!said.contains(&jwt[..20]) && !cure.contains(&jwt[..20]), "{said}; {cure}");
        }
    }

    #[test]
    fn fingerprint_depends_on_issuer_and_jti() {
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
    fn lasting_claims_ignore_jti_and_times() {
        let of = |claims: &str| token(claims).expect("well formed").lasting_claims();
        let one = of(r#"{"iss":"i","sub":"s","aud":"a","jti":"1","iat":1,"exp":2,"nbf":1}"#);
        assert_eq!(one, of(r#"{"iss":"i","sub":"s","aud":"a","jti":"2","iat":3,"exp":4,"nbf":3}"#));
        for other in [r#"{"iss":"i","sub":"s","aud":"b"}"#, r#"{"iss":"i","sub":"s","aud":"a","environment":"e"}"#] {
            assert_ne!(one, of(other), "{other}");
        }
    }

    #[test]
    fn missing_required_claims_are_reported() {
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
        ] {
            let complaints = signed(header, claims).complaints();
            assert!(complaints.len() == 1 && complaints[0].contains(word), "{header} {claims}: {complaints:?}");
        }
    }

    #[test]
    fn debug_hides_the_token() {
        let text = format!("{:?}", token(r#"{"jti":"7"}"#).expect("well formed"));
        assert!(!text.contains(HEADER), "{text}");
        assert!(text.starts_with("IdentityToken") && text.contains(r#"jti: Some("7")"#), "{text}");
        let fingerprint = token(r#"{"jti":"7"}"#).expect("well formed").fingerprint();
        assert_eq!(format!("{fingerprint:?}"), format!("Fingerprint({fingerprint})"));
    }
}
