//! The processes of the job: what they do, what happens to them, and whether they were served.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::job::{Ended, Job, files, finish};
use crate::kinds::{self, Start, Work};
use crate::subjects::Subjects;
use crate::weather::Weather;
use crate::{EXCUSED, now};

/// The subject of the mock server's identity tokens.
const JOBS_OWN: &str = "repo:octo-org/octo-repo:ref:refs/heads/main";

/// The number of living processes.
const CROWD: usize = 20;

pub(crate) struct Crowd {
    living: BTreeMap<u64, Process>,
    ended: (Sender<End>, Receiver<End>),
    base_url: String,
    started: u64,
    with_a_server: u64,
    /// Jobs whose keeper was killed. Nothing ends the run of that keeper.
    bereft: Vec<u64>,
    served: u64,
    excused: u64,
    kills: u64,
    ends: u64,
    stops: u64,
    /// Keepers and gateways that were killed while their job continued.
    servers_killed: u64,
    errors_into_files: u64,
    refused: u64,
    subjects_seen: u64,
    subjects_confused: u64,
    requests_refused_in_storms: u64,
    /// Descriptions of broken invariants.
    complaints: Vec<String>,
    unserved: u64,
    requests_refused: u64,
    not_kept: u64,
    secrets_found: u64,
    looks_at_state: u64,
    damaged_files_planted: u64,
    next_violence: f64,
    next_look: f64,
}

struct Process {
    pid: Pid,
    what: Work,
    arguments: String,
    subject: Option<&'static str>,
    refused_with: Option<&'static str>,
    server: Option<PathBuf>,
    begun: f64,
    fate: Fate,
    goes_on_at: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The process was not disturbed: it must be served.
    None,
    Killed,
    /// The process received SIGTERM.
    Ended,
    /// The process was stopped for a while.
    Stopped,
    /// The keeper or gateway was killed: requests fail from then on, and a later command must be served.
    Bereft,
}

struct End {
    number: u64,
    at: f64,
    ended: Ended,
    /// The API's status for the printed token.
    status: Option<u16>,
}

impl Crowd {
    pub(crate) fn new(job: &Job) -> Crowd {
        Crowd {
            living: BTreeMap::new(),
            ended: channel(),
            base_url: job.sandbox.base_url(),
            started: 0,
            with_a_server: 0,
            bereft: Vec::new(),
            served: 0,
            excused: 0,
            kills: 0,
            ends: 0,
            stops: 0,
            servers_killed: 0,
            errors_into_files: 0,
            refused: 0,
            subjects_seen: 0,
            subjects_confused: 0,
            requests_refused_in_storms: 0,
            complaints: Vec::new(),
            unserved: 0,
            requests_refused: 0,
            not_kept: 0,
            secrets_found: 0,
            looks_at_state: 0,
            damaged_files_planted: 0,
            next_violence: now() + 1.0,
            next_look: now() + 0.5,
        }
    }

    /// Starts new processes, sometimes kills or ends one, and continues the stopped ones.
    pub(crate) fn change(&mut self, job: &Job, subjects: &Subjects, is_stormy: bool, random: &mut fastrand::Rng) {
        if self.living.len() < CROWD {
            self.start(job, subjects, random);
        }
        let moment = now();
        let due = |process: &&mut Process| process.goes_on_at.is_some_and(|at| moment >= at);
        for process in self.living.values_mut().filter(due) {
            process.go_on();
        }
        if moment >= self.next_violence {
            self.next_violence = moment + if is_stormy { 0.2 } else { 0.4 } + 0.4 * random.f64();
            match random.u8(0..6) {
                0 => self.kill_a_server(random),
                _ => self.lay_hands_on_one(random),
            }
        }
        if moment >= self.next_look {
            self.next_look = moment + 0.5;
            self.look_at_state(job);
            if random.u8(0..10) == 0 {
                self.plant_a_damaged_file(job, random);
            }
        }
    }

    fn start(&mut self, job: &Job, subjects: &Subjects, random: &mut fastrand::Rng) {
        self.started += 1;
        let number = self.started;
        let Start { mut command, work: what, described: arguments, subject, refused_with, server } =
            kinds::any(job, subjects, number, random);
        self.with_a_server += u64::from(server.is_some());
        // The result of a step with `2> file`: no mask line may be written there, because it would show the secret.
        let errors = (random.u8(0..4) == 0).then(|| job.path(&format!("errors-{number}")));
        if let Some(path) = &errors {
            self.errors_into_files += 1;
            command.env("GITHUB_ACTIONS", "true").stderr(std::fs::File::create(path).unwrap());
        } else {
            command.stderr(Stdio::piped());
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let process = Process {
            pid,
            what,
            arguments,
            subject,
            refused_with,
            server,
            begun: now(),
            fate: Fate::None,
            goes_on_at: None,
        };
        self.living.insert(number, process);
        let (sender, base_url) = (self.ended.0.clone(), self.base_url.clone());
        std::thread::spawn(move || {
            let mut ended = finish(child);
            if let Some(path) = errors {
                ended.stderr = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            }
            let status = match what {
                Work::Token if ended.code == 0 => ask(&base_url, ended.stdout.trim()),
                _ => None,
            };
            // The receiver is gone if the test has failed already.
            drop(sender.send(End { number, at: now(), ended, status }));
        });
    }

    fn lay_hands_on_one(&mut self, random: &mut fastrand::Rng) {
        let untouched = self.living.values_mut().filter(|process| process.fate == Fate::None);
        let Some(process) = random.choice(untouched.collect::<Vec<_>>()) else { return };
        match random.u8(0..10) {
            // With its child or alone. In the second case the child continues for a while without it.
            0..=5 => {
                process.fate = Fate::Killed;
                let _ = kill_process_group(process.pid, Signal::KILL);
                self.kills += 1;
            }
            6 => {
                process.fate = Fate::Killed;
                let _ = kill_process(process.pid, Signal::KILL);
                self.kills += 1;
            }
            _ => {
                process.fate = Fate::Ended;
                let _ = kill_process(process.pid, Signal::TERM);
                self.ends += 1;
            }
        }
    }

    /// Kills a keeper or a gateway whose job continues.
    fn kill_a_server(&mut self, random: &mut fastrand::Rng) {
        let untouched = self.living.iter_mut().filter(|(_, process)| process.fate == Fate::None);
        let served = untouched.filter_map(|(number, process)| Some((*number, process.server()?, process)));
        let Some((number, server, process)) = random.choice(served.collect::<Vec<_>>()) else { return };
        if kill_process(server, Signal::KILL).is_ok() {
            process.fate = Fate::Bereft;
            self.servers_killed += 1;
            self.bereft.push(number);
        }
    }

    pub(crate) fn bereft(&self) -> &[u64] {
        &self.bereft
    }

    /// Stops some processes for about a token's lifetime, wherever they are: for example while they hold a lock.
    pub(crate) fn stop_some(&mut self, random: &mut fastrand::Rng) {
        for process in self.living.values_mut().filter(|process| process.fate == Fate::None) {
            if random.u8(0..8) == 0 {
                process.fate = Fate::Stopped;
                // Alone or with the child. The end of the storm continues all of them.
                let _ = match random.bool() {
                    true => kill_process_group(process.pid, Signal::STOP),
                    false => kill_process(process.pid, Signal::STOP),
                };
                process.goes_on_at = Some(now() + 5.0 + 4.0 * random.f64());
                self.stops += 1;
            }
        }
    }

    pub(crate) fn let_all_go_on(&mut self) {
        self.living.values_mut().for_each(Process::go_on);
    }

    pub(crate) fn wait_for_all(&mut self, job: &Job, weather: &Weather) {
        let start = now();
        while !self.living.is_empty() {
            let living = || self.living.values().map(|process| (process.fate, &process.arguments)).collect::<Vec<_>>();
            assert!(now() - start < 200.0, "these hang: {:#?}", living());
            self.judge(job, weather);
            std::thread::sleep(Duration::from_millis(40));
        }
    }

    /// Returns the files that hold a secret after all processes had time to end, including keepers, which nothing waits
    /// for.
    pub(crate) fn left_behind(&self, job: &Job) -> Vec<PathBuf> {
        let start = now();
        loop {
            let left = job.files_with_secrets();
            if left.is_empty() || now() - start > 10.0 {
                return left;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Checks the processes that have ended.
    pub(crate) fn judge(&mut self, job: &Job, weather: &Weather) {
        while let Ok(end) = self.ended.1.try_recv() {
            let Some(process) = self.living.remove(&end.number) else { continue };
            // Kills what a killed process left running.
            let _ = kill_process_group(process.pid, Signal::KILL);
            self.judge_one(job, weather, &process, &end);
        }
    }

    fn judge_one(&mut self, job: &Job, weather: &Weather, process: &Process, end: &End) {
        let Ended { code, stdout, stderr } = &end.ended;
        let told = if process.what == Work::Run { format!("{stdout}{stderr}") } else { stderr.clone() };
        if job.sandbox.secrets().iter().any(|secret| told.contains(secret.as_str())) {
            self.secrets_found += 1;
            self.complaints.push(format!("number {}, {:?}: a secret was told", end.number, process.what));
        }
        if stderr.contains("panicked") {
            self.complaints.push(format!("number {}: {stderr}", end.number));
        }
        self.not_kept += u64::from(stderr.contains("could not be stored"));
        if process.fate == Fate::Killed || process.fate == Fate::Ended {
            return;
        }
        self.judge_subject(job, process, end);
        let was_stopped = process.fate == Fate::Stopped;
        for line in stdout.lines().filter(|_| process.what == Work::Run) {
            // A killed and swept keeper took the sign-in data of later commands with it. Such a command must report
            // that.
            if process.fate == Fate::Bereft && (line.starts_with("refused ") || line.starts_with("over ")) {
                continue;
            }
            let at = line.split(' ').nth(1).and_then(|at| at.parse::<f64>().ok());
            match at.is_some_and(|at| was_stopped || weather.excuses(at - 1.0, at)) {
                true => self.requests_refused_in_storms += 1,
                false => {
                    self.requests_refused += 1;
                    self.complaints.push(format!(
                        "number {}, {:?}, {:?}, from {} to {}: {line}; {stderr}",
                        end.number, process.arguments, process.fate, process.begun, end.at
                    ));
                }
            }
        }
        if process.fate == Fate::Bereft {
            return;
        }
        let is_excusable = was_stopped || weather.excuses(process.begun, end.at);
        let is_served = match process.what {
            Work::Run => *code == 0,
            Work::Token => *code == 0 && (end.status == Some(200) || is_excusable),
        };
        let error = stderr.lines().find_map(|line| line.split_once("error[")?.1.split(']').next());
        let is_excused = is_excusable && *code == 125 && error.is_some_and(|error| EXCUSED.contains(&error));
        if *code == 125 && process.refused_with.is_some() && error == process.refused_with {
            self.refused += 1;
            return;
        }
        match (is_served, is_excused) {
            (true, _) => self.served += 1,
            (false, true) => self.excused += 1,
            (false, false) => {
                self.unserved += 1;
                self.complaints.push(format!(
                    "number {}, {:?}, {:?}, from {} to {}: code {code}, the API said {:?}; {stderr}",
                    end.number, process.what, process.fate, process.begun, end.at, end.status
                ));
            }
        }
    }

    /// Checks that a printed access token belongs to the subject of its process.
    fn judge_subject(&mut self, job: &Job, process: &Process, end: &End) {
        if process.what != Work::Token || end.ended.code != 0 {
            return;
        }
        let own = process.subject.map_or_else(|| JOBS_OWN.to_owned(), Subjects::claim);
        let bought_for = job.sandbox.subject_of(end.ended.stdout.trim());
        self.subjects_seen += u64::from(process.subject.is_some());
        if bought_for.as_deref() != Some(own.as_str()) {
            self.subjects_confused += 1;
            self.complaints.push(format!(
                "number {}, {:?}, {:?}: was served what {bought_for:?} bought",
                end.number, process.arguments, process.fate
            ));
        }
    }

    /// Checks that every credential and every line of the ledger is complete. Reads a line again that is being written.
    pub(crate) fn look_at_state(&mut self, job: &Job) {
        self.looks_at_state += 1;
        let is_whole = || {
            states(job).iter().flat_map(|state| files(state)).all(|path| {
                let Ok(bytes) = std::fs::read(&path) else { return true };
                let is_json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).is_ok();
                match path.file_name().and_then(|name| name.to_str()) {
                    Some("credential.json" | "refusal.json" | "owner" | "identity.json") => is_json(&bytes),
                    Some("spent") => bytes.split(|byte| *byte == b'\n').all(|line| line.is_empty() || is_json(line)),
                    _ => true,
                }
            })
        };
        let again = || {
            std::thread::sleep(Duration::from_millis(20));
            is_whole()
        };
        if !(is_whole() || again() || again()) {
            self.complaints.push("a state file is damaged".to_owned());
        }
    }

    /// Writes the file that a process leaves if it is killed while it writes a credential.
    fn plant_a_damaged_file(&mut self, job: &Job, random: &mut fastrand::Rng) {
        let secrets = job.sandbox.secrets();
        let Some(secret) = secrets.iter().rev().find(|secret| secret.starts_with("sk-ant-")) else { return };
        let keys = states(job).into_iter().flat_map(|state| std::fs::read_dir(state).into_iter().flatten().flatten());
        let keys = keys.map(|entry| entry.path()).filter(|path| path.is_dir());
        let Some(key) = random.choice(keys.collect::<Vec<_>>()) else { return };
        let path = key.join(format!(".new-{:06}", random.u32(..1_000_000)));
        let mut options = std::fs::OpenOptions::new();
        let planted = options.write(true).create_new(true).mode(0o600).open(path);
        if planted.is_ok_and(|mut file| write!(file, r#"{{"version":1,"access_token":"{secret}"#).is_ok()) {
            self.damaged_files_planted += 1;
        }
    }

    pub(crate) fn figures(&self, job: &Job, files_with_secrets: usize) -> Vec<(String, u64)> {
        let counters = job.counters();
        [
            ("processes started", self.started),
            ("of them jobs with a keeper or gateway of their own", self.with_a_server),
            ("standard error in a file", self.errors_into_files),
            ("access tokens of two subjects looked at", self.subjects_seen),
            ("served", self.served),
            ("refused with the code that is due", self.refused),
            ("not served in a storm, for a reason that excuses it", self.excused),
            ("killed with SIGKILL", self.kills),
            ("ended with SIGTERM", self.ends),
            ("keepers and gateways killed with SIGKILL", self.servers_killed),
            ("stopped for a while", self.stops),
            ("damaged temporary files planted", self.damaged_files_planted),
            ("looks at the whole state", self.looks_at_state),
            ("identity tokens issued", counters.identity_tokens_issued),
            ("exchanges received", counters.exchanges_received),
            ("exchanges accepted", counters.exchanges_accepted),
            ("requests of children answered", counters.messages_accepted),
            ("requests of children refused in a storm", self.requests_refused_in_storms),
            ("IDENTITY TOKENS SENT TWICE", counters.assertions_repeated + counters.identity_tokens_reused),
            ("CREDENTIALS LOST: not served", self.unserved),
            ("CREDENTIALS LOST: requests refused", self.requests_refused),
            ("CREDENTIALS LOST: bought and not stored", self.not_kept),
            ("CREDENTIALS CONFUSED: served to another subject", self.subjects_confused),
            ("SECRETS FOUND: in outputs", self.secrets_found),
            ("SECRETS FOUND: files left behind", files_with_secrets as u64),
        ]
        .map(|(what, number)| (what.to_owned(), number))
        .into()
    }

    pub(crate) fn assert_well(&self) {
        assert!(self.complaints.is_empty(), "{} complaints:\n{}", self.complaints.len(), self.complaints.join("\n"));
    }

    pub(crate) fn is_worth_its_name(&self) -> bool {
        self.served > 20 && self.kills > 5 && self.stops > 0 && self.servers_killed > 0 && self.subjects_seen > 0
    }
}

impl Process {
    /// Returns the keeper or gateway once it serves. A keeper's run directory begins with its process id.
    fn server(&self) -> Option<Pid> {
        let named = std::fs::read_to_string(self.server.as_ref()?).ok()?;
        let name = named.trim().rsplit('/').next()?;
        Pid::from_raw(name.split('-').next()?.parse().ok()?)
    }

    fn go_on(&mut self) {
        if self.goes_on_at.take().is_some() {
            let _ = kill_process_group(self.pid, Signal::CONT);
        }
    }
}

/// Returns the state directories of each user, and those at the locations given to processes.
fn states(job: &Job) -> Vec<PathBuf> {
    let inside = |place: &PathBuf| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let is_state = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"wifshare"));
    let places = inside(&job.path("."));
    places.iter().flat_map(inside).chain(places.clone()).filter(is_state).collect()
}

/// Sends a request to the API with an access token and returns the status. The client is written here, because the
/// result must not depend on the code under test.
fn ask(base_url: &str, token: &str) -> Option<u16> {
    let address = base_url.strip_prefix("http://")?;
    let mut stream = TcpStream::connect(address).ok()?;
    write!(
        stream,
        "GET /v1/models HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
         anthropic-version: 2023-06-01\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}
