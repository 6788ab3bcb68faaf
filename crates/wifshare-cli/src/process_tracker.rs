//! Tracks the processes of a run from outside. A thread scans the descendants of the command now and then, and at once
//! when a process opens the credential.
//!
//! It misses a process that starts and ends between two scans without opening the credential, an access to the
//! credential in the first moment of the command, and a process that outlives its parent before it was seen. The
//! gateway knows its clients better, because they send it requests.

use std::path::Path;

use wifshare::{Environment, EventKind};

use crate::event_writer::EventWriter;

/// Tracks the commands of a run, one after another.
pub(crate) struct ProcessTracker {
    events: Option<EventWriter>,
    access: platform::FileAccess,
}

/// Tracks one command until it is dropped.
pub(crate) struct Following<'a> {
    access: &'a mut platform::FileAccess,
    watching: Option<platform::Watching>,
}

impl ProcessTracker {
    /// Creates a tracker for commands with this environment. Without an event writer it does nothing.
    pub(crate) fn of(environment: &Environment, events: Option<&EventWriter>) -> ProcessTracker {
        let profile = environment.os("ANTHROPIC_CONFIG_DIR").map(Path::new);
        // Not watched under `federation`, where this file does not exist: the run itself reads the file that does, to
        // see whether a child has replaced it.
        let credential = profile.map(|profile| profile.join("credentials/wifshare.json"));
        let access = platform::FileAccess::at(credential.filter(|path| path.exists()));
        ProcessTracker { events: events.cloned(), access }
    }

    /// Records an event that needs no scan.
    pub(crate) fn note(&self, what: EventKind) {
        if let Some(events) = &self.events {
            events.note(what);
        }
    }

    /// Tracks the descendants of this process.
    pub(crate) fn follow(&mut self, process: u32) -> Following<'_> {
        let watching = self.events.as_ref().and_then(|events| self.access.begin(process, events.clone()));
        Following { access: &mut self.access, watching }
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        if let Some(watching) = self.watching.take() {
            self.access.end(watching);
        }
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::PathBuf;
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
    use rustix::fs::inotify;
    use wifshare::{Descendants, EventKind, Sighting};

    use super::EventWriter;

    pub(super) struct FileAccess {
        credential: Option<PathBuf>,
        /// Kept for the next command. The system takes some milliseconds to close an inotify watch, and a child that
        /// starts meanwhile would be delayed by it.
        openings: Option<Openings>,
    }

    pub(super) struct Watching {
        end: OwnedFd,
        /// Receives the watch when the last scan is done.
        done: mpsc::Receiver<Option<Openings>>,
    }

    impl FileAccess {
        pub(super) fn at(credential: Option<PathBuf>) -> FileAccess {
            FileAccess { credential, openings: None }
        }

        pub(super) fn begin(&mut self, process: u32, events: EventWriter) -> Option<Watching> {
            let end = eventfd(0, EventfdFlags::CLOEXEC).ok()?;
            let heard = end.try_clone().ok()?;
            let (tell, done) = mpsc::channel();
            let (credential, openings) = (self.credential.clone(), self.openings.take());
            // Without a thread nothing is tracked, and the command works anyway.
            let thread = std::thread::Builder::new().name("wifshare-witness".to_owned());
            thread
                .spawn(move || {
                    // Fails if the run was abandoned; then nothing is left to report.
                    let _ = tell.send(look_out(process, &heard, credential, openings, &events));
                })
                .ok()?;
            Some(Watching { end, done })
        }

        pub(super) fn end(&mut self, watching: Watching) {
            let _ = rustix::io::write(&watching.end, &1u64.to_ne_bytes());
            self.openings = watching.done.recv().ok().flatten();
        }
    }

    impl Drop for FileAccess {
        fn drop(&mut self) {
            // Close it in a thread, so that the end of the run does not wait for it.
            if let Some(openings) = self.openings.take() {
                // If no thread can be started, it is dropped here.
                drop(std::thread::Builder::new().spawn(move || drop(openings)));
            }
        }
    }

    /// Scans every 20 ms while processes start or end, and up to once a second otherwise.
    fn look_out(
        process: u32,
        end: &OwnedFd,
        credential: Option<PathBuf>,
        mut openings: Option<Openings>,
        events: &EventWriter,
    ) -> Option<Openings> {
        const SHORTEST: Duration = Duration::from_millis(20);
        const LONGEST: Duration = Duration::from_secs(1);
        let mut descendants = Descendants::of(process);
        let mut unwatched = credential.filter(|_| openings.is_none());
        let mut pause = SHORTEST;
        loop {
            let sightings = descendants.look();
            let seen = !sightings.is_empty();
            sightings.into_iter().for_each(|sighting| events.note(what(sighting)));
            let times = openings.as_ref().map_or(0, Openings::count);
            if times > 0 {
                events.note(EventKind::CredentialOpened { times });
            }
            if is_over(end, openings.as_ref(), pause) {
                descendants.look().into_iter().for_each(|sighting| events.note(what(sighting)));
                return openings;
            }
            pause = if seen || times > 0 { SHORTEST } else { (pause * 2).min(LONGEST) };
            // Set up the watch only after the first wait: a command that has ended by then need not wait for its
            // removal.
            if let Some(credential) = unwatched.take() {
                openings = Openings::of(credential);
            }
        }
    }

    fn is_over(end: &OwnedFd, openings: Option<&Openings>, pause: Duration) -> bool {
        let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(end, PollFlags::IN)];
        fds.extend(openings.map(|openings| PollFd::from_borrowed_fd(openings.watch.as_fd(), PollFlags::IN)));
        // A signal interrupts the wait, which only causes one more scan.
        let _ = poll(&mut fds, Some(&timeout));
        fds[0].revents().contains(PollFlags::IN)
    }

    fn what(sighting: Sighting) -> EventKind {
        match sighting {
            Sighting::Seen { pid, started, parent, program } => {
                EventKind::ProcessSeen { process: pid, process_started: started, parent, program }
            }
            Sighting::Gone { pid, started } => EventKind::ProcessEnded { process: pid, process_started: started },
        }
    }

    /// Counts how often the credential file was opened. inotify does not report by which process.
    struct Openings {
        watch: OwnedFd,
        credential: PathBuf,
    }

    impl Openings {
        fn of(credential: PathBuf) -> Option<Openings> {
            let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
            // Watch the directory, because the file in it is replaced by rename.
            inotify::add_watch(&watch, credential.parent()?, inotify::WatchFlags::OPEN).ok()?;
            Some(Openings { watch, credential })
        }

        fn count(&self) -> u64 {
            let name = self.credential.file_name().unwrap_or_default().as_encoded_bytes();
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(&self.watch, &mut buffer);
            let mut times = 0;
            while let Ok(event) = events.next() {
                times += u64::from(event.file_name().is_some_and(|file| file.to_bytes() == name));
            }
            times
        }
    }
}

/// Not tested: on other systems only the command itself is known.
#[cfg(not(target_os = "linux"))]
mod platform {
    use std::path::PathBuf;

    use super::EventWriter;

    pub(super) struct FileAccess;
    pub(super) struct Watching;

    impl FileAccess {
        pub(super) fn at(_credential: Option<PathBuf>) -> FileAccess {
            FileAccess
        }

        pub(super) fn begin(&mut self, _process: u32, _journal: EventWriter) -> Option<Watching> {
            None
        }

        pub(super) fn end(&mut self, _watching: Watching) {}
    }
}
