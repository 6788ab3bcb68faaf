//! `wifshare demo`: compares parallel processes that share one identity token, first without wifshare and then under
//! `exec`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use http::Request;
use serde_json::{Value, json};
use wifshare::{Environment, HttpClient, Secret, open_regular};
use wifshare_sandbox::{Counters, Sandbox, Settings};
use zeroize::Zeroizing;

use crate::arguments::{DemoArguments, DemoChild};
use crate::catalogue::code;
use crate::clock::clock;
use crate::console::Console;
use crate::failure::Failure;

/// An exchange latency that the real endpoint sometimes has, long enough for the processes to overlap.
const EXCHANGE_LATENCY_MS: u64 = 300;

pub(crate) fn demo(arguments: &DemoArguments, environment: &Environment, console: Console) -> Result<u8, Failure> {
    match arguments.child {
        None => show(arguments.processes, environment, console),
        Some(DemoChild::Alone) => Ok(u8::from(alone(environment).is_none())),
        Some(DemoChild::Shared) => Ok(u8::from(shared(environment).is_none())),
        Some(DemoChild::Job) => Ok(job(arguments.processes, environment)),
    }
}

/// Result of one half of the demo.
struct Outcome {
    succeeded: u32,
    exchanges: u64,
    refusals: u64,
    time: Duration,
}

fn show(processes: u32, environment: &Environment, console: Console) -> Result<u8, Failure> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| Failure::new(code!("demo"), format!("could not {what}: {error}"), None)
    };
    let directory = tempfile::tempdir().map_err(failed("make a directory for the demo"))?;
    let sandbox = Sandbox::start(Settings { exchange_latency_ms: EXCHANGE_LATENCY_MS, ..Settings::default() })
        .map_err(failed("start the mock server on loopback"))?;
    console.detail(&format!("the mock server listens at {}", sandbox.base_url()));

    let mut job = Environment::default();
    for name in ["PATH", "HOME", "TMPDIR", "SYSTEMROOT"] {
        if let Some(value) = environment.os(name) {
            job.set(name, value);
        }
    }
    for (name, value) in sandbox.environment() {
        job.set(name, value);
    }
    job.set("WIFSHARE_STATE_DIR", directory.path().join("state"));

    let alone = each_for_itself(processes, &job, &sandbox, directory.path()).map_err(failed("run the processes"))?;
    let together = under_exec(processes, &job, &sandbox).map_err(failed("run the processes under exec"))?;
    let is_as_promised = together.succeeded == processes && together.exchanges == 1 && together.refusals == 0;
    let table = table(processes, &alone, &together, is_as_promised);
    std::io::stdout()
        .write_all(table.as_bytes())
        .map_err(|error| Failure::new(code!("stdout"), format!("could not print the outcome: {error}"), None))?;
    Ok(u8::from(!is_as_promised))
}

fn each_for_itself(processes: u32, job: &Environment, sandbox: &Sandbox, directory: &Path) -> std::io::Result<Outcome> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(sandbox.issue_identity_token().as_bytes())?;
    let mut environment = job.clone();
    environment.set("ANTHROPIC_IDENTITY_TOKEN_FILE", file.path());
    let before = sandbox.counters();
    let start = (clock().monotonic)();
    let succeeded = run_at_once(processes, DemoChild::Alone, &environment)?;
    Ok(outcome(succeeded, &before, &sandbox.counters(), (clock().monotonic)() - start))
}

fn under_exec(processes: u32, job: &Environment, sandbox: &Sandbox) -> std::io::Result<Outcome> {
    let program = std::env::current_exe()?;
    let before = sandbox.counters();
    let start = (clock().monotonic)();
    let mut child = Command::new(&program)
        .args(["exec", "--"])
        .arg(&program)
        .args(["demo", "--child", "job", "--processes", &processes.to_string()])
        .env_clear()
        .envs(job.iter())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut printed = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(64).read_to_string(&mut printed)?;
    }
    child.wait()?;
    let time = (clock().monotonic)() - start;
    Ok(outcome(printed.trim().parse().unwrap_or(0), &before, &sandbox.counters(), time))
}

/// The job under `exec`: starts its processes in parallel and prints how many succeeded.
fn job(processes: u32, environment: &Environment) -> u8 {
    let succeeded = run_at_once(processes, DemoChild::Shared, environment).unwrap_or(0);
    let printed = std::io::stdout().write_all(format!("{succeeded}\n").as_bytes());
    u8::from(succeeded < processes || printed.is_err())
}

fn run_at_once(processes: u32, child: DemoChild, environment: &Environment) -> std::io::Result<u32> {
    let program = std::env::current_exe()?;
    let name = if child == DemoChild::Alone { "alone" } else { "shared" };
    let start = |_| {
        let mut command = Command::new(&program);
        command.args(["demo", "--child", name]).env_clear().envs(environment.iter()).stdin(Stdio::null()).spawn()
    };
    let children = (0..processes).map(start).collect::<std::io::Result<Vec<_>>>()?;
    let mut succeeded = 0;
    for mut child in children {
        succeeded += u32::from(child.wait()?.success());
    }
    Ok(succeeded)
}

/// A process without wifshare: reads the identity token, exchanges it and sends a request. The official SDKs retry the
/// exchange with the same token; this one does so twice.
fn alone(environment: &Environment) -> Option<()> {
    const TRIES: u32 = 3;
    let mut token = String::new();
    let file = open_regular(Path::new(environment.os("ANTHROPIC_IDENTITY_TOKEN_FILE")?)).ok()?;
    file.take(32 * 1024).read_to_string(&mut token).ok()?;
    let request = json!({
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": token.trim(),
        "federation_rule_id": environment.text("ANTHROPIC_FEDERATION_RULE_ID")?,
        "organization_id": environment.text("ANTHROPIC_ORGANIZATION_ID")?,
        "service_account_id": environment.text("ANTHROPIC_SERVICE_ACCOUNT_ID")?,
    });
    for tries in 1..=TRIES {
        let answer = post(environment, "/v1/oauth/token", &request, None)?;
        if let Some(token) = answer.get("access_token").and_then(Value::as_str) {
            return ask(environment, &Secret::new(token.to_owned()));
        }
        (clock().pause)(Duration::from_millis(100) * tries).ok()?;
    }
    None
}

/// A process under `exec`: reads a profile, as every SDK does, and sends a request.
fn shared(environment: &Environment) -> Option<()> {
    let directory = Path::new(environment.os("ANTHROPIC_CONFIG_DIR")?);
    let profile: OsString = format!("{}.json", environment.text("ANTHROPIC_PROFILE")?).into();
    let file = open_regular(&directory.join("credentials").join(profile)).ok()?;
    let credential: BTreeMap<String, Value> = serde_json::from_reader(file.take(64 * 1024)).ok()?;
    ask(environment, &Secret::new(credential.get("access_token")?.as_str()?.to_owned()))
}

fn ask(environment: &Environment, access_token: &Secret) -> Option<()> {
    let question = json!({
        "model": "claude-sonnet-4-5",
        "max_tokens": 16,
        "messages": [{ "role": "user", "content": "Are you there?" }],
    });
    post(environment, "/v1/messages", &question, Some(access_token))?.get("content").map(|_| ())
}

fn post(environment: &Environment, path: &str, body: &Value, access_token: Option<&Secret>) -> Option<Value> {
    let mut request = Request::post(format!("{}{path}", environment.text("ANTHROPIC_BASE_URL")?))
        .header("content-type", "application/json")
        .header("anthropic-version", "2023-06-01");
    if let Some(token) = access_token {
        request = request.header("authorization", format!("Bearer {}", token.expose()));
    }
    let request = request.body(Zeroizing::new(body.to_string().into_bytes())).ok()?;
    let response = HttpClient::new(environment).send(request).ok()?;
    serde_json::from_slice(response.body()).ok()
}

fn outcome(succeeded: u32, before: &Counters, after: &Counters, time: Duration) -> Outcome {
    Outcome {
        succeeded,
        exchanges: after.exchanges_accepted - before.exchanges_accepted,
        refusals: after.exchanges_refused - before.exchanges_refused,
        time,
    }
}

fn table(processes: u32, alone: &Outcome, together: &Outcome, is_as_promised: bool) -> String {
    let of = |outcome: &Outcome| format!("{} of {processes}", outcome.succeeded);
    let time = |outcome: &Outcome| format!("{:.1} s", outcome.time.as_secs_f32());
    let rows = [
        ("", "each for itself".to_owned(), "wifshare exec".to_owned()),
        ("processes that succeeded", of(alone), of(together)),
        ("exchanges", alone.exchanges.to_string(), together.exchanges.to_string()),
        ("refusals (token reused)", alone.refusals.to_string(), together.refusals.to_string()),
        ("time", time(alone), time(together)),
    ];
    let mut text = format!("{processes} processes, one identity token that is accepted once:\n\n");
    for (name, left, right) in rows {
        text.push_str(&format!("  {name:<26}{left:>17}{right:>17}\n"));
    }
    text.push_str(if is_as_promised {
        "\none identity token, one exchange, every process\n"
    } else {
        "\nthis is not as it should be: the shared run has to succeed whole, with one exchange\n"
    });
    text
}
