//! The CI's half: identity tokens for the job that has the request token, verifiable by anybody.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde_json::Value;
use wifshare_sandbox::{Knobs, Sandbox, SigningAlgorithm};

use crate::client::{exchange, get, identity_token};

#[test]
fn a_job_obtains_a_token_for_the_audience_it_names() {
    let sandbox = Sandbox::start(Knobs::default()).unwrap();
    let answer = identity_token(&sandbox, "https%3A%2F%2Fapi.anthropic.com").unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["count"], 1);
    let value = answer.json()["value"].as_str().unwrap().to_owned();
    assert_eq!(exchange(&sandbox, &value).unwrap().status, 200);
    assert!(sandbox.secrets().contains(&value));
    assert_eq!(sandbox.counters().identity_tokens_issued, 1);

    let url = sandbox.identity_token_request_url();
    let bearer = format!("Bearer {}", sandbox.identity_token_request_token());
    let default = get(&url, &[("authorization", &bearer)]).unwrap().json();
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(default["value"].as_str().unwrap()).unwrap();
    assert_eq!(claims["aud"], "https://github.com/octo-org");
}

#[test]
fn a_slow_platform_takes_its_time() {
    #[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
    let begin = Instant::now();
    let sandbox = Sandbox::start(Knobs { identity_token_latency_ms: 400, ..Knobs::default() }).unwrap();
    assert_eq!(identity_token(&sandbox, "a").unwrap().status, 200);
    assert!(begin.elapsed() >= Duration::from_millis(400));
}

#[test]
fn the_request_token_is_needed() {
    let sandbox = Sandbox::start(Knobs::default()).unwrap();
    let other = Sandbox::start(Knobs::default()).unwrap();
    let url = format!("{}&audience=a", sandbox.identity_token_request_url());
    let strange = format!("Bearer {}", other.identity_token_request_token());
    let basic = format!("Basic {}", sandbox.identity_token_request_token());
    for headers in [&[][..], &[("authorization", strange.as_str())], &[("authorization", basic.as_str())]] {
        let answer = get(&url, headers).unwrap();
        assert_eq!(answer.status, 401);
        assert_eq!(answer.json()["typeKey"], "UnauthorizedRequestException");
    }
    assert_eq!(sandbox.counters().identity_tokens_refused, 3);
    assert_eq!(sandbox.counters().identity_tokens_issued, 0);
}

#[test]
fn anybody_can_verify_a_token_by_the_published_keys() {
    for (signed_with, algorithm) in
        [(SigningAlgorithm::Rs256, Algorithm::RS256), (SigningAlgorithm::Es256, Algorithm::ES256)]
    {
        let sandbox = Sandbox::start(Knobs { algorithm: signed_with, ..Knobs::default() }).unwrap();
        let metadata = get(&format!("{}/.well-known/openid-configuration", sandbox.base_url()), &[]).unwrap().json();
        assert_eq!(metadata["issuer"], sandbox.base_url());
        let jwks = get(metadata["jwks_uri"].as_str().unwrap(), &[]).unwrap();
        let jwks: JwkSet = serde_json::from_str(&jwks.body).unwrap();

        let identity_token = sandbox.issue_identity_token();
        let header = jsonwebtoken::decode_header(&identity_token).unwrap();
        assert_eq!((header.alg, header.typ.as_deref()), (algorithm, Some("JWT")));
        let key = jwks.find(header.kid.as_deref().unwrap()).expect("the key is published");
        let mut validation = Validation::new(algorithm);
        validation.set_audience(&["https://api.anthropic.com"]);
        validation.set_issuer(&[sandbox.base_url()]);
        let token =
            jsonwebtoken::decode::<Value>(&identity_token, &DecodingKey::from_jwk(key).unwrap(), &validation).unwrap();
        assert_eq!(token.claims["sub"], "repo:octo-org/octo-repo:ref:refs/heads/main");
        assert_eq!(token.claims["repository"], "octo-org/octo-repo");
        assert_eq!(token.claims["exp"].as_i64().unwrap() - token.claims["iat"].as_i64().unwrap(), 300);
        assert_eq!(exchange(&sandbox, &identity_token).unwrap().status, 200);
    }
}

#[test]
fn every_token_has_its_own_jti() {
    let sandbox = Sandbox::start(Knobs { algorithm: SigningAlgorithm::Es256, ..Knobs::default() }).unwrap();
    let mut numbers = HashSet::new();
    for _ in 0..20 {
        sandbox.issue_identity_token_with(|claims| {
            let jti = claims["jti"].as_str().unwrap().to_owned();
            let groups: Vec<usize> = jti.split('-').map(str::len).collect();
            assert_eq!((groups.as_slice(), jti.as_bytes()[14]), (&[8, 4, 4, 4, 12][..], b'4'), "{jti}");
            assert!(numbers.insert(jti));
        });
    }
}

#[test]
fn a_change_of_algorithm_leaves_issued_tokens_valid() {
    let sandbox = Sandbox::start(Knobs::default()).unwrap();
    let issued_before = sandbox.issue_identity_token();
    sandbox.set_knobs(Knobs { algorithm: SigningAlgorithm::Es256, ..Knobs::default() });
    assert_eq!(exchange(&sandbox, &issued_before).unwrap().status, 200);
    assert_eq!(exchange(&sandbox, &sandbox.issue_identity_token()).unwrap().status, 200);
}
