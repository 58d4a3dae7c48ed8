"""A child's life: the table holds what the picture above it shows, and nothing else happens."""

from __future__ import annotations

import itertools

import pytest

from poolparty.pool.child import LIVE_STATES, READY_STATES, TRANSITIONS, Event, State, next_state


def walk(*events: Event) -> State:
    state = State.BOOTING
    for event in events:
        state = next_state(state, event)
    return state


def test_a_child_boots_serves_and_is_given_back() -> None:
    assert walk(Event.READY) is State.IDLE
    assert walk(Event.READY, Event.LEND) is State.LENT
    assert walk(Event.READY, Event.LEND, Event.RETURN) is State.IDLE
    assert walk(Event.READY, Event.LEND, Event.RECALL) is State.RECALLED
    assert walk(Event.READY, Event.LEND, Event.RECALL, Event.RETURN) is State.IDLE


def test_a_childs_health_is_checked_only_while_it_is_idle() -> None:
    assert walk(Event.READY, Event.CHECK) is State.CHECKING
    assert walk(Event.READY, Event.CHECK, Event.CHECKED) is State.IDLE
    for state in set(State) - {State.IDLE}:
        with pytest.raises(ValueError, match="cannot check"):
            next_state(state, Event.CHECK)


def test_only_an_idle_child_is_lent() -> None:
    for state in set(State) - {State.IDLE}:
        with pytest.raises(ValueError, match=f"a child that is {state.value} cannot lend"):
            next_state(state, Event.LEND)


@pytest.mark.parametrize("state", sorted(LIVE_STATES, key=lambda state: state.value))
def test_a_child_can_be_ended_and_can_die_at_any_time(state: State) -> None:
    assert next_state(state, Event.END) is State.ENDING
    assert next_state(state, Event.EXIT) is State.GONE


def test_an_ending_child_can_only_leave() -> None:
    assert {event for state, event in TRANSITIONS if state is State.ENDING} == {Event.EXIT}


def test_nothing_happens_to_a_child_that_has_gone() -> None:
    for event in Event:
        with pytest.raises(ValueError, match="gone"):
            next_state(State.GONE, event)


def test_an_unlisted_transition_raises() -> None:
    for state, event in itertools.product(State, Event):
        if (state, event) not in TRANSITIONS:
            with pytest.raises(ValueError, match=f"a child that is {state.value} cannot {event.value}"):
                next_state(state, event)


def test_every_state_can_be_reached_and_left() -> None:
    reached = {State.BOOTING}
    while more := {TRANSITIONS[key] for key in TRANSITIONS if key[0] in reached} - reached:
        reached |= more
    assert reached == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.GONE}


def test_every_event_is_some_transitions() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_a_booting_child_counts_for_the_pools_size_but_does_not_serve() -> None:
    assert {State.BOOTING} == LIVE_STATES - READY_STATES
    assert not LIVE_STATES & {State.ENDING, State.GONE}
