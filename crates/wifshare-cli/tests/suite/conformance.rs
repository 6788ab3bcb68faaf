//! `wifshare sandbox --conformance` distinguishes clients that use tokens once from those that do not.

use std::process::Stdio;
use std::time::Instant;

use crate::job::{Ended, Job, WIFSHARE, eventually, finish, settings};

/// Runs the conformance kit on a command. The job's own mock server is not used.
fn conformance(options: &[&str], command: &[&str]) -> Ended {
    let job = Job::new(settings());
    let ended = job.run(&[&["sandbox", "--conformance"], options, &["--"], command].concat());
    assert_eq!(job.counters().exchanges_received, 0, "the variables of the job around it do not get through");
    ended
}

/// Returns the verdicts in order, each with its whole row.
fn rows(ended: &Ended) -> Vec<(&str, &str)> {
    let rows = ended.stdout.lines().skip(1);
    rows.map(|row| (row.split_whitespace().next().unwrap(), row)).collect()
}

fn failed(ended: &Ended) -> Vec<&str> {
    rows(ended).into_iter().filter(|(verdict, _)| *verdict == "failed").map(|(_, row)| row).collect()
}

#[test]
fn command_under_exec_passes_conformance_with_every_source() {
    let shared = [WIFSHARE, "exec", "--", WIFSHARE, "demo", "--child", "shared"];
    for (source, not_applicable) in [("file", 1), ("endpoint", 0)] {
        let ended = conformance(&["--source", source], &shared);
        assert_eq!(ended.code, 0, "{source}: {}\n{}", ended.stdout, ended.stderr);
        let verdicts: Vec<_> = rows(&ended).into_iter().map(|(verdict, _)| verdict).collect();
        assert_eq!(verdicts.len(), 14, "{}", ended.stdout);
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == "ok").count(), 14 - not_applicable);
        let at_once = rows(&ended)[2].1;
        assert!(at_once.contains("8 of 8 succeeded; 1 sent, 1 accepted, 0 sent again"), "{at_once}");
    }
}

#[test]
fn federating_client_fails_conformance_when_it_resends_a_token() {
    let ended = conformance(&[], &[WIFSHARE, "demo", "--child", "alone"]);
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    let failed = failed(&ended);
    assert_eq!(failed.len(), 4, "{}", ended.stdout);
    for (row, parts) in failed.iter().zip([
        &["eight runs at once", "1 of 8 succeeded", "1 accepted"][..],
        &["503 once", "2 sent, 1 accepted, 1 sent again"],
        &["429", "came back before its time", "1 sent again"],
        &["401", "3 sent, 0 accepted, 2 sent again"],
    ]) {
        assert!(parts.iter().all(|part| row.contains(part)), "{row}\nlacks one of {parts:?}");
    }
}

/// For each rule, a shell script that breaks it, and the case that must detect it.
#[test]
fn each_conformance_case_detects_its_rule_violation() {
    // The common part of a client: read the token, post the grant, follow the options.
    const POST: &str = r#"
        token=$(cat "$ANTHROPIC_IDENTITY_TOKEN_FILE")
        printf '{"grant_type":"urn:ietf:params:oauth:grant-type:jwt-bearer","assertion":"%s","federation_rule_id":"%s","organization_id":"%s"}' \
            "$token" "$ANTHROPIC_FEDERATION_RULE_ID" "$ANTHROPIC_ORGANIZATION_ID" > body-$$
        post() { curl --silent --max-time 10 "$@" --data @body-$$ "$ANTHROPIC_BASE_URL/v1/oauth/token"; }
    "#;
    if std::process::Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("curl is not there, so nobody breaks a rule");
        return;
    }
    for (case, script, complaint) in [
        ("one-run", "post; post", "made more than one exchange"),
        ("one-run", "true", "no exchange arrived"),
        ("one-run", "post; exit 3", "did not succeed; exit 3"),
        ("token-replaced", "post; post", "sent an identity token again"),
        ("lost-answer", "post || post", "sent an identity token again"),
        ("reset-answer", "post || post", "sent an identity token again"),
        ("redirect", "post --location", "1 arrived elsewhere"),
        ("short-life", "post; sleep 1; post", "sent an identity token again"),
        ("without-jti", "post; post", "sent an identity token again"),
        ("reflected", "post", "printed a secret"),
        ("reflected", "post | cut -c1-500 >&2", "printed in part"),
        ("argument-lists", r#"post; sh -c 'sleep 1; true' "$token""#, "put a secret into an argument list"),
        ("refused", "post; sleep 60", "did not give up"),
    ] {
        let bound = if case == "refused" { "5s" } else { "60s" };
        let ended = conformance(&["--case", case, "--bound", bound], &["sh", "-c", &format!("{POST}\n{script}")]);
        let failed = failed(&ended);
        assert_eq!((ended.code, failed.len()), (1, 1), "{case} {script}: {}{}", ended.stdout, ended.stderr);
        assert!(failed[0].contains(complaint), "{case} {script}: {}", failed[0]);
    }
    // The same client without a violation.
    let ended = conformance(&[], &["sh", "-c", &format!("{POST}\npost --fail --output answer-$$ || true")]);
    let failed = failed(&ended);
    assert_eq!(failed.len(), 1, "eight of them send one token: {}", ended.stdout);
    assert!(failed[0].contains("8 of 8 succeeded; 8 sent, 1 accepted, 7 sent again"), "{}", failed[0]);
}

#[test]
fn client_trusting_its_platform_sends_one_token_twice() {
    if std::process::Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("curl is not there, so nobody breaks the rule");
        return;
    }
    const CLIENT: &str = r#"
        token=$(curl --silent --header "authorization: bearer $ACTIONS_ID_TOKEN_REQUEST_TOKEN" \
            "$ACTIONS_ID_TOKEN_REQUEST_URL&audience=https://api.anthropic.com" | sed 's/.*"value":"\([^"]*\)".*/\1/')
        printf '{"grant_type":"urn:ietf:params:oauth:grant-type:jwt-bearer","assertion":"%s","federation_rule_id":"%s","organization_id":"%s"}' \
            "$token" "$ANTHROPIC_FEDERATION_RULE_ID" "$ANTHROPIC_ORGANIZATION_ID" |
            curl --silent --fail --data @- "$ANTHROPIC_BASE_URL/v1/oauth/token"
    "#;
    let kit = |case| conformance(&["--source", "endpoint", "--case", case], &["sh", "-c", CLIENT]);
    let ended = kit("same-token-twice");
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    assert!(failed(&ended)[0].contains("1 of 2 succeeded; 2 sent, 1 accepted, 1 sent again"), "{}", ended.stdout);
    let ended = kit("token-replaced");
    assert_eq!(ended.code, 0, "{}", ended.stdout);
}

#[test]
fn conformance_client_has_an_empty_home_and_no_own_variables() {
    let mut job = Job::new(settings());
    job.set("ANTHROPIC_API_KEY", "sk-ant-not-for-others");
    job.set("ANTHROPIC_PROFILE", "mine");
    job.set("GITHUB_ACTIONS", "true");
    job.set("LANG", "C.UTF-8");
    let out = job.path("seen");
    let script = format!("{{ env; ls -A; pwd; }} > {}", out.display());
    let ended = job.run(&["sandbox", "--conformance", "--case", "one-run", "--", "sh", "-c", &script]);
    assert_eq!(ended.code, 1, "it signed nobody in: {}", ended.stdout);
    let seen = std::fs::read_to_string(out).unwrap();
    for (part, expected) in [
        ("sk-ant-not-for-others", false),
        ("ANTHROPIC_PROFILE=", false),
        ("GITHUB_ACTIONS=", false),
        ("ACTIONS_ID_TOKEN_REQUEST_URL=", false),
        (job.path("home").to_str().unwrap(), false),
        ("LANG=C.UTF-8", true),
        ("ANTHROPIC_IDENTITY_TOKEN_FILE=/", true),
        ("ANTHROPIC_BASE_URL=http://127.0.0.1:", true),
    ] {
        assert_eq!(seen.contains(part), expected, "{part}\n{seen}");
    }
    assert!(!seen.contains(&job.sandbox.base_url()));
}

#[test]
fn conformance_with_missing_client_or_bad_options_fails() {
    for (options, command, code, said) in [
        (&[][..], &["no-such-client"][..], 127, "command-not-found"),
        (&["--case", "unheard-of"], &["true"], 2, "no such case"),
        (&["--settings", "{}"], &["true"], 2, "cannot be used with"),
    ] {
        let ended = conformance(options, command);
        assert_eq!(ended.code, code, "{}", ended.stderr);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
        assert_eq!(ended.stdout, "", "nothing was judged");
    }
}

#[test]
fn interrupted_conformance_run_leaves_no_process() {
    let job = Job::new(settings());
    let note = job.path("client");
    let script = format!("echo $$ > {}; sleep 300 & wait", note.display());
    let kit = job.wifshare(&["sandbox", "--conformance", "--", "sh", "-c", &script]).spawn().unwrap();
    let client = || std::fs::read_to_string(&note).ok().and_then(|text| text.trim().parse::<i32>().ok());
    eventually("the client runs", || client().is_some());
    let begin = Instant::now();
    let id = rustix::process::Pid::from_child(&kit);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert_eq!(finish(kit).code, 130);
    assert!(begin.elapsed().as_secs() < 10);
    let group = rustix::process::Pid::from_raw(client().unwrap()).unwrap();
    eventually("the whole group is gone", || rustix::process::test_kill_process_group(group).is_err());
}
