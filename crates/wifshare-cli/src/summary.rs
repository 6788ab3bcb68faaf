//! Adds a run to the summary of a job: a Markdown file that GitHub displays with the log.

use std::path::Path;
use std::time::SystemTime;

use wifshare::{Environment, EventKind, EventLog};

use crate::appended::AppendedFile;
use crate::console::Console;
use crate::report;

/// When the run of this process began, from the log of its identity key.
pub(crate) fn beginning_of(key: &Path, pid: u32) -> Option<SystemTime> {
    let began = |what: &EventKind| matches!(what, EventKind::RunBegan { .. });
    EventLog::of(key).read().iter().rev().find(|event| event.pid == pid && began(&event.what)).map(|event| event.time)
}

/// Appends the events of this identity key since that time to the summary file, if there is one. `WIFSHARE_SUMMARY=off`
/// disables it. It is optional, so a failure is reported only in verbose output.
pub(crate) fn append(key: &Path, since: SystemTime, environment: &Environment, console: Console) {
    let Some(path) = environment.os("GITHUB_STEP_SUMMARY") else { return };
    if environment.text("WIFSHARE_SUMMARY") == Some("off") {
        return;
    }
    let Some(page) = report::summary(key, since) else { return };
    if let Err(error) = AppendedFile::open(Path::new(path)).and_then(|mut file| file.append(&page)) {
        console.detail(&format!("could not append to the job's summary: {error}"));
    }
}
