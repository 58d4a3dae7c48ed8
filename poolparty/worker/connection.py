"""One client's connection: HTTP/1.1 in, requests to the dispatcher, answers back in their order.

llhttp (httptools) parses, strictly; what it lets through and HTTP does not is checked here and in request.py.
It is given one request at a time, behind a request line that was read here, so that each begins where we say.
A request is held until its last byte is in, so a slow client never holds a child. One request at a time is
with the dispatcher; pipelined ones wait here, a few, and then the transport stops reading. An error ends the
connection, after the answers that come before it, and what stands behind the fault is never parsed.

    IDLE ─ first byte ─▶ READING ─ last byte ─▶ ANSWERING ─ answered ─▶ IDLE … or LINGERING ─▶ CLOSED

No timer is set per request: `deadline` is looked at by the server's sweep.
"""

from __future__ import annotations

import asyncio
import enum
import os
import re
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

from poolparty.errors import AnswerError, RequestError
from poolparty.stats.counters import STATUS_CLASSES
from poolparty.stats.scoreboard import COUNTER_INDEX
from poolparty.wire.bare import UINT, encode_string, encode_uint
from poolparty.wire.frames import ResponseHead, encode_headers
from poolparty.worker.access import quoted
from poolparty.worker.forwarded import host_and_port
from poolparty.worker.request import (
    FORBIDDEN_TRAILERS,
    PLAIN_TARGET,
    REQUEST_LINE,
    SMALL_BODY,
    Request,
    build_request,
    finish_request,
    line_fault,
    may_become_request_line,
    not_normal,
)
from poolparty.worker.request_id import FIELD as ID_FIELD
from poolparty.worker.request_id import SIZE as ID_SIZE
from poolparty.worker.response import CLOSE, KEEP_ALIVE, Rendered, head_end, own_response, render

if TYPE_CHECKING:
    from poolparty.worker.dispatcher import Lease
    from poolparty.worker.server import Server
    from poolparty.worker.transfer import Transfer

MAX_PIPELINED = 16
"""Whole requests that wait behind the one being answered before the connection is read no further."""

LINGER_TIME = 2.0
"""Seconds that a connection is still read, and what comes is thrown away, after an answer that ended it
early: closed at once, the kernel would reset it and the client might never see the answer (RFC 9112, 9.6)."""

LINGER_BYTES = 16 * 1024 * 1024
"""Bytes thrown away at most meanwhile."""

SMALL_PART = 4 * 1024
"""Bytes of a body's piece below which it is joined to the one before."""

CHUNK_OVERHEAD = 16
"""Bytes of chunk sizes, extensions and trailers allowed for each byte of a body, beyond what a head may have:
a chunk of a single byte has five."""

LARGE_BODY = 128 * 1024
"""Bytes of a request's body from which on it goes past the parser."""

WATCHED_SIZE = 32 * 1024
"""Bytes of a response from which on we look whether its client takes it: socket buffers hold the smaller
ones."""

CHUNKED = -1
"""In place of how many bytes of a body are to come."""

FORWARDED_FOR = encode_string(b"X-Forwarded-For")

MAX_LINE_REST = 1024
"""Bytes of an unfinished head that belong to no field yet, or to spaces around values: method, version, line
ends."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NEVER = float("inf")

MAX_REMEMBERED = 8 * 1024
"""Bytes of a request's head that a connection keeps to recognise the next one by."""

_PLAIN_LINE = re.compile(rb"(GET|HEAD) (/[%s]*) HTTP/1\.1\r\n" % re.escape(PLAIN_TARGET)).match

SENTENCES = {
    502: "bad gateway: the worker that ran the request failed",
    503: "server overloaded",
    504: "gateway timeout: the worker took too long",
}
"""What a client reads when the pool could not answer; the first word of 503 is the original's."""

_OUTCOME = {502: COUNTER_INDEX["failed"], 503: COUNTER_INDEX["overloaded"], 504: COUNTER_INDEX["timed_out"]}
_ANSWERED = COUNTER_INDEX["answered"]
_REQUESTS = COUNTER_INDEX["requests"]
_REJECTED = COUNTER_INDEX["rejected"]
_ABANDONED = COUNTER_INDEX["abandoned"]
_BY_CLASS = (0, 0, *(COUNTER_INDEX[name] for name in STATUS_CLASSES))
"""The counter of each class of statuses, by its digit."""
_BYTES_SENT = COUNTER_INDEX["bytes_sent"]
_BYTES_RECEIVED = COUNTER_INDEX["bytes_received"]


class Phase(enum.Enum):
    """What the connection waits for."""

    IDLE = "idle"
    READING = "reading"
    ANSWERING = "answering"
    LINGERING = "lingering"
    CLOSED = "closed"


class Connection(asyncio.Protocol):
    """The protocol object of one accepted connection."""

    __slots__ = (
        "_begun",
        "_block",
        "_block_fields",
        "_block_headers",
        "_block_id",
        "_block_origin",
        "_block_start",
        "_client",
        "_completed",
        "_direct",
        "_error",
        "_fields",
        "_id_is_new",
        "_in_body",
        "_last",
        "_lease",
        "_left",
        "_line",
        "_lingered",
        "_method",
        "_parser",
        "_past_parser",
        "_paused_reading",
        "_paused_writing",
        "_pending",
        "_received",
        "_refused_head",
        "_relays",
        "_request",
        "_reused",
        "_rules",
        "_sent",
        "_started_response",
        "_tail",
        "_target",
        "_unread",
        "_version",
        "address",
        "current",
        "deadline",
        "phase",
        "remote",
        "scheme",
        "server",
        "transport",
        "trusted",
    )

    current: Request | None  # what the dispatcher has, or what is being answered

    def __init__(self, server: Server, client: tuple[str, int] | None = None) -> None:
        """client: host and port of whom the peer speaks for, by its PROXY header."""
        self.server = server
        self._client = client
        self._relays = False
        self.current = None
        self.phase = Phase.IDLE
        self.deadline = NEVER
        self.scheme = server.scheme
        self.trusted = False
        self._parser = httptools.HttpRequestParser(self)
        self._line = b""  # the start of a request line that is not here whole
        self._method = self._target = b""
        self._version = ""
        self._fields: list[tuple[bytes, bytes]] = []
        self._received = 0  # bytes of the request that is being read
        self._begun = False  # some of a request has come, and not all of it
        self._in_body = False
        self._left = 0  # bytes of its body to come, CHUNKED if only its chunks tell
        self._past_parser = False  # its body is a large one
        self._tail = b""  # its last three bytes: an empty line may be split between two reads
        self._unread = b""  # what came behind as many requests as may wait
        self._request: tuple[Request, dict[bytes, bytes], bytes] | None = None  # its body is arriving
        self._pending: deque[Request] | None = None
        self._error: RequestError | None = None  # to be answered once what came before it is
        self._refused_head = False  # it is about a HEAD request
        self._last = False  # no request is read any more
        self._paused_reading = False
        self._paused_writing = False
        self._lease: Lease | Transfer | None = None  # whose large response is passing through
        self._started_response: Rendered | None = None
        self._sent = 0
        self._direct: int | None = None  # the socket's descriptor, if bytes may go past the transport
        self._lingered = 0  # bytes thrown away; also above 0 if the client does not expect the end
        self._completed: tuple[Request, dict[bytes, bytes], bytes] | None = None  # by the data being parsed
        self._reused = False  # more than one request has come
        self._block = (
            b""  # the fields of the last request as they came, with the empty line, if they can be recognised
        )
        self._block_start = b""
        self._block_origin = b""
        self._block_headers = b""
        self._block_fields: list[tuple[bytes, bytes]] = []
        self._block_id = False  # whether each gets an X-Request-Id of its own
        self._id_is_new = False  # the last request was given one

    # --- the transport's side ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.address, self.trusted = self.server.peer(self.transport)
        self._relays = self.trusted  # whether X-Forwarded-For is believed
        if self._client is not None:
            self.address = host_and_port(*self._client)
            self._relays = self.server.proxies.trusts(self._client[0])
        self.remote = encode_string(self.address.encode())
        self._rules = self.server.trusted_rules if self.trusted else self.server.rules
        if self.scheme == b"http":
            peer = transport.get_extra_info("socket")
            self._direct = peer.fileno() if peer is not None else None
        self.deadline = monotonic() + self.server.read_timeout
        self.server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.phase = Phase.CLOSED
        self.server.closed(self)
        request, self.current = self.current, None
        if request is not None:
            self.server.dispatcher.forget(request)
            if self._lease is not None:
                self._lease.resume_reading()
                self._lease = None
            self._abandon(request, self._sent)
        while self._pending:
            self._abandon(self._pending.popleft(), 0)

    def _abandon(self, request: Request, sent: int) -> None:
        """The client of a request has left before its answer."""
        request.connection = None
        self.server.count(_ABANDONED)
        self.server.log_access(self, request, 499, sent)

    def eof_received(self) -> bool:
        """The client will send no more. What a child runs already is still answered; what waits is dropped.

        Whether it has left or only finished sending cannot be seen, and most that do this have left: only a
        request that has reached a child is worth the answer.
        """
        self._last = True
        if self.current is not None:
            # True keeps the transport: the answer's end closes it.
            return not self.server.dispatcher.waits(self.current)
        if self._pending:
            return True
        self._ending()
        return False

    def pause_writing(self) -> None:
        """More than response_buffer_size is unsent: the child, or the next request, waits for the client."""
        self._paused_writing = True
        self.server.watch_flushing(self)
        self._pause_reading()
        if self._lease is not None:
            self._lease.pause_reading()

    def resume_writing(self) -> None:
        self._paused_writing = False
        if self._lease is not None:
            self._lease.resume_reading()
        if self.current is None:
            self._next()
        self._resume_reading()

    def _pause_reading(self) -> None:
        if not self._paused_reading and not self.transport.is_closing():
            self._paused_reading = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._paused_reading and self._may_read() and not self.transport.is_closing():
            if self._unread:
                data, self._unread = self._unread, b""
                self._read(data)
                if not self._may_read() or self._unread or self.transport.is_closing():
                    return
            self._paused_reading = False
            self.transport.resume_reading()

    def _may_read(self) -> bool:
        return not self._paused_writing and (not self._pending or len(self._pending) < MAX_PIPELINED // 2)

    def data_received(self, data: bytes) -> None:
        if self._last:
            self._throw_away(len(data))
            return
        if (
            self._block
            and not self._begun
            and not self._line
            and self.current is None
            and not self._pending
            and self._repeats(data)
        ):
            return
        if self._unread:
            self._unread += data  # it was on its way when reading was paused
        else:
            self._read(data)

    def _read(self, data: bytes) -> None:
        """Take in what has come, one request after the other, up to as many as may wait.

        The parser is given each request apart, up to where its empty line, its length or its last chunk says
        that it ends, so that the next request line is seen here before the parser sees it.
        """
        at = 0
        if self._line:
            data = self._line + data
            self._line = b""
            self._begun = False
        size = len(data)
        while at < size and not self._last:
            if not self._begun:
                if self._pending and len(self._pending) >= MAX_PIPELINED:
                    self._unread = data[at:]
                    self._pause_reading()
                    return
                line = REQUEST_LINE(data, at)
                if line is None:
                    self._read_line(data[at:])
                    return
                start = line.start(1)
                if line.end() - 2 - start > self.server.limit_request_line:
                    self._refuse(RequestError(414, "the request line is too long"))
                    return
                self._method, self._target, minor = line.groups()
                self._version = "1.1" if minor == b"1" else "1.0"
                self._begun = True
                self._received = 0
                end = data.find(b"\r\n\r\n", line.end() - 2)
                end = size if end < 0 else end + 4
                whole = end == size and not at
                at = start
            else:
                whole = False
                end = self._next_end(data, at)
            self._received += end - at
            self._completed = None
            if self._in_body and self._past_parser:
                self._take_body(data[at:end])
            elif not self._feed(data if not at and end == size else memoryview(data)[at:end]):
                return
            if self._begun:
                piece = data[max(at, end - 3) : end]
                self._tail = piece if len(piece) == 3 else (self._tail + piece)[-3:]
            elif whole and self._completed is not None:
                self._remember(data)
            at = end
        if at < size:
            self._throw_away(size - at)  # behind a request that said it was the last
        elif self._begun:
            self._still_reading()

    def _next_end(self, data: bytes, at: int) -> int:
        """Where the request that is being read may end at the earliest: within `data`, or that's end."""
        if self._in_body and self._left != CHUNKED:
            end = at + self._left
            self._left -= min(self._left, len(data) - at)
            return min(end, len(data))
        tail = self._tail
        split = (tail + data[at : at + 3]).find(b"\r\n\r\n")
        if split >= 0:
            return at + split + 4 - len(tail)
        whole = data.find(b"\r\n\r\n", at)
        return len(data) if whole < 0 else whole + 4

    def _read_line(self, data: bytes) -> None:
        """Keep the start of a request line; refuse what cannot become one, or has its end and is none."""
        line = data
        while line.startswith(b"\r\n"):
            line = line[2:]
        if b"\n" in line:
            self._refuse(line_fault(line[: line.index(b"\n") + 1]))
        elif len(line) > self.server.limit_request_line + 1:
            self._refuse(RequestError(414, "the request line is too long"))
        elif not may_become_request_line(line):
            self._refuse(RequestError(400, "the request line is malformed"))
        else:
            self._line = line
            if line and line != b"\r":
                self._begun = True
                self._received = len(line)
                self._method = b""
                self._still_reading()

    def _take_body(self, data: bytes) -> None:
        """Take some of a large body past the parser, which would copy it.

        The parser is left where the body begins, and is replaced once the body is complete.
        """
        self.on_body(data)
        if not self._left:
            self._parser = httptools.HttpRequestParser(self)
            self.on_message_complete()

    def _feed(self, data: bytes | memoryview) -> bool:
        """Give the parser the next piece of one request. False: it was refused."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # A request that asked for another protocol is answered in this one: go on behind it.
            self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserError as error:
            self._refuse(self._fault(error))
            return False
        return True

    def _remember(self, data: bytes) -> None:
        """Keep the fields of a request that came alone: most clients send the same ones with the next target.

        Only what has gone through the parser and every check is kept, and only of requests that can have no
        body; so the next one with the same bytes behind a plain request line is known to be well formed, and
        where it ends.
        """
        assert self._completed is not None
        request, headers, uri = self._completed
        line = _PLAIN_LINE(data)
        if (
            line is None
            or not self._reused
            or len(data) > MAX_REMEMBERED
            or not request.keep_alive
            or request.expects_continue
            or not_normal(request.target)
        ):
            self._reused = True
            self._block = b""
            return
        self._block = data[line.end() :]
        self._block_start = b"\0" + request.remote
        self._block_origin = uri[: -len(request.target)]
        self._block_headers = encode_headers(headers) + b"\0"
        self._block_fields = request.fields
        self._block_id = self._id_is_new

    def _repeats(self, data: bytes) -> bool:
        """Take a request whose fields are, byte for byte, those of the one before it. False: the parser has
        to see it.

        From the data to the answer, without the system calls, this makes 5 us of 12 with one field, and of 25
        with a browser's thirteen.
        """
        block = self._block
        line = _PLAIN_LINE(data)
        if line is None or not data.endswith(block) or line.end() + len(block) != len(data):
            return False
        server = self.server
        method, target = line.groups()
        if line.end() - 2 > server.limit_request_line or not_normal(target) or server.draining:
            return False
        start, origin, headers = self._block_start, self._block_origin, self._block_headers
        fields = self._block_fields
        if self._block_id:
            assert server.ids is not None
            new = server.ids.next()  # as long as the one that stands there
            headers = b"%s%s\0" % (headers[: -1 - ID_SIZE], new)
            fields = [*fields[:-1], (ID_FIELD, new)]
        uri_size = len(origin) + len(target)
        uri_length = UINT[uri_size] if uri_size < 128 else encode_uint(uri_size)
        size = len(start) + len(uri_length) + uri_size + 1 + len(method) + len(headers)
        head = b"".join(
            (
                size.to_bytes(4, "little"),
                start,
                uri_length,
                origin,
                target,
                UINT[len(method)],
                method,
                headers,
            )
        )
        request = Request(self, head, method, target, "1.1", fields, True)
        request.remote = start[1:]
        request.accepted = monotonic()
        server.words[server.base + _REQUESTS] += 1
        self._submit(request)
        return True

    # --- the parser's side ---------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            # A trailer is read and dropped, unless another server might obey it.
            if name.lower() in FORBIDDEN_TRAILERS:
                raise RequestError(400, "a trailer may not hold this field")
            return
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        server = self.server
        fields = self._fields
        if len(fields) > server.limit_request_fields:
            raise RequestError(431, "the request has too many header fields")
        if self._received > server.limit_request_field_size:
            limit = server.limit_request_field_size
            if any(len(name) + len(value) + 2 > limit for name, value in fields):
                raise RequestError(431, "a header field of the request is too large")
        parser = self._parser
        keep_alive = parser.should_keep_alive()
        if keep_alive and (server.draining or not server.keepalive):
            keep_alive = False
            self._lingered += 1
        built = build_request(
            self,
            self._rules,
            self._method,
            self._target,
            self._version,
            fields,
            keep_alive,
        )
        if server.ids is not None:
            self._id_is_new = server.ids.settle(built[0], built[1], self.trusted)
        self._request = built
        self._in_body = True
        self._fields = []
        length = 0
        chunked = False
        for name, value in fields:
            if len(name) == 14 and name.lower() == b"content-length":
                length = int(value)
            elif len(name) == 17 and name.lower() == b"transfer-encoding":
                chunked = True
        if parser.should_upgrade() and (length or chunked):
            raise RequestError(400, "a request that asks for an upgrade may have no body here")
        self._left = CHUNKED if chunked else length
        self._past_parser = not chunked and length > LARGE_BODY
        if length > server.max_body:
            raise RequestError(413, f"the body is larger than {server.max_body} bytes")
        if (length or chunked) and built[0].expects_continue and self.current is None and not self._pending:
            # Behind another request it waits: its client sends the body anyhow after a while (RFC 9110,
            # 10.1.1).
            self.transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._request is None:
            return
        request = self._request[0]
        request.body_size += len(body)
        if request.body_size > self.server.max_body:
            raise RequestError(413, f"the body is larger than {self.server.max_body} bytes")
        parts = request.body
        if parts and len(body) < SMALL_PART:
            # Kept one by one, chunks of a few bytes would take many times the memory that the body may have.
            part = parts[-1]
            if isinstance(part, bytearray) and len(part) < SMALL_BODY:
                part += body
            else:
                parts.append(bytearray(body))
        else:
            parts.append(body)

    def on_message_complete(self) -> None:
        if self._request is None:
            return
        request, headers, uri = self._request
        self._request = None
        self._begun = self._in_body = False
        server = self.server
        remote = self.remote
        if self._relays and FORWARDED_FOR in headers:
            remote = server.proxies.client(headers[FORWARDED_FOR]) or remote
        request.remote = remote
        finish_request(request, headers, uri, remote)
        self._completed = None if request.body_size or self._pending else (request, headers, uri)
        request.accepted = monotonic()
        server.count(_REQUESTS)
        if request.body_size:
            server.add(_BYTES_RECEIVED, request.body_size)
        if not request.keep_alive:
            self._last = True
        if self.current is None and not self._pending:
            self._submit(request)
            return
        if self._pending is None:
            self._pending = deque()
        self._pending.append(request)
        if len(self._pending) >= MAX_PIPELINED:
            self._pause_reading()

    def _fault(self, error: httptools.HttpParserError) -> RequestError:
        """What to answer to what the parser, or one of our callbacks in it, refused."""
        cause = error.__context__
        if isinstance(error, httptools.HttpParserCallbackError):
            if isinstance(cause, RequestError):
                return cause
            self.server.log.error("the HTTP parser's callback failed", exc_info=cause)
            return RequestError(400, "the request cannot be read")
        if "ransfer-" in str(error) and "Content-Length" not in str(error) and not self._in_body:
            return RequestError(501, "the only transfer coding served here is chunked, once")
        return RequestError(400, f"the request is malformed: {error}")

    def _still_reading(self) -> None:
        """A request is here in part: see that it comes to an end."""
        server = self.server
        if self._request is not None:
            body = self._request[0].body_size
            if self._received - body > server.head_limit + CHUNK_OVERHEAD * body:
                self._refuse(RequestError(400, "the request's chunks carry too much besides their data"))
                return
        elif self._received > server.limit_request_line + server.limit_request_field_size:
            # Not only when the head is complete: until then it is held in memory.
            fields = self._fields
            last = self._received - len(self._target) - sum(len(n) + len(v) + 4 for n, v in fields)
            if len(fields) > server.limit_request_fields:
                self._refuse(RequestError(431, "the request has too many header fields"))
                return
            if last > server.limit_request_field_size + MAX_LINE_REST:
                self._refuse(RequestError(431, "a header field of the request is too large"))
                return
        if self.phase is Phase.IDLE:
            self.phase = Phase.READING
            self.deadline = monotonic() + server.read_timeout

    # --- requests ------------------------------------------------------------------------------------------

    def _submit(self, request: Request) -> None:
        self.current = request
        self.phase = Phase.ANSWERING
        self.deadline = NEVER
        takes = self.server.takes
        if takes is not None and takes(request):
            return
        if not self.server.dispatcher.submit(request, request.accepted):
            self.fail(request, 503)

    def _refuse(self, error: RequestError) -> None:
        """Answer an error once what came before it is answered, read nothing more, and close."""
        self._last = True
        self._error = error
        self._refused_head = self._begun and self._method == b"HEAD"
        self._request = None
        if self.current is None and not self._pending:
            self._answer_error()

    def _answer_error(self) -> None:
        error, self._error = self._error, None
        assert error is not None
        server = self.server
        data = own_response(error.status, str(error), server.date, self._refused_head, CLOSE)
        self.transport.write(data)
        server.count(_REJECTED)
        server.add(_BYTES_SENT, len(data))
        server.log_access(self, None, error.status, len(data))
        self._linger()

    def _linger(self) -> None:
        """Half-close, and read on for a while, so that the client sees the answer before the end."""
        self._ending()
        self._resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _ending(self) -> None:
        self._last = True
        self.phase = Phase.LINGERING
        self.deadline = monotonic() + LINGER_TIME

    def close(self) -> None:
        """Close once all is sent; a client that does not take it is cut off by the sweep."""
        self._ending()
        self.transport.close()

    def _throw_away(self, size: int) -> None:
        self._lingered += size
        if self.phase is not Phase.LINGERING:
            self._pause_reading()  # the answers come first: cut off for what follows, they would be lost
        elif self._lingered > LINGER_BYTES:
            self.transport.abort()

    def timed_out(self, now: float) -> None:
        """The deadline has passed: called by the server's sweep."""
        if self.phase is Phase.READING:
            self._refuse(RequestError(408, "the request did not arrive in time"))
        elif self.transport.get_write_buffer_size():
            # Its time runs from when the client has taken its answer. Until then, request_write_timeout does.
            self.deadline = now + (LINGER_TIME if self.phase is Phase.LINGERING else self.server.keepalive)
            self.server.watch_flushing(self)
        elif self.phase is Phase.LINGERING:
            self.transport.abort()
        else:
            self.close()

    @property
    def unsent(self) -> int:
        """Bytes that the client has not taken yet."""
        return self.transport.get_write_buffer_size()

    def flushed(self) -> int:
        """A number that changes whenever the client has taken some of what is unsent."""
        return self._sent - self.transport.get_write_buffer_size()

    # --- answers, called by the dispatcher and for static files ---------------------------------------------

    def send_response(
        self, request: Request, head: ResponseHead, body: bytes | memoryview, outcome: int = _ANSWERED
    ) -> None:
        """Send a child's whole response, or a static file's. outcome: the column of the counter it goes
        to."""
        server = self.server
        rendered = head.rendered
        if rendered is None or type(rendered) is not Rendered:
            try:
                rendered = render(head)
            except AnswerError as error:
                self.unusable(request, error)
                return
        size = len(body)
        if request.keep_alive and not rendered.close and not server.draining:
            connection = b"" if request.version == "1.1" else KEEP_ALIVE
        else:
            connection = self._connection_field(request, True)
        if rendered.typed and not rendered.dated and not rendered.bodiless and not request.is_head:
            length = b"Content-Length: %d\r\n\r\n" % size
            data = b"".join((rendered.start, server.date, connection, length, body))
        else:
            end = head_end(rendered, size, request.is_head, server.date, connection)
            data = b"".join((rendered.start, end, b"" if rendered.bodiless or request.is_head else body))
        self.transport.write(data)
        size = len(data)
        words, base = server.words, server.base
        words[base + outcome] += 1
        if outcome == _ANSWERED:
            words[base + _BY_CLASS[rendered.status // 100]] += 1
        words[base + _BYTES_SENT] += size
        if server.access_log:
            server.log_access(self, request, rendered.status, size, head)
        self._finished(request, size)

    def start_response(
        self, request: Request, head: ResponseHead, size: int, lease: Lease | Transfer
    ) -> bool:
        """Send the head of a large response; its pieces follow. False: HTTP cannot carry it, throw the rest
        away."""
        server = self.server
        try:
            rendered = render(head)
        except AnswerError as error:
            self.unusable(request, error)
            return False
        connection = self._connection_field(request, rendered.close or server.draining)
        data = rendered.start + head_end(rendered, size, request.is_head, server.date, connection)
        self._started_response = rendered
        self._sent = len(data)
        self._lease = lease
        if self._paused_writing:
            lease.pause_reading()
        self.transport.write(data)
        return True

    def passed(self, size: int) -> None:
        """Bytes of a large response's body have gone to the client around the transport."""
        self._sent += size

    def send_piece(
        self, request: Request, data: bytes | memoryview, last: bool, outcome: int = _ANSWERED
    ) -> None:
        """Send the next bytes of a large response's body."""
        rendered = self._started_response
        assert rendered is not None
        if last:
            self._lease = None  # writing may call pause_writing, and what the child runs next is not ours
        if not (request.is_head or rendered.bodiless):
            self._write_piece(data)
            self._sent += len(data)
        if last:
            sent = self._sent
            self._started_response = None
            self._sent = 0
            self.server.count(outcome)
            if outcome == _ANSWERED:
                self.server.count(_BY_CLASS[rendered.status // 100])
            self.server.add(_BYTES_SENT, sent)
            self.server.log_access(self, request, rendered.status, sent)
            self._finished(request, sent)

    def _write_piece(self, data: bytes | memoryview) -> None:
        """Write what the caller's buffer holds, which is the caller's again afterwards.

        The transport would keep a reference, so what it gets is a copy. But where nothing stands before them
        the socket takes bytes as they are, and mostly all of them.
        """
        transport = self.transport
        if transport.is_closing():
            return  # what was to stand before these bytes may have been dropped
        if self._direct is not None and not transport.get_write_buffer_size():
            try:
                sent = os.write(self._direct, data)
            except OSError:
                sent = 0  # full, or broken: the transport will find out which
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(bytes(data))

    def cut_response(self, request: Request, outcome: int = _OUTCOME[502]) -> None:
        """A large response cannot be completed: the client must see that it is cut."""
        rendered = self._started_response
        self._lease = self._started_response = None
        self.current = None
        request.connection = None
        self.server.count(outcome)
        self.server.add(_BYTES_SENT, self._sent)
        self.server.log_access(self, request, rendered.status if rendered else 502, self._sent)
        self.transport.abort()

    def unusable(self, request: Request, error: AnswerError) -> None:
        """The child answered what HTTP cannot carry: its client gets 502, the child lives."""
        self.server.log.error(
            'msg="unusable response" reason="%s" method=%s target="%s"',
            quoted(str(error).encode()),
            quoted(request.method),
            quoted(request.target),
        )
        self.fail(request, 502)

    def fail(self, request: Request, status: int) -> None:
        """Answer a request that the pool could not: 502, 503 or 504."""
        server = self.server
        connection = self._connection_field(request, server.draining)
        data = own_response(status, SENTENCES[status], server.date, request.is_head, connection)
        self.transport.write(data)
        server.count(_OUTCOME[status])
        server.add(_BYTES_SENT, len(data))
        server.log_access(self, request, status, len(data))
        self._finished(request, len(data))

    def _connection_field(self, request: Request, close: bool) -> bytes:
        """An answer's Connection field. close: end the connection with it, unless another answer is due
        behind it."""
        if close and request.keep_alive and not self._pending and self._error is None:
            request.keep_alive = False
            self._last = True
            self._lingered += 1
        return CLOSE if not request.keep_alive else b"" if request.version == "1.1" else KEEP_ALIVE

    def _finished(self, request: Request, size: int) -> None:
        """A response is complete, at least in the transport's buffer: go on with the next request."""
        request.connection = None  # whatever becomes of its child: it has had its one answer
        if size > WATCHED_SIZE:
            self.server.watch_flushing(self)
        self.current = None
        if self._pending:
            self._next()
        elif self._error is not None:
            self._answer_error()
        elif self._lingered:
            self._linger()
        elif self._last:
            self.close()
        elif self._begun:
            self._next_is_arriving()
        else:
            self.phase = Phase.IDLE
            self.deadline = monotonic() + self.server.keepalive

    def _next(self) -> None:
        """Go on with the next pipelined request, unless the client does not read its answers."""
        if self._pending and not self._paused_writing:
            request = self._pending.popleft()
            # From here on it waits for a child, and not for the answer before it.
            request.accepted = monotonic()
            self._submit(request)
            self._resume_reading()

    def _next_is_arriving(self) -> None:
        """Part of the next request is here already."""
        self.phase = Phase.READING
        self.deadline = monotonic() + self.server.read_timeout
        if self._request is not None and self._request[0].expects_continue and not self._request[0].body:
            self.transport.write(CONTINUE)
