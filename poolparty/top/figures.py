"""What `top` shows, made from the last two answers of `stats --json`: figures of the pools, a row for each
process.

No I/O and no clock. Whatever comes from outside the server (targets, commands, what children said) is made
printable here, so that nothing in it steers a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poolparty.stats.counters import quantile
from poolparty.stats.history import ERRORS
from poolparty.wire.control import printable

Snapshot = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer of `stats --json`, and when it came, in time.monotonic()'s terms."""

    at: float
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Row:
    """A process. Times are seconds, `rss` bytes, `cpu` percent of a core; None: it is not known."""

    pid: int
    role: str
    state: str
    requests: int | None
    rate: float | None  # requests per second
    cpu: float | None
    rss: int | None
    fds: int | None
    age: float | None
    seconds: float | None  # for how long it has run what it runs
    runs: str
    pool: str = ""  # a child's, where there are several


COLUMNS = {
    "cpu": lambda row: row.cpu,
    "memory": lambda row: row.rss,
    "requests": lambda row: row.requests,
    "time": lambda row: row.seconds,
    "age": lambda row: row.age,
}
"""What rows are sorted by, the largest first; each one's key is its first letter."""


@dataclass(frozen=True, slots=True)
class Figures:
    """All pools together in numbers. Rates are per second, times seconds; None: there is nothing to tell it
    from."""

    requests: float | None
    errors: float | None
    service: tuple[float | None, float | None]  # half of the answers took no longer, 99 % of them
    wait: tuple[float | None, float | None]


def figures(before: Sample | None, now: Sample) -> Figures:
    """The rates and quantiles of what was counted between two samples."""
    if before is None or not _same_server(before, now):
        return Figures(None, None, (None, None), (None, None))
    elapsed = max(now.at - before.at, 1e-3)
    earlier, later = _totals(before.snapshot), _totals(now.snapshot)
    grown = {name: count - earlier.get(name, 0) for name, count in later.items()}
    return Figures(
        grown["requests"] / elapsed,
        sum(grown[name] for name in ERRORS) / elapsed,
        _quantiles(before.snapshot, now.snapshot, "service"),
        _quantiles(before.snapshot, now.snapshot, "queue_wait"),
    )


def _same_server(before: Sample, now: Sample) -> bool:
    """Counters of a server that was started meanwhile begin again."""
    return bool(
        now.snapshot["arbiter"]["pid"] == before.snapshot["arbiter"]["pid"]
        and now.snapshot["uptime"] >= before.snapshot["uptime"]
    )


def _totals(snapshot: Snapshot) -> dict[str, int]:
    """Requests and outcomes, over all pools."""
    totals: dict[str, int] = {}
    for pool in snapshot["pools"]:
        for name, count in {"requests": pool["requests"], **pool["outcomes"]}.items():
            totals[name] = totals.get(name, 0) + count
    return totals


def _quantiles(before: Snapshot, now: Snapshot, name: str) -> tuple[float | None, float | None]:
    earlier, later = _counts(before, name), _counts(now, name)
    grown = [count - old for old, count in zip(earlier, later, strict=True)]
    return quantile(grown, 0.5), quantile(grown, 0.99)


def _counts(snapshot: Snapshot, name: str) -> list[int]:
    histograms = [pool["histograms"][name]["buckets"] for pool in snapshot["pools"]]
    return [sum(count for _, count in bucket) for bucket in zip(*histograms, strict=True)]


def rows(before: Sample | None, now: Sample) -> list[Row]:
    """A row for each process: the arbiter, the HTTP workers, the children."""
    earlier: dict[int, int] = {}
    elapsed = 0.0
    if before is not None and _same_server(before, now):
        elapsed = max(now.at - before.at, 1e-3)
        earlier = {process["pid"]: process["requests"] for process in _serving(before.snapshot)}

    def rate(process: Mapping[str, Any]) -> float | None:
        if not elapsed:
            return None
        # One that is new has answered all it has since the sample before. A number that has become another
        # process's counts from there.
        grown = process["requests"] - earlier.get(process["pid"], 0)
        return (grown if grown >= 0 else process["requests"]) / elapsed

    snapshot = now.snapshot
    arbiter = snapshot["arbiter"]
    found = [
        Row(arbiter["pid"], "arbiter", "", None, None, *_used(arbiter), snapshot["uptime"], None, ""),
    ]
    for worker in snapshot["http_workers"]:
        state = "draining" if worker["draining"] else "serving"
        runs = f"{worker['connections']} connections, {worker['queued']} queued"
        common = (worker["pid"], "http", state, worker["requests"], rate(worker))
        found.append(Row(*common, *_used(worker), worker["age"], None, runs))
    for pool in snapshot["pools"]:
        name = printable(pool["name"]) if several(snapshot) else ""
        for child in pool["children"]:
            seconds, what = _running(child["runs"])
            common = (child["pid"], "worker", child["state"], child["requests"], rate(child))
            found.append(Row(*common, *_used(child), child["age"], seconds, what, name))
    return found


def several(snapshot: Snapshot) -> bool:
    """Whether pools are told from each other by their names."""
    return len(snapshot["pools"]) > 1


def _serving(snapshot: Snapshot) -> list[Mapping[str, Any]]:
    return [*snapshot["http_workers"], *_children(snapshot)]


def _children(snapshot: Snapshot) -> list[Mapping[str, Any]]:
    return [child for pool in snapshot["pools"] for child in pool["children"]]


def _used(process: Mapping[str, Any]) -> tuple[float | None, int | None, int | None]:
    return process["cpu_percent"], process["rss"], process["fds"]


def _running(runs: Mapping[str, Any] | None) -> tuple[float | None, str]:
    if runs is None:
        return None, ""
    told = f"{runs['method']} {runs['target']}" if "method" in runs else ""
    if runs.get("request_id"):
        told += f" ({runs['request_id']})"
    return runs["seconds"], printable(told)


def ordered(rows: Sequence[Row], column: str, upward: bool = False) -> list[Row]:
    """Sorted by one of COLUMNS, the largest first unless `upward`; what is not known comes last."""
    value = COLUMNS[column]
    known = [row for row in rows if value(row) is not None]
    known.sort(key=lambda row: row.pid)
    known.sort(key=lambda row: value(row) or 0, reverse=not upward)
    return known + [row for row in rows if value(row) is None]


def headlines(before: Sample | None, now: Sample, most_pools: int | None = None) -> list[str]:
    """The pools' figures, a line each for what there is to say. Of several pools each has a line; most_pools:
    so many lines at most."""
    shown = figures(before, now)
    snapshot = now.snapshot
    pools = snapshot["pools"]
    named = several(snapshot)
    trouble = snapshot["not_ready"]
    state = "ready" if trouble is None else f"NOT READY: {trouble}"
    connections = sum(worker["connections"] for worker in snapshot["http_workers"])
    together = _together(pools) if named else pools[0]
    title = f"{len(pools)} pools" if named else pools[0]["command"]
    lines = [
        f"{title}: {state}, up {long(snapshot['uptime'])}",
        f"workers: {_workers(together)}   queue: {_queue(together)}   "
        f"HTTP workers: {len(snapshot['http_workers'])}, {connections} connections",
        f"requests: {_rate(shown.requests)}   errors: {_rate(shown.errors)}   "
        f"service: {_pair(shown.service)}   wait: {_pair(shown.wait)}",
    ]
    if named:
        lines += _pool_lines(before, now, most_pools)
    lines += notable(snapshot)
    for pool in pools:
        of_it = f" of {pool['name']}" if named else ""
        if pool["restarting"]:
            lines.append(f"the workers{of_it} are being restarted")
        if pool["restart_error"]:
            lines.append(f"the last restart{of_it} failed: {pool['restart_error']}")
    return [printable(line) for line in lines]


SUMMED = ("busy", "workers", "min", "max", "booting", "ending", "target", "queued")


def _together(pools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Their workers and queues as if they were those of one."""
    sums: dict[str, Any] = {name: sum(pool[name] for pool in pools) for name in SUMMED}
    return sums | {"longest_wait": max(pool["longest_wait"] for pool in pools)}


def _workers(pool: Mapping[str, Any]) -> str:
    counts = [f"{pool['busy']} busy of {pool['workers']}", f"min {pool['min']}", f"max {pool['max']}"]
    counts += [f"{pool[name]} {name}" for name in ("booting", "ending") if pool[name]]
    if pool["target"] != pool["workers"]:
        counts.append(f"aiming at {pool['target']}")
    return ", ".join(counts)


def _queue(pool: Mapping[str, Any]) -> str:
    longest = f", longest {brief(pool['longest_wait'])}" if pool["queued"] else ""
    return f"{pool['queued']} queued{longest}"


def _pool_lines(before: Sample | None, now: Sample, most: int | None) -> list[str]:
    """A line for each pool. Where there is no room for all, those come first whose requests wait, then those
    that are busy."""
    earlier: dict[str, int] = {}
    elapsed = 0.0
    if before is not None and _same_server(before, now):
        elapsed = max(now.at - before.at, 1e-3)
        earlier = {pool["name"]: pool["requests"] for pool in before.snapshot["pools"]}
    pools = now.snapshot["pools"]
    left_out = []
    if most is not None and len(pools) > most:
        pools = sorted(pools, key=lambda pool: (pool["queued"], pool["busy"]), reverse=True)
        pools, left_out = pools[: max(most - 1, 0)], pools[max(most - 1, 0) :]
    width = max((len(pool["name"]) for pool in pools), default=0)
    lines = []
    for pool in pools:
        rate = (pool["requests"] - earlier.get(pool["name"], 0)) / elapsed if elapsed else None
        lines.append(
            f"{pool['name']:{width}}  {_workers(pool)}   queue: {_queue(pool)}   requests: {_rate(rate)}   "
            f"{pool['command']}"
        )
    if left_out:
        rest = _together(left_out)
        lines.append(f"and {len(left_out)} pools more, {rest['busy']} busy of {rest['workers']} workers")
    return lines


LONG = 1.0
"""Seconds from which on the request that has run longest is told of at the top."""


def notable(snapshot: Snapshot) -> list[str]:
    """What stands out among the children: the request that has run longest, the one that has outgrown the
    others."""
    lines = []
    children = _children(snapshot)
    busy = [child for child in children if child["runs"] and child["runs"]["seconds"] >= LONG]
    if busy:
        longest = max(busy, key=lambda child: child["runs"]["seconds"])
        seconds, what = _running(longest["runs"])
        lines.append(f"longest: worker {longest['pid']} has run {what or 'a request'} for {brief(seconds)}")
    large = [child for child in children if child["outgrown"]]
    if large:
        largest = max(large, key=lambda child: child["rss"])
        size = largest["rss"] / 2**20
        lines.append(
            f"memory: worker {largest['pid']} has {size:.1f}M, {largest['outgrown']} times the others'"
        )
    return lines


def events(snapshot: Snapshot, count: int) -> list[str]:
    """The last things that happened to the pools, the newest last, with the local time of each."""
    named = several(snapshot)
    happened = sorted(
        (
            (event["at"], f"{pool['name']}: {event['text']}" if named else event["text"])
            for pool in snapshot["pools"]
            for event in pool["events"]
        ),
        key=lambda event: event[0],
    )
    return [
        printable(f"{time.strftime('%H:%M:%S', time.localtime(at))} {text}") for at, text in happened[-count:]
    ]


def brief(seconds: float | None) -> str:
    """A time as `850µs`, `12ms`, `3.2s`; a dash if there is none."""
    if seconds is None:
        return "-"
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 999.5:
            value = seconds * factor
            return f"{value:.1f}{unit}" if 0 < value < 9.95 else f"{value:.0f}{unit}"
    return f"{seconds:.1f}s" if seconds < 99.95 else long(seconds)


def long(seconds: float) -> str:
    """A time as `42s`, `3:05`, `2:03:05`, `4d 02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}"
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest}s"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}/s"


def _pair(pair: tuple[float | None, float | None]) -> str:
    return f"p50 {brief(pair[0])} p99 {brief(pair[1])}"
