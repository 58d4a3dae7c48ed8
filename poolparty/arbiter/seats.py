"""Who holds which child: the seats, their channels, and the children that are lent to them.

Runs in the arbiter's pool thread, under its lock; Seat also in the HTTP worker, which has the other end of
the channel.

What always holds: a child is with the arbiter or with exactly one seat. It changes hands by LEND, by RETURN,
or by the end of the seat's process: a seat that has closed its channel keeps its children and its row until
that process is known to be dead, since it might still write to both. For the same reason the row of a child
that has died while lent is not used again before its seat has given the lease back. A lease's number never
repeats, so whatever comes late is known as such.
"""

from __future__ import annotations

import functools
import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from poolparty.arbiter.children import Child
from poolparty.pool.child import Event, State
from poolparty.pool.policy import Cause, SeatView
from poolparty.stats.counters import OUTCOMES
from poolparty.stats.scoreboard import COUNTER_INDEX, ChildWord, SeatWord
from poolparty.wire import seat as wire

if TYPE_CHECKING:
    from poolparty.arbiter.pool import Pool
    from poolparty.arbiter.pool_thread import PoolThread
    from poolparty.pools import PoolConfig
    from poolparty.stats.notice import Notice
    from poolparty.stats.scoreboard import Scoreboard

RETRY = 0.010
"""Seconds until a LEND or RECALL that the channel had no room for is tried again, and until a seat that
refused a child is offered another."""

PACKETS_A_TURN = 64
"""Packets taken from one seat before others have their turn."""

EXIT_POLL = 0.002
EXIT_GRACE = 0.5
"""Seconds that an HTTP worker which has closed its channel, and holds children, may take to end before it is
killed."""

ENDING_SIGNALS = frozenset((signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT))
"""Signals by which an arbiter ends an HTTP worker."""

FORK_BLOCKS = ENDING_SIGNALS | {signal.SIGUSR1}
"""Signals that are blocked across the fork of an HTTP worker, so that none is lost before it can hear it."""


FAULTS = frozenset((wire.Reason.BROKEN, wire.Reason.TIMED_OUT, wire.Reason.STREAM_CANCELLED))
"""Reasons of a RETURN for which the child had a request, as a rule, that has come to nothing."""


class Share(NamedTuple):
    """What an HTTP worker has of a pool. Its seat has the same row on the scoreboards of all."""

    config: PoolConfig
    scoreboard: Scoreboard
    notice: Notice


class Seat:
    """An HTTP worker's place. Made in the arbiter before the fork; afterwards each process has its own end of
    it.

    `scoreboard` is the first pool's: what is of the HTTP worker itself, or of connections, stands only there.
    """

    def __init__(self, thread: PoolThread, row: int) -> None:
        self.id = row
        self.pools = tuple(pool.share for pool in thread.pools)
        self.scoreboard = self.pools[0].scoreboard
        self.arbiter_end, self.worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.arbiter_end.setblocking(False)
        self.worker_end.setblocking(False)
        self.admin_end: socket.socket | None = None  # the HTTP worker's end of its channel to the admin pages
        if thread.options.admin_prefix is not None:
            ours, self.admin_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            for end in (ours, self.admin_end):
                end.setblocking(False)
            thread.admin.adopt(ours)
        self.pid: int | None = None
        self.opened_at = time.monotonic()
        # Of use in the arbiter only:
        self.leases: dict[int, Child] = {}
        self.lost: dict[int, Child] = {}  # leases of children that have died, whose rows are not free yet
        self.closed_at: float | None = None  # its channel is at its end, its process perhaps not
        self.killed = False
        self.refused_until = 0.0
        self.answered = False  # whether its HTTP worker, which is dead now, had answered any request
        self._booted = False

    @property
    def booted(self) -> bool:
        """Whether its HTTP worker serves, or has served: it puts its pid on its row."""
        if not self._booted:
            self._booted = self.scoreboard.words[self.scoreboard.seat_base(self.id) + SeatWord.PID] != 0
        return self._booted

    def forked(self, pid: int) -> None:
        """In the arbiter: the HTTP worker lives."""
        self.pid = pid
        self.close_worker_ends()

    def close_worker_ends(self) -> None:
        """In the arbiter, which has no use for them."""
        self.worker_end.close()
        if self.admin_end is not None:
            self.admin_end.close()

    def enter_worker(self) -> None:
        """In the new HTTP worker, first of all; what is the arbiter's was closed as it was forked.

        Until now the signals that end it were blocked: the arbiter's handlers, which it has inherited, would
        have put them into a queue that nobody reads. One that has come meanwhile ends it here, as it has
        begun nothing. SIGUSR1 stays blocked until its handler is there.
        """
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)

    def kill(self) -> None:
        """End its process, if there is one still."""
        self.killed = True
        if self.pid is not None and self.pid != os.getpid() and not has_exited(self.pid):
            os.kill(self.pid, signal.SIGKILL)

    def vacant(self) -> bool:
        """Whether its process is known to be dead (in a test there may be none)."""
        return self.pid is None or self.pid == os.getpid() or has_exited(self.pid)


class Lending:
    """All seats. What it needs of the pool: to end a child, to look at its fd 3 while nobody has it, to free
    its row."""

    def __init__(self, thread: PoolThread, rows: int) -> None:
        """rows: how many each scoreboard has for seats."""
        self.seats: dict[int, Seat] = {}
        self.retry_at: float | None = None  # when something that could not be done now may go
        self._thread = thread
        self._rows = rows
        self._free = list(range(rows - 1, -1, -1))
        self._last_lease = 0

    def views(self, pool: Pool, now: float) -> list[SeatView]:
        """The seats as a pool's policy sees them."""
        board = pool.scoreboard
        views = []
        for seat in self.seats.values():
            if seat.closed_at is not None:
                continue
            base = board.seat_base(seat.id)
            queued = board.words[base + SeatWord.QUEUED]
            if queued and now < seat.refused_until:
                self.retry_at = earlier(self.retry_at, seat.refused_until)
                queued = 0
            views.append(SeatView(seat.id, queued, board.times[base + SeatWord.OLDEST] or now))
        return views

    # --- a seat's life -------------------------------------------------------------------------------------

    def open(self) -> Seat:
        """A new seat. OSError: no row or no descriptor is left."""
        if not self._free:
            raise OSError(f"all {self._rows} places for HTTP workers are taken; a restart makes more")
        seat = Seat(self._thread, self._free[-1])
        self._free.pop()
        self.seats[seat.id] = seat
        self._thread.selector.register(
            seat.arbiter_end, selectors.EVENT_READ, functools.partial(self._on_packets, seat)
        )
        return seat

    def abandon(self, seat: Seat) -> None:
        """Nobody has taken it."""
        seat.close_worker_ends()
        self._close(seat)
        self._finish(seat)

    def reaped(self, seat: Seat) -> None:
        """Its process is dead."""
        if self.seats.get(seat.id) is seat:
            # Packets it sent before it died count: a RETURN says more about a child than the row does.
            self._on_packets(seat, selectors.EVENT_READ)
            self._close(seat)
            self._finish(seat)

    def close_all(self) -> None:
        """At the end of the pool, after that of the HTTP workers."""
        for seat in list(self.seats.values()):
            self._close(seat)
            self._finish(seat)

    def close_in_worker(self) -> None:
        """In a forked HTTP worker: close the arbiter's ends."""
        for seat in self.seats.values():
            seat.arbiter_end.close()
        self.seats.clear()

    def watch(self, now: float) -> float | None:
        """Take back what dead HTTP workers leave. Returns when to look again."""
        wake = None
        for seat in list(self.seats.values()):
            if seat.closed_at is None:
                continue
            if seat.vacant():
                self._finish(seat)
                continue
            if seat.leases and not seat.killed and now >= seat.closed_at + EXIT_GRACE:
                self._thread.log.error(
                    "HTTP worker (pid:%s) lives on without its channel and is killed", seat.pid
                )
                seat.kill()
            wake = earlier(wake, now + (EXIT_POLL if seat.leases else RETRY))
        return wake

    def _close(self, seat: Seat) -> None:
        """No more is to come from it. Its children and its row stay its own until its process has ended."""
        if seat.closed_at is None:
            seat.closed_at = time.monotonic()
            self._thread.selector.unregister(seat.arbiter_end)
            seat.arbiter_end.close()

    def _finish(self, seat: Seat) -> None:
        """Its process is gone: children that run nothing are lent again; what the others have read is
        unknown."""
        for child in list(seat.leases.values()):
            self.take_back(child)
            if child.pool.scoreboard.child_is_idle(child.slot):
                self._idle_again(child)
            else:
                child.pool.supervisor.end(child, Cause.LESSEE_DIED)
        for child in seat.lost.values():
            child.pool.supervisor.free_row(child.slot)
        seat.lost.clear()
        _ = seat.booted  # looked at a last time before the row is made new
        for pool in self._thread.pools:
            board, base = pool.scoreboard, pool.scoreboard.seat_base(seat.id)
            seat.answered |= any(board.words[base + COUNTER_INDEX[name]] for name in OUTCOMES)
            board.retire_seat(seat.id)
        del self.seats[seat.id]
        self._free.append(seat.id)
        self._thread.sweep_spool()

    def _distrust(self, seat: Seat, why: str) -> None:
        """Whatever it holds cannot be had back from a process that talks nonsense: it has to end first."""
        self._thread.log.error("HTTP worker (pid:%s): %s; it is ended", seat.pid, why)
        seat.kill()  # before its channel is closed, from which it would take the arbiter to be dead
        self._close(seat)

    # --- lending -------------------------------------------------------------------------------------------

    def lend(self, child: Child, row: int, now: float) -> bool:
        """Whether the child has changed hands, or was found broken."""
        seat = self.seats.get(row)
        if child.state is not State.IDLE or seat is None or seat.closed_at is not None:
            return False
        if not child.silent():
            child.pool.supervisor.end(
                child, Cause.BROKEN, "it wrote to fd 3, or closed it, while nothing was asked of it"
            )
            return True
        board = child.pool.scoreboard
        board.words[board.child_base(child.slot) + ChildWord.FEATURES] = child.features or 0
        self._last_lease += 1
        packet = wire.encode(
            wire.Lend(lease=self._last_lease, slot=child.slot, pid=child.pid, pool=child.pool.number)
        )
        if not self._send(seat, packet, (child.stdin, child.fd3), now):
            return False
        child.pool.supervisor.unwatch(child)
        child.move(Event.LEND)
        child.seat, child.lease = seat.id, self._last_lease
        seat.leases[self._last_lease] = child
        return True

    def recall(self, child: Child, now: float) -> bool:
        """Whether the seat has been asked to give the child back."""
        if child.state is not State.LENT or child.seat is None or child.lease is None:
            return False
        seat = self.seats[child.seat]
        if seat.closed_at is not None or not self._send(seat, wire.encode(wire.Recall(child.lease)), (), now):
            return False
        child.move(Event.RECALL)
        return True

    def take_back(self, child: Child) -> None:
        """The lease, if there is one, ends: by RETURN, or because the child or its seat does."""
        if child.seat is not None and child.lease is not None:
            self.seats[child.seat].leases.pop(child.lease, None)
        child.seat = child.lease = None

    def lost(self, child: Child) -> bool:
        """The child has died: whether a seat keeps its row until it gives the lease back."""
        if child.seat is None or child.lease is None:
            return False
        seat = self.seats[child.seat]
        del seat.leases[child.lease]
        seat.lost[child.lease] = child
        return True

    def _send(self, seat: Seat, packet: bytes, fds: tuple[int, ...], now: float) -> bool:
        """One packet, whole or not at all. One without room is tried again; a dead channel shows at its end
        of file."""
        try:
            if fds:
                socket.send_fds(seat.arbiter_end, [packet], fds)
            else:
                seat.arbiter_end.send(packet)
        except OSError:
            self.retry_at = earlier(self.retry_at, now + RETRY)
            return False
        return True

    def _on_packets(self, seat: Seat, mask: int) -> None:
        if seat.closed_at is not None:
            return
        for _ in range(PACKETS_A_TURN):
            try:
                packet = seat.arbiter_end.recv(wire.MAX_PACKET)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it closed with packets of ours unread; its own are still to be had
            except OSError:
                packet = b""
            if not packet:
                self._close(seat)
                return
            try:
                message = wire.decode(packet)
            except ValueError as error:
                self._distrust(seat, str(error))
                return
            match message:
                case wire.Want():
                    pass  # the scoreboard says the rest
                case wire.Return(lease, reason):
                    self._returned(seat, lease, reason)
                case _:
                    self._distrust(seat, f"it sent {message}, which only the arbiter may")
                    return

    def _returned(self, seat: Seat, lease: int, reason: wire.Reason) -> None:
        lost = seat.lost.pop(lease, None)
        if lost is not None:
            lost.pool.supervisor.tell_lost_request(lost)
            lost.pool.supervisor.free_row(lost.slot)
        child = seat.leases.get(lease)
        if child is None:
            return
        if reason in FAULTS:
            child.pool.supervisor.tell_lost_request(child)
        self.take_back(child)
        match reason:
            case wire.Reason.IDLE:
                if not child.pool.scoreboard.child_is_idle(child.slot):
                    child.pool.supervisor.end(
                        child, Cause.BROKEN, "it was given back with a request unanswered"
                    )
                    return
            case wire.Reason.REFUSED:
                seat.refused_until = time.monotonic() + RETRY
            case wire.Reason.BROKEN:
                child.pool.supervisor.end(child, Cause.BROKEN)
                return
            case wire.Reason.TIMED_OUT:
                child.pool.supervisor.end(child, Cause.REQUEST_TIMEOUT)
                return
            case wire.Reason.STREAM_CANCELLED:
                child.pool.supervisor.end(child, Cause.STREAM_CANCEL)
                return
        self._idle_again(child)

    def _idle_again(self, child: Child) -> None:
        child.move(Event.RETURN)
        child.pool.supervisor.watch(child)


def earlier(one: float | None, other: float | None) -> float | None:
    """The earlier of two times, either of which may be never."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def has_exited(pid: int) -> bool:
    """Whether a process of ours waits to be reaped, or has been."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
