"""The benchmark of a crowd: its page, and a small crowd at a real server."""

from __future__ import annotations

import argparse
import http.client
from pathlib import Path

import pytest

from benchmarks import crowd


def test_the_page_has_a_place_for_the_figures() -> None:
    before, rest = crowd.PAGE.read_text().split(crowd.BEGIN)
    assert before and crowd.END in rest
    sample = {"rate": 100.0, "p50": 1.0, "p99": 2.0, "errors": 0.0, "memory": 30.0}
    samples = {"alone": [sample], "among them": [{**sample, "p99": 3.0}]}
    text = crowd.page(samples, argparse.Namespace(rounds=1, seconds=5.0), 0.0)
    assert "is 1.50 of the p99 without them" in text


@pytest.mark.slow
def test_the_crowd_is_there_and_the_server_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "IDLE", 20)
    monkeypatch.setattr(crowd, "SLOW", 50)
    with crowd.server(tmp_path) as serving, crowd.crowd(serving.port):
        connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=10)
        for _ in range(20):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"hello\n"
        connection.close()
