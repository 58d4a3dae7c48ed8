"""BARE primitives (baremessages.org, draft-devault-bare-07): uint, string and data.

A uint is LEB128 of at most ten bytes and below 2**64; we write the shortest form. A string and data are a
uint length followed by the bytes. Text stays bytes here: the callers know what they are worth decoding for.
"""

from __future__ import annotations

from poolparty.errors import FrameError

MAX_UINT = 2**64 - 1
MAX_UINT_BYTES = 10

UINT: tuple[bytes, ...] = tuple(bytes((n,)) for n in range(128))
"""The one-byte uints, ready made: most lengths in a request are below 128."""


def encode_uint(value: int) -> bytes:
    """Return the shortest LEB128 form of 0 <= value < 2**64."""
    if value < 128:
        return UINT[value]
    if value > MAX_UINT:
        raise ValueError(f"a BARE uint is below 2**64, not {value}")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_string(value: bytes) -> bytes:
    """Return string or data: the length, then the bytes."""
    return encode_uint(len(value)) + value


def decode_uint(buf: bytes, at: int) -> tuple[int, int]:
    """Read a uint at `at`: (value, offset behind it).

    IndexError: it goes on behind the end of buf. FrameError: longer than ten bytes or beyond 64 bits.
    """
    byte = buf[at]
    at += 1
    return (byte, at) if byte < 128 else decode_uint_tail(buf, at, byte)


def decode_uint_tail(buf: bytes, at: int, first: int) -> tuple[int, int]:
    """The rest of a uint whose first byte, already read, had its continuation bit set."""
    value = first & 127
    shift = 7
    while True:
        byte = buf[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift >= 7 * MAX_UINT_BYTES:
            raise FrameError("a uint is longer than ten bytes")
    if value > MAX_UINT:
        raise FrameError("a uint does not fit 64 bits")
    return value, at


def decode_string(buf: bytes, at: int) -> tuple[bytes, int]:
    """Read string or data at `at`: (bytes, offset behind it). IndexError: buf ends before it does."""
    size, at = decode_uint(buf, at)
    end = at + size
    if end > len(buf):
        raise IndexError
    return buf[at:end], end
