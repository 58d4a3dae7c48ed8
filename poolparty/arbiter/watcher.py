"""Development: restarts the children when the application's files change. One thread in the arbiter, with
--reload alone.

What counts is a comparison of the files with what they were (name, time, size), made when watchfiles says
that something happened, or every second where it is not installed or cannot watch. Files named one by one are
looked at twice a second in any case: an editor puts a new file in place of the old one, and a watch stays
with the old. A change is taken once the files have come to rest. What is written while programs run, logs,
sockets, databases, hidden files, is left out."""

from __future__ import annotations

import glob
import logging
import os
import stat
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from time import monotonic
from typing import Any

from gunicorn.util import is_glob_pattern

from poolparty.pools import PoolConfig

POLL = 1.0
"""Seconds between two looks at everything where nobody tells of changes."""

FILE_POLL = 0.5
"""Seconds between two looks at the files named one by one."""

REST = 0.1
"""Seconds without a further change after which one is taken: a build or a checkout writes many files."""

LONGEST_UNREST = 5.0

SOON = 3.0
REPEATED = 5
"""A file that changes so many times in a row, each less than SOON seconds after the last, is written by the
application itself."""

MAX_FILES = 20_000
"""Files looked at in directories: a larger tree is no application, and would keep a core busy."""

IGNORED_FOLDERS = frozenset(("__pycache__", "node_modules"))
IGNORED_ENDINGS = (
    *("~", ".pyc", ".pyo", ".swp", ".tmp"),
    *(".log", ".pid", ".lock", ".sock"),
    *(".db", ".sqlite", ".sqlite3", "-journal", "-wal", "-shm"),
)

State = tuple[int, int, int] | None
"""What is compared of a file: time, size, number. None: it is not there."""


class Watched:
    """The files, and what of their surroundings does not count. Paths are absolute."""

    def __init__(self, files: Sequence[str], folders: Sequence[str], ignored: Sequence[str]) -> None:
        self._files = list(files)
        self.folders = list(folders)
        self._ignored = {os.path.realpath(path) for path in ignored}
        self._outputs = {
            _number(fd) for fd in (1, 2)
        }  # where a shell has sent the log, mostly to a file here
        self.cut = False  # there are more than MAX_FILES

    @classmethod
    def of_pools(cls, pools: Sequence[PoolConfig]) -> Watched:
        """reload_paths, or the files named in each pool's command and its working directory; and
        reload_extra_files."""
        cfg, options = pools[0].cfg, pools[0].options
        folder = os.path.abspath(cfg.chdir)
        paths = [os.path.join(folder, path) for path in options.reload_paths or ()]
        if options.reload_paths is None:
            for pool in pools:
                paths += [path for path in _application(pool) if path not in paths]
        folders = [os.path.realpath(path) for path in paths if os.path.isdir(path)]
        files = [path for path in paths if not os.path.isdir(path)]
        extra = [os.path.abspath(path) for path in cfg.reload_extra_files]
        written = [cfg.errorlog, cfg.accesslog, cfg.pidfile, cfg.worker_tmp_dir, cfg.tmp_upload_dir]
        written += [options.ctl_socket, options.static_root, options.static_cache_dir, options.sendfile_root]
        ignored = [os.path.join(folder, path) for path in written if path and path != "-"]
        return cls([*files, *extra], folders, ignored)

    def leave_out(self, path: str) -> None:
        """This one does not count any more."""
        self._ignored.add(path)
        self._files = [file for file in self._files if file != path]

    def named(self) -> dict[str, State]:
        """The state of the files named one by one; a pattern stands for those that match it now."""
        found = {}
        for path in self._files:
            for match in glob.glob(path, recursive=True) if is_glob_pattern(path) else [path]:
                found[match] = _state(match)
        return found

    def all(self) -> dict[str, State]:
        """The state of everything."""
        found = self.named()
        room = MAX_FILES
        for folder in self.folders:
            for path in self._below(folder):
                if path not in found:
                    room -= 1
                    if room < 0:
                        self.cut = True
                        return found
                    found[path] = _state(path, self._outputs)
        return found

    def counts(self, path: str) -> bool:
        """Whether a change of this file, below one of the folders, may be one of the application."""
        for folder in self.folders:
            if path.startswith(folder.rstrip("/") + "/"):
                parts = path[len(folder.rstrip("/")) + 1 :].split("/")
                hidden = any(part.startswith(".") or part in IGNORED_FOLDERS for part in parts)
                at = folder.rstrip("/")
                for part in parts:
                    at = f"{at}/{part}"
                    hidden = hidden or at in self._ignored
                if not hidden and not path.endswith(IGNORED_ENDINGS):
                    return True
        return False

    def _below(self, folder: str) -> Iterator[str]:
        for at, folders, names in os.walk(folder):
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".")
                and name not in IGNORED_FOLDERS
                and os.path.join(at, name) not in self._ignored
                and not os.path.exists(os.path.join(at, name, "pyvenv.cfg"))
            ]
            for name in names:
                path = os.path.join(at, name)
                if (
                    not name.startswith(".")
                    and not name.endswith(IGNORED_ENDINGS)
                    and path not in self._ignored
                ):
                    yield path


def _application(pool: PoolConfig) -> Iterator[str]:
    """The files named in a pool's command, and the directory it runs in."""
    folder = os.path.abspath(pool.cfg.chdir)
    command = pool.options.pool_cmd
    # A program that is looked for on the PATH is an interpreter.
    for word in command[0 if os.path.dirname(command[0]) else 1 :]:
        path = os.path.join(folder, word)
        if os.path.isfile(path):
            yield path
    if folder != "/":
        yield folder


def _state(path: str, outputs: Container[tuple[int, int] | None] = ()) -> State:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) in outputs:
        return None  # whoever makes a socket or a pipe is no editor
    return status.st_mtime_ns, status.st_size, status.st_ino


def _number(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Watcher:
    """Calls `changed` with the name of a changed file, in its own thread, each time the files have changed
    and rest."""

    def __init__(
        self,
        watched: Watched,
        changed: Callable[[str], None],
        log: logging.Logger | Any,
        polling: bool = False,
    ) -> None:
        self._watched = watched
        self._changed = changed
        self._log = log
        self._polling = polling
        self._stop = threading.Event()
        self._known = watched.all()
        self._last = 0.0  # when a change was taken
        self._repeated: dict[
            str, int
        ] = {}  # files changed again soon after that, and how many times in a row
        if watched.cut:
            log.warning('msg="too many files to watch, give reload_paths" watched=%d', MAX_FILES)
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for that: at the interpreter's end it must not be in watchfiles' code."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for everything in self._looks():
                now = self._watched.all() if everything else {**self._known, **self._watched.named()}
                if now != self._known:
                    self._take(now)
        except Exception:
            self._log.exception('msg="the watcher failed, changes are not noticed any more"')

    def _take(self, now: dict[str, State]) -> None:
        """Something has changed: wait until nothing more does."""
        waited = 0.0
        while waited < LONGEST_UNREST and not self._stop.wait(REST):
            waited += REST
            before, now = now, self._watched.all()
            if now == before:
                break
        changed = sorted(path for path in {*now, *self._known} if now.get(path) != self._known.get(path))
        self._known = now
        changed = self._without_repeated(changed)
        if changed and not self._stop.is_set():
            self._changed(changed[0])

    def _without_repeated(self, changed: list[str]) -> list[str]:
        """Leave out what the application writes each time it is started: that would go on for ever."""
        soon = monotonic() < self._last + SOON
        self._last = monotonic()
        self._repeated = {path: self._repeated.get(path, 0) + 1 if soon else 0 for path in changed}
        for path, times in self._repeated.items():
            if times >= REPEATED:
                self._watched.leave_out(path)
                self._known.pop(path, None)
                self._log.warning(
                    'msg="a file changes at each restart and is watched no more" file="%s"', path
                )
        return [path for path in changed if self._repeated[path] < REPEATED]

    def _looks(self) -> Iterator[bool]:
        """Yields whenever it is time to look: True at everything, False at the files named one by one."""
        if not self._polling and self._watched.folders:
            try:
                from watchfiles import watch
            except ImportError:
                self._log.info('msg="watchfiles is not installed" action="looking at the files every second"')
            else:
                first = True  # what changed before the watch began, nobody tells
                try:
                    for changes in watch(
                        *self._watched.folders,
                        watch_filter=lambda change, path: self._watched.counts(path),
                        debounce=int(REST * 1000),
                        stop_event=self._stop,
                        rust_timeout=int(FILE_POLL * 1000),
                        yield_on_timeout=True,
                        raise_interrupt=False,
                        ignore_permission_denied=True,
                    ):
                        yield bool(changes) or first
                        first = False
                except (OSError, RuntimeError) as error:  # as when the user has too many watches
                    self._log.warning(
                        'msg="watchfiles cannot watch" error="%s" action="looking at the files every second"',
                        error,
                    )
        while not self._stop.wait(POLL if self._watched.folders else FILE_POLL):
            yield True
