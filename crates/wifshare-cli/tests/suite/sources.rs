//! Sources over time: several given tokens, a platform that repeats tokens, and the variables that children inherit.

use crate::job::{Job, living, settings};

/// A job without GitHub's endpoint.
fn job(settings: wifshare_sandbox::Settings) -> Job {
    let mut job = Job::new(settings);
    job.without_endpoint();
    job.may_keep_credential();
    job
}

/// Sends requests to the API until a file appears, and fails if one is refused.
const ASK_UNTIL_STOPPED: &str = r#"for i in $(seq 1 400); do "$WIFSHARE" demo --child shared || exit 7; [ -e stop ] && exit 0; sleep 0.1; done; exit 8"#;

/// Runs the script under `exec` and creates the file after this number of accepted exchanges.
fn run_until_exchanges(job: &Job, options: &[&str], exchanges: u64) -> crate::job::Ended {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| job.exec(options, ASK_UNTIL_STOPPED));
        let begin = std::time::Instant::now();
        while job.counters().exchanges_accepted < exchanges && !running.is_finished() {
            assert!(begin.elapsed() < std::time::Duration::from_secs(60), "{:#?}", job.counters());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        std::fs::write(job.path("stop"), "").unwrap();
        running.join().unwrap()
    })
}

#[test]
fn given_tokens_are_used_in_order_while_the_command_runs() {
    let mut job = job(living(12));
    for name in ["ANTHROPIC_IDENTITY_TOKEN", "ANTHROPIC_IDENTITY_TOKEN_2", "ANTHROPIC_IDENTITY_TOKEN_3"] {
        let token = job.sandbox.issue_identity_token();
        job.set(name, &token);
    }
    let ended = run_until_exchanges(&job, &[], 3);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("hold 3 identity tokens, 2 of them unused"), "{}", ended.stderr);
    job.assert_exchanges(3);
}

#[test]
fn repeated_token_without_jti_keeps_a_job_signed_in() {
    use wifshare_sandbox::Fault::DuplicateIdentityToken;
    // Like Google's tokens: without a `jti`, and the same one each time.
    let settings = wifshare_sandbox::Settings {
        issue_jti: false,
        identity_token_faults: vec![DuplicateIdentityToken; 50],
        ..living(12)
    };
    let mut job = job(settings);
    let address = job.sandbox.base_url();
    job.set("WIFSHARE_TEST_METADATA", &address);
    job.set("CLOUD_RUN_JOB", "nightly");
    let ended = run_until_exchanges(&job, &[], 3);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let counters = job.counters();
    assert_eq!((counters.identity_tokens_issued, counters.exchanges_refused), (1, 0), "{counters:#?}");
    assert!(counters.exchanges_accepted >= 3 && counters.assertions_repeated >= 2, "{counters:#?}");
}

#[test]
fn repeated_token_with_jti_is_not_sent_again() {
    let settings = wifshare_sandbox::Settings {
        identity_token_faults: vec![wifshare_sandbox::Fault::DuplicateIdentityToken; 50],
        ..settings()
    };
    let mut job = job(settings);
    let address = job.sandbox.base_url();
    job.set("WIFSHARE_TEST_METADATA", &address);
    job.set("CLOUD_RUN_JOB", "nightly");
    assert_eq!(job.exec(&[], "true").code, 0);
    let ended = job.exec(&[], "true");
    assert!(ended.stderr.contains("error[identity-spent]"), "{}", ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn children_do_not_inherit_ci_sign_in_variables() {
    let all = [
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
        "BITBUCKET_STEP_OIDC_TOKEN",
        "CIRCLE_OIDC_TOKEN",
        "CIRCLE_OIDC_TOKEN_V2",
        "BUILDKITE_AGENT_ACCESS_TOKEN",
        "SYSTEM_ACCESSTOKEN",
        "SYSTEM_OIDCREQUESTURI",
    ];
    let mut job = Job::new(settings());
    for name in &all[1..] {
        job.set(name, "x");
    }
    job.set("AZURE_FEDERATED_TOKEN_FILE", "/of/another/source");
    let ended = job.exec(&["--keep-env", "BUILDKITE_AGENT_ACCESS_TOKEN"], "env");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    for name in all.iter().filter(|name| **name != "BUILDKITE_AGENT_ACCESS_TOKEN") {
        assert!(!ended.stdout.contains(&format!("{name}=")), "{name} is inherited");
    }
    assert!(ended.stdout.contains("BUILDKITE_AGENT_ACCESS_TOKEN=x"), "what the user keeps is kept");
    assert!(ended.stdout.contains("AZURE_FEDERATED_TOKEN_FILE="), "a cloud that is not asked keeps its variables");
}

#[test]
fn children_do_not_inherit_variables_of_the_cloud_in_use() {
    let mut job = job(settings());
    let endpoint = format!("{}/msi/token", job.sandbox.base_url());
    let secret = job.sandbox.identity_token_request_token();
    job.set("IDENTITY_ENDPOINT", &endpoint);
    job.set("IDENTITY_HEADER", &secret);
    let ended = job.exec(&[], "env");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(
        !ended.stdout.contains("IDENTITY_HEADER") && !ended.stdout.contains("IDENTITY_ENDPOINT"),
        "{}",
        ended.stdout
    );
    job.assert_exchanges(1);
}

#[test]
fn given_tokens_under_custom_names_are_not_inherited() {
    let mut job = job(settings());
    let token = job.sandbox.issue_identity_token();
    job.set("CLAUDE_ONE", &token);
    job.set("WIFSHARE_IDENTITY_TOKEN_VARIABLES", "CLAUDE_ONE");
    let ended = job.exec(&[], "env");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(!ended.stdout.contains("CLAUDE_ONE=ey"), "{}", ended.stdout);
}

#[test]
fn near_expiry_of_the_request_token_is_reported() {
    use base64::Engine;
    let mut job = Job::new(settings());
    let told = |job: &mut Job, left: u64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = format!(r#"{{"exp":{}}}"#, now + left);
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims);
        // The mock server's own request token is opaque. This one is refused, so another run must have signed in
        // before.
        job.set("ACTIONS_ID_TOKEN_REQUEST_TOKEN", &format!("e30.{claims}.c2ln"));
        job.exec(&[], "true").stderr
    };
    job.may_keep_credential();
    assert_eq!(job.token(&[]).code, 0);
    let near = told(&mut job, 1500);
    assert!(
        near.contains("this command can stay signed in for about 25 min, because what the job asks GitHub Actions"),
        "{near}"
    );
    assert_eq!(
        job.token(&[]).code,
        125,
        "the run before has removed the credential, and this request token is refused"
    );
}

#[test]
fn gitlab_job_with_several_steps_uses_start_and_stop() {
    let mut job = job(settings());
    let issuer = job.sandbox.base_url();
    job.set("GITLAB_CI", "true");
    job.set("CI_SERVER_URL", &issuer);
    for name in ["CLAUDE_ONE", "CLAUDE_TWO"] {
        let token = job.sandbox.issue_identity_token();
        job.set(name, &token);
    }
    // The script of docs/guides/ci/gitlab.md: several commands, each of which finds the credential.
    let script = r#"set -e
        eval "$("$WIFSHARE" start --format env)"
        [ -z "$CLAUDE_ONE$CLAUDE_TWO" ]
        "$WIFSHARE" demo --child shared
        sh -c '"$WIFSHARE" demo --child shared'
        "$WIFSHARE" stop"#;
    let ended = crate::job::finish(job.command("sh", &["-c", script]).spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("can stay signed in for about"), "{}", ended.stderr);
    assert_eq!(job.counters().messages_accepted, 2);
    job.assert_exchanges(1);
}
