"""`poolparty-ctl check`: right workers pass, each wrong one is told what to mend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolparty.check.checks import CHECKS, Bench
from poolparty.check.worker import Failed

HERE = Path(__file__).resolve().parent
DEADLINE = 120.0

FORGOTTEN = {"PYTHONUNBUFFERED", "JANET_PATH", "PYTHONPATH"}

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(checkout: Path) -> Check:
    """check(*arguments): the exit status and what was printed."""

    def check(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "poolparty.ctl", "check", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE,
            cwd=checkout,
            env={name: value for name, value in os.environ.items() if name not in FORGOTTEN},
            check=False,
        )
        return done.returncode, done.stdout.decode()

    return check


def test_a_right_worker_passes_everything(check: Check) -> None:
    status, printed = check("--echo", "--", sys.executable, str(HERE / "wrong.py"), "none")
    assert status == 0, printed
    assert "FAIL" not in printed and "advice" not in printed
    assert printed.splitlines()[-1].endswith("kept, 0 broken")


# mistake, the promise that is reported broken first, a part of what its author is told
MISTAKES = [
    ("cannot start", "starts", "ended with exit status 1"),
    ("reads nothing", "starts", "5 of 5 bytes were still not read after"),
    ("Ready without an offer", "starts", "wrote a Ready though POOLPARTY_FEATURES was not set"),
    ("health check answered in version 1", "starts", "in version 1 a health check is not answered"),
    ("size too large", "answers GET /", "the size is the number of bytes of the payload"),
    ("size too small", "answers GET /", "the size is the number of all bytes that follow it"),
    ("size counts itself", "answers GET /", "counts its own four bytes"),
    ("big-endian size", "answers GET /", "most significant byte first"),
    ("forgets descriptor 3", "answers GET /", "nothing came on descriptor 3"),
    ("answers on stdout", "answers GET /", "was written to standard output (descriptor 1)"),
    ("never flushes", "answers GET /", "flush descriptor 3 after each answer"),
    ("no tag", "answers GET /", "the tag is missing"),
    ("headers without lists", "answers GET /", "map of string to list of string"),
    ("body length wrong", "answers GET /", "the body's length says 1, but 0 bytes"),
    ("padded uint", "answers GET /", "write it in the shortest form"),
    ("newline in a header", "answers GET /", "'X-Note' has a CR, LF or NUL in it"),
    ("status 0", "answers GET /", "the status 0 is outside 200-599"),
    ("answers twice", "answers each request once", "each HTTPRequest is answered once"),
    ("debug output on descriptor 3", "answers each request once", "nothing else is written to descriptor 3"),
    ("loses bytes", "answers eight requests", "nothing came on descriptor 3"),
    ("short reads", "loses nothing where a read ends", "ended with exit status"),
    ("lengths of one byte", "reads strings at", "ended with exit status 1"),
    ("headers as Latin-1", "reads no, many, empty and non-ASCII", "echo-check is"),
    ("text mode", "reads bodies", "a body of line ends: the body has 5 bytes and should have 6"),
    ("noise at the end", "leaves quietly when", "the end of its input is no error"),
    ("farewell", "leaves quietly when", "leave without a word"),
    ("stays", "leaves quietly when", "when a read there returns nothing, leave"),
    ("unknown tags ignored", "ends at a message it does not know", "the unknown tag 9"),
    ("Ready after the first read", "says Ready before it reads", "before descriptor 0 is read"),
    ("announces what is not offered", "announces only what is offered", "Ready names health-reply where"),
    (
        "announces nothing, and replies",
        "replies to health",
        "was answered though Ready had not named",
    ),
    ("replies twice", "replies to health checks", "a health check is answered once, in its turn"),
    ("dies of an exception", "lives through an exception", "ended with exit status 1 instead of writing"),
    ("tells the client", "lives through an exception", "what went wrong is for the log"),
    ("announces streams, and answers whole", "sends each piece", "begins with a ResponseStart, 03"),
    ("pieces without a length", "sends each piece", "a ResponseChunk cannot be read"),
    ("no ResponseEnd", "sends each piece", "came on descriptor 3 in 3 s where a ResponseChunk or the"),
    ("ignores a cancel", "ends a stream", "was still streaming 3 s after the StreamCancel"),
    ("looks at the next frame only", "ends a stream", "was still streaming 3 s after the StreamCancel"),
    ("no ResponseEnd after a cancel", "ends a stream", "behind a ResponseStart came 00"),
    ("dies of a late cancel", "ends a stream", "a StreamCancel between two answers means nothing"),
    ("takes the path for the body", "reads a body from its file", "the body has"),
    ("reads a part of the file", "reads a body from its file", "the body has 4096 bytes and should have"),
    ("announces a stack, and shows none", "writes its stack", "after SIGUSR1 nothing came on stderr"),
    ("announces a stack, and dies", "writes its stack", "SIGUSR1 disturbed it"),
    ("buffered stdout", "prints to stdout line by line", "make stdout line-buffered"),
]


@pytest.mark.parametrize(("mistake", "promise", "told"), MISTAKES, ids=[each[0] for each in MISTAKES])
def test_a_mistake_is_found_and_explained(
    monkeypatch: pytest.MonkeyPatch, mistake: str, promise: str, told: str
) -> None:
    for name in FORGOTTEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", "")
    bench = Bench([sys.executable, str(HERE / "wrong.py"), mistake], echo=True, patience=3.0)
    (check,) = [check for check in CHECKS if check.promise.startswith(promise)]
    try:
        with pytest.raises(Failed) as caught:
            check.run(bench)
    finally:
        bench.drop()
    assert told in str(caught.value)


def test_the_first_broken_promise_is_told_on_one_line(check: Check) -> None:
    command = [sys.executable, str(HERE / "wrong.py"), "big-endian size"]
    status, printed = check("--echo", "--first", "--timeout", "3", "--", *command)
    assert status == 1
    (broken,) = [line for line in printed.splitlines() if line.startswith("FAIL")]
    assert broken.startswith("FAIL    answers GET / with a well-formed frame: GET /: ")
    assert "most significant byte first" in broken


def test_the_stderr_of_a_worker_that_fails_is_shown(check: Check) -> None:
    _, printed = check("--", sys.executable, str(HERE / "wrong.py"), "cannot start")
    assert "its stderr: ModuleNotFoundError: No module named 'no_such_module'" in printed
    assert "were not tried" in printed


def test_advice_is_no_failure(check: Check) -> None:
    status, printed = check("--", sys.executable, str(HERE / "wrong.py"), "dies of SIGINT")
    assert status == 0
    assert "advice  lives through SIGINT" in printed


def test_a_command_that_does_not_exist_is_a_failure_with_its_reason(check: Check) -> None:
    status, printed = check("--", "./no-such-program")
    assert status == 1
    assert "cannot run ./no-such-program: no such file or directory" in printed


def test_a_worker_of_version_1_passes(check: Check, tmp_path: Path, checkout: Path) -> None:
    """The one that docs/worker-protocol.md prints."""
    document = (checkout / "docs" / "worker-protocol.md").read_text()
    program = tmp_path / "worker.py"
    program.write_text(document.split("```python\n")[1].split("```")[0])
    status, printed = check("--", sys.executable, str(program))
    assert "it knows version 1 only" in printed
    assert [line for line in printed.splitlines() if line.startswith("FAIL")] == [], printed
    assert status == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the worker's command is missing"),
        (["--"], "the worker's command is missing"),
        (["--frobnicate", "--", "true"], "there is no option --frobnicate"),
        (["--timeout", "soon", "--", "true"], "--timeout wants a number of seconds above 0, not 'soon'"),
        (["--timeout=-1", "--", "true"], "--timeout wants a number of seconds above 0, not '-1'"),
    ],
)
def test_a_command_line_that_makes_no_sense(check: Check, arguments: list[str], complaint: str) -> None:
    status, printed = check(*arguments)
    assert status == 2
    assert complaint in printed and "usage: poolparty-ctl check" in printed


def test_help(check: Check) -> None:
    status, printed = check("--help")
    assert status == 0
    assert "--echo" in printed
