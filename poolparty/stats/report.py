"""What the pool is doing, as one object, and as text and collectd's lines made from it.

`snapshot` runs in the pool thread under its lock; it reads the scoreboard and, through `sampling`, the
process table. `text` and `collectd` are functions of the object alone. Times in it are seconds, sizes bytes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from poolparty.arbiter import sampling
from poolparty.pool.child import LIVE_STATES, READY_STATES, State
from poolparty.stats.counters import BOUNDS, COUNTERS, OUTCOMES
from poolparty.stats.events import Event
from poolparty.stats.scoreboard import COUNTER_INDEX, ChildWord, Scoreboard, SeatWord

Snapshot = dict[str, Any]

POOL_NAME = "default"
"""The name of the one pool there is."""


class _Child(Protocol):
    @property
    def pid(self) -> int: ...
    @property
    def state(self) -> State: ...
    @property
    def generation(self) -> int: ...
    @property
    def spawned_at(self) -> float: ...
    @property
    def slot(self) -> int: ...
    @property
    def seat(self) -> int | None: ...


class _Seat(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def opened_at(self) -> float: ...


class _Options(Protocol):
    @property
    def pool_cmd(self) -> tuple[str, ...]: ...
    @property
    def min_pool_size(self) -> int: ...
    @property
    def max_pool_size(self) -> int: ...


class _Policy(Protocol):
    @property
    def target(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def restarting(self) -> bool: ...


class Pool(Protocol):
    """What is read of the PoolThread."""

    @property
    def children(self) -> Mapping[int, _Child]: ...
    @property
    def seats(self) -> Mapping[int, _Seat]: ...
    @property
    def policy(self) -> _Policy: ...
    @property
    def options(self) -> _Options: ...
    @property
    def scoreboard(self) -> Scoreboard: ...
    @property
    def started_at(self) -> float: ...
    @property
    def counters(self) -> Mapping[str, int]: ...
    @property
    def restart_error(self) -> str | None: ...
    @property
    def events(self) -> Iterable[Event]: ...
    @property
    def listen_backlog(self) -> int | None: ...
    def why_not_ready(self) -> str | None: ...


def snapshot(pool: Pool, sampler: sampling.Sampler = sampling.processes) -> Snapshot:
    """The object that `stats --json` prints; docs/control-socket.md says what stands in it."""
    now = time.monotonic()
    words = pool.scoreboard.words
    seats = {seat.id: seat.pid for seat in pool.seats.values() if seat.pid}
    own_pid = os.getpid()
    usage = sampler.sample({own_pid, *seats.values(), *(child.pid for child in pool.children.values())})

    def used(pid: int) -> dict[str, Any]:
        sample = usage.get(pid)
        return {name: sample and getattr(sample, name) for name in USAGE}

    http_workers = []
    queued = 0
    longest_wait = 0.0
    for seat, pid in seats.items():
        base = pool.scoreboard.seat_base(seat)
        waiting, oldest = words[base + SeatWord.QUEUED], pool.scoreboard.times[base + SeatWord.OLDEST]
        queued += waiting
        if waiting and oldest:
            longest_wait = max(longest_wait, now - oldest)
        http_workers.append(
            {
                "pid": pid,
                "slot": seat,
                "connections": words[base + SeatWord.CONNECTIONS],
                "age": round(max(now - pool.seats[seat].opened_at, 0.0), 1),
                "requests": words[base + COUNTER_INDEX["requests"]],
                "queued": waiting,
                "draining": bool(words[base + SeatWord.DRAINING]),
                **used(pid),
            }
        )

    children: list[dict[str, Any]] = []
    counts = dict.fromkeys(("workers", "idle", "busy", "booting", "ending"), 0)
    for child in pool.children.values():
        if child.state is State.GONE:
            continue
        busy = not pool.scoreboard.child_is_idle(child.slot)
        counts["workers"] += child.state in LIVE_STATES
        counts["booting"] += child.state is State.BOOTING
        counts["ending"] += child.state is State.ENDING
        counts["busy"] += child.state in READY_STATES and busy
        counts["idle"] += child.state in READY_STATES and not busy
        children.append(
            {
                "pid": child.pid,
                "slot": child.slot,
                "state": _shown(child.state, busy),
                "requests": words[pool.scoreboard.child_base(child.slot) + ChildWord.ANSWERED],
                "age": round(max(now - child.spawned_at, 0.0), 1),
                "generation": child.generation,
                "http_worker": None if child.seat is None else seats.get(child.seat),
                "runs": running(pool.scoreboard, child.slot, now),
                **used(child.pid),
            }
        )

    for shown, ratio in zip(children, outgrown(children), strict=True):
        shown["outgrown"] = ratio

    totals = pool.scoreboard.totals()
    return {
        "uptime": round(max(now - pool.started_at, 0.0), 1),
        "not_ready": pool.why_not_ready(),
        "listen_backlog": pool.listen_backlog,
        "arbiter": {"pid": own_pid, **used(own_pid)},
        "http_workers": http_workers,
        "pools": [
            {
                "name": POOL_NAME,
                "command": shlex.join(pool.options.pool_cmd),
                **counts,
                "queued": queued,
                "longest_wait": round(longest_wait, 3),
                "min": pool.options.min_pool_size,
                "max": pool.options.max_pool_size,
                "target": pool.policy.target,
                "generation": pool.policy.generation,
                "restarting": pool.policy.restarting,
                "restart_error": pool.restart_error,
                "restarts": pool.counters.get("restarts", 0),
                "requests": totals["requests"],
                "outcomes": {name: totals[name] for name in OUTCOMES},
                "counters": {
                    **{name: count for name, count in totals.items() if name not in OUTCOMES},
                    **{f"worker_{name}": count for name, count in pool.counters.items()},
                },
                "histograms": {
                    name: {
                        "buckets": [[*pair] for pair in zip((*BOUNDS, None), seen.counts, strict=True)],
                        "count": seen.count,
                        "sum": round(seen.sum, 6),
                    }
                    for name, seen in pool.scoreboard.distributions().items()
                },
                "children": children,
                "events": [event.as_dict() for event in pool.events],
            }
        ],
    }


USAGE = ("rss", "cpu_percent", "cpu_seconds", "fds")
"""What is told of each process: fields of sampling.Usage."""


MEMORY_RATIO = 1.5
MEMORY_MARGIN = 10 * 2**20
"""A child's memory stands out from so many times the others' median on, and so many bytes more."""


def outgrown(children: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Of each child how many times the memory of the others it has (their median; of those that have booted),
    where that stands out; None: it does not."""
    ordered = sorted(child["rss"] for child in children if child["rss"] and child["state"] != "booting")
    found: list[float | None] = []
    for child in children:
        size = child["rss"] or 0
        place = bisect_left(ordered, size) if child["state"] != "booting" else len(ordered)
        itself = place < len(ordered) and ordered[place] == size
        middle = (len(ordered) - itself - 1) // 2
        if middle < 0:
            found.append(None)
            continue
        median = ordered[middle + (itself and middle >= place)]
        stands_out = size >= max(MEMORY_RATIO * median, median + MEMORY_MARGIN)
        found.append(round(size / median, 1) if stands_out else None)
    return found


def running(board: Scoreboard, slot: int, now: float) -> dict[str, Any] | None:
    """What a child runs: for how many seconds and, once it takes a while, which request; None: nothing."""
    told = board.runs(slot)
    if told is None:
        return None
    started, text = told
    runs: dict[str, Any] = {"seconds": round(max(now - started, 0.0), 3)}
    if text:
        request_id, method, target = text.decode("ascii", "backslashreplace").split(" ", 2)
        runs |= {"method": method, "target": target, "request_id": None if request_id == "-" else request_id}
    return runs


def _shown(state: State, busy: bool) -> str:
    """A child's state as a user sees it: who holds it between two requests is the server's affair."""
    if state in (State.LENT, State.RECALLED):
        return "busy" if busy else "idle"
    return state.value


def _figures(pool: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """A pool's gauges and counters by the names they are shown under; the original's come first."""
    gauges = {name: pool[name] for name in ("workers", "idle", "busy", "booting", "queued")}
    counters = {"worker-restarts": pool["restarts"]}
    for counter in COUNTERS:
        group = pool["outcomes"] if counter.outcome else pool["counters"]
        counters[counter.name.replace("_", "-")] = group[counter.name]
    for name, count in pool["counters"].items():
        counters.setdefault(name.replace("_", "-"), count)
    return gauges, counters


def text(snapshot: Snapshot) -> str:
    """The output of `stats`: the original's two lines, then ours, then a line a child."""
    pool = snapshot["pools"][0]
    gauges, counters = _figures(pool)
    lines = [
        f"workers={gauges.pop('workers')}",
        f"worker-restarts={counters.pop('worker-restarts')}",
        f"uptime-seconds={snapshot['uptime']:.0f}",
        *(f"{name}={count}" for name, count in (counters | gauges).items()),
        f"http-workers={len(snapshot['http_workers'])}",
        *(_child_line(child) for child in pool["children"]),
    ]
    return "".join(line + "\n" for line in lines)


def _child_line(child: Mapping[str, Any]) -> str:
    """How `text` shows a child; a dash stands for what could not be measured."""
    rss, cpu = ("-" if child[name] is None else child[name] for name in ("rss", "cpu_percent"))
    return (
        f"worker pid={child['pid']} state={child['state']} requests={child['requests']}"
        f" age={child['age']:.0f} rss={rss} cpu={cpu}"
    )


def processes(snapshot: Snapshot) -> str:
    """The output of `ps`: a table, the arbiter first, then HTTP workers, then children."""
    rows = [("PID", "ROLE", "STATE", "REQUESTS", "AGE", "CPU%", "RSS", "FDS", "RUNS")]
    arbiter = snapshot["arbiter"]
    rows.append((str(arbiter["pid"]), "arbiter", "-", "-", f"{snapshot['uptime']:.0f}", *_used(arbiter), ""))
    for worker in snapshot["http_workers"]:
        state = "draining" if worker["draining"] else "serving"
        connections = f"{worker['connections']} connections, {worker['queued']} queued"
        age = f"{worker['age']:.0f}"
        rows.append(
            (str(worker["pid"]), "http", state, str(worker["requests"]), age, *_used(worker), connections)
        )
    for pool in snapshot["pools"]:
        for child in pool["children"]:
            rows.append(
                (
                    *(str(child["pid"]), "worker", child["state"], str(child["requests"])),
                    *(f"{child['age']:.0f}", *_used(child), runs_text(child["runs"])),
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "".join(
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1])).rstrip()
        + "\n"
        for row in rows
    )


def _used(process: Mapping[str, Any]) -> tuple[str, str, str]:
    cpu, rss, fds = (process[name] for name in ("cpu_percent", "rss", "fds"))
    return (
        "-" if cpu is None else f"{cpu:.1f}",
        "-" if rss is None else f"{rss / 2**20:.1f}M",
        "-" if fds is None else str(fds),
    )


def runs_text(runs: Mapping[str, Any] | None) -> str:
    """What a child runs, as `12.3s GET /report`; empty: nothing, or nothing that takes a while."""
    if runs is None or "method" not in runs:
        return ""
    return f"{runs['seconds']:.1f}s {runs['method']} {runs['target']}"


def one_line(snapshot: Snapshot) -> str:
    """The output of `stats --json`."""
    return json.dumps(snapshot) + "\n"


def collectd(snapshot: Snapshot, host: str, interval: int, label: str, now: float) -> str:
    """Lines of collectd's text protocol, the original's first. `label` may be empty; `now` is time.time()."""
    gauges, counters = _figures(snapshot["pools"][0])
    gauges["http-workers"] = len(snapshot["http_workers"])
    gauges["connections"] = sum(worker["connections"] for worker in snapshot["http_workers"])
    figures = [("gauge", "workers", gauges.pop("workers"))]
    figures += [("counter", name, count) for name, count in counters.items()]
    figures += [("gauge", name, value) for name, value in gauges.items()]
    plugin = f"{_identifier(host)}/poolparty{'-' if label else ''}{_identifier(label)}"
    return "".join(
        f"putval {plugin}/{kind}-{name} interval={interval} {int(now)}:{value}\n"
        for kind, name, value in figures
    )


def _identifier(part: str) -> str:
    """Without what would end a part of collectd's identifier, or the word or line it stands in."""
    return re.sub(r"[\s/\"'\\\x00-\x1f\x7f]", "_", part)
