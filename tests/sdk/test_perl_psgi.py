"""PSGI applications under the Perl library's adapter: the Dancer2 example, and others that show one thing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.only("Perl")

FAILURE = (500, {"Content-Type": ["text/plain; charset=utf-8"]}, b"internal server error\n")
STREAM = {"POOLPARTY_FEATURES": "ready,stream"}
RUN = ["-MPoolparty::PSGI", "-e", "run"]


@pytest.fixture
def psgi(start_program: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """psgi(source, environment={}): a worker that serves the .psgi file of this source, without Plack."""

    def psgi(source: str, environment: dict[str, str] | None = None) -> Any:
        program = tmp_path / "app.psgi"
        program.write_text(f"use strict; use warnings;\n{source}\n")
        return start_program(program, environment, RUN)

    return psgi


@pytest.fixture
def linted(psgi: Any, interpreter: str, needs: Any) -> Callable[..., Any]:
    """linted(source): the same through Plack::Middleware::Lint."""
    needs("Plack", interpreter, "-MPlack::Middleware::Lint", "-e", "0")
    head = "use Plack::Middleware::Lint;\nPlack::Middleware::Lint->wrap(do {"
    return lambda source, environment=None: psgi(f"{head} {source} }});", environment)


@pytest.fixture
def dancer(linted: Any, interpreter: str, needs: Any, checkout: Path) -> Any:
    needs("Dancer2", interpreter, "-MDancer2::Core", "-e", "0")
    return linted(f"do '{checkout}/examples/dancer2/app.psgi' or die $@")


def test_the_environment_is_psgis(linted: Any) -> None:
    worker = linted("""
        use JSON::PP;
        sub {
            my ($env) = @_;
            my %shown = map { $_ => $env->{$_} } grep { !ref $env->{$_} } keys %$env;
            return [200, ['Content-Type' => 'a/b'], [JSON::PP->new->encode(\\%shown)]];
        }
    """)
    headers = {
        "Host": "example.org:8080",
        "Content-Type": "a/b",
        "Content-Length": "4",
        "X-Some": "thing",
        "Transfer-Encoding": "chunked",
    }
    _, _, body = worker.ask("https://example.org:8080/a%20b%2fc?x=1%20&y", "PUT", headers, b"body")
    shown = json.loads(body)
    assert shown.pop("SERVER_SOFTWARE").startswith("poolparty/")
    assert shown == {
        "REQUEST_METHOD": "PUT",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b/c",
        "REQUEST_URI": "/a%20b%2fc?x=1%20&y",
        "QUERY_STRING": "x=1%20&y",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "4711",
        "HTTPS": "on",
        "HTTP_HOST": "example.org:8080",
        "HTTP_X_SOME": "thing",
        "CONTENT_TYPE": "a/b",
        "CONTENT_LENGTH": "4",
        "psgi.url_scheme": "https",
        **{f"psgi.{name}": shown[f"psgi.{name}"] for name in ("multithread", "multiprocess", "run_once")},
        **{f"psgi.{name}": shown[f"psgi.{name}"] for name in ("nonblocking", "streaming")},
        "psgix.input.buffered": shown["psgix.input.buffered"],
    }
    assert shown["psgi.multiprocess"] and shown["psgi.streaming"]
    assert not (shown["psgi.multithread"] or shown["psgi.run_once"] or shown["psgi.nonblocking"])


@pytest.mark.parametrize(
    ("uri", "name", "port"),
    [("http://h/", "h", 80), ("https://h", "h", 443), ("http://[::1]:81/", "[::1]", 81)],
)
def test_the_servers_name_and_port(linted: Any, uri: str, name: str, port: int) -> None:
    worker = linted("sub { [200, ['Content-Type' => 'a/b'], [\"$_[0]{SERVER_NAME} $_[0]{SERVER_PORT}\"]] }")
    assert worker.ask(uri)[2].decode() == f"{name} {port}"


def test_the_body_is_read_and_read_again(linted: Any) -> None:
    worker = linted("""
        sub {
            my $input = $_[0]{'psgi.input'};
            my $size = 0;
            while (my $got = $input->read(my $piece, 4096)) { $size += $got }
            $input->seek(0, 0);
            $input->read(my $start, 3);
            return [200, ['Content-Type' => 'a/b'], [$size, ' ', $start]];
        }
    """)
    assert worker.ask("http://h/", "POST", {}, b"abc" + b"\xff" * 70000)[2] == b"70003 abc"
    assert worker.ask("http://h/", "POST", {}, b"")[2] == b"0 "


def test_answers_of_every_kind(linted: Any) -> None:
    worker = linted("""
        sub {
            my ($env) = @_;
            my $path = $env->{PATH_INFO};
            my @head = (201, ['Content-Type' => 'a/b', 'Set-Cookie' => 'a=1', 'Set-Cookie' => 'b=2']);
            return [@head, ["one\\n", "\\xff\\n"]] if $path eq '/array';
            if ($path eq '/file') { open my $file, '<', \\"one\\n\\xff\\n"; return [@head, $file] }
            return sub { $_[0]->([@head, ["one\\n", "\\xff\\n"]]) } if $path eq '/delayed';
            return sub {
                my $writer = $_[0]->([@head]);
                $writer->write("one\\n");
                $writer->write("\\xff\\n");
                $writer->close;
            } if $path eq '/writer';
        }
    """)
    for path in ("array", "file", "delayed", "writer"):
        expected = (201, {"Content-Type": ["a/b"], "Set-Cookie": ["a=1", "b=2"]}, b"one\n\xff\n")
        assert worker.ask(f"http://h/{path}") == expected, path


@pytest.mark.parametrize("close", ["$writer->close;", ""])
def test_a_writers_pieces_are_streamed(psgi: Any, frame_of: Any, close: str) -> None:
    source = f"sub {{ sub {{ my $writer = $_[0]->([200, []]); $writer->write($_) for 1, '', 2; {close} }} }}"
    worker = psgi(source, STREAM)
    assert worker.ready() == ["stream"]
    for _ in range(2):
        worker.send(frame_of())
        assert [worker.frame()[0] for _ in range(4)] == [3, 4, 4, 5]
    assert worker.leave() == (0, "")


def test_a_writers_piece_that_is_not_wanted_any_more_is_an_error(psgi: Any, frame_of: Any) -> None:
    source = """sub { sub {
        my $writer = $_[0]->([200, []]);
        eval { $writer->write('more') while 1 };
        print "ended by a ", ref $@, ": $@\n";
        die $@;
    } }"""
    worker = psgi(source, {"POOLPARTY_FEATURES": "ready,stream,stream-cancel"})
    assert worker.ready() == ["stream", "stream-cancel"]
    for _ in range(2):
        worker.send(frame_of("http://h/"))
        assert worker.pieces(2) == [b"more"] * 2
        worker.cancel_stream()
        assert worker.line_of_stdout() == b"ended by a Poolparty::Cancelled: the client has left\n"
    assert worker.leave() == (0, "")


def test_a_program_that_goes_on_after_that_error_is_left(psgi: Any, frame_of: Any) -> None:
    source = """
        sub Guard::DESTROY { print "left\\n" }
        sub { sub {
            my $guard = bless [], 'Guard';
            my $writer = $_[0]->([200, []]);
            while (1) { eval { $writer->write('more') } }
        } }
    """
    worker = psgi(source, {"POOLPARTY_FEATURES": "ready,stream,stream-cancel"})
    assert worker.ready() == ["stream", "stream-cancel"]
    for _ in range(2):
        worker.send(frame_of("http://h/"))
        assert worker.pieces(2) == [b"more"] * 2
        worker.cancel_stream()
        assert worker.line_of_stdout() == b"left\n"
    assert worker.leave() == (0, "")


def test_a_writer_that_fails_later_never_looks_whole(psgi: Any, frame_of: Any) -> None:
    worker = psgi(
        "sub { sub { my $writer = $_[0]->([200, []]); $writer->write(1); die 'this one' } }", STREAM
    )
    worker.ready()
    worker.send(frame_of())
    assert [worker.frame()[0] for _ in range(2)] == [3, 4]
    assert worker.process.wait(20) == 1
    assert worker.says_nothing_more()


@pytest.mark.parametrize("features", [{}, STREAM])
@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("sub { die 'this one' }", "this one"),
        ("sub { sub { die 'this one' } }", "this one"),
        ("sub { sub { $_[0]->([200, []]); die 'this one' } }", "this one"),
        ("sub { sub { } }", "a handler has returned a sub that gave no answer"),
        ("sub { sub { $_[0]->([200, [], []]) for 1, 2 } }", "the answer has been given already"),
        ("sub { sub { $_[0]->([99, [], []]) } }", "a response's status"),
    ],
)
def test_a_failure_before_anything_was_sent_is_answered_500(
    psgi: Any, source: str, complaint: str, features: dict[str, str]
) -> None:
    worker = psgi(source, features)
    if features:
        worker.ready()
    assert worker.ask() == FAILURE
    assert worker.ask() == FAILURE
    assert complaint in worker.leave()[1]


@pytest.mark.parametrize(
    "pieces",
    [
        '"4\\r\\none\\n\\r\\na;x=y\\r\\n", "0123456789\\r\\n0\\r\\n\\r\\n"',
        'split //, "1\\r\\na\\r\\n0\\r\\n\\r\\n"',
    ],
)
def test_chunks_that_an_application_has_coded_are_decoded(psgi: Any, pieces: str) -> None:
    """As Mojolicious does it: its coding of the body would reach the client as the body."""
    worker = psgi(f"sub {{ [200, ['X' => 'y', 'Transfer-Encoding' => 'chunked'], [{pieces}]] }}")
    expected = b"a" if "split" in pieces else b"one\n0123456789"
    assert worker.ask() == (200, {"X": ["y"]}, expected)


def test_chunks_that_break_off_are_an_error(psgi: Any) -> None:
    worker = psgi("sub { [200, ['Transfer-Encoding' => 'chunked'], [\"4\\r\\non\"]] }")
    assert worker.ask() == FAILURE


def test_errors_go_to_the_log(psgi: Any) -> None:
    worker = psgi("sub { $_[0]{'psgi.errors'}->print(\"noted\\n\"); [200, [], []] }")
    assert worker.ask()[2] == b""
    assert worker.leave() == (0, "noted\n")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("die 'not loaded'", "not loaded"), ("my $x = ;", "syntax error"), ("7", "returns no PSGI application")],
)
def test_a_file_that_does_not_load_ends_the_start(psgi: Any, source: str, complaint: str) -> None:
    worker = psgi(source)
    assert worker.process.wait(20) != 0
    assert complaint in worker.leave()[1]


def test_a_file_that_is_missing_is_named(start_program: Any, tmp_path: Path) -> None:
    worker = start_program(tmp_path / "none.psgi", {}, RUN)
    assert worker.process.wait(20) != 0
    assert f"{tmp_path}/none.psgi: No such file" in worker.leave()[1]


def test_an_object_is_an_application(psgi: Any) -> None:
    worker = psgi("package Object; sub to_app { sub { [200, [], ['object']] } } bless {}")
    assert worker.ask()[2] == b"object"


def test_a_program_of_ones_own_serves_an_application(serve: Any) -> None:
    worker = serve("use Poolparty::PSGI 'serve_app'; serve_app(sub { [200, [], ['mine']] });")
    assert worker.ask()[2] == b"mine"


# ---- Dancer2, through Plack's lint.


def test_dancer2_routes(dancer: Any) -> None:
    assert dancer.ask("http://h/")[2] == b"Hello from Dancer2!\n"
    assert dancer.ask("http://h/hello/%3Cb%3E")[2] == b"<h1>Hello, &#60;b&#62;!</h1>\n"
    assert dancer.ask("http://h/nowhere")[0] == 404
    assert dancer.ask("http://h/", "HEAD")[::2] == (200, b"")


def test_dancer2_forms_and_uploads(dancer: Any) -> None:
    body = b"name=a+b"
    form = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(body))}
    assert dancer.ask("http://h/form", "POST", form, body)[2] == b"Hello, a b!\n"
    body = (
        b'--XX\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + os.urandom(300_000) + b"\r\n--XX--\r\n"
    )
    upload = {"Content-Type": "multipart/form-data; boundary=XX", "Content-Length": str(len(body))}
    assert dancer.ask("http://h/upload", "POST", upload, body)[2] == b"f.bin: 300000 bytes\n"


def test_dancer2_sessions_and_cookies(dancer: Any) -> None:
    _, headers, body = dancer.ask("http://h/count")
    assert body == b"1\n"
    match = re.match("[^;]*", headers["Set-Cookie"][0])
    assert match is not None
    assert dancer.ask("http://h/count", headers={"Cookie": match[0]})[2] == b"2\n"
    _, headers, body = dancer.ask("http://h/cookies", headers={"Cookie": "x=y; z=1"})
    assert body == b"x=y z=1"
    assert [value[:3] for value in headers["Set-Cookie"]] == ["a=1", "b=2"]


def test_dancer2_streams_and_errors(dancer: Any) -> None:
    assert dancer.ask("http://h/stream")[2] == b"line 0\nline 1\nline 2\n"
    assert dancer.ask("http://h/error")[0] == 500
    assert "this page always fails" in dancer.leave()[1]
