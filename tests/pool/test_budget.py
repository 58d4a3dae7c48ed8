"""What several pools may have together."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from poolparty.pool.budget import Budget
from poolparty.pool.policy import Limits, Policy

LIMITS = Limits(
    min_size=1,
    max_size=10,
    spawn_timeout=0.050,
    restart_delay=1.0,
    attrition_delay=120.0,
    spare=0,
    surge=1,
    health_check_interval=3600.0,
)


def policies(*bounds: tuple[int, int]) -> list[Policy]:
    return [Policy(replace(LIMITS, min_size=low, max_size=high)) for low, high in bounds]


def allot(budget: Budget, pools: list[Policy], used: int = 0) -> None:
    for policy in pools:
        budget.allot(policy, pools, used)


def test_without_a_total_each_pool_has_its_own_bounds() -> None:
    one, two = pools = policies((1, 10), (2, 5))
    allot(Budget(), pools, 1 << 60)
    one.grow(100)
    two.grow(100)
    assert (one.target, two.target) == (10, 5)


def test_what_is_beyond_the_minima_goes_to_who_needs_it_first() -> None:
    one, two = pools = policies((1, 10), (2, 10))
    budget = Budget(children=6)
    allot(budget, pools)
    one.grow(100)
    allot(budget, pools)
    two.grow(100)
    assert (one.target, two.target) == (4, 2)


def test_what_one_gives_back_another_may_have() -> None:
    one, two = pools = policies((1, 10), (1, 10))
    budget = Budget(children=6)
    allot(budget, pools)
    one.grow(100)
    allot(budget, pools)
    assert two.max_size == 1
    one.shrink(3)
    allot(budget, pools)
    two.grow(100)
    assert (one.target, two.target) == (2, 4)


def test_two_that_grow_in_one_moment_have_no_more_than_there_is() -> None:
    pools = policies((1, 10), (1, 10))
    budget = Budget(children=6)
    allot(budget, pools)
    for policy in pools:
        policy.grow(100)  # neither knows of the other yet
    allot(budget, pools)
    assert sum(policy.target for policy in pools) <= 6


def test_a_lower_total_is_kept_to_down_to_the_minima() -> None:
    pools = policies((1, 10), (2, 10), (0, 10))
    allot(Budget(children=20), pools)
    for policy in pools:
        policy.grow(4)
    allot(Budget(children=5), pools)
    assert sum(policy.target for policy in pools) == 5
    assert all(policy.target >= policy.limits.min_size for policy in pools)


def test_with_too_much_memory_used_no_pool_grows_and_one_child_goes() -> None:
    one, two = pools = policies((1, 10), (1, 10))
    budget = Budget(memory=1000)
    allot(budget, pools, 1000)
    one.grow(2)
    two.grow(5)
    allot(budget, pools, 1001)
    one.grow(1)
    assert (one.target, two.target) == (3, 6)
    assert not budget.exceeded(1000) and budget.exceeded(1001)
    assert budget.give_up(pools, [3, 6]) is two  # the furthest beyond its minimum
    assert budget.give_up(pools, [1, 0]) is one  # of those that have an idle one
    assert budget.give_up(pools, [0, 0]) is None


def test_no_pool_gives_up_its_minimum() -> None:
    pools = policies((2, 10), (1, 10))
    assert Budget(memory=1).give_up(pools, [2, 1]) is None


CHANGES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["grow", "shrink", "turn"]), st.integers(0, 9)), max_size=30
)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=3, max_size=3),
    st.integers(0, 9),
    CHANGES,
)
def test_the_total_and_the_minima_hold_whatever_happens(
    bounds: list[tuple[int, int]], beyond: int, changes: list[tuple[int, str, int]]
) -> None:
    pools = policies(*((low, max(low, 1) + more) for low, more in bounds))
    budget = Budget(children=sum(low for low, _ in bounds) + beyond + 1)
    for number, change, count in changes:
        if change == "grow":
            pools[number].grow(count)
        elif change == "shrink":
            pools[number].shrink(count)
        allot(budget, pools)
        assert sum(policy.target for policy in pools) <= budget.children
        for policy in pools:
            assert policy.limits.min_size <= policy.target <= policy.limits.max_size
