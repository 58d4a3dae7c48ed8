"""What one pool's trouble does to another pool of the same server (docs/pools.md).

    python -m benchmarks.pools             measures, and prints
    python -m benchmarks.pools --write     and writes it into docs/pools.md

The pool `quiet` is asked all the time by as many connections as it has children. Meanwhile nothing is asked
of the pool `other`; or ten times as many connections as it has children ask it without a pause; or its
program does not start any more; or it is restarted every second, or as fast as that goes. Each round measures
all of these, one behind the other, so that what else the machine does meets them alike. Both pools' children
wait rather than compute, as most do: what they compute they take from each other on any machine, which is no
matter of the server's. So do interpreters that start, which is what restarts without a pause show.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, wrk
from benchmarks.figures import Sample, Table, medians, number, paired_ratio
from benchmarks.pages import replace_between
from benchmarks.processes import Server, free_port
from benchmarks.servers import server_python
from benchmarks.wrk import Load
from poolparty import ctl
from poolparty.wire.control import OK, join

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs" / "pools.md"
BEGIN, END = "<!-- apart -->\n", "<!-- end of apart -->\n"

CHILDREN = {"quiet": 4, "other": 2}
PAUSES = {"quiet": 0.005, "other": 0.020}
"""Seconds that a request takes its child."""

OVERLOAD = 10
"""Connections at a pool for each of its children."""

PATIENCE = 20.0
"""Seconds until what was done to a pool must be seen."""

APPLICATION = """
import os, sys, time
if os.path.exists(os.environ["BROKEN"]):
    sys.exit(1)
pause = float(os.environ["PAUSE"])
import poolparty
def handler(request):
    time.sleep(pause)
    return b"done"
poolparty.serve(handler)
"""


class Refused(Exception):
    """The server did not do what it was asked."""


class Pools:
    """A server with both pools, and what can be done to `other`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._broken = folder / "broken"
        self._socket = folder / "ctl.sock"
        (folder / "app.py").write_text(APPLICATION)
        pools = {
            name: {
                "routes": [f"{name}.example/"],
                "min_pool_size": count,
                "max_pool_size": count,
                "raw_env": [f"PAUSE={PAUSES[name]}", f"BROKEN={self._broken if name == 'other' else ''}"],
            }
            for name, count in CHILDREN.items()
        }
        command = [server_python(), str(folder / "app.py")]
        variables = ["PAUSE=0", "BROKEN="]
        settings = {"pool_cmd": command, "raw_env": variables, "pools": pools, "worker_restart_delay": "50ms"}
        lines = (f"{name} = {value!r}\n" for name, value in settings.items())
        (folder / "poolparty.conf.py").write_text("".join(lines))

    def server(self) -> Server:
        """To be used as a context."""
        port = free_port()
        own = [server_python(), str(CHECKOUT / "bin" / "poolparty"), "--listen-address", f"127.0.0.1:{port}"]
        own += ["--config", str(self._folder / "poolparty.conf.py"), "--ctl-socket", str(self._socket)]
        return Server(own, port, self._folder, os.environ)

    def ask(self, *words: str) -> str:
        """What the server answers, as poolparty-ctl shows it but without the processor time of its start."""
        with ctl.connect(str(self._socket), 60.0) as server:
            server.sendall(join(words))
            server.shutdown(socket.SHUT_WR)
            *lines, last = ctl.answer_lines(server)
        if last != OK.encode():
            raise Refused(last.decode().strip())
        return b"".join(lines).decode()

    def other(self) -> dict[str, Any]:
        """The pool's figures."""
        found: dict[str, Any] = json.loads(self.ask("stats", "--json"))["pools"][-1]
        assert found["name"] == "other"
        return found

    def wait(self, condition: Callable[[dict[str, Any]], bool], what: str) -> None:
        """Until the pool's figures are so."""
        end = time.monotonic() + PATIENCE
        while not condition(self.other()):
            if time.monotonic() > end:
                raise SystemExit(f"benchmarks.pools: {what}: not within {PATIENCE:g} s")
            time.sleep(0.05)

    # What is done to `other`, as contexts: it is so inside, and all is well again behind it.

    @contextlib.contextmanager
    def nothing(self, port: int, seconds: float) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def overloaded(self, port: int, seconds: float) -> Iterator[None]:
        load = Load(OVERLOAD * CHILDREN["other"], headers={"Host": "other.example"})
        folder = self._folder / "overload"
        folder.mkdir(exist_ok=True)
        thread = threading.Thread(target=wrk.run, args=(port, load, seconds + 1, folder))
        thread.start()
        self.wait(lambda pool: bool(pool["queued"]), "no request waits")
        yield
        thread.join()
        self.wait(lambda pool: not pool["busy"], "it is still busy")

    @contextlib.contextmanager
    def crashing(self, port: int, seconds: float) -> Iterator[None]:
        deaths = self.other()["counters"]["worker_deaths"]
        self._broken.touch()
        for child in self.other()["children"]:
            with contextlib.suppress(Refused):  # it has just been replaced
                self.ask("kill", str(child["pid"]))
        self.wait(lambda pool: pool["counters"]["worker_deaths"] > deaths + 1, "no crash loop")
        yield
        self._broken.unlink()
        self.ask("restart-workers", "other")
        self.wait(lambda pool: pool["idle"] == CHILDREN["other"], "it does not start again")

    @contextlib.contextmanager
    def restarting(self, port: int, seconds: float, pause: float = 1.0) -> Iterator[None]:
        over = threading.Event()

        def restart() -> None:
            while not over.wait(pause):
                self.ask("restart-workers", "other")

        thread = threading.Thread(target=restart)
        generation = self.other()["generation"]
        thread.start()
        self.wait(lambda pool: pool["generation"] > generation, "no restart")
        yield
        over.set()
        thread.join()

    @property
    def troubles(self) -> dict[str, Callable[[int, float], contextlib.AbstractContextManager[None]]]:
        """By the words of the table's rows."""
        return {
            "left alone": self.nothing,
            f"asked by {OVERLOAD} × its children": self.overloaded,
            "its program does not start": self.crashing,
            "restarted every second": self.restarting,
            "restarted without a pause": functools.partial(self.restarting, pause=0.0),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pools", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--write", action="store_true", help="into docs/pools.md")
    options = parser.parse_args(arguments)
    load = machine.load()
    samples: dict[str, list[Sample]] = {}
    with tempfile.TemporaryDirectory(prefix="pools-") as name:
        pools = Pools(Path(name))
        with pools.server() as serving:
            for turn in range(options.rounds):
                for label, trouble in pools.troubles.items():
                    with trouble(serving.port, options.seconds):
                        sample = wrk.run(serving.port, QUIET_LOAD, options.seconds, Path(name))
                    samples.setdefault(label, []).append(sample)
                    told = ", ".join(
                        f"{key} {number(sample[key])}" for key in ("rate", "p50", "p99", "errors")
                    )
                    print(f"{turn + 1}/{options.rounds}: other {label}: quiet {told}", file=sys.stderr)
    text = page(samples, options, load)
    print(text, end="")
    if options.write:
        replace_between(PAGE, BEGIN, END, text)
    return 0


QUIET_LOAD = Load(CHILDREN["quiet"], headers={"Host": "quiet.example"})


def page(samples: dict[str, list[Sample]], options: argparse.Namespace, load: float) -> str:
    """The table and what stands below it."""
    quiet = next(iter(samples.values()))
    rows = []
    for label, taken in samples.items():
        figures = medians(taken)
        shown = [number(figures[key]) for key in ("rate", "p50", "p99")]
        failed = number(sum(sample["errors"] for sample in taken))
        rows.append([label, *shown, number(paired_ratio(taken, quiet, "p99")), failed])
    head = ["`other` is", "`quiet`: requests/s", "p50, ms", "p99, ms", "of its quiet p99", "failed"]
    pools = "; ".join(
        f"`{name}`: {count} children that take {1000 * PAUSES[name]:g} ms" for name, count in CHILDREN.items()
    )
    about = machine.describe()
    return (
        f"\n{Table(head, rows).markdown()}\n"
        f"{pools}; as many connections at `quiet`. Medians of {options.rounds} rounds of "
        f"{options.seconds:g} s, and of the rounds' ratios; `failed` counts every request of all rounds. "
        f"On {about['cores']} cores ({about['processor']}), {about['system']}, load on the same machine; its "
        f"load before was {load:.1f}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
