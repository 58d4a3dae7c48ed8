"""Proxies in front, PROXY headers, TLS and Unix sockets: who the client is, and that nobody else can say
so."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client import PATIENCE, Address, Client
from server import Server, wait_until

from poolparty.wire.proxy_protocol import SIGNATURE

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")

V1 = b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n"
V2 = SIGNATURE + b"\x21\x11\0\x0c" + bytes([203, 0, 113, 9, 192, 0, 2, 1]) + b"\x12\x67\x01\xbb"
ECHO = b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"


class TLSClient(Client):
    """A connection with TLS, behind some bytes without."""

    def __init__(self, address: Address, context: ssl.SSLContext, before: bytes = b"") -> None:
        super().__init__(address)
        plain = self.socket
        try:
            plain.sendall(before)
            self.socket = context.wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise


def openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.pem and client.pem with their keys, signed by ca.pem; another.pem by nobody."""
    where = tmp_path_factory.mktemp("certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(where, "req", "-x509", *key, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(where, "req", "-x509", *key, "-subj", "/CN=x", "-keyout", "another.key", "-out", "another.pem")
    (where / "names").write_text("subjectAltName=DNS:localhost\n")
    for name in ("server", "client"):
        openssl(where, "req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl(where, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return where


@pytest.fixture
def trusting(certificates: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates / "ca.pem"))


def tls(certificates: Path) -> tuple[str, ...]:
    return "--certfile", str(certificates / "server.pem"), "--keyfile", str(certificates / "server.key")


# --- X-Forwarded-For ---------------------------------------------------------------------------------------


def test_a_trusted_proxy_says_whose_request_it_is_and_so_does_the_access_log(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    log = tmp_path / "access"
    server = serve("--access-logfile", str(log))
    with server.connect() as client:
        for _ in range(3):
            found = client.ask("GET", "/echo", None, {"X-Forwarded-For": "1.1.1.1, 203.0.113.7"}).json
            assert found["remote_address"] == "203.0.113.7:0"
        assert client.ask("GET", "/echo").json["remote_address"].startswith("127.0.0.1:")
    lines = wait_until(lambda: log.read_text().splitlines()[3:] and log.read_text().splitlines(), "the log")
    assert isinstance(lines, list)
    assert [line.split()[0] for line in lines] == ["203.0.113.7"] * 3 + ["127.0.0.1"]


def test_nobody_else_is_believed(serve: Callable[..., Server]) -> None:
    server = serve("--forwarded-allow-ips", "192.0.2.1", "--forwarder-headers", "X_USER")
    fields = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "X_User": "root"}
    found = server.get("/echo", fields).json
    assert found["remote_address"].startswith("127.0.0.1:")
    assert found["uri"].startswith("http://")
    assert "x_user" not in found["headers"]
    assert found["headers"]["x-forwarded-for"] == "203.0.113.7"
    assert server.get("https://test.example/echo").status == 421


def test_behind_a_unix_socket_the_proxy_is_believed(serve: Callable[..., Server]) -> None:
    server = serve(bind="unix:http.sock")
    assert server.get("/echo").json["remote_address"] == "@"
    fields = {"X-Forwarded-For": "2001:db8::7", "X-Forwarded-Proto": "https"}
    found = server.get("/echo", fields).json
    assert (found["remote_address"], found["uri"][:8]) == ("[2001:db8::7]:0", "https://")


# --- PROXY -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--proxy-protocol", "auto", "--request-read-timeout", "1s")
    with Server(tmp_path_factory.mktemp("proxied"), *options) as server:
        yield server


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("cut", ["whole", "byte by byte", "apart from the request"])
def test_a_proxy_header_names_the_client(proxied: Server, header: bytes, cut: str) -> None:
    with Client(proxied.address) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if cut == "byte by byte":
            for byte in header + ECHO[:5]:
                client.send(bytes([byte]))
            client.send(ECHO[5:])
        elif cut == "whole":
            client.send(header + ECHO + ECHO)
            assert client.answer().json["remote_address"] == "203.0.113.9:4711"
        else:
            client.send(header)
            client.send(ECHO)
        assert client.answer().json["remote_address"] == "203.0.113.9:4711"
        assert client.ask("GET", "/echo").json["remote_address"] == "203.0.113.9:4711"


def test_what_a_client_says_through_such_a_proxy_is_its_own_word(proxied: Server) -> None:
    with Client(proxied.address) as client:
        client.send(V1)
        found = client.ask("GET", "/echo", None, {"X-Forwarded-For": "1.1.1.1"}).json
        assert found["remote_address"] == "203.0.113.9:4711"


def test_a_second_header_is_a_malformed_request(proxied: Server) -> None:
    for header in (V1, V2):
        with Client(proxied.address) as client:
            client.send(header + header + ECHO)
            assert client.answer().status == 400
            assert client.at_end()


def test_a_proxys_own_check_and_a_connection_without_a_header_are_served(proxied: Server) -> None:
    for start in (b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\0\0\0", b""):
        with Client(proxied.address) as client:
            client.send(start + ECHO)
            assert client.answer().json["remote_address"].startswith("127.0.0.1:")


def test_a_bad_header_is_refused(proxied: Server) -> None:
    for header in (b"PROXY TCP4 1.2.3.4\r\n", SIGNATURE + b"\x31\x11\0\x0c" + bytes(12)):
        with Client(proxied.address) as client:
            client.send(header + ECHO)
            assert client.answer().status == 400
            assert client.at_end()


@pytest.mark.parametrize("start", [b"", V1[:9], V2[:14]], ids=["silent", "v1", "v2"])
def test_a_header_that_does_not_come_in_time_ends_the_connection(proxied: Server, start: bytes) -> None:
    with Client(proxied.address) as client:
        client.send(start)
        began = time.monotonic()
        assert client.at_end()
        assert time.monotonic() - began < 3


def test_only_the_named_proxies_may_send_it(serve: Callable[..., Server]) -> None:
    server = serve("--proxy-protocol", "v2", "--proxy-allow-from", "192.0.2.1")
    with Client(server.address) as client:
        client.send(V2 + ECHO)
        assert client.answer().status == 400
        assert client.at_end()
    assert server.get("/echo").status == 200
    with Client(server.address) as client:
        client.send(V1 + ECHO)  # not the version that was asked for: a malformed request
        assert client.answer().status == 400


def test_the_header_comes_before_the_handshake(
    serve: Callable[..., Server], certificates: Path, trusting: ssl.SSLContext
) -> None:
    server = serve("--proxy-protocol", "auto", *tls(certificates))
    for header in (V1, V2):
        with TLSClient(server.address, trusting, header) as client:
            found = client.ask("GET", "/echo").json
            assert (found["remote_address"], found["uri"][:8]) == ("203.0.113.9:4711", "https://")


# --- TLS ---------------------------------------------------------------------------------------------------


def test_tls_serves_and_children_know(
    serve: Callable[..., Server], certificates: Path, trusting: ssl.SSLContext
) -> None:
    server = serve(*tls(certificates), "--max-request-body-size", "100000")
    with TLSClient(server.address, trusting) as client:
        assert client.ask("GET", "/echo").json["uri"] == "https://test.example/echo"
        assert client.ask("GET", "https://test.example/echo").json["uri"] == "https://test.example/echo"
        assert client.ask("POST", "/body", b"x" * 90_000).body == b"x" * 90_000
        assert client.ask("GET", "/size?n=3000000").body == b"x" * 3_000_000
        client.send(b"GET /echo?1 HTTP/1.1\r\nHost: h\r\n\r\nGET /echo?2 HTTP/1.0\r\n\r\n")
        assert [client.answer().json["query"] for _ in range(2)] == ["1", "2"]
        assert client.at_end()
    with TLSClient(server.address, trusting) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert client.answer().status == 400
        assert client.at_end()
    # Plain HTTP where TLS is spoken gets nothing, and hurts nobody.
    with Client(server.address) as plain:
        plain.send(ECHO)
        assert plain.at_end()
    with TLSClient(server.address, trusting) as client:
        assert client.ask("GET", "/").status == 200


def test_only_a_client_with_a_certificate_is_served_where_one_is_asked_for(
    serve: Callable[..., Server], certificates: Path, trusting: ssl.SSLContext
) -> None:
    required = ("--ca-certs", str(certificates / "ca.pem"), "--cert-reqs", str(int(ssl.CERT_REQUIRED)))
    server = serve(*tls(certificates), *required)
    for name in (None, "another"):
        if name is not None:
            trusting.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        refusals = (ssl.SSLError, ConnectionError, AssertionError)
        with pytest.raises(refusals), TLSClient(server.address, trusting) as client:
            client.ask("GET", "/")
    trusting.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    with TLSClient(server.address, trusting) as client:
        assert client.ask("GET", "/").status == 200


def test_the_ssl_context_hook_decides(
    serve: Callable[..., Server], certificates: Path, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    conf = tmp_path / "conf.py"
    conf.write_text(
        "import ssl\n"
        "def ssl_context(conf, default):\n"
        "    context = default()\n"
        "    context.minimum_version = ssl.TLSVersion.TLSv1_3\n"
        "    return context\n"
    )
    server = serve("-c", str(conf), *tls(certificates))
    with TLSClient(server.address, trusting) as client:
        assert client.ask("GET", "/").status == 200
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        TLSClient(server.address, trusting)


def test_a_handshake_that_does_not_come_to_an_end_is_ended(
    serve: Callable[..., Server], certificates: Path, trusting: ssl.SSLContext
) -> None:
    server = serve(*tls(certificates), "--request-read-timeout", "1s")
    slow = [Client(server.address) for _ in range(100)]
    try:
        for number, client in enumerate(slow):
            client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[: number % 11])
        began = time.monotonic()
        with TLSClient(server.address, trusting) as client:
            assert client.ask("GET", "/").status == 200
        for client in slow:
            assert client.at_end()
        assert time.monotonic() - began < 5
    finally:
        for client in slow:
            client.close()


def test_an_answer_that_breaks_off_does_not_end_as_a_whole_one_does_under_tls(
    serve: Callable[..., Server], certificates: Path, trusting: ssl.SSLContext
) -> None:
    server = serve(*tls(certificates), expected=["worker ended"])
    size = 3_000_000
    frame = b"\0\xc8\x01\0" + bytes(
        [size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21]
    )
    begun = (len(frame) + size).to_bytes(4, "little") + frame + b"x" * 1000
    with TLSClient(server.address, trusting) as client:
        client.request("GET", f"/raw?bytes={begun.hex()}&hold")
        head = client._until(b"\r\n\r\n")
        assert b"Content-Length: 3000000" in head
        (pid,) = server.children("busy")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises((AssertionError, ssl.SSLError, ConnectionError)):
            client._exactly(size)


def test_a_slow_reader_gets_the_whole_of_its_last_answer_under_tls(
    serve: Callable[..., Server], certificates: Path, trusting: ssl.SSLContext
) -> None:
    server = serve(*tls(certificates), "--request-write-timeout", "2s")
    with TLSClient(server.address, trusting) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.request("GET", "/size?n=400000", None, {"Connection": "close"})
        head = client._until(b"\r\n\r\n")
        assert b"Connection: close" in head
        got = len(client.buffer)
        while data := client.socket.recv(16384):
            got += len(data)
        assert got == 400_000
    with contextlib.suppress(OSError):
        wait_until(lambda: server.stats()["http_workers"][0]["connections"] == 0, "its end", PATIENCE)
