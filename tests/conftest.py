"""What tests of several folders need: where the checkout is, and its interpreters."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent

# Who runs the tests in the background may have these ignored, which every process of a test would inherit.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


@pytest.fixture(autouse=True)
def company(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where several processes run tests (pytest-xdist), one that is marked `alone` has the others wait."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    alone = request.node.get_closest_marker("alone") is not None
    with (tmp_path_factory.getbasetemp().parent / "company").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@pytest.fixture(scope="session")
def checkout() -> Path:
    return CHECKOUT


@pytest.fixture(scope="session")
def janet() -> str:
    """A Janet interpreter's path. In CI its absence is a failure: a skipped test shows nothing."""
    ours = CHECKOUT / ".cache" / "interpreters" / "bin" / "janet"
    found = str(ours) if os.access(ours, os.X_OK) else shutil.which("janet")
    if found is None:
        reason = "no Janet: bin/install-interpreters unpacks one"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
