//! What this process tells the log of its identity key, for `status` and `report`.

use std::path::Path;

use wifshare::{Event, EventLog, Owner, Step, What};

use crate::clock::clock;

/// This process's pen.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    log: EventLog,
    pid: u32,
    started: Option<u64>,
}

impl Journal {
    /// For a process that lives for a while.
    pub(crate) fn of_a_run(directory: &Path) -> Journal {
        Journal { started: Owner::current().start_time, ..Journal::of_a_moment(directory) }
    }

    /// For one that asks for a token and goes: its start is not looked up, for it would be half of the work.
    pub(crate) fn of_a_moment(directory: &Path) -> Journal {
        Journal { log: EventLog::of(directory), pid: std::process::id(), started: None }
    }

    pub(crate) fn note(&self, what: What) {
        self.log.append(&Event { time: clock().now(), pid: self.pid, started: self.started, what });
    }

    pub(crate) fn step(&self, step: &Step<'_>) {
        if let Some(what) = What::of(step) {
            self.note(what);
        }
    }
}
