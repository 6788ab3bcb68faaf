//! Renewal on request. Under `environment` no child can receive a successor: a child holds the token of its start until
//! it ends. Such a run does not renew on schedule. A process inside it that needs a fresh credential asks for one, with a
//! file in the run's directory; the run removes the file when it has renewed, or has failed to.

use std::path::Path;
use std::time::Duration;

use super::{Delivery, Provision, Run, nesting};
use crate::clock::Clock;
use crate::credential::{Credential, Freshness};
use crate::obtain::ObtainError;
use crate::private_file::{self, PrivateFileError};
use crate::store::{Store, StoreError};

const REQUEST: &str = "renew";

/// The credential of the run with this directory, whose store this is; where `min_life` is given, it is good for at least
/// so long. A successor that is due is waited for, and asked for where the run renews on request.
///
/// # Errors
/// Fails where the run has no such credential within 30 seconds, or could not renew it.
pub fn credential_of_run(
    run: &Path,
    store: &Store,
    min_life: Option<Duration>,
    clock: Clock,
) -> Result<Credential, ObtainError> {
    const PATIENCE: Duration = Duration::from_secs(30);
    // A caller that can be served waits only a moment for a better credential.
    const MOMENT: Duration = Duration::from_secs(2);
    let start = (clock.monotonic)();
    let mut request = Request::to(run);
    loop {
        // Before the store is read: what the run stores, it stores before it answers.
        let is_open = request.is_open();
        let now = clock.now();
        let stored = store.read(clock)?;
        let left = stored.as_ref().map_or(Duration::ZERO, |stored| stored.remaining(now));
        let is_fresh = stored.as_ref().is_some_and(|stored| stored.freshness(now) == Freshness::Fresh);
        let lasts = |stored: &Credential| stored.is_usable(now) && min_life.is_none_or(|asked| left >= asked);
        let waited = (clock.monotonic)().saturating_sub(start);
        match stored.filter(lasts) {
            Some(stored) if is_fresh || !is_open || waited >= MOMENT => return Ok(stored),
            None if is_fresh || waited >= PATIENCE => return Err(ObtainError::RunNotRenewed { left }),
            None if request.was_answered() => {
                return Err(match store.remembered_refusal(now)? {
                    Some(refusal) => ObtainError::Remembered(Box::new(refusal), now),
                    None => ObtainError::RunNotRenewed { left },
                });
            }
            _ => {}
        }
        request.send();
        (clock.pause)(Duration::from_millis(100))?;
    }
}

/// Whether the run with this directory renews on request only.
pub fn renews_on_request(run: &Path) -> bool {
    nesting::delivery_of(run) == Some(Delivery::Environment)
}

/// A request to one run.
pub(super) struct Request<'a> {
    run: &'a Path,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The run renews on schedule.
    NotNeeded,
    /// Not yet sent.
    Ready,
    Sent,
    /// It could not be written.
    Failed,
}

impl Request<'_> {
    pub(super) fn to(run: &Path) -> Request<'_> {
        let state = if renews_on_request(run) { State::Ready } else { State::NotNeeded };
        Request { run, state }
    }

    /// Asks, once.
    pub(super) fn send(&mut self) {
        if self.state == State::Ready {
            let sent = private_file::replace_unsynced(self.run, REQUEST, &[], &|_| {});
            self.state = if sent.is_ok() { State::Sent } else { State::Failed };
        }
    }

    /// Whether it can still bring a successor.
    fn is_open(&self) -> bool {
        match self.state {
            State::Ready => true,
            State::Sent => is_pending(self.run),
            State::NotNeeded | State::Failed => false,
        }
    }

    fn was_answered(&self) -> bool {
        matches!(self.state, State::Sent | State::Failed) && !self.is_open()
    }
}

fn is_pending(run: &Path) -> bool {
    run.join(REQUEST).symlink_metadata().is_ok()
}

impl Run {
    /// Whether no child can receive a successor of what it was started with.
    pub(super) fn renews_on_request(&self) -> bool {
        self.provision == Provision::Credential(Delivery::Environment)
    }

    pub(super) fn is_renewal_requested(&self) -> bool {
        self.renews_on_request() && is_pending(&self.directory)
    }

    /// Whether what is stored is fresh: then a request is answered by it.
    pub(super) fn is_stored_fresh(&self) -> Result<bool, StoreError> {
        let is_fresh = |stored: &Credential| stored.freshness(self.clock.now()) == Freshness::Fresh;
        Ok(self.config.store().read(self.clock)?.as_ref().is_some_and(is_fresh))
    }

    /// Tells those who asked that the store has the outcome. A request that cannot be removed is answered again.
    pub(super) fn answer_renewal_request(&self) -> Result<(), PrivateFileError> {
        private_file::remove(&self.directory.join(REQUEST))
    }
}
