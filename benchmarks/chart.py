"""Bar charts as SVG, readable on a light and on a dark page. Pure: figures in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 760
LABEL_WIDTH = 190
VALUE_WIDTH = 100
BAR = 16
GAP = 6
TITLE = 34
MARGIN = 16

STYLE = """\
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .title { font-weight: 600; font-size: 14px; }
  .label { text-anchor: end; }
  .bar { fill: #8c959f; }
  .ours { fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .bar { fill: #6e7681; }
    .ours { fill: #4493f8; }
  }
"""


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    text: str
    ours: bool = False


@dataclass(frozen=True)
class Panel:
    """Bars of one unit, the longest as wide as there is room."""

    title: str
    bars: Sequence[Bar]


def height_of(panel: Panel) -> int:
    return TITLE + len(panel.bars) * (BAR + GAP) + MARGIN


def draw(panels: Sequence[Panel], title: str) -> str:
    """One picture, the panels below each other. `title` is what a screen reader says."""
    height = MARGIN + sum(map(height_of, panels))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" role="img" aria-label={_attribute(title)}>',
        f"<title>{escape(title)}</title>",
        f"<style>\n{STYLE}</style>",
    ]
    top = MARGIN
    for panel in panels:
        lines += _panel(panel, top)
        top += height_of(panel)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(panel: Panel, top: int) -> list[str]:
    longest = max((bar.value for bar in panel.bars), default=0.0)
    room = WIDTH - LABEL_WIDTH - VALUE_WIDTH - MARGIN
    lines = [f'<text class="title" x="{MARGIN}" y="{top + 16}">{escape(panel.title)}</text>']
    for at, bar in enumerate(panel.bars):
        y = top + TITLE - 6 + at * (BAR + GAP)
        width = max(1.0, room * bar.value / longest) if longest > 0 else 1.0
        middle = y + BAR - 4
        lines.append(f'<text class="label" x="{LABEL_WIDTH - 8}" y="{middle}">{escape(bar.label)}</text>')
        name = "bar ours" if bar.ours else "bar"
        lines.append(
            f'<rect class="{name}" x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
        )
        lines.append(f'<text x="{LABEL_WIDTH + width + 6:.1f}" y="{middle}">{escape(bar.text)}</text>')
    return lines


def _attribute(text: str) -> str:
    return '"' + escape(text, {'"': "&quot;"}) + '"'
