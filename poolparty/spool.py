"""The files that hold large request bodies: made by HTTP workers, and cleared away behind dead ones by the
arbiter.

Whoever uses a file holds a lock on it (flock(2)), which ends with its process however that ends. So a file
that can be locked by another is nobody's any more, also in a directory that several servers or containers
share. Where the file system knows no locks nothing is cleared away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets

PREFIX = "poolparty-body-"


def create(directory: str) -> tuple[int, str]:
    """A new file that only its owner may read: (descriptor, path). OSError: none can be made there."""
    while True:
        path = os.path.join(directory, f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # somebody clears away at this moment, and has taken it for a dead one's
        except OSError:
            return file, path
        if os.fstat(file).st_nlink:
            return file, path
        os.close(file)


def remove(file: int, path: str) -> None:
    """Remove a file that was made here and is used by nobody any more."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    os.close(file)


def sweep(directory: str) -> int:
    """Remove the files of processes that have died: how many."""
    removed = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    removed += _remove_if_unused(entry.path)
    return removed


def _remove_if_unused(path: str) -> bool:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(file)
    return True
