//! Opens the gateway of a run, and connects it to the run's renewal.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{BASE_URL_VARIABLE, DELIVERED_VARIABLE, GATEWAY_VARIABLE, RUN_VARIABLE, Run, delivered, lock};
use crate::credential::Credential;
use crate::delivery::{self, Handout};
use crate::environment::Environment;
use crate::gateway::{self, CredentialPublisher, Gateway, GatewayConfig, Limits, Listen, Served};
use crate::obtain::ObtainError;
use crate::progress::Progress;
use crate::secret::Secret;

/// The gateway of a run.
pub(super) struct RunGateway {
    pub(super) gateway: Mutex<Option<Gateway>>,
    pub(super) base_url: String,
    pub(super) capability: Secret,
    pub(super) publisher: CredentialPublisher,
    api_key: bool,
}

/// Options for the gateway of a run.
pub struct GatewayOptions {
    /// The address or socket to listen on.
    pub listen: Listen,
    /// Whether to set `ANTHROPIC_API_KEY` to the capability too.
    pub api_key: bool,
    /// Called when a request is complete.
    pub record: Box<dyn Fn(&Served<'_>) + Send + Sync>,
}

impl Default for GatewayOptions {
    /// A free port on loopback, and no record of requests.
    fn default() -> GatewayOptions {
        GatewayOptions {
            listen: Listen::Loopback((std::net::Ipv4Addr::LOCALHOST, 0).into()),
            api_key: false,
            record: Box::new(|_| {}),
        }
    }
}

impl Run {
    /// Opens the gateway. It does not obtain a credential yet.
    pub(super) fn open_gateway(&self, options: GatewayOptions) -> Result<RunGateway, ObtainError> {
        let failed = |source| ObtainError::Gateway(source);
        let capability = gateway::new_capability().map_err(failed)?;
        let publisher = CredentialPublisher::new();
        let observer = Arc::clone(&self.observer);
        let (place, wakeup) = (Arc::clone(&self.rejected), Arc::clone(&self.wakeup));
        let reject = move |rejected: &Credential| {
            *lock(&place) = Some(rejected.clone());
            wakeup.ring();
        };
        let config = GatewayConfig {
            upstream: self.config.base_url.parse().expect("the border has parsed it"),
            connector: self.transport.connector().clone(),
            capability: capability.clone(),
            credential_state: publisher.follow(),
            reject: Box::new(reject),
            record: options.record,
            fault: Box::new(move || observer(&Progress::ConnectionFault)),
            clock: self.clock,
            limits: Limits::default(),
        };
        let gateway = Gateway::open(&options.listen, config).map_err(failed)?;
        let base_url = gateway.base_url().to_owned();
        Ok(RunGateway { gateway: Mutex::new(Some(gateway)), base_url, capability, publisher, api_key: options.api_key })
    }
}

impl RunGateway {
    /// The environment for a child that uses the gateway.
    pub(super) fn environment(
        &self,
        parent: &Environment,
        keep: &[String],
        asks: &[String],
        run: &Path,
    ) -> Environment {
        let RunGateway { base_url, capability, api_key, .. } = self;
        let handout = Handout::Gateway { base_url, capability, api_key: *api_key };
        let mut child = delivery::environment(handout, parent, keep, asks);
        child.set(RUN_VARIABLE, run);
        child.set(DELIVERED_VARIABLE, delivered(&self.capability));
        child.set(GATEWAY_VARIABLE, &self.base_url);
        match parent.text("ANTHROPIC_BASE_URL") {
            Some(before) => child.set(BASE_URL_VARIABLE, before),
            None => child.remove(BASE_URL_VARIABLE),
        }
        child
    }
}
