//! Which requests are accepted, and where each path leads. Without I/O.

use std::borrow::Cow;

use crate::secret::Secret;

/// Why a request is refused: a status, and a sentence for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) message: Cow<'static, str>,
}

impl Refusal {
    pub(super) const fn new(status: u16, message: &'static str) -> Refusal {
        Refusal { status, message: Cow::Borrowed(message) }
    }
}

/// What a request must present to be accepted.
#[derive(Debug)]
pub(super) struct AccessPolicy {
    /// The listener's address, compared literally with the `Host` header. A domain that a web page makes its browser
    /// resolve to loopback (DNS rebinding) does not match.
    pub(super) host: String,
    /// The token that the children of this run received.
    pub(super) capability: Secret,
}

/// The parts of a request that decide whether it is accepted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestCredentials<'a> {
    pub(super) host: Option<&'a [u8]>,
    pub(super) authorization: Option<&'a [u8]>,
    pub(super) api_key: Option<&'a [u8]>,
    /// The request has a header that only browsers send.
    pub(super) of_a_browser: bool,
    /// The request has a header that only proxies send.
    pub(super) of_a_proxy: bool,
}

impl AccessPolicy {
    /// Checks that the request names this gateway and comes from neither a browser nor a proxy. The capability is not
    /// checked.
    pub(super) fn is_local(&self, credentials: &RequestCredentials<'_>) -> Result<(), Refusal> {
        const FOREIGN_HOST: Refusal = Refusal::new(403, "the Host header does not name this gateway's address");
        const BROWSER: Refusal = Refusal::new(403, "requests of web pages are not served");
        const PROXY: Refusal = Refusal::new(403, "requests by way of another proxy are not served");
        if credentials.host != Some(self.host.as_bytes()) {
            return Err(FOREIGN_HOST);
        }
        if credentials.of_a_browser {
            return Err(BROWSER);
        }
        if credentials.of_a_proxy { Err(PROXY) } else { Ok(()) }
    }

    /// Checks that the request presents the capability, as a bearer token or as an API key, and no other credential.
    pub(super) fn has_capability(&self, credentials: &RequestCredentials<'_>) -> Result<(), Refusal> {
        const MISSING: Refusal = Refusal::new(
            401,
            "the gateway wants the capability of its run, which its children find in ANTHROPIC_AUTH_TOKEN",
        );
        const WRONG: Refusal = Refusal::new(401, "this is not the capability of this gateway's run");
        let bearer = match credentials.authorization.filter(|value| !value.is_empty()) {
            Some(value) => Some(bearer(value).ok_or(WRONG)?),
            None => None,
        };
        let api_key = credentials.api_key.filter(|value| !value.is_empty());
        if bearer.is_none() && api_key.is_none() {
            return Err(MISSING);
        }
        // Compare both, so that the time does not depend on the first result.
        let are_right = bearer.is_none_or(|given| self.is_capability(given))
            & api_key.is_none_or(|given| self.is_capability(given));
        if are_right { Ok(()) } else { Err(WRONG) }
    }

    /// Compares every byte, so that the time does not reveal where two tokens differ.
    pub(super) fn is_capability(&self, given: &[u8]) -> bool {
        let ours = self.capability.expose().as_bytes();
        let difference = given.iter().zip(ours).fold(0, |difference, (x, y)| difference | (x ^ y));
        std::hint::black_box(difference) == 0 && given.len() == ours.len()
    }
}

/// The token of an `Authorization: Bearer …` value (RFC 6750 §2.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}

/// The destination of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The API.
    Out,
    /// The token endpoint, which the gateway answers itself.
    Token,
}

/// Returns where a request target leads. A path that is not in normal form is refused, not repaired, because two
/// parsers could read it differently: no empty, `.` or `..` segment, no encoded slash, backslash or control character.
pub(super) fn way_of(target: &str) -> Result<Way, Refusal> {
    const NO_PATH: Refusal = Refusal::new(400, "the request target has to be a path");
    const ODD: Refusal = Refusal::new(400, "the path is not in its normal form");
    const ELSEWHERE: Refusal =
        Refusal::new(404, "the gateway leads to the API's own paths alone; its base URL has no path, or /v1");
    if !target.starts_with('/') {
        return Err(NO_PATH);
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // The API interprets the query. Only characters that a parser could mistake for the end of the query are refused.
    let is_plain = |byte: u8| matches!(byte, b'!'..=b'~') && !b"#\\\"<>`{|}^".contains(&byte);
    let is_query = |byte: u8| matches!(byte, b'!'..=b'~') && byte != b'#';
    if !path.bytes().all(is_plain) || !query.bytes().all(is_query) {
        return Err(ODD);
    }
    let segments = path[1..].strip_suffix('/').unwrap_or(&path[1..]);
    if path != "/" && !segments.split('/').all(is_normal) {
        return Err(ODD);
    }
    match path {
        "/v1/oauth/token" => Ok(Way::Token),
        _ if path.starts_with("/v1/oauth/") => Err(ELSEWHERE),
        _ if path.starts_with("/v1/") || OF_CLAUDE.contains(&path) => Ok(Way::Out),
        _ if OF_CLAUDE_BELOW.iter().any(|prefix| path.starts_with(prefix)) => Ok(Way::Out),
        _ => Err(ELSEWHERE),
    }
}

/// The target in the API's form, for clients that omit `/v1` because it is in their base URL, or that send it twice.
pub(super) fn with_version(target: &str) -> Cow<'_, str> {
    const RESOURCES: [&str; 2] = ["/messages", "/models"];
    if let Some(rest) = target.strip_prefix("/v1/v1/") {
        return format!("/v1/{rest}").into();
    }
    let is_of = |resource: &str| {
        target.strip_prefix(resource).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
    };
    if RESOURCES.into_iter().any(is_of) { format!("/v1{target}").into() } else { target.into() }
}

/// Paths outside the API that claude requests to check its connection.
const OF_CLAUDE: [&str; 2] = ["/", "/api/hello"];

/// Prefixes of other paths that claude requests: settings, metrics, and the permissions of its account.
const OF_CLAUDE_BELOW: [&str; 4] = ["/api/claude_code/", "/api/claude_cli/", "/api/oauth/", "/api/event_logging/"];

/// Whether a segment is neither empty nor a dot segment, and percent-encoded only where necessary (RFC 3986 §6.2.2.2).
/// A character that is encoded without need may be meant for a parser that decodes once more.
fn is_normal(segment: &str) -> bool {
    let digit = |byte: Option<u8>| byte.and_then(|byte| (byte as char).to_digit(16));
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            continue;
        }
        let Some(byte) = digit(bytes.next()).zip(digit(bytes.next())).map(|(high, low)| (high * 16 + low) as u8) else {
            return false;
        };
        let is_unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if is_unreserved || byte.is_ascii_control() || b"/\\%".contains(&byte) {
            return false;
        }
    }
    !matches!(segment, "" | "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> AccessPolicy {
        AccessPolicy { host: "127.0.0.1:4711".to_owned(), capability: Secret::new("c4p4".to_owned()) }
    }

    #[test]
    fn host_must_equal_the_listener_address() {
        for (host, is_ours) in [
            (Some("127.0.0.1:4711"), true),
            (Some("127.0.0.1"), false),
            (Some("127.0.0.1:4712"), false),
            (Some("localhost:4711"), false),
            (Some("evil.example"), false),
            (Some("127.0.0.1:4711 "), false),
            (Some(""), false),
            (None, false),
        ] {
            let credentials = RequestCredentials { host: host.map(str::as_bytes), ..RequestCredentials::default() };
            assert_eq!(policy().is_local(&credentials).is_ok(), is_ours, "{host:?}");
        }
        let credentials =
            RequestCredentials { host: Some(b"127.0.0.1:4711"), of_a_browser: true, ..RequestCredentials::default() };
        assert!(policy().is_local(&credentials).is_err());
        assert!(
            policy().is_local(&RequestCredentials { of_a_browser: false, of_a_proxy: true, ..credentials }).is_err()
        );
    }

    #[test]
    fn capability_is_accepted_whole_as_bearer_or_api_key() {
        for (authorization, api_key, is_right) in [
            (Some("Bearer c4p4"), None, true),
            (Some("bearer  c4p4 "), None, true),
            (None, Some("c4p4"), true),
            (Some("Bearer c4p4"), Some("c4p4"), true),
            (Some("Bearer c4p4"), Some(""), true),
            (Some("Bearer c4p4"), Some("other"), false),
            (Some("Bearer other"), Some("c4p4"), false),
            (Some("Bearer c4p"), None, false),
            (Some("Bearer c4p4x"), None, false),
            (Some("Bearer "), None, false),
            (Some("Basic c4p4"), None, false),
            (Some("c4p4"), None, false),
            (Some(""), None, false),
            (None, Some("C4P4"), false),
            (None, None, false),
        ] {
            let [authorization, api_key] = [authorization, api_key].map(|value| value.map(str::as_bytes));
            let credentials = RequestCredentials { authorization, api_key, ..RequestCredentials::default() };
            assert_eq!(policy().has_capability(&credentials).is_ok(), is_right, "{credentials:?}");
        }
    }

    #[test]
    fn version_in_the_base_url_changes_no_target() {
        for (target, expected) in [
            ("/v1/messages?beta=true", "/v1/messages?beta=true"),
            ("/messages", "/v1/messages"),
            ("/messages?beta=true", "/v1/messages?beta=true"),
            ("/messages/batches/x/results", "/v1/messages/batches/x/results"),
            ("/models/m", "/v1/models/m"),
            ("/v1/v1/messages", "/v1/messages"),
            ("/messagesx", "/messagesx"),
            ("/oauth/token", "/oauth/token"),
            ("//messages", "//messages"),
            ("/v1/v1", "/v1/v1"),
            ("messages", "messages"),
        ] {
            assert_eq!(with_version(target), expected);
        }
        assert_eq!(way_of(&with_version("/v1/v1/oauth/token")), Ok(Way::Token));
        assert!(way_of(&with_version("/messages/../admin")).is_err());
    }

    #[test]
    fn only_normalized_paths_are_forwarded() {
        for (target, status) in [
            ("/v1/messages", None),
            ("/v1/messages?beta=true&x=%2f..", None),
            ("/v1/models/claude%20sandbox", None),
            ("/v1/files/", None),
            ("/v1/a..b/.c", None),
            ("/", None),
            ("/api/hello", None),
            ("/api/claude_code/settings", None),
            ("/v1", Some(404)),
            ("/v10/messages", Some(404)),
            ("/admin", Some(404)),
            ("/V1/messages", Some(404)),
            ("/sandbox/counters", Some(404)),
            ("//v1/messages", Some(400)),
            ("/v1//messages", Some(400)),
            ("/v1/messages//", Some(400)),
            ("/v1/../admin", Some(400)),
            ("/v1/./messages", Some(400)),
            ("/v1/..", Some(400)),
            ("/v1/%2e%2e/admin", Some(400)),
            ("/v1/.%2E/admin", Some(400)),
            ("/v1/%2e", Some(400)),
            ("/v1/a%2fb", Some(400)),
            ("/v1/a%2Fb", Some(400)),
            ("/v1/a%5cb", Some(400)),
            ("/v1/a\\b", Some(400)),
            ("/v1/a%252fb", Some(400)),
            ("/v1/a%00", Some(400)),
            ("/v1/a%0d%0ax", Some(400)),
            ("/v1/a%7f", Some(400)),
            ("/v1/a%", Some(400)),
            ("/v1/a%4", Some(400)),
            ("/v1/a%zz", Some(400)),
            ("/v1/a%+1", Some(400)),
            ("/v1/oauth/%74oken", Some(400)),
            ("/v1/%6fauth/token", Some(400)),
            ("/v1/oauth/token/", Some(404)),
            ("/v1/oauth/authorize", Some(404)),
            ("/", None),
            ("/v1/a#b", Some(400)),
            ("/v1/a?b#c", Some(400)),
            ("/v1/a\tb", Some(400)),
            ("/v1/ä", Some(400)),
            ("/v1/a?ä", Some(400)),
            ("http://127.0.0.1/v1/messages", Some(400)),
            ("127.0.0.1:443", Some(400)),
            ("*", Some(400)),
            ("", Some(400)),
        ] {
            assert_eq!(way_of(target).err().map(|refusal| refusal.status), status, "{target}");
        }
        assert_eq!(way_of("/v1/oauth/token"), Ok(Way::Token));
        assert_eq!(way_of("/v1/oauth/token?x"), Ok(Way::Token));
    }
}
