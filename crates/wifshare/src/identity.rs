//! Where identity tokens come from, how one is asked for, and whether it can be asked again.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use http::{Method, StatusCode, Uri, header};
use serde::Deserialize;

use crate::clock::{Clock, Interrupted};
use crate::environment::Environment;
use crate::identity_token::{self, IdentityToken, Malformed};
use crate::message::{Body, Request, Response, safe_text, status_text};
use crate::secret::Secret;
use crate::step::{Step, Watch};

mod github;

/// The platforms that a job can be recognised by, in the order in which they are looked for.
const PLATFORMS: [fn(&Environment, &str) -> Detected; 1] = [github::detect];

/// Where a job's identity tokens come from.
#[derive(Clone, Debug)]
pub enum IdentitySource {
    /// An endpoint of the CI that issues a new token for each request.
    Endpoint(Endpoint),
    /// A program that prints a token. It is started directly, without a shell, and only where the user named it.
    Command {
        /// The program and its arguments.
        argv: Vec<OsString>,
        /// The variables it is started with.
        environment: Environment,
    },
    /// A file that holds a token and that somebody may replace, such as a projected Kubernetes token. It is read anew
    /// each time.
    File(PathBuf),
    /// One token, handed to the job in a variable.
    Given(Secret),
}

/// A CI's endpoint for identity tokens.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The platform's name as people say it.
    pub platform: &'static str,
    /// The URL, audience included.
    pub url: Uri,
    /// What the platform gave the job to authenticate with; it can buy any number of identity tokens.
    pub bearer: Secret,
    /// What to do when the platform refuses.
    pub refusal_hint: &'static str,
}

/// What a source can do after it has handed out a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supply {
    /// A new token whenever it is asked.
    Remintable,
    /// A new token when somebody replaces the old one.
    Rotating,
    /// That many tokens, and no more.
    Fixed(usize),
}

/// What a look at the environment found.
#[derive(Clone, Debug)]
pub enum Detected {
    /// The job does not run there.
    Absent,
    /// The job runs there and can have identity tokens.
    Source(IdentitySource),
    /// The job runs there, and the platform withholds identity tokens from it.
    Withheld {
        /// What was found and what is missing.
        reason: String,
        /// The cure.
        hint: String,
    },
    /// The job runs there, and what the platform gave it did not arrive whole.
    Broken {
        /// What was found and what is missing.
        reason: String,
        /// The cure.
        hint: String,
    },
}

/// Why no identity token could be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The endpoint could not be reached, or its answer did not arrive.
    #[error("asked {platform} for an identity token and got no answer from {host}")]
    Unreachable {
        /// The platform's name.
        platform: &'static str,
        /// The endpoint's host.
        host: String,
        /// The last failure.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The endpoint refused.
    #[error("{platform} refused to issue an identity token (HTTP {}{message})", status_text(*status))]
    Refused {
        /// The platform's name.
        platform: &'static str,
        /// The status of its answer.
        status: StatusCode,
        /// What it said, safe to show, with a separator before it; may be empty.
        message: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The endpoint answered something that holds no token.
    #[error("{platform} answered the request for an identity token with something else: {what}")]
    Unexpected {
        /// The platform's name.
        platform: &'static str,
        /// What was wrong.
        what: &'static str,
    },
    /// The token file could not be read.
    #[error("could not read the identity token file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The command could not be started or did not end well.
    #[error("the identity command `{program}` failed: {what}")]
    Command {
        /// The program, without its arguments.
        program: String,
        /// What happened.
        what: String,
    },
    /// What the source handed out is no identity token.
    #[error("what {origin} handed out is no identity token: {reason}")]
    Malformed {
        /// The source, in words.
        origin: String,
        /// What is wrong with it.
        reason: Malformed,
    },
    /// The wait between two tries was cut short.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Finds the source that the environment names: a token file first, a token in a variable next, then the platforms.
/// `audience` is for whom the token shall be meant, where the platform can be told.
pub fn detect(environment: &Environment, audience: &str) -> Detected {
    if let Some(path) = environment.os("ANTHROPIC_IDENTITY_TOKEN_FILE") {
        return Detected::Source(IdentitySource::File(path.into()));
    }
    if let Some(token) = environment.text("ANTHROPIC_IDENTITY_TOKEN") {
        return Detected::Source(IdentitySource::Given(Secret::new(token.to_owned())));
    }
    PLATFORMS
        .iter()
        .map(|platform| platform(environment, audience))
        .find(|detected| !matches!(detected, Detected::Absent))
        .unwrap_or(Detected::Absent)
}

impl IdentitySource {
    /// What it can do after it has handed out a token.
    pub fn supply(&self) -> Supply {
        match self {
            IdentitySource::Endpoint(_) | IdentitySource::Command { .. } => Supply::Remintable,
            IdentitySource::File(_) => Supply::Rotating,
            IdentitySource::Given(_) => Supply::Fixed(1),
        }
    }

    /// What it is, in words, safe to show: "GitHub Actions", "the file /run/token".
    pub fn description(&self) -> String {
        match self {
            IdentitySource::Endpoint(endpoint) => endpoint.platform.to_owned(),
            IdentitySource::Command { argv, .. } => format!("the command `{}`", program(argv)),
            IdentitySource::File(path) => format!("the file {}", path.display()),
            IdentitySource::Given(_) => "the variable ANTHROPIC_IDENTITY_TOKEN".to_owned(),
        }
    }

    /// What distinguishes it from other sources, for the key under which its credential is shared. A given token is
    /// known by issuer and subject, so that a job keeps its credential when the CI hands it a newer token.
    pub fn identity(&self) -> String {
        match self {
            IdentitySource::Endpoint(endpoint) => format!("endpoint {}", endpoint.url),
            IdentitySource::Command { argv, .. } => format!("command {argv:?}"),
            IdentitySource::File(path) => format!("file {}", path.display()),
            IdentitySource::Given(token) => match IdentityToken::parse(token) {
                Ok(token) => format!("given {:?} {:?}", token.claims().issuer, token.claims().subject),
                Err(_) => "given".to_owned(),
            },
        }
    }

    /// Asks for an identity token. An endpoint is asked up to three times: asking spends nothing.
    ///
    /// `send` carries one request to the endpoint; its errors mean that no whole answer came back.
    pub fn token<E: std::error::Error + Send + Sync + 'static>(
        &self,
        send: impl Fn(Request) -> Result<Response, E>,
        clock: Clock,
        watch: Watch<'_>,
    ) -> Result<IdentityToken, IdentityError> {
        let text = match self {
            IdentitySource::Endpoint(endpoint) => endpoint.ask(send, clock, watch)?,
            IdentitySource::Command { argv, environment } => run(argv, environment, clock)?,
            IdentitySource::File(path) => {
                read(path).map_err(|source| IdentityError::File { path: path.clone(), source })?
            }
            IdentitySource::Given(token) => token.clone(),
        };
        let malformed = |reason| IdentityError::Malformed { origin: self.description(), reason };
        IdentityToken::parse(&text).map_err(malformed)
    }
}

impl IdentityError {
    /// What the person at the terminal can do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            IdentityError::Unreachable { .. } => {
                "look whether this host reaches it; HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE are honoured"
            }
            IdentityError::Refused { hint, .. } => hint,
            IdentityError::Unexpected { .. } => {
                "something between this host and the platform answers in its place; a proxy?"
            }
            IdentityError::File { .. } => {
                "ANTHROPIC_IDENTITY_TOKEN_FILE (or --identity-token-file) has to name a regular file that this user can read; \
                 for the output of a command there is --identity-command"
            }
            IdentityError::Command { .. } => {
                "run the command by hand; it has to print one identity token and exit with 0"
            }
            IdentityError::Malformed { reason: Malformed::Oversized(_), .. } => {
                "ask the identity provider for a token with fewer claims"
            }
            IdentityError::Malformed { .. } => {
                "the source has to hold one OIDC identity token and nothing else; look who writes it"
            }
            IdentityError::Interrupted(_) => return None,
        };
        Some(text.to_owned())
    }

    /// Whether the same question may be answered differently in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(self, IdentityError::Unreachable { .. })
    }
}

impl Endpoint {
    fn ask<E: std::error::Error + Send + Sync + 'static>(
        &self,
        send: impl Fn(Request) -> Result<Response, E>,
        clock: Clock,
        watch: Watch<'_>,
    ) -> Result<Secret, IdentityError> {
        const TRIES: u32 = 3;
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match send(self.request()) {
                Ok(response) if response.status().is_server_error() || response.status() == 429 => {
                    self.refusal(&response)
                }
                Ok(response) => return self.parse(&response),
                Err(error) => IdentityError::Unreachable {
                    platform: self.platform,
                    host: self.url.host().unwrap_or_default().to_owned(),
                    source: Box::new(error),
                },
            };
            if tries == TRIES {
                return Err(failure);
            }
            let pause = pause_after(tries);
            watch(&Step::Retrying { cause: failure.to_string(), pause });
            (clock.pause)(pause)?;
        }
    }

    fn request(&self) -> Request {
        http::Request::builder()
            .method(Method::GET)
            .uri(self.url.clone())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.bearer.expose()))
            .header(header::ACCEPT, "application/json")
            .body(Body::default())
            .expect("the parts were parsed when the source was detected")
    }

    fn parse(&self, response: &Response) -> Result<Secret, IdentityError> {
        #[derive(Deserialize)]
        struct Answer {
            value: String,
        }
        if response.status().is_redirection() {
            return Err(self.unexpected("a redirect, which is not followed"));
        }
        if !response.status().is_success() {
            return Err(self.refusal(response));
        }
        let answer: Answer = serde_json::from_slice(response.body())
            .map_err(|_| self.unexpected("JSON with a text in `value` was expected"))?;
        Ok(Secret::new(answer.value))
    }

    fn unexpected(&self, what: &'static str) -> IdentityError {
        IdentityError::Unexpected { platform: self.platform, what }
    }

    fn refusal(&self, response: &Response) -> IdentityError {
        #[derive(Deserialize)]
        struct Answer {
            message: String,
        }
        let message = serde_json::from_slice(response.body())
            .map(|Answer { message }| format!(": {}", safe_text(&message)))
            .unwrap_or_default();
        let status = response.status();
        let hint = match status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            true => "the platform is busy or broken: try again in a while, and look at its status page",
            false => self.refusal_hint,
        };
        IdentityError::Refused { platform: self.platform, status, message, hint }
    }
}

/// A growing pause with up to a half of jitter, so that a fleet does not knock in step.
fn pause_after(tries: u32) -> Duration {
    let whole = Duration::from_millis(250) * 2u32.pow(tries);
    whole.mul_f64(1.0 - fastrand::f64() / 2.0)
}

fn read(path: &Path) -> io::Result<Secret> {
    let mut options = OpenOptions::new();
    options.read(true);
    // A FIFO without a writer must not hang us; links are followed, as Kubernetes mounts its tokens by them.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, rustix::fs::OFlags::NONBLOCK.bits() as i32);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    text(file)
}

/// Reads a little more than the largest token, so that an oversized one is recognised as such and read no further.
fn text(source: impl Read) -> io::Result<Secret> {
    let mut text = zeroize::Zeroizing::new(String::new());
    source.take(identity_token::LARGEST as u64 + 1024).read_to_string(&mut text)?;
    Ok(Secret::new(std::mem::take(&mut *text)))
}

fn program(argv: &[OsString]) -> String {
    argv.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default()
}

fn run(argv: &[OsString], environment: &Environment, clock: Clock) -> Result<Secret, IdentityError> {
    const PATIENCE: Duration = Duration::from_secs(30);
    const LOOK: Duration = Duration::from_millis(10);
    let failed = |what: String| IdentityError::Command { program: program(argv), what };
    let (first, rest) = argv.split_first().ok_or_else(|| failed("it is empty".to_owned()))?;
    let mut child = Command::new(first)
        .args(rest)
        .env_clear()
        .envs(environment.iter())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("it could not be started: {error}")))?;
    let stdout = child.stdout.take().expect("it was piped above");
    // Its output is read beside the wait: a command that prints more than a pipe holds would never end otherwise.
    let reader = std::thread::spawn(move || text(stdout));
    let start = (clock.monotonic)();
    let status: Option<ExitStatus> = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            // As process 1 we bury every child as it comes, and somebody was faster. Its output will tell.
            Err(_) => break None,
            Ok(None) if (clock.monotonic)() - start > PATIENCE => {
                end(&mut child);
                return Err(failed(format!("it was still running after {} s and was ended", PATIENCE.as_secs())));
            }
            Ok(None) => {
                if let Err(interrupted) = (clock.pause)(LOOK) {
                    end(&mut child);
                    return Err(interrupted.into());
                }
            }
        }
    };
    if let Some(status) = status.filter(|status| !status.success()) {
        return Err(failed(status.to_string()));
    }
    // A grandchild may hold the pipe open for ever; the token was printed by the time that the command ended.
    while !reader.is_finished() && (clock.monotonic)() - start <= PATIENCE {
        (clock.pause)(LOOK)?;
    }
    if !reader.is_finished() {
        return Err(failed("it left a process behind that keeps its output open".to_owned()));
    }
    match reader.join() {
        Ok(text) => text.map_err(|error| failed(format!("its output is not text: {error}"))),
        Err(_) => Err(failed("its output could not be read".to_owned())),
    }
}

fn end(child: &mut std::process::Child) {
    // It may have ended meanwhile; there is nobody left to tell.
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint {
            platform: "Test CI",
            url: Uri::from_static("https://ci.invalid/token"),
            bearer: Secret::new("b".to_owned()),
            refusal_hint: "hint",
        }
    }

    fn answer(status: u16, body: &str) -> Response {
        let mut response = Response::new(Body::new(body.as_bytes().to_vec()));
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        response
    }

    const QUICK: Clock =
        Clock { wall: || std::time::SystemTime::UNIX_EPOCH, monotonic: || Duration::ZERO, pause: |_| Ok(()) };

    #[test]
    fn an_endpoint_is_asked_three_times_when_it_is_busy_and_once_when_it_refuses() {
        for (status, asked) in [(500, 3), (429, 3), (401, 1), (403, 1), (302, 1), (200, 1)] {
            let count = std::cell::Cell::new(0);
            let send = |_| {
                count.set(count.get() + 1);
                Ok::<_, io::Error>(answer(status, "{}"))
            };
            assert!(endpoint().ask(send, QUICK, &|_| {}).is_err());
            assert_eq!(count.get(), asked, "status {status}");
        }
    }

    #[test]
    fn a_busy_endpoint_that_recovers_is_forgiven() {
        let count = std::cell::Cell::new(0);
        let send = |_| {
            count.set(count.get() + 1);
            match count.get() {
                1 => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                2 => Ok(answer(503, "")),
                _ => Ok(answer(200, r#"{"count":1,"value":"t"}"#)),
            }
        };
        assert_eq!(endpoint().ask(send, QUICK, &|_| {}).expect("the third try").expose(), "t");
    }

    #[test]
    fn what_the_platform_says_is_shown_without_anything_like_a_token() {
        let send = |_| Ok::<_, io::Error>(answer(403, r#"{"message":"no eyJhbGci.eyJzdWIi.c2ln for you"}"#));
        let error = endpoint().ask(send, QUICK, &|_| {}).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "Test CI refused to issue an identity token (HTTP 403 Forbidden: no [redacted] for you)"
        );
    }

    #[test]
    fn a_command_is_run_without_a_shell_and_its_failure_is_told() {
        let argv = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let environment = Environment::from_iter([("PATH", "/usr/bin:/bin"), ("T", "abc")]);
        let clock = Clock::system();
        let printed = run(&argv(&["sh", "-c", "printf $T"]), &environment, clock).expect("it prints");
        assert_eq!(printed.expose(), "abc");
        let error = run(&argv(&["sh", "-c", "exit 3"]), &environment, clock).expect_err("it fails");
        assert_eq!(error.to_string(), "the identity command `sh` failed: exit status: 3");
        assert!(run(&argv(&["/nonexistent/x"]), &environment, clock).is_err());
        let endless = run(&argv(&["sh", "-c", "yes"]), &environment, clock);
        assert!(endless.is_err(), "a command that prints without end loses its reader and dies");
    }
}
