"""Serves an ASGI application, Starlette's or FastAPI's: poolparty -- python -m poolparty.asgi app:app

Runs in the child, on top of `poolparty.serve`: one request at a time, on one event loop that is kept between
requests and stands still there. So it is for applications that answer requests; what runs on beside them
(tasks that outlive their request, WebSockets) is refused or waits for the next request. Lifespan events are
sent: startup before the child says that it is ready, shutdown when it leaves. Python 3.8 or later.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import poolparty

from . import Request, Response, serve
from .gateway import add_field, client_of, server_of, text_of
from .loading import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType
    from typing import Any, NoReturn, TypeAlias

    Message: TypeAlias = dict[str, Any]
    Application: TypeAlias = Callable[..., Awaitable[None]]

__all__ = ["main", "run"]

PIECE_SIZE = 65536  # bytes of a body that is in a file
VERSIONS = {"version": "3.0", "spec_version": "2.4"}

NO_WEBSOCKETS = Response(
    501, {"Content-Type": "text/plain; charset=utf-8"}, "WebSockets are not carried by this server\n"
)


def main() -> None:
    """What `python -m poolparty.asgi APPLICATION` does."""
    run(load("poolparty.asgi", sys.argv[1:]))


def run(application: Application) -> None:
    """Serve the application until the server closes the pipe or ends this process by SIGTERM."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    lifespan = _Lifespan(application, loop)
    lifespan.start()
    signal.signal(signal.SIGTERM, _leave)
    poolparty._show_more = lambda number, frame: _show_tasks(loop, lifespan.task)
    try:
        serve(_Handler(application, loop, lifespan.state).handle)
    finally:
        lifespan.stop()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(0)  # so that the lifespan gets its shutdown


MAX_SHOWN = 100
"""Tasks, and frames of one: what is more is left out."""


def _show_tasks(loop: asyncio.AbstractEventLoop, lifespan: asyncio.Task[None] | None) -> None:
    """Write to stderr where the application's coroutines wait, each the most recent call first. What runs at
    the moment is on its thread's stack, and shown there; so is our own waiting for a task."""
    ours = os.path.dirname(asyncio.__file__)
    shown = []
    tasks = asyncio.all_tasks(loop) - {lifespan, asyncio.current_task(loop)}
    for task in sorted(tasks, key=asyncio.Task.get_name):
        frames = list(_frames(task.get_coro()))
        if frames and os.path.dirname(frames[0].f_code.co_filename) != ours:
            calls = (
                f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}\n'
                for frame in reversed(frames)
            )
            shown.append(f"{task.get_name()} waits (most recent call first):\n" + "".join(calls))
    # In one piece, and past sys.stderr: the program may be in the middle of writing to that.
    os.write(2, "".join(shown[:MAX_SHOWN]).encode(errors="backslashreplace"))


def _frames(waits: Any) -> Iterator[FrameType]:
    """Of a coroutine that waits, and of whatever it waits for in turn."""
    for _ in range(MAX_SHOWN):
        for frame_name, next_name in (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom")):
            frame = getattr(waits, frame_name, None)
            if frame is not None:
                yield frame
                waits = getattr(waits, next_name)
                break
        else:
            return


class _Handler:
    """Answers each request by one call of the application."""

    def __init__(
        self, application: Application, loop: asyncio.AbstractEventLoop, state: dict[str, Any]
    ) -> None:
        self.application = application
        self.loop = loop
        self.state = state
        self.root_path = os.environ.get("ROOT_PATH", "")
        offered = os.environ.get("POOLPARTY_FEATURES", "").split(",")
        self.streams = "ready" in offered and "stream" in offered

    def handle(self, request: Request) -> Response:
        scope = self.scope(request)
        if scope is None:
            return NO_WEBSOCKETS
        exchange = _Exchange(self.loop, _pieces_of(request))
        task = self.loop.create_task(_call(self.application, scope, exchange))
        try:
            if self.streams:
                exchange.run_to_piece(task)
                if not task.done() and not exchange.complete:
                    return exchange.response(exchange.pieces_until_done(task))
                exchange.go_on()
            # What the application does behind its answer (Starlette's BackgroundTask) is done first: between
            # requests nothing runs.
            self.loop.run_until_complete(task)
        except Exception:
            if not exchange.complete:
                raise
            _report_late(request)  # it has answered; Starlette's error page is such an answer
        finally:
            if not self.streams and not task.done():
                task.cancel()
        if not exchange.complete:
            raise AssertionError("the application returned before its answer was complete")
        return exchange.response(b"".join(exchange.pieces))

    def scope(self, request: Request) -> dict[str, Any] | None:
        """The connection scope; None if the client wants a WebSocket."""
        scheme, host, port = server_of(request.uri)
        client, client_port = client_of(request.remote_address)
        headers = []
        for name, value in request.headers.items():
            lower = name.lower()
            if lower == "upgrade" and value.lower() == "websocket":
                return None
            if lower != "transfer-encoding":  # the body is whole and has none
                headers.append((lower.encode(), value.encode()))
        path = request.path
        decoded = path
        if "%" in path:
            from urllib.parse import unquote

            decoded = unquote(path)
        return {
            "type": "http",
            "asgi": VERSIONS,
            "http_version": "1.1",
            "method": request.method,
            "scheme": scheme,
            "path": decoded,
            "raw_path": path.encode(),
            "query_string": request.query.encode(),
            "root_path": self.root_path,
            "headers": headers,
            "client": (client, int(client_port)) if client else None,
            "server": (host, int(port)) if port.isdigit() else None,
            "state": self.state.copy(),
        }


async def _call(application: Application, scope: dict[str, Any], exchange: _Exchange) -> None:
    await application(scope, exchange.receive, exchange.send)


def _pieces_of(request: Request) -> Iterator[tuple[bytes, bool]]:
    """The request's body, and with each piece whether more follows."""
    if request.body_path is None:
        yield request.body, False
        return
    with request.open_body() as file:
        piece = file.read(PIECE_SIZE)
        while following := file.read(PIECE_SIZE):
            yield piece, True
            piece = following
        yield piece, False


LEAVING_TIMEOUT = 0.5
"""Seconds for an application to end when it hears that its client has left, and again when cancelled."""

TURNS_TO_CLOSE = 3
"""Turns of the event loop in which asyncio closes an async generator that nobody holds."""


class _Exchange:
    """One request and what the application has sent in answer to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, body: Iterator[tuple[bytes, bool]]) -> None:
        self.loop = loop
        self.body = body
        self.status = 0
        self.headers: dict[str, str | list[str]] = {}
        self.pieces: list[bytes] = []
        self.complete = False
        self.left = False  # whether the client has, before the answer was complete
        self.ended: asyncio.Future[None] | None = None  # whoever waits in receive() for the end
        # Where pieces are sent singly: set at the next one, and when that has been sent.
        self.turn: asyncio.Future[None] | None = None
        self.sent = asyncio.Event()

    async def receive(self) -> Message:
        for piece, more in self.body:
            return {"type": "http.request", "body": piece, "more_body": more}
        if not self.complete and not self.left:
            if self.ended is None:
                self.ended = self.loop.create_future()
            await asyncio.shield(self.ended)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.left:
            raise OSError("the client has left")  # what the specification asks for
        kind = message["type"]
        if kind == "http.response.start":
            if self.status:
                raise RuntimeError("http.response.start was sent twice")
            self.status = message["status"]
            for name, value in message.get("headers", ()):
                add_field(self.headers, bytes(name).decode("latin-1"), text_of(bytes(value)))
        elif kind == "http.response.body":
            if not self.status or self.complete:
                raise RuntimeError(
                    f"http.response.body was sent {'after' if self.complete else 'before'} the answer"
                )
            self.pieces.append(bytes(message.get("body", b"")))
            if not message.get("more_body", False):
                self.complete = True
                self.end()
            if self.turn is not None:
                self.sent.clear()
                if not self.turn.done():
                    self.turn.set_result(None)
                await self.sent.wait()
        else:
            raise RuntimeError(f"{kind} is not offered here")

    def end(self) -> None:
        """Whoever waits for it in receive() hears of the end."""
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(None)

    def leave(self, task: asyncio.Task[None]) -> None:
        """The client has left: the application hears of it, and if it does not end, is cancelled."""
        self.left = True
        self.end()
        self.go_on()
        self.loop.run_until_complete(asyncio.wait((task,), timeout=LEAVING_TIMEOUT))
        if not task.done():
            task.cancel()
            self.loop.run_until_complete(asyncio.wait((task,), timeout=LEAVING_TIMEOUT))
        if task.done() and not task.cancelled():
            self._forget(task.exception())

    def _forget(self, error: BaseException | None) -> None:
        """What it raised is of no interest any more, but generators in its frames are to be closed now:
        between requests the loop, which does that, stands still."""
        import traceback

        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        for _ in range(TURNS_TO_CLOSE):
            self.loop.run_until_complete(asyncio.sleep(0))

    def run_to_piece(self, task: asyncio.Task[None]) -> None:
        """Run until the next piece is there, or the application has ended: then what it raised is raised."""
        self.turn = self.loop.create_future()
        self.sent.set()
        self.loop.run_until_complete(asyncio.wait((task, self.turn), return_when=asyncio.FIRST_COMPLETED))
        if task.done():
            task.result()

    def go_on(self) -> None:
        """From here on the application waits for nothing."""
        self.turn = None
        self.sent.set()

    def pieces_until_done(self, task: asyncio.Task[None]) -> Iterator[bytes]:
        try:
            while True:
                pieces, self.pieces = self.pieces, []
                yield from pieces
                if task.done():
                    break
                if self.complete:
                    self.go_on()
                    self.loop.run_until_complete(task)
                else:
                    self.run_to_piece(task)
            if not self.complete:
                raise AssertionError("the application returned before its answer was complete")
        finally:
            if not task.done():
                self.leave(task)

    def response(self, body: bytes | Iterator[bytes]) -> Response:
        return Response(self.status, self.headers, body)


def _report_late(request: Request) -> None:
    import traceback

    print(f"poolparty: {request.method} {request.uri!r} failed after its answer", file=sys.stderr)
    traceback.print_exc()


class _Lifespan:
    """The lifespan protocol: one call of the application that lasts as long as the process."""

    def __init__(self, application: Application, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.state: dict[str, Any] = {}
        self.application = application
        self.task: asyncio.Task[None] | None = None
        self.inbox: asyncio.Queue[Message] | None = None
        self.outcome: asyncio.Future[Message] | None = None

    def start(self) -> None:
        """Startup. SystemExit: the application says that it failed; one that knows no lifespan has none."""
        self.task = self.loop.create_task(self._live())
        message = self._exchange("startup")
        if message is None:
            if not self.task.cancelled() and self.task.exception() is not None:
                self.task = None
        elif message["type"] == "lifespan.startup.failed":
            raise SystemExit(
                f"poolparty.asgi: the application's startup failed: {message.get('message', '')}"
            )

    def stop(self) -> None:
        if self.task is not None and not self.task.done():
            message = self._exchange("shutdown")
            if message is not None and message["type"] == "lifespan.shutdown.failed":
                print(f"poolparty.asgi: shutdown failed: {message.get('message', '')}", file=sys.stderr)
            self.task.cancel()

    async def _live(self) -> None:
        self.inbox = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": VERSIONS, "state": self.state}
        await self.application(scope, self.inbox.get, self._send)

    async def _send(self, message: Message) -> None:
        if self.outcome is not None and not self.outcome.done():
            self.outcome.set_result(message)

    def _exchange(self, event: str) -> Message | None:
        """Send an event; the application's answer, None if it ended instead."""
        assert self.task is not None
        return self.loop.run_until_complete(self._ask(event, self.task))

    async def _ask(self, event: str, task: asyncio.Task[None]) -> Message | None:
        self.outcome = asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)  # the task makes its inbox
        if self.inbox is not None:
            self.inbox.put_nowait({"type": f"lifespan.{event}"})
        await asyncio.wait((task, self.outcome), return_when=asyncio.FIRST_COMPLETED)
        return self.outcome.result() if self.outcome.done() else None


if __name__ == "__main__":
    main()
