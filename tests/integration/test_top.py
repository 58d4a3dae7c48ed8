"""`poolparty-ctl top` in a real terminal, a pseudo one, against a real server."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server import Server, process_state, program, wait_until

Serve = Callable[..., Server]

ENTERED, LEFT = b"\x1b[?1049h", b"\x1b[?1049l"
"""Switch to the alternate screen, and back."""
CURSOR_SHOWN = b"\x1b[?25h"
PATIENCE = 20.0


class Terminal:
    """A pseudo terminal with `top` in it."""

    def __init__(self, socket: Path, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        self.resize(40, 100)
        self.before = termios.tcgetattr(slave)
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*program("poolparty-ctl"), "--ctl-socket", str(socket), "top", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        self.output = b""

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def wait(self, text: str, since: int = 0) -> bytes:
        """Until the text has been shown after what was output up to `since`; what was output from there."""
        deadline = time.monotonic() + PATIENCE
        while text not in shown(self.output[since:]):
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"waited for {text!r}; shown: {shown(self.output[since:])[-2000:]!r}"
            self.output += os.read(self.master, 65536)
        return self.output[since:]

    def press(self, keys: str, text: str) -> bytes:
        """Press keys and wait for what they have shown."""
        since = len(self.output)
        os.write(self.master, keys.encode())
        return self.wait(text, since)

    def end(self) -> int:
        """Read until the process has ended; its status."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None or select.select([self.master], [], [], 0)[0]:
            assert time.monotonic() < deadline, "it does not end"
            if select.select([self.master], [], [], 0.05)[0]:
                self.output += os.read(self.master, 65536)
        return self.process.returncode

    def check_restored(self) -> None:
        assert termios.tcgetattr(self.slave) == self.before
        assert self.output.count(ENTERED) == self.output.count(LEFT) > 0
        assert self.output.rindex(CURSOR_SHOWN) > self.output.rindex(b"\x1b[?25l")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def shown(output: bytes) -> str:
    """Without what steers the terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode(errors="replace"))


@pytest.fixture
def top() -> Iterator[Callable[..., Terminal]]:
    terminals: list[Terminal] = []

    def start(server: Server, *arguments: str) -> Terminal:
        terminals.append(Terminal(server.ctl_socket, *arguments))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def test_it_shows_what_runs_obeys_keys_and_leaves_the_terminal_as_it_was(
    serve: Serve, top: Callable[..., Terminal]
) -> None:
    server = serve("--min-pool-size", "2", "--max-pool-size", "2")
    pids = server.wait_ready(2)
    terminal = top(server, "-d", "0.1", "--sort", "age")
    terminal.wait("AGE↓")
    terminal.wait("ready, up")
    for pid in [server.pid, *pids, *server.http_workers()]:
        terminal.wait(str(pid))
    with server.gate() as target:
        asked = threading.Thread(target=server.get, args=(target,))
        asked.start()
        terminal.wait(f"GET {target.partition('=')[0]}")
        terminal.wait("1 busy of 2")
    asked.join()
    for key, heading in (("c", "CPU%↓"), ("m", "RSS↓"), ("r", "REQUESTS↓"), ("t", "TIME↓"), ("a", "AGE↓")):
        terminal.press(key, heading)
    terminal.press("a", "AGE↑")
    terminal.press("p", "PAUSED")
    terminal.press("p", "requests: 0.0/s")
    # Wider, narrower and lower: each page fits.
    since = len(terminal.output)
    terminal.resize(6, 48)
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.wait("…", since)
    since = len(terminal.output)
    page = terminal.press("m", "RSS↓").split(b"\x1b[H")[-1]
    assert all(len(line) <= 48 for line in shown(page).splitlines())
    assert len(shown(page).splitlines()) <= 6
    os.write(terminal.master, b"q")
    assert terminal.end() == 0
    terminal.check_restored()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_as_it_was(
    serve: Serve, top: Callable[..., Terminal], number: signal.Signals
) -> None:
    terminal = top(serve(), "-d", "0.1")
    terminal.wait("REQ/S")
    terminal.process.send_signal(number)
    assert terminal.end() == 128 + number
    terminal.check_restored()


def test_stopped_by_ctrl_z_it_gives_the_terminal_back_until_it_goes_on(
    serve: Serve, top: Callable[..., Terminal]
) -> None:
    terminal = top(serve(), "-d", "0.1")
    terminal.wait("REQ/S")
    terminal.process.send_signal(signal.SIGTSTP)
    wait_until(lambda: process_state(terminal.process.pid) == "T", "the process to be stopped")
    while select.select([terminal.master], [], [], 0)[0]:
        terminal.output += os.read(terminal.master, 65536)
    terminal.check_restored()
    since = len(terminal.output)
    terminal.process.send_signal(signal.SIGCONT)
    terminal.wait("REQ/S", since)
    assert ENTERED in terminal.output[since:]
    os.write(terminal.master, b"q")
    assert terminal.end() == 0
    terminal.check_restored()


def test_a_server_that_has_gone_is_waited_for(
    serve: Serve, top: Callable[..., Terminal], tmp_path: Path
) -> None:
    server = serve(directory=tmp_path / "it")
    terminal = top(server, "-d", "0.1")
    terminal.wait("REQ/S")
    server.terminate()
    terminal.wait("no server has its control socket")
    since = len(terminal.output)
    again = serve(directory=tmp_path / "it")
    terminal.wait(str(again.pid), since)
    terminal.press("p", "PAUSED")
    os.write(terminal.master, b"q")
    assert terminal.end() == 0
    terminal.check_restored()


def test_a_server_that_says_nothing_does_not_keep_its_user(
    serve: Serve, top: Callable[..., Terminal]
) -> None:
    server = serve()
    server.signal(signal.SIGSTOP)
    try:
        terminal = top(server)
        wait_until(lambda: select.select([terminal.master], [], [], 0)[0], "the screen")
        terminal.press("q", "")
        assert terminal.end() == 0
    finally:
        server.signal(signal.SIGCONT)


def once(server: Server, *arguments: str, directory: Path | None = None) -> subprocess.CompletedProcess[str]:
    socket = server.ctl_socket if directory is None else directory / "poolparty.sock"
    return subprocess.run(
        [*program("poolparty-ctl"), "--ctl-socket", str(socket), "top", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )


def test_once_prints_a_table_for_scripts(serve: Serve) -> None:
    server = serve("--min-pool-size", "2", "--max-pool-size", "2")
    server.wait_ready(2)
    for _ in range(3):
        server.get()
    done = once(server, "--once", "-d", "0.1", "--sort", "requests")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    _, table = done.stdout.split("\n\n")[:2]
    heading, *lines = table.splitlines()
    assert heading.split()[:4] == ["PID", "ROLE", "STATE", "REQUESTS"]
    assert {int(line.split()[0]) for line in lines} == {
        server.pid,
        *server.children(),
        *server.http_workers(),
    }
    assert {"http", "serving", "3"} <= {word for line in lines for word in line.split() if "http" in line}
    few = once(server, "--once", "-d", "0.1", "--lines", "1").stdout.split("\n\n")[1]
    assert len(few.splitlines()) == 2
    # An encoding that has no µ: what it cannot say it says otherwise, and not with a trace.
    server.get()
    latin = subprocess.run(
        [*program("poolparty-ctl"), "--ctl-socket", str(server.ctl_socket), "top", "--once", "-d", "0.1"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (latin.returncode, latin.stderr) == (0, b"")


def test_once_without_a_server_fails(serve: Serve, tmp_path: Path) -> None:
    done = once(serve(), "--once", directory=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("poolparty-ctl: no server has its control socket at ")


def test_without_a_terminal_it_says_what_to_do(serve: Serve) -> None:
    done = once(serve())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "poolparty-ctl: top needs a terminal; `top --once` prints one table anywhere\n"


@pytest.mark.parametrize(
    "words", [("-d", "0"), ("-d", "x"), ("--lines", "0"), ("--sort", "size"), ("--bogus",), ("stray",)]
)
def test_arguments_that_make_no_sense_end_it_with_2(words: tuple[str, ...]) -> None:
    done = subprocess.run([*program("poolparty-ctl"), "top", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: poolparty-ctl top ")
    assert "Traceback" not in done.stderr
