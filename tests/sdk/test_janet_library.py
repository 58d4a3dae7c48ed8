"""The Janet worker library in a child of its own."""

from __future__ import annotations

import os
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolparty.wire.frames import HTTPRequestFile, encode_request

FEATURES = {"POOLPARTY_FEATURES": "ready,health-reply,stream"}


@pytest.fixture
def serve(start_worker: Callable[..., Any], sdk: Path, tmp_path: Path, janet: str) -> Callable[..., Any]:
    """serve(source, environment): a worker that runs source, in which `poolparty` is imported."""

    def serve(source: str, environment: dict[str, str] | None = None) -> Any:
        program = tmp_path / "app.janet"
        program.write_text("(import poolparty)\n" + textwrap.dedent(source))
        return start_worker([janet, str(program)], {"JANET_PATH": str(sdk / "janet"), **(environment or {})})

    return serve


ECHO = """
(defn handler [req]
  (assert (buffer? (req :body)))
  (def names (sort (keys (req :headers))))
  @{:status 201
    :headers {"Method" (req :method) "Uri" (req :uri) "Remote-Address" (req :remote-address)
              "Names" names "Values" (map (req :headers) names)}
    :body (req :body)})
(defn main [&] (poolparty/serve handler))
"""


def test_a_request_reaches_the_handler_whole(serve: Any) -> None:
    worker = serve(ECHO)
    headers = dict(
        sorted({"Host": "example.org", "X-Long": "v" * 300, "X-Text": "grün", "N" * 200: ""}.items())
    )
    for body in (b"\x00\xff" * 500, b"", b"x" * 127, b"x" * 128):
        assert worker.ask("http://example.org/a/b%20c?x=1&y=?", "POST", headers, body) == (
            201,
            {
                "Method": ["POST"],
                "Uri": ["http://example.org/a/b%20c?x=1&y=?"],
                "Remote-Address": ["192.0.2.1:4711"],
                "Names": list(headers),
                "Values": list(headers.values()),
            },
            body,
        )


def test_a_body_in_pieces_may_wait_in_the_event_loop(serve: Any, frame_of: Any) -> None:
    worker = serve(
        """
        (defn pieces []
          (coro (yield "one") (ev/sleep 0.01) (yield "two")))
        (defn handler [req]
          {:status 202 :body (if (= (req :method) "PUT") ["a" "" @"bc"] (pieces))})
        (defn main [&] (poolparty/serve handler))
        """,
        FEATURES,
    )
    assert worker.ready() == ["health-reply", "stream"]
    for method, pieces in (("GET", [b"one", b"two"]), ("PUT", [b"a", b"bc"])):
        worker.send(frame_of("http://h/", method))
        assert worker.pieces(2) == pieces
        assert worker.frame()[0] == 5
    assert worker.leave() == (0, "")


def test_a_large_body_is_a_path_for_a_program_that_asks_for_it(serve: Any, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"large")
    request = HTTPRequestFile(b"@", b"http://h/up", b"PUT", [(b"Host", b"h")], os.fsencode(body), 5)
    worker = serve(
        """
        (defn handler [req]
          {:headers {"Method" (req :method) "Host" ((req :headers) "Host") "Size" (string (req :body-size))}
           :body (if (req :body) (req :body) (slurp (req :body-file)))})
        (defn main [&] (poolparty/serve handler :body-files true))
        """,
        {"POOLPARTY_FEATURES": "ready,health-reply,stream,body-file"},
    )
    assert worker.ready() == ["health-reply", "stream", "body-file"]
    for _ in range(2):
        worker.send(encode_request(request))
        headers = {"Method": ["PUT"], "Host": ["h"], "Size": ["5"]}
        assert worker.response() == (200, headers, b"large")
        assert worker.ask("http://h/", "PUT", {"Host": "h"}, b"small")[2] == b"small"
    assert worker.leave() == (0, "")


def test_other_programs_are_given_no_files(serve: Any) -> None:
    worker = serve(ECHO, {"POOLPARTY_FEATURES": "ready,body-file"})
    assert worker.ready() == []


@pytest.mark.parametrize("piece", ["7", "nil"])
def test_a_piece_that_is_none_is_explained(serve: Any, piece: str) -> None:
    worker = serve(f"(defn main [&] (poolparty/serve (fn [req] {{:body (coro (yield {piece}))}})))", FEATURES)
    worker.ready()
    assert worker.ask()[0] == 500
    assert f"a piece of a response's :body is a string or buffer, got {piece}" in worker.leave()[1]


def test_headers_that_come_again_are_the_same_and_each_request_has_its_own(serve: Any) -> None:
    worker = serve("""
        (defn main [&]
          (poolparty/serve
            (fn [request]
              (def headers (request :headers))
              (def seen (string/format "%q" (sort (pairs headers))))
              (def answer {:headers {"Seen" seen} :body (request :body)})
              (put headers "Mine" "changed")
              answer)))
    """)
    cookies = [{"Host": "h", "Accept": "*/*", "Cookie": f"id={n}"} for n in range(3)]
    for headers in [*cookies, *cookies, *cookies, *cookies]:
        first = worker.ask("http://h/a", "GET", headers)
        seen = first[1]["Seen"][0]
        assert f'"{headers["Cookie"]}"' in seen
        assert "Mine" not in seen
        # The same bytes of headers before a body that ends in the byte that an empty one is told by.
        assert worker.ask("http://h/b", "POST", headers, b"x\x00")[2] == b"x\x00"
        assert worker.ask("http://h/b", "POST", headers, b"\x00" * 5)[1:] == ({"Seen": [seen]}, b"\x00" * 5)
        assert worker.ask("http://h/c", "GET", headers)[1] == {"Seen": [seen]}


def test_more_kinds_of_headers_than_are_remembered(serve: Any) -> None:
    worker = serve("""
        (defn main [&]
          (poolparty/serve (fn [request] {:headers {"Cookie" ((request :headers) "Cookie")}})))
    """)
    for n in [*range(300), *range(300), *range(300)]:
        headers = {"Host": "h", "Accept": "*/*", "Cookie": f"id={n}"}
        assert worker.ask("http://h/", "GET", headers)[1] == {"Cookie": [f"id={n}"]}


@pytest.mark.parametrize("count", [0, 127, 128, 300])
def test_many_headers(serve: Any, count: int) -> None:
    headers = dict(sorted((f"X-{number}", str(number)) for number in range(count)))
    assert serve(ECHO).ask(headers=headers)[1]["Values"] == list(headers.values())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("@{:status 200 :headers {} :body \"ok!\"}", (200, {}, b"ok!")),
        ("{}", (200, {}, b"")),
        ("nil", (200, {}, b"")),
        ("{:status nil :headers nil :body nil}", (200, {}, b"")),
        ("{:status 404 :body @\"buffer\\xff\"}", (404, {}, b"buffer\xff")),
        ("{:body :keyword}", (200, {}, b"keyword")),
        ("{:headers {\"A\" \"b\" \"Set-Cookie\" [\"a=1\" \"b=2\"] \"None\" []}}",
         (200, {"A": ["b"], "Set-Cookie": ["a=1", "b=2"], "None": []}, b"")),
        ("{:headers @{:name :value \"B\" @\"b\" \"C\" @[\"c\" @\"d\"]}}",
         (200, {"name": ["value"], "B": ["b"], "C": ["c", "d"]}, b"")),
        ("{:status 599 :headers {(string/repeat \"A\" 128) (string/repeat \"v\" 200)}"
         " :body (string/repeat \"x\" 128)}",
         (599, {"A" * 128: ["v" * 200]}, b"x" * 128)),
        ("{:headers (tabseq [i :range [0 200]] (string i) (string i))}",
         (200, {str(i): [str(i)] for i in range(200)}, b"")),
        ("{:body (string/repeat \"x\" 16384)}", (200, {}, b"x" * 16384)),
    ],
)  # fmt: skip
def test_what_a_handler_may_return(serve: Any, answer: str, expected: Any) -> None:
    worker = serve(f"(defn main [&] (poolparty/serve (fn [request] {answer})))")
    assert worker.ask() == expected
    assert worker.ask() == expected


def test_headers_that_change_are_not_remembered(serve: Any) -> None:
    worker = serve("""
        (def mutable @["a"])
        (def buffer @"a")
        (var n 0)
        (defn main [&]
          (poolparty/serve
            (fn [request]
              (++ n)
              (put mutable 0 (string n))
              (buffer/clear buffer)
              (buffer/push buffer (string n))
              {:headers {"Array" mutable "Buffer" buffer "Tuple" [buffer] "String" (string n)}})))
    """)
    for n in range(1, 600):
        answer = worker.ask()[1]
        assert answer == {name: [str(n)] for name in ("Array", "Buffer", "Tuple", "String")}


def test_more_constant_headers_than_are_remembered(serve: Any) -> None:
    worker = serve("""
        (defn main [&]
          (poolparty/serve (fn [request] {:headers {"Uri" (request :uri) "Fixed" ["a" "b"]}})))
    """)
    for n in [*range(600), *range(600)]:
        assert worker.ask(f"http://h/{n}")[1] == {"Uri": [f"http://h/{n}"], "Fixed": ["a", "b"]}


FAILURE = (500, {"Content-Type": ["text/plain; charset=utf-8"]}, b"internal server error\n")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("7", "error: a handler returns a table or struct, got 7"),
        ("\"text\"", "error: a handler returns a table or struct"),
        ("{:status 199}", "error: a response's :status is an integer from 200 to 599, got 199"),
        ("{:status 600}", "error: a response's :status"),
        ("{:status 200.5}", "error: a response's :status"),
        ("{:headers \"A: b\"}", "error: a response's :headers are a table or struct"),
        ("{:headers {7 \"a\"}}", "error: a response header's name is a string, got 7"),
        ("{:headers {\"A\" 7}}", "error: the response header \"A\" is a string or a list of strings, got 7"),
        ("{:headers {\"A\" [\"b\" 7]}}", "error: the response header \"A\" is"),
        ("{:body 7}", "error: a response's :body is a string, a buffer or a fiber, got 7"),
        ("(error \"this one\")", "error: this one"),
        ("(error {:a 1})", "error: {:a 1}"),
    ],
)  # fmt: skip
def test_a_failing_handler_costs_its_request_only(serve: Any, answer: str, complaint: str) -> None:
    worker = serve(f"""
        (defn handler [request]
          (if (string/has-suffix? "/fail?a" (request :uri))
            {answer}
            {{:body "fine"}}))
        (defn main [&] (poolparty/serve handler))
    """)
    for _ in range(3):
        assert worker.ask("http://example.org/fail?a") == FAILURE
        assert worker.ask()[2] == b"fine"
    status, stderr = worker.leave()
    assert status == 0
    assert stderr.startswith("poolparty: GET \"http://example.org/fail?a\" failed\n" + complaint)  # fmt: skip
    assert stderr.count(complaint) == 3


def test_a_failing_request_loses_none_of_those_that_wait_behind_it(serve: Any, frame_of: Any) -> None:
    worker = serve("""
        (defn main [&]
          (poolparty/serve
            (fn [request] (if (= (request :method) "PUT") (error "no") {:body (request :uri)}))))
    """)
    worker.send(*(frame_of(f"http://h/{n}", "PUT" if n % 3 == 0 else "GET") for n in range(200)))
    answers = [worker.response()[2] for _ in range(200)]
    assert answers == [FAILURE[2] if n % 3 == 0 else f"http://h/{n}".encode() for n in range(200)]


def test_an_error_while_printing_the_trace_is_harmless(serve: Any) -> None:
    worker = serve("(defn main [&] (poolparty/serve (fn [request] (error (fiber/new (fn [] 1))))))")
    assert worker.ask() == FAILURE
    assert worker.ask() == FAILURE


def test_a_mebibyte_in_both_directions(serve: Any) -> None:
    body = bytes(range(256)) * 4096
    worker = serve("(defn main [&] (poolparty/serve (fn [request] {:body (request :body)})))")
    for _ in range(3):
        assert worker.ask(method="POST", body=body)[2] == body


def test_requests_that_arrive_together_are_answered_one_by_one(serve: Any, frame_of: Any) -> None:
    worker = serve(
        "(defn main [&] (poolparty/serve (fn [request] {:body (string (request :uri) (request :body))})))"
    )
    sizes = [0, 1, 5000, 70000, 0, 0, 3]
    worker.send(*(frame_of(f"http://h/{n}", "POST", {}, b"." * size) for n, size in enumerate(sizes)))
    assert [worker.response()[2] for _ in sizes] == [
        f"http://h/{n}".encode() + b"." * size for n, size in enumerate(sizes)
    ]


def test_a_request_that_arrives_byte_by_byte(serve: Any, frame_of: Any) -> None:
    worker = serve("(defn main [&] (poolparty/serve (fn [request] {:body (request :uri)})))")
    for byte in frame_of("http://h/slow"):
        worker.send(bytes([byte]))
    assert worker.response()[2] == b"http://h/slow"


def test_a_request_that_is_kept_stays_what_it_was(serve: Any) -> None:
    worker = serve("""
        (def kept @[])
        (defn handler [request]
          (array/push kept request)
          {:body (string/join (map |(string ($ :uri) ($ :body) (get-in $ [:headers "X"])) kept) " ")})
        (defn main [&] (poolparty/serve handler))
    """)
    worker.ask("http://h/1", "POST", {"X": "a"}, b"-")
    assert worker.ask("http://h/2", "POST", {"X": "b"}, b"+")[2] == b"http://h/1-a http://h/2+b"


def test_the_end_of_the_pipe_ends_serve_quietly(serve: Any) -> None:
    worker = serve('(defn main [&] (poolparty/serve (fn [request] {})) (print "after"))')
    worker.ask()
    stdout, stderr = worker.process.communicate(timeout=20)
    assert (worker.process.returncode, stdout, stderr) == (0, b"after\n", b"")


@pytest.mark.parametrize("missing", [3, -2])
def test_the_end_of_the_pipe_in_the_middle_of_a_request(serve: Any, frame_of: Any, missing: int) -> None:
    worker = serve("(defn main [&] (poolparty/serve (fn [request] {})))")
    worker.send(frame_of()[:missing])
    assert worker.leave() == (0, "")
    assert worker.says_nothing_more()


def test_an_unknown_request_ends_the_worker_with_a_word(serve: Any) -> None:
    worker = serve("(defn main [&] (poolparty/serve (fn [request] {})))")
    worker.send(b"\x01\x00\x00\x00\x09")
    status, stderr = worker.leave()
    assert status == 1
    assert "a request of a kind this library does not know (9)" in stderr


def test_ready_is_said_once_and_first_where_it_is_offered(serve: Any, health_check: bytes) -> None:
    worker = serve('(defn main [&] (poolparty/serve (fn [request] {:body "x"})))', FEATURES)
    assert worker.ready() == ["health-reply", "stream"]
    worker.send(health_check)
    assert worker.health() == (True, "")
    assert worker.ask()[2] == b"x"
    worker.leave()
    assert worker.says_nothing_more()


def test_ready_alone(serve: Any, health_check: bytes) -> None:
    worker = serve(
        '(defn main [&] (poolparty/serve (fn [request] {:body "x"})))', {"POOLPARTY_FEATURES": "ready"}
    )
    assert worker.ready() == []
    worker.send(health_check)
    assert worker.ask()[2] == b"x"


@pytest.mark.parametrize("offered", [{}, {"POOLPARTY_FEATURES": ""}, {"POOLPARTY_FEATURES": "health-reply"}])
def test_nothing_is_said_unasked_to_a_server_of_version_1(
    serve: Any, health_check: bytes, offered: dict[str, str]
) -> None:
    worker = serve("(defn main [&] (poolparty/serve (fn [request] {}) :health-check (fn [] 7)))", offered)
    worker.send(health_check, health_check)
    assert worker.ask()[0] == 200
    assert worker.leave() == (0, "")
    assert worker.says_nothing_more()


UNWELL = (
    '(defn main [&] (poolparty/serve (fn [request] {:body "x"}) :health-check (fn [] (error "no database"))))'
)


def test_a_failing_health_check_is_replied_and_the_worker_waits_for_its_end(
    serve: Any, health_check: bytes
) -> None:
    worker = serve(UNWELL, FEATURES)
    worker.ready()
    worker.send(health_check)
    assert worker.health() == (False, "no database")
    assert worker.ask()[2] == b"x"
    assert "the health check failed" in worker.leave()[1]


def test_a_health_checks_message_has_a_limit(serve: Any, health_check: bytes) -> None:
    worker = serve(UNWELL.replace('"no database"', '(string/repeat "x" 5000)'), FEATURES)
    worker.ready()
    worker.send(health_check)
    assert worker.health() == (False, "x" * 1000)


def test_a_failing_health_check_ends_the_worker_of_a_version_1_server(
    serve: Any, health_check: bytes
) -> None:
    worker = serve(UNWELL)
    worker.send(health_check)
    assert worker.process.wait(20) == 1
    assert "no database" in worker.leave()[1]


def test_what_is_printed_appears_at_once(serve: Any) -> None:
    worker = serve('(defn main [&] (poolparty/serve (fn [request] (print "seen") {})))')
    worker.ask()
    assert worker.line_of_stdout() == b"seen\n"


def test_files_of_the_programs_own_choice(serve: Any, frame_of: Any, tmp_path: Path) -> None:
    """:inf and :outf, as the original has them."""
    source, sink = tmp_path / "in", tmp_path / "out"
    source.write_bytes(frame_of("http://h/file"))
    worker = serve(f"""
        (defn main [&]
          (poolparty/serve (fn [request] {{:body (request :uri)}})
                           :inf (file/open "{source}" :rb) :outf (file/open "{sink}" :wb)))
    """)
    assert worker.leave() == (0, "")
    assert sink.read_bytes().endswith(b"\x0dhttp://h/file")


def test_answers_are_not_mixed_with_what_is_printed(serve: Any) -> None:
    worker = serve("(defn main [&] (setdyn :out stdout) (poolparty/serve (fn [request] {}) :outf stdout))")
    status, stderr = worker.leave()
    assert status == 1
    assert "server outf should not be the same as :out" in stderr


def test_a_handler_may_use_the_event_loop(serve: Any) -> None:
    worker = serve("""
        (defn handler [request]
          (def channel (ev/chan))
          (ev/go (fn [] (ev/sleep 0) (ev/give channel "from afar")))
          {:body (ev/take channel)})
        (defn main [&] (poolparty/serve handler))
    """)
    assert worker.ask()[2] == worker.ask()[2] == b"from afar"


def test_a_program_started_by_a_handler_gets_none_of_the_pipes(serve: Any, frame_of: Any) -> None:
    worker = serve("""
        (defn handler [request]
          (os/execute ["cat"] :p)  # reads its stdin to the end
          (def listing (os/spawn ["ls" "-l" "/proc/self/fd"] :p {:out :pipe}))
          (def body (ev/read (listing :out) :all))
          (os/proc-wait listing)
          {:body body})
        (defn main [&] (poolparty/serve handler))
    """)
    worker.send(frame_of(), frame_of())
    ours = [f"pipe:[{os.fstat(fd).st_ino}]" for fd in (worker.fd3, worker.process.stdin.fileno())]
    for _ in range(2):
        listed = worker.response()[2].decode()
        assert "/dev/null" in listed
        assert not [pipe for pipe in ours if pipe in listed]


def test_what_the_program_reads_from_stdin_is_nothing(serve: Any, frame_of: Any) -> None:
    worker = serve("(defn main [&] (poolparty/serve (fn [request] {:body (string (file/read stdin :all))})))")
    worker.send(frame_of(), frame_of())
    assert worker.response()[2] == worker.response()[2] == b""


def test_serve_outside_the_server_says_how_to_start_the_program(
    sdk: Path, tmp_path: Path, janet: str
) -> None:
    program = tmp_path / "app.janet"
    program.write_text("(import poolparty) (defn main [&] (poolparty/serve (fn [request] {})))")
    result = subprocess.run(
        [janet, str(program)],
        env={"JANET_PATH": str(sdk / "janet")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert (
        "unable to open descriptor 3 (it is not open): this program is started by the server" in result.stderr
    )
