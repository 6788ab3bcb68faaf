//! Obtaining a credential in threads that represent processes: each has its own store on the same directory.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test makes its own world, and fails loudly")]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, SystemTime};

use wifshare::{
    CachedFailure, Clock, Config, Credential, Environment, Holder, HttpClient, Inputs, ObtainError, Secret, obtain,
    resolve,
};
use wifshare_sandbox::{Fault, Sandbox, Settings};

fn configured(sandbox: &Sandbox, state: &Path) -> (Config, HttpClient) {
    let environment: Environment = sandbox.environment().into_iter().collect();
    let inputs = Inputs { state_dir: Some(state.to_owned()), ..Inputs::default() };
    (resolve(&inputs, &environment).unwrap(), HttpClient::new(&environment))
}

fn sandbox(settings: Settings) -> Sandbox {
    Sandbox::start(settings).unwrap()
}

fn patience() -> Duration {
    Duration::from_secs(30)
}

/// Starts a waiter and returns its result while the lock is held.
fn waiter(config: &Config, transport: &HttpClient) -> Receiver<Result<Credential, ObtainError>> {
    let (config, transport) = (config.clone(), transport.clone());
    let (told, hears) = channel();
    std::thread::spawn(move || told.send(obtain(&config, &transport, Clock::system(), &|_| {})));
    // Long enough for the waiter to look once and to wait. If it is not, the test passes but checks less.
    std::thread::sleep(Duration::from_millis(300));
    hears
}

#[test]
fn waiter_takes_a_stored_credential_before_the_lock_is_released() {
    let holder = tempfile::tempdir().unwrap();
    let sandbox = sandbox(Settings::default());
    let (config, transport) = configured(&sandbox, &holder.path().join("state"));
    let store = config.store();
    let mut locked = store.lock(patience(), Clock::system(), &|_| {}).unwrap();
    let waiter = waiter(&config, &transport);
    let now = SystemTime::now();
    let bought = Credential {
        access_token: Secret::new("bought".to_owned()),
        expires_at: now + Duration::from_secs(600),
        obtained_at: now,
        generation: 0,
    };
    locked.keep(bought);
    let taken = waiter.recv_timeout(patience()).expect("the turn is still held").unwrap();
    assert_eq!(taken.access_token.expose(), "bought");
    drop(locked);
    assert_eq!(sandbox.counters().exchanges_received, 0);
}

#[test]
fn waiter_receives_a_refusal_before_the_lock_is_released() {
    let holder = tempfile::tempdir().unwrap();
    let sandbox = sandbox(Settings::default());
    let (config, transport) = configured(&sandbox, &holder.path().join("state"));
    let store = config.store();
    let locked = store.lock(patience(), Clock::system(), &|_| {}).unwrap();
    let waiter = waiter(&config, &transport);
    locked.remember(&CachedFailure::new("refused", "no".to_owned(), None, SystemTime::now(), Duration::from_secs(30)));
    let heard = waiter.recv_timeout(patience()).expect("the turn is still held");
    assert!(matches!(heard, Err(ObtainError::Remembered(..))), "{heard:?}");
    drop(locked);
    assert_eq!(sandbox.counters().exchanges_received, 0);
}

#[test]
fn threads_of_a_holder_exchange_once_and_then_use_memory() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let sandbox = sandbox(Settings { exchange_latency_ms: 200, ..Settings::default() });
    let (config, transport) = configured(&sandbox, &state);
    let holder = Holder::new(config, transport, Clock::system(), Arc::new(|_| {}));
    let start = Barrier::new(16);
    let held: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| (start.wait(), holder.credential().unwrap()).1)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(held.iter().all(|credential| Arc::ptr_eq(credential, &held[0])));
    assert_eq!(sandbox.counters().exchanges_received, 1);
    std::fs::remove_dir_all(&state).unwrap();
    assert!(Arc::ptr_eq(&holder.credential().unwrap(), &held[0]));
    assert_eq!(sandbox.counters().exchanges_received, 1);
}

/// How far the wall clock of the test below is ahead, in seconds.
static AHEAD: AtomicU64 = AtomicU64::new(0);

#[test]
fn holder_renews_when_due_and_never_serves_an_expired_credential() {
    let directory = tempfile::tempdir().unwrap();
    let sandbox = sandbox(Settings {
        identity_token_lifetime_s: 3600,
        exchange_faults: vec![Fault::None, Fault::Status { status: 400, retry_after_s: None, commit: true }],
        ..Settings::default()
    });
    let (config, transport) = configured(&sandbox, &directory.path().join("state"));
    let wall = || SystemTime::now() + Duration::from_secs(AHEAD.load(Ordering::SeqCst));
    let holder = Holder::new(config, transport, Clock { wall, ..Clock::system() }, Arc::new(|_| {}));
    let first = holder.credential().unwrap();
    assert_eq!(first.lifetime(), Duration::from_secs(600));
    AHEAD.store(440, Ordering::SeqCst);
    assert!(Arc::ptr_eq(&holder.credential().unwrap(), &first), "fresh");
    assert_eq!(sandbox.counters().exchanges_received, 1);
    AHEAD.store(460, Ordering::SeqCst);
    assert_eq!(*holder.credential().unwrap(), *first, "due, and refused: it is usable all the same");
    assert_eq!(sandbox.counters().exchanges_received, 2);
    assert_eq!(*holder.credential().unwrap(), *first, "another try would come too soon");
    assert_eq!(sandbox.counters().exchanges_received, 2);
    AHEAD.store(580, Ordering::SeqCst);
    let second = holder.credential().unwrap();
    assert_ne!(*second, *first, "expired");
    assert_eq!(sandbox.counters().exchanges_received, 3);
}

#[test]
fn rejected_credential_is_replaced_once_for_all_threads() {
    let directory = tempfile::tempdir().unwrap();
    let sandbox = sandbox(Settings::default());
    let (config, transport) = configured(&sandbox, &directory.path().join("state"));
    let holder = Holder::new(config, transport, Clock::system(), Arc::new(|_| {}));
    let rejected = holder.credential().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_ne!(*holder.renew(&rejected).unwrap(), *rejected));
        }
    });
    assert_eq!(sandbox.counters().exchanges_received, 2);
    assert_ne!(*holder.credential().unwrap(), *rejected);
}
