//! File system failures: full, broken, read-only, removed. Each command succeeds or ends with a clear error and a hint.
//! No identity token is ever sent twice, and no credential obtained by `token` is lost.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use wifshare_sandbox::Settings;

use crate::job::{Ended, Job, eventually, finish, living, settings};

const ASK: &str = r#""$WIFSHARE" demo --child shared"#;

/// A small file system in memory, mounted over the state directory. It is unmounted when dropped.
struct Small {
    at: PathBuf,
}

impl Small {
    /// Returns `None` if mounting is not possible. Under CI as root that is a failure.
    fn mount(job: &Job, size: &str) -> Option<Small> {
        let at = job.state();
        std::fs::create_dir(&at).unwrap();
        let small = Small { at };
        let options = format!("size={size},mode=0700");
        if small.command("mount", &["-t", "tmpfs", "-o", &options, "none"]) {
            return Some(small);
        }
        let is_root = rustix::process::geteuid().is_root();
        assert!(!is_root || std::env::var_os("CI").is_none(), "root can mount");
        std::fs::remove_dir(&small.at).unwrap();
        std::mem::forget(small);
        None
    }

    fn command(&self, program: &str, arguments: &[&str]) -> bool {
        Command::new(program).args(arguments).arg(&self.at).output().unwrap().status.success()
    }

    /// Fills the file system so that this much space is left.
    fn leave(&self, bytes: usize) {
        let filler = self.at.join("filler");
        std::fs::write(&filler, "").unwrap();
        let room = rustix::fs::statvfs(&self.at).unwrap();
        let fill = (room.f_bavail * room.f_frsize) as usize - bytes;
        std::fs::write(&filler, vec![0; fill]).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        assert!(self.command("umount", &["-l"]));
        std::fs::remove_dir(&self.at).unwrap();
    }
}

/// Checks that the command succeeded or printed a clear error.
fn assert_served_or_told(ended: &Ended, what: &str) {
    if ended.code == 0 {
        return;
    }
    assert_eq!(ended.code, 125, "{what}: {}", ended.stderr);
    assert!(ended.stderr.contains("error[") && ended.stderr.contains("hint: "), "{what}: {}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{what}: {}", ended.stderr);
}

/// Checks that a `token` that caused an exchange printed its credential.
fn assert_nothing_bought_in_vain(job: &Job, ended: &Ended, what: &str) {
    assert_served_or_told(ended, what);
    let is_served = ended.code == 0 && ended.stdout.starts_with("sk-ant-oat01-");
    assert_eq!(is_served, job.counters().exchanges_accepted == 1, "{what}: {}", ended.stderr);
    job.assert_nothing_sent_twice();
}

#[test]
fn full_disk_loses_no_credential() {
    for pages in 0..=12 {
        let what = format!("{pages} pages");
        let mut job = Job::new(settings());
        let Some(small) = Small::mount(&job, "128k") else { return };
        small.leave(pages * 4096);
        let ended = job.token(&[]);
        assert_nothing_bought_in_vain(&job, &ended, &what);
        if ended.code != 0 {
            assert!(ended.stderr.contains("free some space"), "{what}: {}", ended.stderr);
        }
    }
}

#[test]
fn exec_on_a_full_disk_exchanges_nothing_it_cannot_deliver() {
    let mut served = 0;
    for pages in 0..=16 {
        let what = format!("{pages} pages");
        let job = Job::new(settings());
        let Some(small) = Small::mount(&job, "128k") else { return };
        small.leave(pages * 4096);
        let ended = job.exec(&[], ASK);
        assert_served_or_told(&ended, &what);
        served += u32::from(ended.code == 0);
        assert_eq!(job.counters().exchanges_accepted, u64::from(ended.code == 0), "{what}: {}", ended.stderr);
        job.assert_nothing_sent_twice();
        assert!(job.files_with_secrets().is_empty());
    }
    assert!(served > 0, "with enough room it works");
}

#[test]
fn disk_filling_up_during_a_run_causes_no_failure() {
    let job = Job::new(living(30));
    let Some(small) = Small::mount(&job, "256k") else { return };
    // A renewal is due after 12 s. The credential is valid for more than ten seconds longer, and space is freed by
    // then.
    let script = format!("touch begun; for i in $(seq 38); do {ASK} || exit 9; sleep 0.5; done");
    let child = job.wifshare(&["exec", "--", "sh", "-c", &script]).spawn().unwrap();
    eventually("the command has begun", || job.path("begun").exists());
    small.leave(0);
    std::thread::sleep(std::time::Duration::from_secs(17));
    std::fs::remove_file(small.at.join("filler")).unwrap();
    let ended = finish(child);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("could not be renewed"), "{}", ended.stderr);
    assert_eq!(job.counters().messages_refused, 0);
    job.assert_exchanges(2);
}

#[test]
fn read_only_disk_is_reported_and_its_credential_is_served() {
    let mut job = Job::new(settings());
    let Some(small) = Small::mount(&job, "128k") else { return };
    assert!(small.command("mount", &["-o", "remount,ro"]));
    for ended in [job.token(&[]), job.exec(&[], "true")] {
        assert_served_or_told(&ended, "read-only");
        assert!(ended.stderr.contains("that file system is read-only"), "{}", ended.stderr);
    }
    assert_eq!(job.counters().identity_tokens_issued, 0, "nothing is asked for where nothing can be kept");
    assert!(small.command("mount", &["-o", "remount,rw"]));
    let token = job.token(&[]);
    assert!(small.command("mount", &["-o", "remount,ro"]));
    assert_eq!(job.token(&[]).stdout, token.stdout);
    job.assert_exchanges(1);
}

/// Runs wifshare under strace, which makes the n-th call of a system call fail. Returns `None` if strace is missing.
fn injected(job: &Job, fault: &str, arguments: &[&str]) -> Option<Ended> {
    if Command::new("strace").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "strace is missing");
        return None;
    }
    let calls = fault.split(':').next().unwrap_or_default();
    let (trace, inject) = (format!("trace={calls}"), format!("inject={fault}"));
    let strace = ["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    Some(finish(job.command("strace", &[&strace[..], &[crate::job::WIFSHARE], arguments].concat()).spawn().unwrap()))
}

#[test]
fn failing_fsync_loses_no_credential() {
    for error in ["EIO", "ENOSPC", "EINTR"] {
        for time in 1..=5 {
            let what = format!("{error}, sync number {time}");
            let mut job = Job::new(settings());
            job.may_keep_credential();
            let Some(ended) = injected(&job, &format!("fsync:error={error}:when={time}"), &["token"]) else { return };
            assert_nothing_bought_in_vain(&job, &ended, &what);
            if error == "EINTR" {
                assert_eq!(ended.code, 0, "{what}: {}", ended.stderr);
            }
            let job = Job::new(settings());
            let fault = format!("fsync:error={error}:when={time}");
            let ended = injected(&job, &fault, &["exec", "--", "true"]).unwrap();
            assert_served_or_told(&ended, &what);
            job.assert_nothing_sent_twice();
            assert!(job.files_with_secrets().is_empty(), "{what}");
        }
    }
}

#[test]
fn interrupted_system_call_is_retried() {
    // Every n-th call fails, after those of the program's loader. `write` is not included: it also wakes the I/O driver
    // through a non-blocking descriptor, which no system interrupts and tokio does not expect.
    for call in ["openat", "read", "fsync", "sendto", "recvfrom", "epoll_wait"] {
        let first = if matches!(call, "openat" | "read") { "12+7" } else { "1+3" };
        let mut job = Job::new(settings());
        let Some(ended) = injected(&job, &format!("{call}:error=EINTR:when={first}"), &["token"]) else { return };
        job.may_keep_credential();
        assert_eq!(ended.code, 0, "{call}: {}", ended.stderr);
        job.assert_exchanges(1);
    }
}

#[test]
fn descriptor_limit_loses_no_credential() {
    let mut served = 0;
    for limit in 4..=20 {
        let what = format!("{limit} descriptors");
        let mut job = Job::new(settings());
        job.may_keep_credential();
        let script = format!(r#"ulimit -n {limit}; exec "$WIFSHARE" token"#);
        let ended = finish(job.command("sh", &["-c", &script]).spawn().unwrap());
        if ended.code == 127 {
            continue;
        }
        assert_nothing_bought_in_vain(&job, &ended, &what);
        served += u32::from(ended.code == 0);
    }
    assert!(served > 0, "with enough of them it works");
    for number in 8..=40 {
        let what = format!("open number {number}");
        let mut job = Job::new(settings());
        job.may_keep_credential();
        let Some(ended) = injected(&job, &format!("openat:error=EMFILE:when={number}"), &["token"]) else { return };
        assert_nothing_bought_in_vain(&job, &ended, &what);
    }
}

#[test]
fn waiting_for_a_stopped_process_names_it_and_both_succeed() {
    let mut job = Job::new(Settings { exchange_latency_ms: 1000, ..settings() });
    let holder = job.wifshare(&["token"]).spawn().unwrap();
    eventually("the exchange is under way", || job.counters().exchanges_received == 1);
    kill_process(Pid::from_child(&holder), Signal::STOP).unwrap();
    let waiter = job.wifshare(&["token"]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(3500));
    kill_process(Pid::from_child(&holder), Signal::CONT).unwrap();
    let pid = holder.id();
    job.may_keep_credential();
    let (first, second) = (finish(holder), finish(waiter));
    assert_eq!((first.code, second.code), (0, 0), "{} {}", first.stderr, second.stderr);
    assert_eq!(first.stdout, second.stdout);
    let told = format!("for pid {pid}, exchanging since");
    assert!(second.stderr.contains(&told), "`{told}` was expected: {}", second.stderr);
    job.assert_exchanges(1);
}

#[test]
fn expiring_credential_behind_a_stopped_lock_holder_is_renewed() {
    let mut job = Job::new(living(6));
    assert_eq!(job.token(&[]).code, 0);
    std::thread::sleep(std::time::Duration::from_millis(3200));
    job.sandbox.set_settings(Settings { exchange_latency_ms: 500, ..living(600) });
    let holder = job.wifshare(&["token"]).spawn().unwrap();
    eventually("the exchange is under way", || job.counters().exchanges_received == 2);
    kill_process(Pid::from_child(&holder), Signal::STOP).unwrap();
    let waiter = job.wifshare(&["token"]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(4000));
    kill_process(Pid::from_child(&holder), Signal::CONT).unwrap();
    let (first, second) = (finish(holder), finish(waiter));
    assert_eq!((first.code, second.code), (0, 0), "{} {}", first.stderr, second.stderr);
    assert_eq!(first.stdout, second.stdout);
    job.assert_exchanges(2);
}

#[test]
fn symlinked_state_directory_is_refused_and_not_written_through() {
    let mut job = Job::new(settings());
    assert_eq!(job.token(&[]).code, 0);
    let (state, elsewhere) = (job.state(), job.path("elsewhere"));
    std::fs::rename(&state, job.path("real")).unwrap();
    std::fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, &state).unwrap();
    for ended in [job.token(&[]), job.exec(&[], "true")] {
        assert_served_or_told(&ended, "a link");
        assert!(ended.stderr.contains("error[state-in-the-way]"), "{}", ended.stderr);
    }
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "nothing was written through it");
    job.assert_exchanges(1);
}

#[test]
fn hard_linked_state_file_is_refused_before_an_exchange() {
    let mut job = Job::new(settings());
    assert_eq!(job.token(&[]).code, 0);
    for name in ["credential.json", "lock", "spent"] {
        let files = crate::job::files(&job.state());
        let path = files.iter().find(|path| path.file_name().is_some_and(|file| file == name)).unwrap();
        let second = job.path("second-name");
        std::fs::hard_link(path, &second).unwrap();
        if name != "credential.json" {
            std::fs::remove_file(path.with_file_name("credential.json")).unwrap_or_default();
            let keys = files.iter().find(|path| path.ends_with("credential.json"));
            keys.map(std::fs::remove_file);
        }
        let ended = job.token(&[]);
        assert_eq!(ended.code, 125, "{name}: {}", ended.stderr);
        assert!(ended.stderr.contains("regular file of one name"), "{name}: {}", ended.stderr);
        std::fs::remove_file(&second).unwrap();
    }
    job.assert_exchanges(1);
}

#[test]
fn run_with_removed_state_directory_continues_and_cleans_up() {
    for delivery in ["profile", "federation"] {
        let job = Job::new(living(8));
        let state = job.state();
        let script = format!(
            r#"rm -rf '{}'; for i in $(seq 30); do {ASK} && served=$((served + 1)); sleep 0.4; done
            "$WIFSHARE" token > /dev/null && echo $served"#,
            state.display()
        );
        let ended = job.exec(&["--delivery", delivery], &script);
        assert_eq!(ended.code, 0, "{delivery}: {}", ended.stderr);
        let served = ended.stdout.trim().parse::<u32>().unwrap_or(0);
        assert!(served >= 15, "{delivery}: {served} of 30 were served: {}", ended.stderr);
        job.assert_nothing_sent_twice();
        assert!(job.files_with_secrets().is_empty(), "{delivery}: {:?}", job.files_with_secrets());
    }
}

#[test]
fn state_directory_removed_at_exit_is_not_recreated() {
    let job = Job::new(settings());
    // The second attempt removes files created between the removal of a directory's files and the directory itself.
    let ended = job.exec(&[], &format!("rm -rf '{0}' || rm -rf '{0}'", job.state().display()));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(job.files_with_secrets().is_empty());
    assert!(!Path::new(&job.state()).join("runs").exists());
}

#[test]
fn unsent_token_works_after_the_fault_is_gone() {
    let (mut failed, mut unsent) = (0, 0);
    let syncs = ["EIO", "ENOSPC"].iter().flat_map(|error| (1..=5).map(move |time| ("fsync", *error, time)));
    let opens = (8..=40).map(|time| ("openat", "EMFILE", time));
    let sockets = (1..=4).map(|time| ("socket", "EMFILE", time));
    for (call, error, time) in syncs.chain(opens).chain(sockets) {
        let what = format!("{error} at {call} number {time}");
        let mut job = Job::new(settings());
        job.may_keep_credential();
        let token = job.sandbox.issue_identity_token();
        job.use_token_file(&token);
        let Some(ended) = injected(&job, &format!("{call}:error={error}:when={time}"), &["token"]) else { return };
        assert_nothing_bought_in_vain(&job, &ended, &what);
        failed += u32::from(ended.code != 0);
        if job.counters().exchanges_received == 0 {
            unsent += 1;
            // Other cached failures expire within seconds.
            for path in crate::job::files(&job.state()).iter().filter(|path| path.ends_with("refusal.json")) {
                std::fs::remove_file(path).unwrap();
            }
            let again = job.token(&[]);
            assert_eq!(again.code, 0, "{what}, then: {}", again.stderr);
        }
        job.assert_nothing_sent_twice();
    }
    assert!(failed > 10 && unsent > 10, "{failed} failed, {unsent} with their token unsent");
}

#[test]
fn twelve_identities_on_a_slow_disk_succeed() {
    if Command::new("strace").arg("-V").output().is_err() {
        return;
    }
    let mut job = Job::new(settings());
    job.may_keep_credential();
    let slow = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:delay_enter=3000000"];
    let token = |number: u32| {
        let workspace = format!("wrkspc_{number}");
        let arguments = [&slow[..], &[crate::job::WIFSHARE, "token", "--workspace-id", &workspace]].concat();
        job.command("strace", &arguments).spawn().unwrap()
    };
    let start = std::time::Instant::now();
    let started: Vec<_> = (0..12).map(token).collect();
    for ended in started.into_iter().map(finish) {
        assert_eq!(ended.code, 0, "after {} s: {}", start.elapsed().as_secs(), ended.stderr);
    }
    job.assert_nothing_sent_twice();
}

#[test]
fn run_remembers_sent_tokens_after_state_removal() {
    for delivery in ["profile", "gateway"] {
        let mut job = Job::new(living(4));
        let token = job.sandbox.issue_identity_token();
        job.use_token_file(&token);
        let script = format!("{ASK}; rm -rf '{}'; sleep 7", job.state().display());
        let ended = job.exec(&["--delivery", delivery], &script);
        assert_eq!(ended.code, 0, "{delivery}: {}", ended.stderr);
        job.assert_exchanges(1);
        // Other processes read the ledger that the run has restored.
        let other = job.token(&[]);
        assert_eq!(other.code, 125, "{delivery}: {}", other.stdout.len());
        assert!(other.stderr.contains("error[identity-spent]"), "{delivery}: {}", other.stderr);
        job.assert_exchanges(1);
    }
}
