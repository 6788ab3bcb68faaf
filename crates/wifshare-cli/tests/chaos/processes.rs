//! The processes of the job: what they do, what is done to them, and whether they were served.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::job::{Ended, Job, files, finish};
use crate::weather::Weather;
use crate::{EXCUSED, now};

/// Three identities that share one state directory and one ledger.
pub(crate) const KEYS: [&[&str]; 3] = [&[], &["--workspace-id", "default"], &["--workspace-id", "wrkspc_two"]];

/// How many live at a time.
const CROWD: usize = 20;

/// Asks through a gateway where there is one, and with the profile otherwise. Tells when the API refused, and goes on.
const ASK: &str = r#"
    through_gateway() {
        LD_PRELOAD= curl -sS --fail --output /dev/null --max-time 60 "$ANTHROPIC_BASE_URL/v1/models" \
            -H "authorization: Bearer $ANTHROPIC_AUTH_TOKEN" -H "anthropic-version: 2023-06-01"
    }
    ask() {
        if [ "$ANTHROPIC_AUTH_TOKEN" ]; then through_gateway; else "$WIFSHARE" demo --child shared; fi ||
            echo "refused $(LD_PRELOAD= date +%s.%N)"
    }
"#;

pub(crate) struct Crowd {
    living: BTreeMap<u64, Process>,
    ended: (Sender<End>, Receiver<End>),
    base_url: String,
    started: u64,
    keepers: u64,
    served: u64,
    excused: u64,
    kills: u64,
    ends: u64,
    stops: u64,
    requests_refused_in_storms: u64,
    /// What may not be, in words.
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
    begun: f64,
    fate: Fate,
    goes_on_at: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody laid hands on it: it has to be served.
    None,
    Killed,
    /// It was sent SIGTERM.
    Ended,
    /// It was stopped for a while.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Prints an access token.
    Token,
    /// The same, out of a child's environment.
    Environment,
    /// Asks the API again and again, below `exec` or after `start`.
    Run,
}

struct End {
    number: u64,
    at: f64,
    ended: Ended,
    /// What the API said to the token that was printed.
    status: Option<u16>,
}

impl Crowd {
    pub(crate) fn new(job: &Job) -> Crowd {
        Crowd {
            living: BTreeMap::new(),
            ended: channel(),
            base_url: job.sandbox.base_url(),
            started: 0,
            keepers: 0,
            served: 0,
            excused: 0,
            kills: 0,
            ends: 0,
            stops: 0,
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

    /// New ones come, one is killed or ended now and then, and the stopped go on.
    pub(crate) fn change(&mut self, job: &Job, is_stormy: bool, random: &mut fastrand::Rng) {
        if self.living.len() < CROWD {
            self.start(job, random);
        }
        let moment = now();
        let due = |process: &&mut Process| process.goes_on_at.is_some_and(|at| moment >= at);
        for process in self.living.values_mut().filter(due) {
            process.go_on();
        }
        if moment >= self.next_violence {
            self.next_violence = moment + if is_stormy { 0.2 } else { 0.4 } + 0.4 * random.f64();
            self.lay_hands_on_one(random);
        }
        if moment >= self.next_look {
            self.next_look = moment + 0.5;
            self.look_at_state(job);
            if random.u8(0..10) == 0 {
                self.plant_a_damaged_file(job, random);
            }
        }
    }

    fn start(&mut self, job: &Job, random: &mut fastrand::Rng) {
        let key = KEYS[random.usize(0..KEYS.len())];
        let few = random.u32(1..=3);
        let delivery = ["profile", "federation", "gateway"][random.usize(0..3)];
        let kind = random.u8(0..11);
        if kind == 10 {
            return self.start_a_keeper(job, delivery, few);
        }
        let (what, arguments, script) = match kind {
            0..=4 => (Work::Token, vec!["token"], None),
            5 => {
                let script = r#"printf '%s\n' "$ANTHROPIC_AUTH_TOKEN""#.to_owned();
                (Work::Environment, vec!["exec", "--delivery", "environment"], Some(script))
            }
            6 => {
                let script = format!(
                    r#"{ASK} ask; "$WIFSHARE" exec -- "$WIFSHARE" exec -- "$WIFSHARE" demo --child shared || echo "refused $(LD_PRELOAD= date +%s.%N)"
                    "$WIFSHARE" token > /dev/null || echo "refused $(LD_PRELOAD= date +%s.%N)"; ask"#
                );
                (Work::Run, vec!["exec"], Some(script))
            }
            kind => {
                let asks = if kind == 9 { random.u32(12..=24) } else { few };
                let script = format!("{ASK} for i in $(seq {asks}); do ask; sleep 0.5; done");
                (Work::Run, vec!["exec", "--delivery", delivery], Some(script))
            }
        };
        let mut arguments = [&arguments[..], key].concat();
        if let Some(script) = &script {
            arguments.extend(["--", "sh", "-c", script]);
        }
        self.watch(job.wifshare(&arguments), what, arguments.join(" "));
    }

    /// A job of several commands with a keeper of its own, which nobody else's end takes away. It is not in the group of
    /// those that are killed and stopped: it has to notice.
    fn start_a_keeper(&mut self, job: &Job, delivery: &str, asks: u32) {
        let identity = format!("--workspace-id wrkspc_job{}", self.started);
        let script = format!(
            r#"keeper=$("$WIFSHARE" start --delivery {delivery} {identity} --watch-pid $$ --format env) || exit
            {ASK} (eval "$keeper"; for i in $(seq {asks}); do ask; sleep 0.5; done)
            "$WIFSHARE" stop {identity}"#
        );
        self.keepers += 1;
        self.watch(job.command("sh", &["-c", &script]), Work::Run, script);
    }

    fn watch(&mut self, mut command: Command, what: Work, arguments: String) {
        let child = command.process_group(0).spawn().unwrap();
        let pid = Pid::from_child(&child);
        self.started += 1;
        let (number, sender, base_url) = (self.started, self.ended.0.clone(), self.base_url.clone());
        self.living.insert(number, Process { pid, what, arguments, begun: now(), fate: Fate::None, goes_on_at: None });
        std::thread::spawn(move || {
            let ended = finish(child);
            let status = match what {
                Work::Token | Work::Environment if ended.code == 0 => ask(&base_url, ended.stdout.trim()),
                _ => None,
            };
            // Nobody waits any more when the test has failed already.
            drop(sender.send(End { number, at: now(), ended, status }));
        });
    }

    fn lay_hands_on_one(&mut self, random: &mut fastrand::Rng) {
        let untouched = self.living.values_mut().filter(|process| process.fate == Fate::None);
        let Some(process) = random.choice(untouched.collect::<Vec<_>>()) else { return };
        match random.u8(0..10) {
            // With its child, and alone: then its child goes on for a while without it.
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

    /// Stops a few for about as long as a token lives, wherever they are: holding a lock, say.
    pub(crate) fn stop_some(&mut self, random: &mut fastrand::Rng) {
        for process in self.living.values_mut().filter(|process| process.fate == Fate::None) {
            if random.u8(0..8) == 0 {
                process.fate = Fate::Stopped;
                // Alone or with its child; the end of the storm lets all go on.
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
            assert!(now() - start < 200.0, "these hang: {:?}", self.living.keys());
            self.judge(job, weather);
            std::thread::sleep(Duration::from_millis(40));
        }
    }

    /// The files that hold a secret when everybody had time to end, keepers too, of which nobody waits for the end.
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

    /// Looks at those who have ended.
    pub(crate) fn judge(&mut self, job: &Job, weather: &Weather) {
        while let Ok(end) = self.ended.1.try_recv() {
            let Some(process) = self.living.remove(&end.number) else { continue };
            // What a killed one left running.
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
        let was_stopped = process.fate == Fate::Stopped;
        for line in stdout.lines().filter(|_| process.what == Work::Run) {
            let at = line.strip_prefix("refused ").and_then(|at| at.parse::<f64>().ok());
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
        let is_excusable = was_stopped || weather.excuses(process.begun, end.at);
        let is_served = match process.what {
            Work::Run => *code == 0,
            Work::Token | Work::Environment => *code == 0 && (end.status == Some(200) || is_excusable),
        };
        let error = stderr.lines().find_map(|line| line.strip_prefix("error[")?.split(']').next());
        let is_excused = is_excusable && *code == 125 && error.is_some_and(|error| EXCUSED.contains(&error));
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

    /// Every credential is whole, and so is every line of the ledger. A line that is being written is looked at again.
    pub(crate) fn look_at_state(&mut self, job: &Job) {
        self.looks_at_state += 1;
        let is_whole = || {
            files(&job.state()).into_iter().all(|path| {
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

    /// What a process leaves that was killed while it wrote a credential.
    fn plant_a_damaged_file(&mut self, job: &Job, random: &mut fastrand::Rng) {
        let secrets = job.sandbox.secrets();
        let Some(secret) = secrets.iter().rev().find(|secret| secret.starts_with("sk-ant-")) else { return };
        let keys = std::fs::read_dir(job.state()).into_iter().flatten().flatten().map(|entry| entry.path());
        let Some(key) = random.choice(keys.filter(|path| path.is_dir()).collect::<Vec<_>>()) else { return };
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
            ("of them jobs with a keeper", self.keepers),
            ("served", self.served),
            ("not served in a storm, for a reason that excuses it", self.excused),
            ("killed with SIGKILL", self.kills),
            ("ended with SIGTERM", self.ends),
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
        self.served > 20 && self.kills > 5 && self.stops > 0
    }
}

impl Process {
    fn go_on(&mut self) {
        if self.goes_on_at.take().is_some() {
            let _ = kill_process_group(self.pid, Signal::CONT);
        }
    }
}

/// Asks the API with a token that somebody was served, and tells the status. A short program of our own: the answer
/// must not depend on the code under test.
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
