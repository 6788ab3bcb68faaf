//! The GitHub Action in the repository's root, run as the runner runs it: main before the steps, post after them.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process_group};
use wifshare_sandbox::Settings;

use crate::clients::{job_with_clients, node};
use crate::job::{Job, WIFSHARE, eventually, settings};
use crate::runner::Runner;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Returns the command for a part of the action with these inputs.
fn part(runner: &Runner, part: &str, inputs: &[(&str, &str)]) -> Command {
    let script = repository().join("action").join(format!("{part}.mjs"));
    let node = node();
    let mut command = runner.job.command(node.to_str().unwrap(), &[script.to_str().unwrap()]);
    let inputs = [("binary", WIFSHARE)].iter().chain(inputs);
    // Scripts that look for node in PATH find the same one.
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", node.parent().map_or(path.clone(), |bin| format!("{}:{path}", bin.display())));
    command.envs(inputs.map(|(name, value)| (format!("INPUT_{}", name.to_uppercase()), value)));
    for (name, value) in &runner.state {
        command.env(format!("STATE_{name}"), value);
    }
    command
}

/// A job whose ids are only in the action's inputs.
fn runner_with_inputs(mut job: Job) -> (Runner, Vec<(&'static str, String)>) {
    let names = [
        ("anthropic_federation_rule_id", "ANTHROPIC_FEDERATION_RULE_ID"),
        ("anthropic_organization_id", "ANTHROPIC_ORGANIZATION_ID"),
        ("anthropic_service_account_id", "ANTHROPIC_SERVICE_ACCOUNT_ID"),
        ("anthropic_base_url", "ANTHROPIC_BASE_URL"),
    ];
    let inputs = names.map(|(input, name)| (input, job.variable(name).unwrap_or_default().to_owned()));
    names.iter().for_each(|(_, name)| job.unset(name));
    (Runner::new(job), inputs.to_vec())
}

fn borrowed<'a>(inputs: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    inputs.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

fn post(runner: &mut Runner, inputs: &[(&str, &str)]) {
    let command = part(runner, "post", inputs);
    let ended = runner.step(command);
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
}

fn assert_nothing_is_left(runner: &Runner) {
    eventually("nothing secret is left", || runner.job.files_with_secrets().is_empty());
    let left = crate::job::files(&runner.job.state());
    eventually("no run is left", || !left.iter().any(|path| path.ends_with("keeper.json") && path.exists()));
}

/// Returns a script that runs one query of this claude with its own home.
fn ask(client: &str) -> String {
    format!(
        r#"mkdir -p home-{client} && cd home-{client} && HOME=$PWD "$CLIENTS/{client}" -p 'say hi' \
            --model claude-sonnet-4-6 --output-format text < /dev/null"#
    )
}

#[test]
fn clients_in_parallel_steps_share_the_exchange_of_the_action() {
    let Some(job) = job_with_clients(Settings { exchange_latency_ms: 500, ..settings() }) else { return };
    let (mut runner, inputs) = runner_with_inputs(job);
    let inputs = borrowed(&inputs);
    let main = part(&runner, "main", &inputs);
    let ended = runner.step(main);
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
    assert_eq!(runner.outputs["anthropic_profile"], "wifshare");
    let python = r#""$CLIENTS/ask-python""#.to_owned();
    runner.steps_in_parallel(&[ask("claude-2.1.173"), ask("claude-2.1.240"), ask("claude-2.1.330"), python]);
    post(&mut runner, &inputs);
    assert!(runner.summary.contains("wifshare"), "the job's summary: {:?}", runner.summary);
    runner.assert_everything_is_masked();
    runner.job.assert_exchanges(1);
    assert_eq!(runner.job.counters().messages_refused, 0);
    assert_nothing_is_left(&runner);
}

#[test]
fn action_with_gateway_serves_clients_and_hides_the_credential() {
    let Some(mut job) = job_with_clients(settings()) else { return };
    // Nothing listens there: requests to the gateway must not use the proxy.
    job.set("HTTP_PROXY", "http://127.0.0.1:9");
    job.set("NO_PROXY", "internal.example");
    let (mut runner, mut inputs) = runner_with_inputs(job);
    inputs.extend([
        ("delivery", "gateway".to_owned()),
        ("api_key", "true".to_owned()),
        ("summary", "false".to_owned()),
    ]);
    let inputs = borrowed(&inputs);
    let main = part(&runner, "main", &inputs);
    let ended = runner.step(main);
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
    assert!(runner.variables["ANTHROPIC_AUTH_TOKEN"].starts_with("wifshare-capability-"));
    assert_eq!(runner.variables["ANTHROPIC_API_KEY"], runner.variables["ANTHROPIC_AUTH_TOKEN"]);
    assert!(runner.variables["NO_PROXY"].starts_with("internal.example"), "{}", runner.variables["NO_PROXY"]);
    let typescript = r#""$CLIENTS/ask-typescript""#.to_owned();
    runner.steps_in_parallel(&[ask("claude-2.1.173"), ask("claude-2.1.330"), typescript]);
    assert!(runner.job.files_with_secrets().is_empty(), "{:?}", runner.job.files_with_secrets());
    post(&mut runner, &inputs);
    assert_eq!(runner.summary, "", "the input says so");
    runner.assert_everything_is_masked();
    runner.job.assert_exchanges(1);
    assert_nothing_is_left(&runner);
}

#[test]
fn action_inputs_all_reach_wifshare() {
    let (mut runner, mut inputs) = runner_with_inputs(Job::new(settings()));
    inputs.extend([
        ("anthropic_workspace_id", "default".to_owned()),
        ("delivery", "environment".to_owned()),
        ("keep_env", "ANTHROPIC_SCOPE\n ANTHROPIC_OIDC_AUDIENCE \n".to_owned()),
        ("max_life", "90m".to_owned()),
    ]);
    let inputs = borrowed(&inputs);
    let main = part(&runner, "main", &inputs);
    let ended = runner.step(main);
    assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
    assert!(runner.variables["ANTHROPIC_AUTH_TOKEN"].starts_with("sk-ant-"), "the delivery");
    assert!(runner.state["wifshare_run"].starts_with(runner.job.state().to_str().unwrap()));
    let identity = std::fs::read_to_string(Path::new(&runner.state["wifshare_run"]).join("identity.json")).unwrap();
    assert!(identity.contains(r#""ANTHROPIC_WORKSPACE_ID":"default""#), "{identity}");
    runner.assert_everything_is_masked();
    post(&mut runner, &inputs);
    assert_nothing_is_left(&runner);
    for (name, value) in [("anthropic_oidc_audience", "https://other.example"), ("delivery", "nonsense")] {
        let mut runner = Runner::new(Job::new(settings()));
        let main = part(&runner, "main", &[(name, value)]);
        assert_ne!(runner.step(main).code, 0, "{name} reaches it, and is not right");
    }
}

#[test]
fn optional_action_without_token_continues_with_a_notice() {
    let mut job = Job::new(settings());
    job.without_endpoint();
    let mut runner = Runner::new(job);
    let main = part(&runner, "main", &[("optional", "true")]);
    let ended = runner.step(main);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("::notice title=wifshare::"), "{}", ended.stderr);
    assert!(runner.variables.is_empty());
    let main = part(&runner, "main", &[]);
    let ended = runner.step(main);
    assert_eq!(ended.code, 125);
    assert!(ended.stderr.contains("::error title=wifshare::error[no-identity-source]"), "{}", ended.stderr);
    post(&mut runner, &[]);
}

#[test]
fn action_finds_the_binary_in_path_cargo_home_and_input() {
    let mut runner = Runner::new(Job::new(settings()));
    let cargo = runner.job.path("cargo/bin");
    std::fs::create_dir_all(&cargo).unwrap();
    std::fs::copy(WIFSHARE, cargo.join("wifshare")).unwrap();
    let node = node();
    let look = |runner: &Runner, path: &str, binary: &str| {
        let script = repository().join("action/main.mjs");
        let mut command = runner.job.command(node.to_str().unwrap(), &[script.to_str().unwrap()]);
        command.env("PATH", path).env("CARGO_HOME", runner.job.path("nothing")).env("INPUT_BINARY", binary);
        command
    };
    let in_path = look(&runner, cargo.to_str().unwrap(), "");
    assert_eq!(runner.step(in_path).code, 0);
    let mut by_cargo = look(&runner, "/nonexistent", "");
    by_cargo.env("CARGO_HOME", runner.job.path("cargo"));
    assert_eq!(runner.step(by_cargo).code, 0);
    let named_and_missing = look(&runner, cargo.to_str().unwrap(), "/nonexistent/wifshare");
    let ended = runner.step(named_and_missing);
    assert_eq!(ended.code, 127);
    assert!(ended.stdout.starts_with("::error title=wifshare::there is no program"), "{}", ended.stdout);
    post(&mut runner, &[]);
    runner.job.assert_exchanges(1);
}

#[test]
fn post_cleans_up_after_cancelled_main_or_step() {
    for cancelled in ["main", "step"] {
        let latency = if cancelled == "main" { 2000 } else { 0 };
        let (mut runner, inputs) =
            runner_with_inputs(Job::new(Settings { exchange_latency_ms: latency, ..settings() }));
        let inputs = borrowed(&inputs);
        let main = part(&runner, "main", &inputs);
        let main = runner.begin(main);
        if cancelled == "main" {
            eventually("an exchange is under way", || runner.job.counters().exchanges_received > 0);
            cancel(&main.child);
        }
        let ended = runner.end(main);
        if cancelled == "step" {
            assert_eq!(ended.code, 0, "{}", ended.stderr);
            let step = runner.job.command("sh", &["-c", r#"touch begun; exec "$WIFSHARE" exec -- sleep 600"#]);
            let step = runner.begin(step);
            eventually("the step has begun", || runner.job.path("begun").exists());
            cancel(&step.child);
            runner.end(step);
        }
        post(&mut runner, &inputs);
        assert_nothing_is_left(&runner);
        runner.job.assert_nothing_sent_twice();
    }
}

#[test]
fn signal_to_action_main_is_forwarded_and_leaves_no_files() {
    let (mut runner, inputs) = runner_with_inputs(Job::new(Settings { exchange_latency_ms: 3000, ..settings() }));
    let main = part(&runner, "main", &borrowed(&inputs));
    let main = runner.begin(main);
    eventually("an exchange is under way", || runner.job.counters().exchanges_received > 0);
    rustix::process::kill_process(Pid::from_child(&main.child), Signal::INT).unwrap();
    assert_eq!(runner.end(main).code, 130);
    assert!(runner.variables.is_empty());
    assert_nothing_is_left(&runner);
}

/// Cancels like the runner, with shorter pauses: INT, TERM, KILL.
fn cancel(child: &std::process::Child) {
    let group = Pid::from_child(child);
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        // The process may have ended already.
        let _ = kill_process_group(group, signal);
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn every_declared_action_input_is_read() {
    let action = std::fs::read_to_string(repository().join("action.yml")).unwrap();
    let declared: Vec<&str> = action
        .split("\noutputs:")
        .next()
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.strip_suffix(':').filter(|name| !name.starts_with(' ')))
        .collect();
    let read: String = ["main", "post", "wifshare"]
        .map(|part| std::fs::read_to_string(repository().join("action").join(format!("{part}.mjs"))).unwrap())
        .concat();
    assert!(declared.len() >= 11, "{declared:?}");
    for name in declared {
        let is_read = read.contains(&format!("(\"{name}\")")) || read.contains(&format!("{name}: \"--"));
        assert!(is_read, "{name} is declared and not read");
    }
}

/// The steps of claude-code-action's base action after it has its inputs (base-action/src/workload-identity.ts at
/// 007b8384, install-plugins.ts, parse-sdk-options.ts): it requests an identity token, writes it to a file, does not
/// change a profile that is selected already, installs plugins one by one, and starts the query without GitHub's
/// variables.
const BASE_ACTION: &str = r#"
    dir="$RUNNER_TEMP/claude-workload-identity"; (umask 077; mkdir -p "$dir")
    "$CURL" "$dir/identity-token"
    export ANTHROPIC_IDENTITY_TOKEN_FILE="$dir/identity-token"
    [ -n "$ANTHROPIC_CONFIG_DIR" ] || exit 9
    export HOME="$PWD/home-$CLIENT"; mkdir -p "$HOME"
    "$CLIENTS/$CLIENT" plugin marketplace add "$MARKETPLACE" &&
    "$CLIENTS/$CLIENT" plugin install alpha@wifshare-fixture &&
    "$CLIENTS/$CLIENT" plugin install beta@wifshare-fixture || exit 8
    unset ACTIONS_ID_TOKEN_REQUEST_URL ACTIONS_ID_TOKEN_REQUEST_TOKEN
    CLAUDE_CODE_ENTRYPOINT=claude-code-github-action "$CLIENTS/$CLIENT" -p 'say hi' --model claude-sonnet-4-6 \
        --output-format text < /dev/null; code=$?
    rm -rf "$dir"; exit $code"#;

/// Sends a request to GitHub's endpoint like the toolkit's `getIDToken`.
const GET_ID_TOKEN: &str = r#"#!/usr/bin/env node
const { ACTIONS_ID_TOKEN_REQUEST_URL: url, ACTIONS_ID_TOKEN_REQUEST_TOKEN: bearer } = process.env;
const answer = await fetch(`${url}&audience=${encodeURIComponent("https://api.anthropic.com")}`,
    { headers: { Authorization: `Bearer ${bearer}` } });
const { value } = await answer.json();
console.log(`::add-mask::${value}`);
(await import("node:fs")).writeFileSync(process.argv[2], value, { mode: 0o600 });
"#;

#[test]
fn base_action_after_the_action_makes_no_exchange() {
    let Some(job) = job_with_clients(settings()) else { return };
    let ids: Vec<(&str, String)> =
        ["ANTHROPIC_FEDERATION_RULE_ID", "ANTHROPIC_ORGANIZATION_ID", "ANTHROPIC_SERVICE_ACCOUNT_ID"]
            .into_iter()
            .map(|name| (name, job.variable(name).unwrap_or_default().to_owned()))
            .collect();
    let (mut runner, inputs) = runner_with_inputs(job);
    let inputs = borrowed(&inputs);
    let main = part(&runner, "main", &inputs);
    assert_eq!(runner.step(main).code, 0);
    let get_id_token = runner.job.path("get-id-token.mjs");
    std::fs::write(&get_id_token, GET_ID_TOKEN).unwrap();
    rustix::fs::chmod(&get_id_token, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    for client in ["claude-2.1.173", "claude-2.1.330"] {
        let mut command = runner.job.command("sh", &["-c", BASE_ACTION]);
        command.env("CURL", &get_id_token).env("CLIENT", client);
        command.env("MARKETPLACE", repository().join("tests/clients/marketplace"));
        let mut step = command;
        // The action's own inputs, which it adds to the environment of its step. They override GITHUB_ENV.
        step.envs(&runner.variables);
        step.envs(ids.iter().map(|(name, value)| (*name, value)));
        let kept = std::mem::take(&mut runner.variables);
        let ended = runner.step(step);
        runner.variables = kept;
        assert_eq!(ended.code, 0, "{client}: {} {}", ended.stdout, ended.stderr);
    }
    post(&mut runner, &inputs);
    runner.assert_everything_is_masked();
    runner.job.assert_exchanges(1);
    assert_eq!(runner.job.counters().messages_refused, 0);
    assert_nothing_is_left(&runner);
}

#[test]
fn post_without_the_binary_ends_the_keeper_itself() {
    for is_killed in [false, true] {
        let (mut runner, inputs) = runner_with_inputs(Job::new(settings()));
        let inputs = borrowed(&inputs);
        let main = part(&runner, "main", &inputs);
        assert_eq!(runner.step(main).code, 0);
        let run = PathBuf::from(&runner.state["wifshare_run"]);
        if is_killed {
            let keeper: serde_json::Value =
                serde_json::from_slice(&std::fs::read(run.join("keeper.json")).unwrap()).unwrap();
            let pid = Pid::from_raw(i32::try_from(keeper["owner"]["pid"].as_i64().unwrap()).unwrap()).unwrap();
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
        }
        let gone = part(&runner, "post", &[("binary", "/nonexistent/wifshare")]);
        let ended = runner.step(gone);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", ended.stdout);
        let said = if is_killed { "removed the run's directory" } else { "ended the keeper (pid " };
        assert!(ended.stdout.contains(said), "{}", ended.stdout);
        assert_nothing_is_left(&runner);
        // A second time, like after the job's own `stop`.
        let again = part(&runner, "post", &[("binary", "/nonexistent/wifshare")]);
        assert!(runner.step(again).stdout.contains("nothing was left of the run"));
    }
}

#[test]
fn post_signals_only_the_keeper_and_warns_about_unknown_runs() {
    let mut runner = Runner::new(Job::new(settings()));
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let run = runner.job.path("state/key/runs/run");
    std::fs::create_dir_all(&run).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let owner = serde_json::json!({ "owner": { "pid": other.id(), "start_time": 1, "boot": boot.trim() } });
    std::fs::write(run.join("keeper.json"), owner.to_string()).unwrap();
    runner.state.insert("wifshare_run".to_owned(), run.to_str().unwrap().to_owned());
    let post = part(&runner, "post", &[("binary", "/nonexistent/wifshare")]);
    assert_eq!(runner.step(post).code, 0);
    assert!(!run.exists());
    assert!(other.try_wait().unwrap().is_none(), "a process with the number of the keeper lives on");
    other.kill().unwrap();
    other.wait().unwrap();

    let elsewhere = runner.job.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    runner.state.insert("wifshare_run".to_owned(), elsewhere.to_str().unwrap().to_owned());
    let post = part(&runner, "post", &[("binary", "/nonexistent/wifshare")]);
    let ended = runner.step(post);
    assert!(ended.stdout.starts_with("::warning title=wifshare::the program is gone"), "{}", ended.stdout);
    assert!(elsewhere.exists());
}

#[test]
fn invalid_action_inputs_fail_with_an_annotation() {
    for (name, value, expected) in [
        ("delivery", "Gateway", "a similar value exists: 'gateway'"),
        ("optional", "yes", "the input `optional` is `yes`%0A  hint: write true or false"),
        ("api_key", "1", "the input `api_key` is `1`"),
        ("summary", "off", "the input `summary` is `off`"),
        ("max_life", "soon", "--max-life"),
        ("keep_env", "A,B", "--keep-env"),
    ] {
        let mut runner = Runner::new(Job::new(settings()));
        let main = part(&runner, "main", &[(name, value)]);
        let ended = runner.step(main);
        assert_eq!(ended.code, 2, "{name}: {} {}", ended.stdout, ended.stderr);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        let annotation = said.lines().find(|line| line.starts_with("::error title=wifshare::"));
        assert!(annotation.is_some_and(|line| line.contains(expected)), "{name}: {said}");
        runner.job.assert_exchanges(0);
    }
    let mut runner = Runner::new(Job::new(settings()));
    let main = part(&runner, "main", &[("optional", "TRUE"), ("summary", "False")]);
    assert_eq!(runner.step(main).code, 0);
    post(&mut runner, &[]);
}

#[test]
fn actions_are_pinned_by_commit_and_run_on_the_current_node() {
    let action = std::fs::read_to_string(repository().join("action.yml")).unwrap();
    assert!(action.contains("using: node24\n"));
    for workflow in ["ci", "release"] {
        let text = std::fs::read_to_string(repository().join(format!(".github/workflows/{workflow}.yml"))).unwrap();
        let uses: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("- uses: ")).collect();
        assert!(!uses.is_empty());
        for action in uses {
            let (_, commit) = action.split_once('@').unwrap();
            let (commit, version) = commit.split_once(" # v").unwrap_or_else(|| panic!("{workflow}: {action}"));
            assert!(commit.len() == 40 && commit.bytes().all(|it| it.is_ascii_hexdigit()), "{workflow}: {action}");
            assert!(version.starts_with(|it: char| it.is_ascii_digit()), "{workflow}: {action}");
        }
    }
}
