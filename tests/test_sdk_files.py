"""poolparty-ctl sdk"""

from __future__ import annotations

from pathlib import Path

import pytest

from poolparty.ctl import run  # main() changes what a signal does to the process
from poolparty.errors import PoolpartyError
from poolparty.sdk_files import SDK, languages


def test_lists_every_language(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sdk"]) == 0
    listed = capsys.readouterr().out.split()
    assert {"janet", "python"} <= set(listed)
    assert listed == languages()


def test_prints_where_a_library_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sdk", "Janet"]) == 0
    assert capsys.readouterr().out == f"{SDK / 'janet' / 'poolparty.janet'}\n"


def test_copies_a_library_of_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sdk", "janet", "--copy", str(tmp_path / "new" / "folder")]) == 0
    copy = tmp_path / "new" / "folder" / "poolparty.janet"
    assert capsys.readouterr().out == f"{copy}\n"
    assert copy.read_bytes() == (SDK / "janet" / "poolparty.janet").read_bytes()


def test_copies_a_package_and_over_an_older_copy(tmp_path: Path) -> None:
    for _ in range(2):
        assert run(["sdk", "python", "--copy", str(tmp_path)]) == 0
    package = tmp_path / "poolparty"
    assert (package / "__init__.py").read_bytes() == (SDK / "python/poolparty/__init__.py").read_bytes()
    assert not list(tmp_path.rglob("__pycache__"))


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "poolparty").write_text("mine")
    with pytest.raises(PoolpartyError, match="is in the way"):
        run(["sdk", "python", "--copy", str(tmp_path)])
    assert (tmp_path / "poolparty").read_text() == "mine"


def test_an_unknown_language_names_the_known_ones() -> None:
    with pytest.raises(PoolpartyError, match=r"there is no library for 'cobol'; there are .*python"):
        run(["sdk", "cobol"])


@pytest.mark.parametrize("arguments", [["python", "--copy"], ["--copy", "x"], ["python", "ruby"], ["--what"]])
def test_a_command_line_that_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sdk", *arguments]) == 2
    assert "usage: poolparty-ctl sdk" in capsys.readouterr().err
