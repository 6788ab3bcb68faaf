//! The gateway's parsers, for fuzz targets and tests.

use std::task::{Context, Poll, Waker};

use super::admission::{AccessPolicy, way_of};
use super::buffer::ReadBuffer;
use super::framing::Framing;
use super::request::{self, Destination};
use super::response;
use crate::secret::Secret;

/// The configuration of the parsers: the gateway's host, its capability, and the upstream and token that replace them.
pub(crate) const HOST: &str = "127.0.0.1:4711";
pub(crate) const CAPABILITY: &str = "c4p4b1l1ty";
pub(crate) const AUTHORITY: &str = "api.example";
pub(crate) const ACCESS_TOKEN: &str = "t0k3n";

/// The length of a request's head, and the head to forward; `None` if it is incomplete or refused.
pub(crate) fn request(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let policy = AccessPolicy { host: HOST.to_owned(), capability: Secret::new(CAPABILITY.to_owned()) };
    let destination = Destination { authority: AUTHORITY.to_owned(), base_path: String::new() };
    let mut request = request::read(bytes, &policy, &destination, 1 << 20).ok()??;
    request.capability.as_ref().ok()?;
    request.outgoing.set_access_token(ACCESS_TOKEN);
    Some((request.head_length, request.outgoing.head().to_vec()))
}

/// The head of a response as it is passed on.
pub(crate) fn response(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = ReadBuffer::default();
    let filled = buffer.poll_fill(&mut Context::from_waker(Waker::noop()), &mut bytes);
    let Poll::Ready(Ok(_)) = filled else { return None };
    let response = response::read(&mut buffer, false).ok()??;
    Some(buffer.bytes()[..response.head_length].to_vec())
}

/// Parses a chunked body in two parts. Returns its length, the length of its content, whether it is complete, and its
/// trailers.
pub(crate) fn chunks(parts: [&[u8]; 2]) -> Option<(usize, u64, bool, Vec<u8>)> {
    let mut body = Framing::chunked();
    let mut count = 0;
    for part in parts {
        count += body.advance(part).ok()?;
    }
    Some((count, body.content(), body.is_over(), body.trailers().to_vec()))
}

/// Whether the gateway accepts this target.
pub(crate) fn leads_to(target: &str) -> bool {
    way_of(target).is_ok()
}
