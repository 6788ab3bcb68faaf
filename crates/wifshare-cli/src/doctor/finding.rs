//! The result of a check. Every check returns these values, and all output is made from them.

use serde::Serialize;
use serde_json::json;

use crate::explain::wrapped;

/// One line of the checklist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was checked.
    pub(crate) check: &'static str,
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) evidence: String,
    /// What to do, if anything.
    pub(crate) cure: Option<String>,
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Correct.
    Ok,
    /// Worth knowing.
    Note,
    /// The job would work, but something is unusual or may fail later.
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

    fn colour(self) -> &'static str {
        match self {
            Verdict::Ok => "\x1b[32m",
            Verdict::Note => "\x1b[2m",
            Verdict::Warning => "\x1b[33m",
            Verdict::Failed => "\x1b[1;31m",
        }
    }

    /// Sort key: the most urgent findings come last, where they are read first.
    fn urgency(self) -> u8 {
        match self {
            Verdict::Ok | Verdict::Note => 0,
            Verdict::Warning => 1,
            Verdict::Failed => 2,
        }
    }
}

/// Formats the findings for people: one line for each, the cure below it, failures last, the overall result at the end.
pub(crate) fn checklist(findings: &[Finding], works: bool, width: usize, is_coloured: bool) -> String {
    const INDENT: &str = "                         ";
    let mut text = String::new();
    let mut in_order: Vec<&Finding> = findings.iter().collect();
    in_order.sort_by_key(|finding| finding.verdict.urgency());
    for Finding { check, verdict, evidence, cure } in in_order {
        let head = format!("{:<8} {check:<15} ", verdict.word());
        let mut lines = wrapped(evidence, &head, INDENT, width);
        if is_coloured {
            // The escape codes have no width.
            lines.replace_range(..8, &format!("{}{:<8}\x1b[0m", verdict.colour(), verdict.word()));
        }
        text += &lines;
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
        (true, _) if is_proved(findings) => format!("\nThe job would work{warnings}.\n"),
        (true, _) => format!(
            "\nNothing wrong was found{warnings}; the rule itself was not compared (--rule FILE compares it, --exchange signs \
             in).\n"
        ),
        (false, 1) => format!("\nThe job would not work: 1 check failed{warnings}.\n"),
        (false, failed) => format!("\nThe job would not work: {failed} checks failed{warnings}.\n"),
    }
}

/// Whether the rule was compared, the job signed in, or the enclosing run has signed in. No other check covers the
/// rule.
fn is_proved(findings: &[Finding]) -> bool {
    let speaks = |finding: &Finding| match finding.check {
        "rule" => true,
        "exchange" | "run" => finding.verdict == Verdict::Ok,
        _ => false,
    };
    findings.iter().any(speaks)
}

/// Formats the findings as JSON.
pub(crate) fn json(findings: &[Finding], works: bool) -> String {
    let proved = is_proved(findings);
    format!("{:#}\n", json!({ "version": 1, "works": works, "rule_compared": proved, "findings": findings }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checklist_puts_hints_under_findings_and_the_verdict_last() {
        let findings = [
            Finding::ok("clock", "it agrees"),
            Finding::warning("shadow", "a key is set", "unset it"),
            Finding::failed("rule", "another subject", Some("mend the rule".to_owned())),
        ];
        let out_of_order = [findings[2].clone(), findings[0].clone(), findings[1].clone()];
        assert_eq!(
            checklist(&out_of_order, false, 96, false),
            "ok       clock           it agrees\n\
             warning  shadow          a key is set\n                         cure: unset it\n\
             FAILED   rule            another subject\n                         cure: mend the rule\n\
             \nThe job would not work: 1 check failed, with 1 warning.\n"
        );
        assert!(
            checklist(&[], true, 96, false).starts_with("\nNothing wrong was found; the rule itself was not compared")
        );
        let proved = [Finding::ok("rule", "it matches")];
        assert!(checklist(&proved, true, 96, false).ends_with("\nThe job would work.\n"));
        let coloured = checklist(&findings, false, 96, true);
        assert!(coloured.contains("\n\x1b[1;31mFAILED  \x1b[0m rule            another subject\n"), "{coloured:?}");
    }
}
