//! Writes the events of this process to the log of its identity key, for `status` and `report`.

use std::path::Path;

use wifshare::{Event, EventKind, EventLog, ProcessIdentity, Progress};

use crate::clock::clock;

/// Adds this process's id and start time to events and appends them to the log.
#[derive(Clone, Debug)]
pub(crate) struct EventWriter {
    log: EventLog,
    pid: u32,
    started: Option<u64>,
}

impl EventWriter {
    /// Creates the writer of a process that runs for a while.
    pub(crate) fn of_a_run(directory: &Path) -> EventWriter {
        EventWriter { started: ProcessIdentity::current().start_time, ..EventWriter::of_a_moment(directory) }
    }

    /// Creates the writer of a short process such as `token`. It leaves out the start time, because looking it up would
    /// take half of the time.
    pub(crate) fn of_a_moment(directory: &Path) -> EventWriter {
        EventWriter { log: EventLog::of(directory), pid: std::process::id(), started: None }
    }

    pub(crate) fn note(&self, what: EventKind) {
        self.log.append(&self.event(what));
    }

    /// Appends earlier events together. Returns whether there was room for all of them.
    pub(crate) fn note_all(&self, events: &[Event]) -> bool {
        self.log.append_all(events)
    }

    /// Creates an event with the current time, for [`note_all`](Self::note_all).
    pub(crate) fn event(&self, what: EventKind) -> Event {
        Event { time: clock().now(), pid: self.pid, started: self.started, what }
    }

    pub(crate) fn step(&self, step: &Progress<'_>) {
        if let Some(what) = EventKind::of(step) {
            self.note(what);
        }
    }
}
