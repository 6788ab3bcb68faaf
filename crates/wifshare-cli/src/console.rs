//! Messages on standard error: few on success, everything helpful on failure, and never a secret.

use std::collections::HashSet;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;
use wifshare::{Environment, Progress, moment};

use crate::catalogue::code;
use crate::clock::clock;
use crate::explain::wrapped;
use crate::failure::Failure;
use crate::progress;
use crate::signals;
use crate::stderr;
use crate::terminal::Terminal;

/// How much to write, and in which format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    /// 0: no details. 1: steps. 2: every step with its time.
    verbosity: u8,
    /// Whether GitHub's runner reads the output. It finds commands in both streams.
    github: bool,
    form: LogFormat,
    masks: Masks,
    terminal: Terminal,
}

/// Whether mask commands (`::add-mask::`) are written for GitHub's runner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mask {
    /// In GitHub Actions, unless standard error is a file or JSON
    #[default]
    Auto,
    /// Always, even into a file: it then contains the secrets
    Always,
    /// Never
    Never,
}

/// What happens to a mask command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Masks {
    Written,
    /// Not written. A warning gives the reason.
    Withheld(&'static str),
    None,
}

impl Mask {
    fn decide(self, github: bool, form: LogFormat, is_file: impl FnOnce() -> bool) -> Masks {
        match self {
            Mask::Always => Masks::Written,
            Mask::Never => Masks::None,
            Mask::Auto if !github => Masks::None,
            Mask::Auto if is_file() => Masks::Withheld("standard error is a file"),
            Mask::Auto if form == LogFormat::Json => Masks::Withheld("standard error is JSON"),
            Mask::Auto => Masks::Written,
        }
    }
}

/// Format of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text for people
    Text,
    /// One JSON object per line
    Json,
}

impl LogFormat {
    /// Finds the requested format in a command line that could not be parsed.
    pub(crate) fn among(arguments: &[OsString]) -> Option<LogFormat> {
        const NAME: &str = "--log-format";
        let ours: Vec<&str> =
            arguments.iter().map_while(|word| word.to_str()).take_while(|word| *word != "--").collect();
        let follows = ours.iter().position(|word| *word == NAME).and_then(|place| ours.get(place + 1));
        let value =
            follows.copied().or_else(|| ours.iter().find_map(|word| word.strip_prefix(NAME)?.strip_prefix('=')))?;
        LogFormat::from_str(value, true).ok()
    }
}

const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[33m";
const CYAN: &str = "\x1b[36m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

impl Console {
    /// Uses the format of the option, else the one of `WIFSHARE_LOG_FORMAT`, else text.
    pub(crate) fn new(
        verbosity: u8,
        form: Option<LogFormat>,
        mask: Option<Mask>,
        mut terminal: Terminal,
        environment: &Environment,
    ) -> Console {
        let named = environment.text("WIFSHARE_LOG_FORMAT").and_then(|name| LogFormat::from_str(name, true).ok());
        let form = form.or(named).unwrap_or(LogFormat::Text);
        // Lines that are overwritten are only for text.
        terminal.is_live &= form == LogFormat::Text;
        let github = environment.text("GITHUB_ACTIONS") == Some("true");
        let mask = mask.or_else(|| Mask::from_str(environment.text("WIFSHARE_MASK")?, true).ok()).unwrap_or_default();
        let masks = mask.decide(github, form, stderr::is_file);
        Console { verbosity, github, form, masks, terminal }
    }

    /// Whether a program reads the messages.
    pub(crate) fn is_for_programs(self) -> bool {
        self.form == LogFormat::Json
    }

    pub(crate) fn is_verbose(self) -> bool {
        self.verbosity > 0
    }

    pub(crate) fn terminal(self) -> Terminal {
        self.terminal
    }

    /// Writes a warning: something that needs action, now or later.
    pub(crate) fn warning(self, text: &str) {
        match (self.form, self.github) {
            (LogFormat::Json, _) => self.object("warning", text),
            (LogFormat::Text, true) => write(&format!("::warning title=wifshare::{}", escape(text))),
            (LogFormat::Text, false) => write(&format!("wifshare: {} {text}", self.coloured(YELLOW, "warning:"))),
        }
    }

    /// Writes a notice: something worth knowing.
    pub(crate) fn notice(self, text: &str) {
        match (self.form, self.github) {
            (LogFormat::Json, _) => self.object("info", text),
            (LogFormat::Text, true) => write(&format!("::notice title=wifshare::{}", escape(text))),
            (LogFormat::Text, false) => write(&format!("wifshare: {text}")),
        }
    }

    /// Writes the progress of a long operation.
    pub(crate) fn progress(self, text: &str) {
        match self.form {
            LogFormat::Json => self.object("info", text),
            LogFormat::Text => write(&format!("wifshare: {text}")),
        }
    }

    /// Writes verbose output (-v).
    pub(crate) fn detail(self, text: &str) {
        match (self.verbosity, self.form) {
            (0, _) => {}
            (_, LogFormat::Json) => self.object("debug", text),
            (1, LogFormat::Text) => write(&self.coloured(DIM, &format!("wifshare: {text}"))),
            (_, LogFormat::Text) => {
                write(&self.coloured(DIM, &format!("wifshare: {} {text}", moment(clock().now()))));
            }
        }
    }

    /// Writes very verbose output (-vv).
    fn fine_detail(self, text: &str) {
        if self.verbosity > 1 {
            self.detail(text);
        }
    }

    /// Writes the error that ends the command.
    pub(crate) fn failure(self, failure: &Failure) {
        self.failure_by(failure, write);
    }

    /// Like [`failure`](Self::failure), from a panic hook: does not clear the unfinished line, whose lock another
    /// thread may hold.
    pub(crate) fn failure_at_once(self, failure: &Failure) {
        self.failure_by(failure, |text| {
            stderr::write(&format!("{text}\n"));
        });
    }

    fn failure_by(self, failure: &Failure, write: impl Fn(&str)) {
        if self.form == LogFormat::Json {
            let Failure { name, message, causes, hint, .. } = failure;
            let time = moment(clock().now());
            let mut object = json!({
                "time": time, "level": "error", "code": name, "message": message, "causes": causes, "hint": hint,
            });
            if let Some(diagnosis) = &failure.diagnosis {
                object["likely"] = json!(diagnosis.likely);
                object["ruled_out"] = json!(diagnosis.ruled_out);
            }
            return write(&object.to_string());
        }
        let text = |colour: &dyn Fn(&str, &str) -> String| {
            let mut text = format!("{} {}", colour(RED, &format!("error[{}]:", failure.name)), failure.message);
            for cause in &failure.causes {
                text.push_str(&format!("\n  cause: {cause}"));
            }
            if let Some(diagnosis) = &failure.diagnosis {
                for (label, findings) in [("likely", &diagnosis.likely), ("ruled out", &diagnosis.ruled_out)] {
                    text.extend(findings.iter().map(|finding| format!("\n  {label}: {finding}")));
                }
            }
            if let Some(hint) = &failure.hint {
                text.push_str(&format!("\n  {} {hint}", colour(CYAN, "hint:")));
            }
            text
        };
        match self.terminal.is_live {
            // The escape codes have no width, so they come last.
            true => {
                let (head, text) = (
                    format!("error[{}]:", failure.name),
                    folded_at(&text(&|_, word| word.to_owned()), self.terminal.width),
                );
                let text = text.replacen(&head, &self.coloured(RED, &head), 1);
                write(&text.replacen("\n  hint:", &format!("\n  {}", self.coloured(CYAN, "hint:")), 1));
            }
            false => write(&text(&|colour, word| self.coloured(colour, word))),
        }
        if self.github {
            write(&format!("::error title=wifshare::{}", escape(&text(&|_, word| word.to_owned()))));
        }
    }

    /// Shows a message on the page of a GitHub job. Does nothing elsewhere.
    pub(crate) fn annotate(self, level: &str, text: &str) {
        if self.github && self.form == LogFormat::Text {
            write(&format!("::{level} title=wifshare::{}", escape(text)));
        }
    }

    /// Starts a group of messages, which GitHub folds under its title.
    pub(crate) fn group(self, title: &str) {
        if self.github && self.form == LogFormat::Text {
            write(&format!("::group::{}", escape(title)));
        } else {
            self.detail(title);
        }
    }

    /// Ends the group.
    pub(crate) fn end_group(self) {
        if self.github && self.form == LogFormat::Text {
            write("::endgroup::");
        }
    }

    /// Writes lines under a title: a group in GitHub's log, verbose output elsewhere.
    pub(crate) fn folded(self, title: &str, lines: &[String]) {
        self.group(title);
        for line in lines {
            match self.github && self.form == LogFormat::Text {
                true => write(line),
                false => self.detail(line),
            }
        }
        self.end_group();
    }

    /// Makes the runner hide a secret wherever it would appear, once for each secret. A mask command contains the
    /// secret in clear text, so it is written only to the runner's log. If standard error is something else, a warning
    /// is given instead.
    pub(crate) fn mask(self, secret: &str) {
        static WARNED: AtomicBool = AtomicBool::new(false);
        match self.masks {
            Masks::None => {}
            Masks::Written => {
                for line in secret.lines().filter(|line| !line.trim().is_empty()) {
                    if is_new(line) && !write_line(&format!("::add-mask::{}", escape(line))) {
                        forget(line);
                    }
                }
            }
            Masks::Withheld(reason) => {
                if !WARNED.swap(true, Ordering::Relaxed) {
                    self.warning(&format!(
                        "{reason}, so GitHub's log is not told to mask the tokens; leave standard error to the log, or pass \
                         --mask always to write the masks all the same, or --mask never to be silent"
                    ));
                }
            }
        }
    }

    /// Reports a step, if it is worth reporting.
    pub(crate) fn step(self, step: &Progress<'_>) {
        if ends_what_took_its_time(step) {
            progress::end(self);
            // Something was obtained, which has to be cleaned up at the end.
            signals::end_at_the_next(false);
        }
        match step {
            Progress::Locked => stderr::locked(),
            Progress::Unlocked => stderr::unlocked(),
            _ => {}
        }
        match step {
            Progress::Identified(token) => {
                self.mask(token.expose());
                self.detail("got an identity token");
            }
            Progress::Exchanged(credential) | Progress::Adopted(credential) => {
                self.mask(credential.access_token.expose());
                self.detail(&format!("generation {} lives {}", credential.generation, whole(credential.lifetime())));
            }
            Progress::Waiting { holder, since } => {
                progress::waiting(self, holder.as_deref().unwrap_or("another process"), *since);
            }
            Progress::Retrying { cause, pause } => {
                let text = format!("{cause}; trying again in {:.1} s", pause.as_secs_f32());
                // A source may be retried for 20 s. A repeated message is shown only in verbose output.
                match last_cause().replace(cause.clone()) == Some(cause.clone()) {
                    true => self.detail(&text),
                    false => self.progress(&text),
                }
            }
            Progress::Lingering { at_most } => {
                progress::end(self);
                self.progress(&format!(
                    "asked to end: waiting up to {} s for the exchange that is under way; a second signal ends it at once",
                    at_most.as_secs()
                ));
                signals::end_at_the_next(true);
            }
            Progress::AlreadySpent => self.detail("the source returned an identity token that is already spent"),
            Progress::NotKept(cause) => self.warning(&format!(
                "the credential was obtained and could not be stored, so no other process can use it: {cause}"
            )),
            Progress::NotRenewed { cause, .. } => self
                .warning(&format!("the credential could not be renewed; the one in use stays until it ends: {cause}")),
            Progress::NotHandedOut { cause, .. } => self.warning(&format!(
                "no unspent identity token could be put in place for clients that federate by themselves: {cause}"
            )),
            Progress::Ended { cause } => self.warning(&format!(
                "the credential has ended and could not be renewed; requests will be refused: {cause}"
            )),
            Progress::Obtained(credential) => {
                self.mask(credential.access_token.expose());
                self.detail(&format!(
                    "signed in; generation {} lives {}",
                    credential.generation,
                    whole(credential.lifetime())
                ));
            }
            Progress::NotObtained { cause, hint, .. } => {
                let hint = hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
                self.warning(&format!(
                    "no credential could be had, and requests are refused until there is one: {cause}{hint}"
                ));
            }
            Progress::NotWatched { limit } => {
                self.warning(&format!("changes of the run's files are polled for, because {limit}"));
            }
            Progress::ConnectionFault => {
                self.warning("an internal error ended one connection to the gateway; the others go on");
            }
            Progress::Swept => self.detail("removed what a killed run had left behind"),
            Progress::Renewed(credential) => {
                // Another run may have obtained it, and this log has no mask for it.
                self.mask(credential.access_token.expose());
                self.detail(&format!("renewed: generation {}", credential.generation));
            }
            Progress::Asking => {
                last_cause().take();
                self.detail("asking for an identity token");
                progress::begin(self, "asking for an identity token");
            }
            Progress::Sending => {
                self.detail("exchanging it");
                progress::begin(self, "exchanging the identity token");
            }
            Progress::Begun => self.fine_detail("the run has its lease"),
            Progress::Waited { time, .. } => self.fine_detail(&format!("waited {} ms for the lock", time.as_millis())),
            Progress::Locked => self.fine_detail("the lock is ours, and there is no usable credential"),
            Progress::Found(credential) => {
                self.fine_detail(&format!("generation {} is there and usable", credential.generation));
            }
            Progress::Connected => self.fine_detail("connected to the token endpoint"),
            Progress::Recorded => self.fine_detail("recorded the identity token as spent in the ledger"),
            Progress::Answered => self.fine_detail("the token endpoint has answered"),
            Progress::Replaced(name) => self.fine_detail(&format!("wrote {name}")),
            _ => {}
        }
    }

    /// Replaces the unfinished line without ending it.
    pub(crate) fn line_in_place(self, text: &str) {
        stderr::write(&format!("\r\x1b[K{text}"));
    }

    fn object(self, level: &str, text: &str) {
        let time = moment(clock().now());
        write(&json!({ "time": time, "level": level, "message": text }).to_string());
    }

    fn coloured(self, colour: &str, text: &str) -> String {
        if self.terminal.is_coloured { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }
}

/// These lines for a terminal of this width. What is between backticks is to be copied, and stays in one piece.
fn folded_at(text: &str, width: usize) -> String {
    const UNBROKEN: &str = "\u{e000}";
    let mut lines = String::new();
    for line in text.lines() {
        let spans = line.split('`').enumerate();
        let spans =
            spans.map(|(number, span)| if number % 2 == 1 { span.replace(' ', UNBROKEN) } else { span.to_owned() });
        let line = spans.collect::<Vec<_>>().join("`");
        let indent = &line[..line.len() - line.trim_start().len()];
        lines += &wrapped(line.trim_start(), indent, "    ", width);
    }
    lines.trim_end().replace(UNBROKEN, " ")
}

/// The cause of the last retry.
fn last_cause() -> MutexGuard<'static, Option<String>> {
    static LAST: Mutex<Option<String>> = Mutex::new(None);
    LAST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this step ends the current operation or wait.
fn ends_what_took_its_time(step: &Progress<'_>) -> bool {
    matches!(
        step,
        Progress::Waited { .. }
            | Progress::Found(_)
            | Progress::Locked
            | Progress::Asking
            | Progress::Identified(_)
            | Progress::Sending
            | Progress::Answered
            | Progress::Failed { .. }
            | Progress::Remembered { .. }
            | Progress::Retrying { .. }
    )
}

/// Writes data to standard output. `what` names it in an error.
///
/// # Errors
/// Returns an error if standard output cannot be written.
pub(crate) fn print(what: &str, bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| {
        let hint = "check the program that reads the output";
        Failure::new(code!("stdout"), format!("could not print {what}: {error}"), Some(hint))
    })
}

fn write(text: &str) {
    write_line(text);
}

/// Writes a message in one write, so that lines of different processes do not mix. Returns whether it was written.
fn write_line(text: &str) -> bool {
    stderr::write(&format!("{}{text}\n", progress::make_way()))
}

/// Hashes of the secrets that this process has masked. Once is enough, because standard error stays the same stream.
static MASKED: LazyLock<(RandomState, Mutex<HashSet<u64>>)> = LazyLock::new(Default::default);

/// Whether this secret was not masked before. Records it.
fn is_new(secret: &str) -> bool {
    let (hasher, masked) = &*MASKED;
    masked.lock().unwrap_or_else(PoisonError::into_inner).insert(hasher.hash_one(secret))
}

fn forget(secret: &str) {
    let (hasher, masked) = &*MASKED;
    masked.lock().unwrap_or_else(PoisonError::into_inner).remove(&hasher.hash_one(secret));
}

/// Escapes a text as GitHub's runner expects it in a command.
fn escape(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Formats a duration in whole seconds, minutes, or hours and minutes.
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
    fn error_on_a_terminal_breaks_between_words_and_in_no_command() {
        let text = "error[a]: one two three four\n  hint: run `wifshare start --format env` and five more words";
        let folded = folded_at(text, 24);
        let expected = "error[a]: one two three\n    four\n  hint: run\n    `wifshare start --format env`\n    and five more words";
        assert_eq!(folded, expected);
        assert_eq!(folded_at(text, 200), text);
    }

    #[test]
    fn masks_are_written_only_to_the_runner_log() {
        use LogFormat::{Json, Text};
        for (mask, github, form, is_file, masks) in [
            (Mask::Auto, true, Text, false, Masks::Written),
            (Mask::Auto, false, Text, false, Masks::None),
            (Mask::Auto, true, Text, true, Masks::Withheld("standard error is a file")),
            (Mask::Auto, true, Json, false, Masks::Withheld("standard error is JSON")),
            (Mask::Auto, false, Json, true, Masks::None),
            (Mask::Always, true, Json, true, Masks::Written),
            (Mask::Never, true, Text, false, Masks::None),
        ] {
            assert_eq!(mask.decide(github, form, || is_file), masks, "{mask:?} {github} {form:?} {is_file}");
        }
    }

    #[test]
    fn workflow_command_text_is_escaped() {
        assert_eq!(escape("100%\n::set-output::x\r"), "100%25%0A::set-output::x%0D");
    }

    #[test]
    fn duration_is_shown_in_its_most_useful_unit() {
        for (seconds, text) in
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (599, "10 min"), (7199, "120 min"), (7260, "2 h 1 min")]
        {
            assert_eq!(whole(Duration::from_secs(seconds)), text);
        }
    }
}
