"""What 2,000 idle and 500 slow connections do to 16 busy ones (docs/reliability.md).

    python -m benchmarks.crowd             measures, and prints
    python -m benchmarks.crowd --write     and writes it into docs/reliability.md

Each round measures the busy connections alone and then among the crowd, so that what else the machine does
meets both alike. The idle connections have had an answer each. Of the slow ones a third sends a head, a third
a body and a third a chunked body, a byte every 200 ms each, from a process of its own; whom the server ends,
since its time is over, comes again.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import select
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import machine, wrk
from benchmarks.figures import Sample, Table, medians, number, paired_ratio
from benchmarks.idle import idle_connections
from benchmarks.pages import replace_between
from benchmarks.processes import Server, free_port, resident
from benchmarks.servers import child, server_python
from benchmarks.wrk import Load

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs" / "reliability.md"
BEGIN, END = "<!-- crowd -->\n", "<!-- end of crowd -->\n"

IDLE, SLOW, BUSY = 2000, 500, 16
PAUSE = 0.2
"""Seconds between two bytes of a slow connection."""

STARTS = (
    b"GET / HTTP/1.1\r\nHost: h\r\nX: ",
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--write", action="store_true", help="into docs/reliability.md")
    options = parser.parse_args(arguments)
    load = machine.load()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    samples: dict[str, list[Sample]] = {"alone": [], "among them": []}
    with tempfile.TemporaryDirectory(prefix="crowd-") as name:
        folder = Path(name)
        with server(folder) as serving:
            for turn in range(options.rounds):
                for label, taken in samples.items():
                    with crowd(serving.port) if label != "alone" else contextlib.nullcontext():
                        sample = wrk.run(serving.port, Load(BUSY), options.seconds, folder)
                        sample["memory"] = max(map(resident, serving.pids())) / (1 << 20)
                    taken.append(sample)
                    told = ", ".join(
                        f"{key} {number(sample[key])}" for key in ("rate", "p50", "p99", "errors")
                    )
                    print(f"{turn + 1}/{options.rounds}: {label}: {told}", file=sys.stderr)
    text = page(samples, options, load)
    print(text, end="")
    if options.write:
        replace_between(PAGE, BEGIN, END, text)
    return 0


def server(folder: Path) -> Server:
    """With the defaults, but for the queue of connections and how many there may be."""
    command, _ = child("python", folder, "hello")
    port = free_port()
    own = [server_python(), str(CHECKOUT / "bin" / "poolparty"), "--listen-address", f"127.0.0.1:{port}"]
    own += ["--ctl-socket", str(folder / "ctl.sock"), "--worker-connections", "4000", "--backlog", "4096"]
    own += ["--min-pool-size", "2", "--max-pool-size", "2"]
    return Server([*own, "--", *command], port, folder, os.environ)


@contextlib.contextmanager
def crowd(port: int) -> Iterator[None]:
    """Those who are there and do little; returns when all are connected."""
    ready = multiprocessing.Event()
    slow = multiprocessing.Process(target=drip, args=(port, ready), daemon=True)
    slow.start()
    try:
        if not ready.wait(30):
            raise SystemExit("benchmarks.crowd: the slow connections were not taken")
        with idle_connections(port, IDLE):
            yield
    finally:
        slow.kill()
        slow.join()


def drip(port: int, ready: multiprocessing.synchronize.Event) -> None:
    """SLOW connections, a byte at a time each, spread evenly over PAUSE."""
    clients = [_begun(port, place) for place in range(SLOW)]
    ready.set()
    while True:
        began = time.monotonic()
        for place, client in enumerate(clients):
            try:
                client.send(b"x")
                if select.select([client], [], [], 0)[0]:
                    raise ConnectionError("its time is over")
            except OSError:
                client.close()
                clients[place] = _begun(port, place)
            if place % 50 == 49:
                time.sleep(max(0.0, began + PAUSE * place / SLOW - time.monotonic()))


def _begun(port: int, place: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), 30)
    client.sendall(STARTS[place % len(STARTS)])
    return client


def page(samples: dict[str, list[Sample]], options: argparse.Namespace, load: float) -> str:
    """The table and what stands below it."""
    head = ["the busy ones", "requests/s", "p50, ms", "p99, ms", "failed", "HTTP worker or master, MiB"]
    rows = []
    for label, taken in samples.items():
        figures = medians(taken)
        shown = (number(figures[key]) for key in ("rate", "p50", "p99", "errors", "memory"))
        rows.append([label, *shown])
    ratio = paired_ratio(samples["among them"], samples["alone"], "p99")
    about = machine.describe()
    return (
        f"\n{Table(head, rows).markdown()}\n"
        f"The p99 among {IDLE:,} idle and {SLOW} slow connections is {number(ratio)} of the p99 without them "
        f"(median of the rounds' ratios). {options.rounds} rounds of {options.seconds:g} s by "
        f"`python -m benchmarks.crowd --write`, on {about['cores']} cores ({about['processor']}), "
        f"{about['system']}, load and slow clients on the same machine; its load before was {load:.1f}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
