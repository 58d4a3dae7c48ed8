"""The environment variables of a child.

Called in the arbiter once for a generation of children, not for each child: for a Janet program the
interpreter is asked where its modules are. Nothing the user has set is replaced: our worker libraries are
added behind the user's own paths, so that a module of the same name that is installed there (the original's
own library is one) comes first.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import poolparty

# What the server offers a child beyond version 1 of the protocol (docs/worker-protocol.md).
FEATURES = ("ready", "health-reply")

SDK = Path(poolparty.__file__).resolve().parent / "sdk"

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

# An interpreter that starts at all answers within milliseconds.
JANET_TIMEOUT = 5.0


def child_environment(base: Mapping[str, str], command: Sequence[str]) -> dict[str, str]:
    """The environment for children that run `command`, made from the server's own, `base`."""
    environment = {
        name: value
        for name, value in base.items()
        if name not in _SERVERS_OWN and not name.startswith(_SERVERS_OWN_PREFIX)
    }
    environment["POOLPARTY"] = poolparty.__version__
    environment["POOLPARTY_FEATURES"] = ",".join(FEATURES)
    environment["PYTHONPATH"] = _appended(base.get("PYTHONPATH"), SDK / "python")
    interpreter = _janet_of(command)
    if interpreter is not None:
        path = _janet_path(environment, interpreter)
        if path is not None:
            environment["JANET_PATH"] = path
    return environment


def _appended(path: str | None, folder: Path) -> str:
    """`path` with `folder` behind all it has, once."""
    if not path:
        return str(folder)
    return path if str(folder) in path.split(os.pathsep) else f"{path}{os.pathsep}{folder}"


def _janet_of(command: Sequence[str]) -> str | None:
    """The Janet interpreter that `command` names (`janet app.janet`, `nice janet app.janet`), or the one that
    would run a script started by its own name (`./app.janet`)."""
    for word in command:
        if os.path.basename(word) == "janet":
            return word
    if command and command[0].endswith(".janet"):
        return "janet"
    return None


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
    try:
        answer = subprocess.run(
            [interpreter, "-e", "(prin (dyn :syspath))"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=JANET_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # the child's own start will say what is wrong with it
    return os.fsdecode(answer.stdout) or None
