"""The page shows what was measured, what failed and what was left out, and no private path."""

from __future__ import annotations

from typing import Any

from benchmarks import report
from benchmarks.cases import CASES, OURS, Case
from benchmarks.command import chosen_cases, chosen_setups, without_json
from benchmarks.measures import flat

HELLO = next(case for case in CASES if case.name == "hello")


def result(**changes: Any) -> dict[str, Any]:
    sample = {"rate": 40_000.0, "p50": 0.4, "p99": 1.0, "cpu_us": 40.0, "errors": 0, "read_errors": 0}
    other = sample | {"rate": 20_000.0, "errors": 5, "read_errors": 5}
    return {
        "samples": {OURS: [sample, sample], "Puma": [other, other]},
        "skipped": {},
        "complaints": {},
    } | changes


def results() -> dict[str, Any]:
    return {
        "command": "bin/bench --docs", "date": "2026-01-02", "rounds": 2, "seconds": 4.0, "load": 0.1,
        "machine": {"cores": "2", "processor": "CPU", "memory": "4 GiB", "system": "Debian", "kernel": "6.1"},
        "versions": {"Janet": "1.42.1"}, "cases": {"hello": result()},
    }  # fmt: skip


def test_a_row_has_figures_ratios_and_the_sum_of_errors() -> None:
    table = report.case_table(HELLO, result())
    rows = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert rows["Puma"]["requests/s"] == "20,000"
    assert rows["Puma"]["× Poolparty"] == "0.50"
    assert rows["Puma"]["× original"] == "–"
    assert rows["Puma"]["errors"] == "10 read"
    assert rows[OURS]["errors"] == "0"


def test_a_contestant_that_failed_in_every_round_keeps_its_row() -> None:
    failed = result(
        samples={OURS: [{"failed_errors": 1, "errors": 1}]},
        complaints={OURS: ["failed in round 1: ended with status 1\n  trace"]},
    )
    table = report.case_table(HELLO, failed)
    row = dict(zip(table.head, table.rows[0], strict=True))
    assert (row["requests/s"], row["errors"]) == ("–", "1 rounds failed")
    assert report.remarks(failed) == [
        f"{OURS}: 1 complaints, the first: failed in round 1: ended with status 1"
    ]


def test_what_was_not_found_is_named() -> None:
    assert report.remarks(result(skipped={"uWSGI": "uwsgi is not on PATH"})) == [
        "uWSGI: not measured, uwsgi is not on PATH"
    ]


def test_the_page_names_its_command_and_the_machine() -> None:
    page = report.page(results())
    assert "    bin/bench --docs\n" in page
    assert "2 cores of CPU" in page
    assert "Janet 1.42.1" in page
    assert "## Hello\n" in page
    assert "## Overload" not in page


def test_the_chart_has_ours_in_its_colour_and_the_fastest_first() -> None:
    picture = report.picture(results())
    assert picture.index(OURS) < picture.index("Puma")
    assert picture.count('class="bar ours"') == 1


def test_the_command_is_shown_without_the_file_of_results() -> None:
    assert without_json(["--rounds", "3", "--json", "/some/where", "--docs", "--json=x"]) == [
        "--rounds",
        "3",
        "--docs",
    ]


def test_contestants_are_chosen_by_server_or_by_server_and_child() -> None:
    assert {setup.peer for setup in chosen_setups(HELLO, ["poolparty"])} == {
        "poolparty-janet",
        "poolparty-python",
    }
    assert [setup.peer for setup in chosen_setups(HELLO, ["poolparty-python", "nginx"])] == [
        "poolparty-python",
        "nginx",
    ]


def test_a_quick_run_leaves_out_what_takes_long() -> None:
    names = {case.name for case in chosen_cases(None, quick=True)}
    assert "hello" in names
    assert "overload" not in names
    assert [case.name for case in chosen_cases(["overload"], quick=True)] == ["overload"]


def test_labels_tell_every_contestant_of_a_case_apart() -> None:
    def labels(case: Case) -> list[str]:
        return [setup.label for setup in case.setups]

    for case in CASES:
        assert len(set(labels(case))) == len(labels(case)), case.name
        assert set(case.compared_with.values()) <= set(labels(case)) | {"C relay, Janet"}, case.name


def test_a_refusal_is_counted_by_itself_and_any_other_status_is_an_error() -> None:
    quantiles = {"count": 1, "p50": 1.0, "p99": 2.0, "p999": 3.0, "longest": 4.0}
    sample = flat({
        "seconds": 2.0, "rate": 100.0, "statuses": {"200": 200, "503": 50, "502": 3},
        "errors": {"connect": 1, "broken": 0, "unsent": 0, "unanswered": 2},
        "all": quantiles, "fast": quantiles, "slow": quantiles,
    })  # fmt: skip
    assert sample["refused"] == 25
    assert sample["errors"] == 6
    assert (sample["p99"], sample["fast_p99"]) == (2.0, 2.0)


def test_the_page_of_a_busy_machine_says_so() -> None:
    assert "not idle" not in report.page(results())
    assert "not idle when it began (load 3.0)" in report.page(results() | {"load": 3.0})
