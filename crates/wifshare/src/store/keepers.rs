//! Keepers: runs that outlive the command that started them. Each one describes itself in its own directory, for the
//! later steps of a job.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::file_lock::FileLock;
use super::lease::{RUNS, is_alive, is_unborn, keys_unverified, list, subdirectories};
use super::owner::ProcessIdentity;
use super::{Store, StoreError};
use crate::clock::{Clock, epoch_seconds, from_epoch_seconds};
use crate::environment::Environment;
use crate::private_file::{self, PrivateFileError};
use crate::progress::Observer;

const KEEPER: &str = "keeper.json";
pub(super) const START: &str = "start";
const UNTIL: &str = "until";

/// A living run that keeps a credential for a whole job.
#[derive(Clone, Debug)]
pub struct Keeper {
    /// The run's own directory.
    pub directory: PathBuf,
    /// The keeper's process.
    pub owner: ProcessIdentity,
    /// What it provides, as the name of its delivery.
    pub provides: String,
    /// Its identity: the variables that configure it, with their values.
    pub identity: BTreeMap<String, String>,
    /// The variables that are set for later steps.
    pub gives: Environment,
    /// The variables that are removed for later steps.
    pub takes: Vec<String>,
}

/// The start lock, held while looking for a keeper and starting a missing one.
pub struct StartLock {
    // Kept for its lock only.
    _lock: FileLock,
}

#[derive(Serialize, Deserialize)]
struct KeeperFile {
    owner: ProcessIdentity,
    provides: String,
    identity: BTreeMap<String, String>,
    gives: BTreeMap<String, String>,
    takes: Vec<String>,
}

impl Keeper {
    /// Returns the keeper of the run with this directory, if it is alive.
    pub fn of_run(directory: &Path) -> Option<Keeper> {
        Keeper::read(directory).ok()?
    }

    fn read(directory: &Path) -> Result<Option<Keeper>, StoreError> {
        let Some(bytes) = private_file::read(&directory.join(KEEPER))? else { return Ok(None) };
        let Ok(file) = serde_json::from_slice::<KeeperFile>(&bytes) else { return Ok(None) };
        Ok(is_alive(directory).then(|| Keeper {
            directory: directory.to_owned(),
            owner: file.owner,
            provides: file.provides,
            identity: file.identity,
            gives: file.gives.into_iter().collect(),
            takes: file.takes,
        }))
    }

    /// Returns when the keeper ends at the latest, whatever else it waits for.
    pub fn until(&self) -> Option<SystemTime> {
        until(&self.directory)
    }

    /// Postpones the latest end to `end`, if that is later.
    ///
    /// # Errors
    ///
    /// Fails if the new end cannot be written to the run's directory.
    pub fn extend(&self, end: SystemTime) -> Result<(), StoreError> {
        extend(&self.directory, end)
    }

    /// Returns the directory of its identity key.
    pub fn key_directory(&self) -> Option<&Path> {
        self.directory.parent()?.parent()
    }

    /// Returns whether the keeper's identity has all of these variables with the same values.
    pub fn agrees_with<'a>(&self, mut said: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
        said.all(|(name, value)| self.identity.get(name).is_some_and(|ours| ours == value))
    }

    /// Returns whether the keeper's identity has a different value for any of these variables. An unknown variable is
    /// no contradiction.
    pub fn contradicts<'a>(&self, mut said: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
        said.any(|(name, value)| self.identity.get(name).is_some_and(|ours| ours != value))
    }

    /// Writes the keeper's description to the run's directory, where later steps read it.
    pub(crate) fn announce(&self, observer: Observer<'_>) -> Result<(), StoreError> {
        let text = |(name, value): (&std::ffi::OsStr, &std::ffi::OsStr)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        };
        let file = KeeperFile {
            owner: self.owner.clone(),
            provides: self.provides.clone(),
            identity: self.identity.clone(),
            gives: self.gives.iter().map(text).collect(),
            takes: self.takes.clone(),
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(16 * 1024));
        serde_json::to_writer(&mut *bytes, &file).expect("texts and numbers become JSON");
        Ok(private_file::replace(&self.directory, KEEPER, &bytes, observer)?)
    }
}

/// Returns when the keeper of the run with this directory ends at the latest.
pub fn until(run: &Path) -> Option<SystemTime> {
    let text = private_file::read(&run.join(UNTIL)).ok()??;
    Some(from_epoch_seconds(std::str::from_utf8(&text).ok()?.trim().parse().ok()?))
}

/// Postpones the latest end of the keeper of this run to `end`, if that is later.
///
/// # Errors
///
/// Fails if the new end cannot be written to the run's directory.
pub fn extend(run: &Path, end: SystemTime) -> Result<(), StoreError> {
    if until(run).is_some_and(|before| before >= end) {
        return Ok(());
    }
    let text = epoch_seconds(end).to_string();
    Ok(private_file::replace_unsynced(run, UNTIL, text.as_bytes(), &|_| {})?)
}

impl Store {
    /// Waits for the start lock of this key, at most `patience`.
    ///
    /// # Errors
    /// Fails on timeout or interruption, or if the lock file cannot be used.
    pub fn starting(&self, patience: Duration, clock: Clock, observer: Observer<'_>) -> Result<StartLock, StoreError> {
        self.create()?;
        let mut lock = FileLock::acquire(&self.directory.join(START), patience, clock, observer)?;
        lock.doing("starting a keeper", clock);
        Ok(StartLock { _lock: lock })
    }

    /// Returns the living keepers of this key.
    pub fn keepers(&self) -> Vec<Keeper> {
        let runs = subdirectories(&self.directory.join(RUNS));
        runs.iter().filter(|run| !is_unborn(run)).filter_map(|run| Keeper::of_run(run)).collect()
    }
}

/// Returns the living keepers under all keys of this state directory, and the first error that may hide others.
///
/// If other users can only read the directory, its files can still be trusted, so its keepers are included.
pub fn keepers(root: &Path) -> (Vec<Keeper>, Result<(), StoreError>) {
    let mut seen = private_file::verify_if_there(root).map_err(StoreError::from);
    let can_be_written_by_others = |mode: u32| mode & 0o022 != 0;
    match &seen {
        Err(StoreError::File(PrivateFileError::Loose { mode, .. })) if !can_be_written_by_others(*mode) => {}
        Err(_) => return (Vec::new(), seen),
        Ok(()) => {}
    }
    let mut note = |error| {
        if seen.is_ok() {
            seen = Err(error);
        }
    };
    let mut found = Vec::new();
    let keys = keys_unverified(root).unwrap_or_else(|error| {
        note(error);
        Vec::new()
    });
    for key in keys {
        let runs = list(&key.join(RUNS)).unwrap_or_else(|error| {
            note(error);
            Vec::new()
        });
        for run in runs.iter().filter(|run| !is_unborn(run)) {
            match Keeper::read(run) {
                Ok(keeper) => found.extend(keeper),
                Err(error) => note(error),
            }
        }
    }
    (found, seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Location, OnLastRun};

    #[test]
    fn keeper_is_found_while_alive_and_compared_by_identity() {
        let holder = tempfile::tempdir().unwrap();
        let (root, source) = (holder.path().join("state"), "a test".to_owned());
        let key = "0123456789abcdef0123456789abcdef".to_owned();
        let store = Store::at(&Location { root: root.clone(), key, source, remintable: true });
        let lease = store.lease(Clock::system(), &|_| {}).unwrap();
        assert!(store.keepers().is_empty(), "a run that keeps nothing for others");
        let keeper = Keeper {
            directory: lease.directory().to_owned(),
            owner: ProcessIdentity::current(),
            provides: "profile".to_owned(),
            identity: BTreeMap::from([("RULE".to_owned(), "fdrl_1".to_owned())]),
            gives: Environment::from_iter([("A", "b")]),
            takes: vec!["C".to_owned()],
        };
        keeper.announce(&|_| {}).unwrap();
        let found = Keeper::of_run(lease.directory()).expect("it lives");
        assert_eq!((found.owner, found.provides, found.takes), (keeper.owner, keeper.provides, keeper.takes));
        assert_eq!((found.identity, found.gives.text("A")), (keeper.identity, Some("b")));
        for keepers in [store.keepers(), keepers(&root).0] {
            let [one] = keepers.as_slice() else { panic!("{keepers:?}") };
            assert_eq!((one.directory.as_path(), one.key_directory()), (lease.directory(), Some(store.directory())));
            let agrees = |name, value| one.agrees_with([(name, value)].into_iter());
            assert!(agrees("RULE", "fdrl_1") && one.agrees_with(std::iter::empty()));
            assert!(!agrees("RULE", "fdrl_2") && !agrees("ORGANIZATION", "fdrl_1"));
            let contradicts = |name, value| one.contradicts([(name, value)].into_iter());
            assert!(contradicts("RULE", "fdrl_2") && !contradicts("RULE", "fdrl_1") && !contradicts("JOB", "1"));
        }
        let directory = lease.directory().to_owned();
        lease.end(|| OnLastRun::Remove).unwrap();
        assert!(Keeper::of_run(&directory).is_none() && keepers(&root).0.is_empty());
    }
}
