"""What a child is kept within, beyond its user: limits, niceness, no_new_privs, its lot when memory ends.

Read from the options here, carried out by launcher.py in each child. Runs in the arbiter; `check_rights` also
before it, so that what the server may not give is a sentence at its start, and not the end of every child.
"""

from __future__ import annotations

import os
import resource
import sys

from poolparty.errors import ConfigError
from poolparty.settings import UNLIMITED, Options, complaint

RLIMITS = {
    "worker_rlimit_as": resource.RLIMIT_AS,
    "worker_rlimit_nofile": resource.RLIMIT_NOFILE,
    "worker_rlimit_cpu": resource.RLIMIT_CPU,
    "worker_rlimit_core": resource.RLIMIT_CORE,
}

CPU_GRACE = 5
"""Seconds of processor time from SIGXCPU to SIGKILL."""

CAP_SYS_NICE, CAP_SYS_RESOURCE = 23, 24
"""Numbers of Linux's capabilities: root has both, except where a container has taken one."""


def words_for_launcher(options: Options) -> tuple[str, ...]:
    """Each thing to be done as a word `option=value`, in the order in which launcher.py does them."""
    words = []
    for name in RLIMITS:
        soft = hard = getattr(options, name)
        if soft is not None:
            if name == "worker_rlimit_cpu" and soft != UNLIMITED:
                hard = _lower(soft + CPU_GRACE, resource.getrlimit(resource.RLIMIT_CPU)[1])
            words.append(f"{name}={soft}:{hard}")
    if options.worker_nice:
        words.append(f"worker_nice={options.worker_nice}")
    if options.worker_oom_score_adj is not None:
        words.append(f"worker_oom_score_adj={options.worker_oom_score_adj}")
    if options.worker_no_new_privs:
        words.append("worker_no_new_privs=1")
    return tuple(words)


def _lower(wanted: int, hard: int) -> int:
    """A hard limit that is wanted but not needed, where there is room for it."""
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def check_rights(options: Options) -> None:
    """ConfigError: this server cannot give its children what the options say."""
    if not sys.platform.startswith("linux"):
        for name in ("worker_no_new_privs", "worker_oom_score_adj"):
            if getattr(options, name) not in (None, False):
                wrong = "only Linux has that; leave it out"
                raise ConfigError(complaint(name, getattr(options, name), wrong))
    for name, number in RLIMITS.items():
        value, hard = getattr(options, name), resource.getrlimit(number)[1]
        if value is None or hard == resource.RLIM_INFINITY or 0 <= value <= hard:
            continue
        if not has_capability(CAP_SYS_RESOURCE):
            shown = "unlimited" if value == UNLIMITED else value
            wrong = f"the server's own hard limit is {hard:,}; lower the one or raise the other"
            raise ConfigError(complaint(name, shown, wrong))
    if options.worker_nice < 0 and not has_capability(CAP_SYS_NICE):
        wrong = "the server may not give its children more than it has (CAP_SYS_NICE); give 0 or more"
        raise ConfigError(complaint("worker_nice", options.worker_nice, wrong))
    wanted = options.worker_oom_score_adj
    if wanted is not None and not has_capability(CAP_SYS_RESOURCE):
        with open("/proc/self/oom_score_adj") as file:
            own = int(file.read())
        if wanted < own:
            wrong = f"the server has {own} and may not give less (CAP_SYS_RESOURCE); give {own} or more"
            raise ConfigError(complaint("worker_oom_score_adj", wanted, wrong))


def has_capability(number: int) -> bool:
    """Whether this process has one of root's rights now."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> number & 1)
    except OSError:
        pass
    return os.geteuid() == 0
