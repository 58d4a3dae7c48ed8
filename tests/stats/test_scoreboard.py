"""The scoreboard: rows that do not overlap, counters that survive their seat, memory that is shared."""

from __future__ import annotations

import os
import time

import pytest

from poolparty.stats.counters import BUCKETS, COUNTERS, OUTCOMES
from poolparty.stats.scoreboard import (
    CHILD_WORDS,
    COUNTER_INDEX,
    HISTOGRAM_INDEX,
    POOL_WORDS,
    RUNS_BYTES,
    RUNS_WORDS,
    SEAT_WORDS,
    ChildWord,
    Scoreboard,
    SeatWord,
)


@pytest.fixture
def board() -> Scoreboard:
    return Scoreboard(seats=3, children=5)


def test_every_word_of_every_row_has_a_place_of_its_own(board: Scoreboard) -> None:
    seats = [board.seat_base(seat) + word for seat in range(3) for word in range(SEAT_WORDS)]
    children = [board.child_base(slot) + word for slot in range(5) for word in range(CHILD_WORDS)]
    pool = [board.pool_base + word for word in range(POOL_WORDS)]
    runs = 5 * RUNS_WORDS  # behind all others
    assert sorted(pool + seats + children) == list(range(len(board.words) - runs))


@pytest.mark.parametrize("row", [-1, 3, 100])
def test_a_seat_that_does_not_exist_is_an_error(board: Scoreboard, row: int) -> None:
    with pytest.raises(IndexError, match=f"no seat {row}"):
        board.seat_base(row)


@pytest.mark.parametrize("row", [-1, 5, 100])
def test_a_child_slot_that_does_not_exist_is_an_error(board: Scoreboard, row: int) -> None:
    with pytest.raises(IndexError, match=f"no child slot {row}"):
        board.child_base(row)


def test_counters_stand_behind_the_seats_own_columns() -> None:
    columns = [*SeatWord, *COUNTER_INDEX.values()]
    assert columns == list(range(len(columns)))
    assert list(COUNTER_INDEX) == [counter.name for counter in COUNTERS]


def test_totals_are_the_sums_over_all_seats(board: Scoreboard) -> None:
    for seat in range(3):
        board.words[board.seat_base(seat) + COUNTER_INDEX["answered"]] = 10**seat
    board.words[board.seat_base(1) + COUNTER_INDEX["bytes_sent"]] = 2**40
    totals = board.totals()
    assert totals.pop("answered") == 111
    assert totals.pop("bytes_sent") == 2**40
    assert set(totals.values()) == {0}


@pytest.mark.parametrize("seat", [0, 2])
def test_a_seat_counts_however_little_stands_in_its_row(board: Scoreboard, seat: int) -> None:
    last = list(COUNTER_INDEX)[-1]
    board.words[board.seat_base(seat) + COUNTER_INDEX[last]] = 1
    assert {name for name, count in board.totals().items() if count} == {last}
    board.words[board.seat_base(seat) + COUNTER_INDEX[last]] = 0
    name, first = list(HISTOGRAM_INDEX.items())[-1]
    board.words[board.seat_base(seat) + first + BUCKETS - 1] = 1
    assert {name: each.count for name, each in board.distributions().items() if each.count} == {name: 1}


def test_what_a_dead_seat_has_counted_stays_and_its_row_is_new(board: Scoreboard) -> None:
    base = board.seat_base(2)
    for life in range(1, 4):
        board.words[base + SeatWord.PID] = 1000 + life
        board.times[base + SeatWord.OLDEST] = 12.5
        board.words[base + COUNTER_INDEX["requests"]] = 7
        assert board.totals()["requests"] == 7 * life
        board.retire_seat(2)
        assert board.totals()["requests"] == 7 * life
        assert not any(board.words[base : base + SEAT_WORDS])


def test_a_child_is_idle_while_it_has_answered_all_it_was_sent(board: Scoreboard) -> None:
    base = board.child_base(4)
    assert board.child_is_idle(4)
    board.words[base + ChildWord.SENT] += 1
    assert not board.child_is_idle(4)
    board.words[base + ChildWord.ANSWERED] += 1
    assert board.child_is_idle(4)


def test_the_pids_of_children_are_those_that_are_set(board: Scoreboard) -> None:
    board.words[board.child_base(1) + ChildWord.PID] = 41
    board.words[board.child_base(3) + ChildWord.PID] = 43
    assert board.child_pids() == [41, 43]
    board.clear_child(1)
    assert board.child_pids() == [43]


def test_a_cleared_child_row_touches_no_other(board: Scoreboard) -> None:
    for index in range(len(board.words)):
        board.words[index] = index + 1
    board.clear_child(2)
    start = board.child_base(2)
    changed = [index for index in range(len(board.words)) if board.words[index] != index + 1]
    assert changed == list(range(start, start + CHILD_WORDS))


def test_times_and_words_are_two_views_of_one_memory(board: Scoreboard) -> None:
    now = time.monotonic()
    board.times[7] = now
    assert board.times[7] == now
    assert board.words[7] != 0
    board.words[7] = 0
    assert board.times[7] == 0.0


def test_a_forked_process_writes_into_the_same_memory(board: Scoreboard) -> None:
    column = board.seat_base(1) + COUNTER_INDEX["requests"]
    pid = os.fork()
    if pid == 0:
        board.words[column] = 5
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert board.totals()["requests"] == 5


def test_every_outcome_is_a_counter() -> None:
    assert set(OUTCOMES) <= set(COUNTER_INDEX)
    assert OUTCOMES == ("answered", "overloaded", "failed", "timed_out", "static", "admin", "abandoned")


# What a child runs.


def run(board: Scoreboard, slot: int, sent: int, answered: int) -> None:
    base = board.child_base(slot)
    board.words[base + ChildWord.SENT] = sent
    board.words[base + ChildWord.ANSWERED] = answered


def test_what_a_child_runs_is_told_with_the_number_of_its_request(board: Scoreboard) -> None:
    run(board, 4, sent=3, answered=2)
    board.times[board.child_base(4) + ChildWord.STARTED] = 12.5
    assert board.runs(4) == (12.5, b"")
    board.tell_runs(4, 3, b"- GET /a")
    assert board.runs(4) == (12.5, b"- GET /a")
    run(board, 4, sent=4, answered=3)
    assert board.runs(4) == (12.5, b""), "the text is about the request before"
    run(board, 4, sent=4, answered=4)
    assert board.runs(4) is None


def test_a_long_text_is_cut_and_stays_in_its_row(board: Scoreboard) -> None:
    for slot in (3, 4):
        run(board, slot, sent=1, answered=0)
        board.tell_runs(slot, 1, bytes([65 + slot]) * 1000)
    for slot in (3, 4):
        assert board.runs(slot) == (0.0, bytes([65 + slot]) * (RUNS_BYTES - 3) + b"...")
