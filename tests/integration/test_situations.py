"""What somebody finds who looks for the first time, in three situations: one route is slow, one child leaks
memory, children were restarted. Each time `poolparty-ctl top --once` tells, the status page's data, and one
line of the log."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Client
from server import Server, program, wait_until

Serve = Callable[..., Server]

SHOP = """
import os, time
import poolparty

kept = []

def report(query):
    while os.path.exists(query):
        time.sleep(0.01)
    return "done"

def handler(request):
    if request.path == "/report":
        return report(request.query.partition("&")[0])
    if request.path == "/leak":
        kept.append(b"x" * (int(request.query) << 20))
    if request.path == "/crash":
        os._exit(7)
    return str(os.getpid())

poolparty.serve(handler)
"""
"""A shop: /report?FILE waits as long as the file is there, /leak?MIB keeps so much memory, /crash ends it."""


@pytest.fixture
def shop(serve: Serve, tmp_path: Path) -> Callable[..., Server]:
    (tmp_path / "shop.py").write_text(SHOP)

    def start(*options: str, **how: Any) -> Server:
        command = [sys.executable, str(tmp_path / "shop.py")]
        options = ("--min-pool-size", "3", "--max-pool-size", "3", "--admin-address", "127.0.0.1:0", *options)
        server = serve(*options, command=command, **how)
        server.wait_ready(3)
        return server

    return start


def top(server: Server) -> list[str]:
    """The lines of `poolparty-ctl top --once`."""
    done = subprocess.run(
        [*program("poolparty-ctl"), "--ctl-socket", str(server.ctl_socket), "top", "--once", "-d", "0.1"],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.splitlines()


def page(server: Server) -> dict[str, Any]:
    """The pool as the status page's data tells it."""
    with Client(("127.0.0.1", server.admin_port)) as client:
        answer = client.ask("GET", "/stats.json", fields={"Host": "localhost"})
    pool: dict[str, Any] = json.loads(answer.body)["pools"][0]
    return pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file; a report waits for its end."""
    path = tmp_path / "gate"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def test_one_route_is_slow_which(shop: Callable[..., Server], gate: Path) -> None:
    server = shop("--slowlog-timeout", "500ms")
    slow = server.connect()
    slow.request("GET", f"/report?{gate}&year=2026")
    (pid,) = wait_until(lambda: server.children("busy"), "the report's child")
    for _ in range(5):
        assert server.get("/").text != str(pid)
    (line,) = server.wait_log('msg="slow request"')
    assert re.search(rf'worker-pid={pid} age=\S+ method=GET target="/report\?{gate}&year=2026" ', line)
    server.wait_log(r'shop.py", line \d+ in report$')  # and where it is
    wait_until(
        lambda: any(child["runs"] and child["runs"]["seconds"] > 1 for child in page(server)["children"]),
        "a second",
    )
    lines = top(server)
    assert [line for line in lines if line.startswith("longest: ")] == [
        next(line for line in lines if line.startswith(f"longest: worker {pid} has run GET /report?{gate}"))
    ]
    (row,) = [line for line in lines if line.split()[:1] == [str(pid)]]
    assert re.search(rf" busy .* [1-9]\.\ds +GET /report\?{gate}&year=2026$", row)
    (told,) = [child for child in page(server)["children"] if child["runs"]]
    assert (told["pid"], told["runs"]["method"]) == (pid, "GET")
    assert told["runs"]["target"] == f"/report?{gate}&year=2026"
    gate.unlink()
    assert slow.answer().text == "done"
    assert not any(line.startswith("longest: ") for line in top(server))


def test_one_child_leaks_which(shop: Callable[..., Server]) -> None:
    server = shop("--worker-memory-limit", "120M")
    pid = int(server.get("/leak?60").text)
    wait_until(lambda: any(child["outgrown"] for child in page(server)["children"]), "a look at the memory")
    (told,) = [child for child in page(server)["children"] if child["outgrown"]]
    assert told["pid"] == pid and told["outgrown"] > 2
    lines = top(server)
    (headline,) = [line for line in lines if line.startswith("memory: ")]
    assert re.fullmatch(rf"memory: worker {pid} has \d+\.\dM, \d+\.\d times the others'", headline)
    # It goes on, and is replaced.
    with server.connect() as client:
        assert int(client.ask("GET", "/leak?80").text) == pid
    (line,) = server.wait_log("memory limit")
    assert re.search(rf'msg="worker ended" worker-pid={pid} .* cause="memory limit" rss=1\d\d\.\dM$', line)
    server.wait_ready(3)
    assert pid not in server.children()
    assert any(str(pid) in line and 'cause="memory limit"' in line for line in top(server))
    (event,) = page(server)["events"]
    assert (event["kind"], event["pid"]) == ("replaced", pid)
    assert not any(line.startswith("memory: ") for line in top(server))


def test_children_were_restarted_why(shop: Callable[..., Server], gate: Path) -> None:
    server = shop("--worker-request-timeout", "1s", expected=["cause=killed", "request timed out"])

    def last_is(kind: str, pid: int | None, pattern: str) -> str:
        """The newest event of this kind, in the log and the page's data; its text."""
        (line,) = server.wait_log(pattern)
        event = wait_until(
            lambda: next(
                (
                    event
                    for event in reversed(page(server)["events"])
                    if (event["kind"], event["pid"]) == (kind, pid)
                ),
                None,
            ),
            f"an event: {kind}",
        )
        if pid is not None:
            assert line.endswith(event["text"]), "the log says the same"
        server.wait_ready(3)
        assert pid not in server.children()
        text: str = event["text"]
        return text

    # It crashed, and with which request.
    assert server.ask("POST", "/crash", b"").status == 502
    (lost,) = server.wait_log('msg="request lost its worker"')
    found = re.search(r'worker-pid=(\d+) method=POST target="/crash" outcome="it was answered 502"$', lost)
    assert found
    death = last_is("death", int(found[1]), rf'msg="worker died" worker-pid={found[1]} exit-code=7 ')
    lost_request = 'msg="request lost its worker" worker-pid='
    (told,) = wait_until(
        lambda: [event["text"] for event in page(server)["events"] if event["kind"] == "request"], "which"
    )
    assert re.fullmatch(rf"{lost_request}{found[1]} age=0\.\d+s method=POST target=/crash", told)
    assert {line.partition(" ")[2] for line in top(server)[-2:]} == {death, told}
    # It ran a request for too long.
    assert server.get(f"/report?{gate}").status == 504
    (line,) = server.wait_log('cause="request timeout"')
    pid = int(re.findall(r"worker-pid=(\d+)", line)[0])
    last_is("end", pid, f'worker-pid={pid} .*cause="request timeout"')
    told = [event["text"] for event in page(server)["events"] if event["kind"] == "request"][-1]
    assert re.fullmatch(rf"{lost_request}{pid} age=1\.\d+s method=GET target=/report\?{gate}", told)
    # Somebody asked, for one or for all.
    pid = server.children()[0]
    assert server.ctl(f"drain {pid}") == ["OK"]
    drained = last_is("replaced", pid, rf'msg="worker ended" worker-pid={pid} .*cause=drained')
    pid = server.children()[0]
    assert server.ctl(f"kill {pid}") == ["OK"]
    killed = last_is("end", pid, rf'msg="worker ended" worker-pid={pid} .*cause=killed')
    assert server.ctl("restart-workers") == ["OK"]
    last_is("restart", None, 'msg="restarting workers" reason="asked for on the control socket"')
    told_last = [drained, killed, "restarting all workers: asked for on the control socket"]
    told_last += ["all workers have been replaced"]
    assert [event["text"] for event in page(server)["events"][-4:]] == told_last
    assert [line.partition(" ")[2] for line in top(server)[-4:]] == told_last
