"""Asks a server for `stats --json`, without ever keeping its user waiting."""

from __future__ import annotations

import json
import socket
import time

from poolparty.ctl import connect
from poolparty.errors import PoolpartyError
from poolparty.top.figures import Sample
from poolparty.wire.control import join

PATIENCE = 5.0
"""Seconds a server may take for its answer."""

CONNECT_PATIENCE = 1.0
"""Seconds until one that has its backlog full is taken for one that does not answer."""


class Feed:
    """One question at a time, each on a connection of its own, so that the server that follows
    another one is found. `socket` is what to wait for while a question is under way."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket: socket.socket | None = None
        self.due = 0.0  # when the answer is late
        self._answer = bytearray()

    def ask(self) -> None:
        """Put the question. PoolpartyError: there is nobody to ask."""
        self.close()
        server = connect(self.path, CONNECT_PATIENCE)
        self.socket = server
        self.due = time.monotonic() + PATIENCE
        try:
            server.sendall(join(["stats", "--json"]), socket.MSG_NOSIGNAL)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused: why, stands in the answer
        server.setblocking(False)

    def receive(self) -> Sample | None:
        """What there is of the answer; None: the rest is to come. PoolpartyError: there will be none."""
        assert self.socket is not None
        try:
            while data := self.socket.recv(1 << 20):
                self._answer += data
        except BlockingIOError:
            if time.monotonic() < self.due:
                return None
            self.close()
            raise PoolpartyError(f"the server at {self.path} does not answer") from None
        except OSError:
            pass  # what it has sent before stands in the answer
        lines = self._answer.decode("utf-8", "replace").splitlines()
        self.close()
        if lines and lines[-1].startswith("ERROR: "):
            raise PoolpartyError(lines[-1].removeprefix("ERROR: "))
        try:
            return Sample(time.monotonic(), json.loads(lines[-2] if lines[-1] == "OK" else ""))
        except (IndexError, ValueError):
            raise PoolpartyError(f"the server at {self.path} is stopping") from None

    def close(self) -> None:
        """Forget the question."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        self._answer.clear()
