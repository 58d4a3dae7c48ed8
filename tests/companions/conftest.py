"""Programs of other makers that a server is tried with; without one its tests are skipped, and fail in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def find(program: str) -> str:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        reason = f"no {program}: `bin/install-interpreters {program}` installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def haproxy() -> str:
    return find("haproxy")


@pytest.fixture(scope="session")
def nginx() -> str:
    return find("nginx")
