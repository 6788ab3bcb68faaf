//! `./test` with substitutes for cargo and some stages: the output for a failing stage and for those after it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::job::{Ended, Job, finish, settings};

/// Replaces cargo: clippy fails, and so does one of the tests.
const CARGO: &str = r#"#!/bin/sh
case $1 in
    clippy) echo "error: unused variable"; exit 101 ;;
    test) cat <<END; exit 101 ;;
     Running tests/suite/main.rs (target/debug/deps/suite-0123456789abcdef)
test exec::a_command_ends ... ok
test keeper::stop_ends_it ... FAILED
test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
error: 1 target failed:
    \`-p wifshare-cli --test suite\`
END
esac
"#;

/// Copies `./test`, with substitutes for the programs that its stages call.
fn copy(job: &Job) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let place = job.path("checkout");
    let nothing = "#!/bin/sh\n";
    for (path, text) in [
        ("bin/cargo", CARGO),
        ("tests/needs", nothing),
        ("tests/tools/install", nothing),
        ("tests/clients/install", nothing),
        ("tests/lint/run", nothing),
        ("packaging/book/check", nothing),
        ("target/tools/bin/mdbook", nothing),
        ("benches/instructions", nothing),
    ] {
        let path = place.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    std::fs::copy(root.join("test"), place.join("test")).unwrap();
    place
}

fn run(place: &Path, arguments: &[&str]) -> Ended {
    use std::process::Stdio;

    let mut test = Command::new(place.join("test"));
    test.args(arguments).env_clear().env("PATH", format!("{}/bin:/usr/bin:/bin", place.display()));
    finish(test.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

#[test]
fn stages_after_a_failed_one_run_and_the_summary_lists_failures() {
    let job = Job::new(settings());
    let place = copy(&job);
    let ended = run(&place, &[]);
    assert_eq!((ended.code, ended.stderr.as_str()), (1, ""), "{}", ended.stdout);
    let (_, summary) = ended.stdout.split_once("== summary\n").unwrap();
    for stage in ["tools", "clients", "format", "lint", "packages", "docs", "book", "demo", "instructions"] {
        let line = summary.lines().find(|line| line.ends_with(&format!(" s  {stage}")));
        assert!(line.is_some_and(|line| line.starts_with("  passed ")), "{stage}:\n{summary}");
    }
    assert_eq!(summary.matches("  FAILED ").count(), 2, "{summary}");
    let (_, failures) = summary.split_once("in target/\n").unwrap();
    assert_eq!(
        failures,
        "failed: clippy, see target/test/clippy.log\n  error: unused variable\n\
         failed: tests, see target/test/tests.log\n  suite: keeper::stop_ends_it\n  \
         error: 1 target failed:\n      `-p wifshare-cli --test suite`\n10 passed, 2 failed\n",
    );
    let log = std::fs::read_to_string(place.join("target/test/clippy.log")).unwrap();
    assert_eq!(log, "error: unused variable\n");
}

/// The output ends with `./test`, although a process that a stage left behind keeps it open.
#[test]
fn process_left_by_a_stage_does_not_block_the_test_command() {
    let job = Job::new(settings());
    let place = copy(&job);
    std::fs::write(place.join("tests/lint/run"), "#!/bin/sh\nsleep 300 &\necho $! > left\n").unwrap();
    let started = std::time::Instant::now();
    let ended = run(&place, &["lint"]);
    let took = started.elapsed();
    let left = std::fs::read_to_string(place.join("left")).unwrap();
    Command::new("kill").arg(left.trim()).status().unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    assert!(took.as_secs() < 200, "waited for what was left behind: {took:?}");
}

#[test]
fn named_stages_run_alone() {
    let job = Job::new(settings());
    let place = copy(&job);
    let ended = run(&place, &["docs", "lint"]);
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    assert!(ended.stdout.ends_with("\n2 passed, 0 failed\n"), "{}", ended.stdout);
    let unknown = run(&place, &["docs", "no-such"]);
    assert_eq!((unknown.code, unknown.stdout.as_str()), (2, ""));
    assert_eq!(unknown.stderr, "./test: no stage is called no-such; see ./test --list\n");
}

#[test]
fn needs_lists_missing_tools_and_the_install_command() {
    let job = Job::new(settings());
    let needs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/needs");
    let path = job.path("bin");
    std::fs::create_dir(&path).unwrap();
    for program in ["bash", "sed", "cut", "id", "dirname", "apt-get", "git", "head", "sort"] {
        let found = ["/usr/bin", "/bin"].map(|directory| Path::new(directory).join(program));
        let Some(found) = found.iter().find(|path| path.exists()) else { continue };
        std::os::unix::fs::symlink(found, path.join(program)).unwrap();
    }
    let mut command = Command::new("bash");
    command.arg(needs).arg("unit").env_clear().env("PATH", path.to_str().unwrap());
    let ended =
        finish(command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap());
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("needs: no cargo in PATH, and Rust 1."), "{}", ended.stderr);
    assert!(ended.stderr.contains("needs: missing: build-essential\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("apt-get install build-essential\n"), "{}", ended.stderr);
}
