"""HTTP/1.1 over raw sockets: framing, connections, and the refusals. One server for all of it."""

from __future__ import annotations

import email.utils
import hashlib
import re
import socket
import time
from collections.abc import Iterator

import pytest
from client import Client
from server import Server, wait_until

from poolparty.wire.frames import HTTPResponse, ResponseHead, encode_response

MAX_BODY = 300_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = (
        *("--min-pool-size", "2", "--max-pool-size", "4"),
        *("--max-request-body-size", str(MAX_BODY)),
        *("--request-read-timeout", "1s"),
        *("--limit-request-line", "2000", "--limit-request-fields", "40"),
        *("--limit-request-field_size", "1500"),
        *("--keep-alive", "2"),
        *("--forwarded-allow-ips", "127.0.0.1"),
    )
    with Server(tmp_path_factory.mktemp("http"), *options) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


# --- what reaches the application --------------------------------------------------------------------------


def test_a_request_arrives_as_it_was_sent(client: Client) -> None:
    body = b"\0\xff binary"
    found = client.ask("PUT", "/echo?x=1&y=%41", body, {"X-One": "1", "Cookie": "a=b"}).json
    assert (found["method"], found["uri"]) == ("PUT", "http://test.example/echo?x=1&y=%41")
    assert (found["size"], found["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert found["headers"]["x-one"] == "1"
    assert found["headers"]["cookie"] == "a=b"
    assert found["headers"]["content-length"] == str(len(body))
    assert re.fullmatch(r"127\.0\.0\.1:\d+", found["remote_address"])


def test_a_path_is_normalised_as_the_original_does_it(client: Client) -> None:
    found = client.ask("GET", "/a/../echo/./../b//../echo?x=1&y=%41").json
    assert found["uri"] == "http://test.example/echo?x=1&y=%41"


def test_an_absolute_target_is_taken_and_has_to_agree_with_host(client: Client) -> None:
    fields = {"Host": "other.example"}
    found = client.ask("GET", "http://other.example/echo", None, fields).json
    assert found["uri"] == "http://other.example/echo"
    assert client.ask("GET", "http://another.example/echo", None, fields).status == 400


def test_repeated_fields_are_joined_and_none_is_dropped(client: Client) -> None:
    client.send(
        b"GET /echo HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nX-A: 2\r\nCookie: a=1\r\nx-a: 3\r\nCookie: b=2\r\n\r\n"
    )
    headers = client.answer().json["headers"]
    assert headers["x-a"] == "1, 2, 3"
    assert headers["cookie"] == "a=1; b=2"


def test_a_field_that_is_not_utf8_arrives_as_latin_1(client: Client) -> None:
    client.send(b"GET /echo HTTP/1.1\r\nHost: h\r\nX-A: caf\xe9\r\n\r\n")
    assert client.answer().json["headers"]["x-a"] == "café"


def test_a_trusted_proxy_says_that_it_was_https(client: Client) -> None:
    assert client.ask("GET", "/echo", None, {"X-Forwarded-Proto": "https"}).json["uri"].startswith("https://")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
def test_methods_are_passed_on(client: Client, method: str) -> None:
    assert client.ask(method, "/echo", b"").json["method"] == method


# --- what reaches the client -------------------------------------------------------------------------------


def test_an_answer_has_server_date_and_length(client: Client) -> None:
    answer = client.ask("GET", "/")
    assert answer.version == "HTTP/1.1"
    assert answer.get("Server") == "poolparty"
    date = email.utils.parsedate_to_datetime(answer.get("Date") or "")
    assert abs(date.timestamp() - time.time()) < 5
    assert answer.get("Content-Length") == "6"


def test_repeated_fields_of_an_answer_stay_apart_and_its_framing_is_ours(client: Client) -> None:
    answer = client.ask("GET", "/headers")
    assert answer.all("Set-Cookie") == ["a=1; Path=/", "b=2"]
    assert answer.get("Content-Length") == "4"
    assert b"X-Mixed-Case: kept" in answer.head
    assert answer.get("Connection") in (None, "keep-alive")


@pytest.mark.parametrize("code", [200, 201, 301, 404, 500, 503, 599, 299])
def test_a_status_is_passed_on(client: Client, code: int) -> None:
    assert client.ask("GET", f"/status?code={code}&body=text").status == code


@pytest.mark.parametrize("code", [204, 304])
def test_an_answer_that_has_no_body_gets_none(client: Client, code: int) -> None:
    answer = client.ask("GET", f"/status?code={code}&body=ignored")
    assert answer.status == code
    assert client.ask("GET", "/").text == "hello\n"  # the framing held


def test_head_gets_the_length_and_no_body(client: Client) -> None:
    answer = client.ask("HEAD", "/size?n=1234")
    assert answer.get("Content-Length") == "1234"
    assert client.ask("GET", "/").text == "hello\n"


def test_the_applications_own_page_for_an_error_is_passed_on(client: Client) -> None:
    answer = client.ask("GET", "/nowhere")
    assert (answer.status, answer.text) == (404, "no such page\n")


@pytest.mark.parametrize("kind", ["newline", "nul", "name", "empty"])
def test_a_header_that_http_cannot_carry_is_502_and_the_child_lives(server: Server, kind: str) -> None:
    before = server.children()
    server.expected.append("header")
    answer = server.get(f"/bad-header?kind={kind}")
    assert answer.status == 502
    assert b"X-Injected" not in answer.head
    assert server.children() == before
    server.wait_log("header")


@pytest.mark.parametrize("code", [0, 99, 100, 199, 600, 1000])
def test_a_status_that_http_cannot_carry_is_502_and_the_child_lives(server: Server, code: int) -> None:
    before = server.children()
    server.expected.append("status")
    frame = encode_response(HTTPResponse(ResponseHead(code, []), b""))
    assert server.get(f"/raw?bytes={frame.hex()}").status == 502
    assert server.children() == before


# --- bodies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_384, 65_535, 65_536, 65_537, MAX_BODY])
def test_a_body_of_any_size_goes_there_and_back(client: Client, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert client.ask("POST", "/body", body).body == body


def test_a_large_answer_is_whole_and_the_next_one_follows_it(client: Client) -> None:
    answer = client.ask("GET", "/size?n=20000000")
    assert answer.get("Content-Length") == "20000000"
    assert answer.body == b"x" * 20_000_000
    assert client.ask("GET", "/").text == "hello\n"


@pytest.mark.parametrize("sizes", [[5], [1, 1, 1], [70_000, 3], []])
def test_a_chunked_body_is_put_together(client: Client, sizes: list[int]) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (size, b"c" * size) for size in sizes) + b"0\r\n\r\n"
    answer = client.ask("POST", "/echo", body, {"Transfer-Encoding": "chunked"})
    assert answer.json["size"] == sum(sizes)


def test_chunk_extensions_and_trailers_are_taken_and_forgotten(client: Client) -> None:
    body = b"3;name=value\r\nabc\r\n0\r\nX-Trailer: no\r\n\r\n"
    found = client.ask("POST", "/echo", body, {"Transfer-Encoding": "chunked"}).json
    assert found["size"] == 3
    assert "x-trailer" not in found["headers"]


def test_a_body_may_come_byte_by_byte(client: Client) -> None:
    request = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nabcde"
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in request:
        client.send(bytes([byte]))
    assert client.answer().json["size"] == 5


def test_a_client_that_waits_for_100_continue_gets_it(client: Client) -> None:
    client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    interim = client.answer()
    assert (interim.status, interim.body) == (100, b"")
    client.send(b"abc")
    assert client.answer().json["size"] == 3


def test_a_client_that_does_not_wait_for_100_continue_is_answered_too(client: Client) -> None:
    client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc")
    answer = client.answer()
    if answer.status == 100:
        answer = client.answer()
    assert answer.json["size"] == 3


def test_a_body_that_will_be_too_large_is_refused_before_it_is_sent(client: Client) -> None:
    client.send(
        b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
        % (MAX_BODY + 1)
    )
    assert client.answer().status == 413
    assert client.at_end()


# --- connections -------------------------------------------------------------------------------------------


def test_a_connection_is_kept_and_used_again(client: Client) -> None:
    for _ in range(50):
        assert client.ask("GET", "/").status == 200


def test_connection_close_is_honoured(client: Client) -> None:
    answer = client.ask("GET", "/", None, {"Connection": "close"})
    assert answer.get("Connection") == "close"
    assert client.at_end()


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    client.send(b"".join(b"GET /echo?%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(100)))
    assert [client.answer().json["query"] for _ in range(100)] == [str(n) for n in range(100)]


def test_pipelined_requests_with_bodies_are_answered_in_order(client: Client) -> None:
    client.send(
        b"".join(
            b"POST /body?%d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s"
            % (n, n * 100, b"p" * n * 100)
            for n in range(30)
        )
    )
    assert [len(client.answer().body) for _ in range(30)] == [n * 100 for n in range(30)]


def test_what_is_pipelined_behind_a_fault_is_not_looked_at(client: Client) -> None:
    client.send(b"GET /echo?1 HTTP/1.1\r\nHost: h\r\n\r\n@@@\r\n\r\nGET /echo?2 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert client.answer().json["query"] == "1"
    assert client.answer().status == 400
    assert client.at_end()


def test_http_1_0_is_answered_and_closed(client: Client) -> None:
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.text) == (200, "hello\n")
    assert client.at_end()


def test_http_1_0_keeps_the_connection_if_asked_to(client: Client) -> None:
    for _ in range(2):
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert client.answer().get("Connection") == "keep-alive"


def test_a_half_closed_connection_is_still_answered(server: Server, client: Client) -> None:
    server.wait_ready(2)
    client.request("GET", "/size?n=1000000")
    client.socket.shutdown(socket.SHUT_WR)
    assert len(client.answer().body) == 1_000_000
    assert client.at_end()


def test_an_idle_connection_is_closed_after_its_time(client: Client) -> None:
    client.ask("GET", "/")
    began = time.monotonic()
    assert client.at_end()
    assert 1.5 < time.monotonic() - began < 15


def test_a_slow_client_does_not_hold_a_child(server: Server) -> None:
    """Of an answer as of a request: what is left of it waits in the HTTP worker."""
    server.wait_ready(2)
    with Client(server.address) as slow, Client(server.address) as another:
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.request("GET", "/size?n=900000")
        another.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf")
        wait_until(lambda: server.pool()["busy"] == 0, "both children idle")
        assert server.get("/").status == 200
        another.send(b"-----x")
        assert another.answer().json["size"] == 10
        assert b"Content-Length: 900000" in slow._until(b"\r\n\r\n")


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nBad Name: v\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\n folded: v\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n" % (b"a" * 2000), 414),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: %s\r\n\r\n" % (b"a" * 2000), 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\n%s\r\n" % (b"X: a\r\n" * 50), 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\nExpect: a-miracle\r\n\r\n", 417),
        (b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else str(value),
)
def test_a_request_that_is_none_is_refused_and_the_connection_closed(
    client: Client, request_: bytes, status: int
) -> None:
    client.send(request_)
    answer = client.answer()
    # A content-length beyond any number may also just be called malformed.
    assert answer.status == status or (answer.status == 400 and b"999999999999" in request_)
    assert answer.get("Connection") == "close"
    assert (answer.get("Content-Type") or "").startswith("text/plain")
    assert answer.body.endswith(b"\n")
    assert client.at_end()


def test_a_chunked_body_that_grows_too_large_is_refused(client: Client) -> None:
    client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.send(b"%x\r\n" % MAX_BODY + b"x" * MAX_BODY + b"\r\n1\r\nx\r\n")
    assert client.answer().status == 413
    assert client.at_end()


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: h\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc",
    ],
    ids=["line", "head", "body"],
)
def test_a_request_that_does_not_arrive_in_time_is_408(client: Client, start: bytes) -> None:
    client.send(start)
    assert client.answer().status == 408
    assert client.at_end()


def test_a_client_that_drips_is_408_all_the_same(client: Client) -> None:
    client.send(b"GET / HTTP/1.1\r\n")
    client.socket.settimeout(0.05)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        client.send(b"X: y\r\n")
        try:
            if client._receive():
                break
        except TimeoutError:
            continue
    client.socket.settimeout(5)
    assert client.answer().status == 408


def test_a_connection_that_says_nothing_is_closed(client: Client) -> None:
    assert client.at_end() or client.answer().status == 408


def test_hundreds_of_faults_leave_it_serving(server: Server) -> None:
    for n in range(300):
        with Client(server.address) as client:
            client.send(bytes([n % 256, (n * 7) % 256]) * 20 + b"\r\n\r\n")
    assert server.get("/").status == 200
    wait_until(lambda: server.stats()["http_workers"][0]["connections"] <= 1, "no connection left", 10)
