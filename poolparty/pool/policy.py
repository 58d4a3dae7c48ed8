"""What the pool does next: a snapshot and the clock in, actions out. Runs in the pool thread; does nothing itself.

`Policy` keeps the few facts that outlive a decision (the size aimed at, the back-off after failed boots, who is to
be retired and why, a restart under way). `decide` looks at the children and the HTTP workers' queues and returns what to
do, in this order: end whoever is to leave and is idle, check health, lend, recall, grow, replace, restart, shrink. The
caller carries the actions out, reports what happens, and asks again at `Decision.wake` or when anything has changed.
What is being started or given back counts as coming capacity, so that asking twice does nothing twice.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from poolparty.pool.child import LIVE_STATES, READY_STATES, State

MAX_RESTART_DELAY = 30.0
"""Seconds: where the doubling of worker_restart_delay ends, as systemd's and Kubernetes' users expect of a crash loop."""

BUSY_RECALL_INTERVAL = 0.010
"""Seconds between two recalls of a busy child, and how much longer its new seat must have waited."""


class Cause(enum.Enum):
    """Why the arbiter ends a child; the value is what logs and stats show."""

    RESTART = "restart"
    REMOVED = "removed"
    UNUSED = "unused"
    STOP = "stop"
    BROKEN = "broken"  # closed a pipe or broke the framing
    REQUEST_TIMEOUT = "request timeout"
    BOOT_TIMEOUT = "boot timeout"
    UNHEALTHY = "unhealthy"
    LESSEE_DIED = "its HTTP worker died during a request"


@dataclass(frozen=True, slots=True)
class Limits:
    """The options that the decisions follow. Sizes are numbers of children, the rest seconds."""

    min_size: int
    max_size: int
    spawn_timeout: float
    restart_delay: float
    attrition_delay: float
    spare: int
    surge: int
    health_check_interval: float


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


Action = Lend | Recall | Spawn | End | Check


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
        self.generation = 0
        self.stopping = False
        self.restarting = False
        self.retiring: dict[int, Cause] = {}
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

    def grow(self, count: int) -> None:
        """Aim at `count` more children, bounded by the maximum."""
        self.target = min(self.target + max(count, 0), self.limits.max_size)

    def shrink(self, count: int, children: Sequence[ChildView]) -> None:
        """Retire `count` children, bounded by the minimum: those that boot or are idle first, then the busy ones when idle."""
        count = min(max(count, 0), self.target - self.limits.min_size)
        self.target -= max(count, 0)
        staying = [c for c in children if c.state in LIVE_STATES and c.id not in self.retiring]
        surplus = len(staying) - self.target
        staying.sort(key=lambda c: (c.busy, c.state is not State.BOOTING, c.last_used))
        for child in staying[: max(surplus, 0)]:
            self.retiring[child.id] = Cause.REMOVED

    def start_restart(self) -> None:
        """Replace every child there is, one by one."""
        self.generation += 1
        self.restarting = True
        self.failures = 0
        self._not_before = 0.0

    def abandon_restart(self) -> None:
        """The new generation does not boot: the old children stay."""
        self.restarting = False

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
            self.failures = 0
            return 0.0
        if not fresh and self.failures:
            return max(self._not_before - now, 0.0)
        return self.spawn_failed(now)

    def spawn_failed(self, now: float) -> float:
        """A child could not be started, or died before its first answer. Returns the seconds until the next try."""
        delay = min(self.limits.restart_delay * 2**self.failures, max(MAX_RESTART_DELAY, self.limits.restart_delay))
        self.failures = min(self.failures + 1, 64)
        self._fresh.clear()
        self._not_before = now + delay
        return delay

    # --- the decision --------------------------------------------------------------------------------------

    def decide(self, now: float, children: Sequence[ChildView], seats: Sequence[SeatView]) -> Decision:
        """What to do at `now`. Pure but for the few facts above."""
        decision = Decision()
        live = [child for child in children if child.state in LIVE_STATES]
        if self.stopping:
            decision.actions += [End(child.id, Cause.STOP) for child in live if child.state is not State.LENT]
            return decision
        if self.failures and any(child.served and child.id in self._fresh for child in live):
            self.failures = 0
            self._not_before = 0.0
        staying = [child for child in live if child.id not in self.retiring]
        self._restart(staying, decision)
        self._shrink(now, staying, decision)
        self._retire(live, decision)
        staying = [child for child in staying if child.id not in self.retiring]
        checked = self._check(now, staying, decision)
        self._serve(now, [child for child in staying if child.id not in checked], seats, decision)
        self._replace(now, staying, decision)
        return decision

    def _serve(
        self, now: float, staying: list[ChildView], seats: Sequence[SeatView], decision: Decision
    ) -> None:
        """Lend to the seats that wait, longest wait first; recall or grow where that is not enough."""
        wants = {seat.id: seat.queued for seat in seats if seat.queued}
        if not wants:
            self._growth = 1
            return
        waiting = sorted((seat for seat in seats if seat.queued), key=lambda seat: seat.oldest)
        idle = [child for child in staying if child.state is State.IDLE]
        idle.sort(key=lambda child: child.last_used)
        while idle and any(wants.values()):
            for seat in waiting:
                if idle and wants[seat.id]:
                    wants[seat.id] -= 1
                    decision.actions.append(Lend(idle.pop().id, seat.id))
        unmet = sum(wants.values()) - sum(child.state is State.RECALLED for child in staying)
        if unmet <= 0:
            return
        waiting = [seat for seat in waiting if wants[seat.id]]
        unmet -= self._recall_idle(staying, waiting, unmet, decision)
        if unmet > 0:
            self._grow(now, staying, waiting[0].oldest, unmet, decision)
            self._recall_busy(now, staying, waiting[0], seats, decision)

    def _recall_idle(
        self, staying: list[ChildView], waiting: list[SeatView], unmet: int, decision: Decision
    ) -> int:
        """Take back children that stand idle in a seat that has nothing for them."""
        hungry = {seat.id for seat in waiting}
        spare = [
            child
            for child in staying
            if child.state is State.LENT and not child.busy and child.seat not in hungry
        ][:unmet]
        decision.actions += [Recall(child.id) for child in spare]
        return len(spare)

    def _grow(
        self, now: float, staying: list[ChildView], oldest: float, unmet: int, decision: Decision
    ) -> None:
        """Aim at more children once the oldest request has waited worker_spawn_timeout, and twice as many each time after."""
        due = oldest + self.limits.spawn_timeout
        if now < due:
            self._growth = 1
            decision.wake_at(due)
            return
        booting = sum(child.state is State.BOOTING for child in staying)
        room = self.limits.max_size - max(self.target, len(staying))
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
        self, now: float, staying: list[ChildView], hungriest: SeatView, seats: Sequence[SeatView], decision: Decision
    ) -> None:
        """Take a child from the seat whose requests wait least, so that no seat starves."""
        waited = {seat.id: now - seat.oldest if seat.queued else 0.0 for seat in seats}
        held: dict[int, ChildView] = {}
        for child in staying:
            if child.state is State.LENT and child.seat is not None and child.seat != hungriest.id:
                held.setdefault(child.seat, child)
        if not held or any(child.state is State.RECALLED for child in staying):
            return
        richest = min(held, key=lambda seat: waited.get(seat, 0.0))
        due = max(
            self._busy_recall_next, hungriest.oldest + waited.get(richest, 0.0) + BUSY_RECALL_INTERVAL
        )
        if now < due:
            decision.wake_at(due)
            return
        self._busy_recall_next = now + BUSY_RECALL_INTERVAL
        decision.actions.append(Recall(held[richest].id))

    def _replace(self, now: float, staying: list[ChildView], decision: Decision) -> None:
        """Start children up to the size aimed at; during a restart, the new ones go beyond it by the surge."""
        missing = self.target - len(staying)
        if self.restarting:
            new = sum(child.generation == self.generation for child in staying)
            missing = min(self.target + self.limits.surge - len(staying), self.target - new)
        if missing <= 0:
            return
        if now < self._not_before:
            decision.wake_at(self._not_before)
            return
        decision.actions += [Spawn(self.generation)] * missing

    def _restart(self, staying: list[ChildView], decision: Decision) -> None:
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

    def _shrink(self, now: float, staying: list[ChildView], decision: Decision) -> None:
        """Retire what was not needed for worker_attrition_delay.

        HTTP workers take the child they used last first, so the children that no request reached in that time are those
        beyond the most that were busy at once.
        """
        if self.restarting or self.target <= self.limits.min_size:
            return
        ready = [child for child in staying if child.state in READY_STATES]
        room = len(ready) - self.limits.min_size
        if room <= 0:
            return
        unused = sorted((child for child in ready if not child.busy), key=lambda child: child.last_used)
        unused = unused[: max(len(unused) - self.limits.spare, 0)][:room]
        for child in unused:
            due = child.last_used + self.limits.attrition_delay
            if now < due:
                decision.wake_at(due)
                break
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
            elif child.state is not State.RECALLED:
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
