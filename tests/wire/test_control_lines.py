"""The control socket's language: lines, words, numbers and errors."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolparty.errors import ControlError
from poolparty.wire.control import (
    COMMANDS,
    MAX_COMMAND,
    MAX_MESSAGE,
    UNKNOWN_COMMAND,
    CommandReader,
    error_line,
    join,
    parse_int,
    split,
)


def read(*pieces: bytes) -> list[str]:
    """The commands that come out when the pieces arrive one after another and the connection ends."""
    reader = CommandReader()
    commands = []
    for piece in (*pieces, b""):
        reader.feed(piece)
        while (command := reader.next()) is not None:
            commands.append(command)
    return commands


# --- lines

LINES = [
    (b"stats\n", ["stats"]),
    (b"stats", ["stats"]),
    (b"stats\r\n", ["stats"]),
    (b"stats\r", ["stats"]),
    (b"\n\n\r\nstats\n\n", ["stats"]),
    (b"a\nb\n", ["a", "b"]),
    (b"a\\\nb\n", ["a\nb"]),
    (b"a\\\r\nb\n", ["a\nb"]),
    (b"a\\\\\nb\n", ["a\\\nb"]),
    (b"a\\\n\nb\n", ["a\n", "b"]),
    (b"\\\n\n", ["\n"]),
    (b" \n", [" "]),
    (b"a\\\n", []),  # the end comes in the middle of a command
    (b"a\\", []),
    (b"\xff\n", ["\ufffd"]),
    (b"", []),
]


@pytest.mark.parametrize(("data", "commands"), LINES)
def test_lines_become_commands_however_they_arrive(data: bytes, commands: list[str]) -> None:
    assert read(data) == commands
    assert read(*(bytes([byte]) for byte in data)) == commands


@given(st.lists(st.binary(min_size=1)), st.sampled_from([b"", b"\n"]))
def test_how_the_bytes_are_cut_makes_no_difference(pieces: list[bytes], end: bytes) -> None:
    assert read(*pieces, *([end] if end else [])) == read(b"".join(pieces) + end)


@pytest.mark.parametrize("length", [MAX_COMMAND - 1, MAX_COMMAND])
def test_a_command_of_the_largest_size_is_read(length: int) -> None:
    assert read(b"x" * length + b"\n") == ["x" * length]


@pytest.mark.parametrize(
    "data",
    [
        b"x" * (MAX_COMMAND + 1) + b"\n",
        b"x" * (MAX_COMMAND + 1),
        (b"x" * 1023 + b"\\\n") * 65,
        b"ok\n" + b"x" * (MAX_COMMAND + 1),
    ],
)
def test_a_longer_one_is_an_error_before_its_end_is_seen(data: bytes) -> None:
    reader = CommandReader()
    with pytest.raises(ControlError, match="a command has at most 65536 bytes"):
        for start in range(0, len(data), 1000):
            reader.feed(data[start : start + 1000])
            while reader.next() is not None:
                pass


# --- words

WORDS = [
    ("", []),
    ("   ", []),
    ("a b", ["a", "b"]),
    (" a\t\n\v\f\rb ", ["a", "b"]),
    ("a\x85b\xa0c\u2003d\u3000e", ["a", "b", "c", "d", "e"]),
    ("a\x1cb", ["a\x1cb"]),
    ("''", []),
    ("'' a \"\"", ["a"]),
    ("a'b c'd", ["ab cd"]),
    ("'a\\'", ["a\\"]),
    ("a\\ b", ["a b"]),
    ('"a\\b"', ["a\\b"]),
    ('"a\\"b\\\\"', ['a"b\\']),
    ("'a\nb'", ["a\nb"]),
    ("a # b", ["a", "#", "b"]),
    ("a;b|c&d(e)", ["a;b|c&d(e)"]),
    ("é=ü", ["é=ü"]),
]


@pytest.mark.parametrize(("text", "words"), WORDS)
def test_words_are_split_as_the_original_splits_them(text: str, words: list[str]) -> None:
    assert split(text) == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("'a", "No closing quotation"),
        ('a "b', "No closing quotation"),
        ("a\\", "No escaped character"),
        ('"a\\', "No escaped character"),
    ],
)
def test_an_open_quotation_is_an_error_in_the_words_of_the_original(text: str, message: str) -> None:
    with pytest.raises(ControlError, match=f"^{message}$"):
        split(text)


@given(st.text())
def test_splitting_gives_words_or_a_control_error(text: str) -> None:
    try:
        words = split(text)
    except ControlError:
        return
    assert all(words)


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\x1c\x1d\x1e\x1f")))
def test_on_ascii_it_splits_as_a_posix_shell_does_but_for_empty_words(text: str) -> None:
    try:
        expected = shlex.split(text.replace("\v", " ").replace("\f", " "))
    except ValueError as error:
        with pytest.raises(ControlError, match=str(error)):
            split(text)
    else:
        assert [word.split() for word in split(text)] == [word.split() for word in expected if word]


def encodable(word: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in word)


@given(st.lists(st.text(min_size=1).filter(encodable), min_size=1))
def test_words_that_are_joined_arrive_as_they_were(words: list[str]) -> None:
    (command,) = read(join(words))
    assert split(command) == words


# --- numbers, errors, the table


@pytest.mark.parametrize(
    ("word", "number"),
    [("0", 0), ("12", 12), ("+3", 3), ("-4", -4), ("007", 7), (str(2**63 - 1), 2**63 - 1)],
)
def test_whole_numbers_are_read_as_go_reads_them(word: str, number: int) -> None:
    assert parse_int(word) == number


@pytest.mark.parametrize("word", ["x", "1.5", "1_000", "0x10", "--1", "+", " 1", "1 ", "٣", "²"])
def test_what_is_no_whole_number_is_invalid_syntax(word: str) -> None:
    with pytest.raises(ControlError) as caught:
        parse_int(word)
    assert str(caught.value) == " ".join(f'strconv.ParseInt: parsing "{word}": invalid syntax'.split())


@pytest.mark.parametrize("word", [str(2**63), str(-(2**63) - 1), "9" * 10_000])
def test_a_number_beyond_64_bits_is_out_of_range(word: str) -> None:
    with pytest.raises(ControlError, match=r"value out of range$"):
        parse_int(word)


@given(st.text())
def test_an_error_is_one_bounded_line_of_printable_characters(message: str) -> None:
    line = error_line(message * 50)
    assert line.startswith("ERROR: ")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert len(line) <= 10 * (MAX_MESSAGE + 10)


def test_the_error_about_an_unknown_command_names_those_of_the_original() -> None:
    want = "restart-workers|spawn-workers|remove-workers|stats|collectd-metrics"
    ours = "ps|drain|kill|dump|log|metrics"
    assert f"unknown command, want {want}|{ours}" == UNKNOWN_COMMAND
    assert [command.name for command in COMMANDS] == [*want.split("|"), *ours.split("|"), "exit"]
