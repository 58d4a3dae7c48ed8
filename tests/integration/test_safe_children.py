"""What a whole server does with the options that keep its children within bounds."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from client import Client
from server import APP, Server, process_state, wait_until

Serve = Callable[..., Server]

SAY = """
import resource
limit = lambda name: resource.getrlimit(getattr(resource, "RLIMIT_" + name))[0]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("limits", limit("AS"), limit("NOFILE"), limit("CPU"), limit("CORE"))
print("rights", status["NoNewPrivs"].strip(), os.nice(0), open("/proc/self/oom_score_adj").read().strip())
print("names", *sorted(os.environ), flush=True)
"""

CONFINED = f"""
pool_cmd = {APP!r}
worker_rlimit_as = "1G"
worker_rlimit_nofile = 64
worker_rlimit_cpu = "10m"
worker_rlimit_core = 0
worker_nice = 2
worker_no_new_privs = True
worker_oom_score_adj = 400
worker_env_clear = True
worker_env_keep = ["PATH", "LC_*"]
raw_env = ["COLOUR=blue", "POOLPARTY_TEST_BOOT=" + {SAY!r}]
"""


def test_every_bound_of_a_configuration_file_is_its_childrens(serve: Serve, tmp_path: Path) -> None:
    conf = tmp_path / "conf.py"
    conf.write_text(CONFINED)
    server = serve("-c", str(conf), command=None, environment={"SECRET": "s", "LC_TIME": "C", "HOME": "/h"})
    assert server.get("/").status == 200
    [limits] = server.wait_log(" limits ")
    assert limits.endswith(f"limits {1 << 30} 64 600 0")
    [rights] = server.wait_log(" rights ")
    assert rights.endswith(f"rights 1 {os.nice(0) + 2} 400")
    [names] = server.wait_log(" names ")
    found = set(names.partition(" names ")[2].split())
    assert {"PATH", "LC_TIME", "COLOUR", "POOLPARTY_FEATURES", "PYTHONPATH"} <= found
    assert not {"SECRET", "HOME"} & found


def test_new_bounds_are_the_new_childrens_at_sighup(serve: Serve, tmp_path: Path) -> None:
    conf = tmp_path / "conf.py"
    conf.write_text(CONFINED)
    server = serve("-c", str(conf), command=None)
    server.wait_log(" limits ")
    conf.write_text(CONFINED.replace("= 64", "= 65"))
    server.signal(signal.SIGHUP)
    lines = server.wait_log(" limits ", count=2)
    assert lines[1].endswith(f"limits {1 << 30} 65 600 0")


def test_a_bound_that_cannot_be_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    server = Server(tmp_path, "--worker-rlimit-as", "1M")
    server.wait_exit(status=1)
    assert "Error: worker_rlimit_as = '1M': with less than" in server.log
    assert "Traceback" not in server.log
    server.check_gone()


def test_the_members_of_a_group_may_use_the_control_socket(serve: Serve) -> None:
    server = serve("--ctl-socket-group", str(os.getegid()))
    status = server.ctl_socket.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, os.getegid())
    assert server.ctl("stats")[-1] == "OK"


@pytest.mark.parametrize("how", ["dies", "restart", "stop"])
def test_what_a_child_has_started_goes_with_it(serve: Serve, how: str) -> None:
    """However the child ends: a grandchild would keep its files, its locks and its port."""
    server = serve(expected=["worker died"])
    with Client(server.address) as client:
        grandchild = int(client.ask("GET", "/fork").text)
    server.not_its_own.add(grandchild)
    assert process_state(grandchild) not in (None, "Z")
    if how == "dies":
        os.kill(server.children()[0], signal.SIGKILL)
    elif how == "restart":
        assert server.ctl("restart-workers") == ["OK"]
    else:
        server.terminate()
    wait_until(lambda: process_state(grandchild) in (None, "Z"), "the grandchild's end")
