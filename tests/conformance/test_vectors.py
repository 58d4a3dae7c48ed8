"""vectors.json against the server's codec, which did not make it."""

from __future__ import annotations

from typing import Any

import pytest

from poolparty.check.checks import octets, request_of, vectors
from poolparty.errors import FrameError
from poolparty.wire.frames import (
    HEALTH_CHECK,
    STREAM_CANCEL,
    HTTPResponse,
    ResponseHead,
    ResponsePiece,
    ResponseStart,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)


def rows(kind: str) -> Any:
    return pytest.mark.parametrize("vector", vectors()[kind], ids=[each["name"] for each in vectors()[kind]])


def agree(vector: dict[str, Any], frame: bytes) -> bool:
    if "frame" in vector:
        return frame == bytes.fromhex(vector["frame"])
    return len(frame) == int(vector["frame_size"])


@rows("requests")
def test_a_request(vector: dict[str, Any]) -> None:
    request = request_of(vector)
    frame = encode_request(request)
    assert agree(vector, frame)
    assert decode_request(frame[4:]) == request


@rows("broken_requests")
def test_a_broken_request(vector: dict[str, Any]) -> None:
    with pytest.raises(FrameError):
        decode_request(bytes.fromhex(vector["frame"])[4:])


@rows("responses")
def test_a_response(vector: dict[str, Any]) -> None:
    headers = [(name.encode(), [octets(value) for value in values]) for name, values in vector["headers"]]
    frame = encode_response(HTTPResponse(ResponseHead(vector["status"], headers), octets(vector["body"])))
    assert agree(vector, frame)
    decoded = decode_response(frame[4:])
    assert isinstance(decoded, HTTPResponse)
    assert (decoded.head.status, decoded.head.headers) == (vector["status"], headers)
    assert bytes(decoded.body) == octets(vector["body"])


@rows("broken_responses")
def test_a_broken_response(vector: dict[str, Any]) -> None:
    with pytest.raises(FrameError):
        decode_response(bytes.fromhex(vector["frame"])[4:])


@rows("streams")
def test_a_stream(vector: dict[str, Any]) -> None:
    headers = [(name.encode(), [octets(value) for value in values]) for name, values in vector["headers"]]
    messages: list[ResponseStart | ResponsePiece] = [
        ResponseStart(ResponseHead(vector["status"], headers), None),
        *(ResponsePiece(octets(piece), False) for piece in vector["pieces"]),
        ResponsePiece(b"", True),
    ]
    frames = [encode_response(message) for message in messages]
    if "frames" in vector:
        assert frames == [bytes.fromhex(frame) for frame in vector["frames"]]
    else:
        assert [len(frame) for frame in frames] == vector["frame_sizes"]
    start, *pieces = [decode_response(frame[4:]) for frame in frames]
    assert isinstance(start, ResponseStart)
    assert (start.head.status, start.head.headers) == (vector["status"], headers)
    assert pieces == messages[1:]


def test_requests_without_fields() -> None:
    assert [bytes.fromhex(each["frame"]) for each in vectors()["other_requests"]] == [
        HEALTH_CHECK,
        STREAM_CANCEL,
    ]


def test_names_are_unique() -> None:
    for kind, members in vectors().items():
        if kind != "about":
            names = [each["name"] for each in members]
            assert len(names) == len(set(names)), kind
