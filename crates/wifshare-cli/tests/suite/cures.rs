//! Every cure that an error prints is carried out, and then the command works: a table over the catalogue of errors.
//!
//! A command in backticks is run word for word. What is an instruction for a person ("set NAME") is done as it says. A
//! code without a row fails; one that no test can bring about or cure says why.

use std::collections::BTreeSet;
use std::net::TcpListener;

use wifshare_sandbox::{Fault, Knobs};

use crate::job::{Ended, Job, finish, knobs};

const RULE: &str = "ANTHROPIC_FEDERATION_RULE_ID";
const ORGANIZATION: &str = "ANTHROPIC_ORGANIZATION_ID";
const URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
const TOKEN: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";

/// One error and its cure.
struct Row {
    code: &'static str,
    case: Case,
}

enum Case {
    /// The cure is carried out here.
    Cured(Cured),
    /// The cure is an action in the Claude Console, or the error is brought about by what no test has.
    Elsewhere(&'static str),
}

struct Cured {
    arrange: fn(&mut Job),
    /// A shell script that fails with the error.
    script: &'static str,
    /// A part of the hint that is carried out.
    hint: &'static str,
    cure: Cure,
    /// A shell script that succeeds then.
    then: &'static str,
}

enum Cure {
    /// The job is changed as the hint says.
    Job(fn(&mut Job)),
    /// The commands in backticks that begin like this are run, with `true` for COMMAND.
    Backticks(&'static str),
    /// The second script follows the hint.
    Script,
}

fn cured(
    code: &'static str,
    arrange: fn(&mut Job),
    script: &'static str,
    hint: &'static str,
    cure: Cure,
    then: &'static str,
) -> Row {
    Row { code, case: Case::Cured(Cured { arrange, script, hint, cure, then }) }
}

fn elsewhere(code: &'static str, why: &'static str) -> Row {
    Row { code, case: Case::Elsewhere(why) }
}

/// For failures that are remembered for a while.
const AGAIN: &str = "for i in $(seq 45); do wifshare token && exit 0; sleep 1; done; exit 1";

fn another_directory(job: &mut Job) {
    let other = job.path("other");
    job.set("WIFSHARE_STATE_DIR", other.to_str().unwrap());
}

fn well_again(job: &mut Job) {
    job.sandbox.set_knobs(knobs());
}

fn ids_again(job: &mut Job) {
    let rule = job.sandbox.knobs().rule;
    job.set(RULE, &rule.id);
    job.set(ORGANIZATION, &rule.organization_id);
}

fn source_again(job: &mut Job) {
    let (url, token) = (job.sandbox.identity_token_request_url(), job.sandbox.identity_token_request_token());
    job.set(URL, &url);
    job.set(TOKEN, &token);
}

fn base_url_again(job: &mut Job) {
    let variables = job.sandbox.environment();
    let (name, value) = variables.iter().find(|(name, _)| name == "ANTHROPIC_BASE_URL").unwrap();
    job.set(name, value);
}

/// The API by another name, for which no failure is remembered.
fn the_api_itself(job: &mut Job) {
    well_again(job);
    let url = job.variable("ANTHROPIC_BASE_URL").unwrap().replace("127.0.0.1", "localhost");
    job.set("ANTHROPIC_BASE_URL", &url);
}

fn fail_the_exchange(job: &Job, fault: &Fault) {
    job.sandbox.set_knobs(Knobs { exchange_faults: vec![fault.clone(); 6], ..knobs() });
}

fn token_file(job: &mut Job, text: &str) {
    job.use_token_file(text);
}

fn fresh_token_file(job: &mut Job) {
    let token = job.sandbox.issue_identity_token();
    token_file(job, &token);
}

fn expired_token_file(job: &mut Job) {
    let token = job.sandbox.issue_identity_token_with(|claims| {
        for name in ["iat", "nbf", "exp"] {
            if let Some(moment) = claims.get(name).and_then(serde_json::Value::as_u64) {
                claims.insert(name.to_owned(), (moment - 3600).into());
            }
        }
    });
    token_file(job, &token);
}

fn taken_port(job: &mut Job) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    job.set("PORT", &listener.local_addr().unwrap().port().to_string());
    // As long as this process lives.
    Box::leak(Box::new(listener));
}

fn script_file(job: &Job, text: &str) {
    std::fs::write(job.path("script"), text).unwrap();
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn rows() -> Vec<Row> {
    let nothing: fn(&mut Job) = |_| {};
    vec![
        cured(
            "usage",
            nothing,
            "wifshare exec --delivery file -- true",
            "possible values: profile, federation",
            Cure::Script,
            "wifshare exec --delivery profile -- true",
        ),
        cured(
            "usage",
            nothing,
            "wifshare start --max-life 60",
            "--help",
            Cure::Script,
            "wifshare start --help && wifshare start --max-life 60m",
        ),
        cured(
            "unconfigured",
            |job| {
                job.unset(RULE);
                job.unset(ORGANIZATION);
            },
            "wifshare token",
            "set both",
            Cure::Job(ids_again),
            "wifshare token",
        ),
        cured(
            "unconfigured",
            |job| {
                job.unset(RULE);
                job.unset(ORGANIZATION);
            },
            "wifshare exec -- true",
            "--optional",
            Cure::Script,
            "wifshare exec --optional -- true",
        ),
        cured(
            "configured-in-part",
            |job| job.set(ORGANIZATION, " "),
            "wifshare token",
            "set ANTHROPIC_ORGANIZATION_ID",
            Cure::Job(ids_again),
            "wifshare token",
        ),
        cured(
            "no-identity-source",
            |job| {
                job.without_endpoint();
                job.set("GITHUB_ACTIONS", "true");
            },
            "wifshare token 2>said || { r=$?; cat said >&2; exit $r; }",
            "`id-token: write`",
            Cure::Job(|job| {
                source_again(job);
                job.unset("GITHUB_ACTIONS");
            }),
            "wifshare token",
        ),
        cured(
            "broken-identity-source",
            |job| job.unset(TOKEN),
            "wifshare token",
            "both",
            Cure::Job(source_again),
            "wifshare token",
        ),
        cured(
            "base-url",
            |job| {
                let url = job.variable("ANTHROPIC_BASE_URL").unwrap().replace("http://", "");
                job.set("ANTHROPIC_BASE_URL", &url);
            },
            "wifshare token",
            "http:// on loopback",
            Cure::Job(base_url_again),
            "wifshare token",
        ),
        cured(
            "implausible-value",
            |job| {
                let rule = format!("\"{}\"", job.sandbox.knobs().rule.id);
                job.set(RULE, &rule);
            },
            "wifshare token",
            "remove the quotes",
            Cure::Job(ids_again),
            "wifshare token",
        ),
        cured(
            "identity-unreachable",
            |job| job.set(URL, "http://127.0.0.1:9/idtoken?api-version=2.0"),
            "wifshare token",
            "",
            Cure::Job(source_again),
            "wifshare token",
        ),
        cured(
            "identity-refused",
            |job| {
                job.sandbox.set_knobs(Knobs {
                    identity_token_faults: vec![Fault::Status { status: 403, retry_after_s: None, commit: false }; 60],
                    ..knobs()
                });
            },
            "wifshare token",
            "again",
            Cure::Job(well_again),
            AGAIN,
        ),
        cured(
            "identity-unexpected",
            |job| job.sandbox.set_knobs(Knobs { identity_token_faults: vec![Fault::NotJson; 60], ..knobs() }),
            "wifshare token",
            "",
            Cure::Job(well_again),
            AGAIN,
        ),
        cured(
            "identity-file",
            |job| {
                token_file(job, "");
                std::fs::remove_file(job.path("token")).unwrap();
            },
            "wifshare token",
            "a regular file that this user can read",
            Cure::Job(fresh_token_file),
            "wifshare token",
        ),
        cured(
            "identity-command",
            fresh_token_file,
            "unset ANTHROPIC_IDENTITY_TOKEN_FILE; wifshare token --identity-command false",
            "has to print one identity token and exit with 0",
            Cure::Script,
            "unset ANTHROPIC_IDENTITY_TOKEN_FILE; wifshare token --identity-command 'cat token'",
        ),
        cured(
            "identity-malformed",
            |job| token_file(job, "password = hunter2\n"),
            "wifshare token",
            "one OIDC identity token and nothing else",
            Cure::Job(fresh_token_file),
            "wifshare token",
        ),
        cured(
            "identity-spent",
            |job| {
                let token = job.sandbox.issue_identity_token();
                job.without_endpoint();
                job.set("ANTHROPIC_IDENTITY_TOKEN", &token);
            },
            "wifshare token >/dev/null; wifshare token --workspace-id default",
            "wrap all its steps in one `wifshare exec`, or run the job again for a new token",
            Cure::Job(|job| {
                let token = job.sandbox.issue_identity_token();
                job.set("ANTHROPIC_IDENTITY_TOKEN", &token);
                another_directory(job);
            }),
            "wifshare exec -- sh -c 'wifshare token >/dev/null && wifshare token'",
        ),
        cured(
            "identity-expired",
            expired_token_file,
            "wifshare token",
            "take the identity token right before it is used",
            Cure::Job(fresh_token_file),
            "wifshare token",
        ),
        cured(
            "subject-unexpected",
            nothing,
            "wifshare exec --expect-subject 'repo:octo-org/octo-repo:ref:refs/heads/release-*' -- true",
            "correct --expect-subject; in it, * stands for any text",
            Cure::Script,
            "wifshare exec --expect-subject 'repo:octo-org/octo-repo:*' -- true",
        ),
        cured(
            "endpoint-unreachable",
            |job| job.set("ANTHROPIC_BASE_URL", "http://127.0.0.1:9"),
            "wifshare token",
            "ANTHROPIC_BASE_URL",
            Cure::Job(base_url_again),
            "wifshare token",
        ),
        elsewhere("certificate-refused", "the mock server speaks no TLS; tests/lines.rs has a server that does"),
        cured(
            "answer-lost",
            |job| fail_the_exchange(job, &Fault::DropAfterCommit),
            "wifshare token",
            "run the command again",
            Cure::Job(well_again),
            AGAIN,
        ),
        cured(
            "exchange-refused",
            |job| {
                let mut knobs = knobs();
                knobs.rule.workspace_id_required = true;
                job.sandbox.set_knobs(knobs);
            },
            "wifshare token",
            "likely: ANTHROPIC_WORKSPACE_ID is not set",
            Cure::Job(|job| job.set("ANTHROPIC_WORKSPACE_ID", "default")),
            "wifshare token",
        ),
        elsewhere("exchange-refused", "correct the rule, the service account or the issuer: in the Claude Console"),
        cured(
            "endpoint-busy",
            |job| fail_the_exchange(job, &Fault::Status { status: 529, retry_after_s: None, commit: false }),
            "wifshare token",
            "try again in a while",
            Cure::Job(well_again),
            AGAIN,
        ),
        cured(
            "endpoint-redirects",
            |job| {
                fail_the_exchange(job, &Fault::Redirect { status: 307, location: "https://evil.example/".to_owned() });
            },
            "wifshare token",
            "ANTHROPIC_BASE_URL has to name the API itself",
            Cure::Job(the_api_itself),
            "wifshare token",
        ),
        cured(
            "answer-unexpected",
            |job| fail_the_exchange(job, &Fault::NotJson),
            "wifshare token",
            "ANTHROPIC_BASE_URL",
            Cure::Job(the_api_itself),
            "wifshare token",
        ),
        cured(
            "credential-short-lived",
            nothing,
            "wifshare token --min-life 100h",
            "ask for less with --min-life",
            Cure::Script,
            "wifshare token --min-life 1m",
        ),
        elsewhere("credential-short-lived", "raise the rule's token lifetime: in the Claude Console"),
        cured(
            "run-not-renewed",
            nothing,
            "wifshare exec -- wifshare token --min-life 100h",
            "ask for less with --min-life",
            Cure::Script,
            "wifshare exec -- wifshare token --min-life 1m",
        ),
        cured(
            "delivery-refused",
            |job| job.set("ANTHROPIC_API_KEY", "sk-ant-api03-x"),
            "wifshare exec --delivery gateway -- true",
            "unset ANTHROPIC_API_KEY",
            Cure::Job(|job| job.unset("ANTHROPIC_API_KEY")),
            "wifshare exec --delivery gateway -- true",
        ),
        cured(
            "delivery-refused",
            nothing,
            "wifshare exec -- wifshare start --delivery gateway",
            "wrap each of them",
            Cure::Backticks("wifshare exec --delivery gateway"),
            "true",
        ),
        cured(
            "keeper",
            |job| job.sandbox.set_knobs(Knobs { identity_token_latency_ms: 3000, ..knobs() }),
            r#"wifshare start > /dev/null & pid=$!; sleep 1; kill -KILL $(cat /proc/$pid/task/*/children); wait $pid"#,
            "run `wifshare stop`",
            Cure::Backticks("wifshare"),
            "wifshare start",
        ),
        cured(
            "path-not-text",
            nothing,
            r#"mkdir "$(printf '\377')"; RUNNER_TEMP=$PWD/$(printf '\377') wifshare start"#,
            "--state-dir or WIFSHARE_STATE_DIR",
            Cure::Job(another_directory),
            r#"RUNNER_TEMP=$PWD/$(printf '\377') wifshare start"#,
        ),
        cured(
            "run-over",
            nothing,
            r#"eval "$(wifshare start --format env)"; wifshare stop --all; wifshare token"#,
            "run `wifshare start` in a new shell",
            Cure::Backticks("wifshare start"),
            "wifshare stop",
        ),
        cured(
            "handover",
            |job| job.set("GITHUB_ENV", "/nonexistent/file"),
            "wifshare start",
            "give --format env, json or dotenv",
            Cure::Script,
            "wifshare start --format env && wifshare start --format json && wifshare start --format dotenv",
        ),
        cured(
            "state-unusable",
            nothing,
            "wifshare token --state-dir /proc/wifshare",
            "--state-dir or WIFSHARE_STATE_DIR",
            Cure::Job(another_directory),
            "wifshare token && wifshare token --state-dir third",
        ),
        cured(
            "state-in-the-way",
            |job| {
                std::os::unix::fs::symlink("elsewhere", job.path("state")).unwrap();
                std::fs::create_dir(job.path("elsewhere")).unwrap();
            },
            "wifshare token --state-dir state",
            "remove ",
            Cure::Job(|job| std::fs::remove_file(job.path("state")).unwrap()),
            "wifshare token --state-dir state",
        ),
        cured(
            "state-damaged",
            nothing,
            "wifshare token > /dev/null; printf 'damage\\n{}\\n' >> wifshare/spent; wifshare stop; wifshare token",
            "once those of before have expired",
            Cure::Backticks("rm "),
            "wifshare token",
        ),
        cured(
            "state-foreign",
            |job| {
                std::fs::create_dir(job.path("state")).unwrap();
                std::os::unix::fs::chown(job.path("state"), Some(65534), None).unwrap();
            },
            "wifshare token --state-dir state",
            "--state-dir or WIFSHARE_STATE_DIR",
            Cure::Job(another_directory),
            "wifshare token",
        ),
        cured(
            "state-loose",
            |job| {
                std::fs::create_dir(job.path("state")).unwrap();
                rustix::fs::chmod(job.path("state"), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
            },
            "wifshare token --state-dir state",
            "chmod go-rwx",
            Cure::Backticks("chmod"),
            "wifshare token --state-dir state",
        ),
        cured(
            "state-newer",
            nothing,
            r#"wifshare token > /dev/null; sed -i 's/"version": *[0-9]*/"version": 99/' wifshare/*/credential.json; wifshare token"#,
            "--state-dir or WIFSHARE_STATE_DIR",
            Cure::Job(another_directory),
            "wifshare token",
        ),
        elsewhere(
            "locks-unreliable",
            "a network file system; scenarios/the-state-directory-is-on-nfs has strace play one",
        ),
        elsewhere("lock-held", "a holder that hangs for three minutes; the store's own tests move the clock"),
        cured(
            "gateway-not-opened",
            taken_port,
            "wifshare gateway --listen 127.0.0.1:$PORT",
            "choose another address with --listen",
            Cure::Script,
            "wifshare gateway --listen 127.0.0.1:0 > printed & pid=$!; until [ -s printed ]; do sleep 0.1; done; kill $pid; wait $pid",
        ),
        cured(
            "interrupted",
            |job| fail_the_exchange(job, &Fault::Status { status: 503, retry_after_s: Some(10), commit: false }),
            "wifshare exec -- true & pid=$!; sleep 1; kill -TERM $pid; wait $pid",
            "",
            Cure::Job(well_again),
            "wifshare exec -- true",
        ),
        cured("command-not-found", nothing, "wifshare exec -- ture", "spelling", Cure::Script, "wifshare exec -- true"),
        cured(
            "command-not-runnable",
            |job| script_file(job, "#!/bin/sh\ntrue\n"),
            "wifshare exec -- ./script",
            "mode",
            Cure::Script,
            "chmod +x script; wifshare exec -- ./script",
        ),
        elsewhere("child-lost", "something else in this process has to wait for the command"),
        cured("stdout", nothing, "wifshare token > /dev/full", "", Cure::Script, "wifshare token > /dev/null"),
        elsewhere("internal", "a bug of wifshare's own"),
        cured(
            "nothing-to-report",
            nothing,
            "wifshare report --state-dir empty",
            "",
            Cure::Script,
            "wifshare exec -- true && wifshare report --all",
        ),
        cured(
            "sandbox",
            taken_port,
            "wifshare sandbox --listen 127.0.0.1:$PORT",
            "",
            Cure::Script,
            "wifshare sandbox --listen 127.0.0.1:0 > printed & pid=$!; until [ -s printed ]; do sleep 0.1; done; kill $pid",
        ),
        cured(
            "conformance",
            nothing,
            "TMPDIR=/nonexistent wifshare sandbox --conformance -- true",
            "",
            Cure::Script,
            "wifshare sandbox --conformance --case twice -- true; [ $? != 125 ]",
        ),
        cured(
            "demo",
            nothing,
            "TMPDIR=/nonexistent wifshare demo --processes 2",
            "",
            Cure::Script,
            "wifshare demo --processes 2",
        ),
    ]
}

fn sh(job: &Job, script: &str) -> Ended {
    finish(job.command("sh", &["-c", script]).spawn().unwrap())
}

/// What stands in backticks in this text and begins like this.
fn in_backticks<'a>(text: &'a str, beginning: &str) -> Vec<&'a str> {
    text.split('`').skip(1).step_by(2).filter(|words| words.starts_with(beginning)).collect()
}

fn carry_out(row: &Row, case: &Cured) {
    let code = row.code;
    if code == "state-foreign" && !rustix::process::geteuid().is_root() {
        return;
    }
    let mut job = Job::new(knobs());
    job.may_keep_credential();
    let bin = job.path("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(crate::job::WIFSHARE, bin.join("wifshare")).unwrap();
    job.set("PATH", &format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display()));
    (case.arrange)(&mut job);
    let failed = sh(&job, case.script);
    assert!(
        failed.code != 0 && failed.stderr.contains(&format!("error[{code}]")),
        "{code}: {} {}",
        failed.code,
        failed.stderr
    );
    let said = failed.stderr.split(&format!("error[{code}]")).last().unwrap().to_owned();
    assert!(said.contains(case.hint), "{code}: the hint has no `{}`: {said}", case.hint);
    match &case.cure {
        Cure::Job(change) => change(&mut job),
        Cure::Script => {}
        Cure::Backticks(beginning) => {
            let hint = said.split("hint:").nth(1).unwrap();
            let commands = in_backticks(hint, beginning);
            assert!(!commands.is_empty(), "{code}: {hint}");
            for command in commands {
                let done = sh(&job, &command.replace("COMMAND", "true"));
                assert_eq!(done.code, 0, "{code}: the cure `{command}` fails: {}", done.stderr);
            }
        }
    }
    let well = sh(&job, case.then);
    assert_eq!(well.code, 0, "{code}: after the cure: {} {}", well.stdout, well.stderr);
    finish(job.wifshare(&["stop", "--all"]).spawn().unwrap());
    // What stands in the way of a secret's search: the tokens of the job's own files.
    for left in job.files_with_secrets() {
        std::fs::remove_file(left).unwrap();
    }
}

#[test]
fn every_cure_that_an_error_prints_works() {
    let rows = rows();
    let only = std::env::var("WIFSHARE_CURE").ok();
    let next = std::sync::Mutex::new(rows.iter());
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(row) = next.lock().unwrap().next() else { return };
                    let Case::Cured(case) = &row.case else { continue };
                    if only.as_ref().is_some_and(|only| only != row.code) {
                        continue;
                    }
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| carry_out(row, case)));
                    if done.is_err() {
                        failures.lock().unwrap().push(row.code);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "no cure for {failures:?}; WIFSHARE_CURE=CODE tries one alone");
}

#[test]
fn every_code_has_a_row_with_its_cure() {
    let listed = Job::new(knobs()).run(&["explain"]).stdout;
    let codes: BTreeSet<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    let rows = rows();
    let with_rows: BTreeSet<&str> = rows.iter().map(|row| row.code).collect();
    assert_eq!(codes, with_rows, "a code and no row, or a row and no code");
    let says_why = |row: &&Row| matches!(row.case, Case::Elsewhere(why) if why.is_empty());
    assert_eq!(rows.iter().filter(says_why).count(), 0);
}

#[test]
fn every_command_that_explain_names_is_one() {
    let job = Job::new(knobs());
    let page = job.run(&["explain", "--markdown"]).stdout;
    let commands: BTreeSet<&str> = in_backticks(&page, "wifshare ").into_iter().collect();
    assert!(commands.len() > 8, "{commands:?}");
    std::fs::write(job.path("rule.json"), serde_json::to_vec(&job.sandbox.knobs().rule).unwrap()).unwrap();
    for command in commands {
        let words =
            command.replace("COMMAND --help", "exec --help").replace("COMMAND", "true").replace("CODE", "usage");
        // A command that is named alone is no call.
        let words = if words.split(' ').count() == 2 { format!("{words} --help") } else { words };
        let script = words.replacen("wifshare", "timeout 60 \"$WIFSHARE\"", 1);
        let ended = sh(&job, &script);
        assert!(!ended.stderr.contains("error[usage]"), "`{command}`: {}", ended.stderr);
    }
    finish(job.wifshare(&["stop", "--all"]).spawn().unwrap());
    for left in job.files_with_secrets() {
        std::fs::remove_file(left).unwrap();
    }
}
