"""Answers made of files: the threads and tasks that work on them, and the way of what is decided out.

Runs in the HTTP worker.

Small files are sent in one write, larger ones by a Transfer. The event loop never waits for the disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from poolparty.worker.transfer import Transfer

if TYPE_CHECKING:
    from poolparty.worker.request import Request
    from poolparty.worker.server import Server
    from poolparty.worker.static_answer import Answer, Form

T = TypeVar("T")


class FileSender:
    """Sends the files of one kind. Lookups have threads of their own: they shall not wait for transfers."""

    def __init__(self, server: Server, name: str, outcome: int, broken: int) -> None:
        """name: of the threads. outcome: the column of the counter that its answers go to; broken: those
        that break off."""
        self._server = server
        self._outcome = outcome
        self._broken = broken
        self._tasks: set[asyncio.Task[None]] = set()
        self.lookups = ThreadPoolExecutor(2, f"{name}-lookup")
        self._transfers = ThreadPoolExecutor(4, f"{name}-transfer")

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Answer a request that needs the disk."""
        task = self._server.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is being sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for threads in (self.lookups, self._transfers):
            threads.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Do work in a thread; if the task is cancelled meanwhile, a file it has opened is closed all the
        same."""
        future = threads.submit(work)
        try:
            return await asyncio.wrap_future(future, loop=self._server.loop)
        except asyncio.CancelledError:
            future.add_done_callback(_close_result)
            raise

    def send(self, request: Request, form: Form | None, answer: Answer) -> None:
        """Send what needs no file."""
        connection = request.connection
        if connection is None:
            return
        body: bytes | memoryview = answer.sentence or b""
        if form is not None and form.content is not None and answer.size:
            body = form.content
            if answer.size != form.size:
                body = memoryview(body)[answer.start : answer.start + answer.size]
        if request.is_head and answer.size:
            transfer = Transfer(connection, request, -1, 0, answer.size, self._transfers)
            transfer.send_head(answer.head, self._outcome)
        else:
            connection.send_response(request, answer.head, body, self._outcome)

    async def send_file(self, request: Request, form: Form, file: int, answer: Answer) -> None:
        """Send an answer. file: the open one, which stays the caller's; -1: `form` has its content."""
        connection = request.connection
        if file < 0 or not answer.size or request.is_head:
            self.send(request, form, answer)
        elif connection is not None:
            transfer = Transfer(connection, request, file, answer.start, answer.size, self._transfers)
            await transfer.run(answer.head, self._outcome, self._broken)


def _close_result(future: object) -> None:
    """A lookup that nobody waits for any more."""
    result = future.result() if not future.cancelled() and future.exception() is None else None  # type: ignore[attr-defined]
    if isinstance(result, tuple) and result[1] >= 0:
        os.close(result[1])
