"""BARE primitives, against the edges of LEB128 and against pybare as an independent reader and writer."""

from __future__ import annotations

import io

import bare
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolparty.errors import FrameError
from poolparty.wire.bare import (
    MAX_UINT,
    UINT,
    decode_string,
    decode_uint,
    encode_string,
    encode_uint,
)

# Either side of every length of the encoding.
EDGES = sorted(
    {n for k in range(0, 64, 7) for n in (2**k - 1, 2**k, 2**k + 1)} | {2**63, MAX_UINT - 1, MAX_UINT}
)

uints = st.one_of(st.sampled_from(EDGES), st.integers(0, MAX_UINT), st.integers(0, 2**14 + 1))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\0"),
        (1, b"\x01"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (255, b"\xff\x01"),
        (300, b"\xac\x02"),
        (16383, b"\xff\x7f"),
        (16384, b"\x80\x80\x01"),
        (2**63, b"\x80" * 9 + b"\x01"),
        (MAX_UINT, b"\xff" * 9 + b"\x01"),
    ],
)
def test_a_uint_is_written_in_its_shortest_form(value: int, encoded: bytes) -> None:
    assert encode_uint(value) == encoded
    assert decode_uint(encoded, 0) == (value, len(encoded))


@given(uints)
def test_a_uint_is_written_as_pybare_writes_it(value: int) -> None:
    assert encode_uint(value) == bytes(bare.UInt(value).pack())


@given(uints, st.binary(max_size=3), st.binary(max_size=12))
def test_a_uint_comes_back_from_between_other_bytes(value: int, before: bytes, behind: bytes) -> None:
    encoded = encode_uint(value)
    assert decode_uint(before + encoded + behind, len(before)) == (value, len(before) + len(encoded))


@given(uints)
def test_a_uint_that_is_cut_off_ends_in_an_index_error(value: int) -> None:
    encoded = encode_uint(value)
    for cut in range(len(encoded)):
        with pytest.raises(IndexError):
            decode_uint(encoded[:cut], 0)


@pytest.mark.parametrize("encoded", [b"\x80\x00", b"\x81\x80\x80\x00", b"\x80" * 9 + b"\x00"])
def test_a_uint_longer_than_it_need_be_is_read_nonetheless(encoded: bytes) -> None:
    assert decode_uint(encoded, 0) == (encoded[0] & 127, len(encoded))


@pytest.mark.parametrize("encoded", [b"\x80" * 10 + b"\x00", b"\xff" * 10, b"\xff" * 64])
def test_a_uint_of_more_than_ten_bytes_is_refused(encoded: bytes) -> None:
    with pytest.raises(FrameError, match="ten bytes"):
        decode_uint(encoded, 0)


@pytest.mark.parametrize("last", [2, 3, 0x7F])
def test_a_uint_beyond_64_bits_is_refused(last: int) -> None:
    with pytest.raises(FrameError, match="64 bits"):
        decode_uint(b"\xff" * 9 + bytes([last]), 0)


def test_a_number_beyond_64_bits_is_not_written() -> None:
    with pytest.raises(ValueError, match="below 2"):
        encode_uint(MAX_UINT + 1)


def test_the_table_of_one_byte_uints_is_what_they_encode_to() -> None:
    assert [decode_uint(encoded, 0) for encoded in UINT] == [(n, 1) for n in range(128)]


@given(
    st.one_of(st.binary(max_size=300), st.sampled_from([b"x" * n for n in (127, 128, 16383, 16384, 65536)]))
)
def test_data_is_written_as_pybare_writes_it_and_comes_back(value: bytes) -> None:
    encoded = encode_string(value)
    assert encoded == bytes(bare.Data(value).pack())
    assert decode_string(b"!" + encoded + b"!", 1) == (value, 1 + len(encoded))
    assert bare.Data.unpack(io.BytesIO(encoded)).value == value


@given(st.text(max_size=200))
def test_a_string_is_read_by_pybare_as_the_text_it_was(value: str) -> None:
    assert bare.Str.unpack(io.BytesIO(encode_string(value.encode()))).value == value


@given(st.binary(min_size=1, max_size=300), st.data())
def test_data_that_is_cut_off_ends_in_an_index_error(value: bytes, data: st.DataObject) -> None:
    encoded = encode_string(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(IndexError):
        decode_string(encoded[:cut], 0)


def test_a_length_that_no_memory_holds_ends_in_an_index_error() -> None:
    with pytest.raises(IndexError):
        decode_string(encode_uint(MAX_UINT) + b"abc", 0)
