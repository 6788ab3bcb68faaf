//! Relays one request to an upstream that speaks HTTP/1.1. Sends the body and reads the response at the same time,
//! without changing the bytes of either body. Each side is read only as fast as the other accepts the data.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use super::buffer::ReadBuffer;
use super::framing::{Framing, Malformed};
use super::incoming::{Failed, Incoming};
use super::response::{self, Response};
use super::{Answering, Ended};
use crate::http::Stream;

/// A request in progress.
pub(super) struct Relay<'a, S> {
    incoming: Incoming<'a, S>,
    line: Stream,
    answer: ReadBuffer,
    is_flushed: bool,
    /// The rest of the request cannot be sent. A response can still arrive.
    is_cut: bool,
    response: Option<Response>,
    /// A rewritten head, if the received one has to change.
    own_head: Vec<u8>,
    /// The number of bytes at the front of `answer` that can be passed on.
    passing: usize,
    answering: Answering,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Relay<'a, S> {
    pub(super) fn new(incoming: Incoming<'a, S>, line: Stream, answering: Answering) -> Self {
        Relay {
            incoming,
            line,
            answer: ReadBuffer::default(),
            is_flushed: true,
            is_cut: false,
            response: None,
            own_head: Vec::new(),
            passing: 0,
            answering,
        }
    }

    pub(super) fn incoming(&mut self) -> &mut Incoming<'a, S> {
        &mut self.incoming
    }

    pub(super) fn answering(&mut self) -> &mut Answering {
        &mut self.answering
    }

    /// The connection, if it can take another request.
    pub(super) fn into_line(self) -> Option<Stream> {
        let may_stay = self.response.as_ref().is_some_and(|response| response.may_stay && response.body.is_over());
        (may_stay && !self.is_cut && self.incoming.is_over() && self.answer.is_empty()).then_some(self.line)
    }

    /// Passes on the response that was held back as [`Ended::Rejected`].
    pub(super) fn pass_on(&mut self) -> Result<(), Failed> {
        self.answering.may_reject = false;
        self.begin_answer()
    }

    /// Makes progress until it has to wait.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ended, Failed>> {
        let up = match self.poll_up(cx) {
            Poll::Ready(Err(Up::Client(failed))) => return Poll::Ready(Err(self.answering.too_late_for(failed))),
            Poll::Ready(Err(Up::Line(_))) => {
                self.is_cut = true;
                Poll::Ready(())
            }
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        };
        let down = self.poll_down(cx);
        if down.is_pending() && up.is_ready() && self.incoming.is_abandoned(cx) {
            return Poll::Ready(Err(Failed::Abandoned));
        }
        down
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Up>> {
        while !self.is_cut {
            let next = self.incoming.next();
            if !next.is_empty() {
                let count = ready!(write(cx, &mut self.line, next))?;
                self.incoming.has_left(count);
                self.is_flushed = matches!(self.line, Stream::Plain(_));
                continue;
            }
            if !self.is_flushed {
                self.is_flushed = Pin::new(&mut self.line).poll_flush(cx)?.is_ready();
            }
            if !ready!(self.incoming.poll_more(cx))? {
                return if self.is_flushed { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ended, Failed>> {
        loop {
            if !self.own_head.is_empty() {
                let count = ready!(write(cx, self.incoming.client, &self.own_head)).map_err(|_| Failed::Abandoned)?;
                self.own_head.drain(..count);
                self.passed(count);
                continue;
            }
            if self.passing > 0 {
                let piece = &self.answer.bytes()[..self.passing];
                let count = ready!(write(cx, self.incoming.client, piece)).map_err(|_| Failed::Abandoned)?;
                self.answer.consume(count);
                self.passing -= count;
                self.passed(count);
                continue;
            }
            if self.response.as_ref().is_some_and(|response| response.body.is_over()) {
                let may_stay = !self.answering.closes && self.incoming.request.body.is_over();
                return Poll::Ready(Ok(Ended::Answered { may_stay }));
            }
            if !self.answer.is_empty() && self.response.is_none() && self.read_head()? {
                if self.answering.may_reject && self.answering.status == Some(401) {
                    return Poll::Ready(Ok(Ended::Rejected));
                }
                continue;
            }
            match ready!(self.answer.poll_fill(cx, &mut self.line)) {
                Ok(1..) => self.incoming.moved = true,
                Ok(0) | Err(_) => return Poll::Ready(self.line_ended()),
            }
            self.pass_body()?;
        }
    }

    /// Reads the head of a response. Returns whether there is something to do next.
    fn read_head(&mut self) -> Result<bool, Failed> {
        let request = &*self.incoming.request;
        match response::read(&mut self.answer, request.is_head).map_err(|Malformed| Failed::BadAnswer)? {
            None if self.answer.is_full() => Err(Failed::BadAnswer),
            None => Ok(false),
            // Only a client that sent `Expect` receives a 100. Every client receives other interim responses.
            Some(interim) if interim.status == 100 && !request.expects_word => {
                self.answer.consume(interim.head_length);
                Ok(!self.answer.is_empty())
            }
            Some(interim) if interim.is_interim() => {
                self.passing = interim.head_length;
                Ok(true)
            }
            Some(response) => {
                self.answering.status = Some(response.status);
                let is_held_back = self.answering.may_reject && response.status == 401;
                self.response = Some(response);
                if !is_held_back {
                    self.begin_answer()?;
                }
                Ok(true)
            }
        }
    }

    fn begin_answer(&mut self) -> Result<(), Failed> {
        let Some(response) = &self.response else { return Ok(()) };
        self.answering.closes |= matches!(response.body, Framing::UntilClose);
        if self.answering.closes {
            let head = &self.answer.bytes()[..response.head_length - 2];
            self.own_head = [head, b"connection: close\r\n\r\n"].concat();
            self.answer.consume(response.head_length);
        } else {
            self.passing = response.head_length;
        }
        self.pass_body()
    }

    /// Adds the bytes that belong to the response to those that can be passed on.
    fn pass_body(&mut self) -> Result<(), Failed> {
        if let Some(response) = &mut self.response {
            let behind = &self.answer.bytes()[self.passing..];
            self.passing += response.body.advance(behind).map_err(|Malformed| Failed::Broken)?;
        }
        Ok(())
    }

    fn line_ended(&mut self) -> Result<Ended, Failed> {
        match &self.response {
            Some(Response { body: Framing::UntilClose, .. }) => Ok(Ended::Answered { may_stay: false }),
            Some(_) => Err(Failed::Broken),
            None if self.answering.has_begun => Err(Failed::Broken),
            None if !self.answer.is_empty() => Err(Failed::BadAnswer),
            None => Err(Failed::NoAnswer(false)),
        }
    }

    fn passed(&mut self, count: usize) {
        self.answering.bytes_out += count as u64;
        self.answering.has_begun = true;
        self.incoming.moved = true;
    }
}

/// Why a request cannot be sent.
enum Up {
    Client(Failed),
    Line(#[expect(dead_code, reason = "the answer, or its absence, says more")] io::Error),
}

impl From<Failed> for Up {
    fn from(failed: Failed) -> Up {
        Up::Client(failed)
    }
}

impl From<io::Error> for Up {
    fn from(error: io::Error) -> Up {
        Up::Line(error)
    }
}

/// Writes once. Writing zero bytes is an error.
pub(super) fn write<W: AsyncWrite + Unpin>(cx: &mut Context<'_>, to: &mut W, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(written),
    }
}
