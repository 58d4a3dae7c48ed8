"""What is special in the library for R: a package that needs no installation, and plumber's annotations."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolparty.arbiter.environment import child_environment

pytestmark = pytest.mark.only("R")

FAILURE = (500, {"Content-Type": ["text/plain; charset=utf-8"]}, b"internal server error\n")


@pytest.fixture
def serve(language: Any, start_program: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """serve(source, environment={}): a worker that runs the source."""

    def serve(source: str, environment: dict[str, str] | None = None) -> Any:
        program = tmp_path / "app.R"
        program.write_text(textwrap.dedent(source))
        return start_program(program, environment)

    return serve


def run(interpreter: str, expression: str) -> str:
    command = [interpreter, "-e", expression]
    environment = child_environment(os.environ, command)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_package_is_found_and_has_its_version(interpreter: str) -> None:
    import poolparty

    said = run(interpreter, 'library(poolparty); cat(format(packageVersion("poolparty")), exists("serve"))')
    assert said == f"{poolparty.__version__} TRUE"


def test_what_makes_the_folder_a_package_agrees_with_its_description(interpreter: str, sdk: Path) -> None:
    same = 'identical(readRDS("{0}/Meta/package.rds")$DESCRIPTION, read.dcf("{0}/DESCRIPTION")[1, ])'
    assert run(interpreter, f"cat({same.format(sdk / 'r' / 'poolparty')})") == "TRUE"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ('c("one", "two")', b"one\ntwo"),
        ('paste0("gr\\u00fc", "n")', "grün".encode()),
        ('iconv("gr\\u00fcn", "UTF-8", "latin1")', "grün".encode()),
        ('list(body = c("one", "two"))', b"one\ntwo"),
        ("list(body = NULL)", b""),
        ("list()", b""),
    ],
)
def test_texts_as_answers(serve: Any, answer: str, body: bytes) -> None:
    assert serve(f"poolparty::serve(function(request) {answer})").ask()[2] == body


def test_numbers_and_vectors_as_header_values(serve: Any) -> None:
    worker = serve("""
        poolparty::serve(function(request) {
          list(headers = list(A = 1e15, B = 0.5, C = c("x", "y"), D = 1:2, C = "z"))
        })
    """)
    assert worker.ask()[1] == {"A": ["1000000000000000"], "B": ["0.5"], "C": ["x", "y", "z"], "D": ["1", "2"]}


def test_headers_that_change_are_not_remembered(serve: Any) -> None:
    worker = serve("poolparty::serve(function(request) list(headers = c(Uri = request$uri, Fixed = 'a')))")
    for n in [*range(300), *range(300)]:
        assert worker.ask(f"http://h/{n}")[1] == {"Uri": [f"http://h/{n}"], "Fixed": ["a"]}


def test_the_calls_that_led_to_an_error_are_logged(serve: Any) -> None:
    worker = serve("""
        inner <- function(x) stop("this one")
        outer <- function(x) inner(x + 1)
        poolparty::serve(function(request) outer(1))
    """)
    assert worker.ask() == FAILURE
    lines = worker.leave()[1].splitlines()
    assert lines[0] == 'poolparty: GET "http://example.org/" failed'
    assert lines[1] == "Error in inner(x + 1): this one"
    assert "  outer(1)" in lines
    assert not [line for line in lines if "tryCatch" in line or "payload" in line]


def test_a_warning_is_logged_at_once(serve: Any) -> None:
    worker = serve('poolparty::serve(function(request) { warning("look here"); "fine" })')
    assert worker.ask()[2] == b"fine"
    assert "look here" in worker.leave()[1]


ENDPOINTS = """
    #* @get /echo/<word>/<number:int>
    function(word, number, more = "none", ...) {
      list(word = word, number = number + 1L, more = more, rest = names(list(...)))
    }

    #* @post /fields
    function(req, numbers, name = "nobody") {
      list(sum = sum(numbers), name = name, body = req$postBody, method = req$REQUEST_METHOD)
    }

    #* @get /frame
    #* @serializer unboxedJSON
    function() {
      frame <- data.frame(n = 1:2, text = c("a\\"", NA))
      list(frame = frame, yes = TRUE, none = NULL, half = 0.5, empty = list())
    }

    #* @get /html
    #* @serializer html
    function() "<p>"

    #* @get /bytes
    #* @serializer contentType list(type = "image/png")
    function() as.raw(0:255)

    #* @get /own
    function(res) {
      res$body <- "all of it"
      res$status <- 418L
      res
    }

    not_a_route <- function() 1
"""


@pytest.fixture(params=["", "jsonlite"])
def plumbed(serve: Any, request: pytest.FixtureRequest, interpreter: str, needs: Any, tmp_path: Path) -> Any:
    """A worker with these endpoints, where jsonlite is not found and where it is."""
    (tmp_path / "plumber.R").write_text(textwrap.dedent(ENDPOINTS))
    if request.param:
        needs("jsonlite", interpreter, "-e", "library(jsonlite)")
    hidden = {} if request.param else {"R_LIBS_SITE": "/nonexistent", "R_LIBS_USER": "/nonexistent"}
    return serve(f"poolparty::serve(poolparty::plumb('{tmp_path}/plumber.R'))", hidden)


def answer_of(worker: Any, *request: Any) -> Any:
    status, headers, body = worker.ask(*request)
    assert (status, headers) == (200, {"Content-Type": ["application/json"]}), body
    return json.loads(body)


def test_arguments_come_from_path_and_query(plumbed: Any) -> None:
    assert answer_of(plumbed, "http://h/echo/gr%C3%BCn/41?more=a+b%26&x=1&y=2") == {
        "word": ["grün"],
        "number": [42],
        "more": ["a b&"],
        "rest": ["req", "res", "x", "y"],
    }


def test_arguments_come_from_the_body(plumbed: Any) -> None:
    body = b'{"numbers": [1, 2.5, -3e1], "name": "\\u00fc\\n\\"", "nested": {"a": [], "b": null}}'
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer = answer_of(plumbed, "http://h/fields", "POST", headers, body)
    assert answer == {"sum": [-26.5], "name": ['ü\n"'], "body": [body.decode()], "method": ["POST"]}
    assert plumbed.ask("http://h/fields", "POST", headers, b'{"numbers": [1, }')[0] == 500


def test_values_as_json(plumbed: Any) -> None:
    answer = answer_of(plumbed, "http://h/frame")
    assert answer["frame"] == [{"n": 1, "text": 'a"'}, {"n": 2}]
    assert (answer["yes"], answer["half"], answer["empty"]) == (True, 0.5, [])


def test_other_serializers_and_the_response_itself(plumbed: Any) -> None:
    assert plumbed.ask("http://h/html") == (200, {"Content-Type": ["text/html; charset=utf-8"]}, b"<p>")
    assert plumbed.ask("http://h/bytes") == (200, {"Content-Type": ["image/png"]}, bytes(range(256)))
    assert plumbed.ask("http://h/own") == (418, {}, b"all of it")


def test_routes_that_are_not_there(plumbed: Any) -> None:
    assert plumbed.ask("http://h/nowhere")[0] == 404
    assert plumbed.ask("http://h/echo/a/b/c")[0] == 404
    status, headers, _ = plumbed.ask("http://h/html", "PUT")
    assert (status, headers["Allow"]) == (405, ["GET"])
    assert plumbed.ask("http://h/html", "HEAD")[0] == 200


def test_the_example(serve: Any, checkout: Path) -> None:
    worker = serve(f"poolparty::serve(poolparty::plumb('{checkout}/examples/plumber/plumber.R'))")
    assert worker.ask("http://h/")[2] == b"Hello from R!\n"
    assert answer_of(worker, "http://h/sum?a=1&b=2.5") == {"sum": [3.5]}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert answer_of(worker, "http://h/sum", "POST", form, b"a=1&b=2") == {"sum": [3]}
    assert worker.ask("http://h/cars/6")[2].startswith(b'"mpg","hp"\n21,110\n')
    headers = {**form, "User-Agent": "test"}
    status, answer, body = worker.ask("http://h/users", "POST", headers, b"name=Ada%20L")
    assert (status, answer["Location"], answer["Set-Cookie"]) == (
        201,
        ["/users/Ada L"],
        ["last=Ada%20L; Path=/"],
    )
    assert json.loads(body) == {"name": ["Ada L"], "agent": ["test"]}
    assert worker.ask("http://h/error") == FAILURE
