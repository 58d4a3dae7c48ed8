"""Children that die, hang, talk nonsense or start processes: the limit works and the others are unharmed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from client import Client
from server import Server, process_state, wait_until

from poolparty.wire.frames import HTTPResponse, Ready, ResponseHead, encode_response, frame

Serve = Callable[..., Server]

ENDED = ["worker ended", "worker died", "worker broken", "worker request timed out"]
"""What the log says of a child whose end nobody asked for."""

BOOT_SAYS_WHAT_IT_HAS = """
numbers = os.listdir("/proc/self/fd")
print("descriptors", sorted(int(fd) for fd in numbers if os.path.exists("/proc/self/fd/" + fd)))
print("ids", os.getpgrp() == os.getpid(), os.getsid(0) == os.getppid())
print("ignored", [name for name in ("SIGPIPE", "SIGXFSZ") if signal.getsignal(getattr(signal, name)) is None])
sys.stdout.flush()
"""


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def gone(pid: int) -> bool:
    return process_state(pid) is None


# --- what a child is given ---------------------------------------------------------------------------------


def test_a_child_has_four_descriptors_and_a_process_group_of_its_own(serve: Serve) -> None:
    server = serve("--workers", "2", environment={"POOLPARTY_TEST_BOOT": BOOT_SAYS_WHAT_IT_HAS})
    [line] = server.wait_log("descriptors")
    assert "descriptors [0, 1, 2, 3]" in line
    [line] = server.wait_log(" ids ")
    assert "ids True True" in line


def test_a_child_has_no_descriptor_of_the_server_or_of_another_child(serve: Serve) -> None:
    server = serve("--min-pool-size", "3", "--max-pool-size", "3")
    links = json.loads(server.get("/fds").text).values()
    assert not any("socket" in link or "eventpoll" in link for link in links)
    assert (
        len({link for link in links if link.startswith("pipe:")}) == 3
    )  # its requests, its answers, its output


def test_descriptors_do_not_leak_over_many_deaths(serve: Serve) -> None:
    server = serve("--max-pool-size", "2", "--min-pool-size", "2", expected=ENDED)
    server.wait_ready(2)
    server.get("/")
    [http_worker] = server.http_workers()

    def counts() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (server.pid, http_worker)]

    def replace_one() -> None:
        pid = int(server.get("/").get("X-Pid") or 0)
        kill(pid)
        wait_until(lambda: pid not in server.children(), "it to be gone")
        server.wait_ready(2)

    replace_one()
    wait_until(lambda: server.pool()["idle"] == 2, "rest")
    before = counts()
    for _ in range(10):
        replace_one()
    server.get("/")
    wait_until(
        lambda: all(now <= then + 2 for now, then in zip(counts(), before, strict=True)), f"{before} again"
    )


def test_chdir_and_env_are_the_childs(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    boot = "print('here', os.getcwd(), os.environ['COLOUR'], flush=True)"
    server = serve(
        *("--chdir", str(tmp_path / "there"), "--env", "COLOUR=blue", "--env", f"POOLPARTY_TEST_BOOT={boot}"),
        *("--ctl-socket", str(tmp_path / "server1" / "poolparty.sock")),
    )
    [line] = server.wait_log(" here ")
    assert line.endswith(f"here {tmp_path / 'there'} blue")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process to another user")
def test_user_group_and_umask_are_the_childs(serve: Serve, tmp_path: Path) -> None:
    boot = "print('who', os.getuid(), os.getgid(), os.getgroups(), oct(os.umask(0)), flush=True)"
    program = ["/usr/bin/python3", "-c", boot.join(["import os; ", "; import time; time.sleep(1000)"])]
    os.chmod(tmp_path, 0o755)
    server = serve(
        *("--user", "65534", "--group", "65534", "--umask", "0o027"),
        command=program,
    )
    [line] = server.wait_log(" who ")
    assert "who 65534 65534" in line
    assert line.endswith("0o27")


# --- what a child writes -----------------------------------------------------------------------------------


def test_what_a_child_prints_is_in_the_log_line_by_line(serve: Serve) -> None:
    server = serve()
    server.get("/print?text=a-line-of-text")
    lines = server.wait_log("a-line-of-text", count=2)
    [pid] = server.children()
    assert all(f"worker-pid={pid}" in line for line in lines)


def test_what_a_child_prints_is_in_the_log_whatever_the_log_level(tmp_path: Path) -> None:
    server = Server(
        tmp_path, "--log-level", "critical", bind="unix:http", expected=["Traceback", "RuntimeError"]
    )
    try:
        wait_until((tmp_path / "http").exists, "the socket")
        assert server.get("/error").status == 500
        server.wait_log("this page always fails")
        assert "[INFO] worker-pid=" in server.log
        assert "Booting worker" not in server.log
        server.terminate()
    finally:
        server.kill_session()


def test_a_child_cannot_forge_a_line_of_the_log(serve: Serve) -> None:
    server = serve()
    server.get("/print?text=x%1b%5b2J%0dy%00z%ff")
    server.wait_log("x.*y.*z", count=2)
    assert not set(server.log) & {"\x1b", "\r", "\0"}


def test_a_child_that_floods_its_output_harms_nobody(serve: Serve) -> None:
    server = serve("--max-pool-size", "2", "--min-pool-size", "2")
    server.wait_ready(2)
    with Client(server.address) as client:
        client.request("GET", "/print?text=" + "flood" * 300)
        client.answer()
    flood = "[print('y' * 1000) for _ in range(200000)]"
    boot = f"import threading; threading.Thread(target=lambda: {flood}).start()"
    flooding = serve(environment={"POOLPARTY_TEST_BOOT": boot})
    began = time.monotonic()
    for _ in range(20):
        assert flooding.get("/").status == 200
    assert time.monotonic() - began < 10


# --- deaths ------------------------------------------------------------------------------------------------


def test_a_post_whose_child_dies_is_502_and_the_next_is_served(serve: Serve) -> None:
    server = serve("--worker-restart-delay", "50ms", expected=ENDED)
    answer = server.ask("POST", "/die", b"x")
    assert answer.status == 502
    assert server.get("/").status == 200
    server.wait_log('msg="worker died".* exit-code=3 ')


def test_a_get_whose_child_dies_is_tried_once_more_on_another(serve: Serve) -> None:
    server = serve("--max-pool-size", "2", "--min-pool-size", "2", expected=ENDED)
    server.wait_ready(2)
    with Client(server.address) as client:
        with server.gate() as target:
            client.request("GET", target)
            server.wait_busy()
            [victim] = server.children("busy")
            kill(victim)
            wait_until(lambda: [pid for pid in server.children("busy") if pid != victim], "the second try")
        answer = client.answer()
    assert answer.status == 200
    assert answer.get("X-Pid") != str(victim)
    assert server.pool()["counters"]["retried"] == 1


def test_a_get_that_kills_every_child_is_502_after_the_second(serve: Serve) -> None:
    server = serve("--max-pool-size", "3", "--min-pool-size", "3", expected=ENDED)
    server.wait_ready(3)
    assert server.get("/die").status == 502
    wait_until(lambda: server.pool()["counters"]["worker_deaths"] == 2, "two deaths")
    assert server.pool()["counters"]["retried"] == 1
    assert server.get("/").status == 200


def test_an_answer_that_breaks_off_is_not_passed_on_as_a_whole_one(serve: Serve) -> None:
    server = serve("--worker-restart-delay", "50ms", expected=ENDED)
    assert server.ask("POST", "/die-after?n=50", b"").status == 502
    assert server.get("/").status == 200


def test_an_idle_child_that_is_killed_is_replaced_and_nobody_notices(serve: Serve) -> None:
    server = serve("--min-pool-size", "2", "--max-pool-size", "2", expected=ENDED)
    server.wait_ready(2)
    for _ in range(5):
        pid = int(server.get("/").get("X-Pid") or 0)
        kill(pid)
        wait_until(lambda pid=pid: gone(pid), "its end")  # type: ignore[misc]
        assert server.get("/").status == 200


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        b"\x04\0\0\0\x09abc",
        b"\0\0\0\0",
        b"\x05\0\0\0\0\xc8\x01\0\x09",
        frame(encode_response(HTTPResponse(ResponseHead(200, []), b"two"))[4:] + b"behind"),
        encode_response(Ready(())),
    ],
    ids=["oversized", "unknown-tag", "empty", "cut", "trailing", "ready-again"],
)
def test_broken_framing_is_502_and_the_child_is_replaced(serve: Serve, said: bytes) -> None:
    server = serve("--worker-restart-delay", "50ms", expected=ENDED)
    [before] = server.wait_ready()
    assert server.ask("POST", f"/raw?hold=1&bytes={said.hex()}", b"").status == 502
    assert server.get("/").status == 200
    wait_until(lambda: gone(before), "the end of the child that cannot be trusted")


def test_an_answer_that_nobody_asked_for_is_never_given_to_the_next(serve: Serve) -> None:
    server = serve(expected=ENDED)
    server.wait_ready()
    twice = encode_response(HTTPResponse(ResponseHead(200, []), b"first")) + encode_response(
        HTTPResponse(ResponseHead(200, []), b"unasked")
    )
    first = server.ask("POST", f"/raw?bytes={twice.hex()}", b"")
    assert first.status in (200, 502)
    assert first.text != "unasked"
    for _ in range(5):
        assert server.get("/").text == "hello\n"


def test_a_child_that_ignores_sigterm_is_killed_when_its_request_takes_too_long(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(
        *("--worker-request-timeout", "300ms", "--worker-request-grace", "300ms"),
        expected=ENDED,
    )
    [before] = server.wait_ready()
    began = time.monotonic()
    assert server.get(f"/stubborn?path={tmp_path / 'loops'}").status == 504
    assert time.monotonic() - began < 10
    assert (tmp_path / "loops").exists()
    assert server.get("/").status == 200
    wait_until(lambda: gone(before), "SIGKILL")


def test_a_child_that_has_stopped_itself_is_ended(serve: Serve) -> None:
    server = serve(
        *("--worker-request-timeout", "300ms", "--worker-request-grace", "200ms"),
        expected=ENDED,
    )
    [before] = server.wait_ready()
    assert server.get("/stop").status == 504
    assert server.get("/").status == 200
    wait_until(lambda: gone(before), "its end")


def test_a_timed_out_get_is_not_tried_again(serve: Serve) -> None:
    server = serve(
        *("--worker-request-timeout", "200ms", "--max-pool-size", "2", "--min-pool-size", "2"),
        expected=ENDED,
    )
    server.wait_ready(2)
    with server.gate() as target:
        assert server.get(target).status == 504
    pool = server.pool()
    assert pool["counters"]["retried"] == 0
    assert pool["outcomes"]["timed_out"] == 1


def test_grandchildren_end_with_the_child(serve: Serve) -> None:
    server = serve(expected=ENDED)
    grandchild = int(server.get("/fork").text)
    [child] = server.children()
    assert os.getpgid(grandchild) == child
    server.not_its_own.add(grandchild)
    kill(child)
    wait_until(lambda: process_state(grandchild) in (None, "Z"), "the grandchild's end")


def test_an_exception_is_a_500_with_a_trace_in_the_log_and_the_child_lives(serve: Serve) -> None:
    server = serve(expected=["Traceback", "RuntimeError"])
    [child] = server.wait_ready()
    answer = server.get("/error")
    assert (answer.status, answer.text) == (500, "internal server error\n")
    server.wait_log("this page always fails")
    assert server.children() == [child]


# --- booting -----------------------------------------------------------------------------------------------


def test_a_crash_loop_backs_off_and_is_reported(serve: Serve) -> None:
    server = serve(
        "--worker-restart-delay",
        "100ms",
        environment={"POOLPARTY_TEST_BOOT": "sys.exit('the database is missing')"},
        expected=ENDED,
    )
    server.wait_log("the database is missing", count=2)
    spawned = server.pool()["counters"]["worker_spawns"]
    assert spawned <= 8
    assert server.get("/").status == 503


def test_a_child_that_never_gets_ready_is_ended(serve: Serve) -> None:
    server = serve(
        *("--worker-boot-timeout", "300ms", "--worker-restart-delay", "100ms"),
        environment={"POOLPARTY_TEST_BOOT": "time.sleep(1000)"},
        expected=ENDED,
    )
    [line, *_] = server.wait_log("worker ended")
    assert "boot timeout" in line or "boot-timeout" in line


def test_a_child_that_is_not_well_is_replaced(serve: Serve, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    program = tmp_path / "program.py"
    program.write_text(
        "import os, poolparty\n"
        "def well():\n"
        f"    assert not os.path.exists({str(sick)!r}), 'too warm'\n"
        "poolparty.serve(lambda request: str(os.getpid()), health_check=well)\n"
    )
    server = serve(
        *("--worker-health-check-interval", "200ms", "--worker-restart-delay", "100ms"),
        command=[os.path.realpath("/proc/self/exe"), str(program)],
        expected=[*ENDED, "Traceback", "AssertionError"],
    )
    first = int(server.get("/").text)
    sick.touch()
    wait_until(lambda: gone(first), "the sick child's end")
    sick.unlink()
    server.wait_log("too warm")
    second = int(server.get("/").text)
    assert second != first
