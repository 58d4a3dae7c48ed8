"""A dispatcher on real pipes, and a test as its arbiter, its children and its connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from gunicorn.config import Config

from poolparty.arbiter.seats import Share
from poolparty.errors import AnswerError
from poolparty.pools import PoolConfig
from poolparty.settings import Options
from poolparty.stats.notice import Notice
from poolparty.stats.scoreboard import COUNTER_INDEX, ChildWord, Scoreboard, SeatWord
from poolparty.wire import seat as messages
from poolparty.wire.frames import (
    HTTPRequest,
    HTTPResponse,
    ResponseHead,
    decode_request,
    encode_request,
    encode_response,
)
from poolparty.wire.seat import Lend, Reason, Recall, Want
from poolparty.worker.channel import Channel
from poolparty.worker.dispatcher import Dispatcher
from poolparty.worker.lease import Lease
from poolparty.worker.request import Request

DEADLINE = 10.0
BACKLOG = 4

CFG = Config()
CFG.set("pool_cmd", ["true"])
DEFAULTS = Options.from_cfg(CFG)
LIMIT = DEFAULTS.worker_request_timeout
PATIENCE = DEFAULTS.worker_spawn_timeout + DEFAULTS.worker_rendezvous_timeout


class FakeConnection:
    """One client: what it was told, in order. Like the real one it lets go of an answered request."""

    def __init__(self, usable: bool = True) -> None:
        self.told: list[Any] = []
        self.body = b""
        self.lease: Lease | None = None
        self.usable = usable
        self.unsent = 0

    def send_response(self, request: Request, head: ResponseHead, body: bytes | memoryview) -> None:
        request.connection = None
        self.told.append(bytes(body))

    def start_response(self, request: Request, head: ResponseHead, size: int | None, lease: Lease) -> bool:
        if not self.usable:
            self.fail(request, 502)
            return False
        self.lease = lease
        self.told.append(("start", size))
        return True

    def send_piece(self, request: Request, data: bytes | memoryview, last: bool) -> None:
        self.body += data
        if last:
            request.connection = self.lease = None
            self.told.append("end")

    def cut_response(self, request: Request, outcome: int = 0) -> None:
        request.connection = None
        self.told.append("cut")

    def unusable(self, request: Request, error: AnswerError) -> None:
        self.fail(request, 502)

    def too_large(self, request: Request) -> None:
        self.fail(request, 413)

    def fail(self, request: Request, status: int) -> None:
        assert request.connection is not None, "it has had its answer"
        request.connection = None
        self.told.append(status)


class Child:
    """The far ends of a child's pipes."""

    def __init__(self, pool: Pool, number: int, slot: int) -> None:
        self.pool = pool
        self.number = number
        self.slot = slot
        self.stdin, self.their_stdin = os.pipe()
        self.their_stdout, self.stdout = os.pipe()
        for fd in (self.stdin, self.their_stdin, self.their_stdout, self.stdout):
            os.set_blocking(fd, False)
        self._read = b""

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes of stdin, the loop running meanwhile."""

        def enough() -> bool:
            with contextlib.suppress(BlockingIOError):
                self._read += os.read(self.stdin, size - len(self._read))
            return len(self._read) >= size

        self.pool.until(enough)
        data, self._read = self._read[:size], self._read[size:]
        return data

    def receive(self) -> HTTPRequest:
        """The next request."""
        request = decode_request(self.read(int.from_bytes(self.read(4), "little")))
        assert isinstance(request, HTTPRequest)
        return request

    def target(self) -> bytes:
        return self.receive().uri.removeprefix(b"http://h")

    @property
    def has_nothing(self) -> bool:
        """Whether its stdin is empty now."""
        self.pool.spin()
        with contextlib.suppress(BlockingIOError):
            self._read += os.read(self.stdin, 1 << 16)
        return not self._read

    def write(self, data: bytes) -> Child:
        """Write to fd 3, the loop running meanwhile."""
        rest = memoryview(data)

        def written() -> bool:
            nonlocal rest
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self.stdout, rest) :]
            return not rest

        self.pool.until(written)
        self.pool.spin()
        return self

    def answer(self, body: bytes = b"ok") -> Child:
        return self.write(response(body))

    def die(self) -> None:
        for name in ("stdin", "stdout"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)
        self.pool.spin()

    def close_ours(self) -> None:
        for name in ("their_stdin", "their_stdout"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)

    @property
    def words(self) -> tuple[int, int]:
        """SENT and ANSWERED."""
        base = self.pool.board.child_base(self.slot)
        return self.pool.board.words[base + ChildWord.SENT], self.pool.board.words[base + ChildWord.ANSWERED]


def response(body: bytes) -> bytes:
    return encode_response(HTTPResponse(ResponseHead(200, [(b"A", [b"b"])]), body))


class Pool:
    """A dispatcher, its event loop, and the arbiter's end of its channel."""

    def __init__(self, **changes: Any) -> None:
        options = replace(DEFAULTS, **{"pool_prefetch": 1, "request_backlog": BACKLOG} | changes)
        self.now = 1000.0
        self.loop = asyncio.new_event_loop()
        self.failures: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.failures.append(context))
        self.board = Scoreboard(1, 8)
        self.arbiter, self._worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.arbiter.setblocking(False)
        self._worker.setblocking(False)
        self.log: list[str] = []
        self.orphaned = False
        server = SimpleNamespace(
            log=SimpleNamespace(
                log=lambda level, text, *args: self.log.append(text % args),
                error=lambda text, *args: self.log.append(text % args),
                warning=lambda text, *args: self.log.append(text % args),
            ),
        )
        share: Any = Share(PoolConfig("default", (), options, CFG), self.board, Notice())
        seat: Any = SimpleNamespace(id=0, pools=(share,))
        channel = Channel(self._worker, self.loop, self._arbiter_died)
        self.dispatcher = Dispatcher(server, seat, share, channel, self.loop)  # type: ignore[arg-type]
        channel.serve([self.dispatcher])
        self.children: list[Child] = []
        self.clients: list[FakeConnection] = []

    def _arbiter_died(self) -> None:
        self.orphaned = True

    def close(self) -> None:
        for lease in list(self.dispatcher.leases.values()):
            self.dispatcher.give_back(lease, Reason.IDLE)
        self.dispatcher._stop_waiting()
        for child in self.children:
            child.die()
            child.close_ours()
        self.loop.remove_reader(self._worker.fileno())
        self.arbiter.close()
        self._worker.close()
        self.loop.close()
        assert self.failures == []

    # --- time ---

    def spin(self) -> None:
        """Let the loop do what can be done now."""
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))

    def until(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + DEADLINE
        while not (result := condition()):
            assert time.monotonic() < deadline, "it did not come about"
            self.loop.run_until_complete(asyncio.sleep(0))
        return result

    def later(self, seconds: float) -> Pool:
        self.now += seconds
        self.dispatcher.sweep(self.now)
        self.spin()
        return self

    # --- as the arbiter ---

    def child(self, fds: int = 2, max_requests: int = 0) -> Child:
        """Lend a new child."""
        number = len(self.children) + 1
        child = Child(self, number, number % 8)
        self.children.append(child)
        self.board.clear_child(child.slot)
        self.board.words[self.board.child_base(child.slot) + ChildWord.MAX_REQUESTS] = max_requests
        ends = [child.their_stdin, child.their_stdout][:fds]
        lend = messages.encode(Lend(number, child.slot, 4000 + number))
        socket.send_fds(self.arbiter, [lend], ends)
        child.close_ours()
        self.spin()
        return child

    def recall(self, child: Child) -> None:
        self.arbiter.send(messages.encode(Recall(child.number)))
        self.spin()

    def mail(self) -> list[messages.Message]:
        """What the dispatcher has sent, WANT left out."""
        return [message for message in self._mail() if not isinstance(message, Want)]

    def wanted(self) -> bool:
        """Wait for a WANT."""
        return bool(self.until(lambda: any(isinstance(message, Want) for message in self._mail())))

    def _mail(self) -> Iterator[messages.Message]:
        self.spin()
        with contextlib.suppress(BlockingIOError):
            while True:
                yield messages.decode(self.arbiter.recv(64))

    def seat(self, column: SeatWord) -> int:
        return self.board.words[self.board.seat_base(0) + column]

    def oldest(self) -> float:
        return self.board.times[self.board.seat_base(0) + SeatWord.OLDEST]

    def count(self, name: str) -> int:
        return self.board.words[self.board.seat_base(0) + COUNTER_INDEX[name]]

    # --- as the connections ---

    def ask(
        self, target: bytes = b"/", method: bytes = b"GET", body: bytes = b"", usable: bool = True
    ) -> FakeConnection:
        """Submit a request of a client of its own."""
        client = FakeConnection(usable)
        self.clients.append(client)
        client_request = self.request(client, target, method, body)
        if not self.dispatcher.submit(client_request, self.now):
            client.fail(client_request, 503)
        return client

    def request(self, client: Any, target: bytes, method: bytes = b"GET", body: bytes = b"") -> Request:
        frame = encode_request(HTTPRequest(b"@", b"http://h" + target, method, [], body))
        request = Request(client, frame[: len(frame) - len(body)], method, target, "1.1", [], True)
        request.body = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
        request.accepted = self.now
        return request

    def hurry(self) -> None:
        """Have answers been fast enough for writing requests ahead."""
        self.dispatcher.pace.steady = True
