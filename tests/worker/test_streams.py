"""Responses that a child sends in pieces: by the dispatcher on real pipes, by the connection on a fake
transport."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pipes import LIMIT, Child, Pool, response

import pytest
from hypothesis import given
from hypothesis import strategies as st
from side import Side

from poolparty.stats.scoreboard import ChildWord
from poolparty.wire.features import Feature
from poolparty.wire.frames import STREAM_CANCEL, ResponseHead, ResponsePiece, ResponseStart, encode_response
from poolparty.wire.seat import Reason, Return

START = encode_response(ResponseStart(ResponseHead(200, [(b"A", [b"b"])]), None))
END = encode_response(ResponsePiece(b"", True))
CANCEL_TIMEOUT = 5.0


def piece(data: bytes) -> bytes:
    return encode_response(ResponsePiece(data, False))


@pytest.fixture
def pool(pools: Callable[..., Pool]) -> Pool:
    return pools(stream_cancel_timeout=CANCEL_TIMEOUT)


def hearing(pool: Pool) -> Child:
    """A child that looks for StreamCancel."""
    slot = (len(pool.children) + 1) % 8
    kept = pool.board.clear_child
    pool.board.clear_child = lambda row: None  # type: ignore[method-assign]
    kept(slot)
    pool.board.words[pool.board.child_base(slot) + ChildWord.FEATURES] = (
        Feature.STREAM | Feature.STREAM_CANCEL
    )
    try:
        return pool.child()
    finally:
        pool.board.clear_child = kept  # type: ignore[method-assign]


# --- the dispatcher ----------------------------------------------------------------------------------------


def test_the_pieces_go_to_the_client_as_they_come_and_the_next_request_runs_after_the_end(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask(b"/1")
    waiting = pool.ask(b"/2")
    assert child.target() == b"/1"
    child.write(START)
    assert client.told == [("start", None)]
    child.write(piece(b"one"))
    assert client.body == b"one"
    child.write(piece(b"") + piece(b"two") + piece(bytes(100_000)))
    assert client.body == b"onetwo" + bytes(100_000)
    assert child.has_nothing
    child.write(END)
    assert client.told == [("start", None), "end"]
    assert child.target() == b"/2"
    child.answer()
    assert waiting.told == [b"ok"]
    assert child.words == (2, 2)


def test_a_whole_stream_may_arrive_at_once_and_the_next_answer_with_it(pools: Callable[..., Pool]) -> None:
    pool = pools(pool_prefetch=2)
    child = pool.child()
    pool.hurry()
    first, second = pool.ask(b"/1"), pool.ask(b"/2")
    assert (child.target(), child.target()) == (b"/1", b"/2")
    child.write(START + piece(b"one") + END + response(b"two"))
    assert first.body == b"one"
    assert second.told == [b"two"]


def test_what_was_written_behind_a_stream_runs_elsewhere(pools: Callable[..., Pool]) -> None:
    pool = pools(pool_prefetch=3)
    child = pool.child()
    pool.hurry()
    stream, behind, last = pool.ask(b"/stream"), pool.ask(b"/behind"), pool.ask(b"/last")
    assert [child.target(), child.target(), child.target()] == [b"/stream", b"/behind", b"/last"]
    child.write(START + piece(b"one"))
    other = pool.child()
    assert other.target() == b"/behind"
    other.answer(b"from the other")
    assert behind.told == [b"from the other"]
    assert other.target() == b"/last"
    other.answer(b"too")
    assert last.told == [b"too"]
    # The one that streams answers what it has read, for nobody.
    child.write(END).answer(b"late").answer(b"later")
    assert stream.told == [("start", None), "end"]
    assert (behind.told, last.told) == ([b"from the other"], [b"too"])
    assert child.words == (3, 3)
    more = pool.ask(b"/more")
    child.answer(b"more") if not child.has_nothing else other.answer(b"more")
    assert more.told == [b"more"]


def test_nothing_is_written_behind_a_stream(pools: Callable[..., Pool]) -> None:
    pool = pools(pool_prefetch=2)
    child = pool.child()
    pool.ask(b"/stream")
    assert child.target() == b"/stream"
    child.write(START)
    pool.hurry()
    pool.ask(b"/other")
    assert child.has_nothing


@pytest.mark.parametrize("hears", [True, False])
def test_a_child_whose_client_has_left_is_told_if_it_listens(pool: Pool, hears: bool) -> None:
    child = hearing(pool) if hears else pool.child()
    client = pool.ask()
    child.receive()
    child.write(START + piece(b"one"))
    request = pool.dispatcher.leases[child.number].outstanding[0]
    request.connection = None
    pool.later(0.2)
    if hears:
        assert child.read(len(STREAM_CANCEL)) == STREAM_CANCEL
    pool.later(CANCEL_TIMEOUT - 0.1)
    assert child.has_nothing, "told once"
    child.write(piece(b"two") + END)
    assert client.body == b"one"
    assert pool.mail() == []
    again = pool.ask(b"/again")
    assert child.target() == b"/again"
    child.answer()
    assert again.told == [b"ok"]
    pool.later(CANCEL_TIMEOUT + 1)
    assert pool.mail() == []


def test_a_child_that_goes_on_all_the_same_is_given_up(pool: Pool) -> None:
    child = pool.child()
    pool.ask()
    child.receive()
    child.write(START)
    pool.dispatcher.leases[child.number].outstanding[0].connection = None
    pool.later(0.2)
    for _ in range(9):
        child.write(piece(b"on and on"))
        pool.later(CANCEL_TIMEOUT / 10)
    assert pool.mail() == []
    pool.later(CANCEL_TIMEOUT / 5)
    assert pool.mail() == [Return(child.number, Reason.STREAM_CANCELLED)]
    assert any("whose client has left" in line for line in pool.log)


def test_the_time_limit_is_one_on_silence(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask()
    child.receive()
    child.write(START)
    for _ in range(4):
        pool.later(LIMIT - 1)
        child.write(piece(b"."))
    assert client.body == b"...."
    pool.later(LIMIT - 1)
    assert pool.mail() == []
    pool.later(2)
    assert pool.mail() == [Return(child.number, Reason.TIMED_OUT)]
    assert client.told == [("start", None), "cut"]


def test_the_time_that_a_slow_client_takes_is_none_of_the_childs(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask()
    child.receive()
    child.write(START + piece(b"one"))
    assert client.lease is not None
    client.lease.pause_reading()
    child.write(piece(b"two"))
    assert client.body == b"one"
    pool.later(3 * LIMIT)
    client.lease.resume_reading()
    pool.later(1)
    assert client.body == b"onetwo"
    assert pool.mail() == []
    child.write(END)
    assert client.told == [("start", None), "end"]


def test_a_child_that_dies_in_a_stream_has_its_answer_cut(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask()
    child.receive()
    child.write(START + piece(b"one"))
    child.die()
    assert client.told == [("start", None), "cut"]
    assert pool.mail() == [Return(child.number, Reason.BROKEN)]


def test_a_stream_that_http_cannot_carry_is_read_to_its_end_for_nobody(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask(usable=False)
    child.receive()
    child.write(START + piece(b"one"))
    assert client.told == [502]
    child.write(piece(b"two") + END)
    assert client.told == [502]
    assert pool.ask().told == []
    child.receive()


# --- the connection ----------------------------------------------------------------------------------------

GET = b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    side.close()


def dechunked(data: bytes) -> bytes:
    """The body of what is chunked, exactly."""
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        body += data[:count]
        assert data[count : count + 2] == b"\r\n"
        data = data[count + 2 :]
        if not count:
            assert data == b""
            return body


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_a_stream_is_sent_as_chunks_which_say_where_it_ends(parts: list[bytes]) -> None:
    side = Side()
    try:
        side.send(GET % 1)
        side.begin(None, [(b"X-A", [b"b"])])
        for part in parts:
            side.piece(part, False)
        side.piece(b"", True)
        head, _, body = bytes(side.transport.written).partition(b"\r\n\r\n")
        assert b"\r\nTransfer-Encoding: chunked" in head
        assert b"Content-Length" not in head
        assert dechunked(body) == b"".join(parts)
        assert side.count("streamed") == 1
        assert side.count("answered") == 1
        assert side.count("bytes_sent") == len(side.transport.written)
        side.send(GET % 2).answer()
        assert bytes(side.transport.written).endswith(b"\r\n\r\nok")
    finally:
        side.close()


def test_to_http_1_0_its_end_is_the_connections(side: Side) -> None:
    side.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    side.begin(None)
    side.piece(b"one", False)
    side.piece(b"two", False)
    side.piece(b"", True)
    head, _, body = bytes(side.transport.written).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head and b"Content-Length" not in head
    assert head.count(b"Connection: close") == 1
    assert body == b"onetwo"
    assert side.transport.eof or side.transport.closed


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_length_that_the_child_says_is_passed_on(side: Side, version: bytes) -> None:
    side.send(b"GET / HTTP/%s\r\nHost: h\r\nConnection: keep-alive\r\n\r\n" % version)
    side.begin(None, [(b"Content-Length", [b"6"])])
    side.piece(b"one", False)
    side.piece(b"two", False)
    side.piece(b"", True)
    assert side.received() == [(200, b"onetwo")]
    assert not side.transport.closed and not side.transport.eof


@pytest.mark.parametrize(("said", "much"), [(b"7", "less"), (b"5", "more")])
def test_a_length_that_is_not_true_ends_the_connection_and_is_logged(
    side: Side, said: bytes, much: str
) -> None:
    side.send(GET % 1)
    request = side.running
    assert request is not None
    side.begin(None, [(b"Content-Length", [said])])
    side.piece(b"one", False)
    side.piece(b"two", False)
    if request.connection is not None:
        side.piece(b"", True)
    assert side.transport.aborted
    assert any(much in line for line in side.log.errors)
    assert request.connection is None
    assert side.count("failed") == 1 and side.count("answered") == 0


@pytest.mark.parametrize(
    ("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)], ids=["HEAD", "204", "304"]
)
def test_where_there_is_no_body_the_answer_is_complete_with_its_head(
    side: Side, method: bytes, status: int
) -> None:
    side.send(b"%s / HTTP/1.1\r\nHost: h\r\n\r\n" % method)
    request = side.running
    assert request is not None
    assert not side.connection.start_response(request, ResponseHead(status, []), None, object())  # type: ignore[arg-type]
    side._answered += 1
    assert side.received() == [(status, b"")]
    assert b"Transfer-Encoding" not in side.transport.written
    assert request.connection is None, "nobody waits for the pieces"
    side.send(GET % 2).answer()
    assert side.received() == [(200, b"ok")]


def test_a_client_that_leaves_in_a_stream_is_logged_with_what_it_got(side: Side) -> None:
    side.send(GET % 1)
    request = side.running
    assert request is not None
    side.begin(None)
    side.piece(b"one", False)
    side._answered += 1
    side.leave()
    assert request.connection is None
    assert side.count("abandoned") == 1
    assert side.count("bytes_sent") == len(side.transport.written)


def test_pipelined_requests_wait_for_the_streams_end(side: Side) -> None:
    side.send(GET % 1 + GET % 2)
    side.begin(None)
    side.piece(b"one", False)
    side.piece(b"", True)
    side.answer(b"two")
    written = bytes(side.transport.written)
    first, _, second = written.partition(b"0\r\n\r\n")
    assert first.endswith(b"\r\n\r\n3\r\none\r\n")
    assert second.endswith(b"two")
