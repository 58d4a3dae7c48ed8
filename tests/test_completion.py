"""Completion in the shells themselves, of what `poolparty-ctl completion` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poolparty.completion import SHELLS, main, script
from poolparty.settings import OPTIONS

CASES = [
    (["poolparty", "--min-p"], {"--min-pool-size"}),
    (["poolparty", "--log-level", "d"], {"debug"}),
    (["poolparty", "--chdir", "fol"], {"folder/"}),
    (["poolparty", "--config", "ser"], {"service.py"}),
    (["poolparty", "--max-pool-size", "2", "--", "sh", "ser"], {"service.py"}),
    (["poolparty", "--thr"], set()),
    (["poolparty-ctl", "spa"], {"spawn-workers"}),
    (["poolparty-ctl", "stats", "-"], {"--json"}),
    (["poolparty-ctl", "top", "--sort", "m"], {"memory"}),
    (["poolparty-ctl", "completion", ""], {"bash", "zsh", "fish"}),
    (["poolparty-ctl", "--ctl-socket", "there", "drain", "47"], {"4711", "4712"}),
    (["poolparty-ctl", "--ctl-socket", "there", "spawn-workers", "2", "ap"], {"api"}),
    (["poolparty-ctl", "--ctl-socket", "there", "spawn-workers", "de"], set()),
    (["poolparty-ctl", "--ctl-socket", "there", "restart-workers", "de"], {"default"}),
    (["poolparty-ctl", "--ctl-socket", "elsewhere", "restart-workers", "de"], set()),
    (["poolparty-ctl", "check", "--ec"], {"--echo"}),
    (["poolparty-compress", "--no"], {"--no-brotli"}),
    (["poolparty-compress", "fol"], {"folder/"}),
]
"""Words with the cursor behind the last, and what that may become."""

CTL = """#!/bin/sh
case "$*" in
"--ctl-socket there ps")
    echo "PID   ROLE     POOL     STATE"
    echo "4710  arbiter  -        -"
    echo "4711  worker   default  idle"
    echo "4712  worker   api      busy" ;;
"--ctl-socket there stats")
    echo "workers=2"
    echo "pool name=default workers=1 idle=1"
    echo "pool name=api workers=1 idle=0"
    echo "worker pid=4711 pool=default state=idle" ;;
*) exit 1 ;;
esac
"""
"""In place of poolparty-ctl: a server with two pools, each with a worker."""


def shell(name: str, large: bool) -> str:
    found = shutil.which(name)
    if found is None:
        reason = f"no {name}: `bin/install-interpreters shells` installs it"
        if os.environ.get("CI") and (not large or os.environ.get("POOLPARTY_TEST_ALL")):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with something to complete, and the commands on a PATH."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "service.py").touch()
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("poolparty", "poolparty-ctl", "poolparty-compress"):
        (commands / name).write_text(CTL if name == "poolparty-ctl" else "#!/bin/sh\n")
        (commands / name).chmod(0o755)
    for name in SHELLS:
        (tmp_path / f"completion.{name}").write_text(script(name))
    return tmp_path


def run(folder: Path, *words: str) -> str:
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "dumb"}
    done = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


BASH = """
source ./completion.bash
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
complete_by=$(complete -p "$1") || exit
complete_by=${complete_by#*-F }
"${complete_by%% *}" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_bash(folder: Path, words: list[str], expected: set[str]) -> None:
    bash = shell("bash", large=False)
    found = run(folder, bash, "--norc", "-c", BASH, "bash", *words).split()
    assert set(found) == {word.rstrip("/") for word in expected}


def test_bash_completes_a_value_behind_an_equals_sign(folder: Path) -> None:
    bash = shell("bash", large=False)
    # As readline cuts the line.
    for words in (["--log-level", "=", "d"], ["-w", "2", "--log-level", "=", "d"]):
        assert run(folder, bash, "--norc", "-c", BASH, "bash", "poolparty", *words).split() == ["debug"]
    words = ["poolparty", "--log-level", "="]
    assert "debug" in run(folder, bash, "--norc", "-c", BASH, "bash", *words).split()


FISH = """
source ./completion.fish
for line in $argv
    complete -C $line | string replace -r '\\t.*' ''
    echo .
end
"""


def test_fish(folder: Path) -> None:
    fish = shell("fish", large=True)
    lines = [" ".join(words) for words, _ in CASES]
    found = run(folder, fish, "--no-config", "-c", FISH, *lines).split(".\n")
    for line, (_, expected), offered in zip(lines, CASES, found, strict=False):
        offers = {word for word in offered.split("\n") if word.startswith(line.rpartition(" ")[2]) and word}
        assert expected <= offers, line
        if not expected:
            assert offers == set(), line
    described = run(
        folder, fish, "--no-config", "-c", "source ./completion.fish; complete -C 'poolparty --min-p'"
    )
    assert described == "--min-pool-size\tChildren that are kept however little there is to do\n"


ZSH = """
zmodload zsh/zpty
zpty terminal zsh -f -i
zpty -w terminal 'PS1=; stty -echo cols 200 rows 500; autoload -Uz compinit; compinit -u -D
unsetopt zle_bracketed_paste; bindkey "^X" list-choices; source ./completion.zsh
zle-line-init() { print -n READ""Y }; zle -N zle-line-init'
zpty -r -m terminal out '*READY*'
for line; do
    zpty -w -n terminal "$line"$'\\x18\\x05\\x15print DON""E\\n'
    # Not before the editor has the terminal again: until then ^U would be the terminal's own.
    zpty -r -m terminal out '*DONE*READY*'
    print -r -- "$out"$'\\x01'
done
zpty -d terminal
"""


def test_zsh(folder: Path) -> None:
    zsh = shell("zsh", large=True)
    # Where one word fits zsh lists it too; a list is what follows the line that was typed.
    lines = [" ".join(words) for words, _ in CASES]
    shown = run(folder, zsh, "-f", "-c", ZSH, "zsh", *lines).split("\x01")
    for line, (words, expected), screen in zip(lines, CASES, shown, strict=False):
        for word in expected:
            # zsh underlines and repeats: the slash of a directory may stand apart.
            assert word.rstrip("/") in screen.replace(line, "", 1), line
        if not expected:
            assert words[-1] not in screen.replace(line, "", 1).partition("\x1b[J")[2].replace(line, ""), line


def test_every_option_is_in_every_script() -> None:
    for name in SHELLS:
        text = script(name)
        for option in OPTIONS:
            shown = (option.flag[2:] if name == "fish" else option.flag) in text
            assert shown or option.in_file_only  # whose name is a word of its own text elsewhere


@pytest.mark.parametrize("name", list(SHELLS))
def test_a_script_is_well_formed(folder: Path, name: str) -> None:
    path = shell(name, large=name != "bash")
    assert run(folder, path, "-n", f"completion.{name}") == ""


def test_poolparty_ctl_prints_it_and_says_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "poolparty.ctl", "completion", "bash"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == script("bash")
    for words in ([], ["csh"], ["bash", "zsh"]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("usage: poolparty-ctl completion bash|zsh|fish\n")
