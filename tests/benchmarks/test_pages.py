from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pages import replace_between


def test_what_stands_between_the_marks_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- a -->\nold\n<!-- /a -->\nbelow\n")
    for text in ("new\n", "newer\nstill\n"):
        replace_between(page, "<!-- a -->\n", "<!-- /a -->\n", text)
        assert page.read_text() == f"above\n<!-- a -->\n{text}<!-- /a -->\nbelow\n"


def test_a_page_without_the_marks_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n")
    with pytest.raises(ValueError):
        replace_between(page, "<!-- a -->\n", "<!-- /a -->\n", "new\n")
    assert page.read_text() == "above\n"
