"""Gives each request that this HTTP worker has for a pool to one leased child, in order of arrival, and its
answer back to the connection. There is one for each pool; channel.py is what they share.

The idle leases are a stack: the child that answered last runs next, so that the others fall asleep for good
and can be retired. lease.py is about one of them.

The queue's length and its oldest request go to the scoreboard when the arbiter is woken and at each WANT
after it, not at each request. The arbiter never waits for us, nor we for it.
"""

from __future__ import annotations

import asyncio
import select
from collections import OrderedDict, deque
from time import monotonic
from typing import TYPE_CHECKING

from poolparty.stats.scoreboard import (
    COUNTER_INDEX,
    HISTOGRAM_INDEX,
    PoolWord,
    Scoreboard,
    SeatWord,
)
from poolparty.wire.seat import Lend, Reason
from poolparty.worker.access import quoted
from poolparty.worker.lease import LARGE_PIPE, Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolparty.arbiter.seats import Seat, Share
    from poolparty.worker.channel import Channel
    from poolparty.worker.request import Request
    from poolparty.worker.server import Server

_TIMED_OUT = COUNTER_INDEX["timed_out"]

WANT_DELAY = 0.005
"""Seconds a queue stands before the arbiter is told, if this seat has children at all: most are served by
then."""

WANT_DELAY_MAX = 0.040
"""Seconds: the arbiter is told again after twice the time each, up to this, since a child may stand idle
elsewhere."""

PASSAGE_SIZE = 256 * 1024
"""Bytes of the buffer that large bodies pass through: it stays in the processor's cache."""

PIPE_BUDGET = 32 * LARGE_PIPE
"""Bytes of such pipes in one HTTP worker, shared among its pools: a user's are limited
(fs.pipe-user-pages-soft, 64 MiB by default)."""

NOTABLE = 0.1
"""Seconds: what a child has run for longer is told on the scoreboard at the next sweep."""

SLOW_ANSWER = 0.002
"""Seconds: an answer that took longer would have kept what is written behind it waiting noticeably."""

PACE_WINDOW = 1024
"""Answers that decide whether requests are written ahead."""

SLOW_ALLOWED = PACE_WINDOW // 500
"""Slow ones among them up to which it is done: each keeps at most pool_prefetch - 1 others waiting, so that
not one in a hundred requests is hit."""


def may_be_ahead(request: Request) -> bool:
    """Whether a request may stand behind another one: run twice it does no harm, and a pipe takes it whole or
    not at all."""
    return request.retryable and not request.body and len(request.head) <= select.PIPE_BUF


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
    """The leases that this HTTP worker has of one pool, and the requests that wait for one."""

    def __init__(
        self, server: Server, seat: Seat, share: Share, channel: Channel, loop: asyncio.AbstractEventLoop
    ) -> None:
        """share: the pool's, one of `seat.pools`."""
        self.server = server
        self.loop = loop
        self.name = share.config.name
        self._several = len(seat.pools) > 1
        self.notice = share.notice
        self.board: Scoreboard = share.scoreboard
        self.words: memoryview[int] = self.board.words
        self.times: memoryview[float] = self.board.times
        self.idle: list[Lease] = []
        self.ring: deque[Lease] = deque()  # leases that may have room behind what they run, for taking turns
        self.pace = Pace()
        self.leases: dict[int, Lease] = {}
        self.queue: OrderedDict[Request, None] = OrderedDict()
        self.draining = False
        self._channel = channel
        self.base = self.board.seat_base(seat.id)
        self._timer: asyncio.TimerHandle | None = None
        self._want_delay = WANT_DELAY
        self._pool_down = self.board.pool_base + PoolWord.DOWN
        self._retried = self.base + COUNTER_INDEX["retried"]
        self.service = self.base + HISTOGRAM_INDEX["service"]
        self.queue_wait = self.base + HISTOGRAM_INDEX["queue_wait"]
        options = share.config.options
        self.prefetch = options.pool_prefetch
        self.passage = memoryview(bytearray(PASSAGE_SIZE))
        self.pipe_budget = PIPE_BUDGET // len(seat.pools)
        self._backlog = options.request_backlog
        self._patience = options.worker_spawn_timeout + options.worker_rendezvous_timeout
        self._request_timeout = options.worker_request_timeout
        self._cancel_timeout = options.stream_cancel_timeout
        self.max_body = options.max_request_body_size

    # --- counting ------------------------------------------------------------------------------------------

    def count(self, column: int) -> None:
        """Add one to a counter of this seat's row on the pool's board."""
        self.words[self.base + column] += 1

    def add(self, column: int, amount: int) -> None:
        """Add to a counter of this seat's row on the pool's board."""
        self.words[self.base + column] += amount

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
                    self.put_back(request)
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

    def takes_files(self) -> bool:
        """Whether a child may be there that takes a body as a file."""
        return not self.leases or any(lease.takes_files for lease in self.leases.values())

    def waits(self, request: Request) -> bool:
        """Whether a request has not reached a child yet."""
        return request in self.queue

    def put_back(self, request: Request) -> None:
        """Queue a request again, at the front."""
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
        self.server.log.log(level, 'msg="worker broken" worker-pid=%s reason="%s"', self._of(lease), why)
        untouched = lease.untouched()
        if lease.outstanding and not untouched:
            lease.show()  # the arbiter tells it with the child's end
        request = self._take_off(lease, Reason.BROKEN)
        connection = request.connection if request is not None else None
        if request is not None and connection is not None:
            if lease.begun:
                self._tell_lost(lease, request, "its answer was cut off")
                connection.cut_response(request)
            elif untouched:
                self.put_back(request)
            elif request.retryable and not request.retried:
                self._tell_lost(lease, request, "it is tried once more")
                request.retried = True
                self.words[self._retried] += 1
                self.put_back(request)
            else:
                self._tell_lost(lease, request, "it was answered 502")
                connection.fail(request, 502)
        self._serve_idle()

    def _of(self, lease: Lease) -> str:
        """A child's pid, and where there are several pools its pool, as fields of a line of the log."""
        return f"{lease.pid} pool={self.name}" if self._several else str(lease.pid)

    def _tell_lost(self, lease: Lease, request: Request, outcome: str) -> None:
        """Which request a child had that broke: the obituary, which is the arbiter's, does not know."""
        self.server.log.warning(
            'msg="request lost its worker" worker-pid=%s method=%s target="%s" outcome="%s"',
            self._of(lease),
            quoted(request.method),
            quoted(request.target),
            outcome,
        )

    def _take_off(self, lease: Lease, reason: Reason) -> Request | None:
        """Give a child back that is at fault. Returns what it ran; what was written behind that goes back to
        the queue's front."""
        behind = lease.outstanding
        request = behind.popleft() if behind else None
        self.give_back(lease, reason)
        while behind:
            waiting = behind.pop()
            if waiting.connection is not None:
                self.put_back(waiting)
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
        late: list[tuple[Lease, Callable[[Lease], None]]] = []
        for lease in self.leases.values():
            if lease.outstanding and lease.outstanding[0].started < notable:
                lease.show()
                if lease.silent_since() < limit and lease.reading:
                    late.append((lease, self._time_out))
                elif lease.unwanted and lease.cancel(now) < now - self._cancel_timeout:
                    late.append((lease, self._end_stream))
        for lease, end in late:
            end(lease)

    def _time_out(self, lease: Lease) -> None:
        request = lease.outstanding[0]
        self.server.log.error(
            'msg="worker request timed out" worker-pid=%s method=%s target="%s"',
            self._of(lease),
            quoted(request.method),
            quoted(request.target),
        )
        self._take_off(lease, Reason.TIMED_OUT)
        if request.connection is not None:
            if lease.begun:
                request.connection.cut_response(request, _TIMED_OUT)
            else:
                request.connection.fail(request, 504)
        self._serve_idle()

    def _end_stream(self, lease: Lease) -> None:
        request = lease.outstanding[0]
        self.server.log.warning(
            'msg="worker goes on with an answer whose client has left" worker-pid=%s method=%s target="%s"',
            self._of(lease),
            quoted(request.method),
            quoted(request.target),
        )
        self._take_off(lease, Reason.STREAM_CANCELLED)
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
        self.words[self.base + SeatWord.LEASES] = len(self.leases)
        self._channel.give_back(lease.number, reason)

    def drain(self) -> None:
        """The HTTP worker leaves: idle children go back at once, busy ones as soon as nothing waits for
        them."""
        self.draining = True
        while self.idle:
            self.give_back(self.idle.pop(), Reason.IDLE)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.queue) or any(lease.outstanding for lease in self.leases.values())

    def take(self, lend: Lend, stdin: int, stdout: int) -> None:
        """A child is lent to us, with the two ends of its pipes."""
        self.leases[lend.lease] = lease = Lease(self, lend, stdin, stdout)
        lease.resume_reading()
        self.words[self.base + SeatWord.LEASES] = len(self.leases)
        if self.queue:
            self.run_next(lease)
        elif self.draining:
            self.give_back(lease, Reason.IDLE)
        else:
            self.idle.append(lease)

    def recall(self, number: int) -> None:
        """The arbiter wants a child back: now, or as soon as it has answered."""
        lease = self.leases[number]
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
        self.times[self.base + SeatWord.OLDEST] = oldest
        self.words[self.base + SeatWord.QUEUED] = len(self.queue)
        self._channel.want()
        self._timer = self.loop.call_later(self._want_delay, self._want)
        self._want_delay = min(2 * self._want_delay, WANT_DELAY_MAX)

    def _stop_waiting(self) -> None:
        self.words[self.base + SeatWord.QUEUED] = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
