//! What is said on standard error: little on success, everything that helps on failure, and never a secret.

use std::io::Write;
use std::time::Duration;

use wifshare::{Environment, Step};

use crate::failure::Failure;

/// How loud, and to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk {
    verbose: bool,
    /// Whether GitHub's runner listens, which reads commands from both streams.
    github: bool,
}

impl Talk {
    pub(crate) fn new(verbose: bool, environment: &Environment) -> Talk {
        Talk { verbose, github: environment.text("GITHUB_ACTIONS") == Some("true") }
    }

    /// Whether details are told.
    pub(crate) fn is_verbose(self) -> bool {
        self.verbose
    }

    /// Something that a person has to act on, some time.
    pub(crate) fn warning(self, text: &str) {
        if self.github {
            say(&format!("::warning title=wifshare::{}", escape(text)));
        } else {
            say(&format!("wifshare: warning: {text}"));
        }
    }

    /// Something that a person may want to know.
    pub(crate) fn notice(self, text: &str) {
        if self.github {
            say(&format!("::notice title=wifshare::{}", escape(text)));
        } else {
            say(&format!("wifshare: {text}"));
        }
    }

    /// Something for those who asked for it.
    pub(crate) fn detail(self, text: &str) {
        if self.verbose {
            say(&format!("wifshare: {text}"));
        }
    }

    /// Why there is no result.
    pub(crate) fn failure(self, failure: &Failure) {
        let mut text = format!("error[{}]: {}", failure.name, failure.message);
        for cause in &failure.causes {
            text.push_str(&format!("\n  cause: {cause}"));
        }
        if let Some(diagnosis) = &failure.diagnosis {
            for (label, findings) in [("likely", &diagnosis.likely), ("ruled out", &diagnosis.ruled_out)] {
                text.extend(findings.iter().map(|finding| format!("\n  {label}: {finding}")));
            }
        }
        if let Some(hint) = &failure.hint {
            text.push_str(&format!("\n  hint: {hint}"));
        }
        say(&text);
        if self.github {
            say(&format!("::error title=wifshare::{}", escape(&text)));
        }
    }

    /// Folds what follows under one line of the log.
    pub(crate) fn group(self, title: &str) {
        if self.github {
            say(&format!("::group::{}", escape(title)));
        } else {
            self.detail(title);
        }
    }

    /// Ends the fold.
    pub(crate) fn end_group(self) {
        if self.github {
            say("::endgroup::");
        }
    }

    /// Has the runner hide a secret wherever it would show. Elsewhere nothing is said.
    pub(crate) fn mask(self, secret: &str) {
        if self.github {
            for line in secret.lines().filter(|line| !line.trim().is_empty()) {
                say(&format!("::add-mask::{}", escape(line)));
            }
        }
    }

    /// Tells of a journey's step what is worth telling.
    pub(crate) fn step(self, step: &Step<'_>) {
        match step {
            Step::Obtained(credential) => {
                self.mask(credential.access_token.expose());
                self.detail(&format!(
                    "signed in; generation {} lives {}",
                    credential.generation,
                    whole(credential.lifetime())
                ));
            }
            Step::NotObtained { cause, hint, .. } => {
                let hint = hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
                self.warning(&format!(
                    "no credential could be had, and requests are refused until there is one: {cause}{hint}"
                ));
            }
            Step::Identified(token) => {
                self.mask(token.expose());
                self.detail("got an identity token");
            }
            Step::Exchanged(credential) | Step::Adopted(credential) => {
                self.mask(credential.access_token.expose());
                self.detail(&format!("generation {} lives {}", credential.generation, whole(credential.lifetime())));
            }
            Step::Waiting { holder, since } => {
                let holder = holder.as_deref().unwrap_or("another process");
                say(&format!("wifshare: waiting since {} for {holder}", whole(*since)));
            }
            Step::Retrying { cause, pause } => {
                say(&format!("wifshare: {cause}; trying again in {:.1} s", pause.as_secs_f32()));
            }
            Step::AlreadySpent => self.detail("the source handed out an identity token that was spent before"),
            Step::NotKept(cause) => self.warning(&format!(
                "the credential was obtained and could not be stored, so no other process can use it: {cause}"
            )),
            Step::NotRenewed { cause, .. } => self
                .warning(&format!("the credential could not be renewed; the one in use stays until it ends: {cause}")),
            Step::NotHandedOut { cause, .. } => self.warning(&format!(
                "no unspent identity token could be put in place for clients that federate by themselves: {cause}"
            )),
            Step::Ended { cause } => self.warning(&format!(
                "the credential has ended and could not be renewed; requests will be refused: {cause}"
            )),
            Step::Swept => self.detail("removed what a killed run had left behind"),
            Step::Renewed(credential) => {
                // It may be another run that bought it, and this log has not seen its mask.
                self.mask(credential.access_token.expose());
                self.detail(&format!("renewed: generation {}", credential.generation));
            }
            Step::Asking => self.detail("asking for an identity token"),
            Step::Sending => self.detail("exchanging it"),
            _ => {}
        }
    }
}

/// One write for each message, so that the lines of many processes do not mix.
fn say(text: &str) {
    let line = format!("{text}\n");
    // Nobody may be listening any more; there is nobody left to tell that.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// As GitHub's runner reads a command's text.
fn escape(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Whole seconds, or minutes to the nearest where they are more telling.
pub(crate) fn whole(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", (seconds + 30) / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_end_its_command_and_begin_another() {
        assert_eq!(escape("100%\n::set-output::x\r"), "100%25%0A::set-output::x%0D");
    }

    #[test]
    fn times_are_told_in_the_unit_that_tells_most() {
        for (seconds, text) in
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (599, "10 min"), (7199, "120 min"), (7260, "2 h 1 min")]
        {
            assert_eq!(whole(Duration::from_secs(seconds)), text);
        }
    }
}
