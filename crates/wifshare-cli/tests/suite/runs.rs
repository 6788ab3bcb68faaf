//! Parallel runs, nested runs, and the files of killed runs.

use std::os::unix::process::CommandExt;
use std::process::Child;
use std::time::Duration;

use wifshare_sandbox::Settings;

use crate::job::{Job, eventually, finish, settings};

const ASK: &str = r#""$WIFSHARE" demo --child shared"#;

/// Starts a run in its own process group, so that it can be killed with its child.
fn start(job: &Job, script: &str) -> Child {
    job.wifshare(&["exec", "--", "sh", "-c", script]).process_group(0).spawn().unwrap()
}

fn kill_group(child: &Child) {
    let group = rustix::process::Pid::from_child(child);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
}

fn asking_for(tenths: u64) -> String {
    format!("for i in $(seq {tenths}); do {ASK} || exit 9; sleep 0.05; done")
}

#[test]
fn twenty_runs_share_one_credential_and_the_last_removes_it() {
    let job = Job::new(Settings { exchange_latency_ms: 200, ..settings() });
    let anchor = start(
        &job,
        &format!("touch begun; {}; while ! [ -e over ]; do {ASK} || exit 9; sleep 0.1; done", asking_for(1)),
    );
    eventually("the first run has begun", || job.path("begun").exists());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..20u64)
            .map(|number| {
                let job = &job;
                scope.spawn(move || {
                    // Spread and in mixed order, the same each time.
                    std::thread::sleep(Duration::from_millis(number * 7919 % 3000));
                    let child = start(job, &asking_for(1 + number * 31 % 20));
                    if number % 4 == 3 {
                        std::thread::sleep(Duration::from_millis(300 + number * 40));
                        kill_group(&child);
                        finish(child);
                        return;
                    }
                    let ended = finish(child);
                    assert_eq!(ended.code, 0, "run {number}: {}", ended.stderr);
                })
            })
            .collect();
        runs.into_iter().for_each(|run| run.join().unwrap());
    });
    std::fs::File::create(job.path("over")).unwrap();
    let ended = finish(anchor);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    job.assert_exchanges(1);
    assert_eq!(job.counters().messages_refused, 0);
    // The next start removes the files of the killed runs.
    assert_eq!(job.exec(&[], "true").code, 0);
    assert!(job.files_with_secrets().is_empty(), "{:?}", job.files_with_secrets());
}

#[test]
fn next_start_removes_the_files_of_a_killed_run() {
    let job = Job::new(settings());
    let child = start(&job, "touch begun; sleep 60");
    eventually("the run has begun", || job.path("begun").exists());
    kill_group(&child);
    finish(child);
    assert!(!job.files_with_secrets().is_empty(), "a killed run cannot clean up");
    assert_eq!(job.exec(&["--workspace-id", "default"], "true").code, 0);
    assert!(job.files_with_secrets().is_empty(), "{:?}", job.files_with_secrets());
}

#[test]
fn start_keeps_the_files_of_a_living_run() {
    let job = Job::new(settings());
    let child = start(&job, &format!("touch begun; while ! [ -e over ]; do {ASK} || exit 9; sleep 0.05; done"));
    eventually("the run has begun", || job.path("begun").exists());
    for _ in 0..5 {
        assert_eq!(job.exec(&["--workspace-id", "default"], "true").code, 0);
        assert_eq!(job.exec(&[], "true").code, 0);
    }
    let runs = crate::job::files(&job.state()).into_iter().filter(|path| path.ends_with("owner"));
    assert_eq!(runs.count(), 1, "a run that ends takes its own files along, whoever else lives");
    std::fs::File::create(job.path("over")).unwrap();
    let ended = finish(child);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn run_inside_a_run_joins_it() {
    for delivery in ["profile", "federation", "environment"] {
        let job = Job::new(settings());
        let script = r#"
            outer=$("$WIFSHARE" token) && inner=$("$WIFSHARE" exec -- "$WIFSHARE" exec -- "$WIFSHARE" token) &&
            [ -n "$outer" ] && [ "$outer" = "$inner" ] &&
            [ "$("$WIFSHARE" exec --delivery environment -- sh -c 'echo $ANTHROPIC_AUTH_TOKEN')" = "$outer" ]"#;
        let ended = job.exec(&["--delivery", delivery], script);
        assert_eq!(ended.code, 0, "{delivery}: {}", ended.stderr);
        job.assert_exchanges(1);
    }
}

#[test]
fn inner_run_can_name_another_identity() {
    for delivery in ["profile", "environment"] {
        let job = Job::new(settings());
        let rule = job.sandbox.settings().rule;
        let url = job.sandbox.identity_token_request_url();
        let bearer = job.sandbox.identity_token_request_token();
        let script = format!(
            r#"export ACTIONS_ID_TOKEN_REQUEST_URL='{url}' ACTIONS_ID_TOKEN_REQUEST_TOKEN='{bearer}'
            outer=$("$WIFSHARE" token) && inner=$("$WIFSHARE" exec --federation-rule-id {} --organization-id {} \
                --workspace-id default -- "$WIFSHARE" token) && [ -n "$inner" ] && [ "$outer" != "$inner" ]"#,
            rule.id, rule.organization_id
        );
        let ended = finish(job.wifshare(&["exec", "--delivery", delivery, "--", "sh", "-c", &script]).spawn().unwrap());
        assert_eq!(ended.code, 0, "{delivery}: {}", ended.stderr);
        job.assert_exchanges(2);
    }
}

#[test]
fn child_with_changed_ids_is_not_served() {
    for delivery in ["profile", "federation", "environment"] {
        let job = Job::new(settings());
        let script = r#"ANTHROPIC_FEDERATION_RULE_ID=fdrl_other ANTHROPIC_ORGANIZATION_ID=other "$WIFSHARE" token"#;
        let ended = job.exec(&["--delivery", delivery], script);
        assert_eq!((ended.code, ended.stdout.as_str()), (125, ""), "{delivery}: {}", ended.stderr);
        job.assert_exchanges(1);
    }
}

#[test]
fn variables_of_an_ended_run_are_not_an_existing_profile() {
    let mut job = Job::new(settings());
    let ended = job.exec(&[], "env | grep -E 'WIFSHARE_RUN|ANTHROPIC_CONFIG_DIR|ANTHROPIC_PROFILE'");
    for line in ended.stdout.lines() {
        let (name, value) = line.split_once('=').unwrap();
        job.set(name, value);
    }
    let ended = job.exec(&[], ASK);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    job.assert_exchanges(2);
}

#[test]
fn end_of_an_inner_run_keeps_the_outer_credential() {
    let job = Job::new(settings());
    let ended = job.exec(&[], &format!(r#""$WIFSHARE" exec -- true && {ASK}"#));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn credential_of_a_one_time_source_is_kept_and_reused() {
    let mut job = Job::new(settings());
    job.may_keep_credential();
    job.without_endpoint();
    let token = job.sandbox.issue_identity_token();
    job.set("ANTHROPIC_IDENTITY_TOKEN", &token);
    let first = job.exec(&[], ASK);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(first.stderr.contains("cannot be asked for another one"), "{}", first.stderr);
    let second = job.exec(&[], ASK);
    assert_eq!(second.code, 0, "{}", second.stderr);
    job.assert_exchanges(1);
}

#[test]
fn replaced_token_file_lets_the_run_remove_its_credential() {
    let mut job = Job::new(settings());
    let path = job.use_token_file(&job.sandbox.issue_identity_token());
    let next = job.sandbox.issue_identity_token();
    let ended = job.exec(&[], &format!("{ASK} && printf %s '{next}' > {}", path.display()));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(job.files_with_secrets().iter().all(|left| *left == path), "{:?}", job.files_with_secrets());
}

#[test]
fn renewal_in_flight_restores_no_removed_files() {
    // The renewal of a 6 s token begins after about 2.5 s and hangs. The command ends meanwhile.
    let stall = wifshare_sandbox::Fault::Stall { ms: 6000 };
    let faults = vec![wifshare_sandbox::Fault::None, stall];
    let job = Job::new(Settings { exchange_faults: faults, ..crate::job::living(6) });
    let start = std::time::Instant::now();
    let ended = job.exec(&[], "sleep 3.5");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(job.counters().exchanges_received, 2, "a renewal was in flight");
    assert!(start.elapsed() < Duration::from_secs(8), "a finished command is not held up: {:?}", start.elapsed());
    std::thread::sleep(Duration::from_secs(4));
    assert!(job.files_with_secrets().is_empty(), "{:?}", job.files_with_secrets());
}
