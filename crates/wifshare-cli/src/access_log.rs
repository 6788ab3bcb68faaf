//! What the gateway served, on its way to the log of events: gathered for a moment and written together by a thread of its
//! own, so that no request waits for a file.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use wifshare::{Caller, Event, Served, What};

use crate::clock::clock;
use crate::event_writer::EventWriter;

/// Takes requests down. What is not written yet is written when this is dropped.
pub(crate) struct AccessLog {
    desk: Arc<Desk>,
    /// There from the first request on. Without it there is no log; it is talk and no promise.
    writer: OnceLock<Option<JoinHandle<()>>>,
}

/// Where they lie until they are written.
struct Desk {
    events: EventWriter,
    pending: Mutex<Pending>,
    changed: Condvar,
    /// Until then nothing is taken down, for the log is full; in milliseconds.
    full_until: AtomicU64,
}

#[derive(Default)]
struct Pending {
    /// With who sent the request; the process there may be found until it is written.
    events: Vec<(Event, Arc<Caller>)>,
    is_over: bool,
}

impl AccessLog {
    /// For a run that writes into this journal.
    pub(crate) fn of(events: EventWriter) -> AccessLog {
        let (pending, changed, full_until) = (Mutex::default(), Condvar::new(), AtomicU64::new(0));
        let desk = Arc::new(Desk { events, pending, changed, full_until });
        AccessLog { desk, writer: OnceLock::new() }
    }

    /// Takes down a request that is over.
    pub(crate) fn take_down(&self, served: &Served<'_>) {
        if served.path == "/v1/panic" {
            crate::exec::panic_if_told_to("served");
        }
        let now = milliseconds();
        if now < self.desk.full_until.load(Ordering::Relaxed) || self.writer().is_none() {
            return;
        }
        let bytes = (served.bytes_in, served.bytes_out);
        let what = What::request(served.method, served.path, served.status, served.took, bytes, None);
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
            // A panic was told by the thread.
            let _ = writer.join();
        }
    }
}

impl Desk {
    /// As many may lie here; what comes beyond that before they are written is left out.
    const MOST: usize = 1024;

    fn put(&self, event: (Event, Arc<Caller>)) {
        let mut pending = self.pending();
        if pending.events.len() >= Self::MOST {
            return;
        }
        pending.events.push(event);
        // The thread is woken by the first of a batch alone.
        if pending.events.len() == 1 {
            drop(pending);
            self.changed.notify_one();
        }
    }

    fn write(&self) {
        /// So long the first of a batch waits for others.
        const PACE: Duration = Duration::from_millis(20);
        /// So long nobody looks whether a full log has room again.
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
    if let What::RequestServed { process, .. } = &mut event.what {
        *process = caller.process();
    }
    event
}

fn milliseconds() -> u64 {
    u64::try_from((clock().monotonic)().as_millis()).unwrap_or(u64::MAX)
}
