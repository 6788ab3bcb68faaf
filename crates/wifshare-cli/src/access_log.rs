//! Writes the requests that the gateway served to the event log. A thread collects them for a short time and writes
//! them in batches, so that no request waits for a file.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use wifshare::{Caller, Event, EventKind, Served};

use crate::clock::clock;
use crate::event_writer::EventWriter;

/// Log of served requests. Dropping it writes the pending events first.
pub(crate) struct AccessLog {
    desk: Arc<Desk>,
    /// The writer thread, started by the first request. `None` if it could not be started: then nothing is logged,
    /// because the access log is best effort.
    writer: OnceLock<Option<JoinHandle<()>>>,
}

/// State shared with the writer thread.
struct Desk {
    events: EventWriter,
    pending: Mutex<Pending>,
    changed: Condvar,
    /// Time in milliseconds until which requests are dropped because the log is full.
    full_until: AtomicU64,
}

#[derive(Default)]
struct Pending {
    /// Each event with its caller. The caller's process may become known only after the request, so it is read when the
    /// event is written.
    events: Vec<(Event, Arc<Caller>)>,
    is_over: bool,
}

impl AccessLog {
    /// Creates the log of a run that writes to this event log.
    pub(crate) fn of(events: EventWriter) -> AccessLog {
        let (pending, changed, full_until) = (Mutex::default(), Condvar::new(), AtomicU64::new(0));
        let desk = Arc::new(Desk { events, pending, changed, full_until });
        AccessLog { desk, writer: OnceLock::new() }
    }

    /// Records a completed request.
    pub(crate) fn take_down(&self, served: &Served<'_>) {
        if served.path == "/v1/panic" {
            crate::exec::panic_if_told_to("served");
        }
        let now = milliseconds();
        if now < self.desk.full_until.load(Ordering::Relaxed) || self.writer().is_none() {
            return;
        }
        let bytes = (served.bytes_in, served.bytes_out);
        let what = EventKind::request(served.method, served.path, served.status, served.took, bytes, None);
        self.desk.put((self.desk.events.event(what), Arc::clone(served.caller)));
    }

    fn writer(&self) -> &Option<JoinHandle<()>> {
        self.writer.get_or_init(|| {
            let desk = Arc::clone(&self.desk);
            let thread = std::thread::Builder::new().name("wifshare-access-log".to_owned());
            thread.spawn(move || desk.write()).ok()
        })
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.desk.pending().is_over = true;
        self.desk.changed.notify_one();
        if let Some(Some(writer)) = self.writer.take() {
            // The thread has reported its own panic.
            let _ = writer.join();
        }
    }
}

impl Desk {
    /// Maximum number of pending events. Further ones are dropped until the thread has written these.
    const MOST: usize = 1024;

    fn put(&self, event: (Event, Arc<Caller>)) {
        let mut pending = self.pending();
        if pending.events.len() >= Self::MOST {
            return;
        }
        pending.events.push(event);
        // The first event of a batch wakes the thread; the others need not.
        if pending.events.len() == 1 {
            drop(pending);
            self.changed.notify_one();
        }
    }

    fn write(&self) {
        /// How long the first event of a batch waits for others.
        const PACE: Duration = Duration::from_millis(20);
        /// How long to wait before trying a full log again, in milliseconds.
        const REST: u64 = 1000;
        loop {
            let nothing = |pending: &mut Pending| pending.events.is_empty() && !pending.is_over;
            let pending = self.changed.wait_while(self.pending(), nothing).unwrap_or_else(PoisonError::into_inner);
            let waited = self.changed.wait_timeout_while(pending, PACE, |pending| !pending.is_over);
            let (mut pending, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let (events, is_over) = (std::mem::take(&mut pending.events), pending.is_over);
            drop(pending);
            let events: Vec<Event> = events.into_iter().map(with_sender).collect();
            if !self.events.note_all(&events) {
                self.full_until.store(milliseconds() + REST, Ordering::Relaxed);
            }
            if is_over {
                return;
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_sender((mut event, caller): (Event, Arc<Caller>)) -> Event {
    if let EventKind::RequestServed { process, .. } = &mut event.what {
        *process = caller.process();
    }
    event
}

fn milliseconds() -> u64 {
    u64::try_from((clock().monotonic)().as_millis()).unwrap_or(u64::MAX)
}
