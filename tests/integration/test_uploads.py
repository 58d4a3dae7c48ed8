"""Large request bodies through a real server: in files, whatever becomes of the client, the child, or us."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from client import Answer, Client
from server import HERE, Server, program, wait_until

from poolparty.spool import PREFIX

Serve = Callable[..., Server]

APP = [sys.executable, str(HERE / "uploads.py")]
FEATURES = {"all": None, "none of it": "", "but not body-file": "ready,health-reply"}
MIB = 1 << 20


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    spool = tmp_path / "spool"
    spool.mkdir()
    return spool


@pytest.fixture
def upload(serve: Serve, spool: Path) -> Callable[..., Server]:
    def start(*options: str, features: str | None = None, expected: tuple[str, ...] = ()) -> Server:
        environment = {} if features is None else {"POOLPARTY_TEST_FEATURES": features}
        server = serve(
            *("--request-spool-dir", str(spool), "--max-request-body-size", "1G", *options),
            command=APP,
            environment=environment,
            expected=expected,
        )
        server.wait_ready()
        return server

    return start


def files(spool: Path) -> list[Path]:
    return sorted(spool.glob(f"{PREFIX}*"))


def chunks(body: bytes, size: int) -> bytes:
    cut = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in cut) + b"0\r\n\r\n"


def check(answer: Answer, body: bytes) -> str:
    """That it is the answer to this body; what it says of the file."""
    assert answer.status == 200, answer.text
    size, digest, path = answer.text.split(maxsplit=2)
    assert (int(size), digest) == (len(body), hashlib.sha256(body).hexdigest())
    return path


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_a_body_is_whole_however_it_comes_and_however_it_goes_on(
    upload: Callable[..., Server], spool: Path, features: str | None
) -> None:
    server = upload("--request-spool-size", "100K", features=features)
    for size in (0, 1, 100 << 10, (100 << 10) + 1, 5 * MIB):
        body = random.Random(size).randbytes(size)
        with Client(server.address) as client:
            path = check(client.ask("POST", "/", body), body)
            client.request("POST", "/whole", chunks(body, 70_000), {"Transfer-Encoding": "chunked"})
            assert check(client.answer(), body) == "None" if path == "None" else "/"
        in_a_file = features is None and size > 100 << 10
        assert (path != "None") == in_a_file
        if in_a_file:
            assert Path(path).parent == spool
    wait_until(lambda: not files(spool), "the files' end")


def test_pipelined_uploads_are_answered_in_order(upload: Callable[..., Server], spool: Path) -> None:
    server = upload("--request-spool-size", "100K")
    bodies = [random.Random(n).randbytes(n * 150_000) for n in (3, 0, 2, 5)]
    with Client(server.address) as client:
        for body in bodies:
            client.request("POST", "/", body)
        for body in bodies:
            check(client.answer(), body)
    wait_until(lambda: not files(spool), "the files' end")


def test_a_large_upload_takes_little_memory(upload: Callable[..., Server], spool: Path) -> None:
    server = upload()
    [worker] = server.http_workers()
    before = psutil.Process(worker).memory_info().rss
    block = random.Random(5).randbytes(MIB)
    digest = hashlib.sha256()
    highest = 0
    with Client(server.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (128 * MIB))
        for _ in range(128):
            client.send(block)
            digest.update(block)
            highest = max(highest, psutil.Process(worker).memory_info().rss)
        assert client.answer().text.split()[1] == digest.hexdigest()
    assert highest - before < 16 * MIB, f"{(highest - before) >> 10} KiB"


HASHING = {
    "wsgi": """
import hashlib
def app(environ, start_response):
    digest, size = hashlib.sha256(), 0
    while data := environ["wsgi.input"].read(65536):
        digest.update(data)
        size += len(data)
    assert int(environ.get("CONTENT_LENGTH") or 0) == size
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{size} {digest.hexdigest()} {type(environ['wsgi.input']).__name__}".encode()]
""",
    "asgi": """
import hashlib
async def app(scope, receive, send):
    digest, size, pieces = hashlib.sha256(), 0, 0
    while True:
        message = await receive()
        digest.update(message["body"])
        size += len(message["body"])
        pieces += 1
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200})
    text = f"{size} {digest.hexdigest()} {'BufferedReader' if pieces > 1 else 'BytesIO'}"
    await send({"type": "http.response.body", "body": text.encode()})
""",
    "cgi": """#!/usr/bin/env python3
import hashlib, os, sys
body = sys.stdin.buffer.read()
assert int(os.environ["CONTENT_LENGTH"] or 0) == len(body)
kind = "BufferedReader" if os.path.realpath("/proc/self/fd/0").startswith(os.environ["SPOOL"]) else "BytesIO"
print("Content-Type: text/plain\\n")
print(len(body), hashlib.sha256(body).hexdigest(), kind)
""",
}


@pytest.mark.parametrize("gateway", HASHING)
def test_a_gateways_application_reads_the_file(
    serve: Serve, tmp_path: Path, spool: Path, gateway: str
) -> None:
    program = tmp_path / "hashing.py"
    program.write_text(HASHING[gateway])
    program.chmod(0o755)
    what = str(program) if gateway == "cgi" else "hashing:app"
    server = serve(
        *("--request-spool-dir", str(spool), "--request-spool-size", "100K", "--chdir", str(tmp_path)),
        command=[sys.executable, "-m", f"poolparty.{gateway}", what],
        environment={"SPOOL": str(spool)},
    )
    for size, kind in (
        (0, "BytesIO"),
        (100 << 10, "BytesIO"),
        ((100 << 10) + 1, "BufferedReader"),
        (4 * MIB, "BufferedReader"),
    ):
        body = random.Random(size).randbytes(size)
        assert check(server.ask("POST", "/", body), body).strip() == kind
    wait_until(lambda: not files(spool), "the files' end")


def begin(server: Server, spool: Path) -> Client:
    """A client in the middle of an upload."""
    client = Client(server.address)
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (10 * MIB) + bytes(3 * MIB))
    wait_until(lambda: files(spool) and files(spool)[0].stat().st_size == 3 * MIB, "the upload")
    return client


def test_a_client_that_leaves_leaves_no_file(upload: Callable[..., Server], spool: Path) -> None:
    server = upload()
    begin(server, spool).reset()
    wait_until(lambda: not files(spool), "the file's end")
    assert server.ask("POST", "/", bytes(2 * MIB)).status == 200


def test_an_http_worker_that_is_killed_leaves_no_file_either(
    upload: Callable[..., Server], spool: Path
) -> None:
    server = upload(expected=("was sent SIGKILL", "Worker .* SIGKILL"))
    [worker] = server.http_workers()
    with contextlib.closing(begin(server, spool)):
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not files(spool), "the file's end")
    wait_until(lambda: server.http_workers() not in ([], [worker]), "another HTTP worker")
    assert server.ask("POST", "/", bytes(2 * MIB)).status == 200


def test_what_a_killed_server_has_left_is_cleared_away_at_the_start(
    upload: Callable[..., Server], spool: Path
) -> None:
    (spool / f"{PREFIX}4711-dead").write_bytes(b"left")
    upload()
    wait_until(lambda: not files(spool), "the file's end")


@pytest.fixture
def small_disk(spool: Path) -> Iterator[None]:
    """2 MiB of it."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2M", "poolparty-test", str(spool)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield
    subprocess.run(["umount", str(spool)], check=True)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_507_and_harms_nobody_else(upload: Callable[..., Server], spool: Path) -> None:
    server = upload(expected=("a request body could not be written",))
    with Client(server.address) as client:
        with contextlib.suppress(ConnectionError):  # it may have been told before it has sent all
            client.request("POST", "/", bytes(8 * MIB))
        assert client.answer().status == 507
    [line, *_] = server.wait_log("a request body could not be written")
    assert "No space left" in line and str(spool) in line
    assert server.ask("POST", "/", bytes(MIB)).status == 200
    wait_until(lambda: not files(spool), "the file's end")
    body = random.Random(1).randbytes(MIB + 1)
    check(server.ask("POST", "/", body), body)
    wait_until(lambda: not files(spool), "the files' end")


def test_a_spool_directory_that_is_not_there_is_refused_at_the_start(serve: Serve, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = subprocess.run(
        [
            *program("poolparty"),
            "--request-spool-dir",
            str(missing),
            "--check-config",
            "--",
            *APP,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"there is no directory {missing}" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
