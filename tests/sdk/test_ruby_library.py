"""What is special in Ruby's worker library; what all owe stands in test_every_library.py."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.only("Ruby")

FAILURE = (500, {"Content-Type": ["text/plain; charset=utf-8"]}, b"internal server error\n")


def answering(expression: str) -> str:
    return f'# encoding: utf-8\nrequire "poolparty"\nPoolparty.serve {{ |request| {expression} }}\n'


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('"\\xff\\0".b', (200, {"Content-Type": ["application/octet-stream"]}, b"\xff\0")),
        ('"grün".encode("UTF-16LE")',
         (200, {"Content-Type": ["text/plain; charset=utf-8"]}, "grün".encode())),
        ('[200, { "X" => "grün".encode("ISO-8859-1") }, ["grün", "\\xff".b, "".b]]',
         (200, {"X": ["grün"]}, "grün".encode() + b"\xff")),
        ('[200, {}, ["a".b, "ü"].each]', (200, {}, "aü".encode())),
        ('[599, { "A" * 128 => ["ü" * 100] }, "x" * 128]', (599, {"A" * 128: ["ü" * 100]}, b"x" * 128)),
    ],
)  # fmt: skip
def test_a_string_of_any_encoding(serve: Any, answer: str, expected: Any) -> None:
    assert serve(answering(answer)).ask() == expected


def test_what_a_request_says(serve: Any) -> None:
    worker = serve(
        answering("""
        headers = request.headers
        [request.body.encoding, request.uri.encoding, headers["accept"].encoding, headers["nothing"].inspect,
         headers.fetch("nothing", 7), headers.key?("ACCEPT"), headers.to_h, headers.map { |name, _| name },
         request.inspect].join(" ")
        """)
    )
    said = worker.ask("http://h/p?q", headers={"Accept": "*/*"}, body=b"\xff")[2].decode()
    expected = (
        'ASCII-8BIT UTF-8 UTF-8 nil 7 true {"Accept"=>"*/*"} Accept #<Poolparty::Request GET http://h/p?q>'
    )
    assert said.replace('" => "', '"=>"').replace("BINARY (ASCII-8BIT)", "ASCII-8BIT") == expected


@pytest.mark.parametrize(
    "failure",
    ["raise NotImplementedError", "require 'nothing_of_this_name'", "def f; f; end; f", "Integer('x')"],
)
def test_every_error_of_a_program_costs_its_request_only(serve: Any, failure: str) -> None:
    worker = serve(answering(f'request.path == "/" ? begin; {failure}; end : "fine"'))
    assert worker.ask() == FAILURE
    assert worker.ask("http://h/a")[2] == b"fine"


def test_the_trace_of_a_failure_is_the_programs_own(serve: Any) -> None:
    worker = serve(answering('raise "this one"'))
    worker.ask()
    stderr = worker.leave()[1]
    assert "app.rb:3" in stderr
    assert "sdk/ruby" not in stderr


@pytest.mark.parametrize("features", ["", "ready,stream"])
def test_a_body_is_closed_when_it_has_been_sent_and_when_it_failed(serve: Any, features: str) -> None:
    worker = serve(
        """
        require "poolparty"
        class Body
          def initialize(failing) = @failing = failing
          def close = puts("closed")
          def each
            raise "this one" if @failing
            yield "piece"
          end
        end
        Poolparty.serve { |request| [200, nil, Body.new(request.query_string == "fail")] }
        """,
        {"POOLPARTY_FEATURES": features},
    )
    if features:
        assert worker.ready() == ["stream"]
    assert worker.ask("http://h/?fail") == FAILURE
    assert worker.line_of_stdout() == b"closed\n"


def test_what_can_be_called_is_a_handler(serve: Any) -> None:
    worker = serve('require "poolparty"\nPoolparty.serve(:path.to_proc)\n')
    assert worker.ask("http://h/a")[2] == b"/a"


def test_serve_without_a_handler_says_so(serve: Any) -> None:
    worker = serve('require "poolparty"\nPoolparty.serve\n')
    assert worker.process.wait(20) == 1
    assert "serve needs a handler or a block" in worker.leave()[1]


def test_a_request_made_by_hand_tries_a_handler_without_a_server(serve: Any) -> None:
    worker = serve("""
        require "poolparty"
        made = Poolparty::Request.new(uri: "http://h", headers: { "X-A" => "b" })
        Poolparty.serve { [made.path, made.query_string, made.request_method, made.headers["x-a"]].inspect }
    """)
    assert worker.ask()[2] == b'["/", "", "GET", "b"]'
