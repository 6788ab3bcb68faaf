//! GitHub Actions: secrets are masked before they could be printed, and output has groups and annotations.

use crate::job::{Job, eventually, finish, settings};

#[test]
fn both_tokens_are_masked_on_stderr_before_the_command_starts() {
    let mut job = Job::new(settings());
    job.set("GITHUB_ACTIONS", "true");
    let child = job.wifshare(&["exec", "--", "sh", "-c", "echo child >&2; cat $ANTHROPIC_CONFIG_DIR/credentials/*"]);
    let ended = finish({ child }.spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let begun = lines.iter().position(|line| *line == "child").unwrap();
    let secrets = job.sandbox.secrets();
    let used: Vec<&String> = secrets.iter().filter(|secret| ended.stderr.contains(secret.as_str())).collect();
    assert_eq!(used.len(), 2, "the identity token and the access token");
    for secret in used {
        assert!(lines[..begun].contains(&format!("::add-mask::{secret}").as_str()));
        let shown = lines.iter().filter(|line| line.contains(secret.as_str()));
        assert!(shown.into_iter().all(|line| line.starts_with("::add-mask::")), "shown to the runner alone");
    }
}

#[test]
fn token_stdout_contains_only_the_token() {
    let mut job = Job::new(settings());
    job.set("GITHUB_ACTIONS", "true");
    for _ in 0..2 {
        job.may_keep_credential();
        let ended = finish(job.wifshare(&["token"]).spawn().unwrap());
        let token = ended.stdout.trim();
        assert_eq!(ended.stdout, format!("{token}\n"));
        assert!(ended.stderr.contains(&format!("::add-mask::{token}\n")), "also when it is warm");
    }
}

#[test]
fn credential_of_an_earlier_step_is_masked_again() {
    let mut job = Job::new(settings());
    job.set("GITHUB_ACTIONS", "true");
    job.may_keep_credential();
    let token = finish(job.wifshare(&["token"]).spawn().unwrap()).stdout;
    let ended = finish(job.wifshare(&["exec", "--", "true"]).spawn().unwrap());
    assert!(ended.stderr.contains(&format!("::add-mask::{token}")), "{}", ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn actionable_warnings_and_errors_are_annotations() {
    let mut job = Job::new(settings());
    job.set("GITHUB_ACTIONS", "true");
    job.set("ANTHROPIC_API_KEY", "their-own");
    let shadowed = job.exec(&[], "true");
    assert!(shadowed.stderr.contains("::warning title=wifshare::ANTHROPIC_API_KEY is set"), "{}", shadowed.stderr);
    job.set("ANTHROPIC_API_KEY", "");
    job.set("ANTHROPIC_ORGANIZATION_ID", "");
    let failed = job.exec(&[], "true");
    let annotation = failed.stderr.lines().find(|line| line.starts_with("::error title=wifshare::")).unwrap();
    assert!(annotation.contains("%0A  hint: "), "{annotation}");
}

/// A job on GitHub with a regular file as standard error.
fn job_with_stderr_in_a_file() -> (Job, std::path::PathBuf) {
    let mut job = Job::new(settings());
    job.set("GITHUB_ACTIONS", "true");
    job.may_keep_credential();
    let path = job.path("stderr");
    (job, path)
}

#[test]
fn masks_are_not_written_to_a_regular_file() {
    for arguments in [
        &["exec", "--", "true"][..],
        &["exec", "--delivery", "gateway", "--", "sleep", "2"],
        &["exec", "-vv", "--delivery", "federation", "--", "true"],
        &["token"],
        &["doctor", "--exchange"],
        &["start", "--format", "json"],
    ] {
        let (job, path) = job_with_stderr_in_a_file();
        let mut command = job.wifshare(arguments);
        command.stderr(std::fs::File::create(&path).unwrap());
        let ended = finish(command.spawn().unwrap());
        let said = std::fs::read_to_string(&path).unwrap();
        assert_eq!(ended.code, 0, "{arguments:?}: {said}");
        job.search(&said, "the file of standard error");
        assert!(!said.contains("::add-mask::"), "{arguments:?}: {said}");
        assert_eq!(said.matches("standard error is a file").count(), 1, "{arguments:?}: {said}");
        job.run(&["stop", "--all"]);
    }
}

#[test]
fn mask_option_forces_or_disables_masks() {
    let (job, path) = job_with_stderr_in_a_file();
    let said = |arguments: &[&str]| {
        let mut command = job.wifshare(arguments);
        command.stderr(std::fs::File::create(&path).unwrap());
        assert_eq!(finish(command.spawn().unwrap()).code, 0);
        std::fs::read_to_string(&path).unwrap()
    };
    assert_eq!(said(&["--mask", "never", "exec", "--", "true"]), "");
    assert!(said(&["exec", "--mask=always", "--", "true"]).contains("::add-mask::"));
    std::fs::remove_file(&path).unwrap();
    let quiet = finish(job.wifshare(&["--mask", "never", "token"]).spawn().unwrap());
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
}

#[test]
fn json_log_stays_json_in_github_actions() {
    let mut job = Job::new(settings());
    job.set("GITHUB_ACTIONS", "true");
    job.set("ANTHROPIC_CUSTOM_HEADERS", "x: y");
    let ended = job.exec(&["--log-format", "json", "-vv"], "true");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let lines: Vec<serde_json::Value> =
        ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let withheld = lines.iter().filter(|line| line["message"].as_str().unwrap().contains("standard error is JSON"));
    assert_eq!(withheld.count(), 1, "{}", ended.stderr);
}

#[test]
fn each_process_masks_a_secret_once() {
    let mut job = Job::new(settings());
    job.set("GITHUB_ACTIONS", "true");
    let ended = finish(job.wifshare(&["exec", "-vv", "--", "true"]).spawn().unwrap());
    let mut masks: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("::add-mask::")).collect();
    let all = masks.len();
    masks.sort_unstable();
    masks.dedup();
    assert_eq!((all, masks.len()), (2, 2), "the identity token and the access token");
}

/// Returns a full pipe whose reader does not read.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writer, &[b'.'; 4096]).is_ok() {}
    while rustix::io::write(&writer, b".").is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

#[test]
fn unread_stderr_blocks_no_process() {
    let mut job = Job::new(settings());
    job.set("GITHUB_ACTIONS", "true");
    job.may_keep_credential();
    let (_reader, writer) = full_pipe();
    let begin = std::time::Instant::now();
    let run = |arguments: &[&str]| {
        let mut command = job.wifshare(arguments);
        command.stderr(writer.try_clone().unwrap());
        finish(command.spawn().unwrap()).code
    };
    let codes: Vec<i32> = std::thread::scope(|scope| {
        let ours = [&["exec", "-vv", "--", "sh", "-c", "exit 7"][..], &["token", "-vv"], &["exec", "--", "true"]];
        let running: Vec<_> = ours.map(|arguments| scope.spawn(move || run(arguments))).into();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(codes, [7, 0, 0]);
    assert!(begin.elapsed() < std::time::Duration::from_secs(30), "{:?}", begin.elapsed());
    job.assert_exchanges(1);

    // A signal is handled although the output is not read.
    let mut command = job.wifshare(&["exec", "-vv", "--", "sleep", "60"]);
    command.stderr(writer.try_clone().unwrap());
    let child = command.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(4));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(finish(child).code, 143);
    assert!(begin.elapsed() < std::time::Duration::from_secs(60), "{:?}", begin.elapsed());
}

#[test]
fn blocked_stderr_reader_delays_nothing_under_the_lock() {
    let mut job = Job::new(settings());
    job.set("GITHUB_ACTIONS", "true");
    job.may_keep_credential();
    let (_reader, writer) = full_pipe();
    let mut command = job.wifshare(&["token"]);
    let asking = command.stderr(writer.try_clone().unwrap()).spawn().unwrap();
    eventually("an identity token is issued", || job.counters().identity_tokens_issued == 1);
    let issued = std::time::Instant::now();
    eventually("the exchange is sent", || job.counters().exchanges_received == 1);
    // The mask of the identity token is written between the two. On its own it would wait for 2 s.
    assert!(issued.elapsed() < std::time::Duration::from_millis(1500), "{:?}", issued.elapsed());
    assert_eq!(finish(asking).code, 0);
}

#[test]
fn masks_are_not_written_outside_github_actions() {
    let job = Job::new(settings());
    assert!(!job.exec(&["--workspace-id", "default"], "true").stderr.contains("add-mask"));
}
