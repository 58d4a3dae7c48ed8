"""The three commands as tables: their options and words, for shell completion and manual pages.

Nothing is declared here that the commands do not read themselves: options come from their argument parsers,
poolparty-ctl's words from the tables it dispatches by. Runs in poolparty-ctl, when it is asked for one of the
two.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.reloader import reloader_engines

from poolparty import compress, ctl
from poolparty.cli import USAGE, PoolpartyConfig
from poolparty.sdk_files import languages
from poolparty.settings import OPTIONS, paragraphs
from poolparty.top.figures import COLUMNS
from poolparty.wire.control import COMMANDS, Command

FILE, DIRECTORY, USER, GROUP, COMMAND = "file", "directory", "user", "group", "command"
PID, POOL = "pid", "pool"
"""Kinds of values that a shell can complete; "" for one it cannot, such as a number."""

KINDS = {
    **dict.fromkeys(("FILE", "FILES", "CONFIG", "PATH", "PATHS"), FILE),
    **dict.fromkeys(("DIRECTORY", "DIR", "CHDIR", "ROOT"), DIRECTORY),
    "USER": USER,
    "GROUP": GROUP,
    "PID": PID,
    "POOL": POOL,
    "CMD": COMMAND,
}
"""What is meant by the name that a value has in the help."""

PAGES = ("poolparty", "poolparty-ctl", "poolparty-compress")
"""The commands, and the manual pages."""


def _words() -> dict[str, tuple[str, ...]]:
    return {
        "LEVEL": tuple(Logger.LOG_LEVELS),
        "ENGINE": tuple(reloader_engines),
        "COLUMN": tuple(COLUMNS),
        "LANGUAGE": tuple(languages()),
        "PAGE": PAGES,
    }


@dataclass(frozen=True, slots=True)
class Value:
    """What an option or a word is followed by: its name in the help, and how a shell completes it."""

    meta: str
    kind: str = ""
    words: tuple[str, ...] = ()

    @classmethod
    def named(cls, meta: str) -> Value:
        if "|" in meta:
            return cls(meta, words=tuple(meta.split("|")))
        return cls(meta, KINDS.get(meta, ""), _words().get(meta, ()))


@dataclass(frozen=True, slots=True)
class Flag:
    """An option: its names, its value if it takes one, and what it does, the first paragraph being one
    sentence."""

    names: tuple[str, ...]
    value: Value | None
    text: tuple[str, ...]
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """A command of poolparty-ctl, taken apart: its options and what else it takes."""

    command: Command
    flags: tuple[Flag, ...]
    values: tuple[Value, ...]  # in their order
    runs_command: bool  # what follows `--` is a command line


@dataclass(frozen=True, slots=True)
class Program:
    """One command. groups: headings and options; words: headings and commands."""

    name: str
    summary: str
    synopsis: str
    description: str
    groups: tuple[tuple[str, tuple[Flag, ...]], ...]
    words: tuple[tuple[str, tuple[Word, ...]], ...] = ()
    argument: Value | None = None

    @property
    def flags(self) -> tuple[Flag, ...]:
        return tuple(flag for _, flags in self.groups for flag in flags)

    @property
    def all_words(self) -> tuple[Word, ...]:
        return tuple(word for _, words in self.words for word in words)


def programs() -> tuple[Program, ...]:
    """All three."""
    return server(), control(), compressor()


def server() -> Program:
    """`poolparty`."""
    parser = PoolpartyConfig(USAGE, prog="poolparty").parser()
    return Program(
        "poolparty",
        "serve a program that answers one request at a time over HTTP",
        USAGE.replace("%(prog)s", "poolparty"),
        parser.description or "",
        _groups(parser),
        argument=Value("CMD", COMMAND),
    )


def compressor() -> Program:
    """`poolparty-compress`."""
    parser = compress.parser()
    return Program(
        "poolparty-compress",
        "make compressed copies of static files",
        "poolparty-compress [options] ROOT",
        parser.description or "",
        _groups(parser),
        argument=Value.named("ROOT"),
    )


def control() -> Program:
    """`poolparty-ctl`."""
    flags = (
        Flag(("--ctl-socket",), Value("PATH", FILE), (ctl.SOCKET_HELP,)),
        Flag(("--help", "-h"), None, ("Print all commands and exit.",)),
        Flag(("--version",), None, ("Print the version and exit.",)),
    )
    words = tuple(
        (heading, tuple(_taken_apart(command) for command in commands))
        for heading, commands in (
            ("Of a running server", (*COMMANDS, *ctl.WATCHING_COMMANDS)),
            ("Without a server", ctl.LOCAL_COMMANDS),
        )
    )
    return Program(
        "poolparty-ctl",
        "watch and steer a running poolparty server",
        ctl.USAGE.removeprefix("usage: "),
        "Says one command to a running server and shows the answer. A worker is one of the processes that "
        "answer requests.",
        (("Options", flags),),
        words,
    )


def _groups(parser: argparse.ArgumentParser) -> tuple[tuple[str, tuple[Flag, ...]], ...]:
    """A parser's options by their headings, those that its help shows."""
    groups = []
    for group in parser._action_groups:
        flags = tuple(
            _flag(action)
            for action in group._group_actions
            if action.option_strings and action.help != argparse.SUPPRESS
        )
        if flags:
            title = group.title or "Options"
            groups.append((title[0].upper() + title[1:], flags))
    return tuple(groups)


def _flag(action: argparse.Action) -> Flag:
    ours = next((option for option in OPTIONS if option.name == action.dest), None)
    more = [] if ours is None else list(paragraphs(ours.text))[1:]
    text = (_sentence(action.help or ""), *more)
    value = None
    if action.nargs != 0:
        value = Value.named("ENGINE" if action.dest == "reload_engine" else _meta(action))
        if action.dest.endswith("_prefix"):  # a path, but of no file
            value = Value(value.meta)
        if action.choices:
            value = Value(value.meta, words=tuple(action.choices))
        if action.nargs == "?":
            value = Value(f"[{value.meta}]", value.kind, value.words)
    repeated = isinstance(action, argparse._AppendAction)
    return Flag(tuple(action.option_strings), value, text, repeated)


def _meta(action: argparse.Action) -> str:
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def _sentence(text: str) -> str:
    """A help text, whose percent signs are doubled for argparse, as a sentence."""
    text = text.replace("%%", "%").replace("``", "`")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "]", ")")) else ".")


def _taken_apart(command: Command) -> Word:
    """A command's arguments as the help shows them: `[-d SECONDS]`, `[-f] [N]`, `LANGUAGE`, `-- CMD …`."""
    before, dashes, _ = command.arguments.partition("-- ")
    flags: list[Flag] = []
    values: list[Value] = []
    parts: Sequence[Any] = re.findall(r"(-[-\w]+)(?: ([A-Z]+))?|([^\s\[\]…]+)", before)
    for name, meta, positional in parts:
        if name:
            flags.append(Flag((name,), Value.named(meta) if meta else None, ("",)))
        else:
            values.append(Value.named(positional))
    return Word(command, tuple(flags), tuple(values), bool(dashes))
