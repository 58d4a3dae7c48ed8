"""A short run of the chaos driver; a long one, and other seeds, are started by hand (run.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 20
SEED = os.environ.get("POOLPARTY_CHAOS_SEED", "1")


@pytest.mark.alone
def test_chaos_breaks_no_promise() -> None:
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--seconds", str(SECONDS)]
    done = subprocess.run(
        [*command, "--seed", SEED, "--connections", "8", "--pools", "2"],
        capture_output=True,
        text=True,
        timeout=6 * SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no wrong one" in done.stdout
