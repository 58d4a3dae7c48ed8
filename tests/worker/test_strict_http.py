"""No request that two servers could read differently: each case fed whole, byte by byte, and cut at every
offset.

The sections are RFC 9112's where no other is named. `Side` is the connection on a fake transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from side import Side, bytewise

from poolparty.worker.request import KNOWN_METHODS

HOST = b"Host: h\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"


def head(line: bytes, *fields: bytes) -> bytes:
    return line + b"\r\n" + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def get(*fields: bytes) -> bytes:
    return head(b"GET / HTTP/1.1", *fields)


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return head(b"POST / HTTP/1.1", *fields) + body


def chunks(body: bytes) -> bytes:
    return post(CHUNKED, body=body)


def length(value: bytes, body: bytes = b"x") -> bytes:
    return post(b"Content-Length: " + value, body=body)


def coding(value: bytes) -> bytes:
    return post(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n")


def outcome(pieces: list[bytes], before: bytes = b"") -> tuple[list[bytes], list[int]]:
    """(targets of the requests that reached a child, statuses of the refusals) after a client sent the
    pieces."""
    side = Side(max_request_body_size=1000)
    try:
        if before:
            side.send(before).answer()
            side.received()
        targets = []
        for piece in pieces:
            if side.transport.eof or side.transport.closed:
                break
            side.send(piece)
            while side.running is not None:
                targets.append(side.running.target)
                side.answer()
        statuses = [status for status in side.statuses() if status != 200]
        if statuses:
            assert side.transport.eof or side.transport.closed
            assert side.transport.written.count(b"Connection: close\r\n") == 1
        return targets, statuses
    finally:
        side.close()


def cuts(data: bytes) -> Iterator[list[bytes]]:
    yield [data]
    yield bytewise(data)
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


REFUSED: dict[str, dict[str, tuple[int, bytes]]] = {
    "2.2 line ends are CRLF": {
        "lf behind the request line": (400, b"GET / HTTP/1.1\n" + HOST + b"\r\n"),
        "cr behind the request line": (400, b"GET / HTTP/1.1\r" + HOST + b"\r\n"),
        "lf behind a field": (400, b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n"),
        "lf for the empty line": (400, b"GET / HTTP/1.1\r\nHost: h\r\n\n"),
        "lf, then crlf": (400, b"GET / HTTP/1.1\r\nHost: h\n\r\n"),
        "cr in a value": (400, get(b"A: b\rc")),
        "cr behind a value": (400, get(b"A: b\r")),
        "cr for the empty line": (400, b"GET / HTTP/1.1\r\nHost: h\r\n\rX: y\r\n\r\n"),
        "lf alone before it": (400, b"\n" + get()),
        "cr alone before it": (400, b"\r" + get()),
        "space before the first field": (400, b"GET / HTTP/1.1\r\n A: b\r\n" + HOST + b"\r\n"),
        "everything by lf": (400, b"GET\n/\nHTTP/1.1\r\n" + HOST + b"\r\n"),
    },
    "2.3 version": {
        "0.9": (505, b"GET /\r\n"),
        "1.2": (505, head(b"GET / HTTP/1.2")),
        "2.0": (505, head(b"GET / HTTP/2.0")),
        "the preface of HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "three digits": (400, head(b"GET / HTTP/111")),
        "1.10": (400, head(b"GET / HTTP/1.10")),
        "01.1": (400, head(b"GET / HTTP/01.1")),
        "0.99": (400, head(b"GET / HTTP/0.99")),
        "endless": (400, head(b"GET / HTTP/" + b"1" * 60 + b".1")),
        "no minor": (400, head(b"GET / HTTP/1")),
        "lower case": (400, head(b"GET / http/1.1")),
        "another protocol": (400, head(b"GET / FTP/1.1")),
        "rtsp": (400, head(b"OPTIONS / RTSP/1.0")),
        "ice": (400, head(b"SOURCE / ICE/1.0")),
        "letters": (400, head(b"GET / HTTP/x.y")),
    },
    "3 request line": {
        "two spaces before the target": (400, head(b"GET  / HTTP/1.1")),
        "two spaces behind it": (400, head(b"GET /  HTTP/1.1")),
        "tabs": (400, head(b"GET\t/\tHTTP/1.1")),
        "space behind the version": (400, head(b"GET / HTTP/1.1 ")),
        "space before the method": (400, head(b" GET / HTTP/1.1")),
        "two targets": (400, head(b"GET /a /b HTTP/1.1")),
        "no target": (400, head(b"GET HTTP/1.1")),
        "a word": (400, b"GARBAGE\r\n\r\n"),
        "a TLS greeting": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60)),
        "json": (400, b'{"a": 1}\r\n\r\n'),
        "PROXY, where nobody said so": (400, b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n" + get()),
    },
    "3.1 method": {
        "unknown": (501, head(b"BREW / HTTP/1.1")),
        "lower case": (501, head(b"get / HTTP/1.1")),
        "longer than a known one": (501, head(b"GETX / HTTP/1.1")),
        "shorter": (501, head(b"GE / HTTP/1.1")),
        "long": (501, head(b"A" * 100 + b" / HTTP/1.1")),
        "CONNECT": (501, head(b"CONNECT h:80 HTTP/1.1")),
        "of RTSP": (501, head(b"DESCRIBE / HTTP/1.1")),
        "with a colon": (400, head(b"GET: / HTTP/1.1")),
        "with a NUL": (400, head(b"GET\0 / HTTP/1.1")),
        "not ASCII": (400, head(b"GET\xc3\x9f / HTTP/1.1")),
        "quoted": (400, head(b'"GET" / HTTP/1.1')),
    },
    "3.2 target": {
        "relative": (400, head(b"GET a/b HTTP/1.1")),
        "an authority": (400, head(b"GET h:80 HTTP/1.1")),
        "user information (RFC 9110, 4.2.4)": (400, head(b"GET http://u:p@h/ HTTP/1.1")),
        "another scheme": (400, head(b"GET ftp://h/ HTTP/1.1")),
        "no host": (400, head(b"GET http:///x HTTP/1.1")),
        "no slashes": (400, head(b"GET http:h HTTP/1.1")),
        "bad port": (400, head(b"GET http://h:x/ HTTP/1.1")),
        "port beyond any": (400, head(b"GET http://h:65536/ HTTP/1.1")),
        "backslash in the host": (400, head(b"GET http://h\\g/ HTTP/1.1")),
        "* for GET": (400, head(b"GET * HTTP/1.1")),
        "more than *": (400, head(b"OPTIONS *x HTTP/1.1")),
        "NUL": (400, head(b"GET /a\0b HTTP/1.1")),
        "control": (400, head(b"GET /a\x01b HTTP/1.1")),
        "delete": (400, head(b"GET /a\x7fb HTTP/1.1")),
        "form feed": (400, head(b"GET /a\x0cb HTTP/1.1")),
        "not ASCII": (400, head("GET /é HTTP/1.1".encode())),
        "https without TLS (RFC 9110, 7.4)": (421, head(b"GET https://h/ HTTP/1.1")),
    },
    "3.2 host": {
        "missing": (400, b"GET / HTTP/1.1\r\nA: b\r\n\r\n"),
        "twice": (400, get(b"Host: g")),
        "the same twice": (400, get(b"Host: h")),
        "twice in 1.0": (400, head(b"GET / HTTP/1.0", b"Host: h")),
        "other than the target's": (400, head(b"GET http://g/ HTTP/1.1")),
        "missing beside an absolute target": (400, b"GET http://h/ HTTP/1.1\r\nA: b\r\n\r\n"),
        "a list": (400, b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
        "a uri": (400, b"GET / HTTP/1.1\r\nHost: http://h\r\n\r\n"),
        "a path": (400, b"GET / HTTP/1.1\r\nHost: h/x\r\n\r\n"),
        "user information": (400, b"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n"),
        "a port beyond any": (400, b"GET / HTTP/1.1\r\nHost: h:99999\r\n\r\n"),
        "not ASCII": (400, "GET / HTTP/1.1\r\nHost: é\r\n\r\n".encode()),
    },
    "5.1 no space before the colon": {
        "space": (400, get(b"A : b")),
        "tab": (400, get(b"A\t: b")),
        "of Host": (400, b"GET / HTTP/1.1\r\nHost : h\r\n\r\n"),
        "of Content-Length": (400, post(b"Content-Length : 1", body=b"x")),
        "of Transfer-Encoding": (400, post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n")),
        "beside a good one": (400, post(b"Content-Length : 1", CHUNKED, body=b"0\r\n\r\n")),
    },
    "5.2 no line folding": {
        "space": (400, get(b"A: b\r\n c")),
        "tab": (400, get(b"A: b\r\n\tc")),
        "nothing but space": (400, get(b"A: b\r\n ")),
        "behind an empty value": (400, get(b"A:\r\n b")),
        "of a coding": (400, post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n")),
        "of the line before a length": (400, post(b"A: b\r\n Content-Length: 1", body=b"x")),
    },
    "RFC 9110, 5.1 and 5.6.2 field names": {
        "empty": (400, get(b": b")),
        "no colon": (400, get(b"A")),
        "space in it": (400, get(b"A b: c")),
        "NUL": (400, get(b"A\0: b")),
        "delete": (400, get(b"A\x7f: b")),
        "vertical tab": (400, get(b"A\x0b: b")),
        "not ASCII": (400, get(b"A\xff: b")),
        "parenthesis": (400, get(b"A(: b")),
        "slash": (400, get(b"A/: b")),
        "quotes": (400, get(b'"A": b')),
        "line feed": (400, get(b"A\n: b")),
        "a length that is not quite one": (400, post(b"Content-Length\xc3\x9f: 1", b"Content-Length: 1")),
    },
    "RFC 9110, 5.5 field values": {
        "NUL": (400, get(b"A: b\0c")),
        "bell": (400, get(b"A: b\x07")),
        "vertical tab": (400, get(b"A: b\x0bc")),
        "form feed": (400, get(b"A: b\x0c")),
        "delete": (400, get(b"A: b\x7f")),
        "escape": (400, get(b"A: \x1b[0m")),
        "a second type": (400, get(b"Content-Type: a/b", b"Content-Type: c/d")),
    },
    "6.1 transfer codings": {
        "with a length": (400, post(CHUNKED, b"Content-Length: 3", body=b"0\r\n\r\n")),
        "behind a length": (400, post(b"Content-Length: 3", CHUNKED, body=b"0\r\n\r\n")),
        "behind a length of 0": (400, post(b"Content-Length: 0", CHUNKED, body=b"0\r\n\r\n")),
        "in 1.0": (400, head(b"POST / HTTP/1.0", CHUNKED) + b"0\r\n\r\n"),
        "in 1.0 that stays": (
            400,
            head(b"POST / HTTP/1.0", CHUNKED, b"Connection: keep-alive") + b"0\r\n\r\n",
        ),
        "behind a vertical tab": (400, coding(b"\x0bchunked")),
        "with a NUL": (400, coding(b"chunked\0")),
        **{
            value.decode() or "empty": (501, coding(value))
            for value in (
                *(b"", b"identity", b"gzip", b"cow", b"xchunked", b"chunkedx", b"chunk", b'"chunked"'),
                *(b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"identity, chunked"),
                *(b"chunked;q=1", b",chunked", b"chunked,", b"chunked chunked"),
            )
        },
        "twice": (501, post(CHUNKED, CHUNKED, body=b"0\r\n\r\n")),
        "gzip, then chunked": (501, post(b"Transfer-Encoding: gzip", CHUNKED, body=b"0\r\n\r\n")),
        "chunked, then identity": (501, post(CHUNKED, b"Transfer-Encoding: identity", body=b"0\r\n\r\n")),
    },
    "6.2 and 6.3 content length": {
        **{
            value.decode("latin-1") or "empty": (400, length(value))
            for value in (
                *(b"", b"-1", b"+1", b"-0", b"0x1", b"1_0", b"1e0", b"1.0", b'"1"', b"1;", b"1 1", b"1, 1"),
                *(b",1", b"1,2", b"x", b"1x", b"\x0b1", b"1\0", b"\xd9\xa1", b"1" * 30),
                b"18446744073709551617",
            )
        },
        "too much of it": (413, length(b"1001")),
        "beyond any machine": (413, length(b"9223372036854775808")),
        "twice": (400, post(b"Content-Length: 1", b"Content-Length: 2", body=b"xy")),
        "the same twice": (400, post(b"Content-Length: 1", b"content-length: 1", body=b"x")),
    },
    "7.1 chunks": {
        **{
            repr(body)[2:-1]: (400, chunks(body))
            for body in (
                *(b"x\r\n", b"\r\nx\r\n0\r\n\r\n", b"-1\r\nx\r\n0\r\n\r\n", b"+1\r\nx\r\n0\r\n\r\n"),
                *(b"0x1\r\nx\r\n0\r\n\r\n", b"1_0\r\nx\r\n0\r\n\r\n", b"1g\r\nx\r\n0\r\n\r\n"),
                *(b" 1\r\nx\r\n0\r\n\r\n", b"1 \r\nx\r\n0\r\n\r\n", b"1\t\r\nx\r\n0\r\n\r\n"),
                *(b"1,\r\nx\r\n0\r\n\r\n", b"1\0\r\nx\r\n0\r\n\r\n", b"\xef\xbc\x91\r\nx\r\n0\r\n\r\n"),
                b"10000000000000001\r\nx\r\n0\r\n\r\n",
                *(b"1\nx\r\n0\r\n\r\n", b"1\rx\r\n0\r\n\r\n", b"1\r\nx\n0\r\n\r\n", b"1\r\nx0\r\n\r\n"),
                *(b"1\r\nxy\r\n0\r\n\r\n", b"1\r\nx\r\n0\n\r\n", b"1\r\nx\r\n0\r\n\n"),
            )
        },
        "more than the limit": (413, chunks(b"3e9\r\n" + bytes(1001) + b"\r\n0\r\n\r\n")),
    },
    "7.1.1 chunk extensions": {
        repr(body)[2:-1]: (400, chunks(body))
        for body in (
            *(b";a=b\r\nx\r\n0\r\n\r\n", b"1;\r\nx\r\n0\r\n\r\n", b"1;a\nx\r\n0\r\n\r\n"),
            *(b"1\n;a\r\nx\r\n0\r\n\r\n", b"1;a=b\rc\r\nx\r\n0\r\n\r\n", b"1;a=b\0\r\nx\r\n0\r\n\r\n"),
            *(b'1;a="b\r\nx\r\n0\r\n\r\n', b"1 ;a=b\r\nx\r\n0\r\n\r\n", b"1; a=b\r\nx\r\n0\r\n\r\n"),
        )
    },
    "7.1.2 trailers": {
        "no colon": (400, chunks(b"0\r\nA\r\n\r\n")),
        "space before the colon": (400, chunks(b"0\r\nA : b\r\n\r\n")),
        "folded": (400, chunks(b"0\r\nA: b\r\n c\r\n\r\n")),
        "NUL": (400, chunks(b"0\r\nA: b\0\r\n\r\n")),
        "lf": (400, chunks(b"0\r\nA: b\n\r\n")),
        **{
            name.decode(): (400, chunks(b"0\r\n" + name + b": 1\r\n\r\n"))
            for name in (
                *(b"Content-Length", b"Transfer-Encoding", b"Host", b"Authorization", b"TE", b"Trailer"),
                *(b"Connection", b"upgrade"),
            )
        },
        "a coding": (400, chunks(b"0\r\nTransfer-Encoding: chunked\r\n\r\n")),
    },
    "RFC 9110, 7.8 upgrade": {
        "with a length": (400, post(b"Connection: upgrade", b"Upgrade: x", b"Content-Length: 1", body=b"x")),
        "with chunks": (400, post(b"Connection: upgrade", b"Upgrade: x", CHUNKED, body=b"0\r\n\r\n")),
        "in 1.0": (
            400,
            head(b"POST / HTTP/1.0", b"Connection: upgrade", b"Upgrade: x", b"Content-Length: 1") + b"x",
        ),
    },
    "RFC 9110, 10.1.1 expectations": {
        "a miracle": (417, get(b"Expect: a-miracle")),
        "nothing": (417, get(b"Expect:")),
        "twice": (417, get(b"Expect: 100-continue, 100-continue")),
    },
}

CASES = [
    pytest.param(status, data, id=f"{section}: {name}")
    for section, cases in REFUSED.items()
    for name, (status, data) in cases.items()
]


@pytest.mark.parametrize(("status", "data"), CASES)
def test_it_is_refused_however_it_arrives_and_nothing_behind_it_is_read(status: int, data: bytes) -> None:
    for pieces in cuts(data + SMUGGLED):
        assert outcome(pieces) == ([], [status]), pieces


@pytest.mark.parametrize(("status", "data"), CASES)
def test_it_is_refused_behind_a_good_request_too(status: int, data: bytes) -> None:
    before = head(b"GET /before HTTP/1.1")
    assert outcome([before + data + SMUGGLED]) == ([b"/before"], [status])
    assert outcome(bytewise(data + SMUGGLED), before) == ([], [status])
    body = post(CHUNKED, body=b"1;a=b\r\nx\r\n0\r\nVary: *\r\n\r\n")
    assert outcome([body + data + SMUGGLED]) == ([b"/"], [status])


TAKEN: dict[str, tuple[bytes, bytes]] = {
    "2.2 empty lines before it": (b"\r\n\r\n\r\n" + get(), b""),
    "2.3 version 1.0 without a host": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b""),
    "3.2.2 absolute target": (head(b"GET http://h/x HTTP/1.1"), b""),
    "3.2.4 asterisk": (head(b"OPTIONS * HTTP/1.1"), b""),
    "3.2 fragment": (head(b"GET /x?y#z HTTP/1.1"), b""),
    "3.2 empty host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b""),
    "3.2 host that is odd": (b"GET / HTTP/1.1\r\nHost: 0.0.0.0=5000\r\n\r\n", b""),
    "3.2 IPv6 host": (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b""),
    "5.1 no space behind the colon": (get(b"A:b"), b""),
    "5.1 space around the value": (get(b"A: \t b \t"), b""),
    "RFC 9110, 5.5 bytes beyond ASCII": (get(b"A: caf\xe9"), b""),
    "RFC 9110, 5.6.2 an odd name": (get(b"!#$%&'*+-.^`|~: b"), b""),
    "6.1 any case of chunked": (coding(b"CHUNKED"), b""),
    "6.2 zeros before a length": (length(b"001"), b"x"),
    "6.2 tabs around a length": (length(b"\t1\t"), b"x"),
    "6.2 content of GET": (head(b"GET / HTTP/1.1", b"Content-Length: 1") + b"x", b"x"),
    "7.1 hexadecimal of both cases": (
        chunks(b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"),
        b"0123456789" * 2,
    ),
    "7.1 zeros before a size": (chunks(b"0001\r\nx\r\n000\r\n\r\n"), b"x"),
    "7.1 line ends in the data": (chunks(b"8\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n"), b"\r\n" * 4),
    "7.1 what looks like the last chunk": (chunks(b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"), b"\r\n0\r\n\r\n"),
    "7.1.1 extensions": (chunks(b'1;a=b;c;d="e f"\r\nx\r\n0;g\r\n\r\n'), b"x"),
    "7.1.2 trailers": (chunks(b"1\r\nx\r\n0\r\nVary: *\r\nContent-Type: a/b\r\n\r\n"), b"x"),
    "underscores": (
        post(b"Transfer_Encoding: chunked", b"Content_Length: 9", b"Content-Length: 1", body=b"x"),
        b"x",
    ),
    "RFC 9110, 7.8 upgrade without a body": (get(b"Connection: upgrade", b"Upgrade: h2c"), b""),
    "RFC 9110, 7.8 upgrade that Connection does not name": (
        post(b"Upgrade: x", b"Content-Length: 1", body=b"x"),
        b"x",
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_it_is_taken_however_it_arrives_and_so_is_the_next_request(name: str) -> None:
    data, body = TAKEN[name]
    for pieces in cuts(data):
        side = Side()
        try:
            side.send(*pieces)
            assert side.seen().body == body, pieces
            side.answer()
            side.send(head(b"GET /next HTTP/1.1"))
            assert side.seen().uri == b"http://h/next"
            side.answer()
            assert side.statuses() == [200, 200]
        finally:
            side.close()
    together = outcome([data + head(b"GET /next HTTP/1.1")])
    assert together[0][1:] == [b"/next"] and together[1] == []


def test_trailers_and_underscores_do_not_reach_the_child() -> None:
    side = Side()
    try:
        side.send(TAKEN["7.1.2 trailers"][0])
        assert dict(side.seen().headers).keys() == {b"Host", b"Transfer-Encoding"}
        side.answer().send(TAKEN["underscores"][0])
        assert dict(side.seen().headers) == {b"Host": b"h", b"Content-Length": b"1"}
    finally:
        side.close()


def test_only_a_trusted_proxy_may_send_the_fields_of_forwarder_headers() -> None:
    side = Side(forwarder_headers=["SCRIPT_NAME"], forwarded_allow_ips=["10.0.0.9"])
    try:
        for peer, seen in (("10.0.0.9", {b"Script_name": b"/x"}), ("10.0.0.8", {})):
            side.transport, side.connection = side.connect(peer=(peer, 1))
            side.send(get(b"Script_Name: /x", b"Path_Info: /y"))
            headers = dict(side.seen().headers)
            assert {name: value for name, value in headers.items() if name != b"Host"} == seen
            side.answer()
    finally:
        side.close()


@pytest.mark.parametrize("method", KNOWN_METHODS)
def test_each_method_we_know_is_one_that_the_parser_takes(method: bytes) -> None:
    parser = httptools.HttpRequestParser(object())
    try:
        parser.feed_data(head(method + b" / HTTP/1.1"))
    except httptools.HttpParserUpgrade:
        assert method == b"CONNECT"


# --- a request with the fields of the one before -----------------------------------------------------------

REMEMBERED = [
    get(),
    get(b"User-Agent: x", b"Accept: */*", b"Cookie: a=b"),
    head(b"HEAD /x HTTP/1.1", b"X-Forwarded-For: 1.2.3.4"),
    get(b"Connection: keep-alive"),
    head(b"GET http://h/ HTTP/1.1"),
]


def behaviour(pieces: list[bytes], before: bytes) -> Any:
    """What comes of a request that follows `before`, sent three times: what the child sees, or the
    refusal."""
    side = Side()
    try:
        for _ in range(3 if before else 0):
            side.send(before).answer()
        side.received()
        for piece in pieces:
            if side.transport.eof or side.transport.closed:
                break
            side.send(piece)
        if side.running is not None:
            seen = side.seen()
            side.answer()
            return seen, side.received(), side.connection._begun or bool(side.connection._line)
        return side.received(), side.transport.eof, side.connection._begun or bool(side.connection._line)
    finally:
        side.close()


@given(
    st.sampled_from(REMEMBERED),
    st.integers(0, 200),
    st.integers(0, 3),
    st.one_of(
        st.sampled_from([b"\0", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"//", b"/.", b"?", b"%", b"#"]),
        st.sampled_from([b"\r\nContent-Length: 1", b"\r\nHost: g", b"\r\n\r\n", b"GET / HTTP/1.1\r\n"]),
        st.binary(max_size=4),
    ),
    st.integers(0, 200),
)
@example(get(), 5, 0, b"a b", 0)
@example(get(), 0, 0, b"\r", 0)
@example(get(), 3, 0, b" ", 0)
@example(get(), 14, 2, b"\n", 0)
@example(get(), 24, 0, b"\r\nHost: h", 0)
def test_however_a_remembered_request_is_changed_it_is_read_as_on_a_new_connection(
    before: bytes, at: int, gone: int, new: bytes, cut: int
) -> None:
    at %= len(before) + 1
    changed = before[:at] + new + before[at + gone :]
    cut %= len(changed) + 1
    pieces = [piece for piece in (changed[:cut], changed[cut:]) if piece]
    assert behaviour(pieces, before) == behaviour(pieces, b"")
