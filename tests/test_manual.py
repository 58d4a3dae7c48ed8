"""The manual pages: what stands in them, and that roff has nothing to say about them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poolparty.manual import main, page, show
from poolparty.programs import PAGES, programs


@pytest.fixture(scope="module")
def groff() -> str:
    found = shutil.which("groff")
    if found is None:
        reason = "no groff: `bin/install-interpreters groff` installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.name)
def test_a_page_is_well_formed_and_names_every_option_and_command(program: object, groff: str) -> None:
    from poolparty.programs import Program

    assert isinstance(program, Program)
    source = page(program)
    assert source.isascii() and "  " not in source
    done = subprocess.run(
        [groff, "-man", "-ww", "-Tutf8", "-P-c", "-P-b", "-P-o", "-P-u", "-rLL=78n"],
        input=source,
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"):
        assert f"\n{heading}\n" in done.stdout
    for flag in program.flags:
        for name in flag.names:
            assert name in done.stdout
    for word in program.all_words:
        assert f"\n       {word.command.name}" in done.stdout
    # What roff would take for a request, or eat, is there: a backslash, a quote, an apostrophe.
    if program.name == "poolparty":
        assert "child's" in done.stdout and "`bind`" in done.stdout and "1m30s" in done.stdout


def test_text_cannot_be_a_request_of_roffs() -> None:
    from poolparty.manual import _text

    assert _text(".so /etc/passwd") == r"\&.so /etc/passwd"
    assert _text("'tis \\fB\n.x é") == r"\(aqtis \(rsfB .x \[u00E9]"


def test_all_pages_are_written_into_a_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "poolparty.manual", str(tmp_path / "man" / "man1")]
    assert subprocess.run(command, capture_output=True).returncode == 0
    made = {path.name: path.read_text() for path in (tmp_path / "man" / "man1").iterdir()}
    assert made == {f"{program.name}.1": page(program) for program in programs()}


def test_where_nothing_can_be_written_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.endswith("; name a directory that can be written\n")
    for words in ([], ["-h"], ["a", "b"]):
        assert main(words) == 2
        assert capsys.readouterr().err == "usage: python -m poolparty.manual DIRECTORY\n"


def test_poolparty_ctl_shows_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    for program in programs():
        assert show([program.name]) == 0
        assert capsys.readouterr().out == page(program)
    assert show([]) == 0
    assert capsys.readouterr().out.startswith(r".TH POOLPARTY\-CTL 1")
    assert show(["ls"]) == 2
    assert capsys.readouterr().err.endswith(f"there is no page 'ls'; there are {', '.join(PAGES)}\n")
