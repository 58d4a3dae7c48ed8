"""Connections that are open, have had an answer, and say nothing."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def idle_connections(port: int, count: int) -> Iterator[int]:
    """Hold `count` keep-alive connections to 127.0.0.1:`port`, each after one GET; gives how many were
    answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    with contextlib.ExitStack() as stack:
        answered = 0
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answered += connection.recv(65536).startswith(b"HTTP/1.1 200")
        yield answered
