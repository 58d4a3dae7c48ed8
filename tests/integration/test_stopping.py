"""The end, by every road: what runs is finished where it may be, and nothing is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from client import Client
from load import Load
from server import APP, Server, process_state, wait_until

Serve = Callable[..., Server]


@pytest.mark.parametrize("gunicorn", [False, True], ids=["poolparty", "gunicorn"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_finished_and_nothing_is_left(
    serve: Serve, number: int, gunicorn: bool
) -> None:
    server = serve("--min-pool-size", "2", "--max-pool-size", "2", gunicorn=gunicorn)
    server.wait_ready(2)
    with Client(server.address) as client:
        with server.gate() as target:
            client.request("GET", target)
            server.wait_busy()
            server.signal(number)
            wait_until(lambda: server.stats()["http_workers"][0]["draining"], "the drain")
            assert server.process.poll() is None
        answer = client.answer()
        assert answer.status == 200
        assert answer.get("Connection") == "close"
        assert client.at_end()
    server.terminate(None)


def test_what_is_queued_is_finished_too(serve: Serve) -> None:
    server = serve()
    server.wait_ready()
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(5)]
        with server.gate() as target:
            for client in clients:
                client.request("GET", target)
            server.wait_queued(4)
            server.signal(signal.SIGTERM)
            server.wait_log("Handling signal")
        assert [client.answer().status for client in clients] == [200] * 5
    server.terminate(None)


def test_a_stop_under_load_breaks_off_no_answer(serve: Serve) -> None:
    server = serve("--min-pool-size", "4", "--max-pool-size", "4", "--workers", "2")
    server.wait_ready(4)
    with Load(server.address, connections=32) as load:
        wait_until(lambda: load.report.answers > 500, "load")
        server.signal(signal.SIGTERM)
        server.wait_exit()
        load.stopping = True
    # The clients go on knocking at a closed door; but no request that reached the server was lost.
    assert not load.report.count("GET"), load.report
    assert not load.report.count("POST"), load.report
    server.check_gone()
    server.check_log()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_is_quick(serve: Serve, second: int) -> None:
    server = serve(expected=["worker ended"])
    server.wait_ready()
    with Client(server.address) as client, server.gate() as target:
        client.request("GET", target)
        server.wait_busy()
        server.signal(signal.SIGINT)
        server.wait_log("Handling signal: int")
        server.signal(second)
        began = time.monotonic()
        server.terminate(None)
        assert time.monotonic() - began < 15


def test_a_stop_waits_no_longer_than_its_graces_for_a_child_in_a_loop(serve: Serve, tmp_path: Path) -> None:
    server = serve(
        *("--worker-request-timeout", "600ms", "--worker-request-grace", "300ms"),
        expected=["worker ended", "worker request timed out", "worker broken"],
    )
    server.wait_ready()
    with Client(server.address) as client:
        client.request("GET", f"/stubborn?path={tmp_path / 'loops'}")
        wait_until((tmp_path / "loops").exists, "the loop")
        began = time.monotonic()
        server.terminate()
        assert time.monotonic() - began < 20
        assert client.answer().status == 504


@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_survives_the_arbiters_sudden_death(serve: Serve, workers: int, tmp_path: Path) -> None:
    server = serve("--min-pool-size", "3", "--max-pool-size", "3", "--workers", str(workers))
    server.wait_ready(3)
    with Client(server.address) as looping, Client(server.address) as idle:
        looping.request("GET", f"/stubborn?path={tmp_path / 'loops'}")
        wait_until((tmp_path / "loops").exists, "the loop")
        idle.ask("GET", "/")
        everyone = [server.pid, *server.session()]
        server.signal(signal.SIGKILL)
        wait_until(
            lambda: all(process_state(pid) in (None, "Z") for pid in everyone),
            "the end of all",
            5,
        )
    server.wait_exit(status=-signal.SIGKILL)
    # What the crash left must not keep the next one from starting.
    assert server.ctl_socket.exists()
    again = serve(directory=server.directory)
    assert again.get("/").status == 200


def test_a_child_alone_with_a_dead_server_leaves_quietly(serve: Serve) -> None:
    server = serve()
    [child] = server.wait_ready()
    server.signal(signal.SIGKILL)
    wait_until(lambda: process_state(child) in (None, "Z"), "the child's end", 5)
    server.wait_exit(status=-signal.SIGKILL)
    wait_until(lambda: server.running() == [], "the end of all", 5)


def test_a_broken_configuration_at_sighup_leaves_it_running(serve: Serve, tmp_path: Path) -> None:
    conf = tmp_path / "conf.py"
    good = f"pool_cmd = {APP!r}\nmin_pool_size = 2\nmax_pool_size = 2\n"
    conf.write_text(good)
    server = serve("-c", str(conf), command=None, expected=["configuration", "Error", "conf.py", "pool_size"])
    children = set(server.wait_ready(2))
    http_workers = server.http_workers()
    for broken in ("this is no python (\n", good + "min_pool_size = 7\n", good + "import nowhere\n"):
        conf.write_text(broken)
        before = len(server.log.splitlines())
        server.signal(signal.SIGHUP)
        wait_until(lambda before=before: len(server.log.splitlines()) > before + 1, "a complaint")  # type: ignore[misc]
        assert server.get("/").status == 200
        assert set(server.children()) == children
        assert server.http_workers() == http_workers
    conf.write_text(good.replace("2\n", "3\n"))
    server.signal(signal.SIGHUP)
    wait_until(lambda: not children & set(server.children()), "the end of the old children")
    server.wait_ready(3)


def test_a_new_command_at_sighup_that_does_not_boot_leaves_the_old_children(
    serve: Serve, tmp_path: Path
) -> None:
    conf = tmp_path / "conf.py"
    conf.write_text(f"pool_cmd = {APP!r}\nmin_pool_size = 2\nmax_pool_size = 2\n")
    server = serve("-c", str(conf), command=None, expected=["worker", "restart", "reload"])
    children = set(server.wait_ready(2))
    conf.write_text(
        "pool_cmd = ['sh', '-c', 'echo no database here; exit 1']\nmin_pool_size = 2\nmax_pool_size = 2\n"
    )
    server.signal(signal.SIGHUP)
    server.wait_log("no database here")
    wait_until(lambda: not server.pool()["restarting"], "the restart's end")
    assert set(server.children()) == children
    assert server.get("/").status == 200
    answer = server.ctl("restart-workers")
    assert answer[-1].startswith("ERROR: ")
    assert "no database here" in answer[-1]
    assert set(server.children()) == children


def test_a_stop_while_children_boot_leaves_nothing(serve: Serve) -> None:
    server = serve(
        "--min-pool-size",
        "3",
        "--max-pool-size",
        "3",
        environment={"POOLPARTY_TEST_BOOT": "time.sleep(1000)"},
    )
    server.wait_children(3, "booting")
    server.terminate()


def test_a_stop_in_the_middle_of_a_reload_loses_and_leaves_nothing(serve: Serve) -> None:
    server = serve("--min-pool-size", "4", "--max-pool-size", "4")
    server.wait_ready(4)
    with Client(server.address) as client:
        with server.gate() as target:
            client.request("GET", target)
            server.wait_busy()
            server.signal(signal.SIGHUP)
            server.wait_log("Booting worker", count=2)
            server.signal(signal.SIGTERM)
            server.wait_log("Handling signal: term")
        assert client.answer().status == 200
    server.terminate(None)
