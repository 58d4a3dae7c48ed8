"""What `top` makes of two answers of `stats --json`."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from poolparty.stats.counters import BOUNDS, OUTCOMES
from poolparty.top.figures import (
    COLUMNS,
    Sample,
    brief,
    events,
    figures,
    headlines,
    long,
    ordered,
    printable,
    rows,
)
from poolparty.top.screen import View, plain


def child(pid: int, requests: int = 0, runs: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    return {
        "pid": pid,
        "state": "busy" if runs else "idle",
        "requests": requests,
        "age": 60.0,
        "runs": runs,
        "rss": 2**20,
        "cpu_percent": 1.0,
        "cpu_seconds": 3.0,
        "fds": 4,
        "outgrown": None,
        **values,
    }


def histogram(**counts: int) -> dict[str, Any]:
    """counts: of the buckets, by their place, as _3=7."""
    filled = [counts.get(f"_{place}", 0) for place in range(len(BOUNDS) + 1)]
    return {"buckets": [[*pair] for pair in zip((*BOUNDS, None), filled, strict=True)], "count": 0, "sum": 0}


def snapshot(*children: dict[str, Any], **values: Any) -> dict[str, Any]:
    usage = {"rss": 30 * 2**20, "cpu_percent": 2.0, "cpu_seconds": 1.0, "fds": 25}
    pool = {
        "name": "default",
        "command": "janet app.janet",
        "workers": 3,
        "idle": 2,
        "busy": 1,
        "booting": 0,
        "ending": 0,
        "queued": 0,
        "longest_wait": 0.0,
        "min": 1,
        "max": 4,
        "target": 3,
        "requests": 0,
        "events": [],
        "restarting": False,
        "restart_error": None,
        "outcomes": dict.fromkeys(OUTCOMES, 0),
        "histograms": {"service": histogram(), "queue_wait": histogram()},
        "children": list(children),
    }
    http = {
        "pid": 71,
        "connections": 12,
        "requests": 100,
        "queued": 2,
        "draining": False,
        "age": 5.0,
        **usage,
    }
    whole = {
        "uptime": 100.0,
        "not_ready": None,
        "arbiter": {"pid": 70, **usage},
        "http_workers": [http],
        "pools": [pool],
    }
    for name, value in values.items():
        (whole if name in whole else pool)[name] = value
    return whole


def test_a_first_sample_has_no_rates() -> None:
    now = Sample(5.0, snapshot(child(1, 10)))
    assert figures(None, now).requests is None
    assert [row.rate for row in rows(None, now)] == [None, None, None]


def test_rates_and_quantiles_are_of_what_was_counted_between_two_samples() -> None:
    outcomes = dict.fromkeys(OUTCOMES, 0)
    seen = {"service": histogram(_3=1000), "queue_wait": histogram()}
    before = snapshot(child(1, 10), child(2, 10), requests=500, outcomes=outcomes, histograms=seen)
    now = snapshot(
        child(1, 14),
        child(3, 6),
        requests=520,
        outcomes=outcomes | {"failed": 3, "timed_out": 1, "abandoned": 9},
        histograms={"service": histogram(_3=1000, _5=100), "queue_wait": histogram(_0=99, _8=1)},
        uptime=102.0,
    )
    shown = figures(Sample(5.0, before), Sample(7.0, now))
    assert (shown.requests, shown.errors) == (10.0, 2.0)
    # The thousand that were quick before do not count: all hundred took 10 to 25 ms.
    assert shown.service == (pytest.approx(0.0175), pytest.approx(0.02485))
    assert shown.wait == (pytest.approx(0.0005 * 50 / 99), pytest.approx(0.0005))
    rates = {row.pid: row.rate for row in rows(Sample(5.0, before), Sample(7.0, now))}
    assert rates == {70: None, 71: 0.0, 1: 2.0, 3: 3.0}


@pytest.mark.parametrize("change", ["pid", "uptime"])
def test_a_server_that_was_started_meanwhile_has_no_rates_yet(change: str) -> None:
    before, now = snapshot(child(1, 10), requests=900), snapshot(child(1, 4), requests=10)
    if change == "pid":
        now["arbiter"]["pid"] = 99
    else:
        now["uptime"] = 1.0
    assert figures(Sample(5.0, before), Sample(6.0, now)).requests is None
    assert {row.rate for row in rows(Sample(5.0, before), Sample(6.0, now))} == {None}


def test_a_pid_that_became_another_childs_is_not_counted_backwards() -> None:
    before, now = snapshot(child(1, 1000)), snapshot(child(1, 3))
    rates = {row.pid: row.rate for row in rows(Sample(5.0, before), Sample(6.0, now))}
    assert rates[1] == 3.0


def test_every_process_has_a_row_with_what_it_runs() -> None:
    runs = {"seconds": 12.5, "method": "GET", "target": "/report?x=1", "request_id": "abc"}
    arbiter, http, busy, quick = rows(
        None, Sample(5.0, snapshot(child(1, runs=runs), child(2, runs={"seconds": 0.001}, fds=None)))
    )
    assert (arbiter.role, arbiter.pid, arbiter.age, arbiter.requests) == ("arbiter", 70, 100.0, None)
    assert (http.role, http.state, http.age, http.runs) == (
        "http",
        "serving",
        5.0,
        "12 connections, 2 queued",
    )
    assert (busy.role, busy.seconds, busy.runs) == ("worker", 12.5, "GET /report?x=1 (abc)")
    assert (quick.seconds, quick.runs, quick.fds) == (0.001, "", None)


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("cpu", [3, 1, 2]),
        ("memory", [2, 3, 1]),
        ("requests", [1, 3, 2]),
        ("age", [2, 1, 3]),
        ("time", [3, 1, 2]),
    ],
)
def test_rows_are_sorted_by_a_column_the_largest_first(column: str, order: list[int]) -> None:
    slow = {"seconds": 9.0, "method": "GET", "target": "/", "request_id": None}
    children = (
        child(1, 50, {"seconds": 0.5}, cpu_percent=50.0, rss=10, age=20.0),
        child(2, 10, cpu_percent=None, rss=30, age=30.0),
        child(3, 20, slow, cpu_percent=90.0, rss=20, age=10.0),
    )
    found = [row for row in rows(None, Sample(5.0, snapshot(*children))) if row.role == "worker"]
    assert [row.pid for row in ordered(found, column)] == order
    known = [row.pid for row in found if COLUMNS[column](row) is not None]
    upward = [pid for pid in reversed(order) if pid in known] + [pid for pid in order if pid not in known]
    assert [row.pid for row in ordered(found, column, upward=True)] == upward


def test_the_headlines_say_what_is_wrong() -> None:
    fine = headlines(None, Sample(5.0, snapshot()))
    assert fine[0] == "janet app.janet: ready, up 1:40"
    assert fine[1].startswith(
        "workers: 1 busy of 3, min 1, max 4   queue: 0 queued   HTTP workers: 1, 12 con"
    )
    assert len(fine) == 3
    ill = headlines(
        None,
        Sample(
            5.0,
            snapshot(
                not_ready="no worker is ready",
                restarting=True,
                restart_error="it died\n\x1b[31m",
                queued=7,
                longest_wait=2.25,
                booting=1,
                target=4,
            ),
        ),
    )
    assert ill[0] == "janet app.janet: NOT READY: no worker is ready, up 1:40"
    assert "1 booting, aiming at 4   queue: 7 queued, longest 2.2s" in ill[1]
    assert ill[3:] == [
        "the workers are being restarted",
        r"the last restart failed: it died\n\x1b[31m",
    ]


def two_pools(*children: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The usual one, and `api` with these children."""
    whole = snapshot(child(1, 10))
    (api,) = snapshot(*children)["pools"]
    whole["pools"].append(api | {"name": "api", "command": "lua api.lua", **values})
    return whole


def test_several_pools_are_told_together_and_each_by_its_name() -> None:
    before = two_pools(requests=100)
    now = two_pools(
        child(2),
        requests=130,
        busy=4,
        workers=4,
        target=5,
        max=20,
        queued=7,
        longest_wait=2.25,
        restarting=True,
        restart_error="it died",
    )
    now["uptime"] = 102.0
    assert headlines(Sample(5.0, before), Sample(7.0, now)) == [
        "2 pools: ready, up 1:42",
        "workers: 5 busy of 7, min 2, max 24, aiming at 8   queue: 7 queued, longest 2.2s   "
        "HTTP workers: 1, 12 connections",
        "requests: 15.0/s   errors: 0.0/s   service: p50 - p99 -   wait: p50 - p99 -",
        "default  1 busy of 3, min 1, max 4   queue: 0 queued   requests: 0.0/s   janet app.janet",
        "api      4 busy of 4, min 1, max 20, aiming at 5   queue: 7 queued, longest 2.2s   "
        "requests: 15.0/s   lua api.lua",
        "the workers of api are being restarted",
        "the last restart of api failed: it died",
    ]


def test_where_there_is_no_room_for_every_pool_those_with_a_queue_come_first() -> None:
    whole = two_pools(queued=3)
    for number in range(20):
        whole["pools"].append(whole["pools"][0] | {"name": f"other{number}"})
    lines = headlines(None, Sample(5.0, whole), most_pools=3)
    assert len(lines) == 6
    assert lines[3].startswith("api ")
    assert lines[4].startswith("default ")
    assert lines[5] == "and 20 pools more, 20 busy of 60 workers"
    assert len(headlines(None, Sample(5.0, whole))) == 3 + 22


def test_rows_and_events_tell_their_pool_where_there_are_several() -> None:
    event = {"at": 1.0, "kind": "death", "text": "worker died", "pid": 2}
    whole = two_pools(child(2, 20, state="busy"), events=[event])
    found = rows(None, Sample(5.0, whole))
    assert {row.pid: row.pool for row in found} == {70: "", 71: "", 1: "default", 2: "api"}
    shown = [line.split() for line in plain(None, Sample(5.0, whole), View()).splitlines()]
    at = shown.index("PID ROLE POOL STATE REQUESTS REQ/S CPU% RSS FDS AGE TIME RUNS".split())
    assert ["2", "worker", "api", "busy", "20"] in [line[:5] for line in shown[at:]]
    assert [line.split(" ", 1)[1] for line in events(whole, 3)] == ["api: worker died"]
    alone = snapshot(child(1, 10), events=[event])
    assert {row.pool for row in rows(None, Sample(5.0, alone))} == {""}
    assert "POOL" not in plain(None, Sample(5.0, alone), View())


def test_the_request_that_runs_longest_and_the_child_that_has_outgrown_the_others_are_told_first() -> None:
    def runs(seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "method": "GET", "target": f"/{seconds:.0f}", "request_id": "abc"}

    quick = snapshot(child(1, runs=runs(0.9)), child(2))
    assert len(headlines(None, Sample(5.0, quick))) == 3
    slow = snapshot(
        child(1, runs=runs(2.0)), child(2, runs=runs(75.0)), child(3, rss=90 * 2**20, outgrown=4.5), child(4)
    )
    assert headlines(None, Sample(5.0, slow))[3:] == [
        "longest: worker 2 has run GET /75 (abc) for 75.0s",
        "memory: worker 3 has 90.0M, 4.5 times the others'",
    ]
    nameless = snapshot(child(1, runs={"seconds": 2.0}))
    assert headlines(None, Sample(5.0, nameless))[3:] == ["longest: worker 1 has run a request for 2.0s"]


def test_the_last_events_come_in_their_order() -> None:
    happened = [
        {"at": 1.0 + number, "kind": "death", "text": f"number {number}\x07", "pid": 1} for number in range(9)
    ]
    shown = events(snapshot(events=list(reversed(happened))), 3)
    assert [line.split(" ", 1)[1] for line in shown] == [rf"number {number}\x07" for number in (6, 7, 8)]


HOSTILE = "/\x1b]0;mine\x07\x9b2J\r\n\u202egnp\x7f[bold red]é"


def test_nothing_that_a_client_sent_steers_the_terminal_or_is_taken_for_markup() -> None:
    runs = {"seconds": 1.0, "method": "GET", "target": HOSTILE, "request_id": "\x1b[2J"}
    whole = snapshot(
        child(1, runs=runs),
        command=HOSTILE,
        restart_error=HOSTILE,
        not_ready=HOSTILE,
        events=[{"at": 1.0, "kind": "death", "text": HOSTILE, "pid": 1}],
    )
    shown = plain(None, Sample(1.0, copy.deepcopy(whole)), View())
    assert all(char == "\n" or char.isprintable() for char in shown)
    assert shown.count(r"/\x1b]0;mine\x07\x9b2J\r\n\u202egnp\x7f[bold red]é") == 6
    assert printable("\udcff") == r"\udcff"


def test_the_plain_page_is_a_table_without_padding_behind_it() -> None:
    shown = plain(None, Sample(5.0, snapshot(child(1, 10, state="ending"))), View(lines=2)).splitlines()
    assert shown[4].split() == "PID ROLE STATE REQUESTS REQ/S CPU% RSS FDS AGE TIME RUNS".split()
    assert [line.split()[1] for line in shown[5:]] == ["arbiter", "http"]
    assert all(line == line.rstrip() for line in shown)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0µs"),
        (0.0000012, "1.2µs"),
        (0.00085, "850µs"),
        (0.0035, "3.5ms"),
        (0.012, "12ms"),
        (0.99996, "1.0s"),
        (3.21, "3.2s"),
        (185.0, "3:05"),
    ],
)
def test_times_are_brief(seconds: float | None, text: str) -> None:
    assert brief(seconds) == text


def test_ages_are_in_the_units_of_their_size() -> None:
    assert [long(age) for age in (42.9, 7385, 4 * 86400 + 7380)] == ["42s", "2:03:05", "4d 02:03"]
