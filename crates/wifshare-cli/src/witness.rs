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
    /// Begins to look at what this process starts. Without a journal there is nothing to look for.
    pub(crate) fn of(process: u32, environment: &Environment, journal: Option<&Journal>) -> Witness {
        let watching = journal.and_then(|journal| {
            let profile = environment.os("ANTHROPIC_CONFIG_DIR").map(Path::new);
            // Under `federation` the run itself reads the file, to see whether a child has replaced it.
            let credential = profile.map(|profile| profile.join("credentials/wifshare.json"));
            platform::watch(process, credential.filter(|path| path.exists()), journal.clone())
        });
        Witness { _platform: watching }
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::{Path, PathBuf};
    use std::sync::mpsc;
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

    pub(super) fn watch(process: u32, credential: Option<PathBuf>, journal: Journal) -> Option<Watching> {
        let end = eventfd(0, EventfdFlags::CLOEXEC).ok()?;
        let heard = end.try_clone().ok()?;
        let (tell, done) = mpsc::channel();
        std::thread::spawn(move || {
            let openings = look_out(process, &heard, credential, &journal);
            drop(tell);
            drop(openings);
        });
        Some(Watching { end, done })
    }

    /// Often while something happens, once a second where nothing does.
    fn look_out(process: u32, end: &OwnedFd, mut credential: Option<PathBuf>, journal: &Journal) -> Openings {
        const SHORTEST: Duration = Duration::from_millis(20);
        const LONGEST: Duration = Duration::from_secs(1);
        let mut descendants = Descendants::of(process);
        let mut openings = Openings::default();
        let mut pause = SHORTEST;
        loop {
            let sightings = descendants.look();
            let seen = !sightings.is_empty();
            sightings.into_iter().for_each(|sighting| journal.note(what(sighting)));
            let times = openings.count();
            if times > 0 {
                journal.note(What::CredentialOpened { times });
            }
            if is_over(end, &openings, pause) {
                descendants.look().into_iter().for_each(|sighting| journal.note(what(sighting)));
                return openings;
            }
            pause = if seen || times > 0 { SHORTEST } else { (pause * 2).min(LONGEST) };
            // A command that is over by then shall not wait for a watch to be taken down.
            if let Some(credential) = credential.take() {
                openings = Openings::of(&credential);
            }
        }
    }

    fn is_over(end: &OwnedFd, openings: &Openings, pause: Duration) -> bool {
        let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(end, PollFlags::IN)];
        fds.extend(openings.watch.as_ref().map(|watch| PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN)));
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
    #[derive(Default)]
    struct Openings {
        watch: Option<OwnedFd>,
        name: Vec<u8>,
    }

    impl Openings {
        fn of(credential: &Path) -> Openings {
            let name = credential.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
            let watch = credential.parent().and_then(|directory| {
                let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
                // The directory, because the file in it is replaced by rename.
                inotify::add_watch(&watch, directory, inotify::WatchFlags::OPEN).ok()?;
                Some(watch)
            });
            Openings { watch, name }
        }

        fn count(&self) -> u64 {
            let Some(watch) = &self.watch else { return 0 };
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(watch, &mut buffer);
            let mut times = 0;
            while let Ok(event) = events.next() {
                times += u64::from(event.file_name().is_some_and(|file| file.to_bytes() == self.name));
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

    pub(super) fn watch(_process: u32, _credential: Option<PathBuf>, _journal: Journal) -> Option<Watching> {
        None
    }
}
