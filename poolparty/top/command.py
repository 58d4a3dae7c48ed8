"""The `top` word of poolparty-ctl: its arguments, the terminal, and the keys.

The terminal is put back whatever ends it: a key, an error, a signal. Ctrl-Z gives it back for as long as the
process is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from types import FrameType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from poolparty.errors import PoolpartyError
from poolparty.top.feed import Feed
from poolparty.top.figures import COLUMNS, Sample
from poolparty.top.screen import View, page, plain
from poolparty.wire.control import printable

MIN_INTERVAL = 0.1
INTERVAL = 1.0
"""Seconds between two questions; the server measures CPU and memory once a second at most."""

KEYS = "sort: c CPU, m memory, r requests, t time of what it runs, a age (again: reversed)   p pause   q quit"


def parser() -> argparse.ArgumentParser:
    """The arguments of `top`."""
    arguments = argparse.ArgumentParser(
        prog="poolparty-ctl top",
        description="Shows what a server and its processes do, again and again.",
        epilog=f"Keys: {KEYS.replace('   ', '; ')}.",
    )
    arguments.add_argument(
        "-d",
        "--delay",
        metavar="SECONDS",
        type=_seconds,
        default=INTERVAL,
        help=f"seconds between two looks [{INTERVAL:g}]",
    )
    arguments.add_argument(
        "--sort", metavar="COLUMN", choices=list(COLUMNS), default="cpu", help=", ".join(COLUMNS) + " [cpu]"
    )
    arguments.add_argument("--lines", metavar="N", type=_lines, help="show N processes at most")
    arguments.add_argument(
        "--once", action="store_true", help="print once, what was counted in SECONDS, and exit"
    )
    return arguments


def _seconds(word: str) -> float:
    seconds = float(word)
    if not MIN_INTERVAL <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{word}: give seconds from {MIN_INTERVAL} to 86400")
    return seconds


def _lines(word: str) -> int:
    lines = int(word)
    if lines < 1:
        raise argparse.ArgumentTypeError(f"{word}: give a number of 1 or more")
    return lines


def main(words: Sequence[str], path: str) -> int:
    """Show the server at `path` until its user has seen enough; the exit status. PoolpartyError: with
    --once, it cannot be asked; without, there is no terminal."""
    arguments = parser().parse_args(words)
    view = View(column=arguments.sort, lines=arguments.lines)
    feed = Feed(path)
    try:
        if arguments.once:
            return _once(feed, view, arguments.delay)
        if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
            raise PoolpartyError("top needs a terminal; `top --once` prints one table anywhere")
        return _Terminal(feed, view, arguments.delay).run()
    finally:
        feed.close()


def _once(feed: Feed, view: View, delay: float) -> int:
    before = _wait(feed)
    time.sleep(delay)
    now = _wait(feed)
    if sys.stdout.isatty():
        Console(highlight=False).print(page(before, now, view))
    else:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        sys.stdout.write(plain(before, now, view))
    return 0


def _wait(feed: Feed) -> Sample:
    feed.ask()
    while True:
        assert feed.socket is not None
        select.select([feed.socket], [], [], max(feed.due - time.monotonic(), 0.0))
        if (sample := feed.receive()) is not None:
            return sample


class _Stop(BaseException):
    """A signal wants the process to end, once the terminal is as it was."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Terminal:
    def __init__(self, feed: Feed, view: View, delay: float) -> None:
        self.feed = feed
        self.view = view
        self.delay = delay
        self.before: Sample | None = None
        self.now: Sample | None = None
        self.trouble = ""
        self.next_look = 0.0
        self.suspended = False
        self.quit = False
        self.console = Console(highlight=False)

    def run(self) -> int:
        """Until its user quits. The status is that of the process if a signal ends it."""
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        old_wakeup = signal.set_wakeup_fd(woken)
        handled: dict[int, object] = {
            number: signal.signal(number, _raise_stop) for number in (signal.SIGTERM, signal.SIGHUP)
        }
        # Who started it may have ignored Ctrl-C, as shells do in the background; here it ends it.
        handled[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
        handled[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda number, frame: None)
        handled[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        try:
            while not self.quit:
                with _cbreak(), Live(console=self.console, screen=True, auto_refresh=False) as live:
                    self._show(live, wake)
                if self.suspended:
                    self.suspended = False
                    os.kill(os.getpid(), signal.SIGSTOP)  # until the shell lets it go on
            return 0
        except _Stop as stop:
            return 128 + stop.number
        finally:
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in handled.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            os.close(wake)
            os.close(woken)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        self.suspended = True

    def _show(self, live: Live, wake: int) -> None:
        while not (self.quit or self.suspended):
            self._look()
            live.update(self._page(), refresh=True)
            until = self.feed.due if self.feed.socket else self.next_look
            waited_for = [sys.stdin.fileno(), wake] + ([self.feed.socket] if self.feed.socket else [])
            ready, _, _ = select.select(waited_for, [], [], max(until - time.monotonic(), 0.0))
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            if sys.stdin.fileno() in ready:
                self._press(os.read(sys.stdin.fileno(), 4096))

    def _look(self) -> None:
        """Ask, or take what has come."""
        try:
            if self.feed.socket is not None:
                sample = self.feed.receive()
                if sample is not None:
                    self.trouble = ""
                    if not self.view.paused:
                        self.before, self.now = self.now, sample
            elif time.monotonic() >= self.next_look:
                self.next_look = time.monotonic() + self.delay
                self.feed.ask()
        except PoolpartyError as error:
            self.trouble = str(error)
            self.before = None

    def _press(self, keys: bytes) -> None:
        if not keys:
            self.quit = True  # the terminal has gone
        for key in keys.decode("ascii", "replace"):
            column = next((column for column in COLUMNS if column[0] == key), None)
            if column is not None:
                self.view.upward = self.view.column == column and not self.view.upward
                self.view.column = column
            elif key == "p":
                self.view.paused = not self.view.paused
            elif key in "q\x04":
                self.quit = True

    def _page(self) -> RenderableType:
        note = KEYS
        if self.view.paused:
            note = "PAUSED   " + note
        if self.trouble:
            note = f"{printable(self.trouble)}; trying on   q quit"
        if self.now is None:
            return Text(note)
        size = self.console.size
        return page(self.before, self.now, self.view, (size.width, size.height), note)


def _raise_stop(number: int, frame: FrameType | None) -> None:
    raise _Stop(number)


@contextlib.contextmanager
def _cbreak() -> Iterator[None]:
    """Keys come one by one and are not shown; as it was, at the end."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal has gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
