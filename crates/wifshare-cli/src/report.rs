//! `wifshare report`: reports what happened in this job, from the event logs.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use wifshare::{Environment, EventLog, Snapshot, look};

mod html;
mod job_report;
mod markdown;
mod picture;
mod text;
mod words;

use job_report::Log;
pub(crate) use job_report::{Extent, Identity, JobReport, Numbers, Process, Role};

use crate::arguments::{ReportArguments, ReportFormat};
use crate::catalogue::code;
use crate::clock::clock;
use crate::console::print;
use crate::failure::Failure;
use crate::terminal::Terminal;

pub(crate) fn report(arguments: &ReportArguments, environment: &Environment) -> Result<u8, Failure> {
    let root = arguments.state.root(environment);
    let now = clock().now();
    let extent = match (arguments.all, arguments.since) {
        (true, _) => Extent::All,
        (false, Some(since)) => Extent::Since(now - since),
        (false, None) => Extent::LastJob,
    };
    let looks = look(&root, clock())?;
    let Some(report) = job_report(&root, &looks, extent, now) else {
        return Err(Failure::new(
            code!("nothing-to-report"),
            format!("no event of this time is in the logs below {}", root.display()),
            Some("run a command with wifshare first; --state-dir names another place, and --all tells of earlier jobs"),
        ));
    };
    let terminal = Terminal::of_data(environment);
    // CI logs and pipes get Markdown, which can be saved and pasted.
    let is_for_reading = terminal.is_live && !environment.has("CI") && !environment.has("GITHUB_ACTIONS");
    let by_default = if is_for_reading { ReportFormat::Text } else { ReportFormat::Md };
    let text = match arguments.format.unwrap_or(by_default) {
        ReportFormat::Text => text::page(&report, terminal),
        ReportFormat::Md => markdown::page(&report),
        ReportFormat::Html => html::page(&report),
        ReportFormat::Svg => picture::alone(&report),
        ReportFormat::Json => format!("{}\n", serde_json::to_string_pretty(&report).expect("texts and numbers")),
    };
    print("the report", text.as_bytes())?;
    Ok(0)
}

/// Creates the report of this state directory, or `None` if its logs are empty.
pub(crate) fn job_report(root: &Path, looks: &[Snapshot], extent: Extent, now: SystemTime) -> Option<JobReport> {
    let logs = EventLog::below(root).into_iter().map(|(key, log)| {
        let alive = looks.iter().filter(|look| look.key == key).flat_map(|look| &look.runs);
        let alive: BTreeSet<_> = alive.map(|run| run.pid).collect();
        Log { events: log.read(), is_full: log.is_full(), alive, key }
    });
    JobReport::of(logs.collect(), extent, now)
}

/// Returns the events of one identity key since that time as Markdown, or `None` if there are none.
pub(crate) fn summary(key: &Path, since: SystemTime) -> Option<String> {
    let log = EventLog::of(key);
    let name = key.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let log = Log { events: log.read(), is_full: log.is_full(), alive: BTreeSet::new(), key: name };
    Some(markdown::page(&JobReport::of(vec![log], Extent::Since(since), clock().now())?))
}
