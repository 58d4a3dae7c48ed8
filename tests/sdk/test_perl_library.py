"""What is special in Perl's worker library; what all owe stands in test_every_library.py."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.only("Perl")

TEXT = {"Content-Type": ["text/plain; charset=utf-8"]}
FAILURE = (500, TEXT, b"internal server error\n")


def answering(expression: str) -> str:
    head = "use strict; use warnings; use Poolparty 'serve';\n"
    return f"{head}serve(sub {{ my ($request) = @_; {expression} }});\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r'"gr\x{fc}n\x{20ac}"', (200, TEXT, "grün€".encode())),
        (r'"gr\xc3\xbcn"', (200, TEXT, "grün".encode())),
        ("use utf8; [200, ['X' => 'grün', 'x' => 1], ['gr', 'ün', undef]]",
         (200, {"X": ["grün"], "x": ["1"]}, "grün".encode())),
        ("[200, {'A' => ['b', 'c'], 'D' => []}, undef]", (200, {"A": ["b", "c"], "D": []}, b"")),
        (r'open my $file, "<", \ "from a file"; [200, [], $file]', (200, {}, b"from a file")),
        (r'use IO::File; my $f = IO::File->new_tmpfile; print $f "x" x 99999; seek $f, 0, 0; [200, [], $f]',
         (200, {}, b"x" * 99999)),
        ("[599, ['A' x 128, \"\\x{fc}\" . \"\\x{100}\"], 'x' x 128]", (599, {"A" * 128: ["üĀ"]}, b"x" * 128)),
        ("0", (200, TEXT, b"0")),
    ],
)  # fmt: skip
def test_characters_leave_as_utf_8_and_bytes_as_they_are(serve: Any, answer: str, expected: Any) -> None:
    worker = serve(answering(answer))
    assert worker.ask() == expected
    assert worker.leave() == (0, "")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("undef", "a handler returns a string or [status, headers, body], not undef"),
        ("{}", "a handler returns"),
        ("[200, []]", "a handler returns"),
        ("['abc', [], '']", "a response's status is a number from 200 to 599, not 'abc'"),
        ("[200, ['A'], '']", "a response's headers are a hash"),
        ("[200, ['A', undef], '']", "the response header A"),
        ("[200, [], {}]", "a response's body is"),
        ("die { code => 7 }", "HASH"),
    ],
)
def test_what_is_no_answer_is_explained(serve: Any, answer: str, complaint: str) -> None:
    worker = serve(answering(answer))
    assert worker.ask() == FAILURE
    assert complaint in worker.leave()[1]


def test_a_failure_is_logged_with_a_trace_of_the_program(serve: Any) -> None:
    worker = serve("sub deep { die 'this one' }\nsub deeper { deep() }\n" + answering("deeper()"))
    worker.ask()
    stderr = worker.leave()[1]
    assert "this one at " in stderr
    assert "main::deep called at " in stderr
    assert "main::deeper called at " in stderr
    assert "Poolparty.pm" not in stderr


def test_an_error_that_the_program_catches_is_none(serve: Any) -> None:
    worker = serve(answering("eval { die 'inner' }; 'caught'"))
    assert worker.ask()[2] == b"caught"
    assert worker.leave() == (0, "")


def test_a_handler_for_errors_of_the_programs_own_is_kept(serve: Any) -> None:
    worker = serve("$SIG{__DIE__} = sub { print STDERR 'mine: ', @_ };\n" + answering('die "this one\\n"'))
    assert worker.ask() == FAILURE
    assert worker.leave()[1].startswith("mine: this one\n")


def test_a_file_is_closed_when_it_has_been_sent(serve: Any) -> None:
    worker = serve(
        """
        package Body;
        sub new { return bless { pieces => ['one', 'two'] } }
        sub getline { my $self = shift; return shift @{ $self->{pieces} } }
        sub close { print "closed\\n" }
        package main;
        use Poolparty 'serve';
        serve(sub { [200, [], Body->new] });
        """
    )
    assert worker.ask()[2] == b"onetwo"
    assert worker.line_of_stdout() == b"closed\n"


def test_a_request_made_by_hand_tries_a_handler_without_a_server(serve: Any) -> None:
    worker = serve("""
        use Poolparty 'serve';
        my $made = Poolparty::Request->new(uri => 'http://h', headers => { 'X-A' => 'b' });
        serve(sub { join ' ', $made->path, $made->query_string, $made->method, $made->header('x-a') });
    """)
    assert worker.ask()[2] == b"/  GET b"


def test_an_interrupt_is_not_ignored_by_programs_that_a_handler_starts(serve: Any) -> None:
    worker = serve(answering("my $said = `sh -c 'kill -INT \\$\\$; echo alive'`; \"[$said]\""))
    assert worker.ask()[2] == b"[]"
