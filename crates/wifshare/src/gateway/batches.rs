//! Answers about message batches: where the results are is told as an absolute address of the API. A client would follow it
//! with the capability, which is worth nothing there, so the address is replaced by the gateway's own. Nothing else of an
//! answer is changed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Uri;
use httparse::Status;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::{Framing, Piece};
use super::headers::length_of;

/// A page of a thousand batches has less. What is larger passes as it is.
const LARGEST: usize = 2 << 20;

/// Whether the answer to this request may hold such addresses. The results themselves do not, and they may be large.
pub(super) fn hold_addresses(method: &str, path: &str) -> bool {
    let of_batches = path.strip_prefix("/v1/messages/batches");
    let is_of_one =
        |rest: &str| rest.is_empty() || (rest.starts_with('/') && !rest.trim_end_matches('/').ends_with("/results"));
    method != "HEAD" && of_batches.is_some_and(is_of_one)
}

/// A client that is given an answer only when it is whole, where that is asked for and as long as it is small enough.
pub(super) struct Client<'a, S> {
    stream: &'a mut S,
    held: Held,
}

enum Held {
    /// Everything passes as it comes.
    Nothing,
    /// What came so far.
    Answer(Vec<u8>),
    /// It was too large, and passes from this place on.
    Leaving(Vec<u8>, usize),
}

impl<'a, S> Client<'a, S> {
    pub(super) fn new(stream: &'a mut S, is_held: bool) -> Self {
        Client { stream, held: if is_held { Held::Answer(Vec::new()) } else { Held::Nothing } }
    }

    /// The answer, if it was held.
    pub(super) fn answer(self) -> Option<Vec<u8>> {
        match self.held {
            Held::Answer(answer) => Some(answer),
            Held::Nothing | Held::Leaving(..) => None,
        }
    }

    /// Whether the client has heard nothing of the answer because it is held.
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

/// The API's base URL, whose addresses are replaced, and the host that the gateway is known by.
pub(super) struct Addresses<'a> {
    pub(super) api: &'a Uri,
    pub(super) gateway: &'a str,
}

impl Addresses<'_> {
    /// A whole answer as it is passed on: as it came, unless it holds an address that is to be replaced.
    pub(super) fn replaced_in(&self, answer: Vec<u8>) -> Vec<u8> {
        self.replaced(&answer).unwrap_or(answer)
    }

    fn replaced(&self, answer: &[u8]) -> Option<Vec<u8>> {
        let mut start = 0;
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 128];
            let mut head = httparse::Response::new(&mut headers);
            let Ok(Status::Complete(length)) = head.parse(&answer[start..]) else { return None };
            if head.code? < 200 {
                start += length;
                continue;
            }
            let value = |name: &str| {
                let mut values = head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
                values.next().map(|header| header.value)
            };
            let is_json =
                value("content-type").is_some_and(|kind| kind.to_ascii_lowercase().starts_with(b"application/json"));
            let is_plain = value("content-encoding").is_none_or(|coding| coding.eq_ignore_ascii_case(b"identity"));
            if !(is_json && is_plain && (200..300).contains(&head.code?)) {
                return None;
            }
            let body = &answer[start + length..];
            let framing = match (value("transfer-encoding"), value("content-length")) {
                (Some(_), _) => Framing::chunked(),
                (None, Some(length)) => Framing::Length(length_of(length)?),
                (None, None) => Framing::UntilClose,
            };
            let body = self.replaced_in_body(&content(framing, body)?)?;
            let line = memchr::memchr(b'\n', &answer[start..])? + 1;
            let mut new = answer[..start + line].to_vec();
            for header in &*head.headers {
                let is_framing =
                    ["content-length", "transfer-encoding"].iter().any(|name| header.name.eq_ignore_ascii_case(name));
                if !is_framing {
                    new.extend([header.name.as_bytes(), b": ", header.value, b"\r\n"].concat());
                }
            }
            new.extend(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
            new.extend(body.as_bytes());
            return Some(new);
        }
    }

    /// The same of a body: its own `results_url`, or that of each batch in its `data`. `None` where there is nothing to
    /// replace, or where the body is something else.
    fn replaced_in_body(&self, body: &[u8]) -> Option<String> {
        #[derive(Deserialize)]
        struct Batch<'a> {
            #[serde(borrow, default)]
            results_url: Option<&'a RawValue>,
            #[serde(borrow, default)]
            data: Option<&'a RawValue>,
        }
        let body = std::str::from_utf8(body).ok()?;
        let whole: Batch<'_> = serde_json::from_str(body).ok()?;
        let listed: Vec<Batch<'_>> =
            whole.data.and_then(|data| serde_json::from_str(data.get()).ok()).unwrap_or_default();
        let (mut new, mut copied) = (String::new(), 0);
        // In the order in which they stand in the text.
        let mut found: Vec<&str> = whole
            .results_url
            .into_iter()
            .chain(listed.iter().filter_map(|batch| batch.results_url))
            .map(RawValue::get)
            .collect();
        found.sort_unstable_by_key(|raw| raw.as_ptr());
        for raw in found {
            let place = raw.as_ptr() as usize - body.as_ptr() as usize;
            let Some(address) = serde_json::from_str(raw).ok().and_then(|address: String| self.own(&address)) else {
                continue;
            };
            new.push_str(body.get(copied..place)?);
            new.push_str(&serde_json::Value::from(address).to_string());
            copied = place + raw.len();
        }
        if copied == 0 {
            return None;
        }
        new.push_str(body.get(copied..)?);
        Some(new)
    }

    /// The gateway's address for one of the API's.
    fn own(&self, address: &str) -> Option<String> {
        let there: Uri = address.parse().ok()?;
        let port = |uri: &Uri| {
            uri.port_u16().or(match uri.scheme_str() {
                Some("https") => Some(443),
                Some("http") => Some(80),
                _ => None,
            })
        };
        let is_the_api = there.scheme() == self.api.scheme()
            && there.host()?.eq_ignore_ascii_case(self.api.host()?)
            && port(&there) == port(self.api)
            && !there.authority()?.as_str().contains('@')
            && !address.contains('#');
        let path = there.path_and_query()?.as_str().strip_prefix(self.api.path().trim_end_matches('/'))?;
        (is_the_api && path.starts_with('/')).then(|| format!("http://{}{path}", self.gateway))
    }
}

/// The content of a whole body; `None` where it is not whole, or where something follows it that would be lost.
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
    (is_whole && body.is_empty() && framing.trailers().is_empty()).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(api: &str, answer: &str) -> String {
        let api: Uri = api.parse().expect("a base URL");
        let addresses = Addresses { api: &api, gateway: "127.0.0.1:4711" };
        String::from_utf8(addresses.replaced_in(answer.as_bytes().to_vec())).expect("text")
    }

    fn json(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nx: 1\r\ncontent-type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    const API: &str = "https://api.example/base";

    #[test]
    fn results_address_of_the_api_becomes_the_gateways_and_nothing_else_changes() {
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
    fn chunks_and_interim_answers_come_out_with_one_length() {
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
    fn every_other_answer_passes_byte_for_byte() {
        let url = r#"{"results_url":"https://api.example/base/v1/x"}"#;
        for answer in [
            json(r#"{"results_url":"https://other.example/base/v1/x"}"#),
            json(r#"{"results_url":"https://api.example/elsewhere"}"#),
            json(r#"{"results_url":"https://api.example/basement"}"#),
            json(r#"{"results_url":"http://api.example/base/v1/x"}"#),
            json(r#"{"results_url":"https://api.example:8443/base/v1/x"}"#),
            json(r#"{"results_url":"https://me@api.example/base/v1/x"}"#),
            json(r#"{"results_url":"https://api.example/base/v1/x#y"}"#),
            json(r#"{"results_url":7,"data":{}}"#),
            json(r#"{"note":"https://api.example/base/v1/x"}"#),
            json(r#"{"results_url":"https://api.example/base/v1/x","results_url":"https://api.example/base/v1/y"}"#),
            json("{"),
            json(""),
            json(url).replace("200 OK", "404 Not Found"),
            json(url).replace("application/json", "text/plain"),
            json(url).replace("x: 1", "content-encoding: gzip"),
            json(url) + "more",
            json(url).replace("Content-Length: ", "Content-Length: 1"),
            "nonsense".to_owned(),
            String::new(),
        ] {
            assert_eq!(replaced(API, &answer), answer);
        }
    }

    #[test]
    fn only_answers_about_batches_are_held() {
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
    async fn an_answer_that_is_too_large_passes_as_it_is() {
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
