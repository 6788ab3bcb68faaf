//! In GitHub Actions: masked before anything could print it, foldable, and annotated.

use crate::job::{Job, finish, knobs};

#[test]
fn both_tokens_are_masked_on_standard_error_before_the_command_starts() {
    let mut job = Job::new(knobs());
    job.set("GITHUB_ACTIONS", "true");
    let child = job.wifshare(&["exec", "--", "sh", "-c", "echo child >&2; cat $ANTHROPIC_CONFIG_DIR/credentials/*"]);
    let ended = finish({ child }.spawn().unwrap());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let begun = lines.iter().position(|line| *line == "child").unwrap();
    let secrets = job.sandbox.secrets();
    let used: Vec<&String> = secrets.iter().filter(|secret| ended.stderr.contains(secret.as_str())).collect();
    assert_eq!(used.len(), 2, "the identity token and the access token");
    for secret in used {
        assert!(lines[..begun].contains(&format!("::add-mask::{secret}").as_str()));
        let shown = lines.iter().filter(|line| line.contains(secret.as_str()));
        assert!(shown.into_iter().all(|line| line.starts_with("::add-mask::")), "shown to the runner alone");
    }
}

#[test]
fn standard_output_of_token_holds_the_token_alone() {
    let mut job = Job::new(knobs());
    job.set("GITHUB_ACTIONS", "true");
    for _ in 0..2 {
        job.may_keep_credential();
        let ended = finish(job.wifshare(&["token"]).spawn().unwrap());
        let token = ended.stdout.trim();
        assert_eq!(ended.stdout, format!("{token}\n"));
        assert!(ended.stderr.contains(&format!("::add-mask::{token}\n")), "also when it is warm");
    }
}

#[test]
fn a_credential_that_another_step_obtained_is_masked_in_this_one_too() {
    let mut job = Job::new(knobs());
    job.set("GITHUB_ACTIONS", "true");
    job.may_keep_credential();
    let token = finish(job.wifshare(&["token"]).spawn().unwrap()).stdout;
    let ended = finish(job.wifshare(&["exec", "--", "true"]).spawn().unwrap());
    assert!(ended.stderr.contains(&format!("::add-mask::{token}")), "{}", ended.stderr);
    job.assert_exchanges(1);
}

#[test]
fn what_a_person_must_act_on_is_an_annotation() {
    let mut job = Job::new(knobs());
    job.set("GITHUB_ACTIONS", "true");
    job.set("ANTHROPIC_API_KEY", "their-own");
    let shadowed = job.exec(&[], "true");
    assert!(shadowed.stderr.contains("::warning title=wifshare::ANTHROPIC_API_KEY is set"), "{}", shadowed.stderr);
    job.set("ANTHROPIC_API_KEY", "");
    job.set("ANTHROPIC_ORGANIZATION_ID", "");
    let failed = job.exec(&[], "true");
    let annotation = failed.stderr.lines().find(|line| line.starts_with("::error title=wifshare::")).unwrap();
    assert!(annotation.contains("%0A  hint: "), "{annotation}");
}

#[test]
fn elsewhere_nothing_is_masked_because_a_mask_would_be_a_leak() {
    let job = Job::new(knobs());
    assert!(!job.exec(&["--workspace-id", "default"], "true").stderr.contains("add-mask"));
}
