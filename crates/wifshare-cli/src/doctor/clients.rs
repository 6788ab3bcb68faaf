//! Which clients are installed here, and what is known of how each behaves.
//!
//! What is said of a version was measured with the pinned clients (`docs/conformance.md`); of others it is said that they
//! were not tried.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use wifshare::{Delivery, Environment};

use super::finding::Finding;
use crate::clock::clock;

const CHECK: &str = "client";

/// As programs say it, to its third part.
type Version = (u64, u64, u64);

/// `delivery` is how they are to come by the credential.
pub(super) fn find(environment: &Environment, delivery: Delivery) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(claude(environment, delivery));
    findings.extend(
        node_package("@anthropic-ai/sdk").map(|version| sdk("the TypeScript SDK", &version, (1, 12, 0), delivery)),
    );
    findings.extend(node_package("@anthropic-ai/claude-agent-sdk").map(|version| {
        Finding::note(
            CHECK,
            format!("the Agent SDK for TypeScript {version}: it starts claude, and behaves as that does"),
        )
    }));
    findings.extend(python_package(environment).map(|version| sdk("the Python SDK", &version, (2, 12, 0), delivery)));
    if findings.is_empty() {
        findings.push(Finding::note(
            CHECK,
            "neither claude nor an SDK was found here; any client that knows profiles will do",
        ));
    }
    findings
}

fn claude(environment: &Environment, delivery: Delivery) -> Option<Finding> {
    let program = environment.program("claude", Path::is_file)?;
    let Some(said) = ask(&program, &["--version"], environment) else {
        return Some(Finding::warning(
            CHECK,
            format!("{} did not tell its version within 10 s", program.display()),
            "run `claude --version` by hand",
        ));
    };
    let version = said.split_whitespace().next().unwrap_or_default().to_owned();
    Some(judge_claude(&version, parsed(&version), delivery))
}

/// What was measured of claude: by itself, and with a credential in place.
fn judge_claude(said: &str, version: Option<Version>, delivery: Delivery) -> Finding {
    let shared = shared(delivery);
    let claude = format!("claude {}", wifshare::safe_text(said));
    match version {
        None => Finding::note(CHECK, format!("{claude}: not a version that is known here")),
        Some(version) if version >= (2, 1, 330) => Finding::ok(
            CHECK,
            format!("{claude}: by itself, its processes share one exchange within one home directory; {shared}"),
        ),
        Some(version) if version >= (2, 1, 173) => Finding::ok(
            CHECK,
            format!(
                "{claude}: {ALONE}; {shared}; installs of plugins that run at once lose some (`wifshare claude` installs one by one)"
            ),
        ),
        Some(version) => {
            let workspace = if version < (2, 1, 141) { "; it does not read ANTHROPIC_WORKSPACE_ID" } else { "" };
            untried(format!("{claude} is older than 2.1.173, the oldest that was tried{workspace}"), delivery)
        }
    }
}

const ALONE: &str = "by itself, only one of several processes that start together signs in";

/// What was measured of clients that were tried.
fn shared(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Profile => "under `profile` none of its processes exchanges",
        Delivery::Federation => "under `federation` none of its processes exchanges",
        Delivery::Environment => "under `environment` none of its processes exchanges, and none is given a later token",
        Delivery::Gateway => "behind the gateway none of its processes exchanges or holds the credential",
    }
}

/// A client of which nothing was measured.
fn untried(evidence: String, delivery: Delivery) -> Finding {
    match delivery {
        Delivery::Profile | Delivery::Federation => Finding::warning(
            CHECK,
            format!("{evidence}; older ones may not know profiles"),
            "update it, or use --delivery environment or gateway, whose ANTHROPIC_AUTH_TOKEN every version reads",
        ),
        Delivery::Environment | Delivery::Gateway => Finding::note(
            CHECK,
            format!("{evidence}; ANTHROPIC_AUTH_TOKEN, which every version reads, is all it needs"),
        ),
    }
}

fn sdk(name: &str, said: &str, tried: Version, delivery: Delivery) -> Finding {
    let evidence = format!("{name} {}", wifshare::safe_text(said));
    match parsed(said) {
        Some(version) if version >= tried => Finding::ok(CHECK, format!("{evidence}: {ALONE}; {}", shared(delivery))),
        _ => {
            let (major, minor, patch) = tried;
            untried(format!("{evidence} is older than {major}.{minor}.{patch}, which was tried"), delivery)
        }
    }
}

fn parsed(text: &str) -> Option<Version> {
    let mut parts = text.trim().splitn(3, '.').map(|part| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    });
    Some((parts.next()??, parts.next()??, parts.next()??))
}

/// From here upwards, as node looks for it.
#[expect(clippy::disallowed_methods, reason = "the border: where the user stands")]
fn node_package(name: &str) -> Option<String> {
    let here = std::env::current_dir().ok()?;
    let manifest = |directory: &Path| directory.join("node_modules").join(name).join("package.json");
    let path = here.ancestors().map(manifest).find(|path| path.is_file())?;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(1 << 20).read_to_string(&mut text).ok()?;
    let package: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(package.get("version")?.as_str()?.to_owned())
}

/// In isolated mode: nothing of the directory that we stand in is run.
fn python_package(environment: &Environment) -> Option<String> {
    const SCRIPT: &str = "import importlib.metadata as m; print(m.version('anthropic'))";
    let program = environment.program("python3", Path::is_file)?;
    ask(&program, &["-I", "-c", SCRIPT], environment).map(|said| said.trim().to_owned())
}

/// What a program prints, if it ends well within ten seconds. It is given no secret: only where programs and its home are.
fn ask(program: &Path, arguments: &[&str], environment: &Environment) -> Option<String> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const LOOK: Duration = Duration::from_millis(10);
    let kept = ["PATH", "HOME", "TMPDIR"].into_iter().filter_map(|name| Some((name, environment.os(name)?)));
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(kept)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let stdout = child.stdout.take()?;
    // A version is short; what comes after it is not waited for.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stdout.take(4096).read_to_string(&mut text);
        text
    });
    let clock = clock();
    let start = (clock.monotonic)();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if (clock.monotonic)() - start < PATIENCE && (clock.pause)(LOOK).is_ok() => {}
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    if !status.success() {
        return None;
    }
    reader.join().ok().filter(|text| !text.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_version_is_read_to_its_third_part() {
        assert_eq!(parsed("2.1.330 (Claude Code)"), Some((2, 1, 330)));
        assert_eq!(parsed("1.12.0-rc.1"), Some((1, 12, 0)));
        for unknown in ["", "2", "2.1", "v2.1.3", "two.one.three"] {
            assert_eq!(parsed(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn what_is_older_than_what_was_tried_is_told() {
        for (version, verdict) in [
            ((2, 1, 172), Verdict::Warning),
            ((2, 1, 173), Verdict::Ok),
            ((2, 1, 329), Verdict::Ok),
            ((2, 1, 330), Verdict::Ok),
            ((3, 0, 0), Verdict::Ok),
        ] {
            assert_eq!(judge_claude("x", Some(version), Delivery::Profile).verdict, verdict, "{version:?}");
        }
        let older = |patch| judge_claude("x", Some((2, 1, patch)), Delivery::Gateway);
        assert!(older(140).evidence.contains("ANTHROPIC_WORKSPACE_ID"));
        assert!(!older(141).evidence.contains("ANTHROPIC_WORKSPACE_ID"));
        assert_eq!(older(141).verdict, Verdict::Note, "a token in a variable is read by every version");
        assert_eq!(judge_claude("x", None, Delivery::Profile).verdict, Verdict::Note);
    }

    #[test]
    fn what_is_said_of_a_client_is_said_of_the_delivery() {
        for (delivery, said) in [
            (Delivery::Profile, "under `profile` none"),
            (Delivery::Federation, "under `federation` none"),
            (Delivery::Environment, "none is given a later token"),
            (Delivery::Gateway, "holds the credential"),
        ] {
            assert!(sdk("x", "2.12.0", (2, 12, 0), delivery).evidence.contains(said), "{delivery}");
        }
        let old = |delivery| sdk("x", "2.11.9", (2, 12, 0), delivery).verdict;
        assert_eq!((old(Delivery::Federation), old(Delivery::Environment)), (Verdict::Warning, Verdict::Note));
    }
}
