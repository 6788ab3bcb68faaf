//! Who works under a run, as far as it can be seen from outside: a thread that looks at the command's descendants now
//! and then, and at once when one of them opens the credential.
//!
//! It misses what begins and ends between two looks without opening the credential, what opens it in the first moment of
//! the command, and what outlives its parent before it was seen. The gateway knows better, for its clients ask it.

use std::path::Path;

use wifshare::Environment;

use crate::journal::Journal;

/// A look-out over one command, until it is dropped.
pub(crate) struct Witness {
    // It ends with the guard.
    _platform: Option<platform::Watching>,
}

impl Witness {
    /// Begins to look at what this process starts. Without a journal there is nothing to look for. Of several commands, one
    /// after another, all but the last leave their watch on the credential to the next.
    pub(crate) fn of(process: u32, is_last: bool, environment: &Environment, journal: Option<&Journal>) -> Witness {
        let watching = journal.and_then(|journal| {
            let profile = environment.os("ANTHROPIC_CONFIG_DIR").map(Path::new);
            // Under `federation` the run itself reads the file, to see whether a child has replaced it.
            let credential = profile.map(|profile| profile.join("credentials/wifshare.json"));
            platform::watch(process, is_last, credential.filter(|path| path.exists()), journal.clone())
        });
        Witness { _platform: watching }
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::PathBuf;
    use std::sync::{Mutex, PoisonError, mpsc};
    use std::time::Duration;

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
    use rustix::fs::inotify;
    use wifshare::{Descendants, Sighting, What};

    use super::Journal;

    pub(super) struct Watching {
        end: OwnedFd,
        /// Hears that the last look is done. To close a watch takes the system some milliseconds; nobody waits for that.
        done: mpsc::Receiver<()>,
    }

    impl Drop for Watching {
        fn drop(&mut self) {
            let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
            let _ = self.done.recv();
        }
    }

    /// The watch that a command leaves to the next: one that is still being closed would be closed once more by the
    /// child, before it runs.
    static LEFT: Mutex<Option<Openings>> = Mutex::new(None);

    pub(super) fn watch(
        process: u32,
        is_last: bool,
        credential: Option<PathBuf>,
        journal: Journal,
    ) -> Option<Watching> {
        let end = eventfd(0, EventfdFlags::CLOEXEC).ok()?;
        let heard = end.try_clone().ok()?;
        let (tell, done) = mpsc::channel();
        std::thread::spawn(move || {
            let openings = look_out(process, &heard, credential, &journal);
            if !is_last {
                *LEFT.lock().unwrap_or_else(PoisonError::into_inner) = openings;
                return;
            }
            drop(tell);
            drop(openings);
        });
        Some(Watching { end, done })
    }

    /// Often while something happens, once a second where nothing does.
    fn look_out(process: u32, end: &OwnedFd, mut credential: Option<PathBuf>, journal: &Journal) -> Option<Openings> {
        const SHORTEST: Duration = Duration::from_millis(20);
        const LONGEST: Duration = Duration::from_secs(1);
        let mut descendants = Descendants::of(process);
        let left = LEFT.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut openings = left.filter(|left| Some(&left.credential) == credential.as_ref());
        if openings.is_some() {
            credential = None;
        }
        let mut pause = SHORTEST;
        loop {
            let sightings = descendants.look();
            let seen = !sightings.is_empty();
            sightings.into_iter().for_each(|sighting| journal.note(what(sighting)));
            let times = openings.as_ref().map_or(0, Openings::count);
            if times > 0 {
                journal.note(What::CredentialOpened { times });
            }
            if is_over(end, openings.as_ref(), pause) {
                descendants.look().into_iter().for_each(|sighting| journal.note(what(sighting)));
                return openings;
            }
            pause = if seen || times > 0 { SHORTEST } else { (pause * 2).min(LONGEST) };
            // A command that is over by then shall not wait for a watch to be taken down.
            if let Some(credential) = credential.take() {
                openings = Openings::of(credential);
            }
        }
    }

    fn is_over(end: &OwnedFd, openings: Option<&Openings>, pause: Duration) -> bool {
        let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(end, PollFlags::IN)];
        fds.extend(openings.map(|openings| PollFd::from_borrowed_fd(openings.watch.as_fd(), PollFlags::IN)));
        // A signal cuts it short, and then we look once more than needed.
        let _ = poll(&mut fds, Some(&timeout));
        fds[0].revents().contains(PollFlags::IN)
    }

    fn what(sighting: Sighting) -> What {
        match sighting {
            Sighting::Seen { pid, started, parent, program } => {
                What::ProcessSeen { process: pid, process_started: started, parent, program }
            }
            Sighting::Gone { pid, started } => What::ProcessEnded { process: pid, process_started: started },
        }
    }

    /// How often the credential's file was opened; nobody knows by whom.
    struct Openings {
        watch: OwnedFd,
        credential: PathBuf,
    }

    impl Openings {
        fn of(credential: PathBuf) -> Option<Openings> {
            let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
            // The directory, because the file in it is replaced by rename.
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

/// Not run by us: elsewhere only the command itself is told.
#[cfg(not(target_os = "linux"))]
mod platform {
    use std::path::PathBuf;

    use super::Journal;

    pub(super) struct Watching;

    pub(super) fn watch(
        _process: u32,
        _is_last: bool,
        _credential: Option<PathBuf>,
        _journal: Journal,
    ) -> Option<Watching> {
        None
    }
}
