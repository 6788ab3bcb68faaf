//! Applies every hint that an error prints and checks that the command then works: a table over the error catalogue.
//!
//! A command in backticks is run unchanged. An instruction for a person ("set NAME") is carried out. A code without a
//! row fails the test. A row that no test can cause or fix states the reason.

use std::collections::BTreeSet;

use crate::job::{Ended, Job, finish, settings};

mod table;

use table::{findings, rows};

/// One error and its fix.
struct Row {
    code: &'static str,
    case: Case,
}

enum Case {
    /// The test applies the fix.
    Cured(Cured),
    /// The fix is an action in the Claude Console, or no test can cause the error.
    Elsewhere(&'static str),
}

struct Cured {
    arrange: fn(&mut Job),
    /// A shell script that fails with the error.
    script: &'static str,
    /// The part of the hint that is applied.
    hint: &'static str,
    cure: Cure,
    /// A shell script that succeeds afterwards.
    then: &'static str,
}

enum Cure {
    /// Changes the job as the hint says.
    Job(fn(&mut Job)),
    /// Runs the commands in backticks that begin like this, with `true` for COMMAND.
    Backticks(&'static str),
    /// The second script follows the hint.
    Script,
}

fn sh(job: &Job, script: &str) -> Ended {
    finish(job.command("sh", &["-c", script]).spawn().unwrap())
}

/// Returns the parts of a text in backticks that begin like this.
fn in_backticks<'a>(text: &'a str, beginning: &str) -> Vec<&'a str> {
    text.split('`').skip(1).step_by(2).filter(|words| words.starts_with(beginning)).collect()
}

fn carry_out(row: &Row, case: &Cured) {
    let code = row.code;
    if code == "state-foreign" && !rustix::process::geteuid().is_root() {
        return;
    }
    let (mut job, failed) = bring_about(case);
    let beginning = format!("error[{code}]");
    assert!(failed.code != 0 && failed.stderr.contains(&beginning), "{code}: {} {}", failed.code, failed.stderr);
    let said = failed.stderr.split(&beginning).last().unwrap();
    cure(code, case, &mut job, said, "hint:");
}

/// Applies the fix of a finding of `doctor`. Afterwards the job would work.
fn carry_out_what_doctor_says(finding: &str, case: &Cured) {
    let (mut job, failed) = bring_about(case);
    let failures: Vec<&str> = failed.stdout.split("\nFAILED").skip(1).collect();
    assert_eq!((failed.code, failures.len()), (1, 1), "{finding}: {}", failed.stdout);
    cure(finding, case, &mut job, failures[0], "cure:");
}

fn bring_about(case: &Cured) -> (Job, Ended) {
    let mut job = Job::new(settings());
    job.may_keep_credential();
    let bin = job.path("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(crate::job::WIFSHARE, bin.join("wifshare")).unwrap();
    job.set("PATH", &format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display()));
    // The runner sets these for each step.
    let (url, bearer) = (job.sandbox.identity_token_request_url(), job.sandbox.identity_token_request_token());
    job.set("URL", &url);
    job.set("BEARER", &bearer);
    (case.arrange)(&mut job);
    let failed = sh(&job, case.script);
    (job, failed)
}

fn cure(name: &str, case: &Cured, job: &mut Job, said: &str, label: &str) {
    assert!(said.contains(case.hint), "{name}: the hint has no `{}`: {said}", case.hint);
    match &case.cure {
        Cure::Job(change) => change(job),
        Cure::Script => {}
        Cure::Backticks(beginning) => {
            let hint = said.split(label).nth(1).unwrap();
            let commands = in_backticks(hint, beginning);
            assert!(!commands.is_empty(), "{name}: {hint}");
            for command in commands {
                let done = sh(job, &command.replace("COMMAND", "true"));
                assert_eq!(done.code, 0, "{name}: the cure `{command}` fails: {}", done.stderr);
            }
        }
    }
    let well = sh(job, case.then);
    assert_eq!(well.code, 0, "{name}: after the cure: {} {}", well.stdout, well.stderr);
    finish(job.wifshare(&["stop", "--all"]).spawn().unwrap());
    // The tokens in the job's own files.
    for left in job.files_with_secrets() {
        std::fs::remove_file(left).unwrap();
    }
}

#[test]
fn every_fix_printed_by_doctor_works() {
    for row in findings() {
        if let Case::Cured(case) = &row.case {
            carry_out_what_doctor_says(row.code, case);
        }
    }
}

#[test]
fn every_hint_printed_by_an_error_works() {
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
fn every_error_code_has_a_fix_test() {
    let listed = Job::new(settings()).run(&["explain"]).stdout;
    let codes: BTreeSet<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    let rows = rows();
    let with_rows: BTreeSet<&str> = rows.iter().map(|row| row.code).collect();
    assert_eq!(codes, with_rows, "a code and no row, or a row and no code");
    let says_why = |row: &&Row| matches!(row.case, Case::Elsewhere(why) if why.is_empty());
    assert_eq!(rows.iter().filter(says_why).count(), 0);
}

#[test]
fn every_command_in_explain_is_valid() {
    let job = Job::new(settings());
    let page = job.run(&["explain", "--markdown"]).stdout;
    let commands: BTreeSet<&str> = in_backticks(&page, "wifshare ").into_iter().collect();
    assert!(commands.len() > 8, "{commands:?}");
    std::fs::write(job.path("rule.json"), serde_json::to_vec(&job.sandbox.settings().rule).unwrap()).unwrap();
    for command in commands {
        let words =
            command.replace("COMMAND --help", "exec --help").replace("COMMAND", "true").replace("CODE", "usage");
        // A command without arguments is only mentioned and not called.
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
