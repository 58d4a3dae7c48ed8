"""Servers for tests: each is told to stop at the end of its test, and must leave nothing behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from server import Server

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    report = yield
    if report.when == "call":
        item.stash[_failed] = report.failed
    return report


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """serve(*options, **how) -> a Server that listens; what it may be given is in server.py.

    After a test that failed its log is shown, and it is killed without being judged.
    """
    numbers = itertools.count(1)
    servers: list[Server] = []
    stack = ExitStack()

    def start(*options: str, **how: Any) -> Server:
        directory = how.pop("directory", tmp_path / f"server{next(numbers)}")
        servers.append(Server(directory, *options, **how))
        return stack.enter_context(servers[-1])

    yield start
    if request.node.stash.get(_failed, False):
        failure = AssertionError("the test failed")
        stack.__exit__(type(failure), failure, None)
    else:
        stack.close()
