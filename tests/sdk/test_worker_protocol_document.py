"""docs/worker-protocol.md shows bytes, and a program: the codec and a real process agree with them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from poolparty.wire.frames import (
    HEALTH_CHECK,
    STREAM_CANCEL,
    HealthReply,
    HTTPRequest,
    HTTPResponse,
    Ready,
    ResponseHead,
    ResponsePiece,
    ResponseStart,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)


@pytest.fixture(scope="module")
def document(checkout: Path) -> str:
    return (checkout / "docs" / "worker-protocol.md").read_text()


def _block(document: str, name: str) -> str:
    (block,) = re.findall(rf"^```{name}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    return str(block)


def _bytes(document: str, name: str) -> bytes:
    lines = (re.match(r"(?:[0-9a-f]{2}(?: |$))+", line) for line in _block(document, name).splitlines())
    return b"".join(bytes.fromhex(line[0]) for line in lines if line)


REQUEST = HTTPRequest(b"127.0.0.1:50000", b"http://localhost/hi?x=1", b"GET", [(b"Host", b"localhost")], b"")


def test_the_request_shown(document: str) -> None:
    shown = _bytes(document, "request")
    assert shown == encode_request(REQUEST)
    assert decode_request(shown[4:]) == REQUEST


def test_the_response_shown(document: str) -> None:
    shown = _bytes(document, "response")
    response = decode_response(shown[4:])
    assert isinstance(response, HTTPResponse)
    assert (response.head.status, response.head.headers) == (201, [(b"Set-Cookie", [b"a=1", b"b=2"])])
    assert bytes(response.body) == b"ok\n"
    assert shown == encode_response(response)


@pytest.mark.parametrize(
    ("name", "message"), [("ready", Ready(("health-reply",))), ("health-reply", HealthReply(True, ""))]
)
def test_the_answers_shown(document: str, name: str, message: Any) -> None:
    shown = _bytes(document, name)
    assert shown == encode_response(message)
    assert decode_response(shown[4:]) == message


def test_the_health_check_shown(document: str) -> None:
    assert _bytes(document, "health-check") == HEALTH_CHECK


def test_the_stream_shown(document: str) -> None:
    messages = [
        ResponseStart(ResponseHead(200, []), None),
        ResponsePiece(b"one\n", False),
        ResponsePiece(b"two\n", False),
        ResponsePiece(b"", True),
    ]
    assert _bytes(document, "stream") == b"".join(map(encode_response, messages))
    assert _bytes(document, "stream-cancel") == STREAM_CANCEL


def test_the_program_shown_is_a_worker(
    document: str, tmp_path: Path, start_worker: Any, health_check: bytes
) -> None:
    program = tmp_path / "worker.py"
    program.write_text(_block(document, "python"))
    worker = start_worker([sys.executable, str(program)])
    worker.send(health_check)
    for uri in ("http://h/", "http://h/" + "x" * 300):
        assert worker.ask(uri, headers={"A": "b"}, body=b"body") == (200, {}, uri.encode())
    assert worker.leave() == (0, "")
