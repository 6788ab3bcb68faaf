//! The error type of the command line: every cause, in one form.

use serde::{Deserialize, Serialize};
use wifshare::{ConfigError, Diagnosis, ObtainError, SpawnError, StoreError};

use crate::catalogue::{Known, code};
use crate::signals;

/// Exit code if wifshare failed.
pub(crate) const FAILED: u8 = 125;
/// Exit code if the command was found but cannot be run.
const NOT_RUNNABLE: u8 = 126;
/// Exit code if the command was not found.
const NOT_FOUND: u8 = 127;
/// Exit code for a usage error.
const USAGE: u8 = 2;

/// A failure with everything that its message shows. A keeper also sends it, serialized, to the process that started
/// it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    code: u8,
    /// A stable code, for documentation and scripts.
    pub(crate) name: String,
    /// What was tried, and on what.
    pub(crate) message: String,
    /// Why that failed, the nearest cause first.
    pub(crate) causes: Vec<String>,
    /// Why the endpoint probably refused, if known.
    pub(crate) diagnosis: Option<Box<Diagnosis>>,
    /// What to do.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// Creates a failure. The code comes from the catalogue: `code!("…")`.
    pub(crate) fn new(code: Known, message: String, hint: Option<&str>) -> Failure {
        let hint = hint.map(str::to_owned);
        Failure { code: FAILED, name: code.0.to_owned(), message, causes: Vec::new(), diagnosis: None, hint }
    }

    /// Creates a usage error: the command line, or a variable that sets an option, is not valid.
    pub(crate) fn usage(message: String, hint: &str) -> Failure {
        Failure { code: USAGE, ..Failure::new(code!("usage"), message, Some(hint)) }
    }

    /// Converts a usage error from clap, so that it looks like every other failure.
    pub(crate) fn of_arguments(error: &clap::Error) -> Failure {
        let text = error.render().to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
        let mut message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let is_hint =
            |line: &str| ["tip: ", "[possible values: ", "Usage: ", "For more "].iter().any(|it| line.starts_with(it));
        // clap lists missing or conflicting arguments on the following lines.
        while let Some(line) = lines.next_if(|line| !is_hint(line)) {
            message = format!("{message} {line}");
        }
        let mut hints: Vec<&str> = lines.filter(|line| !line.starts_with("For more ")).collect();
        // Put the suggestion first.
        hints.sort_by_key(|line| !line.starts_with("tip: "));
        hints.push("`--help` lists the options");
        let hints: Vec<String> = hints
            .into_iter()
            .map(|line| line.trim_start_matches("tip: ").replace("Usage: ", "usage: "))
            .map(|line| match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                Some(inside) if inside.starts_with("possible values") => inside.to_owned(),
                _ => line,
            })
            .collect();
        Failure::usage(message, &hints.join("; "))
    }

    pub(crate) fn exit_code(&self) -> u8 {
        self.code
    }

    fn of(name: &str, error: &dyn std::error::Error, hint: Option<String>) -> Failure {
        let causes = std::iter::successors(error.source(), |error| error.source()).map(ToString::to_string).collect();
        Failure { code: FAILED, name: name.to_owned(), message: error.to_string(), causes, diagnosis: None, hint }
    }
}

impl From<ObtainError> for Failure {
    fn from(error: ObtainError) -> Self {
        let mut failure = Failure::of(error.code(), &error, error.hint());
        failure.diagnosis = error.diagnosis().cloned().map(Box::new);
        match error {
            // The exit code that a shell reports for a process killed by the signal.
            ObtainError::Interrupted(_) => {
                Failure { code: signals::code_of_interruption().unwrap_or(FAILED), ..failure }
            }
            _ => failure,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::of(error.code().name(), &error, Some(error.hint()))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        ObtainError::from(error).into()
    }
}

impl From<SpawnError> for Failure {
    fn from(error: SpawnError) -> Self {
        let code = match error {
            SpawnError::NotFound(_) => NOT_FOUND,
            SpawnError::NotRunnable { .. } => NOT_RUNNABLE,
        };
        Failure { code, ..Failure::of(error.code().name(), &error, Some(error.hint().to_owned())) }
    }
}
