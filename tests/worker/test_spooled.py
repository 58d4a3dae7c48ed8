"""Large bodies on their way into files: by the reader on a fake transport, by the lease on real pipes."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from pipes import Child, Pool

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from side import READ_TIMEOUT, Side, chunked, get, post

from poolparty import spool
from poolparty.wire.frames import HTTPRequest, HTTPRequestFile, decode_request, encode_request, file_request
from poolparty.worker import spooled
from poolparty.worker.reading import Phase
from poolparty.worker.request import Request
from poolparty.worker.spooled import QUEUE, Spool, SpooledBody

SPOOL_SIZE = 1000


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{spool.PREFIX}*"))


# --- the files ---------------------------------------------------------------------------------------------


def test_a_file_is_its_owners_alone_and_goes_with_him(tmp_path: Path) -> None:
    file, path = spool.create(str(tmp_path))
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert spool.sweep(str(tmp_path)) == 0, "it is in use"
    os.close(file)
    assert spool.sweep(str(tmp_path)) == 1
    assert files(tmp_path) == []


def test_only_our_files_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    (tmp_path / f"{spool.PREFIX}link").symlink_to(tmp_path / "other")
    os.mkfifo(tmp_path / f"{spool.PREFIX}fifo")
    spool.sweep(str(tmp_path))
    assert (tmp_path / "other").exists()
    assert (tmp_path / f"{spool.PREFIX}link").is_symlink()
    assert spool.sweep(str(tmp_path / "missing")) == 0


def test_a_file_that_is_taken_for_a_dead_ones_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, tries = fcntl.flock, []

    def swept_first(file: int, how: int) -> None:
        tries.append(file)
        if len(tries) == 1:
            for path in files(tmp_path):
                path.unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    file, path = spool.create(str(tmp_path))
    assert len(tries) == 2
    assert files(tmp_path) == [Path(path)]
    os.close(file)


# --- the body ----------------------------------------------------------------------------------------------


def settle(loop: asyncio.AbstractEventLoop, body: SpooledBody) -> None:
    async def settled() -> None:
        async with asyncio.timeout(10):
            while body._writing:
                await asyncio.sleep(0.001)

    loop.run_until_complete(settled())


def test_what_is_written_is_in_the_file_in_order_and_the_file_ends_with_the_body(
    tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    bodies = Spool(str(tmp_path), loop)
    body = bodies.body()
    chance = random.Random(1)
    sent = [chance.randbytes(chance.randrange(3000)) for _ in range(2000)]
    heard = []
    body.listener = heard.append
    for part in sent:
        body.write(part)
    assert body.full
    settle(loop, body)
    assert body.written and not body.full and heard
    assert Path(body.path).read_bytes() == b"".join(sent)
    assert body.size == sum(map(len, sent))
    del body
    heard.clear()
    gc.collect()
    bodies.clear()
    bodies.threads.shutdown()
    assert files(tmp_path) == []


def test_no_room_is_told_once_and_the_rest_is_let_go(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, parts: list[bytes]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spooled, "_write", full)
    body = Spool(str(tmp_path), loop).body()
    body.write(bytes(QUEUE + 1))
    assert body.full
    settle(loop, body)
    assert body.error is not None and body.error.errno == errno.ENOSPC
    assert not body.full and not body.written
    body.write(b"more")
    assert not body._writing


# --- the reader --------------------------------------------------------------------------------------------


class Threads:
    """Writes when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []
        self.error: OSError | None = None

    def run_in_executor(self, threads: object, work: Callable[..., int], *args: object) -> Job:
        job = Job()

        def run() -> None:
            if self.error is not None:
                job.error = self.error
            else:
                job.value = work(*args)
            job.tell(job)

        self.jobs.append(run)
        return job

    def submit(self, work: Callable[..., None], *args: object) -> None:
        work(*args)

    def write(self) -> None:
        """All of what waits, and what comes of it."""
        while self.jobs:
            self.jobs.pop(0)()


class Job:
    error: OSError | None = None
    value = 0

    def add_done_callback(self, tell: Callable[[Job], None]) -> None:
        self.tell = tell

    def cancelled(self) -> bool:
        return False

    def exception(self) -> OSError | None:
        return self.error

    def result(self) -> int:
        return self.value


class SpoolingSide(Side):
    def __init__(self, directory: Path) -> None:
        super().__init__(
            request_spool_size=SPOOL_SIZE, request_spool_dir=str(directory), max_request_body_size=10_000_000
        )
        self.directory = directory
        self.disk = Threads()
        self.server.spool.loop = self.disk  # type: ignore[assignment]
        self.server.spool.threads = self.disk  # type: ignore[assignment]
        self.dispatcher.takes_files = lambda: True

    def files(self) -> list[Path]:
        """Those that are left after the next sweep."""
        self.server.spool.clear()
        return files(self.directory)

    def body(self) -> bytes:
        """Of the running request, from its file."""
        request = self.running
        assert request is not None
        assert not isinstance(request.body, list)
        decoded = decode_request(request.body.frame[4:])
        assert isinstance(decoded, HTTPRequestFile)
        assert decoded.size == request.body_size
        return Path(os.fsdecode(decoded.path)).read_bytes()


@pytest.fixture
def side(tmp_path: Path) -> Iterator[SpoolingSide]:
    side = SpoolingSide(tmp_path)
    yield side
    side.close()


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from([0, 1, SPOOL_SIZE - 1, SPOOL_SIZE, SPOOL_SIZE + 1, 70_000, 400_000]),
    as_chunks=st.booleans(),
    cuts=st.lists(st.integers(0, 400_000), max_size=5),
    data=st.data(),
)
def test_a_body_is_the_same_however_it_comes_and_wherever_it_is_kept(
    tmp_path_factory: pytest.TempPathFactory, size: int, as_chunks: bool, cuts: list[int], data: st.DataObject
) -> None:
    side = SpoolingSide(tmp_path_factory.mktemp("spool"))
    try:
        body = random.Random(size).randbytes(size)
        step = data.draw(st.sampled_from([7, 1000, 100_000])) if size else 1
        chunks = [body[at : at + step] for at in range(0, size, step)][:2000]
        body = b"".join(chunks) if as_chunks else body
        wire = chunked(*chunks) if as_chunks else post(body)
        places = sorted({cut % len(wire) for cut in cuts} - {0})
        for start, end in zip([0, *places], [*places, len(wire)], strict=True):
            if not side.transport.reading:
                side.disk.write()
            side.send(wire[start:end])
        if len(body) > SPOOL_SIZE:
            assert side.running is None, "not before it is in its file"
            side.disk.write()
            assert side.body() == body
        else:
            assert side.seen().body == body
            assert side.files() == []
        side.answer()
        assert side.received() == [(200, b"ok")]
        side.dispatcher.submitted.clear()
        side._answered = 0
        assert side.files() == []
    finally:
        side.close()


def test_a_client_that_is_quicker_than_the_disk_waits(side: SpoolingSide) -> None:
    body = random.Random(3).randbytes(QUEUE * 3)
    wire = post(body)
    sent = 0
    while side.transport.reading:
        side.send(wire[sent : sent + 65536])
        sent += 65536
    assert QUEUE < sent < QUEUE + 3 * 65536
    side.disk.write()
    assert side.transport.reading
    for at in range(sent, len(wire), 65536):
        side.send(wire[at : at + 65536])
        side.disk.write()
    assert side.body() == body
    side.answer()
    # The last of it made the client wait, too.
    side.send(wire[: len(wire) - 1])
    assert not side.transport.reading
    side.connection.data_received(wire[-1:])  # it was on its way
    side.disk.write()
    side.answer()
    side.send(get()).answer()
    assert side.statuses() == [200] * 3


def test_a_large_body_may_take_longer_than_the_time_for_a_request_if_it_comes(side: SpoolingSide) -> None:
    step = 1024 * 1024
    wire = post(bytes(4 * step))
    for at in range(0, len(wire), step):
        side.send(wire[at : at + step])
        side.disk.write()
        if side.running is None:
            side.later(READ_TIMEOUT - 1)
    assert side.running is not None
    side.answer()
    side.send(post(bytes(4 * step))[: step // 2])
    side.later(READ_TIMEOUT + 1)
    assert side.statuses()[-1] == 408


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EFBIG, 413), (errno.EIO, 500)]
)
@pytest.mark.parametrize("when", ["while it comes", "behind its end"])
def test_where_the_disk_takes_no_more_the_client_is_told_which(
    side: SpoolingSide, number: int, status: int, when: str
) -> None:
    side.disk.error = OSError(number, os.strerror(number))
    wire = post(bytes(50_000))
    side.send(wire if when == "behind its end" else wire[:30_000])
    side.disk.write()
    assert side.running is None
    assert side.statuses() == [status]
    assert any("could not be written" in line for line in side.log.errors)
    assert side.files() == []
    if when == "behind its end":
        side.disk.error = None
        side.send(get()).answer()
        assert side.statuses() == [200]


def test_who_answers_in_the_pools_place_does_so_once_and_no_child_is_asked(side: SpoolingSide) -> None:
    """A page that answered later was asked for, and then, when the body was in its file, a child as well."""
    asked: list[Request] = []

    def takes(request: Request) -> bool:
        asked.append(request)
        return True

    side.server.takes = takes
    side.send(post(bytes(50_000)))
    side.disk.write()
    assert len(asked) == 1
    assert side.running is None, "no child has it"


def test_where_no_file_can_be_made_the_request_is_refused(side: SpoolingSide) -> None:
    side.server.spool.directory = "/nonexistent"
    side.send(post(bytes(50_000))[:10_000])
    assert side.statuses() == [500]


def test_a_client_that_leaves_takes_its_file_along(side: SpoolingSide) -> None:
    side.send(post(bytes(50_000))[:30_000])
    assert len(side.files()) == 1
    side.leave()
    side.disk.write()
    assert side.files() == []
    assert side.connection.phase is Phase.CLOSED


def test_a_body_that_no_child_can_take_is_refused_with_its_head(side: SpoolingSide) -> None:
    side.dispatcher.max_body = 1 << 40
    side.dispatcher.takes_files = lambda: False
    side.send(get(b"/", b"Content-Length: 2147483647", method=b"POST"))
    assert side.statuses() == [413]


# --- the lease ---------------------------------------------------------------------------------------------


@pytest.fixture
def bodies(pool: Pool, tmp_path: Path) -> Spool:
    return Spool(str(tmp_path), pool.loop)


def spooled_request(pool: Pool, bodies: Spool, body: bytes, head: bool = True) -> Request:
    file = bodies.body()
    file.write(body)
    settle(pool.loop, file)
    client = pool.clients[-1]
    request = pool.request(client, b"/large", b"POST")
    frame = encode_request(HTTPRequest(b"@", b"http://h/large", b"POST", [], body))
    request.head = frame[: len(frame) - len(body)] if head else b""
    file.frame = file_request(b"\1@", b"http://h/large", b"\4POST", {}, os.fsencode(file.path), len(body))
    request.body = file
    request.body_size = len(body)
    return request


def child_with_files(pool: Pool) -> Child:
    child = pool.child()
    lease = pool.dispatcher.leases[child.number]
    lease.takes_files = True
    return child


BODY = random.Random(9).randbytes(3_000_000)


def ask_spooled(pool: Pool, bodies: Spool, head: bool = True) -> None:
    client = pool.ask(b"/first")
    child = pool.children[0]
    child.receive()
    child.answer()
    client.told.clear()
    request = spooled_request(pool, bodies, BODY, head)
    assert pool.dispatcher.submit(request, pool.now)


def test_a_child_that_takes_files_is_given_the_path(pool: Pool, bodies: Spool) -> None:
    child = child_with_files(pool)
    ask_spooled(pool, bodies)
    request = decode_request(child.read(int.from_bytes(child.read(4), "little")))
    assert isinstance(request, HTTPRequestFile)
    assert (request.uri, request.size) == (b"http://h/large", len(BODY))
    assert Path(os.fsdecode(request.path)).read_bytes() == BODY
    child.answer(b"seen")
    assert pool.clients[-1].told == [b"seen"]
    pool.until(lambda: bodies.clear() or not files(Path(bodies.directory)))


def test_another_child_gets_it_through_the_pipe(pool: Pool, bodies: Spool) -> None:
    child = pool.child()
    ask_spooled(pool, bodies)
    request = child.receive()
    assert hashlib.sha256(request.body).digest() == hashlib.sha256(BODY).digest()
    child.answer(b"seen")
    assert pool.clients[-1].told == [b"seen"]
    assert pool.ask(b"/next").told == []
    assert child.target() == b"/next"
    pool.until(lambda: bodies.clear() or not files(Path(bodies.directory)))


def test_also_where_the_system_cannot_send_a_file_to_a_pipe(
    pool: Pool, bodies: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refused)
    child = pool.child()
    ask_spooled(pool, bodies)
    assert child.receive().body == BODY


def test_a_body_that_no_frame_holds_is_refused_and_the_child_goes_on(pool: Pool, bodies: Spool) -> None:
    child = pool.child()
    pool.clients.clear()
    client = pool.ask(b"/first")
    child.receive()
    child.answer()
    client.told.clear()
    request = spooled_request(pool, bodies, BODY, head=False)
    assert pool.dispatcher.submit(request, pool.now)
    assert client.told == [413]
    pool.spin()
    assert child.words == (2, 2)
    pool.ask(b"/next")
    assert child.target() == b"/next"


def test_a_child_that_dies_in_the_middle_of_it_costs_that_request_alone(pool: Pool, bodies: Spool) -> None:
    child = pool.child()
    ask_spooled(pool, bodies)
    child.read(100_000)
    waiting = pool.ask(b"/other")
    child.die()
    assert pool.clients[-2].told == [502]
    other = pool.child()
    assert other.target() == b"/other"
    other.answer()
    assert waiting.told == [b"ok"]
    pool.until(lambda: bodies.clear() or not files(Path(bodies.directory)))


def test_what_a_dead_child_has_not_read_runs_elsewhere(pool: Pool, bodies: Spool) -> None:
    child = pool.child()
    ask_spooled(pool, bodies)
    child.die()
    other = pool.child()
    assert other.receive().body == BODY
    other.answer(b"second")
    assert pool.clients[-1].told == [b"second"]


def test_a_file_that_cannot_be_read_costs_its_request_and_not_the_time_limit(
    pool: Pool, bodies: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    pool.child()
    monkeypatch.setattr(os, "sendfile", broken)
    ask_spooled(pool, bodies)
    pool.until(lambda: pool.clients[-1].told)
    assert pool.clients[-1].told == [502]
    assert any("cannot be read: Input/output error" in line for line in pool.log)


def test_a_file_that_becomes_shorter_is_no_whole_body(pool: Pool, bodies: Spool) -> None:
    child = pool.child()
    ask_spooled(pool, bodies)
    [path] = files(Path(bodies.directory))
    os.truncate(path, 500_000)
    child.read(400_000)
    pool.until(lambda: pool.clients[-1].told)
    assert pool.clients[-1].told == [502]
    assert any("shorter" in line for line in pool.log)
