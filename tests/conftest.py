"""What tests of several folders need: where the checkout is, and its interpreters."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


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
