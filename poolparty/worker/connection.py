"""One client's connection: HTTP/1.1 in, requests to the dispatcher, answers back in their order.

reading.py is its reading half. One request at a time is with the dispatcher; pipelined ones wait there. An
error ends the connection, after the answers that come before it.

    IDLE ─ first byte ─▶ READING ─ last byte ─▶ ANSWERING ─ answered ─▶ IDLE … or LINGERING ─▶ CLOSED

No timer is set per request: `deadline` is looked at by the server's sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from time import monotonic
from typing import TYPE_CHECKING, cast

from poolparty.errors import AnswerError, RequestError
from poolparty.stats.scoreboard import COUNTER_INDEX
from poolparty.wire.bare import encode_string
from poolparty.wire.frames import ResponseHead
from poolparty.worker.access import quoted
from poolparty.worker.forwarded import host_and_port
from poolparty.worker.reading import CONTINUE, MAX_FRAME_BODY, NEVER, Phase, RequestReader
from poolparty.worker.request import Request
from poolparty.worker.response import (
    CHUNKED,
    CLOSE,
    KEEP_ALIVE,
    Rendered,
    head_end,
    own_response,
    render,
    stream_head_end,
)

if TYPE_CHECKING:
    from poolparty.worker.lease import Lease
    from poolparty.worker.server import Server
    from poolparty.worker.spooled import SpooledBody
    from poolparty.worker.transfer import Transfer

LINGER_TIME = 2.0
"""Seconds that a connection is still read, and what comes is thrown away, after an answer that ended it
early: closed at once, the kernel would reset it and the client might never see the answer (RFC 9112, 9.6)."""

LAST_CHUNK = b"0\r\n\r\n"

LINGER_BYTES = 16 * 1024 * 1024
"""Bytes thrown away at most meanwhile."""

WATCHED_SIZE = 32 * 1024
"""Bytes of a response from which on we look whether its client takes it: socket buffers hold the smaller
ones."""

SENTENCES = {
    502: "bad gateway: the worker that ran the request failed",
    503: "server overloaded",
    504: "gateway timeout: the worker took too long",
}
"""What a client reads when the pool could not answer; the first word of 503 is the original's."""

_OUTCOME = {502: COUNTER_INDEX["failed"], 503: COUNTER_INDEX["overloaded"], 504: COUNTER_INDEX["timed_out"]}
_ANSWERED = COUNTER_INDEX["answered"]
_REJECTED = COUNTER_INDEX["rejected"]
_ABANDONED = COUNTER_INDEX["abandoned"]
_STREAMED = COUNTER_INDEX["streamed"]
_BYTES_SENT = COUNTER_INDEX["bytes_sent"]


class Connection(RequestReader):
    """The protocol object of one accepted connection."""

    __slots__ = ("_chunked", "_client", "_direct", "_due", "_lease", "_sent", "_started_response", "address")

    def __init__(self, server: Server, client: tuple[str, int] | None = None) -> None:
        """client: host and port of whom the peer speaks for, by its PROXY header."""
        super().__init__(server)
        self._client = client
        self._lease: Lease | Transfer | None = None  # whose large response is passing through
        self._started_response: Rendered | None = None
        self._sent = 0
        self._chunked = False  # its pieces become chunks
        self._due: int | None = None  # bytes of a stream still to come, if its child has said how many
        self._direct: int | None = None  # the socket's descriptor, if bytes may go past the transport

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
        self._stop_reading_body()
        request, self.current = self.current, None
        if request is not None:
            request.dispatcher.forget(request)
            if self._lease is not None:
                self._lease.resume_reading()
                self._lease = None
            self._abandon(request)
        self._abandon_pending()

    def _abandon(self, request: Request) -> None:
        """The client of a request has left before its answer's end."""
        request.connection = None
        self._forget_spool(request.body)
        started, self._started_response = self._started_response, None
        request.dispatcher.count(_ABANDONED)
        request.dispatcher.add(_BYTES_SENT, self._sent)
        self.server.log_access(self, request, started.status if started else 499, self._sent)
        self._sent = 0

    def _abandon_pending(self) -> None:
        while self._pending:
            self._abandon(self._pending.popleft())

    def eof_received(self) -> bool:
        """The client will send no more. What a child runs already is still answered; what waits is dropped.

        Whether it has left or only finished sending cannot be seen, and most that do this have left: only a
        request that has reached a child is worth the answer.
        """
        self._last = True
        if self.current is not None:
            # True keeps the transport: the answer's end closes it.
            return not self.current.dispatcher.waits(self.current)
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

    # --- requests ------------------------------------------------------------------------------------------

    def _submit(self, request: Request) -> None:
        self.current = request
        self.phase = Phase.ANSWERING
        self.deadline = NEVER
        body = request.body
        if body and not isinstance(body, list) and not body.written:
            if body.error is not None:
                fault = self._spool_fault(body.error)
                self._reject(request, fault.status, str(fault))
            return  # once it is in its file, _spool_moved comes here again
        takes = self.server.takes
        if takes is not None and takes(request):
            return
        if not request.dispatcher.submit(request, request.accepted):
            self.fail(request, 503)

    def _spool_moved(self, spool: SpooledBody) -> None:
        if self.phase is Phase.CLOSED:
            return
        request = self.current
        if request is not None and request.body is spool:
            # It still waits: what has been submitted was written before, and is written no further.
            self._submit(request)
        elif spool.error is not None and self._request is not None and self._request[0].body is spool:
            self._refuse(self._spool_fault(spool.error))
        self._resume_reading()

    def _refuse(self, error: RequestError) -> None:
        """Answer an error once what came before it is answered, read nothing more, and close."""
        self._last = True
        self._error = error
        self._error_counts = self.server if self._request is None else self._request[0].dispatcher
        self._refused_head = self._begun and self._method == b"HEAD"
        self._stop_reading_body()
        if self.current is None and not self._pending:
            self._answer_error()

    def _stop_reading_body(self) -> None:
        if self._request is not None:
            self._forget_spool(self._request[0].body)
            self._request = None

    def _answer_error(self) -> None:
        error, self._error = self._error, None
        assert error is not None
        server = self.server
        data = own_response(error.status, str(error), server.date, self._refused_head, CLOSE)
        self.transport.write(data)
        self._error_counts.count(_REJECTED)
        self._error_counts.add(_BYTES_SENT, len(data))
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
            if server.sendfile is not None and server.sendfile.takes(request, head):
                return
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
        dispatcher = request.dispatcher
        words, base = dispatcher.words, dispatcher.base
        words[base + outcome] += 1
        if outcome == _ANSWERED:
            words[base + rendered.counter] += 1
        words[base + _BYTES_SENT] += size
        if server.access_log:
            server.log_access(self, request, rendered.status, size, head)
        self._finished(request, size)

    def start_response(
        self, request: Request, head: ResponseHead, size: int | None, lease: Lease | Transfer
    ) -> bool:
        """Send the head of a large response; its pieces follow. False: throw them away, HTTP cannot carry
        them, there is no body to send, or a file is sent in its place.

        size: of its body; None: of a stream nobody knows it.
        """
        server = self.server
        if server.sendfile is not None and server.sendfile.takes(request, head):
            return False
        try:
            rendered = render(head)
        except AnswerError as error:
            self.unusable(request, error)
            return False
        if size is None:
            request.dispatcher.count(_STREAMED)
            if request.is_head or rendered.bodiless:
                self.send_response(request, head, b"")
                return False
            end = self._stream_head_end(request, rendered)
        else:
            connection = self._connection_field(request, rendered.close or server.draining)
            end = head_end(rendered, size, request.is_head, server.date, connection)
        data = rendered.start + end
        self._started_response = rendered
        self._sent = len(data)
        self._lease = lease
        if self._paused_writing:
            lease.pause_reading()
        self.transport.write(data)
        return True

    def _stream_head_end(self, request: Request, rendered: Rendered) -> bytes:
        """The rest of a stream's head: its end is told by the length, if the child has said it, by the last
        chunk, or, to HTTP/1.0, by the connection's end."""
        server = self.server
        self._chunked = rendered.length is None and request.version == "1.1"
        self._due = None
        if rendered.length is not None:
            self._due = int(rendered.length)
            framing = b"Content-Length: %d\r\n" % self._due
        elif self._chunked:
            framing = CHUNKED
        else:
            framing = b""
            self._abandon_pending()
            self._error = None
            if request.keep_alive:
                request.keep_alive = False
                self._last = True
                self._lingered += 1
        connection = self._connection_field(request, rendered.close or server.draining)
        return stream_head_end(rendered, server.date, connection, framing)

    def passed(self, size: int) -> None:
        """Bytes of a large response's body have gone to the client around the transport."""
        self._sent += size

    def send_piece(
        self, request: Request, data: bytes | memoryview, last: bool, outcome: int = _ANSWERED
    ) -> None:
        """Send the next bytes of a large response's body, or of a stream."""
        rendered = self._started_response
        assert rendered is not None
        if self._due is not None and not self._owes(request, len(data), last):
            return
        if last:
            self._lease = None  # writing may call pause_writing, and what the child runs next is not ours
        if self._chunked:
            if data:
                self._write_piece(b"%x\r\n" % len(data), data, b"\r\n")
            if last:
                self._write_piece(LAST_CHUNK)
                self._chunked = False
        elif not (request.is_head or rendered.bodiless):
            self._write_piece(data)
        if last:
            sent = self._sent
            self._started_response = None
            self._sent = 0
            dispatcher = request.dispatcher
            dispatcher.count(outcome)
            if outcome == _ANSWERED:
                dispatcher.count(rendered.counter)
            dispatcher.add(_BYTES_SENT, sent)
            self.server.log_access(self, request, rendered.status, sent)
            self._finished(request, sent)

    def _owes(self, request: Request, size: int, last: bool) -> bool:
        """Whether a stream's next bytes keep to the length that its child has said. False: the answer is
        cut, and ends as visibly as it can."""
        assert self._due is not None
        self._due -= size
        if self._due < 0 or (last and self._due):
            much = "more" if self._due < 0 else "less"
            self.server.log.error(
                'msg="response of another length" reason="the worker sent %s than its Content-Length" '
                'method=%s target="%s"',
                much,
                quoted(request.method),
                quoted(request.target),
            )
            self.cut_response(request)
            return False
        if last:
            self._due = None
        return True

    def _write_piece(self, *parts: bytes | memoryview) -> None:
        """Write what the caller's buffers hold, which are the caller's again afterwards.

        The transport would keep a reference, so what it gets is a copy. But where nothing stands before them
        the socket takes bytes as they are, and mostly all of them.
        """
        transport = self.transport
        size = sum(map(len, parts))
        self._sent += size
        if transport.is_closing():
            return  # what was to stand before these bytes may have been dropped
        sent = 0
        if self._direct is not None and not transport.get_write_buffer_size():
            with contextlib.suppress(OSError):  # full, or broken: the transport will find out which
                sent = os.writev(self._direct, parts)
            if sent == size:
                return
        transport.write(b"".join(parts)[sent:])

    def cut_response(self, request: Request, outcome: int = _OUTCOME[502]) -> None:
        """A large response cannot be completed: the client must see that it is cut."""
        rendered = self._started_response
        self._lease = self._started_response = self._due = None
        self._chunked = False
        self.current = None
        request.connection = None
        self._forget_spool(request.body)
        request.dispatcher.count(outcome)
        request.dispatcher.add(_BYTES_SENT, self._sent)
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
        request.dispatcher.count(_OUTCOME[status])
        request.dispatcher.add(_BYTES_SENT, len(data))
        server.log_access(self, request, status, len(data))
        self._finished(request, len(data))

    def too_large(self, request: Request) -> None:
        """No frame holds the request's body, and its child takes no files."""
        self._reject(request, 413, f"the body is larger than {MAX_FRAME_BODY} bytes")

    def _reject(self, request: Request, status: int, sentence: str) -> None:
        server = self.server
        connection = self._connection_field(request, server.draining)
        data = own_response(status, sentence, server.date, request.is_head, connection)
        self.transport.write(data)
        request.dispatcher.count(_OUTCOME[502])
        request.dispatcher.add(_BYTES_SENT, len(data))
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
        if request.body:
            self._forget_spool(request.body)
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
