"""The pool thread: owns the children, the seats, the policy and the control socket. Runs in the arbiter.

One thread, one select loop, one lock. A turn of the loop: wait in select without the lock; take it; call whoever has
something to read; look after what depends on the time; ask the policy and do what it says. Nothing in a turn waits:
log lines go through the relay, all descriptors are non-blocking, and starting a child takes about a millisecond.

The main thread enters, under the same lock, to open a seat before a fork, to hand over processes it has reaped, to
reload and to stop. Its forks take the lock, so that a new HTTP worker never finds the pool in the middle of a change; what
that worker has of the pool is a copy of its memory and of its descriptors, which Seat.enter_worker closes.

What always holds: a child is with the arbiter or with exactly one seat. It changes hands by LEND, by RETURN, or by
the end of the seat's process; a seat that has closed its channel keeps its children and its row until that process is known
to be dead. A row of a child that died while lent is not used again before its seat has given the lease back, since the
seat may still write there.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import resource
import selectors
import signal
import socket
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any

from poolparty.arbiter import children, sampling
from poolparty.arbiter.children import EXPECTED, Child, Recipe
from poolparty.arbiter.control import ControlServer
from poolparty.arbiter.relay import Relay
from poolparty.errors import FrameError
from poolparty.pool import policy
from poolparty.pool.child import LIVE_STATES, Event, State, next_state
from poolparty.pool.policy import Cause, ChildView, Limits, Policy, SeatView
from poolparty.settings import Options
from poolparty.stats import report
from poolparty.stats.scoreboard import ChildWord, PoolWord, Scoreboard, SeatWord
from poolparty.wire import seat as wire

MIN_CHILD_ROWS = 1024
MAX_CHILD_ROWS = 1 << 17
"""Rows for children on the scoreboard, whose size is fixed at the start: twice the maximum, since those that end count
too, with room for a reload that raises it."""

MIN_SEAT_ROWS = 128

BOOT_POLL = 0.003
"""Seconds between two looks at a child that boots or is checked; longer for one that has taken a while, since a pipe
that has been read does not wake anybody."""

SLOWEST_BOOT_POLL = 0.05

RETRY = 0.010
"""Seconds until a LEND or RECALL that the channel had no room for is tried again, and until a seat that refused a
child is offered another."""

SPAWNS_A_TURN = 4
"""Children started before other events have their turn."""

PACKETS_A_TURN = 64

SEAT_EXIT_POLL = 0.002
SEAT_EXIT_GRACE = 0.5
"""Seconds that an HTTP worker which has closed its channel, and holds children, may take to end before it is killed."""

QUICK_GRACE = 1.0
"""Seconds from SIGTERM to SIGKILL at a quick stop."""

ENDING_SIGNALS = frozenset((signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT))
"""Signals by which an arbiter ends an HTTP worker; blocked across its fork."""

SPINNING = 1000
"""Turns in a row without an event after which something is wrong, and the loop slows down."""


class Seat:
    """An HTTP worker's place. Made in the arbiter before the fork; afterwards each process has its own end of it."""

    def __init__(self, pool: PoolThread, row: int) -> None:
        self.id = row
        self.scoreboard = pool.scoreboard
        self.arbiter_end, self.worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.arbiter_end.setblocking(False)
        self.worker_end.setblocking(False)
        self.pid: int | None = None
        self._pool: PoolThread | None = pool
        # The arbiter's:
        self.leases: dict[int, Child] = {}
        self.lost: dict[int, int] = {}  # leases of children that have died, and their rows
        self.closed_at: float | None = None  # its channel is at its end, its process perhaps not
        self.killed = False
        self.refused_until = 0.0
        self._booted = False

    @property
    def booted(self) -> bool:
        """Whether its HTTP worker serves, or has served: it puts its pid on its row."""
        if not self._booted:
            self._booted = self.scoreboard.words[self.scoreboard.seat_base(self.id) + SeatWord.PID] != 0
        return self._booted

    def enter_worker(self) -> None:
        """In the new HTTP worker: close all that is the arbiter's. The pool must not be touched afterwards.

        Until now the signals that end it were blocked: the arbiter's handlers, which it has inherited, would have put
        them into a queue that nobody reads. One that has come meanwhile ends it here, as it has begun nothing.
        """
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close_in_worker()
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)

    def forked(self, pid: int) -> None:
        """In the arbiter: the HTTP worker lives."""
        self.pid = pid
        self.worker_end.close()


class PoolThread:
    """The pool. `on_failure` is called in the pool thread when it ends by a bug, `on_ready` at the first ready child."""

    def __init__(
        self,
        options: Options,
        cfg: Any,
        log: Any,
        on_failure: Callable[[], None] = lambda: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.options = options
        self.lock = threading.RLock()
        self.relay = Relay(log)
        self.log = self.relay.log
        wanted = 2 * (options.max_pool_size + options.worker_restart_surge) + 64
        rows = min(max(wanted, MIN_CHILD_ROWS), MAX_CHILD_ROWS)
        self.scoreboard = Scoreboard(seats=max(2 * cfg.workers + 32, MIN_SEAT_ROWS), children=rows)
        self.policy = Policy(self._limits(options))
        self.children: dict[int, Child] = {}
        self.seats: dict[int, Seat] = {}
        self.counters = {"spawns": 0, "restarts": 0, "deaths": 0}
        self.counters |= {ended_by(cause): 0 for cause in Cause}
        self.started_at = time.monotonic()
        self.selector = selectors.DefaultSelector()
        self.control = ControlServer(self, options.ctl_socket, self.log, uids=(cfg.uid,))
        self.failure: BaseException | None = None
        self.ready = options.min_pool_size == 0  # whether a child has ever been
        self._on_failure, self._on_ready = on_failure, on_ready
        self._configured = self._proven = self._launched = Recipe.from_cfg(options.pool_cmd, cfg)
        self._file_limit: int | None = None
        self._memory = sampling.Sampler()
        self._by_pid: dict[int, Child] = {}
        self._free_rows = list(range(rows - 1, -1, -1))
        self._free_seats = list(range(self.scoreboard.seats - 1, -1, -1))
        self._last_child = self._last_lease = 0
        self._owed = 0  # children lost by a fault and not replaced yet
        self._restarts: list[Callable[[str | None], None]] = []
        self._grace = options.worker_request_grace
        self._retry_at: float | None = None
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.selector.register(self._wake_r, selectors.EVENT_READ, self._on_wake)
        self._thread: threading.Thread | None = None
        self._closed = False
        _pools.add(self)

    def _limits(self, options: Options) -> Limits:
        size = options.max_pool_size
        room = max(self.scoreboard.children // 2 - options.worker_restart_surge, 1)
        if size > room:
            size = room
            self.log.warning(
                "max_pool_size = %d: there is room for %d children since the start; restart the server for more",
                options.max_pool_size,
                size,
            )
        return Limits(
            min_size=min(options.min_pool_size, size),
            max_size=size,
            spawn_timeout=options.worker_spawn_timeout,
            restart_delay=options.worker_restart_delay,
            attrition_delay=options.worker_attrition_delay,
            spare=options.spare_workers,
            surge=options.worker_restart_surge,
            health_check_interval=options.worker_health_check_interval,
            max_age=options.worker_max_age,
            idle_timeout=options.worker_idle_timeout,
            memory_limit=options.worker_memory_limit,
            memory_kill=options.worker_memory_kill,
        )

    # --- called by the main thread -------------------------------------------------------------------------

    def claim(self) -> None:
        """Take the control socket's path, before anything is started. ConfigError: it is in use."""
        self.control.open()

    def start(self) -> None:
        """Start the threads; the first children are started in the pool thread, by nobody else."""
        self._file_limit = _raise_file_limit()
        self.relay.start()
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)
        self._thread.start()

    def open_seat(self) -> Seat:
        """A place for an HTTP worker that is about to be forked. OSError: no row or no descriptor is left."""
        with self.lock:
            if not self._free_seats:
                raise OSError(f"all {self.scoreboard.seats} places for HTTP workers are taken; restart for more")
            seat = Seat(self, self._free_seats[-1])
            self._free_seats.pop()
            self.seats[seat.id] = seat
            self.selector.register(
                seat.arbiter_end, selectors.EVENT_READ, functools.partial(self._on_seat, seat)
            )
            return seat

    def abandon_seat(self, seat: Seat) -> None:
        """The fork failed."""
        with self.lock:
            seat.worker_end.close()
            self._close_channel(seat)
            self._finish_seat(seat)

    def seat_reaped(self, seat: Seat) -> None:
        """The HTTP worker is dead: its children and its row come back."""
        with self.lock:
            if self.seats.get(seat.id) is seat:
                # Packets it sent before it died count: a RETURN says more about a child than the row does.
                self._on_seat(seat, selectors.EVENT_READ)
                self._close_channel(seat)
                self._finish_seat(seat)
                self.wake()

    def child_exited(self, pid: int) -> bool:
        """Called under the lock for a process that waits to be reaped: reaps it and returns True if it is a child."""
        child = self._by_pid.get(pid)
        if child is None:
            return False
        self._bury(child)
        self.wake()
        return True

    def reload(self, options: Options, cfg: Any, done: Callable[[str | None], None]) -> None:
        """Follow new options, and replace every child by one of the new command, directory and environment."""
        with self.lock:
            self.options = options
            self._grace = options.worker_request_grace
            self.policy.set_limits(self._limits(options))
            self._configured = Recipe.from_cfg(options.pool_cmd, cfg)
            self.restart_workers(done)
            self.wake()

    def begin_stop(self, graceful: bool) -> None:
        """Tell every child to leave; seats that are left are taken as dead. May be called again to be quicker."""
        with self.lock:
            now = time.monotonic()
            if not graceful:
                self._grace = min(self._grace, QUICK_GRACE)
                for child in self.children.values():
                    if child.kill_at is not None:
                        child.kill_at = min(child.kill_at, now + QUICK_GRACE)
            if not self.policy.stopping:
                self.policy.stopping = True
                for seat in list(self.seats.values()):
                    self._close_channel(seat)
                    self._finish_seat(seat)
            self.wake()

    def wait_stopped(self, timeout: float) -> bool:
        """Whether every child has gone and everything is closed, waiting for it no longer than `timeout`."""
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
        self._close()
        return True

    def stop(self, graceful: bool = True) -> None:
        """End all children and wait for that; then close everything."""
        self.begin_stop(graceful)
        while not self.wait_stopped(1.0):
            pass

    def wake(self) -> None:
        """Have the loop take a turn. Any thread, and signal handlers."""
        try:
            os.write(self._wake_w, b"x")
        except OSError:
            pass  # full: it will wake; closed: it has ended

    # --- called by the control socket, in the pool thread ---------------------------------------------------

    def stats(self) -> dict[str, Any]:
        return report.snapshot(self)

    def spawn_workers(self, count: int) -> None:
        self.policy.grow(count)
        self.wake()

    def remove_workers(self, count: int) -> None:
        self.policy.shrink(count)
        self.wake()

    def restart_workers(self, done: Callable[[str | None], None]) -> None:
        """Replace all children one by one; done(None) once the last old one has gone, done(why) if that failed."""
        if self.policy.stopping:
            done("the server is stopping")
            return
        self._launched = self._configured
        self.policy.start_restart()
        self._restarts.append(done)
        self.wake()

    # --- the loop ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals are the main thread's
        try:
            with self.lock:
                self._loop()
        except BaseException as error:
            self.failure = error
            self.log.error("the pool thread failed, the server stops:\n%s", traceback.format_exc().rstrip())
            self._on_failure()

    def _loop(self) -> None:
        idle_turns = 0
        timeout: float | None = 0.0
        while not (self.policy.stopping and not self.children):
            self.lock.release()
            try:
                ready = self.selector.select(timeout)
            finally:
                self.lock.acquire()
            idle_turns = 0 if ready else idle_turns + 1
            for key, mask in ready:
                # What stood before it in the list may have closed it, or given its number to another.
                if self.selector.get_map().get(key.fd) is key:
                    key.data(mask)
            timeout = self._turn()
            if idle_turns > SPINNING and timeout is not None:
                if idle_turns == SPINNING + 1:
                    self.log.error("the pool thread takes turn after turn without an event; it goes on slower")
                timeout = max(timeout, RETRY)

    def _turn(self) -> float | None:
        """Look after what is due and carry out one decision. Returns how long to wait for the next event."""
        now = time.monotonic()
        wake = self._watch_handshakes(now)
        wake = _earlier(wake, self._watch_endings(now))
        wake = _earlier(wake, self._watch_seats(now))
        self._retry_at = None
        views = self._child_views(now)
        decision = self.policy.decide(now, views, self._seat_views(now))
        self._tell_whether_down(views)
        if self._measures_memory and self.children:
            wake = _earlier(wake, now + sampling.SAMPLE_INTERVAL)
        acted = self._act(decision, now)
        self._finish_restarts()
        if acted:
            return 0.0
        wake = _earlier(_earlier(wake, decision.wake), self._retry_at)
        self.control.tick(now)
        wake = _earlier(wake, self.control.deadline())
        return None if wake is None else max(wake - time.monotonic(), 0.0)

    def _act(self, decision: policy.Decision, now: float) -> bool:
        """Carry actions out, each if it is still possible: whether any changed something."""
        acted = False
        spawns = 0
        for action in decision.actions:
            if isinstance(action, policy.Spawn):
                spawns += 1
                if spawns > SPAWNS_A_TURN:
                    continue
                acted |= self._spawn(action.generation, now)
                continue
            child = self.children.get(action.child)
            if child is None:
                continue
            match action:
                case policy.Lend(_, seat):
                    acted |= self._lend(child, self.seats.get(seat), now)
                case policy.Recall():
                    acted |= self._recall(child, now)
                case policy.End(_, cause):
                    acted |= self._end(child, cause)
                case policy.Check():
                    acted |= self._check(child, now)
                case policy.Kill(_, cause):
                    acted |= self._kill_now(child, cause)
        return acted

    @property
    def _measures_memory(self) -> bool:
        return bool(self.options.worker_memory_limit or self.options.worker_memory_kill)

    def _tell_whether_down(self, views: list[ChildView]) -> None:
        """While the children die before they are ready, and none is left that serves, requests are not to wait."""
        down = self.policy.failures > 1 and not any(view.state in LIVE_STATES for view in views)
        self.scoreboard.words[self.scoreboard.pool_base + PoolWord.DOWN] = int(down)

    def _child_views(self, now: float) -> list[ChildView]:
        words, times = self.scoreboard.words, self.scoreboard.times
        usage: dict[int, sampling.Usage] = {}
        if self._measures_memory:
            usage = self._memory.sample(list(self._by_pid))
        views = []
        for child in self.children.values():
            base = self.scoreboard.child_base(child.slot)
            started = times[base + ChildWord.STARTED]
            answered = words[base + ChildWord.ANSWERED]  # before SENT: see Scoreboard.child_is_idle
            ready_at = child.ready_at or child.spawned_at
            views.append(
                ChildView(
                    id=child.id,
                    state=child.state,
                    generation=child.generation,
                    seat=child.seat,
                    busy=answered != words[base + ChildWord.SENT],
                    served=answered > 0,
                    last_used=max(ready_at, started),
                    checked=child.checked,
                    spawned=child.spawned_at,
                    requests=answered,
                    max_requests=words[base + ChildWord.MAX_REQUESTS],
                    rss=usage[child.pid].rss if child.pid in usage else 0,
                )
            )
        return views

    def _seat_views(self, now: float) -> list[SeatView]:
        views = []
        for seat in self.seats.values():
            if seat.closed_at is not None:
                continue
            base = self.scoreboard.seat_base(seat.id)
            queued = self.scoreboard.words[base + SeatWord.QUEUED]
            if queued and now < seat.refused_until:
                self._retry_at = _earlier(self._retry_at, seat.refused_until)
                queued = 0
            views.append(SeatView(seat.id, queued, self.scoreboard.times[base + SeatWord.OLDEST] or now))
        return views

    def _on_wake(self, mask: int) -> None:
        try:
            while len(os.read(self._wake_r, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    # --- a child's life ------------------------------------------------------------------------------------

    def _move(self, child: Child, event: Event) -> None:
        child.state = next_state(child.state, event)

    def _spawn(self, generation: int, now: float) -> bool:
        if not self._free_rows:
            self._retry_at = _earlier(self._retry_at, now + 1.0)
            return False
        recipe = self._launched
        try:
            process = children.start(recipe, self._file_limit)
        except (OSError, ValueError) as error:
            delay = self.policy.spawn_failed(now)
            words = children.logfmt(
                "a worker could not be started", error=error, command=recipe, next_try_in=f"{delay:g}s"
            )
            self.log.error("%s", words)
            if generation == self.policy.generation:
                self._abandon_restart(f"the new worker could not be started: {error}")
            return True  # the policy has changed its mind: it knows when to try again
        self._last_child += 1
        slot = self._free_rows.pop()
        self.scoreboard.clear_child(slot)
        row = self.scoreboard.child_base(slot)
        self.scoreboard.words[row + ChildWord.PID] = process.popen.pid
        self.scoreboard.words[row + ChildWord.MAX_REQUESTS] = self._max_requests()
        child = Child(
            id=self._last_child,
            pid=process.popen.pid,
            slot=slot,
            generation=generation,
            recipe=recipe,
            process=process.popen,
            stdin=process.stdin,
            fd3=process.fd3,
            output=self.relay.attach(process.popen.pid, process.output),
            pidfd=process.pidfd,
            spawned_at=now,
        )
        self.children[child.id] = self._by_pid[child.pid] = child
        self.policy.spawned(child.id)
        self.counters["spawns"] += 1
        if self._owed:
            self._owed -= 1
            self.counters["restarts"] += 1
        self.log.info("%s", children.spawned(child))
        if child.pidfd >= 0:
            self.selector.register(
                child.pidfd, selectors.EVENT_READ, functools.partial(self._on_exit, child)
            )
        child.ask(now)
        self._watch(child)
        return True

    def _max_requests(self) -> int:
        """After how many requests a new child is replaced: not all of a pool in the same moment."""
        most = self.options.worker_max_requests
        return most + random.randint(0, self.options.worker_max_requests_jitter) if most else 0

    def _watch(self, child: Child) -> None:
        """Look at fd 3 while the arbiter holds the child."""
        self.selector.register(child.fd3, selectors.EVENT_READ, functools.partial(self._on_fd3, child))

    def _unwatch(self, child: Child) -> None:
        if child.fd3 >= 0 and child.fd3 in self.selector.get_map():
            self.selector.unregister(child.fd3)

    def _on_fd3(self, child: Child, mask: int) -> None:
        if child.state is State.IDLE:
            silent = child.silent()
            if not silent:
                self._end(child, Cause.BROKEN, "it wrote to fd 3, or closed it, while nothing was asked of it")
        else:
            self._listen(child, time.monotonic())

    def _watch_handshakes(self, now: float) -> float | None:
        """Look at the children that boot or are checked. Returns when to look again."""
        wake = None
        for child in list(self.children.values()):
            if child.state is not State.BOOTING and child.state is not State.CHECKING:
                continue
            if self._listen(child, now):
                continue
            if child.state is State.BOOTING:
                due = child.spawned_at + self.options.worker_boot_timeout
                late = Cause.BOOT_TIMEOUT, "it was not ready within worker_boot_timeout"
            else:
                due = child.checked + self.options.worker_health_check_timeout
                late = Cause.UNHEALTHY, "it did not take its health check within worker_health_check_timeout"
            if now >= due:
                self._end(child, *late)
                continue
            poll = min(max(BOOT_POLL, (now - child.checked) / 50), SLOWEST_BOOT_POLL)
            wake = _earlier(wake, min(now + poll, due))
        return wake

    def _listen(self, child: Child, now: float) -> bool:
        """Hear what a child says to a health check: whether that changed its state."""
        try:
            if not child.listen():
                return False
        except children.Unwell as unwell:
            self._end(child, Cause.UNHEALTHY, str(unwell) or "its health check failed")
            return True
        except FrameError as error:
            self._end(child, Cause.BROKEN, str(error))
            return True
        if child.state is State.CHECKING:
            self._move(child, Event.CHECKED)
            return True
        self._move(child, Event.READY)
        child.ready_at = child.checked = now
        self._proven = child.recipe
        if not self.ready:
            self.ready = True
            self._on_ready()
        return True

    def _check(self, child: Child, now: float) -> bool:
        if child.state is not State.IDLE:
            return False
        if not child.ask(now):
            self._end(child, Cause.UNHEALTHY, "its stdin takes no health check")
            return True
        self._move(child, Event.CHECK)
        return True

    def _end(self, child: Child, cause: Cause, complaint: str = "") -> bool:
        """Have a child leave: SIGTERM to its group, SIGKILL when the grace is over."""
        if child.state not in LIVE_STATES:
            return False
        now = time.monotonic()
        self._unwatch(child)
        self._take_back(child)
        self._move(child, Event.END)
        child.cause = child.cause or cause
        child.complaint = complaint
        if cause not in EXPECTED:
            self._settle(child, now)
            # Where it is closing its pipes since it is dying, its last words are to come yet: _bury tells them.
            if cause is not Cause.BROKEN:
                self._boot_failed(child, complaint)
        if self._grace > 0:
            child.kill_at = now + self._grace
            child.signal(signal.SIGTERM)
            child.signal(signal.SIGCONT)  # a stopped one could not leave
        else:
            self._kill(child)
        return True

    def _kill_now(self, child: Child, cause: Cause) -> bool:
        """End a child whoever holds it: its seat sees it die, as it sees any child die."""
        if child.cause is not None:
            return False
        if child.seat is None:
            self._end(child, cause)
            self._kill(child)
        else:
            child.cause = cause
            child.signal(signal.SIGKILL)
        return True

    def _kill(self, child: Child) -> None:
        child.killed, child.kill_at = True, None
        child.signal(signal.SIGKILL)
        child.close()

    def _watch_endings(self, now: float) -> float | None:
        """Kill those whose grace is over. Returns when the next one's is."""
        wake = None
        for child in self.children.values():
            if child.kill_at is None:
                continue
            if now >= child.kill_at:
                self._kill(child)
            else:
                wake = _earlier(wake, child.kill_at)
        return wake

    def _settle(self, child: Child, now: float) -> None:
        """Tell the policy, once, that a child is lost or leaves."""
        if child.settled:
            return
        child.settled = True
        expected = child.cause in EXPECTED
        # An HTTP worker's death is none of the child's making: replaced at once, counted as no failure.
        blameless = expected or child.cause is Cause.LESSEE_DIED
        child.replaced_in = self.policy.child_gone(child.id, self._served(child) > 0, blameless, now)
        if not expected:
            self._owed += 1

    def _served(self, child: Child) -> int:
        return self.scoreboard.words[self.scoreboard.child_base(child.slot) + ChildWord.ANSWERED]

    def _on_exit(self, child: Child, mask: int) -> None:
        if child.has_exited():
            self._bury(child)

    def _bury(self, child: Child) -> None:
        """A child's process has ended: reap it, tell of it, and give its place back."""
        now = time.monotonic()
        self._unwatch(child)
        if child.pidfd >= 0:
            self.selector.unregister(child.pidfd)
            child.close_pidfd()
        status = child.reap()
        self.scoreboard.words[self.scoreboard.child_base(child.slot) + ChildWord.PID] = 0
        served = self._served(child)
        self._settle(child, now)
        self._move(child, Event.EXIT)
        del self.children[child.id]
        del self._by_pid[child.pid]
        child.close()
        seat = None if child.seat is None else self.seats.get(child.seat)
        if seat is not None and child.lease is not None:
            del seat.leases[child.lease]
            seat.lost[child.lease] = child.slot
        else:
            self._free_rows.append(child.slot)
        tail = self.relay.finish(child.output)
        by_itself = children.died_by_itself(child, status)
        if by_itself:
            self.counters["deaths"] += 1
        elif child.cause is not None:
            self.counters[ended_by(child.cause)] += 1
        level = logging.INFO
        if child.cause not in EXPECTED:
            level = logging.ERROR if child.ready_at is None else logging.WARNING
        self.log.log(level, "%s", children.obituary(child, status, now, served, tail))
        if child.cause not in EXPECTED:
            words = children.exit_words(status)
            self._boot_failed(child, child.complaint or ", ".join(f"{key}={words[key]}" for key in words))

    def _boot_failed(self, child: Child, why: str) -> None:
        """A child failed; if it is of a new generation and was never ready, a restart under way has failed."""
        if child.ready_at is None and child.generation == self.policy.generation:
            tail = list(child.output.tail)[-children.LAST_LINES :]
            self._abandon_restart(": ".join(("the new worker did not boot", why, *tail)))

    def _abandon_restart(self, why: str) -> None:
        """The new generation does not boot: the old one stays, and those of it that die are replaced by its like."""
        if not self.policy.restarting:
            return
        self.policy.abandon_restart()
        self._launched = self._proven
        self._tell_restarts(why)

    def _finish_restarts(self) -> None:
        if self._restarts and not self.policy.restarting:
            self._tell_restarts(None)

    def _tell_restarts(self, error: str | None) -> None:
        waiting, self._restarts = self._restarts, []
        for done in waiting:
            done(error)

    # --- lending -------------------------------------------------------------------------------------------

    def _lend(self, child: Child, seat: Seat | None, now: float) -> bool:
        if child.state is not State.IDLE or seat is None or seat.closed_at is not None:
            return False
        if not child.silent():
            self._end(child, Cause.BROKEN, "it wrote to fd 3, or closed it, while nothing was asked of it")
            return True
        self._last_lease += 1
        packet = wire.encode(wire.Lend(self._last_lease, child.slot, child.pid))
        if not self._send(seat, packet, (child.stdin, child.fd3), now):
            return False
        self._unwatch(child)
        self._move(child, Event.LEND)
        child.seat, child.lease = seat.id, self._last_lease
        seat.leases[self._last_lease] = child
        return True

    def _recall(self, child: Child, now: float) -> bool:
        if child.state is not State.LENT or child.seat is None or child.lease is None:
            return False
        seat = self.seats[child.seat]
        if seat.closed_at is not None or not self._send(seat, wire.encode(wire.Recall(child.lease)), (), now):
            return False
        self._move(child, Event.RECALL)
        return True

    def _send(self, seat: Seat, packet: bytes, fds: tuple[int, ...], now: float) -> bool:
        """One packet, whole or not at all. What finds no room is tried again; a dead channel shows at its end of file."""
        try:
            socket.send_fds(seat.arbiter_end, [packet], fds) if fds else seat.arbiter_end.send(packet)
        except OSError:
            self._retry_at = _earlier(self._retry_at, now + RETRY)
            return False
        return True

    def _on_seat(self, seat: Seat, mask: int) -> None:
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
                self._close_channel(seat)
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

    def _distrust(self, seat: Seat, why: str) -> None:
        """Whatever it holds cannot be had back from a process that talks nonsense: it has to end first."""
        self.log.error("HTTP worker (pid:%s): %s; it is ended", seat.pid, why)
        self._kill_seat(seat)  # first: a closed channel tells it that the arbiter has died
        self._close_channel(seat)

    def _kill_seat(self, seat: Seat) -> None:
        seat.killed = True
        if seat.pid is not None and seat.pid != os.getpid() and not _has_exited(seat.pid):
            os.kill(seat.pid, signal.SIGKILL)

    def _returned(self, seat: Seat, lease: int, reason: wire.Reason) -> None:
        slot = seat.lost.pop(lease, None)
        if slot is not None:
            self._free_rows.append(slot)
        child = seat.leases.get(lease)
        if child is None:
            return
        self._take_back(child)
        match reason:
            case wire.Reason.IDLE:
                if not self.scoreboard.child_is_idle(child.slot):
                    self._end(child, Cause.BROKEN, "it was given back with a request unanswered")
                    return
            case wire.Reason.REFUSED:
                seat.refused_until = time.monotonic() + RETRY
            case wire.Reason.BROKEN:
                self._end(child, Cause.BROKEN)
                return
            case wire.Reason.TIMED_OUT:
                self._end(child, Cause.REQUEST_TIMEOUT)
                return
        self._idle_again(child)

    def _take_back(self, child: Child) -> None:
        """The lease ends: by RETURN, or because the child or its seat does."""
        if child.seat is not None and child.lease is not None:
            seat = self.seats.get(child.seat)
            if seat is not None:
                seat.leases.pop(child.lease, None)
        child.seat = child.lease = None

    def _idle_again(self, child: Child) -> None:
        self._move(child, Event.RETURN)
        self._watch(child)

    def _close_channel(self, seat: Seat) -> None:
        """No more is to come from a seat. Its children and its row stay its own until its process has ended."""
        if seat.closed_at is None:
            seat.closed_at = time.monotonic()
            self.selector.unregister(seat.arbiter_end)
            seat.arbiter_end.close()

    def _watch_seats(self, now: float) -> float | None:
        """Take back what dead HTTP workers leave. Returns when to look again."""
        wake = None
        for seat in list(self.seats.values()):
            if seat.closed_at is None:
                continue
            if seat.pid is None or seat.pid == os.getpid() or _has_exited(seat.pid):
                self._finish_seat(seat)
                continue
            if seat.leases and not seat.killed and now >= seat.closed_at + SEAT_EXIT_GRACE:
                self.log.error("HTTP worker (pid:%s) lives on without its channel and is killed", seat.pid)
                self._kill_seat(seat)
            wake = _earlier(wake, now + (SEAT_EXIT_POLL if seat.leases else RETRY))
        return wake

    def _finish_seat(self, seat: Seat) -> None:
        """A seat's process is gone: those of its children that run nothing are lent again, what the others have read is unknown."""
        for child in list(seat.leases.values()):
            self._take_back(child)
            if self.scoreboard.child_is_idle(child.slot):
                self._idle_again(child)
            else:
                self._end(child, Cause.LESSEE_DIED)
        self._free_rows += seat.lost.values()
        seat.lost.clear()
        seat.booted  # noqa: B018 - looked at a last time, before its row is made new
        self.scoreboard.retire_seat(seat.id)
        del self.seats[seat.id]
        self._free_seats.append(seat.id)

    # --- the end -------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """After the thread: whatever is left, where it ended by a bug or never started."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            for child in list(self.children.values()):
                child.signal(signal.SIGKILL)
            for child in list(self.children.values()):
                child.reap()
                child.close()
                child.close_pidfd()
                self.relay.finish(child.output)
            self.children.clear()
            for seat in self.seats.values():
                if seat.closed_at is None:
                    seat.arbiter_end.close()
            self.seats.clear()
            self._tell_restarts("the server is stopping")
            self.control.close()
            self.selector.close()
            os.close(self._wake_r)
            os.close(self._wake_w)
            self._wake_r = self._wake_w = -1
        self.relay.stop()
        _pools.discard(self)

    def close_in_worker(self) -> None:
        """In a forked HTTP worker, whose copy of all this is of no use: close every descriptor.

        Closed, not unregistered: the epoll instances are shared with the arbiter, and would forget on its side too.
        """
        objects: list[Any] = []
        numbers = {self._wake_r, self._wake_w, *self.relay.fds()}
        for key in list(self.selector.get_map().values()):
            if isinstance(key.fileobj, int):
                numbers.add(key.fileobj)
            else:
                objects.append(key.fileobj)
        for seat in self.seats.values():
            objects.append(seat.arbiter_end)
        for child in self.children.values():
            numbers.update(child.fds())
        for thing in objects:
            thing.close()
        for number in numbers:
            try:
                os.close(number)
            except OSError:
                pass
        self.selector.close()
        self.children.clear()
        self.seats.clear()
        _pools.discard(self)


def _earlier(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def ended_by(cause: Cause) -> str:
    """The counter of the children that were ended for a cause."""
    return f"ended_{cause.name.lower()}"


def _has_exited(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _raise_file_limit() -> int | None:
    """Raise our soft limit of open files to the hard one; returns the old one, for the children, if it changed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard or soft == resource.RLIM_INFINITY:
        return None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return None
    return soft


# --- forks of the main thread ----------------------------------------------------------------------------------

_pools: weakref.WeakSet[PoolThread] = weakref.WeakSet()
_held: list[PoolThread] = []


def _before_fork() -> None:
    for pool in list(_pools):
        pool.lock.acquire()
        pool.relay.before_fork()
        _held.append(pool)


def _after_fork() -> None:
    while _held:
        pool = _held.pop()
        pool.relay.after_fork()
        pool.lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
