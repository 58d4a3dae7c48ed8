"""Slow requests: who looks, what is looked at, and what is logged.

Runs in the arbiter's pool thread. Which request a child runs stands on the scoreboard (its HTTP worker tells
it of what takes a while); what the child does meanwhile is read from /proc. At most one line a request.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from poolparty.arbiter.children import Child, logfmt
from poolparty.arbiter.relay import RelayLog
from poolparty.pool.child import READY_STATES
from poolparty.stats.report import running
from poolparty.stats.scoreboard import ChildWord
from poolparty.wire.features import Feature

if TYPE_CHECKING:
    from poolparty.arbiter.pool import Pool

MIN_POLL, MAX_POLL = 0.05, 0.5
"""Seconds between two looks at what the children run: a quarter of slowlog_timeout, within these."""

TELLING = 0.5
"""Seconds after which a request is logged although nobody has told which it is."""

STACK_SIGNAL = signal.SIGUSR1
"""What makes a child that has announced `stack` write its own stack to stderr."""

KERNEL_FRAMES = 8


@dataclass(frozen=True, slots=True)
class Sight:
    """What /proc tells of a process at one moment; None is what it does not tell (only root may see a kernel
    stack)."""

    state: str | None
    wait_channel: str | None
    kernel_stack: tuple[str, ...]
    cpu_seconds: float | None

    def words(self) -> dict[str, object]:
        """As fields of a line."""
        words: dict[str, object] = {}
        if self.state is not None:
            words["state"] = self.state
        if self.wait_channel is not None:
            words["waits_in"] = self.wait_channel
        if self.kernel_stack:
            words["kernel_stack"] = " < ".join(self.kernel_stack)
        return words


def look(pid: int) -> Sight:
    """Look at a process; one that has gone tells nothing."""
    state, cpu = None, None
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        with process.oneshot():
            state = process.status()
            times = process.cpu_times()
            cpu = times.user + times.system
    channel = _read(f"/proc/{pid}/wchan")
    frames = [line.split("] ")[-1].partition("+")[0] for line in _read(f"/proc/{pid}/stack").splitlines()]
    return Sight(state, channel if channel not in ("", "0") else None, tuple(frames[:KERNEL_FRAMES]), cpu)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def ask_for_stack(child: Child) -> bool:
    """Have the child write its script's stack to stderr, if it can: whether it can."""
    if child.features is None or Feature.STACK not in child.features:
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # The child alone: what its group's other processes make of the signal is not known.
        os.kill(child.pid, STACK_SIGNAL)
    return True


def dump(child: Child, now: float) -> str:
    """What a child does at this moment, as lines; its script's own stack goes to the log."""
    words: dict[str, object] = {"worker_pid": child.pid, **child.pool.label, "state": child.state.value}
    words["age"] = f"{now - child.spawned_at:.1f}s"
    runs = running(child.pool.scoreboard, child.slot, now)
    sight = look(child.pid)
    lines = [logfmt("worker", **words), logfmt("process", **sight.words())]
    if runs is None:
        lines.append(logfmt("it runs no request"))
    else:
        lines.append(logfmt("it runs", **request_words(runs)))
    if ask_for_stack(child):
        lines.append(logfmt("its script's stack is in the log"))
    else:
        lines.append(logfmt("its worker library cannot show its script's stack"))
    return "".join(line + "\n" for line in lines)


def request_words(runs: dict[str, Any]) -> dict[str, object]:
    """What a child runs, as fields of a line."""
    words: dict[str, object] = {"age": f"{runs['seconds']:.3f}s"}
    if "method" in runs:
        words |= {"method": runs["method"], "target": runs["target"]}
        if runs["request_id"] is not None:
            words["request_id"] = runs["request_id"]
    return words


class SlowLog:
    """Looks for a pool's requests beyond slowlog_timeout."""

    def __init__(self, pool: Pool, log: RelayLog) -> None:
        self._pool = pool
        self._log_to = log
        self._next = 0.0
        # For each child: which of its requests was seen, when, with how much processor time, and whether
        # that is logged.
        self._seen: dict[int, _Seen] = {}

    def watch(self, now: float) -> float | None:
        """Log what is due. Returns when to look again, None if nobody wants a slow log."""
        timeout = self._pool.options.slowlog_timeout
        if not timeout:
            self._seen.clear()
            return None
        if now < self._next:
            return self._next
        self._next = now + min(max(timeout / 4, MIN_POLL), MAX_POLL)
        board = self._pool.scoreboard
        seen: dict[int, _Seen] = {}
        for child in self._pool.children.values():
            runs = running(board, child.slot, now) if child.state in READY_STATES else None
            if runs is None or runs["seconds"] < timeout / 2:
                continue
            number = board.words[board.child_base(child.slot) + ChildWord.ANSWERED] + 1
            before = self._seen.get(child.id)
            if before is None or before.number != number:
                before = _Seen(number, now, look(child.pid).cpu_seconds)
            seen[child.id] = before
            told = "method" in runs or runs["seconds"] > timeout + TELLING
            if not before.logged and runs["seconds"] >= timeout and told:
                before.logged = True
                self._log(child, runs, before, now)
        self._seen = seen
        return self._next

    def _log(self, child: Child, runs: dict[str, Any], before: _Seen, now: float) -> None:
        sight = look(child.pid)
        words: dict[str, object] = {"worker_pid": child.pid, **self._pool.label, **request_words(runs)}
        if sight.cpu_seconds is not None and before.cpu_seconds is not None:
            used = max(sight.cpu_seconds - before.cpu_seconds, 0.0)
            words["cpu"] = f"{used:.2f}s of the last {now - before.at:.2f}s"
        words |= sight.words()
        self._log_to.warning("%s", logfmt("slow request", **words))
        ask_for_stack(child)


@dataclass(slots=True)
class _Seen:
    number: int
    at: float
    cpu_seconds: float | None
    logged: bool = False
