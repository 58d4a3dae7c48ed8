"""The load generator sees what it is there to see: it is run against servers with one fault each."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import threading
from collections.abc import Callable, Iterator

import load
import pytest
from load import Load, Report

Respond = Callable[[str, bytes, int], bytes]
"""(method and uri, body, number of the request) -> the bytes that answer it."""


def ok(body: bytes, more: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def right(line: str, body: bytes, number: int) -> bytes:
    return ok(line.encode() + b"\n" + body)


@contextlib.contextmanager
def serving(respond: Respond) -> Iterator[tuple[str, int]]:
    """A server that answers what `respond` says; where it says nothing, the connection is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    numbers = itertools.count(1)
    open_sockets: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            buffer = b""
            while True:
                while b"\r\n\r\n" not in buffer:
                    data = connection.recv(65536)
                    if not data:
                        return
                    buffer += data
                head, buffer = buffer.split(b"\r\n\r\n", 1)
                method, target = head.split(b" ")[:2]
                length = re.search(rb"Content-Length: (\d+)", head)
                size = int(length[1]) if length else 0
                while len(buffer) < size:
                    buffer += connection.recv(65536)
                body, buffer = buffer[:size], buffer[size:]
                line = f"{method.decode()} http://load.example{target.decode()}"
                answer = respond(line, body, next(numbers))
                if not answer:
                    return
                connection.sendall(answer)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                open_sockets.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def loaded(respond: Respond) -> Report:
    with serving(respond) as address:
        return Load(address, connections=4, posts=0.5).run(0.3)


def kinds(report: Report) -> set[str]:
    return {kind for _, kind in report.errors}


@pytest.mark.alone
def test_a_server_without_a_fault_has_none() -> None:
    report = loaded(right)
    assert report.count() == 0, report
    assert report.answers > 50
    assert 0 < report.latency(0.5) <= report.latency(0.99) <= report.latency(1.0)
    assert report.longest_gap < 0.3


@pytest.mark.parametrize(
    ("respond", "kind"),
    [
        (
            lambda line, body, n: right(line, body + b"!", n) if n == 9 else right(line, body, n),
            "wrong answer",
        ),
        (
            lambda line, body, n: right(line, body[:-1] + b"?", n) if body else right(line, body, n),
            "wrong answer",
        ),
        (lambda line, body, n: right("GET /", body, n) if n == 9 else right(line, body, n), "wrong answer"),
        (lambda line, body, n: right(line, body, n) * (1 + (n == 9)), "bytes behind an answer"),
        (lambda line, body, n: right(line, body, n) if n % 9 else b"", "connection lost"),
        (
            lambda line, body, n: (
                right(line, body, n).replace(b"Content-Length", b"X") if n == 9 else right(line, body, n)
            ),
            "no Content-Length",
        ),
        (
            lambda line, body, n: (
                right(line, body, n) if n != 9 else b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
            ),
            "status 503",
        ),
    ],
    ids=["longer", "altered", "anothers", "twice", "closed", "unframed", "busy"],
)
def test_a_fault_is_seen_and_named(respond: Respond, kind: str) -> None:
    report = loaded(respond)
    assert kind in kinds(report), report
    assert kind in str(report)


def test_answers_given_to_the_wrong_requests_are_seen() -> None:
    last: list[bytes] = [b"nothing"]

    def swapped(line: str, body: bytes, number: int) -> bytes:
        answer, last[0] = last[0], right(line, body, number)
        return answer if number > 1 else right(line, body, number)

    assert "wrong answer" in kinds(loaded(swapped))


def test_a_connection_that_is_closed_as_announced_is_no_fault() -> None:
    def closing(line: str, body: bytes, number: int) -> bytes:
        return ok(line.encode() + b"\n" + body, "Connection: close\r\n")

    report = loaded(closing)
    assert report.count() == 0, report
    assert report.answers > 20


def test_a_server_that_hangs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PATIENCE", 0.2)
    hang = threading.Event()

    def hanging(line: str, body: bytes, number: int) -> bytes:
        if number == 20:
            hang.wait(5)
        return right(line, body, number)

    report = loaded(hanging)
    hang.set()
    assert any("no answer in" in kind for kind in kinds(report)), report


def test_nobody_at_the_door_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = probe.getsockname()
    report = Load(address, connections=2).run(0.1)
    assert ("connect", "ConnectionRefusedError") in report.errors
