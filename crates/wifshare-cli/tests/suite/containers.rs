//! Containers, simulated with the kernel's namespaces: what a container receives, and what it cannot reach.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::path::Path;

use crate::job::{Ended, Job, eventually, files, finish, living, settings};

/// Returns whether namespaces can be created here. Under CI they must be available.
fn can_contain() -> bool {
    let made = std::process::Command::new("unshare").args(["--mount", "--pid", "--fork", "true"]).output();
    let can = made.is_ok_and(|made| made.status.success());
    assert!(can || std::env::var_os("CI").is_none(), "namespaces cannot be made");
    if !can {
        eprintln!("no namespaces can be made here");
    }
    can
}

/// Runs a script in a container: with its own process ids and its own mounts.
fn contained(job: &Job, script: &str, variables: &[(&str, &str)]) -> std::process::Child {
    let arguments = ["--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-ec", script];
    job.command("unshare", &arguments).envs(variables.iter().copied()).spawn().unwrap()
}

fn start(job: &Job, options: &[&str]) -> BTreeMap<String, Option<String>> {
    let ended = finish(job.wifshare(&[&["start", "--format", "json"], options].concat()).spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn stop(job: &Job) {
    let ended = finish(job.wifshare(&["stop"]).spawn().unwrap());
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
}

fn assert_served(ended: &Ended) {
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
}

#[test]
fn read_only_mounted_profile_is_renewed_inside_a_container() {
    if !can_contain() {
        return;
    }
    let job = Job::new(living(4));
    let handed = start(&job, &[]);
    let profile = handed["ANTHROPIC_CONFIG_DIR"].clone().unwrap();
    std::fs::create_dir(job.path("inside")).unwrap();
    // The profile at the container's path, and an empty directory in place of the state.
    let script = r#"
        mount --bind "$PROFILE" "$PWD/inside" && mount -o remount,ro,bind "$PWD/inside"
        mount -t tmpfs none "$RUNNER_TEMP/wifshare-$(id -u)"
        unset ACTIONS_ID_TOKEN_REQUEST_URL ACTIONS_ID_TOKEN_REQUEST_TOKEN
        for i in $(seq 12); do "$WIFSHARE" demo --child shared; sleep 0.5; done
        ! touch "$PWD/inside/credentials/more" 2>/dev/null
        [ -z "$(ls -A "$RUNNER_TEMP/wifshare-$(id -u)")" ]"#;
    let inside = job.path("inside");
    let variables = [
        ("PROFILE", profile.as_str()),
        ("ANTHROPIC_CONFIG_DIR", inside.to_str().unwrap()),
        ("ANTHROPIC_PROFILE", "wifshare"),
    ];
    assert_served(&finish(contained(&job, script, &variables)));
    assert!(job.counters().exchanges_accepted >= 2, "renewed meanwhile: {:#?}", job.counters());
    assert_eq!(job.counters().messages_refused, 0);
    stop(&job);
    job.assert_nothing_sent_twice();
}

#[test]
fn other_user_in_a_container_reads_no_profile() {
    if !can_contain() {
        return;
    }
    let job = Job::new(settings());
    rustix::fs::chmod(job.path(""), rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    let handed = start(&job, &[]);
    let profile = handed["ANTHROPIC_CONFIG_DIR"].clone().unwrap();
    let look =
        format!("setpriv --reuid=65534 --regid=65534 --clear-groups find '{profile}' -type f -exec cat {{}} +; true");
    let seen = finish(contained(&job, &look, &[]));
    assert_eq!(seen.stdout, "");
    stop(&job);
}

#[test]
fn container_on_host_network_uses_the_gateway_without_credential() {
    if !can_contain() {
        return;
    }
    let job = Job::new(settings());
    let handed = start(&job, &["--delivery", "gateway"]);
    let text = |name: &str| handed[name].clone().unwrap();
    let (url, capability) = (text("ANTHROPIC_BASE_URL"), text("ANTHROPIC_AUTH_TOKEN"));
    let given = [("ANTHROPIC_BASE_URL", url.as_str()), ("ANTHROPIC_AUTH_TOKEN", capability.as_str())];
    // Only two variables, and no access to the state.
    let ask = r#"
        mount -t tmpfs none "$RUNNER_TEMP/wifshare-$(id -u)"
        unset ACTIONS_ID_TOKEN_REQUEST_URL ACTIONS_ID_TOKEN_REQUEST_TOKEN
        PYTHONDONTWRITEBYTECODE=1 python3 -c '
import json, os, urllib.request
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", method="POST",
    data=json.dumps({"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}).encode(),
    headers={"authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"], "content-type": "application/json",
             "anthropic-version": "2023-06-01"})
print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60).status)'"#;
    let asked = finish(contained(&job, ask, &given));
    assert_eq!((asked.code, asked.stdout.as_str()), (0, "200\n"), "{}", asked.stderr);
    assert!(job.files_with_secrets().is_empty(), "{:?}", job.files_with_secrets());
    stop(&job);
    job.assert_exchanges(1);
}

/// The script of docs/guides/containers.md, with the state of this job as the volume.
const SIDECAR: &str = r#"
    trap '"$WIFSHARE" stop; exit 0' TERM INT
    "$WIFSHARE" start --watch-pid none --max-life 168h --format env > .job.env && mv .job.env job.env
    while :; do sleep 3600 & wait $!; done"#;

#[test]
fn sidecar_keeps_the_credential_and_cleans_up_on_sigterm() {
    if !can_contain() {
        return;
    }
    let job = Job::new(living(4));
    let sidecar = contained(&job, SIDECAR, &[]);
    eventually("the sidecar is ready", || job.path("job.env").exists());
    let work = r#"
        mount --bind "$RUNNER_TEMP/wifshare-$(id -u)" "$RUNNER_TEMP/wifshare-$(id -u)"
        mount -o remount,ro,bind "$RUNNER_TEMP/wifshare-$(id -u)"
        . ./job.env
        for i in $(seq 12); do "$WIFSHARE" demo --child shared; sleep 0.5; done
        "$WIFSHARE" exec -- "$WIFSHARE" token > /dev/null"#;
    assert_served(&finish(contained(&job, work, &[])));
    assert!(job.counters().exchanges_accepted >= 2, "renewed meanwhile: {:#?}", job.counters());
    assert_eq!(job.counters().messages_refused, 0);
    assert!(!job.files_with_secrets().is_empty());
    // The signal that a container engine sends to process 1.
    let children = format!("/proc/{0}/task/{0}/children", sidecar.id());
    let first: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(first).unwrap(), rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(finish(sidecar).code, 0);
    assert!(job.files_with_secrets().is_empty(), "{:?}", job.files_with_secrets());
    job.assert_nothing_sent_twice();
}

#[test]
fn stop_ends_a_keeper_in_another_container() {
    if !can_contain() {
        return;
    }
    let job = Job::new(settings());
    let sidecar = contained(&job, SIDECAR, &[]);
    eventually("the sidecar is ready", || job.path("job.env").exists());
    stop(&job);
    let is_there =
        |name: &'static str| files(&job.state()).into_iter().any(move |path| path.ends_with(Path::new(name)));
    eventually("the keeper has ended", || !is_there("keeper.json") && !is_there("owner"));
    assert!(job.files_with_secrets().is_empty(), "{:?}", job.files_with_secrets());
    let group = format!("/proc/{0}/task/{0}/children", sidecar.id());
    let first: i32 = std::fs::read_to_string(group).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(first).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    finish(sidecar);
}
