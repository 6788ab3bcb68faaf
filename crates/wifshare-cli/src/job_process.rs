//! Finds the process of the current job. A keeper watches it by default, so that it ends with the job and not before.
//!
//! The shell of a step ends with the step, so the nearest parents do not help. Two kinds of processes do: the one that
//! a CI starts for each job, and the session leader of a terminal, which is the user's shell.

use wifshare::ProcessIdentity;

/// Processes that live as long as one job: the runners of GitHub, Gitea and Azure start one for each job, and Buildkite
/// runs `buildkite-agent bootstrap`.
const JOBS: [&str; 3] = ["Runner.Worker", "Agent.Worker", "buildkite-agent"];

/// The process of the enclosing job, if it can be found.
pub(crate) fn around_us() -> Option<ProcessIdentity> {
    let parents = parents();
    let job = parents.iter().find(|parent| JOBS.contains(&parent.name.as_str()));
    let shell = || parents.iter().find(|parent| parent.leads_a_terminal);
    ProcessIdentity::of(job.or_else(shell)?.pid)
}

struct Parent {
    pid: u32,
    name: String,
    leads_a_terminal: bool,
}

/// The parents of this process, the nearest first, as far as `/proc` shows them.
fn parents() -> Vec<Parent> {
    const MOST: usize = 64;
    let mut parents = Vec::new();
    let mut next = parent_of("self").map(|(parent, _)| parent);
    while let Some(pid) = next.filter(|pid| *pid > 0 && parents.len() < MOST) {
        let Some((parent, process)) = parent_of(&pid.to_string()) else { break };
        parents.push(process);
        next = Some(parent);
    }
    parents
}

/// The parent's process id, and the process itself.
fn parent_of(pid: &str) -> Option<(u32, Parent)> {
    read(&stat(pid)?)
}

fn stat(pid: &str) -> Option<String> {
    use std::io::Read;

    let mut text = String::new();
    std::fs::File::open(format!("/proc/{pid}/stat")).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Parses proc_pid_stat(5). The name is in parentheses and can contain any character. State, parent, group, session and
/// terminal follow it.
fn read(stat: &str) -> Option<(u32, Parent)> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let [_, parent, _, session, terminal, ..] = fields[..] else { return None };
    let leads_a_terminal = session == pid && terminal != "0";
    Some((parent.parse().ok()?, Parent { pid: pid.parse().ok()?, name: name.to_owned(), leads_a_terminal }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_stat_is_parsed_with_any_name_and_terminal_leader() {
        for (stat, parent, name, leads) in [
            ("7 (sh) S 5 7 7 34816 7 0", 5, "sh", true),
            ("7 (sh) S 5 7 7 0 7 0", 5, "sh", false),
            ("7 (sh) S 5 7 6 34816 7 0", 5, "sh", false),
            ("7 (a) S 1 (b) S 5 7 7 0 7 0", 5, "a) S 1 (b", false),
            ("7 (Runner.Worker) S 5 5 5 0 -1 0", 5, "Runner.Worker", false),
        ] {
            let (found, process) = read(stat).expect(stat);
            assert_eq!((found, process.pid, process.name.as_str()), (parent, 7, name), "{stat}");
            assert_eq!(process.leads_a_terminal, leads, "{stat}");
        }
        assert!(read("").is_none() && read("7 (sh").is_none() && read("7 (sh) S 5").is_none());
    }
}
