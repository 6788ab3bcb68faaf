//! The real clients: three versions of claude, the Python SDK and the TypeScript SDK.

use std::path::PathBuf;

use wifshare_sandbox::Settings;

use crate::job::{Ended, Job, eventually, finish, settings};

pub(crate) const ALL: [&str; 5] =
    ["claude-2.1.173", "claude-2.1.240", "claude-2.1.330", "ask-python", "ask-typescript"];

/// The SDKs before and after the major versions of October 2026, which prefer the federation variables to an active
/// profile.
const SDKS: [&str; 4] = ["ask-python-1.17.0", "ask-python", "ask-typescript-0.137.0", "ask-typescript"];

/// Runs one client with a fresh home and prints which client failed and how. `one NAME HOME [OPTION]...`
pub(crate) const ONE: &str = r#"
    one() {
        name=$1; home=$PWD/home-$2; shift 2; mkdir -p "$home/work"
        ( cd "$home/work"; export HOME="$home"
          case $name in
              claude*) exec "$CLIENTS/$name" -p "say hi" --model claude-sonnet-4-6 --output-format text "$@" </dev/null ;;
              *) exec "$CLIENTS/$name" "$@" ;;
          esac ) > "$home/said" 2>&1 || { code=$?; echo "$name: $code"; cat "$home/said"; return 1; }
    }
"#;

/// Returns the directory of `tests/clients/install`, or `None`, with a message, if it has not run. Under CI that is a
/// failure.
pub(crate) fn clients() -> Option<PathBuf> {
    installed(&[ALL.as_slice(), &SDKS].concat())
}

/// Returns the directory of the programs that `tests/clients/install` installs, if it contains all of these.
pub(crate) fn installed(programs: &[&str]) -> Option<PathBuf> {
    let bin = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/clients/bin");
    if programs.iter().all(|program| bin.join(program).exists()) {
        return Some(bin.canonicalize().unwrap());
    }
    assert!(std::env::var_os("CI").is_none(), "{programs:?} are missing; `./test clients` installs them");
    eprintln!("{programs:?} are not installed; `./test clients` installs them");
    None
}

/// Returns the Node of `tests/clients/install`, because the system's may be too old, or else the system's.
pub(crate) fn node() -> PathBuf {
    installed(&["node"]).map_or_else(|| "node".into(), |bin| bin.join("node"))
}

pub(crate) fn job_with_clients(settings: Settings) -> Option<Job> {
    let clients = clients()?;
    let mut job = Job::new(settings);
    job.set("CLIENTS", clients.to_str().unwrap());
    // The SDKs' own runtimes are on the machine's PATH.
    job.set("PATH", &std::env::var("PATH").unwrap());
    job.set("IS_SANDBOX", "1");
    for name in [
        "DISABLE_TELEMETRY",
        "DISABLE_AUTOUPDATER",
        "DISABLE_ERROR_REPORTING",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    ] {
        job.set(name, "1");
    }
    Some(job)
}

fn slow_exchange() -> Settings {
    Settings { exchange_latency_ms: 1200, ..settings() }
}

fn assert_all_well(job: &Job, ended: &Ended, messages: u64) {
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    assert_eq!(job.counters().messages_accepted, messages);
    assert_eq!(job.counters().messages_refused, 0);
    job.assert_exchanges(1);
}

#[test]
fn parallel_and_sequential_clients_make_one_exchange() {
    for delivery in ["profile", "federation"] {
        let Some(job) = job_with_clients(slow_exchange()) else { return };
        let all = ALL.join(" ");
        let script = format!(
            r#"{ONE}
            for name in {all}; do for twin in 1 2; do one $name $name-$twin & pids="$pids $!"; done; done
            failed=0; for pid in $pids; do wait $pid || failed=1; done
            for name in {all}; do one $name $name-3 || failed=1; done
            exit $failed"#
        );
        let ended = job.exec(&["--delivery", delivery], &script);
        assert_all_well(&job, &ended, 15);
    }
}

#[test]
fn ten_parallel_runs_with_clients_make_one_exchange() {
    for delivery in ["profile", "federation"] {
        let Some(job) = job_with_clients(slow_exchange()) else { return };
        let runs: Vec<_> = ALL
            .iter()
            .flat_map(|name| [(name, 1), (name, 2)])
            .map(|(name, twin)| {
                let script = format!("{ONE}\none {name} {name}-{twin}");
                job.wifshare(&["exec", "--delivery", delivery, "--", "sh", "-c", &script]).spawn().unwrap()
            })
            .collect();
        for ended in runs.into_iter().map(finish) {
            assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{delivery}: {}", ended.stderr);
        }
        job.assert_exchanges(1);
    }
}

/// These settings of a job take precedence in a client over what wifshare delivers.
#[test]
fn delivery_wins_over_profiles_and_blank_keys_of_the_job() {
    for delivery in ["profile", "federation", "environment", "gateway"] {
        let Some(mut job) = job_with_clients(slow_exchange()) else { return };
        let own = job.path("own");
        write_profile(&own, "work");
        std::fs::write(own.join("active_config"), "work\n").unwrap();
        job.set("ANTHROPIC_CONFIG_DIR", own.to_str().unwrap());
        job.set("ANTHROPIC_API_KEY", "");
        job.set("ANTHROPIC_AUTH_TOKEN", " ");
        job.set("ANTHROPIC_PROFILE", "");
        for sdk in SDKS {
            write_profile(&job.path(&format!("home-{sdk}/.config/anthropic")), "default");
        }
        let script = format!(
            r#"{ONE}
            for name in {}; do one $name $name & pids="$pids $!"; done
            failed=0; for pid in $pids; do wait $pid || failed=1; done
            exit $failed"#,
            SDKS.join(" ")
        );
        // The clients refuse to read these files if other users can write or read them.
        let umask = format!(r#"umask 000; exec "$WIFSHARE" exec --delivery {delivery} -- sh -c '{script}'"#);
        let ended = finish(job.command("sh", &["-c", &umask]).spawn().unwrap());
        assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{delivery}: {}", ended.stderr);
        assert_eq!(job.counters().messages_refused, 0, "{delivery}: a profile of the job was used");
        job.assert_exchanges(1);
    }
}

#[test]
fn bare_claude_error_names_the_required_delivery() {
    let bare = format!("{ONE}\none claude-2.1.330 bare --bare");
    for (options, code) in
        [(&["--delivery", "gateway"], 0), (&["--delivery", "environment"], 0), (&["--delivery", "profile"], 1)]
    {
        let Some(job) = job_with_clients(settings()) else { return };
        let ended = job.exec(options, &bare);
        assert_eq!(ended.code, code, "{options:?}: {}{}", ended.stdout, ended.stderr);
        job.assert_exchanges(1);
    }
    let Some(mut job) = job_with_clients(settings()) else { return };
    job.set("PATH", &format!("{}:/usr/bin:/bin", job.variable("CLIENTS").unwrap()));
    let claude = ["claude-2.1.330", "--bare", "-p", "hi", "--model", "claude-sonnet-4-6"];
    for command in [&["exec", "--"][..], &["claude", "--claude", "claude-2.1.330", "--"]] {
        let arguments = if command[0] == "exec" { &claude[..] } else { &claude[1..] };
        let ended = job.run(&[command, arguments].concat());
        assert!(ended.stderr.contains("use --delivery gateway or environment"), "{}", ended.stderr);
        let cured = job.run(&[&command[..1], &["--delivery", "gateway"], &command[1..], arguments].concat());
        assert_eq!((cured.code, cured.stderr.as_str()), (0, ""), "{}", cured.stdout);
    }
}

/// Writes a profile of the user with a credential that the API refuses.
fn write_profile(directory: &std::path::Path, name: &str) {
    use std::os::unix::fs::PermissionsExt;

    for (folder, text) in [
        ("configs", serde_json::json!({ "authentication": { "type": "user_oauth" } })),
        ("credentials", serde_json::json!({ "access_token": "theirs", "expires_at": 9_999_999_999_u64 })),
    ] {
        std::fs::create_dir_all(directory.join(folder)).unwrap();
        let path = directory.join(folder).join(format!("{name}.json"));
        std::fs::write(&path, text.to_string()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn streaming_responses_work() {
    let Some(job) = job_with_clients(settings()) else { return };
    let script = format!("{ONE}\none ask-python p --stream && one ask-typescript t --stream");
    let ended = job.exec(&[], &script);
    assert_all_well(&job, &ended, 2);
}

#[test]
fn federating_client_under_federation_signs_in_repeatedly() {
    let Some(job) = job_with_clients(settings()) else { return };
    let script = format!(
        r#"{ONE}
        unset ANTHROPIC_CONFIG_DIR ANTHROPIC_PROFILE
        for time in 1 2 3; do one claude-2.1.173 $time || exit 1; done"#
    );
    let ended = job.exec(&["--delivery", "federation"], &script);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    // One exchange of wifshare, and one of each client. Without wifshare the second client would find a spent token.
    job.assert_exchanges(4);
}

#[test]
fn refused_client_obtains_a_token_that_all_others_use() {
    let Some(job) = job_with_clients(settings()) else { return };
    let script = format!(
        r#"{ONE}
        one claude-2.1.240 before || exit 1
        touch worked; while ! [ -e revoked ]; do sleep 0.05; done
        one claude-2.1.240 after || exit 2
        sleep 1; one ask-python other && one claude-2.1.173 third"#
    );
    let child = job.wifshare(&["exec", "--delivery", "federation", "--", "sh", "-c", &script]).spawn().unwrap();
    eventually("the first client has worked", || job.path("worked").exists());
    job.sandbox.revoke_access_tokens();
    std::fs::File::create(job.path("revoked")).unwrap();
    let ended = finish(child);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    job.assert_exchanges(2);
}

#[test]
fn long_lived_client_continues_across_token_renewals() {
    // The SDKs refuse a credential with 30 s left. 65 s is the shortest lifetime that works for them.
    let Some(job) = job_with_clients(Settings { access_token_lifetime_s: 65, ..settings() }) else { return };
    let script = format!(
        r#"{ONE}
        one ask-python p --every 1 --for 75 & python=$!
        one ask-typescript t --every 1 --for 75 & typescript=$!
        wait $python && wait $typescript"#
    );
    let ended = job.exec(&[], &script);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
    let counters = job.counters();
    assert_eq!(counters.messages_refused, 0);
    // Each renewal is 26 s to 29 s after the one before. The first exchange is at the start.
    assert!((3..=4).contains(&counters.exchanges_accepted), "{counters:#?}");
    job.assert_nothing_sent_twice();
}

/// Records the values of a client's two credential headers in each request. Every request is refused.
fn overheard(listener: std::net::TcpListener) -> std::sync::mpsc::Receiver<[Option<String>; 2]> {
    use std::io::{BufRead, BufReader, Write};

    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut lines = BufReader::new(connection.try_clone().unwrap()).lines().map_while(Result::ok);
            let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            let value = |name: &str| {
                let mut values = head.iter().filter_map(|line| line.split_once(": "));
                values.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
            };
            let is_heard = tell.send(["authorization", "x-api-key"].map(value)).is_ok();
            let _ =
                (&connection).write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            if !is_heard {
                return;
            }
        }
    });
    told
}

/// claude passes only the run's variables to the helper, and sends the helper's output in both headers.
#[test]
fn claude_sends_the_api_key_helper_output_inside_a_run() {
    for claude in ["claude-2.1.240", "claude-2.1.330"] {
        let Some(mut job) = job_with_clients(settings()) else { return };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        job.set("ELSEWHERE", &format!("http://{}", listener.local_addr().unwrap()));
        let heard = overheard(listener);
        let settings = job.path("home/.claude");
        std::fs::create_dir(&settings).unwrap();
        // Only claude uses the other address. 2.1.330 removes the variable from its helper's environment itself.
        let helper = format!("env -u ANTHROPIC_BASE_URL {} token --format api-key-helper", crate::job::WIFSHARE);
        std::fs::write(settings.join("settings.json"), serde_json::json!({ "apiKeyHelper": helper }).to_string())
            .unwrap();
        let script = format!(
            "ANTHROPIC_BASE_URL=$ELSEWHERE exec $CLIENTS/{claude} -p hi --model claude-sonnet-4-6 </dev/null >/dev/null 2>&1"
        );
        job.exec(&[], &script);
        // claude first sends a request without a credential, to check whether the server is reachable.
        let (bearer, key) = loop {
            let heard = heard.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
            if let [bearer, Some(key)] = heard {
                break (bearer, key);
            }
        };
        assert!(job.sandbox.secrets().contains(&key) && key.starts_with("sk-ant-oat01-"), "{claude}: the shared token");
        assert_eq!(bearer, Some(format!("Bearer {key}")), "{claude}");
        job.assert_exchanges(1);
    }
}
