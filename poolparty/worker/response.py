"""From a child's answer to the bytes a client gets, and the answers that are ours. Imports no I/O.

`render` checks a child's status and headers once and keeps the result on the ResponseHead, which the reader
reuses while a child repeats itself. Framing is ours alone (RFC 9112, 6): what a child says about
Content-Length, Connection or Transfer-Encoding never reaches the client as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http.client import responses as REASONS

from poolparty.errors import AnswerError
from poolparty.stats.counters import STATUS_CLASSES
from poolparty.stats.scoreboard import COUNTER_INDEX
from poolparty.wire.frames import ResponseHead

SERVER = b"Server: poolparty\r\n"
RETRY_AFTER = 1
"""Seconds that a 503 asks its client to wait."""

HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
"""Fields about one connection (RFC 9110, 7.6.1): this connection is ours."""

END_TO_END = frozenset(
    (b"content-type", b"content-encoding", b"content-length", b"content-range", b"set-cookie")
)
"""Fields that Connection cannot take away (RFC 9110, 7.6.1: it must not name what is for every recipient)."""

NO_BODY = frozenset((204, 205, 304))
"""Statuses whose response has no content (RFC 9110, 15.3.5, 15.3.6, 15.4.5), whatever the child sends."""

SINGLE = frozenset((b"content-type", b"date", b"server"))
"""Fields that are no lists: of several values the last one counts, as with the original."""

_BY_CLASS = (0, 0, *(COUNTER_INDEX[name] for name in STATUS_CLASSES))
"""The counter of each class of statuses, by its digit."""

_token = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_forbidden = re.compile(rb"[\r\n\0]").search
_digits = re.compile(rb"[0-9]{1,18}").fullmatch


@dataclass(frozen=True, slots=True)
class Rendered:
    """A response's head but for what changes from one response to the next.

    start: status line and fields, Server among them. dated: the child sent its own Date. typed: it sent a
    Content-Type. length: its own Content-Length, which counts only where no body is sent. close: it wants the
    connection closed. counter: the column of its status's class.
    """

    start: bytes
    status: int
    bodiless: bool
    dated: bool
    typed: bool
    length: bytes | None
    close: bool
    counter: int


def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK` and its line end."""
    return b"HTTP/1.1 %d %s\r\n" % (status, REASONS.get(status, "Unknown").encode())


def render(head: ResponseHead) -> Rendered:
    """What a child's head is for HTTP. AnswerError: HTTP cannot carry it; the message names what."""
    rendered = head.rendered
    if not isinstance(rendered, Rendered):
        head.rendered = rendered = _render(head)
    return rendered


def _render(head: ResponseHead) -> Rendered:
    status = head.status
    if not 200 <= status <= 599:
        raise AnswerError(f"the status {status} is outside 200-599")
    lines = [status_line(status)]
    served = dated = typed = False
    length: bytes | None = None
    options = connection_options(head)
    single: dict[bytes, int] = {}
    for name, values in head.headers:
        if not _token(name):
            raise AnswerError(f"the header name {name[:80]!r} is no token")
        lower = name.lower()
        for value in values:
            if _forbidden(value):
                raise AnswerError(f"the value of the header {name.decode()!r} has a CR, LF or NUL in it")
        if lower == b"upgrade" and status == 426 and values:
            # The one answer that has to name a protocol (RFC 9110, 15.5.22): a field about this connection.
            lines.append(b"Connection: upgrade\r\n")
        elif lower in HOP_BY_HOP or lower in options:
            continue
        if lower == b"content-length":
            length = values[0] if len(values) == 1 and _digits(values[0]) else None
            continue
        if lower in SINGLE and values:
            values = values[-1:]
            served = served or lower == b"server"
            dated = dated or lower == b"date"
            typed = typed or lower == b"content-type"
            if lower in single:
                lines[single[lower]] = b""
            single[lower] = len(lines)
        lines += [b"%s: %s\r\n" % (name, value) for value in values]
    if not served:
        lines.insert(1, SERVER)
    bodiless, close, counter = status in NO_BODY, b"close" in options, _BY_CLASS[status // 100]
    return Rendered(b"".join(lines), status, bodiless, dated, typed, length, close, counter)


def connection_options(head: ResponseHead) -> set[bytes]:
    """What a child's Connection fields list, in lower case: names of fields for one connection, and `close`.

    Not the fields that tell what the content is: they are for the client whatever a child says.
    """
    options = {
        option.strip(b" \t").lower()
        for name, values in head.headers
        if name.lower() == b"connection"
        for value in values
        for option in value.split(b",")
    }
    return options - END_TO_END


DEFAULT_TYPE = b"Content-Type: text/plain; charset=utf-8\r\n"
"""What the original says of a body whose child says nothing."""

CLOSE = b"Connection: close\r\n"
KEEP_ALIVE = b"Connection: keep-alive\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def head_end(rendered: Rendered, size: int, is_head: bool, date: bytes, connection: bytes) -> bytes:
    """What follows `rendered.start`: the rest of the fields and the empty line. `date` is the Date field's
    line."""
    parts = [b"" if rendered.dated else date, connection]
    status = rendered.status
    if status == 205:
        parts.append(b"Content-Length: 0\r\n")
    elif status != 204:
        if size and not rendered.typed and status != 304:
            parts.append(DEFAULT_TYPE)
        if (is_head and not size) or status == 304:
            # What a GET would have had: only the child knows, and only if it says so (RFC 9110, 8.6).
            if rendered.length is not None:
                parts.append(b"Content-Length: %s\r\n" % rendered.length)
        else:
            parts.append(b"Content-Length: %d\r\n" % size)
    parts.append(b"\r\n")
    return b"".join(parts)


def stream_head_end(rendered: Rendered, date: bytes, connection: bytes, framing: bytes) -> bytes:
    """The same for a body whose size nobody knows yet. framing: the field that says how its end is told, or
    nothing where that is the connection's."""
    kind = b"" if rendered.typed else DEFAULT_TYPE
    return b"".join((b"" if rendered.dated else date, connection, kind, framing, b"\r\n"))


def own_response(status: int, sentence: str, date: bytes, is_head: bool, connection: bytes) -> bytes:
    """A whole response of ours: a sentence as plain text."""
    body = sentence.encode() + b"\n"
    retry = b"Retry-After: %d\r\n" % RETRY_AFTER if status == 503 else b""
    head = b"%s%s%s%s%s%sContent-Length: %d\r\n\r\n" % (
        status_line(status),
        SERVER,
        date,
        connection,
        retry,
        DEFAULT_TYPE,
        len(body),
    )
    return head if is_head else head + body
