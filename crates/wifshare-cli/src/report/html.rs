//! The report as a self-contained HTML page: no scripts, no external resources, light and dark colours, accessible.

use std::time::{Duration, SystemTime};

use maud::{DOCTYPE, Markup, PreEscaped, html};
use wifshare::moment;

use super::job_report::{Exchange, JobReport, Outcome, Process, Role};
use super::picture;
use super::words::{clock_time, counted, day, exact_time, lanes, lasted, span, took, verdict};

/// Maximum number of rows. A browser could show more, but they would not be read.
const MOST_ROWS: usize = 1000;

/// Content security policy: nothing may be loaded, even if a name in this page contains markup.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'";

const STYLE: &str = "
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f6f7f9; --ink: #1f2430; --soft: #596172;
  --line: #d9dde5; --link: #1d5fa3; --bad: #b3232a; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181e; --panel: #1c2027; --ink: #e8ebf1; --soft: #a6aebd;
  --line: #333a46; --link: #7ab6f0; --bad: #f48a8f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, nav, main, footer { max-width: 1064px; margin: 0 auto; padding: 0 32px; }
header { padding-top: 40px; }
h1 { font-size: 15px; font-weight: 600; letter-spacing: .02em; margin: 0; color: var(--soft); }
.verdict { font-size: 25px; line-height: 1.3; font-weight: 600; margin: 6px 0 4px; max-width: 36em; text-wrap: balance; }
.when { color: var(--soft); margin: 0; }
nav ul { list-style: none; display: flex; gap: 20px; margin: 20px 0 0; padding: 0; flex-wrap: wrap; }
a { color: var(--link); text-underline-offset: 3px; }
a:focus-visible, .scroll:focus-visible, summary:focus-visible { outline: 3px solid var(--link); outline-offset: 3px; border-radius: 4px; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 16px; top: 12px; background: var(--paper); padding: 8px 12px; }
h2 { font-size: 18px; margin: 48px 0 12px; }
dl.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(145px, 1fr)); gap: 12px; margin: 28px 0 0; }
dl.numbers div { background: var(--panel); border-radius: 10px; padding: 14px 16px; }
dt { color: var(--soft); font-size: 14px; }
dd { margin: 2px 0 0; font-size: 23px; font-weight: 600; font-variant-numeric: tabular-nums; }
dd small { display: block; font-size: 14px; font-weight: 400; color: var(--soft); }
.scroll { overflow-x: auto; }
svg.timeline { display: block; min-width: 860px; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: 8px; }
th, td { text-align: left; padding: 6px 16px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; white-space: nowrap; }
tbody th { font-weight: 500; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.bad { color: var(--bad); }
footer { color: var(--soft); font-size: 14px; padding-top: 40px; padding-bottom: 56px; }
footer p { margin: 0 0 8px; max-width: 52em; }
@media print { nav, .skip { display: none; } .scroll { overflow: visible; } }
";

pub(super) fn page(report: &JobReport) -> String {
    let title = format!("wifshare report, {} {} UTC", day(report.begin), clock_time(report.begin));
    let has_incidents = report.identities.iter().any(|identity| !identity.incidents.is_empty());
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                // Otherwise a browser requests one.
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(picture::STYLE)) }
            }
            body {
                a.skip href="#report" { "Skip to the report" }
                header {
                    h1 { "wifshare report" }
                    p.verdict { (verdict(report)) }
                    p.when {
                        (day(report.begin)) ", " (time(report.begin, &clock_time(report.begin))) " to "
                        (time(report.end, &clock_time(report.end))) " UTC, "
                        (span(report.end.duration_since(report.begin).unwrap_or_default()))
                    }
                }
                nav aria-label="Sections" {
                    ul {
                        li { a href="#timeline" { "Timeline" } }
                        @if has_incidents { li { a href="#incidents" { "What went wrong" } } }
                        li { a href="#exchanges" { "Exchanges" } }
                        li { a href="#processes" { "Processes" } }
                    }
                }
                main id="report" tabindex="-1" {
                    (numbers(report))
                    section {
                        h2 id="timeline" { "Timeline" }
                        div.scroll role="region" aria-labelledby="timeline" tabindex="0" { (picture::picture(report)) }
                    }
                    @if has_incidents { (incidents(report)) }
                    (exchanges(report))
                    (processes(report))
                }
                footer { (what_may_be_missing(report)) }
            }
        }
    };
    page.into_string()
}

fn time(time: SystemTime, text: &str) -> Markup {
    html! { time datetime=(moment(time)) { (text) } }
}

fn numbers(report: &JobReport) -> Markup {
    let numbers = &report.numbers;
    let of = |name: &str, number: Markup, note: &str| {
        html! { div { dt { (name) } dd { (number) @if !note.is_empty() { " " small { (note) } } } } }
    };
    let failed = if numbers.failed == 0 { String::new() } else { format!("{} failed", numbers.failed) };
    html! {
        dl.numbers {
            @if numbers.exchanges_without.is_some() { (of("Processes", html! { (numbers.processes) }, "")) }
            (of("Exchanges", html! { (numbers.exchanges) }, &failed))
            @if let Some(number) = numbers.exchanges_without { (of("Without wifshare", html! { (number) }, "at most")) }
            @if let Some(number) = numbers.refusals_avoided { (of("Refusals avoided", html! { (number) }, "at most")) }
            (of("Longest wait", html! { (span(Duration::from_millis(numbers.longest_wait_ms))) }, ""))
            @if let Some(until) = numbers.signed_in_until {
                (of("Signed in until", time(until, &clock_time(until)), "UTC"))
            }
        }
    }
}

fn table(id: &str, title: &str, caption: &str, columns: &[(&str, &str)], rows: &[Markup]) -> Markup {
    html! {
        section {
            h2 id=(id) { (title) }
            div.scroll role="region" aria-labelledby=(id) tabindex="0" {
                table {
                    @if !caption.is_empty() { caption { (caption) } }
                    thead { tr { @for (name, class) in columns { th scope="col" class=[class_of(class)] { (name) } } } }
                    tbody { @for row in rows { (row) } }
                }
            }
        }
    }
}

fn class_of<'a>(class: &&'a str) -> Option<&'a str> {
    Some(*class).filter(|class| !class.is_empty())
}

fn incidents(report: &JobReport) -> Markup {
    let rows: Vec<_> = report
        .identities
        .iter()
        .flat_map(|identity| &identity.incidents)
        .take(MOST_ROWS)
        .map(|incident| {
            html! {
                tr {
                    th scope="row" { (time(incident.time, &exact_time(incident.time))) }
                    td.number { (incident.pid) }
                    td.bad { @if let Some(code) = &incident.code { code { (code) } } }
                    td { (incident.message) }
                    td { @if let Some(id) = &incident.request_id { code { (id) } } }
                }
            }
        })
        .collect();
    let columns = [("Time (UTC)", ""), ("Pid", "number"), ("Code", ""), ("What was said", ""), ("Request", "")];
    table("incidents", "What went wrong", "`wifshare explain CODE` tells what to do.", &columns, &rows)
}

fn exchanges(report: &JobReport) -> Markup {
    let row = |exchange: &Exchange| {
        html! {
            tr {
                th scope="row" { (time(exchange.sent, &exact_time(exchange.sent))) }
                td.number { (exchange.pid) }
                td.number { (took(exchange).unwrap_or_else(|| "?".to_owned())) }
                @match &exchange.outcome {
                    Outcome::Accepted { generation, expires_at } => {
                        td { "accepted: generation " (generation) }
                        td { (time(*expires_at, &clock_time(*expires_at))) }
                    }
                    Outcome::Failed { code, .. } => {
                        td.bad { "failed: " code { (code) } }
                        td {}
                    }
                    Outcome::Unknown => {
                        td.bad { "nobody told what became of it" }
                        td {}
                    }
                }
            }
        }
    };
    let all = report.identities.iter().flat_map(|identity| &identity.exchanges);
    let rows: Vec<_> = all.take(MOST_ROWS).map(row).collect();
    let caption = if rows.is_empty() { "None was needed." } else { "" };
    let columns = [("Sent (UTC)", ""), ("Pid", "number"), ("Took", "number"), ("Outcome", ""), ("Good until", "")];
    table("exchanges", "Exchanges", caption, &columns, &rows)
}

fn processes(report: &JobReport) -> Markup {
    let row = |process: &Process| {
        let indent = format!("padding-left: {}px", 16 * process.depth.min(8));
        let role = match process.role {
            Role::Run => "run",
            Role::Caller => "asked for the token",
            Role::Command => "command",
            Role::Descendant => "process of a command",
        };
        let exit = process.exit_code.map(|code| code.to_string()).unwrap_or_default();
        html! {
            tr {
                th scope="row" style=(indent) { (process.name) }
                td.number { (process.pid) }
                td {
                    (role)
                    @if let Some(delivery) = &process.delivery { ", " (delivery) }
                    @if process.requests > 0 { ", " (counted(process.requests, "request", "requests")) }
                }
                td.number { (time(process.begin, &exact_time(process.begin))) }
                td.number { (lasted(process).unwrap_or_else(|| "not seen to end".to_owned())) }
                td.number { @if process.waited_ms > 0 { (span(Duration::from_millis(process.waited_ms))) } }
                td.number { (exit) }
            }
        }
    };
    let total: usize = report.identities.iter().map(|identity| identity.processes.len()).sum();
    let shown =
        report.identities.iter().flat_map(|identity| lanes(identity, MOST_ROWS, Duration::ZERO)).take(MOST_ROWS);
    let rows: Vec<_> = shown.map(row).collect();
    let caption = match total.saturating_sub(rows.len()) {
        0 => String::new(),
        more => format!("And {}, shorter than these.", counted(more as u64, "other", "others")),
    };
    let columns = [
        ("Process", ""),
        ("Pid", "number"),
        ("Role", ""),
        ("From (UTC)", "number"),
        ("Lasted", "number"),
        ("Waited", "number"),
        ("Exit code", "number"),
    ];
    table("processes", "Processes", &caption, &columns, &rows)
}

fn what_may_be_missing(report: &JobReport) -> Markup {
    html! {
        p {
            "Exchanges are told by the processes that make them. Processes below a command are those that wifshare saw \
             when it looked; one that lived for a few hundredths of a second may be missing. “Without wifshare” counts \
             those that could have exchanged by themselves: the callers of wifshare, and below a run no more than \
             opened the credential."
        }
        @if report.numbers.exchanges_without.is_none() {
            p { "After `wifshare start` the processes of later steps are not watched; numbers about them are left out." }
        }
        @if report.is_cut { p { "The log was full; processes may be missing." } }
        @if report.earlier_events > 0 {
            p { "Of earlier jobs " (counted(report.earlier_events as u64, "event is", "events are")) " left out." }
        }
        p { "Made by wifshare " (env!("CARGO_PKG_VERSION")) "." }
    }
}

#[cfg(test)]
mod tests {
    use super::super::job_report::tests::{events, report, seen};
    use super::*;

    #[test]
    fn html_page_has_no_scripts_and_no_external_requests() {
        let page = page(&report(events()));
        assert!(page.starts_with("<!DOCTYPE html><html lang=\"en\">"));
        for forbidden in ["<script", " src=", "url(", "@import", "javascript:"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert!(page.contains("default-src 'none'") || page.contains("default-src &#39;none&#39;"), "{page}");
    }

    #[test]
    fn html_page_escapes_program_names() {
        let mut events = events();
        events[4].what = seen(12, 11, "<img src=x onerror=alert(1)>");
        let page = page(&report(events));
        assert!(!page.contains("<img") && page.contains("&lt;img"), "{page}");
    }
}
