//! After `stop`, a kill or a sweep, later steps have the job's own variables again and sign in again, or learn which
//! run is over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::job::{Ended, Job, eventually, files, finish, settings};
use crate::runner::Runner;

const ASK: &str = r#""$WIFSHARE" demo --child shared"#;

const DELIVERIES: [&str; 4] = ["profile", "environment", "federation", "gateway"];

/// The job's own variables.
const OWN: [&str; 4] =
    ["ANTHROPIC_FEDERATION_RULE_ID", "ANTHROPIC_ORGANIZATION_ID", "ANTHROPIC_SERVICE_ACCOUNT_ID", "ANTHROPIC_BASE_URL"];

/// The ways in which a keeper can end without restoring variables.
#[derive(Clone, Copy, Debug)]
enum End {
    StopElsewhere,
    Kill,
    Sweep,
    Lost,
}

const ENDS: [End; 4] = [End::StopElsewhere, End::Kill, End::Sweep, End::Lost];

fn keeper_of(state: &Path) -> Option<(PathBuf, Pid)> {
    let written = files(state).into_iter().find(|path| path.ends_with("keeper.json"))?;
    let text = std::fs::read(&written).unwrap();
    let pid = serde_json::from_slice::<Value>(&text).unwrap()["owner"]["pid"].as_i64().unwrap();
    Some((written.parent().unwrap().to_owned(), Pid::from_raw(pid.try_into().unwrap()).unwrap()))
}

fn is_gone(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

fn bring_about(end: End, job: &Job) {
    let (run, pid) = keeper_of(&job.state()).expect("a keeper");
    match end {
        // From a shell without the run's variables. No file of later steps is written.
        End::StopElsewhere => assert_eq!(finish(job.wifshare(&["stop", "--all"]).spawn().unwrap()).code, 0),
        End::Kill => kill_process(pid, Signal::KILL).unwrap(),
        End::Sweep => {
            kill_process(pid, Signal::KILL).unwrap();
            eventually("it is gone", || is_gone(pid));
            std::fs::remove_dir_all(run).unwrap();
        }
        End::Lost => std::fs::remove_dir_all(job.state()).unwrap(),
    }
    eventually("the keeper is gone", || is_gone(pid));
    std::thread::sleep(std::time::Duration::from_millis(200));
}

fn sh(runner: &mut Runner, script: &str) -> Ended {
    let command = runner.job.command("sh", &["-c", script]);
    runner.step(command)
}

fn well(ended: &Ended, what: &str) {
    assert_eq!(ended.code, 0, "{what}: {} {}", ended.stdout, ended.stderr);
}

#[test]
fn stop_restores_the_variables_of_later_github_steps() {
    for delivery in DELIVERIES {
        let mut job = Job::new(settings());
        job.set("NO_PROXY", "internal.example");
        job.set("HTTP_PROXY", "http://127.0.0.1:9");
        let own: BTreeMap<&str, String> =
            OWN.into_iter().map(|name| (name, job.variable(name).unwrap_or_default().to_owned())).collect();
        let mut runner = Runner::new(job);
        well(&runner.step(runner.job.wifshare(&["start", "--delivery", delivery])), delivery);
        let stopped = runner.step(runner.job.wifshare(&["stop"]));
        well(&stopped, delivery);
        assert!(stopped.stderr.contains("ended the keeper"), "{}", stopped.stderr);
        for (name, value) in &own {
            assert_eq!(runner.variables.get(*name).unwrap_or(value), value, "{delivery}: {name}");
        }
        assert_eq!(runner.variables.get("NO_PROXY").map_or("internal.example", String::as_str), "internal.example");
        for name in [
            "WIFSHARE_RUN",
            "WIFSHARE_STARTED",
            "ANTHROPIC_CONFIG_DIR",
            "ANTHROPIC_PROFILE",
            "ANTHROPIC_AUTH_TOKEN",
            "ANTHROPIC_IDENTITY_TOKEN_FILE",
        ] {
            assert_eq!(runner.variables.get(name).map_or("", String::as_str), "", "{delivery}: {name}");
        }
        // The next sign-in of the job works with every command.
        well(&sh(&mut runner, &format!(r#""$WIFSHARE" exec -- {ASK}"#)), delivery);
        well(&runner.step(runner.job.wifshare(&["start"])), delivery);
        well(&sh(&mut runner, ASK), delivery);
        well(&runner.step(runner.job.wifshare(&["stop"])), delivery);
        runner.job.assert_nothing_sent_twice();
    }
}

#[test]
fn step_after_a_lost_keeper_signs_in_again() {
    for end in ENDS {
        let mut runner = Runner::new(Job::new(settings()));
        well(&runner.step(runner.job.wifshare(&["start"])), "start");
        bring_about(end, &runner.job);
        let executed = sh(&mut runner, &format!(r#""$WIFSHARE" exec -- {ASK}"#));
        well(&executed, &format!("exec after {end:?}"));
        assert!(
            executed.stderr.contains("signing in again") && executed.stderr.contains("user "),
            "{}",
            executed.stderr
        );
        well(&sh(&mut runner, r#"[ -n "$("$WIFSHARE" token)" ]"#), &format!("token after {end:?}"));
        let doctor = runner.step(runner.job.wifshare(&["doctor"]));
        assert_eq!(doctor.code, 1, "{end:?}: {}", doctor.stdout);
        assert!(doctor.stdout.contains("cure: run `wifshare start` before this step"), "{}", doctor.stdout);
        // The fix that doctor prints, unchanged.
        well(&sh(&mut runner, r#"PATH=$(dirname "$WIFSHARE"):$PATH; wifshare start"#), &format!("start after {end:?}"));
        well(&sh(&mut runner, ASK), &format!("a client after {end:?}"));
        let doctor = runner.step(runner.job.wifshare(&["doctor"]));
        well(&doctor, &format!("doctor after {end:?}"));
        well(&runner.step(runner.job.wifshare(&["stop"])), "stop");
        runner.job.assert_nothing_sent_twice();
        assert!(runner.job.files_with_secrets().is_empty(), "{end:?}: {:?}", runner.job.files_with_secrets());
    }
}

#[test]
fn ids_given_as_options_survive_the_keeper() {
    let mut job = Job::new(settings());
    let ids = [("--federation-rule-id", OWN[0]), ("--organization-id", OWN[1]), ("--base-url", OWN[3])];
    let ids = ids.map(|(option, name)| (option, job.variable(name).unwrap().to_owned()));
    OWN.iter().for_each(|name| job.unset(name));
    let mut runner = Runner::new(job);
    let options: Vec<&str> = ids.iter().flat_map(|(option, value)| [*option, value.as_str()]).collect();
    well(&runner.step(runner.job.wifshare(&[&["start"], &options[..]].concat())), "start");
    bring_about(End::Kill, &runner.job);
    well(&sh(&mut runner, &format!(r#""$WIFSHARE" exec -- {ASK}"#)), "exec");
    well(&runner.step(runner.job.wifshare(&["stop"])), "stop");
    assert_eq!(runner.variables.get(OWN[0]).map_or("", String::as_str), "", "the job never had it");
}

/// Returns a script that evaluates the output of `start` and `stop` and prints its variables before and after.
fn there_and_back(shell: &str) -> String {
    let (start, stop) = match shell {
        "fish" => ("eval (\"$WIFSHARE\" start --format env)", "eval (\"$WIFSHARE\" stop --format env)"),
        _ => ("eval \"$(\"$WIFSHARE\" start --format env)\"", "eval \"$(\"$WIFSHARE\" stop --format env)\""),
    };
    let sorted = "env | grep -E '^(ANTHROPIC|ACTIONS|WIFSHARE_)' | sort";
    format!(
        "{sorted} > before\n{start}\n{sorted} > between\n{ASK} && echo asked\n{stop}\n{sorted} > after\n\"$WIFSHARE\" exec -- {ASK} \
         && echo asked again\n"
    )
}

#[test]
fn shell_evaluating_stop_gets_its_variables_back() {
    for (shell, options) in
        [("sh", &["-eu"][..]), ("dash", &["-eu"]), ("bash", &["-eu"]), ("zsh", &["-eu"]), ("fish", &[])]
    {
        if !Command::new(shell).args(["-c", "true"]).status().is_ok_and(|status| status.success()) {
            assert!(std::env::var_os("CI").is_none(), "{shell} is missing");
            continue;
        }
        let job = Job::new(settings());
        let script = there_and_back(shell);
        let ended = finish(job.command(shell, &[options, &["-c", &script]].concat()).spawn().unwrap());
        assert_eq!(ended.code, 0, "{shell}: {} {}", ended.stdout, ended.stderr);
        assert_eq!(ended.stdout.matches("asked").count(), 2, "{shell}: {} {}", ended.stdout, ended.stderr);
        let read = |name: &str| std::fs::read_to_string(job.path(name)).unwrap();
        let (before, between, after) = (read("before"), read("between"), read("after"));
        assert!(between.contains("ANTHROPIC_PROFILE=wifshare"), "{shell}: {between}");
        assert!(!between.contains("ACTIONS_ID_TOKEN_REQUEST_TOKEN="), "{shell}: {between}");
        assert_eq!(before, after, "{shell}");
        job.assert_exchanges(2);
        // These files contain the job's own secrets.
        ["before", "after"].iter().for_each(|name| std::fs::remove_file(job.path(name)).unwrap());
    }
}

#[test]
fn stop_json_and_dotenv_undo_start() {
    for format in ["json", "dotenv"] {
        let job = Job::new(settings());
        let started = finish(job.wifshare(&["start", "--format", "json"]).spawn().unwrap());
        let handed: BTreeMap<String, Option<String>> = serde_json::from_str(&started.stdout).unwrap();
        let mut stop = job.wifshare(&["stop", "--format", format]);
        for (name, value) in &handed {
            match value {
                Some(value) => stop.env(name, value),
                None => stop.env_remove(name),
            };
        }
        let stopped = finish(stop.spawn().unwrap());
        assert_eq!(stopped.code, 0, "{}", stopped.stderr);
        let undone: BTreeMap<String, Option<String>> = match format {
            "json" => serde_json::from_str(&stopped.stdout).unwrap(),
            _ => {
                let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
                let lines = stopped.stdout.lines().filter_map(pair);
                lines.map(|(name, value)| (name, Some(value).filter(|value| !value.is_empty()))).collect()
            }
        };
        for name in ["WIFSHARE_RUN", "WIFSHARE_STARTED", "ANTHROPIC_CONFIG_DIR", "ANTHROPIC_PROFILE"] {
            assert_eq!(undone.get(name), Some(&None), "{format}: {name}: {}", stopped.stdout);
        }
        assert_eq!(undone[OWN[0]].as_deref(), job.variable(OWN[0]), "{format}");
        assert!(
            stopped.stderr.contains("ACTIONS_ID_TOKEN_REQUEST_TOKEN"),
            "what has no copy is named: {}",
            stopped.stderr
        );
        job.search(&stopped.stdout, "what stop printed");
    }
}

#[test]
fn shell_without_variables_learns_which_run_is_over() {
    for end in ENDS {
        let job = Job::new(settings());
        let started = finish(job.wifshare(&["start", "--format", "json"]).spawn().unwrap());
        let handed: BTreeMap<String, Option<String>> = serde_json::from_str(&started.stdout).unwrap();
        bring_about(end, &job);
        let uid = rustix::process::geteuid().as_raw();
        for arguments in [
            &["start"][..],
            &["exec", "--", "true"],
            &["token"],
            &["claude", "--claude", "sh", "--", "-c", "true"],
            &["doctor"],
        ] {
            let mut command = job.wifshare(arguments);
            for (name, value) in &handed {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
            let ended = finish(command.spawn().unwrap());
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert_eq!(ended.code, if arguments == ["doctor"] { 1 } else { 125 }, "{end:?} {arguments:?}: {said}");
            assert!(arguments == ["doctor"] || said.contains("error[run-over]"), "{end:?} {arguments:?}: {said}");
            assert!(said.contains(&format!("of user {uid}")), "{end:?} {arguments:?}: {said}");
            assert!(
                ["ended at 20", "clean stop", "is over"].iter().any(|words| said.contains(words)),
                "{end:?} {arguments:?}: {said}"
            );
            assert!(said.contains("ACTIONS_ID_TOKEN_REQUEST_TOKEN"), "{end:?} {arguments:?}: {said}");
        }
        finish(job.wifshare(&["stop", "--all"]).spawn().unwrap());
    }
}

#[test]
fn other_user_learns_who_owns_the_run() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut job = Job::new(settings());
    rustix::fs::chmod(job.path(""), rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
    std::fs::copy(crate::job::WIFSHARE, job.path("bin")).unwrap();
    let started = finish(job.wifshare(&["start", "--format", "json"]).spawn().unwrap());
    let handed: BTreeMap<String, Option<String>> = serde_json::from_str(&started.stdout).unwrap();
    job.set("WIFSHARE_STATE_DIR", job.path("of-another").to_str().unwrap());
    let mut command =
        job.command("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups", "./bin", "exec", "--", "true"]);
    for (name, value) in &handed {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let ended = finish(command.spawn().unwrap());
    assert_eq!(ended.code, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("of user 0") && ended.stderr.contains("65534"), "{}", ended.stderr);
    job.unset("WIFSHARE_STATE_DIR");
    finish(job.wifshare(&["stop"]).spawn().unwrap());
}

#[test]
fn sign_in_after_a_lost_keeper_keeps_the_expected_subject() {
    let mut runner = Runner::new(Job::new(settings()));
    let start = ["start", "--expect-subject", "repo:octo-org/octo-repo:*"];
    well(&runner.step(runner.job.wifshare(&start)), "start");
    // With its state, because a credential obtained with the same expected subject is served.
    bring_about(End::Lost, &runner.job);
    // From now on, the subject has another form.
    runner
        .job
        .sandbox
        .set_settings(wifshare_sandbox::Settings { immutable_subject: true, ..runner.job.sandbox.settings() });
    let refused = sh(&mut runner, r#""$WIFSHARE" exec -- true"#);
    assert_eq!(refused.code, 125, "{}", refused.stderr);
    assert!(refused.stderr.contains("error[subject-unexpected]"), "{}", refused.stderr);
    runner.job.assert_exchanges(1);
}
