"""The scoreboard: one anonymous shared mapping in which each process counts what it does.

It is made in the arbiter before the first fork; its capacity is fixed there. Rows are 64-bit words, and a
word has one writer at a time: the pool's row the arbiter, a seat's row its HTTP worker, a child's row its
lessee (the PID its owner, the arbiter), so a store through the memoryview is a plain aligned one and is never
torn. Nobody locks. Times are time.monotonic().

Whether a child is idle is two counters, not a flag: the lessee increments SENT before the first byte of a
request and ANSWERED after the last byte of its response.
"""

from __future__ import annotations

import enum
import mmap

from poolparty.stats.counters import COUNTERS


class SeatWord(enum.IntEnum):
    """Columns of a seat's row in front of its counters."""

    PID = 0
    CONNECTIONS = 1  # open client connections
    QUEUED = 2  # requests that wait for a child
    OLDEST = 3  # float: when the longest-waiting of them was accepted, 0.0 if none waits
    DRAINING = 4  # 1: it takes no new connections and wants no spare child
    LEASES = 5  # children it holds


class ChildWord(enum.IntEnum):
    """Columns of a child's row."""

    PID = 0
    SENT = 1  # requests whose first byte may have been written to it
    ANSWERED = 2  # requests whose response has been read to its last byte
    STARTED = 3  # float: when the request it runs now was written, meaningless while SENT == ANSWERED
    MAX_REQUESTS = 4  # the arbiter's: its lessee gives it back at so many answers, 0: it keeps it


class PoolWord(enum.IntEnum):
    """Columns of the pool's row, the arbiter's."""

    DOWN = 0  # 1: no child is ready, and the last ones died before they were: requests need not wait


SEAT_COUNTERS = len(SeatWord)
SEAT_WORDS = 32
CHILD_WORDS = 8
POOL_WORDS = 8
COUNTER_INDEX = {counter.name: SEAT_COUNTERS + i for i, counter in enumerate(COUNTERS)}
"""Where in a seat's row each counter stands."""

assert SEAT_COUNTERS + len(COUNTERS) <= SEAT_WORDS
assert len(ChildWord) <= CHILD_WORDS
assert len(PoolWord) <= POOL_WORDS


class Scoreboard:
    """The mapping and where its rows are.

    `words` and `times` are two views of the same memory, as unsigned integers and as floats; an index is a
    row's base (`seat_base`, `child_base`) plus a column.
    """

    def __init__(self, seats: int, children: int) -> None:
        self.seats = seats
        self.children = children
        self._map = mmap.mmap(-1, 8 * (POOL_WORDS + seats * SEAT_WORDS + children * CHILD_WORDS))
        self.words = memoryview(self._map).cast("Q")
        self.times = memoryview(self._map).cast("d")
        self._gone = dict.fromkeys(COUNTER_INDEX, 0)

    @property
    def pool_base(self) -> int:
        """Index of the pool's first word."""
        return 0

    def seat_base(self, seat: int) -> int:
        """Index of a seat's first word."""
        if not 0 <= seat < self.seats:
            raise IndexError(f"there is no seat {seat}")
        return POOL_WORDS + seat * SEAT_WORDS

    def child_base(self, slot: int) -> int:
        """Index of a child's first word."""
        if not 0 <= slot < self.children:
            raise IndexError(f"there is no child slot {slot}")
        return POOL_WORDS + self.seats * SEAT_WORDS + slot * CHILD_WORDS

    def clear_child(self, slot: int) -> None:
        """Make a child's row new. The arbiter's, between two children."""
        base = self.child_base(slot)
        for column in range(CHILD_WORDS):
            self.words[base + column] = 0

    def retire_seat(self, seat: int) -> None:
        """Add a dead seat's counters to the totals and make its row new. The arbiter's."""
        base = self.seat_base(seat)
        for name, column in COUNTER_INDEX.items():
            self._gone[name] += self.words[base + column]
        for column in range(SEAT_WORDS):
            self.words[base + column] = 0

    def totals(self) -> dict[str, int]:
        """Every counter over all seats, the dead ones included. Only the arbiter knows these."""
        return {
            name: self._gone[name]
            + sum(self.words[self.seat_base(seat) + column] for seat in range(self.seats))
            for name, column in COUNTER_INDEX.items()
        }

    def child_is_idle(self, slot: int) -> bool:
        """Whether the child in this slot runs nothing."""
        base = self.child_base(slot)
        # ANSWERED first: the other way round, a request sent between the two reads would be missed.
        answered = self.words[base + ChildWord.ANSWERED]
        return answered == self.words[base + ChildWord.SENT]

    def child_pids(self) -> list[int]:
        """The pids of all children there are: what an HTTP worker ends when the arbiter has died."""
        pids = (self.words[self.child_base(slot) + ChildWord.PID] for slot in range(self.children))
        return [pid for pid in pids if pid]
