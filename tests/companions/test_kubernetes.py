"""conf/kubernetes: each manifest by Kubernetes' own schema, and all of them against what the server does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from client import Client
from server import APP, CHECKOUT, Server, program, wait_until

from poolparty.arbiter.admin import PAGES

FOLDER = CHECKOUT / "conf" / "kubernetes"
IMAGE_CONFIG = CHECKOUT / "conf" / "docker" / "poolparty.conf.py"

MANIFESTS: dict[str, dict[str, Any]] = {
    document["kind"]: document
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}
SPEC = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = SPEC["containers"]
ENVIRONMENT = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
PROBES = {kind: CONTAINER[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}


@pytest.mark.parametrize("kind", MANIFESTS)
@pytest.mark.parametrize("version", ["1.27", kubernetes_validate.latest_version()])
def test_each_manifest_is_what_its_kind_takes(kind: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


def test_they_are_about_the_same_pods() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = MANIFESTS["Deployment"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }


def resolved() -> dict[str, str]:
    """The options that the container's server has."""
    args = CONTAINER["args"]
    assert args[:4] == ["poolparty", "--config", "/etc/poolparty.conf.py", "--"]
    words = [*program("poolparty"), "--config", str(IMAGE_CONFIG), "--print-config", "--", sys.executable]
    done = subprocess.run(words, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        name.strip(): value for name, _, value in (line.partition(" = ") for line in done.stdout.splitlines())
    }


def test_ports_and_variables_are_those_of_the_server() -> None:
    options = resolved()
    assert options["bind"] == f"['0.0.0.0:{PORTS['http']}']"
    assert options["admin_address"] == f"0.0.0.0:{PORTS['admin']}"
    for name, value in ENVIRONMENT.items():
        assert options[name.lower()] == value
    (port,) = MANIFESTS["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http"
    annotations = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert int(annotations["prometheus.io/port"]) == PORTS["admin"]
    assert annotations["prometheus.io/path"] in PAGES


def test_a_pod_has_the_time_that_its_requests_may_take() -> None:
    options = resolved()
    (command, seconds) = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    grace = int(options["worker_request_grace"].removesuffix("s"))
    assert SPEC["terminationGracePeriodSeconds"] > int(seconds) + int(options["graceful_timeout"]) + grace


def test_what_the_server_writes_can_be_written() -> None:
    options = resolved()
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert os.path.dirname(options["ctl_socket"]) in mounted and "/tmp" in mounted
    assert options["worker_tmp_dir"] == "/dev/shm"  # every container has one
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {
        volume["name"] for volume in SPEC["volumes"]
    }


def test_the_autoscaler_asks_for_metrics_that_there_are_and_acts_before_all_are_busy(tmp_path: Path) -> None:
    text = (FOLDER / "autoscaler.yaml").read_text()
    found = {}
    for metric in MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]:
        assert metric["type"] == "Pods"
        found[metric["pods"]["metric"]["name"]] = float(metric["pods"]["target"]["averageValue"])
    rule = re.search(r'__name__=~"\^([^"]+)\$"', text)
    assert rule and all(re.fullmatch(rule[1], name) for name in found)
    assert 0 < found["poolparty_workers_busy"] < int(ENVIRONMENT["MAX_POOL_SIZE"])
    with Server(tmp_path / "server") as server:
        scraped = "\n".join(server.ctl("metrics"))
    for name in found:
        assert f"\n{name}{{" in scraped


def test_the_probes_of_a_pod_from_its_start_to_its_end(tmp_path: Path) -> None:
    """As the kubelet asks: started once a child is ready, alive all the while, not ready while it stops."""
    boots = tmp_path / "boots"
    boots.touch()
    options = [
        "--config",
        str(IMAGE_CONFIG),
        "--ctl-socket",
        "./poolparty.sock",
        "--admin-address",
        "127.0.0.1:0",
    ]
    environment = {"POOLPARTY_TEST_BOOT": f"while os.path.exists({str(boots)!r}): time.sleep(0.01)"}
    with Server(tmp_path / "server", *options, command=APP, environment=environment | ENVIRONMENT) as server:
        port = int(server.wait_log("admin_address: listening at")[0].rpartition(":")[2])

        def probe(kind: str) -> bool:
            path = PROBES[kind]["httpGet"]["path"]
            assert PROBES[kind]["httpGet"]["port"] == "admin"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                    return 200 <= answer.status < 400
            except urllib.error.HTTPError:
                return False

        assert not probe("startup") and probe("liveness")
        boots.unlink()
        wait_until(lambda: probe("startup"), "the start")
        assert probe("readiness") and probe("liveness")
        with server.gate() as gate, Client(server.address) as client:
            client.request("GET", gate)
            server.wait_busy()
            server.signal(15)
            wait_until(lambda: not probe("readiness"), "no more requests")
            assert probe("liveness")
            (server.directory / "gate").unlink()
            assert client.answer().status == 200
            (server.directory / "gate").touch()
        server.terminate(None)
