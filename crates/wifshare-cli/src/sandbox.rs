//! `wifshare sandbox`: the practice ground as a server, until somebody ends it.

use std::io::Write;
use std::time::Duration;

use wifshare::Environment;
use wifshare_sandbox::{Knobs, Sandbox};

use crate::arguments::SandboxArguments;
use crate::catalogue::code;
use crate::conformance::conformance;
use crate::failure::Failure;
use crate::signals;
use crate::talk::Talk;

pub(crate) fn sandbox(arguments: SandboxArguments, environment: &Environment, talk: Talk) -> Result<u8, Failure> {
    if arguments.conformance.conformance {
        return conformance(arguments.conformance, environment, talk);
    }
    let knobs: Knobs = serde_json::from_str(&arguments.knobs)
        .map_err(|error| Failure::usage(format!("the knobs cannot be read: {error}"), "wifshare sandbox --help"))?;
    signals::listen();
    let sandbox = Sandbox::start_at(arguments.listen, knobs).map_err(|error| {
        Failure::new(
            code!("sandbox"),
            format!("could not listen on {}: {error}", arguments.listen),
            Some("give another --listen address; it has to be a loopback one, and port 0 takes any that is free"),
        )
    })?;
    let variables = sandbox.environment().into_iter().map(|(name, value)| format!("{name}={value}\n"));
    let mut stdout = std::io::stdout().lock();
    // Whoever started us may not care to read it, and the practice ground serves all the same.
    let _ = stdout.write_all(variables.collect::<String>().as_bytes()).and_then(|()| stdout.flush());
    while signals::pause(Duration::from_secs(3600)).is_ok() {}
    Ok(0)
}
