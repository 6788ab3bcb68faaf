//! The identity endpoint of the CI: tokens for a job with the request token, verified with the published keys.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use p256::EncodedPoint;
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use wifshare_sandbox::{Sandbox, Settings};

use crate::client::{exchange, get, header_and_claims, identity_token};

#[test]
fn identity_endpoint_issues_token_for_requested_audience() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
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
    let [_, claims] = header_and_claims(default["value"].as_str().unwrap());
    assert_eq!(claims["aud"], "https://github.com/octo-org");
}

#[test]
fn identity_endpoint_waits_for_its_latency() {
    #[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
    let begin = Instant::now();
    let sandbox = Sandbox::start(Settings { identity_token_latency_ms: 400, ..Settings::default() }).unwrap();
    assert_eq!(identity_token(&sandbox, "a").unwrap().status, 200);
    assert!(begin.elapsed() >= Duration::from_millis(400));
}

#[test]
fn identity_endpoint_requires_request_token() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let other = Sandbox::start(Settings::default()).unwrap();
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
fn token_verifies_by_the_published_key() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let metadata = get(&format!("{}/.well-known/openid-configuration", sandbox.base_url()), &[]).unwrap().json();
    assert_eq!(metadata["issuer"], sandbox.base_url());
    let jwks = get(metadata["jwks_uri"].as_str().unwrap(), &[]).unwrap().json();

    let identity_token = sandbox.issue_identity_token();
    let [header, claims] = header_and_claims(&identity_token);
    assert_eq!((&header["alg"], &header["typ"]), (&"ES256".into(), &"JWT".into()));
    let key = jwks["keys"].as_array().unwrap().iter().find(|key| key["kid"] == header["kid"]).expect("it is published");
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap();
    let [x, y] = ["x", "y"].map(|name| part(key[name].as_str().unwrap()));
    let point = EncodedPoint::from_affine_coordinates(x[..].into(), y[..].into(), false);
    let (signed, signature) = identity_token.rsplit_once('.').unwrap();
    let signature = Signature::from_slice(&part(signature)).unwrap();
    VerifyingKey::from_encoded_point(&point).unwrap().verify(signed.as_bytes(), &signature).unwrap();

    assert_eq!((&claims["iss"], &claims["aud"]), (&sandbox.base_url().into(), &"https://api.anthropic.com".into()));
    assert_eq!(claims["sub"], "repo:octo-org/octo-repo:ref:refs/heads/main");
    assert_eq!(claims["repository"], "octo-org/octo-repo");
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300);
    assert_eq!(exchange(&sandbox, &identity_token).unwrap().status, 200);
}

#[test]
fn identity_tokens_have_distinct_jtis() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
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
