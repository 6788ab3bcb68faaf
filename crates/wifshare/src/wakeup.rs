//! A wait that ends at a deadline, on a notification, or when a directory changes. No periodic wakeups in between.

use std::path::Path;
use std::time::{Duration, SystemTime};

/// An additional file descriptor that ends a wait when it becomes readable. Its owner drains it.
#[cfg(unix)]
pub type ExtraFd<'a> = std::os::fd::BorrowedFd<'a>;
#[cfg(not(unix))]
pub type ExtraFd<'a> = std::marker::PhantomData<&'a ()>;

/// A change in a directory that ends a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirEvent {
    /// A file was put in place or rewritten.
    Arrival,
    /// A file, or the directory itself, was removed or moved away.
    Removal,
}

/// Why changes in a directory cannot be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwatched {
    /// A system limit is reached. The text says which one and how to raise it.
    Limit(&'static str),
    /// The directory does not exist, or the system cannot watch directories.
    Otherwise,
}

/// Lets one thread wait for several events at once.
#[derive(Debug)]
pub struct Wakeup(platform::Wakeup);

impl Wakeup {
    /// Creates an alarm that watches nothing yet.
    pub fn new() -> Wakeup {
        Wakeup(platform::Wakeup::new())
    }

    /// Ends the current wait, or the next one if no thread waits.
    pub fn ring(&self) {
        self.0.ring();
    }

    /// Adds a change that ends a wait. Call it once for each kind of change, and again if the directory may have been
    /// replaced.
    ///
    /// # Errors
    /// Fails if the system cannot watch directories, or if the user's inotify instances or watches are used up.
    pub fn watch(&self, directory: &Path, happening: DirEvent) -> Result<(), Unwatched> {
        self.0.watch(directory, happening)
    }

    /// Waits until `moment` by the wall clock, until `longest` has passed by the monotonic clock, or until an event.
    /// The wait may end spuriously.
    pub fn wait(&self, moment: Option<SystemTime>, longest: Duration, eye: Option<ExtraFd<'_>>) {
        self.0.wait(moment, longest, eye);
    }

    /// Returns whether a wall-clock deadline ends a wait by itself, even after the machine slept or the clock was set.
    /// Where it does not, the caller has to check the clock periodically.
    pub fn knows_the_wall_clock(&self) -> bool {
        self.0.knows_the_wall_clock()
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
    use rustix::fs::inotify;
    use rustix::io::Errno;
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

    use super::*;

    /// Each descriptor is optional. Without one, the caller falls back to periodic checks, as on other systems.
    #[derive(Debug)]
    pub(super) struct Wakeup {
        bell: Option<OwnedFd>,
        timer: Option<OwnedFd>,
        watches: Result<OwnedFd, Unwatched>,
    }

    impl Unwatched {
        /// Translates an error of inotify_init1(2) or inotify_add_watch(2).
        pub(crate) fn by(errno: Errno) -> Unwatched {
            // `EMFILE` means either the user's limit of inotify instances or the process's limit of open files.
            let may_open_files = || eventfd(0, EventfdFlags::CLOEXEC).is_ok();
            match errno {
                Errno::MFILE if may_open_files() => Unwatched::Limit(
                    "this user has no inotify instance left; raise the limit with `sysctl fs.inotify.max_user_instances=1024`",
                ),
                Errno::MFILE => {
                    Unwatched::Limit("this process may not open more files; raise the limit with `ulimit -n 1024`")
                }
                Errno::NOSPC => Unwatched::Limit(
                    "this user has no inotify watch left; raise the limit with `sysctl fs.inotify.max_user_watches=524288`",
                ),
                _ => Unwatched::Otherwise,
            }
        }
    }

    impl Wakeup {
        pub(super) fn new() -> Wakeup {
            let quiet = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
            let timer_flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            Wakeup {
                bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok(),
                // A timer that cannot detect clock changes is not used; the caller then checks the clock periodically.
                timer: timerfd_create(TimerfdClockId::Realtime, timer_flags)
                    .ok()
                    .filter(|timer| arm(timer, None).is_ok()),
                watches: inotify::init(quiet).map_err(Unwatched::by),
            }
        }

        pub(super) fn ring(&self) {
            if let Some(bell) = &self.bell {
                let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
            }
        }

        pub(super) fn watch(&self, directory: &Path, happening: DirEvent) -> Result<(), Unwatched> {
            use inotify::WatchFlags as On;

            let watches = self.watches.as_ref().map_err(|unwatched| *unwatched)?;
            let on = match happening {
                DirEvent::Arrival => On::MOVED_TO | On::CLOSE_WRITE,
                DirEvent::Removal => On::DELETE | On::MOVED_FROM | On::DELETE_SELF | On::MOVE_SELF,
            };
            inotify::add_watch(watches, directory, on | On::ONLYDIR | On::MASK_ADD).map(drop).map_err(Unwatched::by)
        }

        pub(super) fn knows_the_wall_clock(&self) -> bool {
            self.timer.is_some()
        }

        pub(super) fn wait(&self, moment: Option<SystemTime>, longest: Duration, eye: Option<ExtraFd<'_>>) {
            // Without the eventfd, `ring` cannot end a wait.
            const LOOK_FOR_A_RING: Duration = Duration::from_millis(100);
            let longest = if self.bell.is_some() { longest } else { longest.min(LOOK_FOR_A_RING) };
            if self.arm(moment) == Err(Errno::CANCELED) {
                // The wall clock was set since the last wait.
                return;
            }
            let own = [self.bell.as_ref(), self.timer.as_ref(), self.watches.as_ref().ok()]
                .into_iter()
                .flatten()
                .map(AsFd::as_fd);
            let mut eyes: Vec<_> = own.chain(eye).map(|eye| PollFd::from_borrowed_fd(eye, PollFlags::IN)).collect();
            // `EINTR` ends the wait too. Callers check their condition after every wait.
            let _ = poll(&mut eyes, timespec(longest).as_ref());
            self.read_empty();
        }

        /// Arms the timer for this moment. Without one, it fires only when the wall clock is set.
        fn arm(&self, moment: Option<SystemTime>) -> Result<(), Errno> {
            let since_epoch = moment.and_then(|moment| moment.duration_since(SystemTime::UNIX_EPOCH).ok());
            self.timer.as_ref().map_or(Ok(()), |timer| arm(timer, since_epoch.and_then(timespec)))
        }

        fn read_empty(&self) {
            if let Some(bell) = &self.bell {
                let _ = rustix::io::read(bell, &mut [0u8; 8]);
            }
            let Ok(watches) = &self.watches else { return };
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(watches, &mut buffer);
            while events.next().is_ok() {}
        }
    }

    /// Arms a timer that fires at this moment since the epoch, and when the wall clock is set. Returns `ECANCELED` if
    /// the clock was set since the last call (timerfd_create(2)). A disarmed timer does not report that.
    fn arm(timer: &OwnedFd, since_epoch: Option<Timespec>) -> Result<(), Errno> {
        const NEVER: Timespec = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
        let at = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: since_epoch.unwrap_or(NEVER) };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(timer, flags, &at).map(drop)
    }

    /// Returns `None`, which means no timeout, for a time that is longer than any process lives.
    fn timespec(time: Duration) -> Option<Timespec> {
        const FOR_EVER: u64 = 1 << 40;
        let seconds = i64::try_from(time.as_secs()).ok().filter(|_| time.as_secs() < FOR_EVER)?;
        Some(Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() })
    }
}

/// Not tested by us: nothing is watched here, and callers check periodically.
#[cfg(not(target_os = "linux"))]
mod platform {
    use std::sync::{Condvar, Mutex, PoisonError};

    use super::*;

    #[derive(Debug, Default)]
    pub(super) struct Wakeup {
        rung: Mutex<bool>,
        bell: Condvar,
    }

    impl Wakeup {
        pub(super) fn new() -> Wakeup {
            Wakeup::default()
        }

        pub(super) fn ring(&self) {
            *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.bell.notify_all();
        }

        pub(super) fn watch(&self, _directory: &Path, _happening: DirEvent) -> Result<(), Unwatched> {
            Err(Unwatched::Otherwise)
        }

        pub(super) fn knows_the_wall_clock(&self) -> bool {
            false
        }

        pub(super) fn wait(&self, _moment: Option<SystemTime>, longest: Duration, _eye: Option<ExtraFd<'_>>) {
            let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self.bell.wait_timeout_while(rung, longest, |rung| !*rung);
            let (mut rung, _) = waited.unwrap_or_else(PoisonError::into_inner);
            *rung = false;
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const LONG: Duration = Duration::from_secs(60);

    /// Returns the duration of a wait.
    fn taken(wait: impl FnOnce()) -> Duration {
        let clock = Clock::system();
        let begun = (clock.monotonic)();
        wait();
        (clock.monotonic)() - begun
    }

    #[test]
    fn ring_ends_only_the_next_wait() {
        let wakeup = Wakeup::new();
        wakeup.ring();
        assert!(taken(|| wakeup.wait(None, LONG, None)) < LONG / 2);
        let moment = Duration::from_millis(50);
        assert!(taken(|| wakeup.wait(None, moment, None)) >= moment);
    }

    #[test]
    fn wall_clock_deadline_ends_the_wait() {
        let (wakeup, clock) = (Wakeup::new(), Clock::system());
        assert!(wakeup.knows_the_wall_clock());
        let moment = clock.now() + Duration::from_millis(50);
        assert!(taken(|| wakeup.wait(Some(moment), LONG, None)) < LONG / 2);
        assert!(clock.now() >= moment);
    }

    #[test]
    fn directory_event_ends_the_wait_once() {
        let holder = tempfile::tempdir().expect("a directory");
        let (arrivals, removals) = (holder.path().join("a"), holder.path().join("r"));
        for directory in [&arrivals, &removals] {
            std::fs::create_dir(directory).expect("created");
        }
        let file = std::fs::File::create(removals.join("old")).expect("created");
        let wakeup = Wakeup::new();
        assert_eq!(wakeup.watch(&arrivals, DirEvent::Arrival), Ok(()));
        assert_eq!(wakeup.watch(&removals, DirEvent::Removal), Ok(()));
        std::fs::File::create(removals.join("new")).expect("created");
        drop(file);
        let moment = Duration::from_millis(50);
        assert!(taken(|| wakeup.wait(None, moment, None)) >= moment);
        std::fs::rename(removals.join("old"), arrivals.join("new")).expect("renamed");
        assert!(taken(|| wakeup.wait(None, LONG, None)) < LONG / 2);
        assert!(taken(|| wakeup.wait(None, moment, None)) >= moment, "told once");
        std::fs::remove_dir_all(&removals).expect("removed");
        assert!(taken(|| wakeup.wait(None, LONG, None)) < LONG / 2);
        assert_eq!(wakeup.watch(&removals, DirEvent::Removal), Err(Unwatched::Otherwise));
    }

    #[test]
    fn each_kind_of_arrival_and_removal_ends_the_wait() {
        let holder = tempfile::tempdir().expect("a directory");
        let inside = |name: &str| holder.path().join(name);
        let create = |name: &str| drop(std::fs::File::create(inside(name)).expect("created"));
        for directory in ["arrivals", "removals", "moved"] {
            std::fs::create_dir(inside(directory)).expect("created");
        }
        for file in ["one", "removals/two", "removals/three"] {
            create(file);
        }
        let watching = |directory: &str, happening| {
            let wakeup = Wakeup::new();
            assert_eq!(wakeup.watch(&inside(directory), happening), Ok(()));
            wakeup
        };
        let ends = |wakeup: &Wakeup, what: &str| {
            assert!(taken(|| wakeup.wait(None, LONG, None)) < LONG / 2, "{what}");
        };
        let rename = |from: &str, to: &str| std::fs::rename(inside(from), inside(to)).expect("renamed");

        let wakeup = watching("arrivals", DirEvent::Arrival);
        rename("one", "arrivals/one");
        ends(&wakeup, "a file that is moved there");
        create("arrivals/four");
        ends(&wakeup, "a file that is written there");

        let wakeup = watching("removals", DirEvent::Removal);
        std::fs::remove_file(inside("removals/two")).expect("removed");
        ends(&wakeup, "a file that is removed");
        rename("removals/three", "three");
        ends(&wakeup, "a file that is moved away");
        std::fs::remove_dir(inside("removals")).expect("removed");
        ends(&wakeup, "the directory's own end");

        let wakeup = watching("moved", DirEvent::Removal);
        rename("moved", "elsewhere");
        ends(&wakeup, "a directory that has another name");
    }
}
