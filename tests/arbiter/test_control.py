"""The control server on real sockets, in the loop of a fake pool that works as the PoolThread does."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import selectors
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolparty.arbiter import acceptor, control
from poolparty.arbiter.control import HIGH_WATER, MAX_PENDING, ControlServer
from poolparty.errors import ConfigError, ControlError
from poolparty.pool.child import State
from poolparty.stats import report
from poolparty.stats.scoreboard import Scoreboard

DEADLINE = 10.0
LOG = logging.getLogger("test.control")


class FakePool:
    """A loop as the PoolThread's: one thread, one selector, the lock given back only while it waits."""

    def __init__(self) -> None:
        self.name = "default"
        self.pools = [self]
        self.lock = threading.RLock()
        self.selector = selectors.DefaultSelector()
        self.server: ControlServer | None = None
        self.scoreboard = Scoreboard(seats=4, children=8)
        self.started_at = time.monotonic()
        self.options = SimpleNamespace(pool_cmd=("cat", "a b"), min_pool_size=1, max_pool_size=4)
        self.policy = SimpleNamespace(target=2, max_size=4, generation=0, restarting=False)
        self.counters = {"spawns": 2, "restarts": 3, "deaths": 1}
        self.restart_error: str | None = None
        self.listen_backlog: int | None = None
        self.events: list[Any] = []
        self.relay = SimpleNamespace(last_line=0, lines_since=lambda number: self.lines[max(number - 1, 0) :])
        self.lines: list[str] = []
        self.children = {
            1: SimpleNamespace(
                id=1,
                pid=os.getpid(),
                state=State.IDLE,
                generation=0,
                spawned_at=self.started_at,
                slot=0,
                seat=None,
            )
        }
        self.seats: dict[int, Any] = {}
        self.asked: list[tuple[str, int] | tuple[str, int, str]] = []
        self.restarted: list[str] = []
        self.restarts: list[Callable[[str | None], None]] = []
        self.stats_padding = ""
        self.fault: Exception | None = None
        self.turns = 0
        self._stop = False
        self._wake_read, self._wake_write = os.pipe()
        self.selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._thread = threading.Thread(target=self._loop, daemon=True)

    # What the control server uses.

    def stats(self) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        found = report.snapshot(self)
        found["pools"][0]["command"] += self.stats_padding
        return found

    def spawn_workers(self, count: int, pool: str | None = None) -> None:
        self.asked.append(("spawn", count, *self.named(pool)))

    def remove_workers(self, count: int, pool: str | None = None) -> None:
        self.asked.append(("remove", count, *self.named(pool)))

    def named(self, pool: str | None) -> tuple[str, ...]:
        if pool not in (None, "default", "api"):
            raise ControlError(f"there is no pool {pool!r}; there are: default api")
        return () if pool is None else (pool,)

    def restart_workers(self, done: Callable[[str | None], None], why: str, pool: str | None = None) -> None:
        self.restarted += [*self.named(pool)]
        if self.fault is not None:
            raise self.fault
        self.restarts.append(done)

    def why_not_ready(self) -> str | None:
        return None

    def drain_worker(self, pid: int) -> None:
        self.asked.append(("drain", pid))

    def kill_worker(self, pid: int) -> None:
        if pid != os.getpid():
            raise ControlError(f"no worker has the pid {pid}")
        self.asked.append(("kill", pid))

    def dump_worker(self, pid: int) -> str:
        return f'msg="worker" worker-pid={pid}\n'

    def say(self, line: str) -> None:
        """A line of the log."""
        self.lines.append(line)
        self.relay.last_line += 1

    # What the tests use.

    def serve(self, path: Path, group: str | None = None) -> ControlServer:
        self.server = ControlServer(self, str(path), LOG, group=group)
        self.server.open()
        self._thread.start()
        return self.server

    def stop(self) -> None:
        with self.lock:
            if self.server is not None:
                self.server.close()
        self._stop = True
        os.write(self._wake_write, b"x")
        if self._thread.is_alive():
            self._thread.join(DEADLINE)
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)
        self.selector.close()

    def finish_restart(self, error: str | None = None) -> None:
        eventually(lambda: self.restarts)
        with self.lock:
            self.restarts.pop(0)(error)
        os.write(self._wake_write, b"x")

    def _woken(self, mask: int) -> None:
        os.read(self._wake_read, 100)

    def _loop(self) -> None:
        while not self._stop:
            with self.lock:
                deadline = self.server.deadline() if self.server else None
            timeout = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            events = self.selector.select(timeout)
            with self.lock:
                self.turns += 1
                for key, mask in events:
                    if key.fd in self.selector.get_map():
                        key.data(mask)
                if self.server:
                    self.server.tick(time.monotonic())


def eventually(condition: Callable[[], Any]) -> None:
    give_up = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.002)


@pytest.fixture
def pool() -> Iterator[FakePool]:
    pool = FakePool()
    yield pool
    pool.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pp.sock"


@pytest.fixture
def server(pool: FakePool, path: Path) -> ControlServer:
    return pool.serve(path)


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE)
    client.connect(str(path))
    return client


def read_all(client: socket.socket) -> bytes:
    received = bytearray()
    while data := client.recv(1 << 20):
        received += data
    return bytes(received)


def ask(path: Path, lines: bytes) -> bytes:
    with connect(path) as client:
        client.sendall(lines)
        client.shutdown(socket.SHUT_WR)
        return read_all(client)


# --- commands


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"stats extra", "ERROR: unexpected arguments"),
        (b"stats --xml", "ERROR: unexpected arguments"),
        (b"spawn-workers", "ERROR: expected a single argument"),
        (
            b"spawn-workers 1 api 2",
            "ERROR: expected how many workers, and behind that the name of one pool at most",
        ),
        (b"spawn-workers api 2", 'ERROR: strconv.ParseInt: parsing "api": invalid syntax'),
        (b"spawn-workers 1 nothing", "ERROR: there is no pool 'nothing'; there are: default api"),
        (b"remove-workers 1 nothing", "ERROR: there is no pool 'nothing'; there are: default api"),
        (b"restart-workers nothing", "ERROR: there is no pool 'nothing'; there are: default api"),
        (b"spawn-workers ''", "ERROR: expected a single argument"),
        (b"remove-workers", "ERROR: expected a single argument"),
        (b"spawn-workers x", 'ERROR: strconv.ParseInt: parsing "x": invalid syntax'),
        (b"spawn-workers 1.5", 'ERROR: strconv.ParseInt: parsing "1.5": invalid syntax'),
        (
            b"spawn-workers 9223372036854775808",
            'ERROR: strconv.ParseInt: parsing "9223372036854775808": value out of range',
        ),
        (
            b"restart-workers api now",
            "ERROR: expected the name of one pool at most; without one, all are restarted",
        ),
        (
            b"bogus",
            "ERROR: unknown command, want "
            "restart-workers|spawn-workers|remove-workers|stats|collectd-metrics"
            "|ps|drain|kill|dump|log|metrics",
        ),
        (b"'stats", "ERROR: No closing quotation"),
        (b'"stats', "ERROR: No closing quotation"),
        (b"spawn-workers 0", "OK"),
        (b"spawn-workers -5", "OK"),
        (b"   ", "OK"),
        (b"''", "OK"),
    ],
)
def test_commands_are_answered_as_the_original_answers_them(
    server: ControlServer, path: Path, line: bytes, answer: str
) -> None:
    assert ask(path, line + b"\n").decode() == answer + "\n"


def test_stats_begin_with_the_lines_of_the_original_and_end_with_ok(
    server: ControlServer, path: Path
) -> None:
    lines = ask(path, b"stats\n").decode().splitlines()
    assert lines[:2] == ["workers=1", "worker-restarts=3"]
    assert lines[-1] == "OK"
    assert f"worker pid={os.getpid()} state=idle requests=0" in lines[-2]


def test_stats_as_json_are_one_line(server: ControlServer, path: Path) -> None:
    first, second, rest = ask(path, b"stats --json\n").split(b"\n")
    assert json.loads(first)["pools"][0]["children"][0]["pid"] == os.getpid()
    assert (second, rest) == (b"OK", b"")


def test_spawn_and_remove_reach_the_pool(server: ControlServer, pool: FakePool, path: Path) -> None:
    assert ask(path, b"spawn-workers 3\nremove-workers +2\nspawn-workers -1\n") == b"OK\nOK\nOK\n"
    assert pool.asked == [("spawn", 3), ("remove", 2), ("spawn", 0)]


def test_a_pool_is_named_behind_what_is_done_to_it(
    server: ControlServer, pool: FakePool, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert ask(path, b"spawn-workers 3 api\nremove-workers 2 default\n") == b"OK\nOK\n"
    assert pool.asked == [("spawn", 3, "api"), ("remove", 2, "default")]
    assert "control socket: spawn-workers 3 api" in caplog.messages
    with connect(path) as client:
        client.sendall(b"restart-workers api\nexit\n")
        pool.finish_restart()
        assert read_all(client) == b"OK\n"
    assert pool.restarted == ["api"]


def test_what_is_no_pools_name_cannot_forge_a_line_of_the_log(
    server: ControlServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert ask(path, b"spawn-workers 1 'x\\\nmine'\n").startswith(b"ERROR: there is no pool ")
    assert r"control socket: spawn-workers 1 x\nmine" in caplog.messages


def test_a_line_without_a_newline_before_the_end_is_run(server: ControlServer, path: Path) -> None:
    assert ask(path, b"spawn-workers 0") == b"OK\n"


def test_empty_lines_are_ignored_and_a_carriage_return_belongs_to_the_line_end(
    server: ControlServer, path: Path
) -> None:
    assert ask(path, b"\n\r\n\nspawn-workers 1\r\n\n") == b"OK\n"


def test_a_line_that_ends_in_a_backslash_goes_on_in_the_next(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    assert ask(path, b"spawn-workers\\\n\\\n 7\n") == b"OK\n"
    assert pool.asked == [("spawn", 7)]


def test_exit_closes_the_connection_and_what_follows_is_not_run(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    with connect(path) as client:
        client.sendall(b"spawn-workers 1\nexit\nspawn-workers 2\n")
        assert read_all(client) == b"OK\n"
    assert pool.asked == [("spawn", 1)]


def test_a_client_that_asks_one_thing_after_another_is_answered_each_time(
    server: ControlServer, path: Path
) -> None:
    with connect(path) as client, client.makefile("rb") as answers:
        for _ in range(3):
            client.sendall(b"spawn-workers 0\n")
            assert answers.readline() == b"OK\n"


def test_a_command_that_arrives_byte_by_byte_is_understood(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    with connect(path) as client:
        for byte in b"spawn-workers '1'\nexit\n":
            client.sendall(bytes([byte]))
        assert read_all(client) == b"OK\n"
    assert pool.asked == [("spawn", 1)]


def test_binary_garbage_gets_errors_and_the_server_serves_on(server: ControlServer, path: Path) -> None:
    garbage = bytes(range(256)) * 20
    for line in ask(path, garbage + b"\n").splitlines():
        assert line == b"OK" or line.startswith(b"ERROR: ")
    assert ask(path, b"\0\xff\xfe\n").startswith(b"ERROR: unknown command")
    assert ask(path, b"spawn-workers 0\n") == b"OK\n"


def test_an_answer_to_a_failed_command_cannot_steer_a_terminal(server: ControlServer, path: Path) -> None:
    answer = ask(path, b"spawn-workers \x1b[2J\n")
    assert answer == b'ERROR: strconv.ParseInt: parsing "\\x1b[2J": invalid syntax\n'


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_is_too_long_is_an_error_and_closes(
    server: ControlServer, path: Path, end: bytes
) -> None:
    with connect(path) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(b"x" * 200_000 + end)
        answer = client.recv(1000)
    assert answer == b"ERROR: a command has at most 65536 bytes\n"


def test_continuation_lines_cannot_grow_without_end(server: ControlServer, path: Path) -> None:
    with connect(path) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1000):
                client.sendall(b"x" * 1000 + b"\\\n")
        assert client.recv(1000).startswith(b"ERROR: a command has at most")


def test_a_fault_in_a_command_is_logged_and_the_connection_goes_on(
    server: ControlServer, pool: FakePool, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool.fault = RuntimeError("a bug")
    answer = ask(path, b"stats\nspawn-workers 0\n")
    assert answer == b"ERROR: internal error, see the server's log\nOK\n"
    assert "a bug" in caplog.text


# --- restart-workers


def test_a_restart_holds_back_its_client_and_nobody_else(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    with connect(path) as client, client.makefile("rb") as answers:
        client.sendall(b"restart-workers\nspawn-workers 1\n")
        eventually(lambda: pool.restarts)
        assert ask(path, b"spawn-workers 2\n") == b"OK\n"
        assert pool.asked == [("spawn", 2)]
        pool.finish_restart()
        assert answers.readline() == b"OK\n"
        assert answers.readline() == b"OK\n"
        assert pool.asked == [("spawn", 2), ("spawn", 1)]


def test_a_restart_that_fails_is_answered_with_the_reason_on_one_line(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    with connect(path) as client:
        client.sendall(b"restart-workers\nexit\n")
        pool.finish_restart("the new workers do not boot:\n  no module\tx\x1b[1m")
        assert read_all(client) == b"ERROR: the new workers do not boot: no module x\\x1b[1m\n"


def test_a_half_closed_client_still_gets_the_answer_to_its_restart(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    with connect(path) as client:
        client.sendall(b"restart-workers\nexit\n")
        client.shutdown(socket.SHUT_WR)
        pool.finish_restart()
        assert read_all(client) == b"OK\n"


def test_a_restart_that_ends_at_once_is_answered(
    server: ControlServer, pool: FakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "restart_workers", lambda done, why, pool: done(None))
    assert ask(path, b"restart-workers\nrestart-workers\n") == b"OK\nOK\n"


def test_a_restart_that_is_refused_is_answered_with_the_reason(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    pool.fault = ControlError("the server is stopping")
    assert ask(path, b"restart-workers\n") == b"ERROR: the server is stopping\n"


def test_a_client_that_leaves_during_its_restart_is_forgotten(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    connect(path).close()
    with connect(path) as client:
        client.sendall(b"restart-workers\n")
        eventually(lambda: pool.restarts)
    pool.finish_restart()
    eventually(lambda: not server._sessions)
    assert ask(path, b"spawn-workers 0\n") == b"OK\n"


def test_at_the_stop_whoever_waits_for_a_restart_is_told(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    with connect(path) as client:
        client.sendall(b"restart-workers\n")
        eventually(lambda: pool.restarts)
        with pool.lock:
            server.close()
        assert read_all(client) == b"ERROR: the server is stopping\n"
        pool.finish_restart()  # too late: nobody is there
    assert not path.exists()


# --- collectd-metrics


def test_collectd_metrics_come_at_once_and_at_every_interval(server: ControlServer, path: Path) -> None:
    host = socket.gethostname()
    with connect(path) as client, client.makefile("r") as lines:
        client.sendall(b"collectd-metrics 1 web\n")
        client.shutdown(socket.SHUT_WR)
        first = lines.readline()
        assert first.startswith(f"putval {host}/poolparty-web/gauge-workers interval=1 ")
        assert first.endswith(":1\n")
        assert lines.readline().startswith(f"putval {host}/poolparty-web/counter-worker-restarts interval=1 ")
        assert any(line.startswith(f"putval {host}/poolparty-web/gauge-workers ") for line in lines)


@pytest.mark.parametrize("interval", [b"", b" 0", b" -3", b" soon"])
def test_an_interval_that_makes_no_sense_is_ten_seconds(
    server: ControlServer, path: Path, interval: bytes
) -> None:
    with connect(path) as client, client.makefile("r") as lines:
        client.sendall(b"collectd-metrics" + interval + b"\n")
        assert "/poolparty/gauge-workers interval=10 " in lines.readline()


def test_too_many_arguments_of_collectd_metrics_are_answered_with_its_usage(
    server: ControlServer, path: Path
) -> None:
    answer = b"usage: collectd-metrics [interval] [label-suffix]\nERROR: unexpected arguments\n"
    assert ask(path, b"collectd-metrics 1 2 3\n") == answer


def test_a_stream_whose_client_has_gone_is_ended(server: ControlServer, pool: FakePool, path: Path) -> None:
    with connect(path) as client:
        client.sendall(b"collectd-metrics 1\n")
        assert client.recv(10)
    eventually(lambda: not server._sessions)


def test_a_stream_that_is_not_read_is_closed(
    server: ControlServer, pool: FakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "collectd", lambda *_: "x" * (MAX_PENDING // 2))
    with connect(path) as client:
        client.sendall(b"collectd-metrics 1\n")
        eventually(lambda: server._sessions)
        (session,) = server._sessions
        give_up = time.monotonic() + DEADLINE
        while server._sessions and time.monotonic() < give_up:
            with pool.lock:  # as if an interval had passed
                session._next_metrics = session.due = 0.0
                server.tick(time.monotonic())
        assert not server._sessions
        assert len(read_all(client)) < 3 * MAX_PENDING


# --- many clients


def test_fifty_clients_are_served_at_once(server: ControlServer, pool: FakePool, path: Path) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(path)) for _ in range(50)]
        for number, client in enumerate(clients):
            client.sendall(b"spawn-workers %d\n" % number)
        for client in clients:
            assert client.recv(10) == b"OK\n"
    assert sorted(pool.asked) == [("spawn", number) for number in range(50)]


def test_a_client_that_reads_nothing_costs_little_and_stalls_nobody(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    pool.stats_padding = "x" * 1000
    with connect(path) as greedy:
        greedy.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 50_000_000:
                sent += greedy.send(b"stats --json\n" * 1000)
                assert ask(path, b"spawn-workers 0\n") == b"OK\n"
        eventually(lambda: len(server._sessions) == 1)
        (session,) = server._sessions
        assert len(session._output) < 2 * HIGH_WATER
        before = pool.turns
        assert ask(path, b"spawn-workers 0\n") == b"OK\n"
        assert pool.turns < before + 20, "the loop spins"


def test_a_client_that_reads_late_gets_every_answer_in_order(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    pool.stats_padding = "x" * 5000
    asked = (b"stats --json\nbogus\n" * 100) + b"spawn-workers 0\n"
    with connect(path) as client:
        client.sendall(asked)
        client.shutdown(socket.SHUT_WR)
        eventually(lambda: any(len(session._output) > HIGH_WATER for session in list(server._sessions)))
        lines = read_all(client).splitlines()
    assert len(lines) == 301
    assert [line[:5] for line in lines[:6]] == [b'{"upt', b"OK", b"ERROR"] * 2
    assert lines[-1] == b"OK"


def test_an_answer_larger_than_every_bound_arrives_whole(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    pool.stats_padding = "x" * (3 * MAX_PENDING)
    answer = ask(path, b"stats --json\n")
    assert len(answer) > 3 * MAX_PENDING
    assert answer.endswith(b"}\nOK\n")


def test_many_commands_of_one_client_let_others_have_their_turn(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    with pool.lock, connect(path) as busy, connect(path) as other:
        busy.sendall(b"spawn-workers 1\n" * 4000)
        other.sendall(b"spawn-workers 2\n")
        pool.lock.release()
        try:
            assert other.recv(10) == b"OK\n"
        finally:
            pool.lock.acquire()
        assert pool.asked.index(("spawn", 2)) < 1000


def test_more_clients_than_there_may_be_are_refused(
    server: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_CLIENTS", 2)
    with connect(path), connect(path):
        eventually(lambda: len(server._sessions) == 2)
        with connect(path) as third:
            assert read_all(third) == b"ERROR: too many clients\n"
    eventually(lambda: not server._sessions)
    assert ask(path, b"spawn-workers 0\n") == b"OK\n"


def test_without_descriptors_left_the_loop_waits_and_then_accepts(
    server: ControlServer, pool: FakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "ACCEPT_PAUSE", 0.05)

    class Exhausted:
        def __init__(self, listener: socket.socket) -> None:
            self.failures = 0
            self.listener = listener

        def accept(self) -> Any:
            self.failures += 1
            if self.failures <= 2:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return self.listener.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.listener, name)

    with pool.lock:
        assert server._acceptor._listener is not None
        exhausted = Exhausted(server._acceptor._listener)
        server._acceptor._listener = exhausted  # type: ignore[assignment]
    assert ask(path, b"spawn-workers 0\n") == b"OK\n"
    assert 3 <= exhausted.failures <= 5


def test_a_stranger_is_refused(server: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_uids", {os.geteuid() + 1})
    with connect(path) as client:
        assert read_all(client) == b"ERROR: permission denied\n"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users can search, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="pp-control-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


AS_SOMEBODY = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
try:
    client.connect(sys.argv[1])
except PermissionError:
    sys.exit("no permission to connect")
answer = b""
try:
    client.sendall(b"stats\\nexit\\n")
    while data := client.recv(65536):
        answer += data
except BrokenPipeError:  # who is refused is not listened to
    answer = client.recv(65536)
except ConnectionResetError:
    pass
print(answer.decode().splitlines()[-1])
"""


def as_user(path: Path, user: int, group: int, *groups: int) -> str:
    """What a process of another user hears."""
    command = ["/usr/bin/python3", "-c", AS_SOMEBODY, str(path)]
    done = subprocess.run(
        command, user=user, group=group, extra_groups=groups, capture_output=True, text=True, timeout=DEADLINE
    )
    return (done.stdout + done.stderr).strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_group_may_use_it_and_nobody_else(pool: FakePool, open_folder: Path) -> None:
    path = open_folder / "pp.sock"
    pool.serve(path, group="4242")
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid, status.st_uid) == (0o660, 4242, 0)
    assert as_user(path, 65534, 4242) == "OK"
    assert as_user(path, 65534, 65534, 4242) == "OK"
    assert as_user(path, 65534, 65534, 4243) == "no permission to connect"
    # The file's mode is not all that stands between.
    path.chmod(0o666)
    assert as_user(path, 65534, 65534, 4242) == "OK"
    assert as_user(path, 65534, 65534, 4243) == "ERROR: permission denied"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_without_a_group_nobody_of_it_may(pool: FakePool, open_folder: Path) -> None:
    path = open_folder / "pp.sock"
    pool.serve(path)
    assert as_user(path, 65534, 0) == "no permission to connect"
    path.chmod(0o666)
    assert as_user(path, 65534, 0, 0) == "ERROR: permission denied"


def test_a_group_that_does_not_exist_is_a_sentence(pool: FakePool, path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^ctl_socket_group = 'nobodys': there is no such group; .*\.$"):
        ControlServer(pool, str(path), LOG, group="nobodys").open()
    assert not path.exists()


def test_a_group_the_server_is_not_in_is_a_sentence(
    pool: FakePool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match=r"^ctl_socket_group = '4242': only root may .*\.$"):
        ControlServer(pool, str(path), LOG, group="4242").open()


def test_a_forked_process_closes_its_copies_and_disturbs_nothing(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    with connect(path) as client:
        client.sendall(b"spawn-workers 0\n")
        assert client.recv(10) == b"OK\n"
        copies = [os.dup(session.socket.fileno()) for session in server._sessions]
        for fd in copies:
            os.close(fd)
        with pool.lock:
            pid = os.fork()
            if pid == 0:
                before = len(os.listdir("/proc/self/fd"))
                server.abandon()
                os._exit(before - len(os.listdir("/proc/self/fd")))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2, "the listener and one client"
        client.sendall(b"spawn-workers 0\n")
        assert client.recv(10) == b"OK\n"
    assert path.exists()


# --- the path


def test_the_socket_is_its_owners_alone_whatever_the_umask(pool: FakePool, path: Path) -> None:
    before = os.umask(0)
    try:
        pool.serve(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_socket_left_by_a_crash_is_replaced(pool: FakePool, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    pool.serve(path)
    assert ask(path, b"spawn-workers 0\n") == b"OK\n"


def test_a_live_server_keeps_its_socket(server: ControlServer, path: Path) -> None:
    other = FakePool()
    try:
        with pytest.raises(
            ConfigError, match=r"ctl_socket = '.*pp\.sock': another server answers there; stop"
        ):
            ControlServer(other, str(path), LOG).open()
    finally:
        other.stop()
    assert ask(path, b"spawn-workers 0\n") == b"OK\n"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_live_server_whose_backlog_is_full_keeps_its_socket(pool: FakePool, path: Path) -> None:
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(socket.socket(socket.AF_UNIX))
        live.bind(str(path))
        live.listen(0)
        full = False
        while not full:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            full = client.connect_ex(str(path)) == errno.EAGAIN
        with pytest.raises(ConfigError, match="another server answers there"):
            ControlServer(pool, str(path), LOG).open()


def make_file(path: Path) -> None:
    path.write_text("precious")


def make_link(path: Path) -> None:
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [make_file, Path.mkdir, os.mkfifo, make_link])
def test_what_is_no_socket_is_never_touched(pool: FakePool, path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    before = path.lstat()
    with pytest.raises(ConfigError, match="a file that is no socket"):
        ControlServer(pool, str(path), LOG).open()
    assert os.path.samestat(path.lstat(), before)


def test_a_socket_of_another_kind_is_left_alone(pool: FakePool, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as foreign:
        foreign.bind(str(path))
        with pytest.raises(ConfigError, match="a socket of somebody else's"):
            ControlServer(pool, str(path), LOG).open()
    assert path.exists()


def test_a_directory_that_is_not_there_is_named_in_one_sentence(pool: FakePool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its directory cannot be used \\(No such file or directory\\)"):
        ControlServer(pool, str(tmp_path / "missing" / "pp.sock"), LOG).open()


def test_a_path_too_long_for_a_socket_address_works_relative(
    pool: FakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    monkeypatch.chdir(folder)
    for _ in range(2):  # the second time there is something to look at
        server = ControlServer(pool, "./pp.sock", LOG)
        server.open()
        with pytest.raises(ConfigError, match="another server answers there"):
            ControlServer(pool, "./pp.sock", LOG).open()
        server.abandon()
        pool.selector.close()
        pool.selector = selectors.DefaultSelector()
        assert (folder / "pp.sock").exists()


def test_closing_removes_the_file_also_from_another_working_directory(
    pool: FakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = ControlServer(pool, "./pp.sock", LOG)
    server.open()
    monkeypatch.chdir("/")
    server.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_taken_the_sockets_place_is_not_removed(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        with pool.lock:
            server.close()
        assert path.exists()


def test_an_upgrade_takes_the_place_of_a_live_server_and_a_rollback_gives_it_back(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    new_pool = FakePool()
    try:
        successor = ControlServer(new_pool, str(path), LOG)
        successor.open(takeover=True)
        successor.close()
        assert not path.exists()
        with pool.lock:
            server.open()
        assert ask(path, b"spawn-workers 0\n") == b"OK\n"
    finally:
        new_pool.stop()


def test_of_many_servers_that_start_at_once_one_gets_a_stale_socket(tmp_path: Path) -> None:
    path = tmp_path / "pp.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    program = """
import logging, selectors, sys, types
from poolparty.arbiter.control import ControlServer
from poolparty.errors import ConfigError
pool = types.SimpleNamespace(selector=selectors.DefaultSelector())
print("ready", flush=True)
sys.stdin.readline()
try:
    ControlServer(pool, sys.argv[1], logging.getLogger()).open()
except ConfigError as error:
    print("refused", flush=True)
else:
    print("open", flush=True)
sys.stdin.readline()
"""
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(6)
    ]
    try:
        for server in servers:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
        for server in servers:
            assert server.stdin is not None
            server.stdin.write("go\n")
        answers = [server.stdout.readline().strip() for server in servers if server.stdout]
        assert sorted(answers) == ["open"] + ["refused"] * 5
    finally:
        for server in servers:
            server.communicate("\n", timeout=DEADLINE)


# --- one worker by its pid, and the log


def test_commands_about_one_worker_reach_it_by_its_pid(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    pid = os.getpid()
    assert ask(path, f"drain {pid}\nkill {pid}\n".encode()) == b"OK\nOK\n"
    assert pool.asked == [("drain", pid), ("kill", pid)]
    assert ask(path, f"dump {pid}\n".encode()) == f'msg="worker" worker-pid={pid}\nOK\n'.encode()
    assert ask(path, b"kill 1\n") == b"ERROR: no worker has the pid 1\n"
    assert ask(path, b"kill\n") == b"ERROR: expected a single argument\n"


def test_the_log_shows_as_many_lines_as_are_asked_for(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    for number in range(50):
        pool.say(f"line {number}")
    assert ask(path, b"log 2\n") == b"line 48\nline 49\nOK\n"
    assert len(ask(path, b"log\n").splitlines()) == 21
    assert ask(path, b"log many\n").startswith(b"ERROR: strconv.ParseInt")
    assert ask(path, b"log -f 2 3\n") == b"ERROR: unexpected arguments\n"


def test_who_follows_the_log_gets_each_line_once(server: ControlServer, pool: FakePool, path: Path) -> None:
    pool.say("before")
    with connect(path) as client:
        client.sendall(b"log -f 1\n")
        lines = client.makefile("rb")
        assert lines.readline() == b"before\n"
        for number in range(3):
            with pool.lock:
                pool.say(f"line {number}")
            assert lines.readline() == f"line {number}\n".encode()
        lines.close()


def test_metrics_and_ps_are_made_of_what_stats_says(
    server: ControlServer, pool: FakePool, path: Path
) -> None:
    assert b'poolparty_worker_restarts_total{pool="default"} 3.0\n' in ask(path, b"metrics\n")
    assert ask(path, b"ps\n").splitlines()[2].split()[:3] == [str(os.getpid()).encode(), b"worker", b"idle"]


# --- with the tools people use


def test_poolparty_ctl_speaks_to_it(server: ControlServer, pool: FakePool, path: Path) -> None:
    def ctl(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "poolparty.ctl", "--ctl-socket", str(path), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)

    assert json.loads(ctl("stats", "--json").stdout)["pools"][0]["restarts"] == 3
    assert ctl("spawn-workers", "2").returncode == 0
    assert pool.asked == [("spawn", 2)]
    failed = ctl("spawn-workers", "two\nor 'three'")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("poolparty-ctl: strconv.ParseInt: parsing \"two or 'three'\": invalid")
