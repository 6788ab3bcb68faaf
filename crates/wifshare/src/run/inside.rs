//! A run inside another run, with its own delivery. It makes no exchange, and delivers the credential that the outer
//! run renews.

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
use crate::progress::Progress;
use crate::store::Store;

/// Where a run gets its credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Supplier {
    /// It makes exchanges with identity tokens from its source.
    Itself,
    /// It takes the credential that the run with this directory stores.
    TheRunAround(PathBuf),
}

impl Run {
    /// Begins a run inside the run with the directory `around`. It has its own lease and directory, makes no exchange,
    /// and uses the credential that the outer run renews. The caller ensures that `delivery` gives children no more
    /// than the outer one does.
    ///
    /// # Errors
    /// The outer run has no shared credential in its store, or the delivery failed.
    pub fn begin_inside(
        around: &Path,
        delivery: Delivery,
        options: GatewayOptions,
        transport: HttpClient,
        clock: Clock,
        observer: Arc<dyn Fn(&Progress<'_>) + Send + Sync>,
    ) -> Result<Run, ObtainError> {
        let config = config_of(around).ok_or(ObtainError::RunNotRenewed { left: Duration::ZERO })?;
        let provision = Provision::Credential(delivery);
        Run::begin_as(Supplier::TheRunAround(around.to_owned()), config, provision, options, transport, clock, observer)
    }

    /// The credential of the outer run. Waits for a new one if it has expired.
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

/// The configuration of the run with this directory. Its source has no identity tokens.
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
