"""Datagrams to a receiver of the test's, and to none: the sender never waits and loses no count."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

import poolparty.settings  # noqa: F401 - registers the options
from poolparty.arbiter import statsd_sender
from poolparty.arbiter.statsd_sender import INTERVAL, LOOKUP_INTERVAL, LOOKUP_RETRY, StatsdSender, Target
from poolparty.errors import ConfigError
from poolparty.stats.statsd import Naming


class Snapshot:
    """Stands for a snapshot, of which `lines` below makes the number of requests since the other."""

    requests = 0


@pytest.fixture(autouse=True)
def few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(snapshot: int, previous: int, naming: Naming) -> list[bytes]:
        return [b"%s%d" % (naming.prefix.encode(), snapshot - previous)]

    monkeypatch.setattr(statsd_sender, "lines", lines)


@pytest.fixture
def stats() -> Snapshot:
    return Snapshot()


@pytest.fixture
def make(stats: Snapshot) -> Iterator[Callable[[Any], StatsdSender]]:
    """A sender of what is counted from now on."""
    made: list[StatsdSender] = []

    def make(host: Any) -> StatsdSender:
        log = logging.getLogger("test.statsd")
        target = Target(host, Naming())
        made.append(StatsdSender(target, lambda: stats.requests, log, stats.requests))  # type: ignore
        return made[-1]

    yield make
    for sender in made:
        sender.close()


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        yield receiver


def test_each_round_sends_what_came_since_the_last(
    make: Callable[..., StatsdSender], stats: Snapshot, receiver: socket.socket
) -> None:
    stats.requests = 100  # before it was there
    sender = make(receiver.getsockname())
    stats.requests += 3
    sender.tick(0.0)
    assert receiver.recv(100) == b"3"
    assert sender.due == INTERVAL
    stats.requests += 4
    sender.tick(INTERVAL)
    assert receiver.recv(100) == b"4"
    assert sender.due == 2 * INTERVAL


def test_a_pause_is_not_made_up_for(make: Callable[..., StatsdSender], receiver: socket.socket) -> None:
    sender = make(receiver.getsockname())
    sender.tick(1000.0)
    assert sender.due > 1000.0


def test_counts_wait_for_a_receiver_and_the_log_says_so_once(
    make: Callable[..., StatsdSender], stats: Snapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = str(tmp_path / "statsd")
    sender = make(path)
    for _ in range(3):
        stats.requests += 1
        sender.send()
    (line,) = caplog.messages
    assert line.startswith(f"statsd: nothing can be sent to unix:{path} (No such file")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(10)
        sender.send()
        assert receiver.recv(100) == b"3"
        assert caplog.messages[1:] == [f"statsd: figures are sent to unix:{path} again"]


def test_a_receiver_that_reads_nothing_holds_nobody_up(
    make: Callable[..., StatsdSender], stats: Snapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "statsd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(10)
        sender = make(path)
        while not caplog.messages:  # would wait for ever on a socket that waits
            stats.requests += 1
            sender.send()
        assert "temporarily unavailable" in caplog.text
        taken = 0
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                taken += int(receiver.recv(100))
        sender.send()
        assert taken + int(receiver.recv(100)) == stats.requests


def test_nobody_at_a_port_is_no_trouble(
    make: Callable[..., StatsdSender], stats: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        where = taken.getsockname()
    sender = make(where)
    for _ in range(3):
        sender.send()
    assert caplog.messages == []


class Names:
    """A name server that answers when a test lets it."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.answers: list[Any] = []
        self.answered = threading.Semaphore(0)

    def getaddrinfo(self, host: str, port: int, type: int, flags: int) -> list[Any]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        self.asked.release()
        assert self.answered.acquire(timeout=10)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, type, 0, "", (answer, port))]

    def answer(self, sender: StatsdSender, answer: Any) -> None:
        """Answer the question that was asked, and wait until the answer has been taken in."""
        assert self.asked.acquire(timeout=10)
        self.answers.append(answer)
        self.answered.release()
        assert sender._lookup is not None and sender._lookup._thread is not None
        sender._lookup._thread.join(10)
        assert not sender._lookup._thread.is_alive()


def test_a_name_is_looked_up_while_everything_goes_on(
    make: Callable[..., StatsdSender],
    stats: Snapshot,
    receiver: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = Names()
    monkeypatch.setattr(statsd_sender.socket, "getaddrinfo", names.getaddrinfo)
    monkeypatch.setattr(statsd_sender.time, "monotonic", lambda: 0.0)
    sender = make(("statsd.example", receiver.getsockname()[1]))
    stats.requests = 5
    sender.tick(1.0)
    names.answer(sender, socket.gaierror(socket.EAI_AGAIN, "try again"))
    sender.tick(LOOKUP_RETRY)
    sender.tick(LOOKUP_RETRY + 1)
    assert sender.due == LOOKUP_RETRY + 1 + INTERVAL
    names.answer(sender, "127.0.0.1")
    assert not names.asked.acquire(blocking=False)  # once at a time
    stats.requests = 7
    sender.tick(LOOKUP_RETRY + 2)
    assert receiver.recv(100) == b"7"
    assert "statsd.example:" in caplog.messages[0]
    sender.tick(LOOKUP_RETRY + LOOKUP_INTERVAL)
    names.answer(sender, socket.gaierror(socket.EAI_AGAIN, "try again"))
    assert receiver.recv(100) == b"0"
    stats.requests = 9
    sender.send()
    assert receiver.recv(100) == b"2"  # the last address holds until there is another


def test_what_no_name_server_can_be_asked_for_is_no_more_than_a_line_in_the_log(
    make: Callable[..., StatsdSender], caplog: pytest.LogCaptureFixture
) -> None:
    sender = make(("a" * 70 + "..b", 8125))
    sender.tick(1.0)
    assert sender._lookup is not None and sender._lookup._thread is not None
    sender._lookup._thread.join(10)
    sender.tick(1.1)
    assert "its name is not found" in caplog.text


def test_another_receiver_gets_what_the_first_did_not(
    make: Callable[..., StatsdSender], stats: Snapshot, receiver: socket.socket, tmp_path: Path
) -> None:
    sender = make(str(tmp_path / "nobody"))
    stats.requests = 2
    sender.send()
    sender.redirect(Target(receiver.getsockname(), Naming("new.")))
    stats.requests = 3
    sender.send()
    assert receiver.recv(100) == b"new.3"


def config(**values: Any) -> Config:
    cfg = Config()
    for name, value in values.items():
        cfg.set(name, value)
    return cfg


@pytest.mark.parametrize(
    ("host", "expected", "shown"),
    [
        ("127.0.0.1", ("127.0.0.1", 8125), "127.0.0.1:8125"),
        ("[::1]:99", ("::1", 99), "[::1]:99"),
        ("metrics.example:8126", ("metrics.example", 8126), "metrics.example:8126"),
        ("unix:///run/statsd", "/run/statsd", "unix:/run/statsd"),
        ("unix:8125", ("unix", 8125), "unix:8125"),
    ],
)
def test_a_host_is_what_gunicorn_takes_it_for(host: str, expected: Any, shown: str) -> None:
    target = Target.from_cfg(config(statsd_host=host))
    assert target.host == expected
    assert str(target) == shown


def test_the_prefix_gets_the_one_dot_it_needs() -> None:
    for given, used in (("", ""), ("a", "a."), ("a.b..", "a.b."), (".", "")):
        assert Target.from_cfg(config(statsd_host="h", statsd_prefix=given)).naming.prefix == used


@pytest.mark.parametrize(
    "values",
    [
        {"statsd_host": "h:70000"},
        {"statsd_host": "h:0"},
        {"statsd_host": "fd://3"},
        {"statsd_host": "unix:///" + "x" * 120},
        {"statsd_prefix": "a:b"},
        {"statsd_prefix": "a b"},
        {"statsd_prefix": "é"},
        {"dogstatsd_tags": "a:b|c"},
        {"dogstatsd_tags": "a:b, c:d"},
        {"dogstatsd_tags": "a\nb"},
        {"dogstatsd_tags": "a" * 2000},
        {"statsd_prefix": "a" * 2000},
    ],
)
def test_what_cannot_be_sent_to_is_one_sentence_about_its_option(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Target.from_cfg(config(**{"statsd_host": "h"} | values))
    said = str(caught.value)
    assert said.startswith(next(iter(values)))
    assert said.endswith(".") and "\n" not in said
