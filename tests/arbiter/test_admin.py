"""The admin listener on real sockets, in a loop as the PoolThread's, of a pool that only remembers."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import logging
import os
import re
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolparty.arbiter import acceptor, admin
from poolparty.arbiter.admin import AdminServer, agent_line
from poolparty.errors import ConfigError, ControlError
from poolparty.stats.history import History
from poolparty.stats.scoreboard import Scoreboard

DEADLINE = 10.0
LOG = logging.getLogger("test.admin")
LOOPBACK = ("127.0.0.1", 0)


class FakePool:
    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.history: History | None = History([Scoreboard(seats=1, children=1)], 0.0)
        self.asked: list[tuple[str, int] | tuple[str, int, str]] = []
        self.reason: str | None = None
        self.reason_of_api: str | None = None
        self.load: tuple[str | None, float] = (None, 0.75)
        self.fault: Exception | None = None
        self.server: AdminServer | None = None
        self._stop = False
        self._wake_read, self._wake_write = os.pipe()
        self.selector.register(self._wake_read, selectors.EVENT_READ, lambda mask: None)
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def stats(self) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        return {"pools": []}

    def why_not_ready(self, pool: str | None = None) -> str | None:
        return self.reason if self.named(pool) != ("api",) else self.reason_of_api

    def named(self, pool: str | None) -> tuple[str, ...]:
        if pool not in (None, "default", "api"):
            raise ControlError(f"there is no pool {pool!r}; there are: default api")
        return () if pool is None else (pool,)

    def capacity(self) -> tuple[str | None, float]:
        return self.load

    def spawn_workers(self, count: int, pool: str | None = None) -> None:
        self.asked.append(("spawn", count, *self.named(pool)))

    def remove_workers(self, count: int, pool: str | None = None) -> None:
        self.asked.append(("remove", count, *self.named(pool)))

    def restart_workers(self, done: Callable[[str | None], None], why: str, pool: str | None = None) -> None:
        self.asked.append((why, 0, *self.named(pool)))
        done(None)

    def drain_worker(self, pid: int) -> None:
        raise ControlError(f"no worker has the pid {pid}")

    def kill_worker(self, pid: int) -> None:
        self.asked.append(("kill", pid))

    def serve(self, address: Any, agent: Any = None) -> AdminServer:
        self.server = AdminServer(self, address, agent, LOG)
        self.server.open()
        self._thread.start()
        return self.server

    def _loop(self) -> None:
        while not self._stop:
            assert self.server is not None
            due = self.server.deadline()
            timeout = None if due is None else max(due - admin.time.monotonic(), 0)
            for key, mask in self.selector.select(timeout):
                if key.fd in self.selector.get_map():
                    key.data(mask)
            self.server.tick(admin.time.monotonic())

    def stop(self) -> None:
        self._stop = True
        os.write(self._wake_write, b"x")
        if self._thread.is_alive():
            self._thread.join(DEADLINE)
        if self.server is not None:
            self.server.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.selector.close()


@pytest.fixture
def pool() -> Iterator[FakePool]:
    made = FakePool()
    yield made
    made.stop()


@pytest.fixture
def port(pool: FakePool) -> int:
    return port_of(pool.serve(LOOPBACK))


def port_of(server: AdminServer, which: int = 0) -> int:
    port = server._listeners[which].port
    assert port is not None
    return port


def ask(
    port: int, target: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.request(method, target, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


ACTION = {"X-Poolparty": "1"}


def test_health_says_that_it_lives_and_ready_says_why_not(pool: FakePool, port: int) -> None:
    assert ask(port, "/health")[::2] == (200, b"ok\n")
    assert ask(port, "/ready")[::2] == (200, b"ok\n")
    pool.reason = "no worker is ready yet"
    assert ask(port, "/ready")[::2] == (503, b"not ready: no worker is ready yet\n")
    assert ask(port, "/health")[0] == 200


def test_one_pool_is_ready_or_not_by_its_name(pool: FakePool, port: int) -> None:
    pool.reason_of_api = "no worker of the pool api is ready yet"
    assert ask(port, "/ready?pool=api")[::2] == (503, b"not ready: no worker of the pool api is ready yet\n")
    assert ask(port, "/ready?pool=default")[::2] == (200, b"ok\n")
    for query, name in (("pool=ap", "ap"), ("pool=", ""), ("pool=%00%E2%80%AE", r"\x00\u202e")):
        sentence = f"there is no pool '{name}'; there are: default api\n".encode()
        assert ask(port, f"/ready?{query}")[::2] == (400, sentence)


def test_stats_and_history_are_json(port: int) -> None:
    status, headers, body = ask(port, "/stats.json")
    assert (status, headers["Content-Type"], json.loads(body)) == (200, "application/json", {"pools": []})
    assert json.loads(ask(port, "/history.json")[2]) == {
        "private": True,
        "stats": {"pools": []},
        "history": [],
    }


def test_the_history_from_a_sample_on(port: int, pool: FakePool) -> None:
    assert pool.history is not None
    for second in (1.0, 2.0, 3.0):
        pool.history.sample(second, busy=1, workers=2, queued=0)

    def numbers(query: str) -> list[int]:
        return [sample["number"] for sample in json.loads(ask(port, f"/history.json{query}")[2])["history"]]

    assert [numbers(query) for query in ("", "?since=0", "?since=1", "?since=3")] == [[1, 2, 3]] * 2 + [
        [2, 3],
        [],
    ]
    assert ask(port, "/history.json?since=x")[::2] == (400, b"since has to be a whole number\n")


def test_the_page_allows_its_own_script_and_nothing_else(port: int) -> None:
    status, headers, body = ask(port, "/")
    assert status == 200
    assert body.startswith(b"<!doctype html>")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_head_has_the_fields_of_a_get_and_no_body(port: int) -> None:
    _, headers, body = ask(port, "/health", "HEAD")
    assert (headers["Content-Length"], body) == ("3", b"")


def test_what_is_not_there_is_answered_with_what_is(port: int) -> None:
    status, _, body = ask(port, "/nothing")
    assert status == 404
    assert b"/metrics" in body


def test_actions_are_done_by_post_with_the_header(pool: FakePool, port: int) -> None:
    assert ask(port, "/restart-workers", "POST", ACTION)[0] == 200
    assert ask(port, "/spawn-workers?count=3", "POST", ACTION)[0] == 200
    assert ask(port, "/remove-workers", "POST", ACTION)[0] == 200
    assert ask(port, "/kill?pid=77", "POST", ACTION)[0] == 200
    assert pool.asked == [("asked for on the admin listener", 0), ("spawn", 3), ("remove", 1), ("kill", 77)]


def test_an_action_may_be_about_one_pool(pool: FakePool, port: int) -> None:
    assert ask(port, "/restart-workers?pool=api", "POST", ACTION)[0] == 200
    assert ask(port, "/spawn-workers?count=3&pool=default", "POST", ACTION)[0] == 200
    assert ask(port, "/remove-workers?pool=api", "POST", ACTION)[0] == 200
    assert pool.asked == [
        ("asked for on the admin listener", 0, "api"), ("spawn", 3, "default"), ("remove", 1, "api"),
    ]  # fmt: skip
    for action in ("restart-workers", "spawn-workers", "remove-workers"):
        for name in ("", "nothing"):
            status, _, body = ask(port, f"/{action}?pool={name}", "POST", ACTION)
            assert (status, body) == (400, f"there is no pool '{name}'; there are: default api\n".encode())
    assert len(pool.asked) == 3


def test_an_action_that_a_foreign_page_could_ask_for_is_not_done(pool: FakePool, port: int) -> None:
    assert ask(port, "/restart-workers", "POST")[0] == 403
    assert ask(port, "/restart-workers", "GET", ACTION)[0] == 405
    assert ask(port, "/restart-workers", "POST", {**ACTION, "Host": "evil.example"})[0] == 403
    assert ask(port, "/stats.json", "GET", {"Host": "evil.example:80"})[0] == 403
    assert pool.asked == []


@pytest.mark.parametrize("host", ["localhost", "localhost:81", "127.0.0.1:9", "127.8.0.1", "[::1]:80"])
def test_it_is_asked_by_any_name_of_loopback(port: int, host: str) -> None:
    assert ask(port, "/health", "GET", {"Host": host})[0] == 200


@pytest.mark.parametrize("query", ["", "?pid=", "?pid=x", "?pid=-4", "?pid=1&pid=y"])
def test_an_action_about_no_number_is_refused(pool: FakePool, port: int, query: str) -> None:
    status, _, body = ask(port, "/kill" + query, "POST", ACTION)
    assert (status, body) == (400, b"pid has to be a whole number\n")
    assert pool.asked == []


def test_what_an_action_complains_of_is_told(port: int) -> None:
    assert ask(port, "/drain?pid=5", "POST", ACTION)[::2] == (400, b"no worker has the pid 5\n")


def test_a_listener_beyond_loopback_only_shows(pool: FakePool) -> None:
    port = port_of(pool.serve(("0.0.0.0", 0)))
    assert ask(port, "/stats.json", "GET", {"Host": "pod-7.example"})[0] == 200
    assert json.loads(ask(port, "/history.json")[2])["private"] is False
    assert ask(port, "/restart-workers", "POST", ACTION)[0] == 403
    assert pool.asked == []


def test_a_unix_socket_is_its_owners_and_goes_with_the_server(pool: FakePool, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    server = pool.serve(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(
            b"POST /spawn-workers HTTP/1.1\r\nHost: any\r\nX-Poolparty: 1\r\nContent-Length: 0\r\n\r\n"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    assert pool.asked == [("spawn", 1)]
    pool.stop()
    assert not path.exists()
    assert server.deadline() is None
    pool.__init__()  # type: ignore[misc]  # the fixture stops it again


def test_an_address_in_use_is_a_sentence_and_in_an_upgrade_it_is_waited_for(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "BIND_RETRY", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = ("127.0.0.1", other.getsockname()[1])
        with pytest.raises(ConfigError, match=rf"admin_address = '127.0.0.1:{address[1]}': .*in use"):
            AdminServer(pool, address, None, LOG).open()
        pool.server = AdminServer(pool, address, None, LOG)
        pool.server.open(takeover=True)
        assert pool.server.deadline() is not None
        pool._thread.start()
    end = admin.time.monotonic() + DEADLINE
    while admin.time.monotonic() < end:
        with contextlib.suppress(OSError):
            assert ask(address[1], "/health")[0] == 200
            return
    raise AssertionError("it has not taken the address")


def raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as client:
        client.sendall(data)
        received = b""
        while piece := client.recv(65536):
            received += piece
        return received


@pytest.mark.parametrize(
    "data", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nHost : x\r\n\r\n"]
)
def test_what_is_no_http_is_refused_and_nobody_else_is_harmed(port: int, data: bytes) -> None:
    assert raw(port, data).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert ask(port, "/health")[0] == 200


def test_a_request_without_an_end_is_cut(port: int) -> None:
    with contextlib.suppress(ConnectionError):
        assert b" 431 " in raw(port, b"GET / HTTP/1.1\r\nX: " + b"x" * 2 * admin.MAX_REQUEST)
    assert ask(port, "/health")[0] == 200


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    get = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
    close = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answers = raw(port, get % b"/health" + get % b"/ready" + close + get % b"/health")
    assert re.findall(rb"HTTP/1\.1 ([0-9]+) ", answers) == [b"200", b"200", b"404"]


def test_a_client_that_does_nothing_is_closed(pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "IDLE_TIMEOUT", 0.05)
    assert raw(port_of(pool.serve(LOOPBACK)), b"GET /hea") == b""


def test_a_fault_of_ours_is_a_500_and_the_pool_goes_on(
    pool: FakePool, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    pool.fault = RuntimeError("a bug")
    assert ask(port, "/stats.json")[0] == 500
    assert "RuntimeError: a bug" in caplog.text
    pool.fault = None
    assert ask(port, "/stats.json")[0] == 200


def test_more_clients_than_there_is_room_for_are_closed(
    pool: FakePool, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "MAX_CLIENTS", 1)
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as first:
        first.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.recv(1000)
        assert raw(port, b"") == b""


def test_without_descriptors_it_pauses(pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "ACCEPT_PAUSE", 0.02)
    server = pool.serve(LOOPBACK)
    listener = server._listeners[0]._acceptor
    real = listener._listener
    assert real is not None
    failures = [OSError(errno.EMFILE, "too many") for _ in range(2)]

    class Exhausted:
        def accept(self) -> Any:
            if failures:
                raise failures.pop()
            return real.accept()

        def fileno(self) -> int:
            return real.fileno()

    listener._listener = Exhausted()  # type: ignore[assignment]
    assert ask(real.getsockname()[1], "/health")[0] == 200
    assert failures == []


# --- HAProxy's agent check


@pytest.mark.parametrize(
    ("obstacle", "free", "line"),
    [
        (None, 1.0, "up ready 100%\n"),
        (None, 0.376, "up ready 38%\n"),
        (None, 0.0, "up ready 4%\n"),
        ("drain", 0.5, "drain\n"),
        ("down", 0.0, "down\n"),
    ],
)
def test_what_the_agent_says(obstacle: str | None, free: float, line: str) -> None:
    assert agent_line(obstacle, free) == line


def test_the_agent_says_one_line_and_closes(pool: FakePool) -> None:
    server = pool.serve(None, LOOPBACK)
    assert raw(port_of(server), b"") == b"up ready 75%\n"
    pool.load = ("down", 0.0)
    assert raw(port_of(server), b"") == b"down\n"
