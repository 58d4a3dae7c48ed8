"""What the arbiter shows of a real server: the admin listener, the pages below admin_prefix, commands about
one child, the slow log. Figures agree wherever they are shown."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from client import Client
from prometheus_client.parser import text_string_to_metric_families
from server import Server, wait_until

Serve = Callable[..., Server]
ADMIN = ("--admin-address", "127.0.0.1:0", "--admin-prefix", "/-/pool/")


def admin(server: Server, target: str) -> tuple[int, bytes]:
    """What the admin listener answers."""
    with Client(("127.0.0.1", server.admin_port)) as client:
        answer = client.ask("GET", target, fields={"Host": "localhost"})
    return answer.status, answer.body


def access_log(server: Server, count: int) -> list[dict[str, Any]]:
    """Its lines, once so many are there: an answer may be here before its line is."""
    return [json.loads(line) for line in server.wait_log(r'^\{"time"', count)]


def scraped(text: bytes) -> dict[str, float]:
    """Sums over all labels, by the samples' names."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


ROUND = [
    *(("GET", f"/status?code={code}", None, code) for code in (200, 200, 404, 503)),
    *(("POST", "/body", b"x" * size, 200) for size in (0, 7)),
    ("HEAD", "/size?n=9", None, 200),
    ("POST", "/bad-header?kind=newline", b"", 502),
]
"""Requests, and the status that each is answered with."""


def connections_of_each(server: Server, count: int) -> list[Client]:
    """So many to each HTTP worker: while the others cannot accept, it does."""
    clients: list[Client] = []
    for chosen in server.http_workers():
        others = [pid for pid in server.http_workers() if pid != chosen]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            clients += [server.connect() for _ in range(count)]
            server.wait_connections(len(clients))
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)
    return clients


def test_figures_agree_wherever_they_are_shown(serve: Serve) -> None:
    """A client that counts its requests, at two HTTP workers at once, and whoever tells their number."""
    server = serve(
        *(*ADMIN, "--access-logfile", "-", "--access-log-json", "--workers", "2", "--max-pool-size", "3"),
        expected=["unusable response"],
    )
    wait_until(lambda: len(server.http_workers()) == 2, "both HTTP workers")
    server.wait_ready()
    clients = connections_of_each(server, 3)
    seen: Counter[int] = Counter()
    with ThreadPoolExecutor(len(clients)) as threads:

        def ask(client: Client) -> list[int]:
            rounds = (request for _ in range(5) for request in ROUND)
            return [client.ask(method, target, body).status for method, target, body, _ in rounds]

        for statuses in threads.map(ask, clients):
            assert statuses == 5 * [status for *_, status in ROUND]
            seen.update(statuses)
    each = 5 * len(clients)
    n = each * len(ROUND)
    assert n == seen.total() == 240
    assert seen == {200: 5 * each, 404: each, 503: each, 502: each}

    def check(stats: dict[str, Any]) -> None:
        pool = stats["pools"][0]
        assert pool["requests"] == sum(pool["outcomes"].values()) == n
        assert (pool["outcomes"]["answered"], pool["outcomes"]["failed"]) == (n - each, each)
        counters = pool["counters"]
        assert [counters[f"status_{digit}xx"] for digit in (2, 4, 5)] == [5 * each, each, each]
        assert counters["bytes_received"] == 7 * each
        # An answer that HTTP cannot carry has taken its child as long as any.
        assert [pool["histograms"][name]["count"] for name in ("service", "queue_wait")] == [n, n]
        assert sum(child["requests"] for child in pool["children"]) == n
        by_each = [worker["requests"] for worker in stats["http_workers"]]
        assert by_each == [n // 2, n // 2]

    check(server.stats())
    check(json.loads(admin(server, "/stats.json")[1]))
    check(json.loads(admin(server, "/history.json")[1])["stats"])  # what the status page shows
    assert f"requests={n}" in server.ctl("stats")
    for text in (admin(server, "/metrics")[1], "\n".join(server.ctl("metrics")[:-1]).encode() + b"\n"):
        figures = scraped(text)
        assert figures["poolparty_requests_total"] == figures["poolparty_request_outcomes_total"] == n
        for name in ("service_seconds_count", "queue_wait_seconds_count"):
            assert figures[f"poolparty_{name}"] == n
        assert figures["poolparty_responses_total"] == n - each
        assert figures["poolparty_request_body_bytes_total"] == 7 * each

    def drawn() -> float:
        samples = json.loads(admin(server, "/history.json")[1])["history"]
        return float(sum(sample["requests"] for sample in samples))

    # Rates of about a second each, so their sum is about the number.
    wait_until(lambda: 0.9 * n < drawn() < 1.1 * n, "the history")
    lines = access_log(server, n)
    assert len(lines) == n
    assert Counter(line["status"] for line in lines) == seen
    assert Counter(line["method"] for line in lines) == {"GET": 4 * each, "POST": 3 * each, "HEAD": each}
    assert {line["worker_pid"] for line in lines} <= set(server.children())
    assert all(line["queue_wait"] >= 0 and 0 < line["service_time"] <= line["seconds"] for line in lines)
    assert sum(line["bytes"] for line in lines) == server.pool()["counters"]["bytes_sent"]


def test_below_the_prefix_there_are_pages_and_no_actions(serve: Serve) -> None:
    server = serve(*ADMIN)
    server.wait_ready()
    assert server.get("/-/pool/health").body == b"ok\n"
    assert server.get("/-/pool/ready").status == 200
    assert server.get("/-/pool/").body.startswith(b"<!doctype html>")
    assert server.get("/-/pool?x").get("location") == "/-/pool/"
    assert server.get("/-/pool/history.json").json["private"] is False
    assert server.get("/-/pool/nothing").status == 404
    assert server.get("/-/pool/%0d%0a{}").status == 404
    pids = server.children()
    answer = server.ask("POST", "/-/pool/restart-workers", b"", {"X-Poolparty": "1"})
    assert answer.status == 403
    assert server.get("/-/pool/health").status == 200, "the channel lives on"
    assert server.children() == pids
    outcomes = server.pool()["outcomes"]
    assert (outcomes["admin"], outcomes["answered"]) == (9, 0)


def test_many_who_ask_at_once_get_their_own_answers(serve: Serve) -> None:
    server = serve(*ADMIN)
    server.wait_ready()
    clients = [server.connect() for _ in range(30)]
    for number, client in enumerate(clients):
        page = ("health", "stats.json", "nothing")[number % 3]
        client.send(f"GET /-/pool/{page} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    for number, client in enumerate(clients):
        answer = client.answer()
        assert answer.status == (200, 200, 404)[number % 3]
        assert answer.get("content-type") == (
            "application/json" if number % 3 == 1 else "text/plain; charset=utf-8"
        )


def test_it_is_ready_once_a_child_is_and_says_why_it_is_not(serve: Serve) -> None:
    server = serve(
        *(*ADMIN, "--worker-restart-delay", "60s"),
        command=["sh", "-c", "echo no license >&2; exit 3"],
        expected=["worker died before it was ready"],
    )
    server.wait_log("died before it was ready")

    def says_why() -> bool:
        status, body = admin(server, "/ready")
        assert status == 503
        return b"no worker is ready; the last one:" in body and b"no license" in body

    wait_until(says_why, "the reason")
    assert admin(server, "/health") == (200, b"ok\n")
    ready = serve(*ADMIN, "--min-pool-size", "0")
    wait_until(lambda: admin(ready, "/ready") == (200, b"ok\n"), "readiness: a child can be started")


def test_a_slow_request_is_told_once_while_it_runs(serve: Serve) -> None:
    server = serve("--slowlog-timeout", "200ms", "--request-ids")
    (pid,) = server.wait_ready()
    with server.gate() as target:
        client = server.connect()
        client.send(f"GET {target} HTTP/1.1\r\nHost: h\r\nX-Request-Id: abc-7\r\n\r\n".encode())
        (line,) = server.wait_log('msg="slow request"')
        runs = wait_until(lambda: server.pool()["children"][0]["runs"], "what it runs")
        (shown,) = [line for line in server.ctl("ps") if line.split()[:2] == [str(pid), "worker"]]
        dumped = "\n".join(server.ctl(f"dump {pid}"))
    assert client.answer().status == 200
    assert server.get().status == 200
    assert f"worker-pid={pid}" in line
    assert f'method=GET target="{target}" request-id=abc-7' in line
    assert re.search(r'age=0\.[2-9]\d\ds .*cpu="\d\.\d\ds of the last \d\.\d\ds"', line)
    assert re.search(r" state=\w+", line)
    assert (runs["method"], runs["target"], runs["request_id"]) == ("GET", target, "abc-7")
    assert shown.endswith(f"s GET {target}")
    assert f'target="{target}"' in dumped
    assert len(server.wait_log('msg="slow request"')) == 1


def test_one_child_is_drained_or_killed_by_its_pid(serve: Serve) -> None:
    server = serve("--min-pool-size", "2", "--max-pool-size", "3", expected=["worker ended.*cause=killed"])
    before = server.wait_ready(2)
    assert server.ctl(f"drain {before[0]}") == ["OK"]
    wait_until(lambda: before[0] not in server.children(), "the drained one's end")
    server.wait_ready(2)
    assert server.pool()["counters"]["worker_ended_drained"] == 1
    assert server.ctl(f"kill {before[1]}") == ["OK"]
    wait_until(lambda: before[1] not in server.children(), "the killed one's end")
    server.wait_ready(2)
    pool = server.pool()
    assert pool["counters"]["worker_ended_killed"] == 1
    assert any(event["pid"] == before[1] and "killed" in event["text"] for event in pool["events"])
    (answer,) = server.ctl(f"kill {before[1]}")
    assert answer.startswith(f"ERROR: no worker has the pid {before[1]}; there are: ")


def test_why_the_last_restart_was_and_how_it_ended_stands_in_the_events(serve: Serve) -> None:
    server = serve()
    server.wait_ready()
    assert server.ctl("restart-workers") == ["OK"]
    texts = [event["text"] for event in server.pool()["events"]]
    assert texts == [
        "restarting all workers: asked for on the control socket", "all workers have been replaced",
    ]  # fmt: skip
    server.wait_log('msg="restarting workers" reason="asked for on the control socket"')
    assert any("restarting workers" in line for line in server.ctl("log"))


@pytest.mark.parametrize("ids", [True, False])
def test_each_request_has_an_id_of_its_own_on_a_connection_that_repeats_itself(
    serve: Serve, ids: bool
) -> None:
    server = serve("--access-logfile", "-", "--access-log-json", *(["--request-ids"] if ids else []))
    server.wait_ready()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with server.connect() as client:
        seen = [
            client.ask("GET", f"/echo?{n}", fields={"traceparent": trace}).json["headers"] for n in range(5)
        ]
    found = [headers.get("x-request-id") for headers in seen]
    assert [headers["traceparent"] for headers in seen] == [trace] * 5
    assert len(set(found)) == (5 if ids else 1)
    assert all(bool(one) == ids for one in found)
    lines = access_log(server, 5)
    assert [line["request_id"] for line in lines] == found
    assert [line["traceparent"] for line in lines] == [trace] * 5
    given = server.get("/echo", {"X-Request-Id": "from-a-proxy"}).json["headers"]["x-request-id"]
    assert given == "from-a-proxy"


def test_the_agent_tells_a_load_balancer_how_much_is_free(serve: Serve) -> None:
    server = serve("--agent-address", "127.0.0.1:0", "--max-pool-size", "2", "--min-pool-size", "2")
    server.wait_ready(2)
    (line,) = server.wait_log(r"agent_address: listening at ")

    def says() -> str:
        with socket.create_connection(("127.0.0.1", int(line.rpartition(":")[2])), timeout=10) as agent:
            return agent.makefile().read()

    assert says() == "up ready 100%\n"
    with server.gate() as target:
        client = server.connect()
        client.send(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        server.wait_busy()
        wait_until(lambda: re.fullmatch(r"up ready [5-8]\d%\n", says()), "fewer to be free on average")
        server.signal(signal.SIGTERM)
        wait_until(lambda: says() == "drain\n", "that it stops")
    assert client.answer().status == 200


def test_admin_pages_survive_a_reload_and_their_socket_goes_with_the_server(serve: Serve) -> None:
    server = serve("--admin-prefix", "/-/pool/", "--admin-address", "unix:admin.sock")
    server.wait_ready()
    path = str(server.directory / "admin.sock")

    def health() -> int:
        with Client(path) as client:
            return client.ask("GET", "/health").status

    assert health() == 200
    server.signal(signal.SIGHUP)
    server.wait_log("The workers are those of the new configuration")
    assert health() == 200
    assert server.get("/-/pool/health").status == 200
