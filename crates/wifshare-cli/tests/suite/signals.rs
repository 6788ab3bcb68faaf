//! Signals: the child receives the same signals as without wifshare, once each, and the clean-up still happens.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::job::{Ended, Job, eventually, finish, settings};

/// Counts the received signals, and ends by itself after a while.
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
fn each_signal_reaches_the_child_once() {
    for (signal, name) in [(Signal::INT, "INT"), (Signal::TERM, "TERM"), (Signal::HUP, "HUP"), (Signal::USR1, "USR1")] {
        let job = Job::new(settings());
        let child = begin(&job, COUNTING);
        send(&child, signal);
        let ended = finish(child);
        assert_eq!((ended.code, ended.stdout.trim()), (0, name), "{}", ended.stderr);
    }
}

#[test]
fn killed_child_sets_the_exit_code_and_leaves_no_files() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let job = Job::new(settings());
        let child = begin(&job, "touch begun; exec sleep 60");
        send(&child, signal);
        assert_eq!(finish(child).code, code);
        assert!(job.files_with_secrets().is_empty());
    }
}

#[test]
fn signal_before_the_command_starts_cleans_up() {
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
fn interrupted_exchange_is_stored_for_the_next_process() {
    let mut job = Job::new(wifshare_sandbox::Settings { exchange_latency_ms: 1500, ..settings() });
    let child = job.wifshare(&["token"]).spawn().unwrap();
    eventually("the exchange is under way", || job.counters().exchanges_received == 1);
    send(&child, Signal::TERM);
    finish(child);
    assert_eq!(job.token(&[]).code, 0);
    job.assert_exchanges(1);
}

/// The commands that make an exchange and have nothing else to do.
const WAITING: [&[&str]; 4] = [
    &["exec", "--", "touch", "begun"],
    &["exec", "--delivery", "environment", "--", "touch", "begun"],
    &["token"],
    &["start", "--watch-pid", "none", "--format", "json"],
];

/// Sends these signals to each command as soon as `is_waiting` is true. Returns the time from the last signal to the
/// end.
fn end_while_waiting(
    arrange: impl Fn(&mut Job) + Sync,
    is_waiting: impl Fn(&Job) -> bool + Sync,
    signals: &[Signal],
) -> Vec<(&'static [&'static str], Ended, Duration)> {
    let run = |command: &'static [&'static str]| {
        let mut job = Job::new(settings());
        arrange(&mut job);
        let child = job.wifshare(command).spawn().unwrap();
        eventually("it waits", || is_waiting(&job));
        let (first, more) = signals.split_first().unwrap();
        send(&child, *first);
        for signal in more {
            std::thread::sleep(Duration::from_millis(500));
            send(&child, *signal);
        }
        let start = Instant::now();
        let ended = finish(child);
        // The test's own identity token.
        job.variable("ANTHROPIC_IDENTITY_TOKEN_FILE").into_iter().for_each(|file| std::fs::remove_file(file).unwrap());
        assert!(!job.path("begun").exists() && job.files_with_secrets().is_empty(), "{command:?}: {}", ended.stderr);
        (command, ended, start.elapsed())
    };
    std::thread::scope(|scope| {
        let runs: Vec<_> = WAITING.into_iter().map(|command| scope.spawn(move || run(command))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

fn never_answer(job: &mut Job) {
    job.sandbox.set_settings(wifshare_sandbox::Settings { exchange_latency_ms: 60_000, ..settings() });
}

fn exchange_is_under_way(job: &Job) -> bool {
    job.counters().exchanges_received == 1
}

#[test]
fn signal_during_an_exchange_waits_up_to_10_s() {
    for file in [false, true] {
        let arrange = |job: &mut Job| {
            never_answer(job);
            if file {
                let token = job.sandbox.issue_identity_token();
                job.use_token_file(&token);
            }
        };
        for (command, ended, took) in end_while_waiting(arrange, exchange_is_under_way, &[Signal::TERM]) {
            assert_eq!(ended.code, 143, "{command:?}: {}", ended.stderr);
            assert!(ended.stderr.contains("waiting up to 10 s for the exchange"), "{command:?}: {}", ended.stderr);
            assert!((9.0..14.0).contains(&took.as_secs_f32()), "{command:?}: {took:?}");
        }
    }
}

#[test]
fn second_signal_during_an_exchange_ends_at_once() {
    for signals in [[Signal::TERM, Signal::TERM], [Signal::INT, Signal::TERM], [Signal::INT, Signal::INT]] {
        for (command, ended, took) in end_while_waiting(never_answer, exchange_is_under_way, &signals) {
            assert!(took < Duration::from_secs(5), "{command:?} {signals:?}: {took:?} {}", ended.stderr);
            assert_ne!(ended.code, 0);
        }
    }
}

#[test]
fn signal_before_the_token_is_sent_ends_at_once() {
    let slow_source = |job: &mut Job| {
        job.sandbox.set_settings(wifshare_sandbox::Settings { identity_token_latency_ms: 60_000, ..settings() });
    };
    // Accepts connections, and never answers the first TLS message.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let silent_endpoint = |job: &mut Job| {
        job.set("ANTHROPIC_BASE_URL", &format!("https://{}", silent.local_addr().unwrap()));
    };
    let a_moment = |_: &Job| {
        std::thread::sleep(Duration::from_millis(700));
        true
    };
    let source = end_while_waiting(slow_source, a_moment, &[Signal::TERM]);
    let endpoint = end_while_waiting(silent_endpoint, a_moment, &[Signal::TERM]);
    for (command, ended, took) in source.into_iter().chain(endpoint) {
        assert_eq!(ended.code, 143, "{command:?}: {}", ended.stderr);
        assert!(took < Duration::from_secs(3), "{command:?}: {took:?} {}", ended.stderr);
        assert!(!ended.stderr.contains("waiting up to"), "{command:?}: {}", ended.stderr);
    }
}

#[test]
fn signal_right_after_start_is_not_lost() {
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
fn terminal_ctrl_c_reaches_the_child_once() {
    // `script` provides a terminal, whose Ctrl-C reaches the whole foreground group.
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
fn ignored_signals_stay_ignored_in_the_child() {
    let job = Job::new(settings());
    let script = r#"trap '' HUP; exec "$WIFSHARE" exec -- sh -c 'touch begun; kill -HUP $$; exit 5'"#;
    let ended: Ended = finish(job.command("sh", &["-c", script]).spawn().unwrap());
    assert_eq!(ended.code, 5, "nohup has to work through us: {}", ended.stderr);
}

#[test]
fn exec_as_process_one_forwards_signals_and_reaps_orphans() {
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
    // The grandchild outlives its parent, is adopted by process 1 and ends. No other process would reap it.
    let script = r#"(sh -c 'sleep 0.1' &) ; sleep 0.6; grep -l 'State:.Z' /proc/[0-9]*/status; exit 6"#;
    let ended = finish(unshare(script).spawn().unwrap());
    assert_eq!((ended.code, ended.stdout.as_str()), (6, ""), "{}", ended.stderr);
    let script = r#"trap 'exit 7' TERM; kill -TERM 1; for i in $(seq 50); do sleep 0.1; done; exit 8"#;
    assert_eq!(finish(unshare(script).spawn().unwrap()).code, 7, "process 1 passes signals on");
}
