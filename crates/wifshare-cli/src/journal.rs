//! What this process tells the log of its identity key, for `status` and `report`.

use std::path::Path;

use std::sync::atomic::{AtomicU64, Ordering};

use wifshare::{Event, EventLog, Owner, Served, Step, What};

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

    /// Notes a request to the gateway, and who sent it: that costs a look at every process of this user, so of many
    /// requests at once only one is asked for its sender.
    pub(crate) fn request(&self, served: &Served<'_>) {
        const PACE_MS: u64 = 20;
        static LAST: AtomicU64 = AtomicU64::new(0);
        let now = u64::try_from((clock().monotonic)().as_millis()).unwrap_or(u64::MAX);
        let last = LAST.load(Ordering::Relaxed);
        let may_ask = last == 0 || now >= last + PACE_MS;
        let process = may_ask.then(|| served.process()).flatten();
        if may_ask {
            LAST.store(now.max(1), Ordering::Relaxed);
        }
        let bytes = (served.bytes_in, served.bytes_out);
        self.note(What::request(served.method, served.path, served.status, served.took, bytes, process));
    }

    pub(crate) fn step(&self, step: &Step<'_>) {
        if let Some(what) = What::of(step) {
            self.note(what);
        }
    }
}
