"""The example application, which is the same in every language."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = {"Content-Type": ["text/plain; charset=utf-8"]}


@pytest.fixture(params=["Python", "Janet"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def application(
    language: str, start_worker: Callable[..., Any], sdk: Path, checkout: Path, request: pytest.FixtureRequest
) -> Any:
    if language == "Python":
        interpreter, name, path = sys.executable, "app.py", {"PYTHONPATH": str(sdk / "python")}
    else:
        interpreter, name, path = (
            request.getfixturevalue("janet"),
            "app.janet",
            {"JANET_PATH": str(sdk / "janet")},
        )
    return start_worker([interpreter, str(checkout / "examples" / name)], path)


def test_home(application: Any, language: str) -> None:
    assert application.ask("http://h/") == (200, TEXT, f"Hello from {language}!\n".encode())


def test_json(application: Any) -> None:
    headers = {"Host": "h", "X-Quoted": '"\\\t'}
    status, answer, body = application.ask("http://h/json?a=b", headers=headers)
    assert (status, answer) == (200, {"Content-Type": ["application/json"]})
    assert json.loads(body) == {"method": "GET", "path": "/json", "query": "a=b", "headers": headers}


def test_json_is_the_same_in_every_language(application: Any) -> None:
    body = application.ask("http://h/json?a=b", headers={"Host": "h", "Accept": "*/*"})[2]
    expected = (
        '{"headers": {"Accept": "*/*", "Host": "h"}, "method": "GET", "path": "/json", "query": "a=b"}\n'
    )
    assert body.decode() == expected


def test_form(application: Any) -> None:
    status, headers, body = application.ask("http://h/form")
    assert (status, headers) == (200, {"Content-Type": ["text/html; charset=utf-8"]})
    assert body.startswith(b"<!doctype html>\n")
    assert body.endswith(b"</form>\n")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (b"name=Ada", b"Ada"),
        (b"x=y&name=%3Cb%3E+%26%20c%22%27", b"&lt;b&gt; &amp; c&quot;&#x27;"),
        (b"name=gr%C3%BCn&name=second", "grün".encode()),
        (b"other=1", b"nobody"),
    ],
)
def test_a_posted_form_is_decoded_and_its_answer_escaped(
    application: Any, fields: bytes, name: bytes
) -> None:
    body = application.ask("http://h/form", "POST", {}, fields)[2]
    assert body == b'<!doctype html>\n<meta charset="utf-8">\n<p>Hello, ' + name + b"!</p>\n"


def test_upload(application: Any) -> None:
    assert application.ask("http://h/upload", "POST", {}, b"." * 300_000)[2] == b"300000 bytes\n"


def test_slow(application: Any) -> None:
    assert application.ask("http://h/slow?ms=1") == (200, TEXT, b"waited 1 ms\n")


def test_error(application: Any) -> None:
    assert application.ask("http://h/error") == (500, TEXT, b"internal server error\n")
    assert "this page always fails" in application.leave()[1]


def test_no_such_page(application: Any) -> None:
    assert application.ask("http://h/nowhere") == (404, TEXT, b"not found\n")
