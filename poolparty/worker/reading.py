"""The reading half of a connection: bytes in, whole requests out. Runs in the HTTP worker's event loop.

llhttp (httptools) parses, strictly; what it lets through and HTTP does not is checked here and in request.py.
It is given one request at a time, behind a request line that was read here, so that each begins where we say.
A request is held until its last byte is in, so a slow client never holds a child. Pipelined requests wait, a
few, and then the transport stops reading. What stands behind a fault is never parsed.

It is a base class and no object of its own because every request goes through both halves: an object between
them would cost each a call and two attributes more. What connection.py, the other half, adds is named at the
end of RequestReader.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import re
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

from poolparty.errors import RequestError
from poolparty.pool.routing import find
from poolparty.stats.scoreboard import COUNTER_INDEX
from poolparty.wire.bare import UINT, encode_string, encode_uint
from poolparty.wire.frames import MAX_PAYLOAD, encode_headers
from poolparty.worker.request import (
    FORBIDDEN_TRAILERS,
    PLAIN_TARGET,
    REQUEST_LINE,
    SMALL_BODY,
    FieldRules,
    Request,
    build_request,
    finish_request,
    host_and_target,
    line_fault,
    may_become_request_line,
    not_normal,
)
from poolparty.worker.request_id import FIELD as ID_FIELD
from poolparty.worker.request_id import SIZE as ID_SIZE
from poolparty.worker.spooled import FULL

if TYPE_CHECKING:
    from poolparty.pool.routing import Table
    from poolparty.worker.connection import Connection
    from poolparty.worker.dispatcher import Dispatcher
    from poolparty.worker.server import Server
    from poolparty.worker.spooled import SpooledBody

MAX_PIPELINED = 16
"""Whole requests that wait behind the one being answered before the connection is read no further."""

SMALL_PART = 4 * 1024
"""Bytes of a body's piece below which it is joined to the one before."""

CHUNK_OVERHEAD = 16
"""Bytes of chunk sizes, extensions and trailers allowed for each byte of a body, beyond what a head may have:
a chunk of a single byte has five."""

LARGE_BODY = 128 * 1024
"""Bytes of a request's body from which on it goes past the parser."""

MAX_FRAME_BODY = MAX_PAYLOAD - (1 << 20)
"""Bytes of a body that a frame holds for certain beside its head."""

SPOOL_STEP = 1024 * 1024

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

_REQUESTS = COUNTER_INDEX["requests"]
_BYTES_RECEIVED = COUNTER_INDEX["bytes_received"]


class Phase(enum.Enum):
    """What the connection waits for."""

    IDLE = "idle"
    READING = "reading"
    ANSWERING = "answering"
    LINGERING = "lingering"
    CLOSED = "closed"


class RequestReader(asyncio.Protocol):
    """Reads one client's requests, one after the other; Connection answers them."""

    __slots__ = (
        "_begun",
        "_block",
        "_block_fields",
        "_block_headers",
        "_block_id",
        "_block_origin",
        "_block_start",
        "_block_table",
        "_completed",
        "_error",
        "_error_counts",
        "_fields",
        "_id_is_new",
        "_in_body",
        "_last",
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
        "_spool",
        "_spool_mark",
        "_tail",
        "_target",
        "_unread",
        "_version",
        "current",
        "deadline",
        "phase",
        "remote",
        "scheme",
        "server",
        "transport",
        "trusted",
    )

    transport: asyncio.Transport
    current: Request | None  # what the dispatcher has, or what is being answered
    remote: bytes  # the peer's address as a BARE string
    _rules: FieldRules

    def __init__(self, server: Server) -> None:
        self.server = server
        self.current = None
        self.phase = Phase.IDLE
        self.deadline = NEVER
        self.scheme = server.scheme
        self.trusted = False
        self._relays = False  # X-Forwarded-For is believed
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
        self._spool: SpooledBody | None = None  # of the last large body
        self._spool_mark = 0  # bytes of it after which its client has earned more time
        self._pending: deque[Request] | None = None
        self._error: RequestError | None = None  # to be answered once what came before it is
        self._error_counts: Server | Dispatcher = server  # where it counts: with a pool, if that is known
        self._refused_head = False  # it is about a HEAD request
        self._last = False  # no request is read any more
        self._paused_reading = False
        self._paused_writing = False
        self._lingered = 0  # bytes thrown away; also above 0 if the client does not expect the end
        self._completed: tuple[Request, dict[bytes, bytes], bytes] | None = None  # by the data being parsed
        self._reused = False  # more than one request has come
        # The fields of the last request as they came, with the empty line, if they can be recognised:
        self._block = b""
        self._block_start = b""
        self._block_origin = b""
        self._block_headers = b""
        self._block_fields: list[tuple[bytes, bytes]] = []
        self._block_table: Table[Dispatcher] = ()  # where routes of its host lead, if there are several pools
        self._block_id = False  # whether each gets an X-Request-Id of its own
        self._id_is_new = False  # the last request was given one

    # --- bytes ---------------------------------------------------------------------------------------------

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
        return (
            not self._paused_writing
            and (not self._pending or len(self._pending) < MAX_PIPELINED // 2)
            and (self._spool is None or not self._spool.full)
        )

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
        router = self.server.router
        if router is not None:
            self._block_table = router.table(host_and_target(uri)[0])

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
        request = Request(self, head, method, target, "1.1", fields, True)  # type: ignore[arg-type]
        dispatcher = server.dispatcher if server.router is None else find(self._block_table, target)
        request.dispatcher = dispatcher
        request.remote = start[1:]
        request.accepted = monotonic()
        dispatcher.words[dispatcher.base + _REQUESTS] += 1
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
            cast("Connection", self),
            self._rules,
            self._method,
            self._target,
            self._version,
            fields,
            keep_alive,
        )
        request, headers, uri = built
        if server.router is None:
            dispatcher = server.dispatcher
        else:
            host, target = host_and_target(uri)
            dispatcher = find(server.router.table(host), target)
        request.dispatcher = dispatcher
        if server.ids is not None:
            self._id_is_new = server.ids.settle(request, headers, self.trusted)
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
        if length > dispatcher.max_body:
            raise RequestError(413, f"the body is larger than {dispatcher.max_body} bytes")
        if length > MAX_FRAME_BODY and not dispatcher.takes_files():
            raise RequestError(413, f"the body is larger than {MAX_FRAME_BODY} bytes")
        self._spool = None
        if length > server.spool_size:
            self._start_spool(request)
        if (length or chunked) and request.expects_continue and self.current is None and not self._pending:
            # Behind another request it waits: its client sends the body anyhow after a while (RFC 9110,
            # 10.1.1).
            self.transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._request is None:
            return
        request = self._request[0]
        request.body_size += len(body)
        if request.body_size > request.dispatcher.max_body:
            raise RequestError(413, f"the body is larger than {request.dispatcher.max_body} bytes")
        if self._spool is not None:
            self._write_spool(self._spool, body, request.body_size)
            return
        if request.body_size > self.server.spool_size:
            self._spool_what_has_come(request, body)
            return
        parts = request.body
        assert isinstance(parts, list)
        if parts and len(body) < SMALL_PART:
            # Kept one by one, chunks of a few bytes would take many times the memory that the body may have.
            part = parts[-1]
            if isinstance(part, bytearray) and len(part) < SMALL_BODY:
                part += body
            else:
                parts.append(bytearray(body))
        else:
            parts.append(body)

    def _start_spool(self, request: Request) -> SpooledBody:
        try:
            self._spool = request.body = self.server.spool.body()
        except OSError as error:
            raise self._spool_fault(error) from None
        self._spool_mark = SPOOL_STEP
        self._spool.listener = self._spool_moved
        return self._spool

    def _spool_what_has_come(self, request: Request, body: bytes) -> None:
        """A body of chunks turns out to be a large one."""
        parts = request.body
        assert isinstance(parts, list)
        spool = self._start_spool(request)
        for part in (*parts, body):
            self._write_spool(spool, bytes(part), request.body_size)

    def _write_spool(self, spool: SpooledBody, data: bytes, size: int) -> None:
        spool.write(data)
        if spool.full:
            self._pause_reading()
        if size >= self._spool_mark:
            # However large it is, it comes: request_read_timeout is for each SPOOL_STEP bytes of it.
            self._spool_mark = size + SPOOL_STEP
            if self.phase is Phase.READING:
                self.deadline = monotonic() + self.server.read_timeout

    def _forget_spool(self, body: list[bytes | bytearray] | SpooledBody) -> None:
        """The file's end is that of the last reference to the body: it must not hold us, nor we it."""
        if not isinstance(body, list):
            body.listener = None
            if self._spool is body:
                self._spool = None

    def _spool_fault(self, error: OSError) -> RequestError:
        self.server.log.error(
            'msg="a request body could not be written" directory="%s" error="%s"',
            self.server.spool.directory,
            error.strerror or error,
        )
        if error.errno in FULL:
            return RequestError(507, "no room is left for the body")
        if error.errno == errno.EFBIG:
            return RequestError(413, "the body is larger than a file may be here")
        return RequestError(500, "the body could not be stored")

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
        dispatcher = request.dispatcher
        dispatcher.count(_REQUESTS)
        if request.body_size:
            dispatcher.add(_BYTES_RECEIVED, request.body_size)
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

    # --- the other half ------------------------------------------------------------------------------------

    def _submit(self, request: Request) -> None:
        """Have a whole request answered, at once."""
        raise NotImplementedError

    def _spool_moved(self, spool: SpooledBody) -> None:
        """Some of a body has been written to its file, or could not be."""
        raise NotImplementedError

    def _refuse(self, error: RequestError) -> None:
        """Answer an error once what came before it is answered, read nothing more, and close."""
        raise NotImplementedError

    def _throw_away(self, size: int) -> None:
        """So many bytes have come that nobody will read."""
        raise NotImplementedError
