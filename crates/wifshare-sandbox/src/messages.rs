//! The API behind the access token: messages, token counts, models.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use crate::{
    Fault, Settings,
    answer::{self, Body, End, Outcome, Stop},
    bearer::bearer,
    random,
    state::State,
};

/// Accepts a request with a live access token.
///
/// # Errors
/// A 401 for any other request.
pub(crate) fn authorize(state: &State, headers: &HeaderMap) -> Result<(), Stop> {
    const OAUTH_BETA: &str = "oauth-2025-04-20";
    let has_beta = headers
        .get_all("anthropic-beta")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|beta| beta.trim() == OAUTH_BETA));
    let needs_beta = state.settings().require_oauth_beta;
    let now = state.server_now();
    let mut ledger = state.ledger();
    let complaint = if headers.contains_key("x-api-key") {
        "invalid x-api-key"
    } else if !bearer(headers).is_some_and(|access_token| ledger.is_live(access_token, now)) {
        "Invalid bearer token"
    } else if needs_beta && !has_beta {
        "OAuth authentication is currently not supported."
    } else {
        return Ok(());
    };
    ledger.counters.messages_refused += 1;
    Err(Stop::error(StatusCode::UNAUTHORIZED, complaint))
}

/// Answers a message request, with JSON or a stream of events.
pub(crate) async fn answer(state: &State, body: &[u8]) -> Outcome {
    #[derive(Deserialize)]
    struct MessageRequest {
        model: String,
        #[serde(rename = "messages")]
        _messages: Vec<IgnoredAny>,
        #[serde(default)]
        stream: bool,
    }
    let Ok(request) = serde_json::from_slice::<MessageRequest>(body) else {
        state.ledger().counters.messages_refused += 1;
        return Err(Stop::error(StatusCode::BAD_REQUEST, "model, messages: Field required"));
    };
    let fault = state.take_fault(|settings| &mut settings.message_faults);
    let Settings { message_latency_ms, message_event_interval_ms, .. } = state.settings();
    {
        let counters = &mut state.ledger().counters;
        match fault {
            Fault::None | Fault::Stall { .. } | Fault::Drip { .. } => counters.messages_accepted += 1,
            _ => counters.messages_faulted += 1,
        }
    }
    tokio::time::sleep(Duration::from_millis(message_latency_ms)).await;
    let message = message(&request.model);
    if !request.stream {
        return fault.spoil(message).await;
    }
    let interval = Duration::from_millis(message_event_interval_ms);
    match fault {
        Fault::None => Ok(stream(events(message), interval, End::Proper)),
        Fault::Stall { ms } => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(stream(events(message), interval, End::Proper))
        }
        Fault::Drip { ms } => {
            let events = events(message);
            let interval = Duration::from_millis(ms) / u32::try_from(events.len()).unwrap_or(u32::MAX).max(1);
            Ok(stream(events, interval, End::Proper))
        }
        Fault::TruncatedBody => Ok(stream(events(message)[..3].to_vec(), interval, End::Cut)),
        other => other.spoil(message).await,
    }
}

/// The token count of any message: ten.
pub(crate) fn count_tokens() -> Value {
    json!({"input_tokens": INPUT_TOKENS})
}

/// The model list. A message may name any model.
pub(crate) fn models() -> Value {
    const MODEL: &str = "claude-sandbox-1";
    json!({"data": [model(MODEL)], "first_id": MODEL, "last_id": MODEL, "has_more": false})
}

/// One model, of any name.
pub(crate) fn model(id: &str) -> Value {
    json!({"type": "model", "id": id, "display_name": "Claude Sandbox", "created_at": "2026-01-01T00:00:00Z"})
}

const INPUT_TOKENS: u64 = 10;
const OUTPUT_TOKENS: u64 = 6;
const REPLY: [&str; 2] = ["Hello from ", "the wifshare sandbox."];

pub(crate) fn message(model: &str) -> Value {
    json!({
        "id": random::name("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": REPLY.concat()}],
        "stop_reason": "end_turn",
        "stop_sequence": null,
        "usage": {
            "input_tokens": INPUT_TOKENS,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": OUTPUT_TOKENS,
        },
    })
}

/// The events of a streamed message.
fn events(message: Value) -> Vec<Value> {
    let mut opening = message;
    opening["content"] = json!([]);
    opening["stop_reason"] = Value::Null;
    opening["usage"]["output_tokens"] = json!(1);
    let delta =
        |text| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    vec![
        json!({"type": "message_start", "message": opening}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "ping"}),
        delta(REPLY[0]),
        delta(REPLY[1]),
        json!({"type": "content_block_stop", "index": 0}),
        json!({
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": null},
            "usage": {"output_tokens": OUTPUT_TOKENS},
        }),
        json!({"type": "message_stop"}),
    ]
}

fn stream(events: Vec<Value>, interval: Duration, end: End) -> Response<Body> {
    let write = |event: Value| {
        let name = event["type"].as_str().unwrap_or_default();
        Bytes::from(format!("event: {name}\ndata: {event}\n\n"))
    };
    let mut response = answer::in_parts(events.into_iter().map(write).collect(), interval, end);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
