"""Requests that two servers could read differently, over real sockets: one refusal, and nothing behind it.

The cases are those of tests/worker/test_strict_http.py that a proxy might let through; here they meet the
kernel, the event loop and a child that tells what it was asked.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from client import Client
from server import Server

SMUGGLED = b"GET /echo?smuggled HTTP/1.1\r\nHost: h\r\n\r\n"


def post(*fields: bytes, body: bytes = b"") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"POST /echo HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"
CASES = {
    "CL.TE": (400, post(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\nG")),
    "TE.CL": (400, post(CHUNKED, b"Content-Length: 4", body=b"5c\r\n")),
    "CL.0 with an upgrade": (400, post(b"Connection: upgrade", b"Upgrade: h2c", b"Content-Length: 40")),
    "TE.TE, the second unknown": (501, post(CHUNKED, b"Transfer-Encoding: cow", body=b"0\r\n\r\n")),
    "TE.TE, in quotes": (501, post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n")),
    "TE behind a tab and colon": (400, post(b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n")),
    "TE behind a vertical tab": (400, post(b"Transfer-Encoding:\x0bchunked", body=b"0\r\n\r\n")),
    "TE folded": (400, post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n")),
    "TE behind a bare line feed": (400, post(b"X: y\nTransfer-Encoding: chunked", body=b"0\r\n\r\n")),
    "TE in HTTP/1.0": (
        400,
        b"POST /echo HTTP/1.0\r\nConnection: keep-alive\r\n" + CHUNKED + b"\r\n\r\n0\r\n\r\n",
    ),
    "CL.CL": (400, post(b"Content-Length: 0", b"Content-Length: 40")),
    "CL in a list": (400, post(b"Content-Length: 0, 40")),
    "CL with a sign": (400, post(b"Content-Length: +40")),
    "a line feed for a chunk's line end": (400, post(CHUNKED, body=b"2\nxx\r\n0\r\n\r\n")),
    "a line feed in an extension": (400, post(CHUNKED, body=b"2;\nxx\r\n0\r\n\r\n")),
    "a chunk longer than it says": (400, post(CHUNKED, body=b"2\r\nxx4c\r\n0\r\n\r\n")),
    "a chunk size that overflows": (400, post(CHUNKED, body=b"10000000000000002\r\nxx\r\n0\r\n\r\n")),
    "a length in a trailer": (400, post(CHUNKED, body=b"0\r\nContent-Length: 40\r\n\r\n")),
    "a host in a trailer": (400, post(CHUNKED, body=b"0\r\nHost: admin\r\n\r\n")),
    "two hosts": (400, b"GET /echo HTTP/1.1\r\nHost: h\r\nHost: admin\r\n\r\n"),
    "a target for another host": (400, b"GET http://admin/echo HTTP/1.1\r\nHost: h\r\n\r\n"),
    "a request line that ends in the target": (505, b"GET /echo\r\nHost: h\r\n\r\n"),
    "two spaces in the request line": (400, b"GET  /echo HTTP/1.1\r\nHost: h\r\n\r\n"),
    "an unknown method": (501, b"SMUGGLE /echo HTTP/1.1\r\nHost: h\r\n\r\n"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("smuggling")) as server:
        server.wait_ready()
        yield server


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", ["first", "byte by byte", "behind a good one"])
def test_it_is_refused_once_and_nothing_behind_it_is_answered(server: Server, name: str, how: str) -> None:
    status, data = CASES[name]
    before = server.pool()["requests"]
    with Client(server.address) as client:
        if how == "byte by byte":
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in data:
                client.send(bytes([byte]))
            client.send(SMUGGLED)
        elif how == "first":
            client.send(data + SMUGGLED)
        else:
            client.send(b"GET /echo?good HTTP/1.1\r\nHost: h\r\n\r\n" + data + SMUGGLED)
            assert client.answer().json["query"] == "good"
        answer = client.answer()
        assert answer.status == status
        assert answer.get("Connection") == "close"
        assert client.at_end()
    assert server.pool()["requests"] == before + (how == "behind a good one")


@pytest.mark.parametrize(
    "field", ["Content_Length: 0", "Transfer_Encoding: chunked", "X_Forwarded_For: 1.1.1.1"]
)
def test_an_underscore_shadows_no_other_field(server: Server, field: str) -> None:
    with Client(server.address) as client:
        client.send(post(field.encode(), b"Content-Length: 3", body=b"abc"))
        found = client.answer().json
        assert found["size"] == 3
        assert field.partition(":")[0].lower() not in found["headers"]
        assert client.ask("GET", "/echo").status == 200


def test_every_cut_of_a_body_leaves_the_next_request_where_it_is(server: Server) -> None:
    body = b"3;a=b\r\nabc\r\n0\r\nVary: *\r\n\r\n"
    data = post(CHUNKED, body=body) + SMUGGLED
    with Client(server.address) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(1, len(data)):
            client.send(data[:at])
            client.send(data[at:])
            assert client.answer().json["size"] == 3
            assert client.answer().json["query"] == "smuggled"
