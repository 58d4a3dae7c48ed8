"""The `sdk` word of poolparty-ctl: where the worker libraries are, and a copy of one where it is wanted.

A child finds its language's library by the environment that the server gives it; who writes the program wants
it for an editor, a test, or a repository that holds all it needs.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from poolparty.errors import PoolpartyError

SDK = Path(__file__).resolve().parent / "sdk"

USAGE = "usage: poolparty-ctl sdk [LANGUAGE [--copy DIR]]"

NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def languages() -> list[str]:
    """The languages that there is a library for."""
    return sorted(folder.name for folder in SDK.iterdir() if folder.is_dir() and list(library(folder.name)))


INTERPRETERS = {
    "guile": r"guile[0-9.]*",
    "janet": r"janet",
    "lua": r"lua(?:jit)?[0-9.]*",
    "node": r"node(?:js)?",
    "perl": r"perl[0-9.]*",
    "php": r"php[0-9.]*",
    "python": r"(?:python|pypy)[0-9.]*",
    "r": r"Rscript",
    "ruby": r"ruby[0-9.]*",
    "tcl": r"tclsh[0-9.]*",
}
"""What the programs that run a language are called. One in Go is a program of its own."""


def interpreter_of(command: Sequence[str], language: str) -> str | None:
    """The word of a command that names this language's interpreter (`php app.php`, `nice php8.2 app.php`)."""
    named = re.compile(INTERPRETERS[language]).fullmatch
    return next((word for word in command if named(os.path.basename(word))), None)


def language_of(command: Sequence[str]) -> str | None:
    """The language that a command's program is written in, by the first interpreter that it names."""
    found = {interpreter_of(command, language): language for language in INTERPRETERS}
    return next((found[word] for word in command if word in found), None)


def library(language: str) -> list[Path]:
    """What a language's library consists of: files, or a package's folder. Its README is not part of it."""
    return sorted(
        path
        for path in (SDK / language).iterdir()
        if not path.name.startswith((".", "__")) and not path.name.startswith("README")
    )


def main(arguments: Sequence[str]) -> int:
    """Print the languages, or a library's files; or copy them. Returns the exit status."""
    words = list(arguments)
    target = None
    if "--copy" in words:
        at = words.index("--copy")
        if at + 1 == len(words):
            return _usage("--copy wants a folder")
        target = Path(words[at + 1])
        del words[at : at + 2]
    if words and words[0] in ("-h", "--help"):
        print(f"{USAGE}\n\nWithout a language, lists them; with one, prints where its library's files are.")
        return 0
    if len(words) > 1 or any(word.startswith("-") for word in words):
        return _usage(f"there is no meaning to {' '.join(words)!r}")
    known = languages()
    if not words:
        if target is not None:
            return _usage("--copy wants a language")
        print("\n".join(known))
        return 0
    language = words[0].lower()
    if language not in known:
        raise PoolpartyError(f"there is no library for {words[0]!r}; there are {', '.join(known)}")
    for path in library(language):
        print(path if target is None else _copy(path, target))
    return 0


def _copy(path: Path, target: Path) -> Path:
    """The copy. PoolpartyError: it cannot be made, or something else has the name."""
    copy = target / path.name
    if copy.exists() and copy.is_dir() != path.is_dir():
        raise PoolpartyError(f"{copy} is in the way; move it, or name another folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, copy, ignore=NOT_COPIED, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, copy)
    except OSError as error:
        raise PoolpartyError(f"cannot copy to {copy}: {error.strerror or error}") from None
    return copy


def _usage(complaint: str) -> int:
    print(f"poolparty-ctl sdk: {complaint}\n{USAGE}", file=sys.stderr)
    return 2
