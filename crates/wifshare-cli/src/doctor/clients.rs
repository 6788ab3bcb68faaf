//! Checks which claude and which packages ([`packages`]) are installed, and reports how each one behaves.
//!
//! The behaviour of each version was measured (`docs/evidence/conformance.md`, `docs/guides/tools.md`).

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use wifshare::{Delivery, Environment};

use super::finding::Finding;
use super::packages;
use crate::clock::clock;

const CHECK: &str = "client";

/// The first three parts of a version.
pub(super) type Version = (u64, u64, u64);

/// Finds the installed clients. `delivery` is how they will get the credential.
pub(super) fn find(environment: &Environment, delivery: Delivery) -> Vec<Finding> {
    let mut findings: Vec<Finding> = claude(environment, delivery).into_iter().collect();
    findings.extend(packages::find(environment, delivery));
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

/// Judges a version of claude by what was measured, without and with a shared credential.
fn judge_claude(said: &str, version: Option<Version>, delivery: Delivery) -> Finding {
    let shared = shared(delivery);
    let claude = format!("claude {}", wifshare::safe_text(said));
    let bare = match delivery {
        Delivery::Profile | Delivery::Federation => {
            "; `claude --bare` reads no profile and needs `gateway` or `environment`"
        }
        Delivery::Environment | Delivery::Gateway => "",
    };
    match version {
        None => Finding::note(CHECK, format!("{claude}: not a version that is known here")),
        Some(version) if version >= (2, 1, 330) => Finding::ok(
            CHECK,
            format!("{claude}: by itself, its processes share one exchange within one home directory; {shared}{bare}"),
        ),
        Some(version) if version >= (2, 1, 118) => Finding::ok(
            CHECK,
            format!(
                "{claude}: {ALONE}; {shared}{bare}{}; installs of plugins that run at once lose some (`wifshare claude` installs one by one)",
                if version < (2, 1, 141) { "; it does not read ANTHROPIC_WORKSPACE_ID" } else { "" }
            ),
        ),
        Some(version) => old_claude(&claude, version, delivery),
    }
}

/// Judges versions without profiles. claude 2.1.116 and 2.1.117 know the federation variables; older ones know neither.
fn old_claude(claude: &str, version: Version, delivery: Delivery) -> Finding {
    let workspace = "it does not read ANTHROPIC_WORKSPACE_ID";
    match delivery {
        Delivery::Environment | Delivery::Gateway => {
            Finding::note(CHECK, format!("{claude} knows no profiles; ANTHROPIC_AUTH_TOKEN is all it needs"))
        }
        Delivery::Federation if version >= (2, 1, 116) => {
            Finding::ok(CHECK, format!("{claude}: {}; {workspace}", shared(delivery)))
        }
        Delivery::Profile | Delivery::Federation => Finding::warning(
            CHECK,
            format!(
                "{claude} finds no credential under `{delivery}`: 2.1.118 is the first that knows profiles; {workspace}"
            ),
            "update it, or use --delivery gateway or environment",
        ),
    }
}

pub(super) const ALONE: &str = "by itself, only one of several processes that start together signs in";

/// What was measured of clients under this delivery.
pub(super) fn shared(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Profile => "under `profile` none of its processes exchanges",
        Delivery::Federation => "under `federation` none of its processes exchanges",
        Delivery::Environment => "under `environment` none of its processes exchanges, and none is given a later token",
        Delivery::Gateway => "behind the gateway none of its processes exchanges or holds the credential",
    }
}

pub(super) fn parsed(text: &str) -> Option<Version> {
    let mut parts = text.trim().splitn(3, '.').map(|part| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    });
    Some((parts.next()??, parts.next()??, parts.next()??))
}

/// Runs a program and returns its output if it exits with 0 within ten seconds. It gets no secret: only the variables
/// that name its programs and directories.
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
    // A version is short, so further output is not read.
    let reader = std::thread::Builder::new().spawn(move || {
        let mut text = String::new();
        let _ = stdout.take(4096).read_to_string(&mut text);
        text
    });
    let Ok(reader) = reader else {
        let _ = child.kill();
        let _ = child.wait();
        return None;
    };
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
    fn version_is_parsed_to_its_third_part() {
        assert_eq!(parsed("2.1.330 (Claude Code)"), Some((2, 1, 330)));
        assert_eq!(parsed("1.12.0-rc.1"), Some((1, 12, 0)));
        for unknown in ["", "2", "2.1", "v2.1.3", "two.one.three"] {
            assert_eq!(parsed(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn claude_verdict_follows_its_version_and_delivery() {
        for (version, delivery, verdict) in [
            ((2, 1, 115), Delivery::Federation, Verdict::Warning),
            ((2, 1, 116), Delivery::Federation, Verdict::Ok),
            ((2, 1, 117), Delivery::Profile, Verdict::Warning),
            ((2, 1, 117), Delivery::Gateway, Verdict::Note),
            ((2, 1, 118), Delivery::Profile, Verdict::Ok),
            ((2, 1, 330), Delivery::Profile, Verdict::Ok),
            ((3, 0, 0), Delivery::Profile, Verdict::Ok),
        ] {
            assert_eq!(judge_claude("x", Some(version), delivery).verdict, verdict, "{version:?} {delivery}");
        }
        assert_eq!(judge_claude("x", None, Delivery::Profile).verdict, Verdict::Note);
        let said = |delivery| judge_claude("x", Some((2, 1, 330)), delivery).evidence;
        assert!(said(Delivery::Profile).contains("--bare") && !said(Delivery::Gateway).contains("--bare"));
    }

    #[test]
    fn client_finding_names_the_delivery() {
        for (delivery, said) in [
            (Delivery::Profile, "under `profile` none"),
            (Delivery::Federation, "under `federation` none"),
            (Delivery::Environment, "none is given a later token"),
            (Delivery::Gateway, "holds the credential"),
        ] {
            assert!(shared(delivery).contains(said), "{delivery}");
        }
    }
}
