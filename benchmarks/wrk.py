"""wrk as a load: its command line, its Lua script, and what it reports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MARK = "RESULT "

DONE = (
    """done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('"""
    + MARK
    + """{"requests": %d, "microseconds": %d, "bytes": %d, "connect": %d, "read": %d, "write": %d, '
    .. '"status": %d, "timeout": %d, "p50": %d, "p99": %d, "p999": %d, "longest": %d}\\n',
    summary.requests, summary.duration, summary.bytes, e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max))
end
"""
)


@dataclass(frozen=True)
class Load:
    """Requests sent as fast as their answers come, on this many connections."""

    connections: int = 16
    method: str = "GET"
    body_size: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


def script(load: Load) -> str:
    """The Lua script that makes the load's requests and prints the result as one line of JSON."""
    lines = [f'wrk.method = "{load.method}"']
    if load.body_size:
        lines.append(f'wrk.body = string.rep("x", {load.body_size})')
    lines.extend(f"wrk.headers[{_quoted(name)}] = {_quoted(value)}" for name, value in load.headers.items())
    return "\n".join(lines) + "\n" + DONE


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def run(port: int, load: Load, seconds: float, folder: Path) -> dict[str, float]:
    """Put the load on 127.0.0.1:`port`; the measures, times in milliseconds."""
    path = folder / "load.lua"
    path.write_text(script(load))
    whole = max(1, round(seconds))
    command = ["wrk", "-t1", f"-c{load.connections}", f"-d{whole}s", "--timeout", "10s", "--latency"]
    command += ["-s", str(path), f"http://127.0.0.1:{port}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=whole + 60, check=False)
    return parse(done.stdout, done.stderr)


def parse(output: str, complaint: str = "") -> dict[str, float]:
    """Measures from wrk's output. `errors` is every request that had no good answer, whatever the cause."""
    for line in output.splitlines():
        if line.startswith(MARK):
            break
    else:
        raise ValueError(f"wrk reported nothing: {complaint.strip() or output.strip()}")
    found = json.loads(line[len(MARK) :])
    seconds = found["microseconds"] / 1e6
    causes = ("connect", "read", "write", "status", "timeout")
    return {
        "requests": found["requests"],
        # What was answered with an error is no throughput.
        "rate": (found["requests"] - found["status"]) / seconds,
        "megabytes": found["bytes"] / 1e6 / seconds,
        **{name: found[name] / 1000 for name in ("p50", "p99", "p999", "longest")},
        **{f"{cause}_errors": found[cause] for cause in causes},
        "errors": sum(found[cause] for cause in causes),
    }
