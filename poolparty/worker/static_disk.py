"""Where static files lie: looking them up below the root, and the copies compressed at first use. Runs in
threads."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from time import monotonic, time_ns
from typing import Any

from poolparty import compress
from poolparty.wire.frames import ResponseHead
from poolparty.worker.beneath import (
    SMALL,
    UnfitError,
    entity_tag,
    http_date,
    media_type,
    open_beneath,
    read_small,
)
from poolparty.worker.static_answer import Form, Signature, signature

MAX_COMPRESSED = 8 * 1024 * 1024
"""Bytes of the largest file that is compressed at first use, as the original has it; larger ones only
ahead."""

MIN_COMPRESSED = 256
"""Bytes below which that saves no packet."""

MAX_CACHE_SIZE = 512 * 1024 * 1024
"""Bytes in static_cache_dir beyond which the oldest copies go."""

CACHE_RETRY = 60.0
"""Seconds until a cache directory that could not be written is tried again."""

SETTLED = 20_000_000
"""Nanoseconds after its last change from which on a file's times tell the next change: the kernel's clock for
them has steps of up to ten milliseconds."""

PLAIN = b""
"""The coding of a file as it is."""

MISSING = (FileNotFoundError, NotADirectoryError, PermissionError)
_NO_FILE = frozenset((errno.ELOOP, errno.ENAMETOOLONG))


@dataclass(frozen=True, slots=True)
class ToCompress:
    """A file whose copy in the wanted coding is not there yet, and where it belongs."""

    name: str
    cached: str


class Disk:
    """The files below a root. compressing: whether copies are served, and so what is served varies."""

    def __init__(self, root: str, cache: Cache, compressing: bool) -> None:
        self._root = os.path.realpath(root)
        self._below = self._root.rstrip("/") + "/"
        self._cache = cache
        self._compressing = compressing

    def look_up(
        self, path: bytes, coding: bytes, compressing: bool
    ) -> tuple[Form, int, bool] | ToCompress | None:
        """(form, open file or -1 with its content in the form, whether it may be kept); None: there is no
        such file.

        compressing: say ToCompress where a copy in this coding could be made.
        """
        name = os.path.join(self._root, os.fsdecode(path))
        original = self._open(name)
        if original is None:
            return None
        copy = None
        try:
            status = os.fstat(original)
            final = time_ns() - status.st_ctime_ns > SETTLED
            sources: tuple[tuple[str, Signature], ...] = ((name, signature(status)),)
            if coding:
                beside = name + compress.SUFFIXES[coding]
                copy = self._open(beside)
                if copy is not None:
                    if compress.fresh(os.fstat(copy), status):
                        sources += ((beside, signature(os.fstat(copy))),)
                    else:
                        os.close(copy)
                        copy = None
                if copy is None and MIN_COMPRESSED <= status.st_size <= MAX_COMPRESSED:
                    cached = self._cache.path(name, status, coding)
                    copy = self._cache.open(cached)
                    if copy is None:
                        if compressing and self._cache.usable:
                            os.close(original)
                            return ToCompress(name, cached)
                        final = False
                    elif not os.fstat(copy).st_size:  # the sign that it is not worth it
                        os.close(copy)
                        copy = None
            if copy is not None:
                os.close(original)
                original, copy = copy, None
            else:
                coding = PLAIN
            content = read_small(original) if os.fstat(original).st_size <= SMALL else None
            form = self._form(
                name, coding, status, os.fstat(original).st_size if content is None else len(content), sources
            )
            form.content = content
            if content is None:
                return form, original, final
            os.close(original)
            return form, -1, final
        except BaseException:
            os.close(original)
            if copy is not None:
                os.close(copy)
            raise

    def _open(self, name: str) -> int | None:
        """Open a regular file below the root; None if there is none, or if it lies elsewhere, or is
        hidden."""
        try:
            return open_beneath(name, self._below, hidden=False)
        except (*MISSING, UnfitError):
            return None
        except OSError as error:
            if error.errno in _NO_FILE:
                return None
            raise

    def _form(
        self,
        name: str,
        coding: bytes,
        status: os.stat_result,
        size: int,
        sources: tuple[tuple[str, Signature], ...],
    ) -> Form:
        etag = entity_tag(status, coding)
        modified = int(status.st_mtime)
        common = [(b"ETag", [etag]), (b"Last-Modified", [http_date(modified)])]
        if self._compressing and compress.compressible(name):
            common.append((b"Vary", [b"Accept-Encoding"]))
        fields = [(b"Content-Type", [media_type(name)]), *common, (b"Accept-Ranges", [b"bytes"])]
        if coding:
            fields.append((b"Content-Encoding", [coding]))
        return Form(size, modified, etag, ResponseHead(200, fields), ResponseHead(304, common), sources)


class Cache:
    """The copies made at first use: static_cache_dir, or a directory of this user's in the temporary one."""

    def __init__(self, folder: str | None, log: Any) -> None:
        self._log = log
        self._own = folder is None
        self._folder = folder or os.path.join(tempfile.gettempdir(), f"poolparty-static-{os.geteuid()}")
        self._retry_at = 0.0
        self._made = False

    @property
    def usable(self) -> bool:
        return monotonic() >= self._retry_at

    def path(self, name: str, original: os.stat_result, coding: bytes) -> str:
        """Where the copy of this state of this file belongs: the change time is in it, which nobody can set
        back."""
        digest = hashlib.blake2b(
            repr((name, signature(original))).encode(errors="surrogateescape"), digest_size=20
        )
        return os.path.join(self._folder, digest.hexdigest() + compress.SUFFIXES[coding])

    def open(self, path: str) -> int | None:
        if not self._made and self._own and not self._trusted():
            return None
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None

    def fill(self, wanted: ToCompress, coding: bytes) -> None:
        """Make a copy, an empty one if it is not worth it. In a thread; a failure is logged, and tried again
        later."""
        try:
            self._make_folder()
            status = os.stat(wanted.name)
            if self.path(wanted.name, status, coding) != wanted.cached:
                return  # it has just changed: the next request finds it so
            with open(wanted.name, "rb") as file:
                data = file.read(MAX_COMPRESSED)
            if signature(os.stat(wanted.name)) != signature(status):
                return
            packed = compress.compress(data, coding, live=True) or b""
            compress.write(wanted.cached, packed, 0o600, status.st_mtime_ns)
            self._trim()
        except OSError as error:
            self._retry_at = monotonic() + CACHE_RETRY
            self._log.error(
                'msg="static_cache_dir cannot be used, files are sent as they are" directory="%s" error="%s"',
                self._folder,
                error,
            )

    def _make_folder(self) -> None:
        os.makedirs(self._folder, 0o700, exist_ok=True)
        if self._own and not self._trusted():
            raise PermissionError("it is not this user's alone; give another with static_cache_dir")
        self._made = True

    def _trusted(self) -> bool:
        """Whether nobody else can have put anything there: the temporary directory is everyone's."""
        try:
            status = os.lstat(self._folder)
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022

    def _trim(self) -> None:
        files = []
        for entry in os.scandir(self._folder):
            if entry.name.endswith(tuple(compress.SUFFIXES.values())):
                status = entry.stat(follow_symlinks=False)
                files.append((status.st_ctime_ns, status.st_size, entry.path))
        size = sum(file[1] for file in files)
        for _, freed, path in sorted(files):
            if size <= MAX_CACHE_SIZE:
                break
            os.unlink(path)
            size -= freed
