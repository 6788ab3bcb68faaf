//! HTTP to a host: a connector for addresses, proxies and TLS, and a client that sends one request once.

mod certificate;
mod client;
mod connector;
mod proxy;

pub use certificate::CertificateFault;
pub use client::{Connection, HttpClient, MaybeSent, NotSent, SendError};
pub use connector::Connector;
pub(crate) use connector::{BoxError, Stage, Stream, chain};
