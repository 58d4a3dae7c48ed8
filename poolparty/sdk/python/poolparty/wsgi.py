"""Serves a WSGI application (PEP 3333), Flask's or Django's: poolparty -- python -m poolparty.wsgi app:app

Runs in the child, on top of `poolparty.serve`: one request at a time, so wsgi.multithread is False, and there
are other children, so wsgi.multiprocess is True. The application is imported before the child says that it is
ready. `python -m` finds this file by the PYTHONPATH that the server sets, and in the installed package too
(poolparty/__init__.py lists this folder). Python 3.8 or later.
"""

from __future__ import annotations

import os
import sys
from io import BytesIO
from time import monotonic

from . import Headers, Request, Response, serve
from .gateway import add_field, client_of, server_of
from .loading import is_asynchronous, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Any, BinaryIO, TypeAlias

    Environ: TypeAlias = dict[str, Any]
    ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]
    StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]
    Application: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

__all__ = ["FileWrapper", "environ_of", "main", "run", "wsgi_handler"]

MAX_CACHED = 512  # names of headers, uris; a client can send any
MAX_URI_SIZE = 256  # of one that is kept
BLOCK = 65536


def main() -> None:
    """What `python -m poolparty.wsgi APPLICATION` does."""
    application = load("poolparty.wsgi", sys.argv[1:])
    if is_asynchronous(application):
        raise SystemExit(
            f"poolparty.wsgi: {sys.argv[1]} is an ASGI application; serve it with: "
            f"python -m poolparty.asgi {sys.argv[1]}"
        )
    run(application)


def run(application: Application) -> None:
    """Serve the application until the server closes the pipe; then return."""
    serve(wsgi_handler(application))


def wsgi_handler(application: Application) -> Callable[[Request], Response]:
    """A handler for `poolparty.serve` that asks the application."""
    base = _base_environ()

    def handler(request: Request) -> Response:
        request.method  # noqa: B018 (for its effect: line and uri are decoded, by one call)
        headers = request.headers
        template = headers._adapted
        if template is None:
            template = headers._adapted = {**base, **_fields_environ(headers)}
        environ = template.copy()
        _fill(environ, request)
        exchange = _Exchange()
        return exchange.response(application(environ, exchange.start_response))

    return handler


def environ_of(request: Request) -> Environ:
    """A request as PEP 3333 has it."""
    environ = {**_base_environ(), **_fields_environ(request.headers)}
    _fill(environ, request)
    return environ


class FileWrapper:
    """wsgi.file_wrapper: a file's contents in blocks."""

    def __init__(self, file: BinaryIO, block_size: int = BLOCK) -> None:
        self.file = file
        self.block_size = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> Iterator[bytes]:
        while True:
            block = self.file.read(self.block_size)
            if not block:
                return
            yield block


# ---- The request.


def _base_environ() -> Environ:
    """What is the same in every request."""
    script_name = os.environ.get("SCRIPT_NAME", "").rstrip("/")  # as gunicorn takes it
    return {
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "poolparty/" + os.environ.get("POOLPARTY", "0"),
        "SCRIPT_NAME": script_name,
        "wsgi.version": (1, 0),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,  # reading to the end is safe: the body is here, whole
    }


def _fields_environ(headers: Headers) -> Environ:
    """What stands in the header fields."""
    environ: Environ = {}
    for name, value in headers.items():
        key = _keys.get(name)
        if key is None:
            key = _key_of(name)
            if len(_keys) >= MAX_CACHED:
                _keys.clear()
            _keys[name] = key
        if key:
            environ[key] = value if value.isascii() else _native(value)
    return environ


def _fill(environ: Environ, request: Request) -> None:
    """Add what is this request's own to what it has in common with others."""
    uri = request.uri
    known = _uris.get(uri)
    if known is None:
        known = _uri_environ(request, environ["SCRIPT_NAME"])
        if len(_uris) >= MAX_CACHED:
            _uris.clear()
        if len(uri) <= MAX_URI_SIZE:
            _uris[uri] = known
    environ.update(known)
    environ["REQUEST_METHOD"] = request.method
    environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client_of(request.remote_address)
    if request.body_path is not None:
        environ["wsgi.input"] = file = request.open_body()
        environ["CONTENT_LENGTH"] = str(os.fstat(file.fileno()).st_size)
        return
    body = request.body
    if body:
        environ["CONTENT_LENGTH"] = str(len(body))
    environ["wsgi.input"] = BytesIO(body)


def _uri_environ(request: Request, script_name: str) -> Environ:
    """What the uri says."""
    path = request.path
    raw = f"{path}?{request.query}" if request.query else path
    if script_name:
        if path == script_name or path.startswith(script_name + "/"):
            path = path[len(script_name) :]
        else:
            script_name = ""
    scheme, host, port = server_of(request.uri)
    return {
        "QUERY_STRING": request.query,
        "RAW_URI": raw,
        "REQUEST_URI": raw,
        "SCRIPT_NAME": script_name,
        "PATH_INFO": _decoded_path(path),
        "wsgi.url_scheme": scheme,
        "SERVER_NAME": host,
        "SERVER_PORT": port,
    }


def _key_of(name: str) -> str:
    """A header's key; "" for one that is told otherwise: the body is whole and has no transfer coding."""
    key = name.upper().replace("-", "_")
    if key == "TRANSFER_ENCODING":
        return ""
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


def _native(value: str) -> str:
    """PEP 3333's strings hold one byte a character."""
    return str(value.encode(errors="surrogateescape"), "latin-1")


def _decoded_path(path: str) -> str:
    if "%" not in path:
        return path if path.isascii() else _native(path)
    from urllib.parse import unquote_to_bytes

    return str(unquote_to_bytes(path), "latin-1")


_keys: dict[str, str] = {}
_uris: dict[str, Environ] = {}

# ---- The response.


class _Exchange:
    """One call of the application: what it says by start_response and write()."""

    __slots__ = ("headers", "status", "written")

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.written: list[bytes] | None = None

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        if self.status and exc_info is None:
            raise AssertionError("start_response() was called a second time, without exc_info")
        # With exc_info it replaces the first: nothing has been sent before the application returns.
        self.status = int(status[:3])
        self.headers = headers
        return self.write

    def write(self, data: bytes) -> None:
        if self.written is None:
            self.written = []
        self.written.append(data)

    def response(self, result: Iterable[bytes]) -> Response:
        if self.written is None and type(result) is list and len(result) == 1 and self.status:
            return Response(self.status, _fields(self.headers), result[0])
        return self._begun(result)

    def _begun(self, result: Iterable[bytes]) -> Response:
        """The application may call start_response as late as for its first piece."""
        pieces = iter(result)
        first: list[bytes] = self.written if self.written is not None else []
        try:
            while not self.status:
                first.append(next(pieces))
            fields = _fields(self.headers)
            at_hand = not _Lingering.left and (
                type(pieces) in AT_HAND or _is_whole(first, pieces, fields.get("Content-Length"))
            )
        except StopIteration:
            _close(result)
            raise AssertionError("the application has not called start_response()") from None
        except BaseException:
            _close(result)
            raise
        if at_hand:
            return Response(self.status, fields, _ended(first, pieces, result))
        _Lingering.left = max(0, _Lingering.left - 1)
        return Response(self.status, fields, _Body(first, pieces, result))


AT_HAND: tuple[type, ...] = (type(iter([])), type(iter(())))
"""Iterators that never wait for their next piece: Django's answers have one, where they are not streams."""


def _is_whole(first: list[bytes], pieces: Iterator[bytes], length: object) -> bool:
    """Whether all of the body, whose length is declared, is in `first`; waits for a first piece."""
    if length is None:
        return False
    if not first:
        first.append(next(pieces, b""))
    return sum(map(len, first)) == int(length) if type(length) is str and length.isdigit() else False


class _Lingering:
    """Whether the application has gone on working behind its last piece lately, in close() say (Flask's
    call_on_close). A client should not wait for that: its answer is then sent in pieces, and the end behind
    them. Otherwise all is sent at once when the application has ended, as one frame, which costs less."""

    left = 0  # answers that are still sent in pieces
    next = 10  # what `left` becomes then: more each time, since a first request is slow for other reasons too


QUICK = 0.002  # seconds
LONGEST = 1000  # answers


def _ended(first: list[bytes], pieces: Iterator[bytes], result: Iterable[bytes]) -> bytes:
    """The whole body, when the application is through with it."""
    began = monotonic()
    try:
        body = b"".join((*first, *pieces))
    finally:
        _close(result)
    if monotonic() - began > QUICK:
        _Lingering.left = _Lingering.next
        _Lingering.next = min(10 * _Lingering.next, LONGEST)
    return body


class _Body:
    """What the application returned, as a body in pieces; its close() is called whatever happens."""

    __slots__ = ("first", "rest", "result")

    def __init__(self, first: list[bytes], rest: Iterator[bytes], result: Iterable[bytes]) -> None:
        self.first = first
        self.rest = rest
        self.result = result

    def __iter__(self) -> Iterator[bytes]:
        yield from self.first
        yield from self.rest

    def close(self) -> None:
        _close(self.result)


def _close(result: Iterable[bytes]) -> None:
    close = getattr(result, "close", None)
    if close is not None:
        close()


def _fields(headers: list[tuple[str, str]]) -> dict[str, str | list[str]]:
    """Headers as a Response has them: a name once, the values of those that were repeated in a list."""
    fields: dict[str, str | list[str]] = {}
    for name, value in headers:
        if not value.isascii():
            value = _text(value)
        value = value.strip(" \t")  # Django's cookies begin with a space
        if name in fields:
            add_field(fields, name, value)
        else:
            fields[name] = value
    return fields


def _text(value: str) -> str:
    """The text whose bytes the characters are; if these are no UTF-8, it is Latin-1 already."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


if __name__ == "__main__":
    main()
