//! Checks the state directory as an exchange would use it: the same code creates and locks it for a moment.

use std::path::Path;
use std::time::Duration;

use wifshare::{
    CachedFailure, Config, ConfigError, Credential, Enclosing, Environment, EventLog, ObtainError, StoreError,
};

use super::finding::Finding;
use crate::clock::clock;
use crate::console::whole;
use crate::run_over::RunOver;

/// Checks the directory, its file system, the lock and the credential. Also returns the credential if it is usable.
pub(super) fn look(config: &Config) -> (Vec<Finding>, Option<Credential>) {
    let store = config.store();
    let root = &config.location.root;
    let mut findings = Vec::new();
    match store.lock(Duration::ZERO, clock(), &|_| {}) {
        Ok(locked) => {
            findings.push(Finding::ok("state directory", described(root)));
            if let Ok(Some(refusal)) = locked.remembered_refusal() {
                findings.push(remembered(&refusal));
            }
            drop(locked);
            findings.extend(store.check().into_iter().map(failed));
        }
        Err(StoreError::Held { holder, .. }) => {
            findings.push(Finding::ok("state directory", described(root)));
            let holder = holder.unwrap_or_else(|| "another process".to_owned());
            findings.push(Finding::note("lock", format!("held by {holder}")));
            findings.extend(store.check().into_iter().map(failed));
        }
        Err(error) => {
            findings.push(failed(error));
            return (findings, None);
        }
    }
    if let Err(error) = EventLog::of(store.directory()).check() {
        let message = format!("{}; `report` and `status` cannot show what happened", wifshare::whole_message(&error));
        findings.push(Finding::warning("event log", message, error.hint()));
    }
    match store.read(clock()) {
        Ok(Some(credential)) if credential.is_usable(clock().now()) => {
            let left = whole(credential.remaining(clock().now()));
            findings.push(Finding::ok(
                "credential",
                format!("generation {} is shared, good for {left}", credential.generation),
            ));
            (findings, Some(credential))
        }
        Ok(_) => (findings, None),
        // `check` has reported it already, with everything else that is wrong there.
        Err(_) => (findings, None),
    }
}

/// Reports what the enclosing run shares.
pub(super) fn of_the_run(run: &Enclosing) -> Vec<Finding> {
    let Enclosing::Store { store, run } = run else {
        let found = "inside a run of wifshare behind its gateway; `exec` joins it, and `token` prints its capability";
        return vec![Finding::ok("run", found)];
    };
    let now = clock().now();
    vec![match store.read(clock()) {
        Ok(Some(credential)) if credential.is_usable(now) => Finding::ok(
            "run",
            format!(
                "inside a run of wifshare, which shares generation {}, good for {}; `exec` and `token` join it",
                credential.generation,
                whole(credential.remaining(now))
            ),
        ),
        Ok(_) if wifshare::renews_on_request(run) => Finding::ok(
            "run",
            "inside a run of wifshare whose credential has ended; the next `exec` or `token` inside it has it renewed",
        ),
        Ok(_) => Finding::failed(
            "run",
            "inside a run of wifshare whose credential has ended",
            Some(
                "look at the log of the `wifshare exec` around this command: it says why it could not renew".to_owned(),
            ),
        ),
        Err(error) => failed(error),
    }]
}

/// Reports a run that the environment names but that has ended, so that its credential is no longer renewed.
/// `unconfigured` is why this job cannot sign in on its own.
pub(super) fn gone(environment: &Environment, unconfigured: Option<&ConfigError>) -> Option<Finding> {
    let over = RunOver::of(environment)?;
    let cure = match unconfigured {
        None => Some("run `wifshare start` before this step, which signs in anew".to_owned()),
        Some(error) => over.failure(error).hint,
    };
    Some(Finding::failed(
        "run",
        format!("this environment names a run that this command cannot join: {}", over.description()),
        cure,
    ))
}

/// Reports a cached failure. While it is valid, an exchange with the same inputs is not retried.
fn remembered(refusal: &CachedFailure) -> Finding {
    let likeliest = refusal.diagnosis.as_ref().and_then(|diagnosis| diagnosis.likely.first());
    let evidence = format!(
        "remembered for {} s more: error[{}]: {}{}",
        refusal.remaining(clock().now()).unwrap_or_default().as_secs(),
        refusal.code,
        refusal.message,
        likeliest.map(|likeliest| format!("; likely: {likeliest}")).unwrap_or_default()
    );
    Finding::failed("refusal", evidence, refusal.hint.clone())
}

fn failed(error: StoreError) -> Finding {
    let hint = error.hint();
    let message = wifshare::whole_message(&error);
    let error = ObtainError::from(error);
    Finding::failed("state directory", format!("error[{}]: {message}", error.code()), hint)
}

fn described(root: &Path) -> String {
    let file_system = file_system(root).map(|kind| format!(", on file system {kind}")).unwrap_or_default();
    format!("{} is private and can be written and locked{file_system}", root.display())
}

/// The type of the file system mounted at this path (proc_pid_mountinfo(5)).
fn file_system(path: &Path) -> Option<String> {
    use std::io::Read;

    let path = path.canonicalize().ok()?;
    let mut mounts = String::new();
    std::fs::File::open("/proc/self/mountinfo").ok()?.take(1 << 20).read_to_string(&mut mounts).ok()?;
    let of_line = |line: &str| -> Option<(usize, String)> {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        path.starts_with(point).then_some((point.len(), right.split(' ').next()?.to_owned()))
    };
    mounts.lines().filter_map(of_line).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}
