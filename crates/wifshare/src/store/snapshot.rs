//! A read-only snapshot of a state directory, taken without waiting.

use std::path::{Path, PathBuf};

use super::file_lock::{FileLock, holder};
use super::lease::{is_unborn, keys, subdirectories};
use super::owner::ProcessIdentity;
use super::{CachedFailure, LOCK, StoreError, failure_cache, is_alive, read_credential};
use crate::clock::Clock;
use crate::credential::Credential;
use crate::private_file;

/// The state of one identity key.
#[derive(Debug)]
pub struct Snapshot {
    /// The identity key.
    pub key: String,
    /// Its directory.
    pub directory: PathBuf,
    /// The stored credential, fresh or not.
    pub credential: Option<Credential>,
    /// Description of the identity source.
    pub source: Option<String>,
    /// Whether the source can issue a new token at any time.
    pub remintable: bool,
    /// The cached failure, if it still applies.
    pub refusal: Option<CachedFailure>,
    /// The lock holder's description of itself: "pid 4711, exchanging since 2 s".
    pub holder: Option<String>,
    /// The living runs.
    pub runs: Vec<ProcessIdentity>,
    /// The error if the credential could not be read.
    pub unreadable: Option<StoreError>,
}

/// Returns a snapshot of every identity key in this state directory, sorted by key. Returns none if the directory does
/// not exist.
///
/// # Errors
/// Fails if the directory is not private, or cannot be read.
pub fn look(root: &Path, clock: Clock) -> Result<Vec<Snapshot>, StoreError> {
    let mut keys = keys(root)?;
    keys.sort();
    Ok(keys.into_iter().map(|directory| look_at(directory, clock)).collect())
}

fn look_at(directory: PathBuf, clock: Clock) -> Snapshot {
    let key = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (stored, unreadable) = match read_credential(&directory, clock) {
        Ok(stored) => (stored, None),
        Err(error) => (None, Some(error)),
    };
    let (source, remintable) = match &stored {
        Some(stored) => (Some(stored.source.clone()), stored.remintable),
        None => (None, false),
    };
    let lock = directory.join(LOCK);
    let nobody = || "a process that does not say what it does".to_owned();
    let runs = subdirectories(&directory.join("runs"));
    Snapshot {
        key,
        credential: stored.map(|stored| stored.credential),
        source,
        remintable,
        refusal: failure_cache::read(&directory, clock.now()).ok().flatten(),
        holder: FileLock::is_held(&lock).then(|| holder(&lock, clock).unwrap_or_else(nobody)),
        runs: runs.iter().filter(|run| !is_unborn(run) && is_alive(run)).filter_map(|run| owner(run)).collect(),
        directory,
        unreadable,
    }
}

fn owner(run: &Path) -> Option<ProcessIdentity> {
    serde_json::from_slice(&private_file::read(&run.join("owner")).ok()??).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::{epoch_seconds, from_epoch_seconds};
    use crate::secret::Secret;
    use crate::store::{Location, PATIENCE, Store};

    #[test]
    fn snapshot_shows_the_state_and_changes_nothing() {
        let holder = tempfile::tempdir().unwrap();
        let root = holder.path().join("state");
        let clock = Clock::system();
        assert!(look(&root, clock).unwrap().is_empty() && !root.exists());
        let location = Location {
            root: root.clone(),
            key: "0123456789abcdef0123456789abcdef".to_owned(),
            source: "a test".to_owned(),
            remintable: true,
        };
        let store = Store::at(&location);
        let obtained_at = from_epoch_seconds(epoch_seconds(clock.now()));
        let access_token = Secret::new("t".to_owned());
        let expires_at = obtained_at + Duration::from_secs(600);
        let lease = store.lease(clock, &|_| {}).unwrap();
        let mut locked = store.lock(PATIENCE, clock, &|_| {}).unwrap();
        assert!(!store.has_file());
        locked.keep(Credential { access_token, expires_at, obtained_at, generation: 0 });
        assert!(store.has_file());
        let refusal = CachedFailure::new("c", "m".to_owned(), None, clock.now(), Duration::from_secs(30));
        locked.remember(&refusal);
        // A killed run leaves an owner file, and so does a run that is not complete yet.
        for name in ["1-00000000", ".new-2-00000000"] {
            let run = store.directory().join("runs").join(name);
            private_file::private_directory(&run).unwrap();
            let owner = serde_json::to_vec(&ProcessIdentity { pid: 1, ..ProcessIdentity::current() }).unwrap();
            private_file::replace(&run, "owner", &owner, &|_| {}).unwrap();
        }
        let looks = look(&root, clock).unwrap();
        let [seen] = looks.as_slice() else { panic!("{looks:?}") };
        assert_eq!(seen.key, location.key);
        assert_eq!(seen.credential.as_ref().map(|credential| credential.generation), Some(1));
        assert_eq!((seen.source.as_deref(), seen.remintable), (Some("a test"), true));
        assert_eq!(seen.refusal.as_ref(), Some(&refusal));
        assert!(seen.holder.as_ref().is_some_and(|it| it.contains("storing since")), "{:?}", seen.holder);
        assert_eq!(seen.runs, [ProcessIdentity::current()]);
        drop(locked);
        lease.end(|| crate::store::OnLastRun::Remove).unwrap();
        let looks = look(&root, clock).unwrap();
        assert!(looks[0].credential.is_none() && looks[0].holder.is_none() && looks[0].runs.is_empty());
    }
}
