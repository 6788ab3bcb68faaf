//! Assertions that the token endpoint must reject.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use ring::hmac;
use serde_json::{Map, Value, json};
use wifshare_sandbox::{Sandbox, Settings};

use crate::client::{exchange, get, header_and_claims};

fn sandbox() -> Sandbox {
    Sandbox::start(Settings::default()).unwrap()
}

/// Returns the claims and the key id of a valid identity token.
fn genuine(sandbox: &Sandbox) -> (Map<String, Value>, String) {
    let mut claims = Map::new();
    let identity_token = sandbox.issue_identity_token_with(|genuine| claims = genuine.clone());
    let [header, _] = header_and_claims(&identity_token);
    (claims, header["kid"].as_str().unwrap().to_owned())
}

fn is_refused(sandbox: &Sandbox, assertion: &str, reason: &str) {
    let before = sandbox.counters().refused.get(reason).copied().unwrap_or_default();
    let answer = exchange(sandbox, assertion).unwrap();
    assert_eq!(answer.status, 401, "{reason}");
    assert_eq!(answer.json()["error"]["message"], "Authentication failed");
    assert_eq!(
        sandbox.counters().refused.get(reason),
        Some(&(before + 1)),
        "{reason}: {:?}",
        sandbox.counters().refused
    );
}

#[test]
fn token_with_wrong_claims_is_refused() {
    let sandbox = sandbox();
    let after = |claims: &Map<String, Value>, seconds: i64| json!(claims["iat"].as_i64().unwrap() + seconds);
    let edited = |claim: &str, value: Value| {
        sandbox.issue_identity_token_with(|claims| _ = claims.insert(claim.to_owned(), value))
    };
    let timed = |claim: &str, seconds: i64| {
        sandbox.issue_identity_token_with(|claims| _ = claims.insert(claim.to_owned(), after(claims, seconds)))
    };
    is_refused(&sandbox, &timed("exp", -40), "expired");
    is_refused(&sandbox, &timed("nbf", 60), "not_yet_valid");
    is_refused(&sandbox, &timed("iat", 60), "not_yet_valid");
    is_refused(&sandbox, &timed("exp", 3601), "lifetime");
    is_refused(&sandbox, &edited("aud", json!("https://github.com/octo-org")), "audience");
    is_refused(&sandbox, &edited("sub", json!("repo:evil/octo-repo:ref:refs/heads/main")), "match_subject_prefix");
    is_refused(&sandbox, &edited("iss", json!("https://token.actions.githubusercontent.com")), "issuer");
    is_refused(&sandbox, &edited("exp", json!("soon")), "malformed_assertion");
    is_refused(&sandbox, "not.a.jwt", "malformed_assertion");
    assert_eq!(exchange(&sandbox, &timed("exp", 3600)).unwrap().status, 200);
    assert_eq!(exchange(&sandbox, &edited("aud", json!(["x", "https://api.anthropic.com"]))).unwrap().status, 200);
}

#[test]
fn token_not_signed_by_issuer_is_refused() {
    let sandbox = sandbox();
    let (claims, kid) = genuine(&sandbox);
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let input = |algorithm: &str, kid: &str| {
        format!("{}.{}", part(json!({"alg": algorithm, "kid": kid})), part(Value::Object(claims.clone())))
    };
    let stranger = SigningKey::from_slice(&[7; 32]).unwrap();
    let forged = |kid: &str| {
        let input = input("ES256", kid);
        let signature: Signature = stranger.sign(input.as_bytes());
        format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    };
    is_refused(&sandbox, &forged(&kid), "signature");
    is_refused(&sandbox, &forged("mine"), "unknown_key");

    // Algorithm confusion: the public key set as a shared secret.
    let jwks = get(&format!("{}/.well-known/jwks", sandbox.base_url()), &[]).unwrap().body;
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, jwks.as_bytes()), input("HS256", &kid).as_bytes());
    let confused = format!("{}.{}", input("HS256", &kid), BASE64_URL_SAFE_NO_PAD.encode(tag));
    is_refused(&sandbox, &confused, "algorithm");
    is_refused(&sandbox, &format!("{}.", input("RS256", &kid)), "algorithm");
    is_refused(&sandbox, &format!("{}.", input("none", &kid)), "algorithm");

    let genuine = sandbox.issue_identity_token();
    let parts: Vec<&str> = genuine.split('.').collect();
    let mut promoted = claims.clone();
    promoted.insert("sub".into(), json!("repo:octo-org/octo-repo:environment:production"));
    let tampered = format!("{}.{}.{}", parts[0], part(Value::Object(promoted)), parts[2]);
    is_refused(&sandbox, &tampered, "signature");

    let other = self::sandbox();
    is_refused(&sandbox, &other.issue_identity_token(), "issuer");
    assert_eq!(sandbox.counters().exchanges_accepted, 0);
    assert_eq!(sandbox.counters().identity_tokens_reused, 0);
    assert_eq!(exchange(&sandbox, &genuine).unwrap().status, 200, "no forgery has spent it");
}

#[test]
fn token_with_a_changed_signature_is_refused() {
    let sandbox = sandbox();
    let identity_token = sandbox.issue_identity_token();
    let (rest, signature) = identity_token.rsplit_once('.').unwrap();
    let mut signature = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
    assert_eq!(signature.len(), 64);
    signature[0] ^= 1;
    is_refused(&sandbox, &format!("{rest}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)), "signature");
    assert_eq!(exchange(&sandbox, &identity_token).unwrap().status, 200);
}
