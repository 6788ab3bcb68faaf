//! Journey three: a run. Take a lease, obtain, deliver, keep fresh while the children work, and leave nothing behind.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, SystemTime};

use crate::alarm::Alarm;
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
use crate::secret::Secret;
use crate::step::{Step, Watch};
use crate::store::{self, Afterwards, Keeper, Lease, Memory, Owner, PATIENCE, StoreError};

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

/// A job's work with the shared credential, from the lease to the clean-up.
///
/// While it lives, one thread has to be inside [`keep_fresh`](Run::keep_fresh). [`end`](Run::end) stops that thread and
/// removes everything; dropping a run without ending it leaves that to the next start.
pub struct Run {
    config: Config,
    supplier: Supplier,
    transport: HttpClient,
    clock: Clock,
    watch: Arc<dyn Fn(&Step<'_>) + Send + Sync>,
    provision: Provision,
    directory: PathBuf,
    profile: Option<ProfileDirectory>,
    handed_out: Option<HandedOutToken>,
    gateway: Option<RunGateway>,
    /// Guards everything that a run writes: whoever has it may write, unless the run is over.
    desk: Mutex<Desk>,
    /// Never notified: the end of the run looks at a renewal in flight now and then.
    idle: Condvar,
    /// Ends the wait of the thread that keeps things fresh.
    alarm: Arc<Alarm>,
    /// What a gateway says is not good any more.
    rejected: Arc<Mutex<Option<Credential>>>,
    /// Held while a renewal is under way.
    renewing: Mutex<()>,
    over: AtomicBool,
    /// Whether the run is over when somebody removes its directory; otherwise what was there is put in place again.
    ends_with_its_directory: bool,
    limit_was_told: AtomicBool,
}

struct Desk {
    lease: Option<Lease>,
    held: Option<Held>,
    /// Whether children find what is held; a full disk may keep it from them for a while.
    is_delivered: bool,
    /// When the token in the file is to be replaced for its age.
    token_due: Option<Moment>,
    is_over: bool,
    is_abandoned: bool,
}

/// The credential of a run, its times by the wall clock of the moment at which the run took it.
struct Held {
    credential: Credential,
    since: Moment,
    /// By how much the wall clock was set back when it was last delivered.
    delivered_back: Duration,
}

impl Held {
    fn new(credential: Credential, now: Moment) -> Held {
        Held { credential, since: now, delivered_back: Duration::ZERO }
    }

    /// The credential by the wall clock of this moment.
    fn at(&self, now: Moment) -> Credential {
        self.credential.moved_back(self.since.set_back(now))
    }
}

/// What became of the credential when a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Other runs share it; the last of them will see to it.
    Shared,
    /// It was removed.
    Removed,
    /// It stays until this moment, because its source could not be asked for another one.
    Kept(SystemTime),
    /// There was none.
    Nothing,
}

impl Run {
    /// Begins a run: sweeps what dead runs left, takes a lease, obtains the credential and lays out its delivery.
    ///
    /// Under [`Delivery::Gateway`] nothing is waited for: the credential is obtained in [`keep_fresh`](Run::keep_fresh),
    /// and requests that come before it wait for it.
    pub fn begin(
        config: Config,
        provision: Provision,
        transport: HttpClient,
        clock: Clock,
        watch: Arc<dyn Fn(&Step<'_>) + Send + Sync>,
    ) -> Result<Run, ObtainError> {
        Run::begin_with(config, provision, GatewayOptions::default(), transport, clock, watch)
    }

    /// The same, with a gateway that is opened like this, if it is one.
    pub fn begin_with(
        config: Config,
        provision: Provision,
        options: GatewayOptions,
        transport: HttpClient,
        clock: Clock,
        watch: Arc<dyn Fn(&Step<'_>) + Send + Sync>,
    ) -> Result<Run, ObtainError> {
        Run::begin_as(Supplier::Itself, config, provision, options, transport, clock, watch)
    }

    fn begin_as(
        supplier: Supplier,
        mut config: Config,
        provision: Provision,
        options: GatewayOptions,
        transport: HttpClient,
        clock: Clock,
        watch: Arc<dyn Fn(&Step<'_>) + Send + Sync>,
    ) -> Result<Run, ObtainError> {
        if provision == Provision::Credential(Delivery::Gateway) {
            config.memory = Some(Memory::default());
        }
        // Under whose key the lease is taken has to be known.
        obtain::prove(&config, &transport, clock, &*watch)?;
        let lease = config.store().lease(clock, &*watch)?;
        store::sweep(&config.location.root, clock, &*watch);
        EventLog::below(&config.location.root).iter().for_each(|(_, log)| log.tidy(clock.now()));
        watch(&Step::Begun);
        let directory = lease.directory().to_owned();
        let desk = Desk {
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
            watch,
            provision,
            directory,
            profile: None,
            handed_out: None,
            desk: Mutex::new(desk),
            idle: Condvar::new(),
            alarm: Arc::new(Alarm::new()),
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
                // The error that stopped us is the one to tell; what cannot be removed now is left to the next start.
                drop(run.end());
                Err(error)
            }
            Err(panic) => {
                drop(run.end());
                resume_unwind(panic)
            }
        }
    }

    /// The same run, that is over when somebody removes its directory: nobody waits for it in sight.
    pub fn ending_with_its_directory(self) -> Run {
        Run { ends_with_its_directory: true, ..self }
    }

    /// What it was begun with; inside another run, what that one shares.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The run's own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of the identity key that its credential is shared by.
    pub fn key_directory(&self) -> PathBuf {
        self.config.store().directory().to_owned()
    }

    /// Whether that directory is there, and was not removed by somebody.
    pub fn is_in_place(&self) -> bool {
        self.desk().lease.as_ref().is_some_and(Lease::is_in_place)
    }

    /// Writes into the run's directory what later commands need to join it: who keeps it, what it gives to children and
    /// what it takes from them. `parent` and `keep` are as for [`environment`](Run::environment).
    pub fn announce(&self, parent: &Environment, keep: &[String]) -> Result<(), ObtainError> {
        let asks = self.config.source.variables();
        let taken: Vec<String> = delivery::taken().map(str::to_owned).chain(asks).collect();
        let everything: Environment = taken.iter().map(|name| (name, "x")).collect();
        let left = self.environment(&everything, keep);
        let mut gives = self.environment(&Environment::default(), &[]);
        // What is made of what was there, such as a list of hosts that no proxy is asked for.
        let given = self.environment(parent, keep);
        for (name, value) in given.iter().filter(|(name, value)| parent.get(name) != Some(value)) {
            gives.set(name, value);
        }
        let is_read_anew = self.provision == Provision::Credential(Delivery::Environment);
        // The run that is joined may have renewed by then; the store has the token of that moment.
        for name in ["ANTHROPIC_AUTH_TOKEN", DELIVERED_VARIABLE].iter().filter(|_| is_read_anew) {
            gives.remove(name);
        }
        let keeper = Keeper {
            directory: self.directory.clone(),
            owner: Owner::current(),
            provides: self.provision.to_string(),
            identity: self.identity_variables().into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            takes: taken.into_iter().filter(|name| !left.has(name)).collect(),
            gives,
        };
        Ok(keeper.announce(self.watch())?)
    }

    /// The environment for a child of this run, made of its parent's. A variable named in `keep` is not taken away.
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
        // The API itself needs no naming, and a name would go before the base URL of another profile of the children's.
        let is_named = parent.has("ANTHROPIC_BASE_URL") || parent.is_blank("ANTHROPIC_BASE_URL");
        if self.provision != Provision::IdentityToken && (is_named || self.config.base_url != DEFAULT_BASE_URL) {
            child.set("ANTHROPIC_BASE_URL", &self.config.base_url);
        }
        child
    }

    /// The credential as the run holds it now.
    pub fn held(&self) -> Option<Credential> {
        let now = self.clock.moment();
        self.desk().held.as_ref().map(|held| held.at(now))
    }

    /// How long the job can stay signed in, as far as the source knows; `None` where nothing is held.
    pub fn outlook(&self) -> Option<RenewalOutlook> {
        let is_spent = |token: &IdentityToken| obtain::is_spent(token, &self.config);
        Some(self.config.source.outlook(&self.held()?, is_spent, self.clock.now()))
    }

    /// Where the gateway of this run listens, and what it wants to see.
    pub fn gateway(&self) -> Option<(&str, &Secret)> {
        self.gateway.as_ref().map(|gateway| (&*gateway.base_url, &gateway.capability))
    }

    /// Closes the gateway: nobody is let in any more, and what is under way has this long to finish.
    pub fn close_gateway(&self, grace: Duration) {
        let gateway = self.gateway.as_ref().and_then(|gateway| lock(&gateway.gateway).take());
        if let Some(gateway) = gateway {
            gateway.close(grace);
        }
    }

    /// Whether children find an unspent identity token of ours.
    pub fn hands_out_identity_tokens(&self) -> bool {
        self.handed_out.is_some()
    }

    /// Ends the run: what it delivered is removed at once, a renewal in flight is waited for while others need its
    /// outcome, and the last run removes the credential.
    pub fn end(&self) -> Result<Ending, StoreError> {
        const GRACE: Duration = Duration::from_secs(2);
        // A renewal has its own bounds; this one is for the case that they fail.
        const LONGEST: Duration = PATIENCE;
        self.over.store(true, Ordering::SeqCst);
        let lease = {
            let mut desk = self.desk();
            desk.is_over = true;
            desk.lease.take()
        };
        self.alarm.ring();
        self.close_gateway(Duration::ZERO);
        let Some(lease) = lease else { return Ok(Ending::Nothing) };
        // First of all what children could read; the lease tries again and tells if it fails.
        drop(lease.remove_directory());
        let start = (self.clock.monotonic)();
        let _idle = loop {
            match self.renewing.try_lock() {
                Ok(idle) => break Some(idle),
                Err(TryLockError::Poisoned(poison)) => break Some(poison.into_inner()),
                Err(TryLockError::WouldBlock) => {
                    let waited = (self.clock.monotonic)().saturating_sub(start);
                    // What is bought for a memory that is about to end is of no use to anybody.
                    if self.gateway.is_some() || waited > LONGEST || (waited > GRACE && !lease.is_shared()) {
                        break None;
                    }
                    // Not the clock's pause: a signal that comes now must not turn this wait into a spin.
                    drop(self.idle.wait_timeout(self.desk(), Duration::from_millis(10)));
                }
            }
        };
        // From here on a renewal that is still in flight keeps nothing: there is nobody left who would need it.
        self.desk().is_abandoned = true;
        let held = self.held();
        self.desk().held = None;
        Ok(match (lease.end(|| self.afterwards())?, held) {
            (None, _) => Ending::Shared,
            (Some(_), None) => Ending::Nothing,
            (Some(Afterwards::Remove), Some(_)) => Ending::Removed,
            (Some(Afterwards::Keep), Some(held)) => Ending::Kept(held.expires_at),
        })
    }

    fn prepare(&mut self, options: GatewayOptions) -> Result<(), ObtainError> {
        /// For the ledger's entry, the stored credential and the delivered one, with blocks of 4 KiB.
        const ROOM: usize = 32 * 1024;
        if self.provision == Provision::Credential(Delivery::Gateway) {
            self.gateway = Some(self.open_gateway(options)?);
            return Ok(self.write_inputs()?);
        }
        let watch = self.watch();
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
                profile.create(&self.config.base_url, watch)?;
                // What cannot be delivered shall not be bought; where nothing will be bought there is nothing to lose.
                let fresh = |stored: &Credential| stored.freshness(self.clock.now()) == Freshness::Fresh;
                if self.supplier == Supplier::Itself
                    && !self.config.store().read(self.clock)?.as_ref().is_some_and(fresh)
                {
                    private_file::make_sure_of_room(&self.directory, ROOM)?;
                }
            }
            let held = self.first_credential()?;
            if let Some(profile) = &profile {
                profile.publish(&held, watch)?;
            }
            self.profile = profile;
            self.desk().held = Some(Held::new(held, self.clock.moment()));
        }
        let wants_identity_token = match self.provision {
            Provision::IdentityToken | Provision::Credential(Delivery::Federation) => true,
            Provision::Credential(Delivery::Profile | Delivery::Environment | Delivery::Gateway) => false,
        };
        // A source that cannot be asked again has no token to spare.
        if wants_identity_token && self.config.source.reissue() == Reissue::OnDemand {
            let directory = self.directory.join("identity");
            self.handed_out = Some(HandedOutToken::create(directory)?);
            match (self.hand_out_token(), self.provision) {
                (Ok(()), _) => {}
                // The credential is in place, and a token to spare is for emergencies: it is tried again all the while.
                (Err(error), Provision::Credential(_)) if !matches!(error, ObtainError::Interrupted(_)) => {
                    (self.watch)(&Step::NotHandedOut { cause: whole_message(&error), pause: Duration::ZERO });
                }
                (Err(error), _) => return Err(error),
            }
        }
        Ok(())
    }

    /// The credential that a run begins with: bought where the store has none, or taken from the run around it.
    fn first_credential(&self) -> Result<Credential, ObtainError> {
        match &self.supplier {
            Supplier::Itself => obtain::obtain(&self.config, &self.transport, self.clock, self.watch()),
            Supplier::TheRunAround(around) => self.credential_of_the_run_around(around),
        }
    }

    /// Whether the run is asked to end.
    fn is_ending(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn write_inputs(&self) -> Result<(), PrivateFileError> {
        let gateway = self.gateway.as_ref().map(|gateway| (GATEWAY, gateway.base_url.clone()));
        let delivery = (DELIVERY, self.provision.to_string());
        let inputs: BTreeMap<_, _> = self.identity_variables().into_iter().chain(gateway).chain([delivery]).collect();
        let inputs = serde_json::to_vec(&inputs).expect("texts become JSON");
        private_file::replace_unsynced(&self.directory, INPUTS, &inputs, self.watch())
    }

    /// Permission to keep a credential: the desk, ours until it is written, so that the end of the run either sees it
    /// written or prevents it. A run that was abandoned keeps nothing.
    fn permit(&self) -> Result<MutexGuard<'_, Desk>, ObtainError> {
        let desk = self.desk();
        if desk.is_abandoned { Err(Interrupted.into()) } else { Ok(desk) }
    }

    fn publish(&self, credential: Credential) -> Result<(), ObtainError> {
        let mut desk = self.desk();
        if desk.is_over {
            return Err(Interrupted.into());
        }
        // Held first: what was bought is not bought again because it could not be written.
        desk.held = Some(Held::new(credential.clone(), self.clock.moment()));
        self.deliver(&mut desk, &credential)
    }

    /// Puts what is held where children find it.
    fn deliver(&self, desk: &mut Desk, credential: &Credential) -> Result<(), ObtainError> {
        desk.is_delivered = false;
        if let Some(profile) = &self.profile {
            profile.publish(credential, self.watch())?;
        }
        if let Some(gateway) = &self.gateway {
            gateway.publisher.hold(credential);
        }
        desk.is_delivered = true;
        Ok(())
    }

    /// What is to become of the credential after the last run: it stays where its source has nothing else to give.
    fn afterwards(&self) -> Afterwards {
        if !self.config.store().has_file() {
            return Afterwards::Remove;
        }
        if let Supplier::TheRunAround(_) = self.supplier {
            // The run around us is gone before us; what it stored is as good as its source says.
            return if self.config.location.remintable { Afterwards::Remove } else { Afterwards::Keep };
        }
        match self.config.source.reissue() {
            Reissue::OnDemand => Afterwards::Remove,
            Reissue::Limited(_) => Afterwards::Keep,
            Reissue::Rotated => {
                let token = obtain::ask(&self.config, &self.transport, self.clock, &|_| {});
                match token.ok().and_then(|token| self.config.store().spent(&token).ok()) {
                    Some(Some(_spent)) => Afterwards::Keep,
                    _ => Afterwards::Remove,
                }
            }
        }
    }

    /// What a child would have to say to mean this identity.
    fn identity_variables(&self) -> Vec<(&'static str, String)> {
        let base_url = ("ANTHROPIC_BASE_URL", self.config.base_url.clone());
        // Another job of the CI does not join, though it has the variables of this run.
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

    fn watch(&self) -> Watch<'_> {
        &*self.watch
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        lock(&self.desk)
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
