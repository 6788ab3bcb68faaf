//! The command line: options, subcommands and their parsers.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, StringValueParser, TypedValueParser};
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};
use serde::{Deserialize, Serialize};
use wifshare::{
    Delivery, Environment, FixedEndpoints, GatewayOptions, Inputs, RUN_VARIABLE, SubjectPattern, platforms,
    state_directory,
};
use wifshare_sandbox::conformance::Case;

use crate::catalogue::CATALOGUE;
use crate::console::{LogFormat, Mask};
use crate::failure::Failure;

/// One identity token, one exchange, every process
///
/// wifshare signs a CI job in to the Claude API by workload identity federation. It exchanges the job's single-use
/// identity token once, shares the credential with every process of the job, and renews it until the job ends.
#[derive(Debug, Parser)]
#[command(name = NAME, version = VERSION, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) console: ConsoleArguments,
    #[command(subcommand)]
    pub(crate) command: Command,
}

// Options of every command that control the messages on standard error.
#[derive(Args, Debug)]
pub(crate) struct ConsoleArguments {
    /// Verbose output; repeat (-vv) for every step with timestamps
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 900)]
    pub(crate) verbose: u8,
    /// Format of messages on standard error (WIFSHARE_LOG_FORMAT)
    #[arg(long, global = true, value_enum, value_name = "FORMAT", display_order = 901)]
    pub(crate) log_format: Option<LogFormat>,
    /// Mask commands for GitHub's log, on standard error (WIFSHARE_MASK)
    #[arg(long, global = true, value_enum, value_name = "WHEN", display_order = 902)]
    pub(crate) mask: Option<Mask>,
}

const NAME: &str = "wifshare";
const VERSION: &str = env!("WIFSHARE_VERSION");

impl Arguments {
    /// Parses the arguments that follow the program name. Help is wrapped to `width`, at most 100 columns.
    ///
    /// # Errors
    /// Returns clap's error for a usage error, and also for `--help` and `--version`, whose text it contains.
    pub(crate) fn parse(words: &[OsString], width: impl FnOnce() -> usize) -> Result<Arguments, clap::Error> {
        if let Some(parsed) = Arguments::parse_frequent(words) {
            return parsed;
        }
        let mut command = Arguments::command().term_width(width().min(100));
        // Usage lines start with the name that the program was started with.
        let program = std::env::args_os().take(1);
        let mut matches = command.try_get_matches_from_mut(program.chain(words.iter().cloned()))?;
        Arguments::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }

    /// Parses the commands that jobs run most often without building the definitions of all other commands, which take
    /// most of the instructions of a start. Returns `None` where the whole definition is needed: for another command,
    /// for help, and for a usage error, whose message lists the alternatives.
    fn parse_frequent(words: &[OsString]) -> Option<Result<Arguments, clap::Error>> {
        let (first, rest) = words.split_first()?;
        match first.to_str()? {
            "exec" => Arguments::parse_alone(rest, Command::Exec).map(Ok),
            "token" => Arguments::parse_alone(rest, Command::Token).map(Ok),
            "--version" | "-V" => {
                let root = clap::Command::new(NAME).version(VERSION).no_binary_name(true);
                root.try_get_matches_from([first]).err().map(Err)
            }
            _ => None,
        }
    }

    /// Parses the arguments that follow the name of this command.
    fn parse_alone<A: Args>(words: &[OsString], command: fn(A) -> Command) -> Option<Arguments> {
        let definition = ConsoleArguments::augment_args(A::augment_args(clap::Command::new(NAME)));
        let mut matches = definition.no_binary_name(true).try_get_matches_from(words).ok()?;
        let console = ConsoleArguments::from_arg_matches_mut(&mut matches).ok()?;
        Some(Arguments { console, command: command(A::from_arg_matches_mut(&mut matches).ok()?) })
    }
}

const EXIT_CODES: &str = "Exit codes:
  exec and claude end with the command's own exit code, or 128 + n if signal n ended it
  1    doctor, demo or sandbox --conformance found a failure
  2    usage error
  125  wifshare failed
  126  the command was found but cannot be run
  127  the command was not found";

const EXEC: &str = "Examples:
  wifshare exec -- claude -p 'review this change'
  wifshare exec --delivery gateway -- ./agent.py";

const START: &str = "Examples:
  wifshare start                          in GitHub Actions: later steps find the credential
  started=$(wifshare start --format env)  in a script, with `set -e`; then:
  eval \"$started\"
  wifshare start --format env | source    in fish
  wifshare start --format dotenv > job.env";

const TOKEN: &str = "Example (curl reads the header from standard input, so no argument list shows it):
  wifshare token --format header |
    curl --fail --header @- --header 'anthropic-version: 2023-06-01' https://api.anthropic.com/v1/models";

const SANDBOX: &str = "Examples:
  wifshare sandbox -- ./client
  wifshare sandbox --format env > sandbox.sh
  wifshare sandbox --conformance -- wifshare exec -- ./ask.py";

const DOCTOR: &str = "Examples:
  wifshare doctor
  wifshare doctor --rule rule.json     compare a fresh identity token with the federation rule, offline
  wifshare doctor --json | jq '.findings[] | select(.verdict == \"failed\")'";

const MAN: &str = "Examples:
  wifshare man exec | man -l -
  wifshare man --directory ~/.local/share/man/man1";

// The first paragraph of a doc comment is the command's line in `wifshare --help`, the first line of its own help and
// the NAME section of its man page. clap takes the doc comment of a flattened struct as the command's own, so flattened
// structs have plain comments instead.
#[derive(Debug, Subcommand)]
// Build the definition of a command when it is used, not all of them at every start.
#[command(defer = true)]
pub(crate) enum Command {
    /// Run a command with a shared credential that is renewed until the command ends
    #[command(after_help = EXEC)]
    Exec(ExecArguments),
    /// Add marketplaces, install plugins one by one and run a query, with one exchange
    #[command(
        after_help = "Example:\n  wifshare claude --marketplace ./plugins --plugin lint@ours -- -p 'review this change'"
    )]
    Claude(ClaudeArguments),
    /// Sign in and keep the credential fresh for the following steps of the job
    ///
    /// Leaves a keeper process behind, which renews the credential. It ends with `wifshare stop`, with the job, when its
    /// directory is removed, or after --max-life.
    #[command(after_help = START)]
    Start(StartArguments),
    /// End the keeper that `wifshare start` left running and remove the credential
    #[command(after_help = "Example:\n  wifshare stop --all")]
    Stop(StopArguments),
    /// Print a shared access token; exchange only if none is cached
    #[command(after_help = TOKEN)]
    Token(TokenArguments),
    /// Show the credentials, their lifetimes and the processes that use them
    #[command(after_help = "Example:\n  wifshare status --watch")]
    Status(StatusArguments),
    /// Report what happened in this job: processes, exchanges, and what sharing saved
    #[command(after_help = "Example:\n  wifshare report --format html > report.html")]
    Report(ReportArguments),
    /// Run the gateway on its own, without a command
    ///
    /// Prints its address and its capability, and adds the credential to the requests that it forwards. On SIGTERM or
    /// SIGINT it finishes open requests (--grace) and exits with 0.
    #[command(after_help = "Example:\n  wifshare gateway --listen 127.0.0.1:8787 --format env > gateway.env")]
    Gateway(GatewayArguments),
    /// Run a mock identity provider and token endpoint, or test a client for single use
    ///
    /// The token endpoint accepts each identity token once. With a command, runs it against the server and exits with its
    /// exit code; without, prints the variables that point a client at the server, and serves until SIGINT or SIGTERM.
    ///
    /// With --conformance, runs a client against the rules of single use, case by case; exits with 0 if every rule that
    /// applies is kept, else with 1.
    #[command(after_help = SANDBOX)]
    Sandbox(SandboxArguments),
    /// Show what single use does to parallel processes, without and with wifshare
    ///
    /// Runs on a mock server on loopback. Exits with 1 unless all sharing processes succeed with one exchange.
    #[command(after_help = "Example:\n  wifshare demo --processes 16")]
    Demo(DemoArguments),
    /// Check the sign-in setup without using up an identity token, and suggest fixes
    ///
    /// Exits with 0 if nothing wrong was found, else with 1.
    #[command(after_help = DOCTOR)]
    Doctor(DoctorArguments),
    /// Explain an error code: meaning, causes, where to look and what to do
    ///
    /// Without a code, lists all codes.
    #[command(after_help = "Example:\n  wifshare explain exchange-refused")]
    Explain(ExplainArguments),
    /// Print the completion script for a shell
    #[command(
        after_help = "Example:\n  wifshare completions bash > ~/.local/share/bash-completion/completions/wifshare"
    )]
    Completions(CompletionsArguments),
    /// Print a man page, or write all of them to a directory
    #[command(after_help = MAN)]
    Man(ManArguments),
}

impl Command {
    /// Whether the command serves a gateway, which keeps the credential only in its memory.
    pub(crate) fn keeps_a_credential_in_memory(&self) -> bool {
        match self {
            Command::Exec(arguments) => arguments.share.delivery == Some(Delivery::Gateway),
            Command::Claude(arguments) => arguments.share.delivery == Some(Delivery::Gateway),
            Command::Gateway(_) => true,
            _ => false,
        }
    }
}

// Options for the identity and the state directory. An option takes precedence over its variable.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Identity options")]
pub(crate) struct IdentityArguments {
    /// Base URL of the API (ANTHROPIC_BASE_URL)
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Federation rule, fdrl_… (ANTHROPIC_FEDERATION_RULE_ID)
    #[arg(long, value_name = "ID")]
    federation_rule_id: Option<String>,
    /// Organization, a UUID (ANTHROPIC_ORGANIZATION_ID)
    #[arg(long, value_name = "ID")]
    organization_id: Option<String>,
    /// Service account, svac_… (ANTHROPIC_SERVICE_ACCOUNT_ID)
    #[arg(long, value_name = "ID")]
    service_account_id: Option<String>,
    /// Workspace, wrkspc_… or `default` (ANTHROPIC_WORKSPACE_ID)
    #[arg(long, value_name = "ID")]
    workspace_id: Option<String>,
    /// Audience of the identity token (ANTHROPIC_OIDC_AUDIENCE)
    #[arg(long, value_name = "AUDIENCE")]
    audience: Option<String>,
    /// File that contains the identity token (ANTHROPIC_IDENTITY_TOKEN_FILE)
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, conflicts_with = "identity_command")]
    identity_token_file: Option<PathBuf>,
    /// Command that prints an identity token; split at spaces, run without a shell (no variable)
    #[arg(long, value_name = "COMMAND")]
    identity_command: Option<String>,
    /// Platform to request identity tokens from, instead of the one that is detected (no variable)
    #[arg(
        long,
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(platforms()),
        conflicts_with_all = ["identity_command", "identity_token_file"]
    )]
    identity_source: Option<String>,
    /// Refuse an identity token whose subject (`sub`) is not this; * stands for any text (WIFSHARE_EXPECT_SUBJECT)
    #[arg(long, value_name = "SUBJECT", value_parser = subject)]
    #[serde(default)]
    expect_subject: Option<String>,
    /// State directory (WIFSHARE_STATE_DIR)
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,
}

/// The variable that sets `--expect-subject`.
pub(crate) const EXPECT_SUBJECT: &str = "WIFSHARE_EXPECT_SUBJECT";

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
            // A blank value counts as unset, as for every other input.
            identity_command: self.identity_command.as_ref().map(words).filter(|words: &Vec<_>| !words.is_empty()),
            identity_source: self.identity_source.clone(),
            expected_subject: self.expect_subject.as_deref().map(SubjectPattern::new),
            endpoints: endpoints(),
            state_dir: self.state_dir.clone(),
            // Without a working directory, absolute paths still work, and relative ones fail where they are used.
            working_directory: std::env::current_dir().unwrap_or_default(),
        }
    }

    /// The options that identify what a run shares, as pairs of variable name and value.
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

    /// The other options that a later `start` needs to sign in the same way, as pairs of variable name and value.
    pub(crate) fn not_shared(&self) -> impl Iterator<Item = (&'static str, String)> {
        let file = self.identity_token_file.as_ref().and_then(|path| path.to_str()).map(str::to_owned);
        [
            ("ANTHROPIC_OIDC_AUDIENCE", self.audience.clone()),
            ("ANTHROPIC_IDENTITY_TOKEN_FILE", file),
            (EXPECT_SUBJECT, self.expect_subject.clone()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?.trim().to_owned())))
        .filter(|(_, value)| !value.is_empty())
    }

    /// Whether any option identifies who signs in. Then the enclosing run is not used.
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
            &self.expect_subject,
        ];
        let is_said = |text: &&Option<String>| text.as_ref().is_some_and(|text| !text.trim().is_empty());
        texts.iter().any(is_said) || self.identity_token_file.is_some()
    }
}

// Options that select the state directory to read.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateArguments {
    /// State directory (WIFSHARE_STATE_DIR; inside a run, the run's)
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,
}

impl StateArguments {
    /// Returns the state directory: the one from the option, that of the enclosing run, or the user's default.
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
    /// Print a JSON object; docs/reference/report.md describes it
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep running and print again when something changes; on a terminal, q quits
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ReportArguments {
    #[command(flatten)]
    pub(crate) state: StateArguments,
    /// Output format [default: text on a terminal, else md]
    #[arg(long, value_enum)]
    pub(crate) format: Option<ReportFormat>,
    /// Report everything in the logs, not only this job
    #[arg(long, conflicts_with = "since")]
    pub(crate) all: bool,
    /// Report what happened in the last DURATION, such as 10m or 2h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) since: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// Text with bars
    Text,
    /// Markdown with a Mermaid chart, as GitHub renders it
    Md,
    /// A self-contained HTML page
    Html,
    /// The timeline as an SVG image
    Svg,
    /// A JSON object; docs/reference/report.md describes it
    Json,
}

// Options that control how a command gets the credential.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Delivery options")]
pub(crate) struct ShareArguments {
    /// How the command gets the credential [default: profile]
    #[arg(long, value_name = "DELIVERY", value_parser = delivery_parser())]
    pub(crate) delivery: Option<Delivery>,
    /// With --delivery gateway: set ANTHROPIC_API_KEY to the capability too, for clients that read no other variable
    #[arg(long, requires = "delivery")]
    pub(crate) api_key: bool,
    /// Variable to leave in the command's environment instead of removing it (repeatable)
    #[arg(long, value_name = "NAME", value_parser = variable_name)]
    pub(crate) keep_env: Vec<String>,
    /// Go on without a credential if federation is not configured, as in a pull request from a fork
    #[arg(long)]
    pub(crate) optional: bool,
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
}

/// Parses a delivery by its name, with a description of each for help and completions.
fn delivery_parser() -> impl TypedValueParser<Value = Delivery> {
    let named = Delivery::ALL.map(|delivery| match delivery {
        Delivery::Profile => PossibleValue::new("profile").help("A profile with a credential file, kept fresh"),
        Delivery::Federation => PossibleValue::new("federation")
            .help("Like profile, plus an unspent identity token for clients that federate by themselves"),
        Delivery::Environment => {
            PossibleValue::new("environment").help("ANTHROPIC_AUTH_TOKEN, as valid when the command starts")
        }
        Delivery::Gateway => PossibleValue::new("gateway")
            .help("A local address and a capability that is useless elsewhere; the command never holds the credential"),
    });
    PossibleValuesParser::new(named).try_map(|name| name.parse::<Delivery>())
}

impl ShareArguments {
    /// Rejects invalid combinations of options.
    ///
    /// # Errors
    /// Returns a usage error if `--api-key` is given with a delivery other than the gateway.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self.delivery {
            Some(delivery) if self.api_key && delivery != Delivery::Gateway => Err(Failure::usage(
                format!("--api-key needs --delivery gateway, and not {delivery}: an access token is not an API key"),
                "give --delivery gateway, or leave --api-key out",
            )),
            _ => Ok(()),
        }
    }

    /// Options of the gateway of a run, used with `--delivery gateway`.
    pub(crate) fn options(&self) -> GatewayOptions {
        GatewayOptions { api_key: self.api_key, ..GatewayOptions::default() }
    }
}

#[derive(Args, Debug)]
pub(crate) struct ExecArguments {
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
    #[command(flatten)]
    pub(crate) share: ShareArguments,
}

#[derive(Args, Debug)]
pub(crate) struct ClaudeArguments {
    /// Marketplace to add: a local path (./…, ../…, /…) or an https URL that ends in .git (repeatable; also the lines of
    /// INPUT_PLUGIN_MARKETPLACES)
    #[arg(long = "marketplace", value_name = "MARKETPLACE")]
    pub(crate) marketplaces: Vec<String>,
    /// Plugin to install: NAME or NAME@MARKETPLACE (repeatable; also the lines of INPUT_PLUGINS)
    #[arg(long = "plugin", value_name = "PLUGIN")]
    pub(crate) plugins: Vec<String>,
    /// claude executable
    #[arg(long, value_name = "PROGRAM", default_value = "claude")]
    pub(crate) claude: OsString,
    /// Arguments of the query; without any, no query is run
    #[arg(last = true, value_name = "CLAUDE_ARG")]
    pub(crate) query: Vec<OsString>,
    #[command(flatten)]
    pub(crate) share: ShareArguments,
}

#[derive(Args, Debug)]
pub(crate) struct StartArguments {
    /// How to pass the variables to later steps [default: github if GITHUB_ENV is set, else env]
    #[arg(long, value_enum)]
    pub(crate) format: Option<HandOver>,
    /// Process whose end ends the keeper [default: the CI's job process or the terminal's shell, if found]
    #[arg(long, value_name = "PID|none", value_parser = watch)]
    pub(crate) watch_pid: Option<Watched>,
    /// Maximum lifetime of the keeper, such as 90m or 6h; another `start` extends it. Default: 24h where it ends with a
    /// process, else the job's limit where the CI tells it (CI_JOB_TIMEOUT, BUILDKITE_TIMEOUT), else 1h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) max_life: Option<Duration>,
    #[command(flatten)]
    pub(crate) share: ShareArguments,
}

/// The process whose end ends a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// No process.
    None,
    /// The process with this id.
    Pid(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HandOver {
    /// Append to the files named by GITHUB_ENV and GITHUB_OUTPUT
    Github,
    /// Shell commands (export and unset) for eval
    Env,
    /// A JSON object; null for a variable to remove
    Json,
    /// NAME=value lines; NAME= for a variable to remove
    Dotenv,
}

#[derive(Args, Debug)]
pub(crate) struct StopArguments {
    /// How to give the next steps the job's own variables back [default: github if GITHUB_ENV is set, else not at all]
    #[arg(long, value_enum)]
    pub(crate) format: Option<HandOver>,
    /// End every keeper in the state directory [default: the one that options or variables name, or all if they name none]
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
}

#[derive(Args, Debug)]
pub(crate) struct TokenArguments {
    /// Minimum remaining lifetime of the token, such as 90s, 5m or 1h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) min_life: Option<Duration>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    /// Only the token
    Text,
    /// A JSON object with access_token, token_type, expires_in and expires_at
    Json,
    /// An HTTP header line
    Header,
    /// ANTHROPIC_AUTH_TOKEN=…
    Env,
    /// Only the token, as claude's apiKeyHelper expects it
    ApiKeyHelper,
    /// A JSON object like AWS's credential_process: Version, AccessToken, TokenType, Expiration
    CredentialProcess,
}

#[derive(Args, Debug)]
pub(crate) struct GatewayArguments {
    /// Address to listen on: loopback only; port 0 picks a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Listen on a Unix socket instead, for this user only; clients send `Host: localhost`
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, conflicts_with = "listen")]
    pub(crate) unix: Option<PathBuf>,
    /// Time for open requests to finish after a signal
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration_or_none)]
    pub(crate) grace: Duration,
    /// Print the capability as ANTHROPIC_API_KEY too, for clients that read no other variable
    #[arg(long)]
    pub(crate) api_key: bool,
    /// Output format of address and capability
    #[arg(long, value_enum, default_value_t = GatewayFormat::Env)]
    pub(crate) format: GatewayFormat,
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
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
    /// Address to listen on: loopback only; port 0 picks a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Settings as a JSON object, such as '{"exchange_latency_ms": 1200}'; GET /sandbox/settings lists them all
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub(crate) settings: String,
    /// Output format of the variables that point a client at the server
    #[arg(long, value_enum, default_value_t = SandboxFormat::Dotenv, conflicts_with_all = ["command", "conformance"])]
    pub(crate) format: SandboxFormat,
    /// Client command and its arguments: run against the server, which ends with it
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
    #[command(flatten)]
    pub(crate) conformance: ConformanceArguments,
}

// Options for testing a client against the mock server.
#[derive(Args, Debug)]
#[command(next_help_heading = "Conformance options")]
pub(crate) struct ConformanceArguments {
    /// Run a client case by case, each with a fresh server and an empty home directory, and print a table
    #[arg(long, requires = "command", conflicts_with_all = ["listen", "settings"])]
    pub(crate) conformance: bool,
    /// Where the client finds identity tokens
    #[arg(long, value_enum, value_name = "SOURCE", default_value_t = TokenSource::File, requires = "conformance")]
    pub(crate) source: TokenSource,
    /// Time limit for one run of the client
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration, requires = "conformance")]
    pub(crate) bound: Duration,
    /// Run only this case (repeatable)
    #[arg(long = "case", value_name = "NAME", requires = "conformance")]
    pub(crate) cases: Vec<Case>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SandboxFormat {
    /// NAME=value lines
    Dotenv,
    /// Shell commands (export) for eval
    Env,
    /// A JSON object
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TokenSource {
    /// A file, named by ANTHROPIC_IDENTITY_TOKEN_FILE
    File,
    /// GitHub's endpoint: ACTIONS_ID_TOKEN_REQUEST_URL and …_TOKEN
    Endpoint,
    /// The file and the endpoint
    Both,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArguments {
    /// Compare an identity token with this federation rule, a JSON file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) rule: Option<PathBuf>,
    /// Check the installed clients for this delivery
    #[arg(long, value_name = "DELIVERY", value_parser = delivery_parser(), default_value_t)]
    pub(crate) delivery: Delivery,
    /// Also sign in: uses up one identity token and caches the credential for other processes
    #[arg(long)]
    pub(crate) exchange: bool,
    /// Print the findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
}

#[derive(Args, Debug)]
pub(crate) struct CompletionsArguments {
    /// Shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(crate) struct ManArguments {
    /// Command whose page to print [default: wifshare itself]
    #[arg(value_name = "COMMAND", value_parser = Offered(commands), hide_possible_values = true)]
    pub(crate) command: Option<String>,
    /// Write all pages to this directory
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath, conflicts_with = "command")]
    pub(crate) directory: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct ExplainArguments {
    /// Error code, as printed in `error[…]`, or what you would search for, such as jti_reused or 401
    #[arg(value_name = "CODE", num_args = 0.., value_parser = Offered(codes), hide_possible_values = true)]
    pub(crate) code: Vec<String>,
    /// Print the page of the documentation that lists them all
    #[arg(long, hide = true, conflicts_with = "code")]
    pub(crate) markdown: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DemoArguments {
    /// Number of parallel processes
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

/// A parser that accepts any text and offers these values as completions.
#[derive(Clone)]
struct Offered(fn() -> Vec<&'static str>);

impl TypedValueParser for Offered {
    type Value = String;

    fn parse_ref(&self, command: &clap::Command, argument: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.0)().into_iter().map(PossibleValue::new)))
    }
}

fn codes() -> Vec<&'static str> {
    CATALOGUE.iter().map(|entry| entry.code).collect()
}

/// Commands that have a man page.
fn commands() -> Vec<&'static str> {
    vec![
        "exec",
        "claude",
        "start",
        "stop",
        "token",
        "status",
        "report",
        "gateway",
        "sandbox",
        "demo",
        "doctor",
        "explain",
        "completions",
        "man",
    ]
}

/// Fixed endpoints of the platforms. In debug builds, tests can replace them by a mock server; release builds do not
/// have this.
#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "a switch of debug builds, for tests with a platform of their own")]
fn endpoints() -> FixedEndpoints {
    let given = |name: &str| std::env::var(name).ok();
    let mut endpoints = FixedEndpoints::default();
    if let Some(address) = given("WIFSHARE_TEST_METADATA") {
        endpoints.google_metadata.clone_from(&address);
        endpoints.azure_metadata = address;
    }
    if let Some(volume) = given("WIFSHARE_TEST_KUBERNETES") {
        endpoints.kubernetes_volume = volume.into();
    }
    endpoints
}

#[cfg(not(debug_assertions))]
fn endpoints() -> FixedEndpoints {
    FixedEndpoints::default()
}

/// Parses the name of one variable.
fn variable_name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name
        .then(|| text.to_owned())
        .ok_or_else(|| "one variable's name was expected; repeat the option for more".to_owned())
}

/// Rejects a blank subject. It comes from an expression that names nothing, and would disable the check.
fn subject(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("a subject is required; an expression such as `vars.NAME` that names nothing is blank".to_owned()),
        text => Ok(text.to_owned()),
    }
}

fn watch(text: &str) -> Result<Watched, String> {
    match (text, text.parse()) {
        ("none", _) => Ok(Watched::None),
        (_, Ok(pid)) if pid > 0 => Ok(Watched::Pid(pid)),
        _ => Err("a process id or `none` was expected".to_owned()),
    }
}

/// Parses a duration of at least one second.
fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_none(text) {
        Ok(Duration::ZERO) => Err("a time of at least 1s was expected".to_owned()),
        duration => duration,
    }
}

/// Parses a whole number and a unit: s, m or h.
fn duration_or_none(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    if unit.is_empty() && !number.is_empty() {
        return Err(format!("a unit is missing: write {number}s, {number}m or {number}h"));
    }
    let seconds = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let whole = number.parse::<u64>().ok().zip(seconds).and_then(|(number, seconds)| number.checked_mul(seconds));
    // Longer than the lifetime of any token (docs/reference/protocol.md §5.3), and short enough to be added to any
    // point in time.
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
    fn arguments_pass_the_clap_self_check() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn frequent_command_parsed_alone_equals_whole_definition() {
        let line = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let whole = |words: &[OsString]| {
            let matches = Arguments::command().no_binary_name(true).try_get_matches_from(words);
            matches.and_then(|matches| Arguments::from_arg_matches(&matches))
        };
        for words in [
            "token",
            "token -v -vv --mask never",
            "token --log-format=json --min-life 90s --format json --base-url https://api.example",
            "exec true",
            "exec -v -- ./run --mask always -v",
            "exec --delivery gateway --api-key --keep-env A --keep-env B ./run --help",
            "exec --identity-token-file t --optional ./run",
        ] {
            let parsed = Arguments::parse_frequent(&line(words)).expect(words).expect(words);
            assert_eq!(format!("{parsed:?}"), format!("{:?}", whole(&line(words)).expect(words)));
        }
        for words in ["--version", "-V", "--version token", "-V --mistake"] {
            let said = Arguments::parse_frequent(&line(words)).expect(words).expect_err(words);
            let whole = whole(&line(words)).expect_err(words);
            assert_eq!((said.to_string(), said.kind()), (whole.to_string(), whole.kind()));
        }
        for words in [
            "token --help",
            "exec -h",
            "exec",
            "exec --api-key true",
            "token --min-life 5",
            "token --mistake",
            "help token",
        ] {
            assert!(Arguments::parse_frequent(&line(words)).is_none(), "{words}");
            whole(&line(words)).expect_err(words);
        }
    }

    #[test]
    fn man_pages_exist_for_every_command() {
        let mut whole = Arguments::command().disable_help_subcommand(true);
        whole.build();
        assert_eq!(commands(), whole.get_subcommands().map(clap::Command::get_name).collect::<Vec<_>>());
    }

    #[test]
    fn duration_requires_a_unit() {
        for (text, seconds) in [
            ("0", None),
            ("0s", None),
            ("0h", None),
            ("90", None),
            ("1s", Some(1)),
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
