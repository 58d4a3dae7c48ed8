"""The admin listener: health, readiness, metrics and the status page by HTTP; and HAProxy's agent check.

Runs in the arbiter, in the pool thread's select loop and under its lock, like the control socket. What it
serves stands in PAGES and ACTIONS. An HTTP worker has a channel to it if there is an `admin_prefix`, and
passes requests from below that on; those, and a listener that is not private, get pages and no actions.

A session never waits and never holds up another one: requests are small and bounded, an answer is made at
once.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import ipaddress
import json
import re
import selectors
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import httptools

from poolparty.arbiter.acceptor import Acceptor
from poolparty.arbiter.path_socket import PathSocket
from poolparty.arbiter.seats import earlier
from poolparty.errors import ConfigError, ControlError
from poolparty.settings import complaint
from poolparty.stats import report
from poolparty.stats.history import History
from poolparty.wire.control import parse_int

MAX_CLIENTS = 128
"""Connections at once; the next is closed."""

MAX_REQUEST = 16 * 1024
"""Bytes of one request, its head and body."""

IDLE_TIMEOUT = 75.0
"""Seconds a connection may do nothing, and a client may take for a request or an answer."""

BIND_RETRY = 1.0
"""Seconds until an address that the predecessor in an upgrade still has is tried again."""

BACKLOG = 128

LEAST_WEIGHT = 4
"""Percent of its weight that a server without a free child has. HAProxy rounds down, its weights end at 256,
and one of 0 is the same as draining. With 4 %, servers that are weighted 25 to 250 by their size keep that
proportion while all of them are busy."""

ACTION_HEADER = "x-poolparty"
"""What an action wants to see: a page of somebody else's cannot make a browser send it without asking."""

STATUS_PAGE = Path(__file__).with_name("status.html")


class Log(Protocol):
    """What is used of the relay's log, or of a logger."""

    def info(self, message: str, *args: object) -> None: ...
    def warning(self, message: str, *args: object) -> None: ...
    def error(self, message: str, *args: object) -> None: ...


class Pool(Protocol):
    """What is used of the PoolThread. pool: the name of one; None: all of them, or the only one.
    ControlError: there is none of that name."""

    @property
    def selector(self) -> selectors.BaseSelector: ...
    @property
    def history(self) -> History | None: ...
    def stats(self) -> dict[str, Any]: ...
    def why_not_ready(self, pool: str | None = None) -> str | None: ...
    def capacity(self) -> tuple[str | None, float]: ...
    def spawn_workers(self, count: int, pool: str | None = None) -> None: ...
    def remove_workers(self, count: int, pool: str | None = None) -> None: ...
    def restart_workers(
        self, done: Callable[[str | None], None], why: str, pool: str | None = None
    ) -> None: ...
    def drain_worker(self, pid: int) -> None: ...
    def kill_worker(self, pid: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes out: status, media type, body, further fields."""

    status: int
    content_type: str
    body: bytes
    fields: tuple[tuple[str, str], ...] = ()


TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


def _text(status: int, sentence: str, *fields: tuple[str, str]) -> Answer:
    return Answer(status, TEXT, sentence.encode() + b"\n", fields)


def _health(pool: Pool, query: Mapping[str, str], private: bool) -> Answer:
    return _text(200, "ok")


def _ready(pool: Pool, query: Mapping[str, str], private: bool) -> Answer:
    """Of all pools, or of the one that the query names."""
    reason = pool.why_not_ready(query.get("pool"))
    return _text(200, "ok") if reason is None else _text(503, f"not ready: {reason}")


def _metrics(pool: Pool, query: Mapping[str, str], private: bool) -> Answer:
    from poolparty.stats import metrics  # an arbiter that nobody scrapes does without the library

    return Answer(200, metrics.CONTENT_TYPE, metrics.render(pool.stats()))


def _stats(pool: Pool, query: Mapping[str, str], private: bool) -> Answer:
    return Answer(200, JSON, report.one_line(pool.stats()).encode())


def _history(pool: Pool, query: Mapping[str, str], private: bool) -> Answer:
    """What the status page asks for, again and again. since: the number of the last sample that it has."""
    samples = [] if pool.history is None else pool.history.since(_number(query, "since", 0))
    page = {"private": private, "stats": pool.stats(), "history": samples}
    return Answer(200, JSON, json.dumps(page).encode() + b"\n")


def _page(pool: Pool, query: Mapping[str, str], private: bool) -> Answer:
    body = STATUS_PAGE.read_bytes()
    return Answer(200, "text/html; charset=utf-8", body, (("Content-Security-Policy", _policy(body)),))


def _policy(page: bytes) -> str:
    """The page's own script and style by their hashes, its icon, and nothing else from anywhere."""
    sources = {}
    for kind in ("script", "style"):
        blocks = re.findall(rb"<%s>(.*?)</%s>" % (kind.encode(), kind.encode()), page, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(block).digest()).decode() for block in blocks)
        sources[kind] = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


PAGES: Mapping[str, Callable[[Pool, Mapping[str, str], bool], Answer]] = {
    "/": _page,
    "/health": _health,
    "/ready": _ready,
    "/metrics": _metrics,
    "/stats.json": _stats,
    "/history.json": _history,
}
"""What a GET or HEAD of a path answers; the last argument tells whether the listener is private."""


def _restart(pool: Pool, query: Mapping[str, str]) -> None:
    pool.restart_workers(lambda error: None, "asked for on the admin listener", query.get("pool"))


def _spawn(pool: Pool, query: Mapping[str, str]) -> None:
    pool.spawn_workers(_number(query, "count", 1), query.get("pool"))


def _remove(pool: Pool, query: Mapping[str, str]) -> None:
    pool.remove_workers(_number(query, "count", 1), query.get("pool"))


def _drain(pool: Pool, query: Mapping[str, str]) -> None:
    pool.drain_worker(_number(query, "pid"))


def _kill(pool: Pool, query: Mapping[str, str]) -> None:
    pool.kill_worker(_number(query, "pid"))


ACTIONS: Mapping[str, Callable[[Pool, Mapping[str, str]], None]] = {
    "/restart-workers": _restart,
    "/spawn-workers": _spawn,
    "/remove-workers": _remove,
    "/drain": _drain,
    "/kill": _kill,
}
"""What a POST to a path does, on a private listener; parameters stand in the query."""


def _number(query: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in query and default is not None:
        return default
    try:
        number = parse_int(query.get(name, ""))
    except ControlError:
        number = -1
    if number < 0:
        raise ControlError(f"{name} has to be a whole number")
    return number


# --- listeners ---------------------------------------------------------------------------------------------


class Listener:
    """One address: `HOST:PORT` or `unix:PATH`, as an option has it. Its clients go to `welcome`."""

    def __init__(
        self,
        option: str,
        address: tuple[str, int] | str,
        pool: Pool,
        log: Log,
        welcome: Callable[[socket.socket], None],
    ) -> None:
        self._option = option
        self.address = address
        self._log = log
        self._path = PathSocket(option, address, log) if isinstance(address, str) else None
        self._socket: socket.socket | None = None
        self._acceptor = Acceptor(option, lambda: pool.selector, log, welcome)
        self._bind_again: float | None = None

    @property
    def private(self) -> bool:
        """Whether only users of this machine can reach it: by loopback, or its owner by a Unix socket."""
        return isinstance(self.address, str) or is_loopback(self.address[0])

    @property
    def port(self) -> int | None:
        """The TCP port that it listens on, also where the address says 0."""
        return None if self._socket is None else int(self._socket.getsockname()[1])

    def open(self, takeover: bool) -> None:
        """Listen. ConfigError: the address cannot be had.

        takeover: an address that our predecessor in an upgrade still has is taken once it has gone.
        """
        if self._path is not None:
            self._path.open(takeover, forget=self._acceptor.stop)
            assert self._path.listener is not None
            self._acceptor.start(self._path.listener)
            return
        if self._socket is not None:
            return  # an upgrade that was rolled back has not taken it
        try:
            self._bind()
        except OSError as error:
            if takeover and error.errno == errno.EADDRINUSE:
                self._bind_again = time.monotonic() + BIND_RETRY
                return
            assert not isinstance(self.address, str)
            host, port = self.address
            wrong = f"the address cannot be listened on ({error.strerror}); give another one"
            raise ConfigError(complaint(self._option, f"{host}:{port}", wrong)) from None

    def _bind(self) -> None:
        self._bind_again = None
        assert not isinstance(self.address, str)
        host, port = self.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._socket = listener
        self._acceptor.start(listener)
        shown = f"[{host}]" if ":" in host else host
        self._log.info("%s: listening at %s:%d", self._option, shown, self.port)

    def due(self) -> float | None:
        return earlier(self._acceptor.due, self._bind_again)

    def tick(self, now: float) -> None:
        self._acceptor.tick(now)
        if self._bind_again is not None and self._bind_again <= now:
            try:
                self._bind()
            except OSError:
                self._bind_again = now + BIND_RETRY

    def close(self) -> None:
        self._acceptor.stop()
        self._bind_again = None
        if self._path is not None:
            self._path.close()
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptor and nothing else: in a process forked from the arbiter."""
        if self._path is not None:
            self._path.abandon()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is this machine's alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class AdminServer:
    """The admin listener, the agent check, and their clients; either may be absent."""

    def __init__(
        self,
        pool: Pool,
        address: tuple[str, int] | str | None,
        agent_address: tuple[str, int] | str | None,
        log: Log,
    ) -> None:
        self.pool = pool
        self.log = log
        self._sessions: set[_Session] = set()
        self._listeners: list[Listener] = []
        self.private = False
        self._on_loopback = not isinstance(address, str)
        if address is not None:
            listener = Listener("admin_address", address, pool, log, self._welcome)
            self.private = listener.private
            self._listeners.append(listener)
        if agent_address is not None:
            self._listeners.append(Listener("agent_address", agent_address, pool, log, self._tell_agent))

    def open(self, takeover: bool = False) -> None:
        """Listen. ConfigError: an address cannot be had."""
        for listener in self._listeners:
            listener.open(takeover)

    def close(self) -> None:
        """End everything."""
        for listener in self._listeners:
            listener.close()
        for session in list(self._sessions):
            session.close()

    def abandon(self) -> None:
        """Close the descriptors and nothing else: in a process forked from the arbiter."""
        for listener in self._listeners:
            listener.abandon()
        for session in self._sessions:
            session.socket.close()
        self._sessions = set()

    def adopt(self, channel: socket.socket) -> None:
        """Serve an HTTP worker that passes on what its clients ask for below admin_prefix."""
        self._sessions.add(_Session(self, channel, private=False, lasting=True))

    def deadline(self) -> float | None:
        """When `tick` wants to be called."""
        due = min((session.deadline for session in self._sessions), default=None)
        for listener in self._listeners:
            due = earlier(due, listener.due())
        return None if due == NEVER else due

    def tick(self, now: float) -> None:
        """Close what has idled too long; go on where a pause is over."""
        for listener in self._listeners:
            listener.tick(now)
        for session in [session for session in self._sessions if session.deadline <= now]:
            session.close()

    def _welcome(self, client: socket.socket) -> None:
        if len(self._sessions) >= MAX_CLIENTS:
            client.close()
            return
        self._sessions.add(_Session(self, client, self.private))

    def _tell_agent(self, client: socket.socket) -> None:
        """HAProxy's agent check: one line, and the end."""
        with client, contextlib.suppress(OSError):  # it asks again
            client.send(agent_line(*self.pool.capacity()).encode(), socket.MSG_NOSIGNAL)

    def forget(self, session: _Session) -> None:
        """A client has gone."""
        self._sessions.discard(session)

    def answer(self, request: _Request, private: bool) -> Answer:
        """What a request is answered; `private`: whether actions are allowed."""
        if self._on_loopback and private and not _host_is_ours(request.headers.get("host", "")):
            # Somebody's web page has given its own name this address, to read what is here.
            return _text(403, "this listener is asked by its address, or as localhost")
        path, _, query = request.target.partition("?")
        # A name or number that a script has left empty is wrong, and does not stand for all pools.
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        if request.method in ("GET", "HEAD"):
            page = PAGES.get(path)
            if page is not None:
                try:
                    return page(self.pool, parameters, private)
                except ControlError as error:
                    return _text(400, str(error))
            if path not in ACTIONS:
                return _text(404, f"there is no such page; there are: {' '.join(PAGES)}")
            return _text(405, "this is an action: POST it", ("Allow", "POST"))
        action = ACTIONS.get(path)
        if request.method != "POST" or action is None:
            return _text(405, "only pages are here: GET them", ("Allow", "GET, HEAD"))
        if not private:
            return _text(403, "this listener is not private: it shows, and does nothing")
        if ACTION_HEADER not in request.headers:
            return _text(403, "an action needs the header X-Poolparty, with any value")
        try:
            action(self.pool, parameters)
        except ControlError as error:
            return _text(400, str(error))
        self.log.info("admin: %s", path.removeprefix("/") + (f" {query[:200]!r}" if query else ""))
        return _text(200, "ok")


def _host_is_ours(host: str) -> bool:
    name = host.rpartition(":")[0] if re.search(r":[0-9]*\Z", host) else host
    return not name or is_loopback(name)


def agent_line(obstacle: str | None, free: float) -> str:
    """What HAProxy's agent check reads: obstacle is `drain` or `down`, free the share of children (0 to 1)
    that could take a request at once."""
    if obstacle is not None:
        return f"{obstacle}\n"
    return f"up ready {max(round(100 * free), LEAST_WEIGHT)}%\n"


# --- sessions ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Request:
    method: str = ""
    target: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    keep_alive: bool = True


NEVER = float("inf")
LINE_END = b"\r\n"


class _Session:
    """One connection. httptools calls its on_… methods."""

    def __init__(
        self, server: AdminServer, client: socket.socket, private: bool, lasting: bool = False
    ) -> None:
        self.socket = client
        self._server = server
        self._private = private
        self._lasting = lasting
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[str, str] = {}
        self._requests: list[_Request] = []
        self._size = 0
        self._output = bytearray()
        self._leaving = False
        self._mask = 0
        self._rest()
        self._watch()

    def _rest(self) -> None:
        self.deadline = NEVER if self._lasting else time.monotonic() + IDLE_TIMEOUT

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("latin-1")
        target = self._url.decode("latin-1")
        keep = self._parser.should_keep_alive()
        self._requests.append(_Request(method, target, self._headers, keep))
        self._url, self._headers, self._size = b"", {}, 0

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_READ and not self._receive():
            self.close()
            return
        if not self._flush() or (self._leaving and not self._output):
            self.close()
            return
        self._watch()

    def _receive(self) -> bool:
        """Take in and answer what has arrived. False: the connection is at its end."""
        try:
            data = self.socket.recv(MAX_REQUEST)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        if not data:
            return False
        self._rest()
        self._size += len(data)
        faulty = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            faulty = True
        requests, self._requests = self._requests, []
        for request in requests:
            if not self._leaving:
                self._say(request, self._answer(request))
        if faulty:
            self._refuse(400, "this is no HTTP request")
        elif self._size > MAX_REQUEST:
            self._refuse(431, "the request is too large")
        return True

    def _answer(self, request: _Request) -> Answer:
        try:
            return self._server.answer(request, self._private)
        except Exception:
            # The pool serves on: a fault in what one client asked for is no reason to end it.
            self._server.log.error("admin: %s failed: %s", request.target[:200], traceback.format_exc())
            return _text(500, "internal error, see the server's log")

    def _refuse(self, status: int, sentence: str) -> None:
        if not self._leaving:
            self._say(_Request(keep_alive=False), _text(status, sentence))

    def _say(self, request: _Request, answer: Answer) -> None:
        fields = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: " + ("keep-alive" if request.keep_alive else "close"),
            *(f"{name}: {value}" for name, value in answer.fields),
        ]
        self._output += "\r\n".join(fields).encode() + 2 * LINE_END
        if request.method != "HEAD":
            self._output += answer.body
        self._leaving = not request.keep_alive

    def _flush(self) -> bool:
        if self._output:
            try:
                sent = self.socket.send(self._output, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                return False
            del self._output[:sent]
            if sent:
                self._rest()
        return True

    def _watch(self) -> None:
        # A client that does not take its answer is read no further.
        mask = selectors.EVENT_WRITE if self._output else selectors.EVENT_READ
        if mask == self._mask:
            return
        selector = self._server.pool.selector
        if self._mask:
            selector.modify(self.socket, mask, self._ready)
        else:
            selector.register(self.socket, mask, self._ready)
        self._mask = mask

    def close(self) -> None:
        if self._mask:
            self._server.pool.selector.unregister(self.socket)
            self._mask = 0
        self.socket.close()
        self._server.forget(self)
