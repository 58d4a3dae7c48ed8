"""The gunicorn worker class: one HTTP worker process, an event loop with the HTTP server in it.

gunicorn forks it and supervises it (heartbeat, signals); what it serves is in server.py. TERM drains, QUIT
and ABRT leave at once, USR1 reopens the logs; the terminal's INT is the arbiter's alone.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

from gunicorn import sock as gunicorn_sock
from gunicorn.workers.base import Worker

from poolparty import log_files
from poolparty.arbiter.arbiter import check_config
from poolparty.arbiter.title import set_title
from poolparty.settings import Options
from poolparty.worker.connection import Connection
from poolparty.worker.proxied import ProxiedListener
from poolparty.worker.server import TICK, Server

if TYPE_CHECKING:
    from poolparty.arbiter.pool_thread import Seat

HEARTBEAT = 1.0
"""Seconds between two signs of life for gunicorn's `timeout`."""

LOOP_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1)
"""Signals that the event loop handles."""

ACCEPT_DRAIN = 1.0
"""Seconds that a draining HTTP worker goes on accepting what the kernel has queued for it already."""


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Stands where gunicorn expects an application module; GWorker never calls it."""
    start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
    return [b"poolparty serves its pool with -k poolparty.GWorker only\n"]


class GWorker(Worker):
    """Serves HTTP by children leased from the arbiter's pool. `seat` is its place, made before the fork."""

    def __init__(self, *args: Any, seat: Seat | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seat = seat
        self.loop: asyncio.AbstractEventLoop
        self.server: Server
        self._listeners: list[asyncio.AbstractServer | ProxiedListener] = []
        self._leave_at_once = False
        self._develops = False

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called by gunicorn in the master before the first fork: turns its arbiter into ours."""
        check_config(cfg, log)

    def init_process(self) -> None:
        """Called by gunicorn in the new process."""
        assert self.seat is not None
        self.seat.enter_worker()
        set_title("poolparty: HTTP worker")
        self.loop = _new_event_loop()
        asyncio.set_event_loop(self.loop)
        # gunicorn's own reloader would run in this process, and end it; ours restarts the children.
        self._develops = self.cfg.reload
        self.cfg.settings["reload"].set(False)
        super().init_process()

    def load_wsgi(self) -> None:
        """There is no application in this process."""
        self.cfg.settings["reload"].set(self._develops)

    def init_signals(self) -> None:
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGWINCH, signal.SIG_IGN)
        # uvloop loses a signal that comes before it runs, so from here on they wait until it does.
        signal.pthread_sigmask(signal.SIG_BLOCK, LOOP_SIGNALS)
        add = self.loop.add_signal_handler
        add(signal.SIGTERM, self._on_term)
        add(signal.SIGQUIT, self._on_quit)
        add(signal.SIGUSR1, log_files.reopen, self.log)
        signal.signal(signal.SIGABRT, self.handle_abort)

    def _on_term(self) -> None:
        self.alive = False
        self.server.drain()
        set_title("poolparty: HTTP worker, draining")

    def _on_quit(self) -> None:
        if not self._leave_at_once:
            self._leave_at_once = True
            self.alive = False
            self.cfg.worker_int(self)

    def _on_orphaned(self) -> None:
        self._leave_at_once = True
        self.alive = False

    def run(self) -> None:
        """Serve until told to leave; then return, and gunicorn ends the process."""
        assert self.seat is not None
        # What is here now stays: no garbage collection need look at it again, nor copy its pages.
        gc.freeze()
        self.server = Server(
            self.cfg, Options.from_cfg(self.cfg), self.log, self.seat, self.loop, self._on_orphaned
        )
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            self.loop.close()

    async def _serve(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LOOP_SIGNALS)
        context = gunicorn_sock.ssl_context(self.cfg) if self.cfg.is_ssl else None
        server = self.server
        tls: dict[str, Any] = {"ssl": context}
        if context is not None:
            # Both count as a client's slowness; the second is also what it has to take the end of an answer.
            tls |= {
                "ssl_handshake_timeout": server.read_timeout,
                "ssl_shutdown_timeout": server.write_timeout,
            }
        for listener in self.sockets:
            if self.cfg.proxy_protocol != "off":
                self._listeners.append(ProxiedListener(server, listener.sock, tls))
                continue
            self._listeners.append(
                await self.loop.create_server(
                    lambda: Connection(server), sock=listener.sock, backlog=self.cfg.backlog, **tls
                )
            )
        server.announce()
        while self.alive:
            await self._tick()
        deadline = monotonic() + self.cfg.graceful_timeout
        await self._stop_listening()
        while not self._leave_at_once and not server.finished and monotonic() < deadline:
            await self._tick()
        for connection in list(server.connections):
            connection.transport.abort()
        for proxied in self._listeners:
            if isinstance(proxied, ProxiedListener):
                proxied.abort()
        await asyncio.sleep(0)
        if server.static is not None:
            await server.static.close()
        if server.sendfile is not None:
            await server.sendfile.sender.close()

    async def _tick(self) -> None:
        if os.getppid() != self.ppid and not self._leave_at_once:
            # Its channel says so too, unless somebody else has a copy of the arbiter's end.
            self.server.arbiter_died()
            return
        self.server.tick()
        self.notify()
        await asyncio.sleep(TICK)

    async def _stop_listening(self) -> None:
        """Close the listening sockets once the kernel's queues are empty: what is in them would be reset."""
        deadline = monotonic() + ACCEPT_DRAIN
        while not self._leave_at_once and monotonic() < deadline and self._connections_wait():
            await asyncio.sleep(0)
        for listener in self._listeners:
            listener.close()
        for sock in self.sockets:
            sock.close()

    def _connections_wait(self) -> bool:
        if not self.sockets:
            return False
        return bool(select.select([listener.sock for listener in self.sockets], [], [], 0)[0])

    def handle_abort(self, sig: int, frame: Any) -> None:
        """gunicorn's time-out: this process hangs."""
        self.alive = False
        self.cfg.worker_abort(self)
        sys.exit(1)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
