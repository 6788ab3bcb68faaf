//! Two jobs of one user on one host, with one federation rule. A credential never crosses from one to the other, for
//! every source of identity tokens.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use wifshare_sandbox::{FederationRule, Settings, Verdict};

use crate::job::{Ended, Job, finish, settings};

/// The subjects of the two jobs' tokens.
const SUBJECTS: [&str; 2] =
    ["repo:octo-org/octo-repo:ref:refs/heads/main", "repo:octo-org/octo-repo:ref:refs/heads/topic"];

/// A source of identity tokens for two jobs.
#[derive(Clone, Copy)]
struct Source {
    name: &'static str,
    options: &'static [&'static str],
    /// The variables of both jobs.
    variables: &'static [(&'static str, &'static str)],
    /// The variables that differ, for the first and the second job.
    own: &'static [(&'static str, [&'static str; 2])],
    gives: Gives,
}

/// Where the tokens of a job come from.
#[derive(Clone, Copy)]
enum Gives {
    /// The mock server issues them, for the subject in its settings.
    Endpoint,
    /// A token in this file.
    File(&'static str),
    /// A token in this variable.
    Variable(&'static str),
    /// This program in the job's directory prints a token between these texts.
    IdentityCommand(&'static str, &'static str, &'static str),
}

const NONE: Source = Source { name: "", options: &[], variables: &[], own: &[], gives: Gives::Endpoint };

const SOURCES: [Source; 17] = [
    Source {
        name: "a token file",
        variables: &[("ANTHROPIC_IDENTITY_TOKEN_FILE", "[DIRECTORY]/shared-token")],
        gives: Gives::File("shared-token"),
        ..NONE
    },
    Source { name: "a variable", gives: Gives::Variable("ANTHROPIC_IDENTITY_TOKEN"), ..NONE },
    Source {
        name: "a command",
        options: &["--identity-command", "[DIRECTORY]/bin/print"],
        gives: Gives::IdentityCommand("print", "", ""),
        ..NONE
    },
    Source {
        name: "GitHub Actions",
        variables: &[
            ("ACTIONS_ID_TOKEN_REQUEST_URL", "[IDENTITY]"),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "[REQUEST-TOKEN]"),
        ],
        own: &[("GITHUB_RUN_ID", ["11", "12"]), ("GITHUB_RUN_ATTEMPT", ["1", "1"]), ("GITHUB_JOB", ["test", "test"])],
        ..NONE
    },
    Source {
        name: "Forgejo Actions",
        variables: &[
            ("FORGEJO_ACTIONS", "true"),
            ("ACTIONS_ID_TOKEN_REQUEST_URL", "[IDENTITY]"),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "[REQUEST-TOKEN]"),
        ],
        own: &[("GITHUB_RUN_ID", ["11", "11"]), ("GITHUB_JOB", ["test", "lint"])],
        ..NONE
    },
    Source {
        name: "Azure Pipelines",
        variables: &[
            ("TF_BUILD", "True"),
            ("SYSTEM_OIDCREQUESTURI", "[BASE]/azure-pipelines/oidctoken"),
            ("SYSTEM_ACCESSTOKEN", "[REQUEST-TOKEN]"),
        ],
        own: &[("SYSTEM_JOBID", ["11", "12"])],
        ..NONE
    },
    Source {
        name: "GitLab",
        variables: &[("GITLAB_CI", "true"), ("CI_SERVER_URL", "[BASE]")],
        own: &[("CI_JOB_ID", ["11", "12"])],
        gives: Gives::Variable("CLAUDE_TOKEN"),
        ..NONE
    },
    Source {
        name: "Bitbucket",
        own: &[("BITBUCKET_STEP_UUID", ["{11}", "{12}"])],
        gives: Gives::Variable("BITBUCKET_STEP_OIDC_TOKEN"),
        ..NONE
    },
    Source {
        name: "Buildkite",
        variables: &[("BUILDKITE", "true"), ("BUILDKITE_AGENT_ACCESS_TOKEN", "t")],
        own: &[("BUILDKITE_JOB_ID", ["11", "12"])],
        gives: Gives::IdentityCommand("buildkite-agent", "", ""),
        ..NONE
    },
    Source {
        name: "CircleCI",
        variables: &[("CIRCLECI", "true")],
        own: &[("CIRCLE_WORKFLOW_JOB_ID", ["11", "12"])],
        gives: Gives::IdentityCommand("circleci", "", ""),
        ..NONE
    },
    // An older agent, which sets no job id.
    Source {
        name: "CircleCI without a job id",
        variables: &[("CIRCLECI", "true")],
        gives: Gives::IdentityCommand("circleci", "", ""),
        ..NONE
    },
    Source {
        name: "AWS",
        variables: &[("CODEBUILD_BUILD_ARN", "arn:aws:codebuild:eu-west-1:1:build/x")],
        gives: Gives::IdentityCommand("aws", r#"{"WebIdentityToken": ""#, r#""}"#),
        ..NONE
    },
    Source {
        name: "SPIFFE",
        variables: &[("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire/agent.sock")],
        gives: Gives::IdentityCommand("spire-agent", r#"[{"svids":[{"svid":""#, r#""}]}]"#),
        ..NONE
    },
    Source {
        name: "Google Cloud",
        variables: &[("CLOUD_RUN_JOB", "nightly"), ("WIFSHARE_TEST_METADATA", "[BASE]")],
        ..NONE
    },
    Source {
        name: "Azure VM",
        options: &["--identity-source", "azure-vm"],
        variables: &[("WIFSHARE_TEST_METADATA", "[BASE]")],
        ..NONE
    },
    Source {
        name: "Azure App Service",
        variables: &[("IDENTITY_ENDPOINT", "[BASE]/msi/token"), ("IDENTITY_HEADER", "[REQUEST-TOKEN]")],
        ..NONE
    },
    Source {
        name: "Kubernetes",
        variables: &[("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("WIFSHARE_TEST_KUBERNETES", "[DIRECTORY]/pod")],
        gives: Gives::File("pod/token"),
        ..NONE
    },
];

/// A host with two jobs of one user.
struct Host {
    job: Job,
    source: Source,
    /// The identity tokens for programs, outside the directory that is searched for secrets.
    unspent: tempfile::TempDir,
}

impl Host {
    fn new(source: Source) -> Host {
        Host::with(source, settings())
    }

    fn with(source: Source, settings: Settings) -> Host {
        let mut job = Job::new(settings);
        job.without_endpoint();
        job.may_keep_credential();
        let unspent = tempfile::tempdir().unwrap();
        for directory in ["bin", "pod"] {
            std::fs::create_dir(job.path(directory)).unwrap();
        }
        if let Gives::IdentityCommand(name, before, after) = source.gives {
            let script = format!(
                "#!/bin/sh\nset -e\nnext=$(ls {0}/$WHO | head -n 1)\nprintf '%s' '{before}'\ncat {0}/$WHO/$next\nprintf '%s' '{after}'\nrm {0}/$WHO/$next\n",
                unspent.path().display()
            );
            let program = job.path("bin").join(name);
            std::fs::write(&program, script).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            let path = format!("{}:/usr/bin:/bin", job.path("bin").display());
            job.set("PATH", &path);
        }
        Host { job, source, unspent }
    }

    fn token_of(&self, who: usize) -> String {
        self.job.sandbox.issue_identity_token_with(|claims| drop(claims.insert("sub".to_owned(), SUBJECTS[who].into())))
    }

    /// Returns a command of the first or the second job, with a new identity token.
    fn wifshare(&self, who: usize, arguments: &[&str]) -> Command {
        let [command, rest @ ..] = arguments else { unreachable!("a command") };
        let options: Vec<String> = self.source.options.iter().map(|option| self.filled_in(option)).collect();
        let mut command = self.job.wifshare(&[*command]);
        command.args(options).args(rest).env("WHO", who.to_string());
        command.envs(self.source.variables.iter().map(|(name, value)| (*name, self.filled_in(value))));
        command.envs(self.source.own.iter().map(|(name, values)| (*name, values[who])));
        match self.source.gives {
            Gives::Endpoint => self.job.sandbox.set_settings(Settings {
                identity_token_subject: SUBJECTS[who].to_owned(),
                ..self.job.sandbox.settings()
            }),
            Gives::File(path) => std::fs::write(self.job.path(path), self.token_of(who)).unwrap(),
            Gives::Variable(name) => drop(command.env(name, self.token_of(who))),
            Gives::IdentityCommand(..) => {
                let directory = self.unspent.path().join(who.to_string());
                drop(std::fs::remove_dir_all(&directory));
                std::fs::create_dir_all(&directory).unwrap();
                for number in 0..6 {
                    std::fs::write(directory.join(number.to_string()), self.token_of(who)).unwrap();
                }
            }
        }
        command
    }

    fn filled_in(&self, text: &str) -> String {
        let sandbox = &self.job.sandbox;
        text.replace("[DIRECTORY]", self.job.path("").to_str().unwrap().trim_end_matches('/'))
            .replace("[BASE]", &sandbox.base_url())
            .replace("[IDENTITY]", &sandbox.identity_token_request_url())
            .replace("[REQUEST-TOKEN]", &sandbox.identity_token_request_token())
    }

    fn run(&self, who: usize, arguments: &[&str]) -> Ended {
        finish(self.wifshare(who, arguments).spawn().unwrap())
    }

    /// Returns the output of `token` in this job.
    fn token(&self, who: usize) -> String {
        let ended = self.run(who, &["token"]);
        assert_eq!(ended.code, 0, "{}: {}", self.source.name, ended.stderr);
        ended.stdout.trim().to_owned()
    }

    /// Returns the token that a child of `exec` finds.
    fn token_by_exec(&self, who: usize) -> String {
        let ended = self.run(who, &["exec", "--delivery", "environment", "--", "printenv", "ANTHROPIC_AUTH_TOKEN"]);
        assert_eq!(ended.code, 0, "{}: {}", self.source.name, ended.stderr);
        ended.stdout.trim().to_owned()
    }

    /// Returns the variables that `start` exports to later steps of this job.
    fn start(&self, who: usize) -> BTreeMap<String, Option<String>> {
        let ended = self.run(who, &["start", "--format", "json", "--watch-pid", "none"]);
        assert_eq!(ended.code, 0, "{}: {}", self.source.name, ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    }

    fn stop(&self) {
        assert_eq!(finish(self.job.wifshare(&["stop", "--all"]).spawn().unwrap()).code, 0);
    }

    /// Returns the jobs whose identity tokens were exchanged, in order.
    fn buyers(&self) -> Vec<usize> {
        let accepted = self.job.sandbox.history().into_iter().filter(|record| record.verdict == Verdict::Accepted);
        let who = |subject: Option<String>| SUBJECTS.iter().position(|one| Some(*one) == subject.as_deref()).unwrap();
        accepted.map(|record| who(record.subject)).collect()
    }
}

/// The test's own identity tokens do not count as left behind.
impl Drop for Host {
    fn drop(&mut self) {
        if let Gives::File(path) = self.source.gives {
            drop(std::fs::remove_file(self.job.path(path)));
        }
    }
}

fn for_each_source(test: impl Fn(Source)) {
    SOURCES.into_iter().for_each(test);
}

#[test]
fn two_jobs_obtain_separate_credentials_and_share_within_a_job() {
    for_each_source(|source| {
        let host = Host::new(source);
        let (first, second) = (host.token(0), host.token(1));
        assert_ne!(first, second, "{}", source.name);
        assert_eq!(host.buyers(), [0, 1], "{}", source.name);
        // A later process gets the credential of its own job. Neither job has replaced the other's.
        for (who, own) in [(0, &first), (1, &second), (0, &first)] {
            assert_eq!(host.token(who), *own, "{}", source.name);
        }
        assert_eq!(host.buyers(), [0, 1], "{}", source.name);
        host.job.assert_nothing_sent_twice();
    });
}

#[test]
fn job_next_to_another_keeper_has_its_own_credential_and_keeper() {
    for_each_source(|source| {
        let host = Host::new(source);
        let kept = host.start(0);
        assert_eq!(host.token(0), host.token(0), "{}", source.name);
        let second = host.token(1);
        assert_ne!(second, host.token(0), "{}", source.name);
        assert_eq!(host.token_by_exec(1), second, "{}", source.name);
        let another = host.start(1);
        assert_ne!(kept["WIFSHARE_RUN"], another["WIFSHARE_RUN"], "{}", source.name);
        assert_eq!(kept["WIFSHARE_RUN"], host.start(0)["WIFSHARE_RUN"], "{}: its own keeper is joined", source.name);
        let of_the_first = host.buyers().iter().filter(|who| **who == 0).count();
        assert_eq!(of_the_first, 1, "{}: shared in the first job", source.name);
        host.stop();
        host.job.assert_nothing_sent_twice();
    });
}

#[test]
fn stop_leaves_the_keeper_and_run_of_another_job() {
    let host = Host::new(source("Buildkite"));
    let kept = host.start(0);
    let first = host.token(0);
    // The variables of a run, copied to another job, for example in an artifact.
    let mut carried = host.wifshare(1, &["token"]);
    carried.envs(kept.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))));
    let second = finish(carried.spawn().unwrap());
    assert_eq!(second.code, 0, "{}", second.stderr);
    assert_ne!(second.stdout.trim(), first);
    assert_eq!(finish(host.wifshare(1, &["stop"]).spawn().unwrap()).code, 0);
    assert_eq!(kept["WIFSHARE_RUN"], host.start(0)["WIFSHARE_RUN"]);
    assert_eq!(host.buyers(), [0, 1]);
    assert_eq!(finish(host.wifshare(0, &["stop"]).spawn().unwrap()).code, 0);
    assert!(!std::path::Path::new(kept["WIFSHARE_RUN"].as_ref().unwrap()).exists(), "its own job ends it");
}

#[test]
fn refusal_of_one_job_does_not_affect_another() {
    for_each_source(|source| {
        let rule = FederationRule { subject_prefix: SUBJECTS[0].to_owned(), ..FederationRule::default() };
        let host = Host::with(source, Settings { rule, ..settings() });
        for command in [&["token"][..], &["exec", "--", "true"]] {
            let ended = host.run(1, command);
            assert_eq!(ended.code, 125, "{}", source.name);
            assert!(ended.stderr.contains("error[exchange-refused]"), "{}: {}", source.name, ended.stderr);
        }
        let first = host.token(0);
        assert_eq!(host.buyers(), [0], "{}", source.name);
        let ended = host.run(1, &["token"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (125, ""), "{}", source.name);
        assert_eq!(host.token(0), first, "{}", source.name);
        assert_eq!(host.buyers(), [0], "{}", source.name);
        host.job.assert_nothing_sent_twice();
    });
}

fn source(name: &str) -> Source {
    SOURCES.into_iter().find(|source| source.name == name).unwrap()
}

#[test]
fn unreadable_token_file_gets_no_cached_credential() {
    let host = Host::new(source("a token file"));
    let file = host.job.path("shared-token");
    let first = host.token(0);
    let mut command = host.wifshare(0, &["token"]);
    for (content, code) in [
        (None, "identity-file"),
        (Some(String::new()), "identity-malformed"),
        (Some("not a token".to_owned()), "identity-malformed"),
    ] {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let ended = finish(command.spawn().unwrap());
        assert_eq!((ended.code, ended.stdout.as_str()), (125, ""), "{code}");
        assert!(ended.stderr.contains(&format!("error[{code}]")), "{}", ended.stderr);
    }
    // A spent or expired token still identifies its subject.
    let ended = host.job.sandbox.issue_identity_token_with(|claims| {
        claims.insert("sub".to_owned(), SUBJECTS[0].into());
        claims.insert("exp".to_owned(), 1_000_000_000.into());
    });
    std::fs::write(&file, ended).unwrap();
    assert_eq!(finish(command.spawn().unwrap()).stdout.trim(), first);
    assert_eq!(host.buyers(), [0]);
}

/// The variables of each CI that identify a job uniquely.
const NAMED_JOBS: [&[(&str, &str)]; 6] = [
    &[("CI_JOB_ID", "11"), ("CI_SERVER_URL", "https://gitlab.example")],
    &[("BUILDKITE_JOB_ID", "11")],
    &[("CIRCLE_WORKFLOW_JOB_ID", "11")],
    &[("BITBUCKET_STEP_UUID", "{11}")],
    &[("SYSTEM_JOBID", "11"), ("SYSTEM_COLLECTIONURI", "https://dev.azure.com/o/"), ("SYSTEM_PLANID", "p")],
    &[("GITHUB_RUN_ID", "11"), ("GITHUB_RUN_ATTEMPT", "1"), ("GITHUB_JOB", "test")],
];

#[test]
fn token_file_selects_the_subject_in_a_named_job() {
    for job in NAMED_JOBS {
        let host = Host::new(source("a token file"));
        let in_the_job = |who: usize, arguments: &[&str]| {
            let mut command = host.wifshare(who, arguments);
            finish(command.envs(job.iter().copied()).spawn().unwrap())
        };
        let print = ["exec", "--delivery", "environment", "--", "printenv", "ANTHROPIC_AUTH_TOKEN"];
        let first = in_the_job(0, &["token"]).stdout;
        // The same file is rewritten for another subject within one job.
        let second = in_the_job(1, &["token"]).stdout;
        assert_ne!(second, first, "{job:?}");
        assert_eq!(in_the_job(0, &["token"]).stdout, first, "{job:?}");
        // Each `exec` is the last run of its credential, and removes it.
        assert_eq!(in_the_job(1, &print).stdout, second, "{job:?}");
        assert_eq!(in_the_job(0, &print).stdout, first, "{job:?}");
        assert_eq!(host.buyers(), [0, 1], "{job:?}");
        let mut without_a_file = host.wifshare(0, &["token"]);
        std::fs::remove_file(host.job.path("shared-token")).unwrap();
        let ended = finish(without_a_file.envs(job.iter().copied()).spawn().unwrap());
        assert_eq!((ended.code, ended.stdout.as_str()), (125, ""), "{job:?}");
        assert!(ended.stderr.contains("error[identity-file]"), "{}", ended.stderr);
        host.job.assert_nothing_sent_twice();
    }
}

#[test]
fn token_file_may_be_removed_inside_a_run() {
    let host = Host::new(source("a token file"));
    let script = format!("rm {}; \"$WIFSHARE\" token", host.job.path("shared-token").display());
    let ended = host.run(0, &["exec", "--", "sh", "-c", &script]);
    assert_eq!((ended.code, host.buyers()), (0, vec![0]), "{}", ended.stderr);
}

#[test]
fn run_ignores_a_token_file_of_another_subject() {
    let lives_briefly = Settings { access_token_lifetime_s: 4, access_token_lifetime_floor_s: 1, ..settings() };
    for named in [false, true] {
        let host = Host::with(source("a token file"), lives_briefly.clone());
        let file = host.job.path("shared-token");
        let (theirs, ready) = (host.token_of(1), host.job.path("theirs"));
        std::fs::write(&ready, theirs).unwrap();
        // Another job replaces the file while the command runs.
        let script = format!("cp {} {}; rm {}; sleep 8", ready.display(), file.display(), ready.display());
        let mut command = host.wifshare(0, &["exec", "--", "sh", "-c", &script]);
        if named {
            command.env("BUILDKITE_JOB_ID", "11");
        }
        let ended = finish(command.spawn().unwrap());
        assert!(ended.stderr.contains(SUBJECTS[1]), "{}", ended.stderr);
        assert_eq!((ended.code, host.buyers()), (0, vec![0]), "{}", ended.stderr);
    }
}

#[test]
fn failing_command_gets_nothing_and_its_unspent_token_is_used() {
    let host = Host::new(source("a command"));
    let issued = |host: &Host| std::fs::read_dir(host.unspent.path().join("0")).unwrap().count();
    let first = host.token(0);
    assert_eq!(issued(&host), 5, "the token that showed who asks is the one that is exchanged");
    host.token(0);
    assert_eq!(issued(&host), 5, "a process asks once");
    let mut command = host.wifshare(0, &["token"]);
    std::fs::remove_dir_all(host.unspent.path().join("0")).unwrap();
    let ended = finish(command.spawn().unwrap());
    assert_eq!((ended.code, ended.stdout.as_str()), (125, ""));
    assert!(ended.stderr.contains("error[identity-command]"), "{}", ended.stderr);
    assert_eq!((host.token(0), host.buyers()), (first, vec![0]));
}

#[test]
fn matrix_legs_on_one_runner_differ_by_their_subject() {
    let host = Host::new(source("a command"));
    let leg = |who: usize| {
        let mut command = host.wifshare(who, &["token"]);
        command.envs([("GITHUB_RUN_ID", "1"), ("GITHUB_RUN_ATTEMPT", "1"), ("GITHUB_JOB", "test")]);
        finish(command.spawn().unwrap()).stdout
    };
    assert_ne!(leg(0), leg(1));
    assert_eq!(host.buyers(), [0, 1]);
}

#[test]
fn stored_credential_without_subject_is_not_served_to_a_subject() {
    let host = Host::new(source("a token file"));
    let first = host.token(0);
    let files = crate::job::files(&host.job.state());
    let file: PathBuf = files.into_iter().find(|path| path.ends_with("credential.json")).unwrap();
    let stored: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!((&stored["version"], &stored["subject"]), (&2.into(), &SUBJECTS[0].into()));
    let write = |edit: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut stored = stored.clone();
        edit(stored.as_object_mut().unwrap());
        std::fs::write(&file, stored.to_string()).unwrap();
    };
    write(&|stored| {
        stored.insert("version".to_owned(), 1.into());
        stored.remove("issuer");
        stored.remove("subject");
    });
    assert_ne!(host.token(0), first);
    write(&|stored| drop(stored.insert("subject".to_owned(), SUBJECTS[1].into())));
    assert_ne!(host.token(0), first);
    write(&|_| {});
    assert_eq!(host.token(0), first);
    assert_eq!(host.buyers(), [0, 0, 0]);
}

#[test]
fn replaced_token_file_is_tried_at_once_after_a_refusal() {
    let host = Host::new(source("a token file"));
    let file = host.job.path("shared-token");
    let for_a_vault = host.job.sandbox.issue_identity_token_with(|claims| {
        claims.insert("sub".to_owned(), SUBJECTS[0].into());
        claims.insert("aud".to_owned(), "https://vault.example".into());
    });
    let mut command = host.wifshare(0, &["token"]);
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, for_a_vault).unwrap();
    for told in ["the token endpoint refused", "remembered"] {
        let ended = finish(command.spawn().unwrap());
        assert!(ended.stderr.contains("error[exchange-refused]") && ended.stderr.contains(told), "{}", ended.stderr);
    }
    std::fs::write(&file, good).unwrap();
    let ended = finish(command.spawn().unwrap());
    assert_eq!((ended.code, host.buyers()), (0, vec![0]), "{}", ended.stderr);
}

#[test]
fn process_without_network_fails_alone() {
    let host = Host::new(source("GitHub Actions"));
    for (variable, value, code) in [
        // Nothing listens there. Loopback requests do not use a proxy, so a proxy has no effect.
        ("ANTHROPIC_BASE_URL", "http://localhost:1", "endpoint-unreachable"),
        ("ACTIONS_ID_TOKEN_REQUEST_URL", "http://127.0.0.1:1/idtoken", "identity-unreachable"),
    ] {
        let ended = finish(host.wifshare(0, &["token"]).env(variable, value).spawn().unwrap());
        assert!(ended.stderr.contains(&format!("error[{code}]")), "{}", ended.stderr);
    }
    let written =
        crate::job::files(&host.job.state()).into_iter().filter(|path| path.ends_with("refusal.json")).count();
    assert_eq!(written, 0, "nothing is remembered for others");
    host.token(0);
}
