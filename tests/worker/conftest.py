"""Dispatchers whose clock is the test's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pipes import Pool
from typing import Any

import pytest

from poolparty.worker import dispatcher, lease


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pool]]:
    made: list[Pool] = []

    def make(**changes: Any) -> Pool:
        made.append(Pool(**changes))
        return made[-1]

    for clocked in (dispatcher, lease):
        monkeypatch.setattr(clocked, "monotonic", lambda: made[-1].now)
    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def pool(pools: Callable[..., Pool]) -> Pool:
    return pools()
