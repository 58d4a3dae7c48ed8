"""The whole checkout is as ruff and mypy want it; their settings are in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "command",
    ["ruff check --quiet", "ruff format --check --quiet", "mypy --no-error-summary"],
)
def test_the_checkout_is_clean(command: str, checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=checkout,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
