"""The control socket: answers the commands of poolparty.wire.control to many clients at once.

Runs in the arbiter, in the pool thread's select loop and under its lock; only `open` may also be called
before that thread starts. It never blocks and never waits: a client that sends slowly, reads nothing, or
waits for a restart to end holds up nobody else. A client's answers come in the order of its commands.

Input is bounded by what CommandReader takes, output by MAX_PENDING and one answer: commands wait while a
client has more than HIGH_WATER unread, and a stream that is not read is closed.
"""

from __future__ import annotations

import contextlib
import grp
import os
import selectors
import socket
import struct
import time
import traceback
from collections.abc import Callable, Collection
from typing import Any, Protocol

from poolparty.arbiter.acceptor import Acceptor
from poolparty.arbiter.path_socket import PathSocket
from poolparty.arbiter.seats import earlier
from poolparty.errors import ConfigError, ControlError
from poolparty.settings import complaint
from poolparty.stats import report
from poolparty.wire.control import (
    COMMANDS,
    OK,
    UNKNOWN_COMMAND,
    CommandReader,
    error_line,
    parse_int,
    printable,
    split,
)

MAX_CLIENTS = 256
"""Connections at once; the next is refused. Each may pin about 1 MiB, and people have few."""

MAX_PENDING = 1024 * 1024
"""Bytes a stream's client may leave unread before it is closed: hours of collectd's lines."""

HIGH_WATER = 64 * 1024
"""Bytes unread by a client above which its next command waits."""

COMMANDS_A_TURN = 16
"""Commands of one client that are run before others have their turn."""

SO_PEERGROUPS = 59  # <asm-generic/socket.h>
MAX_GROUPS = 256
"""As many as Python's getsockopt has room for; of a process with more only the first group counts."""

DEFAULT_INTERVAL = 10
LOG_LINES = 20
"""Lines of the log that `log` shows unless it is told how many."""

LOG_POLL = 0.2
"""Seconds until who follows the log is sent what is new."""

MAX_INTERVAL = 86_400
"""Seconds between two rounds of collectd-metrics."""


class Log(Protocol):
    """What is used of the relay's log, or of a logger."""

    def info(self, message: str, *args: object) -> None: ...
    def warning(self, message: str, *args: object) -> None: ...
    def error(self, message: str, *args: object) -> None: ...


class Recent(Protocol):
    """What is used of the relay: the log's last lines."""

    @property
    def last_line(self) -> int: ...
    def lines_since(self, number: int) -> list[str]: ...


class Pool(Protocol):
    """What is used of the PoolThread, whose loop calls the data of whatever is registered as `data(mask)`.

    pool: the name of one; None: all of them, or the only one. ControlError: there is none of that name.
    """

    @property
    def selector(self) -> selectors.BaseSelector: ...
    def stats(self) -> dict[str, Any]: ...
    def spawn_workers(self, count: int, pool: str | None = None) -> None: ...
    def remove_workers(self, count: int, pool: str | None = None) -> None: ...
    @property
    def relay(self) -> Recent: ...
    def restart_workers(
        self, done: Callable[[str | None], None], why: str, pool: str | None = None
    ) -> None: ...
    def drain_worker(self, pid: int) -> None: ...
    def kill_worker(self, pid: int) -> None: ...
    def dump_worker(self, pid: int) -> str: ...


class ControlServer:
    """The listening socket and its clients. `uids`, and the members of `group` (a name or a number), may
    connect beside root and the arbiter's own user."""

    def __init__(
        self, pool: Pool, path: str, log: Log, uids: Collection[int] = (), group: str | None = None
    ) -> None:
        self.pool = pool
        self.path = path
        self.log = log
        self._uids = {0, os.geteuid(), *uids}
        self._group = group
        self._gid: int | None = None  # known once it is open
        self._socket = PathSocket("ctl_socket", path, log)
        self._acceptor = Acceptor("control socket", lambda: self.pool.selector, log, self._welcome)
        self._sessions: set[_Session] = set()

    # --- the socket's place in the file system -----------------------------------------------------------

    def open(self, takeover: bool = False) -> None:
        """Listen at the path. Raises ConfigError, with the path untouched, if it is not ours to take.

        takeover: a live server there is our predecessor in an upgrade and is to lose its place. Called again,
        the place is taken again: after an upgrade that was rolled back.
        """
        if self._group is not None:
            self._gid = self._find_group(self._group)
        self._socket.open(takeover, self._gid, self._acceptor.stop)
        assert self._socket.listener is not None
        self._acceptor.start(self._socket.listener)

    def _find_group(self, name: str) -> int:
        try:
            gid = int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
        except KeyError:
            wrong = "there is no such group; make it, or name another"
            raise ConfigError(complaint("ctl_socket_group", name, wrong)) from None
        if os.geteuid() != 0 and gid not in (os.getegid(), *os.getgroups()):
            wrong = "only root may name a group that the server's own user is not in; put the user into it"
            raise ConfigError(complaint("ctl_socket_group", name, wrong))
        return gid

    def close(self) -> None:
        """End everything: who waits for a restart is told, the file is removed."""
        self._acceptor.stop()
        self._socket.close()
        for session in list(self._sessions):
            session.abort("the server is stopping")

    def abandon(self) -> None:
        """Close the descriptors and nothing else: in a process forked from the arbiter."""
        self._socket.abandon()
        for session in self._sessions:
            session.socket.close()
        self._sessions = set()

    # --- the pool thread's loop --------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` wants to be called, in time.monotonic()'s terms."""
        times = [session.due for session in self._sessions if session.due is not None]
        return earlier(self._acceptor.due, min(times, default=None))

    def tick(self, now: float) -> None:
        """Give a turn to every client whose time has come."""
        self._acceptor.tick(now)
        for session in list(self._sessions):
            if session.due is not None and session.due <= now:
                session.turn(now)

    def _welcome(self, client: socket.socket) -> None:
        refusal = self._why_not(client)
        if refusal:
            _send_what_fits(client, error_line(refusal).encode())
            client.close()
        else:
            self._sessions.add(_Session(self, client))

    def _why_not(self, client: socket.socket) -> str | None:
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, gid = struct.unpack("3i", credentials)
        if uid not in self._uids and (self._gid is None or self._gid not in (gid, *_groups_of(client))):
            self.log.warning("control socket: refused process %d of user %d", pid, uid)
            return "permission denied"
        if len(self._sessions) >= MAX_CLIENTS:
            self.log.warning("control socket: refused process %d, there are %d clients", pid, MAX_CLIENTS)
            return "too many clients"
        return None

    def session_closed(self, session: _Session) -> None:
        """A client has gone."""
        self._sessions.discard(session)


class _Session:
    """One client. It is closed once it has left or said `exit`, and has been sent what it is owed."""

    def __init__(self, server: ControlServer, client: socket.socket) -> None:
        self.socket = client
        self.due: float | None = None  # when it wants its turn though nothing arrives
        self._server = server
        self._reader = CommandReader()
        self._output = bytearray()
        self._more = True  # it may still send
        self._waiting = False  # for a command that takes long
        self._stream: Callable[[float], bool] | None = None  # goes on until the client leaves
        self._interval = DEFAULT_INTERVAL  # of collectd-metrics, in seconds
        self._label = ""
        self._next_metrics = 0.0
        self._next_line = 0  # of the log
        self._leaving = False  # close when all is sent
        self._in_turn = False
        self._mask = 0
        self._watch()

    # --- events ------------------------------------------------------------------------------------------

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_READ and self._more and not self._receive():
            self.close()
            return
        self.turn(time.monotonic())

    def _receive(self) -> bool:
        """Take what has arrived. False: the connection is broken."""
        try:
            data = self.socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        self._more = bool(data)
        self._reader.feed(data)
        return True

    def turn(self, now: float) -> None:
        """Send what can be sent, run what can be run, and say what is waited for next."""
        if self._in_turn:
            return  # a command that was to take long has ended at once
        self._in_turn = True
        self.due = None
        try:
            alive = self._flush() and self._run(now) and self._flush()
        except Exception:
            # The pool serves on: a fault in what one client asked for is no reason to end it.
            self._server.log.error("control socket: a connection is closed: %s", traceback.format_exc())
            alive = False
        finally:
            self._in_turn = False
        if len(self._output) > HIGH_WATER and self._stream is None:
            self.due = None  # the next turn is when some of it can be sent
        done = self._leaving or not (self._more or self._waiting or self._stream or self.due is not None)
        if not alive or (done and not self._output):
            self.close()
        else:
            self._watch()

    def _watch(self) -> None:
        """Register for what is wanted now; a descriptor for which nothing is wanted cannot be registered."""
        mask = selectors.EVENT_WRITE if self._output else 0
        if self._more and not self._reader.full and not self._leaving:
            mask |= selectors.EVENT_READ
        if mask == self._mask:
            return
        selector = self._server.pool.selector
        if not mask:
            selector.unregister(self.socket)
        elif not self._mask:
            selector.register(self.socket, mask, self._ready)
        else:
            selector.modify(self.socket, mask, self._ready)
        self._mask = mask

    def _flush(self) -> bool:
        """Send what the client takes. False: it has gone."""
        sent = _send_what_fits(self.socket, self._output)
        if sent is None:
            return False
        del self._output[:sent]
        return True

    def close(self) -> None:
        if self._mask:
            self._server.pool.selector.unregister(self.socket)
            self._mask = 0
        # A process forked meanwhile may hold a copy of the descriptor, and the client would wait for the end.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._waiting = False
        self.due = None
        self._server.session_closed(self)

    def abort(self, why: str) -> None:
        """Close now, with an answer to who still waits for one."""
        if self._waiting:
            self._output += error_line(why).encode()
        self._flush()
        self.close()

    # --- commands ----------------------------------------------------------------------------------------

    def _run(self, now: float) -> bool:
        """Run a turn's worth of commands. False: the client is to be closed."""
        for _ in range(COMMANDS_A_TURN):
            if self._stream is not None:
                return self._stream(now)
            if self._waiting or self._leaving:
                return True
            if len(self._output) > HIGH_WATER:
                break
            try:
                text = self._reader.next()
            except ControlError as error:
                self._answer(error)
                self._leaving = True
                return True
            if text is None:
                return True
            self._command(text)
        self.due = now
        return True

    def _send_metrics(self, now: float) -> bool:
        if now >= self._next_metrics:
            if len(self._output) > MAX_PENDING:
                return False
            host = socket.gethostname() or "_unknown_"
            stats = self._server.pool.stats()
            self._output += report.collectd(stats, host, self._interval, self._label, time.time()).encode()
            self._next_metrics = max(self._next_metrics, now - self._interval) + self._interval
        self.due = self._next_metrics
        return True

    def _follow_log(self, now: float) -> bool:
        if len(self._output) <= MAX_PENDING:
            self._send_log()
            self.due = now + LOG_POLL
            return True
        return False

    def _send_log(self) -> None:
        relay = self._server.pool.relay
        last = relay.last_line
        self._output += "".join(line + "\n" for line in relay.lines_since(self._next_line)).encode()
        self._next_line = last + 1

    def _command(self, text: str) -> None:
        try:
            words = split(text)
            if words:
                handler = HANDLERS.get(words[0])
                if handler is None:
                    raise ControlError(UNKNOWN_COMMAND)
                answered = handler(self, words[1:])
            else:
                answered = False
        except ControlError as error:
            self._answer(error)
        except Exception:
            self._server.log.error("control socket: %r failed: %s", text[:200], traceback.format_exc())
            self._answer(ControlError("internal error, see the server's log"))
        else:
            if not answered:
                self._answer()

    def _answer(self, error: ControlError | None = None) -> None:
        self._output += (OK if error is None else error_line(str(error))).encode()

    # Handlers. They return whether the answer's end is given otherwise, or later.

    def _log_command(self, *words: str) -> None:
        self._server.log.info("control socket: %s", " ".join(words))

    def _restart_workers(self, arguments: list[str]) -> bool:
        if len(arguments) > 1:
            raise ControlError("expected the name of one pool at most; without one, all are restarted")
        pool = arguments[0] if arguments else None
        self._waiting = True

        def done(error: str | None) -> None:
            if not self._waiting:
                return  # the client has gone, or was answered at the server's stop
            self._waiting = False
            self._answer(None if error is None else ControlError(error))
            self.turn(time.monotonic())

        try:
            self._server.pool.restart_workers(done, "asked for on the control socket", pool)
        except BaseException:
            self._waiting = False
            raise
        return True

    def _spawn_workers(self, arguments: list[str]) -> bool:
        self._server.pool.spawn_workers(*self._count_and_pool("spawn-workers", arguments))
        return False

    def _remove_workers(self, arguments: list[str]) -> bool:
        self._server.pool.remove_workers(*self._count_and_pool("remove-workers", arguments))
        return False

    def _count_and_pool(self, command: str, arguments: list[str]) -> tuple[int, str | None]:
        if len(arguments) > 2:
            raise ControlError("expected how many workers, and behind that the name of one pool at most")
        pool = arguments[1] if len(arguments) > 1 else None
        return self._count(command, arguments[:1], *arguments[1:]), pool

    def _count(self, command: str, arguments: list[str], *further: str) -> int:
        if len(arguments) != 1:
            raise ControlError("expected a single argument")
        count = max(parse_int(arguments[0]), 0)
        self._log_command(command, str(count), *map(printable, further))
        return count

    def _stats(self, arguments: list[str]) -> bool:
        if arguments == ["--json"]:
            self._output += report.one_line(self._server.pool.stats()).encode()
        else:
            _expect_none(arguments)
            self._output += report.text(self._server.pool.stats()).encode()
        return False

    def _collectd_metrics(self, arguments: list[str]) -> bool:
        if len(arguments) > 2:
            self._output += b"usage: collectd-metrics [interval] [label-suffix]\n"
            raise ControlError("unexpected arguments")
        try:
            interval = parse_int(arguments[0]) if arguments else DEFAULT_INTERVAL
        except ControlError:
            interval = DEFAULT_INTERVAL  # as the original
        if interval <= 0:
            interval = DEFAULT_INTERVAL
        self._interval = min(interval, MAX_INTERVAL)
        self._label = arguments[1] if len(arguments) == 2 else ""
        self._stream = self._send_metrics
        self._next_metrics = time.monotonic()
        return True

    def _metrics(self, arguments: list[str]) -> bool:
        _expect_none(arguments)
        from poolparty.stats import metrics  # an arbiter that nobody scrapes does without the library

        self._output += metrics.render(self._server.pool.stats())
        return False

    def _ps(self, arguments: list[str]) -> bool:
        _expect_none(arguments)
        self._output += report.processes(self._server.pool.stats()).encode()
        return False

    def _drain(self, arguments: list[str]) -> bool:
        self._server.pool.drain_worker(self._count("drain", arguments))
        return False

    def _kill(self, arguments: list[str]) -> bool:
        self._server.pool.kill_worker(self._count("kill", arguments))
        return False

    def _dump(self, arguments: list[str]) -> bool:
        self._output += self._server.pool.dump_worker(self._count("dump", arguments)).encode()
        return False

    def _log(self, arguments: list[str]) -> bool:
        follows = arguments[:1] == ["-f"]
        if len(arguments) > 1 + follows:
            raise ControlError("unexpected arguments")
        count = max(parse_int(arguments[-1]), 0) if len(arguments) > follows else LOG_LINES
        self._next_line = self._server.pool.relay.last_line - count + 1
        if follows:
            self._stream = self._follow_log
            return True
        self._send_log()
        return False

    def _exit(self, arguments: list[str]) -> bool:
        self._leaving = True
        return True


def _expect_none(arguments: list[str]) -> None:
    if arguments:
        raise ControlError("unexpected arguments")


HANDLERS: dict[str, Callable[[_Session, list[str]], bool]] = {
    "restart-workers": _Session._restart_workers,
    "spawn-workers": _Session._spawn_workers,
    "remove-workers": _Session._remove_workers,
    "stats": _Session._stats,
    "collectd-metrics": _Session._collectd_metrics,
    "ps": _Session._ps,
    "drain": _Session._drain,
    "kill": _Session._kill,
    "dump": _Session._dump,
    "log": _Session._log,
    "metrics": _Session._metrics,
    "exit": _Session._exit,
}
assert list(HANDLERS) == [command.name for command in COMMANDS]


def _send_what_fits(client: socket.socket, data: bytes | bytearray) -> int | None:
    """How many bytes were sent; None: the client has gone."""
    if not data:
        return 0
    try:
        return client.send(data, socket.MSG_NOSIGNAL)
    except (BlockingIOError, InterruptedError):
        return 0
    except OSError:
        return None


def _groups_of(client: socket.socket) -> tuple[int, ...]:
    """The supplementary groups that the process at the other end had when it connected.

    Asked of the kernel (Linux 4.13): a look into the user database may wait for a server elsewhere.
    """
    try:
        packed = client.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MAX_GROUPS)
    except OSError:
        return ()
    return struct.unpack(f"{len(packed) // 4}I", packed)
