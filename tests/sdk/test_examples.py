"""The example application, which is the same in every language."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = {"Content-Type": ["text/plain; charset=utf-8"]}
HTML = {"Content-Type": ["text/html; charset=utf-8"]}


@pytest.fixture
def application(language: Any, start_program: Callable[..., Any], checkout: Path) -> Any:
    return start_program(checkout / "examples" / f"app.{language.suffix}")


def test_home(application: Any, language: Any) -> None:
    assert application.ask("http://h/") == (200, TEXT, f"Hello from {language.name}!\n".encode())


def test_json(application: Any) -> None:
    headers = {"Host": "h", "X-Quoted": '"\\\t'}
    status, answer, body = application.ask("http://h/json?a=b", headers=headers)
    assert (status, answer) == (200, {"Content-Type": ["application/json"]})
    assert json.loads(body) == {"method": "GET", "path": "/json", "query": "a=b", "headers": headers}


def test_form(application: Any) -> None:
    status, headers, body = application.ask("http://h/form")
    assert (status, headers) == (200, HTML)
    assert body.startswith(b"<!doctype html>\n")
    assert body.endswith(b"</form>\n")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (b"name=Ada", "Ada"),
        (b"x=y&name=%3Cb%3E+%26%20c%22%27", "<b> & c\"'"),
        (b"name=gr%C3%BCn", "grün"),
        (b"other=1", "nobody"),
        (b"", "nobody"),
    ],
)
def test_a_posted_form_is_decoded_and_its_answer_escaped(application: Any, fields: bytes, name: str) -> None:
    status, headers, body = application.ask("http://h/form", "POST", {}, fields)
    assert (status, headers) == (200, HTML)
    assert b"<b>" not in body
    # A quotation mark's escape is the language's own.
    assert html.unescape(body.decode()) == f'<!doctype html>\n<meta charset="utf-8">\n<p>Hello, {name}!</p>\n'


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>A page</title>
<h1>Hello, NAME!</h1>
<ul>
<li>1 times 1 is 1</li>
<li>2 times 2 is 4</li>
<li>3 times 3 is 9</li>
</ul>
"""


@pytest.mark.parametrize(("query", "name"), [("", "nobody"), ("?name=%3Ci%3E+A%26B", "&lt;i&gt; A&amp;B")])
def test_a_page_made_from_a_template(application: Any, query: str, name: str) -> None:
    expected = PAGE.replace("NAME", name).encode()
    assert application.ask(f"http://h/page{query}") == (200, HTML, expected)


def test_upload(application: Any) -> None:
    for size in (300_000, 4 << 20, 0):
        body = application.ask("http://h/upload", "POST", {}, b"." * size)[2]
        assert body == f"{size} bytes\n".encode()


def test_slow(application: Any) -> None:
    assert application.ask("http://h/slow?ms=1") == (200, TEXT, b"waited 1 ms\n")


def test_error(application: Any) -> None:
    assert application.ask("http://h/error") == (500, TEXT, b"internal server error\n")
    assert "this page always fails" in application.leave()[1]


def test_no_such_page(application: Any) -> None:
    assert application.ask("http://h/nowhere") == (404, TEXT, b"not found\n")
