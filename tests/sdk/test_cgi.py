"""CGI scripts under `python -m poolparty.cgi`, in a child of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAILURE = (500, {"Content-Type": ["text/plain; charset=utf-8"]}, b"internal server error\n")

Serve = Callable[..., Any]


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    return folder


@pytest.fixture
def serve(start_worker: Callable[..., Any], sdk: Path, scripts: Path) -> Serve:
    """serve(script, environment={}, folder=False): a worker for a shell script, or for its folder."""

    def serve(script: str, environment: dict[str, str] | None = None, folder: bool = False) -> Any:
        path = scripts / "script.cgi"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)
        return start_worker(
            [sys.executable, "-m", "poolparty.cgi", str(scripts if folder else path)],
            {"PYTHONPATH": str(sdk / "python"), **(environment or {})},
        )

    return serve


VARIABLES = 'echo "Content-Type: text/plain"; echo; env; echo "body=$(cat)"; pwd | sed s/^/cwd=/'


def told(worker: Any, *request: Any) -> dict[str, str]:
    status, _, body = worker.ask(*request)
    assert status == 200
    return dict(line.split("=", 1) for line in body.decode().splitlines())


def test_a_request_becomes_variables_and_input(serve: Serve, scripts: Path) -> None:
    variables = told(
        serve(VARIABLES),
        "https://example.org:8443/a%20b/gr%C3%BCn?x=%20",
        "POST",
        {"Content-Type": "text/a", "Content-Length": "5", "X-Text": "grün", "Proxy": "http://evil"},
        b"hello",
    )
    expected = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b/grün",
        "QUERY_STRING": "x=%20",
        "REQUEST_URI": "/a%20b/gr%C3%BCn?x=%20",
        "CONTENT_TYPE": "text/a",
        "CONTENT_LENGTH": "5",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "8443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "HTTPS": "on",
        "HTTP_X_TEXT": "grün",
        "body": "hello",
        "cwd": str(scripts),
    }
    assert {name: variables.get(name) for name in expected} == expected
    assert "HTTP_CONTENT_LENGTH" not in variables


def test_a_header_does_not_become_a_proxy_setting(serve: Serve) -> None:
    worker = serve(VARIABLES, {"HTTP_PROXY": "http://ours", "HTTP_X": "ours"})
    variables = told(worker, "http://h/", "GET", {"Proxy": "http://evil"})
    assert "HTTP_PROXY" not in variables and "HTTP_X" not in variables


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("printf 'Content-Type: a/b\\n\\nbody'", (200, {"Content-Type": ["a/b"]}, b"body")),
        ("printf 'Content-Type: a/b\\r\\n\\r\\nbody\\r\\n'", (200, {"Content-Type": ["a/b"]}, b"body\r\n")),
        ("printf 'status: 404 Not Found\\nX: y\\n\\n'", (404, {"X": ["y"]}, b"")),
        ("printf 'Location: http://h/\\n\\n'", (302, {"Location": ["http://h/"]}, b"")),
        ("printf 'Status: 303 x\\nLocation: /a\\n\\n'", (303, {"Location": ["/a"]}, b"")),
        (
            "printf 'A: 1\\nSet-Cookie: a=1\\nSet-Cookie: b=2\\nSet-Cookie: c\\n\\n'",
            (200, {"A": ["1"], "Set-Cookie": ["a=1", "b=2", "c"]}, b""),
        ),
        ("printf 'A: b\\n\\n'; head -c 300000 /dev/zero", (200, {"A": ["b"]}, bytes(300_000))),
        ("printf 'A: b\\n\\nx'; exit 3", (200, {"A": ["b"]}, b"x")),
    ],
)
def test_what_a_script_may_answer(serve: Serve, script: str, answer: Any) -> None:
    worker = serve(script)
    for _ in range(2):
        assert worker.ask("http://h/", "POST", {}, bytes(200_000)) == answer
    status, errors = worker.leave()
    assert status == 0
    assert ("exit status 3" in errors) == ("exit 3" in script)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("exit 4", "ended (exit status 4) before the empty line"),
        ("echo 'A: b'", "ended (exit status 0) before the empty line"),
        ("printf 'hello\\n\\n'", "the line 'hello' of its header is no `Name: value`"),
        ("printf 'Status: fine\\n\\n'", "'fine' is no status"),
        ("printf '\\nbody'", "its header is empty"),
        ("yes 'A: b'", "its header goes beyond"),
        ("printf 'Location: /again\\n\\n'", "more than 10 local redirects"),
    ],
)
def test_a_script_that_breaks_the_rules_is_answered_500(serve: Serve, script: str, complaint: str) -> None:
    worker = serve(script)
    assert worker.ask() == FAILURE
    assert worker.ask() == FAILURE
    assert complaint in worker.leave()[1]


def test_a_local_redirect_is_answered_by_what_it_names(serve: Serve) -> None:
    worker = serve("""
        if [ "$PATH_INFO" = /there ]; then
            printf 'A: b\\n\\n'; echo "$REQUEST_METHOD $QUERY_STRING $CONTENT_LENGTH"; cat
        else
            printf 'Location: /there?x=y\\n\\n'
        fi
    """)
    assert worker.ask("http://h/here", "POST", {"Content-Length": "4"}, b"body") == (
        200,
        {"A": ["b"]},
        b"GET x=y \n",
    )


def test_what_a_script_writes_to_stderr_is_passed_on(serve: Serve) -> None:
    worker = serve("printf 'A: b\\n\\n'; echo complaint >&2")
    worker.ask()
    assert worker.leave() == (0, "complaint\n")


def test_a_folder_serves_its_executables_and_nothing_else(serve: Serve, scripts: Path) -> None:
    worker = serve("printf 'A: b\\n\\n'; echo $SCRIPT_NAME $PATH_INFO", folder=True)
    (scripts / "plain.txt").write_text("no script")
    hidden = scripts / ".hidden"
    hidden.write_text("#!/bin/sh\nprintf 'A: b\\n\\n'")
    hidden.chmod(0o755)
    (scripts / "folder").mkdir()
    assert worker.ask("http://h/script.cgi/a/b")[2] == b"/script.cgi /a/b\n"
    assert worker.ask("http://h/script.cgi")[2] == b"/script.cgi\n"
    for path in (
        "/",
        "/nothing",
        "/plain.txt",
        "/.hidden",
        "/..",
        "/%2e%2e/scripts/script.cgi",
        "/folder",
        "/a%00",
    ):
        assert worker.ask(f"http://h{path}")[0] == 404, path


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "usage: poolparty -- python -m poolparty.cgi"),
        (["no-such-script"], "there is no file"),
        (["plain.txt"], "is not executable: chmod +x"),
    ],
)
def test_what_cannot_be_served_is_told(
    start_worker: Callable[..., Any], sdk: Path, scripts: Path, arguments: list[str], complaint: str
) -> None:
    (scripts / "plain.txt").write_text("no script")
    command = [sys.executable, "-m", "poolparty.cgi", *(str(scripts / each) for each in arguments)]
    worker = start_worker(command, {"PYTHONPATH": str(sdk / "python")})
    status, errors = worker.leave()
    assert status == 1 and complaint in errors
