"""Finds the application that a command line names, for poolparty.wsgi and poolparty.asgi.

An application is MODULE, MODULE:NAME, MODULE:FACTORY() or the same with a file in MODULE's place: app.py:app.
What cannot be found ends the process with a sentence for whoever wrote the command; what the application's
own code raises while it is imported is its own traceback.
"""

from __future__ import annotations

import importlib
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

NAMES = ("app", "application")
"""What is looked for where no name is given."""


def load(program: str, arguments: Sequence[str]) -> Callable[..., Any]:
    """The application that the one argument names. SystemExit says why there is none."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise SystemExit(
            f"usage: poolparty -- python -m {program} APPLICATION\n\n"
            "APPLICATION is a module or file and the name in it, as in shop.web:app, app.py:app, or "
            "shop.web:create_app() for a function that makes it"
        )
    where, _, name = arguments[0].partition(":")
    module = _imported(program, where)
    return _member(program, module, where, name)


def _imported(program: str, where: str) -> ModuleType:
    if where.endswith(".py") or os.sep in where:
        path = os.path.abspath(where)
        if not os.path.isfile(path):
            raise SystemExit(f"{program}: there is no file {path}")
        # As a script's folder is: what stands beside it can be imported.
        sys.path.insert(0, os.path.dirname(path))
        where = os.path.splitext(os.path.basename(path))[0]
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not (where == error.name or where.startswith(error.name + ".")):
            raise  # the application's own import of something else
        raise SystemExit(
            f"{program}: there is no module {error.name!r}: no {error.name.replace('.', '/')}.py in "
            f"{os.getcwd()}, and nothing of that name is installed for {sys.executable}. Start the server in "
            "the application's folder (--chdir), or name the file: app.py:app"
        ) from None
    except (TypeError, ValueError):  # "" and ".x"
        raise SystemExit(f"{program}: {where!r} is no module's name, as in shop.web:app") from None


def _member(program: str, module: ModuleType, where: str, name: str) -> Callable[..., Any]:
    called = name.endswith("()")
    attribute = name[:-2] if called else name
    if not attribute:
        attribute = next((each for each in NAMES if hasattr(module, each)), NAMES[0])
    found: Any = module
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        public = [each for each, value in vars(module).items() if callable(value) and each[0] != "_"]
        raise SystemExit(
            f"{program}: {where} ({getattr(module, '__file__', None)}) has no {attribute!r}; it has "
            f"{', '.join(public[:20]) or 'nothing that can be called'}. Name the application: {where}:NAME"
        ) from None
    if called:
        found = found()
    if not callable(found):
        raise SystemExit(
            f"{program}: {where}:{attribute} is {found!r:.100}, which cannot be called: it is no application"
        )
    application: Callable[..., Any] = found
    return application


def is_asynchronous(application: Callable[..., Any]) -> bool:
    """Whether it is an ASGI application's function or object."""
    flag = 0x80  # inspect.CO_COROUTINE; inspect takes milliseconds to import
    for candidate in (application, *(vars(kind).get("__call__") for kind in type(application).__mro__)):
        code = getattr(getattr(candidate, "__func__", candidate), "__code__", None)
        if code is not None and code.co_flags & flag:
            return True
    return False
