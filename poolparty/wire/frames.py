"""The frames between the server and a child, both directions (docs/worker-protocol.md), without I/O.

    frame   = size: uint32 little endian, at most MAX_PAYLOAD; payload: size bytes
    payload = one BARE message, exactly: a Request towards the child, a Response from it

Three ways to read, each rejecting an oversized length before a byte of its payload is wanted:
`decode_request`/`decode_response` take one whole payload; `FrameReader` cuts a byte stream into payloads;
`ResponseReader` is what an HTTP worker reads a child with: small responses come whole, large ones in pieces.
A reader returns what it has, raises FrameError, or says "need more" by returning nothing; after a FrameError
it is spent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from poolparty.errors import FrameError
from poolparty.wire.bare import UINT, decode_string, decode_uint, decode_uint_tail, encode_string, encode_uint

MAX_PAYLOAD = 0x7FFFFFFF
"""The largest payload, in bytes (the original's limit: elsewhere its size is read as a signed number)."""

WHOLE_RESPONSE = 64 * 1024
"""Up to this payload size a response is handed over whole; beyond it in pieces as they arrive."""

MAX_RESPONSE_HEAD = 1024 * 1024
"""A response's status and headers must be complete within so many bytes: Go's and Node's peers allow 1 MiB at
most."""

SMALL_HEAD = 4 * 1024
"""Up to so many bytes a large response's head is tried at every read; beyond it when they have doubled."""

HTTP_REQUEST, HEALTH_CHECK_REQUEST, HTTP_REQUEST_FILE, STREAM_CANCEL_REQUEST = range(4)
HTTP_RESPONSE, READY, HEALTH_REPLY, RESPONSE_START, RESPONSE_CHUNK, RESPONSE_END = range(6)

HEALTH_CHECK = b"\x01\x00\x00\x00\x01"
"""The frame of a HealthCheckRequest."""

STREAM_CANCEL = b"\x01\x00\x00\x00\x03"
"""The frame of a StreamCancel."""


@dataclass(frozen=True, slots=True)
class HTTPRequest:
    """One request as a child sees it. Texts are UTF-8 bytes; headers in order, names in canonical case."""

    remote_address: bytes
    uri: bytes
    method: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True, slots=True)
class HealthCheckRequest:
    """Answered by HealthReply if the child announced `health-reply`, else by nothing."""


@dataclass(frozen=True, slots=True)
class HTTPRequestFile:
    """A request whose body is a file of `size` bytes, for a child that announced `body-file`."""

    remote_address: bytes
    uri: bytes
    method: bytes
    headers: list[tuple[bytes, bytes]]
    path: bytes
    size: int


@dataclass(frozen=True, slots=True)
class StreamCancel:
    """The response that the child sends in pieces is not wanted any more. Only for a child that announced
    `stream-cancel`; it is answered by the response's end, and means nothing between two responses."""


@dataclass(slots=True, eq=False)
class ResponseHead:
    """Status and headers of an HTTPResponse, undecoded and unchecked: a child may write anything in them.

    One object may serve many responses (ResponseReader reuses it when the bytes repeat); `rendered` is
    where the HTTP worker keeps what it made of it.
    """

    status: int
    headers: list[tuple[bytes, list[bytes]]]
    rendered: object = None


@dataclass(slots=True)
class HTTPResponse:
    """One whole response. body is bytes or a view into the buffer it was read from.

    Not frozen, since one is made for each request and a frozen dataclass takes three times as long to make.
    """

    head: ResponseHead
    body: bytes | memoryview


@dataclass(frozen=True, slots=True)
class ResponseStart:
    """The head of a response whose body follows as ResponsePieces: a large one of `body_size` bytes, or, if
    that is None, one that its child sends in pieces (ResponseStart, ResponseChunk …, ResponseEnd on the
    wire)."""

    head: ResponseHead
    body_size: int | None


@dataclass(frozen=True, slots=True)
class ResponsePiece:
    """The next bytes of such a body; `last` on the final one, which ends a streamed body without bytes."""

    data: bytes | memoryview
    last: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """A child has loaded its application and names the features it will use."""

    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HealthReply:
    """A child's answer to a HealthCheckRequest."""

    ok: bool
    message: str


Request = HTTPRequest | HealthCheckRequest | HTTPRequestFile | StreamCancel
Response = HTTPResponse | Ready | HealthReply | ResponseStart | ResponsePiece
ResponseEvent = Response


# --- towards the child -------------------------------------------------------------------------------------


def frame(payload: bytes) -> bytes:
    """Put the size before a payload. FrameError beyond MAX_PAYLOAD."""
    return _size_field(len(payload)) + payload


def request_head(
    remote_address: bytes, uri: bytes, method: bytes, headers: dict[bytes, bytes], body_size: int
) -> bytes:
    """Everything of an HTTPRequest's frame that stands before its body's bytes.

    remote_address, method and the names in `headers` are BARE strings already (encode_string): they repeat
    from request to request and are encoded once. FrameError if the frame would exceed MAX_PAYLOAD.
    """
    size = len(uri)
    head = b"".join(
        (
            b"\0",
            remote_address,
            UINT[size] if size < 128 else encode_uint(size),
            uri,
            method,
            encode_headers(headers),
            UINT[body_size] if body_size < 128 else encode_uint(body_size),
        )
    )
    return _size_field(len(head) + body_size) + head


def file_request(
    remote_address: bytes, uri: bytes, method: bytes, headers: dict[bytes, bytes], path: bytes, size: int
) -> bytes:
    """The frame of an HTTPRequestFile; the arguments as those of `request_head`."""
    parts = (b"\x02", remote_address, encode_string(uri), method, encode_headers(headers))
    return frame(b"".join((*parts, encode_string(path), encode_uint(size))))


def encode_headers(headers: dict[bytes, bytes]) -> bytes:
    """The map of a request's headers; its keys are BARE strings already."""
    count = len(headers)
    parts = [UINT[count] if count < 128 else encode_uint(count)]
    for name, value in headers.items():
        size = len(value)
        parts += (name, UINT[size] if size < 128 else encode_uint(size), value)
    return b"".join(parts)


def encode_request(request: Request) -> bytes:
    """The whole frame of a request."""
    if isinstance(request, HealthCheckRequest):
        return HEALTH_CHECK
    if isinstance(request, StreamCancel):
        return STREAM_CANCEL
    tag = HTTP_REQUEST if isinstance(request, HTTPRequest) else HTTP_REQUEST_FILE
    parts = [UINT[tag], encode_string(request.remote_address), encode_string(request.uri)]
    parts += (encode_string(request.method), encode_uint(len(request.headers)))
    parts += (encode_string(name) + encode_string(value) for name, value in request.headers)
    if isinstance(request, HTTPRequest):
        parts.append(encode_string(request.body))
    else:
        parts += (encode_string(request.path), encode_uint(request.size))
    return frame(b"".join(parts))


def decode_request(payload: bytes) -> Request:
    """Read a request's payload. FrameError: unknown tag, a length beyond the payload, trailing bytes."""
    try:
        tag, at = decode_uint(payload, 0)
        if tag in (HEALTH_CHECK_REQUEST, STREAM_CANCEL_REQUEST):
            _expect_end(payload, at)
            return HealthCheckRequest() if tag == HEALTH_CHECK_REQUEST else StreamCancel()
        if tag != HTTP_REQUEST and tag != HTTP_REQUEST_FILE:
            raise FrameError(f"a request has the unknown tag {tag}")
        remote_address, at = decode_string(payload, at)
        uri, at = decode_string(payload, at)
        method, at = decode_string(payload, at)
        count, at = decode_uint(payload, at)
        headers = []
        for _ in range(count):
            name, at = decode_string(payload, at)
            value, at = decode_string(payload, at)
            headers.append((name, value))
        body, at = decode_string(payload, at)
        size, at = decode_uint(payload, at) if tag == HTTP_REQUEST_FILE else (0, at)
    except IndexError:
        raise FrameError("a request ends before its message does") from None
    _expect_end(payload, at)
    if tag == HTTP_REQUEST_FILE:
        return HTTPRequestFile(remote_address, uri, method, headers, body, size)
    return HTTPRequest(remote_address, uri, method, headers, body)


# --- from the child ----------------------------------------------------------------------------------------


def encode_response(response: Response) -> bytes:
    """The whole frame of a response."""
    if isinstance(response, Ready):
        names = [encode_string(name.encode()) for name in response.features]
        return frame(UINT[READY] + encode_uint(len(names)) + b"".join(names))
    if isinstance(response, HealthReply):
        return frame(UINT[HEALTH_REPLY] + UINT[response.ok] + encode_string(response.message.encode()))
    if isinstance(response, ResponsePiece):
        if response.last:
            return frame(UINT[RESPONSE_END])
        return frame(UINT[RESPONSE_CHUNK] + encode_string(bytes(response.data)))
    tag = HTTP_RESPONSE if isinstance(response, HTTPResponse) else RESPONSE_START
    parts = [UINT[tag], encode_uint(response.head.status), encode_uint(len(response.head.headers))]
    for name, values in response.head.headers:
        parts += (encode_string(name), encode_uint(len(values)), *map(encode_string, values))
    if isinstance(response, HTTPResponse):
        parts += (encode_uint(len(response.body)), bytes(response.body))
    return frame(b"".join(parts))


def decode_response(payload: bytes) -> Response:
    """Read a response's payload. FrameError: unknown tag, a length beyond the payload, trailing bytes."""
    if payload[:1] == b"\0":
        decoded = _decode_head(payload, 0, len(payload))
        if decoded is None:
            raise FrameError("a response ends before its message does")
        head, _, body_at = decoded
        return HTTPResponse(head, payload[body_at:])
    try:
        return _decode_other(payload)
    except IndexError:
        raise FrameError("a response ends before its message does") from None


def _decode_other(payload: bytes) -> Response:
    tag, at = decode_uint(payload, 0)
    if at > 1:
        # A known one in a longer form than it has is unknown too: readers tell kinds by the first byte.
        raise FrameError(f"a response has the unknown tag {tag}")
    if tag == RESPONSE_START:
        return ResponseStart(_decode_start(payload[at:]), None)
    if tag == RESPONSE_CHUNK:
        data, at = decode_string(payload, at)
        _expect_end(payload, at)
        return ResponsePiece(data, False)
    if tag == RESPONSE_END:
        _expect_end(payload, at)
        return ResponsePiece(b"", True)
    if tag == READY:
        count, at = decode_uint(payload, at)
        names = []
        for _ in range(count):
            name, at = decode_string(payload, at)
            names.append(_text(name))
        _expect_end(payload, at)
        return Ready(tuple(names))
    if tag == HEALTH_REPLY:
        ok = payload[at]
        if ok > 1:
            raise FrameError(f"a health reply's bool is {ok}")
        message, at = decode_string(payload, at + 1)
        _expect_end(payload, at)
        return HealthReply(ok == 1, _text(message))
    raise FrameError(f"a response has the unknown tag {tag}")


def _decode_start(fields: bytes) -> ResponseHead:
    """Read a ResponseStart from behind its tag: an HTTPResponse without a body's length."""
    whole = b"\0%s\0" % fields
    decoded = _decode_head(whole, 0, len(whole))
    assert decoded is not None
    return decoded[0]


def _decode_head(buf: bytes, start: int, end: int) -> tuple[ResponseHead, int, int] | None:
    """Read an HTTPResponse up to its body: (head, where the body's length stands, where the body starts).

    The payload is buf[start:end] and buf may end earlier: then None says that more is needed. No string's
    end is checked where it is cut: running off the end shows at the next length, and the body's must end at
    `end`.
    """
    try:
        at = start + 1
        status = buf[at]
        at += 1
        if status > 127:
            status, at = decode_uint_tail(buf, at, status)
        count = buf[at]
        at += 1
        if count > 127:
            count, at = decode_uint_tail(buf, at, count)
        headers = []
        while count:
            count -= 1
            size = buf[at]
            at += 1
            if size > 127:
                size, at = decode_uint_tail(buf, at, size)
            name = buf[at : at + size]
            at += size
            size = buf[at]
            at += 1
            if size > 127:
                size, at = decode_uint_tail(buf, at, size)
            values = []
            for _ in range(size):
                size = buf[at]
                at += 1
                if size > 127:
                    size, at = decode_uint_tail(buf, at, size)
                values.append(buf[at : at + size])
                at += size
            headers.append((name, values))
        length_at = at
        size, at = decode_uint(buf, at)
    except IndexError:
        if len(buf) >= end:
            raise FrameError("a response ends before its message does") from None
        if len(buf) - start > MAX_RESPONSE_HEAD:
            raise FrameError(f"a response's headers go beyond {MAX_RESPONSE_HEAD} bytes") from None
        return None
    if at + size != end:
        raise FrameError("a response's body does not end where its frame does")
    return ResponseHead(status, headers), length_at, at


class FrameReader:
    """Cuts a byte stream into payloads."""

    def __init__(self, limit: int = MAX_PAYLOAD) -> None:
        self._limit = limit
        self._buf = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._buf += data

    def next_payload(self) -> bytes | None:
        """The next whole payload, or None: need more. FrameError as soon as a length is over the limit."""
        buf = self._buf
        if len(buf) < 4:
            return None
        size = int.from_bytes(buf[:4], "little")
        if size > self._limit:
            raise FrameError(f"a frame of {size} bytes is over the limit of {self._limit}")
        if len(buf) < 4 + size:
            return None
        payload = bytes(buf[4 : 4 + size])
        del buf[: 4 + size]
        return payload

    def __len__(self) -> int:
        """Bytes that were fed and not returned yet."""
        return len(self._buf)


@dataclass(slots=True)
class ResponseReader:
    """Reads one child's responses for an HTTP worker: feed what was read, get the events it completes.

    Between events it holds less than one head and one small response; a large body passes through. What is
    incomplete is kept in parts until it can be more than that: reading it anew at every part would take time
    in the square of its size.
    """

    _parts: list[bytes] = field(default_factory=list)
    _have: int = 0  # bytes in _parts
    _need: int = 0  # bytes from which on it is worth looking at them again
    _body_left: int = 0
    streaming: bool = False  # a response in pieces has begun, and not ended
    fault: FrameError | None = None
    # The head that was read last, as bytes and decoded; before the first, the shortest there is.
    _last: bytes | tuple[()] = b"\0\xc8\x01\0"
    _last_head: ResponseHead = field(default_factory=lambda: ResponseHead(200, []))

    @property
    def idle(self) -> bool:
        """Whether it stands between two responses."""
        return not self._body_left and not self.streaming and not self.behind

    @property
    def behind(self) -> bool:
        """Whether a part of a message, or a fault, stands behind the events that were returned."""
        return bool(self._parts) or self.fault is not None

    @property
    def body_left(self) -> int:
        """Bytes of a large response's body, or of a large piece, that are still to come; they may be read
        past this reader."""
        return self._body_left

    def passed(self, size: int) -> bool:
        """So many of them were: whether the body ends with them. At most body_left."""
        self._body_left -= size
        return not self._body_left and not self.streaming

    def feed(self, data: bytes) -> list[ResponseEvent]:
        """Events in order. FrameError: the framing is broken. Where whole events stand before the fault they
        are returned first, since they answer other requests; `fault` then says what is behind them."""
        events: list[ResponseEvent] = []
        try:
            if self._parts or self._body_left:
                return self._feed(data, events)
            # The path of nearly every response: whole frames whose head is that of the response before them.
            last = self._last
            at, have = 0, len(data)
            while have - at > 5:
                end = at + 4 + int.from_bytes(data[at : at + 4], "little")
                if end > have or end - at > WHOLE_RESPONSE or not data.startswith(last, at + 4):
                    break
                at += 4 + len(last)
                try:
                    size = data[at]
                    at += 1
                    if size > 127:
                        size, at = decode_uint_tail(data, at, size)
                except IndexError:
                    raise FrameError("a response ends before its message does") from None
                if at + size != end:
                    raise FrameError("a response's body does not end where its frame does")
                events.append(HTTPResponse(self._last_head, data[at:end]))
                at = end
            if at == have:
                return events
            return self._feed(data[at:] if at else data, events)
        except FrameError as error:
            if not events:
                raise
            self.fault = error
            return events

    def _feed(self, data: bytes, events: list[ResponseEvent]) -> list[ResponseEvent]:
        if self._body_left and data:
            piece, data = memoryview(data)[: self._body_left], data[self._body_left :]
            self._body_left -= len(piece)
            events.append(ResponsePiece(piece, not self._body_left and not self.streaming))
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return events
            data = b"".join(self._parts)
            self._parts.clear()
        at = 0
        need = 4
        while len(data) - at >= need:
            size = int.from_bytes(data[at : at + 4], "little")
            if size > MAX_PAYLOAD:
                raise FrameError(f"a frame of {size} bytes is over the limit of {MAX_PAYLOAD}")
            if size == 0:
                raise FrameError("a frame is empty")
            start, end = at + 4, at + 4 + size
            whole = end <= len(data)
            if not whole and (size <= WHOLE_RESPONSE or start == len(data)):
                need = 4 + size if size <= WHOLE_RESPONSE else 5
                break
            tag = data[start]
            if self.streaming:
                body_at = _piece_at(data, start, end)
                if body_at is None:
                    need = len(data) - at + 1
                    break
                self._body_left = max(end - len(data), 0)
                if tag == RESPONSE_END:
                    self.streaming = False
                    events.append(ResponsePiece(b"", True))
                elif body_at < min(end, len(data)):
                    events.append(ResponsePiece(memoryview(data)[body_at:end], False))
            elif tag == RESPONSE_START and size <= MAX_RESPONSE_HEAD:
                if not whole:
                    need = 4 + size
                    break
                events.append(ResponseStart(_decode_start(data[start + 1 : end]), None))
                self.streaming = True
                self._last = ()  # no bytes start with one of none: a whole response is no piece of this one
            elif tag != HTTP_RESPONSE:
                if size > WHOLE_RESPONSE or tag in (RESPONSE_CHUNK, RESPONSE_END):
                    raise FrameError(f"a frame of {size} bytes has the tag {tag} between two responses")
                events.append(decode_response(data[start:end]))
            else:
                decoded = _decode_head(data, start, end)
                if decoded is None:
                    have = len(data) - at
                    need = have + 1 if have < SMALL_HEAD else min(2 * have, 4 + size, 5 + MAX_RESPONSE_HEAD)
                    break
                head, length_at, body_at = decoded
                self._last, self._last_head = data[start:length_at], head
                if whole:
                    events.append(HTTPResponse(head, memoryview(data)[body_at:end]))
                else:
                    self._body_left = end - len(data)
                    events.append(ResponseStart(head, end - body_at))
                    events.append(ResponsePiece(memoryview(data)[body_at:], False))
            at = end
        if at < len(data):
            self._parts.append(data[at:] if at else data)
            self._have = len(data) - at
            self._need = need
        return events


def _piece_at(data: bytes, start: int, end: int) -> int | None:
    """Where in a piece of a streamed body its bytes begin; None: more is needed. Its payload is
    data[start:end], and data may end earlier. FrameError: it is no piece."""
    tag = data[start]
    if tag == RESPONSE_END and end == start + 1:
        return end
    if tag != RESPONSE_CHUNK:
        raise FrameError(f"a frame of {end - start} bytes has the tag {tag} in the middle of a response")
    try:
        size, at = decode_uint(data, start + 1)
    except IndexError:
        if len(data) >= end:
            raise FrameError("a piece of a response ends before its message does") from None
        return None
    if at + size != end:
        raise FrameError("a piece of a response does not end where its frame does")
    return at


def _size_field(size: int) -> bytes:
    if size > MAX_PAYLOAD:
        raise FrameError(f"a frame of {size} bytes is over the limit of {MAX_PAYLOAD}")
    return size.to_bytes(4, "little")


def _expect_end(payload: bytes, at: int) -> None:
    if at != len(payload):
        raise FrameError(f"{len(payload) - at} bytes stand behind the message")


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise FrameError(f"{value[:40]!r} is not UTF-8") from None
