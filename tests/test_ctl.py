"""poolparty-ctl as a process, against servers that follow a script."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolparty import __version__
from poolparty.wire.control import COMMANDS

DEADLINE = 20.0


def start(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parent.parent)
    environment = {name: value for name, value in os.environ.items() if name != "POOLPARTY_CTL_SOCKET"}
    environment |= {"PYTHONPATH": root, "PYTHONWARNINGS": "error"} | (env or {})
    return subprocess.Popen(
        [sys.executable, "-m", "poolparty.ctl", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment,
    )


def ctl(*arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    with start(*arguments, cwd=cwd, env=env) as process:
        output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output.decode(), errors.decode()


class Script:
    """A server that notes what its one client says until that is all, then answers with fixed bytes."""

    def __init__(self, path: Path, answer: bytes, hold: bool = False) -> None:
        self.received = b""
        self._answer, self._hold = answer, hold
        self._release = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(DEADLINE)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            with client:
                client.settimeout(DEADLINE)
                while data := client.recv(65536):
                    self.received += data
                client.sendall(self._answer)
                if self._hold:
                    self._release.wait(DEADLINE)

    def close(self) -> None:
        self._release.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._listener.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "poolparty.sock"


@pytest.fixture
def serve(path: Path) -> Iterator[Callable[..., Script]]:
    scripts: list[Script] = []

    def serve(answer: bytes, hold: bool = False) -> Script:
        scripts.append(Script(path, answer, hold))
        return scripts[-1]

    yield serve
    for script in scripts:
        script.close()


def test_output_goes_to_stdout_without_the_ok(serve: Callable[..., Script], path: Path) -> None:
    script = serve(b"workers=2\nworker-restarts=0\nOK\n")
    assert ctl("--ctl-socket", str(path), "stats") == (0, "workers=2\nworker-restarts=0\n", "")
    assert script.received == b"stats\n"


def test_an_error_goes_to_stderr_with_status_1(serve: Callable[..., Script], path: Path) -> None:
    serve(b"usage: so\nERROR: unexpected arguments\n")
    assert ctl(f"--ctl-socket={path}", "stats", "extra") == (
        1,
        "usage: so\n",
        "poolparty-ctl: unexpected arguments\n",
    )


def test_words_reach_the_server_quoted(serve: Callable[..., Script], path: Path) -> None:
    script = serve(b"OK\n")
    assert ctl("--ctl-socket", str(path), "collectd-metrics", "5", "it's\na \\label")[0] == 0
    assert script.received == b"collectd-metrics 5 'it'\"'\"'s\\\na \\label'\n"


def test_options_of_a_command_are_passed_on(serve: Callable[..., Script], path: Path) -> None:
    script = serve(b"{}\nOK\n")
    assert ctl("stats", "--json", "--ctl-socket", str(path)) == (0, "{}\n", "")
    assert script.received == b"stats --json\n"


def test_a_negative_number_is_an_argument_not_an_option(serve: Callable[..., Script], path: Path) -> None:
    script = serve(b"OK\n")
    assert ctl("--ctl-socket", str(path), "spawn-workers", "-1") == (0, "", "")
    assert script.received == b"spawn-workers -1\n"


def test_the_socket_of_the_working_directory_is_the_default(serve: Callable[..., Script], path: Path) -> None:
    serve(b"OK\n")
    assert ctl("restart-workers", cwd=path.parent) == (0, "", "")


def test_the_environment_names_the_socket_and_the_option_wins(
    serve: Callable[..., Script], path: Path
) -> None:
    serve(b"OK\n")
    assert ctl("restart-workers", env={"POOLPARTY_CTL_SOCKET": str(path)})[0] == 0
    code, _, errors = ctl("--ctl-socket", "/nowhere", "stats", env={"POOLPARTY_CTL_SOCKET": str(path)})
    assert code == 1
    assert "/nowhere" in errors


def test_exit_is_ok_when_the_server_hangs_up(serve: Callable[..., Script], path: Path) -> None:
    serve(b"")
    assert ctl("--ctl-socket", str(path), "exit") == (0, "", "")


def test_a_server_that_hangs_up_without_an_answer_is_an_error(
    serve: Callable[..., Script], path: Path
) -> None:
    serve(b"workers=2\n")
    code, output, errors = ctl("--ctl-socket", str(path), "stats")
    assert (code, output) == (1, "workers=2\n")
    assert "closed the connection before it had answered" in errors


# --- nobody there


def test_without_a_server_the_sentence_names_the_path_and_what_to_do(tmp_path: Path) -> None:
    code, output, errors = ctl("stats", cwd=tmp_path)
    assert (code, output) == (1, "")
    assert errors == (
        "poolparty-ctl: no server has its control socket at ./poolparty.sock; start one there, or name the"
        " server's socket with --ctl-socket PATH or $POOLPARTY_CTL_SOCKET\n"
    )


def test_a_socket_left_by_a_crash_is_called_that(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    code, _, errors = ctl("--ctl-socket", str(path), "stats")
    assert code == 1
    assert f"nobody answers at {path}: its server has ended" in errors


@pytest.mark.parametrize("place", ["x" * 200, "/dev/null", "/dev/null/x"])
def test_what_cannot_be_a_socket_is_one_sentence(place: str, tmp_path: Path) -> None:
    code, output, errors = ctl("--ctl-socket", place, "stats", cwd=tmp_path)
    assert (code, output) == (1, "")
    assert errors.count("\n") == 1
    assert place in errors


# --- usage


def test_help_lists_every_command_of_the_table() -> None:
    code, output, errors = ctl("--help")
    assert (code, errors) == (0, "")
    for command in COMMANDS:
        assert f"  {command.name} {command.arguments}".rstrip() in output
        assert command.help in output


def test_version_is_the_packages() -> None:
    assert ctl("--version") == (0, f"poolparty-ctl {__version__}\n", "")


def test_without_a_command_help_is_shown_with_status_2() -> None:
    code, output, errors = ctl()
    assert (code, output) == (2, "")
    assert errors == ctl("--help")[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--bogus"], "there is no option --bogus"),
        (["--ctl-socket"], "--ctl-socket wants the path"),
        (["--ctl-socket="], "--ctl-socket wants the path"),
        (["bogus"], "unknown command, want restart-workers|spawn-workers|"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_status_2(arguments: list[str], complaint: str) -> None:
    code, output, errors = ctl(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith(f"poolparty-ctl: {complaint}")


# --- streams


def test_a_stream_comes_line_by_line_and_ends_quietly_when_interrupted(
    serve: Callable[..., Script], path: Path
) -> None:
    serve(b"putval a 1:1\nputval b 1:1\n", hold=True)
    with start("--ctl-socket", str(path), "collectd-metrics", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"putval a 1:1\n"
        assert process.stdout.readline() == b"putval b 1:1\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=DEADLINE)
    assert (output, errors) == (b"", b"")
    assert process.returncode == 128 + signal.SIGINT


def test_a_reader_that_leaves_ends_it_quietly(serve: Callable[..., Script], path: Path) -> None:
    serve(b"putval a 1:1\n" * 100_000)
    with start("--ctl-socket", str(path), "collectd-metrics") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


def test_it_imports_neither_gunicorn_nor_psutil() -> None:
    program = (
        "import sys, poolparty.ctl; print([m for m in ('gunicorn', 'psutil', 'asyncio') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_from_a_checkout_the_exit_status_is_the_same(tmp_path: Path) -> None:
    program = Path(__file__).resolve().parent.parent / "bin" / "poolparty-ctl"
    done = subprocess.run([sys.executable, str(program), "stats"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 1
