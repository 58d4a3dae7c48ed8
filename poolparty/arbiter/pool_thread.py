"""The pool thread: owns the pools, the seats and the control socket. Runs in the arbiter.

One thread, one select loop, one lock. A turn of the loop: wait in select without the lock; take it; call
whoever has something to read; give each pool its turn; look after what else depends on the time.
Nothing in a turn waits: log lines go through the relay, all descriptors are non-blocking, and starting a
child takes about a millisecond.

The main thread enters, under the same lock, to open a seat before a fork, to hand over processes it has
reaped, to reload and to stop. Its forks take the lock, so that a new HTTP worker never finds the pool in the
middle of a change; what that worker has of the pool is a copy of its memory and of its descriptors, which
Seat.enter_worker closes.

A pool's turn is in pool.py, who holds which child in seats.py, a child's life in supervisor.py, its process
in children.py, its output in relay.py, all decisions in pool/policy.py and pool/budget.py.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from poolparty import spool
from poolparty.arbiter import sampling, slowlog
from poolparty.arbiter.admin import AdminServer
from poolparty.arbiter.children import Child
from poolparty.arbiter.control import ControlServer
from poolparty.arbiter.pool import Pool
from poolparty.arbiter.relay import Relay
from poolparty.arbiter.seats import RETRY, Lending, Seat, earlier
from poolparty.errors import ControlError
from poolparty.pool.budget import Budget
from poolparty.pool.policy import Cause
from poolparty.pools import PoolConfig
from poolparty.stats import report
from poolparty.stats.history import History
from poolparty.stats.scoreboard import SeatWord
from poolparty.stats.utilization import Utilization

if TYPE_CHECKING:
    from poolparty.arbiter.statsd_sender import StatsdSender

__all__ = ["PoolThread", "Seat"]

MIN_SEAT_ROWS = 128

QUICK_GRACE = 1.0
"""Seconds from SIGTERM to SIGKILL at a quick stop."""

RESTART_SHARE = 0.1
"""The most that a load balancer is told to be free during a rolling restart."""

SPINNING = 1000
"""Turns in a row without an event after which something is wrong, and the loop slows down."""


class PoolThread:
    """All pools of a server, as `configs` says. `on_failure` is called in the pool thread when it ends by a
    bug, `on_ready` once requests find a child."""

    def __init__(
        self,
        configs: Sequence[PoolConfig],
        cfg: Any,
        log: Any,
        on_failure: Callable[[], None] = lambda: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.options = options = configs[0].options  # the server's own, and those of the first pool
        self.lock = threading.RLock()
        self.relay = Relay(log)
        self.log = self.relay.log
        self.started_at = time.monotonic()
        self.selector = selectors.DefaultSelector()
        seats = max(2 * cfg.workers + 32, MIN_SEAT_ROWS)
        self.pools: tuple[Pool, ...] = ()
        self.pools = tuple(Pool(self, number, config, seats) for number, config in enumerate(configs))
        self.lending = Lending(self, seats)
        self.seats = self.lending.seats
        self.stopping = False
        self.control = ControlServer(
            self, options.ctl_socket, self.log, uids=(cfg.uid,), group=options.ctl_socket_group
        )
        self.admin = AdminServer(self, options.admin_address, options.agent_address, self.log)
        self.utilization = Utilization()
        self.history: History | None = None
        if options.admin_address is not None or options.admin_prefix is not None:
            self.history = History([pool.scoreboard for pool in self.pools], self.started_at)
        self.listen_backlog: int | None = None  # as the arbiter saw it last, if enable_backlog_metric is set
        self.statsd: StatsdSender | None = None
        self.failure: BaseException | None = None
        self.ready = False  # whether there ever were children for all that have any
        self._on_failure, self._on_ready = on_failure, on_ready
        self._memory = sampling.Sampler()
        self._memory_used = 0  # bytes, by all children, when they were last looked at
        self._memory_due = 0.0
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.selector.register(self._wake_r, selectors.EVENT_READ, self._on_wake)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._aim_statsd(cfg)
        _servers.add(self)

    def _aim_statsd(self, cfg: Any) -> None:
        """Send figures to the statsd that the configuration names, if it names one."""
        if cfg.statsd_host is None:
            if self.statsd is not None:
                self.statsd.close()
            self.statsd = None
            return
        # Here, since it needs prometheus_client: a server that nobody asks for metrics does without.
        from poolparty.arbiter.statsd_sender import StatsdSender, Target

        target = Target.from_cfg(cfg)
        if self.statsd is None:
            # At the start nothing has been counted, and the pool is not there yet to be asked.
            counted = None if self._thread is None else self.stats()
            self.statsd = StatsdSender(target, self.stats, self.log, counted)
        else:
            self.statsd.redirect(target)

    # --- called by the main thread -------------------------------------------------------------------------

    def claim(self, takeover: bool = False) -> None:
        """Take the control socket's path and the admin addresses, before anything is started. ConfigError:
        one is in use.

        takeover: in an upgrade, by the new server; and by the old one, if the new one has ended.
        """
        with self.lock:
            self.control.open(takeover)
            try:
                self.admin.open(takeover)
            except BaseException:
                self.control.close()
                raise

    def start(self) -> None:
        """Start the threads; the first children are started in the pool thread, by nobody else."""
        file_limit = _raise_file_limit()
        for pool in self.pools:
            pool.supervisor.file_limit = file_limit
        self._look_whether_ready()
        self.sweep_spool()
        self.relay.start()
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)
        self._thread.start()

    def sweep_spool(self) -> None:
        """Remove what dead HTTP workers have left of request bodies."""
        spool.sweep(os.path.abspath(self.options.request_spool_dir or tempfile.gettempdir()))

    def open_seat(self) -> Seat:
        """A place for an HTTP worker that is about to be forked. OSError: no row or no descriptor is left."""
        with self.lock:
            return self.lending.open()

    def abandon_seat(self, seat: Seat) -> None:
        """The fork failed."""
        with self.lock:
            self.lending.abandon(seat)

    def seat_reaped(self, seat: Seat) -> None:
        """The HTTP worker is dead: its children and its row come back."""
        with self.lock:
            self.lending.reaped(seat)
            self.wake()

    def child_exited(self, pid: int) -> bool:
        """Called under the lock for a process that waits to be reaped: reaps it and returns True if it is a
        child."""
        child = self._find_child(pid)
        if child is None:
            return False
        child.pool.supervisor.bury(child)
        self.wake()
        return True

    def reload(self, configs: Sequence[PoolConfig], cfg: Any, done: Callable[[str | None], None]) -> None:
        """Follow new options, and replace every child by one of the new command, directory and environment.

        configs: of the same pools, as `why_no_reload` has found.
        """
        with self.lock:
            self.options = configs[0].options
            for config in configs:
                self.pool_named(config.name).follow(config)
            self._aim_statsd(cfg)
            self.restart_workers(done, "the configuration was loaded again")
            self.wake()

    def why_no_reload(self, configs: Sequence[PoolConfig]) -> str | None:
        """Why these pools cannot take the place of those there are: which there are is fixed at the start."""
        names, new = ([one.name for one in several] for several in (self.pools, configs))
        if set(names) == set(new):
            return None
        return (
            f"they are {', '.join(names)} since the start, not {', '.join(new)}; restart the server, "
            "or upgrade it by SIGUSR2"
        )

    def begin_stop(self, graceful: bool) -> None:
        """Tell every child to leave; seats that are left are taken as dead. May be called again to be
        quicker."""
        with self.lock:
            now = time.monotonic()
            for pool in self.pools:
                pool.policy.stopping = True
                if not graceful:
                    pool.supervisor.hurry(now + QUICK_GRACE, QUICK_GRACE)
            if not self.stopping:
                self.stopping = True
                self.lending.close_all()
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

    def describe(self) -> str:
        """How busy it is, for the process title: `pool default 3/8 busy`, and how many requests wait."""
        with self.lock:
            loads = [(pool.name, *pool.load()) for pool in self.pools]
        parts = (
            f"{name} {busy}/{live} busy" + (f", {queued} queued" if queued else "")
            for name, busy, live, queued in loads
        )
        return f"pool{'s' if len(loads) > 1 else ''} {'; '.join(parts)}"

    def _load(self) -> tuple[int, int, int]:
        """How many children run a request, how many live, how many requests wait, in all pools."""
        loads = [pool.load() for pool in self.pools]
        busy, live, queued = (sum(column) for column in zip(*loads, strict=True))
        return busy, live, queued

    def wake(self) -> None:
        """Have the loop take a turn. Any thread, and signal handlers."""
        with contextlib.suppress(OSError):  # full: it will wake; closed: it has ended
            os.write(self._wake_w, b"x")

    # --- called by the control socket, in the pool thread ---------------------------------------------------

    def stats(self) -> dict[str, Any]:
        return report.snapshot(self)

    def pool_named(self, name: str) -> Pool:
        """ControlError: there is no such pool."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise ControlError(f"there is no pool {name}; there are: {self._names}")

    @property
    def _names(self) -> str:
        return ", ".join(pool.name for pool in self.pools)

    def _only_pool(self, name: str | None) -> Pool:
        """The pool of that name; without one the only one there is."""
        if name is not None:
            return self.pool_named(name)
        if len(self.pools) > 1:
            raise ControlError(f"there are several pools, so name one: {self._names}")
        return self.pools[0]

    def spawn_workers(self, count: int, pool: str | None = None) -> None:
        """Aim at more children in a pool. ControlError: it is not clear in which."""
        self._only_pool(pool).policy.grow(count)
        self.wake()

    def remove_workers(self, count: int, pool: str | None = None) -> None:
        """Aim at fewer children in a pool. ControlError: it is not clear in which."""
        self._only_pool(pool).policy.shrink(count)
        self.wake()

    def restart_workers(self, done: Callable[[str | None], None], why: str, pool: str | None = None) -> None:
        """Replace all children of a pool, or of all pools, one by one; done(None) once the last old one has
        gone, done(error) if that failed. ControlError: there is no such pool.

        why: what the restart is for, as a clause.
        """
        pools = self.pools if pool is None else (self.pool_named(pool),)
        if self.stopping:
            done("the server is stopping")
            return
        restarts = _Restarts(len(pools), done)
        for one in pools:
            one.restart(restarts.of(one.name), why)
        self.wake()

    def drain_worker(self, pid: int) -> None:
        """Have a child replaced once another one is ready for it. ControlError: there is no such child."""
        self._child_of(pid).drain = True
        self.wake()

    def kill_worker(self, pid: int) -> None:
        """End a child at once, whatever it runs. ControlError: there is no such child."""
        child = self._child_of(pid)
        child.pool.supervisor.kill_now(child, Cause.KILLED)
        self.wake()

    def dump_worker(self, pid: int) -> str:
        """What a child does at this moment, as lines. ControlError: there is no such child."""
        return slowlog.dump(self._child_of(pid), time.monotonic())

    def _find_child(self, pid: int) -> Child | None:
        found = (pool.supervisor.by_pid.get(pid) for pool in self.pools)
        return next((child for child in found if child is not None), None)

    def _child_of(self, pid: int) -> Child:
        child = self._find_child(pid)
        if child is None:
            pids = sorted(pid for pool in self.pools for pid in pool.supervisor.by_pid)
            known = " ".join(map(str, pids)) or "none"
            raise ControlError(f"no worker has the pid {pid}; there are: {known}")
        return child

    def why_not_ready(self, pool: str | None = None) -> str | None:
        """Why a request to a pool would find no child; None: one is ready, or can be started for it.
        ControlError: there is no such pool.

        pool: None for all. Until there were children for each that has any they are waited for; from then on
        one that serves is enough: another's trouble is no reason to send its requests elsewhere.
        """
        pools = self.pools if pool is None else (self.pool_named(pool),)
        if self.stopping:
            return "the server is stopping"
        if all(self._draining()):
            return "no HTTP worker serves"
        reasons = {one: one.why_not_ready() for one in pools}
        if not any(reasons.values()):
            return None
        starting = [] if self.ready else [one for one in pools if one.starting]
        if not starting and not all(reasons.values()):
            return None
        one = (starting or [one for one in pools if reasons[one]])[0]
        return f"pool {one.name}: {reasons[one]}" if len(pools) > 1 else reasons[one]

    def _look_whether_ready(self) -> None:
        if not self.ready:
            reasons = [pool.why_not_ready() for pool in self.pools]
            if None in reasons and not any(pool.starting for pool in self.pools):
                self.ready = True
                self._on_ready()

    def capacity(self) -> tuple[str | None, float]:
        """For a load balancer: `down` or `drain` if it is to send nothing new, and the share of children that
        were free on average since it asked before.

        A rolling restart does not drain: its children serve all the while, and where every server restarts
        at once a balancer would be left without any. The load goes elsewhere by weight, if it can.
        """
        draining = self._draining()
        if self.stopping or (draining and all(draining)):
            return "drain", 0.0  # not `down`: what it runs it still answers
        if self.why_not_ready() is not None:
            return "down", 0.0
        most = sum(pool.options.max_pool_size for pool in self.pools)
        most = min(most, self.options.total_pool_size or most)
        free = max(most - self._utilization(), 0.0) / most
        restarting = any(pool.policy.restarting for pool in self.pools)
        return None, min(free, RESTART_SHARE) if restarting else free

    def _utilization(self) -> float:
        """How many children were busy on average since the load balancer asked before."""
        now = time.monotonic()
        figures = [pool.busy_seconds(now) for pool in self.pools]
        spent, running, busy = (sum(column) for column in zip(*figures, strict=True))
        return self.utilization.look(now, spent, running, int(busy))

    def _draining(self) -> list[bool]:
        """Of each HTTP worker that has booted, whether it takes no new connections."""
        board = self.pools[0].scoreboard
        bases = (board.seat_base(seat.id) for seat in self.seats.values() if seat.booted)
        return [bool(board.words[base + SeatWord.DRAINING]) for base in bases]

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
        turns = 0
        timeout: float | None = 0.0
        while not (self.stopping and not any(pool.children for pool in self.pools)):
            self.lock.release()
            try:
                ready = self.selector.select(timeout)
            finally:
                self.lock.acquire()
            turns = turns + 1 if not ready and timeout == 0.0 else 0
            for key, mask in ready:
                # What stood before it in the list may have closed it, or given its number to another.
                if self.selector.get_map().get(key.fd) is key:
                    key.data(mask)
            timeout = self._turn()
            if turns > SPINNING and timeout is not None:
                if turns == SPINNING + 1:
                    self.log.error(
                        "the pool thread takes turn after turn without an event; it goes on slower"
                    )
                timeout = max(timeout, RETRY)
        if self.statsd is not None:
            self.statsd.send()

    def _turn(self) -> float | None:
        """Look after what is due and give each pool its turn. Returns how long to wait for the next event."""
        now = time.monotonic()
        self.lending.retry_at = None
        wake = earlier(self.lending.watch(now), self._look_at_memory(now))
        policies, budget = [pool.policy for pool in self.pools], self._budget
        acted = False
        for pool in self.pools:
            budget.allot(pool.policy, policies, self._memory_used)
            did, due = pool.turn(now)
            acted |= did
            wake = earlier(wake, due)
        self._look_whether_ready()
        if acted:
            return 0.0
        wake = earlier(wake, self.lending.retry_at)
        if self.history is not None:
            if now >= self.history.due:
                self.history.sample(now, *self._load())
            wake = earlier(wake, self.history.due)
        if self.statsd is not None:
            if now >= self.statsd.due:
                self.statsd.tick(now)
            wake = earlier(wake, self.statsd.due)
        for server in (self.control, self.admin):
            server.tick(now)
            wake = earlier(wake, server.deadline())
        return None if wake is None else max(wake - time.monotonic(), 0.0)

    @property
    def _budget(self) -> Budget:
        return Budget(self.options.total_pool_size, self.options.total_memory_limit)

    def _look_at_memory(self, now: float) -> float | None:
        """Measure what the children use, where somebody wants to know. Returns when to look again."""
        watched = [pool for pool in self.pools if pool.measures_memory or self.options.total_memory_limit]
        if not any(pool.children for pool in watched):
            self._memory_used = 0
            return None
        if now < self._memory_due:
            return self._memory_due
        self._memory_due = now + sampling.SAMPLE_INTERVAL
        usage = self._memory.sample([pid for pool in watched for pid in pool.supervisor.by_pid])
        self._memory_used = sum(pool.note_memory(usage) for pool in watched)
        if self.options.total_memory_limit and self._budget.exceeded(self._memory_used):
            idle = [pool.idle_children() for pool in self.pools]
            leaner = self._budget.give_up([pool.policy for pool in self.pools], idle)
            if leaner is not None:
                leaner.shrink(1)
        return self._memory_due

    def _on_wake(self, mask: int) -> None:
        try:
            while len(os.read(self._wake_r, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    # --- the end -------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """After the thread: whatever is left, where it ended by a bug or never started."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            for pool in self.pools:
                pool.supervisor.close()
            self.lending.close_all()
            for pool in self.pools:
                pool.supervisor.tell_restarts("the server is stopping")
            self.control.close()
            self.admin.close()
            if self.statsd is not None:
                self.statsd.close()
            self.selector.close()
            os.close(self._wake_r)
            os.close(self._wake_w)
            self._wake_r = self._wake_w = -1
        self.relay.stop()
        _servers.discard(self)

    def close_in_worker(self) -> None:
        """In a forked HTTP worker, whose copy of all this is of no use: close every descriptor.

        Before anything else is done there: a hook that hangs would keep the others' channels open, and they
        would not notice the arbiter's death.
        Closed, not unregistered: the epoll instances are shared with the arbiter, and would forget on its
        side too.
        """
        self.control.abandon()
        self.admin.abandon()
        if self.statsd is not None:
            self.statsd.close()
        self.lending.close_in_worker()
        numbers = [self._wake_r, self._wake_w, *self.relay.fds()]
        for pool in self.pools:
            numbers += pool.supervisor.forget_children()
        for number in numbers:
            os.close(number)
        self.selector.close()
        _servers.discard(self)


def _raise_file_limit() -> int | None:
    """Raise our soft limit of open files to the hard one; returns the old one, for the children, if it
    changed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard or soft == resource.RLIM_INFINITY:
        return None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return None
    return soft


class _Restarts:
    """Several pools' restarts as one: told of once, when the last has ended."""

    def __init__(self, count: int, done: Callable[[str | None], None]) -> None:
        self._left = count
        self._several = count > 1
        self._errors: list[str] = []
        self._done = done

    def of(self, name: str) -> Callable[[str | None], None]:
        """What to call when this pool's restart has ended."""

        def done(error: str | None) -> None:
            self._left -= 1
            if error is not None:
                self._errors.append(f"pool {name}: {error}" if self._several else error)
            if not self._left:
                self._done("; ".join(self._errors) or None)

        return done


# --- forks of the main thread ------------------------------------------------------------------------------

_servers: weakref.WeakSet[PoolThread] = weakref.WeakSet()
_held: list[PoolThread] = []


def _before_fork() -> None:
    for server in list(_servers):
        server.lock.acquire()
        server.relay.hold()
        _held.append(server)


def _after_fork() -> None:
    while _held:
        server = _held.pop()
        server.relay.resume()
        server.lock.release()


def _after_fork_in_child() -> None:
    servers = list(_held)
    _after_fork()
    for server in servers:
        server.close_in_worker()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
