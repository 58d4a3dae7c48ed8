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
from dataclasses import dataclass

from poolparty.stats.counters import BUCKETS, COUNTERS, HISTOGRAMS


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
    FEATURES = 5  # the arbiter's: what it has announced, a Feature


class PoolWord(enum.IntEnum):
    """Columns of the pool's row, the arbiter's."""

    DOWN = 0  # 1: no child is ready, and the last ones died before they were: requests need not wait


SEAT_COUNTERS = len(SeatWord)
COUNTER_INDEX = {counter.name: SEAT_COUNTERS + i for i, counter in enumerate(COUNTERS)}
"""Where in a seat's row each counter stands."""

HISTOGRAM_WORDS = BUCKETS + 1
HISTOGRAM_INDEX = {
    histogram.name: SEAT_COUNTERS + len(COUNTERS) + i * HISTOGRAM_WORDS
    for i, histogram in enumerate(HISTOGRAMS)
}
"""Where each histogram begins: its buckets, each for itself, and behind them the sum in seconds, a float."""

CACHE_LINE = 8  # words


def _whole_lines(words: int) -> int:
    """So many words that no two rows share a cache line, each of which has another writer."""
    return -(-words // CACHE_LINE) * CACHE_LINE


SEAT_WORDS = _whole_lines(SEAT_COUNTERS + len(COUNTERS) + len(HISTOGRAMS) * HISTOGRAM_WORDS)
CHILD_WORDS = _whole_lines(len(ChildWord))
POOL_WORDS = _whole_lines(len(PoolWord))

EMPTY_ROW = bytes(8 * SEAT_WORDS)
"""A seat's row in which nothing stands."""

RUNS_BYTES = 240
"""Bytes of the text that says what a child runs; what is longer is cut, and ends in dots."""

RUNS_WORDS = 2 + RUNS_BYTES // 8


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram's figures over all seats: the count of each bucket by itself, and the sum in seconds."""

    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        return sum(self.counts)


class Scoreboard:
    """The mapping and where its rows are.

    `words` and `times` are two views of the same memory, as unsigned integers and as floats; an index is a
    row's base (`seat_base`, `child_base`) plus a column.
    """

    def __init__(self, seats: int, children: int) -> None:
        self.seats = seats
        self.children = children
        self._runs = POOL_WORDS + seats * SEAT_WORDS + children * CHILD_WORDS
        self._map = mmap.mmap(-1, 8 * (self._runs + children * RUNS_WORDS))
        self.words = memoryview(self._map).cast("Q")
        self.times = memoryview(self._map).cast("d")
        self._gone = dict.fromkeys(COUNTER_INDEX, 0)
        self._gone_distributions = {name: Distribution((0,) * BUCKETS, 0.0) for name in HISTOGRAM_INDEX}

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
        self._gone = {
            name: count + self.words[base + COUNTER_INDEX[name]] for name, count in self._gone.items()
        }
        self._gone_distributions = {
            name: self._add(gone, name, seat) for name, gone in self._gone_distributions.items()
        }
        for column in range(SEAT_WORDS):
            self.words[base + column] = 0

    def totals(self) -> dict[str, int]:
        """Every counter over all seats, the dead ones included. Only the arbiter knows these."""
        bases = [self.seat_base(seat) for seat in self._seats_in_use()]
        return {
            name: self._gone[name] + sum(self.words[base + column] for base in bases)
            for name, column in COUNTER_INDEX.items()
        }

    def distributions(self) -> dict[str, Distribution]:
        """Every histogram over all seats, the dead ones included. Only the arbiter knows these."""
        distributions = self._gone_distributions
        for seat in self._seats_in_use():
            distributions = {name: self._add(total, name, seat) for name, total in distributions.items()}
        return distributions

    def _seats_in_use(self) -> list[int]:
        """Seats in whose row there is anything. There are many rows and few HTTP workers, and the totals of
        every pool are wanted once a second: of 20 pools they take 1.4 ms, 11 ms with the empty rows."""
        first, size = 8 * POOL_WORDS, 8 * SEAT_WORDS
        rows = self._map[first : first + self.seats * size]
        return [seat for seat in range(self.seats) if rows[seat * size : (seat + 1) * size] != EMPTY_ROW]

    def _add(self, total: Distribution, name: str, seat: int) -> Distribution:
        first = self.seat_base(seat) + HISTOGRAM_INDEX[name]
        counts = self.words[first : first + BUCKETS]
        if not any(counts):
            return total
        added = tuple(before + count for before, count in zip(total.counts, counts, strict=True))
        return Distribution(added, total.sum + self.times[first + BUCKETS])

    # --- what a child runs ---------------------------------------------------------------------------------

    def tell_runs(self, slot: int, number: int, text: bytes) -> None:
        """Say what a child's request of this number is. Its lessee's, for requests that take a while.

        number: how many requests the child was given up to this one. It is stored last, and is 0 meanwhile,
        so that a reader takes no text for another's.
        """
        first = self._runs + slot * RUNS_WORDS
        if len(text) > RUNS_BYTES:
            text = text[: RUNS_BYTES - 3] + b"..."
        self.words[first] = 0
        start = 8 * (first + 2)
        self._map[start : start + len(text)] = text
        self.words[first + 1] = len(text)
        self.words[first] = number

    def runs(self, slot: int) -> tuple[float, bytes] | None:
        """What a child runs: since when, and the text if its lessee has told one (else it is empty); None: it
        is idle."""
        base = self.child_base(slot)
        answered = self.words[base + ChildWord.ANSWERED]
        if answered == self.words[base + ChildWord.SENT]:
            return None
        started = self.times[base + ChildWord.STARTED]
        first = self._runs + slot * RUNS_WORDS
        text = b""
        if self.words[first] == answered + 1:
            start = 8 * (first + 2)
            text = self._map[start : start + min(self.words[first + 1], RUNS_BYTES)]
            if self.words[first] != answered + 1:
                text = b""
        return started, text

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
