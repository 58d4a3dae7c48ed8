"""More requests than the pool can take: the queue, its bounds, growth, and clients that have left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

from client import Client
from server import Server, wait_until

Serve = Callable[..., Server]


def test_a_request_that_finds_no_child_in_time_is_503(serve: Serve) -> None:
    server = serve("--worker-rendezvous-timeout", "300ms")
    server.wait_ready()
    with server.gate() as target, Client(server.address) as first:
        first.request("GET", target)
        server.wait_busy()
        began = time.monotonic()
        answer = server.get("/")
        waited = time.monotonic() - began
    assert (answer.status, answer.text) == (503, "server overloaded\n")
    assert answer.get("Retry-After")
    assert answer.get("Content-Type") == "text/plain; charset=utf-8"
    # worker_spawn_timeout and worker_rendezvous_timeout, looked at every 100 ms
    assert 0.3 < waited < 1.0
    assert server.pool()["outcomes"]["overloaded"] == 1


def test_beyond_the_backlog_it_is_503_at_once(serve: Serve) -> None:
    server = serve("--request-backlog", "3")
    server.wait_ready()
    with ExitStack() as stack:
        target = stack.enter_context(server.gate())
        waiting = [stack.enter_context(Client(server.address)) for _ in range(4)]
        for client in waiting:
            client.request("GET", target)
            if client is waiting[0]:
                server.wait_busy()
        server.wait_queued(3)
        began = time.monotonic()
        answer = server.get("/")
        assert (answer.status, answer.text) == (503, "server overloaded\n")
        assert answer.get("Retry-After")
        assert time.monotonic() - began < 1
        stack.pop_all().close()
    assert server.get("/").status == 200


def test_what_waits_is_answered_in_the_order_of_arrival(serve: Serve) -> None:
    server = serve()
    server.wait_ready()
    with ExitStack() as stack:
        with server.gate() as target:
            first = stack.enter_context(Client(server.address))
            first.request("GET", target)
            server.wait_busy()
            clients = []
            for n in range(10):
                clients.append(stack.enter_context(Client(server.address)))
                clients[-1].request("GET", f"/echo?{n}")
                server.wait_queued(n + 1)
        assert first.answer().status == 200
        assert [client.answer().json["query"] for client in clients] == [str(n) for n in range(10)]


def test_a_client_that_leaves_while_it_waits_is_forgotten(serve: Serve) -> None:
    server = serve()
    server.wait_ready()
    with server.gate() as target, Client(server.address) as first:
        first.request("GET", target)
        server.wait_busy()
        for leave in (Client.close, Client.reset):
            leaver = Client(server.address)
            leaver.request("POST", "/print?text=it-was-run-for-nobody", b"")
            server.wait_queued(1)
            leave(leaver)
            server.wait_queued(0)
        assert server.pool()["outcomes"]["abandoned"] == 2
    wait_until(lambda: server.pool()["busy"] == 0, "the first one's end")
    assert server.get("/").status == 200
    assert "it-was-run-for-nobody" not in server.log


def test_a_client_that_leaves_while_its_request_runs_does_no_harm(serve: Serve) -> None:
    server = serve()
    [child] = server.wait_ready()
    with server.gate() as target:
        leaver = Client(server.address)
        leaver.request("GET", target)
        server.wait_busy()
        leaver.reset()
        wait_until(lambda: server.pool()["outcomes"]["abandoned"] == 1, "its leaving")
    assert server.get("/").text == "hello\n"
    assert server.children() == [child]


def test_a_client_that_leaves_in_the_middle_of_a_large_answer_does_no_harm(serve: Serve) -> None:
    server = serve()
    [child] = server.wait_ready()
    for _ in range(3):
        leaver = Client(server.address)
        leaver.request("GET", "/size?n=30000000")
        leaver.socket.recv(1000)
        leaver.reset()
        assert server.get("/").text == "hello\n"
    assert server.children() == [child]


def test_a_client_that_does_not_read_a_large_answer_is_left(serve: Serve) -> None:
    server = serve("--request-write-timeout", "500ms", "--max-pool-size", "1")
    server.wait_ready()
    with Client(server.address) as sleeper:
        sleeper.request("GET", "/size?n=50000000")
        assert server.get("/").status == 200
        wait_until(lambda: server.stats()["http_workers"][0]["connections"] == 0, "the sleeper's end")


def test_the_pool_grows_to_its_maximum_under_load_and_no_further(serve: Serve) -> None:
    server = serve("--max-pool-size", "3", "--worker-spawn-timeout", "20ms")
    server.wait_ready()
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(6)]
        with server.gate() as target:
            for client in clients:
                client.request("GET", target)
            server.wait_busy(3)
            server.wait_queued(3)
            assert len(server.children()) == 3
        pids = {client.answer().get("X-Pid") for client in clients}
    assert len(pids) == 3


def test_a_pool_of_none_starts_a_child_for_the_first_request(serve: Serve) -> None:
    server = serve("--min-pool-size", "0")
    assert server.children() == []
    assert server.get("/").status == 200
    assert len(server.children()) == 1


def test_the_pool_shrinks_when_it_is_not_needed(serve: Serve) -> None:
    server = serve("--max-pool-size", "4", "--worker-attrition-delay", "300ms")
    assert server.ctl("spawn-workers 3") == ["OK"]
    server.wait_ready(4)
    server.wait_children(1)
    assert server.pool()["counters"]["worker_ended_unused"] == 3


def test_spawn_workers_and_remove_workers_are_bounded(serve: Serve) -> None:
    server = serve("--min-pool-size", "1", "--max-pool-size", "3")
    assert server.ctl("spawn-workers 100") == ["OK"]
    server.wait_ready(3)
    assert server.ctl("remove-workers 100") == ["OK"]
    server.wait_children(1)
    assert server.get("/").status == 200


def test_remove_workers_leaves_a_busy_child_to_finish(serve: Serve) -> None:
    server = serve("--min-pool-size", "1", "--max-pool-size", "2")
    server.ctl("spawn-workers 1")
    server.wait_ready(2)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(2)]
        with server.gate() as target:
            for client in clients:
                client.request("GET", target)
            server.wait_busy(2)
            assert server.ctl("remove-workers 1") == ["OK"]
            assert server.pool()["busy"] == 2
        assert [client.answer().status for client in clients] == [200, 200]
        server.wait_children(1)


def test_one_http_worker_does_not_starve_another(serve: Serve) -> None:
    """One child, three HTTP workers with connections each: every one gets its answers."""
    server = serve("--workers", "3")
    server.wait_ready()
    wait_until(lambda: len(server.http_workers()) == 3, "three HTTP workers")
    with ExitStack() as stack:
        clients: list[Client] = []
        for accepting in server.http_workers():
            # Which of them accepts is up to the kernel, so the others are stopped meanwhile.
            others = [pid for pid in server.http_workers() if pid != accepting]
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
            clients += [stack.enter_context(Client(server.address)) for _ in range(8)]
            server.wait_connections(len(clients))
            for pid in others:
                os.kill(pid, signal.SIGCONT)
        for _ in range(5):
            for client in clients:
                client.request("GET", "/")
            for client in clients:
                assert client.answer().status == 200
        assert [worker["requests"] for worker in server.stats()["http_workers"]] == [40, 40, 40]


def test_an_http_worker_that_is_killed_gives_its_idle_child_back(serve: Serve) -> None:
    server = serve(expected=["Worker .* was sent SIGKILL", "SIGKILL"])
    pid = server.get("/").get("X-Pid")
    [http_worker] = server.http_workers()
    os.kill(http_worker, signal.SIGKILL)
    wait_until(lambda: server.http_workers() not in ([], [http_worker]), "another HTTP worker")
    assert server.get("/").get("X-Pid") == pid
