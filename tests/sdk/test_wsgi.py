"""WSGI applications under `python -m poolparty.wsgi`, in a child of their own."""

from __future__ import annotations

import os
import subprocess
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
    """serve(source, environment={}, name="app.py:app"): a worker that serves the source's application."""

    def serve(source: str, environment: dict[str, str] | None = None, name: str = "app.py:app") -> Any:
        (tmp_path / "app.py").write_text(textwrap.dedent(source))
        where, colon, attribute = name.partition(":")
        if where.endswith(".py"):
            where = str(tmp_path / where)
        path = os.pathsep.join((str(tmp_path), str(sdk / "python")))
        return start_worker(
            [sys.executable, "-m", "poolparty.wsgi", where + colon + attribute],
            {"PYTHONPATH": path, **(environment or {})},
        )

    return serve


ENVIRON = """
import json
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    told = {name: value for name, value in environ.items() if isinstance(value, (str, bool))}
    told["body"] = body.decode("latin-1")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(told).encode()]
"""


def environ(worker: Any, *request: Any, **more: Any) -> dict[str, Any]:
    import json

    told: dict[str, Any] = json.loads(worker.ask(*request, **more)[2])
    return told


def test_a_request_becomes_an_environ(serve: Serve) -> None:
    told = environ(
        serve(ENVIRON),
        "https://example.org:8443/a%20b/gr%C3%BCn?x=%20&y",
        "POST",
        {"Host": "example.org:8443", "Content-Type": "text/a", "X-Two-Words": "1, 2", "X-Text": "grün"},
        b"\x00\xff",
    )
    expected = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b/gr\xc3\xbcn",
        "QUERY_STRING": "x=%20&y",
        "REQUEST_URI": "/a%20b/gr%C3%BCn?x=%20&y",
        "CONTENT_TYPE": "text/a",
        "CONTENT_LENGTH": "2",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "8443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "4711",
        "HTTP_HOST": "example.org:8443",
        "HTTP_X_TWO_WORDS": "1, 2",
        "HTTP_X_TEXT": "gr\xc3\xbcn",
        "wsgi.url_scheme": "https",
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "body": "\x00\xff",
    }
    assert {name: told.get(name) for name in expected} == expected
    assert "HTTP_CONTENT_TYPE" not in told


@pytest.mark.parametrize(
    ("uri", "name", "port"),
    [
        ("http://example.org/", "example.org", "80"),
        ("https://example.org/", "example.org", "443"),
        ("http://[::1]/", "[::1]", "80"),
        ("http://[::1]:8080/", "[::1]", "8080"),
        ("http://example.org?x", "example.org", "80"),
    ],
)
def test_the_server_is_the_one_of_the_uri(serve: Serve, uri: str, name: str, port: str) -> None:
    told = environ(serve(ENVIRON), uri)
    assert (told["SERVER_NAME"], told["SERVER_PORT"]) == (name, port)


def test_a_body_that_came_in_chunks_has_a_length_and_no_coding(serve: Serve) -> None:
    told = environ(serve(ENVIRON), "http://h/", "POST", {"Transfer-Encoding": "chunked"}, b"abc")
    assert told["CONTENT_LENGTH"] == "3" and "HTTP_TRANSFER_ENCODING" not in told


def test_a_script_name_is_taken_off_the_path(serve: Serve) -> None:
    worker = serve(ENVIRON, {"SCRIPT_NAME": "/shop"})
    for uri, script_name, path_info in (
        ("http://h/shop/a", "/shop", "/a"),
        ("http://h/shop", "/shop", ""),
        ("http://h/shopping", "", "/shopping"),
    ):
        told = environ(worker, uri)
        assert (told["SCRIPT_NAME"], told["PATH_INFO"]) == (script_name, path_info)


def test_what_an_application_does_to_an_environ_is_forgotten(serve: Serve) -> None:
    worker = serve("""
        import json
        def app(environ, start_response):
            told = [environ["PATH_INFO"], environ.get("HTTP_X"), environ["wsgi.url_scheme"], environ.get("y")]
            environ.update({"PATH_INFO": "/mine", "wsgi.url_scheme": "mine", "y": "mine"})
            environ.pop("HTTP_X", None)
            start_response("200 OK", [])
            return [json.dumps(told).encode()]
    """)
    for _ in range(3):
        assert worker.ask("http://h/path", headers={"X": "1"})[2] == b'["/path", "1", "http", null]'
    for number in range(600):  # more than are kept
        assert worker.ask(f"http://h/{number}")[2] == f'["/{number}", null, "http", null]'.encode()


ANSWERS = """
import subprocess
import sys
from wsgiref.validate import validator

class Pieces:
    def __init__(self, pieces):
        self.pieces = iter(pieces)
    def __iter__(self):
        return self
    def __next__(self):
        return next(self.pieces)
    def close(self):
        print("closed", file=sys.stderr, flush=True)

def inner(environ, start_response):
    text = [("Content-Type", "text/plain")]
    path = environ["PATH_INFO"]
    if path == "/late":
        def pieces():
            start_response("202 Accepted", text)
            yield b"late"
        return pieces()
    if path == "/write":
        write = start_response("200 OK", text)
        write(b"one ")
        write(b"two ")
        return [b"three"]
    if path == "/repeated":
        cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
        start_response("200 OK", text + cookies + [("X-Text", "gr\\xc3\\xbcn")])
        return [b"x"]
    if path == "/pieces":
        start_response("200 OK", text)
        return Pieces([b"one\\n", b"", b"two\\n"])
    if path == "/fail-late":
        def pieces():
            yield b"one"
            raise RuntimeError("this one fails")
        start_response("200 OK", text)
        return pieces()
    if path == "/replace":
        try:
            start_response("200 OK", text)
            raise RuntimeError("no")
        except RuntimeError:
            start_response("503 Service Unavailable", text, sys.exc_info())
        return [b"replaced"]
    if path == "/file":
        start_response("200 OK", text)
        return environ["wsgi.file_wrapper"](open(__file__, "rb"), 100)
    if path == "/twice":
        start_response("200 OK", text)
        start_response("200 OK", text)
    if path == "/never":
        return [b"x"]
    if path == "/errors":
        environ["wsgi.errors"].write("to the log\\n")
    if path == "/echo":
        start_response("200 OK", text)
        stream = environ["wsgi.input"]
        first = stream.readline()
        return [first + b"|" + b"".join(stream)]
    start_response("204 No Content", [])
    return []

app = validator(inner)
plain = inner
"""


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/late", (202, {"Content-Type": ["text/plain"]}, b"late")),
        ("/write", (200, {"Content-Type": ["text/plain"]}, b"one two three")),
        ("/pieces", (200, {"Content-Type": ["text/plain"]}, b"one\ntwo\n")),
        ("/replace", (503, {"Content-Type": ["text/plain"]}, b"replaced")),
        ("/", (204, {}, b"")),
        ("/errors", (204, {}, b"")),
        (
            "/repeated",
            (200, {"Content-Type": ["text/plain"], "Set-Cookie": ["a=1", "b=2"], "X-Text": ["grün"]}, b"x"),
        ),
    ],
)
@pytest.mark.parametrize("name", ["app", "plain"])
def test_what_an_application_may_answer(serve: Serve, name: str, path: str, answer: Any) -> None:
    worker = serve(ANSWERS, name=f"app.py:{name}")
    assert worker.ask(f"http://h{path}") == answer
    assert worker.ask("http://h/") == (204, {}, b"")
    status, errors = worker.leave()
    assert status == 0
    assert "Error" not in errors, errors
    if path == "/pieces":
        assert errors.count("closed") == 1
    if path == "/errors":
        assert errors == "to the log\n"


def test_input_is_read_as_the_specification_has_it(serve: Serve) -> None:
    worker = serve(ANSWERS)
    answer = worker.ask("http://h/echo", "POST", {"Content-Length": "8"}, b"one\ntwo\n")
    assert answer[2] == b"one\n|two\n"


def test_a_file_is_sent_whole(serve: Serve, tmp_path: Path) -> None:
    assert serve(ANSWERS).ask("http://h/file")[2] == (tmp_path / "app.py").read_bytes()


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/twice", "start_response() was called a second time"),
        ("/never", "has not called start_response()"),
        ("/fail-late", "this one fails"),
    ],
)
def test_an_application_that_breaks_the_rules_is_answered_500(
    serve: Serve, path: str, complaint: str
) -> None:
    worker = serve(ANSWERS, name="app.py:plain")
    assert worker.ask(f"http://h{path}") == FAILURE
    assert worker.ask("http://h/")[0] == 204
    assert complaint in worker.leave()[1]


def test_pieces_are_sent_one_by_one_where_streams_are_offered(serve: Serve) -> None:
    worker = serve(ANSWERS, ALL)
    assert worker.ready() == ["health-reply", "stream"]
    worker.send(request("http://h/pieces"))
    assert [worker.frame()[0] for _ in range(4)] == [3, 4, 4, 5]
    assert worker.ask("http://h/") == (204, {}, b"")
    assert worker.leave()[1].count("closed") == 1


def test_an_iterable_is_closed_when_its_client_has_left(serve: Serve) -> None:
    source = """
        def more():
            try:
                while True:
                    yield b"more"
            finally:
                print("closed")
        def app(environ, start_response):
            start_response("200 OK", [])
            return more() if environ["PATH_INFO"] == "/more" else []
    """
    worker = serve(source, {"POOLPARTY_FEATURES": "ready,stream,stream-cancel"})
    assert worker.ready() == ["stream", "stream-cancel"]
    for _ in range(2):
        worker.send(request("http://h/more"))
        assert worker.pieces(2) == [b"more"] * 2
        worker.cancel_stream()
        assert worker.line_of_stdout() == b"closed\n"
        assert worker.ask("http://h/")[0] == 200
    assert worker.leave() == (0, "")


WHOLE = """
class Answer:
    def __init__(self, pieces):
        self.pieces = pieces
    def __iter__(self):
        return iter(self.pieces)
    def close(self):
        print("closed", file=sys.stderr, flush=True)

import sys
def app(environ, start_response):
    path = environ["PATH_INFO"]
    pieces = [b"one ", b"two"]
    start_response("200 OK", [("Content-Length", "7")] if "length" in path else [])
    if path == "/length/short":
        return (piece for piece in pieces)
    if path.startswith("/length"):
        return (piece for piece in [b"".join(pieces)])
    return {"/list": pieces, "/tuple": tuple(pieces), "/answer": Answer(pieces), "/none": Answer([])}[path]
"""


@pytest.mark.parametrize(
    ("path", "tags"),
    [
        ("/list", [0]),
        ("/tuple", [0]),
        ("/answer", [0]),  # Django's
        ("/none", [0]),
        ("/length", [0]),  # Flask's
        ("/length/short", [3, 4, 4, 5]),
    ],
)
def test_an_answer_that_is_all_there_is_sent_as_one(serve: Serve, path: str, tags: list[int]) -> None:
    worker = serve(WHOLE, ALL)
    worker.ready()
    for _ in range(2):
        worker.send(request(f"http://h{path}"))
        sent = b""
        for tag in tags:
            found, payload = worker.frame()
            assert found == tag
            sent += payload.data[payload.at :]
        if path != "/none" and tags == [0]:
            assert sent.endswith(b"one two")
    assert worker.leave()[1].count("closed") == (2 if path in ("/answer", "/none") else 0)


def test_no_client_waits_for_what_an_application_does_behind_its_answers(
    serve: Serve, tmp_path: Path
) -> None:
    """But for the first time: then it is not known yet."""
    os.mkfifo(tmp_path / "go")
    worker = serve(
        f"""
        import time
        class Answer(list):
            def close(self):
                time.sleep(0.01)
                open({str(tmp_path / "go")!r}).read()
        def app(environ, start_response):
            start_response("200 OK", [])
            return Answer([b"here"])
        """,
        ALL,
    )
    worker.ready()
    worker.send(request("http://h/"))
    (tmp_path / "go").write_text("go")
    assert worker.response() == (200, {}, b"here")
    worker.send(request("http://h/"))
    assert [worker.frame()[0] for _ in range(2)] == [3, 4]
    (tmp_path / "go").write_text("go")
    assert worker.frame()[0] == 5


def request(uri: str) -> bytes:
    from poolparty.wire.frames import HTTPRequest, encode_request

    return encode_request(HTTPRequest(b"192.0.2.1:4711", uri.encode(), b"GET", [], b""))


@pytest.mark.parametrize("name", ["app.py", "app.py:app", "app", "app:app", "app:make()", "app:inside.app"])
def test_an_application_is_named_in_many_ways(serve: Serve, name: str) -> None:
    worker = serve(
        """
        import types
        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"here"]
        def make():
            return app
        inside = types.SimpleNamespace(app=app)
        """,
        name=name,
    )
    assert worker.ask()[2] == b"here"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere.py:app", "poolparty.wsgi: there is no file "),
        ("nowhere:app", "poolparty.wsgi: there is no module 'nowhere': no nowhere.py in "),
        ("app:application", "has no 'application'; it has other"),
        ("app:number", "app:number is 7, which cannot be called"),
        ("app:later", "is an ASGI application; serve it with: python -m poolparty.asgi app:later"),
        ("app:Later()", "is an ASGI application; serve it with"),
        ("", "is no module's name"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_sentence(serve: Serve, name: str, complaint: str) -> None:
    source = """
        number = 7
        def other(): pass
        async def later(scope, receive, send): pass
        class Later:
            async def __call__(self, scope, receive, send): pass
    """
    status, errors = serve(source, name=name).leave()
    assert status == 1
    assert complaint in errors
    assert "Traceback" not in errors


def test_an_error_in_the_application_itself_is_told_with_its_trace(serve: Serve) -> None:
    status, errors = serve("import no_such_module_at_all").leave()
    assert status == 1
    assert "app.py" in errors and "No module named 'no_such_module_at_all'" in errors


def test_the_module_is_found_in_the_whole_package_too(
    start_worker: Callable[..., Any], checkout: Path, tmp_path: Path
) -> None:
    """Where the package comes before the library on the path: started in a checkout, say."""
    (tmp_path / "app.py").write_text(textwrap.dedent(ENVIRON))
    path = os.pathsep.join((str(checkout), str(tmp_path)))
    worker = start_worker([sys.executable, "-m", "poolparty.wsgi", "app:app"], {"PYTHONPATH": path})
    assert worker.ask("http://h/x")[0] == 200


# ---- Frameworks, as people use them.


FLASK = """
from flask import Flask, Response, request, session, stream_with_context
app = Flask(__name__)
app.secret_key = "x"

@app.get("/hello/<name>")
def hello(name):
    session["name"] = name
    return f"hello {name}, {request.url}, {request.remote_addr}\\n"

@app.post("/upload")
def upload():
    return {"field": request.form["field"], "size": len(request.files["file"].read())}

@app.get("/stream")
def stream():
    return Response(stream_with_context(f"{number} {request.path}\\n" for number in range(3)))

@app.get("/fail")
def fail():
    raise RuntimeError("this page always fails")
"""

FORM = (
    b'--B\r\nContent-Disposition: form-data; name="field"\r\n\r\ngr\xc3\xbcn\r\n'
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    + bytes(100_000)
    + b"\r\n--B--\r\n"
)
MULTIPART = {"Host": "h", "Content-Type": "multipart/form-data; boundary=B", "Content-Length": str(len(FORM))}


def test_flask(serve: Serve, needs: Callable[..., None]) -> None:
    needs("flask", sys.executable, "-c", "import flask")
    worker = serve(FLASK)
    status, headers, body = worker.ask("http://h/hello/gr%C3%BCn?a=b", headers={"Host": "h"})
    assert status == 200
    assert body.decode() == "hello grün, http://h/hello/grün?a=b, 192.0.2.1\n"
    assert headers["Set-Cookie"][0].startswith("session=")
    status, _, body = worker.ask("http://h/upload", "POST", MULTIPART, FORM)
    assert (status, body) == (200, b'{"field":"gr\\u00fcn","size":100000}\n')
    assert worker.ask("http://h/stream", headers={"Host": "h"})[2] == b"0 /stream\n1 /stream\n2 /stream\n"
    assert worker.ask("http://h/fail", headers={"Host": "h"})[0] == 500
    assert worker.ask("http://h/nowhere", headers={"Host": "h"})[0] == 404
    status, errors = worker.leave()
    assert status == 0 and "this page always fails" in errors


DJANGO = """
from django.conf import settings
settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", DEBUG=False,
    FILE_UPLOAD_MAX_MEMORY_SIZE=1000,
)
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

def hello(request, name):
    response = HttpResponse(f"hello {name}, {request.build_absolute_uri()}\\n")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response

@csrf_exempt
def upload(request):
    return JsonResponse({"field": request.POST["field"], "size": request.FILES["file"].size})

def stream(request):
    return StreamingHttpResponse(f"{number}\\n" for number in range(3))

urlpatterns = [path("hello/<name>", hello), path("upload", upload), path("stream", stream)]
app = get_wsgi_application()
"""


def test_django(serve: Serve, needs: Callable[..., None]) -> None:
    needs("django", sys.executable, "-c", "import django")
    worker = serve(DJANGO, name="app:app")
    status, headers, body = worker.ask("http://h/hello/gr%C3%BCn?a=b", headers={"Host": "h"})
    assert (status, body.decode()) == (200, "hello grün, http://h/hello/gr%C3%BCn?a=b\n")
    assert [cookie.split(";")[0] for cookie in headers["Set-Cookie"]] == ["a=1", "b=2"]
    status, _, body = worker.ask("http://h/upload", "POST", MULTIPART, FORM)
    assert (status, body) == (200, b'{"field": "gr\\u00fcn", "size": 100000}')
    assert worker.ask("http://h/stream", headers={"Host": "h"})[2] == b"0\n1\n2\n"
    assert worker.ask("http://h/nowhere", headers={"Host": "h"})[0] == 404
    assert worker.leave()[0] == 0


def test_started_by_hand_it_says_how_it_is_meant(sdk: Path, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def app(environ, start_response): pass")
    done = subprocess.run(
        [sys.executable, "-m", "poolparty.wsgi", "app:app"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(sdk / "python")},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(f"poolparty -- {sys.executable} -m poolparty.wsgi app:app\n")
