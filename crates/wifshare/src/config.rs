//! Parses inputs and environment into a validated configuration that later code can trust.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use sha2::{Digest, Sha256};

use crate::code::Code;
use crate::environment::Environment;
use crate::exchange::Grant;
use crate::hexadecimal::hexadecimal;
use crate::http::HttpClient;
use crate::id::{self, BadForm};
use crate::identity::{
    self, Detected, DetectionInput, FixedEndpoints, IdentityCommand, IdentitySource, Job, Network, Reissue,
};
use crate::message;
use crate::principal::{OwnPrincipal, Principal};
use crate::store::{self, Location, Memory, Store};
use crate::subject::SubjectPattern;
use crate::wrapping::Wrapping;

mod state_directory;

pub use state_directory::state_directory;

/// Values from the command line. They take precedence over the environment.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The API's base URL (`ANTHROPIC_BASE_URL`).
    pub base_url: Option<String>,
    /// The federation rule (`ANTHROPIC_FEDERATION_RULE_ID`).
    pub federation_rule_id: Option<String>,
    /// The organisation (`ANTHROPIC_ORGANIZATION_ID`).
    pub organization_id: Option<String>,
    /// The service account (`ANTHROPIC_SERVICE_ACCOUNT_ID`).
    pub service_account_id: Option<String>,
    /// The workspace (`ANTHROPIC_WORKSPACE_ID`).
    pub workspace_id: Option<String>,
    /// The audience to request in the identity token (`ANTHROPIC_OIDC_AUDIENCE`).
    pub audience: Option<String>,
    /// A file that holds the identity token (`ANTHROPIC_IDENTITY_TOKEN_FILE`).
    pub identity_token_file: Option<PathBuf>,
    /// A command that prints an identity token. There is no variable for it, because a checked-out repository must not
    /// be able to start a program of its own.
    pub identity_command: Option<Vec<OsString>>,
    /// The name of the platform to use (see [`platforms`](crate::platforms)), regardless of the environment. There is
    /// no variable for it, because it may start a program.
    pub identity_source: Option<String>,
    /// The subject that the identity token must have (`WIFSHARE_EXPECT_SUBJECT`).
    pub expected_subject: Option<SubjectPattern>,
    /// The fixed endpoints and paths of the platforms.
    pub endpoints: FixedEndpoints,
    /// The state directory (`WIFSHARE_STATE_DIR`).
    pub state_dir: Option<PathBuf>,
    /// The base of relative paths. A child may have a different working directory, and a key must always mean the same
    /// file.
    pub working_directory: PathBuf,
}

/// What a configuration is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An exchange: every required setting must be present.
    Exchange,
    /// An identity token for clients that exchange it with the operator's own profile, which names the rule.
    IdentityToken,
}

/// The parsed settings of an exchange.
#[derive(Clone, Debug)]
pub struct Config {
    /// The API's base URL, without a trailing slash.
    pub base_url: String,
    /// The parameters of the exchange. For [`Purpose::IdentityToken`], rule and organisation may be empty; the request
    /// is then never sent.
    pub grant: Grant,
    /// The audience of the identity token.
    pub audience: String,
    /// The display-only scope (`ANTHROPIC_SCOPE`); part of the published profile directory's fingerprint.
    pub scope: Option<String>,
    /// The subject that the identity token must have.
    pub expected_subject: Option<SubjectPattern>,
    /// Where identity tokens come from.
    pub source: IdentitySource,
    /// The CI job that this process belongs to, if the CI identifies it.
    pub job: Job,
    /// The principal that this process acts for, once it is known.
    pub principal: OwnPrincipal,
    /// Where the credential is stored. If the [`proof`](Config::proof) is a token, the end of the key is derived from
    /// the token's claims: see [`store`](Config::store).
    pub location: Location,
    /// Stores the credential in memory instead of a file, if set.
    pub memory: Option<Memory>,
}

/// What a process must prove before it may use a credential that another process obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing more: the identity key includes the job, or the principal itself.
    Key,
    /// An identity token with the same issuer and subject as the token that was exchanged for the credential.
    Token,
}

/// Authentication that the operator set up and that wifshare leaves unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExistingAuth {
    /// None.
    None,
    /// This variable holds a credential that every client prefers to federation (docs/reference/protocol.md §3.1 and
    /// §3.2).
    Shadowed(&'static str),
    /// This variable selects the operator's own profile.
    OwnProfile(&'static str),
    /// `ANTHROPIC_CONFIG_DIR` and complete federation variables are set, and no profile is named. The variables win
    /// (docs/reference/protocol.md §3.4). SDKs from before October 2026 would have used the active profile of that
    /// directory.
    UnnamedProfile,
}

/// Why the configuration is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No federation setting is set.
    #[error(
        "workload identity federation is not configured: ANTHROPIC_FEDERATION_RULE_ID and ANTHROPIC_ORGANIZATION_ID are not set"
    )]
    Unconfigured,
    /// Some federation settings are set and one is missing.
    #[error("workload identity federation is configured only in part: {missing} is not set")]
    Incomplete {
        /// The missing variable.
        missing: &'static str,
    },
    /// No identity source was found, or the CI withholds the token from this job.
    #[error("no identity token can be had: {reason}")]
    NoSource {
        /// What was looked for.
        reason: String,
        /// An instruction for the user.
        hint: String,
    },
    /// An identity source was found, but a part of its setup is missing or wrong.
    #[error("no identity token can be had: {reason}")]
    BrokenSource {
        /// What was found.
        reason: String,
        /// An instruction for the user.
        hint: String,
    },
    /// No platform has this name.
    #[error("there is no identity source `{name}`")]
    UnknownSource {
        /// The given name, safe to show.
        name: String,
        /// The names of all platforms.
        known: String,
    },
    /// The base URL is invalid.
    #[error("the base URL `{url}` {what}")]
    BaseUrl {
        /// The given URL, safe to show.
        url: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A value cannot be an id of this kind.
    #[error("{name} {what}")]
    Value {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        what: String,
        /// An instruction for the user.
        cure: String,
    },
}

const RULE: &str = "ANTHROPIC_FEDERATION_RULE_ID";
const ORGANIZATION: &str = "ANTHROPIC_ORGANIZATION_ID";
/// The base URL of the Claude API.
pub const DEFAULT_BASE_URL: &str = "https://api.anthropic.com";
pub(crate) const DEFAULT_AUDIENCE: &str = "https://api.anthropic.com";

/// Detects authentication that the operator already set up.
///
/// `ANTHROPIC_CONFIG_DIR` names the directory of the profiles but selects none. Without complete federation variables,
/// every client uses the active profile there, so it counts as the operator's choice. With them, it does not.
pub fn existing_auth(inputs: &Inputs, environment: &Environment) -> ExistingAuth {
    const CREDENTIALS: [&str; 3] = ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"];
    let is_given = |flag: &Option<String>, name| given(flag, environment, name).is_some();
    let federates = is_given(&inputs.federation_rule_id, RULE) && is_given(&inputs.organization_id, ORGANIZATION);
    if let Some(name) = CREDENTIALS.into_iter().find(|name| environment.has(name)) {
        return ExistingAuth::Shadowed(name);
    }
    match (environment.has("ANTHROPIC_PROFILE"), environment.has("ANTHROPIC_CONFIG_DIR")) {
        (true, _) => ExistingAuth::OwnProfile("ANTHROPIC_PROFILE"),
        (false, true) if federates => ExistingAuth::UnnamedProfile,
        (false, true) => ExistingAuth::OwnProfile("ANTHROPIC_CONFIG_DIR"),
        (false, false) => ExistingAuth::None,
    }
}

/// Returns the value of a flag, or else of its variable. Blank counts as unset.
fn given<'a>(flag: &'a Option<String>, environment: &'a Environment, name: &str) -> Option<&'a str> {
    flag.as_deref().map(str::trim).filter(|value| !value.is_empty()).or_else(|| environment.text(name))
}

/// Resolves inputs and environment into a configuration for an exchange.
///
/// # Errors
/// Fails if a required setting is missing, if a value is invalid, or if there is no usable identity source.
pub fn resolve(inputs: &Inputs, environment: &Environment) -> Result<Config, ConfigError> {
    resolve_for(Purpose::Exchange, inputs, environment)
}

/// Like [`resolve`], for any purpose.
///
/// # Errors
/// Fails like [`resolve`]. For [`Purpose::IdentityToken`], rule and organisation may be missing.
pub fn resolve_for(purpose: Purpose, inputs: &Inputs, environment: &Environment) -> Result<Config, ConfigError> {
    let input = |flag: &Option<String>, name: &'static str| -> Result<Option<String>, ConfigError> {
        given(flag, environment, name).map(|value| plausible(name, value)).transpose()
    };
    let federation_rule_id = input(&inputs.federation_rule_id, RULE)?;
    let organization_id = input(&inputs.organization_id, ORGANIZATION)?;
    let (federation_rule_id, organization_id) = match (federation_rule_id, organization_id) {
        (Some(rule), Some(organization)) => (rule, organization),
        (rule, organization) if purpose == Purpose::IdentityToken => {
            (rule.unwrap_or_default(), organization.unwrap_or_default())
        }
        (None, None) => return Err(ConfigError::Unconfigured),
        (None, Some(_)) => return Err(ConfigError::Incomplete { missing: RULE }),
        (Some(_), None) => return Err(ConfigError::Incomplete { missing: ORGANIZATION }),
    };
    let base_url = given(&inputs.base_url, environment, "ANTHROPIC_BASE_URL");
    let (base_url, token_endpoint) = endpoint(base_url.unwrap_or(DEFAULT_BASE_URL))?;
    let audience = input(&inputs.audience, "ANTHROPIC_OIDC_AUDIENCE")?.unwrap_or_else(|| DEFAULT_AUDIENCE.to_owned());
    let of_the_variable = || environment.text("WIFSHARE_EXPECT_SUBJECT").map(|text| SubjectPattern::new(text.trim()));
    let expected_subject = inputs.expected_subject.clone().or_else(of_the_variable);
    let source = source(inputs, environment, &audience)?;
    let grant = Grant {
        token_endpoint,
        federation_rule_id,
        organization_id,
        service_account_id: input(&inputs.service_account_id, "ANTHROPIC_SERVICE_ACCOUNT_ID")?,
        workspace_id: input(&inputs.workspace_id, "ANTHROPIC_WORKSPACE_ID")?,
    };
    let job = identity::job(environment);
    let location = Location {
        root: inputs.working_directory.join(state_directory(inputs.state_dir.as_deref(), environment)),
        key: key(&base_url, &grant, &audience, &source, &job, expected_subject.as_ref()),
        source: source.description(),
        remintable: source.reissue() == Reissue::OnDemand,
    };
    Ok(Config {
        base_url,
        grant,
        audience,
        scope: environment.text("ANTHROPIC_SCOPE").map(str::to_owned),
        expected_subject,
        source,
        job,
        principal: OwnPrincipal::default(),
        location,
        memory: None,
    })
}

impl Config {
    /// Returns the HTTP client for the identity source, with suitable timeouts. A CI's endpoint is nearby: each of
    /// three tries gets a third of a minute. A metadata service is even closer, and a machine without one should not
    /// delay the job.
    pub fn way_to_the_source(&self, transport: &HttpClient) -> HttpClient {
        let seconds = Duration::from_secs;
        match self.source.network() {
            Network::Routed => transport.clone().with_patience(seconds(5), seconds(15)),
            Network::LinkLocal => transport.clone().without_proxies().with_patience(seconds(1), seconds(5)),
        }
    }

    /// Returns the directories of this configuration's identity keys, one per principal.
    pub fn key_directories(&self) -> Vec<PathBuf> {
        let common = &self.location.key[..COMMON_LENGTH];
        let keys = store::keys(&self.location.root).unwrap_or_default().into_iter();
        keys.filter(|key| key.file_name().is_some_and(|name| name.to_string_lossy().starts_with(common))).collect()
    }

    /// Returns what this process must prove before it may use a stored credential.
    pub fn proof(&self) -> Proof {
        // A path does not identify a file's content: another job, or another step of this one, can replace the file.
        let is_file = matches!(self.source, IdentitySource::File { .. });
        match self.source.names_its_job() || (self.job.is_unique && !is_file) {
            true => Proof::Key,
            false => Proof::Token,
        }
    }

    /// Returns the store of this identity. If the proof is a token, each principal has its own store. Before the token
    /// is known ([`prove`](crate::prove)), this is a store that never contains a credential.
    pub fn store(&self) -> Store {
        let key = match (self.proof(), self.principal.known()) {
            (Proof::Token, Some(principal)) => key_of(principal, &self.location.key),
            (Proof::Key, _) | (Proof::Token, None) => self.location.key.clone(),
        };
        let store = Store::at(&Location { key, ..self.location.clone() }).of_principal(&self.principal);
        match &self.memory {
            Some(memory) => store.in_memory(memory),
            None => store,
        }
    }
}

impl ConfigError {
    /// Returns the stable error code.
    pub fn code(&self) -> Code {
        match self {
            ConfigError::Unconfigured => Code::Unconfigured,
            ConfigError::Incomplete { .. } => Code::ConfiguredInPart,
            ConfigError::NoSource { .. } => Code::NoIdentitySource,
            ConfigError::BrokenSource { .. } => Code::BrokenIdentitySource,
            ConfigError::UnknownSource { .. } => Code::ImplausibleValue,
            ConfigError::BaseUrl { .. } => Code::BaseUrl,
            ConfigError::Value { .. } => Code::ImplausibleValue,
        }
    }

    /// Returns an instruction for the user.
    pub fn hint(&self) -> String {
        match self {
            ConfigError::Unconfigured => "set both (the rule is fdrl_…, the organisation a UUID; both stand in the \
                 Claude Console), or pass --optional to `exec`, `claude` or `start` to run without the credential"
                .to_owned(),
            ConfigError::Incomplete { missing } => {
                format!("set {missing}; an expression such as `vars.{missing}` that names nothing sets a blank one")
            }
            ConfigError::NoSource { hint, .. } | ConfigError::BrokenSource { hint, .. } => hint.clone(),
            ConfigError::UnknownSource { known, .. } => format!("--identity-source takes one of {known}"),
            ConfigError::BaseUrl { what: "is in quotes", .. } => Wrapping::Quotes.cure(),
            ConfigError::BaseUrl { what: ENDS_IN_V1, .. } => {
                "remove `/v1` from the end of ANTHROPIC_BASE_URL: every client appends `/v1/…` to it".to_owned()
            }
            ConfigError::BaseUrl { .. } => {
                "ANTHROPIC_BASE_URL has to be https://HOST, or http:// on loopback for practice".to_owned()
            }
            ConfigError::Value { cure, .. } => cure.clone(),
        }
    }
}

const ENDS_IN_V1: &str = "ends in `/v1`";

pub(crate) fn endpoint(base_url: &str) -> Result<(String, Uri), ConfigError> {
    let base = base_url.trim().trim_end_matches('/');
    let refuse = |what| ConfigError::BaseUrl { url: message::safe_text(base), what };
    match Wrapping::of_id(base) {
        Some(Wrapping::Quotes) => return Err(refuse("is in quotes")),
        Some(Wrapping::Unexpanded(_)) => return Err(refuse("was not replaced by its value")),
        _ => {}
    }
    let url: Uri = base.parse().map_err(|_| refuse("is not a URL"))?;
    if url.scheme().is_none() || url.host().unwrap_or_default().is_empty() {
        return Err(refuse("is not a URL with a scheme and a host"));
    }
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(ConfigError::BaseUrl { url: "…".to_owned(), what: "holds a user name or password" });
    }
    if url.query().is_some() || base.contains('#') {
        return Err(refuse("holds a query or a fragment"));
    }
    // The exchange would go to `/v1/v1/oauth/token` and waste the identity token.
    if base.ends_with("/v1") {
        return Err(refuse(ENDS_IN_V1));
    }
    if !message::is_secure(&url) {
        return Err(refuse("would send the identity token in the clear"));
    }
    let endpoint = format!("{base}/v1/oauth/token").parse().map_err(|_| refuse("is not a URL"))?;
    Ok((base.to_owned(), endpoint))
}

fn source(inputs: &Inputs, environment: &Environment, audience: &str) -> Result<IdentitySource, ConfigError> {
    if let Some(argv) = &inputs.identity_command {
        return Ok(IdentitySource::Command(IdentityCommand::of_the_user(argv.clone(), environment.clone())));
    }
    if let Some(path) = &inputs.identity_token_file {
        return token_file(path.clone(), inputs);
    }
    let input = DetectionInput {
        environment,
        audience,
        endpoints: &inputs.endpoints,
        exists: &|path| path.exists(),
        is_chosen: false,
    };
    let detected = match &inputs.identity_source {
        Some(name) => identity::choose(name, &input).ok_or_else(|| ConfigError::UnknownSource {
            name: message::safe_text(name),
            known: identity::platforms().collect::<Vec<_>>().join(", "),
        })?,
        None => identity::detect(&input),
    };
    let is_named = |path: &Path| environment.os("ANTHROPIC_IDENTITY_TOKEN_FILE") == Some(path.as_os_str());
    match detected {
        Detected::Source(IdentitySource::File { path, .. }) if inputs.identity_source.is_none() && is_named(&path) => {
            token_file(path, inputs)
        }
        Detected::Source(source) => Ok(source),
        Detected::Withheld { reason, hint } => Err(ConfigError::NoSource { reason, hint }),
        Detected::Broken { reason, hint } => Err(ConfigError::BrokenSource { reason, hint }),
        Detected::Absent if environment.has("KUBERNETES_SERVICE_HOST") => Err(ConfigError::NoSource {
            reason: format!(
                "ANTHROPIC_IDENTITY_TOKEN_FILE is not set, and no token for the Claude API is projected at {}",
                inputs.endpoints.kubernetes_volume.join("token").display()
            ),
            hint: "mount a projected volume with a serviceAccountToken there (docs/guides/ci/kubernetes.md), \
                   or name another source with --identity-source"
                .to_owned(),
        }),
        Detected::Absent => Err(ConfigError::NoSource {
            reason: "neither ANTHROPIC_IDENTITY_TOKEN_FILE nor ANTHROPIC_IDENTITY_TOKEN is set, \
                     and no CI that issues identity tokens was recognised"
                .to_owned(),
            hint: "in GitHub Actions, add `id-token: write` to the job's `permissions`; on a machine of a cloud, \
                   name it with --identity-source; elsewhere, set one of the two"
                .to_owned(),
        }),
    }
}

/// Detects an id that was pasted or generated wrongly. The API would refuse it without saying why.
fn plausible(name: &'static str, value: &str) -> Result<String, ConfigError> {
    match id::mistake(name, value) {
        Some(BadForm { what, cure }) => Err(ConfigError::Value { name, what, cure }),
        None => Ok(value.to_owned()),
    }
}

/// Checks the path of a token file. If the value is the token itself, it must not appear in an error about a missing
/// file.
fn token_file(path: PathBuf, inputs: &Inputs) -> Result<IdentitySource, ConfigError> {
    let broken = |wrapping: Wrapping, cure: String| ConfigError::BrokenSource {
        reason: format!(
            "the value of ANTHROPIC_IDENTITY_TOKEN_FILE (or --identity-token-file) is not a path: {wrapping}"
        ),
        hint: cure,
    };
    let text = path.to_string_lossy();
    let text = text.trim();
    let has_token = text
        .split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)))
        .any(|word| word.starts_with("eyJ") && word.len() > 48);
    match Wrapping::of_id(text) {
        _ if has_token => Err(broken(
            Wrapping::IdentityToken,
            "set ANTHROPIC_IDENTITY_TOKEN to the token and unset ANTHROPIC_IDENTITY_TOKEN_FILE, or give the path of a file \
             that holds it"
                .to_owned(),
        )),
        Some(
            wrapping @ (Wrapping::Quotes
            | Wrapping::Unexpanded(_)
            | Wrapping::Url
            | Wrapping::OtherJson
            | Wrapping::OtherCredential(_)),
        ) if !inputs.working_directory.join(&path).exists() => {
            let cure = wrapping.cure();
            Err(broken(wrapping, cure))
        }
        _ => Ok(IdentitySource::file(inputs.working_directory.join(path))),
    }
}

/// Computes the identity key from everything that determines the credential, but never from the bytes of an identity
/// token. Different inputs have different keys.
fn key(
    base_url: &str,
    grant: &Grant,
    audience: &str,
    source: &IdentitySource,
    job: &Job,
    expected_subject: Option<&SubjectPattern>,
) -> String {
    let parts = (
        base_url,
        &grant.federation_rule_id,
        &grant.organization_id,
        &grant.service_account_id,
        &grant.workspace_id,
        audience,
        source.identity(),
        &job.ids,
    );
    // A credential that was obtained without the expected subject may belong to another subject.
    let parts = match expected_subject {
        Some(expected) => serde_json::to_string(&(parts, expected.as_str())),
        None => serde_json::to_string(&parts),
    };
    first_digits(&parts.expect("texts become JSON"), KEY_LENGTH)
}

/// Keys of one configuration share a prefix, so that cleanup finds the keys of all its principals.
fn key_of(principal: &Principal, key: &str) -> String {
    let parts = serde_json::to_string(&(key, principal)).expect("texts become JSON");
    let common = &key[..COMMON_LENGTH];
    format!("{common}{}", first_digits(&parts, KEY_LENGTH - COMMON_LENGTH))
}

/// Returns the first digits of the text's SHA-256.
fn first_digits(text: &str, digits: usize) -> String {
    let mut hash = hexadecimal(&Sha256::digest(text));
    hash.truncate(digits);
    hash
}

const KEY_LENGTH: usize = 32;
const COMMON_LENGTH: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: [(&str, &str); 4] = [
        ("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_1"),
        ("ANTHROPIC_ORGANIZATION_ID", "org"),
        ("ANTHROPIC_IDENTITY_TOKEN_FILE", "/run/token"),
        ("WIFSHARE_STATE_DIR", "/state"),
    ];

    fn with(changes: &[(&str, &str)]) -> Environment {
        let mut environment = Environment::from_iter(COMPLETE);
        for (name, value) in changes {
            environment.set(name, value);
        }
        environment
    }

    fn resolved(changes: &[(&str, &str)]) -> Result<Config, ConfigError> {
        resolve(&Inputs::default(), &with(changes))
    }

    #[test]
    fn usual_variables_are_a_complete_configuration() {
        let config = resolved(&[]).expect("complete");
        assert_eq!(config.grant.token_endpoint, "https://api.anthropic.com/v1/oauth/token");
        assert_eq!(config.audience, "https://api.anthropic.com");
        assert_eq!(config.location.root, Path::new("/state"));
        assert!(matches!(config.source, IdentitySource::File { .. }));
        assert_eq!(config.grant.workspace_id, None);
    }

    #[test]
    fn missing_setting_is_named() {
        assert_eq!(resolve(&Inputs::default(), &Environment::default()).err(), Some(ConfigError::Unconfigured));
        for missing in [RULE, ORGANIZATION] {
            assert_eq!(resolved(&[(missing, " ")]).err(), Some(ConfigError::Incomplete { missing }));
        }
        let error = resolved(&[("ANTHROPIC_IDENTITY_TOKEN_FILE", "")]).expect_err("no source");
        assert!(matches!(error, ConfigError::NoSource { .. }));
    }

    #[test]
    fn source_description_is_stored_with_the_location() {
        let file = resolved(&[]).expect("a configuration").location;
        assert_eq!((file.remintable, file.source.as_str()), (false, "the file /run/token"));
        let (url, bearer) = ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN");
        let github = resolved(&[("ANTHROPIC_IDENTITY_TOKEN_FILE", ""), (url, "https://ci.invalid"), (bearer, "t")]);
        let github = github.expect("a configuration").location;
        assert_eq!((github.remintable, github.source.as_str()), (true, "GitHub Actions"));
    }

    #[test]
    fn invalid_base_url_has_its_own_reason() {
        for (url, words) in [
            ("api.example", "with a scheme and a host"),
            ("/path", "with a scheme and a host"),
            ("http://api.example", "in the clear"),
            ("https://api.example?x", "a query or a fragment"),
            ("https://api.example#x", "a query or a fragment"),
            ("https://u@api.example", "a user name or password"),
            ("https://api.example/v1", "ends in `/v1`"),
            ("https://api.example/v1/", "ends in `/v1`"),
            ("https://api.example/deep/v1//", "ends in `/v1`"),
        ] {
            let told = endpoint(url).expect_err(url).to_string();
            assert!(told.contains(words), "{url}: {told}");
        }
    }

    #[test]
    fn base_url_is_parsed_and_not_compared_by_prefix() {
        for (url, endpoint) in [
            ("https://api.example", Some("https://api.example/v1/oauth/token")),
            ("https://api.example/", Some("https://api.example/v1/oauth/token")),
            ("https://api.example/deep/", Some("https://api.example/deep/v1/oauth/token")),
            ("http://127.0.0.1:8080", Some("http://127.0.0.1:8080/v1/oauth/token")),
            ("http://[::1]:8080", Some("http://[::1]:8080/v1/oauth/token")),
            ("http://api.example", None),
            ("http://localhost.evil.example", None),
            ("http://localhost@evil.example", None),
            ("https://user:secret@api.example", None),
            ("https://api.example?x=1", None),
            ("https://", None),
            ("api.example", None),
            ("ftp://localhost", None),
            ("https://a b", None),
        ] {
            let config = resolved(&[("ANTHROPIC_BASE_URL", url)]).ok();
            assert_eq!(config.map(|config| config.grant.token_endpoint.to_string()).as_deref(), endpoint, "{url}");
        }
        let error = resolved(&[("ANTHROPIC_BASE_URL", "https://user:canary@api.example")]).expect_err("refused");
        assert!(!error.to_string().contains("canary"), "{error}");
    }

    #[test]
    fn every_part_of_the_identity_changes_the_key() {
        let key = |changes: &[(&str, &str)]| resolved(changes).expect("complete").location.key;
        let plain = key(&[]);
        assert_eq!(plain.len(), 32);
        assert_eq!(plain, key(&[("WIFSHARE_STATE_DIR", "/elsewhere")]), "where it is kept is not who it is");
        for change in [
            ("ANTHROPIC_BASE_URL", "https://api.example"),
            ("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_2"),
            ("ANTHROPIC_ORGANIZATION_ID", "org2"),
            ("ANTHROPIC_SERVICE_ACCOUNT_ID", "svac_1"),
            ("ANTHROPIC_WORKSPACE_ID", "default"),
            ("ANTHROPIC_OIDC_AUDIENCE", "other"),
            ("ANTHROPIC_IDENTITY_TOKEN_FILE", "/run/other"),
        ] {
            assert_ne!(plain, key(&[change]), "{change:?}");
        }
    }

    #[test]
    fn flag_overrides_its_variable() {
        let inputs = Inputs {
            federation_rule_id: Some("fdrl_flag".to_owned()),
            identity_command: Some(vec!["print-token".into()]),
            state_dir: Some("/state".into()),
            ..Inputs::default()
        };
        let config = resolve(&inputs, &with(&[])).expect("complete");
        assert_eq!(config.grant.federation_rule_id, "fdrl_flag");
        assert!(matches!(config.source, IdentitySource::Command(_)));
        assert_eq!(config.location.root, Path::new("/state"));
    }

    #[test]
    fn relative_path_is_resolved_against_the_working_directory() {
        let inputs = Inputs { working_directory: "/here".into(), state_dir: Some("st".into()), ..Inputs::default() };
        let config = resolve(&inputs, &with(&[("ANTHROPIC_IDENTITY_TOKEN_FILE", "token")])).expect("complete");
        assert_eq!(config.location.root, Path::new("/here/st"));
        assert!(matches!(&config.source, IdentitySource::File { path, .. } if path == Path::new("/here/token")));
    }

    #[test]
    fn identity_token_purpose_needs_only_a_source() {
        let environment = with(&[(RULE, ""), (ORGANIZATION, "")]);
        assert!(resolve_for(Purpose::IdentityToken, &Inputs::default(), &environment).is_ok());
        assert!(resolve(&Inputs::default(), &environment).is_err());
    }

    #[test]
    fn implausible_id_is_refused() {
        for value in ["fdrl 1", "fdrl_\u{e4}", &"x".repeat(513)] {
            assert!(matches!(resolved(&[(RULE, value)]), Err(ConfigError::Value { name: RULE, .. })), "{value:.20}");
        }
    }

    #[test]
    fn token_in_place_of_its_path_is_refused_and_redacted() {
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJqdGkiOiI3Iiwic3ViIjoicmVwbzpvL3IifQ.c2lnbmF0dXJl";
        for (value, words) in [
            (token.to_owned(), "it is an identity token"),
            (format!("Bearer {token}"), "it is an identity token"),
            (format!("\"{token}\""), "it is an identity token"),
            ("'/run/token'".to_owned(), "it is in quotes"),
            ("$RUNNER_TEMP/token".to_owned(), "was not replaced"),
            ("${{ runner.temp }}/token".to_owned(), "was not replaced"),
            ("https://ci.example/token".to_owned(), "it is a URL"),
        ] {
            let error = resolved(&[("ANTHROPIC_IDENTITY_TOKEN_FILE", &value)]).expect_err(&value);
            let said = format!("{error}; {}", error.hint());
            assert!(matches!(error, ConfigError::BrokenSource { .. }) && said.contains(words), "{said}");
            assert!(!said.contains("eyJ"), "{said}");
            let inputs = Inputs { identity_token_file: Some(value.into()), ..Inputs::default() };
            assert!(matches!(resolve(&inputs, &with(&[])), Err(ConfigError::BrokenSource { .. })));
        }
    }

    #[test]
    fn quoted_or_unexpanded_base_url_is_named() {
        for (url, words) in [("\"https://api.example\"", "in quotes"), ("${{ vars.URL }}", "not replaced")] {
            let error = resolved(&[("ANTHROPIC_BASE_URL", url)]).expect_err(url);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn existing_auth_is_detected() {
        let seen = |changes: &[(&str, &str)]| existing_auth(&Inputs::default(), &with(changes));
        assert_eq!(seen(&[]), ExistingAuth::None);
        assert_eq!(seen(&[("ANTHROPIC_API_KEY", "")]), ExistingAuth::None, "blank counts as unset");
        assert_eq!(seen(&[("ANTHROPIC_API_KEY", "x")]), ExistingAuth::Shadowed("ANTHROPIC_API_KEY"));
        assert_eq!(seen(&[("ANTHROPIC_AUTH_TOKEN", "x")]), ExistingAuth::Shadowed("ANTHROPIC_AUTH_TOKEN"));
        assert_eq!(seen(&[("CLAUDE_CODE_OAUTH_TOKEN", "x")]), ExistingAuth::Shadowed("CLAUDE_CODE_OAUTH_TOKEN"));
        assert_eq!(seen(&[("ANTHROPIC_PROFILE", "x")]), ExistingAuth::OwnProfile("ANTHROPIC_PROFILE"));
        assert_eq!(
            seen(&[("ANTHROPIC_CONFIG_DIR", "x"), ("ANTHROPIC_API_KEY", "x")]),
            ExistingAuth::Shadowed("ANTHROPIC_API_KEY")
        );
    }

    #[test]
    fn config_dir_is_used_only_without_federation_variables() {
        let seen = |rule: &str, organization: &str, inputs: &Inputs| {
            existing_auth(inputs, &with(&[("ANTHROPIC_CONFIG_DIR", "x"), (RULE, rule), (ORGANIZATION, organization)]))
        };
        let own = ExistingAuth::OwnProfile("ANTHROPIC_CONFIG_DIR");
        let none = Inputs::default();
        let flag = Inputs { federation_rule_id: Some("fdrl_1".to_owned()), ..Inputs::default() };
        assert_eq!(seen("fdrl_1", "org", &none), ExistingAuth::UnnamedProfile);
        assert_eq!(seen("", "org", &none), own, "blank counts as unset");
        assert_eq!(seen("fdrl_1", "", &none), own);
        assert_eq!(seen("", "org", &flag), ExistingAuth::UnnamedProfile, "a flag is as good as its variable");
        let named = with(&[("ANTHROPIC_CONFIG_DIR", "x"), ("ANTHROPIC_PROFILE", "y")]);
        assert_eq!(existing_auth(&none, &named), ExistingAuth::OwnProfile("ANTHROPIC_PROFILE"));
    }

    #[test]
    fn id_is_limited_to_512_characters() {
        let rule = "x".repeat(512);
        let with_rule = |rule: &str| resolved(&[("ANTHROPIC_FEDERATION_RULE_ID", rule)]);
        assert_eq!(with_rule(&rule).expect("it is plausible").grant.federation_rule_id, rule);
        let error = with_rule(&format!("{rule}x")).expect_err("it is too long");
        assert!(matches!(error, ConfigError::Value { ref what, .. } if what.contains("too long")), "{error}");
        assert!(error.hint().contains("ANTHROPIC_FEDERATION_RULE_ID"), "{}", error.hint());
    }

    #[test]
    fn blank_flag_counts_as_unset() {
        let asked = |url: &str| {
            let inputs = Inputs { base_url: Some(url.to_owned()), ..Inputs::default() };
            resolve(&inputs, &with(&[("ANTHROPIC_BASE_URL", "https://of-the-job.example")])).expect("whole").base_url
        };
        assert_eq!(asked("https://asked.example"), "https://asked.example");
        assert_eq!(asked(" "), "https://of-the-job.example");
    }

    #[test]
    fn missing_source_error_explains_where_to_look() {
        let reason = |more: &[(&str, &str)]| {
            let mut environment = with(more);
            environment.remove("ANTHROPIC_IDENTITY_TOKEN_FILE");
            match resolve(&Inputs::default(), &environment) {
                Err(ConfigError::NoSource { reason, .. }) => reason,
                other => panic!("{other:?}"),
            }
        };
        assert!(reason(&[]).contains("no CI that issues identity tokens"), "{}", reason(&[]));
        let pod = reason(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]);
        assert!(pod.contains("no token for the Claude API is projected at"), "{pod}");
    }
}
