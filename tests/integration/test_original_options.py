"""Every option of the original is obeyed: a table of them and of tests that fail where one is not."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from client import Client
from server import HERE, Server

Serve = Callable[..., Server]

TESTS = {
    "--listen-address": "../test_cli.py::test_listen_address_and_bind_obey_the_same_order",
    "--ctl-socket": "::test_the_control_socket_is_at_ctl_socket",
    "--min-pool-size": "::test_min_pool_size_children_are_started_at_once",
    "--max-pool-size": "test_overload.py::test_the_pool_grows_to_its_maximum_under_load_and_no_further",
    "--worker-spawn-timeout": "::test_a_child_is_started_after_worker_spawn_timeout",
    "--worker-rendezvous-timeout": "test_overload.py::test_a_request_that_finds_no_child_in_time_is_503",
    "--worker-request-timeout": "test_children.py::test_a_timed_out_get_is_not_tried_again",
    "--worker-restart-delay": "::test_a_child_is_started_again_after_worker_restart_delay",
    "--worker-health-check-interval": "test_children.py::test_a_child_that_is_not_well_is_replaced",
    "--worker-attrition-delay": "test_overload.py::test_the_pool_shrinks_when_it_is_not_needed",
    "--request-read-timeout": "::test_a_request_may_take_request_read_timeout_to_arrive",
    "--request-write-timeout": "test_overload.py::test_a_client_that_does_not_read_a_large_answer_is_left",
    "--request-backlog": "test_overload.py::test_beyond_the_backlog_it_is_503_at_once",
    "--max-request-body-size": "::test_a_body_beyond_max_request_body_size_is_refused",
    "--static-root": "test_static.py::test_without_static_compress_files_are_sent_as_they_are",
    "--static-url-prefix": "test_static.py::test_without_static_compress_files_are_sent_as_they_are",
    "--static-compress": "test_static.py::test_brotli_can_be_left_out",
    "--static-no-brotli": "test_static.py::test_brotli_can_be_left_out",
}


@pytest.mark.parametrize("option", TESTS)
def test_there_is_a_test_that_uses_the_option(option: str) -> None:
    name, _, wanted = TESTS[option].partition("::")
    text = (HERE / (name or "test_original_options.py")).read_text()
    [function] = [
        node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == wanted
    ]
    assert f'"{option}"' in (ast.get_source_segment(text, function) or "")


def test_the_control_socket_is_at_ctl_socket(serve: Serve, tmp_path: Path) -> None:
    server = serve("--ctl-socket", str(tmp_path / "elsewhere"))
    server.ctl_socket = tmp_path / "elsewhere"
    assert server.ctl("stats")[-1] == "OK"
    assert not (server.directory / "poolparty.sock").exists()


def test_min_pool_size_children_are_started_at_once(serve: Serve) -> None:
    server = serve("--min-pool-size", "3", "--max-pool-size", "5")
    assert len(server.wait_ready(3)) == 3


@pytest.mark.parametrize("timeout", ["10ms", "1500ms"])
def test_a_child_is_started_after_worker_spawn_timeout(serve: Serve, timeout: str) -> None:
    server = serve("--worker-spawn-timeout", timeout, "--max-pool-size", "2")
    server.wait_ready()
    with ExitStack() as stack, server.gate() as target:
        clients = [stack.enter_context(Client(server.address)) for _ in range(2)]
        clients[0].request("GET", target)
        server.wait_busy()
        began = time.monotonic()
        clients[1].request("GET", target)
        server.wait_log("worker spawned", count=2)
        waited = time.monotonic() - began
    assert waited > 1.4 if timeout == "1500ms" else waited < 1.4


@pytest.mark.parametrize("delay", ["10ms", "3s"])
def test_a_child_is_started_again_after_worker_restart_delay(serve: Serve, delay: str) -> None:
    boot = "import os; os.path.exists('died') or (open('died', 'w').close(), sys.exit(1))"
    server = serve(
        "--worker-restart-delay", delay, environment={"POOLPARTY_TEST_BOOT": boot}, expected=["died"]
    )
    server.wait_log("worker died before it was ready")
    began = time.monotonic()
    server.wait_log("worker spawned", count=2)
    waited = time.monotonic() - began
    assert waited > 2.5 if delay == "3s" else waited < 0.9


def test_a_request_may_take_request_read_timeout_to_arrive(serve: Serve) -> None:
    server = serve("--request-read-timeout", "500ms")
    with Client(server.address) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: slow")
        assert client.answer().status == 408


def test_a_body_beyond_max_request_body_size_is_refused(serve: Serve) -> None:
    server = serve("--max-request-body-size", "1000")
    assert server.ask("POST", "/body", b"x" * 1000).status == 200
    assert server.ask("POST", "/body", b"x" * 1001).status == 413
