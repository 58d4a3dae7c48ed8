"""How `top` looks: the figures, the table of processes and the last events, as rich draws them.

Cells are Text objects: rich reads marks of its own in a plain string, and what a client asked for is none.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from poolparty.top.figures import COLUMNS, Row, Sample, brief, events, headlines, long, ordered, rows, several

EVENTS = 5
"""Lines of events at most; on a low screen the processes come first."""

POOL = "POOL"
"""The heading of a column that is there where there are several pools."""

POOLS_SHARE = 3
"""The lines about each pool take one of so many lines of the screen at most."""

HEADINGS = (
    ("PID", ""),
    ("ROLE", ""),
    (POOL, ""),
    ("STATE", ""),
    ("REQUESTS", "requests"),
    ("REQ/S", ""),
    ("CPU%", "cpu"),
    ("RSS", "memory"),
    ("FDS", ""),
    ("AGE", "age"),
    ("TIME", "time"),
    ("RUNS", ""),
)
"""The columns, and what of COLUMNS each is sorted by."""

RIGHT = {"PID", "REQUESTS", "REQ/S", "CPU%", "RSS", "FDS", "AGE", "TIME"}

NARROW = {"FDS": 90, "ROLE": 80, "REQ/S": 70, "AGE": 60, POOL: 55, "STATE": 50}
"""Columns that are left out where the screen is less wide, unless rows are sorted by them."""

STYLES = {"busy": "green", "booting": "yellow", "ending": "yellow", "checking": "cyan", "draining": "yellow"}


@dataclass(slots=True)
class View:
    """What its user has chosen. lines: processes at most, None for as many as there is room for."""

    column: str = "cpu"
    upward: bool = False
    paused: bool = False
    lines: int | None = None


def page(
    before: Sample | None,
    now: Sample,
    view: View,
    size: tuple[int, int] | None = None,
    note: str = "",
    marked: bool = True,
) -> RenderableType:
    """Everything. size: columns and lines there are, None for any number. note: a last line of the screen.
    marked: the column that rows are sorted by has an arrow."""
    head = headlines(before, now, None if size is None else max(size[1] // POOLS_SHARE, 1))
    found = ordered(rows(before, now), view.column, view.upward)
    happened = events(now.snapshot, EVENTS)
    room = len(found)
    if size is not None:
        free = size[1] - len(head) - 2 - bool(note)  # an empty line and the headings
        happened = happened[max(len(happened) + 1 - max(free - len(found), 0), 0) :] if happened else []
        room = max(free - (len(happened) + 1 if happened else 0), 1)
    shown = found[: room if view.lines is None else min(room, view.lines)]
    parts: list[RenderableType] = [
        *(_one_line(line, "bold" if number == 0 else "") for number, line in enumerate(head)),
        Text(""),
        table(shown, view, marked, None if size is None else size[0], several(now.snapshot)),
    ]
    if happened:
        parts += [Text(""), *(_one_line(line) for line in happened)]
    if note:
        parts.append(_one_line(note, "reverse"))
    return Group(*parts)


def table(shown: list[Row], view: View, marked: bool, width: int | None, with_pools: bool = False) -> Table:
    """The processes, in the order given."""
    kept = [
        number
        for number, (heading, column) in enumerate(HEADINGS)
        if (width is None or width >= NARROW.get(heading, 0) or column == view.column)
        and (with_pools or heading != POOL)
    ]
    processes = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for heading, column in (HEADINGS[number] for number in kept):
        chosen = marked and column == view.column
        mark = ("↑" if view.upward else "↓") if chosen else ""
        processes.add_column(
            Text(heading + mark, style="bold reverse" if chosen else "bold"),
            justify="right" if heading in RIGHT else "left",
            no_wrap=True,
            overflow="ellipsis" if heading == "RUNS" else "crop",
            min_width=None if heading == "RUNS" else len(heading) + 1,
        )
    for row in shown:
        cells = _cells(row)
        processes.add_row(*(cells[number] for number in kept))
    return processes


def _cells(row: Row) -> list[Text]:
    return [
        Text(str(row.pid)),
        Text(row.role),
        Text(row.pool),
        Text(row.state, style=STYLES.get(row.state, "")),
        Text(_or_dash(row.requests, "{}")),
        Text(_or_dash(row.rate, "{:.1f}")),
        Text(_or_dash(row.cpu, "{:.1f}")),
        Text("-" if row.rss is None else f"{row.rss / 2**20:.1f}M"),
        Text(_or_dash(row.fds, "{}")),
        Text("-" if row.age is None else long(row.age)),
        Text("" if row.seconds is None else brief(row.seconds)),
        Text(row.runs),
    ]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _one_line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def plain(before: Sample | None, now: Sample, view: View) -> str:
    """The page as text without colours, its lines as long as they are."""
    console = Console(width=10_000, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(page(before, now, view, marked=False))
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines())


assert {column for _, column in HEADINGS if column} == set(COLUMNS)
