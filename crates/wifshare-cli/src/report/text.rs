//! The report as text with bars, for a terminal.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use super::job_report::{Exchange, Identity, JobReport, Outcome, Process};
use super::words::{clock_time, day, exact_time, lanes, lasted, span, sums, took, verdict};
use crate::explain::wrapped;
use crate::terminal::{Terminal, cut};

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const BLUE: &str = "\x1b[34m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// Maximum number of rows that is still an overview.
const MOST_ROWS: usize = 40;

pub(super) fn page(report: &JobReport, terminal: Terminal) -> String {
    let width = terminal.width.clamp(40, 120);
    let coloured = |colour: &str, text: &str| match terminal.is_coloured {
        true => format!("{colour}{text}{PLAIN}"),
        false => text.to_owned(),
    };
    let mut page = coloured(BOLD, wrapped(&verdict(report), "", "", width).trim_end()) + "\n";
    let length = report.end.duration_since(report.begin).unwrap_or_default();
    let (begin, end) = (clock_time(report.begin), clock_time(report.end));
    page += &wrapped(&format!("{}, {begin} to {end} UTC, {}", day(report.begin), span(length)), "", "", width);
    let sums: Vec<String> = sums(report).into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
    page += &wrapped(&sums.join(", "), "", "", width);
    let scale = Scale::of(report, width);
    for identity in &report.identities {
        let _ = write!(page, "\n{}\n", coloured(BOLD, &cut(&printable(&identity.title()), width)));
        for exchange in &identity.exchanges {
            let (label, colour) = outcome(exchange);
            let bar = scale.bar(exchange.sent, exchange.answered.unwrap_or(exchange.sent));
            page += &scale.row(&label, &coloured(colour, &bar), &took(exchange).unwrap_or_default());
        }
        let shown = lanes(identity, MOST_ROWS, length / 50);
        for process in &shown {
            page += &row(process, &scale, &coloured);
        }
        if shown.len() < identity.processes.len() {
            let _ = writeln!(page, "  and {} more, shorter than these", identity.processes.len() - shown.len());
        }
        page += &incidents(identity, width, &coloured);
    }
    if report.is_cut {
        page += "\nThe log was full; processes may be missing.\n";
    }
    page
}

fn row(process: &Process, scale: &Scale, coloured: &dyn Fn(&str, &str) -> String) -> String {
    let label = format!("{}{} {}", "  ".repeat(process.depth.min(4)), printable(&process.name), process.pid);
    let bar = scale.bar(process.begin, process.end.unwrap_or(process.last));
    let failed = process.exit_code.filter(|code| *code != 0);
    let bar = if failed.is_some() { coloured(RED, &bar) } else { coloured(BLUE, &bar) };
    let exit = failed.map(|code| format!(" exit {code}")).unwrap_or_default();
    scale.row(&label, &bar, &format!("{}{exit}", lasted(process).unwrap_or_else(|| "?".to_owned())))
}

fn outcome(exchange: &Exchange) -> (String, &'static str) {
    match &exchange.outcome {
        Outcome::Accepted { .. } => ("exchange".to_owned(), YELLOW),
        Outcome::Failed { code, .. } => (printable(code), RED),
        Outcome::Unknown => ("exchange, no outcome".to_owned(), RED),
    }
}

fn incidents(identity: &Identity, width: usize, coloured: &dyn Fn(&str, &str) -> String) -> String {
    let mut text = String::new();
    for incident in identity.incidents.iter().take(MOST_ROWS) {
        let code = incident.code.as_deref().map(|code| format!("{code}: ")).unwrap_or_default();
        let request = incident.request_id.as_deref().map(|id| format!(" (request {id})")).unwrap_or_default();
        let said = format!("{} pid {} {code}{}{request}", exact_time(incident.time), incident.pid, incident.message);
        text += &coloured(RED, wrapped(&printable(&said), "  ! ", "    ", width).trim_end());
        text.push('\n');
    }
    text
}

/// Replaces control characters, which a terminal would interpret.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Maps times to columns.
struct Scale {
    begin: SystemTime,
    length: Duration,
    labels: usize,
    bars: usize,
}

impl Scale {
    /// Width of the text after a bar.
    const BEHIND: usize = 16;

    fn of(report: &JobReport, width: usize) -> Scale {
        let labels = (width / 3).clamp(14, 36);
        let length = report.end.duration_since(report.begin).unwrap_or_default().max(Duration::from_millis(1));
        Scale { begin: report.begin, length, labels, bars: width.saturating_sub(labels + Scale::BEHIND + 4).max(6) }
    }

    fn column(&self, time: SystemTime) -> usize {
        let since = time.duration_since(self.begin).unwrap_or_default().as_secs_f64() / self.length.as_secs_f64();
        ((since * self.bars as f64) as usize).min(self.bars)
    }

    /// Draws a bar. It is at least one column wide.
    fn bar(&self, begin: SystemTime, end: SystemTime) -> String {
        let from = self.column(begin).min(self.bars - 1);
        let to = self.column(end).clamp(from + 1, self.bars);
        format!("{}{}{}", " ".repeat(from), "█".repeat(to - from), " ".repeat(self.bars - to))
    }

    fn row(&self, label: &str, bar: &str, behind: &str) -> String {
        let label = cut(label, self.labels);
        let row = format!("  {label:<labels$} {bar} {}", cut(behind, Scale::BEHIND), labels = self.labels);
        format!("{}\n", row.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::super::job_report::tests::{event, events, report, seen};
    use super::*;

    fn plain(width: usize) -> Terminal {
        Terminal { is_live: false, is_coloured: false, width }
    }

    #[test]
    fn page_shows_processes_as_bars_on_one_scale() {
        let page = page(&report(events()), plain(60));
        let bar = |name: &str| {
            let line = page.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {page}"));
            let from = line.chars().position(|c| c == '█').unwrap();
            (from, line.chars().filter(|c| *c == '█').count())
        };
        let (run, claude) = (bar("wifshare exec 10"), bar("claude 12"));
        assert!(run.1 > claude.1 && claude.0 > run.0, "{page}");
        assert!(page.contains("    job.sh 11") && page.contains("7 s") && page.contains("  exchange  "), "{page}");
    }

    #[test]
    fn page_fits_any_width_and_holds_no_control_characters() {
        let evil = event(2, 10, seen(14, 11, &format!("\x1b[2J{}", "x".repeat(90))));
        for width in [40, 60, 100, 400] {
            let page = page(&report([events(), vec![evil.clone()]].concat()), plain(width));
            assert!(!page.contains('\x1b'), "{page}");
            for line in page.lines() {
                assert!(line.chars().count() <= width.min(120), "{width}: {line}");
            }
        }
    }
}
