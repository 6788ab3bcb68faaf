//! The OpenID provider: signing keys, claims, metadata.

use std::{sync::OnceLock, time::Duration};

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header,
    jwk::{Jwk, PublicKeyUse, ThumbprintHash},
};
use p256::pkcs8::EncodePrivateKey;
use rand::rngs::OsRng;
use rsa::pkcs1::EncodeRsaPrivateKey;
use serde_json::{Map, Value, json};

use crate::{SigningAlgorithm, random};

/// A key that identity tokens are signed with. Made when first needed, one of each kind in a process.
pub(crate) struct SigningKey {
    kid: String,
    algorithm: Algorithm,
    encoding: EncodingKey,
    decoding: DecodingKey,
    jwk: Jwk,
}

static RS256: OnceLock<SigningKey> = OnceLock::new();
static ES256: OnceLock<SigningKey> = OnceLock::new();

impl SigningKey {
    /// The key for this algorithm.
    pub(crate) fn of(algorithm: SigningAlgorithm) -> &'static Self {
        match algorithm {
            SigningAlgorithm::Rs256 => RS256.get_or_init(|| {
                let key = rsa::RsaPrivateKey::new(&mut OsRng, 2048).expect("2048 is a size that RSA keys have");
                let der = key.to_pkcs1_der().expect("a key just made can be written");
                Self::from_encoding(EncodingKey::from_rsa_der(der.as_bytes()), Algorithm::RS256)
            }),
            SigningAlgorithm::Es256 => ES256.get_or_init(|| {
                let key = p256::SecretKey::random(&mut OsRng);
                let der = key.to_pkcs8_der().expect("a key just made can be written");
                Self::from_encoding(EncodingKey::from_ec_der(der.as_bytes()), Algorithm::ES256)
            }),
        }
    }

    /// The key with this id, if it has been used.
    pub(crate) fn find(kid: &str) -> Option<&'static Self> {
        Self::published().find(|key| key.kid == kid)
    }

    /// The public half.
    pub(crate) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }

    /// Whether a signature of this kind can be made with this key.
    pub(crate) fn fits(&self, algorithm: Algorithm) -> bool {
        // An RSA key signs with any padding and hash, a P-256 key in one way (RFC 7518 §3.4).
        match self.algorithm {
            Algorithm::RS256 => algorithm.family() == AlgorithmFamily::Rsa,
            own => algorithm == own,
        }
    }

    /// An identity token that says what `claims` say.
    pub(crate) fn sign(&self, claims: &Map<String, Value>) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.encoding).expect("JSON claims and our own key can be signed")
    }

    fn published() -> impl Iterator<Item = &'static Self> {
        [&RS256, &ES256].into_iter().filter_map(OnceLock::get)
    }

    fn from_encoding(encoding: EncodingKey, algorithm: Algorithm) -> Self {
        let mut jwk = Jwk::from_encoding_key(&encoding, algorithm).expect("our own key has a public half");
        // The id follows from the key: two processes on one port, one after the other, never share it (RFC 7638).
        let kid = jwk.thumbprint(ThumbprintHash::SHA256).expect("RSA and EC keys have thumbprints");
        jwk.common.key_id = Some(kid.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        let decoding = DecodingKey::from_jwk(&jwk).expect("written by ourselves just above");
        Self { kid, algorithm, encoding, decoding, jwk }
    }
}

/// The same job's subject in the form of repositories made since 15 July 2026: with the ids of `repository_owner_id` and
/// `repository_id`.
pub(crate) const IMMUTABLE_SUBJECT: &str = "repo:octo-org@65/octo-repo@74:ref:refs/heads/main";

/// The claims of a job on the main branch of `octo-org/octo-repo`, as GitHub Actions states them.
pub(crate) fn claims(issuer: &str, audience: &str, lifetime_s: u64, now: Duration) -> Map<String, Value> {
    let now = now.as_secs();
    let Value::Object(claims) = json!({
        "jti": random::uuid(),
        "sub": "repo:octo-org/octo-repo:ref:refs/heads/main",
        "aud": audience,
        "iss": issuer,
        "iat": now,
        "nbf": now,
        "exp": now.saturating_add(lifetime_s),
        "ref": "refs/heads/main",
        "ref_type": "branch",
        "ref_protected": "true",
        "sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e",
        "repository": "octo-org/octo-repo",
        "repository_id": "74",
        "repository_owner": "octo-org",
        "repository_owner_id": "65",
        "repository_visibility": "private",
        "run_id": "1827364554",
        "run_number": "10",
        "run_attempt": "1",
        "runner_environment": "github-hosted",
        "actor": "octocat",
        "actor_id": "12",
        "event_name": "push",
        "workflow": "practice",
        "workflow_ref": "octo-org/octo-repo/.github/workflows/practice.yml@refs/heads/main",
        "job_workflow_ref": "octo-org/octo-repo/.github/workflows/practice.yml@refs/heads/main",
    }) else {
        unreachable!("written as an object just above")
    };
    claims
}

/// The discovery document (OpenID Connect Discovery 1.0 §3).
pub(crate) fn metadata(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks"),
        "subject_types_supported": ["public", "pairwise"],
        "response_types_supported": ["id_token"],
        "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        "scopes_supported": ["openid"],
        "claims_supported": ["sub", "aud", "exp", "iat", "iss", "jti", "nbf", "ref", "repository", "actor", "workflow"],
    })
}

/// The public keys used so far (RFC 7517 §5).
pub(crate) fn jwks() -> Value {
    json!({"keys": SigningKey::published().map(|key| &key.jwk).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_named_by_its_thumbprint() {
        let key = SigningKey::of(SigningAlgorithm::Es256);
        assert!(std::ptr::eq(key, SigningKey::of(SigningAlgorithm::Es256)));
        assert_eq!(key.kid.len(), 43, "a SHA-256 in base64url");
        assert!(SigningKey::find(&key.kid).is_some());
        assert!(SigningKey::find("another").is_none());
    }

    #[test]
    fn the_published_keys_have_no_private_half() {
        SigningKey::of(SigningAlgorithm::Rs256);
        SigningKey::of(SigningAlgorithm::Es256);
        let jwks = jwks();
        let keys = jwks["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 2);
        for key in keys {
            assert!(key.get("kid").is_some() && key.get("alg").is_some() && key["use"] == "sig");
            assert!(["d", "p", "q", "dp", "dq", "qi", "k"].iter().all(|private| key.get(private).is_none()));
        }
    }
}
