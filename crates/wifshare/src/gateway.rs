//! The gateway: children reach the API by way of it and never hold the credential.
//!
//! It listens on loopback or on a Unix socket, lets in who shows the capability of its run, puts the credential into each
//! request and sends it to one place. Bodies and answers pass as they come. It is handed the credential as it stands,
//! and tells what it served; it keeps neither on disk.

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
    /// At an address of this machine alone; port 0 takes any free one.
    Loopback(SocketAddr),
    /// At a socket in the file system, for this user alone.
    Unix(PathBuf),
}

/// What a gateway is handed.
pub struct GatewayConfig {
    /// The one place where requests go.
    pub upstream: Uri,
    /// How it is reached.
    pub connector: Connector,
    /// What whoever comes in has to show.
    pub capability: Secret,
    /// The credential as it stands.
    pub credential_state: watch::Receiver<CredentialState>,
    /// Told of a credential that is not good any more: the API refused it, or it has ended. What comes of that is told
    /// by way of `standing`.
    pub reject: Box<dyn Fn(&Credential) + Send + Sync>,
    /// Told of each request when it is over.
    pub record: Box<dyn Fn(&Served<'_>) + Send + Sync>,
    /// Told when a connection ended because of a panic; all others go on.
    pub fault: Box<dyn Fn() + Send + Sync>,
    /// How to tell the time.
    pub clock: Clock,
    /// Bounds on what comes in.
    pub limits: Limits,
}

/// A request that is over. Nothing of its body, its query or its headers.
#[derive(Debug)]
pub struct Served<'a> {
    /// Its method, `-` where it was none.
    pub method: &'a str,
    /// Its path without the query, `-` where it was none.
    pub path: &'a str,
    /// The status of the answer; 499 where the client left before there was one, 0 where there was none.
    pub status: u16,
    /// Bytes of the body that came in, its framing included.
    pub bytes_in: u64,
    /// Bytes of the answer that went back, its head included.
    pub bytes_out: u64,
    /// From the end of its head to the end of the answer.
    pub took: Duration,
    /// Who sent it. The process there may be known a moment later.
    pub caller: &'a Arc<Caller>,
}

/// Bounds on what comes in.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest body of a request. The API's own files may have 500 MB.
    pub largest_body: u64,
    /// As much of a body is kept, so that it can be sent once more after a 401.
    pub kept_body: usize,
    /// How long a head may take.
    pub head: Duration,
    /// How long a body may stand still.
    pub body: Duration,
    /// How long an answer may stand still. A message that is not streamed takes its time.
    pub answer: Duration,
    /// How long a connection of somebody who is known may wait for its next request.
    pub idle: Duration,
    /// How long a request waits until it may connect to the API, and then as long again for the connection.
    pub connect: Duration,
    /// How long a connection to the API waits for its next request; one that many requests share up to twice as long.
    /// Shorter than servers wait as a rule: a request that meets the other side's good-bye fails.
    pub rest: Duration,
    /// How long a request waits for a credential.
    pub credential: Duration,
    /// How many connections there may be at once.
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

/// A gateway that listens. It closes at once when this is dropped.
pub struct Gateway {
    base_url: String,
    close: Option<oneshot::Sender<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Listens, and serves in a thread of its own.
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
            // A name look-up that hangs in its thread must not hold us.
            runtime.shutdown_background();
        })?;
        let base_url = opened.recv().map_err(|_| io::Error::other("the gateway's thread did not start"))??;
        Ok(Gateway { base_url, close: Some(close), thread: Some(thread) })
    }

    /// What clients take for the API's base URL: `http://127.0.0.1:PORT`, or `unix:PATH`.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Lets nobody in any more, and returns when all that was under way is over, or after this time. From then on the
    /// capability is good for nothing.
    pub fn close(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        if let Some(close) = self.close.take() {
            // An error is a thread that has ended by itself.
            let _ = close.send(grace);
        }
        if let Some(thread) = self.thread.take() {
            // A panic was told by the thread.
            let _ = thread.join();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// A capability nobody can guess: 256 bits of the system's randomness. It has a name of its own, so that whoever finds
/// it in a log knows that it is none of the API's.
pub fn new_capability() -> io::Result<Secret> {
    let mut bytes = Zeroizing::new([0; 32]);
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut *bytes).map_err(|_| io::Error::other("the system has no randomness to give"))?;
    Ok(Secret::new(format!("wifshare-capability-{}", URL_SAFE_NO_PAD.encode(*bytes))))
}

/// What all connections share.
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
    /// A credential that may be served at this moment.
    fn held_now(&self) -> Option<Arc<Credential>> {
        let now = self.clock.now();
        self.credential_state.borrow().held.as_ref().filter(|held| held.is_usable(now)).map(Arc::clone)
    }

    /// The same, waited for: the first one, or the successor of one that has ended.
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

    /// What takes the place of a credential that the API refused, if anything does.
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

/// How a request came to its end.
#[derive(Debug)]
enum Ended {
    /// The answer was passed on whole.
    Answered {
        /// Whether the client's connection is in order for another request.
        may_stay: bool,
    },
    /// The answer is a 401, and nothing of it was passed on yet.
    Rejected,
}

/// How an answer is to be passed on, and what of it was.
#[derive(Clone, Copy, Debug, Default)]
struct Answering {
    /// A 401 is held back, as [`Ended::Rejected`].
    may_reject: bool,
    /// It is the last one on its connection.
    closes: bool,
    status: Option<u16>,
    /// Whether the client has heard anything of it yet.
    has_begun: bool,
    bytes_out: u64,
}

impl Answering {
    /// Where the answer has begun it cannot become another one.
    fn too_late_for(&self, failed: incoming::Failed) -> incoming::Failed {
        if self.has_begun { incoming::Failed::Broken } else { failed }
    }
}
