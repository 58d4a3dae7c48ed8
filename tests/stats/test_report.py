"""The snapshot of a pool, and the text, JSON and collectd's lines that are made from it."""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from poolparty.arbiter.sampling import Sampler, Usage
from poolparty.pool.child import State
from poolparty.stats import metrics, report
from poolparty.stats.counters import BOUNDS, BUCKETS, COUNTERS
from poolparty.stats.events import Event
from poolparty.stats.scoreboard import COUNTER_INDEX, HISTOGRAM_INDEX, ChildWord, Scoreboard, SeatWord


class FakeSampler(Sampler):
    """Knows every process but those of `gone`."""

    def __init__(self, gone: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.gone = gone

    def sample(self, pids: Any) -> dict[int, Usage]:
        return {pid: Usage(pid * 1000, 1.5, 2.5, 9) for pid in pids if pid not in self.gone}


@dataclass
class FakeChild:
    id: int
    pid: int
    slot: int
    state: State = State.IDLE
    generation: int = 0
    spawned_at: float = 0.0
    seat: int | None = None


@dataclass
class FakePool:
    """A pool and, where it is the first, its server."""

    name: str = "default"
    others: list[FakePool] = field(default_factory=list)
    first_pid: int = 500
    children: dict[int, FakeChild] = field(default_factory=dict)
    seats: dict[int, Any] = field(default_factory=dict)
    scoreboard: Scoreboard = field(default_factory=lambda: Scoreboard(seats=4, children=8))
    started_at: float = field(default_factory=lambda: time.monotonic() - 100)
    counters: dict[str, int] = field(default_factory=lambda: {"spawns": 9, "restarts": 4, "deaths": 5})
    policy: Any = field(
        default_factory=lambda: SimpleNamespace(target=3, max_size=6, generation=2, restarting=True)
    )
    restart_error: str | None = "it did not boot"
    events: list[Any] = field(default_factory=list)
    listen_backlog: int | None = 6
    options: Any = field(
        default_factory=lambda: SimpleNamespace(
            pool_cmd=("janet", "my app.janet"), min_pool_size=1, max_pool_size=8
        )
    )

    @property
    def pools(self) -> list[FakePool]:
        return [self, *self.others]

    def why_not_ready(self) -> str | None:
        return None

    def add_child(self, state: State, sent: int = 0, answered: int = 0, seat: int | None = None) -> FakeChild:
        slot = len(self.children)
        child = FakeChild(
            slot + 1,
            self.first_pid + slot,
            slot,
            state,
            spawned_at=time.monotonic() - 10 * (slot + 1),
            seat=seat,
        )
        self.children[child.id] = child
        base = self.scoreboard.child_base(slot)
        self.scoreboard.words[base + ChildWord.SENT] = sent
        self.scoreboard.words[base + ChildWord.ANSWERED] = answered
        return child

    def add_seat(self, row: int, pid: int | None, **columns: float) -> None:
        self.seats[row] = SimpleNamespace(id=row, pid=pid, opened_at=time.monotonic() - 100)
        base = self.scoreboard.seat_base(row)
        for name, value in columns.items():
            if name == "oldest":
                self.scoreboard.times[base + SeatWord.OLDEST] = value
            elif name in COUNTER_INDEX:
                self.scoreboard.words[base + COUNTER_INDEX[name]] = int(value)
            else:
                self.scoreboard.words[base + SeatWord[name.upper()]] = int(value)


def snapshot(pool: FakePool, gone: frozenset[int] = frozenset()) -> dict[str, Any]:
    return report.snapshot(pool, FakeSampler(gone))


def busy_pool() -> FakePool:
    pool = FakePool()
    pool.add_seat(0, 71, connections=30, requests=100, answered=90, failed=3, queued=2, draining=1,
                  oldest=time.monotonic() - 0.5)  # fmt: skip
    pool.add_seat(1, 72, connections=5, requests=11, answered=11, bytes_sent=2**40, queued=1,
                  oldest=time.monotonic() - 2.0)  # fmt: skip
    pool.add_seat(2, None)  # not forked yet
    pool.add_child(State.IDLE, 7, 7)
    pool.add_child(State.LENT, 8, 7, seat=0)
    pool.add_child(State.LENT, 8, 8, seat=1)
    pool.add_child(State.RECALLED, 2, 1, seat=1)
    pool.add_child(State.BOOTING)
    pool.add_child(State.CHECKING, 1, 1)
    pool.add_child(State.ENDING, 3, 2)
    pool.add_child(State.GONE)
    return pool


def two_pools() -> FakePool:
    """The busy one, and `api`, whose requests the same HTTP workers count."""
    pool = busy_pool()
    api = FakePool("api", first_pid=600, counters={"spawns": 2, "restarts": 1, "ended_idle": 7})
    api.restart_error = None
    api.policy = SimpleNamespace(target=5, max_size=9, generation=0, restarting=False)
    api.options = SimpleNamespace(pool_cmd=("lua", "api.lua"), min_pool_size=0, max_pool_size=20)
    # An HTTP worker counts what concerns connections on the first board.
    api.add_seat(0, 71, requests=1000, answered=980, queued=4, oldest=time.monotonic() - 7.0)
    api.add_seat(1, 72, requests=5, timed_out=5)
    api.add_child(State.LENT, 900, 899, seat=0)
    api.add_child(State.IDLE, 80, 80)
    pool.others.append(api)
    return pool


def test_the_snapshot_is_json_with_what_monitoring_relies_on() -> None:
    found = json.loads(report.one_line(snapshot(busy_pool())))
    assert found["uptime"] == pytest.approx(100, abs=5)
    (pool,) = found["pools"]
    assert pool["name"] == "default"
    assert pool["command"] == "janet 'my app.janet'"
    assert {"workers", "idle", "busy", "queued", "restarts", "requests", "children"} <= set(pool)
    assert {"pid", "connections", "requests"} <= set(found["http_workers"][0])
    assert {"pid", "state", "requests", "age", "rss", "cpu_percent"} <= set(pool["children"][0])


def test_json_output_is_one_line_whatever_the_command_is() -> None:
    pool = FakePool()
    pool.options.pool_cmd = ("sh", "-c", "a\nb\u2028c")
    assert report.one_line(snapshot(pool)).splitlines(keepends=True) == [report.one_line(snapshot(pool))]


def test_workers_are_the_children_that_serve_or_will() -> None:
    (pool,) = snapshot(busy_pool())["pools"]
    assert (pool["workers"], pool["idle"], pool["busy"], pool["booting"], pool["ending"]) == (6, 3, 2, 1, 1)
    assert pool["workers"] == pool["idle"] + pool["busy"] + pool["booting"]
    assert (pool["min"], pool["max"], pool["room"], pool["target"]) == (1, 8, 6, 3)
    assert (pool["generation"], pool["restarting"], pool["restart_error"]) == (2, True, "it did not boot")


def test_a_lent_child_is_shown_as_busy_or_idle_with_the_http_worker_that_holds_it() -> None:
    children = snapshot(busy_pool())["pools"][0]["children"]
    assert [child["state"] for child in children] == [
        "idle", "busy", "idle", "busy", "booting", "checking", "ending",
    ]  # fmt: skip
    assert [child["http_worker"] for child in children] == [None, 71, 72, 72, None, None, None]


def test_children_show_their_age_and_the_requests_they_have_answered() -> None:
    children = snapshot(busy_pool())["pools"][0]["children"]
    assert [child["requests"] for child in children] == [7, 7, 8, 1, 0, 1, 2]
    assert children[1]["age"] == pytest.approx(20, abs=5)


def test_queues_of_all_http_workers_add_up_and_the_longest_wait_counts() -> None:
    (pool,) = snapshot(busy_pool())["pools"]
    assert pool["queued"] == 3
    assert pool["longest_wait"] == pytest.approx(2.0, abs=1.0)


def test_http_workers_show_their_rows_and_a_seat_without_a_process_is_left_out() -> None:
    found = snapshot(busy_pool())["http_workers"]
    assert [worker["pid"] for worker in found] == [71, 72]
    assert found[0] == {
        "pid": 71,
        "slot": 0,
        "age": pytest.approx(100.0, abs=5.0),
        "connections": 30,
        "requests": 100,
        "queued": 2,
        "draining": True,
        "rss": 71_000,
        "cpu_percent": 1.5,
        "cpu_seconds": 2.5,
        "fds": 9,
    }


def test_totals_include_http_workers_that_have_gone() -> None:
    pool = busy_pool()
    pool.scoreboard.retire_seat(1)
    del pool.seats[1]
    (found,) = snapshot(pool)["pools"]
    assert found["requests"] == 111
    assert found["outcomes"] == {
        "answered": 101,
        "overloaded": 0,
        "failed": 3,
        "timed_out": 0,
        "static": 0,
        "admin": 0,
        "abandoned": 0,
    }
    assert found["counters"]["bytes_sent"] == 2**40
    assert found["counters"]["worker_deaths"] == 5


def test_each_pool_has_what_its_own_scoreboard_says() -> None:
    found = snapshot(two_pools())
    default, api = found["pools"]
    assert (default["name"], api["name"], api["command"]) == ("default", "api", "lua api.lua")
    assert (api["workers"], api["busy"], api["idle"], api["min"], api["max"], api["target"]) == (
        2,
        1,
        1,
        0,
        20,
        5,
    )
    assert (default["requests"], api["requests"]) == (111, 1005)
    assert (default["queued"], api["queued"]) == (3, 4)
    assert api["longest_wait"] == pytest.approx(7.0, abs=1.0)
    assert (api["restarts"], api["restarting"], api["restart_error"]) == (1, False, None)
    assert [(child["pid"], child["requests"], child["http_worker"]) for child in api["children"]] == [
        (600, 899, 71), (601, 80, None),
    ]  # fmt: skip
    assert [child["rss"] for child in api["children"]] == [600_000, 601_000]


def test_an_http_worker_shows_the_requests_of_all_pools_and_its_connections_once() -> None:
    found = snapshot(two_pools())["http_workers"]
    assert [(worker["requests"], worker["queued"], worker["connections"]) for worker in found] == [
        (1100, 6, 30), (16, 1, 5),
    ]  # fmt: skip
    assert found[0]["draining"] is True


def test_a_process_that_has_just_gone_has_no_usage_and_breaks_nothing() -> None:
    found = snapshot(busy_pool(), gone=frozenset({500}))
    child = found["pools"][0]["children"][0]
    assert (child["rss"], child["cpu_percent"]) == (None, None)
    line = next(line for line in report.text(found).splitlines() if "pid=500 " in line)
    assert line.endswith(" rss=- cpu=-")


def test_text_begins_as_the_original_does_and_has_every_counter_once() -> None:
    lines = report.text(snapshot(busy_pool())).splitlines()
    assert lines[:2] == ["workers=6", "worker-restarts=4"]
    figures = dict(line.split("=") for line in lines if not line.startswith("worker pid="))
    assert len(figures) == sum(not line.startswith("worker pid=") for line in lines)
    assert {counter.name.replace("_", "-") for counter in COUNTERS} <= set(figures)
    expected = {
        "requests": "111",
        "answered": "101",
        "failed": "3",
        "worker-spawns": "9",
        "worker-deaths": "5",
        "idle": "3",
        "busy": "2",
        "booting": "1",
        "queued": "3",
        "http-workers": "2",
    }
    assert {name: figures[name] for name in expected} == expected
    assert 95 <= int(figures["uptime-seconds"]) <= 120


def test_text_has_a_line_for_every_child() -> None:
    lines = [line for line in report.text(snapshot(busy_pool())).splitlines() if line.startswith("worker ")]
    assert len(lines) == 7
    assert re.fullmatch(r"worker pid=501 state=busy requests=7 age=2\d rss=501000 cpu=1\.5", lines[1])


def test_text_of_several_pools_is_their_sums_then_each_pool_then_the_workers_of_each() -> None:
    lines = report.text(snapshot(two_pools())).splitlines()
    alone = report.text(snapshot(busy_pool())).splitlines()
    names = [line.split("=")[0] for line in alone if not line.startswith("worker ")]
    figures = dict(line.split("=") for line in lines if not line.startswith(("pool ", "worker ")))
    assert list(figures)[:2] == names[:2] == ["workers", "worker-restarts"]
    assert set(figures) == {*names, "worker-ended-idle"}
    expected = {
        "workers": "8",
        "worker-restarts": "5",
        "requests": "1116",
        "answered": "1081",
        "timed-out": "5",
        "queued": "7",
        "busy": "3",
        "idle": "4",
        "worker-spawns": "11",
        "worker-ended-idle": "7",
        "http-workers": "2",
    }
    assert {name: figures[name] for name in expected} == expected
    at = len(figures)
    assert lines[at : at + 2] == [
        "pool name=default workers=6 idle=3 busy=2 booting=1 queued=3 target=3 requests=111 restarting=yes",
        "pool name=api workers=2 idle=1 busy=1 booting=0 queued=4 target=5 requests=1005 restarting=no",
    ]
    workers = lines[at + 2 :]
    assert len(workers) == 9
    assert [line.split()[2] for line in workers] == ["pool=default"] * 7 + ["pool=api"] * 2
    assert re.fullmatch(
        r"worker pid=600 pool=api state=busy requests=899 age=1\d rss=600000 cpu=1\.5", workers[7]
    )


def test_one_pool_is_not_told_by_its_name() -> None:
    found = snapshot(busy_pool())
    assert "pool" not in report.text(found)
    assert "POOL" not in report.processes(found)
    assert "poolparty-default" not in report.collectd(found, "h", 10, "", 5.0)


def test_collectd_gets_the_lines_of_the_original_first() -> None:
    lines = report.collectd(snapshot(busy_pool()), "web1", 10, "", 1795487909.9).splitlines()
    assert lines[:2] == [
        "putval web1/poolparty/gauge-workers interval=10 1795487909:6",
        "putval web1/poolparty/counter-worker-restarts interval=10 1795487909:4",
    ]
    shape = r"putval web1/poolparty/(gauge|counter)-[a-z0-9-]+ interval=10 1795487909:\d+"
    assert all(re.fullmatch(shape, line) for line in lines)
    identifiers = [line.split()[1] for line in lines]
    assert len(set(identifiers)) == len(identifiers)
    assert "putval web1/poolparty/counter-requests interval=10 1795487909:111" in lines
    assert "putval web1/poolparty/gauge-connections interval=10 1795487909:35" in lines


@pytest.mark.parametrize(
    ("label", "shown"), [("web", "web"), ("a b", "a_b"), ("a/b", "a_b"), ("a\nputval x", "a_putval_x")]
)
def test_a_label_names_the_plugin_instance_and_cannot_forge_lines(label: str, shown: str) -> None:
    lines = report.collectd(snapshot(busy_pool()), "h", 1, label, 5.0).splitlines()
    assert all(line.startswith(f"putval h/poolparty-{shown}/") for line in lines)
    assert all(line.count(" ") == 3 for line in lines)


@pytest.mark.parametrize(("label", "prefix"), [("", "h/poolparty"), ("shop", "h/poolparty-shop")])
def test_collectd_gets_sums_under_the_names_of_one_pool_and_each_pool_as_an_instance(
    label: str, prefix: str
) -> None:
    shown = [
        line.split() for line in report.collectd(snapshot(two_pools()), "h", 10, label, 5.0).splitlines()
    ]
    values = {identifier: value for _, identifier, _, value in shown}
    assert len(values) == len(shown), "each once"
    (one,) = {tuple(line.split()[1].rsplit("/", 1)[1] for line in report.collectd(
        snapshot(busy_pool()), "h", 10, label, 5.0).splitlines())}  # fmt: skip
    instances = [identifier.rsplit("/", 1)[0] for identifier in values]
    assert list(dict.fromkeys(instances)) == [prefix, f"{prefix}-default", f"{prefix}-api"]
    together = {identifier.rsplit("/", 1)[1] for identifier in values if identifier.startswith(f"{prefix}/")}
    assert together == {*one, "counter-worker-ended-idle"}
    for name, sums in (
        ("counter-requests", (111, 1005)),
        ("gauge-queued", (3, 4)),
        ("gauge-workers", (6, 2)),
    ):
        assert values[f"{prefix}-default/{name}"] == f"5:{sums[0]}"
        assert values[f"{prefix}-api/{name}"] == f"5:{sums[1]}"
        assert values[f"{prefix}/{name}"] == f"5:{sum(sums)}"
    assert values[f"{prefix}/gauge-connections"] == "5:35"
    assert f"{prefix}-api/gauge-connections" not in values, "connections are the server's"


def test_an_empty_pool_can_be_shown() -> None:
    found = snapshot(FakePool())
    assert report.text(found).startswith("workers=0\nworker-restarts=4\n")
    assert report.collectd(found, socket.gethostname(), 10, "x", 0.0)
    assert found["pools"][0]["children"] == []


def test_the_real_process_table_is_asked_when_nothing_else_is_given() -> None:
    pool = FakePool()
    child = pool.add_child(State.IDLE)
    pool.children[child.id] = replace(child, pid=os.getpid())
    (shown,) = report.snapshot(pool)["pools"][0]["children"]
    assert shown["rss"] > 1_000_000
    assert shown["cpu_percent"] >= 0


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((100,), [None]),
        ((100, 100), [None, None]),
        ((100, 150), [None, 1.5]),
        ((100, 149), [None, None]),
        ((10, 19, 10), [None, None, None]),  # 90 % more, and that is 9 MiB
        ((10, 20, 10), [None, 2.0, None]),
        ((100, 100, 520, 400), [None, None, 5.2, 4.0]),
        ((None, 100, 300), [None, None, 3.0]),
    ],
)
def test_a_child_stands_out_that_has_outgrown_the_others(
    sizes: tuple[int | None, ...], expected: list[float | None]
) -> None:
    children = [{"rss": size and size * 2**20, "state": "idle"} for size in sizes]
    assert report.outgrown(children) == expected
    booting = {"rss": 2**20, "state": "booting"}
    assert report.outgrown([booting, *children]) == [None, *expected]


@given(st.lists(st.tuples(st.integers(0, 200), st.booleans()), max_size=9))
def test_the_others_are_all_but_oneself_and_those_that_boot(drawn: list[tuple[int, bool]]) -> None:
    children = [
        {"rss": size * 2**20 or None, "state": "booting" if boots else "busy"} for size, boots in drawn
    ]
    for child, ratio in zip(children, report.outgrown(children), strict=True):
        others = [
            each["rss"]
            for each in children
            if each is not child and isinstance(each["rss"], int) and each["state"] != "booting"
        ]
        median = statistics.median_low(others) if others else 0
        least = max(1.5 * median, median + 10 * 2**20)
        size = child["rss"] if isinstance(child["rss"], int) else 0
        assert ratio == (round(size / median, 1) if others and size >= least else None)


# What a child runs.


def test_a_request_that_takes_a_while_is_told_and_a_quick_one_is_not() -> None:
    pool = busy_pool()
    board = pool.scoreboard
    board.times[board.child_base(1) + ChildWord.STARTED] = time.monotonic() - 3
    board.tell_runs(1, 8, b"abc-1 GET /report?year=2026")
    board.tell_runs(3, 1, b"- GET /the-one-before")
    children = snapshot(pool)["pools"][0]["children"]
    runs = children[1]["runs"]
    assert runs.pop("seconds") == pytest.approx(3, abs=1)
    assert runs == {"method": "GET", "target": "/report?year=2026", "request_id": "abc-1"}
    assert set(children[3]["runs"]) == {"seconds"}
    assert children[0]["runs"] is None


def test_ps_shows_every_process_once_and_what_runs() -> None:
    pool = busy_pool()
    board = pool.scoreboard
    board.times[board.child_base(1) + ChildWord.STARTED] = time.monotonic() - 3
    board.tell_runs(1, 8, b"- GET /report")
    head, *lines = report.processes(snapshot(pool, gone=frozenset({500}))).splitlines()
    assert head.split() == ["PID", "ROLE", "STATE", "REQUESTS", "AGE", "CPU%", "RSS", "FDS", "RUNS"]
    assert [line.split()[:2] for line in lines[:3]] == [
        [str(os.getpid()), "arbiter"], ["71", "http"], ["72", "http"],
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[3:]] == [str(500 + slot) for slot in range(7)]
    assert lines[3].split()[5:] == ["-", "-", "-"]
    assert re.search(r" 3\.\ds GET /report$", lines[4])


def test_ps_tells_whose_each_child_is_where_there_are_several_pools() -> None:
    head, *lines = report.processes(snapshot(two_pools())).splitlines()
    assert head.split()[:4] == ["PID", "ROLE", "POOL", "STATE"]
    assert [line.split()[1:3] for line in lines] == (
        [
            ["arbiter", "-"],
            ["http", "-"],
            ["http", "-"],
            *[["worker", "default"]] * 7,
            *[["worker", "api"]] * 2,
        ]
    )
    at = head.index("STATE")
    assert [line[at:].split()[0] for line in lines[-2:]] == ["busy", "idle"]


# Prometheus.


def samples(pool: FakePool) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render(snapshot(pool)).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_gets_what_stats_shows() -> None:
    pool = busy_pool()
    found = samples(pool)
    default = ("pool", "default")
    assert found["poolparty_requests_total", (default,)] == 111
    assert found["poolparty_request_outcomes_total", (("outcome", "answered"), default)] == 101
    assert found["poolparty_response_bytes_total", (default,)] == 2**40
    assert found["poolparty_workers", (default,)] == 6
    assert found["poolparty_queue_length", (default,)] == 3
    assert found["poolparty_restarting", (default,)] == 1
    assert found["poolparty_restart_failed", (default,)] == 1
    assert found["poolparty_worker_restarts_total", (default,)] == 4
    assert found["poolparty_connections", ()] == 35
    assert found["poolparty_ready", ()] == 1
    assert (
        found["poolparty_process_resident_memory_bytes", (("role", "http_worker"), ("slot", "0"))] == 71_000
    )
    assert found["poolparty_process_open_fds", (("role", "worker"), ("slot", "2"))] == 9


def test_two_pools_are_samples_of_one_family_each() -> None:
    pool = two_pools()
    board = pool.others[0].scoreboard
    board.words[board.seat_base(1) + HISTOGRAM_INDEX["service"] + 2] = 40
    families = list(text_string_to_metric_families(metrics.render(snapshot(pool)).decode()))
    names = [family.name for family in families]
    assert sorted(set(names)) == sorted(names), "a family stands there once"
    of_pools = [family for family in families if any("pool" in sample.labels for sample in family.samples)]
    assert len(of_pools) > 30
    for family in of_pools:
        seen = [(sample.name, *sorted(sample.labels.items())) for sample in family.samples]
        assert len(set(seen)) == len(seen), family.name
    alone = {
        family.name
        for family in text_string_to_metric_families(metrics.render(snapshot(busy_pool())).decode())
    }
    assert set(names) == alone
    found = samples(pool)
    for name, figures in (
        ("requests_total", (111, 1005)),
        ("workers", (6, 2)),
        ("workers_max", (8, 20)),
        ("queue_length", (3, 4)),
        ("restarting", (1, 0)),
        ("restart_failed", (1, 0)),
        ("worker_restarts_total", (4, 1)),
        ("service_seconds_count", (0, 40)),
    ):
        told = tuple(found[f"poolparty_{name}", (("pool", each),)] for each in ("default", "api"))
        assert told == figures, name
    assert found["poolparty_worker_ends_total", (("cause", "idle"), ("pool", "api"))] == 7
    assert found["poolparty_request_outcomes_total", (("outcome", "timed_out"), ("pool", "api"))] == 5
    assert found["poolparty_connections", ()] == 35


def test_where_there_are_several_pools_a_childs_slot_is_told_with_its_pool() -> None:
    found = samples(two_pools())
    name = "poolparty_process_resident_memory_bytes"
    assert found[name, (("pool", "default"), ("role", "worker"), ("slot", "0"))] == 500_000
    assert found[name, (("pool", "api"), ("role", "worker"), ("slot", "0"))] == 600_000
    assert found[name, (("pool", ""), ("role", "http_worker"), ("slot", "0"))] == 71_000


def test_a_histogram_is_cumulative_and_ends_with_what_stats_counts() -> None:
    pool = busy_pool()
    board = pool.scoreboard
    first = board.seat_base(1) + HISTOGRAM_INDEX["service"]
    for bucket in range(BUCKETS):
        board.words[first + bucket] = bucket + 1
    board.times[first + BUCKETS] = 12.5
    found = samples(pool)
    name = "poolparty_service_seconds"
    default = ("pool", "default")
    assert found[f"{name}_count", (default,)] == BUCKETS * (BUCKETS + 1) / 2
    assert found[f"{name}_sum", (default,)] == 12.5
    assert found[f"{name}_bucket", (("le", "0.0005"), default)] == 1
    assert found[f"{name}_bucket", (("le", "0.001"), default)] == 3
    shown = snapshot(pool)["pools"][0]["histograms"]["service"]
    assert shown["buckets"][-1] == [None, BUCKETS]
    assert [bound for bound, _ in shown["buckets"]][:-1] == list(BOUNDS)
    assert (shown["count"], shown["sum"]) == (found[f"{name}_count", (default,)], 12.5)


def test_every_metric_has_a_type_help_and_a_name_of_ours() -> None:
    text = metrics.render(snapshot(busy_pool())).decode()
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("poolparty_")
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram", "info"), family


def test_the_documentation_names_the_metrics_that_there_are(checkout: Path) -> None:
    text = (checkout / "docs" / "monitoring.md").read_text()
    section = text.partition("## Metrics\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z_]+)(?:\{[a-z]+\})?`", section)) - {"poolparty_", "pool", "role", "slot"}
    text = metrics.render(snapshot(busy_pool())).decode()
    exported = set(re.findall(r"^# TYPE poolparty_(\w+) ", text, re.MULTILINE))
    assert named == exported


def test_events_are_told_as_they_are_kept() -> None:
    pool = busy_pool()
    pool.events.append(Event(1.5, "death", "worker died", 77))
    (told,) = snapshot(pool)["pools"][0]["events"]
    assert told == {"at": 1.5, "kind": "death", "text": "worker died", "pid": 77}
