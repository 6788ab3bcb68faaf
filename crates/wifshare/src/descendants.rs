//! Finds the processes that a command has started, by polling.
//!
//! On Linux it reads `/proc`. It misses a process that starts and ends between two polls, and one whose parent ended
//! before the process was found. A process that was found once is followed, even if its parent changes.

use std::collections::BTreeMap;
use std::path::Path;

/// A change since the previous poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// A new process, or one with a new program.
    Seen {
        /// The process id.
        pid: u32,
        /// When it started, in clock ticks since boot.
        started: u64,
        /// The id of its parent.
        parent: u32,
        /// The first word of its command line, without its directory. Never an argument.
        program: String,
    },
    /// A process that was found before has ended.
    Gone {
        /// The process id.
        pid: u32,
        /// When it started, in clock ticks since boot.
        started: u64,
    },
}

/// The descendants of one process.
#[derive(Debug)]
pub struct Descendants {
    root: u32,
    /// By id and start: the kernel's name and the reported name.
    seen: BTreeMap<(u32, u64), Names>,
}

#[derive(Debug)]
struct Names {
    kernel: String,
    told: String,
}

impl Descendants {
    /// Creates a tracker for the descendants of this process. The process itself is not included.
    pub fn of(root: u32) -> Descendants {
        Descendants { root, seen: BTreeMap::new() }
    }

    /// Polls once, and returns the changes.
    pub fn look(&mut self) -> Vec<Sighting> {
        let mut sightings = Vec::new();
        let gone = |(pid, started): &(u32, u64)| platform::status(*pid).is_none_or(|status| status.started != *started);
        let ended: Vec<_> = self.seen.keys().filter(|process| gone(process)).copied().collect();
        for (pid, started) in ended {
            self.seen.remove(&(pid, started));
            sightings.push(Sighting::Gone { pid, started });
        }
        let mut to_visit: Vec<u32> = self.seen.keys().map(|(pid, _)| *pid).chain([self.root]).collect();
        let mut visited = std::collections::BTreeSet::new();
        while let Some(pid) = to_visit.pop() {
            if !visited.insert(pid) {
                continue;
            }
            to_visit.extend(platform::children(pid));
            if pid != self.root {
                sightings.extend(self.meet(pid));
            }
        }
        sightings
    }

    fn meet(&mut self, pid: u32) -> Option<Sighting> {
        let status = platform::status(pid)?;
        let known = self.seen.get(&(pid, status.started));
        if known.is_some_and(|names| names.kernel == status.name) {
            return None;
        }
        // During execve(2), the kernel has the new name but no command line. The next poll tries again.
        let (kernel, program) = match platform::program(pid) {
            Some(program) => (status.name, program),
            None => (String::new(), status.name),
        };
        let is_news = known.is_none_or(|names| names.told != program);
        self.seen.insert((pid, status.started), Names { kernel, told: program.clone() });
        is_news.then_some(Sighting::Seen { pid, started: status.started, parent: status.parent, program })
    }
}

/// A running process that may use a credential which is about to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Living {
    /// The process id.
    pub pid: u32,
    /// The first word of its command line, without its directory. Never an argument.
    pub program: String,
    /// Whether its environment was read. It is empty for a moment during execve(2).
    pub is_sure: bool,
}

/// The processes with a higher id than `after` that have this variable with this path in their environment.
pub fn living_with(variable: &str, path: &Path, after: u32) -> Vec<Living> {
    platform::living_with(variable, path, after)
}

/// A program's name without private data: the first word of the last part of its path, without anything like a token.
pub fn program_name(program: &str) -> String {
    const LONGEST: usize = 48;
    let name = program.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let word = name.split_whitespace().next().unwrap_or_default();
    crate::message::safe_text(word).chars().take(LONGEST).collect()
}

#[cfg(target_os = "linux")]
mod platform {
    use std::fs::{self, File};
    use std::io::Read;
    use std::path::{Path, PathBuf};

    pub(super) struct Status {
        pub(super) name: String,
        pub(super) parent: u32,
        pub(super) started: u64,
    }

    fn directory(pid: u32) -> PathBuf {
        Path::new("/proc").join(pid.to_string())
    }

    /// Field 2 is the name in parentheses, which can contain any character; 3 the state, 4 the parent, 22 the start
    /// (proc_pid_stat(5)). A zombie counts as ended.
    pub(super) fn status(pid: u32) -> Option<Status> {
        let text = short_text(&directory(pid).join("stat"))?;
        let (before, after) = text.rsplit_once(')')?;
        let fields: Vec<_> = after.split_ascii_whitespace().take(20).collect();
        let name = before.split_once('(')?.1.to_owned();
        let is_there = !["Z", "X", "x"].contains(fields.first()?);
        let (parent, started) = (fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?);
        is_there.then_some(Status { name, parent, started })
    }

    /// The children of all threads of a process.
    pub(super) fn children(pid: u32) -> Vec<u32> {
        let threads = fs::read_dir(directory(pid).join("task")).into_iter().flatten().flatten();
        let lists = threads.filter_map(|thread| short_text(&thread.path().join("children")));
        lists
            .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect()
    }

    pub(super) fn program(pid: u32) -> Option<String> {
        let line = short_text(&directory(pid).join("cmdline"))?;
        let name = super::program_name(line.split('\0').next()?);
        (!name.is_empty()).then_some(name)
    }

    pub(super) fn living_with(variable: &str, value: &Path, after: u32) -> Vec<super::Living> {
        use std::os::unix::ffi::OsStrExt;

        let entry = [variable.as_bytes(), b"=", value.as_os_str().as_bytes()].concat();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let later =
            processes.filter_map(|process| process.file_name().to_str()?.parse().ok()).filter(|pid| *pid > after);
        let look = |pid: u32| {
            // Kernel threads have an empty environment too.
            const KERNEL: u32 = 2;
            let environment = bytes_of(&directory(pid).join("environ"), 1 << 20)?;
            let is_sure = environment.split(|byte| *byte == 0).any(|line| line == entry);
            let may_have = environment.is_empty() && status(pid).is_some_and(|status| status.parent != KERNEL);
            let program = || program(pid).unwrap_or_default();
            (is_sure || may_have).then(|| super::Living { pid, program: program(), is_sure })
        };
        later.filter_map(look).collect()
    }

    fn short_text(path: &Path) -> Option<String> {
        Some(String::from_utf8_lossy(&bytes_of(path, 64 * 1024)?).into_owned())
    }

    fn bytes_of(path: &Path, most: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// Other systems: no process is found.
#[cfg(not(target_os = "linux"))]
mod platform {
    pub(super) struct Status {
        pub(super) name: String,
        pub(super) parent: u32,
        pub(super) started: u64,
    }

    pub(super) fn status(_pid: u32) -> Option<Status> {
        None
    }

    pub(super) fn children(_pid: u32) -> Vec<u32> {
        Vec::new()
    }

    pub(super) fn program(_pid: u32) -> Option<String> {
        None
    }

    pub(super) fn living_with(_variable: &str, _value: &std::path::Path, _after: u32) -> Vec<super::Living> {
        Vec::new()
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    /// Polls until a matching change.
    fn look_until(descendants: &mut Descendants, mut is_it: impl FnMut(&Sighting) -> bool) -> Sighting {
        let clock = Clock::system();
        let start = (clock.monotonic)();
        while (clock.monotonic)() - start < Duration::from_secs(60) {
            if let Some(found) = descendants.look().into_iter().find(|sighting| is_it(sighting)) {
                return found;
            }
            (clock.pause)(Duration::from_millis(1)).expect("nothing cuts it short");
        }
        panic!("it was never seen");
    }

    #[test]
    fn grandchild_start_and_end_are_seen() {
        let mut root = Command::new("sh")
            .args(["-c", "sleep 86399 & child=$!; read line; kill $child; wait; read line"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut descendants = Descendants::of(root.id());
        let seen = look_until(
            &mut descendants,
            |sighting| matches!(sighting, Sighting::Seen { program, .. } if program == "sleep"),
        );
        let Sighting::Seen { pid, started, parent, .. } = seen else { unreachable!() };
        assert_eq!(parent, root.id());
        assert_eq!(descendants.look(), [], "told once");
        use std::io::Write;
        root.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let gone = look_until(&mut descendants, |sighting| matches!(sighting, Sighting::Gone { .. }));
        assert_eq!(gone, Sighting::Gone { pid, started });
        drop(root.stdin.take());
        root.wait().unwrap();
    }

    #[test]
    fn process_after_exec_is_reported_with_its_full_name() {
        // The kernel stores only fifteen characters of a name.
        const NAME: &str = "a-name-of-many-letters";
        let holder = tempfile::tempdir().unwrap();
        let path = holder.path().join(NAME);
        std::os::unix::fs::symlink("/bin/sh", &path).unwrap();
        let mut root = Command::new("sh")
            .args(["-c", r#"sh -c 'read line; exec "$0" -c "kill -STOP \$\$; true"' "$0"; true"#])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let named = |name: &'static str| {
            move |sighting: &Sighting| match sighting {
                Sighting::Seen { program, .. } => program == name,
                Sighting::Gone { .. } => false,
            }
        };
        let mut descendants = Descendants::of(root.id());
        let Sighting::Seen { pid: before, .. } = look_until(&mut descendants, named("sh")) else { unreachable!() };
        drop(root.stdin.take());
        let Sighting::Seen { pid: after, .. } = look_until(&mut descendants, named(NAME)) else { unreachable!() };
        assert_eq!(before, after);
        let pid = rustix::process::Pid::from_raw(after.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        root.wait().unwrap();
    }

    #[test]
    fn program_name_has_no_path_and_no_arguments() {
        for (program, name) in [
            ("/usr/bin/claude", "claude"),
            ("node", "node"),
            ("worker: password hunter2", "worker:"),
            ("/opt/", "opt"),
            ("sk-ant-oat01-x", "[redacted]"),
            ("", ""),
        ] {
            assert_eq!(program_name(program), name);
        }
    }
}
