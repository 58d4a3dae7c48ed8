"""Frames in both directions: whole, byte by byte, with bytes behind them, broken, and as pybare sees them."""

from __future__ import annotations

import contextlib
import io
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import bare
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolparty.errors import FrameError
from poolparty.wire.bare import encode_string, encode_uint
from poolparty.wire.frames import (
    HEALTH_CHECK,
    MAX_PAYLOAD,
    MAX_RESPONSE_HEAD,
    STREAM_CANCEL,
    WHOLE_RESPONSE,
    FrameReader,
    HealthCheckRequest,
    HealthReply,
    HTTPRequest,
    HTTPRequestFile,
    HTTPResponse,
    Ready,
    Request,
    Response,
    ResponseEvent,
    ResponseHead,
    ResponsePiece,
    ResponseReader,
    ResponseStart,
    StreamCancel,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    file_request,
    frame,
    request_head,
)

# --- what travels ------------------------------------------------------------------------------------------

# Lengths on either side of where a length's own encoding, or the reader's way of working, changes.
EDGE_SIZES = [0, 1, 127, 128, 16383, 16384, WHOLE_RESPONSE - 1, WHOLE_RESPONSE, WHOLE_RESPONSE + 1, 200_000]

texts = st.one_of(st.text(max_size=20).map(str.encode), st.sampled_from([b"x" * 127, b"x" * 128]))
bodies = st.one_of(st.binary(max_size=200), st.sampled_from(EDGE_SIZES).map(bytes))
small_bodies = st.binary(max_size=200)

requests = st.one_of(
    st.builds(HTTPRequest, texts, texts, texts, st.lists(st.tuples(texts, texts), max_size=5), bodies),
    st.builds(HealthCheckRequest),
    st.builds(
        HTTPRequestFile,
        *(texts, texts, texts, st.lists(st.tuples(texts, texts), max_size=5), texts, st.integers(0, 2**40)),
    ),
    st.builds(StreamCancel),
)

statuses = st.one_of(st.sampled_from([0, 127, 128, 200, 204, 404, 599, 2**64 - 1]), st.integers(0, 1000))
raw_headers = st.lists(
    st.tuples(st.binary(max_size=20), st.lists(st.binary(max_size=20), max_size=3)), max_size=4
)
heads = st.builds(ResponseHead, statuses, raw_headers)


def responses(body: st.SearchStrategy[bytes]) -> st.SearchStrategy[Response]:
    return st.one_of(
        st.builds(HTTPResponse, heads, body),
        st.builds(Ready, st.lists(st.text(max_size=20), max_size=3).map(tuple)),
        st.builds(HealthReply, st.booleans(), st.text(max_size=200)),
    )


@dataclass(frozen=True)
class Streamed:
    """A response that its child sends in pieces."""

    head: ResponseHead
    parts: list[bytes]

    def encoded(self) -> bytes:
        messages = [ResponseStart(self.head, None)]
        messages += (ResponsePiece(part, False) for part in self.parts)
        return b"".join(map(encode_response, (*messages, ResponsePiece(b"", True))))


def answers_of(body: st.SearchStrategy[bytes]) -> st.SearchStrategy[Response | Streamed]:
    return st.one_of(responses(body), st.builds(Streamed, heads, st.lists(body, max_size=4)))


def encoded(answer: Response | Streamed) -> bytes:
    return answer.encoded() if isinstance(answer, Streamed) else encode_response(answer)


def plain(response: Response | Streamed) -> object:
    """What a response says, comparable."""
    if isinstance(response, HTTPResponse):
        return response.head.status, response.head.headers, bytes(response.body)
    if isinstance(response, Streamed):
        return response.head.status, response.head.headers, b"".join(response.parts)
    if isinstance(response, ResponseStart):
        return response.head.status, response.head.headers, response.body_size
    return response


@dataclass
class Answers:
    """Puts a reader's events together again, checking that they come in a sensible order."""

    whole: list[object] = field(default_factory=list)
    head: ResponseHead | None = None
    size: int | None = 0
    body: bytearray = field(default_factory=bytearray)

    def take(self, events: Iterable[ResponseEvent]) -> None:
        for event in events:
            if isinstance(event, ResponseStart):
                assert self.head is None
                self.head, self.size, self.body = event.head, event.body_size, bytearray()
            elif isinstance(event, ResponsePiece):
                assert self.head is not None
                self.body += event.data
                if self.size is not None:
                    assert event.last == (len(self.body) == self.size)
                else:
                    assert event.last == (not event.data)
                if event.last:
                    self.whole.append((self.head.status, self.head.headers, bytes(self.body)))
                    self.head = None
            else:
                assert self.head is None
                self.whole.append(plain(event))


def pieces(stream: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cuts), len(stream)]
    return (stream[start:end] for start, end in pairwise(edges))


def read(stream: bytes, cuts: Iterable[int] = ()) -> list[object]:
    """What a ResponseReader makes of a stream that arrives in pieces."""
    reader, answers = ResponseReader(), Answers()
    for piece in pieces(stream, cuts):
        answers.take(reader.feed(piece))
    assert reader.idle
    assert answers.head is None
    return answers.whole


def http_response(body: bytes = b"", status: int = 200, name: bytes = b"Content-Type") -> HTTPResponse:
    return HTTPResponse(ResponseHead(status, [(name, [b"text/plain"])]), body)


# --- requests ----------------------------------------------------------------------------------------------


@given(requests)
def test_a_request_comes_back_from_its_frame(request_: Request) -> None:
    encoded = encode_request(request_)
    assert int.from_bytes(encoded[:4], "little") == len(encoded) - 4
    assert decode_request(encoded[4:]) == request_


@given(requests, st.binary(min_size=1, max_size=5))
def test_bytes_behind_a_request_are_refused(request_: Request, behind: bytes) -> None:
    with pytest.raises(FrameError, match="stand behind the message"):
        decode_request(encode_request(request_)[4:] + behind)


@given(
    st.builds(HTTPRequest, texts, texts, texts, st.lists(st.tuples(texts, texts), max_size=5), small_bodies)
)
def test_a_request_that_ends_early_is_refused_wherever_it_is_cut(request_: HTTPRequest) -> None:
    payload = encode_request(request_)[4:]
    for cut in range(len(payload)):
        with pytest.raises(FrameError):
            decode_request(payload[:cut])


@given(st.lists(requests, max_size=4), st.data())
def test_a_stream_of_requests_is_cut_into_the_same_payloads_however_it_arrives(
    sent: list[Request], data: st.DataObject
) -> None:
    stream = b"".join(map(encode_request, sent))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    reader, got = FrameReader(), []
    for piece in pieces(stream, cuts):
        reader.feed(piece)
        while (payload := reader.next_payload()) is not None:
            got.append(decode_request(payload))
    assert got == sent
    assert len(reader) == 0


@given(st.lists(st.builds(HTTPRequest, texts, texts, texts, st.just([]), st.binary(max_size=9)), max_size=3))
def test_a_stream_of_requests_can_arrive_byte_by_byte(sent: list[HTTPRequest]) -> None:
    reader, got = FrameReader(), []
    for byte in b"".join(map(encode_request, sent)):
        reader.feed(bytes([byte]))
        payload = reader.next_payload()
        if payload is not None:
            got.append(decode_request(payload))
    assert got == sent


@given(
    texts, texts, texts, st.dictionaries(texts, texts, max_size=5), st.one_of(bodies, st.just(b"x" * 0x10000))
)
def test_the_fast_way_to_write_a_request_writes_the_same_bytes(
    address: bytes, uri: bytes, method: bytes, headers: dict[bytes, bytes], body: bytes
) -> None:
    head = request_head(
        encode_string(address),
        uri,
        encode_string(method),
        {encode_string(name): value for name, value in headers.items()},
        len(body),
    )
    assert head + body == encode_request(HTTPRequest(address, uri, method, list(headers.items()), body))


def test_a_request_of_two_hundred_headers_has_its_count_in_two_bytes() -> None:
    headers = {b"X-%d" % n: b"v" * n for n in range(200)}
    head = request_head(
        b"\0", b"/", b"\0", {encode_string(name): value for name, value in headers.items()}, 0
    )
    decoded = decode_request(head[4:])
    assert isinstance(decoded, HTTPRequest)
    assert dict(decoded.headers) == headers


def test_a_request_beyond_the_largest_frame_is_not_written() -> None:
    room = MAX_PAYLOAD - len(request_head(b"\0", b"/", b"\0", {}, 2**30)[4:])
    assert request_head(b"\0", b"/", b"\0", {}, room)[:4] == MAX_PAYLOAD.to_bytes(4, "little")
    with pytest.raises(FrameError, match="over the limit"):
        request_head(b"\0", b"/", b"\0", {}, room + 1)


def test_the_ready_made_health_check_is_a_health_check() -> None:
    assert encode_request(HealthCheckRequest()) == HEALTH_CHECK
    assert decode_request(HEALTH_CHECK[4:]) == HealthCheckRequest()
    assert decode_request(STREAM_CANCEL[4:]) == StreamCancel()


@given(
    *(texts, texts, texts, st.dictionaries(texts, texts, max_size=5), texts, st.integers(0, 2**40)),
)
def test_the_fast_way_to_write_a_request_with_a_file_writes_the_same_bytes(
    address: bytes, uri: bytes, method: bytes, headers: dict[bytes, bytes], path: bytes, size: int
) -> None:
    names = {encode_string(name): value for name, value in headers.items()}
    written = file_request(encode_string(address), uri, encode_string(method), names, path, size)
    assert written == encode_request(HTTPRequestFile(address, uri, method, list(headers.items()), path, size))


@pytest.mark.parametrize("tag", [4, 5, 127, 300])
def test_a_request_with_an_unknown_tag_is_refused(tag: int) -> None:
    with pytest.raises(FrameError, match=f"unknown tag {tag}"):
        decode_request(encode_uint(tag) + b"\0\0\0\0\0")


# --- responses, one payload at a time ----------------------------------------------------------------------


parts_of_streams = st.one_of(
    st.builds(ResponseStart, heads, st.none()),
    st.builds(ResponsePiece, small_bodies, st.just(False)),
    st.just(ResponsePiece(b"", True)),
)


@given(st.one_of(responses(bodies), parts_of_streams))
def test_a_response_comes_back_from_its_frame(response: Response) -> None:
    encoded = encode_response(response)
    assert int.from_bytes(encoded[:4], "little") == len(encoded) - 4
    assert plain(decode_response(encoded[4:])) == plain(response)


@given(st.one_of(responses(small_bodies), parts_of_streams), st.binary(min_size=1, max_size=5))
def test_bytes_behind_a_response_are_refused(response: Response, behind: bytes) -> None:
    with pytest.raises(FrameError):
        decode_response(encode_response(response)[4:] + behind)


@given(st.one_of(responses(small_bodies), parts_of_streams))
def test_a_response_that_ends_early_is_refused_wherever_it_is_cut(response: Response) -> None:
    payload = encode_response(response)[4:]
    for cut in range(len(payload)):
        with pytest.raises(FrameError):
            decode_response(payload[:cut])


@pytest.mark.parametrize("tag", [6, 7, 127, 300])
def test_a_response_with_an_unknown_tag_is_refused(tag: int) -> None:
    with pytest.raises(FrameError, match=f"unknown tag {tag}"):
        decode_response(encode_uint(tag) + b"\0\0\0")


def test_a_health_reply_whose_bool_is_neither_is_refused() -> None:
    with pytest.raises(FrameError, match="bool is 2"):
        decode_response(b"\x02\x02\x00")


@pytest.mark.parametrize("payload", [b"\x01\x01\x02\xff\xfe", b"\x02\x00\x01\xff"])
def test_text_that_is_not_utf8_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError, match="not UTF-8"):
        decode_response(payload)


def test_a_header_may_be_any_bytes_as_judging_it_is_not_the_codecs_affair() -> None:
    response = HTTPResponse(ResponseHead(999, [(b"a\r\nb: \xff", [b"\n\0", b""]), (b"", [])]), b"")
    assert plain(decode_response(encode_response(response)[4:])) == plain(response)


# --- FrameReader -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MAX_PAYLOAD + 1, 0xFFFFFFFF])
def test_an_oversized_length_is_rejected_before_its_payload_arrives(size: int) -> None:
    for reader in (FrameReader(), ResponseReader()):
        reader.feed(size.to_bytes(4, "little")[:3])
        with pytest.raises(FrameError, match=f"a frame of {size} bytes is over the limit"):
            reader.feed(size.to_bytes(4, "little")[3:])
            assert isinstance(reader, FrameReader)
            reader.next_payload()


def test_the_largest_length_is_no_error_yet() -> None:
    reader = FrameReader()
    reader.feed(MAX_PAYLOAD.to_bytes(4, "little"))
    assert reader.next_payload() is None
    assert list(ResponseReader().feed(MAX_PAYLOAD.to_bytes(4, "little"))) == []


def test_a_reader_can_be_given_a_lower_limit() -> None:
    reader = FrameReader(limit=10)
    reader.feed(frame(b"0123456789"))
    assert reader.next_payload() == b"0123456789"
    reader.feed((11).to_bytes(4, "little"))
    with pytest.raises(FrameError, match="a frame of 11 bytes is over the limit of 10"):
        reader.next_payload()


# --- ResponseReader ----------------------------------------------------------------------------------------


# What hypothesis would show of several large bodies is its own affair; an error in the middle of its drawing
# makes it find its data inconsistent.
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@given(st.lists(answers_of(bodies), max_size=4), st.data())
def test_a_stream_of_responses_gives_the_same_answers_however_it_arrives(
    sent: list[Response | Streamed], data: st.DataObject
) -> None:
    stream = b"".join(map(encoded, sent))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    assert read(stream, cuts) == [plain(response) for response in sent]


@given(st.lists(answers_of(small_bodies), min_size=1, max_size=3))
def test_a_stream_of_responses_can_arrive_byte_by_byte(sent: list[Response | Streamed]) -> None:
    stream = b"".join(map(encoded, sent))
    assert read(stream, range(1, len(stream))) == [plain(response) for response in sent]


@given(responses(small_bodies), st.data())
def test_the_start_of_the_next_response_may_come_with_the_end_of_this_one(
    response: Response, data: st.DataObject
) -> None:
    encoded = encode_response(response)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    reader, answers = ResponseReader(), Answers()
    answers.take(reader.feed(encoded + encoded[:cut]))
    assert answers.whole == [plain(response)]
    assert reader.idle == (cut == 0)
    answers.take(reader.feed(encoded[cut:]))
    assert answers.whole == [plain(response)] * 2
    assert reader.idle


START, END = encode_response(ResponseStart(ResponseHead(200, []), None)), frame(b"\5")


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (b"\0\xc8\1\0\0", "tag 0 in the middle"),
        (b"\0\xc8\1\0" + b"\x90\x4e" + bytes(10_000), "tag 0 in the middle"),
        (b"\1\0", "tag 1 in the middle"),
        (b"\3\xc8\1\0", "tag 3 in the middle"),
        (b"\5\0", "tag 5 in the middle"),
        (b"\xff\0", "tag 255 in the middle"),
        (b"\4\2a", "does not end where"),
        (b"\4\1ab", "does not end where"),
        (b"\4\x80", "ends before its message"),
    ],
)
def test_what_is_no_piece_in_the_middle_of_a_streamed_response_is_refused(payload: bytes, fault: str) -> None:
    for behind in (b"", encode_response(ResponsePiece(b"piece", False))):
        reader = ResponseReader()
        reader.feed(START + behind)
        assert reader.streaming and not reader.idle
        with pytest.raises(FrameError, match=fault):
            reader.feed(frame(payload))


@pytest.mark.parametrize(
    "message", [ResponsePiece(bytes(WHOLE_RESPONSE + 9), False), http_response(bytes(WHOLE_RESPONSE + 9))]
)
def test_nothing_gives_no_piece(message: Response) -> None:
    """Of no bytes in the middle of a large body an empty piece was made."""
    reader = ResponseReader()
    reader.feed(START if isinstance(message, ResponsePiece) else b"")
    reader.feed(encode_response(message)[:40])
    assert reader.body_left
    assert reader.feed(b"") == []


@pytest.mark.parametrize("tag", range(6))
@pytest.mark.parametrize("before", [b"", START], ids=["between two responses", "in the middle of one"])
def test_a_tag_in_a_longer_form_than_it_has_is_no_tag(tag: int, before: bytes) -> None:
    """The end of a stream in two bytes was one where there was no stream."""
    for behind in (b"", b"\0", b"\1a", b"\xc8\1\0\0"):
        reader = ResponseReader()
        reader.feed(before)
        with pytest.raises(FrameError):
            reader.feed(frame(bytes([tag | 0x80, 0]) + behind))


@pytest.mark.parametrize("payload", [b"\4\1a", b"\5", b"\4\x81\x80\4" + bytes(65537)])
def test_a_piece_that_belongs_to_no_response_is_refused(payload: bytes) -> None:
    for before in (b"", START + END, encode_response(http_response())):
        reader = ResponseReader()
        reader.feed(before)
        with pytest.raises(FrameError, match=r"between two responses"):
            reader.feed(frame(payload))


def test_a_large_piece_passes_through_and_is_not_held() -> None:
    large = encode_response(ResponsePiece(bytes(WHOLE_RESPONSE + 9), False))
    reader = ResponseReader()
    reader.feed(START)
    [piece] = reader.feed(large[:12])
    assert isinstance(piece, ResponsePiece)
    assert (len(piece.data), piece.last) == (12 - 4 - 4, False)
    assert reader.body_left == len(large) - 12
    assert not reader.passed(reader.body_left), "the stream goes on"
    assert not reader.idle
    assert reader.feed(END) == [ResponsePiece(b"", True)]
    assert reader.idle


def test_the_head_of_a_streamed_response_has_a_limit() -> None:
    field = b"\1a\1" + encode_string(bytes(MAX_RESPONSE_HEAD))
    with pytest.raises(FrameError, match="tag 3"):
        ResponseReader().feed(frame(b"\3\xc8\1\1" + field))


@pytest.mark.parametrize("tag", [6, 127, 255])
def test_the_first_thing_a_child_says_may_not_be_of_an_unknown_tag_either(tag: int) -> None:
    """255 was what the reader compared the first head with, and so an answer with the status 0."""
    with pytest.raises(FrameError, match="unknown tag"):
        ResponseReader().feed(frame(bytes([tag, 1, 0])))


def body_for_payload(size: int) -> bytes:
    """The body with which http_response() has a payload of exactly `size` bytes."""
    body = bytes(size)
    while len(encode_response(http_response(body))) - 4 > size:
        body = body[1:]
    return body


@pytest.mark.parametrize("size", [WHOLE_RESPONSE - 1, WHOLE_RESPONSE])
def test_a_response_up_to_the_whole_size_is_handed_over_in_one_piece(size: int) -> None:
    encoded = encode_response(http_response(body_for_payload(size)))
    assert len(encoded) == 4 + size
    reader = ResponseReader()
    assert list(reader.feed(encoded[:-1])) == []
    [event] = reader.feed(encoded[-1:])
    assert isinstance(event, HTTPResponse)


def test_a_larger_response_passes_through_in_pieces_and_is_not_held() -> None:
    body = random.Random(1).randbytes(WHOLE_RESPONSE + 1)
    encoded = encode_response(http_response(body))
    reader, answers = ResponseReader(), Answers()
    head_size = len(encoded) - len(body)
    events = list(reader.feed(encoded[: head_size + 10]))
    assert [type(event) for event in events] == [ResponseStart, ResponsePiece]
    answers.take(events)
    assert bytes(answers.body) == body[:10]
    answers.take(reader.feed(encoded[head_size + 10 : -1]))
    assert bytes(answers.body) == body[:-1]
    assert not reader.idle
    answers.take(reader.feed(encoded[-1:]))
    assert answers.whole == [plain(http_response(body))]
    assert reader.idle


def test_a_large_response_starts_as_soon_as_its_head_is_there() -> None:
    body = bytes(WHOLE_RESPONSE + 1)
    encoded = encode_response(http_response(body))
    reader = ResponseReader()
    head_size = len(encoded) - len(body)
    assert list(reader.feed(encoded[: head_size - 1])) == []
    start, piece = reader.feed(encoded[head_size - 1 : head_size])
    assert isinstance(start, ResponseStart)
    assert start.body_size == len(body)
    assert isinstance(piece, ResponsePiece)
    assert (bytes(piece.data), piece.last) == (b"", False)


def test_a_head_that_repeats_is_the_same_object_so_that_what_was_made_of_it_is_kept() -> None:
    reader = ResponseReader()
    [first] = reader.feed(encode_response(http_response(b"one")))
    assert isinstance(first, HTTPResponse)
    first.head.rendered = "kept"
    [second] = reader.feed(encode_response(http_response(b"two")))
    assert isinstance(second, HTTPResponse)
    assert second.head is first.head
    assert bytes(second.body) == b"two"
    [other] = reader.feed(encode_response(http_response(b"two", status=201)))
    assert isinstance(other, HTTPResponse)
    assert (other.head.status, other.head.rendered) == (201, None)


def test_a_head_that_begins_like_the_last_one_is_not_taken_for_it() -> None:
    reader, answers = ResponseReader(), Answers()
    short = HTTPResponse(ResponseHead(200, []), b"\x05abcde")
    longer = HTTPResponse(ResponseHead(200, [(b"a", [b"b"])]), b"\x05abcde")
    sent = [short, longer, short, http_response(b"x"), http_response(b"x" * 300), http_response(b""), longer]
    for response in sent:
        answers.take(reader.feed(encode_response(response)))
    assert answers.whole == [plain(response) for response in sent]


@given(heads, st.lists(st.binary(max_size=300), min_size=2, max_size=5))
def test_a_repeated_head_with_any_body_reads_as_a_fresh_reader_reads_it(
    head: ResponseHead, sent: list[bytes]
) -> None:
    reader, answers = ResponseReader(), Answers()
    for body in sent:
        answers.take(reader.feed(encode_response(HTTPResponse(head, body))))
    assert answers.whole == [(head.status, head.headers, body) for body in sent]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_repeated_head_with_a_body_of_another_length_is_refused(change: int) -> None:
    encoded = bytearray(encode_response(http_response(b"hello")))
    reader = ResponseReader()
    list(reader.feed(bytes(encoded)))
    encoded[-6] += change
    with pytest.raises(FrameError):
        list(reader.feed(bytes(encoded)))


def test_a_repeated_head_without_its_bodys_length_is_refused() -> None:
    encoded = encode_response(http_response(b""))
    reader = ResponseReader()
    list(reader.feed(encoded))
    with pytest.raises(FrameError, match="ends before"):
        list(reader.feed(frame(encoded[4:-1])))


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(FrameError, match="empty"):
        list(ResponseReader().feed(bytes(4)))


def test_a_large_frame_that_is_no_http_response_is_refused_at_its_tag() -> None:
    size = WHOLE_RESPONSE + 1
    with pytest.raises(FrameError, match="has the tag 2"):
        list(ResponseReader().feed(size.to_bytes(4, "little") + b"\x02"))


def test_a_string_that_reaches_into_the_next_frame_is_refused() -> None:
    good = encode_response(http_response(b"hello"))
    bad = bytearray(good)
    bad[4 + 4] += 3  # the header name's length
    with pytest.raises(FrameError):
        list(ResponseReader().feed(bytes(bad) + good * 3))


def test_a_head_that_never_ends_is_refused_at_its_bound() -> None:
    reader = ResponseReader()
    endless_name = b"\0\xc8\x01\x01" + encode_uint(2 * MAX_RESPONSE_HEAD)
    list(reader.feed(MAX_PAYLOAD.to_bytes(4, "little") + endless_name))
    fed = 0
    with pytest.raises(FrameError, match="headers go beyond"):
        while fed < 2 * MAX_RESPONSE_HEAD:
            fed += 0x10000
            list(reader.feed(bytes(0x10000)))
    assert fed <= MAX_RESPONSE_HEAD + 0x10000


def test_a_head_just_within_its_bound_is_read() -> None:
    head = ResponseHead(200, [(b"a", [bytes(MAX_RESPONSE_HEAD - 50)])])
    stream = encode_response(HTTPResponse(head, bytes(100)))
    assert read(stream, range(0, len(stream), 0x10000)) == [(200, head.headers, bytes(100))]


def test_a_large_head_that_drips_in_is_not_read_anew_for_every_drop() -> None:
    head = ResponseHead(200, [(b"a%d" % n, [b"b"]) for n in range(20_000)])
    stream = encode_response(HTTPResponse(head, b""))
    assert len(stream) > 2 * WHOLE_RESPONSE
    began = time.process_time()
    assert read(stream, range(0, len(stream), 16)) == [(200, head.headers, b"")]
    # Some 12,000 drops: decoded once more for each they take two minutes, a few times less than a second.
    assert time.process_time() - began < 5


@given(st.binary(max_size=300))
def test_any_bytes_are_events_or_a_frame_error(stream: bytes) -> None:
    reader = ResponseReader()
    with contextlib.suppress(FrameError):
        for byte in stream:
            list(reader.feed(bytes([byte])))


@given(st.binary(max_size=300))
def test_any_payload_is_a_message_or_a_frame_error(payload: bytes) -> None:
    for decode in (decode_request, decode_response):
        with contextlib.suppress(FrameError):
            decode(payload)


@given(st.lists(responses(small_bodies), min_size=1, max_size=3), st.data())
def test_a_response_with_a_byte_changed_is_read_or_refused_alike_however_it_arrives(
    sent: list[Response], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(map(encode_response, sent)))
    at = data.draw(st.integers(0, len(stream) - 1))
    match data.draw(st.sampled_from(["flip", "insert", "delete"])):
        case "flip":
            stream[at] ^= data.draw(st.integers(1, 255))
        case "insert":
            stream.insert(at, data.draw(st.integers(0, 255)))
        case "delete":
            del stream[at]
    outcomes = []
    for step in (len(stream), 1, 7):
        reader, answers = ResponseReader(), Answers()
        error = None
        try:
            for piece in pieces(bytes(stream), range(0, len(stream), step)):
                answers.take(reader.feed(piece))
                if reader.fault is not None:
                    raise reader.fault
        except FrameError as caught:
            error = str(caught)
        outcomes.append((answers.whole, answers.head is None and reader.idle, error is None))
    # However it arrives, what stands before a fault is read.
    whole, single, seven = outcomes
    assert single[2] == seven[2] == whole[2]
    assert single[0] == seven[0] == whole[0]
    if whole[2]:
        assert whole == single == seven


# --- as pybare sees it -------------------------------------------------------------------------------------


class PyRequest(bare.Struct):
    remote_address = bare.Field(bare.Str)
    uri = bare.Field(bare.Str)
    method = bare.Field(bare.Str)
    headers = bare.Field(bare.map(bare.Str, bare.Str))
    body = bare.Field(bare.Data)


# pybare knows no struct without fields; a void takes as many bytes.
class PyAnyRequest(bare.Union, variants=(PyRequest, bare.Void)):
    pass


class PyResponse(bare.Struct):
    status = bare.Field(bare.UInt)
    headers = bare.Field(bare.map(bare.Str, bare.array(bare.Str)))
    body = bare.Field(bare.Data)


class PyReady(bare.Struct):
    features = bare.Field(bare.array(bare.Str))


class PyHealthReply(bare.Struct):
    ok = bare.Field(bare.Bool)
    message = bare.Field(bare.Str)


class PyAnyResponse(bare.Union, variants=(PyResponse, PyReady, PyHealthReply)):
    pass


words = st.text(max_size=12)
word_maps = st.dictionaries(words, words, max_size=4)
list_maps = st.dictionaries(words, st.lists(words, max_size=3), max_size=4)


@given(words, words, words, word_maps, bodies)
def test_pybare_reads_the_requests_that_we_write(
    address: str, uri: str, method: str, headers: dict[str, str], body: bytes
) -> None:
    encoded = encode_request(
        HTTPRequest(
            address.encode(),
            uri.encode(),
            method.encode(),
            [(name.encode(), value.encode()) for name, value in headers.items()],
            body,
        )
    )
    stream = io.BytesIO(encoded[4:])
    message = PyAnyRequest.unpack(stream).value
    assert stream.read() == b""
    assert (message.remote_address, message.uri, message.method) == (address, uri, method)
    assert {name.value: value.value for name, value in message.headers.items()} == headers
    assert message.body.value == body


@given(words, words, words, word_maps, bodies)
def test_we_read_the_requests_that_pybare_writes(
    address: str, uri: str, method: str, headers: dict[str, str], body: bytes
) -> None:
    message = PyRequest(remote_address=address, uri=uri, method=method, headers=headers, body=body)
    assert decode_request(bytes(PyAnyRequest(message).pack())) == HTTPRequest(
        address.encode(),
        uri.encode(),
        method.encode(),
        [(name.encode(), value.encode()) for name, value in headers.items()],
        body,
    )


def test_pybare_and_we_write_the_same_health_check() -> None:
    assert bytes(PyAnyRequest(bare.Void()).pack()) == HEALTH_CHECK[4:]
    assert isinstance(PyAnyRequest.unpack(io.BytesIO(HEALTH_CHECK[4:])).value, bare.Void)


@given(st.integers(0, 2**64 - 1), list_maps, bodies)
def test_we_read_the_responses_that_pybare_writes(
    status: int, headers: dict[str, list[str]], body: bytes
) -> None:
    payload = bytes(PyAnyResponse(PyResponse(status=status, headers=headers, body=body)).pack())
    ours = [(name.encode(), [value.encode() for value in values]) for name, values in headers.items()]
    assert plain(decode_response(payload)) == (status, ours, body)
    assert read(frame(payload)) == [(status, ours, body)]


@given(st.integers(0, 2**64 - 1), list_maps, bodies)
def test_pybare_reads_the_responses_that_we_write(
    status: int, headers: dict[str, list[str]], body: bytes
) -> None:
    ours = [(name.encode(), [value.encode() for value in values]) for name, values in headers.items()]
    stream = io.BytesIO(encode_response(HTTPResponse(ResponseHead(status, ours), body))[4:])
    message = PyAnyResponse.unpack(stream).value
    assert stream.read() == b""
    assert message.status == status
    assert {
        name.value: [value.value for value in values.value] for name, values in message.headers.items()
    } == headers
    assert message.body.value == body


@given(st.lists(words, max_size=4), st.booleans(), words)
def test_pybare_and_we_agree_on_what_a_child_says_about_itself(
    features: list[str], ok: bool, message: str
) -> None:
    ready, reply = Ready(tuple(features)), HealthReply(ok, message)
    assert bytes(PyAnyResponse(PyReady(features=features)).pack()) == encode_response(ready)[4:]
    assert bytes(PyAnyResponse(PyHealthReply(ok=ok, message=message)).pack()) == encode_response(reply)[4:]
    assert decode_response(bytes(PyAnyResponse(PyReady(features=features)).pack())) == ready
    assert decode_response(bytes(PyAnyResponse(PyHealthReply(ok=ok, message=message)).pack())) == reply
