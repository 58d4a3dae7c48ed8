"""Accepts connections that may begin with a PROXY header, where gunicorn's proxy_protocol says so.

The header comes before everything, a TLS handshake too; so a connection's first bytes are only looked at
(MSG_PEEK), the header alone is taken out, and the event loop gets the socket as if it had never been there.
Runs in the HTTP worker.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from poolparty.errors import RequestError
from poolparty.wire.proxy_protocol import MAX_HEADER, ProxyHeader, ProxyHeaderError, read_header
from poolparty.worker.connection import Connection
from poolparty.worker.forwarded import Proxies
from poolparty.worker.response import CLOSE, own_response

if TYPE_CHECKING:
    from poolparty.worker.server import Server

ACCEPT_PAUSE = 0.5
"""Seconds until it is tried again when no connection can be accepted: no descriptor is left, say."""

LOOK_AGAIN = (0.002, 0.1)
"""Seconds, the first and the longest pause, between looks at a header that is not here whole: the socket is
readable all the time, so the event loop cannot tell that more has come. A header that comes in one piece
waits for none."""


class ProxiedListener:
    """A listening socket whose connections may begin with a header."""

    def __init__(self, server: Server, listener: socket.socket, how: dict[str, Any]) -> None:
        """how: what the event loop's connect_accepted_socket is told besides, ssl among it."""
        self._server = server
        self._mode: str = server.cfg.proxy_protocol
        self._allowed = Proxies(server.cfg.proxy_allow_ips)
        self._listener = listener
        self._how = how
        self._greeted: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._task = server.loop.create_task(self._accept())

    def close(self) -> None:
        """Accept no more; those that were accepted go on."""
        self._task.cancel()

    def abort(self) -> None:
        """Leave those whose header is not here yet."""
        for task in self._greeted:
            task.cancel()

    async def _accept(self) -> None:
        loop = self._server.loop
        while True:
            try:
                sock, peer = await loop.sock_accept(self._listener)
            except OSError as error:
                self._server.log.error('msg="no connection can be accepted" error="%s"', error)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            if len(self._greeted) >= self._server.max_connections:
                sock.close()
                continue
            task = loop.create_task(self._greet(sock, peer))
            self._greeted.add(task)
            task.add_done_callback(self._greeted.discard)

    async def _greet(self, sock: socket.socket, peer: Any) -> None:
        """Take the header and hand the connection over. Whoever sends none in time, or a bad one, is told and
        left."""
        server = self._server
        host = peer[0] if isinstance(peer, tuple) else None
        try:
            async with asyncio.timeout(server.read_timeout):
                header = await self._header(sock)
            if header is None:
                sock.close()
                return
            if header.size and not self._allowed.trusts(host):
                raise ProxyHeaderError("this peer is not among proxy_allow_ips")
            sock.recv(header.size)
            client = None if header.host is None else (header.host, header.port)
            await server.loop.connect_accepted_socket(lambda: Connection(server, client), sock, **self._how)
        except ProxyHeaderError as error:
            server.log.info('msg="PROXY header refused" client="%s" reason="%s"', host or "@", error)
            self._refuse(sock, RequestError(400, f"the PROXY header is refused: {error}"))
        except (OSError, TimeoutError):
            sock.close()  # it has left, or its handshake failed

    async def _header(self, sock: socket.socket) -> ProxyHeader | None:
        """The connection's header; None: it has ended."""
        pause, longest = LOOK_AGAIN
        while True:
            try:
                data = sock.recv(MAX_HEADER, socket.MSG_PEEK)
            except BlockingIOError:
                await self._readable(sock)
                continue
            if not data:
                return None
            header = read_header(data, self._mode)
            if header is not None:
                return header
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _readable(self, sock: socket.socket) -> None:
        loop = self._server.loop
        waiter: asyncio.Future[None] = loop.create_future()
        loop.add_reader(sock, _wake, waiter)
        try:
            await waiter
        finally:
            loop.remove_reader(sock)

    def _refuse(self, sock: socket.socket, error: RequestError) -> None:
        if self._how.get("ssl") is None:
            try:
                sock.send(own_response(error.status, str(error), self._server.date, False, CLOSE))
                sock.shutdown(socket.SHUT_WR)
                sock.recv(MAX_HEADER)  # unread bytes would have the kernel reset what was just sent
            except OSError:
                pass
        sock.close()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
