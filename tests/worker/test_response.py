"""A child's answer as the bytes a client gets: framing by RFC 9110 and 9112, and what HTTP cannot carry.

What the original was seen to send for the same answers is named where it matters.
"""

from __future__ import annotations

import re

import pytest

from poolparty.errors import AnswerError
from poolparty.wire.frames import ResponseHead
from poolparty.worker.response import (
    CLOSE,
    DEFAULT_TYPE,
    HOP_BY_HOP,
    KEEP_ALIVE,
    SERVER,
    Rendered,
    head_end,
    own_response,
    render,
    status_line,
)

DATE = b"Date: Tue, 24 Nov 2026 04:54:14 GMT\r\n"

Headers = list[tuple[bytes, list[bytes]]]


def sent(
    status: int = 200,
    headers: Headers | None = None,
    size: int = 2,
    is_head: bool = False,
    connection: bytes = b"",
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The status line and the fields of an answer, in order."""
    rendered = render(ResponseHead(status, headers or []))
    data = rendered.start + head_end(rendered, size, is_head, DATE, connection)
    assert data.endswith(b"\r\n\r\n")
    line, *fields = data[:-4].split(b"\r\n")
    pairs = []
    for field in fields:
        name, colon, value = field.partition(b": ")
        assert colon and name
        pairs.append((name, value))
    return line, pairs


def fields(
    status: int = 200, headers: Headers | None = None, size: int = 2, is_head: bool = False
) -> dict[bytes, list[bytes]]:
    """The fields of an answer by their lower-case names."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in sent(status, headers, size, is_head)[1]:
        found.setdefault(name.lower(), []).append(value)
    return found


def refused(status: int = 200, headers: Headers | None = None) -> str:
    with pytest.raises(AnswerError) as caught:
        render(ResponseHead(status, headers or []))
    return str(caught.value)


# --- the plain case ----------------------------------------------------------------------------------------


def test_an_answer_has_the_originals_fields() -> None:
    line, pairs = sent()
    assert line == b"HTTP/1.1 200 OK"
    assert sorted(pairs) == [
        (b"Content-Length", b"2"),
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Date", b"Tue, 24 Nov 2026 04:54:14 GMT"),
        (b"Server", b"poolparty"),
    ]


def test_a_childs_headers_pass_through_as_it_wrote_them_and_repeated_ones_repeat() -> None:
    headers: Headers = [
        (b"x-LOWER", [b"v"]),
        (b"Set-Cookie", [b"a=1", b"b=2"]),
        (b"Empty", [b""]),
        (b"No", []),
    ]
    _, pairs = sent(headers=headers)
    ours = {b"Server", b"Date", b"Content-Type", b"Content-Length"}
    assert [pair for pair in pairs if pair[0] not in ours] == [
        (b"x-LOWER", b"v"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"Empty", b""),
    ]


def test_a_value_passes_through_byte_by_byte() -> None:
    value = bytes(n for n in range(1, 256) if n not in b"\r\n")
    assert fields(headers=[(b"X", [value])])[b"x"] == [value]


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (200, b"HTTP/1.1 200 OK\r\n"),
        (404, b"HTTP/1.1 404 Not Found\r\n"),
        (299, b"HTTP/1.1 299 Unknown\r\n"),
        (599, b"HTTP/1.1 599 Unknown\r\n"),
    ],
)
def test_every_status_has_a_reason(status: int, line: bytes) -> None:
    assert status_line(status) == line
    assert sent(status)[0] + b"\r\n" == line


def test_a_head_is_rendered_once() -> None:
    head = ResponseHead(200, [(b"A", [b"b"])])
    assert render(head) is render(head)
    assert isinstance(head.rendered, Rendered)


# --- fields that are ours unless the child has its own -----------------------------------------------------


@pytest.mark.parametrize("name", [b"Server", b"server"])
def test_a_child_may_name_itself(name: bytes) -> None:
    assert fields(headers=[(name, [b"mine"])])[b"server"] == [b"mine"]


@pytest.mark.parametrize("name", [b"Date", b"DATE"])
def test_a_childs_own_date_stands_alone(name: bytes) -> None:
    # The original overwrites it. A child that passes another server's answer on knows better.
    assert fields(headers=[(name, [b"Mon, 01 Jan 2024 00:00:00 GMT"])])[b"date"] == [
        b"Mon, 01 Jan 2024 00:00:00 GMT"
    ]


@pytest.mark.parametrize("name", [b"Content-Type", b"content-type"])
def test_a_childs_type_stands_alone(name: bytes) -> None:
    assert fields(headers=[(name, [b"a/b"])])[b"content-type"] == [b"a/b"]


@pytest.mark.parametrize("name", [b"Server", b"Date", b"Content-Type"])
def test_of_several_values_where_one_is_allowed_the_last_counts_as_with_the_original(name: bytes) -> None:
    assert fields(headers=[(name, [b"first", b"last"])])[name.lower()] == [b"last"]


@pytest.mark.parametrize("name", [b"Server", b"Date", b"Content-Type"])
def test_a_name_without_a_value_leaves_the_field_to_us(name: bytes) -> None:
    assert fields(headers=[(name, [])])[name.lower()] == fields()[name.lower()]


# --- a type that is missing, as the original has it --------------------------------------------------------


def test_a_body_without_a_type_is_plain_text_and_no_body_has_none() -> None:
    assert fields(size=2)[b"content-type"] == [b"text/plain; charset=utf-8"]
    assert b"content-type" not in fields(size=0)
    assert fields(size=2, is_head=True)[b"content-type"] == [b"text/plain; charset=utf-8"]
    assert b"content-type" not in fields(size=0, is_head=True)


@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize("size", [0, 2])
def test_a_status_without_content_gets_no_type_of_ours(status: int, size: int) -> None:
    assert b"content-type" not in fields(status, size=size)
    assert fields(status, [(b"Content-Type", [b"a/b"])], size)[b"content-type"] == [b"a/b"]


# --- framing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65536, 10**9])
@pytest.mark.parametrize("claimed", [[], [b"5"], [b"5", b"6"], [b"nonsense"]])
def test_the_length_of_a_body_is_counted_and_never_the_childs(size: int, claimed: list[bytes]) -> None:
    headers: Headers = [(b"Content-Length", claimed)]
    assert fields(headers=headers, size=size)[b"content-length"] == [b"%d" % size]


def test_head_with_a_body_gets_that_bodys_length() -> None:
    # What a handler that treats HEAD like GET answers: the body is dropped, its length is the truth.
    assert fields(size=7, is_head=True)[b"content-length"] == [b"7"]
    assert fields(headers=[(b"Content-Length", [b"5"])], size=7, is_head=True)[b"content-length"] == [b"7"]


def test_head_without_a_body_has_the_length_that_the_child_claims_or_none() -> None:
    assert fields(headers=[(b"content-length", [b"1234"])], size=0, is_head=True)[b"content-length"] == [
        b"1234"
    ]
    # RFC 9110, 8.6: a length that a GET would not have had is wrong; the original sends none either.
    assert b"content-length" not in fields(size=0, is_head=True)
    for nonsense in ([b"-1"], [b"5", b"5"], [b"5 "], [b"0x5"], [b"9" * 30], [b""], []):
        assert b"content-length" not in fields(headers=[(b"Content-Length", nonsense)], size=0, is_head=True)


@pytest.mark.parametrize("is_head", [False, True])
@pytest.mark.parametrize("size", [0, 2])
def test_204_has_no_length_at_all(size: int, is_head: bool) -> None:
    # RFC 9110, 8.6: a server MUST NOT send Content-Length with 204. The original passes the child's on.
    found = fields(204, [(b"Content-Length", [b"5"])], size, is_head)
    assert b"content-length" not in found


@pytest.mark.parametrize("is_head", [False, True])
@pytest.mark.parametrize("size", [0, 2])
def test_304_has_the_length_that_the_child_claims_or_none(size: int, is_head: bool) -> None:
    assert b"content-length" not in fields(304, size=size, is_head=is_head)
    assert fields(304, [(b"Content-Length", [b"5"])], size, is_head)[b"content-length"] == [b"5"]


@pytest.mark.parametrize("is_head", [False, True])
@pytest.mark.parametrize("size", [0, 2])
def test_205_is_framed_as_empty(size: int, is_head: bool) -> None:
    # RFC 9110, 15.3.6: no content; but a parser takes a 205 for one with a body, so its length has to say so.
    assert fields(205, [(b"Content-Length", [b"5"])], size, is_head)[b"content-length"] == [b"0"]


@pytest.mark.parametrize(
    ("status", "bodiless"), [(200, False), (204, True), (205, True), (304, True), (404, False)]
)
def test_which_statuses_have_no_body(status: int, bodiless: bool) -> None:
    assert render(ResponseHead(status, [])).bodiless is bodiless


@pytest.mark.parametrize("connection", [b"", CLOSE, KEEP_ALIVE])
def test_the_connection_field_is_ours(connection: bytes) -> None:
    _, pairs = sent(headers=[(b"Connection", [b"keep-alive, X-Foo"])], connection=connection)
    found = [value for name, value in pairs if name.lower() == b"connection"]
    assert found == ([connection[12:-2]] if connection else [])


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_fields_about_one_connection_stay_behind(name: bytes) -> None:
    for spelled in (name, name.title(), name.upper()):
        assert name not in fields(headers=[(spelled, [b"x"])])


@pytest.mark.parametrize(
    ("values", "close"),
    [
        ([b"close"], True),
        ([b"Close"], True),
        ([b"x", b"y, close"], True),
        ([b"keep-alive"], False),
        ([], False),
    ],
)
def test_a_child_may_ask_for_the_connections_end(values: list[bytes], close: bool) -> None:
    assert render(ResponseHead(200, [(b"connection", values)])).close is close


# --- what HTTP cannot carry --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 99, 100, 101, 103, 199, 600, 999, 2**64 - 1])
def test_a_status_outside_200_to_599_is_refused_and_named(status: int) -> None:
    assert str(status) in refused(status)


@pytest.mark.parametrize(
    "name", [b"", b"X Y", b"X:", b"X\r\nY", b"X\n", b"\xc3\xa9", b"X\0", b"(x)", b" X", b"X\t"]
)
def test_a_name_that_is_no_token_is_refused_and_named(name: bytes) -> None:
    message = refused(headers=[(b"A", [b"b"]), (name, [b"v"])])
    assert repr(name) in message
    assert "\n" not in message and "\r" not in message


def test_a_name_without_values_is_checked_too() -> None:
    refused(headers=[(b"X Y", [])])


@pytest.mark.parametrize("value", [b"a\r\nB: c", b"a\nb", b"a\rb", b"a\0b", b"\n", b"a\r\n"])
@pytest.mark.parametrize("name", [b"X-Thing", b"Connection", b"Content-Length", b"Content-Type", b"Date"])
def test_a_value_with_a_line_end_or_nul_is_refused_and_its_header_named(name: bytes, value: bytes) -> None:
    # Also where the field would not be sent: such a child is mistaken, and silence would hide it.
    message = refused(headers=[(name, [b"fine", value])])
    assert name.decode() in message
    assert "\n" not in message


def test_a_long_name_does_not_fill_the_log() -> None:
    assert len(refused(headers=[(b"X " * 10000, [b"v"])])) < 200


def test_a_refused_head_is_refused_again() -> None:
    head = ResponseHead(700, [])
    for _ in range(2):
        with pytest.raises(AnswerError):
            render(head)


# --- our own answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 408, 413, 414, 417, 431, 501, 502, 503, 504, 505])
@pytest.mark.parametrize("connection", [b"", CLOSE, KEEP_ALIVE])
def test_an_answer_of_ours_is_a_sentence_as_plain_text(status: int, connection: bytes) -> None:
    data = own_response(status, "naïve", DATE, False, connection)
    head, _, body = data.partition(b"\r\n\r\n")
    assert body == "naïve\n".encode()
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert re.search(rb"\r\nContent-Length: %d(\r\n|$)" % len(body), head)
    for line in (SERVER, DATE, DEFAULT_TYPE, connection):
        assert line in head + b"\r\n"
    assert (b"Retry-After: 1\r\n" in head) is (status == 503)


def test_an_answer_of_ours_to_head_has_the_length_and_no_body() -> None:
    whole = own_response(503, "server overloaded", DATE, False, b"")
    assert own_response(503, "server overloaded", DATE, True, b"") == whole[: whole.index(b"\r\n\r\n") + 4]


# --- fields about the connection ---------------------------------------------------------------------------


def test_only_426_names_a_protocol_to_upgrade_to() -> None:
    headers: Headers = [(b"Upgrade", [b"HTTP/2.0"]), (b"Connection", [b"upgrade"])]
    found = fields(426, headers=headers)
    assert (found[b"upgrade"], found[b"connection"]) == ([b"HTTP/2.0"], [b"upgrade"])
    assert not {b"upgrade", b"connection"} & fields(200, headers=headers).keys()


def test_a_field_that_the_childs_connection_field_names_goes_no_further() -> None:
    headers: Headers = [(b"X-Hop", [b"1"]), (b"X-End", [b"2"]), (b"Connection", [b"keep-alive, x-hop"])]
    found = fields(headers=headers)
    assert b"x-hop" not in found and found[b"x-end"] == [b"2"]
    naming: Headers = [(b"Content-Type", [b"a/b"]), (b"Connection", [b"Content-Type"])]
    assert fields(headers=naming)[b"content-type"] == [b"a/b"]


@pytest.mark.parametrize(
    ("value", "close"), [(b"close", True), (b"X, Close", True), (b"x-close", False), (b"closed", False)]
)
def test_a_child_closes_the_connection_with_this_word_alone(value: bytes, close: bool) -> None:
    assert render(ResponseHead(200, [(b"Connection", [value])])).close is close


def test_a_single_field_that_a_child_writes_in_two_cases_is_one_field() -> None:
    headers: Headers = [(b"Content-Type", [b"a/b"]), (b"X", [b"1"]), (b"content-type", [b"c/d"])]
    assert fields(headers=headers)[b"content-type"] == [b"c/d"]
