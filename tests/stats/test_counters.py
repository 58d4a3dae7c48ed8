"""The histograms' arithmetic."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolparty.stats.counters import BOUNDS, BUCKETS, COUNTERS, STATUS_CLASSES, quantile


def counts_of(values: list[float]) -> list[int]:
    counts = [0] * BUCKETS
    for value in values:
        counts[bisect_left(BOUNDS, value)] += 1
    return counts


@given(
    st.lists(st.floats(min_value=0, max_value=59), min_size=1, max_size=200),
    st.floats(min_value=0.01, max_value=1),
)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    rank = max(-(-len(values) * share // 1), 1)
    true = sorted(values)[int(rank) - 1]
    bucket = bisect_left(BOUNDS, true)
    found = quantile(counts_of(values), share)
    assert found is not None
    assert (BOUNDS[bucket - 1] if bucket else 0.0) <= found <= BOUNDS[bucket]


def test_nothing_has_no_quantile_and_what_is_beyond_the_last_bound_is_told_as_that() -> None:
    assert quantile([0] * BUCKETS, 0.5) is None
    assert quantile(counts_of([100.0, 200.0]), 0.99) == BOUNDS[-1]


def test_names_are_unique_and_classes_of_statuses_in_order() -> None:
    names = [counter.name for counter in COUNTERS]
    assert len(set(names)) == len(names)
    assert STATUS_CLASSES == ("status_2xx", "status_3xx", "status_4xx", "status_5xx")


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_within_a_bucket_values_are_taken_to_lie_evenly(share: float) -> None:
    counts = [0] * BUCKETS
    counts[3] = 100
    assert quantile(counts, share) == pytest.approx(BOUNDS[2] + share * (BOUNDS[3] - BOUNDS[2]))
