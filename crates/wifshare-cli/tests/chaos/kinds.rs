//! The kinds of processes in the job, and their commands.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::job::{Job, WIFSHARE};
use crate::subjects::Subjects;

/// Three identities that share one state directory and one ledger.
pub(crate) const KEYS: [&[&str]; 3] = [&[], &["--workspace-id", "default"], &["--workspace-id", "wrkspc_two"]];

/// A user that is not root.
const USER: &str = "65533";

const REQUEST_URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";

/// The home of that user, in the job's directory.
const HOME_OF_USER: &str = "home-of-user";

/// Sends requests through a gateway if there is one, and with the profile otherwise. Prints a rejection by the API and
/// continues.
const ASK: &str = r#"
    now() { LD_PRELOAD= date +%s.%N; }
    through_gateway() {
        LD_PRELOAD= curl -sS --fail --output /dev/null --max-time 60 "$ANTHROPIC_BASE_URL/v1/models" \
            -H "authorization: Bearer $ANTHROPIC_AUTH_TOKEN" -H "anthropic-version: 2023-06-01"
    }
    ask() {
        if [ "$ANTHROPIC_AUTH_TOKEN" ]; then through_gateway; else "$WIFSHARE" demo --child shared; fi ||
            echo "refused $(now)"
    }
    ask_often() { for i in $(seq "$1"); do ask; sleep 0.5; done; }
"#;

/// Prints the access token of a profile.
const SHOW: &str =
    r#"cat "$ANTHROPIC_CONFIG_DIR"/credentials/*.json | sed -n 's/.*"access_token": *"\([^"]*\)".*/\1/p'"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Prints an access token: from `token`, or from a child's environment or profile.
    Token,
    /// Sends requests to the API repeatedly: under `exec`, after `start` or through `wifshare gateway`.
    Run,
}

/// A process to start.
pub(crate) struct Start {
    pub(crate) command: Command,
    pub(crate) work: Work,
    pub(crate) described: String,
    /// The subject whose credential it must receive, if not the job's own.
    pub(crate) subject: Option<&'static str>,
    /// The error that it must end with, if it cannot receive a credential.
    pub(crate) refused_with: Option<&'static str>,
    /// A file with the process that serves this one, once there is one: a keeper's run directory, or a gateway's
    /// process.
    pub(crate) server: Option<PathBuf>,
}

impl Start {
    fn new(command: Command, work: Work, described: String) -> Start {
        Start { command, work, described, subject: None, refused_with: None, server: None }
    }
}

/// Starts a random kind of process. Kinds that need root are skipped for other users.
pub(crate) fn any(job: &Job, subjects: &Subjects, number: u64, random: &mut fastrand::Rng) -> Start {
    let is_root = rustix::process::geteuid().is_root();
    loop {
        return match random.u8(0..20) {
            0..8 => in_the_job(job, random),
            8..10 => keeper(job, number, random),
            10..12 => gateway(job, number, random),
            12..15 => of_a_subject(job, subjects, random),
            15..17 => in_odd_places(job, number, random),
            17..19 if is_root => as_a_user(job, false, random),
            19 if is_root && subjects.has_user_namespaces => as_a_user(job, true, random),
            _ => continue,
        };
    }
}

fn a_delivery(random: &mut fastrand::Rng) -> &'static str {
    ["profile", "federation", "gateway"][random.usize(0..3)]
}

/// `token` and `exec` of the three identities, as root or as the user who runs the tests.
fn in_the_job(job: &Job, random: &mut fastrand::Rng) -> Start {
    let key = KEYS[random.usize(0..KEYS.len())];
    let (work, mut arguments, script) = match random.u8(0..10) {
        0..5 => (Work::Token, vec!["token"], None),
        5 => {
            let script = r#"printf '%s\n' "$ANTHROPIC_AUTH_TOKEN""#.to_owned();
            (Work::Token, vec!["exec", "--delivery", "environment"], Some(script))
        }
        6 => {
            let script = format!(
                r#"{ASK} ask; "$WIFSHARE" exec -- "$WIFSHARE" exec -- "$WIFSHARE" demo --child shared || echo "refused $(now)"
                "$WIFSHARE" token > /dev/null || echo "refused $(now)"; ask"#
            );
            (Work::Run, vec!["exec"], Some(script))
        }
        kind => {
            let asks = if kind == 9 { random.u32(12..=24) } else { random.u32(1..=3) };
            let script = format!("{ASK} ask_often {asks}");
            (Work::Run, vec!["exec", "--delivery", a_delivery(random)], Some(script))
        }
    };
    arguments.extend(key);
    if let Some(script) = &script {
        arguments.extend(["--", "sh", "-c", script]);
    }
    Start::new(job.wifshare(&arguments), work, arguments.join(" "))
}

/// A job with several commands and its own keeper, which may be killed. The job is not in the keeper's process group,
/// so the keeper must notice its end.
fn keeper(job: &Job, number: u64, random: &mut fastrand::Rng) -> Start {
    let identity = format!("--workspace-id wrkspc_job{number}");
    let (delivery, asks) = (a_delivery(random), random.u32(1..=3));
    let script = format!(
        r#"keeper=$("$WIFSHARE" start --delivery {delivery} {identity} --watch-pid $$ --format env) || exit
        (eval "$keeper"; echo "$WIFSHARE_RUN" > server-{number}; ask_often {asks})
        (eval "$keeper"; errors=$("$WIFSHARE" token 2>&1 > /dev/null) && exit
         case $errors in *"error[run-over]"*) echo "over $(now)" ;; *) echo "unserved $(now) $errors" ;; esac)
        "$WIFSHARE" stop {identity}"#
    );
    served_by(job, number, script)
}

/// A job with its own gateway, which may be killed.
fn gateway(job: &Job, number: u64, random: &mut fastrand::Rng) -> Start {
    let identity = KEYS[random.usize(0..KEYS.len())].join(" ");
    let asks = random.u32(1..=3);
    let script = format!(
        r#""$WIFSHARE" gateway {identity} > address-{number} 2> gateway-errors-{number} & gateway=$!
        while kill -0 $gateway && ! grep -q ANTHROPIC_AUTH_TOKEN address-{number}; do sleep 0.05; done
        grep -q ANTHROPIC_AUTH_TOKEN address-{number} || {{ wait $gateway; exit; }}
        echo "$gateway" > server-{number}
        (. ./address-{number}; ask_often {asks})
        rm address-{number}
        kill $gateway; wait $gateway"#
    );
    served_by(job, number, script)
}

fn served_by(job: &Job, number: u64, script: String) -> Start {
    let server = job.path(&format!("server-{number}"));
    let command = job.command("sh", &["-c", &format!("{ASK} {script}")]);
    Start { server: Some(server), ..Start::new(command, Work::Run, script) }
}

/// One of two subjects. Their jobs have the same user, rule, command and state directory.
fn of_a_subject(job: &Job, subjects: &Subjects, random: &mut fastrand::Rng) -> Start {
    let subject = random.choice(Subjects::ALL).expect("there are two");
    let command = subjects.identity_command();
    let mut arguments = vec!["token", "--identity-command", &command];
    if random.bool() {
        let delivery = ["profile", "environment"][random.usize(0..2)];
        let script = if delivery == "profile" { SHOW } else { r#"printf '%s\n' "$ANTHROPIC_AUTH_TOKEN""# };
        arguments[0] = "exec";
        arguments.extend(["--delivery", delivery, "--", "sh", "-c", script]);
    }
    let mut start = Start::new(job.wifshare(&arguments), Work::Token, format!("{subject}: {}", arguments.join(" ")));
    without_a_ci(&mut start.command).env("SUBJECT", subject);
    Start { subject: Some(subject), ..start }
}

/// Removes the variables of a CI that identify a job.
fn without_a_ci(command: &mut Command) -> &mut Command {
    command.env_remove(REQUEST_URL).env_remove("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
}

/// Uses a home, a temporary directory and thus a state directory whose names are not UTF-8. Only `start` rejects them:
/// later steps find its run through variables and JSON, which are text.
fn in_odd_places(job: &Job, number: u64, random: &mut fastrand::Rng) -> Start {
    let mut start = match random.u8(0..4) {
        0..2 => in_the_job(job, random),
        2 => Start { refused_with: Some("path-not-text"), ..keeper(job, number, random) },
        _ => gateway(job, number, random),
    };
    move_to_odd_places(job, &mut start.command);
    start.described = format!("in a directory that is not UTF-8: {}", start.described);
    start
}

fn move_to_odd_places(job: &Job, command: &mut Command) {
    let place = job.path(".").join(OsStr::from_bytes(b"odd-\xff\xfe"));
    std::fs::create_dir_all(&place).expect("the job's directory is writable");
    command.env("RUNNER_TEMP", &place).env("HOME", &place);
    command.env(REQUEST_URL, request_url_of(job, "odd"));
}

/// A process with another state directory is another caller of the identity endpoint, which repeats a token only to the
/// same caller. Single use is guaranteed within one state directory.
fn request_url_of(job: &Job, caller: &str) -> String {
    format!("{}&caller={caller}", job.sandbox.identity_token_request_url())
}

/// Runs as another user in the same temporary directory, or as root of a user namespace of that user.
fn as_a_user(job: &Job, as_root_of_a_namespace: bool, random: &mut fastrand::Rng) -> Start {
    let start = in_the_job(job, random);
    let user = if as_root_of_a_namespace { "root of a user namespace" } else { "a plain user" };
    let command = of_a_user(job, as_root_of_a_namespace, &start.command);
    Start { command, described: format!("{user}: {}", start.described), ..start }
}

fn of_a_user(job: &Job, as_root_of_a_namespace: bool, of_ours: &Command) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
    if as_root_of_a_namespace {
        command.args(["unshare", "--user", "--map-root-user"]);
    }
    // Only the user's processes load the library that steps the clock, not root's processes that become them: it names
    // its semaphore after the process.
    command.args(["env", &format!("LD_PRELOAD={}", job.variable("LD_PRELOAD").unwrap_or_default())]);
    command.arg(job.variable("WIFSHARE").expect("every job has it")).args(of_ours.get_args());
    let variables = of_ours.get_envs().filter_map(|(name, value)| Some((name, value?)));
    command
        .env_clear()
        .envs(variables)
        .env_remove("LD_PRELOAD")
        .env("HOME", job.path(HOME_OF_USER))
        // The root of a namespace finds the real root's state in the job's directory, and uses the next location.
        .env("TMPDIR", job.path(HOME_OF_USER))
        .current_dir(job.path("."));
    command.env(REQUEST_URL, request_url_of(job, if as_root_of_a_namespace { "namespace" } else { "user" }));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Prepares the job for another user: a directory as open as a runner's temporary directory, a home, and the program in
/// a place that every user can read.
pub(crate) fn let_users_in(job: &mut Job, subjects: &Subjects) {
    use rustix::fs::{Mode, chmod};

    let home = job.path(HOME_OF_USER);
    std::fs::create_dir(&home).expect("a new job has none");
    job.set("WIFSHARE", &subjects.copy(WIFSHARE));
    chmod(job.path("."), Mode::from_raw_mode(0o1777)).expect("the directory is ours");
    // Only root can change the owner.
    let _ = std::os::unix::fs::chown(home, USER.parse().ok(), None);
}

/// Runs once more for each identity, subject, location and user. The files that remain afterwards are leaks.
pub(crate) fn last_of_each(job: &Job, subjects: &Subjects, bereft: &[u64]) -> Vec<Command> {
    let run = |options: &[&str]| job.wifshare(&[&["exec"], options, &["--", "true"]].concat());
    let of_jobs = bereft.iter().map(|number| format!("wrkspc_job{number}")).collect::<Vec<_>>();
    let of_jobs: Vec<[&str; 2]> = of_jobs.iter().map(|id| ["--workspace-id", id.as_str()]).collect();
    let of_jobs = of_jobs.iter().map(|options| &options[..]);
    let mut last = Vec::new();
    for options in KEYS.into_iter().chain(of_jobs) {
        let (ours, mut odd) = (run(options), run(options));
        move_to_odd_places(job, &mut odd);
        if rustix::process::geteuid().is_root() {
            last.push(of_a_user(job, false, &ours));
            if subjects.has_user_namespaces {
                last.push(of_a_user(job, true, &ours));
            }
        }
        last.extend([ours, odd]);
    }
    for subject in Subjects::ALL {
        let mut command = run(&["--identity-command", &subjects.identity_command()]);
        without_a_ci(&mut command).env("SUBJECT", subject);
        last.push(command);
    }
    last
}
