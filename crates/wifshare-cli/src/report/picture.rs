//! The timeline of processes as a self-contained SVG image.

use std::time::{Duration, SystemTime};

use maud::{Markup, PreEscaped, html};

use super::job_report::{Exchange, Identity, JobReport, Outcome, Process, Role};
use super::words::{clock_time, lanes, span};

/// Colours for light and dark mode. The contrast is at least 4.5 for text and at least 3 for bars.
pub(super) const STYLE: &str = "
svg.timeline { --paper: #ffffff; --ink: #1f2430; --soft: #596172; --line: #e4e7ee; --run: #66748f; --command: #2c74b8;
  --descendant: #5592c7; --caller: #1c7f71; --exchange: #b4510a; --failed: #c0262d; --wait: #8a7420; --life: #d9efe2;
  --on-life: #1c4d33; background: var(--paper); font: 13px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg.timeline { --paper: #15181e; --ink: #e8ebf1; --soft: #a6aebd;
  --line: #2a303a; --run: #8fa0c2; --command: #5fa8e8; --descendant: #4581b5; --caller: #45b8a6; --exchange: #f0934a;
  --failed: #f47c81; --wait: #c9ad4d; --life: #1d3b2c; --on-life: #aee0c2; } }
.timeline text { fill: var(--ink); }
.timeline .soft { fill: var(--soft); }
.timeline .title { font-weight: 600; }
.timeline .rule { stroke: var(--line); stroke-width: 1; }
.timeline .run { fill: var(--run); }
.timeline .command { fill: var(--command); }
.timeline .descendant { fill: var(--descendant); }
.timeline .caller { fill: var(--caller); }
.timeline .exchange { fill: var(--exchange); stroke: var(--paper); }
.timeline .failed { fill: var(--failed); stroke: var(--paper); }
.timeline .wait { fill: var(--wait); }
.timeline .life { fill: var(--life); }
.timeline text.on-life { fill: var(--on-life); }
.timeline .renewed { fill: var(--exchange); stroke: var(--paper); stroke-width: 1.5; }
";

const LABELS: f64 = 232.0;
const CHART: f64 = 700.0;
const MARGIN: f64 = 16.0;
/// Width of the text after a bar.
const BEHIND: f64 = 52.0;
const WIDTH: f64 = MARGIN + LABELS + CHART + BEHIND;
const ROW: f64 = 22.0;
const BAR: f64 = 12.0;
/// Minimum width of a bar.
const THINNEST: f64 = 3.0;
/// Maximum number of lanes that is still readable.
const MOST_LANES: usize = 40;

/// The timeline for a page that contains the tables.
pub(super) fn picture(report: &JobReport) -> Markup {
    draw(report, html! {})
}

/// The timeline as a file of its own.
pub(super) fn alone(report: &JobReport) -> String {
    let picture = draw(report, html! { style { (PreEscaped(STYLE)) } });
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", picture.into_string())
}

fn draw(report: &JobReport, style: Markup) -> Markup {
    let scale = Scale::of(report);
    let mut y = MARGIN;
    let blocks: Vec<Markup> = report.identities.iter().map(|identity| block(identity, &scale, &mut y)).collect();
    let bottom = y;
    let legend = legend(bottom + 44.0);
    let height = bottom + 62.0;
    html! {
        svg.timeline xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (WIDTH) " " (height) } width=(WIDTH) height=(height)
            role="img" aria-labelledby="timeline-title timeline-description" {
            title id="timeline-title" { "Timeline of processes and exchanges" }
            desc id="timeline-description" { (describe(report)) }
            (style)
            rect width="100%" height="100%" style="fill: var(--paper)" {}
            @for (time, label) in scale.ticks() {
                line.rule x1=(round(scale.x(time))) x2=(round(scale.x(time))) y1=(MARGIN) y2=(bottom) {}
                text.soft x=(round(scale.x(time))) y=(bottom + 16.0) text-anchor="middle" { (label) }
            }
            @for block in &blocks { (block) }
            (legend)
        }
    }
}

/// Text alternative of the image. The tables contain the details.
fn describe(report: &JobReport) -> String {
    let numbers = &report.numbers;
    format!(
        "From {} to {} UTC, {}: {} processes and {} exchanges. Each row is a process, in the order of their beginnings \
         and below its parent. The tables hold the same facts.",
        clock_time(report.begin),
        clock_time(report.end),
        span(report.end.duration_since(report.begin).unwrap_or_default()),
        numbers.processes,
        numbers.exchanges,
    )
}

fn block(identity: &Identity, scale: &Scale, y: &mut f64) -> Markup {
    let lanes = lanes(identity, MOST_LANES, scale.end.duration_since(scale.begin).unwrap_or_default() / 50);
    let left_out = identity.processes.len() - lanes.len();
    let top = *y;
    *y += ROW;
    let life = *y;
    *y += ROW;
    let rows: Vec<Markup> = lanes
        .iter()
        .map(|process| {
            *y += ROW;
            lane(process, &identity.exchanges, scale, *y - ROW)
        })
        .collect();
    if left_out > 0 {
        *y += ROW;
    }
    let note = *y - ROW;
    *y += 8.0;
    html! {
        text.title x=(MARGIN) y=(top + 15.0) { (identity.title()) }
        text.soft x=(MARGIN) y=(life + 15.0) { "credential" }
        @for exchange in &identity.exchanges { (credential(exchange, identity, scale, life)) }
        @for row in &rows { (row) }
        @if left_out > 0 {
            text.soft x=(MARGIN) y=(note + 15.0) { "and " (left_out) " more, shorter than these" }
        }
    }
}

/// Bar of a credential's lifetime, until the next credential replaced it.
fn credential(exchange: &Exchange, identity: &Identity, scale: &Scale, y: f64) -> Markup {
    let (Some(begin), Outcome::Accepted { generation, expires_at }) = (exchange.answered, &exchange.outcome) else {
        return html! {};
    };
    let successor = identity.exchanges.iter().filter_map(|other| match other.outcome {
        Outcome::Accepted { .. } => other.answered.filter(|answered| *answered > begin),
        Outcome::Failed { .. } | Outcome::Unknown => None,
    });
    let end = successor.min().unwrap_or(*expires_at).min(*expires_at).min(scale.end);
    let (left, right) = (scale.x(begin), scale.x(end));
    let label = format!("generation {generation}, until {}", clock_time(*expires_at));
    let fits = right - left > 8.0 * label.chars().count() as f64;
    html! {
        rect.life x=(round(left)) y=(y + 2.0) width=(round((right - left).max(THINNEST))) height=(ROW - 4.0) rx="4" {
            title { (label) }
        }
        @if fits { text.on-life x=(round(left + 8.0)) y=(y + 15.5) { (label) } }
    }
}

fn lane(process: &Process, exchanges: &[Exchange], scale: &Scale, y: f64) -> Markup {
    let end = process.end.unwrap_or(process.last);
    let (left, right) = (scale.x(process.begin), scale.x(end));
    let right = right.max(left + THINNEST);
    let indent = 14.0 * process.depth.min(6) as f64 + 14.0;
    let room = ((LABELS - indent - 60.0) / 7.0) as usize;
    let class = match process.role {
        Role::Run => "run",
        Role::Caller => "caller",
        Role::Command => "command",
        Role::Descendant => "descendant",
    };
    let lasted = span(end.duration_since(process.begin).unwrap_or_default());
    let bar = |class: &str, begin: SystemTime, end: SystemTime, text: &str| {
        let (left, right) = (scale.x(begin), scale.x(end));
        html! {
            rect class=(class) x=(round(left)) y=(y + 5.0) width=(round((right - left).max(THINNEST))) height=(BAR) rx="2" {
                title { (text) }
            }
        }
    };
    html! {
        text x=(MARGIN + indent) y=(y + 15.0) { (crate::terminal::cut(&process.name, room)) }
        text.soft x=(MARGIN + LABELS - 10.0) y=(y + 15.0) text-anchor="end" { (process.pid) }
        rect class=(class) x=(round(left)) y=(y + 5.0) width=(round(right - left)) height=(BAR) rx="3" {
            title { (process.name) ", pid " (process.pid) ", " (lasted) }
        }
        @for (begin, end) in &process.waits {
            (bar("wait", *begin, *end, "waiting for the lock"))
        }
        @for exchange in exchanges.iter().filter(|exchange| is_of(exchange, process)) {
            @let class = if let Outcome::Accepted { .. } = exchange.outcome { "exchange" } else { "failed" };
            (bar(class, exchange.sent, exchange.answered.unwrap_or(exchange.sent), &said(exchange)))
        }
        @for time in &process.renewals {
            circle.renewed cx=(round(scale.x(*time))) cy=(y + 11.0) r="5" { title { "renewed at " (clock_time(*time)) } }
        }
        @match process.exit_code {
            Some(code) if code != 0 => text.soft x=(round(right + 6.0)) y=(y + 15.0) { "exit " (code) }
            _ => {}
        }
    }
}

/// Process ids are reused, so the time of the exchange must lie within the life of the process.
fn is_of(exchange: &Exchange, process: &Process) -> bool {
    exchange.pid == process.pid && exchange.sent >= process.begin && exchange.sent <= process.last
}

fn said(exchange: &Exchange) -> String {
    match &exchange.outcome {
        Outcome::Accepted { generation, .. } => format!("exchange, accepted: generation {generation}"),
        Outcome::Failed { code, .. } => format!("exchange, failed: {code}"),
        Outcome::Unknown => "exchange, outcome unknown".to_owned(),
    }
}

fn legend(y: f64) -> Markup {
    let entries = [
        ("run", "run", 54.0),
        ("command", "command", 84.0),
        ("descendant", "its processes", 112.0),
        ("caller", "wifshare token", 118.0),
        ("exchange", "exchange", 84.0),
        ("failed", "failed exchange", 120.0),
        ("wait", "waiting for another’s exchange", 0.0),
    ];
    let mut x = MARGIN;
    let mut places = Vec::new();
    for (class, label, width) in entries {
        places.push((class, label, x));
        x += width + 22.0;
    }
    html! {
        @for (class, label, x) in places {
            rect class=(class) x=(x) y=(y - 10.0) width="12" height="12" rx="2" {}
            text.soft x=(x + 17.0) y=(y) { (label) }
        }
    }
}

struct Scale {
    begin: SystemTime,
    end: SystemTime,
}

impl Scale {
    fn of(report: &JobReport) -> Scale {
        Scale { begin: report.begin, end: report.end.max(report.begin + Duration::from_millis(10)) }
    }

    fn length(&self) -> f64 {
        self.end.duration_since(self.begin).unwrap_or_default().as_secs_f64()
    }

    fn x(&self, time: SystemTime) -> f64 {
        let since = time.clamp(self.begin, self.end).duration_since(self.begin).unwrap_or_default();
        MARGIN + LABELS + CHART * since.as_secs_f64() / self.length()
    }

    /// At most eight round points in time.
    fn ticks(&self) -> Vec<(SystemTime, String)> {
        const STEPS: [f64; 22] = [
            0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0,
            1800.0, 3600.0, 21600.0, 86400.0,
        ];
        let step = STEPS.into_iter().find(|step| self.length() / step <= 8.0).unwrap_or(self.length() / 4.0);
        let number = (self.length() / step) as u32;
        let tick = |number: u32| {
            let since = Duration::from_secs_f64(step * f64::from(number));
            (self.begin + since, if number == 0 { clock_time(self.begin) } else { format!("+{}", span(since)) })
        };
        (0..=number).map(tick).collect()
    }
}

/// Rounds to a tenth of a point, which is finer than any screen.
fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::super::job_report::tests::{at, events, report};
    use super::*;

    #[test]
    fn timeline_ticks_are_round_and_few() {
        for (length, step) in [(0.008, 2), (1.0, 200), (61.0, 10_000), (4000.0, 600_000)] {
            let scale = Scale { begin: at(0), end: at(0) + Duration::from_secs_f64(length) };
            let ticks = scale.ticks();
            assert!((2..=9).contains(&ticks.len()), "{length}: {ticks:?}");
            assert_eq!(ticks[1].0.duration_since(at(0)).unwrap().as_millis(), step, "{length}");
        }
    }

    #[test]
    fn timeline_has_a_bar_for_each_process_and_a_description() {
        let svg = alone(&report(events()));
        for (class, number) in [("run", 1), ("command", 1), ("descendant", 2), ("caller", 1), ("exchange", 1)] {
            // The legend contains one more.
            assert_eq!(svg.matches(&format!("<rect class=\"{class}\"")).count(), number + 1, "{class}");
        }
        assert!(svg.contains("<desc id=\"timeline-description\">From 01:46:40"), "{svg}");
        assert!(svg.contains("generation 1, until 01:56:40"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn timeline_escapes_program_names() {
        let mut events = events();
        events[4].what = super::super::job_report::tests::seen(12, 11, "<script>&\"");
        let svg = alone(&report(events));
        assert!(svg.contains("&lt;script&gt;&amp;") && !svg.contains("<script"), "{svg}");
    }
}
