"""A text that the arbiter shows to all HTTP workers: why the application does not start. For development
(--reload) alone.

An anonymous shared mapping, made before the first fork. The arbiter writes, under its lock; readers take no
lock: a number that is odd during a change, and another one after it, tells them to read again."""

from __future__ import annotations

import mmap

SIZE = 64 * 1024
HEAD = 16
"""Bytes in front of the text: the number of its version, and its length."""

TRIES = 1000


class Notice:
    """No text is there at first."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, SIZE)
        self._words = memoryview(self._map)[:HEAD].cast("Q")
        self._whole = ""  # what this process read last

    def publish(self, text: str) -> None:
        """Show this text, its end if it is too long; "" takes the last one away. The arbiter's."""
        data = text.encode(errors="replace")[-(SIZE - HEAD) :]
        self._words[0] += 1
        self._map[HEAD : HEAD + len(data)] = data
        self._words[1] = len(data)
        self._words[0] += 1

    def read(self) -> str:
        """The text, "" if there is none. Where the arbiter has been stopped in the middle of a change, the
        text before it."""
        for _ in range(TRIES):
            version = self._words[0]
            data = self._map[HEAD : HEAD + self._words[1]]
            if version % 2 == 0 and version == self._words[0]:
                self._whole = data.decode(errors="replace")
                break
        return self._whole
