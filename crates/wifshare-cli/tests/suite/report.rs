//! `wifshare report`, and the HTML page in a browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use wifshare_sandbox::{Fault, Settings};

use crate::clients::{installed, node};
use crate::job::{Ended, Job, finish, settings};

/// A job with several processes, one of them with a malicious name.
const JOB: &str = r#"
    evil=$PWD/'<img src=x onerror=alert(1)> ::'; cp "$(command -v sleep)" "$evil"
    open() { cat "$ANTHROPIC_CONFIG_DIR/credentials/wifshare.json" >/dev/null; }
    "$evil" 1.2 & (sleep 0.4; open; sleep 0.6; open) & (sleep 1.1; "$WIFSHARE" token >/dev/null) &
    wait; exit 3
"#;

fn job() -> Job {
    let job = Job::new(Settings { exchange_latency_ms: 400, ..settings() });
    assert_eq!(job.exec(&[], JOB).code, 3);
    job
}

fn report(job: &Job, arguments: &[&str]) -> String {
    let Ended { code, stdout, stderr } = job.run(&[&["report"], arguments].concat());
    assert_eq!((code, stderr.as_str()), (0, ""));
    stdout
}

#[test]
fn report_numbers_match_the_job() {
    let job = job();
    let story: Value = serde_json::from_str(&report(&job, &["--format", "json"])).unwrap();
    let numbers = &story["numbers"];
    for (name, number) in [("exchanges", 1), ("accepted", 1), ("failed", 0), ("opened", 2), ("refusals_heard", 0)] {
        assert_eq!(numbers[name], number, "{name}: {story:#}");
    }
    // The caller, and two that could have opened the credential.
    assert_eq!((&numbers["exchanges_without"], &numbers["refusals_avoided"]), (&3.into(), &2.into()), "{story:#}");
    let identity = &story["identities"][0];
    assert_eq!(identity["exchanges"][0]["outcome"], "accepted");
    let process = |role: &str| {
        let processes = identity["processes"].as_array().unwrap();
        processes.iter().find(|process| process["role"] == role).unwrap_or_else(|| panic!("{role}: {identity:#}"))
    };
    assert_eq!((&process("run")["name"], &process("run")["delivery"]), (&"wifshare exec".into(), &"profile".into()));
    assert_eq!((&process("command")["name"], &process("command")["exit_code"]), (&"sh".into(), &3.into()));
    assert_eq!(process("command")["parent"], process("run")["pid"]);
    assert_eq!(process("caller")["name"], "wifshare token");
    assert!(identity["processes"].as_array().unwrap().len() >= 5, "{identity:#}");
}

#[test]
fn report_includes_the_longest_wait() {
    let mut job = Job::new(Settings { exchange_latency_ms: 1500, ..settings() });
    job.may_keep_credential();
    let children: Vec<_> = (0..4).map(|_| job.wifshare(&["token"]).spawn().unwrap()).collect();
    assert!(children.into_iter().map(finish).all(|ended| ended.code == 0));
    let story: Value = serde_json::from_str(&report(&job, &["--format", "json"])).unwrap();
    let numbers = &story["numbers"];
    assert_eq!((&numbers["exchanges"], &numbers["exchanges_without"]), (&1.into(), &4.into()), "{story:#}");
    assert!((500..60_000).contains(&numbers["longest_wait_ms"].as_u64().unwrap()), "{numbers:#}");
}

#[test]
fn refusal_is_in_every_report_format_with_its_request_id() {
    let mut refusing = settings();
    refusing.rule.subject_prefix = "repo:somebody/else:*".to_owned();
    let mut job = Job::new(refusing);
    assert_eq!((job.token(&[]).code, job.token(&[]).code), (125, 125));
    for format in ["md", "html", "json"] {
        let text = report(&job, &["--format", format]);
        let request = if format == "md" { "req&#95;" } else { "req_" };
        assert!(text.contains("exchange-refused") && text.contains(request), "{format}: {text}");
    }
    let lost = Fault::DropAfterCommit;
    let mut job = Job::new(Settings { exchange_faults: vec![lost], ..settings() });
    assert_eq!(job.token(&[]).code, 0);
    let story: Value = serde_json::from_str(&report(&job, &["--format", "json"])).unwrap();
    assert_eq!(story["identities"][0]["exchanges"][0]["code"], "answer-lost", "{story:#}");
    assert_eq!(story["identities"][0]["exchanges"][1]["outcome"], "accepted", "{story:#}");
}

#[test]
fn report_without_events_is_an_error() {
    let job = Job::new(settings());
    let ended = job.run(&["report"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (125, ""));
    assert!(ended.stderr.contains("error[nothing-to-report]") && ended.stderr.contains("hint:"), "{}", ended.stderr);
    assert!(!job.state().exists());
}

#[test]
fn github_summary_is_written_unless_disabled() {
    let mut job = Job::new(settings());
    let summary = job.path("summary.md");
    let read = || std::fs::read_to_string(&summary).unwrap_or_default();
    job.set("GITHUB_STEP_SUMMARY", summary.to_str().unwrap());
    let quiet = job.exec(&[], "exit 5");
    assert_eq!((quiet.code, quiet.stderr.as_str()), (5, ""));
    let first = read();
    assert!(first.contains("### wifshare\n") && first.contains("```mermaid\ngantt\n"), "{first}");
    job.search(&first, "the summary");
    // Only the outer run reports an inner run.
    assert_eq!(job.exec(&[], "\"$WIFSHARE\" exec -- true").code, 0);
    let second = read();
    assert_eq!(second.matches("### wifshare\n").count(), 2, "{second}");
    assert_eq!(second.matches(". exchange, ").count(), 2, "each tells its own exchange:\n{second}");
    let claude = job.run(&["claude", "--claude", "true", "--", "-p", "x"]);
    assert_eq!((claude.code, read().matches("### wifshare\n").count()), (0, 3), "{}", claude.stderr);
    job.set("WIFSHARE_SUMMARY", "off");
    assert_eq!(job.exec(&[], "true").code, 0);
    assert_eq!(read().matches("### wifshare\n").count(), 3);
    job.unset("WIFSHARE_SUMMARY");
    job.set("GITHUB_STEP_SUMMARY", "/nonexistent/summary.md");
    let ended = job.exec(&[], "exit 6");
    assert_eq!((ended.code, ended.stderr.as_str()), (6, ""));
}

#[test]
fn stop_summarizes_the_job_since_start() {
    let mut job = Job::new(settings());
    let summary = job.path("summary.md");
    job.set("GITHUB_STEP_SUMMARY", summary.to_str().unwrap());
    let started = job.run(&["start", "--format", "json"]);
    assert_eq!(started.code, 0, "{}", started.stderr);
    assert!(!summary.exists(), "there is nothing to tell yet");
    assert_eq!(job.token(&[]).code, 0);
    assert_eq!(job.run(&["stop"]).code, 0);
    let text = std::fs::read_to_string(&summary).unwrap();
    assert!(text.contains("### wifshare\n") && text.contains("wifshare start"), "{text}");
    assert_eq!(text.matches(". exchange, ").count(), 1, "{text}");
    job.search(&text, "the summary");
    assert!(text.contains("1 exchange for all steps of the job, and none of them failed."), "{text}");
    assert!(!text.contains("avoided") && !text.contains("shared what"), "later steps are not watched: {text}");
}

#[test]
fn report_names_the_steps_of_claude() {
    let mut job = Job::new(settings());
    std::fs::create_dir(job.path("market-of-somebody")).unwrap();
    let arguments = [
        "claude",
        "--claude",
        "true",
        "--marketplace",
        "./market-of-somebody",
        "--plugin",
        "lint@ours",
        "--",
        "-p",
        "x",
    ];
    job.unset("GITHUB_STEP_SUMMARY");
    let ended = job.run(&arguments);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let text = report(&job, &["--format", "text"]);
    for name in ["  marketplace ", "  install lint@ours ", "  query "] {
        assert!(text.contains(name), "{name}: {text}");
    }
    assert!(!text.contains("market-of-somebody"), "{text}");
}

#[test]
fn report_is_text_on_a_terminal_and_markdown_elsewhere() {
    let mut job = job();
    assert!(report(&job, &[]).starts_with("### wifshare\n"), "piped");
    job.unset("CI");
    job.unset("GITHUB_ACTIONS");
    let (code, said) = crate::status::on_a_terminal(&job, "report", b"");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains('█') && !said.contains("mermaid"), "{said}");
    job.set("GITHUB_ACTIONS", "true");
    let (_, said) = crate::status::on_a_terminal(&job, "report", b"");
    assert!(said.contains("mermaid"), "a job's log: {said}");
}

/// Returns the script that opens a page in Chromium, and Chromium, or `None`, with a message, if they are not
/// installed.
fn browser() -> Option<(PathBuf, PathBuf)> {
    let bin = installed(&["chromium", "../browser/look.mjs"])?;
    Some((bin.join("../browser/look.mjs"), bin.join("chromium")))
}

#[test]
fn html_report_is_valid_and_accessible_in_a_browser() {
    let Some((look, chromium)) = browser() else { return };
    let job = job();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/report");
    std::fs::create_dir_all(&directory).unwrap();
    let (page, picture) = (directory.join("report.html"), directory.join("report"));
    std::fs::write(&page, report(&job, &["--format", "html"])).unwrap();
    let looked = Command::new(node()).arg(look).arg(&page).arg(&picture).env("CHROMIUM", chromium).output().unwrap();
    let said = String::from_utf8_lossy(&looked.stderr);
    assert!(looked.status.success(), "{said}");
    let seen: Value = serde_json::from_slice(&looked.stdout).unwrap();
    let nothing = Value::Array(Vec::new());
    for scheme in ["light", "dark"] {
        let seen = &seen[scheme];
        assert!(seen["title"].as_str().unwrap().starts_with("wifshare report"), "{seen:#}");
        assert_eq!(seen["said"], nothing, "the console is silent");
        assert_eq!(seen["fetched"], nothing, "nothing is asked for");
        assert_eq!(seen["violations"], nothing, "accessibility, {scheme}");
        assert_eq!(seen["contrast"], true, "the contrast was looked at");
        assert!(seen["picture"]["texts"].as_f64().unwrap() >= 4.5, "{}", seen["picture"]);
        assert!(seen["picture"]["bars"].as_f64().unwrap() >= 3.0, "{}", seen["picture"]);
        assert_eq!(seen["landmarks"], serde_json::json!([1, 1, 1, 1]), "header, nav, main, footer");
        assert_eq!((&seen["first"], &seen["skipped_to"]), (&"Skip to the report".into(), &"report".into()));
        let stops = seen["stops"].as_array().unwrap();
        assert!(
            stops.len() >= 3 && stops.iter().all(|stop| !stop.as_str().unwrap().starts_with("a none")),
            "{stops:?}"
        );
        assert_eq!(seen["overflows"], false, "a narrow window needs no scrolling sideways");
        let screenshot = directory.join(format!("report-{scheme}.png"));
        assert!(std::fs::metadata(screenshot).unwrap().len() > 10_000);
    }
}
