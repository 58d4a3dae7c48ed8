"""Files that a child names in its answer, from a real server: the child is free at once, the file arrives."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Answer, Client
from server import Server, process_state, wait_until

MIDDLE = 300_000
BIG = 32 * 1024 * 1024  # more than sockets hold
EXPECTED = ["cannot be sent", "is missing", "names more than one file", "unusable response", "broke off"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sendfile_root of every server here."""
    root = tmp_path_factory.mktemp("sendfile") / "files"
    (root / "sub").mkdir(parents=True)
    (root.parent / "secret").write_bytes(b"secret")
    (root / "out").symlink_to("../secret")
    (root / "loop").symlink_to("loop")
    (root / "a.txt").write_bytes(b"0123456789")
    (root / "a.txt.gz").write_bytes(b"compressed ahead")
    (root / "empty").touch()
    (root / "middle.bin").write_bytes(os.urandom(MIDDLE))
    with (root / "big.bin").open("wb") as file:
        block = os.urandom(1 << 20)
        for number in range(BIG >> 20):
            file.write(number.to_bytes(8, "big") + block[8:])
    return root


@pytest.fixture(scope="module")
def server(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("sendfile-server")
    options = ("--sendfile-root", str(files), "--max-pool-size", "1", "--request-write-timeout", "2s")
    with Server(directory, *options, expected=EXPECTED) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def says(headers: dict[str, Any], status: int = 200, body: Any = b"the child's own body") -> bytes:
    """What has tests/integration/app.py answer so at /answer."""
    return repr((status, headers, body)).encode()


def ask(
    client: Client,
    name: str,
    fields: dict[str, str] | None = None,
    *,
    method: str = "GET",
    status: int = 200,
    **headers: Any,
) -> Answer:
    """A request whose child names a file."""
    said = {"X-Sendfile": name, **{key.replace("_", "-"): value for key, value in headers.items()}}
    return client.ask(method, "/answer", says(said, status), fields)


def outcomes(server: Server) -> dict[str, int]:
    found: dict[str, int] = server.pool()["outcomes"]
    return found


# --- what is sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "empty", "middle.bin", "big.bin"])
def test_the_file_is_sent_in_place_of_the_childs_body(client: Client, files: Path, name: str) -> None:
    content = (files / name).read_bytes()
    for named in (
        {"X-Sendfile": name},
        {"X-Sendfile": str(files / name)},
        {"X-Accel-Redirect": f"/{name}"},
    ):
        answer = client.ask("GET", "/answer", says(named))
        assert (answer.status, answer.body == content) == (200, True)
        assert answer.get("accept-ranges") == "bytes"
        assert answer.get("x-sendfile") is None and answer.get("x-accel-redirect") is None
    assert client.ask("GET", "/").body == b"hello\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_any_method_may_be_answered_so_and_only_get_and_head_in_parts(client: Client, method: str) -> None:
    conditions = {"Range": "bytes=1-2", "If-None-Match": "*"}
    answer = ask(client, "a.txt", conditions, method=method)
    assert (answer.status, answer.body) == (200, b"0123456789")


def test_the_childs_other_fields_are_kept(client: Client) -> None:
    disposition = 'attachment; filename="report.txt"'
    answer = ask(
        client,
        "a.txt",
        Content_Type="application/pdf",
        Content_Disposition=disposition,
        Cache_Control="private",
        Set_Cookie=["a=1", "b=2"],
        Content_Length="3",
    )
    assert (answer.get("content-type"), answer.body) == ("application/pdf", b"0123456789")
    assert (answer.get("content-disposition"), answer.get("cache-control")) == (disposition, "private")
    assert answer.all("set-cookie") == ["a=1", "b=2"]
    assert (
        ask(client, "a.txt", {"Accept-Encoding": "gzip"}).get("content-type") == "text/plain; charset=utf-8"
    )


def test_a_compressed_copy_beside_the_file_is_not_chosen(client: Client) -> None:
    answer = ask(client, "a.txt", {"Accept-Encoding": "gzip, br"})
    assert (answer.body, answer.get("content-encoding"), answer.get("vary")) == (b"0123456789", None, None)
    answer = ask(client, "a.txt.gz", Content_Type="text/plain", Content_Encoding="gzip")
    assert (answer.body, answer.get("content-encoding")) == (b"compressed ahead", "gzip")


@pytest.mark.parametrize("name", ["a.txt", "empty", "middle.bin", "big.bin"])
def test_head_says_what_get_would_send(client: Client, files: Path, name: str) -> None:
    answer = ask(client, name, {"Range": "bytes=0-0"}, method="HEAD", ETag='"v1"')
    assert (answer.status, answer.get("content-length")) == (200, str((files / name).stat().st_size))
    assert answer.get("etag") == '"v1"'
    assert ask(client, name, {"If-None-Match": '"v1"'}, method="HEAD", ETag='"v1"').status == 304


@pytest.mark.parametrize("name", ["a.txt", "middle.bin", "big.bin"])
@pytest.mark.parametrize("said", [{}, {"ETag": '"v1"', "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}])
def test_parts_and_conditions(client: Client, files: Path, name: str, said: dict[str, str]) -> None:
    content = (files / name).read_bytes()
    part = ask(client, name, {"Range": "bytes=3-"}, **said)
    assert (part.status, part.body == content[3:]) == (206, True)
    assert part.get("content-range") == f"bytes 3-{len(content) - 1}/{len(content)}"
    etag, modified = part.get("etag") or "", part.get("last-modified") or ""
    assert etag and modified
    part = ask(client, name, {"Range": "bytes=-4", "If-Range": etag}, **said)
    assert (part.status, part.body) == (206, content[-4:])
    assert ask(client, name, {"Range": "bytes=0-0", "If-Range": '"other"'}, **said).body == content
    refused = ask(client, name, {"Range": f"bytes={len(content)}-"}, Cache_Control="max-age=60", **said)
    assert (refused.status, refused.get("content-range")) == (416, f"bytes */{len(content)}")
    assert (refused.get("etag"), refused.get("cache-control")) == (None, None)
    for condition in ({"If-None-Match": etag}, {"If-Modified-Since": modified}):
        unchanged = ask(client, name, condition, Cache_Control="max-age=60", Set_Cookie="a=1", **said)
        assert (unchanged.status, unchanged.get("content-length"), unchanged.body) == (304, None, b"")
        assert (unchanged.get("etag"), unchanged.get("cache-control")) == (etag, "max-age=60")
        assert unchanged.get("set-cookie") == "a=1"
    assert ask(client, name, {"If-Match": '"other"'}, **said).status == 412


def test_another_status_is_kept_with_the_whole_file(client: Client) -> None:
    conditions = {"Range": "bytes=1-2", "If-None-Match": "*"}
    answer = ask(client, "a.txt", conditions, status=403, Content_Type="text/html")
    assert (answer.status, answer.body, answer.get("accept-ranges")) == (403, b"0123456789", None)
    answer = ask(client, "a.txt", {"Range": "bytes=1-2"}, status=206, Content_Range="bytes 0-0/10")
    assert (answer.status, answer.body, answer.get("content-range")) == (206, b"12", "bytes 1-2/10")


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_that_has_no_body_gets_no_file(client: Client, status: int) -> None:
    answer = ask(client, "a.txt", status=status, ETag='"v1"')
    assert (answer.status, answer.get("etag"), answer.get("x-sendfile")) == (status, '"v1"', None)
    assert client.ask("GET", "/").status == 200


# --- what is not -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["X-Sendfile", "X-Accel-Redirect"])
@pytest.mark.parametrize(
    ("name", "status", "line"),
    [
        ("missing", 404, r'WARNING.*is missing" field="{field}" file="missing" method=GET target="/answer"'),
        ("../secret", 502, r"file that {field} names cannot be sent \(it is outside the root\): \.\./secret"),
        ("out", 502, r"file that {field} names cannot be sent \(it is outside the root\): out"),
        ("sub", 502, r"file that {field} names cannot be sent \(it is a directory\): sub"),
        ("loop", 502, r"file that {field} names cannot be sent \(Too many levels of symbolic links\): loop"),
    ],
)
def test_what_cannot_be_sent_is_told_to_the_log_and_never_sent(
    server: Server, client: Client, field: str, name: str, status: int, line: str
) -> None:
    said = {field: name, "Content-Disposition": "attachment", "Cache-Control": "max-age=60", "X-Kept": "1"}
    answer = client.ask("GET", "/answer", says(said))
    assert answer.status == status
    assert b"secret" not in answer.body and b"child" not in answer.body
    assert (answer.get("content-disposition"), answer.get("cache-control")) == (None, None)
    assert answer.get("x-kept") == ("1" if status == 404 else None)
    server.wait_log(line.format(field=field))
    assert client.ask("GET", "/").status == 200


def test_an_absolute_path_elsewhere_is_refused(client: Client) -> None:
    assert ask(client, "/etc/passwd").status == 502
    assert client.ask("GET", "/answer", says({"X-Accel-Redirect": "/etc/passwd"})).status == 404


def test_two_files_or_another_field_that_http_cannot_carry_is_502(server: Server, client: Client) -> None:
    assert client.ask("GET", "/answer", says({"X-Sendfile": ["a.txt", "sub"]})).status == 502
    assert ask(client, "big.bin", X_Bad="a\r\nX-Injected: yes").status == 502
    server.wait_log("names more than one file")
    assert ask(client, "a.txt").status == 200


def test_without_sendfile_root_the_fields_pass_through(serve: Callable[..., Server], files: Path) -> None:
    server = serve()
    for field, name in (("X-Sendfile", str(files / "a.txt")), ("X-Accel-Redirect", "/a.txt")):
        answer = server.ask("GET", "/answer", says({field: name}, body="for the proxy"))
        assert (answer.get(field), answer.body) == (name, b"for the proxy")


# --- children ----------------------------------------------------------------------------------------------


def test_a_body_that_the_child_sends_besides_is_thrown_away(client: Client, files: Path) -> None:
    """Large, and in pieces: both pass the server in other ways than a small one."""
    middle = (files / "middle.bin").read_bytes()
    client.request("GET", "/answer", says({"X-Sendfile": "middle.bin"}, body=["piece\n"] * 1000))
    assert client.answer().body == middle
    client.request("GET", "/answer", says({"X-Sendfile": "middle.bin"}, body="x" * 1_000_000))
    assert client.answer().body == middle
    assert client.ask("GET", "/").body == b"hello\n"


FLASK = """
from flask import Flask, send_from_directory

app = Flask(__name__)
app.config["USE_X_SENDFILE"] = True


@app.get("/<path:name>")
def file(name):
    return send_from_directory({root!r}, name, as_attachment=True)
"""


def test_flask_leaves_its_files_to_the_server(
    serve: Callable[..., Server], files: Path, tmp_path: Path
) -> None:
    """It looks at conditions and ranges itself, and says 206 without taking the part."""
    if importlib.util.find_spec("flask") is None:
        assert "CI" not in os.environ, "CI needs the test extra, which has Flask in it"
        pytest.skip("Flask is not installed")
    (tmp_path / "files_app.py").write_text(FLASK.format(root=str(files)))
    command = [sys.executable, "-m", "poolparty.wsgi", str(tmp_path / "files_app.py:app")]
    server = serve("--sendfile-root", str(files), command=command)
    whole = server.get("/middle.bin")
    assert whole.body == (files / "middle.bin").read_bytes()
    assert whole.get("content-disposition") == "attachment; filename=middle.bin"
    part = server.get("/middle.bin", {"Range": "bytes=1000-1999", "If-Range": whole.get("etag") or ""})
    assert (part.status, part.body) == (206, whole.body[1000:2000])
    assert part.get("content-range") == f"bytes 1000-1999/{MIDDLE}"
    unchanged = server.get("/middle.bin", {"If-None-Match": whole.get("etag") or ""})
    assert (unchanged.status, unchanged.get("etag")) == (304, whole.get("etag"))
    assert server.ask("HEAD", "/middle.bin").get("content-length") == str(MIDDLE)
    assert server.pool()["counters"]["files_sent"] == 3


def test_the_child_is_free_while_a_client_takes_its_file(server: Server, client: Client) -> None:
    """max_pool_size is 1 for this server."""
    with Client(server.address) as slow:
        slow.request("GET", "/answer", says({"X-Sendfile": "big.bin"}))
        slow._receive()
        assert client.ask("GET", "/").body == b"hello\n"
        assert server.pool()["busy"] == 0
        assert len(slow.answer().body) == BIG


def test_pipelined_requests_are_answered_in_their_order(client: Client, files: Path) -> None:
    def request(target: str, body: bytes = b"") -> bytes:
        return b"GET %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (
            target.encode(),
            len(body),
            body,
        )

    named = [
        request("/answer", says({"X-Sendfile": name}))
        for name in ("a.txt", "middle.bin", "missing", "big.bin")
    ]
    client.send(b"".join(part for file in named for part in (request("/"), file)) + request("/"))
    expected = [b"0123456789", (files / "middle.bin").read_bytes(), b"not found\n"]
    expected.append((files / "big.bin").read_bytes())
    for body in expected:
        assert client.answer().body == b"hello\n"
        assert client.answer().body == body
    assert client.answer().body == b"hello\n"


# --- clients of all kinds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "middle.bin"])
def test_http_1_0_and_the_connections_end(client: Client, files: Path, name: str) -> None:
    body = says({"X-Sendfile": name})
    client.send(b"GET /answer HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    assert client.answer().body == (files / name).read_bytes()
    assert client.at_end()


@pytest.mark.parametrize("name", ["a.txt", "middle.bin"])
def test_a_child_may_ask_for_the_connections_end(client: Client, files: Path, name: str) -> None:
    answer = ask(client, name, Connection="close")
    assert (answer.body, answer.get("connection")) == ((files / name).read_bytes(), "close")
    assert client.at_end()


def test_a_client_that_has_said_all_still_gets_its_file(client: Client) -> None:
    client.request("GET", "/answer", says({"X-Sendfile": "big.bin"}))
    client.socket.shutdown(socket.SHUT_WR)
    assert len(client.answer().body) == BIG
    assert client.at_end()


def test_a_client_that_leaves_in_the_middle_leaves_nothing_open(server: Server) -> None:
    (worker,) = server.http_workers()
    assert server.ask("GET", "/answer", says({"X-Sendfile": "middle.bin"})).status == 200
    wait_until(lambda: server.stats()["http_workers"][0]["connections"] == 0, "no connection")
    before, abandoned = descriptors(worker), outcomes(server)["abandoned"]
    for reset in (True, False):
        client = Client(server.address)
        client.request("GET", "/answer", says({"X-Sendfile": "big.bin"}))
        client._receive()
        (client.reset if reset else client.close)()
    wait_until(lambda: descriptors(worker) <= before, "the files closed")
    wait_until(lambda: outcomes(server)["abandoned"] == abandoned + 2, "both counted as abandoned")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_client_that_takes_nothing_is_cut_off(server: Server) -> None:
    with Client(server.address) as client:
        client.request("GET", "/answer", says({"X-Sendfile": "big.bin"}))
        server.wait_log("response write timed out")
        with pytest.raises((ConnectionResetError, AssertionError)):
            client.answer()


def test_a_file_cut_short_while_it_is_sent_ends_the_connection(server: Server, files: Path) -> None:
    path = files / "shrinking.bin"
    with path.open("wb") as file:
        file.truncate(BIG)
    failed = outcomes(server)["failed"]
    with Client(server.address) as client:
        client.request("GET", "/answer", says({"X-Sendfile": "shrinking.bin"}))
        client._receive()
        os.truncate(path, 1000)
        with pytest.raises((ConnectionResetError, AssertionError)):
            client.answer()
    wait_until(lambda: outcomes(server)["failed"] == failed + 1, "counted as failed")


def test_tls_is_served_by_reads_in_bounded_memory(
    serve: Callable[..., Server], files: Path, tmp_path: Path
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    pem = str(tmp_path / "pem")
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run([*make, "-keyout", pem, "-out", pem + ".crt"], check=True, capture_output=True)
    options = ("--certfile", pem + ".crt", "--keyfile", pem, "--request-write-timeout", "2s")
    server = serve("--sendfile-root", str(files), *options)
    server.wait_ready()
    (worker,) = server.http_workers()
    context = ssl.create_default_context(cafile=pem + ".crt")

    def connect() -> Client:
        client = server.connect()
        client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
        return client

    client = connect()
    assert ask(client, "a.txt").body == b"0123456789"
    before = peak(worker)
    assert hashlib.sha256(ask(client, "big.bin").body).digest() == digest(files / "big.bin")
    idle = [connect() for _ in range(4)]
    for other in idle:
        other.request("GET", "/answer", says({"X-Sendfile": "big.bin"}))
    server.wait_log("response write timed out", len(idle))
    assert peak(worker) - before < 16 * 1024 * 1024


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# --- counted, logged, stopped ------------------------------------------------------------------------------


def test_answers_are_counted_and_logged_with_the_bytes_that_were_sent(
    serve: Callable[..., Server], files: Path, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    options = ("--access-logfile", str(log), "--access-logformat", "%(m)s %(s)s %(B)s")
    server = serve("--sendfile-root", str(files), *options, expected=EXPECTED)
    client = server.connect()
    answers = [
        ask(client, "a.txt"),
        ask(client, "middle.bin"),
        ask(client, "middle.bin", {"Range": "bytes=0-9999"}),
        ask(client, "middle.bin", method="HEAD"),
        ask(client, "middle.bin", {"If-None-Match": "*"}),
        ask(client, "missing"),
        ask(client, "out"),
    ]
    sizes = [len(answer.head) + len(answer.body) for answer in answers]
    wait_until(lambda: outcomes(server)["failed"] == 1, "the last of them counted")
    pool = server.pool()
    assert (outcomes(server)["answered"], pool["requests"]) == (6, 7)
    counters = pool["counters"]
    assert (counters["files_sent"], counters["bytes_sent"]) == (4, sum(sizes))
    assert [counters[f"status_{digit}xx"] for digit in "2345"] == [4, 1, 1, 0]
    methods = ["GET", "GET", "GET", "HEAD", "GET", "GET", "GET"]
    statuses = [200, 200, 206, 200, 304, 404, 502]
    expected = [
        f"{method} {status} {size}" for method, status, size in zip(methods, statuses, sizes, strict=True)
    ]
    wait_until(lambda: log.read_text().splitlines() == expected, f"{expected}")


def test_the_access_logs_service_time_is_the_childs_alone(
    serve: Callable[..., Server], files: Path, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    server = serve("--sendfile-root", str(files), "--access-logfile", str(log), "--access-log-json")
    client = server.connect()
    client.request("GET", "/answer", says({"X-Sendfile": "big.bin"}))
    client._receive()
    time.sleep(0.5)  # a client that takes its time is what this is about
    assert len(client.answer().body) == BIG
    wait_until(log.read_text, "a line in the access log")
    line = json.loads(log.read_text())
    assert line["service_time"] > 0 and line["seconds"] - line["service_time"] > 0.49


def test_a_stop_lets_a_download_end(serve: Callable[..., Server], files: Path) -> None:
    server = serve("--sendfile-root", str(files))
    server.wait_ready()
    (worker,) = server.http_workers()
    client = server.connect()
    client.request("GET", "/answer", says({"X-Sendfile": "big.bin"}))
    client._receive()
    server.signal(15)
    assert len(client.answer().body) == BIG
    assert client.at_end()
    server.terminate(None)
    assert process_state(worker) is None
