"""A server that may open few files: clients cannot take those it needs to answer them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from client import Client
from server import Server, wait_until

Serve = Callable[..., Server]


def test_idle_clients_beyond_the_limit_of_open_files_keep_nobody_from_being_answered(serve: Serve) -> None:
    """The limit was reached by connections alone, and then no child could be lent to answer any of them."""
    server = serve(
        *("--min-pool-size", "2", "--max-pool-size", "2"),
        under=["sh", "-c", 'ulimit -n 128; exec "$@"', "sh"],
    )
    server.wait_ready(2)
    server.wait_log("worker_connections = .*: the limit of open files has room for 64")
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(Client(server.address, 5))
        for _ in range(20):
            client = stack.enter_context(Client(server.address, 5))
            assert client.ask("GET", "/").status == 200
        # A client may have its answer before that is counted.
        wait_until(lambda: server.pool()["outcomes"]["answered"] >= 20, "the counts")
