//! Panics of wifshare: the command is waited for, the run ends cleanly, and no secret is printed.

use wifshare_sandbox::Settings;

use crate::job::{Ended, Job, eventually, files, finish, settings};

/// A job in which wifshare panics at this place.
fn job_with_a_panic(place: &str) -> Job {
    let mut job = Job::new(settings());
    job.set("WIFSHARE_TEST_PANIC_AT", place);
    job
}

fn assert_told(ended: &Ended) {
    let told: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("error[internal]: ")).collect();
    assert_eq!(told.len(), 1, "{}", ended.stderr);
    assert!(told[0].contains("wifshare-cli/src/exec.rs:"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("not-a-secret"), "what the panic says is not repeated: {}", ended.stderr);
}

/// Checks that there is no run, no lease and no credential.
fn assert_nothing_is_left(job: &Job) {
    assert!(job.files_with_secrets().is_empty(), "{:?}", job.files_with_secrets());
    let runs = files(&job.state()).into_iter().filter(|path| path.components().any(|part| part.as_os_str() == "runs"));
    assert_eq!(runs.collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn panic_during_the_exchange_ends_the_run_without_command() {
    for place in ["locked", "recorded", "answered", "written", "exchanged"] {
        let job = job_with_a_panic(place);
        let ended = job.exec(&[], "echo started");
        assert_eq!((ended.code, ended.stdout.as_str()), (125, ""), "{place}: {}", ended.stderr);
        assert_told(&ended);
        if !["written", "exchanged"].contains(&place) {
            assert_nothing_is_left(&job);
        }
        job.assert_nothing_sent_twice();
    }
}

#[test]
fn panic_while_the_command_runs_waits_for_its_end() {
    for delivery in ["profile", "gateway"] {
        let job = job_with_a_panic("child-started");
        let ended = job.exec(&["--delivery", delivery], "sleep 1; touch ended");
        assert_eq!(ended.code, 125, "{}", ended.stderr);
        assert!(job.path("ended").exists(), "the command was waited for");
        assert_told(&ended);
        assert_nothing_is_left(&job);
    }
}

#[test]
fn panic_in_gateway_exchange_returns_503_and_keeps_the_exit_code() {
    let job = job_with_a_panic("answered");
    let script = r#"curl -sS -m 60 -w '%{http_code}' -H "x-api-key: $ANTHROPIC_AUTH_TOKEN" "$ANTHROPIC_BASE_URL/v1/models"; exit 3"#;
    let ended = job.exec(&["--delivery", "gateway"], script);
    assert_eq!(ended.code, 3, "{}", ended.stderr);
    assert!(ended.stdout.ends_with("503"), "{}", ended.stdout);
    assert!(ended.stderr.contains("error[internal]: "), "{}", ended.stderr);
    assert_nothing_is_left(&job);
    job.assert_nothing_sent_twice();
}

#[test]
fn panic_in_a_gateway_connection_affects_no_other() {
    let job = job_with_a_panic("served");
    let script = r#"
        ask() { curl -sS -m 60 -o /dev/null -w '%{http_code} ' -H "x-api-key: $ANTHROPIC_AUTH_TOKEN" "$ANTHROPIC_BASE_URL$1"; }
        ask /v1/models; ask /v1/panic; ask /v1/models; ask /v1/models"#;
    let ended = job.exec(&["--delivery", "gateway"], script);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "200 404 200 200 "), "{}", ended.stderr);
    assert!(ended.stderr.contains("internal error ended one connection"), "{}", ended.stderr);
    assert_told(&ended);
    assert_nothing_is_left(&job);
}

#[test]
fn panic_in_a_starting_keeper_fails_start() {
    let job = job_with_a_panic("answered");
    let ended = job.run(&["start", "--format", "json"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (125, ""), "{}", ended.stderr);
    assert_told(&ended);
    assert_nothing_is_left(&job);
}

#[test]
fn panic_in_a_renewal_is_reported_and_retried() {
    let mut job = Job::new(Settings { access_token_lifetime_s: 4, access_token_lifetime_floor_s: 1, ..settings() });
    job.set("WIFSHARE_TEST_PANIC_AT", "replaced");
    // Another process, which does not panic, stores the first credential.
    let mut first = job.wifshare(&["token"]);
    first.env_remove("WIFSHARE_TEST_PANIC_AT");
    job.may_keep_credential();
    assert_eq!(finish(first.spawn().unwrap()).code, 0);
    let child = job.wifshare(&["exec", "--", "sh", "-c", "sleep 5; exit 4"]).spawn().unwrap();
    eventually("the run has begun", || files(&job.state()).iter().any(|path| path.ends_with("owner")));
    let ended = finish(child);
    assert_eq!(ended.code, 4, "{}", ended.stderr);
    assert!(ended.stderr.contains("error[internal]: "), "{}", ended.stderr);
    assert!(ended.stderr.contains("could not be renewed"), "{}", ended.stderr);
    job.assert_nothing_sent_twice();
}
