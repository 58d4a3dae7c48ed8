"""What the connections of one HTTP worker share: options, a dispatcher for each pool, time limits, counters,
the access log.

A coarse tick looks at deadlines, so that no request needs a timer; the Date field is made once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import tempfile
from collections.abc import Callable
from email.utils import formatdate
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from poolparty.pool.routing import Router
from poolparty.stats.scoreboard import COUNTER_INDEX, SeatWord
from poolparty.worker.access import AccessLog
from poolparty.worker.channel import Channel
from poolparty.worker.connection import Connection
from poolparty.worker.dispatcher import Dispatcher
from poolparty.worker.forwarded import NO_PEER, Proxies, host_and_port
from poolparty.worker.reading import Phase
from poolparty.worker.request import FieldRules
from poolparty.worker.request_id import RequestIds
from poolparty.worker.response import CLOSE, own_response
from poolparty.worker.spooled import Spool

if TYPE_CHECKING:
    from poolparty.arbiter.seats import Seat
    from poolparty.settings import Options
    from poolparty.wire.frames import ResponseHead
    from poolparty.worker.admin_pages import AdminPages
    from poolparty.worker.broken_page import BrokenPage
    from poolparty.worker.request import Request
    from poolparty.worker.sendfile import Sendfile
    from poolparty.worker.static import StaticFiles

TICK = 0.1
"""Seconds between two sweeps over what waits in the queue and runs in children."""

CONNECTION_SWEEP = 0.5
"""Seconds between two sweeps over all connections: it costs some 50 ns for each."""

MAX_REQUEST_LINE = 8190
MAX_REQUEST_FIELDS = 32768
MAX_REQUEST_FIELD_SIZE = 1024 * 1024
"""What gunicorn's limits mean at most, and what 0 (no limit of one's own) means. A field's size it leaves
open; we do not."""

OTHER_DESCRIPTORS = 64
"""What an HTTP worker has open beside connections and leases: its listeners, its logs, a few files."""

DRAIN_LINGER = 1.0
"""Seconds that a draining HTTP worker leaves an idle connection open: a request may be on its way on it."""


def connections_that_fit(wanted: int, file_limit: int, max_children: int) -> int:
    """How many connections there may be, so that clients cannot take the descriptors that leases need.

    Without that room an HTTP worker whose clients have taken all descriptors answers none of them: it cannot
    be lent a child.
    """
    if file_limit == resource.RLIM_INFINITY:
        return wanted
    room = file_limit - OTHER_DESCRIPTORS - 2 * max_children
    return max(min(wanted, max(room, file_limit // 2)), 1)


class Server:
    """The HTTP side of one HTTP worker."""

    def __init__(
        self,
        cfg: Any,
        options: Options,
        log: Any,
        seat: Seat,
        loop: asyncio.AbstractEventLoop,
        on_orphaned: Callable[[], None],
    ) -> None:
        self.cfg = cfg
        self.options = options
        self.log = log
        self.loop = loop
        self.scheme = b"https" if cfg.is_ssl else b"http"
        # Only a trusted proxy may set a field of forwarder_headers or tell the scheme.
        self.rules = FieldRules(cfg.header_map, (), {})
        self.trusted_rules = FieldRules(cfg.header_map, cfg.forwarder_headers, cfg.secure_scheme_headers)
        self.limit_request_line = _bounded(cfg.limit_request_line, MAX_REQUEST_LINE)
        self.limit_request_fields = _bounded(cfg.limit_request_fields, MAX_REQUEST_FIELDS)
        self.limit_request_field_size = _bounded(cfg.limit_request_field_size, MAX_REQUEST_FIELD_SIZE)
        self.head_limit = self.limit_request_line + self.limit_request_fields * (
            self.limit_request_field_size + 4
        )
        self.spool_size = options.request_spool_size
        self.spool = Spool(os.path.abspath(options.request_spool_dir or tempfile.gettempdir()), loop)
        self.read_timeout = options.request_read_timeout
        self.write_timeout = options.request_write_timeout
        self.keepalive = float(cfg.keepalive)
        self.max_connections = connections_that_fit(
            cfg.worker_connections,
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            sum(share.config.options.max_pool_size for share in seat.pools),
        )
        if self.max_connections < cfg.worker_connections:
            log.warning(
                "worker_connections = %d: the limit of open files has room for %d; raise that (ulimit -n)",
                cfg.worker_connections,
                self.max_connections,
            )
        self.draining = False
        self.connections: set[Connection] = set()
        self.words = seat.scoreboard.words
        self.base = seat.scoreboard.seat_base(seat.id)
        channel = Channel(seat.worker_end, loop, self.arbiter_died)
        # One for each pool. The first one's board is the seat's own, on which connections are counted.
        self.dispatchers = [Dispatcher(self, seat, share, channel, loop) for share in seat.pools]
        self.dispatcher = self.dispatchers[0]
        self.router: Router[Dispatcher] | None = None  # with one pool there is nothing to look for
        if len(self.dispatchers) > 1:
            pairs = zip(seat.pools, self.dispatchers, strict=True)
            routes = [(route, dispatcher) for share, dispatcher in pairs for route in share.config.routes]
            self.router = Router(routes, self.dispatcher)
        channel.serve(self.dispatchers)
        self.static: StaticFiles | None = None
        self.broken: BrokenPage | None = None
        # Who may answer a request in the pool's place: mostly nobody, which costs one look at an attribute.
        self.takes: Callable[[Request], bool] | None = None
        if options.static_root is not None:
            from poolparty.worker.static import StaticFiles

            self.static = StaticFiles(self, options)
            self.takes = self.static.takes
        self.sendfile: Sendfile | None = None
        if options.sendfile_root is not None:
            from poolparty.worker.sendfile import Sendfile

            self.sendfile = Sendfile(self, options.sendfile_root)
        if cfg.reload:
            from poolparty.worker.broken_page import BrokenPage

            self.broken = BrokenPage()
            takes, broken = self.takes, self.broken.takes
            self.takes = broken if takes is None else lambda request: takes(request) or broken(request)
        self.admin: AdminPages | None = None
        if options.admin_prefix is not None and seat.admin_end is not None:
            from poolparty.worker.admin_pages import AdminPages

            self.admin = AdminPages(self, options.admin_prefix, seat.admin_end)
            others, admin = self.takes, self.admin.takes
            self.takes = admin if others is None else lambda request: admin(request) or others(request)
        self.ids = RequestIds() if options.request_ids else None
        self.access = AccessLog(log, cfg, options.access_log_json)
        self.access_log = self.access.enabled
        self.date = b""
        self._date_second = 0
        self._flushing: dict[Connection, tuple[float, int]] = {}
        self._drain_deadline = float("inf")
        self._next_sweep = 0.0
        self._boards = [share.scoreboard for share in seat.pools]
        self._on_orphaned = on_orphaned
        self.proxies: Proxies = Proxies(cfg.forwarded_allow_ips)
        self._make_date()

    def announce(self) -> None:
        """It listens: from now on the arbiter counts it as one that serves."""
        self.words[self.base + SeatWord.PID] = os.getpid()

    # --- counting ------------------------------------------------------------------------------------------

    def count(self, column: int) -> None:
        """Add one to a counter of connections, or of what is known of no pool."""
        self.words[self.base + column] += 1

    def add(self, column: int, amount: int) -> None:
        """Add to such a counter."""
        self.words[self.base + column] += amount

    # --- connections ---------------------------------------------------------------------------------------

    def peer(self, transport: asyncio.Transport) -> tuple[str, bool]:
        """The client's address as a child sees it (`host:port`, `[v6]:port`, `@`), and whether it is a
        trusted proxy."""
        name = transport.get_extra_info("peername")
        if not isinstance(name, tuple):
            return NO_PEER, True
        host, port = name[:2]
        return host_and_port(host, port), self.proxies.trusts(host)

    def opened(self, connection: Connection) -> None:
        """A connection was accepted: make room for it if there are too many."""
        connection.transport.set_write_buffer_limits(high=self.options.response_buffer_size)
        self.count(COUNTER_INDEX["connections_accepted"])
        if len(self.connections) >= self.max_connections:
            self._make_room(connection)
        self.connections.add(connection)
        self.words[self.base + SeatWord.CONNECTIONS] = len(self.connections)

    def _make_room(self, newcomer: Connection) -> None:
        """Close the connection that has been idle longest; if none is idle, the newcomer is told to come
        again."""
        self.count(COUNTER_INDEX["connections_dropped"])
        idle = [connection for connection in self.connections if connection.phase is Phase.IDLE]
        if idle:
            min(idle, key=lambda connection: connection.deadline).close()
        else:
            newcomer.transport.write(own_response(503, "too many connections", self.date, False, CLOSE))
            newcomer.close()

    def closed(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        self._flushing.pop(connection, None)
        self.words[self.base + SeatWord.CONNECTIONS] = len(self.connections)

    def watch_flushing(self, connection: Connection) -> None:
        """See that a client takes what is unsent: request_write_timeout without any of it taken ends the
        connection."""
        if connection not in self._flushing:
            self._flushing[connection] = monotonic() + self.write_timeout, connection.flushed()

    # --- time ----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called every TICK seconds."""
        now = monotonic()
        if int(time()) != self._date_second:
            self._make_date()
        for dispatcher in self.dispatchers:
            dispatcher.sweep(now)
        self.spool.clear()
        if self.broken is not None:
            for dispatcher in self.dispatchers:
                self.broken.sweep(dispatcher)
        if self._flushing:
            self._sweep_flushing(now)
        if now >= self._next_sweep:
            self._next_sweep = now + CONNECTION_SWEEP
            for connection in [c for c in self.connections if c.deadline < now]:
                connection.timed_out(now)
        if now >= self._drain_deadline:
            for connection in [c for c in self.connections if c.phase is Phase.IDLE]:
                connection.close()

    def _sweep_flushing(self, now: float) -> None:
        for connection, (deadline, flushed) in list(self._flushing.items()):
            if not connection.transport.get_write_buffer_size():
                del self._flushing[connection]
            elif connection.flushed() != flushed:
                self._flushing[connection] = now + self.write_timeout, connection.flushed()
            elif now >= deadline:
                self.log.info('msg="response write timed out" client="%s"', connection.address)
                connection.transport.abort()

    def _make_date(self) -> None:
        self._date_second = int(time())
        self.date = b"Date: %s\r\n" % formatdate(self._date_second, usegmt=True).encode()

    # --- the end -------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Answer what has been asked, say `Connection: close` with it, and take no new connections.
        Idempotent."""
        if not self.draining:
            self.draining = True
            self._drain_deadline = monotonic() + DRAIN_LINGER
            self.words[self.base + SeatWord.DRAINING] = 1
            for dispatcher in self.dispatchers:
                dispatcher.drain()

    @property
    def finished(self) -> bool:
        """Whether everything that was asked before the drain has been answered."""
        return not self.connections and not any(dispatcher.busy for dispatcher in self.dispatchers)

    def arbiter_died(self) -> None:
        """Nobody manages the children any more: end every one of them, and leave."""
        self.log.critical('msg="the arbiter has died" action="ending all workers"')
        for board in self._boards:
            for pid in board.child_pids():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        self._on_orphaned()

    # --- the access log ------------------------------------------------------------------------------------

    def log_access(
        self,
        connection: Connection,
        request: Request | None,
        status: int,
        size: int,
        head: ResponseHead | None = None,
    ) -> None:
        """One line of the access log, if there is one."""
        if self.access_log:
            self.access.write(connection, request, status, size, head)


def _bounded(value: int, most: int) -> int:
    return value if 0 < value < most else most
