"""Static files from a real server: beside the pool, to clients of every kind, disturbing nobody."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client import Client
from server import PATIENCE, Server, process_state, wait_until

TEXT = b"body { color: red }\n" * 200
BIG = 200 * 1024 * 1024


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of every server here."""
    root = tmp_path_factory.mktemp("static") / "files"
    (root / "sub").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_bytes(b"hidden")
    (root.parent / "secret").write_bytes(b"secret")
    (root / "out").symlink_to("../secret")
    (root / "a.txt").write_bytes(b"0123456789")
    (root / "app.css").write_bytes(TEXT)
    (root / "middle.bin").write_bytes(os.urandom(300_000))
    with (root / "big.bin").open("wb") as file:
        block = os.urandom(1 << 20)
        for number in range(BIG >> 20):
            file.write(number.to_bytes(8, "big") + block[8:])
    return root


@pytest.fixture(scope="module")
def server(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("static-server")
    options = (
        *("--static-root", str(files), "--static-compress", "--static-cache-dir", str(directory / "cache")),
        *("--request-write-timeout", "2s", "--access-logfile", str(directory / "access.log")),
    )
    with Server(directory, *options) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def outcomes(server: Server) -> dict[str, int]:
    found: dict[str, int] = server.pool()["outcomes"]
    return found


def test_files_are_served_and_all_else_reaches_the_pool(client: Client) -> None:
    assert client.ask("GET", "/static/a.txt").body == b"0123456789"
    assert client.ask("GET", "/echo").json["uri"] == "http://test.example/echo"
    assert client.ask("GET", "/static/../echo").json["uri"] == "http://test.example/echo"
    assert client.ask("GET", "/echo/..//static/a.txt").body == b"0123456789"


@pytest.mark.parametrize(
    "target",
    [
        "/static/missing",
        "/static/",
        "/static/sub",
        "/static/sub/",
        "/static/a.txt/",
        "/static/.git/config",
        "/static/out",
        "/static/%00",
        "/static/a.txt%00",
    ],
)
def test_what_is_not_there_to_be_seen_is_404(client: Client, target: str) -> None:
    answer = client.ask("GET", target)
    assert (answer.status, answer.body) == (404, b"not found\n")
    assert client.ask("GET", "/static/a.txt").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_405_and_their_bodies_are_taken(client: Client, method: str) -> None:
    answer = client.ask(method, "/static/a.txt", b"body")
    assert (answer.status, answer.get("allow")) == (405, "GET, HEAD")
    assert client.ask("GET", "/static/a.txt").status == 200


@pytest.mark.parametrize("name", ["a.txt", "app.css", "middle.bin", "big.bin"])
def test_head_says_what_get_would_send(client: Client, files: Path, name: str) -> None:
    answer = client.ask("HEAD", f"/static/{name}")
    assert (answer.status, answer.get("content-length")) == (200, str((files / name).stat().st_size))
    assert client.ask("HEAD", "/static/missing").status == 404


@pytest.mark.parametrize("name", ["a.txt", "app.css", "middle.bin", "big.bin"])
def test_parts_and_conditions(client: Client, files: Path, name: str) -> None:
    content = (files / name).read_bytes()
    target = f"/static/{name}"
    part = client.ask("GET", target, None, {"Range": "bytes=3-"})
    assert (part.status, part.body == content[3:]) == (206, True)
    assert part.get("content-range") == f"bytes 3-{len(content) - 1}/{len(content)}"
    part = client.ask("GET", target, None, {"Range": "bytes=0-0", "If-Range": part.get("etag") or ""})
    assert (part.status, part.body) == (206, content[:1])
    assert client.ask("GET", target, None, {"Range": f"bytes={len(content)}-"}).status == 416
    unchanged = client.ask("GET", target, None, {"If-None-Match": part.get("etag") or ""})
    assert (unchanged.status, unchanged.get("content-length")) == (304, None)
    since = {"If-Modified-Since": part.get("last-modified") or ""}
    assert client.ask("GET", target, None, since).status == 304


@pytest.mark.parametrize("name", ["middle.bin", "big.bin"])
def test_a_large_file_arrives_whole_and_the_connection_goes_on(
    client: Client, files: Path, name: str
) -> None:
    answer = client.ask("GET", f"/static/{name}")
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256((files / name).read_bytes()).digest()
    assert client.ask("GET", "/echo").status == 200


def test_pipelined_requests_are_answered_in_their_order(client: Client, files: Path) -> None:
    targets = [
        "/static/a.txt",
        "/echo",
        "/static/middle.bin",
        "/static/missing",
        "/echo",
        "/static/middle.bin",
    ]
    client.send(b"".join(b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % target.encode() for target in targets))
    middle = (files / "middle.bin").read_bytes()
    assert client.answer().body == b"0123456789"
    assert client.answer().json["path"] == "/echo"
    assert client.answer().body == middle
    assert client.answer().status == 404
    assert client.answer().json["path"] == "/echo"
    assert client.answer().body == middle


@pytest.mark.parametrize("name", ["a.txt", "middle.bin"])
def test_the_connection_ends_with_the_file_if_asked(client: Client, files: Path, name: str) -> None:
    answer = client.ask("GET", f"/static/{name}", None, {"Connection": "close"})
    assert (answer.body, answer.get("connection")) == ((files / name).read_bytes(), "close")
    assert client.at_end()


def test_http_1_0(client: Client) -> None:
    client.send(b"GET /static/a.txt HTTP/1.0\r\n\r\n")
    assert client.answer().body == b"0123456789"
    assert client.at_end()


def test_a_client_that_has_said_all_still_gets_its_file(client: Client) -> None:
    client.request("GET", "/static/big.bin")
    client.socket.shutdown(socket.SHUT_WR)
    assert len(client.answer().body) == BIG
    assert client.at_end()


# --- changes -----------------------------------------------------------------------------------------------


def test_a_changed_file_is_served_changed(client: Client, files: Path) -> None:
    path = files / "changing.txt"
    for number in range(50):
        path.write_text(f"{number:05}")
        assert client.ask("GET", "/static/changing.txt").text == f"{number:05}"
    path.unlink()
    assert client.ask("GET", "/static/changing.txt").status == 404


def test_a_file_that_is_replaced_is_served_replaced(client: Client, files: Path) -> None:
    path = files / "replaced.bin"
    for number in range(10):
        new = files / "new"
        new.write_bytes(bytes([number]) * 100_000)
        new.rename(path)
        assert client.ask("GET", "/static/replaced.bin").body == bytes([number]) * 100_000


# --- compressed --------------------------------------------------------------------------------------------


def test_a_copy_is_made_at_first_use_and_nothing_is_written_beside_the_file(
    server: Server, client: Client, files: Path
) -> None:
    before = sorted(files.iterdir())
    answer = client.ask("GET", "/static/app.css", None, {"Accept-Encoding": "gzip"})
    assert (answer.get("content-encoding"), answer.get("vary")) == ("gzip", "Accept-Encoding")
    assert gzip.decompress(answer.body) == TEXT and len(answer.body) < len(TEXT)
    assert (
        client.ask("GET", "/static/app.css", None, {"Accept-Encoding": "gzip, br"}).get("content-encoding")
        == "br"
    )
    assert client.ask("GET", "/static/app.css").body == TEXT
    assert sorted(files.iterdir()) == before
    assert sorted(path.suffix for path in (server.directory / "cache").iterdir()) == [".br", ".gz"]


def test_a_copy_beside_the_file_is_taken(client: Client, files: Path) -> None:
    (files / "made.css").write_bytes(TEXT)
    (files / "made.css.gz").write_bytes(gzip.compress(TEXT + b"/* made ahead */"))
    answer = client.ask("GET", "/static/made.css", None, {"Accept-Encoding": "gzip"})
    assert gzip.decompress(answer.body) == TEXT + b"/* made ahead */"


def test_without_static_compress_files_are_sent_as_they_are(
    serve: Callable[..., Server], files: Path
) -> None:
    (files / "plain.css").write_bytes(TEXT)
    (files / "plain.css.gz").write_bytes(gzip.compress(TEXT))
    server = serve("--static-root", str(files), "--static-url-prefix", "/assets")
    answer = server.get("/assets/plain.css", {"Accept-Encoding": "gzip, br"})
    assert (answer.body, answer.get("content-encoding"), answer.get("vary")) == (TEXT, None, None)
    assert server.get("/static/plain.css").status == 404
    assert server.get("/static/plain.css").body == b"no such page\n"  # the application's


def test_brotli_can_be_left_out(serve: Callable[..., Server], files: Path, tmp_path: Path) -> None:
    options = ("--static-compress", "--static-no-brotli", "--static-cache-dir", str(tmp_path / "cache"))
    server = serve("--static-root", str(files), *options)
    answer = server.get("/static/app.css", {"Accept-Encoding": "br, gzip"})
    assert gzip.decompress(answer.body) == TEXT


# --- clients of all kinds ----------------------------------------------------------------------------------


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_client_that_leaves_in_the_middle_leaves_nothing_open(server: Server) -> None:
    (worker,) = server.http_workers()
    assert server.get("/static/big.bin", {"Range": "bytes=0-99999"}).status == 206
    wait_until(lambda: server.stats()["http_workers"][0]["connections"] == 0, "no connection")
    before, abandoned = descriptors(worker), outcomes(server)["abandoned"]
    for reset in (True, False):
        client = Client(server.address)
        client.request("GET", "/static/big.bin")
        client._receive()
        (client.reset if reset else client.close)()
    wait_until(lambda: descriptors(worker) <= before, "the files closed")
    wait_until(lambda: outcomes(server)["abandoned"] == abandoned + 2, "both counted as abandoned")


def test_a_client_that_takes_nothing_is_cut_off(server: Server) -> None:
    """request_write_timeout is 2 s for this server."""
    started = time.monotonic()
    client = server.connect()
    client.request("GET", "/static/big.bin")
    server.wait_log("response write timed out")
    assert 1.9 < time.monotonic() - started < 8
    got = 0
    with pytest.raises((ConnectionResetError, AssertionError)):
        while True:
            data = client.socket.recv(1 << 20)
            assert data
            got += len(data)
    assert got < BIG


def test_a_slow_client_that_takes_a_little_is_served_on(server: Server) -> None:
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.settimeout(PATIENCE)
        slow.connect(server.address)
        slow.sendall(b"GET /static/big.bin HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        end = time.monotonic() + 4.0  # twice request_write_timeout
        got = 0
        while time.monotonic() < end:
            data = slow.recv(16384)
            assert data
            got += len(data)
            time.sleep(0.005)  # this is what makes it slow
        while data := slow.recv(1 << 20):
            got += len(data)
        assert got > BIG


def test_a_file_cut_short_while_it_is_sent_ends_the_connection(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "shrinking.bin"
    with path.open("wb") as file:
        file.truncate(BIG)
    server = serve("--static-root", str(tmp_path / "files"), expected=["file broke off"])
    client = server.connect()
    client.request("GET", "/static/shrinking.bin")
    client._receive()
    os.truncate(path, 1000)
    with pytest.raises((ConnectionResetError, AssertionError)):
        client.answer()
    assert server.get("/").status == 200


def test_static_answers_are_counted_and_logged(
    serve: Callable[..., Server], files: Path, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    server = serve(
        "--static-root", str(files), "--access-logfile", str(log), "--access-logformat", "%(r)s %(s)s %(B)s"
    )
    client = server.connect()
    sizes = [
        len(a.head) + len(a.body)
        for a in (client.ask("GET", f"/static/{n}") for n in ("a.txt", "middle.bin", "no"))
    ]
    # The last byte of a file is with its client before it is counted.
    wait_until(lambda: outcomes(server)["static"] == 3, "three static answers")
    assert outcomes(server)["answered"] == 0
    assert server.pool()["requests"] == 3
    assert server.pool()["counters"]["bytes_sent"] == sum(sizes)
    assert log.read_text().splitlines() == [
        f"GET /static/a.txt HTTP/1.1 200 {sizes[0]}",
        f"GET /static/middle.bin HTTP/1.1 200 {sizes[1]}",
        f"GET /static/no HTTP/1.1 404 {sizes[2]}",
    ]


def test_a_stop_lets_a_download_end(serve: Callable[..., Server], files: Path) -> None:
    server = serve("--static-root", str(files))
    client = server.connect()
    client.request("GET", "/static/big.bin")
    client._receive()
    server.signal(15)
    (worker,) = [pid for pid in server.session() if b"worker" in cmdline(pid)][:1] or [0]
    assert len(client.answer().body) == BIG
    assert client.at_end()
    server.wait_exit()
    assert process_state(worker) is None


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_unix_socket_is_served(serve: Callable[..., Server], files: Path) -> None:
    server = serve("--static-root", str(files), bind="unix:http.sock")
    assert hashlib.sha256(server.get("/static/big.bin").body).digest() == digest(files / "big.bin")


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def test_tls_is_served_by_reads(serve: Callable[..., Server], files: Path, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    pem = str(tmp_path / "pem")
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run([*make, "-keyout", pem, "-out", pem + ".crt"], check=True, capture_output=True)
    server = serve("--static-root", str(files), "--certfile", pem + ".crt", "--keyfile", pem)
    context = ssl.create_default_context(cafile=pem + ".crt")
    with Client(server.address) as client:
        client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
        assert hashlib.sha256(client.ask("GET", "/static/big.bin").body).digest() == digest(files / "big.bin")
        assert client.ask("GET", "/static/a.txt").body == b"0123456789"


# --- a big download disturbs nobody ------------------------------------------------------------------------


def resident(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def latencies(server: Server, seconds: float) -> list[float]:
    found = []
    with Client(server.address) as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            started = time.monotonic()
            assert client.ask("GET", "/").status == 200
            found.append(time.monotonic() - started)
            time.sleep(0.002)  # a user's pace, not a load
    return found


def download(address: tuple[str, int], slow: bool, stop: threading.Event) -> None:
    while not stop.is_set():
        with socket.socket() as sock:
            sock.settimeout(PATIENCE)
            sock.connect(address)
            sock.sendall(b"GET /static/big.bin HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            while not stop.is_set() and sock.recv(65536 if slow else 1 << 20):
                time.sleep(0.01 if slow else 0.001)


@pytest.mark.alone
def test_big_downloads_disturb_no_other_request_and_take_no_memory(
    serve: Callable[..., Server], files: Path
) -> None:
    server = serve("--static-root", str(files), "--min-pool-size", "1")
    server.wait_ready()
    (worker,) = server.http_workers()
    alone = latencies(server, 2.0)
    memory = resident(worker)
    stop = threading.Event()
    assert not isinstance(server.address, str)
    clients = [
        threading.Thread(target=download, args=(server.address, number % 2 == 0, stop)) for number in range(8)
    ]
    for thread in clients:
        thread.start()
    try:
        wait_until(lambda: server.stats()["http_workers"][0]["connections"] == 8, "eight downloads")
        with_downloads = latencies(server, 4.0)
        grown = resident(worker) - memory
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    p99_alone, p99 = (statistics.quantiles(found, n=100)[98] for found in (alone, with_downloads))
    print(f"p99 alone {p99_alone * 1e3:.2f} ms, with downloads {p99 * 1e3:.2f} ms, memory {grown >> 10} KiB")
    assert p99 < max(0.05, 5 * p99_alone)
    assert grown < 16 * 1024 * 1024
