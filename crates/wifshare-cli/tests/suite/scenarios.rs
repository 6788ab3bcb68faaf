//! The folders in `scenarios/`: a situation, and the output of wifshare. `scenarios/README.md` describes a folder. This
//! file runs each of them with the real binary and its own mock server.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use serde_json::Value;
use wifshare_sandbox::{Sandbox, Settings};

use crate::job::{Ended, WIFSHARE, files, finish};

/// Returns the name of this user's state directory.
fn state_directory() -> String {
    format!("wifshare-{}", rustix::process::geteuid().as_raw())
}

/// The least number of folders. A folder that is lost by mistake is noticed.
const FEWEST: usize = 280;

/// One case, as written in `scenario.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// The situation and the expected behaviour, in one sentence.
    why: String,
    arguments: Vec<String>,
    #[serde(default)]
    settings: Option<Value>,
    #[serde(default)]
    environment: Changes,
    /// Created first, in order.
    #[serde(default)]
    files: Vec<FileToMake>,
    /// Run after that, in order.
    #[serde(default)]
    before: Vec<Before>,
    exit: i32,
    /// Counters of the mock server, compared exactly.
    #[serde(default)]
    counts: BTreeMap<String, Value>,
    /// The files that contain a secret afterwards. No other file may contain one.
    #[serde(default)]
    left: Vec<String>,
    /// Where the output may contain a secret.
    #[serde(default)]
    shows: Vec<Show>,
    #[serde(default)]
    only_as: Option<User>,
    /// The file system type that every directory reports, changed with strace.
    #[serde(default)]
    file_system: Option<FileSystem>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FileSystem {
    Nfs,
}

/// Changes to the environment of a well-configured CI job.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Changes {
    set: BTreeMap<String, String>,
    unset: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToMake {
    path: String,
    #[serde(default)]
    kind: Kind,
    /// In octal. The default is 0600 or 0700.
    #[serde(default)]
    mode: Option<String>,
    /// The content of a regular file.
    #[serde(default)]
    text: String,
    /// Appends to an existing regular file.
    #[serde(default)]
    append: bool,
    /// The target of a symbolic link.
    #[serde(default)]
    target: String,
    /// A user id. Only root can change the owner of a file.
    #[serde(default)]
    owner: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Regular,
    Directory,
    Symlink,
    Fifo,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Before {
    /// An earlier call of wifshare.
    Run(EarlierRun),
    /// A file that another process creates meanwhile.
    File(FileToMake),
    /// A file or directory that another process removes meanwhile.
    Remove(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EarlierRun {
    arguments: Vec<String>,
    #[serde(default)]
    environment: Changes,
    #[serde(default)]
    exit: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Show {
    /// The access token on standard output, where `token` prints it.
    Stdout,
    /// Both tokens in GitHub's `::add-mask::` lines on standard error.
    Masks,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum User {
    Root,
}

#[test]
fn every_scenario_ends_as_described() {
    let folders = folders();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        // A scenario mostly waits, so four of them are a light load on two cores.
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(folder) = folders.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let complaints = std::panic::catch_unwind(|| run(folder))
                        .unwrap_or_else(|_| vec!["the scenario cannot be run; the panic is above".to_owned()]);
                    if !complaints.is_empty() {
                        failures.lock().unwrap().insert(folder.clone(), complaints);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let report: String = failures
        .iter()
        .map(|(folder, complaints)| format!("\nscenarios/{}\n{}\n", name(folder), complaints.join("\n")))
        .collect();
    assert!(failures.is_empty(), "{} of {} scenarios failed:\n{report}", failures.len(), folders.len());
    let is_whole = std::env::var_os("WIFSHARE_SCENARIO").is_none();
    assert!(!is_whole || folders.len() >= FEWEST, "{} scenarios are there, and {FEWEST} were", folders.len());
}

#[test]
fn unknown_scenario_key_is_refused() {
    let good = serde_json::json!({"why": "w", "arguments": [], "exit": 0});
    assert!(serde_json::from_value::<Scenario>(good.clone()).is_ok());
    for (key, value) in [
        ("exits", serde_json::json!(0)),
        ("stderr", serde_json::json!("any")),
        ("environment", serde_json::json!({"sets": {}})),
        ("files", serde_json::json!([{"path": "a", "owned_by": 1}])),
        ("before", serde_json::json!([{"run": {"arguments": [], "stderr": "any"}}])),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        assert!(serde_json::from_value::<Scenario>(bad).is_err(), "{key}");
    }
}

/// Returns every folder, or those whose name contains `WIFSHARE_SCENARIO`.
fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let wanted = std::env::var("WIFSHARE_SCENARIO").unwrap_or_default();
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir() && name(path).contains(&wanted)).collect();
    folders.sort();
    folders
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}

/// Runs one scenario. Returns the differences from what it expects.
fn run(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("scenario.json")).expect("a folder holds a scenario.json");
    let scenario: Scenario = match serde_json::from_str(&text) {
        Ok(scenario) => scenario,
        Err(error) => return vec![format!("  scenario.json: {error}")],
    };
    if scenario.only_as == Some(User::Root) && !rustix::process::geteuid().is_root() {
        eprintln!("scenarios/{} needs root, and was left out", name(folder));
        return Vec::new();
    }
    if scenario.file_system.is_some() && strace().is_none() {
        assert!(std::env::var_os("CI").is_none(), "strace is missing");
        eprintln!("scenarios/{} needs strace, and was left out", name(folder));
        return Vec::new();
    }
    let mut world = World::new(&scenario);
    let mut complaints = Vec::new();
    if scenario.why.trim().is_empty() {
        complaints.push("  why: a sentence was expected".to_owned());
    }
    for file in &scenario.files {
        world.make(file);
    }
    for before in &scenario.before {
        match before {
            Before::File(file) => world.make(file),
            Before::Remove(path) => {
                let path = world.path(path);
                let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
                removed.unwrap();
            }
            Before::Run(earlier) => {
                let ended = world.call(&earlier.arguments, &earlier.environment);
                let mut shows = scenario.shows.clone();
                if earlier.arguments.first().is_some_and(|command| command == "token") {
                    shows.push(Show::Stdout);
                }
                complaints.extend(world.secrets_in(&ended, &shows));
                if ended.code != earlier.exit {
                    complaints.push(format!(
                        "  before, {:?}: exit code {} was expected, and it was {}:\n{}",
                        earlier.arguments, earlier.exit, ended.code, ended.stderr
                    ));
                }
            }
        }
    }
    let ended = world.call(&scenario.arguments, &Changes::default());
    complaints.extend(world.secrets_in(&ended, &scenario.shows));
    if ended.code != scenario.exit {
        complaints.push(format!("  exit: {} was expected, and it was {}", scenario.exit, ended.code));
    }
    complaints.extend(expect(&folder.join("stdout"), &world.told(&ended.stdout)));
    complaints.extend(expect(&folder.join("stderr"), &world.told(&ended.stderr)));
    complaints.extend(world.miscounted(&scenario.counts));
    let left = world.files_with_secrets();
    let mut expected = scenario.left.clone();
    expected.sort();
    if left != expected {
        complaints.push(format!("  left: {expected:?} were to hold a secret, and these do: {left:?}"));
    }
    complaints
}

/// The job of a scenario: a directory, a mock server and an environment.
struct World {
    sandbox: Sandbox,
    // Keeps the directory until it is dropped.
    _holder: tempfile::TempDir,
    directory: PathBuf,
    variables: BTreeMap<String, String>,
    /// The values of the placeholders in arguments, variables and files.
    values: BTreeMap<&'static str, String>,
    file_system: Option<FileSystem>,
}

impl World {
    fn new(scenario: &Scenario) -> World {
        let settings = scenario.settings.clone().unwrap_or_else(|| serde_json::json!({}));
        let settings: Settings = serde_json::from_value(settings).expect("settings as the mock server knows them");
        let sandbox = Sandbox::start(settings).unwrap();
        let holder = tempfile::tempdir().unwrap();
        let directory = holder.path().canonicalize().unwrap();
        let mut variables: BTreeMap<String, String> = sandbox.environment().into_iter().collect();
        let home = directory.join("home");
        fs::create_dir(&home).unwrap();
        for (name, value) in [
            ("HOME", home.to_str().unwrap()),
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("RUNNER_TEMP", directory.to_str().unwrap()),
            ("WIFSHARE", WIFSHARE),
        ] {
            variables.insert(name.to_owned(), value.to_owned());
        }
        let mut world = World {
            sandbox,
            _holder: holder,
            directory,
            variables,
            values: BTreeMap::new(),
            file_system: scenario.file_system,
        };
        world.apply(&scenario.environment);
        world
    }

    fn apply(&mut self, changes: &Changes) {
        for name in &changes.unset {
            assert!(self.variables.remove(name).is_some(), "{name} was not set to begin with");
        }
        for (name, value) in &changes.set {
            let value = self.filled(value);
            self.variables.insert(name.clone(), value);
        }
    }

    /// Runs wifshare to its end, with these changes for this call only.
    fn call(&mut self, arguments: &[String], changes: &Changes) -> Ended {
        let before = self.variables.clone();
        self.apply(changes);
        let arguments: Vec<String> = arguments.iter().map(|argument| self.filled(argument)).collect();
        let mut command = match self.file_system {
            None => Command::new(WIFSHARE),
            Some(FileSystem::Nfs) => {
                // The first word of the result of statfs(2) is the type: NFS_SUPER_MAGIC.
                let mut command = Command::new(strace().unwrap());
                command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=statfs,fstatfs"]);
                command.args(["-e", "inject=statfs,fstatfs:poke_exit=@arg2=6969000000000000", WIFSHARE]);
                command
            }
        };
        command.args(arguments).env_clear().envs(&self.variables).current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.variables = before;
        finish(command.spawn().unwrap())
    }

    fn path(&mut self, path: &str) -> PathBuf {
        let path = self.filled(path);
        self.directory.join(path)
    }

    fn make(&mut self, file: &FileToMake) {
        let path = self.path(&file.path);
        let text = self.filled(&file.text);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap()).unwrap();
        let default = match file.kind {
            Kind::Directory => {
                fs::create_dir(&path).unwrap();
                0o700
            }
            Kind::Regular => {
                let mut options = fs::OpenOptions::new();
                options.write(true).create(true).mode(0o600).append(file.append).truncate(!file.append);
                options.open(&path).unwrap().write_all(text.as_bytes()).unwrap();
                0o600
            }
            Kind::Fifo => {
                assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
                0o600
            }
            Kind::Symlink => {
                let target = self.path(&file.target);
                symlink(target, &path).unwrap();
                return;
            }
        };
        let mode = file.mode.as_ref().map_or(default, |mode| u32::from_str_radix(mode, 8).expect("octal"));
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        if file.owner.is_some() {
            chown(&path, file.owner, None).unwrap();
        }
    }

    /// Replaces the placeholders in a text of a scenario.
    fn filled(&mut self, text: &str) -> String {
        let mut filled = text.to_owned();
        for name in PLACEHOLDERS {
            if filled.contains(name) {
                let value = match self.values.get(name) {
                    Some(value) => value.clone(),
                    None => self.value(name),
                };
                filled = filled.replace(name, &value);
                self.values.insert(name, value);
            }
        }
        filled
    }

    fn value(&self, placeholder: &str) -> String {
        let issue = |edit: fn(&mut serde_json::Map<String, Value>)| self.sandbox.issue_identity_token_with(edit);
        match placeholder {
            "[DIRECTORY]" => self.directory.to_str().unwrap().to_owned(),
            "[STATE]" => self.directory.join(state_directory()).to_str().unwrap().to_owned(),
            "[KEY]" => self.key().expect("an earlier run made one key's directory"),
            "[WIFSHARE]" => WIFSHARE.to_owned(),
            "[PORT]" => self.port(),
            "[IDENTITY-TOKEN]" | "[ANOTHER-IDENTITY-TOKEN]" => issue(|_| {}),
            "[EXPIRED-IDENTITY-TOKEN]" => issue(|claims| {
                claims.insert("exp".to_owned(), 1_000_000.into());
            }),
            "[OVERSIZED-IDENTITY-TOKEN]" => issue(|claims| {
                claims.insert("padding".to_owned(), "a".repeat(16_384).into());
            }),
            "[IDENTITY-TOKEN-OF-A-FORK]" => issue(|claims| {
                claims.insert("sub".to_owned(), "repo:somebody/else:pull_request".into());
            }),
            "[IDENTITY-TOKEN-FOR-A-VAULT]" => issue(|claims| {
                claims.insert("aud".to_owned(), "https://vault.example".into());
            }),
            "[REQUEST-TOKEN]" => self.sandbox.identity_token_request_token(),
            "[VERY-LONG]" => "x".repeat(20_000),
            other => unreachable!("{other} is not in the list"),
        }
    }

    fn port(&self) -> String {
        self.sandbox.base_url().rsplit(':').next().unwrap().to_owned()
    }

    /// Returns the only directory in the state that has the form of a key.
    fn key(&self) -> Option<String> {
        let entries = fs::read_dir(self.directory.join(state_directory())).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| is_key(name)).min()
    }

    /// Replaces the parts of the output that vary between runs with placeholders.
    fn told(&self, text: &str) -> String {
        let mut told = text.to_owned();
        for secret in self.sandbox.secrets() {
            let placeholder = match &secret {
                secret if secret.starts_with("sk-ant-") => "[TOKEN]",
                secret if secret.starts_with("sandbox-request-token-") => "[REQUEST-TOKEN]",
                _ => "[IDENTITY-TOKEN]",
            };
            told = told.replace(&secret, placeholder);
        }
        let directory = self.directory.to_str().unwrap();
        told = told.replace(&format!("{directory}/{}", state_directory()), "[STATE]").replace(directory, "[DIRECTORY]");
        told = told.replace(WIFSHARE, "[WIFSHARE]");
        // A key's directory, in any state directory.
        told = told.split('/').map(|part| if is_key(part) { "[KEY]" } else { part }).collect::<Vec<_>>().join("/");
        told = told.replace(&format!("127.0.0.1:{}", self.port()), "127.0.0.1:[PORT]");
        let digit: fn(char) -> bool = |c| c.is_ascii_digit();
        let decimal: fn(char) -> bool = |c| c.is_ascii_digit() || c == '.';
        let moment: fn(char) -> bool = |c| c.is_ascii_digit() || "-:TZ".contains(c);
        let hexadecimal: fn(char) -> bool = |c| c.is_ascii_hexdigit();
        let name: fn(char) -> bool = |c| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        for (before, varies, after, placeholder) in [
            ("req_", hexadecimal, "", "[REQUEST-ID]"),
            ("/runs/", name, "", "[RUN]"),
            ("/.new-", name, "", "[RANDOM]"),
            ("/config-", hexadecimal, "", "[FINGERPRINT]"),
            ("pid ", digit, "", "[PID]"),
            (" in ", decimal, " s", "[SECONDS]"),
            (" ", digit, " s ago", "[SECONDS]"),
            (" for ", digit, " s more", "[SECONDS]"),
            (" since ", digit, " s", "[SECONDS]"),
            (" ", digit, " s left", "[SECONDS]"),
            (" ", digit, " s ahead", "[SECONDS]"),
            (" ", digit, " s behind", "[SECONDS]"),
            (" ", digit, " s in the future", "[SECONDS]"),
            (" on file system ", name, "", "[KIND]"),
            (" good for ", digit, " s", "[SECONDS]"),
            ("\"Expiration\":\"", moment, "", "[MOMENT]"),
            ("\"expires_in\":", digit, "", "[SECONDS]"),
            ("\"expires_at\":", digit, "", "[MOMENT]"),
        ] {
            told = with_placeholder(&told, before, varies, after, placeholder);
        }
        told.replace("req_[REQUEST-ID]", "[REQUEST-ID]")
    }

    /// Returns the places with a secret that must not contain one.
    fn secrets_in(&self, ended: &Ended, shows: &[Show]) -> Vec<String> {
        let masked = |line: &&str| shows.contains(&Show::Masks) && line.starts_with("::add-mask::");
        let stderr: String = ended.stderr.lines().filter(|line| !masked(line)).collect::<Vec<_>>().join("\n");
        let mut complaints = Vec::new();
        for secret in self.sandbox.secrets() {
            let is_access_token = secret.starts_with("sk-ant-");
            if ended.stdout.contains(&secret) && !(is_access_token && shows.contains(&Show::Stdout)) {
                complaints.push(format!("  stdout holds a secret: {}", self.told(&secret)));
            }
            if stderr.contains(&secret) {
                complaints.push(format!("  stderr holds a secret: {}", self.told(&secret)));
            }
        }
        complaints
    }

    fn files_with_secrets(&self) -> Vec<String> {
        let secrets = self.sandbox.secrets();
        let holds = |path: &PathBuf| {
            let bytes = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            secrets.iter().any(|secret| text.contains(secret.as_str()))
        };
        let found = files(&self.directory).into_iter().filter(holds);
        let mut found: Vec<String> =
            found.map(|path| self.told(path.to_str().unwrap()).trim_start_matches("[DIRECTORY]/").to_owned()).collect();
        found.sort();
        found
    }

    /// Returns the counters that differ from the expected ones. No identity token may be sent twice unless the scenario
    /// says so.
    fn miscounted(&self, expected: &BTreeMap<String, Value>) -> Vec<String> {
        let counters = serde_json::to_value(self.sandbox.counters()).unwrap();
        let mut all = expected.clone();
        for always in ["assertions_repeated", "identity_tokens_reused"] {
            all.entry(always.to_owned()).or_insert(0.into());
        }
        all.iter()
            .filter(|(name, value)| counters.get(name.as_str()) != Some(value))
            .map(|(name, value)| match counters.get(name.as_str()) {
                Some(counted) => format!("  counts: {name} was to be {value}, and it is {counted}"),
                None => format!("  counts: there is no counter {name}"),
            })
            .collect()
    }
}

/// Returns the path of strace. A scenario may have a PATH without it.
fn strace() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join("strace")).find(|path| path.is_file())
}

/// The placeholders in the arguments, variables and files of a scenario.
const PLACEHOLDERS: [&str; 13] = [
    "[DIRECTORY]",
    "[STATE]",
    "[KEY]",
    "[WIFSHARE]",
    "[PORT]",
    "[IDENTITY-TOKEN]",
    "[ANOTHER-IDENTITY-TOKEN]",
    "[EXPIRED-IDENTITY-TOKEN]",
    "[OVERSIZED-IDENTITY-TOKEN]",
    "[IDENTITY-TOKEN-OF-A-FORK]",
    "[IDENTITY-TOKEN-FOR-A-VAULT]",
    "[REQUEST-TOKEN]",
    "[VERY-LONG]",
];

fn is_key(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Replaces the varying text between these two texts.
fn with_placeholder(text: &str, before: &str, varies: fn(char) -> bool, after: &str, placeholder: &str) -> String {
    let mut replaced = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(before) {
        let (head, tail) = rest.split_at(at + before.len());
        replaced.push_str(head);
        let end = tail.find(|c| !varies(c)).unwrap_or(tail.len());
        if end > 0 && tail[end..].starts_with(after) {
            replaced.push_str(placeholder);
            rest = &tail[end..];
        } else {
            rest = tail;
        }
    }
    replaced + rest
}

/// Compares with a file of the folder. Without a file, no output is expected. `WIFSHARE_BLESS=1` writes the file.
fn expect(path: &Path, told: &str) -> Option<String> {
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == told {
        return None;
    }
    if std::env::var("WIFSHARE_BLESS").is_ok_and(|bless| bless == "1") {
        if told.is_empty() {
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, told).unwrap();
        }
        return None;
    }
    Some(format!("  {}:\n{}", name(path), difference(&expected, told)))
}

/// Returns the lines that differ, without the common lines at the beginning and at the end.
fn difference(expected: &str, told: &str) -> String {
    let (expected, told): (Vec<&str>, Vec<&str>) = (expected.split('\n').collect(), told.split('\n').collect());
    let shorter = expected.len().min(told.len());
    let begin = (0..shorter).find(|line| expected[*line] != told[*line]).unwrap_or(shorter);
    let same = |back: &usize| expected[expected.len() - 1 - back] == told[told.len() - 1 - back];
    let end = (0..shorter - begin).take_while(same).count();
    let lines = |sign: &str, lines: &[&str]| -> Vec<String> {
        lines[begin..lines.len() - end].iter().map(|line| format!("    {sign} {line}")).collect()
    };
    [lines("-", &expected), lines("+", &told)].concat().join("\n")
}
