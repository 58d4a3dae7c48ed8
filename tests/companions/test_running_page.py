"""docs/running.md leads to every ready file, and each of its links leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_ready_file_is_told_of_and_every_link_leads_somewhere(checkout: Path) -> None:
    page = checkout / "docs" / "running.md"
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    linked = {(page.parent / link).resolve() for link in links}
    assert [path for path in linked if not path.exists()] == []
    ready = {
        path for path in (checkout / "conf").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert [str(path.relative_to(checkout)) for path in sorted(ready - linked)] == []
