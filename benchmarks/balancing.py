"""How HAProxy spreads requests over two uneven servers, with the agent check and without (docs/scaling.md).

    python -m benchmarks.balancing             measures, and prints a table
    python -m benchmarks.balancing --write     and writes it into docs/scaling.md

Two Poolparty servers, with 1 child and with 4, and conf/haproxy.cfg in front of them, but for what a row
says. Requests of 20 ms, which the child sleeps, come at a constant rate; latency counts from when each was
due. Each round measures every row once, so that what else the machine does meets all alike. In the third
situation three of the four children run something long that did not come through this HAProxy.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.figures import Sample, Table, medians, number
from benchmarks.pages import replace_between
from benchmarks.processes import Server, free_port
from benchmarks.servers import find, server_python

CHECKOUT = Path(__file__).resolve().parent.parent
READY = CHECKOUT / "conf" / "haproxy.cfg"
PAGE = CHECKOUT / "docs" / "scaling.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"

SIZES = {"small": 1, "large": 4}
SERVICE = 0.02
"""Seconds that a request takes."""
CAPACITY = sum(SIZES.values()) / SERVICE

WARM_UP = 5.0
"""Seconds until the servers' averages are of this load."""

DEADLINE = 30.0

APPLICATION = f"""import os, time
import poolparty


def handler(request):
    if request.path == "/hold":
        while os.path.exists(request.query):
            time.sleep(0.05)
    else:
        time.sleep({SERVICE})
    return "done\\n"


poolparty.serve(handler)
"""


@dataclass(frozen=True)
class Row:
    """A way to balance. `sized`: weights as the numbers of children; `queue`: HAProxy gives each server no
    more requests than it has children, and lets the others wait for whichever is free first."""

    balance: str
    sized: bool = False
    agent: bool = False
    queue: bool = False

    @property
    def label(self) -> str:
        words = [self.balance, "weights by size" if self.sized else "equal weights"]
        return ", ".join(words + ["maxconn"] * self.queue + ["agent check"] * self.agent)


ROWS = (
    *(
        Row(balance, sized, agent)
        for balance in ("roundrobin", "leastconn")
        for sized in (False, True)
        for agent in (False, True)
    ),
    Row("leastconn", sized=True, queue=True),
)


@dataclass(frozen=True)
class Situation:
    """What the servers are asked: `load` is a part of what their free children can answer."""

    name: str
    load: float
    held: int = 0  # children of the large server

    @property
    def rate(self) -> float:
        return self.load * (CAPACITY - self.held / SERVICE)


SITUATIONS = (
    Situation("40 % load", 0.4),
    Situation("80 % load", 0.8),
    Situation("three busy, 80 % load", 0.8, held=3),
)


@dataclass(frozen=True)
class Ports:
    http: int
    admin: int
    agent: int


def configuration(row: Row, port: int, control: Path, ports: dict[str, Ports]) -> str:
    """conf/haproxy.cfg for this row, on 127.0.0.1:`port`, without a user and a log of its own."""
    text = READY.read_text()
    for pattern, by in (
        (r"^    log /dev/log .*\n    user .*\n    group .*\n", ""),
        (r"^    log global\n    option httplog\n    option dontlognull\n", ""),
        (r"/run/haproxy/admin\.sock", str(control)),
        (r"bind :80$", f"bind 127.0.0.1:{port}"),
        (r"balance \w+", f"balance {row.balance}"),
        (r" agent-check agent-port 8082 agent-inter \w+", "" if not row.agent else None),
        (r"(?:^    server .*\n)+", "".join(_servers(row, ports))),
    ):
        text, count = re.subn(
            pattern, lambda found, by=by: found[0] if by is None else by, text, flags=re.MULTILINE
        )
        if count != 1:
            raise ValueError(f"conf/haproxy.cfg has {count} places like {pattern!r}")
    return text


def _servers(row: Row, ports: dict[str, Ports]) -> Iterator[str]:
    for name, size in SIZES.items():
        words = [f"server {name} 127.0.0.1:{ports[name].http} port {ports[name].admin}"]
        words += [f"weight {50 * size if row.sized else 100}"]
        words += [f"agent-port {ports[name].agent}"] * row.agent + [f"maxconn {size}"] * row.queue
        yield f"    {' '.join(words)}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.balancing", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md")
    options = parser.parse_args(arguments)
    load = machine.load()
    samples: dict[Row, list[Sample]] = {row: [] for row in ROWS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="balancing-")))
        ports = {name: Ports(free_port(), free_port(), free_port()) for name in SIZES}
        for name in SIZES:
            stack.enter_context(server(name, ports[name], folder))
        for turn in range(options.rounds):
            for row in ROWS:
                sample: dict[str, float] = {}
                for situation in SITUATIONS:
                    sample |= measure(row, situation, ports, folder, options.seconds)
                samples[row].append(sample)
                shown = ", ".join(f"{key} {number(value)}" for key, value in sample.items())
                print(f"{turn + 1}/{options.rounds}: {row.label}: {shown}", file=sys.stderr)
    loads = (load, machine.load())
    text = page(samples, how(options.rounds, options.seconds, machine.describe(), loads))
    print(text, end="")
    if options.write:
        replace_between(PAGE, BEGIN, END, text)
    return 0


# --- measuring ---------------------------------------------------------------------------------------------


def server(name: str, ports: Ports, folder: Path) -> Server:
    """One Poolparty server; a context."""
    own = folder / name
    own.mkdir()
    (own / "app.py").write_text(APPLICATION)
    python, size = server_python(), str(SIZES[name])
    command = [python, str(CHECKOUT / "bin" / "poolparty"), "--listen-address", f"127.0.0.1:{ports.http}"]
    command += ["--admin-address", f"127.0.0.1:{ports.admin}", "--agent-address", f"127.0.0.1:{ports.agent}"]
    command += ["--min-pool-size", size, "--max-pool-size", size, "--", python, "app.py"]
    return Server(command, ports.http, own, {"PATH": "/usr/bin:/bin"})


def measure(
    row: Row, situation: Situation, ports: dict[str, Ports], folder: Path, seconds: float
) -> dict[str, float]:
    """One row in one situation; times in milliseconds. The servers have nothing to do before and after it."""
    port = free_port()
    control = folder / "haproxy.sock"
    conf = folder / "haproxy.cfg"
    conf.write_text(configuration(row, port, control, ports))
    with held(situation.held, ports["large"], folder):
        balancer = subprocess.Popen([find("haproxy"), "-db", "-f", str(conf)], stderr=subprocess.DEVNULL)
        try:
            wait(lambda: answers(port), "HAProxy")
            plan = {"mode": "open", "rate": situation.rate, "seconds": seconds, "warm_up": WARM_UP}
            command = [server_python(), "-m", "benchmarks.generator", str(port), json.dumps(plan)]
            done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
        finally:
            balancer.terminate()
            balancer.wait()
    for each in ports.values():
        wait(lambda each=each: load_of(each) == (0, 0), "the servers to have done what was asked")
    found = json.loads(done.stdout)
    wrong = sum(count for status, count in found["statuses"].items() if status != "200")
    return {
        f"{situation.name}: p50": found["all"]["p50"],
        f"{situation.name}: p99": found["all"]["p99"],
        f"{situation.name}: errors": float(wrong + sum(found["errors"].values())),
    }


@contextlib.contextmanager
def held(count: int, ports: Ports, folder: Path) -> Iterator[None]:
    """Keep so many children busy, past HAProxy."""
    path = folder / "hold"
    path.touch()
    with ExitStack() as stack:
        for _ in range(count):
            connection = http.client.HTTPConnection("127.0.0.1", ports.http, timeout=DEADLINE)
            stack.enter_context(contextlib.closing(connection))
            connection.request("GET", f"/hold?{path}")
        wait(lambda: load_of(ports) == (count, 0), f"{count} busy children")
        try:
            yield
        finally:
            path.unlink()


def load_of(ports: Ports) -> tuple[int, int]:
    """How many children are busy, and how many requests wait."""
    pool: dict[str, Any] = json.loads(get(ports.admin, "/stats.json"))["pools"][0]
    return pool["busy"], pool["queued"]


def answers(port: int) -> bool:
    try:
        return get(port, "/") == b"done\n"
    except OSError:
        return False


def get(port: int, target: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.request("GET", target)
        return connection.getresponse().read()


def wait(condition: Any, what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"benchmarks.balancing: waited {DEADLINE:g} s for {what}")
        time.sleep(0.05)


# --- the page ----------------------------------------------------------------------------------------------


def how(rounds: int, seconds: float, about: dict[str, str], loads: tuple[float, float]) -> str:
    """Where the figures are from; loads: before and after."""
    return (
        f"Medians of {rounds} rounds of {seconds:g} s, by `python -m benchmarks.balancing --write`, on "
        f"{about['cores']} cores ({about['processor']}), {about['system']}; "
        f"the machine's load was {loads[0]:.1f} before and {loads[1]:.1f} after."
    )


def page(samples: dict[Row, list[Sample]], origin: str) -> str:
    """The table and what stands below it."""
    head = ["milliseconds", *(f"{each.name}: p50 / p99" for each in SITUATIONS), "failed"]
    rows = []
    for row, taken in samples.items():
        figures = medians(taken)
        failed = sum(sample[key] for sample in taken for key in sample if key.endswith(": errors"))
        times = (
            f"{number(figures[f'{each.name}: p50'])} / {number(figures[f'{each.name}: p99'])}"
            for each in SITUATIONS
        )
        rows.append([row.label, *times, f"{failed:,.0f}"])
    return f"\n{Table(head, rows).markdown()}\n{origin}\n"


if __name__ == "__main__":
    sys.exit(main())
