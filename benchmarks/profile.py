"""Where a request's time goes: `bin/bench --profile`.

Three runs of the same load, since each way of looking slows down what it looks at: processor time and context
switches of every process from /proc, system calls by strace -c, functions by py-spy or else by cProfile,
which a configuration file's hooks put into Poolparty's HTTP worker.
"""

from __future__ import annotations

import os
import pstats
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import figures, servers, wrk
from benchmarks.cases import BROWSER, CASES, Case
from benchmarks.measures import http_workers
from benchmarks.processes import Cpu, Server, command_line, cpu
from benchmarks.servers import Setup

TOP = 25

HOOKS = """\
import cProfile

profile = cProfile.Profile()


def post_worker_init(worker):
    profile.enable()


def worker_exit(server, worker):
    profile.disable()
    profile.dump_stats({path!r})
"""


def run(peer: str, names: Sequence[str] | None, seconds: float) -> int:
    name = (names or ["hello"])[0]
    case = next((case for case in CASES if case.name == name), None)
    setups = [setup for setup in case.setups if setup.peer == peer] if case else []
    if case is None or not setups:
        raise SystemExit(f"bin/bench: the case '{name}' has no contestant '{peer}'")
    setup = setups[0]
    load = wrk.Load(setup.connections, headers=BROWSER if name == "headers" else {})
    if name == "up":
        load = replace(load, method="POST", body_size=1_048_576)
    with tempfile.TemporaryDirectory(prefix="bench-") as root:
        print(f"{case.title}, {setup.label}\n")
        for part in (processor_time, system_calls, functions):
            folder = Path(root) / part.__name__
            folder.mkdir()
            part(case, setup, load, seconds, folder)
    return 0


def looked_at(server: Server, setup: Setup) -> int:
    """The process that strace and the profilers look at: Poolparty's HTTP worker, or the server itself."""
    return http_workers(server)[0] if setup.server == "poolparty" else server.pid


def processor_time(case: Case, setup: Setup, load: wrk.Load, seconds: float, folder: Path) -> None:
    with servers.make(setup, case.kind, folder) as server:
        wrk.run(server.port, load, 1, folder)
        pids = server.pids()
        before = {pid: (cpu(pid), switches(pid)) for pid in pids}
        sample = wrk.run(server.port, load, seconds, folder)
        requests = max(1.0, sample["requests"])
        print(
            f"{sample['rate']:,.0f} requests/s, {figures.errors(sample)} errors. Per request, by process:\n"
        )
        rows = []
        total = Cpu(0, 0)
        for pid in pids:
            spent = cpu(pid) - before[pid][0]
            total = Cpu(total.user + spent.user, total.system + spent.system)
            voluntary, forced = (now - then for now, then in zip(switches(pid), before[pid][1], strict=True))
            cells = [
                spent.user / requests * 1e6,
                spent.system / requests * 1e6,
                voluntary / requests,
                forced / requests,
            ]
            rows.append([short(command_line(pid), folder), *(f"{cell:.2f}" for cell in cells)])
        per_request = [f"{part / requests * 1e6:.2f}" for part in (total.user, total.system)]
        rows.append(["all", *per_request, "", ""])
        print(figures.Table(["process", "user µs", "system µs", "waits", "preempted"], rows).text())


def short(command: str, folder: Path) -> str:
    """A command line without folders, as wide as a table bears."""
    text = command.replace(f"{folder}/", "").replace(f"{servers.CHECKOUT}/", "")
    text = re.sub(r"(?<![\w.])/\S*/", "", text)
    return text if len(text) <= 70 else text[:69] + "…"


def switches(pid: int) -> tuple[int, int]:
    """Context switches of the main thread: because it waited, because another was put in its place."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    found = dict(re.findall(r"^(voluntary|nonvoluntary)_ctxt_switches:\s*(\d+)$", text, re.MULTILINE))
    return int(found.get("voluntary", 0)), int(found.get("nonvoluntary", 0))


def system_calls(case: Case, setup: Setup, load: wrk.Load, seconds: float, folder: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        print("\nSystem calls: strace is not on PATH")
        return
    with servers.make(setup, case.kind, folder) as server:
        wrk.run(server.port, load, 1, folder)
        counts = folder / "strace.txt"
        command = [strace, "-c", "-f", "-q", "-o", str(counts), "-p", str(looked_at(server, setup))]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        sample = wrk.run(server.port, load, seconds, folder)
        tracer.send_signal(signal.SIGINT)
        try:
            _, complaint = tracer.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            tracer.kill()
            _, complaint = tracer.communicate()
        if not counts.exists() or not counts.read_text().strip():
            print(f"\nSystem calls: strace says {complaint.strip() or 'nothing'}")
            return
        requests = max(1.0, sample["requests"])
        calls = strace_counts(counts.read_text())
        print(f"\nSystem calls a request of {short(command_line(looked_at(server, setup)), folder)}")
        print(f"(traced, which leaves {sample['rate']:,.0f} requests/s):\n")
        rows = [
            [name, f"{count / requests:.3f}"] for name, count in calls.items() if count / requests >= 0.001
        ]
        rows.append(["all", f"{sum(calls.values()) / requests:.3f}"])
        print(figures.Table(["call", "a request"], rows).text())


def strace_counts(text: str) -> dict[str, int]:
    """Name → number of calls, the most frequent first, from the table of strace -c."""
    counts: dict[str, int] = {}
    for line in text.splitlines():
        # % time, seconds, usecs/call, calls, [errors,] syscall
        found = re.fullmatch(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?([a-z]\w*)\s*", line)
        if found and found.group(2) != "total":
            counts[found.group(2)] = counts.get(found.group(2), 0) + int(found.group(1))
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def functions(case: Case, setup: Setup, load: wrk.Load, seconds: float, folder: Path) -> None:
    if setup.server != "poolparty":
        print("\nFunctions: only Poolparty's HTTP worker is looked into")
        return
    spy = shutil.which("py-spy")
    if spy is not None:
        _by_py_spy(spy, case, setup, load, seconds, folder)
    else:
        _by_cprofile(case, setup, load, seconds, folder)


def _by_py_spy(spy: str, case: Case, setup: Setup, load: wrk.Load, seconds: float, folder: Path) -> None:
    with servers.make(setup, case.kind, folder) as server:
        wrk.run(server.port, load, 1, folder)
        out = folder / "spy.txt"
        command = [
            spy,
            "record",
            "-n",
            "-f",
            "raw",
            "-r",
            "500",
            "-d",
            str(max(1, round(seconds) - 1)),
            "-o",
            str(out),
        ]
        process = subprocess.Popen(
            [*command, "-p", str(looked_at(server, setup))], stderr=subprocess.PIPE, text=True
        )
        wrk.run(server.port, load, seconds, folder)
        try:
            _, complaint = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            _, complaint = process.communicate()
        if not out.exists():
            print(f"\nFunctions: py-spy says {complaint.strip()}")
            return
        own, whole = stacks(out.read_text())
        every = sum(own.values()) or 1
        print("\nFunctions of the HTTP worker, by py-spy's samples:\n")
        rows = [
            [short(name, folder), f"{count / every:.1%}", f"{whole[name] / every:.1%}"]
            for name, count in sorted(own.items(), key=lambda item: -item[1])[:TOP]
        ]
        print(figures.Table(["function", "itself", "with what it calls"], rows).text())


def stacks(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """Samples in which a function was the innermost, and in which it was anywhere, from collapsed stacks."""
    own: dict[str, int] = {}
    whole: dict[str, int] = {}
    for line in text.splitlines():
        frames, _, count = line.rpartition(" ")
        if not count.isdigit():
            continue
        names = [re.sub(r":\d+\)$", ")", name) for name in frames.split(";")]
        own[names[-1]] = own.get(names[-1], 0) + int(count)
        for name in set(names):
            whole[name] = whole.get(name, 0) + int(count)
    return own, whole


def _by_cprofile(case: Case, setup: Setup, load: wrk.Load, seconds: float, folder: Path) -> None:
    dump = folder / "worker.profile"
    hooks = folder / "hooks.py"
    hooks.write_text(HOOKS.format(path=str(dump)))
    profiled = replace(setup, options=(*setup.options, "--config", str(hooks)))
    with servers.make(profiled, case.kind, folder) as server:
        sample = wrk.run(server.port, load, seconds, folder)
    if not dump.exists():
        print("\nFunctions: the HTTP worker left no profile")
        return
    requests = max(1.0, sample["requests"])
    found = pstats.Stats(str(dump)).get_stats_profile().func_profiles
    print("\nFunctions of the HTTP worker, by cProfile, which adds to each call")
    print(f"(profiled, which leaves {sample['rate']:,.0f} requests/s; install py-spy for a truer picture):\n")
    rows = [
        [
            f"{name} ({os.path.basename(entry.file_name)}:{entry.line_number})"
            if entry.line_number
            else name,
            f"{int(str(entry.ncalls).split('/')[0]) / requests:.2f}",
            f"{entry.tottime / requests * 1e6:.2f}",
            f"{entry.cumtime / requests * 1e6:.2f}",
        ]
        for name, entry in sorted(found.items(), key=lambda item: -item[1].tottime)[:TOP]
    ]
    print(figures.Table(["function", "calls", "itself µs", "with what it calls µs"], rows).text())
