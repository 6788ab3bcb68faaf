//! Signals: passed on to the child while there is one, and a polite end before and after.
//!
//! A terminal sends its signals to the whole foreground group, so a child in our group has them already; sending them
//! once more would be a second Ctrl-C, which means something else to many programs. The kernel tells where a signal
//! came from, and only what another process sent to us is passed on.

use std::io::{PipeReader, PipeWriter};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use wifshare::{Child, Interrupted};

use crate::background::no_thread;
use crate::catalogue::code;
use crate::failure::Failure;

/// The signal that asked us to end; 0 while none has.
static ASKED: AtomicI32 = AtomicI32::new(0);
/// How many signals have asked us to end.
static TIMES_ASKED: AtomicU32 = AtomicU32::new(0);
static LISTENING: OnceLock<std::io::Result<()>> = OnceLock::new();
static IS_KEEPER: AtomicBool = AtomicBool::new(false);
/// Whether the next signal ends this process at once, as it was told.
static ENDS_AT_THE_NEXT: AtomicBool = AtomicBool::new(false);
/// How many seconds after a signal this process ends in any case; 0 for as long as it takes.
static GRACE: AtomicU64 = AtomicU64::new(0);
/// Dropped when a keeper is asked to end.
static EAR: Mutex<Option<PipeWriter>> = Mutex::new(None);
static BELL: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());

#[cfg(unix)]
static CHILD: Mutex<Option<wifshare::Signaller>> = Mutex::new(None);

/// Waits that long, or until a signal asks us to end.
pub(crate) fn pause(time: Duration) -> Result<(), Interrupted> {
    if ASKED.load(Ordering::SeqCst) != 0 {
        return Err(Interrupted);
    }
    let ear = BELL.0.lock().unwrap_or_else(PoisonError::into_inner);
    drop(BELL.1.wait_timeout_while(ear, time, |()| ASKED.load(Ordering::SeqCst) == 0));
    if ASKED.load(Ordering::SeqCst) != 0 { Err(Interrupted) } else { Ok(()) }
}

/// 128 + n, where signal n asked us to end.
pub(crate) fn code_of_interruption() -> Option<u8> {
    match ASKED.load(Ordering::SeqCst) {
        0 => None,
        signal => u8::try_from(128 + signal).ok(),
    }
}

/// How many signals have asked us to end.
pub(crate) fn times_asked() -> u32 {
    TIMES_ASKED.load(Ordering::SeqCst)
}

/// For a keeper: the same, but what a closing terminal sends, and what means nothing to us, ends nothing. The returned
/// pipe ends when a signal has asked us to end.
pub(crate) fn listen_as_keeper() -> Result<PipeReader, Failure> {
    let (ear, mouth) = std::io::pipe().map_err(|error| {
        Failure::new(code!("keeper"), format!("the keeper could not listen for signals: {error}"), None)
    })?;
    *EAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(mouth);
    IS_KEEPER.store(true, Ordering::SeqCst);
    listen()?;
    Ok(ear)
}

/// As [`listen`], and a signal ends this process after that time, whatever it waits for.
pub(crate) fn listen_and_end_within(grace: Duration) -> Result<(), Failure> {
    GRACE.store(grace.as_secs(), Ordering::SeqCst);
    listen()
}

/// Whether from now on the next signal ends this process, whatever it waits for.
pub(crate) fn end_at_the_next(it_does: bool) {
    ENDS_AT_THE_NEXT.store(it_does, Ordering::SeqCst);
}

/// Asks this process to end, as a signal does.
pub(crate) fn ask_to_end() {
    platform::ask_to_end();
}

/// From now on signals do not end this process at once. It costs a thread, so it is done when it is needed.
pub(crate) fn listen() -> Result<(), Failure> {
    LISTENING.get_or_init(platform::listen).as_ref().map_err(no_thread).copied()
}

/// Has a write beyond the largest size of a file (`ulimit -f`) fail with an error instead of ending this process. A program
/// that we start has the signal as it would have it without us.
pub(crate) fn survive_file_size_limit() {
    platform::survive_file_size_limit();
}

/// Passes signals on to this child for as long as the returned guard lives.
pub(crate) fn pass_on_to(child: &Child) -> PassingOn {
    platform::pass_on_to(child);
    PassingOn
}

/// While it lives, the child has the signals.
pub(crate) struct PassingOn;

impl Drop for PassingOn {
    fn drop(&mut self) {
        platform::keep();
    }
}

#[cfg(unix)]
mod platform {
    use std::io::Read;
    use std::sync::Arc;

    use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    use signal_hook::iterator::SignalsInfo;
    use signal_hook::iterator::exfiltrator::origin::{Origin, WithOrigin};
    use signal_hook::low_level::emulate_default_handler;
    use signal_hook::low_level::siginfo::Cause;

    use super::*;
    use crate::background::Thread;

    pub(super) fn listen() -> std::io::Result<()> {
        // Before anything is caught: what nobody hears must not be caught either.
        let thread = Thread::prepare("signals")?;
        let ignored = ignored_signals();
        let wanted = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
        // What whoever started us had us ignore (nohup does), our child shall ignore as well.
        // A keeper is nobody's child for long: whoever stops it must be heard.
        let is_keeper = IS_KEEPER.load(Ordering::SeqCst);
        let ours = wanted.into_iter().filter(|signal| is_keeper || ignored & (1 << (signal - 1)) == 0);
        if is_keeper {
            unblock_all();
        }
        if ignored & (1 << (SIGCHLD - 1)) != 0 {
            // Where the end of a child is ignored nobody can tell how it ended; a handler of ours undoes that.
            let _ = signal_hook::flag::register(SIGCHLD, Arc::default());
        }
        let Ok(mut signals) = SignalsInfo::<WithOrigin>::new(ours) else { return Ok(()) };
        thread.begin(move || signals.forever().for_each(|origin| heard(&origin)));
        Ok(())
    }

    pub(super) fn ask_to_end() {
        let is_asked = ASKED.compare_exchange(0, SIGTERM, Ordering::SeqCst, Ordering::SeqCst).is_err();
        if is_asked && ENDS_AT_THE_NEXT.load(Ordering::SeqCst) {
            let _ = emulate_default_handler(SIGTERM);
        }
        tell_those_who_wait();
    }

    fn tell_those_who_wait() {
        EAR.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(BELL.0.lock().unwrap_or_else(PoisonError::into_inner));
        BELL.1.notify_all();
    }

    /// Whoever started us may have blocked signals, and a program inherits that.
    fn unblock_all() {
        let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
    }

    /// Ends this process by this signal after that time. Whoever waits for what does not come is not asked.
    fn end_after(grace: Duration, signal: i32) {
        let end = move || {
            let _ = (wifshare::Clock::system().pause)(grace);
            let _ = emulate_default_handler(signal);
        };
        // Where there is no thread to wait, it does not wait.
        if std::thread::Builder::new().spawn(end).is_err() {
            let _ = emulate_default_handler(signal);
        }
    }

    pub(super) fn survive_file_size_limit() {
        /// The same number on Linux and macOS.
        const SIGXFSZ: i32 = 25;
        // A handler is gone after an exec, where an ignored signal would stay ignored.
        let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    }

    pub(super) fn pass_on_to(child: &Child) {
        let mut place = lock();
        let child = child.signaller();
        // What came between the last look and now was meant for the child; once too often is better than never.
        match ASKED.swap(0, Ordering::SeqCst) {
            0 => {}
            signal => child.send(signal),
        }
        *place = Some(child);
    }

    pub(super) fn keep() {
        *lock() = None;
    }

    fn heard(origin: &Origin) {
        let place = lock();
        if let Some(child) = &*place {
            // Elsewhere the kernel does not tell; there these two come from the terminal as a rule.
            let from_the_terminal = match cfg!(target_os = "linux") {
                true => matches!(origin.cause, Cause::Kernel),
                false => matches!(origin.signal, SIGINT | SIGQUIT),
            };
            if !(from_the_terminal && child.shares_our_process_group()) {
                child.send(origin.signal);
            }
            return;
        }
        if IS_KEEPER.load(Ordering::SeqCst) && matches!(origin.signal, SIGHUP | SIGUSR1 | SIGUSR2) {
            return;
        }
        let before = ASKED.swap(origin.signal, Ordering::SeqCst);
        TIMES_ASKED.fetch_add(1, Ordering::SeqCst);
        drop(place);
        match GRACE.load(Ordering::SeqCst) {
            seconds if seconds > 0 && before == 0 => end_after(Duration::from_secs(seconds), origin.signal),
            _ => {}
        }
        EAR.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A person who presses Ctrl-C again means it. A CI that sends INT and then TERM only repeats itself, and a
        // purchase or a clean-up under way is worth the moment.
        if (before, origin.signal) == (SIGINT, SIGINT) || ENDS_AT_THE_NEXT.load(Ordering::SeqCst) {
            let _ = emulate_default_handler(origin.signal);
        }
        tell_those_who_wait();
    }

    fn lock() -> std::sync::MutexGuard<'static, Option<wifshare::Signaller>> {
        CHILD.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From `/proc/self/status`; where there is none, no signal counts as ignored.
    fn ignored_signals() -> u64 {
        // Longer than the file, which is then read at once.
        let mut status = String::with_capacity(4096);
        let file = std::fs::File::open("/proc/self/status");
        if file.and_then(|file| file.take(16 * 1024).read_to_string(&mut status)).is_err() {
            return 0;
        }
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    }
}

/// Not run by us: there a console event reaches the whole group by itself.
#[cfg(not(unix))]
mod platform {
    use super::*;

    pub(super) fn survive_file_size_limit() {}
    pub(super) fn listen() -> std::io::Result<()> {
        Ok(())
    }
    pub(super) fn ask_to_end() {}
    pub(super) fn pass_on_to(_child: &Child) {}
    pub(super) fn keep() {}
}
