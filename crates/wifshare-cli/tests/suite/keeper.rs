//! `start` and `stop`: one credential for the steps of a job, kept by a process that outlives its step.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use wifshare_sandbox::{Fault, Settings};

use crate::job::{Ended, Job, WIFSHARE, eventually, files, finish, living, settings};
use crate::runner::Runner;

const ASK: &str = r#""$WIFSHARE" demo --child shared"#;

const HAS_THE_TOKEN: &str = r#"[ "$ANTHROPIC_AUTH_TOKEN" = "$("$WIFSHARE" token)" ]"#;

const SHOWS_THE_CAPABILITY: &str = r#"
    case $ANTHROPIC_AUTH_TOKEN in wifshare-capability-*) ;; *) exit 7 ;; esac
    [ "$ANTHROPIC_AUTH_TOKEN" = "$("$WIFSHARE" token)" ]"#;

/// The variables that `start` exports. `None` unsets one.
type Handed = BTreeMap<String, Option<String>>;

fn start(job: &Job, options: &[&str]) -> Handed {
    let ended = finish(job.wifshare(&[&["start", "--format", "json"], options].concat()).spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn with(mut command: Command, handed: &Handed) -> Command {
    for (name, value) in handed {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Runs a later step: a new shell with the exported variables.
fn step(job: &Job, handed: &Handed, script: &str) -> Ended {
    finish(with(job.command("sh", &["-c", script]), handed).spawn().unwrap())
}

fn stop(job: &Job, options: &[&str]) {
    let ended = finish(job.wifshare(&[&["stop"], options].concat()).spawn().unwrap());
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    assert!(ended.stderr.is_empty() || ended.stderr.starts_with("wifshare: ended the keeper"), "{}", ended.stderr);
}

/// Adds the variables that GitHub's runner sets for each step.
fn in_github(job: &Job, mut command: Command) -> Command {
    for name in ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"] {
        command.env(name, job.variable(name).unwrap());
    }
    command
}

/// Returns the keepers of this state directory, from their files.
fn keepers(state: &Path) -> Vec<i32> {
    let is_alive = |pid: &i32| Path::new(&format!("/proc/{pid}")).exists() && state_of(*pid) != 'Z';
    let written = files(state).into_iter().filter(|path| path.ends_with("keeper.json"));
    let pid = |path: PathBuf| -> Option<i32> {
        let text = std::fs::read(path).ok()?;
        serde_json::from_slice::<Value>(&text).ok()?["owner"]["pid"].as_i64()?.try_into().ok()
    };
    written.filter_map(pid).filter(is_alive).collect()
}

fn state_of(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('Z')
}

fn the_keeper(job: &Job) -> i32 {
    the_keeper_in(&job.state())
}

fn the_keeper_in(state: &Path) -> i32 {
    let keepers = keepers(state);
    assert_eq!(keepers.len(), 1);
    keepers[0]
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn has_ended(pid: i32) -> bool {
    state_of(pid) == 'Z'
}

fn assert_nothing_is_left(job: &Job) {
    assert!(keepers(&job.state()).is_empty());
    assert!(job.files_with_secrets().is_empty(), "{:?}", job.files_with_secrets());
}

#[test]
fn steps_share_one_keeper_and_stop_leaves_no_files() {
    for delivery in ["profile", "federation", "environment", "gateway"] {
        let job = Job::new(settings());
        let handed = start(&job, &["--delivery", delivery]);
        let pid = the_keeper(&job);
        let ask = match delivery {
            "environment" => HAS_THE_TOKEN,
            "gateway" => SHOWS_THE_CAPABILITY,
            _ => ASK,
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (job, handed) = (&job, &handed);
                scope.spawn(move || {
                    let ended = step(job, handed, &format!("{ask} & {ask} & wait $! && {ask}"));
                    assert_eq!(ended.code, 0, "{delivery}: {}", ended.stderr);
                });
            }
        });
        let inner = step(
            &job,
            &handed,
            r#"outer=$("$WIFSHARE" token) && [ "$outer" = "$("$WIFSHARE" exec -- "$WIFSHARE" token)" ]"#,
        );
        assert_eq!(inner.code, 0, "{delivery}: {}", inner.stderr);
        stop(&job, &[]);
        assert!(has_ended(pid), "stop waits for the end");
        assert_nothing_is_left(&job);
        job.assert_exchanges(1);
    }
}

#[test]
fn start_with_api_key_exports_the_capability_twice() {
    const BOTH: &str = r#"
        case $ANTHROPIC_API_KEY in wifshare-capability-*) ;; *) exit 7 ;; esac
        [ "$ANTHROPIC_API_KEY" = "$ANTHROPIC_AUTH_TOKEN" ] || exit 8
        [ "$ANTHROPIC_API_KEY" = "$(env -u ANTHROPIC_AUTH_TOKEN "$WIFSHARE" token)" ] || exit 9"#;
    for options in [&["--delivery", "gateway", "--api-key"][..], &["--delivery", "gateway"]] {
        let job = Job::new(settings());
        start(&job, options);
        // The second one joins a keeper with and without an API key.
        let handed = start(&job, &["--delivery", "gateway", "--api-key"]);
        let ended = step(&job, &handed, BOTH);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{options:?}");
        let inside = with(job.wifshare(&["start", "--delivery", "gateway", "--api-key", "--format", "json"]), &handed);
        let ended = finish({ inside }.spawn().unwrap());
        let again: Handed = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(again["ANTHROPIC_API_KEY"], handed["ANTHROPIC_AUTH_TOKEN"], "{options:?}: {}", ended.stderr);
        stop(&job, &[]);
        job.assert_exchanges(1);
    }
}

#[test]
fn start_unsets_sign_in_variables_for_later_steps() {
    let job = Job::new(settings());
    let handed = start(&job, &[]);
    let gone: Vec<&str> = handed.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name.as_str()).collect();
    let expected = [
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
        "ACTIONS_ID_TOKEN_REQUEST_URL",
        "ANTHROPIC_FEDERATION_RULE_ID",
        "ANTHROPIC_ORGANIZATION_ID",
    ];
    assert!(expected.iter().all(|name| gone.contains(name)), "{gone:?}");
    let kept = start(&job, &["--delivery", "environment", "--keep-env", "ACTIONS_ID_TOKEN_REQUEST_URL"]);
    assert!(!kept.contains_key("ACTIONS_ID_TOKEN_REQUEST_URL"));
    // The CI sets these variables for each step. A command inside the run is without them.
    let handed: Handed = handed.into_iter().filter(|(_, value)| value.is_some()).collect();
    let ended = step(&job, &handed, r#""$WIFSHARE" exec -- sh -c '[ -z "$ACTIONS_ID_TOKEN_REQUEST_TOKEN" ]'"#);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let ended = step(
        &job,
        &handed,
        r#""$WIFSHARE" exec --keep-env ACTIONS_ID_TOKEN_REQUEST_TOKEN -- sh -c '[ -n "$ACTIONS_ID_TOKEN_REQUEST_TOKEN" ]'"#,
    );
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    stop(&job, &[]);
    job.assert_exchanges(1);
}

#[test]
fn second_start_joins_and_another_identity_gets_its_own_keeper() {
    let job = Job::new(settings());
    let first = start(&job, &[]);
    assert_eq!(start(&job, &[]), first);
    // Also from a later step, which has only the exported variables.
    let again = finish(with(job.wifshare(&["start", "--format", "json"]), &first).spawn().unwrap());
    let again: Handed = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["WIFSHARE_RUN"], first["WIFSHARE_RUN"]);
    assert_eq!(keepers(&job.state()).len(), 1);
    let other = start(&job, &["--workspace-id", "default"]);
    assert_ne!(other["WIFSHARE_RUN"], first["WIFSHARE_RUN"]);
    assert_eq!(keepers(&job.state()).len(), 2);
    job.assert_exchanges(2);
    stop(&job, &["--workspace-id", "default"]);
    let left = the_keeper(&job);
    assert_eq!(step(&job, &first, ASK).code, 0);
    // Ends only the keeper of the exported variables.
    let other = start(&job, &["--workspace-id", "default"]);
    let ended = finish(with(job.wifshare(&["stop"]), &other).spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(keepers(&job.state()), [left]);
    start(&job, &["--workspace-id", "default"]);
    stop(&job, &["--all"]);
    assert_nothing_is_left(&job);
}

#[test]
fn ten_parallel_starts_leave_one_keeper() {
    let job = Job::new(Settings { exchange_latency_ms: 500, ..settings() });
    let starts: Vec<_> = (0..10).map(|_| job.wifshare(&["start", "--format", "json"]).spawn().unwrap()).collect();
    let handed: Vec<Handed> = starts
        .into_iter()
        .map(|child| {
            let ended = finish(child);
            assert_eq!(ended.code, 0, "{}", ended.stderr);
            serde_json::from_str(&ended.stdout).unwrap()
        })
        .collect();
    assert!(handed.iter().all(|one| *one == handed[0]));
    the_keeper(&job);
    stop(&job, &[]);
    assert_nothing_is_left(&job);
    job.assert_exchanges(1);
}

#[test]
fn another_delivery_gets_its_own_keeper_without_exchange() {
    let job = Job::new(settings());
    let first = start(&job, &[]);
    let second = start(&job, &["--delivery", "environment"]);
    assert_ne!(first["WIFSHARE_RUN"], second["WIFSHARE_RUN"]);
    assert_eq!(step(&job, &first, ASK).code, 0);
    assert_eq!(step(&job, &second, HAS_THE_TOKEN).code, 0);
    stop(&job, &[]);
    assert_nothing_is_left(&job);
    job.assert_exchanges(1);
}

#[test]
fn start_with_a_stricter_delivery_ends_the_outer_keeper() {
    for (first, second, elsewhere) in [
        ("profile", "gateway", [false, false]),
        ("federation", "profile", [false, false]),
        ("environment", "gateway", [false, false]),
        ("profile", "gateway", [true, true]),
        ("profile", "gateway", [true, false]),
        ("profile", "gateway", [false, true]),
    ] {
        let job = Job::new(settings());
        let other = job.path("other");
        let options = |delivery, elsewhere: bool| match elsewhere {
            true => vec!["--delivery", delivery, "--state-dir", other.to_str().unwrap()],
            false => vec!["--delivery", delivery],
        };
        let handed = start(&job, &options(first, elsewhere[0]));
        let before = keepers(&job.path(""));
        let words = [&["start", "--format", "json"][..], &options(second, elsewhere[1])].concat();
        let ended = finish(in_github(&job, with(job.wifshare(&words), &handed)).spawn().unwrap());
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("it gave {first}")), "{}", ended.stderr);
        assert_eq!(before.len(), 1);
        assert!(has_ended(before[0]), "{first} {second} {elsewhere:?}");
        if second == "gateway" {
            assert!(!files(&job.path("")).iter().any(|path| path.ends_with("credential.json")));
        }
        let mut later = handed.clone();
        later.extend(serde_json::from_str::<Handed>(&ended.stdout).unwrap());
        let ended = finish(with(job.wifshare(&["stop"]), &later).spawn().unwrap());
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(keepers(&job.path("")).is_empty(), "{first} {second} {elsewhere:?}");
        assert!(job.files_with_secrets().is_empty(), "{:?}", job.files_with_secrets());
    }
}

#[test]
fn stricter_start_that_cannot_sign_in_prints_a_hint() {
    let job = Job::new(settings());
    let script = r#"
        eval "$("$WIFSHARE" start)"
        "$WIFSHARE" start --delivery gateway; echo "ended with $?"
        eval "$("$WIFSHARE" stop --format env)"
        eval "$("$WIFSHARE" start --delivery gateway)"; echo "$ANTHROPIC_AUTH_TOKEN" | cut -c 1-20
        "$WIFSHARE" stop"#;
    let ended = finish(job.command("sh", &["-c", script]).spawn().unwrap());
    assert!(ended.stderr.contains("error[delivery-refused]"), "{}", ended.stderr);
    assert!(ended.stderr.contains(r#"eval "$(wifshare stop --format env)""#), "{}", ended.stderr);
    assert!(ended.stdout.contains("ended with 125"), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("wifshare-capability-"), "{}{}", ended.stdout, ended.stderr);
    assert_nothing_is_left(&job);
}

#[test]
fn stop_ends_every_keeper_of_earlier_steps() {
    let job = Job::new(settings());
    let first = start(&job, &[]);
    let words = ["start", "--format", "json", "--workspace-id", "default"];
    let ended = finish(in_github(&job, with(job.wifshare(&words), &first)).spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(keepers(&job.state()).len(), 2);
    let mut later = first;
    later.extend(serde_json::from_str::<Handed>(&ended.stdout).unwrap());
    let ended = finish(with(job.wifshare(&["stop"]), &later).spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_nothing_is_left(&job);
}

#[test]
fn stop_fails_on_an_unsafe_state_directory() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let job = Job::new(settings());
    let mode = |path: &Path, mode: u32| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let stop_in = |path: &Path| job.run(&["stop", "--state-dir", path.to_str().unwrap()]);
    let said = |ended: Ended, code: &str| {
        assert_eq!((ended.code, ended.stdout.as_str()), (125, ""), "{code}: {}", ended.stderr);
        assert!(ended.stderr.contains(&format!("error[{code}]")), "{code}: {}", ended.stderr);
    };
    start(&job, &[]);
    let (state, link) = (job.state(), job.path("link"));
    symlink(&state, &link).unwrap();
    said(stop_in(&link), "state-in-the-way");
    std::fs::remove_file(&link).unwrap();
    symlink(job.path("nothing"), &link).unwrap();
    said(stop_in(&link), "state-in-the-way");
    said(job.run(&["status", "--state-dir", link.to_str().unwrap()]), "state-in-the-way");
    the_keeper(&job);
    // Other users could have put another keeper's files there.
    mode(&state, 0o777);
    said(stop_in(&state), "state-loose");
    the_keeper(&job);
    // Other users can only read: the keeper ends, and the problem is reported too.
    mode(&state, 0o755);
    let ended = stop_in(&state);
    assert!(ended.stderr.contains("ended the keeper"), "{}", ended.stderr);
    said(ended, "state-loose");
    assert_nothing_is_left(&job);
    mode(&state, 0o700);
    stop(&job, &[]);
    // A single file that other users can read hides no keeper.
    let handed = start(&job, &[]);
    let written = Path::new(handed["WIFSHARE_RUN"].as_ref().unwrap()).join("keeper.json");
    mode(&written, 0o644);
    said(job.run(&["stop"]), "state-loose");
    mode(&written, 0o600);
    stop(&job, &[]);
    assert_nothing_is_left(&job);
    if rustix::process::geteuid().is_root() {
        rustix::fs::chown(&state, Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
        said(stop_in(&state), "state-foreign");
        rustix::fs::chown(&state, Some(rustix::fs::Uid::from_raw(0)), None).unwrap();
    }
}

#[test]
fn stop_without_a_keeper_prints_nothing() {
    let mut job = Job::new(settings());
    stop(&job, &[]);
    stop(&job, &["--all"]);
    job.token(&[]);
    stop(&job, &[]);
    assert!(job.files_with_secrets().is_empty(), "what `token` left goes with it");
}

#[test]
fn failed_start_prints_the_reason_and_leaves_no_files() {
    for delivery in ["profile", "gateway"] {
        a_refusal_is_told_under(delivery);
    }
}

fn a_refusal_is_told_under(delivery: &str) {
    let job = Job::new(settings());
    job.sandbox.set_settings(Settings {
        exchange_faults: vec![Fault::Status { status: 401, retry_after_s: None, commit: true }; 4],
        ..settings()
    });
    let ended = job.run(&["start", "--delivery", delivery]);
    assert_eq!((ended.code, ended.stdout.as_str()), (125, "sh -c 'exit 125';\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("error[exchange-refused]") && ended.stderr.contains("hint:"), "{}", ended.stderr);
    assert_nothing_is_left(&job);
    let ended = job.run(&["start", "--watch-pid", "4194304"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
}

#[test]
fn start_that_cannot_export_leaves_no_keeper() {
    let mut job = Job::new(settings());
    job.set("GITHUB_ENV", "/nonexistent/file");
    let ended = job.run(&["start"]);
    assert_eq!(ended.code, 125);
    assert!(ended.stderr.contains("error[handover]"), "{}", ended.stderr);
    assert_nothing_is_left(&job);
}

#[test]
fn start_that_cannot_write_one_file_changes_no_other() {
    for output in ["/nonexistent/file", "/dev/full"] {
        let mut job = Job::new(settings());
        let file = job.path("github-env");
        std::fs::write(&file, "EARLIER=step").unwrap();
        job.set("GITHUB_ENV", file.to_str().unwrap());
        job.set("GITHUB_OUTPUT", output);
        let ended = job.run(&["start"]);
        assert_eq!(ended.code, 125, "{output}");
        assert!(ended.stderr.contains("error[handover]"), "{}", ended.stderr);
        assert_eq!(ended.stderr.contains("free some space"), output == "/dev/full", "{}", ended.stderr);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "EARLIER=step", "{output}");
        assert_nothing_is_left(&job);
    }
}

#[test]
fn exported_variables_begin_on_a_new_line() {
    let mut job = Job::new(settings());
    let file = job.path("github-env");
    std::fs::write(&file, "EARLIER=step").unwrap();
    job.set("GITHUB_ENV", file.to_str().unwrap());
    assert_eq!(job.run(&["start"]).code, 0);
    let lines = std::fs::read_to_string(&file).unwrap();
    assert!(lines.starts_with("EARLIER=step\nANTHROPIC_"), "{lines}");
    assert_eq!(job.run(&["stop"]).code, 0);
}

#[test]
fn interrupted_start_leaves_no_files() {
    let job = Job::new(Settings { identity_token_latency_ms: 4000, ..settings() });
    let child = job.wifshare(&["start"]).spawn().unwrap();
    eventually("the start has begun", || !files(&job.state()).is_empty());
    signal(i32::try_from(child.id()).unwrap(), Signal::TERM);
    let ended = finish(child);
    assert_eq!(ended.code, 143, "{}", ended.stderr);
    assert_nothing_is_left(&job);
}

#[test]
fn keeper_ends_with_the_watched_process() {
    let job = Job::new(settings());
    let mut watched = job.command("sleep", &["600"]).spawn().unwrap();
    start(&job, &["--watch-pid", &watched.id().to_string()]);
    let pid = the_keeper(&job);
    watched.kill().unwrap();
    watched.wait().unwrap();
    eventually("the keeper has ended", || has_ended(pid));
    assert_nothing_is_left(&job);
}

#[test]
fn keeper_watches_the_runner_process_by_default() {
    let job = Job::new(settings());
    let worker = job.path("Runner.Worker");
    std::fs::copy("/bin/sh", &worker).unwrap();
    // The step's shell ends, and the worker continues.
    let script = r#"sh -c '"$WIFSHARE" start > handed'; touch stepped; while ! [ -e over ]; do sleep 0.05; done"#;
    let worker = job.command(worker.to_str().unwrap(), &["-c", script]).spawn().unwrap();
    eventually("the step is over", || job.path("stepped").exists());
    let pid = the_keeper(&job);
    std::thread::sleep(Duration::from_millis(500));
    assert!(!has_ended(pid));
    File::create(job.path("over")).unwrap();
    finish(worker);
    eventually("the keeper has ended", || has_ended(pid));
    assert_nothing_is_left(&job);
}

#[test]
fn keeper_ends_after_max_life_or_without_its_directory() {
    let job = Job::new(settings());
    start(&job, &["--max-life", "2s"]);
    let pid = the_keeper(&job);
    eventually("the keeper has ended", || has_ended(pid));
    assert_nothing_is_left(&job);
    start(&job, &[]);
    let pid = the_keeper(&job);
    std::fs::remove_dir_all(job.state()).unwrap();
    eventually("the keeper has ended", || has_ended(pid));
    assert!(job.files_with_secrets().is_empty());
}

#[test]
fn hangup_is_ignored_and_stop_cleans_up_after_a_killed_keeper() {
    let job = Job::new(settings());
    let handed = start(&job, &[]);
    let pid = the_keeper(&job);
    for ignored in [Signal::HUP, Signal::USR1, Signal::HUP] {
        signal(pid, ignored);
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(!has_ended(pid));
    assert_eq!(step(&job, &handed, ASK).code, 0);
    signal(pid, Signal::TERM);
    eventually("the keeper has ended", || has_ended(pid));
    assert_nothing_is_left(&job);
    start(&job, &[]);
    let pid = the_keeper(&job);
    signal(pid, Signal::KILL);
    eventually("the keeper has ended", || has_ended(pid));
    assert!(!job.files_with_secrets().is_empty(), "a killed keeper cannot clean up");
    stop(&job, &[]);
    assert_nothing_is_left(&job);
}

#[test]
fn stop_ends_an_unresponsive_keeper() {
    let job = Job::new(settings());
    start(&job, &[]);
    let pid = the_keeper(&job);
    signal(pid, Signal::STOP);
    stop(&job, &[]);
    assert!(has_ended(pid));
    assert_nothing_is_left(&job);
}

#[test]
fn process_with_a_reused_keeper_pid_gets_no_signal() {
    let job = Job::new(settings());
    let handed = start(&job, &[]);
    let run = PathBuf::from(handed["WIFSHARE_RUN"].clone().unwrap());
    let mut innocent = job.command("sleep", &["600"]).spawn().unwrap();
    // Simulates a keeper that ended, whose pid is used by another process, and whose lock is still held.
    let path = run.join("keeper.json");
    let mut written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let pid = the_keeper(&job);
    written["owner"]["pid"] = innocent.id().into();
    std::fs::write(&path, written.to_string()).unwrap();
    stop(&job, &[]);
    assert!(innocent.try_wait().unwrap().is_none(), "the wrong process was ended");
    // The keeper ends with its directory.
    eventually("the keeper has ended", || has_ended(pid));
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    assert_nothing_is_left(&job);
}

#[test]
fn keeper_inherits_no_stream_and_no_descriptor() {
    let job = Job::new(settings());
    // A pipe that a caller waits for, and a descriptor without close-on-exec.
    let script = r#"exec 7>inherited; "$WIFSHARE" start 2>&1 | cat > said; echo over"#;
    let begun = Instant::now();
    let ended = finish(job.command("sh", &["-c", script]).stdin(Stdio::null()).spawn().unwrap());
    assert_eq!(ended.stdout, "over\n", "{}", ended.stderr);
    assert!(begun.elapsed() < Duration::from_secs(60), "the pipe ended with the command");
    let pid = the_keeper(&job);
    let inside = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: Vec<PathBuf> = inside.map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap()).collect();
    let foreign = |path: &&PathBuf| {
        let text = path.to_string_lossy();
        text.starts_with('/') && text != "/dev/null" && !path.starts_with(job.state())
    };
    assert_eq!(open.iter().filter(foreign).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string(), "a session of its own");
    stop(&job, &[]);
}

#[test]
fn same_user_cannot_read_the_keeper_environment() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "only root can become somebody else");
        return;
    }
    let job = Job::new(settings());
    rustix::fs::chmod(job.path(""), rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
    std::fs::copy(WIFSHARE, job.path("bin")).unwrap();
    let as_nobody = |script: &str| {
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script];
        finish(job.command("setpriv", &nobody).spawn().unwrap())
    };
    let started = as_nobody("./bin start");
    assert_eq!(started.code, 0, "{}", started.stderr);
    let pid = the_keeper_in(&job.path("wifshare-65534"));
    let seen = as_nobody(&format!("cat /proc/{pid}/environ; ls /proc/{pid}/fd"));
    assert_eq!(seen.stdout, "");
    let stopped = as_nobody("./bin stop");
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    assert!(has_ended(pid));
}

#[test]
fn job_longer_than_its_token_is_never_refused() {
    let job = Job::new(living(3));
    let handed = start(&job, &[]);
    let asking = format!("for i in $(seq 12); do {ASK} || exit 9; sleep 0.25; done");
    for number in 0..4 {
        let ended = step(&job, &handed, &asking);
        assert_eq!(ended.code, 0, "step {number}: {}", ended.stderr);
    }
    stop(&job, &[]);
    let counters = job.counters();
    assert_eq!(counters.messages_refused, 0, "{counters:#?}");
    assert!(counters.exchanges_accepted >= 4, "{counters:#?}");
    job.assert_nothing_sent_twice();
    assert_nothing_is_left(&job);
}

#[test]
fn github_steps_share_one_exchange_with_all_secrets_masked() {
    let mut runner = Runner::new(Job::new(settings()));
    let started = runner.step(runner.job.wifshare(&["start"]));
    assert_eq!((started.code, started.stdout.as_str()), (0, ""), "{}", started.stderr);
    assert_eq!(runner.outputs["anthropic_profile"], "wifshare");
    assert_eq!(runner.variables["ANTHROPIC_FEDERATION_RULE_ID"], "");
    let scripts = [format!("{ASK}; cat $ANTHROPIC_CONFIG_DIR/credentials/*"), format!(r#""$WIFSHARE" exec -- {ASK}"#)];
    runner.steps_in_parallel(&scripts);
    let stopped = runner.step(runner.job.wifshare(&["stop"]));
    assert_eq!(stopped.code, 0, "{}", stopped.stderr);
    runner.assert_everything_is_masked();
    runner.job.assert_exchanges(1);
    assert_nothing_is_left(&runner.job);
}

#[test]
fn job_cancelled_in_any_step_leaves_no_files() {
    for cancelled in 0..3 {
        let latency = if cancelled == 0 { 3000 } else { 0 };
        let mut runner = Runner::new(Job::new(Settings { exchange_latency_ms: latency, ..settings() }));
        let commands = [
            r#"touch begun-0; "$WIFSHARE" start"#,
            "touch begun-1; sleep 600",
            r#"touch begun-2; "$WIFSHARE" exec -- sleep 600"#,
        ];
        for (number, script) in commands.iter().enumerate().take(cancelled + 1) {
            if number > 0 && number < cancelled {
                continue;
            }
            let command = runner.job.command("sh", &["-c", script]);
            let step = runner.begin(command);
            if number == cancelled {
                let begun = runner.job.path(&format!("begun-{number}"));
                eventually("the step has begun", || begun.exists());
                if number == 0 {
                    eventually("an exchange is under way", || runner.job.counters().exchanges_received > 0);
                }
                // Cancels like a runner: SIGTERM, and a moment later SIGKILL.
                let group = Pid::from_child(&step.child);
                kill_process_group(group, Signal::TERM).unwrap();
                std::thread::sleep(Duration::from_millis(200));
                let _ = kill_process_group(group, Signal::KILL);
            }
            runner.end(step);
        }
        // A post step runs in any case.
        let stopped = runner.step(runner.job.wifshare(&["stop"]));
        assert_eq!(stopped.code, 0, "{}", stopped.stderr);
        eventually("nothing runs", || keepers(&runner.job.state()).is_empty());
        eventually("nothing is left", || runner.job.files_with_secrets().is_empty());
        runner.job.assert_nothing_sent_twice();
    }
}

/// Returns the number of voluntary context switches of all threads of a process. Each one means that the process woke
/// up before.
fn waits(pid: i32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let waits = tasks.map(|task| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap().trim();
        line.parse::<u64>().unwrap()
    });
    waits.sum()
}

#[cfg(target_os = "linux")]
#[test]
fn idle_keeper_does_not_wake_up_and_stays_small() {
    for delivery in ["profile", "federation", "environment", "gateway"] {
        let job = Job::new(settings());
        start(&job, &["--delivery", delivery]);
        let pid = the_keeper(&job);
        std::thread::sleep(Duration::from_secs(2));
        let before = waits(pid);
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(waits(pid) - before, 0, "{delivery}: it woke up");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
        let kilobytes: u64 = resident.trim_end_matches(" kB").parse().unwrap();
        eprintln!("{delivery}: {resident} resident");
        // A release build has a fifth of the code's pages. The documents contain its figure.
        assert!(kilobytes < 16 * 1024, "{delivery}: {resident} resident");
        stop(&job, &[]);
    }
}

#[test]
fn doctor_reports_whether_the_keeper_is_alive() {
    let job = Job::new(settings());
    let handed = start(&job, &[]);
    let doctor = r#""$WIFSHARE" doctor"#;
    let well = step(&job, &handed, doctor);
    assert!(well.code == 0 && well.stdout.contains("inside a run of wifshare"), "{}", well.stdout);
    let pid = the_keeper(&job);
    signal(pid, Signal::KILL);
    // The threads end one after another, and the last one releases the lock.
    eventually("doctor tells that the keeper is gone", || {
        let gone = step(&job, &handed, doctor);
        gone.code == 1 && gone.stdout.contains("ended without a clean stop")
    });
    stop(&job, &[]);
}
