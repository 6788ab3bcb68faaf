//! A program that prints an identity token: one that the user named, or that of a platform.

use std::ffi::OsString;
use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{Answer, IdentityError, text};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::environment::Environment;
use crate::progress::{Observer, Progress};
use crate::resource;
use crate::secret::Secret;

/// A program, which is started without a shell.
#[derive(Clone, Debug)]
pub struct IdentityCommand {
    /// The platform's usual name; `None` if the user named the command.
    pub platform: Option<&'static str>,
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// The environment of the program.
    pub environment: Environment,
    /// The position of the token in its output.
    pub answer: Answer,
    /// Whether it can print the same token again.
    pub repeats: bool,
    /// The variables with its own credentials. Children do not inherit them.
    pub variables: &'static [&'static str],
    /// The variables that identify the caller. Another value is another identity.
    pub told_apart_by: &'static [&'static str],
    /// What to do if it fails.
    pub failure_hint: &'static str,
}

impl IdentityCommand {
    /// The command that the user named.
    pub fn of_the_user(argv: Vec<OsString>, environment: Environment) -> IdentityCommand {
        IdentityCommand {
            platform: None,
            argv,
            environment,
            answer: Answer::Text,
            repeats: false,
            variables: &[],
            told_apart_by: &[],
            failure_hint: "run the command by hand; it has to print one identity token and exit with 0",
        }
    }

    /// The part of the identity key that distinguishes it from others. It can contain data that must be hashed and must
    /// not be printed.
    pub(super) fn identity(&self) -> String {
        let values = self.told_apart_by.iter().map(|name| self.environment.text(name).unwrap_or_default());
        match self.told_apart_by {
            [] => format!("command {:?}", self.argv),
            _ => format!("command {:?} {:?}", self.argv, values.collect::<Vec<_>>()),
        }
    }

    /// The program's name, without its arguments.
    pub(super) fn name(&self) -> String {
        self.argv.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Runs the program, and returns the token from its output. If a platform's program fails, it is run up to three
    /// times more, with pauses of at most 14 s in total. The user's command may have side effects, so it is run only
    /// once.
    pub(super) fn token(&self, clock: Clock, observer: Observer<'_>) -> Result<Secret, IdentityError> {
        const RUNS: u32 = 4;
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(8));
        let mut runs = 1;
        let printed = loop {
            let failure = match self.run(clock) {
                Err(Failure::Ended(error)) if self.platform.is_some() && runs < RUNS => error,
                Err(Failure::Ended(error) | Failure::Final(error)) => return Err(error),
                Ok(printed) => break printed,
            };
            runs += 1;
            let pause = backoff.pause(Duration::ZERO, Duration::MAX, None).unwrap_or_default();
            observer(&Progress::Retrying { cause: failure.to_string(), pause });
            (clock.pause)(pause)?;
        };
        match self.answer {
            Answer::Text => Ok(printed),
            Answer::Json(_) => self
                .answer
                .token(printed.expose().as_bytes())
                .ok_or_else(|| self.failed(format!("it printed something else: {}", self.answer.expected()))),
        }
    }

    fn not_started(&self, error: &io::Error) -> IdentityError {
        let (program, what) = (self.name(), format!("it could not be started: {error}"));
        IdentityError::Command { program, what, hint: resource::cure(error).unwrap_or(self.failure_hint) }
    }

    fn failed(&self, what: String) -> IdentityError {
        IdentityError::Command { program: self.name(), what, hint: self.failure_hint }
    }

    fn run(&self, clock: Clock) -> Result<Secret, Failure> {
        const LONGEST: Duration = Duration::from_secs(30);
        let (first, rest) = self.argv.split_first().ok_or_else(|| self.failed("it is empty".to_owned()))?;
        let mut child = Command::new(first)
            .args(rest)
            .env_clear()
            .envs(self.environment.iter())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| self.not_started(&error))?;
        let stdout = child.stdout.take().expect("it was piped above");
        // Read the output in a thread: a program that prints more than the pipe's capacity would block forever.
        let reader = std::thread::Builder::new().spawn(move || text(stdout));
        let reader = reader.map_err(|error| {
            end(&mut child);
            self.not_started(&error)
        })?;
        let start = (clock.monotonic)();
        // A quarter of the elapsed time, so that the end of a short command is noticed within a millisecond or two.
        let pause = || {
            let taken = (clock.monotonic)() - start;
            (clock.pause)((taken / 4).clamp(Duration::from_millis(1), Duration::from_millis(10)))
        };
        let status: Option<ExitStatus> = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Some(status),
                // Process 1 reaps every child, and another thread was first. The output decides.
                Err(_) => break None,
                Ok(None) if (clock.monotonic)() - start > LONGEST => {
                    end(&mut child);
                    let what = format!("it was still running after {} s and was ended", LONGEST.as_secs());
                    return Err(self.failed(what).into());
                }
                Ok(None) => {
                    if let Err(interrupted) = pause() {
                        end(&mut child);
                        return Err(interrupted.into());
                    }
                }
            }
        };
        if let Some(status) = status.filter(|status| !status.success()) {
            return Err(Failure::Ended(self.failed(status.to_string())));
        }
        // A grandchild can keep the pipe open forever, but the token was printed before the command ended.
        while !reader.is_finished() && (clock.monotonic)() - start <= LONGEST {
            pause()?;
        }
        if !reader.is_finished() {
            return Err(self.failed("it left a process behind that keeps its output open".to_owned()).into());
        }
        let printed: io::Result<Secret> =
            reader.join().map_err(|_| self.failed("its output could not be read".to_owned()))?;
        printed.map_err(|error| self.failed(format!("its output could not be read: {error}")).into())
    }
}

/// Why a program printed no token.
enum Failure {
    /// The program failed. A retry may succeed.
    Ended(IdentityError),
    /// A retry would fail too, or take as long.
    Final(IdentityError),
}

impl<E: Into<IdentityError>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Final(error.into())
    }
}

fn end(child: &mut Child) {
    // An error means that it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(words: &[&str]) -> IdentityCommand {
        let environment = Environment::from_iter([("PATH", "/usr/bin:/bin"), ("T", "abc")]);
        IdentityCommand::of_the_user(words.iter().map(OsString::from).collect(), environment)
    }

    #[test]
    fn command_runs_without_a_shell_and_its_failure_is_reported() {
        let clock = Clock::system();
        let printed = program(&["sh", "-c", "printf $T"]).token(clock, &|_| {}).expect("it prints");
        assert_eq!(printed.expose(), "abc");
        let error = program(&["sh", "-c", "exit 3"]).token(clock, &|_| {}).expect_err("it fails");
        assert_eq!(error.to_string(), "the identity command `sh` failed: exit status: 3");
        assert!(program(&["/nonexistent/x"]).token(clock, &|_| {}).is_err());
        let endless = program(&["sh", "-c", "yes"]).token(clock, &|_| {});
        assert!(endless.is_err(), "a command that prints without end loses its reader and dies");
    }

    #[test]
    fn agent_failure_is_retried_and_a_user_command_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let script =
            format!("cd '{}'; echo x >> runs; [ $(wc -l < runs) -ge 3 ] && echo t", directory.path().display());
        let command = program(&["sh", "-c", &script]);
        let runs = || {
            let file = std::fs::File::open(directory.path().join("runs")).expect("it ran");
            io::read_to_string(file).expect("a text").lines().count()
        };
        assert!(command.token(Clock::system(), &|_| {}).is_err());
        assert_eq!(runs(), 1);
        let paused = std::sync::atomic::AtomicU32::new(0);
        let observer = |step: &Progress<'_>| {
            paused.fetch_add(u32::from(matches!(step, Progress::Retrying { .. })), std::sync::atomic::Ordering::SeqCst);
        };
        let agent = IdentityCommand { platform: Some("Test CI"), ..command };
        assert_eq!(agent.token(Clock::system(), &observer).expect("the third run").expose().trim(), "t");
        assert_eq!((runs(), paused.into_inner()), (3, 1));
    }

    #[test]
    fn token_is_extracted_from_json_output() {
        let printing = |text: &'static str| IdentityCommand {
            answer: Answer::Json("/0/svids/0/svid"),
            ..program(&["printf", "%s", text])
        };
        let clock = Clock::system();
        let token = printing(r#"[{"svids":[{"svid":"t"}]}]"#).token(clock, &|_| {}).expect("it is there");
        assert_eq!(token.expose(), "t");
        let error = printing("[]").token(clock, &|_| {}).expect_err("it is not");
        assert!(error.to_string().contains("`0.svids.0.svid`"), "{error}");
    }

    thread_local! {
        /// The clock of the two tests below. It advances only during waits, and only after this file exists.
        static NOW: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::from_secs(100)) };
        static BEGUN: std::cell::RefCell<std::path::PathBuf> = const { std::cell::RefCell::new(std::path::PathBuf::new()) };
    }

    /// Runs a shell script that calls `began` to start the clock. Returns its error, the time and the pid.
    fn failed_after(script: &str) -> (String, Duration, String) {
        let directory = tempfile::tempdir().expect("a directory");
        let begun = directory.path().join("begun");
        BEGUN.set(begun.clone());
        let clock = Clock {
            monotonic: || NOW.get(),
            pause: |time| {
                match BEGUN.with_borrow(|file| file.exists()) {
                    true => NOW.set(NOW.get() + time),
                    false => (Clock::system().pause)(time)?,
                }
                Ok(())
            },
            ..Clock::system()
        };
        let start = NOW.get();
        let script = format!("began() {{ echo $$ > '{0}.new'; mv '{0}.new' '{0}'; }}; {script}", begun.display());
        let error = program(&["sh", "-c", &script]).token(clock, &|_| {}).expect_err("it fails");
        let pid = io::read_to_string(std::fs::File::open(begun).expect("it began")).expect("a number");
        (error.to_string(), NOW.get() - start, pid.trim().to_owned())
    }

    #[test]
    fn command_is_ended_after_30_s() {
        let (error, taken, pid) = failed_after("began; exec sleep 600");
        assert!(error.contains("still running after 30 s"), "{error}");
        let most = Duration::from_millis(30_010);
        assert!(taken > Duration::from_secs(30) && taken <= most, "the first look after half a minute: {taken:?}");
        assert!(!std::path::Path::new("/proc").join(pid).exists(), "it is gone");
    }

    #[test]
    fn process_keeping_the_output_open_is_waited_for_and_named() {
        // The clock starts after the command has ended, so that the test also works on a busy machine.
        let script = "(while kill -0 $$ 2> /dev/null; do sleep 0.01; done; began; sleep 5) & exit 0";
        let (error, taken, _) = failed_after(script);
        assert!(error.contains("left a process behind"), "{error}");
        assert!(taken >= Duration::from_secs(30), "{taken:?}");
    }

    #[test]
    fn command_identity_includes_arguments_and_variables() {
        let plain = program(&["a", "b"]);
        assert_eq!(plain.identity(), r#"command ["a", "b"]"#);
        let asked = IdentityCommand { told_apart_by: &["T", "U"], ..plain };
        assert_eq!(asked.identity(), r#"command ["a", "b"] ["abc", ""]"#);
    }
}
