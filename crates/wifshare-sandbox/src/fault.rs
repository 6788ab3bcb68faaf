//! Faults that a script can inject.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::answer::{self, Body, End, HangUp, Outcome, Stop};

/// A fault for one request: an element of the scripts in [`Settings`](crate::Settings).
///
/// In JSON a fault is its name in snake case, with its fields if it has any: `"drop_after_commit"`,
/// `{"status": {"status": 503, "retry_after_s": 1}}`, `{"expires_in": "600"}`.
///
/// A fault takes effect before the token endpoint decides, whatever the request, or after it accepts and the identity
/// token is spent. In the second case a refusal is sent unchanged. Each variant says which.
/// An endpoint answers 501 with the fault's name to a fault that it does not support.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// No fault.
    #[default]
    None,
    /// An error in the API's format. An invalid HTTP status becomes 500.
    Status {
        /// The HTTP status.
        status: u16,
        /// Seconds for a `retry-after` header.
        #[serde(default)]
        retry_after_s: Option<u64>,
        /// Whether the identity token is spent.
        #[serde(default)]
        commit: bool,
    },
    /// The connection is closed without a response, before the identity token is spent.
    DropBeforeCommit,
    /// The connection is closed without a response, after the identity token is spent.
    DropAfterCommit,
    /// The connection is reset (RST) without a response, before the identity token is spent.
    ResetBeforeCommit,
    /// The connection is reset (RST) without a response, after the identity token is spent.
    ResetAfterCommit,
    /// A redirect, before the identity token is spent.
    Redirect {
        /// The HTTP status: 301, 302, 303, 307 or 308.
        status: u16,
        /// The `location` header.
        location: String,
    },
    /// 200 with an HTML page, as from a captive portal, before the identity token is spent.
    NotJson,
    /// 200 with an empty body, after the identity token is spent.
    EmptyBody,
    /// A valid response with padding, after the identity token is spent.
    Oversized {
        /// The size of the padding in bytes, at most 64 MiB.
        bytes: usize,
    },
    /// A response that ends before its announced length, after the identity token is spent. A stream ends after the third
    /// event.
    TruncatedBody,
    /// A complete HTTP response with half of the JSON, after the identity token is spent.
    TruncatedJson,
    /// A 400 that repeats the assertion in `error_description` and `received`, before the identity token is spent.
    ReflectAssertion,
    /// 200 with every field of a wrong JSON type, after the identity token is spent.
    WrongTypes,
    /// 200 with this `expires_in`, or without it if `null`; after the identity token is spent.
    ExpiresIn(Value),
    /// 200 without `access_token`, after the identity token is spent.
    NoAccessToken,
    /// 200 with a `token_type` that is not `Bearer`, after the identity token is spent.
    WrongTokenType,
    /// A valid response with a delay; the identity token is spent at once.
    Stall {
        /// The delay in milliseconds, added to the endpoint's own latency.
        ms: u64,
    },
    /// A valid response whose body is sent byte by byte; the identity token is spent at once.
    Drip {
        /// The time from the first byte of the body to the last, in milliseconds. A stream is sent event by event.
        ms: u64,
    },
    /// At the identity endpoint: the previous identity token again (a new one if there is none).
    DuplicateIdentityToken,
    /// At the identity endpoint: a value that is not a JWT.
    MalformedIdentityToken,
    /// At the identity endpoint: an identity token, correctly signed, larger than a token endpoint accepts.
    OversizedIdentityToken,
}

impl Fault {
    /// Whether an exchange is decided, and a valid identity token spent, before this fault takes effect.
    pub(crate) fn commits(&self) -> bool {
        match self {
            Self::Status { commit, .. } => *commit,
            Self::None
            | Self::DropAfterCommit
            | Self::ResetAfterCommit
            | Self::EmptyBody
            | Self::Oversized { .. }
            | Self::TruncatedBody
            | Self::TruncatedJson
            | Self::WrongTypes
            | Self::ExpiresIn(_)
            | Self::NoAccessToken
            | Self::WrongTokenType
            | Self::Stall { .. }
            | Self::Drip { .. } => true,
            Self::DropBeforeCommit
            | Self::ResetBeforeCommit
            | Self::Redirect { .. }
            | Self::NotJson
            | Self::ReflectAssertion
            | Self::DuplicateIdentityToken
            | Self::MalformedIdentityToken
            | Self::OversizedIdentityToken => false,
        }
    }

    /// Applies this fault to the response `answer`. Handles the faults that every endpoint supports.
    pub(crate) async fn spoil(&self, mut answer: Value) -> Outcome {
        match self {
            Self::None => Ok(answer::json(StatusCode::OK, &answer)),
            Self::Stall { ms } => {
                tokio::time::sleep(Duration::from_millis(*ms)).await;
                Ok(answer::json(StatusCode::OK, &answer))
            }
            Self::Status { status, retry_after_s, .. } => Err(Stop::Error {
                status: status_code(*status),
                message: "the sandbox was told to fail".to_owned(),
                retry_after_s: *retry_after_s,
            }),
            Self::DropBeforeCommit | Self::DropAfterCommit => Err(Stop::HangUp(HangUp::Close)),
            Self::ResetBeforeCommit | Self::ResetAfterCommit => Err(Stop::HangUp(HangUp::Reset)),
            Self::Redirect { status, location } => {
                let location = HeaderValue::from_str(location).map_err(|_| self.misplaced())?;
                let mut response = answer::text(status_code(*status), "");
                response.headers_mut().insert(header::LOCATION, location);
                Ok(response)
            }
            Self::NotJson => {
                let mut response = answer::text(StatusCode::OK, "<!doctype html><title>Sign in to the Wi-Fi</title>");
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
                Ok(response)
            }
            Self::EmptyBody => Ok(answer::text(StatusCode::OK, "")),
            Self::Oversized { bytes } => {
                answer["padding"] = json!("a".repeat((*bytes).min(answer::BODY_LIMIT)));
                Ok(answer::json(StatusCode::OK, &answer))
            }
            Self::TruncatedBody => {
                let whole = answer.to_string();
                let half = whole.as_bytes()[..whole.len() / 2].to_vec();
                Ok(json_in_parts(vec![half.into()], whole.len(), Duration::ZERO, End::Cut))
            }
            Self::TruncatedJson => {
                let mut half = answer.to_string().into_bytes();
                half.truncate(half.len() / 2);
                let length = half.len();
                Ok(json_in_parts(vec![half.into()], length, Duration::ZERO, End::Proper))
            }
            Self::Drip { ms } => {
                let whole = answer.to_string().into_bytes();
                let pauses = u32::try_from(whole.len().saturating_sub(1)).unwrap_or(u32::MAX).max(1);
                let interval = Duration::from_millis(*ms) / pauses;
                let bytes = whole.iter().map(|byte| vec![*byte].into()).collect();
                Ok(json_in_parts(bytes, whole.len(), interval, End::Proper))
            }
            Self::ReflectAssertion
            | Self::WrongTypes
            | Self::ExpiresIn(_)
            | Self::NoAccessToken
            | Self::WrongTokenType
            | Self::DuplicateIdentityToken
            | Self::MalformedIdentityToken
            | Self::OversizedIdentityToken => Err(self.misplaced()),
        }
    }

    fn misplaced(&self) -> Stop {
        Stop::error(StatusCode::NOT_IMPLEMENTED, format!("no such fault at this endpoint: {self:?}"))
    }
}

/// A JSON response with this Content-Length, whatever the length of its parts.
fn json_in_parts(parts: Vec<Bytes>, announced: usize, interval: Duration, end: End) -> Response<Body> {
    let mut response = answer::in_parts(parts, interval, end);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(announced));
    response
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_serializes_as_name_and_fields() {
        for (fault, written) in [
            (Fault::None, json!("none")),
            (Fault::DropAfterCommit, json!("drop_after_commit")),
            (
                Fault::Status { status: 503, retry_after_s: Some(2), commit: true },
                json!({"status": {"status": 503, "retry_after_s": 2, "commit": true}}),
            ),
            (Fault::ExpiresIn(json!("600")), json!({"expires_in": "600"})),
            (Fault::ExpiresIn(Value::Null), json!({"expires_in": null})),
            (Fault::Stall { ms: 5 }, json!({"stall": {"ms": 5}})),
            (Fault::Drip { ms: 5 }, json!({"drip": {"ms": 5}})),
            (Fault::ResetAfterCommit, json!("reset_after_commit")),
        ] {
            assert_eq!(serde_json::to_value(&fault).unwrap(), written);
            assert_eq!(serde_json::from_value::<Fault>(written).unwrap(), fault);
        }
        assert!(serde_json::from_value::<Fault>(json!({"stall": {"ms": 5, "second": 1}})).is_err());
        assert_eq!(
            serde_json::from_value::<Fault>(json!({"status": {"status": 500}})).unwrap(),
            Fault::Status { status: 500, retry_after_s: None, commit: false },
        );
    }
}
