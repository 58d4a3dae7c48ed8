"""What the server offers beyond version 1 of the worker protocol (docs/worker-protocol.md), without I/O.

A child uses what POOLPARTY_FEATURES offers; the server uses towards a child what its Ready has named.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Feature(enum.IntFlag):
    """One bit each, so that a child's fit in a word of the scoreboard."""

    READY = enum.auto()  # it says when its application has loaded
    HEALTH_REPLY = enum.auto()  # it answers health checks
    STREAM = enum.auto()  # it may answer in pieces
    STREAM_CANCEL = enum.auto()  # while it does, it looks for StreamCancel
    BODY_FILE = enum.auto()  # it takes a large body as the path of a file
    STACK = enum.auto()  # SIGUSR1 makes it write its stack


NAMES: dict[str, Feature] = {str(feature.name).lower().replace("_", "-"): feature for feature in Feature}
"""By the name in POOLPARTY_FEATURES and in Ready, in the order in which they are offered."""


def named(names: Iterable[str]) -> Feature:
    """The features of these names; a name that is not ours is none."""
    features = Feature(0)
    for name in names:
        features |= NAMES.get(name, Feature(0))
    return features
