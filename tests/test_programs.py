"""The tables of the three commands: completion and manual pages are made of what the commands take."""

from __future__ import annotations

from poolparty import ctl
from poolparty.programs import FILE, PID, POOL, Value, compressor, control, server
from poolparty.settings import OPTIONS, REFUSED, REFUSED_AT_ODD_VALUES
from poolparty.wire.control import COMMANDS


def test_every_option_of_ours_is_there_with_its_reasons() -> None:
    flags = {name: flag for flag in server().flags for name in flag.names}
    for option in OPTIONS:
        assert (option.flag in flags) != option.in_file_only
    for option in (option for option in OPTIONS if not option.in_file_only):
        flag = flags[option.flag]
        assert (flag.value is None) == (option.meta is None)
        assert flag.text[0].startswith(" ".join(option.short.split()))
        assert len(flag.text) == option.text.count("\n\n") + 1


def test_what_the_server_refuses_is_not_offered() -> None:
    offered = {name for flag in server().flags for name in flag.names}
    assert {"--workers", "-w", "--bind", "--check-config", "--version", "--help"} <= offered
    refused = {row.name for row in REFUSED} - REFUSED_AT_ODD_VALUES
    assert "threads" in refused and "--threads" not in offered
    assert not offered & {"--" + name.replace("_", "-") for name in refused}


def test_values_are_completed_by_what_they_mean() -> None:
    values = {name: flag.value for flag in server().flags for name in flag.names}
    config, level, prefix, engine = (
        values[name] for name in ("--config", "--log-level", "--static-url-prefix", "--reload-engine")
    )
    assert config is not None and config.kind == FILE
    assert level is not None and "debug" in level.words
    assert prefix is not None and (prefix.kind, prefix.words) == ("", ())
    assert engine is not None and "poll" in engine.words
    assert values["--daemon"] is None


def test_every_command_of_poolparty_ctl_is_taken_apart() -> None:
    words = {word.command.name: word for word in control().all_words}
    assert list(words) == [each.name for each in (*COMMANDS, *ctl.WATCHING_COMMANDS, *ctl.LOCAL_COMMANDS)]
    assert words["drain"].values == (Value("PID", PID),)
    assert words["restart-workers"].values == (Value("POOL", POOL),)
    assert (
        words["spawn-workers"].values == words["remove-workers"].values == (Value("N"), Value("POOL", POOL))
    )
    assert [flag.names for flag in words["stats"].flags] == [("--json",)]
    top = {flag.names[0]: flag.value for flag in words["top"].flags}
    assert top["--once"] is None
    assert top["--sort"] is not None and "cpu" in top["--sort"].words
    assert words["completion"].values[0].words == ("bash", "zsh", "fish")
    assert [value.meta for value in words["log"].values] == ["N"]
    assert [value.meta for value in words["sdk"].values] == ["LANGUAGE"]
    assert words["check"].runs_command and not words["top"].runs_command


def test_the_arguments_of_top_are_those_that_it_takes() -> None:
    from poolparty.top.command import parser

    words = {word.command.name: word for word in control().all_words}
    taken = {name for action in parser()._actions for name in action.option_strings}
    assert {name for flag in words["top"].flags for name in flag.names} < taken


def test_poolparty_compress_takes_a_directory() -> None:
    program = compressor()
    assert [flag.names for flag in program.flags] == [("-h", "--help"), ("--no-brotli",), ("-q", "--quiet")]
    assert program.argument is not None and program.argument.kind == "directory"
