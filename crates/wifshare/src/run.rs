//! The journey of a run: take a lease, obtain a credential, deliver it, keep it fresh while the command runs, and clean
//! up.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, SystemTime};

use crate::clock::{Clock, Interrupted, Moment};
use crate::config::{Config, DEFAULT_BASE_URL};
use crate::credential::{Credential, Freshness};
use crate::delivery::{self, Delivery, HandedOutToken, Handout, ProfileDirectory};
use crate::environment::Environment;
use crate::events::EventLog;
use crate::http::HttpClient;
use crate::identity::{Reissue, RenewalOutlook};
use crate::identity_token::IdentityToken;
use crate::message::whole_message;
use crate::obtain::{self, ObtainError};
use crate::private_file::{self, PrivateFileError};
use crate::progress::{Observer, Progress};
use crate::secret::Secret;
use crate::store::{self, Keeper, Lease, Memory, OnLastRun, PATIENCE, ProcessIdentity, StoreError};
use crate::wakeup::Wakeup;

mod gateway;
mod inside;
mod keeping;
mod nesting;
mod provision;
mod request;
mod schedule;

pub use gateway::GatewayOptions;
use gateway::RunGateway;
use inside::Supplier;
#[cfg(any(test, fuzzing))]
pub(crate) use nesting::parse as parse_inputs;
pub use nesting::{
    BASE_URL_VARIABLE, DELIVERED_TOKENS, DELIVERED_VARIABLE, Enclosing, GATEWAY_VARIABLE, IDENTITY_VARIABLES,
    RUN_VARIABLE, delivered, delivered_token, delivery_around, enclosing, is_gateway,
};
use nesting::{DELIVERY, GATEWAY, INPUTS};
pub use provision::Provision;
pub use request::{credential_of_run, renews_on_request};

/// A job's use of the shared credential, from the lease to the clean-up.
///
/// During the run, one thread has to be in [`keep_fresh`](Run::keep_fresh). [`end`](Run::end) stops that thread and
/// removes everything. If a run is dropped without it, the next start cleans up.
pub struct Run {
    config: Config,
    supplier: Supplier,
    transport: HttpClient,
    clock: Clock,
    observer: Arc<dyn Fn(&Progress<'_>) + Send + Sync>,
    provision: Provision,
    directory: PathBuf,
    profile: Option<ProfileDirectory>,
    handed_out: Option<HandedOutToken>,
    gateway: Option<RunGateway>,
    /// Guards everything that a run writes. Only the holder may write, and only until the run is over.
    state: Mutex<State>,
    /// Never notified. The end of the run polls for the end of a renewal.
    idle: Condvar,
    /// Wakes up the thread in `keep_fresh`.
    wakeup: Arc<Wakeup>,
    /// The credential that the gateway reported as invalid.
    rejected: Arc<Mutex<Option<Credential>>>,
    /// Held during a renewal.
    renewing: Mutex<()>,
    over: AtomicBool,
    /// Whether the removal of the run's directory ends the run. Otherwise, the directory is restored.
    ends_with_its_directory: bool,
    limit_was_told: AtomicBool,
}

struct State {
    lease: Option<Lease>,
    held: Option<Held>,
    /// Whether the held credential was delivered. A full disk can delay this.
    is_delivered: bool,
    /// When to replace the token in the file because of its age.
    token_due: Option<Moment>,
    is_over: bool,
    is_abandoned: bool,
}

/// The credential of a run. Its times are those of the wall clock when the run took it.
struct Held {
    credential: Credential,
    since: Moment,
    /// The time by which the wall clock had been set back at the last delivery.
    delivered_back: Duration,
}

impl Held {
    fn new(credential: Credential, now: Moment) -> Held {
        Held { credential, since: now, delivered_back: Duration::ZERO }
    }

    /// The credential, with its times adjusted to the wall clock of `now`.
    fn at(&self, now: Moment) -> Credential {
        self.credential.moved_back(self.since.set_back(now))
    }
}

/// What happened to the credential at the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Other runs share it. The last of them decides.
    Shared,
    /// It was removed.
    Removed,
    /// It remains until this time, because its source cannot issue another one.
    Kept(SystemTime),
    /// There was no credential.
    Nothing,
}

impl Run {
    /// Begins a run: removes what dead runs left, takes a lease, obtains the credential and delivers it.
    ///
    /// With [`Delivery::Gateway`], this function does not wait for the credential: [`keep_fresh`](Run::keep_fresh)
    /// obtains it, and earlier requests wait for it.
    ///
    /// # Errors
    /// The lease, the credential or its delivery failed. What the run has written is removed.
    pub fn begin(
        config: Config,
        provision: Provision,
        transport: HttpClient,
        clock: Clock,
        observer: Arc<dyn Fn(&Progress<'_>) + Send + Sync>,
    ) -> Result<Run, ObtainError> {
        Run::begin_with(config, provision, GatewayOptions::default(), transport, clock, observer)
    }

    /// Like `begin`, with options for the gateway of [`Delivery::Gateway`].
    ///
    /// # Errors
    /// Those of [`begin`](Run::begin), and that the gateway could not be opened.
    pub fn begin_with(
        config: Config,
        provision: Provision,
        options: GatewayOptions,
        transport: HttpClient,
        clock: Clock,
        observer: Arc<dyn Fn(&Progress<'_>) + Send + Sync>,
    ) -> Result<Run, ObtainError> {
        Run::begin_as(Supplier::Itself, config, provision, options, transport, clock, observer)
    }

    fn begin_as(
        supplier: Supplier,
        mut config: Config,
        provision: Provision,
        options: GatewayOptions,
        transport: HttpClient,
        clock: Clock,
        observer: Arc<dyn Fn(&Progress<'_>) + Send + Sync>,
    ) -> Result<Run, ObtainError> {
        if provision == Provision::Credential(Delivery::Gateway) {
            config.memory = Some(Memory::default());
        }
        // The lease depends on the identity key, which must be known first.
        obtain::prove(&config, &transport, clock, &*observer)?;
        let lease = config.store().lease(clock, &*observer)?;
        store::sweep(&config.location.root, clock, &*observer);
        EventLog::below(&config.location.root).iter().for_each(|(_, log)| log.tidy(clock.now()));
        observer(&Progress::Begun);
        let directory = lease.directory().to_owned();
        let state = State {
            lease: Some(lease),
            held: None,
            is_delivered: true,
            token_due: None,
            is_over: false,
            is_abandoned: false,
        };
        let mut run = Run {
            config,
            supplier,
            transport,
            clock,
            observer,
            provision,
            directory,
            profile: None,
            handed_out: None,
            state: Mutex::new(state),
            idle: Condvar::new(),
            wakeup: Arc::new(Wakeup::new()),
            gateway: None,
            rejected: Arc::default(),
            renewing: Mutex::new(()),
            over: AtomicBool::new(false),
            ends_with_its_directory: false,
            limit_was_told: AtomicBool::new(false),
        };
        match catch_unwind(AssertUnwindSafe(|| run.prepare(options))) {
            Ok(Ok(())) => Ok(run),
            Ok(Err(error)) => {
                // Report the first error. The next start removes what cannot be removed now.
                drop(run.end());
                Err(error)
            }
            Err(panic) => {
                drop(run.end());
                resume_unwind(panic)
            }
        }
    }

    /// Makes the removal of the run's directory end the run, for a run in the background.
    pub fn ending_with_its_directory(self) -> Run {
        Run { ends_with_its_directory: true, ..self }
    }

    /// The configuration of the run; for a run inside another one, that of the other.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The run's own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of the run's identity key.
    pub fn key_directory(&self) -> PathBuf {
        self.config.store().directory().to_owned()
    }

    /// Whether the run's own directory still exists.
    pub fn is_in_place(&self) -> bool {
        self.state().lease.as_ref().is_some_and(Lease::is_in_place)
    }

    /// Writes what later commands need to join the run: its keeper, the variables that it sets, and those that it
    /// removes. `parent` and `keep` are as for [`environment`](Run::environment).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn announce(&self, parent: &Environment, keep: &[String]) -> Result<(), ObtainError> {
        let asks = self.config.source.variables();
        let taken: Vec<String> = delivery::taken().map(str::to_owned).chain(asks).collect();
        let everything: Environment = taken.iter().map(|name| (name, "x")).collect();
        let left = self.environment(&everything, keep);
        let mut gives = self.environment(&Environment::default(), &[]);
        // Variables whose value depends on the parent's, such as `NO_PROXY`.
        let given = self.environment(parent, keep);
        for (name, value) in given.iter().filter(|(name, value)| parent.get(name) != Some(value)) {
            gives.set(name, value);
        }
        let is_read_anew = self.provision == Provision::Credential(Delivery::Environment);
        // The run may have renewed before a command joins it, so that command reads the token from the store.
        for name in ["ANTHROPIC_AUTH_TOKEN", DELIVERED_VARIABLE].iter().filter(|_| is_read_anew) {
            gives.remove(name);
        }
        let keeper = Keeper {
            directory: self.directory.clone(),
            owner: ProcessIdentity::current(),
            provides: self.provision.to_string(),
            identity: self.identity_variables().into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            takes: taken.into_iter().filter(|name| !left.has(name)).collect(),
            gives,
        };
        Ok(keeper.announce(self.observer())?)
    }

    /// The environment for a child of this run, based on `parent`. Variables in `keep` are not removed.
    pub fn environment(&self, parent: &Environment, keep: &[String]) -> Environment {
        let variables = self.federation_variables();
        if let Some(gateway) = &self.gateway {
            return gateway.environment(parent, keep, &self.config.source.variables(), &self.directory);
        }
        let mut child = delivery::environment(
            match (&self.provision, &self.profile, &self.handed_out, &self.held()) {
                (Provision::Credential(Delivery::Environment), _, _, Some(held)) => Handout::Environment(held),
                (Provision::Credential(Delivery::Federation), Some(profile), handed_out, _) => Handout::Federation {
                    profile,
                    identity_token_file: handed_out.as_ref().map(HandedOutToken::path),
                    variables: &variables,
                },
                (_, Some(profile), _, _) => Handout::Profile(profile),
                (_, None, Some(handed_out), _) => Handout::IdentityToken(handed_out.path()),
                (_, None, None, _) => return parent.clone(),
            },
            parent,
            keep,
            &self.config.source.variables(),
        );
        child.set(RUN_VARIABLE, &self.directory);
        if self.provision == Provision::Credential(Delivery::Environment)
            && let Some(held) = self.held()
        {
            child.set(DELIVERED_VARIABLE, delivered(&held.access_token));
        }
        // The default base URL is not set, because it would override the base URL of a child's other profile.
        let is_named = parent.has("ANTHROPIC_BASE_URL") || parent.is_blank("ANTHROPIC_BASE_URL");
        if self.provision != Provision::IdentityToken && (is_named || self.config.base_url != DEFAULT_BASE_URL) {
            child.set("ANTHROPIC_BASE_URL", &self.config.base_url);
        }
        child
    }

    /// The credential that the run holds now.
    pub fn held(&self) -> Option<Credential> {
        let now = self.clock.moment();
        self.state().held.as_ref().map(|held| held.at(now))
    }

    /// How long the job can stay signed in, as far as the source knows; `None` if no credential is held.
    pub fn outlook(&self) -> Option<RenewalOutlook> {
        let is_spent = |token: &IdentityToken| obtain::is_spent(token, &self.config);
        Some(self.config.source.outlook(&self.held()?, is_spent, self.clock.now()))
    }

    /// The base URL and the capability of this run's gateway.
    pub fn gateway(&self) -> Option<(&str, &Secret)> {
        self.gateway.as_ref().map(|gateway| (&*gateway.base_url, &gateway.capability))
    }

    /// Closes the gateway. It accepts no more connections, and requests in progress have `grace` to complete.
    pub fn close_gateway(&self, grace: Duration) {
        let gateway = self.gateway.as_ref().and_then(|gateway| lock(&gateway.gateway).take());
        if let Some(gateway) = gateway {
            gateway.close(grace);
        }
    }

    /// Whether the run provides an unspent identity token to its children.
    pub fn hands_out_identity_tokens(&self) -> bool {
        self.handed_out.is_some()
    }

    /// Ends the run. Removes what it delivered at once, then waits for a renewal in flight while other runs need its
    /// result. The last run removes the credential.
    ///
    /// # Errors
    /// The run's directory or the credential cannot be removed, or the lease cannot be released.
    pub fn end(&self) -> Result<Ending, StoreError> {
        const GRACE: Duration = Duration::from_secs(2);
        // A second limit, in case the limits of the renewal itself fail.
        const LONGEST: Duration = PATIENCE;
        self.over.store(true, Ordering::SeqCst);
        let lease = {
            let mut state = self.state();
            state.is_over = true;
            state.lease.take()
        };
        self.wakeup.ring();
        self.close_gateway(Duration::ZERO);
        let Some(lease) = lease else { return Ok(Ending::Nothing) };
        // First remove what children can read. The lease retries, and reports an error.
        drop(lease.remove_directory());
        let start = (self.clock.monotonic)();
        let _idle = loop {
            match self.renewing.try_lock() {
                Ok(idle) => break Some(idle),
                Err(TryLockError::Poisoned(poison)) => break Some(poison.into_inner()),
                Err(TryLockError::WouldBlock) => {
                    let waited = (self.clock.monotonic)().saturating_sub(start);
                    // A gateway's credential is only in memory, so the result of this renewal is useless.
                    if self.gateway.is_some() || waited > LONGEST || (waited > GRACE && !lease.is_shared()) {
                        break None;
                    }
                    // A pause of the clock would return at once after a signal, and make this a busy loop.
                    drop(self.idle.wait_timeout(self.state(), Duration::from_millis(10)));
                }
            }
        };
        // From here on, a renewal in flight must not store its result, because no run needs it.
        self.state().is_abandoned = true;
        let held = self.held();
        self.state().held = None;
        Ok(match (lease.end(|| self.afterwards())?, held) {
            (None, _) => Ending::Shared,
            (Some(_), None) => Ending::Nothing,
            (Some(OnLastRun::Remove), Some(_)) => Ending::Removed,
            (Some(OnLastRun::Keep), Some(held)) => Ending::Kept(held.expires_at),
        })
    }

    fn prepare(&mut self, options: GatewayOptions) -> Result<(), ObtainError> {
        /// Room for the ledger entry, the stored credential and the delivered one, in blocks of 4 KiB.
        const ROOM: usize = 32 * 1024;
        if self.provision == Provision::Credential(Delivery::Gateway) {
            self.gateway = Some(self.open_gateway(options)?);
            return Ok(self.write_inputs()?);
        }
        let observer = self.observer();
        self.write_inputs()?;
        if let Provision::Credential(delivery) = self.provision {
            let profile = match delivery {
                Delivery::Profile => Some(ProfileDirectory::fixed(self.directory.join("profile"))),
                Delivery::Federation => {
                    let grant = &self.config.grant;
                    let name = delivery::fingerprint([
                        Some(&grant.federation_rule_id),
                        Some(&grant.organization_id),
                        grant.service_account_id.as_deref(),
                        grant.workspace_id.as_deref(),
                        Some(&self.config.base_url),
                        self.config.scope.as_deref(),
                    ]);
                    Some(ProfileDirectory::federation(self.directory.join(name)))
                }
                Delivery::Environment | Delivery::Gateway => None,
            };
            if let Some(profile) = &profile {
                profile.create(&self.config.base_url, observer)?;
                // Do not exchange if the result cannot be delivered. If no exchange is needed, nothing can be lost.
                let fresh = |stored: &Credential| stored.freshness(self.clock.now()) == Freshness::Fresh;
                if self.supplier == Supplier::Itself
                    && !self.config.store().read(self.clock)?.as_ref().is_some_and(fresh)
                {
                    private_file::make_sure_of_room(&self.directory, ROOM)?;
                }
            }
            let held = self.first_credential()?;
            if let Some(profile) = &profile {
                profile.publish(&held, observer)?;
            }
            self.profile = profile;
            self.state().held = Some(Held::new(held, self.clock.moment()));
        }
        let wants_identity_token = match self.provision {
            Provision::IdentityToken | Provision::Credential(Delivery::Federation) => true,
            Provision::Credential(Delivery::Profile | Delivery::Environment | Delivery::Gateway) => false,
        };
        // A source that cannot issue another token has none for the children.
        if wants_identity_token && self.config.source.reissue() == Reissue::OnDemand {
            let directory = self.directory.join("identity");
            self.handed_out = Some(HandedOutToken::create(directory)?);
            match (self.hand_out_token(), self.provision) {
                (Ok(()), _) => {}
                // The credential was delivered, and the identity token is only a fallback. `keep_fresh` retries.
                (Err(error), Provision::Credential(_)) if !matches!(error, ObtainError::Interrupted(_)) => {
                    (self.observer)(&Progress::NotHandedOut { cause: whole_message(&error), pause: Duration::ZERO });
                }
                (Err(error), _) => return Err(error),
            }
        }
        Ok(())
    }

    /// The first credential of a run: from the store, by an exchange, or from the outer run.
    fn first_credential(&self) -> Result<Credential, ObtainError> {
        match &self.supplier {
            Supplier::Itself => obtain::obtain(&self.config, &self.transport, self.clock, self.observer()),
            Supplier::TheRunAround(around) => self.credential_of_the_run_around(around),
        }
    }

    /// Whether the run was asked to end.
    fn is_ending(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn write_inputs(&self) -> Result<(), PrivateFileError> {
        let gateway = self.gateway.as_ref().map(|gateway| (GATEWAY, gateway.base_url.clone()));
        let delivery = (DELIVERY, self.provision.to_string());
        let inputs: BTreeMap<_, _> = self.identity_variables().into_iter().chain(gateway).chain([delivery]).collect();
        let inputs = serde_json::to_vec(&inputs).expect("texts become JSON");
        private_file::replace_unsynced(&self.directory, INPUTS, &inputs, self.observer())
    }

    /// Returns the lock that is needed to store a credential. The run cannot end while it is held. Thus the end of the run
    /// either sees the stored credential or prevents storing it. Fails if the run was abandoned.
    fn permit(&self) -> Result<MutexGuard<'_, State>, ObtainError> {
        let state = self.state();
        if state.is_abandoned { Err(Interrupted.into()) } else { Ok(state) }
    }

    fn publish(&self, credential: Credential) -> Result<(), ObtainError> {
        let mut state = self.state();
        if state.is_over {
            return Err(Interrupted.into());
        }
        // Hold it first, so that a failed delivery does not lead to another exchange.
        state.held = Some(Held::new(credential.clone(), self.clock.moment()));
        self.deliver(&mut state, &credential)
    }

    /// Writes the credential to the files and the gateway that children use.
    fn deliver(&self, state: &mut State, credential: &Credential) -> Result<(), ObtainError> {
        state.is_delivered = false;
        if let Some(profile) = &self.profile {
            profile.publish(credential, self.observer())?;
        }
        if let Some(gateway) = &self.gateway {
            gateway.publisher.hold(credential);
        }
        state.is_delivered = true;
        Ok(())
    }

    /// What to do with the credential after the last run: keep it if its source cannot issue another token.
    fn afterwards(&self) -> OnLastRun {
        if !self.config.store().has_file() {
            return OnLastRun::Remove;
        }
        if let Supplier::TheRunAround(_) = self.supplier {
            // The outer run ended first. Its stored credential records whether its source can issue more.
            return if self.config.location.remintable { OnLastRun::Remove } else { OnLastRun::Keep };
        }
        match self.config.source.reissue() {
            Reissue::OnDemand => OnLastRun::Remove,
            Reissue::Limited(_) => OnLastRun::Keep,
            Reissue::Rotated => {
                let token = obtain::ask(&self.config, &self.transport, self.clock, &|_| {});
                match token.ok().and_then(|token| self.config.store().spent(&token).ok()) {
                    Some(Some(_spent)) => OnLastRun::Keep,
                    _ => OnLastRun::Remove,
                }
            }
        }
    }

    /// The variables that identify this run's identity. A child with other values means another identity.
    fn identity_variables(&self) -> Vec<(&'static str, String)> {
        let base_url = ("ANTHROPIC_BASE_URL", self.config.base_url.clone());
        // Another job of the CI must not join, even if it has the variables of this run.
        let job = self.config.job.ids.clone();
        self.federation_variables().into_iter().chain([base_url]).chain(job).collect()
    }

    fn federation_variables(&self) -> Vec<(&'static str, String)> {
        let grant = &self.config.grant;
        [
            ("ANTHROPIC_FEDERATION_RULE_ID", Some(&grant.federation_rule_id)),
            ("ANTHROPIC_ORGANIZATION_ID", Some(&grant.organization_id)),
            ("ANTHROPIC_SERVICE_ACCOUNT_ID", grant.service_account_id.as_ref()),
            ("ANTHROPIC_WORKSPACE_ID", grant.workspace_id.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?.clone())))
        .collect()
    }

    fn observer(&self) -> Observer<'_> {
        &*self.observer
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<PrivateFileError> for ObtainError {
    fn from(error: PrivateFileError) -> Self {
        ObtainError::Store(error.into())
    }
}
