"""A listening socket in the pool thread's select loop: hands out clients, and pauses where there is no room
for one."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from typing import Protocol

ACCEPT_PAUSE = 1.0
"""Seconds without accepting after that has failed."""


class Log(Protocol):
    """What is used of a logger."""

    def error(self, message: str, *args: object) -> None: ...


class Acceptor:
    """Calls `welcome` with each client's socket, which is non-blocking. `name` is for the log."""

    def __init__(
        self,
        name: str,
        selector: Callable[[], selectors.BaseSelector],
        log: Log,
        welcome: Callable[[socket.socket], None],
    ) -> None:
        self.due: float | None = None  # when `tick` wants to be called, in time.monotonic()'s terms
        self._name = name
        self._selector = selector
        self._log = log
        self._welcome = welcome
        self._listener: socket.socket | None = None

    def start(self, listener: socket.socket) -> None:
        """Accept from a listening socket, which stays its owner's to close, after `stop`."""
        self._listener = listener
        self._listen()

    def stop(self) -> None:
        """Accept no more."""
        if self._listener is not None and self.due is None:
            self._selector().unregister(self._listener)
        self._listener = self.due = None

    def tick(self, now: float) -> None:
        """Go on after a pause, if it is over."""
        if self.due is not None and self.due <= now:
            self._listen()

    def _listen(self) -> None:
        assert self._listener is not None
        self.due = None
        self._selector().register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, mask: int) -> None:
        listener = self._listener
        while listener is not None and listener is self._listener:
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors or memory: the client stays in the backlog, and the loop must not spin.
                self._log.error("%s: cannot accept a connection: %s", self._name, error.strerror)
                self._selector().unregister(listener)
                self.due = time.monotonic() + ACCEPT_PAUSE
                return
            client.setblocking(False)
            self._welcome(client)
