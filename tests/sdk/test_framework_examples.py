"""The examples of Python's frameworks and of CGI, as their first lines say to start them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOST = {"Host": "h"}
UPLOAD = (
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n\r\n'
    + bytes(100_000)
    + b"\r\n--B--\r\n"
)
MULTIPART = {**HOST, "Content-Type": "multipart/form-data; boundary=B", "Content-Length": str(len(UPLOAD))}
FORM = {**HOST, "Content-Type": "application/x-www-form-urlencoded", "Content-Length": "13"}


@pytest.fixture
def serve(start_worker: Callable[..., Any], sdk: Path, checkout: Path) -> Callable[..., Any]:
    """serve(name, adapter, application): the example of that name, in a worker."""

    def serve(name: str, adapter: str, application: str) -> Any:
        # A worker is started in the server's folder, which --chdir has set.
        path = os.pathsep.join((str(checkout / "examples" / name), str(sdk / "python")))
        return start_worker([sys.executable, "-m", adapter, application], {"PYTHONPATH": path})

    return serve


@pytest.mark.parametrize(("name", "application"), [("flask", "app:app"), ("django", "app")])
def test_wsgi(serve: Any, needs: Callable[..., None], name: str, application: str) -> None:
    needs(name, sys.executable, "-c", f"import {name}")
    worker = serve(name, "poolparty.wsgi", application)
    assert worker.ask("http://h/", headers=HOST)[2].decode() == f"Hello from {name.capitalize()}!\n"
    page = worker.ask("http://h/hello/%3Cb%3E", headers=HOST)[2]
    assert b"<h1>Hello, &lt;b&gt;!</h1>" in page
    assert worker.ask("http://h/form", "POST", FORM, b"name=gr%C3%BC")[2].decode() == "Hello, grü!\n"
    assert worker.ask("http://h/upload", "POST", MULTIPART, UPLOAD)[2] == b"f.bin: 100000 bytes\n"
    assert worker.ask("http://h/stream", headers=HOST)[2].splitlines()[2] == b"line 2 of /stream"
    assert worker.ask("http://h/error", headers=HOST)[0] == 500
    assert worker.ask("http://h/nowhere", headers=HOST)[0] == 404
    assert worker.ask("http://h/", headers=HOST)[0] == 200
    if name == "flask":
        cookie = worker.ask("http://h/count", headers=HOST)[1]["Set-Cookie"][0].split(";")[0]
        assert worker.ask("http://h/count", headers={**HOST, "Cookie": cookie})[2] == b"2\n"
    status, errors = worker.leave()
    assert status == 0 and "this page always fails" in errors


def test_starlette(serve: Any, needs: Callable[..., None]) -> None:
    needs("starlette", sys.executable, "-c", "import starlette")
    worker = serve("starlette", "poolparty.asgi", "app:app")
    assert worker.ask("http://h/", headers=HOST)[2] == b"Hello from Starlette!\n"
    assert json.loads(worker.ask("http://h/hello/gr%C3%BCn", headers=HOST)[2]) == {"hello": "grün"}
    assert worker.ask("http://h/upload", "POST", HOST, bytes(4 << 20))[2] == b"4194304 bytes\n"
    assert worker.ask("http://h/stream", headers=HOST)[2].splitlines()[2] == b"line 2 of /stream"
    assert worker.ask("http://h/error", headers=HOST)[0] == 500
    assert worker.ask("http://h/nowhere", headers=HOST)[0] == 404
    assert worker.leave()[0] == 0


def test_cgi(serve: Any, checkout: Path) -> None:
    worker = serve("cgi", "poolparty.cgi", str(checkout / "examples" / "cgi"))
    assert worker.ask("http://h/hello.cgi/Ada")[2] == b"Hello, Ada, from CGI!\n"
    answer = worker.ask("http://h/hello.cgi", "POST", {"Content-Length": "300000"}, bytes(300_000))
    assert answer == (
        200,
        {"Content-Type": ["text/plain; charset=utf-8"]},
        b"Hello, nobody, from CGI!\n300000 bytes\n",
    )
    assert worker.ask("http://h/nowhere")[0] == 404
    assert worker.leave() == (0, "")
