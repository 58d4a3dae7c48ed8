"""Several pools in one HTTP worker: which one a request goes to, and that nothing of one is another's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from pipes import Child, Pool
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from side import CFG, DEFAULTS, FakeLog, FakeTransport, Settings, Side, chunked, get, post

from poolparty.arbiter.seats import Share
from poolparty.pool.routing import parse_route
from poolparty.pools import PoolConfig
from poolparty.stats.notice import Notice
from poolparty.stats.scoreboard import COUNTER_INDEX, ChildWord, Scoreboard, SeatWord
from poolparty.wire import seat as messages
from poolparty.wire.frames import ResponseHead
from poolparty.wire.seat import Lend, Reason, Recall, Return
from poolparty.worker import server as server_module
from poolparty.worker.connection import Connection
from poolparty.worker.dispatcher import PIPE_BUDGET
from poolparty.worker.request import Request
from poolparty.worker.server import Server

ROUTES: dict[str, tuple[str, ...]] = {
    "api": ("/api", "api.example.com/"),
    "deep": ("/api/deep", "site.example.com/shop"),
    "odd": ("/a%20b", "[::1]/"),
}


# --- which pool --------------------------------------------------------------------------------------------


@pytest.fixture
def side() -> Iterator[Side]:
    side = routed_side()
    yield side
    side.close()


def routed_side() -> Side:
    return Side(
        pools=[(name, routes, {}) for name, routes in ROUTES.items()],
        limit_request_line=1000,
        limit_request_field_size=1000,
    )


def current(side: Side) -> Request:
    request = side.connection.current
    assert request is not None
    return request


def pool_of(side: Side, data: bytes) -> str:
    """Which pool's dispatcher gets a request; it is answered."""
    side.send(data)
    request = current(side)
    dispatchers: list[Any] = list(side.server.dispatchers)
    (has_it,) = [each for each in dispatchers if request in each.submitted]
    assert has_it is request.dispatcher
    side.connection.send_response(request, ResponseHead(200, []), b"ok")
    return str(has_it.name)


def of_host(host: bytes, target: bytes, method: bytes = b"GET") -> bytes:
    return b"%s %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (method, target, host)


@pytest.mark.parametrize(
    ("host", "target", "pool"),
    [
        (b"h", b"/", "default"),
        (b"h", b"/apix", "default"),
        (b"h", b"/api", "api"),
        (b"h", b"/api?x=/api/deep", "api"),
        (b"h", b"/api/", "api"),
        (b"h", b"/api/deeper", "api"),
        (b"h", b"/api/deep/er", "deep"),
        (b"h", b"/%61pi", "api"),
        (b"h", b"//api//deep", "deep"),
        (b"h", b"/x/../api/./deep/..", "api"),
        (b"h", b"/api/../x", "default"),
        (b"h", b"/a%20b/c", "odd"),
        (b"api.example.com", b"/", "api"),
        (b"API.example.com:8080", b"/x", "api"),
        (b"api.example.com", b"/api/deep", "api"),
        (b"site.example.com", b"/shop?x", "deep"),
        (b"site.example.com", b"/shopping", "default"),
        (b"site.example.com", b"/api", "api"),
        (b"[::1]:80", b"/", "odd"),
        (b"api.example.com", b"http://api.example.com/", "api"),
        (b"site.example.com", b"http://SITE.example.com/shop", "deep"),
    ],
)
def test_a_request_goes_to_the_pool_of_its_host_and_path(
    side: Side, host: bytes, target: bytes, pool: str
) -> None:
    assert pool_of(side, of_host(host, target)) == pool
    assert side.count("requests", pool) == side.count("answered", pool) == 1
    others = {"default", *ROUTES} - {pool}
    assert sum(side.count("requests", other) for other in others) == 0


def test_requests_with_the_fields_of_the_one_before_are_routed_without_the_parser(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):  # from the second on a connection recognises its client's fields
        assert pool_of(side, of_host(b"h", b"/")) == "default"
    monkeypatch.setattr(Connection, "_read", lambda connection, data: pytest.fail("it was parsed"))
    targets = [b"/api/x", b"/", b"/api/deep?/", b"/apix", b"/api"]
    found = [pool_of(side, of_host(b"h", target)) for target in targets]
    assert found == ["api", "default", "deep", "default", "api"]
    assert [side.count("requests", name) for name in ("default", "api", "deep")] == [4, 2, 1]


def test_another_host_on_the_same_connection_is_another_table(side: Side) -> None:
    hosts = [b"h", b"h", b"h", b"api.example.com", b"api.example.com", b"api.example.com", b"h", b"h", b"h"]
    found = [pool_of(side, of_host(host, b"/x")) for host in hosts]
    assert found == ["default"] * 3 + ["api"] * 3 + ["default"] * 3


def test_with_one_pool_nothing_is_looked_up() -> None:
    side = Side()
    assert side.server.router is None
    assert pool_of(side, get(b"/api")) == "default"
    side.close()


segments = st.sampled_from(
    [b"api", b"deep", b"shop", b"a%20b", b"%61pi", b"apix", b"", b".", b"..", b"x", b"a+b", b"api;x", b"%2f"]
)
targets = st.builds(
    lambda parts, query: b"/" + b"/".join(parts) + query,
    st.lists(segments, max_size=5),
    st.sampled_from([b"", b"?", b"?x", b"?/api", b"?a=//b"]),
)
hosts = st.sampled_from([b"h", b"api.example.com", b"API.Example.com:81", b"site.example.com", b"[::1]", b""])
requests = st.builds(of_host, hosts, targets, st.sampled_from([b"GET", b"HEAD"]))


@settings(deadline=None, max_examples=60)
@given(st.lists(requests, min_size=1, max_size=4))
def test_a_request_goes_to_the_same_pool_whatever_came_before_it(made: list[bytes]) -> None:
    used = routed_side()
    try:
        for data in [data for data in made for _ in range(3)]:
            side = routed_side()
            try:
                alone = pool_of(side, data), head_of(side)
            finally:
                side.close()
            assert (pool_of(used, data), head_of(used)) == alone
    finally:
        used.close()


def head_of(side: Side) -> bytes:
    """The frame of the request that came last."""
    dispatchers: list[Any] = list(side.server.dispatchers)
    last = max((each.submitted[-1] for each in dispatchers if each.submitted), key=lambda r: r.accepted)
    side.clock.now += 1.0
    return bytes(last.head)


# --- pools with children -----------------------------------------------------------------------------------


class Site:
    """A real Server with the pools `default` and `api`, for /api; a test as its arbiter, its children and its
    clients."""

    def __init__(
        self, default: dict[str, Any] | None = None, api: dict[str, Any] | None = None, **server: Any
    ) -> None:
        """Options of each pool; server: those of the server, and gunicorn's settings."""
        own = {name: value for name, value in server.items() if hasattr(DEFAULTS, name)}
        options = replace(DEFAULTS, pool_prefetch=1, **own)
        self.loop = asyncio.new_event_loop()
        self.failures: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.failures.append(context))
        self.arbiter, self._worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.arbiter.setblocking(False)
        self._worker.setblocking(False)
        self.shares = tuple(
            Share(PoolConfig(name, routes, replace(options, **changes), CFG), Scoreboard(1, 8), Notice())
            for name, routes, changes in (
                ("default", (), default or {}),
                ("api", (parse_route("/api"),), api or {}),
            )
        )
        seat: Any = SimpleNamespace(
            id=0, scoreboard=self.shares[0].scoreboard, pools=self.shares, worker_end=self._worker
        )
        gunicorns = {name: value for name, value in server.items() if name not in own}
        self.orphaned = False
        self.log = PoolsLog()
        self.server = Server(
            Settings(**{"worker_connections": 100, **gunicorns}),  # type: ignore[arg-type]
            options,
            self.log,
            seat,
            self.loop,
            self._on_orphaned,
        )
        self.default, self.api = self.server.dispatchers
        self.ahead = 0.0  # seconds that the server's clock is ahead
        self._leases = 0
        self._children: list[Child] = []

    def _on_orphaned(self) -> None:
        self.orphaned = True

    def close(self) -> None:
        for dispatcher in self.server.dispatchers:
            for lease in list(dispatcher.leases.values()):
                dispatcher.give_back(lease, Reason.IDLE)
            dispatcher._stop_waiting()
        for child in self._children:
            child.die()
            child.close_ours()
        self.loop.remove_reader(self._worker.fileno())
        self.arbiter.close()
        self._worker.close()
        if self.server.static is not None:
            self.loop.run_until_complete(self.server.static.close())
        self.loop.close()
        assert self.failures == []

    spin = Pool.spin
    until = Pool.until

    def later(self, seconds: float) -> None:
        self.ahead += seconds
        self.server.tick()
        self.spin()  # type: ignore[misc]

    # --- as the arbiter ---

    def child(self, pool: int) -> Child:
        """Lend a new child of a pool."""
        self._leases += 1
        child = Child(self, self._leases, self._leases % 8)  # type: ignore[arg-type]
        self._children.append(child)
        lend = messages.encode(Lend(child.number, child.slot, 4000 + child.number, pool))
        socket.send_fds(self.arbiter, [lend], [child.their_stdin, child.their_stdout])
        child.close_ours()
        self.spin()  # type: ignore[misc]
        return child

    def mail(self) -> list[messages.Message]:
        """What has been sent to the arbiter, WANT left out."""
        self.spin()  # type: ignore[misc]
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(messages.decode(self.arbiter.recv(64)))
        return [message for message in found if not isinstance(message, messages.Want)]

    def word(self, pool: int, column: int) -> int:
        board = self.shares[pool].scoreboard
        return board.words[board.seat_base(0) + column]

    def counts(self, *names: str) -> tuple[list[int], list[int]]:
        """Counters of the default pool, and of the other."""
        first, second = ([self.word(pool, COUNTER_INDEX[name]) for name in names] for pool in (0, 1))
        return first, second

    # --- as clients ---

    def connect(self, data: bytes = b"") -> Client:
        client = Client(self.server)
        if data:
            client.send(data)
        return client


class PoolsLog(FakeLog):
    """Keeps of each line of the access log the target and the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pools: list[tuple[str, str | None]] = []

    def access(self, response: Any, request: Any, environ: dict[str, str], elapsed: Any) -> None:
        self.pools.append((environ["RAW_URI"], environ.get("poolparty.pool")))


class Client:
    def __init__(self, server: Server) -> None:
        self.transport = FakeTransport()
        self.connection = Connection(server)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def send(self, data: bytes) -> None:
        self.connection.data_received(data)

    @property
    def statuses(self) -> list[int]:
        """Of all answers so far."""
        return [int(answer[:3]) for answer in self.transport.written.split(b"HTTP/1.1 ")[1:]]


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**options: Any) -> Site:
        made.append(Site(**options))
        return made[-1]

    monkeypatch.setattr(
        server_module, "monotonic", lambda: time.monotonic() + (made[-1].ahead if made else 0)
    )
    yield make
    for site in made:
        site.close()


@pytest.fixture
def site(sites: Callable[..., Site]) -> Site:
    return sites()


def test_each_pool_has_its_own_children(site: Site) -> None:
    one, other = site.child(0), site.child(1)
    assert [len(dispatcher.leases) for dispatcher in site.server.dispatchers] == [1, 1]
    assert (site.word(0, SeatWord.LEASES), site.word(1, SeatWord.LEASES)) == (1, 1)
    site.connect(get(b"/api"))
    assert one.has_nothing
    assert other.target() == b"/api"
    board = site.shares[1].scoreboard
    assert board.words[board.child_base(other.slot) + ChildWord.SENT] == 1
    site.arbiter.send(messages.encode(Recall(one.number)))
    site.arbiter.send(messages.encode(Recall(99)))
    assert site.mail() == [Return(one.number, Reason.IDLE)]
    site.arbiter.send(messages.encode(Recall(other.number)))
    assert site.mail() == []  # it is busy
    other.answer()
    assert site.mail() == [Return(other.number, Reason.IDLE)]
    assert (site.word(0, SeatWord.LEASES), site.word(1, SeatWord.LEASES)) == (0, 0)


def test_pipelined_requests_to_different_pools_are_answered_in_their_order(site: Site) -> None:
    one, other = site.child(0), site.child(1)
    client = site.connect(get(b"/api/1") + get(b"/2") + get(b"/api/3"))
    for child, target in ((other, b"/api/1"), (one, b"/2"), (other, b"/api/3")):
        assert child.target() == target
        child.answer(b"<%s>" % target)
    bodies = [b"<%s>" % target for target in (b"/api/1", b"/2", b"/api/3")]
    found = [client.transport.written.find(body) for body in bodies]
    assert found == sorted(found) and found[0] > 0


def test_a_full_queue_of_one_pool_leaves_the_other_alone(sites: Callable[..., Site]) -> None:
    site = sites(api={"request_backlog": 2})
    one = site.child(0)
    waiting = [site.connect(get(b"/api")) for _ in range(2)]
    refused = site.connect(get(b"/api"))
    assert refused.statuses == [503]
    assert [client.statuses for client in waiting] == [[], []]
    served = site.connect(get(b"/"))
    one.answer()
    assert served.statuses == [200]
    queued = [site.connect(get(b"/")) for _ in range(4)]
    assert [client.statuses for client in queued] == [[], [], [], []]
    assert site.counts("overloaded", "answered") == ([0, 1], [1, 0])
    site.until(lambda: site.word(1, SeatWord.QUEUED) == 2)  # type: ignore[misc]
    child = site.child(1)
    child.target()
    child.answer()
    child.target()
    child.answer()
    assert [client.statuses for client in waiting] == [[200], [200]]


def test_a_pool_whose_children_do_not_start_is_the_only_one_that_refuses(site: Site) -> None:
    board = site.shares[1].scoreboard
    board.words[board.pool_base] = 1
    assert site.connect(get(b"/api")).statuses == [503]
    assert site.connect(get(b"/")).statuses == []


def test_time_limits_are_those_of_each_pool(sites: Callable[..., Site]) -> None:
    site = sites(default={"worker_request_timeout": 60.0}, api={"worker_request_timeout": 2.0})
    site.child(0)
    late = site.child(1)
    slow, cut = site.connect(get(b"/")), site.connect(get(b"/api"))
    site.later(5.0)
    assert (slow.statuses, cut.statuses) == ([], [504])
    assert site.mail() == [Return(late.number, Reason.TIMED_OUT)]
    assert site.counts("timed_out") == ([0], [1])


def test_patience_with_starting_children_is_each_pools(sites: Callable[..., Site]) -> None:
    quick = {"worker_spawn_timeout": 0.5, "worker_rendezvous_timeout": 0.5}
    site = sites(default={"worker_spawn_timeout": 60.0}, api=quick)
    patient, refused = site.connect(get(b"/")), site.connect(get(b"/api"))
    site.later(5.0)
    assert (patient.statuses, refused.statuses) == ([], [503])


@pytest.mark.parametrize(
    "large",
    [post(bytes(50), target=b"/api/x"), chunked(bytes(30), bytes(20), target=b"/api/x")],
    ids=["length", "chunked"],
)
def test_the_bound_of_a_body_is_that_of_its_pool(sites: Callable[..., Site], large: bytes) -> None:
    site = sites(default={"max_request_body_size": 100}, api={"max_request_body_size": 40})
    child = site.child(0)
    refused = site.connect(large)
    assert refused.statuses == [413] and b"larger than 40 bytes" in refused.transport.written
    served = site.connect(large.replace(b"/api/x", b"/"))
    assert len(child.receive().body) == 50
    child.answer()
    assert served.statuses == [200]
    assert site.counts("rejected", "requests", "bytes_received") == ([0, 1, 50], [1, 0, 0])


def test_what_is_counted_of_a_request_stands_on_its_pools_board_and_of_a_connection_on_the_first(
    site: Site,
) -> None:
    child = site.child(1)
    client = site.connect(post(b"12345", target=b"/api"))
    child.receive()
    child.answer()
    sent = len(client.transport.written)
    names = ("connections_accepted", "requests", "answered", "status_2xx", "bytes_received", "bytes_sent")
    assert site.counts(*names) == ([1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 5, sent])
    assert (site.word(0, SeatWord.CONNECTIONS), site.word(1, SeatWord.CONNECTIONS)) == (1, 0)
    client.send(get(b"/api"))
    client.connection.connection_lost(None)
    site.connect(b"nonsense\r\n\r\n")  # of no pool
    assert site.counts("abandoned", "rejected") == ([0, 1], [1, 0])
    assert [sum(share.scoreboard.distributions()["service"].counts) for share in site.shares] == [0, 1]
    assert site.log.pools == [("/api", "api"), ("/api", "api"), ("-", None)]


def test_the_body_of_a_request_that_stops_arriving_is_refused_in_its_pools_name(site: Site) -> None:
    client = site.connect(post(b"12345", target=b"/api")[:-2])
    site.later(site.server.read_timeout + 1)
    assert client.statuses == [408]
    assert site.counts("rejected") == ([0], [1])


def test_a_request_of_a_client_that_left_is_forgotten_by_its_pool(site: Site) -> None:
    client = site.connect(get(b"/api"))
    assert len(site.api.queue) == 1 and not site.default.queue
    assert client.connection.eof_received() is False  # it waits still, so nobody runs it
    client.connection.connection_lost(None)
    assert not site.api.queue


def test_a_drain_ends_with_the_last_request_of_any_pool(site: Site) -> None:
    idle, busy = site.child(0), site.child(1)
    client = site.connect(get(b"/api"))
    site.server.drain()
    assert site.mail() == [Return(idle.number, Reason.IDLE)]
    assert (site.word(0, SeatWord.DRAINING), site.word(1, SeatWord.DRAINING)) == (1, 0)
    assert not site.server.finished
    busy.target()
    busy.answer()
    assert b"Connection: close" in client.transport.written and client.transport.eof
    client.connection.connection_lost(None)
    assert site.mail() == [Return(busy.number, Reason.IDLE)]
    assert site.server.finished


def test_static_files_count_for_the_pool_whose_path_they_have(
    sites: Callable[..., Site], tmp_path: Path
) -> None:
    site = sites(static_root=str(tmp_path), static_url_prefix="/api/static/")
    assert site.connect(post(b"", target=b"/api/static/x")).statuses == [405]
    assert site.counts("requests", "static") == ([0, 0], [1, 1])


def test_the_page_of_an_application_that_does_not_start_is_shown_for_its_pool_alone(
    sites: Callable[..., Site],
) -> None:
    site = sites(reload=True)
    waiting, other = site.connect(get(b"/api")), site.connect(get(b"/"))
    site.shares[1].notice.publish("boo")
    late = site.connect(get(b"/api"))
    assert late.statuses == [503] and b"boo" in late.transport.written
    assert (waiting.statuses, other.statuses) == ([], [])
    site.later(0.0)
    assert (waiting.statuses, other.statuses) == ([503], [])
    assert site.connect(get(b"/")).statuses == []
    assert site.counts("overloaded") == ([0], [2])


def test_without_an_arbiter_the_children_of_all_pools_are_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = []
    monkeypatch.setattr(os, "killpg", lambda pid, number: killed.append(pid))
    for share, pid in zip(site.shares, (4001, 4002), strict=True):
        share.scoreboard.words[share.scoreboard.child_base(3) + ChildWord.PID] = pid
    site.arbiter.close()
    site.until(lambda: site.orphaned)  # type: ignore[misc]
    assert killed == [4001, 4002]


def test_the_descriptors_that_leases_need_are_those_of_all_pools(
    sites: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, 1000))
    both = {"max_pool_size": 100}
    site = sites(default=both, api=both, worker_connections=900)
    assert site.server.max_connections == 1000 - server_module.OTHER_DESCRIPTORS - 2 * 200


def test_pools_share_what_a_user_may_have_of_large_pipes(site: Site) -> None:
    assert sum(dispatcher.pipe_budget for dispatcher in site.server.dispatchers) == PIPE_BUDGET
