"""What ps shows of a running server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from client import Client
from server import Server, wait_until

Serve = Callable[..., Server]


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def test_titles_say_what_a_process_is_and_how_busy(serve: Serve) -> None:
    server = serve("--min-pool-size", "3", "--max-pool-size", "3", gunicorn=True)
    server.wait_ready(3)
    wait_until(lambda: title(server.pid) == "poolparty: pool default 0/3 busy", title(server.pid))
    [http_worker] = server.http_workers()
    assert title(http_worker) == "poolparty: HTTP worker"
    with ExitStack() as stack, server.gate() as target:
        clients = [stack.enter_context(Client(server.address)) for _ in range(2)]
        for client in clients:
            client.request("GET", target)
        wait_until(lambda: title(server.pid) == "poolparty: pool default 2/3 busy", "two busy")
        clients += [stack.enter_context(Client(server.address)) for _ in range(2)]
        for client in clients[2:]:
            client.request("GET", target)
        wait_until(lambda: title(server.pid) == "poolparty: pool default 3/3 busy, 1 queued", "a queue")
        server.signal(15)
        wait_until(lambda: title(server.pid) == "poolparty: stopping", "the stop")
        wait_until(lambda: title(http_worker) == "poolparty: HTTP worker, draining", "the drain")
    server.terminate(None)


def test_a_name_of_ones_own_is_shown_and_has_a_bound(serve: Serve) -> None:
    server = serve("--name", "shop\x1b[2J" + "x" * 1000)
    wait_until(lambda: title(server.pid).startswith("poolparty: pool default "), "the title")
    assert title(server.pid).endswith("busy [shop\\x1b[2J" + "x" * (64 - 11) + "]")
