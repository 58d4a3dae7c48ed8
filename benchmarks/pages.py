"""Figures into the pages of docs/: what was measured stands between two marks, which are comments."""

from __future__ import annotations

from pathlib import Path


def replace_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put a text where another stands between two marks of a page; the marks stay."""
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + text + end + rest.split(end)[1])
