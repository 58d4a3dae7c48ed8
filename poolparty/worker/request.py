"""From a parsed HTTP request to the head of its frame: names, target, what the fields demand of us.

Imports no I/O. What a child sees follows docs/worker-protocol.md: an absolute uri with a normalised path,
field names in canonical case, repeated fields joined, every text UTF-8. Whatever is wrong with a request is a
RequestError here.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from poolparty.errors import FrameError, RequestError
from poolparty.wire.bare import encode_string
from poolparty.wire.frames import file_request, request_head
from poolparty.wire.path import PLAIN, normal_path

if TYPE_CHECKING:
    from poolparty.worker.connection import Connection
    from poolparty.worker.dispatcher import Dispatcher
    from poolparty.worker.spooled import SpooledBody

MAX_CACHED = 1024
"""Names and hosts remembered in their final form; a client that sends ever new ones gains nothing by it."""

MAX_CACHED_SIZE = 256
"""Bytes of the longest name or host that is remembered."""

SAFE_METHODS = frozenset((b"GET", b"HEAD"))
"""Requests that may be run a second time when their child died (RFC 9110, 9.2.2)."""


class Special(enum.IntEnum):
    """Fields that mean something to us."""

    NONE = 0
    HOST = 1
    COOKIE = 2
    TRANSFER_ENCODING = 3
    EXPECT = 4
    SCHEME = 5  # one of gunicorn's secure_scheme_headers
    CONTENT_LENGTH = 6
    CONTENT_TYPE = 7


class Request:
    """One request between its last byte's arrival and its answer.

    `connection` is None once its client has left. `head` and `body` are the frame; `started` is when a child
    got it.
    """

    __slots__ = (
        "accepted",
        "answered",
        "body",
        "body_size",
        "connection",
        "dispatcher",
        "expects_continue",
        "fields",
        "head",
        "is_head",
        "keep_alive",
        "method",
        "remote",
        "retried",
        "retryable",
        "started",
        "target",
        "version",
        "worker_pid",
    )

    connection: Connection | None
    dispatcher: Dispatcher  # of the pool that it is for; also what it comes to is counted there
    remote: bytes  # `host:port` as a BARE string: the peer, or behind a trusted proxy its client
    body: list[bytes | bytearray] | SpooledBody
    accepted: float  # seconds, time.monotonic(): when it had arrived whole
    started: float
    answered: float  # when its child had, only where the answer goes on without it
    worker_pid: int  # of the child that runs it or ran it, 0: none has

    def __init__(
        self,
        connection: Connection,
        head: bytes,
        method: bytes,
        target: bytes,
        version: str,
        fields: list[tuple[bytes, bytes]],
        keep_alive: bool,
    ) -> None:
        self.connection = connection
        self.head = head
        self.body = []
        self.body_size = 0
        self.method = method
        self.target = target
        self.version = version
        self.fields = fields
        self.keep_alive = keep_alive
        self.is_head = method == b"HEAD"
        self.retryable = method in SAFE_METHODS
        self.retried = False
        self.expects_continue = False
        self.worker_pid = 0

    def forgotten(self) -> Request:
        """A double of this one that nobody waits for, to be answered in its place."""
        double = copy.copy(self)
        double.connection = None
        return double


class FieldRules:
    """What becomes of each field name, by gunicorn's header_map, forwarder_headers and
    secure_scheme_headers."""

    def __init__(
        self, header_map: str, forwarder_headers: Iterable[str], secure_scheme_headers: dict[str, str]
    ) -> None:
        self._header_map = header_map
        self._forwarder = {name.upper().encode() for name in forwarder_headers}
        self.scheme_values = {
            name.lower().replace("_", "-").encode(): value.lower().encode()
            for name, value in secure_scheme_headers.items()
        }
        self._known: dict[bytes, tuple[bytes | None, Special]] = {}

    def lookup(self, name: bytes) -> tuple[bytes | None, Special]:
        """The name as a BARE string in canonical case, None if the field is dropped; and what it means to
        us."""
        return self._known.get(name) or self._learn(name)

    def _learn(self, name: bytes) -> tuple[bytes | None, Special]:
        lower = name.lower()
        special = _SPECIAL.get(lower, Special.NONE)
        if lower in self.scheme_values:
            special = Special.SCHEME
        encoded: bytes | None = encode_string(canonical_name(name))
        if b"_" in name and self._header_map != "dangerous" and name.upper() not in self._forwarder:
            # `X_Forwarded_For` would become `X-Forwarded-For` in many a child: only who asks for it gets it.
            if self._header_map == "refuse":
                raise RequestError(400, f"the field name {name.decode('latin-1')!r} has an underscore")
            encoded = None
        rule = encoded, special
        if len(self._known) < MAX_CACHED and len(name) <= MAX_CACHED_SIZE:
            self._known[name] = rule
        return rule


_SPECIAL = {
    b"host": Special.HOST,
    b"cookie": Special.COOKIE,
    b"transfer-encoding": Special.TRANSFER_ENCODING,
    b"expect": Special.EXPECT,
    b"content-length": Special.CONTENT_LENGTH,
    b"content-type": Special.CONTENT_TYPE,
}


def canonical_name(name: bytes) -> bytes:
    """`x-csrf-token` as `X-Csrf-Token`."""
    return b"-".join(part.capitalize() for part in name.split(b"-"))


def build_request(
    connection: Connection,
    rules: FieldRules,
    method: bytes,
    target: bytes,
    version: str,
    fields: list[tuple[bytes, bytes]],
    keep_alive: bool,
) -> tuple[Request, dict[bytes, bytes], bytes]:
    """Check a request's head and turn it into what its frame's head is made of: (request, headers, uri).

    `fields` are names and values as parsed (a strict parser has refused what is no field). The frame's head
    itself needs the body's size: `finish_request`. RequestError: 400, 417, 501, 505.
    """
    if version != "1.1" and version != "1.0":
        raise RequestError(505, f"HTTP/{version} is not served here: speak HTTP/1.1")
    if method == b"CONNECT":
        raise RequestError(501, "CONNECT is not served here")
    headers: dict[bytes, bytes] = {}
    host: bytes | None = None
    scheme = connection.scheme
    forwarded: bytes | None = None
    expects_continue = False
    known = rules._known
    for name, value in fields:
        encoded, special = known.get(name) or rules.lookup(name)
        if not value.isascii():
            value = utf8(value)
        if value[-1:] in _SPACE:
            value = value.rstrip(b" \t")
        if special:
            if special is Special.HOST:
                if host is not None:
                    raise RequestError(400, "the Host field is repeated")
                host = _hosts.get(value) or check_host(value)
            elif special is Special.COOKIE:
                if encoded in headers:
                    headers[encoded] += b"; " + value
                    continue
            elif special is Special.TRANSFER_ENCODING:
                if version == "1.0":
                    raise RequestError(400, "Transfer-Encoding in an HTTP/1.0 request")
                if value.lower() != b"chunked" or encoded in headers:
                    raise RequestError(501, "the only transfer coding served here is chunked, once")
            elif special is Special.EXPECT:
                if value.lower() != b"100-continue":
                    raise RequestError(417, "the only expectation met here is 100-continue")
                expects_continue = version == "1.1"
            elif special is Special.CONTENT_TYPE:
                if encoded in headers:
                    raise RequestError(400, "the Content-Type field is repeated")
            elif special is Special.SCHEME and connection.trusted:
                says = b"https" if value.lower() == rules.scheme_values[name.lower()] else b"http"
                if forwarded is not None and forwarded != says:
                    raise RequestError(400, "the fields that tell the scheme contradict each other")
                scheme = forwarded = says
        if encoded is None:
            continue
        if encoded in headers:
            headers[encoded] += b", " + value
        else:
            headers[encoded] = value
    if host is None and version == "1.1":
        raise RequestError(400, "the Host field is missing")
    if target[:1] == b"/" and not target.translate(None, PLAIN_TARGET) and not not_normal(target):
        uri = b"".join((scheme, b"://", host or b"", target))
    else:
        if target[:1] != b"/":
            check_absolute(scheme, host, target, connection.trusted)
        uri = absolute_uri(scheme, host or b"", target, method)
    request = Request(connection, b"", method, target, version, fields, keep_alive)
    request.expects_continue = expects_continue
    return request, headers, uri


def host_and_target(uri: bytes) -> tuple[bytes, bytes]:
    """What a frame's uri says of its host, the port included, and what follows: path and query."""
    start = uri.index(b"://") + 3
    end = uri.index(b"/", start)
    return uri[start:end], uri[end:]


def finish_request(request: Request, headers: dict[bytes, bytes], uri: bytes, remote: bytes) -> None:
    """Give a request whose body is complete its frame's head. `remote` is the client's address as a BARE
    string."""
    method = METHODS.get(request.method) or encode_string(request.method)
    body = request.body
    if not isinstance(body, list):
        body.frame = file_request(remote, uri, method, headers, os.fsencode(body.path), body.size)
        with contextlib.suppress(FrameError):  # a frame cannot hold it: it is for children that take files
            request.head = request_head(remote, uri, method, headers, body.size)
        return
    head = request_head(remote, uri, method, headers, request.body_size)
    if 0 < request.body_size <= SMALL_BODY:
        head = b"".join((head, *body))
        request.body = []
    request.head = head


SMALL_BODY = 16 * 1024
"""Bytes of a body that is joined to its head for a single write: a copy of this size costs less than an
iovec's handling."""

METHODS = {
    method: encode_string(method)
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS")
}

# --- the request line --------------------------------------------------------------------------------------

KNOWN_METHODS = (
    b"GET HEAD POST PUT DELETE PATCH OPTIONS TRACE CONNECT COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH "
    b"UNLOCK BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE "
    b"PURGE MKCALENDAR LINK UNLINK SOURCE QUERY"
).split()
"""The methods that the parser takes: any other is answered 501, as CONNECT is."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
REQUEST_LINE = re.compile(
    rb"(?:\r\n)*(%s) ([!-~\x80-\xff]+) HTTP/1\.([01])\r\n" % b"|".join(map(re.escape, KNOWN_METHODS))
).match
"""A whole request line: method, target, minor version (RFC 9112, 3), behind empty lines at most (2.2).

Stricter than the parser, which takes several spaces, lines that end in CR or LF alone before it, RTSP and
ICE."""

may_become_request_line = re.compile(
    rb"%s*(?: (?:[!-~\x80-\xff]+(?: [!-~]{0,16})?\r?)?)?|\r" % _TOKEN
).fullmatch
"""Whether this can be the start of a request line, so that a client that speaks something else is told at
once."""

_line_parts = re.compile(rb"%s+ [!-~\x80-\xff]+(?: HTTP/([0-9])\.([0-9]))?\r\n" % _TOKEN).fullmatch


def line_fault(line: bytes) -> RequestError:
    """What to answer to a line, its end included, that is no REQUEST_LINE."""
    parts = _line_parts(line)
    if parts is None:
        return RequestError(400, "the request line is malformed")
    major, minor = parts.groups()
    if major is None:
        if line.startswith(b"GET /"):
            return RequestError(505, "HTTP/0.9 is not served here: speak HTTP/1.1")
        return RequestError(400, "the request line is malformed")
    if major != b"1" or minor not in b"01":
        version = f"{major.decode()}.{minor.decode()}"
        return RequestError(505, f"HTTP/{version} is not served here: speak HTTP/1.1")
    return RequestError(501, "the method is not served here")


FORBIDDEN_TRAILERS = frozenset(
    (
        *(b"content-length", b"transfer-encoding", b"trailer", b"te", b"host", b"authorization"),
        *(b"connection", b"keep-alive", b"upgrade"),
    )
)
"""Fields that a trailer may not hold (RFC 9110, 6.5.1): a server that merged them with the head would read
another request."""

# --- the target --------------------------------------------------------------------------------------------

_SPACE = (b" ", b"\t")
PLAIN_TARGET = PLAIN + b"?"
"""Characters of a target that needs no encoding, unless it is not normal."""
not_normal = re.compile(rb"//|/\.|\?\Z").search
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)")
_HOST = re.compile(
    rb"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*|"
    rb"\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?\])(?::([0-9]{0,5}))?"
)
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
_hosts: dict[bytes, bytes] = {}


def check_absolute(scheme: bytes, host: bytes | None, target: bytes, trusted: bool) -> None:
    """What an absolute target says has to be true. RequestError: 400, 421.

    host: None if there is no Host field. If there is one it names the same host (RFC 9112, 3.2.2), so that
    nobody goes by the one where others go by the other. And https needs a connection that can vouch for it
    (RFC 9110, 7.4): with TLS, or a `trusted` proxy's.
    """
    match = _ABSOLUTE.match(target)
    if match is None or (port := _DEFAULT_PORTS.get(match[1].lower())) is None:
        return  # absolute_uri says what is wrong with it
    own = check_host(match[2])
    if host is not None and host.removesuffix(port).rstrip(b":") != own.removesuffix(port).rstrip(b":"):
        raise RequestError(400, "the target and the Host field name different hosts")
    if match[1].lower() == b"https" and scheme != b"https" and not trusted:
        raise RequestError(421, "an https uri is not served on a connection without TLS")


def absolute_uri(scheme: bytes, host: bytes, target: bytes, method: bytes) -> bytes:
    """The uri of any target: RFC 9112, 3.2, normalised as the original does it.

    The path is percent-decoded, `//`, `/./` and `/../` are resolved, and it is encoded again; a query stays
    as it is; a fragment goes, and so does a `?` with nothing behind it. An absolute target brings its own
    host (RFC 9112, 3.2.2). The scheme is `scheme` all the same: nobody turns http into https by saying so.
    """
    if target[:1] == b"/":
        rest = target
    elif target == b"*":
        if method != b"OPTIONS":
            raise RequestError(400, "the target * is for OPTIONS alone")
        rest = b"/*"
    else:
        match = _ABSOLUTE.fullmatch(target.partition(b"#")[0])
        if match is None or match[1].lower() not in _DEFAULT_PORTS:
            raise RequestError(400, "the target is neither a path nor an http uri")
        host, rest = check_host(match[2]), match[3]
        if not host:
            raise RequestError(400, "the target names no host")
    path, _, query = rest.partition(b"#")[0].partition(b"?")
    return b"".join((scheme, b"://", host, normal_path(path), b"?" if query else b"", query))


def check_host(host: bytes) -> bytes:
    """A Host field's value in lower case. RequestError: 400, it is no host and port."""
    match = _HOST.fullmatch(host)
    if match is None or int(match[1] or 0) > 65535:
        raise RequestError(400, "the Host field is no host")
    lower = host.lower()
    if len(_hosts) < MAX_CACHED and len(host) <= MAX_CACHED_SIZE:
        _hosts[host] = lower
    return lower


def utf8(value: bytes) -> bytes:
    """A field value as UTF-8: what is none is taken for Latin-1."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1").encode()
    return value
