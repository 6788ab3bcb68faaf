//! A request on its way in: what of its body has come, what is kept for a second time, and what is to leave next.

use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::admission::Refusal;
use super::buffer::ReadBuffer;
use super::framing::Malformed;
use super::request::Request;

/// Why there is no whole answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// The client is gone; there is nobody to tell.
    Abandoned,
    /// The client's body was none, or too large.
    Client(Refusal),
    /// The line was closed before anything came back; and whether the other side said that it did nothing.
    NoAnswer(bool),
    /// What came back was no answer.
    BadAnswer,
    /// Nothing came back in all the time there is.
    Late,
    /// It broke off when a part of it was passed on already.
    Broken,
}

/// What a client may send, and how much of it is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) largest_body: u64,
    pub(super) kept_body: usize,
}

/// The client, its request, and how far we are with it.
pub(super) struct Incoming<'a, S> {
    pub(super) client: &'a mut S,
    pub(super) buffer: &'a mut ReadBuffer,
    pub(super) request: &'a mut Request,
    bounds: Bounds,
    /// How much of what is in `request.outgoing` has left.
    left: usize,
    /// Whether all of the body so far is in `request.outgoing`.
    is_kept: bool,
    /// How much at the front of the buffer is body, ready to leave.
    leaving: usize,
    /// Whether bytes have moved since this was set to false.
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

    /// What is to leave next. [`poll_more`](Self::poll_more) finds more where this is empty.
    pub(super) fn next(&self) -> &[u8] {
        match &self.request.outgoing.bytes()[self.left..] {
            [] => &self.buffer.bytes()[..self.leaving],
            kept => kept,
        }
    }

    /// So much of it has left.
    pub(super) fn has_left(&mut self, count: usize) {
        self.moved = true;
        if self.left < self.request.outgoing.bytes().len() {
            self.left += count;
        } else {
            self.buffer.consume(count);
            self.leaving -= count;
        }
    }

    /// Whether all of the request has left.
    pub(super) fn is_over(&self) -> bool {
        self.request.body.is_over() && self.next().is_empty()
    }

    /// Whether the whole request was heard and can be sent once more.
    pub(super) fn is_kept_whole(&self) -> bool {
        self.is_kept && self.request.body.is_over()
    }

    /// Whether it could be kept whole, if the client were asked for the rest of it.
    pub(super) fn could_be_kept(&self) -> bool {
        self.is_kept && !self.request.expects_word
    }

    /// Finds the next piece of the body, and says whether there is one. Nothing may be waiting to leave, unless it is
    /// kept.
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

    /// Hears the rest of the body into what is kept, as far as that goes, without sending it.
    pub(super) fn poll_collect(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        while self.is_kept && ready!(self.poll_more(cx))? {}
        Poll::Ready(Ok(()))
    }

    /// Whether the client has gone away, where all of its request was heard: whoever does that wants no answer, and an
    /// answer that nobody wants is paid for all the same.
    pub(super) fn is_abandoned(&mut self, cx: &mut Context<'_>) -> bool {
        self.buffer.is_empty() && matches!(self.buffer.poll_fill(cx, self.client), Poll::Ready(Ok(0) | Err(_)))
    }
}
