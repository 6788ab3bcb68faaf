//! The API accepts only live access tokens, and its responses have the form of the real API's.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use wifshare_sandbox::{Sandbox, Settings};

use crate::client::{access_token, exchange, get, message, post, put};

#[test]
fn response_names_the_requested_model() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let answer = message(&sandbox, &access_token(&sandbox), false).unwrap();
    assert_eq!(answer.status, 200);
    let answer = answer.json();
    assert_eq!(
        (&answer["type"], &answer["role"], &answer["model"]),
        (&json!("message"), &json!("assistant"), &json!("claude-x"))
    );
    assert_eq!(answer["content"][0], json!({"type": "text", "text": "Hello from the wifshare sandbox."}));
    assert_eq!(answer["stop_reason"], "end_turn");
    assert_eq!(sandbox.counters().messages_accepted, 1);
}

#[test]
fn api_accepts_only_live_access_tokens() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let other = Sandbox::start(Settings::default()).unwrap();
    let live = access_token(&sandbox);
    let url = format!("{}/v1/messages", sandbox.base_url());
    let body = r#"{"model": "m", "messages": []}"#;
    let bearer = format!("Bearer {live}");
    let strange = format!("Bearer {}", access_token(&other));
    let identity = format!("Bearer {}", sandbox.issue_identity_token());
    for headers in [
        &[][..],
        &[("x-api-key", live.as_str())],
        &[("x-api-key", "sk-ant-api03-x"), ("authorization", bearer.as_str())],
        &[("authorization", strange.as_str())],
        &[("authorization", identity.as_str())],
        &[("authorization", live.as_str())],
    ] {
        let answer = post(&url, headers, body).unwrap();
        assert_eq!(
            (answer.status, &answer.json()["error"]["type"]),
            (401, &json!("authentication_error")),
            "{headers:?}"
        );
    }
    assert_eq!(sandbox.counters().messages_refused, 6);
    assert_eq!(post(&url, &[("authorization", &bearer)], body).unwrap().status, 200);
    assert_eq!(post(&url, &[("authorization", &bearer)], "{}").unwrap().status, 400);
}

#[test]
fn revoked_access_token_is_refused_and_next_one_accepted() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let (first, second) = (access_token(&sandbox), access_token(&sandbox));
    sandbox.revoke_access_tokens();
    assert_eq!(message(&sandbox, &first, false).unwrap().status, 401);
    assert_eq!(message(&sandbox, &second, false).unwrap().status, 401);
    let third = access_token(&sandbox);
    assert_eq!(message(&sandbox, &third, false).unwrap().status, 200);
    assert_eq!(post(&format!("{}/sandbox/revoke", sandbox.base_url()), &[], "").unwrap().status, 200);
    assert_eq!(message(&sandbox, &third, false).unwrap().status, 401);
}

#[test]
fn expired_access_token_is_refused() {
    let settings = Settings { access_token_lifetime_s: 1, access_token_lifetime_floor_s: 1, ..Settings::default() };
    let sandbox = Sandbox::start(settings).unwrap();
    let short_lived = access_token(&sandbox);
    assert_eq!(message(&sandbox, &short_lived, false).unwrap().status, 200);
    #[expect(clippy::disallowed_methods, reason = "the sandbox's clock is the real one")]
    std::thread::sleep(Duration::from_millis(1_050));
    assert_eq!(message(&sandbox, &short_lived, false).unwrap().status, 401);
}

#[test]
fn stream_has_all_events_of_a_message() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let answer = message(&sandbox, &access_token(&sandbox), true).unwrap();
    assert!(answer.header("content-type").starts_with("text/event-stream"));
    let events: Vec<(String, Value)> = answer
        .body
        .split_terminator("\n\n")
        .map(|event| {
            let (name, data) = event.split_once('\n').expect("two lines");
            let name = name.strip_prefix("event: ").expect("a name");
            let data = data.strip_prefix("data: ").expect("data");
            (name.to_owned(), serde_json::from_str(data).expect("JSON"))
        })
        .collect();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ],
    );
    assert!(events.iter().all(|(name, data)| data["type"] == *name));
    assert_eq!(events[0].1["message"]["model"], "claude-x");
    assert_eq!(events[0].1["message"]["content"], json!([]));
    let text: String = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(text, "Hello from the wifshare sandbox.");
    assert_eq!(events[6].1["delta"]["stop_reason"], "end_turn");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "when an event arrives is what is tested")]
fn stream_events_arrive_one_by_one() {
    let sandbox = Sandbox::start(Settings { message_event_interval_ms: 100, ..Settings::default() }).unwrap();
    let access_token = access_token(&sandbox);
    let address = sandbox.base_url().replace("http://", "");
    let mut connection = TcpStream::connect(&address).unwrap();
    let body = r#"{"model": "m", "messages": [], "stream": true}"#;
    let length = body.len();
    write!(
        connection,
        "POST /v1/messages HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {access_token}\r\ncontent-length: {length}\r\n\r\n{body}",
    )
    .unwrap();
    let begin = Instant::now();
    let mut arrivals = Vec::new();
    for line in BufReader::new(connection).lines() {
        let line = line.unwrap();
        if line.starts_with("event: ") {
            arrivals.push(begin.elapsed());
        }
        if line.starts_with("event: message_stop") {
            break;
        }
    }
    assert_eq!(arrivals.len(), 8);
    assert!(arrivals[7] - arrivals[0] >= Duration::from_millis(600), "{arrivals:?}");
}

#[test]
fn other_api_calls_require_an_access_token() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let url = |path: &str| format!("{}{path}", sandbox.base_url());
    let bearer = format!("Bearer {}", access_token(&sandbox));
    let headers = [("authorization", bearer.as_str())];
    let count = url("/v1/messages/count_tokens?beta=true");
    assert_eq!(post(&count, &headers, "{}").unwrap().json(), json!({"input_tokens": 10}));
    assert_eq!(post(&count, &[], "{}").unwrap().status, 401);
    let models = get(&url("/v1/models"), &headers).unwrap().json();
    assert!(models["data"][0]["id"].is_string() && models["has_more"] == false);
    assert_eq!(get(&url("/v1/models"), &[]).unwrap().status, 401);
    assert_eq!(get(&url("/v1/models/claude-x"), &headers).unwrap().json()["id"], "claude-x");
    assert_eq!(get(&url("/v1/models/claude-x"), &[]).unwrap().status, 401);
    assert_eq!(get(&url("/v1/models/"), &headers).unwrap().status, 404);
    assert_eq!(sandbox.counters().other_calls_accepted, 3);
    assert_eq!(get(&url("/"), &[]).unwrap().status, 200);
    let head = crate::client::agent(Duration::from_secs(5)).head(url("/")).call().unwrap();
    assert_eq!(head.status(), 200);
    let nowhere = get(&url("/v1/nowhere"), &headers).unwrap();
    assert_eq!((nowhere.status, &nowhere.json()["error"]["type"]), (404, &json!("not_found_error")));
    assert!(nowhere.header("request-id").starts_with("req_"));
}

#[test]
fn oauth_beta_header_is_required_if_set() {
    let sandbox = Sandbox::start(Settings { require_oauth_beta: true, ..Settings::default() }).unwrap();
    let bearer = format!("Bearer {}", access_token(&sandbox));
    let status = |beta: &str| {
        let headers = [("authorization", bearer.as_str()), ("anthropic-beta", beta)];
        get(&format!("{}/v1/models", sandbox.base_url()), &headers).unwrap().status
    };
    assert_eq!(status("oauth-2025-04-20"), 200);
    assert_eq!(status("claude-code-20250219, oauth-2025-04-20"), 200);
    assert_eq!(status("oauth-2025-04-20-and-more"), 401);
    assert_eq!(message(&sandbox, bearer.trim_start_matches("Bearer "), false).unwrap().status, 401);
}

#[test]
fn large_body_is_accepted_except_by_token_endpoint() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let bearer = format!("Bearer {}", access_token(&sandbox));
    let large = json!({"model": "m", "messages": [{"role": "user", "content": "a".repeat(20 << 20)}]}).to_string();
    let url = format!("{}/v1/messages", sandbox.base_url());
    assert_eq!(post(&url, &[("authorization", &bearer)], &large).unwrap().status, 200);
    // The rest of the body is not read. Some clients receive the response, others only the closed connection.
    let url = format!("{}/v1/oauth/token", sandbox.base_url());
    assert!(post(&url, &[], &large).map_or(true, |answer| answer.status == 413));
    assert_eq!(sandbox.counters().exchanges_received, 1, "the one of the access token");
}

#[test]
fn counters_and_settings_are_served_over_http() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let url = |path: &str| format!("{}/sandbox/{path}", sandbox.base_url());
    let identity_token = sandbox.issue_identity_token();
    exchange(&sandbox, &identity_token).unwrap();
    exchange(&sandbox, &identity_token).unwrap();

    assert_eq!(get(&url("counters"), &[]).unwrap().json(), serde_json::to_value(sandbox.counters()).unwrap());
    let history = get(&url("history"), &[]).unwrap();
    assert_eq!(history.json()[1]["reason"], "jti_reused");
    for secret in sandbox.secrets() {
        assert!(!history.body.contains(&secret));
    }

    assert_eq!(get(&url("settings"), &[]).unwrap().json(), serde_json::to_value(Settings::default()).unwrap());
    let turned = put(&url("settings"), &json!({"exchange_faults": ["drop_after_commit"], "check_jti": false})).unwrap();
    assert_eq!(turned.status, 200);
    assert_eq!(turned.json()["exchange_faults"], json!(["drop_after_commit"]));
    assert!(!sandbox.settings().check_jti);
    let unknown = put(&url("settings"), &json!({"check_jtis": false})).unwrap();
    assert_eq!(unknown.status, 400);
    assert!(unknown.body.contains("check_jtis"));
    assert!(!sandbox.settings().check_jti, "a refused change changes nothing");
}
