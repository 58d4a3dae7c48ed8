"""tests/integration/load.py's load, whose failures are kept: each has to have its reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from load import Address, Load


@dataclass(frozen=True)
class Failure:
    """A request that was not answered as it should be. `kind` as in load.py."""

    at: float
    method: str
    kind: str
    sample: str

    def __str__(self) -> str:
        return f"{self.method} {self.kind}: {self.sample}"


class CheckedLoad(Load):
    """hosts: each request is for one of them."""

    def __init__(self, address: Address, connections: int, hosts: Sequence[str]) -> None:
        super().__init__(address, connections, posts=0.4)
        self._hosts = hosts
        self._failures: list[Failure] = []
        self._guard = threading.Lock()
        self._latest = time.monotonic()

    def next_request(self) -> tuple[str, bytes, bytes]:
        self._host = self._random.choice(self._hosts)
        return super().next_request()

    def answered(self, latency: float) -> None:
        # A long run would have millions of latencies.
        self.report.answers += 1

    def failed(self, method: str, kind: str, sample: str) -> None:
        with self._guard:
            self._failures.append(Failure(time.monotonic(), method, kind, sample))

    def take_failures(self) -> list[Failure]:
        with self._guard:
            failures, self._failures = self._failures, []
        return failures

    def wait_answers(self, count: int, deadline: float = 30.0) -> None:
        """Wait for so many more. AssertionError: they did not come."""
        target = self.report.answers + count
        end = time.monotonic() + deadline
        while self.report.answers < target:
            assert time.monotonic() < end, f"{count} answers did not come within {deadline:g} s"
            time.sleep(0.005)

    def wait_each_connection(self) -> None:
        """Until whatever was asked before now has been answered, or has failed, on every connection."""
        began = time.monotonic()
        while any(c.waits and c.sent_at < began for c in list(self.open)):
            assert time.monotonic() - began < 30, "a request hangs"
            time.sleep(0.005)
