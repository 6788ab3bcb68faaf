//! Common to all commands that give children the credential: decides what to share, begins a run, does the work and
//! ends the run.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wifshare::{
    Claims, Config, ConfigError, DELIVERED_TOKENS, DELIVERED_VARIABLE, Delivery, Enclosing, Ending, Environment,
    EventKind, ExistingAuth, GatewayOptions, HttpClient, Living, Progress, Provision, Purpose, RUN_VARIABLE, Reissue,
    RenewalOutlook, Run, StoreError, delivered, delivered_token, delivery_around, existing_auth, prove,
    remove_token_variables, resolve_for, variables_of_the_cis,
};

use crate::access_log::AccessLog;
use crate::arguments::ShareArguments;
use crate::background::{Thread, no_thread};
use crate::catalogue::code;
use crate::clock::clock;
use crate::console::{Console, whole};
use crate::event_writer::EventWriter;
use crate::failure::Failure;
use crate::joined;
use crate::signals;
use crate::summary;

/// Runs `work` with the environment for its children.
///
/// # Errors
/// Returns an error if the run cannot begin or `work` fails.
pub(crate) fn share(
    command: &'static str,
    arguments: &ShareArguments,
    environment: &Environment,
    console: Console,
    work: impl FnOnce(&Environment, Option<&EventWriter>) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    arguments.check()?;
    signals::listen()?;
    if let Some(around) = joined::run_to_join(&arguments.identity, environment) {
        if let Some(delivery) = inner_delivery(arguments.delivery, environment, console) {
            return run_inside(command, &around, delivery, arguments, environment, console, work);
        }
        let (joined, events) = join(command, &around, arguments, environment, console)?;
        return work(&joined, events.as_ref());
    }
    match decide(arguments, environment, console)? {
        Decision::AsItIs => work(environment, None),
        Decision::WithoutACredential => {
            let mut environment = environment.clone();
            remove_token_variables(&mut environment, &arguments.keep_env, &variables_of_the_cis().collect::<Vec<_>>());
            work(&environment, None)
        }
        Decision::Begin(config, provision) => {
            let environment = joined::without_a_run(environment);
            run(command, *config, provision, arguments, &environment, console, work)
        }
    }
}

/// What a command does outside of a run.
pub(crate) enum Decision {
    /// Runs with its environment unchanged.
    AsItIs,
    /// Runs without a credential, because nothing is configured. `--delivery gateway` was requested, so the variables
    /// for an identity token are removed too.
    WithoutACredential,
    /// Begins its own run.
    Begin(Box<Config>, Provision),
}

/// Returns the delivery of a nested run, which a command inside a run needs if it requests less than the enclosing run
/// gives. A request for more has no effect.
fn inner_delivery(asked: Option<Delivery>, environment: &Environment, console: Console) -> Option<Delivery> {
    let asked = asked?;
    // A run of another version may not record its delivery. Assume the one that gives the most.
    let outer = delivery_around(environment).unwrap_or(Delivery::Federation);
    if outer.gives_less_than(asked) {
        console.notice(&format!(
            "--delivery {asked} gives more than the run around this command does: its delivery, {outer}, stays"
        ));
    }
    asked.gives_less_than(outer).then_some(asked)
}

/// Runs `work` in a nested run with a delivery that gives less. The enclosing run is hidden from it.
fn run_inside(
    command: &'static str,
    around: &Enclosing,
    delivery: Delivery,
    arguments: &ShareArguments,
    environment: &Environment,
    console: Console,
    work: impl FnOnce(&Environment, Option<&EventWriter>) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    console.detail(&format!("inside a run of wifshare: serving its credential by --delivery {delivery}"));
    let is_kept = joined::keeper_around(environment).is_some();
    let events = EventWriter::of_a_run(around.directory());
    events.note(EventKind::RunJoined { command: command.to_owned() });
    let directory = Path::new(environment.os(RUN_VARIABLE).unwrap_or_default());
    let access_log = AccessLog::of(events.clone());
    let record = Box::new(move |served: &wifshare::Served<'_>| access_log.take_down(served));
    let options = GatewayOptions { api_key: arguments.api_key, record, ..GatewayOptions::default() };
    let own = joined::without_a_run(environment);
    let watch = Arc::new(move |step: &Progress<'_>| console.step(step));
    let threads = Threads::prepare()?;
    let run = Run::begin_inside(directory, delivery, options, HttpClient::new(&own), clock(), watch)?;
    if let Some(held) = run.held() {
        console.mask(held.access_token.expose());
    }
    events.note(began(command, run.config(), Provision::Credential(delivery)));
    let run = Arc::new(run);
    threads.keep_fresh(&run);
    let worked = guarded(&run, || work(&run.environment(&own, &arguments.keep_env), Some(&events).filter(|_| is_kept)));
    warn_of_survivors(&run, console);
    run.close_gateway(Duration::from_secs(5));
    let ending = run.end();
    events.note(ended(&ending));
    if let Err(error) = ending {
        console.warning(&format!("could not remove what the run left: {error}"));
    }
    worked
}

/// Returns the environment of a command that joins the enclosing run. Also returns the event writer for what the
/// command does, if the enclosing run does not record it.
fn join(
    command: &'static str,
    around: &Enclosing,
    arguments: &ShareArguments,
    environment: &Environment,
    console: Console,
) -> Result<(Environment, Option<EventWriter>), Failure> {
    console.detail("inside a run of wifshare: joining it");
    let events = EventWriter::of_a_run(around.directory());
    events.note(EventKind::RunJoined { command: command.to_owned() });
    let mut joined = environment.clone();
    let is_kept = joined::keeper_around(environment).is_some();
    if is_kept {
        // A CI sets these for each of its steps again, even if the keeper removed them.
        remove_token_variables(&mut joined, &arguments.keep_env, &variables_of_the_cis().collect::<Vec<_>>());
        if let Enclosing::Store { store, .. } = around
            && let Ok(Some(held)) = store.read(clock())
        {
            // The credential may have been renewed since the last step, and this log has no mask for it.
            console.mask(held.access_token.expose());
        }
    }
    let is_own = |name: &&str| environment.has(name) && delivered_token(environment, name).is_none();
    let has_own_token = DELIVERED_TOKENS.iter().any(is_own);
    match (delivery_around(environment), around) {
        // The token that this process inherited may have expired. A token of the user's own stays.
        (Some(Delivery::Environment), _) if arguments.delivery.is_some() || !has_own_token => {
            match joined::shared_by(around, None, clock()) {
                Ok(credential) => {
                    console.mask(credential.access_token.expose());
                    joined.set("ANTHROPIC_AUTH_TOKEN", credential.access_token.expose());
                    joined.set(DELIVERED_VARIABLE, delivered(&credential.access_token));
                }
                // The command may not need the token.
                Err(failure) if arguments.delivery.is_none() => {
                    console.warning(&format!("the command gets the token of before: {}", failure.message));
                }
                Err(failure) => return Err(failure),
            }
        }
        (_, Enclosing::Gateway { capability, .. }) if arguments.api_key => {
            joined.set("ANTHROPIC_API_KEY", capability.expose());
        }
        _ => {}
    }
    Ok((joined, Some(events).filter(|_| is_kept)))
}

/// Decides from the options and the environment, outside of any run.
///
/// # Errors
/// Returns an error if federation is not configured correctly, or the requested delivery cannot be given.
pub(crate) fn decide(
    arguments: &ShareArguments,
    environment: &Environment,
    console: Console,
) -> Result<Decision, Failure> {
    let own = &joined::without_a_run(environment);
    let inputs = arguments.identity.inputs();
    let hides_the_credential = arguments.delivery == Some(Delivery::Gateway);
    let own_profile = match existing_auth(&inputs, own) {
        ExistingAuth::Shadowed(name) | ExistingAuth::OwnProfile(name) if hides_the_credential => {
            return Err(Failure::new(
                code!("delivery-refused"),
                format!("--delivery gateway is asked for, and the command would find the credential that {name} names"),
                Some(&format!("unset {name} for this step, or leave --delivery gateway out")),
            ));
        }
        ExistingAuth::Shadowed(name) => {
            console.warning(&format!(
                "{name} is set, and every client prefers it to federation: nothing is exchanged, and the command runs as it is"
            ));
            return Ok(Decision::AsItIs);
        }
        ExistingAuth::OwnProfile(name) => Some(name),
        ExistingAuth::UnnamedProfile => {
            console.warning(
                "ANTHROPIC_CONFIG_DIR is set without ANTHROPIC_PROFILE: it names no profile, and the federation variables \
                 count; set ANTHROPIC_PROFILE if a profile of that directory is meant",
            );
            None
        }
        ExistingAuth::None => None,
    };
    let purpose = if own_profile.is_some() { Purpose::IdentityToken } else { Purpose::Exchange };
    let config = match resolve_for(purpose, &inputs, own) {
        Ok(config) => config,
        Err(error @ (ConfigError::Unconfigured | ConfigError::NoSource { .. })) if arguments.optional => {
            console.notice(&format!("running the command without a credential, as --optional allows: {error}"));
            return Ok(if hides_the_credential { Decision::WithoutACredential } else { Decision::AsItIs });
        }
        Err(error) => match own_profile {
            Some(name) => {
                console
                    .warning(&format!("{name} is set, and the command runs with your own profile as it is: {error}"));
                return Ok(Decision::AsItIs);
            }
            None => return Err(joined::unconfigured(error, environment)),
        },
    };
    joined::tell_of_a_run_that_is_over(environment, console);
    let Some(name) = own_profile else {
        let delivery = arguments.delivery.unwrap_or_default();
        return Ok(Decision::Begin(Box::new(config), Provision::Credential(delivery)));
    };
    let provided = match config.source.reissue() {
        Reissue::OnDemand => "only an identity token file is provided",
        Reissue::Rotated | Reissue::Limited(_) => "the command runs as it is",
    };
    console.warning(&format!(
        "{name} is set, and your own profile is left as it is: nothing is exchanged, and {provided}"
    ));
    match config.source.reissue() {
        Reissue::OnDemand => Ok(Decision::Begin(Box::new(config), Provision::IdentityToken)),
        Reissue::Rotated | Reissue::Limited(_) => Ok(Decision::AsItIs),
    }
}

fn run(
    command: &'static str,
    config: Config,
    provision: Provision,
    arguments: &ShareArguments,
    environment: &Environment,
    console: Console,
    work: impl FnOnce(&Environment, Option<&EventWriter>) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let source = config.source.description();
    // Times in the log have milliseconds.
    let since = clock().now() - Duration::from_millis(1);
    let threads = Threads::prepare()?;
    let (run, events) = begin(command, config, provision, arguments.options(), SignIn::InTime, environment, console)?;
    let key = run.key_directory();
    let run = Arc::new(run);
    threads.keep_fresh(&run);
    let worked = guarded(&run, || work(&run.environment(environment, &arguments.keep_env), Some(&events)));
    warn_of_survivors(&run, console);
    // A process that the command left behind may be in the middle of a response.
    run.close_gateway(Duration::from_secs(5));
    let ending = run.end();
    events.note(ended(&ending));
    summary::append(&key, since, environment, console);
    match ending {
        Ok(Ending::Kept(expires_at)) => {
            let left = expires_at.duration_since(clock().now()).unwrap_or_default();
            console.notice(&format!(
                "the credential stays in the state directory for another {}, because {source} cannot be asked for another one",
                whole(left)
            ));
        }
        Ok(Ending::Shared | Ending::Removed | Ending::Nothing) => {}
        // The command has done its work, and its exit code counts.
        Err(error) => console.warning(&format!("could not remove what the run left: {error}")),
    }
    worked
}

/// The threads of a run, started before any exchange so that a limit is found early.
struct Threads {
    freshener: Thread,
    /// Reserves a process for the command, until the command is started.
    command: Thread,
}

impl Threads {
    fn prepare() -> Result<Threads, Failure> {
        let prepare = |name| Thread::prepare(name).map_err(|error| no_thread(&error));
        Ok(Threads { freshener: prepare("renewal")?, command: prepare("command")? })
    }

    /// Starts the renewal, and frees the reserved process for the command. The thread is not joined: a request that
    /// hangs must not delay the end of a finished command. `Run::end` does the rest.
    fn keep_fresh(self, run: &Arc<Run>) {
        drop(self.command);
        let run = Arc::clone(run);
        self.freshener.begin(move || run.keep_fresh(fastrand::f64()));
    }
}

/// Does the work of a run. If it panics, ends the run before the panic continues.
pub(crate) fn guarded<T>(run: &Run, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        drop(run.end());
        resume_unwind(panic)
    })
}

/// Warns of processes that outlive the command, because their credential is removed now.
fn warn_of_survivors(run: &Run, console: Console) {
    // A process that the command has just asked to end needs a moment.
    const MOMENT: Duration = Duration::from_millis(200);
    const MOST: usize = 5;
    let living = || wifshare::living_with(RUN_VARIABLE, run.directory(), std::process::id());
    if living().is_empty() {
        return;
    }
    let _ = signals::pause(MOMENT);
    let living: Vec<Living> = living().into_iter().filter(|living| living.is_sure).collect();
    let name = |living: &Living| format!("{} (pid {})", living.program, living.pid);
    let names: Vec<String> = living.iter().take(MOST).map(name).collect();
    if !names.is_empty() {
        console.warning(&format!(
            "the command has ended and {} of the processes that it started still run: {}; the credential that they were \
             given is removed now. For a service that outlives the command, use `wifshare start`",
            living.len(),
            names.join(", ")
        ));
    }
}

/// Whether [`begin`] waits for the credential. A gateway can obtain it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignIn {
    /// Wait for the credential or an error first.
    First,
    /// A gateway obtains it while the command starts.
    InTime,
}

/// Begins a run: shows its steps, logs them and the requests of its gateway, and reports how long it can stay signed
/// in.
///
/// # Errors
/// Returns an error if the run cannot begin or, with [`SignIn::First`], cannot sign in.
pub(crate) fn begin(
    command: &'static str,
    config: Config,
    provision: Provision,
    options: GatewayOptions,
    sign_in: SignIn,
    environment: &Environment,
    console: Console,
) -> Result<(Run, EventWriter), Failure> {
    let reissue = config.source.reissue();
    let source = config.source.description();
    let (run, events) = begin_at(options, command, config, provision, environment, console)?;
    if sign_in == SignIn::First
        && let Err(error) = run.obtain_first()
    {
        events.note(ended(&run.end()));
        return Err(error.into());
    }
    tell_how_long(&run, provision, reissue, &source, console);
    Ok((run, events))
}

/// Like [`begin`], but neither waits for the credential nor reports how long it lasts.
///
/// # Errors
/// Returns an error if the run cannot begin.
pub(crate) fn begin_at(
    options: GatewayOptions,
    command: &'static str,
    config: Config,
    provision: Provision,
    environment: &Environment,
    console: Console,
) -> Result<(Run, EventWriter), Failure> {
    let transport = HttpClient::new(environment);
    prove(&config, &transport, clock(), &|step| console.step(step))?;
    let events = EventWriter::of_a_run(config.store().directory());
    let (pen, began) = (events.clone(), began(command, &config, provision));
    let watch = Arc::new(move |step: &Progress<'_>| {
        console.step(step);
        if let (Progress::Identified(token), "start") = (step, command) {
            show_claims(token.claims(), console);
        }
        match step {
            Progress::Begun => pen.note(began.clone()),
            step => pen.step(step),
        }
        crate::exec::die_if_told_to(step);
    });
    let access_log = AccessLog::of(events.clone());
    let options = GatewayOptions { record: Box::new(move |served| access_log.take_down(served)), ..options };
    let run = Run::begin_with(config, provision, options, transport, clock(), watch);
    let run = run.inspect_err(|_| events.note(ended(&Ok(Ending::Nothing))))?;
    Ok((run, events))
}

/// Shows the claims that a federation rule is compared with, for users who have to correct a rule.
fn show_claims(claims: &Claims, console: Console) {
    let shown = |text: &Option<String>| text.as_deref().map_or("none".to_owned(), wifshare::safe_text);
    let lines = [
        format!("  issuer (iss): {}", shown(&claims.issuer)),
        format!("  subject (sub): {}", shown(&claims.subject)),
        format!("  audience (aud): {}", wifshare::safe_text(&claims.audience.join(", "))),
    ];
    console.folded("wifshare: claims of the identity token", &lines);
}

/// The event for the start of a run. Ids are not secret. The organisation's is left out because it is not needed.
fn began(command: &str, config: &Config, provision: Provision) -> EventKind {
    EventKind::RunBegan {
        command: command.to_owned(),
        delivery: match provision {
            Provision::Credential(delivery) => delivery.to_string(),
            Provision::IdentityToken => "identity-token".to_owned(),
        },
        source: config.location.source.clone(),
        rule: config.grant.federation_rule_id.clone(),
        service_account: config.grant.service_account_id.clone(),
        workspace: config.grant.workspace_id.clone(),
    }
}

/// The event for the end of a run.
pub(crate) fn ended(ending: &Result<Ending, StoreError>) -> EventKind {
    let credential = match ending {
        Ok(Ending::Shared) => "shared",
        Ok(Ending::Removed) => "removed",
        Ok(Ending::Kept(_)) | Err(_) => "kept",
        Ok(Ending::Nothing) => "nothing",
    };
    EventKind::RunEnded { credential: credential.to_owned() }
}

fn tell_how_long(run: &Run, provision: Provision, reissue: Reissue, source: &str, console: Console) {
    let Some(held) = run.held() else { return };
    // Another run may have obtained it, and this log has no mask for it.
    console.mask(held.access_token.expose());
    let left: Duration = held.remaining(clock().now());
    if let Some(outlook) = run.outlook() {
        outlook_of(&outlook, reissue, left, console);
    }
    warn_of_short_life(provision, held.lifetime(), console);
    if provision == Provision::Credential(Delivery::Environment) {
        console.notice(&format!(
            "ANTHROPIC_AUTH_TOKEN is good for {}; a child that runs longer has to ask anew",
            whole(left)
        ));
    }
    if provision == Provision::Credential(Delivery::Federation) && !run.hands_out_identity_tokens() {
        console.warning(&format!(
            "{source} cannot be asked for a token to spare, so a client that federates by itself finds a spent one"
        ));
    }
}

/// Warns if a credential lives so short that clients, which refuse one with 30 s left (docs/reference/protocol.md
/// §4.1), find none that they accept for part of the time. Behind the gateway, clients do not see the expiry.
fn warn_of_short_life(provision: Provision, lifetime: Duration, console: Console) {
    const LONG_ENOUGH: Duration = Duration::from_secs(60);
    let reads_its_end = matches!(provision, Provision::Credential(Delivery::Profile | Delivery::Federation));
    if reads_its_end && lifetime < LONG_ENOUGH {
        console.warning(&format!(
            "credentials of this rule live {}, and clients refuse one with 30 s left or less: use --delivery gateway, or \
             raise the rule's token lifetime in the Claude Console",
            whole(lifetime)
        ));
    }
}

/// Reports how long the job can stay signed in, and why. It is a notice if the end is certain or
/// near, else verbose output.
fn outlook_of(outlook: &RenewalOutlook, reissue: Reissue, left: Duration, console: Console) {
    const SIGHT: Duration = Duration::from_secs(3600);
    let because = &outlook.because;
    let Some(ends_at) = outlook.ends_at else {
        return console.detail(&format!(
            "signed in; the credential lives {} and is renewed while the command runs, because {because}",
            whole(left)
        ));
    };
    let until_then = ends_at.duration_since(clock().now()).unwrap_or_default();
    let (about, is_aloud) = match reissue {
        Reissue::Limited(0 | 1) => ("", true),
        Reissue::Limited(_) => ("about ", true),
        Reissue::OnDemand | Reissue::Rotated => ("about ", until_then < SIGHT),
    };
    let text = format!("this command can stay signed in for {about}{}, because {because}", whole(until_then.max(left)));
    if is_aloud { console.notice(&text) } else { console.detail(&text) }
}
