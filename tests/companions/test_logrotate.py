"""conf/logrotate by a real logrotate: nothing is lost, and the new files are written."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

from client import PATIENCE
from server import CHECKOUT, Server, wait_until

READY = CHECKOUT / "conf" / "logrotate" / "poolparty"


def test_both_logs_are_rotated_and_go_on(logrotate: str, tmp_path: Path) -> None:
    logs, pid = tmp_path / "log", tmp_path / "pid"
    logs.mkdir(mode=0o755)
    access, error = logs / "access.log", logs / "error.log"
    text = READY.read_text()
    assert "--pid /run/poolparty/pid --log-file /var/log/poolparty/error.log" in text
    text = text.replace("/var/log/poolparty", str(logs)).replace("/run/poolparty/pid", str(pid))
    conf = tmp_path / "logrotate.conf"
    conf.write_text(text)
    conf.chmod(0o644)

    def rotate() -> None:
        words = [logrotate, "--verbose", "--force", "--state", str(tmp_path / "state"), str(conf)]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0 and "error:" not in done.stderr, done.stderr

    options = ["--pid", str(pid), "--log-file", str(error), "--access-logfile", str(access)]
    server = Server(tmp_path / "server", *options)
    server._log_file = error
    try:
        wait_until(error.exists, "the log")
        server.wait_listening()
        server.wait_ready()
        for number in range(3):
            assert server.get(f"/?round={number}").status == 200
            wait_until(lambda n=number: f"round={n}" in access.read_text(), "the line", PATIENCE)  # type: ignore[misc]
            rotate()
            # The pool's thread writes through the arbiter's file, an HTTP worker has one of its own.
            wait_until(lambda: access.exists() and error.exists(), "new files", PATIENCE)
            server.ctl("restart-workers")
            wait_until(lambda: "restarting workers" in error.read_text(), "lines in the new file", PATIENCE)
        assert server.get("/?round=3").status == 200
        wait_until(lambda: "round=3" in access.read_text(), "the last line", PATIENCE)
        assert "round=2" not in access.read_text()
        assert "round=2" in (logs / "access.log.1").read_text()
        assert "round=1" in gzip.decompress((logs / "access.log.2.gz").read_bytes()).decode()
        assert "round=0" in gzip.decompress((logs / "access.log.3.gz").read_bytes()).decode()
        assert "Booting worker" in gzip.decompress((logs / "error.log.3.gz").read_bytes()).decode()
        server.terminate()
        pid.unlink(missing_ok=True)
        rotate()  # nobody is there to be told
    except BaseException:
        server.kill_session()
        server.process.wait()
        raise
