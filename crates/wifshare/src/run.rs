//! Journey three: a run. Take a lease, obtain, deliver, keep fresh while the children work, and leave nothing behind.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, SystemTime};

use crate::alarm::{Alarm, Happening};
use crate::clock::{Clock, Interrupted, epoch_seconds, from_epoch_seconds};
use crate::config::{Config, DEFAULT_BASE_URL};
use crate::credential::{Credential, Freshness};
use crate::delivery::{self, Delivery, HandedOutToken, Handout, ProfileDirectory, UnknownDelivery};
use crate::environment::Environment;
use crate::events::EventLog;
use crate::gateway::{self, Board, Gateway, Limits, Listen, Served, Terms};
use crate::identity::{Outlook, Supply};
use crate::identity_token::IdentityToken;
use crate::message::whole_message;
use crate::obtain::{self, ObtainError};
use crate::private_file::{self, PrivateFileError};
use crate::renew::renew_if;
use crate::secret::Secret;
use crate::step::{Step, Watch};
use crate::store::{self, Afterwards, Keeper, Lease, Memory, Owner, PATIENCE, StoreError};
use crate::transport::Transport;

mod nesting;
mod schedule;

#[cfg(any(test, fuzzing))]
pub(crate) use nesting::parse as parse_inputs;
pub use nesting::{
    BASE_URL_VARIABLE, DELIVERED_VARIABLE, Enclosing, GATEWAY_VARIABLE, RUN_VARIABLE, delivered, enclosing,
};
use nesting::{GATEWAY, INPUTS};
use schedule::Schedule;

/// What a run provides for its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provision {
    /// The shared credential, by this delivery.
    Credential(Delivery),
    /// An unspent identity token in a file, beside the operator's own profile; nothing is exchanged.
    IdentityToken,
}

impl fmt::Display for Provision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Provision::Credential(delivery) => delivery.fmt(f),
            Provision::IdentityToken => f.write_str("identity-token"),
        }
    }
}

impl FromStr for Provision {
    type Err = UnknownDelivery;

    fn from_str(name: &str) -> Result<Self, UnknownDelivery> {
        match name {
            "identity-token" => Ok(Provision::IdentityToken),
            name => name.parse().map(Provision::Credential),
        }
    }
}

/// A job's work with the shared credential, from the lease to the clean-up.
///
/// While it lives, one thread has to be inside [`keep_fresh`](Run::keep_fresh). [`end`](Run::end) stops that thread and
/// removes everything; dropping a run without ending it leaves that to the next start.
pub struct Run {
    config: Config,
    transport: Transport,
    clock: Clock,
    watch: Arc<dyn Fn(&Step<'_>) + Send + Sync>,
    provision: Provision,
    directory: PathBuf,
    profile: Option<ProfileDirectory>,
    handed_out: Option<HandedOutToken>,
    passage: Option<Passage>,
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
}

/// The gateway of a run, as its keeper knows it.
struct Passage {
    gateway: Mutex<Option<Gateway>>,
    base_url: String,
    capability: Secret,
    board: Board,
}

/// Where a gateway listens, and who is told of what it served.
pub struct Opening {
    /// Where.
    pub listen: Listen,
    /// Told of each request when it is over.
    pub record: Box<dyn Fn(&Served<'_>) + Send + Sync>,
}

impl Default for Opening {
    /// At a free port of this machine, and nobody.
    fn default() -> Opening {
        Opening { listen: Listen::Loopback((std::net::Ipv4Addr::LOCALHOST, 0).into()), record: Box::new(|_| {}) }
    }
}

struct Desk {
    lease: Option<Lease>,
    held: Option<Credential>,
    /// Whether children find what is held; a full disk may keep it from them for a while.
    is_delivered: bool,
    /// When the token in the file is to be replaced for its age.
    token_due: Option<SystemTime>,
    is_over: bool,
    is_abandoned: bool,
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
        transport: Transport,
        clock: Clock,
        watch: Arc<dyn Fn(&Step<'_>) + Send + Sync>,
    ) -> Result<Run, ObtainError> {
        Run::begin_with(config, provision, Opening::default(), transport, clock, watch)
    }

    /// The same, with a gateway that is opened like this, if it is one.
    pub fn begin_with(
        mut config: Config,
        provision: Provision,
        opening: Opening,
        transport: Transport,
        clock: Clock,
        watch: Arc<dyn Fn(&Step<'_>) + Send + Sync>,
    ) -> Result<Run, ObtainError> {
        if provision == Provision::Credential(Delivery::Gateway) {
            config.memory = Some(Memory::default());
        }
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
            passage: None,
            rejected: Arc::default(),
            renewing: Mutex::new(()),
            over: AtomicBool::new(false),
            ends_with_its_directory: false,
        };
        match run.prepare(opening) {
            Ok(()) => Ok(run),
            Err(error) => {
                // The error that stopped us is the one to tell; what cannot be removed now is left to the next start.
                drop(run.end());
                Err(error)
            }
        }
    }

    /// The same run, that is over when somebody removes its directory: nobody waits for it in sight.
    pub fn ending_with_its_directory(self) -> Run {
        Run { ends_with_its_directory: true, ..self }
    }

    /// The run's own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
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
        if let Some(passage) = &self.passage {
            return passage.environment(parent, keep, &self.config.source.variables(), &self.directory);
        }
        let mut child = delivery::environment(
            match (&self.provision, &self.profile, &self.handed_out, &self.desk().held) {
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
        self.desk().held.clone()
    }

    /// How long the job can stay signed in, as far as the source knows; `None` where nothing is held.
    pub fn outlook(&self) -> Option<Outlook> {
        let is_spent = |token: &IdentityToken| obtain::is_spent(token, &self.config);
        Some(self.config.source.outlook(&self.held()?, is_spent, self.clock.now()))
    }

    /// Where the gateway of this run listens, and what it wants to see.
    pub fn gateway(&self) -> Option<(&str, &Secret)> {
        self.passage.as_ref().map(|passage| (&*passage.base_url, &passage.capability))
    }

    /// Closes the gateway: nobody is let in any more, and what is under way has this long to finish.
    pub fn close_gateway(&self, grace: Duration) {
        let gateway = self.passage.as_ref().and_then(|passage| lock(&passage.gateway).take());
        if let Some(gateway) = gateway {
            gateway.close(grace);
        }
    }

    /// Whether children find an unspent identity token of ours.
    pub fn hands_out_identity_tokens(&self) -> bool {
        self.handed_out.is_some()
    }

    /// Keeps what was delivered fresh until the run ends, or, where that ends it, until somebody has removed its
    /// directory. No failure ends it: an error is told, and another try
    /// follows after a while. `jitter`, between 0 and 1, sets this process apart from others like it.
    pub fn keep_fresh(&self, jitter: f64) {
        /// The kernel takes some milliseconds to end a watch, and no short command shall wait for that at its end.
        const WATCHED_FROM: Duration = Duration::from_millis(500);
        let mut schedule = Schedule::new(self, jitter);
        let begun = (self.clock.monotonic)();
        loop {
            let age = (self.clock.monotonic)().saturating_sub(begun);
            // Watched first and looked at then, so that nothing falls between the two.
            let is_watched = age >= WATCHED_FROM && self.watch_what_is_ours();
            if self.is_over() {
                return;
            }
            if self.passage.is_some() && schedule.is_first_due(self) {
                self.acquire(&mut schedule);
            }
            let rejected = lock(&self.rejected).take();
            if let Some(rejected) = rejected {
                self.replace(&rejected, &mut schedule);
            }
            self.restore(&mut schedule);
            self.look_at_what_children_did(&mut schedule);
            if schedule.is_due(self) {
                match self.config.source.supply() {
                    Supply::Remintable | Supply::Rotating => self.renew(&mut schedule),
                    Supply::Fixed(_) if obtain::tokens_left(&self.config, self.clock) > 0 => self.renew(&mut schedule),
                    Supply::Fixed(_) => self.follow(&mut schedule),
                }
            }
            let (moment, longest) = schedule.next(self, is_watched);
            let longest = if age < WATCHED_FROM { longest.min(WATCHED_FROM) } else { longest };
            self.alarm.wait(moment, longest, self.handed_out.as_ref().and_then(HandedOutToken::news));
        }
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
                    if self.passage.is_some() || waited > LONGEST || (waited > GRACE && !lease.is_shared()) {
                        break None;
                    }
                    // Not the clock's pause: a signal that comes now must not turn this wait into a spin.
                    drop(self.idle.wait_timeout(self.desk(), Duration::from_millis(10)));
                }
            }
        };
        // From here on a renewal that is still in flight keeps nothing: there is nobody left who would need it.
        self.desk().is_abandoned = true;
        let held = self.desk().held.take();
        Ok(match (lease.end(|| self.afterwards())?, held) {
            (None, _) => Ending::Shared,
            (Some(_), None) => Ending::Nothing,
            (Some(Afterwards::Remove), Some(_)) => Ending::Removed,
            (Some(Afterwards::Keep), Some(_)) if !self.config.store().has_file() => Ending::Removed,
            (Some(Afterwards::Keep), Some(held)) => Ending::Kept(held.expires_at),
        })
    }

    fn prepare(&mut self, opening: Opening) -> Result<(), ObtainError> {
        /// For the ledger's entry, the stored credential and the delivered one, with blocks of 4 KiB.
        const ROOM: usize = 32 * 1024;
        if self.provision == Provision::Credential(Delivery::Gateway) {
            self.passage = Some(self.open(opening)?);
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
                if !self.config.store().read()?.as_ref().is_some_and(fresh) {
                    private_file::make_sure_of_room(&self.directory, ROOM)?;
                }
            }
            let held = obtain::obtain(&self.config, &self.transport, self.clock, watch)?;
            if let Some(profile) = &profile {
                profile.publish(&held, watch)?;
            }
            self.profile = profile;
            self.desk().held = Some(held);
        }
        let wants_identity_token = match self.provision {
            Provision::IdentityToken | Provision::Credential(Delivery::Federation) => true,
            Provision::Credential(Delivery::Profile | Delivery::Environment | Delivery::Gateway) => false,
        };
        // A source that cannot be asked again has no token to spare.
        if wants_identity_token && self.config.source.supply() == Supply::Remintable {
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

    /// Asks for a new identity token and hands it out; no process of ours will send it.
    fn hand_out_token(&self) -> Result<(), ObtainError> {
        const TRIES: u32 = 4;
        let Some(handed_out) = &self.handed_out else { return Ok(()) };
        let watch = self.watch();
        for tries in 1.. {
            let token = obtain::ask(&self.config, &self.transport, self.clock, watch)?;
            watch(&Step::Identified(&token));
            let now = self.clock.now();
            let mut desk = self.desk();
            if desk.is_over {
                return Err(Interrupted.into());
            }
            if let Some(spent) = self.config.store().hand_out(&token, self.clock, watch)? {
                drop(desk);
                watch(&Step::AlreadySpent);
                if tries == TRIES {
                    let (origin, supply) = (self.config.source.description(), self.config.source.supply());
                    return Err(ObtainError::Spent { origin, supply, spent: Box::new(spent), now });
                }
                (self.clock.pause)(Duration::from_millis(200) * 2u32.pow(tries))?;
                continue;
            }
            desk.token_due = Some(due(&token, now));
            return Ok(handed_out.replace(token, watch)?);
        }
        unreachable!("the loop ends by returning")
    }

    fn write_inputs(&self) -> Result<(), PrivateFileError> {
        let gateway = self.passage.as_ref().map(|passage| (GATEWAY, passage.base_url.clone()));
        let inputs: BTreeMap<_, _> = self.identity_variables().into_iter().chain(gateway).collect();
        let inputs = serde_json::to_vec(&inputs).expect("texts become JSON");
        private_file::replace_unsynced(&self.directory, INPUTS, &inputs, self.watch())
    }

    /// Watches what others may do to our files. Tells whether all of it can be noticed.
    fn watch_what_is_ours(&self) -> bool {
        let removal = self.alarm.watch(&self.directory, Happening::Removal);
        let adopted = self.profile.as_ref().filter(|_| self.provision == Provision::Credential(Delivery::Federation));
        let arrival = adopted.is_none_or(|profile| self.alarm.watch(&profile.credentials(), Happening::Arrival));
        removal && arrival
    }

    /// Whether there is nothing more to keep fresh.
    fn is_over(&self) -> bool {
        self.desk().is_over || (self.ends_with_its_directory && !self.is_in_place())
    }

    /// Opens the gateway. Nothing is obtained yet.
    fn open(&self, opening: Opening) -> Result<Passage, ObtainError> {
        let failed = |source| ObtainError::Gateway(source);
        let capability = gateway::new_capability().map_err(failed)?;
        let board = Board::new();
        let (place, alarm) = (Arc::clone(&self.rejected), Arc::clone(&self.alarm));
        let reject = move |rejected: &Credential| {
            *lock(&place) = Some(rejected.clone());
            alarm.ring();
        };
        let terms = Terms {
            upstream: self.config.base_url.parse().expect("the border has parsed it"),
            wire: self.transport.wire().clone(),
            capability: capability.clone(),
            standing: board.follow(),
            reject: Box::new(reject),
            record: opening.record,
            clock: self.clock,
            limits: Limits::default(),
        };
        let gateway = Gateway::open(&opening.listen, terms).map_err(failed)?;
        let base_url = gateway.base_url().to_owned();
        Ok(Passage { gateway: Mutex::new(Some(gateway)), base_url, capability, board })
    }

    /// Obtains the first credential of a gateway now, for whoever wants to know whether there is one before the first
    /// request asks for it. Other runs have theirs when they begin.
    pub fn obtain_first(&self) -> Result<(), ObtainError> {
        if self.passage.is_none() || self.held().is_some() {
            return Ok(());
        }
        let renewing = lock(&self.renewing);
        if self.over.load(Ordering::SeqCst) {
            return Err(Interrupted.into());
        }
        let obtained = obtain::obtain(&self.config, &self.transport, self.clock, self.watch())?;
        drop(renewing);
        (self.watch)(&Step::Obtained(&obtained));
        self.publish(obtained)
    }

    /// The first credential of a run whose command works already.
    fn acquire(&self, schedule: &mut Schedule) {
        match self.obtain_first() {
            Ok(()) => schedule.succeeded(self),
            Err(error) => {
                let pause = schedule.failed(self);
                if let ObtainError::Interrupted(_) = error {
                    return;
                }
                self.put_up(&error);
                let hint = error.hint();
                self.tell(schedule, &error, |cause| Step::NotObtained { cause, hint, pause });
            }
        }
    }

    /// Replaces a credential that is not good any more, unless that was done already.
    fn replace(&self, rejected: &Credential, schedule: &mut Schedule) {
        let is_held = self.held().is_some_and(|held| held == *rejected);
        if is_held && schedule.may_replace(self.clock) {
            match self.config.source.supply() {
                Supply::Remintable | Supply::Rotating => self.renew(schedule),
                Supply::Fixed(_) => self.follow(schedule),
            }
        }
        // Whatever came of it, those who wait for it shall wait no longer.
        if let Some(passage) = &self.passage {
            passage.board.nothing_new();
        }
    }

    /// Tells those who ask why there is no credential.
    fn put_up(&self, error: &ObtainError) {
        if let Some(passage) = &self.passage {
            passage.board.refuse(whole_message(error), error.is_passing());
        }
    }

    /// Somebody may remove the state directory while we live, to make room for instance. Children look where they
    /// looked before, so what they found there is put in place again, from memory. Whoever removes it has a moment to
    /// come to an end: a directory that fills again cannot be removed.
    fn restore(&self, schedule: &mut Schedule) {
        if self.is_in_place() {
            schedule.is_in_place();
            return;
        }
        if !schedule.may_restore(self.clock) {
            return;
        }
        let restored = self.lay_out_again().and_then(|was_removed| match self.held().filter(|_| was_removed) {
            Some(held) => {
                schedule.token_was_read = true;
                let usable = |stored: &Credential| stored.is_usable(self.clock.now());
                self.share(usable, held).map(drop)
            }
            None => Ok(()),
        });
        match restored {
            Ok(()) | Err(ObtainError::Interrupted(_)) => {}
            Err(error) => {
                let pause = Schedule::RESTORE_AFTER;
                self.tell(schedule, &error, |cause| Step::NotRenewed { cause, pause });
            }
        }
    }

    fn lay_out_again(&self) -> Result<bool, ObtainError> {
        let mut desk = self.desk();
        let held = desk.held.clone();
        let lay_out = || {
            self.write_inputs()?;
            if let (Some(profile), Some(held)) = (&self.profile, &held) {
                profile.create(&self.config.base_url, self.watch())?;
                profile.publish(held, self.watch())?;
            }
            Ok(())
        };
        // The end of the run takes the lease, and whatever is written after that would stay.
        match &mut desk.lease {
            Some(lease) => lease.restore(lay_out, self.watch()),
            None => Ok(false),
        }
    }

    /// Makes a credential everybody's, unless an acceptable one is there; either way that one is delivered and returned.
    fn share(
        &self,
        acceptable: impl Fn(&Credential) -> bool,
        credential: Credential,
    ) -> Result<Credential, ObtainError> {
        let mut permission = None;
        let may_keep = || self.permit().map(|desk| permission = Some(desk));
        let watch = self.watch();
        let shared =
            obtain::adopt_unless(acceptable, credential, may_keep, &self.config, &self.transport, self.clock, watch);
        drop(permission);
        let shared = shared?;
        self.publish(shared.clone())?;
        Ok(shared)
    }

    fn look_at_what_children_did(&self, schedule: &mut Schedule) {
        if schedule.may_adopt(self.clock) {
            match self.adopt() {
                // Whoever wrote a credential may have spent the token that we handed out for it.
                Ok(true) => {
                    schedule.token_was_read = true;
                    schedule.succeeded(self);
                }
                Ok(false) | Err(ObtainError::Interrupted(_)) => {}
                Err(error) => {
                    let pause = schedule.adopt_later(self.clock);
                    self.tell(schedule, &error, |cause| Step::NotRenewed { cause, pause });
                }
            }
        }
        let Some(handed_out) = &self.handed_out else { return };
        schedule.token_was_read |= handed_out.was_read();
        let aged = self.desk().token_due.is_none_or(|due| self.clock.now() >= due);
        if (schedule.token_was_read || aged) && schedule.may_ask_again(self.clock) {
            match self.hand_out_token() {
                Ok(()) => schedule.token_was_read = false,
                Err(ObtainError::Interrupted(_)) => {}
                Err(error) => {
                    let pause = schedule.pace;
                    self.tell(schedule, &error, |cause| Step::NotHandedOut { cause, pause });
                }
            }
        }
    }

    /// A child of a federation profile may exchange by itself, after a 401 say, and writes what it obtained where it
    /// found ours. If that is usable it becomes the shared credential, unless another process has renewed meanwhile;
    /// if it is not, ours takes its place again. Tells whether there was anything.
    fn adopt(&self) -> Result<bool, ObtainError> {
        let Provision::Credential(Delivery::Federation) = self.provision else { return Ok(false) };
        let Some(profile) = &self.profile else { return Ok(false) };
        // What lies there is of the time before, where the last one could not be written.
        let Some(held) = self.held().filter(|_| self.desk().is_delivered) else { return Ok(false) };
        let Some(in_place) = profile.in_place().filter(|found| found.access_token != held.access_token) else {
            return Ok(false);
        };
        let now = self.clock.now();
        let found = Credential {
            access_token: in_place.access_token,
            expires_at: in_place.expires_at,
            obtained_at: from_epoch_seconds(epoch_seconds(now)).min(in_place.expires_at),
            generation: 0,
        };
        if !found.is_usable(now) {
            return self.publish(held).map(|()| true);
        }
        let renewed_by_another = |stored: &Credential| *stored != held && stored.is_usable(now);
        let adopted = self.share(renewed_by_another, found)?;
        (self.watch)(&Step::Adopted(&adopted));
        Ok(true)
    }

    /// A source with nothing more to give is not asked; a successor can only come from elsewhere.
    fn follow(&self, schedule: &mut Schedule) {
        let (Some(held), stored) = (self.held(), self.config.store().read()) else { return };
        let now = self.clock.now();
        match stored {
            Ok(Some(stored)) if stored != held && stored.is_usable(now) => {
                (self.watch)(&Step::Renewed(&stored));
                match self.publish(stored) {
                    Ok(()) => schedule.succeeded(self),
                    Err(_) => drop(schedule.failed(self)),
                }
            }
            _ => {
                let _ = schedule.failed(self);
                if !held.is_usable(now) {
                    self.tell_the_end(schedule, "its source has no identity token left");
                }
            }
        }
    }

    fn renew(&self, schedule: &mut Schedule) {
        let renewing = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = self.held().filter(|_| !self.over.load(Ordering::SeqCst)) else { return };
        let is_delivered = self.desk().is_delivered;
        if !is_delivered && held.freshness(self.clock.now()) == Freshness::Fresh {
            return match self.publish(held) {
                Ok(()) => schedule.succeeded(self),
                Err(_) => drop(schedule.failed(self)),
            };
        }
        let mut permission = None;
        let may_keep = || self.permit().map(|desk| permission = Some(desk));
        let renewed = renew_if(may_keep, &held, &self.config, &self.transport, self.clock, self.watch());
        drop(permission);
        drop(renewing);
        match renewed.and_then(|renewed| {
            (self.watch)(&Step::Renewed(&renewed));
            self.publish(renewed)
        }) {
            Ok(()) => schedule.succeeded(self),
            Err(ObtainError::Interrupted(_)) => {
                let _ = schedule.failed(self);
            }
            Err(error) => {
                let pause = schedule.failed(self);
                self.put_up(&error);
                match held.is_usable(self.clock.now()) {
                    true => self.tell(schedule, &error, |cause| Step::NotRenewed { cause, pause }),
                    false => self.tell_the_end(schedule, &whole_message(&error)),
                }
            }
        }
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
        desk.held = Some(credential.clone());
        desk.is_delivered = false;
        if let Some(profile) = &self.profile {
            profile.publish(&credential, self.watch())?;
        }
        if let Some(passage) = &self.passage {
            passage.board.hold(&credential);
        }
        desk.is_delivered = true;
        Ok(())
    }

    /// What is to become of the credential after the last run: it stays where its source has nothing else to give.
    fn afterwards(&self) -> Afterwards {
        if !self.config.store().has_file() {
            return Afterwards::Remove;
        }
        match self.config.source.supply() {
            Supply::Remintable => Afterwards::Remove,
            Supply::Fixed(_) => Afterwards::Keep,
            Supply::Rotating => {
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
        self.federation_variables().into_iter().chain([base_url]).collect()
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

    /// Tells of a failure, once for each kind: a job of hours shall not drown its other messages in this one.
    fn tell(&self, schedule: &mut Schedule, error: &ObtainError, step: impl FnOnce(String) -> Step<'static>) {
        if schedule.told.as_deref() != Some(error.code()) {
            schedule.told = Some(error.code().to_owned());
            (self.watch)(&step(whole_message(error)));
        }
    }

    /// Tells, once, that what the children have is over.
    fn tell_the_end(&self, schedule: &mut Schedule, cause: &str) {
        if !schedule.end_was_told {
            schedule.end_was_told = true;
            (self.watch)(&Step::Ended { cause: cause.to_owned() });
        }
    }

    fn watch(&self) -> Watch<'_> {
        &*self.watch
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        lock(&self.desk)
    }
}

impl Passage {
    fn environment(&self, parent: &Environment, keep: &[String], asks: &[String], run: &Path) -> Environment {
        let handout = Handout::Gateway { base_url: &self.base_url, capability: &self.capability };
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a handed-out token is replaced: at 80 % of its life, four minutes for GitHub's five.
fn due(token: &IdentityToken, now: SystemTime) -> SystemTime {
    const UNKNOWN: Duration = Duration::from_secs(240);
    let life = token.claims().expires_at.and_then(|end| end.duration_since(now).ok());
    now + life.map_or(UNKNOWN, |life| life.mul_f64(0.8))
}

impl From<PrivateFileError> for ObtainError {
    fn from(error: PrivateFileError) -> Self {
        ObtainError::Store(error.into())
    }
}
