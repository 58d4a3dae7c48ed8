"""The last minutes of all pools together, a sample a second: what the status page draws. Samples are numbered
from the server's start, so that whoever has some asks only for those behind them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from poolparty.stats.counters import BUCKETS, quantile
from poolparty.stats.scoreboard import Scoreboard

INTERVAL = 1.0
"""Seconds between two samples."""

KEPT = 300
"""Samples that are kept."""

ERRORS = ("overloaded", "failed", "timed_out")
"""Outcomes that a sample counts as errors."""


class History:
    """Samples, the newest last. Runs in the arbiter, which alone knows the totals."""

    def __init__(self, boards: Sequence[Scoreboard], now: float) -> None:
        self.samples: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._taken = 0
        self.due = now + INTERVAL
        self._boards = tuple(boards)
        self._at = now
        self._totals, self._seen = self._counted()

    def _counted(self) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
        """Every counter, and every histogram's buckets, over all boards."""
        totals: dict[str, int] = {}
        seen: dict[str, tuple[int, ...]] = {}
        for board in self._boards:
            for name, count in board.totals().items():
                totals[name] = totals.get(name, 0) + count
            for name, distribution in board.distributions().items():
                before = seen.get(name, (0,) * BUCKETS)
                seen[name] = tuple(map(sum, zip(before, distribution.counts, strict=True)))
        return totals, seen

    def sample(self, now: float, busy: int, workers: int, queued: int) -> None:
        """Take one; to be called when it is `due`. Rates are per second, times seconds, None if there were
        none."""
        elapsed = max(now - self._at, 1e-3)
        totals, seen = self._counted()
        grown = {name: count - self._totals[name] for name, count in totals.items()}
        service, wait = (
            [after - before for after, before in zip(seen[name], self._seen[name], strict=True)]
            for name in ("service", "queue_wait")
        )
        self._taken += 1
        self.samples.append(
            {
                "number": self._taken,
                "at": round(time.time(), 3),
                "requests": round(grown["requests"] / elapsed, 2),
                "errors": round(sum(grown[name] for name in ERRORS) / elapsed, 2),
                "service_p50": _rounded(service, 0.5),
                "service_p99": _rounded(service, 0.99),
                "wait_p99": _rounded(wait, 0.99),
                "busy": busy,
                "workers": workers,
                "queued": queued,
            }
        )
        self._at, self._totals, self._seen = now, totals, seen
        # Not one after the other for a time in which nobody took any, as when the machine slept.
        self.due = max(self.due + INTERVAL, now + INTERVAL / 2)

    def since(self, number: int) -> list[dict[str, Any]]:
        """The samples behind that one; all, if it is another server's that had taken more."""
        known = 0 if number > self._taken else number
        return [sample for sample in self.samples if sample["number"] > known]


def _rounded(counts: Sequence[int], share: float) -> float | None:
    assert len(counts) == BUCKETS
    seconds = quantile(counts, share)
    return None if seconds is None else round(seconds, 6)
