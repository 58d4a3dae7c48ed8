"""Manual pages of our commands, made from the tables of poolparty.programs.

`python -m poolparty.manual DIRECTORY` writes all of them, `poolparty-ctl man [PAGE]` shows one: as man does
on a terminal, its source otherwise.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from poolparty import __version__
from poolparty.ctl import DEFAULT_SOCKET, SOCKET_VARIABLE
from poolparty.programs import PAGES, Flag, Program, Word, programs

EXIT_STATUS = {
    "poolparty": (
        ("0", "It was told to stop, or had only to say something (--help, --version, --check-config)."),
        ("1", "It could not start: what is wrong stands on standard error."),
        ("2", "The command line makes no sense."),
    ),
    "poolparty-ctl": (
        ("0", "The server said OK."),
        ("1", "The server said that something is wrong, or there is none."),
        ("2", "The command line makes no sense."),
    ),
    "poolparty-compress": (
        ("0", "Every copy is there that is worth its place."),
        ("1", "A file could not be read, or a copy not be written."),
        ("2", "The command line makes no sense."),
    ),
}
ENVIRONMENT = {
    "poolparty": (("GUNICORN_CMD_ARGS", "Options, which the command line wins over."),),
    "poolparty-ctl": ((SOCKET_VARIABLE, "The control socket where --ctl-socket does not name it."),),
}
FILES = {
    "poolparty": (
        ("./poolparty.conf.py", "The configuration that is read unless --config names another."),
        (DEFAULT_SOCKET, "The control socket, unless --ctl-socket says otherwise."),
    ),
}
SIGNALS = {
    "poolparty": (
        ("TERM, INT", "Finish what runs, then stop; a second INT does not wait."),
        ("QUIT", "Stop at once."),
        ("HUP", "Read the configuration again and replace every process; no request is lost."),
        ("USR1", "Reopen the log files."),
        ("USR2", "Start a new version beside this one."),
        ("TTIN, TTOU", "One HTTP worker more, or less."),
        ("WINCH", "Have the HTTP workers finish and leave."),
    ),
}


def page(program: Program) -> str:
    """A page's source, in the macros of man(7)."""
    return "\n".join(_lines(program)) + "\n"


def _lines(program: Program) -> Iterator[str]:
    yield rf'.TH {_text(program.name.upper())} 1 "" "poolparty {__version__}" "User Commands"'
    yield ".nh"  # a name with a hyphen put into it would be another one
    yield from (".SH NAME", rf"{_text(program.name)} \- {_text(program.summary)}")
    name, _, arguments = program.synopsis.partition(" ")
    yield from (".SH SYNOPSIS", f".B {_text(name)}", _text(arguments))
    yield from (".SH DESCRIPTION", _text(program.description))
    for heading, words in program.words:
        if heading == program.words[0][0]:
            yield ".SH COMMANDS"
        yield f'.SS "{_text(heading)}"'
        for word in words:
            yield from _word(word)
    yield ".SH OPTIONS"
    for heading, flags in program.groups:
        if heading != "Options":
            yield f'.SS "{_text(heading)}"'
        for flag in flags:
            yield from _flag(flag)
    for title, table in (
        ("EXIT STATUS", EXIT_STATUS),
        ("ENVIRONMENT", ENVIRONMENT),
        ("FILES", FILES),
        ("SIGNALS", SIGNALS),
    ):
        if program.name in table:
            yield f'.SH "{title}"'
            for term, meaning in table[program.name]:
                yield from (".TP", f".B {_quoted(term)}", _text(meaning))
    others = [f".BR {_text(name)} (1)" for name in PAGES if name != program.name]
    yield ".SH SEE ALSO"
    yield from (other + "," for other in others[:-1])
    yield others[-1]


def _flag(flag: Flag) -> Iterator[str]:
    names = ", ".join(rf"\fB{_text(name)}\fR" for name in flag.names)
    value = "" if flag.value is None else rf" \fI{_text(flag.value.meta)}\fR"
    first, *more = flag.text
    yield from (".TP", names + value, _text(first[:1].upper() + first[1:]))
    for paragraph in more:
        yield from (".IP", _text(paragraph))


def _word(word: Word) -> Iterator[str]:
    command = word.command
    arguments = f" {_text(command.arguments)}" if command.arguments else ""
    yield from (".TP", rf"\fB{_text(command.name)}\fR{arguments}")
    yield _text(command.help[:1].upper() + command.help[1:] + ".")


def _text(text: str) -> str:
    """Plain text, on one line, for a place where roff looks for requests."""
    text = " ".join(text.split()).replace("\\", r"\(rs")
    text = text.replace("-", r"\-").replace('"', r"\(dq").replace("`", r"\(ga").replace("~", r"\(ti")
    text = text.replace("^", r"\(ha").replace("'", r"\(aq").replace("…", "...").replace("µ", r"\(mc")
    text = re.sub(r"[^\x00-\x7f]", lambda match: rf"\[u{ord(match[0]):04X}]", text)
    return rf"\&{text}" if text.startswith(".") else text


def _quoted(text: str) -> str:
    return f'"{_text(text)}"'


def show(words: Sequence[str]) -> int:
    """`poolparty-ctl man`; returns the exit status."""
    name = words[0] if words else "poolparty-ctl"
    found = next((program for program in programs() if program.name == name), None)
    if found is None or len(words) > 1:
        stray = " ".join(words)
        known = ", ".join(PAGES)
        print(f"poolparty-ctl man: there is no page {stray!r}; there are {known}", file=sys.stderr)
        return 2
    source = page(found)
    if sys.stdout.isatty() and shutil.which("man"):
        return subprocess.run(["man", "-l", "-"], input=source.encode()).returncode
    sys.stdout.write(source)
    return 0


def main(words: Sequence[str]) -> int:
    """Write all pages into a directory; returns the exit status."""
    if len(words) != 1 or words[0].startswith("-"):
        print("usage: python -m poolparty.manual DIRECTORY", file=sys.stderr)
        return 2
    try:
        os.makedirs(words[0], exist_ok=True)
        for program in programs():
            Path(words[0], f"{program.name}.1").write_text(page(program))
    except OSError as error:
        print(f"{error.filename}: {error.strerror}; name a directory that can be written", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
