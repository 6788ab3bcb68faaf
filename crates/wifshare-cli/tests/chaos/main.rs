//! Runs tens of processes at a time and kills, stops and ends them, while the endpoints fail by script.
//!
//! ```sh
//! cargo test -p wifshare-cli --test chaos
//! WIFSHARE_CHAOS_SECONDS=600 cargo test -p wifshare-cli --release --test chaos -- --nocapture
//! ```
//!
//! Every decision comes from one seed, which is printed and can be given as `WIFSHARE_CHAOS_SEED`. How the processes
//! interleave depends on the machine. Time alternates between *calm* and *storms*. In calm, processes, keepers and
//! gateways are killed and ended, identity tokens come twice, and single requests fail. In storms, whole endpoints fail,
//! processes are stopped for longer than a token lives, tokens are revoked, and the clock of all processes steps. The
//! invariants:
//!
//! - always: no identity token is sent twice, no secret is in any output, every state file can be read, and each of two
//!   subjects receives its own credential;
//! - in calm: every process that was not killed, ended or stopped is served, and no request of a child is refused;
//! - in a storm and [`RECOVERY`] after it: a process that is not served reports one of [`EXCUSED`];
//! - afterwards: one more run of each key succeeds, and no secret remains.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails loudly, and its line is the reason")]
#![expect(clippy::disallowed_methods, reason = "tests stand outside the border: they make the world that is handed in")]
#![expect(clippy::print_stderr, reason = "the figures are what the run is for")]

#[path = "../suite/wall_clock.rs"]
mod clock;
#[path = "../suite/job.rs"]
#[expect(dead_code, reason = "what the suite needs of it and we do not")]
mod job;
mod kinds;
mod processes;
mod subjects;
mod weather;

use std::time::{Duration, SystemTime};

use job::{Job, finish, living};
use processes::Crowd;
use subjects::Subjects;
use weather::Weather;

/// The error codes with which a process may fail in a storm: an endpoint was busy, silent or invalid, or it failed a
/// moment ago and the failure is cached (503 of the identity endpoint is reported as `identity-refused`). No other
/// error is excused.
const EXCUSED: [&str; 11] = [
    "endpoint-busy",
    "answer-lost",
    "answer-unexpected",
    "identity-refused",
    "identity-unreachable",
    "identity-unexpected",
    "identity-spent",
    "exchange-refused",
    "endpoint-redirects",
    "identity-malformed",
    "run-not-renewed",
];

/// Recovery time after a storm: a failure is cached for 5 s, three attempts with their pauses take 3 s, and a revoked
/// token is held until its renewal is due.
const RECOVERY: f64 = 9.0;

/// Recovery time after a storm in which an endpoint also refused or redirected. Such a failure is cached for 30 s.
const LONG_RECOVERY: f64 = 34.0;

#[test]
fn chaos() {
    const LONG: u64 = 600;
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("WIFSHARE_CHAOS_SECONDS").unwrap_or(16);
    let seed = number("WIFSHARE_CHAOS_SEED").unwrap_or(20_261_123);
    eprintln!("chaos: {seconds} s, WIFSHARE_CHAOS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut job = Job::new(living(6));
    let mut subjects = Subjects::new();
    kinds::let_users_in(&mut job, &subjects);
    clock::replace(&mut job);
    let (mut weather, mut crowd) = (Weather::new(seconds), Crowd::new(&job));
    while now() < weather.end() {
        weather.change(&job, &mut crowd, &mut random);
        subjects.restock(&job);
        crowd.change(&job, &subjects, weather.is_stormy(), &mut random);
        crowd.judge(&job, &weather);
        std::thread::sleep(Duration::from_millis(40));
    }
    weather.clear(&job, &mut crowd);
    eprintln!("storms began and ended at {}", weather.storms());
    crowd.wait_for_all(&job, &weather);
    std::thread::sleep(Duration::from_secs_f64((weather.well_from() - now()).max(0.0)));
    subjects.restock(&job);
    for mut last in kinds::last_of_each(&job, &subjects, crowd.bereft()) {
        let ended = finish(last.spawn().unwrap());
        assert_eq!(ended.code, 0, "the run after everything, {last:?}: {}", ended.stderr);
    }
    let left = crowd.left_behind(&job);
    crowd.look_at_state(&job);
    eprintln!("{}", weather.figures(&crowd.figures(&job, left.len())));
    let never_met = weather.never_met();
    eprintln!("faults that were in no answer: {never_met:?}");
    crowd.assert_well();
    job.assert_nothing_sent_twice();
    assert!(left.is_empty(), "secrets were left in {left:#?}");
    assert!(crowd.is_worth_its_name(), "the run was too short or the machine too slow to say anything");
    assert!(seconds < LONG || never_met.is_empty(), "a run of ten minutes meets every fault, but for {never_met:?}");
}

/// Returns the wall clock in seconds. The children's `date` prints the same clock.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}
