"""The table of languages, as text."""

from __future__ import annotations

from pathlib import Path

from benchmarks.languages import LANGUAGES, Row, measured_how, page, table
from poolparty.sdk_files import languages

ABOUT = {"processor": "P", "cores": "2", "system": "S"}


def row_of(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_library_is_in_the_table_and_has_its_example(checkout: Path) -> None:
    assert {language.folder for language in LANGUAGES} == set(languages())
    for language in LANGUAGES:
        assert (checkout / "examples" / f"app.{language.suffix}").is_file(), language.name
        assert (checkout / "poolparty" / "sdk" / language.folder / "README.md").is_file(), language.name


def test_the_page_is_of_this_table(checkout: Path) -> None:
    """Made again after a language was added."""
    written = (checkout / "docs" / "languages.md").read_text()
    for language in LANGUAGES:
        assert row_of(written, language.name)[4] == language.serves


def test_a_row_says_what_was_found() -> None:
    row = Row(LANGUAGES[0], "1.40.1", ("health-reply",), kept=21, rate=12345.6)
    assert row_of(table([row]), "Janet") == [
        *(
            "Janet",
            "1.40.1",
            "[janet](../poolparty/sdk/janet/README.md)",
            "ready, health-reply",
            "",
            "passes",
        ),
        "12,346",
    ]


def test_what_is_broken_or_missing_is_said() -> None:
    broken = table([Row(LANGUAGES[0], "1.0", (), kept=1, broken=2)])
    assert row_of(broken, "Janet")[5] == "2 broken"
    missing = table([Row(LANGUAGES[0], missing="not on this machine")])
    assert row_of(missing, "Janet")[1] == "not on this machine"


def test_figures_that_were_not_taken_are_not_claimed() -> None:
    text = page([Row(LANGUAGES[0], "1.0", ())], "")
    assert "are filled in by the command above" in text
    assert row_of(text, "Janet")[-1] == ""


def test_a_busy_machine_is_mentioned() -> None:
    assert "busy" in measured_how(5, 3, 2, ABOUT, 9.0)
    assert "busy" not in measured_how(5, 3, 2, ABOUT, 1.5)
