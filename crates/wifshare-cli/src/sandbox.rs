//! `wifshare sandbox`: runs the mock server until a signal or its command ends it.

use std::io::Write;
use std::time::Duration;

use wifshare::{Environment, Streams, program_name};
use wifshare_sandbox::{Sandbox, Settings};

use crate::arguments::{SandboxArguments, SandboxFormat};
use crate::catalogue::code;
use crate::conformance::conformance;
use crate::console::Console;
use crate::exec::{look_for, run};
use crate::failure::Failure;
use crate::process_tracker::ProcessTracker;
use crate::signals;
use crate::token::quoted;

pub(crate) fn sandbox(arguments: SandboxArguments, environment: &Environment, console: Console) -> Result<u8, Failure> {
    if arguments.conformance.conformance {
        return conformance(arguments.conformance, arguments.command, environment, console);
    }
    let settings: Settings = serde_json::from_str(&arguments.settings)
        .map_err(|error| Failure::usage(format!("invalid --settings: {error}"), "wifshare sandbox --help"))?;
    let command = arguments.command;
    if !command.is_empty() {
        look_for(&command, environment)?;
    }
    signals::listen()?;
    let sandbox = Sandbox::start_at(arguments.listen, settings).map_err(|error| {
        Failure::new(
            code!("sandbox"),
            format!("could not listen on {}: {error}", arguments.listen),
            Some("give another --listen address; it has to be a loopback one, and port 0 takes any that is free"),
        )
    })?;
    let variables = sandbox.environment();
    if let Some(program) = command.first() {
        let mut of_command = environment.clone();
        variables.into_iter().for_each(|(name, value)| of_command.set(&name, value));
        let name = program_name(&program.to_string_lossy());
        return run(&command, &name, &of_command, Streams::Ours, &mut ProcessTracker::of(&of_command, None));
    }
    let text = match arguments.format {
        SandboxFormat::Dotenv => variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect(),
        SandboxFormat::Env => {
            variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect()
        }
        SandboxFormat::Json => {
            let object: serde_json::Map<_, _> =
                variables.into_iter().map(|(name, value)| (name, value.into())).collect();
            format!("{:#}\n", serde_json::Value::Object(object))
        }
    };
    let mut stdout = std::io::stdout().lock();
    // Ignore a closed standard output: the server works without a reader.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    console.notice("the mock server serves until Ctrl-C (SIGINT or SIGTERM)");
    while signals::pause(Duration::from_secs(3600)).is_ok() {}
    Ok(0)
}
