//! The catalogue of errors, in the terminal and in the documents.

use std::path::Path;

use crate::job::{Job, settings};

#[test]
fn errors_page_matches_the_catalogue() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/errors.md");
    let made = Job::new(settings()).run(&["explain", "--markdown"]);
    assert_eq!((made.code, made.stderr.as_str()), (0, ""));
    crate::job::same_or_blessed(&path, &made.stdout);
}

#[test]
fn explain_accepts_a_code_copied_from_a_log() {
    let job = Job::new(settings());
    let plain = job.run(&["explain", "exchange-refused"]);
    assert_eq!(plain.code, 0);
    for part in ["error[exchange-refused]\n", "\nCauses\n", "\nEvidence\n", "\nCures\n", "jti_reused"] {
        assert!(plain.stdout.contains(part), "{part}: {}", plain.stdout);
    }
    assert!(plain.stdout.lines().all(|line| line.chars().count() <= 96), "{}", plain.stdout);
    for copied in ["error[exchange-refused]", "error[exchange-refused]:"] {
        assert_eq!(job.run(&["explain", copied]).stdout, plain.stdout, "{copied}");
    }
    let unknown = job.run(&["explain", "exchange-refusd"]);
    assert_eq!((unknown.code, unknown.stdout.as_str()), (2, ""));
    let all = job.run(&["explain"]);
    assert!(all.stdout.lines().any(|line| line.starts_with("exchange-refused ")), "{}", all.stdout);
}
