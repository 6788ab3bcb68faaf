//! The output of wifshare: little, and in the format that its reader supports.

use serde_json::Value;
use wifshare_sandbox::{Fault, Settings};

use crate::job::{Job, finish, settings};
use crate::status::on_a_terminal;

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no object: {line}"))).collect()
}

fn refusing() -> Settings {
    let mut refusing = settings();
    refusing.rule.subject_prefix = "repo:somebody/else:*".to_owned();
    refusing
}

#[test]
fn success_is_quiet_and_vv_prints_steps_with_timestamps() {
    let job = Job::new(settings());
    assert_eq!(job.exec(&[], "true").stderr, "");
    let once = job.exec(&["-v"], "true").stderr;
    assert!(once.contains("wifshare: exchanging it\n") && !once.contains("connected"), "{once}");
    let twice = job.exec(&["-vv"], "true").stderr;
    let line = twice.lines().find(|line| line.ends_with(" connected to the token endpoint")).expect(&twice);
    let time = line.strip_prefix("wifshare: ").unwrap().split(' ').next().unwrap();
    assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "RFC 3339: {line}");
}

#[test]
fn json_log_format_prints_only_objects() {
    let job = Job::new(refusing());
    let refused = job.exec(&["--log-format", "json", "-v"], "true");
    assert_eq!(refused.code, 125);
    let lines = objects(&refused.stderr);
    let error = lines.last().unwrap();
    assert_eq!((&error["level"], &error["code"]), (&"error".into(), &"exchange-refused".into()), "{error:#}");
    for field in ["time", "message", "hint"] {
        assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {error:#}");
    }
    assert!(error["causes"][0].as_str().unwrap().contains("HTTP 401"), "{error:#}");
    assert!(lines.iter().any(|line| line["level"] == "debug" && line["message"] == "exchanging it"), "{lines:#?}");

    let mut job = Job::new(settings());
    job.set("WIFSHARE_LOG_FORMAT", "json");
    job.set("ANTHROPIC_API_KEY", "x");
    let warned = job.exec(&[], "true");
    assert_eq!(objects(&warned.stderr)[0]["level"], "warning", "{}", warned.stderr);

    // Usage errors too, whichever way the format was requested.
    let mut job = Job::new(settings());
    for wrong in [
        &["exec", "--log-format", "json", "--wat", "--", "true"][..],
        &["--log-format=json", "wat"],
        &["exec", "--delivery", "pigeon", "--log-format=json", "--", "true"],
    ] {
        let ended = job.run(wrong);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
        let [error] = &objects(&ended.stderr)[..] else { panic!("{}", ended.stderr) };
        assert_eq!((&error["level"], &error["code"]), (&"error".into(), &"usage".into()), "{error:#}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains('\'')), "{error:#}");
        assert!(error["hint"].as_str().is_some_and(|text| text.contains("--help")), "{error:#}");
    }
    let as_text = job.run(&["exec", "--wat", "--", "--log-format", "json"]);
    assert!(as_text.code == 2 && as_text.stderr.starts_with("error[usage]: "), "{}", as_text.stderr);
    job.set("WIFSHARE_LOG_FORMAT", "json");
    assert_eq!(objects(&job.run(&["wat"]).stderr)[0]["code"], "usage");
    assert!(job.run(&["--help"]).stdout.contains("Usage:"));

    // A mask is not JSON. With a JSON log, it is written only on request.
    let mut job = Job::new(settings());
    job.set("GITHUB_ACTIONS", "true");
    let ended =
        finish(job.wifshare(&["exec", "--log-format", "json", "--mask", "always", "--", "true"]).spawn().unwrap());
    assert!(ended.stderr.lines().any(|line| line.starts_with("::add-mask::")), "{} bytes", ended.stderr.len());
}

#[test]
fn colour_is_used_on_a_terminal_unless_disabled() {
    let mut job = Job::new(refusing());
    let (code, said) = on_a_terminal(&job, "token", b"");
    assert_eq!(code, 125);
    assert!(said.contains("\x1b[1;31merror[exchange-refused]:\x1b[0m"), "{said}");
    assert!(!job.token(&[]).stderr.contains('\x1b'), "a pipe gets none");
    job.set("NO_COLOR", "1");
    let (_, said) = on_a_terminal(&job, "token", b"");
    assert!(said.contains("error[exchange-refused]: ") && !said.contains("\x1b["), "{said}");
}

#[test]
fn progress_on_a_terminal_is_one_line_and_is_erased() {
    let mut job = Job::new(Settings { exchange_latency_ms: 2600, ..settings() });
    let (code, said) = on_a_terminal(&job, "exec -- true", b"");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("\r\x1b[Kwifshare: exchanging the identity token, since "), "{said:?}");
    assert!(said.ends_with("\r\x1b[K"), "nothing stays: {said:?}");
    assert!(!said.contains('\n'), "{said:?}");

    job.sandbox.set_settings(Settings { exchange_latency_ms: 8000, ..settings() });
    let first = job.wifshare(&["token"]).spawn().unwrap();
    job.may_keep_credential();
    crate::job::eventually("the exchange is under way", || job.counters().exchanges_received == 2);
    let (_, said) = on_a_terminal(&job, "exec -- true", b"");
    assert!(said.contains("\r\x1b[Kwifshare: waiting since "), "{said:?}");
    assert!(said.contains(&format!(" for pid {}, exchanging since", first.id())), "{said:?}");
    assert_eq!(finish(first).code, 0);
}

#[test]
fn wait_is_logged_at_intervals_without_a_terminal() {
    let mut job = Job::new(Settings { exchange_faults: vec![Fault::Stall { ms: 9000 }], ..settings() });
    let first = job.wifshare(&["token"]).spawn().unwrap();
    job.may_keep_credential();
    crate::job::eventually("the exchange is under way", || job.counters().exchanges_received == 1);
    let waited = job.token(&[]);
    assert_eq!(finish(first).code, 0);
    let lines: Vec<_> = waited.stderr.lines().filter(|line| line.contains("waiting since")).collect();
    assert!((1..=3).contains(&lines.len()), "{}", waited.stderr);
    assert!(lines[0].contains("exchanging since"), "{}", waited.stderr);
}
