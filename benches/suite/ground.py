"""The mock server for all measurements, and the environments of the measured processes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from . import measure

ROOT = Path(__file__).resolve().parents[2]
WIFSHARE = str(ROOT / "target/release/wifshare")
HOT = str(ROOT / "target/release/hot")
CLIENTS = ROOT / "target/clients/bin"

AUDIENCE = "&audience=https%3A%2F%2Fapi.anthropic.com"

# Disables everything in the clients that is not measured.
QUIET = {
    "IS_SANDBOX": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}


class Ground:
    """One sandbox for the whole suite. Its settings change for each path."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="wifshare-bench-"))
        self.server = subprocess.Popen([WIFSHARE, "sandbox"], stdout=subprocess.PIPE, text=True)
        self.variables = {}
        while "ANTHROPIC_BASE_URL" not in self.variables:
            line = self.server.stdout.readline()
            if not line:
                raise measure.Failed("the sandbox did not start")
            name, _, value = line.strip().partition("=")
            self.variables[name] = value
        self.url = self.variables["ANTHROPIC_BASE_URL"]
        self.numbers = iter(range(10**9))

    def close(self):
        self.server.terminate()
        self.server.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def turn(self, **settings):
        """Settings that are not given are reset to their initial values."""
        settings = {"access_token_lifetime_s": 3600, "identity_token_lifetime_s": 3600, **settings}
        body = json.dumps(settings).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/sandbox/settings", body, method="PUT")).read()

    def counters(self):
        return json.load(urllib.request.urlopen(f"{self.url}/sandbox/counters"))

    def place(self, name):
        """Creates a new directory."""
        path = self.directory / f"{name}-{next(self.numbers)}"
        path.mkdir(mode=0o700)
        return path

    def environment(self, **more):
        """Returns the environment of a job with an unused state directory and home."""
        place = self.place("job")
        return {
            **self.variables,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(place),
            "WIFSHARE_STATE_DIR": str(place / "state"),
            **more,
        }

    def with_token_file(self):
        """Returns the environment of a job without ids of its CI: a token in a file must prove its identity."""
        environment = self.environment()
        url = environment.pop("ACTIONS_ID_TOKEN_REQUEST_URL") + AUDIENCE
        bearer = f"bearer {environment.pop('ACTIONS_ID_TOKEN_REQUEST_TOKEN')}"
        answer = urllib.request.urlopen(urllib.request.Request(url, headers={"authorization": bearer}))
        file = Path(environment["HOME"]) / "token"
        file.write_text(json.load(answer)["value"])
        return {**environment, "ANTHROPIC_IDENTITY_TOKEN_FILE": str(file)}

    @contextlib.contextmanager
    def run(self, environment):
        """Starts a run that lasts, like the one around a job's steps: its credential stays available. Yields the
        environment of its children."""
        seen = self.place("run") / "environment"
        script = 'env -0 > "$0.new"; mv "$0.new" "$0"; exec sleep 600'
        pid = measure.start([WIFSHARE, "exec", "--", "sh", "-c", script, str(seen)], environment)
        try:
            for _ in range(3000):
                if seen.exists():
                    break
                time.sleep(0.01)
            else:
                raise measure.Failed("the run did not begin")
            pairs = (line.partition("=") for line in seen.read_text().split("\0") if line)
            yield {name: value for name, _, value in pairs}
        finally:
            os.kill(pid, signal.SIGTERM)
            measure.end(pid)


def credential_file(environment):
    """Returns the stored credential of the only identity in this state directory."""
    (found,) = Path(environment["WIFSHARE_STATE_DIR"]).glob("*/credential.json")
    return str(found)


def has_option(command, text):
    """Returns whether the help of this build mentions a word. Paths that need it are otherwise skipped with a note."""
    shown = subprocess.run([WIFSHARE, command, "--help"], capture_output=True, text=True)
    return shown.returncode == 0 and text in shown.stdout
