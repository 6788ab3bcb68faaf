//! The ledger of spent identity tokens of this user on this machine. An entry is written and synced before the first
//! byte of the token is sent.
//!
//! All identity keys share one ledger. The server counts uses per issuer and `jti`, whatever rule or workspace the
//! token is sent with, so two keys that read the same token file must know each other's entries.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::file_lock::{FileLock, Patience};
use super::owner::ProcessIdentity;
use super::{FORMAT, PATIENCE, StoreError, Version};
use crate::clock::{Clock, epoch_seconds};
use crate::identity_token::IdentityToken;
use crate::private_file::{self, PrivateFileError};
use crate::progress::Observer;

const FILE: &str = "spent";
const LOCK: &str = "spent.lock";

/// Maximum length of a line that is read at once. An entry has about 250 bytes.
const LONGEST_LINE: u64 = 16 * 1024;

/// The entries that this process wrote, with their directories. Another process may remove the directory of a living
/// process, which must still know what it sent.
static OURS: Mutex<Vec<(PathBuf, Spent)>> = Mutex::new(Vec::new());

/// How an identity token was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// wifshare sent it to the token endpoint, or was about to when it was killed.
    Sent,
    /// It was delivered to the children in a file. They may send it.
    HandedOut,
}

/// The ledger entry of a spent identity token. Contains its fingerprint, never its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    version: u32,
    fingerprint: String,
    /// How it was used.
    pub used: Use,
    /// The process that used it.
    pub owner: ProcessIdentity,
    /// When, in seconds since the epoch.
    pub at: u64,
    /// When the entry may be removed, in seconds since the epoch. The server then rejects the token for its age.
    forget_at: u64,
    /// When, in seconds since the owner's boot. Unlike the wall clock, this clock cannot be ahead for a later reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since_boot: Option<u64>,
}

impl Spent {
    /// Formats the entry, such as "taken for an exchange by pid 4711, 12 s ago".
    pub fn story(&self, now: SystemTime) -> String {
        let ago = epoch_seconds(now).saturating_sub(self.at);
        match self.used {
            Use::Sent => format!("taken for an exchange by {}, {ago} s ago", self.owner),
            Use::HandedOut => format!("handed out to other processes by {}, {ago} s ago", self.owner),
        }
    }

    /// Returns whether the server rejects the token for its age. Both the wall clock and the time that has certainly
    /// passed since then must agree.
    fn is_outdated(&self, clock: Clock) -> bool {
        let uptime = (clock.monotonic)().as_secs();
        let passed = match self.owner.is_of_this_boot() {
            true => uptime.saturating_sub(self.since_boot.unwrap_or(uptime)),
            false => uptime,
        };
        epoch_seconds(clock.now()) >= self.forget_at && passed >= self.forget_at.saturating_sub(self.at)
    }

    fn line(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers become JSON")
    }
}

pub(super) struct Ledger {
    root: PathBuf,
}

/// The result of recording a token.
pub(super) enum Written {
    /// The entry was written and synced.
    New(Spent),
    /// The entry already existed: the token must not be used.
    Before(Spent),
}

impl Ledger {
    pub(super) fn at(root: &Path) -> Ledger {
        Ledger { root: root.to_owned() }
    }

    /// Records this token as spent and syncs, unless it is already recorded. After an error, the entry is removed if
    /// possible.
    ///
    /// The lock is held only for the write. A sync may take seconds on a slow disk, and many processes can sync at the
    /// same time.
    pub(super) fn spend(
        &self,
        token: &IdentityToken,
        used: Use,
        clock: Clock,
        observer: Observer<'_>,
    ) -> Result<Written, StoreError> {
        let mut lock = self.lock(clock, observer)?;
        let fingerprint = token.fingerprint().to_string();
        if let Some(entry) = self.search(&fingerprint)? {
            return Ok(Written::Before(entry));
        }
        lock.doing("forgetting outdated entries of the ledger", clock);
        self.forget(clock, observer)?;
        lock.doing("writing the ledger", clock);
        let mut file = self.open()?;
        self.write_what_is_missing(&mut file)?;
        let now = clock.now();
        let entry = Spent {
            version: FORMAT,
            fingerprint,
            used,
            owner: ProcessIdentity::current(),
            at: epoch_seconds(now),
            forget_at: forget_at(token, now),
            since_boot: Some((clock.monotonic)().as_secs()),
        };
        self.append(&mut file, &entry)?;
        drop(lock);
        remember(&self.root, &entry);
        match file.sync_all() {
            Ok(()) => Ok(Written::New(entry)),
            Err(source) => {
                // Nothing was sent. If the entry cannot be removed, the token stays spent.
                drop(self.take_back(&entry, clock, observer));
                Err(self.failed("write", source).into())
            }
        }
    }

    /// Removes an entry of this process, for a token that was not sent. Overwrites its line with blanks, which needs no
    /// disk space, and syncs.
    pub(super) fn take_back(&self, entry: &Spent, clock: Clock, observer: Observer<'_>) -> Result<(), StoreError> {
        let _lock = self.lock(clock, observer)?;
        let line = entry.line();
        let mut place = None;
        self.each_line(|offset, found| {
            if found == line {
                place = Some(offset);
            }
            Ok(())
        })?;
        let path = self.root.join(FILE);
        if let (Some(offset), Some(mut file)) = (place, private_file::open_to_change(&path)?) {
            let blanks = vec![b' '; line.len()];
            let blanked = file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(&blanks));
            blanked.and_then(|()| file.sync_all()).map_err(|source| self.failed("write", source))?;
        }
        ours().retain(|(root, ours)| *root != self.root || ours != entry);
        Ok(())
    }

    /// Returns the entry for this token, from the file or from this process's own entries. Needs no lock: entries are
    /// only added, blanked or replaced whole.
    pub(super) fn find(&self, token: &IdentityToken) -> Result<Option<Spent>, StoreError> {
        self.search(&token.fingerprint().to_string())
    }

    /// Adds this process's own entries to a ledger that lacks them because the previous one was removed.
    pub(super) fn restore(&self, clock: Clock, observer: Observer<'_>) -> Result<(), StoreError> {
        if ours().iter().all(|(root, _)| *root != self.root) {
            return Ok(());
        }
        let _lock = self.lock(clock, observer)?;
        let mut file = self.open()?;
        self.write_what_is_missing(&mut file)?;
        Ok(file.sync_all().map_err(|source| self.failed("write", source))?)
    }

    /// Reads the whole ledger and fails at the first invalid line.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        private_file::open_to_read(&self.root.join(LOCK))?;
        self.each_entry(|_| {})
    }

    fn lock(&self, clock: Clock, observer: Observer<'_>) -> Result<FileLock, StoreError> {
        // The lock is held for one write, or sometimes for a rewrite of the ledger. A longer wait means that its holder
        // is stopped. The wait continues while holders change.
        const FOR_ONE_HOLDER: Duration = Duration::from_secs(20);
        let patience = Patience { for_one_holder: FOR_ONE_HOLDER, in_all: PATIENCE };
        FileLock::acquire(&self.root.join(LOCK), patience, clock, observer)
    }

    fn search(&self, fingerprint: &str) -> Result<Option<Spent>, StoreError> {
        let remembered = ours().iter().find(|(root, it)| *root == self.root && it.fingerprint == fingerprint).cloned();
        let mut found = remembered.map(|(_, entry)| entry);
        self.each_entry(|entry| {
            if entry.fingerprint == fingerprint && found.is_none() {
                found = Some(entry);
            }
        })?;
        Ok(found)
    }

    /// Opens the file for appending. A new file is synced into its directory before the first write, so that syncing
    /// the file is enough to keep an entry.
    fn open(&self) -> Result<File, StoreError> {
        let path = self.root.join(FILE);
        let file = private_file::open_in_place(&path)?;
        if file.metadata().map_err(|source| self.failed("look at", source))?.len() == 0 {
            private_file::sync_directory(&self.root)?;
        }
        Ok(file)
    }

    fn append(&self, file: &mut File, entry: &Spent) -> Result<(), StoreError> {
        let length = file.seek(SeekFrom::End(0)).map_err(|source| self.failed("write", source))?;
        // Starts a new line, because a crash may have left an incomplete one.
        let line = [if length == 0 { &b""[..] } else { b"\n" }, &entry.line()].concat();
        file.write_all(&line).map_err(|source| {
            // Remove an incomplete line. No other process writes while this one holds the lock.
            drop(file.set_len(length));
            self.failed("write", source).into()
        })
    }

    fn write_what_is_missing(&self, file: &mut File) -> Result<(), StoreError> {
        let mut missing: Vec<Spent> =
            ours().iter().filter(|(root, _)| *root == self.root).map(|(_, entry)| entry.clone()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.each_entry(|entry| missing.retain(|ours| *ours != entry))?;
        missing.iter().try_for_each(|entry| self.append(file, entry))
    }

    /// Removes entries of tokens that the server rejects for their age, once there are enough of them.
    fn forget(&self, clock: Clock, observer: Observer<'_>) -> Result<(), StoreError> {
        const WORTH_IT: usize = 512;
        let (mut all, mut outdated) = (0, 0);
        self.each_entry(|entry| {
            all += 1;
            outdated += usize::from(entry.is_outdated(clock));
        })?;
        if all < WORTH_IT || outdated < WORTH_IT / 2 {
            return Ok(());
        }
        let mut bytes = Vec::new();
        self.each_entry(|entry| {
            if !entry.is_outdated(clock) {
                bytes.extend(entry.line());
                bytes.push(b'\n');
            }
        })?;
        ours().retain(|(root, entry)| *root != self.root || !entry.is_outdated(clock));
        Ok(private_file::replace(&self.root, FILE, &bytes, observer)?)
    }

    fn each_entry(&self, mut see: impl FnMut(Spent)) -> Result<(), StoreError> {
        let path = self.root.join(FILE);
        let mut number = 0;
        self.each_line(|_, line| {
            number += 1;
            if let Some(entry) = parse_line(line, number, &path)? {
                see(entry);
            }
            Ok(())
        })
    }

    /// Reads the current lines of the file, each with its offset.
    fn each_line(&self, see: impl FnMut(u64, &[u8]) -> Result<(), StoreError>) -> Result<(), StoreError> {
        match private_file::open_to_read(&self.root.join(FILE))? {
            Some((file, length)) => {
                let failed = |source| self.failed("read", source).into();
                each_line(&mut BufReader::with_capacity(64 * 1024, file.take(length)), see, failed)
            }
            None => Ok(()),
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> PrivateFileError {
        PrivateFileError::Io { action, path: self.root.join(FILE), source }
    }
}

fn ours() -> std::sync::MutexGuard<'static, Vec<(PathBuf, Spent)>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remember(root: &Path, entry: &Spent) {
    ours().push((root.to_owned(), entry.clone()));
}

fn each_line(
    reader: &mut impl BufRead,
    mut see: impl FnMut(u64, &[u8]) -> Result<(), StoreError>,
    failed: impl Fn(io::Error) -> StoreError,
) -> Result<(), StoreError> {
    let (mut line, mut offset) = (Vec::new(), 0);
    loop {
        line.clear();
        // A longer line is not an entry, and is passed on in parts.
        let length = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(&failed)? as u64;
        if length == 0 {
            return Ok(());
        }
        see(offset, line.strip_suffix(b"\n").unwrap_or(&line))?;
        offset += length;
    }
}

/// Parses entries, one per line.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Spent>, StoreError> {
    let lines = bytes.split(|byte| *byte == b'\n').zip(1..);
    lines.filter_map(|(line, number)| parse_line(line, number, path).transpose()).collect()
}

/// Parses a line. Returns `None` for a line without an entry: empty, blanked, or left incomplete by a crash.
fn parse_line(line: &[u8], number: u64, path: &Path) -> Result<Option<Spent>, StoreError> {
    const BEGINNING: &[u8] = br#"{"version":1,"fingerprint":""#;
    match serde_json::from_slice::<Spent>(line) {
        Ok(entry) if entry.version == FORMAT => return Ok(Some(entry)),
        // A newer entry may have other fields, but always a version.
        _ => match serde_json::from_slice::<Version>(line) {
            Ok(Version { version }) if version != u64::from(FORMAT) => {
                return Err(StoreError::Newer { path: path.to_owned(), version });
            }
            _ => {}
        },
    }
    // A line that a crash cut or filled with zeros was never synced, so its token was never sent. Anything else was an
    // entry once, or hides some.
    let is_torn = line.starts_with(BEGINNING) || BEGINNING.starts_with(line.trim_ascii_end()) || line.contains(&0);
    if is_torn { Ok(None) } else { Err(StoreError::Damaged { path: path.to_owned(), line: number }) }
}

/// Returns when the entry may be removed: an hour after the token's expiry, or a day from now if it has none, because
/// the clocks of machine and server may differ. If this machine's clock is ahead, the lifetime that the issuer states
/// counts from now.
fn forget_at(token: &IdentityToken, now: SystemTime) -> u64 {
    const HOUR: u64 = 3600;
    let claims = token.claims();
    let Some(end) = claims.expires_at else { return epoch_seconds(now) + 24 * HOUR };
    let life = claims.issued_at.and_then(|begin| end.duration_since(begin).ok()).unwrap_or_default();
    epoch_seconds(end.max(now + life)) + HOUR
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_epoch_seconds;
    use crate::secret::Secret;

    fn token(jti: &str, expires_at: u64) -> IdentityToken {
        with_claims(&format!(r#"{{"iss":"i","jti":"{jti}","exp":{expires_at}}}"#))
    }

    fn with_claims(claims: &str) -> IdentityToken {
        use base64::Engine;
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims);
        IdentityToken::parse(&Secret::new(format!("eyJhbGciOiJSUzI1NiJ9.{claims}.c2ln"))).expect("a token")
    }

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let holder = tempfile::tempdir().expect("a directory");
        let root = holder.path().join("state");
        private_file::private_directory(&root).expect("a private directory");
        (holder, Ledger::at(&root))
    }

    fn spend_at(clock: Clock, ledger: &Ledger, token: &IdentityToken) -> Option<Spent> {
        match ledger.spend(token, Use::Sent, clock, &|_| {}).expect("a ledger") {
            Written::New(_) => None,
            Written::Before(entry) => Some(entry),
        }
    }

    fn spend(ledger: &Ledger, token: &IdentityToken) -> Option<Spent> {
        spend_at(Clock::system(), ledger, token)
    }

    fn entries(ledger: &Ledger) -> Vec<Spent> {
        let mut entries = Vec::new();
        ledger.each_entry(|entry| entries.push(entry)).expect("a ledger");
        entries
    }

    fn bytes(ledger: &Ledger) -> Vec<u8> {
        private_file::read(&ledger.root.join(FILE)).expect("readable").expect("there").to_vec()
    }

    /// Forgets what this process has spent, like another process.
    fn as_another_process(ledger: &Ledger) {
        ours().retain(|(root, _)| *root != ledger.root);
    }

    const END: u64 = 1_000_000;
    const UPTIME: u64 = 50_000;

    fn entry(number: usize, forget_at: u64) -> Spent {
        let (fingerprint, owner) = (number.to_string(), ProcessIdentity::current());
        let (used, at, since_boot) = (Use::Sent, END - 300, Some(UPTIME - 300));
        Spent { version: FORMAT, fingerprint, used, owner, at, forget_at, since_boot }
    }

    fn write(ledger: &Ledger, entries: impl Iterator<Item = Spent>) {
        let lines: Vec<u8> = entries.flat_map(|entry| [entry.line(), b"\n".to_vec()].concat()).collect();
        let mut file = private_file::open_in_place(&ledger.root.join(FILE)).unwrap();
        file.write_all(&[b"\n", &lines[..]].concat()).unwrap();
    }

    #[test]
    fn token_can_be_spent_once() {
        let (_holder, ledger) = ledger();
        assert_eq!(spend(&ledger, &token("1", 5_000_000_000)), None);
        assert_eq!(spend(&ledger, &token("2", 5_000_000_000)), None);
        as_another_process(&ledger);
        let again = spend(&ledger, &token("1", 5_000_000_000)).expect("it was spent");
        assert_eq!(again.owner.pid, std::process::id());
        assert_eq!(ledger.find(&token("1", 5_000_000_000)).expect("a ledger"), Some(again));
        assert_eq!(ledger.find(&token("3", 5_000_000_000)).expect("a ledger"), None);
    }

    #[test]
    fn each_entry_has_its_own_line() {
        let (_holder, ledger) = ledger();
        spend(&ledger, &token("1", 5_000_000_000));
        spend(&ledger, &token("2", 5_000_000_000));
        let bytes = bytes(&ledger);
        let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
        assert!(lines.len() == 2 && lines.iter().all(|line| line.starts_with(b"{")), "{lines:?}");
    }

    #[test]
    fn removed_ledger_is_remembered_and_rewritten() {
        let (_holder, ledger) = ledger();
        let tokens = ["1", "2", "3"].map(|jti| token(jti, 5_000_000_000));
        spend(&ledger, &tokens[0]);
        let remove = || {
            std::fs::remove_dir_all(&ledger.root).unwrap();
            private_file::private_directory(&ledger.root).unwrap();
        };
        remove();
        assert!(spend(&ledger, &tokens[0]).is_some(), "this process knows what it sent");
        assert!(ledger.find(&tokens[0]).unwrap().is_some());
        spend(&ledger, &tokens[1]);
        assert_eq!(entries(&ledger).len(), 2, "the next entry brings those of before along");
        remove();
        ledger.restore(Clock::system(), &|_| {}).unwrap();
        assert_eq!(entries(&ledger).len(), 2);
        ledger.restore(Clock::system(), &|_| {}).unwrap();
        assert_eq!(entries(&ledger).len(), 2, "nothing is written twice");
        let (_holder, elsewhere) = self::ledger();
        assert_eq!(spend(&elsewhere, &tokens[0]), None, "another state directory is another matter");
    }

    #[test]
    fn withdrawn_entry_is_removed_for_all_processes() {
        let (_holder, ledger) = ledger();
        let tokens = ["1", "2", "3"].map(|jti| token(jti, 5_000_000_000));
        let written = tokens.each_ref().map(|token| match ledger.spend(token, Use::Sent, Clock::system(), &|_| {}) {
            Ok(Written::New(entry)) => entry,
            _ => panic!("it is new"),
        });
        ledger.take_back(&written[1], Clock::system(), &|_| {}).unwrap();
        assert_eq!(entries(&ledger), [written[0].clone(), written[2].clone()]);
        assert_eq!(ledger.find(&tokens[1]).unwrap(), None);
        as_another_process(&ledger);
        assert!(spend(&ledger, &tokens[0]).is_some());
        assert_eq!(spend(&ledger, &tokens[1]), None);
        // An entry of another process has another line.
        let foreign = Spent { at: 1, ..written[2].clone() };
        ledger.take_back(&foreign, Clock::system(), &|_| {}).unwrap();
        assert!(ledger.find(&tokens[2]).unwrap().is_some());
    }

    #[test]
    fn outdated_entries_are_removed_in_batches() {
        for (ended, lasting, left) in
            [(511, 0, 511), (512, 0, 0), (256, 256, 256), (255, 257, 512), (100, 500, 600), (300, 300, 300)]
        {
            let (_holder, ledger) = ledger();
            write(&ledger, (0..ended + lasting).map(|it| entry(it, if it < ended { END } else { END + 1 })));
            let monotonic = || Duration::from_secs(UPTIME);
            let clock = Clock { wall: || from_epoch_seconds(END), monotonic, ..Clock::system() };
            spend_at(clock, &ledger, &token("new", END + 300));
            assert_eq!(entries(&ledger).len(), left + 1, "{ended} ended and {lasting} lasting");
        }
    }

    #[test]
    fn clock_ahead_makes_no_entry_outdated() {
        let outdated_at = |wall: u64, uptime: u64, entry: &Spent| {
            thread_local!(static NOW: std::cell::Cell<(u64, u64)> = const { std::cell::Cell::new((0, 0)) });
            NOW.set((wall, uptime));
            let (wall, monotonic) = (|| from_epoch_seconds(NOW.get().0), || Duration::from_secs(NOW.get().1));
            entry.is_outdated(Clock { wall, monotonic, ..Clock::system() })
        };
        let entry = entry(1, END);
        assert!(outdated_at(END, UPTIME, &entry));
        assert!(!outdated_at(END + 86_400, UPTIME - 1, &entry), "300 s have not passed");
        assert!(!outdated_at(END - 1, UPTIME + 86_400, &entry), "the wall clock was stepped back");
        // After another boot, only the uptime is known to have passed.
        let before = Spent {
            owner: ProcessIdentity { boot: Some("another".to_owned()), ..ProcessIdentity::current() },
            ..entry.clone()
        };
        assert!(!outdated_at(END, 299, &before) && outdated_at(END, 300, &before));
        let of_an_older_version = Spent { since_boot: None, ..entry };
        assert!(!outdated_at(END, UPTIME, &of_an_older_version));
    }

    #[test]
    fn entry_is_kept_an_hour_longer_than_its_token() {
        let now = from_epoch_seconds(1000);
        for (end, forgotten) in [(2000, 5600), (500, 4600)] {
            assert_eq!(forget_at(&token("1", end), now), forgotten, "{end}");
        }
        assert_eq!(forget_at(&with_claims(r#"{"jti":"1","iat":100,"exp":500}"#), now), 5000, "this clock is ahead");
        let endless = IdentityToken::parse(&Secret::new("eyJhbGciOiJSUzI1NiJ9.e30.YQ".to_owned())).expect("a token");
        assert_eq!(forget_at(&endless, now), 1000 + 86_400);
    }

    #[test]
    fn ledger_of_many_megabytes_is_read_and_shrinks() {
        let (_holder, ledger) = ledger();
        let living = token("1", 5_000_000_000);
        spend(&ledger, &living);
        write(&ledger, std::iter::once(entry(0, 0)).chain((0..40_000).map(|it| entry(it, END))));
        assert!(bytes_of(&ledger) > 6 << 20);
        as_another_process(&ledger);
        assert!(ledger.find(&living).unwrap().is_some());
        let now = || from_epoch_seconds(END);
        let clock = Clock { wall: now, monotonic: || Duration::from_secs(UPTIME), ..Clock::system() };
        assert_eq!(spend_at(clock, &ledger, &token("2", 5_000_000_000)), None);
        assert!(bytes_of(&ledger) < 1024 && spend_at(clock, &ledger, &living).is_some());
    }

    fn bytes_of(ledger: &Ledger) -> u64 {
        std::fs::metadata(ledger.root.join(FILE)).unwrap().len()
    }

    #[test]
    fn torn_line_hides_no_other_entry() {
        for torn in [&b"\n{\"version\":1,\"fingerprint\":\"abc"[..], b"\n{\"ver", b"\n\0\0\0\0", b"\n   \n\n"] {
            let (_holder, ledger) = ledger();
            spend(&ledger, &token("1", 5_000_000_000));
            let path = ledger.root.join(FILE);
            private_file::open_in_place(&path).expect("the ledger").write_all(torn).expect("a torn write");
            as_another_process(&ledger);
            assert_eq!(spend(&ledger, &token("2", 5_000_000_000)), None);
            assert!(spend(&ledger, &token("1", 5_000_000_000)).is_some());
            assert!(spend(&ledger, &token("2", 5_000_000_000)).is_some());
        }
    }

    #[test]
    fn damaged_ledger_is_refused_with_the_line() {
        let long = vec![b'x'; 40_000];
        for damage in [&b"garbage"[..], b"{}", b"\xff\xfe", b"[1]", &long] {
            let (_holder, ledger) = ledger();
            spend(&ledger, &token("1", 5_000_000_000));
            let path = ledger.root.join(FILE);
            private_file::open_in_place(&path).unwrap().write_all(&[b"\n", damage].concat()).unwrap();
            let refused = ledger.spend(&token("2", 5_000_000_000), Use::Sent, Clock::system(), &|_| {});
            assert!(matches!(refused, Err(StoreError::Damaged { line: 2, .. })), "{damage:?}");
            assert!(ledger.check().is_err());
        }
    }

    #[test]
    fn entry_of_a_newer_version_is_an_error() {
        let (_holder, ledger) = ledger();
        let path = ledger.root.join(FILE);
        let mut file = private_file::open_in_place(&path).expect("the ledger");
        file.write_all(b"{\"version\":2,\"what\":\"else\"}\n").expect("written");
        let result = ledger.spend(&token("1", 5_000_000_000), Use::Sent, Clock::system(), &|_| {});
        assert!(matches!(result, Err(StoreError::Newer { version: 2, .. })));
    }

    #[test]
    fn entry_version_is_checked_before_its_other_fields() {
        let (_holder, ledger) = ledger();
        assert!(spend(&ledger, &token("1", 600)).is_none());
        let line = bytes(&ledger);
        let with_version = |version: u64| {
            let mut entry: serde_json::Value = serde_json::from_slice(&line).unwrap();
            entry["version"] = version.into();
            serde_json::to_vec(&entry).unwrap()
        };
        let path = Path::new("ledger");
        let of_now = u64::from(FORMAT);
        assert_eq!(parse(&with_version(of_now), path).unwrap().len(), 1);
        let newer = parse(&with_version(of_now + 1), path);
        assert!(matches!(newer, Err(StoreError::Newer { version, .. }) if version == of_now + 1), "{newer:?}");
        let torn = format!(r#"{{"version":{of_now},"fingerprint":""#);
        assert!(parse(torn.as_bytes(), path).unwrap().is_empty(), "of our own version, and no entry");
    }
}
