//! `start` always ends, and every keeper that it leaves can be ended.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wifshare_sandbox::Settings;

use crate::job::{Ended, Job, WIFSHARE, eventually, files, finish, settings};

/// Returns the keeper processes of this job.
fn keepers(job: &Job) -> Vec<Pid> {
    let home = format!("HOME={}", job.variable("HOME").unwrap());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    let is_ours = |pid: &i32| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let lines = |bytes: Vec<u8>| -> Vec<Vec<u8>> { bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect() };
        lines(read("cmdline")).get(1).is_some_and(|word| word == b"keeper")
            && lines(read("environ")).iter().any(|line| line == home.as_bytes())
    };
    pids.filter(is_ours).map(|pid| Pid::from_raw(pid).unwrap()).collect()
}

fn ends_within(child: Child, bound: Duration) -> Ended {
    let begun = Instant::now();
    let ended = finish(child);
    assert!(begun.elapsed() < bound, "it took {:?}: {}", begun.elapsed(), ended.stderr);
    ended
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn no_text(job: &Job) -> PathBuf {
    let path = job.path("").join(OsString::from_vec(b"\xff".to_vec()));
    std::fs::create_dir_all(&path).unwrap();
    rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o700)).unwrap();
    path
}

#[test]
fn non_utf_8_path_works_or_is_refused_by_every_command() {
    for place in
        ["RUNNER_TEMP", "TMPDIR", "HOME", "WIFSHARE_STATE_DIR", "GITHUB_ENV", "XDG_RUNTIME_DIR", "--state-dir", "cwd"]
    {
        for arguments in [
            &["start", "--format", "env"][..],
            &["start", "--format", "json"],
            &["start"],
            &["exec", "--", "true"],
            &["exec", "--delivery", "federation", "--", "true"],
            &["exec", "--delivery", "gateway", "--", "true"],
            &["token"],
            &["doctor"],
            &["status"],
            &["stop"],
        ] {
            let job = Job::new(settings());
            let path = no_text(&job);
            let mut command = job.wifshare(arguments);
            match place {
                "--state-dir" => drop(command.arg("--state-dir").arg(&path)),
                "cwd" => drop(command.current_dir(&path).env("WIFSHARE_STATE_DIR", "relative")),
                "GITHUB_ENV" => drop(command.env(place, path.join("file"))),
                "TMPDIR" | "XDG_RUNTIME_DIR" => {
                    command.env_remove("RUNNER_TEMP").env(place, &path);
                }
                _ => drop(command.env(place, &path)),
            }
            // The options of a command precede its arguments.
            if place == "--state-dir" && arguments[0] == "exec" {
                command = job.wifshare(&["exec", "--state-dir"]);
                command.arg(&path).args(&arguments[1..]);
            }
            let ended = ends_within(command.spawn().unwrap(), Duration::from_secs(40));
            let is_refused = ended.code == 125 && ended.stderr.contains("error[");
            assert!(
                ended.code == 0 || is_refused,
                "{place} {arguments:?}: {} {} {}",
                ended.code,
                ended.stdout,
                ended.stderr
            );
            if ended.code != 0 {
                assert_eq!(keepers(&job), [], "{place} {arguments:?}");
            }
            let mut stop = job.wifshare(&["stop", "--all"]);
            stop.env(
                "RUNNER_TEMP",
                if place == "RUNNER_TEMP" {
                    path.as_os_str()
                } else {
                    OsStr::new(job.variable("RUNNER_TEMP").unwrap())
                },
            );
            finish(stop.spawn().unwrap());
            for keeper in keepers(&job) {
                let _ = kill_process(keeper, Signal::TERM);
            }
            eventually("no keeper is left", || keepers(&job).is_empty());
            let _ = std::fs::remove_dir_all(&path);
            let _ = std::fs::remove_dir_all(job.state());
        }
    }
}

#[test]
fn signal_ends_a_start_with_a_stopped_keeper() {
    let job = Job::new(Settings { identity_token_latency_ms: 5000, ..settings() });
    let child = job.wifshare(&["start"]).spawn().unwrap();
    eventually("there is a keeper", || !keepers(&job).is_empty());
    let keeper = keepers(&job)[0];
    kill_process(keeper, Signal::STOP).unwrap();
    signal(&child, Signal::TERM);
    let ended = ends_within(child, Duration::from_secs(40));
    assert_eq!(ended.code, 143, "{}", ended.stderr);
    eventually("no keeper is left", || keepers(&job).is_empty());
    assert!(job.files_with_secrets().is_empty());
}

#[test]
fn keeper_ends_if_its_start_was_killed() {
    for latency in [0, 1500] {
        let job = Job::new(Settings { exchange_latency_ms: latency, ..settings() });
        let child = job.wifshare(&["start"]).process_group(0).spawn().unwrap();
        eventually("there is a keeper", || !keepers(&job).is_empty());
        if latency > 0 {
            eventually("it signs in", || job.counters().exchanges_received > 0);
        }
        signal(&child, Signal::KILL);
        finish(child);
        eventually("no keeper is left", || keepers(&job).is_empty());
        eventually("nothing is left", || job.files_with_secrets().is_empty());
    }
}

#[test]
fn pipe_as_github_env_does_not_block_start() {
    let mut job = Job::new(settings());
    let pipe = job.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    job.set("GITHUB_ENV", pipe.to_str().unwrap());
    let ended = ends_within(job.wifshare(&["start"]).spawn().unwrap(), Duration::from_secs(30));
    assert_eq!(ended.code, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("error[handover]"), "{}", ended.stderr);
    eventually("no keeper is left", || keepers(&job).is_empty());
}

#[test]
fn unread_stdout_does_not_block_an_interrupted_start() {
    let job = Job::new(settings());
    let (reader, writer) = std::io::pipe().unwrap();
    // The pipe is full: a write blocks until the other end is read.
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    while rustix::io::write(&writer, b"x").is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let mut command = job.wifshare(&["start", "--format", "env"]);
    let child = command.stdout(writer).spawn().unwrap();
    drop(command);
    eventually("it hands over", || job.counters().exchanges_accepted > 0);
    std::thread::sleep(Duration::from_secs(1));
    signal(&child, Signal::TERM);
    let ended = ends_within(child, Duration::from_secs(40));
    assert_eq!(ended.code, 143, "{}", ended.stderr);
    drop(reader);
    eventually("no keeper is left", || keepers(&job).is_empty());
}

#[test]
fn stop_reaches_a_keeper_started_with_ignored_or_blocked_signals() {
    let blocked = format!(
        "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT]); \
         os.execv('{WIFSHARE}', ['wifshare', 'start', '--format', 'json'])"
    );
    for command in [
        &["sh", "-c", r#"trap '' TERM INT HUP; exec "$WIFSHARE" start --format json"#][..],
        &["python3", "-c", &blocked],
        &["sh", "-c", r#"trap '' CHLD; exec "$WIFSHARE" start --format json"#],
    ] {
        let job = Job::new(settings());
        let started = finish(job.command(command[0], &command[1..]).spawn().unwrap());
        assert_eq!(started.code, 0, "{command:?}: {}", started.stderr);
        let begun = Instant::now();
        let stopped = finish(job.wifshare(&["stop"]).spawn().unwrap());
        assert_eq!(stopped.code, 0, "{}", stopped.stderr);
        assert!(begun.elapsed() < Duration::from_secs(8), "it heard the signal: {:?}", begun.elapsed());
        assert_eq!(keepers(&job), []);
        assert!(job.files_with_secrets().is_empty());
    }
}

#[test]
fn exec_with_ignored_sigchld_returns_the_exit_code() {
    let job = Job::new(settings());
    let script = r#"trap '' CHLD; exec "$WIFSHARE" exec -- sh -c 'exit 5'"#;
    let ended = finish(job.command("bash", &["-c", script]).spawn().unwrap());
    assert_eq!(ended.code, 5, "{}", ended.stderr);
}

fn until(job: &Job) -> u64 {
    let path = files(&job.state()).into_iter().find(|path| path.ends_with("until")).expect("an end");
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

#[test]
fn keeper_without_process_lives_until_the_job_timeout() {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let about = |seconds: u64, job: &Job| {
        let left = until(job) - now();
        assert!(left <= seconds && left + 30 > seconds, "{left} and not {seconds}");
    };
    // Like a job whose process is not visible.
    let start = |job: &Job, options: &[&str]| {
        let started = finish(job.wifshare(&[&["start", "--watch-pid", "none"], options].concat()).spawn().unwrap());
        assert_eq!(started.code, 0, "{}", started.stderr);
        started
    };
    let mut job = Job::new(settings());
    start(&job, &[]);
    about(3600, &job);
    job.set("CI_JOB_TIMEOUT", "7200");
    start(&job, &[]);
    about(7200, &job);
    start(&job, &["--max-life", "60s"]);
    about(7200, &job);
    finish(job.wifshare(&["stop"]).spawn().unwrap());
    start(&job, &["--max-life", "2s"]);
    let keeper = keepers(&job)[0];
    let said = start(&job, &["--max-life", "8s"]);
    assert!(said.stderr.contains("joined the keeper") && said.stderr.contains("until"), "{}", said.stderr);
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(keepers(&job), [keeper], "its end was put off");
    eventually("it ends", || keepers(&job).is_empty());
    assert!(job.files_with_secrets().is_empty());
}

/// The arguments, the changed variables, and the exit code.
type Failing<'a> = (&'a str, &'a [(&'a str, &'a str)], i32);

#[test]
fn failed_start_fails_the_evaluating_shell() {
    let failing: [Failing<'_>; 4] = [
        ("start --format env", &[("ANTHROPIC_ORGANIZATION_ID", "")], 125),
        ("start", &[("ANTHROPIC_FEDERATION_RULE_ID", ""), ("ANTHROPIC_ORGANIZATION_ID", "")], 125),
        ("start --format env --bogus", &[], 2),
        ("start --max-life 60", &[], 2),
    ];
    for (shell, options, eval) in [
        ("sh", &["-e"][..], r#"eval "$("$WIFSHARE" ARGUMENTS)""#),
        ("dash", &["-e"], r#"eval "$("$WIFSHARE" ARGUMENTS)""#),
        ("bash", &["-euo", "pipefail"], r#"eval "$("$WIFSHARE" ARGUMENTS)""#),
        ("zsh", &["-e"], r#"eval "$("$WIFSHARE" ARGUMENTS)""#),
        ("fish", &[], r#"eval ("$WIFSHARE" ARGUMENTS); or exit $status"#),
        ("fish", &[], r#""$WIFSHARE" ARGUMENTS | source; or exit $status"#),
        // The documented form, which also works if wifshare is not installed.
        ("sh", &["-e"], "started=$(\"$WIFSHARE\" ARGUMENTS)\neval \"$started\""),
    ] {
        if !Command::new(shell).args(["-c", "true"]).status().is_ok_and(|status| status.success()) {
            assert!(std::env::var_os("CI").is_none(), "{shell} is missing");
            continue;
        }
        for (arguments, variables, code) in failing {
            let mut job = Job::new(settings());
            variables.iter().for_each(|(name, value)| job.set(name, value));
            let script = format!("{}\necho went on", eval.replace("ARGUMENTS", arguments));
            let ended = finish(job.command(shell, &[options, &["-c", &script]].concat()).spawn().unwrap());
            assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{shell} {eval} {arguments}: {}", ended.stderr);
        }
        let job = Job::new(settings());
        let script = format!("{}\necho went on", eval.replace("ARGUMENTS", "start --format env"));
        let ended = finish(job.command(shell, &[options, &["-c", &script]].concat()).spawn().unwrap());
        assert_eq!((ended.code, ended.stdout.as_str()), (0, "went on\n"), "{shell} {eval}: {}", ended.stderr);
        finish(job.wifshare(&["stop"]).spawn().unwrap());
    }
}

#[test]
fn interrupted_start_fails_the_evaluating_shell() {
    let job = Job::new(Settings { identity_token_latency_ms: 4000, ..settings() });
    let child = job.wifshare(&["start", "--format", "env"]).stdout(Stdio::piped()).spawn().unwrap();
    eventually("there is a keeper", || !keepers(&job).is_empty());
    signal(&child, Signal::TERM);
    let ended = ends_within(child, Duration::from_secs(30));
    assert_eq!((ended.code, ended.stdout.as_str()), (143, "sh -c 'exit 143';\n"), "{}", ended.stderr);
    assert!(Path::new(WIFSHARE).exists());
}

#[test]
fn failed_token_fails_the_evaluating_shell() {
    let mut job = Job::new(settings());
    job.unset("ANTHROPIC_ORGANIZATION_ID");
    let script = r#"eval "$("$WIFSHARE" token --format env)"; echo went on"#;
    let ended = finish(job.command("sh", &["-ec", script]).spawn().unwrap());
    assert_eq!((ended.code, ended.stdout.as_str()), (125, ""), "{}", ended.stderr);
}

#[test]
fn documented_recipes_stop_on_failure_and_clean_up() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let pages = files(&root.join("docs")).into_iter().chain([root.join("README.md")]);
    for page in pages.filter(|page| page.extension().is_some_and(|ending| ending == "md")) {
        let text = std::fs::read_to_string(&page).unwrap();
        // A missing command prints nothing, and `eval ""` succeeds.
        assert!(!text.contains(r#"eval "$(wifshare start"#), "{}", page.display());
        for block in text.split("```").skip(1).step_by(2).filter(|block| block.contains("eval \"$started\"")) {
            let cleans_up = ["trap 'wifshare stop", "after_script", "always()"].iter().any(|way| block.contains(way));
            assert!(cleans_up || page.ends_with("runs.md"), "{}: {block}", page.display());
            assert!(block.contains("set -e") || block.contains("script:"), "{}: {block}", page.display());
        }
    }
}
