//! Looks at the argument lists of all processes for secrets, on Linux, where `/proc` shows them to everybody.

use std::{collections::BTreeSet, fs::File, io::Read, path::Path};

/// What was seen so far. A process that comes and goes between two looks is not seen.
#[derive(Debug, Default)]
pub(super) struct ArgumentLists {
    /// How often it was looked.
    pub(super) looks: u32,
    /// The processes of the command that were seen.
    pub(super) own: BTreeSet<u32>,
    /// The processes, of whomever, whose argument list held a secret.
    pub(super) with_secrets: BTreeSet<u32>,
}

impl ArgumentLists {
    /// Looks once. The secrets are the sandbox's own, so whoever has one has it from the command.
    pub(super) fn look(&mut self, proc: &Path, leaders: &[u32], secrets: &[String]) {
        self.looks += 1;
        for entry in std::fs::read_dir(proc).into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process may end while it is looked at.
            let Some(list) = read(&entry.path().join("cmdline")) else { continue };
            if secrets.iter().any(|secret| list.contains(secret.as_str())) {
                self.with_secrets.insert(id);
            }
            let group = read(&entry.path().join("stat")).as_deref().and_then(group);
            if group.is_some_and(|group| leaders.contains(&group)) {
                self.own.insert(id);
            }
        }
    }
}

/// The process group in `/proc/PID/stat`: the third field behind the program's name, which may hold blanks itself.
fn group(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

fn read(path: &Path) -> Option<String> {
    const LIMIT: u64 = 2 << 20;
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(LIMIT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn secret_in_any_argument_list_is_found() {
        let proc = tempfile::tempdir().unwrap();
        for (id, list, stat) in [
            ("7", "curl\0--header\0Bearer s3cret\0", "7 (cu) rl) S 1 5 5 0"),
            ("8", "sh\0", "8 (sh) S 1 6 6 0"),
            ("self", "s3cret", "1 (x) S 1 5 5 0"),
        ] {
            std::fs::create_dir(proc.path().join(id)).unwrap();
            for (name, text) in [("cmdline", list), ("stat", stat)] {
                File::create(proc.path().join(id).join(name)).unwrap().write_all(text.as_bytes()).unwrap();
            }
        }
        let mut lists = ArgumentLists::default();
        lists.look(proc.path(), &[5], &["s3cret".to_owned()]);
        assert_eq!(lists.with_secrets, BTreeSet::from([7]));
        assert_eq!((lists.looks, lists.own), (1, BTreeSet::from([7])));
    }
}
