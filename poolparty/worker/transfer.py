"""A part of a file on its way to a client: by sendfile, or under TLS by bounded reads. Runs in the HTTP
worker.

It stands where a lease stands for a child's large answer: the connection pauses and resumes it. The event
loop itself never touches the file; each step runs in one of a few threads, and no step waits for the client,
so that a slow client holds no thread: with eight downloads on two cores the p99 of other requests was 4-7 ms
so, and 9-17 ms with sendfile on the loop. sendfile goes to a duplicate of the socket's descriptor: uvloop
lets nobody watch the transport's own."""

from __future__ import annotations

import asyncio
import errno
import os
from concurrent.futures import Executor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolparty.wire.frames import ResponseHead
    from poolparty.worker.connection import Connection
    from poolparty.worker.request import Request

STEP = 512 * 1024
"""Bytes handed to the kernel at a time: enough that the change of threads does not count, and soon over on a
slow disk."""

READ_STEP = 128 * 1024

NO_SENDFILE = frozenset((errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))
"""What a file system says that has no sendfile."""


class Transfer:
    """Sends one response with the bytes from `start` on, `size` of them, of an open file; the file stays the
    caller's."""

    def __init__(
        self, connection: Connection, request: Request, file: int, start: int, size: int, threads: Executor
    ) -> None:
        self._connection = connection
        self._request = request
        self._file = file
        self._start = start
        self._left = size
        self._threads = threads
        self._loop = connection.server.loop
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    # --- what the connection calls, as it does with a lease ------------------------------------------------

    def pause_reading(self) -> None:
        """The client is behind."""
        self._paused = True

    def resume_reading(self) -> None:
        """The client has caught up, or has left."""
        self._paused = False
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- sending -------------------------------------------------------------------------------------------

    def send_head(self, head: ResponseHead, outcome: int) -> None:
        """Answer a HEAD request: what a GET would have got, without it."""
        if self._connection.start_response(self._request, head, self._left, self):
            self._connection.send_piece(self._request, b"", True, outcome)

    async def run(self, head: ResponseHead, outcome: int, broken: int) -> None:
        """Send it. Whoever calls sees no error: a file that breaks off, or a client that does, ends the
        connection. broken: the counter's column in place of `outcome` where the file does."""
        connection, request = self._connection, self._request
        transport = connection.transport
        direct = connection.server.scheme != b"https"
        if direct:
            # What goes through the transport must be with the kernel before the first byte that goes around.
            transport.set_write_buffer_limits(high=0)
        try:
            if not connection.start_response(request, head, self._left, self):
                return
            if direct:
                try:
                    await self._unpaused()
                    await self._send_directly()
                finally:
                    if request.connection is not None and not transport.is_closing():
                        limit = connection.server.options.response_buffer_size
                        transport.set_write_buffer_limits(high=limit)
            await self._send_through()
        except TimeoutError:
            connection.server.log.info('msg="response write timed out" client="%s"', connection.address)
            transport.abort()
            return
        except OSError as error:
            if request.connection is not None:
                connection.server.log.error('msg="file broke off" error="%s"', error)
                connection.cut_response(request, broken)
            return
        if request.connection is not None:
            connection.send_piece(request, b"", True, outcome)

    async def _unpaused(self) -> None:
        while self._paused and self._request.connection is not None:
            self._waiter = self._loop.create_future()
            await self._waiter

    async def _send_directly(self) -> None:
        """By sendfile, until nothing is left, the client has gone, or it turns out that this file has to be
        read."""
        request = self._request
        if request.connection is None:
            return  # and the number of its descriptor may be another connection's by now
        out = os.dup(self._connection.transport.get_extra_info("socket").fileno())
        try:
            while self._left and request.connection is not None:
                size = min(self._left, STEP)
                push = self._loop.run_in_executor(self._threads, _push, out, self._file, self._start, size)
                try:
                    pushed, full = await asyncio.shield(push)
                except asyncio.CancelledError:
                    await asyncio.wait([push])  # nothing may be closed while a thread uses it
                    raise
                except (BrokenPipeError, ConnectionError):
                    self._connection.transport.abort()
                    return
                except OSError as error:
                    if error.errno in NO_SENDFILE:
                        return
                    raise
                self._start += pushed
                self._left -= pushed
                if request.connection is None:
                    return
                self._connection.passed(pushed)
                if not pushed and not full:
                    raise OSError(errno.EIO, "the file has become shorter")
                if full and self._left:
                    await self._writable(out)
        finally:
            os.close(out)

    async def _writable(self, out: int) -> None:
        """Wait until the socket takes more. TimeoutError: the client has taken nothing for
        request_write_timeout."""
        self._waiter = self._loop.create_future()
        self._loop.add_writer(out, self._wake)
        try:
            async with asyncio.timeout(self._connection.server.write_timeout):
                await self._waiter
        finally:
            self._loop.remove_writer(out)

    async def _send_through(self) -> None:
        """By reads, through the transport, no faster than the client takes it."""
        request = self._request
        while self._left and request.connection is not None:
            await self._unpaused()
            size = min(self._left, READ_STEP)
            read = self._loop.run_in_executor(self._threads, os.pread, self._file, size, self._start)
            try:
                data = await asyncio.shield(read)
            except asyncio.CancelledError:
                await asyncio.wait([read])
                raise
            if request.connection is None:
                return
            if not data:
                raise OSError(errno.EIO, "the file has become shorter")
            self._start += len(data)
            self._left -= len(data)
            self._connection.send_piece(request, data, False)


def _push(out: int, file: int, start: int, size: int) -> tuple[int, bool]:
    """In a thread: (bytes the kernel has taken, whether it takes no more for now)."""
    pushed = 0
    while pushed < size:
        try:
            count = os.sendfile(out, file, start + pushed, size - pushed)
        except BlockingIOError:
            return pushed, True
        if not count:
            break
        pushed += count
    return pushed, False
