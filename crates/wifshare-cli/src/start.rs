//! `wifshare start`: the credential for all the steps that follow, kept by a process that stays behind.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use wifshare::{Config, Delivery, Environment, Keeper, Owner, PATIENCE, Provision, delivery_around};

use crate::arguments::{StartArguments, Watched};
use crate::catalogue::code;
use crate::clock::clock;
use crate::failure::Failure;
use crate::handover::{hand_over, receiver};
use crate::job_process;
use crate::joined;
use crate::keeper::{Answer, NAME, Orders, VARIABLE};
use crate::share::{Decision, decide};
use crate::signals;
use crate::stop;
use crate::talk::Talk;

pub(crate) fn start(arguments: &StartArguments, environment: &Environment, talk: Talk) -> Result<u8, Failure> {
    arguments.share.check()?;
    signals::listen();
    let format = arguments.format.unwrap_or_else(|| receiver(environment));
    if joined::run_to_join(&arguments.share.identity, environment).is_some() {
        match joined::keeper_around(environment) {
            Some(keeper) if is_asked_for(&keeper, arguments) => {
                talk.detail("a keeper runs already: joining it");
                hand_over(&as_asked_for(keeper, arguments), format, environment, talk)?;
                return Ok(0);
            }
            Some(keeper) if gives_less(&keeper, arguments) => {
                talk.notice(&format!(
                    "--delivery {} gives more than the keeper around this step does: its delivery, {}, stays",
                    arguments.share.delivery.unwrap_or_default(),
                    keeper.provides
                ));
                hand_over(&keeper, format, environment, talk)?;
                return Ok(0);
            }
            Some(_) => {}
            None => {
                refuse_less_than_the_run_around(arguments, environment)?;
                talk.notice(
                    "this command is inside a run of wifshare, which keeps the credential fresh until its command \
                     ends: nothing is started",
                );
                return Ok(0);
            }
        }
    }
    let (config, provision) = match decide(&arguments.share, environment, talk)? {
        Decision::AsItIs | Decision::WithoutACredential => return Ok(0),
        Decision::Begin(config, provision) => (*config, provision),
    };
    let own = joined::without_a_run(environment);
    let store = config.store();
    let watch = |step: &wifshare::Step<'_>| talk.step(step);
    // Whoever comes meanwhile waits, and finds the keeper that we leave.
    let starting = store.starting(PATIENCE, clock(), &watch)?;
    let found = store.keepers().into_iter().find(|keeper| keeper.provides == provision.to_string());
    let (keeper, is_new) = match found {
        Some(keeper) => (as_asked_for(keeper, arguments), false),
        None => {
            let launched = launch(&config, provision, arguments, &own, talk);
            if let Some(code) = signals::code_of_interruption() {
                if let Ok(keeper) = &launched {
                    stop::end(keeper);
                }
                return Ok(code);
            }
            (launched?, true)
        }
    };
    drop(starting);
    if !is_new {
        talk.detail("a keeper of this identity runs already: joining it");
    }
    let handed_over = hand_over(&keeper, format, environment, talk);
    if handed_over.is_err() && is_new {
        // Nobody would ever find it.
        stop::end(&keeper);
    }
    handed_over.map(|()| 0)
}

/// Whether the keeper around us provides what is asked for.
fn is_asked_for(keeper: &Keeper, arguments: &StartArguments) -> bool {
    arguments.share.delivery.is_none_or(|delivery| keeper.provides == delivery.to_string())
}

/// What a keeper that runs already gives to later steps, with the API key if this start asks for one.
fn as_asked_for(mut keeper: Keeper, arguments: &StartArguments) -> Keeper {
    if arguments.share.api_key
        && let Some(capability) = keeper.gives.text("ANTHROPIC_AUTH_TOKEN").map(str::to_owned)
    {
        keeper.gives.set("ANTHROPIC_API_KEY", capability);
    }
    keeper
}

/// Whether the keeper around us gives less than is asked for.
fn gives_less(keeper: &Keeper, arguments: &StartArguments) -> bool {
    let around = keeper.provides.parse::<Delivery>();
    arguments.share.delivery.is_some_and(|asked| around.is_ok_and(|around| around.gives_less_than(asked)))
}

/// Inside an `exec` there is nothing that a keeper could renew with, and the variables of the run around it stay.
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

/// Starts a keeper and waits until what it keeps is in place, or until it says why not.
fn launch(
    config: &Config,
    provision: Provision,
    arguments: &StartArguments,
    environment: &Environment,
    talk: Talk,
) -> Result<Keeper, Failure> {
    let watched = match arguments.watch_pid {
        Some(Watched::None) => None,
        Some(Watched::Pid(pid)) => Some(Owner::of(pid).ok_or_else(|| {
            Failure::usage(
                format!("there is no process {pid} to watch"),
                "give --watch-pid a living process, or `none`",
            )
        })?),
        None => job_process::around_us(),
    };
    match &watched {
        Some(owner) => talk.detail(&format!("the keeper ends with process {}", owner.pid)),
        None => talk.detail("the keeper ends with `wifshare stop` or after its longest life"),
    }
    let orders = Orders {
        identity: arguments.share.identity.clone(),
        provides: provision.to_string(),
        keep: arguments.share.keep_env.clone(),
        api_key: arguments.share.api_key,
        watched,
        longest: arguments.max_life,
        verbose: talk.is_verbose(),
    };
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(code!("keeper"), format!("could not {what} the keeper: {error}"), None)
    };
    let orders = serde_json::to_string(&orders).map_err(|error| failed("instruct", &error))?;
    let program = std::env::current_exe().map_err(|error| failed("find the program of", &error))?;
    let mut child = Command::new(program)
        .arg(NAME)
        .env_clear()
        .envs(environment.iter())
        .env(VARIABLE, orders)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed("start", &error))?;
    let text = answer(&mut child);
    match serde_json::from_slice(&text) {
        Ok(Answer::Ready(directory)) => Keeper::of_run(&directory).ok_or_else(|| {
            Failure::new(code!("keeper"), format!("the keeper of {} ended at once", config.source.description()), None)
        }),
        Ok(Answer::Failed(failure)) => Err(failure),
        Err(_) => {
            let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(failed("get an answer from", &status))
        }
    }
}

/// Reads what the keeper answers, to the end of the pipe: then it has let go of all that is ours. A signal that asks us
/// to end is passed on to it, and its answer tells the rest.
fn answer(child: &mut Child) -> Vec<u8> {
    const LONGEST: u64 = 64 * 1024;
    const LOOK_FOR_SIGNALS: Duration = Duration::from_millis(50);
    let (done, read) = channel();
    let stdout = child.stdout.take();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        // What cannot be read is no answer.
        let _ = stdout.map(|stdout| stdout.take(LONGEST).read_to_end(&mut text));
        let _ = done.send(text);
    });
    let mut is_told = false;
    loop {
        match read.recv_timeout(LOOK_FOR_SIGNALS) {
            Ok(text) => return text,
            Err(RecvTimeoutError::Disconnected) => return Vec::new(),
            Err(RecvTimeoutError::Timeout) if !is_told && signals::code_of_interruption().is_some() => {
                is_told = true;
                // Not waited for yet, so its number is its own.
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_child(child),
                    rustix::process::Signal::TERM,
                );
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
