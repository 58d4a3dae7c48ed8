"""Every library keeps the worker protocol, as `poolparty-ctl check` sees it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DEADLINE = 300.0

NO_ECHO = {
    "Go": "net/http has uri, host and headers in a form of its own: they cannot be echoed as they came"
}


def check(checkout: Path, *arguments: str) -> str:
    """What the checker prints; the test fails if anything is broken."""
    done = subprocess.run(
        [sys.executable, "-m", "poolparty.ctl", "check", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE,
        cwd=checkout,
        # Guile would speak of compiling a program that it has not seen before.
        env={**os.environ, "GUILE_AUTO_COMPILE": "0"},
        check=False,
    )
    printed = done.stdout.decode()
    assert done.returncode == 0, printed
    return printed


def test_the_example_passes(language: Any, command_for: Callable[..., list[str]], checkout: Path) -> None:
    program = checkout / "examples" / f"app.{language.suffix}"
    printed = check(checkout, "--", *command_for(program))
    if "interrupts" not in language.cannot:
        assert "advice" not in printed, printed


def test_the_echo_application_passes(
    language: Any, command_for: Callable[..., list[str]], checkout: Path
) -> None:
    if language.name in NO_ECHO:
        pytest.skip(NO_ECHO[language.name])
    program = checkout / "tests" / "conformance" / f"echo.{language.suffix}"
    printed = check(checkout, "--echo", "--", *command_for(program))
    if "stream" in language.features:
        assert "ok      sends a body in pieces whole" in printed, printed
    cancels = "ok      ends a stream whose client has left" in printed
    assert cancels == ("stream-cancel" in language.features), printed


def test_the_worker_written_by_the_page_passes(checkout: Path) -> None:
    """docs/writing-a-worker.md led to it; OCaml has no library of ours, so CI need not have it."""
    ocaml = shutil.which("ocaml")
    if ocaml is None:
        pytest.skip("no OCaml: Debian's package is ocaml-interp")
    printed = check(checkout, "--echo", "--", ocaml, str(checkout / "examples" / "echo.ml"))
    assert "advice" not in printed, printed
