"""What a child finds when it starts: descriptors, group, limits, signals, environment; and that it dies with
its parent."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolparty.arbiter import children
from poolparty.arbiter.children import Recipe


def recipe(*command: str, **environment: str) -> Recipe:
    return Recipe(command, {"PATH": os.environ["PATH"], **environment}, "/", None, None, None, -1)


def run(what: Recipe, file_limit: int | None = None) -> tuple[int, str]:
    """Start it, close its stdin, wait for its end: exit code and output."""
    process = children.start(what, file_limit)
    os.set_blocking(process.output, True)
    os.close(process.stdin)
    with open(process.output, errors="surrogateescape") as output:
        text = output.read()
    os.close(process.fd3)
    if process.pidfd >= 0:
        os.close(process.pidfd)
    return process.popen.wait(), text


def test_it_has_descriptors_0_to_3_and_nothing_else() -> None:
    extra = os.pipe()
    for fd in extra:
        os.set_inheritable(fd, True)
    # No shell with a pipeline: for a moment it holds that pipe's two ends itself.
    program = (
        "import os\n"
        "for fd in range(1024):\n"
        "    path = f'/proc/self/fd/{fd}'\n"
        "    if os.path.lexists(path): print(fd, os.readlink(path))"
    )
    code, text = run(recipe(sys.executable, "-I", "-S", "-c", program))
    for fd in extra:
        os.close(fd)
    found = {int(line.split()[0]): line.split()[1] for line in text.splitlines()}
    assert code == 0
    assert sorted(found) == [0, 1, 2, 3]
    assert all(target.startswith("pipe:") for target in found.values())
    assert found[1] == found[2]


def test_its_ends_of_the_pipes_block() -> None:
    program = "import os; print([os.get_blocking(fd) for fd in range(4)])"
    assert run(recipe(sys.executable, "-c", program))[1] == "[True, True, True, True]\n"


def test_it_leads_a_process_group_of_its_own() -> None:
    _, text = run(recipe("sh", "-c", "echo $$ $(ps -o pgid= -p $$)"))
    pid, group = text.split()
    assert pid == group != str(os.getpgrp())


def test_no_signal_is_ignored_or_blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        _, text = run(recipe("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})
    assert [int(line.split()[1], 16) for line in text.splitlines()] == [0, 0]


def test_the_file_limit_is_given_back() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert run(recipe("sh", "-c", "ulimit -Sn"), 100)[1] == "100\n"
    assert run(recipe("sh", "-c", "ulimit -Sn"), None)[1] == f"{soft}\n"


@pytest.mark.parametrize(
    "environment",
    [{}, {"LC_CTYPE": "C"}, {"LC_ALL": "C"}, {"LANG": "C", "PYTHONHOME": "/nowhere", "X": "a b\nc"}],
)
def test_its_environment_is_the_recipes(environment: dict[str, str]) -> None:
    _, text = run(
        recipe(sys.executable, "-I", "-S", "-c", "print(open('/proc/self/environ').read())", **environment)
    )
    found = dict(pair.split("=", 1) for pair in text.rstrip("\n").rstrip("\0").split("\0"))
    assert found == {"PATH": os.environ["PATH"], **environment}


def test_bytes_that_are_no_text_pass_through() -> None:
    word = os.fsdecode(b"\xff\xfe")
    _, text = run(recipe("printf", "%s", word, X=word))
    assert os.fsencode(text) == b"\xff\xfe"


def test_the_umask_and_the_directory_are_the_recipes(tmp_path: Path) -> None:
    what = Recipe(("sh", "-c", "umask; pwd"), dict(os.environ), str(tmp_path), None, None, None, 0o027)
    assert run(what)[1] == f"0027\n{tmp_path}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change to another user")
def test_another_user_gets_none_of_roots_groups() -> None:
    what = Recipe(("id",), dict(os.environ), "/", 65534, 65534, (65534,), -1)
    code, text = run(what)
    assert code == 0 and "uid=65534" in text and "gid=65534" in text and "root" not in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change to another user")
def test_another_user_can_open_its_pipes_by_name() -> None:
    """Janet opens /dev/fd/3, shell scripts /dev/stderr: that needs the rights on the pipe itself."""
    command = "exec 4>/dev/fd/3 5</dev/fd/0; echo fine >/dev/stderr"
    what = dataclasses.replace(recipe("sh", "-c", command), user=65534, group=65534, groups=(65534,))
    assert run(what) == (0, "fine\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change to another user")
def test_another_user_keeps_the_parent_death_signal() -> None:
    program = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
    what = Recipe(("/usr/bin/python3", "-c", program), dict(os.environ), "/", 65534, 65534, (65534,), -1)
    assert run(what) == (0, "9\n")


@pytest.mark.parametrize(
    ("content", "mode", "status", "why"),
    [
        (None, 0, 127, "no such file or directory"),
        ("#!/no/such/interpreter\n", 0o755, 127, "the interpreter that its first line names does not exist"),
        ("#!/bin/sh\n", 0o644, 126, "permission denied"),
        ("echo no first line\n", 0o755, 126, "it is no program"),
    ],
    ids=["missing", "no interpreter", "not executable", "no shebang"],
)
def test_a_program_that_cannot_run_is_a_sentence(
    tmp_path: Path, content: str | None, mode: int, status: int, why: str
) -> None:
    path = tmp_path / "app"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    code, text = run(recipe(str(path)))
    assert code == status
    assert text.startswith(f"cannot run {path}: {why}") and text.count("\n") == 1


def test_a_name_that_is_not_on_the_path_is_a_sentence() -> None:
    assert run(recipe("no-such-program")) == (127, "cannot run no-such-program: it is not on the PATH\n")


def test_a_start_that_fails_leaves_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    what = Recipe(("true",), {}, str(tmp_path / "missing"), None, None, None, -1)
    with pytest.raises(FileNotFoundError, match="missing"):
        children.start(what, None)
    assert os.listdir("/proc/self/fd") == before


def test_it_dies_with_its_parent(wait_for: Callable[..., Any], lives: Callable[[int], bool]) -> None:
    program = (
        "import sys, time; from poolparty.arbiter import children\n"
        "command = ('sh', '-c', 'echo $$ >&2; while :; do :; done')\n"
        "what = children.Recipe(command, {'PATH': sys.argv[1]}, '/', None, None, None, -1)\n"
        "process = children.start(what, None)\n"
        "import os; os.set_blocking(process.output, True)\n"
        "print(os.read(process.output, 100).decode(), flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, os.environ["PATH"]],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(children.__file__).parents[2])},
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        assert lives(child)
        parent.kill()
        parent.wait()
        wait_for(lambda: not lives(child), deadline=5.0)


def test_one_whose_parent_has_gone_already_does_not_start() -> None:
    reading, writing = os.pipe()
    finished = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            children.LAUNCHER,
            str(writing),
            "1",
            "-",
            "-",
            "-",
            "-",
            "-",
            "--",
            "echo",
            "started",
        ],
        pass_fds=(writing,),
        stdout=subprocess.PIPE,
    )
    os.close(reading)
    os.close(writing)
    assert finished.stdout == b"" and finished.returncode == 128 + signal.SIGKILL


def test_it_imports_nothing_heavy() -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    words = (str(descriptor), str(os.getpid()), "10", "-", "-", "-", "-", "--", "true")
    finished = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", children.LAUNCHER, *words],
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        pass_fds=(descriptor,),
    )
    os.close(descriptor)
    found = {line.rsplit("|")[-1].strip() for line in finished.stderr.splitlines()}
    own = found - {line.rsplit("|")[-1].strip() for line in _imports_of("import os").splitlines()}
    assert own == {"_ctypes", "errno", "resource"}, "each start of a child pays for it"


def _imports_of(program: str) -> str:
    command = [sys.executable, "-I", "-S", "-X", "importtime", "-c", program]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr


def test_starting_a_child_does_not_hold_up_the_arbiter() -> None:
    began = time.monotonic()
    process = children.start(recipe("sleep", "60"), None)
    took = time.monotonic() - began
    os.killpg(process.popen.pid, signal.SIGKILL)
    process.popen.wait()
    for fd in (process.stdin, process.fd3, process.output, process.pidfd):
        os.close(fd)
    assert took < 0.5
