//! The process that `wifshare start` leaves behind: a run in its own session, with no process waiting for it.
//!
//! It reads its orders from an environment variable, which other processes of the user cannot read. It sends its result
//! as one line on standard output, a pipe. Then it closes all standard streams, so that a step that waits for the end
//! of a pipe does not hang. It ends unless the process that started it acknowledges the line on standard input.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use wifshare::{
    Delivery, Environment, GatewayOptions, IdentitySource, ProcessIdentity, Provision, Purpose, Run, resolve_for,
};

use crate::arguments::IdentityArguments;
use crate::background::{Thread, no_thread};
use crate::catalogue::code;
use crate::console::Console;
use crate::event_writer::EventWriter;
use crate::failure::Failure;
use crate::hardening;
use crate::share::{self, SignIn};
use crate::signals;
use crate::terminal::Terminal;

/// Its only argument. It identifies the process in `ps` and to wifshare.
pub(crate) const NAME: &str = "keeper";

/// The variable that contains the orders.
pub(crate) const VARIABLE: &str = "WIFSHARE_KEEPER";

/// The acknowledgement: later steps can find the keeper.
pub(crate) const ACKNOWLEDGED: u8 = b'k';

/// Orders for a keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) identity: IdentityArguments,
    /// The name of a [`Provision`].
    pub(crate) provides: String,
    pub(crate) keep: Vec<String>,
    pub(crate) api_key: bool,
    /// The process whose end ends the keeper.
    pub(crate) watched: Option<ProcessIdentity>,
    pub(crate) longest: Duration,
    pub(crate) verbose: bool,
}

/// Result of a keeper's start, sent once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The credential is in place. Contains the directory of the run.
    Ready(PathBuf),
    /// The keeper failed to start.
    Failed(Failure),
}

pub(crate) fn keeper(hidden: io::Result<()>, environment: &Environment) -> Result<u8, Failure> {
    let orders: Option<Orders> = environment.text(VARIABLE).and_then(|text| serde_json::from_str(text).ok());
    let guarded = match &orders {
        Some(orders) if orders.provides == Delivery::Gateway.to_string() => {
            hardening::guard_memory(hidden, environment, talk_of(orders, environment))
        }
        _ => Ok(()),
    };
    hardening::close_what_was_inherited();
    // Fails for a process group leader, which the keeper is if a person starts it by hand.
    let _ = rustix::process::setsid();
    let Some(orders) = orders else {
        return Err(Failure::usage(
            "`keeper` is what `wifshare start` leaves behind, and nothing to be called".to_owned(),
            "call `wifshare start`",
        ));
    };
    let mut environment = environment.clone();
    environment.remove(VARIABLE);
    let threads = Thread::prepare("renewal").and_then(|freshener| Ok((freshener, Thread::prepare("answer")?)));
    let begun = guarded.and_then(|()| threads.map_err(|error| no_thread(&error))).and_then(|(freshener, reader)| {
        let acknowledged = acknowledgement(reader);
        Ok((begin(&orders, &environment)?, freshener, acknowledged))
    });
    let answer = match &begun {
        Ok(((run, ..), ..)) => Answer::Ready(run.directory().to_owned()),
        Err(failure) => Answer::Failed(failure.clone()),
    };
    let told = tell(&answer);
    let ((run, signalled, events), freshener, acknowledged) = match begun {
        Ok(begun) => begun,
        // The process that started this one reports the failure.
        Err(failure) => return Ok(failure.exit_code()),
    };
    if told.is_ok() && is_acknowledged(&acknowledged) {
        share::guarded(&run, || keep(&run, freshener, &signalled, &orders));
    }
    // A process that later steps left behind may be in the middle of a response.
    run.close_gateway(Duration::from_secs(2));
    if !run.is_in_place() {
        // Another process is removing the directory, and cannot finish while this one locks files in it.
        let _ = signals::pause(Duration::from_millis(500));
    }
    // What cannot be removed now is left to the next start. There is no stream to report it on.
    events.note(share::ended(&run.end()));
    Ok(0)
}

fn talk_of(orders: &Orders, environment: &Environment) -> Console {
    Console::new(u8::from(orders.verbose), None, None, Terminal::of_talk(environment), environment)
}

fn begin(orders: &Orders, environment: &Environment) -> Result<(Arc<Run>, PipeReader, EventWriter), Failure> {
    let console = talk_of(orders, environment);
    let signalled = signals::listen_as_keeper()?;
    let provision: Provision = orders.provides.parse().map_err(|error: wifshare::UnknownDelivery| {
        Failure::new(code!("keeper"), format!("the keeper was told to provide something unknown: {error}"), None)
    })?;
    let purpose = match provision {
        Provision::Credential(_) => Purpose::Exchange,
        Provision::IdentityToken => Purpose::IdentityToken,
    };
    let config = resolve_for(purpose, &orders.identity.inputs(), environment)?;
    // A command may have a relative path. All other sources work from `/`, where the keeper does not block a file
    // system.
    if !matches!(config.source, IdentitySource::Command { .. }) {
        let _ = rustix::process::chdir("/");
    }
    let options = GatewayOptions { api_key: orders.api_key, ..GatewayOptions::default() };
    let (run, events) = share::begin("start", config, provision, options, SignIn::First, environment, console)?;
    let run = Arc::new(run.ending_with_its_directory());
    // Start now, while a limit can still be reported.
    run.watch_files();
    let until = wifshare::extend(run.directory(), crate::clock::clock().now() + orders.longest);
    match until.map_err(Failure::from).and_then(|()| Ok(run.announce(environment, &orders.keep)?)) {
        Ok(()) => Ok((run, signalled, events)),
        Err(error) => {
            events.note(share::ended(&run.end()));
            Err(error)
        }
    }
}

/// Reads the acknowledgement in a thread and closes standard input then. If the starting process has ended without it,
/// no later step can find this keeper, so the keeper asks itself to end.
fn acknowledgement(reader: Thread) -> Receiver<()> {
    let (tell, acknowledged) = channel();
    reader.begin(move || {
        let mut byte = [0];
        let read = io::stdin().lock().read_exact(&mut byte);
        if let Ok(nothing) = File::options().read(true).write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdin(&nothing);
        }
        match read {
            // Fails if `is_acknowledged` has given up; then it does not matter.
            Ok(()) if byte == [ACKNOWLEDGED] => drop(tell.send(())),
            _ => signals::ask_to_end(),
        }
    });
    acknowledged
}

fn is_acknowledged(acknowledged: &Receiver<()>) -> bool {
    // Passing on the variables takes a few lines of output. A slow reader has this long.
    const PATIENCE: Duration = Duration::from_secs(60);
    const LOOK_FOR_SIGNALS: Duration = Duration::from_millis(50);
    let monotonic = crate::clock::clock().monotonic;
    let end = monotonic() + PATIENCE;
    loop {
        match acknowledged.recv_timeout(LOOK_FOR_SIGNALS) {
            Ok(()) => return true,
            Err(RecvTimeoutError::Timeout) if monotonic() < end && signals::code_of_interruption().is_none() => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// Closes standard error, sends the answer and closes standard output, in this order: when the pipe ends, the keeper
/// holds no stream of the process that started it.
///
/// # Errors
/// Returns an error if the answer cannot be written.
fn tell(answer: &Answer) -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    let text = serde_json::to_vec(answer)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    let mut stdout = io::stdout().lock();
    let told = stdout.write_all(&text).and_then(|()| stdout.flush());
    rustix::stdio::dup2_stdout(&nothing)?;
    told
}

/// Keeps the credential fresh until a signal asks this process to end, its time is over, the watched process has ended,
/// or the directory of the run is gone.
fn keep(run: &Arc<Run>, freshener: Thread, signalled: &PipeReader, orders: &Orders) {
    let Ok((gone, alive)) = io::pipe() else { return };
    let kept = Arc::clone(run);
    // Not joined, as for `exec`: a request that hangs must not delay the end.
    freshener.begin(move || {
        kept.keep_fresh(fastrand::f64());
        drop(alive);
    });
    let watched = match &orders.watched {
        None => None,
        Some(owner) => match watched(owner) {
            Some(handle) => Some(handle),
            None => return,
        },
    };
    let ends = [Some(signalled.as_fd()), Some(gone.as_fd()), watched.as_ref().map(AsFd::as_fd)];
    let mut longest = orders.longest;
    while wait_for_the_end_of(&ends, longest) == Waited::ForNothing {
        // Another `start` may have extended the time.
        let left =
            wifshare::until(run.directory()).and_then(|end| end.duration_since(crate::clock::clock().now()).ok());
        match left.filter(|left| !left.is_zero()) {
            Some(left) => longest = left.min(LONGEST_LIFE),
            None => return,
        }
    }
}

/// The longest time that `--max-life` accepts.
const LONGEST_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    /// One of the descriptors became readable.
    ForAnEnd,
    /// The timeout expired.
    ForNothing,
}

/// A handle of the watched process, or `None` if it has ended.
#[cfg(target_os = "linux")]
fn watched(owner: &ProcessIdentity) -> Option<std::os::fd::OwnedFd> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    let pid = Pid::from_raw(i32::try_from(owner.pid).ok()?)?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Check after opening: if the process id was reused, the handle is not used.
    (!owner.is_dead()).then_some(handle)
}

/// Not tested: a thread polls on systems whose kernel has no process handles.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::disallowed_methods, reason = "a thread of the binary's own that waits")]
fn watched(owner: &ProcessIdentity) -> Option<PipeReader> {
    use rustix::process::{Pid, test_kill_process};

    let pid = Pid::from_raw(i32::try_from(owner.pid).ok()?)?;
    let (gone, alive) = io::pipe().ok()?;
    let thread = std::thread::Builder::new().spawn(move || {
        while test_kill_process(pid).is_ok() {
            std::thread::sleep(Duration::from_secs(5));
        }
        drop(alive);
    });
    thread.ok()?;
    Some(gone)
}

/// Waits until one of the descriptors is readable or the timeout expires.
fn wait_for_the_end_of(ends: &[Option<std::os::fd::BorrowedFd<'_>>], longest: Duration) -> Waited {
    let clock = crate::clock::clock();
    let end = (clock.monotonic)() + longest;
    let mut ends: Vec<_> = ends.iter().flatten().map(|end| PollFd::from_borrowed_fd(*end, PollFlags::IN)).collect();
    loop {
        let left = end.saturating_sub((clock.monotonic)());
        let left =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut ends, Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return Waited::ForNothing,
            _ => return Waited::ForAnEnd,
        }
    }
}
