"""What the pools are doing, as one object, and as text and collectd's lines made from it.

`snapshot` runs in the pool thread under its lock; it reads the scoreboards and, through `sampling`, the
process table. `text` and `collectd` are functions of the object alone. Times in it are seconds, sizes bytes.

Each pool has a scoreboard of its own, and an HTTP worker the same row in all of them. What is counted of
connections stands on that of the first pool.
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
    def max_size(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def restarting(self) -> bool: ...


class Pool(Protocol):
    """What is read of a pool."""

    @property
    def name(self) -> str: ...
    @property
    def options(self) -> _Options: ...
    @property
    def children(self) -> Mapping[int, _Child]: ...
    @property
    def policy(self) -> _Policy: ...
    @property
    def scoreboard(self) -> Scoreboard: ...
    @property
    def counters(self) -> Mapping[str, int]: ...
    @property
    def restart_error(self) -> str | None: ...
    @property
    def events(self) -> Iterable[Event]: ...


class Server(Protocol):
    """What is read of the PoolThread."""

    @property
    def pools(self) -> Sequence[Pool]: ...
    @property
    def seats(self) -> Mapping[int, _Seat]: ...
    @property
    def started_at(self) -> float: ...
    @property
    def listen_backlog(self) -> int | None: ...
    def why_not_ready(self) -> str | None: ...


def snapshot(server: Server, sampler: sampling.Sampler = sampling.processes) -> Snapshot:
    """The object that `stats --json` prints; docs/control-socket.md says what stands in it."""
    now = time.monotonic()
    seats = {seat.id: seat.pid for seat in server.seats.values() if seat.pid}
    own_pid = os.getpid()
    children = (child.pid for pool in server.pools for child in pool.children.values())
    usage = sampler.sample({own_pid, *seats.values(), *children})
    return {
        "uptime": round(max(now - server.started_at, 0.0), 1),
        "not_ready": server.why_not_ready(),
        "listen_backlog": server.listen_backlog,
        "arbiter": {"pid": own_pid, **_used_by(own_pid, usage)},
        "http_workers": [_http_worker(server, seat, pid, usage, now) for seat, pid in seats.items()],
        "pools": [_pool(pool, seats, usage, now) for pool in server.pools],
    }


_Usage = Mapping[int, sampling.Usage]


def _used_by(pid: int, usage: _Usage) -> dict[str, Any]:
    sample = usage.get(pid)
    return {name: sample and getattr(sample, name) for name in USAGE}


def _http_worker(server: Server, seat: int, pid: int, usage: _Usage, now: float) -> dict[str, Any]:
    boards = [pool.scoreboard for pool in server.pools]
    base = boards[0].seat_base(seat)

    def total(column: int) -> int:
        return sum(board.words[board.seat_base(seat) + column] for board in boards)

    return {
        "pid": pid,
        "slot": seat,
        "connections": boards[0].words[base + SeatWord.CONNECTIONS],
        "age": round(max(now - server.seats[seat].opened_at, 0.0), 1),
        "requests": total(COUNTER_INDEX["requests"]),
        "queued": total(SeatWord.QUEUED),
        "draining": bool(boards[0].words[base + SeatWord.DRAINING]),
        **_used_by(pid, usage),
    }


def _pool(pool: Pool, seats: Mapping[int, int], usage: _Usage, now: float) -> dict[str, Any]:
    board = pool.scoreboard
    queued = 0
    longest_wait = 0.0
    for base in map(board.seat_base, seats):
        waiting, oldest = board.words[base + SeatWord.QUEUED], board.times[base + SeatWord.OLDEST]
        queued += waiting
        if waiting and oldest:
            longest_wait = max(longest_wait, now - oldest)

    children: list[dict[str, Any]] = []
    counts = dict.fromkeys(("workers", "idle", "busy", "booting", "ending"), 0)
    for child in pool.children.values():
        if child.state is State.GONE:
            continue
        busy = not board.child_is_idle(child.slot)
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
                "requests": board.words[board.child_base(child.slot) + ChildWord.ANSWERED],
                "age": round(max(now - child.spawned_at, 0.0), 1),
                "generation": child.generation,
                "http_worker": None if child.seat is None else seats.get(child.seat),
                "runs": running(board, child.slot, now),
                **_used_by(child.pid, usage),
            }
        )

    for shown, ratio in zip(children, outgrown(children), strict=True):
        shown["outgrown"] = ratio

    totals = board.totals()
    return {
        "name": pool.name,
        "command": shlex.join(pool.options.pool_cmd),
        **counts,
        "queued": queued,
        "longest_wait": round(longest_wait, 3),
        "min": pool.options.min_pool_size,
        "max": pool.options.max_pool_size,
        "room": pool.policy.max_size,
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
            for name, seen in board.distributions().items()
        },
        "children": children,
        "events": [event.as_dict() for event in pool.events],
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


GAUGES = ("workers", "idle", "busy", "booting", "queued")


def _figures(pools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, int]]:
    """Gauges and counters of these pools together, by the names they are shown under; the original's come
    first."""
    gauges = dict.fromkeys(GAUGES, 0)
    counters: dict[str, int] = {}
    for pool in pools:
        for name in GAUGES:
            gauges[name] += pool[name]
        for name, count in _counted(pool).items():
            counters[name] = counters.get(name, 0) + count
    return gauges, counters


def _counted(pool: Mapping[str, Any]) -> dict[str, int]:
    counters = {"worker-restarts": pool["restarts"]}
    for counter in COUNTERS:
        group = pool["outcomes"] if counter.outcome else pool["counters"]
        counters[counter.name.replace("_", "-")] = group[counter.name]
    for name, count in pool["counters"].items():
        counters.setdefault(name.replace("_", "-"), count)
    return counters


def text(snapshot: Snapshot) -> str:
    """The output of `stats`: the original's two lines, then ours, then where there are several pools a line
    for each, then a line a child."""
    pools = snapshot["pools"]
    several = len(pools) > 1
    gauges, counters = _figures(pools)
    lines = [
        f"workers={gauges.pop('workers')}",
        f"worker-restarts={counters.pop('worker-restarts')}",
        f"uptime-seconds={snapshot['uptime']:.0f}",
        *(f"{name}={count}" for name, count in (counters | gauges).items()),
        f"http-workers={len(snapshot['http_workers'])}",
        *(_pool_line(pool) for pool in pools if several),
        *(
            _child_line(child, f" pool={pool['name']}" if several else "")
            for pool in pools
            for child in pool["children"]
        ),
    ]
    return "".join(line + "\n" for line in lines)


def _pool_line(pool: Mapping[str, Any]) -> str:
    """How `text` shows one of several pools."""
    figures = " ".join(f"{name}={pool[name]}" for name in (*GAUGES, "target", "requests"))
    return f"pool name={pool['name']} {figures} restarting={'yes' if pool['restarting'] else 'no'}"


def _child_line(child: Mapping[str, Any], pool: str) -> str:
    """How `text` shows a child; a dash stands for what could not be measured."""
    rss, cpu = ("-" if child[name] is None else child[name] for name in ("rss", "cpu_percent"))
    return (
        f"worker pid={child['pid']}{pool} state={child['state']} requests={child['requests']}"
        f" age={child['age']:.0f} rss={rss} cpu={cpu}"
    )


def processes(snapshot: Snapshot) -> str:
    """The output of `ps`: a table, the arbiter first, then HTTP workers, then children. Where there are
    several pools a column tells whose child it is."""
    several = len(snapshot["pools"]) > 1

    def row(pid: str, role: str, pool: str, *others: str) -> tuple[str, ...]:
        return (pid, role, *((pool,) if several else ()), *others)

    rows = [row("PID", "ROLE", "POOL", "STATE", "REQUESTS", "AGE", "CPU%", "RSS", "FDS", "RUNS")]
    arbiter = snapshot["arbiter"]
    uptime = f"{snapshot['uptime']:.0f}"
    rows.append(row(str(arbiter["pid"]), "arbiter", "-", "-", "-", uptime, *_used(arbiter), ""))
    for worker in snapshot["http_workers"]:
        state = "draining" if worker["draining"] else "serving"
        connections = f"{worker['connections']} connections, {worker['queued']} queued"
        figures = str(worker["requests"]), f"{worker['age']:.0f}", *_used(worker)
        rows.append(row(str(worker["pid"]), "http", "-", state, *figures, connections))
    for pool in snapshot["pools"]:
        for child in pool["children"]:
            figures = str(child["requests"]), f"{child['age']:.0f}", *_used(child)
            runs = runs_text(child["runs"])
            rows.append(row(str(child["pid"]), "worker", pool["name"], child["state"], *figures, runs))
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
    """Lines of collectd's text protocol, the original's first. `label` may be empty; `now` is time.time().

    Where there are several pools, what they are together comes first; then each has a plugin instance of its
    own, whose name ends in the pool's.
    """
    pools = snapshot["pools"]
    of_server = {
        "http-workers": len(snapshot["http_workers"]),
        "connections": sum(worker["connections"] for worker in snapshot["http_workers"]),
    }
    groups: list[tuple[tuple[str, ...], Sequence[Mapping[str, Any]], dict[str, int]]] = [
        ((label,), pools, of_server)
    ]
    if len(pools) > 1:
        groups += [((label, pool["name"]), (pool,), {}) for pool in pools]
    lines = []
    for names, counted, further in groups:
        plugin = "/".join(
            (_identifier(host), "-".join(("poolparty", *map(_identifier, filter(None, names)))))
        )
        lines += [
            f"putval {plugin}/{kind}-{name} interval={interval} {int(now)}:{value}\n"
            for kind, name, value in _collectd_figures(counted, further)
        ]
    return "".join(lines)


def _collectd_figures(
    pools: Sequence[Mapping[str, Any]], further: Mapping[str, int]
) -> list[tuple[str, str, int]]:
    """Kind, name and value of each figure; further: gauges that belong to no pool."""
    gauges, counters = _figures(pools)
    figures = [("gauge", "workers", gauges.pop("workers"))]
    figures += [("counter", name, count) for name, count in counters.items()]
    figures += [("gauge", name, value) for name, value in (gauges | {**further}).items()]
    return figures


def _identifier(part: str) -> str:
    """Without what would end a part of collectd's identifier, or the word or line it stands in."""
    return re.sub(r"[\s/\"'\\\x00-\x1f\x7f]", "_", part)
