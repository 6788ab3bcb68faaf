//! The identity token as the token endpoint sees it: an assertion to be verified and matched (RFC 7523 §3).

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::FederationRule;
use crate::signing::{ALGORITHM, SigningKey};

/// Why a request is refused with 401. The client is never told which it was; the history and the counters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    RuleUnknown,
    OrganizationMismatch,
    ServiceAccountMismatch,
    WorkspaceIdRequired,
    MalformedAssertion,
    Algorithm,
    UnknownKey,
    Signature,
    Issuer,
    Audience,
    MatchSubjectPrefix,
    Expired,
    NotYetValid,
    Lifetime,
    JtiReused,
}

impl Reason {
    /// The name in the history and the counters.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RuleUnknown => "rule_unknown",
            Self::OrganizationMismatch => "organization_mismatch",
            Self::ServiceAccountMismatch => "service_account_mismatch",
            Self::WorkspaceIdRequired => "workspace_id_required",
            Self::MalformedAssertion => "malformed_assertion",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::MatchSubjectPrefix => "match_subject_prefix",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Lifetime => "lifetime",
            Self::JtiReused => "jti_reused",
        }
    }
}

/// What a correctly signed assertion says, as far as the token endpoint cares. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Claims {
    iss: String,
    pub(crate) sub: String,
    aud: Audience,
    // `NumericDate` may have a fraction (RFC 7519 §2).
    iat: f64,
    nbf: Option<f64>,
    exp: f64,
    pub(crate) jti: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

/// The algorithms that the real endpoint accepts (docs/reference/protocol.md). HMAC, `none` and EdDSA are refused before
/// a key is chosen.
const ACCEPTED: [&str; 9] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"];

/// Verifies the signature and reads the claims. The header chooses among the published keys and nothing else.
pub(crate) fn verify(assertion: &str) -> Result<Claims, Reason> {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
        kid: Option<String>,
    }
    let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| Reason::MalformedAssertion);
    let (input, signature) = assertion.rsplit_once('.').ok_or(Reason::MalformedAssertion)?;
    let (header, payload) = input.split_once('.').ok_or(Reason::MalformedAssertion)?;
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Reason::MalformedAssertion)?;
    let (payload, signature) = (decode(payload)?, decode(signature)?);
    if !ACCEPTED.contains(&&*header.alg) {
        return Err(Reason::Algorithm);
    }
    let key = SigningKey::of_this_process();
    if header.kid.as_deref() != Some(key.id()) {
        return Err(Reason::UnknownKey);
    }
    if header.alg != ALGORITHM {
        return Err(Reason::Algorithm);
    }
    if !key.verifies(input, &signature) {
        return Err(Reason::Signature);
    }
    serde_json::from_slice(&payload).map_err(|_| Reason::MalformedAssertion)
}

impl Claims {
    /// Whether these claims satisfy the rule at this moment. Single use is the ledger's question.
    pub(crate) fn matches(&self, rule: &FederationRule, issuer: &str, now: Duration) -> Result<(), Reason> {
        const LEEWAY_S: f64 = 30.0;
        const LONGEST_LIFETIME_S: f64 = 3600.0;
        let now = now.as_secs() as f64;
        let subject_matches = match rule.subject_prefix.strip_suffix('*') {
            Some(prefix) => self.sub.starts_with(prefix),
            None => self.sub == rule.subject_prefix,
        };
        let not_before = self.nbf.unwrap_or(self.iat).max(self.iat);
        for (holds, reason) in [
            (self.iss == issuer, Reason::Issuer),
            (self.aud.contains(&rule.audience), Reason::Audience),
            (subject_matches, Reason::MatchSubjectPrefix),
            (now <= self.exp + LEEWAY_S, Reason::Expired),
            (not_before <= now + LEEWAY_S, Reason::NotYetValid),
            (self.exp - self.iat <= LONGEST_LIFETIME_S, Reason::Lifetime),
        ] {
            if !holds {
                return Err(reason);
            }
        }
        Ok(())
    }

    /// Whole seconds of life left.
    pub(crate) fn remaining(&self, now: Duration) -> u64 {
        // Casts saturate: a life that is over has nothing left.
        (self.exp - now.as_secs() as f64) as u64
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::issuer;

    const NOW: u64 = 1_800_000_000;
    const MOMENT: Duration = Duration::from_millis(NOW * 1000 + 999);
    pub(crate) const ISSUER: &str = "http://127.0.0.1:1";

    pub(crate) fn claims_with(name: &str, value: Value) -> Claims {
        let mut claims = issuer::claims(ISSUER, "https://api.anthropic.com", 300, MOMENT);
        claims.insert(name.to_owned(), value);
        serde_json::from_value(Value::Object(claims)).unwrap()
    }

    #[test]
    fn claims_match_the_rule_at_the_boundaries() {
        let rule = FederationRule::default();
        for (claim, value, expected) in [
            ("jti", json!("any"), Ok(())),
            ("iss", json!("http://127.0.0.1:1/"), Err(Reason::Issuer)),
            ("aud", json!("https://github.com/octo-org"), Err(Reason::Audience)),
            ("aud", json!(["a", "https://api.anthropic.com"]), Ok(())),
            ("aud", json!(["a"]), Err(Reason::Audience)),
            ("sub", json!("repo:octo-org/octo-repo:pull_request"), Ok(())),
            ("sub", json!("repo:octo-org/octo-repository:pull_request"), Err(Reason::MatchSubjectPrefix)),
            ("exp", json!(NOW - 30), Ok(())),
            ("exp", json!(NOW - 31), Err(Reason::Expired)),
            ("nbf", json!(NOW + 30), Ok(())),
            ("nbf", json!(NOW + 31), Err(Reason::NotYetValid)),
            ("nbf", Value::Null, Ok(())),
            ("iat", json!(NOW + 30), Ok(())),
            ("iat", json!(NOW + 31), Err(Reason::NotYetValid)),
            ("exp", json!(NOW + 3600), Ok(())),
            ("exp", json!(NOW + 3601), Err(Reason::Lifetime)),
            ("exp", json!(NOW as f64 - 30.5), Err(Reason::Expired)),
        ] {
            assert_eq!(claims_with(claim, value.clone()).matches(&rule, ISSUER, MOMENT), expected, "{claim} {value}");
        }
        let exact = FederationRule { subject_prefix: "repo:octo-org/octo-repo".into(), ..rule };
        assert_eq!(claims_with("jti", json!("a")).matches(&exact, ISSUER, MOMENT), Err(Reason::MatchSubjectPrefix));
    }

    #[test]
    fn signature_requires_published_key_and_allowed_algorithm() {
        let encode = |header: Value| BASE64_URL_SAFE_NO_PAD.encode(header.to_string());
        let token = SigningKey::of_this_process().sign(&issuer::claims(ISSUER, "a", 300, MOMENT));
        let (header, rest) = token.split_once('.').unwrap();
        let (payload, signature) = rest.split_once('.').unwrap();
        let kid: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
        let kid = &kid["kid"];
        let forged_payload = BASE64_URL_SAFE_NO_PAD.encode(r#"{"iss":"a","sub":"b","aud":"c","iat":1,"exp":2}"#);
        for (assertion, expected) in [
            (token.clone(), None),
            (format!("{header}.{forged_payload}.{signature}"), Some(Reason::Signature)),
            (format!("{header}.{payload}."), Some(Reason::Signature)),
            (format!("{}.{payload}.", encode(json!({"alg": "none", "kid": kid}))), Some(Reason::Algorithm)),
            (format!("{}.{payload}.{signature}", encode(json!({"alg": "HS256", "kid": kid}))), Some(Reason::Algorithm)),
            (format!("{}.{payload}.{signature}", encode(json!({"alg": "EdDSA", "kid": kid}))), Some(Reason::Algorithm)),
            (format!("{}.{payload}.{signature}", encode(json!({"alg": "RS256", "kid": kid}))), Some(Reason::Algorithm)),
            (
                format!("{}.{payload}.{signature}", encode(json!({"alg": "ES256", "kid": "x"}))),
                Some(Reason::UnknownKey),
            ),
            (format!("{}.{payload}.{signature}", encode(json!({"alg": "ES256"}))), Some(Reason::UnknownKey)),
            (format!("{header}.{payload}"), Some(Reason::MalformedAssertion)),
            (format!("{token}\n"), Some(Reason::MalformedAssertion)),
            ("a.b.c".to_owned(), Some(Reason::MalformedAssertion)),
            (String::new(), Some(Reason::MalformedAssertion)),
        ] {
            assert_eq!(verify(&assertion).err(), expected, "{assertion}");
        }
    }
}
