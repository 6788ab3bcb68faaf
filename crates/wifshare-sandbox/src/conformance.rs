//! The conformance kit: does a client keep the rules of single use?
//!
//! A [`Subject`] is any command that signs in and ends. [`try_case`] runs it one or more times with a mock server, a
//! home directory and a temporary directory that are new for each [`Case`]. The verdict depends on the server's counters
//! and on the command's output. A few cases also require exit code 0.
//!
//! The rules: send each identity token once, whatever the response; wait as long as `retry-after` says; stop after a
//! refusal; put no secret where other users can read it.

mod argument_lists;
mod judge;
mod process;

use std::{
    ffi::{OsStr, OsString},
    fmt,
    io::{self, Write},
    path::Path,
    str::FromStr,
    time::Duration,
};

use self::{
    argument_lists::ArgumentLists,
    judge::Observation,
    process::{Ended, Running},
};
use crate::{Fault, Sandbox, Settings, clock};

/// Waits for this duration. Returns an error if the kit is to stop.
pub type Pause<'a> = &'a dyn Fn(Duration) -> io::Result<()>;

/// The client under test.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The command and its arguments. A relative path is resolved in an empty home directory.
    pub command: Vec<OsString>,
    /// The variables that it inherits, except those about credentials, home directories and proxies.
    pub environment: Vec<(OsString, OsString)>,
    /// Its source of identity tokens.
    pub source: Source,
    /// The limit for one run. After it, the command's process group is killed.
    pub bound: Duration,
}

/// A client's source of identity tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// `ANTHROPIC_IDENTITY_TOKEN_FILE` names a file with one unspent token.
    #[default]
    File,
    /// `ACTIONS_ID_TOKEN_REQUEST_URL` and `…_TOKEN` lead to an endpoint that issues a new one for each request.
    Endpoint,
    /// Both are set.
    Both,
}

impl Source {
    fn has_file(self) -> bool {
        matches!(self, Self::File | Self::Both)
    }

    fn has_endpoint(self) -> bool {
        matches!(self, Self::Endpoint | Self::Both)
    }
}

/// One test case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// One run.
    OneRun,
    /// Two runs, one after another.
    TokenReplaced,
    /// Eight runs at once.
    AtOnce,
    /// The connection is closed after the identity token is spent.
    LostAnswer,
    /// The connection is reset after the identity token is spent.
    ResetAnswer,
    /// The token endpoint is unavailable once.
    Unavailable,
    /// The token endpoint answers 429 with `retry-after` once.
    TooManyRequests,
    /// The token endpoint refuses.
    Refused,
    /// The token endpoint redirects to another address.
    Redirect,
    /// The access token has the real endpoint's minimum lifetime.
    ShortLife,
    /// The identity token has no `jti`.
    WithoutJti,
    /// The error response contains the assertion.
    Reflected,
    /// Secrets in argument lists.
    ArgumentLists,
    /// The platform issues the same identity token twice.
    SameTokenTwice,
}

impl Case {
    /// All cases, in the order of the table.
    pub const ALL: [Self; 14] = [
        Self::OneRun,
        Self::TokenReplaced,
        Self::AtOnce,
        Self::LostAnswer,
        Self::ResetAnswer,
        Self::Unavailable,
        Self::TooManyRequests,
        Self::Refused,
        Self::Redirect,
        Self::ShortLife,
        Self::WithoutJti,
        Self::Reflected,
        Self::ArgumentLists,
        Self::SameTokenTwice,
    ];

    /// The case's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneRun => "one-run",
            Self::TokenReplaced => "token-replaced",
            Self::AtOnce => "at-once",
            Self::LostAnswer => "lost-answer",
            Self::ResetAnswer => "reset-answer",
            Self::Unavailable => "unavailable",
            Self::TooManyRequests => "too-many-requests",
            Self::Refused => "refused",
            Self::Redirect => "redirect",
            Self::ShortLife => "short-life",
            Self::WithoutJti => "without-jti",
            Self::Reflected => "reflected",
            Self::ArgumentLists => "argument-lists",
            Self::SameTokenTwice => "same-token-twice",
        }
    }

    /// The situation, and the behavior that is required.
    pub fn tried(self) -> &'static str {
        match self {
            Self::OneRun => "one run signs in with one exchange",
            Self::TokenReplaced => "two runs, the token replaced in between: both succeed",
            Self::AtOnce => "eight runs at once: all succeed, nothing is sent twice",
            Self::LostAnswer => "closed after the token was spent: not sent again",
            Self::ResetAnswer => "reset after the token was spent: not sent again",
            Self::Unavailable => "503 once: not sent again",
            Self::TooManyRequests => "429, retry-after 2 s: waited for, not sent again",
            Self::Refused => "401: not sent again, knocks three times at most",
            Self::Redirect => "307 to another address: nothing arrives there",
            Self::ShortLife => "access token lives 60 s: signs in, nothing is sent twice",
            Self::WithoutJti => "identity token without jti: signs in, nothing is sent twice",
            Self::Reflected => "assertion repeated in the error: not printed",
            Self::ArgumentLists => "no secret in any argument list",
            Self::SameTokenTwice => "the platform gives one token twice: not sent twice",
        }
    }

    fn settings(self, elsewhere: &str) -> Settings {
        // More often than any client knocks within its bound.
        const ALWAYS: usize = 256;
        let status = |status, retry_after_s| Fault::Status { status, retry_after_s, commit: false };
        match self {
            Self::OneRun | Self::TokenReplaced => Settings::default(),
            // Slow enough for the processes to meet.
            Self::AtOnce => Settings { exchange_latency_ms: 300, ..Settings::default() },
            Self::LostAnswer => Settings::with_exchange_faults([Fault::DropAfterCommit]),
            Self::ResetAnswer => Settings::with_exchange_faults([Fault::ResetAfterCommit]),
            Self::Unavailable => Settings::with_exchange_faults([status(503, None)]),
            Self::TooManyRequests => Settings::with_exchange_faults([status(429, Some(judge::RETRY_AFTER.as_secs()))]),
            Self::Refused => Settings::with_exchange_faults(vec![status(401, None); ALWAYS]),
            Self::Redirect => {
                let location = format!("{elsewhere}/v1/oauth/token");
                Settings::with_exchange_faults([Fault::Redirect { status: 307, location }])
            }
            // As short as the real endpoint gives it, and within the 120 s before the end in which the SDKs already
            // look for another one (docs/reference/protocol.md §4.1).
            Self::ShortLife => Settings { access_token_lifetime_s: 60, ..Settings::default() },
            Self::WithoutJti => Settings { issue_jti: false, ..Settings::default() },
            Self::Reflected => Settings::with_exchange_faults(vec![Fault::ReflectAssertion; ALWAYS]),
            // Slow, so that there is something to look at.
            Self::ArgumentLists => {
                Settings { exchange_latency_ms: 300, message_latency_ms: 500, ..Settings::default() }
            }
            Self::SameTokenTwice => Settings {
                identity_token_faults: vec![Fault::None, Fault::DuplicateIdentityToken],
                ..Settings::default()
            },
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Case {
    type Err = UnknownCase;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|case| case.name() == name).ok_or(UnknownCase)
    }
}

/// No case has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such case; they are {}", Case::ALL.map(Case::name).join(", "))]
pub struct UnknownCase;

/// The verdict of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The client kept the rule.
    Kept,
    /// The client broke the rule.
    Broken,
    /// The case does not apply to this client, or cannot run on this system.
    NotApplicable,
}

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The case.
    pub case: Case,
    /// The verdict.
    pub judgement: Judgement,
    /// The broken rules, if any, and the counts.
    pub evidence: String,
    /// The end of the first run's standard error, without secrets.
    pub said: String,
}

/// Runs one case, with its own mock server and directories.
///
/// # Errors
/// The server, a directory or the command could not be created, or `pause` returned an error. No process remains.
pub fn try_case(case: Case, subject: &Subject, pause: Pause<'_>) -> io::Result<Row> {
    if case == Case::SameTokenTwice && !subject.source.has_endpoint() {
        let evidence = "there is no endpoint that could give a token twice".to_owned();
        return Ok(Row { case, judgement: Judgement::NotApplicable, evidence, said: String::new() });
    }
    let elsewhere = Sandbox::start(Settings::default())?;
    let sandbox = Sandbox::start(case.settings(&elsewhere.base_url()))?;
    let job = Job::new(subject, &sandbox)?;
    let mut argument_lists = (case == Case::ArgumentLists).then(ArgumentLists::default);
    let mut run = |runs| job.run(runs, pause, &mut argument_lists);
    let ended = match case {
        Case::AtOnce => run(8)?,
        Case::TokenReplaced | Case::SameTokenTwice => {
            let mut ended = run(1)?;
            job.replace_token()?;
            ended.append(&mut run(1)?);
            ended
        }
        _ => run(1)?,
    };
    let secrets = sandbox.secrets();
    let seen = Observation {
        runs: ended.iter().map(|ended| judge::RunSeen::of(ended, &secrets)).collect(),
        counters: sandbox.counters(),
        arrived_ms: sandbox.history().iter().map(|exchange| exchange.arrived_ms).collect(),
        elsewhere: elsewhere.counters().exchanges_received,
        faults_left: sandbox.settings().identity_token_faults.len(),
        argument_lists,
        bound: subject.bound,
    };
    let (judgement, evidence) = judge::judge(case, &seen);
    let said = ended.first().map_or_else(String::new, |ended| judge::without_secrets(&ended.stderr, &secrets));
    Ok(Row { case, judgement, evidence, said })
}

/// An empty CI job: the directories and variables of one case.
struct Job<'a> {
    subject: &'a Subject,
    sandbox: &'a Sandbox,
    home: tempfile::TempDir,
    temporary: tempfile::TempDir,
}

impl<'a> Job<'a> {
    fn new(subject: &'a Subject, sandbox: &'a Sandbox) -> io::Result<Self> {
        let job = Self { subject, sandbox, home: tempfile::tempdir()?, temporary: tempfile::tempdir()? };
        job.replace_token()?;
        Ok(job)
    }

    /// Replaces the token file atomically with a new identity token, as a rotating platform does.
    fn replace_token(&self) -> io::Result<()> {
        if self.subject.source.has_file() {
            let mut file = tempfile::NamedTempFile::new_in(self.temporary.path())?;
            file.write_all(self.sandbox.issue_identity_token().as_bytes())?;
            file.persist(self.token_file())?;
        }
        Ok(())
    }

    fn token_file(&self) -> std::path::PathBuf {
        self.temporary.path().join("identity-token")
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let source = self.subject.source;
        let of_the_sandbox = self.sandbox.environment().into_iter();
        let wanted = of_the_sandbox.filter(|(name, _)| source.has_endpoint() || !name.starts_with("ACTIONS_"));
        let mut variables: Vec<(OsString, OsString)> =
            self.subject.environment.iter().filter(|(name, _)| is_inherited(name)).cloned().collect();
        variables.extend(wanted.map(|(name, value)| (name.into(), value.into())));
        for (names, path) in [
            (&["HOME", "USERPROFILE"][..], self.home.path()),
            (&["TMPDIR", "TMP", "TEMP", "RUNNER_TEMP"], self.temporary.path()),
        ] {
            variables.extend(names.iter().map(|name| ((*name).into(), path.into())));
        }
        if source.has_file() {
            variables.push(("ANTHROPIC_IDENTITY_TOKEN_FILE".into(), self.token_file().into()));
        }
        variables
    }

    /// Runs the command `runs` times in parallel, each until it ends or reaches its limit.
    fn run(&self, runs: usize, pause: Pause<'_>, lists: &mut Option<ArgumentLists>) -> io::Result<Vec<Ended>> {
        // Short compared to a client's run, and long compared to reading all argument lists.
        const TICK: Duration = Duration::from_millis(10);
        let begin = clock::monotonic();
        let environment = self.environment();
        let start = |_| Running::start(&self.subject.command, &environment, self.home.path());
        let mut running: Vec<Running> = (0..runs).map(start).collect::<io::Result<_>>()?;
        while running.iter_mut().any(|process| !process.has_ended()) && begin.elapsed() < self.subject.bound {
            if let Some(lists) = lists {
                let leaders: Vec<u32> = running.iter().map(Running::id).collect();
                lists.look(Path::new("/proc"), &leaders, &self.sandbox.secrets());
            }
            pause(TICK)?;
        }
        running.into_iter().map(Running::end).collect()
    }
}

/// Whether a client under trial may have this variable of ours: what it needs to start, and nothing that would lead it
/// to other credentials, other state or another network.
fn is_inherited(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_ascii_uppercase();
    let foreign = ["ANTHROPIC_", "ACTIONS_ID_TOKEN_", "WIFSHARE_", "XDG_", "GITHUB_", "AWS_", "GOOGLE_"];
    let alone = [
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CONFIG_DIR",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
        "CLAUDECODE",
    ];
    !(foreign.iter().any(|prefix| name.starts_with(prefix)) || alone.contains(&&*name) || name.ends_with("_PROXY"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_parses_from_its_name() {
        for case in Case::ALL {
            assert_eq!(case.name().parse(), Ok(case));
        }
        assert_eq!("one".parse::<Case>(), Err(UnknownCase));
        assert!(UnknownCase.to_string().contains("same-token-twice"));
    }

    #[test]
    fn client_inherits_environment_without_credentials() {
        for (name, expected) in [
            ("PATH", true),
            ("LANG", true),
            ("IS_SANDBOX", true),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", true),
            ("ANTHROPIC_API_KEY", false),
            ("ANTHROPIC_PROFILE", false),
            ("ACTIONS_ID_TOKEN_REQUEST_URL", false),
            ("CLAUDE_CODE_OAUTH_TOKEN", false),
            ("WIFSHARE_STATE_DIR", false),
            ("GITHUB_ACTIONS", false),
            ("https_proxy", false),
            ("NO_PROXY", false),
        ] {
            assert_eq!(is_inherited(OsStr::new(name)), expected, "{name}");
        }
    }
}
