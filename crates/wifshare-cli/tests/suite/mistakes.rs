//! Common mistakes, and the errors they cause: the code, the cause and the hint.

use std::os::unix::fs::symlink;

use wifshare_sandbox::{Fault, Settings};

use crate::job::{Ended, Job, settings};

fn assert_told(ended: &Ended, code: i32, name: &str, words: &[&str]) {
    assert_eq!(ended.code, code, "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("error[{name}]: ")), "{name} was expected:\n{}", ended.stderr);
    assert!(ended.stderr.contains("hint: "), "no cure:\n{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "`{word}` was expected:\n{}", ended.stderr);
    }
}

#[test]
fn invalid_configuration_is_refused_by_every_command() {
    let told = |changes: &[(&str, &str)], name: &str, words: &[&str]| {
        let mut job = Job::new(settings());
        for (variable, value) in changes {
            job.set(variable, value);
        }
        assert_told(&job.token(&[]), 125, name, words);
        assert_told(&job.exec(&[], "true"), 125, name, words);
        assert_eq!(job.counters().exchanges_received, 0);
    };
    let (rule, organization) = ("ANTHROPIC_FEDERATION_RULE_ID", "ANTHROPIC_ORGANIZATION_ID");
    told(&[(rule, ""), (organization, "")], "unconfigured", &[rule, organization, "--optional"]);
    told(&[(rule, " ")], "configured-in-part", &[rule]);
    told(&[(organization, "")], "configured-in-part", &[organization]);
    told(&[(rule, "fdrl 1")], "implausible-value", &[rule]);
    told(&[("ANTHROPIC_BASE_URL", "http://api.example")], "base-url", &["in the clear"]);
    told(&[("ANTHROPIC_BASE_URL", "http://localhost.evil.example")], "base-url", &["in the clear"]);
    let (url, bearer) = ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN");
    told(&[(url, ""), (bearer, "")], "no-identity-source", &["ANTHROPIC_IDENTITY_TOKEN_FILE"]);
    told(&[(url, ""), (bearer, ""), ("GITHUB_ACTIONS", "true")], "no-identity-source", &["id-token: write"]);
    told(&[(bearer, "")], "broken-identity-source", &[bearer]);
    told(&[(bearer, "wrong")], "identity-refused", &["GitHub Actions refused", "401"]);
    told(&[("ANTHROPIC_IDENTITY_TOKEN_FILE", "/nonexistent/token")], "identity-file", &["/nonexistent/token"]);
}

#[test]
fn malformed_identity_token_is_not_sent() {
    for (text, words) in
        [("", "it is empty"), ("not-a-token", "three base64url segments"), (&"x".repeat(20_000), "more than the 16384")]
    {
        let mut job = Job::new(settings());
        job.use_token_file(text);
        assert_told(&job.token(&[]), 125, "identity-malformed", &[words, "token"]);
        assert_eq!(job.counters().exchanges_received, 0, "nothing is spent on it");
    }
    for fault in [Fault::MalformedIdentityToken, Fault::OversizedIdentityToken] {
        let mut job = Job::new(Settings { identity_token_faults: vec![fault], ..settings() });
        assert_told(&job.token(&[]), 125, "identity-malformed", &["GitHub Actions"]);
        assert_eq!(job.counters().exchanges_received, 0);
    }
}

#[test]
fn pipe_as_a_token_file_is_refused_at_once() {
    let mut job = Job::new(settings());
    let fifo = job.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    job.set("ANTHROPIC_IDENTITY_TOKEN_FILE", fifo.to_str().unwrap());
    assert_told(&job.token(&[]), 125, "identity-file", &["not a regular file", "--identity-command"]);
}

#[test]
fn missing_interpreter_is_named() {
    let job = Job::new(settings());
    let script = job.path("script");
    std::fs::write(&script, "#!/no/such/interpreter\r\n").unwrap();
    rustix::fs::chmod(&script, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    let ended = job.run(&["exec", "--", script.to_str().unwrap()]);
    assert_told(&ended, 126, "command-not-runnable", &["interpreter"]);
}

#[test]
fn expired_identity_token_is_not_sent() {
    let mut job = Job::new(settings());
    let old = job.sandbox.issue_identity_token_with(|claims| {
        claims.insert("exp".to_owned(), 1_000_000.into());
    });
    job.use_token_file(&old);
    assert_told(&job.token(&[]), 125, "identity-expired", &["expired"]);
    assert_eq!(job.counters().exchanges_received, 0);
}

#[test]
fn unexpected_endpoint_responses_have_their_own_errors() {
    let redirect = Fault::Redirect { status: 307, location: "https://evil.example/".to_owned() };
    let oversized = Fault::Oversized { bytes: 2 << 20 };
    for (fault, times, name) in [
        (redirect, 1, "endpoint-redirects"),
        (Fault::NotJson, 1, "answer-unexpected"),
        (Fault::EmptyBody, 1, "answer-unexpected"),
        (Fault::WrongTypes, 1, "answer-unexpected"),
        (Fault::NoAccessToken, 1, "answer-unexpected"),
        (Fault::WrongTokenType, 1, "answer-unexpected"),
        (Fault::ExpiresIn(0.into()), 1, "answer-unexpected"),
        (Fault::ReflectAssertion, 1, "exchange-refused"),
        (oversized, 3, "answer-lost"),
        (Fault::DropAfterCommit, 3, "answer-lost"),
        (Fault::Status { status: 503, retry_after_s: Some(1), commit: false }, 3, "endpoint-busy"),
    ] {
        let mut job = Job::new(Settings { exchange_faults: vec![fault.clone(); 5], ..settings() });
        assert_told(&job.token(&[]), 125, name, &[]);
        assert_eq!(job.counters().exchanges_received, times, "{fault:?}");
        job.assert_nothing_sent_twice();
    }
}

#[test]
fn refused_exchange_names_where_to_find_the_reason() {
    let mut refusing = settings();
    refusing.rule.subject_prefix = "repo:somebody/else:*".to_owned();
    let mut job = Job::new(refusing);
    let words = ["HTTP 401", "Authentication failed", "request id req_", "Claude Console", "jti_reused"];
    assert_told(&job.token(&[]), 125, "exchange-refused", &words);
    let mut job = Job::new(settings());
    job.set("ANTHROPIC_FEDERATION_RULE_ID", "nonsense");
    assert_told(&job.token(&[]), 125, "exchange-refused", &["HTTP 400", "ANTHROPIC_FEDERATION_RULE_ID"]);
}

fn identity_endpoint_that_answers(status: u16, times: usize, retry_after_s: Option<u64>) -> Job {
    let fault = Fault::Status { status, retry_after_s, commit: false };
    Job::new(Settings { identity_token_faults: vec![fault; times], ..settings() })
}

#[test]
fn temporary_identity_endpoint_failure_is_retried() {
    for (status, times) in [(503, 3), (429, 3), (403, 1), (403, 2), (500, 4)] {
        let mut job = identity_endpoint_that_answers(status, times, None);
        let ended = job.token(&[]);
        assert_eq!(ended.code, 0, "HTTP {status} {times} times: {}", ended.stderr);
        job.assert_exchanges(1);
    }
    let begin = std::time::Instant::now();
    let mut job = identity_endpoint_that_answers(429, 1, Some(3));
    assert_eq!(job.token(&[]).code, 0);
    assert!(begin.elapsed() >= std::time::Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[test]
fn identity_endpoint_refusal_is_requested_once_and_cached() {
    let mut job = identity_endpoint_that_answers(401, 1, None);
    assert_told(&job.token(&[]), 125, "identity-refused", &["401", "six hours"]);
    assert_told(&job.token(&[]), 125, "identity-refused", &["is remembered"]);
    std::thread::sleep(std::time::Duration::from_millis(6100));
    assert_ne!(job.token(&[]).code, 0);
}

#[test]
fn identity_endpoint_outage_ends_after_a_time_limit() {
    let begin = std::time::Instant::now();
    let mut job = identity_endpoint_that_answers(503, 50, None);
    assert_told(&job.token(&[]), 125, "identity-refused", &["503", "try again in a while"]);
    let taken = begin.elapsed().as_secs();
    assert!((20..60).contains(&taken), "{taken} s");
    // A request forbidden at the start of a job has another hint than an expired request token.
    let mut job = identity_endpoint_that_answers(403, 50, None);
    let forbidden = job.token(&[]);
    assert_told(&forbidden, 125, "identity-refused", &["403", "`permissions`"]);
    assert!(!forbidden.stderr.contains("six hours"), "{}", forbidden.stderr);
}

#[test]
fn unreachable_endpoint_spends_no_token() {
    let mut job = Job::new(settings());
    // This port was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    job.set("ANTHROPIC_BASE_URL", &format!("http://127.0.0.1:{port}"));
    let ended = job.token(&[]);
    assert_told(&ended, 125, "endpoint-unreachable", &["was not sent", "127.0.0.1"]);
    // Nothing was sent, so the ledger has no entry and the token is not lost.
    assert!(!job.state().join("spent").exists());
}

#[test]
fn unusable_state_directory_is_refused_before_an_exchange() {
    let mut job = Job::new(settings());
    assert_told(&job.token(&["--state-dir", "/proc/wifshare"]), 125, "state-unusable", &["/proc/wifshare"]);

    let loose = job.path("loose");
    std::fs::create_dir(&loose).unwrap();
    rustix::fs::chmod(&loose, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    assert_told(&job.token(&["--state-dir", loose.to_str().unwrap()]), 125, "state-loose", &["0755", "chmod"]);

    let (target, link) = (job.path("target"), job.path("link"));
    std::fs::create_dir(&target).unwrap();
    symlink(&target, &link).unwrap();
    assert_told(&job.token(&["--state-dir", link.to_str().unwrap()]), 125, "state-in-the-way", &["symbolic link"]);
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0, "nothing was written through the link");

    // Root needs a chown to create another user's directory. Other users use an existing one.
    let foreign = if rustix::process::geteuid().is_root() {
        let path = job.path("foreign");
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        path
    } else {
        "/usr".into()
    };
    assert_told(&job.token(&["--state-dir", foreign.to_str().unwrap()]), 125, "state-foreign", &["belongs to user"]);
    assert_eq!(job.counters().exchanges_received, 0, "nothing is spent where nothing can be kept");
}

#[test]
fn state_of_a_newer_version_is_not_changed() {
    let mut job = Job::new(settings());
    assert_eq!(job.token(&[]).code, 0);
    let path = crate::job::files(&job.state()).into_iter().find(|path| path.ends_with("credential.json")).unwrap();
    let newer = r#"{"version": 7, "something": "else"}"#;
    std::fs::write(&path, newer).unwrap();
    assert_told(&job.token(&[]), 125, "state-newer", &["format 7"]);
    assert_told(&job.exec(&[], "true"), 125, "state-newer", &["format 7"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    job.assert_exchanges(1);
}

#[test]
fn symlinked_state_file_is_refused_and_its_target_kept() {
    let mut job = Job::new(settings());
    assert_eq!(job.token(&[]).code, 0);
    let path = crate::job::files(&job.state()).into_iter().find(|path| path.ends_with("credential.json")).unwrap();
    let victim = job.path("victim");
    std::fs::write(&victim, "precious").unwrap();
    for name in ["credential.json", "lock"] {
        let place = path.with_file_name(name);
        std::fs::remove_file(&place).unwrap();
        symlink(&victim, &place).unwrap();
        assert_told(&job.token(&[]), 125, "state-in-the-way", &["symbolic link", name]);
        std::fs::remove_file(&place).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn invalid_arguments_are_a_usage_error() {
    let job = Job::new(settings());
    for arguments in [
        &["token", "--min-life", "soon"][..],
        &["token", "--format", "xml"],
        &["token", "--identity-token-file", "a", "--identity-command", "b"],
        &["claude"],
        &["claude", "--plugin", "../evil", "--", "-p", "x"],
        &["claude", "--marketplace", "owner/repo", "--", "-p", "x"],
        &["sandbox", "--settings", "{\"no_such_setting\": 1}"],
        &["exec", "--keep-env", "A,B", "--", "true"],
        &["nonsense"],
    ] {
        let ended = job.run(arguments);
        assert_eq!(ended.code, 2, "{arguments:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{arguments:?}");
    }
    assert_eq!(job.counters().exchanges_received, 0);
}
