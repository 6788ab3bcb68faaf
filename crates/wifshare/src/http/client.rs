//! One request on a connection of its own, sent once: TLS, proxy, time and size limits; no redirects, no retries.
//!
//! Connecting and sending are two acts, because single use turns on the difference: while [`HttpClient::connect`] fails
//! nothing has left, and once [`Connection::send`] was called everything may have, unless it says that nothing has.

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

/// How requests leave: through which proxy, trusting whom, with how much patience.
#[derive(Clone, Debug)]
pub struct HttpClient {
    connector: Connector,
    user_agent: HeaderValue,
    connect_patience: Duration,
    total_patience: Duration,
    /// Says whether this process is asked to end; without it nothing cuts a wait short.
    clock: Option<Clock>,
}

/// A connection on which nothing has been sent yet.
pub struct Connection {
    runtime: Runtime,
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
    user_agent: HeaderValue,
    patience: Duration,
    clock: Option<Clock>,
}

/// Nothing has left: the same message can be sent again.
#[derive(Debug, thiserror::Error)]
#[error("could not connect to {host}: {cause}")]
pub struct NotSent {
    /// Whom we tried to reach.
    pub host: String,
    /// Why that failed, causes included.
    pub cause: String,
    /// What is wrong with the certificate, if that is why. Another try would end the same.
    #[source]
    pub certificate: Option<Box<CertificateFault>>,
}

/// The message may have arrived, and may have been acted on.
#[derive(Debug, thiserror::Error)]
#[error("sent the request to {host} and got no whole answer: {cause}")]
pub struct MaybeSent {
    /// Where it was sent.
    pub host: String,
    /// What happened instead of an answer, causes included.
    pub cause: String,
}

/// Either of them.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing has left.
    #[error(transparent)]
    NotSent(#[from] NotSent),
    /// The message may have arrived.
    #[error(transparent)]
    MaybeSent(#[from] MaybeSent),
}

/// The largest answer that is read, in bytes (docs/reference/protocol.md §1.5).
const LARGEST_ANSWER: usize = 1 << 20;

impl HttpClient {
    /// Reads proxies and trust roots from the environment, as [`Connector::new`] does. Nothing is opened yet.
    pub fn new(environment: &Environment) -> HttpClient {
        HttpClient {
            connector: Connector::new(environment),
            user_agent: HeaderValue::from_static(concat!("wifshare/", env!("CARGO_PKG_VERSION"))),
            connect_patience: Duration::from_secs(10),
            total_patience: Duration::from_secs(30),
            clock: None,
        }
    }

    /// The same, and a wait ends when this clock's pauses are cut short because the process is asked to end.
    pub fn interrupted_by(self, clock: Clock) -> HttpClient {
        HttpClient { clock: Some(clock), ..self }
    }

    /// The same with other patience: for connecting, and for the whole exchange of messages.
    pub fn with_patience(mut self, connect: Duration, total: Duration) -> HttpClient {
        (self.connect_patience, self.total_patience) = (connect, total);
        self
    }

    /// The proxy by which this URL is reached, as `http://HOST:PORT` and without its password; `None` where it is
    /// reached directly.
    pub fn proxy_of(&self, url: &Uri) -> Option<String> {
        self.connector.proxy_of(url)
    }

    /// How hosts are reached.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// The same without proxies: for a service on this machine's own link, which a proxy's is another one.
    pub fn without_proxies(mut self) -> HttpClient {
        self.connector = self.connector.without_proxies();
        self
    }

    /// Connects to the host of this URL, TLS and proxy included. Nothing of a request leaves here.
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
                // A name look-up that hangs in its thread must not hold us: the time for connecting is over.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let patience = self.total_patience;
        Ok(Connection { runtime, sender, host, user_agent: self.user_agent.clone(), patience, clock: self.clock })
    }

    /// Connects and sends, for messages that may be sent again.
    pub fn send(&self, request: Request) -> Result<Response, SendError> {
        self.connect(request.uri())?.send(request)
    }

    async fn open(&self, url: &Uri, stage: &Stage) -> Result<http1::SendRequest<Full<Bytes>>, BoxError> {
        let tls = || Ok(Arc::new(self.connector.tls(&[])?));
        handshake(self.connector.open(url, tls, stage).await?).await
    }
}

impl Connection {
    /// Sends this request, once, and waits for the whole answer. It fails as [`SendError::NotSent`] only where no byte
    /// of the message was given to the system: the connection had ended before, for example while somebody waited for
    /// a slow disk.
    pub fn send(self, request: Request) -> Result<Response, SendError> {
        self.send_with_grace(request, Duration::ZERO, || {})
    }

    /// The same, and where the process is asked to end meanwhile, the answer has this long to come. `lingers` is called
    /// when that time begins.
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
        // One message on this connection: nothing may be tempted to use it again.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        // The bytes stay in their owner, which wipes them.
        let request = request.map(|body| Full::new(Bytes::from_owner(Wiped(body))));
        let answer = self.runtime.block_on(async {
            let exchange = async {
                // What happened while nobody looked is heard first: one turn of the runtime begins to listen, one asks
                // the system, one hears that the connection has ended.
                for _turn in 0..3 {
                    tokio::task::yield_now().await;
                }
                // The request comes back where nothing of it was written.
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

/// Waits for this, unless the process is asked to end.
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
    // Errors of the connection reach us through the sender.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}

/// Hands a body's bytes to the connection without copying them out of what wipes them.
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
    fn a_metadata_service_is_not_asked_through_a_proxy() {
        let environment = Environment::from_iter([("ALL_PROXY", "http://proxy.example:3128")]);
        let metadata = Uri::from_static("http://169.254.169.254/metadata");
        let transport = HttpClient::new(&environment);
        assert!(transport.proxy_of(&metadata).is_some(), "the proxy would have it");
        assert!(transport.without_proxies().proxy_of(&metadata).is_none());
    }
}
