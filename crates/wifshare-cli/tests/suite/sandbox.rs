//! `wifshare sandbox` on the command line: a server until Ctrl-C, or until one command ends.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::job::{Job, finish, settings};

#[test]
fn sandbox_runs_a_command_against_its_server() {
    let job = Job::new(settings());
    let script = r#"set -e; "$WIFSHARE" exec -- sh -c 'test -f "$ANTHROPIC_CONFIG_DIR/configs/wifshare.json"'
        echo "at $ANTHROPIC_BASE_URL"; exit 7"#;
    let ended = job.run(&["sandbox", "--", "sh", "-c", script]);
    assert_eq!((ended.code, ended.stderr.as_str()), (7, ""), "{}", ended.stdout);
    assert!(ended.stdout.starts_with("at http://127.0.0.1:"), "{}", ended.stdout);
    job.assert_exchanges(0);
    assert_eq!(job.run(&["sandbox", "--", "./no-such-client"]).code, 127);
}

#[test]
fn sandbox_prints_its_variables_in_each_format() {
    let job = Job::new(settings());
    for (format, expected) in [
        ("dotenv", "ANTHROPIC_BASE_URL=http://127.0.0.1:"),
        ("env", "export ANTHROPIC_BASE_URL="),
        ("json", r#"  "ANTHROPIC_BASE_URL": "http://127.0.0.1:"#),
    ] {
        let mut command = job.wifshare(&["sandbox", "--format", format]);
        let mut sandbox = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(sandbox.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("serves until Ctrl-C"), "{said}");
        kill_process(Pid::from_child(&sandbox), Signal::INT).unwrap();
        let ended = finish(sandbox);
        assert_eq!(ended.code, 0);
        assert!(ended.stdout.lines().any(|line| line.starts_with(expected)), "{format}: {}", ended.stdout);
    }
}
