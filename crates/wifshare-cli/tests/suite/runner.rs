//! GitHub's runner as a step sees it: the files for variables, outputs and state, and a log that hides masked values.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command};

use crate::job::{Ended, Job, finish};

pub(crate) struct Runner {
    pub(crate) job: Job,
    /// The variables that steps have written to `GITHUB_ENV`.
    pub(crate) variables: BTreeMap<String, String>,
    /// The outputs that steps have written to `GITHUB_OUTPUT`.
    pub(crate) outputs: BTreeMap<String, String>,
    /// The state that a main has written to `GITHUB_STATE` for its post.
    pub(crate) state: BTreeMap<String, String>,
    /// The text that steps have written to `GITHUB_STEP_SUMMARY`.
    pub(crate) summary: String,
    /// The log of the job before masking.
    pub(crate) log: String,
    masks: BTreeSet<String>,
    steps: usize,
}

/// A running step.
pub(crate) struct Step {
    pub(crate) child: Child,
    files: PathBuf,
}

const FILES: [&str; 4] = ["GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_STATE", "GITHUB_STEP_SUMMARY"];

impl Runner {
    pub(crate) fn new(mut job: Job) -> Runner {
        job.set("GITHUB_ACTIONS", "true");
        let nothing = BTreeMap::new;
        Runner {
            job,
            variables: nothing(),
            outputs: nothing(),
            state: nothing(),
            summary: String::new(),
            log: String::new(),
            masks: BTreeSet::new(),
            steps: 0,
        }
    }

    /// Runs scripts as parallel steps. All of them must succeed.
    pub(crate) fn steps_in_parallel(&mut self, scripts: &[String]) {
        let command = |job: &Job, script: &String| job.command("sh", &["-c", script]);
        let steps: Vec<_> = scripts.iter().map(|script| self.begin(command(&self.job, script))).collect();
        for step in steps {
            let ended = self.end(step);
            assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
        }
    }

    /// Starts a step in its own process group, with the current variables of the job.
    pub(crate) fn begin(&mut self, mut command: Command) -> Step {
        use std::os::unix::process::CommandExt;

        self.steps += 1;
        let files = self.job.path(&format!("file-commands-{}", self.steps));
        std::fs::create_dir(&files).unwrap();
        command.envs(&self.variables);
        // The runner sets these last, so that they override what an earlier step has written.
        for name in ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"] {
            if let Some(value) = self.job.variable(name) {
                command.env(name, value);
            }
        }
        for name in FILES {
            std::fs::write(files.join(name), "").unwrap();
            command.env(name, files.join(name));
        }
        Step { child: command.process_group(0).spawn().unwrap(), files }
    }

    /// Waits for a step and reads what it wrote.
    pub(crate) fn end(&mut self, step: Step) -> Ended {
        let ended = finish(step.child);
        let file = |name: &str| std::fs::read_to_string(step.files.join(name)).unwrap();
        self.variables.extend(pairs(&file("GITHUB_ENV")));
        self.outputs.extend(pairs(&file("GITHUB_OUTPUT")));
        self.state.extend(pairs(&file("GITHUB_STATE")));
        self.summary.push_str(&file("GITHUB_STEP_SUMMARY"));
        // The runner removes such a file after the step, too.
        std::fs::remove_dir_all(step.files).unwrap();
        for line in ended.stdout.lines().chain(ended.stderr.lines()) {
            match line.strip_prefix("::add-mask::") {
                Some(secret) => drop(self.masks.insert(secret.to_owned())),
                None => self.log.push_str(&format!("{line}\n")),
            }
        }
        ended
    }

    pub(crate) fn step(&mut self, command: Command) -> Ended {
        let step = self.begin(command);
        self.end(step)
    }

    /// Checks that every secret in the log was masked before the job ended.
    pub(crate) fn assert_everything_is_masked(&self) {
        for secret in self.job.sandbox.secrets() {
            let is_shown = self.log.contains(&secret) || self.summary.contains(&secret);
            assert!(!is_shown || self.masks.contains(&secret), "a secret was shown and not masked:\n{}", self.log);
        }
        let issued = self.job.sandbox.secrets().into_iter().filter(|secret| secret.starts_with("sk-ant-"));
        let masked = issued.filter(|secret| self.masks.contains(secret)).count();
        assert!(masked > 0, "the access token that the job began with is masked");
    }
}

/// Parses `NAME=VALUE`, or `NAME<<DELIMITER`, lines, `DELIMITER`.
fn pairs(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let (heredoc, plain) = (line.find("<<"), line.find('='));
        match (heredoc, plain) {
            (Some(at), plain) if plain.is_none_or(|plain| at < plain) => {
                let delimiter = &line[at + 2..];
                let value: Vec<&str> = lines.by_ref().take_while(|line| *line != delimiter).collect();
                pairs.push((line[..at].to_owned(), value.join("\n")));
            }
            (_, Some(at)) => pairs.push((line[..at].to_owned(), line[at + 1..].to_owned())),
            _ => assert!(line.is_empty(), "the runner takes no such line: {line}"),
        }
    }
    pairs
}
