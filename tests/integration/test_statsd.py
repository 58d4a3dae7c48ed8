"""The pool's figures at a statsd receiver of the test's."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client import PATIENCE
from server import Server

Serve = Callable[..., Server]


class Receiver:
    """Adds up counters as statsd does."""

    def __init__(self, family: socket.AddressFamily, address: object) -> None:
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(PATIENCE)
        self.counters: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def receive(self) -> None:
        """Take in one datagram."""
        data = self.socket.recv(65536)
        assert len(data) <= 1432
        for line in data.decode().split("\n"):
            parts = re.fullmatch(r"([\w.]+):([\d.]+)\|([gc])(?:\|#(.*))?", line)
            assert parts, line
            name = parts[1] + (f"#{parts[4]}" if parts[4] else "")
            if parts[3] == "c":
                self.counters[name] += int(parts[2])
            else:
                self.gauges[name] = float(parts[2])

    def receive_until(self, name: str, count: int) -> None:
        while self.counters[name] != count:
            assert self.counters[name] < count
            self.receive()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver(socket.AF_INET, ("127.0.0.1", 0))
    yield receiver
    receiver.socket.close()


@pytest.mark.parametrize("gunicorn", [False, True], ids=["poolparty", "gunicorn"])
def test_the_pool_is_told_of_while_it_runs_and_to_its_last_request(
    serve: Serve, receiver: Receiver, gunicorn: bool
) -> None:
    options = ["--statsd-host", f"127.0.0.1:{receiver.port}", "--statsd-prefix", "site"]
    server = serve(*options, "--access-logfile", "-", gunicorn=gunicorn)
    server.wait_ready()
    for _ in range(5):
        server.get("/")
    receiver.receive_until("site.poolparty.requests.default", 5)
    while "site.poolparty.workers_max.default" not in receiver.gauges:
        receiver.receive()
    server.get("/")
    server.get("/")
    server.terminate()
    receiver.receive_until("site.poolparty.requests.default", 7)
    receiver.receive_until("site.poolparty.request_outcomes.default.answered", 7)
    receiver.receive_until("site.poolparty.responses.default.2xx", 7)
    receiver.receive_until("site.poolparty.service_seconds_count.default", 7)
    assert receiver.counters["site.poolparty.worker_spawns.default"] == 1
    assert receiver.gauges["site.poolparty.process_resident_memory_bytes.arbiter"] > 2**20
    assert not any("gunicorn" in name for name in receiver.counters)
    assert len(re.findall('"GET / HTTP/1.1" 200', server.log)) == 7


def test_a_reload_sends_elsewhere_and_under_other_names_what_came_since(
    serve: Serve, receiver: Receiver, tmp_path: Path
) -> None:
    conf = tmp_path / "conf.py"
    conf.write_text('statsd_host = "unix:statsd.sock"\n')
    server = serve("-c", str(conf))  # nobody is there: the count is kept
    server.wait_ready()
    server.get("/")
    server.wait_log(r"statsd: nothing can be sent to unix:statsd\.sock \(No such file")
    conf.write_text(f'statsd_host = "localhost:{receiver.port}"\ndogstatsd_tags = "env:test"\n')
    server.signal(1)
    server.wait_log("The workers are those of the new configuration")
    server.get("/")
    receiver.receive()
    server.terminate()
    receiver.receive_until("poolparty.requests#pool:default,env:test", 2)


def test_gunicorns_own_figures_are_there_for_those_who_ask(serve: Serve, receiver: Receiver) -> None:
    own = [
        "--logger-class",
        "gunicorn.instrument.statsd.Statsd",
        "--statsd-host",
        f"127.0.0.1:{receiver.port}",
    ]
    server = serve(*own, "--access-log-json")
    server.wait_ready()
    server.get("/")
    server.terminate()
    seen = b""
    while b"gunicorn.request.status.200:1|c" not in seen or b"poolparty.requests.default:1|c" not in seen:
        seen += receiver.socket.recv(65536)
    assert b"gunicorn.request.duration:" in seen


def test_a_full_listen_queue_can_be_seen(serve: Serve) -> None:
    server = serve("--enable-backlog-metric", "--workers", "1")
    server.wait_ready()
    assert "poolparty_listen_backlog 0.0" in server.ctl("metrics")
