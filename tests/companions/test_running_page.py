"""docs/running.md leads to every ready file, to some by docs/languages.md; its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path


def linked(page: Path) -> set[Path]:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    return {(page.parent / link).resolve() for link in links if "://" not in link}


def test_every_ready_file_is_told_of_and_every_link_leads_somewhere(checkout: Path) -> None:
    page, languages = checkout / "docs" / "running.md", checkout / "docs" / "languages.md"
    assert [path for path in linked(page) if not path.exists()] == []
    assert languages in linked(page)
    found = {
        path for path in (checkout / "conf").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    missing = found - linked(page) - linked(languages)
    assert [str(path.relative_to(checkout)) for path in sorted(missing)] == []
