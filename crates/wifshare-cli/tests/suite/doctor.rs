//! The cases of `wifshare doctor` that a folder of `scenarios/` cannot cover: other processes, real clients, machines.

use serde_json::Value;

use crate::job::{Job, eventually, settings};

fn findings(job: &Job, arguments: &[&str]) -> (i32, Vec<Value>) {
    let ended = job.run(&[&["doctor", "--json"], arguments].concat());
    assert_eq!(ended.stderr, "");
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(told["works"], ended.code == 0, "the exit code says the same");
    (ended.code, told["findings"].as_array().unwrap().clone())
}

fn about<'a>(findings: &'a [Value], check: &str) -> Vec<&'a Value> {
    findings.iter().filter(|finding| finding["check"] == check).collect()
}

#[test]
fn doctor_names_other_readers_of_the_token_file() {
    let mut job = Job::new(settings());
    let token = job.sandbox.issue_identity_token();
    job.use_token_file(&token);
    let (_, before) = findings(&job, &[]);
    assert_eq!(about(&before, "other consumers")[0]["verdict"], "ok", "{before:#?}");
    let mut other = job.command("sleep", &["600"]).spawn().unwrap();
    eventually("the other process is seen", || {
        let (code, found) = findings(&job, &[]);
        let consumers = about(&found, "other consumers")[0].clone();
        let evidence = consumers["evidence"].as_str().unwrap();
        code == 0 && consumers["verdict"] == "warning" && evidence.contains(&format!("sleep (pid {})", other.id()))
    });
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(job.counters().exchanges_received, 0, "doctor spends nothing");
}

#[test]
fn doctor_spends_no_identity_token() {
    let mut job = Job::new(settings());
    let token = job.sandbox.issue_identity_token();
    job.use_token_file(&token);
    for _ in 0..3 {
        assert_eq!(findings(&job, &[]).0, 0);
    }
    assert_eq!(job.counters().exchanges_received, 0);
    assert_eq!(job.token(&[]).code, 0);
    job.assert_exchanges(1);
}

#[test]
fn doctor_names_the_lock_holder() {
    let job = Job::new(wifshare_sandbox::Settings { exchange_latency_ms: 60_000, ..settings() });
    let mut exchanging = job.wifshare(&["token"]).spawn().unwrap();
    eventually("the holder of the lock is named", || {
        let (_, found) = findings(&job, &[]);
        let locks = about(&found, "lock");
        locks.first().is_some_and(|lock| {
            lock["verdict"] == "note"
                && lock["evidence"].as_str().unwrap().contains(&format!("pid {}, exchanging", exchanging.id()))
        })
    });
    exchanging.kill().unwrap();
    exchanging.wait().unwrap();
}

#[test]
fn doctor_finds_client_versions() {
    let Some(clients) = crate::clients::clients() else { return };
    let mut job = Job::new(settings());
    let (bin, all) = (job.path("bin"), clients.parent().unwrap());
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(clients.join("claude-2.1.330"), bin.join("claude")).unwrap();
    std::os::unix::fs::symlink(all.join("typescript/node_modules"), job.path("node_modules")).unwrap();
    job.set("PATH", &format!("{}:{}:/usr/bin:/bin", bin.to_str().unwrap(), all.join("python/bin").to_str().unwrap()));
    let (code, found) = findings(&job, &[]);
    let said: Vec<&str> = about(&found, "client").iter().map(|finding| finding["evidence"].as_str().unwrap()).collect();
    assert_eq!(code, 0, "{found:#?}");
    for (number, start) in
        ["claude 2.1.330: ", "the TypeScript SDK 1.12.0: ", "the Python SDK 2.12.0: "].iter().enumerate()
    {
        assert!(said[number].starts_with(start), "{said:#?}");
    }
    assert!(about(&found, "client").iter().all(|finding| finding["verdict"] == "ok"), "{found:#?}");
}

#[test]
fn doctor_finds_packages_and_the_delivery_that_works() {
    let mut job = Job::new(settings());
    let make = |path: &str, text: &str| {
        let path = job.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    // A virtual environment in the job's directory, a program in its own environment, and a Node project.
    make(".venv/lib/python3.12/site-packages/anthropic-0.93.0.dist-info/METADATA", "");
    make(".venv/lib/python3.12/site-packages/langchain_anthropic-1.7.10.dist-info/METADATA", "");
    make("tools/llm/lib/python3.12/site-packages/llm_anthropic-0.30.dist-info/METADATA", "");
    make("tools/llm/bin/llm", "#!/bin/sh\ntouch ran\n");
    make("bin/python3", "#!/bin/sh\ntouch ran\n");
    make("node_modules/@ai-sdk/anthropic/package.json", r#"{"version": "4.0.105"}"#);
    std::os::unix::fs::symlink(job.path("tools/llm/bin/llm"), job.path("bin/llm")).unwrap();
    job.set("PATH", job.path("bin").to_str().unwrap());
    let cures = |delivery: &str| -> Vec<(String, String)> {
        let (code, found) = findings(&job, &["--delivery", delivery]);
        assert_eq!(code, 0, "{found:#?}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        about(&found, "client").iter().map(|finding| (text(&finding["evidence"]), text(&finding["cure"]))).collect()
    };
    let named =
        ["@ai-sdk/anthropic 4.0.105", "the Python SDK 0.93.0", "langchain-anthropic 1.7.10", "llm-anthropic 0.30"];
    let found = cures("profile");
    assert_eq!(found.len(), named.len(), "{found:#?}");
    for ((evidence, cure), name) in found.iter().zip(named) {
        assert!(evidence.starts_with(name), "{evidence}");
        let delivery = if name.contains("SDK") { "gateway or environment" } else { "--delivery gateway --api-key" };
        assert!(cure.contains(delivery), "{evidence}: {cure}");
    }
    assert!(cures("gateway").iter().all(|(_, cure)| cure.is_empty()), "{:#?}", cures("gateway"));
    assert!(!job.path("ran").exists(), "a program of the job was run");
}

#[test]
fn doctor_is_not_blocked_by_a_hanging_client() {
    use std::os::unix::fs::OpenOptionsExt;

    let mut job = Job::new(settings());
    let bin = job.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let script =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o700).open(bin.join("claude"));
    std::io::Write::write_all(&mut script.unwrap(), b"#!/bin/sh\nexec /bin/sleep 600\n").unwrap();
    job.set("PATH", bin.to_str().unwrap());
    let (code, found) = findings(&job, &[]);
    assert_eq!(code, 0);
    assert!(
        about(&found, "client")[0]["evidence"].as_str().unwrap().contains("did not tell its version"),
        "{found:#?}"
    );
}

#[test]
fn doctor_lists_failures_last_and_annotates_them_in_github() {
    let mut job = Job::new(settings());
    job.set("ANTHROPIC_WORKSPACE_ID", "");
    job.unset("ANTHROPIC_FEDERATION_RULE_ID");
    job.set("GITHUB_ACTIONS", "true");
    let ended = job.run(&["doctor"]);
    assert_eq!(ended.code, 1);
    let words: Vec<&str> = ended.stdout.lines().filter_map(|line| line.split(' ').next()).collect();
    let first =
        |word: &str| words.iter().position(|it| *it == word).unwrap_or_else(|| panic!("{word}: {}", ended.stdout));
    let last_ok = words.iter().rposition(|it| ["ok", "note"].contains(it)).unwrap();
    assert!(last_ok < first("warning") && first("warning") < first("FAILED"), "{}", ended.stdout);
    for level in ["error", "warning"] {
        let annotation = format!("::{level} title=wifshare::doctor, ");
        assert!(ended.stderr.lines().any(|line| line.starts_with(&annotation)), "{level}: {}", ended.stderr);
    }
    assert!(ended.stderr.contains("%0A  cure: "), "{}", ended.stderr);
    job.unset("GITHUB_ACTIONS");
    assert_eq!(job.run(&["doctor"]).stderr, "");
    job.set("CLICOLOR_FORCE", "1");
    assert!(job.run(&["doctor"]).stdout.contains("\x1b[1;31mFAILED"));
}
