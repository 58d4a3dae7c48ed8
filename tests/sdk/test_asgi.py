"""ASGI applications under `python -m poolparty.asgi`, in a child of their own."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ALL = {"POOLPARTY_FEATURES": "ready,health-reply,stream"}
FAILURE = (500, {"Content-Type": ["text/plain; charset=utf-8"]}, b"internal server error\n")

Serve = Callable[..., Any]


@pytest.fixture
def serve(start_worker: Callable[..., Any], sdk: Path, tmp_path: Path) -> Serve:
    """serve(source, environment={}): a worker that serves the source's `app`."""

    def serve(source: str, environment: dict[str, str] | None = None) -> Any:
        (tmp_path / "app.py").write_text(textwrap.dedent(source))
        path = os.pathsep.join((str(tmp_path), str(sdk / "python")))
        command = [sys.executable, "-m", "poolparty.asgi", "app:app"]
        return start_worker(command, {"PYTHONPATH": path, **(environment or {})})

    return serve


PLAIN = """
import asyncio, json

async def answer(send, body, more=False, status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body, "more_body": more})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                scope["state"]["started"] = True
                print("started")
                await send({"type": "lifespan.startup.complete"})
            else:
                print("stopped")
                await send({"type": "lifespan.shutdown.complete"})
                return
    path = scope["path"]
    if path == "/pieces":
        await answer(send, b"one\\n", more=True)
        await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": b"two\\n", "more_body": True})
        await send({"type": "http.response.body"})
        print("after the answer")
    elif path == "/fail":
        raise RuntimeError("this one fails")
    elif path == "/fail-late":
        await answer(send, b"answered")
        raise RuntimeError("this one fails")
    elif path == "/half":
        await answer(send, b"half", more=True)
    elif path == "/repeated":
        cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await answer(send, b"", headers=[*cookies, (b"x", b"gr\\xc3\\xbcn")])
    elif path == "/disconnect":
        await receive()
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        before = waiting.done()
        await answer(send, b"x")
        print(before, (await waiting)["type"])
    else:
        message = await receive()
        told = {k: v.decode("latin-1") if isinstance(v, bytes) else v for k, v in scope.items()}
        told["headers"] = [[n.decode("latin-1"), v.decode()] for n, v in scope["headers"]]
        told["body"] = message["body"].decode("latin-1")
        await answer(send, json.dumps(told).encode())
"""


def test_a_request_becomes_a_scope(serve: Serve) -> None:
    worker = serve(PLAIN)
    headers = {"Host": "example.org", "X-Text": "grün", "Transfer-Encoding": "chunked"}
    told = json.loads(worker.ask("https://example.org/a%20b?x=%20", "POST", headers, b"\xff")[2])
    assert told == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": "/a b",
        "raw_path": "/a%20b",
        "query_string": "x=%20",
        "root_path": "",
        "headers": [["host", "example.org"], ["x-text", "grün"]],
        "client": ["192.0.2.1", 4711],
        "server": ["example.org", 443],
        "state": {"started": True},
        "body": "\xff",
    }


def test_the_lifespan_is_that_of_the_process(serve: Serve) -> None:
    worker = serve(PLAIN)
    assert worker.line_of_stdout() == b"started\n"
    worker.ask()
    worker.process.stdin.close()
    assert worker.line_of_stdout() == b"stopped\n"
    assert worker.process.wait(20) == 0


def test_sigterm_ends_the_lifespan_too(serve: Serve) -> None:
    worker = serve(PLAIN)
    worker.ask()
    worker.process.terminate()
    assert [worker.line_of_stdout(), worker.line_of_stdout()] == [b"started\n", b"stopped\n"]
    assert worker.process.wait(20) == 0


def test_a_startup_that_fails_ends_the_process_before_it_is_ready(serve: Serve) -> None:
    worker = serve(
        """
        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no database"})
        """,
        ALL,
    )
    status, errors = worker.leave()
    assert status == 1
    assert errors == "poolparty.asgi: the application's startup failed: no database\n"
    assert worker.says_nothing_more()


def test_an_application_without_a_lifespan_serves(serve: Serve) -> None:
    worker = serve(
        """
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body"})
        """
    )
    assert worker.ask() == (204, {}, b"")
    assert worker.leave() == (0, "")


def test_pieces_are_sent_whole_and_what_follows_the_answer_is_done(serve: Serve) -> None:
    worker = serve(PLAIN)
    assert worker.ask("http://h/pieces") == (200, {}, b"one\ntwo\n")
    assert [worker.line_of_stdout(), worker.line_of_stdout()] == [b"started\n", b"after the answer\n"]


def test_pieces_are_sent_one_by_one_where_streams_are_offered(serve: Serve, frame_of: Any) -> None:
    worker = serve(PLAIN, ALL)
    assert worker.ready() == ["health-reply", "stream"]
    for _ in range(2):
        worker.send(frame_of("http://h/pieces"))
        assert [worker.frame()[0] for _ in range(4)] == [3, 4, 4, 5]
    assert worker.ask("http://h/")[0] == 200


ENDLESS = """
import asyncio

async def generate(more):
    try:
        while True:
            yield more
    finally:
        await asyncio.sleep(0)
        print("closed")

async def app(scope, receive, send):
    if scope["type"] == "lifespan" or scope["path"] == "/":
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 204})
        return await send({"type": "http.response.body"})
    await send({"type": "http.response.start", "status": 200})
    more = {"type": "http.response.body", "body": b"more", "more_body": True}
    if scope["path"] == "/generates":
        async for piece in generate(more):
            await send(piece)
    try:
        if scope["path"] == "/hears":
            await receive()
            gone = asyncio.create_task(receive())
            while not gone.done():
                await send(more)
                await asyncio.wait({gone}, timeout=0.01)
            print("heard", gone.result()["type"])
        elif scope["path"] == "/sends":
            while True:
                await send(more)
        else:
            await send(more)
            await send(more)
            while True:
                try:
                    await send(more)
                except OSError:
                    await asyncio.sleep(60)
    except BaseException as error:
        print("raised", repr(error))
        raise
"""


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        ("/hears", b"heard http.disconnect\n"),
        ("/generates", b"closed\n"),
        ("/sends", b"raised OSError('the client has left')\n"),
        ("/does-not-care", b"raised CancelledError()\n"),
    ],
)
def test_an_application_hears_that_its_client_has_left(
    serve: Serve, frame_of: Any, path: str, printed: bytes
) -> None:
    worker = serve(ENDLESS, {"POOLPARTY_FEATURES": "ready,stream,stream-cancel"})
    assert worker.ready() == ["stream", "stream-cancel"]
    for _ in range(2):
        worker.send(frame_of(f"http://h{path}"))
        assert worker.pieces(2) == [b"more"] * 2
        worker.cancel_stream()
        assert worker.line_of_stdout() == printed
        assert worker.ask("http://h/")[0] == 204
    assert worker.leave() == (0, "")


def test_repeated_headers(serve: Serve) -> None:
    answer = serve(PLAIN).ask("http://h/repeated")
    assert answer == (200, {"set-cookie": ["a=1", "b=2"], "x": ["grün"]}, b"")


@pytest.mark.parametrize("path", ["/fail", "/half"])
def test_an_application_that_does_not_answer_is_answered_500(serve: Serve, path: str) -> None:
    worker = serve(PLAIN)
    assert worker.ask(f"http://h{path}") == FAILURE
    assert worker.ask("http://h/")[0] == 200
    assert ("this one fails" if path == "/fail" else "before its answer was complete") in worker.leave()[1]


def test_an_answer_is_kept_though_the_application_fails_behind_it(serve: Serve) -> None:
    worker = serve(PLAIN)
    assert worker.ask("http://h/fail-late") == (200, {}, b"answered")
    assert "failed after its answer" in worker.leave()[1]


def test_who_waits_for_the_client_to_leave_hears_it_after_the_answer(serve: Serve) -> None:
    worker = serve(PLAIN)
    assert worker.ask("http://h/disconnect")[2] == b"x"
    assert [worker.line_of_stdout(), worker.line_of_stdout()] == [b"started\n", b"False http.disconnect\n"]


def test_a_websocket_is_refused(serve: Serve) -> None:
    worker = serve(PLAIN)
    assert worker.ask(headers={"Upgrade": "websocket", "Connection": "Upgrade"})[0] == 501


STARLETTE = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

@asynccontextmanager
async def lifespan(app):
    yield {"pool": "database"}

async def hello(request):
    task = BackgroundTask(print, "in the background")
    return PlainTextResponse(f"hello {request.path_params['name']}, {request.state.pool}\\n", background=task)

async def upload(request):
    return JSONResponse({"size": len(await request.body()), "url": str(request.url)})

async def stream(request):
    async def pieces():
        for number in range(3):
            yield f"{number}\\n"
    return StreamingResponse(pieces())

def blocking(request):
    return PlainTextResponse("from a thread")

async def fail(request):
    raise RuntimeError("this page always fails")

routes = [
    Route("/hello/{name}", hello), Route("/upload", upload, methods=["POST"]), Route("/stream", stream),
    Route("/blocking", blocking), Route("/fail", fail),
]
app = Starlette(routes=routes, lifespan=lifespan)
"""


@pytest.mark.parametrize("features", [{}, ALL])
def test_starlette(serve: Serve, needs: Callable[..., None], frame_of: Any, features: dict[str, str]) -> None:
    needs("starlette", sys.executable, "-c", "import starlette")
    worker = serve(STARLETTE, features)
    if features:
        worker.ready()
    host = {"Host": "h"}
    assert worker.ask("http://h/hello/gr%C3%BCn", headers=host)[2].decode() == "hello grün, database\n"
    assert worker.line_of_stdout() == b"in the background\n"
    body = worker.ask("http://h/upload?x", "POST", host, bytes(300_000))[2]
    assert json.loads(body) == {"size": 300_000, "url": "http://h/upload?x"}
    assert worker.ask("http://h/blocking", headers=host)[2] == b"from a thread"
    if features:
        worker.send(frame_of("http://h/stream", headers=host))
        assert [worker.frame()[0] for _ in range(5)] == [3, 4, 4, 4, 5]
    else:
        assert worker.ask("http://h/stream", headers=host)[2] == b"0\n1\n2\n"
    assert worker.ask("http://h/fail", headers=host)[0] == 500
    assert worker.ask("http://h/nowhere", headers=host)[0] == 404
    status, errors = worker.leave()
    assert status == 0 and "this page always fails" in errors
