"""What can happen to a server, and what may fail for it.

An event does its harm and says in words what it has done. Where requests may fail for it, it grants that many
failures of those kinds, no more; whatever fails without a grant breaks the run. Most grant nothing: restarts,
reloads, upgrades, a full disk, and for a GET the death of the child that runs it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from checked_load import CheckedLoad, Failure
from client import Client
from server import process_state, wait_until
from victim import CHILDREN, GRACE, HTTP_WORKERS, REQUEST_TIMEOUT, RESTART_DELAY, Victim

BOOT = 2.0
"""Seconds a new child may take to start on a machine that the load keeps busy."""

STARTS = 40
"""Or so many times what an interpreter takes to start at this moment: others use the machine too."""

PIDS = Path("/sys/fs/cgroup/pids")

FAILED_HEAVILY = ("connection lost", "connection lost in an answer")
"""What the clients of a killed HTTP worker see."""


class Skip(Exception):
    """This event cannot be made on this machine; the text says why."""


@dataclass
class Grant:
    """So many failures of these kinds (method, kind) are no fault."""

    left: int
    kinds: tuple[tuple[str, str], ...]
    why: str

    def covers(self, failure: Failure) -> bool:
        return self.left > 0 and any(
            method in ("*", failure.method) and kind in ("*", failure.kind) for method, kind in self.kinds
        )


class Chaos:
    def __init__(self, victim: Victim, chance: random.Random) -> None:
        self.victim = victim
        self.chance = chance
        self.load: CheckedLoad | None = None
        self.failures: deque[Failure] = deque(maxlen=100)
        self.failed: Counter[str] = Counter()
        self.recoveries: list[float] = []
        self.longest: dict[str, float] = {}
        self._grants: list[Grant] = []

    # --- what may fail -------------------------------------------------------------------------------------

    def grant(self, count: int, why: str, *kinds: tuple[str, str]) -> None:
        self._grants.append(Grant(count, kinds, why))

    def settle(self, load_runs: bool = True) -> float:
        """Wait until the pool is whole; hold what failed against what was granted. Returns its time."""
        began = time.monotonic()
        try:
            took = self.victim.wait_whole(2 * RESTART_DELAY + BOOT)
        except AssertionError:
            more = STARTS * start_time() - BOOT
            if more <= 0:
                raise
            self.victim.wait_whole(more)
            took = time.monotonic() - began
        self.recoveries.append(took)
        assert self.load is not None
        if load_runs:
            self.load.wait_each_connection()
            self.load.wait_answers(20)
        for failure in self.load.take_failures():
            self.failures.append(failure)
            grant = next((grant for grant in self._grants if grant.covers(failure)), None)
            assert grant is not None, f"a request failed for no reason: {failure}"
            grant.left -= 1
            self.failed[f"{failure.method} {failure.kind}"] += 1
        self._grants.clear()
        return took

    def summary(self, counts: Counter[str], skipped: dict[str, str], seconds: float) -> str:
        assert self.load is not None
        recoveries = sorted(self.recoveries)
        lines = [
            f"{sum(counts.values())} events in {seconds:.0f} s: "
            + ", ".join(f"{name} {n}" for name, n in counts.most_common()),
            f"{self.load.report.answers} right answers, no wrong one; failed with the process that ran them: "
            + (", ".join(f"{n} {kind}" for kind, n in self.failed.most_common()) or "none"),
            f"whole again after {recoveries[len(recoveries) // 2]:.2f} s in the middle, "
            f"{recoveries[-1]:.2f} s at the longest",
        ]
        lines += [f"left out: {name}: {why}" for name, why in skipped.items()]
        return "\n".join(lines)

    # --- whom it hits --------------------------------------------------------------------------------------

    def some_child(self) -> int:
        return self.chance.choice(self.victim.wait_ready(CHILDREN))

    def some_http_worker(self) -> int:
        return self.chance.choice(self.victim.http_workers())

    def pause(self, low: float, high: float) -> float:
        """Let time pass in which the load goes on: how much."""
        seconds = self.chance.uniform(low, high)
        time.sleep(seconds)
        return seconds


def start_time() -> float:
    """Seconds that an interpreter takes to start at this moment."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import json, logging"], check=True)
    return time.monotonic() - began


def grant_deaths(chaos: Chaos, count: int, why: str) -> None:
    """Children die: each takes the POST with it that it ran; a GET is tried again."""
    chaos.grant(count, why, ("POST", "status 502"))


# --- children ----------------------------------------------------------------------------------------------


def kill_child(chaos: Chaos) -> str:
    pid = chaos.some_child()
    number = chaos.chance.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
    grant_deaths(chaos, 1, "a child was killed")
    os.kill(pid, number)
    wait_until(lambda: pid not in chaos.victim.children(), "the child's end")
    return f"{number.name} to {pid}"


def kill_all_children(chaos: Chaos) -> str:
    """At once: stopped first, so that none runs what another had when it died."""
    pids = chaos.victim.wait_ready(CHILDREN)
    grant_deaths(chaos, len(pids), "all children were killed")
    # A process that waits in read(2) when the signals come still takes what was written before it next runs:
    # the second try of a GET can be gone with it, and both that had it were hit.
    chaos.grant(len(pids) // 2, "both children of a GET were killed", ("GET", "status 502"))
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    wait_until(lambda: not set(pids) & set(chaos.victim.children()), "their end")
    return f"SIGKILL to {pids}"


def kill_children_in_a_row(chaos: Chaos) -> str:
    """Faster than they start. A GET is tried twice, and its second child may die too."""
    end = time.monotonic() + chaos.chance.uniform(0.5, 1.5)
    killed = 0
    while time.monotonic() < end:
        children = chaos.victim.children("idle", "busy")
        if children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chaos.chance.choice(children), signal.SIGKILL)
                killed += 1
        chaos.pause(0.02, 0.2)
    grant_deaths(chaos, killed, "children were killed")
    chaos.grant(killed // 2, "both children of a GET were killed", ("GET", "status 502"))
    return f"{killed} children"


def stop_child_for_a_moment(chaos: Chaos) -> str:
    pid = chaos.some_child()
    os.kill(pid, signal.SIGSTOP)
    seconds = chaos.pause(0.05, REQUEST_TIMEOUT / 3)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return f"{pid} for {seconds:.2f} s"


def stop_child_for_good(chaos: Chaos) -> str:
    pid = chaos.some_child()
    chaos.grant(1, "a child was stopped", ("*", "status 504"))
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: process_state(pid) is None, "the stopped child's end", REQUEST_TIMEOUT + GRACE + 3)
    return str(pid)


def ask_wrongly(page: str, *statuses: int) -> Callable[[Chaos], str]:
    """An event: a request that makes its child do wrong; its client is not of the load and expects it."""

    def event(chaos: Chaos) -> str:
        method = chaos.chance.choice(["GET", "POST"])
        hit = 2 if method == "GET" else 1  # a GET is tried again
        with Client(chaos.victim.address, 3 * REQUEST_TIMEOUT) as client:
            answer = client.ask(method, f"/{page}", b"" if method == "POST" else None)
        assert answer.status in statuses, f"{method} /{page} was answered {answer.status}"
        if answer.status == 200:
            assert answer.body == b"right", answer.body
        # What was written to that child behind it is GETs, which are tried again.
        grant_deaths(chaos, hit, f"a child did wrong: {page}")
        return f"{method} {answer.status}"

    event.__name__ = f"ask_{page}"
    return event


def leave_an_orphan(chaos: Chaos) -> str:
    """A grandchild in a child's group goes with it."""
    with Client(chaos.victim.address) as client:
        assert client.ask("POST", "/orphan", b"").status == 200
    grandchildren = [p for p in _session_of(chaos.victim) if p.info["name"] == "sleep"]
    assert grandchildren, "there is no grandchild"
    [parent] = {p.info["ppid"] for p in grandchildren}
    grant_deaths(chaos, 1, "a child was killed")
    with contextlib.suppress(ProcessLookupError):
        os.kill(parent, signal.SIGKILL)

    def gone() -> bool:
        chaos.victim.reap_orphans()
        return not any(p.is_running() and p.status() != "zombie" for p in grandchildren)

    wait_until(lambda: _quietly(gone), "the grandchild's end")
    return f"of {parent}"


def _quietly(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except psutil.NoSuchProcess:
        return True


def _session_of(victim: Victim) -> list[psutil.Process]:
    pids = set(victim.session())
    return [p for p in psutil.process_iter(["name", "ppid"]) if p.pid in pids]


@contextlib.contextmanager
def _stream(chaos: Chaos) -> Iterator[tuple[socket.socket, int]]:
    """A client in the middle of a streamed answer, and the child that sends it."""
    with socket.create_connection(chaos.victim.address, 3 * REQUEST_TIMEOUT) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
        said = b""
        while not (found := re.search(rb"\r\n\r\n[0-9a-f]+\r\n(\d+)\n", said)):
            data = client.recv(65536)
            assert data, f"a stream broke off: {said!r}"
            said += data
        yield client, int(found[1])


def leave_a_stream(chaos: Chaos) -> str:
    """Its child is free again, and nobody is harmed."""
    with _stream(chaos) as (client, pid):
        if chaos.chance.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return f"of {pid}"


def kill_a_child_that_streams(chaos: Chaos) -> str:
    """Its client sees that the answer is not whole. Nobody else had a request there."""
    with _stream(chaos) as (client, pid):
        os.kill(pid, signal.SIGKILL)
        said = b""
        with contextlib.suppress(ConnectionError):
            while data := client.recv(65536):
                said += data
        assert not said.endswith(b"0\r\n\r\n"), "a stream whose child was killed looks whole"
    wait_until(lambda: pid not in chaos.victim.children(), "the child's end")
    return str(pid)


# --- HTTP workers ------------------------------------------------------------------------------------------


def kill_http_worker(chaos: Chaos) -> str:
    workers = {row["pid"]: row["connections"] for row in chaos.victim.stats()["http_workers"]}
    pid = chaos.chance.choice(list(workers))
    chaos.grant(workers[pid] + 2, "its HTTP worker was killed", *(("*", kind) for kind in FAILED_HEAVILY))
    # One that crashes before it has answered anybody counts as one that does not work, and is waited with.
    os.kill(pid, chaos.chance.choice([signal.SIGKILL, signal.SIGSEGV]) if workers[pid] else signal.SIGKILL)
    wait_until(lambda: pid not in chaos.victim.http_workers(), "the HTTP worker's end")
    return f"{pid} with {workers[pid]} connections"


def stop_http_worker_for_a_moment(chaos: Chaos) -> str:
    pid = chaos.some_http_worker()
    os.kill(pid, signal.SIGSTOP)
    seconds = chaos.pause(0.05, 0.8)
    os.kill(pid, signal.SIGCONT)
    return f"{pid} for {seconds:.2f} s"


def more_and_fewer_http_workers(chaos: Chaos) -> str:
    victim = chaos.victim
    victim.tell(signal.SIGTTIN)
    wait_until(lambda: len(victim.http_workers()) == HTTP_WORKERS + 1, "one HTTP worker more", 10)
    victim.tell(signal.SIGTTOU)
    wait_until(lambda: len(victim.http_workers()) == HTTP_WORKERS, "one HTTP worker fewer", 15)
    return ""


# --- the arbiter -------------------------------------------------------------------------------------------


def kill_arbiter(chaos: Chaos) -> str:
    """And start another server in its place."""
    old = chaos.victim
    chaos.grant(10**6, "the arbiter was killed", ("*", "*"))
    old.kill_arbiter()
    chaos.victim = Victim(old.directory, int(old.bind.rpartition(":")[2]), old.pools)
    chaos.victim.wait_listening()
    chaos.victim.wait_whole(20)
    assert chaos.load is not None
    chaos.load.wait_answers(50)
    for failure in chaos.load.take_failures():
        # What is granted is that there was nobody; nobody may have answered wrongly.
        # The kernel ends the children one by one, and an HTTP worker may see that before it sees why.
        died = failure.kind == "status 502"
        assert died or failure.method == "connect" or failure.kind in FAILED_HEAVILY, str(failure)
    chaos._grants.clear()
    return str(old.arbiter)


def stop_arbiter_for_a_moment(chaos: Chaos) -> str:
    """The HTTP workers go on without it, with the children that they hold: of several pools one may hold
    none, and then its clients wait."""
    assert chaos.load is not None
    chaos.victim.tell(signal.SIGSTOP)
    try:
        if chaos.victim.pools == 1:
            chaos.load.wait_answers(50)
        seconds = chaos.pause(0.05, 1.0)
    finally:
        chaos.victim.tell(signal.SIGCONT)
    return f"for {seconds:.2f} s"


def restart_workers(chaos: Chaos) -> str:
    before = set(chaos.victim.children())
    assert chaos.victim.ctl("restart-workers", 30) == ["OK"]
    assert not before & set(chaos.victim.children()), "a child survived restart-workers"
    return ""


def restart_and_kill(chaos: Chaos) -> str:
    """Children die while they are being replaced."""
    victim = chaos.victim
    pid = chaos.some_child()
    killed = 0
    grant_deaths(chaos, 3, "children were killed")
    with victim.connect_control() as control:
        control.sendall(b"restart-workers\nexit\n")
        for _ in range(3):
            chaos.pause(0.0, 0.15)
            with contextlib.suppress(ProcessLookupError):
                pid = chaos.chance.choice(victim.children() or [pid])
                os.kill(pid, signal.SIGKILL)
                killed += 1
        answer = b""
        while data := control.recv(65536):
            answer += data
    # A new child that is killed before it is ready is one that did not boot.
    assert answer == b"OK\n" or b"did not boot" in answer, answer
    return f"{killed} killed"


def reload(chaos: Chaos) -> str:
    victim = chaos.victim
    children, workers = set(victim.children()), set(victim.http_workers())
    victim.tell(signal.SIGHUP)
    wait_until(
        lambda: not children & set(victim.children()) and not workers & set(victim.http_workers()),
        "the reload",
        20,
    )
    return ""


def spawn_and_remove(chaos: Chaos) -> str:
    """It has its size already: nothing changes."""
    for _ in range(5):
        command = chaos.chance.choice(["spawn-workers", "remove-workers"])
        pool = chaos.chance.choice(chaos.victim.names)
        assert chaos.victim.ctl(f"{command} {chaos.chance.randint(1, 5)} {pool}") == ["OK"]
    return ""


def upgrade(chaos: Chaos) -> str:
    victim, old = chaos.victim, chaos.victim.arbiter
    new = _start_upgrade(victim)
    if chaos.chance.random() < 0.5:
        os.kill(old, signal.SIGWINCH)
    os.kill(old, signal.SIGTERM)
    victim.arbiter = new

    def gone() -> bool:
        victim.reap_orphans()
        if old == victim.pid:
            return victim.process.poll() is not None
        return process_state(old) in (None, "Z")

    wait_until(gone, "the old arbiter's end", 20)
    wait_until(lambda: victim.pidfile.exists() and int(victim.pidfile.read_text()) == new, "its pid file", 10)
    return f"{old} to {new}"


def upgrade_and_go_back(chaos: Chaos) -> str:
    victim = chaos.victim
    new = _start_upgrade(victim)
    os.kill(new, chaos.chance.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT]))
    wait_until(lambda: process_state(new) in (None, "Z"), "the new arbiter's end", 20)
    wait_until(lambda: not victim.lacks(), "the old one to have its control socket again", 10)
    return f"from {new}"


def _start_upgrade(victim: Victim) -> int:
    pidfile = victim.directory / "pid.2"
    victim.tell(signal.SIGUSR2)
    wait_until(lambda: pidfile.exists() and pidfile.read_text().strip(), "the new arbiter", 20)
    new = int(pidfile.read_text())

    def serves() -> bool:
        # The control socket is the new one's as soon as it has started.
        with contextlib.suppress(OSError, ValueError, IndexError):
            stats = victim.stats()
            parents = {psutil.Process(row["pid"]).ppid() for row in stats["http_workers"]}
            return parents == {new} and not victim.lacks()
        return False

    wait_until(lambda: _quietly_false(serves), "the new arbiter to serve", 30)
    return new


def _quietly_false(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except psutil.NoSuchProcess:
        return False


# --- the machine -------------------------------------------------------------------------------------------


def fill_the_disk(chaos: Chaos) -> str:
    """Every write to the error log fails, while children die and have it told."""
    victim = chaos.victim
    victim.point_log(Path("/dev/full"))
    victim.tell(signal.SIGUSR1)
    try:
        for _ in range(chaos.chance.randint(1, 3)):
            kill_child(chaos)
        assert chaos.load is not None
        chaos.load.wait_answers(100)
    finally:
        victim.point_log(victim.real_log)
        victim.tell(signal.SIGUSR1)
    return ""


def no_descriptors_for_the_arbiter(chaos: Chaos) -> str:
    """It can neither start a child nor accept a control connection until it may open files again."""
    victim = chaos.victim
    pid = chaos.some_child()
    soft, hard = resource.prlimit(victim.arbiter, resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir(f"/proc/{victim.arbiter}/fd")) + 1
    resource.prlimit(victim.arbiter, resource.RLIMIT_NOFILE, (min(used, soft), hard))
    try:
        grant_deaths(chaos, 1, "a child was killed")
        os.kill(pid, signal.SIGKILL)
        seconds = chaos.pause(0.2, 1.0)
    finally:
        resource.prlimit(victim.arbiter, resource.RLIMIT_NOFILE, (soft, hard))
    return f"for {seconds:.2f} s, child {pid} killed"


def no_descriptors_for_an_http_worker(chaos: Chaos) -> str:
    """It cannot accept; who is connected goes on. Whoever knocks is answered or turned away, and no worse."""
    pid = chaos.some_http_worker()
    victim = chaos.victim
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(used, soft), hard))
    assert chaos.load is not None
    answered = 0
    try:
        for _ in range(6):
            # Shortly: without descriptors it may have given its children back, and can be lent none.
            # Turned away is an AssertionError of the client's.
            with contextlib.suppress(OSError, AssertionError), Client(victim.address, 0.5) as client:
                answered += client.ask("GET", "/load").status == 200
        chaos.load.wait_answers(50)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    with Client(victim.address) as client:
        assert client.ask("GET", "/load").status == 200
    return f"{pid}: {answered} of 6 new clients were answered"


def no_forks(chaos: Chaos) -> str:
    """fork fails with EAGAIN, for children and HTTP workers."""
    victim = chaos.victim
    group = PIDS / f"poolparty-chaos-{os.getpid()}"
    try:
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(victim.arbiter))
    except OSError as error:
        raise Skip(f"no cgroup can be made below {PIDS}: {error.strerror}") from None
    try:
        pid = chaos.some_child()
        (group / "pids.max").write_text("0")
        worker = chaos.some_http_worker() if chaos.chance.random() < 0.5 else None
        grant_deaths(chaos, 1, "a child was killed")
        os.kill(pid, signal.SIGKILL)
        if worker is not None:
            chaos.grant(10**6, "its HTTP worker was killed", *(("*", kind) for kind in FAILED_HEAVILY))
            os.kill(worker, signal.SIGKILL)
        seconds = chaos.pause(0.2, 1.0)
    finally:
        (group / "pids.max").write_text("max")
        (PIDS / "cgroup.procs").write_text(str(victim.arbiter))
        _empty(group)
    return f"for {seconds:.2f} s, child {pid} and HTTP worker {worker} killed"


def _empty(group: Path) -> None:
    def empty() -> bool:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (PIDS / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()
        return not group.exists()

    wait_until(empty, "the control group to be empty")


EVENTS: dict[str, Callable[[Chaos], str]] = {
    event.__name__: event
    for event in (
        kill_child,
        kill_all_children,
        kill_children_in_a_row,
        stop_child_for_a_moment,
        stop_child_for_good,
        ask_wrongly("die", 502),
        ask_wrongly("garbage", 502),
        ask_wrongly("huge", 502),
        ask_wrongly("truncated", 502),
        ask_wrongly("early", 200, 502),
        ask_wrongly("late", 504),
        leave_an_orphan,
        leave_a_stream,
        kill_a_child_that_streams,
        kill_http_worker,
        stop_http_worker_for_a_moment,
        more_and_fewer_http_workers,
        kill_arbiter,
        stop_arbiter_for_a_moment,
        restart_workers,
        restart_and_kill,
        reload,
        spawn_and_remove,
        upgrade,
        upgrade_and_go_back,
        fill_the_disk,
        no_descriptors_for_the_arbiter,
        no_descriptors_for_an_http_worker,
        no_forks,
    )
}
