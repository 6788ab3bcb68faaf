//! Message batches, as far as reading their results needs them: each batch that is asked for has ended, with one result.

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    answer::{self, Outcome, Stop},
    messages,
};

pub(crate) const PATH: &str = "/v1/messages/batches";

/// Answers to this path; `base_url` is where the results are said to be.
pub(crate) fn answer(base_url: &str, method: &Method, path: &str) -> Outcome {
    let parts: Vec<&str> = path.strip_prefix(PATH).unwrap_or_default().split('/').collect();
    let ok = |value: Value| Ok(answer::json(StatusCode::OK, &value));
    match (method.as_str(), &parts[..]) {
        ("POST", [""]) => ok(batch(base_url, "msgbatch_01Sandbox")),
        ("GET", [""]) => {
            let data = [batch(base_url, "msgbatch_01Sandbox"), batch(base_url, "msgbatch_02Sandbox")];
            let (first, last) = (data[0]["id"].clone(), data[1]["id"].clone());
            ok(json!({"data": data, "has_more": false, "first_id": first, "last_id": last}))
        }
        ("GET", ["", id]) | ("POST", ["", id, "cancel"]) => ok(batch(base_url, id)),
        ("GET", ["", _, "results"]) => {
            let result = json!({"type": "succeeded", "message": messages::message("claude-sandbox-1")});
            let line = format!("{}\n", json!({"custom_id": "one", "result": result}));
            let mut response = answer::plain(StatusCode::OK, line);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-jsonl"));
            Ok(response)
        }
        _ => Err(Stop::error(StatusCode::NOT_FOUND, format!("Not found: {method} {path}"))),
    }
}

fn batch(base_url: &str, id: &str) -> Value {
    let moment = "2026-01-01T00:00:00Z";
    json!({
        "id": id,
        "type": "message_batch",
        "processing_status": "ended",
        "request_counts": {"processing": 0, "succeeded": 1, "errored": 0, "canceled": 0, "expired": 0},
        "created_at": moment,
        "expires_at": moment,
        "ended_at": moment,
        "archived_at": null,
        "cancel_initiated_at": null,
        "results_url": format!("{base_url}{PATH}/{id}/results"),
    })
}
