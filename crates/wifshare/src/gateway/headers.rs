//! The headers of a request: what to do with each when it is forwarded, and where the body ends.

use httparse::Header;

use super::admission::{Refusal, RequestCredentials};
use super::framing::Framing;

/// The beta that the API requires for a federated access token.
pub(super) const OAUTH_BETA: &str = "oauth-2025-04-20";

/// The meaning of a request's headers.
#[derive(Default)]
pub(super) struct Headers<'a> {
    pub(super) credentials: RequestCredentials<'a>,
    length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    pub(super) closes: bool,
    pub(super) expects_word: bool,
    pub(super) wants_trailers: bool,
    /// `Connection` names headers other than `close` and `keep-alive`.
    pub(super) names_others: bool,
    pub(super) betas: usize,
    pub(super) has_oauth_beta: bool,
}

/// What to do with a header when the request is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Forward it unchanged.
    EndToEnd,
    /// Drop it: it is for this connection only (RFC 9110 §7.6.1).
    HopByHop,
    Connection,
    Te,
    Expect,
    Host,
    Authorization,
    ApiKey,
    Beta,
    Length,
    TransferEncoding,
    OfABrowser,
    OfAProxy,
    SecFetchMode,
}

pub(super) fn kind_of(name: &str) -> Kind {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    // Compare the length first: most headers of a request have none of these names.
    match name.len() {
        2 if is("te") => Kind::Te,
        4 if is("host") => Kind::Host,
        6 if is("expect") => Kind::Expect,
        6 if is("origin") => Kind::OfABrowser,
        7 if is("upgrade") => Kind::HopByHop,
        9 if is("x-api-key") => Kind::ApiKey,
        9 if is("forwarded") => Kind::OfAProxy,
        10 if is("connection") => Kind::Connection,
        10 if is("keep-alive") => Kind::HopByHop,
        13 if is("authorization") => Kind::Authorization,
        14 if is("content-length") => Kind::Length,
        14 if is("anthropic-beta") => Kind::Beta,
        14 if is("sec-fetch-mode") => Kind::SecFetchMode,
        14 if is("http2-settings") => Kind::HopByHop,
        15 if is("x-forwarded-for") => Kind::OfAProxy,
        16 if is("proxy-connection") => Kind::HopByHop,
        17 if is("transfer-encoding") => Kind::TransferEncoding,
        18 if is("proxy-authenticate") => Kind::HopByHop,
        19 if is("proxy-authorization") => Kind::HopByHop,
        10.. if name.get(..10).is_some_and(|start| start.eq_ignore_ascii_case("sec-fetch-")) => Kind::OfABrowser,
        _ => Kind::EndToEnd,
    }
}

impl<'a> Headers<'a> {
    pub(super) fn of(headers: &[Header<'a>]) -> Result<Headers<'a>, Refusal> {
        const TWICE: Refusal = Refusal::new(400, "a header is there twice that may be there once");
        const EXPECTATION: Refusal = Refusal::new(417, "the gateway knows no such expectation");
        let mut read = Headers::default();
        for header in headers {
            let value = header.value;
            let once = |place: &mut Option<&'a [u8]>| match place.replace(value) {
                Some(_) => Err(TWICE),
                None => Ok(()),
            };
            match kind_of(header.name) {
                Kind::EndToEnd | Kind::HopByHop => {}
                Kind::Host => once(&mut read.credentials.host)?,
                Kind::Authorization => once(&mut read.credentials.authorization)?,
                Kind::ApiKey => once(&mut read.credentials.api_key)?,
                Kind::Length => once(&mut read.length)?,
                Kind::TransferEncoding => once(&mut read.transfer_encoding)?,
                Kind::OfABrowser => read.credentials.of_a_browser = true,
                Kind::OfAProxy => read.credentials.of_a_proxy = true,
                // Node's `fetch` sends this header alone. A browser always sends `Sec-Fetch-Site` too.
                Kind::SecFetchMode => {}
                Kind::Connection => {
                    for name in names(value) {
                        match name {
                            _ if name.eq_ignore_ascii_case(b"close") => read.closes = true,
                            _ if name.eq_ignore_ascii_case(b"keep-alive") => {}
                            _ => read.names_others = true,
                        }
                    }
                }
                Kind::Te => read.wants_trailers |= names(value).any(|name| name.eq_ignore_ascii_case(b"trailers")),
                Kind::Expect if value.eq_ignore_ascii_case(b"100-continue") => read.expects_word = true,
                Kind::Expect => return Err(EXPECTATION),
                Kind::Beta => {
                    read.betas += 1;
                    read.has_oauth_beta |= names(value).any(|name| name == OAUTH_BETA.as_bytes());
                }
            }
        }
        Ok(read)
    }

    /// The framing of the body. Fails if there is more than one way to read it (RFC 9112 §6.3).
    pub(super) fn body(&self, largest: u64) -> Result<Framing, Refusal> {
        const BOTH: Refusal = Refusal::new(400, "the end of the body is told in two ways");
        const CODING: Refusal = Refusal::new(501, "the gateway knows one transfer coding, `chunked`");
        const LENGTH: Refusal = Refusal::new(400, "the Content-Length is no number");
        const TOO_LARGE: Refusal = Refusal::new(413, "the body is larger than the gateway lets through");
        match (self.transfer_encoding, self.length) {
            (Some(_), Some(_)) => Err(BOTH),
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::chunked()),
            (Some(_), None) => Err(CODING),
            (None, Some(length)) => match length_of(length).ok_or(LENGTH)? {
                length if length > largest => Err(TOO_LARGE),
                length => Ok(Framing::Length(length)),
            },
            (None, None) => Ok(Framing::Length(0)),
        }
    }
}

/// Parses digits only: no sign, no list, no space.
pub(super) fn length_of(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 15 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// The members of a comma-separated list (RFC 9110 §5.6.1).
pub(super) fn names(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_header_is_matched_by_its_whole_name_in_any_case() {
        let known = [
            ("te", Kind::Te),
            ("host", Kind::Host),
            ("expect", Kind::Expect),
            ("origin", Kind::OfABrowser),
            ("sec-fetch-site", Kind::OfABrowser),
            ("sec-fetch-x", Kind::OfABrowser),
            ("sec-fetch-mode", Kind::SecFetchMode),
            ("upgrade", Kind::HopByHop),
            ("keep-alive", Kind::HopByHop),
            ("http2-settings", Kind::HopByHop),
            ("proxy-connection", Kind::HopByHop),
            ("proxy-authenticate", Kind::HopByHop),
            ("proxy-authorization", Kind::HopByHop),
            ("x-api-key", Kind::ApiKey),
            ("forwarded", Kind::OfAProxy),
            ("x-forwarded-for", Kind::OfAProxy),
            ("connection", Kind::Connection),
            ("authorization", Kind::Authorization),
            ("content-length", Kind::Length),
            ("transfer-encoding", Kind::TransferEncoding),
            ("anthropic-beta", Kind::Beta),
        ];
        for (name, kind) in known {
            assert_eq!((kind_of(name), kind_of(&name.to_uppercase())), (kind, kind), "{name}");
            // Another name of the same length.
            let other = format!("y{}", &name[1..]);
            assert_eq!(kind_of(&other), Kind::EndToEnd, "{other}");
        }
    }

    #[test]
    fn connection_header_names_others_unless_close_or_keep_alive() {
        let names_others = |line: &str| {
            let mut headers = [httparse::EMPTY_HEADER; 2];
            let (_, headers) = httparse::parse_headers(line.as_bytes(), &mut headers).unwrap().unwrap();
            Headers::of(headers).unwrap().names_others
        };
        for (line, expected) in [
            ("Connection: keep-alive\r\n\r\n", false),
            ("Connection: Close , Keep-Alive\r\n\r\n", false),
            ("Connection: close, x\r\n\r\n", true),
        ] {
            assert_eq!(names_others(line), expected, "{line}");
        }
    }

    #[test]
    fn content_length_is_at_most_fifteen_digits() {
        assert_eq!(length_of(b"999999999999999"), Some(999_999_999_999_999));
        assert_eq!(length_of(b"1000000000000000"), None, "a petabyte");
        for text in ["", "+1", "-1", "1 ", "1,1", "0x1"] {
            assert_eq!(length_of(text.as_bytes()), None, "{text:?}");
        }
    }
}
