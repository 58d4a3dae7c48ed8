"""The admin pages below admin_prefix, asked of the arbiter, which makes them, over a channel to it.

One question at a time goes to the arbiter, and a few wait; it answers at once. Nobody's request is held up by
them, and without an admin_prefix none of this is there.
"""

from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from poolparty.stats.scoreboard import COUNTER_INDEX
from poolparty.wire.frames import ResponseHead

if TYPE_CHECKING:
    from poolparty.worker.request import Request
    from poolparty.worker.server import Server

ADMIN = COUNTER_INDEX["admin"]

MAX_WAITING = 64
"""Questions that wait; one more is answered 503."""

READ_SIZE = 64 * 1024

_PLAIN = re.compile(rb"[A-Za-z0-9._~/?=&-]{0,1024}\Z").match
"""What may follow the prefix: whatever the arbiter could refuse would end the channel."""

_HEAD = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r]*\r\n(.*?)\r\n\r\n", re.DOTALL).match
_LENGTH = re.compile(rb"^Content-Length: ([0-9]+)\r?$", re.MULTILINE).search


class AdminPages:
    """Takes requests below the prefix."""

    def __init__(self, server: Server, prefix: str, channel: socket.socket) -> None:
        self._server = server
        self._prefix = prefix.encode()
        self._channel = channel
        self._waiting: deque[Request] = deque()
        self._asked = False  # the first of them has been asked about
        self._input = b""
        server.loop.add_reader(channel.fileno(), self._on_readable)

    def takes(self, request: Request) -> bool:
        """Answer the request if it is for a page of ours."""
        target = request.target
        if not target.startswith(self._prefix):
            if target.partition(b"?")[0] + b"/" != self._prefix:
                return False
            self._send(request, 308, b"", [(b"Location", [self._prefix])])
        elif not _PLAIN(target, len(self._prefix)):
            self._send(request, 404, b"there is no such page\n")
        elif len(self._waiting) >= MAX_WAITING:
            self._send(request, 503, b"too many ask for the admin pages\n")
        else:
            self._waiting.append(request)
            self._ask()
        return True

    def _ask(self) -> None:
        """Ask about the first that waits and whose client is still there."""
        while self._waiting and not self._asked:
            request = self._waiting[0]
            if request.connection is None:
                self._waiting.popleft()
                continue
            target = b"/" + request.target[len(self._prefix) :]
            # Whatever else it is, the arbiter says that nothing is done here.
            method = request.method if request.method in (b"GET", b"HEAD") else b"POST"
            question = b"%s %s HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % (method, target)
            try:
                self._channel.send(question)
            except OSError:  # it takes nothing: it is gone, or about to be
                self._waiting.popleft()
                self._send(request, 503, b"the server is stopping\n")
                continue
            self._asked = True

    def _on_readable(self) -> None:
        try:
            data = self._channel.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._server.loop.remove_reader(self._channel.fileno())
            while self._waiting:
                self._send(self._waiting.popleft(), 503, b"the server is stopping\n")
            return
        self._input += data
        head = _HEAD(self._input)
        if head is None or not self._waiting:
            return
        request = self._waiting[0]
        length = _LENGTH(head[2])
        assert length is not None
        size = 0 if request.method == b"HEAD" else int(length[1])
        if len(self._input) < head.end() + size:
            return
        body = self._input[head.end() : head.end() + size]
        self._input = self._input[head.end() + size :]
        self._waiting.popleft()
        self._asked = False
        fields = [line.partition(b": ") for line in head[2].split(b"\r\n")]
        headers = [(name, [value]) for name, _, value in fields]
        self._send(request, int(head[1]), body, headers)
        self._ask()

    def _send(
        self, request: Request, status: int, body: bytes, headers: Sequence[tuple[bytes, list[bytes]]] = ()
    ) -> None:
        connection = request.connection
        if connection is not None:
            connection.send_response(request, ResponseHead(status, list(headers)), body, ADMIN)
