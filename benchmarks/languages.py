"""The table of languages: versions, features, what the checker says, requests/s; makes docs/languages.md.

    python -m benchmarks.languages --write                  everything, the figures included
    python -m benchmarks.languages --write --seconds 0      everything but the figures
    python -m benchmarks.languages ruby perl                to look at two of them

Each round measures every interpreter once, so that what else the machine does meets all alike; a figure is
the median of the rounds. The application is examples/app.EXT, the same in every language, asked for `/`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import machine, wrk
from benchmarks.figures import medians
from benchmarks.processes import Server, ServerFailed, free_port
from poolparty.check.checks import Bench, outcomes
from poolparty.check.worker import Failed
from poolparty.wire.features import NAMES
from poolparty.wire.frames import Ready

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIGURATIONS = CHECKOUT / "conf" / "languages"
PAGE = CHECKOUT / "docs" / "languages.md"
INTERPRETERS = CHECKOUT / ".cache" / "interpreters" / "bin"

CONNECTIONS = 16
OFFERED = ",".join(NAMES)
PATIENCE = 20.0
"""Seconds for whatever a worker owes the checker: some interpreters start slowly on a busy machine."""


@dataclass(frozen=True)
class Language:
    """An interpreter: how its version is asked for, and what it adds to the library's plain handlers."""

    name: str
    folder: str  # below poolparty/sdk
    program: str
    suffix: str  # of examples/app.SUFFIX
    version: tuple[str, ...] = ("--version",)
    serves: str = ""


LANGUAGES = (
    Language("Janet", "janet", "janet", "janet", ("-e", "(print janet/version)")),
    Language("Python", "python", "python3", "py", serves="WSGI, ASGI, CGI"),
    Language("Ruby", "ruby", "ruby", "rb", serves="Rack"),
    Language("Perl", "perl", "perl", "pl", ("-e", "print $^V"), "PSGI"),
    Language("PHP", "php", "php", "php", serves="front controllers"),
    Language("JavaScript (Node)", "node", "node", "js", serves="`http` handlers"),
    Language("Lua 5.1", "lua", "lua5.1", "lua", ("-v",)),
    Language("Lua 5.2", "lua", "lua5.2", "lua", ("-v",)),
    Language("Lua 5.3", "lua", "lua5.3", "lua", ("-v",)),
    Language("Lua 5.4", "lua", "lua5.4", "lua", ("-v",)),
    Language("LuaJIT", "lua", "luajit", "lua", ("-v",)),
    Language("Tcl", "tcl", "tclsh", "tcl", ()),
    Language("R", "r", "Rscript", "R", serves="routes as plumber's"),
    Language("Guile Scheme", "guile", "guile", "scm"),
    Language("Go", "go", "go", "go", ("version",), "`net/http` handlers"),
)


@dataclass
class Row:
    """What was found out about one interpreter; `missing` says why nothing was."""

    language: Language
    version: str = ""
    features: tuple[str, ...] | None = None
    kept: int = 0
    broken: int = 0
    rate: float | None = None
    missing: str = ""
    samples: list[dict[str, float]] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at all or the named languages, print the table, write the page if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.languages", description=__doc__.split("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="LANGUAGE", help="a folder below poolparty/sdk")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--children", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="make docs/languages.md")
    options = parser.parse_args(arguments)
    chosen = [each for each in LANGUAGES if not options.names or each.folder in options.names]
    if not chosen or (options.write and options.names):
        parser.error("no such language" if not chosen else "--write is for the whole table")
    with tempfile.TemporaryDirectory() as name:
        rows = [look(language, Path(name)) for language in chosen]
        if options.seconds:
            measure(rows, Path(name), options.seconds, options.rounds, options.children)
    print(table(rows), end="")
    if options.write:
        how = ""
        if options.seconds:
            how = measured_how(
                options.seconds, options.rounds, options.children, machine.describe(), machine.load()
            )
        PAGE.write_text(page(rows, how))
    return 1 if any(row.broken for row in rows) else 0


# --- looking -----------------------------------------------------------------------------------------------


def look(language: Language, folder: Path) -> Row:
    """Version, features and what the checker says."""
    row = Row(language)
    program = found(language)
    if program is None:
        row.missing = "not on this machine"
        return row
    print(f"{language.name} …", file=sys.stderr)
    row.version = version(language, program)
    try:
        command = command_of(language, program, folder)
    except subprocess.CalledProcessError:
        row.missing = "its example does not build"
        return row
    bench = Bench(command, echo=False, patience=PATIENCE)
    try:
        _, ready = bench.started(OFFERED)
        said = ready.features if isinstance(ready, Ready) else ()
        row.features = tuple(name for name in NAMES if name in said)
    except Failed as error:
        row.missing = str(error)
        return row
    finally:
        bench.drop()
    for outcome in outcomes(bench):
        row.kept += outcome.verdict == "ok"
        row.broken += outcome.verdict == "FAIL"
    return row


def found(language: Language) -> str | None:
    """The interpreter's path: ours first, as the tests do it."""
    ours = INTERPRETERS / language.program
    return str(ours) if os.access(ours, os.X_OK) else shutil.which(language.program)


def version(language: Language, program: str) -> str:
    """The first number with dots in what it says about itself."""
    if language.folder == "tcl":
        asked = subprocess.run([program], input="puts [info patchlevel]", capture_output=True, text=True)
    else:
        asked = subprocess.run(
            [program, *language.version], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    number = re.search(r"\d+\.\d+(\.\d+)*", asked.stdout + asked.stderr)
    return number.group() if number else "?"


def command_of(language: Language, program: str, folder: Path) -> list[str]:
    """The command of a child; Go's is built."""
    source = CHECKOUT / "examples" / f"app.{language.suffix}"
    if language.folder != "go":
        return [program, str(source)]
    built = folder / "app-in-go"
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    if not built.exists():
        subprocess.run(
            [program, "build", "-o", str(built), source.name], cwd=source.parent, env=environment, check=True
        )
    return [str(built)]


# --- measuring ---------------------------------------------------------------------------------------------


def measure(rows: Sequence[Row], folder: Path, seconds: int, rounds: int, children: int) -> None:
    """Fill in the rates."""
    for number in range(rounds):
        for row in rows:
            if row.missing:
                continue
            print(f"round {number + 1} of {rounds}: {row.language.name} …", file=sys.stderr)
            try:
                with serving(row.language, folder, children) as server:
                    row.samples.append(wrk.run(server.port, wrk.Load(CONNECTIONS), seconds, folder))
            except ServerFailed as error:
                row.missing = str(error).splitlines()[0]
    for row in rows:
        if row.samples:
            row.rate = medians(row.samples)["rate"]


@contextmanager
def serving(language: Language, folder: Path, children: int) -> Iterator[Server]:
    """A server with so many children of the language's example."""
    program = found(language)
    assert program is not None
    port = free_port()
    command = [
        *(sys.executable, "-m", "poolparty.cli", "--listen-address", f"127.0.0.1:{port}"),
        *("--ctl-socket", str(folder / "sock"), "--log-level", "warning"),
        *("--min-pool-size", str(children), "--max-pool-size", str(children)),
        *("--", *command_of(language, program, folder)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with Server(command, port, folder, environment) as server:
        yield server


# --- the page ----------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| language | tested with | library | features | also serves | checker | requests/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        language = row.language
        cells = [
            language.name,
            row.version or row.missing,
            f"[{language.folder}](../poolparty/sdk/{language.folder}/README.md)",
            "" if row.features is None else ", ".join(("ready", *row.features)),
            language.serves,
            verdict(row),
            "" if row.rate is None else f"{row.rate:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def verdict(row: Row) -> str:
    """What the checker says, in few words."""
    if row.missing:
        return row.missing if row.version else ""
    return f"{row.broken} broken" if row.broken else "passes"


def measured_how(seconds: int, rounds: int, children: int, about: Mapping[str, str], load: float) -> str:
    """How the figures came about, in a paragraph."""
    text = (
        f"Requests/s: `/` of examples/app.EXT with {children} children and one HTTP worker, wrk with "
        f"{CONNECTIONS} "
        f"connections for {seconds} s, the median of {rounds} rounds, on {about['processor']} with "
        f"{about['cores']} cores ({about['system']}), which also ran wrk."
    )
    # What was running at the end is in part ours, a server and wrk: 2 and more besides are somebody else's.
    return text + (" The machine was busy with other things: trust them little." if load > 4 else "")


def configurations() -> str:
    """Links to the ready configurations."""
    names = sorted(path.stem for path in CONFIGURATIONS.glob("*.py"))
    return textwrap.fill(
        ", ".join(f"[{name}](../conf/languages/{name}.py)" for name in names),
        110,
        break_on_hyphens=False,
        break_long_words=False,
    )


def page(rows: Sequence[Row], how: str) -> str:
    """docs/languages.md"""
    return f"""# Languages

<!-- Made by `python -m benchmarks.languages --write`; what is written here by hand is lost. -->

A program in any of these languages becomes a web application by a few lines and a command; there is nothing
to install but the interpreter. The server's environment leads each to its library; `poolparty-ctl sdk` tells
where the files are and copies them. The same small application in each is examples/app.EXT; what a library
offers is in its README.

{table(rows)}
{how or "Requests/s are filled in by the command above, on a machine that does nothing else."}

To begin with, a configuration with what the users of a language need, which serves the example from this
checkout (`poolparty -c conf/languages/ruby.py`); copy it to your application's folder as poolparty.conf.py:

{configurations()}

The features are described in [worker-protocol.md](worker-protocol.md).
The checker is `poolparty-ctl check`: try it on your own application. A language that is not here is a
hundred lines away: [writing-a-worker.md](writing-a-worker.md); an executable in any language at all can
also be a CGI script: `poolparty -- python3 -m poolparty.cgi SCRIPT`.
"""


if __name__ == "__main__":
    sys.exit(main())
