//! What takes its time, told while it does: on a terminal as one line that is written anew, elsewhere as a line now and
//! then.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::talk::{Talk, whole};
use crate::terminal::cut;

/// A person begins to wonder.
const FIRST: Duration = Duration::from_secs(1);
/// A log is read afterwards, and wants less.
const FIRST_IN_A_LOG: Duration = Duration::from_secs(10);
/// Between two lines of a log about the same wait.
const PACE_IN_A_LOG: Duration = Duration::from_secs(5);

static STATE: Mutex<State> =
    Mutex::new(State { has_line: false, is_aside: false, waits_told: None, work: None, has_thread: false });
static BELL: Condvar = Condvar::new();

struct State {
    /// Whether an unfinished line stands on the terminal.
    has_line: bool,
    /// Whether a command of the user has the terminal, so that no line may be written anew there.
    is_aside: bool,
    /// How long the present wait was when a log was told of it.
    waits_told: Option<Duration>,
    /// What we do ourselves, and since when.
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

/// Before anything else is said, the unfinished line goes.
pub(crate) fn make_way() -> &'static str {
    if std::mem::take(&mut state().has_line) { "\r\x1b[K" } else { "" }
}

/// From now on, or no longer, a command of the user has the terminal.
pub(crate) fn stand_aside(is_aside: bool) {
    state().is_aside = is_aside;
}

/// We wait for somebody else, since so long.
pub(crate) fn waiting(talk: Talk, holder: &str, since: Duration) {
    let mut state = state();
    let text = format!("waiting since {} for {holder}", whole(since));
    if talk.terminal().is_live && !state.is_aside {
        state.has_line = true;
        drop(state);
        talk.line_in_place(&cut(&format!("wifshare: {text}"), talk.terminal().width - 1));
        return;
    }
    let is_due = state.waits_told.is_none_or(|told| since < told || since >= told + PACE_IN_A_LOG);
    if is_due {
        state.waits_told = Some(since);
        drop(state);
        talk.progress(&text);
    }
}

/// We do something that may take long: a thread tells of it when it does.
pub(crate) fn begin(talk: Talk, doing: &'static str) {
    let clock = crate::clock::clock();
    let mut state = state();
    state.work = Some(Work { doing, since: (clock.monotonic)(), told: None });
    if !std::mem::replace(&mut state.has_thread, true) {
        // Where no thread can be had, nothing is told of what takes its time.
        state.has_thread = std::thread::Builder::new().spawn(move || tell(talk)).is_ok();
    }
}

/// It is done, or we wait no more.
pub(crate) fn end(talk: Talk) {
    let mut state = state();
    state.waits_told = None;
    let worked = state.work.take().is_some();
    let has_line = std::mem::take(&mut state.has_line);
    drop(state);
    if worked {
        BELL.notify_all();
    }
    if has_line {
        talk.line_in_place("");
    }
}

/// Lives for as long as something is being done, and no longer.
fn tell(talk: Talk) {
    let clock = crate::clock::clock();
    let mut state = state();
    loop {
        let Some(work) = state.work else {
            state.has_thread = false;
            return;
        };
        let now = (clock.monotonic)().saturating_sub(work.since);
        let is_live = talk.terminal().is_live && !state.is_aside;
        let first = if is_live { FIRST } else { FIRST_IN_A_LOG };
        let pace = if is_live { FIRST } else { FIRST_IN_A_LOG };
        let due = work.told.map_or(first, |told| told + pace);
        if now >= due {
            state.work = Some(Work { told: Some(now), ..work });
            state.has_line = is_live;
            drop(state);
            let text = format!("{}, since {}", work.doing, whole(now));
            if is_live {
                talk.line_in_place(&cut(&format!("wifshare: {text}"), talk.terminal().width - 1));
            } else {
                talk.progress(&text);
            }
            state = self::state();
            continue;
        }
        state = BELL.wait_timeout(state, due - now).map_or_else(|poison| poison.into_inner().0, |(state, _)| state);
    }
}
