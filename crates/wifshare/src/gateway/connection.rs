//! The life of one client connection: for each request, check it, add the credential, forward it, pass the response on
//! and record it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};

use super::admission::{AccessPolicy, Refusal, Way};
use super::buffer::ReadBuffer;
use super::caller::{Caller, Peer};
use super::connections::{ConnectionEntry, Doing};
use super::incoming::{Bounds, Failed, Incoming};
use super::request::{self, Request};
use super::upstream::Line;
use super::{Answering, Ended, Served, Shared, answer, batches, http1, http2};

pub(super) async fn attend<S>(mut stream: S, peer: Peer, entry: Arc<ConnectionEntry>, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut connection = Connection {
        stream: &mut stream,
        buffer: ReadBuffer::default(),
        watchdog: Watchdog::new(),
        shared: &shared,
        entry: &entry,
        caller: Arc::new(Caller::at(peer)),
        is_known: false,
    };
    if connection.attend().await {
        answer::drain_and_close(&mut stream).await;
    }
}

struct Connection<'a, S> {
    stream: &'a mut S,
    buffer: ReadBuffer,
    watchdog: Watchdog,
    shared: &'a Shared,
    entry: &'a ConnectionEntry,
    caller: Arc<Caller>,
    /// Whether the client has presented the capability.
    is_known: bool,
}

/// The numbers to record when a request is complete.
struct Account {
    start: Duration,
    status: u16,
    bytes_in: u64,
    bytes_out: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<'_, S> {
    /// Serves one request after another. Returns whether unread bytes can remain at the end.
    async fn attend(&mut self) -> bool {
        loop {
            self.entry.is(if self.is_known { Doing::Idle } else { Doing::Unauthenticated });
            let mut request = match self.request().await {
                Some(Ok(request)) => request,
                Some(Err(refusal)) => {
                    let start = (self.shared.clock.monotonic)();
                    let answer = answer::refusal(&refusal, true);
                    answer::write(self.stream, &answer).await;
                    let account =
                        Account { start, status: refusal.status, bytes_in: 0, bytes_out: answer.len() as u64 };
                    self.record("-", "-", &account);
                    return true;
                }
                None => return false,
            };
            self.buffer.consume(request.head_length);
            self.entry.is(Doing::Busy);
            if request.capability.is_ok() && !self.is_known {
                self.is_known = true;
                self.shared.lookups.find(&self.caller);
            }
            let mut account = Account { start: (self.shared.clock.monotonic)(), status: 0, bytes_in: 0, bytes_out: 0 };
            let may_stay = match request.way {
                Way::Token => Box::pin(self.token(&mut request, &mut account)).await,
                Way::Out => self.forward(&mut request, &mut account).await,
            };
            self.record(request.outgoing.method(), request.outgoing.path(), &account);
            if !may_stay {
                return true;
            }
            if self.shared.is_closing.load(Ordering::Relaxed) {
                return false;
            }
        }
    }

    /// Reads the next request. Returns `None` if the client has left, or after a timeout.
    async fn request(&mut self) -> Option<Result<Request, Refusal>> {
        const TOO_LONG: Refusal = Refusal::new(431, "the head of the request is too large");
        let limits = &self.shared.limits;
        let idle = if self.is_known { limits.idle } else { limits.head };
        self.watchdog.begin();
        poll_fn(|cx| {
            loop {
                if !self.buffer.is_empty() {
                    let bytes = self.buffer.bytes();
                    let destination = &self.shared.upstream.destination;
                    match request::read(bytes, &self.shared.policy, destination, limits.largest_body) {
                        Ok(Some(request)) => return Poll::Ready(Some(Ok(request))),
                        Err(refusal) => return Poll::Ready(Some(Err(refusal))),
                        Ok(None) if self.buffer.is_full() => return Poll::Ready(Some(Err(TOO_LONG))),
                        Ok(None) => {}
                    }
                }
                let was_empty = self.buffer.is_empty();
                match self.buffer.poll_fill(cx, self.stream) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                    // Only the first byte of a head starts the timeout, so that a slow client cannot prolong it.
                    Poll::Ready(Ok(_)) if was_empty => self.watchdog.begin(),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => {
                        let patience = if self.buffer.is_empty() { idle } else { limits.head };
                        ready!(self.watchdog.poll(cx, patience));
                        return Poll::Ready(None);
                    }
                }
            }
        })
        .await
    }

    /// Forwards a request and passes the response on. Returns whether the connection can take another request.
    async fn forward(&mut self, request: &mut Request, account: &mut Account) -> bool {
        const UNREADABLE: Refusal = Refusal::new(502, "the API's answer about batches is compressed or not UTF-8");
        let mut held = match self.shared.credential().await {
            Ok(held) => held,
            Err(refusal) => return self.refuse(&refusal, request, account).await,
        };
        request.outgoing.set_access_token(held.access_token.expose());
        let Ok(there) = request.body.advance(self.buffer.bytes()) else {
            return self.refuse(&Refusal::new(400, "the body is not what its head says"), request, account).await;
        };
        request.outgoing.keep(&self.buffer.bytes()[..there]);
        self.buffer.consume(there);
        account.bytes_in += there as u64;
        let mut may_reject = true;
        let mut must_be_new = false;
        let hold_addresses = batches::hold_addresses(request.outgoing.method(), request.outgoing.path());
        loop {
            let line = match must_be_new {
                true => self.shared.upstream.new_line().await,
                false => self.shared.upstream.line().await,
            };
            let line = match line {
                Ok(line) => line,
                Err(cause) => return self.refuse(&unreachable(&cause), request, account).await,
            };
            let was_used = matches!(line, Line::Http1(_, true));
            let closes = !request.may_stay || self.shared.is_closing.load(Ordering::Relaxed);
            let answering = Answering { may_reject, closes, ..Answering::default() };
            let kept_body = self.shared.limits.kept_body;
            let bounds = Bounds { largest_body: self.shared.limits.largest_body, kept_body };
            let can_send_again = request.body.is_over();
            let mut client = batches::Client::new(self.stream, hold_addresses);
            let incoming = Incoming::new(&mut client, &mut self.buffer, request, bounds, true);
            let mut relay = match line {
                Line::Http1(line, _) => Relay::Http1(http1::Relay::new(incoming, line, answering)),
                Line::Http2(line) => {
                    let scheme = self.shared.upstream.scheme();
                    match Box::pin(http2::begin(incoming, line, answering, scheme)).await {
                        Ok(relay) => Relay::Http2(Box::new(relay)),
                        Err(Failed::NoAnswer(true)) if can_send_again && !must_be_new => {
                            must_be_new = true;
                            continue;
                        }
                        Err(failed) => return self.fail(failed, false, request, account).await,
                    }
                }
            };
            self.watchdog.begin();
            let mut ended = relay.run(&mut self.watchdog, &self.shared.limits).await;
            if let Ok(Ended::Rejected) = ended {
                let renewed = match relay.collect(&mut self.watchdog, &self.shared.limits).await {
                    Ok(true) => self.shared.successor_of(&held).await,
                    // The request cannot be sent again, but the credential is still reported as invalid.
                    Ok(false) => {
                        self.shared.reject(&held);
                        None
                    }
                    Err(failed) => {
                        drop(relay);
                        return self.fail(failed, false, request, account).await;
                    }
                };
                match renewed {
                    Some(renewed) => {
                        drop(relay);
                        held = renewed;
                        request.outgoing.set_access_token(held.access_token.expose());
                        may_reject = false;
                        continue;
                    }
                    None => {
                        ended = match relay.pass_on() {
                            Ok(()) => relay.run(&mut self.watchdog, &self.shared.limits).await,
                            Err(failed) => Err(failed),
                        };
                    }
                }
            }
            let answering = relay.answering();
            account.bytes_out += answering.bytes_out;
            account.status = answering.status.unwrap_or(0);
            let has_begun = answering.has_begun;
            let incoming = relay.incoming();
            account.bytes_in += incoming.bytes_in;
            let is_kept_whole = incoming.is_kept_whole();
            let line = relay.into_line();
            let is_held = client.holds();
            match ended {
                Ok(Ended::Answered { may_stay }) => {
                    if let Some(answer) = client.answer() {
                        let addresses = self.shared.upstream.addresses(&self.shared.policy.host);
                        let Ok(answer) = addresses.replaced_in(answer) else {
                            return self.refuse(&UNREADABLE, request, account).await;
                        };
                        account.bytes_out = answer.len() as u64;
                        if !answer::write(self.stream, &answer).await {
                            return false;
                        }
                    }
                    if let Some(line) = line {
                        self.shared.upstream.give_back(line);
                    }
                    return may_stay;
                }
                Ok(Ended::Rejected) => return false,
                Err(Failed::NoAnswer(nothing_was_done))
                    if !has_begun
                        && is_kept_whole
                        && !must_be_new
                        && (nothing_was_done || (was_used && request.is_idempotent)) =>
                {
                    must_be_new = true;
                }
                // The client has received nothing yet, because the broken response was held back.
                Err(Failed::Broken) if is_held => {
                    return self.fail(Failed::BadAnswer, false, request, account).await;
                }
                Err(failed) => return self.fail(failed, has_begun && !is_held, request, account).await,
            }
        }
    }

    /// Answers instead of the token endpoint: a client that signs in itself receives the capability as its access
    /// token. Nothing is forwarded.
    async fn token(&mut self, request: &mut Request, account: &mut Account) -> bool {
        const LARGEST: usize = 64 * 1024;
        const METHOD: Refusal = Refusal::new(405, "the token endpoint answers POST");
        const TOO_LARGE: Refusal = Refusal::new(413, "the request for a token is too large");
        const CROWDED: Refusal = Refusal::new(503, "too many clients without the capability ask for a token");
        const NOBODY: Refusal = Refusal::new(401, "only a child of this gateway's run is given its capability");
        if request.outgoing.method() != "POST" {
            return self.refuse(&METHOD, request, account).await;
        }
        request.outgoing.set_access_token("");
        let bounds = Bounds { largest_body: LARGEST as u64, kept_body: LARGEST };
        let mut incoming = Incoming::new(self.stream, &mut self.buffer, request, bounds, true);
        let watchdog = &mut self.watchdog;
        watchdog.begin();
        let body = poll_fn(|cx| match incoming.poll_collect(cx) {
            Poll::Pending => {
                ready!(watchdog.poll(cx, self.shared.limits.head));
                Poll::Ready(Err(Failed::Abandoned))
            }
            ended => ended,
        });
        let heard = body.await;
        account.bytes_in += incoming.bytes_in;
        let is_whole = incoming.is_kept_whole();
        match heard {
            Ok(()) if is_whole => {}
            Ok(()) => return self.refuse(&TOO_LARGE, request, account).await,
            Err(failed) => return self.fail(failed, false, request, account).await,
        }
        let knows_it = request.capability.is_ok() || is_assertion(&self.shared.policy, request);
        if !knows_it {
            match self.shared.lookups.is_child(&self.caller).await {
                Some(true) => {}
                Some(false) => return self.refuse(&NOBODY, request, account).await,
                None => return self.refuse(&CROWDED, request, account).await,
            }
        }
        self.is_known = true;
        let closes = !request.may_stay;
        let answer = answer::token(&self.shared.policy.capability, closes);
        account.status = 200;
        account.bytes_out = answer.len() as u64;
        answer::write(self.stream, &answer).await && !closes
    }

    /// Sends an error response. Keeps the connection only if the request was read to its end.
    async fn refuse(&mut self, refusal: &Refusal, request: &Request, account: &mut Account) -> bool {
        let closes = !request.body.is_over() || !request.may_stay || self.shared.is_closing.load(Ordering::Relaxed);
        let answer = answer::refusal(refusal, closes);
        account.status = refusal.status;
        account.bytes_out = answer.len() as u64;
        answer::write(self.stream, &answer).await && !closes
    }

    async fn fail(&mut self, failed: Failed, has_begun: bool, request: &Request, account: &mut Account) -> bool {
        const NO_ANSWER: Refusal = Refusal::new(502, "the API closed the connection before it answered");
        const BAD_ANSWER: Refusal = Refusal::new(502, "what came back from the API is no answer");
        const LATE: Refusal = Refusal::new(504, "the API did not answer in time");
        let refusal = match failed {
            _ if has_begun => return false,
            Failed::Abandoned => {
                // nginx uses 499 for a client that closed its request.
                account.status = 499;
                return false;
            }
            Failed::Broken => return false,
            Failed::Client(refusal) => refusal,
            Failed::NoAnswer(_) => NO_ANSWER,
            Failed::BadAnswer => BAD_ANSWER,
            Failed::Late => LATE,
        };
        self.refuse(&refusal, request, account).await
    }

    fn record(&self, method: &str, path: &str, account: &Account) {
        (self.shared.record)(&Served {
            method,
            path,
            status: account.status,
            bytes_in: account.bytes_in,
            bytes_out: account.bytes_out,
            took: (self.shared.clock.monotonic)().saturating_sub(account.start),
            caller: &self.caller,
        });
    }
}

/// Whether the client presented the capability as its assertion (RFC 7523 §2.1).
fn is_assertion(policy: &AccessPolicy, request: &Request) -> bool {
    #[derive(serde::Deserialize)]
    struct Grant<'a> {
        #[serde(borrow)]
        assertion: &'a str,
    }
    let content = request.content();
    serde_json::from_slice(&content).is_ok_and(|Grant { assertion }| policy.is_capability(assertion.as_bytes()))
}

fn unreachable(cause: &str) -> Refusal {
    let message = format!("could not connect to the API: {}", crate::message::safe_text(cause));
    Refusal { status: 502, message: message.into() }
}

/// A request in progress, for either protocol of the upstream.
#[expect(clippy::large_enum_variant, reason = "the larger one is the one that must not cost an allocation")]
enum Relay<'a, S> {
    Http1(http1::Relay<'a, S>),
    Http2(Box<http2::Relay<'a, S>>),
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Relay<'a, S> {
    async fn run(&mut self, watchdog: &mut Watchdog, limits: &super::Limits) -> Result<Ended, Failed> {
        poll_fn(|cx| {
            let ended = match self {
                Relay::Http1(relay) => relay.poll(cx),
                Relay::Http2(relay) => relay.poll(cx),
            };
            match ended {
                Poll::Pending => self.poll_late(cx, watchdog, limits),
                ended => ended,
            }
        })
        .await
    }

    /// Reads the rest of the body while a 401 is held back. Returns whether the request can be sent again.
    async fn collect(&mut self, watchdog: &mut Watchdog, limits: &super::Limits) -> Result<bool, Failed> {
        let incoming = self.incoming();
        if incoming.could_be_kept() {
            watchdog.begin();
            poll_fn(|cx| match incoming.poll_collect(cx) {
                Poll::Pending => {
                    ready!(watchdog.poll(cx, limits.body));
                    Poll::Ready(Err(Failed::Abandoned))
                }
                ended => ended,
            })
            .await?;
        }
        Ok(self.incoming().is_kept_whole())
    }

    /// Ends a request that has made no progress until its timeout.
    fn poll_late(
        &mut self,
        cx: &mut Context<'_>,
        watchdog: &mut Watchdog,
        limits: &super::Limits,
    ) -> Poll<Result<Ended, Failed>> {
        let incoming = self.incoming();
        if std::mem::take(&mut incoming.moved) {
            watchdog.begin();
        }
        let is_heard = incoming.request.body.is_over();
        ready!(watchdog.poll(cx, if is_heard { limits.answer } else { limits.body }));
        Poll::Ready(Err(if is_heard { Failed::Late } else { Failed::Abandoned }))
    }

    fn pass_on(&mut self) -> Result<(), Failed> {
        match self {
            Relay::Http1(relay) => relay.pass_on(),
            Relay::Http2(relay) => relay.pass_on(),
        }
    }

    fn incoming(&mut self) -> &mut Incoming<'a, S> {
        match self {
            Relay::Http1(relay) => relay.incoming(),
            Relay::Http2(relay) => relay.incoming(),
        }
    }

    fn answering(&mut self) -> &mut Answering {
        match self {
            Relay::Http1(relay) => relay.answering(),
            Relay::Http2(relay) => relay.answering(),
        }
    }

    fn into_line(self) -> Option<crate::http::Stream> {
        match self {
            Relay::Http1(relay) => relay.into_line(),
            Relay::Http2(_) => None,
        }
    }
}

/// An inactivity timeout. To set its timer rarely, it ticks once a second and counts the ticks since the last activity.
struct Watchdog {
    timer: Pin<Box<Sleep>>,
    rung: u32,
}

impl Watchdog {
    const TICK: Duration = Duration::from_secs(1);

    fn new() -> Watchdog {
        Watchdog { timer: Box::pin(sleep(Self::TICK)), rung: 0 }
    }

    /// Restarts the timeout.
    fn begin(&mut self) {
        self.rung = 0;
    }

    /// Ready after `patience` without activity, to within one tick.
    fn poll(&mut self, cx: &mut Context<'_>, patience: Duration) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            self.rung += 1;
            self.timer.as_mut().reset(Instant::now() + Self::TICK);
            if Self::TICK * self.rung > patience {
                self.rung = 0;
                return Poll::Ready(());
            }
        }
    }
}
