//! Background threads, each started before it is needed. If the system refuses a thread, that is an error before any
//! exchange and not a panic later.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use crate::catalogue::code;
use crate::failure::Failure;

type Work = Box<dyn FnOnce() + Send>;

/// A thread that waits for its work.
pub(crate) struct Thread {
    work: Option<Sender<Work>>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts a thread that waits for its work.
    ///
    /// # Errors
    /// Returns the system's error if the thread cannot be started.
    pub(crate) fn prepare(name: &str) -> io::Result<Thread> {
        let (work, wanted) = channel::<Work>();
        let run = move || {
            if let Ok(work) = wanted.recv() {
                work();
            }
        };
        let handle = Builder::new().name(format!("wifshare-{name}")).spawn(run)?;
        Ok(Thread { work: Some(work), handle: Some(handle) })
    }

    /// Gives the thread its work and returns at once.
    pub(crate) fn begin(mut self, work: impl FnOnce() + Send + 'static) {
        self.handle = None;
        if let Some(to) = self.work.take() {
            // Cannot fail: the thread waits for exactly this message.
            let _ = to.send(Box::new(work));
        }
    }
}

/// A thread without work ends at once and frees its share of the system's limits.
impl Drop for Thread {
    fn drop(&mut self) {
        self.work = None;
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

/// Error for a thread that could not be started.
pub(crate) fn no_thread(error: &io::Error) -> Failure {
    Failure::new(
        code!("no-thread"),
        format!("could not start a thread: {error}"),
        Some("raise the limit of processes and threads: `ulimit -u` of this user, or `pids` of the container"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_thread_runs_its_task_or_ends_when_dropped() {
        let (done, heard) = channel();
        Thread::prepare("test").expect("a thread").begin(move || done.send(7).expect("heard"));
        assert_eq!(heard.recv(), Ok(7));
        drop(Thread::prepare("test").expect("a thread"));
    }
}
