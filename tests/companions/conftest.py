"""Programs of other makers that a server is tried with; without one its tests are skipped, and fail in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def find(program: str, large: str | None = None) -> str:
    """large: where only `bin/install-interpreters --all` installs it, the name it has there."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        reason = f"no {program}: `bin/install-interpreters {large or program}` installs it"
        if os.environ.get("CI") and (large is None or os.environ.get("POOLPARTY_TEST_ALL")):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def haproxy() -> str:
    return find("haproxy")


@pytest.fixture(scope="session")
def nginx() -> str:
    return find("nginx")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return find("prometheus", "prometheus")


@pytest.fixture(scope="session")
def promtool() -> str:
    return find("promtool", "prometheus")
