"""One pool: its options, its children's supervisor, its policy and its own scoreboard. Runs in the arbiter,
in the pool thread and under its lock.

A turn looks after what depends on the time, asks the policy, and carries out literally what it says. What
pools share (the seats, the loop, the log, the total of children) is the PoolThread's; nothing of one pool is
in the way of another.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from poolparty.arbiter import sampling, slowlog
from poolparty.arbiter.children import Child, Recipe, logfmt
from poolparty.arbiter.seats import Share, earlier
from poolparty.arbiter.supervisor import Supervisor
from poolparty.pool import policy
from poolparty.pool.child import LIVE_STATES, READY_STATES
from poolparty.pool.policy import ChildView, Limits, Policy
from poolparty.pools import PoolConfig
from poolparty.settings import Options
from poolparty.stats import events
from poolparty.stats.notice import Notice
from poolparty.stats.scoreboard import ChildWord, PoolWord, Scoreboard, SeatWord

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolparty.arbiter.pool_thread import PoolThread

MIN_CHILD_ROWS = 1024
MAX_CHILD_ROWS = 1 << 17
"""Rows for children on the scoreboard, whose size is fixed at the start: twice the maximum, since those that
end count too, with room for a reload that raises it."""

SPAWNS_A_TURN = 4
"""Children started before other events have their turn."""

ROOM_PATIENCE = 5.0
"""Seconds for which requests wait although the machine has no room for a child."""


class Pool:
    """The children of one command. number: its place among the server's pools; seats: rows for them."""

    def __init__(self, thread: PoolThread, number: int, config: PoolConfig, seats: int) -> None:
        options = config.options
        wanted = 2 * (options.max_pool_size + options.worker_restart_surge) + 64
        rows = min(max(wanted, MIN_CHILD_ROWS), MAX_CHILD_ROWS)
        self.number = number
        self.name = config.name
        self.config = config
        self.notice = Notice()
        self.scoreboard = Scoreboard(seats=seats, children=rows)
        self.events = events.new_log()
        self._thread = thread
        self.policy = Policy(self._limits(options))
        self.supervisor = Supervisor(thread, self, Recipe.from_cfg(options, config.cfg), rows)
        self.children = self.supervisor.children
        self.counters = self.supervisor.counters
        self._slow_log = slowlog.SlowLog(self, thread.log)

    @property
    def options(self) -> Options:
        return self.config.options

    @property
    def share(self) -> Share:
        """What an HTTP worker has of it."""
        return Share(self.config, self.scoreboard, self.notice)

    @property
    def restart_error(self) -> str | None:
        """Why the children are not those of the last restart asked for."""
        return self.supervisor.restart_error

    def _limits(self, options: Options) -> Limits:
        size = options.max_pool_size
        room = max(self.scoreboard.children // 2 - options.worker_restart_surge, 1)
        if size > room:
            size = room
            self._thread.log.warning(
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

    def follow(self, config: PoolConfig) -> None:
        """Take over new options; children of the old ones stay until a restart."""
        self.config = config
        self.supervisor.grace = config.options.worker_request_grace
        self.policy.set_limits(self._limits(config.options))
        self.supervisor.configured = Recipe.from_cfg(config.options, config.cfg)

    def restart(self, done: Callable[[str | None], None], why: str) -> None:
        """Replace all children one by one; done(None) once the last old one has gone, done(error) if that
        failed."""
        self._thread.log.info("%s", logfmt("restarting workers", **self.label, reason=why))
        self.tell("restart", f"restarting all workers: {why}")
        self.supervisor.begin_restart(done)

    @property
    def label(self) -> dict[str, object]:
        """What a line of the log says of the pool: nothing where it is the only one."""
        return {"pool": self.name} if len(self._thread.pools) > 1 else {}

    def tell(self, kind: str, text: str, pid: int | None = None) -> None:
        """Note an event, for `events` and the status page."""
        self.events.append(events.Event(round(time.time(), 3), kind, text, pid))

    # --- how it is -----------------------------------------------------------------------------------------

    def load(self) -> tuple[int, int, int]:
        """How many children run a request, how many live, how many requests wait."""
        words = self.scoreboard.words
        live = [child for child in self.children.values() if child.state in LIVE_STATES]
        busy = sum(not self.scoreboard.child_is_idle(child.slot) for child in live)
        bases = [self.scoreboard.seat_base(seat) for seat in self._thread.seats]
        return busy, len(live), sum(words[base + SeatWord.QUEUED] for base in bases)

    def why_not_ready(self) -> str | None:
        """Why a request would find no child; None: one is ready, or can be started for it."""
        if any(child.state in READY_STATES for child in self.children.values()):
            return None
        if self.policy.failures:
            failed = [event.text for event in self.events if event.kind in ("death", "end", "failure")]
            return "no worker is ready" + (f"; the last one: {failed[-1]}" if failed else "")
        return None if self.options.min_pool_size == 0 else "no worker is ready yet"

    @property
    def starting(self) -> bool:
        """Whether its first children are on their way, and none has failed."""
        return not self.policy.failures and self.why_not_ready() is not None

    def busy_seconds(self, now: float) -> tuple[float, float, int]:
        """Seconds that children were busy for what they have answered; and for what they run now; and how
        many run something."""
        live = (child.slot for child in self.children.values() if child.state in LIVE_STATES)
        since = [running[0] for slot in live if (running := self.scoreboard.runs(slot)) is not None]
        spent = self.scoreboard.distributions()["service"].sum
        return spent, sum(now - started for started in since), len(since)

    def idle_children(self) -> int:
        """How many children are ready and run nothing."""
        ready = (child for child in self.children.values() if child.state in READY_STATES)
        return sum(self.scoreboard.child_is_idle(child.slot) for child in ready)

    # --- a turn --------------------------------------------------------------------------------------------

    def turn(self, now: float) -> tuple[bool, float | None]:
        """Look after what is due and carry out one decision: whether that changed something, and when to take
        the next turn at the latest."""
        supervisor = self.supervisor
        wake = supervisor.watch_handshakes(now)
        wake = earlier(wake, supervisor.watch_endings(now))
        views = self._child_views()
        decision = self.policy.decide(now, views, self._thread.lending.views(self, now))
        self._tell_whether_down(views, now)
        acted = self._act(decision.actions, now)
        supervisor.finish_restarts()
        wake = earlier(wake, self._slow_log.watch(now))
        return acted, earlier(wake, decision.wake)

    def _act(self, actions: Iterable[policy.Action], now: float) -> bool:
        """Carry actions out, each if it is still possible: whether any changed something."""
        lending = self._thread.lending
        acted = refused = False
        spawns = 0
        for action in actions:
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
                    acted |= lending.lend(child, seat, now)
                case policy.Recall():
                    acted |= lending.recall(child, now)
                case policy.End(_, cause):
                    acted |= self.supervisor.end(child, cause)
                case policy.Check():
                    acted |= self.supervisor.check(child, now)
                case policy.Kill(_, cause):
                    acted |= self.supervisor.kill_now(child, cause)
        return acted

    @property
    def measures_memory(self) -> bool:
        """Whether its own limits need to know what children use."""
        return bool(self.options.worker_memory_limit or self.options.worker_memory_kill)

    def _tell_whether_down(self, views: list[ChildView], now: float) -> None:
        """While the children die before they are ready, and none is left that serves, requests are not to
        wait. Where only the machine has no room for one, they wait for a while."""
        down = self.policy.failures > 1 and not any(view.state in LIVE_STATES for view in views)
        since = self.supervisor.no_room_since
        if since is not None and now < since + ROOM_PATIENCE:
            down = False
        self.scoreboard.words[self.scoreboard.pool_base + PoolWord.DOWN] = int(down)

    def note_memory(self, usage: dict[int, sampling.Usage]) -> int:
        """Take what was measured, by pid; returns the bytes that all children have."""
        for child in self.children.values():
            if child.pid in usage:
                child.rss = usage[child.pid].rss
        return sum(child.rss for child in self.children.values())

    def _child_views(self) -> list[ChildView]:
        return [self._view(child) for child in self.children.values()]

    def _view(self, child: Child) -> ChildView:
        words = self.scoreboard.words
        base = self.scoreboard.child_base(child.slot)
        answered = words[base + ChildWord.ANSWERED]  # before SENT: see Scoreboard.child_is_idle
        ready_at = child.ready_at or child.spawned_at
        return ChildView(
            id=child.id,
            state=child.state,
            generation=child.generation,
            seat=child.seat,
            busy=answered != words[base + ChildWord.SENT],
            served=answered > 0,
            last_used=max(ready_at, self.scoreboard.times[base + ChildWord.STARTED]),
            checked=child.checked,
            spawned=child.spawned_at,
            requests=answered,
            max_requests=words[base + ChildWord.MAX_REQUESTS],
            rss=child.rss,
            drain=child.drain,
        )
