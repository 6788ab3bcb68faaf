//! A CI job for a test: an environment, a directory, a mock server, and a search for secrets in all output.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wifshare_sandbox::{Counters, Sandbox, Settings};

pub(crate) const WIFSHARE: &str = env!("CARGO_BIN_EXE_wifshare");

/// Longer than any test takes. A process that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(240);

pub(crate) struct Job {
    pub(crate) sandbox: Sandbox,
    directory: tempfile::TempDir,
    variables: BTreeMap<String, String>,
    /// Whether a credential may stay in the state directory, as after `token`.
    may_keep_credential: bool,
}

/// The exit code and output of a process.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code as a shell reports it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Settings for tests.
pub(crate) fn settings() -> Settings {
    Settings::default()
}

/// Settings with this lifetime of access tokens, in seconds.
pub(crate) fn living(seconds: u64) -> Settings {
    Settings { access_token_lifetime_s: seconds, access_token_lifetime_floor_s: 1, ..settings() }
}

impl Job {
    pub(crate) fn new(settings: Settings) -> Job {
        let sandbox = Sandbox::start(settings).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut job = Job { sandbox, directory, variables: BTreeMap::new(), may_keep_credential: false };
        let variables = job.sandbox.environment();
        for (name, value) in variables {
            job.set(&name, &value);
        }
        let home = job.path("home");
        std::fs::create_dir(&home).unwrap();
        job.set("HOME", home.to_str().unwrap());
        job.set("PATH", "/usr/local/bin:/usr/bin:/bin");
        let temporary = job.directory.path().to_str().unwrap().to_owned();
        job.set("RUNNER_TEMP", &temporary);
        job.set("WIFSHARE", WIFSHARE);
        job
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn unset(&mut self, name: &str) {
        self.variables.remove(name);
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// Uses a file with this token as the source. Returns its path.
    pub(crate) fn use_token_file(&mut self, token: &str) -> PathBuf {
        let path = self.path("token");
        std::fs::write(&path, token).unwrap();
        self.set("ANTHROPIC_IDENTITY_TOKEN_FILE", path.to_str().unwrap());
        self.without_endpoint();
        path
    }

    pub(crate) fn without_endpoint(&mut self) {
        self.unset("ACTIONS_ID_TOKEN_REQUEST_URL");
        self.unset("ACTIONS_ID_TOKEN_REQUEST_TOKEN");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path(&format!("wifshare-{}", rustix::process::geteuid().as_raw()))
    }

    /// Returns a command with only this job's environment.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&self.variables).current_dir(self.directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn wifshare(&self, arguments: &[&str]) -> Command {
        self.command(WIFSHARE, arguments)
    }

    /// Runs wifshare to its end. Fails if the output contains a secret.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        let ended = finish(self.wifshare(arguments).spawn().unwrap());
        self.search(&ended.stdout, "standard output");
        self.search(&ended.stderr, "standard error");
        ended
    }

    /// Runs a shell script under `wifshare exec` with these options.
    pub(crate) fn exec(&self, options: &[&str], script: &str) -> Ended {
        self.run(&[&["exec"], options, &["--", "sh", "-c", script]].concat())
    }

    /// Runs `wifshare token`. Only its standard output may contain the access token.
    pub(crate) fn token(&mut self, arguments: &[&str]) -> Ended {
        self.may_keep_credential = true;
        let ended = finish(self.wifshare(&[&["token"], arguments].concat()).spawn().unwrap());
        self.search(&ended.stderr, "standard error");
        ended
    }

    pub(crate) fn may_keep_credential(&mut self) {
        self.may_keep_credential = true;
    }

    pub(crate) fn counters(&self) -> Counters {
        self.sandbox.counters()
    }

    /// Checks that there were this many exchanges, none was refused, and no identity token was sent twice.
    pub(crate) fn assert_exchanges(&self, exchanges: u64) {
        let counters = self.counters();
        assert_eq!(counters.exchanges_accepted, exchanges, "{counters:#?}");
        self.assert_nothing_sent_twice();
    }

    pub(crate) fn assert_nothing_sent_twice(&self) {
        let counters = self.counters();
        assert_eq!(counters.assertions_repeated, 0, "{counters:#?}");
        assert_eq!(counters.identity_tokens_reused, 0, "{counters:#?}");
    }

    /// Fails if this text contains a secret of the mock server.
    pub(crate) fn search(&self, text: &str, place: &str) {
        for secret in self.sandbox.secrets() {
            assert!(!text.contains(&secret), "{place} holds a secret ({} bytes):\n{text}", secret.len());
        }
    }

    /// Returns the files of this job that contain a secret.
    pub(crate) fn files_with_secrets(&self) -> Vec<PathBuf> {
        let secrets = self.sandbox.secrets();
        let holds = |path: &PathBuf| {
            let text = std::fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            secrets.iter().any(|secret| text.contains(secret.as_str()))
        };
        files(self.directory.path()).into_iter().filter(holds).collect()
    }
}

/// Checks at the end of every job that no secret is left behind.
impl Drop for Job {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let own = |path: &PathBuf| *path == self.path("token");
        let kept = |path: &PathBuf| self.may_keep_credential && path.ends_with("credential.json");
        let left: Vec<_> = self.files_with_secrets().into_iter().filter(|path| !own(path) && !kept(path)).collect();
        assert!(left.is_empty(), "secrets were left behind in {left:#?}");
    }
}

/// Waits for a process and reads its output. A process that hangs is killed and fails the test.
pub(crate) fn finish(mut child: Child) -> Ended {
    use std::os::unix::process::ExitStatusExt;

    let reader = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.map(|mut stream| stream.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = reader(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = reader(child.stderr.take().map(|stream| Box::new(stream) as _));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("a process hangs; it said: {}", stderr.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
    Ended { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Checks that a generated document is up to date. `WIFSHARE_BLESS=1` writes it.
pub(crate) fn same_or_blessed(path: &Path, made: &str) {
    if std::env::var("WIFSHARE_BLESS").is_ok_and(|bless| bless == "1") {
        std::fs::write(path, made).unwrap();
    }
    let there = std::fs::read_to_string(path).unwrap_or_default();
    assert!(there == made, "{} is not what it is made of; write it anew with WIFSHARE_BLESS=1", path.display());
}

/// Waits until the condition is true.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(self::files(&entry.path())),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}
