//! An HTTP client that sends one request per connection, once, with TLS, proxy, timeouts and size limits. No redirects,
//! no retries.
//!
//! Connecting and sending are separate, because an identity token must not be sent twice. If [`HttpClient::connect`]
//! fails, nothing was sent. If [`Connection::send`] fails, the request may have been sent, unless the error is
//! `NotSent`.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use crate::clock::{Clock, Interrupted};
use crate::environment::Environment;
use crate::http::{BoxError, CertificateFault, Connector, Stage, Stream, chain};
use crate::message::{Body, Request, Response};

/// Connection settings: proxy, trusted certificates, timeouts.
#[derive(Clone, Debug)]
pub struct HttpClient {
    connector: Connector,
    user_agent: HeaderValue,
    connect_patience: Duration,
    total_patience: Duration,
    /// Ends a wait when this process is asked to end. Without it, only timeouts do.
    clock: Option<Clock>,
}

/// An open connection on which nothing was sent yet.
pub struct Connection {
    runtime: Runtime,
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
    user_agent: HeaderValue,
    patience: Duration,
    clock: Option<Clock>,
}

/// Nothing was sent. The same request can be sent again.
#[derive(Debug, thiserror::Error)]
#[error("could not connect to {host}: {cause}")]
pub struct NotSent {
    /// The host of the connection attempt.
    pub host: String,
    /// The reason, with its causes.
    pub cause: String,
    /// Why the certificate was refused, if that is the reason. A retry would fail too.
    #[source]
    pub certificate: Option<Box<CertificateFault>>,
}

/// The request may have arrived, and may have been processed.
#[derive(Debug, thiserror::Error)]
#[error("sent the request to {host} and got no whole answer: {cause}")]
pub struct MaybeSent {
    /// The host that it was sent to.
    pub host: String,
    /// The error, with its causes.
    pub cause: String,
}

/// Why a request has no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing was sent.
    #[error(transparent)]
    NotSent(#[from] NotSent),
    /// The request may have arrived.
    #[error(transparent)]
    MaybeSent(#[from] MaybeSent),
}

/// The largest response to read, in bytes (docs/reference/protocol.md §1.5).
const LARGEST_ANSWER: usize = 1 << 20;

impl HttpClient {
    /// Reads the settings from the environment, like [`Connector::new`]. Opens no connection.
    pub fn new(environment: &Environment) -> HttpClient {
        HttpClient {
            connector: Connector::new(environment),
            user_agent: HeaderValue::from_static(concat!("wifshare/", env!("CARGO_PKG_VERSION"))),
            connect_patience: Duration::from_secs(10),
            total_patience: Duration::from_secs(30),
            clock: None,
        }
    }

    /// Ends a wait when a pause of this clock reports that the process is asked to end.
    pub fn interrupted_by(self, clock: Clock) -> HttpClient {
        HttpClient { clock: Some(clock), ..self }
    }

    /// Replaces the timeouts, for connecting and for the whole exchange.
    pub fn with_patience(mut self, connect: Duration, total: Duration) -> HttpClient {
        (self.connect_patience, self.total_patience) = (connect, total);
        self
    }

    /// The proxy for this URL, as `http://HOST:PORT` without its password; `None` for a direct connection.
    pub fn proxy_of(&self, url: &Uri) -> Option<String> {
        self.connector.proxy_of(url)
    }

    /// The connector.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Disables proxies, for a link-local service: a proxy would reach the one of its own machine.
    pub fn without_proxies(mut self) -> HttpClient {
        self.connector = self.connector.without_proxies();
        self
    }

    /// Connects to the host of this URL, through the proxy, with TLS. Sends nothing of a request.
    ///
    /// # Errors
    /// The connection failed, or did not succeed before the timeout.
    pub fn connect(&self, url: &Uri) -> Result<Connection, NotSent> {
        let host = host_of(url);
        let failed = |cause: String| NotSent { host: host.clone(), cause, certificate: None };
        let refused = |fault: Box<CertificateFault>| NotSent {
            host: host.clone(),
            cause: "its certificate was not accepted".to_owned(),
            certificate: Some(fault),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(chain(&error)))?;
        let stage = Stage::new();
        let opened = runtime.block_on(async {
            let connecting = pin!(tokio::time::timeout(self.connect_patience, self.open(url, &stage)));
            match unless_interrupted(connecting, self.clock).await {
                Err(interrupted) => Err(failed(interrupted.to_string())),
                Ok(Ok(opened)) => opened.map_err(|error| match error.downcast::<CertificateFault>() {
                    Ok(fault) => refused(fault),
                    Err(error) => failed(chain(&*error)),
                }),
                Ok(Err(_)) => {
                    Err(failed(format!("{} took longer than {} s", stage.get(), self.connect_patience.as_secs_f32())))
                }
            }
        });
        let sender = match opened {
            Ok(sender) => sender,
            Err(error) => {
                // A name lookup that hangs in its thread must not delay the error.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let patience = self.total_patience;
        Ok(Connection { runtime, sender, host, user_agent: self.user_agent.clone(), patience, clock: self.clock })
    }

    /// Connects and sends, for requests that can be sent again.
    ///
    /// # Errors
    /// The connection failed, or there was no complete response.
    pub fn send(&self, request: Request) -> Result<Response, SendError> {
        self.connect(request.uri())?.send(request)
    }

    async fn open(&self, url: &Uri, stage: &Stage) -> Result<http1::SendRequest<Full<Bytes>>, BoxError> {
        let tls = || Ok(Arc::new(self.connector.tls(&[])?));
        handshake(self.connector.open(url, tls, stage).await?).await
    }
}

impl Connection {
    /// Sends this request once, and waits for the complete response.
    ///
    /// # Errors
    /// [`SendError::NotSent`] only if no byte of the request was written: the connection had closed before, for example
    /// during a wait for a slow disk. Otherwise [`SendError::MaybeSent`].
    pub fn send(self, request: Request) -> Result<Response, SendError> {
        self.send_with_grace(request, Duration::ZERO, || {})
    }

    /// Like `send`, but waits for `grace` after the process was asked to end. Calls `lingers` at the beginning of that
    /// time.
    ///
    /// # Errors
    /// Those of [`send`](Connection::send).
    pub fn send_with_grace(
        mut self,
        mut request: Request,
        grace: Duration,
        lingers: impl FnOnce(),
    ) -> Result<Response, SendError> {
        let clock = self.clock;
        let host = self.host;
        let not_sent = |cause: String| SendError::NotSent(NotSent { host: host.clone(), cause, certificate: None });
        let failed = |cause: String| SendError::MaybeSent(MaybeSent { host: host.clone(), cause });
        let authority = request.uri().authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).parse();
        *request.uri_mut() = path.map_err(|error: http::uri::InvalidUri| not_sent(error.to_string()))?;
        let headers = request.headers_mut();
        headers
            .insert(header::HOST, authority.parse().map_err(|_| not_sent("its name is no header value".to_owned()))?);
        headers.insert(header::USER_AGENT, self.user_agent);
        // The connection must not be used for another request.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        // The body keeps its owner, which wipes it.
        let request = request.map(|body| Full::new(Bytes::from_owner(Wiped(body))));
        let answer = self.runtime.block_on(async {
            let exchange = async {
                // Detect first that the connection has closed. It takes three turns of the runtime: to start reading,
                // to poll the system, and to process the result.
                for _turn in 0..3 {
                    tokio::task::yield_now().await;
                }
                // hyper returns the request if it has written nothing.
                let answer = self.sender.try_send_request(request).await.map_err(|mut error| {
                    let cause = chain(error.error());
                    if error.take_message().is_some() { not_sent(cause) } else { failed(cause) }
                })?;
                let (head, body) = answer.into_parts();
                let body = Limited::new(body, LARGEST_ANSWER).collect().await;
                let body = body.map_err(|error| match error.is::<LengthLimitError>() {
                    true => failed(format!("its answer is larger than {LARGEST_ANSWER} bytes")),
                    false => failed(format!("its answer broke off: {}", chain(&*error))),
                })?;
                Ok(Response::from_parts(head, Zeroizing::new(body.to_bytes().to_vec())))
            };
            let late = |_| failed(format!("no whole answer within {} s", self.patience.as_secs_f32()));
            let mut exchange = pin!(tokio::time::timeout(self.patience, exchange));
            if let Ok(answered) = unless_interrupted(exchange.as_mut(), clock).await {
                return answered.map_err(late)?;
            }
            lingers();
            let too_late = |_| {
                let seconds = grace.as_secs_f32();
                failed(format!("no whole answer within {seconds} s after this process was asked to end"))
            };
            tokio::time::timeout(grace, exchange).await.map_err(too_late)?.map_err(late)?
        });
        self.runtime.shutdown_background();
        answer
    }
}

/// Waits for a future, unless the process is asked to end.
async fn unless_interrupted<T>(
    mut awaited: Pin<&mut impl Future<Output = T>>,
    clock: Option<Clock>,
) -> Result<T, Interrupted> {
    const LOOK: Duration = Duration::from_millis(50);
    loop {
        match tokio::time::timeout(LOOK, awaited.as_mut()).await {
            Ok(done) => return Ok(done),
            Err(_) => clock.map_or(Ok(()), |clock| (clock.pause)(Duration::ZERO))?,
        }
    }
}

async fn handshake(stream: Stream) -> Result<http1::SendRequest<Full<Bytes>>, BoxError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Errors of the connection are reported by the sender.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}

/// Passes the body to the connection without a copy that would not be wiped.
struct Wiped(Body);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn host_of(url: &Uri) -> String {
    url.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_service_is_requested_without_a_proxy() {
        let environment = Environment::from_iter([("ALL_PROXY", "http://proxy.example:3128")]);
        let metadata = Uri::from_static("http://169.254.169.254/metadata");
        let transport = HttpClient::new(&environment);
        assert!(transport.proxy_of(&metadata).is_some(), "the proxy would have it");
        assert!(transport.without_proxies().proxy_of(&metadata).is_none());
    }
}
