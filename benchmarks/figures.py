"""Samples to figures to tables. Pure: no clock, no process, no file.

A sample is what one round of one contestant measured: name → number. Figures are medians over the rounds,
except for errors, which are added up: a median would hide them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Sample = Mapping[str, float]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of sorted numbers; the largest for 100."""
    if not ordered:
        raise ValueError("no percentile of nothing")
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, min(len(ordered), int(rank)) - 1)]


def is_error(name: str) -> bool:
    return name == "errors" or name.endswith("_errors")


def medians(samples: Sequence[Sample]) -> dict[str, float]:
    """One figure for each name that any sample has; errors are sums."""
    names = {name: None for sample in samples for name in sample}
    figures = {}
    for name in names:
        values = [sample[name] for sample in samples if name in sample]
        figures[name] = sum(values) if is_error(name) else statistics.median(values)
    return figures


def spread(samples: Sequence[Sample], name: str) -> float:
    """Half the distance between smallest and largest, as a part of the median: 0.03 is ±3 %."""
    values = [sample[name] for sample in samples if name in sample]
    middle = statistics.median(values) if values else 0.0
    return (max(values) - min(values)) / 2 / abs(middle) if middle else 0.0


def ratio(value: float | None, reference: float | None) -> float | None:
    """None where one is missing or there is nothing to divide by."""
    return None if value is None or not reference else value / reference


def paired_ratio(samples: Sequence[Sample], references: Sequence[Sample], name: str) -> float | None:
    """The median of the ratios of each round. Rounds stand beside each other in time, so that a machine that
    slows down for a while slows both."""
    ratios = [
        found
        for sample, reference in zip(samples, references, strict=False)
        if (found := ratio(sample.get(name), reference.get(name))) is not None
    ]
    return statistics.median(ratios) if ratios else None


def number(value: float | None, unit: str = "") -> str:
    """Three or so significant digits, thousands with commas; a dash for None."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        text = f"{value:,.0f}"
    elif abs(value) >= 10:
        text = f"{value:.1f}"
    else:
        text = f"{value:.2f}"
    return f"{text} {unit}".rstrip()


_CAUSES = {
    "failed_errors": "rounds failed",
    "connect_errors": "not connected",
    "read_errors": "read",
    "write_errors": "write",
    "timeout_errors": "timed out",
    "status_errors": "bad status",
    "broken_errors": "broken off",
    "unsent_errors": "not sent",
    "unanswered_errors": "unanswered",
}


def errors(figures: Sample) -> str:
    """Every error by its cause, or 0."""
    total = figures.get("errors", 0.0)
    if not total:
        return "0"
    causes = [
        f"{count:,.0f} {_CAUSES.get(name, name.removesuffix('_errors'))}"
        for name, count in figures.items()
        if name != "errors" and is_error(name) and count
    ]
    return ", ".join(causes) or f"{total:,.0f}"


@dataclass(frozen=True)
class Table:
    """Head and rows of text. The first column is aligned to the left, the others to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        cells = [self.head, *self.rows]
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in cells]
        widths = [max(3, *(len(row[at]) for row in escaped)) for at in range(len(self.head))]

        def line(row: Sequence[str]) -> str:
            first, *others = row
            padded = [first.ljust(widths[0])]
            padded += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            return "| " + " | ".join(padded) + " |"

        rule = "| " + " | ".join(["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]) + " |"
        return "\n".join([line(escaped[0]), rule, *map(line, escaped[1:])]) + "\n"

    def text(self) -> str:
        cells = [self.head, *self.rows]
        widths = [max(len(row[at]) for row in cells) for at in range(len(self.head))]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
            ).rstrip()
            for row in cells
        )
