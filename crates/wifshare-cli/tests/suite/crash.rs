//! A process is killed at each step between the lock and the rename. The next call recovers, and no identity token is
//! sent twice.

use crate::job::{Job, files, finish, settings};

const STEPS: [&str; 10] = [
    "locked",
    "asking",
    "identified",
    "connected",
    "recorded",
    "sending",
    "answered",
    "written",
    "replaced",
    "exchanged",
];

fn killed_at(job: &Job, step: &str, arguments: &[&str]) -> i32 {
    finish(job.wifshare(arguments).env("WIFSHARE_TEST_DIE_AT", step).spawn().unwrap()).code
}

#[test]
fn token_killed_at_any_step_recovers() {
    for step in STEPS {
        let mut job = Job::new(settings());
        assert_eq!(killed_at(&job, step, &["token"]), 137, "{step}: the switch has to work");
        let received = job.counters().exchanges_received;
        let answer = job.token(&[]);
        assert_eq!(answer.code, 0, "{step}: {}", answer.stderr);
        assert!(answer.stdout.starts_with("sk-ant-oat01-"), "{step}");
        job.assert_nothing_sent_twice();
        let sent_before_the_kill = u64::from(STEPS.iter().position(|name| *name == step) > Some(5));
        assert_eq!(received, sent_before_the_kill, "{step}");
        let bought_again = u64::from(!["replaced", "exchanged"].contains(&step));
        assert_eq!(job.counters().exchanges_accepted, received + bought_again, "{step}");
        for path in files(&job.state()).iter().filter(|path| path.ends_with("credential.json")) {
            let text = std::fs::read(path).unwrap();
            serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_else(|_| panic!("{step}: torn"));
        }
        // The killed process may leave a temporary file. It is private, and the next start removes it.
        let ended = job.exec(&[], "true");
        assert_eq!(ended.code, 0, "{step}: {}", ended.stderr);
        let left = job.files_with_secrets();
        assert!(left.iter().all(|path| path.ends_with("credential.json")), "{step}: {left:?}");
    }
}

#[test]
fn exec_killed_at_any_step_recovers() {
    for step in STEPS {
        let job = Job::new(settings());
        assert_eq!(killed_at(&job, step, &["exec", "--", "true"]), 137, "{step}: the switch has to work");
        let ended = job.exec(&[], r#""$WIFSHARE" demo --child shared"#);
        assert_eq!(ended.code, 0, "{step}: {}", ended.stderr);
        job.assert_nothing_sent_twice();
        assert!(job.files_with_secrets().is_empty(), "{step}: {:?}", job.files_with_secrets());
    }
}

#[test]
fn single_token_that_may_have_been_sent_is_not_resent() {
    for step in ["recorded", "sending", "answered"] {
        let mut job = Job::new(settings());
        job.without_endpoint();
        let token = job.sandbox.issue_identity_token();
        job.set("ANTHROPIC_IDENTITY_TOKEN", &token);
        assert_eq!(killed_at(&job, step, &["token"]), 137);
        let answer = job.token(&[]);
        assert_eq!(answer.code, 125, "{step}");
        assert!(answer.stderr.contains("error[identity-spent]"), "{step}: {}", answer.stderr);
        assert!(answer.stderr.contains("was given no other"), "{step}: {}", answer.stderr);
        job.assert_nothing_sent_twice();
    }
}
