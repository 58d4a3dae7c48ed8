"""Processes as /proc shows them, and servers as processes of ours: started, waited for, ended by pid.

A server is started as the leader of a session of its own. At its end all that descends from it is ended too,
each process by its pid and only if it is still the one that was seen (its start time tells), so that nothing
is left and nothing else is hit.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

START_DEADLINE = 45.0
"""Seconds until a server must have answered: 256 interpreters on a busy machine take their time."""

STOP_DEADLINE = 8.0

QUIET_DEADLINE = 30.0
QUIET_INTERVAL = 0.2
QUIET = 0.05
"""Cores in use below which the start is over: a server answers once its first child does, and 63 may still
boot."""

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class ServerFailed(Exception):
    """A server did not start, or ended while it was measured; the text ends with the last lines it wrote."""


@dataclass(frozen=True)
class Cpu:
    """Seconds of processor time in user mode and in the kernel."""

    user: float
    system: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.user - other.user, self.system - other.system)

    @property
    def total(self) -> float:
        return self.user + self.system


def stat_fields(text: str) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything: [0] is the state, [1] the
    parent."""
    return text[text.rindex(")") + 2 :].split()


def _stat(pid: int) -> list[str] | None:
    try:
        return stat_fields(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except OSError:
        return None


def start_time(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def cpu(pid: int) -> Cpu:
    fields = _stat(pid)
    return Cpu(0, 0) if fields is None else Cpu(int(fields[11]) / TICK, int(fields[12]) / TICK)


def exact_cpu(pid: int) -> float:
    """Seconds of processor time of the threads that live, to the nanosecond: /proc/PID/stat counts in 10
    ms."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[0])
        except (OSError, IndexError):
            continue
    return total / 1e9


def resident(pid: int) -> int:
    """Resident bytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def tree(leader: int) -> list[int]:
    """`leader` and all that descends from it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields is not None and fields[0] not in "ZX":
                children.setdefault(int(fields[1]), []).append(int(entry))
    found = [leader]
    for pid in found:  # grows while it is walked
        found.extend(sorted(children.get(pid, ())))
    return found


def listening_ports(pid: int) -> set[int]:
    """TCP ports of IPv4 on which this process listens."""
    inodes = set()
    try:
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(descriptor.path)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return set()
    ports = set()
    for line in table:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            ports.add(int(fields[1].split(":")[1], 16))
    return ports


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One running server. Use as a context: it is up inside, and gone behind it."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        folder: Path,
        environment: Mapping[str, str],
        stop_signal: int = signal.SIGTERM,
        companions: Sequence[Sequence[str]] = (),
    ) -> None:
        self.port = port
        self.folder = folder
        self._commands = [*companions, command]
        self._environment = dict(environment)
        self._stop_signal = stop_signal
        self._started: list[subprocess.Popen[bytes]] = []
        self.log = folder / "server.log"

    def __enter__(self) -> Server:
        try:
            for command in self._commands:
                self._start(command)
            self._wait_until_it_answers()
            self.wait_until_quiet()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, command: Sequence[str]) -> None:
        with self.log.open("ab") as log:
            self._started.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=self._environment,
                    start_new_session=True,
                )
            )

    @property
    def pid(self) -> int:
        return self._started[-1].pid

    def pids(self) -> list[int]:
        return [pid for process in self._started for pid in tree(process.pid)]

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while time.monotonic() < deadline:
            self.check()
            ours = set().union(*(listening_ports(pid) for pid in self.pids()))
            if ours and self.port not in ours:
                # A server with a port of its own mind that was taken would otherwise have us measure who took
                # it.
                raise ServerFailed(f"listens on {sorted(ours)} instead of {self.port}{self.last_lines()}")
            if ours and self._answers():
                return
            time.sleep(0.02)
        raise ServerFailed(f"did not answer in {START_DEADLINE:g} s{self.last_lines()}")

    def wait_until_quiet(self) -> None:
        """Until all of it has started; returns in any case after a while, since some servers are never
        idle."""
        deadline = time.monotonic() + QUIET_DEADLINE
        spent, seen = self._spent(), time.monotonic()
        while seen < deadline:
            time.sleep(QUIET_INTERVAL)
            spent_before, seen_before = spent, seen
            spent, seen = self._spent(), time.monotonic()
            if abs(spent - spent_before) < QUIET * (seen - seen_before):
                return

    def _spent(self) -> float:
        return sum(map(exact_cpu, self.pids()))

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def check(self) -> None:
        for process in self._started:
            if process.poll() is not None:
                raise ServerFailed(f"ended with status {process.returncode}{self.last_lines()}")

    def last_lines(self, count: int = 5) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-count:]
        except OSError:
            lines = []
        return "".join(f"\n    {line}" for line in lines)

    def complaints(self) -> list[str]:
        """Lines of its log that say that something went wrong."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return []
        words = ("Traceback", "[ERROR]", "[CRITICAL]", "panic:", "Segmentation")
        return [line for line in lines if any(word in line for word in words)]

    def stop(self) -> None:
        seen = {pid: start_time(pid) for pid in self.pids()}
        for process in reversed(self._started):
            if process.poll() is None:
                process.send_signal(self._stop_signal)
        deadline = time.monotonic() + STOP_DEADLINE
        while time.monotonic() < deadline:
            for process in self._started:
                process.poll()
            if not any(self._lives(pid, began) for pid, began in seen.items()):
                break
            time.sleep(0.02)
        for pid, began in seen.items():
            if self._lives(pid, began):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        for process in self._started:
            process.wait()

    @staticmethod
    def _lives(pid: int, began: int | None) -> bool:
        return began is not None and start_time(pid) == began
