//! The report as Markdown for the summary of a GitHub job: totals, a Mermaid chart, and failures.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use super::job_report::{Exchange, Identity, JobReport, Outcome, Process};
use super::words::{day, exact_time, lanes, lasted, span, sums, took, verdict};

/// Maximum number of bars that is still readable. Mermaid's own limit is much higher.
const MOST_BARS: usize = 24;
/// Maximum number of rows. A summary is limited to 1 MiB.
const MOST_ROWS: usize = 200;

pub(super) fn page(report: &JobReport) -> String {
    let mut page = String::new();
    // Writing to a `String` cannot fail.
    let _ = write(report, &mut page);
    page
}

fn write(report: &JobReport, page: &mut String) -> std::fmt::Result {
    writeln!(page, "### wifshare\n\n{}\n", verdict(report))?;
    let (names, values): (Vec<_>, Vec<_>) = sums(report).into_iter().unzip();
    writeln!(page, "| {} |\n|{}\n| {} |\n", names.join(" | "), "--:|".repeat(names.len()), values.join(" | "))?;
    chart(report, page)?;
    incidents(report, page)?;
    processes(report, page)?;
    if report.is_cut {
        writeln!(page, "\nThe log was full; processes may be missing.")?;
    }
    Ok(())
}

/// <https://mermaid.js.org/syntax/gantt.html>: times are UTC, as in the tables, in any time zone of the reader. Each
/// label has a number, because names repeat, and the real duration, because short bars are drawn longer.
fn chart(report: &JobReport, page: &mut String) -> std::fmt::Result {
    let length = report.end.duration_since(report.begin).unwrap_or_default();
    // Shorter bars would be invisible.
    let thinnest = (length / 200).max(Duration::from_millis(1));
    let bar = |begin: SystemTime, end: SystemTime| {
        let text = |time: SystemTime| format!("{}T{}", day(time), exact_time(time));
        format!("{}, {}", text(begin), text(end.max(begin + thinnest)))
    };
    let axis = if length < Duration::from_secs(5) { "%S.%L" } else { "%H:%M:%S" };
    writeln!(page, "```mermaid\ngantt\n    dateFormat YYYY-MM-DDTHH:mm:ss.SSS\n    axisFormat {axis}")?;
    let mut number = 0;
    let mut numbered = |label: &str, time: Option<String>| {
        number += 1;
        format!("{number}. {label}{}", time.map(|time| format!(", {time}")).unwrap_or_default())
    };
    for identity in &report.identities {
        writeln!(page, "    section {}", plain(&identity.title()))?;
        for exchange in &identity.exchanges {
            let (label, tag) = outcome(exchange);
            let end = exchange.answered.unwrap_or(exchange.sent);
            writeln!(page, "    {} :{tag}, {}", numbered(&label, took(exchange)), bar(exchange.sent, end))?;
        }
        for process in lanes(identity, MOST_BARS, length / 50) {
            let end = process.end.unwrap_or(process.last);
            let label = format!("{}, pid {}", plain(&process.name), process.pid);
            writeln!(page, "    {} :{}", numbered(&label, lasted(process)), bar(process.begin, end))?;
        }
    }
    writeln!(page, "```\n")
}

fn outcome(exchange: &Exchange) -> (String, &'static str) {
    match &exchange.outcome {
        Outcome::Accepted { generation, .. } => (format!("exchange, generation {generation}"), "done"),
        Outcome::Failed { code, .. } => (plain(code), "crit"),
        Outcome::Unknown => ("exchange without an outcome".to_owned(), "crit"),
    }
}

fn incidents(report: &JobReport, page: &mut String) -> std::fmt::Result {
    let mut incidents = report.identities.iter().flat_map(|identity| &identity.incidents).peekable();
    if incidents.peek().is_none() {
        return Ok(());
    }
    writeln!(page, "| time (UTC) | pid | what went wrong | request |\n|:--|--:|:--|:--|")?;
    for incident in incidents.take(MOST_ROWS) {
        let code = incident.code.as_ref().map(|code| format!("{}: ", cell(code))).unwrap_or_default();
        let request = incident.request_id.as_deref().map(cell).unwrap_or_default();
        let time = exact_time(incident.time);
        writeln!(page, "| {time} | {} | {code}{} | {request} |", incident.pid, cell(&incident.message))?;
    }
    writeln!(page)
}

fn processes(report: &JobReport, page: &mut String) -> std::fmt::Result {
    let total: usize = report.identities.iter().map(|identity| identity.processes.len()).sum();
    writeln!(page, "<details><summary>{total} processes on {} (UTC)</summary>\n", day(report.begin))?;
    writeln!(page, "| process | pid | from | lasted | waited | exit code |\n|:--|--:|:--|--:|--:|--:|")?;
    let all: Vec<(&Identity, &Process)> = report
        .identities
        .iter()
        .flat_map(|identity| {
            lanes(identity, MOST_ROWS, Duration::ZERO).into_iter().map(move |process| (identity, process))
        })
        .collect();
    for (_, process) in all.iter().take(MOST_ROWS) {
        let waited = Duration::from_millis(process.waited_ms);
        writeln!(
            page,
            "| {}{} | {} | {} | {} | {} | {} |",
            "&emsp;".repeat(process.depth.min(8)),
            cell(&process.name),
            process.pid,
            exact_time(process.begin),
            lasted(process).unwrap_or_else(|| "?".to_owned()),
            if waited.is_zero() { String::new() } else { span(waited) },
            process.exit_code.map(|code| code.to_string()).unwrap_or_default(),
        )?;
    }
    if total > all.len().min(MOST_ROWS) {
        writeln!(page, "\nand {} more, shorter than these", total - all.len().min(MOST_ROWS))?;
    }
    writeln!(page, "\n</details>")
}

/// Makes a name safe in a chart: only letters, digits and characters without a special meaning.
fn plain(text: &str) -> String {
    let plain: String =
        text.chars().map(|c| if c.is_alphanumeric() || " ._/+-".contains(c) { c } else { '_' }).take(60).collect();
    if plain.trim().is_empty() { "_".to_owned() } else { plain }
}

/// Escapes a text for a table: one line, with special characters as references.
fn cell(text: &str) -> String {
    let mut cell = String::new();
    for c in text.chars() {
        match c {
            '<' => cell.push_str("&lt;"),
            '>' => cell.push_str("&gt;"),
            '&' => cell.push_str("&amp;"),
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '~' | '#' | '!' | '@' => {
                // As a numeric reference, because backslash escapes work differently in a table.
                let _ = write!(cell, "&#{};", u32::from(c));
            }
            c if c.is_control() => cell.push(' '),
            c => cell.push(c),
        }
    }
    cell
}

#[cfg(test)]
mod tests {
    use wifshare::EventKind;

    use super::super::job_report::tests::{event, events, report, seen};
    use super::*;

    #[test]
    fn markdown_page_has_the_numbers_and_a_chart() {
        let page = page(&report(events()));
        assert!(page.contains("| 5 | 1 | at most 3 | at most 2 | 1.5 s | 01:56:40 UTC |"), "{page}");
        assert!(
            page.contains("```mermaid\ngantt\n    dateFormat YYYY-MM-DDTHH:mm:ss.SSS\n    axisFormat %H:%M:%S\n    section fdrl_1\n"),
            "{page}"
        );
        let exchange = "    1. exchange, generation 1, 1 s :done, 2001-09-09T01:46:40.000, 2001-09-09T01:46:41.000\n";
        assert!(page.contains(exchange), "{page}");
        let run = "    2. wifshare exec, pid 10, 8 s :2001-09-09T01:46:40.000, 2001-09-09T01:46:48.000\n";
        assert!(page.contains(run), "{page}");
        assert!(!page.contains("what went wrong"));
    }

    #[test]
    fn program_name_cannot_break_the_markdown_chart_or_table() {
        let evil = "a:b;c\n```\n<img src=x>|#@everyone";
        let message = format!("no | {evil}");
        let failed = EventKind::ExchangeFailed { code: "c".to_owned(), message, request_id: None };
        let more = vec![event(3, 10, EventKind::ExchangeSent), event(3, 10, failed), event(4, 10, seen(14, 11, evil))];
        let page = page(&report([events(), more].concat()));
        assert_eq!(page.matches("```").count(), 2, "{page}");
        assert!(!page.contains("<img") && !page.contains("@everyone"), "{page}");
        assert!(page.contains(". a_b_c____"), "{page}");
        let row = page.lines().find(|line| line.contains("no &#124;")).expect("the incident");
        assert_eq!(row.matches('|').count(), 5, "{row}");
    }
}
