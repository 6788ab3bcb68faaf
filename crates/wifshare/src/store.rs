//! The store of one credential per identity key on this machine. Only one process at a time replaces it.
//!
//! Readers need no lock, because a replacement is a rename. Operations that need the lock are methods of the lock
//! guard, [`LockedStore`].

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, Interrupted, Moment, epoch_seconds, from_epoch_seconds};
use crate::credential::{Credential, is_bearer_token};
use crate::identity_token::IdentityToken;
use crate::message::whole_message;
use crate::principal::{OwnPrincipal, Principal};
use crate::private_file::{self, PrivateFileError};
use crate::progress::{Observer, Progress};
use crate::secret::Secret;

mod check;
mod failure_cache;
mod file_lock;
mod keepers;
mod lease;
mod ledger;
mod memory;
mod owner;
mod snapshot;

pub use failure_cache::CachedFailure;
use file_lock::FileLock;
pub use keepers::{Keeper, StartLock, extend, keepers, until};
pub use lease::{Lease, OnLastRun, clear, is_alive, keys, sweep};
use ledger::{Ledger, Written};
pub use ledger::{Spent, Use};
pub use memory::Memory;
pub use owner::ProcessIdentity;
pub use snapshot::{Snapshot, look};

const CREDENTIAL: &str = "credential.json";
const LOCK: &str = "lock";

/// The format version of ledger entries and cached failures. A newer version is rejected and never overwritten.
const FORMAT: u32 = 1;

/// The format version of the credential file. Version 1 does not name the principal. A wifshare that only knows version
/// 1 rejects version 2 instead of serving it to any principal.
const CREDENTIAL_FORMAT: u32 = 2;

/// Lock timeout of a process that has no usable credential. Longer than the holder takes with all retries: none starts
/// after a minute, and the last one takes less than two.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Where a credential is stored, and the metadata stored with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The state directory of this user.
    pub root: PathBuf,
    /// The identity key, which is safe as a file name.
    pub key: String,
    /// Description of the identity source.
    pub source: String,
    /// Whether the source can issue a new token at any time.
    pub remintable: bool,
}

/// The state of one identity key.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    directory: PathBuf,
    source: String,
    remintable: bool,
    memory: Option<Memory>,
    /// The principal of this process. Credentials of other principals are hidden.
    principal: OwnPrincipal,
}

/// The lock guard of a store: operations that need the lock are methods of this type.
pub struct LockedStore<'a> {
    store: &'a Store,
    /// `None` after release.
    lock: Option<FileLock>,
    /// Whether the observer received [`Progress::Locked`].
    is_announced: bool,
    /// The last entry that this guard wrote to the ledger.
    recorded: Option<Spent>,
    clock: Clock,
    observer: Observer<'a>,
}

/// Why the store could not be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory is not usable.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// Another process held the lock until the timeout.
    #[error(
        "waited {} s for the lock {}, held by {}",
        waited.as_secs(), path.display(), holder.as_deref().unwrap_or("another process")
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// How the holder describes itself.
        holder: Option<String>,
        /// How long this process waited.
        waited: Duration,
    },
    /// A newer version of wifshare wrote the file.
    #[error("{} was written in format {version} by a newer wifshare; this one knows format {}", path.display(), newest_known(path))]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u64,
    },
    /// The ledger of spent identity tokens contains an invalid line.
    #[error("{} is damaged: line {line} is no entry of a ledger", path.display())]
    Damaged {
        /// The ledger.
        path: PathBuf,
        /// The first invalid line.
        line: u64,
    },
    /// Locks are not reliable on this file system.
    #[error("{} is on {file_system}, where a lock may hold on one host only", directory.display())]
    UnreliableLocks {
        /// The state directory.
        directory: PathBuf,
        /// The type of file system.
        file_system: String,
    },
    /// The wait was interrupted.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl StoreError {
    /// Returns an instruction for the user.
    pub fn hint(&self) -> Option<String> {
        let choose = "choose another directory with --state-dir or WIFSHARE_STATE_DIR";
        match self {
            StoreError::File(error) => Some(error.hint()),
            StoreError::Held { .. } => {
                Some("look whether that process is stopped or hangs; end it and try again".to_owned())
            }
            StoreError::Newer { .. } => Some(format!("use one version of wifshare in a job, or {choose}")),
            StoreError::Damaged { path, .. } => Some(format!(
                "an identity token that was used before may stand on that line: once those of before have expired, \
                 within minutes at most CIs, `rm {}`; or {choose}",
                path.display()
            )),
            StoreError::UnreliableLocks { .. } => Some(format!("{choose}, one on a local file system")),
            StoreError::Interrupted(_) => None,
        }
    }
}

impl Store {
    /// Returns the store at this location. Opens and creates nothing.
    pub fn at(location: &Location) -> Store {
        Store {
            root: location.root.clone(),
            directory: location.root.join(&location.key),
            source: location.source.clone(),
            remintable: location.remintable,
            memory: None,
            principal: OwnPrincipal::default(),
        }
    }

    /// Returns the same store for this principal. Credentials of other principals are hidden.
    pub(crate) fn of_principal(self, principal: &OwnPrincipal) -> Store {
        Store { principal: principal.clone(), ..self }
    }

    /// Returns the same store with the credential kept in this process's memory. Lock, ledger and cached failure stay
    /// in files. A credential file of another run with this key is still read.
    pub fn in_memory(self, memory: &Memory) -> Store {
        Store { memory: Some(memory.clone()), ..self }
    }

    /// Returns the store of a run, given the run's directory.
    pub fn of_run(run: &Path) -> Option<Store> {
        let directory = run.parent()?.parent()?;
        let stored = read_file(directory).ok()??;
        Some(Store {
            root: directory.parent()?.to_owned(),
            directory: directory.to_owned(),
            source: stored.source,
            remintable: stored.remintable,
            memory: None,
            principal: OwnPrincipal::default(),
        })
    }

    /// Returns the location; `None` if the key is not Unicode.
    pub fn location(&self) -> Option<Location> {
        Some(Location {
            root: self.root.clone(),
            key: self.directory.file_name()?.to_str()?.to_owned(),
            source: self.source.clone(),
            remintable: self.remintable,
        })
    }

    /// Reads the credential, fresh or not, with its times adjusted to the current wall clock. Returns `None` if the
    /// file is damaged or belongs to another principal.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is not private, or has a newer format.
    pub fn read(&self, clock: Clock) -> Result<Option<Credential>, StoreError> {
        Ok(self.read_with_principal(clock)?.map(|(credential, _)| credential))
    }

    /// Like [`read`](Self::read), with the principal if the file names it.
    pub(crate) fn read_with_principal(
        &self,
        clock: Clock,
    ) -> Result<Option<(Credential, Option<Principal>)>, StoreError> {
        let is_ours = |stored: &Stored| match (&stored.principal, self.principal.known()) {
            (_, None) => true,
            (Some(stored), Some(own)) => stored == own,
            // A file without a principal is not for a process that has proven its own.
            (None, Some(_)) => false,
        };
        let stored = read_credential(&self.directory, clock)?.filter(is_ours);
        let stored = stored.map(|stored| (stored.credential, stored.principal));
        // This process obtained the credential in memory by itself.
        let remembered = self.memory.as_ref().and_then(|memory| memory.get(clock.moment()));
        let remembered = remembered.map(|credential| (credential, self.principal.known().cloned()));
        Ok(stored.into_iter().chain(remembered).max_by_key(|(credential, _)| credential.expires_at))
    }

    /// Returns whether the credential file exists.
    pub fn has_file(&self) -> bool {
        self.directory.join(CREDENTIAL).exists()
    }

    /// Waits for the lock, at most `patience`. The lock holder may replace the credential.
    ///
    /// # Errors
    /// Fails on timeout or interruption, or if the lock file cannot be used.
    pub fn lock<'a>(
        &'a self,
        patience: Duration,
        clock: Clock,
        observer: Observer<'a>,
    ) -> Result<LockedStore<'a>, StoreError> {
        let locked = self.lock_unless(|| Ok(false), patience, clock, observer)?;
        Ok(locked.expect("nothing settles it but the lock"))
    }

    /// Like [`lock`](Self::lock), but returns `None` if `settled` becomes true while waiting. `settled` is called while
    /// another process holds the lock, and reads without the lock, like every reader.
    ///
    /// # Errors
    /// Fails on timeout or interruption, if the lock file cannot be used, or if `settled` fails.
    pub fn lock_unless<'a>(
        &'a self,
        settled: impl FnMut() -> Result<bool, StoreError>,
        patience: Duration,
        clock: Clock,
        observer: Observer<'a>,
    ) -> Result<Option<LockedStore<'a>>, StoreError> {
        self.create()?;
        let lock = FileLock::acquire_unless(settled, &self.directory.join(LOCK), patience, clock, observer)?;
        Ok(lock.map(|lock| {
            let mut locked =
                LockedStore { store: self, lock: Some(lock), is_announced: false, recorded: None, clock, observer };
            locked.doing("looking");
            locked
        }))
    }

    /// Returns the cached failure, if it still applies.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not private.
    pub fn remembered_refusal(&self, now: SystemTime) -> Result<Option<CachedFailure>, StoreError> {
        failure_cache::read(&self.directory, now)
    }

    /// Removes the credential. Keeps the ledger, a cached failure, and a file of a newer format.
    ///
    /// # Errors
    /// Fails if the file has a newer format or cannot be removed.
    pub fn remove(&self) -> Result<(), StoreError> {
        if let Err(error @ StoreError::Newer { .. }) = read_file(&self.directory) {
            return Err(error);
        }
        Ok(private_file::remove(&self.directory.join(CREDENTIAL))?)
    }

    /// Returns the ledger's entry for this token, if any.
    ///
    /// # Errors
    /// Fails if the ledger cannot be read or is damaged.
    pub fn spent(&self, token: &IdentityToken) -> Result<Option<Spent>, StoreError> {
        Ledger::at(&self.root).find(token)
    }

    /// Records a token as delivered to children; no wifshare process will send it. Returns an existing entry instead,
    /// if there is one.
    ///
    /// # Errors
    /// Fails if the ledger cannot be read, written or synced.
    pub fn hand_out(
        &self,
        token: &IdentityToken,
        clock: Clock,
        observer: Observer<'_>,
    ) -> Result<Option<Spent>, StoreError> {
        self.create()?;
        match Ledger::at(&self.root).spend(token, Use::HandedOut, clock, observer)? {
            Written::New(_) => Ok(None),
            Written::Before(entry) => Ok(Some(entry)),
        }
    }

    /// Returns the directory of this identity key.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn create(&self) -> Result<(), StoreError> {
        private_file::private_directory(&self.root)?;
        file_lock::locks_are_reliable(&self.root)?;
        Ok(private_file::private_directory(&self.directory)?)
    }

    fn write(&self, credential: &Credential, clock: Clock, observer: Observer<'_>) -> Result<(), StoreError> {
        if let Some(memory) = &self.memory {
            memory.set(credential, clock.moment());
            return Ok(());
        }
        let file = CredentialFile {
            version: CREDENTIAL_FORMAT,
            generation: credential.generation,
            access_token: credential.access_token.expose(),
            expires_at: epoch_seconds(credential.expires_at),
            obtained_at: epoch_seconds(credential.obtained_at),
            source: &self.source,
            remintable: self.remintable,
            stored: Stamp::of(clock.moment()),
            principal: self.principal.known(),
        };
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(2 * file.access_token.len() + 4096));
        serde_json::to_writer_pretty(&mut *bytes, &file).expect("texts and numbers become JSON");
        Ok(private_file::replace(&self.directory, CREDENTIAL, &bytes, observer)?)
    }
}

impl LockedStore<'_> {
    /// Stores this credential as the next generation, and returns it with that number. If it cannot be written, it is
    /// returned anyway and [`Progress::NotKept`] is reported: losing it would waste the identity token.
    pub fn keep(&mut self, mut credential: Credential) -> Credential {
        private_file::remove_unfinished(&self.store.directory);
        let stored = self.store.read(self.clock);
        credential.generation = stored.as_ref().map_or(0, |stored| stored.as_ref().map_or(0, |it| it.generation)) + 1;
        self.doing("storing");
        let written = stored.and_then(|_| self.store.write(&credential, self.clock, self.observer));
        // Store first: the observer may be slow, and waiting processes should not wait for it.
        (self.observer)(&Progress::Exchanged(&credential));
        match written {
            // The new credential outdates a cached failure. If that cannot be removed, it expires soon.
            Ok(()) => drop(failure_cache::forget(&self.store.directory)),
            Err(error) => (self.observer)(&Progress::NotKept(whole_message(&error))),
        }
        credential
    }

    /// Returns the cached failure, if it still applies.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not private.
    pub fn remembered_refusal(&self) -> Result<Option<CachedFailure>, StoreError> {
        self.store.remembered_refusal(self.clock.now())
    }

    /// Caches a failure for waiting processes. Best effort: without it, they fail by themselves.
    pub fn remember(&self, refusal: &CachedFailure) {
        drop(failure_cache::remember(&self.store.directory, refusal, self.observer));
    }

    /// Returns the ledger's entry for this token, if any. Writes nothing.
    ///
    /// # Errors
    /// Fails if the ledger cannot be read or is damaged.
    pub fn find(&self, token: &IdentityToken) -> Result<Option<Spent>, StoreError> {
        self.store.spent(token)
    }

    /// Records an identity token as spent, and syncs. Returns an existing entry instead, if there is one; then the
    /// token must not be sent.
    ///
    /// # Errors
    /// Fails if the ledger cannot be read, written or synced.
    pub fn spend(&mut self, token: &IdentityToken) -> Result<Option<Spent>, StoreError> {
        match Ledger::at(&self.store.root).spend(token, Use::Sent, self.clock, self.observer)? {
            Written::New(entry) => {
                self.recorded = Some(entry);
                (self.observer)(&Progress::Recorded);
                Ok(None)
            }
            Written::Before(entry) => Ok(Some(entry)),
        }
    }

    /// Removes the last entry of this guard from the ledger. Only for a token of which no byte was sent.
    ///
    /// # Errors
    /// Fails if the ledger cannot be read, written or synced.
    pub fn take_back(&mut self) -> Result<(), StoreError> {
        match self.recorded.take() {
            Some(entry) => Ledger::at(&self.store.root).take_back(&entry, self.clock, self.observer),
            None => Ok(()),
        }
    }

    /// Publishes the current operation to waiting processes.
    pub fn doing(&mut self, doing: &str) {
        if let Some(lock) = &mut self.lock {
            lock.doing(doing, self.clock);
        }
    }

    /// Reports to the observer that the lock is held. Its release is then reported too.
    pub(crate) fn announce(&mut self) {
        self.is_announced = true;
        (self.observer)(&Progress::Locked);
    }
}

impl Drop for LockedStore<'_> {
    fn drop(&mut self) {
        drop(self.lock.take());
        if self.is_announced {
            (self.observer)(&Progress::Unlocked);
        }
    }
}

/// The parsers of files in a state directory, for fuzzing.
#[cfg(any(test, fuzzing))]
pub(crate) mod parsers {
    pub(crate) use super::failure_cache::{LONGEST as LONGEST_REFUSAL, parse as refusal};
    pub(crate) use super::file_lock::describe as holder;
    pub(crate) use super::ledger::parse as ledger;
    pub(crate) use super::owner::start_time_in as start_time;
    use super::*;

    pub(crate) fn credential(bytes: &[u8]) -> Result<Option<Credential>, StoreError> {
        Ok(parse_credential(bytes, PathBuf::new())?.map(|stored| stored.credential))
    }
}

fn newest_known(path: &Path) -> u32 {
    if path.ends_with(CREDENTIAL) { CREDENTIAL_FORMAT } else { FORMAT }
}

/// A credential with its metadata.
struct Stored {
    credential: Credential,
    source: String,
    remintable: bool,
    principal: Option<Principal>,
    stored: Option<Stamp>,
}

/// When a credential was stored, by both clocks. A reader detects from it whether the wall clock was set back.
#[derive(Serialize, Deserialize)]
struct Stamp {
    /// The boot that the monotonic clock refers to.
    boot: String,
    wall_ms: u64,
    since_boot_ms: u64,
}

impl Stamp {
    /// Returns `None` on a system without a boot id, where the monotonic clock means nothing to other processes.
    fn of(moment: Moment) -> Option<Stamp> {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let wall = moment.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let [wall_ms, since_boot_ms] = [wall, moment.monotonic].map(milliseconds);
        Some(Stamp { boot: owner::boot()?, wall_ms, since_boot_ms })
    }

    fn is_of_this_boot(&self) -> bool {
        owner::boot().is_some_and(|boot| boot == self.boot)
    }

    /// Returns how far the wall clock was set back since then, as far as the monotonic clock shows it.
    fn set_back(&self, now: Moment) -> Duration {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_millis(self.wall_ms.min(1 << 46));
        let then = Moment { wall, monotonic: Duration::from_millis(self.since_boot_ms) };
        if then.agrees_with(now) {
            return Duration::ZERO;
        }
        match self.is_of_this_boot() {
            true => then.set_back(now),
            // Stored before this boot: the machine has run for at least its uptime since then.
            false => Moment { monotonic: Duration::ZERO, ..then }.set_back(now),
        }
    }
}

#[derive(Serialize)]
struct CredentialFile<'a> {
    version: u32,
    generation: u64,
    access_token: &'a str,
    expires_at: u64,
    obtained_at: u64,
    source: &'a str,
    remintable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<Stamp>,
    #[serde(flatten)]
    principal: Option<&'a Principal>,
}

#[derive(Deserialize)]
struct Read {
    version: u32,
    generation: u64,
    access_token: String,
    expires_at: u64,
    obtained_at: u64,
    source: String,
    remintable: bool,
    stored: Option<Stamp>,
    #[serde(flatten)]
    principal: Option<Principal>,
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

/// Reads the credential, with its times moved back if the wall clock was set back.
fn read_credential(directory: &Path, clock: Clock) -> Result<Option<Stored>, StoreError> {
    let mut read = read_file(directory)?;
    if let Some(stored) = &mut read
        && let Some(stamp) = &stored.stored
    {
        let now = clock.moment();
        let by = stamp.set_back(now);
        if !by.is_zero() {
            stored.credential = stored.credential.moved_back(by);
            if !stamp.is_of_this_boot() {
                // The time that the machine was off is unknown: obtain another credential if possible.
                stored.credential = stored.credential.due_by(now.wall);
            }
        }
    }
    Ok(read)
}

fn read_file(directory: &Path) -> Result<Option<Stored>, StoreError> {
    let path = directory.join(CREDENTIAL);
    match private_file::read(&path)? {
        Some(bytes) => parse_credential(&bytes, path),
        None => Ok(None),
    }
}

fn parse_credential(bytes: &[u8], path: PathBuf) -> Result<Option<Stored>, StoreError> {
    let read = match serde_json::from_slice::<Read>(bytes) {
        Ok(read) if (1..=CREDENTIAL_FORMAT).contains(&read.version) => read,
        // A newer format may differ in everything but its version.
        _ => match serde_json::from_slice(bytes) {
            Ok(Version { version }) if version > u64::from(CREDENTIAL_FORMAT) => {
                return Err(StoreError::Newer { path, version });
            }
            // Treat a damaged file as missing. wifshare replaces files atomically, so another program wrote it.
            _ => return Ok(None),
        },
    };
    if !is_bearer_token(&read.access_token) {
        return Ok(None);
    }
    let moments = |seconds: u64| -> SystemTime { from_epoch_seconds(seconds) };
    let credential = Credential {
        access_token: Secret::new(read.access_token),
        expires_at: moments(read.expires_at),
        obtained_at: moments(read.obtained_at.min(read.expires_at)),
        generation: read.generation,
    };
    let Read { source, remintable, principal, stored, .. } = read;
    Ok(Some(Stored { credential, source, remintable, principal, stored }))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may end where it gets no thread")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::credential::Freshness;

    fn location(root: &Path) -> Location {
        Location {
            root: root.join("state"),
            key: "0123456789abcdef0123456789abcdef".to_owned(),
            source: "a test".to_owned(),
            remintable: true,
        }
    }

    fn credential(text: &str) -> Credential {
        let now = from_epoch_seconds(epoch_seconds(Clock::system().now()));
        let expires_at = now + Duration::from_secs(600);
        Credential { access_token: Secret::new(text.to_owned()), expires_at, obtained_at: now, generation: 0 }
    }

    fn locked(store: &Store) -> LockedStore<'_> {
        store.lock(PATIENCE, Clock::system(), &|_| {}).unwrap()
    }

    fn keep(store: &Store, text: &str) -> Credential {
        locked(store).keep(credential(text))
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test edits the file")]
    fn stored_times_move_with_a_wall_clock_that_was_set_back() {
        let holder = tempfile::tempdir().unwrap();
        let store = Store::at(&location(holder.path()));
        let kept = keep(&store, "t");
        let path = store.directory().join(CREDENTIAL);
        let text = std::fs::read_to_string(&path).unwrap();
        let behind = Clock { wall: || Clock::system().now() - Duration::from_secs(3600), ..Clock::system() };
        let ahead = Clock { wall: || Clock::system().now() + Duration::from_secs(300), ..Clock::system() };
        let left = |clock: Clock| store.read(clock).unwrap().unwrap().remaining(clock.now()).as_secs();
        assert!((598..=600).contains(&left(behind)), "{}", left(behind));
        assert_eq!(left(ahead), kept.remaining(ahead.now()).as_secs(), "what looks older is renewed, and no harm");
        // Stored before this boot. The machine has run for longer than the credential's lifetime.
        std::fs::write(&path, text.replace(&owner::boot().unwrap(), "another")).unwrap();
        let rebooted = Clock { monotonic: || Duration::from_secs(3599), ..behind };
        assert_eq!(left(rebooted), 0);
        assert!(left(Clock { monotonic: || Duration::from_secs(3600 - 60), ..behind }) <= 600);
        let just_up = Clock { monotonic: || Duration::from_secs(60), ..behind };
        let stored = store.read(just_up).unwrap().unwrap();
        assert_eq!(stored.freshness(just_up.now()), Freshness::Expiring, "nobody knows how long the machine was off");
        // Without a stamp, only the wall clock is available.
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value.as_object_mut().unwrap().remove("stored");
        std::fs::write(&path, value.to_string()).unwrap();
        assert!(left(behind) > 4000);
    }

    #[test]
    fn hundred_threads_hold_the_lock_one_at_a_time() {
        let holder = tempfile::tempdir().unwrap();
        let store = Store::at(&location(holder.path()));
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for number in 0..100 {
                let (store, inside) = (store.clone(), &inside);
                scope.spawn(move || {
                    let mut locked = locked(&store);
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "nobody else is inside");
                    locked.keep(credential(&number.to_string()));
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(store.read(Clock::system()).unwrap().unwrap().generation, 100);
    }

    #[test]
    fn each_store_error_has_its_own_hint() {
        let path = PathBuf::from("/state");
        let held = StoreError::Held { path: path.clone(), holder: None, waited: Duration::ZERO };
        let unreliable = StoreError::UnreliableLocks { directory: path.clone(), file_system: "NFS".to_owned() };
        for (error, words) in [
            (held, Some("end it and try again")),
            (StoreError::Newer { path: path.clone(), version: 2 }, Some("one version of wifshare")),
            (unreliable, Some("one on a local file system")),
            (StoreError::File(PrivateFileError::Link(path)), Some("look who put it there")),
            (StoreError::Interrupted(Interrupted), None),
        ] {
            let hint = error.hint();
            assert!(
                hint.as_deref().is_some_and(|hint| hint.contains(words.unwrap_or("-")))
                    || hint.is_none() && words.is_none(),
                "{hint:?}"
            );
        }
    }

    #[test]
    fn spent_tokens_and_refusals_are_found_by_all_readers() {
        let holder = tempfile::tempdir().unwrap();
        let store = Store::at(&location(holder.path()));
        let token = IdentityToken::parse(&Secret::new("eyJhbGciOiJSUzI1NiJ9.e30.YQ".to_owned())).unwrap();
        assert_eq!(store.spent(&token).unwrap(), None);
        assert_eq!(store.hand_out(&token, Clock::system(), &|_| {}).unwrap(), None);
        let mut locked = locked(&store);
        assert_eq!(locked.spend(&token).unwrap().map(|spent| spent.used), Some(Use::HandedOut));
        assert_eq!(locked.find(&token).unwrap().map(|spent| spent.used), Some(Use::HandedOut));
        assert_eq!(locked.remembered_refusal().unwrap(), None);
        let now = Clock::system().now();
        locked.remember(&CachedFailure::new("code", "message".to_owned(), None, now, Duration::from_secs(30)));
        assert_eq!(locked.remembered_refusal().unwrap().map(|refusal| refusal.message), Some("message".to_owned()));
    }

    #[test]
    fn newer_format_is_refused_and_not_changed() {
        let holder = tempfile::tempdir().unwrap();
        let store = Store::at(&location(holder.path()));
        store.create().unwrap();
        private_file::replace(&store.directory, CREDENTIAL, br#"{"version":3,"x":1}"#, &|_| {}).unwrap();
        assert!(matches!(store.read(Clock::system()), Err(StoreError::Newer { version: 3, .. })));
        assert_eq!(locked(&store).keep(credential("x")).access_token.expose(), "x", "what was bought is not lost");
        assert!(store.remove().is_err());
        let left = private_file::read(&store.directory.join(CREDENTIAL)).unwrap().unwrap();
        assert_eq!(left.as_slice(), br#"{"version":3,"x":1}"#);
    }

    #[test]
    fn damaged_credential_counts_as_missing() {
        let holder = tempfile::tempdir().unwrap();
        let store = Store::at(&location(holder.path()));
        store.create().unwrap();
        for damaged in ["", "{", "[]", r#"{"version":1}"#, "\0\0\0"] {
            private_file::replace(&store.directory, CREDENTIAL, damaged.as_bytes(), &|_| {}).unwrap();
            assert_eq!(store.read(Clock::system()).unwrap(), None, "{damaged:?}");
        }
        assert_eq!(keep(&store, "new").access_token.expose(), "new");
    }

    #[test]
    fn generation_increases_with_each_stored_credential() {
        let holder = tempfile::tempdir().unwrap();
        let store = Store::at(&location(holder.path()));
        let first = keep(&store, "one");
        assert_eq!(store.read(Clock::system()).unwrap(), Some(first.clone()));
        assert_eq!(keep(&store, "two").generation, 2);
    }

    #[test]
    fn last_lease_decides_whether_to_keep_the_credential() {
        let holder = tempfile::tempdir().unwrap();
        let store = Store::at(&location(holder.path()));
        let lease = || store.lease(Clock::system(), &|_| {}).unwrap();
        let (one, two) = (lease(), lease());
        keep(&store, "shared");
        assert!(one.is_shared());
        assert_eq!(one.end(|| OnLastRun::Remove).unwrap(), None);
        assert!(store.read(Clock::system()).unwrap().is_some(), "one run's end takes nothing from another");
        assert!(!two.is_shared());
        let directory = two.directory().to_owned();
        assert_eq!(two.end(|| OnLastRun::Keep).unwrap(), Some(OnLastRun::Keep));
        assert!(!directory.exists());
        assert!(store.read(Clock::system()).unwrap().is_some());
        assert_eq!(lease().end(|| OnLastRun::Remove).unwrap(), Some(OnLastRun::Remove));
        assert!(store.read(Clock::system()).unwrap().is_none());
    }

    #[test]
    fn sweep_keeps_files_of_living_runs() {
        let holder = tempfile::tempdir().unwrap();
        let location = location(holder.path());
        let store = Store::at(&location);
        let lease = store.lease(Clock::system(), &|_| {}).unwrap();
        keep(&store, "shared");
        sweep(&location.root, Clock::system(), &|_| {});
        assert!(lease.directory().exists());
        assert!(store.read(Clock::system()).unwrap().is_some());
    }

    #[test]
    fn damaged_run_is_removed_at_start_unless_a_run_lives() {
        let holder = tempfile::tempdir().unwrap();
        let location = location(holder.path());
        let store = Store::at(&location);
        let another = Location { key: "e".repeat(32), ..location.clone() };
        // A directory without an owner file, an empty file, and a block that was never written.
        let damage = |location: &Location| {
            for (name, owner) in [("1-a", None), ("2-b", Some("")), ("3-c", Some("\0\0\0\0"))] {
                let run = location.root.join(&location.key).join("runs").join(name);
                private_file::private_directory(&run).unwrap();
                private_file::replace(&run, "credential", b"sk-ant-left", &|_| {}).unwrap();
                if let Some(owner) = owner {
                    private_file::replace(&run, "owner", owner.as_bytes(), &|_| {}).unwrap();
                }
            }
        };
        let left = |location: &Location| {
            let runs = std::fs::read_dir(location.root.join(&location.key).join("runs"));
            runs.into_iter().flatten().flatten().filter(|run| run.path().join("credential").exists()).count()
        };
        store.create().unwrap();
        damage(&location);
        damage(&another);
        let lease = store.lease(Clock::system(), &|_| {}).unwrap();
        assert_eq!((left(&location), left(&another)), (0, 3), "who comes first clears its own");
        sweep(&location.root, Clock::system(), &|_| {});
        assert_eq!(left(&another), 0, "and a sweep that of others");
        // Next to a living run, nothing shows which run the directory belongs to.
        damage(&location);
        sweep(&location.root, Clock::system(), &|_| {});
        let second = store.lease(Clock::system(), &|_| {}).unwrap();
        assert_eq!(left(&location), 3);
        assert!(lease.is_in_place() && second.is_in_place());
        second.end(|| OnLastRun::Keep).unwrap();
        lease.end(|| OnLastRun::Keep).unwrap();
        assert_eq!(left(&location), 0);
    }

    #[test]
    fn sweep_removes_an_expired_credential() {
        let holder = tempfile::tempdir().unwrap();
        let location = location(holder.path());
        let store = Store::at(&location);
        keep(&store, "left-behind");
        sweep(&location.root, Clock::system(), &|_| {});
        assert!(store.read(Clock::system()).unwrap().is_some(), "what `token` left behind lives until it expires");
        let later = Clock { wall: || from_epoch_seconds(5_000_000_000), ..Clock::system() };
        sweep(&location.root, later, &|_| {});
        assert!(store.read(Clock::system()).unwrap().is_none());
    }
}
