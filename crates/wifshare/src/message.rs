//! HTTP messages: the types of `http`, with a body that is wiped when dropped.

use zeroize::Zeroizing;

/// The bytes of a body. Assertions and access tokens pass through here, so they are wiped when dropped.
pub type Body = Zeroizing<Vec<u8>>;

/// A request to an identity provider or a token endpoint.
pub type Request = http::Request<Body>;

/// A response with its whole body.
pub type Response = http::Response<Body>;

/// Returns whether a secret may be sent to this URL: by https, or by http to this machine. Compares the whole host; a
/// prefix test would accept `http://localhost.evil.example`.
pub fn is_secure(url: &http::Uri) -> bool {
    let host = url.host().unwrap_or_default().to_ascii_lowercase();
    match url.scheme_str() {
        Some("https") => !host.is_empty(),
        Some("http") => matches!(host.as_str(), "localhost" | "127.0.0.1" | "[::1]"),
        _ => false,
    }
}

/// Returns the server's Date header (RFC 9110 §6.6.1), to the second.
pub fn answered_at(response: &Response) -> Option<std::time::SystemTime> {
    httpdate::parse_http_date(response.headers().get(http::header::DATE)?.to_str().ok()?).ok()
}

/// Returns the delay of Retry-After (RFC 9110 §10.2.3). A date is relative to the server's own clock.
pub(crate) fn retry_after(response: &Response) -> Option<std::time::Duration> {
    let value = response.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(std::time::Duration::from_secs(seconds)),
        Err(_) => {
            Some(httpdate::parse_http_date(value).ok()?.duration_since(answered_at(response)?).unwrap_or_default())
        }
    }
}

/// Formats a status as its number and, if it has one, its reason phrase. 529 has none.
pub(crate) fn status_text(status: http::StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// Makes the server's text safe to show: one line, bounded, without anything that could be a token.
///
/// A server may reflect the assertion in its error (this has happened), so every long run of token characters is
/// replaced.
pub fn safe_text(text: &str) -> String {
    const LONGEST_WORD: usize = 48;
    const LONGEST_TEXT: usize = 300;
    let token_character = |c: char| c.is_ascii_alphanumeric() || "-_.+/=~:".contains(c);
    let mut safe = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = if token_character(first) {
            rest.find(|c| !token_character(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(end);
        if word.len() > LONGEST_WORD || word.starts_with("sk-ant-") || word.starts_with("eyJ") {
            safe.push_str("[redacted]");
        } else {
            safe.extend(word.chars().map(|c| if c.is_control() { ' ' } else { c }));
        }
        rest = after;
    }
    match safe.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{}…", &safe[..end]),
        None => safe,
    }
}

/// Returns an error and its causes as one text.
pub fn whole_message(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        const DATE: &str = "Sat, 28 Nov 2026 12:00:00 GMT";
        for (value, date, seconds) in [
            ("7", None, Some(7)),
            (" 7 ", None, Some(7)),
            ("Sat, 28 Nov 2026 12:00:09 GMT", Some(DATE), Some(9)),
            ("Sat, 28 Nov 2026 11:00:00 GMT", Some(DATE), Some(0)),
            ("Sat, 28 Nov 2026 12:00:09 GMT", None, None),
            ("soon", Some(DATE), None),
            ("-1", Some(DATE), None),
        ] {
            let mut response = Response::new(Body::default());
            response.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from_static(value));
            let date = date.map(http::HeaderValue::from_static);
            date.map(|date| response.headers_mut().insert(http::header::DATE, date));
            assert_eq!(retry_after(&response), seconds.map(std::time::Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn secret_is_sent_only_over_https_or_loopback() {
        for (url, secure) in [
            ("https://api.anthropic.com", true),
            ("HTTPS://API.ANTHROPIC.COM/x", true),
            ("http://localhost", true),
            ("http://LOCALHOST:8080/x", true),
            ("http://127.0.0.1:9", true),
            ("http://[::1]:9", true),
            ("http://10.0.0.1", false),
            ("http://localhost.evil.example", false),
            ("http://localhost:9@evil.example", false),
            ("http://127.0.0.1.evil.example", false),
            ("http://127.0.0.1@evil.example", false),
            ("ftp://localhost", false),
            ("/path", false),
        ] {
            assert_eq!(is_secure(&url.parse().expect(url)), secure, "{url}");
        }
    }

    #[test]
    fn status_without_a_name_is_its_number() {
        for (status, text) in [(401, "401 Unauthorized"), (529, "529")] {
            assert_eq!(status_text(http::StatusCode::from_u16(status).expect("a status")), text);
        }
    }

    #[test]
    fn whole_message_includes_each_cause() {
        let inner = std::io::Error::other("the cause");
        let outer = crate::private_file::PrivateFileError::Io { action: "read", path: "a".into(), source: inner };
        assert_eq!(whole_message(&outer), "could not read a: the cause");
    }

    #[test]
    fn safe_text_redacts_possible_tokens() {
        let jwt = format!("eyJ{}.eyJ{}.sig", "a".repeat(50), "b".repeat(50));
        for (text, safe) in [
            ("Authentication failed", "Authentication failed".to_owned()),
            ("line\nbreak\x1b[31m", "line break [31m".to_owned()),
            (&format!("bad assertion {jwt}!"), "bad assertion [redacted]!".to_owned()),
            ("sk-ant-oat01-x", "[redacted]".to_owned()),
            (&"x".repeat(48), "x".repeat(48)),
            (&"x".repeat(49), "[redacted]".to_owned()),
            ("\"eyJhbGciOi\"", "\"[redacted]\"".to_owned()),
            (&"w ".repeat(400), format!("{}…", "w ".repeat(150))),
        ] {
            assert_eq!(safe_text(text), safe, "{text}");
        }
    }

    #[test]
    fn date_header_gives_the_server_time() {
        let answered = |date: Option<&str>| {
            let mut response = Response::default();
            if let Some(date) = date {
                response.headers_mut().insert(http::header::DATE, date.parse().expect("a header"));
            }
            answered_at(&response)
        };
        let second = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(784_111_777);
        assert_eq!(answered(Some("Sun, 06 Nov 1994 08:49:37 GMT")), Some(second));
        assert_eq!(answered(Some("yesterday")), None);
        assert_eq!(answered(None), None);
    }
}
