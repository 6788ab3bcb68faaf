//! The spent identity tokens of this machine's user: written and synced before the first byte of a token leaves.
//!
//! One ledger for all identity keys. A token's single use is counted by the server for its issuer and `jti`, whatever
//! rule or workspace it is sent with, so two keys that read one token file must know of each other.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::file_lock::FileLock;
use super::owner::Owner;
use super::{FORMAT, StoreError, Version};
use crate::clock::{Clock, epoch_seconds};
use crate::identity_token::IdentityToken;
use crate::private_file::{self, PrivateFileError};
use crate::step::Watch;

const FILE: &str = "spent";
const LOCK: &str = "spent.lock";

/// What became of an identity token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// We sent it to the token endpoint, or were about to when we died.
    Sent,
    /// It was handed to the children in a file; they may send it.
    HandedOut,
}

/// A spent identity token: never its text, only its fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    version: u32,
    fingerprint: String,
    /// What for.
    pub used: Use,
    /// By whom.
    pub owner: Owner,
    /// When, in seconds since the epoch.
    pub at: u64,
    /// When it may be forgotten, in seconds since the epoch: the server refuses it then for its age.
    forget_at: u64,
}

impl Spent {
    /// "taken for an exchange by pid 4711, 12 s ago".
    pub fn story(&self, now: SystemTime) -> String {
        let ago = epoch_seconds(now).saturating_sub(self.at);
        match self.used {
            Use::Sent => format!("taken for an exchange by {}, {ago} s ago", self.owner),
            Use::HandedOut => format!("handed out to other processes by {}, {ago} s ago", self.owner),
        }
    }
}

pub(super) struct Ledger {
    root: PathBuf,
}

impl Ledger {
    pub(super) fn at(root: &Path) -> Ledger {
        Ledger { root: root.to_owned() }
    }

    /// Writes this token down as spent and syncs. If it stands there already nothing is written and the older entry
    /// comes back: the token must not be used.
    pub(super) fn spend(
        &self,
        token: &IdentityToken,
        used: Use,
        clock: Clock,
        watch: Watch<'_>,
    ) -> Result<Option<Spent>, StoreError> {
        // The ledger is held for one write and one sync; a longer wait means that its holder is stopped.
        const PATIENCE: Duration = Duration::from_secs(20);
        let _lock = FileLock::acquire(&self.root.join(LOCK), PATIENCE, clock, watch)?;
        let fingerprint = token.fingerprint().to_string();
        let entries = self.read()?;
        if let Some(entry) = entries.iter().find(|entry| entry.fingerprint == fingerprint) {
            return Ok(Some(entry.clone()));
        }
        let now = clock.now();
        self.forget(&entries, now, watch)?;
        let entry = Spent {
            version: FORMAT,
            fingerprint,
            used,
            owner: Owner::current(),
            at: epoch_seconds(now),
            forget_at: forget_at(token, now),
        };
        self.append(&entry)?;
        Ok(None)
    }

    /// What stands there about this token. Needs no lock: entries are only ever added or replaced whole.
    pub(super) fn find(&self, token: &IdentityToken) -> Result<Option<Spent>, StoreError> {
        let fingerprint = token.fingerprint().to_string();
        Ok(self.read()?.into_iter().find(|entry| entry.fingerprint == fingerprint))
    }

    fn read(&self) -> Result<Vec<Spent>, StoreError> {
        let path = self.root.join(FILE);
        match private_file::read(&path)? {
            Some(bytes) => parse(&bytes, &path),
            None => Ok(Vec::new()),
        }
    }

    fn append(&self, entry: &Spent) -> Result<(), StoreError> {
        let path = self.root.join(FILE);
        let writing = |source| PrivateFileError::Io { action: "write", path: path.clone(), source };
        let mut file = private_file::open_in_place(&path)?;
        let length = file.seek(SeekFrom::End(0)).map_err(writing)?;
        // On a line of its own, whatever a crash left in front of it.
        let mut line = if length == 0 { Vec::new() } else { vec![b'\n'] };
        serde_json::to_writer(&mut line, entry).expect("texts and numbers become JSON");
        file.write_all(&line).and_then(|()| file.sync_all()).map_err(writing)?;
        if length == 0 {
            private_file::sync_directory(&self.root)?;
        }
        Ok(())
    }

    /// Drops what the server would refuse for its age, once the ledger is large enough to be worth it.
    fn forget(&self, entries: &[Spent], now: SystemTime, watch: Watch<'_>) -> Result<(), StoreError> {
        const WORTH_IT: usize = 512;
        let now = epoch_seconds(now);
        if entries.len() < WORTH_IT || entries.iter().filter(|entry| entry.forget_at <= now).count() < WORTH_IT / 2 {
            return Ok(());
        }
        let mut bytes = Vec::new();
        for entry in entries.iter().filter(|entry| entry.forget_at > now) {
            serde_json::to_writer(&mut bytes, entry).expect("texts and numbers become JSON");
            bytes.push(b'\n');
        }
        Ok(private_file::replace(&self.root, FILE, &bytes, watch)?)
    }
}

/// The entries that these bytes hold, one a line.
pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Spent>, StoreError> {
    let mut entries = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Spent>(line) {
            Ok(entry) if entry.version == FORMAT => entries.push(entry),
            // A newer entry may look otherwise, and has its version all the same.
            _ => match serde_json::from_slice::<Version>(line) {
                Ok(Version { version }) if version != u64::from(FORMAT) => {
                    return Err(StoreError::Newer { path: path.to_owned(), version });
                }
                // A line that was torn by a crash was never synced, so its token never left: it can be skipped.
                _ => {}
            },
        }
    }
    Ok(entries)
}

/// An hour after its end, or a day from now where it does not say when it ends: the clocks of this machine and of the
/// server may differ.
fn forget_at(token: &IdentityToken, now: SystemTime) -> u64 {
    const HOUR: u64 = 3600;
    match token.claims().expires_at {
        Some(end) => epoch_seconds(end.max(now)) + HOUR,
        None => epoch_seconds(now) + 24 * HOUR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn token(jti: &str, expires_at: u64) -> IdentityToken {
        use base64::Engine;
        let claims = format!(r#"{{"iss":"i","jti":"{jti}","exp":{expires_at}}}"#);
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims);
        IdentityToken::parse(&Secret::new(format!("eyJhbGciOiJSUzI1NiJ9.{claims}.c2ln"))).expect("a token")
    }

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let holder = tempfile::tempdir().expect("a directory");
        let root = holder.path().join("state");
        private_file::private_directory(&root).expect("a private directory");
        (holder, Ledger::at(&root))
    }

    fn spend(ledger: &Ledger, token: &IdentityToken) -> Option<Spent> {
        ledger.spend(token, Use::Sent, Clock::system(), &|_| {}).expect("a ledger")
    }

    #[test]
    fn a_token_can_be_spent_once() {
        let (_holder, ledger) = ledger();
        assert_eq!(spend(&ledger, &token("1", 5_000_000_000)), None);
        assert_eq!(spend(&ledger, &token("2", 5_000_000_000)), None);
        let again = spend(&ledger, &token("1", 5_000_000_000)).expect("it was spent");
        assert_eq!(again.owner.pid, std::process::id());
        assert_eq!(ledger.find(&token("1", 5_000_000_000)).expect("a ledger"), Some(again));
        assert_eq!(ledger.find(&token("3", 5_000_000_000)).expect("a ledger"), None);
    }

    #[test]
    fn each_entry_has_a_line_of_its_own() {
        let (_holder, ledger) = ledger();
        spend(&ledger, &token("1", 5_000_000_000));
        spend(&ledger, &token("2", 5_000_000_000));
        let bytes = private_file::read(&ledger.root.join(FILE)).expect("readable").expect("there");
        let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
        assert!(lines.len() == 2 && lines.iter().all(|line| line.starts_with(b"{")), "{lines:?}");
    }

    #[test]
    fn forgetting_waits_until_it_is_worth_it() {
        const END: u64 = 1_000_000;
        for (ended, lasting, left) in
            [(511, 0, 511), (512, 0, 0), (256, 256, 256), (255, 257, 512), (100, 500, 600), (300, 300, 300)]
        {
            let (_holder, ledger) = ledger();
            let entry = |number: usize| {
                let forget_at = if number < ended { END } else { END + 1 };
                let fingerprint = number.to_string();
                let used = Use::Sent;
                let entry = Spent { version: FORMAT, fingerprint, used, owner: Owner::current(), at: 1, forget_at };
                serde_json::to_string(&entry).expect("JSON") + "\n"
            };
            let lines: String = (0..ended + lasting).map(entry).collect();
            private_file::replace(&ledger.root, FILE, lines.as_bytes(), &|_| {}).expect("written");
            let clock = Clock { wall: || crate::clock::from_epoch_seconds(END), ..Clock::system() };
            ledger.spend(&token("new", END + 300), Use::Sent, clock, &|_| {}).expect("a ledger");
            assert_eq!(ledger.read().expect("a ledger").len(), left + 1, "{ended} ended and {lasting} lasting");
        }
    }

    #[test]
    fn an_entry_stays_an_hour_longer_than_its_token() {
        let now = crate::clock::from_epoch_seconds(1000);
        for (end, forgotten) in [(2000, 5600), (500, 4600)] {
            assert_eq!(forget_at(&token("1", end), now), forgotten, "{end}");
        }
        let endless = IdentityToken::parse(&Secret::new("eyJhbGciOiJSUzI1NiJ9.e30.YQ".to_owned())).expect("a token");
        assert_eq!(forget_at(&endless, now), 1000 + 86_400);
    }

    #[test]
    fn a_torn_line_hides_neither_what_stands_before_nor_what_comes_after() {
        let (_holder, ledger) = ledger();
        spend(&ledger, &token("1", 5_000_000_000));
        let path = ledger.root.join(FILE);
        let mut file = private_file::open_in_place(&path).expect("the ledger");
        file.write_all(b"\n{\"fingerprint\":\"abc").expect("a torn write");
        assert_eq!(spend(&ledger, &token("2", 5_000_000_000)), None);
        assert!(spend(&ledger, &token("1", 5_000_000_000)).is_some());
        assert!(spend(&ledger, &token("2", 5_000_000_000)).is_some());
    }

    #[test]
    fn an_entry_of_a_newer_version_is_not_taken_for_nothing() {
        let (_holder, ledger) = ledger();
        let path = ledger.root.join(FILE);
        let mut file = private_file::open_in_place(&path).expect("the ledger");
        file.write_all(b"{\"version\":2,\"what\":\"else\"}\n").expect("written");
        let result = ledger.spend(&token("1", 5_000_000_000), Use::Sent, Clock::system(), &|_| {});
        assert!(matches!(result, Err(StoreError::Newer { version: 2, .. })));
    }

    #[test]
    fn the_ledger_forgets_what_has_expired_and_nothing_else() {
        let (_holder, ledger) = ledger();
        let clock = Clock { wall: || crate::clock::from_epoch_seconds(1_000_000), ..Clock::system() };
        let spend =
            |clock, jti: &str, end| ledger.spend(&token(jti, end), Use::Sent, clock, &|_| {}).expect("a ledger");
        spend(clock, "lasting", 5_000_000_000);
        for number in 0..520 {
            spend(clock, &number.to_string(), 1_000_300);
        }
        assert_eq!(ledger.read().expect("a ledger").len(), 521);
        let later = Clock { wall: || crate::clock::from_epoch_seconds(1_000_300 + 3600), ..clock };
        spend(later, "new", 5_000_000_000);
        assert_eq!(ledger.read().expect("a ledger").len(), 2);
        assert!(spend(later, "lasting", 5_000_000_000).is_some());
    }

    #[test]
    fn an_entry_is_judged_by_its_version_before_anything_else_of_it() {
        let (_holder, ledger) = ledger();
        assert!(spend(&ledger, &token("1", 600)).is_none());
        let line = private_file::read(&ledger.root.join(FILE)).unwrap().unwrap();
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
        let torn = format!(r#"{{"version":{of_now}}}"#);
        assert!(parse(torn.as_bytes(), path).unwrap().is_empty(), "of our own version, and no entry");
    }
}
