//! Runs a command whose processes share one credential, like `wifshare exec`: `cargo run --example share -- COMMAND`.

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use wifshare::{Child, Clock, Delivery, Environment, HttpClient, Inputs, Provision, Run, Streams, exit_code, resolve};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    #[expect(clippy::disallowed_methods, reason = "a program reads its environment once, at its border")]
    let environment: Environment = std::env::vars_os().collect();
    let command: Vec<OsString> = std::env::args_os().skip(1).collect();
    Ok(ExitCode::from(share(&command, &environment)?))
}

/// Runs the command, and returns its exit code. Keeps the credential fresh meanwhile, and removes it afterwards.
pub fn share(command: &[OsString], environment: &Environment) -> Result<u8, Box<dyn Error>> {
    let config = resolve(&Inputs::default(), environment)?;
    let provision = Provision::Credential(Delivery::Profile);
    let transport = HttpClient::new(environment);
    let run =
        Arc::new(Run::begin(config, provision, transport, Clock::system(), Arc::new(|_: &wifshare::Progress<'_>| {}))?);
    let keeper = Arc::clone(&run);
    // The thread ends with the run. It is not joined, because a hanging request must not delay a finished command.
    if let Err(error) = std::thread::Builder::new().spawn(move || keeper.keep_fresh(0.0)) {
        run.end()?;
        return Err(error.into());
    }
    let worked = Child::spawn(command, &run.environment(environment, &[]), Streams::Ours).map(|mut child| child.wait());
    run.end()?;
    Ok(exit_code(worked??))
}
