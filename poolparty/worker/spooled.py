"""A request's body on its way into a file. Runs in the HTTP worker.

The event loop never touches the disk: what has come waits here, a little of it, until one of a few threads
has written it; beyond QUEUE bytes the connection is read no further. The file goes soon after nobody refers
to the body any more, so whoever forgets the request need not remember the file.
"""

from __future__ import annotations

import asyncio
import errno
import os
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from poolparty import spool

QUEUE = 512 * 1024
"""Bytes that wait to be written before their client has to wait too."""

MAX_IOV = 512

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
"""What the system says when there is no room: 507 for the client (RFC 4918, 11.5)."""

THREADS = 4


class Spool:
    """The large bodies of one HTTP worker, in files of one directory."""

    def __init__(self, directory: str, loop: asyncio.AbstractEventLoop) -> None:
        self.directory = directory
        self.loop = loop
        self.threads: Executor = ThreadPoolExecutor(THREADS, "spool")  # which start when they are needed
        self._unused: deque[tuple[int, str]] = deque()

    def body(self) -> SpooledBody:
        """A new one. OSError: no file can be made."""
        body = SpooledBody(self)
        # It may be called at any moment, in any thread, and so must take no lock: it only makes a note.
        weakref.finalize(body, self._unused.append, (body.file, body.path))
        return body

    def clear(self) -> None:
        """Remove the files that nobody refers to any more. Called again and again."""
        while self._unused:
            # What a large file occupies is given back when it is closed for the last time: it can take long.
            self.threads.submit(spool.remove, *self._unused.popleft())


class SpooledBody:
    """`size` bytes so far, in the file `path`. `listener` is called in the event loop when some have been
    written, or could not be."""

    __slots__ = (
        "__weakref__",
        "_queue",
        "_queued",
        "_spool",
        "_writing",
        "error",
        "file",
        "frame",
        "listener",
        "path",
        "size",
    )

    def __init__(self, owner: Spool) -> None:
        """OSError: no file can be made."""
        self.file, self.path = spool.create(owner.directory)
        self.size = 0
        self.error: OSError | None = None
        self.listener: Callable[[SpooledBody], None] | None = None
        self.frame = b""  # the request for a child that takes a file, once it is complete
        self._spool = owner
        self._queue: list[bytes] = []
        self._queued = 0
        self._writing = False

    @property
    def full(self) -> bool:
        """Whether no more should come for now."""
        return self._queued > QUEUE

    @property
    def written(self) -> bool:
        """Whether all that has come is in the file."""
        return not self._queued and self.error is None

    def write(self, data: bytes) -> None:
        """Have data written behind the rest."""
        self.size += len(data)
        if self.error is not None:
            return
        self._queue.append(data)
        self._queued += len(data)
        if not self._writing:
            self._push()

    def _push(self) -> None:
        self._writing = True
        parts, self._queue = self._queue, []
        job = self._spool.loop.run_in_executor(self._spool.threads, _write, self.file, parts)
        job.add_done_callback(self._pushed)

    def _pushed(self, job: asyncio.Future[int]) -> None:
        self._writing = False
        if job.cancelled():
            return
        error = job.exception()
        if error is not None:
            self.error = error if isinstance(error, OSError) else OSError(str(error))
            self._queue.clear()
            self._queued = 0
        else:
            self._queued -= job.result()
            if self._queue:
                self._push()
        if self.listener is not None:
            self.listener(self)


def _write(file: int, parts: list[bytes]) -> int:
    """In a thread: all of it."""
    size = sum(map(len, parts))
    rest = [memoryview(part) for part in parts]
    while rest:
        written = os.writev(file, rest[:MAX_IOV])
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]
    return size
