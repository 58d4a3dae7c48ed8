"""What the pool does next: a snapshot and the clock in, actions out. Runs in the pool thread; does no I/O.

`Policy` keeps the few facts that outlive a decision (the size aimed at, the back-off after failed boots, who
is to be retired and why, a restart under way). `decide` looks at the children and the HTTP workers' queues
and returns what to do, in this order: choose who is to leave (restart, surplus, not needed for long) and end
those of them that are idle, check health, lend, recall, grow, replace. The caller carries the actions out,
reports what happens, and asks again at `Decision.wake` or when anything has changed. What is being started,
lent or given back counts as coming capacity, so that asking twice does nothing twice.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from poolparty.pool.child import LIVE_STATES, READY_STATES, State

MAX_RESTART_DELAY = 30.0
"""Seconds: where the doubling of worker_restart_delay ends, as users of systemd and Kubernetes expect."""

MIN_RESTART_DELAY = 0.050
"""Seconds: what doubles if worker_restart_delay is less, so that no crash loop is a fork loop."""

RECOVERY_POLL = 1.0
"""Seconds between two looks for the first answer after a crash loop."""

BUSY_RECALL_INTERVAL = 0.010
"""Seconds between two recalls of a busy child, and how much longer its new seat must have waited."""

BUSY_RECALL_PATIENCE = 0.100
"""Seconds until another busy child is recalled while one that was recalled goes on with a long request."""


class Cause(enum.Enum):
    """Why the arbiter ends a child; the value is what logs and stats show."""

    RESTART = "restart"
    REMOVED = "removed"
    UNUSED = "unused"
    MAX_REQUESTS = "max requests"
    MAX_AGE = "max age"
    IDLE_TIMEOUT = "idle timeout"
    DRAINED = "drained"  # somebody asked for it by its pid
    MEMORY_LIMIT = "memory limit"
    MEMORY_KILL = "memory kill"
    STOP = "stop"
    BROKEN = "broken"  # closed a pipe or broke the framing
    REQUEST_TIMEOUT = "request timeout"
    STREAM_CANCEL = "stream cancel"  # went on with an answer whose client had left
    BOOT_TIMEOUT = "boot timeout"
    UNHEALTHY = "unhealthy"
    KILLED = "killed"  # likewise
    LESSEE_DIED = "its HTTP worker died during a request"


RECYCLED = frozenset(
    (Cause.MAX_REQUESTS, Cause.MAX_AGE, Cause.IDLE_TIMEOUT, Cause.MEMORY_LIMIT, Cause.DRAINED)
)
"""Why a child that is well is replaced by a new one, one at a time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The options that the decisions follow. Sizes are numbers of children, memory bytes, the rest seconds.

    0 is no limit where a child is replaced for its age, its idleness or its memory.
    """

    min_size: int
    max_size: int
    spawn_timeout: float
    restart_delay: float
    attrition_delay: float
    spare: int
    surge: int
    health_check_interval: float
    max_age: float = 0.0
    idle_timeout: float = 0.0
    memory_limit: int = 0
    memory_kill: int = 0


@dataclass(frozen=True, slots=True)
class ChildView:
    """A child at the moment of a decision."""

    id: int
    state: State
    generation: int
    seat: int | None  # who holds it
    busy: bool  # the scoreboard shows a request on it
    served: bool  # it has answered at least one request
    last_used: float  # when its last request began, or when it became ready
    checked: float  # when its last health check was written, or when it became ready
    spawned: float = 0.0
    requests: int = 0  # how many it has answered
    max_requests: int = 0  # after how many it is replaced, 0: never
    rss: int = 0  # its resident memory in bytes, 0: not known
    drain: bool = False  # it is to be replaced: somebody asked for it


@dataclass(frozen=True, slots=True)
class SeatView:
    """An HTTP worker at the moment of a decision."""

    id: int
    queued: int
    oldest: float  # when its longest-waiting request was accepted; meaningless if none waits


@dataclass(frozen=True, slots=True)
class Lend:
    child: int
    seat: int


@dataclass(frozen=True, slots=True)
class Recall:
    child: int


@dataclass(frozen=True, slots=True)
class Spawn:
    generation: int


@dataclass(frozen=True, slots=True)
class End:
    child: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Check:
    child: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End a child at once, whoever holds it and whatever it runs."""

    child: int
    cause: Cause


Action = Lend | Recall | Spawn | End | Check | Kill


@dataclass(slots=True)
class Decision:
    """What to do now, and when to ask again at the latest (None: when something changes)."""

    actions: list[Action] = field(default_factory=list)
    wake: float | None = None

    def wake_at(self, when: float) -> None:
        """Ask again at `when`, or earlier if that was wanted already."""
        if self.wake is None or when < self.wake:
            self.wake = when


class Policy:
    """The pool's size and the failures behind it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.target = limits.min_size
        self.room: int | None = None  # children that the server has for this pool, None: as many as it wants
        self.generation = 0
        self.stopping = False
        self.restarting = False
        self.retiring: dict[int, Cause] = {}
        self.recycling: tuple[int, Cause] | None = None  # it serves until another one is ready
        self.failures = 0  # consecutive deaths before a first answer
        self._not_before = 0.0  # no child is started before this time
        self._fresh: set[int] = set()  # children that were started since the last failure
        self._growth = 1
        self._grow_next = 0.0
        self._busy_recall_next = 0.0

    # --- what the caller reports ---------------------------------------------------------------------------

    def set_limits(self, limits: Limits) -> None:
        """Follow new options."""
        self.limits = limits
        self.target = min(max(self.target, limits.min_size), limits.max_size)

    def set_room(self, room: int | None) -> None:
        """So many children there may be for all that the other pools leave; what is beyond them goes."""
        self.room = None if room is None else max(room, self.limits.min_size)
        if self.room is not None:
            self.target = min(self.target, self.room)

    @property
    def max_size(self) -> int:
        """The most children that the pool may aim at now."""
        return self.limits.max_size if self.room is None else min(self.limits.max_size, self.room)

    def grow(self, count: int) -> None:
        """Aim at `count` more children, bounded by the maximum."""
        self.target = max(min(self.target + max(count, 0), self.max_size), self.target)

    def shrink(self, count: int) -> None:
        """Aim at `count` children less, bounded by the minimum."""
        self.target = max(self.target - max(count, 0), min(self.target, self.limits.min_size))

    def start_restart(self) -> None:
        """Replace every child there is, one by one."""
        self.generation += 1
        self.restarting = True
        self.failures = 0
        self._not_before = 0.0

    def abandon_restart(self) -> None:
        """The new generation does not boot: the old children stay."""
        self.restarting = False
        self.retiring = {child: cause for child, cause in self.retiring.items() if cause is not Cause.RESTART}

    def spawned(self, child: int) -> None:
        """A child was started."""
        self._fresh.add(child)

    def child_gone(self, child: int, served: bool, expected: bool, now: float) -> float:
        """A child has left. Returns the seconds until it may be replaced.

        served: it had answered a request. expected: it was told to leave, or left at end of file.
        """
        fresh = child in self._fresh
        self._fresh.discard(child)
        self.retiring.pop(child, None)
        if expected:
            return 0.0
        if served:
            self._recover()
            return 0.0
        if not fresh and self.failures:
            return max(self._not_before - now, 0.0)
        return self.spawn_failed(now)

    def spawn_failed(self, now: float) -> float:
        """A child could not be started, or died before its first answer. Returns the seconds to wait."""
        first = self.limits.restart_delay
        delay = min(max(first, MIN_RESTART_DELAY) * 2.0**self.failures, max(first, MAX_RESTART_DELAY))
        if not self.failures:
            delay = first
        self.failures = min(self.failures + 1, 64)
        self._fresh.clear()
        self._not_before = now + delay
        return delay

    def _recover(self) -> None:
        """A child has answered: what can be started serves."""
        self.failures = 0
        self._not_before = 0.0

    def _watch_recovery(self, now: float, live: list[ChildView], decision: Decision) -> None:
        """An answer, which nobody reports, ends the back-off: look for it while one may come."""
        fresh = [child for child in live if self.failures and child.id in self._fresh]
        if any(child.served for child in fresh):
            self._recover()
        elif any(child.seat is not None for child in fresh):
            decision.wake_at(now + RECOVERY_POLL)

    # --- the decision --------------------------------------------------------------------------------------

    def decide(self, now: float, children: Sequence[ChildView], seats: Sequence[SeatView]) -> Decision:
        """What to do at `now`. Pure but for the few facts above.

        `children` are all that have a process: the ending ones count where a restart bounds how many may be.
        """
        decision = Decision()
        processes = [child for child in children if child.state in LIVE_STATES]
        live = self._kill(processes, decision)
        if self.stopping:
            decision.actions += [End(child.id, Cause.STOP) for child in live if child.seat is None]
            return decision
        self._watch_recovery(now, live, decision)
        self._keep(live)
        staying = [child for child in live if child.id not in self.retiring]
        self._restart(staying)
        self._recycle(now, staying, decision)
        self._trim(staying)
        self._shrink(now, staying, decision)
        self._retire(live, decision)
        staying = [child for child in staying if child.id not in self.retiring]
        checked = self._check(now, staying, decision)
        self._serve(now, [child for child in staying if child.id not in checked], seats, decision)
        self._replace(now, staying, processes, len(children), decision)
        return decision

    def _serve(
        self, now: float, staying: list[ChildView], seats: Sequence[SeatView], decision: Decision
    ) -> None:
        """Lend to the seats that wait, longest wait first; recall or grow where that is not enough."""
        # A child that stands idle in a seat with waiting requests was just lent and covers one of them.
        spare: dict[int, list[ChildView]] = {seat.id: [] for seat in seats}
        for child in staying:
            if child.state is State.LENT and not child.busy and child.seat in spare:
                spare[child.seat].append(child)
        wants = {seat.id: seat.queued - len(spare[seat.id]) for seat in seats}
        waiting = sorted((seat for seat in seats if wants[seat.id] > 0), key=lambda seat: seat.oldest)
        if not waiting:
            self._growth = 1
            return
        idle = [child for child in staying if child.state is State.IDLE]
        idle.sort(key=lambda child: child.last_used)
        while idle and waiting:
            for seat in waiting:
                if idle:
                    wants[seat.id] -= 1
                    decision.actions.append(Lend(idle.pop().id, seat.id))
            waiting = [seat for seat in waiting if wants[seat.id] > 0]
        if not waiting:
            return
        unmet = sum(wants[seat.id] for seat in waiting)
        unmet -= sum(child.state is State.RECALLED and not child.busy for child in staying)
        for seat in seats:
            for child in spare[seat.id][: max(min(-wants[seat.id], unmet), 0)]:
                decision.actions.append(Recall(child.id))
                staying.remove(child)
                unmet -= 1
        if unmet > 0:
            self._grow(now, staying, waiting[0].oldest, unmet, decision)
            self._recall_busy(now, staying, waiting[0], seats, decision)

    def _grow(
        self, now: float, staying: list[ChildView], oldest: float, unmet: int, decision: Decision
    ) -> None:
        """Aim at one more child once the oldest request has waited worker_spawn_timeout, and at twice as many
        each time it has passed again."""
        due = oldest + self.limits.spawn_timeout
        if now < due:
            self._growth = 1
            decision.wake_at(due)
            return
        booting = sum(child.state is State.BOOTING for child in staying)
        room = self.max_size - max(self.target, len(staying))
        count = min(unmet - booting - max(self.target - len(staying), 0), room)
        if count <= 0:
            return
        if now < self._grow_next:
            decision.wake_at(self._grow_next)
            return
        self.target += min(count, self._growth)
        self._growth *= 2
        self._grow_next = now + self.limits.spawn_timeout
        decision.wake_at(self._grow_next)

    def _recall_busy(
        self,
        now: float,
        staying: list[ChildView],
        hungriest: SeatView,
        seats: Sequence[SeatView],
        decision: Decision,
    ) -> None:
        """Take a child from the seat whose requests wait least, so that no seat starves.

        Of its children the one whose request began last: the others have shown that theirs take longer.
        """
        waited = {seat.id: now - seat.oldest if seat.queued else 0.0 for seat in seats}
        held: dict[int, ChildView] = {}
        for child in sorted(staying, key=lambda child: child.last_used):
            if child.state is State.LENT and child.seat is not None and child.seat != hungriest.id:
                held[child.seat] = child
        if not held:
            return
        richest = min(held, key=lambda seat: waited.get(seat, 0.0))
        due = self._busy_recall_next
        if any(child.state is State.RECALLED for child in staying):
            due += BUSY_RECALL_PATIENCE - BUSY_RECALL_INTERVAL
        rival = waited.get(richest, 0.0)
        if waited[hungriest.id] - rival < BUSY_RECALL_INTERVAL:
            # Where both wait, time alone does not widen the gap: look again, but not before a full interval.
            due = max(due, (now if rival else hungriest.oldest) + BUSY_RECALL_INTERVAL)
        if now < due:
            decision.wake_at(due)
            return
        self._busy_recall_next = now + BUSY_RECALL_INTERVAL
        decision.actions.append(Recall(held[richest].id))

    def _replace(
        self,
        now: float,
        staying: list[ChildView],
        live: list[ChildView],
        processes: int,
        decision: Decision,
    ) -> None:
        """Start children up to the size aimed at; during a restart, the new ones go beyond it by the surge.

        In a restart every process counts, also one that finishes a request or is slow to leave: the surge is
        what memory allows.
        """
        missing = self.target - len(staying)
        if self.restarting:
            new = sum(child.generation == self.generation for child in staying)
            missing = min(self.target + self.limits.surge - processes, self.target - new)
        else:
            recycled = self.recycling is not None or any(c in RECYCLED for c in self.retiring.values())
            beyond = int(recycled and self.limits.surge > 0)
            missing = min(missing + self._surge, self.limits.max_size + beyond - len(live))
        if missing <= 0:
            return
        if now < self._not_before:
            decision.wake_at(self._not_before)
            return
        if self.failures > 1:
            missing = min(missing, self._tries(staying))
        decision.actions += [Spawn(self.generation)] * missing

    def _tries(self, staying: list[ChildView]) -> int:
        """In a crash loop: how many children may be started. One at a time until one gets ready."""
        fresh = [child for child in staying if child.id in self._fresh]
        if any(child.state in READY_STATES for child in fresh):
            return self.limits.max_size
        return 0 if fresh else 1

    def _keep(self, live: list[ChildView]) -> None:
        """Rather than start a child, keep one that was to go but is with an HTTP worker still."""
        leaving = [child for child in live if child.id in self.retiring]
        if self.restarting:
            return
        missing = self.target - (len(live) - len(leaving))
        kept = [c for c in leaving if c.seat is not None and self.retiring[c.id] not in RECYCLED]
        for child in kept[: max(missing, 0)]:
            del self.retiring[child.id]

    def _restart(self, staying: list[ChildView]) -> None:
        """Retire as many old children as new ones are ready in their place."""
        if not self.restarting:
            return
        old = [child for child in staying if child.generation < self.generation]
        if not old and not any(cause is Cause.RESTART for cause in self.retiring.values()):
            self.restarting = False
            return
        new = [child for child in staying if child.generation == self.generation]
        ready = sum(child.state in READY_STATES for child in new)
        keep = self.target - ready
        if not self.limits.surge and ready == len(new) and keep > 0:
            keep -= 1
        old.sort(key=lambda child: (child.state is not State.BOOTING, child.busy, child.last_used))
        for child in old[: max(len(old) - keep, 0)]:
            self.retiring[child.id] = Cause.RESTART

    @property
    def _surge(self) -> int:
        """How many children beyond the size aimed at a recycling asks for."""
        return int(self.recycling is not None and self.limits.surge > 0)

    def _kill(self, live: list[ChildView], decision: Decision) -> list[ChildView]:
        """End those that have outgrown worker_memory_kill, in the middle of a request if need be. Returns the
        others."""
        most = self.limits.memory_kill
        if not most:
            return live
        decision.actions += [Kill(child.id, Cause.MEMORY_KILL) for child in live if child.rss > most]
        return [child for child in live if child.rss <= most]

    def _recycle(self, now: float, staying: list[ChildView], decision: Decision) -> None:
        """Replace a child that has reached one of its limits: one at a time, and only once another is ready
        for it."""
        staying = [child for child in staying if child.id not in self.retiring]
        if self.recycling is not None and self.recycling[0] not in [child.id for child in staying]:
            self.recycling = None
        if self.restarting:
            self.recycling = None
            return
        if self.recycling is None:
            if not any(cause in RECYCLED for cause in self.retiring.values()):
                self.recycling = self._due(now, staying, decision)
            if self.recycling is None:
                return
        leaving, cause = self.recycling
        others = sum(child.state in READY_STATES and child.id != leaving for child in staying)
        if others >= self.target or not self.limits.surge:
            self.retiring[leaving] = cause
            self.recycling = None

    def _due(self, now: float, staying: list[ChildView], decision: Decision) -> tuple[int, Cause] | None:
        """The child that is to be replaced next, if any is."""
        limits = self.limits
        for child in staying:
            if child.state not in READY_STATES:
                continue
            if child.drain:
                return child.id, Cause.DRAINED
            if child.max_requests and child.requests >= child.max_requests:
                return child.id, Cause.MAX_REQUESTS
            if limits.memory_limit and child.rss > limits.memory_limit:
                return child.id, Cause.MEMORY_LIMIT
            if limits.max_age:
                due = child.spawned + limits.max_age
                if now >= due:
                    return child.id, Cause.MAX_AGE
                decision.wake_at(due)
            if limits.idle_timeout and not child.busy:
                due = child.last_used + limits.idle_timeout
                if now >= due:
                    return child.id, Cause.IDLE_TIMEOUT
                decision.wake_at(due)
        return None

    def _trim(self, staying: list[ChildView]) -> None:
        """Retire what is beyond the size aimed at: first what boots, then the longest idle, last the busy."""
        staying = [child for child in staying if child.id not in self.retiring]
        surplus = len(staying) - self.target - (self.limits.surge if self.restarting else self._surge)
        staying.sort(key=lambda child: (child.busy, child.state is not State.BOOTING, child.last_used))
        for child in staying[: max(surplus, 0)]:
            self.retiring[child.id] = Cause.REMOVED

    def _shrink(self, now: float, staying: list[ChildView], decision: Decision) -> None:
        """Retire what was not needed for worker_attrition_delay, but for the spare ones.

        HTTP workers take the child they used last first, so the children that no request reached in that time
        are those beyond the most that were busy at once.
        """
        if self.restarting or self.target <= self.limits.min_size:
            return
        ready = [child for child in staying if child.state in READY_STATES and child.id not in self.retiring]
        idle = sorted((child for child in ready if not child.busy), key=lambda child: child.last_used)
        unused = [child for child in idle if now >= child.last_used + self.limits.attrition_delay]
        if len(unused) < len(idle):
            decision.wake_at(idle[len(unused)].last_used + self.limits.attrition_delay)
        count = min(len(unused) - self.limits.spare, len(ready) - self.limits.min_size)
        for child in unused[: max(count, 0)]:
            self.target -= 1
            self.retiring[child.id] = Cause.UNUSED

    def _retire(self, live: list[ChildView], decision: Decision) -> None:
        """End those to be retired that the arbiter holds, recall those that are lent."""
        for child in live:
            cause = self.retiring.get(child.id)
            if cause is None:
                continue
            if child.state is State.LENT:
                decision.actions.append(Recall(child.id))
            elif child.seat is None:
                decision.actions.append(End(child.id, cause))

    def _check(self, now: float, staying: list[ChildView], decision: Decision) -> set[int]:
        """Check the health of idle children whose time has come, one that is lent after recalling it."""
        interval = self.limits.health_check_interval
        checked = set()
        for child in staying:
            due = child.checked + interval
            if now < due:
                decision.wake_at(due)
            elif child.state is State.IDLE:
                decision.actions.append(Check(child.id))
                checked.add(child.id)
            elif child.state is State.LENT:
                if child.busy:
                    decision.wake_at(now + min(interval, 1.0))
                else:
                    decision.actions.append(Recall(child.id))
                    checked.add(child.id)
        return checked
