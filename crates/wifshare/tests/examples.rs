//! The examples work with the mock server.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]
#![allow(dead_code, reason = "the examples' own `main`s are not called here")]

#[path = "../examples/models.rs"]
mod models;
#[path = "../examples/share.rs"]
mod share;

use std::ffi::OsString;

use wifshare::Environment;
use wifshare_sandbox::{Fault, Sandbox, Settings};

fn job(settings: Settings) -> (Sandbox, tempfile::TempDir, Environment) {
    let sandbox = Sandbox::start(settings).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut environment: Environment = sandbox.environment().into_iter().collect();
    environment.set("WIFSHARE_STATE_DIR", directory.path().canonicalize().unwrap().join("wifshare"));
    environment.set("PATH", "/usr/bin:/bin");
    (sandbox, directory, environment)
}

#[test]
fn example_client_works_and_its_second_call_shares() {
    let (sandbox, _directory, environment) = job(Settings { require_oauth_beta: true, ..Settings::default() });
    let models = models::models(&environment).unwrap();
    assert!(models.iter().any(|model| model.starts_with("claude-")), "{models:?}");
    assert_eq!(models::models(&environment).unwrap(), models);
    assert_eq!(sandbox.counters().exchanges_accepted, 1, "the second call found the credential of the first");
}

#[test]
fn example_client_renews_a_revoked_credential_once() {
    let (sandbox, _directory, environment) = job(Settings::default());
    models::models(&environment).unwrap();
    sandbox.revoke_access_tokens();
    models::models(&environment).unwrap();
    assert_eq!(sandbox.counters().exchanges_accepted, 2);
    assert_eq!(sandbox.counters().assertions_repeated, 0);
}

#[test]
fn example_error_has_a_hint_and_a_diagnosis() {
    let (_sandbox, _directory, environment) = job(Settings { exchange_faults: vec![refused()], ..Settings::default() });
    let error = models::models(&environment).unwrap_err();
    let error = error.downcast_ref::<wifshare::ObtainError>().unwrap();
    assert_eq!(error.code(), "exchange-refused");
    assert!(error.hint().is_some() && !error.diagnosis().unwrap().likely.is_empty());
}

fn refused() -> Fault {
    Fault::Status { status: 401, retry_after_s: None, commit: false }
}

#[test]
fn example_run_shares_and_leaves_no_files() {
    let (sandbox, directory, environment) = job(Settings::default());
    let script = r#"test -s "$ANTHROPIC_CONFIG_DIR/credentials/$ANTHROPIC_PROFILE.json" && exit 7"#;
    let command: Vec<OsString> = ["sh", "-c", script].map(OsString::from).into();
    assert_eq!(share::share(&command, &environment).unwrap(), 7);
    assert_eq!(sandbox.counters().exchanges_accepted, 1);
    let left = std::fs::read_dir(directory.path().join("wifshare")).unwrap().flatten();
    let left: Vec<_> = left.filter(|entry| entry.path().join("credential.json").exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}
