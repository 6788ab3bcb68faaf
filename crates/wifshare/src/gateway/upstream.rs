//! Connections to the upstream: reuses open ones, and opens new ones.

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
    /// Notified when a connection is open that may have to be closed later.
    has_opened: tokio::sync::Notify,
    /// Held during the first connections, until the upstream's protocol is known: one HTTP/2 connection can serve all
    /// requests.
    finding_out: tokio::sync::Mutex<()>,
    /// Permits to connect. Most of a thousand simultaneous requests find a connection that was returned meanwhile.
    connecting: tokio::sync::Semaphore,
    speaks_http1: AtomicBool,
}

/// A connection to send a request on.
pub(super) enum Line {
    /// HTTP/1.1, for one request at a time; `true` if it was used before.
    Http1(Stream, bool),
    /// HTTP/2, for many requests.
    Http2(Shared),
}

/// An HTTP/2 connection. Each request holds a clone, which counts the requests.
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
    /// Whether it was unused at the last check, and has not been taken since.
    is_quiet: bool,
}

impl Upstream {
    /// Creates an upstream for a base URL that was checked before: https, or http on this machine.
    pub(super) fn new(base_url: &Uri, connector: Connector, clock: Clock, limits: Limits) -> Upstream {
        let authority = base_url.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        // A lower bound, so that a `rest` of zero does not cause a busy loop.
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

    /// The URLs to replace in responses, for a gateway at this host.
    pub(super) fn addresses<'a>(&'a self, gateway: &'a str) -> Addresses<'a> {
        Addresses { api: &self.url, gateway }
    }

    /// The scheme, for HTTP/2's `:scheme`.
    pub(super) fn scheme(&self) -> &str {
        self.url.scheme_str().unwrap_or("https")
    }

    /// Returns an idle connection, or opens a new one.
    pub(super) async fn line(&self) -> Result<Line, String> {
        if let Some(line) = self.open_already() {
            return Ok(line);
        }
        let Ok(_turn) = tokio::time::timeout(self.limits.connect, self.turn()).await else {
            return Err(format!("others have been trying to for {} s", self.limits.connect.as_secs_f64()));
        };
        match self.open_already() {
            Some(line) => Ok(line),
            // Boxed, so that requests that do not connect need no memory for it.
            None => Box::pin(self.connect()).await,
        }
    }

    /// The maximum number of simultaneous connection attempts.
    const AT_ONCE: usize = 128;

    /// Waits for the permission to connect, and, until the upstream's protocol is known, for the lock to find it out.
    async fn turn(&self) -> (Option<SemaphorePermit<'_>>, Option<tokio::sync::MutexGuard<'_, ()>>) {
        // The semaphore is never closed.
        let permit = self.connecting.acquire().await.ok();
        let finding_out = match self.speaks_http1.load(Ordering::Relaxed) {
            true => None,
            false => Some(self.finding_out.lock().await),
        };
        (permit, finding_out)
    }

    /// Opens a new connection, for a request whose previous connection was closed by the peer.
    pub(super) async fn new_line(&self) -> Result<Line, String> {
        Box::pin(self.connect()).await
    }

    /// Takes back an idle connection, for the next request.
    pub(super) fn give_back(&self, stream: Stream) {
        /// The maximum number of idle connections.
        const MOST: usize = 1024;
        let since = (self.clock.monotonic)();
        let mut idle = lock(&self.idle);
        if idle.len() < MOST {
            idle.push(Idle { stream, since });
            self.has_opened.notify_one();
        }
    }

    /// Empties the pool: closes the idle connections, and reuses no open one for a new request.
    pub(super) fn close_all(&self) {
        lock(&self.idle).clear();
        lock(&self.http2).clear();
    }

    /// Closes connections that have been idle for too long, until it is dropped. Sleeps while none is open.
    pub(super) async fn tidy(&self) {
        loop {
            match self.close_the_rested() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => self.has_opened.notified().await,
            }
        }
    }

    /// Closes them once, and returns the time until the next check.
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
        // The oldest is first.
        idle.first().map(left).into_iter().chain(again).min()
    }

    fn open_already(&self) -> Option<Line> {
        // Servers limit the requests on a connection. Another connection costs less than waiting.
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
        // The flow-control windows of a stream and of the connection: enough for a fast link, and a limit on what is
        // buffered for a slow client.
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
                // Pings detect a connection that the peer lost without closing it, so that its requests do not wait
                // forever.
                while let Some(pings) = &mut pings {
                    tokio::time::sleep(PAUSE).await;
                    match tokio::time::timeout(PAUSE, pings.ping(h2::Ping::opaque())).await {
                        Ok(Ok(_)) => {}
                        _ => return,
                    }
                }
                std::future::pending::<()>().await;
            };
            // The requests receive the error themselves.
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

/// Whether the peer has sent nothing and has not closed the connection, so that a request can be sent.
fn is_quiet(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
