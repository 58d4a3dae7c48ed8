"""Which X-Request-Id a request goes on with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from poolparty.worker.request_id import FIELD, NAME, SIZE, RequestIds, id_of


def request(*values: bytes) -> Any:
    return SimpleNamespace(fields=[(b"Host", b"a"), *((b"x-request-ID", value) for value in values)])


def settle(trusted: bool, *values: bytes) -> tuple[Any, dict[bytes, bytes], bool]:
    asked = request(*values)
    headers = {b"\x04Host": b"a"}
    if values:
        headers[NAME] = b", ".join(values)
    headers[b"\x01Z"] = b"z"
    return asked, headers, RequestIds().settle(asked, headers, trusted)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_request_without_one_gets_one_as_its_last_header(trusted: bool) -> None:
    asked, headers, new = settle(trusted)
    assert new
    assert list(headers)[-1] == NAME
    assert len(headers[NAME]) == SIZE
    assert asked.fields[-1] == (FIELD, headers[NAME])
    assert id_of(asked) == headers[NAME]


def test_a_trusted_proxys_is_kept() -> None:
    asked, headers, new = settle(True, b"4bf92f35-77b3/4.a")
    assert not new
    assert headers[NAME] == id_of(asked) == b"4bf92f35-77b3/4.a"


@pytest.mark.parametrize(
    ("trusted", "values"),
    [
        (False, (b"mine",)),
        (True, (b"with space",)),
        (True, (b'a"b',)),
        (True, (b"x" * 129,)),
        (True, (b"one", b"two")),
        (True, (b"",)),
        (True, (b"\xc3\xa9",)),
    ],
)
def test_any_other_is_replaced_and_not_kept_beside_it(trusted: bool, values: tuple[bytes, ...]) -> None:
    asked, headers, new = settle(trusted, *values)
    assert new
    assert headers[NAME] not in values
    assert [value for name, value in asked.fields if name.lower() == b"x-request-id"] == [headers[NAME]]


def test_ids_differ_and_are_of_one_size() -> None:
    one, other = RequestIds(), RequestIds()
    ids = [source.next() for _ in range(1000) for source in (one, other)]
    assert len(set(ids)) == 2000
    assert {len(found) for found in ids} == {SIZE}


def test_the_number_starts_again_rather_than_grow() -> None:
    ids = RequestIds()
    ids._last = 0xFFFFFFFE
    assert [len(ids.next()) for _ in range(3)] == [SIZE] * 3
