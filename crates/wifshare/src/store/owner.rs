//! Identifies a process, so that another process can check later whether it is alive.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A process, distinguished from a later process with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its process id, in its own pid namespace.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot; unknown without `/proc`.
    pub start_time: Option<u64>,
    /// The boot id of the machine at that time.
    pub boot: Option<String>,
}

impl ProcessIdentity {
    /// Returns this process.
    pub fn current() -> ProcessIdentity {
        static START_TIME: OnceLock<Option<u64>> = OnceLock::new();
        let pid = std::process::id();
        ProcessIdentity { pid, start_time: *START_TIME.get_or_init(|| start_time(pid)), boot: boot() }
    }

    /// Returns the living process with this pid; `None` if it does not exist, or without `/proc`.
    pub fn of(pid: u32) -> Option<ProcessIdentity> {
        Some(ProcessIdentity { pid, start_time: Some(start_time(pid)?), boot: boot() })
    }

    /// Returns whether the machine has not rebooted since then; `false` if unknown.
    pub(super) fn is_of_this_boot(&self) -> bool {
        self.boot.is_some() && self.boot == boot()
    }

    /// Returns whether the process has ended. Without `/proc`, this is always `true`, and the lock alone decides.
    pub fn is_dead(&self) -> bool {
        match (self.start_time, &self.boot) {
            (Some(_), Some(then)) if boot().is_some_and(|now| now != *then) => true,
            (Some(then), Some(_)) => start_time(self.pid) != Some(then),
            _ => true,
        }
    }
}

impl fmt::Display for ProcessIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    start_time_in(&short_text(&Path::new("/proc").join(pid.to_string()).join("stat"))?)
}

pub(crate) fn start_time_in(stat: &str) -> Option<u64> {
    // The command name is in parentheses and may contain anything, so field 22 is counted from after it
    // (proc_pid_stat(5)).
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

pub(super) fn boot() -> Option<String> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    let read = || short_text(Path::new("/proc/sys/kernel/random/boot_id")).map(|id| id.trim().to_owned());
    BOOT.get_or_init(read).clone()
}

fn short_text(path: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn current_process_is_alive_and_its_lookalikes_are_dead() {
        let ours = ProcessIdentity::current();
        assert!(!ours.is_dead());
        assert!(ProcessIdentity { start_time: ours.start_time.map(|time| time + 1), ..ours.clone() }.is_dead());
        assert!(ProcessIdentity { boot: Some("another".to_owned()), ..ours.clone() }.is_dead());
        assert!(ProcessIdentity { pid: u32::MAX, ..ours.clone() }.is_dead());
        assert_eq!(ours.to_string(), format!("pid {}", std::process::id()));
        assert!(ours.start_time.is_some_and(|ticks| ticks > 1));
    }

    #[test]
    fn living_process_is_found_by_its_pid() {
        let ours = ProcessIdentity::current();
        assert_eq!(ProcessIdentity::of(ours.pid), Some(ours.clone()));
        assert_eq!(ProcessIdentity::of(u32::MAX), None);
        let boot = std::fs::File::open("/proc/sys/kernel/random/boot_id").and_then(std::io::read_to_string).unwrap();
        assert_eq!(ours.boot.as_deref(), Some(boot.trim()));
    }
}
