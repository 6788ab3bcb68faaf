//! An in-memory cache of the shared credential, for a program that needs it often.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::{Duration, SystemTime};

use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::credential::Credential;
use crate::http::HttpClient;
use crate::message::whole_message;
use crate::obtain::{ObtainError, obtain};
use crate::progress::Progress;
use crate::renew::renew;

/// The shared credential, cached for all threads of one process.
///
/// While the credential is fresh, [`credential`](Holder::credential) reads the clock and returns it from memory: no
/// file access, no lock that another reader could hold up, no allocation. When renewal is due, one caller renews for
/// all. The others keep using the cached credential, and wait only if it is not usable.
///
/// ```no_run
/// use std::sync::Arc;
/// use wifshare::{Clock, Environment, Holder, Inputs, HttpClient, resolve};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let environment: Environment = std::env::vars_os().collect();
/// let config = resolve(&Inputs::default(), &environment)?;
/// let holder = Holder::new(config, HttpClient::new(&environment), Clock::system(), Arc::new(|_| {}));
/// # let requests = ["one", "another"];
/// for request in requests {
///     let credential = holder.credential()?;
///     // Send `request` with the header `Authorization: Bearer …`, made of `credential.access_token.expose()`.
///     // Where the API answers 401 all the same, `holder.renew(&credential)` brings another one.
/// }
/// # Ok(())
/// # }
/// ```
pub struct Holder {
    config: Config,
    transport: HttpClient,
    clock: Clock,
    observer: Arc<dyn Fn(&Progress<'_>) + Send + Sync>,
    held: RwLock<Option<Held>>,
    /// Held by the thread that obtains or renews. The value is the monotonic time before which a failed attempt is not
    /// retried.
    journey: Mutex<Option<Duration>>,
}

struct Held {
    credential: Arc<Credential>,
    fresh: Range<SystemTime>,
    /// When it stops being fresh by the monotonic clock, because the wall clock may be set back.
    fresh_until: Duration,
    since: Moment,
}

/// How long a usable credential is served before the next attempt, after a failed renewal.
const PAUSE: Duration = Duration::from_secs(5);

impl Holder {
    /// Creates an empty cache; the first call obtains the credential. `watch` receives the steps.
    pub fn new(
        config: Config,
        transport: HttpClient,
        clock: Clock,
        observer: Arc<dyn Fn(&Progress<'_>) + Send + Sync>,
    ) -> Holder {
        Holder { config, transport, clock, observer, held: RwLock::new(None), journey: Mutex::new(None) }
    }

    /// Returns a credential that is usable now.
    ///
    /// # Errors
    /// Fails if no usable credential is cached and none can be obtained, or if the process is interrupted.
    pub fn credential(&self) -> Result<Arc<Credential>, ObtainError> {
        match self.fresh() {
            Some(credential) => Ok(credential),
            None => self.journey(),
        }
    }

    /// Returns a credential other than `rejected`, which the API rejected.
    ///
    /// # Errors
    /// Fails if no successor can be obtained.
    pub fn renew(&self, rejected: &Credential) -> Result<Arc<Credential>, ObtainError> {
        let _journey = self.begin();
        match self.usable().filter(|held| **held != *rejected) {
            // Another thread has already renewed it.
            Some(successor) => Ok(successor),
            None => renew(rejected, &self.config, &self.transport, self.clock, &*self.observer).map(|it| self.hold(it)),
        }
    }

    #[cold]
    fn journey(&self) -> Result<Arc<Credential>, ObtainError> {
        let mut again_at = match (self.journey.try_lock(), self.usable()) {
            (Ok(journey), _) => journey,
            (Err(TryLockError::WouldBlock), Some(usable)) => return Ok(usable),
            (Err(_), _) => self.begin(),
        };
        if let Some(credential) = self.fresh() {
            return Ok(credential);
        }
        let now = (self.clock.monotonic)();
        if let Some(usable) = self.usable().filter(|_| again_at.is_some_and(|moment| now < moment)) {
            return Ok(usable);
        }
        let obtained = obtain(&self.config, &self.transport, self.clock, &*self.observer).map(|it| self.hold(it));
        *again_at = match self.fresh() {
            Some(_) => None,
            None => Some((self.clock.monotonic)() + PAUSE),
        };
        match (obtained, self.usable()) {
            (Err(error), Some(usable)) if !matches!(error, ObtainError::Interrupted(_)) => {
                (self.observer)(&Progress::NotRenewed { cause: whole_message(&error), pause: PAUSE });
                Ok(usable)
            }
            (obtained, _) => obtained,
        }
    }

    fn fresh(&self) -> Option<Arc<Credential>> {
        let held = self.held();
        let now = self.clock.moment();
        let is_fresh = |held: &&Held| held.fresh.contains(&now.wall) && now.monotonic < held.fresh_until;
        held.as_ref().filter(is_fresh).map(|held| Arc::clone(&held.credential))
    }

    fn usable(&self) -> Option<Arc<Credential>> {
        let held = self.held();
        let (held, now) = (held.as_ref()?, self.clock.moment());
        let by = held.since.set_back(now);
        let credential = match by.is_zero() {
            true => Arc::clone(&held.credential),
            false => Arc::new(held.credential.moved_back(by)),
        };
        credential.is_usable(now.wall).then_some(credential)
    }

    fn hold(&self, credential: Credential) -> Arc<Credential> {
        let (fresh, since) = (credential.fresh_during(), self.clock.moment());
        let fresh_until = since.monotonic + fresh.end.duration_since(since.wall).unwrap_or_default();
        let credential = Arc::new(credential);
        let held = Held { credential: Arc::clone(&credential), fresh, fresh_until, since };
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
        credential
    }

    fn held(&self) -> RwLockReadGuard<'_, Option<Held>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> MutexGuard<'_, Option<Duration>> {
        self.journey.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
