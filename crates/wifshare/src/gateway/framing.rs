//! The framing of a message body (RFC 9112 §6 and §7.1). Parsing is strict, because two parsers that disagree about the
//! end of a message allow request smuggling.

/// How the end of a body is determined.
#[derive(Debug)]
pub(super) enum Framing {
    /// The number of bytes that are left.
    Length(u64),
    /// Chunks, up to the last chunk and the trailers.
    Chunked(Chunks),
    /// The end of the connection.
    UntilClose,
}

/// A piece at the beginning of the input, with its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Content.
    Content(usize),
    /// Framing or trailers.
    Frame(usize),
}

/// The input is not a valid body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The parser of a chunked body. It accepts input in pieces of any size.
#[derive(Debug)]
pub(super) struct Chunks {
    state: State,
    /// Bytes of content so far.
    content: u64,
    /// The trailers, for receivers that need them as fields.
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the size, after this number of digits.
    Size {
        size: u64,
        digits: u8,
    },
    /// In an extension, after this number of bytes. Extensions are ignored.
    Extension {
        size: u64,
        length: u16,
    },
    /// Before the line feed that ends a size.
    SizeEnd {
        size: u64,
    },
    /// In the content, with this number of bytes left.
    Content {
        left: u64,
    },
    ContentReturn,
    ContentEnd,
    /// At the beginning of a trailer, or of the last line.
    TrailerStart,
    /// In a trailer that begins at this position.
    Trailer {
        start: usize,
    },
    TrailerEnd {
        start: usize,
    },
    LastEnd,
    Over,
}

impl Framing {
    pub(super) fn chunked() -> Framing {
        let state = State::Size { size: 0, digits: 0 };
        Framing::Chunked(Chunks { state, content: 0, trailers: Vec::new() })
    }

    /// The initial state, to read the same body again. Call it before anything was read.
    pub(super) fn again(&self) -> Framing {
        match self {
            Framing::Length(length) => Framing::Length(*length),
            Framing::Chunked(_) => Framing::chunked(),
            Framing::UntilClose => Framing::UntilClose,
        }
    }

    /// Whether the whole body was read.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Framing::Length(left) => *left == 0,
            Framing::Chunked(chunks) => chunks.state == State::Over,
            Framing::UntilClose => false,
        }
    }

    /// The next piece of the input; `None` if the input is empty or the body is complete.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Option<Piece>, Malformed> {
        if bytes.is_empty() || self.is_over() {
            return Ok(None);
        }
        match self {
            Framing::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= count as u64;
                Ok(Some(Piece::Content(count)))
            }
            Framing::Chunked(chunks) => chunks.next(bytes).map(Some),
            Framing::UntilClose => Ok(Some(Piece::Content(bytes.len()))),
        }
    }

    /// Returns how many bytes of the input belong to the body, both content and framing.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut count = 0;
        while let Some(Piece::Content(piece) | Piece::Frame(piece)) = self.next(&bytes[count..])? {
            count += piece;
        }
        Ok(count)
    }

    /// Bytes of content so far in a chunked body. For other bodies, the length is known in advance.
    pub(super) fn content(&self) -> u64 {
        match self {
            Framing::Chunked(chunks) => chunks.content,
            Framing::Length(_) | Framing::UntilClose => 0,
        }
    }

    /// The trailers as received, line by line.
    pub(super) fn trailers(&self) -> &[u8] {
        match self {
            Framing::Chunked(chunks) => &chunks.trailers,
            Framing::Length(_) | Framing::UntilClose => &[],
        }
    }
}

impl Chunks {
    /// Sixteen digits would exceed every file system.
    const LONGEST_SIZE: u8 = 12;
    const LONGEST_EXTENSION: u16 = 1024;
    const LONGEST_TRAILERS: usize = 8 * 1024;

    fn next(&mut self, bytes: &[u8]) -> Result<Piece, Malformed> {
        if let State::Content { left } = self.state {
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let left = left - count as u64;
            self.content += count as u64;
            self.state = if left == 0 { State::ContentReturn } else { State::Content { left } };
            return Ok(Piece::Content(count));
        }
        let mut count = 0;
        for byte in bytes {
            self.state = self.after(*byte)?;
            count += 1;
            if matches!(self.state, State::Content { .. } | State::Over) {
                break;
            }
        }
        Ok(Piece::Frame(count))
    }

    fn after(&mut self, byte: u8) -> Result<State, Malformed> {
        Ok(match (self.state, byte) {
            (State::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < Self::LONGEST_SIZE => {
                let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                State::Size { size: size << 4 | digit, digits: digits + 1 }
            }
            (State::Size { size, digits: 1.. }, b'\r') => State::SizeEnd { size },
            (State::Size { size, digits: 1.. }, b';') => State::Extension { size, length: 0 },
            (State::Extension { size, .. }, b'\r') => State::SizeEnd { size },
            (State::Extension { size, length }, b'\t' | b' '..=b'~' | 0x80..) if length < Self::LONGEST_EXTENSION => {
                State::Extension { size, length: length + 1 }
            }
            (State::SizeEnd { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeEnd { size }, b'\n') => State::Content { left: size },
            (State::ContentReturn, b'\r') => State::ContentEnd,
            (State::ContentEnd, b'\n') => State::Size { size: 0, digits: 0 },
            (State::TrailerStart, b'\r') => State::LastEnd,
            (State::LastEnd, b'\n') => State::Over,
            (State::TrailerStart, _) => {
                let start = self.trailers.len();
                self.trailer(byte)?;
                State::Trailer { start }
            }
            (State::Trailer { start }, b'\r') => State::TrailerEnd { start },
            (State::Trailer { start }, _) => {
                self.trailer(byte)?;
                State::Trailer { start }
            }
            (State::TrailerEnd { start }, b'\n') => {
                if !may_be_a_trailer(&self.trailers[start..]) {
                    return Err(Malformed);
                }
                self.trailers.push(b'\n');
                State::TrailerStart
            }
            _ => return Err(Malformed),
        })
    }

    fn trailer(&mut self, byte: u8) -> Result<(), Malformed> {
        let is_text = matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
        if !is_text || self.trailers.len() >= Self::LONGEST_TRAILERS {
            return Err(Malformed);
        }
        self.trailers.push(byte);
        Ok(())
    }
}

/// Whether a line is a field that is allowed as a trailer. A trailer must not frame, route or authenticate (RFC 9110
/// §6.5.1).
fn may_be_a_trailer(line: &[u8]) -> bool {
    const FORBIDDEN: [&[u8]; 14] = [
        b"authorization",
        b"x-api-key",
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"cookie",
        b"set-cookie",
        b"content-type",
        b"content-encoding",
    ];
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return false };
    let name = &line[..colon];
    !name.is_empty()
        && name.iter().all(|byte| is_token(*byte))
        && !FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}

/// Whether the byte is allowed in a field name (RFC 9110 §5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a body in pieces of `step` bytes. Returns the content and the length of the body.
    fn read(body: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), Malformed> {
        let mut framing = Framing::chunked();
        let (mut content, mut used) = (Vec::new(), 0);
        for end in (step..).step_by(step).map(|end| end.min(body.len())) {
            while let Some(piece) = framing.next(&body[used..end])? {
                match piece {
                    Piece::Content(count) => {
                        content.extend_from_slice(&body[used..used + count]);
                        used += count;
                    }
                    Piece::Frame(count) => used += count,
                }
            }
            if end == body.len() {
                break;
            }
        }
        Ok((content, used, framing.is_over()))
    }

    #[test]
    fn chunks_parse_equally_at_any_split() {
        let body = b"5\r\nhello\r\n1;x=\"y\"\r\n \r\nA\r\n0123456789\r\n0\r\ndigest: abc\r\nx: \r\n\r\nGET / next";
        let whole = body.len() - b"GET / next".len();
        for step in 1..=body.len() {
            assert_eq!(read(body, step), Ok((b"hello 0123456789".to_vec(), whole, true)), "step {step}");
        }
    }

    #[test]
    fn ambiguous_chunked_body_is_refused() {
        for body in [
            &b"\r\n"[..],
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello\r0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\n",
            b"FFFFFFFFFFFFFFFFF\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"5;a\x00\r\nhello\r\n",
            b"0\r\nno field\r\n\r\n",
            b"0\r\n: nameless\r\n\r\n",
            b"0\r\n folded: x\r\n\r\n",
            b"0\r\nbad name: x\r\n\r\n",
            b"0\r\nContent-Length: 3\r\n\r\n",
            b"0\r\nAuthorization: Bearer x\r\n\r\n",
            b"0\r\nx: a\nb: c\r\n\r\n",
            b"0\r\n\n",
            b"0\r\n\rx",
        ] {
            for step in [1, 2, body.len()] {
                assert_eq!(read(body, step), Err(Malformed), "{:?}", String::from_utf8_lossy(body));
            }
        }
    }

    #[test]
    fn chunk_extensions_and_trailers_are_limited() {
        let mut long = b"1;".to_vec();
        long.resize(2000, b'x');
        assert_eq!(read(&long, 1000), Err(Malformed));
        let mut long = b"0\r\nx: ".to_vec();
        long.resize(10_000, b'x');
        assert_eq!(read(&long, 1000), Err(Malformed));
    }

    #[test]
    fn length_framing_ends_at_its_length() {
        let mut framing = Framing::Length(5);
        assert_eq!(framing.advance(b"hel"), Ok(3));
        assert!(!framing.is_over());
        assert_eq!(framing.advance(b"lo, next"), Ok(2));
        assert!(framing.is_over());
        assert_eq!(framing.advance(b"next"), Ok(0));
        assert_eq!(Framing::Length(0).advance(b"next"), Ok(0));
        assert_eq!(Framing::UntilClose.advance(b"all"), Ok(3));
    }

    #[test]
    fn chunk_sizes_of_several_digits_are_counted() {
        let mut framing = Framing::chunked();
        assert_eq!(framing.content(), 0);
        let body = [b"12\r\n".as_slice(), &[b'x'; 0x12], b"\r\n3\r\nabc\r\n0\r\n\r\n"].concat();
        assert_eq!(framing.advance(&body), Ok(body.len()));
        assert!(framing.is_over());
        assert_eq!(framing.content(), 0x12 + 3);
        assert_eq!(Framing::Length(5).content(), 0, "it is known beforehand");
    }

    #[test]
    fn chunk_size_and_extension_limits_are_exact() {
        let digits = |count| [vec![b'0'; count - 1], b"1\r\nx".to_vec()].concat();
        let longest = usize::from(Chunks::LONGEST_SIZE);
        assert_eq!(read(&digits(longest), 1).map(|(content, ..)| content), Ok(b"x".to_vec()));
        assert_eq!(read(&digits(longest + 1), 1), Err(Malformed));
        let extension = |count| [b"1;".to_vec(), vec![b'x'; count], b"\r\nx".to_vec()].concat();
        let longest = usize::from(Chunks::LONGEST_EXTENSION);
        assert_eq!(read(&extension(longest), 1).map(|(content, ..)| content), Ok(b"x".to_vec()));
        assert_eq!(read(&extension(longest + 1), 1), Err(Malformed));
    }
}
