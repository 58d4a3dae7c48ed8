"""A sample a second, from what the scoreboard has counted since the one before."""

from __future__ import annotations

import pytest

from poolparty.stats.counters import BUCKETS
from poolparty.stats.history import INTERVAL, KEPT, History
from poolparty.stats.scoreboard import COUNTER_INDEX, HISTOGRAM_INDEX, Scoreboard


@pytest.fixture
def board() -> Scoreboard:
    return Scoreboard(seats=2, children=2)


def add(board: Scoreboard, seat: int, name: str, amount: int) -> None:
    board.words[board.seat_base(seat) + COUNTER_INDEX[name]] += amount


def test_a_sample_tells_rates_of_what_has_come_since_the_last_one(board: Scoreboard) -> None:
    add(board, 0, "requests", 1000)
    history = History([board], 10.0)
    assert history.due == 10.0 + INTERVAL
    add(board, 0, "requests", 30)
    add(board, 1, "requests", 20)
    add(board, 1, "overloaded", 4)
    board.words[board.seat_base(0) + HISTOGRAM_INDEX["service"] + 2] += 40
    history.sample(12.0, busy=3, workers=4, queued=7)
    (sample,) = history.samples
    assert sample["requests"] == 25.0
    assert sample["errors"] == 2.0
    assert (sample["busy"], sample["workers"], sample["queued"]) == (3, 4, 7)
    assert 0.001 < sample["service_p50"] < sample["service_p99"] <= 0.0025
    assert sample["wait_p99"] is None


def test_what_a_seat_counted_before_it_died_is_not_counted_twice_nor_lost(board: Scoreboard) -> None:
    history = History([board], 0.0)
    add(board, 0, "requests", 10)
    board.words[board.seat_base(0) + HISTOGRAM_INDEX["queue_wait"]] += 10
    board.times[board.seat_base(0) + HISTOGRAM_INDEX["queue_wait"] + BUCKETS] += 0.5
    history.sample(1.0, 0, 1, 0)
    board.retire_seat(0)
    history.sample(2.0, 0, 1, 0)
    assert [sample["requests"] for sample in history.samples] == [10.0, 0.0]
    assert [sample["wait_p99"] is None for sample in history.samples] == [False, True]
    distribution = board.distributions()["queue_wait"]
    assert (distribution.count, distribution.sum) == (10, 0.5)


def test_what_several_pools_do_adds_up(board: Scoreboard) -> None:
    other = Scoreboard(seats=2, children=5)
    add(other, 1, "requests", 500)
    history = History([board, other], 0.0)
    add(board, 0, "requests", 10)
    add(other, 0, "requests", 20)
    add(other, 1, "timed_out", 4)
    # Of eight answers two took more than 1 ms: those are the other pool's.
    board.words[board.seat_base(0) + HISTOGRAM_INDEX["service"]] += 6
    other.words[other.seat_base(0) + HISTOGRAM_INDEX["service"] + 2] += 2
    history.sample(2.0, busy=1, workers=2, queued=3)
    other.retire_seat(0)
    history.sample(3.0, busy=1, workers=2, queued=3)
    first, second = history.samples
    assert (first["requests"], first["errors"]) == (15.0, 2.0)
    assert first["service_p50"] < 0.0005 < 0.001 < first["service_p99"]
    assert (second["requests"], second["service_p99"]) == (0.0, None)


def test_only_the_last_minutes_are_kept_and_a_pause_brings_no_burst(board: Scoreboard) -> None:
    history = History([board], 0.0)
    for second in range(KEPT + 20):
        history.sample(float(second + 1), 0, 0, 0)
    assert len(history.samples) == KEPT
    now = history.due + 3600
    history.sample(now, 0, 0, 0)
    assert history.due >= now


def test_whoever_has_some_samples_gets_those_behind_them(board: Scoreboard) -> None:
    history = History([board], 0.0)
    assert history.since(0) == []
    for second in range(KEPT + 5):
        history.sample(float(second + 1), 0, 0, 0)
    last = KEPT + 5
    assert [sample["number"] for sample in history.since(last - 2)] == [last - 1, last]
    assert history.since(last) == []
    for long_ago in (0, 1, 5):
        assert [sample["number"] for sample in history.since(long_ago)] == list(range(6, last + 1))
    assert history.since(last + 1) == list(history.samples), "a number of another server's"
