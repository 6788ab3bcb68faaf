//! Builds the report from events: processes, exchanges, incidents and totals. It does no input or output.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use wifshare::{Event, EventKind, moment};

/// A new job begins after this time without events and with no run alive.
const QUIET: Duration = Duration::from_secs(3600);

/// The whole report.
#[derive(Debug, Serialize)]
pub(crate) struct JobReport {
    /// Start of the reported time.
    #[serde(serialize_with = "as_text")]
    pub(crate) begin: SystemTime,
    /// End of the reported time.
    #[serde(serialize_with = "as_text")]
    pub(crate) end: SystemTime,
    /// Totals of all identities.
    pub(crate) numbers: Numbers,
    pub(crate) identities: Vec<Identity>,
    /// Number of events of earlier jobs in the logs, which are left out here.
    pub(crate) earlier_events: usize,
    /// Whether a log was full, so that processes may be missing.
    pub(crate) is_cut: bool,
}

/// Events of one identity key.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Identity {
    pub(crate) key: String,
    pub(crate) rule: Option<String>,
    pub(crate) service_account: Option<String>,
    pub(crate) workspace: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) numbers: Numbers,
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) processes: Vec<Process>,
    pub(crate) incidents: Vec<Incident>,
}

/// Totals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Numbers {
    /// Processes that reported events or were seen.
    pub(crate) processes: u64,
    /// Exchanges that were sent.
    pub(crate) exchanges: u64,
    /// Exchanges that were accepted.
    pub(crate) accepted: u64,
    /// Exchanges that were refused or whose response was lost.
    pub(crate) failed: u64,
    /// How often a process used the cached credential.
    pub(crate) shared: u64,
    /// Requests that the gateway answered.
    pub(crate) requests: u64,
    /// Requests that failed: the API or the gateway responded with an error, or there was no response.
    pub(crate) requests_failed: u64,
    /// How often processes of the commands opened the credential file.
    pub(crate) opened: u64,
    /// Upper bound of exchanges if each process had exchanged by itself: callers of wifshare, plus the processes under
    /// a run, but no more than were seen, and no more than opened the credential. Unknown after a `start`, whose later
    /// steps are not watched, unless they used a gateway.
    pub(crate) exchanges_without: Option<u64>,
    /// Upper bound of those exchanges that would have been refused because the identity token was used already.
    pub(crate) refusals_avoided: Option<u64>,
    /// How often a cached failure saved an exchange.
    pub(crate) refusals_heard: u64,
    /// How often a run stored a new credential.
    pub(crate) renewals: u64,
    /// Longest wait for the lock, in milliseconds.
    pub(crate) longest_wait_ms: u64,
    /// When the last credential expires or expired.
    #[serde(serialize_with = "as_optional_text")]
    pub(crate) signed_in_until: Option<SystemTime>,
}

/// One exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Exchange {
    pub(crate) pid: u32,
    #[serde(serialize_with = "as_text")]
    pub(crate) sent: SystemTime,
    /// When the outcome was known, or `None` if the process ended before.
    #[serde(serialize_with = "as_optional_text")]
    pub(crate) answered: Option<SystemTime>,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Accepted {
        generation: u64,
        #[serde(serialize_with = "as_text")]
        expires_at: SystemTime,
    },
    Failed {
        code: String,
        message: String,
        request_id: Option<String>,
    },
    /// The process ended before it reported an outcome.
    Unknown,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: Option<u32>,
    #[serde(skip)]
    started: Option<u64>,
    pub(crate) name: String,
    pub(crate) role: Role,
    #[serde(serialize_with = "as_text")]
    pub(crate) begin: SystemTime,
    /// `None` if it still runs or its end was not seen.
    #[serde(serialize_with = "as_optional_text")]
    pub(crate) end: Option<SystemTime>,
    pub(crate) exit_code: Option<u8>,
    pub(crate) delivery: Option<String>,
    /// Number of its ancestors in the report.
    pub(crate) depth: usize,
    /// How long it waited for the lock, in milliseconds.
    pub(crate) waited_ms: u64,
    /// Number of its requests that the gateway answered, as far as their sender was looked up.
    pub(crate) requests: u64,
    /// When it last used the shared credential.
    #[serde(serialize_with = "as_optional_text")]
    pub(crate) served: Option<SystemTime>,
    #[serde(skip)]
    pub(crate) waits: Vec<(SystemTime, SystemTime)>,
    #[serde(skip)]
    pub(crate) renewals: Vec<SystemTime>,
    /// Latest time at which it is known to have run.
    #[serde(skip)]
    pub(crate) last: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// `wifshare exec`, `start` or similar.
    Run,
    /// `wifshare token`.
    Caller,
    /// A command that a run started.
    Command,
    /// A descendant of such a command.
    Descendant,
}

/// A failure or warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Incident {
    #[serde(serialize_with = "as_text")]
    pub(crate) time: SystemTime,
    pub(crate) pid: u32,
    /// Error code, if it is an error of the catalogue.
    pub(crate) code: Option<String>,
    pub(crate) message: String,
    pub(crate) request_id: Option<String>,
}

/// Events of one identity key.
pub(crate) struct Log {
    pub(crate) key: String,
    pub(crate) events: Vec<Event>,
    pub(crate) is_full: bool,
    /// Process ids of the runs that are alive now.
    pub(crate) alive: BTreeSet<u32>,
}

/// Which events to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The last job: events after the last long quiet time.
    LastJob,
    /// Events since this time.
    Since(SystemTime),
    /// All events.
    All,
}

impl JobReport {
    /// Creates the report from these logs, or returns `None` if they contain no events.
    pub(crate) fn of(logs: Vec<Log>, extent: Extent, now: SystemTime) -> Option<JobReport> {
        let first = match extent {
            Extent::All => None,
            Extent::Since(moment) => Some(moment),
            Extent::LastJob => beginning_of_the_last_job(&logs, now),
        };
        let is_told = |event: &Event| first.is_none_or(|first| event.time >= first);
        let is_cut = logs.iter().any(|log| log.is_full);
        let mut earlier_events = 0;
        let mut identities = Vec::new();
        for mut log in logs {
            let before = log.events.len();
            log.events.retain(is_told);
            earlier_events += before - log.events.len();
            // A process may log an event late. The stable sort keeps the order of events with the same time.
            log.events.sort_by_key(|event| event.time);
            if !log.events.is_empty() {
                identities.push(Identity::of(&log, now));
            }
        }
        let begin = identities.iter().flat_map(|identity| identity.processes.iter().map(|it| it.begin)).min()?;
        let last = |process: &Process| process.end.unwrap_or(process.last);
        let end = identities.iter().flat_map(|identity| identity.processes.iter().map(last)).max()?;
        let all = identities.iter().map(|identity| identity.numbers.clone());
        let numbers = all.reduce(|sum, numbers| sum.plus(&numbers)).unwrap_or_default();
        Some(JobReport { begin, end, numbers, identities, earlier_events, is_cut })
    }
}

impl Identity {
    fn of(log: &Log, now: SystemTime) -> Identity {
        let mut identity = Identity { key: log.key.clone(), ..Identity::default() };
        for event in &log.events {
            identity.hear(event);
        }
        for process in &mut identity.processes {
            if process.role == Role::Run && process.end.is_none() && log.alive.contains(&process.pid) {
                process.last = now;
            }
        }
        let living: BTreeSet<_> = log.alive.iter().copied().collect();
        identity.follow_their_parents(&living, now);
        identity.count();
        identity
    }

    fn hear(&mut self, event: &Event) {
        let (time, pid) = (event.time, event.pid);
        let incident = |code: Option<&String>, message: &str, request_id: Option<&String>| Incident {
            time,
            pid,
            code: code.cloned(),
            message: message.to_owned(),
            request_id: request_id.cloned(),
        };
        match &event.what {
            EventKind::RunBegan { command, delivery, source, rule, service_account, workspace } => {
                self.rule = Some(rule.clone()).filter(|rule| !rule.is_empty());
                self.service_account.clone_from(service_account);
                self.workspace.clone_from(workspace);
                self.source = Some(source.clone());
                let process = self.process(event);
                process.name = format!("wifshare {command}");
                process.role = Role::Run;
                process.delivery = Some(delivery.clone());
            }
            EventKind::RunJoined { command } => self.process(event).name = format!("wifshare {command}"),
            EventKind::RunEnded { .. } => self.process(event).end = Some(time),
            EventKind::LockWaited { ms, .. } => {
                let process = self.process(event);
                let begin = time - Duration::from_millis(*ms);
                process.begin = process.begin.min(begin);
                process.waited_ms = process.waited_ms.max(*ms);
                process.waits.push((begin, time));
                self.numbers.longest_wait_ms = self.numbers.longest_wait_ms.max(*ms);
            }
            EventKind::Found { expires_at, .. } => {
                self.process(event).served = Some(time);
                self.numbers.shared += 1;
                self.numbers.signed_in_until = self.numbers.signed_in_until.max(Some(*expires_at));
            }
            EventKind::ExchangeSent => {
                self.process(event);
                self.numbers.exchanges += 1;
                self.exchanges.push(Exchange { pid, sent: time, answered: None, outcome: Outcome::Unknown });
            }
            EventKind::ExchangeAccepted { generation, expires_at } => {
                self.process(event);
                self.numbers.accepted += 1;
                self.numbers.signed_in_until = self.numbers.signed_in_until.max(Some(*expires_at));
                self.answer(pid, time, Outcome::Accepted { generation: *generation, expires_at: *expires_at });
            }
            EventKind::ExchangeFailed { code, message, request_id } => {
                self.process(event);
                self.numbers.failed += 1;
                self.incidents.push(incident(Some(code), message, request_id.as_ref()));
                let (code, message, request_id) = (code.clone(), message.clone(), request_id.clone());
                self.answer(pid, time, Outcome::Failed { code, message, request_id });
            }
            EventKind::ObtainFailed { code, message } => {
                self.process(event);
                self.incidents.push(incident(Some(code), message, None));
            }
            EventKind::RefusalHeard { .. } => {
                self.process(event);
                self.numbers.refusals_heard += 1;
            }
            EventKind::Renewed { expires_at, .. } | EventKind::Adopted { expires_at, .. } => {
                self.process(event).renewals.push(time);
                self.numbers.renewals += 1;
                self.numbers.signed_in_until = self.numbers.signed_in_until.max(Some(*expires_at));
            }
            EventKind::NotKept { message }
            | EventKind::NotRenewed { message }
            | EventKind::IdentityNotHandedOut { message }
            | EventKind::CredentialEnded { message } => {
                self.process(event);
                self.incidents.push(incident(None, message, None));
            }
            EventKind::IdentityRepeated => {
                self.process(event);
                self.incidents.push(incident(None, "the source handed out a token that was spent before", None));
            }
            EventKind::ChildStarted { process, program } => {
                self.process(event);
                let child = self.somebody(*process, None, time, Role::Command);
                child.name.clone_from(program);
                child.parent = Some(pid);
            }
            EventKind::ChildEnded { process, code } => {
                self.process(event);
                let child = self.somebody(*process, None, time, Role::Command);
                child.end = Some(time);
                child.exit_code = Some(*code);
            }
            EventKind::ProcessSeen { process, process_started, parent, program } => {
                let descendant = self.somebody(*process, Some(*process_started), time, Role::Descendant);
                // A wifshare process has reported more about itself than its name.
                if descendant.role == Role::Descendant {
                    descendant.name.clone_from(program);
                }
                descendant.parent = Some(*parent);
            }
            EventKind::ProcessEnded { process, process_started } => {
                self.somebody(*process, Some(*process_started), time, Role::Descendant).end = Some(time);
            }
            EventKind::RequestServed { process, status, .. } => {
                self.process(event);
                self.numbers.requests += 1;
                self.numbers.requests_failed += u64::from(!(100..400).contains(status));
                if let Some(process) = process {
                    self.somebody(*process, None, time, Role::Descendant).requests += 1;
                }
            }
            EventKind::CredentialOpened { times } => self.numbers.opened += times,
            EventKind::IdentityAsked
            | EventKind::IdentityHandedOut
            | EventKind::Retrying { .. }
            | EventKind::Swept
            | EventKind::ConnectionFault => {
                self.process(event);
            }
            // Events of a newer version of the library.
            _ => {}
        }
    }

    /// The process that logged this event.
    fn process(&mut self, event: &Event) -> &mut Process {
        let process = self.somebody(event.pid, event.started, event.time, Role::Caller);
        if process.role == Role::Descendant {
            process.role = Role::Caller;
            process.name = "wifshare token".to_owned();
        }
        process
    }

    /// Finds or adds a process. A process with the same id that ended before or has another start time is a different
    /// one.
    fn somebody(&mut self, pid: u32, started: Option<u64>, time: SystemTime, role: Role) -> &mut Process {
        let is_it = |process: &Process| {
            let same_start = process.started.zip(started).is_none_or(|(one, other)| one == other);
            process.pid == pid && same_start && process.end.is_none_or(|end| end + Duration::from_millis(50) >= time)
        };
        let place = self.processes.iter().rposition(is_it).unwrap_or_else(|| {
            let name = if role == Role::Caller { "wifshare token" } else { "?" }.to_owned();
            self.processes.push(Process {
                pid,
                parent: None,
                started,
                name,
                role,
                begin: time,
                end: None,
                exit_code: None,
                delivery: None,
                depth: 0,
                waited_ms: 0,
                requests: 0,
                served: None,
                waits: Vec::new(),
                renewals: Vec::new(),
                last: time,
            });
            self.processes.len() - 1
        });
        let process = &mut self.processes[place];
        process.started = process.started.or(started);
        process.last = process.last.max(time);
        process
    }

    fn answer(&mut self, pid: u32, time: SystemTime, outcome: Outcome) {
        let open = |exchange: &&mut Exchange| exchange.pid == pid && exchange.answered.is_none();
        if let Some(exchange) = self.exchanges.iter_mut().rev().find(open) {
            exchange.answered = Some(time);
            exchange.outcome = outcome;
        }
    }

    /// Places each process below its parent, in the order of their starts. Below a living run, a process without a
    /// known end counts as running until now.
    fn follow_their_parents(&mut self, living: &BTreeSet<u32>, now: SystemTime) {
        let mut processes = std::mem::take(&mut self.processes);
        processes.sort_by_key(|process| process.begin);
        let mut below: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut roots = Vec::new();
        for (place, process) in processes.iter().enumerate() {
            let parent = process.parent.and_then(|parent| {
                let is_it = |other: &Process| other.pid == parent && other.begin <= process.begin;
                (0..processes.len()).rev().find(|other| *other != place && is_it(&processes[*other]))
            });
            match parent {
                Some(parent) => below.entry(parent).or_default().push(place),
                None => roots.push(place),
            }
        }
        // In reverse, because the stack is processed from its end.
        let mut to_visit: Vec<(usize, usize)> = roots.into_iter().rev().map(|place| (place, 0)).collect();
        let mut visited = BTreeSet::new();
        while let Some((place, depth)) = to_visit.pop() {
            if !visited.insert(place) {
                continue;
            }
            let mut process = processes[place].clone();
            process.depth = depth;
            // A process that probably still runs, below a living run.
            if process.end.is_none() && process.role != Role::Caller && depth > 0 && !living.is_empty() {
                process.last = now;
            }
            self.processes.push(process);
            let children = below.get(&place).into_iter().flatten().rev();
            to_visit.extend(children.map(|child| (*child, depth + 1)));
        }
    }

    fn count(&mut self) {
        self.numbers.processes = self.processes.len() as u64;
        let with_role = |roles: &[Role]| self.processes.iter().filter(|it| roles.contains(&it.role)).count() as u64;
        let under_runs = with_role(&[Role::Command, Role::Descendant]);
        // Each command would have exchanged at least once, even if it was not seen to open the credential.
        let requesters = self.processes.iter().filter(|it| it.requests > 0).count() as u64;
        let clients = under_runs.min(self.numbers.opened.max(requesters).max(with_role(&[Role::Command])));
        let is_unwatched = |it: &Process| it.name == "wifshare start" && it.delivery.as_deref() != Some("gateway");
        if !self.processes.iter().any(is_unwatched) {
            let without = with_role(&[Role::Caller]) + clients;
            self.numbers.exchanges_without = Some(without);
            self.numbers.refusals_avoided = Some(without.saturating_sub(self.numbers.exchanges));
        }
    }

    /// Title of the identity: its rule and workspace, or the start of its key.
    pub(crate) fn title(&self) -> String {
        let rule = self.rule.clone().unwrap_or_else(|| format!("identity {}", self.key.get(..8).unwrap_or(&self.key)));
        match &self.workspace {
            Some(workspace) => format!("{rule} in {workspace}"),
            None => rule,
        }
    }
}

impl Numbers {
    fn plus(&self, other: &Numbers) -> Numbers {
        Numbers {
            processes: self.processes + other.processes,
            exchanges: self.exchanges + other.exchanges,
            accepted: self.accepted + other.accepted,
            failed: self.failed + other.failed,
            shared: self.shared + other.shared,
            requests: self.requests + other.requests,
            requests_failed: self.requests_failed + other.requests_failed,
            opened: self.opened + other.opened,
            exchanges_without: self.exchanges_without.zip(other.exchanges_without).map(|(one, two)| one + two),
            refusals_avoided: self.refusals_avoided.zip(other.refusals_avoided).map(|(one, two)| one + two),
            refusals_heard: self.refusals_heard + other.refusals_heard,
            renewals: self.renewals + other.renewals,
            longest_wait_ms: self.longest_wait_ms.max(other.longest_wait_ms),
            signed_in_until: self.signed_in_until.max(other.signed_in_until),
        }
    }
}

/// Time of the first event after the last long quiet time.
fn beginning_of_the_last_job(logs: &[Log], now: SystemTime) -> Option<SystemTime> {
    let mut times: Vec<_> = logs.iter().flat_map(|log| log.events.iter().map(|event| event.time)).collect();
    times.sort();
    let spans: Vec<_> = logs.iter().flat_map(|log| spans_of_runs(log, now)).collect();
    let is_quiet = |pair: &&[SystemTime]| {
        let length = pair[1].duration_since(pair[0]).unwrap_or_default();
        length > QUIET && !spans.iter().any(|(begin, end)| *begin <= pair[0] && *end >= pair[1])
    };
    times.windows(2).rev().find(is_quiet).map(|pair| pair[1])
}

fn spans_of_runs(log: &Log, now: SystemTime) -> Vec<(SystemTime, SystemTime)> {
    let mut open = BTreeMap::new();
    let mut spans = Vec::new();
    for event in &log.events {
        match &event.what {
            EventKind::RunBegan { .. } => drop(open.insert(event.pid, event.time)),
            EventKind::RunEnded { .. } => spans.extend(open.remove(&event.pid).map(|begin| (begin, event.time))),
            _ => {}
        }
    }
    spans.extend(open.into_iter().filter(|(pid, _)| log.alive.contains(pid)).map(|(_, begin)| (begin, now)));
    spans
}

fn as_text<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&moment(*time))
}

fn as_optional_text<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => as_text(time, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + seconds)
    }

    pub(crate) fn event(seconds: u64, pid: u32, what: EventKind) -> Event {
        Event { time: at(seconds), pid, started: None, what }
    }

    pub(crate) fn began() -> EventKind {
        EventKind::RunBegan {
            command: "exec".to_owned(),
            delivery: "profile".to_owned(),
            source: "GitHub Actions".to_owned(),
            rule: "fdrl_1".to_owned(),
            service_account: None,
            workspace: None,
        }
    }

    pub(crate) fn seen(process: u32, parent: u32, program: &str) -> EventKind {
        EventKind::ProcessSeen { process, process_started: u64::from(process), parent, program: program.to_owned() }
    }

    pub(crate) fn ended() -> EventKind {
        EventKind::RunEnded { credential: "removed".to_owned() }
    }

    /// A run with one exchange. Its command starts two clients.
    pub(crate) fn events() -> Vec<Event> {
        let accepted = EventKind::ExchangeAccepted { generation: 1, expires_at: at(600) };
        vec![
            event(0, 10, began()),
            event(0, 10, EventKind::ExchangeSent),
            event(1, 10, accepted),
            event(1, 10, EventKind::ChildStarted { process: 11, program: "job.sh".to_owned() }),
            event(2, 10, seen(12, 11, "claude")),
            event(2, 10, seen(13, 11, "python3")),
            event(3, 10, EventKind::CredentialOpened { times: 2 }),
            event(5, 20, EventKind::LockWaited { holder: None, ms: 1500 }),
            event(5, 20, EventKind::Found { generation: 1, expires_at: at(600) }),
            event(6, 10, EventKind::ProcessEnded { process: 12, process_started: 12 }),
            event(7, 10, EventKind::ProcessEnded { process: 13, process_started: 13 }),
            event(8, 10, EventKind::ChildEnded { process: 11, code: 0 }),
            event(8, 10, ended()),
        ]
    }

    pub(crate) fn report(events: Vec<Event>) -> JobReport {
        let log = Log { key: "0".repeat(32), events, is_full: false, alive: BTreeSet::new() };
        JobReport::of(vec![log], Extent::LastJob, at(100_000)).unwrap()
    }

    #[test]
    fn report_numbers_match_the_events() {
        let report = report(events());
        assert_eq!(
            report.numbers,
            Numbers {
                processes: 5,
                exchanges: 1,
                accepted: 1,
                shared: 1,
                opened: 2,
                // Two processes that opened the credential, and the caller.
                exchanges_without: Some(3),
                refusals_avoided: Some(2),
                longest_wait_ms: 1500,
                signed_in_until: Some(at(600)),
                ..Numbers::default()
            }
        );
        assert_eq!((report.begin, report.end), (at(0), at(8)));
    }

    #[test]
    fn processes_of_later_steps_are_not_counted_after_start() {
        let started = |delivery: &str| {
            let mut began = began();
            if let EventKind::RunBegan { command, delivery: chosen, .. } = &mut began {
                "start".clone_into(command);
                delivery.clone_into(chosen);
            }
            let request = EventKind::request("POST", "/v1/messages", 200, Duration::from_millis(5), (1, 2), Some(12));
            let told = if delivery == "gateway" { vec![event(2, 10, request)] } else { Vec::new() };
            report([vec![event(0, 10, began), event(0, 10, EventKind::ExchangeSent)], told].concat()).numbers
        };
        assert_eq!((started("profile").exchanges_without, started("profile").refusals_avoided), (None, None));
        assert_eq!(started("gateway").exchanges_without, Some(1), "who asked it is known");
    }

    #[test]
    fn process_is_listed_under_its_parent() {
        let report = report(events());
        let lanes: Vec<_> = report.identities[0].processes.iter().map(|it| (it.name.as_str(), it.depth)).collect();
        let expected = [("wifshare exec", 0), ("job.sh", 1), ("claude", 2), ("python3", 2), ("wifshare token", 0)];
        assert_eq!(lanes, expected);
    }

    #[test]
    fn exchange_outcome_comes_from_its_own_process() {
        let failed = EventKind::ExchangeFailed {
            code: "exchange-refused".to_owned(),
            message: "no".to_owned(),
            request_id: Some("req_1".to_owned()),
        };
        let accepted = EventKind::ExchangeAccepted { generation: 1, expires_at: at(600) };
        let report = report(vec![
            event(0, 1, EventKind::ExchangeSent),
            event(0, 2, EventKind::ExchangeSent),
            event(1, 1, failed),
            event(2, 1, EventKind::ExchangeSent),
            event(3, 1, accepted),
        ]);
        let outcomes: Vec<_> = report.identities[0].exchanges.iter().map(|it| (it.pid, &it.outcome)).collect();
        assert!(matches!(outcomes[0], (1, Outcome::Failed { request_id: Some(id), .. }) if id == "req_1"));
        assert!(matches!(outcomes[1], (2, Outcome::Unknown)), "its process told nothing more");
        assert!(matches!(outcomes[2], (1, Outcome::Accepted { .. })));
        assert_eq!((report.numbers.exchanges, report.numbers.accepted, report.numbers.failed), (3, 1, 1));
        assert_eq!(report.identities[0].incidents.len(), 1);
    }

    #[test]
    fn gateway_requests_identify_their_processes() {
        let answered = |status, process| {
            EventKind::request("POST", "/v1/messages", status, Duration::from_millis(5), (1, 2), process)
        };
        let request = |process| answered(200, process);
        let child = EventKind::ChildStarted { process: 11, program: "job.sh".to_owned() };
        let told = vec![
            event(0, 10, began()),
            event(1, 10, child),
            event(2, 10, seen(12, 11, "claude")),
            event(2, 10, seen(13, 11, "git")),
            event(3, 10, request(Some(12))),
            event(3, 10, request(Some(12))),
            event(4, 10, request(Some(11))),
            event(4, 10, answered(529, None)),
            event(5, 10, answered(0, None)),
        ];
        let numbers = report(told).numbers;
        assert_eq!((numbers.requests, numbers.requests_failed), (5, 2));
        assert_eq!(numbers.exchanges_without, Some(2), "claude and job.sh, and not git");
    }

    #[test]
    fn reused_pid_is_another_process() {
        let gone = EventKind::ProcessEnded { process: 12, process_started: 12 };
        let again = EventKind::ProcessSeen { process: 12, process_started: 99, parent: 11, program: "git".to_owned() };
        let report = report(vec![event(0, 10, seen(12, 11, "sh")), event(1, 10, gone), event(5, 10, again)]);
        assert_eq!(report.numbers.processes, 2);
    }

    #[test]
    fn last_job_begins_after_a_quiet_hour_unless_a_run_spans_it() {
        let two = || vec![event(0, 1, began()), event(9, 1, ended()), event(5000, 2, began()), event(5009, 2, ended())];
        let last = report(two());
        assert_eq!((last.begin, last.earlier_events), (at(5000), 2));
        let spanned = report([two(), vec![event(1, 3, began()), event(6000, 3, ended())]].concat());
        assert_eq!((spanned.begin, spanned.earlier_events), (at(0), 0));
        let log = Log { key: String::new(), events: two(), is_full: false, alive: BTreeSet::new() };
        let all = JobReport::of(vec![log], Extent::All, at(100_000)).unwrap();
        assert_eq!((all.begin, all.numbers.processes), (at(0), 2));
    }

    #[test]
    fn empty_logs_have_no_report() {
        assert!(JobReport::of(Vec::new(), Extent::All, at(0)).is_none());
    }
}
