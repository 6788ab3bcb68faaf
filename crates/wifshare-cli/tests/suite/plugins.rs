//! `wifshare claude` with the real claude: marketplaces, plugins and the query, with one exchange.

use std::path::Path;

use serde_json::Value;

use crate::clients::job_with_clients;
use crate::job::{Job, settings};

const QUERY: [&str; 7] = ["--", "-p", "say hi", "--model", "claude-sonnet-4-6", "--output-format", "text"];

fn marketplace() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients/marketplace");
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

fn claude_2_1_173() -> String {
    crate::clients::clients().unwrap().join("claude-2.1.173").to_str().unwrap().to_owned()
}

fn enabled(job: &Job) -> Vec<String> {
    let settings = std::fs::read(job.path("home/.claude/settings.json")).unwrap_or_default();
    let settings: Value = serde_json::from_slice(&settings).unwrap_or_default();
    let plugins = settings["enabledPlugins"].as_object().cloned().unwrap_or_default();
    plugins.into_iter().filter(|(_, enabled)| *enabled == true).map(|(name, _)| name).collect()
}

#[test]
fn plugins_and_a_query_make_one_exchange() {
    let Some(mut job) = job_with_clients(settings()) else { return };
    job.set("INPUT_PLUGINS", "beta@wifshare-fixture\n\n  gamma@wifshare-fixture\n");
    let (claude, marketplace) = (claude_2_1_173(), marketplace());
    let begin = ["claude", "--claude", &claude, "--marketplace", &marketplace, "--plugin", "alpha@wifshare-fixture"];
    let ended = job.run(&[&begin[..], &QUERY].concat());
    assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    assert_eq!(enabled(&job), ["alpha@wifshare-fixture", "beta@wifshare-fixture", "gamma@wifshare-fixture"]);
    assert_eq!(job.counters().messages_accepted, 1);
    job.assert_exchanges(1);
}

#[test]
fn failing_plugin_step_ends_the_run_with_its_code() {
    let Some(job) = job_with_clients(settings()) else { return };
    let (claude, marketplace) = (claude_2_1_173(), marketplace());
    let begin = ["claude", "--claude", &claude, "--marketplace", &marketplace, "--plugin", "no-such@wifshare-fixture"];
    let ended = job.run(&[&begin[..], &QUERY].concat());
    assert_eq!(ended.code, 1, "{}\n{}", ended.stdout, ended.stderr);
    assert!(
        ended.stderr.contains("step 2 of 3: claude plugin install no-such@wifshare-fixture failed"),
        "{}",
        ended.stderr
    );
    assert_eq!(job.counters().messages_accepted, 0, "what would have followed was not done");
    assert!(job.files_with_secrets().is_empty());
}

#[test]
fn claude_inside_a_run_joins_it() {
    let Some(job) = job_with_clients(settings()) else { return };
    let script = format!(
        r#""$WIFSHARE" claude --claude {} -- -p "say hi" --model claude-sonnet-4-6 --output-format text </dev/null"#,
        claude_2_1_173()
    );
    let ended = job.exec(&[], &script);
    assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    assert_eq!(job.counters().messages_accepted, 1);
    job.assert_exchanges(1);
}

#[test]
fn each_claude_step_is_a_group_in_github_actions() {
    let Some(mut job) = job_with_clients(settings()) else { return };
    job.set("GITHUB_ACTIONS", "true");
    let (claude, marketplace) = (claude_2_1_173(), marketplace());
    let ended = crate::job::finish(
        job.wifshare(&["claude", "--claude", &claude, "--marketplace", &marketplace]).spawn().unwrap(),
    );
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let groups =
        ended.stderr.lines().filter(|line| line.starts_with("::group::step 1 of 1: claude plugin marketplace add"));
    assert_eq!((groups.count(), ended.stderr.matches("::endgroup::").count()), (1, 1), "{}", ended.stderr);
}
