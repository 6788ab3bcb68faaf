//! The gateway: children that work without ever holding the credential.

use std::time::{Duration, Instant};

use wifshare_sandbox::{Fault, Settings};

use crate::clients::{ALL, ONE, job_with_clients};
use crate::job::{Job, eventually, files, finish, living, settings};

/// Sends a request to the API with curl, as configured by the environment. `ask [OPTION]...`
const ASK: &str = r#"
    ask() {
        curl -sS --fail-with-body --max-time 60 "$ANTHROPIC_BASE_URL/v1/messages" \
            -H "authorization: Bearer $ANTHROPIC_AUTH_TOKEN" -H "content-type: application/json" \
            -d '{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}' "$@"
    }
"#;

#[test]
fn clients_and_streams_behind_the_gateway_make_one_exchange() {
    let Some(job) = job_with_clients(Settings { exchange_latency_ms: 1200, ..settings() }) else { return };
    let all = ALL.join(" ");
    let script = format!(
        r#"{ONE}
        for name in {all}; do for twin in 1 2; do one $name $name-$twin & pids="$pids $!"; done; done
        one ask-python p-s --stream & pids="$pids $!"
        one ask-typescript t-s --stream & pids="$pids $!"
        failed=0; for pid in $pids; do wait $pid || failed=1; done; exit $failed"#
    );
    let ended = job.exec(&["--delivery", "gateway"], &script);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    assert_eq!((job.counters().messages_accepted, job.counters().messages_refused), (12, 0));
    job.assert_exchanges(1);
}

#[test]
fn clients_accept_the_capability_in_both_variables() {
    let Some(job) = job_with_clients(settings()) else { return };
    let all = ALL.join(" ");
    // Once with both variables, and once with only the API key.
    let script = format!(
        r#"{ONE}
        [ "$ANTHROPIC_API_KEY" = "$ANTHROPIC_AUTH_TOKEN" ] || exit 9
        for name in {all}; do one $name $name-both || exit 1; done
        unset ANTHROPIC_AUTH_TOKEN
        for name in {all}; do one $name $name-key || exit 2; done"#
    );
    let ended = job.exec(&["--delivery", "gateway", "--api-key"], &script);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    assert_eq!((job.counters().messages_accepted, job.counters().messages_refused), (10, 0));
    job.assert_exchanges(1);
}

#[test]
fn gateway_command_prints_the_api_key_only_on_request() {
    for (options, expected) in [
        (&["--api-key"][..], true),
        (&[], false),
        (&["--api-key", "--format", "json"], true),
        (&["--format", "json"], false),
    ] {
        let job = Job::new(settings());
        let mut child = job.wifshare(&[&["gateway"], options].concat()).spawn().unwrap();
        let mut said = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        while !said.contains("_AUTH_TOKEN=") && !said.contains('}')
            || expected && !said.to_lowercase().contains("api_key")
        {
            assert!(std::io::BufRead::read_line(&mut stdout, &mut said).unwrap() > 0, "{said}");
        }
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
        std::io::Read::read_to_string(&mut stdout, &mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert_eq!(said.to_lowercase().contains("api_key"), expected, "{said}");
        assert_eq!(said.matches("wifshare-capability-").count(), 1 + usize::from(expected), "{said}");
    }
}

#[test]
fn federating_client_receives_the_capability_from_the_gateway() {
    let Some(job) = job_with_clients(settings()) else { return };
    let all = ALL.join(" ");
    let script = format!(
        r#"{ONE}
        unset ANTHROPIC_AUTH_TOKEN
        printf %s 'eyJhbGciOiJSUzI1NiJ9.eyJqdGkiOiJ4In0.YQ' > {0}/own-token
        export ANTHROPIC_IDENTITY_TOKEN_FILE={0}/own-token
        export ANTHROPIC_FEDERATION_RULE_ID=fdrl_01SandboxRule
        export ANTHROPIC_ORGANIZATION_ID=00000000-0000-4000-8000-0000005a4db0
        export ANTHROPIC_SERVICE_ACCOUNT_ID=svac_01SandboxAccount
        for name in {all}; do one $name $name || exit 1; done"#,
        job.path("").display()
    );
    let ended = job.exec(&["--delivery", "gateway"], &script);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    assert_eq!((job.counters().messages_accepted, job.counters().messages_refused), (5, 0));
    job.assert_exchanges(1);
}

#[test]
fn command_starts_at_once_and_its_request_waits_for_the_exchange() {
    let job = Job::new(Settings { exchange_latency_ms: 6000, ..settings() });
    let script = format!("{ASK} touch begun; ask > /dev/null");
    let start = Instant::now();
    let child = job.wifshare(&["exec", "--delivery", "gateway", "--", "sh", "-c", &script]).spawn().unwrap();
    eventually("the command has begun", || job.path("begun").exists());
    let begun = Instant::now();
    let ended = finish(child);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert!(begun.elapsed() >= Duration::from_secs(1), "it began long before there was a credential");
    assert!(start.elapsed() >= Duration::from_secs(6), "and had none before the exchange was answered");
    job.assert_exchanges(1);
}

#[test]
fn command_without_requests_does_not_wait_for_the_exchange() {
    let job = Job::new(Settings { exchange_latency_ms: 20_000, ..settings() });
    let start = Instant::now();
    let ended = job.exec(&["--delivery", "gateway"], "exit 7");
    assert_eq!(ended.code, 7);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn refused_exchange_is_reported_on_stderr_and_to_the_client() {
    let refusal = Fault::Status { status: 401, retry_after_s: None, commit: false };
    let job = Job::new(Settings { exchange_faults: vec![refusal; 20], ..settings() });
    let ended = job.exec(&["--delivery", "gateway"], &format!("{ASK} ask; echo; exit 3"));
    assert_eq!(ended.code, 3, "the command's own");
    assert!(ended.stdout.contains(r#""type":"authentication_error""#), "{}", ended.stdout);
    assert!(ended.stdout.contains("could not exchange the identity token"), "{}", ended.stdout);
    assert!(ended.stderr.contains("no credential could be had") && ended.stderr.contains("hint:"), "{}", ended.stderr);
}

#[test]
fn temporary_exchange_failure_only_delays_the_first_request() {
    let job = Job::new(Settings::fail_first(2, 503));
    let ended = job.exec(&["--delivery", "gateway"], &format!("{ASK} ask > /dev/null"));
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    job.assert_exchanges(1);
}

/// Four workers send requests for this many seconds, 150 per connection. The first failure ends the loop.
const LOAD: &str = r#"
    load() {
        printf '%s\n' "header = \"authorization: Bearer $ANTHROPIC_AUTH_TOKEN\"" 'header = "content-type: application/json"' \
            'data = "{\"model\":\"m\",\"max_tokens\":1,\"messages\":[]}"' fail silent show-error 'output = /dev/null' > ask.curl
        end=$(( $(date +%s) + $1 ))
        worker() {
            round=0
            while [ $round -lt 4 ] || [ $(date +%s) -lt $end ]; do round=$((round + 1)); curl --config ask.curl "$ANTHROPIC_BASE_URL/v1/messages?[1-150]" || return 1; done
        }
        for worker in 1 2 3 4; do worker & pids="$pids $!"; done
        failed=0; for pid in $pids; do wait $pid || failed=1; done; return $failed
    }
"#;

#[test]
fn renewals_under_load_cause_no_failed_request() {
    let job = Job::new(living(3));
    let ended = job.exec(&["--delivery", "gateway"], &format!("{LOAD} load 8"));
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    let counters = job.counters();
    assert!(counters.messages_accepted >= 4 * 4 * 150, "{counters:#?}");
    assert!(counters.exchanges_accepted >= 4, "{counters:#?}");
    assert_eq!(counters.messages_refused, 0, "{counters:#?}");
    job.assert_nothing_sent_twice();
}

#[test]
fn revoked_token_is_renewed_and_the_request_retried() {
    let job = Job::new(settings());
    let script = format!(
        "{ASK} ask > /dev/null || exit 1
        touch worked; while ! [ -e revoked ]; do sleep 0.05; done
        ask > /dev/null || exit 2
        ask > /dev/null"
    );
    let child = job.wifshare(&["exec", "--delivery", "gateway", "--", "sh", "-c", &script]).spawn().unwrap();
    eventually("the first request was answered", || job.path("worked").exists());
    job.sandbox.revoke_access_tokens();
    std::fs::File::create(job.path("revoked")).unwrap();
    let ended = finish(child);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert_eq!((job.counters().messages_accepted, job.counters().messages_refused), (3, 1));
    job.assert_exchanges(2);
}

#[test]
fn commands_inside_a_gateway_run_get_the_capability() {
    let job = Job::new(settings());
    let script = format!(
        r#"{ASK}
        [ "$("$WIFSHARE" token)" = "$ANTHROPIC_AUTH_TOKEN" ] || exit 1
        "$WIFSHARE" token --format header | grep -qx "Authorization: Bearer $ANTHROPIC_AUTH_TOKEN" || exit 2
        "$WIFSHARE" token --format json --min-life 2h | grep -q '"expires_in":' || exit 3
        before=$ANTHROPIC_BASE_URL
        "$WIFSHARE" exec -- sh -c 'echo $ANTHROPIC_BASE_URL' | grep -qx "$before" || exit 4
        "$WIFSHARE" exec --delivery profile -- sh -c 'echo $ANTHROPIC_AUTH_TOKEN' 2> said | grep -qx "$ANTHROPIC_AUTH_TOKEN" || exit 5
        grep -q 'gives more than' said || exit 6
        "$WIFSHARE" exec -- "$WIFSHARE" exec -- sh -c '[ -n "$ANTHROPIC_AUTH_TOKEN" ]' || exit 7"#
    );
    let ended = job.exec(&["--delivery", "gateway"], &script);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn gateway_reuses_the_credential_of_another_run() {
    let mut job = Job::new(settings());
    job.set("ASK", &format!("{ASK} ask > /dev/null"));
    let mut options = vec!["--delivery", "profile"];
    for name in [
        "ACTIONS_ID_TOKEN_REQUEST_URL",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
        "ANTHROPIC_FEDERATION_RULE_ID",
        "ANTHROPIC_ORGANIZATION_ID",
        "ANTHROPIC_SERVICE_ACCOUNT_ID",
    ] {
        options.extend(["--keep-env", name]);
    }
    let script = r#"
        unset WIFSHARE_RUN ANTHROPIC_CONFIG_DIR ANTHROPIC_PROFILE
        exec "$WIFSHARE" exec --delivery gateway -- sh -c "$ASK""#;
    let ended = job.exec(&options, script);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn parallel_gateways_exchange_separately_and_resend_nothing() {
    let job = Job::new(settings());
    let script = format!("{ASK} for n in 1 2 3; do ask > /dev/null || exit 1; done");
    let run = || job.wifshare(&["exec", "--delivery", "gateway", "--", "sh", "-c", &script]).spawn().unwrap();
    let runs = [run(), run(), run()];
    for ended in runs.map(finish) {
        assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    }
    job.assert_exchanges(3);
}

#[test]
fn fixed_identity_token_serves_one_gateway() {
    let mut job = Job::new(settings());
    let token = job.sandbox.issue_identity_token();
    job.without_endpoint();
    job.set("ANTHROPIC_IDENTITY_TOKEN", &token);
    let script = format!("{ASK} [ -z \"$ANTHROPIC_IDENTITY_TOKEN\" ] && ask > /dev/null");
    let ended = job.exec(&["--delivery", "gateway"], &script);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    let again = job.exec(&["--delivery", "gateway"], &format!("{ASK} ask"));
    assert_ne!(again.code, 0);
    assert!(again.stdout.contains("was already taken for an exchange"), "{}", again.stdout);
    job.assert_exchanges(1);
}

/// Prints everything that a child can read: its environment and files, the processes of its user, and the state.
const LOOK: &str = r#"
    look() {
        env
        for process in /proc/[0-9]*; do cat $process/environ $process/cmdline 2>/dev/null; done | tr '\0' '\n'
        find "$RUNNER_TEMP" /proc/self/fd /proc/$PPID -maxdepth 6 -type f -size -1000k 2>/dev/null \
            | grep -v -e /pagemap -e /kmsg -e /clear_refs -e /bin$ -e 'seen-' | while read -r file; do cat "$file" 2>/dev/null; done
    }
"#;

/// Checks that the output contains no identity token, no access token and no request token of the CI.
fn assert_nothing_seen(job: &Job, seen: &str) {
    assert!(seen.contains("ANTHROPIC_AUTH_TOKEN=wifshare-capability-"), "it has looked: {seen}");
    job.search(seen, "what a child can see");
    for name in ["ACTIONS_ID_TOKEN_REQUEST_TOKEN=", "ANTHROPIC_IDENTITY_TOKEN"] {
        let own = seen.lines().filter(|line| line.starts_with(name));
        assert_eq!(own.count(), 0, "{name}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn gateway_child_finds_no_credential_as_same_or_other_user() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "only root can become somebody else");
        return;
    }
    let as_user = |job: &Job, user: u32, arguments: &[&str]| {
        let user = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
        let user = user.iter().map(String::as_str).collect::<Vec<_>>();
        finish(job.command("setpriv", &[&user[..], arguments].concat()).spawn().unwrap())
    };
    let mut job = Job::new(settings());
    let (directory, wifshare) = (job.path(""), job.path("bin"));
    rustix::fs::chmod(&directory, rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
    std::fs::copy(crate::job::WIFSHARE, &wifshare).unwrap();
    let wifshare = wifshare.to_str().unwrap().to_owned();
    // The same user as wifshare's, and not root, which can read everything.
    let script = format!("{ASK}{LOOK} ask > /dev/null || exit 9; look; exit 0");
    let ended = as_user(&job, 65_533, &[&wifshare, "exec", "--delivery", "gateway", "--", "sh", "-c", &script]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_nothing_seen(&job, &ended.stdout);
    // Another user than wifshare's, with the child's environment.
    let other = "exec setpriv --reuid=65532 --regid=65532 --clear-groups sh -c \"$SCRIPT\"";
    job.set("SCRIPT", &script);
    let state = job.path("state-of-root").to_str().unwrap().to_owned();
    job.set("WIFSHARE_STATE_DIR", &state);
    let ended = job.run(&["exec", "--delivery", "gateway", "--", "sh", "-c", other]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_nothing_seen(&job, &ended.stdout);
    job.assert_exchanges(2);
}

#[test]
fn request_events_contain_no_query_and_no_capability() {
    let job = Job::new(settings());
    let script = format!(
        "{ASK} ask > /dev/null
        curl -s -o /dev/null \"$ANTHROPIC_BASE_URL/v1/models?secret-query\" -H 'x-api-key: wrong'
        for n in $(seq 100); do grep -q '\"status\":401' \"$RUNNER_TEMP\"/wifshare-*/*/events.jsonl && break; sleep 0.1; done
        cat \"$RUNNER_TEMP\"/wifshare-*/*/events.jsonl"
    );
    let ended = job.exec(&["--delivery", "gateway"], &script);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let events: Vec<serde_json::Value> =
        ended.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let served: Vec<_> = events.iter().filter(|event| event["event"] == "request-served").collect();
    assert_eq!(served.len(), 2, "{}", ended.stdout);
    assert_eq!(
        (&served[0]["method"], &served[0]["path"], &served[0]["status"]),
        (&"POST".into(), &"/v1/messages".into(), &200.into())
    );
    assert!(served[0]["bytes_out"].as_u64() > Some(100) && served[0]["ms"].is_u64(), "{}", served[0]);
    assert_eq!(served[1]["status"], 401);
    assert!(
        !ended.stdout.contains("secret-query") && !ended.stdout.contains("wifshare-capability"),
        "{}",
        ended.stdout
    );
}

#[test]
fn last_requests_of_a_run_are_logged_with_their_sender() {
    // The minimum time of a message. The sender is searched for meanwhile.
    let job = Job::new(Settings { message_latency_ms: 100, ..settings() });
    let url = "-o /dev/null \"$ANTHROPIC_BASE_URL/v1/messages\"";
    // One process and one connection. The run ends as soon as it has its responses.
    let script = format!(
        r#"exec curl -s -H "x-api-key: $ANTHROPIC_AUTH_TOKEN" -H "content-type: application/json" \
            -d '{{"model":"m","max_tokens":1,"messages":[]}}' {url} {url} {url}"#
    );
    let ended = job.exec(&["--delivery", "gateway"], &script);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let log = files(&job.state()).into_iter().find(|path| path.ends_with("events.jsonl")).unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    let events: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    let served = of("request-served");
    assert_eq!(served.len(), 3, "{log}");
    let command = &of("child-started")[0]["process"];
    assert!(command.is_u64() && served.iter().all(|event| event["process"] == *command), "{log}");
}
