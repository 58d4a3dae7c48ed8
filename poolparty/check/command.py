"""The `check` word of poolparty-ctl: its arguments, and a line for each thing that was tried."""

from __future__ import annotations

import math
import shlex
import signal
import sys
from collections.abc import Sequence

from poolparty.check.checks import CHECKS, Bench, outcomes

DEFAULT_PATIENCE = 10.0
"""Seconds for anything a worker owes, its start included."""

SHOWN_LINES = 12
"""Lines of the worker's stderr that stand below a failure, the last ones."""

USAGE = "usage: poolparty-ctl check [--echo] [--first] [--timeout SECONDS] -- CMD [ARGUMENT …]"

HELP = f"""{USAGE}

Starts the command as the server would, speaks the worker protocol to it, and says what it keeps and what it
breaks. It needs an application that answers GET /; any will do.

options:
  --echo             the command is the echo application (docs/writing-a-worker.md): also check what reaches
                     the handler, and what becomes of its exceptions
  --first            stop at the first thing that is broken
  --timeout SECONDS  how long to wait for anything the worker owes, its start included ({DEFAULT_PATIENCE:g})
  --help

Exit status: 0 if nothing failed, 1 if something did, 2 if the command line makes no sense.
"""


def main(arguments: Sequence[str]) -> int:
    """Check what the arguments name; returns the exit status."""
    echo, first, patience = False, False, DEFAULT_PATIENCE
    command: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("-h", "--help"):
            print(HELP, end="")
            return 0
        if word == "--echo":
            echo = True
        elif word == "--first":
            first = True
        elif word == "--timeout" or word.startswith("--timeout="):
            value = word.partition("=")[2] if "=" in word else next(words, "")
            patience = _seconds(value)
            if patience == 0:
                return _usage(f"--timeout wants a number of seconds above 0, not {value!r}")
        elif word == "--":
            command = list(words)
        elif word.startswith("-"):
            return _usage(f"there is no option {word}")
        else:
            command = [word, *words]
    if not command:
        return _usage("the worker's command is missing, as in: poolparty-ctl check -- python3 app.py")
    return check(command, echo, first, patience)


def check(command: Sequence[str], echo: bool, first: bool, patience: float) -> int:
    """Try everything on the command, or up to the `first` failure, and print it; 0 if nothing failed."""
    # A worker that has gone is for us an error of a write, not our end.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    print(f"checking {shlex.join(command)}", flush=True)
    counts = dict.fromkeys(("ok", "FAIL", "advice", "skip"), 0)
    tried = 0
    for outcome in outcomes(Bench(command, echo, patience)):
        tried += 1
        counts[outcome.verdict] += 1
        print(f"{outcome.verdict:7} {outcome.check.promise}" + (f": {outcome.text}" if outcome.text else ""))
        if outcome.verdict == "FAIL":
            for line in outcome.errors.splitlines()[-SHOWN_LINES:]:
                print(f"        its stderr: {line}")
            if first:
                break
        sys.stdout.flush()
    untried = sum(echo or not each.echo for each in CHECKS) - tried
    print(
        f"{counts['ok']} kept, {counts['FAIL']} broken"
        + (f", {counts['advice']} to consider" if counts["advice"] else "")
        + (f", {counts['skip']} do not apply" if counts["skip"] else "")
        + (f"; {untried} more were not tried" if untried else "")
    )
    return 1 if counts["FAIL"] else 0


def _seconds(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        return 0.0
    return value if 0 < value < math.inf else 0.0


def _usage(complaint: str) -> int:
    print(f"poolparty-ctl check: {complaint}\n{USAGE}\nTry `poolparty-ctl check --help`.", file=sys.stderr)
    return 2
