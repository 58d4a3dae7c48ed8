"""A connection on a fake transport: the real Server with its sweeps, a dispatcher, a set clock."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from side import (
    FIELD_LIMIT,
    FIELDS_LIMIT,
    HEAD_LIMIT,
    KEEPALIVE,
    LINE_LIMIT,
    MAX_BODY,
    READ_TIMEOUT,
    WRITE_TIMEOUT,
    FakeLease,
    Side,
    bytewise,
    chunked,
    get,
    post,
)

from poolparty.stats.scoreboard import SeatWord
from poolparty.wire.frames import ResponseHead
from poolparty.worker import reading as reading_module
from poolparty.worker.connection import LINGER_BYTES, LINGER_TIME
from poolparty.worker.reading import CONTINUE, MAX_PIPELINED, NEVER, Phase


@pytest.fixture
def sides() -> Iterator[Any]:
    made: list[Side] = []

    def make(**changes: Any) -> Side:
        made.append(Side(**changes))
        return made[-1]

    yield make
    for side in made:
        side.close()


@pytest.fixture
def side(sides: Any) -> Side:
    made: Side = sides()
    return made


# --- one request -------------------------------------------------------------------------------------------

REQUESTS = {
    "get": (get(b"/a?b", b"X-Y: z"), b"GET", b"http://h/a?b", b""),
    "head": (get(b"/a", method=b"HEAD"), b"HEAD", b"http://h/a", b""),
    "post": (post(b"hello"), b"POST", b"http://h/", b"hello"),
    "empty post": (post(b""), b"POST", b"http://h/", b""),
    "chunked": (chunked(b"hel", b"l", b"o" * 40), b"POST", b"http://h/", b"hel" + b"l" + b"o" * 40),
    "empty chunked": (chunked(), b"POST", b"http://h/", b""),
    "trailer": (chunked(b"x", trailer=b"Vary: *\r\nX: y\r\n"), b"POST", b"http://h/", b"x"),
    "extension": (
        get(b"/", b"Transfer-Encoding: chunked", method=b"PUT") + b"1;a=b\r\nx\r\n0\r\n\r\n",
        b"PUT",
        b"http://h/",
        b"x",
    ),
    "empty lines before": (b"\r\n\r\n" + get(), b"GET", b"http://h/", b""),
    "options": (get(b"*", method=b"OPTIONS"), b"OPTIONS", b"http://h/%2A", b""),
    "get with a body": (get(b"/", b"Content-Length: 2") + b"hi", b"GET", b"http://h/", b"hi"),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("how", ["whole", "byte by byte"])
def test_a_request_reaches_a_child_once_its_last_byte_is_in(side: Side, name: str, how: str) -> None:
    data, method, uri, body = REQUESTS[name]
    side.send(*([data[:-1]] if how == "whole" else bytewise(data[:-1])))
    assert side.running is None
    side.send(data[-1:])
    seen = side.seen()
    assert (seen.method, seen.uri, seen.body) == (method, uri, body)
    assert seen.remote_address == b"10.0.0.1:5000"
    assert (b"Host", b"h") in seen.headers
    assert side.count("requests") == 1 and side.count("bytes_received") == len(body)
    side.answer()
    assert side.received()[0][0] == 200
    assert side.connection.phase is Phase.IDLE
    side.send(data)
    assert side.seen() == seen


def test_a_trailer_is_no_header(side: Side) -> None:
    side.send(REQUESTS["trailer"][0])
    assert dict(side.seen().headers).keys() == {b"Host", b"Transfer-Encoding"}


def test_a_bodys_many_small_chunks_do_not_take_many_times_its_size(side: Side) -> None:
    chunks = [b"ab"] * 20_000
    side.send(chunked(*chunks))
    assert side.running is not None
    assert len(side.running.body) < 10
    assert side.seen().body == b"ab" * 20_000


def test_a_head_is_answered_without_a_body(side: Side) -> None:
    side.send(get(method=b"HEAD")).answer(b"body")
    assert side.transport.written.endswith(b"Content-Length: 4\r\n\r\n")


@pytest.mark.parametrize(("peer", "address"), [(("::1", 80, 0, 0), b"[::1]:80"), ("", b"@"), ("/x", b"@")])
def test_the_clients_address_by_its_kind(side: Side, peer: Any, address: bytes) -> None:
    side.transport, side.connection = side.connect(peer=peer)
    side.send(get())
    assert side.seen().remote_address == address


# --- the fields of the request before ----------------------------------------------------------------------


def test_requests_with_the_same_fields_are_read_as_if_each_were_the_first(side: Side) -> None:
    fields = (b"X: y", b"Cookie: a=b")
    for target in (b"/a", b"/b?c=d", b"/", b"/x//../y", b"/%41", b"/e?", b"/long" * 30):
        for method in (b"GET", b"HEAD", b"POST"):
            side.send(get(target, *fields, method=method))
            one = side.seen()
            side.answer()
            other = Side()
            other.send(get(target, *fields, method=method))
            assert other.seen() == one
            other.close()


def test_the_limits_hold_also_for_a_request_with_the_fields_of_the_one_before(side: Side) -> None:
    for _ in range(3):
        side.send(get(b"/a")).answer()
    target = b"/" + b"a" * (LINE_LIMIT - len(b"GET / HTTP/1.1"))
    side.send(get(target)).answer()
    side.received()
    side.send(get(target + b"a"))
    assert side.statuses() == [414]


def test_an_empty_host_and_a_double_slash_do_not_become_another_host(side: Side) -> None:
    for _ in range(3):
        side.send(b"GET //x HTTP/1.1\r\nHost:\r\n\r\n")
        assert side.seen().uri == b"http:///x"
        side.answer()
    side.send(b"GET /y HTTP/1.1\r\nHost:\r\n\r\n")
    assert side.seen().uri == b"http:///y"


def test_a_body_is_not_taken_for_the_fields_of_the_one_before(side: Side) -> None:
    block = get(b"/a")
    for _ in range(3):
        side.send(block).answer()
    side.send(get(b"/b", b"Content-Length: %d" % len(block), method=b"POST"))
    side.send(block)
    assert side.seen().body == block


# --- pipelining --------------------------------------------------------------------------------------------


def test_pipelined_requests_are_run_one_after_the_other_and_answered_in_order(side: Side) -> None:
    side.send(get(b"/1") + post(b"two", target=b"/2") + chunked(b"three", target=b"/3") + get(b"/4"))
    assert len(side.dispatcher.submitted) == 1
    assert [seen.body for seen in side.serve()] == [b"", b"two", b"three", b""]
    assert side.received() == [(200, b"/1"), (200, b"/2"), (200, b"/3"), (200, b"/4")]
    assert side.connection.phase is Phase.IDLE


def test_at_the_bound_the_client_is_read_no_further_until_half_is_answered(side: Side) -> None:
    side.send(*(get(b"/%d" % n) for n in range(MAX_PIPELINED)))
    assert side.transport.reading
    side.send(get())
    assert not side.transport.reading
    while not side.transport.reading:
        side.answer()
    assert len(side.dispatcher.submitted) == MAX_PIPELINED // 2 + 2
    side.serve()
    assert side.connection.phase is Phase.IDLE and side.transport.reading


def test_a_request_behind_another_one_is_timed_from_when_that_one_was_answered(side: Side) -> None:
    side.send(get(b"/1") + get(b"/2")).later(50.0)
    side.answer()
    assert side.running is not None and side.running.accepted == side.clock.now


def test_a_request_that_arrives_in_part_behind_another_is_completed_later(side: Side) -> None:
    data = post(b"hello", target=b"/2")
    for cut in range(1, len(data)):
        side.send(get(b"/1") + data[:cut]).answer()
        assert side.running is None
        side.send(data[cut:])
        assert side.seen().body == b"hello"
        side.answer()


def test_a_request_behind_one_that_says_close_is_not_read(side: Side) -> None:
    side.send(get(b"/1", b"Connection: close") + get(b"/2"))
    side.serve()
    assert side.received() == [(200, b"/1")]
    assert side.transport.eof or side.transport.closed
    assert side.count("requests") == 1


# --- faults ------------------------------------------------------------------------------------------------

MALFORMED = {
    "no http": b"hello\r\n\r\n",
    "lf in a name": b"GET / HTTP/1.1\r\nHost: h\r\nA\nb: c\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
    "folded field": b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
    "bare cr": b"GET / HTTP/1.1\r\nHost: h\r\nA: b\rC: d\r\n\r\n",
    "nul": b"GET / HTTP/1.1\r\nHost: h\r\nA: b\0\r\n\r\n",
    "empty name": b"GET / HTTP/1.1\r\nHost: h\r\n: b\r\n\r\n",
    "two lengths": get(b"/", b"Content-Length: 1", b"Content-Length: 2", method=b"POST") + b"x",
    "the same length twice": get(b"/", b"Content-Length: 1", b"Content-Length: 1", method=b"POST") + b"x",
    "a list of lengths": get(b"/", b"Content-Length: 1, 1", method=b"POST") + b"x",
    "negative length": get(b"/", b"Content-Length: -1", method=b"POST"),
    "signed length": get(b"/", b"Content-Length: +1", method=b"POST") + b"x",
    "hex length": get(b"/", b"Content-Length: 0x1", method=b"POST") + b"x",
    "empty length": get(b"/", b"Content-Length:", method=b"POST"),
    "endless length": get(b"/", b"Content-Length: " + b"9" * 30, method=b"POST"),
    "length and chunked": get(b"/", b"Content-Length: 1", b"Transfer-Encoding: chunked", method=b"POST"),
    "chunked and length": get(b"/", b"Transfer-Encoding: chunked", b"Content-Length: 1", method=b"POST"),
    "chunked in 1.0": get(b"/", b"Transfer-Encoding: chunked", method=b"POST", version=b"1.0"),
    "bad chunk size": get(b"/", b"Transfer-Encoding: chunked", method=b"POST") + b"x\r\n",
    "negative chunk size": get(b"/", b"Transfer-Encoding: chunked", method=b"POST") + b"-1\r\n",
    "hex prefix": get(b"/", b"Transfer-Encoding: chunked", method=b"POST") + b"0x1\r\na\r\n",
    "chunk without its end": get(b"/", b"Transfer-Encoding: chunked", method=b"POST") + b"1\r\nabc\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": get(b"/", b"Host: g"),
    "target": get(b"nonsense"),
    "host": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "upgrade with a length": get(
        b"/", b"Connection: upgrade", b"Upgrade: x", b"Content-Length: 1", method=b"POST"
    ),
    "upgrade with chunks": get(
        b"/", b"Connection: upgrade", b"Upgrade: x", b"Transfer-Encoding: chunked", method=b"POST"
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("how", ["whole", "byte by byte"])
def test_a_malformed_request_is_refused_and_nothing_behind_it_is_read(
    side: Side, name: str, how: str
) -> None:
    data = MALFORMED[name] + get(b"/smuggled")
    for piece in [data] if how == "whole" else bytewise(data):
        if side.transport.eof:
            break
        side.send(piece)
    side.send(get(b"/smuggled"))
    assert side.dispatcher.submitted == []
    assert side.statuses() == [400]
    assert b"Connection: close\r\n" in side.transport.written
    assert side.transport.eof
    assert side.count("rejected") == 1 and side.count("requests") == 0
    assert [status for status, _ in side.log.lines] == ["400"]


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (501, get(b"/", method=b"BREW")),
        (501, get(b"h:80", method=b"CONNECT")),
        (501, get(b"/", b"Transfer-Encoding: gzip", method=b"POST")),
        (501, get(b"/", b"Transfer-Encoding: gzip, chunked", method=b"POST")),
        (417, get(b"/", b"Expect: magic")),
        (505, get(b"/", version=b"2.0")),
        (505, get(b"/", version=b"0.9")),
        (505, b"GET /\r\n\r\n"),
        (505, get(b"/", version=b"1.2")),
        (505, get(b"/", version=b"3.0")),
        (501, get(b"/", method=b"get")),
        (400, b"BREW\r\n\r\n"),
        (400, b"BREW\r\n\r\n" + get(b"/smuggled")),
        (413, get(b"/", b"Content-Length: %d" % (MAX_BODY + 1), method=b"POST")),
        (413, get(b"/", b"Content-Length: %d" % (MAX_BODY + 1), b"Expect: 100-continue", method=b"POST")),
    ],
)
def test_what_is_not_served_gets_its_status(side: Side, status: int, data: bytes) -> None:
    side.send(data)
    assert side.statuses() == [status]
    assert side.dispatcher.submitted == []


def test_an_unknown_method_is_told_from_nonsense_also_behind_a_good_request(side: Side) -> None:
    side.send(get(b"/1") + get(b"/2", method=b"BREW"))
    side.serve()
    assert side.statuses() == [200, 501]
    side.transport, side.connection = side.connect()
    side._read = 0
    side.send(get(b"/1") + b"BREW\r\n\r\n" + get(b"/2"))
    side.serve()
    assert side.statuses() == [200, 400]


def test_an_error_about_a_head_request_has_no_body(side: Side) -> None:
    side.send(get(b"/", b"Host: g", method=b"HEAD"))
    assert side.transport.written.startswith(b"HTTP/1.1 400 ")
    assert side.transport.written.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("split", [True, False])
def test_an_error_behind_good_requests_is_answered_last(side: Side, split: bool) -> None:
    parts = [get(b"/1"), get(b"/2"), MALFORMED["two hosts"], get(b"/smuggled")]
    if split:
        side.send(*parts[:3])
    else:
        side.send(b"".join(parts))
    assert side.received() == []
    assert len(side.serve()) == 2
    assert side.statuses() == [200, 200, 400]
    assert side.transport.eof


def test_what_is_sent_behind_an_error_does_not_cost_the_answers_before_it(side: Side) -> None:
    # A client that streams a large body without waiting, refused while the request before it runs.
    side.send(get(b"/1") + get(b"/2", b"Content-Length: %d" % 10**9, method=b"POST"))
    sent = 0
    while side.transport.reading and sent <= 2 * LINGER_BYTES:
        side.send(bytes(1 << 20))
        sent += 1 << 20
    assert not side.transport.aborted
    side.serve()
    assert side.statuses() == [200, 413]
    assert side.transport.reading


def test_a_part_of_a_request_is_dropped_with_an_error_in_it(side: Side) -> None:
    side.send(get(b"/", b"Transfer-Encoding: chunked", method=b"POST") + b"3\r\nabc\r\n")
    side.send(b"zz\r\n")
    assert side.statuses() == [400]
    assert side.dispatcher.submitted == []


# --- limits ------------------------------------------------------------------------------------------------


def line(size: int) -> bytes:
    """A request whose line has `size` bytes, its line end not counted."""
    data = get(b"/" + b"a" * (size - len(b"GET / HTTP/1.1")))
    assert data.index(b"\r\n") == size
    return data


def field(size: int) -> bytes:
    """A request with one field of `size` bytes beside Host, name, colon, space and value."""
    return get(b"/", b"X: " + b"a" * (size - 3))


AT_THE_LIMIT = {
    "line": (414, line(LINE_LIMIT), line(LINE_LIMIT + 1)),
    "field": (431, field(FIELD_LIMIT), field(FIELD_LIMIT + 1)),
    "fields": (431, get(b"/", *[b"A: b"] * (FIELDS_LIMIT - 1)), get(b"/", *[b"A: b"] * FIELDS_LIMIT)),
    "length": (413, post(bytes(MAX_BODY)), post(bytes(MAX_BODY + 1))),
    "chunks": (413, chunked(bytes(MAX_BODY - 1), b"x"), chunked(bytes(MAX_BODY), b"x")),
}


@pytest.mark.parametrize("name", AT_THE_LIMIT)
@pytest.mark.parametrize(
    "before", [b"", get(b"/before"), post(bytes(5000))], ids=["first", "second", "behind a body"]
)
@pytest.mark.parametrize("how", ["whole", "in pieces"])
def test_a_limit_is_met_exactly(side: Side, name: str, before: bytes, how: str) -> None:
    status, fits, exceeds = AT_THE_LIMIT[name]
    statuses = [200] if before else []

    def feed(data: bytes) -> None:
        step = len(data) if how == "whole" else 7 if len(data) < 10_000 else 7000
        for at in range(0, len(data), step):
            if not side.transport.reading:
                break  # it is refused once what came before it is answered
            side.send(data[at : at + step])

    feed(before + fits)
    side.serve()
    assert side.statuses() == [*statuses, 200]
    feed(before + exceeds)
    side.serve()
    assert side.statuses() == [*statuses, status]
    assert side.transport.eof


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    "start",
    [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n" + b"X"],
    ids=["target", "value", "name"],
)
def test_an_endless_head_is_refused_long_before_it_ends(side: Side, start: bytes, busy: bool) -> None:
    if busy:
        side.send(get(b"/before"))
    side.send(start)
    sent = 0
    while side.transport.reading and side.connection._error is None and not side.transport.eof:
        side.send(b"a" * 100)
        sent += 100
        assert sent <= HEAD_LIMIT + 200
    side.serve()
    assert side.statuses()[-1] in (414, 431)


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    "start", [b"1;" + b"a" * 100, b"1\r\nx\r\n0\r\nTrailer: "], ids=["extension", "trailer"]
)
def test_what_a_chunked_body_carries_besides_its_data_is_bounded(
    side: Side, start: bytes, busy: bool
) -> None:
    if busy:
        side.send(get(b"/before"))
    side.send(get(b"/", b"Transfer-Encoding: chunked", method=b"POST") + start)
    sent = 0
    while side.transport.reading and side.connection._error is None and not side.transport.eof:
        side.send(b"a" * 100)
        sent += 100
        assert sent <= 2 * HEAD_LIMIT
    side.serve()
    assert side.statuses()[-1] == 400


def test_a_body_of_single_byte_chunks_is_within_that_bound(side: Side) -> None:
    data = chunked(*[b"x"] * 5000)
    for at in range(0, len(data), 100):
        side.send(data[at : at + 100])
    assert side.seen().body == b"x" * 5000


def test_the_rest_of_a_large_body_does_not_count_as_the_next_head(side: Side) -> None:
    data = post(bytes(20_000), target=b"/1")
    side.send(data[:500])
    side.send(data[500:] + get(b"/2")[:-4])
    side.answer()
    side.send(get(b"/2")[-4:])
    side.serve()
    assert side.statuses() == [200, 200]


# --- Expect ------------------------------------------------------------------------------------------------


def test_a_client_that_expects_it_is_told_to_continue_once(side: Side) -> None:
    data = get(b"/", b"Expect: 100-continue", b"Content-Length: 5", method=b"POST")
    side.send(data)
    assert side.transport.written == CONTINUE
    side.send(b"he").send(b"llo")
    assert side.seen().body == b"hello"
    side.answer()
    assert side.statuses() == [100, 200]


def test_without_a_body_to_come_nobody_is_told_to_continue(side: Side) -> None:
    side.send(get(b"/", b"Expect: 100-continue"))
    side.send(b"")
    assert side.transport.written == b""
    assert side.running is not None


def test_an_old_client_is_not_told_to_continue(side: Side) -> None:
    side.send(get(b"/", b"Expect: 100-continue", b"Content-Length: 5", method=b"POST", version=b"1.0"))
    assert side.transport.written == b""


def test_behind_another_request_it_is_told_when_that_one_is_answered(side: Side) -> None:
    side.send(get(b"/1") + get(b"/2", b"Expect: 100-continue", b"Content-Length: 2", method=b"POST"))
    assert side.transport.written == b""
    side.answer(b"one")
    assert side.received() == [(200, b"one"), (100, b"")]
    side.send(b"hi").answer(b"two")
    assert side.received() == [(200, b"two")]


def test_a_client_that_did_not_wait_for_it_is_not_told_any_more(side: Side) -> None:
    side.send(get(b"/1") + get(b"/2", b"Expect: 100-continue", b"Content-Length: 2", method=b"POST") + b"h")
    side.answer().send(b"i").answer()
    assert side.statuses() == [200, 200]


# --- keep-alive and the end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "ends", "says"),
    [
        (get(), False, None),
        (get(b"/", b"Connection: keep-alive"), False, None),
        (get(b"/", b"Connection: close"), True, b"close"),
        (get(b"/", b"connection: foo, Close"), True, b"close"),
        (get(b"/", version=b"1.0"), True, b"close"),
        (get(b"/", b"Connection: keep-alive", version=b"1.0"), False, b"keep-alive"),
        (b"GET / HTTP/1.0\r\n\r\n", True, b"close"),
    ],
)
@pytest.mark.parametrize("outcome", ["answer", "fail", "pieces"])
def test_whether_the_connection_is_kept(
    side: Side, data: bytes, ends: bool, says: bytes | None, outcome: str
) -> None:
    side.send(data)
    request = side.running
    assert request is not None
    if outcome == "answer":
        side.answer()
    elif outcome == "fail":
        side.connection.fail(request, 502)
    else:
        side.begin(4)
        side.piece(b"body", True)
    found = re.search(rb"\r\nConnection: ([^\r]*)", side.transport.written)
    assert (found and found[1]) == says
    assert side.transport.closed is ends
    assert side.transport.eof is False


@pytest.mark.parametrize("outcome", ["answer", "pieces"])
def test_a_child_ends_the_connection_and_the_client_has_time_to_see_it(side: Side, outcome: str) -> None:
    side.send(get())
    headers: list[tuple[bytes, list[bytes]]] = [(b"Connection", [b"close"])]
    if outcome == "answer":
        side.answer(headers=headers)
    else:
        side.begin(4, headers)
        side.piece(b"body", True)
    assert b"Connection: close\r\n" in side.transport.written
    assert side.transport.eof and not side.transport.closed
    side.send(get(b"/next"))
    assert side.running is None
    side.later(LINGER_TIME + 0.1)
    assert side.transport.closed


def test_a_child_cannot_end_it_while_requests_wait_behind(side: Side) -> None:
    side.send(get(b"/1") + get(b"/2"))
    side.answer(headers=[(b"Connection", [b"close"])])
    assert b"Connection" not in side.transport.written
    side.answer(headers=[(b"Connection", [b"close"])])
    assert side.statuses() == [200, 200]
    assert side.transport.eof


def test_a_request_that_came_while_the_last_answer_was_passing_through_is_not_run(side: Side) -> None:
    side.send(get(b"/1"))
    side.begin(8, [(b"Connection", [b"close"])])
    side.send(get(b"/2"))
    side.piece(b"12345678", True)
    assert side.running is None
    assert side.statuses() == [200]
    assert side.transport.eof and side.transport.reading


def test_an_idle_connection_is_closed_after_keepalive(side: Side) -> None:
    side.send(get()).answer()
    side.later(KEEPALIVE - 1)
    assert not side.transport.closed
    side.later(1.1)
    assert side.transport.closed and not side.transport.aborted


def test_without_keepalive_every_answer_is_the_last(sides: Any) -> None:
    side = sides(keepalive=0)
    side.send(get(b"/1") + get(b"/2"))
    side.serve()
    assert side.received() == [(200, b"/1")]
    assert b"Connection: close\r\n" in side.transport.written
    assert side.transport.eof


def test_a_new_connection_that_says_nothing_is_closed_silently(side: Side) -> None:
    side.later(READ_TIMEOUT + 0.1)
    assert side.transport.closed and side.transport.written == b""


@pytest.mark.parametrize("start", [b"G", b"GET / HT", get()[:-1], post(b"hello")[:-1]])
@pytest.mark.parametrize("number", ["first", "second"])
def test_a_request_that_does_not_arrive_in_time_gets_408(side: Side, start: bytes, number: str) -> None:
    if number == "second":
        side.send(get()).answer()
        side.received()
        side.later(10.0)
    side.send(start)
    side.later(READ_TIMEOUT - 1)
    assert side.transport.written[side._read :] == b""
    side.later(1.1)
    assert side.statuses() == [408]
    assert side.transport.eof
    assert side.count("rejected") == 1


def test_a_byte_now_and_then_does_not_extend_the_time(side: Side) -> None:
    for byte in bytewise(get()[:-1])[:30]:
        if side.transport.eof:
            break
        side.send(byte).later(READ_TIMEOUT / 20)
    assert side.statuses() == [408]


def test_empty_lines_between_requests_start_no_clock(side: Side) -> None:
    side.send(get()).answer()
    side.received()
    side.send(b"\r\n").later(READ_TIMEOUT + 1)
    assert side.transport.written[side._read :] == b""
    side.send(get()).answer()
    assert side.statuses() == [200]


def test_a_full_queue_answers_503_and_the_connection_goes_on(side: Side) -> None:
    side.dispatcher.room = False
    side.send(get(b"/1") + get(b"/2"))
    assert side.received() == [(503, b"server overloaded\n")] * 2
    assert b"Retry-After: 1\r\n" in side.transport.written
    assert side.count("overloaded") == 2
    side.later(READ_TIMEOUT + 1)
    assert side.transport.written[side._read :] == b"" and not side.transport.closed
    side.dispatcher.room = True
    side.send(get()).answer()
    assert side.statuses() == [200]


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_the_pool_could_not_do_is_said_and_counted(side: Side, status: int) -> None:
    side.send(get(b"/x"))
    assert side.running is not None
    side.connection.fail(side.running, status)
    assert side.statuses() == [status]
    name = {502: "failed", 503: "overloaded", 504: "timed_out"}[status]
    assert side.count(name) == 1
    assert side.log.lines == [(str(status), "/x")]


def test_a_request_that_was_answered_is_not_answered_again(side: Side) -> None:
    # Its child may still be at it: an answer that HTTP cannot carry is refused at its head, the rest follows.
    side.send(get())
    request = side.running
    assert request is not None
    assert not side.connection.start_response(request, ResponseHead(700, []), 10**6, FakeLease())  # type: ignore[arg-type]
    assert side.statuses() == [502]
    assert request.connection is None
    assert "700" in side.log.errors[0]


# --- draining ----------------------------------------------------------------------------------------------


def test_draining_answers_what_was_asked_and_says_close_with_the_last_of_it(side: Side) -> None:
    side.send(get(b"/1") + get(b"/2"))
    side.server.drain()
    assert side.board.words[side.board.seat_base(0) + SeatWord.DRAINING] == 1
    side.answer()
    assert b"Connection" not in side.transport.written
    side.answer()
    assert side.transport.written.count(b"Connection: close\r\n") == 1
    assert side.statuses() == [200, 200]
    assert side.transport.eof


def test_while_draining_one_more_request_is_taken_and_none_behind_it(side: Side) -> None:
    side.server.drain()
    side.send(get(b"/1") + get(b"/2"))
    assert len(side.serve()) == 1
    assert side.statuses() == [200]
    assert side.transport.eof


def test_while_draining_an_idle_connection_is_closed_after_a_moment(side: Side) -> None:
    side.server.drain()
    side.later(0.5)
    assert not side.transport.closed
    side.later(0.6)
    assert side.transport.closed


def test_an_error_behind_the_last_request_of_a_drain_is_still_told(side: Side) -> None:
    side.send(get(b"/1") + MALFORMED["two hosts"])
    side.server.drain()
    side.answer()
    assert side.statuses() == [200, 400]
    assert side.transport.written.count(b"Connection: close\r\n") == 1


# --- the client leaves -------------------------------------------------------------------------------------


def test_a_client_that_leaves_is_forgotten_with_all_its_requests(side: Side) -> None:
    side.send(get(b"/1") + get(b"/2") + get(b"/3"))
    request = side.running
    side.leave()
    assert request is not None and request.connection is None
    assert side.dispatcher.forgotten == [request]
    assert side.count("abandoned") == side.count("requests") == 3
    assert side.log.lines == [("499", "/1"), ("499", "/2"), ("499", "/3")]
    assert side.server.connections == set()
    side.later(1000.0)


def test_a_client_that_leaves_in_a_large_answer_frees_its_child(side: Side) -> None:
    side.send(get())
    lease = side.begin(10**6)
    side.connection.pause_writing()
    assert not lease.reading
    request = side.running
    side.leave()
    assert lease.reading
    assert request is not None and request.connection is None
    assert side.count("abandoned") == 1


def test_end_of_file_while_the_request_waits_drops_it(side: Side) -> None:
    side.send(get())
    side.dispatcher.waiting.add(id(side.running))
    assert not side.connection.eof_received()
    side.leave()
    assert side.dispatcher.forgotten == [side.running]


def test_end_of_file_while_it_runs_leaves_it_its_answer(side: Side) -> None:
    side.send(get(b"/1") + get(b"/2"))
    assert side.connection.eof_received()
    assert not side.transport.closed
    side.serve()
    assert side.received() == [(200, b"/1"), (200, b"/2")]
    assert side.transport.closed


@pytest.mark.parametrize("data", [b"", b"GET / HT", post(b"hello")[:-1]])
def test_end_of_file_between_requests_or_in_one_closes(side: Side, data: bytes) -> None:
    side.send(data) if data else None
    assert not side.connection.eof_received()
    assert side.transport.written == b""


def test_a_large_answer_that_breaks_off_cuts_the_connection(side: Side) -> None:
    side.send(get() + get(b"/2"))
    request = side.running
    assert request is not None
    side.begin(100)
    side.piece(b"part", False)
    side.connection.cut_response(request)
    assert side.transport.aborted
    assert request.connection is None
    assert side.count("failed") == 1
    side.leave()
    assert side.count("abandoned") == 1
    assert len(side.dispatcher.submitted) == 1


# --- large answers and slow clients ------------------------------------------------------------------------


def test_a_large_answer_passes_through_in_pieces(side: Side) -> None:
    side.send(get())
    side.begin(10)
    side.piece(b"hello", False)
    assert side.transport.written.endswith(b"Content-Length: 10\r\n\r\nhello")
    side.piece(b"world", True)
    assert side.received() == [(200, b"helloworld")]
    assert side.count("answered") == 1
    assert side.count("bytes_sent") == len(side.transport.written)
    assert side.connection.phase is Phase.IDLE


@pytest.mark.parametrize("status", [200, 204, 304])
def test_of_a_large_answer_without_a_body_only_the_head_is_sent(side: Side, status: int) -> None:
    side.send(get(method=b"HEAD" if status == 200 else b"GET"))
    request = side.running
    assert request is not None
    side.connection.start_response(request, ResponseHead(status, []), 10, FakeLease())  # type: ignore[arg-type]
    side.piece(b"hello", False)
    side.piece(b"world", True)
    assert side.transport.written.endswith(b"\r\n\r\n")
    side.send(get()).answer()


@pytest.fixture
def wired(side: Side) -> Iterator[tuple[Side, socket.socket]]:
    """A connection whose transport has a socket, and the client's end of it."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    side.transport, side.connection = side.connect(sock=near)
    yield side, far
    near.close()
    far.close()


def test_pieces_go_past_the_transport_only_while_it_holds_nothing(wired: tuple[Side, socket.socket]) -> None:
    side, client = wired
    side.send(get())
    side.begin(12)
    side.transport.unsent = 100  # the head, say
    side.piece(b"one", False)
    side.transport.unsent = 0
    side.piece(b"two", False)
    assert client.recv(100) == b"two"
    side.transport.unsent = 3
    side.piece(b"345", False)
    assert side.transport.written.endswith(b"\r\n\r\none345")
    side.transport.unsent = 0
    side.piece(b"end", True)
    assert client.recv(100) == b"end"
    assert side.count("bytes_sent") == len(side.transport.written) + 6


def test_of_a_piece_that_the_socket_takes_in_part_the_transport_gets_the_rest(
    wired: tuple[Side, socket.socket],
) -> None:
    side, client = wired
    piece = bytes(range(256)) * 8000
    side.send(get())
    side.begin(2 * len(piece))
    head = len(side.transport.written)
    buffer = bytearray(piece)
    side.piece(buffer, False)
    buffer[:] = bytes(len(buffer))  # it is the caller's again
    rest = side.transport.written[head:]
    direct = b""
    while len(direct) + len(rest) < len(piece):
        direct += client.recv(1 << 20)
    assert direct and rest and direct + rest == piece


def test_a_closing_transport_is_not_gone_around(wired: tuple[Side, socket.socket]) -> None:
    side, client = wired
    side.send(get())
    side.begin(100)
    side.transport.abort()
    side.piece(b"x", False)
    with pytest.raises(BlockingIOError):
        client.recv(1)


def test_a_client_that_does_not_read_makes_the_child_wait(side: Side) -> None:
    side.send(get())
    lease = side.begin(10**7)
    side.connection.pause_writing()
    assert not lease.reading and not side.transport.reading
    side.connection.resume_writing()
    assert lease.reading and side.transport.reading


def test_an_answer_that_begins_while_the_client_does_not_read_waits_at_once(side: Side) -> None:
    side.send(get())
    side.connection.pause_writing()
    assert not side.begin(10**7).reading


def test_the_last_piece_does_not_hold_the_child_that_runs_something_else_by_then(side: Side) -> None:
    # Writing it may fill the buffer, and the child is no longer this connection's.
    side.send(get())
    lease = side.begin(10)
    side.transport.on_write = side.connection.pause_writing
    side.piece(b"0123456789", True)
    assert lease.reading


def test_pipelined_requests_wait_while_the_client_does_not_read(side: Side) -> None:
    side.send(get(b"/1") + get(b"/2"))
    side.connection.pause_writing()
    side.answer()
    assert side.running is None
    side.connection.resume_writing()
    assert side.running is not None
    side.answer()
    assert side.statuses() == [200, 200]


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(side: Side) -> None:
    side.send(get())
    side.begin(10**7)
    side.transport.unsent = 2 << 20
    side.connection.pause_writing()
    side.later(WRITE_TIMEOUT - 1)
    assert not side.transport.closed
    side.transport.unsent -= 1
    side.later(2.0)
    assert not side.transport.closed, "it took some"
    side.later(WRITE_TIMEOUT - 1)
    assert not side.transport.closed
    side.later(1.1)
    assert side.transport.aborted


@pytest.mark.parametrize("ending", ["keep-alive", "Connection: close", "child", "drain"])
def test_a_slow_client_gets_its_whole_answer_however_short_the_keepalive(sides: Any, ending: str) -> None:
    side = sides(keepalive=2)
    side.send(get(b"/", b"Connection: close") if ending == "Connection: close" else get())
    if ending == "drain":
        side.server.drain()
    side.transport.unsent = 500_000
    side.answer(bytes(500_000), headers=[(b"Connection", [b"close"])] if ending == "child" else [])
    for _ in range(100):
        side.transport.unsent -= 4000
        side.later(2.5)
        assert not side.transport.aborted
    side.transport.unsent = 0
    side.later(2.5).later(2.5)
    assert side.transport.closed


@pytest.mark.parametrize("ending", [get(), get(b"/", b"Connection: close"), MALFORMED["two hosts"]])
def test_a_client_that_never_takes_a_small_answer_is_cut_off_too(side: Side, ending: bytes) -> None:
    side.transport.unsent = 1000
    side.send(ending)
    if side.running is not None:
        side.answer()
    for _ in range(10):
        side.later(WRITE_TIMEOUT)
    assert side.transport.aborted


# --- lingering ---------------------------------------------------------------------------------------------


def test_after_an_error_what_still_comes_is_read_and_thrown_away(side: Side) -> None:
    side.send(MALFORMED["two hosts"])
    assert side.transport.eof and side.transport.reading and not side.transport.closed
    side.send(bytes(100_000))
    assert side.statuses() == [400]
    side.later(LINGER_TIME + 0.1)
    assert side.transport.aborted


def test_only_so_much_is_thrown_away(side: Side) -> None:
    side.send(MALFORMED["two hosts"])
    for _ in range(LINGER_BYTES >> 20):
        side.send(bytes(1 << 20))
    assert not side.transport.aborted
    side.send(b"x")
    assert side.transport.aborted


def test_a_client_that_closes_meanwhile_ends_it(side: Side) -> None:
    side.send(MALFORMED["two hosts"])
    assert not side.connection.eof_received()


def test_where_no_half_can_be_closed_the_whole_is(side: Side) -> None:
    side.transport, side.connection = side.connect(tls=True)
    side.send(MALFORMED["two hosts"])
    assert side.transport.closed and not side.transport.aborted


# --- upgrades ----------------------------------------------------------------------------------------------

UPGRADE = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")


@pytest.mark.parametrize("how", ["together", "apart", "byte by byte"])
def test_a_request_for_another_protocol_is_answered_in_this_one(side: Side, how: str) -> None:
    first, second = get(b"/1", *UPGRADE), get(b"/2")
    if how == "together":
        side.send(first + second)
    elif how == "apart":
        side.send(first, second)
    else:
        side.send(*bytewise(first + second))
    side.serve()
    assert side.received() == [(200, b"/1"), (200, b"/2")]


def test_a_thousand_of_them_in_one_read_are_no_trouble(side: Side) -> None:
    side.send(get(b"/", b"Connection: upgrade", b"Upgrade: x") * 1500)
    assert len(side.serve()) == 1500


def test_an_upgrade_that_says_close_is_the_last(side: Side) -> None:
    side.send(get(b"/1", b"Connection: upgrade, close", b"Upgrade: x") + get(b"/2"))
    side.serve()
    assert side.received() == [(200, b"/1")]


# --- too many connections ----------------------------------------------------------------------------------


def test_at_the_limit_the_longest_idle_connections_make_room_one_for_each_newcomer(sides: Any) -> None:
    side = sides(worker_connections=3)
    old = [(side.transport, side.connection), side.connect(), side.connect()]
    for position, (_, connection) in enumerate(old):
        connection.deadline = 1010.0 + position
    side.connect()
    assert [transport.closed for transport, _ in old] == [True, False, False]
    side.connect()  # the first one's end has not been reported yet
    assert [transport.closed for transport, _ in old] == [True, True, False]
    assert side.count("connections_dropped") == 2


def test_where_none_is_idle_the_newcomer_is_told(sides: Any) -> None:
    side = sides(worker_connections=1)
    side.send(get())
    transport, _ = side.connect()
    assert transport.written.startswith(b"HTTP/1.1 503 ") and transport.closed
    assert not side.transport.closed


# --- any split of any requests -----------------------------------------------------------------------------

Spec = tuple[bytes, bytes, int, list[bytes]]

SPECS = st.tuples(
    st.sampled_from([b"/", b"/a", b"/b?c=d", b"/%41/../x", b"/" + b"l" * 80]),
    st.sampled_from([b"GET", b"POST", b"PUT"]),
    st.integers(0, 3),
    st.lists(st.binary(min_size=1, max_size=40), max_size=4),
)


def wire(spec: Spec) -> tuple[bytes, bytes]:
    """A request's bytes and its body."""
    target, method, kind, chunks = spec
    body = b"".join(chunks)
    fields = [b"X-Kind: %d" % kind]
    if kind == 0:
        return get(target, *fields, method=method), b""
    if kind == 1:
        return get(target, *fields, b"Content-Length: %d" % len(body), method=method) + body, body
    if kind == 2:
        coded = b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        return get(target, *fields, b"Transfer-Encoding: chunked", method=method) + coded, body
    return get(target, *fields, b"Connection: upgrade", b"Upgrade: x", method=method), b""


@given(
    st.lists(SPECS, min_size=1, max_size=8),
    st.lists(st.integers(0, 2000), max_size=30),
    st.integers(1, 5),
    st.sampled_from([1, 20, 1 << 20]),
)
def test_any_split_of_any_requests_gives_the_same_requests(
    specs: list[Spec], cuts: list[int], every: int, past_the_parser: int
) -> None:
    large_body = reading_module.LARGE_BODY
    reading_module.LARGE_BODY = past_the_parser
    side = Side()
    try:
        encoded = [wire(spec) for spec in specs]
        data = b"".join(one for one, _ in encoded)
        places = sorted({cut % len(data) for cut in cuts} - {0})
        seen = []

        def answer() -> None:
            assert side.running is not None
            seen.append(side.seen())
            side.answer(side.running.target)

        for number, (start, end) in enumerate(zip([0, *places], [*places, len(data)], strict=True)):
            while not side.transport.reading:
                answer()
            side.send(data[start:end])
            if number % every == 0 and side.running is not None:
                answer()
        while side.running is not None:
            answer()
        assert [one.method for one in seen] == [spec[1] for spec in specs]
        assert [one.body for one in seen] == [body for _, body in encoded]
        assert [dict(one.headers)[b"X-Kind"] for one in seen] == [b"%d" % spec[2] for spec in specs]
        assert side.received() == [(200, spec[0]) for spec in specs]
        assert side.connection.phase is Phase.IDLE and side.connection.deadline != NEVER
    finally:
        side.close()
        reading_module.LARGE_BODY = large_body
