//! Runs every command of the README and of the first steps, or states why not.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::clients::job_with_clients;
use crate::job::{Ended, Job, WIFSHARE, eventually, finish, settings};

/// The commands that are run elsewhere, and where.
const ELSEWHERE: &[(&str, &str)] = &[
    ("cargo run --release -- demo", "the stage `demo` of `./test`; demo.rs runs the same command unoptimised"),
    ("./test", "this very suite"),
    ("wifshare status --watch", "status.rs watches, on a terminal and into a pipe"),
    ("wifshare report --format html > report.html", "report.rs opens the page in Chromium"),
    ("wifshare sandbox -- ./client", "sandbox.rs runs a command against the server"),
    ("wifshare sandbox --conformance -- ./client", "conformance.rs runs the kit with several clients"),
];

/// Returns the commands in the `sh` blocks, without their comments.
fn commands() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let pages = page("README.md") + &page("docs/getting-started/first-steps.md");
    let blocks = pages.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    let lines: Vec<String> =
        blocks.flat_map(|block| block.replace("|\n", "| ").lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let bare = |line: String| {
        let without_comment = line.split("  #").next().unwrap_or_default();
        without_comment.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    lines.into_iter().map(bare).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Prepares a job for a reader of the README: wifshare in PATH, and the files that it names.
fn reader(job: &mut Job) {
    use std::os::unix::fs::symlink;

    let bin = job.path("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(WIFSHARE, bin.join("wifshare")).unwrap();
    if let Some(clients) = crate::clients::clients() {
        symlink(clients.join("claude-2.1.330"), bin.join("claude")).unwrap();
    }
    let path = format!("{}:{}", bin.to_str().unwrap(), std::env::var("PATH").unwrap());
    job.set("PATH", &path);
    let marketplace =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients/marketplace").canonicalize().unwrap();
    symlink(marketplace, job.path("plugins")).unwrap();
    std::fs::write(job.path("rule.json"), r#"{"match": {"subject_prefix": "repo:octo-org/octo-repo:*"}}"#).unwrap();
    script(job, "job.sh", "#!/bin/sh\nexec wifshare demo --child shared\n");
}

fn script(job: &Job, name: &str, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;

    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o700).open(job.path(name));
    std::io::Write::write_all(&mut file.unwrap(), text.as_bytes()).unwrap();
}

fn shell(job: &Job, line: &str) -> Ended {
    finish(job.command("bash", &["-euo", "pipefail", "-c", line]).spawn().unwrap())
}

#[test]
fn commands_of_readme_and_first_steps_work() {
    let commands = commands();
    assert!(commands.len() >= 6, "{commands:?}");
    for (command, _) in ELSEWHERE {
        assert!(commands.iter().any(|it| it == command), "`{command}` is on neither page");
    }
    for command in commands.iter().filter(|command| ELSEWHERE.iter().all(|(elsewhere, _)| elsewhere != command)) {
        let Some(mut job) = job_with_clients(settings()) else { return };
        reader(&mut job);
        job.may_keep_credential();
        match command.as_str() {
            serving if serving.starts_with("wifshare sandbox --settings") => serves(&job, serving),
            "wifshare start" => {
                let ended = shell(&job, command);
                assert_eq!(ended.code, 0, "{command}: {}", ended.stderr);
                assert_eq!(shell(&job, "wifshare stop").code, 0, "{}", ended.stderr);
                job.assert_exchanges(1);
            }
            command => {
                let ended = shell(&job, command);
                assert_eq!(ended.code, 0, "{command}: {}\n{}", ended.stdout, ended.stderr);
                job.assert_nothing_sent_twice();
            }
        }
    }
}

/// Checks that a server prints its address and serves until it is ended.
fn serves(job: &Job, command: &str) {
    let out = job.path("variables");
    let file = std::fs::File::create(&out).unwrap();
    let mut serving = Command::new("bash");
    serving.args(["-c", &format!("exec {command}")]).current_dir(job.path("."));
    serving.env("PATH", format!("{}:/usr/bin:/bin", job.path("bin").to_str().unwrap())).stdout(file);
    let mut serving = serving.spawn().unwrap();
    eventually("the mock server says where it is", || {
        std::fs::read_to_string(&out).unwrap().contains("ANTHROPIC_BASE_URL=http://127.0.0.1:")
    });
    std::thread::sleep(Duration::from_millis(1));
    serving.kill().unwrap();
    serving.wait().unwrap();
}
