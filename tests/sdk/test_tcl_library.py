"""What is special in the library for Tcl: everything is a string, and bytes are characters below 256."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.only("Tcl")

TEXT = {"Content-Type": ["text/plain; charset=utf-8"]}
FAILURE = (500, TEXT, b"internal server error\n")


@pytest.fixture
def serve(language: Any, start_program: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """serve(source, environment={}): a worker that runs the source, in which the package is required."""

    def serve(source: str, environment: dict[str, str] | None = None) -> Any:
        program = tmp_path / "app.tcl"
        program.write_text("package require poolparty\n" + textwrap.dedent(source))
        return start_program(program, environment)

    return serve


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("{}", (200, {}, b"")),
        ("[dict create text gr\\u00fcn]", (200, TEXT, "grün".encode())),
        ("[dict create text \\u20ac headers {content-type text/html}]",
         (200, {"content-type": ["text/html"]}, "€".encode())),
        ("[dict create text a headers {X-A b}]", (200, {"X-A": ["b"], **TEXT}, b"a")),
        ("[dict create body \\u00ff\\u0000]", (200, {}, b"\xff\x00")),
        ("[dict create status 404 headers {A 1 B 2 A 3}]", (404, {"A": ["1", "3"], "B": ["2"]}, b"")),
        ("[dict create headers {A {}}]", (200, {"A": [""]}, b"")),
        ("[dict create stream {apply {emit {{*}$emit a; {*}$emit {}; {*}$emit b}}}]", (200, {}, b"ab")),
    ],
)  # fmt: skip
def test_what_a_handler_may_return(serve: Any, answer: str, expected: Any) -> None:
    worker = serve(f"poolparty::serve {{apply {{request {{return {answer}}}}}}}")
    assert worker.ask() == expected
    assert worker.ask() == expected


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("text", 'a handler returns a dict with any of status, headers, text, body and stream, not "text"'),
        ('"text \\{"', "a handler returns a dict"),
        ("[dict create txet a]", 'a response has status, headers, text, body or stream, not "txet"'),
        ("[dict create status 0x]", 'a response\'s status is an integer from 200 to 599, not "0x"'),
        ("[dict create headers {A}]", "a response's headers are a list of names and values in turn"),
        ("[dict create body \\u20ac]", "a response's body is bytes"),
        ("[dict create stream {apply {emit {{*}$emit \\u20ac}}}]", "a response's body is bytes"),
        ("[open /nonexistent]", "no such file or directory"),
        ("[throw {POSIX EPIPE} {not the server}]", "not the server"),
    ],
)
def test_what_is_wrong_is_said(serve: Any, answer: str, complaint: str) -> None:
    worker = serve(f"""
        proc handler {{request}} {{
            if {{[dict get $request path] eq "/fail"}} {{
                return {answer}
            }}
            return {{text fine}}
        }}
        poolparty::serve handler
    """)
    assert worker.ask("http://h/fail") == FAILURE
    assert worker.ask("http://h/")[2] == b"fine"
    status, stderr = worker.leave()
    assert status == 0
    assert stderr.startswith('poolparty: GET "http://h/fail" failed\n')
    assert complaint in stderr


@pytest.mark.parametrize("leaving", ["break", "continue", "return -code 7"])
def test_a_handler_that_leaves_strangely_is_a_failure(serve: Any, leaving: str) -> None:
    worker = serve(f"poolparty::serve {{apply {{request {{{leaving}}}}}}}")
    assert worker.ask() == FAILURE
    assert worker.ask() == FAILURE


def test_header_fields_have_a_default(serve: Any) -> None:
    worker = serve("""
        poolparty::serve {apply {request {
            dict create text [list [poolparty::header $request x-a] [poolparty::header $request X-B none]]
        }}}
    """)
    assert worker.ask(headers={"X-A": "1"})[2] == b"1 none"


def test_heads_that_change_are_not_remembered(serve: Any) -> None:
    worker = serve("""
        poolparty::serve {apply {request {
            dict create headers [list Uri [dict get $request uri] Fixed a]
        }}}
    """)
    for n in [*range(300), *range(300)]:
        assert worker.ask(f"http://h/{n}")[1] == {"Uri": [f"http://h/{n}"], "Fixed": ["a"]}


def test_a_command_with_arguments_is_a_handler(serve: Any) -> None:
    worker = serve("""
        proc greet {greeting request} { dict create text "$greeting [dict get $request path]" }
        poolparty::serve {greet hello}
    """)
    assert worker.ask("http://h/a")[2] == b"hello /a"


def test_what_the_program_reads_from_stdin_is_nothing(serve: Any, frame_of: Any) -> None:
    worker = serve("poolparty::serve {apply {request {dict create text <[read stdin]>}}}")
    worker.send(frame_of(), frame_of())
    assert [worker.response()[2] for _ in range(2)] == [b"<>", b"<>"]
