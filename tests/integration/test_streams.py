"""Streamed responses through a real server: they arrive as they are sent, hold nobody up, and end."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from client import Client
from server import HERE, Server, wait_until

from poolparty.wire.frames import Ready, ResponseHead, ResponsePiece, ResponseStart, encode_response

Serve = Callable[..., Server]

APP = [sys.executable, str(HERE / "streaming.py")]
BLOCK = 1 << 16


@pytest.fixture
def stream(serve: Serve) -> Callable[..., Server]:
    def start(*options: str, children: int = 2, expected: list[str] | None = None) -> Server:
        size = ("--min-pool-size", str(children), "--max-pool-size", str(children))
        server = serve(*size, *options, command=APP, expected=expected or [])
        server.wait_ready(children)
        return server

    return start


@contextlib.contextmanager
def opened(server: Server, target: str, version: int = 11) -> Iterator[http.client.HTTPResponse]:
    """A response whose body is yet to be read."""
    assert not isinstance(server.address, str)
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    connection._http_vsn, connection._http_vsn_str = version, f"HTTP/{version // 10}.{version % 10}"  # type: ignore[attr-defined]
    try:
        connection.request("GET", target)
        yield connection.getresponse()
    finally:
        connection.close()


@pytest.mark.parametrize("version", [10, 11])
def test_pieces_come_whole_and_in_order(stream: Callable[..., Server], version: int) -> None:
    server = stream()
    for _ in range(3):
        with opened(server, "/three", version) as response:
            assert response.status == 200
            assert (response.getheader("Transfer-Encoding") == "chunked") == (version == 11)
            assert response.read() == b"one\ntwo\nthree\n"
    assert server.pool()["counters"]["streamed"] == 3


@pytest.mark.alone
def test_an_event_is_with_its_client_before_the_next_one_is_made(stream: Callable[..., Server]) -> None:
    server = stream()
    late = []
    with opened(server, "/events?ms=20&n=50") as response:
        assert response.getheader("Content-Type") == "text/event-stream"
        while line := response.readline():
            if line.startswith(b"data: "):
                late.append(time.monotonic() - float(line.split()[2]))
    assert len(late) == 50
    late.sort()
    assert late[len(late) // 2] < 0.02, late[-5:]


def test_after_a_client_has_left_its_child_is_free_at_once(stream: Callable[..., Server]) -> None:
    server = stream(children=1)
    with opened(server, "/events?ms=50") as response:
        assert response.readline()
        [pid] = server.children("busy")
    began = time.monotonic()
    closed = server.get("/closed").text
    assert time.monotonic() - began < 1.0
    assert closed == f"1 {pid}"
    assert server.pool()["outcomes"]["abandoned"] == 1


def test_a_child_that_does_not_look_is_ended_after_stream_cancel_timeout(
    serve: Serve, tmp_path: Path
) -> None:
    """It announces `stream` alone, and goes on for ever."""
    program = tmp_path / "deaf.py"
    start = encode_response(ResponseStart(ResponseHead(200, []), None))
    piece = encode_response(ResponsePiece(b"on and on\n", False))
    ready = encode_response(Ready(("stream",)))
    program.write_text(
        "import os, time\n"
        f"os.write(3, {ready!r})\n"
        "os.read(0, 5)\n"  # the health check
        "os.read(0, 65536)\n"
        f"os.write(3, {start!r})\n"
        "while True:\n"
        f"    os.write(3, {piece!r})\n"
        "    time.sleep(0.05)\n"
    )
    server = serve(
        *("--min-pool-size", "1", "--max-pool-size", "1", "--stream-cancel-timeout", "500ms"),
        command=[sys.executable, str(program)],
        expected=["worker goes on with an answer"],
    )
    server.wait_ready()
    [pid] = server.children()
    with opened(server, "/") as response:
        assert response.readline() == b"on and on\n"
    began = time.monotonic()
    [line] = server.wait_log(rf'worker ended" worker-pid={pid}')
    assert time.monotonic() - began > 0.3
    assert 'cause="stream cancel" replaced-in=0s' in line, "although it had answered nothing"
    server.wait_ready()


def test_a_slow_client_makes_its_child_wait_and_costs_no_memory(stream: Callable[..., Server]) -> None:
    server = stream("--response-buffer-size", "262144", "--request-write-timeout", "60s")
    [worker] = server.http_workers()
    assert not isinstance(server.address, str)
    before = psutil.Process(worker).memory_info().rss
    with Client(server.address) as client:
        client.request("GET", "/blocks?n=10000")
        wait_until(lambda: server.children("busy"), "the stream")
        [busy] = server.children("busy")

        def waits() -> bool:
            return Path(f"/proc/{busy}/wchan").read_text() == "pipe_write" or (
                psutil.Process(busy).status() == psutil.STATUS_SLEEPING
            )

        wait_until(waits, "the child to wait for its client")
        assert {int(server.get("/pid").text) for _ in range(20)} == set(server.children()) - {busy}
        grown = psutil.Process(worker).memory_info().rss - before
    assert grown < 8 << 20, f"{grown >> 10} KiB"
    wait_until(lambda: len(server.children("idle")) == 2, "the child to be free")


def test_the_time_limit_ends_silence_and_not_a_stream(stream: Callable[..., Server]) -> None:
    server = stream("--worker-request-timeout", "1s", expected=["worker request timed out"])
    with opened(server, "/events?ms=100&n=25") as response:
        assert len([line for line in response if line.startswith(b"data")]) == 25
    with opened(server, "/events?ms=60000") as response:
        assert response.readline().startswith(b"data")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    assert server.pool()["outcomes"]["timed_out"] == 1


@pytest.mark.parametrize("target", ["/raises", "/length?says=7", "/length?says=5"])
def test_an_answer_that_breaks_off_never_looks_whole(stream: Callable[..., Server], target: str) -> None:
    server = stream(expected=["Traceback", "RuntimeError", "response of another length", "worker died"])
    with opened(server, target) as response, pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
    server.wait_ready(2)
    with opened(server, "/length?says=6") as response:
        assert (response.getheader("Content-Length"), response.read()) == ("6", b"onetwo")


def test_requests_are_answered_beside_streams_and_behind_them(stream: Callable[..., Server]) -> None:
    """Written ahead they would wait for a stream's end."""
    server = stream("--pool-prefetch", "4")
    assert not isinstance(server.address, str)
    for _ in range(1100):
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(Client(server.address))
            for _ in range(50):
                client.request("GET", "/pid")
            for _ in range(50):
                assert client.answer().status == 200
        if server.pool()["counters"]["requests"] > 1100:
            break
    with opened(server, "/events?ms=50") as response:
        assert response.readline()
        began = time.monotonic()
        for _ in range(100):
            assert server.get("/pid").status == 200
        assert time.monotonic() - began < 5


def test_a_large_stream_passes_through_unharmed_and_in_little_memory(stream: Callable[..., Server]) -> None:
    server = stream()
    [worker] = server.http_workers()
    count = 4096  # 256 MiB; the gigabytes are measured by hand
    block = random.Random(7).randbytes(BLOCK)
    expected = hashlib.sha256()
    for number in range(count):
        expected.update(number.to_bytes(8, "little") + block[8:])
    highest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, psutil.Process(worker).memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    got = hashlib.sha256()
    with opened(server, f"/blocks?n={count}&seed=7") as response:
        while data := response.read(1 << 20):
            got.update(data)
    done.set()
    watcher.join()
    assert got.digest() == expected.digest()
    assert highest < 100 << 20


def test_a_stop_waits_for_a_stream_and_a_restart_lets_it_end(stream: Callable[..., Server]) -> None:
    server = stream("--worker-request-grace", "10s")
    with opened(server, "/events?ms=100&n=15") as response:
        assert response.readline()
        [pid] = server.children("busy")
        assert server.ctl("restart-workers", 30) == ["OK"]
        assert len([line for line in response if line.startswith(b"data")]) == 14
    wait_until(lambda: not _lives(pid), "the end of the replaced child")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
