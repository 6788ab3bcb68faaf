//! Shared by all formats of a report: formatting of times, totals, and the selection of processes.

use std::time::{Duration, SystemTime};

use wifshare::moment;

use super::job_report::{Exchange, Identity, JobReport, Process, Role};
use crate::console::whole;

/// The time of day in UTC, to the second.
pub(super) fn clock_time(time: SystemTime) -> String {
    moment(time).get(11..19).unwrap_or_default().to_owned()
}

/// The time of day in UTC, to the millisecond.
pub(super) fn exact_time(time: SystemTime) -> String {
    moment(time).get(11..23).unwrap_or_default().to_owned()
}

/// The date.
pub(super) fn day(time: SystemTime) -> String {
    moment(time).get(..10).unwrap_or_default().to_owned()
}

/// A duration, with a precision that depends on its length.
pub(super) fn span(time: Duration) -> String {
    match time.as_millis() {
        milliseconds @ 0..1000 => format!("{milliseconds} ms"),
        1000..10_000 if time.subsec_millis() >= 50 => format!("{:.1} s", time.as_secs_f64()),
        _ => whole(time),
    }
}

/// The result in one sentence.
pub(super) fn verdict(report: &JobReport) -> String {
    let numbers = &report.numbers;
    if numbers.exchanges_without.is_none() {
        let exchanges = counted(numbers.exchanges, "exchange", "exchanges");
        let failed = if numbers.failed == 0 { "none of them".to_owned() } else { numbers.failed.to_string() };
        return format!("{exchanges} for all steps of the job, and {failed} failed.");
    }
    let processes = counted(numbers.processes, "process", "processes");
    match (numbers.exchanges, numbers.failed) {
        (0, _) => format!("{processes}, and no exchange was needed."),
        (exchanges, 0) => {
            let exchanges = counted(exchanges, "exchange", "exchanges");
            format!("{processes} shared what {exchanges} bought, and none was refused.")
        }
        (exchanges, failed) => {
            format!("{processes}, and {failed} of {} failed.", counted(exchanges, "exchange", "exchanges"))
        }
    }
}

/// The totals with their names. After a `start`, the processes that use the credential are not seen, so the totals that
/// depend on them are left out.
pub(super) fn sums(report: &JobReport) -> Vec<(&'static str, String)> {
    let numbers = &report.numbers;
    let without = numbers.exchanges_without.map(|number| format!("at most {number}"));
    let processes = without.as_ref().map(|_| numbers.processes.to_string());
    let avoided = numbers.refusals_avoided.map(|number| format!("at most {number}"));
    let until = numbers.signed_in_until.map(|time| format!("{} UTC", clock_time(time)));
    [
        ("processes", processes),
        ("exchanges", Some(numbers.exchanges.to_string())),
        ("without wifshare", without),
        ("refusals avoided", avoided),
        ("longest wait", Some(span(Duration::from_millis(numbers.longest_wait_ms)))),
        ("signed in until", until),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

/// How long an exchange took, if its outcome is known.
pub(super) fn took(exchange: &Exchange) -> Option<String> {
    exchange.answered.map(|answered| span(answered.duration_since(exchange.sent).unwrap_or_default()))
}

pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

/// How long a process ran, if known. A `wifshare token` ends with its last event.
pub(super) fn lasted(process: &Process) -> Option<String> {
    let end = process.end.or((process.role == Role::Caller).then_some(process.last));
    end.map(|end| span(end.duration_since(process.begin).unwrap_or_default()))
}

/// Selects the processes to show: all if there are few. Otherwise runs, commands and processes with exchanges come
/// first, then the longest-lived ones that ran at least `shortest`.
pub(super) fn lanes(identity: &Identity, most: usize, shortest: Duration) -> Vec<&Process> {
    /// Number of processes up to which all are shown.
    const FEW: usize = 16;
    let processes = &identity.processes;
    let lasted =
        |process: &Process| process.end.unwrap_or(process.last).duration_since(process.begin).unwrap_or_default();
    let exchanged = |process: &Process| identity.exchanges.iter().any(|exchange| exchange.pid == process.pid);
    let matters = |process: &Process| matches!(process.role, Role::Run | Role::Command) || exchanged(process);
    let is_shown = |process: &Process| processes.len() <= FEW || matters(process) || lasted(process) >= shortest;
    let mut places: Vec<usize> = (0..processes.len()).filter(|place| is_shown(&processes[*place])).collect();
    places.sort_by_key(|place| {
        let process = &processes[*place];
        (std::cmp::Reverse(matters(process)), std::cmp::Reverse(lasted(process)))
    });
    places.truncate(most);
    places.sort_unstable();
    places.into_iter().map(|place| &processes[place]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::job_report::tests::{at, event, events, report, seen};
    use super::*;

    #[test]
    fn time_span_is_rounded_by_its_length() {
        for (milliseconds, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1 s"),
            (1049, "1 s"),
            (1500, "1.5 s"),
            (9_960, "10.0 s"),
            (10_000, "10 s"),
            (600_000, "10 min"),
        ] {
            assert_eq!(span(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!((clock_time(at(0)).as_str(), day(at(0)).as_str()), ("01:46:40", "2001-09-09"));
    }

    #[test]
    fn lanes_keep_the_important_processes_in_order() {
        let short = (100..200).map(|pid| event(2, 10, seen(pid, 11, "git")));
        let report = report(events().into_iter().chain(short).collect());
        let names: Vec<_> =
            lanes(&report.identities[0], 40, Duration::from_secs(1)).iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["wifshare exec", "job.sh", "claude", "python3", "wifshare token"]);
        assert_eq!(lanes(&report.identities[0], 2, Duration::ZERO).len(), 2);
        assert_eq!(lanes(&report.identities[0], 1000, Duration::ZERO).len(), 105);
    }

    #[test]
    fn verdict_reports_success() {
        assert_eq!(verdict(&report(events())), "5 processes shared what 1 exchange bought, and none was refused.");
    }
}
