//! A refusal, remembered for a short while, so that a hundred processes fail at once with one clear reason instead of
//! knocking a hundred times.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::owner::Owner;
use super::{FORMAT, StoreError};
use crate::clock::{epoch_seconds, from_epoch_seconds};
use crate::diagnosis::Diagnosis;
use crate::private_file;
use crate::step::Watch;

pub(super) const FILE: &str = "refusal.json";

/// A refusal that nobody can have meant to last longer than this.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// Why the last exchange failed, in texts that are safe to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The stable code of the error.
    pub code: String,
    /// The error and its causes.
    pub message: String,
    /// The cure.
    pub hint: Option<String>,
    /// What could be told of it beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
    /// What the source had given, as a hash: where it gives something else now, that is not refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<String>,
    /// Who was refused.
    pub owner: Owner,
    /// When, in seconds since the epoch.
    pub at: u64,
    /// Until when it counts, in seconds since the epoch.
    until: u64,
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    refusal: Refusal,
}

impl Refusal {
    /// A refusal of this process, at this moment, that counts for so long.
    pub fn new(code: &str, message: String, hint: Option<String>, now: SystemTime, lasting: Duration) -> Refusal {
        let at = epoch_seconds(now);
        let (code, until) = (code.to_owned(), at + lasting.as_secs());
        Refusal { code, message, hint, diagnosis: None, given: None, owner: Owner::current(), at, until }
    }

    /// The same with what could be told of it beside.
    pub fn with_diagnosis(mut self, diagnosis: Option<Diagnosis>) -> Refusal {
        self.diagnosis = diagnosis;
        self
    }

    /// The same for what the source had given.
    pub fn of_given(mut self, given: Option<String>) -> Refusal {
        self.given = given;
        self
    }

    /// How much longer it counts; `None` when it no longer does. A clock that was stepped back ends it too, and none
    /// counts longer than a bound of ours, whatever its file says.
    pub fn remaining(&self, now: SystemTime) -> Option<Duration> {
        let begun = from_epoch_seconds(self.at) <= now + Duration::from_secs(1);
        let until = from_epoch_seconds(self.until).min(from_epoch_seconds(self.at) + LONGEST);
        until.duration_since(now).ok().filter(|left| begun && !left.is_zero())
    }
}

/// What is remembered in this directory, if it still counts. One that cannot be read counts as none.
pub(super) fn read(directory: &Path, now: SystemTime) -> Result<Option<Refusal>, StoreError> {
    let bytes = private_file::read(&directory.join(FILE))?;
    Ok(bytes.and_then(|bytes| parse(&bytes)).filter(|refusal| refusal.remaining(now).is_some()))
}

pub(crate) fn parse(bytes: &[u8]) -> Option<Refusal> {
    let parsed = serde_json::from_slice::<Versioned>(bytes).ok()?;
    (parsed.version == FORMAT).then_some(parsed.refusal)
}

pub(super) fn remember(directory: &Path, refusal: &Refusal, watch: Watch<'_>) -> Result<(), StoreError> {
    let versioned = Versioned { version: FORMAT, refusal: refusal.clone() };
    let bytes = serde_json::to_vec_pretty(&versioned).expect("texts and numbers become JSON");
    // It counts for seconds; whoever starts after a power cut finds out anew.
    Ok(private_file::replace_unsynced(directory, FILE, &bytes, watch)?)
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
        let refusal = Refusal::new("c", "m".to_owned(), None, at, Duration::from_secs(30));
        for (moment, counts) in [(998, false), (999, true), (1000, true), (1029, true), (1030, false), (2000, false)] {
            assert_eq!(refusal.remaining(from_epoch_seconds(moment)).is_some(), counts, "at {moment}");
        }
    }
}
