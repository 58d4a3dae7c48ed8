"""The pool's decisions, case by case and in a simulation: arbiter, HTTP workers and children on one clock."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from poolparty.pool.child import LIVE_STATES, READY_STATES, Event, State, next_state
from poolparty.pool.policy import (
    BUSY_RECALL_INTERVAL,
    BUSY_RECALL_PATIENCE,
    MAX_RESTART_DELAY,
    MIN_RESTART_DELAY,
    RECYCLED,
    Action,
    Cause,
    Check,
    ChildView,
    End,
    Kill,
    Lend,
    Limits,
    Policy,
    Recall,
    SeatView,
    Spawn,
)

HOUR = 3600.0

LIMITS = Limits(
    min_size=1,
    max_size=4,
    spawn_timeout=0.050,
    restart_delay=1.0,
    attrition_delay=120.0,
    spare=0,
    surge=1,
    health_check_interval=HOUR,
)


# --- a pool in simulated time ------------------------------------------------------------------------------

LATENCY = 0.0002  # from one process to another
WANT_DELAY, WANT_DELAY_MAX = 0.005, 0.040  # as in worker/dispatcher.py


@dataclass(eq=False)
class Request:
    arrived: float
    takes: float
    answered_at: float | None = None


@dataclass(eq=False)
class Child:
    id: int
    generation: int
    state: State = State.BOOTING
    seat: int | None = None
    running: Request | None = None
    served: bool = False
    last_used: float = 0.0
    checked: float = 0.0
    recalled: bool = False  # its seat knows
    cause: Cause | None = None
    slow_to_leave: float = LATENCY
    spawned: float = 0.0
    requests: int = 0
    max_requests: int = 0
    rss: int = 0


@dataclass(eq=False)
class Seat:
    """What an HTTP worker's dispatcher does, and what stands on its row."""

    id: int
    queue: list[Request] = field(default_factory=list)
    leases: list[Child] = field(default_factory=list)
    idle: list[Child] = field(default_factory=list)
    row_queued: int = 0
    row_oldest: float = 0.0
    want_timer: int | None = None
    want_delay: float = WANT_DELAY


class Pool:
    """Carries out what Policy decides, as the pool thread does, and checks that each action may be."""

    def __init__(self, limits: Limits = LIMITS, seats: int = 1, boot_time: float = 0.1) -> None:
        self.policy = Policy(limits)
        self.now = 1000.0
        self.boot_time: float | None = boot_time  # None: it dies instead
        self.max_requests = 0  # of the children started from now on
        self.children: dict[int, Child] = {}
        self.seats = {number: Seat(number) for number in range(seats)}
        self.log: list[tuple[float, Action]] = []
        self.requests: list[Request] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self._wake: float | None = None
        self._in_vain: deque[float] = deque(maxlen=20)
        self.settle()

    # what the tests do

    def advance(self, seconds: float) -> None:
        """Let time pass: events at their time, and a decision whenever one was asked for."""
        end = self.now + seconds
        while True:
            due = self._events[0][0] if self._events else end
            if self._wake is not None and self._wake < min(due, end):
                self.now = self._wake
                if not self.settle():
                    # One that waits may be looked at every few milliseconds; more often, it is a busy loop.
                    self._in_vain.append(self.now)
                    assert self.now - self._in_vain[0] > 0.005 or len(self._in_vain) < 20
                continue
            if not self._events or due > end:
                self.now = end
                return
            self.now, _, event = heapq.heappop(self._events)
            event()

    def until(self, condition: Callable[[], object], within: float) -> float:
        """Let time pass in small steps until the condition holds; returns how long that took."""
        began = self.now
        while not condition():
            assert self.now - began < within, f"not within {within} s"
            self.advance(0.001)
        return self.now - began

    def arrive(self, seat: int = 0, takes: float = 0.005, count: int = 1) -> list[Request]:
        """Requests reach an HTTP worker."""
        new = [Request(self.now, takes) for _ in range(count)]
        self.requests += new
        for request in new:
            if self.seats[seat].idle and not self.seats[seat].queue:
                self._run(self.seats[seat].idle.pop(), request)
            else:
                self._queue(self.seats[seat], request, len(self.seats[seat].queue))
        return new

    def client_leaves(self, seat: Seat) -> None:
        request = seat.queue.pop()
        request.answered_at = self.now
        if not seat.queue:
            self._stop_waiting(seat)

    def kill(self, child: Child) -> None:
        """The child dies by itself; its request is tried elsewhere."""
        self._die(child)
        self.settle()

    def _die(self, child: Child) -> None:
        request, seat = child.running, self.seats.get(-1 if child.seat is None else child.seat)
        child.running = None
        if seat is not None:
            seat.leases.remove(child)
            if child in seat.idle:
                seat.idle.remove(child)
            if request is not None:
                self._queue(seat, request, 0)
        self._gone(child)

    def seat_dies(self, seat: Seat) -> None:
        """An HTTP worker is killed, another comes in its place."""
        for request in [*seat.queue, *(child.running for child in seat.leases if child.running)]:
            request.answered_at = self.now
        self.seats[seat.id] = Seat(seat.id)
        for child in self.children.values():
            if child.seat == seat.id:
                child.seat, busy = None, child.running is not None
                child.recalled, child.running = False, None
                if busy:
                    self._end(child, Cause.BROKEN)
                else:
                    child.state = next_state(child.state, Event.RETURN)
        self.settle()

    def live(self) -> list[Child]:
        return [child for child in self.children.values() if child.state in LIVE_STATES]

    def in_state(self, state: State) -> list[Child]:
        return [child for child in self.children.values() if child.state is state]

    def actions(self, kind: type[Action] | None = None) -> list[Action]:
        """What has been done since this was asked last, of one kind."""
        done = [action for _, action in self.log if kind is None or isinstance(action, kind)]
        self.log.clear()
        return done

    # what the pool thread does

    def settle(self) -> bool:
        """Ask for decisions and carry them out until there is nothing to do. Returns whether there was."""
        acted = False
        for _ in range(50):
            retiring = set(self.policy.retiring)
            children, seats = self.views()
            decision = self.policy.decide(self.now, children, seats)
            assert decision.wake is None or decision.wake > self.now or decision.actions
            self._check_retired(retiring)
            for action in decision.actions:
                self._apply(action)
            if not decision.actions:
                again = self.policy.decide(self.now, children, seats)
                assert again.actions == [], "asked twice without a change, it wants something else"
                assert again.wake == decision.wake or decision.wake is not None
                self._wake = again.wake
                return acted
            acted = True
        raise AssertionError(f"it never comes to rest: {self.log[-10:]}")

    def views(self) -> tuple[list[ChildView], list[SeatView]]:
        children = [
            ChildView(
                id=child.id,
                state=child.state,
                generation=child.generation,
                seat=child.seat,
                busy=child.running is not None,
                served=child.served,
                last_used=child.last_used,
                checked=self.now if child.state is State.BOOTING else child.checked,
                spawned=child.spawned,
                requests=child.requests,
                max_requests=child.max_requests,
                rss=child.rss,
            )
            for child in self.children.values()
        ]
        return children, [SeatView(seat.id, seat.row_queued, seat.row_oldest) for seat in self.seats.values()]

    def _check_retired(self, before: set[int]) -> None:
        policy = self.policy
        new = {child for child in policy.retiring if child not in before}
        if any(policy.retiring[child] in (Cause.REMOVED, Cause.UNUSED) for child in new):
            staying = sum(child.id not in policy.retiring for child in self.live())
            assert staying >= min(policy.limits.min_size, policy.target), "shrunk below the minimum"

    def _apply(self, action: Action) -> None:
        self.log.append((self.now, action))
        policy = self.policy
        if isinstance(action, Spawn):
            assert not policy.stopping
            child = Child(
                next(self._numbers), action.generation, spawned=self.now, max_requests=self.max_requests
            )
            self.children[child.id] = child
            policy.spawned(child.id)
            processes = len(self.children) if policy.restarting else len(self.live())
            recycled = policy.recycling or RECYCLED & set(policy.retiring.values())
            beyond = policy.limits.surge if policy.restarting else int(bool(recycled))
            assert processes <= policy.limits.max_size + beyond
            if self.boot_time is None:
                self._later(0.05, lambda: self._boot_failed(child))
            else:
                self._later(self.boot_time, lambda: self._ready(child))
            return
        child = self.children[action.child]
        if isinstance(action, Kill):
            child.cause = action.cause
            self._die(child)
        elif isinstance(action, End):
            assert child.seat is None
            assert child.running is None
            self._end(child, action.cause)
        elif isinstance(action, Check):
            child.state = next_state(child.state, Event.CHECK)
            child.checked = self.now
            self._later(LATENCY, lambda: self._checked(child))
        elif isinstance(action, Lend):
            child.state = next_state(child.state, Event.LEND)
            assert child.seat is None
            child.seat = action.seat
            seat = self.seats[action.seat]
            self._later(LATENCY, lambda: self._taken(child, seat))
        else:
            child.state = next_state(child.state, Event.RECALL)
            assert child.seat is not None
            seat = self.seats[child.seat]
            self._later(2 * LATENCY, lambda: self._recalled(child, seat))

    def _end(self, child: Child, cause: Cause) -> None:
        child.state = next_state(child.state, Event.END)
        child.cause = cause
        self._later(child.slow_to_leave, lambda: self._left(child))

    def _left(self, child: Child) -> None:
        self._gone(child)
        self.settle()

    def _gone(self, child: Child) -> None:
        if self.children.pop(child.id, None) is None:
            return
        failed_boot = child.state is State.BOOTING
        child.state = next_state(child.state, Event.EXIT)
        expected = child.cause in (*RECYCLED, Cause.RESTART, Cause.REMOVED, Cause.UNUSED, Cause.STOP)
        self.policy.child_gone(child.id, child.served, expected, self.now)
        if failed_boot and self.policy.restarting and child.generation == self.policy.generation:
            self.policy.abandon_restart()

    def _boot_failed(self, child: Child) -> None:
        if child.state is State.BOOTING:
            self._gone(child)
            self.settle()

    def _ready(self, child: Child) -> None:
        if child.state is State.BOOTING:
            child.state = next_state(child.state, Event.READY)
            child.last_used = child.checked = self.now
            self.settle()

    def _checked(self, child: Child) -> None:
        if child.state is State.CHECKING:
            child.state = next_state(child.state, Event.CHECKED)
            self.settle()

    # what a seat does

    def _mine(self, child: Child, seat: Seat) -> bool:
        return (
            self.seats[seat.id] is seat
            and child.seat == seat.id
            and child.state in (State.LENT, State.RECALLED)
        )

    def _taken(self, child: Child, seat: Seat) -> None:
        if not self._mine(child, seat):
            return
        seat.leases.append(child)
        self._free(child, seat)

    def _recalled(self, child: Child, seat: Seat) -> None:
        if not self._mine(child, seat) or child.state is not State.RECALLED:
            return
        child.recalled = True
        if child in seat.idle:
            seat.idle.remove(child)
            self._give_back(child, seat)

    def _free(self, child: Child, seat: Seat) -> None:
        if child.recalled:
            self._give_back(child, seat)
        elif seat.queue:
            request = seat.queue.pop(0)
            if not seat.queue:
                self._stop_waiting(seat)
            self._run(child, request)
        else:
            seat.idle.append(child)

    def _give_back(self, child: Child, seat: Seat) -> None:
        seat.leases.remove(child)

        def returned() -> None:
            if self._mine(child, seat):
                child.state = next_state(child.state, Event.RETURN)
                child.seat, child.recalled = None, False
                self.settle()

        self._later(LATENCY, returned)

    def _run(self, child: Child, request: Request) -> None:
        child.running, child.last_used = request, self.now
        seat = self.seats[-1 if child.seat is None else child.seat]

        def answered() -> None:
            if child.running is request and self._mine(child, seat):
                request.answered_at = self.now
                child.running, child.served = None, True
                child.requests += 1
                child.recalled = child.recalled or child.requests == child.max_requests
                self._free(child, seat)

        self._later(request.takes, answered)

    def _queue(self, seat: Seat, request: Request, at: int) -> None:
        seat.queue.insert(at, request)
        if seat.want_timer is None:
            seat.want_delay = WANT_DELAY
            if seat.leases:
                self._want_later(seat, WANT_DELAY)
            else:
                self._want(seat)

    def _want(self, seat: Seat) -> None:
        seat.row_queued, seat.row_oldest = len(seat.queue), seat.queue[0].arrived
        self._later(LATENCY, self.settle)
        self._want_later(seat, seat.want_delay)
        seat.want_delay = min(2 * seat.want_delay, WANT_DELAY_MAX)

    def _want_later(self, seat: Seat, delay: float) -> None:
        number = seat.want_timer = next(self._numbers)

        def fire() -> None:
            if seat.want_timer == number and self.seats[seat.id] is seat:
                self._want(seat)

        self._later(delay, fire)

    def _stop_waiting(self, seat: Seat) -> None:
        seat.row_queued = 0
        seat.want_timer = None

    def _later(self, delay: float, event: Callable[[], object]) -> None:
        def run() -> None:
            event()

        heapq.heappush(self._events, (self.now + delay, next(self._numbers), run))


def ready_pool(limits: Limits = LIMITS, seats: int = 1, boot_time: float = 0.1) -> Pool:
    """A pool whose first children are ready and have answered a request each."""
    pool = Pool(limits, seats)
    pool.until(lambda: len(pool.in_state(State.IDLE)) == limits.min_size, 5)
    pool.boot_time = boot_time
    for child in pool.live():
        child.served = True
    pool.actions()
    return pool


def unanswered(requests: Iterable[Request]) -> list[Request]:
    return [request for request in requests if request.answered_at is None]


# --- the start, lending ------------------------------------------------------------------------------------


def test_the_minimum_is_started_at_once() -> None:
    pool = Pool(replace(LIMITS, min_size=3))
    assert pool.actions() == [Spawn(0)] * 3


def test_a_pool_may_start_empty_and_grows_with_its_first_request() -> None:
    pool = Pool(replace(LIMITS, min_size=0))
    assert pool.actions() == []
    [request] = pool.arrive()
    pool.advance(1)
    assert pool.actions(Spawn) == [Spawn(0)]
    assert request.answered_at is not None


def test_an_idle_child_is_lent_to_the_seat_that_waits() -> None:
    pool = ready_pool(seats=3)
    [child] = pool.live()
    pool.arrive(seat=1)
    pool.advance(0.002)
    assert pool.actions() == [Lend(child.id, 1)]


def test_a_child_that_boots_is_not_lent() -> None:
    pool = Pool(boot_time=5.0)
    pool.arrive()
    pool.advance(4.9)
    assert pool.actions(Lend) == []
    pool.advance(0.2)
    assert len(pool.actions(Lend)) == 1


def test_the_seat_that_waits_longest_is_lent_to_first() -> None:
    policy = Policy(LIMITS)
    children = [ChildView(1, State.IDLE, 0, None, False, True, 5.0, 5.0)]
    seats = [SeatView(0, 4, 9.8), SeatView(1, 1, 9.7), SeatView(2, 2, 9.9)]
    assert policy.decide(10.0, children, seats).actions[0] == Lend(1, 1)


def test_seats_that_wait_take_turns() -> None:
    policy = Policy(replace(LIMITS, min_size=4))
    children = [ChildView(n, State.IDLE, 0, None, False, True, 5.0, 5.0) for n in range(4)]
    seats = [SeatView(0, 9, 9.97), SeatView(1, 9, 9.98), SeatView(2, 1, 9.99)]
    lends = [action for action in policy.decide(10.0, children, seats).actions if isinstance(action, Lend)]
    assert [lend.seat for lend in lends] == [0, 1, 2, 0]


def test_the_child_used_last_is_lent_first() -> None:
    policy = Policy(replace(LIMITS, min_size=3))
    children = [
        ChildView(n, State.IDLE, 0, None, False, True, used, 5.0)
        for n, used in ((1, 7.0), (2, 9.0), (3, 8.0))
    ]
    assert policy.decide(10.0, children, [SeatView(0, 2, 9.99)]).actions == [Lend(2, 0), Lend(3, 0)]


def test_one_waiting_request_is_lent_one_child_however_often_the_policy_is_asked() -> None:
    pool = ready_pool(replace(LIMITS, min_size=4))
    pool.arrive(takes=1.0)
    pool.settle()
    pool.settle()
    assert len(pool.actions(Lend)) == 1


def test_children_on_their_way_to_a_seat_are_not_recalled_for_another() -> None:
    pool = ready_pool(replace(LIMITS, max_size=1), seats=2)
    pool.arrive(seat=0)
    pool.arrive(seat=1)
    pool.settle()
    assert [type(action) for action in pool.actions()] == [Lend]


# --- recalling ---------------------------------------------------------------------------------------------


def test_a_child_idle_in_another_seat_is_recalled_and_lent_within_milliseconds() -> None:
    pool = ready_pool(seats=2)
    pool.arrive(seat=0)
    pool.advance(1)
    [child] = pool.in_state(State.LENT)
    pool.actions()
    [request] = pool.arrive(seat=1, takes=0.001)
    pool.advance(0.004)
    assert pool.actions() == [Recall(child.id), Lend(child.id, 1)]
    assert request.answered_at is not None


def test_a_seat_that_has_work_for_its_idle_child_keeps_it() -> None:
    policy = Policy(LIMITS)
    children = [ChildView(1, State.LENT, 0, 0, False, True, 5.0, 5.0)]
    assert policy.decide(10.0, children, [SeatView(0, 1, 9.999), SeatView(1, 1, 9.999)]).actions == []


def test_no_more_idle_children_are_recalled_than_requests_wait() -> None:
    pool = ready_pool(replace(LIMITS, min_size=4), seats=2)
    pool.arrive(seat=0, count=4)
    pool.advance(1)
    pool.actions()
    pool.arrive(seat=1, takes=1.0)
    pool.settle()
    pool.settle()
    assert len(pool.actions(Recall)) == 1


def test_a_busy_child_is_recalled_when_another_seat_waits_and_the_pool_cannot_grow() -> None:
    pool = ready_pool(replace(LIMITS, max_size=1), seats=2)
    pool.arrive(seat=0, takes=0.2)
    pool.advance(0.1)
    pool.actions()
    [request] = pool.arrive(seat=1)
    pool.advance(BUSY_RECALL_INTERVAL - 0.001)
    assert pool.actions() == []
    pool.advance(0.010)
    [recall] = pool.actions()
    assert isinstance(recall, Recall)
    pool.until(lambda: request.answered_at, 0.5)


def test_a_seat_under_load_does_not_starve_another() -> None:
    pool = ready_pool(replace(LIMITS, max_size=1), seats=2)
    waits = []
    for _ in range(100):
        pool.arrive(seat=0, takes=0.004, count=2)
        [request] = pool.arrive(seat=1, takes=0.001)
        pool.advance(0.010)
        if len(unanswered([request])):
            waits.append(request)
    pool.until(lambda: not unanswered(waits), 1.0)
    assert max(request.answered_at - request.arrived for request in waits if request.answered_at) < 0.2


def test_a_recalled_child_with_a_long_request_does_not_keep_the_pool_from_growing() -> None:
    pool = ready_pool(replace(LIMITS, max_size=2), seats=2)
    pool.arrive(seat=0, takes=60.0)
    pool.advance(0.02)
    [request] = pool.arrive(seat=1)
    pool.advance(0.3)
    assert request.answered_at is not None


def test_a_recalled_child_with_a_long_request_does_not_keep_another_from_being_recalled() -> None:
    pool = ready_pool(replace(LIMITS, min_size=2, max_size=2), seats=2)
    pool.arrive(seat=0, takes=0.008)
    pool.arrive(seat=0, takes=60.0)

    def keep_busy() -> None:
        if len(pool.seats[0].queue) < 2:
            pool.arrive(seat=0, takes=0.008)

    for _ in range(20):
        keep_busy()
        pool.advance(0.002)
    # Recalled by hand: that it takes the long one is what could happen.
    [long] = [child for child in pool.live() if child.running and child.running.takes == 60.0]
    pool._apply(Recall(long.id))
    pool.policy._busy_recall_next = pool.now + BUSY_RECALL_INTERVAL
    [request] = pool.arrive(seat=1)
    for _ in range(100):
        keep_busy()
        pool.advance(0.002)
    assert request.answered_at is not None
    assert request.answered_at - request.arrived < 2 * BUSY_RECALL_PATIENCE


def test_the_busy_child_that_began_last_is_the_one_recalled() -> None:
    policy = Policy(replace(LIMITS, min_size=2, max_size=2))
    children = [
        ChildView(1, State.LENT, 0, 0, True, True, 9.0, 5.0),
        ChildView(2, State.LENT, 0, 0, True, True, 9.9, 5.0),
    ]
    assert policy.decide(10.0, children, [SeatView(1, 1, 9.98)]).actions == [Recall(2)]


# --- growing -----------------------------------------------------------------------------------------------


def test_the_pool_grows_when_a_request_has_waited_worker_spawn_timeout() -> None:
    pool = ready_pool()
    pool.arrive(takes=10)
    pool.advance(0.01)
    pool.arrive(takes=10)
    pool.advance(LIMITS.spawn_timeout - 0.001)
    assert pool.actions(Spawn) == []
    pool.advance(0.002)
    assert pool.actions(Spawn) == [Spawn(0)]


def test_a_queue_that_moves_in_time_grows_nothing() -> None:
    pool = ready_pool()
    for _ in range(50):
        pool.arrive(takes=0.005, count=4)
        pool.advance(0.021)
    assert pool.actions(Spawn) == []
    assert not unanswered(pool.requests)


def test_growth_doubles_while_requests_go_on_waiting() -> None:
    pool = ready_pool(replace(LIMITS, max_size=100), boot_time=60.0)
    pool.arrive(takes=100, count=60)
    sizes = []
    for _ in range(6):
        pool.advance(LIMITS.spawn_timeout + 0.001)
        sizes.append(len(pool.actions(Spawn)))
    assert sizes == [1, 2, 4, 8, 16, 28]


def test_children_that_boot_count_as_coming_so_that_no_storm_breaks_out() -> None:
    pool = ready_pool(replace(LIMITS, max_size=1000), boot_time=60.0)
    pool.arrive(takes=100, count=4)
    pool.advance(50)
    assert len(pool.actions(Spawn)) == 3


def test_the_pool_never_grows_beyond_its_maximum() -> None:
    pool = ready_pool()
    pool.arrive(takes=100, count=500)
    pool.advance(50)
    assert len(pool.live()) == LIMITS.max_size


def test_a_full_queue_is_worked_off_by_the_grown_pool() -> None:
    pool = ready_pool()
    pool.arrive(takes=0.1, count=100)
    took = pool.until(lambda: not unanswered(pool.requests), 20)
    assert took < 100 * 0.1 / LIMITS.max_size + 1


def test_spawn_workers_grows_up_to_the_maximum() -> None:
    pool = ready_pool()
    pool.policy.grow(2)
    pool.settle()
    assert pool.actions() == [Spawn(0)] * 2
    pool.policy.grow(99)
    pool.settle()
    assert len(pool.live()) == LIMITS.max_size
    pool.policy.grow(-5)
    pool.settle()
    assert len(pool.live()) == LIMITS.max_size


# --- deaths ------------------------------------------------------------------------------------------------


def test_a_child_that_has_answered_and_dies_is_replaced_at_once() -> None:
    pool = ready_pool()
    pool.kill(pool.live()[0])
    assert pool.actions() == [Spawn(0)]


def test_a_child_that_dies_before_its_first_answer_is_replaced_after_the_restart_delay() -> None:
    pool = Pool()
    pool.until(lambda: pool.in_state(State.IDLE), 1)
    pool.actions()
    pool.kill(pool.live()[0])
    assert pool.actions() == []
    pool.advance(LIMITS.restart_delay - 0.001)
    assert pool.actions() == []
    pool.advance(0.002)
    assert pool.actions() == [Spawn(0)]


def test_the_delay_doubles_up_to_thirty_seconds_while_no_child_answers() -> None:
    pool = ready_pool()
    pool.boot_time = None
    pool.kill(pool.live()[0])
    pool.advance(200)
    spawned_at = [at for at, action in pool.log if isinstance(action, Spawn)]
    gaps = [round(later - earlier - 0.05, 1) for earlier, later in itertools.pairwise(spawned_at)]
    assert gaps[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, MAX_RESTART_DELAY]
    assert set(gaps[6:]) == {MAX_RESTART_DELAY}


def test_children_that_fail_together_are_one_failure() -> None:
    pool = Pool(replace(LIMITS, min_size=4))
    for child in pool.live():
        pool.kill(child)
    assert pool.policy.failures == 1
    pool.actions()
    pool.advance(LIMITS.restart_delay + 0.001)
    assert pool.actions() == [Spawn(0)] * 4


def test_in_a_crash_loop_one_child_at_a_time_is_tried_however_large_the_pool() -> None:
    pool = Pool(replace(LIMITS, min_size=4), boot_time=None)  # type: ignore[arg-type]
    pool.advance(0.9)
    pool.log.clear()
    pool.advance(30)
    assert [len(list(group)) for _, group in itertools.groupby(at for at, _ in pool.log)] == [4, 1, 1, 1]
    pool.boot_time = 0.1
    pool.advance(17)
    assert len(pool.live()) == 4, "once it boots all the others follow, also without a request"


def test_an_answer_ends_the_back_off() -> None:
    pool = Pool(replace(LIMITS, min_size=2))
    pool.until(lambda: len(pool.in_state(State.IDLE)) == 2, 1)
    first, second = pool.live()
    for _ in range(4):
        pool.policy.spawn_failed(pool.now)
    pool.kill(first)
    second.served = True
    pool.actions()
    pool.advance(60)  # the one that was started after the failures has not answered either
    assert pool.policy.failures > 0
    pool.arrive(count=2, takes=0.5)
    pool.advance(5)
    assert pool.policy.failures == 0


def test_a_death_after_an_answer_ends_the_back_off_too() -> None:
    pool = ready_pool(replace(LIMITS, min_size=2))
    first, second = pool.live()
    first.served = False
    pool.policy.spawn_failed(pool.now)
    pool.kill(first)
    pool.actions()
    pool.kill(second)
    assert pool.actions() == [Spawn(0)] * 2


def test_a_restart_delay_of_nothing_still_backs_off() -> None:
    policy = Policy(replace(LIMITS, restart_delay=0.0))
    assert [policy.spawn_failed(0.0) for _ in range(4)] == [
        0.0,
        2 * MIN_RESTART_DELAY,
        4 * MIN_RESTART_DELAY,
        8 * MIN_RESTART_DELAY,
    ]


def test_a_restart_delay_beyond_thirty_seconds_is_kept_and_does_not_double() -> None:
    policy = Policy(replace(LIMITS, restart_delay=45.0))
    assert [policy.spawn_failed(0.0) for _ in range(3)] == [45.0, 45.0, 45.0]


def test_a_thousand_failures_in_a_row_overflow_nothing() -> None:
    policy = Policy(LIMITS)
    assert {policy.spawn_failed(0.0) for _ in range(2000)} == {1.0, 2.0, 4.0, 8.0, 16.0, MAX_RESTART_DELAY}


def test_a_failed_spawn_is_tried_again_after_the_delay() -> None:
    policy = Policy(LIMITS)
    assert policy.decide(10.0, [], []).actions == [Spawn(0)]
    assert policy.spawn_failed(10.0) == LIMITS.restart_delay
    decision = policy.decide(10.0, [], [])
    assert (decision.actions, decision.wake) == ([], 11.0)
    assert policy.decide(11.0, [], []).actions == [Spawn(0)]


def test_a_child_that_was_told_to_leave_is_no_failure() -> None:
    pool = Pool(replace(LIMITS, min_size=0))
    pool.policy.grow(1)
    pool.settle()
    pool.policy.shrink(1)
    pool.settle()
    pool.advance(1)
    assert pool.children == {}
    assert pool.policy.failures == 0


# --- shrinking ---------------------------------------------------------------------------------------------


def test_remove_workers_ends_idle_children_down_to_the_minimum() -> None:
    pool = ready_pool()
    pool.policy.grow(3)
    pool.settle()
    pool.advance(1)
    pool.actions()
    pool.policy.shrink(99)
    pool.settle()
    assert [action.cause for action in pool.actions(End) if isinstance(action, End)] == [Cause.REMOVED] * 3
    assert len(pool.live()) == 1
    pool.policy.shrink(1)
    pool.policy.shrink(-7)
    pool.settle()
    assert pool.actions() == []


def test_remove_workers_ends_a_busy_child_only_after_its_request() -> None:
    pool = ready_pool(replace(LIMITS, min_size=0, max_size=2))
    pool.policy.grow(2)
    pool.settle()
    pool.advance(1)
    requests = pool.arrive(takes=5, count=2)
    pool.advance(1)
    pool.actions()
    pool.policy.shrink(2)
    pool.settle()
    assert [type(action) for action in pool.actions()] == [Recall, Recall]
    pool.advance(10)
    assert not unanswered(requests)
    assert pool.children == {}


def test_of_busy_and_idle_children_the_idle_ones_are_removed() -> None:
    pool = ready_pool(replace(LIMITS, min_size=1, max_size=3))
    pool.policy.grow(2)
    pool.settle()
    pool.advance(1)
    pool.arrive(takes=5, count=2)
    pool.advance(1)
    busy = {child.id for child in pool.live() if child.running}
    pool.policy.shrink(1)
    pool.settle()
    pool.advance(1)
    assert {child.id for child in pool.live()} == busy


def test_a_child_to_be_removed_stays_if_the_pool_is_to_grow_again() -> None:
    pool = ready_pool(replace(LIMITS, min_size=0, max_size=1))
    if not pool.live():
        pool.policy.grow(1)
        pool.settle()
        pool.advance(1)
    pool.arrive(takes=5)
    pool.advance(1)
    pool.actions()
    pool.policy.shrink(1)
    pool.settle()
    pool.policy.grow(1)
    pool.settle()
    pool.advance(10)
    assert pool.actions(Spawn) == []
    assert len(pool.live()) == 1


def test_children_that_no_request_reached_in_the_attrition_window_are_ended() -> None:
    pool = ready_pool()
    pool.policy.grow(3)
    pool.settle()
    pool.advance(1)
    pool.actions()
    for _ in range(100):  # two at a time, for longer than the window
        pool.arrive(takes=0.1, count=2)
        pool.advance(1.3)
    assert len(pool.live()) == 2
    ends = [action for _, action in pool.log if isinstance(action, End)]
    assert [end.cause for end in ends] == [Cause.UNUSED] * 2
    pool.advance(LIMITS.attrition_delay + 1)
    assert len(pool.live()) == LIMITS.min_size


def test_attrition_waits_for_the_whole_window() -> None:
    pool = ready_pool()
    pool.policy.grow(1)
    pool.settle()
    pool.advance(0.1)
    pool.actions()
    pool.advance(LIMITS.attrition_delay - 0.2)
    assert pool.actions() == []
    pool.advance(0.3)
    assert len(pool.actions(End)) == 1


def test_spare_workers_are_left_beyond_those_that_were_busy() -> None:
    pool = ready_pool(replace(LIMITS, spare=1))
    pool.policy.grow(3)
    pool.settle()
    for _ in range(150):
        pool.arrive(takes=0.1)
        pool.advance(1)
    assert len(pool.live()) == 2


def test_a_pool_between_two_sizes_does_not_flap() -> None:
    pool = ready_pool()
    for _ in range(300):
        pool.arrive(takes=0.5, count=2)
        pool.advance(1)
    assert len([action for _, action in pool.log if isinstance(action, Spawn)]) == 1
    assert [action for _, action in pool.log if isinstance(action, End)] == []


def test_a_lower_maximum_ends_what_is_beyond_it() -> None:
    pool = ready_pool()
    pool.policy.grow(3)
    pool.settle()
    pool.advance(1)
    pool.policy.set_limits(replace(LIMITS, max_size=2))
    pool.settle()
    pool.advance(1)
    assert len(pool.live()) == 2


def test_a_higher_minimum_is_filled() -> None:
    pool = ready_pool()
    pool.policy.set_limits(replace(LIMITS, min_size=3))
    pool.settle()
    assert pool.actions() == [Spawn(0)] * 2


# --- restart -----------------------------------------------------------------------------------------------


def test_a_restart_replaces_one_by_one_and_never_has_fewer_ready() -> None:
    pool = ready_pool(replace(LIMITS, min_size=4))
    pool.policy.start_restart()
    pool.settle()
    fewest, most = 4, 4
    while pool.policy.restarting:
        pool.advance(0.001)
        fewest = min(fewest, sum(child.state in READY_STATES for child in pool.children.values()))
        most = max(most, len(pool.children))
    assert (fewest, most) == (4, 5)
    assert {child.generation for child in pool.live()} == {1}
    assert len(pool.live()) == 4


def test_a_restart_with_a_larger_surge_goes_that_far_beyond() -> None:
    pool = ready_pool(replace(LIMITS, min_size=4, surge=3))
    pool.policy.start_restart()
    pool.settle()
    assert pool.actions() == [Spawn(1)] * 3
    pool.until(lambda: not pool.policy.restarting, 5)
    assert [child.generation for child in pool.live()] == [1] * 4


def test_a_restart_without_surge_ends_one_before_it_starts_one() -> None:
    pool = ready_pool(replace(LIMITS, min_size=3, surge=0))
    pool.policy.start_restart()
    pool.settle()
    fewest, most = 3, 3
    while pool.policy.restarting:
        pool.advance(0.001)
        fewest = min(fewest, sum(child.state in READY_STATES for child in pool.children.values()))
        most = max(most, len(pool.children))
    assert (fewest, most) == (2, 3)
    assert [child.generation for child in pool.live()] == [1] * 3


def test_a_restart_without_surge_waits_for_a_process_that_is_slow_to_leave() -> None:
    pool = ready_pool(replace(LIMITS, surge=0))
    [old] = pool.live()
    old.slow_to_leave = 5.0
    pool.policy.start_restart()
    pool.settle()
    pool.advance(4.9)
    assert pool.actions(Spawn) == []
    pool.advance(1)
    assert [child.generation for child in pool.live()] == [1]


def test_a_restart_lets_busy_children_finish_and_keeps_to_the_surge_meanwhile() -> None:
    pool = ready_pool(replace(LIMITS, min_size=4))
    requests = pool.arrive(takes=10, count=4)
    pool.advance(1)
    pool.policy.start_restart()
    pool.settle()
    pool.advance(5)
    assert len(pool.children) == 5
    pool.advance(20)
    assert not unanswered(requests)
    assert not pool.policy.restarting


def test_a_restart_under_load_is_not_noticed() -> None:
    pool = ready_pool(replace(LIMITS, min_size=4), seats=2)
    for step in range(400):
        if step == 100:
            pool.policy.start_restart()
            pool.settle()
        pool.arrive(seat=step % 2, takes=0.005)
        pool.advance(0.003)
    assert not pool.policy.restarting
    pool.advance(0.1)
    assert not unanswered(pool.requests)
    assert max(r.answered_at - r.arrived for r in pool.requests if r.answered_at) < 0.05


def test_a_restart_of_an_empty_pool_is_done_at_once() -> None:
    pool = Pool(replace(LIMITS, min_size=0))
    pool.policy.start_restart()
    pool.settle()
    assert not pool.policy.restarting
    pool.policy.grow(1)
    pool.settle()
    assert pool.actions() == [Spawn(1)]


def test_a_new_generation_that_does_not_boot_leaves_the_old_one_serving() -> None:
    pool = ready_pool(replace(LIMITS, min_size=4))
    pool.boot_time = None
    pool.policy.start_restart()
    pool.settle()
    pool.advance(60)
    assert not pool.policy.restarting
    assert [child.generation for child in pool.live()] == [0] * 4
    assert pool.actions(Spawn) == [Spawn(1)]


def test_a_restart_abandoned_half_way_keeps_the_busy_old_children() -> None:
    pool = ready_pool(replace(LIMITS, min_size=3))
    pool.arrive(takes=30, count=3)
    pool.advance(1)
    pool.policy.start_restart()
    pool.settle()
    pool.advance(1)  # one new child is ready, one old one is to leave after its request
    pool.policy.abandon_restart()
    pool.settle()
    pool.advance(60)
    assert len(pool.live()) == 3
    assert sum(child.generation == 0 for child in pool.live()) >= 2


def test_a_second_restart_takes_over_from_the_first() -> None:
    pool = ready_pool(replace(LIMITS, min_size=3))
    pool.policy.start_restart()
    pool.settle()
    pool.advance(0.15)
    pool.policy.start_restart()
    pool.settle()
    pool.until(lambda: not pool.policy.restarting, 5)
    assert [child.generation for child in pool.live()] == [2] * 3


def test_an_old_child_that_dies_in_a_restart_is_replaced_by_a_new_one() -> None:
    pool = ready_pool(replace(LIMITS, min_size=3), boot_time=1.0)
    pool.policy.start_restart()
    pool.settle()
    pool.kill(next(child for child in pool.live() if child.generation == 0))
    assert pool.actions(Spawn) == [Spawn(1)] * 2
    pool.until(lambda: not pool.policy.restarting, 10)
    assert [child.generation for child in pool.live()] == [1] * 3


def test_a_restart_ends_the_wait_of_a_crash_loop() -> None:
    pool = Pool()
    pool.boot_time = None
    pool.kill(pool.live()[0])
    pool.advance(100)
    pool.boot_time = 0.1
    pool.actions()
    pool.policy.start_restart()
    pool.settle()
    assert pool.actions() == [Spawn(1)]


# --- health ------------------------------------------------------------------------------------------------


def test_an_idle_child_is_checked_at_its_interval() -> None:
    pool = ready_pool(replace(LIMITS, health_check_interval=10.0))
    [child] = pool.live()
    pool.advance(9.8)
    assert pool.actions() == []
    pool.advance(0.4)
    assert pool.actions() == [Check(child.id)]
    pool.advance(35)
    assert pool.actions() == [Check(child.id)] * 3


def test_a_child_idle_in_a_seat_is_recalled_for_its_check_and_lent_again_when_wanted() -> None:
    pool = ready_pool(replace(LIMITS, health_check_interval=10.0))
    pool.arrive()
    pool.advance(1)
    pool.actions()
    pool.advance(9.5)
    [child] = pool.live()
    assert pool.actions() == [Recall(child.id), Check(child.id)]
    [request] = pool.arrive()
    pool.advance(0.1)
    assert request.answered_at is not None


def test_a_busy_child_is_not_checked() -> None:
    pool = ready_pool(replace(LIMITS, health_check_interval=10.0))
    pool.arrive(takes=25)
    pool.advance(1)
    pool.actions()
    pool.advance(23)
    assert pool.actions() == []
    pool.advance(5)
    assert [type(action) for action in pool.actions()] == [Recall, Check]


def test_a_child_is_not_lent_while_it_is_checked() -> None:
    policy = Policy(LIMITS)
    children = [ChildView(1, State.CHECKING, 0, None, False, True, 5.0, 10.0)]
    assert policy.decide(10.0, children, [SeatView(0, 1, 9.99)]).actions == []


# --- stopping ----------------------------------------------------------------------------------------------


def test_stopping_ends_what_the_arbiter_holds_and_starts_nothing() -> None:
    policy = Policy(replace(LIMITS, min_size=4))
    policy.stopping = True
    children = [
        ChildView(1, State.IDLE, 0, None, False, True, 5.0, 5.0),
        ChildView(2, State.BOOTING, 0, None, False, False, 5.0, 5.0),
        ChildView(3, State.LENT, 0, 0, True, True, 5.0, 5.0),
        ChildView(4, State.RECALLED, 0, 0, True, True, 5.0, 5.0),
        ChildView(5, State.ENDING, 0, None, False, True, 5.0, 5.0),
        ChildView(6, State.CHECKING, 0, None, False, True, 5.0, 5.0),
    ]
    decision = policy.decide(10.0, children, [SeatView(0, 3, 9.0)])
    assert decision.actions == [End(1, Cause.STOP), End(2, Cause.STOP), End(6, Cause.STOP)]


# --- limits of a child's life ------------------------------------------------------------------------------


def test_a_child_is_replaced_at_its_last_request_and_serves_until_its_successor_is_ready() -> None:
    pool = ready_pool()
    [old] = pool.live()
    old.max_requests = 3
    for _ in range(3):
        pool.arrive(takes=0.001)
        pool.advance(0.01)
    assert not unanswered(pool.requests)
    assert pool.children[old.id].state in READY_STATES
    assert len(pool.live()) == 2
    pool.advance(pool.boot_time or 0)
    pool.until(lambda: old.id not in pool.children, 1)
    assert [child.id for child in pool.live()] != [old.id]
    assert [action.cause for action in pool.actions(End)] == [Cause.MAX_REQUESTS]


def test_a_seat_gives_a_child_back_at_its_last_request_however_much_waits() -> None:
    pool = ready_pool(replace(LIMITS, max_size=1))
    [old] = pool.live()
    old.max_requests = 5
    requests = pool.arrive(takes=0.001, count=200)
    pool.until(lambda: not unanswered(requests), 2)
    assert old.id not in pool.children
    assert all(action.cause is Cause.MAX_REQUESTS for action in pool.actions(End))


def test_children_past_their_age_are_replaced_one_at_a_time() -> None:
    pool = ready_pool(replace(LIMITS, min_size=3, max_age=60.0))
    old = {child.id for child in pool.live()}
    pool.advance(59.8)
    pool.actions()
    while old & set(pool.children):
        pool.advance(0.01)
        assert len(pool.live()) <= 4
        assert sum(child.state in READY_STATES for child in pool.live()) >= 3
    assert [action.cause for action in pool.actions(End)] == [Cause.MAX_AGE] * 3


def test_a_child_idle_for_too_long_is_replaced_and_a_used_one_is_not() -> None:
    pool = ready_pool(replace(LIMITS, idle_timeout=10.0))
    [old] = pool.live()
    for _ in range(5):
        pool.advance(6)
        pool.arrive(takes=0.001)
    assert old.id in pool.children
    pool.advance(10.3)
    assert old.id not in pool.children
    assert [action.cause for action in pool.actions(End)] == [Cause.IDLE_TIMEOUT]


def test_a_child_over_its_memory_limit_finishes_its_request() -> None:
    pool = ready_pool(replace(LIMITS, memory_limit=100))
    [old] = pool.live()
    [request] = pool.arrive(takes=2.0)
    pool.advance(0.01)
    old.rss = 101
    pool.settle()
    pool.advance(1.0)
    assert old.running is request
    pool.advance(1.5)
    assert request.answered_at is not None
    assert old.id not in pool.children


def test_without_surge_a_child_at_its_limit_goes_before_its_successor_starts() -> None:
    pool = ready_pool(replace(LIMITS, surge=0, memory_limit=100))
    [old] = pool.live()
    old.rss = 101
    pool.settle()
    assert len(pool.live()) == 1
    assert old.id not in [child.id for child in pool.live()]


def test_a_child_over_the_last_limit_of_memory_is_killed_in_its_request() -> None:
    pool = ready_pool(replace(LIMITS, memory_kill=100))
    [old] = pool.live()
    [request] = pool.arrive(takes=HOUR)
    pool.advance(0.01)
    old.rss = 101
    pool.settle()
    assert old.id not in pool.children
    assert request.answered_at is None
    assert [type(action) for action in pool.actions(Kill)] == [Kill]


def test_a_child_at_its_limit_serves_on_while_no_successor_boots() -> None:
    pool = ready_pool(replace(LIMITS, memory_limit=100))
    [old] = pool.live()
    pool.boot_time = None
    old.rss = 101
    pool.settle()
    pool.advance(20.0)
    requests = pool.arrive(takes=0.001, count=3)
    pool.advance(0.1)
    assert old.id in pool.children
    assert not unanswered(requests)


# --- everything at once ------------------------------------------------------------------------------------


class PoolMachine(RuleBasedStateMachine):
    """Anything happens, in any order; what Pool.settle() and Pool._apply() assert holds throughout."""

    @initialize(
        low=st.integers(0, 3),
        more=st.integers(0, 4),
        surge=st.integers(0, 2),
        spare=st.integers(0, 1),
        seats=st.integers(1, 3),
        health=st.sampled_from([0.5, 10.0, HOUR]),
        delay=st.sampled_from([0.0, 0.1, 1.0]),
        attrition=st.sampled_from([0.3, 120.0]),
        max_requests=st.sampled_from([0, 1, 5]),
        max_age=st.sampled_from([0.0, 0.7, 30.0]),
        idle_timeout=st.sampled_from([0.0, 0.4, 30.0]),
        memory_kill=st.booleans(),
    )
    def begin(
        self,
        low: int,
        more: int,
        surge: int,
        spare: int,
        seats: int,
        health: float,
        delay: float,
        attrition: float,
        max_requests: int,
        max_age: float,
        idle_timeout: float,
        memory_kill: bool,
    ) -> None:
        limits = Limits(
            low,
            max(low + more, 1),
            0.05,
            delay,
            attrition,
            spare,
            surge,
            health,
            max_age=max_age,
            idle_timeout=idle_timeout,
            memory_limit=100,
            memory_kill=200 if memory_kill else 0,
        )
        self.pool = Pool(limits, seats)
        self.pool.max_requests = max_requests

    @rule(seconds=st.sampled_from([0.0001, 0.0003, 0.001, 0.004, 0.02, 0.06, 0.3, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.pool.advance(seconds)

    @rule(seat=st.integers(0, 2), count=st.integers(1, 6), takes=st.sampled_from([0.0005, 0.005, 0.2, 3.0]))
    def requests_arrive(self, seat: int, count: int, takes: float) -> None:
        self.pool.arrive(seat % len(self.pool.seats), takes, count)

    @rule(data=st.data())
    def a_client_leaves(self, data: st.DataObject) -> None:
        waiting = [seat for seat in self.pool.seats.values() if seat.queue]
        if waiting:
            self.pool.client_leaves(data.draw(st.sampled_from(waiting)))

    @precondition(lambda self: self.pool.children)
    @rule(data=st.data())
    def a_child_dies(self, data: st.DataObject) -> None:
        child = data.draw(st.sampled_from(sorted(self.pool.children)))
        in_flight = self.pool.children[child]
        if in_flight.seat is None or in_flight in self.pool.seats[in_flight.seat].leases:
            self.pool.kill(in_flight)

    @rule(seat=st.integers(0, 2))
    def an_http_worker_dies(self, seat: int) -> None:
        self.pool.seat_dies(self.pool.seats[seat % len(self.pool.seats)])

    @rule(boot_time=st.sampled_from([None, 0.001, 0.1, 1.5]))
    def booting_changes(self, boot_time: float | None) -> None:
        self.pool.boot_time = boot_time

    @precondition(lambda self: self.pool.children)
    @rule(data=st.data())
    def a_child_will_be_slow_to_leave(self, data: st.DataObject) -> None:
        child = data.draw(st.sampled_from(sorted(self.pool.children)))
        self.pool.children[child].slow_to_leave = 5.0

    @precondition(lambda self: self.pool.children)
    @rule(data=st.data(), rss=st.sampled_from([50, 101, 201]))
    def a_child_grows(self, data: st.DataObject, rss: int) -> None:
        child = self.pool.children[data.draw(st.sampled_from(sorted(self.pool.children)))]
        if child.seat is None or child in self.pool.seats[child.seat].leases:
            child.rss = rss
            self.pool.settle()

    @rule(count=st.integers(-1, 9))
    def spawn_workers(self, count: int) -> None:
        self.pool.policy.grow(count)
        self.pool.settle()

    @rule(count=st.integers(-1, 9))
    def remove_workers(self, count: int) -> None:
        self.pool.policy.shrink(count)
        self.pool.settle()

    @rule()
    def restart_workers(self) -> None:
        self.pool.policy.start_restart()
        self.pool.settle()

    @rule()
    def a_spawn_fails(self) -> None:
        self.pool.policy.spawn_failed(self.pool.now)
        self.pool.settle()

    @rule(low=st.integers(0, 3), more=st.integers(0, 4))
    def the_limits_change(self, low: int, more: int) -> None:
        limits = replace(self.pool.policy.limits, min_size=low, max_size=max(low + more, 1))
        self.pool.policy.set_limits(limits)
        self.pool.settle()

    @rule(room=st.none() | st.integers(-2, 8))
    def other_pools_leave_another_room(self, room: int | None) -> None:
        self.pool.policy.set_room(room)
        self.pool.settle()

    @invariant()
    def the_target_is_within_its_limits(self) -> None:
        policy = self.pool.policy
        assert policy.limits.min_size <= policy.target <= policy.limits.max_size
        if policy.room is not None:
            assert policy.target <= max(policy.room, policy.limits.min_size)

    @invariant()
    def every_child_is_in_one_place(self) -> None:
        for child in self.pool.children.values():
            assert (child.seat is not None) == (child.state in (State.LENT, State.RECALLED))
        lent = [child.id for seat in self.pool.seats.values() for child in seat.leases]
        assert len(lent) == len(set(lent))
        assert set(self.pool.policy.retiring) <= set(self.pool.children)

    def teardown(self) -> None:
        """When all goes well again everything comes to rest, with every request answered."""
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        pool.boot_time = 0.1
        pool.max_requests = 0
        for child in pool.children.values():
            child.max_requests = child.rss = 0
        pool.policy.set_limits(replace(pool.policy.limits, max_age=0.0, idle_timeout=0.0))
        pool.policy.set_room(None)
        pool.settle()
        work = sum(request.takes for request in unanswered(pool.requests))
        # A wave that was to fail has the longest back-off before it, and slow leavers take their time.
        deadline = pool.now + work + 2 * MAX_RESTART_DELAY + 60
        while unanswered(pool.requests) or pool.policy.restarting or pool.in_state(State.BOOTING):
            assert pool.now < deadline, "what waits is never served"
            pool.advance(0.25)
        pool.advance(MAX_RESTART_DELAY + 10)
        assert len(pool.live()) == pool.policy.target
        assert not pool.policy.retiring


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
