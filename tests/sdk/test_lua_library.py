"""What is special in the library for Lua: a language that knows neither descriptors nor signals."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.only("Lua")

TEXT = {"Content-Type": ["text/plain; charset=utf-8"]}
FAILURE = (500, TEXT, b"internal server error\n")
ALL = {"POOLPARTY_FEATURES": "ready,health-reply,stream"}


@pytest.fixture
def serve(language: Any, start_program: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """serve(source, environment={}): a worker that runs the source, in which `poolparty` is required."""

    def serve(source: str, environment: dict[str, str] | None = None) -> Any:
        program = tmp_path / "app.lua"
        program.write_text('local poolparty = require "poolparty"\n' + textwrap.dedent(source))
        return start_program(program, environment)

    return serve


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('"text"', (200, TEXT, b"text")),
        ("{}", (200, {}, b"")),
        ("{ body = 12 }", (200, {}, b"12")),
        ("{ status = 2e2, headers = { A = 1, B = { 2, 'x' }, C = {} } }",
         (200, {"A": ["1"], "B": ["2", "x"], "C": []}, b"")),
        ("{ body = ('x'):rep(65536) }", (200, {}, b"x" * 65536)),
        ("{ body = coroutine.wrap(function() for n = 1, 2 do coroutine.yield(('ab'):sub(n, n)) end end) }",
         (200, {}, b"ab")),
        ("{ body = ('one two'):gmatch('%a+') }", (200, {}, b"onetwo")),
    ],
)  # fmt: skip
def test_what_a_handler_may_return(serve: Any, answer: str, expected: Any) -> None:
    assert serve(f"poolparty.serve(function(request) return {answer} end)").ask() == expected


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("7", "a handler returns a string or a table, not 7"),
        ("{ status = 200.5 }", "a response's status is an integer from 200 to 599, not 200.5"),
        ("{ headers = 'A: b' }", "a response's headers are a table, not A: b"),
        ("{ headers = { [7] = 'b' } }", "a response header's name is a string, not 7"),
        ("{ headers = { A = true } }", 'the response header "A" is a string or a list of strings, not true'),
        ("{ body = function() return 7 end }", "a response's body function returns strings, not 7"),
        ("error({ code = 5 })", "table: "),
        ("error(setmetatable({}, { __tostring = function() return 'own words' end }))", "own words"),
        ("error(setmetatable({}, { __tostring = function() error('worse') end }))", "failed"),
        ("error()", "nil"),
    ],
)
def test_what_is_wrong_is_said(serve: Any, answer: str, complaint: str) -> None:
    worker = serve(f"""
        poolparty.serve(function(request)
          if request.path == "/fail" then return {answer} end
          return "fine"
        end)
    """)
    assert worker.ask("http://h/fail") == FAILURE
    assert worker.ask("http://h/")[2] == b"fine"
    status, stderr = worker.leave()
    assert status == 0
    assert stderr.startswith('poolparty: GET "http://h/fail" failed\n')
    assert complaint in stderr


def test_headers_are_a_table_whose_lookup_ignores_case(serve: Any) -> None:
    worker = serve("""
        poolparty.serve(function(request)
          local headers, names = request.headers, {}
          for name in pairs(headers) do names[#names + 1] = name end
          table.sort(names)
          return table.concat(names, " ") .. headers["x-a"] .. headers["X-A"] .. tostring(headers.none)
        end)
    """)
    assert worker.ask(headers={"X-B": "2", "X-A": "1"})[2] == b"X-A X-B11nil"


def test_programs_started_either_way_get_none_of_the_pipes(serve: Any, frame_of: Any) -> None:
    worker = serve("""
        poolparty.serve(function(request)
          assert(os.execute("cat"))  -- reads its stdin to the end
          local listing = io.popen("cat; ls -l /proc/self/fd", "r")
          local said = listing:read("*a")
          listing:close()
          return said
        end)
    """)
    worker.send(frame_of(), frame_of())
    ours = [f"pipe:[{os.fstat(fd).st_ino}]" for fd in (worker.fd3, worker.process.stdin.fileno())]
    for _ in range(2):
        listed = worker.response()[2].decode()
        assert "/dev/null" in listed
        assert not [pipe for pipe in ours if pipe in listed]


def test_a_program_that_is_written_to_reads_that(serve: Any) -> None:
    worker = serve("""
        poolparty.serve(function(request)
          local sort = io.popen("sort", "w")
          sort:write("b\\na\\n")
          sort:close()
          return tostring(os.execute())
        end)
    """)
    assert worker.ask()[2] in (b"true", b"1")
    assert [worker.line_of_stdout() for _ in range(2)] == [b"a\n", b"b\n"]


def test_what_the_program_reads_from_stdin_is_nothing(serve: Any, frame_of: Any) -> None:
    worker = serve("""
        poolparty.serve(function(request)
          return ("%s%s"):format(io.read("*a"), io.stdin:read("*a"))
        end)
    """)
    worker.send(frame_of(), frame_of())
    assert [worker.response()[2] for _ in range(2)] == [b"", b""]


def test_a_health_checks_message_is_utf_8_whatever_was_raised(serve: Any, health_check: bytes) -> None:
    worker = serve('poolparty.serve(print, function() error("\\255 gr\\195\\188n", 0) end)', ALL)
    worker.ready()
    worker.send(health_check)
    assert worker.health() == (False, "? gr??n")
    worker = serve('poolparty.serve(print, function() error("gr\\195\\188n", 0) end)', ALL)
    worker.ready()
    worker.send(health_check)
    assert worker.health() == (False, "grün")
