"""The paths of wifshare, each compared with its alternatives and with its lower limit. There is one function per path.
The first line of its docstring is the heading of its table."""

import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from . import measure
from .ground import AUDIENCE, CLIENTS, HOT, QUIET, ROOT, WIFSHARE, credential_file, has_option
from .measure import Failed, Times, in_turn, once, text, until_output


@dataclass
class Table:
    """The result of one path: rows of text, and the goal with whether it was met (None: not measured)."""

    columns: list
    rows: list = field(default_factory=list)
    goals: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def times(self, name, times, base=None):
        low, high = times.quartiles
        ratio = ""
        if base is not None and base is not times:
            least, most = times.ratio_between(base)
            ratio = f"{times.ratio(base):.2f} ({least:.2f}–{most:.2f})"
        cpu = text(times.cpu) if times.cpu else ""
        self.rows.append([name, text(times.median), f"{text(low)}–{text(high)}", ratio, cpu, str(len(times.seconds))])

    def goal(self, what, measured, met):
        self.goals.append((what, measured, met))


def timed(base):
    return Table(["", "median", "quartiles", f"ratio to {base} (95 %)", "processor time", "rounds"])


def client(name):
    path = CLIENTS / name
    return str(path) if path.exists() else None


def token(ground, effort):
    """Warm `wifshare token`"""
    ground.turn()
    environment = ground.environment()
    with ground.run(environment) as child:
        file = credential_file(environment)
        times = in_turn(
            effort(300),
            cat=lambda: once(["cat", file], environment),
            token=lambda: once([WIFSHARE, "token"], environment),
            jq=lambda: once(["jq", "-r", ".access_token", file], environment),
        )
        table = timed("cat")
        table.times("`cat` of the credential file (the limit)", times["cat"], times["cat"])
        table.times("**`wifshare token`**", times["token"], times["cat"])
        table.times("`jq -r .access_token`", times["jq"], times["cat"])
        for name, words in ("ask-typescript", "TypeScript SDK"), ("ask-python", "Python SDK"):
            if program := client(name):
                sdk = {**child, **QUIET, "PATH": os.environ["PATH"]}
                taken = in_turn(max(3, effort(5)), sdk=lambda: once([program], sdk))["sdk"]
                table.times(f"{words}: start, read the same credential, one request on loopback", taken, times["cat"])
            else:
                table.notes.append(f"{words}: not installed; tests/clients/install does that.")
    ratio = times["token"].ratio(times["cat"])
    table.goal("at most 1.5 × `cat`", f"{ratio:.2f} ×", ratio <= 1.5)
    return table


def identity(ground, effort):
    """Warm `wifshare token` with proof of the identity"""
    ground.turn()
    named, with_file, with_command = ground.environment(), ground.with_token_file(), ground.with_token_file()
    by_command = [WIFSHARE, "token", "--identity-command", f"cat {with_command.pop('ANTHROPIC_IDENTITY_TOKEN_FILE')}"]
    file = ground.place("cat") / "credential"
    file.write_text("x" * 300)
    times = in_turn(
        effort(300),
        cat=lambda: once(["cat", str(file)], named),
        named=lambda: once([WIFSHARE, "token"], named),
        file=lambda: once([WIFSHARE, "token"], with_file),
        command=lambda: once(by_command, with_command),
    )
    table = timed("the named job")
    table.times("`cat` of a file of the same size", times["cat"])
    table.times("no proof: the CI names the job, and the identity key is enough", times["named"], times["named"])
    table.times("a token file is read and decoded", times["file"], times["named"])
    table.times("`--identity-command 'cat FILE'` is run", times["command"], times["named"])
    return table


def execute(ground, effort):
    """Warm `wifshare exec -- true`"""
    ground.turn()
    environment = ground.environment()
    with contextlib.ExitStack() as stack:
        stack.enter_context(ground.run(environment))
        things = {
            "true": lambda: once(["true"], environment),
            "env": lambda: once(["env", "true"], environment),
            "timeout": lambda: once(["timeout", "60", "true"], environment),
            "wifshare": lambda: once([WIFSHARE, "exec", "--", "true"], environment),
        }
        if os.path.isdir("/dev/shm"):
            state = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
            memory = ground.environment(WIFSHARE_STATE_DIR=str(Path(state) / "state"))
            stack.enter_context(ground.run(memory))
            things["memory"] = lambda: once([WIFSHARE, "exec", "--", "true"], memory)
        times = in_turn(effort(200), **things)
        warm = peak(["exec"], environment)
    cold = peak(["exec"], ground.environment())
    table = timed("true")
    table.times("`true` (the limit)", times["true"], times["true"])
    table.times("`env true`", times["env"], times["true"])
    table.times("`timeout 60 true`", times["timeout"], times["true"])
    table.times("**`wifshare exec -- true`**", times["wifshare"], times["true"])
    if "memory" in times:
        table.times("the same, its state on a file system in memory", times["memory"], times["true"])
    added = times["wifshare"].median - times["true"].median
    table.goal("at most 3 ms added", text(added), added <= 0.003)
    largest = max(warm, cold)
    shown = f"{warm / 1024:.1f} MiB warm, {cold / 1024:.1f} MiB with its exchange"
    table.goal("supervisor at most 8 MiB peak", shown, largest <= 8 * 1024)
    table.notes.append("The peak is the supervisor's VmHWM, read by its child. The exchange is one without TLS, on loopback.")
    return table


def peak(arguments, environment):
    """Returns the peak memory of a command's supervisor in KiB, as its child sees it."""
    argv = [WIFSHARE, *arguments, "--", "sh", "-c", "grep VmHWM /proc/$PPID/status"]
    shown = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout
    return int(shown.split()[1])


def cold(ground, effort):
    """From nothing to a credential: `wifshare token` without any state"""
    table = Table(["latency of each of the two requests", "two round trips", "`curl`, twice", "**`wifshare token`**", "ratio to the round trips (95 %)", "rounds"])
    for latency, rounds in (50, 15), (200, 8), (1000, 3):
        ground.turn(exchange_latency_ms=latency, identity_token_latency_ms=latency)
        work = ground.place("curl")
        environment = ground.environment()
        states = iter(range(10**6))

        def wifshare():
            state = str(work / f"state-{next(states)}")
            return once([WIFSHARE, "token"], {**environment, "WIFSHARE_STATE_DIR": state})

        times = in_turn(
            max(2, effort(rounds)),
            bare=lambda: round_trips(environment),
            curl=lambda: curl_twice(environment, work),
            wifshare=wifshare,
        )
        bare, ours = times["bare"], times["wifshare"]
        least, most = ours.ratio_between(bare)
        ratio = ours.ratio(bare)
        table.rows.append(
            [f"{latency} ms", text(bare.median), text(times["curl"].median), text(ours.median), f"{ratio:.3f} ({least:.3f}–{most:.3f})", str(len(ours.seconds))]
        )
        table.goal(f"at most 1.05 × the round trips, at {latency} ms", f"{ratio:.3f} ×", ratio <= 1.05)
    return table


def grant(environment, assertion):
    return {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": assertion,
        "federation_rule_id": environment["ANTHROPIC_FEDERATION_RULE_ID"],
        "organization_id": environment["ANTHROPIC_ORGANIZATION_ID"],
        "service_account_id": environment["ANTHROPIC_SERVICE_ACCOUNT_ID"],
    }


BETA = "oauth-2025-04-20,oidc-federation-2026-04-01"


def round_trips(environment):
    """Measures the two requests of a program that is running already: the lower limit of every client."""
    begin = time.perf_counter()
    url = urllib.parse.urlsplit(environment["ACTIONS_ID_TOKEN_REQUEST_URL"])
    first = http.client.HTTPConnection(url.netloc)
    bearer = {"authorization": f"bearer {environment['ACTIONS_ID_TOKEN_REQUEST_TOKEN']}"}
    first.request("GET", f"{url.path}?{url.query}{AUDIENCE}", headers=bearer)
    assertion = json.load(first.getresponse())["value"]
    second = http.client.HTTPConnection(url.netloc)
    headers = {"content-type": "application/json", "anthropic-beta": BETA}
    second.request("POST", "/v1/oauth/token", json.dumps(grant(environment, assertion)), headers)
    if "access_token" not in json.load(second.getresponse()):
        raise Failed("the round trips brought no access token")
    return time.perf_counter() - begin


def curl_twice(environment, work):
    """Measures the two requests with curl. The time between them is not counted."""
    answer, body, minted = str(work / "answer"), str(work / "body"), str(work / "minted")
    url = environment["ACTIONS_ID_TOKEN_REQUEST_URL"] + AUDIENCE
    bearer = f"authorization: bearer {environment['ACTIONS_ID_TOKEN_REQUEST_TOKEN']}"
    took = once(["curl", "-sSf", "-H", bearer, "-o", answer, url], environment)
    assertion = json.loads(Path(answer).read_text())["value"]
    Path(body).write_text(json.dumps(grant(environment, assertion)))
    endpoint = environment["ANTHROPIC_BASE_URL"] + "/v1/oauth/token"
    headers = ["-H", "content-type: application/json", "-H", f"anthropic-beta: {BETA}"]
    return took + once(["curl", "-sSf", *headers, "-d", f"@{body}", "-o", minted, endpoint], environment)


@dataclass
class Crowd:
    """Processes that were started in quick succession."""

    seconds: float
    # For each process that started before the credential was available: seconds from then to its output.
    waits: list


def crowd(argv, environment, number, outputs, moment_file=None):
    """Starts this number of processes at once, and waits for all. The time of each result is the time stamp of its
    output file, which costs nothing to record."""
    pids, starts = [], []
    begin = time.perf_counter()
    for index in range(number):
        starts.append(time.time())
        pids.append(start_into(argv, environment, outputs / str(index)))
    codes = [measure.end(pid) for pid in pids]
    seconds = time.perf_counter() - begin
    if any(codes):
        raise Failed(f"{sum(1 for code in codes if code)} of {number} `{' '.join(argv)}` failed")
    texts = {(outputs / str(index)).read_bytes() for index in range(number)}
    if len(texts) != 1:
        raise Failed(f"{number} processes printed {len(texts)} different answers")
    waits = []
    if moment_file:
        moment = os.stat(moment_file()).st_mtime_ns / 1e9
        answered = (os.stat(outputs / str(index)).st_mtime_ns / 1e9 for index in range(number))
        waits = [at - moment for at, started in zip(answered, starts) if started < moment]
    return Crowd(seconds, waits)


def start_into(argv, environment, path):
    return measure.start(argv, environment, stdout=str(path))


def thousand(ground, effort):
    """A thousand cold processes at once"""
    number = max(50, effort(1000))
    latency = 1000
    ground.turn(exchange_latency_ms=latency)
    cats, ours, waits, exchanges, crowded = [], [], [], [], []
    file = ground.place("cat") / "credential"
    file.write_text("x" * 300)
    for _ in range(max(1, effort(3))):
        environment = ground.environment()
        outputs = Path("/dev/shm") if os.path.isdir("/dev/shm") else ground.directory
        outputs = outputs / ground.place("outputs").name
        outputs.mkdir(exist_ok=True)
        exchanges.append(once([WIFSHARE, "token"], ground.environment()))
        cats.append(crowd(["cat", str(file)], environment, number, outputs).seconds)
        before = ground.counters()["exchanges_received"]
        taken = crowd([WIFSHARE, "token"], environment, number, outputs, lambda: credential_file(environment))
        crowded.append(ground.counters()["exchanges_received"] - before)
        ours.append(taken.seconds)
        waits.append(taken.waits)
        for path in outputs.iterdir():
            path.unlink()
        outputs.rmdir()
    limit = Times(cats).median + Times(exchanges).median
    total = Times(ours).median
    table = Table(["", "median", "all rounds"])
    shown = lambda values: ", ".join(text(value) for value in values)
    table.rows.append([f"{number} `cat`", text(Times(cats).median), shown(cats)])
    table.rows.append([f"one cold `wifshare token` (the exchange takes {latency} ms)", text(Times(exchanges).median), shown(exchanges)])
    table.rows.append([f"**{number} cold `wifshare token`**", text(total), shown(ours)])
    last = [max(late, default=0.0) for late in waits]
    table.rows.append(["processes that started before the credential existed", str(statistics.median(map(len, waits))), ", ".join(str(len(late)) for late in waits)])
    table.rows.append(["time from the stored credential to the last answer", text(max(0.0, Times(last).median)), shown(last)])
    table.rows.append(["exchanges in each round", str(statistics.median(crowded)), ", ".join(map(str, crowded))])
    table.goal("at most 1.5 × (the `cat`s and the exchange)", f"{total / limit:.2f} ×", total <= 1.5 * limit)
    table.goal("no process waits longer than 100 ms after the exchange", text(max(0.0, Times(last).median)), Times(last).median <= 0.1)
    table.notes += [f"Eight at once of the {name} by themselves, on one identity token: {said}" for name, said in alone(ground)]
    return table


def alone(ground):
    """Measures eight parallel SDKs without wifshare."""
    ground.turn()
    for name, words in ("ask-typescript", "TypeScript SDK"), ("ask-python", "Python SDK"):
        program = client(name)
        if not program:
            yield words, "not installed."
            continue
        environment = {**ground.with_token_file(), **QUIET, "PATH": os.environ["PATH"]}
        pids = [measure.start([program], environment) for _ in range(8)]
        good = sum(1 for pid in pids if measure.end(pid) == 0)
        yield words, f"{good} of 8 succeed."


def library(ground, effort):
    """The library, warm, in one process"""
    rounds = [
        [float(number) for number in line.split()]
        for line in subprocess.run([HOT, "time", str(ground.place("hot"))], capture_output=True, text=True, check=True).stdout.splitlines()
    ]
    held, read, clock = (Times([round[index] * 1e-9 for round in rounds]) for index in range(3))
    table = timed("the read")
    table.times("reading an `RwLock<Option<String>>` (the peer)", read, read)
    table.times("`SystemTime::now()`, for the freshness check", clock, read)
    table.times("**`Holder::credential`**, the clock included", held, read)
    table.goal("under 50 ns", text(held.median), held.median < 50e-9)
    few, many = (allocations(ground, calls) for calls in (100, 10_000))
    table.goal("no allocation", f"{(many - few) / 9900:.4f} for each call", many == few)
    table.notes.append("A million calls a round. valgrind counts allocations: those of 10,000 calls minus those of 100.")
    return table


def allocations(ground, calls):
    argv = ["valgrind", HOT, "count", str(ground.place("hot")), str(calls)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"total heap usage: ([\d,]+) allocs", shown).group(1).replace(",", ""))


def claude(ground, effort):
    """`wifshare claude` with a marketplace, three plugins and a query"""
    table = Table(["", "median", "all rounds"])
    program = client("claude-2.1.330")
    if not program:
        table.notes.append("claude is not installed; tests/clients/install does that.")
        table.goal("our overhead under 2 % of claude's own time", "not measured", None)
        return table
    ground.turn()
    work = ground.place("claude")
    shim = work / "claude"
    # Appends the time of each process of claude to a file. Changes nothing else.
    shim.write_text(
        "#!/usr/bin/python3 -S\nimport os, sys, time\nbegin = time.perf_counter()\n"
        "pid = os.posix_spawn(os.environ['REAL_CLAUDE'], ['claude', *sys.argv[1:]], os.environ)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "open(os.environ['TIMES'], 'a').write(f'{time.perf_counter() - begin}\\n')\nsys.exit(code)\n"
    )
    shim.chmod(0o755)
    marketplace = str(ROOT / "tests/clients/marketplace")
    plugins = [word for name in ("alpha", "beta", "gamma") for word in ("--plugin", f"{name}@wifshare-fixture")]
    query = ["--", "-p", "say hi", "--model", "claude-sonnet-4-6", "--output-format", "text"]
    argv = [WIFSHARE, "claude", "--claude", str(shim), "--marketplace", marketplace, *plugins, *query]
    environment = ground.environment(REAL_CLAUDE="/usr/bin/true", TIMES=str(work / "calibration"))
    whole = [once([str(shim)], environment) for _ in range(20)]
    recorded = [float(line) for line in (work / "calibration").read_text().split()]
    shims = 5 * statistics.median(all - true for all, true in zip(whole, recorded))
    totals, sums, overheads = [], [], []
    for index in range(max(1, effort(7))):
        times = work / f"times-{index}"
        environment = ground.environment(**QUIET, REAL_CLAUDE=os.path.realpath(program), TIMES=str(times))
        environment["PATH"] = os.environ["PATH"]
        totals.append(once(argv, environment))
        own = [float(line) for line in times.read_text().split()]
        if len(own) != 5:
            raise Failed(f"claude was run {len(own)} times and not 5")
        sums.append(sum(own))
        overheads.append(totals[-1] - sums[-1] - shims)
    shown = lambda values: ", ".join(text(value) for value in values)
    table.rows.append(["claude's own five processes, added up", text(Times(sums).median), shown(sums)])
    table.rows.append(["**`wifshare claude`**, all of it", text(Times(totals).median), shown(totals)])
    table.rows.append(["wifshare's part", text(Times(overheads).median), shown(overheads)])
    share = statistics.median(over / total for over, total in zip(overheads, sums))
    table.goal("our overhead under 2 % of claude's own time", f"{share:.1%}", share < 0.02)
    table.notes.append(f"claude 2.1.330. A shim around claude measures the times. Its own five starts ({text(shims)}, measured around `true`) are subtracted.")
    table.notes.append("The published base action is not in a package registry. It was measured by hand, see the end.")
    return table


def first_request(ground, effort):
    """An agent's first API request: its start and the exchange at the same time"""
    table = timed("the longer of the two")
    if not has_option("exec", "gateway"):
        table.notes.append("This build has no gateway.")
        table.goal("behind the gateway, within 5 % of the longer of child start and exchange", "not measured", None)
        return table
    program = client("ask-typescript")
    if not program:
        table.notes.append("The TypeScript SDK is not installed; tests/clients/install does that.")
        table.goal("behind the gateway, within 5 % of the longer of child start and exchange", "not measured", None)
        return table
    latency = 300
    ground.turn(exchange_latency_ms=latency, identity_token_latency_ms=latency)

    def agent(*options):
        environment = {**ground.environment(), **QUIET, "PATH": os.environ["PATH"]}
        return until_output([WIFSHARE, "exec", *options, "--", program], environment)

    warm = {**ground.environment(), **QUIET, "PATH": os.environ["PATH"]}
    with ground.run(warm) as child:
        child = {**child, "PATH": os.environ["PATH"]}
        times = in_turn(
            max(3, effort(10)),
            child=lambda: until_output([program], child),
            exchange=lambda: until_output([WIFSHARE, "token"], ground.environment()),
            profile=agent,
            gateway=lambda: agent("--delivery", "gateway"),
        )
    longer = max(times["child"], times["exchange"], key=lambda taken: taken.median)
    table.times("the agent alone, with a credential in place", times["child"], longer)
    table.times(f"the exchange alone ({latency} ms for each of its two requests)", times["exchange"], longer)
    table.times("agent and exchange under `--delivery profile`", times["profile"], longer)
    table.times("**agent and exchange under `--delivery gateway`**", times["gateway"], longer)
    ratio = times["gateway"].ratio(longer)
    table.goal("behind the gateway, within 5 % of the longer of child start and exchange", f"{ratio:.2f} ×", ratio <= 1.05)
    table.notes.append("The agent is a program of the TypeScript SDK. Its time runs from its start to the response to its first request. It prints this time.")
    return table


def keeper(ground, effort):
    """An idle keeper"""
    table = Table(["", "peak memory", "wake-ups in twenty seconds"])
    ground.turn()
    if not has_option("start", "--watch-pid"):
        table.notes.append("This build has no `start`.")
        table.goal("at most 8 MiB, one wake-up for each renewal", "not measured", None)
        return table
    deliveries = ["profile", "gateway"] if has_option("start", "gateway") else ["profile"]
    environments = {delivery: ground.environment() for delivery in deliveries}
    pids = {"sleep": measure.start(["sleep", "120"], ground.environment())}
    try:
        for delivery, environment in environments.items():
            start = [WIFSHARE, "start", "--format", "json", "--watch-pid", "none", "--delivery", delivery]
            subprocess.run(start, env=environment, stdout=subprocess.DEVNULL, check=True)
            (run,) = Path(environment["WIFSHARE_STATE_DIR"]).glob("*/runs/*")
            pids[delivery] = int(run.name.split("-")[0])
        time.sleep(2)
        before = {name: switches(pid) for name, pid in pids.items()}
        time.sleep(20)
        woken = {name: switches(pid) - before[name] for name, pid in pids.items()}
        memory = {name: high_water(pid) for name, pid in pids.items()}
    finally:
        for environment in environments.values():
            subprocess.run([WIFSHARE, "stop", "--all"], env=environment, stdout=subprocess.DEVNULL, check=True)
        os.kill(pids["sleep"], 15)
        measure.end(pids["sleep"])
    for delivery in deliveries:
        what = f"**the keeper of `wifshare start`, `--delivery {delivery}`**"
        table.rows.append([what, f"{memory[delivery] / 1024:.1f} MiB", str(woken[delivery])])
    table.rows.append(["`sleep`", f"{memory['sleep'] / 1024:.1f} MiB", str(woken["sleep"])])
    most, wakes = max(memory[name] for name in deliveries), max(woken[name] for name in deliveries)
    table.goal("at most 8 MiB", f"{most / 1024:.1f} MiB", most <= 8 * 1024)
    table.goal("at most one wake-up for each renewal", f"{wakes} in twenty seconds without one", wakes <= 1)
    return table


def switches(pid):
    """Returns the number of voluntary context switches of all threads of a process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        total += int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.M).group(1))
    return total


def high_water(pid):
    return int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))


def binary(ground, effort):
    """The binary"""
    environment = ground.environment()
    times = in_turn(
        effort(300), true=lambda: once(["true"], environment), ours=lambda: once([WIFSHARE, "--version"], environment)
    )
    table = timed("true")
    table.times("`true`", times["true"], times["true"])
    table.times("**`wifshare --version`**", times["ours"], times["true"])
    size = os.stat(WIFSHARE).st_size
    added = times["ours"].median - times["true"].median
    table.goal("at most 6 MiB stripped", f"{size / 2**20:.2f} MiB", size <= 6 * 2**20)
    table.goal("start-up under 1 ms of our own", text(max(0.0, added)), added < 0.001)
    return table


def gateway(ground, effort):
    """The gateway compared with nginx and haproxy"""
    table = Table(["", "nginx", "haproxy", "**gateway**"])
    program = ROOT / "benches/gateway/run"
    if not program.exists():
        table.notes.append("This build has no gateway.")
        table.goal("at least the faster peer", "not measured", None)
        return table
    rounds = str(max(1, effort(5)))
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    command = [str(program), "--rounds", rounds, "--wifshare", WIFSHARE]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    if shown.returncode != 0:
        raise Failed(f"benches/gateway/run ended with {shown.returncode}: {shown.stderr.strip()[-300:]}")
    said = json.loads(shown.stdout)
    for key, what, unit, is_better in (
        ("requests_per_second_at_32", "requests per second, 32 connections", "/s", max),
        ("added_median_latency_us_at_1", "median latency added, one connection", " µs", min),
        ("first_event_us", "from the API's first event to the client's", " µs", min),
        ("peak_memory_mib_at_1000", "peak memory, 1,000 connections", " MiB", min),
    ):
        nginx, haproxy, ours = (said[key][name] for name in ("nginx", "haproxy", "gateway"))
        table.rows.append([what, *(f"{value:g}{unit}" for value in (nginx, haproxy, ours))])
        peer = is_better(nginx, haproxy)
        met = is_better(ours, peer) == ours
        table.goal(f"{what}: at least the better peer", f"{ours:g}{unit}, best peer {peer:g}{unit}", met)
    memory = said["peak_memory_mib_at_1000"]["gateway"]
    table.goal("memory under 16 MiB, 1,000 connections", f"{memory:g} MiB", memory < 16)
    words = {
        "nobody": "alone",
        "droppers": "with 1,000 connections at a time that send nothing and close",
        "strangers": "with four unauthenticated clients in a loop",
        "newcomers": "a new connection for each request",
        "sockets": "with 16,000 other sockets open on the machine",
    }
    for others, by_name in said["beside"].items():
        cells = [f"{rate:g}/s, p99 {p99:g} µs" for rate, _, p99 in (by_name[name] for name in ("nginx", "haproxy", "gateway"))]
        table.rows.append([f"one good client {words[others]}", *cells])
        peer, ours = max(by_name["nginx"][0], by_name["haproxy"][0]), by_name["gateway"][0]
        table.goal(f"one good client {words[others]}: at least half of the better peer", f"{ours:g}/s, best peer {peer:g}/s", ours >= peer / 2)
    points, growth = said["by_connections"], {}
    for name in ("gateway", "nginx"):
        shown = "; ".join(f"{number}: {rate}/s, {cost:g} µs" for number, rate, cost in points[name])
        table.notes.append(f"Requests per second and processor time per request, by number of connections, {name}: {shown}.")
        few, many = (next(cost for number, _, cost in points[name] if number == wanted) for wanted in (32, 512))
        growth[name] = many / few
    told = f"{growth['gateway']:.2f} × from 32 to 512 connections; nginx {growth['nginx']:.2f} ×"
    table.goal("the processor time per request does not grow with the connections, or not more than the peer's", told, growth["gateway"] <= max(1.15, growth["nginx"]))
    rates, costs = ({name: [(point[0], point[index]) for point in points[name]] for name in ("nginx", "gateway")} for index in (1, 2))
    table.curves = {
        "The gateway's requests": ("connections", "requests per second", rates),
        "What a request costs it": ("connections", "µs of a processor", costs),
    }
    table.notes.append("`benches/gateway/run` measures this, and can be run alone: the same work and the same API, one worker each, alternating.")
    return table
