//! A credential that is kept in memory only.

use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Moment;
use crate::credential::Credential;

/// Holds one credential in this process's memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Option<(Credential, Moment)>>>);

impl Memory {
    pub(super) fn get(&self, now: Moment) -> Option<Credential> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().map(|(credential, since)| credential.moved_back(since.set_back(now)))
    }

    pub(super) fn set(&self, credential: &Credential, now: Moment) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((credential.clone(), now));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::{Clock, epoch_seconds, from_epoch_seconds};
    use crate::secret::Secret;
    use crate::store::{Location, Store};

    #[test]
    fn in_memory_credential_is_shared_by_copies_and_in_no_file() {
        let holder = tempfile::tempdir().unwrap();
        let (root, source) = (holder.path().join("state"), "a test".to_owned());
        let store = Store::at(&Location { root, key: "0".repeat(32), source, remintable: true });
        let memory = Memory::default();
        let store = || store.clone().in_memory(&memory);
        let now = from_epoch_seconds(epoch_seconds(Clock::system().now()));
        let (access_token, expires_at) = (Secret::new("t".to_owned()), now + Duration::from_secs(600));
        let bought = Credential { access_token, expires_at, obtained_at: now, generation: 0 };
        assert_eq!(store().read(Clock::system()).unwrap(), None);
        let keeping = store();
        let kept = keeping.lock(Duration::from_secs(1), Clock::system(), &|_| {}).unwrap().keep(bought);
        assert_eq!(store().read(Clock::system()).unwrap(), Some(kept));
        assert!(!store().has_file());
    }
}
