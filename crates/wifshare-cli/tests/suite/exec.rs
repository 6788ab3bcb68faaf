//! `wifshare exec`: what a command finds, for how long, and what remains.

use wifshare_sandbox::Settings;

use crate::job::{Job, files, finish, living, settings};

/// Sends one request to the API, like a client that reads the profile.
const ASK: &str = r#""$WIFSHARE" demo --child shared"#;

#[test]
fn exec_command_finds_the_credential_and_leaves_no_files() {
    for delivery in ["profile", "federation"] {
        let job = Job::new(settings());
        let ended = job.exec(&["--delivery", delivery], &format!("{ASK} && {ASK}"));
        assert_eq!(ended.code, 0, "{delivery}: {}", ended.stderr);
        assert_eq!(ended.stderr, "", "{delivery}: success is quiet");
        assert_eq!(job.counters().messages_accepted, 2);
        job.assert_exchanges(1);
        assert!(job.files_with_secrets().is_empty());
        let left: Vec<_> = files(&job.state()).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        let may_stay = ["lock", "lease", "spent", "spent.lock", "events.jsonl"];
        assert!(left.iter().all(|name| may_stay.iter().any(|ours| name == ours)), "{left:?}");
    }
}

#[test]
fn short_lived_credential_warns_if_clients_read_its_expiry() {
    let warned = |lifetime, delivery| {
        let settings = Settings { access_token_lifetime_s: lifetime, access_token_lifetime_floor_s: 1, ..settings() };
        let ended = Job::new(settings).exec(&["--delivery", delivery], "true");
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended.stderr.contains("use --delivery gateway")
    };
    for (lifetime, delivery, expected) in [
        (40, "profile", true),
        (59, "federation", true),
        (60, "profile", false),
        (40, "gateway", false),
        (40, "environment", false),
    ] {
        assert_eq!(warned(lifetime, delivery), expected, "{delivery}, {lifetime} s");
    }
}

#[test]
fn profile_child_inherits_no_sign_in_variables() {
    let job = Job::new(settings());
    let ended = job.exec(&[], "env | cut -d= -f1 | grep -E 'ANTHROPIC|ACTIONS' | sort | xargs");
    assert_eq!(ended.stdout.trim(), "ANTHROPIC_BASE_URL ANTHROPIC_CONFIG_DIR ANTHROPIC_PROFILE");
    let kept = job.exec(&["--keep-env", "ANTHROPIC_ORGANIZATION_ID"], "echo ${ANTHROPIC_ORGANIZATION_ID:+kept}");
    assert_eq!(kept.stdout.trim(), "kept");
}

#[test]
fn delivered_files_are_private_under_any_umask() {
    for umask in ["000", "077", "777"] {
        let job = Job::new(settings());
        let script = r#"umask 022; find "$ANTHROPIC_CONFIG_DIR" -printf '%y %m\n' | sort -u | xargs"#;
        let run = format!(r#"umask {umask}; exec "$WIFSHARE" exec -- sh -c '{}'"#, script.replace('\'', r"'\''"));
        let ended = finish(job.command("sh", &["-c", &run]).spawn().unwrap());
        assert_eq!((ended.code, ended.stdout.trim()), (0, "d 700 f 600"), "umask {umask}: {}", ended.stderr);
    }
}

#[test]
fn environment_delivery_sets_the_token_and_prints_its_lifetime() {
    let job = Job::new(settings());
    let script =
        r#"[ "${ANTHROPIC_AUTH_TOKEN#sk-ant-oat01-}" != "$ANTHROPIC_AUTH_TOKEN" ] && [ -z "$ANTHROPIC_CONFIG_DIR" ]"#;
    let ended = job.exec(&["--delivery", "environment"], script);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("ANTHROPIC_AUTH_TOKEN is good for"), "{}", ended.stderr);
}

#[test]
fn exec_returns_child_exit_codes_and_its_own() {
    let job = Job::new(settings());
    for code in [0, 1, 3, 125, 254] {
        assert_eq!(job.exec(&[], &format!("exit {code}")).code, code);
    }
    assert_eq!(job.exec(&[], "kill -TERM $$").code, 143);
    assert_eq!(job.exec(&[], "kill -SEGV $$").code, 139);
    let before = job.counters().exchanges_accepted;
    let missing = job.run(&["exec", "--", "no-such-program"]);
    assert_eq!(missing.code, 127, "{}", missing.stderr);
    assert_eq!(job.counters().exchanges_accepted, before, "a mistyped command costs no identity token");
    assert_eq!(job.run(&["exec", "--", "/etc/passwd"]).code, 126);
    assert_eq!(job.run(&["exec"]).code, 2);
    assert_eq!(job.run(&["exec", "--delivery", "pigeon", "--", "true"]).code, 2);
}

#[test]
fn child_outliving_five_tokens_sees_no_failure() {
    let job = Job::new(living(6));
    let script = format!(
        r#"end=$(($(date +%s) + 30)); count=0
           while [ $(date +%s) -lt $end ]; do {ASK} || exit 9; count=$((count + 1)); sleep 0.1; done; echo $count"#
    );
    for delivery in ["profile", "federation"] {
        let before = job.counters().exchanges_accepted;
        let ended = job.exec(&["--delivery", delivery], &script);
        assert_eq!(ended.code, 0, "{delivery}: {}", ended.stderr);
        assert!(ended.stdout.trim().parse::<u32>().unwrap() > 30, "{delivery}: {}", ended.stdout);
        // The lifetime is 6 s and the lead 3 s. A renewal begins 0.3 s to 0.6 s early and times are whole seconds, so
        // there is one every 1.4 s to 2.7 s, plus the first exchange.
        let exchanges = job.counters().exchanges_accepted - before;
        assert!((30 * 10 / 27..=30 * 10 / 14 + 2).contains(&exchanges), "{delivery}: {exchanges} exchanges");
        job.assert_nothing_sent_twice();
    }
    assert_eq!(job.counters().messages_refused, 0);
}

#[test]
fn temporary_renewal_failure_affects_no_request() {
    let fault = wifshare_sandbox::Fault::Status { status: 503, retry_after_s: None, commit: true };
    // The first exchange succeeds. Then the endpoint is down for a while, during which the credential is valid.
    let faults = std::iter::once(wifshare_sandbox::Fault::None).chain(std::iter::repeat_n(fault, 4)).collect();
    let job = Job::new(Settings { exchange_faults: faults, ..living(30) });
    let script = format!("for i in $(seq 50); do {ASK} || exit 9; sleep 0.5; done");
    let ended = job.exec(&[], &script);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("could not be renewed"), "{}", ended.stderr);
    let counters = job.counters();
    assert_eq!((counters.messages_refused, counters.exchanges_faulted), (0, 4));
    job.assert_exchanges(4 + 2);
}

#[test]
fn existing_credential_variable_is_kept_without_exchange() {
    for name in ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"] {
        let mut job = Job::new(settings());
        job.set(name, "their-own");
        let ended = job.exec(&[], &format!(r#"[ "${name}" = their-own ] && [ -n "$ACTIONS_ID_TOKEN_REQUEST_URL" ]"#));
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("{name} is set")), "{}", ended.stderr);
        assert_eq!(job.counters().exchanges_received, 0);
    }
}

#[test]
fn blank_api_key_is_removed_for_the_child() {
    let mut job = Job::new(settings());
    job.set("ANTHROPIC_API_KEY", "");
    let ended = job.exec(&[], r#"[ -z "${ANTHROPIC_API_KEY+set}" ]"#);
    assert_eq!(ended.code, 0, "the Python SDK would take a blank key for a choice: {}", ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn existing_profile_is_kept_and_gets_an_identity_token() {
    for (name, value) in [("ANTHROPIC_CONFIG_DIR", "/their/own"), ("ANTHROPIC_PROFILE", "theirs")] {
        let mut job = Job::new(settings());
        job.set(name, value);
        if name == "ANTHROPIC_CONFIG_DIR" {
            // With the federation variables, the directory does not select a profile.
            job.unset("ANTHROPIC_FEDERATION_RULE_ID");
        }
        let script = format!(
            r#"[ "${name}" = {value} ] || exit 3; first=$(cat "$ANTHROPIC_IDENTITY_TOKEN_FILE") || exit 4
               sleep 2; second=$(cat "$ANTHROPIC_IDENTITY_TOKEN_FILE"); [ -n "$first" ] && [ "$first" != "$second" ]"#
        );
        let ended = job.exec(&[], &script);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("{name} is set")), "{}", ended.stderr);
        assert_eq!(job.counters().exchanges_received, 0);
    }
}

#[test]
fn existing_profile_needs_no_federation_variables() {
    let mut job = Job::new(settings());
    job.set("ANTHROPIC_PROFILE", "theirs");
    job.unset("ANTHROPIC_FEDERATION_RULE_ID");
    job.unset("ANTHROPIC_ORGANIZATION_ID");
    let ended = job.exec(&[], r#"[ -s "$ANTHROPIC_IDENTITY_TOKEN_FILE" ] || exit 3"#);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    job.without_endpoint();
    let ended = job.exec(&[], r#"[ -z "$ANTHROPIC_IDENTITY_TOKEN_FILE" ] || exit 3"#);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn identity_source_outage_delays_only_the_spare_token() {
    let down = wifshare_sandbox::Fault::Status { status: 401, retry_after_s: None, commit: false };
    let faults = std::iter::once(wifshare_sandbox::Fault::None).chain(std::iter::repeat_n(down, 3)).collect();
    let job = Job::new(Settings { identity_token_faults: faults, ..settings() });
    let script = format!(
        r#"{ASK} || exit 3; for i in $(seq 100); do [ -s "$ANTHROPIC_IDENTITY_TOKEN_FILE" ] && exit 0; sleep 0.1; done"#
    );
    let ended = job.exec(&["--delivery", "federation"], &script);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("no unspent identity token could be put in place"), "{}", ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn unread_identity_token_is_replaced_at_four_fifths_of_its_life() {
    let job = Job::new(Settings { identity_token_lifetime_s: 5, ..settings() });
    let inode = r#"stat -c %i "$ANTHROPIC_IDENTITY_TOKEN_FILE""#;
    let script =
        format!("first=$({inode}); sleep 2; [ $({inode}) = $first ] || exit 3; sleep 2.7; [ $({inode}) != $first ]");
    let ended = job.exec(&["--delivery", "federation"], &script);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn invalid_credential_written_by_a_child_is_overwritten() {
    let job = Job::new(settings());
    let script = r#"
        set -e
        file="$ANTHROPIC_CONFIG_DIR/credentials/default.json"; before=$("$WIFSHARE" token)
        umask 077
        echo '{"version":"1.0","type":"oauth_token","access_token":"sk-ant-oat01-old","expires_at":1000}' > "$file.tmp"
        mv "$file.tmp" "$file"
        for i in $(seq 50); do grep -q "$before" "$file" && break; sleep 0.1; done
        grep -q "$before" "$file" && [ "$("$WIFSHARE" token)" = "$before" ]"#;
    let ended = job.exec(&["--delivery", "federation"], script);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn relative_state_directory_works_from_any_directory() {
    let mut job = Job::new(settings());
    job.set("WIFSHARE_STATE_DIR", "relative");
    let ended = job.exec(&[], &format!(r#"cd / && {ASK} && "$WIFSHARE" exec -- true"#));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn single_token_source_warns_once_about_failed_renewal() {
    let mut job = Job::new(living(8));
    job.may_keep_credential();
    job.without_endpoint();
    let token = job.sandbox.issue_identity_token();
    job.set("ANTHROPIC_IDENTITY_TOKEN", &token);
    let ended = job.exec(&[], "sleep 10");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("could not be renewed").count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("has ended and could not be renewed"), "{}", ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn optional_exec_without_configuration_runs_the_command() {
    let mut job = Job::new(settings());
    for name in ["ANTHROPIC_FEDERATION_RULE_ID", "ANTHROPIC_ORGANIZATION_ID"] {
        job.set(name, "");
    }
    let ended = job.exec(&["--optional"], "exit 7");
    assert_eq!(ended.code, 7);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert_eq!(job.exec(&[], "exit 7").code, 125);
    // An incomplete configuration is a mistake and not a fork's pull request.
    job.set("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_1");
    assert_eq!(job.exec(&["--optional"], "exit 7").code, 125);
}

#[test]
fn credential_obtained_by_a_federation_child_is_shared() {
    let mut job = Job::new(settings());
    job.may_keep_credential();
    // Simulates a client after a 401: it exchanges the file's token and writes the credential to the place of ours.
    let script = r#"
        set -e
        answer=$("$WIFSHARE" token --identity-token-file "$ANTHROPIC_IDENTITY_TOKEN_FILE.copy" --state-dir "$PWD/child" \
            --format json 2>/dev/null) || true
        before=$(cat "$ANTHROPIC_IDENTITY_TOKEN_FILE")
        file="$ANTHROPIC_CONFIG_DIR/credentials/default.json"
        printf '%s' "$before" > own-token; chmod 600 own-token
        env -u WIFSHARE_RUN "$WIFSHARE" token --identity-token-file own-token --state-dir "$PWD/child" --format json > bought
        umask 077
        sed 's/.*"access_token":"\([^"]*\)".*"expires_at":\([0-9]*\).*/{"version":"1.0","type":"oauth_token","access_token":"\1","expires_at":\2}/' bought > "$file.tmp"
        mv "$file.tmp" "$file"
        own=$(sed 's/.*"access_token":"\([^"]*\)".*/\1/' bought)
        for i in $(seq 100); do
            [ "$("$WIFSHARE" token)" = "$own" ] && [ "$(cat "$ANTHROPIC_IDENTITY_TOKEN_FILE")" != "$before" ] && adopted=yes && break
            sleep 0.1
        done
        rm -rf own-token bought child
        [ "$adopted" = yes ]
    "#;
    let ended = job.exec(&["--delivery", "federation"], script);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    job.assert_exchanges(2);
}

#[test]
fn process_outliving_the_command_causes_a_warning() {
    for delivery in ["profile", "federation", "environment", "gateway"] {
        let job = Job::new(settings());
        let ended = job.exec(&["--delivery", delivery], "(exec sleep 20) >/dev/null 2>&1 </dev/null & echo $! > pid");
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let pid = std::fs::read_to_string(job.path("pid")).unwrap().trim().to_owned();
        assert!(ended.stderr.contains(&format!("sleep (pid {pid})")), "{delivery}: {}", ended.stderr);
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    let job = Job::new(settings());
    let ended = job.exec(&[], "(sleep 0.05) & true");
    assert!(!ended.stderr.contains("still run"), "{}", ended.stderr);
}

#[test]
fn exec_needs_no_double_dash_before_the_command() {
    let job = Job::new(settings());
    for (arguments, stdout) in [
        (&["exec", "echo", "hi", "--delivery", "-v"][..], "hi --delivery -v\n"),
        (&["exec", "--delivery", "gateway", "sh", "-c", "echo $0 $1", "a", "--"], "a --\n"),
        (&["exec", "--", "echo", "--", "hi"], "-- hi\n"),
    ] {
        let ended = job.run(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (0, stdout), "{arguments:?}: {}", ended.stderr);
    }
    assert_eq!(job.run(&["exec", "--bogus", "echo", "hi"]).code, 2);
    assert_eq!(job.run(&["exec"]).code, 2);
}

#[test]
fn script_without_interpreter_line_runs_in_the_shell() {
    let job = Job::new(settings());
    let script = "printf 'echo \"$1\"; exit 6\\n' > script && chmod 755 script";
    assert_eq!(finish(job.command("sh", &["-c", script]).spawn().unwrap()).code, 0);
    let ended = job.run(&["exec", "--", "./script", "a b"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (6, "a b\n"), "{}", ended.stderr);
}
