//! `wifshare exec`: runs a command with the shared credential.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use wifshare::{Child, Environment, EventKind, Progress, SpawnError, Streams, exit_code, program_name};

use crate::arguments::ExecArguments;
use crate::catalogue::code;
use crate::console::Console;
use crate::failure::Failure;
use crate::process_tracker::ProcessTracker;
use crate::progress;
use crate::share::share;
use crate::signals;

pub(crate) fn exec(arguments: ExecArguments, environment: &Environment, console: Console) -> Result<u8, Failure> {
    look_for(&arguments.command, environment)?;
    share("exec", &arguments.share, environment, console, |environment, events| {
        let tracker = &mut ProcessTracker::of(environment, events);
        warn_of_bare_claude(&arguments.command, environment, console);
        let program = arguments.command.first().map_or(OsStr::new(""), OsString::as_os_str).to_string_lossy();
        run(&arguments.command, &program_name(&program), environment, Streams::Ours, tracker)
    })
}

/// Runs a command to its end, forwards signals to it, and records its processes. `name` is its name in the event log.
///
/// # Errors
/// Returns an error if the command cannot be started or its exit status cannot be read.
pub(crate) fn run(
    argv: &[OsString],
    name: &str,
    environment: &Environment,
    streams: Streams,
    tracker: &mut ProcessTracker,
) -> Result<u8, Failure> {
    if let Some(code) = signals::code_of_interruption() {
        return Ok(code);
    }
    let child = Child::spawn(argv, environment, streams).map_err(|error| match error {
        // `look_for` found the program. What the system misses is the interpreter named in its first line.
        SpawnError::NotFound(program) => {
            let source = std::io::Error::other("the interpreter that its first line names does not exist");
            SpawnError::NotRunnable { program, source }
        }
        error @ SpawnError::NotRunnable { .. } => error,
    })?;
    let mut running = Running { _passing_on: signals::pass_on_to(&child), child };
    let child = &mut running.child;
    tracker.note(EventKind::ChildStarted { process: child.id(), program: name.to_owned() });
    let following = tracker.follow(child.id());
    panic_if_told_to("child-started");
    // From here on the command uses the terminal.
    progress::stand_aside(true);
    let ended = child.wait();
    progress::stand_aside(false);
    drop(following);
    let ended = ended
        .map_err(|error| Failure::new(code!("child-lost"), format!("lost track of the command: {error}"), None))?;
    let code = exit_code(ended);
    tracker.note(EventKind::ChildEnded { process: child.id(), code });
    Ok(code)
}

/// A running command to which signals are forwarded. If a panic drops it, it waits for the command and then stops the
/// forwarding.
struct Running {
    child: Child,
    _passing_on: signals::PassingOn,
}

/// Checks that the program exists, so that a misspelt command does not use up an identity token.
///
/// # Errors
/// Returns an error if the program is not found.
pub(crate) fn look_for(argv: &[OsString], environment: &Environment) -> Result<(), Failure> {
    let program = argv.first().map_or(OsStr::new(""), OsString::as_os_str);
    let is_path = Path::new(program).components().count() > 1 || Path::new(program).is_absolute();
    let path = environment.os("PATH").unwrap_or_default();
    let found = match is_path {
        true => Path::new(program).exists(),
        // Windows adds file extensions. There, starting the command reports the error.
        false => cfg!(windows) || std::env::split_paths(path).any(|directory| directory.join(program).is_file()),
    };
    if found { Ok(()) } else { Err(SpawnError::NotFound(program.to_string_lossy().into_owned()).into()) }
}

/// Warns of `claude --bare`, which reads no profile. It would only print "Not logged in" and give no reason.
pub(crate) fn warn_of_bare_claude(argv: &[OsString], environment: &Environment, console: Console) {
    let Some((program, arguments)) = argv.split_first() else { return };
    let is_claude = Path::new(program).file_name().is_some_and(|name| name.to_string_lossy().starts_with("claude"));
    let is_bare = arguments.iter().any(|argument| argument == "--bare") || environment.has("CLAUDE_CODE_SIMPLE");
    // Settings can name an `apiKeyHelper`, which bare mode runs.
    let has_settings = arguments.iter().any(|argument| argument.to_string_lossy().starts_with("--settings"));
    let has_key = ["ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY"].iter().any(|name| environment.has(name));
    if is_claude && is_bare && !has_settings && !has_key && environment.has("ANTHROPIC_CONFIG_DIR") {
        console.warning(
            "claude --bare reads no profile and will not be logged in; use --delivery gateway or environment for it",
        );
    }
}

/// For tests, only in debug builds: kills this process at the step that `WIFSHARE_TEST_DIE_AT` names.
#[cfg(all(debug_assertions, unix))]
#[expect(clippy::disallowed_methods, reason = "a switch of debug builds, for tests that kill this process")]
pub(crate) fn die_if_told_to(step: &Progress<'_>) {
    let name = match step {
        Progress::Locked => "locked",
        Progress::Asking => "asking",
        Progress::Identified(_) => "identified",
        Progress::Connected => "connected",
        Progress::Recorded => "recorded",
        Progress::Sending => "sending",
        Progress::Answered => "answered",
        Progress::Exchanged(_) => "exchanged",
        Progress::Written("credential.json") => "written",
        Progress::Replaced("credential.json") => "replaced",
        _ => return,
    };
    panic_if_told_to(name);
    if std::env::var_os("WIFSHARE_TEST_DIE_AT").is_some_and(|step| step == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(all(debug_assertions, unix)))]
pub(crate) fn die_if_told_to(_step: &Progress<'_>) {}

/// For tests, only in debug builds: panics at the place that `WIFSHARE_TEST_PANIC_AT` names.
#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "a switch of debug builds, for tests that have this process panic")]
pub(crate) fn panic_if_told_to(name: &str) {
    let is_told_to = std::env::var_os("WIFSHARE_TEST_PANIC_AT").is_some_and(|place| place == name);
    assert!(!is_told_to, "a test asked for this, and sk-ant-oat01-not-a-secret stands in the message");
}

#[cfg(not(debug_assertions))]
pub(crate) fn panic_if_told_to(_name: &str) {}
