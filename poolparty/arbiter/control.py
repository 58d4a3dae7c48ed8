"""The control socket: answers the commands of poolparty.wire.control to many clients at once.

Runs in the arbiter, in the pool thread's select loop and under its lock; only `open` may also be called
before that thread starts. It never blocks and never waits: a client that sends slowly, reads nothing, or
waits for a restart to end holds up nobody else. A client's answers come in the order of its commands.

Input is bounded by what CommandReader takes, output by MAX_PENDING and one answer: commands wait while a
client has more than HIGH_WATER unread, and a stream that is not read is closed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import selectors
import socket
import stat
import struct
import time
import traceback
from collections.abc import Callable, Collection
from typing import Any, Protocol

from poolparty.errors import ConfigError, ControlError
from poolparty.settings import complaint
from poolparty.stats import report
from poolparty.wire.control import COMMANDS, OK, UNKNOWN_COMMAND, CommandReader, error_line, parse_int, split

MAX_CLIENTS = 256
"""Connections at once; the next is refused. Each may pin about 1 MiB, and people have few."""

MAX_PENDING = 1024 * 1024
"""Bytes a stream's client may leave unread before it is closed: hours of collectd's lines."""

HIGH_WATER = 64 * 1024
"""Bytes unread by a client above which its next command waits."""

COMMANDS_A_TURN = 16
"""Commands of one client that are run before others have their turn."""

MAX_SOCKET_PATH = 107
"""sun_path is 108 bytes on Linux, one of them the terminating NUL."""

BACKLOG = 128
MODE = 0o600
GROUP_MODE = 0o660
SO_PEERGROUPS = 59  # <asm-generic/socket.h>
MAX_GROUPS = 256
"""As many as Python's getsockopt has room for; of a process with more only the first group counts."""

CLAIM_TIMEOUT = 1.0
"""Seconds to wait for another server that claims a socket in the same directory at this moment."""

ACCEPT_PAUSE = 1.0
"""Seconds without accepting after that has failed."""

DEFAULT_INTERVAL = 10
MAX_INTERVAL = 86_400
"""Seconds between two rounds of collectd-metrics."""


class Log(Protocol):
    """What is used of the relay's log, or of a logger."""

    def info(self, message: str, *args: object) -> None: ...
    def warning(self, message: str, *args: object) -> None: ...
    def error(self, message: str, *args: object) -> None: ...


class Pool(Protocol):
    """What is used of the PoolThread, whose loop calls the data of whatever is registered as `data(mask)`."""

    @property
    def selector(self) -> selectors.BaseSelector: ...
    def stats(self) -> dict[str, Any]: ...
    def spawn_workers(self, count: int) -> None: ...
    def remove_workers(self, count: int) -> None: ...
    def restart_workers(self, done: Callable[[str | None], None]) -> None: ...


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
        self._listener: socket.socket | None = None
        self._place = ""  # the path, whatever the working directory will be
        self._inode = (0, 0)  # that of the socket's file
        self._accept_again: float | None = None  # when, after it has failed
        self._sessions: set[_Session] = set()

    # --- the socket's place in the file system -----------------------------------------------------------

    def open(self, takeover: bool = False) -> None:
        """Listen at the path. Raises ConfigError, with the path untouched, if it is not ours to take.

        takeover: a live server there is our predecessor in an upgrade and is to lose its place. Called again,
        the place is taken again: after an upgrade that was rolled back.
        """
        place = os.path.abspath(self.path)
        if self._group is not None:
            self._gid = self._find_group(self._group)
        try:
            folder_fd = _open_folder(os.path.dirname(place))
        except OSError as error:
            raise self._refusal(f"its directory cannot be used ({error.strerror}); make it") from None
        try:
            _lock(folder_fd)
            if not takeover:
                self._check(place, folder_fd)
            listener, inode = _bind(place, folder_fd, self._gid)
        except OSError as error:
            raise self._refusal(
                f"no socket can be made there ({error.strerror}); name another path"
            ) from None
        finally:
            os.close(folder_fd)  # and with it the lock
        self._forget_listener()
        self._listener, self._place, self._inode = listener, place, inode
        self._listen()

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

    def _check(self, place: str, folder_fd: int) -> None:
        """Whether a new socket may be put there: nothing is, or a socket that nobody answers on."""
        try:
            there = os.lstat(place)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(there.st_mode):
            raise self._refusal(
                "there is a file that is no socket, and it is left alone; move it or name another path"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            answer = probe.connect_ex(_address(place, folder_fd))
        if answer in (errno.ECONNREFUSED, errno.ENOENT):
            return  # left behind by a crash
        if answer in (0, errno.EAGAIN):  # EAGAIN: it listens, and has its backlog full
            raise self._refusal("another server answers there; stop that one or name another path")
        raise self._refusal(
            f"there is a socket of somebody else's ({os.strerror(answer)}); name another path"
        )

    def _refusal(self, wrong: str) -> ConfigError:
        return ConfigError(f"ctl_socket = {self.path!r}: {wrong}.")

    def _forget_listener(self) -> None:
        """Close the listening socket, and remove its file if that is still ours."""
        if self._listener is None:
            return
        # Before it is closed: until then no other file can have its inode's number.
        try:
            if _inode(os.lstat(self._place)) == self._inode:
                os.unlink(self._place)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.log.warning("control socket: %s cannot be removed: %s", self._place, error.strerror)
        if self._accept_again is None:
            self.pool.selector.unregister(self._listener)
        self._accept_again = None
        self._listener.close()
        self._listener = None

    def close(self) -> None:
        """End everything: who waits for a restart is told, the file is removed."""
        self._forget_listener()
        for session in list(self._sessions):
            session.abort("the server is stopping")

    def abandon(self) -> None:
        """Close the descriptors and nothing else: in a process forked from the arbiter."""
        if self._listener is not None:
            self._listener.close()
        for session in self._sessions:
            session.socket.close()
        self._listener = None
        self._sessions = set()

    # --- the pool thread's loop --------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` wants to be called, in time.monotonic()'s terms."""
        times = [session.due for session in self._sessions if session.due is not None]
        if self._accept_again is not None:
            times.append(self._accept_again)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Give a turn to every client whose time has come."""
        if self._accept_again is not None and self._accept_again <= now:
            self._listen()
        for session in list(self._sessions):
            if session.due is not None and session.due <= now:
                session.turn(now)

    def _listen(self) -> None:
        assert self._listener is not None
        self._accept_again = None
        self.pool.selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, mask: int) -> None:
        assert self._listener is not None
        while True:
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors or memory: the client stays in the backlog, and the loop must not spin.
                self.log.error("control socket: cannot accept a connection: %s", error.strerror)
                self.pool.selector.unregister(self._listener)
                self._accept_again = time.monotonic() + ACCEPT_PAUSE
                return
            client.setblocking(False)
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
        self._stream: tuple[int, str] | None = None  # interval and label of collectd-metrics
        self._next_metrics = 0.0
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
                return self._metrics(now, *self._stream)
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

    def _metrics(self, now: float, interval: int, label: str) -> bool:
        if now >= self._next_metrics:
            if len(self._output) > MAX_PENDING:
                return False
            host = socket.gethostname() or "_unknown_"
            stats = self._server.pool.stats()
            self._output += report.collectd(stats, host, interval, label, time.time()).encode()
            self._next_metrics = max(self._next_metrics, now - interval) + interval
        self.due = self._next_metrics
        return True

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
        _expect_none(arguments)
        self._log_command("restart-workers")
        self._waiting = True

        def done(error: str | None) -> None:
            if not self._waiting:
                return  # the client has gone, or was answered at the server's stop
            self._waiting = False
            self._answer(None if error is None else ControlError(error))
            self.turn(time.monotonic())

        try:
            self._server.pool.restart_workers(done)
        except BaseException:
            self._waiting = False
            raise
        return True

    def _spawn_workers(self, arguments: list[str]) -> bool:
        self._server.pool.spawn_workers(self._count("spawn-workers", arguments))
        return False

    def _remove_workers(self, arguments: list[str]) -> bool:
        self._server.pool.remove_workers(self._count("remove-workers", arguments))
        return False

    def _count(self, command: str, arguments: list[str]) -> int:
        if len(arguments) != 1:
            raise ControlError("expected a single argument")
        count = max(parse_int(arguments[0]), 0)
        self._log_command(command, str(count))
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
        self._stream = min(interval, MAX_INTERVAL), arguments[1] if len(arguments) == 2 else ""
        self._next_metrics = time.monotonic()
        return True

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


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open_folder(path: str) -> int:
    """A descriptor to lock the folder by, and to name what is in it."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return os.open(path, os.O_PATH | os.O_DIRECTORY)  # may be searched, not read


def _lock(folder_fd: int) -> None:
    """Keep others from claiming a socket in the folder at the same time, until the descriptor is closed.

    Two servers that start at once would both find a stale socket, and the first lose its place to the second.
    Where locking is impossible, or somebody holds the lock for purposes of his own, that risk is taken.
    """
    give_up = time.monotonic() + CLAIM_TIMEOUT
    while True:
        try:
            return fcntl.flock(folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                return None
            time.sleep(0.01)
        except OSError:
            return None


def _address(place: str, folder_fd: int) -> str:
    """The path as a socket's address, which holds 107 bytes."""
    if len(os.fsencode(place)) <= MAX_SOCKET_PATH:
        return place
    return f"/proc/self/fd/{folder_fd}/{os.path.basename(place)}"


def _groups_of(client: socket.socket) -> tuple[int, ...]:
    """The supplementary groups that the process at the other end had when it connected.

    Asked of the kernel (Linux 4.13): a look into the user database may wait for a server elsewhere.
    """
    try:
        packed = client.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MAX_GROUPS)
    except OSError:
        return ()
    return struct.unpack(f"{len(packed) // 4}I", packed)


def _bind(place: str, folder_fd: int, gid: int | None) -> tuple[socket.socket, tuple[int, int]]:
    """A listening socket in place of what is at the path, and its inode. It has MODE from its first instant,
    and the group's rights once it is the group's."""
    temporary = f"{place}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(temporary).st_mode):
                os.unlink(temporary)  # left by a crash just here
        os.fchmod(listener.fileno(), MODE)  # Linux: bind makes the file with the mode of the descriptor
        listener.bind(_address(temporary, folder_fd))
        try:
            if gid is not None:
                os.chown(temporary, -1, gid, follow_symlinks=False)
                os.chmod(temporary, GROUP_MODE)
            listener.listen(BACKLOG)
            inode = _inode(os.lstat(temporary))
            os.rename(temporary, place)
        except BaseException:
            os.unlink(temporary)
            raise
    except BaseException:
        listener.close()
        raise
    return listener, inode
