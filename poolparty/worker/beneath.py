"""Regular files below a directory: opening one, reading a small one, telling what it is. Runs in threads.

A file is opened as a path alone, and only when the kernel says that where it led is below the directory is it
opened for reading; so neither a path nor a link leads out, whatever is renamed meanwhile."""

from __future__ import annotations

import os
import stat
from email.utils import formatdate

from whitenoise.media_types import MediaTypes

from poolparty.worker.static_answer import signature

SMALL = 64 * 1024
"""Bytes of a file up to which its content is read at once and sent in one write."""

CHANGES = 3
"""Tries to read a small file that is being written."""

OUTSIDE = "it is outside the root"

_types = MediaTypes()


class UnfitError(Exception):
    """There is something, but not a file that may be sent; the message says what instead."""


def open_beneath(name: str, below: str, *, hidden: bool) -> int:
    """Open a regular file for reading.

    below: a directory's real path with a slash at its end. hidden: whether a name on the way from there may
    begin with a dot. UnfitError: it is outside, hidden, or no regular file; OSError: as open() has it.
    """
    if "\0" in name:
        raise UnfitError("its name has a NUL in it")
    place = os.open(name, os.O_PATH | os.O_CLOEXEC)
    try:
        real = os.readlink(f"/proc/self/fd/{place}")
        if not is_beneath(real, below):
            raise UnfitError(OUTSIDE)
        if not hidden and "/." in real[len(below) - 1 :]:
            raise UnfitError("it is hidden")
        mode = os.fstat(place).st_mode
        if not stat.S_ISREG(mode):
            raise UnfitError("it is a directory" if stat.S_ISDIR(mode) else "it is no regular file")
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(place)


def is_beneath(real: str, below: str) -> bool:
    """Whether a real path is a directory or in it; below: as above."""
    return f"{real}/".startswith(below)


def read_small(file: int) -> bytes:
    """The whole of a small file, read at a moment when nobody wrote to it."""
    for _ in range(CHANGES):
        before = os.fstat(file)
        content = os.pread(file, before.st_size + 1, 0)
        if len(content) == before.st_size and signature(os.fstat(file)) == signature(before):
            break
    return content


def media_type(name: str) -> bytes:
    """The value of Content-Type that a file's name tells, by whitenoise's list; text is said to be UTF-8."""
    kind = _types.get_type(name).encode()
    return kind + b"; charset=utf-8" if kind.startswith(b"text/") else kind


def entity_tag(status: os.stat_result, coding: bytes = b"") -> bytes:
    """A file's ETag, of its time and size; coding: the one it is sent in, if any."""
    return b'"%x-%x%s"' % (status.st_mtime_ns, status.st_size, b"-" + coding if coding else b"")


def http_date(seconds: int) -> bytes:
    """Seconds since the epoch as HTTP writes them."""
    return formatdate(seconds, usegmt=True).encode()
