"""Process titles, which ps and top show. Runs in the arbiter and in HTTP workers; children keep their own."""

from __future__ import annotations


def set_title(title: str) -> None:
    """Where setproctitle is not installed, ps goes on showing the command line."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(title)
