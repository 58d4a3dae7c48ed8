"""What wrk is told, and what is made of what it says."""

from __future__ import annotations

import json

import pytest

from benchmarks import wrk
from benchmarks.wrk import Load

COUNTS = {"requests": 1000, "microseconds": 2_000_000, "bytes": 4_000_000, "p50": 1500, "p99": 3000,
          "p999": 4000, "longest": 9000, "connect": 0, "read": 0, "write": 0, "status": 0,
          "timeout": 0}  # fmt: skip


def reported(**changes: int) -> dict[str, float]:
    return wrk.parse(f"Running 2s test\n{wrk.MARK}{json.dumps(COUNTS | changes)}\n")


def test_rate_and_latencies() -> None:
    found = reported()
    assert (found["rate"], found["megabytes"], found["p50"], found["longest"]) == (500, 2, 1.5, 9)
    assert found["errors"] == 0


def test_answers_with_an_error_status_are_no_throughput() -> None:
    found = reported(status=400)
    assert (found["rate"], found["errors"], found["status_errors"]) == (300, 400, 400)


@pytest.mark.parametrize("cause", ["connect", "read", "write", "status", "timeout"])
def test_every_cause_is_an_error(cause: str) -> None:
    assert reported(**{cause: 3})["errors"] == 3


def test_wrk_that_reports_nothing_is_a_failure_with_its_words() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk.parse("", "unable to connect to 127.0.0.1:1 Connection refused\n")


def test_the_script_sends_method_body_and_fields() -> None:
    script = wrk.script(Load(method="POST", body_size=10, headers={"Cookie": 'a="b\\c"'}))
    assert 'wrk.method = "POST"' in script
    assert 'wrk.body = string.rep("x", 10)' in script
    assert 'wrk.headers["Cookie"] = "a=\\"b\\\\c\\""' in script


def test_the_script_of_a_get_has_no_body() -> None:
    assert "wrk.body" not in wrk.script(Load())
