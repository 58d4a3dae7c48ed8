"""Started as systemd starts a service: with a socket that systemd listens on."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from load import Load
from server import Server, wait_until

Serve = Callable[..., Server]

AS_SYSTEMD = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as ours:
    ours.connect(sys.argv[1])
    _, [fd], _, _ = socket.recv_fds(ours, 1, 1)
os.dup2(fd, 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


class Unit:
    """A listening socket that outlives the servers; `under` starts one with it as descriptor 3."""

    def __init__(self, directory: Path) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.giver = socket.socket(socket.AF_UNIX)
        self.giver.bind(str(directory / "giver"))
        self.giver.listen()
        self.under = [sys.executable, "-c", AS_SYSTEMD, str(directory / "giver")]
        threading.Thread(target=self.give, daemon=True).start()

    def give(self) -> None:
        while True:
            try:
                taker, _ = self.giver.accept()
            except OSError:
                return
            with taker:
                socket.send_fds(taker, [b"x"], [self.listener.fileno()])

    def close(self) -> None:
        self.giver.shutdown(socket.SHUT_RDWR)
        self.giver.close()
        self.listener.close()


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    unit = Unit(tmp_path)
    yield unit
    unit.close()


def test_a_restart_of_the_service_loses_nothing(unit: Unit, serve: Serve) -> None:
    """Between the two servers connections wait in the socket."""
    server = serve("--workers", "2", under=unit.under)
    assert server.address == unit.listener.getsockname()
    server.wait_ready()
    with Load(server.address, connections=32) as load:
        wait_until(lambda: load.report.answers > 500, "load")
        server.terminate(signal.SIGTERM, 30)
        successor = serve("--workers", "2", under=unit.under)
        answers = load.report.answers
        wait_until(lambda: load.report.answers > answers + 500, f"load afterwards: {load.report}", 30)
    assert load.report.count() == 0, load.report
    assert successor.address == server.address


def test_an_upgrade_takes_the_socket_over(unit: Unit, serve: Serve) -> None:
    server = serve("--pid", "pid", under=unit.under)
    server.wait_ready()
    server.signal(signal.SIGUSR2)
    second = server.directory / "pid.2"
    wait_until(lambda: second.exists() and second.read_text().strip(), "the second pid file", 30)
    new = int(second.read_text())
    server.not_its_own.add(new)
    server.wait_log("Booting worker", count=2, deadline=30)
    server.signal(signal.SIGTERM)
    server.wait_exit()
    assert server.get("/").status == 200
    first = server.directory / "pid"
    wait_until(lambda: first.exists() and int(first.read_text()) == new, "its name without .2", 30)

    os.kill(new, signal.SIGTERM)
    wait_until(lambda: server.running() == [server.pid] or not server.running(), "the end of all", 30)
    server.check_gone()
