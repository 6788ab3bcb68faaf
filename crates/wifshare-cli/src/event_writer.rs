//! What this process tells the log of its identity key, for `status` and `report`.

use std::path::Path;

use wifshare::{Event, EventLog, Owner, Step, What};

use crate::clock::clock;

/// This process's pen.
#[derive(Clone, Debug)]
pub(crate) struct EventWriter {
    log: EventLog,
    pid: u32,
    started: Option<u64>,
}

impl EventWriter {
    /// For a process that lives for a while.
    pub(crate) fn of_a_run(directory: &Path) -> EventWriter {
        EventWriter { started: Owner::current().start_time, ..EventWriter::of_a_moment(directory) }
    }

    /// For one that asks for a token and goes: its start is not looked up, for it would be half of the work.
    pub(crate) fn of_a_moment(directory: &Path) -> EventWriter {
        EventWriter { log: EventLog::of(directory), pid: std::process::id(), started: None }
    }

    pub(crate) fn note(&self, what: What) {
        self.log.append(&self.event(what));
    }

    /// Notes what happened before, all together. Says whether there was room for all.
    pub(crate) fn note_all(&self, events: &[Event]) -> bool {
        self.log.append_all(events)
    }

    /// What happened at this moment, for [`note_all`](Self::note_all).
    pub(crate) fn event(&self, what: What) -> Event {
        Event { time: clock().now(), pid: self.pid, started: self.started, what }
    }

    pub(crate) fn step(&self, step: &Step<'_>) {
        if let Some(what) = What::of(step) {
            self.note(what);
        }
    }
}
