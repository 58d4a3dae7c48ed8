"""Frames, both directions: `python tests/fuzz/frames.py -max_total_time=120`."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["poolparty.wire"]):
    from poolparty.errors import FrameError
    from poolparty.wire import frames

Answer = tuple[object, ...]


def whole(data: bytes) -> tuple[list[Answer], bool]:
    """The answers in a stream, by the plain reader; whether it broke."""
    reader = frames.FrameReader()
    reader.feed(data)
    found: list[Answer] = []
    head: frames.ResponseHead | None = None  # of what comes in pieces
    body = b""
    try:
        while (payload := reader.next_payload()) is not None:
            message = frames.decode_response(payload)
            if isinstance(message, frames.ResponsePiece) != (head is not None):
                return found, True  # a piece of nothing, or no piece in the middle of an answer
            if isinstance(message, frames.ResponseStart):
                head, body = message.head, b""
            elif isinstance(message, frames.ResponsePiece):
                assert head is not None
                body += message.data
                if message.last:
                    found.append((head.status, head.headers, body))
                    head = None
            else:
                found.append(plain(message))
    except FrameError:
        return found, True
    return found, False


def plain(response: object) -> Answer:
    if isinstance(response, frames.HTTPResponse):
        return response.head.status, response.head.headers, bytes(response.body)
    return (response,)


def in_pieces(data: bytes, cuts: list[int]) -> tuple[list[Answer], bool]:
    """The same by the HTTP worker's reader, which gives large bodies in pieces."""
    reader = frames.ResponseReader()
    found: list[Answer] = []
    head: frames.ResponseHead | None = None
    body = b""
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        try:
            events = reader.feed(data[start:end])
        except FrameError:
            return found, True
        for event in events:
            if isinstance(event, frames.ResponseStart):
                assert head is None
                head, body = event.head, b""
            elif isinstance(event, frames.ResponsePiece):
                assert head is not None
                body += event.data
                if event.last:
                    found.append((head.status, head.headers, body))
                    head = None
            else:
                found.append(plain(event))
        if reader.fault is not None:
            return found, True
    return found, False


def responses(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    cuts = sorted(provider.ConsumeIntListInRange(provider.ConsumeIntInRange(0, 6), 0, 200))
    stream = provider.ConsumeBytes(provider.remaining_bytes())
    cuts = [cut for cut in cuts if cut <= len(stream)]
    expected, broken = whole(stream)
    found, broke = in_pieces(stream, cuts)
    # What stands before a fault counts. A large frame is looked at before it is whole, so one reader may see
    # a fault that the other waits for.
    assert found == expected, (found, expected)
    assert broke or not broken


def requests(payload: bytes) -> None:
    try:
        request = frames.decode_request(payload)
    except FrameError:
        return
    assert frames.decode_request(frames.encode_request(request)[4:]) == request


def one(data: bytes) -> None:
    if data[:1] == b"\0":
        requests(data[1:])
    else:
        responses(data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
