"""What is special in PHP's worker library; what all owe stands in test_every_library.py."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.only("PHP")

TEXT = {"Content-Type": ["text/plain; charset=utf-8"]}
FAILURE = (500, TEXT, b"internal server error\n")


def answering(expression: str) -> str:
    return f"<?php\nrequire 'poolparty.php';\nPoolparty\\serve(fn ($request) =>\n{expression});\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r'"\xff\0"', (200, TEXT, b"\xff\0")),
        ("new Poolparty\\Response(body: 'x')", (200, {}, b"x")),
        ("new Poolparty\\Response(404, ['A' => ['b', 'c'], 1 => 'd'])",
         (404, {"A": ["b", "c"], "1": ["d"]}, b"")),
        ("new Poolparty\\Response(body: ['a', 'b'])", (200, {}, b"ab")),
        ("new Poolparty\\Response(body: new ArrayIterator(['a', 'b']))", (200, {}, b"ab")),
    ],
)  # fmt: skip
def test_what_a_handler_may_return(serve: Any, answer: str, expected: Any) -> None:
    worker = serve(answering(answer))
    assert worker.ask() == expected
    assert worker.leave() == (0, "")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("null", "a handler returns a string or a Response, not null"),
        ("['status' => 200]", "a handler returns a string or a Response, not array"),
        ("new Poolparty\\Response(600)", "a response's status is an int from 200 to 599, not 600"),
        ("new Poolparty\\Response('abc')", "must be of type int, string given"),
        (
            "new Poolparty\\Response(headers: ['A' => 7])",
            "the response header A is a string or a list of strings",
        ),
        ("nothing_of_this_name()", "Call to undefined function"),
    ],
)
def test_what_is_no_answer_is_explained(serve: Any, answer: str, complaint: str) -> None:
    worker = serve(answering(answer))
    assert worker.ask() == FAILURE
    assert complaint in worker.leave()[1]


def test_a_failure_is_logged_with_its_trace(serve: Any) -> None:
    source = "<?php\nrequire 'poolparty.php';\nfunction deep() { throw new Exception('this one'); }\n"
    worker = serve(source + "Poolparty\\serve(function () { deep(); });\n")
    worker.ask()
    stderr = worker.leave()[1]
    assert "Exception: this one in " in stderr
    assert "app.php:3" in stderr
    assert "#0 " in stderr


def test_what_is_open_as_standard_input_reads_as_nothing(serve: Any, frame_of: Any) -> None:
    worker = serve(answering("var_export(file_get_contents('php://stdin'), true)"))
    worker.send(frame_of(), frame_of())
    assert worker.response()[2] == worker.response()[2] == b"''"


def test_a_time_limit_of_phps_does_not_end_the_worker(serve: Any) -> None:
    source = "<?php\nset_time_limit(1);\nrequire 'poolparty.php';\n"
    worker = serve(source + "Poolparty\\serve(fn () => ini_get('max_execution_time'));\n")
    assert worker.ask()[2] == b"0"


def test_an_interrupt_is_not_ignored_by_programs_that_a_handler_starts(serve: Any) -> None:
    worker = serve(answering("'[' . shell_exec(\"sh -c 'kill -INT \\$\\$; echo alive'\") . ']'"))
    assert worker.ask()[2] == b"[]"


def test_a_request_made_by_hand_tries_a_handler_without_a_server(serve: Any) -> None:
    worker = serve("""<?php
        require 'poolparty.php';
        $made = new Poolparty\\Request(uri: 'http://h', headers: ['X-A' => 'b']);
        Poolparty\\serve(fn () => "$made->path $made->query $made->method {$made->header('x-a')}");
    """)
    assert worker.ask()[2] == b"/  GET b"
