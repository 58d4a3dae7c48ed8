"""A load that wrk cannot make: at a fixed rate, of two kinds of requests told apart, or of an exact number.

    python -m benchmarks.generator PORT '{"mode": "open", "rate": 3200, "seconds": 5}'

Runs as a process of its own and prints one JSON object. mode `open` sends at `rate`, whatever comes back,
each request on an idle connection or a new one, up to `connections`; its latency counts from the moment it
was due, so that a server that stalls is not spared what would have come meanwhile. mode `closed` keeps
`connections` busy, for `seconds` or until `count` requests have been answered. `slow_share` of the requests
go to /slow, the others to /fast.

GET only, answers with Content-Length only. uvloop if there is one: at 10,000 requests/s it takes a third of a
core.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any, cast

from benchmarks.figures import percentile

LINGER = 3.0
"""Seconds for answers to come in after the last request was sent; those missing then are `unanswered`."""

PATIENCE = 60.0
"""Seconds after which a closed run with a count gives up."""


@dataclass
class Plan:
    mode: str
    seconds: float = 0.0
    connections: int = 3000
    rate: float = 0.0
    count: int = 0
    slow_share: float = 0.0
    warm_up: float = 0.0


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiting: tuple[str, float] | None = None  # path, when it was due
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass of it
        self.open = True

    def send(self, path: str, due: float) -> None:
        assert self._transport is not None
        self._waiting = (path, due)
        self._transport.write(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path.encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length or self._waiting is None:
            return
        self._buffer = b""
        (path, due), self._waiting = self._waiting, None
        if b"\r\nconnection: close" in head:
            self.open = False
            assert self._transport is not None
            self._transport.close()
        self._run.answered(self, path, due, int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._waiting is not None:
            self._waiting = None
            self._run.broken(self)
        else:
            self._run.left(self)

    def close(self) -> None:
        self._waiting = None
        if self._transport is not None:
            self._transport.abort()


class Run:
    """One run of a plan, and what it has counted."""

    def __init__(self, port: int, plan: Plan) -> None:
        self._port = port
        self._plan = plan
        self._random = random.Random(1)
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._connecting = 0
        self._sending = True
        self._outstanding = 0
        self._counts_from = 0.0
        self._refills: set[asyncio.Task[None]] = set()
        self._finished = asyncio.Event()
        self.latencies: dict[str, list[float]] = {"/fast": [], "/slow": []}
        self.statuses: dict[int, int] = {}
        self.errors = {"connect": 0, "broken": 0, "unsent": 0, "unanswered": 0}

    async def go(self) -> dict[str, Any]:
        began = time.perf_counter()
        self._counts_from = began + self._plan.warm_up
        stop = self._counts_from + self._plan.seconds
        if self._plan.mode == "open":
            await self._send_at_a_rate(began, stop)
        else:
            await self._keep_busy(stop)
        sent_until = time.perf_counter()
        self._sending = False
        deadline = sent_until + LINGER
        while self._outstanding and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        self.errors["unanswered"] = self._outstanding
        for connection in list(self._all):
            connection.close()
        return self._report(sent_until - self._counts_from)

    def _path(self) -> str:
        return "/slow" if self._random.random() < self._plan.slow_share else "/fast"

    async def _connect(self) -> Connection | None:
        self._connecting += 1
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
        except OSError:
            self.errors["connect"] += 1
            return None
        finally:
            self._connecting -= 1
        self._all.add(connection)
        return connection

    # A fixed rate.

    async def _send_at_a_rate(self, began: float, stop: float) -> None:
        sent = 0
        while (now := time.perf_counter()) < stop:
            while sent < (now - began) * self._plan.rate:
                self._send_one(began + sent / self._plan.rate)
                sent += 1
            await asyncio.sleep(0.001)

    def _send_one(self, due: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                self._outstanding += 1
                connection.send(self._path(), due)
                return
        if len(self._all) + self._connecting >= self._plan.connections:
            self.errors["unsent"] += 1
            return
        self._outstanding += 1
        task = asyncio.get_running_loop().create_task(self._send_on_a_new_one(due))
        self._refills.add(task)
        task.add_done_callback(self._refills.discard)

    async def _send_on_a_new_one(self, due: float) -> None:
        connection = await self._connect()
        if connection is None:
            self._outstanding -= 1
        elif connection.open:
            connection.send(self._path(), due)
        else:
            self._outstanding -= 1
            self.errors["broken"] += 1

    # As many as are answered.

    async def _keep_busy(self, stop: float) -> None:
        for _ in range(self._plan.connections):
            await self._start_one()
        wait = PATIENCE if self._plan.count else max(0.0, stop - time.perf_counter())
        try:
            await asyncio.wait_for(self._finished.wait(), wait)
        except TimeoutError:
            return

    async def _start_one(self) -> None:
        connection = await self._connect()
        if connection is not None and connection.open:
            self._outstanding += 1
            connection.send(self._path(), time.perf_counter())

    # From the connections.

    def answered(self, connection: Connection, path: str, due: float, status: int) -> None:
        now = time.perf_counter()
        self._outstanding -= 1
        if due >= self._counts_from:
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200:
                self.latencies[path].append(now - due)
        if self._plan.mode == "open":
            if connection.open:
                self._idle.append(connection)
            return
        if self._plan.count and sum(self.statuses.values()) >= self._plan.count:
            self._sending = False
            self._finished.set()
        if not self._sending:
            return
        if connection.open:
            self._outstanding += 1
            connection.send(self._path(), now)

    def broken(self, connection: Connection) -> None:
        self._outstanding -= 1
        self.errors["broken"] += 1
        self.left(connection)

    def left(self, connection: Connection) -> None:
        self._all.discard(connection)
        if self._plan.mode == "closed" and self._sending:
            task = asyncio.get_running_loop().create_task(self._start_one())
            self._refills.add(task)
            task.add_done_callback(self._refills.discard)

    def _report(self, seconds: float) -> dict[str, Any]:
        every = sorted(latency for kind in self.latencies.values() for latency in kind)
        return {
            "seconds": seconds,
            "rate": len(every) / seconds,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "errors": self.errors,
            "all": _quantiles(every),
            "fast": _quantiles(sorted(self.latencies["/fast"])),
            "slow": _quantiles(sorted(self.latencies["/slow"])),
        }


def _quantiles(ordered: list[float]) -> dict[str, float]:
    """Milliseconds."""
    names = {"p50": 50.0, "p99": 99.0, "p999": 99.9, "longest": 100.0}
    return {
        "count": len(ordered),
        **{name: round(percentile(ordered, at) * 1000, 3) if ordered else 0.0 for name, at in names.items()},
    }


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port, plan = int(sys.argv[1]), Plan(**json.loads(sys.argv[2]))

    async def go() -> dict[str, Any]:
        return await Run(port, plan).go()

    try:
        import uvloop
    except ImportError:
        report = asyncio.run(go())
    else:
        report = uvloop.run(go())
    print(json.dumps(report))


if __name__ == "__main__":
    main()
