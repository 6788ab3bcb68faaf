//! Responses that the gateway itself sends, in the API's format.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::admission::Refusal;
use crate::secret::Secret;

/// The lifetime that the token endpoint reports for the capability, so that a client requests a new one in time. The
/// capability itself is valid until its run ends.
pub const CAPABILITY_LIFE: Duration = Duration::from_secs(3600);

/// An error response in the API's format. One for a temporary failure has a `Retry-After` header.
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

/// The response of the token endpoint, with the capability as the access token.
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

/// Writes all of it, with a timeout.
pub(super) async fn write<S: AsyncWrite + Unpin>(to: &mut S, answer: &[u8]) -> bool {
    const PATIENCE: Duration = Duration::from_secs(10);
    matches!(tokio::time::timeout(PATIENCE, to.write_all(answer)).await, Ok(Ok(())))
}

/// Ends the stream, then reads for a moment more. Closing with unread bytes would make the kernel discard the last
/// response.
pub(super) async fn drain_and_close<S: AsyncRead + AsyncWrite + Unpin>(with: &mut S) {
    const PATIENCE: Duration = Duration::from_secs(2);
    const MOST: usize = 8 << 20;
    let listening = async {
        with.shutdown().await?;
        // On the heap, because each connection would otherwise reserve memory for it from the beginning.
        let mut scratch = vec![0; 4096];
        let mut heard = 0;
        while heard < MOST {
            match with.read(&mut scratch).await? {
                0 => break,
                count => heard += count,
            }
        }
        std::io::Result::Ok(())
    };
    // An error changes nothing: the connection is over.
    drop(tokio::time::timeout(PATIENCE, listening).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head and the body of a response.
    fn parsed(answer: &[u8]) -> (String, serde_json::Value) {
        let text = std::str::from_utf8(answer).expect("a text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        (head.to_owned(), serde_json::from_str(body).expect("JSON"))
    }

    #[test]
    fn refusal_has_the_error_type_of_the_api() {
        for (status, kind, more) in [
            (400, "invalid_request_error", ""),
            (401, "authentication_error", ""),
            (403, "permission_error", ""),
            (404, "not_found_error", ""),
            (405, "invalid_request_error", "allow: GET, HEAD, "),
            (413, "request_too_large", ""),
            (499, "invalid_request_error", ""),
            (502, "api_error", ""),
            (503, "api_error", "retry-after: 2"),
        ] {
            let (head, body) = parsed(&refusal(&Refusal::new(status, "no"), false));
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")) && head.contains(more), "{head}");
            assert_eq!(head.contains("retry-after") || head.contains("allow:"), !more.is_empty(), "{head}");
            assert!(!head.contains("connection: close"));
            assert_eq!(body["error"]["type"], kind, "{status}");
            assert_eq!(body["error"]["message"], "wifshare gateway: no");
        }
        assert!(parsed(&refusal(&Refusal::new(400, "no"), true)).0.contains("connection: close"));
    }

    #[test]
    fn capability_response_lasts_an_hour_and_is_not_cached() {
        let (head, body) = parsed(&token(&Secret::new("c4p4".to_owned()), false));
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("cache-control: no-store"), "{head}");
        assert_eq!((&body["access_token"], &body["expires_in"]), (&"c4p4".into(), &3600.into()));
    }

    #[tokio::test]
    async fn write_succeeds_or_reports_a_closed_peer() {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        assert!(write(&mut ours, b"good").await);
        let mut heard = [0; 4];
        theirs.read_exact(&mut heard).await.expect("four bytes");
        assert_eq!(&heard, b"good");
        drop(theirs);
        assert!(!write(&mut ours, b"bye").await);
    }

    #[tokio::test]
    async fn drain_and_close_reads_to_the_end_within_its_limit() {
        let (mut ours, mut theirs) = tokio::io::duplex(64 << 10);
        theirs.write_all(&[b'x'; 10_000]).await.expect("written");
        theirs.shutdown().await.expect("ended");
        drain_and_close(&mut ours).await;
        assert_eq!(ours.read(&mut [0; 1]).await.expect("an end"), 0, "all was heard");
        let end = tokio::time::timeout(Duration::from_secs(30), theirs.read(&mut [0; 1])).await;
        assert_eq!(end.expect("our end came before").expect("an end"), 0);

        let (mut ours, mut theirs) = tokio::io::duplex(64 << 10);
        let written = std::sync::atomic::AtomicUsize::new(0);
        let talking = async {
            while theirs.write_all(&[b'x'; 4096]).await.is_ok() {
                written.fetch_add(4096, std::sync::atomic::Ordering::Relaxed);
            }
        };
        tokio::select! {
            () = drain_and_close(&mut ours) => {}
            () = talking => {}
        }
        let most = (8 << 20) + (64 << 10) + 2 * 4096;
        assert!(written.into_inner() <= most, "eight megabytes are enough");
    }
}
