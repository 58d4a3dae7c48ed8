"""Sampling of real processes, on a clock that the test moves."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from poolparty.arbiter.sampling import SAMPLE_INTERVAL, Sampler


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sampler(clock: Clock) -> Sampler:
    return Sampler(clock)


def burn_cpu(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_process_shows_its_memory_and_the_cpu_it_has_used_so_far(sampler: Sampler) -> None:
    burn_cpu(0.05)
    usage = sampler.sample([os.getpid()])[os.getpid()]
    assert 1_000_000 < usage.rss < 10**11
    assert 0 < usage.cpu_percent < 10_000


def test_later_cpu_is_what_was_used_since_the_sample_before(sampler: Sampler, clock: Clock) -> None:
    me = os.getpid()
    sampler.sample([me])
    clock.now += 2.0
    burn_cpu(0.2)
    assert sampler.sample([me])[me].cpu_percent >= 9  # 0.2 s in what the clock says were 2 s
    clock.now += 1000.0
    assert sampler.sample([me])[me].cpu_percent < 1


def test_within_a_second_everybody_gets_the_same_sample(sampler: Sampler, clock: Clock) -> None:
    me = os.getpid()
    first = sampler.sample([me])[me]
    clock.now += SAMPLE_INTERVAL * 0.9
    assert sampler.sample([me])[me] is first
    clock.now += SAMPLE_INTERVAL * 0.2
    assert sampler.sample([me])[me] is not first


def test_a_process_that_has_gone_is_left_out(sampler: Sampler, clock: Clock) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert process.pid in sampler.sample([process.pid])
        process.kill()
    assert process.pid in sampler.sample([process.pid]), "the sample of this second is still good"
    clock.now += SAMPLE_INTERVAL
    assert sampler.sample([process.pid, os.getpid()]).keys() == {os.getpid()}


def test_a_process_that_has_ended_and_is_not_reaped_breaks_nothing(sampler: Sampler) -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    usage = sampler.sample([process.pid]).get(process.pid)
    assert usage is None or usage.rss == 0
    process.wait()


def test_a_process_that_is_not_asked_for_is_forgotten(sampler: Sampler) -> None:
    sampler.sample([os.getpid()])
    assert sampler.sample([]) == {}
    assert not sampler._samples
