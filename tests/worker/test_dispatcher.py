"""The dispatcher with real pipes and a real channel; the test is arbiter and child."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from pipes import BACKLOG, LIMIT, PATIENCE, FakeConnection, Pool, response

import pytest

from poolparty.stats.scoreboard import ChildWord, PoolWord, SeatWord
from poolparty.wire import seat as messages
from poolparty.wire.frames import (
    HealthReply,
    Ready,
    encode_response,
)
from poolparty.wire.seat import Lend, Reason, Return, Want
from poolparty.worker.dispatcher import PACE_WINDOW, SLOW_ALLOWED, SLOW_ANSWER, Pace
from poolparty.worker.lease import LARGE_PIPE, MAX_UNSENT

# --- one request, one answer -------------------------------------------------------------------------------


def test_a_request_runs_on_an_idle_child_and_its_answer_comes_back(pool: Pool) -> None:
    child = pool.child()
    assert pool.seat(SeatWord.LEASES) == 1
    assert child.words == (0, 0)
    client = pool.ask(b"/x")
    assert child.words == (1, 0)
    assert pool.board.times[pool.board.child_base(child.slot) + ChildWord.STARTED] == pool.now
    assert child.receive().uri == b"http://h/x"
    child.answer(b"answer")
    assert client.told == [b"answer"]
    assert child.words == (1, 1)
    assert pool.mail() == []


def test_the_child_that_answered_last_runs_next(pool: Pool) -> None:
    one, two = pool.child(), pool.child()
    pool.ask(b"/1")
    pool.ask(b"/2")
    assert (two.target(), one.target()) == (b"/1", b"/2")
    two.answer()
    one.answer()
    for _ in range(3):
        pool.ask(b"/3")
        assert one.target() == b"/3"
        one.answer()
    assert two.has_nothing


def test_the_child_is_free_before_its_client_gets_the_answer(pool: Pool) -> None:
    # The next request has to be on its way while the answer is written.
    child = pool.child()
    client = pool.ask(b"/1")
    seen = []
    client.send_response = lambda *args: seen.append(child.words)  # type: ignore[method-assign,assignment]
    pool.ask(b"/2")
    child.receive()
    child.answer()
    assert seen == [(2, 1)]


def test_an_answer_in_small_pieces_is_put_together(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask()
    for byte in response(b"hello"):
        assert client.told == []
        child.write(bytes((byte,)))
    assert client.told == [b"hello"]


@pytest.mark.parametrize("size", [10, 70_000, 3_000_000])
def test_a_body_is_written_as_fast_as_the_child_reads(pool: Pool, size: int) -> None:
    child = pool.child()
    body = os.urandom(size)
    client = pool.ask(b"/", b"POST", body)
    pool.spin()
    assert client.told == []
    seen = child.receive()
    assert (seen.method, seen.body) == (b"POST", body)
    child.answer()
    assert client.told == [b"ok"]
    pool.ask(b"/next")
    assert child.target() == b"/next"


def test_a_head_beyond_the_pipe_is_written_in_parts(pool: Pool) -> None:
    child = pool.child()
    target = b"/" + b"a" * 200_000
    pool.ask(target)
    assert child.target() == target


# --- the queue ---------------------------------------------------------------------------------------------


def test_requests_wait_in_order_of_arrival(pool: Pool) -> None:
    child = pool.child()
    clients = [pool.ask(b"/%d" % n) for n in range(4)]
    for n in range(4):
        assert child.target() == b"/%d" % n
        child.answer(b"%d" % n)
    assert [client.told for client in clients] == [[b"%d" % n] for n in range(4)]
    assert child.has_nothing


def test_beyond_the_backlog_a_request_is_refused_at_once(pool: Pool) -> None:
    child = pool.child()
    clients = [pool.ask() for _ in range(1 + BACKLOG + 2)]
    assert [client.told for client in clients] == [[]] * (1 + BACKLOG) + [[503], [503]]
    child.receive()
    child.answer()
    assert pool.ask().told == []


def test_while_no_child_can_come_a_request_is_refused_at_once(pool: Pool) -> None:
    waiting = pool.ask()
    pool.board.words[pool.board.pool_base + PoolWord.DOWN] = 1
    assert pool.ask().told == [503]
    pool.later(0.1)
    assert waiting.told == [503]
    child = pool.child()
    assert pool.ask().told == []
    child.receive()


def test_a_client_that_left_is_forgotten_where_it_waits(pool: Pool) -> None:
    child = pool.child()
    pool.ask(b"/1")
    client = FakeConnection()
    gone = pool.request(client, b"/gone")
    assert pool.dispatcher.submit(gone, pool.now)
    assert pool.dispatcher.waits(gone)
    gone.connection = None
    pool.dispatcher.forget(gone)
    assert not pool.dispatcher.waits(gone)
    pool.ask(b"/2")
    assert child.target() == b"/1"
    child.answer()
    assert child.target() == b"/2"


def test_the_answer_to_a_client_that_left_is_read_and_thrown_away(pool: Pool) -> None:
    child = pool.child()
    client = FakeConnection()
    request = pool.request(client, b"/")
    pool.dispatcher.submit(request, pool.now)
    request.connection = None
    pool.dispatcher.forget(request)
    next_client = pool.ask(b"/2")
    child.receive()
    child.answer(b"late")
    assert client.told == []
    assert child.target() == b"/2"
    child.answer(b"two")
    assert next_client.told == [b"two"]


def test_a_request_that_waits_too_long_for_a_child_gets_503(pool: Pool) -> None:
    first = pool.ask()
    pool.later(10.0)
    second = pool.ask()
    pool.later(PATIENCE - 10.1)
    assert first.told == []
    pool.later(0.2)
    assert (first.told, second.told) == ([503], [])
    child = pool.child()
    child.receive()
    child.answer()
    assert second.told == [b"ok"]
    assert child.has_nothing


# --- what the arbiter is told ------------------------------------------------------------------------------


def test_without_a_child_the_arbiter_is_told_at_once_how_many_wait_and_since_when(pool: Pool) -> None:
    pool.ask()
    assert messages.decode(pool.arbiter.recv(64)) == Want()
    assert (pool.seat(SeatWord.QUEUED), pool.oldest()) == (1, pool.now)
    began = pool.now
    pool.now += 5
    pool.ask()
    pool.wanted()
    assert (pool.seat(SeatWord.QUEUED), pool.oldest()) == (2, began)


def test_with_a_child_it_is_told_only_if_requests_still_wait_in_a_while(pool: Pool) -> None:
    child = pool.child()
    pool.ask()
    pool.ask()
    with pytest.raises(BlockingIOError):
        pool.arbiter.recv(64)
    assert pool.wanted()
    assert pool.wanted(), "and again while they do"
    assert pool.seat(SeatWord.QUEUED) == 1
    child.receive()
    child.answer()
    assert pool.seat(SeatWord.QUEUED) == 0
    assert pool.dispatcher._timer is None


def test_when_the_last_one_that_waits_has_left_nothing_is_wanted(pool: Pool) -> None:
    request = pool.request(FakeConnection(), b"/")
    pool.dispatcher.submit(request, pool.now)
    pool.dispatcher.forget(request)
    assert pool.seat(SeatWord.QUEUED) == 0
    assert pool.dispatcher._timer is None


def test_a_full_channel_delays_what_is_said_and_loses_nothing(pool: Pool) -> None:
    children = [pool.child() for _ in range(3)]
    with contextlib.suppress(BlockingIOError):
        while True:
            pool._worker.send(messages.encode(Want()))
    for child in children:
        pool.dispatcher.give_back(pool.dispatcher.leases[child.number], Reason.BROKEN)
    received: list[messages.Message] = []

    def all_there() -> bool:
        received.extend(pool.mail())
        return len(received) >= 3

    pool.until(all_there)
    assert received == [Return(child.number, Reason.BROKEN) for child in children]


def test_when_the_arbiter_has_died_the_server_is_told(pool: Pool) -> None:
    pool.arbiter.close()
    pool.until(lambda: pool.orphaned)
    pool.ask()


# --- leases ------------------------------------------------------------------------------------------------


def test_a_child_lent_while_requests_wait_runs_the_oldest(pool: Pool) -> None:
    pool.ask(b"/1")
    pool.ask(b"/2")
    child = pool.child()
    assert child.target() == b"/1"
    assert pool.seat(SeatWord.LEASES) == 1


def test_an_idle_child_is_given_back_when_it_is_recalled(pool: Pool) -> None:
    child = pool.child()
    pool.recall(child)
    assert pool.mail() == [Return(child.number, Reason.IDLE)]
    assert pool.seat(SeatWord.LEASES) == 0
    assert os.read(child.stdin, 1) == b"", "our end is closed"
    with pytest.raises(BrokenPipeError):
        os.write(child.stdout, b"x")


def test_our_ends_are_closed_before_the_child_is_given_back(pool: Pool) -> None:
    child = pool.child()
    lease = pool.dispatcher.leases[child.number]
    closed = []
    channel = pool.dispatcher._channel
    send = channel._send

    def note(packet: bytes) -> None:
        with pytest.raises(OSError):
            os.fstat(lease.stdin)
        with pytest.raises(OSError):
            os.fstat(lease.stdout)
        closed.append(packet)
        send(packet)

    channel._send = note  # type: ignore[method-assign]
    pool.dispatcher.give_back(lease, Reason.IDLE)
    assert len(closed) == 1


def test_a_busy_child_is_given_back_once_it_has_answered_and_takes_nothing_from_the_queue(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask(b"/1")
    waiting = pool.ask(b"/2")
    pool.recall(child)
    assert pool.mail() == []
    assert child.target() == b"/1"
    child.answer(b"one")
    assert client.told == [b"one"]
    assert pool.mail() == [Return(child.number, Reason.IDLE)]
    assert child.words == (1, 1)
    assert waiting.told == []


def test_a_stale_recall_is_ignored(pool: Pool) -> None:
    child = pool.child()
    pool.recall(child)
    pool.recall(child)
    assert pool.mail() == [Return(child.number, Reason.IDLE)]
    other = pool.child()
    pool.recall(child)
    assert pool.mail() == []
    pool.ask()
    other.receive()


def test_a_child_that_has_run_its_number_of_requests_is_given_back(pool: Pool) -> None:
    child = pool.child(max_requests=2)
    waiting = [pool.ask() for _ in range(3)]
    for _ in range(2):
        child.receive()
        child.answer()
    assert pool.mail() == [Return(child.number, Reason.IDLE)]
    assert [client.told for client in waiting] == [[b"ok"], [b"ok"], []]


@pytest.mark.parametrize("fds", [0, 1])
def test_a_child_whose_pipes_did_not_arrive_is_refused(pool: Pool, fds: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    number = len(pool.children) + 1
    lend = messages.encode(Lend(number, 1, 1))
    read_end, write_end = os.pipe()
    socket.send_fds(pool.arbiter, [lend], [read_end][:fds])
    os.close(read_end)
    os.close(write_end)
    assert pool.mail() == [Return(number, Reason.REFUSED)]
    assert pool.dispatcher.leases == {}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_truncated_message_means_that_the_child_is_refused(pool: Pool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ends = os.pipe()
    socket.send_fds(pool.arbiter, [messages.encode(Lend(1, 1, 1))], [ends[0], ends[1], ends[0]])
    for fd in ends:
        os.close(fd)
    assert pool.mail() == [Return(1, Reason.REFUSED)]
    assert len(os.listdir("/proc/self/fd")) == before


# --- draining ----------------------------------------------------------------------------------------------


def test_draining_gives_idle_children_back_at_once_and_busy_ones_when_nothing_waits(pool: Pool) -> None:
    idle, busy = pool.child(), pool.child()
    one = pool.ask(b"/1")
    pool.dispatcher.drain()
    assert pool.mail() == [Return(idle.number, Reason.IDLE)]
    two = pool.ask(b"/2")
    assert busy.target() == b"/1"
    busy.answer(b"one")
    assert pool.mail() == []
    assert pool.dispatcher.busy
    assert busy.target() == b"/2"
    busy.answer(b"two")
    assert (one.told, two.told) == ([b"one"], [b"two"])
    assert pool.mail() == [Return(busy.number, Reason.IDLE)]
    assert not pool.dispatcher.busy
    pool.dispatcher.drain()


def test_a_child_lent_while_draining_serves_what_waits_or_goes_back(pool: Pool) -> None:
    pool.dispatcher.drain()
    pool.child()
    assert pool.mail() == [Return(1, Reason.IDLE)]
    client = pool.ask()
    child = pool.child()
    child.receive()
    child.answer()
    assert client.told == [b"ok"]
    assert pool.mail() == [Return(2, Reason.IDLE)]


# --- children that die -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("size", [0, 200_000])
def test_a_request_of_which_no_byte_can_have_been_read_is_tried_elsewhere(
    pool: Pool, method: bytes, size: int
) -> None:
    alive, dead = pool.child(), pool.child()
    os.close(dead.stdin)
    dead.stdin = -1
    client = pool.ask(b"/", method, bytes(size))
    assert alive.receive().method == method
    alive.answer()
    assert client.told == [b"ok"]
    assert pool.mail() == [Return(dead.number, Reason.BROKEN)]
    assert dead.words == (1, 1)
    assert pool.count("retried") == 0


def test_if_every_child_is_gone_it_waits_for_another(pool: Pool) -> None:
    dead = pool.child()
    os.close(dead.stdin)
    dead.stdin = -1
    client = pool.ask(b"/", b"POST", b"x")
    assert pool.mail() == [Return(dead.number, Reason.BROKEN)]
    child = pool.child()
    assert child.receive().body == b"x"
    child.answer()
    assert client.told == [b"ok"]


def test_a_child_that_died_in_the_stack_is_given_back(pool: Pool) -> None:
    child = pool.child()
    child.die()
    assert pool.mail() == [Return(child.number, Reason.BROKEN)]
    assert pool.dispatcher.idle == []


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("said", [b"", response(b"hello")[:-1]])
def test_a_safe_request_whose_child_dies_runs_once_more(pool: Pool, method: bytes, said: bytes) -> None:
    other, child = pool.child(), pool.child()
    client = pool.ask(b"/x", method)
    child.receive()
    if said:
        child.write(said)
    child.die()
    assert client.told == []
    assert pool.count("retried") == 1
    assert child.words == (1, 0)
    assert other.target() == b"/x"
    other.answer(b"second")
    assert client.told == [b"second"]


def test_it_runs_before_those_that_came_after_it(pool: Pool) -> None:
    child = pool.child()
    pool.ask(b"/1")
    pool.ask(b"/2")
    child.receive()
    child.die()
    other = pool.child()
    assert other.target() == b"/1"


def test_it_runs_once_more_only_once(pool: Pool) -> None:
    client = pool.ask()
    for _ in range(2):
        child = pool.child()
        child.receive()
        child.die()
    assert client.told == [502]
    assert pool.count("retried") == 1
    assert pool.child().has_nothing


@pytest.mark.parametrize(("method", "size"), [(b"GET", 0), (b"POST", 5), (b"POST", 300_000)])
def test_a_request_that_a_dead_child_had_not_read_runs_elsewhere_and_is_no_second_try(
    pool: Pool, method: bytes, size: int
) -> None:
    """Children that are killed together took a GET with them: its second one was dying already."""
    client = pool.ask(b"/", method, bytes(size))
    for _ in range(3):
        child = pool.child()
        child.die()
    last = pool.child()
    assert last.receive().body == bytes(size)
    last.answer(b"run")
    assert client.told == [b"run"]
    assert pool.count("retried") == 0


def test_a_request_that_somebody_may_still_read_is_not_run_elsewhere(pool: Pool) -> None:
    """The child has only closed fd 3: it may yet read what stands in its pipe."""
    child = pool.child()
    client = pool.ask(b"/", b"POST", b"x")
    os.close(child.stdout)
    child.stdout = -1
    pool.spin()
    assert client.told == [502]


def test_the_second_answer_of_a_child_that_answers_twice_is_nobodys(pools: Callable[..., Pool]) -> None:
    """The request behind stood unread in the child's pipe, and was given it."""
    pool = pools(pool_prefetch=4)
    pool.hurry()
    child = pool.child()
    first, behind = pool.ask(b"/1"), pool.ask(b"/2")
    assert child.target() == b"/1"
    child.write(response(b"right") + response(b"wrong"))
    assert first.told == [b"right"] and behind.told == []
    assert pool.mail() == [Return(child.number, Reason.BROKEN)]
    other = pool.child()
    assert other.target() == b"/2"
    other.answer(b"2")
    assert behind.told == [b"2"]


def test_answers_to_what_was_read_may_come_together(pools: Callable[..., Pool]) -> None:
    pool = pools(pool_prefetch=4)
    pool.hurry()
    child = pool.child()
    clients = [pool.ask(b"/%d" % n) for n in range(3)]
    assert [child.target(), child.target()] == [b"/0", b"/1"]
    child.write(response(b"0") + response(b"1"))
    assert [client.told for client in clients] == [[b"0"], [b"1"], []]
    assert child.target() == b"/2"
    child.answer(b"2")
    assert clients[2].told == [b"2"]


def test_an_unsafe_request_whose_child_dies_gets_502(pool: Pool) -> None:
    other, child = pool.child(), pool.child()
    client = pool.ask(b"/", b"POST", b"x")
    child.receive()
    child.die()
    assert client.told == [502]
    assert other.has_nothing


def test_a_child_that_dies_while_its_request_is_written_costs_that_request_alone(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask(b"/", b"POST", bytes(500_000))
    waiting = pool.ask(b"/2")
    child.read(1000)
    child.die()
    pool.until(lambda: client.told)
    assert client.told == [502]
    other = pool.child()
    assert other.target() == b"/2"
    other.answer()
    assert waiting.told == [b"ok"]


def test_an_answer_complete_before_death_counts(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask()
    os.write(child.stdout, response(b"last words"))
    child.die()
    assert client.told == [b"last words"]
    assert pool.mail() == [Return(child.number, Reason.BROKEN)]


def test_a_client_that_left_has_nothing_retried(pool: Pool) -> None:
    other, child = pool.child(), pool.child()
    request = pool.request(FakeConnection(), b"/")
    pool.dispatcher.submit(request, pool.now)
    request.connection = None
    child.die()
    assert other.has_nothing
    assert pool.count("retried") == 0


# --- children that break the rules -------------------------------------------------------------------------

BROKEN = {
    "unknown tag": b"\x01\0\0\0\x09",
    "empty frame": b"\0\0\0\0",
    "oversized frame": b"\xff\xff\xff\xff",
    "a length beyond the frame": b"\x05\0\0\0\0\xc8\x01\0\x09",
    "ready": encode_response(Ready(())),
    "health reply": encode_response(HealthReply(True, "")),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize(("method", "told"), [(b"GET", []), (b"POST", [502])])
def test_a_child_that_breaks_the_framing_is_ended(
    pool: Pool, name: str, method: bytes, told: list[int]
) -> None:
    child = pool.child()
    client = pool.ask(b"/", method)
    child.receive()
    child.write(BROKEN[name])
    assert pool.mail() == [Return(child.number, Reason.BROKEN)]
    assert client.told == told
    assert any("4001" in line for line in pool.log)


def test_what_an_idle_child_says_is_nobodys_answer(pool: Pool) -> None:
    child = pool.child()
    child.answer(b"unasked")
    client = pool.ask()
    assert pool.mail() == [Return(child.number, Reason.BROKEN)]
    assert client.told == []


SURPLUS = {
    "a second answer": response(b"surplus"),
    "a part of one": response(b"surplus")[:7],
    "a byte": b"\x01",
}


@pytest.mark.parametrize("name", SURPLUS)
@pytest.mark.parametrize("size", [5, 200_000], ids=["small", "large"])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_what_stands_behind_an_answer_never_becomes_the_next_ones(
    pool: Pool, name: str, size: int, method: bytes
) -> None:
    child = pool.child()
    client = pool.ask(b"/1", method)
    waiting = pool.ask(b"/2", method)
    child.receive()
    with contextlib.suppress(BrokenPipeError):
        child.write(response(b"x" * size) + SURPLUS[name])
    pool.until(lambda: pool.mail() == [Return(child.number, Reason.BROKEN)])
    assert client.told == [b"x" * size] if size == 5 else client.told[-1] == "end"
    assert waiting.told == []
    other = pool.child()
    assert other.target() == b"/2"
    other.answer(b"two")
    assert waiting.told == [b"two"]


def test_a_child_that_answers_before_it_has_read_its_request_is_not_used_on(pool: Pool) -> None:
    # The rest of the request would be taken for the beginning of the next one.
    child = pool.child()
    client = pool.ask(b"/", b"POST", bytes(1_000_000))
    child.read(1000)
    child.answer(b"too large")
    assert client.told == [b"too large"]
    assert pool.mail() == [Return(child.number, Reason.BROKEN)]


# --- time-outs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_request_that_runs_too_long_gets_504_and_its_child_is_ended(pool: Pool, method: bytes) -> None:
    other, child = pool.child(), pool.child()
    client = pool.ask(b"/slow", method)
    pool.later(LIMIT - 0.1)
    assert client.told == []
    pool.later(0.2)
    assert client.told == [504]
    assert pool.mail() == [Return(child.number, Reason.TIMED_OUT)]
    assert "/slow" in pool.log[-1]
    assert other.has_nothing, "it is not tried again"


def test_an_answer_after_the_time_out_reaches_nobody(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask(b"/slow")
    pool.later(1.0)
    waiting = pool.ask(b"/2")
    pool.later(LIMIT - 0.9)
    with contextlib.suppress(BrokenPipeError):
        os.write(child.stdout, response(b"late"))
    pool.spin()
    assert (client.told, waiting.told) == ([504], [])
    other = pool.child()
    assert other.target() == b"/2"
    other.answer(b"two")
    assert (client.told, waiting.told) == ([504], [b"two"])


def test_time_in_the_queue_does_not_count_as_running(pool: Pool) -> None:
    child = pool.child()
    pool.ask(b"/1")
    client = pool.ask(b"/2")
    pool.later(LIMIT - 1)
    child.receive()
    child.answer()
    pool.later(LIMIT - 1)
    assert client.told == []


def test_a_child_that_hangs_with_a_client_that_left_is_ended_too(pool: Pool) -> None:
    child = pool.child()
    request = pool.request(FakeConnection(), b"/")
    pool.dispatcher.submit(request, pool.now)
    request.connection = None
    pool.later(LIMIT + 0.1)
    assert pool.mail() == [Return(child.number, Reason.TIMED_OUT)]


# --- large answers -----------------------------------------------------------------------------------------

LARGE = os.urandom(1_000_000)


def test_a_large_answer_passes_through_in_pieces(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask()
    waiting = pool.ask(b"/2")
    child.receive()
    child.write(response(LARGE))
    pool.until(lambda: client.told[-1:] == ["end"])
    assert client.told == [("start", len(LARGE)), "end"]
    assert client.body == LARGE
    assert child.words == (2, 1)
    assert child.target() == b"/2"
    child.answer()
    assert waiting.told == [b"ok"]


def test_a_client_that_does_not_read_makes_its_child_wait_and_nobody_else(pool: Pool) -> None:
    other, child = pool.child(), pool.child()
    client = pool.ask()
    data = response(LARGE)
    os.write(child.stdout, data[:60_000])
    pool.spin()
    assert client.lease is not None
    client.lease.pause_reading()
    had = len(client.body)
    os.write(child.stdout, data[60_000:100_000])
    pool.spin()
    assert len(client.body) == had
    quick = pool.ask(b"/2")
    other.receive()
    other.answer()
    assert quick.told == [b"ok"]
    client.lease.resume_reading()
    child.write(data[100_000:])
    pool.until(lambda: client.told[-1] == "end")
    assert client.body == LARGE


def test_the_time_a_child_waits_for_its_client_is_not_its_own(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask()
    data = response(LARGE)
    os.write(child.stdout, data[:60_000])
    pool.spin()
    assert client.lease is not None
    for _ in range(5):
        client.lease.pause_reading()
        pool.later(LIMIT)
        client.lease.resume_reading()
        pool.later(1.0)
        assert client.told == [("start", len(LARGE))]
    pool.later(LIMIT)
    assert client.told[-1] == "cut", "but its own is"


def test_a_child_whose_client_vanished_in_a_large_answer_is_used_on(pool: Pool) -> None:
    child = pool.child()
    client = FakeConnection()
    request = pool.request(client, b"/")
    pool.dispatcher.submit(request, pool.now)
    child.receive()
    data = response(LARGE)
    child.write(data[:200_000])
    assert client.lease is not None
    client.lease.pause_reading()
    request.connection = None
    client.lease.resume_reading()
    had = len(client.body)
    child.write(data[200_000:])
    pool.until(lambda: child.words == (1, 1))
    assert len(client.body) == had and "end" not in client.told
    after = pool.ask(b"/2")
    assert child.target() == b"/2"
    child.answer(b"two")
    assert after.told == [b"two"]


def test_a_child_that_dies_in_a_large_answer_has_it_cut_and_not_retried(pool: Pool) -> None:
    other, child = pool.child(), pool.child()
    client = pool.ask()
    child.receive()
    child.write(response(LARGE)[:100_000])
    child.die()
    pool.until(lambda: len(client.told) == 2)
    assert client.told == [("start", len(LARGE)), "cut"]
    assert other.has_nothing


def test_a_time_out_in_a_large_answer_cuts_it(pool: Pool) -> None:
    child = pool.child()
    client = pool.ask()
    child.receive()
    child.write(response(LARGE)[:100_000])
    pool.later(LIMIT + 0.1)
    assert client.told == [("start", len(LARGE)), "cut"]
    assert pool.mail() == [Return(child.number, Reason.TIMED_OUT)]


@pytest.mark.parametrize("end", ["whole", "dies", "hangs"])
def test_a_large_answer_that_http_cannot_carry_is_refused_once(pool: Pool, end: str) -> None:
    other, child = pool.child(), pool.child()
    client = pool.ask(usable=False)
    child.receive()
    child.write(response(LARGE)[:100_000])
    assert client.told == [502]
    if end == "whole":
        child.write(response(LARGE)[100_000:])
        pool.until(lambda: child.words == (1, 1))
        pool.ask(b"/2")
        assert child.target() == b"/2"
    elif end == "dies":
        child.die()
    else:
        pool.later(LIMIT + 0.1)
    assert client.told == [502]
    assert client.body == b""
    assert other.has_nothing


def test_after_a_large_answer_the_childs_pipe_is_larger_while_the_budget_lasts(pool: Pool) -> None:
    sizes: list[int] = []
    children = [pool.child() for _ in range(2)]
    pool.dispatcher.pipe_budget = LARGE_PIPE
    for child in reversed(children):
        client = pool.ask()
        pool.dispatcher.idle.clear()  # the other one is to be next
        child.receive()
        child.write(response(LARGE))
        pool.until(lambda client=client: client.told[-1:] == ["end"])
        sizes.append(fcntl.fcntl(child.stdout, fcntl.F_GETPIPE_SZ))
        pool.dispatcher.idle[:] = [pool.dispatcher.leases[children[0].number]]
    assert sizes[0] >= LARGE_PIPE > sizes[1]
    assert pool.dispatcher.pipe_budget == 0
    for child in children:
        pool.recall(child)
    assert pool.dispatcher.pipe_budget == LARGE_PIPE


# --- writing requests ahead --------------------------------------------------------------------------------


def test_ahead_of_a_steady_child_its_next_requests_stand_in_its_stdin(pools: Callable[..., Pool]) -> None:
    pool = pools(pool_prefetch=3)
    pool.hurry()
    child = pool.child()
    clients = [pool.ask(b"/%d" % n) for n in range(5)]
    assert child.words == (3, 0)
    assert [child.target() for _ in range(3)] == [b"/0", b"/1", b"/2"]
    assert child.has_nothing
    child.answer(b"0")
    assert child.target() == b"/3"
    child.write(response(b"1") + response(b"2") + response(b"3")[:5])
    assert child.target() == b"/4"
    child.write(response(b"3")[5:])
    child.answer(b"4")
    assert [client.told for client in clients] == [[b"%d" % n] for n in range(5)]
    assert child.words == (5, 5)


def test_nothing_is_written_ahead_before_answers_were_quick_or_while_a_child_is_idle(
    pools: Callable[..., Pool],
) -> None:
    pool = pools(pool_prefetch=4)
    one, two = pool.child(), pool.child()
    pool.ask()
    pool.ask()
    pool.ask()
    assert one.words == two.words == (1, 0)
    pool.hurry()
    two.receive()
    two.answer()
    assert two.words == (2, 1)
    two.receive()
    two.answer()
    assert two.words == (2, 2)
    pool.ask()
    assert (one.words, two.words) == ((1, 0), (3, 2))


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [(b"POST", b"/", b""), (b"GET", b"/", b"x"), (b"GET", b"/" + b"a" * 5000, b"")],
    ids=["unsafe", "with a body", "beyond PIPE_BUF"],
)
def test_what_may_not_be_taken_back_waits_in_the_queue(
    pools: Callable[..., Pool], method: bytes, target: bytes, body: bytes
) -> None:
    pool = pools(pool_prefetch=4)
    pool.hurry()
    child = pool.child()
    pool.ask(b"/1")
    pool.ask(target, method, body)
    assert child.words == (1, 0)
    pool.ask(b"/3")
    assert child.words == (1, 0), "and nothing overtakes it"


def test_when_a_child_dies_its_head_is_retried_and_what_stood_behind_it_loses_nothing(
    pools: Callable[..., Pool],
) -> None:
    pool = pools(pool_prefetch=4)
    pool.hurry()
    child = pool.child()
    clients = [pool.ask(b"/%d" % n) for n in range(4)]
    last = pool.ask(b"/4")
    os.write(child.stdout, response(b"0"))
    assert [child.target(), child.target()] == [b"/0", b"/1"]
    child.die()
    assert clients[0].told == [b"0"]
    pool.dispatcher.pace.steady = False
    other = pool.child()
    for n in range(1, 5):
        assert other.target() == b"/%d" % n
        other.answer(b"%d" % n)
    assert [client.told for client in [*clients, last]] == [[b"%d" % n] for n in range(5)]
    assert pool.count("retried") == 1


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_what_stood_behind_an_unsafe_head_goes_to_a_child_that_is_idle_by_then(
    pools: Callable[..., Pool], how: str
) -> None:
    # Nothing else would wake that child, and the arbiter would think the request provided for.
    pool = pools(pool_prefetch=4)
    pool.hurry()
    other, child = pool.child(), pool.child()
    head = pool.ask(b"/head", b"POST")
    clients = [pool.ask(b"/%d" % n) for n in range(4)]
    assert (other.words, child.words) == ((2, 0), (3, 0))
    other.answer().answer()
    assert [client.told for client in clients].count([b"ok"]) == 2
    if how == "dies":
        child.receive()
        child.die()
        assert head.told == [502]
    else:
        pool.later(LIMIT + 0.1)
        assert head.told == [504]
    assert other.words[0] > 2
    while other.words[0] > other.words[1]:
        other.answer()
    assert [client.told for client in clients] == [[b"ok"]] * 4
    assert not pool.dispatcher.queue


def test_a_client_that_left_behind_a_head_is_not_run_again(pools: Callable[..., Pool]) -> None:
    pool = pools(pool_prefetch=4)
    pool.hurry()
    child = pool.child()
    pool.ask(b"/1", b"POST")
    gone = pool.request(FakeConnection(), b"/gone")
    pool.dispatcher.submit(gone, pool.now)
    gone.connection = None
    child.receive()
    child.die()
    assert not pool.dispatcher.queue


def test_the_clock_of_a_request_behind_another_starts_when_it_is_its_turn(pools: Callable[..., Pool]) -> None:
    pool = pools(pool_prefetch=4)
    pool.hurry()
    child = pool.child()
    pool.ask(b"/1")
    client = pool.ask(b"/2")
    pool.later(LIMIT - 1)
    child.answer(b"1")
    pool.later(LIMIT - 1)
    assert client.told == []
    pool.later(1.1)
    assert client.told == [504]


def test_a_recalled_child_answers_all_that_was_written_to_it_and_goes(pools: Callable[..., Pool]) -> None:
    pool = pools(pool_prefetch=4)
    pool.hurry()
    child = pool.child()
    clients = [pool.ask() for _ in range(3)]
    pool.recall(child)
    late = pool.ask()
    for _ in range(3):
        assert pool.mail() == []
        child.answer()
    assert [client.told for client in clients] == [[b"ok"]] * 3
    assert late.told == []
    assert pool.mail() == [Return(child.number, Reason.IDLE)]


def test_more_answers_than_requests_end_the_child_also_when_they_come_together(
    pools: Callable[..., Pool],
) -> None:
    pool = pools(pool_prefetch=4)
    pool.hurry()
    child = pool.child()
    clients = [pool.ask() for _ in range(2)]
    waiting = pool.ask(b"/", b"POST")
    child.receive()
    child.receive()
    child.write(response(b"1") + response(b"2") + response(b"3"))
    assert [client.told for client in clients] == [[b"1"], [b"2"]]
    assert pool.mail() == [Return(child.number, Reason.BROKEN)]
    assert waiting.told == []


def test_a_slow_client_does_not_hold_up_those_behind_it(pools: Callable[..., Pool]) -> None:
    pool = pools(pool_prefetch=4)
    pool.hurry()
    child = pool.child()
    slow, behind = pool.ask(b"/1"), pool.ask(b"/2")
    data = response(LARGE)
    os.write(child.stdout, data[:60_000])
    pool.spin()
    assert slow.lease is not None
    slow.lease.pause_reading()
    child.write(data[60_000:])
    child.answer(b"two")
    pool.until(lambda: behind.told)
    assert slow.body == LARGE and behind.told == [b"two"]


def test_but_not_without_end(pools: Callable[..., Pool]) -> None:
    pool = pools(pool_prefetch=4)
    pool.hurry()
    child = pool.child()
    slow, behind = pool.ask(b"/1"), pool.ask(b"/2")
    data = response(LARGE)
    child.write(data[:60_000])
    assert slow.lease is not None
    slow.unsent = MAX_UNSENT + 1
    child.write(data[60_000:61_000])
    had = len(slow.body)
    child.write(data[61_000:100_000])
    assert len(slow.body) == had
    slow.unsent = 0
    slow.lease.resume_reading()
    child.write(data[100_000:]).answer(b"two")
    pool.until(lambda: behind.told)
    assert slow.body == LARGE and behind.told == [b"two"]


# --- the pace ----------------------------------------------------------------------------------------------


def test_the_pace_is_steady_after_a_window_of_quick_answers_and_not_before() -> None:
    pace = Pace()
    for _ in range(PACE_WINDOW):
        assert not pace.steady
        pace.add(SLOW_ANSWER)
    assert pace.steady


def test_one_slow_answer_too_many_ends_it_at_once_and_a_quick_window_brings_it_back() -> None:
    pace = Pace()
    for _ in range(PACE_WINDOW):
        pace.add(0.0)
    for _ in range(SLOW_ALLOWED):
        pace.add(1.0)
        assert pace.steady
    pace.add(1.0)
    assert not pace.steady
    for _ in range(PACE_WINDOW // 2 * 3):
        pace.add(0.0)
    assert pace.steady
