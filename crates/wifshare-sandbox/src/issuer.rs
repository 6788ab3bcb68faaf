//! The OpenID provider: claims, metadata, key set.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::random;
use crate::signing::{ALGORITHM, SigningKey};

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
        "id_token_signing_alg_values_supported": [ALGORITHM],
        "scopes_supported": ["openid"],
        "claims_supported": ["sub", "aud", "exp", "iat", "iss", "jti", "nbf", "ref", "repository", "actor", "workflow"],
    })
}

/// The key set (RFC 7517 §5).
pub(crate) fn jwks() -> Value {
    json!({"keys": [SigningKey::of_this_process().jwk()]})
}
