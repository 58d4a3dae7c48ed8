"""Anything happens to a connection, in any order: its client is answered rightly, in order, and it ends."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from side import Side, get, post

from poolparty.worker.reading import NEVER

# What the server may say of a request itself; 502 to 504 are about the children.
REFUSALS = {*range(400, 500), 501, 505}

BROKEN = [
    b"GET /broken\r\n\r\n",
    b"GET /broken HTTP/1.1\r\n\r\n",
    b"POST /broken HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /broken HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"\0\r\n\r\n",
]


class ConnectionMachine(RuleBasedStateMachine):
    """The client's bytes and the model's expectations; `Side` is server, pool and clock."""

    @initialize()
    def begin(self) -> None:
        self.side: Any = Side()
        self.unsent = b""
        self.asked: list[bytes] = []  # targets, in order; b"" for what is no request
        self.left = False
        self.timed_out = False
        self.streaming = False

    @property
    def answering(self) -> bool:
        """Whether a child has a request of a client that is there."""
        return not self.left and self.side.running is not None

    @property
    def open(self) -> bool:
        transport = self.side.transport
        return not (self.left or transport.closed or transport.eof)

    # --- the client ---

    @precondition(lambda self: not self.left)
    @rule(size=st.integers(0, 300), kind=st.sampled_from(["get", "length", "chunked", "close"]))
    def asks(self, size: int, kind: str) -> None:
        target = b"/%d" % len(self.asked)
        self.asked.append(target)
        body = b"x" * size
        if kind == "length":
            self.unsent += post(body, target=target)
        elif kind == "chunked":
            chunk = b"%X\r\n%b\r\n" % (size, body) if size else b""
            head = get(target, b"Transfer-Encoding: chunked", method=b"POST")
            self.unsent += head + chunk + b"0\r\n\r\n"
        elif kind == "close":
            self.unsent += get(target, b"Connection: close")
        else:
            self.unsent += get(target)

    @precondition(lambda self: not self.left)
    @rule(what=st.sampled_from(BROKEN))
    def sends_what_is_no_request(self, what: bytes) -> None:
        self.asked.append(b"")
        self.unsent += what

    @precondition(lambda self: self.open and self.unsent and self.side.transport.reading)
    @rule(size=st.one_of(st.integers(1, 40), st.just(1 << 20)))
    def some_arrives(self, size: int) -> None:
        piece, self.unsent = self.unsent[:size], self.unsent[size:]
        self.side.send(piece)

    @precondition(lambda self: not self.left)
    @rule()
    def leaves(self) -> None:
        self.left = True
        self.streaming = False
        self.side.leave()

    # --- the pool ---

    @precondition(lambda self: self.answering and not self.streaming)
    @rule()
    def a_child_answers(self) -> None:
        self.side.seen()
        self.side.answer(self.side.running.target)

    @precondition(lambda self: self.answering and not self.streaming)
    @rule()
    def a_child_begins_a_stream(self) -> None:
        self.side.begin(None)
        self.streaming = True

    @precondition(lambda self: self.answering and self.streaming)
    @rule(size=st.integers(0, 300))
    def it_sends_a_piece(self, size: int) -> None:
        self.side.piece(b"y" * size, False)

    @precondition(lambda self: self.answering and self.streaming)
    @rule(whole=st.booleans())
    def the_stream_ends(self, whole: bool) -> None:
        self.streaming = False
        if whole:
            self.side.piece(b"", True)
        else:
            self.side._answered += 1
            self.side.connection.cut_response(self.side.dispatcher.submitted[-1])
            assert self.side.transport.aborted
            self.leaves()

    @precondition(lambda self: self.answering and not self.streaming)
    @rule(status=st.sampled_from([502, 503, 504]))
    def no_child_does(self, status: int) -> None:
        request = self.side.running
        self.side._answered += 1
        self.side.connection.fail(request, status)

    # --- the clock ---

    @rule(seconds=st.sampled_from([0.1, 5.0, 61.0, 80.0]))
    def time_passes(self, seconds: float) -> None:
        if seconds > 30:
            self.timed_out = True
        self.side.later(seconds)

    # --- what holds ---

    def statuses(self) -> list[int]:
        return [int(s) for s in re.findall(rb"HTTP/1\.1 (\d+) ", self.side.transport.written)]

    @invariant()
    def answers_come_in_order_and_a_refusal_is_the_last(self) -> None:
        if not hasattr(self, "side"):
            return
        statuses = self.statuses()
        submitted = [request.target for request in self.side.dispatcher.submitted]
        # What was handed to children is what was asked, from the first on, and nothing behind a fault.
        assert submitted == self.asked[: len(submitted)]
        assert b"" not in submitted
        done = self.side._answered
        refusals = [at for at, status in enumerate(statuses) if status in REFUSALS]
        assert len(statuses) == done + len(refusals) + self.streaming or self.left
        assert not refusals or refusals == [len(statuses) - 1]
        if refusals and not self.timed_out:
            assert b"" in self.asked and len(submitted) <= self.asked.index(b"")

    @invariant()
    def whatever_waits_for_the_client_has_a_deadline(self) -> None:
        if hasattr(self, "side") and self.open and self.side.running is None:
            assert self.side.connection.deadline != NEVER

    @invariant()
    def nobody_answers_a_client_that_has_left(self) -> None:
        if hasattr(self, "side") and self.left:
            for request in self.side.dispatcher.submitted[self.side._answered :]:
                assert request.connection is None

    def teardown(self) -> None:
        if not hasattr(self, "side"):
            return
        try:
            # Left alone, a connection ends: whatever has arrived is answered, and then time passes.
            if self.answering and self.streaming:
                self.the_stream_ends(whole=True)
            if self.answering:
                self.side.serve()
            if not self.left:
                for _ in range(4):
                    self.side.later(100.0)
                assert self.side.transport.closed
        finally:
            self.side.close()


TestConnectionMachine = ConnectionMachine.TestCase
TestConnectionMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
