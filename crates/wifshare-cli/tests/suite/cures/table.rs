//! The rows: the error, how to cause it, its hint, and what works afterwards.

use std::net::TcpListener;

use wifshare_sandbox::{Fault, Settings};

use super::{Case, Cure, Cured, Row};
use crate::job::{Job, settings};

const RULE: &str = "ANTHROPIC_FEDERATION_RULE_ID";
const ORGANIZATION: &str = "ANTHROPIC_ORGANIZATION_ID";
const URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
const TOKEN: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";

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

/// For failures that are cached for a while.
const AGAIN: &str = "for i in $(seq 45); do wifshare token && exit 0; sleep 1; done; exit 1";

fn another_directory(job: &mut Job) {
    let other = job.path("other");
    job.set("WIFSHARE_STATE_DIR", other.to_str().unwrap());
}

fn well_again(job: &mut Job) {
    job.sandbox.set_settings(settings());
}

fn ids_again(job: &mut Job) {
    let rule = job.sandbox.settings().rule;
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

/// Changes the name of the API. No failure is cached for the new name.
fn the_api_itself(job: &mut Job) {
    well_again(job);
    let url = job.variable("ANTHROPIC_BASE_URL").unwrap().replace("127.0.0.1", "localhost");
    job.set("ANTHROPIC_BASE_URL", &url);
}

fn fail_the_exchange(job: &Job, fault: &Fault) {
    job.sandbox.set_settings(Settings { exchange_faults: vec![fault.clone(); 6], ..settings() });
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
    // Keeps the listener open until this process ends.
    Box::leak(Box::new(listener));
}

fn script_file(job: &Job, text: &str) {
    std::fs::write(job.path("script"), text).unwrap();
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn rows() -> Vec<Row> {
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
                let rule = format!("\"{}\"", job.sandbox.settings().rule.id);
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
                job.sandbox.set_settings(Settings {
                    identity_token_faults: vec![Fault::Status { status: 403, retry_after_s: None, commit: false }; 60],
                    ..settings()
                });
            },
            "wifshare token",
            "again",
            Cure::Job(well_again),
            AGAIN,
        ),
        cured(
            "identity-unexpected",
            |job| job.sandbox.set_settings(Settings { identity_token_faults: vec![Fault::NotJson; 60], ..settings() }),
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
                let mut settings = settings();
                settings.rule.workspace_id_required = true;
                job.sandbox.set_settings(settings);
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
            "memory-not-hidden",
            nothing,
            "strace -qq -o /dev/null -e trace=prctl -e inject=prctl:error=EPERM wifshare exec --delivery gateway -- true",
            "use another --delivery",
            Cure::Script,
            "wifshare exec --delivery profile -- true",
        ),
        cured(
            "keeper",
            |job| job.sandbox.set_settings(Settings { identity_token_latency_ms: 3000, ..settings() }),
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
            r#"run `eval "$(wifshare stop --format env)"` to get them back"#,
            Cure::Script,
            r#"eval "$(wifshare start --format env)"; wifshare stop --all; eval "$(wifshare stop --format env)"; wifshare token"#,
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
            "wifshare token > /dev/null; printf 'damage\\n{}\\n' | tee -a wifshare-*/spent > /dev/null; wifshare stop; wifshare token",
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
            r#"wifshare token > /dev/null; sed -i 's/"version": *[0-9]*/"version": 99/' wifshare-*/*/credential.json; wifshare token"#,
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
        elsewhere(
            "identity-changed",
            "end the run and start another one; identities.rs carries a run to another subject",
        ),
        elsewhere("no-thread", "needs a plain user with a limit of processes; gateway_clients.rs has one"),
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

fn rule_file(job: &Job, rule: &str) {
    std::fs::write(job.path("rule.json"), rule).unwrap();
}

/// The findings of `doctor` that are not errors above. A fix that changes the rule is applied to the file that
/// represents it. In the Claude Console the same change is made by hand.
pub(super) fn findings() -> Vec<Row> {
    const DOCTOR: &str = "wifshare doctor";
    const WITH_RULE: &str = "wifshare doctor --rule rule.json";
    let nothing: fn(&mut Job) = |_| {};
    vec![
        cured(
            "a keeper that was killed",
            nothing,
            r#"wifshare start --format env > env; . ./env; kill -KILL $(sed -n 's/.*"pid":\([0-9]*\).*/\1/p' "$WIFSHARE_RUN/keeper.json"); sleep 1
               export ACTIONS_ID_TOKEN_REQUEST_URL=$URL ACTIONS_ID_TOKEN_REQUEST_TOKEN=$BEARER; wifshare doctor"#,
            "run `wifshare start` before this step",
            Cure::Backticks("wifshare start"),
            r#". ./env; export ACTIONS_ID_TOKEN_REQUEST_URL=$URL ACTIONS_ID_TOKEN_REQUEST_TOKEN=$BEARER
               eval "$(wifshare start --format env)"; wifshare doctor"#,
        ),
        cured(
            "a rule for several workspaces",
            |job| rule_file(job, r#"{"match": {"subject_prefix": "repo:*"}, "applies_to_all_workspaces": true}"#),
            WITH_RULE,
            "set ANTHROPIC_WORKSPACE_ID to wrkspc_… or `default`",
            Cure::Job(|job| job.set("ANTHROPIC_WORKSPACE_ID", "default")),
            WITH_RULE,
        ),
        cured(
            "a prefix without a star",
            |job| rule_file(job, r#"{"match": {"subject_prefix": "repo:octo-org/octo-repo:"}}"#),
            WITH_RULE,
            "without `*` at its end a subject_prefix has to be the whole subject",
            Cure::Job(|job| rule_file(job, r#"{"match": {"subject_prefix": "repo:octo-org/octo-repo:*"}}"#)),
            WITH_RULE,
        ),
        cured(
            "another audience",
            |job| rule_file(job, r#"{"match": {"subject_prefix": "repo:*", "audience": "https://elsewhere.example"}}"#),
            WITH_RULE,
            "set ANTHROPIC_OIDC_AUDIENCE to it",
            Cure::Job(|job| job.set("ANTHROPIC_OIDC_AUDIENCE", "https://elsewhere.example")),
            WITH_RULE,
        ),
        cured(
            "another claim",
            |job| rule_file(job, r#"{"match": {"claims": {"ref": "refs/heads/release"}}}"#),
            WITH_RULE,
            "correct the rule's `claims`",
            Cure::Job(|job| rule_file(job, r#"{"match": {"claims": {"ref": "refs/heads/main"}}}"#)),
            WITH_RULE,
        ),
        cured(
            "another subject",
            |job| rule_file(job, r#"{"match": {"subject_prefix": "repo:octo-org/another-repo:*"}}"#),
            WITH_RULE,
            "correct the rule's subject_prefix",
            Cure::Job(|job| rule_file(job, r#"{"match": {"subject_prefix": "repo:octo-org/octo-repo:*"}}"#)),
            WITH_RULE,
        ),
        cured(
            "an expired token",
            expired_token_file,
            DOCTOR,
            "take it right before it is used",
            Cure::Job(fresh_token_file),
            DOCTOR,
        ),
        cured(
            "a spent token",
            fresh_token_file,
            "wifshare token > /dev/null; wifshare doctor --workspace-id default",
            "or run the job again for a new token",
            Cure::Job(fresh_token_file),
            "wifshare doctor --workspace-id default",
        ),
        cured(
            "an unexpected subject",
            nothing,
            "wifshare doctor --expect-subject 'repo:octo-org/octo-repo:environment:*'",
            "correct --expect-subject",
            Cure::Script,
            "wifshare doctor --expect-subject 'repo:octo-org/octo-repo:ref:*'",
        ),
        cured(
            "loose modes",
            |job| {
                std::fs::create_dir(job.state()).unwrap();
                rustix::fs::chmod(job.state(), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
            },
            DOCTOR,
            "chmod go-rwx",
            Cure::Backticks("chmod"),
            DOCTOR,
        ),
        cured(
            "a file in the way of the state directory",
            |job| {
                std::fs::write(job.path("afile"), "x").unwrap();
                let inside = job.path("afile/state");
                job.set("WIFSHARE_STATE_DIR", inside.to_str().unwrap());
            },
            DOCTOR,
            "--state-dir or WIFSHARE_STATE_DIR",
            Cure::Job(another_directory),
            DOCTOR,
        ),
    ]
}
