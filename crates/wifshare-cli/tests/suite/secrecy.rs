//! Secrets stand where they must and nowhere else: in no argument list, in no environment of our own processes, in no
//! panic, and in nothing that another user can read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::job::{Job, eventually, finish, knobs, living};

/// The text of this file of every process on the machine that we may read.
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
fn no_secret_ever_stands_in_an_argument_list() {
    let mut job = Job::new(living(6));
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
fn our_own_processes_never_carry_the_access_token_in_their_environment() {
    let job = Job::new(knobs());
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
fn another_user_gets_nothing() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "only root can become somebody else");
        return;
    }
    let job = Job::new(knobs());
    // The directory of the job itself is open, as a runner's temporary folder is.
    rustix::fs::chmod(job.path(""), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    let child = job.wifshare(&["exec", "--delivery", "federation", "--", "sh", "-c", "touch begun; sleep 3"]).spawn();
    let child = child.unwrap();
    eventually("the command has begun", || job.path("begun").exists());
    let state = job.state();
    let look = format!("find {0}; cat $(find {0} -type f) /proc/{1}/environ", state.display(), child.id());
    let nobody = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &look])
        .output()
        .unwrap();
    let seen = String::from_utf8_lossy(&nobody.stdout).into_owned();
    assert_eq!(seen.trim(), state.to_str().unwrap(), "the directory's name, and nothing in it");
    assert_eq!(finish(child).code, 0);
    // What is written by somebody else at the place of our state is not used.
    let foreign = job.path("planted");
    std::fs::create_dir(&foreign).unwrap();
    std::os::unix::fs::chown(&foreign, Some(65_534), Some(65_534)).unwrap();
    let ended = job.exec(&["--state-dir", foreign.to_str().unwrap()], "true");
    assert!(ended.stderr.contains("error[state-foreign]"), "{}", ended.stderr);
}
