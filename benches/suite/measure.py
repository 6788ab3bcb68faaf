"""Starts, times and compares processes. This part of the suite is independent of wifshare."""

import os
import random
import statistics
import time
from dataclasses import dataclass


class Failed(Exception):
    """A command failed, so there is nothing to measure."""


class Took(float):
    """Wall-clock seconds, and `cpu`, the processor time of the process and of the children that it waited for. Load on
    the machine increases the first, and hardly the second."""

    cpu = 0.0


@dataclass
class Times:
    """The seconds of repeated measurements of one thing."""

    seconds: list

    @property
    def cpu(self):
        """Returns the median processor time, if it is known."""
        return statistics.median(getattr(took, "cpu", 0.0) for took in self.seconds)

    @property
    def median(self):
        return statistics.median(self.seconds)

    @property
    def quartiles(self):
        if len(self.seconds) < 3:
            return min(self.seconds), max(self.seconds)
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high

    def ratio(self, other):
        return self.median / other.median

    def ratio_between(self, other, draws=2000):
        """Returns the 95 % confidence interval of the ratio of medians (bootstrap)."""
        chance = random.Random(1)

        def drawn(times):
            return statistics.median(chance.choices(times.seconds, k=len(times.seconds)))

        ratios = sorted(drawn(self) / drawn(other) for _ in range(draws))
        return ratios[draws // 40], ratios[-draws // 40 - 1]


def start(argv, env, stdout="/dev/null", stderr="/dev/null", cwd=None):
    """Starts a program with exactly this environment and returns its process id."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    before = os.getcwd() if cwd else None
    if cwd:
        os.chdir(cwd)
    try:
        return os.posix_spawnp(argv[0], argv, env, file_actions=actions)
    finally:
        if before:
            os.chdir(before)


def end(pid):
    """Waits for a process. Returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def once(argv, env, **streams):
    """Returns the seconds from before the start of a program to its end. It must succeed."""
    begin = time.perf_counter()
    _, status, usage = os.wait4(start(argv, env, **streams), 0)
    took = Took(time.perf_counter() - begin)
    took.cpu = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise Failed(f"{' '.join(argv)} ended with {code}")
    return took


def until_output(argv, env):
    """Returns the seconds from before the start of a program to its first output. It must succeed, too."""
    reader, writer = os.pipe()
    null = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)
    actions = [null, (os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
    begin = time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, env, file_actions=actions)
    os.close(writer)
    with open(reader, "rb", buffering=0) as output:
        first = output.read(1)
        took = Took(time.perf_counter() - begin)
        output.read()
    _, status, usage = os.wait4(pid, 0)
    took.cpu = usage.ru_utime + usage.ru_stime
    if not first or os.waitstatus_to_exitcode(status) != 0:
        raise Failed(f"{' '.join(argv)} printed nothing, or did not end well")
    return took


def in_turn(rounds, **things):
    """Runs each function once per round, A B C A B C …, starting with another one each time, so that other load affects
    all of them. A function returns seconds. The first round warms up and is dropped."""
    names = list(things)
    seconds = {name: [] for name in names}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            took = things[name]()
            if number > 0:
                seconds[name].append(took)
    return {name: Times(taken) for name, taken in seconds.items()}


def text(seconds):
    """Formats a time for people."""
    if seconds < 1e-6:
        return f"{seconds * 1e9:.1f} ns"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.1:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s"
