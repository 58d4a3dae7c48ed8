"""bin/install-interpreters, without its downloads."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def copy(checkout: Path, tmp_path: Path) -> Path:
    """The script in a checkout of its own, with nothing unpacked."""
    (tmp_path / "bin").mkdir()
    return Path(shutil.copy(checkout / "bin" / "install-interpreters", tmp_path / "bin"))


def run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_it_lists_the_languages_it_knows(copy: Path) -> None:
    assert {"janet", "lua", "php", "r"} <= set(run(copy, "--list").stdout.split())


def test_an_unknown_language_is_refused_before_anything_is_fetched(copy: Path) -> None:
    result = run(copy, "janet", "cobol")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("install-interpreters: unknown language 'cobol'; known are: ")
    assert not (copy.parent.parent / ".cache").exists()


def test_an_unknown_option_shows_the_usage(copy: Path) -> None:
    result = run(copy, "--frob")
    assert result.returncode == 2
    assert result.stderr.startswith("usage: bin/install-interpreters")


def test_what_runs_already_is_left_alone(copy: Path) -> None:
    program = copy.parent.parent / ".cache" / "interpreters" / "bin" / "janet"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(stat.S_IRWXU)
    result = run(copy, "janet", POOLPARTY_DEBIAN_MIRROR="http://127.0.0.1:1/debian")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"janet: {program}\n", "")
    assert program.read_text() == "#!/bin/sh\nexit 0\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder for PATH: what the script itself needs, and an apt-get that writes down what it is asked and
    makes the program `ruby`."""
    folder = tmp_path / "machine"
    folder.mkdir()
    for program in ("bash", "awk", "sort", "xargs", "dirname", "env", "rm", "id", "chmod", "echo"):
        (folder / program).symlink_to(str(shutil.which(program)))
    apt = folder / "apt-get"
    apt.write_text(
        f'#!/bin/sh\necho "$@" >>{folder}/asked\n'
        f"printf '#!/bin/sh\\n' >{folder}/ruby && chmod +x {folder}/ruby\n"
    )
    apt.chmod(stat.S_IRWXU)
    return folder


def test_packages_of_what_the_machine_lacks_are_installed_and_no_others(copy: Path, machine: Path) -> None:
    (machine / "json_pp").symlink_to("/bin/true")
    (machine / "id").unlink()
    (machine / "id").write_text("#!/bin/sh\necho 0\n")
    (machine / "id").chmod(stat.S_IRWXU)
    result = run(copy, "perl", "ruby", PATH=str(machine))
    assert (result.returncode, result.stdout) == (0, f"perl: {machine}/json_pp\nruby: {machine}/ruby\n")
    (asked,) = (machine / "asked").read_text().splitlines()
    assert asked.endswith("install -y --no-install-recommends ruby")


def test_who_is_not_root_is_told_the_packages_and_the_rest_goes_on(copy: Path, machine: Path) -> None:
    (machine / "json_pp").symlink_to("/bin/true")
    (machine / "id").unlink()
    (machine / "id").write_text("#!/bin/sh\necho 1000\n")
    (machine / "id").chmod(stat.S_IRWXU)
    result = run(copy, "tcl", "perl", PATH=str(machine))
    assert (result.returncode, result.stdout) == (1, f"perl: {machine}/json_pp\n")
    assert result.stderr == "install-interpreters: tcl needs: apt-get install tcl\n"
    assert not (machine / "asked").exists()


def test_the_interpreter_is_the_process_itself(janet: str) -> None:
    """No shell stays between the server and its child: signals and the exit status are the interpreter's."""
    program = '(print "up") (flush) (file/read stdin :all)'
    process = subprocess.Popen([janet, "-e", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert _children(process.pid) == []
        process.terminate()
        assert process.wait(20) == -15
    finally:
        process.kill()
        process.communicate()


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
