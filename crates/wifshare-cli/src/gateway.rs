//! `wifshare gateway`: runs the gateway on its own, without a command.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use wifshare::{Delivery, Environment, GatewayOptions, Listen, Provision, Secret, resolve};
use zeroize::Zeroizing;

use crate::arguments::{GatewayArguments, GatewayFormat};
use crate::background::{Thread, no_thread};
use crate::catalogue::code;
use crate::clock::clock;
use crate::console::Console;
use crate::failure::Failure;
use crate::joined;
use crate::share;
use crate::signals;

pub(crate) fn gateway(
    arguments: &GatewayArguments,
    environment: &Environment,
    console: Console,
) -> Result<u8, Failure> {
    signals::listen()?;
    let own = &joined::without_a_run(environment);
    let config = resolve(&arguments.identity.inputs(), own);
    let config = config.map_err(|error| joined::unconfigured(error, environment))?;
    let listen = match &arguments.unix {
        Some(path) => Listen::Unix(path.clone()),
        None => Listen::Loopback(arguments.listen),
    };
    let options = GatewayOptions { listen, api_key: arguments.api_key, ..GatewayOptions::default() };
    let provision = Provision::Credential(Delivery::Gateway);
    let freshener = Thread::prepare("renewal").map_err(|error| no_thread(&error))?;
    let (run, events) = share::begin_at(options, "gateway", config, provision, own, console)?;
    let run = Arc::new(run);
    let keeper = Arc::clone(&run);
    freshener.begin(move || keeper.keep_fresh(fastrand::f64()));
    let (base_url, capability) = run.gateway().expect("a run with this delivery has a gateway");
    console.mask(capability.expose());
    let printed = share::guarded(&run, || {
        print(base_url, capability, arguments)?;
        // Until a signal asks this process to end.
        while (clock().pause)(Duration::from_secs(3600)).is_ok() {}
        console.detail("closing; what is under way may finish");
        run.close_gateway(arguments.grace);
        Ok(())
    });
    let ending = run.end();
    events.note(share::ended(&ending));
    if let Err(error) = ending {
        console.warning(&format!("could not remove what the run left: {error}"));
    }
    printed.map(|()| 0)
}

fn print(base_url: &str, capability: &Secret, arguments: &GatewayArguments) -> Result<(), Failure> {
    let capability = capability.expose();
    let socket = base_url.strip_prefix("unix:");
    let base_url = if socket.is_some() { "http://localhost" } else { base_url };
    let text = Zeroizing::new(match arguments.format {
        GatewayFormat::Env => {
            let socket = socket.map(|path| format!("WIFSHARE_GATEWAY_SOCKET={}\n", crate::token::quoted(path)));
            let socket = socket.unwrap_or_default();
            let api_key = match arguments.api_key {
                true => format!("ANTHROPIC_API_KEY={capability}\n"),
                false => String::new(),
            };
            format!("ANTHROPIC_BASE_URL={base_url}\nANTHROPIC_AUTH_TOKEN={capability}\n{api_key}{socket}")
        }
        GatewayFormat::Json => {
            let mut object = serde_json::json!({"base_url": base_url, "capability": capability});
            if arguments.api_key {
                object["api_key"] = capability.into();
            }
            if let Some(socket) = socket {
                object["socket"] = socket.into();
            }
            format!("{object}\n")
        }
    });
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
        let message = format!("could not print where the gateway listens: {error}");
        Failure::new(code!("stdout"), message, Some("check the program that reads the output"))
    })
}
