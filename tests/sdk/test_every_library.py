"""What every worker library owes, in a child of its own: applications/application.EXT, alike in all.

What is special in a language stands in test_LANGUAGE_library.py. The table of languages is in conftest.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = {"Content-Type": ["text/plain; charset=utf-8"]}
FAILURE = (500, TEXT, b"internal server error\n")
ALL = {"POOLPARTY_FEATURES": "ready,health-reply,stream,stream-cancel,stack,something-new"}

# The sizes at which a length takes one byte more, and a pipe's.
BORDERS = [0, 1, 127, 128, 16383, 16384, 65535, 65536, 65537, 2097151, 2097152]


@pytest.fixture
def start(language: Any, start_program: Callable[..., Any]) -> Callable[..., Any]:
    """start(environment={}): a worker that runs the application in this language."""
    program = Path(__file__).parent / "applications" / f"application.{language.suffix}"

    def start(environment: dict[str, str] | None = None) -> Any:
        return start_program(program, environment)

    return start


@pytest.fixture
def worker(start: Callable[..., Any]) -> Any:
    """One to which nothing beyond version 1 is offered."""
    return start()


def test_a_request_reaches_the_handler_whole(worker: Any) -> None:
    headers = {"Host": "example.org", "X-Text": "grün", "N" * 200: ""}
    status, answer, body = worker.ask(
        "http://example.org/echo?x=1%20&y=?", "POST", headers, b"\x00\xff\r\n" * 500
    )
    assert status == 201
    assert answer == {
        "Method": ["POST"],
        "Uri": ["http://example.org/echo?x=1%20&y=?"],
        "Path": ["/echo"],
        "Query": ["x=1%20&y=?"],
        "Remote-Address": ["192.0.2.1:4711"],
        "Headers": ["3"],
    }
    assert body == b"\x00\xff\r\n" * 500


def test_a_request_without_headers_query_or_body(worker: Any) -> None:
    _, answer, body = worker.ask("http://example.org/echo")
    assert (answer["Query"], answer["Headers"], body) == ([""], ["0"], b"")


@pytest.mark.parametrize("count", [127, 128, 300])
def test_many_headers(worker: Any, count: int) -> None:
    headers = {f"X-{number}": str(number) for number in range(count)}
    assert worker.ask("http://h/echo", headers=headers)[1]["Headers"] == [str(count)]


def test_header_lookup_ignores_case(worker: Any) -> None:
    headers = {"Content-Type": "a/b", "X-Long": "v" * 300, "X-Text": "grün"}
    for wanted in ("Content-Type", "content-type", "CONTENT-type"):
        assert worker.ask(f"http://h/header?{wanted}", headers=headers)[2] == b"a/b"
    assert worker.ask("http://h/header?x-long", headers=headers)[2] == b"v" * 300
    assert worker.ask("http://h/header?x-text", headers=headers)[2] == "grün".encode()
    assert worker.ask("http://h/header?accept", headers=headers)[0] == 404


def test_a_text(worker: Any) -> None:
    assert worker.ask("http://h/text") == (200, TEXT, "grün\n".encode())


@pytest.mark.parametrize("size", [256, 16384, 65536, 1 << 20])
def test_octets(worker: Any, size: int) -> None:
    status, headers, body = worker.ask(f"http://h/octets?{size}")
    assert (status, headers) == (200, {"Content-Type": ["application/octet-stream"]})
    assert body == bytes(range(256)) * (size // 256)


def test_a_header_that_stands_several_times(worker: Any) -> None:
    assert worker.ask("http://h/headers") == (200, {"Set-Cookie": ["a=1", "b=2"], "X-Long": ["v" * 300]}, b"")


def test_a_response_of_many_headers(worker: Any) -> None:
    expected = {f"X-{number}": [str(number)] for number in range(300)}
    assert worker.ask("http://h/many-headers") == (200, expected, b"")


def test_a_response_of_a_status_alone(worker: Any) -> None:
    assert worker.ask("http://h/empty") == (204, {}, b"")


@pytest.mark.parametrize("size", BORDERS)
def test_bodies_of_every_length(worker: Any, size: int) -> None:
    body = os.urandom(size)
    assert worker.ask("http://h/echo", "POST", {}, body)[2] == body


def test_four_mebibytes_in_both_directions(worker: Any) -> None:
    body = bytes(range(256)) * 4 * 4096
    for _ in range(2):
        assert worker.ask("http://h/echo", "POST", {}, body)[2] == body


@pytest.mark.parametrize("path", ["/fail", "/bad-status", "/bad-header", "/bad-body", "/bad-answer"])
def test_a_failing_handler_costs_its_request_only(worker: Any, path: str) -> None:
    assert worker.ask(f"http://h{path}?a") == FAILURE
    assert worker.ask(f"http://h{path}?a") == FAILURE
    assert worker.ask("http://h/text")[0] == 200
    status, stderr = worker.leave()
    assert status == 0
    assert stderr.count("poolparty: GET ") == 2
    assert f"http://h{path}?a" in stderr


def test_a_failure_is_logged_with_its_place(worker: Any, language: Any) -> None:
    worker.ask("http://h/fail")
    _, stderr = worker.leave()
    assert "this one fails" in stderr
    assert f"application.{language.suffix}" in stderr


def test_requests_that_arrive_together_are_answered_one_by_one(worker: Any, frame_of: Any) -> None:
    sizes = [0, 1, 5000, 70000, 0, 0, 3]
    worker.send(*(frame_of(f"http://h/echo?{n}", "POST", {}, b"." * size) for n, size in enumerate(sizes)))
    answers = [worker.response() for _ in sizes]
    assert [(headers["Query"], len(body)) for _, headers, body in answers] == [
        ([str(n)], size) for n, size in enumerate(sizes)
    ]


def test_a_failure_loses_nothing_of_what_waits_behind_it(worker: Any, frame_of: Any) -> None:
    worker.send(frame_of("http://h/fail"), frame_of("http://h/text"), frame_of("http://h/fail"))
    assert [worker.response()[0] for _ in range(3)] == [500, 200, 500]


def test_a_request_that_arrives_byte_by_byte(worker: Any, frame_of: Any) -> None:
    for byte in frame_of("http://h/echo?slow"):
        worker.send(bytes([byte]))
    assert worker.response()[1]["Query"] == ["slow"]


def test_the_end_of_the_pipe_is_a_quiet_end(worker: Any) -> None:
    worker.ask("http://h/text")
    assert worker.leave() == (0, "")
    assert worker.says_nothing_more()


def test_a_pipe_that_has_ended_before_the_program_was_there(start: Any) -> None:
    worker = start()
    worker.process.stdin.close()
    worker.process.stdin = None  # communicate() would flush it
    assert worker.leave() == (0, "")


def test_the_end_of_the_pipe_in_the_middle_of_a_request(worker: Any, frame_of: Any) -> None:
    worker.send(frame_of("http://h/text")[:-3])
    assert worker.leave() == (0, "")
    assert worker.says_nothing_more()


def test_a_server_that_has_gone_is_no_error(worker: Any, frame_of: Any) -> None:
    worker.ask("http://h/text")
    os.dup2(os.open(os.devnull, os.O_RDONLY), worker.fd3)
    worker.send(frame_of("http://h/text"))
    assert worker.leave() == (0, "")


def test_a_handler_can_end_the_worker(worker: Any, frame_of: Any) -> None:
    worker.send(frame_of("http://h/leave"))
    assert worker.process.wait(20) == 7
    assert worker.says_nothing_more()


def test_an_unknown_request_ends_the_worker_with_a_word(worker: Any) -> None:
    worker.send(b"\x01\x00\x00\x00\x09")
    status, stderr = worker.leave()
    assert status != 0
    assert "poolparty: a request of a kind this library does not know (9)" in stderr


def test_ready_names_what_will_be_used_and_is_said_once_and_first(
    start: Any, language: Any, health_check: bytes
) -> None:
    worker = start(ALL)
    assert set(worker.ready()) == language.features
    worker.send(health_check)
    assert worker.health() == (True, "")
    assert worker.ask("http://h/text")[0] == 200
    worker.leave()
    assert worker.says_nothing_more()


def test_ready_alone(start: Any, health_check: bytes) -> None:
    worker = start({"POOLPARTY_FEATURES": "ready"})
    assert worker.ready() == []
    worker.send(health_check)
    assert worker.ask("http://h/text")[0] == 200


@pytest.mark.parametrize("offered", [{}, {"POOLPARTY_FEATURES": ""}, {"POOLPARTY_FEATURES": "health-reply"}])
def test_nothing_is_said_unasked_to_a_server_of_version_1(
    start: Any, health_check: bytes, offered: dict[str, str]
) -> None:
    worker = start(offered)
    worker.send(health_check, health_check)
    assert worker.ask("http://h/text")[0] == 200
    assert worker.leave() == (0, "")
    assert worker.says_nothing_more()


def test_a_failing_health_check_is_replied_and_the_worker_waits_for_its_end(
    start: Any, health_check: bytes
) -> None:
    worker = start({**ALL, "TEST_HEALTH": "fail"})
    worker.ready()
    worker.send(health_check)
    ok, message = worker.health()
    assert not ok
    assert "no database" in message
    assert worker.ask("http://h/text")[0] == 200
    _, stderr = worker.leave()
    assert "the health check failed" in stderr
    assert "no database" in stderr


def test_a_health_checks_message_has_a_limit_and_is_utf_8(start: Any, health_check: bytes) -> None:
    worker = start({**ALL, "TEST_HEALTH": "long"})
    worker.ready()
    worker.send(health_check)
    ok, message = worker.health()
    assert not ok
    assert 400 <= len(message.encode()) <= 1000


def test_a_failing_health_check_ends_the_worker_of_a_version_1_server(
    start: Any, health_check: bytes
) -> None:
    worker = start({"TEST_HEALTH": "fail"})
    worker.send(health_check)
    assert worker.process.wait(20) == 1
    assert "no database" in worker.leave()[1]


def test_a_program_started_by_a_handler_gets_none_of_the_pipes(
    worker: Any, frame_of: Any, language: Any
) -> None:
    """It reads its standard input to the end, while a second request waits."""
    worker.send(frame_of("http://h/program"), frame_of("http://h/program"))
    expected = b"0\n3 is open" if "close-on-exec" in language.cannot else b"0"
    assert [worker.response()[2].strip() for _ in range(2)] == [expected] * 2


def test_what_is_printed_appears_at_once(worker: Any) -> None:
    worker.ask("http://h/say")
    assert worker.line_of_stdout() == b"seen /say\n"


@pytest.mark.feature("interrupts")
def test_an_interrupt_is_for_the_server(worker: Any) -> None:
    worker.ask("http://h/text")
    worker.process.send_signal(signal.SIGINT)
    assert worker.ask("http://h/text")[0] == 200
    assert worker.leave() == (0, "")


def test_sigterm_ends_the_worker_at_once(worker: Any) -> None:
    worker.ask("http://h/text")
    worker.process.terminate()
    assert worker.process.wait(20) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert worker.says_nothing_more()


def test_a_program_started_by_hand_says_how_it_is_meant(
    language: Any, command_for: Callable[..., list[str]]
) -> None:
    from poolparty.arbiter.environment import child_environment

    program = Path(__file__).parent / "applications" / f"application.{language.suffix}"
    command = command_for(program)
    close = "import os, sys; os.closerange(3, 100); os.execvp(sys.argv[1], sys.argv[1:])"
    result = subprocess.run(
        [sys.executable, "-c", close, *command],
        env=child_environment(os.environ, command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert result.returncode != 0
    assert "poolparty -- " in result.stderr


# ---- Streams. Each of the three handlers gives "one\n", an empty piece, bytes and "grün\n".

WHOLE = b"one\n\xff\n" + "grün\n".encode()


def stream_of(worker: Any) -> tuple[int, dict[str, list[str]], list[bytes]]:
    """A streamed response: its status, its headers, the pieces of its body."""
    tag, payload = worker.frame()
    assert tag == 3
    status = payload.uint()
    headers = {}
    for _ in range(payload.uint()):
        name = payload.text()
        headers[name] = [payload.text() for _ in range(payload.uint())]
    payload.end()
    pieces = []
    while True:
        tag, payload = worker.frame()
        if tag == 5:
            payload.end()
            return status, headers, pieces
        assert tag == 4
        pieces.append(payload.bytes())
        payload.end()


@pytest.mark.feature("stream")
def test_a_stream_is_sent_in_pieces_where_that_is_offered(start: Any, frame_of: Any) -> None:
    worker = start(ALL)
    worker.ready()
    for _ in range(2):
        worker.send(frame_of("http://h/stream"))
        assert stream_of(worker) == (
            200,
            {"Content-Type": ["text/plain"]},
            [b"one\n", b"\xff\n", "grün\n".encode()],
        )
    assert worker.ask("http://h/text")[0] == 200


@pytest.mark.feature("stream")
@pytest.mark.parametrize("offered", [{}, {"POOLPARTY_FEATURES": "ready,health-reply"}])
def test_a_stream_is_sent_whole_where_no_other_is_offered(start: Any, offered: dict[str, str]) -> None:
    worker = start(offered)
    if offered:
        worker.ready()
    assert worker.ask("http://h/stream") == (200, {"Content-Type": ["text/plain"]}, WHOLE)
    assert worker.ask("http://h/stream-nothing") == (200, {}, b"")


@pytest.mark.feature("stream")
def test_a_stream_of_nothing_is_an_empty_answer(start: Any) -> None:
    worker = start(ALL)
    worker.ready()
    assert worker.ask("http://h/stream-nothing") == (200, {}, b"")


@pytest.mark.feature("stream")
@pytest.mark.parametrize("offered", [{}, ALL])
def test_a_stream_that_fails_before_its_first_piece_is_answered_500(
    start: Any, offered: dict[str, str]
) -> None:
    worker = start(offered)
    if offered:
        worker.ready()
    assert worker.ask("http://h/stream-fail-first") == FAILURE
    assert worker.ask("http://h/text")[0] == 200
    assert "this one fails" in worker.leave()[1]


@pytest.mark.feature("stream")
def test_a_stream_that_fails_later_never_looks_whole(start: Any, frame_of: Any) -> None:
    """To the client it is an answer that broke off: the worker ends without ResponseEnd."""
    worker = start(ALL)
    worker.ready()
    worker.send(frame_of("http://h/stream?fail"), frame_of("http://h/text"))
    tags = [worker.frame()[0] for _ in range(4)]
    assert tags == [3, 4, 4, 4]
    assert worker.process.wait(20) == 1
    assert worker.says_nothing_more()
    assert "this one fails" in worker.leave()[1]


@pytest.mark.feature("stream")
def test_a_collected_stream_that_fails_is_answered_500(worker: Any) -> None:
    assert worker.ask("http://h/stream?fail") == FAILURE
    assert worker.ask("http://h/text")[0] == 200


# ---- Streams that nobody wants any more. /endless goes on until it is stopped, and then prints "closed".


@pytest.fixture
def endless(start: Any, frame_of: Any) -> Any:
    """A worker whose stream runs; more of it will come."""
    worker = start(ALL)
    worker.ready()
    worker.send(frame_of("http://h/endless"))
    assert worker.pieces(3) == [b"more\n"] * 3
    return worker


@pytest.mark.feature("stream-cancel")
def test_a_stream_that_is_not_wanted_any_more_is_ended_and_closed(endless: Any, frame_of: Any) -> None:
    for _ in range(2):
        endless.cancel_stream()
        assert endless.line_of_stdout() == b"closed\n"
        assert endless.ask("http://h/text")[0] == 200
        endless.send(frame_of("http://h/endless"))
        assert endless.pieces(1) == [b"more\n"]
    endless.cancel_stream()
    assert endless.leave() == (0, "")


@pytest.mark.feature("stream-cancel")
def test_what_stands_before_the_cancel_and_behind_it_is_answered_in_its_turn(
    endless: Any, frame_of: Any, health_check: bytes, stream_cancel: bytes
) -> None:
    worker = endless
    before = frame_of("http://h/echo?before", "POST", {}, b"." * 10000)
    # In two pieces, of which the first ends within a frame's size. A library may wait for the second, as the
    # server writes no part of a frame behind a stream. Together they fit the pipe: it may be busy writing.
    frames = [before, health_check, before, stream_cancel, frame_of("http://h/text"), stream_cancel, before]
    whole = b"".join(frames)
    cut = len(before) + len(health_check) + 2
    worker.send(whole[:cut])
    worker.send(whole[cut:])
    worker.read_to_the_end_of_the_stream()
    assert worker.response()[1]["Query"] == ["before"]
    assert worker.health() == (True, "")
    assert worker.response()[2] == b"." * 10000
    assert worker.response()[0] == 200
    assert worker.response()[1]["Query"] == ["before"]
    assert worker.leave() == (0, "")
    assert worker.says_nothing_more()


@pytest.mark.feature("stream-cancel")
def test_a_cancel_between_two_responses_means_nothing(
    start: Any, frame_of: Any, stream_cancel: bytes
) -> None:
    worker = start(ALL)
    worker.ready()
    worker.send(stream_cancel, frame_of("http://h/text"), stream_cancel)
    assert worker.response()[0] == 200
    worker.wait_until_read()
    worker.send(frame_of("http://h/stream"))
    assert len(stream_of(worker)[2]) == 3
    assert worker.leave() == (0, "")


@pytest.mark.feature("stream-cancel")
def test_a_stream_ends_with_the_server(endless: Any) -> None:
    endless.process.stdin.close()
    endless.process.stdin = None  # communicate() would flush it
    endless.read_to_the_end_of_the_stream()
    assert endless.leave() == (0, "")
    assert endless.says_nothing_more()


@pytest.mark.feature("stream-cancel")
def test_a_stream_whose_child_is_not_told_of_cancels_runs_on(start: Any, frame_of: Any) -> None:
    worker = start({"POOLPARTY_FEATURES": "ready,stream,stack"})
    assert "stream-cancel" not in worker.ready()
    worker.send(frame_of("http://h/endless"), frame_of("http://h/text"))
    assert worker.pieces(1000) == [b"more\n"] * 1000


# ---- Its own stack. /spin runs until the file is there.


@pytest.mark.feature("stack")
def test_a_running_worker_shows_its_stack_and_goes_on(
    start: Any, frame_of: Any, health_check: bytes, tmp_path: Path
) -> None:
    worker = start(ALL)
    worker.ready()
    worker.send(frame_of(f"http://h/spin?{tmp_path / 'stop'}"))
    assert worker.line_of_stdout() == b"spins\n"
    for _ in range(2):
        worker.process.send_signal(signal.SIGUSR1)
        assert "spin" in worker.stderr_up_to("spin")
    (tmp_path / "stop").touch()
    assert worker.response()[::2] == (200, b"stopped")
    worker.send(health_check)
    assert worker.health() == (True, "")


@pytest.mark.feature("stack")
def test_a_worker_that_waits_for_the_rest_of_a_request_is_not_disturbed(start: Any, frame_of: Any) -> None:
    worker = start(ALL)
    worker.ready()
    frame = frame_of("http://h/echo?x", "POST", {}, b"." * 100000)
    for cut in (2, 50000, len(frame)):
        worker.send(frame[:cut])
        worker.wait_until_read()
        worker.process.send_signal(signal.SIGUSR1)
        worker.send(frame[cut:])
        assert worker.response()[2] == b"." * 100000
    assert worker.leave()[0] == 0


def test_the_signal_is_left_alone_where_no_stack_is_offered(start: Any, language: Any) -> None:
    worker = start({"POOLPARTY_FEATURES": "ready"})
    worker.ready()
    assert worker.ask("http://h/text")[0] == 200
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{worker.process.pid}/status").read_text(), re.M)
    assert caught is not None
    if language.name not in CATCH_ALL:
        assert not int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1


CATCH_ALL = {"Ruby", "Go", "PHP", "R", "JavaScript"}
"""What these interpreters do with it by themselves."""


# ---- What stands beside the code.


def test_the_library_tells_its_version_and_has_a_page(language: Any, sdk: Path) -> None:
    import poolparty

    folder = sdk / language.folder
    sources = "".join(
        path.read_text() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"
    )
    assert re.search(rf"version.{{0,40}}{re.escape(poolparty.__version__)}", sources, re.IGNORECASE)
    assert 8 <= len((folder / "README.md").read_text().splitlines()) <= 60
