"""The environment variables of a child.

Called in the arbiter once for a generation of children, not for each child: for a Janet or PHP program the
interpreter is asked where its modules are. Nothing the user has set is replaced: our worker libraries are
added behind the user's own paths, so that a module of the same name that is installed there (the original's
own library is one) comes first.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import poolparty
from poolparty.sdk_files import SDK, interpreter_of
from poolparty.wire import features

# What is addressed to the server itself. LISTEN_FDS and NOTIFY_SOCKET would make a child that knows systemd's
# conventions take the server's place; gunicorn's would configure a gunicorn started by the child.
_SERVERS_OWN = {
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "SERVER_SOFTWARE",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
}
_SERVERS_OWN_PREFIX = "GUNICORN_"

# Where interpreters look for libraries: a list of folders, and our folder in it.
_LIBRARY_PATHS = {
    "NODE_PATH": "node",
    "PERL5LIB": "perl",
    "PYTHONPATH": "python",
    "RUBYLIB": "ruby",
    "R_LIBS": "r",
}

# A version of Lua for which this is set does not look at LUA_PATH.
_LUA_PATH_OF_A_VERSION = re.compile(r"LUA_PATH_[0-9]+_[0-9]+")

# An interpreter that starts at all answers within milliseconds.
INTERPRETER_TIMEOUT = 5.0


def child_environment(base: Mapping[str, str], command: Sequence[str]) -> dict[str, str]:
    """The environment for children that run `command`, made from the server's own, `base`."""
    environment = {
        name: value
        for name, value in base.items()
        if name not in _SERVERS_OWN and not name.startswith(_SERVERS_OWN_PREFIX)
    }
    environment["POOLPARTY"] = poolparty.__version__
    environment["POOLPARTY_FEATURES"] = ",".join(features.NAMES)
    for name, folder in _LIBRARY_PATHS.items():
        environment[name] = _appended(base.get(name), SDK / folder)
    environment["TCLLIBPATH"] = _tcl_path(base.get("TCLLIBPATH"))
    environment["GUILE_LOAD_PATH"] = _guile_path(base.get("GUILE_LOAD_PATH"))
    for name in ["LUA_PATH", *filter(_LUA_PATH_OF_A_VERSION.fullmatch, base)]:
        environment[name] = _lua_path(base.get(name))
    interpreter = _janet_of(command)
    if interpreter is not None:
        path = _janet_path(environment, interpreter)
        if path is not None:
            environment["JANET_PATH"] = path
    interpreter = interpreter_of(command, "php")
    if interpreter is not None:
        environment |= _php_paths(environment, interpreter)
    return environment


def kept(base: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Of `base` the variables with these names; one that ends in `*` stands for all that begin so."""
    exact = {name for name in names if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
    return {name: value for name, value in base.items() if name in exact or name.startswith(prefixes)}


def _appended(path: str | None, folder: Path) -> str:
    """`path` with `folder` behind all it has, once."""
    if not path:
        return str(folder)
    return path if str(folder) in path.split(os.pathsep) else f"{path}{os.pathsep}{folder}"


def _lua_path(path: str | None) -> str:
    """Lua's path is a list of patterns. An empty one stands for what Lua itself has; ours goes behind it."""
    ours = f"{SDK / 'lua'}/?.lua"
    if not path:
        return f";;{ours}"
    return path if ours in path.split(";") else f"{path};{ours}"


def _tcl_path(path: str | None) -> str:
    """Tcl's is a list as Tcl writes it, separated by blanks."""
    ours = str(SDK / "tcl")
    if not ours.isascii() or not ours.replace("/", "").replace("-", "").replace(".", "").isalnum():
        ours = f"{{{ours}}}"
    if not path:
        return ours
    return path if f" {ours} " in f" {path} " else f"{path} {ours}"


def _guile_path(path: str | None) -> str:
    """In Guile's, three dots stand for the folders that Guile itself has."""
    folders = path.split(os.pathsep) if path else []
    if "..." not in folders:
        folders.append("...")
    return _appended(os.pathsep.join(folders), SDK / "guile")


def _janet_of(command: Sequence[str]) -> str | None:
    """The Janet interpreter that `command` names (`janet app.janet`, `nice janet app.janet`), or the one that
    would run a script started by its own name (`./app.janet`)."""
    named = interpreter_of(command, "janet")
    return "janet" if named is None and command and command[0].endswith(".janet") else named


def _janet_path(environment: Mapping[str, str], interpreter: str) -> str | None:
    """JANET_PATH with our library behind what the interpreter uses now; None where it has to stay as it is.

    Older interpreters take JANET_PATH for the name of one folder. To set it would hide the modules installed
    there, so a program on one of these needs our library installed or beside it.
    """
    ours = SDK / "janet"
    now = _janet_module_folder(environment, interpreter)
    if now is None:
        return None
    path = _appended(environment.get("JANET_PATH") or now, ours)
    first = path.split(os.pathsep)[0]
    if _janet_module_folder({**environment, "JANET_PATH": path}, interpreter) != first:
        return None
    return path


def _janet_module_folder(environment: Mapping[str, str], interpreter: str) -> str | None:
    """The (first) folder where the interpreter looks for installed modules, by its own word."""
    return _said([interpreter, "-e", "(prin (dyn :syspath))"], environment)


def _php_paths(environment: Mapping[str, str], interpreter: str) -> dict[str, str]:
    """What leads PHP's include_path, as it is now, to our library behind all it has.

    No variable of PHP's extends include_path. But one names folders of further ini files, and ours there sets
    include_path to what another variable says. An empty name in that list is the folder PHP was built with.
    """
    now = _said([interpreter, "-r", "echo get_include_path();"], environment)
    if now is None:
        return {}
    scanned, ours = environment.get("PHP_INI_SCAN_DIR"), SDK / "php" / "ini"
    return {
        "PHP_INI_SCAN_DIR": f"{os.pathsep}{ours}" if scanned is None else _appended(scanned, ours),
        "POOLPARTY_PHP_INCLUDE_PATH": _appended(now, SDK / "php"),
    }


def _said(command: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """What an interpreter prints; None if that is nothing, or the interpreter does not run."""
    try:
        answer = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=INTERPRETER_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # the child's own start will say what is wrong with it
    return os.fsdecode(answer.stdout) or None
