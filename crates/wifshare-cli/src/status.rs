//! `wifshare status`: shows the credentials, their lifetimes and the processes that use them.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use wifshare::{Credential, Environment, Freshness, Snapshot, look, moment};

use crate::arguments::StatusArguments;
use crate::clock::clock;
use crate::console::{self, whole};
use crate::explain::wrapped;
use crate::failure::Failure;
use crate::report::{self, Extent, Identity, JobReport, Numbers, Process, Role};
use crate::signals;
use crate::terminal::Terminal;
#[cfg(unix)]
use crate::terminal::cut;

pub(crate) fn status(arguments: &StatusArguments, environment: &Environment) -> Result<u8, Failure> {
    let root = arguments.state.root(environment);
    let terminal = Terminal::of_data(environment);
    if arguments.watch {
        return watch::watch(arguments, &root, terminal);
    }
    let status = Status::of(&root)?;
    print(&if arguments.json { status.json() } else { status.text(terminal.width) })?;
    Ok(0)
}

fn print(text: &str) -> Result<(), Failure> {
    console::print("the status", text.as_bytes())
}

/// The contents of the state directory, and of its event log for this job.
#[derive(Serialize)]
struct Status {
    /// Version of the format. Later versions only add fields.
    version: u32,
    time: String,
    state_directory: PathBuf,
    identities: Vec<Shared>,
}

/// One identity and its credential.
#[derive(Serialize)]
struct Shared {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace: Option<String>,
    source: Option<String>,
    credential: Option<Held>,
    /// For example "pid 4711, exchanging since 2 s".
    lock: Option<String>,
    refusal: Option<Refused>,
    runs: Vec<Run>,
    numbers: Numbers,
    last_served: Vec<Served>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
    #[serde(skip)]
    title: String,
}

#[derive(Serialize)]
struct Held {
    generation: u64,
    obtained_at: String,
    expires_at: String,
    remaining_s: u64,
    /// `fresh`, `expiring` (due for renewal) or `expired`.
    freshness: &'static str,
    /// When the renewal is due.
    refresh_at: String,
    /// Whether the source can issue another identity token.
    renewable: bool,
    #[serde(skip)]
    until_refresh: Duration,
}

#[derive(Serialize)]
struct Refused {
    code: String,
    message: String,
    hint: Option<String>,
    pid: u32,
    remaining_s: u64,
}

/// A run: an `exec`, a keeper or a gateway.
#[derive(Serialize)]
struct Run {
    pid: u32,
    command: Option<String>,
    delivery: Option<String>,
    began: Option<String>,
    /// `alive`, or `gone` if it logged no end but its process is dead.
    health: &'static str,
    /// Number of its living processes, as far as it saw them.
    processes: usize,
    #[serde(skip)]
    age: Option<Duration>,
}

#[derive(Serialize)]
struct Served {
    pid: u32,
    name: String,
    time: String,
    #[serde(skip)]
    ago: Duration,
}

impl Status {
    fn of(root: &Path) -> Result<Status, Failure> {
        let clock = clock();
        let now = clock.now();
        let looks = look(root, clock)?;
        let report = report::job_report(root, &looks, Extent::LastJob, now);
        let told = |key: &str| report.iter().flat_map(|report: &JobReport| &report.identities).find(|it| it.key == key);
        let identities = looks.into_iter().map(|look| shared(look, &told, now)).collect();
        Ok(Status { version: 1, time: moment(now), state_directory: root.to_owned(), identities })
    }

    fn json(&self) -> String {
        format!("{}\n", serde_json::to_string(self).expect("texts and numbers become JSON"))
    }

    /// Returns a text that differs between two snapshots only if something has happened, apart from the passing of
    /// time.
    fn signature(&self) -> String {
        fn still(value: &mut serde_json::Value) {
            match value {
                serde_json::Value::Object(fields) => {
                    fields.retain(|name, _| !["time", "remaining_s"].contains(&name.as_str()));
                    fields.values_mut().for_each(still);
                }
                serde_json::Value::Array(values) => values.iter_mut().for_each(still),
                serde_json::Value::String(text) => {
                    if let Some((doing, _)) = text.split_once(" since ") {
                        *text = doing.to_owned();
                    }
                }
                _ => {}
            }
        }
        let mut value = serde_json::to_value(self).expect("texts and numbers become JSON");
        still(&mut value);
        value.to_string()
    }

    fn text(&self, width: usize) -> String {
        let shown = self.identities.iter().filter(|shared| !shared.is_empty());
        let blocks: Vec<_> = shown.map(|shared| shared.text(width)).collect();
        match blocks.as_slice() {
            [] => wrapped(&format!("nothing is shared in {}", self.state_directory.display()), "", "", width),
            blocks => blocks.join("\n"),
        }
    }
}

fn shared<'a>(look: Snapshot, told: &impl Fn(&str) -> Option<&'a Identity>, now: SystemTime) -> Shared {
    let identity = told(&look.key);
    let processes: &[Process] = identity.map_or(&[], |identity| &identity.processes);
    let mut last_served: Vec<_> = processes.iter().filter_map(|it| Some((it.served?, it))).collect();
    last_served.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
    let of_identity = |field: fn(&Identity) -> &Option<String>| identity.and_then(|identity| field(identity).clone());
    Shared {
        title: identity.map_or_else(|| format!("identity {}", &look.key[..8]), Identity::title),
        rule: of_identity(|identity| &identity.rule),
        service_account: of_identity(|identity| &identity.service_account),
        workspace: of_identity(|identity| &identity.workspace),
        source: look.source.clone().or_else(|| of_identity(|identity| &identity.source)),
        credential: look.credential.as_ref().map(|credential| held(credential, look.remintable, now)),
        lock: look.holder.clone(),
        refusal: look.refusal.as_ref().map(|refusal| Refused {
            code: refusal.code.clone(),
            message: refusal.message.clone(),
            hint: refusal.hint.clone(),
            pid: refusal.owner.pid,
            remaining_s: refusal.remaining(now).unwrap_or_default().as_secs(),
        }),
        runs: runs(&look, processes, now),
        numbers: identity.map(|identity| identity.numbers.clone()).unwrap_or_default(),
        last_served: last_served
            .iter()
            .take(5)
            .map(|(time, it)| Served {
                pid: it.pid,
                name: it.name.clone(),
                time: moment(*time),
                ago: now.duration_since(*time).unwrap_or_default(),
            })
            .collect(),
        unreadable: look.unreadable.as_ref().map(ToString::to_string),
        key: look.key,
    }
}

fn held(credential: &Credential, renewable: bool, now: SystemTime) -> Held {
    Held {
        generation: credential.generation,
        obtained_at: moment(credential.obtained_at),
        expires_at: moment(credential.expires_at),
        remaining_s: credential.remaining(now).as_secs(),
        freshness: match credential.freshness(now) {
            Freshness::Fresh => "fresh",
            Freshness::Expiring => "expiring",
            Freshness::Expired => "expired",
        },
        refresh_at: moment(credential.refresh_at()),
        renewable,
        until_refresh: credential.refresh_at().duration_since(now).unwrap_or_default(),
    }
}

/// Living runs, and dead ones that logged no end.
fn runs(look: &Snapshot, processes: &[Process], now: SystemTime) -> Vec<Run> {
    let told = |pid: u32| processes.iter().rev().find(|it| it.role == Role::Run && it.pid == pid);
    let run = |pid: u32, health: &'static str| {
        let process = told(pid);
        Run {
            pid,
            command: process.map(|process| process.name.clone()),
            delivery: process.and_then(|process| process.delivery.clone()),
            began: process.map(|process| moment(process.begin)),
            health,
            processes: process.map_or(0, |run| living_below(run, processes)),
            age: process.and_then(|process| now.duration_since(process.begin).ok()),
        }
    };
    let alive = look.runs.iter().map(|owner| run(owner.pid, "alive"));
    let is_gone =
        |it: &&Process| it.role == Role::Run && it.end.is_none() && !look.runs.iter().any(|owner| owner.pid == it.pid);
    alive.chain(processes.iter().filter(is_gone).map(|it| run(it.pid, "gone"))).collect()
}

/// Counts the living descendants of a run. In the list they follow it, with a greater depth.
fn living_below(run: &Process, processes: &[Process]) -> usize {
    let place = processes.iter().position(|it| it.pid == run.pid && it.begin == run.begin).unwrap_or(0);
    let below = processes[place + 1..].iter().take_while(|it| it.depth > run.depth);
    below.filter(|it| it.end.is_none()).count()
}

impl Shared {
    /// Whether it contains only the directory of an identity that was used once.
    fn is_empty(&self) -> bool {
        let is_quiet =
            self.credential.is_none() && self.lock.is_none() && self.refusal.is_none() && self.runs.is_empty();
        is_quiet && self.unreadable.is_none() && self.numbers == Numbers::default()
    }

    fn text(&self, width: usize) -> String {
        const INDENT: &str = "              ";
        let mut lines = wrapped(&format!("{} (key {})", self.title, &self.key[..8]), "", "  ", width);
        let mut row = |name: &str, text: String| lines += &wrapped(&text, &format!("  {name:<12}"), INDENT, width);
        match (&self.credential, &self.unreadable) {
            (Some(held), _) => row("credential", held.text()),
            (None, Some(error)) => row("credential", format!("unreadable: {error}")),
            (None, None) => row("credential", self.in_memory().unwrap_or("none is kept".to_owned())),
        }
        if let Some(source) = &self.source {
            row("source", source.clone());
        }
        if self.runs.is_empty() {
            row("runs", "none".to_owned());
        }
        for run in &self.runs {
            row("run", run.text());
        }
        if let Some(lock) = &self.lock {
            row("lock", lock.clone());
        }
        if let Some(refusal) = &self.refusal {
            row("refused", format!("{} (counts for {} s more)", refusal.message, refusal.remaining_s));
        }
        let Numbers { exchanges, failed, exchanges_without, shared, opened, refusals_heard, .. } = &self.numbers;
        let failed = if *failed == 0 { String::new() } else { format!(", {failed} of them failed") };
        let saved = exchanges_without.map(|without| format!("; {} saved at most", without.saturating_sub(*exchanges)));
        row("exchanges", format!("{exchanges}{failed}{}", saved.unwrap_or_default()));
        row(
            "served",
            format!("{} from the store; the credential's file was opened {}", times(*shared), times(*opened)),
        );
        if *refusals_heard > 0 {
            row("", format!("a refusal was heard {} without asking again", times(*refusals_heard)));
        }
        if self.numbers.requests > 0 {
            let answered = format!("{} answered by the gateway", self.numbers.requests);
            row("requests", format!("{answered}, {} of them with an error", self.numbers.requests_failed));
        }
        for served in &self.last_served {
            row("", format!("pid {} {}, {} ago", served.pid, served.name, whole(served.ago)));
        }
        lines
    }
}

impl Shared {
    /// A gateway keeps its credential in memory. Its log contains only the expiry.
    fn in_memory(&self) -> Option<String> {
        let is_gateway = |run: &&Run| run.health == "alive" && run.delivery.as_deref() == Some("gateway");
        let run = self.runs.iter().find(is_gateway)?;
        let end = self.numbers.signed_in_until.map(|end| format!(", until {}", moment(end))).unwrap_or_default();
        Some(format!("in the memory of the gateway, pid {}{end}", run.pid))
    }
}

impl Held {
    fn text(&self) -> String {
        let next = match (self.freshness, self.renewable) {
            ("expired", _) => return format!("generation {}, ended at {}", self.generation, self.expires_at),
            (_, false) => "its source has no other to give".to_owned(),
            ("fresh", true) => format!("a successor is due in {}", whole(self.until_refresh)),
            (_, true) => "its successor is due".to_owned(),
        };
        let left = whole(Duration::from_secs(self.remaining_s));
        format!("generation {}, {left} left (until {}); {next}", self.generation, self.expires_at)
    }
}

impl Run {
    fn text(&self) -> String {
        let name = self.command.as_deref().unwrap_or("a run that told nothing");
        let delivery = self.delivery.as_ref().map(|delivery| format!(", {delivery}")).unwrap_or_default();
        let age = self.age.map(|age| format!(", since {}", whole(age))).unwrap_or_default();
        match self.health {
            "alive" => {
                // Processes of later steps, which use a keeper, are not seen.
                let processes =
                    if self.processes > 0 { format!(", {} processes", self.processes) } else { String::new() };
                format!("pid {} {name}{delivery}{age}{processes}", self.pid)
            }
            _ => format!("pid {} {name}{delivery}: gone without a word, it may have been killed", self.pid),
        }
    }
}

fn times(number: u64) -> String {
    match number {
        1 => "once".to_owned(),
        number => format!("{number} times"),
    }
}

mod watch {
    use super::*;

    /// Interval between snapshots. A snapshot without changes is not printed.
    const PACE: Duration = Duration::from_secs(1);

    pub(super) fn watch(arguments: &StatusArguments, root: &Path, terminal: Terminal) -> Result<u8, Failure> {
        signals::listen()?;
        if terminal.is_live && !arguments.json {
            return live(root);
        }
        let mut before = None;
        loop {
            let status = Status::of(root)?;
            let signature = Some(status.signature());
            if signature != before {
                before = signature;
                print(&if arguments.json {
                    status.json()
                } else {
                    format!("{}\n{}\n", status.time, status.text(terminal.width))
                })?;
            }
            if signals::pause(PACE).is_err() {
                return Ok(signals::code_of_interruption().unwrap_or(0));
            }
            if crate::terminal::reader_has_gone() {
                return Ok(0);
            }
        }
    }

    /// Interval between checks of the terminal's size.
    #[cfg(unix)]
    const SIZE_PACE: Duration = Duration::from_millis(200);

    #[cfg(unix)]
    fn live(root: &Path) -> Result<u8, Failure> {
        use crate::terminal::{AlternateScreen, Keys, size_of_data};

        let keys = Keys::listen();
        let screen = AlternateScreen::enter();
        let mut before = String::new();
        loop {
            let status = Status::of(root)?;
            let until = (clock().monotonic)() + PACE;
            while (clock().monotonic)() < until {
                let (width, height) = size_of_data();
                let mut text = status.text(width);
                let leave = if keys.are_there() { "q: quit" } else { "Ctrl-C: quit" };
                text.push_str(&format!("\n{leave}\n"));
                let frame = frame(&text, width, height);
                if frame != before {
                    screen.draw(&frame);
                    before = frame;
                }
                let key = if keys.are_there() { keys.next(SIZE_PACE) } else { None };
                let pause = if keys.are_there() { Duration::ZERO } else { SIZE_PACE };
                // Ctrl-C is the normal way to end, so it is not an error.
                if matches!(key, Some(b'q' | b'Q' | 4)) || signals::pause(pause).is_err() {
                    return Ok(0);
                }
            }
        }
    }

    /// Cuts the text to the screen. The last line, which says how to quit, stays visible.
    #[cfg(unix)]
    fn frame(text: &str, width: usize, height: usize) -> String {
        let mut lines: Vec<String> = text.lines().map(|line| cut(line, width)).collect();
        if lines.len() > height {
            let last = lines.pop();
            lines.truncate(height.saturating_sub(1));
            lines.extend(last);
        }
        lines.iter().map(|line| format!("{line}\x1b[K")).collect::<Vec<_>>().join("\r\n")
    }

    #[cfg(not(unix))]
    fn live(_root: &Path) -> Result<u8, Failure> {
        Err(Failure::usage("--watch on a terminal was not built for this system".to_owned(), "add --json"))
    }
}
