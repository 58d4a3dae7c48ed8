"""Programs of other makers that a server is tried with; without one its tests are skipped, and fail in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def find(program: str, package: str | None = None, large: bool = False) -> str:
    """package: its name for bin/install-interpreters, where that is another; large: whether that installs it
    only with --all."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        reason = f"no {program}: `bin/install-interpreters {package or program}` installs it"
        if os.environ.get("CI") and (not large or os.environ.get("POOLPARTY_TEST_ALL")):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def chromium() -> str:
    return find("chromium", "chromium")


@pytest.fixture(scope="session")
def chromedriver() -> str:
    return find("chromedriver", "chromium")


@pytest.fixture(scope="session")
def haproxy() -> str:
    return find("haproxy")


@pytest.fixture(scope="session")
def nginx() -> str:
    return find("nginx")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return find("prometheus", large=True)


@pytest.fixture(scope="session")
def promtool() -> str:
    return find("promtool", "prometheus", large=True)


@pytest.fixture(scope="session")
def systemd_analyze() -> str:
    return find("systemd-analyze", package="systemd")


@pytest.fixture(scope="session")
def socket_activate() -> str:
    return find("systemd-socket-activate", package="systemd")


@pytest.fixture(scope="session")
def logrotate() -> str:
    return find("logrotate")


@pytest.fixture(scope="session")
def collectd() -> str:
    return find("collectd", large=True)
