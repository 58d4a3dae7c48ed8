"""Turns bytes that are no answer into the mistake that most likely made them.

No I/O. What is wrong is found by the server's own codec (wire/frames.py); here is only what helps to mend it:
each guess is tried on the bytes, and named only if it explains all of them.
"""

from __future__ import annotations

from poolparty.errors import FrameError
from poolparty.wire.bare import decode_string, decode_uint
from poolparty.wire.frames import (
    HEALTH_REPLY,
    HTTP_RESPONSE,
    MAX_PAYLOAD,
    READY,
    FrameReader,
    Response,
    decode_response,
    encode_response,
)

SHOWN = 24
"""Bytes of a wrong frame that a message quotes."""


def shown(data: bytes) -> str:
    """The first bytes in hexadecimal, as docs/worker-protocol.md writes them."""
    return data[:SHOWN].hex(" ") + (" …" if len(data) > SHOWN else "")


def payload_fault(payload: bytes, error: FrameError, behind: bytes = b"") -> str:
    """What is wrong with a payload that the codec refuses with `error`; `behind` is what followed it."""
    if behind and _parses(payload + behind):
        return (
            f"the frame's size says {len(payload)}, but its message has {len(payload) + len(behind)} bytes: "
            "the size is the number of all bytes that follow it"
        )
    return f"{error}: {_guess(payload)}. The payload begins {shown(payload)}"


def _guess(payload: bytes) -> str:
    if not payload:
        return "every frame holds one message"
    if payload[0] not in (HTTP_RESPONSE, READY, HEALTH_REPLY):
        if _parses(b"\0" + payload):
            return "the tag is missing: an HTTPResponse begins with the byte 00"
        return "an HTTPResponse begins with the byte 00, a Ready with 01, a HealthReply with 02"
    if payload[0] == HTTP_RESPONSE:
        if _has_plain_headers(payload):
            return (
                "the headers are a map of string to string here, and have to be a map of string to list of "
                "string: write the number of values before each value, 01 for one"
            )
        fault = _body_fault(payload)
        if fault:
            return fault
    return (
        "write each field in the order of docs/worker-protocol.md, each length as the number of bytes (not "
        "of "
        "characters) that follow it"
    )


def _parses(payload: bytes) -> bool:
    try:
        decode_response(payload)
    except FrameError:
        return False
    return True


def _has_plain_headers(payload: bytes) -> bool:
    """Whether the payload is an HTTPResponse but for headers without lists."""
    try:
        _, at = decode_uint(payload, 1)
        count, at = decode_uint(payload, at)
        for _ in range(count):
            _, at = decode_string(payload, at)
            _, at = decode_string(payload, at)
        _, at = decode_string(payload, at)
    except (IndexError, FrameError):
        return False
    return count > 0 and at == len(payload)


def _body_fault(payload: bytes) -> str | None:
    """What is wrong if everything before the body is right."""
    try:
        _, at = decode_uint(payload, 1)
        count, at = decode_uint(payload, at)
        for _ in range(count):
            _, at = decode_string(payload, at)
            values, at = decode_uint(payload, at)
            for _ in range(values):
                _, at = decode_string(payload, at)
        size, at = decode_uint(payload, at)
    except (IndexError, FrameError):
        return None
    return (
        f"the body's length says {size}, but {len(payload) - at} bytes of the frame are left for it: it "
        "counts "
        "bytes, not characters, and the frame ends with the body"
    )


def not_canonical(payload: bytes, message: Response) -> str | None:
    """The complaint about a message that decodes, but is written in another than the one right way."""
    if encode_response(message)[4:] == payload:
        return None
    return (
        "a uint is longer than it has to be: write it in the shortest form, without a last byte of 00. The "
        f"payload begins {shown(payload)}"
    )


def incomplete_fault(data: bytes) -> str:
    """What is wrong with bytes that begin a frame and do not complete it, when nothing more comes."""
    if len(data) < 4:
        return f"{len(data)} bytes arrived, and a frame begins with a size of four: {shown(data)}"
    size, swapped = int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")
    have = len(data) - 4
    if swapped == have and size != have:
        return (
            f"the frame's size is written most significant byte first ({shown(data[:4])}): "
            f"write the least significant first, {have.to_bytes(4, 'little').hex(' ')}"
        )
    if size == have + 4:
        return (
            f"the frame's size says {size} and counts its own four bytes: it has to count the payload "
            f"alone, {have}"
        )
    if size == 0 or size > MAX_PAYLOAD or _looks_like_text(data[:4]):
        return (
            f"this is no frame: {data[:SHOWN]!r} ({shown(data)}); nothing but frames belongs on descriptor 3"
        )
    return (
        f"the frame's size says {size}, but {have} bytes came behind it: the size is the number of bytes "
        "of the "
        "payload, and all of the payload has to be written, also where one write takes only a part"
    )


def _looks_like_text(data: bytes | bytearray) -> bool:
    return all(32 <= byte < 127 or byte in b"\r\n\t" for byte in data)


def size_fault(data: bytes | bytearray) -> str | None:
    """What is wrong with the size that `data` begins with, if that can be said before the rest has come."""
    size = int.from_bytes(data[:4], "little")
    if 0 < size <= MAX_PAYLOAD and not _looks_like_text(data[:4]):
        return None
    return incomplete_fault(bytes(data))


def frames_in(data: bytes) -> int:
    """How many well-formed answers the bytes consist of; 0 if of anything else besides."""
    reader = FrameReader(len(data))
    reader.feed(data)
    count = 0
    try:
        while (payload := reader.next_payload()) is not None:
            decode_response(payload)
            count += 1
    except FrameError:
        return 0
    return 0 if len(reader) else count
