"""The pools in Prometheus' text format, made from the object that `stats --json` shows.

Names and units follow Prometheus' conventions: a prefix, base units, `_total` for what only grows. A process
is told by its role and its slot, not by its pid, which would make new series at every restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from poolparty import __version__
from poolparty.stats.counters import COUNTERS, HISTOGRAMS, STATUS_CLASSES

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

PREFIX = "poolparty_"

GAUGES = (
    ("workers", "workers", "children that live, those that boot included"),
    ("idle", "workers_idle", "children that are ready and run nothing"),
    ("busy", "workers_busy", "children that run a request"),
    ("booting", "workers_booting", "children that are not ready yet"),
    ("ending", "workers_ending", "children that were told to leave"),
    ("target", "workers_target", "children that the pool aims at now"),
    ("min", "workers_min", "min_pool_size"),
    ("max", "workers_max", "max_pool_size"),
    (
        "room",
        "workers_room",
        "children that the pool may have now: the maximum, or what the totals leave of it",
    ),
    ("queued", "queue_length", "requests that wait for a child"),
    ("longest_wait", "queue_longest_wait_seconds", "how long the first of them has waited"),
    ("restarting", "restarting", "1 while a rolling restart is under way"),
)
"""Gauges of a pool: key in stats, name behind the prefix, help."""

WORKER_COUNTERS = {
    "spawns": ("worker_spawns", "children started"),
    "restarts": ("worker_restarts", "children started in place of one that was lost by a fault"),
    "deaths": ("worker_deaths", "children that ended by themselves"),
}
"""Counters that the arbiter keeps: name behind `worker_` in stats, metric, help. `ended_…` are one metric."""

PROCESS_FIGURES = (
    ("cpu_seconds", "process_cpu_seconds", "processor time, of the process that has the slot now", True),
    ("rss", "process_resident_memory_bytes", "resident memory", False),
    ("fds", "process_open_fds", "open file descriptors", False),
)
"""Of each process: key in stats, metric, help, whether it is a counter."""


def families(snapshot: Mapping[str, Any]) -> Iterator[Metric]:
    """Every metric of the snapshot, each with its samples."""
    return _Snapshot(snapshot).collect()


def render(snapshot: Mapping[str, Any]) -> bytes:
    """The text that a scrape gets."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(snapshot))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, snapshot: Mapping[str, Any]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        yield InfoMetricFamily(PREFIX + "build", "the server's version", value={"version": __version__})
        yield GaugeMetricFamily(
            PREFIX + "uptime_seconds", "how long the server has run", value=snapshot["uptime"]
        )
        yield GaugeMetricFamily(
            PREFIX + "ready",
            "1 if a child can serve a request, or can be started for it",
            value=int(snapshot["not_ready"] is None),
        )
        yield GaugeMetricFamily(PREFIX + "http_workers", "HTTP workers", value=len(snapshot["http_workers"]))
        yield GaugeMetricFamily(
            PREFIX + "connections",
            "open client connections",
            value=sum(worker["connections"] for worker in snapshot["http_workers"]),
        )
        if snapshot["listen_backlog"] is not None:
            yield GaugeMetricFamily(
                PREFIX + "listen_backlog",
                "connections that no HTTP worker has accepted yet, with enable_backlog_metric",
                value=snapshot["listen_backlog"],
            )
        yield from _pools(snapshot["pools"])
        yield from _processes(snapshot)


def _pools(pools: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """A family each, with samples of all pools: none may stand there twice."""
    labels = ["pool"]
    for key, name, text in GAUGES:
        gauge = GaugeMetricFamily(PREFIX + name, text, labels=labels)
        for pool in pools:
            gauge.add_metric([pool["name"]], float(pool[key]))
        yield gauge
    failed = GaugeMetricFamily(
        PREFIX + "restart_failed", "1 if the last restart was given up: the old children serve", labels=labels
    )
    for pool in pools:
        failed.add_metric([pool["name"]], float(pool["restart_error"] is not None))
    yield failed
    outcomes = CounterMetricFamily(
        PREFIX + "request_outcomes", "requests by how they ended", labels=[*labels, "outcome"]
    )
    statuses = CounterMetricFamily(
        PREFIX + "responses", "answers of children by the class of their status", labels=[*labels, "class"]
    )
    for counter in COUNTERS:
        if counter.outcome or counter.name in STATUS_CLASSES:
            continue
        family = CounterMetricFamily(PREFIX + (counter.metric or counter.name), counter.help, labels=labels)
        for pool in pools:
            family.add_metric([pool["name"]], pool["counters"][counter.name])
        yield family
    for pool in pools:
        for counter in COUNTERS:
            if counter.outcome:
                outcomes.add_metric([pool["name"], counter.name], pool["outcomes"][counter.name])
            elif counter.name in STATUS_CLASSES:
                status = counter.name.removeprefix("status_")
                statuses.add_metric([pool["name"], status], pool["counters"][counter.name])
    yield outcomes
    yield statuses
    yield from _workers(pools)
    for histogram in HISTOGRAMS:
        times = HistogramMetricFamily(f"{PREFIX}{histogram.name}_seconds", histogram.help, labels=labels)
        for pool in pools:
            seen = pool["histograms"][histogram.name]
            buckets = []
            total = 0
            for bound, count in seen["buckets"]:
                total += count
                buckets.append(("+Inf" if bound is None else repr(float(bound)), total))
            times.add_metric([pool["name"]], buckets, seen["sum"])
        yield times


def _workers(pools: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """What the arbiter counts of children."""
    families: dict[str, CounterMetricFamily] = {}
    ended = CounterMetricFamily(
        PREFIX + "worker_ends", "children that were ended, by cause", labels=["pool", "cause"]
    )
    for pool in pools:
        for name, count in pool["counters"].items():
            stem = name.removeprefix("worker_")
            if stem in WORKER_COUNTERS:
                metric, text = WORKER_COUNTERS[stem]
                if stem not in families:
                    families[stem] = CounterMetricFamily(PREFIX + metric, text, labels=["pool"])
                families[stem].add_metric([pool["name"]], count)
            elif stem.startswith("ended_"):
                ended.add_metric([pool["name"], stem.removeprefix("ended_")], count)
    yield from families.values()
    yield ended


def _processes(snapshot: Mapping[str, Any]) -> Iterator[Metric]:
    """Where there are several pools, a child is told by its pool too: each numbers its slots from 0."""
    pools = snapshot["pools"]
    several = len(pools) > 1
    rows: list[tuple[str, str, Mapping[str, Any]]] = [("arbiter", "", snapshot["arbiter"] | {"slot": 0})]
    rows += [("http_worker", "", worker) for worker in snapshot["http_workers"]]
    rows += [("worker", pool["name"], child) for pool in pools for child in pool["children"]]
    for key, name, text, counts in PROCESS_FIGURES:
        family: Any = (CounterMetricFamily if counts else GaugeMetricFamily)(
            PREFIX + name, text, labels=["role", "pool", "slot"] if several else ["role", "slot"]
        )
        for role, pool, process in rows:
            if process[key] is not None:
                family.add_metric([role, *([pool] if several else ()), str(process["slot"])], process[key])
        yield family
