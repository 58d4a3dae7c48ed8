"""The notice: what one process publishes another reads, whole."""

from __future__ import annotations

import os

from poolparty.stats.notice import HEAD, SIZE, Notice


def test_there_is_nothing_at_first() -> None:
    assert Notice().read() == ""


def test_a_text_is_read_until_another_is_published() -> None:
    notice = Notice()
    for text in ("one", "two, longer", "\u20ac", "", "x"):
        notice.publish(text)
        assert notice.read() == text


def test_of_a_text_that_is_too_long_the_end_is_kept() -> None:
    notice = Notice()
    notice.publish("a" * SIZE + "end")
    assert notice.read() == "a" * (SIZE - HEAD - 3) + "end"


def test_a_character_cut_in_two_does_no_harm() -> None:
    notice = Notice()
    notice.publish("\u20ac" * SIZE)
    assert notice.read().endswith("\u20ac")


def test_a_text_is_read_whole_while_another_process_changes_it() -> None:
    notice = Notice()
    texts = ["a" * 5000, "b" * 4000, ""]
    notice.publish(texts[0])
    pid = os.fork()
    if pid == 0:
        for number in range(20_000):
            notice.publish(texts[number % 3])
        os._exit(0)
    try:
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            assert notice.read() in texts
    finally:
        os.waitpid(pid, 0)


def test_a_change_that_is_not_finished_shows_what_was_there_before() -> None:
    """The arbiter may lose the processor in the middle of it; half of each text was shown then."""
    notice = Notice()
    notice.publish("before")
    assert notice.read() == "before"
    notice._words[0] += 1
    notice._map[HEAD : HEAD + 3] = b"aft"
    assert notice.read() == "before"
