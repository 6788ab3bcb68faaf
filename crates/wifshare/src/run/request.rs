//! Renewal on request, for the delivery `environment`. A child keeps the token that it started with, so such a run does
//! not renew on schedule. A process in the run that needs a fresh credential creates a file in the run's directory. The
//! run removes it after it has renewed, or has failed to.

use std::path::Path;
use std::time::Duration;

use super::{Delivery, Provision, Run, nesting};
use crate::clock::Clock;
use crate::credential::{Credential, Freshness};
use crate::obtain::ObtainError;
use crate::private_file::{self, PrivateFileError};
use crate::store::{Store, StoreError};

const REQUEST: &str = "renew";

/// Returns the credential of the run with this directory and store, valid for at least `min_life` if that is given. If
/// it is stale, waits for a new one, and requests it if the run renews on request.
///
/// # Errors
/// The run has no such credential within 30 seconds, or could not renew it.
pub fn credential_of_run(
    run: &Path,
    store: &Store,
    min_life: Option<Duration>,
    clock: Clock,
) -> Result<Credential, ObtainError> {
    const PATIENCE: Duration = Duration::from_secs(30);
    // If the stored credential is sufficient, wait only this long for a fresher one.
    const MOMENT: Duration = Duration::from_secs(2);
    let start = (clock.monotonic)();
    let mut request = Request::to(run);
    loop {
        // Check this before reading the store, because the run stores the credential before it answers.
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

/// Whether the run with this directory renews only on request.
pub fn renews_on_request(run: &Path) -> bool {
    nesting::delivery_of(run) == Some(Delivery::Environment)
}

/// A renewal request to one run.
pub(super) struct Request<'a> {
    run: &'a Path,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The run renews on schedule.
    NotNeeded,
    Ready,
    Sent,
    /// The file cannot be written.
    Failed,
}

impl Request<'_> {
    pub(super) fn to(run: &Path) -> Request<'_> {
        let state = if renews_on_request(run) { State::Ready } else { State::NotNeeded };
        Request { run, state }
    }

    /// Sends the request, once.
    pub(super) fn send(&mut self) {
        if self.state == State::Ready {
            let sent = private_file::replace_unsynced(self.run, REQUEST, &[], &|_| {});
            self.state = if sent.is_ok() { State::Sent } else { State::Failed };
        }
    }

    /// Whether the request can still lead to a new credential.
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
    /// Whether children cannot receive a new credential, so that the run renews only on request.
    pub(super) fn renews_on_request(&self) -> bool {
        self.provision == Provision::Credential(Delivery::Environment)
    }

    pub(super) fn is_renewal_requested(&self) -> bool {
        self.renews_on_request() && is_pending(&self.directory)
    }

    /// Whether the stored credential is fresh, which answers a request.
    pub(super) fn is_stored_fresh(&self) -> Result<bool, StoreError> {
        let is_fresh = |stored: &Credential| stored.freshness(self.clock.now()) == Freshness::Fresh;
        Ok(self.config.store().read(self.clock)?.as_ref().is_some_and(is_fresh))
    }

    /// Answers the request: the result is in the store. If the file cannot be removed, the request is answered again.
    pub(super) fn answer_renewal_request(&self) -> Result<(), PrivateFileError> {
        private_file::remove(&self.directory.join(REQUEST))
    }
}
