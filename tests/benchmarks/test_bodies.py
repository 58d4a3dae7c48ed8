"""The benchmark of bodies: its page, and its transfers through a real server."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import pytest

from benchmarks import bodies


def test_the_page_has_a_place_for_the_figures() -> None:
    _, rest = bodies.PAGE.read_text().split(bodies.BEGIN)
    assert bodies.END in rest
    samples = {"a server": {"up": [1.0, 9.0, 2.0], "down": [30.0, 10.0, 20.0], "memory": [7.0, 8.0, 5.0]}}
    streams = {"events": 4000.0, "p50": 0.5, "p99": 2.0, "longest": 11.0, "free": 300.0}
    options = argparse.Namespace(rounds=3, seconds=60.0)
    text = bodies.page(samples, streams, 3072, options, 0.1)
    assert [cell.strip() for cell in text.splitlines()[3].split("|")[1:-1]] == [
        "a server",
        "2.00",
        "20.0",
        "8.00",
    ]
    assert "3,072 MiB" in text and "after 300 ms" in text


@pytest.mark.slow
def test_what_is_measured_is_checked(tmp_path: Path) -> None:
    size = 3
    expected = hashlib.sha256(bytes(range(256)) * 4096 * size).hexdigest()
    with bodies.poolparty_python(tmp_path, 2) as server:
        bodies.upload(server.port, size, expected)
        bodies.download(server.port, size, expected)
        for transfer in (bodies.upload, bodies.download):
            with pytest.raises(SystemExit, match="200"):
                transfer(server.port, size, "0" * 64)
