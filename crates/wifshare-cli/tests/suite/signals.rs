//! Signals: the child gets what it would have got without us, once, and clean-up happens all the same.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process};

use crate::job::{Ended, Job, eventually, finish, settings};

/// Counts what it gets, and ends by itself after a while.
const COUNTING: &str = r#"
    trap 'echo INT' INT; trap 'echo TERM' TERM; trap 'echo HUP' HUP; trap 'echo USR1' USR1
    touch begun; for i in $(seq 30); do sleep 0.1; done"#;

fn begin(job: &Job, script: &str) -> Child {
    let child = job.wifshare(&["exec", "--", "sh", "-c", script]).process_group(0).spawn().unwrap();
    eventually("the command has begun", || job.path("begun").exists());
    child
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn each_signal_sent_to_us_reaches_the_child_once() {
    for (signal, name) in [(Signal::INT, "INT"), (Signal::TERM, "TERM"), (Signal::HUP, "HUP"), (Signal::USR1, "USR1")] {
        let job = Job::new(settings());
        let child = begin(&job, COUNTING);
        send(&child, signal);
        let ended = finish(child);
        assert_eq!((ended.code, ended.stdout.trim()), (0, name), "{}", ended.stderr);
    }
}

#[test]
fn a_child_that_dies_of_the_signal_is_told_as_that_and_nothing_is_left() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let job = Job::new(settings());
        let child = begin(&job, "touch begun; exec sleep 60");
        send(&child, signal);
        assert_eq!(finish(child).code, code);
        assert!(job.files_with_secrets().is_empty());
    }
}

#[test]
fn an_end_before_the_command_started_keeps_what_was_bought_for_others_and_cleans_up() {
    let job = Job::new(wifshare_sandbox::Settings { exchange_latency_ms: 1500, ..settings() });
    let child = job.wifshare(&["exec", "--", "touch", "begun"]).spawn().unwrap();
    eventually("the exchange is under way", || job.counters().exchanges_received == 1);
    send(&child, Signal::TERM);
    let ended = finish(child);
    assert_eq!(ended.code, 143, "{}", ended.stderr);
    assert!(!job.path("begun").exists());
    assert!(job.files_with_secrets().is_empty());
}

#[test]
fn a_token_interrupted_in_its_exchange_is_bought_once_all_the_same() {
    let mut job = Job::new(wifshare_sandbox::Settings { exchange_latency_ms: 1500, ..settings() });
    let child = job.wifshare(&["token"]).spawn().unwrap();
    eventually("the exchange is under way", || job.counters().exchanges_received == 1);
    send(&child, Signal::TERM);
    finish(child);
    assert_eq!(job.token(&[]).code, 0);
    job.assert_exchanges(1);
}

#[test]
fn a_signal_right_after_the_start_is_not_lost() {
    let mut job = Job::new(settings());
    job.token(&[]);
    for _ in 0..40 {
        let child = job.wifshare(&["exec", "--", "sleep", "20"]).spawn().unwrap();
        let has_a_child = |child: &Child| {
            let children = format!("/proc/{0}/task/{0}/children", child.id());
            std::fs::read_to_string(children).is_ok_and(|children| !children.trim().is_empty())
        };
        eventually("there is a child", || has_a_child(&child));
        send(&child, Signal::TERM);
        assert_eq!(finish(child).code, 143);
    }
}

#[test]
fn a_terminal_sends_ctrl_c_once() {
    // `script` gives us a terminal, and the terminal's own Ctrl-C reaches the whole foreground group.
    let mut job = Job::new(settings());
    if Command::new("script").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "`script` of util-linux is missing");
        return;
    }
    job.set("SHELL", "/bin/sh");
    let counting = job.path("counting.sh");
    std::fs::write(&counting, COUNTING.replace("echo INT", "echo INT >> heard")).unwrap();
    let line = r#"stty isig; "$WIFSHARE" exec -- sh counting.sh"#;
    let mut child = job
        .command("script", &["--quiet", "--return", "--command", line, "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the command has begun", || job.path("begun").exists());
    let mut keyboard = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut keyboard, b"\x03").unwrap();
    eventually("Ctrl-C was heard", || job.path("heard").exists());
    finish(child);
    drop(keyboard);
    assert_eq!(std::fs::read_to_string(job.path("heard")).unwrap(), "INT\n");
}

#[test]
fn what_was_ignored_before_us_stays_ignored() {
    let job = Job::new(settings());
    let script = r#"trap '' HUP; exec "$WIFSHARE" exec -- sh -c 'touch begun; kill -HUP $$; exit 5'"#;
    let ended: Ended = finish(job.command("sh", &["-c", script]).spawn().unwrap());
    assert_eq!(ended.code, 5, "nohup has to work through us: {}", ended.stderr);
}

#[test]
fn as_process_one_signals_work_and_orphans_are_buried() {
    let job = Job::new(settings());
    let as_process_one = |command: &[&str]| {
        let arguments = ["--pid", "--fork", "--mount-proc", "--kill-child"];
        job.command("unshare", &[&arguments, command].concat())
    };
    let unshare = |script| as_process_one(&[crate::job::WIFSHARE, "exec", "--", "sh", "-c", script]);
    if !as_process_one(&["true"]).status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none() || !rustix::process::geteuid().is_root(), "root can unshare");
        return;
    }
    // The grandchild outlives its parent, falls to process 1 and ends; nobody else would bury it.
    let script = r#"(sh -c 'sleep 0.1' &) ; sleep 0.6; grep -l 'State:.Z' /proc/[0-9]*/status; exit 6"#;
    let ended = finish(unshare(script).spawn().unwrap());
    assert_eq!((ended.code, ended.stdout.as_str()), (6, ""), "{}", ended.stderr);
    let script = r#"trap 'exit 7' TERM; kill -TERM 1; for i in $(seq 50); do sleep 0.1; done; exit 8"#;
    assert_eq!(finish(unshare(script).spawn().unwrap()).code, 7, "process 1 passes signals on");
}
