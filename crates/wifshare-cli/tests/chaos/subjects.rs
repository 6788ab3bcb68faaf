//! Two subjects whose identity tokens come from one command, like an agent shared by the jobs of a host.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::job::Job;

pub(crate) struct Subjects {
    /// Outside the job's directory, because unused identity tokens are no leak.
    directory: tempfile::TempDir,
    issued: u64,
    pub(crate) has_user_namespaces: bool,
}

/// Prints an identity token of `$SUBJECT` that no other process gets: the process that renames the file owns it.
const COMMAND: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit
for token in "$SUBJECT"/*; do
    mv "$token" "taken-$$" 2> /dev/null && cat "taken-$$" && rm "taken-$$" && exit
done
echo "no identity token of $SUBJECT is left" >&2
exit 1
"#;

impl Subjects {
    pub(crate) const ALL: [&'static str; 2] = ["one", "two"];
    const STOCK: usize = 24;

    pub(crate) fn new() -> Subjects {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let command = directory.path().join("identity");
        std::fs::write(&command, COMMAND).unwrap();
        std::fs::set_permissions(command, PermissionsExt::from_mode(0o755)).unwrap();
        for subject in Self::ALL {
            std::fs::create_dir(directory.path().join(subject)).unwrap();
        }
        let mut try_namespace = Command::new("setpriv");
        try_namespace.args([
            "--reuid=65533",
            "--regid=65533",
            "--clear-groups",
            "unshare",
            "--user",
            "--map-root-user",
            "true",
        ]);
        let has_user_namespaces = try_namespace.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        Subjects { directory, issued: 0, has_user_namespaces }
    }

    pub(crate) fn identity_command(&self) -> String {
        self.directory.path().join("identity").to_str().unwrap().to_owned()
    }

    /// Copies a program to a place that every user can read and that is not searched for secrets.
    pub(crate) fn copy(&self, program: &str) -> String {
        let copy = self.directory.path().join("wifshare");
        std::fs::copy(program, &copy).unwrap();
        copy.to_str().unwrap().to_owned()
    }

    pub(crate) fn claim(subject: &str) -> String {
        format!("repo:octo-org/octo-repo:environment:{subject}")
    }

    /// Replaces the used identity tokens with new ones.
    pub(crate) fn restock(&mut self, job: &Job) {
        for subject in Self::ALL {
            let stock: PathBuf = self.directory.path().join(subject);
            let there = std::fs::read_dir(&stock).unwrap().count();
            for _ in there..Self::STOCK {
                self.issued += 1;
                let claim = Self::claim(subject);
                let token = job.sandbox.issue_identity_token_with(|claims| {
                    claims.insert("sub".to_owned(), claim.into());
                });
                let unfinished = self.directory.path().join("new");
                std::fs::write(&unfinished, token).unwrap();
                std::fs::rename(unfinished, stock.join(format!("{:08}", self.issued))).unwrap();
            }
        }
    }
}
