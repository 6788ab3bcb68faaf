//! `wifshare demo`, as the README's first command runs it.

use crate::job::{Job, settings};

#[test]
fn demo_shows_both_outcomes_and_no_refusals() {
    let job = Job::new(settings());
    let ended = job.run(&["demo"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let row = |name: &str| ended.stdout.lines().find(|line| line.trim().starts_with(name)).unwrap().to_owned();
    assert!(row("processes that succeeded").contains("1 of 8") && row("processes that succeeded").contains("8 of 8"));
    assert!(row("exchanges").ends_with('1'), "{}", ended.stdout);
    assert!(row("refusals").ends_with('0'), "{}", ended.stdout);
}
