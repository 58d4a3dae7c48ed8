"""The messages between arbiter and HTTP worker: one packet each, and nothing else passes for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolparty.wire.seat import MAX_PACKET, Lend, Message, Reason, Recall, Return, Want, decode, encode

leases = st.integers(0, 2**64 - 1)
messages = st.one_of(
    st.builds(Lend, leases, st.integers(0, 2**32 - 1), st.integers(1, 2**64 - 1), st.integers(0, 2**16 - 1)),
    st.builds(Recall, leases),
    st.builds(Want),
    st.builds(Return, leases, st.sampled_from(Reason)),
)


@given(messages)
def test_every_message_round_trips_in_one_short_packet(message: Message) -> None:
    packet = encode(message)
    assert len(packet) <= MAX_PACKET
    assert decode(packet) == message


@given(messages, messages)
def test_two_messages_that_differ_are_two_packets(one: Message, other: Message) -> None:
    assert (encode(one) == encode(other)) == (one == other)


@given(st.binary(max_size=2 * MAX_PACKET))
def test_bytes_are_a_message_or_a_value_error(packet: bytes) -> None:
    try:
        message = decode(packet)
    except ValueError:
        return
    assert decode(encode(message)) == message


@given(messages, st.binary(min_size=1, max_size=8))
def test_a_packet_that_is_cut_or_longer_is_refused(message: Message, more: bytes) -> None:
    packet = encode(message)
    for wrong in (packet[:-1], packet + more, b""):
        with pytest.raises(ValueError, match="no seat message"):
            decode(wrong)


def test_an_unknown_kind_is_named() -> None:
    packet = encode(Want())
    with pytest.raises(ValueError, match="unknown kind 77"):
        decode(bytes([77]) + packet[1:])


def test_an_unknown_reason_is_refused() -> None:
    packet = bytearray(encode(Return(5, Reason.IDLE)))
    packet[1] = 99
    with pytest.raises(ValueError, match="99"):
        decode(bytes(packet))
