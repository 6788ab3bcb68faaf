//! Signals: forwarded to the child while it runs; before and after that, they ask this process to end.
//!
//! A terminal sends its signals to the whole foreground process group, so a child in the same group gets them already.
//! Forwarding them would look like a second Ctrl-C, which many programs treat differently. The kernel reports the
//! origin of a signal, and only signals that another process sent to this one are forwarded.

use std::io::{PipeReader, PipeWriter};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use wifshare::{Child, Interrupted};

use crate::background::no_thread;
use crate::catalogue::code;
use crate::failure::Failure;

/// The signal that asked this process to end, or 0.
static ASKED: AtomicI32 = AtomicI32::new(0);
/// Number of signals that asked this process to end.
static TIMES_ASKED: AtomicU32 = AtomicU32::new(0);
static LISTENING: OnceLock<std::io::Result<()>> = OnceLock::new();
static IS_KEEPER: AtomicBool = AtomicBool::new(false);
/// Whether the next signal ends this process at once.
static ENDS_AT_THE_NEXT: AtomicBool = AtomicBool::new(false);
/// Seconds after a signal until this process ends in any case, or 0 for no limit.
static GRACE: AtomicU64 = AtomicU64::new(0);
/// Closed when a keeper is asked to end.
static EAR: Mutex<Option<PipeWriter>> = Mutex::new(None);
static BELL: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());

#[cfg(unix)]
static CHILD: Mutex<Option<wifshare::Signaller>> = Mutex::new(None);

/// Waits for this time, or until a signal asks this process to end.
///
/// # Errors
/// Returns [`Interrupted`] if a signal has asked this process to end.
pub(crate) fn pause(time: Duration) -> Result<(), Interrupted> {
    if ASKED.load(Ordering::SeqCst) != 0 {
        return Err(Interrupted);
    }
    let ear = BELL.0.lock().unwrap_or_else(PoisonError::into_inner);
    drop(BELL.1.wait_timeout_while(ear, time, |()| ASKED.load(Ordering::SeqCst) == 0));
    if ASKED.load(Ordering::SeqCst) != 0 { Err(Interrupted) } else { Ok(()) }
}

/// Returns 128 + n if signal n asked this process to end.
pub(crate) fn code_of_interruption() -> Option<u8> {
    match ASKED.load(Ordering::SeqCst) {
        0 => None,
        signal => u8::try_from(128 + signal).ok(),
    }
}

/// Number of signals that asked this process to end.
pub(crate) fn times_asked() -> u32 {
    TIMES_ASKED.load(Ordering::SeqCst)
}

/// Like [`listen`], for a keeper: SIGHUP, which a closing terminal sends, SIGUSR1 and SIGUSR2 are ignored. The returned
/// pipe ends when a signal asks this process to end.
///
/// # Errors
/// Returns an error if no pipe or thread can be created.
pub(crate) fn listen_as_keeper() -> Result<PipeReader, Failure> {
    let (ear, mouth) = std::io::pipe().map_err(|error| {
        Failure::new(code!("keeper"), format!("the keeper could not listen for signals: {error}"), None)
    })?;
    *EAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(mouth);
    IS_KEEPER.store(true, Ordering::SeqCst);
    listen()?;
    Ok(ear)
}

/// Like [`listen`], but a signal ends this process after that time, whatever it waits for.
///
/// # Errors
/// Returns an error if no thread can be started.
pub(crate) fn listen_and_end_within(grace: Duration) -> Result<(), Failure> {
    GRACE.store(grace.as_secs(), Ordering::SeqCst);
    listen()
}

/// Sets whether the next signal ends this process at once, whatever it waits for.
pub(crate) fn end_at_the_next(it_does: bool) {
    ENDS_AT_THE_NEXT.store(it_does, Ordering::SeqCst);
}

/// Asks this process to end, as a signal does.
pub(crate) fn ask_to_end() {
    platform::ask_to_end();
}

/// Catches signals from now on, so that they do not end this process at once. It costs a thread, so call it when
/// needed.
///
/// # Errors
/// Returns an error if no thread can be started.
pub(crate) fn listen() -> Result<(), Failure> {
    LISTENING.get_or_init(platform::listen).as_ref().map_err(no_thread).copied()
}

/// Makes a write beyond the file size limit (`ulimit -f`) fail with an error instead of ending this process. Programs
/// that this process starts get the default action of the signal.
pub(crate) fn survive_file_size_limit() {
    platform::survive_file_size_limit();
}

/// Forwards signals to this child while the returned guard is alive.
pub(crate) fn pass_on_to(child: &Child) -> PassingOn {
    platform::pass_on_to(child);
    PassingOn
}

/// Guard of the forwarding of signals to a child.
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
        // Start the thread first: without it, no signal may be caught.
        let thread = Thread::prepare("signals")?;
        let ignored = ignored_signals();
        let wanted = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
        // A child also ignores the signals that the caller had this process ignore, as nohup does. A keeper catches
        // them, because `wifshare stop` must be able to end it.
        let is_keeper = IS_KEEPER.load(Ordering::SeqCst);
        let ours = wanted.into_iter().filter(|signal| is_keeper || ignored & (1 << (signal - 1)) == 0);
        if is_keeper {
            unblock_all();
        }
        if ignored & (1 << (SIGCHLD - 1)) != 0 {
            // If SIGCHLD is ignored, the exit status of a child is lost. Installing a handler undoes that.
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

    /// Signals may be blocked by the caller, and a program inherits the mask.
    fn unblock_all() {
        let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
    }

    /// Ends this process with this signal after that time, even if it waits for something.
    fn end_after(grace: Duration, signal: i32) {
        let end = move || {
            let _ = (wifshare::Clock::system().pause)(grace);
            let _ = emulate_default_handler(signal);
        };
        // Without a thread to wait, end now.
        if std::thread::Builder::new().spawn(end).is_err() {
            let _ = emulate_default_handler(signal);
        }
    }

    pub(super) fn survive_file_size_limit() {
        /// The same number on Linux and macOS.
        const SIGXFSZ: i32 = 25;
        // `exec` resets a handler, but would keep an ignored signal ignored.
        let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    }

    pub(super) fn pass_on_to(child: &Child) {
        let mut place = lock();
        let child = child.signaller();
        // A signal since the last check was meant for the child. Sending it twice is better than losing it.
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
            // Other systems do not report the origin. There, these two usually come from the terminal.
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
        // A user who presses Ctrl-C again wants to end at once. A CI that sends INT and then TERM only repeats itself,
        // and finishing an exchange or a clean-up is worth a moment.
        if (before, origin.signal) == (SIGINT, SIGINT) || ENDS_AT_THE_NEXT.load(Ordering::SeqCst) {
            let _ = emulate_default_handler(origin.signal);
        }
        tell_those_who_wait();
    }

    fn lock() -> std::sync::MutexGuard<'static, Option<wifshare::Signaller>> {
        CHILD.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the ignored signals from `/proc/self/status`. Without it, no signal counts as ignored.
    fn ignored_signals() -> u64 {
        // Larger than the file, so that one read is enough.
        let mut status = String::with_capacity(4096);
        let file = std::fs::File::open("/proc/self/status");
        if file.and_then(|file| file.take(16 * 1024).read_to_string(&mut status)).is_err() {
            return 0;
        }
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    }
}

/// Not tested: a console event reaches the whole process group by itself.
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
