//! Measures the cost of repeated requests for the credential in a Rust program, and of a ledger after a week of use.
//! `benches/run` and `benches/instructions` call it. It prints one number per line.
//!
//! ```text
//! hot time STATE        nanoseconds of one call, and of reading an RwLock<Option<String>> and the clock, in turn
//! hot count STATE N     asks N times and prints nothing: to be counted by valgrind
//! hot week STATE        a token spent every minute of a week: microseconds of one, and the ledger's size
//! ```
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measurement looks at the clock, at its arguments and at files, and prints"
)]

use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use wifshare::{
    Clock, Config, Credential, Environment, Holder, HttpClient, IdentityToken, Inputs, Location, Secret, Store, resolve,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["time", state] => time(Path::new(state)),
        ["count", state, calls] => count(Path::new(state), calls.parse()?),
        ["week", state] => week(Path::new(state)),
        _ => Err("usage: hot time STATE | hot count STATE N | hot week STATE".into()),
    }
}

/// Returns a holder of a credential that another process has stored. It sends no request.
fn holder(state: &Path) -> Result<Holder, Box<dyn std::error::Error>> {
    let config = configured(state)?;
    let now = SystemTime::now();
    let credential = Credential {
        access_token: Secret::new("sk-ant-oat01-".to_owned() + &"x".repeat(64)),
        expires_at: now + Duration::from_secs(86_400),
        obtained_at: now,
        generation: 0,
    };
    config.store().lock(Duration::from_secs(10), Clock::system(), &|_| {})?.keep(credential);
    let holder = Holder::new(config, HttpClient::new(&Environment::default()), Clock::system(), Arc::new(|_| {}));
    holder.credential()?;
    Ok(holder)
}

fn configured(state: &Path) -> Result<Config, wifshare::ConfigError> {
    let environment = Environment::from_iter([
        ("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_bench"),
        ("ANTHROPIC_ORGANIZATION_ID", "bench"),
        ("ANTHROPIC_IDENTITY_TOKEN_FILE", "/nonexistent"),
    ]);
    resolve(&Inputs { state_dir: Some(state.to_owned()), ..Inputs::default() }, &environment)
}

fn time(state: &Path) -> Outcome {
    const ROUNDS: usize = 21;
    const CALLS: u32 = 1_000_000;
    let holder = holder(state)?;
    let text = RwLock::new(Some("x".repeat(77)));
    let each = |ask: &dyn Fn() -> usize| {
        let start = Instant::now();
        for _ in 0..CALLS {
            black_box(ask());
        }
        start.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    for _ in 0..ROUNDS {
        let held = each(&|| holder.credential().map_or(0, |credential| credential.access_token.expose().len()));
        let read = each(&|| text.read().map_or(0, |text| text.as_ref().map_or(0, String::len)));
        let clock = each(&|| {
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |it| it.subsec_nanos() as usize)
        });
        println!("{held:.2} {read:.2} {clock:.2}");
    }
    Ok(())
}

fn count(state: &Path, calls: u64) -> Outcome {
    let holder = holder(state)?;
    for _ in 0..calls {
        black_box(holder.credential()?);
    }
    Ok(())
}

/// The current time of the simulated week, in seconds since the epoch.
static NOW: AtomicU64 = AtomicU64::new(1_800_000_000);

fn week(state: &Path) -> Outcome {
    const MINUTES: u64 = 7 * 24 * 60;
    let location =
        Location { root: state.to_owned(), key: "0".repeat(32), source: "a bench".to_owned(), remintable: true };
    let store = Store::at(&location);
    let wall = || SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.load(Ordering::Relaxed));
    let clock = Clock { wall, ..Clock::system() };
    for minute in 0..MINUTES {
        let now = NOW.fetch_add(60, Ordering::Relaxed) + 60;
        let token = identity_token(minute, now + 300)?;
        let start = Instant::now();
        let already = store.hand_out(&token, clock, &|_| {})?;
        let took = start.elapsed();
        if already.is_some() {
            return Err("a new token was in the ledger already".into());
        }
        if minute % 60 == 59 {
            println!("{minute} {:.1} {}", took.as_secs_f64() * 1e6, std::fs::metadata(state.join("spent"))?.len());
        }
    }
    Ok(())
}

/// Returns a token in the form of GitHub's, with an invalid signature.
fn identity_token(number: u64, expires_at: u64) -> Result<IdentityToken, wifshare::Malformed> {
    let claims = format!(r#"{{"iss":"https://bench","jti":"{number:012}","exp":{expires_at}}}"#);
    IdentityToken::parse(&Secret::new(format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))))
}
