"""conf/prometheus and conf/grafana: they ask for metrics that there are. With --all in a real Prometheus."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from server import CHECKOUT, Server, wait_until

CONFIG = CHECKOUT / "conf" / "prometheus" / "prometheus.yml"
ALERTS = CONFIG.with_name("alerts.yml")
DASHBOARD = CHECKOUT / "conf" / "grafana" / "dashboard.json"

RULES = {
    rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def dashboard_expressions() -> list[str]:
    """With Grafana's variables replaced by what they stand for."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    found += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    found += [
        re.sub(r"label_values\((.*), (\w+)\)", r"count by (\2) (\1)", variable["definition"])
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]
    replaced = {"$__rate_interval": "1m", "$instance": ".*", "$pool": ".*"}
    for name, text in replaced.items():
        found = [expression.replace(name, text) for expression in found]
    return found


EXPRESSIONS = [rule["expr"] for rule in RULES.values()] + dashboard_expressions()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One that has answered a request."""
    with Server(tmp_path / "server", "--admin-address", "127.0.0.1:0") as server:
        server.wait_ready()
        assert server.get("/").status == 200
        yield server


def scraped(server: Server) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.admin_port}/metrics", timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def test_alerts_and_dashboard_ask_for_metrics_and_labels_that_there_are(server: Server) -> None:
    samples = [s for family in text_string_to_metric_families(scraped(server)) for s in family.samples]
    labels: dict[str, set[str]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for sample in samples:
        labels.setdefault(sample.name, set()).update(sample.labels)
        for label, value in sample.labels.items():
            values.setdefault((sample.name, label), set()).add(value)
    by_prometheus = {"instance", "job"}
    for expression in EXPRESSIONS:
        named = re.findall(r"\b(poolparty_\w+)(?:\{([^}]*)\})?", expression)
        assert named or expression.startswith("up{"), expression
        for metric, selector in named:
            assert metric in labels, f"there is no {metric}: {expression}"
            for label, operator, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', selector):
                assert label in labels[metric] | by_prometheus, expression
                if label not in by_prometheus and value != ".*":
                    alternatives = value.split("|") if operator == "=~" else [value]
                    assert set(alternatives) <= values[metric, label], expression
        grouped = re.findall(r"\bby \(([^)]*)\)", expression)
        for label in {label.strip() for group in grouped for label in group.split(",")} - by_prometheus:
            assert any(label in labels[metric] for metric, _ in named), expression


def test_the_dashboard_is_laid_out_without_overlaps_and_asks_the_chosen_source() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in panels()]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    for panel in panels():
        assert panel["title"]
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"


HISTOGRAM = 'poolparty_{}_seconds_bucket{{instance="host",pool="default",le="{}"}}'


def of_pool(metric: str, **labels: str) -> str:
    more = "".join(f',{name}="{value}"' for name, value in labels.items())
    return f'poolparty_{metric}{{job="poolparty",instance="host",pool="default"{more}}}'


def of_server(metric: str) -> str:
    return f'poolparty_{metric}{{job="poolparty",instance="host"}}'


def histogram(name: str, upper: str, a_minute: int) -> dict[str, str]:
    """One whose values are all between 1 s and `upper`."""
    counted = f"0+{a_minute}x60"
    bounds = {"1.0": "0+0x60", upper: counted, "+Inf": counted}
    return {HISTOGRAM.format(name, bound): values for bound, values in bounds.items()}


def outcomes(answered: int, **bad: int) -> dict[str, str]:
    """Requests a minute."""
    return {
        of_pool("request_outcomes_total", outcome=name): f"0+{n}x60"
        for name, n in {"answered": answered, **bad}.items()
    }


def responses(**classes: int) -> dict[str, str]:
    return {of_pool("responses_total", **{"class": name[1:]}): f"0+{n}x60" for name, n in classes.items()}


def memory(size: str) -> dict[str, str]:
    return {'poolparty_process_resident_memory_bytes{instance="host",role="worker",slot="3"}': f"{size}x60"}


def workers(idle: int, busy: int, least: int, ready: int) -> dict[str, str]:
    """A pool's workers, and whether the server is ready."""
    counts = {"workers_idle": idle, "workers_busy": busy, "workers_min": least}
    return {of_pool(name): f"{count}x60" for name, count in counts.items()} | {
        of_server("ready"): f"{ready}x60"
    }


POOL = ("instance", "pool")
ALL = ("job", "instance", "pool")

# What an alert is tried with: series that fire it, how its value is worded, the labels it keeps; series that
# do not. A series has a value a minute for an hour, and the alerts are asked for at minute 50.
CASES: list[tuple[str, dict[str, str], str, tuple[str, ...], dict[str, str]]] = [
    (
        "PoolpartyDown",
        {'up{job="poolparty",instance="host"}': "1x40 0x20"},
        "",
        ("job", "instance"),
        {'up{job="poolparty",instance="host"}': "1x60", 'up{job="other",instance="host"}': "0x60"},
    ),
    (
        "PoolpartyNotReady",
        {of_server("ready"): "0x60"},
        "",
        ("job", "instance"),
        {of_server("ready"): "1x48 0 1x20"},
    ),
    (
        "PoolpartyPoolDown",
        workers(idle=0, busy=0, least=2, ready=1),
        "",
        ALL,
        workers(idle=0, busy=1, least=2, ready=1),
    ),
    (
        "PoolpartyPoolDown",
        workers(idle=0, busy=0, least=1, ready=1),
        "",
        ALL,
        workers(idle=0, busy=0, least=1, ready=0),
    ),
    (
        "PoolpartyPoolDown",
        workers(idle=0, busy=0, least=1, ready=1),
        "",
        ALL,
        workers(idle=0, busy=0, least=0, ready=1),
    ),
    (
        "PoolpartyErrors",
        outcomes(980, overloaded=10, failed=5, timed_out=5),
        "2%",
        POOL,
        outcomes(995, failed=5, abandoned=200),
    ),
    (
        "PoolpartyApplicationErrors",
        responses(_2xx=90, _5xx=10),
        "10%",
        POOL,
        responses(_2xx=60, _4xx=37, _5xx=3),
    ),
    (
        "PoolpartyQueue",
        histogram("queue_wait", "2.5", 60),
        "2.425s",
        POOL,
        {HISTOGRAM.format("queue_wait", bound): "0+60x60" for bound in ("1.0", "+Inf")},
    ),
    (
        "PoolpartyQueue",
        {of_pool("queue_longest_wait_seconds"): "50x60"},
        "50s",
        POOL,
        {of_pool("queue_longest_wait_seconds"): "4x47 9x2 4x11"},
    ),
    (
        "PoolpartySaturated",
        {of_pool("workers_busy"): "8x60", of_pool("workers_max"): "8x60"},
        "100%",
        ALL,
        {of_pool("workers_busy"): "7x60", of_pool("workers_max"): "8x60"},
    ),
    (
        "PoolpartySlow",
        histogram("service", "10.0", 60),
        "9.55s",
        POOL,
        histogram("service", "5.0", 60),
    ),
    (
        "PoolpartyCrashLoop",
        {of_pool("worker_deaths_total"): "0+1x60"},
        "10",
        ALL,
        {of_pool("worker_deaths_total"): "0x44 5x16"},
    ),
    (
        "PoolpartyWorkersEnded",
        {of_pool("worker_ends_total", cause=cause): "0+1x60" for cause in ("unhealthy", "request_timeout")},
        "20",
        POOL,
        {
            of_pool("worker_ends_total", cause=cause): "0+9x60"
            for cause in ("restart", "max_requests", "unused")
        },
    ),
    (
        "PoolpartyRestartFailed",
        {of_pool("restart_failed"): "0x40 1x20"},
        "",
        ALL,
        {of_pool("restart_failed"): "0x60"},
    ),
    (
        "PoolpartyRestartHangs",
        {of_pool("restarting"): "0x10 1x50"},
        "",
        ALL,
        {of_pool("restarting"): "1x30 0x5 1x25"},
    ),
    (
        "PoolpartyMemoryKills",
        {of_pool("worker_ends_total", cause="memory_kill"): "0x44 1x16"},
        "",
        (*ALL, "cause"),
        {of_pool("worker_ends_total", cause="memory_limit"): "0+1x60"},
    ),
    ("PoolpartyWorkerMemory", memory("2147483648"), "2Gi", ("instance",), memory("500000000")),
    (
        "PoolpartyConnectionsDropped",
        {of_pool("connections_dropped_total"): "0+1x60"},
        "",
        ALL,
        {of_pool("connections_dropped_total"): "7x60"},
    ),
    (
        "PoolpartyFlapping",
        {of_server("uptime_seconds"): "60 120 180 240 0 60 " * 10},
        "5",
        ("job", "instance"),
        {of_server("uptime_seconds"): "0+60x45 0+60x15"},
    ),
]
KNOWN = {"job": "poolparty", "instance": "host", "pool": "default", "cause": "memory_kill"}


def expected(name: str, value: str, labels: tuple[str, ...]) -> dict[str, Any]:
    """The alert as promtool expects it."""
    annotations = {
        key: re.sub(
            r"\{\{ \$labels\.(\w+) \}\}",
            lambda label: KNOWN[label[1]],
            re.sub(r"\{\{ \$value[^}]*\}\}", value, text),
        )
        for key, text in RULES[name]["annotations"].items()
    }
    severity = {"severity": RULES[name]["labels"]["severity"]}
    return {
        "exp_labels": {label: KNOWN[label] for label in labels} | severity,
        "exp_annotations": annotations,
    }


def test_every_alert_fires_when_it_should_and_not_otherwise(promtool: str, tmp_path: Path) -> None:
    assert {name for name, *_ in CASES} == set(RULES)
    tests = []
    for name, fires, value, labels, stays in CASES:
        for series, alerts in ((fires, [expected(name, value, labels)]), (stays, [])):
            asked = {"eval_time": "50m", "alertname": name, "exp_alerts": alerts}
            tests.append(
                {
                    "interval": "1m",
                    "name": name,
                    "input_series": [{"series": key, "values": values} for key, values in series.items()],
                    "alert_rule_test": [asked],
                }
            )
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    done = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_no_fault(promtool: str, server: Server) -> None:
    for words, given in (
        (["check", "config", str(CONFIG)], ""),
        (["check", "rules", str(ALERTS)], ""),
        (["check", "metrics"], scraped(server)),
    ):
        done = subprocess.run([promtool, *words], input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        if words == ["check", "metrics"]:
            assert done.stdout + done.stderr == ""


class Prometheus:
    """A real one with the ready configuration, but for the target, which it scrapes five times a second."""

    def __init__(self, program: str, directory: Path, target: int) -> None:
        text = CONFIG.read_text().replace("127.0.0.1:8081", f"127.0.0.1:{target}").replace("15s", "200ms")
        (directory / CONFIG.name).write_text(text)
        (directory / ALERTS.name).write_bytes(ALERTS.read_bytes())
        self.log = directory / "prometheus.log"
        words = [f"--config.file={directory / CONFIG.name}", f"--storage.tsdb.path={directory / 'data'}"]
        words += ["--web.listen-address=127.0.0.1:0"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([program, *words], stdin=subprocess.DEVNULL, stderr=log)

    @property
    def port(self) -> int:
        """OSError: it does not listen yet."""
        found = re.search(r'msg="Listening on" address=127\.0\.0\.1:(\d+)', self.log.read_text())
        if found is None:
            raise ConnectionRefusedError
        return int(found[1])

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> float | None:
        """Of an expression with one result; None while there is none, or Prometheus starts."""
        try:
            result = self.ask("query", query=expression)["result"]
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return None
        return float(result[0]["value"][1]) if result else None

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)


def test_a_real_prometheus_scrapes_a_server(
    prometheus: str, server: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    monitor = Prometheus(prometheus, tmp_path, server.admin_port)
    request.addfinalizer(monitor.close)

    def gives(expression: str, value: float) -> None:
        wait_until(lambda: monitor.value(expression) == value, f"{expression} to be {value}", 60)

    gives('up{job="poolparty"}', 1)
    gives("poolparty_requests_total", 1)
    server.get("/")
    gives('poolparty_request_outcomes_total{outcome="answered"}', 2)
    gives('poolparty_service_seconds_bucket{le="+Inf"}', 2)
    gives("poolparty_ready", 1)
    for expression in EXPRESSIONS:
        assert "result" in monitor.ask("query", query=expression), expression

    def evaluated() -> list[dict[str, Any]] | None:
        rules = [rule for group in monitor.ask("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = wait_until(evaluated, "the alerts to have been looked at", 60)
    assert rules is not None
    assert {rule["name"]: (rule["health"], rule["state"]) for rule in rules} == dict.fromkeys(
        RULES, ("ok", "inactive")
    )
