//! A run inside a run, with a delivery of its own: it signs nobody in, and serves what the run around it keeps fresh.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::nesting::read_inputs;
use super::request::Request;
use super::{GatewayOptions, Provision, Run};
use crate::clock::Clock;
use crate::config::{Config, endpoint};
use crate::credential::Credential;
use crate::delivery::Delivery;
use crate::exchange::Grant;
use crate::http::HttpClient;
use crate::identity::{self, IdentitySource};
use crate::obtain::ObtainError;
use crate::principal::OwnPrincipal;
use crate::step::Step;
use crate::store::Store;

/// Whether a run buys its credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Supplier {
    /// It does, from its source.
    Itself,
    /// It takes what the run with this directory stores.
    TheRunAround(PathBuf),
}

impl Run {
    /// Begins a run inside the run with this directory. It has a lease and a directory of its own, exchanges nothing,
    /// and follows what the run around it renews. Its delivery gives no more than the one around it.
    ///
    /// # Errors
    ///
    /// If the run around it shares no credential in its store, or its own delivery cannot be laid out.
    pub fn begin_inside(
        around: &Path,
        delivery: Delivery,
        options: GatewayOptions,
        transport: HttpClient,
        clock: Clock,
        watch: Arc<dyn Fn(&Step<'_>) + Send + Sync>,
    ) -> Result<Run, ObtainError> {
        let config = config_of(around).ok_or(ObtainError::RunNotRenewed { left: Duration::ZERO })?;
        let provision = Provision::Credential(delivery);
        Run::begin_as(Supplier::TheRunAround(around.to_owned()), config, provision, options, transport, clock, watch)
    }

    /// The credential of the run around this one; where a successor is due it is waited for.
    pub(super) fn credential_of_the_run_around(&self, around: &Path) -> Result<Credential, ObtainError> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let start = (self.clock.monotonic)();
        let mut request = Request::to(around);
        loop {
            let stored = self.config.store().read_with_principal(self.clock)?;
            let now = self.clock.now();
            if let Some((stored, principal)) = stored.filter(|(stored, _)| stored.is_usable(now)) {
                principal.into_iter().for_each(|principal| self.config.principal.learn(principal));
                return Ok(stored);
            }
            if (self.clock.monotonic)().saturating_sub(start) > PATIENCE || self.is_ending() {
                return Err(ObtainError::RunNotRenewed { left: Duration::ZERO });
            }
            request.send();
            (self.clock.pause)(Duration::from_millis(100))?;
        }
    }
}

/// What the run with this directory shares, as a configuration that can only follow.
fn config_of(around: &Path) -> Option<Config> {
    let inputs = read_inputs(around)?;
    let value = |name: &str| inputs.get(name).cloned();
    let base_url = value("ANTHROPIC_BASE_URL")?;
    let (base_url, token_endpoint) = endpoint(&base_url).ok()?;
    Some(Config {
        base_url,
        grant: Grant {
            token_endpoint,
            federation_rule_id: value("ANTHROPIC_FEDERATION_RULE_ID")?,
            organization_id: value("ANTHROPIC_ORGANIZATION_ID")?,
            service_account_id: value("ANTHROPIC_SERVICE_ACCOUNT_ID"),
            workspace_id: value("ANTHROPIC_WORKSPACE_ID"),
        },
        audience: String::new(),
        scope: None,
        expected_subject: None,
        source: IdentitySource::Variables(Vec::new()),
        job: identity::job(&inputs.iter().collect()),
        principal: OwnPrincipal::default(),
        location: Store::of_run(around)?.location()?,
        memory: None,
    })
}
