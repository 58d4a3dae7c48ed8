"""A listening Unix socket at a path: it takes nobody's place, and is removed only while it is ours.

Runs in the arbiter: the control socket and the admin listener have one each.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable
from typing import Protocol

from poolparty.errors import ConfigError

MAX_SOCKET_PATH = 107
"""sun_path is 108 bytes on Linux, one of them the terminating NUL."""

BACKLOG = 128
MODE = 0o600
GROUP_MODE = 0o660

CLAIM_TIMEOUT = 1.0
"""Seconds to wait for another server that claims a socket in the same directory at this moment."""


class Log(Protocol):
    """What is used of a logger."""

    def warning(self, message: str, *args: object) -> None: ...


class PathSocket:
    """The listening socket and its file. `option` is the setting that names the path, for complaints."""

    def __init__(self, option: str, path: str, log: Log) -> None:
        self.path = path
        self.listener: socket.socket | None = None
        self._option = option
        self._log = log
        self._place = ""  # the path, whatever the working directory will be
        self._inode = (0, 0)  # that of the socket's file

    def open(
        self, takeover: bool = False, gid: int | None = None, forget: Callable[[], None] | None = None
    ) -> None:
        """Listen at the path. Raises ConfigError, with the path untouched, if it is not ours to take.

        takeover: a live server there is our predecessor in an upgrade and is to lose its place. gid: a group
        whose members may connect too. forget: called before the listener that there is is closed.
        """
        place = os.path.abspath(self.path)
        try:
            folder_fd = _open_folder(os.path.dirname(place))
        except OSError as error:
            raise self._refusal(f"its directory cannot be used ({error.strerror}); make it") from None
        try:
            _lock(folder_fd)
            if not takeover:
                self._check(place, folder_fd)
            listener, inode = _bind(place, folder_fd, gid)
        except OSError as error:
            raise self._refusal(
                f"no socket can be made there ({error.strerror}); name another path"
            ) from None
        finally:
            os.close(folder_fd)  # and with it the lock
        if forget is not None:
            forget()
        self.close()
        self.listener, self._place, self._inode = listener, place, inode

    def close(self) -> None:
        """Close the listening socket, and remove its file if that is still ours."""
        if self.listener is None:
            return
        # Before it is closed: until then no other file can have its inode's number.
        try:
            if _inode(os.lstat(self._place)) == self._inode:
                os.unlink(self._place)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._log.warning("%s: %s cannot be removed: %s", self._option, self._place, error.strerror)
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptor and nothing else: in a process forked from the arbiter."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def _check(self, place: str, folder_fd: int) -> None:
        """Whether a new socket may be put there: nothing is, or a socket that nobody answers on."""
        try:
            there = os.lstat(place)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(there.st_mode):
            raise self._refusal(
                "there is a file that is no socket, and it is left alone; move it or name another path"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            answer = probe.connect_ex(_address(place, folder_fd))
        if answer in (errno.ECONNREFUSED, errno.ENOENT):
            return  # left behind by a crash
        if answer in (0, errno.EAGAIN):  # EAGAIN: it listens, and has its backlog full
            raise self._refusal("another server answers there; stop that one or name another path")
        raise self._refusal(
            f"there is a socket of somebody else's ({os.strerror(answer)}); name another path"
        )

    def _refusal(self, wrong: str) -> ConfigError:
        return ConfigError(f"{self._option} = {self.path!r}: {wrong}.")


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open_folder(path: str) -> int:
    """A descriptor to lock the folder by, and to name what is in it."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return os.open(path, os.O_PATH | os.O_DIRECTORY)  # may be searched, not read


def _lock(folder_fd: int) -> None:
    """Keep others from claiming a socket in the folder at the same time, until the descriptor is closed.

    Two servers that start at once would both find a stale socket, and the first lose its place to the second.
    Where locking is impossible, or somebody holds the lock for purposes of his own, that risk is taken.
    """
    give_up = time.monotonic() + CLAIM_TIMEOUT
    while True:
        try:
            return fcntl.flock(folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                return None
            time.sleep(0.01)
        except OSError:
            return None


def _address(place: str, folder_fd: int) -> str:
    """The path as a socket's address, which holds 107 bytes."""
    if len(os.fsencode(place)) <= MAX_SOCKET_PATH:
        return place
    return f"/proc/self/fd/{folder_fd}/{os.path.basename(place)}"


def _bind(place: str, folder_fd: int, gid: int | None) -> tuple[socket.socket, tuple[int, int]]:
    """A listening socket in place of what is at the path, and its inode. It has MODE from its first instant,
    and the group's rights once it is the group's."""
    temporary = f"{place}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(temporary).st_mode):
                os.unlink(temporary)  # left by a crash just here
        os.fchmod(listener.fileno(), MODE)  # Linux: bind makes the file with the mode of the descriptor
        listener.bind(_address(temporary, folder_fd))
        try:
            if gid is not None:
                os.chown(temporary, -1, gid, follow_symlinks=False)
                os.chmod(temporary, GROUP_MODE)
            listener.listen(BACKLOG)
            inode = _inode(os.lstat(temporary))
            os.rename(temporary, place)
        except BaseException:
            os.unlink(temporary)
            raise
    except BaseException:
        listener.close()
        raise
    return listener, inode
