//! A gateway's memory, opened by another process of the same user before the gateway could protect itself.
#![cfg(target_os = "linux")]

use crate::job::{Ended, Job, WIFSHARE, eventually, finish, settings};

/// Runs a command, opens the memory of the gateway process as early and as often as possible, and prints how many of
/// these views show an access token after the gateway has answered a request.
const ATTACKER: &str = r#"
import glob, os, re, subprocess, sys, time
is_keeper, command = sys.argv[1] == "keeper", sys.argv[2:]
known = set(glob.glob("/proc/[0-9]*"))
child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def gateways():
    if not is_keeper:
        return [f"/proc/{child.pid}"]
    found = []
    for process in set(glob.glob("/proc/[0-9]*")) - known:
        try:
            if b"keeper" in open(f"{process}/cmdline", "rb").read().split(b"\0")[1:2]:
                found.append(process)
        except OSError:
            pass
    return found

views, end = [], time.monotonic() + (1.5 if is_keeper else 0.6)
while time.monotonic() < end and len(views) < 400:
    for process in gateways():
        try:
            views.append((os.open(f"{process}/mem", os.O_RDONLY), os.open(f"{process}/maps", os.O_RDONLY)))
        except OSError:
            pass
    time.sleep(0.001)
for line in child.stdout:
    if "asked" in line:
        break
found = 0
for mem, maps in views[:3] + views[len(views) // 2:][:1] + views[-3:]:
    text = os.pread(maps, 1 << 20, 0).decode()
    for start, stop, mode in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (\S+)", text, re.M):
        if mode.startswith("rw"):
            try:
                if b"sk-ant-oat01-" in os.pread(mem, min(int(stop, 16) - int(start, 16), 1 << 26), int(start, 16)):
                    found += 1
            except OSError:
                pass
print("views", len(views), "found", found)
open(os.environ["RUNNER_TEMP"] + "/over-" + str(os.getpid()), "w").close()
child.wait()
"#;

const ASK: &str = r#"
    curl -sS --fail-with-body -o /dev/null -H "x-api-key: $ANTHROPIC_API_KEY" "$ANTHROPIC_BASE_URL/v1/models" && echo asked
    while ! [ -e "$RUNNER_TEMP/over-$ATTACKER" ]; do sleep 0.05; done"#;

#[test]
fn memory_opened_at_gateway_start_shows_no_access_token() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "only root can become somebody else");
        return;
    }
    for (who, tries) in [("exec", 15), ("keeper", 4)] {
        std::thread::scope(|scope| {
            let attack = |_| {
                scope.spawn(move || {
                    let mut job = Job::new(settings());
                    let (directory, wifshare) = (job.path(""), job.path("bin"));
                    rustix::fs::chmod(&directory, rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
                    std::fs::hard_link(WIFSHARE, &wifshare).or_else(|_| std::fs::copy(WIFSHARE, &wifshare).map(drop)).unwrap();
                    job.set("W", wifshare.to_str().unwrap());
                    job.set("ASK", ASK);
                    let script = match who {
                        "exec" => r#"ATTACKER=$PPID exec "$W" exec --delivery gateway --api-key -- sh -c "$ASK""#,
                        _ => r#"set -e; ATTACKER=$PPID; eval "$("$W" start --delivery gateway --api-key --format env --watch-pid none)"; eval "$ASK"; "$W" stop --all"#,
                    };
                    let user = ["--reuid=65533", "--regid=65533", "--clear-groups"];
                    let attack = ["python3", "-c", ATTACKER, who, "sh", "-c", script];
                    let ended = finish(job.command("setpriv", &[&user[..], &attack].concat()).spawn().unwrap());
                    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
                    eventually("nothing is left", || job.files_with_secrets().is_empty());
                    ended.stdout
                })
            };
            let attacks: Vec<_> = (0..tries).map(attack).collect();
            for attack in attacks {
                let said = attack.join().unwrap();
                assert!(said.trim().ends_with(" found 0"), "{who}: {said}");
            }
        });
    }
}

/// Runs wifshare while the kernel refuses these system calls, like a container's filter.
fn refused(job: &Job, faults: &[&str], arguments: &[&str]) -> Option<Ended> {
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "strace is missing");
        return None;
    }
    let calls: Vec<&str> = faults.iter().filter_map(|fault| fault.split(':').next()).collect();
    let mut command = job.command("strace", &["-f", "-qq", "-o", "/dev/null", "-e"]);
    command.arg(format!("trace={}", calls.join(",")));
    for fault in faults {
        command.args(["-e", &format!("inject={fault}")]);
    }
    Some(finish(command.arg(WIFSHARE).args(arguments).spawn().unwrap()))
}

#[test]
fn gateway_that_cannot_hide_its_memory_is_refused() {
    let reads = "touch \"$RUNNER_TEMP/ran\"; cat /proc/$PPID/environ";
    for faults in [&["prctl:error=EPERM", "memfd_create:error=EPERM"][..], &["prctl:error=EINVAL"]] {
        for command in [
            &["exec", "--delivery", "gateway", "--", "sh", "-c", reads][..],
            &["gateway"],
            &["start", "--delivery", "gateway", "--watch-pid", "none"],
        ] {
            let job = Job::new(settings());
            let Some(ended) = refused(&job, faults, command) else { return };
            assert_eq!(ended.code, 125, "{command:?}: {}", ended.stderr);
            assert!(ended.stderr.contains("error[memory-not-hidden]"), "{command:?}: {}", ended.stderr);
            assert!(ended.stderr.contains("hint:") && !job.path("ran").exists(), "{command:?}: {}", ended.stderr);
            job.assert_exchanges(0);
        }
        // The other deliveries do not promise to hide memory.
        let job = Job::new(settings());
        let ended = refused(&job, faults, &["exec", "--", "true"]).unwrap();
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
        job.assert_exchanges(1);
    }
}

#[test]
fn gateway_re_executes_from_a_file_without_memfd() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let job = Job::new(settings());
    let show = "readlink /proc/$PPID/exe; stat -L -c %a:%h /proc/$PPID/exe; cat /proc/$PPID/comm";
    let arguments = ["exec", "--delivery", "gateway", "--", "sh", "-c", show];
    let Some(ended) = refused(&job, &["memfd_create:error=EPERM"], &arguments) else { return };
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[0].ends_with("(deleted)") && !lines[0].contains("memfd"), "{}", ended.stdout);
    assert_eq!(lines[1..], ["100:0", "wifshare"]);
}

#[test]
fn gateway_that_cannot_re_execute_warns() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // A gateway on its own starts no command, only its own copy. The first copy is in memory, the others are files.
    for (which, is_open) in [("1", false), ("1+", true)] {
        let job = Job::new(settings());
        let script = r#"
            strace -D -qq -o /dev/null -e trace=execve -e "inject=execve:error=EACCES:when=$WHICH" \
                "$WIFSHARE" gateway --unix "$RUNNER_TEMP/socket" 2> said > /dev/null &
            gateway=$!
            for i in $(seq 100); do [ -S socket ] && break; sleep 0.1; done
            stat -L -c %a:%h /proc/$gateway/exe
            kill $gateway
            wait $gateway; cat said"#;
        let mut command = job.command("sh", &["-c", script]);
        let ended = finish(command.env("WHICH", which).spawn().unwrap());
        let said = ended.stdout.split_once('\n').map(|(mode, said)| (mode == "100:0", said)).unwrap();
        assert_eq!((said.0, said.1.is_empty()), (!is_open, !is_open), "{}{}", ended.stdout, ended.stderr);
        if is_open {
            assert!(said.1.contains("warning: could not start again"), "{}", said.1);
            assert!(said.1.contains("Permission denied"), "{}", said.1);
        }
    }
}
