"""Children's output on its way to the log: lines stay whole, none is forged, a stalled log stalls nobody."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolparty.arbiter import relay as relay_module
from poolparty.arbiter.relay import MAX_LINE, MAX_PENDING, Relay, Stream, printable

WaitFor = Callable[..., Any]


class SlowLog:
    """A log that can be stalled."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.flows = threading.Event()
        self.flows.set()

    def log(self, level: int, message: str, *args: object) -> None:
        self.flows.wait()
        self.lines.append((level, message % args if args else message))

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.lines]


class Source:
    """A child's output pipe; its number as a child is 7."""

    def __init__(self, relay: Relay) -> None:
        reading, self.fd = os.pipe()
        os.set_blocking(reading, False)
        self.stream = relay.attach(7, reading)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.fd, data) :]


@pytest.fixture
def log() -> SlowLog:
    return SlowLog()


@pytest.fixture
def relay(log: SlowLog) -> Iterator[Relay]:
    relay = Relay(log)
    relay.start()
    yield relay
    log.flows.set()
    relay.stop()


@pytest.fixture
def source(relay: Relay) -> Iterator[Source]:
    source = Source(relay)
    yield source
    os.close(source.fd)
    relay.finish(source.stream)


def test_each_line_is_logged_with_the_childs_pid(source: Source, log: SlowLog, wait_for: WaitFor) -> None:
    source.write(b"one\ntwo\r\n\nthr")
    source.write(b"ee\n")
    wait_for(lambda: len(log.lines) == 4)
    assert log.lines == [(logging.INFO, f"worker-pid=7 {text}") for text in ("one", "two", "", "three")]


def test_percent_signs_are_only_text(source: Source, log: SlowLog, wait_for: WaitFor) -> None:
    source.write(b"100% %s %d\n")
    wait_for(lambda: log.texts == ["worker-pid=7 100% %s %d"])


def test_what_is_left_at_the_end_is_logged_before_its_obituary(
    relay: Relay, log: SlowLog, wait_for: WaitFor
) -> None:
    source = Source(relay)
    source.write(b"a\nlast words")
    os.close(source.fd)
    assert relay.finish(source.stream) == ["a", "last words"]
    relay.log.info("obituary")
    wait_for(lambda: len(log.lines) == 3)
    assert log.texts == ["worker-pid=7 a", "worker-pid=7 last words", "obituary"]


def test_the_end_does_not_wait_for_others_that_hold_the_pipe(relay: Relay) -> None:
    source = Source(relay)
    source.write(b"said\n")
    assert relay.finish(source.stream) == ["said"]
    os.close(source.fd)


def test_only_the_last_lines_are_kept(relay: Relay) -> None:
    source = Source(relay)
    source.write(b"".join(b"%d\n" % n for n in range(100)))
    os.close(source.fd)
    assert relay.finish(source.stream) == [str(n) for n in range(80, 100)]


def test_a_stalled_log_stops_neither_the_child_nor_us(
    relay: Relay, source: Source, log: SlowLog, wait_for: WaitFor
) -> None:
    log.flows.clear()
    line = b"x" * 99 + b"\n"
    written = 0
    while written < 4 * MAX_PENDING:  # would block for ever if nobody read
        source.write(line * 100)
        written += len(line) * 100
    began = time.monotonic()
    relay.log.warning("of our own")
    assert time.monotonic() - began < 0.5
    wait_for(lambda: source.stream.dropped)
    log.flows.set()
    wait_for(lambda: len(log.lines) > 2000)
    source.write(b"after\n")
    wait_for(lambda: log.texts[-1] == "worker-pid=7 after")
    (dropped,) = (text for text in log.texts if "dropped" in text)
    count = int(dropped.split("[")[1].split()[0])
    assert count + log.texts.count("worker-pid=7 " + "x" * 99) == written // len(line)
    assert (logging.WARNING, dropped) in log.lines


def test_drops_are_told_at_the_end_too(relay: Relay, log: SlowLog, wait_for: WaitFor) -> None:
    log.flows.clear()
    source = Source(relay)
    source.write(b"y\n" * MAX_PENDING)
    os.close(source.fd)
    wait_for(lambda: source.stream.dropped)
    relay.finish(source.stream)
    log.flows.set()
    wait_for(lambda: any("dropped" in text for text in log.texts))


def test_what_children_say_is_logged_whatever_the_level_of_the_error_log(
    wait_for: WaitFor, caplog: pytest.LogCaptureFixture
) -> None:
    class Gunicorns:
        error_log = logging.getLogger("test.error")

        def log(self, level: int, message: str, *args: object) -> None:
            self.error_log.log(level, message, *args)

    Gunicorns.error_log.setLevel(logging.ERROR)
    relay = Relay(Gunicorns())
    relay.start()
    source = Source(relay)
    relay.log.warning("less of the server")
    source.write(b"Traceback\n")
    wait_for(lambda: caplog.messages)
    assert caplog.messages == ["worker-pid=7 Traceback"]
    assert caplog.records[0].name == "test.error.worker"
    os.close(source.fd)
    relay.finish(source.stream)
    relay.stop()


def test_our_own_lines_have_a_bound_too(relay: Relay, log: SlowLog, wait_for: WaitFor) -> None:
    log.flows.clear()
    for number in range(relay_module.MAX_OWN_PENDING + 500):
        relay.log.info("%d", number)
    log.flows.set()
    wait_for(lambda: any("were dropped" in text for text in log.texts))
    assert len(log.lines) < relay_module.MAX_OWN_PENDING + 10


def test_a_long_line_comes_in_marked_pieces(source: Source, log: SlowLog, wait_for: WaitFor) -> None:
    source.write(b"z" * (MAX_LINE * 2 + 10) + b"\nnext\n")
    wait_for(lambda: len(log.lines) == 4)
    assert log.texts == [
        "worker-pid=7 " + "z" * MAX_LINE,
        "worker-pid=7 [line goes on] " + "z" * MAX_LINE,
        "worker-pid=7 [line goes on] " + "z" * 10,
        "worker-pid=7 next",
    ]


def test_pieces_do_not_cut_characters() -> None:
    text = "€" * MAX_LINE
    stream = Stream(1, -1)
    pieces = [*stream.split(text.encode()), *stream.rest()]
    assert "".join(piece.removeprefix(b"[line goes on] ").decode() for piece in pieces) == text


@given(st.lists(st.binary(max_size=50)))
def test_any_split_of_the_stream_gives_the_same_lines(chunks: list[bytes]) -> None:
    stream = Stream(1, -1)
    lines = [line for chunk in chunks for line in stream.split(chunk)] + stream.rest()
    whole = b"".join(chunks).split(b"\n")
    assert lines == [line.removesuffix(b"\r") for line in whole[:-1] + [whole[-1]][: bool(whole[-1])]]


@given(st.binary())
def test_no_output_can_forge_a_line_or_steer_a_terminal(data: bytes) -> None:
    text = printable(data)
    assert all(character == "\t" or character.isprintable() or ord(character) > 0xFF for character in text)
    assert not any(character in text for character in "\n\r\x1b\x7f\x85\x9b\u2028\u2029")


def test_what_is_not_utf_8_is_shown() -> None:
    assert printable(b"caf\xe9 \x1b[31m\tok \xc3\xa9") == "caf\\xe9 \\x1b[31m\tok é"


def test_a_log_that_raises_does_not_end_it(
    relay: Relay, source: Source, log: SlowLog, wait_for: WaitFor
) -> None:
    real = log.log

    def broken(*_: object) -> None:
        log.log = real  # type: ignore[method-assign]
        raise OSError("disk full")

    log.log = broken  # type: ignore[method-assign]
    source.write(b"lost\nkept\n")
    wait_for(lambda: log.texts == ["worker-pid=7 kept"])


def test_a_fork_waits_for_the_line_being_written_but_not_for_a_stalled_log(
    relay: Relay, log: SlowLog
) -> None:
    relay.hold()
    relay.resume()
    log.flows.clear()
    relay.log.info("stalls")
    began = time.monotonic()
    while not relay._writing.locked():
        time.sleep(0.001)
    relay.hold()
    relay.resume()
    assert 0.9 < time.monotonic() - began < 3


def test_stop_logs_what_is_queued_and_gives_a_stalled_log_up(log: SlowLog) -> None:
    relay = Relay(log)
    relay.start()
    for number in range(100):
        relay.log.info("%d", number)
    relay.stop()
    assert log.texts == [str(number) for number in range(100)]
    stalled = Relay(log)
    stalled.start()
    log.flows.clear()
    stalled.log.info("never")
    began = time.monotonic()
    stalled.stop(timeout=0.2)
    assert time.monotonic() - began < 1
    log.flows.set()
