"""conf/systemd by systemd's own tools, and a server within what the unit allows."""

from __future__ import annotations

import errno
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from client import PATIENCE, Client
from server import CHECKOUT, Server, wait_until

UNITS = CHECKOUT / "conf" / "systemd"


def setting(name: str, unit: str = "poolparty.service") -> str:
    """What a unit's file says last."""
    found = re.findall(rf"^{name}=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)
    assert found, f"{unit} has no {name}="
    return str(found[-1])


def test_systemd_finds_no_fault_in_the_units(systemd_analyze: str, tmp_path: Path) -> None:
    installed = tmp_path / "poolparty"
    installed.write_text("#!/bin/sh\n")
    installed.chmod(stat.S_IRWXU)
    for unit in ("poolparty.service", "poolparty.socket"):
        text = (UNITS / unit).read_text().replace("/opt/poolparty/bin/poolparty", str(installed))
        (tmp_path / unit).write_text(text)
    units = [str(tmp_path / unit) for unit in ("poolparty.service", "poolparty.socket")]
    done = subprocess.run([systemd_analyze, "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_stops_within_the_time_that_systemd_gives_it() -> None:
    """TimeoutStopSec is above the default graceful_timeout, with which a request may end."""
    assert int(setting("TimeoutStopSec")) > 65 + 5


def test_systemd_hands_it_the_socket_and_hears_when_it_is_ready(socket_activate: str, tmp_path: Path) -> None:
    """By the unit's own command line; systemd-socket-activate starts it at the first connection."""
    address, notices = str(tmp_path / "http"), tmp_path / "notify"
    conf = tmp_path / "poolparty.conf.py"
    conf.write_text(f"pool_cmd = {shlex.join([sys.executable, str(CHECKOUT / 'examples' / 'app.py')])!r}\n")
    _, *options = shlex.split(setting("ExecStart"))
    assert options[0::2] == ["--config", "--ctl-socket"]
    options = ["--config", str(conf), "--ctl-socket", "./poolparty.sock"]
    words = [socket_activate, "--listen", address, "--setenv", f"NOTIFY_SOCKET={notices}"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(notices))
        notified.settimeout(PATIENCE)
        server = Server(tmp_path / "server", *options, command=None, under=words)
        try:
            wait_until(lambda: Path(address).exists(), "the socket")
            with Client(address) as client:
                client.request("GET", "/")
                server.wait_listening()
                assert client.answer().status == 200
            assert notified.recv(4096).decode().splitlines()[0] == "READY=1"
            server.terminate()
        except BaseException:
            server.kill_session()
            server.process.wait()
            print(server.log)
            raise
    assert Path(address).exists(), "systemd's socket is systemd's to remove"


def system_calls(systemd_analyze: str, name: str) -> set[str]:
    """A group of systemd's with all that it holds, or a system call."""
    if not name.startswith("@"):
        return {name}
    shown = subprocess.run(
        [systemd_analyze, "syscall-filter", name], capture_output=True, text=True, check=True
    )
    names = [line.strip() for line in shown.stdout.splitlines()[1:]]
    return {call for name in names if name and name[0] != "#" for call in system_calls(systemd_analyze, name)}


FILTERED = """
import ctypes, os, socket, sys
class Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]
EQUAL, ALLOW, REFUSE = 4, 0x7fff0000, 0x00050000
lib = ctypes.CDLL("libseccomp.so.2")
lib.seccomp_init.restype = ctypes.c_void_p
filter = ctypes.c_void_p(lib.seccomp_init(REFUSE | int(sys.argv[1])))
families, calls = sys.argv[2].split(), sys.argv[3].split()
for call in calls:
    number = lib.seccomp_syscall_resolve_name(call.encode())
    if call == "socket":
        for family in families:
            only = Comparison(0, EQUAL, getattr(socket, family), 0)
            assert lib.seccomp_rule_add_array(filter, ALLOW, number, 1, ctypes.byref(only)) == 0
    elif number >= 0:
        assert lib.seccomp_rule_add_array(filter, ALLOW, number, 0, None) == 0, call
assert lib.seccomp_load(filter) == 0
os.execv(sys.argv[4], sys.argv[4:])
"""
"""Runs a program that may do only these system calls, and open sockets only of these families: error number,
families, system calls, program and arguments. It gains no privileges either, nor does what it starts."""


@pytest.fixture
def within_the_unit(systemd_analyze: str) -> list[str]:
    """What runs a program with the unit's SystemCallFilter and RestrictAddressFamilies."""
    calls = system_calls(systemd_analyze, setting("SystemCallFilter"))
    assert "execve" in calls and "mount" not in calls
    number = getattr(errno, setting("SystemCallErrorNumber"))
    families = setting("RestrictAddressFamilies")
    return [sys.executable, "-c", FILTERED, str(number), families, " ".join(sorted(calls))]


def test_the_filter_of_the_test_holds(within_the_unit: list[str]) -> None:
    """Otherwise the next one would show nothing."""
    for forbidden in ("os.chroot('/')", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"):
        words = [*within_the_unit, sys.executable, "-c", f"import os, socket; {forbidden}"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert "PermissionError" in done.stderr


def test_a_server_lives_with_what_the_unit_allows(within_the_unit: list[str], tmp_path: Path) -> None:
    options = ["--max-pool-size", "3", "--worker-request-timeout", "1s", "--worker-nice", "1"]
    options += ["--worker-oom-score-adj", "900", "--worker-rlimit-core", "0", "--worker-no-new-privs"]
    options += ["--statsd-host", "localhost:9", "--admin-address", "127.0.0.1:0"]
    with Server(tmp_path / "server", *options, under=within_the_unit) as server:
        server.wait_ready()
        assert server.get("/").status == 200
        assert server.ctl("spawn-workers 2") == ["OK"]
        server.wait_ready(3)
        (child, *_) = server.children()
        assert Path(f"/proc/{child}/status").read_text().count("NoNewPrivs:\t1") == 1
        assert all(process["rss"] for process in server.pool()["children"])
        server.expected.append("worker request timed out")
        with server.gate() as gate:
            assert server.get(gate).status == 504
        assert server.ctl("restart-workers", patience=60) == ["OK"]
        server.signal(signal.SIGHUP)
        server.wait_log("The workers are those of the new configuration")
        assert server.get("/").status == 200
        assert "PermissionError" not in server.log and "Operation not permitted" not in server.log


def test_the_programs_of_a_machine_may_run_so(within_the_unit: list[str], janet: str, tmp_path: Path) -> None:
    command = [janet, str(CHECKOUT / "examples" / "app.janet")]
    with Server(tmp_path / "server", command=command, under=within_the_unit) as server:
        server.wait_ready()
        assert server.get("/").status == 200
