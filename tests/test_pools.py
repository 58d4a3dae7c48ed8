"""The configuration of several pools: what each one's options are, and what is wrong with a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from poolparty.errors import ConfigError
from poolparty.pools import pool_configs
from poolparty.settings import prepare


def config(pools: object, **settings: object) -> Config:
    cfg = Config()
    for name, value in {"worker_class": "poolparty.GWorker", "pool_cmd": "sh app.sh", **settings}.items():
        cfg.set(name, value)
    cfg.set("pools", pools)
    return cfg


def complaint_of(pools: object, **settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(config(pools, **settings))
    return str(caught.value)


def test_a_server_has_one_pool_unless_it_names_others() -> None:
    (only,) = pool_configs(config(None))
    assert (only.name, only.routes, only.options.pool_cmd) == ("default", (), ("sh", "app.sh"))


def test_a_pool_has_the_servers_options_but_for_its_own() -> None:
    default, api = pool_configs(
        config(
            {
                "api": {
                    "routes": ["/api", "api.example.com/"],
                    "pool_cmd": ["janet", "api.janet"],
                    "max_pool_size": 3,
                }
            },
            max_pool_size=8,
            worker_request_timeout="5s",
            access_log_json=True,
        )
    )
    assert (default.options.max_pool_size, api.options.max_pool_size) == (8, 3)
    assert api.options.pool_cmd == ("janet", "api.janet")
    assert api.options.worker_request_timeout == 5.0 and api.options.access_log_json
    assert [str(route) for route in api.routes] == ["/api", "api.example.com/"]


def test_a_pool_of_the_same_command_needs_nothing_but_routes() -> None:
    default, health = pool_configs(config({"health": {"routes": ["/health"]}}, max_pool_size=2))
    assert (health.name, health.options.pool_cmd) == ("health", default.options.pool_cmd)


def test_a_pool_may_have_its_own_directory_and_variables(tmp_path: Path) -> None:
    own = {"routes": ["/a"], "chdir": str(tmp_path), "raw_env": ["B=2", "C=3"]}
    default, other = pool_configs(config({"a": own}, raw_env=["A=1", "B=1"]))
    assert other.cfg.chdir == str(tmp_path) != default.cfg.chdir
    assert default.cfg.env == {"A": "1", "B": "1"}
    assert other.cfg.env == {"A": "1", "B": "2", "C": "3"}


def test_a_stop_waits_for_the_longest_request_of_any_pool() -> None:
    cfg = config({"slow": {"routes": ["/slow"], "worker_request_timeout": "300s"}})
    prepare(cfg)
    assert cfg.graceful_timeout == 305


@pytest.mark.parametrize(
    ("pools", "wrong"),
    [
        (["api"], "pools = ['api']: this is no dict of pools; give one as"),
        ({"a b": {}}, "'a b' is no name of a pool; give letters, digits, dashes and underscores."),
        ({7: {}}, "7 is no name of a pool"),
        ({"default": {"routes": ["/"]}}, "the pool default is what the server's own options describe"),
        ({"api": ["/api"]}, 'the pool api is no dict; give one as {"routes": ["/api"]}.'),
        ({"api": {}}, "the pool api has no list of routes, so nothing would reach it"),
        ({"api": {"routes": "/api"}}, "the pool api has no list of routes"),
        ({"api": {"routes": ["api"]}}, "the pool api: 'api' is no route; give a path as /api, or a host"),
        (
            {"api": {"routes": ["/a"], "max_pool": 3}},
            "the pool api has 'max_pool', which is no option; it may have",
        ),
        (
            {"api": {"routes": ["/a"], "ctl_socket": "x"}},
            "the pool api has 'ctl_socket', which is the server's alone",
        ),
        (
            {"one": {"routes": ["/a"]}, "two": {"routes": ["/b", "/a/"]}},
            "the pools one and two have the same route /a; leave it with one.",
        ),
        (
            {"api": {"routes": ["/a"], "max_pool_size": "x"}},
            "pools[\"api\"]: max_pool_size = 'x': this has to be",
        ),
        (
            {"api": {"routes": ["/a"], "min_pool_size": 9}},
            'pools["api"]: min_pool_size = 9: this is more than',
        ),
        ({"api": {"routes": ["/a"], "chdir": "/no/such"}}, "pools[\"api\"]: chdir = '/no/such':"),
        (
            {"api": {"routes": ["/a"], "raw_env": ["x"]}},
            "pools[\"api\"]: raw_env = ['x']: give each as NAME=value.",
        ),
        (
            {"api": {"routes": ["/a"], "pool_cmd": "no-such-program x"}},
            "pools[\"api\"]: pool_cmd = 'no-such-program x': no program no-such-program is on the PATH",
        ),
    ],
)
def test_what_is_wrong_is_named(pools: object, wrong: str) -> None:
    assert wrong in complaint_of(pools)


def test_what_is_wrong_is_said_without_the_passwords_beside_it() -> None:
    own = {"routes": ["/a"], "raw_env": ["PASSWORD=secret"], "max_pool": 3}
    assert complaint_of({"a": own}).startswith("pools: the pool a has 'max_pool'")
    assert "secret" not in complaint_of({"a": own})


def test_a_total_has_room_for_every_minimum() -> None:
    pools: dict[str, Any] = {"api": {"routes": ["/api"], "min_pool_size": 3, "max_pool_size": 4}}
    complaint = complaint_of(pools, min_pool_size=2, max_pool_size=8, total_pool_size=4)
    assert complaint == "total_pool_size = 4: it has no room for 2 pools, which keep 5 children; raise it."
    prepare(config(pools, min_pool_size=2, max_pool_size=8, total_pool_size=5))
