//! A run inside one process that goes on living, as a Rust program has it.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test makes its own world, and fails loudly")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wifshare::{Clock, Config, Delivery, Ending, Environment, Inputs, Provision, Run, Transport, resolve};
use wifshare_sandbox::{Fault, Knobs, Sandbox, SigningAlgorithm};

fn configured(sandbox: &Sandbox, state: &Path) -> (Config, Transport) {
    let environment: Environment = sandbox.environment().into_iter().collect();
    let inputs = Inputs { state_dir: Some(state.to_owned()), ..Inputs::default() };
    (resolve(&inputs, &environment).unwrap(), Transport::new(&environment))
}

fn begin(sandbox: &Sandbox, state: &Path) -> Arc<Run> {
    let (config, transport) = configured(sandbox, state);
    let provision = Provision::Credential(Delivery::Profile);
    let run = Arc::new(Run::begin(config, provision, transport, Clock::system(), Arc::new(|_| {})).unwrap());
    let keeper = Arc::clone(&run);
    std::thread::spawn(move || keeper.keep_fresh(0.5));
    run
}

fn living(seconds: u64, exchange_faults: Vec<Fault>) -> Sandbox {
    Sandbox::start(Knobs {
        access_token_lifetime_s: seconds,
        access_token_lifetime_floor_s: 1,
        algorithm: SigningAlgorithm::Es256,
        exchange_faults,
        ..Knobs::default()
    })
    .unwrap()
}

fn wait_until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn files_with_secrets(sandbox: &Sandbox, directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with_secrets(sandbox, &path));
        } else {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            found.extend(sandbox.secrets().iter().any(|secret| text.contains(secret.as_str())).then_some(path));
        }
    }
    found
}

#[test]
fn a_renewal_that_outlives_its_run_keeps_nothing() {
    let holder = tempfile::tempdir().unwrap();
    let state = holder.path().join("state");
    let sandbox = living(6, vec![Fault::None, Fault::Stall { ms: 5000 }]);
    let run = begin(&sandbox, &state);
    wait_until(|| sandbox.counters().exchanges_received == 2);
    let start = Instant::now();
    assert_eq!(run.end().unwrap(), Ending::Removed);
    assert!(start.elapsed() < Duration::from_secs(4), "an end without others waits a moment only");
    // The answer comes now, to a thread that still waits for it.
    std::thread::sleep(Duration::from_millis(5500) - start.elapsed().min(Duration::from_secs(5)));
    assert_eq!(files_with_secrets(&sandbox, &state), Vec::<PathBuf>::new());
}

#[test]
fn a_renewal_that_others_need_is_waited_for() {
    let holder = tempfile::tempdir().unwrap();
    let state = holder.path().join("state");
    // The answer comes 3 s late and its life counts from the question: the next renewal has to be far from it.
    let sandbox = living(20, vec![Fault::None, Fault::Stall { ms: 3000 }]);
    let (one, other) = (begin(&sandbox, &state), begin(&sandbox, &state));
    wait_until(|| sandbox.counters().exchanges_received == 2);
    // Both renew: one sends, and the other waits for its lock. Whichever ends first loses nothing that was bought.
    assert_eq!(one.end().unwrap(), Ending::Shared);
    wait_until(|| other.held().unwrap().generation == 2);
    assert_eq!(sandbox.counters().exchanges_accepted, 2);
    assert_eq!(other.end().unwrap(), Ending::Removed);
    assert_eq!(files_with_secrets(&sandbox, &state), Vec::<PathBuf>::new());
}
