//! A run inside a run: a command that requests a stricter delivery gets that delivery or an error.

use std::process::Command;

use wifshare_sandbox::Settings;

use crate::job::{Ended, Job, finish, living, settings};
use crate::runner::Runner;

/// Fails if this process finds a credential, or the means to get one, in its environment.
const FINDS_ONLY_A_CAPABILITY: &str = r#"
    case $ANTHROPIC_AUTH_TOKEN in wifshare-capability-*) ;; *) echo "no capability: $ANTHROPIC_AUTH_TOKEN"; exit 21 ;; esac
    case $ANTHROPIC_BASE_URL in http://127.0.0.1:*) ;; *) echo "no gateway: $ANTHROPIC_BASE_URL"; exit 22 ;; esac
    [ "$("$WIFSHARE" token)" = "$ANTHROPIC_AUTH_TOKEN" ] || exit 23
    left=$(env | grep -E '^(ANTHROPIC_(CONFIG_DIR|PROFILE|IDENTITY_TOKEN|IDENTITY_TOKEN_FILE|FEDERATION_RULE_ID|API_KEY)|ACTIONS_ID_TOKEN_.*)=.')
    [ -z "$left" ] || { echo "$left"; exit 24; }
    [ ! -e "$WIFSHARE_RUN/profile" ] && [ ! -e "$WIFSHARE_RUN/identity" ] || exit 25"#;

/// The deliveries, from the strictest to the weakest.
const DELIVERIES: [&str; 4] = ["gateway", "environment", "profile", "federation"];

/// Sends one request as the environment configures it.
const ASK: &str = r#""$WIFSHARE" demo --child shared"#;

/// Returns a script that sends one request through the gateway in the environment.
pub(crate) fn ask_the_gateway(job: &Job) -> String {
    assert!(job.sandbox.settings().exchange_latency_ms < 1000);
    r#"python3 - <<'END'
import json, os, urllib.request
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", method="POST",
    data=json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}).encode(),
    headers={"authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"], "content-type": "application/json",
             "anthropic-version": "2023-06-01"})
assert urllib.request.urlopen(request, timeout=30).status == 200
END"#
        .to_owned()
}

fn inner(outer: &str, options: &str, script: &str) -> (Job, Ended) {
    let job = Job::new(settings());
    std::fs::write(job.path("inner.sh"), script).unwrap();
    let ended = job.exec(&["--delivery", outer], &format!(r#""$WIFSHARE" exec {options} -- sh inner.sh"#));
    (job, ended)
}

#[test]
fn gateway_inside_any_run_hides_the_credential() {
    for outer in DELIVERIES {
        let (job, ended) = inner(outer, "--delivery gateway", FINDS_ONLY_A_CAPABILITY);
        assert_eq!(ended.code, 0, "{outer}: {} {}", ended.stdout, ended.stderr);
        // An outer gateway exchanges while the command runs, and not at all if the command ends at once.
        assert!(outer == "gateway" || job.counters().exchanges_accepted == 1, "{:#?}", job.counters());
    }
}

#[test]
fn gateway_inside_a_run_serves_the_shared_credential() {
    for outer in ["profile", "environment", "federation"] {
        let job = Job::new(settings());
        std::fs::write(job.path("inner.sh"), ask_the_gateway(&job)).unwrap();
        let ended = job.exec(&["--delivery", outer], r#""$WIFSHARE" exec --delivery gateway -- sh inner.sh"#);
        assert_eq!(ended.code, 0, "{outer}: {} {}", ended.stdout, ended.stderr);
        job.assert_exchanges(1);
        assert_eq!(job.counters().messages_refused, 0);
    }
}

#[test]
fn status_lists_a_run_inside_a_run() {
    let (_job, ended) = inner("profile", "--delivery gateway", r#""$WIFSHARE" status"#);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("exec, gateway") && ended.stdout.contains("exec, profile"), "{}", ended.stdout);
}

#[test]
fn gateway_inside_a_run_follows_its_renewals() {
    let job = Job::new(living(3));
    let ask = ask_the_gateway(&job);
    std::fs::write(
        job.path("inner.sh"),
        format!("for i in $(seq 16); do\n{ask}\n[ $? = 0 ] || exit 9\nsleep 0.4; done"),
    )
    .unwrap();
    let ended = job.exec(&[], r#""$WIFSHARE" exec --delivery gateway -- sh inner.sh"#);
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
    let counters = job.counters();
    assert_eq!(counters.messages_refused, 0, "{counters:#?}");
    assert!(counters.exchanges_accepted >= 3, "{counters:#?}");
    job.assert_nothing_sent_twice();
}

#[test]
fn stricter_inner_delivery_replaces_the_outer_one() {
    for (outer, inner_delivery, script) in [
        (
            "profile",
            "environment",
            r#"[ -n "$ANTHROPIC_AUTH_TOKEN" ] && [ -z "$ANTHROPIC_CONFIG_DIR$ANTHROPIC_PROFILE" ]"#,
        ),
        (
            "federation",
            "environment",
            r#"[ -n "$ANTHROPIC_AUTH_TOKEN" ] && [ -z "$ANTHROPIC_CONFIG_DIR$ANTHROPIC_IDENTITY_TOKEN_FILE$ANTHROPIC_FEDERATION_RULE_ID" ]"#,
        ),
        (
            "federation",
            "profile",
            r#"[ "$ANTHROPIC_PROFILE" = wifshare ] && [ -z "$ANTHROPIC_IDENTITY_TOKEN_FILE$ANTHROPIC_FEDERATION_RULE_ID" ] && "$WIFSHARE" demo --child shared"#,
        ),
    ] {
        let (job, ended) = inner(outer, &format!("--delivery {inner_delivery}"), script);
        assert_eq!(ended.code, 0, "{inner_delivery} in {outer}: {} {}", ended.stdout, ended.stderr);
        assert_eq!(ended.stderr.matches("left aside").count(), 0, "{}", ended.stderr);
        job.assert_exchanges(1);
    }
}

#[test]
fn weaker_inner_delivery_keeps_the_outer_one() {
    for inner_delivery in ["environment", "profile", "federation"] {
        let (_job, ended) = inner("gateway", &format!("--delivery {inner_delivery}"), FINDS_ONLY_A_CAPABILITY);
        assert_eq!(ended.code, 0, "{inner_delivery}: {} {}", ended.stdout, ended.stderr);
        assert!(ended.stderr.contains("gateway"), "it says so: {}", ended.stderr);
    }
}

#[test]
fn step_requesting_a_gateway_inside_a_keeper_sees_no_credential() {
    for delivery in ["profile", "environment", "federation"] {
        let mut runner = Runner::new(Job::new(settings()));
        let started = runner.step(runner.job.wifshare(&["start", "--delivery", delivery]));
        assert_eq!(started.code, 0, "{}", started.stderr);
        std::fs::write(runner.job.path("inner.sh"), FINDS_ONLY_A_CAPABILITY).unwrap();
        for command in [
            runner.job.wifshare(&["exec", "--delivery", "gateway", "--", "sh", "inner.sh"]),
            runner.job.wifshare(&["claude", "--claude", "sh", "--delivery", "gateway", "--", "inner.sh"]),
        ] {
            let ended = runner.step(command);
            assert_eq!(ended.code, 0, "{delivery}: {} {}", ended.stdout, ended.stderr);
        }
        // The outer run continues, so the credential stays.
        let ended = runner.step(runner.job.wifshare(&["token"]));
        assert_eq!(ended.code, 0, "{delivery}: {}", ended.stderr);
        assert_eq!(runner.step(runner.job.wifshare(&["stop"])).code, 0);
        runner.job.assert_exchanges(1);
        assert!(runner.job.files_with_secrets().is_empty(), "{:?}", runner.job.files_with_secrets());
    }
}

#[test]
fn start_requesting_a_gateway_inside_a_keeper_replaces_it() {
    let mut runner = Runner::new(Job::new(settings()));
    assert_eq!(runner.step(runner.job.wifshare(&["start"])).code, 0);
    let again = runner.step(runner.job.wifshare(&["start", "--delivery", "gateway"]));
    assert_eq!(again.code, 0, "{}", again.stderr);
    let script = format!("{FINDS_ONLY_A_CAPABILITY}\n{}", ask_the_gateway(&runner.job));
    // The runner sets these for each step.
    let script = script.replace("|ACTIONS_ID_TOKEN_.*", "");
    let ended = runner.step(runner.job.command("sh", &["-c", &script]));
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
    // A weaker delivery is requested, and the gateway stays.
    let more = runner.step(runner.job.wifshare(&["start", "--delivery", "profile"]));
    assert_eq!(more.code, 0, "{}", more.stderr);
    assert!(more.stderr.contains("gateway"), "{}", more.stderr);
    let ended = runner.step(runner.job.command("sh", &["-c", &script]));
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
    assert_eq!(runner.step(runner.job.wifshare(&["stop", "--all"])).code, 0);
    // The first keeper removed its credential, because later steps could have read it.
    runner.job.assert_exchanges(2);
}

#[test]
fn stricter_start_inside_exec_is_refused() {
    let job = Job::new(settings());
    let ended = job.exec(&[], r#""$WIFSHARE" start --delivery gateway"#);
    assert_eq!(ended.code, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("error[delivery-refused]") && ended.stderr.contains("hint:"), "{}", ended.stderr);
    let ended = job.exec(&[], r#""$WIFSHARE" start && "$WIFSHARE" start --delivery profile"#);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn gateway_next_to_an_existing_credential_is_refused() {
    for (name, value) in [
        ("ANTHROPIC_API_KEY", "sk-ant-api03-canary"),
        ("ANTHROPIC_AUTH_TOKEN", "sk-ant-oat01-canary"),
        ("CLAUDE_CODE_OAUTH_TOKEN", "canary"),
        ("ANTHROPIC_PROFILE", "mine"),
    ] {
        let mut job = Job::new(settings());
        job.set(name, value);
        for arguments in [
            &["exec", "--delivery", "gateway", "--", "touch", "began"][..],
            &["exec", "--optional", "--delivery", "gateway", "--", "touch", "began"],
            &["claude", "--claude", "sh", "--delivery", "gateway", "--", "-c", "touch began"],
            &["start", "--delivery", "gateway"],
        ] {
            let ended = job.run(arguments);
            assert_eq!(ended.code, 125, "{name} {arguments:?}: {}", ended.stderr);
            assert!(
                ended.stderr.contains("error[delivery-refused]") && ended.stderr.contains(name),
                "{}",
                ended.stderr
            );
            assert!(!job.path("began").exists());
        }
    }
}

#[test]
fn unconfigured_optional_gateway_removes_sign_in_variables() {
    let mut job = Job::new(settings());
    job.unset("ANTHROPIC_FEDERATION_RULE_ID");
    job.unset("ANTHROPIC_ORGANIZATION_ID");
    let ended = job.exec(
        &["--optional", "--delivery", "gateway"],
        r#"[ -z "$ACTIONS_ID_TOKEN_REQUEST_TOKEN$ACTIONS_ID_TOKEN_REQUEST_URL$ANTHROPIC_IDENTITY_TOKEN" ]"#,
    );
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn gateway_that_cannot_open_inside_a_run_starts_no_command() {
    // The state directory of the outer run is read-only.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let job = Job::new(Settings { ..settings() });
    let script = r#"
        unshare --mount sh -c 'mount --bind "$RUNNER_TEMP/wifshare-$(id -u)" "$RUNNER_TEMP/wifshare-$(id -u)" &&
            mount -o remount,bind,ro "$RUNNER_TEMP/wifshare-$(id -u)" &&
            "$WIFSHARE" exec --delivery gateway -- touch "$RUNNER_TEMP/began"'"#;
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        return;
    }
    let ended = job.exec(&[], script);
    assert_eq!(ended.code, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("error[") && !job.path("began").exists(), "{}", ended.stderr);
    assert_eq!(finish(job.wifshare(&["stop"]).spawn().unwrap()).code, 0);
    assert_eq!(job.exec(&[], ASK).code, 0);
}
