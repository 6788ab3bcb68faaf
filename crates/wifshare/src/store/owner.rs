//! Which process this is, told so that another one can find out later whether it still lives.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A process, distinguished from a later one that was given the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its process id, in its own pid namespace.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot; unknown where there is no `/proc`.
    pub start_time: Option<u64>,
    /// Which boot of the machine that was.
    pub boot: Option<String>,
}

impl Owner {
    /// This process.
    pub fn current() -> Owner {
        static START_TIME: OnceLock<Option<u64>> = OnceLock::new();
        let pid = std::process::id();
        Owner { pid, start_time: *START_TIME.get_or_init(|| start_time(pid)), boot: boot() }
    }

    /// The living process of this number; `None` where there is none, or where there is no `/proc` to tell.
    pub fn of(pid: u32) -> Option<Owner> {
        Some(Owner { pid, start_time: Some(start_time(pid)?), boot: boot() })
    }

    /// Whether the machine has not been started anew since; `false` where that is not known.
    pub(super) fn is_of_this_boot(&self) -> bool {
        self.boot.is_some() && self.boot == boot()
    }

    /// Whether it is known to have ended. A doubt counts as alive: what is left behind is swept another time.
    pub fn is_dead(&self) -> bool {
        match (self.start_time, &self.boot) {
            (Some(_), Some(then)) if boot().is_some_and(|now| now != *then) => true,
            (Some(then), Some(_)) => start_time(self.pid) != Some(then),
            // Without /proc the lock alone has to tell.
            _ => true,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    start_time_in(&short_text(&Path::new("/proc").join(pid.to_string()).join("stat"))?)
}

pub(crate) fn start_time_in(stat: &str) -> Option<u64> {
    // The command name stands in parentheses and may hold anything; field 22 counts from behind it (proc_pid_stat(5)).
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
        let ours = Owner::current();
        assert!(!ours.is_dead());
        assert!(Owner { start_time: ours.start_time.map(|time| time + 1), ..ours.clone() }.is_dead());
        assert!(Owner { boot: Some("another".to_owned()), ..ours.clone() }.is_dead());
        assert!(Owner { pid: u32::MAX, ..ours.clone() }.is_dead());
        assert_eq!(ours.to_string(), format!("pid {}", std::process::id()));
        assert!(ours.start_time.is_some_and(|ticks| ticks > 1));
    }

    #[test]
    fn living_process_is_found_by_its_pid() {
        let ours = Owner::current();
        assert_eq!(Owner::of(ours.pid), Some(ours.clone()));
        assert_eq!(Owner::of(u32::MAX), None);
        let boot = std::fs::File::open("/proc/sys/kernel/random/boot_id").and_then(std::io::read_to_string).unwrap();
        assert_eq!(ours.boot.as_deref(), Some(boot.trim()));
    }
}
