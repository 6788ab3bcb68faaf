//! What a check found, as a value: every check returns these, and nothing else is printed or judged.

use serde::Serialize;
use serde_json::json;

use crate::explain::wrapped;

/// One line of the checklist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) check: &'static str,
    pub(crate) verdict: Verdict,
    /// What was seen.
    pub(crate) evidence: String,
    /// What to do, where something is to be done.
    pub(crate) cure: Option<String>,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// The job would work, and something is not as it was meant, or may fail later.
    Warning,
    /// The job would not work.
    Failed,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, evidence: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Ok, evidence: evidence.into(), cure: None }
    }

    pub(crate) fn note(check: &'static str, evidence: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Note, ..Finding::ok(check, evidence) }
    }

    pub(crate) fn warning(check: &'static str, evidence: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Warning, cure: Some(cure.into()), ..Finding::ok(check, evidence) }
    }

    pub(crate) fn failed(check: &'static str, evidence: impl Into<String>, cure: Option<String>) -> Finding {
        Finding { verdict: Verdict::Failed, cure, ..Finding::ok(check, evidence) }
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Warning => "warning",
            Verdict::Failed => "FAILED",
        }
    }
}

/// For people: a line for each finding, the cure below it, and the answer at the end.
pub(crate) fn checklist(findings: &[Finding], works: bool, width: usize) -> String {
    const INDENT: &str = "                         ";
    let mut text = String::new();
    for Finding { check, verdict, evidence, cure } in findings {
        let head = format!("{:<8} {check:<15} ", verdict.word());
        text += &wrapped(evidence, &head, INDENT, width);
        if let Some(cure) = cure {
            text += &wrapped(cure, "                         cure: ", INDENT, width);
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let warnings = match count(Verdict::Warning) {
        0 => String::new(),
        1 => ", with 1 warning".to_owned(),
        many => format!(", with {many} warnings"),
    };
    text + &match (works, count(Verdict::Failed)) {
        (true, _) => format!("\nThe job would work{warnings}.\n"),
        (false, 1) => format!("\nThe job would not work: 1 check failed{warnings}.\n"),
        (false, failed) => format!("\nThe job would not work: {failed} checks failed{warnings}.\n"),
    }
}

/// For machines.
pub(crate) fn json(findings: &[Finding], works: bool) -> String {
    format!("{:#}\n", json!({ "version": 1, "works": works, "findings": findings }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_stands_below_its_finding_and_the_answer_at_the_end() {
        let findings = [
            Finding::ok("clock", "it agrees"),
            Finding::warning("shadow", "a key is set", "unset it"),
            Finding::failed("rule", "another subject", Some("mend the rule".to_owned())),
        ];
        assert_eq!(
            checklist(&findings, false, 96),
            "ok       clock           it agrees\n\
             warning  shadow          a key is set\n                         cure: unset it\n\
             FAILED   rule            another subject\n                         cure: mend the rule\n\
             \nThe job would not work: 1 check failed, with 1 warning.\n"
        );
        assert_eq!(checklist(&[], true, 96), "\nThe job would work.\n");
    }
}
