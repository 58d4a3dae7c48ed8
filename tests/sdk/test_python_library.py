"""The Python worker library in a child of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FEATURES = {"POOLPARTY_FEATURES": "ready,health-reply,stream"}


@pytest.fixture
def serve(start_worker: Callable[..., Any], sdk: Path, tmp_path: Path) -> Callable[..., Any]:
    """serve(source, environment): a worker that runs source, in which `poolparty` is imported."""

    def serve(source: str, environment: dict[str, str] | None = None) -> Any:
        program = tmp_path / "app.py"
        program.write_text("import poolparty\n" + textwrap.dedent(source))
        environment = {"PYTHONPATH": str(sdk / "python"), **(environment or {})}
        return start_worker([sys.executable, str(program)], environment)

    return serve


ECHO = """
def handler(request):
    return poolparty.Response(
        201,
        {
            "Method": request.method, "Uri": request.uri, "Path": request.path, "Query": request.query,
            "Remote-Address": request.remote_address, "Names": list(request.headers),
            "Values": [request.headers[name] for name in request.headers],
        },
        request.body,
    )
poolparty.serve(handler)
"""


def test_a_request_reaches_the_handler_whole(serve: Any) -> None:
    worker = serve(ECHO)
    headers = {"Host": "example.org", "X-Long": "v" * 300, "X-Text": "grün", "N" * 200: ""}
    status, answer, body = worker.ask(
        "http://example.org/a/b%20c?x=1&y=?", "POST", headers, b"\x00\xff" * 500
    )
    assert status == 201
    assert answer == {
        "Method": ["POST"],
        "Uri": ["http://example.org/a/b%20c?x=1&y=?"],
        "Path": ["/a/b%20c"],
        "Query": ["x=1&y=?"],
        "Remote-Address": ["192.0.2.1:4711"],
        "Names": list(headers),
        "Values": list(headers.values()),
    }
    assert body == b"\x00\xff" * 500


def test_a_request_without_headers_query_or_body(serve: Any) -> None:
    _, answer, body = serve(ECHO).ask("http://example.org")
    assert (answer["Path"], answer["Query"], answer["Names"], body) == (["/"], [""], [], b"")


def test_headers_that_come_again_are_those_of_their_request(serve: Any) -> None:
    """They are recognised by their bytes; the body, behind them, may look like a part of them."""
    worker = serve(ECHO)
    for _ in range(2):
        for headers in ({"A": "1"}, {"A": "1", "B": ""}, {"A": "1", "B": "\0"}, {}):
            for body in (b"", b"\0", b"\1\0", b""):
                _, answer, echoed = worker.ask("http://h/", "POST", headers, body)
                assert (answer["Names"], answer["Values"]) == (list(headers), list(headers.values()))
                assert echoed == body


def test_headers_that_never_come_again(serve: Any) -> None:
    worker = serve(ECHO)
    for number in range(300):
        assert worker.ask(headers={"X": str(number)})[1]["Values"] == [str(number)]


@pytest.mark.parametrize("count", [127, 128, 300])
def test_many_headers(serve: Any, count: int) -> None:
    headers = {f"X-{number}": str(number) for number in range(count)}
    assert serve(ECHO).ask(headers=headers)[1]["Values"] == list(headers.values())


def test_header_lookup_ignores_case(serve: Any) -> None:
    worker = serve("""
        def handler(request):
            headers = request.headers
            assert headers["content-TYPE"] == headers.get("Content-Type") == "a/b"
            assert "CONTENT-type" in headers and "accept" not in headers
            assert headers.get("accept", "nothing") == "nothing"
            assert dict(headers) == {"Content-Type": "a/b", "X-Empty": ""} and len(headers) == 2
            assert headers["x-empty"] == headers["X-Empty"] == ""
            try:
                headers["Accept"]
            except KeyError as error:
                return repr(error)
        poolparty.serve(handler)
    """)
    assert worker.ask(headers={"Content-Type": "a/b", "X-Empty": ""})[2] == b"KeyError('Accept')"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("'grün'", (200, {"Content-Type": ["text/plain; charset=utf-8"]}, "grün".encode())),
        ("b'\\x00\\xff'", (200, {"Content-Type": ["application/octet-stream"]}, b"\x00\xff")),
        ("bytearray(b'ab')", (200, {"Content-Type": ["application/octet-stream"]}, b"ab")),
        ("''", (200, {"Content-Type": ["text/plain; charset=utf-8"]}, b"")),
        ("{}", (200, {}, b"")),
        ("{'status': 404, 'body': 'grün'}", (404, {}, "grün".encode())),
        ("{'headers': None, 'body': None}", (200, {}, b"")),
        ("{'headers': {'A': 'b', 'Set-Cookie': ['a=1', 'b=2'], 'None': []}}",
         (200, {"A": ["b"], "Set-Cookie": ["a=1", "b=2"], "None": []}, b"")),
        ("{'headers': {'T': ('a', 'b')}, 'body': memoryview(b'view')}", (200, {"T": ["a", "b"]}, b"view")),
        ("poolparty.Response(599, {'A' * 128: 'ü' * 100}, b'x' * 128)",
         (599, {"A" * 128: ["ü" * 100]}, b"x" * 128)),
        ("poolparty.Response(body=b'x' * 16384)", (200, {}, b"x" * 16384)),
        ("poolparty.Response(body=b'x' * 16383)", (200, {}, b"x" * 16383)),
        ("poolparty.Response(headers={str(i): str(i) for i in range(200)})",
         (200, {str(i): [str(i)] for i in range(200)}, b"")),
    ],
)  # fmt: skip
def test_what_a_handler_may_return(serve: Any, answer: str, expected: Any) -> None:
    assert serve(f"poolparty.serve(lambda request: {answer})").ask() == expected


FAILURE = (500, {"Content-Type": ["text/plain; charset=utf-8"]}, b"internal server error\n")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("None", "TypeError: a handler returns a Response, a dict, a str or bytes, not None"),
        ("7", "TypeError: a handler returns"),
        ("poolparty.Response('200')", "ValueError: a response's status is an int from 200 to 599, not '200'"),
        ("poolparty.Response(199)", "ValueError: a response's status"),
        ("poolparty.Response(600)", "ValueError: a response's status"),
        (
            "poolparty.Response(body=7)",
            "TypeError: a response's body is bytes, a str or an iterable of these, not 7",
        ),
        ("poolparty.Response(headers=['A'])", "TypeError: a response's headers are a mapping"),
        ("poolparty.Response(headers={7: 'a'})", "TypeError: a response header's name is a str, not 7"),
        (
            "poolparty.Response(headers={'A': 7})",
            "TypeError: the response header 'A' is a str or a list of str",
        ),
        ("poolparty.Response(headers={'A': ['b', 7]})", "TypeError: the response header 'A' is"),
        ("'\\ud800'", "UnicodeEncodeError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_failing_handler_costs_its_request_only(serve: Any, answer: str, complaint: str) -> None:
    worker = serve(f"""
        def handler(request):
            if request.path == "/fail":
                return {answer}
            return "fine"
        poolparty.serve(handler)
    """)
    assert worker.ask("http://example.org/fail?a") == FAILURE
    assert worker.ask()[2] == b"fine"
    status, stderr = worker.leave()
    assert status == 0
    assert stderr.startswith(
        "poolparty: GET 'http://example.org/fail?a' failed\nTraceback (most recent call last):"
    )
    assert complaint in stderr


def test_the_trace_of_a_failure_begins_in_the_program(serve: Any) -> None:
    worker = serve("""
        def handler(request):
            raise RuntimeError("this one")
        poolparty.serve(handler)
    """)
    worker.ask()
    _, stderr = worker.leave()
    assert "this one" in stderr
    assert "in serve" not in stderr


def test_a_closed_stderr_does_not_cost_the_answer(serve: Any) -> None:
    worker = serve("import sys; sys.stderr.close(); poolparty.serve(lambda request: 1 / 0)")
    assert worker.ask() == FAILURE
    assert worker.ask() == FAILURE


def test_a_mebibyte_in_both_directions(serve: Any) -> None:
    body = bytes(range(256)) * 4096
    worker = serve("poolparty.serve(lambda request: request.body)")
    for _ in range(3):
        assert worker.ask(method="POST", body=body)[2] == body


def test_requests_that_arrive_together_are_answered_one_by_one(serve: Any, frame_of: Any) -> None:
    worker = serve("poolparty.serve(lambda request: request.path.encode() + request.body)")
    sizes = [0, 1, 5000, 70000, 0, 0, 3]
    worker.send(*(frame_of(f"http://h/{n}", "POST", {}, b"." * size) for n, size in enumerate(sizes)))
    assert [worker.response()[2] for _ in sizes] == [
        f"/{n}".encode() + b"." * size for n, size in enumerate(sizes)
    ]


def test_a_request_that_arrives_byte_by_byte(serve: Any, frame_of: Any) -> None:
    worker = serve("poolparty.serve(lambda request: request.uri)")
    for byte in frame_of("http://h/slow"):
        worker.send(bytes([byte]))
    assert worker.response()[2] == b"http://h/slow"


def test_a_request_that_is_kept_stays_what_it_was(serve: Any, frame_of: Any) -> None:
    worker = serve("""
        kept = []
        def handler(request):
            kept.append(request)
            return " ".join(each.path + each.headers["X"] for each in kept)
        poolparty.serve(handler)
    """)
    worker.send(frame_of("http://h/1", headers={"X": "a"}), frame_of("http://h/2", headers={"X": "b"}))
    worker.response()
    assert worker.response()[2] == b"/1a /2b"
    assert worker.ask("http://h/3", headers={"X": "c"})[2] == b"/1a /2b /3c"


def test_the_end_of_the_pipe_ends_serve_quietly(serve: Any) -> None:
    worker = serve("poolparty.serve(lambda request: 'x'); print('after')")
    worker.ask()
    stdout, stderr = worker.process.communicate(timeout=20)
    assert (worker.process.returncode, stdout, stderr) == (0, b"after\n", b"")


def test_the_end_of_the_pipe_in_the_middle_of_a_request(serve: Any, frame_of: Any) -> None:
    worker = serve("poolparty.serve(lambda request: 'x')")
    worker.send(frame_of()[:-3])
    assert worker.leave() == (0, "")
    assert worker.says_nothing_more()


def test_a_server_that_has_gone_is_no_error(serve: Any, frame_of: Any) -> None:
    worker = serve("poolparty.serve(lambda request: 'x')")
    worker.ask()
    os.dup2(os.open(os.devnull, os.O_RDONLY), worker.fd3)
    worker.send(frame_of())
    assert worker.leave() == (0, "")


def test_sys_exit_in_a_handler_ends_the_worker(serve: Any, frame_of: Any) -> None:
    worker = serve("import sys; poolparty.serve(lambda request: sys.exit(7))")
    worker.send(frame_of())
    assert worker.process.wait(20) == 7
    assert worker.says_nothing_more()


def test_an_unknown_request_ends_the_worker_with_a_word(serve: Any) -> None:
    worker = serve("poolparty.serve(lambda request: 'x')")
    worker.send(b"\x01\x00\x00\x00\x09")
    status, stderr = worker.leave()
    assert status == 1
    assert stderr == "poolparty: a request of a kind this library does not know (9)\n"


def test_ready_is_said_once_and_first_where_it_is_offered(serve: Any, health_check: bytes) -> None:
    worker = serve("poolparty.serve(lambda request: 'x')", FEATURES)
    assert worker.ready() == ["health-reply", "stream"]
    worker.send(health_check)
    assert worker.health() == (True, "")
    assert worker.ask()[2] == b"x"
    worker.leave()
    assert worker.says_nothing_more()


def test_ready_alone(serve: Any, health_check: bytes) -> None:
    worker = serve("poolparty.serve(lambda request: 'x')", {"POOLPARTY_FEATURES": "ready"})
    assert worker.ready() == []
    worker.send(health_check)
    assert worker.ask()[2] == b"x"


@pytest.mark.parametrize("offered", [{}, {"POOLPARTY_FEATURES": ""}, {"POOLPARTY_FEATURES": "health-reply"}])
def test_nothing_is_said_unasked_to_a_server_of_version_1(
    serve: Any, health_check: bytes, offered: dict[str, str]
) -> None:
    worker = serve("poolparty.serve(lambda request: 'x', health_check=lambda: None)", offered)
    worker.send(health_check, health_check)
    assert worker.ask()[2] == b"x"
    assert worker.leave() == (0, "")
    assert worker.says_nothing_more()


def test_a_failing_health_check_is_replied_and_the_worker_waits_for_its_end(
    serve: Any, health_check: bytes
) -> None:
    worker = serve(
        """
        def unwell():
            raise RuntimeError("no database")
        poolparty.serve(lambda request: 'x', health_check=unwell)
        """,
        FEATURES,
    )
    worker.ready()
    worker.send(health_check)
    assert worker.health() == (False, "RuntimeError: no database")
    assert worker.ask()[2] == b"x"
    _, stderr = worker.leave()
    assert "the health check failed\n" in stderr
    assert "RuntimeError: no database" in stderr


def test_a_health_checks_message_has_a_limit_and_is_utf_8(serve: Any, health_check: bytes) -> None:
    worker = serve(
        """
        def unwell():
            raise RuntimeError("\\udcff" + "x" * 5000)
        poolparty.serve(lambda request: 'x', health_check=unwell)
        """,
        FEATURES,
    )
    worker.ready()
    worker.send(health_check)
    ok, message = worker.health()
    assert not ok
    assert message.startswith("RuntimeError: \\udcffxxx")
    assert len(message) == 1000


def test_a_failing_health_check_ends_the_worker_of_a_version_1_server(
    serve: Any, health_check: bytes
) -> None:
    worker = serve("poolparty.serve(lambda request: 'x', health_check=lambda: 1 / 0)")
    worker.send(health_check)
    assert worker.process.wait(20) == 1
    assert "ZeroDivisionError" in worker.leave()[1]


def test_a_program_started_by_a_handler_gets_none_of_the_pipes(serve: Any, frame_of: Any) -> None:
    worker = serve("""
        import os, subprocess
        def handler(request):
            os.system("cat")  # reads its stdin to the end
            listed = subprocess.run(["ls", "-l", "/proc/self/fd"], stdout=subprocess.PIPE, close_fds=False)
            return str(listed.stdout.count(b"pipe:") - 2)  # less stdout, which we made, and stderr
        poolparty.serve(handler)
    """)
    worker.send(frame_of(), frame_of())
    assert worker.response()[2] == worker.response()[2] == b"0"


def test_what_the_program_reads_from_stdin_is_nothing(serve: Any, frame_of: Any) -> None:
    worker = serve("import sys; poolparty.serve(lambda request: repr(sys.stdin.read()))")
    worker.send(frame_of(), frame_of())
    assert worker.response()[2] == worker.response()[2] == b"''"


def test_what_is_printed_appears_at_once(serve: Any) -> None:
    worker = serve("""
        def handler(request):
            print("seen", request.path)
            return ""
        poolparty.serve(handler)
    """)
    worker.ask("http://h/a")
    assert worker.line_of_stdout() == b"seen /a\n"


def test_an_interrupt_is_for_the_server_and_not_inherited(serve: Any) -> None:
    worker = serve("""
        import os, signal, subprocess, sys
        def handler(request):
            os.kill(os.getpid(), signal.SIGINT)
            show = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
            return subprocess.run([sys.executable, "-c", show], stdout=subprocess.PIPE).stdout
        poolparty.serve(handler)
    """)
    assert worker.ask()[2] == b"True\n"
    assert worker.leave() == (0, "")


def test_sigterm_ends_the_worker_at_once(serve: Any) -> None:
    worker = serve("poolparty.serve(lambda request: 'x')")
    worker.ask()
    worker.process.terminate()
    assert worker.process.wait(20) == -15
    assert worker.leave()[1] == ""


def test_serve_outside_the_server_says_how_to_start_the_program(sdk: Path, tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text("import poolparty; poolparty.serve(print)")
    result = subprocess.run(
        [sys.executable, str(program)],
        env={"PYTHONPATH": str(sdk / "python")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "descriptors 0 and 3 are not open" in result.stderr
    assert f"poolparty -- {sys.executable} {program}" in result.stderr


def test_a_request_made_by_hand_tries_a_handler_without_a_server(checkout: Path) -> None:
    from poolparty.sdk.python.poolparty import Request

    request = Request("POST", "http://h/a?b=c", {"X-Y": "z"}, b"body")
    assert (request.method, request.path, request.query, request.body) == ("POST", "/a", "b=c", b"body")
    assert request.headers["x-y"] == "z"
    assert repr(request) == "<Request POST http://h/a?b=c>"
    with pytest.raises(AttributeError, match="a Request has no 'cookies'"):
        _ = request.cookies  # type: ignore[attr-defined]


def test_the_whole_package_gives_the_library_too(start_worker: Any, checkout: Path, tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text("import poolparty; poolparty.serve(lambda request: poolparty.Response(201))")
    assert start_worker([sys.executable, str(program)], {"PYTHONPATH": str(checkout)}).ask()[0] == 201


# Modules that an import must not bring along: each costs every child's start a millisecond or more.
HEAVY = {"collections", "dataclasses", "enum", "functools", "http", "inspect", "json", "logging", "re"}
HEAVY |= {"selectors", "signal", "socket", "subprocess", "threading", "traceback", "typing", "urllib"}


@pytest.mark.parametrize("folder", ["poolparty/sdk/python", "."])
def test_the_import_brings_nothing_heavy_along(checkout: Path, tmp_path: Path, folder: str) -> None:
    """The budget of 15 ms, as a fact that does not depend on the machine's load."""
    show = "import sys; old = set(sys.modules); from poolparty import serve; print(*set(sys.modules) - old)"
    result = subprocess.run(
        [sys.executable, "-c", show],
        env={"PYTHONPATH": str(checkout / folder)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not HEAVY & set(result.stdout.split())
    assert len(result.stdout.split()) <= 6


def test_the_import_takes_under_15_milliseconds(sdk: Path) -> None:
    show = "import time; t = time.perf_counter(); import poolparty; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", show]
    environment = {"PYTHONPATH": str(sdk / "python")}
    times = [float(subprocess.check_output(command, env=environment, text=True)) for _ in range(5)]
    assert min(times) < 0.015


def test_the_source_is_python_3_8(sdk: Path) -> None:
    import ast

    source = (sdk / "python" / "poolparty" / "__init__.py").read_text()
    ast.parse(source, feature_version=(3, 8))
