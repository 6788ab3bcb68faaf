//! A run that the environment names but this process cannot join: it has ended, or belongs to another user.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use wifshare::{ConfigError, Environment, EventKind, EventLog, RUN_VARIABLE, is_alive};

use crate::catalogue::code;
use crate::failure::Failure;
use crate::started::{self, Started};

/// What is known of such a run.
#[derive(Debug)]
pub(crate) struct RunOver {
    directory: PathBuf,
    /// The record that `start` left in the environment. An `exec` leaves none.
    started: Option<Started>,
    owner: Option<u32>,
    last: Last,
}

/// The last event of the run.
#[derive(Debug)]
enum Last {
    Ended(SystemTime),
    HeardOf(SystemTime),
    Unknown,
}

impl RunOver {
    /// Returns the run that this environment names, unless it is alive and belongs to this user.
    pub(crate) fn of(environment: &Environment) -> Option<RunOver> {
        let directory = Path::new(environment.os(RUN_VARIABLE)?);
        if is_alive(directory) {
            return None;
        }
        let key = directory.parent().and_then(Path::parent);
        Some(RunOver {
            directory: directory.to_owned(),
            started: Started::in_environment(environment),
            owner: directory.ancestors().take(4).find_map(owner_of),
            last: key.map_or(Last::Unknown, |key| last_of(key, directory)),
        })
    }

    /// Whether it belongs to another user. Then this user cannot find out whether it is alive.
    fn is_foreign(&self) -> bool {
        self.user().is_some_and(|user| user != started::user())
    }

    /// Whether `start` began it, for use by later steps.
    pub(crate) fn was_started(&self) -> bool {
        self.started.is_some()
    }

    fn user(&self) -> Option<u32> {
        self.owner.or(self.started.as_ref().map(|started| started.user))
    }

    /// Describes the run: its directory, its user, when it started and how it ended.
    pub(crate) fn description(&self) -> String {
        let moment = |time| humantime::format_rfc3339_seconds(time).to_string();
        let user = self.user().map(|user| format!(" of user {user}")).unwrap_or_default();
        let began = self.started.as_ref().map(|started| format!(" (started at {})", moment(started.since())));
        let run = format!("the run {}{user}{}", self.directory.display(), began.unwrap_or_default());
        if self.is_foreign() {
            return format!("{run} cannot be joined by this user ({})", started::user());
        }
        match self.last {
            Last::Ended(time) => format!("{run} ended at {}", moment(time)),
            Last::HeardOf(time) => format!(
                "{run} ended without a clean stop after {} (killed, or its directory was removed)",
                moment(time)
            ),
            Last::Unknown => format!("{run} is over: its state was removed, and when it ended is not known"),
        }
    }

    /// The error of a command that needs this run's credential.
    pub(crate) fn failure(&self, error: &ConfigError) -> Failure {
        let taken = self.started.as_ref().map(|started| started.taken.join(", ")).filter(|names| !names.is_empty());
        let hint = match taken {
            Some(names) => format!(
                "`start` took {names} from this environment. In the shell that evaluated `start`, run \
                 `eval \"$(wifshare stop --format env)\"` to get them back; elsewhere, set them again and run \
                 `wifshare start`"
            ),
            None => "run this command in a shell that has the job's variables; in this one, \
                     `wifshare start` needs ANTHROPIC_FEDERATION_RULE_ID, ANTHROPIC_ORGANIZATION_ID and a source of \
                     identity tokens"
                .to_owned(),
        };
        let mut failure = Failure::new(code!("run-over"), self.description(), Some(&hint));
        failure.causes.push(format!("without it, {error}"));
        failure
    }
}

/// Finds the last event of this run in the log of its key. The name of a run's directory starts with its process id.
fn last_of(key: &Path, run: &Path) -> Last {
    let pid = run.file_name().and_then(|name| name.to_str()?.split('-').next()?.parse::<u32>().ok());
    let events = EventLog::of(key).read();
    match events.iter().rev().find(|event| Some(event.pid) == pid) {
        Some(event) if matches!(event.what, EventKind::RunEnded { .. }) => Last::Ended(event.time),
        Some(event) => Last::HeardOf(event.time),
        None => Last::Unknown,
    }
}

#[cfg(unix)]
fn owner_of(path: &Path) -> Option<u32> {
    std::fs::metadata(path).ok().map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata))
}

#[cfg(not(unix))]
fn owner_of(_path: &Path) -> Option<u32> {
    None
}
