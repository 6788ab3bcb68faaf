//! Wrong clocks of the issuer, the server, or both.

use std::time::SystemTime;

use wifshare_sandbox::{Sandbox, Settings};

use crate::client::{access_token, exchange, get, header_and_claims, identity_token, message};

fn issued_at(identity_token: &str) -> i64 {
    let [_, claims] = header_and_claims(identity_token);
    let at = |name: &str| claims[name].as_i64().unwrap();
    assert_eq!((at("nbf"), at("exp")), (at("iat"), at("iat") + 300), "all of it goes by one clock");
    at("iat")
}

#[expect(clippy::disallowed_methods, reason = "the clock that the others are compared with")]
fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// Returns the seconds by which the `date` header at this path is ahead of the local clock.
fn date_ahead(sandbox: &Sandbox, path: &str) -> i64 {
    let answer = get(&format!("{}{path}", sandbox.base_url()), &[]).unwrap();
    let date = httpdate::parse_http_date(answer.header("date")).expect("a date in HTTP's own form");
    i64::try_from(date.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap() - now()
}

fn is_about(seconds: i64, expected: i64) -> bool {
    (seconds - expected).abs() <= 10
}

#[test]
fn tokens_of_issuer_with_wrong_clock_are_refused() {
    for (ahead, reason) in
        [(0, None), (20, None), (-300, None), (3600, Some("not_yet_valid")), (-3600, Some("expired"))]
    {
        let sandbox = Sandbox::start(Settings { issuer_clock_ahead_s: ahead, ..Settings::default() }).unwrap();
        let given = sandbox.issue_identity_token();
        let asked = identity_token(&sandbox, "https://api.anthropic.com").unwrap().json()["value"].clone();
        for token in [given.as_str(), asked.as_str().unwrap()] {
            assert!(is_about(issued_at(token) - now(), ahead), "{ahead}");
            assert_eq!(exchange(&sandbox, token).unwrap().status, if reason.is_some() { 401 } else { 200 }, "{ahead}");
        }
        let refused = sandbox.counters().refused;
        assert_eq!(refused.keys().map(String::as_str).collect::<Vec<_>>(), Vec::from_iter(reason), "{ahead}");
    }
}

#[test]
fn server_with_wrong_clock_refuses_tokens_and_shows_its_date() {
    for (ahead, reason) in [(3600, "expired"), (-3600, "not_yet_valid")] {
        let sandbox = Sandbox::start(Settings { server_clock_ahead_s: ahead, ..Settings::default() }).unwrap();
        let token = sandbox.issue_identity_token();
        assert!(is_about(issued_at(&token) - now(), 0));
        let answer = exchange(&sandbox, &token).unwrap();
        assert_eq!(answer.status, 401);
        assert_eq!(sandbox.counters().refused[reason], 1);
        assert!(answer.header("date").ends_with(" GMT"));
        assert!(is_about(date_ahead(&sandbox, "/v1/models"), ahead), "the API goes by the server's clock");
        assert!(is_about(date_ahead(&sandbox, "/.well-known/jwks"), 0), "and the issuer by its own");
        // Two clocks with the same offset agree.
        sandbox.set_settings(Settings {
            server_clock_ahead_s: ahead,
            issuer_clock_ahead_s: ahead,
            ..Settings::default()
        });
        assert_eq!(exchange(&sandbox, &sandbox.issue_identity_token()).unwrap().status, 200);
    }
}

#[test]
fn server_clock_step_expires_access_tokens() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let access_token = access_token(&sandbox);
    assert_eq!(message(&sandbox, &access_token, false).unwrap().status, 200);
    sandbox.set_settings(Settings { server_clock_ahead_s: 601, ..Settings::default() });
    assert_eq!(message(&sandbox, &access_token, false).unwrap().status, 401);
    sandbox.set_settings(Settings::default());
    assert_eq!(message(&sandbox, &access_token, false).unwrap().status, 200);
}

#[test]
fn every_response_has_a_date() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    for path in ["/", "/nothing", "/idtoken", "/.well-known/openid-configuration", "/v1/models", "/sandbox/counters"] {
        assert!(is_about(date_ahead(&sandbox, path), 0), "{path}");
    }
    // Even extreme offsets get a response.
    for extreme in [i64::MIN, i64::MAX] {
        sandbox.set_settings(Settings {
            server_clock_ahead_s: extreme,
            issuer_clock_ahead_s: extreme,
            ..Settings::default()
        });
        sandbox.issue_identity_token();
        assert_eq!(get(&sandbox.base_url(), &[]).unwrap().status, 200);
    }
}
