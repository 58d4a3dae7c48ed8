"""How one round of one contestant is measured: each function takes a running server and gives a sample.

A sample is name → number: rates in requests/s, times in milliseconds, what names say otherwise.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from benchmarks import servers, wrk
from benchmarks.generator import Plan
from benchmarks.idle import idle_connections
from benchmarks.processes import Cpu, Server, command_line, cpu, exact_cpu, resident
from benchmarks.servers import CHECKOUT, Setup

Measure = Callable[[Server, Setup, float], dict[str, float]]

IDLE_CONNECTIONS = 2000


def http_workers(server: Server) -> list[int]:
    """The pids of Poolparty's HTTP workers, by its own account."""
    command = [servers.server_python(), str(CHECKOUT / "bin" / "poolparty-ctl")]
    command += ["--ctl-socket", str(server.folder / "ctl.sock"), "stats", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return [worker["pid"] for worker in json.loads(done.stdout)["http_workers"]]


def _cpus(pids: Sequence[int]) -> dict[int, Cpu]:
    return {pid: cpu(pid) for pid in pids}


def _spent(before: Mapping[int, Cpu], pids: Sequence[int]) -> float:
    return sum((cpu(pid) - before.get(pid, Cpu(0, 0))).total for pid in pids)


def throughput(method: str = "GET", body_size: int = 0, headers: Mapping[str, str] | None = None) -> Measure:
    def measure(server: Server, setup: Setup, seconds: float) -> dict[str, float]:
        load = wrk.Load(setup.connections, method, body_size, headers or {})
        wrk.run(server.port, load, 1, server.folder)  # caches, allocators and prefetch settle
        before = _cpus(server.pids())
        workers = http_workers(server) if setup.server == "poolparty" else []
        sample = wrk.run(server.port, load, seconds, server.folder)
        served = max(1.0, sample["requests"])
        # Processes of before the load only: one that was started meanwhile would count its start.
        sample["cpu_us"] = _spent(before, [pid for pid in server.pids() if pid in before]) / served * 1e6
        if workers:
            sample["worker_cpu_us"] = _spent(before, workers) / served * 1e6
        return sample

    return measure


def generate(server: Server, plan: Plan) -> dict[str, float]:
    """Run the generator; its report as one flat sample."""
    command = [
        servers.generator_python(),
        "-m",
        "benchmarks.generator",
        str(server.port),
        json.dumps(asdict(plan)),
    ]
    limit = plan.seconds + plan.warm_up + 90
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, cwd=CHECKOUT)
    if done.returncode:
        raise ValueError(f"the generator failed: {done.stderr.strip()}")
    return flat(json.loads(done.stdout))


def flat(report: Mapping[str, object]) -> dict[str, float]:
    """The generator's report as a sample. 503 is an answer, counted by itself; other statuses are errors."""
    statuses, failures = report["statuses"], report["errors"]
    assert isinstance(statuses, dict)
    assert isinstance(failures, dict)
    refused = statuses.get("503", 0)
    bad = sum(count for status, count in statuses.items() if status not in ("200", "503"))
    seconds, rate = report["seconds"], report["rate"]
    assert isinstance(seconds, float)
    assert isinstance(rate, float)
    sample = {"rate": rate, "refused": refused / seconds, "status_errors": bad}
    for kind in ("all", "fast", "slow"):
        quantiles = report[kind]
        assert isinstance(quantiles, dict)
        prefix = "" if kind == "all" else f"{kind}_"
        sample.update({f"{prefix}{name}": value for name, value in quantiles.items()})
    sample.update({f"{cause}_errors": count for cause, count in failures.items()})
    sample["errors"] = bad + sum(failures.values())
    return sample


def overload(server: Server, setup: Setup, seconds: float) -> dict[str, float]:
    rate = 2 * setup.children / 0.005
    return generate(server, Plan("open", seconds, connections=4000, rate=rate, warm_up=1.5))


def mixed(server: Server, setup: Setup, seconds: float) -> dict[str, float]:
    plan = Plan("closed", seconds, connections=setup.connections, slow_share=setup.slow_share, warm_up=1.0)
    return generate(server, plan)


def idle(server: Server, setup: Setup, seconds: float) -> dict[str, float]:
    """Processor time of the server's own processes while nobody asks; the children's apart."""
    time.sleep(1)  # what follows the start is no idleness
    own, children = _own_and_children(server, setup)
    before = {pid: exact_cpu(pid) for pid in own + children}
    began = time.monotonic()
    time.sleep(seconds)
    spent = time.monotonic() - began

    def share(pids: Sequence[int]) -> float:
        return sum(exact_cpu(pid) - before[pid] for pid in pids) / spent * 100

    return {"core": share(own), "children_core": share(children)}


def _own_and_children(server: Server, setup: Setup) -> tuple[list[int], list[int]]:
    """A child is a process that runs the application's file (and is not the server, which names it too)."""
    own: list[int] = []
    children: list[int] = []
    roots = {server.pid}
    if setup.server == "poolparty":
        roots.update(http_workers(server))
    for pid in server.pids():
        is_child = pid not in roots and any(
            command_line(pid).endswith(name) for name in ("/app.janet", "/app.py", "/minimal.py")
        )
        (children if is_child else own).append(pid)
    return own, children


MEBI = 1024 * 1024


def growth(server: Server, setup: Setup, seconds: float) -> dict[str, float]:
    """Resident size of the server's own processes after 10,000 and after 100,000 requests."""
    own, _ = _own_and_children(server, setup)
    first = generate(server, Plan("closed", connections=16, count=10_000))
    early = sum(map(resident, own))
    second = generate(server, Plan("closed", connections=16, count=90_000))
    late = sum(map(resident, own))
    return {
        "growth": (late - early) / 1024,
        "early": early / MEBI,
        "late": late / MEBI,
        "errors": first["errors"] + second["errors"],
    }


def connection_memory(server: Server, setup: Setup, seconds: float) -> dict[str, float]:
    """What one idle keep-alive connection, which has had an answer, costs the server's own processes."""
    own, _ = _own_and_children(server, setup)
    generate(server, Plan("closed", connections=64, count=5_000))  # its buffers and caches are there already
    before = sum(map(resident, own))
    with idle_connections(server.port, IDLE_CONNECTIONS) as answered:
        after = sum(map(resident, own))
    return {"kib": (after - before) / 1024 / IDLE_CONNECTIONS, "errors": IDLE_CONNECTIONS - answered}
