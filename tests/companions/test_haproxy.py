"""conf/haproxy.cfg in a real HAProxy: what it makes of the readiness check and the agent check, and that no
request is lost while servers come and go."""

from __future__ import annotations

import csv
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client import Client
from load import Load
from server import CHECKOUT, Server, wait_until

READY = CHECKOUT / "conf" / "haproxy.cfg"
NAMES = ("one", "two", "three")
QUICK = "inter 200ms fastinter 50ms agent-inter 100ms"
DRAINING = 0x08 | 0x10
"""In srv_admin_state: told so, or inherited."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def replaced(pattern: str, by: str, text: str) -> str:
    """With what is there once put in place of it: the ready file has changed otherwise."""
    text, count = re.subn(pattern, lambda _: by, text, flags=re.MULTILINE)
    assert count == 1, pattern
    return text


class Balancer:
    """HAProxy as the ready file has it, but for the addresses, user and log; and five times as quick.

    Each server's ports, for HTTP, admin listener and agent, stand before it is started.
    """

    def __init__(self, program: str, directory: Path) -> None:
        self.ports = {name: (free_port(), free_port(), free_port()) for name in NAMES}
        self.address = ("127.0.0.1", free_port())
        self._socket = directory / "haproxy.sock"
        text = READY.read_text()
        text = replaced(r"^    (user|group) haproxy\n    (user|group) haproxy$", "", text)
        text = replaced("/dev/log local0", "stderr format raw local0", text)
        text = replaced("/run/haproxy/admin.sock", str(self._socket), text)
        text = replaced("bind :80$", "bind {}:{}".format(*self.address), text)
        for name in NAMES:
            http, admin, agent = self.ports[name]
            line = f"server {name} 127.0.0.1:{http} {QUICK} port {admin} agent-port {agent}"
            text = replaced(rf"server {name} +[\d.]+:8080", line, text)
        conf = directory / "haproxy.cfg"
        conf.write_text(text)
        self._log = directory / "haproxy.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, "-db", "-f", str(conf)], stdin=subprocess.DEVNULL, stderr=log
            )
        try:
            wait_until(self._listens, "HAProxy")
        except BaseException:
            self.close()
            print(self.log)
            raise

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.log
        try:
            socket.create_connection(self.address).close()
        except ConnectionRefusedError:
            return False
        return True

    def close(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def options(self, name: str, children: int) -> tuple[list[str], str]:
        """What a server has to be started with: options, and where it listens."""
        http, admin, agent = self.ports[name]
        options = ["--admin-address", f"127.0.0.1:{admin}", "--agent-address", f"127.0.0.1:{agent}"]
        options += ["--min-pool-size", str(children), "--max-pool-size", str(children)]
        return options, f"127.0.0.1:{http}"

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self._socket))
            control.sendall(command.encode() + b"\n")
            answer = b""
            while data := control.recv(65536):
                answer += data
        return answer.decode()

    def state(self, name: str) -> tuple[str, int]:
        """As HAProxy shows it: `UP`, `DOWN (agent)`, `DRAIN (agent)` …, and the weight."""
        rows = csv.DictReader(self._ask("show stat").removeprefix("# ").splitlines())
        row = next(row for row in rows if (row["pxname"], row["svname"]) == ("poolparty", name))
        return row["status"], int(row["weight"])

    def drains(self, name: str) -> bool:
        """Whether it has been told to: of one that is down as well, the other says only that."""
        _version, fields, *rows = self._ask("show servers state poolparty").splitlines()
        names = fields.removeprefix("# ").split()
        row = next(
            row
            for row in (dict(zip(names, row.split(), strict=True)) for row in rows)
            if row["srv_name"] == name
        )
        return bool(int(row["srv_admin_state"]) & DRAINING)

    def wait(self, name: str, *wanted: tuple[str, int]) -> None:
        wait_until(lambda: self.state(name) in wanted, f"{name} to be {wanted}, not {self.state(name)}")

    def wait_up(self, name: str) -> None:
        wait_until(lambda: self.state(name)[0] == "UP", f"{name} to be up")


@pytest.fixture
def balancer(haproxy: str, tmp_path: Path) -> Iterator[Balancer]:
    balancer = Balancer(haproxy, tmp_path)
    yield balancer
    balancer.close()


Start = Callable[..., Server]


@pytest.fixture
def start(balancer: Balancer, tmp_path: Path) -> Iterator[Start]:
    """start(NAME, children=2, environment=…) -> one of the balancer's servers, which has begun to start."""
    servers: list[Server] = []

    def begin(name: str, children: int = 2, environment: dict[str, str] | None = None) -> Server:
        options, bind = balancer.options(name, children)
        directory = tmp_path / f"{name}{len(servers)}"
        servers.append(Server(directory, *options, bind=bind, environment=environment))
        return servers[-1]

    yield begin
    balancer.close()  # first: what it keeps open would be waited for
    left = [server for server in servers if server.process.poll() is None]
    for server in left:
        server.signal(signal.SIGTERM)
    for server in left:
        server.terminate(None)


def test_a_servers_state_and_weight_follow_what_it_can_take(
    balancer: Balancer, start: Start, tmp_path: Path
) -> None:
    boots, first, second = (tmp_path / name for name in ("boots", "first", "second"))
    for path in (boots, first, second):
        path.touch()
    server = start("one", environment=boots_when_gone(boots))
    server.wait_listening()
    wait_until(lambda: balancer.state("one")[0].startswith("DOWN"), "down while no child is ready")
    boots.unlink()
    balancer.wait("one", ("UP", 100))
    with (
        Client(balancer.address) as one,
        Client(balancer.address) as two,
        Client(balancer.address) as three,
    ):
        one.request("GET", f"/gate?path={first}")
        two.request("GET", f"/gate?path={second}")
        wait_until(lambda: 0 < balancer.state("one")[1] <= 90, "a lower weight")
        # Busy, not drained: a request waits there for a child, and is not told 503.
        three.request("GET", "/")
        server.wait_queued(1)
        second.unlink()
        assert (two.answer().status, three.answer().status) == (200, 200)
        server.signal(signal.SIGTERM)
        wait_until(lambda: balancer.drains("one"), "drained while it stops")
        first.unlink()
        assert one.answer().status == 200
    server.terminate(None)
    wait_until(lambda: balancer.state("one")[0].startswith("DOWN"), "down when it has gone")
    start("one")
    balancer.wait("one", ("UP", 100))
    assert not balancer.drains("one")


def boots_when_gone(path: Path) -> dict[str, str]:
    return {"POOLPARTY_TEST_BOOT": f"while os.path.exists({str(path)!r}): time.sleep(0.01)"}


def test_the_program_learns_whose_request_it_is_whatever_the_client_says(
    balancer: Balancer, start: Start
) -> None:
    start("one")
    balancer.wait_up("one")
    lies = {
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Protocol": "ssl",
        "X-Forwarded-Ssl": "on",
        "X-Request-Id": "mine",
        "Forwarded": "for=192.0.2.1",
    }
    with Client(balancer.address, source="127.0.0.7") as client:  # an address that nobody trusts
        found = client.ask("GET", "/echo", None, lies).json
    assert (found["remote_address"], found["uri"]) == ("127.0.0.7:0", "http://test.example/echo")
    assert found["headers"]["x-forwarded-for"] == "127.0.0.7"
    assert not {"x-forwarded-protocol", "x-forwarded-ssl", "forwarded"} & set(found["headers"])
    assert re.fullmatch("[0-9a-f-]{36}", found["headers"]["x-request-id"])


def test_one_is_killed_one_restarts_and_one_is_added_without_a_failed_get(
    balancer: Balancer, start: Start
) -> None:
    one, two = start("one"), start("two")
    balancer.wait_up("one")
    balancer.wait_up("two")
    with Load(balancer.address, connections=8, posts=0) as load:
        served(load, one, two)
        two.kill_session()
        two.process.wait()
        wait_until(lambda: balancer.state("two")[0].startswith("DOWN"), "down")
        before = set(one.wait_ready(2))
        assert one.ctl("restart-workers") == ["OK"]
        assert before.isdisjoint(one.children())
        three = start("three")
        balancer.wait_up("three")
        served(load, one, three)
    assert load.report.count() == 0, load.report


def served(load: Load, *servers: Server) -> None:
    """Wait until each of them has answered more than a few."""

    def counts() -> list[int]:
        return [server.pool()["counters"]["requests"] for server in servers]

    begun = counts()
    wait_until(
        lambda: all(now > then + 100 for now, then in zip(counts(), begun, strict=True)),
        f"the load: {load.report}",
    )


def test_a_server_that_stops_and_is_started_again_loses_no_request(balancer: Balancer, start: Start) -> None:
    """As at an upgrade, one after another; POSTs too, which nothing tries twice once they have been sent."""
    one, two = start("one"), start("two")
    balancer.wait_up("one")
    balancer.wait_up("two")
    with Load(balancer.address, connections=8, posts=0.5) as load:
        served(load, one, two)
        one.terminate()
        one = start("one")
        one.wait_listening()
        served(load, one, two)
    assert load.report.count() == 0, load.report


def test_where_all_restart_at_once_none_is_taken_out(
    balancer: Balancer, start: Start, tmp_path: Path
) -> None:
    """With `drain` HAProxy would have no server left, and answer 503."""
    gate = tmp_path / "boot"
    server = start("one", environment=boots_when_gone(gate))
    balancer.wait("one", ("UP", 100))
    gate.touch()
    with Load(balancer.address, connections=4, posts=0) as load:
        server.signal(signal.SIGHUP)
        wait_until(lambda: balancer.state("one")[1] <= 10, "a lower weight")
        answers = load.report.answers
        wait_until(lambda: load.report.answers > answers + 100, f"the load: {load.report}")
        assert balancer.state("one")[0] == "UP"
        gate.unlink()
        server.wait_log("workers are those of the new configuration")
    wait_until(lambda: balancer.state("one")[1] > 10, "the weight of before")
    assert load.report.count() == 0, load.report
