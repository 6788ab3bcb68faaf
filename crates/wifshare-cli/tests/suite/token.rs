//! `wifshare token`: one exchange for any number of callers, and formats for other programs.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;
use wifshare_sandbox::{Fault, Settings};

use crate::job::{Ended, Job, eventually, finish, living, settings};
use crate::wall_clock;

#[test]
fn hundred_parallel_processes_make_one_exchange() {
    let mut job = Job::new(Settings { exchange_latency_ms: 1200, ..settings() });
    job.may_keep_credential();
    let children: Vec<_> = (0..100).map(|_| job.wifshare(&["token"]).spawn().unwrap()).collect();
    let answers: Vec<Ended> = children.into_iter().map(finish).collect();
    for answer in &answers {
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        assert_eq!(answer.stdout, answers[0].stdout);
        job.search(&answer.stderr, "standard error");
    }
    assert!(answers[0].stdout.starts_with("sk-ant-oat01-"));
    job.assert_exchanges(1);
}

#[test]
fn hundred_parallel_renewals_make_one_exchange() {
    let mut job = Job::new(living(20));
    let first = job.token(&[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    std::thread::sleep(Duration::from_millis(10_500));
    let children: Vec<_> = (0..100).map(|_| job.wifshare(&["token"]).spawn().unwrap()).collect();
    let answers: Vec<Ended> = children.into_iter().map(finish).collect();
    assert!(answers.iter().all(|answer| answer.code == 0 && answer.stdout == answers[0].stdout));
    assert_ne!(answers[0].stdout, first.stdout);
    job.assert_exchanges(2);
}

#[test]
fn usable_credential_is_served_during_a_renewal() {
    let mut job = Job::new(living(40));
    let first = job.token(&[]);
    std::thread::sleep(Duration::from_millis(20_500));
    job.sandbox.set_settings(Settings { exchange_latency_ms: 8000, ..living(40) });
    let renewing = job.wifshare(&["token"]).spawn().unwrap();
    eventually("a renewal is under way", || job.counters().exchanges_received == 2);
    let start = std::time::Instant::now();
    let served = job.token(&[]);
    assert_eq!((served.code, &served.stdout), (0, &first.stdout), "{}", served.stderr);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(finish(renewing).code, 0);
    job.assert_exchanges(2);
}

#[test]
fn cached_token_needs_no_exchange_in_any_format() {
    let mut job = Job::new(settings());
    let token = job.token(&[]).stdout.trim().to_owned();
    assert_eq!(job.token(&["--format", "header"]).stdout, format!("Authorization: Bearer {token}\n"));
    assert_eq!(job.token(&["--format", "env"]).stdout, format!("ANTHROPIC_AUTH_TOKEN={token}\n"));
    let json: Value = serde_json::from_str(&job.token(&["--format", "json"]).stdout).unwrap();
    assert_eq!(json["access_token"], token.as_str());
    assert_eq!(json["token_type"], "Bearer");
    assert!((570..=600).contains(&json["expires_in"].as_u64().unwrap()), "{}", json["expires_in"]);
    job.assert_exchanges(1);
}

#[test]
fn interrupted_token_stores_its_credential_and_prints_nothing() {
    let mut job = Job::new(Settings { exchange_latency_ms: 1000, ..settings() });
    for (signal, code) in [(Signal::INT, 130), (Signal::HUP, 129), (Signal::TERM, 143)] {
        let asking = job.wifshare(&["token"]).spawn().unwrap();
        eventually("the exchange is under way", || job.counters().exchanges_received == 1);
        rustix::process::kill_process(Pid::from_child(&asking), signal).unwrap();
        let ended = finish(asking);
        assert_eq!((ended.code, &*ended.stdout), (code, ""), "{signal:?} {}", ended.stderr);
        assert_eq!(job.token(&[]).code, 0);
        job.assert_exchanges(1);
        job = Job::new(Settings { exchange_latency_ms: 1000, ..settings() });
    }
}

#[test]
fn clock_set_back_does_not_extend_a_stored_credential() {
    let mut job = Job::new(living(8));
    wall_clock::replace(&mut job);
    let first = job.token(&[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    // Within the clock tolerance: by the wall clock alone, the credential is fresh.
    if !wall_clock::set(&job, -20) {
        return;
    }
    assert_eq!(job.token(&[]).stdout, first.stdout, "it has not ended yet");
    std::thread::sleep(Duration::from_secs(8));
    let second = job.token(&[]);
    assert_eq!(second.code, 0, "{}", second.stderr);
    assert_ne!(second.stdout, first.stdout);
    job.assert_exchanges(2);
}

#[test]
fn clock_set_back_under_a_run_moves_the_delivered_expiry() {
    let mut job = Job::new(settings());
    wall_clock::replace(&mut job);
    // The command's own output shows that the first one was read.
    let expiry = "grep -o '\"expires_at\": *[0-9]*' \"$ANTHROPIC_CONFIG_DIR\"/credentials/*.json | tr -dc 0-9; echo";
    let mut running = job.wifshare(&["exec", "--", "sh", "-c", &format!("{expiry}; read line; {expiry}")]);
    let mut running = running.stdin(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(running.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    let before = next();
    let published =
        || crate::job::files(&job.state()).into_iter().find(|path| path.ends_with("credentials/wifshare.json"));
    let text = || published().and_then(|path| std::fs::read_to_string(path).ok());
    let text_before = text();
    if wall_clock::set(&job, -3600) {
        eventually("it is delivered again", || text().is_some() && text() != text_before);
        running.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let after = next();
        assert!((3590..=3610).contains(&(before - after)), "{before} {after}");
    }
    drop(running.stdin.take());
    assert_eq!(finish(running).code, 0);
    job.assert_exchanges(1);
}

#[test]
fn min_life_renews_only_if_the_stored_token_is_too_short() {
    let mut job = Job::new(living(60));
    assert_eq!(job.token(&["--min-life", "50s"]).code, 0);
    assert_eq!(job.token(&["--min-life", "50s"]).code, 0);
    job.assert_exchanges(1);
    let hopeless = job.token(&["--min-life", "2m"]);
    assert_eq!(hopeless.code, 125);
    assert!(hopeless.stderr.contains("error[credential-short-lived]"), "{}", hopeless.stderr);
    job.assert_exchanges(1);
}

#[test]
fn lost_response_is_retried_with_a_new_identity_token() {
    for fault in [Fault::DropAfterCommit, Fault::DropBeforeCommit, Fault::TruncatedBody] {
        let mut job = Job::new(Settings { exchange_faults: vec![fault.clone()], ..settings() });
        let answer = job.token(&[]);
        assert_eq!(answer.code, 0, "{fault:?}: {}", answer.stderr);
        assert!(answer.stderr.contains("trying again"), "{fault:?}: {}", answer.stderr);
        assert_eq!(job.counters().exchanges_received, 2, "{fault:?}");
        job.assert_nothing_sent_twice();
    }
}

#[test]
fn busy_endpoint_gets_three_attempts_and_the_failure_is_cached() {
    let fault = Fault::Status { status: 529, retry_after_s: None, commit: true };
    let mut job = Job::new(Settings { exchange_faults: vec![fault; 9], ..settings() });
    let answer = job.token(&[]);
    assert_eq!(answer.code, 125);
    assert!(answer.stderr.contains("error[endpoint-busy]"), "{}", answer.stderr);
    assert_eq!(job.counters().exchanges_received, 3);
    let next = job.token(&[]);
    assert!(next.stderr.contains("error[endpoint-busy]") && next.stderr.contains("remembered"), "{}", next.stderr);
    assert_eq!(job.counters().exchanges_received, 3, "those who come next fail at once with the same reason");
    job.assert_nothing_sent_twice();
}

#[test]
fn twenty_refused_processes_share_one_request_and_its_reason() {
    let mut refusing = Settings { exchange_latency_ms: 300, ..settings() };
    refusing.rule.subject_prefix = "repo:somebody/else:*".to_owned();
    let job = Job::new(refusing);
    let children: Vec<_> = (0..20).map(|_| job.wifshare(&["token"]).spawn().unwrap()).collect();
    for answer in children.into_iter().map(finish) {
        assert_eq!(answer.code, 125);
        assert!(answer.stderr.contains("error[exchange-refused]"), "{}", answer.stderr);
        assert!(answer.stderr.contains("Authentication failed"), "{}", answer.stderr);
        assert!(answer.stderr.contains("request id req_"), "{}", answer.stderr);
        job.search(&answer.stderr, "standard error");
    }
    assert_eq!(job.counters().exchanges_received, 1);
}

/// Another program without access to the ledger, for example an SDK, has exchanged the job's only token before.
#[test]
fn twenty_processes_with_a_spent_token_make_one_request() {
    for is_file in [true, false] {
        let mut job = Job::new(Settings { exchange_latency_ms: 300, ..settings() });
        let token = job.sandbox.issue_identity_token();
        if is_file {
            job.use_token_file(&token);
        } else {
            job.without_endpoint();
            job.set("ANTHROPIC_IDENTITY_TOKEN", &token);
        }
        let elsewhere = job.path("elsewhere");
        assert_eq!(job.token(&["--state-dir", elsewhere.to_str().unwrap()]).code, 0);
        let begun = std::time::Instant::now();
        let start = |number: usize| match number % 2 {
            0 => job.wifshare(&["token"]).spawn().unwrap(),
            _ => job.wifshare(&["exec", "--", "true"]).spawn().unwrap(),
        };
        let children: Vec<_> = (0..20).map(start).collect();
        for ended in children.into_iter().map(finish) {
            assert_eq!(ended.code, 125, "{}", ended.stderr);
            assert!(ended.stderr.contains("error[exchange-refused]"), "{}", ended.stderr);
            assert!(ended.stderr.contains("jti_reused"), "the hint names what happened: {}", ended.stderr);
            job.search(&ended.stderr, "standard error");
        }
        // A client with retries would continue for minutes. On a busy machine, twenty processes take a while to start.
        assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
        let counters = job.counters();
        assert_eq!(
            (counters.exchanges_accepted, counters.exchanges_received),
            (1, 2),
            "the stranger's, and one of ours"
        );
        // When the failure is not cached any more, the ledger reports who used the token and when, and what to do.
        let refusal = crate::job::files(&job.state()).into_iter().find(|path| path.ends_with("refusal.json"));
        std::fs::remove_file(refusal.unwrap()).unwrap();
        let later = job.token(&[]);
        assert!(later.stderr.contains("was already taken for an exchange by pid "), "{}", later.stderr);
        assert!(later.stderr.contains("hint: each identity token is accepted once"), "{}", later.stderr);
        assert_eq!(job.counters().exchanges_received, 2);
    }
}

#[test]
fn exec_caches_a_refusal() {
    let mut refusing = settings();
    refusing.rule.subject_prefix = "repo:somebody/else:*".to_owned();
    let job = Job::new(refusing);
    for _ in 0..3 {
        let ended = job.exec(&[], "true");
        assert!(ended.stderr.contains("error[exchange-refused]"), "{}", ended.stderr);
    }
    assert_eq!(job.counters().exchanges_received, 1);
}

#[test]
fn token_file_is_used_once_and_its_reuse_is_explained() {
    let mut job = Job::new(settings());
    let token = job.sandbox.issue_identity_token();
    let path = job.use_token_file(&token);
    assert_eq!(job.token(&[]).code, 0);
    // Another workspace is another key, with the same file and so the same token.
    let other = job.token(&["--workspace-id", "default"]);
    assert_eq!(other.code, 125);
    assert!(other.stderr.contains("error[identity-spent]"), "{}", other.stderr);
    assert!(other.stderr.contains("pid ") && other.stderr.contains("hint:"), "{}", other.stderr);
    job.assert_exchanges(1);
    std::fs::write(path, job.sandbox.issue_identity_token()).unwrap();
    assert_eq!(job.token(&["--workspace-id", "default"]).code, 0);
    job.assert_exchanges(2);
}

#[test]
fn ten_identities_with_one_file_send_its_token_once() {
    // Each has its own lock, so that only the ledger prevents a second use.
    let mut job = Job::new(Settings { exchange_latency_ms: 500, ..settings() });
    job.use_token_file(&job.sandbox.issue_identity_token());
    job.may_keep_credential();
    let start = |number| job.wifshare(&["token", "--workspace-id", &format!("wrkspc_{number}")]).spawn().unwrap();
    let children: Vec<_> = (0..10).map(start).collect();
    let answers: Vec<Ended> = children.into_iter().map(finish).collect();
    assert_eq!(answers.iter().filter(|answer| answer.code == 0).count(), 1, "{answers:#?}");
    let spent = |answer: &&Ended| answer.stderr.contains("error[identity-spent]");
    assert_eq!(answers.iter().filter(spent).count(), 9, "{answers:#?}");
    job.assert_exchanges(1);
}

#[test]
fn identity_command_is_taken_only_from_the_option() {
    let mut job = Job::new(settings());
    let path = job.use_token_file(&job.sandbox.issue_identity_token());
    job.unset("ANTHROPIC_IDENTITY_TOKEN_FILE");
    let command = format!("cat {}", path.display());
    assert_eq!(job.token(&["--identity-command", &command]).code, 0);
    job.assert_exchanges(1);
}

#[test]
fn duplicate_token_from_the_platform_is_requested_again() {
    let mut job = Job::new(settings());
    assert_eq!(job.token(&[]).code, 0);
    let faults = vec![Fault::DuplicateIdentityToken];
    job.sandbox.set_settings(Settings { identity_token_faults: faults, ..settings() });
    assert_eq!(job.token(&["--workspace-id", "default"]).code, 0);
    job.assert_exchanges(2);
}

#[test]
fn expected_subject_ignores_a_credential_obtained_without_it() {
    let mut job = Job::new(settings());
    job.may_keep_credential();
    assert_eq!(job.token(&[]).code, 0);
    let refused = job.token(&["--expect-subject", "repo:octo-org/another:*"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (125, ""), "{}", refused.stderr);
    assert!(refused.stderr.contains("error[subject-unexpected]"), "{}", refused.stderr);
    job.assert_exchanges(1);
    for _ in 0..2 {
        assert_eq!(job.token(&["--expect-subject", "repo:octo-org/octo-repo:*"]).code, 0);
    }
    job.assert_exchanges(2);
    // Inside a run, the expected subject is checked too.
    let inside = job.exec(&[], r#""$WIFSHARE" token --expect-subject 'repo:octo-org/another:*'"#);
    assert_eq!(inside.stdout, "", "{}", inside.stderr);
    assert_ne!(inside.code, 0);
}

#[test]
fn start_and_federation_refuse_an_unexpected_subject() {
    let job = Job::new(settings());
    for command in [&["start", "--format", "json"][..], &["exec", "--delivery", "federation"]] {
        let options = [command, &["--expect-subject", "repo:octo-org/another:*"]].concat();
        let ended = job.run(&[options, if command[0] == "exec" { vec!["--", "true"] } else { vec![] }].concat());
        assert_eq!(ended.code, 125, "{command:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("error[subject-unexpected]"), "{command:?}: {}", ended.stderr);
    }
    job.assert_exchanges(0);
}
