"""Several pools of a real server, as it shows them: figures by pool and in sum, commands about one of them,
readiness of one of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Client
from prometheus_client.parser import text_string_to_metric_families
from server import Server, program, wait_until

Serve = Callable[..., Server]
NAMES = ("default", "api")


@pytest.fixture
def two_pools(tmp_path: Path, serve: Serve) -> Callable[..., Server]:
    """Starts a server with the pools `default` and `api`, for whose paths the latter is."""

    def start(*options: str, api: dict[str, Any] | None = None, **how: Any) -> Server:
        config = tmp_path / "two.py"
        table = {"routes": ["/api"], "max_pool_size": 3, **(api or {})}
        config.write_text(f"pools = {{'api': {table!r}}}\n")
        return serve("--config", str(config), "--admin-address", "127.0.0.1:0", *options, **how)

    return start


def pids(server: Server) -> dict[str, list[int]]:
    """Of each pool the children that can serve."""
    return {
        pool["name"]: [child["pid"] for child in pool["children"] if child["state"] in ("idle", "busy")]
        for pool in server.stats()["pools"]
    }


def wait_pids(server: Server, *counts: int) -> dict[str, list[int]]:
    """Once each pool has so many children."""
    wait_until(lambda: [len(each) for each in pids(server).values()] == [*counts], f"{counts} children")
    return pids(server)


@contextlib.contextmanager
def admin(server: Server) -> Iterator[Callable[..., tuple[int, str]]]:
    """Asks the admin listener."""
    with Client(("127.0.0.1", server.admin_port)) as client:

        def ask(target: str, method: str = "GET") -> tuple[int, str]:
            fields = {"Host": "localhost", "X-Poolparty": "1"}
            answer = client.ask(method, target, b"" if method == "POST" else None, fields)
            return answer.status, answer.text

        yield ask


def test_commands_about_a_pool_are_done_to_that_one_alone(two_pools: Callable[..., Server]) -> None:
    server = two_pools("--max-pool-size", "2")
    before = wait_pids(server, 1, 1)
    assert server.ctl("spawn-workers 1 api") == ["OK"]
    assert before["default"] == wait_pids(server, 1, 2)["default"]
    assert server.ctl("remove-workers 1 api") == ["OK"]
    wait_pids(server, 1, 1)
    for command in ("spawn-workers 1", "remove-workers 1"):
        (answer,) = server.ctl(command)
        assert answer.startswith("ERROR: ") and all(name in answer for name in NAMES), answer
    for command in ("spawn-workers 1 nothing", "remove-workers 1 nothing", "restart-workers nothing"):
        (answer,) = server.ctl(command)
        assert answer.startswith("ERROR: there is no pool ") and "default, api" in answer, answer
    before = wait_pids(server, 1, 1)
    assert server.ctl("restart-workers api") == ["OK"]
    after = wait_pids(server, 1, 1)
    assert after["default"] == before["default"]
    assert after["api"] != before["api"]
    assert server.ctl("restart-workers") == ["OK"]
    both = wait_pids(server, 1, 1)
    assert not {*both["default"], *both["api"]} & {*after["default"], *after["api"]}
    with admin(server) as ask:
        assert ask("/spawn-workers?pool=default", "POST") == (200, "ok\n")
        assert wait_pids(server, 2, 1)["api"] == both["api"]
        assert ask("/spawn-workers", "POST")[0] == 400
        assert ask("/restart-workers?pool=nothing", "POST")[0] == 400
        assert ask("/restart-workers?pool=default", "POST")[0] == 200
        wait_until(lambda: not {*both["default"]} & {*pids(server)["default"]}, "the restart")
    assert pids(server)["api"] == both["api"]
    assert [pool["generation"] for pool in server.stats()["pools"]] == [2, 2]


def test_a_pool_that_does_not_start_is_not_ready_by_its_name(two_pools: Callable[..., Server]) -> None:
    server = two_pools(
        api={"pool_cmd": f"{sys.executable} -c 'raise SystemExit(3)'"},
        expected=["worker died.*pool=api"],
    )
    server.wait_ready()
    with admin(server) as ask:
        wait_until(lambda: "exit-code=3" in ask("/ready?pool=api")[1], "why it is not ready")
        status, sentence = ask("/ready?pool=api")
        assert (status, sentence[:10]) == (503, "not ready:")
        assert ask("/ready?pool=default") == (200, "ok\n")
        assert ask("/ready") == (200, "ok\n"), "the others serve"
        status, sentence = ask("/ready?pool=nothing")
        assert status == 400 and "default, api" in sentence


def test_figures_of_each_pool_and_of_both_agree_wherever_they_are_shown(
    two_pools: Callable[..., Server],
) -> None:
    server = two_pools("--max-pool-size", "2", api={"routes": ["/status"]})
    wait_pids(server, 1, 1)
    asked = {"default": 5, "api": 9}
    with server.connect() as client:
        for target, count in (("/", asked["default"]), ("/status?code=404", asked["api"])):
            for _ in range(count):
                client.ask("GET", target)

    stats = server.stats()
    assert {pool["name"]: pool["requests"] for pool in stats["pools"]} == asked
    for pool in stats["pools"]:
        count = asked[pool["name"]]
        assert sum(child["requests"] for child in pool["children"]) == count
        assert pool["outcomes"]["answered"] == count
        assert [pool["histograms"][name]["count"] for name in ("service", "queue_wait")] == [count] * 2
    assert [worker["requests"] for worker in stats["http_workers"]] == [14]

    text = server.ctl("stats")
    assert {"requests=14", "answered=14", "workers=2"} <= set(text)
    told = {line.split()[1]: line.split()[-2] for line in text if line.startswith("pool ")}
    assert told == {"name=default": "requests=5", "name=api": "requests=9"}
    whose = {line.split()[0]: line.split()[2] for line in server.ctl("ps") if " worker " in line}
    assert whose == {str(pid): name for name, each in pids(server).items() for pid in each}

    command = [
        *program("poolparty-ctl"),
        "--ctl-socket",
        str(server.ctl_socket),
        "top",
        "--once",
        "-d",
        "0.1",
    ]
    shown = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=True
    ).stdout.splitlines()
    assert shown[0].startswith("2 pools: ready, up ")
    assert [line.split()[:5] for line in shown[3:5]] == [[name, *"0 busy of 1,".split()] for name in NAMES]
    assert {line.split()[0]: line.split()[2] for line in shown if " worker " in line} == whose

    with admin(server) as ask:
        families = list(text_string_to_metric_families(ask("/metrics")[1]))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    found = {
        (sample.name, sample.labels.get("pool"), sample.labels.get("class")): sample.value
        for family in families
        for sample in family.samples
    }
    for name, count in asked.items():
        for metric in ("requests_total", "service_seconds_count"):
            assert found[f"poolparty_{metric}", name, None] == count
    assert found["poolparty_responses_total", "api", "4xx"] == asked["api"]
    assert found["poolparty_responses_total", "default", "2xx"] == asked["default"]
