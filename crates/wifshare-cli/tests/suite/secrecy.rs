//! Secrets are only where they must be: in no argument list, in no environment of wifshare's processes, in no panic,
//! and in nothing that another user can read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use wifshare_sandbox::Settings;

use crate::job::{Job, WIFSHARE, eventually, finish, living, settings};

/// Returns the text of this file for every readable process on the machine.
fn of_every_process(file: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let ours = processes.filter(|path| {
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        is_wanted(name.trim())
    });
    ours.filter_map(|path| std::fs::read(path.join(file)).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

#[test]
fn no_secret_appears_in_an_argument_list() {
    // Slow enough to be observed on a busy machine.
    let mut job = Job::new(Settings { exchange_latency_ms: 500, ..living(6) });
    job.may_keep_credential();
    let token = job.sandbox.issue_identity_token();
    let is_over = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = std::collections::BTreeSet::new();
            while !is_over.load(Ordering::SeqCst) {
                seen.extend(of_every_process("cmdline", |_| true));
                std::thread::sleep(Duration::from_millis(5));
            }
            seen
        });
        for delivery in ["profile", "federation", "environment"] {
            assert_eq!(job.exec(&["--delivery", delivery], r#""$WIFSHARE" token > /dev/null; sleep 1"#).code, 0);
        }
        for format in ["text", "json", "header", "env"] {
            let mut command = job.wifshare(&["token", "--format", format, "--workspace-id", "default"]);
            assert_eq!(finish(command.env("ANTHROPIC_IDENTITY_TOKEN", &token).spawn().unwrap()).code, 0);
        }
        is_over.store(true, Ordering::SeqCst);
        watcher.join().unwrap()
    });
    assert!(seen.iter().any(|line| line.contains("--format")), "the watcher has to see our processes");
    for line in &seen {
        job.search(line, "an argument list");
    }
}

#[test]
fn own_processes_have_no_access_token_in_their_environment() {
    let job = Job::new(settings());
    let child = job.wifshare(&["exec", "--delivery", "environment", "--", "sh", "-c", "touch begun; sleep 1"]).spawn();
    let child = child.unwrap();
    eventually("the command has begun", || job.path("begun").exists());
    let issued: Vec<_> = job.sandbox.secrets().into_iter().filter(|secret| secret.starts_with("sk-ant-")).collect();
    assert_eq!(issued.len(), 1);
    for environment in of_every_process("environ", |name| name == "wifshare") {
        assert!(!environment.contains(&issued[0]));
    }
    assert_eq!(finish(child).code, 0);
}

#[test]
fn other_user_reads_no_state() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "only root can become somebody else");
        return;
    }
    let job = Job::new(settings());
    // The job's directory is readable, like a runner's temporary directory.
    rustix::fs::chmod(job.path(""), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    let child = job.wifshare(&["exec", "--delivery", "federation", "--", "sh", "-c", "touch begun; sleep 3"]).spawn();
    let child = child.unwrap();
    eventually("the command has begun", || job.path("begun").exists());
    let state = job.state();
    let look = format!("find {0}; cat $(find {0} -type f) /proc/{1}/environ", state.display(), child.id());
    let nobody = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &look])
        .output()
        .unwrap();
    let seen = String::from_utf8_lossy(&nobody.stdout).into_owned();
    assert_eq!(seen.trim(), state.to_str().unwrap(), "the directory's name, and nothing in it");
    assert_eq!(finish(child).code, 0);
    // A state directory created by another user is not used.
    let foreign = job.path("planted");
    std::fs::create_dir(&foreign).unwrap();
    std::os::unix::fs::chown(&foreign, Some(65_534), Some(65_534)).unwrap();
    let ended = job.exec(&["--state-dir", foreign.to_str().unwrap()], "true");
    assert!(ended.stderr.contains("error[state-foreign]"), "{}", ended.stderr);
}

/// Returns whether the user is root. Only root can become another user.
#[cfg(target_os = "linux")]
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var_os("CI").is_none(), "only root can become somebody else");
    is_root
}

#[cfg(target_os = "linux")]
#[test]
fn supervisor_is_unreadable_for_its_user_and_changes_no_child() {
    if !is_root() {
        return;
    }
    const NOBODY: u32 = 65_534;
    let as_nobody = |job: &Job, arguments: &[&str]| {
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        job.command("setpriv", &[&nobody[..], arguments].concat())
    };
    let job = Job::new(settings());
    let (directory, wifshare) = (job.path(""), job.path("bin"));
    rustix::fs::chmod(&directory, rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
    // The build directory may be closed to other users.
    std::fs::copy(WIFSHARE, &wifshare).unwrap();
    let wifshare = wifshare.to_str().unwrap();
    // Without and with wifshare: what another process of the user can read, and the core file limit.
    let script = "ulimit -Sc; stat -c %u /proc/$$/environ; touch begun; while ! [ -e over ]; do sleep 0.05; done";
    let limited = |command: &str| format!("ulimit -Sc 7; exec {command}");
    let supervised = limited(&format!("{wifshare} exec -- sh -c '{script}'"));
    let child = as_nobody(&job, &["sh", "-c", &supervised]).spawn().unwrap();
    eventually("the command has begun", || job.path("begun").exists());
    let look = format!(
        "cat /proc/{0}/environ; head -c 1 /proc/{0}/mem; ls /proc/{0}/fd; readlink /proc/{0}/exe; cat /proc/{0}/stat",
        child.id()
    );
    let seen = finish(as_nobody(&job, &["sh", "-c", &look]).spawn().unwrap());
    assert_eq!(seen.stdout.lines().count(), 1, "nothing but the line that everybody may read: {}", seen.stdout);
    assert!(seen.stdout.starts_with(&child.id().to_string()), "the start time is found by others: {}", seen.stdout);
    // A sweep recognises the living run by that line, and keeps its files.
    let ended = finish(as_nobody(&job, &[wifshare, "exec", "--", "true"]).spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    std::fs::File::create(job.path("over")).unwrap();
    let ended = finish(child);
    assert_eq!((ended.code, ended.stdout), (0, format!("7\n{NOBODY}\n")), "{}", ended.stderr);
    job.assert_exchanges(1);
}

#[cfg(target_os = "linux")]
#[test]
fn crash_writes_no_core_file_but_a_child_crash_does() {
    let mut job = Job::new(Settings { exchange_latency_ms: 3000, ..settings() });
    job.may_keep_credential();
    let crash = |mut command: Command| {
        let child = command.spawn().unwrap();
        eventually("an identity token was issued", || job.counters().exchanges_received > 0);
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::ABORT)
            .unwrap();
        child.wait_with_output().unwrap().status
    };
    let status = crash(job.command("sh", &["-c", r#"ulimit -Sc "$(ulimit -Hc)"; exec "$WIFSHARE" token"#]));
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
    let without_us = job.command("sh", &["-c", r#"ulimit -Sc "$(ulimit -Hc)"; kill -ABRT $$"#]).status().unwrap();
    let script = r#"ulimit -Sc "$(ulimit -Hc)"; "$WIFSHARE" exec -- sh -c 'kill -ABRT $$'; ls | grep -c '^core'"#;
    let under_us = finish(job.command("sh", &["-c", script]).spawn().unwrap());
    let is_written_here = Path::new("/proc/sys/kernel/core_pattern");
    let is_written_here = std::fs::read_to_string(is_written_here).unwrap().trim() == "core";
    if is_written_here && without_us.core_dumped() {
        assert_ne!(under_us.stdout.trim(), "0", "{}", under_us.stderr);
    }
    for core in crate::job::files(&job.path("")) {
        if core.file_name().is_some_and(|name| name.to_string_lossy().starts_with("core")) {
            let memory = std::fs::read(&core).unwrap();
            job.search(&String::from_utf8_lossy(&memory), "the core file of a child that was given no secret");
        }
    }
}
