"""Results to tables, to docs/performance.md and its chart. Pure but for `write`.

Results are plain data, as --json stores them:

    {"command", "date", "rounds", "seconds", "load", "machine": {…}, "versions": {…},
     "cases": {NAME: {"samples": {LABEL: [sample, …]},
               "skipped": {LABEL: reason}, "complaints": {LABEL: [line, …]}}}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import chart, figures
from benchmarks.cases import CASES, Case
from benchmarks.figures import Table
from benchmarks.machine import BUSY as BUSY_LOAD

BUSY = " **The machine was not idle when it began (load {:.1f}): the figures are low and uneven.**"

NOTES = """\
What is compared:

- **C relay** is a C program of 70 lines that does the least work possible with the same system calls: no
  checks, no time limits, no HTTP beyond the test. It is the limit for one process that hands requests to
  children, one at a time.
- **the original** is andrewchambers/poolparty, in Go, with its own Janet library, partly in C.
- **uvicorn** and **gunicorn asgi** run the application inside the server's process: no child, no pipe, no
  isolation, so they are an upper bound of another kind and not a replacement.
- Every server has as many processes (or threads, where one process has several) as Poolparty has children,
  and its access log is off. Poolparty runs with the defaults of its options: every limit, time-out and
  counter is on. In a case with few children Poolparty's HTTP worker is one more process that uses a core; so
  is the load.

How: each round starts every server afresh, one after the other, so that a change of the machine's speed in
the course of the run meets all of them alike. Figures are medians over the rounds, ± is half the distance
between the slowest and the fastest round, a ratio is the median of each round's ratio. Errors are added up
over the rounds. CPU/request is what all processes of a server, children included, used. The load generator
runs on the same machine.
"""


def case_table(case: Case, result: Mapping[str, Any]) -> Table:
    """One row a contestant: its figures, its ratios, its errors."""
    samples: Mapping[str, Sequence[figures.Sample]] = result["samples"]
    main = case.columns[0]
    head = ["", *(_title(main), "±"), *case.compared_with, *map(_title, case.columns[1:]), "errors"]
    rows = []
    for label, taken in samples.items():
        found = figures.medians(taken)
        row = [label, figures.number(found.get(main.key)), f"{figures.spread(taken, main.key):.0%}"]
        for reference in case.compared_with.values():
            value = figures.paired_ratio(taken, samples.get(reference, ()), main.key)
            row.append(figures.number(value))
        row += [figures.number(found.get(column.key)) for column in case.columns[1:]]
        rows.append([*row, figures.errors(found)])
    return Table(head, rows)


def _title(column: Any) -> str:
    return f"{column.title}, {column.unit}" if column.unit else str(column.title)


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What was left out, and what servers complained of."""
    found = [f"{label}: not measured, {_first_line(reason)}" for label, reason in result["skipped"].items()]
    for label, lines in result["complaints"].items():
        found.append(f"{label}: {len(lines)} complaints, the first: {_first_line(lines[0])[:200]}")
    return found


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def picture(results: Mapping[str, Any]) -> str:
    panels = []
    for case in CASES:
        if not case.charted or case.name not in results["cases"]:
            continue
        column = case.columns[0]
        bars = []
        for label, taken in results["cases"][case.name]["samples"].items():
            value = figures.medians(taken).get(column.key)
            if value is not None:
                bars.append(chart.Bar(label, value, figures.number(value), label.startswith("Poolparty")))
        bars.sort(key=lambda bar: -bar.value)
        panels.append(chart.Panel(f"{case.title} ({_title(column)})", bars))
    return chart.draw(panels, "Requests a second, Poolparty beside other servers")


def page(results: Mapping[str, Any]) -> str:
    machine, versions = results["machine"], results["versions"]
    lines = [
        "# Performance",
        "",
        "Made by this command, which measures everything again (`--install-peers` installs the others):",
        "",
        f"    {results['command']}",
        "",
        f"on {results['date']}: {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory']} memory, "
        f"{machine['system']}, Linux {machine['kernel']}. "
        f"{results['rounds']} rounds of {results['seconds']:g} s. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
        + (BUSY.format(results["load"]) if results["load"] > BUSY_LOAD else ""),
        "",
        "![Requests a second, Poolparty beside other servers](performance.svg)",
        "",
        NOTES,
    ]
    for case in CASES:
        result = results["cases"].get(case.name)
        if result is None:
            continue
        lines += [f"## {case.title}", "", case.about, "", case_table(case, result).markdown()]
        notes = remarks(result)
        if notes:
            lines += [*(f"- {note}" for note in notes), ""]
    return "\n".join(lines).rstrip() + "\n"


def write(results: Mapping[str, Any], docs: Path) -> None:
    (docs / "performance.md").write_text(page(results))
    (docs / "performance.svg").write_text(picture(results))
