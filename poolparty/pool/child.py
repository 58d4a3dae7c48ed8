"""A child's life as a table. The arbiter is the only one that moves a child through it.

    BOOTING ──READY──▶ IDLE ──LEND──▶ LENT ──RECALL──▶ RECALLED
                        │ ▲            │                  │
                  CHECK │ │ CHECKED    │ RETURN           │ RETURN
                        ▼ │            ▼                  ▼
                      CHECKING        IDLE               IDLE

    every state ──END──▶ ENDING (signalled; its owner is the arbiter) ──EXIT──▶ GONE

A child that dies by itself goes from any state to GONE. A transition that is not listed is a bug and raises.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a child is in its life; the value is what stats show."""

    BOOTING = "booting"  # started, its application is loading
    IDLE = "idle"  # ready, with the arbiter
    LENT = "lent"  # with an HTTP worker, which runs requests on it or holds it for the next one
    RECALLED = "recalled"  # with an HTTP worker, which gives it back as soon as it runs nothing
    CHECKING = "checking"  # with the arbiter, which waits for its health check
    ENDING = "ending"  # told to leave
    GONE = "gone"  # reaped


class Event(enum.Enum):
    """What can happen to a child."""

    READY = "ready"
    LEND = "lend"
    RECALL = "recall"
    RETURN = "return"
    CHECK = "check"
    CHECKED = "checked"
    END = "end"
    EXIT = "exit"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.BOOTING, Event.READY): State.IDLE,
    (State.IDLE, Event.LEND): State.LENT,
    (State.IDLE, Event.CHECK): State.CHECKING,
    (State.CHECKING, Event.CHECKED): State.IDLE,
    (State.LENT, Event.RECALL): State.RECALLED,
    (State.LENT, Event.RETURN): State.IDLE,
    (State.RECALLED, Event.RETURN): State.IDLE,
    (State.BOOTING, Event.END): State.ENDING,
    (State.IDLE, Event.END): State.ENDING,
    (State.LENT, Event.END): State.ENDING,
    (State.RECALLED, Event.END): State.ENDING,
    (State.CHECKING, Event.END): State.ENDING,
    (State.BOOTING, Event.EXIT): State.GONE,
    (State.IDLE, Event.EXIT): State.GONE,
    (State.LENT, Event.EXIT): State.GONE,
    (State.RECALLED, Event.EXIT): State.GONE,
    (State.CHECKING, Event.EXIT): State.GONE,
    (State.ENDING, Event.EXIT): State.GONE,
}

READY_STATES = frozenset((State.IDLE, State.LENT, State.RECALLED, State.CHECKING))
"""States of a child that has loaded its application and is to serve on."""

LIVE_STATES = READY_STATES | {State.BOOTING}
"""States of a child that counts towards the pool's size."""


def next_state(state: State, event: Event) -> State:
    """The state after an event. ValueError: the event cannot happen in that state."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ValueError(f"a child that is {state.value} cannot {event.value}") from None
