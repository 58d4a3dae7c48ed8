"""Samples become figures without hiding anything."""

from __future__ import annotations

import pytest

from benchmarks import figures
from benchmarks.figures import Table


def test_a_figure_is_the_median_of_its_rounds() -> None:
    samples = [{"rate": 10.0}, {"rate": 500.0}, {"rate": 12.0}]
    assert figures.medians(samples)["rate"] == 12.0


def test_errors_are_added_up_since_a_median_would_hide_them() -> None:
    samples = [
        {"errors": 0, "read_errors": 0},
        {"errors": 7, "read_errors": 7},
        {"errors": 0, "read_errors": 0},
    ]
    found = figures.medians(samples)
    assert (found["errors"], found["read_errors"]) == (7, 7)


def test_a_name_that_only_some_rounds_have_is_kept() -> None:
    assert figures.medians([{"rate": 1.0}, {"rate": 2.0, "p99": 9.0}])["p99"] == 9.0


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(50, 50), (99, 99), (99.9, 100), (100, 100), (1, 1), (0, 1)],
)
def test_a_percentile_is_the_nearest_rank(percent: float, expected: int) -> None:
    assert figures.percentile(range(1, 101), percent) == expected


def test_a_percentile_of_one_number_is_that_number() -> None:
    assert figures.percentile([4.2], 99.9) == 4.2


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        figures.percentile([], 50)


def test_the_spread_is_half_of_the_range_as_a_part_of_the_median() -> None:
    assert figures.spread([{"rate": 90.0}, {"rate": 100.0}, {"rate": 110.0}], "rate") == pytest.approx(0.1)


def test_a_ratio_is_taken_in_each_round_and_then_its_median() -> None:
    ours = [{"rate": 30.0}, {"rate": 10.0}, {"rate": 60.0}]
    reference = [{"rate": 20.0}, {"rate": 5.0}, {"rate": 40.0}]
    assert figures.paired_ratio(ours, reference, "rate") == 1.5


def test_no_ratio_to_what_was_not_measured() -> None:
    assert figures.paired_ratio([{"rate": 1.0}], [], "rate") is None
    assert figures.paired_ratio([{"rate": 1.0}], [{"rate": 0.0}], "rate") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(32412.3, "32,412"), (99.96, "100.0"), (12.345, "12.3"), (0.8049, "0.80"), (None, "–"), (0, "0.00")],
)
def test_numbers_have_about_three_digits(value: float | None, text: str) -> None:
    assert figures.number(value) == text


def test_errors_are_named_by_their_cause() -> None:
    sample = {"errors": 1203, "read_errors": 1200, "connect_errors": 3, "write_errors": 0}
    assert figures.errors(sample) == "1,200 read, 3 not connected"


def test_no_errors_are_shown_as_zero() -> None:
    assert figures.errors({"errors": 0, "read_errors": 0}) == "0"


def test_a_table_in_markdown_aligns_its_columns_and_escapes_bars() -> None:
    table = Table(["", "requests/s"], [["a|b", "12"], ["second", "1,000"]])
    assert table.markdown() == (
        "|        | requests/s |\n"
        "| ------ | ---------: |\n"
        "| a\\|b   |         12 |\n"
        "| second |      1,000 |\n"
    )


def test_a_table_as_text_has_no_trailing_spaces() -> None:
    table = Table(["name", "n"], [["x", "1"], ["longer", ""]])
    assert table.text() == "name    n\nx       1\nlonger"


def test_a_round_that_failed_does_not_pair_others_wrongly() -> None:
    ours = [{"rate": 10.0}, {"errors": 1.0}, {"rate": 30.0}]
    reference = [{"rate": 10.0}, {"rate": 1000.0}, {"rate": 30.0}]
    assert figures.paired_ratio(ours, reference, "rate") == 1.0
