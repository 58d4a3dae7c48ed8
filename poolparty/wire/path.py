"""A path in the one form that a child sees, and by which requests are routed; no I/O."""

from __future__ import annotations

from urllib.parse import quote_from_bytes, unquote_to_bytes

UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"
PLAIN = UNRESERVED + b"$&+,/:;=@"
"""Characters of a path that need no encoding."""


def normal_path(path: bytes) -> bytes:
    """A path in its one form: decoded, resolved beneath the root, encoded again."""
    kept: list[bytes] = []
    segments = unquote_to_bytes(path).split(b"/")
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment and segment != b".":
            kept.append(segment)
    plain = b"/" + b"/".join(kept)
    if kept and segments[-1] in (b"", b".", b".."):
        plain += b"/"
    return quote_from_bytes(plain, safe=PLAIN).encode()
