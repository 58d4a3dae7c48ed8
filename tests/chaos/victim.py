"""The server that the chaos driver torments: what it is made of, whether it is whole, what it has leaked."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
from server import Server, process_state, wait_until

APP = [sys.executable, str(Path(__file__).with_name("app.py"))]

CHILDREN = 4
HTTP_WORKERS = 2
RESTART_DELAY = 0.5
REQUEST_TIMEOUT = 2.0
GRACE = 0.5

GONE_WITHIN = 5.0
"""Seconds after its arbiter's death in which nothing of a server may run any more."""

SPARE_DESCRIPTORS = 4
"""More than at the start that a process may have at rest: a control connection that is just being closed."""

MEMORY_GROWTH = 48 << 20
"""Bytes an arbiter or an HTTP worker may grow beyond what it had after its first seconds."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


NAMES = ("default", "second")
HOSTS = ("test.example", "second.example")
"""Whose requests are for which pool."""


def configure(path: Path, pools: int) -> None:
    """The configuration of the pools beside the default one."""
    others = {
        name: {"routes": [f"{host}/"], "raw_env": [f"HOST={host}"]}
        for name, host in zip(NAMES[1:pools], HOSTS[1:pools], strict=True)
    }
    path.write_text(f"raw_env = ['HOST={HOSTS[0] if pools > 1 else ''}']\npools = {others!r}\n")


class Victim(Server):
    """A server at a fixed port, whose arbiter may change: `arbiter` is the pid of the present one.

    pools: among how many its children are divided; each after the first has a host, one of HOSTS.
    """

    def __init__(self, directory: Path, port: int, pools: int = 1) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.pools = pools
        self.names = NAMES[:pools]
        configure(directory / "poolparty.conf.py", pools)
        each = str(CHILDREN // pools)
        self.error_log = directory / "error.log"
        self.real_log = directory / "real.log"
        self.pidfile = directory / "pid"
        for path in (self.pidfile, directory / "pid.2"):
            path.unlink(missing_ok=True)  # of one that was killed
        self.point_log(self.real_log)
        super().__init__(
            directory,
            *("--min-pool-size", each, "--max-pool-size", each),
            *("--workers", str(HTTP_WORKERS), "--timeout", "20"),
            *(
                "--worker-restart-delay",
                f"{RESTART_DELAY}s",
                "--worker-request-timeout",
                f"{REQUEST_TIMEOUT}s",
            ),
            *("--worker-request-grace", f"{GRACE}s", "--worker-rendezvous-timeout", "10s"),
            *("--error-logfile", str(self.error_log), "--access-logfile", str(directory / "access.log")),
            *("--pid", str(self.pidfile), "--graceful-timeout", "8"),
            command=APP,
            bind=f"127.0.0.1:{port}",
        )
        self.arbiter = self.pid
        self._descriptors: dict[int, int] = {}
        self._memory: dict[int, int] = {}

    def point_log(self, target: Path) -> None:
        """Have the error log's name lead elsewhere; whoever has it open does not notice."""
        temporary = self.error_log.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.rename(self.error_log)

    @property
    def log(self) -> str:
        own = super().log
        return own + (self.real_log.read_text(errors="replace") if self.real_log.exists() else "")

    def tell(self, number: int) -> None:
        os.kill(self.arbiter, number)

    def connect_control(self) -> socket.socket:
        control = socket.socket(socket.AF_UNIX)
        control.settimeout(30)
        control.connect(str(self.ctl_socket))
        return control

    def children(self, *states: str) -> list[int]:
        """The pids of all pools' children, of those in certain states if any are given."""
        found = (child for pool in self.stats()["pools"] for child in pool["children"])
        return [child["pid"] for child in found if not states or child["state"] in states]

    # --- is it whole? --------------------------------------------------------------------------------------

    def lacks(self) -> str:
        """What it lacks of being whole, "" for nothing."""
        try:
            stats = self.stats()
        except (OSError, ValueError) as error:
            return f"the control socket does not answer: {error}"
        for pool in stats["pools"]:
            states = [child["state"] for child in pool["children"]]
            ready = [state for state in states if state in ("idle", "busy", "checking")]
            if not len(states) == len(ready) == CHILDREN // self.pools:
                return f"children of {pool['name']}: {states}"
        if len(stats["http_workers"]) != HTTP_WORKERS:
            return f"HTTP workers: {len(stats['http_workers'])}"
        return "a restart is under way" if any(pool["restarting"] for pool in stats["pools"]) else ""

    def wait_whole(self, deadline: float) -> float:
        """Seconds until it was whole. AssertionError: it was not, in time."""
        began = time.monotonic()
        lacks = self.lacks()
        while lacks:
            if time.monotonic() - began > deadline:
                raise AssertionError(f"not whole within {deadline:.1f} s: {lacks}")
            time.sleep(0.01)
            lacks = self.lacks()
        return time.monotonic() - began

    # --- leaks ---------------------------------------------------------------------------------------------

    def reap_orphans(self) -> None:
        """Whose parents died: they come to the driver, which is a subreaper."""
        for pid in self.session():
            if process_state(pid) == "Z":
                with contextlib.suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)

    def expected_processes(self) -> set[int]:
        return {self.arbiter, *self.children(), *self.http_workers()}

    def check_leaks(self) -> None:
        """At rest: no process too many, no zombie, no descriptor, file or memory that grows."""

        def extra() -> list[str]:
            self.reap_orphans()
            alive = self.expected_processes()
            return [d for d in self.describe_session() if int(d.split()[0]) not in alive]

        wait_until(lambda: not extra(), "processes too many to go", GONE_WITHIN)
        sockets = [path.name for path in self.directory.iterdir() if path.is_socket()]
        assert sockets == ["poolparty.sock"], f"socket files: {sockets}"
        for pid in (self.arbiter, *self.http_workers()):
            self._check_process(pid)

    def _check_process(self, pid: int) -> None:
        def count() -> int:
            # An HTTP worker's connections come and go; what stays is what can leak.
            links = []
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
            kinds = [link for link in links if pid == self.arbiter or not link.startswith("socket:")]
            return len(kinds)

        if pid not in self._descriptors:
            self._descriptors[pid] = count()
            self._memory[pid] = psutil.Process(pid).memory_info().rss
            return
        # A lessee holds between none and all of the children's pipes.
        most = self._descriptors[pid] + SPARE_DESCRIPTORS + (0 if pid == self.arbiter else 2 * CHILDREN)
        wait_until(lambda: count() <= most, f"process {pid} to have {most} descriptors, it has {count()}", 3)
        grown = psutil.Process(pid).memory_info().rss - self._memory[pid]
        assert grown < MEMORY_GROWTH, f"process {pid} has grown by {grown >> 20} MiB"

    # --- its end -------------------------------------------------------------------------------------------

    def everyone(self) -> list[int]:
        return [pid for pid in (self.arbiter, *self.session()) if process_state(pid) not in (None, "Z")]

    def kill_arbiter(self) -> None:
        everyone = self.everyone()
        os.kill(self.arbiter, signal.SIGKILL)

        def gone() -> bool:
            self.reap_orphans()
            return all(process_state(pid) in (None, "Z") for pid in everyone)

        wait_until(gone, "the end of all of a killed arbiter's", GONE_WITHIN)
        if self.arbiter == self.pid:
            self.process.wait()

    def stop(self) -> None:
        """Told to stop it leaves nothing behind."""
        self._checked = True
        self.tell(signal.SIGTERM)

        def gone() -> bool:
            self.reap_orphans()
            if self.arbiter == self.pid:
                return self.process.poll() is not None
            return process_state(self.arbiter) in (None, "Z")

        wait_until(gone, "its end", 20)
        wait_until(lambda: self.reap_orphans() or not self.session(), "the end of its processes", GONE_WITHIN)
        if self.arbiter == self.pid:
            assert self.process.returncode == 0, f"exit status {self.process.returncode}"
        sockets = [path.name for path in self.directory.iterdir() if path.is_socket()]
        assert sockets == [], f"socket files were left: {sockets}"

    # --- what its log says ---------------------------------------------------------------------------------

    def confessions(self) -> list[str]:
        """Lines of the log that say that the server itself is wrong."""
        return [line for line in self.log.splitlines() if CONFESSION.search(line)]


CONFESSION = re.compile(
    r"the pool thread failed|(?:Value|Key|Assertion|Attribute|Type|Index|Runtime|Name)Error"
    r"|never awaited|callback failed|Exception in callback|turn after turn|Unhandled exception"
)
