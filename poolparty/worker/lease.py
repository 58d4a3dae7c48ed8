"""One child that this HTTP worker holds: what it runs, what was written ahead to it, and its two pipe ends.

Per request nothing happens here but a write to the child's stdin and a read of its fd 3; no timer, no task,
no lock. What is on the scoreboard before the first byte of a request (SENT) and after the last of its
response (ANSWERED) tells the arbiter whether a child is idle, also when this process has died.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import sys
import termios
from bisect import bisect_left
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from poolparty.errors import FrameError
from poolparty.stats.counters import BOUNDS, BUCKETS
from poolparty.stats.scoreboard import ChildWord
from poolparty.wire.features import Feature
from poolparty.wire.frames import (
    STREAM_CANCEL,
    HTTPResponse,
    ResponseEvent,
    ResponsePiece,
    ResponseReader,
    ResponseStart,
)
from poolparty.wire.seat import Lend, Reason
from poolparty.worker.request_id import id_of
from poolparty.worker.transfer import NO_SENDFILE

if TYPE_CHECKING:
    from poolparty.worker.dispatcher import Dispatcher
    from poolparty.worker.request import Request
    from poolparty.worker.spooled import SpooledBody

READ_SIZE = 64 * 1024
"""Bytes asked of fd 3 at once: what a pipe holds by default."""

LARGE_PIPE = 1024 * 1024
"""Bytes of a pipe that large messages go through, if the kernel allows it (fs.pipe-max-size)."""

LARGE_BODY = 128 * 1024
"""Bytes of a request's body from which on it is worth a large pipe: a usual one holds half of that."""

MAX_UNSENT = 64 * 1024 * 1024
"""Bytes that are kept for a slow client while other requests stand behind its own. Beyond it they wait with
it, until it has read or request_write_timeout has ended it: memory has an end too."""

LARGE_PIECE = 32 * 1024
"""Bytes of a stream's piece from which on its pipe is worth enlarging."""

FIRST_BOUND = BOUNDS[0]

MAX_SHOWN_ID = 64
"""Bytes of a request's id on the scoreboard."""

NEVER = float("inf")

MAX_IOV = 512
"""Pieces in one writev; the kernel's bound is 1024."""

UNASKED = "it answered more than was asked"


class Lease:
    """One child that is ours until it is given back: its two pipe ends and what was written to it."""

    __slots__ = (
        "_answered",
        "_file",
        "_hears_cancel",
        "_sent",
        "_started",
        "begun",
        "cancelled",
        "discarding",
        "dispatcher",
        "enlarged",
        "heard",
        "in_ring",
        "left",
        "number",
        "outstanding",
        "paused",
        "pid",
        "reader",
        "reading",
        "recalled",
        "shown",
        "slot",
        "stalled",
        "stdin",
        "stdout",
        "takes_files",
        "unwritten",
    )

    outstanding: deque[Request]  # the first is what it runs, the others stand in its stdin
    unwritten: deque[memoryview] | None  # what its stdin had no room for yet

    def __init__(self, dispatcher: Dispatcher, lend: Lend, stdin: int, stdout: int) -> None:
        self.dispatcher = dispatcher
        self.number = lend.lease
        self.pid = lend.pid
        self.slot = lend.slot
        self.stdin = stdin
        self.stdout = stdout
        self.reader = ResponseReader()
        self.outstanding = deque()
        self.unwritten = None
        self.recalled = False
        self.in_ring = False  # it is among those that may be given a request ahead
        self.reading = False
        self.enlarged: tuple[int, ...] = ()  # those of its two pipes that are large, counted in the budget
        self.paused = 0.0  # when it was made to wait, time.monotonic()
        self.stalled = 0.0  # seconds that it waited so with this large response
        self.shown = 0  # the number of the request of which the scoreboard tells that it runs it
        self.begun = False  # the head of a large response, or of a stream, is here
        self.discarding = False  # the rest of it is read and thrown away: nobody wants it
        self.heard = 0.0  # when its stream last gave a sign of life, time.monotonic()
        self.cancelled = 0.0  # when its stream was found to have no client, time.monotonic()
        base = dispatcher.board.child_base(lend.slot)
        most = dispatcher.words[base + ChildWord.MAX_REQUESTS]
        # How many answers until it is given back to be replaced; beyond that it only bridges until it is.
        self.left = most - dispatcher.words[base + ChildWord.ANSWERED] if most else 0
        features = dispatcher.words[base + ChildWord.FEATURES]
        self.takes_files = bool(features & Feature.BODY_FILE)
        self._hears_cancel = bool(features & Feature.STREAM_CANCEL)
        self._file: tuple[int, int, int] | None = None  # what goes into its stdin: descriptor, from, to
        self._sent = base + ChildWord.SENT
        self._answered = base + ChildWord.ANSWERED
        self._started = base + ChildWord.STARTED

    def resume_reading(self) -> None:
        """Watch the child's fd 3."""
        if not self.reading and self.number in self.dispatcher.leases:
            self.reading = True
            self.dispatcher.loop.add_reader(self.stdout, self.on_readable)
            if self.outstanding:
                # What it waited for its client counts for no time limit of its own.
                self.heard = monotonic()
                stalled = self.heard - self.paused
                self.stalled += stalled
                self.dispatcher.times[self._started] += stalled

    def pause_reading(self) -> None:
        """Let the child wait: its client does not read. Never while others wait behind: that client's answer
        is buffered."""
        if len(self.outstanding) < 2 or self.reader.streaming:
            self._pause()

    def _pause(self) -> None:
        if self.reading:
            self.reading = False
            self.paused = monotonic()
            self.dispatcher.loop.remove_reader(self.stdout)

    def run(self, request: Request, now: float) -> bool:
        """Write a request to the idle child. False: the child is gone, and has certainly seen nothing of
        it."""
        dispatcher = self.dispatcher
        dispatcher.words[self._sent] += 1
        dispatcher.times[self._started] = now
        request.started = now
        request.worker_pid = self.pid
        head = request.head
        try:
            if request.body:
                if not isinstance(request.body, list):
                    return self._run_spooled(request, request.body)
                if request.body_size > LARGE_BODY:
                    self._enlarge(self.stdin)
                self._write_parts(deque(memoryview(part) for part in (head, *request.body)))
            else:
                written = os.write(self.stdin, head)
                if written != len(head):
                    self._wait_writable(deque((memoryview(head)[written:],)))
        except BlockingIOError:
            self._wait_writable(deque((memoryview(head),)))
        except OSError:
            # EPIPE: no process has the reading end any more, so nobody can have read a byte.
            dispatcher.words[self._answered] += 1
            return False
        self.outstanding.append(request)
        return True

    def _run_spooled(self, request: Request, body: SpooledBody) -> bool:
        """Hand on a body that is in a file: by its path, or through the pipe. OSError as from a write."""
        if self.takes_files:
            self._write_parts(deque((memoryview(body.frame),)))
        elif request.head:
            self._enlarge(self.stdin)
            self._file = body.file, 0, body.size
            try:
                self._write_parts(deque((memoryview(request.head),)))
            except OSError:
                self._file = None
                raise
        else:
            self.dispatcher.words[self._answered] += 1
            if request.connection is not None:
                request.connection.too_large(request)
            self.dispatcher.loop.call_soon(self._next_after_nothing)
            return True
        self.outstanding.append(request)
        return True

    def _next_after_nothing(self) -> None:
        if self.number in self.dispatcher.leases and not self.outstanding:
            self._continue()

    def _wire_size(self, request: Request) -> int:
        """Bytes of a request's frame."""
        body = request.body
        if isinstance(body, list):
            return len(request.head) + sum(map(len, body))
        return len(body.frame) if self.takes_files else len(request.head) + body.size

    def show(self) -> None:
        """Tell on the scoreboard what the child runs, for those who look at what takes long."""
        request = self.outstanding[0]
        number = self.dispatcher.words[self._answered] + 1
        if self.shown != number:
            self.shown = number
            text = b" ".join((id_of(request)[:MAX_SHOWN_ID] or b"-", request.method, request.target))
            self.dispatcher.board.tell_runs(self.slot, number, text)

    def untouched(self) -> bool:
        """Whether the child has died, and had not read a byte of what it was to run.

        Its pipe keeps what nobody has read. While a process lives that could still read it, it is not known.
        """
        if not self.outstanding or not self.reader.idle:
            return False
        poll = select.poll()
        poll.register(self.stdin, 0)
        if not any(mask & select.POLLERR for _, mask in poll.poll(0)):
            return False
        return self.unread_requests() == len(self.outstanding)

    def unread_requests(self) -> int:
        """How many of the outstanding requests, counted from the last, the child has read nothing of."""
        unread = int.from_bytes(fcntl.ioctl(self.stdin, termios.FIONREAD, bytes(4)), sys.byteorder)
        unread += sum(map(len, self.unwritten or ()))
        if self._file is not None:
            unread += self._file[2] - self._file[1]
        count = 0
        for request in reversed(self.outstanding):
            unread -= self._wire_size(request)
            if unread < 0:
                break
            count += 1
        return count

    def run_ahead(self, request: Request) -> bool:
        """Write a request behind the one that runs. False: not now; nothing of it was written."""
        dispatcher = self.dispatcher
        dispatcher.words[self._sent] += 1
        try:
            # At most PIPE_BUF bytes, so all or nothing (pipe(7)).
            os.write(self.stdin, request.head)
        except OSError:
            # Full, or the child is gone: then its fd 3 tells, and there it is handled.
            dispatcher.words[self._sent] -= 1
            return False
        request.worker_pid = self.pid
        self.outstanding.append(request)
        return True

    def _write_parts(self, parts: deque[memoryview]) -> None:
        """Write until all is written or the pipe is full. OSError but for EAGAIN only before the first
        byte."""
        first = True
        while parts:
            try:
                written = os.writev(self.stdin, [parts[i] for i in range(min(len(parts), MAX_IOV))])
            except BlockingIOError:
                break
            except OSError:
                if first:
                    raise
                self.unwritten = parts  # it died in the middle: fd 3 says so too, and there it is handled
                return
            first = False
            while parts and written >= len(parts[0]):
                written -= len(parts.popleft())
            if written:
                parts[0] = parts[0][written:]
        if parts:
            self._wait_writable(parts)
        elif self._file is not None:
            self._write_file()

    def _write_file(self) -> None:
        """Have the kernel move the file on into the pipe: once, so that a child which reads as fast as that
        keeps nobody else waiting."""
        assert self._file is not None
        file, at, end = self._file
        try:
            moved = move(file, at, min(end - at, LARGE_PIPE), self.stdin)
        except BlockingIOError:
            self._wait_writable(deque())
        except BrokenPipeError:
            self.unwritten = deque()  # it died in the middle: fd 3 says so too, and there it is handled
        except OSError as error:
            self._file_broke_off(f"cannot be read: {error.strerror}")
        else:
            if not moved:
                self._file_broke_off("has become shorter")
            elif at + moved < end:
                self._file = file, at + moved, end
                self._wait_writable(deque())
            else:
                self._file = None

    def _file_broke_off(self, why: str) -> None:
        """Soon, since whoever has the request written has not noted yet that it runs."""
        self.unwritten = deque()  # the child is to wait for the rest
        self.dispatcher.loop.call_soon(self._break_off, f"the file with its request's body {why}")

    def _break_off(self, why: str) -> None:
        if self.number in self.dispatcher.leases:
            self.dispatcher.broken(self, why, logging.ERROR)

    def _wait_writable(self, parts: deque[memoryview]) -> None:
        self.unwritten = parts
        self.dispatcher.loop.add_writer(self.stdin, self.on_writable)

    def on_writable(self) -> None:
        """The child has read some: write on."""
        parts, self.unwritten = self.unwritten, None
        self.dispatcher.loop.remove_writer(self.stdin)
        if parts or self._file is not None:
            try:
                self._write_parts(parts or deque())
            except OSError:
                # What the child answered before it died is told by fd 3, and its death too.
                self.unwritten = parts

    def on_readable(self) -> None:
        """The child has answered, or is gone."""
        if self.reader.body_left:
            self._pass_on()
            return
        try:
            data = os.read(self.stdout, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        dispatcher = self.dispatcher
        outstanding = self.outstanding
        if not data:
            dispatcher.broken(self, "it closed fd 3", logging.DEBUG)
            return
        if not outstanding:
            dispatcher.broken(self, UNASKED, logging.WARNING)
            return
        try:
            events = self.reader.feed(data)
        except FrameError as error:
            dispatcher.broken(self, str(error), logging.WARNING)
            return
        if len(events) == 1 and type(events[0]) is HTTPResponse and not self.reader.behind:
            # The path of nearly every request. The child gets its next one before the client its answer.
            event = events[0]
            request = outstanding.popleft()
            self._answer(request)
            self._continue()
            connection = request.connection
            if connection is not None:
                connection.send_response(request, event.head, event.body)
        else:
            self._on_events(events)

    def _pass_on(self) -> None:
        """Take the next bytes of a large response's body from the pipe to the client, through one buffer for
        all."""
        dispatcher = self.dispatcher
        room = dispatcher.passage[: self.reader.body_left]
        try:
            size = os.readv(self.stdout, [room])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            dispatcher.broken(self, "it closed fd 3", logging.DEBUG)
            return
        last = self.reader.passed(size)
        if self.reader.streaming:
            self.heard = monotonic()
        request = self.outstanding[0]
        connection = request.connection
        discarding = self.discarding or connection is None
        if last:
            self.outstanding.popleft()
            self._answer(request)
            self.begun = self.discarding = False
            if not self.outstanding and self._holds_more():
                dispatcher.broken(self, UNASKED, logging.WARNING)
            else:
                self._continue()
        if not discarding and connection is not None:
            connection.send_piece(request, room[:size], last)
            if len(self.outstanding) > 1 and not last and connection.unsent > MAX_UNSENT:
                self._pause()

    def _holds_more(self) -> bool:
        """Whether the child has written more than was read."""
        return fcntl.ioctl(self.stdout, termios.FIONREAD, bytes(4)) != bytes(4)

    def _enlarge(self, pipe: int) -> None:
        """A large message is in this pipe, and others will follow: let more of it go in at once."""
        dispatcher = self.dispatcher
        if pipe in self.enlarged or dispatcher.pipe_budget < LARGE_PIPE:
            return
        try:
            if fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) < LARGE_PIPE:
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, LARGE_PIPE)
        except (OSError, AttributeError):
            dispatcher.pipe_budget = 0  # the user has no more pages for pipes, or the system no such call
            return
        self.enlarged += (pipe,)
        dispatcher.pipe_budget -= LARGE_PIPE

    def _on_events(self, events: list[ResponseEvent]) -> None:
        """Several responses, or a part of one."""
        if self.reader.streaming:
            self.heard = monotonic()
        whole: list[tuple[Request, HTTPResponse]] = []
        why: str | None = None
        completed = False
        # Answers of one write arrive together: the second of a child that answers twice would be given to the
        # request that stands behind, if that is still to be seen unread.
        unread = self.unread_requests() if len(events) > 1 and len(self.outstanding) > 1 else 0
        for event in events:
            if not self.outstanding or (completed and len(self.outstanding) <= unread):
                why = UNASKED
                break
            request = self.outstanding[0]
            connection = request.connection
            if isinstance(event, HTTPResponse):
                whole.append((self.outstanding.popleft(), event))
                self._answer(request)
                completed = True
            elif isinstance(event, ResponseStart):
                if event.body_size is not None:
                    self._enlarge(self.stdout)
                self.stalled = self.cancelled = 0.0
                self.dispatcher.pace.add(NEVER)  # while it passes through, what stands behind it waits
                self.begun = True
                self.discarding = connection is None or not connection.start_response(
                    request, event.head, event.body_size, self
                )
                if self.discarding:
                    # Whatever becomes of the child: the client has had its answer, or gets it as a file.
                    self.outstanding[0] = request.forgotten()
            elif isinstance(event, ResponsePiece):
                if len(event.data) >= LARGE_PIECE:
                    self._enlarge(self.stdout)
                self.discarding = self.discarding or connection is None
                if event.last:
                    self.outstanding.popleft()
                    self._answer(request)
                    completed = True
                if not self.discarding and connection is not None:
                    connection.send_piece(request, event.data, event.last)
                if event.last:
                    self.begun = self.discarding = False
            else:
                why = f"it sent {event!r} instead of a response"
                break
        if self.reader.streaming and len(self.outstanding) > 1:
            self._clear_behind()
        if why is None and self.reader.fault is not None:
            why = str(self.reader.fault)
        if why is None and not self.outstanding and not self.reader.idle:
            why = UNASKED
        if why is not None:
            # Were it used on, what stands behind would be taken for the next request's answer.
            self.dispatcher.broken(self, why, logging.WARNING)
        elif completed:
            self._continue()
        for request, event in whole:
            if request.connection is not None:
                request.connection.send_response(request, event.head, event.body)

    def _clear_behind(self) -> None:
        """A stream that has not ended may take for ever: what stands in the pipe behind it, all of which may
        be run twice, runs elsewhere. Its answers from here are for nobody."""
        behind = self.outstanding
        stream = behind.popleft()
        forgotten = []
        for waiting in reversed(behind):
            forgotten.append(waiting.forgotten())
            if waiting.connection is not None:
                self.dispatcher.put_back(waiting)
        behind.clear()
        behind.append(stream)
        behind.extend(reversed(forgotten))

    @property
    def unwanted(self) -> bool:
        """Whether it goes on with a stream whose client has left."""
        return self.reader.streaming and self.outstanding[0].connection is None

    def cancel(self, now: float) -> float:
        """Nobody wants the stream any more: tell the child, if it looks for that. Since when, as
        time.monotonic()."""
        if not self.cancelled:
            self.cancelled = now
            if self._hears_cancel and self.unwritten is None:
                with contextlib.suppress(OSError):
                    os.write(self.stdin, STREAM_CANCEL)
        return self.cancelled

    def silent_since(self) -> float:
        """When the child last did what its time limit is about, time.monotonic(): it got the request, or sent
        more of a stream. What it waited for a slow client does not count."""
        if self.reader.streaming:
            self.dispatcher.times[self._started] = self.heard
            return self.heard
        return self.outstanding[0].started + (self.stalled if self.begun else 0.0)

    def _answer(self, request: Request) -> None:
        """Count an answer, and start the clock of the request behind it."""
        dispatcher = self.dispatcher
        words, times = dispatcher.words, dispatcher.times
        words[self._answered] += 1
        self.left -= 1
        if not self.left:
            self.recalled = True
        now = monotonic()
        started = request.started
        seconds = now - started
        dispatcher.pace.add(seconds)
        # Most answers fall into the first bucket of either histogram, and most requests have not waited.
        service = dispatcher.service
        times[service + BUCKETS] += seconds
        words[service if seconds <= FIRST_BOUND else service + bisect_left(BOUNDS, seconds)] += 1
        waited = started - request.accepted
        queue_wait = dispatcher.queue_wait
        if waited:
            times[queue_wait + BUCKETS] += waited
            queue_wait += bisect_left(BOUNDS, waited)
        words[queue_wait] += 1
        if self.outstanding:
            self.outstanding[0].started = now
            times[self._started] = now

    def _continue(self) -> None:
        """The child has room for another request, or none is left for it."""
        dispatcher = self.dispatcher
        if self.unwritten is not None:
            if not self.outstanding:
                # It answered before it had read its request: the rest would be taken for the next one.
                dispatcher.give_back(self, Reason.BROKEN)
        elif self.recalled:
            if not self.outstanding:
                dispatcher.give_back(self, Reason.IDLE)
        elif dispatcher.queue:
            dispatcher.run_next(self)
        elif not self.outstanding:
            if dispatcher.draining:
                dispatcher.give_back(self, Reason.IDLE)
            else:
                dispatcher.idle.append(self)
        elif not self.in_ring:
            self.in_ring = True
            dispatcher.ring.append(self)

    def may_run_ahead(self) -> bool:
        """Whether a request may be written behind the one that runs."""
        return (
            0 < len(self.outstanding) < self.dispatcher.prefetch
            and self.unwritten is None
            and not self.recalled
            and not self.begun
            and self.number in self.dispatcher.leases
        )

    def close(self) -> None:
        """Close our copies of the child's pipe ends."""
        loop = self.dispatcher.loop
        if self.reading:
            self.reading = False
            loop.remove_reader(self.stdout)
        if self.unwritten is not None:
            self.unwritten = None
            loop.remove_writer(self.stdin)
        self._file = None
        os.close(self.stdin)
        os.close(self.stdout)


def move(file: int, at: int, size: int, pipe: int) -> int:
    """Move bytes of a file into a pipe: how many. BlockingIOError: the pipe is full."""
    try:
        return os.sendfile(pipe, file, at, size)
    except OSError as error:
        if error.errno not in NO_SENDFILE:
            raise
    return os.write(pipe, os.pread(file, min(size, READ_SIZE), at))
