"""What a worker promises, one row a promise, in the order in which a library grows.

A check gets the Bench, talks to a worker, and returns; Failed says what is wrong, Skipped why it could not be
tried. Rows marked `advice` are what a good library does and the server can live without. What is asked of any
application is asked first; rows marked `echo` need the echo application (docs/writing-a-worker.md), whose
answers show what has reached the handler.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from poolparty.check.diagnosis import shown
from poolparty.check.worker import Failed, Worker
from poolparty.errors import FrameError, PoolpartyError
from poolparty.wire.frames import (
    HEALTH_CHECK,
    STREAM_CANCEL,
    HealthReply,
    HTTPRequest,
    HTTPRequestFile,
    HTTPResponse,
    Ready,
    decode_response,
    encode_request,
)

VECTORS = Path(__file__).resolve().parent.parent / "sdk" / "vectors.json"
"""The protocol's vectors, as data that a library's own tests can use in any language."""

VERSION_1 = None
FEATURES = "ready,health-reply"
STREAMS = f"{FEATURES},stream"
CANCELS = f"{STREAMS},stream-cancel"
FILES = f"{FEATURES},body-file"
STACKS = f"{FEATURES},stack"

SOON = 1.0
"""Seconds in which a small application has said Ready; one that has not is given all the time there is."""

FIRST_PAGE = HTTPRequest(b"192.0.2.1:4711", b"http://localhost/", b"GET", [(b"Host", b"localhost")], b"")


class Skipped(PoolpartyError):
    """The check has nothing to try on this worker; the text says why."""


@dataclass(slots=True)
class Bench:
    """The command under examination, and the worker that runs it now."""

    command: Sequence[str]
    echo: bool
    patience: float
    _worker: Worker | None = None
    _ready: Ready | None = None

    def worker(self, features: str | None = VERSION_1) -> Worker:
        """A worker that has read its first health check: the one of the check before, if it is well."""
        worker = self._worker
        if worker is None or worker.features != features or worker.has_ended():
            worker, self._ready = self.started(features)
        return worker

    def fresh(self, features: str | None = VERSION_1) -> Worker:
        """A worker that nothing was said to."""
        self.drop()
        self._worker = Worker(self.command, features, self.patience)
        return self._worker

    def started(self, features: str | None) -> tuple[Worker, Ready | None]:
        """A new worker as the server would have it, and what its Ready says, if it said it."""
        worker = self.fresh(features)
        ready = None
        if features is not None:
            ready, before = _ready_of(worker, SOON)
            if ready is not None and not before:
                # Was it slow to start, or did it wait for a request? Only one that is left alone tells.
                worker = self.fresh(features)
                ready, before = _ready_of(worker, self.patience)
                if not before:
                    raise Failed(
                        "Ready came only when the first health check had been written: say it when the "
                        "application has loaded, before descriptor 0 is read"
                    )
        worker.write_and_wait(HEALTH_CHECK)
        if ready is not None and "health-reply" in ready.features and "health-reply" in (features or ""):
            reply(worker)
        return worker, ready

    def ready(self, features: str = FEATURES) -> Ready:
        """What the worker's Ready names. Skipped: it knows version 1 only."""
        self.worker(features)
        if self._ready is None:
            raise Skipped("it says no Ready: it knows version 1 only, and works without features")
        return self._ready

    def drop(self) -> Worker | None:
        """End the worker; it is returned for its last words."""
        worker, self._worker, self._ready = self._worker, None, None
        if worker is not None:
            worker.close()
        return worker

    # --- asking --------------------------------------------------------------------------------------------

    def ask(self, worker: Worker, name: str, request: HTTPRequest) -> HTTPResponse:
        """Send a request and read its answer; with the echo application, see that all of it arrived."""
        worker.write(encode_request(request))
        return self.heard(worker, name, request)

    def heard(self, worker: Worker, name: str, request: HTTPRequest) -> HTTPResponse:
        """Read the answer to a request that was sent."""
        try:
            response = worker.answer("the answer")
            if self.echo:
                compare(request, response)
        except Failed as error:
            raise Failed(f"{name}: {error}") from None
        return response


def _ready_of(worker: Worker, patience: float) -> tuple[Ready | None, bool]:
    """The worker's Ready, and whether it came while nothing had been written; None if it says none."""
    before = worker.has_message(patience)
    if not before:
        worker.write_and_wait(HEALTH_CHECK)
        # A second one is read when all that the first one led to is done.
        worker.settle()
        if not worker.has_message(0):
            return None, False
    message = worker.message("Ready")
    if not isinstance(message, Ready):
        raise Failed(
            f"its first message is {_kind(message)}: the first is Ready, or, where no health check was "
            "announced, "
            "nothing is written before a request"
        )
    return message, before


def reply(worker: Worker) -> None:
    """Read the reply to a health check. Failed: it is none, or says that the worker is unwell."""
    message = worker.message("the HealthReply")
    if not isinstance(message, HealthReply):
        raise Failed(
            f"its Ready named health-reply, but {_kind(message)} was written where a HealthReply was due: "
            "each health check is answered, in its turn"
        )
    if not message.ok:
        raise Failed(f"its health check says that it is unwell: {message.message!r}")


def _kind(message: object) -> str:
    name = type(message).__name__
    return f"{'an' if name.startswith('HTTP') else 'a'} {name}"


def quiet(worker: Worker) -> None:
    """Failed: it has written what nobody asked for."""
    extra = worker.leftover()
    if extra:
        raise Failed(
            f"{extra} came beyond the answers that were due: each HTTPRequest is answered once, and "
            "nothing else "
            "is written to descriptor 3"
        )


def settled(worker: Worker, ready: Ready | None = None) -> None:
    """After the last answer: nothing follows it."""
    worker.settle()
    if ready is not None and "health-reply" in ready.features:
        reply(worker)
    else:
        message = worker.message("nothing") if worker.has_message(0) else None
        if isinstance(message, HealthReply):
            raise Failed(
                "a health check was answered though Ready had not named health-reply: answer it only if "
                "POOLPARTY_FEATURES offers that, and Ready has named it"
            )
        if message is not None:
            raise Failed(
                f"{_kind(message)} came beyond the answers that were due: each HTTPRequest is answered once"
            )
    quiet(worker)


# --- the vectors -------------------------------------------------------------------------------------------


def octets(value: Any) -> bytes:
    """A value of the vectors: a text, or {"hex": …} or {"text": …} with "times", and "prefix" before it."""
    if isinstance(value, str):
        return value.encode()
    data = bytes.fromhex(value["hex"]) if "hex" in value else str(value["text"]).encode()
    return str(value.get("prefix", "")).encode() + data * int(value.get("times", 1))


@cache
def vectors() -> dict[str, list[dict[str, Any]]]:
    """All of them, as vectors.json has them."""
    loaded: dict[str, list[dict[str, Any]]] = json.loads(VECTORS.read_text(encoding="utf-8"))
    return loaded


def request_of(vector: dict[str, Any]) -> HTTPRequest:
    """A vector's request."""
    headers = [(octets(name), octets(value)) for name, value in vector["headers"]]
    for numbered in vector.get("numbered_headers", ()):
        headers += [
            (f"{numbered['name']}{number}".encode(), str(number).encode())
            for number in range(numbered["count"])
        ]
    return HTTPRequest(
        octets(vector["remote_address"]),
        octets(vector["uri"]),
        octets(vector["method"]),
        headers,
        octets(vector["body"]),
    )


# --- the echo application ----------------------------------------------------------------------------------


def compare(request: HTTPRequest, response: HTTPResponse) -> None:
    """Failed: the handler did not see the request as it was sent, or its answer arrived otherwise."""
    if response.head.status != 200:
        raise Failed(
            f"the echo application answered {response.head.status}, not 200 (what it raised stands on stderr)"
        )
    names = [name.lower() for name, _ in response.head.headers]
    answered = {name.lower(): values for name, values in response.head.headers}
    if len(names) != len(answered):
        raise Failed("a header's name is there twice: a name is there once, with the list of its values")
    lower = {name.lower(): value for name, value in request.headers}
    for name, expected in (
        (b"echo-method", [request.method]),
        (b"echo-uri", [request.uri]),
        (b"echo-remote-address", [request.remote_address]),
        (b"echo-check", [lower.get(b"x-check", b"")]),
    ):
        if name not in answered:
            raise Failed(
                f"the answer has no {name.decode()}: see the echo application in docs/writing-a-worker.md"
            )
        if answered[name] != expected:
            raise Failed(f"{name.decode()} is {_values(answered[name])}, and should be {_values(expected)}")
    wanted = sorted(name + b": " + value for name, value in request.headers)
    seen = sorted(answered.get(b"echo-headers", []))
    if seen != wanted:
        missing = [value for value in wanted if value not in seen]
        surplus = [value for value in seen if value not in wanted]
        raise Failed(
            f"echo-headers has {len(seen)} values, and should have {len(wanted)}"
            + (f"; missing {_values(missing)}" if missing else "")
            + (f"; not asked for {_values(surplus)}" if surplus else "")
        )
    body = bytes(response.body)
    if body != request.body:
        at = next(
            (at for at, (a, b) in enumerate(zip(body, request.body, strict=False)) if a != b),
            min(len(body), len(request.body)),
        )
        raise Failed(
            f"the body has {len(body)} bytes and should have {len(request.body)}; they differ from byte "
            f"{at} on: "
            f"{shown(body[at:])} instead of {shown(request.body[at:])}"
        )


def _values(values: Sequence[bytes]) -> str:
    return f"{values[:2]!r:.160}" + (f" and {len(values) - 2} more" if len(values) > 2 else "")


def _page(path: str, body: bytes = b"") -> HTTPRequest:
    return HTTPRequest(
        b"192.0.2.1:4711",
        b"http://localhost" + path.encode(),
        b"POST" if body else b"GET",
        [(b"Host", b"localhost")],
        body,
    )


# --- any application ---------------------------------------------------------------------------------------


def reads_the_first_health_check(bench: Bench) -> None:
    worker = bench.fresh()
    worker.settle()
    worker.settle()  # it has read the first one, and is back at reading
    message = worker.message("nothing") if worker.has_message(0) else None
    if message is not None:
        raise Failed(
            f"it wrote {_kind(message)} though POOLPARTY_FEATURES was not set and nothing but a health "
            "check sent: "
            "in version 1 a health check is not answered"
        )


def answers_a_request(bench: Bench) -> None:
    worker = bench.worker()
    response = bench.ask(worker, "GET /", FIRST_PAGE)
    if response.head.status >= 500:
        raise Failed(
            f"GET / is answered {response.head.status}: the checks need an application that can answer it"
        )


def answers_each_request_once(bench: Bench) -> None:
    worker, _ = bench.started(VERSION_1)  # one whose first answer is the first of these
    for number in range(3):
        bench.ask(worker, f"request {number + 1}", _page(f"/?n={number}"))
        settled(worker)


def answers_no_health_check_in_version_1(bench: Bench) -> None:
    worker = bench.worker()
    worker.write(HEALTH_CHECK * 2 + encode_request(FIRST_PAGE) + HEALTH_CHECK)
    bench.heard(worker, "GET / among health checks", FIRST_PAGE)
    settled(worker)


def answers_what_stands_in_the_pipe(bench: Bench) -> None:
    worker = bench.worker()
    requests = [_page(f"/?n={number}", b"." * number * 100) for number in range(8)]
    worker.write(b"".join(map(encode_request, requests)))
    for number, request in enumerate(requests):
        bench.heard(worker, f"request {number + 1} of 8 written at once", request)
    settled(worker)


def reads_on_where_a_piece_ended(bench: Bench) -> None:
    worker = bench.worker()
    first, second, third = (encode_request(_page(f"/?n={number}")) for number in range(3))
    worker.write(first + second[:2])
    bench.heard(worker, "a request, with half of the next one's size behind it", _page("/?n=0"))
    worker.write_and_wait(second[2:9])
    worker.write(second[9:] + third)
    bench.heard(worker, "a request that came in three pieces", _page("/?n=1"))
    bench.heard(worker, "a request that came in one piece with the end of another", _page("/?n=2"))
    settled(worker)


def reads_byte_by_byte(bench: Bench) -> None:
    worker = bench.worker()
    frame = encode_request(FIRST_PAGE)
    for at in range(len(frame)):
        worker.write_and_wait(frame[at : at + 1])
    bench.heard(worker, "GET / a byte at a time: a read may bring less than was asked for", FIRST_PAGE)
    settled(worker)


def _each_vector(bench: Bench, group: str) -> None:
    worker = bench.worker()
    for vector in vectors()["requests"]:
        if vector["group"] == group:
            response = bench.ask(worker, vector["name"], request_of(vector))
            if response.head.status == 500:
                raise Failed(f"{vector['name']}: answered 500, where GET / was not")
    settled(worker)


def reads_every_length(bench: Bench) -> None:
    _each_vector(bench, "lengths")


def reads_every_header(bench: Bench) -> None:
    _each_vector(bench, "headers")


def reads_every_body(bench: Bench) -> None:
    _each_vector(bench, "bodies")


def leaves_at_the_end_of_its_input(bench: Bench) -> None:
    worker = bench.worker()
    bench.ask(worker, "GET /", FIRST_PAGE)
    settled(worker)
    complained = len(worker.errors)
    worker.close_stdin()
    status = worker.wait_for_end(
        "descriptor 0 was closed: when a read there returns nothing, leave with exit status 0"
    )
    if status != 0:
        raise Failed(
            f"at the end of descriptor 0 it {worker.end_words()}: the end of its input is no error, "
            "leave with exit status 0"
        )
    said = bytes(worker.errors[complained:])  # on stdout an application may say farewell
    if said:
        raise Failed(
            f"at the end of descriptor 0 it wrote {said[:80]!r} to stderr: that is how a worker is told "
            "that its work is done, leave without a word"
        )


def leaves_before_a_request(bench: Bench) -> None:
    worker = bench.fresh()
    worker.close_stdin()
    if worker.wait_for_end("descriptor 0 was closed at its start: leave with exit status 0") != 0:
        raise Failed(
            f"when descriptor 0 ended before the first request it {worker.end_words()}: leave with exit "
            "status 0"
        )


def answers_no_half_request(bench: Bench) -> None:
    for cut, what in ((2, "in the middle of a size"), (20, "in the middle of a request")):
        worker, _ = bench.started(VERSION_1)
        worker.write_and_wait(encode_request(FIRST_PAGE)[:cut])
        worker.close_stdin()
        worker.wait_for_end(f"descriptor 0 ended {what}: what is not complete is not answered, leave")


def ends_at_an_unknown_tag(bench: Bench) -> None:
    _breaks(bench, [vector for vector in vectors()["broken_requests"] if vector["group"] == "tag"])


def ends_at_a_broken_request(bench: Bench) -> None:
    _breaks(bench, [vector for vector in vectors()["broken_requests"] if vector["group"] == "frame"])


def _breaks(bench: Bench, broken: Sequence[dict[str, Any]]) -> None:
    for vector in broken:
        worker, _ = bench.started(VERSION_1)
        worker.write(bytes.fromhex(vector["frame"]))
        if vector.get("end"):
            worker.close_stdin()
        because = (
            f"{vector['name']}: what follows could mean anything, so end, without an answer and with a "
            "message on stderr"
        )
        worker.wait_for_end(because)
        if not worker.errors and not vector.get("end"):  # to see no more than the end is right, too
            raise Failed(f"it ended without a message at {vector['name']}: say why, on stderr")


# --- features ----------------------------------------------------------------------------------------------


def says_ready_first(bench: Bench) -> None:
    bench.drop()
    ready = bench.ready()
    foreign = [name for name in ready.features if name not in FEATURES.split(",")]
    if foreign:
        raise Failed(
            f"its Ready names {', '.join(foreign)}, which POOLPARTY_FEATURES ({FEATURES}) did not offer"
        )
    if len(set(ready.features)) != len(ready.features):
        raise Failed(f"its Ready names a feature twice: {', '.join(ready.features)}")


def announces_only_what_is_offered(bench: Bench) -> None:
    for offered in ("ready", "ready,none-such"):
        ready = bench.ready(offered)
        if ready.features:
            raise Failed(
                f"its Ready names {', '.join(ready.features)} where POOLPARTY_FEATURES was {offered!r}: "
                "name only "
                "what is offered there and will be used"
            )
        worker = bench.worker(offered)
        bench.ask(worker, "GET /", FIRST_PAGE)
        settled(worker, ready)


def needs_no_ready(bench: Bench) -> None:
    """`ready` need not be first in the list, nor be there at all."""
    worker = bench.fresh("health-reply")
    worker.write_and_wait(HEALTH_CHECK)
    worker.settle()
    message = worker.message("nothing") if worker.has_message(0) else None
    if message is not None:
        raise Failed(
            f"it wrote {_kind(message)} where POOLPARTY_FEATURES was 'health-reply': without `ready` "
            "nothing can be "
            "announced, so nothing is used"
        )
    bench.ask(worker, "GET /", FIRST_PAGE)
    settled(worker)


def replies_to_health_checks(bench: Bench) -> None:
    ready = bench.ready()
    worker = bench.worker(FEATURES)
    if "health-reply" not in ready.features:
        settled(worker, ready)
        raise Skipped("its Ready does not name health-reply")
    worker.write(HEALTH_CHECK + encode_request(FIRST_PAGE) + HEALTH_CHECK * 2 + encode_request(FIRST_PAGE))
    reply(worker)
    bench.heard(worker, "GET / behind a health check", FIRST_PAGE)
    reply(worker)
    reply(worker)
    bench.heard(worker, "GET / behind two health checks", FIRST_PAGE)
    settled(worker, ready)


def leaves_quietly_with_features(bench: Bench) -> None:
    bench.ready()
    worker = bench.worker(FEATURES)
    complained = len(worker.errors)
    worker.close_stdin()
    if worker.wait_for_end("descriptor 0 was closed: leave with exit status 0") != 0:
        raise Failed(f"at the end of descriptor 0 it {worker.end_words()}: leave with exit status 0")
    if worker.errors[complained:]:
        raise Failed(
            f"at the end of descriptor 0 it wrote {bytes(worker.errors[complained:])[:80]!r}: leave quietly"
        )


# --- signals -----------------------------------------------------------------------------------------------


def lives_through_an_interrupt(bench: Bench) -> None:
    worker = bench.worker()
    bench.ask(worker, "GET /", FIRST_PAGE)
    worker.interrupt()
    try:
        bench.ask(worker, "GET /", FIRST_PAGE)
        settled(worker)
    except Failed:
        raise Failed(
            "SIGINT ended it, or cost it an answer: set a handler that does nothing (one that is inherited "
            "as "
            "`ignore` would reach the programs it starts), so that a Ctrl-C is the server's alone"
        ) from None


def shows_its_stack(bench: Bench) -> None:
    ready = bench.ready(STACKS)
    if "stack" not in ready.features:
        raise Skipped("its Ready does not name stack")
    worker = bench.worker(STACKS)
    written = len(worker.errors)
    request = _page("/?stack", b"." * 100_000)
    frame = encode_request(request)
    try:
        # In the middle of a size, in the middle of a body, and while a request runs or its answer is written.
        for cut in (2, len(frame) // 2, len(frame)):
            worker.write_and_wait(frame[:cut])
            worker.ask_for_stack()
            worker.write(frame[cut:])
            bench.heard(worker, "a request during which SIGUSR1 came", request)
        settled(worker, ready)
    except Failed as error:
        raise Failed(
            f"its Ready named stack, but SIGUSR1 disturbed it: {error}; catch the signal before Ready, "
            "and read and write again what it has interrupted"
        ) from None
    if not worker.says_more_than(written):
        raise Failed(
            "its Ready named stack, but after SIGUSR1 nothing came on stderr: write the program's stack there"
        )


def ends_by_sigterm(bench: Bench) -> None:
    worker = bench.worker()
    worker.terminate()
    worker.wait_for_end("SIGTERM: let it end the process, or worker_request_grace later SIGKILL does")


# --- the echo application ----------------------------------------------------------------------------------


def lives_through_an_exception(bench: Bench) -> None:
    worker = bench.worker()
    complained = len(worker.errors)
    worker.write(encode_request(_page("/fail")))
    response = worker.answer("the answer to /fail")
    if response.head.status != 500:
        raise Failed(f"/fail, whose handler raises, was answered {response.head.status}: answer 500")
    if bytes(response.body) != b"internal server error\n":
        raise Failed(
            f"/fail was answered with the body {bytes(response.body)[:80]!r}: what went wrong is for the "
            "log, the client is told "
            r"'internal server error\n'"
        )
    bench.ask(worker, "the request after /fail", FIRST_PAGE)
    settled(worker)
    if len(worker.errors) == complained:
        raise Failed("nothing of what /fail raised is on stderr: write it there, with its trace")


def prints_line_by_line(bench: Bench) -> None:
    worker = bench.worker()
    printed = len(worker.output)
    bench.ask(worker, "/print", _page("/print"))
    settled(worker)
    line = bytes(worker.output[printed:])
    if b"printed\n" not in line:
        raise Failed(
            "what the handler printed had not arrived on stdout when the request was answered: make stdout "
            "line-buffered, so that the log shows it at its time"
        )


def streams_or_collects(bench: Bench) -> None:
    worker = bench.worker()
    worker.write(encode_request(_page("/stream")))
    response = worker.answer("the answer to /stream")
    if response.head.status == 404:
        raise Skipped("the echo application has no /stream: this language's bodies come whole")
    if bytes(response.body) != b"one\ntwo\nthree\n":
        raise Failed(
            f"/stream was answered {bytes(response.body)[:80]!r}: a body in pieces is collected and sent "
            "whole where "
            r"`stream` is not offered ('one\ntwo\nthree\n')"
        )
    settled(worker)


def streams_where_offered(bench: Bench) -> None:
    ready = bench.ready(STREAMS)
    if "stream" not in ready.features:
        raise Skipped("its Ready does not name stream")
    worker = bench.worker(STREAMS)
    for _ in range(2):
        worker.write(encode_request(_page("/stream")))
        start = worker.payload("the ResponseStart")
        if start.startswith(b"\0\x94\x03"):
            raise Skipped("the echo application answers /stream by 404")
        pieces = _pieces(worker, start)
        if b"".join(pieces) != b"one\ntwo\nthree\n":
            raise Failed(rf"/stream came as {pieces!r:.120} and should be 'one\ntwo\nthree\n'")
        if len(pieces) == 1:
            raise Failed("/stream came in one piece: send each piece when the handler gives it")
        settled(worker, ready)
    bench.ask(worker, "GET / behind a stream", FIRST_PAGE)
    settled(worker, ready)


def ends_a_stream_that_is_cancelled(bench: Bench) -> None:
    ready = bench.ready(CANCELS)
    if "stream-cancel" not in ready.features:
        raise Skipped("its Ready does not name stream-cancel: a child whose client leaves is ended")
    if "stream" not in ready.features:
        raise Failed("its Ready names stream-cancel without stream: there is nothing to cancel")
    worker = bench.worker(CANCELS)
    for _ in range(2):
        worker.write(encode_request(_page("/endless")))
        start = worker.payload("the ResponseStart")
        if start.startswith(b"\0\x94\x03"):
            raise Skipped("the echo application answers /endless by 404")
        _start_of_stream("/endless", start)
        for _ in range(3):
            if _next_piece(worker) is None:
                raise Failed("/endless ended though nobody had cancelled it: it goes on until then")
        # What had been written before it was seen to stream is answered in its turn.
        worker.write(encode_request(FIRST_PAGE) + STREAM_CANCEL)
        end = time.monotonic() + bench.patience
        while _next_piece(worker) is not None:
            if time.monotonic() > end:
                raise Failed(
                    f"its Ready named stream-cancel, but it was still streaming {bench.patience:g} s after "
                    "the StreamCancel: look between two pieces, without waiting, what has come on "
                    "descriptor 0, through the frames of other requests too"
                )
        bench.heard(worker, "the request that stood before the StreamCancel", FIRST_PAGE)
        settled(worker, ready)
    worker.write(STREAM_CANCEL)
    try:
        bench.ask(worker, "GET / behind a StreamCancel that found no stream", FIRST_PAGE)
        settled(worker, ready)
    except Failed as error:
        raise Failed(f"{error}; a StreamCancel between two answers means nothing: read on") from None


def reads_a_body_from_its_file(bench: Bench) -> None:
    ready = bench.ready(FILES)
    if "body-file" not in ready.features:
        raise Skipped("its Ready does not name body-file: large bodies come as others do")
    worker = bench.worker(FILES)
    for size in (70_000, 1):
        request = _page("/upload", bytes(range(256)) * (size // 256 + 1))
        with tempfile.NamedTemporaryFile(prefix="poolparty-check-") as file:
            file.write(request.body)
            file.flush()
            worker.write(
                encode_request(
                    HTTPRequestFile(
                        request.remote_address,
                        request.uri,
                        request.method,
                        request.headers,
                        os.fsencode(file.name),
                        len(request.body),
                    )
                )
            )
            bench.heard(worker, f"a body of {len(request.body)} bytes in a file", request)
        settled(worker, ready)
    bench.ask(worker, "GET / behind a body in a file", FIRST_PAGE)
    settled(worker, ready)


def _pieces(worker: Worker, start: bytes) -> list[bytes]:
    """The pieces of a streamed body, up to its end. Failed: a message is not what it has to be."""
    _start_of_stream("/stream", start)
    pieces = []
    while (piece := _next_piece(worker)) is not None:
        pieces.append(piece)
    return pieces


def _start_of_stream(path: str, payload: bytes) -> None:
    if payload[:1] != b"\3":
        raise Failed(
            f"its Ready named stream, but {path} was answered by a message of the kind {payload[:1].hex()}: "
            "a body in "
            "pieces begins with a ResponseStart, 03"
        )
    # It and a chunk are a part of an HTTPResponse behind their tag: completed to one, they are read as one.
    _completed("ResponseStart", b"\0" + payload[1:] + b"\0")


def _next_piece(worker: Worker) -> bytes | None:
    """Of a streamed body; None at its end."""
    payload = worker.payload("a ResponseChunk or the ResponseEnd")
    if payload[:1] == b"\4":
        return _completed("ResponseChunk", b"\0\xc8\1\0" + payload[1:])
    if payload != b"\5":
        raise Failed(
            f"behind a ResponseStart came {shown(payload)}: ResponseChunks, 04, follow it, and a "
            "ResponseEnd, the byte 05 alone"
        )
    return None


def _completed(name: str, payload: bytes) -> bytes:
    try:
        response = decode_response(payload)
    except FrameError as error:
        raise Failed(f"a {name} cannot be read: {error}") from None
    assert isinstance(response, HTTPResponse)
    return bytes(response.body)


@dataclass(frozen=True, slots=True)
class Check:
    """A promise in words, and what tries it."""

    promise: str
    run: Callable[[Bench], None]
    echo: bool = False
    advice: bool = False
    basic: bool = False  # without it nothing else can be tried


CHECKS = (
    Check("starts, and reads the first health check", reads_the_first_health_check, basic=True),
    Check("answers GET / with a well-formed frame", answers_a_request, basic=True),
    Check("answers each request once", answers_each_request_once),
    Check("does not answer health checks in version 1", answers_no_health_check_in_version_1),
    Check("answers eight requests that were written at once", answers_what_stands_in_the_pipe),
    Check("loses nothing where a read ends within a frame", reads_on_where_a_piece_ended),
    Check("reads a request that comes byte by byte", reads_byte_by_byte),
    Check("reads strings at the boundaries of a length", reads_every_length),
    Check("reads no, many, empty and non-ASCII headers", reads_every_header),
    Check("reads bodies: empty, binary, up to 4 MiB", reads_every_body),
    Check("leaves quietly when descriptor 0 ends", leaves_at_the_end_of_its_input),
    Check("leaves when descriptor 0 ends before the first request", leaves_before_a_request),
    Check("does not answer half a request", answers_no_half_request),
    Check("ends at a message it does not know", ends_at_an_unknown_tag),
    Check("ends at a frame whose lengths do not add up", ends_at_a_broken_request, echo=True),
    Check("says Ready before it reads", says_ready_first),
    Check("announces only what is offered", announces_only_what_is_offered),
    Check("uses no feature where `ready` is not offered", needs_no_ready),
    Check("replies to health checks in their turn", replies_to_health_checks),
    Check("leaves quietly with features, too", leaves_quietly_with_features),
    Check("lives through an exception in the handler", lives_through_an_exception, echo=True),
    Check("prints to stdout line by line", prints_line_by_line, echo=True),
    Check("sends a body in pieces whole where `stream` is not offered", streams_or_collects, echo=True),
    Check("sends each piece where `stream` is offered", streams_where_offered, echo=True),
    Check(
        "ends a stream whose client has left, where `stream-cancel` is offered",
        ends_a_stream_that_is_cancelled,
        echo=True,
    ),
    Check("reads a body from its file, where `body-file` is offered", reads_a_body_from_its_file, echo=True),
    Check("lives through SIGINT", lives_through_an_interrupt, advice=True),
    Check("writes its stack to stderr at SIGUSR1, where it says so, and goes on", shows_its_stack),
    Check("ends by SIGTERM", ends_by_sigterm, advice=True),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one check. verdict: "ok", "FAIL", "advice" or "skip"."""

    check: Check
    verdict: str
    text: str = ""
    errors: str = field(default="", repr=False)


def outcomes(bench: Bench) -> Iterator[Outcome]:
    """Try everything, one after another."""
    try:
        for check in CHECKS:
            if check.echo and not bench.echo:
                continue
            try:
                check.run(bench)
            except Skipped as reason:
                yield Outcome(check, "skip", str(reason))
            except Failed as error:
                worker = bench.drop()
                said = bytes(worker.errors).decode(errors="replace") if worker is not None else ""
                yield Outcome(check, "advice" if check.advice else "FAIL", str(error), said)
                if check.basic:
                    return
            else:
                yield Outcome(check, "ok")
    finally:
        bench.drop()
