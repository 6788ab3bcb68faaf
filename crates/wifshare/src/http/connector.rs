//! Connections to a host: name lookup, proxy, TLS. Requests are left to the callers.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Intercept;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::environment::Environment;

use super::certificate::Roots;
use super::proxy::Proxies;

/// An error of any of these steps.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connection settings: proxy and trusted certificates.
#[derive(Clone, Debug)]
pub struct Connector {
    proxies: Arc<Proxies>,
    roots: Roots,
}

/// The current step of a connection attempt, for the message of its timeout.
#[derive(Debug)]
pub(crate) struct Stage(Mutex<&'static str>);

/// An open connection on which nothing was sent yet.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS, to this machine only.
    Plain(TcpStream),
    /// With verified TLS.
    Secure(Box<TlsStream<TcpStream>>),
}

impl Stage {
    pub(crate) fn new() -> Stage {
        Stage(Mutex::new("looking up its address and connecting"))
    }

    pub(crate) fn get(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, stage: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }
}

impl Connector {
    /// Reads the proxies and trusted certificates from the environment: `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` in
    /// upper or lower case, `SSL_CERT_FILE` and `SSL_CERT_DIR`. If neither of the last two is set, it trusts the
    /// platform's certificates and those in `NODE_EXTRA_CA_CERTS`, `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE`. Opens no
    /// connection.
    pub fn new(environment: &Environment) -> Connector {
        Connector { proxies: Arc::new(Proxies::new(environment)), roots: Roots::new(environment) }
    }

    /// A description of the trusted certificates, such as "the system's roots".
    pub fn roots(&self) -> String {
        self.roots.describe()
    }

    /// Disables proxies.
    pub(crate) fn without_proxies(self) -> Connector {
        Connector { proxies: Arc::new(Proxies::default()), ..self }
    }

    /// The proxy for this URL, as `http://HOST:PORT` without its password; `None` for a direct connection.
    pub fn proxy_of(&self, url: &Uri) -> Option<String> {
        let proxy = self.intercept(url).ok()??;
        let (scheme, host) = (proxy.uri().scheme_str()?, proxy.uri().host()?);
        Some(format!("{scheme}://{host}{}", proxy.uri().port_u16().map(|port| format!(":{port}")).unwrap_or_default()))
    }

    fn intercept(&self, url: &Uri) -> Result<Option<Intercept>, String> {
        if is_loopback(url) { Ok(None) } else { self.proxies.intercept(url) }
    }

    /// Connects to the host of this URL. Calls `tls` for the TLS configuration if the URL needs it, and keeps `stage`
    /// at the current step.
    pub(crate) async fn open(
        &self,
        url: &Uri,
        tls: impl FnOnce() -> Result<Arc<ClientConfig>, BoxError>,
        stage: &Stage,
    ) -> Result<Stream, BoxError> {
        let mut tcp = HttpConnector::new_with_resolver(Lookup);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        tcp.set_happy_eyeballs_timeout(Some(Duration::from_millis(300)));
        let stream = match self.intercept(url)? {
            None => tcp.call(url.clone()).await?,
            Some(proxy) if proxy.uri().scheme() == Some(&Scheme::HTTP) => {
                stage.set("connecting by way of the proxy");
                let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
                if let Some(authorization) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(authorization.clone());
                }
                tunnel.call(with_port(url)?).await.map_err(|error| format!("the proxy: {}", chain(&error)))?
            }
            Some(proxy) => {
                let scheme = proxy.uri().scheme_str().unwrap_or_default().to_owned();
                return Err(format!("proxies are reached by http://, and not by {scheme}://").into());
            }
        };
        if url.scheme() == Some(&Scheme::HTTP) {
            return Ok(Stream::Plain(stream.into_inner()));
        }
        stage.set("the TLS handshake");
        let name = ServerName::try_from(url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned())?;
        let tls = TlsConnector::from(tls()?).connect(name, stream.into_inner()).await;
        tls.map(|tls| Stream::Secure(Box::new(tls))).map_err(|error| match self.roots.fault(&error) {
            Some(fault) => fault.into(),
            None => format!("the TLS handshake: {}", chain(&error)).into(),
        })
    }

    /// The TLS configuration for these ALPN protocols. Reading the platform's certificates is slow.
    pub(crate) fn tls(&self, protocols: &[&[u8]]) -> Result<ClientConfig, BoxError> {
        let mut tls = self.roots.client_config()?;
        tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(tls)
    }
}

/// Resolves each name in a new thread. The runtime's own resolver panics if it cannot create a thread.
#[derive(Clone, Debug)]
struct Lookup;

impl Service<Name> for Lookup {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let (tell, told) = tokio::sync::oneshot::channel();
            let look = move || {
                // An error means that the caller has given up.
                let _ = tell.send((name.as_str(), 0).to_socket_addrs());
            };
            std::thread::Builder::new().name("wifshare-name".to_owned()).spawn(look)?;
            told.await.map_err(|_| io::Error::other("the look-up ended without a result"))?
        })
    }
}

impl Stream {
    /// The protocol that ALPN selected, if any.
    pub(crate) fn protocol(&self) -> Option<&[u8]> {
        match self {
            Stream::Plain(_) => None,
            Stream::Secure(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Secure(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Secure(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// A CONNECT request always contains the port (RFC 9110 §9.3.6).
fn with_port(url: &Uri) -> Result<Uri, BoxError> {
    let authority = format!("{}:{}", url.host().unwrap_or_default(), url.port_u16().unwrap_or(443));
    Ok(Uri::builder().scheme("https").authority(authority).path_and_query("/").build()?)
}

/// Joins an error and its causes in one line. The outermost error alone is often just "error".
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Outer(&'static str, #[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("it is closed")]
    struct Inner;

    #[test]
    fn error_chain_repeats_no_cause() {
        assert_eq!(chain(&Outer("no way there", Inner)), "no way there: it is closed");
        assert_eq!(chain(&Outer("no way there, it is closed", Inner)), "no way there, it is closed");
    }
}
