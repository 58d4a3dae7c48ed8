"""A pool thread without gunicorn: the test plays the HTTP workers, the children are real processes."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

import poolparty.settings  # noqa: F401 - registers the options
from poolparty.arbiter.children import Child
from poolparty.arbiter.pool_thread import PoolThread, Seat
from poolparty.pool.child import State
from poolparty.pools import pool_configs
from poolparty.stats.scoreboard import ChildWord, Scoreboard, SeatWord
from poolparty.wire import seat as wire
from poolparty.wire.frames import HTTPRequest, HTTPResponse, decode_response, encode_request

DEADLINE = 10.0

# What a child's program starts with: frames by hand, so that it can also do wrong.
PRELUDE = """
import os, signal, sys, time
def read(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            os._exit(0)
        data += piece
    return data
def receive():
    return read(int.from_bytes(read(4), "little"))
def write(payload):
    os.write(3, len(payload).to_bytes(4, "little") + payload)
def ready(*features):
    write(b"\\1" + bytes([len(features)]) + b"".join(bytes([len(f)]) + f.encode() for f in features))
def well(ok=True, message=""):
    write(b"\\2" + bytes([ok, len(message)]) + message.encode())
def answer(body=b"hi"):
    write(b"\\0\\xc8\\x01\\0" + bytes([len(body)]) + body)
def serve(handler=lambda payload: b"hi"):
    while True:
        payload = receive()
        if payload[0] == 0:
            answer(handler(payload))
def gate(path):
    open(path).read()
"""


def wait_until(
    condition: Callable[[], Any], what: str | Callable[[], str] = "", deadline: float = DEADLINE
) -> Any:
    """Wait until condition() is true and return what it is; fail loudly otherwise.

    what: what is waited for; a callable where it says how things stand, which are to be those at the end.
    """
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline} s for {what() if callable(what) else what or condition}")
        time.sleep(0.002)
    return value


def process_lives(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class ListLog:
    """Keeps what is logged as (level, text)."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def log(self, level: int, message: str, *args: object) -> None:
        self.lines.append((level, message % args if args else message))

    def texts(self, containing: str = "") -> list[str]:
        return [text for _, text in self.lines if containing in text]


@dataclass
class Loan:
    """A child in the hands of a test."""

    worker: Worker
    lease: int
    slot: int
    pid: int
    stdin: int
    fd3: int
    pool: int = 0

    @property
    def _board(self) -> Scoreboard:
        return self.worker.seat.pools[self.pool].scoreboard

    def _column(self, column: ChildWord) -> int:
        return self._board.child_base(self.slot) + column

    def send(self, uri: bytes = b"http://h/") -> None:
        self._board.words[self._column(ChildWord.SENT)] += 1
        self._board.times[self._column(ChildWord.STARTED)] = time.monotonic()
        os.write(self.stdin, encode_request(HTTPRequest(b"a:1", uri, b"GET", [], b"")))

    def answer(self) -> bytes:
        """The body of the next answer; EOFError: the child has closed fd 3."""
        data = b""
        end = time.monotonic() + DEADLINE
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
            try:
                piece = os.read(self.fd3, 65536)
            except BlockingIOError:
                assert time.monotonic() < end, "no answer came"
                time.sleep(0.001)
                continue
            if not piece:
                raise EOFError
            data += piece
        response = decode_response(data[4:])
        assert isinstance(response, HTTPResponse)
        self._board.words[self._column(ChildWord.ANSWERED)] += 1
        return bytes(response.body)

    def close(self) -> None:
        for fd in (self.stdin, self.fd3):
            os.close(fd)

    def give_back(self, reason: wire.Reason = wire.Reason.IDLE) -> None:
        self.close()
        self.worker.send(wire.Return(self.lease, reason))


class Worker:
    """An HTTP worker's end of a seat."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.channel = seat.worker_end
        self.channel.settimeout(DEADLINE)
        self.loans: list[Loan] = []

    def send(self, message: wire.Message) -> None:
        self.channel.send(wire.encode(message))

    def want(self, count: int = 1, pool: int = 0) -> None:
        """As the dispatcher does when requests wait."""
        board = self.seat.pools[pool].scoreboard
        base = board.seat_base(self.seat.id)
        board.times[base + SeatWord.OLDEST] = time.monotonic()
        board.words[base + SeatWord.QUEUED] = count
        self.send(wire.Want())

    def stop_wanting(self, pool: int = 0) -> None:
        board = self.seat.pools[pool].scoreboard
        board.words[board.seat_base(self.seat.id) + SeatWord.QUEUED] = 0

    def take(self) -> Loan:
        """The next LEND; nothing waits afterwards."""
        packet, fds, _, _ = socket.recv_fds(self.channel, wire.MAX_PACKET, wire.LEND_FDS)
        message = wire.decode(packet)
        assert isinstance(message, wire.Lend)
        self.stop_wanting(message.pool)
        return Loan(self, message.lease, message.slot, message.pid, *fds, message.pool)

    def borrow(self, pool: int = 0) -> Loan:
        self.want(pool=pool)
        return self.take()

    def receive(self) -> wire.Message:
        return wire.decode(self.channel.recv(wire.MAX_PACKET))


class Bench:
    """A pool with a program for its children, started at once."""

    def __init__(self, directory: Path, program: str, **options: object) -> None:
        self.directory = directory
        self.log = ListLog()
        self.cfg = self.config(program, **options)
        self.failed: list[bool] = []
        self.pool = PoolThread(
            pool_configs(self.cfg), self.cfg, self.log, on_failure=lambda: self.failed.append(True)
        )
        self.workers: list[Worker] = []

    def config(self, program: str | list[str], **options: object) -> Config:
        cfg = Config()
        command = (
            [sys.executable, "-I", "-S", "-c", PRELUDE + program] if isinstance(program, str) else program
        )
        for table in dict(options.get("pools") or {}).values():  # type: ignore[call-overload]
            if "program" in table:
                table["pool_cmd"] = [*command[:-1], PRELUDE + table.pop("program")]
        settings = {
            "pool_cmd": command,
            "ctl_socket": str(self.directory / "ctl"),
            "chdir": str(self.directory),
        }
        for name, value in {**settings, **options}.items():
            cfg.set(name, value)
        return cfg

    def start(self) -> Bench:
        self.pool.claim()
        self.pool.start()
        return self

    def worker(self) -> Worker:
        worker = Worker(self.pool.open_seat())
        self.workers.append(worker)
        return worker

    def children(self, *states: State) -> list[Child]:
        with self.pool.lock:
            return [
                child for child in self.pool.pools[0].children.values() if not states or child.state in states
            ]

    def wait_children(self, count: int, *states: State) -> list[Child]:
        found = wait_until(
            lambda: [None, *children] if len(children := self.children(*states)) == count else None,
            lambda: (
                f"{count} children that are {states}; there are {self.children()}, log {self.log.texts()}"
            ),
        )
        return found[1:]

    def wait_log(self, text: str, count: int = 1) -> str:
        return wait_until(
            lambda: self.log.texts(text) if len(self.log.texts(text)) >= count else None,
            f"{text!r} in the log",
        )[-1]

    def restart(self, pool: str | None = None) -> list[str | None]:
        """Start a restart; the list gets its outcome."""
        outcome: list[str | None] = []
        with self.pool.lock:
            self.pool.restart_workers(outcome.append, "a test", pool)
        return outcome

    def stop(self) -> None:
        for worker in self.workers:
            worker.channel.close()
        self.pool.stop(graceful=False)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes a started Bench from a program and options."""
    made: list[Bench] = []

    def make(program: str = "serve()", **options: object) -> Bench:
        made.append(Bench(tmp_path, program, **options))
        return made[-1].start()

    yield make
    for one in made:
        one.stop()
        assert not one.pool.failure, one.pool.failure


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """A fixture since test modules cannot import each other: wait_until."""
    return wait_until


@pytest.fixture
def lives() -> Callable[[int], bool]:
    return process_lives


@pytest.fixture
def prelude() -> str:
    return PRELUDE
