"""A real server with a directory of its own, and the proof that it leaves nothing behind.

    with Server(directory, "--max-pool-size", "4") as server:
        assert server.get("/").status == 200

At the end of the block it is told to stop; it must exit with status 0, with every process, zombie and socket
file gone, and its log without a line that nobody expected. Every wait is for a condition, with a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from client import PATIENCE, Address, Answer, Client

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
APP = [sys.executable, str(HERE / "app.py")]
"""A command that serves tests/integration/app.py."""

T = TypeVar("T")

_UNEXPECTED = re.compile(r"\[(?:ERROR|CRITICAL)\]|Traceback|^Error: |^\w+Error\b|never awaited|Warning:")


def wait_until(condition: Callable[[], T], what: str = "", deadline: float = PATIENCE) -> T:
    """Wait until condition() is true and return what it is. AssertionError: it did not in time."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline} s for {what or condition}; it is {value!r}")
        time.sleep(0.01)
    return value


def program(name: str) -> list[str]:
    """One of our commands, or gunicorn's: the one installed beside the Python that runs the tests."""
    installed = Path(sys.executable).parent / name
    if installed.exists():
        return [str(installed)]
    return [sys.executable, str(CHECKOUT / "bin" / name)]


def process_state(pid: int) -> str | None:
    """A process's state letter as ps shows it, None if there is no such process."""
    fields = _stat(pid)
    return fields[0] if fields else None


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


class Server:
    """`poolparty` with options, or, with gunicorn=True, the stock gunicorn with our worker class."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        command: Sequence[str] | None = APP,
        gunicorn: bool = False,
        bind: str = "127.0.0.1:0",
        expected: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> None:
        """command: what to serve, None if the options say it. expected: patterns of lines that may be in the
        log though they look like faults. under: a command that runs the server."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.expected = list(expected)
        self.not_its_own: set[int] = set()  # grandchildren: once dead they are the init process's to reap
        self.bind = bind
        self.ctl_socket = directory / "poolparty.sock"
        self._log_file = directory / f"log-{time.monotonic_ns()}"
        if gunicorn:
            arguments = [*program("gunicorn"), "-k", "poolparty.GWorker", "--bind", bind, *options]
            arguments += [] if command is None else ["--pool-cmd", shlex.join(command)]
        else:
            arguments = [*program("poolparty"), "--bind", bind, *options]
            arguments += [] if command is None else ["--", *command]
        ours = ("POOLPARTY", "GUNICORN", "PYTHON", "JANET", "LISTEN_", "NOTIFY_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        with self._log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*under, *arguments],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**kept, **(environment or {})},
                start_new_session=True,
            )
        self.pid = self.process.pid
        self._clients: list[Client] = []
        self._address: Address | None = None
        self._checked = False

    # --- its life ------------------------------------------------------------------------------------------

    def __enter__(self) -> Server:
        try:
            self.wait_listening()
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self._clients:
            client.close()
        try:
            if kind is None and not self._checked:
                self.terminate()
        except BaseException:
            self._give_up()
            raise
        if kind is not None:
            self._give_up()

    def _give_up(self) -> None:
        print(f"--- the server's log ---\n{self.log[-20_000:]}--- end of the log ---")
        self.kill_session()
        self.process.wait()

    def wait_listening(self) -> None:
        """Until it listens and its pool has been started."""
        wait_until(lambda: "Booting worker" in self.log or self.process.poll() is not None, "HTTP workers")
        assert self.process.poll() is None, f"the server did not start: {self.log}"

    def terminate(self, number: int | None = signal.SIGTERM, deadline: float = PATIENCE) -> None:
        """Stop it, and check that nothing of it is left and that its log holds nothing unexpected.

        number: None if it has been told already.
        """
        if number is not None:
            self.process.send_signal(number)
        self.wait_exit(deadline)
        self.check_gone()
        self.check_log()

    def wait_exit(self, deadline: float = PATIENCE, status: int = 0) -> None:
        """Wait until the arbiter has exited, with this status."""
        self._checked = True
        try:
            got = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it lives on, with {self.describe_session()}") from None
        assert got == status, f"exit status {got} instead of {status}"

    def check_gone(self) -> None:
        """After a regular end: not a process is left, not even a zombie, and no socket's file."""
        left = [pid for pid in self.session() if pid not in self.not_its_own or process_state(pid) != "Z"]
        assert left == [], f"left: {self.describe_session()}"
        sockets = [str(path) for path in self.directory.rglob("*") if path.is_socket()]
        assert sockets == [], f"socket files were left: {sockets}"

    def check_log(self) -> None:
        """AssertionError: the log holds an error, or a trace, that the test did not announce."""
        lines = [
            line
            for line in self.log.splitlines()
            if _UNEXPECTED.search(line) and not any(re.search(pattern, line) for pattern in self.expected)
        ]
        assert lines == [], f"unexpected in the log: {lines}"

    # --- its processes -------------------------------------------------------------------------------------

    def session(self) -> list[int]:
        """All processes of its session, zombies included, but for the arbiter itself."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != self.pid:
                fields = _stat(int(name))
                if fields and int(fields[3]) == self.pid:
                    found.append(int(name))
        return found

    def running(self) -> list[int]:
        """The processes of its session that are not zombies, the arbiter included."""
        return [pid for pid in [self.pid, *self.session()] if process_state(pid) not in (None, "Z")]

    def describe_session(self) -> list[str]:
        described = []
        for pid in self.session():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                described.append(f"{pid} ({process_state(pid)}) {words}")
        return described

    def kill_session(self) -> None:
        for pid in [self.pid, *self.session()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    # --- its log -------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    def wait_log(self, pattern: str, count: int = 1, deadline: float = PATIENCE) -> list[str]:
        """Wait for as many lines that match."""

        def found() -> list[str] | None:
            lines = [line for line in self.log.splitlines() if re.search(pattern, line)]
            return lines if len(lines) >= count else None

        lines = wait_until(found, f"{count} lines with {pattern!r} in the log", deadline)
        assert lines is not None
        return lines

    # --- HTTP ----------------------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        if self._address is None:
            if self.bind.startswith("unix:"):
                self._address = str(self.directory / self.bind.removeprefix("unix:"))
            else:
                found = re.search(r"Listening at: https?://([\d.]+):(\d+)", self.log)
                assert found, f"it listens nowhere: {self.log}"
                self._address = (found[1], int(found[2]))
        return self._address

    def connect(self, patience: float = PATIENCE) -> Client:
        """A connection; it is closed with the server."""
        self._clients.append(Client(self.address, patience))
        return self._clients[-1]

    def ask(
        self,
        method: str = "GET",
        target: str = "/",
        body: bytes | None = None,
        fields: dict[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> Answer:
        """One request on a connection of its own."""
        with Client(self.address, patience) as client:
            return client.ask(method, target, body, fields)

    def get(
        self, target: str = "/", fields: dict[str, str] | None = None, patience: float = PATIENCE
    ) -> Answer:
        return self.ask("GET", target, None, fields, patience)

    @property
    def admin_port(self) -> int:
        """The TCP port of its admin listener."""
        return int(self.wait_log("admin_address: listening at ")[0].rpartition(":")[2])

    # --- its control socket --------------------------------------------------------------------------------

    def ctl(self, command: str, patience: float = PATIENCE) -> list[str]:
        """The lines that a control command answers, the last one (`OK`, `ERROR: …`) included."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(patience)
            control.connect(str(self.ctl_socket))
            control.sendall(f"{command}\nexit\n".encode())
            answer = b""
            while data := control.recv(65536):
                answer += data
        return answer.decode().splitlines()

    def stats(self) -> dict[str, Any]:
        """What `stats --json` says."""
        line, ok = self.ctl("stats --json")
        assert ok == "OK"
        stats: dict[str, Any] = json.loads(line)
        return stats

    def pool(self) -> dict[str, Any]:
        pool: dict[str, Any] = self.stats()["pools"][0]
        return pool

    def children(self, *states: str) -> list[int]:
        """The pids of the pool's children, of those in certain states if any are given."""
        return [child["pid"] for child in self.pool()["children"] if not states or child["state"] in states]

    def http_workers(self) -> list[int]:
        return [worker["pid"] for worker in self.stats()["http_workers"]]

    def wait_children(self, count: int, *states: str, deadline: float = PATIENCE) -> list[int]:
        """Wait until there are exactly so many, and return them."""

        def found() -> list[int] | None:
            children = self.children(*states)
            return children if len(children) == count else None

        children = wait_until(found, f"{count} children {states}", deadline)
        return children if children else []

    def wait_ready(self, count: int = 1) -> list[int]:
        """Wait until so many children can serve."""
        return self.wait_children(count, "idle", "busy", "checking")

    # --- requests that wait until they are let through -----------------------------------------------------

    @contextlib.contextmanager
    def gate(self, name: str = "gate") -> Iterator[str]:
        """A target whose answer waits until the block ends; see app.py."""
        path = self.directory / name
        path.touch()
        try:
            yield f"/gate?path={path}"
        finally:
            path.unlink()

    def wait_busy(self, count: int = 1) -> None:
        """Wait until so many children run a request."""
        wait_until(lambda: self.pool()["busy"] == count, f"{count} busy children")

    def wait_connections(self, count: int) -> None:
        """Wait until the HTTP workers have accepted so many."""

        def accepted() -> int:
            return sum(worker["connections"] for worker in self.stats()["http_workers"])

        wait_until(lambda: accepted() == count, f"{count} connections")

    def wait_queued(self, count: int) -> None:
        wait_until(lambda: self.pool()["queued"] == count, f"{count} queued requests")
