//! A run inside a process that continues afterwards, like a Rust program.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test makes its own world, and fails loudly")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wifshare::{
    Clock, Config, Delivery, Ending, Environment, HttpClient, Inputs, Interrupted, ObtainError, Progress, Provision,
    Run, resolve,
};
use wifshare_sandbox::{Fault, Sandbox, Settings};

fn configured(sandbox: &Sandbox, state: &Path) -> (Config, HttpClient) {
    let environment: Environment = sandbox.environment().into_iter().collect();
    let inputs = Inputs { state_dir: Some(state.to_owned()), ..Inputs::default() };
    (resolve(&inputs, &environment).unwrap(), HttpClient::new(&environment))
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
    Sandbox::start(Settings {
        access_token_lifetime_s: seconds,
        access_token_lifetime_floor_s: 1,
        exchange_faults,
        ..Settings::default()
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
fn renewal_that_outlives_its_run_stores_nothing() {
    let holder = tempfile::tempdir().unwrap();
    let state = holder.path().join("state");
    let sandbox = living(6, vec![Fault::None, Fault::Stall { ms: 5000 }]);
    let run = begin(&sandbox, &state);
    wait_until(|| sandbox.counters().exchanges_received == 2);
    let start = Instant::now();
    assert_eq!(run.end().unwrap(), Ending::Removed);
    assert!(start.elapsed() < Duration::from_secs(4), "an end without others waits a moment only");
    // The response arrives now, at a thread that still waits for it.
    std::thread::sleep(Duration::from_millis(5500) - start.elapsed().min(Duration::from_secs(5)));
    assert_eq!(files_with_secrets(&sandbox, &state), Vec::<PathBuf>::new());
}

#[test]
fn end_waits_for_a_renewal_that_other_runs_need() {
    let holder = tempfile::tempdir().unwrap();
    let state = holder.path().join("state");
    // The response arrives 5 s late and its lifetime counts from the request. The next renewal must be far from it.
    let sandbox = living(20, vec![Fault::None, Fault::Stall { ms: 5000 }]);
    let one = begin(&sandbox, &state);
    wait_until(|| sandbox.counters().exchanges_received == 2);
    // This run has the current credential and waits for the renewal of the first one. The end of the first run loses no
    // credential.
    let other = begin(&sandbox, &state);
    assert_eq!(one.end().unwrap(), Ending::Shared);
    wait_until(|| other.held().unwrap().generation == 2);
    assert_eq!(sandbox.counters().exchanges_accepted, 2);
    assert_eq!(other.end().unwrap(), Ending::Removed);
    assert_eq!(files_with_secrets(&sandbox, &state), Vec::<PathBuf>::new());
}

#[test]
fn base_url_is_set_where_the_child_could_use_another() {
    const API: &str = "https://api.anthropic.com";
    const NAME: &str = "ANTHROPIC_BASE_URL";
    let sandbox = living(600, Vec::new());
    let credential = Provision::Credential(Delivery::Profile);
    for (provision, base_url, parents, childs) in [
        (credential, API, None, None),
        (credential, API, Some("https://another.example"), Some(API)),
        (credential, API, Some(""), Some(API)),
        (credential, "https://gate.example", None, Some("https://gate.example")),
        (Provision::IdentityToken, "https://gate.example", None, None),
    ] {
        let holder = tempfile::tempdir().unwrap();
        let (mut config, transport) = configured(&sandbox, &holder.path().join("state"));
        base_url.clone_into(&mut config.base_url);
        let run = Run::begin(config, provision, transport, Clock::system(), Arc::new(|_| {})).unwrap();
        let parent: Environment = parents.into_iter().map(|parents| (NAME, parents)).collect();
        let child = run.environment(&parent, &[]);
        assert_eq!(child.get(NAME).and_then(|value| value.to_str()), childs, "{provision:?} {base_url} {parents:?}");
        run.end().unwrap();
    }
}

#[test]
fn run_reports_its_delivery_and_whether_its_directory_exists() {
    let sandbox = living(600, Vec::new());
    for (delivery, hands_out) in [(Delivery::Profile, false), (Delivery::Federation, true)] {
        let holder = tempfile::tempdir().unwrap();
        let (config, transport) = configured(&sandbox, &holder.path().join("state"));
        let provision = Provision::Credential(delivery);
        let run = Run::begin(config, provision, transport, Clock::system(), Arc::new(|_| {})).unwrap();
        assert_eq!(run.hands_out_identity_tokens(), hands_out);
        assert!(run.is_in_place());
        std::fs::remove_dir_all(run.directory()).unwrap();
        assert!(!run.is_in_place());
        run.end().unwrap();
        assert!(!run.is_in_place(), "whoever has ended has no place");
    }
}

#[test]
fn failing_gateway_renewal_backs_off() {
    let holder = tempfile::tempdir().unwrap();
    let failures = vec![Fault::Status { status: 503, retry_after_s: None, commit: false }; 1000];
    let sandbox = living(4, [vec![Fault::None], failures].concat());
    let (config, transport) = configured(&sandbox, &holder.path().join("state"));
    let steps = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&steps);
    let watch = Arc::new(move |_: &Progress<'_>| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let provision = Provision::Credential(Delivery::Gateway);
    let run = Arc::new(Run::begin(config, provision, transport, Clock::system(), watch).unwrap());
    let keeper = Arc::clone(&run);
    let keeping = std::thread::spawn(move || keeper.keep_fresh(0.5));
    wait_until(|| sandbox.counters().exchanges_received > 1);
    std::thread::sleep(Duration::from_secs(3));
    let (steps, exchanges) = (steps.load(Ordering::SeqCst), sandbox.counters().exchanges_received);
    run.end().unwrap();
    keeping.join().unwrap();
    assert!(exchanges < 20 && steps < 200, "{exchanges} exchanges, {steps} steps");
}

#[test]
fn interrupt_during_begin_starts_no_run() {
    let holder = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::start(Settings {
        // The spare token is the spent one, so the run waits for another.
        identity_token_faults: vec![Fault::None, Fault::DuplicateIdentityToken],
        ..Settings::default()
    })
    .unwrap();
    let (config, transport) = configured(&sandbox, &holder.path().join("state"));
    static PAUSES: Mutex<Vec<Duration>> = Mutex::new(Vec::new());
    let pause = |time| {
        PAUSES.lock().unwrap().push(time);
        Err(Interrupted)
    };
    let clock = Clock { pause, ..Clock::system() };
    let provision = Provision::Credential(Delivery::Federation);
    let begun = Run::begin(config, provision, transport, clock, Arc::new(|_| {}));
    assert!(matches!(begun, Err(ObtainError::Interrupted(_))), "{:?}", begun.err());
    let [pause] = PAUSES.lock().unwrap()[..] else { panic!("one pause") };
    assert!((250..=500).contains(&pause.as_millis()), "half of it is jitter: {pause:?}");
    assert_eq!(files_with_secrets(&sandbox, holder.path()), Vec::<PathBuf>::new());
}
