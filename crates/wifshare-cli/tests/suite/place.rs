//! The location of the state when several users share a machine, and the errors for system limits.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::job::{Ended, Job, WIFSHARE, finish, settings};

const OTHER: u32 = 1001;
/// The arguments of setpriv(1) that run a program as the other user.
const BECOME_OTHER: [&str; 3] = ["--reuid=1001", "--regid=1001", "--clear-groups"];

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var_os("CI").is_none(), "only root can become somebody else");
    is_root
}

/// Creates a job whose directory belongs to the other user, with a copy of wifshare that this user can run.
fn job_of_two_users() -> (Job, PathBuf) {
    let mut job = Job::new(settings());
    job.may_keep_credential();
    let program = job.path("program");
    std::fs::copy(WIFSHARE, &program).unwrap();
    for path in [job.path(""), program.clone()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    chown(job.path(""), Some(OTHER), Some(OTHER)).unwrap();
    (job, program)
}

fn as_other(job: &Job, program: &Path, arguments: &[&str]) -> Ended {
    let words: Vec<&str> = [&BECOME_OTHER[..], &[program.to_str().unwrap()], arguments].concat();
    finish(job.command("setpriv", &words).spawn().unwrap())
}

#[test]
fn each_user_of_a_runner_has_its_own_directory() {
    if !is_root() {
        return;
    }
    let (job, program) = job_of_two_users();
    for _ in 0..2 {
        let ours = finish(job.wifshare(&["token"]).spawn().unwrap());
        assert_eq!(ours.code, 0, "{}", ours.stderr);
        let theirs = as_other(&job, &program, &["token"]);
        assert_eq!(theirs.code, 0, "{}", theirs.stderr);
    }
    for user in [0, OTHER] {
        assert!(job.path(&format!("wifshare-{user}")).join("spent").exists(), "{user}");
    }
    job.assert_exchanges(2);
}

#[test]
fn state_of_another_user_is_reported_by_every_command() {
    if !is_root() {
        return;
    }
    let (job, program) = job_of_two_users();
    let state = job.path("state");
    let root = state.to_str().unwrap();
    let ours = finish(job.wifshare(&["token", "--state-dir", root]).spawn().unwrap());
    assert_eq!(ours.code, 0, "{}", ours.stderr);
    for arguments in [
        &["token", "--state-dir", root][..],
        &["exec", "--state-dir", root, "--", "true"],
        &["start", "--format", "json", "--state-dir", root],
        &["doctor", "--state-dir", root],
    ] {
        let ended = as_other(&job, &program, arguments);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("error[state-foreign]") && said.contains("belongs to user 0"), "{arguments:?}: {said}");
    }
    // If another user owns the name in a shared location, the next location is used.
    let (shared, next) = (job.path("shared"), job.path("next"));
    for place in [&shared, &next] {
        std::fs::create_dir(place).unwrap();
        std::fs::set_permissions(place, std::fs::Permissions::from_mode(0o1777)).unwrap();
    }
    std::fs::create_dir(shared.join(format!("wifshare-{OTHER}"))).unwrap();
    let place = |path: &Path, name: &str| format!("{name}={}", path.display());
    let (first, second) = (place(&shared, "RUNNER_TEMP"), place(&next, "TMPDIR"));
    let words = ["-u", "XDG_RUNTIME_DIR", &first, &second, program.to_str().unwrap(), "token"];
    let ended = finish(job.command("setpriv", &[&BECOME_OTHER[..], &["env"], &words].concat()).spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(next.join(format!("wifshare-{OTHER}")).join("spent").exists());
}

#[test]
fn unusable_state_location_is_skipped() {
    for unusable in ["relative", "/nonexistent/temp", "/dev/null"] {
        let mut job = Job::new(settings());
        let temporary = job.path("").to_str().unwrap().to_owned();
        job.set("RUNNER_TEMP", unusable);
        job.set("XDG_RUNTIME_DIR", "also-relative");
        job.set("TMPDIR", &temporary);
        let ended = job.token(&[]);
        assert_eq!(ended.code, 0, "{unusable}: {}", ended.stderr);
        assert!(job.state().join("spent").exists(), "{unusable}");
    }
}

/// Runs a command of wifshare under a `ulimit` of the shell.
fn limited(job: &Job, limit: &str, command: &str) -> Ended {
    finish(job.command("sh", &["-c", &format!("ulimit {limit} && \"$WIFSHARE\" {command}")]).spawn().unwrap())
}

#[test]
fn system_limits_are_named() {
    for (limit, command, words) in [
        ("-n 12", "exec -- true", "ulimit -n"),
        ("-n 8", "token", "ulimit -n"),
        ("-n 10", "exec --delivery gateway -- true", "ulimit -n"),
        ("-f 0", "token", "ulimit -f"),
        ("-f 0", "exec -- true", "ulimit -f"),
    ] {
        let mut job = Job::new(settings());
        job.may_keep_credential();
        let ended = limited(&job, limit, command);
        assert_eq!(ended.code, 125, "{limit} {command}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{limit} {command}: {}", ended.stderr);
        assert!(!ended.stderr.contains("make it writable"), "{limit} {command}: {}", ended.stderr);
        assert!(!ended.stderr.contains("trying again"), "{limit} {command}: {}", ended.stderr);
        let later = job.token(&[]);
        assert_eq!(later.code, 0, "{limit} {command}: {}", later.stderr);
    }
}

#[test]
fn missing_directory_of_a_socket_is_named() {
    let job = Job::new(settings());
    let ended = job.run(&["gateway", "--unix", "/nonexistent/socket"]);
    assert_eq!(ended.code, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("the directory /nonexistent does not exist"), "{}", ended.stderr);
    assert!(ended.stderr.contains("hint: create that directory"), "{}", ended.stderr);
}

#[test]
fn overlong_socket_path_is_named() {
    let job = Job::new(settings());
    let path = job.path(&"s".repeat(120));
    let ended = job.run(&["gateway", "--unix", path.to_str().unwrap()]);
    assert_eq!(ended.code, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("at most 107 bytes") && ended.stderr.contains("shorter path"), "{}", ended.stderr);
    // The longest path works, although a prefix is added while the socket is created.
    let directory = job.path("");
    let longest = directory.join("s".repeat(107 - directory.as_os_str().len()));
    let longest = PathBuf::from(longest.to_str().unwrap().replace("//", "/"));
    let fill = 107 - longest.as_os_str().len();
    let longest =
        longest.with_file_name(format!("{}{}", longest.file_name().unwrap().to_str().unwrap(), "s".repeat(fill)));
    let child = job.wifshare(&["gateway", "--unix", longest.to_str().unwrap()]).spawn().unwrap();
    crate::job::eventually("the gateway listens", || longest.exists());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(finish(child).code, 0);
}
