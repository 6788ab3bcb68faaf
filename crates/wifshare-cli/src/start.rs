//! `wifshare start`: signs in for all following steps and leaves a keeper process behind.

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use clap::ValueEnum;
use wifshare::{
    Config, Delivery, EXCHANGE_GRACE, Environment, HttpClient, Keeper, PATIENCE, ProcessIdentity, Provision,
    delivery_around, prove,
};

use crate::arguments::{HandOver, StartArguments, Watched};
use crate::background::{Thread, no_thread};
use crate::catalogue::code;
use crate::clock::clock;
use crate::console::Console;
use crate::failure::Failure;
use crate::handover::{hand_over, receiver};
use crate::job_process;
use crate::joined;
use crate::keeper::{self, Answer, NAME, Orders, VARIABLE};
use crate::share::{Decision, decide};
use crate::shell;
use crate::signals;
use crate::stop;

pub(crate) fn start(arguments: &StartArguments, environment: &Environment, console: Console) -> Result<u8, Failure> {
    // Limits a wait after a signal, for example for a pipe that is not read.
    const GRACE: Duration = Duration::from_secs(20);
    let listening = signals::listen_and_end_within(GRACE);
    let format = arguments.format.unwrap_or_else(|| receiver(environment));
    let started = listening.and_then(|()| begin(arguments, format, environment, console));
    let code = started.as_ref().map_or_else(Failure::exit_code, |code| *code);
    if code != 0 {
        fail_where_evaluated(format, code);
    }
    started
}

/// Makes a shell that evaluates the output fail with the same exit code.
pub(crate) fn fail_where_evaluated(format: HandOver, code: u8) {
    if format == HandOver::Env {
        // If standard output is closed, nothing is evaluated.
        let _ = std::io::stdout().write_all(shell::failure(code).as_bytes());
    }
}

/// Finds the requested format in a command line that could not be parsed.
pub(crate) fn format_among(words: &[OsString], environment: &Environment) -> Option<HandOver> {
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).take_while(|word| *word != "--").collect();
    if words.iter().find(|word| !word.starts_with('-')) != Some(&"start") {
        return None;
    }
    let follows = words.iter().position(|word| *word == "--format").and_then(|place| words.get(place + 1).copied());
    let named = follows.or_else(|| words.iter().find_map(|word| word.strip_prefix("--format=")));
    named.map_or(Some(receiver(environment)), |name| HandOver::from_str(name, true).ok())
}

fn begin(
    arguments: &StartArguments,
    format: HandOver,
    environment: &Environment,
    console: Console,
) -> Result<u8, Failure> {
    arguments.share.check()?;
    let watched = watched(arguments)?;
    let life = arguments.max_life.unwrap_or_else(|| usual_life(watched.as_ref(), environment));
    let hand_over = |keeper: &Keeper| hand_over(keeper, &arguments.share.identity, format, environment, console);
    let join = |keeper: &Keeper| {
        console.detail("a keeper runs already: joining it");
        // Extending fails if the keeper ends meanwhile or its directory belongs to another user. It then keeps its
        // time.
        let _ = keeper.extend(clock().now() + life);
        hand_over(keeper)?;
        announce("joined", keeper, watched.as_ref(), format, console);
        Ok(0)
    };
    // A keeper that gives more than is requested now, and would continue to do so.
    let mut exceeding = None;
    if joined::run_to_join(&arguments.share.identity, environment).is_some() {
        match joined::keeper_around(environment) {
            Some(keeper) if is_asked_for(&keeper, arguments) => return join(&as_asked_for(keeper, arguments)),
            Some(keeper) if gives_less(&keeper, arguments) => {
                console.notice(&format!(
                    "--delivery {} gives more than the keeper around this step does: its delivery, {}, stays",
                    arguments.share.delivery.unwrap_or_default(),
                    keeper.provides
                ));
                return join(&keeper);
            }
            Some(keeper) => exceeding = Some(keeper),
            None => {
                refuse_less_than_the_run_around(arguments, environment)?;
                console.notice(
                    "this command is inside a run of wifshare, which keeps the credential fresh until its command \
                     ends: nothing is started",
                );
                return Ok(0);
            }
        }
    }
    let decision = decide(&arguments.share, environment, console);
    // The enclosing keeper may have removed the variables that this step needs to sign in.
    let is_missing = ["unconfigured", "configured-in-part", "no-identity-source"];
    let decision = decision.map_err(|failure| match &exceeding {
        Some(keeper) if is_missing.contains(&&*failure.name) => cannot_replace(keeper, arguments, Some(&failure)),
        _ => failure,
    });
    let (config, provision) = match decision? {
        Decision::AsItIs | Decision::WithoutACredential => {
            return exceeding.map_or(Ok(0), |keeper| Err(cannot_replace(&keeper, arguments, None)));
        }
        Decision::Begin(config, provision) => (*config, provision),
    };
    refuse_a_path_that_is_no_text(&config.location.root)?;
    let own = joined::without_a_run(environment);
    let watch = |step: &wifshare::Progress<'_>| console.step(step);
    // A keeper serves one identity. A process that joins it must prove the same identity.
    prove(&config, &HttpClient::new(&own), clock(), &watch)?;
    let store = config.store();
    // Other processes that call `start` meanwhile wait, and then find this keeper.
    let starting = store.starting(PATIENCE, clock(), &watch)?;
    if let Some(keeper) = &exceeding {
        replace(keeper, provision, environment, console)?;
    }
    let found = store.keepers().into_iter().find(|keeper| keeper.provides == provision.to_string());
    if let Some(keeper) = found {
        drop(starting);
        return join(&as_asked_for(keeper, arguments));
    }
    let launched = launch(&config, provision, arguments, watched.clone(), life, &own, console);
    if let Some(code) = signals::code_of_interruption() {
        if let Ok((keeper, receipt)) = launched {
            drop(receipt);
            stop::end(&keeper);
        }
        return Ok(code);
    }
    let (keeper, receipt) = launched?;
    drop(starting);
    let handed_over = hand_over(&keeper).and_then(|()| receipt.acknowledge());
    if handed_over.is_err() {
        // No other process could find it.
        stop::end(&keeper);
    }
    handed_over?;
    announce("started", &keeper, watched.as_ref(), format, console);
    Ok(0)
}

/// Reports who is signed in, and how long the keeper lives.
fn announce(verb: &str, keeper: &Keeper, watched: Option<&ProcessIdentity>, format: HandOver, console: Console) {
    let id = |name: &str| keeper.identity.get(name).map(|id| wifshare::safe_text(id));
    let rule = id("ANTHROPIC_FEDERATION_RULE_ID").filter(|rule| !rule.is_empty());
    let rule = rule.map(|rule| format!(" for rule {rule}")).unwrap_or_default();
    let account = id("ANTHROPIC_SERVICE_ACCOUNT_ID").map(|account| format!(", {account}")).unwrap_or_default();
    let with = watched.map(|owner| format!(", the end of process {}", owner.pid)).unwrap_or_default();
    let until = keeper.until().map(|end| format!(" or {}", humantime::format_rfc3339_seconds(end))).unwrap_or_default();
    console.progress(&format!(
        "{verb} the keeper with {}{rule}{account}: it renews until `wifshare stop`{with}{until}",
        keeper.owner
    ));
    if format == HandOver::Env && std::io::stdout().is_terminal() {
        console.progress(
            "the lines above set nothing by themselves: run eval \"$(wifshare start)\" (fish: wifshare start | source)",
        );
    }
}

/// The process whose end ends the keeper.
///
/// # Errors
/// Returns a usage error if the process of `--watch-pid` does not exist.
fn watched(arguments: &StartArguments) -> Result<Option<ProcessIdentity>, Failure> {
    Ok(match arguments.watch_pid {
        Some(Watched::None) => None,
        Some(Watched::Pid(pid)) => Some(ProcessIdentity::of(pid).ok_or_else(|| {
            Failure::usage(
                format!("there is no process {pid} to watch"),
                "give --watch-pid a living process, or `none`",
            )
        })?),
        None => job_process::around_us(),
    })
}

/// Default lifetime of a keeper: a day if it ends with a process, else the time limit of the job, else an hour.
fn usual_life(watched: Option<&ProcessIdentity>, environment: &Environment) -> Duration {
    const DAY: Duration = Duration::from_secs(86_400);
    const HOUR: Duration = Duration::from_secs(3600);
    const WEEK: u64 = 7 * 86_400;
    let number = |name: &str| environment.text(name).and_then(|text| text.parse::<u64>().ok()).filter(|it| *it > 0);
    // GitLab gives seconds, Buildkite gives minutes.
    let limit = number("CI_JOB_TIMEOUT").or(number("BUILDKITE_TIMEOUT").map(|minutes| minutes.saturating_mul(60)));
    match (watched, limit) {
        (Some(_), _) => DAY,
        (None, Some(seconds)) => Duration::from_secs(seconds.min(WEEK)),
        (None, None) => HOUR,
    }
}

/// Rejects a state directory that is not UTF-8: later steps get its path as text, in files and variables.
///
/// # Errors
/// Returns an error if the path is not UTF-8.
fn refuse_a_path_that_is_no_text(root: &Path) -> Result<(), Failure> {
    if root.to_str().is_some() {
        return Ok(());
    }
    Err(Failure::new(
        code!("path-not-text"),
        format!("the state directory {} is not UTF-8 text", root.display()),
        Some("choose another one with --state-dir or WIFSHARE_STATE_DIR"),
    ))
}

/// Whether the enclosing keeper provides the requested delivery.
fn is_asked_for(keeper: &Keeper, arguments: &StartArguments) -> bool {
    arguments.share.delivery.is_none_or(|delivery| keeper.provides == delivery.to_string())
}

/// Adds the API key to what a running keeper gives, if this start requests it.
fn as_asked_for(mut keeper: Keeper, arguments: &StartArguments) -> Keeper {
    if arguments.share.api_key
        && let Some(capability) = keeper.gives.text("ANTHROPIC_AUTH_TOKEN").map(str::to_owned)
    {
        keeper.gives.set("ANTHROPIC_API_KEY", capability);
    }
    keeper
}

/// Whether the enclosing keeper gives less than is requested.
fn gives_less(keeper: &Keeper, arguments: &StartArguments) -> bool {
    let around = keeper.provides.parse::<Delivery>();
    arguments.share.delivery.is_some_and(|asked| around.is_ok_and(|around| around.gives_less_than(asked)))
}

/// Ends a keeper of this job that gives more than is requested now: its credential would stay readable.
///
/// # Errors
/// Returns an error if its state cannot be removed.
fn replace(keeper: &Keeper, provision: Provision, environment: &Environment, console: Console) -> Result<(), Failure> {
    stop::end_and_sum_up(keeper, environment, console);
    let key = keeper.key_directory().unwrap_or(&keeper.directory);
    let root = key.parent().unwrap_or(key);
    let is_clear = wifshare::clear(root, Some(&[key.to_owned()]), clock(), &|step| console.step(step))?;
    let stays = if is_clear { "" } else { "; its credential stays, because others still use it" };
    console.progress(&format!(
        "ended the keeper with {}: --delivery {provision} is asked for, and it gave {}{stays}",
        keeper.owner, keeper.provides
    ));
    Ok(())
}

/// The error if the enclosing keeper gives more than is requested now but cannot be replaced.
fn cannot_replace(keeper: &Keeper, arguments: &StartArguments, why: Option<&Failure>) -> Failure {
    let asked = arguments.share.delivery.unwrap_or_default();
    let message = format!(
        "--delivery {asked} is asked for, and the keeper around this step, which gives {}, cannot be replaced",
        keeper.provides
    );
    let hint = format!(
        "run `wifshare stop` first (in a shell: eval \"$(wifshare stop --format env)\"), then \
         `wifshare start --delivery {asked}`"
    );
    let mut failure = Failure::new(code!("delivery-refused"), message, Some(&hint));
    failure.causes.extend(why.into_iter().flat_map(|why| std::iter::once(&why.message).chain(&why.causes)).cloned());
    failure
}

/// Rejects a delivery that gives less than the enclosing `exec`. A keeper would have no source to renew from, and the
/// variables of the run would stay.
///
/// # Errors
/// Returns an error if the requested delivery gives less.
fn refuse_less_than_the_run_around(arguments: &StartArguments, environment: &Environment) -> Result<(), Failure> {
    let around = delivery_around(environment).unwrap_or(Delivery::Federation);
    let asked = arguments.share.delivery.filter(|asked| asked.gives_less_than(around));
    asked.map_or(Ok(()), |asked| {
        Err(Failure::new(
            code!("delivery-refused"),
            format!(
                "`start` inside a run cannot give the following commands --delivery {asked}: that run gives {around}"
            ),
            Some(&format!("wrap each of them: `wifshare exec --delivery {asked} -- COMMAND`")),
        ))
    })
}

/// Standard input of a keeper, which waits for the acknowledgement that its variables were passed on.
struct Receipt(ChildStdin);

impl Receipt {
    fn acknowledge(mut self) -> Result<(), Failure> {
        let told = self.0.write_all(&[keeper::ACKNOWLEDGED]);
        told.map_err(|error| failed("reach", &error))
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        code!("keeper"),
        format!("could not {what} the keeper: {error}"),
        Some("run `wifshare stop`, which removes what it left, and `wifshare start --verbose`"),
    )
}

/// Starts a keeper and waits until its credential is in place or it reports an error.
///
/// # Errors
/// Returns the keeper's error, or an error if it cannot be started or does not answer.
fn launch(
    config: &Config,
    provision: Provision,
    arguments: &StartArguments,
    watched: Option<ProcessIdentity>,
    life: Duration,
    environment: &Environment,
    console: Console,
) -> Result<(Keeper, Receipt), Failure> {
    match &watched {
        Some(owner) => console.detail(&format!("the keeper ends with process {}", owner.pid)),
        None => console.detail("the keeper ends with `wifshare stop` or after its longest life"),
    }
    let orders = Orders {
        identity: arguments.share.identity.clone(),
        provides: provision.to_string(),
        keep: arguments.share.keep_env.clone(),
        api_key: arguments.share.api_key,
        watched,
        longest: life,
        verbose: console.is_verbose(),
    };
    let orders = serde_json::to_string(&orders).map_err(|error| {
        let message = format!("could not instruct the keeper: {error}");
        Failure::new(code!("path-not-text"), message, Some("name files and directories by paths that are UTF-8 text"))
    })?;
    let program = std::env::current_exe().map_err(|error| failed("find the program of", &error))?;
    let reader = Thread::prepare("answer").map_err(|error| no_thread(&error))?;
    let mut child = Command::new(program)
        .arg(NAME)
        .env_clear()
        .envs(environment.iter())
        .env(VARIABLE, orders)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed("start", &error))?;
    let text = answer(&mut child, reader);
    let answer = text.map(|text| serde_json::from_slice(&text));
    match (answer, child.stdin.take()) {
        (Some(Ok(Answer::Ready(directory))), Some(stdin)) => {
            let keeper = Keeper::of_run(&directory).ok_or_else(|| {
                let message = format!("the keeper of {} ended at once", config.source.description());
                Failure::new(code!("keeper"), message, Some("run `wifshare start --verbose`, which shows each step"))
            })?;
            Ok((keeper, Receipt(stdin)))
        }
        (Some(Ok(Answer::Failed(failure))), _) => Err(failure),
        (answer, _) => {
            let status = end(&mut child);
            // Removes the files of a run that no process keeps.
            wifshare::sweep(&config.location.root, clock(), &|_| {});
            let reason = if answer.is_none() { "it did not answer in time".to_owned() } else { status };
            Err(failed("get an answer from", &reason))
        }
    }
}

/// Ends a keeper that did not answer, and describes how it ended.
fn end(child: &mut Child) -> String {
    let waited = |child: &mut Child| {
        const BOUND: Duration = Duration::from_secs(5);
        const PAUSE: Duration = Duration::from_millis(10);
        let start = (clock().monotonic)();
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Some(status.to_string()),
                Err(error) => return Some(error.to_string()),
                Ok(None) if (clock().monotonic)() - start > BOUND => return None,
                // The system clock, not the one that a signal interrupts: this wait is short and ends a process.
                Ok(None) => drop((wifshare::Clock::system().pause)(PAUSE)),
            }
        }
    };
    // A keeper that has closed its output will probably end by itself.
    waited(child).unwrap_or_else(|| {
        let _ = child.kill();
        waited(child).unwrap_or_else(|| "it could not be ended".to_owned())
    })
}

/// Reads the keeper's answer until the pipe ends: then the keeper holds none of this process's streams. Returns `None`
/// after a timeout. A signal that asks this process to end is forwarded to the keeper, whose answer then follows.
fn answer(child: &mut Child, reader: Thread) -> Option<Vec<u8>> {
    const LARGEST: u64 = 64 * 1024;
    const LOOK_FOR_SIGNALS: Duration = Duration::from_millis(50);
    // Everything that a sign-in can wait for: the lock, the exchange with its retries, an extra identity token.
    const LONGEST: Duration = Duration::from_secs(7 * 60);
    // The time that a keeper needs to end: for an exchange in progress, and a clean-up.
    const GRACE: Duration = Duration::from_secs(EXCHANGE_GRACE.as_secs() + 5);
    let (done, read) = channel();
    let stdout = child.stdout.take();
    reader.begin(move || {
        let mut text = Vec::new();
        // A read error leaves an incomplete answer, which is rejected later.
        let _ = stdout.map(|stdout| stdout.take(LARGEST).read_to_end(&mut text));
        let _ = done.send(text);
    });
    let mut end = (clock().monotonic)() + LONGEST;
    let mut times_told = 0;
    loop {
        match read.recv_timeout(LOOK_FOR_SIGNALS) {
            Ok(text) => return Some(text),
            Err(RecvTimeoutError::Disconnected) => return Some(Vec::new()),
            Err(RecvTimeoutError::Timeout) if (clock().monotonic)() > end => {
                let _ = child.kill();
                return None;
            }
            // Forward each signal: a second one ends what the keeper waits for.
            Err(RecvTimeoutError::Timeout) if times_told < signals::times_asked() => {
                times_told += 1;
                end = (clock().monotonic)() + GRACE;
                // The child was not waited for yet, so its process id is still valid.
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_child(child),
                    rustix::process::Signal::TERM,
                );
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeper_life_without_process_follows_the_job_timeout() {
        let ours = ProcessIdentity::current();
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        for (watched, variables, life) in [
            (Some(&ours), &[("CI_JOB_TIMEOUT", "7200")][..], hours(24)),
            (None, &[("CI_JOB_TIMEOUT", "7200")], hours(2)),
            (None, &[("BUILDKITE_TIMEOUT", "120")], hours(2)),
            (None, &[("BUILDKITE_TIMEOUT", "false")], hours(1)),
            (None, &[("CI_JOB_TIMEOUT", "0")], hours(1)),
            (None, &[("CI_JOB_TIMEOUT", "999999999999999999")], hours(168)),
            (None, &[], hours(1)),
        ] {
            let environment = Environment::from_iter(variables.iter().copied());
            assert_eq!(usual_life(watched, &environment), life, "{variables:?}");
        }
    }

    #[test]
    fn export_format_is_found_in_an_invalid_command_line() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let here = |line: &str| format_among(&words(line), &Environment::default());
        assert_eq!(here("start --bogus"), Some(HandOver::Env));
        assert_eq!(here("-v start --format json --bogus"), Some(HandOver::Json));
        assert_eq!(here("start --format=dotenv"), Some(HandOver::Dotenv));
        assert_eq!(here("exec -- start --format env"), None);
        let github = Environment::from_iter([("GITHUB_ENV", "/f")]);
        assert_eq!(format_among(&words("start --bogus"), &github), Some(HandOver::Github));
    }
}
