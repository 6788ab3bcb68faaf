"""The growth of cost with the number of processes, with the ledger and with a week of use, and its plot."""

import json
import os
import subprocess
import time
import xml.etree.ElementTree as xml
from pathlib import Path

from . import measure
from .ground import HOT, WIFSHARE
from .measure import Times, once, text
from .paths import Table, crowd


def processes(ground, effort):
    """Cost by the number of cold processes at once"""
    numbers = [1, 10, 100, 1000, 5000] if effort(100) >= 100 else [1, 10, 100]
    latency = 200
    table = Table(["processes", "`cat`, all of them", "**cold `wifshare token`**, all of them", "of that, beyond the exchange, per process"])
    cats, tokens = [], []
    shared = Path("/dev/shm") if os.path.isdir("/dev/shm") else ground.directory
    for number in numbers:
        ground.turn(exchange_latency_ms=latency)
        environment = ground.environment()
        outputs = shared / ground.place("scale").name
        outputs.mkdir(exist_ok=True)
        file = ground.place("cat") / "credential"
        file.write_text("x" * 300)
        rounds = 5 if number <= 100 else 1
        cat = Times([crowd(["cat", str(file)], environment, number, outputs).seconds for _ in range(rounds)]).median
        seconds = []
        for _ in range(rounds):
            fresh = ground.environment()
            seconds.append(crowd([WIFSHARE, "token"], fresh, number, outputs).seconds)
        for path in outputs.iterdir():
            path.unlink()
        outputs.rmdir()
        token = Times(seconds).median
        cats.append((number, cat))
        tokens.append((number, token))
        each = max(0.0, token - latency / 1000) / number
        table.rows.append([str(number), text(cat), text(token), text(each)])
    (few, less), (many, more) = tokens[-2:]
    growth = (more / less) / (many / few)
    table.goal("no growth that is worse than linear", f"from {few} to {many}: {growth:.2f} × of linear", growth <= 1.15)
    table.curves = {"Processes at once": ("processes", "seconds", {"cat": cats, "wifshare token, cold": tokens})}
    return table


def ledger(ground, effort):
    """Cost by the length of the ledger, and a week of use"""
    table = Table(["living entries", "size of the ledger", "**a cold `wifshare token`**, two requests on loopback included"])
    ground.turn()
    points, costs = [], []
    for number in (0, 100, 1000, 10_000):
        seconds = []
        for _ in range(max(3, effort(9))):
            environment = ground.environment()
            state = Path(environment["WIFSHARE_STATE_DIR"])
            state.mkdir(mode=0o700)
            fill(state / "spent", number)
            size = (state / "spent").stat().st_size
            seconds.append(once([WIFSHARE, "token"], environment))
        points.append((max(1, number), Times(seconds).median))
        costs.append((number, Times(seconds).cpu))
        table.rows.append([str(number), f"{size / 1024:.0f} KiB", text(points[-1][1])])
    # CPU time is independent of the disk. The cost of an empty ledger is subtracted.
    (few, less), (many, more) = ((number, cpu - costs[0][1]) for number, cpu in costs[-2:])
    growth = (more / max(less, 1e-4)) / (many / few)
    table.goal("a lookup grows at most linearly", f"from {few} to {many} entries: {growth:.2f} × of linear", growth <= 1.15)
    week = weekly(ground)
    largest = max(size for _, _, size in week)
    late = Times([taken for _, taken, _ in week[-24:]]).median / Times([taken for _, taken, _ in week[:24]][1:]).median
    table.rows.append(["a token each minute for a week: 10,080", f"{largest / 1024:.0f} KiB at most", f"{text(week[-1][1] * 1e-6)} to write one entry, in memory"])
    table.goal("the ledger forgets what has expired", f"at most {largest / 1024:.0f} KiB in a week of 10,080 tokens; the last day is {late:.2f} × the first", largest < 256 * 1024)
    table.curves = {
        "The ledger": ("living entries", "seconds", {"wifshare token, cold": points}),
        "A week, a token a minute": ("day", "KiB of ledger", {"spent": [(minute / 1440, size / 1024) for minute, _, size in week]}),
    }
    return table


def fill(path, number):
    """Writes ledger entries like wifshare's, for tokens that are valid for another day."""
    later = int(time.time()) + 86_400
    owner = {"pid": 1, "start_time": 1, "boot": "0b5ed0c4-0000-4000-8000-000000000000"}
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        for index in range(number):
            entry = {"version": 1, "fingerprint": f"{index:064x}", "used": "sent", "owner": owner, "at": later - 86_400, "forget_at": later}
            file.write(json.dumps(entry, separators=(",", ":")) + "\n")


def weekly(ground):
    """Runs the library in memory with its own clock. Returns (minute, microseconds, bytes) once per hour."""
    place = Path("/dev/shm") if os.path.isdir("/dev/shm") else ground.directory
    place = place / ground.place("week").name
    shown = subprocess.run([HOT, "week", str(place)], capture_output=True, text=True, check=True).stdout
    subprocess.run(["rm", "-rf", str(place)], check=True)
    return [(int(minute), float(taken), int(size)) for minute, taken, size in (line.split() for line in shown.splitlines())]


def plot(curves, path):
    """Draws all figures side by side, as an SVG without scripts and fonts. Axes are logarithmic, except for days."""
    import math

    width, height, left, bottom, top = 360, 300, 60, 46, 34
    picture = xml.Element("svg", xmlns="http://www.w3.org/2000/svg", width=str(width * len(curves)), height=str(height + 10))
    picture.set("font-family", "sans-serif")
    picture.set("font-size", "11")
    xml.SubElement(picture, "title").text = "How the cost of wifshare grows"
    xml.SubElement(picture, "rect", width="100%", height="100%", fill="white")
    colours = ["#888888", "#1f6feb", "#d1242f"]
    for number, (title, (across, up, lines)) in enumerate(curves.items()):
        figure = xml.SubElement(picture, "g", transform=f"translate({number * width},0)")
        label(figure, left, 18, title).set("font-weight", "bold")
        every = [point for points in lines.values() for point in points]
        axes = []
        for side in (0, 1):
            low, high = (edge(point[side] for point in every) for edge in (min, max))
            if across == "day":
                step = 10 ** math.floor(math.log10(high))
                axes.append([step * number for number in range(math.ceil(high / step) + 1)])
            else:
                powers = math.floor(math.log10(max(low, 1e-9))), math.ceil(math.log10(max(high, 1e-9)))
                axes.append([10**power for power in range(powers[0], powers[1] + 1)])
        straight = (lambda value: value) if across == "day" else math.log10

        def at(point):
            shares = []
            for value, axis in zip(point, axes):
                low, high = straight(axis[0]), straight(axis[-1])
                shares.append((straight(max(value, axis[0])) - low) / max(1e-9, high - low))
            return left + shares[0] * (width - left - 20), height - bottom - shares[1] * (height - bottom - top)

        for side, axis in enumerate(axes):
            for value in axis:
                x, y = at((value, axes[1][0]) if side == 0 else (axes[0][0], value))
                ends = dict(x1=x, y1=top, x2=x, y2=height - bottom) if side == 0 else dict(x1=left, y1=y, x2=width - 20, y2=y)
                xml.SubElement(figure, "line", {name: f"{end:.1f}" for name, end in ends.items()} | {"stroke": "#dddddd"})
                mark = label(figure, x if side == 0 else left - 6, height - bottom + 14 if side == 0 else y + 4, f"{value:g}")
                mark.set("text-anchor", "middle" if side == 0 else "end")
        label(figure, (left + width - 20) / 2, height - bottom + 30, across).set("text-anchor", "middle")
        label(figure, 12, (top + height - bottom) / 2, up).set("transform", f"rotate(-90 12 {(top + height - bottom) / 2:.0f})")
        for index, (name, points) in enumerate(lines.items()):
            colour = colours[index] if len(lines) > 1 else colours[1]
            track = " ".join("{:.1f},{:.1f}".format(*at(point)) for point in points)
            xml.SubElement(figure, "polyline", points=track, fill="none", stroke=colour, attrib={"stroke-width": "2"})
            if len(points) < 20:
                for point in points:
                    x, y = at(point)
                    xml.SubElement(figure, "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="3", fill=colour)
            label(figure, left + 8, top + 14 + 14 * index, name).set("fill", colour)
    xml.indent(picture)
    Path(path).write_text(xml.tostring(picture, encoding="unicode") + "\n")


def label(parent, x, y, words):
    element = xml.SubElement(parent, "text", x=f"{x:.1f}", y=f"{y:.1f}")
    element.text = words
    return element
