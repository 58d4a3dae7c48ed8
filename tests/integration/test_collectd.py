"""The metrics in a real collectd, by its exec plugin."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server import CHECKOUT, Server, wait_until

Serve = Callable[..., Server]

READY = CHECKOUT / "conf" / "collectd.conf"
USER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
"""Who asks: the exec plugin runs nothing as root."""


@pytest.fixture(scope="module")
def collectd() -> str:
    found = shutil.which("collectd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        reason = "no collectd: `bin/install-interpreters collectd` installs it"
        if os.environ.get("CI") and os.environ.get("POOLPARTY_TEST_ALL"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture
def python() -> str:
    """A Python that USER may run, with this checkout."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        words = [candidate, str(CHECKOUT / "bin" / "poolparty-ctl"), "--version"]
        user = {"user": USER, "extra_groups": []} if os.geteuid() == 0 else {}
        try:
            subprocess.run(words, check=True, capture_output=True, cwd="/", **user)  # type: ignore[call-overload]
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    pytest.skip(f"no Python that {USER} may run")


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that USER may look into; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_collectd_keeps_the_metrics(directory: Path, serve: Serve, collectd: str, python: str) -> None:
    group = ["--ctl-socket-group", str(pwd.getpwnam(USER).pw_gid)]
    server = serve(*group, "--max-pool-size", "2", "--min-pool-size", "2", directory=directory / "server")
    server.wait_ready(2)
    for _ in range(7):
        assert server.get("/").status == 200

    # As it comes with the server, but for who asks what program about which socket.
    ready = READY.read_text().replace('"www-data"', f'"{USER}"')
    ready = ready.replace('"poolparty-ctl"', f'"{python}" "{CHECKOUT / "bin" / "poolparty-ctl"}"')
    ready = ready.replace('"/run/poolparty/poolparty.sock"', f'"{server.ctl_socket}"').replace('"10"', '"1"')
    conf = directory / "collectd.conf"
    conf.write_text(
        f'FQDNLookup false\nInterval 1\nBaseDir "{directory}"\nPIDFile "{directory}/pid"\n'
        f'LoadPlugin logfile\n<Plugin logfile>\n  File "{directory}/log"\n</Plugin>\n'
        f'LoadPlugin csv\n<Plugin csv>\n  DataDir "{directory}/csv"\n  StoreRates false\n</Plugin>\n{ready}'
    )
    daemon = subprocess.Popen([collectd, "-f", "-C", str(conf)], stdin=subprocess.DEVNULL)
    try:

        def values(metric: str) -> list[float]:
            files = directory.glob(f"csv/{socket.gethostname()}/poolparty-shop/{metric}-2*")
            lines = [line for file in files for line in file.read_text().splitlines()[1:]]
            return [float(line.split(",")[1]) for line in lines if line.count(",") == 1]

        wait_until(lambda: len(values("gauge-workers")) >= 2, "two rounds", 30)
        assert set(values("gauge-workers")) == {2.0}
        assert set(values("counter-worker-restarts")) == {0.0}
        wait_until(lambda: values("counter-requests"), "requests")
        assert set(values("counter-requests")) == {7.0}
        server.get("/")
        wait_until(lambda: 8.0 in values("counter-requests"), "one more", 30)
        said = (directory / "log").read_text()
        assert "error" not in said.lower() and "parse" not in said.lower(), said
    finally:
        daemon.terminate()
        daemon.wait(30)
