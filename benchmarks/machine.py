"""The machine as the page describes it: what matters for speed, and nothing that names it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

BUSY = 0.5
"""Load beyond which figures are not to be trusted."""


def describe() -> dict[str, str]:
    return {
        "processor": processor(_read("/proc/cpuinfo")),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": memory(_read("/proc/meminfo")),
        "kernel": re.sub(r"[-+].*", "", platform.release()),
        "system": system(_read("/etc/os-release")),
    }


def load() -> float:
    """Runnable processes, averaged over the last minute: a machine that is not idle measures nothing."""
    return os.getloadavg()[0]


def processor(cpuinfo: str) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def memory(meminfo: str) -> str:
    found = re.search(r"^MemTotal:\s*(\d+) kB", meminfo)
    return f"{int(found.group(1)) / 1024 / 1024:.1f} GiB" if found else "unknown"


def system(os_release: str) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', os_release, re.MULTILINE)
    return found.group(1) if found else platform.system()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
