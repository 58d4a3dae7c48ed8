"""The pool thread: owns the children, the seats, the policy and the control socket. Runs in the arbiter.

One thread, one select loop, one lock. A turn of the loop: wait in select without the lock; take it; call
whoever has something to read; look after what depends on the time; ask the policy and do what it says.
Nothing in a turn waits: log lines go through the relay, all descriptors are non-blocking, and starting a
child takes about a millisecond.

The main thread enters, under the same lock, to open a seat before a fork, to hand over processes it has
reaped, to reload and to stop. Its forks take the lock, so that a new HTTP worker never finds the pool in the
middle of a change; what that worker has of the pool is a copy of its memory and of its descriptors, which
Seat.enter_worker closes.

Who holds which child is in seats.py, a child's life in supervisor.py, its process in children.py, its output
in relay.py, all decisions in pool/policy.py.
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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poolparty import spool
from poolparty.arbiter import children, sampling, slowlog
from poolparty.arbiter.admin import AdminServer
from poolparty.arbiter.children import Child, Recipe
from poolparty.arbiter.control import ControlServer
from poolparty.arbiter.relay import Relay
from poolparty.arbiter.seats import RETRY, Lending, Seat, earlier
from poolparty.arbiter.supervisor import Supervisor
from poolparty.errors import ControlError
from poolparty.pool import policy
from poolparty.pool.child import LIVE_STATES, READY_STATES
from poolparty.pool.policy import Cause, ChildView, Limits, Policy
from poolparty.settings import Options
from poolparty.stats import events, report
from poolparty.stats.history import History
from poolparty.stats.notice import Notice
from poolparty.stats.scoreboard import ChildWord, PoolWord, Scoreboard, SeatWord
from poolparty.stats.utilization import Utilization

if TYPE_CHECKING:
    from poolparty.arbiter.statsd_sender import StatsdSender

__all__ = ["PoolThread", "Seat"]

MIN_CHILD_ROWS = 1024
MAX_CHILD_ROWS = 1 << 17
"""Rows for children on the scoreboard, whose size is fixed at the start: twice the maximum, since those that
end count too, with room for a reload that raises it."""

MIN_SEAT_ROWS = 128

SPAWNS_A_TURN = 4
"""Children started before other events have their turn."""

QUICK_GRACE = 1.0
"""Seconds from SIGTERM to SIGKILL at a quick stop."""

ROOM_PATIENCE = 5.0
"""Seconds for which requests wait although the machine has no room for a child."""

RESTART_SHARE = 0.1
"""The most that a load balancer is told to be free during a rolling restart."""

SPINNING = 1000
"""Turns in a row without an event after which something is wrong, and the loop slows down."""


DEFAULT_POOL = "default"
"""The name of the one pool there is."""


class PoolThread:
    """The pool. `on_failure` is called in the pool thread when it ends by a bug, `on_ready` at the first
    ready child."""

    def __init__(
        self,
        options: Options,
        cfg: Any,
        log: Any,
        on_failure: Callable[[], None] = lambda: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = DEFAULT_POOL
        self.pools = (self,)
        self.options = options
        self.lock = threading.RLock()
        self.relay = Relay(log)
        self.log = self.relay.log
        wanted = 2 * (options.max_pool_size + options.worker_restart_surge) + 64
        rows = min(max(wanted, MIN_CHILD_ROWS), MAX_CHILD_ROWS)
        self.notice = Notice()
        self.scoreboard = Scoreboard(seats=max(2 * cfg.workers + 32, MIN_SEAT_ROWS), children=rows)
        self.policy = Policy(self._limits(options))
        self.supervisor = Supervisor(self, Recipe.from_cfg(options, cfg), rows)
        self.children = self.supervisor.children
        self.counters = self.supervisor.counters
        self.events = events.new_log()
        self.started_at = time.monotonic()
        self.selector = selectors.DefaultSelector()
        self.lending = Lending(self)
        self.seats = self.lending.seats
        self.control = ControlServer(
            self, options.ctl_socket, self.log, uids=(cfg.uid,), group=options.ctl_socket_group
        )
        self.admin = AdminServer(self, options.admin_address, options.agent_address, self.log)
        self.utilization = Utilization()
        self.history: History | None = None
        if options.admin_address is not None or options.admin_prefix is not None:
            self.history = History([self.scoreboard], self.started_at)
        self.slow_log = slowlog.SlowLog(self)
        self.listen_backlog: int | None = None  # as the arbiter saw it last, if enable_backlog_metric is set
        self.statsd: StatsdSender | None = None
        self.failure: BaseException | None = None
        self.ready = options.min_pool_size == 0  # whether a child has ever been
        self._on_failure, self._on_ready = on_failure, on_ready
        self._memory = sampling.Sampler()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.selector.register(self._wake_r, selectors.EVENT_READ, self._on_wake)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._aim_statsd(cfg)
        _pools.add(self)

    def _limits(self, options: Options) -> Limits:
        size = options.max_pool_size
        room = max(self.scoreboard.children // 2 - options.worker_restart_surge, 1)
        if size > room:
            size = room
            self.log.warning(
                "max_pool_size = %d: there is room for %d children since the start; restart for more",
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
        self.supervisor.file_limit = _raise_file_limit()
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
        child = self.supervisor.by_pid.get(pid)
        if child is None:
            return False
        self.supervisor.bury(child)
        self.wake()
        return True

    def reload(self, options: Options, cfg: Any, done: Callable[[str | None], None]) -> None:
        """Follow new options, and replace every child by one of the new command, directory and
        environment."""
        with self.lock:
            self.options = options
            self.supervisor.grace = options.worker_request_grace
            self.policy.set_limits(self._limits(options))
            self.supervisor.configured = Recipe.from_cfg(options, cfg)
            self._aim_statsd(cfg)
            self.restart_workers(done, "the configuration was loaded again")
            self.wake()

    def begin_stop(self, graceful: bool) -> None:
        """Tell every child to leave; seats that are left are taken as dead. May be called again to be
        quicker."""
        with self.lock:
            now = time.monotonic()
            if not graceful:
                self.supervisor.grace = min(self.supervisor.grace, QUICK_GRACE)
                for child in self.children.values():
                    if child.kill_at is not None:
                        child.kill_at = min(child.kill_at, now + QUICK_GRACE)
            if not self.policy.stopping:
                self.policy.stopping = True
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
            busy, live, queued = self._load()
        waiting = f", {queued} queued" if queued else ""
        return f"pool {self.name} {busy}/{live} busy{waiting}"

    def _load(self) -> tuple[int, int, int]:
        """How many children run a request, how many live, how many requests wait."""
        words = self.scoreboard.words
        live = [child for child in self.children.values() if child.state in LIVE_STATES]
        busy = sum(not self.scoreboard.child_is_idle(child.slot) for child in live)
        bases = [self.scoreboard.seat_base(seat) for seat in self.seats]
        return busy, len(live), sum(words[base + SeatWord.QUEUED] for base in bases)

    def wake(self) -> None:
        """Have the loop take a turn. Any thread, and signal handlers."""
        with contextlib.suppress(OSError):  # full: it will wake; closed: it has ended
            os.write(self._wake_w, b"x")

    # --- called by the control socket, in the pool thread ---------------------------------------------------

    def stats(self) -> dict[str, Any]:
        return report.snapshot(self)

    def spawn_workers(self, count: int, pool: str | None = None) -> None:
        self._check(pool)
        self.policy.grow(count)
        self.wake()

    def remove_workers(self, count: int, pool: str | None = None) -> None:
        self._check(pool)
        self.policy.shrink(count)
        self.wake()

    def _check(self, pool: str | None) -> None:
        if pool not in (None, self.name):
            raise ControlError(f"there is no pool {pool!r}; there are: {self.name}")

    def restart_workers(self, done: Callable[[str | None], None], why: str, pool: str | None = None) -> None:
        """Replace all children one by one; done(None) once the last old one has gone, done(error) if that
        failed.

        why: what the restart is for, as a clause.
        """
        self._check(pool)
        if self.policy.stopping:
            done("the server is stopping")
            return
        self.log.info("%s", children.logfmt("restarting workers", reason=why))
        self.tell("restart", f"restarting all workers: {why}")
        self.supervisor.begin_restart(done)
        self.wake()

    def drain_worker(self, pid: int) -> None:
        """Have a child replaced once another one is ready for it. ControlError: there is no such child."""
        self._child_of(pid).drain = True
        self.wake()

    def kill_worker(self, pid: int) -> None:
        """End a child at once, whatever it runs. ControlError: there is no such child."""
        self.supervisor.kill_now(self._child_of(pid), Cause.KILLED)
        self.wake()

    def dump_worker(self, pid: int) -> str:
        """What a child does at this moment, as lines. ControlError: there is no such child."""
        return slowlog.dump(self, self._child_of(pid), time.monotonic())

    def _child_of(self, pid: int) -> Child:
        by_pid = self.supervisor.by_pid
        child = by_pid.get(pid)
        if child is None:
            known = " ".join(map(str, sorted(by_pid))) or "none"
            raise ControlError(f"no worker has the pid {pid}; there are: {known}")
        return child

    def why_not_ready(self, pool: str | None = None) -> str | None:
        """Why a request would find no child; None: one is ready, or can be started for it."""
        self._check(pool)
        if self.policy.stopping:
            return "the server is stopping"
        if all(self._draining()):
            return "no HTTP worker serves"
        if any(child.state in READY_STATES for child in self.children.values()):
            return None
        if self.policy.failures:
            failed = [event.text for event in self.events if event.kind in ("death", "end", "failure")]
            return "no worker is ready" + (f"; the last one: {failed[-1]}" if failed else "")
        return None if self.options.min_pool_size == 0 else "no worker is ready yet"

    def capacity(self) -> tuple[str | None, float]:
        """For a load balancer: `down` or `drain` if it is to send nothing new, and the share of children that
        were free on average since it asked before.

        A rolling restart does not drain: its children serve all the while, and where every server restarts
        at once a balancer would be left without any. The load goes elsewhere by weight, if it can.
        """
        draining = self._draining()
        if self.policy.stopping or (draining and all(draining)):
            return "drain", 0.0  # not `down`: what it runs it still answers
        if self.why_not_ready() is not None:
            return "down", 0.0
        most = self.options.max_pool_size
        free = max(most - self._utilization(), 0.0) / most
        return None, min(free, RESTART_SHARE) if self.policy.restarting else free

    def _utilization(self) -> float:
        """How many children were busy on average since the load balancer asked before."""
        now = time.monotonic()
        live = (child.slot for child in self.children.values() if child.state in LIVE_STATES)
        since = [running[0] for slot in live if (running := self.scoreboard.runs(slot)) is not None]
        spent = self.scoreboard.distributions()["service"].sum
        return self.utilization.look(now, spent, sum(now - started for started in since), len(since))

    def _draining(self) -> list[bool]:
        """Of each HTTP worker that has booted, whether it takes no new connections."""
        bases = (self.scoreboard.seat_base(seat.id) for seat in self.seats.values() if seat.booted)
        return [bool(self.scoreboard.words[base + SeatWord.DRAINING]) for base in bases]

    def tell(self, kind: str, text: str, pid: int | None = None) -> None:
        """Note an event, for `events` and the status page."""
        self.events.append(events.Event(round(time.time(), 3), kind, text, pid))

    def told_ready(self) -> None:
        """A child is ready."""
        if not self.ready:
            self.ready = True
            self._on_ready()

    @property
    def restart_error(self) -> str | None:
        """Why the children are not those of the last restart asked for."""
        return self.supervisor.restart_error

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
        while not (self.policy.stopping and not self.children):
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
        """Look after what is due and carry out one decision. Returns how long to wait for the next event."""
        now = time.monotonic()
        supervisor = self.supervisor
        wake = supervisor.watch_handshakes(now)
        wake = earlier(wake, supervisor.watch_endings(now))
        wake = earlier(wake, self.lending.watch(now))
        views = self._child_views(now)
        decision = self.policy.decide(now, views, self.lending.views(now))
        self._tell_whether_down(views, now)
        if self._measures_memory and self.children:
            wake = earlier(wake, now + sampling.SAMPLE_INTERVAL)
        acted = self._act(decision, now)
        supervisor.finish_restarts()
        if acted:
            return 0.0
        wake = earlier(earlier(wake, decision.wake), self.lending.retry_at)
        wake = earlier(wake, self.slow_log.watch(now))
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

    def _act(self, decision: policy.Decision, now: float) -> bool:
        """Carry actions out, each if it is still possible: whether any changed something."""
        acted = refused = False
        spawns = 0
        for action in decision.actions:
            if isinstance(action, policy.Spawn):
                spawns += 1
                if spawns > SPAWNS_A_TURN or refused:
                    continue
                started = self.counters["spawns"]
                acted |= self.supervisor.spawn(action.generation, now)
                # What refuses one refuses the others too: it is one failure, and one step of the back-off.
                refused = self.counters["spawns"] == started
                continue
            child = self.children.get(action.child)
            if child is None:
                continue
            match action:
                case policy.Lend(_, seat):
                    acted |= self.lending.lend(child, seat, now)
                case policy.Recall():
                    acted |= self.lending.recall(child, now)
                case policy.End(_, cause):
                    acted |= self.supervisor.end(child, cause)
                case policy.Check():
                    acted |= self.supervisor.check(child, now)
                case policy.Kill(_, cause):
                    acted |= self.supervisor.kill_now(child, cause)
        return acted

    @property
    def _measures_memory(self) -> bool:
        return bool(self.options.worker_memory_limit or self.options.worker_memory_kill)

    def _tell_whether_down(self, views: list[ChildView], now: float) -> None:
        """While the children die before they are ready, and none is left that serves, requests are not to
        wait. Where only the machine has no room for one, they wait for a while."""
        down = self.policy.failures > 1 and not any(view.state in LIVE_STATES for view in views)
        since = self.supervisor.no_room_since
        if since is not None and now < since + ROOM_PATIENCE:
            down = False
        self.scoreboard.words[self.scoreboard.pool_base + PoolWord.DOWN] = int(down)

    def _child_views(self, now: float) -> list[ChildView]:
        words, times = self.scoreboard.words, self.scoreboard.times
        usage: dict[int, sampling.Usage] = {}
        if self._measures_memory:
            usage = self._memory.sample(list(self.supervisor.by_pid))
        views = []
        for child in self.children.values():
            base = self.scoreboard.child_base(child.slot)
            started = times[base + ChildWord.STARTED]
            answered = words[base + ChildWord.ANSWERED]  # before SENT: see Scoreboard.child_is_idle
            ready_at = child.ready_at or child.spawned_at
            if child.pid in usage:
                child.rss = usage[child.pid].rss
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
                    rss=child.rss,
                    drain=child.drain,
                )
            )
        return views

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
            for child in list(self.children.values()):
                child.signal(signal.SIGKILL)
            for child in list(self.children.values()):
                child.reap()
                child.close()
                child.close_pidfd()
                self.relay.finish(child.output)
            self.children.clear()
            self.lending.close_all()
            self.supervisor.tell_restarts("the server is stopping")
            self.control.close()
            self.admin.close()
            if self.statsd is not None:
                self.statsd.close()
            self.selector.close()
            os.close(self._wake_r)
            os.close(self._wake_w)
            self._wake_r = self._wake_w = -1
        self.relay.stop()
        _pools.discard(self)

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
        for child in self.children.values():
            numbers += child.fds()
            child.process.returncode = 0  # not a process of this one's: Popen has nothing to wait for
        for number in numbers:
            os.close(number)
        self.selector.close()
        self.children.clear()
        _pools.discard(self)


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


# --- forks of the main thread ------------------------------------------------------------------------------

_pools: weakref.WeakSet[PoolThread] = weakref.WeakSet()
_held: list[PoolThread] = []


def _before_fork() -> None:
    for pool in list(_pools):
        pool.lock.acquire()
        pool.relay.hold()
        _held.append(pool)


def _after_fork() -> None:
    while _held:
        pool = _held.pop()
        pool.relay.resume()
        pool.lock.release()


def _after_fork_in_child() -> None:
    pools = list(_held)
    _after_fork()
    for pool in pools:
        pool.close_in_worker()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
