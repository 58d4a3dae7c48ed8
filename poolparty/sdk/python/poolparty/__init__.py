"""The worker library for Python programs: `poolparty.serve(handler)` answers requests one at a time.

    import poolparty

    def handler(request):
        return "hello\\n"

    poolparty.serve(handler)

Runs in the child: requests arrive as frames on descriptor 0, answers leave on descriptor 3, stdout and stderr
are free for printing (docs/worker-protocol.md). One file, no dependency, Python 3.8 or later, since the
child's interpreter need not be the server's. The import is part of every child's start: what errors need,
and what costs more than a fraction of a millisecond (typing, enum, re, json, urllib …), is not imported here.
"""

from __future__ import annotations

import os
import sys
from _collections_abc import Mapping  # what collections.abc exports; os has loaded it, so it costs nothing

TYPE_CHECKING = False  # typing's constant of this name would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, BinaryIO, TypeAlias

    HeaderValue: TypeAlias = str | Sequence[str]
    Piece: TypeAlias = bytes | bytearray | memoryview | str
    Body: TypeAlias = Piece | Iterable[Piece]
    Answer: TypeAlias = "Response" | Mapping[str, Any] | bytes | str

__all__ = ["Headers", "Request", "Response", "serve"]

__version__ = "0.1.0"

READ_SIZE = 65536  # a pipe's usual capacity: one read takes all there is, several requests if they wait
LARGE_BODY = 16384  # from here on two pieces in one writev beat joining them, which copies the body
MAX_FRAME_SIZE = 0x7FFFFFFF
MAX_MESSAGE_SIZE = 1000  # of a health reply: a line of the log

# The tags of the two unions of the protocol.
HTTP_REQUEST, HEALTH_CHECK_REQUEST, HTTP_REQUEST_FILE, STREAM_CANCEL = range(4)
HTTP_RESPONSE, READY, HEALTH_REPLY, RESPONSE_START, RESPONSE_CHUNK, RESPONSE_END = range(6)


def serve(handler: Callable[[Request], Answer], health_check: Callable[[], object] | None = None) -> None:
    """Answer requests with `handler(request)` until the server closes the pipe; then return.

    The handler returns a Response, a dict with any of "status", "headers" and "body", a str (200,
    text/plain; charset=utf-8) or bytes (200, application/octet-stream). What it raises, and an answer that is
    none of these, is written to stderr with its traceback and answered `500 internal server error`; the
    process lives on. SystemExit and KeyboardInterrupt are not caught: they end it.

    A body may be an iterable of str and bytes, say a generator. Where the server offers `stream` a piece is
    sent when it is there, otherwise all of them together; its close(), if it has one, is called in the end.
    It ends early, by close() (GeneratorExit in a generator), when the client is found to have left. Where it
    raises after the first piece was sent, the process ends, so that the client's answer breaks off.

    `health_check()` is called now and then while no request runs. If it raises, this process is unwell and
    will be replaced; what it returns does not matter.
    """
    source, sink = _take_descriptors()
    _prepare_process()
    offered = os.environ.get("POOLPARTY_FEATURES", "").split(",")
    says_ready = "ready" in offered
    replies = says_ready and "health-reply" in offered
    streams = says_ready and "stream" in offered
    cancels = streams and "stream-cancel" in offered
    takes_files = says_ready and "body-file" in offered
    shows = says_ready and "stack" in offered and _shows_stack()
    more: list[bytes] = []
    try:
        if says_ready:
            uses = ["health-reply"] * replies + ["stream"] * streams + ["stream-cancel"] * cancels
            _write(sink, _ready(uses + ["body-file"] * takes_files + ["stack"] * shows))
        for data, at, end in _payloads(source, more):
            tag = data[at]
            if tag == HTTP_REQUEST:
                request = Request.__new__(Request)  # its __init__ is for requests made by hand
            elif tag == HTTP_REQUEST_FILE:
                request = _FileRequest.__new__(_FileRequest)
            else:
                if tag == HEALTH_CHECK_REQUEST:
                    reply = _check_health(health_check, replies)
                    if replies:
                        _write(sink, reply)
                elif tag != STREAM_CANCEL:  # that stream has ended meanwhile
                    raise SystemExit(f"poolparty: a request of a kind this library does not know ({tag})")
                continue
            request._data = data
            request._at = at + 1
            request._end = end
            try:
                frame = _response(handler(request))
                if isinstance(frame, _Stream):
                    frame = frame.start() if streams else frame.whole()
            except Exception:
                _report(f"{request.method} {request.uri!r} failed")
                frame = _FAILED
            if isinstance(frame, _Stream):
                _send_stream(sink, frame, request, _Behind(source, data[end:], more) if cancels else None)
            else:
                _write(sink, frame)
    except BrokenPipeError:
        return  # the server has gone: nobody is left to be answered


class Headers(Mapping):  # Mapping[str, str] does not exist at run time on 3.8
    """A request's header fields: a read-only mapping whose lookup ignores case.

    Names are as the server wrote them (`User-Agent`); of a field that was sent several times the values are
    joined by `, ` (Cookie: `; `), so that every name is there once.
    """

    __slots__ = ("_adapted", "_fields", "_lower")

    def __init__(self, fields: Mapping[str, str] | None = None) -> None:
        self._fields: dict[str, str] = dict(fields) if fields else {}
        self._lower: dict[str, str] | None = None  # made by the first lookup that needs it
        self._adapted: Any = None  # what an adapter (poolparty.wsgi) has made of them, for later requests

    def __getitem__(self, name: str) -> str:
        value = self._fields.get(name)
        if value is not None:
            return value
        if self._lower is None:
            self._lower = {key.lower(): value for key, value in self._fields.items()}
        try:
            return self._lower[name.lower()]
        except KeyError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Headers({self._fields!r})"


class Request:
    """One HTTP request.

    method          "GET", …
    uri             absolute: "http://example.org/path?query"
    path, query     the uri's, as they were sent: percent-encoded; the query without "?", "" if there is none
    headers         Headers
    body            bytes
    body_path       of a large body the file that holds it until the answer, else None: `body` would read it
                    into memory, open_body() does not
    remote_address  "host:port" ("[::1]:4711" for IPv6)

    The server's requests are decoded when a field is first looked at: a handler pays for what it uses.
    """

    __slots__ = (
        "_at", "_data", "_end", "body", "headers", "method", "path", "query", "remote_address", "uri"
    )  # fmt: skip

    _data: bytes
    _end: int  # where in _data its frame ends
    _at: int  # where in _data this request's next undecoded field begins
    method: str
    uri: str
    path: str
    query: str
    headers: Headers
    body: bytes
    body_path: str | None = None
    remote_address: str

    def __init__(
        self,
        method: str = "GET",
        uri: str = "http://localhost/",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        remote_address: str = "127.0.0.1:0",
    ) -> None:
        """A request made by hand, to try a handler without a server."""
        self.method = method
        self.uri = uri
        self.headers = Headers(headers)
        self.body = body
        self.remote_address = remote_address

    def open_body(self) -> BinaryIO:
        """The body as a binary file, whether it is in memory or in a file."""
        import io

        return io.BytesIO(self.body)

    def __getattr__(self, name: str) -> Any:
        """Called for a slot that is empty: fill it and those that stand with it."""
        if name == "path" or name == "query":
            self._split_uri()
        elif name not in ("uri", "method", "remote_address", "headers", "body"):
            raise AttributeError(f"a Request has no {name!r}")
        else:
            try:
                if name == "headers" or name == "body":
                    self._decode_rest()
                else:
                    self._decode_line()
            except IndexError:
                raise _broken() from None
        return getattr(self, name)

    def _decode_line(self) -> None:
        # _uint() inlined, here and below: a call costs more than what it does, and most lengths are one byte.
        data, at = self._data, self._at
        size = data[at]
        at += 1
        if size > 127:
            size, at = _uint(data, at - 1)
        stop = at + size
        self.remote_address = str(data[at:stop], "utf-8")
        size = data[stop]
        at = stop + 1
        if size > 127:
            size, at = _uint(data, stop)
        stop = at + size
        self.uri = str(data[at:stop], "utf-8")
        size = data[stop]
        at = stop + 1
        if size > 127:
            size, at = _uint(data, stop)
        stop = at + size
        self.method = str(data[at:stop], "utf-8")
        self._at = stop

    def _decode_rest(self) -> None:
        self.method  # noqa: B018 (for its effect: the fields before are decoded, _at stands at the headers)
        data, at, end = self._data, self._at, self._end
        # Clients repeat themselves: what was decoded before is recognised by its bytes. They are those of the
        # whole rest of the frame, so that they are known only together with a body that is empty.
        rest = b""
        if not data[end - 1] and end - at <= MAX_KNOWN_SIZE:
            rest = data[at:end]
            known = _KNOWN.get(rest)
            if known is not None:
                self.headers = known
                self.body = b""
                return
        size, at = _uint(data, self._decode_headers())
        if at + size != end:
            raise _broken()
        self.body = data[at:end]
        if rest and not size:
            if len(_KNOWN) >= MAX_KNOWN:
                _KNOWN.clear()
            _KNOWN[rest] = self.headers

    def _decode_headers(self) -> int:
        self.method  # noqa: B018 (as above)
        data, at = self._data, self._at
        fields = {}
        count, at = _uint(data, at)
        for _ in range(count):
            size = data[at]
            at += 1
            if size > 127:
                size, at = _uint(data, at - 1)
            stop = at + size
            name = str(data[at:stop], "utf-8")
            size = data[stop]
            at = stop + 1
            if size > 127:
                size, at = _uint(data, stop)
            stop = at + size
            fields[name] = str(data[at:stop], "utf-8")
            at = stop
        self.headers = headers = Headers()
        headers._fields = fields
        return at

    def _split_uri(self) -> None:
        target, _, self.query = self.uri.partition("?")
        _, scheme, rest = target.partition("://")
        slash = rest.find("/")
        self.path = (rest[slash:] if slash >= 0 else "/") if scheme else target

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.uri}>"


class _FileRequest(Request):
    """A request whose body is in a file."""

    __slots__ = ("body_path",)

    def open_body(self) -> BinaryIO:
        assert self.body_path is not None
        return open(self.body_path, "rb")

    def __getattr__(self, name: str) -> Any:
        if name == "body":
            with self.open_body() as file:
                self.body = file.read()
        elif name == "body_path":
            self.headers  # noqa: B018 (for its effect: what stands behind them is decoded with them)
        else:
            return super().__getattr__(name)
        return getattr(self, name)

    def _decode_rest(self) -> None:
        at = self._decode_headers()
        size, at = _uint(self._data, at)
        path = self._data[at : at + size]
        _, at = _uint(self._data, at + size)
        if at != self._end:
            raise _broken()
        self.body_path = os.fsdecode(path)


class Response:
    """One HTTP response.

    status     200 to 599
    headers    a mapping of names to a str or, for a field that stands several times, a list of str
    body       bytes, bytearray, memoryview, or a str, which is encoded as UTF-8; or an iterable of these

    No header is added but those the server owes (Content-Length, Date …).
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self, status: int = 200, headers: Mapping[str, HeaderValue] | None = None, body: Body = b""
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"<Response {self.status}>"


# ---- Encoding. A frame is bytes, or a head and a large body that are written in one go without being joined.


def _varint(number: int) -> bytes:
    if number < 128:
        return _ONE_BYTE[number]
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


_ONE_BYTE = [bytes((number,)) for number in range(128)]


def _string(text: str) -> bytes:
    data = text.encode()
    return _varint(len(data)) + data


def _sized(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "little") + payload


def _ready(features: Sequence[str]) -> bytes:
    return _sized(bytes((READY, len(features))) + b"".join(map(_string, features)))


def _health_reply(ok: bool, message: str) -> bytes:
    # What the message quotes, a file's name say, may hold what UTF-8 cannot.
    data = message.encode(errors="backslashreplace")[:MAX_MESSAGE_SIZE]
    return _sized(bytes((HEALTH_REPLY, ok)) + _varint(len(data)) + data)


def _status_and_one_header(status: int, name: str, value: str) -> bytes:
    return bytes((HTTP_RESPONSE,)) + _varint(status) + b"\x01" + _string(name) + b"\x01" + _string(value)


_TEXT = _status_and_one_header(200, "Content-Type", "text/plain; charset=utf-8")
_OCTETS = _status_and_one_header(200, "Content-Type", "application/octet-stream")


def _response(answer: Answer) -> bytes | tuple[bytes, bytes] | _Stream:
    """The frame for what a handler returned. TypeError or ValueError says what is wrong with it."""
    if type(answer) is str:
        return _framed(_TEXT, answer.encode())
    if type(answer) is bytes:
        return _framed(_OCTETS, answer)
    status: Any
    headers: Any
    body: Any
    if isinstance(answer, Response):
        status, headers, body = answer.status, answer.headers, answer.body
    elif isinstance(answer, Mapping):
        status, headers, body = answer.get("status", 200), answer.get("headers"), answer.get("body", b"")
    elif isinstance(answer, (str, bytes, bytearray, memoryview)):
        return _response(str(answer) if isinstance(answer, str) else bytes(answer))
    else:
        raise TypeError(f"a handler returns a Response, a dict, a str or bytes, not {answer!r:.200}")
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise ValueError(f"a response's status is an int from 200 to 599, not {status!r:.200}")
    head = b"%c%c%c" % (HTTP_RESPONSE, status & 127 | 128, status >> 7)  # two bytes, in this range
    if type(body) is not bytes:
        if isinstance(body, str):
            body = body.encode()
        elif body is None:
            body = b""
        elif isinstance(body, (bytes, bytearray, memoryview)):
            body = bytes(body)
        elif hasattr(body, "__iter__") and not isinstance(body, Mapping):
            return _Stream(head[1:] + (_headers(headers) if headers else b"\x00"), body)
        else:
            raise TypeError(f"a response's body is bytes, a str or an iterable of these, not {body!r:.200}")
    return _framed(head + (_headers(headers) if headers else b"\x00"), body)


def _headers(headers: Mapping[str, HeaderValue]) -> bytes:
    if not isinstance(headers, Mapping):
        raise TypeError(f"a response's headers are a mapping, not {headers!r:.200}")
    pieces = [_varint(len(headers))]
    for name, value in headers.items():
        if type(name) is str and type(value) is str:
            field = _FIELDS.get((name, value))
            if field is None:
                field = _string(name) + b"\x01" + _string(value)
                if len(_FIELDS) >= MAX_FIELDS:
                    _FIELDS.clear()
                if len(field) <= MAX_FIELD_SIZE:
                    _FIELDS[name, value] = field
            pieces.append(field)
            continue
        if not isinstance(name, str):
            raise TypeError(f"a response header's name is a str, not {name!r:.200}")
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or not all(isinstance(each, str) for each in values):
            raise TypeError(f"the response header {name!r} is a str or a list of str, not {value!r:.200}")
        pieces += (_string(name), _varint(len(values)), *map(_string, values))
    return b"".join(pieces)


# Header fields as they are encoded: most are constants of the program, and looking them up saves a third.
# Those that change with each request fill it; then it is emptied.
_FIELDS: dict[tuple[str, str], bytes] = {}
MAX_FIELDS = 256
MAX_FIELD_SIZE = 256


def _framed(head: bytes, body: bytes) -> bytes | tuple[bytes, bytes]:
    size = len(body)
    if size < 128:
        return b"".join(((len(head) + 1 + size).to_bytes(4, "little"), head, _ONE_BYTE[size], body))
    head += _varint(size)
    total = len(head) + size
    if size < LARGE_BODY:
        return b"".join((total.to_bytes(4, "little"), head, body))
    if total > MAX_FRAME_SIZE:
        raise ValueError(f"a response of {total} bytes is larger than a frame can be ({MAX_FRAME_SIZE})")
    return total.to_bytes(4, "little") + head, body


class _Stream:
    """A response whose body comes in pieces: `head` is status and headers, `first` the first piece."""

    __slots__ = ("body", "first", "head", "pieces")

    pieces: Iterator[Piece]

    def __init__(self, head: bytes, body: Iterable[Piece]) -> None:
        self.head = head
        self.body = body
        self.first = b""

    def start(self) -> bytes | tuple[bytes, bytes] | _Stream:
        """Wait for the first piece: what goes wrong until then is answered. If none comes: a usual one."""
        try:
            self.pieces = iter(self.body)
            for piece in self.pieces:
                self.first = _octets(piece)
                if self.first:
                    return self
        except BaseException:
            self.close()
            raise
        self.close()
        return _framed(bytes((HTTP_RESPONSE,)) + self.head, b"")

    def whole(self) -> bytes | tuple[bytes, bytes]:
        try:
            body = b"".join([_octets(piece) for piece in self.body])
        finally:
            self.close()
        return _framed(bytes((HTTP_RESPONSE,)) + self.head, body)

    def close(self) -> None:
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


def _octets(piece: Piece) -> bytes:
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, (bytes, bytearray, memoryview)):
        return bytes(piece)
    raise TypeError(f"a piece of a response's body is bytes or a str, not {piece!r:.200}")


class _Behind:
    """What stands behind the request that runs: `rest`, which was read with it, and what the pipe holds; that
    goes to `more` for whoever reads on."""

    __slots__ = ("_at", "_data", "_more", "_poll", "_source")

    def __init__(self, source: int, rest: bytes, more: list[bytes]) -> None:
        import select

        self._source = source
        self._data = rest
        self._at = 0  # where the next frame begins
        self._more = more
        self._poll = select.poll()
        self._poll.register(source, select.POLLIN)

    def cancelled(self) -> bool:
        """Whether the server does not want the stream any more, or is gone. Waits for nothing."""
        while self._poll.poll(0):
            piece = os.read(self._source, READ_SIZE)
            if not piece:
                return True
            self._more.append(piece)
            self._data += piece
        data, at = self._data, self._at
        while len(data) >= at + 5:
            if data[at + 4] == STREAM_CANCEL:
                return True
            at += 4 + int.from_bytes(data[at : at + 4], "little")
        self._at = at
        return False


def _send_stream(sink: int, stream: _Stream, request: Request, behind: _Behind | None) -> None:
    """Send it from its first piece on. What goes wrong now can only be told by ending: SystemExit."""
    before = _sized(bytes((RESPONSE_START,)) + stream.head)
    for data in _pieces(stream, request, behind):
        if data:
            _write(sink, before + _chunk(data))
            before = b""
    _write(sink, _sized(bytes((RESPONSE_END,))))


def _pieces(stream: _Stream, request: Request, behind: _Behind | None) -> Iterator[bytes]:
    try:
        try:
            yield stream.first
            for piece in stream.pieces:
                if behind is not None and behind.cancelled():
                    break
                yield _octets(piece)
        finally:
            stream.close()
    except Exception:
        _report(f"{request.method} {request.uri!r} failed in the middle of its answer")
        raise SystemExit(1) from None


def _chunk(data: bytes) -> bytes:
    return _sized(bytes((RESPONSE_CHUNK,)) + _varint(len(data)) + data)


_FAILED = _sized(
    _status_and_one_header(500, "Content-Type", "text/plain; charset=utf-8")
    + _string("internal server error\n")
)


# ---- Decoding.


def _uint(data: bytes, at: int) -> tuple[int, int]:
    """The unsigned LEB128 number at `at`, and where it ends."""
    number = data[at]
    at += 1
    if number > 127:
        number &= 127
        shift = 7
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
    return number, at


# The headers of requests without a body, by their bytes: at most 256 KiB of them.
_KNOWN: dict[bytes, Headers] = {}
MAX_KNOWN = 64
MAX_KNOWN_SIZE = 4096


def _broken() -> SystemExit:
    """No error of the handler's, which would be answered: what follows in the pipe could mean anything."""
    return SystemExit("poolparty: a request's lengths do not add up to its frame")


def _payloads(source: int, more: list[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """The payload of each frame, as a buffer and where it begins and ends there, until the pipe's end.

    What lies behind it in the buffer may be the next request; what somebody else has read of the pipe
    meanwhile is in `more`. Buffers are never written again: a request that
    the program keeps stays what it was.
    """
    read = os.read
    data, at = b"", 0
    while True:
        if more:
            data, at = b"".join((data[at:], *more)), 0
            more.clear()
        have = len(data) - at
        size = int.from_bytes(data[at : at + 4], "little") if have >= 4 else 0
        if have < 4 + size or have < 4:
            pieces = [data[at:]] if have else []
            while have < 4 + size or have < 4:
                piece = read(source, READ_SIZE)
                if not piece:
                    return
                pieces.append(piece)
                have += len(piece)
                if not size and have >= 4:
                    pieces = [b"".join(pieces)]
                    size = int.from_bytes(pieces[0][:4], "little")
                    if size > MAX_FRAME_SIZE:
                        raise _broken()
            data, at = b"".join(pieces) if len(pieces) > 1 else pieces[0], 0
        at += 4
        if not size:
            raise _broken()
        yield data, at, at + size
        at += size


# ---- The process.


def _take_descriptors() -> tuple[int, int]:
    """Take the two pipes, (requests, answers), so that no program the handler starts inherits them.

    Such a program would find our requests on its standard input and eat them; it finds /dev/null. So does
    whatever reads sys.stdin here.
    """
    try:
        sink = 3
        os.fstat(sink)
        source = os.dup(0)  # not inheritable, as all that Python makes
    except OSError:
        words = getattr(sys, "orig_argv", None) or ["python", *sys.argv]  # Python 3.10 knows of `-m`
        raise SystemExit(
            "poolparty.serve(): descriptors 0 and 3 are not open. This program is started by the server: "
            f"poolparty -- {' '.join(words)}"
        ) from None
    os.set_inheritable(sink, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return source, sink


def _prepare_process() -> None:
    import _signal  # type: ignore[import-not-found]  # the C half of `signal`, whose other half imports enum

    # A terminal's Ctrl-C is for the server, which then drains: this process ends when its pipe does. A
    # handler and not SIG_IGN, because programs started from here would inherit that.
    try:
        if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
            _signal.signal(_signal.SIGINT, _ignore)
    except ValueError:
        pass  # not on the main thread, where no signal is handled
    # To a pipe, print() would write when its buffer is full: the log would show lines minutes late.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)


def _ignore(number: int, frame: object) -> None:
    """A signal handler."""


_show_more: Callable[[int, Any], object] | None = None
"""A signal handler that goes on where threads' stacks do not tell it all: poolparty.asgi's, whose coroutines
are on none while they wait."""


def _shows_stack() -> bool:
    """Have SIGUSR1 write the stack of each thread to stderr: whether it does. A program that has a use of its
    own for the signal keeps it.

    faulthandler writes in the signal's C handler, so also while the program is in C, and system calls are
    started again; where _show_more is called too, by Python.
    """
    try:
        import _signal
        import faulthandler

        if _signal.getsignal(_signal.SIGUSR1) != _signal.SIG_DFL:
            return False
        if _show_more is not None:
            _signal.signal(_signal.SIGUSR1, _show_more)
        faulthandler.register(_signal.SIGUSR1, 2, True, _show_more is not None)
    except (ImportError, AttributeError, RuntimeError, OSError, ValueError):
        return False  # an interpreter that was built without it, or is another's; not the main thread
    return True


def _write(sink: int, frame: bytes | tuple[bytes, bytes]) -> None:
    """Write all of a frame. The pipe blocks: less than all is written only when a signal came in between."""
    if isinstance(frame, bytes):
        written = os.write(sink, frame)
        if written == len(frame):
            return
        rest = [memoryview(frame)[written:]]
    else:
        rest = [memoryview(piece) for piece in frame]
    while rest:
        written = os.writev(sink, rest)
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]


def _check_health(health_check: Callable[[], object] | None, replies: bool) -> bytes:
    """The reply. Where the server does not want one, an unwell process says so by ending."""
    try:
        if health_check is not None:
            health_check()
    except Exception as error:
        _report("the health check failed")
        if not replies:
            raise SystemExit(1) from None
        return _health_reply(False, f"{type(error).__name__}: {error}")
    return _health_reply(True, "")


def _report(what: str) -> None:
    """Write the exception being handled to stderr, from the program's own frames on."""
    kind, error, trace = sys.exc_info()
    assert kind is not None and error is not None and trace is not None
    if trace.tb_next is not None:
        error = error.with_traceback(trace.tb_next)
    try:
        print(f"poolparty: {what}", file=sys.stderr)
        # The interpreter's own printer needs no import; `traceback` would cost the first error several ms.
        sys.__excepthook__(kind, error, error.__traceback__)
        sys.stderr.flush()
    except Exception:
        pass  # a broken stderr, or an exception that cannot be printed, must not cost the client its answer
