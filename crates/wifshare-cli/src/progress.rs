//! Progress of long operations: one line on a terminal, which is overwritten; elsewhere a line from time to time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::console::{Console, whole};
use crate::terminal::cut;

/// How long before the first message on a terminal.
const FIRST: Duration = Duration::from_secs(1);
/// How long before the first message in a log, which is read later and needs less.
const FIRST_IN_A_LOG: Duration = Duration::from_secs(10);
/// Interval between two lines in a log about the same wait.
const PACE_IN_A_LOG: Duration = Duration::from_secs(5);

static STATE: Mutex<State> =
    Mutex::new(State { has_line: false, is_aside: false, waits_told: None, work: None, has_thread: false });
static BELL: Condvar = Condvar::new();

struct State {
    /// Whether the terminal shows an unfinished line.
    has_line: bool,
    /// Whether a command of the user uses the terminal, so that no line may be overwritten.
    is_aside: bool,
    /// Length of the current wait when it was last logged.
    waits_told: Option<Duration>,
    /// The current operation of this process, with its start time.
    work: Option<Work>,
    has_thread: bool,
}

#[derive(Clone, Copy)]
struct Work {
    doing: &'static str,
    since: Duration,
    told: Option<Duration>,
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the escape sequence that clears the unfinished line, to write before any other message.
pub(crate) fn make_way() -> &'static str {
    if std::mem::take(&mut state().has_line) { "\r\x1b[K" } else { "" }
}

/// Sets whether a command of the user uses the terminal.
pub(crate) fn stand_aside(is_aside: bool) {
    state().is_aside = is_aside;
}

/// Reports that this process has waited for another one for this long.
pub(crate) fn waiting(console: Console, holder: &str, since: Duration) {
    let mut state = state();
    let text = format!("waiting since {} for {holder}", whole(since));
    if console.terminal().is_live && !state.is_aside {
        state.has_line = true;
        drop(state);
        console.line_in_place(&cut(&format!("wifshare: {text}"), console.terminal().width - 1));
        return;
    }
    let is_due = state.waits_told.is_none_or(|told| since < told || since >= told + PACE_IN_A_LOG);
    if is_due {
        state.waits_told = Some(since);
        drop(state);
        console.progress(&text);
    }
}

/// Starts an operation that may take long. If it does, a thread reports it.
pub(crate) fn begin(console: Console, doing: &'static str) {
    let clock = crate::clock::clock();
    let mut state = state();
    state.work = Some(Work { doing, since: (clock.monotonic)(), told: None });
    if !std::mem::replace(&mut state.has_thread, true) {
        // Without a thread there is no progress output.
        state.has_thread = std::thread::Builder::new().spawn(move || tell(console)).is_ok();
    }
}

/// The operation is done, or the wait is over.
pub(crate) fn end(console: Console) {
    let mut state = state();
    state.waits_told = None;
    let worked = state.work.take().is_some();
    let has_line = std::mem::take(&mut state.has_line);
    drop(state);
    if worked {
        BELL.notify_all();
    }
    if has_line {
        console.line_in_place("");
    }
}

/// Reports the current operation, and ends with it.
fn tell(console: Console) {
    let clock = crate::clock::clock();
    let mut state = state();
    loop {
        let Some(work) = state.work else {
            state.has_thread = false;
            return;
        };
        let now = (clock.monotonic)().saturating_sub(work.since);
        let is_live = console.terminal().is_live && !state.is_aside;
        let first = if is_live { FIRST } else { FIRST_IN_A_LOG };
        let pace = if is_live { FIRST } else { FIRST_IN_A_LOG };
        let due = work.told.map_or(first, |told| told + pace);
        if now >= due {
            state.work = Some(Work { told: Some(now), ..work });
            state.has_line = is_live;
            drop(state);
            let text = format!("{}, since {}", work.doing, whole(now));
            if is_live {
                console.line_in_place(&cut(&format!("wifshare: {text}"), console.terminal().width - 1));
            } else {
                console.progress(&text);
            }
            state = self::state();
            continue;
        }
        state = BELL.wait_timeout(state, due - now).map_or_else(|poison| poison.into_inner().0, |(state, _)| state);
    }
}
