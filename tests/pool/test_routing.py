from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolparty.pool.routing import Route, Router, find, parse_route
from poolparty.wire.path import normal_path


def router(*routes: str) -> Router[str]:
    return Router([(parse_route(route), route) for route in routes], "default")


def pool_of(routes: Router[str], host: str, target: str) -> str:
    return find(routes.table(host.encode()), target.encode())


@pytest.mark.parametrize(
    ("text", "host", "prefix"),
    [
        ("/", b"", b""),
        ("/api", b"", b"/api"),
        ("/api/", b"", b"/api"),
        ("/a//b/../c", b"", b"/a/c"),
        ("/Über uns".replace(" ", "%20"), b"", b"/%C3%9Cber%20uns"),
        ("example.com/", b"example.com", b""),
        ("API.Example.com./v2/", b"api.example.com", b"/v2"),
        ("[::1]/x", b"[::1]", b"/x"),
    ],
)
def test_a_route_is_a_host_a_prefix_or_both(text: str, host: bytes, prefix: bytes) -> None:
    assert parse_route(text) == Route(host, prefix)


@pytest.mark.parametrize(
    "text", ["", "api", "example.com", "example.com:80/", "/a b", "/a?b", "/a#b", "*.a/", 7, None]
)
def test_what_is_no_route_is_named_with_what_would_be_one(text: object) -> None:
    with pytest.raises(ValueError, match="is no route; give a path as /api, or a host and a slash"):
        parse_route(text)


def test_a_prefix_ends_where_a_segment_does() -> None:
    routes = router("/api")
    for target in ("/api", "/api/", "/api?x", "/api/users?x=/y"):
        assert pool_of(routes, "any", target) == "/api"
    for target in ("/apix", "/", "/ap", "/API", "/x/api", "/x?y=/api"):
        assert pool_of(routes, "any", target) == "default"


def test_the_longest_prefix_counts_in_whatever_order_routes_are_given() -> None:
    for routes in (router("/a", "/a/b"), router("/a/b", "/a")):
        assert pool_of(routes, "", "/a/b/c") == "/a/b"
        assert pool_of(routes, "", "/a/bc") == "/a"


def test_routes_of_the_host_come_before_those_of_any() -> None:
    routes = router("one.example/", "one.example/deep", "/health", "/deep/er")
    assert pool_of(routes, "one.example", "/health") == "one.example/"
    assert pool_of(routes, "one.example", "/deep/er") == "one.example/deep"
    assert pool_of(routes, "two.example", "/health") == "/health"
    assert pool_of(routes, "two.example", "/") == "default"
    assert pool_of(routes, "", "/deep/er") == "/deep/er"


def test_a_host_without_a_catch_all_falls_back_to_the_routes_of_any_host() -> None:
    routes = router("one.example/deep", "/health")
    assert pool_of(routes, "one.example", "/health") == "/health"
    assert pool_of(routes, "one.example", "/") == "default"


@pytest.mark.parametrize(
    "host", ["one.example", "ONE.example:8080", "one.example.", "one.example.:80", "one.example:"]
)
def test_a_host_is_known_with_its_port_and_in_any_case(host: str) -> None:
    assert pool_of(router("one.example/"), host, "/x") == "one.example/"


def test_an_ipv6_address_is_a_host() -> None:
    routes = router("[::1]/")
    assert pool_of(routes, "[::1]", "/") == pool_of(routes, "[::1]:80", "/") == "[::1]/"
    assert pool_of(routes, "[::2]:1", "/") == "default"


def test_ever_new_hosts_are_not_all_remembered() -> None:
    routes = router("/a")
    for number in range(3000):
        assert pool_of(routes, f"h{number}", "/a") == "/a"
    assert len(routes._tables) == 1024


def test_nor_is_a_long_one() -> None:
    routes = router("/a", "h/")
    assert pool_of(routes, "h" * 257, "/a") == "/a"
    assert pool_of(routes, "h", "/a") == "h/"
    assert list(routes._tables) == [b"h"]


SEGMENTS = st.lists(st.sampled_from(["a", "b", "ab", "a%20b", "%2e", "..", ".", "", "é"]), max_size=4)


@given(st.lists(SEGMENTS, min_size=1, max_size=4), SEGMENTS)
def test_it_is_the_longest_of_the_prefixes_that_hold_the_path(
    prefixes: list[list[str]], path: list[str]
) -> None:
    texts = ["/" + "/".join(prefix) for prefix in prefixes]
    target = normal_path(("/" + "/".join(path)).encode())
    found = pool_of(router(*texts), "", target.decode())
    segments = [part for part in target.split(b"/") if part]
    holding = []
    for text in texts:
        own = [part for part in normal_path(text.encode()).split(b"/") if part]
        if segments[: len(own)] == own:
            holding.append((len(own), own))
    if not holding:
        assert found == "default"
    else:
        found_segments = [part for part in normal_path(found.encode()).split(b"/") if part]
        assert found_segments == max(holding)[1]
