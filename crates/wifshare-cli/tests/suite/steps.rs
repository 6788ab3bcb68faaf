//! `wifshare claude` with a substitute for claude that prints its input: the relation of the steps.

use std::io::Write;
use std::process::Stdio;

use crate::job::{Job, finish, settings};

/// Prints its arguments and its standard input.
const SHOWS: &str = "#!/bin/sh\necho \"$@\"\ncat\n";

#[test]
fn only_the_query_step_gets_stdin_and_stdout() {
    let job = Job::new(settings());
    let claude = job.path("claude");
    std::fs::write(&claude, SHOWS).unwrap();
    rustix::fs::chmod(&claude, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    let arguments =
        ["claude", "--claude", claude.to_str().unwrap(), "--marketplace", ".", "--plugin", "a@b", "--", "-p"];
    let mut child = job.wifshare(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"the prompt\n").unwrap();
    let ended = finish(child);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "-p\nthe prompt\n"), "{}", ended.stderr);
    assert_eq!(ended.stderr, "plugin marketplace add .\nplugin install a@b\n");
}
