"""Restarts, reloads, upgrades, changes of size under checked load: no request fails, and none waits long.

Short in this suite. By hand, on a machine with nothing else to do, all of it with the real bound on the gap:

    POOLPARTY_RESTARTS=20 POOLPARTY_LONGEST_GAP=0.25 bin/test tests/integration/test_restarts.py
"""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from load import Load, Report
from server import Server, process_state, wait_until

Serve = Callable[..., Server]

RESTARTS = int(os.environ.get("POOLPARTY_RESTARTS", "3"))
"""How often each thing is done."""

LONGEST_GAP = float(os.environ.get("POOLPARTY_LONGEST_GAP", "3"))
"""Seconds without an answer that are a failure. Generous in the suite: machines do other things too."""

POOL = ("--min-pool-size", "4", "--max-pool-size", "4")

JANET_PROGRAM = """
(import poolparty)

(defn handler [req]
  @{:status 200
    :headers {"Content-Type" "text/plain" "Set-Cookie" ["a=1" "b=2"]}
    :body (string (req :method) " " (req :uri) "\\n" (req :body))})

(defn main [&]
  (poolparty/serve handler :health-check (fn [] nil)))
"""
"""As programs for the original's library are written."""


@pytest.fixture
def janet_children(janet: str, tmp_path: Path) -> list[str]:
    program = tmp_path / "app.janet"
    program.write_text(JANET_PROGRAM)
    return [janet, str(program)]


def flawless(report: Report) -> None:
    print(report)
    assert report.count() == 0, report
    # What kept the load itself from running is no fault of the server's.
    assert report.longest_gap - report.longest_pause < LONGEST_GAP, report


def wait_answers(load: Load, more: int = 50) -> None:
    """The load goes on: so many further answers."""
    enough = load.report.answers + more
    wait_until(lambda: load.report.answers >= enough, f"{more} more answers, {load.report}", 30)


@pytest.mark.parametrize("workers", [1, 3])
def test_restart_workers_loses_nothing(serve: Serve, janet_children: list[str], workers: int) -> None:
    server = serve(*POOL, "--workers", str(workers), command=janet_children)
    server.wait_ready(4)
    with Load(server.address) as load:
        for _ in range(RESTARTS):
            before = set(server.children())
            assert server.ctl("restart-workers", 60) == ["OK"]
            assert not before & set(server.children())
            wait_answers(load)
    flawless(load.report)
    assert len(server.wait_ready(4)) == 4


def reload(server: Server, workers: int) -> None:
    """SIGHUP, until every child and HTTP worker is another one."""
    children, http_workers = set(server.children()), set(server.http_workers())
    server.signal(signal.SIGHUP)

    def replaced() -> bool:
        pool, now = server.pool(), set(server.http_workers())
        pids = {child["pid"] for child in pool["children"]}
        return not (pool["restarting"] or children & pids or http_workers & now) and len(now) == workers

    wait_until(replaced, "the reload", 60)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_reload_loses_nothing(serve: Serve, janet_children: list[str], workers: int) -> None:
    server = serve(*POOL, "--workers", str(workers), command=janet_children)
    server.wait_ready(4)
    with Load(server.address) as load:
        for _ in range((RESTARTS + 1) // 2):
            reload(server, workers)
            wait_answers(load)
    flawless(load.report)


def new_arbiter(server: Server, count: int) -> int:
    """SIGUSR2: the pid of the new arbiter, once its HTTP workers serve. count: the HTTP workers of both."""
    server.signal(signal.SIGUSR2)
    line = server.wait_log("Listening at", count=2)[-1]
    wait_until(lambda: server.log.count("Booting worker") >= count, "the new HTTP workers", 30)
    wait_until(lambda: server.ctl_socket.exists())
    return int(line.rpartition("(")[2].rstrip(")"))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_upgrade_loses_nothing(serve: Serve, janet_children: list[str], workers: int) -> None:
    """USR2 to the old one, WINCH, and QUIT once its HTTP workers have gone, as docs/signals.md has it."""
    server = serve(*POOL, "--workers", str(workers), command=janet_children)
    server.wait_ready(4)
    old = set(server.http_workers())
    with Load(server.address) as load:
        new = new_arbiter(server, 2 * workers)
        server.not_its_own.add(new)
        wait_answers(load)
        server.signal(signal.SIGWINCH)
        wait_until(
            lambda: all(process_state(pid) in (None, "Z") for pid in old), "the old HTTP workers' end", 30
        )
        server.signal(signal.SIGQUIT)
        server.wait_exit(30)
        wait_answers(load, 500)
        assert len(server.children()) == 4, "the control socket is the new one's"
        assert not old & set(server.http_workers())
    flawless(load.report)
    os.kill(new, signal.SIGTERM)
    wait_until(
        lambda: not [pid for pid in server.session() if process_state(pid) != "Z"], "the end of all", 30
    )
    server.check_gone()
    server.check_log()


def test_an_upgrade_that_is_rolled_back_loses_nothing(serve: Serve, janet_children: list[str]) -> None:
    """USR2 and WINCH to the old one, then HUP to it and TERM to the new one."""
    server = serve(*POOL, "--workers", "2", command=janet_children)
    server.wait_ready(4)
    old = set(server.http_workers())
    with Load(server.address) as load:
        new = new_arbiter(server, 4)
        wait_answers(load)
        server.signal(signal.SIGWINCH)
        wait_until(lambda: all(process_state(pid) is None for pid in old), "the old HTTP workers' end", 30)
        wait_answers(load)
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.log.count("Booting worker") == 6, "the old arbiter's HTTP workers", 30)
        wait_answers(load)
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: process_state(new) is None, "the new one's end", 30)
        wait_answers(load, 500)
        wait_until(server.ctl_socket.exists, "the old one's control socket")
        assert len(server.http_workers()) == 2
        assert server.ctl("restart-workers", 60) == ["OK"]
    flawless(load.report)


def test_spawning_removing_and_restarting_at_random_loses_nothing(
    serve: Serve, janet_children: list[str]
) -> None:
    server = serve("--min-pool-size", "2", "--max-pool-size", "6", "--workers", "3", command=janet_children)
    server.wait_ready(2)
    chance = random.Random(RESTARTS)
    commands = [
        "spawn-workers 1",
        "spawn-workers 3",
        "remove-workers 1",
        "remove-workers 4",
        "restart-workers",
    ]
    with Load(server.address) as load:
        for _ in range(5 * RESTARTS):
            assert server.ctl(chance.choice(commands), 60) == ["OK"]
            wait_answers(load, chance.randint(1, 100))
    flawless(load.report)
    assert 2 <= len(server.children()) <= 6


def test_more_and_fewer_http_workers_lose_nothing(serve: Serve, janet_children: list[str]) -> None:
    server = serve(*POOL, command=janet_children)
    server.wait_ready(4)
    with Load(server.address) as load:
        for _ in range((RESTARTS + 1) // 2):
            for number, count in (
                (signal.SIGTTIN, 2),
                (signal.SIGTTIN, 3),
                (signal.SIGTTOU, 2),
                (signal.SIGTTOU, 1),
            ):
                server.signal(number)
                wait_until(
                    lambda count=count: len(server.http_workers()) == count, f"{count} HTTP workers", 30
                )  # type: ignore[misc]
                wait_answers(load, 20)
    flawless(load.report)


@pytest.mark.parametrize("surge", [0, 1, 3])
def test_a_restart_keeps_to_its_surge(serve: Serve, janet_children: list[str], surge: int) -> None:
    server = serve(*POOL, "--worker-restart-surge", str(surge), command=janet_children)
    server.wait_ready(4)
    sizes = []
    with Load(server.address, connections=16) as load, socket.socket(socket.AF_UNIX) as control:
        control.settimeout(60)
        control.connect(str(server.ctl_socket))
        control.sendall(b"restart-workers\nexit\n")
        with ThreadPoolExecutor(1) as executor:
            answer = executor.submit(control.recv, 100)
            while not answer.done():
                sizes.append(len(server.pool()["children"]))
        assert answer.result() == b"OK\n"
    flawless(load.report)
    assert 4 - (not surge) <= min(sizes)
    assert max(sizes) <= 4 + surge


def test_a_command_that_fails_at_boot_leaves_the_service_as_it_is_until_it_is_put_right(
    serve: Serve, tmp_path: Path, janet: str
) -> None:
    program = tmp_path / "app.janet"
    program.write_text(JANET_PROGRAM)
    conf = tmp_path / "conf.py"
    conf.write_text(f"pool_cmd = {[janet, str(program)]!r}\nmin_pool_size = max_pool_size = 4\nworkers = 2\n")
    server = serve("-c", str(conf), command=None, expected=["worker died", "workers stay"])
    children = set(server.wait_ready(4))
    with Load(server.address) as load:
        program.write_text('(error "no database here")')
        answer = server.ctl("restart-workers", 60)[-1]
        assert answer.startswith("ERROR: ")
        assert "no database here" in answer
        wait_answers(load)
        assert set(server.children("idle", "busy", "checking")) == children
        server.signal(signal.SIGHUP)
        server.wait_log("The workers stay those of the old configuration: .*no database here", deadline=30)
        wait_until(lambda: len(server.http_workers()) == 2, "the HTTP workers of the reload", 30)
        wait_answers(load)
        assert set(server.children("idle", "busy", "checking")) == children
        program.write_text(JANET_PROGRAM)
        assert server.ctl("restart-workers", 60) == ["OK"]
        renewed = set(server.children())
        assert not renewed & children
        reload(server, 2)
        assert not renewed & set(server.children())
        wait_answers(load)
    flawless(load.report)
