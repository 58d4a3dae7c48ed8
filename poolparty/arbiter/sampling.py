"""CPU, memory and descriptors of the pool's processes, by psutil.

Runs in the arbiter, in the pool thread, when somebody asks. A process is looked at no more than once a
second, however many ask; one that has just gone is no error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import psutil

SAMPLE_INTERVAL = 1.0
"""Seconds for which a sample is good; reading one costs the pool thread about 0.1 ms a process."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process uses: resident memory in bytes; CPU in percent of one core since the sample before,
    and in seconds of its whole life; open descriptors, None where only root may count them."""

    rss: int
    cpu_percent: float
    cpu_seconds: float = 0.0
    fds: int | None = None


@dataclass(slots=True)
class _Sample:
    process: psutil.Process
    at: float
    cpu_seconds: float
    usage: Usage


class Sampler:
    """The last sample of each process that was asked for lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: dict[int, _Sample] = {}

    def sample(self, pids: Collection[int]) -> dict[int, Usage]:
        """What these processes use; those that cannot be looked at are left out. Forgets all others.

        The first sample's CPU is over the process's life so far.
        """
        now = self._clock()
        samples: dict[int, _Sample] = {}
        for pid in pids:
            sample = self._samples.get(pid)
            if sample is None or not 0 <= now - sample.at < SAMPLE_INTERVAL:
                try:
                    sample = self._look(pid, sample, now)
                except (psutil.Error, OSError):
                    continue
            samples[pid] = sample
        self._samples = samples
        return {pid: sample.usage for pid, sample in samples.items()}

    def _look(self, pid: int, last: _Sample | None, now: float) -> _Sample:
        if last is not None and not last.process.is_running():
            last = None  # the number belongs to another process by now
        process = psutil.Process(pid) if last is None else last.process
        with process.oneshot():
            times = process.cpu_times()
            cpu_seconds = times.user + times.system
            rss = process.memory_info().rss
            fds = _descriptors(process)
            if last is None:
                used, elapsed = cpu_seconds, time.time() - process.create_time()
            else:
                used, elapsed = cpu_seconds - last.cpu_seconds, now - last.at
        # The kernel counts in ticks of 10 ms: over less time than that the quotient means nothing.
        percent = 100.0 * used / max(elapsed, 0.01)
        usage = Usage(rss, round(max(percent, 0.0), 1), round(cpu_seconds, 2), fds)
        return _Sample(process, now, cpu_seconds, usage)


def _descriptors(process: psutil.Process) -> int | None:
    try:
        return int(process.num_fds())
    except psutil.AccessDenied:
        return None


processes = Sampler()
"""The arbiter's own: there is one process table, so however many pools and clients there are, one sampler."""
