//! The request that a client is sending: the part that was received, the part that is buffered for a retry, and the
//! part to send next.

use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::admission::Refusal;
use super::buffer::ReadBuffer;
use super::framing::Malformed;
use super::request::Request;

/// Why there is no complete response.
#[derive(Debug)]
pub(super) enum Failed {
    /// The client has left. No response can be sent.
    Abandoned,
    /// The client's body is malformed or too large.
    Client(Refusal),
    /// The connection closed before a response; `true` if the peer reported that it did not process the request.
    NoAnswer(bool),
    /// The response is malformed.
    BadAnswer,
    /// The response did not arrive before the timeout.
    Late,
    /// The response broke off after a part of it was passed on.
    Broken,
}

/// Limits of a body, and of the part of it that is buffered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) largest_body: u64,
    pub(super) kept_body: usize,
}

/// The client, its request, and the progress of both.
pub(super) struct Incoming<'a, S> {
    pub(super) client: &'a mut S,
    pub(super) buffer: &'a mut ReadBuffer,
    pub(super) request: &'a mut Request,
    bounds: Bounds,
    /// The number of bytes of `request.outgoing` that were sent.
    left: usize,
    /// Whether `request.outgoing` contains the whole body so far.
    is_kept: bool,
    /// The number of bytes at the front of the buffer that belong to the body and can be sent.
    leaving: usize,
    /// Whether data was transferred since this was set to false.
    pub(super) moved: bool,
    pub(super) bytes_in: u64,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Incoming<'a, S> {
    pub(super) fn new(
        client: &'a mut S,
        buffer: &'a mut ReadBuffer,
        request: &'a mut Request,
        bounds: Bounds,
        is_kept: bool,
    ) -> Self {
        Incoming { client, buffer, request, bounds, left: 0, is_kept, leaving: 0, moved: false, bytes_in: 0 }
    }

    /// The bytes to send next. If it is empty, call [`poll_more`](Self::poll_more).
    pub(super) fn next(&self) -> &[u8] {
        match &self.request.outgoing.bytes()[self.left..] {
            [] => &self.buffer.bytes()[..self.leaving],
            kept => kept,
        }
    }

    /// Marks `count` bytes of `next` as sent.
    pub(super) fn has_left(&mut self, count: usize) {
        self.moved = true;
        if self.left < self.request.outgoing.bytes().len() {
            self.left += count;
        } else {
            self.buffer.consume(count);
            self.leaving -= count;
        }
    }

    /// Whether the whole request was sent.
    pub(super) fn is_over(&self) -> bool {
        self.request.body.is_over() && self.next().is_empty()
    }

    /// Whether the whole request was received and can be sent again.
    pub(super) fn is_kept_whole(&self) -> bool {
        self.is_kept && self.request.body.is_over()
    }

    /// Whether the whole request could be buffered by reading the rest. A client that waits for a 100 does not send it.
    pub(super) fn could_be_kept(&self) -> bool {
        self.is_kept && !self.request.expects_word
    }

    /// Reads the next piece of the body. Returns whether there is one. All bytes must have been sent before, except
    /// those in `request.outgoing`.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Failed>> {
        const NO_BODY: Refusal = Refusal::new(400, "the body is not what its head says");
        const TOO_LARGE: Refusal = Refusal::new(413, "the body is larger than the gateway lets through");
        if self.request.body.is_over() {
            return Poll::Ready(Ok(false));
        }
        if self.buffer.is_empty() {
            match ready!(self.buffer.poll_fill(cx, self.client)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(Failed::Abandoned)),
                Ok(_) => self.moved = true,
            }
        }
        let body = &mut self.request.body;
        let count = body.advance(self.buffer.bytes()).map_err(|Malformed| Failed::Client(NO_BODY))?;
        self.bytes_in += count as u64;
        if body.content() > self.bounds.largest_body {
            return Poll::Ready(Err(Failed::Client(TOO_LARGE)));
        }
        if self.is_kept && self.request.outgoing.kept() + count > self.bounds.kept_body {
            self.is_kept = false;
            if self.left == self.request.outgoing.bytes().len() {
                self.request.outgoing.let_body_go();
                self.left = self.request.outgoing.bytes().len();
            }
        }
        if self.is_kept {
            self.request.outgoing.keep(&self.buffer.bytes()[..count]);
            self.buffer.consume(count);
        } else {
            self.leaving = count;
        }
        Poll::Ready(Ok(true))
    }

    /// Reads the rest of the body into the buffer for a retry, without sending it. Stops if it is too large.
    pub(super) fn poll_collect(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        while self.is_kept && ready!(self.poll_more(cx))? {}
        Poll::Ready(Ok(()))
    }

    /// Whether the client has left after its request was received. Its response would be billed, and nothing would read
    /// it.
    pub(super) fn is_abandoned(&mut self, cx: &mut Context<'_>) -> bool {
        self.buffer.is_empty() && matches!(self.buffer.poll_fill(cx, self.client), Poll::Ready(Ok(0) | Err(_)))
    }
}
