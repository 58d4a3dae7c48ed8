"""The last minutes of the pool, a sample a second: what the status page draws. Samples are numbered from the
server's start, so that whoever has some asks only for those behind them."""

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

    def __init__(self, board: Scoreboard, now: float) -> None:
        self.samples: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._taken = 0
        self.due = now + INTERVAL
        self._board = board
        self._at = now
        self._totals = board.totals()
        self._seen = board.distributions()

    def sample(self, now: float, busy: int, workers: int, queued: int) -> None:
        """Take one; to be called when it is `due`. Rates are per second, times seconds, None if there were
        none."""
        elapsed = max(now - self._at, 1e-3)
        totals, seen = self._board.totals(), self._board.distributions()
        grown = {name: count - self._totals[name] for name, count in totals.items()}
        service, wait = (
            [after - before for after, before in zip(seen[name].counts, self._seen[name].counts, strict=True)]
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
