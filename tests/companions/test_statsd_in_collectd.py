"""The pool's figures at a real statsd receiver: collectd's plugin of that name. With --all."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from server import Server, wait_until


def test_collectd_takes_every_line(collectd: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = tmp_path / "collectd.conf"
    conf.write_text(
        f'FQDNLookup false\nInterval 1\nHostname "here"\nBaseDir "{tmp_path}"\nPIDFile "{tmp_path}/pid"\n'
        f'LoadPlugin logfile\n<Plugin logfile>\n  File "{tmp_path}/log"\n  PrintSeverity true\n</Plugin>\n'
        f'LoadPlugin csv\n<Plugin csv>\n  DataDir "{tmp_path}/csv"\n  StoreRates false\n</Plugin>\n'
        f'LoadPlugin statsd\n<Plugin statsd>\n  Host "127.0.0.1"\n  Port "{port}"\n</Plugin>\n'
    )
    daemon = subprocess.Popen([collectd, "-f", "-C", str(conf)], stdin=subprocess.DEVNULL)

    def last(metric: str) -> float | None:
        lines = [
            line
            for path in sorted(tmp_path.glob(f"csv/here/statsd/{metric}-2*"))
            for line in path.read_text().splitlines()[1:]
            if line.count(",") == 1
        ]
        return float(lines[-1].split(",")[1]) if lines else None

    try:
        log = tmp_path / "log"
        wait_until(lambda: log.exists() and "Initialization complete" in log.read_text(), "collectd", 30)
        with Server(
            tmp_path / "server", "--statsd-host", f"127.0.0.1:{port}", "--statsd-prefix", "site"
        ) as server:
            server.wait_ready()
            for _ in range(7):
                assert server.get("/").status == 200
            wait_until(lambda: last("derive-site.poolparty.requests.default") == 7, "seven requests", 30)
            wait_until(lambda: last("gauge-site.poolparty.workers.default") == 1, "one worker", 30)
            p99 = last("gauge-site.poolparty.service_seconds_p99.default")
            assert p99 is not None and 0 <= p99 < 30
            assert server.get("/").status == 200
        wait_until(lambda: last("derive-site.poolparty.requests.default") == 8, "the last request", 30)
        assert "[error]" not in log.read_text() and "[warning]" not in log.read_text(), log.read_text()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"no line of statsd", ("127.0.0.1", port))
        wait_until(lambda: "[error]" in log.read_text(), "collectd's word about another's line", 30)
    finally:
        daemon.terminate()
        daemon.wait(30)
