"""What is special in the library for Node: promises, and listeners of the http module such as Express's."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.only("JavaScript")

FAILURE = (500, {"Content-Type": ["text/plain; charset=utf-8"]}, b"internal server error\n")
ALL = {"POOLPARTY_FEATURES": "ready,health-reply,stream"}


@pytest.fixture
def serve(language: Any, start_program: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """serve(source, environment={}): a worker that runs the source, in which `poolparty` is required."""

    def serve(source: str, environment: dict[str, str] | None = None) -> Any:
        program = tmp_path / "app.js"
        program.write_text('const poolparty = require("poolparty");\n' + textwrap.dedent(source))
        return start_program(program, environment)

    return serve


def test_requests_wait_for_the_promise_of_the_one_before(serve: Any, frame_of: Any) -> None:
    worker = serve("""
        const sleep = require("timers/promises").setTimeout;
        let running = 0;
        poolparty.serve(async (request) => {
          running++;
          await sleep(Number(request.query));
          return `${request.query} ${running--}`;
        });
    """)
    worker.send(*(frame_of(f"http://h/?{ms}") for ms in (30, 0, 10)))
    assert [worker.response()[2] for _ in range(3)] == [b"30 1", b"0 1", b"10 1"]


@pytest.mark.parametrize("reason", ["new Error('this one')", "'this one'", "{ this: 'one' }", "undefined"])
def test_a_broken_promise_costs_its_request_only(serve: Any, reason: str) -> None:
    worker = serve(f"""
        poolparty.serve((request) => request.path === "/fail" ? Promise.reject({reason}) : "fine");
    """)
    assert worker.ask("http://h/fail") == FAILURE
    assert worker.ask("http://h/")[2] == b"fine"
    assert "poolparty: GET 'http://h/fail' failed" in worker.leave()[1]


def test_timers_run_between_requests(serve: Any) -> None:
    worker = serve("""
        let ticks = 0;
        setInterval(() => { if (++ticks === 3) console.log("three"); }, 1);
        poolparty.serve(() => "fine");
    """)
    assert worker.ask()[2] == b"fine"
    assert worker.line_of_stdout() == b"three\n"


def test_a_timer_of_the_program_does_not_keep_it(serve: Any) -> None:
    worker = serve('setInterval(() => {}, 1000); poolparty.serve(() => "fine");')
    worker.ask()
    assert worker.leave() == (0, "")


def test_the_promise_of_serve_is_kept_at_the_end_of_the_pipe(serve: Any) -> None:
    worker = serve("""
        const sleep = require("timers/promises").setTimeout;
        poolparty.serve(() => "fine").then(() => sleep(1)).then(() => console.log("closed"));
    """)
    worker.ask()
    stdout, stderr = worker.process.communicate(timeout=20)
    assert (worker.process.returncode, stdout, stderr) == (0, b"closed\n", b"")


def test_a_health_check_may_be_a_promise(serve: Any, health_check: bytes) -> None:
    worker = serve('poolparty.serve(() => "x", async () => { throw new Error("no database"); });', ALL)
    worker.ready()
    worker.send(health_check)
    assert worker.health() == (False, "Error: no database")
    assert worker.ask()[2] == b"x"


def test_a_fetch_response_is_an_answer(serve: Any) -> None:
    worker = serve("""
        poolparty.serve(() => {
          const headers = new Headers([["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"], ["X-One", "1"]]);
          return new Response("body", { status: 404, headers });
        });
    """)
    status, headers, body = worker.ask()
    assert (status, body) == (404, b"body")
    assert headers["set-cookie"] == ["a=1", "b=2"]
    assert headers["x-one"] == ["1"]


def test_a_file_is_a_body(serve: Any, frame_of: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789" * 20_000)
    worker = serve(
        f'poolparty.serve(() => ({{ body: require("fs").createReadStream("{tmp_path}/file") }}));', ALL
    )
    worker.ready()
    worker.send(frame_of())
    assert worker.frame()[0] == 3
    body = b""
    while (frame := worker.frame())[0] == 4:
        body += frame[1].bytes()
    assert frame[0] == 5
    assert body == b"0123456789" * 20_000


CANCELS = {"POOLPARTY_FEATURES": "ready,stream,stream-cancel"}


@pytest.mark.parametrize(
    ("waits_for", "printed"),
    [
        ('once(request.signal, "abort")', b"closed true\n"),
        ("new Promise((resolve) => setTimeout(resolve, 50))", b"closed true\n"),
        ("new Promise(() => {})", None),
    ],
)
def test_a_body_that_waits_is_ended_when_its_client_has_left(
    serve: Any, frame_of: Any, waits_for: str, printed: bytes | None
) -> None:
    worker = serve(
        """
        const { once } = require("events");
        async function* events(request) {
          try {
            yield "data";
            await WAITS_FOR;
          } finally {
            console.log("closed", request.signal.aborted);
          }
        }
        poolparty.serve((request) => (request.query ? "text" : { body: events(request) }));
        """.replace("WAITS_FOR", waits_for),
        CANCELS,
    )
    worker.ready()
    for _ in range(2):
        worker.send(frame_of("http://h/"))
        assert worker.pieces(1) == [b"data"]
        worker.cancel_stream()
        assert worker.ask("http://h/?text")[2] == b"text"
        if printed is not None:
            assert worker.line_of_stdout() == printed
    assert worker.leave() == (0, "")


def test_a_stream_of_nodes_is_destroyed_when_its_client_has_left(serve: Any, frame_of: Any) -> None:
    worker = serve(
        """
        const { Readable } = require("stream");
        poolparty.serve(() => {
          const body = new Readable({ read() {} });
          body.push("data");
          body.on("close", () => console.log("closed"));
          return { body };
        });
        """,
        CANCELS,
    )
    worker.ready()
    worker.send(frame_of("http://h/"))
    assert worker.pieces(1) == [b"data"]
    worker.cancel_stream()
    assert worker.line_of_stdout() == b"closed\n"
    assert worker.leave() == (0, "")


def test_headers_and_query_as_objects(serve: Any) -> None:
    worker = serve("""
        poolparty.serve((request) => {
          request.headers.set("X-Made", "here");
          const { headers, searchParams } = request;
          return JSON.stringify([headers, headers.get("x-made"), searchParams.getAll("a")]);
        });
    """)
    body = worker.ask("http://h/?a=1&a=%C3%BC", headers={"Host": "h"})[2]
    assert json.loads(body) == [{"Host": "h", "X-Made": "here"}, "here", ["1", "ü"]]


def test_a_request_made_by_hand_tries_a_handler_without_a_server(serve: Any) -> None:
    worker = serve("""
        const handler = ({ method, path, headers, body }) =>
          `${method} ${path} ${headers.get("x-y")} ${body}`;
        const made = { url: "http://h/a?b", method: "PUT", headers: { "X-Y": "z" }, body: "text" };
        console.log(handler(new poolparty.Request(made)));
        poolparty.serve(handler);
    """)
    assert worker.line_of_stdout() == b"PUT /a z text\n"


# ---- Listeners of the http module.

LISTENER = """
    const { pipeline, Readable } = require("stream");
    const listener = (req, res) => {
      switch (req.url.split("?")[0]) {
        case "/echo": {
          const chunks = [];
          req.on("data", (chunk) => chunks.push(chunk));
          req.on("end", () => {
            const { url, headers, socket } = req;
            const made = { "X-Url": url, "X-Host": headers.host, "X-Peer": socket.remoteAddress };
            res.writeHead(201, "Made", made);
            res.end(Buffer.concat(chunks));
          });
          return;
        }
        case "/cookies":
          res.setHeader("Set-Cookie", ["a=1", "b=2"]);
          res.setHeader("Content-Length", 2);
          return res.end("ok");
        case "/pieces":
          res.write("one\\n");
          return setTimeout(() => { res.write("two\\n"); setTimeout(() => res.end("three\\n"), 5); }, 5);
        case "/at-once":
          res.write("one\\n");
          res.write("two\\n");
          return res.end();
        case "/pipe":
          return pipeline(Readable.from(["a", "b"].map((text) => text.repeat(100000))), res, () => {});
        case "/chunked":
          res.writeHead(200, { "Transfer-Encoding": "chunked" });
          return res.end("body");
        case "/nothing":
          res.statusCode = 204;
          return res.end();
        case "/destroyed":
          return res.destroy();
        case "/half":
          res.write("half");
          return setTimeout(() => res.destroy(new Error("no more")), 5);
        case "/rejects":
          return Promise.reject(new Error("this one"));
        default:
          throw new Error("no such page");
      }
    };
    poolparty.serve(poolparty.http(listener));
"""


def test_a_listener_is_given_the_request(serve: Any) -> None:
    worker = serve(LISTENER)
    for body in (b"", b"text", b"\x00\xff" * 200_000):
        status, headers, answer = worker.ask("http://h:81/echo?a=b", "POST", {"Host": "h:81"}, body)
        assert (status, answer) == (201, body)
        assert headers == {"X-Url": ["/echo?a=b"], "X-Host": ["h:81"], "X-Peer": ["192.0.2.1"]}


def test_a_listeners_headers_are_those_of_its_answer(serve: Any) -> None:
    worker = serve(LISTENER)
    assert worker.ask("http://h/cookies") == (200, {"Set-Cookie": ["a=1", "b=2"]}, b"ok")
    assert worker.ask("http://h/cookies", "HEAD") == (
        200,
        {"Set-Cookie": ["a=1", "b=2"], "Content-Length": ["2"]},
        b"",
    )
    assert worker.ask("http://h/nothing") == (204, {}, b"")
    assert worker.ask("http://h/chunked") == (200, {}, b"body")


def test_what_a_listener_writes_is_collected_where_no_stream_is_offered(serve: Any) -> None:
    worker = serve(LISTENER)
    assert worker.ask("http://h/pieces")[2] == b"one\ntwo\nthree\n"
    assert worker.ask("http://h/at-once")[2] == b"one\ntwo\n"
    assert worker.ask("http://h/pipe")[2] == b"a" * 100_000 + b"b" * 100_000


def test_what_a_listener_writes_over_time_is_a_stream_where_that_is_offered(
    serve: Any, frame_of: Any
) -> None:
    worker = serve(LISTENER, ALL)
    worker.ready()
    worker.send(frame_of("http://h/pieces"))
    tags, bodies = [], []
    while not tags or tags[-1] != 5:
        tag, payload = worker.frame()
        tags.append(tag)
        if tag == 4:
            bodies.append(payload.bytes())
    assert tags == [3, 4, 4, 4, 5]
    assert bodies == [b"one\n", b"two\n", b"three\n"]
    assert worker.ask("http://h/at-once")[2] == b"one\ntwo\n"


def test_a_listener_learns_that_its_client_has_left(serve: Any, frame_of: Any) -> None:
    worker = serve(
        """
        const listener = (req, res) => {
          res.setHeader("Content-Length", 1000000);
          res.write("data");
          const timer = setInterval(() => res.write("data"), 5);
          req.on("close", () => console.log("req", res.writableEnded));
          res.on("close", () => {
            clearInterval(timer);
            console.log("res", res.writableEnded);
          });
        };
        poolparty.serve(poolparty.http(listener));
        """,
        CANCELS,
    )
    worker.ready()
    for _ in range(2):
        worker.send(frame_of("http://h/"))
        tag, payload = worker.frame()
        assert (tag, b"Content-Length" in payload.data) == (3, True)
        assert worker.pieces(2) == [b"data"] * 2
        worker.cancel_stream()
        assert {worker.line_of_stdout(), worker.line_of_stdout()} == {b"req false\n", b"res false\n"}
    assert worker.leave() == (0, "")


@pytest.mark.parametrize("path", ["destroyed", "rejects", "unknown"])
def test_a_listener_that_fails_before_its_answer_costs_its_request_only(serve: Any, path: str) -> None:
    worker = serve(LISTENER)
    assert worker.ask(f"http://h/{path}") == FAILURE
    assert worker.ask("http://h/nothing")[0] == 204
    assert worker.leave()[0] == 0


def test_a_listeners_answer_that_breaks_off_is_a_failure(serve: Any) -> None:
    worker = serve(LISTENER)
    assert worker.ask("http://h/half") == FAILURE
    assert worker.ask("http://h/nothing")[0] == 204


def test_a_listeners_stream_that_breaks_off_never_looks_whole(serve: Any, frame_of: Any) -> None:
    worker = serve(LISTENER, ALL)
    worker.ready()
    worker.send(frame_of("http://h/half"))
    assert [worker.frame()[0] for _ in range(2)] == [3, 4]
    assert worker.process.wait(20) == 1
    assert worker.says_nothing_more()


@pytest.fixture
def express(
    language: Any, interpreter: str, needs: Any, start_program: Callable[..., Any], checkout: Path, sdk: Path
) -> Any:
    # Debian's Node looks for Debian's modules by itself; others are told.
    path = f"{sdk / 'node'}:/usr/share/nodejs"
    needs("Express", "env", f"NODE_PATH={path}", interpreter, "-e", 'require("express")')
    return start_program(checkout / "examples" / "express" / "app.js", {"NODE_PATH": path})


def test_express_answers(express: Any) -> None:
    status, headers, body = express.ask("http://h/", headers={"Host": "h"})
    assert (status, body) == (200, b"Hello from Express!\n")
    assert headers["Content-Type"] == ["text/plain; charset=utf-8"]
    etag = headers["ETag"][0]
    assert express.ask("http://h/", headers={"If-None-Match": etag})[0] == 304
    body = express.ask("http://h/users/gr%C3%BCn?a=1", headers={"Host": "h"})[2]
    assert json.loads(body) == {"name": "grün", "query": {"a": "1"}, "ip": "192.0.2.1"}
    assert express.ask("http://h/nowhere")[0] == 404


def test_express_reads_bodies(express: Any) -> None:
    body = json.dumps({"numbers": list(range(10_000))}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    assert json.loads(express.ask("http://h/sum", "POST", headers, body)[2]) == {"sum": 49_995_000}
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": "8"}
    status, answer, _ = express.ask("http://h/form", "POST", headers, b"name=Ada")
    assert (status, answer["Location"]) == (302, ["/"])
    assert answer["Set-Cookie"] == ["name=Ada; Path=/", "seen=yes; Path=/"]


def test_express_writes_over_time_and_serves_files(express: Any, checkout: Path) -> None:
    assert express.ask("http://h/count")[2] == b"1\n2\n3\n"
    source = (checkout / "examples" / "express" / "app.js").read_bytes()
    assert express.ask("http://h/source/app.js")[2] == source
    status, headers, body = express.ask("http://h/source/app.js", headers={"Range": "bytes=0-11"})
    assert (status, body) == (206, source[:12])
    assert headers["Content-Range"] == [f"bytes 0-11/{len(source)}"]


def test_expresss_own_error_page_is_the_answer(express: Any) -> None:
    status, _, body = express.ask("http://h/error")
    assert status == 500
    assert b"this page always fails" in body
    assert express.ask("http://h/")[0] == 200
