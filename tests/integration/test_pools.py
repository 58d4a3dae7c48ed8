"""Several pools in a real server: which one answers, and that none is in another's way."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import Server, wait_until

APPLICATION = """\
import os, sys, time
name = os.environ["NAME"]
if os.path.exists(f"broken-{name}"):
    sys.exit(f"{name} does not start")
import poolparty

def handler(request):
    while os.path.exists(f"gate-{name}"):
        time.sleep(0.001)
    return f"{name} {request.path} {os.getpid()}"

poolparty.serve(handler)
"""


def table(name: str, *routes: str, **options: Any) -> dict[str, Any]:
    return {"routes": list(routes), "raw_env": [f"NAME={name}"], **options}


def configure(directory: Path, pools: dict[str, Any], **options: Any) -> None:
    """Write the application and a configuration of it."""
    directory.mkdir(exist_ok=True)
    (directory / "app.py").write_text(APPLICATION)
    settings = {
        "worker_class": "poolparty.GWorker",
        "pool_cmd": [sys.executable, "app.py"],
        "raw_env": ["NAME=default"],
        "pools": pools,
        **options,
    }
    lines = (f"{name} = {value!r}\n" for name, value in settings.items())
    (directory / "poolparty.conf.py").write_text("".join(lines))


@pytest.fixture
def pools(serve: Callable[..., Server], tmp_path: Path) -> Callable[..., Server]:
    """pools(api={…}, expected=…, max_pool_size=…) -> a server with these pools, all of them ready."""
    numbers = itertools.count(1)

    def start(expected: tuple[str, ...] = (), gunicorn: bool = False, **given: Any) -> Server:
        directory = tmp_path / f"pools{next(numbers)}"
        tables = {name: value for name, value in given.items() if isinstance(value, dict)}
        configure(directory, tables, **{name: value for name, value in given.items() if name not in tables})
        server = serve(
            "-c", "poolparty.conf.py", directory=directory, command=None, expected=expected, gunicorn=gunicorn
        )
        wait_until(lambda: all(pool["idle"] >= pool["min"] for pool in server.stats()["pools"]), "all pools")
        return server

    return start


def pool_of(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(pool for pool in server.stats()["pools"] if pool["name"] == name)
    return found


def test_host_and_path_choose_the_pool_on_one_connection(pools: Callable[..., Server]) -> None:
    server = pools(api=table("api", "/api", "api.example.com/"), health=table("health", "/health"))
    client = server.connect()
    for host, target, expected in (
        ("test.example", "/", "default /"),
        ("test.example", "/api", "api /api"),
        ("test.example", "/api/users?a=/health", "api /api/users"),
        ("test.example", "/apix", "default /apix"),
        ("API.example.com:8080", "/health", "api /health"),
        ("test.example", "/health", "health /health"),
        ("test.example", "/x/..//%61pi/y", "api /api/y"),
        ("test.example", "http://api.example.com/z", None),
        ("api.example.com", "http://api.example.com/z", "api /z"),
    ):
        answer = client.ask(target=target, fields={"Host": host})
        if expected is None:
            assert answer.status == 400  # the target and the Host field name different hosts
            client = server.connect()
        else:
            assert answer.text.rpartition(" ")[0] == expected

    def answered() -> dict[str, int]:
        return {pool["name"]: pool["outcomes"]["answered"] for pool in server.stats()["pools"]}

    # Written, then counted: the client may be quicker.
    wait_until(lambda: answered() == {"default": 2, "api": 5, "health": 1}, "the counts of each pool")


def test_pipelined_requests_to_several_pools_are_answered_in_order(pools: Callable[..., Server]) -> None:
    server = pools(api=table("api", "/api"))
    client = server.connect()
    targets = [f"/api/{number}" if number % 3 else f"/{number}" for number in range(30)]
    client.send(b"".join(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode() for target in targets))
    for target in targets:
        name = "api" if target.startswith("/api") else "default"
        assert client.answer().text.rpartition(" ")[0] == f"{name} {target}"


def test_stock_gunicorn_serves_several_pools(pools: Callable[..., Server]) -> None:
    server = pools(gunicorn=True, api=table("api", "/api"), workers=2)
    for _ in range(20):
        assert server.get("/api").text.startswith("api ")
        assert server.get("/").text.startswith("default ")


def test_a_pool_whose_children_are_all_busy_lets_only_its_own_requests_wait(
    pools: Callable[..., Server],
) -> None:
    server = pools(api=table("api", "/api", request_backlog=1))
    gate = server.directory / "gate-api"
    gate.touch()
    running, waiting = server.connect(), server.connect()
    running.request(target="/api/1")
    wait_until(lambda: pool_of(server, "api")["busy"], "the one child runs the first")
    waiting.request(target="/api/2")
    wait_until(lambda: pool_of(server, "api")["queued"], "the second waits")
    assert server.get("/api/3").status == 503
    for number in range(50):
        assert server.get(f"/{number}").text.startswith(f"default /{number} ")
    gate.unlink()
    assert [client.answer().text.rpartition(" ")[0] for client in (running, waiting)] == [
        "api /api/1",
        "api /api/2",
    ]
    assert pool_of(server, "api")["outcomes"]["overloaded"] == 1
    assert pool_of(server, "default")["outcomes"]["overloaded"] == 0


def test_each_pools_time_limit_is_its_own(pools: Callable[..., Server]) -> None:
    server = pools(api=table("api", "/api", worker_request_timeout="200ms"), expected=("request timed out",))
    for name in ("api", "default"):
        (server.directory / f"gate-{name}").touch()
    patient = server.connect()
    patient.request(target="/")
    assert server.get("/api").status == 504
    server.wait_log(r'"worker request timed out" worker-pid=\d+ pool=api method=GET')
    (server.directory / "gate-default").unlink()
    assert patient.answer().status == 200
    (server.directory / "gate-api").unlink()


def test_each_pools_limit_of_a_body_is_its_own(pools: Callable[..., Server]) -> None:
    server = pools(uploads=table("uploads", "/up", max_request_body_size="2M"), max_request_body_size=1000)
    body = bytes(1_500_000)
    assert server.ask("POST", "/up", body).status == 200
    assert server.ask("POST", "/", body).status == 413
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (2000, bytes(2000))
    for target, status in (("/up", 200), ("/", 413)):
        assert server.ask("POST", target, chunked, {"Transfer-Encoding": "chunked"}).status == status


def test_a_pool_that_does_not_start_any_more_is_answered_503_and_the_others_are_not(
    pools: Callable[..., Server],
) -> None:
    server = pools(
        api=table("api", "/api", worker_restart_delay="10ms"),
        expected=("died before it was ready", "worker died"),
        admin_address="127.0.0.1:0",
    )
    (server.directory / "broken-api").touch()
    os.kill(pool_of(server, "api")["children"][0]["pid"], signal.SIGKILL)
    wait_until(lambda: server.get("/api").status == 503, "its program fails")
    for number in range(100):
        assert server.get(f"/{number}").text.startswith(f"default /{number} ")
    server.wait_log("worker died before it was ready.* pool=api")
    (server.directory / "broken-api").unlink()
    wait_until(lambda: server.get("/api").status == 200, "it starts again")
    figures = pool_of(server, "default")
    assert figures["counters"]["worker_deaths"] == 0 and figures["counters"]["worker_spawns"] == 1


def test_a_restart_of_one_pool_loses_nothing_and_leaves_the_others_children(
    pools: Callable[..., Server],
) -> None:
    server = pools(api=table("api", "/api", min_pool_size=2), max_pool_size=2)
    before = pool_of(server, "default")["children"][0]["pid"]
    pids = {child["pid"] for child in pool_of(server, "api")["children"]}
    stop = threading.Event()
    wrong: list[str] = []

    def ask(target: str, name: str) -> None:
        client = server.connect()
        while not stop.is_set():
            answer = client.ask(target=target)
            if answer.status != 200 or not answer.text.startswith(name):
                wrong.append(answer.text)

    threads = [threading.Thread(target=ask, args=pair) for pair in (("/api/x", "api"), ("/", "default"))]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert server.ctl("restart-workers api") == ["OK"]
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pool_of(server, "default")["children"][0]["pid"] == before
    assert not pids & {child["pid"] for child in pool_of(server, "api")["children"]}


def test_a_reload_may_change_a_pool_but_not_which_there_are(pools: Callable[..., Server]) -> None:
    server = pools(api=table("api", "/api"), expected=("The new configuration cannot be used",))
    configure(server.directory, {"api": table("new", "/new", max_pool_size=2)})
    before = server.http_workers()
    server.signal(signal.SIGHUP)
    wait_until(lambda: len(now := server.http_workers()) == 1 and now != before, "a new HTTP worker alone")
    wait_until(lambda: server.get("/new").text.startswith("new "), "the new program")
    assert server.get("/api").text.startswith("default ")
    configure(server.directory, {"other": table("other", "/new")})
    server.signal(signal.SIGHUP)
    (line,) = server.wait_log("The new configuration cannot be used")
    assert "pools: they are default, api since the start, not default, other; restart the server" in line
    assert server.get("/new").text.startswith("new ")


def test_an_upgrade_may_change_which_pools_there_are(pools: Callable[..., Server]) -> None:
    server = pools(api=table("api", "/api"))
    configure(server.directory, {"third": table("third", "/third")}, pidfile="new.pid")
    server.signal(signal.SIGUSR2)
    wait_until(lambda: server.get("/third").text.startswith("third "), "the new server's pool")
    new = int((server.directory / "new.pid.2").read_text())
    server.not_its_own.add(new)
    os.kill(new, signal.SIGTERM)
    wait_until(lambda: server.get("/api").text.startswith("api "), "the old one alone again")

    def steered() -> bool:
        with contextlib.suppress(OSError, ValueError):  # it is not there yet, or just ends without an answer
            return bool(server.stats()["arbiter"]["pid"] == server.pid)
        return False

    wait_until(steered, "it has its control socket back")


def test_the_total_bounds_all_pools_together(pools: Callable[..., Server]) -> None:
    server = pools(api=table("api", "/api"), max_pool_size=4, total_pool_size=4, worker_spawn_timeout="10ms")
    gates = [server.directory / f"gate-{name}" for name in ("default", "api")]
    for gate in gates:
        gate.touch()
    clients = [server.connect() for _ in range(10)]
    for number, client in enumerate(clients):
        client.request(target="/" if number % 2 else "/api")

    def total(name: str) -> int:
        return sum(pool[name] for pool in server.stats()["pools"])

    # How many wait is told again and again, and so a little late.
    wait_until(lambda: (total("busy"), total("queued")) == (4, 6), "as many run as there may be")
    assert total("workers") == 4 and all(pool["workers"] >= 1 for pool in server.stats()["pools"])
    for gate in gates:
        gate.unlink()
    assert all(client.answer().status == 200 for client in clients)
