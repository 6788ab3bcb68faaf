//! What can be said on the command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use wifshare::{Delivery, Environment, Inputs, Opening, Places, RUN_VARIABLE, platforms, state_directory};
use wifshare_sandbox::conformance::Case;

use crate::failure::Failure;
use crate::talk::LogFormat;

/// One identity token, one exchange, every process.
///
/// wifshare signs a CI job in to the Claude API by workload identity federation, exchanges the job's single-use identity
/// token once, and shares the credential among all processes of the job for as long as it runs.
#[derive(Debug, Parser)]
#[command(name = "wifshare", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// Tell what is being done, on standard error; twice, with every step and its time.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// How what is told on standard error is written (WIFSHARE_LOG_FORMAT)
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes:
  the command's own; 128 + n if signal n ended it; 125 wifshare failed;
  126 the command was found and cannot be run; 127 it was not found; 2 usage";

const START: &str = "Examples:
  wifshare start                          in GitHub Actions: the following steps find the credential
  eval \"$(wifshare start)\"               in any shell
  wifshare start --format dotenv > job.env";

const CONFORMANCE: &str = "Example:
  wifshare sandbox --conformance -- wifshare exec -- ./ask.py
  Ends with 0 if every rule that applies is kept, and with 1 otherwise.";

const DOCTOR: &str = "Examples:
  wifshare doctor
  wifshare doctor --rule rule.json     compare a fresh identity token with the federation rule, offline
  wifshare doctor --json | jq '.findings[] | select(.verdict == \"failed\")'";

#[derive(Debug, Subcommand)]
// Each command is laid out when it is called for, and not before every one of them.
#[command(defer = true)]
pub(crate) enum Command {
    /// Run a command with the shared credential, fresh until the command ends.
    #[command(after_help = "Example:\n  wifshare exec -- claude -p 'review this change'")]
    Exec(ExecArguments),
    /// Add marketplaces, install plugins one after another, and run the main query, all with one exchange.
    #[command(
        after_help = "Example:\n  wifshare claude --marketplace ./plugins --plugin lint@ours -- -p 'review this change'"
    )]
    Claude(ClaudeArguments),
    /// Obtain the credential and keep it fresh for the steps that follow, until `wifshare stop` or the end of the job.
    #[command(after_help = START)]
    Start(StartArguments),
    /// End what `wifshare start` left running, and remove the credential; says nothing where nothing runs.
    #[command(after_help = "Example:\n  wifshare stop --all")]
    Stop(StopArguments),
    /// The process that `wifshare start` leaves behind.
    #[command(hide = true)]
    Keeper,
    /// Print the shared access token; exchange only where there is none.
    #[command(
        after_help = "Example (curl reads the header from its standard input, so that it stands in no argument list):
  wifshare token --format header |
    curl --header @- --header 'anthropic-version: 2023-06-01' https://api.anthropic.com/v1/models"
    )]
    Token(TokenArguments),
    /// Tell who holds the credential, how long it lives, and who was served.
    #[command(after_help = "Example:\n  wifshare status --watch")]
    Status(StatusArguments),
    /// Tell what happened in this job: processes, exchanges, and what sharing saved.
    #[command(after_help = "Example:\n  wifshare report --format html > report.html")]
    Report(ReportArguments),
    /// Serve the gateway without a command: print where it listens and the capability that it wants to see, and put the
    /// credential into what comes by, until a signal ends it.
    #[command(
        after_help = "Example:\n  wifshare gateway --listen 127.0.0.1:8787 --format env > gateway.env\n\nEnds with 0 on SIGTERM or SIGINT, after what is under way."
    )]
    Gateway(GatewayArguments),
    /// Serve a practice ground on loopback: an identity provider and a token endpoint that accepts a token once. Or try
    /// a client against the rules of single use.
    #[command(after_help = CONFORMANCE)]
    Sandbox(SandboxArguments),
    /// Show on the practice ground what happens to eight processes without and with wifshare; end with 1 if the shared
    /// ones do not all succeed with one exchange.
    #[command(after_help = "Example:\n  wifshare demo --processes 16")]
    Demo(DemoArguments),
    /// Look at everything that signing in stands on, spend nothing, and say what to mend; end with 0 if the job would
    /// work, and with 1 if not.
    #[command(after_help = DOCTOR)]
    Doctor(DoctorArguments),
    /// Tell what an error code means, why it happens, where to look and what to do; without a code, list them all.
    #[command(after_help = "Example:\n  wifshare explain exchange-refused")]
    Explain(ExplainArguments),
    /// Print the completions for a shell.
    #[command(
        after_help = "Example:\n  wifshare completions bash > ~/.local/share/bash-completion/completions/wifshare"
    )]
    Completions(CompletionsArguments),
    /// Print a man page, or write all of them.
    #[command(
        after_help = "Examples:\n  wifshare man exec | man -l -\n  wifshare man --directory ~/.local/share/man/man1"
    )]
    Man(ManArguments),
}

/// Who signs in, and where. Each option has a variable; the option goes first.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Identity")]
pub(crate) struct IdentityArguments {
    /// The API's base URL (ANTHROPIC_BASE_URL)
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// The federation rule, fdrl_… (ANTHROPIC_FEDERATION_RULE_ID)
    #[arg(long, value_name = "ID")]
    federation_rule_id: Option<String>,
    /// The organisation, a UUID (ANTHROPIC_ORGANIZATION_ID)
    #[arg(long, value_name = "ID")]
    organization_id: Option<String>,
    /// The service account, svac_… (ANTHROPIC_SERVICE_ACCOUNT_ID)
    #[arg(long, value_name = "ID")]
    service_account_id: Option<String>,
    /// The workspace, wrkspc_… or `default` (ANTHROPIC_WORKSPACE_ID)
    #[arg(long, value_name = "ID")]
    workspace_id: Option<String>,
    /// For whom the identity token is meant (ANTHROPIC_OIDC_AUDIENCE)
    #[arg(long, value_name = "AUDIENCE")]
    audience: Option<String>,
    /// A file that holds the identity token (ANTHROPIC_IDENTITY_TOKEN_FILE)
    #[arg(long, value_name = "PATH", conflicts_with = "identity_command")]
    identity_token_file: Option<PathBuf>,
    /// A command that prints an identity token: words parted by blanks, run without a shell (no variable)
    #[arg(long, value_name = "COMMAND")]
    identity_command: Option<String>,
    /// The platform to ask for identity tokens, whatever else is set (no variable; docs/ci/ tells of each)
    #[arg(
        long,
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(platforms()),
        conflicts_with_all = ["identity_command", "identity_token_file"]
    )]
    identity_source: Option<String>,
    /// Where state is kept (WIFSHARE_STATE_DIR)
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

impl IdentityArguments {
    #[expect(clippy::disallowed_methods, reason = "the border: where the user stands is read here and nowhere else")]
    pub(crate) fn inputs(&self) -> Inputs {
        let words = |command: &String| command.split_whitespace().map(OsString::from).collect();
        Inputs {
            base_url: self.base_url.clone(),
            federation_rule_id: self.federation_rule_id.clone(),
            organization_id: self.organization_id.clone(),
            service_account_id: self.service_account_id.clone(),
            workspace_id: self.workspace_id.clone(),
            audience: self.audience.clone(),
            identity_token_file: self.identity_token_file.clone(),
            // Blank counts as unset, as it does for every other input.
            identity_command: self.identity_command.as_ref().map(words).filter(|words: &Vec<_>| !words.is_empty()),
            identity_source: self.identity_source.clone(),
            places: places(),
            state_dir: self.state_dir.clone(),
            // Without one, an absolute path still leads somewhere, and a relative one fails where it is used.
            working_directory: std::env::current_dir().unwrap_or_default(),
        }
    }

    /// What is said here of the identity that a run shares, by the variables' names.
    pub(crate) fn said(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("ANTHROPIC_FEDERATION_RULE_ID", &self.federation_rule_id),
            ("ANTHROPIC_ORGANIZATION_ID", &self.organization_id),
            ("ANTHROPIC_SERVICE_ACCOUNT_ID", &self.service_account_id),
            ("ANTHROPIC_WORKSPACE_ID", &self.workspace_id),
            ("ANTHROPIC_BASE_URL", &self.base_url),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_deref()?.trim())))
        .filter(|(_, value)| !value.is_empty())
    }

    /// Whether anything here says who signs in, so that a run around us is not the one that is meant.
    pub(crate) fn name_an_identity(&self) -> bool {
        let texts = [
            &self.base_url,
            &self.federation_rule_id,
            &self.organization_id,
            &self.service_account_id,
            &self.workspace_id,
            &self.audience,
            &self.identity_command,
            &self.identity_source,
        ];
        let is_said = |text: &&Option<String>| text.as_ref().is_some_and(|text| !text.trim().is_empty());
        texts.iter().any(is_said) || self.identity_token_file.is_some()
    }
}

/// Whose state is looked at.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateArguments {
    /// Where state is kept (WIFSHARE_STATE_DIR; inside a run, that of the run)
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

impl StateArguments {
    /// The state directory: the one that is asked for, that of the run around us, or this user's.
    #[expect(clippy::disallowed_methods, reason = "the border: where the user stands")]
    pub(crate) fn root(&self, environment: &Environment) -> PathBuf {
        let of_the_run = environment.os(RUN_VARIABLE).and_then(|run| Path::new(run).ancestors().nth(3));
        let root = match (&self.state_dir, of_the_run) {
            (None, Some(root)) => root.to_owned(),
            (asked, _) => state_directory(asked.as_deref(), environment),
        };
        std::env::current_dir().unwrap_or_default().join(root)
    }
}

#[derive(Args, Debug)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    pub(crate) state: StateArguments,
    /// Print a JSON object; docs/report.md describes it
    #[arg(long)]
    pub(crate) json: bool,
    /// Go on, and print anew when something has changed: in place on a terminal, where q ends it
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ReportArguments {
    #[command(flatten)]
    pub(crate) state: StateArguments,
    /// What it is written as
    #[arg(long, value_enum, default_value_t = ReportFormat::Md)]
    pub(crate) format: ReportFormat,
    /// Tell everything that is in the logs, and not this job alone
    #[arg(long, conflicts_with = "since")]
    pub(crate) all: bool,
    /// Tell what happened since so long ago, such as 10m or 2h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) since: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// Markdown with a Mermaid chart, as GitHub shows it
    Md,
    /// A page that stands alone
    Html,
    /// The picture of it alone
    Svg,
    /// A JSON object; docs/report.md describes it
    Json,
}

/// How the children come by the credential.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sharing")]
pub(crate) struct ShareArguments {
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
    /// profile: a credential file, kept fresh (default); federation: the same, and an unspent identity token for old
    /// clients; environment: ANTHROPIC_AUTH_TOKEN as it is at the start; gateway: an address on this machine and a
    /// capability that is worthless elsewhere, so that no child ever holds the credential
    #[arg(long, value_name = "DELIVERY")]
    pub(crate) delivery: Option<Delivery>,
    /// With --delivery gateway: set ANTHROPIC_API_KEY to the capability too, for clients that read no other variable
    #[arg(long, requires = "delivery")]
    pub(crate) api_key: bool,
    /// Let the children inherit this variable, which would be taken away (repeatable)
    #[arg(long, value_name = "NAME", value_parser = variable_name)]
    pub(crate) keep_env: Vec<String>,
    /// Where federation is not configured at all, as in a fork's pull request, run the command without it
    #[arg(long)]
    pub(crate) optional: bool,
}

impl ShareArguments {
    /// Refuses options that do not go together.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self.delivery {
            Some(delivery) if self.api_key && delivery != Delivery::Gateway => Err(Failure::usage(
                format!("--api-key needs --delivery gateway, and not {delivery}: an access token is not an API key"),
                "give --delivery gateway, or leave --api-key out",
            )),
            _ => Ok(()),
        }
    }

    /// How the gateway of a run is opened, if there is one.
    pub(crate) fn opening(&self) -> Opening {
        Opening { api_key: self.api_key, ..Opening::default() }
    }
}

#[derive(Args, Debug)]
pub(crate) struct ExecArguments {
    #[command(flatten)]
    pub(crate) share: ShareArguments,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct ClaudeArguments {
    #[command(flatten)]
    pub(crate) share: ShareArguments,
    /// A marketplace to add: a local path (./…, ../…, /…) or an https URL ending in .git (repeatable; also the lines of
    /// INPUT_PLUGIN_MARKETPLACES)
    #[arg(long = "marketplace", value_name = "MARKETPLACE")]
    pub(crate) marketplaces: Vec<String>,
    /// A plugin to install: name or name@marketplace (repeatable; also the lines of INPUT_PLUGINS)
    #[arg(long = "plugin", value_name = "PLUGIN")]
    pub(crate) plugins: Vec<String>,
    /// The claude program
    #[arg(long, value_name = "PROGRAM", default_value = "claude")]
    pub(crate) claude: OsString,
    /// The arguments of the main query; without any there is none
    #[arg(last = true, value_name = "CLAUDE_ARG")]
    pub(crate) query: Vec<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct StartArguments {
    #[command(flatten)]
    pub(crate) share: ShareArguments,
    /// How the variables are handed to the following steps: github where GITHUB_ENV is set, and env elsewhere
    #[arg(long, value_enum)]
    pub(crate) format: Option<HandOver>,
    /// End with this process, or with none; without it, with the CI's process for the job or the terminal's shell,
    /// where there is one above
    #[arg(long, value_name = "PID|none", value_parser = watch)]
    pub(crate) watch_pid: Option<Watched>,
    /// End after this time at the latest, such as 90m or 6h
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "24h")]
    pub(crate) max_life: Duration,
}

/// Which process ends a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// None.
    None,
    /// The one of this number.
    Pid(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HandOver {
    /// Into the files that GITHUB_ENV and GITHUB_OUTPUT name
    Github,
    /// Shell commands: export and unset
    Env,
    /// A JSON object; null for a variable that has to go
    Json,
    /// NAME=value, and NAME= for a variable that has to go
    Dotenv,
}

#[derive(Args, Debug)]
pub(crate) struct StopArguments {
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
    /// Everything in this state directory; otherwise what the options or the variables name, and everything where they
    /// name nothing
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Args, Debug)]
pub(crate) struct TokenArguments {
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
    /// How long the token has to be good for at least, such as 90s, 5m or 1h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) min_life: Option<Duration>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    /// The token alone
    Text,
    /// A JSON object with access_token, token_type, expires_in and expires_at
    Json,
    /// An HTTP header line
    Header,
    /// ANTHROPIC_AUTH_TOKEN=…
    Env,
    /// What claude's apiKeyHelper expects: the token alone
    ApiKeyHelper,
    /// A JSON object in the shape of AWS's credential_process: Version, AccessToken, TokenType, Expiration
    CredentialProcess,
}

#[derive(Args, Debug)]
pub(crate) struct GatewayArguments {
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
    /// Where to listen; only addresses of this machine alone are accepted, and port 0 takes any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Listen at a Unix socket instead, for this user alone; clients say `Host: localhost`
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    pub(crate) unix: Option<PathBuf>,
    /// How long what is under way may go on after a signal
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) grace: Duration,
    /// Print the capability as ANTHROPIC_API_KEY too, for clients that read no other variable
    #[arg(long)]
    pub(crate) api_key: bool,
    /// How address and capability are printed
    #[arg(long, value_enum, default_value_t = GatewayFormat::Env)]
    pub(crate) format: GatewayFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum GatewayFormat {
    /// ANTHROPIC_BASE_URL=… and ANTHROPIC_AUTH_TOKEN=…
    Env,
    /// A JSON object with base_url and capability, api_key with --api-key, and socket for a Unix socket
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct SandboxArguments {
    /// Where to listen; only loopback addresses are accepted, and port 0 takes any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// The knobs as a JSON object, such as '{"exchange_latency_ms": 1200}'; GET /sandbox/knobs shows them all
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub(crate) knobs: String,
    #[command(flatten)]
    pub(crate) conformance: ConformanceArguments,
}

/// The other use of the practice ground.
#[derive(Args, Debug)]
#[command(next_help_heading = "Conformance")]
pub(crate) struct ConformanceArguments {
    /// Run a command that signs in, case by case, each with a fresh practice ground and an empty home, and print a table
    #[arg(long, requires = "command", conflicts_with_all = ["listen", "knobs"])]
    pub(crate) conformance: bool,
    /// Where the command finds identity tokens: a file, GitHub's endpoint, or both
    #[arg(long, value_enum, value_name = "SOURCE", default_value_t = TokenSource::File, requires = "conformance")]
    pub(crate) source: TokenSource,
    /// How long one run of the command may take
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration, requires = "conformance")]
    pub(crate) bound: Duration,
    /// Try this case alone (repeatable)
    #[arg(long = "case", value_name = "NAME", requires = "conformance")]
    pub(crate) cases: Vec<Case>,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND", requires = "conformance")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TokenSource {
    /// ANTHROPIC_IDENTITY_TOKEN_FILE
    File,
    /// ACTIONS_ID_TOKEN_REQUEST_URL and …_TOKEN
    Endpoint,
    /// All three
    Both,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArguments {
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
    /// Judge this federation rule, a JSON file, by an identity token of the source
    #[arg(long, value_name = "FILE")]
    pub(crate) rule: Option<PathBuf>,
    /// Judge the clients found here by this delivery
    #[arg(long, value_name = "DELIVERY", default_value_t)]
    pub(crate) delivery: Delivery,
    /// Sign in too: spends one identity token, and leaves the credential for others to share
    #[arg(long)]
    pub(crate) exchange: bool,
    /// Print the findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CompletionsArguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct ManArguments {
    /// The page of this command; without it, of wifshare itself
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Option<String>,
    /// Write every page into this directory instead
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "command")]
    pub(crate) directory: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct ExplainArguments {
    /// The code, as it stands in `error[…]`
    #[arg(value_name = "CODE")]
    pub(crate) code: Option<String>,
    /// Print the page of the documentation that lists them all
    #[arg(long, hide = true, conflicts_with = "code")]
    pub(crate) markdown: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DemoArguments {
    /// How many processes run at once
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=64))]
    pub(crate) processes: u32,
    /// One of the demo's own processes: exchanges by itself, or takes the credential that it finds
    #[arg(long, hide = true)]
    pub(crate) child: Option<DemoChild>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoChild {
    /// Federates by itself, as every client does.
    Alone,
    /// Uses the profile that it finds.
    Shared,
    /// Starts the shared ones, as a job does.
    Job,
}

/// Where the platforms have what never moves. For our own tests, a practice ground that stands in their place; release
/// builds do not have it.
#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "a switch of debug builds, for tests with a platform of their own")]
fn places() -> Places {
    let given = |name: &str| std::env::var(name).ok();
    let mut places = Places::default();
    if let Some(address) = given("WIFSHARE_TEST_METADATA") {
        places.google_metadata.clone_from(&address);
        places.azure_metadata = address;
    }
    if let Some(volume) = given("WIFSHARE_TEST_KUBERNETES") {
        places.kubernetes_volume = volume.into();
    }
    places
}

#[cfg(not(debug_assertions))]
fn places() -> Places {
    Places::default()
}

/// One variable, by its name alone.
fn variable_name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name
        .then(|| text.to_owned())
        .ok_or_else(|| "one variable's name was expected; repeat the option for more".to_owned())
}

fn watch(text: &str) -> Result<Watched, String> {
    match (text, text.parse()) {
        ("none", _) => Ok(Watched::None),
        (_, Ok(pid)) if pid > 0 => Ok(Watched::Pid(pid)),
        _ => Err("a process id or `none` was expected".to_owned()),
    }
}

/// A whole number and a unit: s, m or h.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let whole = number.parse::<u64>().ok().zip(seconds).and_then(|(number, seconds)| number.checked_mul(seconds));
    // Longer than any token lives (docs/protocol.md §5.3), and short enough to be added to any moment.
    const LONGEST: u64 = 7 * 86_400;
    whole
        .filter(|seconds| *seconds <= LONGEST)
        .map(Duration::from_secs)
        .ok_or_else(|| "a whole number of s, m or h was expected, at most a week, such as 90s or 5m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, seconds) in [
            ("0", Some(0)),
            ("90", Some(90)),
            ("90s", Some(90)),
            ("5m", Some(300)),
            ("1h", Some(3600)),
            ("168h", Some(604_800)),
            ("169h", None),
            ("", None),
            ("m", None),
            ("5d", None),
            ("-5m", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
