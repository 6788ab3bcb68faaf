//! [`Sandbox`]: starts, inspects and stops the mock server.

use std::{
    fmt,
    io::{self, Error},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::{Counters, ExchangeRecord, Settings, identity_endpoint, server, state::State};

/// A running mock server. Dropping it stops the server and closes its connections.
pub struct Sandbox {
    state: Arc<State>,
    // Dropping it stops the server.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sandbox {
    /// Starts a mock server on 127.0.0.1, on a free port.
    ///
    /// # Errors
    /// No port or no thread is available.
    pub fn start(settings: Settings) -> io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), settings)
    }

    /// Starts a mock server at this address.
    ///
    /// # Errors
    /// The address is not loopback ([`InvalidInput`](io::ErrorKind::InvalidInput)), is in use, or is not available.
    pub fn start_at(address: SocketAddr, settings: Settings) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (report, started) = mpsc::channel();
        // The runtime has its own thread: the caller may be inside a runtime, where creating or dropping one panics.
        let thread = std::thread::Builder::new().name("wifshare-sandbox".to_owned()).spawn(move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(run(address, settings, &report, stopped)),
                Err(error) => _ = report.send(Err(error)),
            }
        })?;
        let state = started.recv().map_err(|_| Error::other("the sandbox's thread did not start"))??;
        Ok(Self { state, stop: Some(stop), thread: Some(thread) })
    }

    /// `http://127.0.0.1:PORT`: the issuer of the identity tokens, and the API's base URL.
    pub fn base_url(&self) -> String {
        self.state.base_url.clone()
    }

    /// The identity endpoint, the value of `ACTIONS_ID_TOKEN_REQUEST_URL`. Like GitHub's, it has a query.
    pub fn identity_token_request_url(&self) -> String {
        format!("{}{}?{}", self.state.base_url, identity_endpoint::PATH, identity_endpoint::QUERY)
    }

    /// The request token, the value of `ACTIONS_ID_TOKEN_REQUEST_TOKEN`. Random for each server.
    pub fn identity_token_request_token(&self) -> String {
        self.state.request_token.clone()
    }

    /// The environment variables of a CI job that is configured for this server.
    pub fn environment(&self) -> Vec<(String, String)> {
        let rule = self.state.settings().rule;
        [
            ("ACTIONS_ID_TOKEN_REQUEST_URL", self.identity_token_request_url()),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", self.identity_token_request_token()),
            ("ANTHROPIC_FEDERATION_RULE_ID", rule.id),
            ("ANTHROPIC_ORGANIZATION_ID", rule.organization_id),
            ("ANTHROPIC_SERVICE_ACCOUNT_ID", rule.service_account_id),
            ("ANTHROPIC_BASE_URL", self.base_url()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Issues an identity token for the rule's audience.
    pub fn issue_identity_token(&self) -> String {
        let identity_token = self.issue_identity_token_with(|_| {});
        self.state.ledger().identity_token_given("", &identity_token);
        identity_token
    }

    /// Issues an identity token for the rule's audience, with claims changed by `edit`.
    pub fn issue_identity_token_with(&self, edit: impl FnOnce(&mut Map<String, Value>)) -> String {
        let audience = self.state.settings().rule.audience;
        self.state.issue_identity_token(&audience, edit)
    }

    /// The counters since the start.
    pub fn counters(&self) -> Counters {
        self.state.ledger().counters.clone()
    }

    /// The latest exchanges, oldest first.
    pub fn history(&self) -> Vec<ExchangeRecord> {
        self.state.ledger().history()
    }

    /// The current settings. A fault that was used is no longer in its script.
    pub fn settings(&self) -> Settings {
        self.state.settings()
    }

    /// Replaces all settings, from the next request on.
    pub fn set_settings(&self, settings: Settings) {
        self.state.set_settings(settings);
    }

    /// Revokes all access tokens issued so far: the API answers 401 to them.
    pub fn revoke_access_tokens(&self) {
        self.state.ledger().revoke();
    }

    /// The subject of the identity token that this access token was issued for; `None` for any other text.
    pub fn subject_of(&self, access_token: &str) -> Option<String> {
        self.state.ledger().subject_of(access_token)
    }

    /// All request tokens, identity tokens and access tokens issued so far, to search for in logs, output and errors.
    pub fn secrets(&self) -> Vec<String> {
        self.state.ledger().secrets()
    }
}

async fn run(
    address: SocketAddr,
    settings: Settings,
    report: &mpsc::Sender<io::Result<Arc<State>>>,
    stopped: oneshot::Receiver<()>,
) {
    match server::listen(address).and_then(|listener| Ok((listener.local_addr()?, listener))) {
        Ok((address, listener)) => {
            let state = Arc::new(State::new(format!("http://{address}"), settings));
            tokio::spawn(server::serve(listener, Arc::clone(&state)));
            _ = report.send(Ok(state));
            // Returns an error when the sender is dropped, which is the signal to stop.
            _ = stopped.await;
        }
        Err(error) => _ = report.send(Err(error)),
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sandbox").field("base_url", &self.state.base_url).finish_non_exhaustive()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread has reported its own panic; `drop` must not panic again.
            _ = thread.join();
        }
    }
}
