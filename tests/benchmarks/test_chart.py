"""The chart is well-formed, in scale, and readable on both kinds of page."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

from benchmarks import chart
from benchmarks.chart import Bar, Panel

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*panels: Panel) -> ElementTree.Element:
    return ElementTree.fromstring(chart.draw(panels, 'A "title" & more'))


def bars_of(picture: ElementTree.Element) -> list[ElementTree.Element]:
    return picture.findall(f"{SVG}rect")


def test_bars_are_as_long_as_their_values() -> None:
    picture = drawn(Panel("p", [Bar("a", 100, "100"), Bar("b", 50, "50")]))
    first, second = (float(bar.attrib["width"]) for bar in bars_of(picture))
    assert first == 2 * second


def test_each_panel_has_a_scale_of_its_own() -> None:
    picture = drawn(Panel("p", [Bar("a", 100, "100")]), Panel("q", [Bar("a", 3, "3")]))
    first, second = (bar.attrib["width"] for bar in bars_of(picture))
    assert first == second


def test_everything_stands_within_the_picture() -> None:
    panels = [Panel(f"panel {n}", [Bar(f"bar {m}", m, "9,999,999") for m in range(12)]) for n in range(3)]
    picture = drawn(*panels)
    height, width = float(picture.attrib["height"]), float(picture.attrib["width"])
    for bar in bars_of(picture):
        assert float(bar.attrib["y"]) + float(bar.attrib["height"]) < height
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) < width - 80
    assert len(bars_of(picture)) == 36


def test_bars_do_not_overlap() -> None:
    picture = drawn(Panel("p", [Bar(str(n), n, str(n)) for n in range(5)]), Panel("q", [Bar("a", 1, "1")]))
    edges = [(float(bar.attrib["y"]), float(bar.attrib["height"])) for bar in bars_of(picture)]
    assert all(y + height < following for (y, height), (following, _) in itertools.pairwise(edges))


def test_texts_are_escaped() -> None:
    picture = drawn(Panel("a < b", [Bar("x & y", 1, "<1>")]))
    texts = [text.text for text in picture.findall(f"{SVG}text")]
    assert texts == ["a < b", "x & y", "<1>"]
    assert picture.attrib["aria-label"] == 'A "title" & more'


def test_ours_is_told_apart_and_a_dark_page_has_colours_of_its_own() -> None:
    picture = drawn(Panel("p", [Bar("ours", 1, "1", ours=True), Bar("theirs", 1, "1")]))
    assert [bar.attrib["class"] for bar in bars_of(picture)] == ["bar ours", "bar"]
    style = picture.find(f"{SVG}style")
    assert style is not None
    assert "prefers-color-scheme: dark" in (style.text or "")


def test_a_panel_of_nothing_but_zeros_is_drawn() -> None:
    picture = drawn(Panel("p", [Bar("a", 0, "0")]))
    assert [bar.attrib["width"] for bar in bars_of(picture)] == ["1.0"]
