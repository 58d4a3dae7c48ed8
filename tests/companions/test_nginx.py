"""conf/nginx.conf in a real nginx: who the client is, large bodies, slow and impatient clients, files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client import PATIENCE, Client
from load import Load
from server import CHECKOUT, Server, wait_until

Serve = Callable[..., Server]

READY = CHECKOUT / "conf" / "nginx.conf"
CLIENT = "127.0.0.7"
"""Where clients are: an address that nobody trusts, as 127.0.0.1 is."""

LARGEST_BODY = 4 << 20

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

AROUND = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    include /etc/nginx/mime.types;
    {temporary}
    include {directory}/poolparty.conf;
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Proxy:
    """nginx as the ready file has it, but for addresses, paths, and a certificate of its own."""

    def __init__(self, program: str, directory: Path, upstream: str) -> None:
        directory.mkdir()
        self.directory = directory
        self.files = directory / "app"
        self.port, self.tls_port = free_port(), free_port()
        words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        words += ["-subj", "/CN=test.example", "-keyout", "key", "-out", "certificate"]
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)
        text = READY.read_text()
        for pattern, by in (
            ("server 127.0.0.1:8080;", f"server {upstream};"),
            ("listen 80;", f"listen 127.0.0.1:{self.port};"),
            ("#listen 443 ssl http2;", f"listen 127.0.0.1:{self.tls_port} ssl http2;"),
            ("#ssl_certificate /.*;", f"ssl_certificate {directory}/certificate;"),
            ("#ssl_certificate_key /.*;", f"ssl_certificate_key {directory}/key;"),
            ("/var/log/nginx/poolparty.log", f"{directory}/access.log"),
        ):
            text, count = re.subn(pattern, by, text)
            assert count == 1, f"{pattern} is there {count} times"
        assert "/srv/app" in text
        (directory / "poolparty.conf").write_text(text.replace("/srv/app", str(self.files)))
        (directory / "nginx.conf").write_text(
            AROUND.format(
                user="user root;"
                if os.geteuid() == 0
                else "",  # pytest's directories are for their owner alone
                directory=directory,
                temporary="\n    ".join(f"{name}_temp_path {directory}/{name};" for name in TEMPORARY),
            )
        )
        command = [
            program,
            "-p",
            str(directory),
            "-e",
            f"{directory}/error.log",
            "-c",
            f"{directory}/nginx.conf",
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            wait_until(self._listens, "nginx")
        except BaseException:
            self.close()
            raise

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.errors
        try:
            socket.create_connection(("127.0.0.1", self.tls_port)).close()
        except ConnectionRefusedError:
            return False
        return True

    @property
    def errors(self) -> str:
        return (self.directory / "error.log").read_text()

    def connect(self, source: str | None = None) -> Client:
        return Client(("127.0.0.1", self.port), source=source)

    def logged(self, target: str) -> str:
        """The line of its access log about the only request for this target."""

        def line() -> str | None:
            lines = (self.directory / "access.log").read_text().splitlines()
            return next((line for line in lines if f" {target} " in line), None)

        found = wait_until(line, "nginx's access log")
        assert found is not None
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)


Front = tuple[Server, Proxy]


@contextlib.contextmanager
def in_front(nginx: str, directory: Path, bind: str) -> Iterator[Front]:
    """A server with one child, and nginx in front of it."""
    log = ("--access-logfile", str(directory / "json"), "--access-log-json", "--request-ids")
    with Server(directory / "server", *log, bind=bind) as server:
        address = server.address
        upstream = f"unix:{address}" if isinstance(address, str) else "{}:{}".format(*address)
        proxy = Proxy(nginx, directory / "nginx", upstream)
        try:
            yield server, proxy
        finally:
            proxy.close()
    assert "[alert]" not in proxy.errors and "[emerg]" not in proxy.errors, proxy.errors


@pytest.fixture(scope="module")
def front(nginx: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with in_front(nginx, tmp_path_factory.mktemp("nginx"), "unix:http.sock") as front:
        yield front


LIES = {
    "X-Forwarded-For": "192.0.2.1",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Protocol": "ssl",
    "X-Forwarded-Ssl": "on",
    "X-Request-Id": "mine",
    "Forwarded": "for=192.0.2.1",
}


def test_the_program_learns_whose_request_it_is_whatever_the_client_says(front: Front) -> None:
    server, proxy = front
    target = "/echo?a=%2F&b=//c"
    with proxy.connect(CLIENT) as client:
        found = client.ask("GET", target, None, LIES).json
    assert found["remote_address"] == f"{CLIENT}:0"
    assert found["uri"] == f"http://test.example{target}"
    assert found["headers"]["x-forwarded-for"] == CLIENT
    assert not {"x-forwarded-protocol", "x-forwarded-ssl", "forwarded", "connection"} & set(found["headers"])
    # One id in the program, in nginx's log and in the server's.
    identity = found["headers"]["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", identity)
    assert proxy.logged(target).startswith(f"{CLIENT} ")
    assert proxy.logged(target).endswith(f" {identity}")
    log = server.directory.parent / "json"
    wait_until(lambda: identity in log.read_text(), "the server's access log")
    (line,) = [
        line for line in map(json.loads, log.read_text().splitlines()) if line["request_id"] == identity
    ]
    assert (line["remote_address"], line["target"]) == (CLIENT, target)


def test_the_program_learns_that_a_client_came_by_tls(front: Front) -> None:
    _, proxy = front
    trusting = ssl.create_default_context(cafile=str(proxy.directory / "certificate"))
    with Client(("127.0.0.1", proxy.tls_port), source=CLIENT) as client:
        client.socket = trusting.wrap_socket(client.socket, server_hostname="test.example")
        found = client.ask("GET", "/echo", None, {"X-Forwarded-Proto": "http"}).json
    assert (found["uri"], found["remote_address"]) == ("https://test.example/echo", f"{CLIENT}:0")


def test_connections_to_the_server_are_kept(front: Front) -> None:
    server, proxy = front
    before = server.pool()["counters"]["connections_accepted"]
    for _ in range(20):
        with proxy.connect() as client:
            assert client.ask().status == 200
    assert server.pool()["counters"]["connections_accepted"] <= before + 1


def test_the_same_by_tcp(nginx: str, tmp_path: Path) -> None:
    with in_front(nginx, tmp_path, "127.0.0.1:0") as front:
        test_the_program_learns_whose_request_it_is_whatever_the_client_says(front)
        test_connections_to_the_server_are_kept(front)


def test_large_bodies_pass_both_ways(front: Front) -> None:
    _, proxy = front
    body = os.urandom(LARGEST_BODY)
    with proxy.connect() as client:
        assert client.ask("POST", "/echo", body).json["sha256"] == hashlib.sha256(body).hexdigest()
        assert client.ask("POST", "/body", body).body == body
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        found = client.ask("POST", "/echo", chunked, {"Transfer-Encoding": "chunked"}).json
        assert (found["size"], found["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
        assert len(client.ask("GET", "/size?n=30000000").body) == 30_000_000
    with proxy.connect() as client:
        client.request("POST", "/echo", fields={"Content-Length": str(LARGEST_BODY + 1)})
        assert client.answer("POST").status == 413


def test_a_client_that_reads_nothing_keeps_no_child(front: Front) -> None:
    server, proxy = front
    with proxy.connect() as slow:
        answered = server.pool()["counters"]["requests"]
        slow.request("GET", "/size?n=30000000")
        wait_until(lambda: server.pool()["counters"]["requests"] == answered + 1, "the answer's end")
        server.wait_busy(0)
        with proxy.connect() as another:
            assert another.ask().status == 200
        assert len(slow.answer().body) == 30_000_000


def test_a_request_whose_client_has_gone_is_forgotten(front: Front) -> None:
    server, proxy = front
    with server.gate() as target, proxy.connect() as first:
        first.request("GET", target)
        server.wait_busy(1)
        with proxy.connect() as second:
            second.request("GET", "/")
            server.wait_queued(1)
        server.wait_queued(0)
    server.wait_busy(0)


def test_files_are_nginxs_own_business(front: Front) -> None:
    server, proxy = front
    static = proxy.files / "static"
    static.mkdir(parents=True, exist_ok=True)
    (static / "app.css").write_text("body { color: red }")
    (static / "app.css.gz").write_bytes(b"as if compressed")
    (static / ".secret").write_text("hidden")
    before = server.pool()["counters"]["requests"]
    with proxy.connect() as client:
        answer = client.ask("GET", "/static/app.css")
        assert (answer.status, answer.text) == (200, "body { color: red }")
        assert answer.get("content-type") == "text/css"
        answer = client.ask("GET", "/static/app.css", None, {"Accept-Encoding": "gzip"})
        assert (answer.get("content-encoding"), answer.body) == ("gzip", b"as if compressed")
        for target in ("/static/none", "/static/.secret", "/static/%2esecret", "/static/"):
            assert client.ask("GET", target).status in (403, 404)
    assert server.pool()["counters"]["requests"] == before


def test_the_program_has_nginx_send_a_file(front: Front) -> None:
    _, proxy = front
    protected = proxy.files / "protected"
    protected.mkdir(parents=True, exist_ok=True)
    (protected / "report.txt").write_text("figures")
    with proxy.connect() as client:
        fields = {"X-Accel-Redirect": "/protected/report.txt", "Content-Disposition": "attachment"}
        answer = client.ask("POST", "/answer", repr((200, fields, "not seen")).encode())
        assert (answer.status, answer.text) == (200, "figures")
        assert answer.get("content-disposition") == "attachment"
        assert answer.get("x-accel-redirect") is None
        part = client.ask("POST", "/answer", repr((200, fields, "")).encode(), {"Range": "bytes=2-3"})
        assert (part.status, part.text) == (206, "gu")
        fields["X-Accel-Redirect"] = "/protected/none"
        assert client.ask("POST", "/answer", repr((200, fields, "")).encode()).status == 404
        assert client.ask("GET", "/protected/report.txt").status == 404


def test_a_new_configuration_under_load_loses_no_request(front: Front) -> None:
    server, proxy = front
    with Load(("127.0.0.1", proxy.port), connections=8, posts=0.5) as load:
        wait_until(lambda: load.report.answers > 100, f"the load: {load.report}")
        before = set(server.http_workers())
        server.signal(signal.SIGHUP)
        wait_until(lambda: before.isdisjoint(server.http_workers()), "other HTTP workers")
        answers = load.report.answers
        wait_until(lambda: load.report.answers > answers + 100, f"the load: {load.report}")
    assert load.report.count() == 0, load.report
