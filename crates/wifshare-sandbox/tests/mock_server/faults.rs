//! Each fault: its effect on the response, and whether the identity token is spent.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wifshare_sandbox::{Fault, Sandbox, Settings, Verdict};

use crate::client::{
    Outcome, access_token, agent, exchange, grant, identity_token, message, post_with, token_endpoint,
};

fn sandbox_with(fault: Fault) -> Sandbox {
    let settings = Settings::with_exchange_faults([fault]);
    Sandbox::start(settings).unwrap()
}

/// Exchanges a token with the fault, then again without it. Returns whether the first exchange spent the token.
fn spends(fault: Fault, looks_right: impl FnOnce(Outcome, &str)) -> bool {
    let sandbox = sandbox_with(fault.clone());
    let identity_token = sandbox.issue_identity_token();
    // Some faults close the connection, so each exchange uses its own.
    looks_right(exchange(&sandbox, &identity_token), &identity_token);
    assert_eq!(sandbox.counters().exchanges_faulted, 1, "{fault:?}");
    assert_eq!(sandbox.history()[0].fault, fault);
    assert_eq!(sandbox.settings().exchange_faults, []);

    let status = exchange(&sandbox, &identity_token).unwrap().status;
    let counters = sandbox.counters();
    assert_eq!(counters.assertions_repeated, 1);
    assert_eq!(counters.identity_tokens_reused, u64::from(status == 401), "{fault:?}");
    assert_eq!(counters.exchanges_accepted, 1, "{fault:?}: one token, one acceptance");
    status == 401
}

fn status_of(outcome: Outcome) -> u16 {
    outcome.unwrap().status
}

#[test]
fn status_fault_has_api_error_shape_and_may_spend() {
    let unavailable = |commit| Fault::Status { status: 503, retry_after_s: Some(7), commit };
    let looks_right = |outcome: Outcome, _: &str| {
        let answer = outcome.unwrap();
        assert_eq!((answer.status, answer.header("retry-after")), (503, "7"));
        assert_eq!(answer.json()["type"], "error");
        assert_eq!(answer.json()["error"]["type"], "api_error");
        assert_eq!(answer.json()["request_id"], answer.header("request-id"));
    };
    assert!(!spends(unavailable(false), looks_right));
    assert!(spends(unavailable(true), looks_right));
    for (status, kind) in [(429, "rate_limit_error"), (529, "overloaded_error"), (401, "authentication_error")] {
        spends(Fault::Status { status, retry_after_s: None, commit: false }, |outcome, _| {
            let answer = outcome.unwrap();
            assert_eq!((answer.status, answer.header("retry-after")), (status, ""));
            assert_eq!(answer.json()["error"]["type"], kind);
        });
    }
}

#[test]
fn dropped_connection_has_no_response() {
    let looks_right = |outcome: Outcome, _: &str| assert!(outcome.is_err());
    assert!(!spends(Fault::DropBeforeCommit, looks_right));
    assert!(spends(Fault::DropAfterCommit, looks_right));
}

/// Sends one exchange over a plain connection and reads to its end. Returns the bytes, and whether the connection
/// closed cleanly.
fn bare_exchange(sandbox: &Sandbox, identity_token: &str) -> (String, std::io::Result<usize>) {
    use std::io::{Read, Write};
    let body = grant(sandbox, identity_token).to_string();
    let address = sandbox.base_url().replace("http://", "");
    let mut connection = std::net::TcpStream::connect(&address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = body.len();
    write!(
        connection,
        "POST /v1/oauth/token HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = Vec::new();
    let end = connection.read_to_end(&mut answer);
    (String::from_utf8(answer).unwrap(), end)
}

#[test]
fn drop_closes_with_fin_and_reset_with_rst() {
    for (fault, is_reset, spends) in [
        (Fault::DropBeforeCommit, false, false),
        (Fault::DropAfterCommit, false, true),
        (Fault::ResetBeforeCommit, true, false),
        (Fault::ResetAfterCommit, true, true),
    ] {
        let sandbox = sandbox_with(fault.clone());
        let identity_token = sandbox.issue_identity_token();
        let (answer, end) = bare_exchange(&sandbox, &identity_token);
        assert_eq!(answer, "", "{fault:?}");
        let kind = end.err().map(|error| error.kind());
        assert_eq!(kind, is_reset.then_some(std::io::ErrorKind::ConnectionReset), "{fault:?}");
        assert_eq!(sandbox.counters().exchanges_faulted, 1, "{fault:?}");
        assert_eq!(exchange(&sandbox, &identity_token).unwrap().status, if spends { 401 } else { 200 }, "{fault:?}");
    }
}

#[test]
fn redirect_of_every_status_spends_nothing() {
    for status in [301, 302, 303, 307, 308] {
        let redirect = Fault::Redirect { status, location: "/elsewhere".into() };
        assert!(!spends(redirect, |outcome, _| {
            let answer = outcome.unwrap();
            assert_eq!((answer.status, answer.header("location")), (status, "/elsewhere"));
        }));
    }
}

#[test]
fn response_of_an_intermediary_spends_nothing() {
    let redirect = Fault::Redirect { status: 307, location: "http://127.0.0.1:9/elsewhere".into() };
    assert!(!spends(redirect, |outcome, _| {
        let answer = outcome.unwrap();
        assert_eq!((answer.status, answer.header("location")), (307, "http://127.0.0.1:9/elsewhere"));
    }));
    assert!(!spends(Fault::NotJson, |outcome, _| {
        let answer = outcome.unwrap();
        assert_eq!((answer.status, answer.header("content-type")), (200, "text/html"));
        assert!(serde_json::from_str::<Value>(&answer.body).is_err());
    }));
}

#[test]
fn empty_or_oversized_response_spends_token() {
    assert!(spends(Fault::EmptyBody, |outcome, _| {
        let answer = outcome.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    }));
    assert!(spends(Fault::Oversized { bytes: 2 << 20 }, |outcome, _| {
        let answer = outcome.unwrap();
        assert!(answer.body.len() > 2 << 20);
        assert!(answer.json()["access_token"].is_string());
    }));
    assert!(spends(Fault::Oversized { bytes: 20 << 20 }, |outcome, _| {
        assert!(outcome.unwrap().body.len() > 20 << 20);
    }));
    assert!(spends(Fault::TruncatedBody, |outcome, _| assert!(outcome.is_err())));
    assert!(spends(Fault::TruncatedJson, |outcome, _| {
        let answer = outcome.unwrap();
        assert_eq!((answer.status, answer.header("content-length")), (200, answer.body.len().to_string().as_str()));
        assert!(answer.body.starts_with('{') && serde_json::from_str::<Value>(&answer.body).is_err());
    }));
}

#[test]
fn truncated_body_announces_full_length() {
    use std::io::{Read, Write};
    let sandbox = sandbox_with(Fault::TruncatedBody);
    let body = grant(&sandbox, &sandbox.issue_identity_token()).to_string();
    let address = sandbox.base_url().replace("http://", "");
    let mut connection = std::net::TcpStream::connect(&address).unwrap();
    let length = body.len();
    write!(connection, "POST /v1/oauth/token HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut answer = Vec::new();
    // Whether the connection is closed or reset depends on the system.
    _ = connection.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("the whole head");
    let announced = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let announced: usize = announced.parse().unwrap();
    assert_eq!(body.len(), announced / 2, "{head}");
    assert!(body.starts_with('{'));
}

#[test]
fn reflected_assertion_is_in_error_response() {
    let reflects = |outcome: Outcome, identity_token: &str| {
        let answer = outcome.unwrap();
        assert_eq!(answer.status, 400);
        assert!(answer.json()["error_description"].as_str().unwrap().contains(identity_token));
        assert_eq!(answer.json()["received"]["assertion"], identity_token);
    };
    assert!(!spends(Fault::ReflectAssertion, reflects));
}

#[test]
fn response_with_wrong_or_missing_field_spends_token() {
    assert!(spends(Fault::WrongTypes, |outcome, _| {
        let granted = outcome.unwrap().json();
        assert!(granted["access_token"].is_number() && granted["expires_in"].is_object());
    }));
    assert!(spends(Fault::NoAccessToken, |outcome, _| {
        let granted = outcome.unwrap().json();
        assert!(granted.get("access_token").is_none() && granted["expires_in"].is_u64());
    }));
    assert!(spends(Fault::WrongTokenType, |outcome, _| {
        let granted = outcome.unwrap().json();
        assert!(granted["token_type"] == "mac" && granted["access_token"].is_string());
    }));
    for value in [json!(0), json!(-1), json!("600"), json!(599.5)] {
        assert!(spends(Fault::ExpiresIn(value.clone()), |outcome, _| {
            assert_eq!(outcome.unwrap().json()["expires_in"], value);
        }));
    }
    assert!(spends(Fault::ExpiresIn(Value::Null), |outcome, _| {
        assert!(outcome.unwrap().json().get("expires_in").is_none());
    }));
}

#[test]
fn stall_delays_a_valid_response() {
    #[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
    let begin = Instant::now();
    assert!(spends(Fault::Stall { ms: 400 }, |outcome, _| {
        assert!(begin.elapsed() >= Duration::from_millis(400));
        assert!(outcome.unwrap().json()["access_token"].is_string());
    }));
    let sandbox = sandbox_with(Fault::Stall { ms: 5_000 });
    let identity_token = sandbox.issue_identity_token();
    let body = grant(&sandbox, &identity_token).to_string();
    assert!(post_with(&agent(Duration::from_millis(300)), &token_endpoint(&sandbox), &[], &body).is_err());
    assert_eq!(exchange(&sandbox, &identity_token).unwrap().status, 401);
}

#[test]
fn drip_sends_a_valid_body_byte_by_byte() {
    use std::io::{BufRead, BufReader, Read, Write};
    assert!(spends(Fault::Drip { ms: 100 }, |outcome, _| {
        assert!(outcome.unwrap().json()["access_token"].is_string());
    }));

    let sandbox = sandbox_with(Fault::Drip { ms: 600 });
    let body = grant(&sandbox, &sandbox.issue_identity_token()).to_string();
    let address = sandbox.base_url().replace("http://", "");
    let mut connection = std::net::TcpStream::connect(&address).unwrap();
    let length = body.len();
    write!(connection, "POST /v1/oauth/token HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n{body}")
        .unwrap();
    let mut reader = BufReader::new(connection);
    let mut announced = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(length) = line.strip_prefix("content-length: ") {
            announced = length.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    #[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
    let begin = Instant::now();
    let (mut reads, mut body) = (0, Vec::new());
    while body.len() < announced {
        let mut part = [0; 4096];
        let length = reader.read(&mut part).unwrap();
        assert!(length > 0, "the body ends early");
        body.extend(&part[..length]);
        reads += 1;
    }
    assert!(begin.elapsed() >= Duration::from_millis(500), "{:?}", begin.elapsed());
    assert!(reads > announced / 4, "{announced} bytes in {reads} parts");
    assert!(serde_json::from_slice::<Value>(&body).unwrap()["access_token"].is_string());
}

#[test]
fn accept_delay_leaves_connection_unread() {
    use std::io::{Read, Write};
    let settings = Settings { accept_delays_ms: vec![500], ..Settings::default() };
    let sandbox = Sandbox::start(settings).unwrap();
    let address: std::net::SocketAddr = sandbox.base_url().replace("http://", "").parse().unwrap();
    #[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
    let begin = Instant::now();
    // The connection is accepted at once. Only its first request waits.
    let mut connection = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(400)).unwrap();
    write!(connection, "HEAD / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(begin.elapsed() >= Duration::from_millis(500), "{:?}", begin.elapsed());
    assert_eq!(sandbox.settings().accept_delays_ms.len(), 0);
    #[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
    let begin = Instant::now();
    assert_eq!(status_of(exchange(&sandbox, &sandbox.issue_identity_token())), 200);
    assert!(begin.elapsed() < Duration::from_millis(500), "the script is at its end");
}

#[test]
fn history_shows_time_between_requests() {
    let sandbox = sandbox_with(Fault::Stall { ms: 300 });
    for _ in 0..2 {
        assert_eq!(status_of(exchange(&sandbox, &sandbox.issue_identity_token())), 200);
    }
    let history = sandbox.history();
    assert!(history[1].arrived_ms >= history[0].arrived_ms + 300, "{history:?}");
}

#[test]
fn faults_are_used_in_order_then_none() {
    let script =
        [Fault::None, Fault::DropBeforeCommit, Fault::Status { status: 500, retry_after_s: None, commit: false }];
    let sandbox = Sandbox::start(Settings::with_exchange_faults(script)).unwrap();
    let next = || exchange(&sandbox, &sandbox.issue_identity_token()).ok().map(|answer| answer.status);
    assert_eq!([next(), next(), next(), next()], [Some(200), None, Some(500), Some(200)]);
    let verdicts: Vec<_> = sandbox.history().into_iter().map(|exchange| exchange.verdict).collect();
    assert_eq!(verdicts, [Verdict::Accepted, Verdict::Undecided, Verdict::Undecided, Verdict::Accepted]);

    let sandbox = Sandbox::start(Settings::fail_first(2, 529)).unwrap();
    let identity_token = sandbox.issue_identity_token();
    let next = || status_of(exchange(&sandbox, &identity_token));
    assert_eq!([next(), next(), next()], [529, 529, 200]);
}

#[test]
fn reused_token_is_counted_despite_a_fault() {
    let sandbox =
        Sandbox::start(Settings::with_exchange_faults([Fault::DropAfterCommit, Fault::DropBeforeCommit])).unwrap();
    let identity_token = sandbox.issue_identity_token();
    for _ in 0..2 {
        assert!(exchange(&sandbox, &identity_token).is_err());
    }
    assert_eq!(sandbox.counters().identity_tokens_reused, 1);
    assert_eq!(sandbox.counters().exchanges_faulted, 2);
}

#[test]
fn fault_at_wrong_endpoint_gets_501() {
    let sandbox = sandbox_with(Fault::DuplicateIdentityToken);
    assert_eq!(exchange(&sandbox, &sandbox.issue_identity_token()).unwrap().status, 501);
    sandbox.set_settings(Settings { identity_token_faults: vec![Fault::WrongTokenType], ..Settings::default() });
    assert_eq!(identity_token(&sandbox, "a").unwrap().status, 501);
}

#[test]
fn identity_endpoint_has_its_own_faults() {
    let faults = vec![
        Fault::None,
        Fault::DuplicateIdentityToken,
        Fault::MalformedIdentityToken,
        Fault::OversizedIdentityToken,
        Fault::WrongTypes,
        Fault::DropBeforeCommit,
        Fault::Status { status: 502, retry_after_s: None, commit: false },
    ];
    let sandbox = Sandbox::start(Settings { identity_token_faults: faults, ..Settings::default() }).unwrap();
    let next = || identity_token(&sandbox, "https://api.anthropic.com");
    let value = || next().unwrap().json()["value"].clone();
    let first = value();
    assert_eq!(value(), first, "the same once more");
    let malformed = value();
    assert_ne!(malformed.as_str().unwrap().split('.').count(), 3);
    let oversized = value();
    assert!(oversized.as_str().unwrap().len() > 16_384);
    assert_eq!(exchange(&sandbox, oversized.as_str().unwrap()).unwrap().status, 400);
    assert_eq!(value(), 42);
    assert!(next().is_err());
    assert_eq!(next().unwrap().status, 502);
    assert_ne!(value(), first);
    assert_eq!(sandbox.counters().identity_tokens_faulted, 6);
    let secrets = sandbox.secrets();
    for handed_out in [first, malformed, oversized] {
        assert!(secrets.iter().any(|secret| *secret == handed_out), "{handed_out}");
    }
}

#[test]
fn message_fault_fails_with_live_access_token() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let access_token = access_token(&sandbox);
    let unauthorized = Fault::Status { status: 401, retry_after_s: None, commit: false };
    let message_faults = vec![unauthorized, Fault::DropAfterCommit, Fault::TruncatedBody];
    sandbox.set_settings(Settings { message_faults, ..Settings::default() });
    assert_eq!(message(&sandbox, "another", false).unwrap().status, 401);
    assert_eq!(sandbox.settings().message_faults.len(), 3, "a stranger takes no fault");
    assert_eq!(message(&sandbox, &access_token, false).unwrap().status, 401);
    assert!(message(&sandbox, &access_token, true).is_err());
    assert!(message(&sandbox, &access_token, true).is_err(), "the stream is cut");
    assert_eq!(message(&sandbox, &access_token, true).unwrap().status, 200);
    let counters = sandbox.counters();
    assert_eq!((counters.messages_accepted, counters.messages_faulted, counters.messages_refused), (1, 3, 1));
}
