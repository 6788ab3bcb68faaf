//! Responses about message batches. They contain the address of the results as an absolute URL of the API. A client
//! would send the capability there, where it is worthless, so this module replaces the URL with the gateway's own. It
//! changes nothing else of a body.
//!
//! The field is searched in the text, not in parsed JSON. Clients parse JSON differently (duplicate names, a byte order
//! mark, another media type, a stream of events), and none of them may find a URL that was not replaced.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Uri;
use httparse::Status;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::{Framing, Piece};
use super::headers::length_of;

/// A page of a thousand batches is smaller. A larger response passes unchanged.
const LARGEST: usize = 2 << 20;

/// Whether the response to this request can contain such URLs. The results themselves contain none, and can be large.
pub(super) fn hold_addresses(method: &str, path: &str) -> bool {
    let of_batches = path.strip_prefix("/v1/messages/batches");
    let is_of_one =
        |rest: &str| rest.is_empty() || (rest.starts_with('/') && !rest.trim_end_matches('/').ends_with("/results"));
    method != "HEAD" && of_batches.is_some_and(is_of_one)
}

/// A client stream that can hold a response back until it is complete, if it is small enough.
pub(super) struct Client<'a, S> {
    stream: &'a mut S,
    held: Held,
}

enum Held {
    /// Everything passes as it arrives.
    Nothing,
    /// The response so far.
    Answer(Vec<u8>),
    /// The response became too large. It is written from this position on.
    Leaving(Vec<u8>, usize),
}

impl<'a, S> Client<'a, S> {
    pub(super) fn new(stream: &'a mut S, is_held: bool) -> Self {
        Client { stream, held: if is_held { Held::Answer(Vec::new()) } else { Held::Nothing } }
    }

    /// The response, if it was held back.
    pub(super) fn answer(self) -> Option<Vec<u8>> {
        match self.held {
            Held::Answer(answer) => Some(answer),
            Held::Nothing | Held::Leaving(..) => None,
        }
    }

    /// Whether the client has received nothing because the response is held back.
    pub(super) fn holds(&self) -> bool {
        matches!(self.held, Held::Answer(_))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Client<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Client<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Client { stream, held } = self.get_mut();
        if let Held::Answer(answer) = held {
            if answer.len() + bytes.len() <= LARGEST {
                answer.extend_from_slice(bytes);
                return Poll::Ready(Ok(bytes.len()));
            }
            *held = Held::Leaving(std::mem::take(answer), 0);
        }
        if let Held::Leaving(answer, left) = held {
            while *left < answer.len() {
                match ready!(Pin::new(&mut **stream).poll_write(cx, &answer[*left..]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => *left += count,
                }
            }
            *held = Held::Nothing;
        }
        Pin::new(&mut **stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().stream).poll_shutdown(cx)
    }
}

/// The API's base URL, whose URLs are replaced, and the gateway's host.
pub(super) struct Addresses<'a> {
    pub(super) api: &'a Uri,
    pub(super) gateway: &'a str,
}

/// Content that the gateway cannot read. A URL in it would reach the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

const FIELD: &str = "results_url";

impl Addresses<'_> {
    /// The response to pass on: unchanged, unless it contains a URL to replace.
    pub(super) fn replaced_in(&self, answer: Vec<u8>) -> Result<Vec<u8>, Unreadable> {
        Ok(self.replaced(&answer)?.unwrap_or(answer))
    }

    fn replaced(&self, answer: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let mut start = 0;
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 128];
            let mut head = httparse::Response::new(&mut headers);
            let Ok(Status::Complete(length)) = head.parse(&answer[start..]) else { return Ok(None) };
            match head.code {
                Some(..200) => start += length,
                Some(200..300) => return self.replaced_in_one(&answer[..start + length], start, &head, answer),
                _ => return Ok(None),
            }
        }
    }

    /// Replaces URLs in the body of a response whose last head begins at `start`.
    fn replaced_in_one(
        &self,
        heads: &[u8],
        start: usize,
        head: &httparse::Response<'_, '_>,
        answer: &[u8],
    ) -> Result<Option<Vec<u8>>, Unreadable> {
        let values = |name: &'static str| {
            let named = head.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
            named.map(|header| header.value)
        };
        let value = |name| values(name).next();
        let framing = match (value("transfer-encoding"), value("content-length").map(length_of)) {
            (Some(_), _) => Framing::chunked(),
            (None, Some(Some(length))) => Framing::Length(length),
            (None, Some(None)) => return Ok(None),
            (None, None) => Framing::UntilClose,
        };
        let Some(body) = content(framing, &answer[heads.len()..]) else { return Ok(None) };
        let is_plain = values("content-encoding").all(|coding| coding.eq_ignore_ascii_case(b"identity"));
        // A zero byte here means UTF-16 or UTF-32, which some parsers accept.
        let is_wide = body.iter().take(4).any(|byte| *byte == 0);
        if !body.is_empty() && (!is_plain || is_wide) {
            return Err(Unreadable);
        }
        let Some(body) = self.replaced_in_body(&body) else { return Ok(None) };
        let Some(line) = memchr::memchr(b'\n', &heads[start..]) else { return Ok(None) };
        let mut new = answer[..=start + line].to_vec();
        for header in &*head.headers {
            // The new body has no chunks, so it has no trailers.
            let is_framing = ["content-length", "transfer-encoding", "trailer"];
            if !is_framing.iter().any(|name| header.name.eq_ignore_ascii_case(name)) {
                new.extend([header.name.as_bytes(), b": ", header.value, b"\r\n"].concat());
            }
        }
        new.extend(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        new.extend(body);
        Ok(Some(new))
    }

    /// Replaces the value of every `results_url` that points to the API. Returns `None` if there is none.
    fn replaced_in_body(&self, body: &[u8]) -> Option<Vec<u8>> {
        let (mut new, mut copied, mut place) = (Vec::new(), 0, 0);
        while let Some(name) = next_string(body, place) {
            place = name.end;
            let Some(value) = string_value(body, name.end).filter(|_| is_field(&body[name])) else { continue };
            place = value.end;
            if let Some(address) = text(&body[value.clone()]).and_then(|address| self.own(&address)) {
                new.extend_from_slice(&body[copied..value.start]);
                new.extend_from_slice(serde_json::Value::from(address).to_string().as_bytes());
                copied = value.end;
            }
        }
        new.extend_from_slice(&body[copied..]);
        (copied > 0).then_some(new)
    }

    /// The gateway's URL for any URL on the API's host, because a client would send the capability there.
    fn own(&self, address: &str) -> Option<String> {
        let address = address.trim();
        let there: Uri = address.parse().ok()?;
        let (own, other) = (origin(self.api)?, origin(&there)?);
        let is_the_api = own.0.eq_ignore_ascii_case(other.0) && own.1 == other.1;
        let path = there.path_and_query()?.as_str();
        let below = path.strip_prefix(self.api.path().trim_end_matches('/')).filter(|path| path.starts_with('/'));
        let fragment = address.find('#').map_or("", |place| &address[place..]);
        is_the_api.then(|| format!("http://{}{}{fragment}", self.gateway, below.unwrap_or(path)))
    }
}

/// Host and port, without the dot that can end a name. The port is `None` if it is the scheme's default.
fn origin(uri: &Uri) -> Option<(&str, Option<u16>)> {
    let usual = match uri.scheme_str()? {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let host = uri.host()?;
    Some((host.strip_suffix('.').unwrap_or(host), uri.port_u16().filter(|port| *port != usual)))
}

/// The next string of a JSON text at or after `from`, with its quotes.
fn next_string(body: &[u8], from: usize) -> Option<Range<usize>> {
    let start = from + memchr::memchr(b'"', body.get(from..)?)?;
    let mut place = start + 1;
    loop {
        place += memchr::memchr2(b'"', b'\\', body.get(place..)?)?;
        match body[place] {
            b'"' => return Some(start..place + 1),
            _ => place += 2,
        }
    }
}

/// The string value of the name that ends at `end`.
fn string_value(body: &[u8], end: usize) -> Option<Range<usize>> {
    let behind = |place: usize| Some(place + body[place..].iter().position(|byte| !byte.is_ascii_whitespace())?);
    let colon = behind(end).filter(|place| body[*place] == b':')?;
    let start = behind(colon + 1).filter(|place| body[*place] == b'"')?;
    next_string(body, start)
}

fn is_field(name: &[u8]) -> bool {
    name[1..name.len() - 1] == *FIELD.as_bytes() || (name.contains(&b'\\') && text(name).as_deref() == Some(FIELD))
}

fn text(string: &[u8]) -> Option<String> {
    serde_json::from_slice(string).ok()
}

/// The content of a complete body; `None` if it is incomplete, or if more bytes follow.
fn content(mut framing: Framing, mut body: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::with_capacity(body.len());
    while let Some(piece) = framing.next(body).ok()? {
        let (Piece::Content(count) | Piece::Frame(count)) = piece;
        if let Piece::Content(_) = piece {
            content.extend_from_slice(&body[..count]);
        }
        body = &body[count..];
    }
    let is_whole = framing.is_over() || matches!(framing, Framing::UntilClose);
    (is_whole && body.is_empty()).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(api: &str, answer: &str) -> String {
        let api: Uri = api.parse().expect("a base URL");
        let addresses = Addresses { api: &api, gateway: "127.0.0.1:4711" };
        let answer = addresses.replaced_in(answer.as_bytes().to_vec()).expect("readable");
        String::from_utf8(answer).expect("text")
    }

    fn json(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nx: 1\r\ncontent-type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    const API: &str = "https://api.example/base";

    #[test]
    fn results_url_of_the_api_becomes_the_gateways() {
        for (body, expected) in [
            (
                r#"{ "id":"b", "results_url" : "https://api.example/base/v1/messages/batches/b/results?x=1", "n": 1.0e2 }"#,
                r#"{ "id":"b", "results_url" : "http://127.0.0.1:4711/v1/messages/batches/b/results?x=1", "n": 1.0e2 }"#,
            ),
            (
                r#"{"data":[{"results_url":"https:\/\/API.example:443/base/v1/a"},{"results_url":null},{"z":0,"results_url":"https://api.example/base/v1/b"}],"has_more":false}"#,
                r#"{"data":[{"results_url":"http://127.0.0.1:4711/v1/a"},{"results_url":null},{"z":0,"results_url":"http://127.0.0.1:4711/v1/b"}],"has_more":false}"#,
            ),
            (
                r#"{"data":[{"results_url":"https://api.example/base/1"}],"results_url":"https://api.example/base/2"}"#,
                r#"{"data":[{"results_url":"http://127.0.0.1:4711/1"}],"results_url":"http://127.0.0.1:4711/2"}"#,
            ),
        ] {
            let came = replaced(API, &json(body));
            let (head, body) = came.split_once("\r\n\r\n").expect("a head");
            assert_eq!(body, expected);
            assert!(head.starts_with("HTTP/1.1 200 OK\r\nx: 1\r\ncontent-type: application/json\r\n"), "{head}");
            assert!(head.ends_with(&format!("\r\ncontent-length: {}", expected.len())), "{head}");
        }
    }

    #[test]
    fn every_spelling_of_the_api_address_is_replaced() {
        const OWN: &str = r#""results_url":"http://127.0.0.1:4711/v1/x""#;
        for (field, expected) in [
            (r#""results_url":"https://api.example/base/v1/x""#, OWN),
            (r#""results_url":"https://me@api.example/base/v1/x""#, OWN),
            (r#""results_url":"https://me:secret@api.example/base/v1/x""#, OWN),
            (r#""results_url":"http://me@api.example/base/v1/x""#, OWN),
            (r#""results_url":"http://api.example/base/v1/x""#, OWN),
            (r#""results_url":"HTTPS://API.EXAMPLE/base/v1/x""#, OWN),
            (r#""results_url":"https://api.example:443/base/v1/x""#, OWN),
            (r#""results_url":"https://api.example./base/v1/x""#, OWN),
            (r#""results_url":"https://api.example.:443/base/v1/x""#, OWN),
            (r#""results_url":"https:\/\/api.example\/base\/v1\/x""#, OWN),
            (r#""results_url":"\u0068ttps://api.example/base/v1/x""#, OWN),
            (r#""results_url":" https://api.example/base/v1/x ""#, OWN),
            (
                r#""results\u005furl" : "https://api.example/base/v1/x""#,
                r#""results\u005furl" : "http://127.0.0.1:4711/v1/x""#,
            ),
            (r#""results_url":"https://api.example/base/v1/x#y""#, r#""results_url":"http://127.0.0.1:4711/v1/x#y""#),
            (r#""results_url":"https://api.example/other/x""#, r#""results_url":"http://127.0.0.1:4711/other/x""#),
            (r#""results_url":"https://api.example/basement""#, r#""results_url":"http://127.0.0.1:4711/basement""#),
        ] {
            for (before, after) in [
                ("{", "}"),
                ("{\"a\":\"\\\\\",", ",\"note\":\"results_url\"}"),
                (r#"{"data":[{"results_url":null},{"#, r#"}],"has_more":true}"#),
                (r#"{"a":{"b":[[{"c":{"#, r#"}}]]}}"#),
                ("\u{feff}{", "}"),
                ("event: message\ndata: {", "}\n\nevent: end\ndata: {}\n\n"),
                ("{", "}\n{}\n"),
                (r#"{"results_url":"https://api.example/base/v1/x","#, "}"),
            ] {
                let body = format!("{before}{field}{after}");
                let wanted =
                    format!("{}{expected}{after}", before.replace("https://api.example/base", "http://127.0.0.1:4711"));
                for kind in ["application/json", "text/event-stream", "application/vnd.x+json", "text/plain"] {
                    let came = replaced(API, &json(&body).replace("application/json", kind));
                    assert_eq!(came.split_once("\r\n\r\n").expect("a head").1, wanted, "{kind}");
                }
            }
        }
    }

    #[test]
    fn unreadable_batch_content_is_refused() {
        let api: Uri = API.parse().expect("a base URL");
        let refused = |answer: Vec<u8>| Addresses { api: &api, gateway: "127.0.0.1:4711" }.replaced_in(answer);
        let url = r#"{"results_url":"https://api.example/base/v1/x"}"#;
        let wide: Vec<u8> = url.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", wide.len()).into_bytes();
        for answer in [
            json(url).replace("x: 1", "content-encoding: gzip").into_bytes(),
            json(url).replace("x: 1", "content-encoding: identity\r\nContent-Encoding: br").into_bytes(),
            [head, wide].concat(),
        ] {
            assert_eq!(refused(answer), Err(Unreadable));
        }
        let empty = json("").replace("x: 1", "content-encoding: gzip").into_bytes();
        assert_eq!(refused(empty.clone()), Ok(empty));
    }

    #[test]
    fn response_with_trailers_has_its_address_replaced() {
        let url = r#"{"results_url":"https://api.example/base/v1/x"}"#;
        let answer = format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n{:x}\r\n{url}\r\n0\r\nx: y\r\n\r\n",
            url.len()
        );
        let body = r#"{"results_url":"http://127.0.0.1:4711/v1/x"}"#;
        let expected = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        assert_eq!(replaced(API, &answer), expected);
    }

    #[test]
    fn chunked_and_interim_responses_get_one_length() {
        let url = r#"{"results_url":"https://api.example/base/v1/x"}"#;
        let (one, two) = url.split_at(20);
        let answer = format!(
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\n\
             transfer-encoding: chunked\r\nconnection: close\r\n\r\n{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
            one.len(),
            two.len()
        );
        let body = r#"{"results_url":"http://127.0.0.1:4711/v1/x"}"#;
        let expected = format!(
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(replaced(API, &answer), expected);
    }

    #[test]
    fn other_responses_pass_unchanged() {
        let url = r#"{"results_url":"https://api.example/base/v1/x"}"#;
        for answer in [
            json(r#"{"results_url":"https://other.example/base/v1/x"}"#),
            json(r#"{"results_url":"https://api.example:8443/base/v1/x"}"#),
            json(r#"{"results_url":"https://api.example@other.example/base/v1/x"}"#),
            json(r#"{"results_url":"/base/v1/x"}"#),
            json(r#"{"results_url":7,"data":{}}"#),
            json(r#"{"results_url":"https://api.example/base/v1/x"#),
            json(r#"{"results_url\\":"https://api.example/base/v1/x"}"#),
            json(r#"{"a":"\"results_url\":\"https://api.example/base/v1/x\""}"#),
            json(r#"{"note":"https://api.example/base/v1/x"}"#),
            json("{"),
            json(""),
            json(url).replace("200 OK", "404 Not Found"),
            json(url) + "more",
            json(url).replace("Content-Length: ", "Content-Length: 1"),
            "nonsense".to_owned(),
            String::new(),
        ] {
            assert_eq!(replaced(API, &answer), answer);
        }
    }

    #[test]
    fn only_batch_responses_are_buffered() {
        for (method, path, are_held) in [
            ("GET", "/v1/messages/batches", true),
            ("POST", "/v1/messages/batches", true),
            ("GET", "/v1/messages/batches/msgbatch_1", true),
            ("POST", "/v1/messages/batches/msgbatch_1/cancel", true),
            ("GET", "/v1/messages/batches/msgbatch_1/results", false),
            ("GET", "/v1/messages/batches/msgbatch_1/results/", false),
            ("HEAD", "/v1/messages/batches/msgbatch_1", false),
            ("POST", "/v1/messages", false),
            ("GET", "/v1/messages/batchesx", false),
        ] {
            assert_eq!(hold_addresses(method, path), are_held, "{method} {path}");
        }
    }

    #[tokio::test]
    async fn oversized_batch_response_passes_unchanged() {
        use tokio::io::AsyncWriteExt;

        for (length, is_held) in [(LARGEST, true), (LARGEST + 1, false)] {
            let mut stream = io::Cursor::new(Vec::new());
            let mut client = Client::new(&mut stream, true);
            let answer = vec![b'x'; length];
            for piece in answer.chunks(100_000) {
                client.write_all(piece).await.expect("memory takes it");
            }
            assert_eq!(client.holds(), is_held);
            assert_eq!(client.answer().is_some(), is_held);
            assert_eq!(stream.into_inner().len(), if is_held { 0 } else { length });
        }
    }
}
