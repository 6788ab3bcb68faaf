//! A user without inotify instances or watches: runs poll, and name the limit once.

use std::process::{Command, Stdio};

use crate::job::{Job, WIFSHARE, finish, living, settings};

/// Returns whether this machine allows user namespaces, which have their own limits.
fn has_user_namespaces() -> bool {
    let made = Command::new("unshare").args(["--user", "--map-root-user", "true"]).stderr(Stdio::null()).status();
    let has = made.is_ok_and(|status| status.success());
    assert!(has || std::env::var_os("CI").is_none() || !rustix::process::geteuid().is_root(), "root can unshare");
    has
}

/// Returns a command with this system limit set to this number.
fn limited(job: &Job, limit: &str, number: u8, command: &[&str]) -> Command {
    let script = format!(r#"echo {number} > /proc/sys/user/{limit} && exec "$@""#);
    job.command("unshare", &[&["--user", "--map-root-user", "sh", "-c", &script, "sh"], command].concat())
}

/// Reads the identity token like a federating client, and waits for the next one.
const NEXT_TOKEN_FOLLOWS: &str = r#"
    sleep 1
    first=$(cat "$ANTHROPIC_IDENTITY_TOKEN_FILE")
    for i in $(seq 50); do
        sleep 0.1
        # Without opening the file, which would be another reader.
        [ "$ANTHROPIC_IDENTITY_TOKEN_FILE" -nt "$RUNNER_TEMP/mark" ] && exit 0
    done
    exit 9"#;

#[test]
fn federation_without_inotify_polls_and_names_the_limit_once() {
    if !has_user_namespaces() {
        return;
    }
    let cases = [
        ("max_inotify_instances", 0, "sysctl fs.inotify.max_user_instances=1024"),
        ("max_inotify_instances", 1, "sysctl fs.inotify.max_user_instances=1024"),
        ("max_inotify_watches", 0, "sysctl fs.inotify.max_user_watches=524288"),
    ];
    for (limit, number, cure) in cases {
        let job = Job::new(settings());
        let script = NEXT_TOKEN_FOLLOWS.replacen("sleep 1\n", "sleep 1; touch \"$RUNNER_TEMP/mark\"\n", 1);
        let exec = [WIFSHARE, "exec", "--delivery", "federation", "--", "sh", "-c", &script];
        let ended = finish(limited(&job, limit, number, &exec).spawn().unwrap());
        assert_eq!(ended.code, 0, "{limit} {number}: {}", ended.stderr);
        assert_eq!(ended.stderr.matches(cure).count(), 1, "{limit} {number}: {}", ended.stderr);
        assert_eq!(job.counters().exchanges_accepted, 1, "{:#?}", job.counters());
    }
}

#[test]
fn environment_without_inotify_renews_on_request() {
    if !has_user_namespaces() {
        return;
    }
    let job = Job::new(living(3));
    let script = r#"sleep 3.2; [ "$("$WIFSHARE" token)" != "$ANTHROPIC_AUTH_TOKEN" ]"#;
    let exec = [WIFSHARE, "exec", "--delivery", "environment", "--", "sh", "-c", script];
    let ended = finish(limited(&job, "max_inotify_instances", 0, &exec).spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("fs.inotify.max_user_instances").count(), 1, "{}", ended.stderr);
    job.assert_exchanges(2);
}

#[test]
fn keeper_without_inotify_names_limit_and_ends_with_directory() {
    if !has_user_namespaces() {
        return;
    }
    let job = Job::new(settings());
    let script = r#""$WIFSHARE" start --format json > handed || exit
        keeper=$(grep -ho '"pid":[0-9]*' "$RUNNER_TEMP"/wifshare-*/*/runs/*/keeper.json | cut -d: -f2)
        kill -0 "$keeper" || exit 8
        rm -rf "$RUNNER_TEMP"/wifshare-*
        for i in $(seq 100); do kill -0 "$keeper" 2> /dev/null || exit 0; sleep 0.1; done
        exit 9"#;
    let ended = finish(limited(&job, "max_inotify_instances", 0, &["sh", "-c", script]).spawn().unwrap());
    std::fs::remove_file(job.path("handed")).unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("fs.inotify.max_user_instances").count(), 1, "{}", ended.stderr);
}
