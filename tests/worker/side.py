"""The server, one connection of it on a fake transport, and a test as its client and as the pool."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from gunicorn.config import Config

from poolparty.arbiter.seats import Share
from poolparty.pool.routing import parse_route
from poolparty.pools import PoolConfig
from poolparty.settings import Options
from poolparty.stats.notice import Notice
from poolparty.stats.scoreboard import COUNTER_INDEX, Scoreboard
from poolparty.wire.frames import HTTPRequest, ResponseHead, decode_request
from poolparty.worker import connection as connection_module
from poolparty.worker import reading as reading_module
from poolparty.worker import server as server_module
from poolparty.worker.connection import Connection
from poolparty.worker.request import Request
from poolparty.worker.server import Server

CLOCKED = (connection_module, reading_module, server_module)
"""What goes by a Side's clock while it is open."""

READ_TIMEOUT, WRITE_TIMEOUT, KEEPALIVE = 60.0, 30.0, 75.0
MAX_BODY = 100_000
LINE_LIMIT, FIELDS_LIMIT, FIELD_LIMIT = 200, 10, 300
HEAD_LIMIT = LINE_LIMIT + FIELDS_LIMIT * (FIELD_LIMIT + 4)


CFG = Config()
CFG.set("pool_cmd", ["true"])
DEFAULTS = Options.from_cfg(CFG)


class Settings(SimpleNamespace):
    """gunicorn's settings, some of them changed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(CFG, name)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeTransport:
    """What a connection asks of its transport. `unsent`, of what was written, is set by the test."""

    def __init__(
        self, tls: bool = False, peer: Any = ("10.0.0.1", 5000), sock: socket.socket | None = None
    ) -> None:
        self.written = b""
        self.unsent = 0
        self.reading = True
        self.eof = False
        self.closed = False
        self.aborted = False
        self.high = 0
        self._tls = tls
        self._extra = {"peername": peer, "socket": sock}
        self.on_write: Any = None

    def get_extra_info(self, name: str) -> Any:
        return self._extra.get(name)

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def write(self, data: bytes | memoryview) -> None:
        assert not self.eof, "write after write_eof"
        if not self.closed:
            self.written += bytes(data)
            if self.on_write is not None:
                self.on_write()

    def can_write_eof(self) -> bool:
        return not self._tls

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unsent


class FakeDispatcher:
    def __init__(self, server: Any, seat: Any, share: Share, channel: Any, loop: Any) -> None:
        self.name = share.config.name
        self.notice = share.notice
        self.max_body = share.config.options.max_request_body_size
        self.words = share.scoreboard.words
        self.base = share.scoreboard.seat_base(seat.id)
        self.submitted: list[Request] = []
        self.forgotten: list[Request] = []
        self.room = True
        self.waiting: set[int] = set()

    def submit(self, request: Request, now: float) -> bool:
        if self.room:
            self.submitted.append(request)
        return self.room

    def forget(self, request: Request) -> None:
        self.forgotten.append(request)

    def waits(self, request: Request) -> bool:
        return id(request) in self.waiting

    def count(self, column: int) -> None:
        self.words[self.base + column] += 1

    def add(self, column: int, amount: int) -> None:
        self.words[self.base + column] += amount

    def drain(self) -> None:
        pass

    def sweep(self, now: float) -> None:
        pass


class FakeLease:
    def __init__(self) -> None:
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class FakeLog:
    access_log_enabled = True

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.errors: list[str] = []

    def access(self, response: Any, request: Any, environ: dict[str, str], elapsed: Any) -> None:
        self.lines.append((response.status, environ["RAW_URI"]))

    def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        self.errors.append(message % args)

    info = warning = critical = error


class Side:
    """The server, one connection of it, and the test as its client and as the pool."""

    def __init__(
        self, *, pools: Sequence[tuple[str, Sequence[str], dict[str, Any]]] = (), **changes: Any
    ) -> None:
        """pools: beside the default one: name, routes, options."""
        cfg: dict[str, Any] = {
            "limit_request_line": LINE_LIMIT,
            "limit_request_fields": FIELDS_LIMIT,
            "limit_request_field_size": FIELD_LIMIT,
            "keepalive": KEEPALIVE,
            "worker_connections": 100,
        }
        options: dict[str, Any] = {
            "max_request_body_size": MAX_BODY,
            "request_read_timeout": READ_TIMEOUT,
            "request_write_timeout": WRITE_TIMEOUT,
        }
        for name, value in changes.items():
            (options if hasattr(DEFAULTS, name) else cfg)[name] = value
        self.clock = Clock()
        self.log = FakeLog()
        self.board = Scoreboard(1, 1)
        self._channel = socket.socketpair()
        settings = replace(DEFAULTS, **options)
        share = Share(PoolConfig("default", (), settings, CFG), self.board, Notice())
        others = tuple(
            Share(
                PoolConfig(name, tuple(map(parse_route, routes)), replace(settings, **own), CFG),
                Scoreboard(1, 1),
                Notice(),
            )
            for name, routes, own in pools
        )
        seat: Any = SimpleNamespace(
            id=0, scoreboard=self.board, pools=(share, *others), worker_end=self._channel[0]
        )
        loop: Any = SimpleNamespace(add_reader=lambda *args: None)
        for module in CLOCKED:
            module.monotonic = self.clock  # type: ignore[attr-defined]
        with patch.object(server_module, "Dispatcher", FakeDispatcher):
            self.server = Server(Settings(**cfg), settings, self.log, seat, loop, list)  # type: ignore[arg-type]
        self.dispatcher: Any = self.server.dispatcher
        self.boards = {share.config.name: share.scoreboard for share in seat.pools}
        self._answered = 0
        self._read = 0
        self.transport, self.connection = self.connect()

    def close(self) -> None:
        for module in CLOCKED:
            module.monotonic = time.monotonic  # type: ignore[attr-defined]
        for end in self._channel:
            end.close()

    def connect(self, **kwargs: Any) -> tuple[FakeTransport, Connection]:
        transport = FakeTransport(**kwargs)
        connection = Connection(self.server)
        connection.connection_made(transport)  # type: ignore[arg-type]
        return transport, connection

    # --- as the client ---

    def send(self, *pieces: bytes) -> Side:
        for piece in pieces:
            assert self.transport.reading, "what is not read cannot arrive"
            self.connection.data_received(piece)
        return self

    def leave(self) -> None:
        self.connection.connection_lost(None)

    def received(self) -> list[tuple[int, bytes]]:
        """(status, body) of the answers since the last call; 100 Continue among them."""
        data = self.transport.written[self._read :]
        self._read = len(self.transport.written)
        answers = []
        while data:
            head, end, data = data.partition(b"\r\n\r\n")
            assert end, head
            status = int(head.split()[1])
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            size = 0 if status == 100 or length is None else int(length[1])
            answers.append((status, data[:size]))
            data = data[size:]
        return answers

    def statuses(self) -> list[int]:
        return [status for status, _ in self.received()]

    # --- as the pool ---

    @property
    def running(self) -> Request | None:
        """The request that was submitted and is not answered."""
        assert self._answered in (len(self.dispatcher.submitted), len(self.dispatcher.submitted) - 1)
        return None if self._answered == len(self.dispatcher.submitted) else self.dispatcher.submitted[-1]

    def seen(self) -> HTTPRequest:
        """The running request as its child sees it."""
        request = self.running
        assert request is not None
        wire = b"".join((request.head, *request.body))
        assert int.from_bytes(wire[:4], "little") == len(wire) - 4
        decoded = decode_request(wire[4:])
        assert isinstance(decoded, HTTPRequest)
        return decoded

    def answer(
        self, body: bytes = b"ok", status: int = 200, headers: list[tuple[bytes, list[bytes]]] | None = None
    ) -> Side:
        request = self.running
        assert request is not None and request.connection is self.connection
        self._answered += 1
        self.connection.send_response(request, ResponseHead(status, headers or []), body)
        return self

    def begin(self, size: int | None, headers: list[tuple[bytes, list[bytes]]] | None = None) -> FakeLease:
        request = self.running
        assert request is not None
        lease = FakeLease()
        assert self.connection.start_response(request, ResponseHead(200, headers or []), size, lease)  # type: ignore[arg-type]
        return lease

    def piece(self, data: bytes | bytearray, last: bool) -> None:
        request = self.running
        assert request is not None
        if last:
            self._answered += 1
        self.connection.send_piece(request, data, last)

    def serve(self) -> list[HTTPRequest]:
        """Answer everything that comes, with its own target; what was seen."""
        seen = []
        while self.running is not None:
            seen.append(self.seen())
            self.answer(self.running.target)
        return seen

    # --- as the clock ---

    def later(self, seconds: float) -> Side:
        self.clock.now += seconds
        self.server._next_sweep = 0.0
        self.server.tick()
        return self

    def count(self, name: str, pool: str = "default") -> int:
        board = self.boards[pool]
        return board.words[board.seat_base(0) + COUNTER_INDEX[name]]


def get(target: bytes = b"/", *fields: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return method + b" " + target + b" HTTP/" + version + b"\r\nHost: h\r\n" + lines + b"\r\n"


def post(body: bytes, *fields: bytes, target: bytes = b"/") -> bytes:
    return get(target, b"Content-Length: %d" % len(body), *fields, method=b"POST") + body


def chunked(*chunks: bytes, trailer: bytes = b"", target: bytes = b"/") -> bytes:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return get(target, b"Transfer-Encoding: chunked", method=b"POST") + wire + b"0\r\n" + trailer + b"\r\n"


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]
