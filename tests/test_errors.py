"""The hierarchy: what its docstring draws is what it is."""

from __future__ import annotations

import re

import pytest

from poolparty import errors

TREE = {
    match["name"]: match["status"]
    for line in (errors.__doc__ or "").splitlines()
    if (match := re.match(r"[ │├└─]*(?P<name>[A-Z]\w+)\s+(?P<status>\d{3}|-|4xx)", line))
}


def test_the_tree_in_the_docstring_names_every_error_with_its_status() -> None:
    classes = {
        name: cls
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.PoolpartyError)
    }
    assert set(TREE) == set(classes)
    for name, status in TREE.items():
        if status.isdigit():
            assert classes[name].http_status == int(status), name


def test_a_request_error_carries_its_own_status_and_sentence() -> None:
    error = errors.RequestError(413, "the body is too large")
    assert (error.status, error.http_status, str(error)) == (413, 413, "the body is too large")


def test_a_request_cannot_be_blamed_for_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="502"):
        errors.RequestError(502, "a child died")


def test_a_control_error_is_one_line_on_the_socket() -> None:
    assert str(errors.ControlError("child failed:\n  no such file\r\n")) == "child failed: no such file"
