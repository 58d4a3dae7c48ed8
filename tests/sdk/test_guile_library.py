"""What is special in the library for Guile: bodies written to a port, and exceptions of every kind."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.only("Guile")

TEXT = {"Content-Type": ["text/plain; charset=utf-8"]}
FAILURE = (500, TEXT, b"internal server error\n")
ALL = {"POOLPARTY_FEATURES": "ready,health-reply,stream"}


@pytest.fixture
def serve(language: Any, start_program: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """serve(source, environment={}): a worker that runs the source, in which the module is used."""

    def serve(source: str, environment: dict[str, str] | None = None) -> Any:
        program = tmp_path / "app.scm"
        program.write_text("(use-modules (poolparty) (rnrs bytevectors))\n" + textwrap.dedent(source))
        return start_program(program, environment)

    return serve


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('"grün"', (200, TEXT, "grün".encode())),
        ("#vu8(0 255)", (200, {"Content-Type": ["application/octet-stream"]}, b"\x00\xff")),
        ("(response)", (200, {}, b"")),
        ("(response #:status 404 #:body #vu8(255))", (404, {}, b"\xff")),
        ('(response #:headers \'(("A" . "1") ("B" "2" "3") ("A" . "4") ("C")))',
         (200, {"A": ["1", "4"], "B": ["2", "3"], "C": []}, b"")),
        ('(response #:body (lambda (port) (display "grün" port) (display 7 port)))',
         (200, {}, "grün7".encode())),
        ("(response #:body (make-bytevector 200000 65))", (200, {}, b"A" * 200_000)),
        ("(response #:body (lambda (port) (display (make-string 99999 #\\A) port)))",
         (200, {}, b"A" * 99_999)),
    ],
)  # fmt: skip
def test_what_a_handler_may_give(serve: Any, answer: str, expected: Any) -> None:
    worker = serve(f"(serve (lambda (request) {answer}))")
    status, headers, body = worker.ask()
    assert (status, headers, body) == (expected[0], expected[1], expected[2])


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("'symbol", "a handler gives a string, a bytevector or a response, not symbol"),
        ("(response #:status 200.5)", "a response's status is an integer from 200 to 599, not 200.5"),
        ("(response #:headers 7)", "a response's headers are a list of pairs, not 7"),
        ('(response #:headers \'(("A" . 7)))', 'the response header "A" is a string or a list of strings'),
        ("(response #:headers '(7))", "a response's header is a pair of a name and a value, not 7"),
        ("(response #:body 7)", "a response's body is a string, a bytevector or a procedure, not 7"),
        ("(vector-ref (vector) 1)", "out of range"),
        ("(car 7)", "car"),
        ("(throw 'own-key 1 2)", "own-key"),
        ("(raise-exception 'anything)", "anything"),
        ("(undefined-procedure)", "undefined-procedure"),
    ],
)
def test_what_is_wrong_is_said(serve: Any, answer: str, complaint: str) -> None:
    worker = serve(f"""
        (serve (lambda (request)
                 (if (string=? (request-path request) "/fail") {answer} "fine")))
    """)
    assert worker.ask("http://h/fail") == FAILURE
    assert worker.ask("http://h/")[2] == b"fine"
    status, stderr = worker.leave()
    assert status == 0
    assert 'poolparty: GET "http://h/fail" failed\n' in stderr
    assert complaint in stderr


def test_a_body_that_is_not_flushed_is_sent_as_pieces_of_the_buffers_size(serve: Any, frame_of: Any) -> None:
    worker = serve(
        "(serve (lambda (request) (response #:body (lambda (port)"
        " (do ((n 0 (+ n 1))) ((= n 20000)) (display 1234567890 port))))))",
        ALL,
    )
    worker.ready()
    worker.send(frame_of())
    assert worker.frame()[0] == 3
    sizes = []
    while (frame := worker.frame())[0] == 4:
        sizes.append(len(frame[1].bytes()))
    assert frame[0] == 5
    assert sum(sizes) == 200_000
    assert 3 <= len(sizes) <= 200


def test_a_request_made_by_hand_tries_a_handler_without_a_server(serve: Any) -> None:
    worker = serve("""
        (define (handler request)
          (string-append (request-path request) (request-query request) (request-header request "x-y")))
        (display (handler (make-request #:uri "http://h/a?b" #:headers '(("X-Y" . "z")))))
        (newline)
        (serve handler)
    """)
    assert worker.line_of_stdout() == b"/abz\n"
    assert worker.ask("http://h", headers={"X-Y": "z"})[2] == b"/z"


def test_programs_do_not_inherit_the_interrupts_handling(serve: Any) -> None:
    worker = serve("""
        (use-modules (ice-9 popen) (ice-9 textual-ports))
        (serve (lambda (request)
                 (get-string-all (open-input-pipe "grep SigIgn /proc/self/status"))))
    """)
    ignored = int(worker.ask()[2].split()[1], 16)
    assert not ignored & (1 << 1 | 1 << 12)  # SIGINT, SIGPIPE
