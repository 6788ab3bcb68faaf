//! The sources of identity tokens: how to find one, how to request a token, and whether another one can be requested.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::StatusCode;

use crate::clock::{Clock, Interrupted};
use crate::http::CertificateFault;
use crate::identity_token::{self, IdentityToken, Malformed};
use crate::message::{Request, Response, status_text, whole_message};
use crate::private_file;
use crate::progress::Observer;
use crate::resource;
use crate::secret::Secret;

mod answer;
mod command;
mod detection;
mod endpoint;
mod job;
mod outlook;
mod variables;
// Platforms, one file each: how to detect them, and how to request a token.
mod aws;
mod azure;
mod azure_pipelines;
mod bitbucket;
mod buildkite;
mod circleci;
mod github;
mod gitlab;
mod google_cloud;
mod kubernetes;
mod spiffe;

pub use answer::Answer;
pub use command::IdentityCommand;
pub use detection::{DetectionInput, FixedEndpoints};
pub use endpoint::{Endpoint, NamedBy, Network, Question};
pub use job::{Job, job};
pub use outlook::RenewalOutlook;
pub use variables::TokenVariable;

/// A platform that issues identity tokens.
struct Platform {
    /// The name for [`choose`].
    name: &'static str,
    look: fn(&DetectionInput<'_>) -> Detected,
}

/// The platforms, in order of detection: first the CIs, because a job runs in only one; then what was set up for this
/// workload; last what every workload of a cloud can use. A platform that withholds its tokens ends the search, so that
/// a pull request from a fork does not sign in as the machine that it runs on.
const PLATFORMS: [Platform; 13] = [
    Platform { name: "github-actions", look: github::look },
    Platform { name: "gitlab", look: gitlab::look },
    Platform { name: "bitbucket", look: bitbucket::look },
    Platform { name: "circleci", look: circleci::look },
    Platform { name: "buildkite", look: buildkite::look },
    Platform { name: "azure-pipelines", look: azure_pipelines::look },
    Platform { name: "kubernetes", look: kubernetes::look },
    Platform { name: "azure-workload-identity", look: azure::look_for_workload_identity },
    Platform { name: "azure-app-service", look: azure::look_for_app_service },
    Platform { name: "google-cloud", look: google_cloud::look },
    Platform { name: "aws", look: aws::look },
    Platform { name: "spiffe", look: spiffe::look },
    // No variable indicates it. It is used only if the user chooses it.
    Platform { name: "azure-vm", look: azure::look_for_vm },
];

/// The variables with which a CI's job requests identity tokens. Children do not inherit them, whatever the source.
/// Those of a cloud are removed only if that cloud is the source ([`IdentitySource::variables`]).
const OF_THE_CIS: [&[&str]; 5] = [
    &github::VARIABLES,
    &bitbucket::VARIABLES,
    &circleci::VARIABLES,
    &buildkite::VARIABLES,
    &azure_pipelines::VARIABLES,
];

/// A source of identity tokens.
#[derive(Clone, Debug)]
pub enum IdentitySource {
    /// An endpoint of the platform.
    Endpoint(Endpoint),
    /// A program that prints a token, started without a shell. It is used only if the user named it, or if the
    /// variables of a platform indicate it.
    Command(IdentityCommand),
    /// A file with a token, which another program can replace. It is read again for each token.
    File {
        /// The path of the file.
        path: PathBuf,
        /// What to do if it cannot be read.
        hint: &'static str,
    },
    /// Tokens in variables of the job.
    Variables(Vec<TokenVariable>),
}

/// Whether a source issues another token after the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reissue {
    /// A new token for each request.
    OnDemand,
    /// A new token after another program has replaced the old one.
    Rotated,
    /// This number of tokens, and no more.
    Limited(usize),
}

/// The result of detection.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "made once at the start, and taken apart at once")]
pub enum Detected {
    /// The job does not run on the platform.
    Absent,
    /// The job runs on the platform, and can get identity tokens.
    Source(IdentitySource),
    /// The job runs on the platform, which withholds identity tokens from it.
    Withheld {
        /// What was found, and what is missing.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// The job runs on the platform, but the platform's variables or files are incomplete.
    Broken {
        /// What was found, and what is missing.
        reason: String,
        /// What to do about it.
        hint: String,
    },
}

impl Detected {
    fn withheld(reason: &str, hint: &str) -> Detected {
        Detected::Withheld { reason: reason.to_owned(), hint: hint.to_owned() }
    }

    fn broken(reason: &str, hint: &str) -> Detected {
        Detected::Broken { reason: reason.to_owned(), hint: hint.to_owned() }
    }
}

/// Why no identity token is available.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The endpoint could not be reached, or its response did not arrive.
    #[error("asked {platform} for an identity token and got no answer from {host}")]
    Unreachable {
        /// The platform's name.
        platform: &'static str,
        /// The endpoint's host.
        host: String,
        /// The network of the endpoint.
        network: Network,
        /// The last error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The endpoint refused the request.
    #[error("{platform} refused to issue an identity token (HTTP {}{message})", status_text(*status))]
    Refused {
        /// The platform's name.
        platform: &'static str,
        /// The status of the response.
        status: StatusCode,
        /// The endpoint's message, safe to print, with a leading separator. It can be empty.
        message: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The endpoint's response contains no token.
    #[error("{platform} answered the request for an identity token with something else: {what}")]
    Unexpected {
        /// The platform's name.
        platform: &'static str,
        /// What is wrong with it.
        what: String,
        /// The network of the endpoint.
        network: Network,
    },
    /// The token file could not be read.
    #[error("could not read the identity token file {}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The command could not be started, or failed.
    #[error("the identity command `{program}` failed: {what}")]
    Command {
        /// The program, without its arguments.
        program: String,
        /// What happened.
        what: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The text from the source is not an identity token.
    #[error("the text from {origin} is not an identity token: {reason}")]
    Malformed {
        /// A description of the source.
        origin: String,
        /// What is wrong with the text.
        reason: Malformed,
    },
    /// The wait between two tries was interrupted.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Finds the source: a token file, then tokens in variables, then the platforms.
pub fn detect(input: &DetectionInput<'_>) -> Detected {
    if let Some(path) = input.environment.os("ANTHROPIC_IDENTITY_TOKEN_FILE") {
        return Detected::Source(IdentitySource::file(path.into()));
    }
    match variables::detect(input.environment) {
        Detected::Absent => {}
        detected => return detected,
    }
    PLATFORMS
        .iter()
        .map(|platform| (platform.look)(input))
        .find(|detected| !matches!(detected, Detected::Absent))
        .unwrap_or(Detected::Absent)
}

/// Checks only this platform. Returns `None` if no platform has this name.
pub fn choose(name: &str, input: &DetectionInput<'_>) -> Option<Detected> {
    let platform = PLATFORMS.iter().find(|platform| platform.name == name)?;
    let is_elsewhere = matches!((platform.look)(input), Detected::Absent);
    let explained = |reason| format!("{name} was named, and nothing says that this job runs there: {reason}");
    Some(match (platform.look)(&DetectionInput { is_chosen: true, ..*input }) {
        Detected::Withheld { reason, hint } if is_elsewhere => Detected::Withheld { reason: explained(reason), hint },
        Detected::Broken { reason, hint } if is_elsewhere => Detected::Broken { reason: explained(reason), hint },
        detected => detected,
    })
}

/// The names for [`choose`], in the order of [`detect`].
pub fn platforms() -> impl Iterator<Item = &'static str> {
    PLATFORMS.iter().map(|platform| platform.name)
}

/// The variables with which the jobs of CIs request identity tokens.
pub fn variables_of_the_cis() -> impl Iterator<Item = &'static str> {
    OF_THE_CIS.iter().flat_map(|names| names.iter()).copied()
}

impl IdentitySource {
    /// A file that the user named.
    pub fn file(path: PathBuf) -> IdentitySource {
        let hint = "ANTHROPIC_IDENTITY_TOKEN_FILE (or --identity-token-file) has to name a regular file that this user can read; \
                    for the output of a command there is --identity-command";
        IdentitySource::File { path, hint }
    }

    /// Whether the source can issue another token.
    pub fn reissue(&self) -> Reissue {
        match self {
            IdentitySource::Endpoint(_) | IdentitySource::Command(_) => Reissue::OnDemand,
            IdentitySource::File { .. } => Reissue::Rotated,
            IdentitySource::Variables(tokens) => Reissue::Limited(tokens.len()),
        }
    }

    /// Whether the source returns the same token until it is old, as metadata services do. Such a token without a `jti`
    /// can be sent more than once, because the token endpoint checks only the `jti`.
    pub fn repeats(&self) -> bool {
        match self {
            IdentitySource::Endpoint(endpoint) => endpoint.repeats,
            IdentitySource::Command(program) => program.repeats,
            IdentitySource::File { .. } | IdentitySource::Variables(_) => false,
        }
    }

    /// The network of the source.
    pub fn network(&self) -> Network {
        match self {
            IdentitySource::Endpoint(endpoint) => endpoint.network,
            IdentitySource::Command(_) | IdentitySource::File { .. } | IdentitySource::Variables(_) => Network::Routed,
        }
    }

    /// A description of the source, safe to print: "GitHub Actions", "the file /run/token".
    pub fn description(&self) -> String {
        match self {
            IdentitySource::Endpoint(endpoint) => endpoint.platform.to_owned(),
            IdentitySource::Command(IdentityCommand { platform: Some(platform), .. }) => (*platform).to_owned(),
            IdentitySource::Command(program) => format!("the command `{}`", program.name()),
            IdentitySource::File { path, .. } => format!("the file {}", path.display()),
            IdentitySource::Variables(tokens) => variables::described(tokens),
        }
    }

    /// The part of the identity key that distinguishes this source from others. Tokens in variables count by issuer and
    /// subject, so that a job keeps its credential when the CI provides a newer token.
    pub fn identity(&self) -> String {
        match self {
            IdentitySource::Endpoint(endpoint) => endpoint.identity(),
            IdentitySource::Command(program) => program.identity(),
            IdentitySource::File { path, .. } => format!("file {}", path.display()),
            IdentitySource::Variables(tokens) => format!("given {:?}", variables::principals(tokens)),
        }
    }

    /// Whether [`identity`](Self::identity) distinguishes jobs: it is unique to the job, or contains the issuer and
    /// subject.
    pub fn names_its_job(&self) -> bool {
        match self {
            IdentitySource::Endpoint(endpoint) => endpoint.named_by != NamedBy::Nothing,
            IdentitySource::Variables(_) => true,
            IdentitySource::Command(_) | IdentitySource::File { .. } => false,
        }
    }

    /// The variables with which a child could get its own identity token: those of every CI, and those of this source.
    /// `ANTHROPIC_IDENTITY_TOKEN` and its file are left to the delivery.
    pub fn variables(&self) -> Vec<String> {
        let own: Vec<String> = match self {
            IdentitySource::Endpoint(endpoint) => endpoint.variables.iter().map(|name| (*name).to_owned()).collect(),
            IdentitySource::Command(program) => program.variables.iter().map(|name| (*name).to_owned()).collect(),
            IdentitySource::File { .. } => Vec::new(),
            IdentitySource::Variables(tokens) => tokens.iter().map(|given| given.variable.clone()).collect(),
        };
        let of_the_cis = variables_of_the_cis().map(str::to_owned);
        let mut all: Vec<String> = of_the_cis.chain(own).filter(|name| name != "ANTHROPIC_IDENTITY_TOKEN").collect();
        all.sort();
        all.dedup();
        all
    }

    /// The current token in the file; `None` if it cannot be read, or if the source is not a file.
    pub(crate) fn file_token(&self) -> Option<IdentityToken> {
        match self {
            IdentitySource::File { path, .. } => IdentityToken::parse(&read(path).ok()?).ok(),
            IdentitySource::Endpoint(_) | IdentitySource::Command(_) | IdentitySource::Variables(_) => None,
        }
    }

    /// The number of tokens that can still be exchanged; `None` if the source can issue new ones.
    pub fn tokens_left(&self, is_spent: impl Fn(&IdentityToken) -> bool, now: SystemTime) -> Option<usize> {
        match self {
            IdentitySource::Variables(tokens) => Some(variables::unspent(tokens, is_spent, now).len()),
            IdentitySource::Endpoint(_) | IdentitySource::Command(_) | IdentitySource::File { .. } => None,
        }
    }

    /// Returns an identity token. Retries temporary failures of an endpoint or a platform's program for up to 20 s,
    /// because a request spends nothing. Of the tokens in variables, returns the first one that is not spent according
    /// to `is_spent`.
    ///
    /// `send` sends a request to the endpoint. Its errors mean that no complete response was received.
    ///
    /// # Errors
    /// No identity token is available. The error contains the reason and the source.
    pub fn token<E: std::error::Error + Send + Sync + 'static>(
        &self,
        is_spent: impl Fn(&IdentityToken) -> bool,
        send: impl Fn(Request) -> Result<Response, E>,
        clock: Clock,
        observer: Observer<'_>,
    ) -> Result<IdentityToken, IdentityError> {
        let text = match self {
            IdentitySource::Endpoint(endpoint) => endpoint.ask(send, clock, observer)?,
            IdentitySource::Command(program) => program.token(clock, observer)?,
            IdentitySource::File { path, hint } => {
                read(path).map_err(|source| IdentityError::File { path: path.clone(), hint, source })?
            }
            IdentitySource::Variables(tokens) => return variables::next(tokens, is_spent, clock.now()),
        };
        let malformed = |reason| IdentityError::Malformed { origin: self.description(), reason };
        IdentityToken::parse(&text).map_err(malformed)
    }
}

impl IdentityError {
    /// The certificate fault of the endpoint, if that is the reason.
    pub fn certificate(&self) -> Option<&CertificateFault> {
        match self {
            IdentityError::Unreachable { source, .. } => CertificateFault::find(&**source),
            _ => None,
        }
    }

    /// Instructions for the user.
    pub fn hint(&self) -> Option<String> {
        if let Some(fault) = self.certificate() {
            return Some(fault.cure());
        }
        let text = match self {
            IdentityError::Unreachable { source, .. } if resource::cure_in(&whole_message(&**source)).is_some() => {
                resource::cure_in(&whole_message(&**source)).unwrap_or_default()
            }
            IdentityError::File { source, .. } if resource::cure(source).is_some() => {
                resource::cure(source).unwrap_or_default()
            }
            IdentityError::Unreachable { network: Network::Routed, .. } => {
                "look whether this host reaches it; HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE are honoured"
            }
            IdentityError::Unreachable { network: Network::LinkLocal, .. } => {
                "look whether this is such a machine, and whether it lets this user or container reach its metadata service \
                 (no proxy is used for it); for another source there is --identity-source"
            }
            IdentityError::Refused { hint, .. } => hint,
            IdentityError::Unexpected { network: Network::LinkLocal, .. } => {
                "something else answers at that address; look whether this is such a machine"
            }
            IdentityError::Unexpected { network: Network::Routed, .. } => {
                "something between this host and the platform answers in its place; a proxy?"
            }
            IdentityError::File { hint, .. } | IdentityError::Command { hint, .. } => hint,
            IdentityError::Malformed { reason, .. } => return Some(reason.cure()),
            IdentityError::Interrupted(_) => return None,
        };
        Some(text.to_owned())
    }
}

fn read(path: &Path) -> io::Result<Secret> {
    // Follow symbolic links, because Kubernetes mounts its tokens with them.
    text(private_file::open_regular(path)?)
}

/// Reads slightly more than the largest token, so that a larger one is detected without reading all of it. Replaces
/// bytes that are not UTF-8; the replacement is invalid in a token.
fn text(source: impl Read) -> io::Result<Secret> {
    // Room for most tokens. A vector that grows leaves copies of its content in freed memory.
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(4096));
    source.take(identity_token::LARGEST as u64 + 1024).read_to_end(&mut bytes)?;
    let text = str::from_utf8(&bytes).map_or_else(|_| String::from_utf8_lossy(&bytes).into_owned(), str::to_owned);
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::detection::tests::look;
    use super::*;
    use crate::environment::Environment;

    fn detected(variables: &[(&str, &str)]) -> Detected {
        look(detect, variables, &[], false)
    }

    #[test]
    fn explicit_token_source_precedes_every_platform() {
        let platform =
            [("ACTIONS_ID_TOKEN_REQUEST_URL", "https://ci.invalid/t"), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t")];
        let with = |more: (&'static str, &'static str)| detected(&[platform[0], platform[1], more]);
        let Detected::Source(source) = with(("ANTHROPIC_IDENTITY_TOKEN_FILE", "/t")) else { panic!("found") };
        assert_eq!(source.description(), "the file /t");
        let Detected::Source(source) = with(("ANTHROPIC_IDENTITY_TOKEN", "t")) else { panic!("found") };
        assert_eq!(
            (source.description().as_str(), source.reissue()),
            ("the variable ANTHROPIC_IDENTITY_TOKEN", Reissue::Limited(1))
        );
        let Detected::Source(source) = detected(&platform) else { panic!("found") };
        assert_eq!((source.description().as_str(), source.reissue()), ("GitHub Actions", Reissue::OnDemand));
    }

    #[test]
    fn ci_that_withholds_its_tokens_ends_detection() {
        let job = [("GITHUB_ACTIONS", "true"), ("CLOUD_RUN_JOB", "runner")];
        assert!(matches!(detected(&job), Detected::Withheld { .. }), "the machine's own identity is not the fork's");
        assert!(matches!(detected(&job[1..]), Detected::Source(_)));
        assert!(matches!(detected(&[]), Detected::Absent));
    }

    #[test]
    fn every_platform_can_be_chosen_or_explains_why_not() {
        let environment = Environment::default();
        let input = DetectionInput {
            environment: &environment,
            audience: "a",
            endpoints: &FixedEndpoints::default(),
            exists: &|_| false,
            is_chosen: false,
        };
        for name in platforms() {
            match choose(name, &input) {
                Some(Detected::Source(source)) => {
                    assert_eq!(source.network(), Network::LinkLocal, "{name} needs nothing to speak for it");
                }
                Some(Detected::Withheld { reason, hint } | Detected::Broken { reason, hint }) => {
                    assert!(!reason.is_empty() && !hint.is_empty(), "{name}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(choose("GitHub", &input).is_none());
    }

    #[test]
    fn children_lose_ci_variables_and_those_of_the_source() {
        let names = IdentitySource::file("/t".into()).variables();
        for name in ["ACTIONS_ID_TOKEN_REQUEST_TOKEN", "CIRCLE_OIDC_TOKEN_V2", "SYSTEM_ACCESSTOKEN"] {
            assert!(names.iter().any(|found| found == name), "{name}");
        }
        assert!(!names.iter().any(|name| name == "AZURE_FEDERATED_TOKEN_FILE"), "another cloud's are left alone");
        let listed = [("WIFSHARE_IDENTITY_TOKEN_VARIABLES", "CLAUDE_A CLAUDE_B"), ("CLAUDE_A", "t"), ("CLAUDE_B", "t")];
        let Detected::Source(source) = detected(&listed) else { panic!("found") };
        assert!(source.variables().iter().any(|name| name == "CLAUDE_B"));
    }

    #[test]
    fn chosen_platform_is_named_only_if_the_job_runs_elsewhere() {
        let chosen = |name: &str, variables: &[(&str, &str)]| {
            let environment: Environment = variables.iter().copied().collect();
            let endpoints = FixedEndpoints::default();
            let input = DetectionInput {
                environment: &environment,
                audience: "a",
                endpoints: &endpoints,
                exists: &|_| false,
                is_chosen: false,
            };
            choose(name, &input).expect("a platform")
        };
        let reason = |detected| match detected {
            Detected::Withheld { reason, .. } | Detected::Broken { reason, .. } => reason,
            other => panic!("{other:?}"),
        };
        let mut elsewhere = 0;
        for name in platforms() {
            if let Detected::Withheld { reason, .. } | Detected::Broken { reason, .. } = chosen(name, &[]) {
                assert!(reason.starts_with(&format!("{name} was named")), "{reason}");
                elsewhere += 1;
            }
        }
        assert!(elsewhere > 0, "some platforms need what speaks for them");
        let withheld = chosen("github-actions", &[("GITHUB_ACTIONS", "true")]);
        assert!(matches!(withheld, Detected::Withheld { .. }));
        assert!(!reason(withheld).contains("was named"));
        let url = ("ACTIONS_ID_TOKEN_REQUEST_URL", "http://ci.invalid/t");
        let broken = chosen("github-actions", &[url, ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t")]);
        assert!(matches!(broken, Detected::Broken { .. }), "{broken:?}");
        assert!(!reason(broken).contains("was named"));
    }

    #[test]
    fn tokens_left_counts_the_unspent_given_tokens() {
        let token = |jti: &str| {
            let part = |json: String| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, json);
            let claims = part(format!(r#"{{"iss":"i","sub":"s","exp":4102444800,"jti":"{jti}"}}"#));
            format!("{}.{claims}.c2ln", part(r#"{"alg":"RS256"}"#.to_owned()))
        };
        let (one, two, three) = (token("1"), token("2"), token("3"));
        let variables = [
            ("WIFSHARE_IDENTITY_TOKEN_VARIABLES", "CLAUDE_A CLAUDE_B CLAUDE_C"),
            ("CLAUDE_A", one.as_str()),
            ("CLAUDE_B", &two),
            ("CLAUDE_C", &three),
        ];
        let Detected::Source(given) = detected(&variables) else { panic!("found") };
        let now = SystemTime::UNIX_EPOCH;
        let left = |spent: &[&str]| {
            given.tokens_left(|token| spent.contains(&token.claims().jti.as_deref().expect("an id")), now)
        };
        assert_eq!(
            (left(&[]), left(&["2"]), left(&["1", "2"]), left(&["1", "2", "3"])),
            (Some(3), Some(2), Some(1), Some(0))
        );
        let file = IdentitySource::file("/t".into());
        assert_eq!(file.tokens_left(|_| false, now), None);
        assert!(!file.repeats() && !given.repeats());
    }

    #[test]
    fn token_is_read_up_to_just_over_the_largest_size() {
        let read = |length: usize| text(io::repeat(b'x').take(length as u64)).expect("read").expose().len();
        let most = identity_token::LARGEST + 1024;
        assert_eq!((read(most), read(most + 1)), (most, most));
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(super::read(directory.path()).map(|_| ()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
