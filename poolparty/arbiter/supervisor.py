"""A child's life: started, listened to until it is ready, checked, told to leave, killed, reaped, told of.

Runs in the arbiter's pool thread, under its lock; `bury` also in the main thread, which reaps whatever has
ended. What is to happen to a child the policy decides; who holds it meanwhile is in seats.py. A restart that
was asked for is told of here too, since it has failed when a new child does not boot.
"""

from __future__ import annotations

import errno
import functools
import logging
import random
import selectors
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolparty.arbiter import children, slowlog
from poolparty.arbiter.children import EXPECTED, NOTABLE, Child, Recipe
from poolparty.arbiter.seats import earlier
from poolparty.errors import FrameError
from poolparty.pool.child import LIVE_STATES, Event, State
from poolparty.pool.policy import Cause
from poolparty.stats import report
from poolparty.stats.scoreboard import ChildWord

if TYPE_CHECKING:
    from poolparty.arbiter.pool import Pool
    from poolparty.arbiter.pool_thread import PoolThread

BOOT_POLL = 0.003
"""Seconds between two looks at a child that boots or is checked; longer for one that has taken a while, since
a pipe that has been read does not wake anybody."""

SLOWEST_BOOT_POLL = 0.05

OUT_OF_ROOM = frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE))
"""Why a start fails that succeeds once the machine has room again."""


class Supervisor:
    """The children of one pool."""

    def __init__(self, thread: PoolThread, pool: Pool, recipe: Recipe, rows: int) -> None:
        """rows: how many the scoreboard has for children."""
        self._thread = thread
        self._pool = pool
        self._policy = pool.policy
        self._board = pool.scoreboard
        self.children: dict[int, Child] = {}
        self.by_pid: dict[int, Child] = {}
        self.counters = {"spawns": 0, "restarts": 0, "deaths": 0}
        self.counters |= {ended_by(cause): 0 for cause in Cause}
        self.restart_error: str | None = None  # why the children are not those of the last restart asked for
        self.no_room_since: float | None = None  # since when starts fail for want of it
        self.grace = pool.options.worker_request_grace
        self.file_limit: int | None = None  # the children's, where ours was raised
        self.configured = recipe
        self._proven = self._launched = recipe
        self._free_rows = list(range(rows - 1, -1, -1))
        self._last_child = 0
        self._owed = 0  # children lost by a fault and not replaced yet
        self._restarts: list[Callable[[str | None], None]] = []

    # --- restarts ------------------------------------------------------------------------------------------

    def begin_restart(self, done: Callable[[str | None], None]) -> None:
        """From now on children are of the recipe that is configured; done(None) once the last old one has
        gone, done(error) if that failed."""
        self._launched = self.configured
        self._policy.start_restart()
        self._restarts.append(done)

    def _abandon_restart(self, why: str) -> None:
        """The new generation does not boot: the old one stays, and those of it that die are replaced by its
        like."""
        if not self._policy.restarting:
            return
        self._policy.abandon_restart()
        self.restart_error = why
        self._pool.tell("failure", f"the restart was given up: {why}")
        self._launched = self._proven
        self.tell_restarts(why)

    def finish_restarts(self) -> None:
        if self._restarts and not self._policy.restarting:
            self.restart_error = None
            self._pool.tell("restart", "all workers have been replaced")
            self._pool.notice.publish("")
            self.tell_restarts(None)

    def tell_restarts(self, error: str | None) -> None:
        waiting, self._restarts = self._restarts, []
        for done in waiting:
            done(error)

    # --- from its start to its end -------------------------------------------------------------------------

    def spawn(self, generation: int, now: float) -> bool:
        if not self._free_rows:
            return False  # until a child has been reaped, or a seat gives up its claim on a dead one's row
        recipe = self._launched
        try:
            process = children.start(recipe, self.file_limit)
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError) or error.errno not in OUT_OF_ROOM:
                self.no_room_since = None
            elif self.no_room_since is None:
                self.no_room_since = now
            delay = self._policy.spawn_failed(now)
            words = children.logfmt(
                "a worker could not be started",
                **self._pool.label,
                error=error,
                command=recipe,
                next_try_in=f"{delay:g}s",
            )
            self._thread.log.error("%s", words)
            self._pool.tell("failure", f"a worker could not be started: {error}")
            if generation == self._policy.generation:
                self._pool.notice.publish(f"the new worker could not be started: {error}")
                self._abandon_restart(f"the new worker could not be started: {error}")
            return True  # the policy has changed its mind: it knows when to try again
        self.no_room_since = None
        self._last_child += 1
        slot = self._free_rows.pop()
        self._board.clear_child(slot)
        row = self._board.child_base(slot)
        self._board.words[row + ChildWord.PID] = process.popen.pid
        self._board.words[row + ChildWord.MAX_REQUESTS] = self._max_requests()
        child = Child(
            pool=self._pool,
            id=self._last_child,
            pid=process.popen.pid,
            slot=slot,
            generation=generation,
            recipe=recipe,
            process=process.popen,
            stdin=process.stdin,
            fd3=process.fd3,
            output=self._thread.relay.attach(process.popen.pid, process.output),
            pidfd=process.pidfd,
            spawned_at=now,
        )
        self.children[child.id] = self.by_pid[child.pid] = child
        self._policy.spawned(child.id)
        self.counters["spawns"] += 1
        if self._owed:
            self._owed -= 1
            self.counters["restarts"] += 1
        self._thread.log.info("%s", children.spawned(child, self._pool.label))
        if child.pidfd >= 0:
            self._thread.selector.register(
                child.pidfd, selectors.EVENT_READ, functools.partial(self._on_exit, child)
            )
        child.ask(now)
        self.watch(child)
        return True

    def _max_requests(self) -> int:
        """After how many requests a new child is replaced: not all of a pool in the same moment."""
        most = self._pool.options.worker_max_requests
        return most + random.randint(0, self._pool.options.worker_max_requests_jitter) if most else 0

    def watch(self, child: Child) -> None:
        """Look at fd 3 while the arbiter holds the child."""
        self._thread.selector.register(
            child.fd3, selectors.EVENT_READ, functools.partial(self._on_fd3, child)
        )

    def unwatch(self, child: Child) -> None:
        if child.fd3 >= 0 and child.fd3 in self._thread.selector.get_map():
            self._thread.selector.unregister(child.fd3)

    def _on_fd3(self, child: Child, mask: int) -> None:
        if child.state is State.IDLE:
            silent = child.silent()
            if not silent:
                self.end(child, Cause.BROKEN, "it wrote to fd 3, or closed it, while nothing was asked of it")
        else:
            self._listen(child, time.monotonic())

    def watch_handshakes(self, now: float) -> float | None:
        """Look at the children that boot or are checked. Returns when to look again."""
        wake = None
        for child in list(self.children.values()):
            if child.state is not State.BOOTING and child.state is not State.CHECKING:
                continue
            if self._listen(child, now):
                continue
            if child.state is State.BOOTING:
                due = child.spawned_at + self._pool.options.worker_boot_timeout
                late = Cause.BOOT_TIMEOUT, "it was not ready within worker_boot_timeout"
            else:
                due = child.checked + self._pool.options.worker_health_check_timeout
                late = Cause.UNHEALTHY, "it did not take its health check within worker_health_check_timeout"
            if now >= due:
                self.end(child, *late)
                continue
            poll = min(max(BOOT_POLL, (now - child.checked) / 50), SLOWEST_BOOT_POLL)
            wake = earlier(wake, min(now + poll, due))
        return wake

    def _listen(self, child: Child, now: float) -> bool:
        """Hear what a child says to a health check: whether that changed its state."""
        try:
            if not child.listen():
                return False
        except children.Unwell as unwell:
            self.end(child, Cause.UNHEALTHY, str(unwell) or "its health check failed")
            return True
        except FrameError as error:
            self.end(child, Cause.BROKEN, str(error))
            return True
        if child.state is State.CHECKING:
            child.move(Event.CHECKED)
            return True
        child.move(Event.READY)
        child.ready_at = child.checked = now
        self._proven = child.recipe
        self._pool.notice.publish("")
        return True

    def check(self, child: Child, now: float) -> bool:
        if child.state is not State.IDLE:
            return False
        if not child.ask(now):
            self.end(child, Cause.UNHEALTHY, "its stdin takes no health check")
            return True
        child.move(Event.CHECK)
        return True

    def end(self, child: Child, cause: Cause, complaint: str = "") -> bool:
        """Have a child leave: SIGTERM to its group, SIGKILL when the grace is over."""
        if child.state not in LIVE_STATES:
            return False
        now = time.monotonic()
        self.unwatch(child)
        self._thread.lending.take_back(child)
        child.move(Event.END)
        child.cause = child.cause or cause
        child.complaint = complaint
        if cause not in EXPECTED:
            self._settle(child, now)
            # Where it is closing its pipes since it is dying, its last words are to come yet: `bury` tells
            # them.
            if cause is not Cause.BROKEN:
                self._boot_failed(child, complaint)
        if self.grace > 0:
            child.kill_at = now + self.grace
            child.signal(signal.SIGTERM)
            child.signal(signal.SIGCONT)  # a stopped one could not leave
        else:
            self._kill(child)
        return True

    def kill_now(self, child: Child, cause: Cause) -> bool:
        """End a child whoever holds it: its seat sees it die, as it sees any child die."""
        if child.cause is not None:
            return False
        if child.seat is None:
            self.end(child, cause)
            self._kill(child)
        else:
            child.cause = cause
            child.signal(signal.SIGKILL)
        return True

    def _kill(self, child: Child) -> None:
        child.killed, child.kill_at = True, None
        child.signal(signal.SIGKILL)
        child.close()

    def hurry(self, deadline: float, grace: float) -> None:
        """Who leaves is killed by then (time.monotonic()), whoever leaves later after so many seconds."""
        self.grace = min(self.grace, grace)
        for child in self.children.values():
            if child.kill_at is not None:
                child.kill_at = min(child.kill_at, deadline)

    def close(self) -> None:
        """End and reap whatever is left, at once: after the pool thread's end."""
        for child in self.children.values():
            child.signal(signal.SIGKILL)
        for child in self.children.values():
            child.reap()
            child.close()
            child.close_pidfd()
            self._thread.relay.finish(child.output)
        self.children.clear()

    def forget_children(self) -> list[int]:
        """In a forked HTTP worker, which has nothing to do with them: descriptors to be closed."""
        numbers = []
        for child in self.children.values():
            numbers += child.fds()
            child.process.returncode = 0  # not a process of this one's: Popen has nothing to wait for
        self.children.clear()
        return numbers

    def watch_endings(self, now: float) -> float | None:
        """Kill those whose grace is over. Returns when the next one's is."""
        wake = None
        for child in self.children.values():
            if child.kill_at is None:
                continue
            if now >= child.kill_at:
                self._kill(child)
            else:
                wake = earlier(wake, child.kill_at)
        return wake

    def _settle(self, child: Child, now: float) -> None:
        """Tell the policy, once, that a child is lost or leaves."""
        if child.settled:
            return
        child.settled = True
        expected = child.cause in EXPECTED
        # An HTTP worker's death is none of the child's making, and no fault a stream that it went on with:
        # replaced at once, counted as no failure.
        blameless = expected or child.cause in (Cause.LESSEE_DIED, Cause.STREAM_CANCEL)
        child.replaced_in = self._policy.child_gone(child.id, self._served(child) > 0, blameless, now)
        if not expected:
            self._owed += 1

    def _served(self, child: Child) -> int:
        return self._board.words[self._board.child_base(child.slot) + ChildWord.ANSWERED]

    def tell_lost_request(self, child: Child) -> None:
        """A child was given back that broke, or ran for too long: tell of the request it had, if its HTTP
        worker has said which."""
        runs = report.running(self._board, child.slot, time.monotonic())
        if runs is not None and "method" in runs:
            text = children.logfmt(
                "request lost its worker", worker_pid=child.pid, **slowlog.request_words(runs)
            )
            self._pool.tell("request", text, child.pid)

    def free_row(self, slot: int) -> None:
        """A row of the scoreboard is nobody's any more."""
        self._free_rows.append(slot)

    def _on_exit(self, child: Child, mask: int) -> None:
        if child.has_exited():
            self.bury(child)

    def bury(self, child: Child) -> None:
        """A child's process has ended: reap it, tell of it, and give its place back."""
        now = time.monotonic()
        self.unwatch(child)
        if child.pidfd >= 0:
            self._thread.selector.unregister(child.pidfd)
            child.close_pidfd()
        status = child.reap()
        self._board.words[self._board.child_base(child.slot) + ChildWord.PID] = 0
        served = self._served(child)
        self._settle(child, now)
        child.move(Event.EXIT)
        del self.children[child.id]
        del self.by_pid[child.pid]
        child.close()
        if not self._thread.lending.lost(child):
            self.free_row(child.slot)
        tail = self._thread.relay.finish(child.output)
        by_itself = children.died_by_itself(child, status)
        if by_itself:
            self.counters["deaths"] += 1
        elif child.cause is not None:
            self.counters[ended_by(child.cause)] += 1
        level = logging.INFO
        if child.cause not in EXPECTED:
            level = logging.ERROR if child.ready_at is None else logging.WARNING
        obituary = children.obituary(child, status, now, served, tail, self._pool.label)
        self._thread.log.log(level, "%s", obituary)
        if child.cause in NOTABLE:
            self._pool.tell("replaced", obituary, child.pid)
        if child.cause not in EXPECTED:
            self._pool.tell("death" if by_itself else "end", obituary, child.pid)
            words = children.exit_words(status)
            self._boot_failed(child, child.complaint or ", ".join(f"{key}={words[key]}" for key in words))

    def _boot_failed(self, child: Child, why: str) -> None:
        """A child failed; if it is of a new generation and was never ready, a restart under way has
        failed."""
        if child.ready_at is None and child.generation == self._policy.generation:
            tail = list(child.output.tail)[-children.LAST_LINES :]
            self._pool.notice.publish("\n".join((*tail, "", f"({why})")))
            self._abandon_restart(": ".join(("the new worker did not boot", why, *tail)))


def ended_by(cause: Cause) -> str:
    """The counter of the children that were ended for a cause."""
    return f"ended_{cause.name.lower()}"
