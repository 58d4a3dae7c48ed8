"""The first minutes with it: both ways of starting, both languages, the control socket by hand, the demo."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from client import PATIENCE, Client
from server import Server, process_state, wait_until

Serve = Callable[..., Server]


@pytest.mark.parametrize("gunicorn", [False, True], ids=["poolparty", "gunicorn"])
def test_the_python_example_is_served(serve: Serve, checkout: Path, gunicorn: bool) -> None:
    server = serve(
        "--max-pool-size", "8", command=[sys.executable, str(checkout / "examples/app.py")], gunicorn=gunicorn
    )
    answer = server.get("/")
    assert (answer.status, answer.text) == (200, "Hello from Python!\n")
    assert answer.get("Server") == "poolparty"
    assert answer.get("Date")
    assert server.ask("POST", "/upload", b"x" * 100_000).text == "100000 bytes\n"


@pytest.mark.parametrize("gunicorn", [False, True], ids=["poolparty", "gunicorn"])
def test_the_janet_example_is_served(serve: Serve, checkout: Path, janet: str, gunicorn: bool) -> None:
    server = serve(
        "--max-pool-size", "8", command=[janet, str(checkout / "examples/app.janet")], gunicorn=gunicorn
    )
    answer = server.get("/")
    assert (answer.status, answer.text) == (200, "Hello from Janet!\n")
    assert server.ask("POST", "/upload", b"x" * 100_000).text == "100000 bytes\n"


def test_an_application_that_knows_only_version_1_is_served(serve: Serve) -> None:
    """The protocol as the original speaks it, by hand: no Ready, no answer to a health check."""
    program = """
import os
def read(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            os._exit(0)
        data += piece
    return data
while True:
    payload = read(int.from_bytes(read(4), "little"))
    if payload[0] == 0:
        os.write(3, b"\\x09\\0\\0\\0" + b"\\0\\xc8\\x01\\0\\x04old\\n")
"""
    server = serve(
        "--worker-health-check-interval", "200ms", command=[sys.executable, "-I", "-S", "-c", program]
    )
    assert server.get("/").text == "old\n"
    [pid] = server.wait_ready()
    wait_until(lambda: server.get("/").status == 200 and server.stats()["uptime"] > 1, "a few health checks")
    assert server.children() == [pid]


def test_it_listens_on_a_unix_socket(serve: Serve) -> None:
    server = serve(bind="unix:http.sock")
    assert server.get("/echo").json["remote_address"] == "@"


def test_a_worker_library_that_is_not_installed_is_found_by_the_programs_it_serves(
    serve: Serve, tmp_path: Path
) -> None:
    system = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    program = tmp_path / "program.py"
    program.write_text("import poolparty\npoolparty.serve(lambda request: poolparty.__file__)\n")
    server = serve(command=[system, str(program)])
    assert "sdk" in server.get("/").text


@pytest.mark.parametrize("gunicorn", [False, True], ids=["poolparty", "gunicorn"])
def test_options_may_come_from_a_configuration_file(serve: Serve, tmp_path: Path, gunicorn: bool) -> None:
    (tmp_path / "conf.py").write_text(
        f"pool_cmd = [{sys.executable!r}, {str(Path(__file__).with_name('app.py'))!r}]\n"
        "min_pool_size = 2\nmax_pool_size = 3\nmax_request_body_size = 10\n"
    )
    server = serve("-c", str(tmp_path / "conf.py"), command=None, gunicorn=gunicorn)
    server.wait_ready(2)
    assert (server.pool()["min"], server.pool()["max"]) == (2, 3)
    assert server.ask("POST", "/", b"x" * 11).status == 413


def test_a_restart_by_nc_prints_ok(serve: Serve) -> None:
    server = serve("--min-pool-size", "2", "--max-pool-size", "2")
    before = server.wait_ready(2)
    netcat = shutil.which("nc")
    command = "restart-workers\nexit\n"
    if netcat:
        done = subprocess.run(
            [netcat, "-U", str(server.ctl_socket)],
            input=command,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.stdout == "OK\n"
    else:
        assert server.ctl("restart-workers") == ["OK"]
    after = server.wait_ready(2)
    assert not set(before) & set(after)


def test_poolparty_ctl_talks_to_it(serve: Serve) -> None:
    server = serve()
    server.wait_ready()
    command = [sys.executable, "-m", "poolparty.ctl", "--ctl-socket", str(server.ctl_socket)]
    stats = subprocess.run([*command, "stats"], capture_output=True, text=True, timeout=PATIENCE)
    assert re.match(r"workers=1\nworker-restarts=0\n", stats.stdout)
    assert stats.returncode == 0
    wrong = subprocess.run(
        [*command, "spawn-workers", "many"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "many" in wrong.stderr


def test_stats_count_what_was_done(serve: Serve) -> None:
    server = serve("--max-request-body-size", "10")
    for _ in range(5):
        server.get("/")
    server.ask("POST", "/", b"x" * 11)
    # A client may have its answer a moment before it is counted.
    wait_until(lambda: server.pool()["counters"]["rejected"] == 1, "the refused request")
    pool = server.pool()
    assert pool["requests"] == 5
    assert pool["outcomes"]["answered"] == 5
    [child] = pool["children"]
    assert child["requests"] == 5
    assert child["rss"] > 1_000_000
    [worker] = server.stats()["http_workers"]
    assert worker["requests"] == 5


def test_the_control_socket_is_the_owners_alone(serve: Serve) -> None:
    server = serve()
    assert server.ctl_socket.stat().st_mode & 0o777 == 0o600


def test_a_command_that_does_not_exist_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    server = Server(tmp_path, command=["/nonexistent/program"])
    server.wait_exit(status=1)
    assert "/nonexistent/program" in server.log
    assert len(server.log.strip().splitlines()) == 1
    server.check_gone()


def test_a_second_server_on_the_same_control_socket_is_refused(serve: Serve, tmp_path: Path) -> None:
    first = serve()
    second = Server(tmp_path / "other", "--ctl-socket", str(first.ctl_socket))
    second.wait_exit(status=1)
    assert str(first.ctl_socket) in second.log
    assert first.get("/").status == 200
    assert first.ctl("stats")[-1] == "OK"


@pytest.mark.slow
def test_the_demo_answers(checkout: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "log").open("wb") as log:
        demo = subprocess.Popen(
            [str(checkout / "bin/demo"), str(port), "--ctl-socket", str(tmp_path / "ctl")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        # The first run in a checkout makes its virtual environment.
        wait_until(lambda: "Listening at" in (tmp_path / "log").read_text(), "the demo", 180)
        assert f"open http://127.0.0.1:{port}/" in (tmp_path / "log").read_text()
        with Client(("127.0.0.1", port)) as client:
            assert client.ask().text == "Hello from Python!\n"
        demo.send_signal(signal.SIGINT)
        assert demo.wait(20) == 0
    finally:
        if process_state(demo.pid) not in (None, "Z"):
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()
