//! The one place where requests go: connections that are open already, and new ones.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Uri;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::SemaphorePermit;

use super::Limits;
use super::batches::Addresses;
use super::request::Destination;
use crate::clock::Clock;
use crate::http::{BoxError, Connector, Stage, Stream, chain};

/// The API behind the gateway.
pub(super) struct Upstream {
    connector: Connector,
    url: Uri,
    pub(super) destination: Destination,
    clock: Clock,
    tls: Mutex<Option<Arc<ClientConfig>>>,
    limits: Limits,
    idle: Mutex<Vec<Idle>>,
    http2: Mutex<Vec<Many>>,
    /// Rung when something is open that may have to be closed.
    has_opened: tokio::sync::Notify,
    /// Held while somebody finds out whether the other side speaks HTTP/2: one connection may do for all.
    finding_out: tokio::sync::Mutex<()>,
    /// Permits to connect: of a thousand requests at one moment most find a connection that has come back meanwhile.
    connecting: tokio::sync::Semaphore,
    speaks_http1: AtomicBool,
}

/// A connection to send a request on.
pub(super) enum Line {
    /// For one request at a time; and whether it was used before.
    Http1(Stream, bool),
    /// For many.
    Http2(Shared),
}

/// A connection that many requests share; each holds a copy, so that their number is known.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) line: SendRequest<Bytes>,
    users: Arc<()>,
}

struct Idle {
    stream: Stream,
    since: Duration,
}

struct Many {
    shared: Shared,
    /// Whether nobody had it when somebody looked, nor has taken it since.
    is_quiet: bool,
}

impl Upstream {
    /// At this base URL, which was checked before: https, or http on this machine.
    pub(super) fn new(base_url: &Uri, connector: Connector, clock: Clock, limits: Limits) -> Upstream {
        let authority = base_url.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        // Whoever wants no rest at all shall not keep us looking.
        let rest = limits.rest.max(Duration::from_millis(10));
        let base_path = base_url.path().trim_end_matches('/').to_owned();
        Upstream {
            connector,
            url: base_url.clone(),
            destination: Destination { authority, base_path },
            clock,
            tls: Mutex::default(),
            limits: Limits { rest, ..limits },
            idle: Mutex::default(),
            http2: Mutex::default(),
            has_opened: tokio::sync::Notify::new(),
            finding_out: tokio::sync::Mutex::new(()),
            connecting: tokio::sync::Semaphore::new(Self::AT_ONCE),
            speaks_http1: AtomicBool::new(base_url.scheme() == Some(&http::uri::Scheme::HTTP)),
        }
    }

    /// What the addresses in its answers become, for a gateway at this host.
    pub(super) fn addresses<'a>(&'a self, gateway: &'a str) -> Addresses<'a> {
        Addresses { api: &self.url, gateway }
    }

    /// As HTTP/2 wants to be told.
    pub(super) fn scheme(&self) -> &str {
        self.url.scheme_str().unwrap_or("https")
    }

    /// A connection: one that is open, or a new one.
    pub(super) async fn line(&self) -> Result<Line, String> {
        if let Some(line) = self.open_already() {
            return Ok(line);
        }
        let Ok(_turn) = tokio::time::timeout(self.limits.connect, self.turn()).await else {
            return Err(format!("others have been trying to for {} s", self.limits.connect.as_secs_f64()));
        };
        match self.open_already() {
            Some(line) => Ok(line),
            // On the heap: what it takes to connect would be kept room for by every request that need not.
            None => Box::pin(self.connect()).await,
        }
    }

    /// As many connect at one moment.
    const AT_ONCE: usize = 128;

    /// The permission to connect, and with it the task of finding out what the other side speaks, until that is known.
    async fn turn(&self) -> (Option<SemaphorePermit<'_>>, Option<tokio::sync::MutexGuard<'_, ()>>) {
        // Nobody closes the semaphore.
        let permit = self.connecting.acquire().await.ok();
        let finding_out = match self.speaks_http1.load(Ordering::Relaxed) {
            true => None,
            false => Some(self.finding_out.lock().await),
        };
        (permit, finding_out)
    }

    /// One on which nothing was sent before, for a request whose line turned out to be dead.
    pub(super) async fn new_line(&self) -> Result<Line, String> {
        Box::pin(self.connect()).await
    }

    /// Takes a connection back after its request, for another one.
    pub(super) fn give_back(&self, stream: Stream) {
        /// As many wait for work; a busier moment opens new ones.
        const MOST: usize = 1024;
        let since = (self.clock.monotonic)();
        let mut idle = lock(&self.idle);
        if idle.len() < MOST {
            idle.push(Idle { stream, since });
            self.has_opened.notify_one();
        }
    }

    /// Closes every connection that waits for a request; a new request opens a new one.
    pub(super) fn close_all(&self) {
        lock(&self.idle).clear();
        lock(&self.http2).clear();
    }

    /// Closes what nobody has used for a while, for as long as it is let. While nothing is open it does not wake up.
    pub(super) async fn tidy(&self) {
        loop {
            match self.close_the_rested() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => self.has_opened.notified().await,
            }
        }
    }

    /// Gives the time until it is worth another look.
    fn close_the_rested(&self) -> Option<Duration> {
        let mut lines = lock(&self.http2);
        lines.retain_mut(|many| {
            let is_used = Arc::strong_count(&many.shared.users) > 1;
            let was_quiet = std::mem::replace(&mut many.is_quiet, !is_used);
            is_used || !was_quiet
        });
        let again = (!lines.is_empty()).then_some(self.limits.rest);
        drop(lines);
        let now = (self.clock.monotonic)();
        let left = |idle: &Idle| self.limits.rest.saturating_sub(now.saturating_sub(idle.since));
        let mut idle = lock(&self.idle);
        idle.retain(|idle| !left(idle).is_zero());
        // They lie in the order in which they were given back.
        idle.first().map(left).into_iter().chain(again).min()
    }

    fn open_already(&self) -> Option<Line> {
        // A server allows so and so many requests at once; another connection costs less than waiting.
        const FULL: usize = 90;
        const MOST: usize = 8;
        {
            let mut lines = lock(&self.http2);
            let mut cx = Context::from_waker(Waker::noop());
            lines.retain_mut(|many| !matches!(many.shared.line.poll_ready(&mut cx), Poll::Ready(Err(_))));
            let room = |Many { shared, .. }: &Many| {
                Arc::strong_count(&shared.users) <= shared.line.current_max_send_streams().min(FULL)
            };
            let found = lines.iter().position(room).or((lines.len() >= MOST).then_some(0));
            if let Some(many) = found.and_then(|found| lines.get_mut(found)) {
                many.is_quiet = false;
                return Some(Line::Http2(many.shared.clone()));
            }
        }
        let now = (self.clock.monotonic)();
        loop {
            let mut idle = lock(&self.idle).pop()?;
            if now.saturating_sub(idle.since) < self.limits.rest && is_quiet(&mut idle.stream) {
                return Some(Line::Http1(idle.stream, true));
            }
        }
    }

    async fn connect(&self) -> Result<Line, String> {
        let patience = self.limits.connect;
        let stage = Stage::new();
        let options = self.connector.open(&self.url, || self.tls(), &stage);
        let stream = match tokio::time::timeout(patience, options).await {
            Ok(opened) => opened.map_err(|error| chain(&*error))?,
            Err(_) => return Err(format!("{} took longer than {} s", stage.get(), patience.as_secs_f64())),
        };
        if stream.protocol() != Some(b"h2") {
            self.speaks_http1.store(true, Ordering::Relaxed);
            return Ok(Line::Http1(stream, false));
        }
        let shared = self.begin_http2(stream).await.map_err(|error| chain(&error))?;
        lock(&self.http2).push(Many { shared: shared.clone(), is_quiet: false });
        self.has_opened.notify_one();
        Ok(Line::Http2(shared))
    }

    async fn begin_http2(&self, stream: Stream) -> Result<Shared, h2::Error> {
        // What is in flight on one stream, and on all of them: enough for a fast link, and a bound on what a slow
        // reader has us hold.
        let (line, mut connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_header_list_size(64 * 1024)
            .enable_push(false)
            .handshake::<_, Bytes>(stream)
            .await?;
        let mut pings = connection.ping_pong();
        tokio::spawn(async move {
            const PAUSE: Duration = Duration::from_secs(20);
            let asking = async {
                // A connection that is gone without a word answers no ping; its requests shall not wait for ever.
                while let Some(pings) = &mut pings {
                    tokio::time::sleep(PAUSE).await;
                    match tokio::time::timeout(PAUSE, pings.ping(h2::Ping::opaque())).await {
                        Ok(Ok(_)) => {}
                        _ => return,
                    }
                }
                std::future::pending::<()>().await;
            };
            // Errors reach the requests by themselves.
            tokio::select! { _ = connection => {}, () = asking => {} }
        });
        Ok(Shared { line, users: Arc::new(()) })
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, BoxError> {
        let mut tls = lock(&self.tls);
        if let Some(tls) = &*tls {
            return Ok(Arc::clone(tls));
        }
        let new = Arc::new(self.connector.tls(&[b"h2", b"http/1.1"])?);
        *tls = Some(Arc::clone(&new));
        Ok(new)
    }
}

/// Whether the other side has neither said anything nor left: then a request can be sent.
fn is_quiet(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
