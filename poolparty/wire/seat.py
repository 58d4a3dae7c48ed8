"""The messages on a seat's channel (SOCK_SEQPACKET, so each is one packet) between arbiter and HTTP worker.

    arbiter -> seat   LEND    lease, pool, slot, pid   and two descriptors: the child's stdin and fd 3
                      RECALL  lease
    seat -> arbiter   WANT                        a wake-up: how many wait and since when is on the scoreboard
                      RETURN  lease, reason

A lease is a number that never repeats; `slot` is the child's row on its pool's scoreboard. Both ends are ours
and of one version, so a packet that does not decode is a bug: ValueError.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

MAX_PACKET = 64
"""No message is longer; a receiver's buffer."""

LEND_FDS = 2
"""Descriptors that travel with LEND: where to write the child's stdin, where to read its fd 3."""


class Reason(enum.IntEnum):
    """Why a seat gives a child back."""

    IDLE = 0  # nothing is wrong with it: recalled, or the seat drains
    BROKEN = 1  # it died, closed a pipe, or broke the framing
    TIMED_OUT = 2  # it ran a request for longer than worker_request_timeout
    STREAM_CANCELLED = 4  # its client has left, and it did not end its stream in stream_cancel_timeout
    REFUSED = 3  # the seat could not take it (its descriptors did not arrive)


@dataclass(frozen=True, slots=True)
class Lend:
    lease: int
    slot: int
    pid: int
    pool: int = 0  # its place in Seat.pools


@dataclass(frozen=True, slots=True)
class Recall:
    lease: int


@dataclass(frozen=True, slots=True)
class Want:
    pass


@dataclass(frozen=True, slots=True)
class Return:
    lease: int
    reason: Reason


Message = Lend | Recall | Want | Return

_LAYOUT = struct.Struct("<BBHIQQ")
_LEND, _RECALL, _WANT, _RETURN = range(1, 5)


def encode(message: Message) -> bytes:
    """One packet."""
    match message:
        case Lend(lease, slot, pid, pool):
            return _LAYOUT.pack(_LEND, 0, pool, slot, lease, pid)
        case Recall(lease):
            return _LAYOUT.pack(_RECALL, 0, 0, 0, lease, 0)
        case Want():
            return _LAYOUT.pack(_WANT, 0, 0, 0, 0, 0)
        case Return(lease, reason):
            return _LAYOUT.pack(_RETURN, reason, 0, 0, lease, 0)


def decode(packet: bytes) -> Message:
    """The message of one packet. ValueError: it is none of ours."""
    try:
        kind, reason, pool, slot, lease, pid = _LAYOUT.unpack(packet)
    except struct.error:
        raise ValueError(f"a packet of {len(packet)} bytes is no seat message") from None
    if kind == _LEND:
        return Lend(lease, slot, pid, pool)
    if kind == _RECALL:
        return Recall(lease)
    if kind == _WANT:
        return Want()
    if kind == _RETURN:
        return Return(lease, Reason(reason))
    raise ValueError(f"a seat message has the unknown kind {kind}")
