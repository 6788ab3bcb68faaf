//! An identity token is accepted once.

use std::{sync::Barrier, thread, time::Duration};

use serde_json::{Value, json};
use wifshare_sandbox::{Sandbox, Settings, Verdict};

use crate::client::{agent, exchange, grant, message, post_with, token_endpoint};

#[test]
fn second_exchange_of_token_gets_401_without_reason() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let identity_token = sandbox.issue_identity_token();

    let first = exchange(&sandbox, &identity_token).unwrap();
    assert_eq!(first.status, 200);
    let granted = first.json();
    assert!(granted["access_token"].as_str().unwrap().starts_with("sk-ant-oat01-"));
    assert_eq!(granted["token_type"], "Bearer");
    assert_eq!(granted["scope"], "workspace:developer");
    assert!((590..=600).contains(&granted["expires_in"].as_u64().unwrap()));
    assert!(granted.get("refresh_token").is_none());
    assert_eq!(message(&sandbox, granted["access_token"].as_str().unwrap(), false).unwrap().status, 200);

    let second = exchange(&sandbox, &identity_token).unwrap();
    assert_eq!(second.status, 401);
    let request_id = second.header("request-id");
    assert!(request_id.starts_with("req_"));
    assert_eq!(
        second.json(),
        json!({
            "type": "error",
            "error": {"type": "authentication_error", "message": "Authentication failed"},
            "request_id": request_id,
        }),
    );

    let counters = sandbox.counters();
    assert_eq!((counters.exchanges_received, counters.exchanges_accepted, counters.exchanges_refused), (2, 1, 1));
    assert_eq!(counters.refused.into_iter().collect::<Vec<_>>(), [("jti_reused".to_owned(), 1)]);
    assert_eq!((counters.identity_tokens_reused, counters.assertions_repeated), (1, 1));
    let history = sandbox.history();
    assert_eq!(history[0].verdict, Verdict::Accepted);
    assert_eq!((history[1].verdict, history[1].reason.as_deref()), (Verdict::Refused, Some("jti_reused")));
    assert_eq!(history[1].request_id, request_id);
    assert!(history[0].jti.is_some() && history[0].jti == history[1].jti);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may end if it gets no thread")]
fn one_of_fifty_concurrent_exchanges_is_accepted() {
    let sandbox = Sandbox::start(Settings { exchange_latency_ms: 100, ..Settings::default() }).unwrap();
    let identity_token = sandbox.issue_identity_token();
    let together = Barrier::new(50);
    let statuses: Vec<u16> = thread::scope(|scope| {
        let exchanges: Vec<_> = (0..50)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    exchange(&sandbox, &identity_token).unwrap().status
                })
            })
            .collect();
        exchanges.into_iter().map(|exchange| exchange.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 49, "{statuses:?}");
    assert_eq!(sandbox.counters().exchanges_accepted, 1);
    assert_eq!(sandbox.counters().identity_tokens_reused, 49);
}

#[test]
fn abandoned_exchange_spends_its_token() {
    let sandbox = Sandbox::start(Settings { exchange_latency_ms: 5_000, ..Settings::default() }).unwrap();
    let identity_token = sandbox.issue_identity_token();
    let hasty = agent(Duration::from_millis(300));
    let body = grant(&sandbox, &identity_token).to_string();
    assert!(post_with(&hasty, &token_endpoint(&sandbox), &[], &body).is_err());
    sandbox.set_settings(Settings::default());
    assert_eq!(exchange(&sandbox, &identity_token).unwrap().status, 401);
    assert_eq!(sandbox.counters().refused["jti_reused"], 1);
}

#[test]
fn token_without_checked_jti_is_accepted_again() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let without_jti = sandbox.issue_identity_token_with(|claims| _ = claims.remove("jti"));
    for _ in 0..2 {
        assert_eq!(exchange(&sandbox, &without_jti).unwrap().status, 200);
    }
    assert_eq!(sandbox.counters().identity_tokens_reused, 0, "nothing identifies it");
    assert_eq!(sandbox.counters().assertions_repeated, 1);

    sandbox.set_settings(Settings { check_jti: false, ..Settings::default() });
    let identity_token = sandbox.issue_identity_token();
    for _ in 0..2 {
        assert_eq!(exchange(&sandbox, &identity_token).unwrap().status, 200);
    }
    assert_eq!(sandbox.counters().identity_tokens_reused, 1, "counted, though accepted");
}

#[test]
fn tokens_with_same_jti_are_accepted_once() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let with_jti = |run: &str| {
        sandbox.issue_identity_token_with(|claims| {
            claims.insert("jti".into(), json!("same"));
            claims.insert("run_id".into(), json!(run));
        })
    };
    assert_eq!(exchange(&sandbox, &with_jti("1")).unwrap().status, 200);
    assert_eq!(exchange(&sandbox, &with_jti("2")).unwrap().status, 401);
    assert_eq!(sandbox.counters().assertions_repeated, 0);
    assert_eq!(sandbox.counters().identity_tokens_reused, 1);
}

#[test]
fn access_token_lifetime_depends_on_identity_token() {
    let sandbox = Sandbox::start(Settings { access_token_lifetime_s: 3600, ..Settings::default() }).unwrap();
    let expires_in = |remaining: i64| {
        let identity_token = sandbox.issue_identity_token_with(|claims| {
            let issued_at = claims["iat"].as_i64().unwrap();
            claims.insert("iat".into(), json!(issued_at - 1000));
            claims.insert("exp".into(), json!(issued_at + remaining));
        });
        exchange(&sandbox, &identity_token).unwrap().json()["expires_in"].as_u64().unwrap()
    };
    // The clock may advance one second between issue and exchange, which reduces the result by two seconds.
    assert!((190..=200).contains(&expires_in(100)));
    assert_eq!(expires_in(20), 60);
    assert_eq!(expires_in(-5), 60);
    assert_eq!(expires_in(2500), 3600);
    sandbox.set_settings(Settings {
        access_token_lifetime_s: 2,
        access_token_lifetime_floor_s: 1,
        ..Settings::default()
    });
    assert_eq!(expires_in(300), 2);
}

#[test]
fn malformed_request_spends_nothing() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let identity_token = sandbox.issue_identity_token();
    let mut body = grant(&sandbox, &identity_token);
    body["federation_rule_id"] = json!("my-rule");
    let answer = crate::client::post(&token_endpoint(&sandbox), &[], &body.to_string()).unwrap();
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    let message: &Value = &answer.json()["error"]["message"];
    assert!(message.as_str().unwrap().contains("federation_rule_id"), "{message}");
    assert_eq!(sandbox.counters().refused["invalid_request"], 1);
    assert_eq!(exchange(&sandbox, &identity_token).unwrap().status, 200);
}

#[test]
fn tokens_issued_without_jti_are_accepted_again() {
    let sandbox = Sandbox::start(Settings { issue_jti: false, ..Settings::default() }).unwrap();
    let identity_token = sandbox.issue_identity_token();
    for _ in 0..2 {
        assert_eq!(exchange(&sandbox, &identity_token).unwrap().status, 200);
    }
    assert_eq!((sandbox.counters().identity_tokens_reused, sandbox.counters().assertions_repeated), (0, 1));
    assert_eq!(sandbox.history()[0].jti, None);
}
