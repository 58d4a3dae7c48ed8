"""The channel between this HTTP worker and the arbiter: children come by it, and go back. Runs in the HTTP
worker.

It is one for all pools: LEND names the pool by its number, RECALL a lease, whose number stands for one child
of one pool. Neither side waits for the other: what the socket has no room for stays here until it has.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from poolparty.wire import seat as messages
from poolparty.wire.seat import Lend, Reason, Recall, Return, Want

if TYPE_CHECKING:
    from poolparty.worker.dispatcher import Dispatcher

_WANT = messages.encode(Want())


class Channel:
    """Our end of a seat's channel."""

    def __init__(
        self, sock: socket.socket, loop: asyncio.AbstractEventLoop, on_end: Callable[[], None]
    ) -> None:
        """on_end: called when the arbiter has gone."""
        self._socket = sock
        self._loop = loop
        self._on_end = on_end
        self._dispatchers: Sequence[Dispatcher] = ()
        self._outbox: deque[bytes] = deque()

    def serve(self, dispatchers: Sequence[Dispatcher]) -> None:
        """Take children for these from now on; they stand in the order of Seat.pools."""
        self._dispatchers = dispatchers
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def want(self) -> None:
        """Wake the arbiter: which pool's requests wait is on the scoreboards."""
        self._send(_WANT)

    def give_back(self, lease: int, reason: Reason) -> None:
        """A lease has ended."""
        self._send(messages.encode(Return(lease, reason)))

    def _on_readable(self) -> None:
        while True:
            try:
                packet, fds, flags, _ = socket.recv_fds(
                    self._socket, messages.MAX_PACKET, messages.LEND_FDS, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                packet, fds, flags = b"", [], 0
            if not packet:
                self._loop.remove_reader(self._socket.fileno())
                self._on_end()
                return
            message = messages.decode(packet)
            if isinstance(message, Lend):
                self._take(message, fds, bool(flags & socket.MSG_CTRUNC))
            elif isinstance(message, Recall):
                for dispatcher in self._dispatchers:
                    if message.lease in dispatcher.leases:
                        dispatcher.recall(message.lease)
                        break

    def _take(self, lend: Lend, fds: list[int], truncated: bool) -> None:
        if truncated or len(fds) != messages.LEND_FDS:
            for fd in fds:
                os.close(fd)
            self.give_back(lend.lease, Reason.REFUSED)
            return
        stdin, stdout = fds
        self._dispatchers[lend.pool].take(lend, stdin, stdout)

    def _send(self, packet: bytes) -> None:
        if not self._outbox:
            try:
                self._socket.send(packet)
                return
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._socket.fileno(), self._on_writable)
            except OSError:
                return  # the arbiter is gone; end of file on the channel says so too
        self._outbox.append(packet)

    def _on_writable(self) -> None:
        while self._outbox:
            try:
                self._socket.send(self._outbox[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._outbox.clear()
                break
            self._outbox.popleft()
        self._loop.remove_writer(self._socket.fileno())
