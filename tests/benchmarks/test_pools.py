"""The benchmark of pools that are apart: its page, and each trouble once at a real server."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import pools


def test_the_page_has_a_place_for_the_table_and_the_ratios_are_of_the_quiet_one() -> None:
    before, rest = pools.PAGE.read_text().split(pools.BEGIN)
    assert before and pools.END in rest
    quiet = {"rate": 700.0, "p50": 5.5, "p99": 6.0, "errors": 0.0}
    samples = {"left alone": [quiet], "in trouble": [quiet | {"p99": 6.6, "errors": 2.0}]}
    text = pools.page(samples, argparse.Namespace(rounds=1, seconds=5.0), 0.0)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    alone, troubled = rows[2:]
    assert [alone[0], troubled[0]] == ["left alone", "in trouble"]
    assert [float(cell) for cell in alone[4:]] == [1.0, 0.0]
    assert [float(cell) for cell in troubled[4:]] == [1.1, 2.0]


def test_each_trouble_comes_and_goes(tmp_path: Path) -> None:
    both = pools.Pools(tmp_path)
    with both.server() as serving:
        for trouble in both.troubles.values():
            with trouble(serving.port, 1.0):
                pass
            found = both.other()
            assert found["workers"] == pools.CHILDREN["other"] and not found["restart_error"]
        assert found["counters"]["worker_deaths"] >= 2 and found["generation"] >= 2
