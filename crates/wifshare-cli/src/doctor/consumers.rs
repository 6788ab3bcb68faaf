//! Finds processes of this user that could use up the same identity token, because they were started with the same
//! token file. Only names and process ids are kept from their environments.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use wifshare::IdentitySource;

use super::finding::Finding;

/// The largest environment that is read, in bytes.
const LARGEST: u64 = 1 << 20;

pub(super) fn of(source: &IdentitySource) -> Vec<Finding> {
    let IdentitySource::File { path, .. } = source else { return Vec::new() };
    let others = others(path);
    if others.is_empty() {
        return vec![Finding::ok("other consumers", "no other process of this user was started with this token file")];
    }
    vec![Finding::warning(
        "other consumers",
        format!(
            "{} {} with the same token file: the first to exchange spends it for all",
            others.join(", "),
            match others.len() {
                1 => "was started",
                _ => "were started",
            }
        ),
        "wrap all of them in one `wifshare exec`, or unset ANTHROPIC_IDENTITY_TOKEN_FILE for those that need no token",
    )]
}

/// Lists each one as "python3 (pid 4711)". This process and its ancestors are left out: they only pass the variable on.
fn others(file: &Path) -> Vec<String> {
    let ancestors = ancestors();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter()
        .filter(|pid| !ancestors.contains(pid) && is_started_with(*pid, file))
        .map(|pid| format!("{} (pid {pid})", name(pid)))
        .collect()
}

fn is_started_with(pid: u32, file: &Path) -> bool {
    let mut environment = zeroize::Zeroizing::new(Vec::new());
    let read = File::open(format!("/proc/{pid}/environ")).and_then(|it| it.take(LARGEST).read_to_end(&mut environment));
    let prefix = b"ANTHROPIC_IDENTITY_TOKEN_FILE=";
    read.is_ok()
        && environment
            .split(|byte| *byte == 0)
            .filter_map(|variable| variable.strip_prefix(prefix))
            .any(|value| value == file.as_os_str().as_bytes())
}

fn name(pid: u32) -> String {
    wifshare::safe_text(short_text(&format!("/proc/{pid}/comm")).unwrap_or_default().trim())
}

fn ancestors() -> Vec<u32> {
    let mut ancestors = vec![std::process::id()];
    while let Some(parent) = ancestors.last().and_then(|pid| parent_of(*pid)).filter(|parent| *parent != 0) {
        ancestors.push(parent);
    }
    ancestors
}

/// Field 4. The name before it is in parentheses and can contain any character (proc_pid_stat(5)).
fn parent_of(pid: u32) -> Option<u32> {
    let stat = short_text(&format!("/proc/{pid}/stat"))?;
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(1)?.parse().ok()
}

fn short_text(path: &str) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}
