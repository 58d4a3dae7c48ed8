"""Children's standard output and error, and the pool's own log lines, on their way to the error log.

A log that stalls (a pipe nobody reads, a slow disk) must stall neither children nor the pool, so reading and
logging are apart: the relay thread reads the pipes and never waits for anything else; the log thread is the
only one that writes; between them is a queue with a bound for each child. What finds its queue full is
dropped, counted and reported. Whoever else has something to say (the pool thread, the control socket) says it
through `Relay.log` and does not wait either; so lines appear in the order in which things happened.

Runs in the arbiter. `attach`, `finish` and `Relay.log` may be called from any thread of it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import re
import select
import signal
import threading
import time
from collections import deque
from typing import Any

READ_SIZE = 64 * 1024
"""Bytes taken from one child at a turn: what a pipe holds."""

MAX_LINE = 16 * 1024
"""Bytes of a line that are logged in one piece; Docker's and journald's limits are 16 and 48 KiB."""

MAX_PENDING = 256 * 1024
"""Bytes of one child's output that wait for the log; more is dropped."""

MAX_OWN_PENDING = 2000
"""Lines of our own that wait for the log."""

MAX_LAST_OUTPUT = 1024 * 1024
"""Bytes that are read from a child's pipe after its exit: as much as the largest pipe holds."""

OUTPUT_LOGGER = "worker"
"""Name of children's logger below gunicorn.error."""

RECENT = 1000
"""Lines of the whole log that are kept for the control socket's `log`."""

MAX_RECENT = 2000
"""Characters of each."""

TAIL = 20
"""Lines of each child that are kept for its obituary."""

DROPPING_PAUSE = 0.001
"""Seconds the relay thread rests after a turn in which it dropped lines, so that a flood does not eat a
processor."""

_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def printable(line: bytes) -> str:
    """A line as text that cannot do anything to a terminal or forge another line; tabs stay."""
    text = line.decode("utf-8", "backslashreplace")
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def output_logger(target: Any) -> Any:
    """The logger for what children say: one below gunicorn's error log, so that its level is its own.

    Whoever sets `--log-level warning` wants less of the server, not to lose his application's tracebacks.
    """
    error_log = getattr(target, "error_log", None)
    if not isinstance(error_log, logging.Logger):
        return target
    logger = error_log.getChild(OUTPUT_LOGGER)
    if logger.level == logging.NOTSET:  # or a logconfig has said what it is to be
        logger.setLevel(logging.INFO)
    return logger


def _timestamp() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


class RelayLog:
    """The methods of a logger that people use, none of which waits for the log."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def debug(self, message: str, *args: object) -> None:
        self._relay.say(logging.DEBUG, message, args)

    def info(self, message: str, *args: object) -> None:
        self._relay.say(logging.INFO, message, args)

    def warning(self, message: str, *args: object) -> None:
        self._relay.say(logging.WARNING, message, args)

    def error(self, message: str, *args: object) -> None:
        self._relay.say(logging.ERROR, message, args)

    def log(self, level: int, message: str, *args: object) -> None:
        self._relay.say(level, message, args)


class Stream:
    """One child's output pipe."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.fd = fd
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.partial = b""
        self.continues = False  # what comes next belongs to a line that was cut
        self.pending = 0  # bytes queued; added to by whoever reads, under Relay's lock, as all the rest
        self.dropped = 0  # lines since the last one that was queued

    def split(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, those over MAX_LINE in pieces."""
        data = self.partial + data
        *lines, self.partial = data.split(b"\n")
        pieces = []
        for line in lines:
            pieces += self._cut(line)
            self.continues = False
        while len(self.partial) > MAX_LINE:
            end = _character_boundary(self.partial, MAX_LINE)
            pieces.append(self._mark(self.partial[:end]))
            self.continues = True
            self.partial = self.partial[end:]
        return pieces

    def rest(self) -> list[bytes]:
        """A last line that no newline ended."""
        line, self.partial = self.partial, b""
        return self._cut(line) if line else []

    def _cut(self, line: bytes) -> list[bytes]:
        line = line.removesuffix(b"\r")
        pieces = []
        while len(line) > MAX_LINE:
            end = _character_boundary(line, MAX_LINE)
            pieces.append(self._mark(line[:end]))
            self.continues = True
            line = line[end:]
        pieces.append(self._mark(line))
        return pieces

    def _mark(self, piece: bytes) -> bytes:
        return b"[line goes on] " + piece if self.continues else piece


def _character_boundary(data: bytes, at: int) -> int:
    """The last place not behind `at` where no UTF-8 character is cut."""
    for back in range(4):
        if data[at - back] & 0xC0 != 0x80:
            return at - back
    return at


class Relay:
    """Both threads and what is between them. `target` is gunicorn's logger."""

    def __init__(self, target: Any) -> None:
        self.log = RelayLog(self)
        self._target = target
        self._output = output_logger(target)
        self._lock = threading.Lock()  # streams and counts; nobody waits for anything while it is held
        self._writing = threading.Lock()  # held while a line is logged: see hold
        self._queue: queue.SimpleQueue[tuple[int, str, tuple[object, ...], Stream | None, int] | None] = (
            queue.SimpleQueue()
        )
        self._streams: dict[int, Stream] = {}  # by descriptor
        self.last_line = 0  # its number: as many lines have been queued so far
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._own_pending = 0
        self._own_dropped = 0
        self._epoll: select.epoll | None = None
        self._wake_r = self._wake_w = -1
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._held = False

    def start(self) -> None:
        """Start both threads."""
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wake_r, select.EPOLLIN)
        for name, run in (("relay", self._read_all), ("log", self._write_all)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout: float = 2.0) -> None:
        """Log what is queued, for at most `timeout` seconds, then end both threads. A stalled log keeps its
        thread."""
        if not self._threads:
            return
        self._stopping = True
        self._queue.put(None)
        os.write(self._wake_w, b"x")
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        if not self._threads[0].is_alive():
            assert self._epoll is not None
            self._epoll.close()
            for fd in (self._wake_r, self._wake_w, *self._streams):
                os.close(fd)
            self._streams.clear()
        self._threads.clear()

    def fds(self) -> list[int]:
        """Every descriptor of ours: what a forked HTTP worker closes."""
        own = (
            []
            if self._epoll is None or self._epoll.closed
            else [self._epoll.fileno(), self._wake_r, self._wake_w]
        )
        return own + list(self._streams)

    # --- the last lines ------------------------------------------------------------------------------------

    def _remember(self, level: int, text: str) -> None:
        """Keep a line for those who ask for the last ones. Under the lock."""
        self.last_line += 1
        self._recent.append(f"{_timestamp()} {logging.getLevelName(level).lower()} {text[:MAX_RECENT]}")

    def lines_since(self, number: int) -> list[str]:
        """The lines from this number on that are kept still, oldest first."""
        with self._lock:
            wanted = min(max(self.last_line - number + 1, 0), len(self._recent))
            return list(itertools.islice(self._recent, len(self._recent) - wanted, None))

    # --- children's output ---------------------------------------------------------------------------------

    def attach(self, pid: int, fd: int) -> Stream:
        """Take over the reading end of a child's output, non-blocking."""
        stream = Stream(pid, fd)
        with self._lock:
            self._streams[fd] = stream
            if self._epoll is not None:
                self._epoll.register(fd, select.EPOLLIN)
        return stream

    def finish(self, stream: Stream) -> list[str]:
        """The child has exited: pass on what it has written, close the pipe, return its last lines.

        Another process may hold the pipe's other end still (a grandchild that left the group): not waited
        for.
        """
        with self._lock:
            if self._streams.pop(stream.fd, None) is None:
                return list(stream.tail)
            left = MAX_LAST_OUTPUT
            while left > 0:
                data = _read(stream.fd)
                if not data:
                    break
                left -= len(data)
                self._take(stream, stream.split(data))
            self._take(stream, stream.rest())
            self._report_dropped(stream)
            if self._epoll is not None and not self._epoll.closed:
                with contextlib.suppress(OSError):  # end of file was seen, and it was taken out then
                    self._epoll.unregister(stream.fd)
            os.close(stream.fd)
            return list(stream.tail)

    def _read_all(self) -> None:
        """The relay thread."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals are the main thread's
        assert self._epoll is not None
        while not self._stopping:
            dropping = False
            for fd, _ in self._epoll.poll():
                if fd == self._wake_r:
                    continue
                with self._lock:
                    stream = self._streams.get(fd)
                    if stream is None:
                        continue
                    data = _read(fd)
                    if data is None:
                        continue
                    if data:
                        dropping |= self._take(stream, stream.split(data))
                    else:
                        # Kept until `finish`; only no more looked at.
                        self._epoll.unregister(fd)
            if dropping:
                time.sleep(DROPPING_PAUSE)

    def _take(self, stream: Stream, lines: list[bytes]) -> bool:
        """Queue lines, or drop them: whether any was dropped. Under the lock."""
        for at, line in enumerate(lines):
            if stream.pending > MAX_PENDING:
                stream.dropped += len(lines) - at
                # The tail is of what was said last, logged or not.
                stream.tail.extend(printable(line) for line in lines[at:][-TAIL:])
                return True
            if stream.dropped:
                self._report_dropped(stream)
            text = printable(line)
            stream.tail.append(text)
            stream.pending += len(line) + 1
            self._remember(logging.INFO, f"worker-pid={stream.pid} {text}")
            self._queue.put((logging.INFO, "worker-pid=%d %s", (stream.pid, text), stream, len(line) + 1))
        return False

    def _report_dropped(self, stream: Stream) -> None:
        if stream.dropped:
            message = "worker-pid=%d [%d lines dropped: the log did not keep up]"
            self._queue.put((logging.WARNING, message, (stream.pid, stream.dropped), None, 0))
            stream.dropped = 0

    # --- our own lines -------------------------------------------------------------------------------------

    def say(self, level: int, message: str, args: tuple[object, ...]) -> None:
        """Queue a line of our own. Before `start`, and after `stop`, it is logged at once."""
        if not self._threads:
            self._target.log(level, message, *args)
            return
        with self._lock:
            if self._own_pending >= MAX_OWN_PENDING:
                self._own_dropped += 1
                return
            self._own_pending += 1
            if self._target_level(level):
                self._remember(level, message % args if args else message)
            self._queue.put((level, message, args, None, -1))

    def _target_level(self, level: int) -> bool:
        """Whether the log shows lines of this level."""
        error_log = getattr(self._target, "error_log", None)
        return not isinstance(error_log, logging.Logger) or error_log.isEnabledFor(level)

    def _write_all(self) -> None:
        """The log thread."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            entry = self._queue.get()
            if entry is None:
                return
            level, message, args, stream, size = entry
            try:
                with self._writing:
                    (self._target if stream is None else self._output).log(level, message, *args)
            except Exception:
                pass  # logging reports its own failures; the thread has to live
            dropped = 0
            with self._lock:
                if stream is not None:
                    stream.pending -= size
                elif size < 0:
                    self._own_pending -= 1
                    dropped, self._own_dropped = self._own_dropped, 0
            if dropped:
                self.say(
                    logging.WARNING,
                    "%d lines of the pool's own were dropped: the log did not keep up",
                    (dropped,),
                )

    # --- forks and reloads ---------------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep the log thread from writing while a fork copies stderr's buffer, or handlers are replaced.

        A log that has stalled is waited for no longer than a second.
        """
        self._held = self._writing.acquire(timeout=1.0)

    def resume(self) -> None:
        """The log may be written again. In the same thread."""
        if self._held:
            self._held = False
            self._writing.release()


def _read(fd: int) -> bytes | None:
    """What is there: b"" at the end, None if there is nothing yet."""
    try:
        return os.read(fd, READ_SIZE)
    except BlockingIOError:
        return None
    except OSError:
        return b""
