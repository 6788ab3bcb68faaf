//! Parses the head of a request, and writes the head to forward. Without I/O.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Range;

use httparse::{Header, Status};
use zeroize::{Zeroize, Zeroizing};

use super::admission::{AccessPolicy, Refusal, Way, way_of, with_version};
use super::batches;
use super::framing::{Framing, Piece};
use super::headers::{Headers, Kind, OAUTH_BETA, kind_of, names};

/// Several times the number of headers that any client of the API sends.
const MOST_HEADERS: usize = 100;

/// An accepted request. The bytes that follow its head in the buffer are its body.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) outgoing: Outgoing,
    pub(super) way: Way,
    /// The length of the received head.
    pub(super) head_length: usize,
    /// The framing of the rest of the body.
    pub(super) body: Framing,
    /// The framing of the whole body.
    pub(super) declared: Framing,
    /// Whether the connection can take another request.
    pub(super) may_stay: bool,
    /// Whether the response has no body, as for HEAD.
    pub(super) is_head: bool,
    /// Whether the request can be sent twice (RFC 9110 §9.2.2).
    pub(super) is_idempotent: bool,
    /// Whether the client waits for a 100 before it sends the body.
    pub(super) expects_word: bool,
    /// Whether the request presents the capability. Only the token endpoint accepts other proofs.
    pub(super) capability: Result<(), Refusal>,
}

/// The request to forward: its head with the credential, and the buffered part of its body. The credential is wiped on
/// drop.
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    method: Range<usize>,
    target: Range<usize>,
    /// The position of the access token; empty until it is set.
    access_token: Range<usize>,
    head_length: usize,
}

/// The upstream, in the terms of a request's head.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    /// The `Host` header.
    pub(super) authority: String,
    /// The prefix of every path.
    pub(super) base_path: String,
}

/// Parses the head at the beginning of `bytes`; `None` if it is incomplete.
pub(super) fn read(
    bytes: &[u8],
    policy: &AccessPolicy,
    destination: &Destination,
    largest_body: u64,
) -> Result<Option<Request>, Refusal> {
    const NO_HEAD: Refusal = Refusal::new(400, "this is no HTTP/1.1 request");
    const TOO_MANY: Refusal = Refusal::new(431, "the request has too many headers");
    const VERSION: Refusal = Refusal::new(505, "the gateway speaks HTTP/1.1");
    const METHOD: Refusal = Refusal::new(405, "the gateway forwards GET, HEAD, POST, PUT, PATCH and DELETE");
    let mut headers = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut head = httparse::Request::new(&mut []);
    let head_length = match head.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_MANY),
        Err(_) => return Err(NO_HEAD),
    };
    // Refuse a bare line feed: another parser could count the lines differently.
    let is_bare = |place: usize| place == 0 || bytes[place - 1] != b'\r';
    if memchr::memchr_iter(b'\n', &bytes[..head_length]).any(is_bare) {
        return Err(NO_HEAD);
    }
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Err(NO_HEAD);
    };
    if version != 1 {
        return Err(VERSION);
    }
    let headers = Headers::of(head.headers)?;
    policy.is_local(&headers.credentials)?;
    let capability = policy.has_capability(&headers.credentials);
    let is_idempotent = match method {
        "GET" | "HEAD" | "PUT" | "DELETE" => true,
        "POST" | "PATCH" => false,
        _ => return Err(METHOD),
    };
    let target = &*with_version(target);
    let way = way_of(target)?;
    if way == Way::Out {
        capability.clone()?;
    }
    let body = headers.body(largest_body)?;
    let outgoing = Outgoing::of(method, target, head.headers, &headers, destination, room_for(&body));
    Ok(Some(Request {
        way,
        head_length,
        declared: body.again(),
        body,
        may_stay: !headers.closes,
        is_head: method == "HEAD",
        is_idempotent,
        expects_word: headers.expects_word,
        capability,
        outgoing,
    }))
}

/// The capacity to reserve for a body, so that a small one is copied only once.
fn room_for(body: &Framing) -> usize {
    const MOST: u64 = 8 * 1024;
    match body {
        Framing::Length(length) => (*length).min(MOST) as usize,
        _ => 0,
    }
}

impl Request {
    /// The content of the buffered part of the body.
    pub(super) fn content(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = &self.outgoing.bytes()[self.outgoing.head_length..];
        let mut body = self.declared.again();
        let mut content = Zeroizing::new(Vec::with_capacity(bytes.len()));
        while let Ok(Some(piece)) = body.next(bytes) {
            let (Piece::Content(count) | Piece::Frame(count)) = piece;
            if let Piece::Content(_) = piece {
                content.extend_from_slice(&bytes[..count]);
            }
            bytes = &bytes[count..];
        }
        content
    }
}

impl Outgoing {
    /// Writes the head, without the credential.
    fn of(
        method: &str,
        target: &str,
        headers: &[Header<'_>],
        read: &Headers<'_>,
        destination: &Destination,
        room_for_body: usize,
    ) -> Outgoing {
        /// Room for the headers that are added: authorization, beta, via.
        const ROOM: usize = 512;
        let length: usize = headers.iter().map(|header| header.name.len() + header.value.len() + 4).sum();
        let mut bytes = Vec::with_capacity(ROOM + target.len() + destination.base_path.len() + length + room_for_body);
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| bytes.extend_from_slice(part));
        put(&[method.as_bytes(), b" ", destination.base_path.as_bytes(), target.as_bytes(), b" HTTP/1.1\r\nhost: "]);
        put(&[destination.authority.as_bytes(), b"\r\n"]);
        let is_named = |name: &str| {
            let mut connections = headers.iter().filter(|header| kind_of(header.name) == Kind::Connection);
            connections.any(|header| names(header.value).any(|named| named.eq_ignore_ascii_case(name.as_bytes())))
        };
        // The gateway has to read this response, so it must not be compressed.
        let is_read = batches::hold_addresses(method, target.split('?').next().unwrap_or_default());
        if is_read {
            put(&[b"accept-encoding: identity\r\n"]);
        }
        let mut betas = 0;
        for header in headers {
            let (name, value) = (header.name, header.value);
            match kind_of(name) {
                Kind::EndToEnd if is_read && name.eq_ignore_ascii_case("accept-encoding") => {}
                Kind::EndToEnd | Kind::SecFetchMode if read.names_others && is_named(name) => {}
                Kind::EndToEnd | Kind::SecFetchMode | Kind::Expect | Kind::Length | Kind::TransferEncoding => {
                    put(&[name.as_bytes(), b": ", value, b"\r\n"]);
                }
                Kind::Beta => {
                    betas += 1;
                    put(&[name.as_bytes(), b": ", value]);
                    if betas == read.betas && !read.has_oauth_beta {
                        let comma: &[u8] = if value.trim_ascii().is_empty() { b"" } else { b"," };
                        put(&[comma, OAUTH_BETA.as_bytes()]);
                    }
                    put(&[b"\r\n"]);
                }
                Kind::HopByHop
                | Kind::Connection
                | Kind::Te
                | Kind::Host
                | Kind::Authorization
                | Kind::ApiKey
                | Kind::OfABrowser
                | Kind::OfAProxy => {}
            }
        }
        if read.betas == 0 {
            put(&[b"anthropic-beta: ", OAUTH_BETA.as_bytes(), b"\r\n"]);
        }
        if read.wants_trailers {
            put(&[b"te: trailers\r\nconnection: te\r\n"]);
        }
        put(&[b"via: 1.1 wifshare\r\nauthorization: Bearer "]);
        let end = bytes.len();
        let target_start = method.len() + 1 + destination.base_path.len();
        Outgoing {
            method: 0..method.len(),
            target: target_start..target_start + target.len(),
            access_token: end..end,
            head_length: end,
            bytes,
        }
    }

    /// Adds the access token to the head, or replaces it.
    pub(super) fn set_access_token(&mut self, access_token: &str) {
        let Range { start, end } = self.access_token;
        let body = self.bytes.get(self.head_length..).filter(|_| end > start).map(<[u8]>::to_vec);
        self.bytes[start..].zeroize();
        self.bytes.truncate(start);
        let room = access_token.len() + 4 + body.as_ref().map_or(0, Vec::len);
        if self.bytes.capacity() < start + room {
            // Growing leaves a copy of the bytes behind. They contain no access token here: none was set, or it was
            // wiped.
            self.bytes.reserve_exact(room);
        }
        self.bytes.extend_from_slice(access_token.as_bytes());
        self.access_token = start..self.bytes.len();
        self.bytes.extend_from_slice(b"\r\n\r\n");
        self.head_length = self.bytes.len();
        self.bytes.extend(body.into_iter().flatten());
    }

    /// Appends a piece of the body to the buffer.
    pub(super) fn keep(&mut self, piece: &[u8]) {
        if self.bytes.capacity() - self.bytes.len() < piece.len() {
            let mut larger = Vec::with_capacity((self.bytes.len() + piece.len()).next_power_of_two());
            larger.extend_from_slice(&self.bytes);
            self.wipe();
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(piece);
    }

    /// Drops the buffered body.
    pub(super) fn let_body_go(&mut self) {
        self.bytes.truncate(self.head_length);
        if self.bytes.capacity() > 2 * self.head_length + 4096 {
            let smaller = self.bytes.to_vec();
            self.wipe();
            self.bytes = smaller;
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The length of the buffered body, including framing.
    pub(super) fn kept(&self) -> usize {
        self.bytes.len() - self.head_length
    }

    pub(super) fn head(&self) -> &[u8] {
        &self.bytes[..self.head_length]
    }

    pub(super) fn method(&self) -> &str {
        std::str::from_utf8(&self.bytes[self.method.clone()]).unwrap_or_default()
    }

    /// The path without its query.
    pub(super) fn path(&self) -> &str {
        let target = std::str::from_utf8(&self.bytes[self.target.clone()]).unwrap_or_default();
        target.split('?').next().unwrap_or_default()
    }

    fn wipe(&mut self) {
        self.bytes[self.access_token.clone()].zeroize();
    }
}

/// Prints neither the credential nor the body.
impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({} {}, {} bytes)", self.method(), self.path(), self.bytes.len())
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn policy() -> AccessPolicy {
        AccessPolicy { host: "127.0.0.1:4711".to_owned(), capability: Secret::new("c4p4".to_owned()) }
    }

    fn destination() -> Destination {
        Destination { authority: "api.example".to_owned(), base_path: "/base".to_owned() }
    }

    fn heard(head: &str) -> Result<Option<Request>, Refusal> {
        read(head.as_bytes(), &policy(), &destination(), 1000)
    }

    /// An accepted request whose body can have up to `largest_body` bytes.
    fn heard_up_to(head: &str, largest_body: u64) -> Request {
        read(head.as_bytes(), &policy(), &destination(), largest_body).expect("admitted").expect("whole")
    }

    /// The forwarded head of a request with these additional lines.
    fn sent(lines: &str) -> String {
        let head = format!("POST /v1/x?y HTTP/1.1\r\nHost: 127.0.0.1:4711\r\nx-api-key: c4p4\r\n{lines}\r\n");
        let mut request = heard(&head).expect("admitted").expect("whole");
        assert_eq!(request.head_length, head.len());
        request.outgoing.set_access_token("t0k");
        String::from_utf8(request.outgoing.bytes().to_vec()).expect("text")
    }

    fn refused(line: &str, lines: &str) -> Option<u16> {
        heard(&format!("{line}\r\n{lines}\r\n")).err().map(|refusal| refusal.status)
    }

    const GOOD: &str = "Host: 127.0.0.1:4711\r\nAuthorization: Bearer c4p4\r\n";

    #[test]
    fn credential_replaces_the_capability() {
        assert_eq!(
            sent("Accept: */*\r\nContent-Length: 3\r\n"),
            "POST /base/v1/x?y HTTP/1.1\r\nhost: api.example\r\nAccept: */*\r\nContent-Length: 3\r\n\
             anthropic-beta: oauth-2025-04-20\r\nvia: 1.1 wifshare\r\nauthorization: Bearer t0k\r\n\r\n"
        );
    }

    #[test]
    fn oauth_beta_is_added_once_and_other_betas_kept() {
        for (lines, expected) in [
            ("", "anthropic-beta: oauth-2025-04-20\r\n"),
            ("anthropic-beta: a, b\r\n", "anthropic-beta: a, b,oauth-2025-04-20\r\n"),
            ("anthropic-beta: oauth-2025-04-20\r\n", "anthropic-beta: oauth-2025-04-20\r\n"),
            ("Anthropic-Beta: a,oauth-2025-04-20 ,b\r\n", "Anthropic-Beta: a,oauth-2025-04-20 ,b\r\n"),
            (
                "anthropic-beta: a\r\nanthropic-beta: b\r\n",
                "anthropic-beta: a\r\nanthropic-beta: b,oauth-2025-04-20\r\n",
            ),
            (
                "anthropic-beta: oauth-2025-04-20\r\nanthropic-beta: b\r\n",
                "anthropic-beta: oauth-2025-04-20\r\nanthropic-beta: b\r\n",
            ),
            ("anthropic-beta:\r\n", "anthropic-beta: oauth-2025-04-20\r\n"),
            ("anthropic-beta: xoauth-2025-04-20\r\n", "anthropic-beta: xoauth-2025-04-20,oauth-2025-04-20\r\n"),
        ] {
            let sent = sent(lines);
            assert!(sent.contains(expected), "{lines:?}: {sent}");
            assert_eq!(
                sent.matches("anthropic-beta").count().max(1),
                lines.to_lowercase().matches("anthropic-beta").count().max(1),
                "{sent}"
            );
        }
    }

    #[test]
    fn hop_by_hop_headers_are_not_forwarded() {
        let sent = sent(
            "Connection: keep-alive, X-Hop, Content-Length\r\nX-Hop: 1\r\nX-End: 2\r\nKeep-Alive: 5\r\nTE: trailers, gzip\r\n\
             Upgrade: h2c\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\nHTTP2-Settings: x\r\n\
             Content-Length: 3\r\n",
        );
        for gone in ["X-Hop", "Keep-Alive", "gzip", "h2c", "Proxy", "Settings", "keep-alive"] {
            assert!(!sent.contains(gone), "{gone} in {sent}");
        }
        assert!(sent.contains("\r\nX-End: 2\r\n") && sent.contains("\r\nte: trailers\r\nconnection: te\r\n"), "{sent}");
        assert!(sent.contains("\r\nContent-Length: 3\r\n"), "what frames the body cannot be named away: {sent}");
    }

    #[test]
    fn replayed_request_has_a_new_credential_and_the_same_body() {
        let mut request =
            heard(&format!("PUT /v1/x HTTP/1.1\r\n{GOOD}Content-Length: 5\r\n\r\n")).expect("admitted").expect("whole");
        request.outgoing.set_access_token("first");
        request.outgoing.keep(b"hello");
        request.outgoing.set_access_token("and a much longer second one");
        let text = String::from_utf8(request.outgoing.bytes().to_vec()).expect("text");
        assert!(text.ends_with("authorization: Bearer and a much longer second one\r\n\r\nhello"), "{text}");
        assert_eq!((request.outgoing.method(), request.outgoing.path(), request.outgoing.kept()), ("PUT", "/v1/x", 5));
        request.outgoing.let_body_go();
        assert_eq!(request.outgoing.kept(), 0);
        let length = request.outgoing.bytes().len();
        assert_eq!(format!("{:?}", request.outgoing), format!("Outgoing(PUT /v1/x, {length} bytes)"));
    }

    #[test]
    fn each_allowed_length_is_accepted() {
        assert_eq!(refused("PUT /v1/x HTTP/1.1", &format!("{GOOD}Content-Length: 1000\r\n")), None);
        for (length, room) in [(0, 0), (8192, 8192), (1 << 40, 8192)] {
            assert_eq!(room_for(&Framing::Length(length)), room);
        }
        assert_eq!(room_for(&Framing::chunked()), 0);
    }

    #[test]
    fn growing_request_leaves_no_copy_of_the_credential() {
        let head = format!("PUT /v1/x HTTP/1.1\r\n{GOOD}Content-Length: 5000\r\n\r\n");
        let mut request = heard_up_to(&head, 10_000);
        let before = request.outgoing.bytes.as_ptr();
        request.outgoing.set_access_token(&"t".repeat(200));
        request.outgoing.keep(&[b'x'; 5000]);
        assert_eq!(request.outgoing.bytes.as_ptr(), before, "there was room for all of it from the beginning");
        request.outgoing.set_access_token(&"u".repeat(200));
        assert_eq!(request.outgoing.bytes.as_ptr(), before, "and for a successor");
        // A token that fits exactly needs no allocation; one byte more does.
        let length = request.outgoing.bytes.len() - 200;
        let all = request.outgoing.bytes.capacity() - length;
        request.outgoing.set_access_token(&"v".repeat(all));
        assert_eq!(request.outgoing.bytes.as_ptr(), before);
        assert_eq!(request.outgoing.bytes.len(), request.outgoing.bytes.capacity());
        let capacity = request.outgoing.bytes.capacity();
        request.outgoing.set_access_token(&"w".repeat(all + 1));
        assert_eq!(request.outgoing.bytes.len(), capacity + 1);
        assert!(request.outgoing.bytes.ends_with(&[b'x'; 5000]));
    }

    #[test]
    fn released_large_body_frees_its_memory() {
        let head = format!("PUT /v1/x HTTP/1.1\r\n{GOOD}Transfer-Encoding: chunked\r\n\r\n");
        let mut request = heard_up_to(&head, 10_000);
        request.outgoing.set_access_token("t0k");
        let before = request.outgoing.bytes.as_ptr();
        request.outgoing.let_body_go();
        assert_eq!(request.outgoing.bytes.as_ptr(), before, "a small one stays where it is");
        request.outgoing.keep(&[b'x'; 100_000]);
        request.outgoing.let_body_go();
        let head_length = request.outgoing.head_length;
        assert_eq!(request.outgoing.bytes.capacity(), head_length);
        for (capacity, stays) in [(2 * head_length + 4096, true), (2 * head_length + 4097, false)] {
            let mut bytes = Vec::with_capacity(capacity);
            bytes.extend_from_slice(request.outgoing.head());
            assert_eq!(bytes.capacity(), capacity);
            request.outgoing.bytes = bytes;
            request.outgoing.let_body_go();
            assert_eq!(request.outgoing.bytes.capacity() == capacity, stays, "{capacity}");
        }
    }

    #[test]
    fn ambiguous_request_head_is_refused() {
        let good = "GET /v1/x HTTP/1.1";
        for (line, lines, status) in [
            (good, format!("{GOOD}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), 400),
            (good, format!("{GOOD}Content-Length: 3\r\nContent-Length: 3\r\n"), 400),
            (good, format!("{GOOD}Content-Length: 3, 3\r\n"), 400),
            (good, format!("{GOOD}Content-Length: +3\r\n"), 400),
            (good, format!("{GOOD}Content-Length: 0x3\r\n"), 400),
            (good, format!("{GOOD}Content-Length:\r\n"), 400),
            (good, format!("{GOOD}Content-Length: 99999999999999999999\r\n"), 400),
            (good, format!("{GOOD}Content-Length: 1001\r\n"), 413),
            (good, format!("{GOOD}Transfer-Encoding: gzip, chunked\r\n"), 501),
            (good, format!("{GOOD}Transfer-Encoding: identity\r\n"), 501),
            (good, format!("{GOOD}Transfer-Encoding: xchunked\r\n"), 501),
            (good, format!("{GOOD}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400),
            (good, format!("{GOOD}Transfer-Encoding : chunked\r\n"), 400),
            (good, format!("{GOOD}X: a\r\n b\r\n"), 400),
            (good, format!("{GOOD}X: a\n"), 400),
            (good, format!("{GOOD}X: a\rb: c\r\n"), 400),
            (good, format!("{GOOD}X: a\0\r\n"), 400),
            (good, format!("{GOOD}: a\r\n"), 400),
            (good, format!("{GOOD}Host: 127.0.0.1:4711\r\n"), 400),
            (good, format!("{GOOD}Authorization: Bearer c4p4\r\n"), 400),
            (good, format!("{GOOD}Expect: 200-ok\r\n"), 417),
            (good, format!("{GOOD}Origin: null\r\n"), 403),
            (good, format!("{GOOD}Sec-Fetch-Site: none\r\n"), 403),
            (good, format!("{GOOD}X-Forwarded-For: 1.2.3.4\r\n"), 403),
            (good, format!("{GOOD}{}", "X: y\r\n".repeat(200)), 431),
            (good, "Host: 127.0.0.1:4711\r\n".to_owned(), 401),
            (good, "Authorization: Bearer c4p4\r\n".to_owned(), 403),
            ("GET /v1/x HTTP/1.0", GOOD.to_owned(), 505),
            ("GET /v1/x HTTP/2.0", GOOD.to_owned(), 400),
            ("GET /v1/x", GOOD.to_owned(), 400),
            ("GET  /v1/x HTTP/1.1", GOOD.to_owned(), 400),
            ("GET /v1/ x HTTP/1.1", GOOD.to_owned(), 400),
            ("CONNECT api.example:443 HTTP/1.1", GOOD.to_owned(), 405),
            ("OPTIONS * HTTP/1.1", GOOD.to_owned(), 405),
            ("TRACE /v1/x HTTP/1.1", GOOD.to_owned(), 405),
            ("get /v1/x HTTP/1.1", GOOD.to_owned(), 405),
            ("PRI * HTTP/2.0", String::new(), 400),
            ("GET http://127.0.0.1:4711/v1/x HTTP/1.1", GOOD.to_owned(), 400),
        ] {
            assert_eq!(refused(line, &lines), Some(status), "{line} {lines}");
        }
        assert_eq!(refused(good, GOOD), None);
        assert_eq!(refused(good, &format!("{GOOD}Sec-Fetch-Mode: cors\r\n")), None, "Node's fetch sends it");
    }

    #[test]
    fn request_head_is_parsed_when_complete() {
        let head = format!("GET /v1/x HTTP/1.1\r\n{GOOD}\r\n");
        for end in 0..head.len() {
            assert!(heard(&head[..end]).expect("nothing wrong with it").is_none(), "{end}");
        }
        assert!(heard(&head).expect("admitted").is_some());
    }
}
