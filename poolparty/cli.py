"""The `poolparty` command: gunicorn's command line, with our options first and our own arbiter.

Runs in the master, before the first fork and again at each reload. Values come from, weakest first: the
defaults below, a configuration file, GUNICORN_CMD_ARGS, the command line. Whatever is wrong with them ends
the start with one sentence and status 1 (2 where argparse prints the usage), and no traceback.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import types
from collections.abc import Sequence
from typing import Any, NoReturn

import gunicorn.debug
import gunicorn.util
from gunicorn.app.base import Application
from gunicorn.config import Config

from poolparty.errors import ConfigError
from poolparty.findings import findings, versions
from poolparty.settings import (
    REFUSED,
    REFUSED_AT_ODD_VALUES,
    SECTION,
    WITHOUT_EFFECT,
    WORKER_CLASS,
    complaint,
    serves_a_pool,
)

USAGE = "%(prog)s [options] -- CMD [ARG ...]"
CONFIG_FILE = "./poolparty.conf.py"

# Where we differ from gunicorn: a server behind a proxy or in front of browsers, which keep connections open.
# gunicorn's control socket is off: it has the names, but knows nothing of children; ours is ctl_socket. Its
# configuration file gunicorn.conf.py is not read: one that lies here was written for another server.
DEFAULTS: dict[str, Any] = {
    "worker_class": WORKER_CLASS,
    "bind": ["127.0.0.1:8080"],
    "keepalive": 75,
    "worker_connections": 10_000,
    "control_socket_disable": True,
    "default_proc_name": "poolparty",
    "config": CONFIG_FILE,
}
# Understood, but not worth a line of help.
HIDDEN = (
    {refusal.name for refusal in REFUSED} - REFUSED_AT_ODD_VALUES
    | WITHOUT_EFFECT
    | {"worker_class", "control_socket", "control_socket_mode", "control_socket_disable"}
)
# gunicorn's first line of these is not a whole sentence, or not about us.
HELP = {
    "check_config": "Check the configuration, say what was found, and exit: 0 if it is good, 1 if not.",
    "config": "A configuration file: PATH or python:MODULE_NAME. [./poolparty.conf.py, if there is one]",
    "worker_connections": "Connections that may be open in one HTTP worker. [10000]",
}


class PoolpartyConfig(Config):
    """gunicorn's Config with our defaults, and a help that begins with our options."""

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        super().__init__(usage, prog)
        for name, value in DEFAULTS.items():
            if name == "bind" and "PORT" in os.environ:
                continue  # gunicorn serves there, as hosts that set PORT expect
            setting = self.settings[name]
            setting.set(value)
            setting.default = value  # for the help

    def parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=self.prog,
            usage=self.usage,
            description="Serves CMD, a program that answers one request at a time, over HTTP from a pool of "
            "its processes. A DURATION is a number of seconds, or a string such as 50ms, 60s, 1m30s.",
        )
        parser.add_argument("-v", "--version", action=_Version)
        parser.add_argument("args", nargs="*", help=argparse.SUPPRESS)
        sections: dict[str, list[Any]] = {SECTION: []}
        for setting in self.settings.values():
            sections.setdefault(setting.section, []).append(setting)
        for section, members in sections.items():
            title = section if section == SECTION else f"gunicorn: {section}"
            shown = _HelpSection(parser.add_argument_group(title))
            for setting in members:
                shown.hidden = setting.name in HIDDEN
                setting.add_option(shown)
        return parser


class _Version(argparse.Action):
    """Prints the versions, a line each, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        text = "Print the version, and those of what it stands on, and exit."
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=text)

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        print("\n".join(versions()))
        parser.exit()


class _HelpSection:
    """Takes options into a group of the help: hides some, and frees gunicorn's texts from Sphinx's marks."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.poolparty_group = self  # where settings of ours go
        self.hidden = False

    def add_argument(self, *names: str, **options: Any) -> None:
        text = HELP.get(options["dest"]) or re.sub(r":ref:`([^<`]*)(?:<[^>]*>)?`", r"\1", options["help"])
        text = re.sub(r" \[(None|False|\[\])\]$", "", text)  # defaults that tell nobody anything
        self.group.add_argument(*names, **{**options, "help": argparse.SUPPRESS if self.hidden else text})


class Poolparty(Application):
    """One server's configuration; there is no application to load, since the requests go to children."""

    cfg: Config
    origins: dict[str, str]  # where each option was set that somebody has set

    def load_default_config(self) -> None:
        self.origins = {}
        self.cfg = PoolpartyConfig(self.usage, prog=self.prog)

    def load_config(self) -> None:
        parser = self.cfg.parser()
        args = _arguments(parser, sys.argv[1:])
        env_args = _arguments(parser, self.cfg.get_cmd_args_from_env())
        self.chdir()
        locations = [source.pop("config", None) for source in (args, env_args)]
        location = locations[0] or locations[1]
        if location is None and os.path.exists(CONFIG_FILE):
            location = CONFIG_FILE
        if location is not None:
            self.load_config_from_module_name_or_filename(location)
            self.cfg.settings["config"].set(location)
        for origin, source in (("GUNICORN_CMD_ARGS", env_args), ("command line", args)):
            for name, value in source.items():
                self._set(name, value, origin)
        self.chdir()  # the configuration may have changed it
        if not serves_a_pool(self.cfg):
            wrong = f"poolparty serves with {WORKER_CLASS} only; leave it out, or use the gunicorn command"
            raise ConfigError(complaint("worker_class", self.cfg.settings["worker_class"].get(), wrong))

    def _set(self, name: str, value: object, origin: str) -> None:
        try:
            self.cfg.set(name, value)
        except Exception as error:
            raise ConfigError(complaint(name, value, _clause(error))) from None
        self.origins[name] = origin

    def chdir(self) -> None:
        """As gunicorn does, but last in sys.path: the children's files must not shadow what is ours."""
        os.chdir(self.cfg.chdir)
        if self.cfg.chdir not in sys.path:
            sys.path.append(self.cfg.chdir)

    def load_config_from_module_name_or_filename(self, location: str) -> dict[str, Any]:
        if location.startswith("python:"):
            try:
                values = self.get_config_from_module_name(location.removeprefix("python:"))
            except Exception as error:
                raise ConfigError(_config_complaint(location, error)) from None
        else:
            values = self.get_config_from_filename(location.removeprefix("file:"))
        for name, value in values.items():
            if name in self.cfg.settings:
                self._set(name, value, location)
        return values

    def get_config_from_filename(self, filename: str) -> dict[str, Any]:
        """Executes the file from its source: a compiled copy beside it may be up to a second stale."""
        module = types.ModuleType("__config__")
        module.__file__ = filename
        try:
            with open(filename, "rb") as file:
                code = compile(file.read(), filename, "exec")
            sys.modules["__config__"] = module
            exec(code, vars(module))
        except Exception as error:
            raise ConfigError(_config_complaint(filename, error)) from None
        return vars(module)

    def load(self) -> None:
        return None

    def run(self) -> None:
        if self.cfg.print_config:
            print(self.cfg)
        if self.cfg.print_config or self.cfg.check_config:
            print(findings(self.cfg, self.origins))
            sys.exit(0)
        # Only now: with a configuration that cannot be served nobody should have to wait for it.
        from poolparty.arbiter.arbiter import PoolArbiter

        if self.cfg.spew:
            gunicorn.debug.spew()
        if self.cfg.daemon:
            gunicorn.util.daemonize(self.cfg.enable_stdio_inheritance)
        for path in (self.cfg.pythonpath or "").split(","):
            if path and os.path.abspath(path) not in sys.path:
                sys.path.insert(0, os.path.abspath(path))
        try:
            PoolArbiter(self).run()
        except (RuntimeError, OSError, ValueError) as error:
            # The addresses, the pidfile, the log files: gunicorn opens them as it starts, and raises what it
            # gets.
            if self.cfg.loglevel == "debug":
                raise
            print(f"\nError: {str(error).removeprefix('Error: ')}", file=sys.stderr, flush=True)
            sys.exit(1)


def _arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """What was given, by setting; what follows the first `--` is the command, whatever it looks like."""
    words = list(words)
    command: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, command = words[:cut], words[cut + 1 :]
    given = {name: value for name, value in vars(parser.parse_args(words)).items() if value is not None}
    positional = given.pop("args")
    if positional and command:
        stray = shlex.join(positional)
        raise ConfigError(
            f"{stray}: this is no option; the command is what stands after `--`, and only that."
        )
    command = command or positional
    if command and "pool_cmd" in given:
        raise ConfigError("pool_cmd is given twice, with --pool-cmd and as words; leave one of them out.")
    if command:
        given["pool_cmd"] = command
    return given


def _clause(error: Exception) -> str:
    """An exception's message as the end of a sentence of ours."""
    return str(error).strip().rstrip(".") or type(error).__name__


def _config_complaint(location: str, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"config = {location!r}: {error.msg} (line {error.lineno}); mend the file."
    if isinstance(error, OSError) and error.filename == location:
        return f"config = {location!r}: {error.strerror}; give a file that can be read."
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == location:
            line = trace.tb_lineno
        trace = trace.tb_next
    where = "" if line is None else f" (line {line})"
    return f"config = {location!r}: {type(error).__name__}: {_clause(error)}{where}; mend the file."


def main() -> NoReturn:
    try:
        Poolparty(USAGE, prog="poolparty").run()
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
