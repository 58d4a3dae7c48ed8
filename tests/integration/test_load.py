"""Many clients at once, every answer checked to belong to its request, while parts of the server come and go.

Short in this suite; for longer: a server, and `python tests/integration/load.py URL --seconds 30` against it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from load import Load, Report
from server import Server, wait_until

Serve = Callable[..., Server]

SECONDS = float(os.environ.get("POOLPARTY_LOAD_SECONDS", "4"))
"""How long each load lasts."""

POOL = ("--min-pool-size", "4", "--max-pool-size", "4")


def flawless(report: Report) -> None:
    assert report.count() == 0, report
    assert report.answers > 100 * SECONDS, report
    # Far from the time-outs, though on a machine that has much else to do it is no measurement.
    assert report.latency(0.99) < 5.0, report


@pytest.mark.parametrize("workers", [1, 3])
def test_64_connections_get_their_own_answers(serve: Serve, workers: int) -> None:
    server = serve(*POOL, "--workers", str(workers))
    server.wait_ready(4)
    report = Load(server.address).run(SECONDS)
    flawless(report)
    counted = server.pool()
    assert counted["outcomes"]["answered"] == counted["requests"] >= report.answers
    assert len(server.children()) == 4


def test_janet_children_too(serve: Serve, janet: str, tmp_path: object) -> None:
    program = """
    (import poolparty)
    (poolparty/serve (fn [req] {:body (string (req :method) " " (req :uri) "\\n" (req :body))}))
    """
    server = serve(*POOL, command=[janet, "-e", program])
    server.wait_ready(4)
    flawless(Load(server.address).run(SECONDS))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_child_killed_every_200_ms_loses_no_get_and_at_most_its_own_post(
    serve: Serve, workers: int
) -> None:
    server = serve(
        *POOL, "--workers", str(workers), expected=["worker died", "worker ended", "worker broken"]
    )
    server.wait_ready(4)
    killed = 0
    chance = random.Random(workers)
    with Load(server.address) as load:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            children = server.children("idle", "busy")
            if children:
                os.kill(chance.choice(children), signal.SIGKILL)
                killed += 1
            tick = time.monotonic() + 0.2
            wait_until(lambda tick=tick: time.monotonic() > tick)  # type: ignore[misc]
    report = load.report
    assert report.count("GET") == 0, report
    assert report.count("connect") == 0, report
    assert {kind for _, kind in report.errors} <= {"status 502"}, report
    assert report.count("POST") <= killed, report
    assert report.answers > 100 * SECONDS, report
    assert killed >= SECONDS
    server.wait_ready(4)


def test_restarts_under_load_lose_nothing(serve: Serve) -> None:
    server = serve(*POOL, "--workers", "2")
    server.wait_ready(4)
    restarts = 0
    with Load(server.address, connections=32) as load:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            before = set(server.children())
            assert server.ctl("restart-workers") == ["OK"]
            assert not before & set(server.children())
            restarts += 1
    flawless(load.report)
    assert restarts >= 1


def test_spawning_and_removing_under_load_loses_nothing(serve: Serve) -> None:
    server = serve("--min-pool-size", "1", "--max-pool-size", "6", "--workers", "2")
    server.wait_ready(1)
    chance = random.Random(1)
    with Load(server.address, connections=32) as load:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            command = chance.choice(["spawn-workers", "remove-workers"])
            assert server.ctl(f"{command} {chance.randint(1, 5)}") == ["OK"]
            tick = time.monotonic() + 0.25
            wait_until(lambda tick=tick: time.monotonic() > tick)  # type: ignore[misc]
    flawless(load.report)


def test_a_reload_under_load_loses_nothing(serve: Serve) -> None:
    server = serve(*POOL, "--workers", "2")
    server.wait_ready(4)
    with Load(server.address, connections=32) as load:
        for _ in range(2):
            before, http_workers = set(server.children()), set(server.http_workers())
            server.signal(signal.SIGHUP)
            wait_until(
                lambda before=before, http_workers=http_workers: (  # type: ignore[misc]
                    not before & set(server.children())
                    and not http_workers & set(server.http_workers())
                    and len(server.http_workers()) == 2
                    and not server.pool()["restarting"]
                ),
                "the reload",
            )
    assert load.report.count() == 0, load.report


def test_more_and_fewer_http_workers_under_load_lose_nothing(serve: Serve) -> None:
    server = serve(*POOL)
    server.wait_ready(4)
    with Load(server.address, connections=32) as load:
        for number, count in (
            (signal.SIGTTIN, 2),
            (signal.SIGTTIN, 3),
            (signal.SIGTTOU, 2),
            (signal.SIGTTOU, 1),
        ):
            server.signal(number)
            wait_until(lambda count=count: len(server.http_workers()) == count, f"{count} HTTP workers")  # type: ignore[misc]
    assert load.report.count() == 0, load.report


def test_an_http_worker_killed_under_load_loses_only_its_own_connections(serve: Serve) -> None:
    server = serve(*POOL, "--workers", "3", expected=["SIGKILL", "worker ended", "worker died"])
    server.wait_ready(4)
    with Load(server.address, connections=30) as load:
        for _ in range(3):
            answers = load.report.answers
            wait_until(lambda answers=answers: load.report.answers > answers + 100, "load")  # type: ignore[misc]
            workers = server.http_workers()
            os.kill(workers[0], signal.SIGKILL)
            wait_until(
                lambda gone=workers[0]: len(server.http_workers()) == 3 and gone not in server.http_workers()
            )  # type: ignore[misc]
        answers = load.report.answers
        wait_until(lambda: load.report.answers > answers + 100, "load afterwards")
    report = load.report
    assert {kind.split(" in ")[0] for _, kind in report.errors} <= {"connection lost"}, report
    assert report.count() <= 3 * 30, report
    assert len(server.wait_ready(4)) == 4


def test_large_bodies_both_ways_under_load(serve: Serve) -> None:
    server = serve(*POOL, "--workers", "2")
    server.wait_ready(4)
    report = Load(server.address, connections=16, posts=0.8, largest_body=300_000).run(SECONDS)
    assert report.count() == 0, report
    assert report.answers > 10 * SECONDS


def test_growth_under_load_starts_no_more_than_the_maximum(serve: Serve) -> None:
    server = serve("--max-pool-size", "4", "--worker-spawn-timeout", "10ms")
    report = Load(server.address).run(SECONDS)
    assert report.count() == 0, report
    assert 1 <= server.pool()["counters"]["worker_spawns"] <= 4
