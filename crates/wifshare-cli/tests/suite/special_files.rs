//! A pipe, a socket or a directory in place of a file: no command blocks on it.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::job::{Ended, Job, finish, settings};

const KINDS: [&str; 3] = ["pipe", "socket", "directory"];

/// Replaces a file with a special file of this kind.
fn put(kind: &str, path: &Path) {
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
    match kind {
        "pipe" => {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        "socket" => drop(UnixListener::bind(path).unwrap()),
        _ => std::fs::create_dir(path).unwrap(),
    }
}

/// Runs this command, which must end by itself.
fn ended(job: &Job, arguments: &[&str], what: &str) -> Ended {
    let bounded = [&["60", crate::job::WIFSHARE], arguments].concat();
    let ended = finish(job.command("timeout", &bounded).spawn().unwrap());
    assert_ne!(ended.code, 124, "{what}: {arguments:?} waits for ever");
    assert!(!ended.stderr.contains("panicked"), "{what}: {}", ended.stderr);
    ended
}

#[test]
fn special_file_in_the_state_directory_blocks_no_command() {
    let mut job = Job::new(settings());
    assert_eq!(job.token(&[]).code, 0);
    let key = crate::job::files(&job.state()).into_iter().find(|path| path.ends_with("credential.json")).unwrap();
    let key = key.parent().unwrap();
    let run = key.join("runs/4711-00c0ffee");
    let of_the_root = ["spent", "spent.lock"].map(|name| job.state().join(name));
    let of_the_key =
        ["lock", "lease", "start", "credential.json", "refusal.json", "events.jsonl", "events.before.jsonl", "runs"];
    let of_the_run = ["owner", "keeper.json", "identity.json", "profile"];
    let places = of_the_root.into_iter().chain(of_the_key.map(|name| key.join(name)));
    let places: Vec<PathBuf> = places.chain(of_the_run.map(|name| run.join(name))).collect();
    for kind in KINDS {
        for place in &places {
            let what = format!("a {kind} for {}", place.file_name().unwrap().display());
            let parent = place.parent().unwrap();
            let mut made = std::fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(made.recursive(true), 0o700).create(parent).unwrap();
            put(kind, place);
            job.set("WIFSHARE_RUN", run.to_str().unwrap());
            for arguments in [&["status"][..], &["doctor"], &["report"], &["exec", "--", "true"]] {
                ended(&job, arguments, &what);
            }
            job.unset("WIFSHARE_RUN");
            for arguments in
                [&["token"][..], &["exec", "--", "true"], &["start", "--format", "json"], &["stop"], &["status"]]
            {
                ended(&job, arguments, &what);
            }
            std::fs::remove_dir_all(job.state()).unwrap();
        }
    }
}

#[test]
fn doctor_names_an_event_log_that_is_no_file() {
    let mut job = Job::new(settings());
    assert_eq!(job.token(&[]).code, 0);
    let log = crate::job::files(&job.state()).into_iter().find(|path| path.ends_with("events.jsonl")).unwrap();
    put(KINDS[0], &log);
    let ended = job.run(&["doctor"]);
    assert!(ended.stdout.contains("warning  event log"), "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn special_file_named_by_a_variable_or_option_blocks_no_command() {
    let names = [
        "ANTHROPIC_IDENTITY_TOKEN_FILE",
        "SSL_CERT_FILE",
        "GITHUB_ENV",
        "GITHUB_OUTPUT",
        "GITHUB_STATE",
        "GITHUB_STEP_SUMMARY",
    ];
    for kind in KINDS {
        for name in names {
            let what = format!("a {kind} for {name}");
            let mut job = Job::new(settings());
            job.may_keep_credential();
            if name == "ANTHROPIC_IDENTITY_TOKEN_FILE" {
                job.without_endpoint();
            }
            let place = job.path("special");
            put(kind, &place);
            job.set(name, place.to_str().unwrap());
            job.set("GITHUB_ACTIONS", "true");
            for arguments in
                [&["token"][..], &["exec", "--", "true"], &["doctor"], &["start", "--format", "github"], &["stop"]]
            {
                ended(&job, arguments, &what);
            }
        }
        let job = Job::new(settings());
        let rule = job.path("rule.json");
        put(kind, &rule);
        let refused = ended(&job, &["doctor", "--rule", rule.to_str().unwrap()], kind);
        assert_eq!(refused.code, 2, "{kind}: {}", refused.stderr);
    }
}
