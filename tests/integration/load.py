"""Load whose every answer is checked to belong to its request.

    python tests/integration/load.py http://127.0.0.1:8080/load --connections 64 --seconds 30

So many keep-alive connections ask again and again, GET and POST mixed, each request with a token of its own.
The application answers `METHOD URI`, a newline and the request's body (app.py's /load does); anything else is
a wrong answer. A connection that the server ends is opened again. Standard library only; one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

Address = tuple[str, int] | str

CONNECT_PAUSE = 0.02
"""Seconds between two tries to connect."""

PATIENCE = 30.0
"""Seconds without an answer after which a request counts as hanging."""


@dataclass
class Report:
    """What happened. `errors` by method and kind; a status other than 200 is a kind of its own."""

    answers: int = 0
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)  # of errors, a few in full
    latencies: list[float] = field(default_factory=list)
    longest_gap: float = 0.0  # seconds without any answer at all
    longest_pause: float = 0.0  # seconds that the load's own thread did not run: no gap says more than this
    seconds: float = 0.0

    def count(self, method: str | None = None) -> int:
        """Requests that failed."""
        return sum(n for (its, _), n in self.errors.items() if method in (None, its))

    def latency(self, share: float) -> float:
        """The latency in seconds below which this share of the answers was."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0

    def __str__(self) -> str:
        rate = self.answers / max(self.seconds, 1e-9)
        lines = [
            f"{self.answers} answers in {self.seconds:.1f} s, {rate:.0f} a second",
            f"latency: 50% {1000 * self.latency(0.5):.2f} ms, 99% {1000 * self.latency(0.99):.2f} ms, "
            f"longest {1000 * self.latency(1.0):.2f} ms; longest time without an answer "
            f"{1000 * self.longest_gap:.0f} ms (the load itself paused for "
            f"{1000 * self.longest_pause:.0f} ms)",
            f"errors: {self.count()}",
        ]
        lines += [f"  {n} {method} {kind}" for (method, kind), n in self.errors.most_common()]
        lines += [f"  such as: {sample}" for sample in self.samples]
        return "\n".join(lines)


class _Connection(asyncio.Protocol):
    """One client: asks, checks the answer, asks again."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: asyncio.Transport
        self.buffer = b""
        self.method = ""
        self.expected = b""
        self.sent_at = 0.0
        self.waits = False  # for an answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.load.open.add(self)
        self.ask()

    def ask(self) -> None:
        if self.load.stopping:
            self.transport.close()
            return
        self.method, request, self.expected = self.load.next_request()
        self.waits = True
        self.sent_at = time.monotonic()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"\r\ncontent-length: ")
        if at < 0:
            self.fail("no Content-Length")
            return
        size = int(head[at + 18 :].split(b"\r\n", 1)[0])
        if len(self.buffer) < end + 4 + size:
            return
        body, behind = self.buffer[end + 4 : end + 4 + size], self.buffer[end + 4 + size :]
        status = head[9:12]
        if not self.waits:
            self.fail("answer that nobody asked for")
        elif behind:
            self.fail("bytes behind an answer")
        elif status != b"200":
            self.buffer = b""
            self.fail(f"status {status.decode()}", body, go_on=b"\r\nconnection: close" not in head)
        elif body != self.expected:
            self.fail("wrong answer", body)
        else:
            self.buffer = b""
            self.waits = False
            self.load.answered(time.monotonic() - self.sent_at)
            if b"\r\nconnection: close" in head:
                self.transport.close()
            else:
                self.ask()

    def fail(self, kind: str, body: bytes = b"", go_on: bool = False) -> None:
        self.waits = False
        self.load.failed(self.method, kind, f"{self.expected[:80]!r} was answered {body[:80]!r}")
        if go_on:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.load.open.discard(self)
        if self.waits:
            self.waits = False
            kind = "connection lost" + (" in an answer" if self.buffer else "")
            self.load.failed(self.method, kind, f"{error}: {self.expected[:80]!r}")
        self.load.reconnect()


class Load:
    """Runs in a thread of its own for as long as a with block; then `report` says what happened."""

    def __init__(
        self,
        address: Address,
        connections: int = 64,
        posts: float = 0.3,
        target: str = "/load",
        host: str = "load.example",
        largest_body: int = 2000,
    ) -> None:
        """posts: the share of requests that are POSTs."""
        self.report = Report()
        self.open: set[_Connection] = set()
        self.stopping = False
        self._address = address
        self._connections = connections
        self._posts = posts
        self._target = target
        self._host = host
        self._bodies = [random.Random(size).randbytes(size) for size in range(0, largest_body + 1, 97)]
        self._numbers = itertools.count(1)
        self._random = random.Random(4711)
        self._last_answer = 0.0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping = True
        self._thread.join()

    def run(self, seconds: float) -> Report:
        """Load for so long."""
        with self:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                self._thread.join(min(0.05, max(end - time.monotonic(), 0.0)))
        return self.report

    def next_request(self) -> tuple[str, bytes, bytes]:
        """Method, the whole request, the body that its answer must have."""
        token = next(self._numbers)
        target = f"{self._target}{'&' if '?' in self._target else '?'}token={token:08d}"
        uri = f"http://{self._host}{target}\n".encode()
        if self._random.random() >= self._posts:
            return "GET", f"GET {target} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode(), b"GET " + uri
        body = b"%d " % token + self._random.choice(self._bodies)
        head = f"POST {target} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n\r\n"
        return "POST", head.encode() + body, b"POST " + uri + body

    def answered(self, latency: float) -> None:
        now = time.monotonic()
        self.report.answers += 1
        self.report.latencies.append(latency)
        self.report.longest_gap = max(self.report.longest_gap, now - self._last_answer)
        self._last_answer = now

    def failed(self, method: str, kind: str, sample: str) -> None:
        self.report.errors[method, kind] += 1
        if len(self.report.samples) < 10:
            self.report.samples.append(f"{method} {kind}: {sample}")

    def reconnect(self) -> None:
        if not self.stopping:
            self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        while not self.stopping:
            try:
                if isinstance(self._address, str):
                    await self._loop.create_unix_connection(lambda: _Connection(self), self._address)
                else:
                    await self._loop.create_connection(lambda: _Connection(self), *self._address)
                return
            except OSError as error:
                self.failed("connect", type(error).__name__, str(error))
                await asyncio.sleep(CONNECT_PAUSE)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        began = self._last_answer = time.monotonic()
        for _ in range(self._connections):
            self._loop.create_task(self._connect())
        while not self.stopping:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            pause = time.monotonic() - before - 0.01
            self.report.longest_pause = max(self.report.longest_pause, pause)
            for connection in list(self.open):
                if connection.waits and time.monotonic() - connection.sent_at > PATIENCE:
                    connection.fail(f"no answer in {PATIENCE:g} s")
        self.report.longest_gap = max(self.report.longest_gap, time.monotonic() - self._last_answer)
        self.report.seconds = time.monotonic() - began
        end = time.monotonic() + PATIENCE
        # What has been asked is still to be answered.
        while any(connection.waits for connection in self.open) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for connection in list(self.open):
            if connection.waits:
                connection.fail(f"no answer in {PATIENCE:g} s after the end")
            connection.transport.abort()
        while self.open:
            await asyncio.sleep(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="http://HOST:PORT/PATH, or unix:SOCKET for the path /load there")
    parser.add_argument("--connections", type=int, default=64, metavar="N")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S")
    parser.add_argument("--posts", type=float, default=0.3, metavar="SHARE", help="share of POSTs, 0 to 1")
    parser.add_argument("--largest-body", type=int, default=2000, metavar="BYTES")
    arguments = parser.parse_args()
    if arguments.url.startswith("unix:"):
        address: Address = arguments.url.removeprefix("unix:")
        target = "/load"
    else:
        parts = urlsplit(arguments.url)
        address = (socket.gethostbyname(parts.hostname or "127.0.0.1"), parts.port or 80)
        target = parts.path or "/"
    load = Load(
        address,
        arguments.connections,
        arguments.posts,
        target,
        largest_body=arguments.largest_body,
    )
    try:
        report = load.run(arguments.seconds)
    except KeyboardInterrupt:
        report = load.report
    print(report)
    sys.exit(1 if report.count() else 0)


if __name__ == "__main__":
    main()
