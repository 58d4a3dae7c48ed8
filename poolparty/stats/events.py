"""What has happened to the pool lately, for those who look later: deaths, restarts, failed starts."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

KEPT = 100
"""Events that are kept; the oldest go first."""


@dataclass(frozen=True, slots=True)
class Event:
    """at: seconds since the epoch. kind: `death`, `end` (of a child that was told to), `replaced` (likewise,
    with a new one ready in its place), `request` (that a child had which died or ran for too long),
    `restart`, `failure`.

    text: the sentence a person reads. pid: of the child it is about, if of one.
    """

    at: float
    kind: str
    text: str
    pid: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def new_log() -> deque[Event]:
    """An empty list of what is kept."""
    return deque(maxlen=KEPT)
