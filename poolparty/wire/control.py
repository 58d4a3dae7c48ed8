"""The control socket's language: its commands in one table, the lines they arrive in, the words of a line.

Used by both ends, the arbiter's control server and `poolparty-ctl`; no I/O. A command is a line; a line that
ends in a backslash goes on in the next, with a newline in between. Words are split as the original's library
(go-shlex) splits them: quotes and backslashes as in a shell, no comments, no empty words. The answer is the
command's output, then `OK`, or `ERROR: ` and a message, as the last line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from poolparty.errors import ControlError

MAX_COMMAND = 64 * 1024
"""Bytes of one command, all its lines together; the original's bound on a line (bufio.Scanner's)."""

MAX_MESSAGE = 4000
"""Characters of an error message; it may quote what a child has written."""

OK = "OK\n"


@dataclass(frozen=True, slots=True)
class Command:
    """A command as help shows it; `listed`: the error about an unknown command names it."""

    name: str
    arguments: str
    help: str
    listed: bool = True


COMMANDS = (
    Command(
        "restart-workers",
        "[POOL]",
        "replace every worker (of a pool) by a new one, one by one; answers when that is done",
    ),
    Command("spawn-workers", "N [POOL]", "start N more workers, at most max_pool_size in all"),
    Command("remove-workers", "N [POOL]", "end N workers, idle ones first, down to min_pool_size"),
    Command("stats", "[--json]", "what each pool is doing and has done"),
    Command(
        "collectd-metrics",
        "[INTERVAL [LABEL]]",
        "the same for collectd's exec plugin, every INTERVAL seconds (10) until the connection ends",
    ),
    Command("ps", "", "a line for each process: what it is, what it uses, what it runs"),
    Command("drain", "PID", "replace one worker, after its request and once another is ready"),
    Command("kill", "PID", "end one worker at once, whatever it runs"),
    Command("dump", "PID", "what one worker does now; its script's own stack goes to the log, if it can"),
    Command("log", "[-f] [N]", "the last N lines (20) that workers and pool have logged; -f: go on"),
    Command("metrics", "", "what a scrape by Prometheus gets"),
    Command("exit", "", "close the connection", listed=False),
)

UNKNOWN_COMMAND = "unknown command, want " + "|".join(command.name for command in COMMANDS if command.listed)

# What Go calls a space (unicode.IsSpace); Python's str.isspace has four more.
_WHITESPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
)
_WHITESPACE += "\u202f\u205f\u3000"

_INT64 = range(-(2**63), 2**63)


def split(text: str) -> list[str]:
    """The words of a command. ControlError: a quotation is open, or a backslash has nothing behind it."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace = _WHITESPACE
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return [word for word in lexer if word]
    except ValueError as error:
        raise ControlError(str(error)) from None


def join(words: Sequence[str]) -> bytes:
    """The lines that arrive as these words; an empty word cannot be said, and is lost."""
    return shlex.join(words).replace("\n", "\\\n").encode("utf-8", "replace") + b"\n"


def parse_int(word: str) -> int:
    """A whole number as Go's strconv.ParseInt takes it, with its words in the ControlError otherwise."""
    wrong = "invalid syntax"
    if re.fullmatch(r"[+-]?[0-9]+", word, re.ASCII):
        # Python refuses to convert thousands of digits; 30 are out of range already.
        number = int(word) if len(word) <= 30 else 2**63
        if number in _INT64:
            return number
        wrong = "value out of range"
    quoted = word.replace("\\", "\\\\").replace('"', '\\"')
    raise ControlError(f'strconv.ParseInt: parsing "{quoted}": {wrong}')


def error_line(message: str) -> str:
    """The last line of a failed command's answer: one line, and nothing in it that steers a terminal."""
    text = " ".join(message.split())
    if len(text) > MAX_MESSAGE:
        text = text[:MAX_MESSAGE] + "…"
    return f"ERROR: {printable(text)}\n"


def printable(text: str) -> str:
    """One line of it, with what a terminal would obey, or turn the line by, shown as an escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class CommandReader:
    """Commands out of the bytes of one connection, however these arrive.

    Raises ControlError from `next` for a command longer than MAX_COMMAND; nothing can be read after that.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # so far there is no newline in the buffer
        self._begun = bytearray()  # earlier lines of a command that goes on
        self._ended = False

    @property
    def full(self) -> bool:
        """Whether there is enough to go on with, so that the connection need not be read now."""
        return len(self._buffer) > MAX_COMMAND

    def feed(self, data: bytes) -> None:
        """Take what was received; b"" is the end of the connection, and of its last line."""
        self._buffer += data
        self._ended = self._ended or not data

    def next(self) -> str | None:
        """The text of the next command, to be split; None: more is needed, or all has been read."""
        while (line := self._line()) is not None:
            if len(line) + len(self._begun) > MAX_COMMAND:
                raise ControlError(f"a command has at most {MAX_COMMAND} bytes")
            if not line and not self._begun:
                continue
            if line.endswith(b"\\"):
                self._begun += line[:-1] + b"\n"
                continue
            command = bytes(self._begun + line)
            self._begun.clear()
            return command.decode("utf-8", "replace")
        return None

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            # A line that is too long is given out unfinished: it is an error all the same.
            if not (self._buffer and (self._ended or self.full)):
                return None
            end = len(self._buffer)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line.removesuffix(b"\r")
