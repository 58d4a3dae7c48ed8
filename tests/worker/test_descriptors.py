"""How many connections an HTTP worker takes on where open files are few."""

from __future__ import annotations

import resource

import pytest

from poolparty.worker.server import OTHER_DESCRIPTORS, connections_that_fit


@pytest.mark.parametrize(
    ("wanted", "limit", "children", "fit"),
    [
        (1000, 20_000, 8, 1000),
        (1000, resource.RLIM_INFINITY, 8, 1000),
        (10_000, 1024, 8, 1024 - OTHER_DESCRIPTORS - 16),
        (10_000, 1024, 500, 512),  # more children than there is room for
        (10_000, 1, 8, 1),
    ],
)
def test_clients_leave_room_for_the_children(wanted: int, limit: int, children: int, fit: int) -> None:
    assert connections_that_fit(wanted, limit, children) == fit
