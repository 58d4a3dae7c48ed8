"""The benchmark of balancing: its configurations and its table, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.balancing import BEGIN, END, PAGE, ROWS, SITUATIONS, Ports, Row, configuration, page

PORTS = {"small": Ports(1, 2, 3), "large": Ports(4, 5, 6)}


def servers(row: Row) -> list[str]:
    text = configuration(row, 9, Path("/run/s"), PORTS)
    return [line.strip() for line in text.splitlines() if line.strip().startswith("server ")]


def test_the_ready_configuration_is_what_is_measured_but_for_what_a_row_says() -> None:
    text = configuration(Row("leastconn", sized=True, agent=True), 9, Path("/run/s"), PORTS)
    assert "bind 127.0.0.1:9\n" in text
    assert "balance leastconn\n" in text
    assert "agent-check agent-port 8082" in text
    assert servers(Row("leastconn", sized=True, agent=True)) == [
        "server small 127.0.0.1:1 port 2 weight 50 agent-port 3",
        "server large 127.0.0.1:4 port 5 weight 200 agent-port 6",
    ]
    assert servers(Row("leastconn", queue=True)) == [
        "server small 127.0.0.1:1 port 2 weight 100 maxconn 1",
        "server large 127.0.0.1:4 port 5 weight 100 maxconn 4",
    ]
    assert (
        "agent" not in configuration(Row("roundrobin"), 9, Path("/run/s"), PORTS).split("default-server")[1]
    )


def test_a_ready_configuration_that_has_changed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "haproxy.cfg"
    changed.write_text("global\n")
    monkeypatch.setattr("benchmarks.balancing.READY", changed)
    with pytest.raises(ValueError, match="has 0 places like"):
        configuration(ROWS[0], 9, Path("/run/s"), PORTS)


def test_the_table_has_medians_and_all_failures() -> None:
    samples = {
        ROWS[0]: [
            {
                f"{each.name}: {key}": value
                for each in SITUATIONS
                for key, value in (("p50", fast), ("p99", 10 * fast), ("errors", 1.0))
            }
            for fast in (20.0, 30.0, 90.0)
        ]
    }
    text = page(samples, "Made so.")
    assert f"| {ROWS[0].label} |" in text
    assert text.count("30.0 / 300") == len(SITUATIONS)
    assert text.splitlines()[3].endswith(f"{3 * len(SITUATIONS)} |")
    assert text.endswith("\nMade so.\n")


def test_the_page_has_the_place_of_the_figures() -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    assert before and END in rest
