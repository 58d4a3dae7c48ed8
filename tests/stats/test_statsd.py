"""Two snapshots as statsd's lines."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any

import pytest

from poolparty.stats.counters import BOUNDS, COUNTERS, HISTOGRAMS, OUTCOMES
from poolparty.stats.statsd import MAX_DATAGRAM, Naming, datagrams, lines


def process(**figures: Any) -> dict[str, Any]:
    return {"slot": 0, "rss": 1000, "cpu_seconds": 1.0, "fds": 5, "connections": 2} | figures


@pytest.fixture
def snapshot() -> dict[str, Any]:
    """What `stats --json` shows of a pool that has done nothing, as far as metrics are made of it."""
    gauges = "workers idle busy booting ending target min max room queued longest_wait restarting".split()
    counters = {counter.name: 0 for counter in COUNTERS if not counter.outcome}
    counters |= {"worker_spawns": 0, "worker_restarts": 0, "worker_deaths": 0, "worker_ended_memory_kill": 0}
    buckets = [[bound, 0] for bound in (*BOUNDS, None)]
    pool = {
        "name": "default",
        **dict.fromkeys(gauges, 0),
        "outcomes": dict.fromkeys(OUTCOMES, 0),
        "counters": counters,
        "histograms": {
            histogram.name: {"buckets": copy.deepcopy(buckets), "sum": 0.0} for histogram in HISTOGRAMS
        },
        "restart_error": None,
        "children": [process(slot=0), process(slot=1, rss=500)],
    }
    return {
        "uptime": 3.5,
        "not_ready": None,
        "listen_backlog": None,
        "arbiter": process(),
        "http_workers": [process(connections=7)],
        "pools": [pool],
    }


def said(
    snapshot: dict[str, Any], previous: dict[str, Any] | None, naming: Naming | None = None
) -> dict[str, str]:
    return dict(
        line.decode().rsplit(":", 1) if naming is None or not naming.tags else line.decode().split(":", 1)
        for line in lines(snapshot, previous, naming or Naming())
    )


def test_a_gauge_is_what_it_is_now(snapshot: dict[str, Any]) -> None:
    later = copy.deepcopy(snapshot)
    later["pools"][0] |= {"workers": 4, "longest_wait": 0.00001, "restarting": True}
    found = said(later, snapshot)
    assert found["poolparty.workers.default"] == "4|g"
    assert found["poolparty.queue_longest_wait_seconds.default"] == "0.00001|g"
    assert found["poolparty.restarting.default"] == "1|g"
    assert found["poolparty.uptime_seconds"] == "3.5|g"
    assert found["poolparty.ready"] == "1|g"
    assert found["poolparty.connections"] == "7|g"


def test_a_counter_is_what_it_has_grown_by_and_left_out_if_it_has_not(snapshot: dict[str, Any]) -> None:
    before = copy.deepcopy(snapshot)
    before["pools"][0]["counters"]["requests"] = 5
    later = copy.deepcopy(before)
    later["pools"][0]["counters"] |= {"requests": 2**53 + 5, "status_5xx": 2, "worker_ended_memory_kill": 1}
    later["pools"][0]["outcomes"]["timed_out"] = 3
    counters = {name: value for name, value in said(later, before).items() if value.endswith("|c")}
    assert counters == {
        "poolparty.requests.default": f"{2**53}|c",
        "poolparty.responses.default.5xx": "2|c",
        "poolparty.request_outcomes.default.timed_out": "3|c",
        "poolparty.worker_ends.default.memory_kill": "1|c",
    }


def test_the_first_time_all_that_was_ever_counted_is_sent(snapshot: dict[str, Any]) -> None:
    snapshot["pools"][0]["counters"]["requests"] = 5
    snapshot["pools"][0]["histograms"]["service"]["buckets"][2][1] = 4
    found = said(snapshot, None)
    assert found["poolparty.requests.default"] == "5|c"
    assert found["poolparty.service_seconds_count.default"] == "4|c"


def test_processes_are_summed_by_role_and_their_time_is_in_milliseconds(snapshot: dict[str, Any]) -> None:
    later = copy.deepcopy(snapshot)
    later["pools"][0]["children"][0]["cpu_seconds"] = 1.25
    later["pools"][0]["children"][1]["cpu_seconds"] = 0.5  # another process has the slot
    later["http_workers"].append(process(slot=1, rss=None, cpu_seconds=None, fds=None))  # just gone
    found = said(later, snapshot)
    assert found["poolparty.process_resident_memory_bytes.worker"] == "1500|g"
    assert found["poolparty.process_resident_memory_bytes.http_worker"] == "1000|g"
    assert found["poolparty.process_cpu_milliseconds.worker"] == "750|c"
    assert not any("process_cpu_seconds" in name for name in found)


def test_children_of_several_pools_are_summed_by_pool_and_other_processes_by_role(
    snapshot: dict[str, Any],
) -> None:
    api = copy.deepcopy(snapshot["pools"][0]) | {"name": "api", "children": [process(rss=70)]}
    snapshot["pools"].append(api)
    found = said(snapshot, None)
    memory = "poolparty.process_resident_memory_bytes"
    assert {name: value for name, value in found.items() if name.startswith(memory)} == {
        f"{memory}.arbiter": "1000|g",
        f"{memory}.http_worker": "1000|g",
        f"{memory}.worker.default": "1500|g",
        f"{memory}.worker.api": "70|g",
    }
    assert found["poolparty.workers.api"] == "0|g"
    tagged = lines(snapshot, None, Naming("", "env:test"))
    assert f"{memory}:1000|g|#role:arbiter,env:test".encode() in tagged
    assert f"{memory}:70|g|#role:worker,pool:api,env:test".encode() in tagged


def test_a_histogram_is_a_count_and_the_percentiles_since_the_last_time(snapshot: dict[str, Any]) -> None:
    before = copy.deepcopy(snapshot)
    service = before["pools"][0]["histograms"]["service"]
    service["buckets"][-1][1] = 1000  # long ago
    service["sum"] = 5000.0
    later = copy.deepcopy(before)
    service = later["pools"][0]["histograms"]["service"]
    service["buckets"][BOUNDS.index(0.005)][1] += 98
    service["buckets"][BOUNDS.index(1.0)][1] += 2
    service["sum"] += 1.8
    found = said(later, before)
    assert found["poolparty.service_seconds_count.default"] == "100|c"
    assert found["poolparty.service_seconds_mean.default"] == "0.018|g"
    assert 0.0025 < float(found["poolparty.service_seconds_p90.default"].removesuffix("|g")) <= 0.005
    assert 0.5 < float(found["poolparty.service_seconds_p99.default"].removesuffix("|g")) <= 1.0
    assert found["poolparty.queue_wait_seconds_p99.default"] == "0|g"
    assert not any("bucket" in name or name.endswith("_sum") for name in found)


def test_where_there_are_tags_labels_are_tags_too(snapshot: dict[str, Any]) -> None:
    later = copy.deepcopy(snapshot)
    later["pools"][0]["outcomes"]["answered"] = 9
    found = said(later, snapshot, naming := Naming("site.", "env:test,eu"))
    assert found["site.poolparty.request_outcomes"] == "9|c|#pool:default,outcome:answered,env:test,eu"
    assert found["site.poolparty.uptime_seconds"] == "3.5|g|#env:test,eu"
    assert all(value.endswith(naming.tags) for value in found.values())


def test_every_line_is_one_that_a_receiver_reads(snapshot: dict[str, Any]) -> None:
    later = copy.deepcopy(snapshot)
    for group in ("outcomes", "counters"):
        later["pools"][0][group] = dict.fromkeys(later["pools"][0][group], 10**15 + 1)
    for line in lines(later, snapshot, Naming("a.b.")):
        assert re.fullmatch(rb"a\.b\.poolparty\.[a-z0-9_]+(\.[a-z0-9_]+)*:[0-9]+(\.[0-9]{1,6})?\|[gc]", line)


def test_datagrams_are_full_and_never_too_large() -> None:
    messages = [b"%03d" % number + b"x" * (number * 7 % 200) for number in range(300)]
    packed = list(datagrams(messages))
    assert b"\n".join(packed).split(b"\n") == messages
    assert max(map(len, packed)) <= MAX_DATAGRAM
    for one, following in itertools.pairwise(packed):
        assert len(one) + 1 + len(following.split(b"\n")[0]) > MAX_DATAGRAM
    assert list(datagrams([])) == []
