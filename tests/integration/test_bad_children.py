"""Children that misbehave: the limit meant for them works, and all other requests are answered as ever.

Each test has load on the pool beside the child that goes wrong; not one of the load's requests may fail.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from load import Load
from server import HERE, Server, process_state, wait_until

from poolparty.wire.frames import Ready, encode_response

Serve = Callable[..., Server]

BAD = [sys.executable, str(HERE / "bad.py")]
POOL = ("--min-pool-size", "3", "--max-pool-size", "3", "--worker-restart-delay", "50ms")
ENDED = ["worker ended", "worker died", "worker broken", "worker request timed out"]
"""What the log says of a child whose end nobody asked for."""


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    return tmp_path / "sick"


@pytest.fixture
def bad(serve: Serve, sick: Path) -> Callable[..., Server]:
    def start(*options: str, ready: bool = True) -> Server:
        environment = {"POOLPARTY_TEST_SICK": str(sick)}
        expected = [*ENDED, "Traceback", "AssertionError"]
        server = serve(*POOL, *options, command=BAD, environment=environment, expected=expected)
        if ready:
            server.wait_ready(3)
        return server

    return start


@contextlib.contextmanager
def unharmed(server: Server, connections: int = 8, target: str = "/load") -> Iterator[Load]:
    """Load before, during and after the block: all of it is answered."""
    with Load(server.address, connections, target=target) as load:
        answers(load)
        yield load
        answers(load)
    assert load.report.count() == 0, load.report


def answers(load: Load, more: int = 100) -> None:
    enough = load.report.answers + more
    wait_until(lambda: load.report.answers >= enough, f"{more} more answers: {load.report}", 30)


def gone(pid: int) -> bool:
    return process_state(pid) in (None, "Z")


# --- it does not go when it is told ------------------------------------------------------------------------


def test_a_child_that_ignores_sigterm_is_killed_when_it_is_replaced(bad: Callable[..., Server]) -> None:
    server = bad("--worker-request-grace", "300ms")
    with unharmed(server):
        stubborn = int(server.get("/own-sigterm").text)
        began = time.monotonic()
        assert server.ctl("restart-workers", 30) == ["OK"]
        wait_until(lambda: gone(stubborn), "SIGKILL")
        assert time.monotonic() - began > 0.3
    [line] = server.wait_log(rf"worker-pid={stubborn} signal=SIGKILL")
    assert 'cause=restart killed="it did not leave within worker_request_grace"' in line


def test_a_child_that_stops_itself_in_a_request_costs_that_request_only(bad: Callable[..., Server]) -> None:
    server = bad("--worker-request-timeout", "1s", "--worker-request-grace", "300ms")
    before = set(server.children())
    with unharmed(server):
        assert server.ask("POST", "/stop", b"").status == 504
        wait_until(lambda: before - set(server.children()), "its end")
        server.wait_ready(3)
    assert len(before - set(server.children())) == 1
    assert server.pool()["outcomes"]["timed_out"] == 1


def test_an_idle_child_that_is_stopped_is_found_by_its_health_check(bad: Callable[..., Server]) -> None:
    server = bad(
        *("--worker-health-check-interval", "200ms", "--worker-health-check-timeout", "300ms"),
        *("--worker-request-grace", "300ms"),
    )
    stopped = server.children()[0]
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: gone(stopped), "its end")
    server.wait_log(rf"worker-pid={stopped} .*cause=unhealthy")
    server.wait_ready(3)
    assert server.get("/pid").status == 200


# --- it breaks its pipes -----------------------------------------------------------------------------------


def test_a_child_that_closes_descriptor_3_in_a_request_is_replaced(bad: Callable[..., Server]) -> None:
    server = bad()
    before = set(server.children())
    with unharmed(server):
        began = time.monotonic()
        assert server.ask("POST", "/close", b"").status == 502
        assert time.monotonic() - began < 5, "at once, not after the time-out"
        wait_until(lambda: before - set(server.children()), "its end")
        server.wait_ready(3)
    assert len(before - set(server.children())) == 1


def test_a_child_that_closes_descriptor_3_while_idle_is_replaced_before_it_is_used(
    bad: Callable[..., Server],
) -> None:
    server = bad()
    closed = int(server.get("/close-later").text)
    wait_until(lambda: gone(closed), "its end")
    server.wait_ready(3)
    assert [server.get("/pid").status for _ in range(6)] == [200] * 6


# --- it takes too much -------------------------------------------------------------------------------------


def test_a_child_that_floods_its_output_slows_nobody_down(bad: Callable[..., Server]) -> None:
    server = bad()
    with unharmed(server) as load:
        flooding = int(server.get("/flood?mb=100").text)
        wait_until(lambda: load.report.answers and re.search("worker-pid=.*yyyy", server.log), "the flood")
        answers(load, 1000)
    assert load.report.latency(0.99) < 1.0, load.report
    assert flooding in server.children(), "to talk much is no crime"
    with Path(f"/proc/{server.pid}/status").open() as status:
        [rss] = [int(line.split()[1]) for line in status if line.startswith("VmRSS")]
    assert rss < 300_000, f"the arbiter keeps {rss} kB"


def test_a_child_that_grows_50_mb_a_request_is_replaced_after_a_request(bad: Callable[..., Server]) -> None:
    server = bad("--worker-memory-limit", "200M")
    with unharmed(server, connections=2):
        for _ in range(16):
            assert server.ask("POST", "/grow?mb=50", b"").status == 200
        server.wait_log("cause=.memory limit", deadline=20)
        server.wait_ready(3)
    assert server.pool()["outcomes"]["failed"] == 0
    assert server.pool()["counters"]["worker_ended_memory_limit"] >= 1


def test_a_child_that_swells_in_a_request_is_killed_in_the_middle_of_it(bad: Callable[..., Server]) -> None:
    server = bad("--worker-memory-kill", "400M")
    with unharmed(server, connections=2):
        answer = server.ask("POST", "/swell", b"", patience=20)
        assert (answer.status, answer.text) == (502, "bad gateway: the worker that ran the request failed\n")
        server.wait_log("cause=.memory kill")
        server.wait_ready(3)
    assert server.pool()["counters"]["worker_ended_memory_kill"] == 1


# --- it gets old -------------------------------------------------------------------------------------------


def test_children_are_replaced_after_so_many_requests_and_not_all_at_once(bad: Callable[..., Server]) -> None:
    server = bad("--worker-max-requests", "40", "--worker-max-requests-jitter", "40")
    with unharmed(server, target="/load?ms=5"):
        server.wait_log("cause=.max requests", count=4, deadline=40)
    ends = [int(found[1]) for found in re.finditer(r" requests=(\d+) cause=.max requests", server.log)]
    # Beyond its limit a child only bridges the time until its successor is ready: 200 requests are a second.
    assert all(40 <= end < 80 + 5 * 200 for end in ends), ends
    assert len(set(ends)) > 1, ends
    assert server.pool()["counters"]["worker_ended_max_requests"] == len(ends)


def test_children_are_replaced_at_their_age(bad: Callable[..., Server]) -> None:
    server = bad("--worker-max-age", "1s")
    before = set(server.children())
    with unharmed(server):
        server.wait_log("cause=.max age", count=3, deadline=20)
    wait_until(lambda: not before & set(server.children()), "the others' end")
    ages = [
        float(found[1]) for found in re.finditer(r" age=([\d.]+)s requests=\d+ cause=.max age", server.log)
    ]
    assert min(ages) >= 1.0


def test_children_with_nothing_to_do_are_replaced(bad: Callable[..., Server]) -> None:
    server = bad("--worker-idle-timeout", "500ms")
    before = set(server.children())
    wait_until(lambda: not before & set(server.children()), "the end of all", 20)
    ready_fewest = min(len(server.children("idle", "busy", "checking")) for _ in range(20))
    assert ready_fewest >= 3, "each goes only once its successor is ready"
    assert server.pool()["counters"]["worker_ended_idle_timeout"] >= 3


# --- it is not well ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sickness", ["false", "late"])
def test_a_child_that_fails_its_health_check_is_replaced(
    bad: Callable[..., Server], sick: Path, sickness: str
) -> None:
    server = bad("--worker-health-check-interval", "500ms", "--worker-health-check-timeout", "300ms")
    before = set(server.children())
    # Written whole or not at all: a child may look at any moment.
    sick.with_suffix(".new").write_text(sickness)
    sick.with_suffix(".new").rename(sick)
    server.wait_log("cause=unhealthy")
    sick.unlink()
    wait_until(lambda: not before & set(server.children()) or server.pool()["idle"] == 3, "rest", 20)
    with unharmed(server):
        server.wait_ready(3)
    complaint = {"false": "a sick child", "late": "worker_health_check_timeout"}[sickness]
    assert complaint in server.wait_log("cause=unhealthy")[0]


def test_a_health_check_that_a_child_of_version_1_does_not_read_ends_it(serve: Serve, tmp_path: Path) -> None:
    """It reads the one at its start, which is all it says of itself, and then nothing more."""
    program = tmp_path / "deaf.py"
    program.write_text(
        "import os, signal\nos.read(0, 5)\nos.path.exists('mended') or signal.pause()\nsignal.pause()\n"
    )
    server = serve(
        *("--worker-health-check-interval", "300ms", "--worker-health-check-timeout", "300ms"),
        *("--worker-restart-delay", "50ms"),
        command=[sys.executable, str(program)],
        expected=ENDED,
    )
    [deaf] = server.wait_ready()
    wait_until(lambda: gone(deaf), "its end")
    line = server.wait_log(rf'msg="worker ended" worker-pid={deaf} ')[0]
    assert "cause=unhealthy" in line and "worker_health_check_timeout" in line


def test_a_child_that_reads_its_health_checks_but_answers_none_though_it_said_it_would_is_ended(
    serve: Serve, tmp_path: Path
) -> None:
    ready = encode_response(Ready(("health-reply",)))
    program = tmp_path / "mute.py"
    program.write_text(f"import os\nos.write(3, {ready!r})\nwhile os.read(0, 5): pass\n")
    server = serve(
        *("--worker-boot-timeout", "500ms", "--worker-restart-delay", "50ms"),
        command=[sys.executable, str(program)],
        expected=ENDED,
    )
    assert "boot timeout" in server.wait_log("worker ended")[0]


# --- it does not start -------------------------------------------------------------------------------------


def test_a_crash_loop_backs_off_is_told_once_a_step_and_keeps_nobody_waiting(
    bad: Callable[..., Server], sick: Path
) -> None:
    sick.write_text("exit")
    server = bad("--worker-restart-delay", "200ms", ready=False)
    server.wait_log("the database is missing", count=3, deadline=20)
    wait_until(lambda: server.pool()["booting"] == 0 and server.get("/pid").status == 503, "a refusal", 20)
    began = time.monotonic()
    answer = server.get("/pid")
    assert (answer.status, answer.text) == (503, "server overloaded\n")
    assert answer.get("Retry-After")
    assert time.monotonic() - began < 1, "at once, not after worker_rendezvous_timeout"
    deaths = server.wait_log('msg="worker died before it was ready"', count=8, deadline=20)
    assert all("the database is missing" in line for line in deaths)
    delays = [float(re.findall(r"replaced-in=([\d.]+)s", line)[0]) for line in deaths]
    # All three are tried again, as if it had been an accident; then each step is one child and one line, and
    # the pause before it twice the one before.
    assert delays[7] == 2 * delays[6] >= 1.6, delays
    sick.unlink()
    wait_until(lambda: server.get("/pid").status == 200, "recovery", 40)
    server.wait_ready(3)
