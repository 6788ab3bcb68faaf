//! Runs a command transparently: forwards signals to it, and returns its exit status unchanged.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, ExitStatus, Stdio};

use crate::code::Code;
use crate::environment::Environment;
use crate::resource;

/// A running command. Dropping it waits for its end, so that the command is not left alone after an error.
#[derive(Debug)]
pub struct Child {
    process: Process,
    is_waited_for: bool,
}

/// The standard streams of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// Those of this process.
    Ours,
    /// For an auxiliary command: no input, and output to standard error, so that it does not change the input and
    /// output of the main command.
    Aside,
}

/// Why a command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program does not exist.
    #[error("could not run `{0}`: no such program")]
    NotFound(String),
    /// The program exists, but cannot be run.
    #[error("could not run `{program}`")]
    NotRunnable {
        /// The program's name as given.
        program: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl SpawnError {
    /// The error code.
    pub fn code(&self) -> Code {
        match self {
            SpawnError::NotFound(_) => Code::CommandNotFound,
            SpawnError::NotRunnable { .. } => Code::CommandNotRunnable,
        }
    }

    /// Instructions for the user.
    pub fn hint(&self) -> &'static str {
        match self {
            SpawnError::NotFound(program) if program.is_empty() => "put the command after `--`",
            SpawnError::NotFound(program) if program.contains(' ') => {
                "the name contains a space: remove the quotes around the command, or run it with `sh -c`"
            }
            SpawnError::NotFound(_) => "look at the spelling, and at PATH",
            SpawnError::NotRunnable { source, .. } => {
                resource::cure(source).unwrap_or("look at its mode and at its first line")
            }
        }
    }
}

impl Child {
    /// Starts a command with exactly this environment.
    ///
    /// # Errors
    /// The program does not exist or cannot be run.
    pub fn spawn(argv: &[OsString], environment: &Environment, streams: Streams) -> Result<Child, SpawnError> {
        let (program, arguments) = argv.split_first().ok_or_else(|| SpawnError::NotFound(String::new()))?;
        let spawn = |mut command: Command| {
            command.args(arguments).env_clear().envs(environment.iter());
            if streams == Streams::Aside {
                command.stdin(Stdio::null()).stdout(io::stderr());
            }
            command.spawn()
        };
        // Searching the child's own PATH would need a fork, which copies this process's memory.
        let found = found_in_path(program, environment);
        let started = found.as_ref().and_then(|path| spawn(named(path, program)).ok());
        let started = started.map_or_else(|| spawn(Command::new(program)), Ok);
        let process = match started {
            Err(error) if has_no_format(&error) => {
                let script = found.as_deref().unwrap_or(Path::new(program));
                if is_text(script) { spawn(by_the_shell(script)) } else { Err(error) }
            }
            started => started,
        };
        let process = process.map_err(|source| {
            let program = program.to_string_lossy().into_owned();
            match source.kind() {
                io::ErrorKind::NotFound => SpawnError::NotFound(program),
                _ => SpawnError::NotRunnable { program, source },
            }
        })?;
        Ok(Child { process, is_waited_for: false })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits for its end. As process 1 of a container, this process inherits orphans, and reaps them meanwhile.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.is_waited_for = true;
        #[cfg(unix)]
        if std::process::id() == 1 {
            return orphans::bury_until_the_end_of(&self.process);
        }
        self.process.wait()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.is_waited_for {
            let _ = self.wait();
        }
    }
}

/// The path that the system would find for a program name in `PATH`. Returns `None` if that depends on the start, as
/// with a relative entry of `PATH`.
fn found_in_path(program: &OsStr, environment: &Environment) -> Option<PathBuf> {
    let is_a_name = Path::new(program).components().count() == 1 && !Path::new(program).is_absolute();
    if cfg!(not(unix)) || !is_a_name {
        return None;
    }
    std::env::split_paths(environment.os("PATH")?)
        .take_while(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|path| is_executable(path))
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(not(unix))]
fn is_executable(_path: &Path) -> bool {
    false
}

/// Whether the system rejects the format of a file, as for a script without an interpreter in its first line.
fn has_no_format(error: &io::Error) -> bool {
    #[cfg(unix)]
    return error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error());
    #[cfg(not(unix))]
    return {
        let _ = error;
        false
    };
}

/// Whether the first line of a file is text: then it is a script, and not a binary for another machine.
fn is_text(path: &Path) -> bool {
    use io::Read;

    const LOOKED_AT: u64 = 256;
    let mut bytes = Vec::new();
    let read = crate::private_file::open_regular(path).and_then(|file| file.take(LOOKED_AT).read_to_end(&mut bytes));
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    read.is_ok() && !first.contains(&0)
}

/// Runs a script without an interpreter with the shell (POSIX, Shell Command Language, 2.9.1.4).
fn by_the_shell(script: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    // Without the path, the shell would take a name that begins with a hyphen for an option.
    command.arg(if script.is_absolute() { script.to_owned() } else { Path::new(".").join(script) });
    command
}

/// Runs the program at this path, with the original name as its `argv[0]`.
fn named(path: &Path, name: &OsStr) -> Command {
    let mut command = Command::new(path);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::arg0(&mut command, name);
    #[cfg(not(unix))]
    let _ = name;
    command
}

/// The exit code to return: that of the child, or 128 + n after signal n, as in a shell.
pub fn exit_code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return u8::try_from(128 + signal).unwrap_or(u8::MAX);
    }
    // A code on Windows has 32 bits. If it does not fit, it becomes 255, a failure.
    status.code().map_or(u8::MAX, |code| u8::try_from(code).unwrap_or(u8::MAX))
}

#[cfg(unix)]
mod orphans {
    use std::os::unix::process::ExitStatusExt;

    use rustix::process::{Pid, WaitOptions, wait};

    use super::*;

    pub(super) fn bury_until_the_end_of(child: &Process) -> io::Result<ExitStatus> {
        let ours = Pid::from_child(child);
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) if pid == ours => return Ok(ExitStatus::from_raw(status.as_raw())),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(unix)]
mod signals {
    use rustix::process::{Pid, Signal, getpgid, kill_process};

    use super::*;

    /// Sends signals to a child from another thread. It can outlive the child.
    #[derive(Debug)]
    pub struct Signaller {
        pid: Pid,
        #[cfg(target_os = "linux")]
        handle: Option<std::os::fd::OwnedFd>,
    }

    impl Child {
        /// Returns a handle to send signals to the child.
        pub fn signaller(&self) -> Signaller {
            let pid = Pid::from_child(&self.process);
            Signaller {
                pid,
                // A pidfd, because the pid can belong to another process after the child was reaped.
                #[cfg(target_os = "linux")]
                handle: rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok(),
            }
        }
    }

    impl Signaller {
        /// Sends a signal by its number. Does nothing if the child has ended.
        pub fn send(&self, signal: i32) {
            let Some(signal) = Signal::from_named_raw(signal) else { return };
            #[cfg(target_os = "linux")]
            if let Some(handle) = &self.handle {
                let _ = rustix::process::pidfd_send_signal(handle, signal);
                return;
            }
            let _ = kill_process(self.pid, signal);
        }

        /// Whether the child is in this process's group, so that it receives signals of the terminal directly.
        pub fn shares_our_process_group(&self) -> bool {
            matches!((getpgid(Some(self.pid)), getpgid(None)), (Ok(theirs), Ok(ours)) if theirs == ours)
        }
    }
}

#[cfg(unix)]
pub use signals::Signaller;

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn run(script: &str) -> u8 {
        let argv = ["sh", "-c", script].map(OsString::from);
        let environment = Environment::from_iter([("PATH", "/usr/bin:/bin"), ("A", "b")]);
        exit_code(Child::spawn(&argv, &environment, Streams::Ours).expect("sh").wait().expect("an end"))
    }

    #[test]
    fn exit_code_is_the_one_of_the_child() {
        for code in [0, 1, 77, 125, 255] {
            assert_eq!(run(&format!("exit {code}")), code);
        }
        assert_eq!(run("kill -TERM $$"), 143);
        assert_eq!(run("kill -KILL $$"), 137);
    }

    #[test]
    fn child_gets_exactly_the_given_environment() {
        assert_eq!(run(r#"[ "$A" = b ] && [ -z "$HOME" ]"#), 0);
    }

    #[test]
    fn program_is_found_as_in_a_shell() {
        let holder = tempfile::tempdir().unwrap();
        // Another process writes them: a file that is open for writing in this process could not be run.
        let lay_out = r#"
            mkdir first second second/tool third other
            printf '#!/bin/sh\nexit 5\n' >other/tool; chmod 755 other/tool
            printf '#!/bin/sh\nexit 1\n' >first/tool; chmod 644 first/tool
            printf '#!/bin/sh\n[ "$1" = a ] && exit 3\n' >third/tool
            printf 'exit 4\n' >third/bare; chmod 755 third/*"#;
        assert_eq!(run(&format!("cd '{}' && {lay_out}", holder.path().display())), 0);
        let run = |path: &[PathBuf], argv: &[&str]| {
            let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
            let environment = Environment::from_iter([("PATH", std::env::join_paths(path).unwrap())]);
            exit_code(Child::spawn(&argv, &environment, Streams::Ours).expect("it is there").wait().expect("an end"))
        };
        let [first, second, third] = ["first", "second", "third"].map(|name| holder.path().join(name));
        let path = [first, second, third.clone()];
        assert_eq!(run(&path, &["tool", "a"]), 3, "neither what may not be run nor a directory is in the way");
        assert_eq!(run(&path, &["bare"]), 4, "a script without a first line of its own is the shell's");
        // A relative path, from the package's directory, in which tests run, through the root.
        let up = Path::new(env!("CARGO_MANIFEST_DIR")).components().skip(1).map(|_| "..").collect::<PathBuf>();
        let relative = up.join(third.strip_prefix("/").unwrap());
        assert_eq!(run(&[relative, holder.path().join("other")], &["tool", "a"]), 3, "what comes first comes first");
    }

    #[test]
    fn shell_runs_a_script_without_shebang_but_no_binary() {
        let holder = tempfile::tempdir().unwrap();
        let script = r#"
            printf 'exit $1\n' >script; printf '' >empty; printf 'a\0b\n' >binary; printf 'exit 7\n' >-x
            chmod 755 script empty binary ./-x; printf 'exit 1\n' >closed; chmod 644 closed"#;
        assert_eq!(run(&format!("cd '{}' && {script}", holder.path().display())), 0);
        let spawn = |name: &str, argument: &str| {
            let argv = [holder.path().join(name).into_os_string(), argument.into()];
            Child::spawn(&argv, &Environment::default(), Streams::Ours)
        };
        for (name, argument, code) in [("script", "5", 5), ("empty", "5", 0), ("-x", "", 7)] {
            let ended = spawn(name, argument).expect(name).wait().expect("an end");
            assert_eq!(exit_code(ended), code, "{name}");
        }
        for name in ["binary", "closed"] {
            assert!(matches!(spawn(name, ""), Err(SpawnError::NotRunnable { .. })), "{name}");
        }
    }

    #[test]
    fn program_lookup_resolves_only_absolute_path_entries() {
        let found = |path: &str, name: &str| found_in_path(OsStr::new(name), &Environment::from_iter([("PATH", path)]));
        assert_eq!(found("/nonexistent:/etc:/bin", "sh"), Some(PathBuf::from("/bin/sh")));
        // A name with a slash is not searched, and the content of a relative entry is not known before the start.
        for (path, name) in [("/bin", "/bin/sh"), ("/", "bin/sh"), ("bin:/bin", "sh"), ("/etc", "passwd"), ("/", "bin")]
        {
            assert_eq!(found(path, name), None, "{name} in {path}");
        }
        assert_eq!(found_in_path(OsStr::new("sh"), &Environment::default()), None, "without a PATH");
    }

    #[test]
    fn program_sees_the_name_it_was_called_by() {
        let argv = ["sh", "-c", "[ \"$(tr '\\0' ' ' </proc/$$/cmdline | cut -d' ' -f1)\" = sh ]"].map(OsString::from);
        let environment = Environment::from_iter([("PATH", "/usr/bin:/bin")]);
        let mut child = Child::spawn(&argv, &environment, Streams::Ours).expect("sh");
        assert_eq!(exit_code(child.wait().expect("an end")), 0);
    }

    #[test]
    fn missing_and_unrunnable_programs_are_distinguished() {
        let spawn = |program: &str| Child::spawn(&[program.into()], &Environment::default(), Streams::Ours);
        assert!(matches!(spawn("/nonexistent/program"), Err(SpawnError::NotFound(_))));
        assert!(matches!(spawn("/etc/passwd"), Err(SpawnError::NotRunnable { .. })));
    }

    #[test]
    fn signal_reaches_the_child_and_not_its_successor() {
        let argv = ["sleep", "60"].map(OsString::from);
        let environment = Environment::from_iter([("PATH", "/usr/bin:/bin")]);
        let mut child = Child::spawn(&argv, &environment, Streams::Ours).expect("sleep");
        let signaller = child.signaller();
        assert!(signaller.shares_our_process_group());
        signaller.send(15);
        assert_eq!(exit_code(child.wait().expect("an end")), 143);
        signaller.send(15);
    }

    #[test]
    fn child_that_leaves_the_process_group_is_detected() {
        let argv = ["setsid", "sleep", "60"].map(OsString::from);
        let environment = Environment::from_iter([("PATH", "/usr/bin:/bin")]);
        let mut child = Child::spawn(&argv, &environment, Streams::Ours).expect("setsid");
        let signaller = child.signaller();
        let left = (0..2000).any(|_| {
            (Clock::system().pause)(std::time::Duration::from_millis(5)).expect("nothing cuts it short");
            !signaller.shares_our_process_group()
        });
        signaller.send(9);
        child.wait().expect("an end");
        assert!(left);
    }

    #[test]
    fn each_spawn_error_has_its_own_hint() {
        let hint = |program: &str| {
            let argv = [OsString::from(program)];
            Child::spawn(&argv, &Environment::default(), Streams::Ours).map(|_| ()).unwrap_err().hint()
        };
        assert!(hint("/nowhere/at-all").contains("PATH"));
        assert!(hint("/").contains("mode"));
    }
}
