"""The counters of requests and connections, each declared once: scoreboard columns, stats and metrics come
from here.

Every HTTP worker counts in its own seat's row; the figures shown are the sums over all rows and over the
seats that have gone. A request is counted as `requests` once it has arrived whole, and then under exactly one
outcome.
"""

from __future__ import annotations

from typing import NamedTuple


class Counter(NamedTuple):
    """A number that only grows. `name` is its column, its key in stats and the stem of its metric."""

    name: str
    help: str
    outcome: bool = False


COUNTERS: tuple[Counter, ...] = (
    Counter("requests", "requests that arrived whole"),
    Counter("answered", "requests that a child answered", outcome=True),
    Counter("overloaded", "requests answered 503: the queue was full, or no child came", outcome=True),
    Counter("failed", "requests answered 502: their child died, or its answer was unusable", outcome=True),
    Counter("timed_out", "requests answered 504: their child ran for too long", outcome=True),
    Counter("static", "requests answered from static_root, or told that nothing is there", outcome=True),
    Counter("abandoned", "requests whose client left before the answer", outcome=True),
    Counter("rejected", "requests refused with a 4xx or 5xx before a child was asked"),
    Counter("retried", "requests that were given to a second child since the first one died"),
    Counter("connections_accepted", "connections accepted"),
    Counter("connections_dropped", "connections closed since worker_connections was reached"),
    Counter("bytes_received", "bytes of request bodies, in bytes"),
    Counter("bytes_sent", "bytes of responses, heads included, in bytes"),
)

OUTCOMES = tuple(counter.name for counter in COUNTERS if counter.outcome)
