//! `wifshare status`, and the log that it shares with `wifshare report`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use wifshare_sandbox::Settings;

use crate::job::{Job, eventually, files, finish, settings};

fn status(job: &Job) -> Value {
    let ended = job.run(&["status", "--json"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    serde_json::from_str(&ended.stdout).unwrap()
}

fn log(job: &Job) -> Option<PathBuf> {
    files(&job.state()).into_iter().find(|path| path.ends_with("events.jsonl"))
}

fn events(job: &Job) -> Vec<Value> {
    let text = log(job).map(|path| std::fs::read_to_string(path).unwrap()).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn status_inside_a_run_shows_credential_run_and_callers() {
    let job = Job::new(settings());
    let script = r#""$WIFSHARE" token >/dev/null && "$WIFSHARE" status --json && "$WIFSHARE" status"#;
    let ended = job.exec(&[], script);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let (json, text) = ended.stdout.split_once('\n').unwrap();
    let json: Value = serde_json::from_str(json).unwrap();
    let identity = &json["identities"][0];
    assert_eq!(identity["credential"]["generation"], 1, "{identity:#}");
    assert_eq!(identity["credential"]["freshness"], "fresh");
    assert_eq!(identity["credential"]["renewable"], true);
    assert!((500..=600).contains(&identity["credential"]["remaining_s"].as_u64().unwrap()));
    assert_eq!(identity["source"], "GitHub Actions");
    assert_eq!(identity["runs"][0]["health"], "alive");
    assert_eq!(identity["runs"][0]["command"], "wifshare exec");
    assert_eq!(identity["runs"][0]["delivery"], "profile");
    assert_eq!(identity["numbers"]["exchanges"], 1);
    assert_eq!(identity["last_served"][0]["name"], "wifshare token");
    for words in ["generation 1", "a successor is due in", "wifshare exec, profile", "GitHub Actions"] {
        assert!(text.contains(words), "`{words}` was expected:\n{text}");
    }
    job.assert_exchanges(1);
}

#[test]
fn status_works_without_configuration_and_without_state() {
    let mut job = Job::new(settings());
    assert_eq!(job.exec(&[], "true").code, 0);
    for name in ["ANTHROPIC_FEDERATION_RULE_ID", "ANTHROPIC_ORGANIZATION_ID"] {
        job.unset(name);
    }
    let identity = &status(&job)["identities"][0];
    assert_eq!((&identity["credential"], identity["runs"].as_array().unwrap().len()), (&Value::Null, 0));
    assert_eq!(identity["numbers"]["exchanges"], 1, "what happened is told after the last run has ended");
    let elsewhere = job.path("elsewhere");
    let ended = job.run(&["status", "--state-dir", elsewhere.to_str().unwrap()]);
    assert_eq!(ended.code, 0);
    assert!(ended.stdout.contains("nothing is shared") && ended.stdout.contains("elsewhere"), "{}", ended.stdout);
    assert!(!elsewhere.exists(), "a look makes nothing");
}

#[test]
fn status_shows_the_lock_holder_and_the_refusal() {
    let mut job = Job::new(Settings { exchange_latency_ms: 3000, ..settings() });
    let slow = job.wifshare(&["token"]).spawn().unwrap();
    job.may_keep_credential();
    let pid = slow.id();
    eventually("the lock is told", || {
        status(&job)["identities"][0]["lock"]
            .as_str()
            .is_some_and(|lock| lock.contains(&format!("pid {pid}")) && lock.contains("exchanging since"))
    });
    assert_eq!(finish(slow).code, 0);
    assert_eq!(status(&job)["identities"][0]["lock"], Value::Null);

    let mut refusing = settings();
    refusing.rule.subject_prefix = "repo:somebody/else:*".to_owned();
    let mut job = Job::new(refusing);
    assert_eq!((job.token(&[]).code, job.token(&[]).code), (125, 125));
    let identity = &status(&job)["identities"][0];
    assert_eq!(identity["refusal"]["code"], "exchange-refused", "{identity:#}");
    assert_eq!((&identity["numbers"]["failed"], &identity["numbers"]["refusals_heard"]), (&1.into(), &1.into()));
    assert!(job.run(&["status"]).stdout.contains("refused     could not exchange"));
    let events = events(&job);
    assert!(named(&events, "exchange-failed")[0]["request_id"].as_str().unwrap().starts_with("req_"));
}

#[test]
fn status_reports_a_killed_run_as_gone() {
    let job = Job::new(settings());
    let mut run = job.wifshare(&["exec", "--", "sh", "-c", "echo $$; exec sleep 86398"]);
    let mut run = run.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(status(&job)["identities"][0]["runs"][0]["health"], "alive");
    run.kill().unwrap();
    run.wait().unwrap();
    let pid = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(status(&job)["identities"][0]["runs"][0]["health"], "gone");
    assert!(job.run(&["status"]).stdout.contains("gone without a word"));
    assert_eq!(job.exec(&[], "true").code, 0, "the next run sweeps");
}

#[test]
fn watch_ends_when_its_reader_has_gone() {
    let mut job = Job::new(settings());
    assert_eq!(job.token(&[]).code, 0);
    let script = "{ timeout 60 \"$WIFSHARE\" status --watch --json; echo $? >&2; } | head -c 1";
    let ended = finish(job.command("sh", &["-c", script]).spawn().unwrap());
    assert_eq!(ended.stderr.trim(), "0");
}

#[test]
fn status_watch_prints_each_change_and_ends_on_a_signal() {
    let mut job = Job::new(settings());
    let mut watch = job.wifshare(&["status", "--watch", "--json"]).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["identities"], Value::Array(Vec::new()));
    assert_eq!(job.token(&[]).code, 0);
    let mut last = next();
    while last["identities"][0]["credential"]["generation"] != 1 {
        last = next();
    }
    kill_process(Pid::from_child(&watch), Signal::INT).unwrap();
    assert_eq!(finish(watch).code, 130);
}

/// Runs wifshare on its own terminal (script(1)), and types these keys after its first output.
pub(crate) fn on_a_terminal(job: &Job, arguments: &str, keys: &[u8]) -> (i32, String) {
    let line = format!("stty cols 72; exec \"$WIFSHARE\" {arguments}");
    let mut script = job.command("script", &["-qfec", &line, "/dev/null"]);
    let mut script = script.env("TERM", "xterm").env("SHELL", "/bin/sh").stdin(Stdio::piped()).spawn().unwrap();
    let mut keyboard = script.stdin.take().unwrap();
    let mut reader = BufReader::new(script.stdout.take().unwrap());
    let mut said = Vec::new();
    reader.read_until(b'\n', &mut said).unwrap();
    keyboard.write_all(keys).unwrap();
    std::io::Read::read_to_end(&mut reader, &mut said).unwrap();
    let code = finish(script).code;
    let said = String::from_utf8_lossy(&said).into_owned();
    job.search(&said, "a terminal");
    (code, said)
}

#[test]
fn status_watch_fits_the_terminal_and_quits_on_q() {
    let mut job = Job::new(settings());
    assert_eq!(job.token(&[]).code, 0);
    let (code, said) = on_a_terminal(&job, "status --watch", b"q");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("generation 1") && said.contains("q: quit"), "{said}");
    let frame = said.strip_prefix("\x1b[?1049h\x1b[?25l\x1b[H").unwrap_or_else(|| panic!("{said:?}"));
    assert!(frame.trim_end().ends_with("\x1b[?25h\x1b[?1049l"), "what stood on the terminal is back: {said:?}");
    let (frame, _) = frame.split_once("\x1b[J").unwrap();
    assert!(frame.lines().all(|line| line.replace("\x1b[K", "").trim_end().chars().count() <= 72), "{said}");
}

#[test]
fn status_wraps_lines_and_omits_empty_identities() {
    let mut job = Job::new(settings());
    job.may_keep_credential();
    assert_eq!(job.token(&[]).code, 0);
    std::fs::create_dir(job.state().join("0".repeat(32))).unwrap();
    for columns in [60, 100] {
        job.set("COLUMNS", &columns.to_string());
        let text = job.run(&["status"]).stdout;
        assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
        let whole: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(whole.contains("a successor is due in"), "no word is cut: {text}");
        assert!(!text.contains("identity 0000"), "{text}");
    }
}

#[test]
fn event_log_names_processes_but_no_arguments() {
    let job = Job::new(settings());
    let script = "sleep 1.5 & sleep 0.5; cat \"$ANTHROPIC_CONFIG_DIR/credentials/wifshare.json\" >/dev/null; wait; exit 3; hunter2";
    assert_eq!(job.exec(&[], script).code, 3);
    let path = log(&job).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!std::fs::read_to_string(&path).unwrap().contains("hunter2"));
    let events = events(&job);
    for name in ["run-began", "exchange-sent", "exchange-accepted", "child-started", "child-ended", "run-ended"] {
        assert_eq!(named(&events, name).len(), 1, "{name}: {events:#?}");
    }
    let command = named(&events, "child-started")[0]["process"].clone();
    assert_eq!(named(&events, "child-started")[0]["program"], "sh");
    assert_eq!(named(&events, "child-ended")[0]["code"], 3);
    assert_eq!(named(&events, "run-ended")[0]["credential"], "removed");
    let sleeps = named(&events, "process-seen");
    let sleep = sleeps.iter().find(|event| event["program"] == "sleep").expect("a second and a half is long enough");
    assert_eq!(sleep["parent"], command);
    let opened: u64 = named(&events, "credential-opened").iter().map(|event| event["times"].as_u64().unwrap()).sum();
    assert_eq!(opened, 1, "by cat, and our own reading and writing does not count");
}

#[test]
fn status_of_a_gateway_shows_its_credential_and_requests() {
    let job = Job::new(settings());
    let script = r#"
        ask() { curl -s -o /dev/null "$ANTHROPIC_BASE_URL/v1/models" -H "x-api-key: $1"; }
        ask "$ANTHROPIC_AUTH_TOKEN"; ask wrong
        for n in $(seq 100); do "$WIFSHARE" status | grep -q "2 answered" && break; sleep 0.1; done
        "$WIFSHARE" status"#;
    let ended = job.exec(&["--delivery", "gateway"], script);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let row = |name: &str| ended.stdout.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default();
    assert!(row("credential").contains("in the memory of the gateway, pid "), "{}", ended.stdout);
    assert!(row("credential").contains(", until 2"), "{}", ended.stdout);
    assert!(row("run").contains("wifshare exec, gateway, since "), "{}", ended.stdout);
    assert!(row("requests").contains("2 answered by the gateway, "), "{}", ended.stdout);
    assert!(!row("requests").contains(" 0 of them with an error"), "{}", ended.stdout);
}

#[test]
fn unwritable_event_log_affects_no_command() {
    let mut job = Job::new(settings());
    assert_eq!(job.exec(&[], "true").code, 0);
    let path = log(&job).unwrap();
    let victim = job.path("victim");
    std::fs::write(&victim, "precious").unwrap();
    for put_in_the_way in [
        &|| std::fs::create_dir(&path).unwrap(),
        &|| symlink(&victim, &path).unwrap(),
        &|| std::fs::write(&path, vec![b'\n'; 5 << 20]).unwrap(),
        &|| {
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        },
    ] as [&dyn Fn(); 4]
    {
        make_way(&path);
        put_in_the_way();
        for ended in [job.exec(&[], "exit 4"), job.exec(&["--delivery", "environment"], "exit 4")] {
            assert_eq!(ended.code, 4, "{}", ended.stderr);
            assert!(!ended.stderr.contains("events"), "{}", ended.stderr);
        }
        assert_eq!(job.token(&[]).code, 0);
        assert_eq!(job.run(&["status"]).code, 0);
    }
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

fn make_way(path: &std::path::Path) {
    for path in [path.to_owned(), path.with_file_name("events.before.jsonl")] {
        let _ = std::fs::remove_dir(&path);
        let _ = std::fs::remove_file(&path);
    }
}
