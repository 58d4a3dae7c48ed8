"""The access log: gunicorn's option and format, a line for whatever was answered, and nothing forged."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from client import Client
from hypothesis import example, given, settings
from hypothesis import strategies as st
from server import Server, wait_until

Serve = Callable[..., Server]


def lines(path: Path, count: int) -> list[str]:
    def found() -> list[str] | None:
        read = path.read_text().splitlines() if path.exists() else []
        return read if len(read) >= count else None

    got = wait_until(found, f"{count} lines in the access log")
    assert got is not None
    return got


def test_each_request_has_a_line(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access"
    server = serve("--access-logfile", str(log))
    server.get("/?a=b", {"User-Agent": "tester", "Referer": "http://r/"})
    server.ask("POST", "/status?code=404&body=none", b"body")
    ok, missing = lines(log, 2)
    assert re.match(
        r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET /\?a=b HTTP/1\.1" 200 \d+ '
        r'"http://r/" "tester"$',
        ok,
    )
    assert '"POST /status?code=404&body=none HTTP/1.1" 404 ' in missing


def test_the_format_is_gunicorns(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access"
    form = "%(m)s %(U)s %(q)s %(H)s %(s)s %(a)s %({x-one}i)s %({x-two}o)s %(D)s"
    server = serve("--access-logfile", str(log), "--access-logformat", form)
    body = repr((201, {"X-Two": "two"}, b"b")).encode()
    server.ask("POST", "/answer?q=1", body, {"X-One": "one"})
    [line] = lines(log, 1)
    assert re.match(r"POST /answer q=1 HTTP/1\.1 201 - one two \d+$", line)


def test_refusals_and_failures_have_a_line_too(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access"
    server = serve("--access-logfile", str(log), expected=["worker ended"])
    with Client(server.address) as client:
        client.send(b"\0\1\2\r\n\r\n")
        client.answer()
    server.ask("POST", "/die", b"")
    refused, failed = lines(log, 2)
    assert '" 400 ' in refused
    assert '"POST /die HTTP/1.1" 502 ' in failed


def test_a_client_cannot_write_lines_of_its_own(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access"
    server = serve("--access-logfile", str(log))
    with Client(server.address) as client:
        client.send(b'GET /%0a%0d?\xff"x" HTTP/1.1\r\nHost: h\r\nUser-Agent: a"b\x1b[31m\xe9\\\r\n\r\n')
        client.answer()
    server.get("/last")
    read = lines(log, 2)
    assert len(read) == 2
    assert all(character.isprintable() and character.isascii() for line in read for character in line)


def test_a_clients_credentials_cannot_write_a_line(serve: Serve, tmp_path: Path) -> None:
    """gunicorn's logger takes the user out of the Authorization field, after whatever escapes that."""
    log = tmp_path / "access"
    server = serve("--access-logfile", str(log))
    forged = b'eve\n10.0.0.1 - admin [now] "GET / HTTP/1.1" 200 1 "-" "-"\x1b[2J:secret'
    server.get("/one", {"Authorization": "Basic " + base64.b64encode(forged).decode()})
    server.get("/two", {"Authorization": "Basic " + base64.b64encode(b"anna:secret").decode()})
    server.get("/three", {"Authorization": "Basic !"})
    server.get("/four", {"Authorization": "Bearer token"})
    one, two, three, four = lines(log, 4)
    assert one.startswith("127.0.0.1 - eve\\x0a10.0.0.1 - admin [now] ")
    assert "\x1b" not in one and '"GET /one HTTP/1.1" 404' in one
    assert two.startswith("127.0.0.1 - anna [")
    assert three.startswith("127.0.0.1 - - [") and four.startswith("127.0.0.1 - - [")
    assert "secret" not in log.read_text()


def test_a_backslash_at_the_end_of_a_field_takes_no_quote_with_it(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access"
    server = serve("--access-logfile", str(log))
    server.get("/", {"User-Agent": 'a"b\\"c\\', "Referer": "\\"})
    [line] = lines(log, 1)
    assert line.endswith(r'"\x5c" "a\"b\x5c\"c\x5c"')


@pytest.mark.parametrize("target", ['/bad-header?kind=newline&"_forged="yes', "/gate?path=/proc&\\"])
def test_a_clients_target_cannot_forge_a_field_of_the_error_log(serve: Serve, target: str) -> None:
    server = serve(
        "--worker-request-timeout", "200ms", expected=["unusable response", "timed out", "worker ended"]
    )
    with Client(server.address) as client:
        client.send(f"POST {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n".encode())
        assert client.answer().status in (502, 504)
    [line] = server.wait_log("unusable response|timed out")
    assert line.endswith(('newline&\\x22_forged=\\x22yes"', 'path=/proc&\\x5c"'))


def sent(text: str) -> bytes:
    """The bytes that an escaped text in the log stands for."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text).encode("latin-1")


def test_a_line_in_json_parses_whatever_a_client_sends(serve: Serve, tmp_path: Path) -> None:
    log = tmp_path / "access"
    server = serve("--access-logfile", str(log), "--access-log-json")
    server.wait_ready()
    statuses = set()

    @settings(max_examples=300, deadline=None)
    @given(target=st.binary(max_size=40), referer=st.binary(max_size=40), agent=st.binary(max_size=40))
    @example(b'"\\', b'"\\', b'\\"')
    @example(b"\xff\xed\xa0\x80", b"\xff\x85", b"\xe2\x80\xa8")
    @example(b"\n", b"", b"")
    @example(b"", b"\r\n\r\n", b"")
    def each(target: bytes, referer: bytes, agent: bytes) -> None:
        before = len(log.read_bytes()) if log.exists() else 0
        with Client(server.address) as client:
            fields = b"Referer: %s\r\nUser-Agent: %s\r\n" % (referer, agent)
            client.send(b"GET /%s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n%s\r\n" % (target, fields))
            statuses.add(status := client.answer().status)
        wait_until(lambda: log.read_bytes()[before:].endswith(b"\n"), "a line")
        [line] = log.read_bytes()[before:].split(b"\n")[:-1]
        found = json.loads(line)
        assert found["status"] == status
        assert line.isascii() and line.decode().isprintable()
        if status != 400 and b"\r" not in target + referer + agent:
            assert found["pool"] == "default"
            assert sent(found["target"]) == b"/" + target
            assert sent(found["referer"]) == referer.strip(b" \t")
            assert sent(found["user_agent"]) == agent.strip(b" \t")

    each()
    assert statuses >= {400, 404}


def test_the_logs_are_reopened_at_usr1(serve: Serve, tmp_path: Path) -> None:
    import signal

    log, moved = tmp_path / "access", tmp_path / "access.1"
    server = serve("--access-logfile", str(log))
    server.get("/before")
    lines(log, 1)
    log.rename(moved)
    server.signal(signal.SIGUSR1)

    def reopened() -> bool:
        server.get("/after")
        return log.exists() and "/after" in log.read_text()

    wait_until(reopened, "a line in the new file")
    assert "/before" in moved.read_text()
