//! Responses: JSON, text, errors in the API's format, bodies in parts, and closed connections.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, channel::Channel, combinators::UnsyncBoxBody};
use serde_json::{Value, json};

/// The body of every response.
pub(crate) type Body = UnsyncBoxBody<Bytes, HangUp>;

/// A response, or the reason for an error or a closed connection.
pub(crate) type Outcome = Result<Response<Body>, Stop>;

/// How a request fails.
#[derive(Debug)]
pub(crate) enum Stop {
    /// With an error response.
    Error {
        status: StatusCode,
        message: String,
        /// Seconds for a `retry-after` header.
        retry_after_s: Option<u64>,
    },
    /// By closing the connection without a response.
    HangUp(HangUp),
}

impl Stop {
    /// An error without further headers.
    pub(crate) fn error(status: StatusCode, message: impl Into<String>) -> Self {
        Self::Error { status, message: message.into(), retry_after_s: None }
    }
}

/// How a fault closes a connection. Returned to hyper as an error, it closes the connection immediately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sandbox hung up")]
pub(crate) enum HangUp {
    /// With FIN.
    Close,
    /// With RST, as after a crash or by a middlebox.
    Reset,
}

/// The largest body sent or received, in bytes: the API takes Messages requests of some tens of megabytes.
pub(crate) const BODY_LIMIT: usize = 64 << 20;

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    whole(status, "application/json", value.to_string())
}

/// An answer in plain text.
pub(crate) fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    whole(status, "text/plain", text)
}

/// An answer in plain text that was made for it.
pub(crate) fn plain(status: StatusCode, text: String) -> Response<Body> {
    whole(status, "text/plain", text)
}

/// An error in the API's shape, with the type that goes with the status.
pub(crate) fn error(status: StatusCode, message: &str, request_id: &str) -> Response<Body> {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    json(status, &json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}))
}

/// How a body in parts ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As it should.
    Proper,
    /// With the connection, after the last part.
    Cut,
}

/// An answer whose body is sent part by part, `interval` apart. The caller sets the headers.
pub(crate) fn in_parts(parts: Vec<Bytes>, interval: Duration, end: End) -> Response<Body> {
    // Long enough for the last part to leave before the connection is closed behind it.
    const FLUSH: Duration = Duration::from_millis(20);
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        for part in parts {
            if sender.send_data(part).await.is_err() {
                return;
            }
            if !interval.is_zero() {
                tokio::time::sleep(interval).await;
            }
        }
        if end == End::Cut {
            tokio::time::sleep(FLUSH).await;
            sender.abort(HangUp::Close);
        }
    });
    Response::new(body.boxed_unsync())
}

fn whole(status: StatusCode, content_type: &'static str, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(content.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
