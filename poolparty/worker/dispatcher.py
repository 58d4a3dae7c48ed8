"""Gives each request of this HTTP worker to one leased child, in order of arrival, and its answer back to the
connection.

The idle leases are a stack: the child that answered last runs next, so that the others fall asleep for good
and can be retired. Per request nothing happens here but a write to the child's stdin and a read of its fd 3;
no timer, no task, no lock. What is on the scoreboard before the first byte of a request (SENT) and after the
last of its response (ANSWERED) tells the arbiter whether a child is idle, also when this process has died.

The queue's length and its oldest request go to the scoreboard when the arbiter is woken and at each WANT
after it, not at each request. The arbiter never waits for us, nor we for it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import socket
import sys
import termios
from bisect import bisect_left
from collections import OrderedDict, deque
from time import monotonic
from typing import TYPE_CHECKING

from poolparty.errors import FrameError
from poolparty.stats.counters import BOUNDS, BUCKETS
from poolparty.stats.scoreboard import (
    COUNTER_INDEX,
    HISTOGRAM_INDEX,
    ChildWord,
    PoolWord,
    Scoreboard,
    SeatWord,
)
from poolparty.wire import seat as messages
from poolparty.wire.frames import HTTPResponse, ResponseEvent, ResponsePiece, ResponseReader, ResponseStart
from poolparty.wire.seat import Lend, Reason, Recall, Return, Want
from poolparty.worker.access import quoted
from poolparty.worker.request_id import id_of

if TYPE_CHECKING:
    from poolparty.arbiter.pool_thread import Seat
    from poolparty.worker.request import Request
    from poolparty.worker.server import Server

READ_SIZE = 64 * 1024
"""Bytes asked of fd 3 at once: what a pipe holds by default."""

WANT_DELAY = 0.005
"""Seconds a queue stands before the arbiter is told, if this seat has children at all: most are served by
then."""

WANT_DELAY_MAX = 0.040
"""Seconds: the arbiter is told again after twice the time each, up to this, since a child may stand idle
elsewhere."""

PASSAGE_SIZE = 256 * 1024
"""Bytes of the buffer that large bodies pass through: it stays in the processor's cache."""

LARGE_PIPE = 1024 * 1024
"""Bytes of a pipe that large messages go through, if the kernel allows it (fs.pipe-max-size)."""

LARGE_BODY = 128 * 1024
"""Bytes of a request's body from which on it is worth a large pipe: a usual one holds half of that."""

MAX_UNSENT = 64 * 1024 * 1024
"""Bytes that are kept for a slow client while other requests stand behind its own. Beyond it they wait with
it, until it has read or request_write_timeout has ended it: memory has an end too."""

PIPE_BUDGET = 32 * LARGE_PIPE
"""Bytes of such pipes in one HTTP worker: a user's are limited (fs.pipe-user-pages-soft, 64 MiB by
default)."""

NOTABLE = 0.1
"""Seconds: what a child has run for longer is told on the scoreboard at the next sweep."""

MAX_SHOWN_ID = 64
"""Bytes of a request's id on the scoreboard."""

NEVER = float("inf")

MAX_IOV = 512
"""Pieces in one writev; the kernel's bound is 1024."""

SLOW_ANSWER = 0.002
"""Seconds: an answer that took longer would have kept what is written behind it waiting noticeably."""

PACE_WINDOW = 1024
"""Answers that decide whether requests are written ahead."""

SLOW_ALLOWED = PACE_WINDOW // 500
"""Slow ones among them up to which it is done: each keeps at most pool_prefetch - 1 others waiting, so that
not one in a hundred requests is hit."""

UNASKED = "it answered more than was asked"


def may_be_ahead(request: Request) -> bool:
    """Whether a request may stand behind another one: run twice it does no harm, and a pipe takes it whole or
    not at all."""
    return request.retryable and not request.body and len(request.head) <= select.PIPE_BUF


class Lease:
    """One child that is ours until it is given back: its two pipe ends and what was written to it."""

    __slots__ = (
        "_answered",
        "_sent",
        "_started",
        "begun",
        "discarding",
        "dispatcher",
        "enlarged",
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
        self.shown: Request | None = None  # of which the scoreboard tells that it runs it
        self.begun = False  # the head of a large response has gone to the client
        self.discarding = False  # a large response that nobody wants any more is read to its end
        base = dispatcher.board.child_base(lend.slot)
        most = dispatcher.words[base + ChildWord.MAX_REQUESTS]
        # How many answers until it is given back to be replaced; beyond that it only bridges until it is.
        self.left = most - dispatcher.words[base + ChildWord.ANSWERED] if most else 0
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
                stalled = monotonic() - self.paused
                self.stalled += stalled
                self.dispatcher.times[self._started] += stalled

    def pause_reading(self) -> None:
        """Let the child wait: its client does not read. Never while others wait behind: that client's answer
        is buffered."""
        if len(self.outstanding) < 2:
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

    def show(self) -> None:
        """Tell on the scoreboard what the child runs, for those who look at what takes long."""
        request = self.outstanding[0]
        if self.shown is not request:
            self.shown = request
            number = self.dispatcher.words[self._answered] + 1
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
        count = 0
        for request in reversed(self.outstanding):
            unread -= len(request.head) + sum(map(len, request.body))
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

    def _wait_writable(self, parts: deque[memoryview]) -> None:
        self.unwritten = parts
        self.dispatcher.loop.add_writer(self.stdin, self.on_writable)

    def on_writable(self) -> None:
        """The child has read some: write on."""
        parts, self.unwritten = self.unwritten, None
        self.dispatcher.loop.remove_writer(self.stdin)
        if parts:
            try:
                self._write_parts(parts)
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
        if len(events) == 1 and type(events[0]) is HTTPResponse and self.reader.idle:
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
                self._enlarge(self.stdout)
                self.stalled = 0.0
                self.dispatcher.pace.add(NEVER)  # while it passes through, what stands behind it waits
                self.begun = connection is not None and connection.start_response(
                    request, event.head, event.body_size, self
                )
                self.discarding = not self.begun
            elif isinstance(event, ResponsePiece):
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

    def _answer(self, request: Request) -> None:
        """Count an answer, and start the clock of the request behind it."""
        dispatcher = self.dispatcher
        dispatcher.words[self._answered] += 1
        self.left -= 1
        if not self.left:
            self.recalled = True
        now = monotonic()
        started = request.started
        seconds = now - started
        dispatcher.pace.add(seconds)
        times = dispatcher.times
        service = dispatcher.service
        dispatcher.words[service + bisect_left(BOUNDS, seconds)] += 1
        times[service + BUCKETS] += seconds
        waited = started - request.accepted
        queue_wait = dispatcher.queue_wait
        dispatcher.words[queue_wait + bisect_left(BOUNDS, waited)] += 1
        times[queue_wait + BUCKETS] += waited
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
        os.close(self.stdin)
        os.close(self.stdout)


class Pace:
    """How many of the last answers were slow: whether requests may be written ahead."""

    __slots__ = ("_older", "_seen", "_slow", "steady")

    def __init__(self) -> None:
        self._seen = 0
        self._slow = 0
        self._older: int | None = None  # slow ones of the half window before
        self.steady = False

    def add(self, seconds: float) -> None:
        """An answer took so long."""
        self._seen += 1
        if seconds > SLOW_ANSWER:
            self._slow += 1
            if self._slow + (self._older or 0) > SLOW_ALLOWED:
                self.steady = False
        if self._seen == PACE_WINDOW // 2:
            self.steady = self._older is not None and self._slow + self._older <= SLOW_ALLOWED
            self._older = self._slow
            self._seen = self._slow = 0


class Dispatcher:
    """The leases of this HTTP worker and the requests that wait for one."""

    def __init__(self, server: Server, seat: Seat, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.board: Scoreboard = seat.scoreboard
        self.words: memoryview[int] = self.board.words
        self.times: memoryview[float] = self.board.times
        self.idle: list[Lease] = []
        self.ring: deque[Lease] = deque()  # leases that may have room behind what they run, for taking turns
        self.pace = Pace()
        self.leases: dict[int, Lease] = {}
        self.queue: OrderedDict[Request, None] = OrderedDict()
        self.draining = False
        self._channel: socket.socket = seat.worker_end
        self._outbox: deque[bytes] = deque()
        self._base = self.board.seat_base(seat.id)
        self._timer: asyncio.TimerHandle | None = None
        self._want_delay = WANT_DELAY
        self._pool_down = self.board.pool_base + PoolWord.DOWN
        self._retried = self._base + COUNTER_INDEX["retried"]
        self.service = self._base + HISTOGRAM_INDEX["service"]
        self.queue_wait = self._base + HISTOGRAM_INDEX["queue_wait"]
        options = server.options
        self.prefetch = options.pool_prefetch
        self.passage = memoryview(bytearray(PASSAGE_SIZE))
        self.pipe_budget = PIPE_BUDGET
        self._backlog = options.request_backlog
        self._patience = options.worker_spawn_timeout + options.worker_rendezvous_timeout
        self._request_timeout = options.worker_request_timeout
        loop.add_reader(self._channel.fileno(), self._on_channel)

    # --- requests ------------------------------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> bool:
        """Run a request on an idle child, write it ahead to a busy one, or queue it. False: the queue is
        full."""
        if not self.queue:
            idle = self.idle
            while idle:
                lease = idle.pop()
                if lease.run(request, now):
                    if not lease.in_ring:
                        lease.in_ring = True
                        self.ring.append(lease)
                    return True
                self.give_back(lease, Reason.BROKEN)
            if self.pace.steady and self._run_ahead(request):
                return True
        if len(self.queue) >= self._backlog or self._down:
            return False
        self.queue[request] = None
        if self._timer is None:
            self._wait()
        return True

    @property
    def _down(self) -> bool:
        """Whether no child can come: they die before they are ready."""
        return not self.leases and self.words[self._pool_down] != 0

    def _run_ahead(self, request: Request) -> bool:
        """Write a request behind one that runs, on each child in turn."""
        if not may_be_ahead(request):
            return False
        ring = self.ring
        while ring:
            lease = ring[0]
            if lease.may_run_ahead() and lease.run_ahead(request):
                ring.rotate(-1)
                return True
            ring.popleft()
            lease.in_ring = False
        return False

    def run_next(self, lease: Lease) -> None:
        """Give the oldest waiting requests to a child that has room for them."""
        queue = self.queue
        while queue:
            if not lease.outstanding:
                request, _ = queue.popitem(last=False)
                if not lease.run(request, monotonic()):
                    self._put_back(request)
                    self.give_back(lease, Reason.BROKEN)
                    return
            else:
                if self.idle or not self.pace.steady or not lease.may_run_ahead():
                    break
                request = next(iter(queue))
                if not may_be_ahead(request) or not lease.run_ahead(request):
                    break
                del queue[request]
        if not queue:
            self._stop_waiting()

    def forget(self, request: Request) -> None:
        """The client has left: nobody runs its request any more, if it still waits."""
        if request in self.queue:
            del self.queue[request]
            if not self.queue:
                self._stop_waiting()

    def waits(self, request: Request) -> bool:
        """Whether a request has not reached a child yet."""
        return request in self.queue

    def _put_back(self, request: Request) -> None:
        self.queue[request] = None
        self.queue.move_to_end(request, last=False)
        if self._timer is None:
            self._wait()

    def broken(self, lease: Lease, why: str, level: int) -> None:
        """A child closed a pipe or said what it may not: its request is tried elsewhere, or answered 502.

        One that it cannot have seen runs elsewhere whatever it is, and that is no second try.
        level: of the log line. A child's death has its obituary from the arbiter, so here it is for
        debugging.
        """
        self.server.log.log(level, 'msg="worker broken" worker-pid=%d reason="%s"', lease.pid, why)
        untouched = lease.untouched()
        request = self._take_off(lease, Reason.BROKEN)
        connection = request.connection if request is not None else None
        if request is not None and connection is not None:
            if lease.begun:
                connection.cut_response(request)
            elif untouched:
                self._put_back(request)
            elif request.retryable and not request.retried:
                request.retried = True
                self.words[self._retried] += 1
                self._put_back(request)
            else:
                connection.fail(request, 502)
        self._serve_idle()

    def _take_off(self, lease: Lease, reason: Reason) -> Request | None:
        """Give a child back that is at fault. Returns what it ran; what was written behind that goes back to
        the queue's front."""
        behind = lease.outstanding
        request = behind.popleft() if behind else None
        self.give_back(lease, reason)
        while behind:
            waiting = behind.pop()
            if waiting.connection is not None:
                self._put_back(waiting)
        return request

    def _serve_idle(self) -> None:
        """Give what was put back to idle children: no answer is due from them that would do it."""
        while self.queue and self.idle:
            self.run_next(self.idle.pop())

    def sweep(self, now: float) -> None:
        """Enforce the time limits: requests that waited too long for a child, children that run for too
        long."""
        down = self._down
        while self.queue:
            request = next(iter(self.queue))
            if now - request.accepted < self._patience and not down:
                break
            self.forget(request)
            if request.connection is not None:
                request.connection.fail(request, 503)
        limit = now - self._request_timeout
        notable = now - NOTABLE
        late = []
        for lease in self.leases.values():
            if lease.outstanding and (started := lease.outstanding[0].started) < notable:
                lease.show()
                stalled = lease.stalled if lease.begun else 0.0
                if started + stalled < limit and lease.reading:
                    late.append(lease)
        for lease in late:
            self._time_out(lease)

    def _time_out(self, lease: Lease) -> None:
        request = lease.outstanding[0]
        self.server.log.error(
            'msg="worker request timed out" worker-pid=%d method=%s target="%s"',
            lease.pid,
            quoted(request.method),
            quoted(request.target),
        )
        self._take_off(lease, Reason.TIMED_OUT)
        if request.connection is not None:
            if lease.begun:
                request.connection.cut_response(request)
            else:
                request.connection.fail(request, 504)
        self._serve_idle()

    # --- leases --------------------------------------------------------------------------------------------

    def give_back(self, lease: Lease, reason: Reason) -> None:
        """Return a child to the arbiter; our copies of its pipe ends are closed before."""
        if self.leases.pop(lease.number, None) is None:
            return
        if lease in self.idle:
            self.idle.remove(lease)
        lease.close()
        self.pipe_budget += LARGE_PIPE * len(lease.enlarged)
        self.words[self._base + SeatWord.LEASES] = len(self.leases)
        self._send(messages.encode(Return(lease.number, reason)))

    def drain(self) -> None:
        """This HTTP worker leaves: idle children go back at once, busy ones as soon as nothing waits for
        them."""
        self.draining = True
        self.words[self._base + SeatWord.DRAINING] = 1
        while self.idle:
            self.give_back(self.idle.pop(), Reason.IDLE)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.queue) or any(lease.outstanding for lease in self.leases.values())

    def _on_channel(self) -> None:
        while True:
            try:
                packet, fds, flags, _ = socket.recv_fds(
                    self._channel, messages.MAX_PACKET, messages.LEND_FDS, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                packet, fds, flags = b"", [], 0
            if not packet:
                self.loop.remove_reader(self._channel.fileno())
                self.server.arbiter_died()
                return
            message = messages.decode(packet)
            if isinstance(message, Lend):
                self._take(message, fds, bool(flags & socket.MSG_CTRUNC))
            elif isinstance(message, Recall):
                self._recall(message.lease)

    def _take(self, lend: Lend, fds: list[int], truncated: bool) -> None:
        if truncated or len(fds) != messages.LEND_FDS:
            for fd in fds:
                os.close(fd)
            self._send(messages.encode(Return(lend.lease, Reason.REFUSED)))
            return
        self.leases[lend.lease] = lease = Lease(self, lend, *fds)
        lease.resume_reading()
        self.words[self._base + SeatWord.LEASES] = len(self.leases)
        if self.queue:
            self.run_next(lease)
        elif self.draining:
            self.give_back(lease, Reason.IDLE)
        else:
            self.idle.append(lease)

    def _recall(self, number: int) -> None:
        lease = self.leases.get(number)
        if lease is None:
            return
        if lease.outstanding:
            lease.recalled = True
        else:
            self.give_back(lease, Reason.IDLE)

    # --- wanting more --------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Requests wait from now on: the arbiter is told at once if no child is ours, else if they still wait
        in a while."""
        self._want_delay = WANT_DELAY
        if self.leases:
            self._timer = self.loop.call_later(WANT_DELAY, self._want)
        else:
            self._want()

    def _want(self) -> None:
        """Tell the arbiter how many wait and since when, and tell it again later if they still do."""
        oldest = next(iter(self.queue)).accepted
        self.times[self._base + SeatWord.OLDEST] = oldest
        self.words[self._base + SeatWord.QUEUED] = len(self.queue)
        self._send(messages.encode(Want()))
        self._timer = self.loop.call_later(self._want_delay, self._want)
        self._want_delay = min(2 * self._want_delay, WANT_DELAY_MAX)

    def _stop_waiting(self) -> None:
        self.words[self._base + SeatWord.QUEUED] = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self, packet: bytes) -> None:
        if not self._outbox:
            try:
                self._channel.send(packet)
                return
            except (BlockingIOError, InterruptedError):
                self.loop.add_writer(self._channel.fileno(), self._on_channel_writable)
            except OSError:
                return  # the arbiter is gone; end of file on the channel says so too
        self._outbox.append(packet)

    def _on_channel_writable(self) -> None:
        while self._outbox:
            try:
                self._channel.send(self._outbox[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._outbox.clear()
                break
            self._outbox.popleft()
        self.loop.remove_writer(self._channel.fileno())
