//! Threads that do something beside the command. Each is there before it is needed: where the system gives no more of
//! them, that is an error before anything was bought, and no panic.

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
    /// Begins one.
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

    /// Gives it its work, and waits for nothing.
    pub(crate) fn begin(mut self, work: impl FnOnce() + Send + 'static) {
        self.handle = None;
        if let Some(to) = self.work.take() {
            // It waits for this and for nothing else.
            let _ = to.send(Box::new(work));
        }
    }
}

/// Without work it ends at once, and what it took of the system's limits is free again.
impl Drop for Thread {
    fn drop(&mut self) {
        self.work = None;
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

/// What the user reads where there is no thread to be had.
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
