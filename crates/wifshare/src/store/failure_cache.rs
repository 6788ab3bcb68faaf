//! Caches a failed exchange for a short time, so that a hundred processes fail at once with one clear reason instead of
//! sending a hundred requests.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::owner::ProcessIdentity;
use super::{FORMAT, StoreError};
use crate::clock::{epoch_seconds, from_epoch_seconds};
use crate::diagnosis::Diagnosis;
use crate::private_file;
use crate::progress::Observer;

pub(super) const FILE: &str = "refusal.json";

/// Maximum lifetime of a cached failure, whatever its file says.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// Why the last exchange failed, in texts that are safe to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedFailure {
    /// The stable code of the error.
    pub code: String,
    /// The error and its causes.
    pub message: String,
    /// An instruction for the user.
    pub hint: Option<String>,
    /// Likely causes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
    /// A hash of what the source provided. The failure does not apply if the source provides something else now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<String>,
    /// The process whose exchange failed.
    pub owner: ProcessIdentity,
    /// When it failed, in seconds since the epoch.
    pub at: u64,
    /// When it expires, in seconds since the epoch.
    until: u64,
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    refusal: CachedFailure,
}

impl CachedFailure {
    /// Creates a failure of this process at this moment, which expires after `lasting`.
    pub fn new(code: &str, message: String, hint: Option<String>, now: SystemTime, lasting: Duration) -> CachedFailure {
        let at = epoch_seconds(now);
        let (code, until) = (code.to_owned(), at + lasting.as_secs());
        CachedFailure {
            code,
            message,
            hint,
            diagnosis: None,
            given: None,
            owner: ProcessIdentity::current(),
            at,
            until,
        }
    }

    /// Adds likely causes.
    pub fn with_diagnosis(mut self, diagnosis: Option<Diagnosis>) -> CachedFailure {
        self.diagnosis = diagnosis;
        self
    }

    /// Adds the hash of what the source provided.
    pub fn of_given(mut self, given: Option<String>) -> CachedFailure {
        self.given = given;
        self
    }

    /// Returns how much longer the failure applies; `None` if it has expired. A clock that was set back ends it too. A
    /// fixed maximum applies, whatever the file says.
    pub fn remaining(&self, now: SystemTime) -> Option<Duration> {
        let begun = from_epoch_seconds(self.at) <= now + Duration::from_secs(1);
        let until = from_epoch_seconds(self.until).min(from_epoch_seconds(self.at) + LONGEST);
        until.duration_since(now).ok().filter(|left| begun && !left.is_zero())
    }
}

/// Reads the cached failure of this directory, if it still applies. An unreadable one counts as missing.
pub(super) fn read(directory: &Path, now: SystemTime) -> Result<Option<CachedFailure>, StoreError> {
    let bytes = private_file::read(&directory.join(FILE))?;
    Ok(bytes.and_then(|bytes| parse(&bytes)).filter(|refusal| refusal.remaining(now).is_some()))
}

pub(crate) fn parse(bytes: &[u8]) -> Option<CachedFailure> {
    let parsed = serde_json::from_slice::<Versioned>(bytes).ok()?;
    (parsed.version == FORMAT).then_some(parsed.refusal)
}

pub(super) fn remember(directory: &Path, refusal: &CachedFailure, observer: Observer<'_>) -> Result<(), StoreError> {
    let versioned = Versioned { version: FORMAT, refusal: refusal.clone() };
    let bytes = serde_json::to_vec_pretty(&versioned).expect("texts and numbers become JSON");
    // No sync: it expires within seconds, and after a power failure the next process simply tries.
    Ok(private_file::replace_unsynced(directory, FILE, &bytes, observer)?)
}

pub(super) fn forget(directory: &Path) -> Result<(), StoreError> {
    Ok(private_file::remove(&directory.join(FILE))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_failure_is_valid_until_its_end() {
        let at = from_epoch_seconds(1000);
        let refusal = CachedFailure::new("c", "m".to_owned(), None, at, Duration::from_secs(30));
        for (moment, counts) in [(998, false), (999, true), (1000, true), (1029, true), (1030, false), (2000, false)] {
            assert_eq!(refusal.remaining(from_epoch_seconds(moment)).is_some(), counts, "at {moment}");
        }
    }
}
