//! What was seen, judged. Values in, values out.

use std::{process::ExitStatus, time::Duration};

use super::{Case, Judgement, argument_lists::ArgumentLists, process::Ended};
use crate::Counters;

/// The pause that the busy token endpoint asks for.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Requests that a client may make to an endpoint that refuses it: it may have a new identity token each time.
const KNOCKS: u64 = 3;

/// What a case left behind.
pub(super) struct Observation {
    pub(super) runs: Vec<RunSeen>,
    pub(super) counters: Counters,
    /// When the exchanges arrived, in milliseconds.
    pub(super) arrived_ms: Vec<u64>,
    /// Exchanges at the address that the client was redirected to.
    pub(super) elsewhere: u64,
    /// The faults of the identity endpoint that nobody took.
    pub(super) faults_left: usize,
    pub(super) argument_lists: Option<ArgumentLists>,
    pub(super) bound: Duration,
}

/// One run of the command.
#[derive(Clone, Copy)]
pub(super) struct RunSeen {
    pub(super) end: End,
    pub(super) printed: Leak,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Code(i32),
    Signal,
    Bound,
}

/// How much of a secret was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leak {
    Nothing,
    Part,
    Whole,
}

impl RunSeen {
    pub(super) fn of(ended: &Ended, secrets: &[String]) -> Self {
        let code = |status: ExitStatus| status.code().map_or(End::Signal, End::Code);
        Self {
            end: ended.status.map_or(End::Bound, code),
            printed: leak(&ended.stdout, secrets).max(leak(&ended.stderr, secrets)),
        }
    }
}

/// Whether the client kept the case's rule, and by what that is known.
pub(super) fn judge(case: Case, seen: &Observation) -> (Judgement, String) {
    let counters = &seen.counters;
    if let Some(why) = not_applicable(case, seen) {
        return (Judgement::NotApplicable, why.to_owned());
    }
    let complaints = complaints(case, seen);
    let judgement = if complaints.is_empty() { Judgement::Kept } else { Judgement::Broken };
    let mut evidence = complaints;
    evidence.push(ends(seen));
    evidence.push(format!(
        "{} sent, {} accepted, {} sent again",
        counters.exchanges_received, counters.exchanges_accepted, counters.assertions_repeated
    ));
    evidence.extend(measured(case, seen));
    (judgement, evidence.join("; "))
}

fn not_applicable(case: Case, seen: &Observation) -> Option<&'static str> {
    match (case, &seen.argument_lists) {
        (Case::ArgumentLists, Some(lists)) if lists.own.is_empty() => {
            Some("argument lists can be looked at on Linux alone, where /proc is mounted")
        }
        (Case::SameTokenTwice, _) if seen.faults_left > 0 => Some("the client did not ask the endpoint twice"),
        _ => None,
    }
}

/// What is wrong; nothing where the rule was kept.
fn complaints(case: Case, seen: &Observation) -> Vec<String> {
    let counters = &seen.counters;
    let succeeded = seen.runs.iter().all(|run| run.end == End::Code(0));
    let ended = seen.runs.iter().all(|run| run.end != End::Bound);
    let single = counters.assertions_repeated == 0;
    let said = (succeeded, "did not succeed");
    let once = (single, "sent an identity token again");
    let own: &[(bool, &str)] = match case {
        Case::OneRun => &[said, once, (counters.exchanges_received <= 1, "made more than one exchange")],
        Case::TokenReplaced | Case::AtOnce | Case::ShortLife | Case::WithoutJti => &[said, once],
        Case::LostAnswer | Case::ResetAnswer | Case::Unavailable | Case::SameTokenTwice => &[once],
        Case::TooManyRequests => &[once, (waited(&seen.arrived_ms), "came back before its time")],
        Case::Refused => &[
            once,
            (counters.exchanges_received <= KNOCKS, "knocked more than three times"),
            (ended, "did not give up"),
        ],
        Case::Redirect => &[(seen.elsewhere == 0, "sent the assertion to the address it was redirected to"), once],
        Case::Reflected => &[(seen.runs.iter().all(|run| run.printed == Leak::Nothing), "printed a secret")],
        Case::ArgumentLists => &[(
            seen.argument_lists.as_ref().is_none_or(|lists| lists.with_secrets.is_empty()),
            "put a secret into an argument list",
        )],
    };
    let tried = (counters.exchanges_received > 0, "no exchange arrived, so nothing is known");
    own.iter().chain([&tried]).filter(|(holds, _)| !holds).map(|(_, complaint)| (*complaint).to_owned()).collect()
}

/// Whether whatever came second came no sooner than it was asked to.
fn waited(arrived_ms: &[u64]) -> bool {
    match arrived_ms {
        [first, second, ..] => u128::from(second.saturating_sub(*first)) >= RETRY_AFTER.as_millis(),
        _ => true,
    }
}

fn ends(seen: &Observation) -> String {
    match seen.runs[..] {
        [RunSeen { end: End::Code(code), .. }] => format!("exit {code}"),
        [RunSeen { end: End::Signal, .. }] => "ended by a signal".to_owned(),
        [RunSeen { end: End::Bound, .. }] => format!("killed after {} s", seen.bound.as_secs()),
        _ => {
            let succeeded = seen.runs.iter().filter(|run| run.end == End::Code(0)).count();
            format!("{succeeded} of {} succeeded", seen.runs.len())
        }
    }
}

/// What this case measures beyond what all have in common.
fn measured(case: Case, seen: &Observation) -> Option<String> {
    match case {
        Case::TooManyRequests => Some(match seen.arrived_ms[..] {
            [first, second, ..] => format!("came back after {:.1} s", second.saturating_sub(first) as f64 / 1000.0),
            _ => "did not come back".to_owned(),
        }),
        Case::Redirect => Some(format!("{} arrived elsewhere", seen.elsewhere)),
        Case::Reflected => Some(match seen.runs.iter().map(|run| run.printed).max() {
            Some(Leak::Whole) => "printed whole".to_owned(),
            Some(Leak::Part) => "printed in part".to_owned(),
            Some(Leak::Nothing) | None => "printed nothing secret".to_owned(),
        }),
        Case::ArgumentLists => seen.argument_lists.as_ref().map(|lists| {
            format!(
                "{} of its processes in {} looks, {} with a secret",
                lists.own.len(),
                lists.looks,
                lists.with_secrets.len()
            )
        }),
        _ => None,
    }
}

/// How much of a secret this text holds. A JWT's header is no secret, and as much as is cut off by chance none either.
fn leak(text: &str, secrets: &[String]) -> Leak {
    const TELLING: usize = 48;
    if secrets.iter().any(|secret| text.contains(secret.as_str())) {
        return Leak::Whole;
    }
    let is_jwt = |secret: &str| secret.starts_with("eyJ");
    let telling_parts = secrets.iter().flat_map(|secret| secret.split('.').skip(usize::from(is_jwt(secret))));
    let windows = telling_parts.flat_map(|part| part.as_bytes().windows(TELLING));
    let is_printed = |window: &[u8]| std::str::from_utf8(window).is_ok_and(|window| text.contains(window));
    if windows.into_iter().any(is_printed) { Leak::Part } else { Leak::Nothing }
}

/// The end of this text, fit to be shown.
pub(super) fn without_secrets(text: &str, secrets: &[String]) -> String {
    const SHOWN: usize = 600;
    let shown = secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "[secret]"));
    if leak(&shown, secrets) != Leak::Nothing {
        return "[withheld: a part of a secret is in it]".to_owned();
    }
    let shown: Vec<char> = shown.trim().chars().collect();
    shown[shown.len().saturating_sub(SHOWN)..].iter().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn seen(ends: &[End], received: u64, repeated: u64) -> Observation {
        Observation {
            runs: ends.iter().map(|end| RunSeen { end: *end, printed: Leak::Nothing }).collect(),
            counters: Counters { exchanges_received: received, assertions_repeated: repeated, ..Counters::default() },
            arrived_ms: (0..received).map(|number| number * 2000).collect(),
            elsewhere: 0,
            faults_left: 0,
            argument_lists: Some(ArgumentLists { looks: 1, own: BTreeSet::from([7]), ..ArgumentLists::default() }),
            bound: Duration::from_secs(30),
        }
    }

    fn judgement(case: Case, seen: &Observation) -> Judgement {
        judge(case, seen).0
    }

    #[test]
    fn single_send_with_success_passes_every_case() {
        for case in Case::ALL {
            assert_eq!(judge(case, &seen(&[End::Code(0)], 1, 0)).0, Judgement::Kept, "{case}");
        }
    }

    #[test]
    fn client_without_exchange_fails_every_case() {
        for case in Case::ALL {
            let (judgement, evidence) = judge(case, &seen(&[End::Code(0)], 0, 0));
            assert_eq!(judgement, Judgement::Broken, "{case}");
            assert!(evidence.contains("no exchange arrived"), "{evidence}");
        }
    }

    #[test]
    fn repeated_token_fails_every_case_about_sending() {
        for case in Case::ALL {
            let elsewhere = [Case::Reflected, Case::ArgumentLists].contains(&case);
            let expected = if elsewhere { Judgement::Kept } else { Judgement::Broken };
            assert_eq!(judgement(case, &seen(&[End::Code(0)], 2, 1)), expected, "{case}");
        }
    }

    #[test]
    fn cases_without_fault_require_success() {
        for case in Case::ALL {
            let asked =
                [Case::OneRun, Case::TokenReplaced, Case::AtOnce, Case::ShortLife, Case::WithoutJti].contains(&case);
            let expected = if asked { Judgement::Broken } else { Judgement::Kept };
            for end in [End::Code(1), End::Signal] {
                assert_eq!(judgement(case, &seen(&[End::Code(0), end], 1, 0)), expected, "{case}");
            }
        }
    }

    #[test]
    fn rules_hold_at_their_boundaries() {
        let ok = &[End::Code(0)][..];
        assert_eq!(judgement(Case::OneRun, &seen(ok, 2, 0)), Judgement::Broken);
        assert_eq!(judgement(Case::TokenReplaced, &seen(ok, 2, 0)), Judgement::Kept);
        assert_eq!(judgement(Case::Refused, &seen(ok, 3, 0)), Judgement::Kept);
        assert_eq!(judgement(Case::Refused, &seen(ok, 4, 0)), Judgement::Broken);
        assert_eq!(judgement(Case::Refused, &seen(&[End::Bound], 1, 0)), Judgement::Broken);
        for (second, expected) in [(2000, Judgement::Kept), (1999, Judgement::Broken)] {
            let early = Observation { arrived_ms: vec![0, second], ..seen(ok, 2, 0) };
            assert_eq!(judgement(Case::TooManyRequests, &early), expected);
        }
        let redirected = Observation { elsewhere: 1, ..seen(ok, 1, 0) };
        assert_eq!(judgement(Case::Redirect, &redirected), Judgement::Broken);
        let asked_once = Observation { faults_left: 1, ..seen(ok, 1, 0) };
        assert_eq!(judgement(Case::SameTokenTwice, &asked_once), Judgement::NotApplicable);
        let mut lists = seen(ok, 1, 0);
        lists.argument_lists = Some(ArgumentLists::default());
        assert_eq!(judgement(Case::ArgumentLists, &lists), Judgement::NotApplicable);
        let found = ArgumentLists { looks: 1, own: BTreeSet::from([7]), with_secrets: BTreeSet::from([7]) };
        lists.argument_lists = Some(found);
        assert_eq!(judgement(Case::ArgumentLists, &lists), Judgement::Broken);
        for (printed, expected) in
            [(Leak::Nothing, Judgement::Kept), (Leak::Part, Judgement::Broken), (Leak::Whole, Judgement::Broken)]
        {
            let printed = Observation { runs: vec![RunSeen { end: End::Code(1), printed }], ..seen(ok, 1, 0) };
            assert_eq!(judgement(Case::Reflected, &printed), expected);
        }
    }

    #[test]
    fn leak_is_whole_or_long_part_and_is_withheld() {
        let secret = format!("eyJ{}.{}.{}", "h".repeat(60), "0123456789".repeat(10), "s".repeat(80));
        let secrets = [secret.clone(), "sk-ant-oat01-x".to_owned()];
        let payload = "0123456789".repeat(10);
        for (text, expected) in [
            ("all is well".to_owned(), Leak::Nothing),
            (format!("got {secret}."), Leak::Whole),
            (format!("got {}…", &secret[..90]), Leak::Nothing),
            (format!("got {}…", &secret[..150]), Leak::Part),
            (payload[3..51].to_owned(), Leak::Part),
            (payload[3..50].to_owned(), Leak::Nothing),
            ("sk-ant-oat01-x".to_owned(), Leak::Whole),
            ("eyJhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh".to_owned(), Leak::Nothing),
        ] {
            assert_eq!(leak(&text, &secrets), expected, "{text}");
            assert_eq!(leak(&without_secrets(&text, &secrets), &secrets), Leak::Nothing);
        }
        assert_eq!(without_secrets(&format!(" got {secret}\n"), &secrets), "got [secret]");
    }
}
