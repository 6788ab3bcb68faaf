//! Relays one request to an upstream that speaks HTTP/2: like `http1`, and translates the framing.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite};

use super::framing::{Framing, Malformed, Piece};
use super::http1::write;
use super::incoming::{Failed, Incoming};
use super::upstream::Shared;
use super::{Answering, Ended};

/// A request in progress.
pub(super) struct Relay<'a, S> {
    incoming: Incoming<'a, S>,
    answering: Answering,
    /// Held while the request is in progress, to count the requests on the connection.
    _shared: Shared,
    send: SendStream<Bytes>,
    /// A second parser of the body, which finds its content.
    body: Framing,
    /// The number of bytes of content at the front of the data to send.
    content: usize,
    is_sent: bool,
    is_cut: bool,
    response: ResponseFuture,
    receive: Option<RecvStream>,
    /// Whether the client receives chunks, because the length is not known in advance.
    in_chunks: bool,
    /// The head of a response that is held back.
    held_back: Option<http::Response<()>>,
    /// What to write to the client next: heads and framing, then content, then framing.
    before: Vec<u8>,
    data: Bytes,
    after: &'static [u8],
    is_over: bool,
}

/// Sends the head of a request, and ends the stream if there is no body.
pub(super) async fn begin<'a, S: AsyncRead + AsyncWrite + Unpin>(
    incoming: Incoming<'a, S>,
    shared: Shared,
    answering: Answering,
    scheme: &str,
) -> Result<Relay<'a, S>, Failed> {
    let head = head_of(incoming.request.outgoing.head(), scheme).ok_or(Failed::BadAnswer)?;
    let is_sent = matches!(incoming.request.declared, Framing::Length(0));
    let mut line = shared.line.clone().ready().await.map_err(|_| Failed::NoAnswer(true))?;
    let (response, send) = line.send_request(head, is_sent).map_err(|error| no_answer(&error))?;
    let body = incoming.request.declared.again();
    let mut relay = Relay {
        incoming,
        answering,
        _shared: shared,
        send,
        body,
        content: 0,
        is_sent,
        is_cut: false,
        response,
        receive: None,
        in_chunks: false,
        held_back: None,
        before: Vec::new(),
        data: Bytes::new(),
        after: b"",
        is_over: false,
    };
    let head_length = relay.incoming.request.outgoing.head().len();
    relay.incoming.has_left(head_length);
    Ok(relay)
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Relay<'a, S> {
    pub(super) fn incoming(&mut self) -> &mut Incoming<'a, S> {
        &mut self.incoming
    }

    pub(super) fn answering(&mut self) -> &mut Answering {
        &mut self.answering
    }

    /// Passes on the response that was held back as [`Ended::Rejected`].
    pub(super) fn pass_on(&mut self) -> Result<(), Failed> {
        self.answering.may_reject = false;
        if let Some(head) = self.held_back.take() {
            self.begin_answer(&head);
        }
        Ok(())
    }

    /// Makes progress until it has to wait.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ended, Failed>> {
        let up = match self.poll_up(cx) {
            Poll::Ready(Err(Up::Client(failed))) => {
                self.send.send_reset(Reason::CANCEL);
                return Poll::Ready(Err(self.answering.too_late_for(failed)));
            }
            Poll::Ready(Err(Up::Line)) => {
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
        /// The capacity to reserve at once. A larger piece would be buffered here until the peer accepts it.
        const PIECE: usize = 64 * 1024;
        while !self.is_sent && !self.is_cut {
            if self.content > 0 {
                self.send.reserve_capacity(self.content.min(PIECE));
                while self.send.capacity() == 0 {
                    match ready!(self.send.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return Poll::Ready(Err(Up::Line)),
                    }
                }
                let count = self.send.capacity().min(self.content).min(PIECE);
                let data = Bytes::copy_from_slice(&self.incoming.next()[..count]);
                self.send.send_data(data, false).map_err(|_| Up::Line)?;
                self.incoming.has_left(count);
                self.content -= count;
                continue;
            }
            match self.body.next(self.incoming.next()) {
                Ok(Some(Piece::Content(count))) => self.content = count,
                Ok(Some(Piece::Frame(count))) => self.incoming.has_left(count),
                Ok(None) if self.body.is_over() => {
                    self.is_sent = true;
                    let trailers = trailers_of(self.body.trailers());
                    let ended = match trailers.is_empty() {
                        true => self.send.send_data(Bytes::new(), true),
                        false => self.send.send_trailers(trailers),
                    };
                    ended.map_err(|_| Up::Line)?;
                }
                Ok(None) => {
                    ready!(self.incoming.poll_more(cx)).map_err(Up::Client)?;
                }
                Err(Malformed) => return Poll::Ready(Err(Up::Line)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ended, Failed>> {
        loop {
            ready!(self.poll_write(cx))?;
            if self.is_over {
                if !self.is_sent {
                    // The response is complete, so the rest of the request is not needed (RFC 9113 §8.1).
                    self.send.send_reset(Reason::NO_ERROR);
                }
                let may_stay = !self.answering.closes && self.incoming.request.body.is_over();
                return Poll::Ready(Ok(Ended::Answered { may_stay }));
            }
            let Some(receive) = &mut self.receive else {
                ready!(self.poll_head(cx))?;
                if self.held_back.is_some() {
                    return Poll::Ready(Ok(Ended::Rejected));
                }
                continue;
            };
            match ready!(receive.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    if self.in_chunks {
                        write!(self.before, "{:x}\r\n", data.len()).expect("memory takes it");
                        self.after = b"\r\n";
                    }
                    self.data = data;
                }
                Some(Err(_)) => return Poll::Ready(Err(Failed::Broken)),
                None => {
                    let trailers = ready!(receive.poll_trailers(cx)).map_err(|_| Failed::Broken)?;
                    if self.in_chunks {
                        self.before.extend_from_slice(b"0\r\n");
                        fields(&mut self.before, &trailers.unwrap_or_default());
                        self.before.extend_from_slice(b"\r\n");
                    }
                    self.is_over = true;
                }
            }
            self.incoming.moved = true;
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        if let Poll::Ready(Some(Ok(interim))) = self.response.poll_informational(cx) {
            if interim.status() != 100 || self.incoming.request.expects_word {
                status_line(&mut self.before, interim.status());
                fields(&mut self.before, interim.headers());
                self.before.extend_from_slice(b"\r\n");
            }
            return Poll::Ready(Ok(()));
        }
        let response = ready!(Pin::new(&mut self.response).poll(cx))
            .map_err(|error| if self.answering.has_begun { Failed::Broken } else { no_answer(&error) })?;
        let (head, receive) = response.into_parts();
        let head = http::Response::from_parts(head, ());
        self.receive = Some(receive);
        self.answering.status = Some(head.status().as_u16());
        match self.answering.may_reject && head.status() == 401 {
            true => self.held_back = Some(head),
            false => self.begin_answer(&head),
        }
        Poll::Ready(Ok(()))
    }

    fn begin_answer(&mut self, head: &http::Response<()>) {
        let status = head.status().as_u16();
        let has_body = !self.incoming.request.is_head && !matches!(status, 204 | 304);
        self.in_chunks = has_body && !head.headers().contains_key(CONTENT_LENGTH);
        status_line(&mut self.before, head.status());
        fields(&mut self.before, head.headers());
        if self.in_chunks {
            self.before.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        if self.answering.closes {
            self.before.extend_from_slice(b"connection: close\r\n");
        }
        self.before.extend_from_slice(b"\r\n");
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        // Send a small response in one write.
        if !self.before.is_empty() && self.data.len() <= 16 * 1024 {
            self.before.extend_from_slice(&self.data);
            self.before.extend_from_slice(std::mem::take(&mut self.after));
            self.release(self.data.len());
            self.data.clear();
        }
        while !self.before.is_empty() {
            let count = ready!(write(cx, self.incoming.client, &self.before)).map_err(|_| Failed::Abandoned)?;
            self.before.drain(..count);
            self.passed(count);
        }
        while !self.data.is_empty() {
            let count = ready!(write(cx, self.incoming.client, &self.data)).map_err(|_| Failed::Abandoned)?;
            self.data.advance(count);
            // Grant the peer more capacity only now, so that a slow client slows down the sender.
            self.release(count);
            self.passed(count);
        }
        while !self.after.is_empty() {
            let count = ready!(write(cx, self.incoming.client, self.after)).map_err(|_| Failed::Abandoned)?;
            self.after = &self.after[count..];
            self.passed(count);
        }
        Poll::Ready(Ok(()))
    }

    fn release(&mut self, count: usize) {
        if let Some(receive) = self.receive.as_mut().filter(|_| count > 0) {
            // An error means that the stream has ended. The next read reports it.
            let _ = receive.flow_control().release_capacity(count);
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
    Line,
}

/// The failure of a request without a response, and whether the peer did not process it (RFC 9113 §8.7).
fn no_answer(error: &h2::Error) -> Failed {
    Failed::NoAnswer(error.reason() == Some(Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote()))
}

/// Converts an HTTP/1.1 head to HTTP/2.
fn head_of(head: &[u8], scheme: &str) -> Option<http::Request<()>> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut read = httparse::Request::new(&mut headers);
    read.parse(head).ok()?;
    let authority = read.headers.iter().find(|header| header.name == "host")?.value;
    let target = read.path?;
    let uri = http::Uri::builder().scheme(scheme).authority(authority).path_and_query(target).build().ok()?;
    let mut request = http::Request::builder().method(read.method?).uri(uri).version(http::Version::HTTP_2);
    for header in &*read.headers {
        let mut value = HeaderValue::from_bytes(header.value).ok()?;
        match header.name {
            "host" | "connection" => continue,
            name if name.eq_ignore_ascii_case("transfer-encoding") => continue,
            // Keep it out of the header compression tables of both sides.
            "authorization" => value.set_sensitive(true),
            _ => {}
        }
        request = request.header(HeaderName::from_bytes(header.name.as_bytes()).ok()?, value);
    }
    request.body(()).ok()
}

fn trailers_of(lines: &[u8]) -> HeaderMap {
    let fields = lines.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
    });
    fields.collect()
}

fn status_line(to: &mut Vec<u8>, status: http::StatusCode) {
    let reason = status.canonical_reason().unwrap_or_default();
    write!(to, "HTTP/1.1 {} {reason}\r\n", status.as_u16()).expect("memory takes it");
}

fn fields(to: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        to.extend_from_slice(name.as_str().as_bytes());
        to.extend_from_slice(b": ");
        to.extend_from_slice(value.as_bytes());
        to.extend_from_slice(b"\r\n");
    }
}
