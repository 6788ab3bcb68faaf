//! Requests of clients' own packages other than messages, and the effect of a process limit.

use crate::clients::{job_with_clients, node};
use crate::job::{Job, WIFSHARE, finish, settings};

/// Both SDKs follow the address of a batch's results, which the API returns with its own host.
#[test]
fn batch_results_are_read_through_the_gateway_by_both_sdks() {
    let Some(mut job) = job_with_clients(settings()) else { return };
    job.set("NODE", node().to_str().unwrap());
    let script = r#"
        "$CLIENTS/../python/bin/python" - <<'EOF' || exit 1
import anthropic
client = anthropic.Anthropic()
own = str(client.base_url).rstrip("/")
batch = client.messages.batches.retrieve("msgbatch_x")
assert batch.results_url == own + "/v1/messages/batches/msgbatch_x/results", batch.results_url
assert [one.results_url.split("/v1/")[0] for one in client.messages.batches.list()] == [own] * 2
print("python", [line.result.message.content[0].text for line in client.messages.batches.results("msgbatch_x")])
EOF
        cat > "$RUNNER_TEMP/batch.mjs" <<'EOF'
import { createRequire } from 'node:module';
const require = createRequire(process.env.CLIENTS + '/../typescript/ask.mjs');
const { default: Anthropic } = require('@anthropic-ai/sdk');
const client = new Anthropic();
const texts = [];
for await (const line of await client.messages.batches.results('msgbatch_x')) texts.push(line.result.message.content[0].text);
console.log('typescript', texts);
EOF
        "$NODE" "$RUNNER_TEMP/batch.mjs""#;
    let ended = job.exec(&["--delivery", "gateway"], script);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert_eq!(
        ended.stdout,
        "python ['Hello from the wifshare sandbox.']\ntypescript [ 'Hello from the wifshare sandbox.' ]\n"
    );
    assert_eq!(job.counters().messages_refused, 0);
    job.assert_exchanges(1);
}

#[test]
fn base_url_with_and_without_version_reaches_the_api() {
    let job = Job::new(settings());
    let script = r#"
        for url in /v1/models /models /v1/v1/models; do
            curl -sS -o /dev/null -w '%{http_code} ' -H "x-api-key: $ANTHROPIC_API_KEY" "$ANTHROPIC_BASE_URL$url"
        done
        curl -sS -H "x-api-key: $ANTHROPIC_API_KEY" "$ANTHROPIC_BASE_URL/elsewhere"; echo
        export ANTHROPIC_BASE_URL=$ANTHROPIC_BASE_URL/v1
        "$WIFSHARE" exec -- sh -c 'echo joined $ANTHROPIC_BASE_URL'"#;
    let ended = job.exec(&["--delivery", "gateway", "--api-key"], script);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.starts_with("200 200 200 {"), "{}", ended.stdout);
    assert!(ended.stdout.contains("its base URL has no path, or /v1"), "{}", ended.stdout);
    assert!(ended.stdout.contains("joined http://127.0.0.1:"), "{}{}", ended.stdout, ended.stderr);
    job.assert_exchanges(1);
}

/// Users without other processes, so that a process limit counts only wifshare's.
const LONELY: u32 = 64_321;

#[test]
fn process_limit_is_an_error_without_exchange_or_panic() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "only root can become somebody else");
        return;
    }
    const ENOUGH: usize = 12;
    for (number, options) in
        [&["exec"][..], &["exec", "--delivery", "gateway"], &["start"], &["token"]].iter().enumerate()
    {
        let (is_exec, user) = (options[0] == "exec", LONELY + u32::try_from(number).unwrap());
        let good = if is_exec { 7 } else { 0 };
        let mut codes = Vec::new();
        for limit in 1..=ENOUGH {
            let mut job = Job::new(settings());
            job.may_keep_credential();
            rustix::fs::chmod(job.path(""), rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
            let wifshare = job.path("bin");
            std::fs::hard_link(WIFSHARE, &wifshare).or_else(|_| std::fs::copy(WIFSHARE, &wifshare).map(drop)).unwrap();
            let command = if is_exec { "-- sh -c 'exit 7'" } else { "" };
            let run = format!("ulimit -u {limit}; exec {} {} {command}", wifshare.display(), options.join(" "));
            let (reuid, regid) = (format!("--reuid={user}"), format!("--regid={user}"));
            let arguments = [&reuid, &regid, "--clear-groups", "bash", "-c", &run];
            let ended = finish(job.command("setpriv", &arguments).spawn().unwrap());
            let what = format!("{options:?} with {limit}: {} {}", ended.code, ended.stderr);
            assert!([good, 125, 126].contains(&ended.code), "{what}");
            assert!(!ended.stderr.contains("panicked") && !ended.stderr.contains("error[internal]"), "{what}");
            if ended.code != good {
                assert!(ended.stderr.contains("error["), "{what}");
                assert!(options.len() > 1 || job.counters().exchanges_received == 0, "{what}");
            }
            codes.push(ended.code);
            if options[0] == "start" {
                let stop = [&reuid, &regid, "--clear-groups", wifshare.to_str().unwrap(), "stop", "--all"];
                finish(job.command("setpriv", &stop).spawn().unwrap());
            }
        }
        assert_eq!(codes[ENOUGH - 1], good, "{options:?}: {codes:?}");
        assert!(codes[0] != good || options[0] == "token", "{options:?}: {codes:?}");
    }
}
