//! Leases: each run holds one, and the last run to end removes what they shared.
//!
//! A lease consists of two locks that the kernel releases when the process ends. A shared lock on the key's `lease`
//! file shows whether any run is left. An exclusive lock on the `owner` file in the run's directory shows whether that
//! run is alive.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file_lock::FileLock;
use super::ledger::Ledger;
use super::owner::ProcessIdentity;
use super::{CREDENTIAL, LOCK, Store, StoreError, read_credential, read_file};
use crate::clock::Clock;
use crate::private_file::{self, PrivateFileError};
use crate::progress::{Observer, Progress};

pub(super) const LEASE: &str = "lease";
const OWNER: &str = "owner";
pub(super) const RUNS: &str = "runs";

/// A run's lease on the credential of its identity key, with a private directory for what the run delivers.
pub struct Lease {
    store: Store,
    shared: File,
    directory: PathBuf,
    // Kept open for its lock, which is released with the lease.
    owner: File,
}

/// What happens to the credential after the last run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLastRun {
    /// It is removed: its source can issue another token.
    Remove,
    /// It stays until it expires: its source cannot issue another token.
    Keep,
}

impl Store {
    /// Takes a lease for this process.
    ///
    /// # Errors
    /// Fails on timeout or interruption, or if the files of the lease cannot be created.
    pub fn lease(&self, clock: Clock, observer: Observer<'_>) -> Result<Lease, StoreError> {
        // The last run holds the lease exclusively for a moment, while it removes what the runs shared.
        const PATIENCE: Duration = Duration::from_secs(20);
        self.create()?;
        // Must come before taking the shared lock, because it needs the lock exclusively.
        if remove_damaged_of_nobody(&self.directory) {
            observer(&Progress::Swept);
        }
        let path = self.directory.join(LEASE);
        let start = (clock.monotonic)();
        let shared = loop {
            if let Some(file) = share(&path)? {
                break file;
            }
            let waited = (clock.monotonic)().saturating_sub(start);
            if waited > PATIENCE {
                return Err(StoreError::Held { path, holder: None, waited });
            }
            (clock.pause)(Duration::from_millis(5))?;
        };
        let (directory, owner) = self.new_run(observer)?;
        Ok(Lease { store: self.clone(), shared, directory, owner })
    }

    /// Creates the run's directory under a hidden name that sweeps ignore, locks its owner file, and then renames it. A
    /// directory that was never renamed contains no secret, and is removed after the last run.
    fn new_run(&self, observer: Observer<'_>) -> Result<(PathBuf, File), StoreError> {
        let runs = self.directory.join(RUNS);
        private_file::private_directory(&runs)?;
        let owner = ProcessIdentity::current();
        let name = format!("{}-{:08x}", owner.pid, fastrand::u32(..));
        let (unborn, born) = (runs.join(format!(".new-{name}")), runs.join(name));
        private_file::private_directory(&unborn)?;
        let file = own(&unborn, observer)?;
        fs::rename(&unborn, &born).map_err(|source| failed("rename", &unborn, source))?;
        Ok((born, file))
    }
}

impl Lease {
    /// Returns the run's own directory. It has mode 0700 and is removed with the lease.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns whether the run's own directory still exists.
    pub fn is_in_place(&self) -> bool {
        self.directory.join(OWNER).exists()
    }

    /// Removes the run's own directory. Keeps everything that other runs may use.
    ///
    /// # Errors
    /// Fails if the directory cannot be removed.
    pub fn remove_directory(&self) -> Result<(), StoreError> {
        Ok(private_file::remove(&self.directory)?)
    }

    /// Recreates the run's directory if another process removed it: creates the files, and takes the lock when they are
    /// complete. Returns whether the directory was recreated.
    ///
    /// # Errors
    /// Fails if the directory, its files or the ledger cannot be written.
    pub fn restore<E: From<StoreError>>(
        &mut self,
        lay_out: impl FnOnce() -> Result<(), E>,
        clock: Clock,
        observer: Observer<'_>,
    ) -> Result<bool, E> {
        if self.is_in_place() {
            return Ok(false);
        }
        self.store.create()?;
        Ledger::at(&self.store.root).restore(clock, observer)?;
        let path = self.store.directory.join(LEASE);
        // A run that ends holds the lease exclusively for a moment. The next check retries soon.
        let Some(shared) = share(&path)? else { return Ok(false) };
        self.shared = shared;
        private_file::private_directory(&self.directory).map_err(StoreError::from)?;
        lay_out()?;
        self.owner = own(&self.directory, observer)?;
        Ok(true)
    }

    /// Ends the lease. For the last run, `afterwards` decides what happens to the credential, and the decision is
    /// returned. For any other run, the credential stays and the result is `None`.
    ///
    /// # Errors
    /// Fails if a lock cannot be used, or if the run's directory or the credential cannot be removed.
    pub fn end(self, afterwards: impl FnOnce() -> OnLastRun) -> Result<Option<OnLastRun>, StoreError> {
        let removed = self.remove_directory();
        // Another run may start between the unlock and the exclusive lock. Then that run is the last one.
        self.shared.unlock().map_err(|source| failed("unlock", &self.store.directory, source))?;
        let Some(_alone) = FileLock::try_acquire(&self.store.directory.join(LEASE))? else {
            return removed.map(|()| None);
        };
        // Every living run of this key shares the lease, so all remaining directories belong to dead runs.
        drop(private_file::remove(&self.store.directory.join(RUNS)));
        remove_unfinished_of_nobody(&self.store.directory);
        let afterwards = afterwards();
        if afterwards == OnLastRun::Remove {
            self.store.remove()?;
        }
        removed.map(|()| Some(afterwards))
    }

    /// Returns whether other runs currently share the credential.
    pub fn is_shared(&self) -> bool {
        let runs = self.store.directory.join(RUNS);
        let others = fs::read_dir(runs).into_iter().flatten().flatten().map(|entry| entry.path());
        others.into_iter().any(|ref path| *path != self.directory && !is_unborn(path) && is_alive(path))
    }
}

/// Takes the shared lock, unless another process holds it exclusively.
fn share(path: &Path) -> Result<Option<File>, StoreError> {
    let file = private_file::open_in_place(path)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(failed("lock", path, source)),
    }
}

/// Marks this directory as owned by this process while the returned file is open. Nothing of a run is synced: a run
/// without a valid owner file was lost in a power failure ([`remove_damaged_of_nobody`]).
fn own(run: &Path, observer: Observer<'_>) -> Result<File, StoreError> {
    let path = run.join(OWNER);
    let text = serde_json::to_vec(&ProcessIdentity::current()).expect("texts and numbers become JSON");
    private_file::replace_unsynced(run, OWNER, &text, observer)?;
    let file = private_file::open_in_place(&path)?;
    file.try_lock().map_err(|error| failed("lock", &path, error.into()))?;
    Ok(file)
}

/// Returns whether the run with this directory is alive.
pub fn is_alive(run: &Path) -> bool {
    FileLock::is_held(&run.join(OWNER))
}

/// Removes what killed runs left behind, under all keys of this state directory. A run is dead if its lock is free
/// *and* no living process has its pid and start time. The credential of a key is removed with its last run, unless its
/// source cannot issue another token. An expired credential is always removed.
///
/// Best effort: what cannot be removed is left for the next start.
pub fn sweep(root: &Path, clock: Clock, observer: Observer<'_>) {
    for key in keys(root).unwrap_or_default() {
        remove_unfinished_of_nobody(&key);
        let runs = subdirectories(&key.join(RUNS));
        let born = runs.iter().filter(|run| !is_unborn(run));
        let swept = born.filter(|run| sweep_run(run).unwrap_or(false)).count();
        let some_swept = remove_damaged_of_nobody(&key) || swept > 0;
        let removed = remove_credential_of_nobody(&key, some_swept, clock).unwrap_or(false);
        if some_swept || removed {
            observer(&Progress::Swept);
        }
    }
}

fn sweep_run(run: &Path) -> Result<bool, StoreError> {
    let is_dead = owner_of(run)?.is_some_and(|owner| owner.is_dead());
    if FileLock::is_held(&run.join(OWNER)) || !is_dead {
        return Ok(false);
    }
    private_file::remove(run)?;
    Ok(true)
}

/// Removes runs without a valid owner file, which was lost in a power failure. A run is only renamed into place with
/// its owner file, and a run that recreates its directory shares the lease. So with the exclusive lease, such runs are
/// known to be dead. Returns whether there were any.
fn remove_damaged_of_nobody(key: &Path) -> bool {
    let runs = subdirectories(&key.join(RUNS));
    let is_damaged = |run: &&PathBuf| !is_unborn(run) && matches!(owner_of(run), Ok(None));
    let damaged: Vec<&PathBuf> = runs.iter().filter(is_damaged).collect();
    if damaged.is_empty() {
        return false;
    }
    let Ok(Some(_alone)) = FileLock::try_acquire(&key.join(LEASE)) else { return false };
    damaged.into_iter().filter(|run| private_file::remove(run).is_ok()).count() > 0
}

/// Returns the owner of a run; `None` if the owner file is missing or invalid.
fn owner_of(run: &Path) -> Result<Option<ProcessIdentity>, StoreError> {
    let text = private_file::read(&run.join(OWNER))?;
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
}

fn remove_credential_of_nobody(key: &Path, last_run_was_killed: bool, clock: Clock) -> Result<bool, StoreError> {
    let is_to_go = || match read_credential(key, clock) {
        Ok(Some(stored)) => {
            let left_by_a_killed_run = last_run_was_killed && stored.remintable;
            !stored.credential.is_usable(clock.now()) || left_by_a_killed_run
        }
        _ => false,
    };
    if !is_to_go() {
        return Ok(false);
    }
    // Take both locks, so that the credential is neither used nor replaced, and check again.
    let (Some(_alone), Some(_turn)) =
        (FileLock::try_acquire(&key.join(LEASE))?, FileLock::try_acquire(&key.join(LOCK))?)
    else {
        return Ok(false);
    };
    if !is_to_go() {
        return Ok(false);
    }
    private_file::remove(&key.join(CREDENTIAL))?;
    Ok(true)
}

/// Removes everything that no living run uses, including credentials: of these keys, or of all keys. Keeps what living
/// runs share. Returns whether nothing had to stay.
///
/// # Errors
///
/// Fails if the state directory is not private, or if something in it cannot be removed.
pub fn clear(root: &Path, keys: Option<&[PathBuf]>, clock: Clock, observer: Observer<'_>) -> Result<bool, StoreError> {
    let mut is_clear = true;
    let found = self::keys(root)?;
    sweep(root, clock, observer);
    for key in found.into_iter().filter(|key| keys.is_none_or(|keys| keys.contains(key))) {
        if let (Some(_alone), Some(_turn)) =
            (FileLock::try_acquire(&key.join(LEASE))?, FileLock::try_acquire(&key.join(LOCK))?)
        {
            private_file::remove(&key.join(RUNS))?;
            if read_file(&key)?.is_some() {
                private_file::remove(&key.join(CREDENTIAL))?;
            }
        } else {
            is_clear = false;
        }
    }
    Ok(is_clear)
}

/// Removes temporary files of killed processes. The key's lock ensures that no process is writing.
fn remove_unfinished_of_nobody(key: &Path) {
    if let Ok(Some(_alone)) = FileLock::try_acquire(&key.join(LOCK)) {
        private_file::remove_unfinished(key);
    }
}

/// Returns the directories of all identity keys in this state directory; none if it does not exist.
///
/// # Errors
///
/// Fails if the directory is not private, or cannot be read.
pub fn keys(root: &Path) -> Result<Vec<PathBuf>, StoreError> {
    private_file::verify_if_there(root)?;
    keys_unverified(root)
}

/// Like [`keys`], even if other users can read the directory.
pub(super) fn keys_unverified(root: &Path) -> Result<Vec<PathBuf>, StoreError> {
    Ok(list(root)?.into_iter().filter(|path| is_key(path)).collect())
}

pub(super) fn subdirectories(path: &Path) -> Vec<PathBuf> {
    list(path).unwrap_or_default()
}

/// Returns the subdirectories of a directory; none if it does not exist.
pub(super) fn list(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| failed("list", path, source))?,
    };
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.flatten().filter(is_directory).map(|entry| entry.path()).collect())
}

pub(super) fn is_unborn(run: &Path) -> bool {
    run.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Returns whether a directory is named like a key. Any other entry in the state directory is not wifshare's.
pub(super) fn is_key(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    PrivateFileError::Io { action, path: path.to_owned(), source }.into()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::store::Location;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn root(holder: &tempfile::TempDir) -> PathBuf {
        holder.path().join("state")
    }

    fn store(root: &Path) -> Store {
        let (root, source) = (root.to_owned(), "a test".to_owned());
        Store::at(&Location { root, key: KEY.to_owned(), source, remintable: true })
    }

    /// Creates the directory of a run whose process has ended.
    fn dead_run(runs: &Path, name: &str) -> PathBuf {
        let run = runs.join(name);
        private_file::private_directory(&run).unwrap();
        let owner = ProcessIdentity { pid: u32::MAX, start_time: Some(1), ..ProcessIdentity::current() };
        private_file::replace(&run, OWNER, &serde_json::to_vec(&owner).unwrap(), &|_| {}).unwrap();
        run
    }

    /// Sweeps, and returns the number of reports.
    fn swept(root: &Path) -> usize {
        let told = AtomicUsize::new(0);
        let observer = |step: &Progress<'_>| {
            if let Progress::Swept = step {
                told.fetch_add(1, Ordering::SeqCst);
            }
        };
        sweep(root, Clock::system(), &observer);
        told.into_inner()
    }

    #[test]
    fn sweep_removes_only_dead_runs_under_valid_keys() {
        let holder = tempfile::tempdir().unwrap();
        let store = store(&root(&holder));
        let living = store.lease(Clock::system(), &|_| {}).unwrap();
        let runs = store.directory.join(RUNS);
        let dead = dead_run(&runs, "1-dead");
        let unborn = dead_run(&runs, ".new-2-dead");
        let unborn_and_nameless = runs.join(".new-3-dead");
        private_file::private_directory(&unborn_and_nameless).unwrap();
        let foreign = ["short".to_owned(), "z".repeat(32), "0".repeat(33)];
        let foreign = foreign.map(|name| dead_run(&root(&holder).join(name).join(RUNS), "1-dead"));
        let unfinished = store.directory.join(".new-unfinished");
        File::create(&unfinished).unwrap();

        assert_eq!(swept(&root(&holder)), 1);
        assert!(!dead.exists() && !unfinished.exists());
        assert!(unborn.exists() && unborn_and_nameless.exists());
        assert!(foreign.iter().all(|run| run.exists()));
        assert!(living.is_in_place() && is_alive(living.directory()));
        assert_eq!(swept(&root(&holder)), 0, "nothing is left to tell of");
        drop(living);

        // A damaged directory has no readable owner.
        let damaged = runs.join("4-damaged");
        private_file::private_directory(&damaged).unwrap();
        assert_eq!(swept(&root(&holder)), 1);
        assert!(!damaged.exists() && unborn_and_nameless.exists());
    }

    #[test]
    fn lease_is_in_place_until_removed_and_after_restore() {
        let holder = tempfile::tempdir().unwrap();
        let mut lease = store(&root(&holder)).lease(Clock::system(), &|_| {}).unwrap();
        let lay_out = || Ok::<_, StoreError>(());
        assert!(!lease.restore(lay_out, Clock::system(), &|_| {}).unwrap(), "it is there");
        let directory = lease.directory().to_owned();
        lease.remove_directory().unwrap();
        assert!(!directory.exists() && !lease.is_in_place() && !is_alive(&directory));
        assert!(lease.restore(lay_out, Clock::system(), &|_| {}).unwrap());
        assert!(lease.is_in_place() && is_alive(&directory));
        lease.end(|| OnLastRun::Remove).unwrap();
        assert!(!is_alive(&directory));
    }

    #[test]
    fn held_lease_is_waited_for_20_s() {
        thread_local! {
            static NOW: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
        }
        let holder = tempfile::tempdir().unwrap();
        let store = store(&root(&holder));
        store.create().unwrap();
        let _alone = FileLock::try_acquire(&store.directory.join(LEASE)).unwrap().expect("it is free");
        let pause = |time| {
            NOW.set(NOW.get() + time);
            Ok(())
        };
        let clock = Clock { monotonic: || NOW.get(), pause, ..Clock::system() };
        let Err(StoreError::Held { waited, .. }) = store.lease(clock, &|_| {}) else { panic!("it is held") };
        assert_eq!(waited, Duration::from_millis(20_005));
    }

    #[test]
    fn clear_removes_unused_state_of_the_given_keys() {
        let holder = tempfile::tempdir().unwrap();
        let (root, clock) = (root(&holder), Clock::system());
        let store = store(&root);
        let clear = |keys: Option<&[PathBuf]>| clear(&root, keys, clock, &|_| {}).unwrap();
        let lease = store.lease(clock, &|_| {}).unwrap();
        let now = crate::clock::from_epoch_seconds(crate::clock::epoch_seconds(clock.now()));
        let access_token = crate::secret::Secret::new("t".to_owned());
        let expires_at = now + Duration::from_secs(600);
        let bought = crate::credential::Credential { access_token, expires_at, obtained_at: now, generation: 0 };
        store.lock(Duration::from_secs(1), clock, &|_| {}).unwrap().keep(bought);
        assert!(!clear(None), "somebody lives");
        assert!(store.has_file());
        assert_eq!(lease.end(|| OnLastRun::Keep).unwrap(), Some(OnLastRun::Keep));
        assert!(clear(Some(&[])) && store.has_file(), "no key is meant");
        assert!(clear(Some(std::slice::from_ref(&store.directory))) && !store.has_file());
    }
}
