//! The boundaries of obtaining and holding a credential: real files, real locks and a real server, with a manual clock.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test makes its own world, and fails loudly")]

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use wifshare::{
    Clock, Config, Credential, Environment, Holder, HttpClient, Inputs, Interrupted, ObtainError, Progress, StoreError,
    obtain, obtain_lasting, renew, resolve,
};
use wifshare_sandbox::{Fault, Sandbox, Settings};

thread_local! {
    /// How far the clocks of this test have advanced.
    static AHEAD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static BEGAN: SystemTime = SystemTime::now();
    static PAUSES: RefCell<Vec<Duration>> = const { RefCell::new(Vec::new()) };
    /// How far the wall clock was set back.
    static SET_BACK: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// The extra time of each pause.
    static DELAY: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// A pause takes no time. It advances both clocks by its length.
const CLOCK: Clock = Clock {
    wall: || BEGAN.with(|began| *began) + AHEAD.get() - SET_BACK.get(),
    monotonic: || AHEAD.get(),
    pause: |time| {
        PAUSES.with_borrow_mut(|pauses| pauses.push(time));
        pass(time + DELAY.get());
        Ok(())
    },
};

fn pass(time: Duration) {
    AHEAD.set(AHEAD.get() + time);
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

struct World {
    sandbox: Sandbox,
    config: Config,
    transport: HttpClient,
    _holder: tempfile::TempDir,
}

/// Identity tokens live for an hour, because this clock may be ahead of the server's.
fn settings(exchange_faults: Vec<Fault>) -> Settings {
    Settings { identity_token_lifetime_s: 3600, access_token_lifetime_s: 600, exchange_faults, ..Settings::default() }
}

fn status(status: u16, retry_after_s: Option<u64>) -> Fault {
    Fault::Status { status, retry_after_s, commit: false }
}

impl World {
    fn new(settings: Settings) -> World {
        World::with(settings, |_| None)
    }

    /// Uses this identity token in a variable, or the CI's endpoint if there is none.
    fn with(settings: Settings, given: impl FnOnce(&Sandbox) -> Option<String>) -> World {
        World::with_all(settings, |sandbox| given(sandbox).into_iter().collect())
    }

    /// Uses these identity tokens in variables, in order.
    fn with_all(settings: Settings, given: impl FnOnce(&Sandbox) -> Vec<String>) -> World {
        // Credentials have times in whole seconds.
        let sandbox = Sandbox::start(settings).unwrap();
        let holder = tempfile::tempdir().unwrap();
        let mut environment: Environment = sandbox.environment().into_iter().collect();
        for (number, token) in (1..).zip(given(&sandbox)) {
            let name = if number == 1 { String::new() } else { format!("_{number}") };
            environment.set(format!("ANTHROPIC_IDENTITY_TOKEN{name}"), token);
        }
        let config = configured(&environment, holder.path());
        World { sandbox, config, transport: HttpClient::new(&environment), _holder: holder }
    }

    fn obtain(&self) -> Result<Credential, ObtainError> {
        obtain(&self.config, &self.transport, CLOCK, &|_| {})
    }

    fn lasting(&self, asked: u64) -> Result<Credential, ObtainError> {
        obtain_lasting(seconds(asked), &self.config, &self.transport, CLOCK, &|_| {})
    }

    fn renew(&self, held: &Credential) -> Result<Credential, ObtainError> {
        renew(held, &self.config, &self.transport, CLOCK, &|_| {})
    }

    /// Returns the received and the accepted exchanges.
    fn exchanges(&self) -> (u64, u64) {
        let counters = self.sandbox.counters();
        assert_eq!(counters.assertions_repeated, 0, "{counters:#?}");
        (counters.exchanges_received, counters.exchanges_accepted)
    }
}

fn configured(environment: &Environment, state: &Path) -> Config {
    let inputs = Inputs { state_dir: Some(state.join("state")), ..Inputs::default() };
    resolve(&inputs, environment).unwrap()
}

fn code(result: Result<Credential, ObtainError>) -> String {
    match result {
        Ok(_) => "served".to_owned(),
        Err(error) => error.code().to_string(),
    }
}

/// Advances the clock until the credential has this many seconds left.
fn pass_until_left(credential: &Credential, left: u64) {
    let end = credential.expires_at.duration_since(CLOCK.now()).unwrap();
    pass(end - seconds(left));
}

#[test]
fn fresh_credential_is_served_and_a_due_one_renewed() {
    let world = World::new(settings(vec![]));
    let first = world.obtain().unwrap();
    pass_until_left(&first, 151);
    assert_eq!(world.obtain().unwrap(), first);
    assert_eq!(world.exchanges(), (1, 1));
    pass_until_left(&first, 150);
    let second = world.obtain().unwrap();
    assert_eq!((second.generation, world.exchanges()), (2, (2, 2)));
}

#[test]
fn failed_renewal_serves_the_credential_only_while_usable() {
    let world = World::new(settings([vec![Fault::None], vec![status(503, None); 12]].concat()));
    let first = world.obtain().unwrap();
    pass_until_left(&first, 100);
    let told = Mutex::new(Vec::new());
    let watch = |step: &Progress<'_>| {
        if let Progress::NotRenewed { cause, .. } = step {
            told.lock().unwrap().push(cause.clone());
        }
    };
    assert_eq!(obtain(&world.config, &world.transport, CLOCK, &watch).unwrap(), first);
    let told = told.into_inner().unwrap();
    assert!(told.len() == 1 && told[0].contains("HTTP 503"), "{told:?}");
    assert_eq!(world.exchanges(), (4, 1), "three tries");
    // The credential is expired, or so close to it that clients refuse it.
    pass_until_left(&first, 30);
    assert_eq!(code(world.obtain()), "endpoint-busy");
}

#[test]
fn transient_failure_is_tried_three_times_and_a_refusal_once() {
    for (faults, tries, told, pauses) in [
        (vec![status(503, None); 5], 3, "endpoint-busy", vec![500..1001, 1000..2001]),
        (vec![status(429, Some(4)); 5], 3, "endpoint-busy", vec![4000..4001, 4000..4001]),
        (vec![status(529, Some(3600)); 5], 3, "endpoint-busy", vec![10_000..10_001, 10_000..10_001]),
        (vec![Fault::DropAfterCommit; 5], 3, "answer-lost", vec![500..1001, 1000..2001]),
        (vec![status(401, None); 5], 1, "exchange-refused", vec![]),
        (vec![Fault::NotJson; 5], 1, "answer-unexpected", vec![]),
        (vec![status(503, None); 2], 3, "served", vec![500..1001, 1000..2001]),
    ] {
        let world = World::new(settings(faults));
        PAUSES.take();
        assert_eq!(code(world.obtain()), told);
        assert_eq!(world.exchanges().0, tries, "{told}");
        let taken = PAUSES.take();
        let are_as_expected = taken.iter().zip(&pauses).all(|(taken, pause)| pause.contains(&taken.as_millis()));
        assert!(taken.len() == pauses.len() && are_as_expected, "{told}: {taken:?}, and {pauses:?} was expected");
    }
}

#[test]
fn no_retry_starts_after_a_minute() {
    for (delay, tries) in [(40, 3), (70, 2)] {
        let world = World::new(settings(vec![status(503, None); 5]));
        DELAY.set(seconds(delay));
        assert_eq!(code(world.obtain()), "endpoint-busy");
        assert_eq!(world.exchanges().0, tries, "with pauses that take {delay} s longer");
        DELAY.set(Duration::ZERO);
    }
}

#[test]
fn failure_is_cached_for_5_or_30_seconds_by_kind() {
    let forbidden = || Settings { identity_token_faults: vec![status(403, None); 50], ..settings(vec![]) };
    let broken = || Settings { identity_token_faults: vec![status(503, None); 50], ..settings(vec![]) };
    let busy = || Settings { identity_token_faults: vec![status(429, None); 50], ..settings(vec![]) };
    for (settings, told, remembered) in [
        (settings(vec![status(401, None)]), "exchange-refused", 30),
        (
            settings(vec![Fault::Redirect { status: 307, location: "https://a.invalid/".to_owned() }]),
            "endpoint-redirects",
            30,
        ),
        (settings(vec![status(503, None); 3]), "endpoint-busy", 5),
        (settings(vec![Fault::DropBeforeCommit; 3]), "answer-lost", 5),
        (settings(vec![Fault::EmptyBody]), "answer-unexpected", 5),
        (forbidden(), "identity-refused", 30),
        (broken(), "identity-refused", 5),
        (busy(), "identity-refused", 5),
        (Settings { identity_token_faults: vec![Fault::NotJson], ..settings(vec![]) }, "identity-unexpected", 5),
    ] {
        let world = World::new(settings);
        assert_eq!(code(world.obtain()), told);
        world.sandbox.set_settings(self::settings(vec![]));
        let (asked, exchanged) = (world.sandbox.counters().identity_tokens_issued, world.exchanges());
        // The time is counted in whole seconds from the second of the failure.
        pass(seconds(remembered - 2));
        let error = world.obtain().unwrap_err();
        assert!(matches!(error, ObtainError::Remembered(..)), "{told}: {error}");
        assert_eq!(error.code().to_string(), told);
        assert!(error.hint().is_some_and(|hint| hint.len() > 20), "{told}: the cure is remembered too");
        assert_eq!((world.sandbox.counters().identity_tokens_issued, world.exchanges()), (asked, exchanged));
        pass(seconds(2));
        assert_eq!(code(world.obtain()), "served", "{told}: after {remembered} s");
    }
}

#[test]
fn spent_or_malformed_token_is_not_cached_as_a_failure() {
    let spoiled = Settings { identity_token_faults: vec![Fault::MalformedIdentityToken], ..settings(vec![]) };
    let world = World::new(spoiled);
    assert_eq!(code(world.obtain()), "identity-malformed");
    assert_eq!(code(world.obtain()), "served");
}

#[test]
fn identity_token_is_accepted_until_30_s_after_expiry() {
    for (over, received, told) in [(29, 1, "exchange-refused"), (32, 0, "identity-expired")] {
        let end = CLOCK.now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let world = World::with(settings(vec![status(401, None)]), |sandbox| {
            Some(sandbox.issue_identity_token_with(|claims| drop(claims.insert("exp".to_owned(), end.into()))))
        });
        pass(seconds(over));
        assert_eq!(code(world.obtain()), told, "{over} s over");
        assert_eq!(world.exchanges().0, received);
    }
}

#[test]
fn single_token_is_sent_once_and_its_reuse_error_has_a_hint() {
    let world = World::with(settings(vec![Fault::DropAfterCommit]), |sandbox| Some(sandbox.issue_identity_token()));
    let lost = world.obtain().unwrap_err();
    assert_eq!(lost.code().to_string(), "answer-lost");
    pass(seconds(31));
    let error = world.obtain().unwrap_err();
    assert_eq!(error.code().to_string(), "identity-spent");
    let told = error.to_string();
    let expected = format!("was already taken for an exchange by pid {}, 3", std::process::id());
    assert!(told.contains(&expected), "{told}");
    for error in [lost, error] {
        assert!(error.hint().is_some_and(|hint| hint.contains("this job was given no other")), "{error}");
    }
    assert_eq!(world.exchanges().0, 1, "a source with one token has one try");
}

#[test]
fn hint_differs_for_sources_that_issue_one_token() {
    let remintable = World::new(settings(vec![status(503, None); 3]));
    let hint = remintable.obtain().unwrap_err().hint().unwrap();
    assert!(hint.contains("a new identity token is taken for each try"), "{hint}");
    let given = World::with(settings(vec![status(503, None); 3]), |sandbox| Some(sandbox.issue_identity_token()));
    let hint = given.obtain().unwrap_err().hint().unwrap();
    assert!(hint.contains("this job was given no other"), "{hint}");
}

#[test]
fn renew_replaces_the_credential_and_adopts_newer_ones() {
    let world = World::new(settings(vec![]));
    let first = world.obtain().unwrap();
    let second = world.renew(&first).unwrap();
    assert_eq!((second.generation, world.exchanges()), (2, (2, 2)));
    // A holder of the first credential takes its successor without an exchange.
    assert_eq!(world.renew(&first).unwrap(), second);
    assert_eq!(world.exchanges(), (2, 2));
    // An expired successor is not used.
    pass_until_left(&second, 10);
    assert_eq!(world.renew(&first).unwrap().generation, 3);
}

#[test]
fn min_life_is_met_or_refused_after_at_most_one_exchange() {
    let world = World::new(settings(vec![]));
    let first = world.obtain().unwrap();
    pass_until_left(&first, 400);
    assert_eq!(world.lasting(400).unwrap(), first, "just long enough");
    let second = world.lasting(401).unwrap();
    assert_eq!(world.exchanges(), (2, 2));
    assert!(second.remaining(CLOCK.now()) >= seconds(401));
    // A credential lives for 600 s, so a life of 601 s can never be met.
    pass(seconds(5));
    assert_eq!(code(world.lasting(601)), "credential-short-lived");
    assert_eq!(world.exchanges(), (2, 2), "the one in hand says how long they live");
    pass_until_left(&second, 20);
    assert_eq!(code(world.lasting(601)), "credential-short-lived");
    assert_eq!(world.exchanges(), (3, 3), "with nothing in hand, one is bought to see");
    // The full lifetime: whether a new credential meets it depends on fractions of a second, so one exchange is made.
    pass(seconds(5));
    drop(world.lasting(600));
    assert_eq!(world.exchanges(), (4, 4));
    let hint = world.lasting(601).unwrap_err().hint().unwrap();
    assert!(hint.contains("--min-life"), "{hint}");
}

#[test]
fn lock_wait_is_short_with_a_usable_credential_and_long_without() {
    let world = World::new(settings(vec![]));
    let store = world.config.store();
    let waited = |what: &dyn Fn()| {
        let before = AHEAD.get();
        what();
        (AHEAD.get() - before).as_secs()
    };
    let locked = store.lock(seconds(1), CLOCK, &|_| {}).unwrap();
    let held = waited(&|| {
        let error = world.obtain().unwrap_err();
        assert!(matches!(&error, ObtainError::Store(StoreError::Held { .. })), "{error}");
        assert_eq!(error.code().to_string(), "lock-held");
        assert!(error.hint().is_some_and(|hint| hint.contains("end it and try again")));
    });
    assert_eq!(held, 180);
    drop(locked);
    let first = world.obtain().unwrap();
    pass_until_left(&first, 140);
    let locked = store.lock(seconds(1), CLOCK, &|_| {}).unwrap();
    assert_eq!(waited(&|| assert_eq!(world.obtain().unwrap(), first)), 2, "it is usable, and served");
    // The held credential expires during the wait, so the short wait is not enough any more.
    pass_until_left(&first, 31);
    let held = waited(&|| assert_eq!(code(world.obtain()), "lock-held"));
    assert!(held >= 180, "{held} s");
    drop(locked);
    assert_eq!(world.exchanges(), (1, 1));
}

/// Returns a holder, and how often it reported a failed renewal.
fn holder(world: &World, clock: Clock) -> (Holder, Arc<Mutex<u32>>) {
    let failures = Arc::new(Mutex::new(0));
    let watch = {
        let failures = Arc::clone(&failures);
        move |step: &Progress<'_>| {
            if let Progress::NotRenewed { .. } = step {
                *failures.lock().unwrap() += 1;
            }
        }
    };
    let transport = HttpClient::new(&Environment::default());
    (Holder::new(world.config.clone(), transport, clock, Arc::new(watch)), failures)
}

#[test]
fn holder_retries_a_failed_renewal_after_five_seconds() {
    let world = World::new(settings([vec![Fault::None], vec![status(400, None); 9]].concat()));
    let (holder, failures) = holder(&world, CLOCK);
    let first = holder.credential().unwrap();
    pass_until_left(&first, 140);
    for (later, journeys) in [(0, 1), (0, 1), (4, 1), (1, 2), (4, 2), (1, 3)] {
        pass(seconds(later));
        assert_eq!(*holder.credential().unwrap(), *first);
        assert_eq!(*failures.lock().unwrap(), journeys, "{later} s later");
    }
    // An unreadable store does not take away the held credential either.
    pass(seconds(5));
    let stored = world.config.store().directory().join("credential.json");
    std::fs::remove_file(&stored).unwrap();
    std::fs::create_dir(&stored).unwrap();
    assert_eq!(*holder.credential().unwrap(), *first);
    assert_eq!(*failures.lock().unwrap(), 4);
    pass_until_left(&first, 20);
    assert_eq!(code(holder.credential().map(|it| (*it).clone())), "state-in-the-way");
}

#[test]
fn holder_serves_no_expired_credential_after_a_clock_set_back() {
    let world = World::new(settings([vec![Fault::None], vec![status(400, None); 9]].concat()));
    let (holder, _) = holder(&world, CLOCK);
    let first = holder.credential().unwrap();
    let left = |credential: &Credential| credential.remaining(CLOCK.now()).as_secs();
    SET_BACK.set(seconds(25));
    let credential = holder.credential().unwrap();
    assert_eq!(*credential, *first, "by the wall clock alone it is fresh");
    pass_until_left(&first, 100);
    // By the wall clock 100 s are left, but only 75 s are. The renewal is refused.
    let served = holder.credential().unwrap();
    assert_eq!(*served, *first);
    assert!((74..=75).contains(&left(&served)), "{}", left(&served));
    SET_BACK.set(seconds(3600));
    pass(seconds(40));
    assert!(holder.credential().is_ok(), "35 s are left");
    pass(seconds(10));
    assert_eq!(code(holder.credential().map(|it| (*it).clone())), "exchange-refused");
}

#[test]
fn interrupted_holder_returns_no_credential() {
    let world = World::new(settings([vec![Fault::None], vec![status(503, None); 9]].concat()));
    let (holder, failures) = holder(&world, Clock { pause: |_| Err(Interrupted), ..CLOCK });
    let first = holder.credential().unwrap();
    pass_until_left(&first, 140);
    assert!(matches!(holder.credential(), Err(ObtainError::Interrupted(_))));
    assert_eq!(*failures.lock().unwrap(), 0);
}

#[test]
fn given_tokens_are_tried_in_order_and_each_once() {
    let faults = vec![status(503, None), Fault::None, status(503, None)];
    let world = World::with_all(settings(faults), |sandbox| (0..3).map(|_| sandbox.issue_identity_token()).collect());
    let told = Mutex::new(Vec::new());
    let watch = |step: &Progress<'_>| match step {
        Progress::AlreadySpent => told.lock().unwrap().push("spent"),
        Progress::Failed { .. } => told.lock().unwrap().push("failed"),
        Progress::Retrying { .. } => told.lock().unwrap().push("again"),
        _ => {}
    };
    let obtain = || obtain(&world.config, &world.transport, CLOCK, &watch);
    let told = || std::mem::take(&mut *told.lock().unwrap());
    let first = obtain().unwrap();
    assert_eq!((world.exchanges(), told()), ((2, 1), vec!["failed", "again"]));
    // The third token is the last one. If it fails, there is no other to try.
    pass_until_left(&first, 0);
    assert_eq!(code(obtain()), "endpoint-busy");
    assert_eq!((world.exchanges(), told()), ((3, 1), vec!["failed"]));
    // All tokens are spent now. The error says so, and does not report a failed exchange.
    pass(seconds(60));
    assert_eq!(code(obtain()), "identity-spent");
    assert_eq!((world.exchanges(), told()), ((3, 1), vec!["spent"]));
}
