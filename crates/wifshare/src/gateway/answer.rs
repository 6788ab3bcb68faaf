//! Answers of the gateway's own, in the shape of the API's.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::admission::Refusal;
use crate::secret::Secret;

/// How long a client that signs in by itself may use the capability before it asks again. It is good for longer: for as
/// long as its run.
pub const CAPABILITY_LIFE: Duration = Duration::from_secs(3600);

/// A refusal, as the API tells one. What may be better in a moment says so.
pub(super) fn refusal(refusal: &Refusal, closes: bool) -> Vec<u8> {
    let kind = match refusal.status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    let message = format!("wifshare gateway: {}", refusal.message);
    let body = serde_json::json!({"type": "error", "error": {"type": kind, "message": message}});
    let more = match refusal.status {
        503 => "retry-after: 2\r\n",
        405 => "allow: GET, HEAD, POST, PUT, PATCH, DELETE\r\n",
        _ => "",
    };
    whole(refusal.status, more, &body.to_string(), closes)
}

/// What the token endpoint would answer, with the capability in the place of the access token.
pub(super) fn token(capability: &Secret, closes: bool) -> Vec<u8> {
    let body = serde_json::json!({
        "access_token": capability.expose(),
        "token_type": "Bearer",
        "expires_in": CAPABILITY_LIFE.as_secs(),
    });
    whole(200, "cache-control: no-store\r\n", &body.to_string(), closes)
}

fn whole(status: u16, more: &str, body: &str, closes: bool) -> Vec<u8> {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let connection = if closes { "connection: close\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{more}{connection}\r\n{body}",
        reason.unwrap_or_default(),
        body.len()
    )
    .into_bytes()
}

/// Writes all of it, within a time.
pub(super) async fn write<S: AsyncWrite + Unpin>(to: &mut S, answer: &[u8]) -> bool {
    const PATIENCE: Duration = Duration::from_secs(10);
    matches!(tokio::time::timeout(PATIENCE, to.write_all(answer)).await, Ok(Ok(())))
}

/// Says good-bye and listens for a moment more: who closes on unread bytes takes the last answer back.
pub(super) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(with: &mut S) {
    const PATIENCE: Duration = Duration::from_secs(2);
    const MOST: usize = 8 << 20;
    let listening = async {
        with.shutdown().await?;
        let mut scratch = [0; 4096];
        let mut heard = 0;
        while heard < MOST {
            match with.read(&mut scratch).await? {
                0 => break,
                count => heard += count,
            }
        }
        std::io::Result::Ok(())
    };
    // It is a courtesy.
    drop(tokio::time::timeout(PATIENCE, listening).await);
}
