"""How busy children were on average."""

from __future__ import annotations

import pytest

from poolparty.stats.utilization import SPACING, STALE, WINDOW, Utilization


def test_the_first_look_tells_what_is() -> None:
    assert Utilization().look(100.0, 5.0, 2.0, busy=3) == 3.0


def test_what_was_answered_and_what_runs_counts_by_its_time() -> None:
    utilization = Utilization()
    utilization.look(100.0, 5.0, 0.0, busy=0)
    # In half a second: 0.2 s of requests that have been answered, and one that has run for 0.3 s.
    assert utilization.look(100.5, 5.2, 0.3, busy=1) == pytest.approx(1.0)


def test_a_moment_is_outweighed_by_the_time_around_it() -> None:
    """Two children, each busy half of the time, found both busy by every look."""
    utilization = Utilization()
    for tick in range(20):
        found = utilization.look(100.0 + tick / 2, tick / 2, 0.0, busy=2)
    assert found == pytest.approx(1.0)


def test_what_is_longer_ago_than_the_window_counts_no_more() -> None:
    utilization = Utilization()
    for tick in range(9):  # busy all the time
        utilization.look(100.0 + tick / 4, tick / 4, 0.0, busy=1)
    idle_from = 102.0
    for tick in range(int(4 * WINDOW) + 1):  # and then not at all
        found = utilization.look(idle_from + tick / 4, 2.0, 0.0, busy=0)
    assert found == 0.0


def test_however_many_ask_few_looks_are_kept() -> None:
    utilization = Utilization()
    for tick in range(10_000):
        found = utilization.look(100.0 + tick / 1000, tick / 1000, 0.0, busy=0)
    assert found == pytest.approx(1.0)
    assert len(utilization._looks) < 1.1 * WINDOW / SPACING


def test_after_a_long_pause_it_begins_anew() -> None:
    utilization = Utilization()
    utilization.look(100.0, 0.0, 0.0, busy=0)
    assert utilization.look(100.0 + 2 * STALE, 19.0, 0.0, busy=0) == 0.0


def test_a_request_that_was_never_answered_makes_nothing_negative() -> None:
    utilization = Utilization()
    utilization.look(100.0, 5.0, 3.0, busy=1)
    assert utilization.look(100.5, 5.0, 0.0, busy=0) == 0.0
