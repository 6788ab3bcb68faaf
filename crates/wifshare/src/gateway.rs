//! A reverse proxy on loopback or a Unix socket, through which children reach the API without holding the credential.
//!
//! It accepts requests that carry the capability of its run, adds the credential to each, and sends it to one host. It
//! passes bodies and responses on as they arrive. It receives the credential from its caller, reports each request to
//! it, and writes nothing to disk.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Uri;
use tokio::sync::{oneshot, watch};
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::credential::Credential;
use crate::http::Connector;
use crate::secret::Secret;

mod admission;
mod answer;
mod batches;
mod buffer;
mod caller;
mod connection;
mod connections;
mod credential_state;
mod fault;
mod framing;
mod headers;
mod http1;
mod http2;
mod incoming;
mod listener;
#[cfg(any(test, fuzzing))]
pub(crate) mod parsers;
mod request;
mod response;
mod upstream;

use admission::{AccessPolicy, Refusal};
pub use answer::CAPABILITY_LIFE;
pub use caller::Caller;
use caller::Lookups;
pub use credential_state::{CredentialPublisher, CredentialState};
use upstream::Upstream;

/// Where a gateway listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address of this machine only. Port 0 selects any free port.
    Loopback(SocketAddr),
    /// A socket in the file system that only this user can open.
    Unix(PathBuf),
}

/// The upstream, credential, callbacks and limits of a gateway.
pub struct GatewayConfig {
    /// The only host that requests are sent to.
    pub upstream: Uri,
    /// Opens connections to the upstream.
    pub connector: Connector,
    /// The token that a client must present.
    pub capability: Secret,
    /// The current state of the credential.
    pub credential_state: watch::Receiver<CredentialState>,
    /// Called with a credential that is no longer valid: the API refused it, or it has expired. The result is published
    /// through `credential_state`.
    pub reject: Box<dyn Fn(&Credential) + Send + Sync>,
    /// Called when a request is complete.
    pub record: Box<dyn Fn(&Served<'_>) + Send + Sync>,
    /// Called when a panic ended a connection. Other connections are not affected.
    pub fault: Box<dyn Fn() + Send + Sync>,
    /// The source of the current time.
    pub clock: Clock,
    /// Limits on requests and connections.
    pub limits: Limits,
}

/// A completed request. It contains nothing of the body, the query or the headers.
#[derive(Debug)]
pub struct Served<'a> {
    /// The request method, or `-` if there was none.
    pub method: &'a str,
    /// The path without the query, or `-` if there was none.
    pub path: &'a str,
    /// The status of the response; 499 if the client left before there was one, 0 if there was none.
    pub status: u16,
    /// Bytes of the request body, including its framing.
    pub bytes_in: u64,
    /// Bytes of the response, including its head.
    pub bytes_out: u64,
    /// The time from the end of the request's head to the end of the response.
    pub took: Duration,
    /// The client. Its process may become known a moment later.
    pub caller: &'a Arc<Caller>,
}

/// Limits on requests and connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest request body. Files of the API can have 500 MB.
    pub largest_body: u64,
    /// The part of a request body that is buffered, so that the request can be sent again after a 401.
    pub kept_body: usize,
    /// The timeout for a complete head.
    pub head: Duration,
    /// The timeout for a request body that makes no progress.
    pub body: Duration,
    /// The timeout for a response that makes no progress. It is long because a message that is not streamed takes its
    /// time.
    pub answer: Duration,
    /// The timeout of an idle connection whose client has presented the capability.
    pub idle: Duration,
    /// How long a request waits for permission to connect to the API, and then as long again for the connection.
    pub connect: Duration,
    /// How long an idle connection to the API is kept; one that many requests share is kept up to twice as long. This
    /// is shorter than most servers keep one, because a request fails if the server closes the connection at the same
    /// moment.
    pub rest: Duration,
    /// How long a request waits for a credential.
    pub credential: Duration,
    /// The maximum number of open connections.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            largest_body: 1 << 30,
            kept_body: 1 << 20,
            head: Duration::from_secs(10),
            body: Duration::from_secs(60),
            answer: Duration::from_secs(15 * 60),
            idle: Duration::from_secs(120),
            connect: Duration::from_secs(10),
            rest: Duration::from_secs(20),
            credential: Duration::from_secs(185),
            connections: 4096,
        }
    }
}

/// A running gateway. Dropping it closes it at once.
pub struct Gateway {
    base_url: String,
    close: Option<oneshot::Sender<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Listens, and serves requests in a new thread.
    ///
    /// # Errors
    /// The error of the address or socket, of the thread, or of the async runtime.
    pub fn open(listen: &Listen, config: GatewayConfig) -> io::Result<Gateway> {
        let (close, closing) = oneshot::channel();
        let (report, opened) = mpsc::channel();
        let listen = listen.clone();
        let thread = std::thread::Builder::new().name("wifshare-gateway".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(report.send(Err(error))),
            };
            runtime.block_on(listener::serve(&listen, config, &report, closing));
            // A name lookup that hangs in its thread must not delay the end.
            runtime.shutdown_background();
        })?;
        let base_url = opened.recv().map_err(|_| io::Error::other("the gateway's thread did not start"))??;
        Ok(Gateway { base_url, close: Some(close), thread: Some(thread) })
    }

    /// The base URL of the API for clients: `http://127.0.0.1:PORT`, or `unix:PATH`.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Accepts no more connections, and returns when all requests are complete, or after `grace`. The capability is
    /// worthless from then on.
    pub fn close(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        if let Some(close) = self.close.take() {
            // An error means that the thread has ended already.
            let _ = close.send(grace);
        }
        if let Some(thread) = self.thread.take() {
            // The thread has reported its panic.
            let _ = thread.join();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// Creates a capability: 256 random bits of the system. Its prefix shows anyone who finds one in a log that it is not a
/// token of the API.
///
/// # Errors
/// The system has no randomness.
pub fn new_capability() -> io::Result<Secret> {
    let mut bytes = Zeroizing::new([0; 32]);
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut *bytes).map_err(|_| io::Error::other("the system has no randomness to give"))?;
    Ok(Secret::new(format!("wifshare-capability-{}", URL_SAFE_NO_PAD.encode(*bytes))))
}

/// State that all connections share.
struct Shared {
    policy: AccessPolicy,
    upstream: Upstream,
    credential_state: watch::Receiver<CredentialState>,
    reject: Box<dyn Fn(&Credential) + Send + Sync>,
    record: Box<dyn Fn(&Served<'_>) + Send + Sync>,
    fault: Box<dyn Fn() + Send + Sync>,
    lookups: Lookups,
    clock: Clock,
    limits: Limits,
    is_closing: AtomicBool,
}

impl Shared {
    /// The held credential, if it is usable now.
    fn held_now(&self) -> Option<Arc<Credential>> {
        let now = self.clock.now();
        self.credential_state.borrow().held.as_ref().filter(|held| held.is_usable(now)).map(Arc::clone)
    }

    /// Like `held_now`, but waits for the first credential, or for the successor of an expired one.
    async fn credential(&self) -> Result<Arc<Credential>, Refusal> {
        const LATE: Refusal = Refusal::new(503, "there is no credential yet");
        const ENDED: Refusal = Refusal::new(503, "the credential has ended and could not be renewed");
        if let Some(held) = self.held_now() {
            return Ok(held);
        }
        let (before, told) = {
            let credential_state = self.credential_state.borrow();
            (credential_state.held.clone(), credential_state.told)
        };
        if let Some(ended) = &before {
            (self.reject)(ended);
        }
        let is_told = |credential_state: &CredentialState| {
            let now = self.clock.now();
            credential_state.refused.is_some()
                || credential_state.held.as_ref().is_some_and(|held| held.is_usable(now))
                || (before.is_some() && credential_state.told > told)
        };
        let mut credential_state = self.credential_state.clone();
        match tokio::time::timeout(self.limits.credential, credential_state.wait_for(is_told)).await {
            Ok(Ok(credential_state)) => {
                let now = self.clock.now();
                match (credential_state.held.as_ref().filter(|held| held.is_usable(now)), &credential_state.refused) {
                    (Some(held), _) => Ok(Arc::clone(held)),
                    (None, Some(refused)) => Err(refused.clone().into()),
                    (None, None) => Err(ENDED),
                }
            }
            Ok(Err(_)) | Err(_) => Err(LATE),
        }
    }

    /// Rejects a credential that the API refused, and waits for its successor. Returns `None` if there is none.
    async fn successor_of(&self, rejected: &Arc<Credential>) -> Option<Arc<Credential>> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let told = self.credential_state.borrow().told;
        self.reject(rejected);
        let is_another =
            |credential_state: &CredentialState| credential_state.held.as_ref().is_some_and(|held| held != rejected);
        let mut credential_state = self.credential_state.clone();
        let waiting =
            credential_state.wait_for(|credential_state| is_another(credential_state) || credential_state.told > told);
        let held = tokio::time::timeout(PATIENCE, waiting).await.ok()?.ok()?.held.clone();
        held.filter(|held| held != rejected && held.is_usable(self.clock.now()))
    }

    fn reject(&self, rejected: &Credential) {
        (self.reject)(rejected);
    }
}

/// How a request ended.
#[derive(Debug)]
enum Ended {
    /// The whole response was passed on.
    Answered {
        /// Whether the client's connection can take another request.
        may_stay: bool,
    },
    /// The response is a 401, and none of it was passed on yet.
    Rejected,
}

/// How to pass a response on, and how much of it was passed on.
#[derive(Clone, Copy, Debug, Default)]
struct Answering {
    /// Hold back a 401, as [`Ended::Rejected`].
    may_reject: bool,
    /// It is the last response on its connection.
    closes: bool,
    status: Option<u16>,
    /// Whether the client has received any of it.
    has_begun: bool,
    bytes_out: u64,
}

impl Answering {
    /// The failure as it applies to this response: once its head was sent, the response can only break off.
    fn too_late_for(&self, failed: incoming::Failed) -> incoming::Failed {
        if self.has_begun { incoming::Failed::Broken } else { failed }
    }
}
