//! Parses the head of a response in the buffer, and removes the hop-by-hop headers in place.

use std::mem::MaybeUninit;

use httparse::Status;

use super::buffer::ReadBuffer;
use super::framing::{Framing, Malformed};
use super::headers::{length_of, names};

const MOST_HEADERS: usize = 128;

/// A response whose head is in the buffer, ready to be passed on.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) head_length: usize,
    pub(super) body: Framing,
    /// Whether the connection can take another request afterwards.
    pub(super) may_stay: bool,
}

impl Response {
    /// Whether another response to the same request follows (RFC 9110 §15.2).
    pub(super) fn is_interim(&self) -> bool {
        self.status < 200
    }
}

/// Parses the head at the beginning of the buffer; `None` if it is incomplete.
pub(super) fn read(buffer: &mut ReadBuffer, to_head: bool) -> Result<Option<Response>, Malformed> {
    let bytes = buffer.bytes();
    let mut headers = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut head = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let head_length = match config.parse_response_with_uninit_headers(&mut head, bytes, &mut headers) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed),
    };
    // The parser skips empty lines before the head, but the version is replaced in place below.
    if !bytes.starts_with(b"HTTP/") {
        return Err(Malformed);
    }
    let is_bare = |place: usize| place == 0 || bytes[place - 1] != b'\r';
    if memchr::memchr_iter(b'\n', &bytes[..head_length]).any(is_bare) {
        return Err(Malformed);
    }
    let (Some(status), Some(version)) = (head.code, head.version) else { return Err(Malformed) };
    let mut lines = Dropped::default();
    let (mut length, mut chunked, mut names_others): (Option<&[u8]>, bool, bool) = (None, false, false);
    let mut may_stay = version == 1;
    for header in &*head.headers {
        match header.name.len() {
            7 if header.name.eq_ignore_ascii_case("upgrade") => lines.add(bytes, header)?,
            10 if header.name.eq_ignore_ascii_case("keep-alive") => lines.add(bytes, header)?,
            10 if header.name.eq_ignore_ascii_case("connection") => {
                lines.add(bytes, header)?;
                for name in names(header.value) {
                    match name {
                        _ if name.eq_ignore_ascii_case(b"close") => may_stay = false,
                        _ if name.eq_ignore_ascii_case(b"keep-alive") => {}
                        _ => names_others = true,
                    }
                }
            }
            14 if header.name.eq_ignore_ascii_case("content-length") => {
                let before = length.replace(header.value);
                before.is_none_or(|before| before == header.value).then_some(()).ok_or(Malformed)?;
            }
            16 if header.name.eq_ignore_ascii_case("proxy-connection") => lines.add(bytes, header)?,
            17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                if chunked || !header.value.eq_ignore_ascii_case(b"chunked") || version == 0 {
                    return Err(Malformed);
                }
                chunked = true;
            }
            18 if header.name.eq_ignore_ascii_case("proxy-authenticate") => lines.add(bytes, header)?,
            _ => {}
        }
    }
    if names_others {
        let connections = || head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection"));
        let named = || connections().flat_map(|header| names(header.value));
        for header in &*head.headers {
            let is_framing = ["content-length", "transfer-encoding", "connection", "keep-alive", "upgrade"];
            let is_named = named().any(|name| name.eq_ignore_ascii_case(header.name.as_bytes()));
            if is_named && !is_framing.iter().any(|name| header.name.eq_ignore_ascii_case(name)) {
                lines.add(bytes, header)?;
            }
        }
    }
    let body = match (chunked, length) {
        // The gateway never requests an upgrade.
        _ if status == 101 => return Err(Malformed),
        _ if to_head || status < 200 || matches!(status, 204 | 304) => Framing::Length(0),
        (true, Some(_)) => return Err(Malformed),
        (true, None) => Framing::chunked(),
        (false, Some(length)) => Framing::Length(length_of(length).ok_or(Malformed)?),
        (false, None) => Framing::UntilClose,
    };
    may_stay &= !matches!(body, Framing::UntilClose);
    let dropped = lines;
    let head_length = dropped.take_out(buffer, head_length);
    if version == 0 {
        // The gateway speaks HTTP/1.1 to its client, whatever the upstream speaks (RFC 9110 §2.5).
        buffer.bytes_mut()[..8].copy_from_slice(b"HTTP/1.1");
    }
    Ok(Some(Response { status, head_length, body, may_stay }))
}

/// The lines of a head that are not passed on.
#[derive(Default)]
struct Dropped {
    lines: [(usize, usize); 8],
    count: usize,
}

impl Dropped {
    /// Adds a line. Does nothing if it is listed already, because `Connection` names it too.
    fn add(&mut self, bytes: &[u8], header: &httparse::Header<'_>) -> Result<(), Malformed> {
        let start = header.name.as_ptr() as usize - bytes.as_ptr() as usize;
        if self.lines[..self.count].iter().any(|(known, _)| *known == start) {
            return Ok(());
        }
        let length = memchr::memchr(b'\n', &bytes[start..]).ok_or(Malformed)? + 1;
        let place = self.lines.get_mut(self.count).ok_or(Malformed)?;
        *place = (start, start + length);
        self.count += 1;
        Ok(())
    }

    /// Removes the lines by moving the rest towards the body. Returns the new length of the head.
    fn take_out(mut self, buffer: &mut ReadBuffer, head_length: usize) -> usize {
        let lines = &mut self.lines[..self.count];
        lines.sort_unstable();
        let bytes = buffer.bytes_mut();
        let (mut from, mut to) = (head_length, head_length);
        for (start, end) in lines.iter().rev() {
            bytes.copy_within(*end..from, to - (from - end));
            to -= from - end;
            from = *start;
        }
        bytes.copy_within(..from, to - from);
        let removed = to - from;
        buffer.consume(removed);
        head_length - removed
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn buffer(mut text: &[u8]) -> ReadBuffer {
        let mut buffer = ReadBuffer::default();
        let filled = buffer.poll_fill(&mut Context::from_waker(Waker::noop()), &mut text);
        assert!(matches!(filled, Poll::Ready(Ok(_))));
        buffer
    }

    #[test]
    fn hop_by_hop_response_headers_are_removed_in_place() {
        for (head, passed) in [
            (
                "HTTP/1.1 200 OK\r\nx: 1\r\ncontent-length: 2\r\n\r\n",
                "HTTP/1.1 200 OK\r\nx: 1\r\ncontent-length: 2\r\n\r\n",
            ),
            (
                "HTTP/1.0 200 OK\r\nConnection: keep-alive, x-hop\r\nx: 1\r\nX-Hop: 2\r\nKeep-Alive: timeout=5\r\ncontent-length: 2\r\n\r\n",
                "HTTP/1.1 200 OK\r\nx: 1\r\ncontent-length: 2\r\n\r\n",
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: content-length\r\n\r\n",
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n",
            ),
        ] {
            let mut buffer = buffer(format!("{head}hi").as_bytes());
            let response = read(&mut buffer, false).expect("an answer").expect("whole");
            assert_eq!(buffer.bytes(), format!("{passed}hi").as_bytes(), "{head}");
            assert_eq!(response.head_length, passed.len());
            assert!(matches!(response.body, Framing::Length(2)));
        }
    }

    #[test]
    fn header_also_named_by_connection_is_removed_once() {
        for (lines, passed) in [
            ("Connection: Proxy-Connection\r\nProxy-Connection: keep-alive\r\n", ""),
            ("Proxy-Connection: keep-alive\r\nConnection: Proxy-Connection\r\n", ""),
            ("Connection: proxy-authenticate\r\nProxy-Authenticate: Basic\r\nx: 1\r\n", "x: 1\r\n"),
            ("Connection: x, x\r\nConnection: X\r\nx: 1\r\nx: 2\r\ny: 3\r\n", "y: 3\r\n"),
            ("Connection: x\r\nConnection: y\r\nx: 1\r\ny: 2\r\nz: 3\r\n", "z: 3\r\n"),
            ("Connection: connection, upgrade, keep-alive\r\nUpgrade: a\r\nKeep-Alive: b\r\n", ""),
        ] {
            let mut buffer = buffer(format!("HTTP/1.1 200 OK\r\n{lines}content-length: 2\r\n\r\nhi").as_bytes());
            let response = read(&mut buffer, false).expect("an answer").expect("whole");
            let expected = format!("HTTP/1.1 200 OK\r\n{passed}content-length: 2\r\n\r\n");
            assert_eq!(response.head_length, expected.len(), "{lines}");
            assert_eq!(buffer.bytes(), format!("{expected}hi").as_bytes(), "{lines}");
        }
    }

    /// A simple implementation of the same filter, line by line.
    fn passed_on(lines: &[(&str, &str)]) -> String {
        const HOPS: [&str; 5] = ["connection", "keep-alive", "upgrade", "proxy-connection", "proxy-authenticate"];
        const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];
        let named = |name: &str| {
            let connections = lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
            let mut names = connections.flat_map(|(_, value)| value.split(',')).map(str::trim);
            names.any(|named| named.eq_ignore_ascii_case(name))
        };
        let stays = |name: &str| {
            let name = name.to_ascii_lowercase();
            !HOPS.contains(&&*name) && (FRAMING.contains(&&*name) || !named(&name))
        };
        let kept = lines.iter().filter(|(name, _)| stays(name));
        kept.map(|(name, value)| format!("{name}: {value}\r\n")).collect()
    }

    #[test]
    fn hop_by_hop_removal_keeps_the_order_of_other_headers() {
        use proptest::prelude::*;

        const NAMES: [&str; 9] = [
            "Connection",
            "Proxy-Connection",
            "proxy-authenticate",
            "Keep-Alive",
            "upgrade",
            "X-Hop",
            "x-end",
            "date",
            "Content-Length",
        ];
        let line = prop::sample::select(&NAMES[..]).prop_flat_map(|name| {
            let value = match name {
                "Connection" => prop::collection::vec(prop::sample::select(&NAMES[..]), 0..4)
                    .prop_map(|names| names.join(", "))
                    .boxed(),
                "Content-Length" => Just("2".to_owned()).boxed(),
                _ => "[a-z]{0,3}".boxed(),
            };
            (Just(name), value)
        });
        proptest!(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() },
        |(lines in prop::collection::vec(line, 0..9))| {
            let lines: Vec<(&str, &str)> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let head: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let mut buffer = buffer(format!("HTTP/1.1 200 OK\r\n{head}\r\nhi").as_bytes());
            // A head with too many lines to remove is refused.
            if let Ok(response) = read(&mut buffer, false) {
                let expected = format!("HTTP/1.1 200 OK\r\n{}\r\n", passed_on(&lines));
                prop_assert_eq!(response.expect("whole").head_length, expected.len());
                prop_assert_eq!(String::from_utf8_lossy(buffer.bytes()), format!("{expected}hi"));
            }
        });
    }

    #[test]
    fn response_header_is_matched_by_its_whole_name_in_any_case() {
        const USUAL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n";
        let passed = |line: &str| {
            let mut buffer = buffer(format!("{USUAL}{line}\r\n\r\nhi").as_bytes());
            let response = read(&mut buffer, false).expect("an answer").expect("whole");
            assert!(response.may_stay && matches!(response.body, Framing::Length(2)), "{line}");
            buffer.bytes().starts_with(format!("{USUAL}{line}\r\n").as_bytes())
        };
        for name in ["upgrade", "keep-alive", "connection", "proxy-connection", "proxy-authenticate"] {
            assert!(!passed(&format!("{name}: x")) && !passed(&format!("{}: x", name.to_uppercase())), "{name}");
            assert!(passed(&format!("y{}: close", &name[1..])), "as long as {name}, and another one");
        }
        for name in ["content-length", "transfer-encoding"] {
            assert!(passed(&format!("y{}: close", &name[1..])), "as long as {name}, and another one");
        }
    }

    #[test]
    fn ambiguous_response_end_is_refused() {
        for (head, is_understood) in [
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", true),
            ("HTTP/1.1 200\r\ncontent-length: 1\r\n\r\n", true),
            ("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", false),
            ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", false),
            ("HTTP/1.1 200 OK\nx: y\n\n", false),
            ("HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n", false),
            ("HTTP/2 200 OK\r\n\r\n", false),
            ("nonsense\r\n\r\n", false),
            ("\r\nHTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", false),
        ] {
            assert_eq!(read(&mut buffer(head.as_bytes()), false).is_ok(), is_understood, "{head}");
        }
    }

    #[test]
    fn response_without_body_is_over_after_its_head() {
        for (head, to_head) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", false),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", false),
        ] {
            let response = read(&mut buffer(head.as_bytes()), to_head).expect("an answer").expect("whole");
            assert!(response.body.is_over() && response.may_stay, "{head}");
        }
        let response = read(&mut buffer(b"HTTP/1.1 200 OK\r\n\r\n"), false).expect("an answer").expect("whole");
        assert!(!response.may_stay, "it ends with the connection");
    }
}
