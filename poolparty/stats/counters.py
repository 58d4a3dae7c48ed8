"""The counters and histograms of requests and connections, each declared once: scoreboard columns, stats and
metrics come from here.

Every HTTP worker counts in its own seat's row; the figures shown are the sums over all rows and over the
seats that have gone. A request is counted as `requests` once it has arrived whole, and then under exactly one
outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Counter(NamedTuple):
    """A number that only grows. `name` is its column and its key in stats; `metric` its stem in Prometheus,
    where that is another."""

    name: str
    help: str
    outcome: bool = False
    metric: str = ""


COUNTERS: tuple[Counter, ...] = (
    Counter("requests", "requests that arrived whole"),
    Counter("answered", "requests that a child answered", outcome=True),
    Counter("overloaded", "requests answered 503: the queue was full, or no child came", outcome=True),
    Counter(
        "failed",
        "requests whose child died or answered what is unusable, or whose body found no room",
        outcome=True,
    ),
    Counter("timed_out", "requests answered 504: their child ran for too long", outcome=True),
    Counter("static", "requests answered from static_root, or told that nothing is there", outcome=True),
    Counter("admin", "requests answered by the admin pages below admin_prefix", outcome=True),
    Counter("abandoned", "requests whose client left before the answer's end", outcome=True),
    Counter("rejected", "requests refused with a 4xx or 5xx before a child was asked"),
    Counter("retried", "requests that were given to a second child since the first one died"),
    Counter("streamed", "answers whose child sent the body in pieces"),
    Counter("files_sent", "answers with a file of sendfile_root that their child named"),
    Counter("connections_accepted", "connections accepted"),
    Counter("connections_dropped", "connections closed since worker_connections was reached"),
    Counter("bytes_received", "bytes of request bodies, in bytes", metric="request_body_bytes"),
    Counter("bytes_sent", "bytes of responses, heads included, in bytes", metric="response_bytes"),
    Counter("status_2xx", "answers of children with a status from 200 to 299"),
    Counter("status_3xx", "answers of children with a status from 300 to 399"),
    Counter("status_4xx", "answers of children with a status from 400 to 499"),
    Counter("status_5xx", "answers of children with a status from 500 to 599"),
)

OUTCOMES = tuple(counter.name for counter in COUNTERS if counter.outcome)

STATUS_CLASSES = tuple(counter.name for counter in COUNTERS if counter.name.startswith("status_"))
"""In the order of their first digits, from 2."""


class Histogram(NamedTuple):
    """How long something took, in seconds: for each of BOUNDS how many took no longer, and their sum."""

    name: str
    help: str


BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histograms' buckets, in seconds; one more bucket holds what took longer."""

BUCKETS = len(BOUNDS) + 1

HISTOGRAMS: tuple[Histogram, ...] = (
    Histogram(
        "queue_wait", "how long requests that a child answered had waited for it, from their last byte"
    ),
    Histogram("service", "how long children took for an answer, from its request's first byte to its last"),
)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Below how many seconds this share (0 to 1) of what a histogram counts lies; None if it counts nothing.

    counts: of each bucket by itself. Within a bucket the values are taken to lie evenly, as Prometheus does;
    of the last bucket only its lower bound is known.
    """
    rank = share * sum(counts)
    if not rank:
        return None
    below = 0.0
    for count, bound in zip(counts, BOUNDS, strict=False):
        if count >= rank:
            return below + (bound - below) * rank / count
        rank -= count
        below = bound
    return BOUNDS[-1]
