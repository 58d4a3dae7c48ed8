"""Static files: what lies below static_root is answered here, and no child is asked. Runs in the HTTP worker.

A target is compared in the form a child would see it in: decoded, `//` and `..` resolved. A file is opened as
a path alone, and only when the kernel says that where it led is below the root, with no hidden name on the
way, is it opened for reading; so neither a path nor a link leads out. Names are looked up when they are asked
for, in a thread. What was found is kept, small files with their content, and is compared with the disk (stat)
before each use: a changed file is served changed.

whitenoise gives the media types and says what is worth compressing. Its responder is not used: of version
6.12 it was seen to answer `bytes=0-0` with 416, to give all encodings one strong ETag, to send gzip to
`gzip;q=0`, and to know no If-Range and no list in If-None-Match."""

from __future__ import annotations

import asyncio
import errno
import functools
import hashlib
import os
import re
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate, mktime_tz, parsedate_tz
from time import monotonic
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote_to_bytes

from whitenoise.media_types import MediaTypes

from poolparty import compress
from poolparty.stats.scoreboard import COUNTER_INDEX
from poolparty.wire.frames import ResponseHead
from poolparty.worker.request import PLAIN_TARGET, absolute_uri, normal_path, not_normal
from poolparty.worker.transfer import Transfer

if TYPE_CHECKING:
    from poolparty.settings import Options
    from poolparty.worker.request import Request
    from poolparty.worker.server import Server

SMALL = 64 * 1024
"""Bytes of a file up to which its content is kept and sent in one write."""

MAX_KEPT = 1024
"""Files known at a time …"""

MAX_KEPT_SIZE = 32 * 1024 * 1024
"""… and bytes of their content."""

RECHECK = 10.0
"""Seconds after which a file is looked up anew, in a thread. Sooner it is compared by stat where it is used:
what the kernel was asked a moment ago it answers from memory."""

MAX_COMPRESSED = 8 * 1024 * 1024
"""Bytes of the largest file that is compressed at first use, as the original has it; larger ones only
ahead."""

MIN_COMPRESSED = 256
"""Bytes below which that saves no packet."""

MAX_COMPRESSING = 64
"""Files that may wait to be compressed; meanwhile others are sent as they are."""

MAX_CACHE_SIZE = 512 * 1024 * 1024
"""Bytes in static_cache_dir beyond which the oldest copies go."""

CACHE_RETRY = 60.0
"""Seconds until a cache directory that could not be written is tried again."""

CHANGES = 3
"""Tries to read a small file that is being written."""

STATIC = COUNTER_INDEX["static"]
PLAIN = b""
"""The coding of a file as it is."""

MISSING = (FileNotFoundError, NotADirectoryError, PermissionError)
_NO_FILE = frozenset((errno.ELOOP, errno.ENAMETOOLONG))

_range = re.compile(rb"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE).fullmatch
_coding = re.compile(
    rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t]*q=([0-9.]{1,5})[ \t]*)?", re.IGNORECASE
).fullmatch
_etags = re.compile(rb'"[^"]*"').findall
_strong_etags = re.compile(rb'(?<!W/)"[^"]*"').findall

Signature = tuple[int, int, int, int, int]
T = TypeVar("T")


@dataclass(slots=True)
class Form:
    """A file in one coding, ready to be sent.

    sources: the files it depends on, each with what stat said of it. content: None if it is read as it is
    sent."""

    size: int
    modified: int  # seconds since the epoch, the original's
    etag: bytes
    whole: ResponseHead
    unchanged: ResponseHead
    sources: tuple[tuple[str, Signature], ...]
    content: bytes | None = None
    checked: float = field(default_factory=monotonic)

    def current(self) -> bool:
        """Whether the disk still says the same."""
        try:
            return all(_signature(os.stat(path)) == known for path, known in self.sources)
        except OSError:
            return False


@dataclass(slots=True)
class Answer:
    """What a request gets: a head, and `size` bytes of the file from `start` on, or a sentence."""

    head: ResponseHead
    start: int = 0
    size: int = 0
    sentence: bytes | None = None


@dataclass(frozen=True, slots=True)
class ToCompress:
    """A file whose copy in the wanted coding is not there yet, and where it belongs."""

    name: str
    cached: str


class StaticFiles:
    """The static files of one HTTP worker."""

    def __init__(self, server: Server, options: Options) -> None:
        assert options.static_root is not None
        self._server = server
        self._root = os.path.realpath(options.static_root)
        prefix = normal_path(options.static_url_prefix.encode(errors="surrogateescape"))
        self._prefix = prefix if prefix.endswith(b"/") else prefix + b"/"
        self._codings: tuple[bytes, ...] = ()
        if options.static_compress:
            brotli = compress.brotli_installed and not options.static_no_brotli
            self._codings = (b"br", b"gzip") if brotli else (b"gzip",)
        self._cache = Cache(options.static_cache_dir, server)
        self._types = MediaTypes()
        self._kept: OrderedDict[tuple[bytes, bytes], Form] = OrderedDict()
        self._kept_size = 0
        self._compressing: set[tuple[bytes, bytes]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lookups = ThreadPoolExecutor(2, "static-lookup")
        self._transfers = ThreadPoolExecutor(4, "static-transfer")
        self._compressor = ThreadPoolExecutor(1, "static-compress")

    # --- which requests ------------------------------------------------------------------------------------

    def path_of(self, target: bytes, method: bytes = b"GET") -> bytes | None:
        """What a target names below the root, decoded; None: it is not below static_url_prefix."""
        if target[:1] == b"/" and not target.translate(None, PLAIN_TARGET) and not not_normal(target):
            path = target.partition(b"?")[0]
            return path[len(self._prefix) :] if path.startswith(self._prefix) else None
        uri = absolute_uri(b"http", b"", target, method)
        path = uri[uri.index(b"/", uri.index(b"://") + 3) :].partition(b"?")[0]
        return unquote_to_bytes(path[len(self._prefix) :]) if path.startswith(self._prefix) else None

    def takes(self, request: Request) -> bool:
        """Answer a request that is below static_url_prefix. False: it is not, and a child is to be asked."""
        path = self.path_of(request.target, request.method)
        if path is None:
            return False
        if not request.retryable:
            self._send(
                request,
                None,
                _refusal(405, b"only GET and HEAD are answered here\n", (b"Allow", [b"GET, HEAD"])),
            )
            return True
        if not servable(path):
            self._send(request, None, _refusal(404, b"not found\n"))
            return True
        conditions = _conditions(request)
        coding = self._coding(path, conditions)
        form = self._kept.get((path, coding))
        if form is not None:
            if monotonic() - form.checked < RECHECK and form.current():
                answer = decide(request, form, conditions)
                if form.content is not None or not answer.size or request.is_head:
                    self._kept.move_to_end((path, coding))
                    self._send(request, form, answer)
                    return True
            else:
                self._forget((path, coding))
        task = self._server.loop.create_task(self._serve(request, path, coding, conditions))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        """End what is being sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for threads in (self._lookups, self._transfers, self._compressor):
            threads.shutdown(wait=False, cancel_futures=True)

    def _coding(self, path: bytes, conditions: dict[bytes, bytes]) -> bytes:
        """The coding to look for: as with the original brotli before gzip, and no coding for a part of a
        file."""
        accepted = conditions.get(b"accept-encoding")
        if (
            not accepted
            or not self._codings
            or b"range" in conditions
            or not compress.compressible(os.fsdecode(path))
        ):
            return PLAIN
        codings = accepted_codings(accepted)
        return next((coding for coding in self._codings if coding in codings), PLAIN)

    # --- answering -----------------------------------------------------------------------------------------

    def _send(self, request: Request, form: Form | None, answer: Answer) -> None:
        """Send what needs no file."""
        connection = request.connection
        if connection is None:
            return
        body: bytes | memoryview = answer.sentence or b""
        if form is not None and form.content is not None and answer.size:
            body = form.content
            if answer.size != form.size:
                body = memoryview(body)[answer.start : answer.start + answer.size]
        if request.is_head and answer.size:
            Transfer(connection, request, -1, 0, answer.size, self._transfers).send_head(answer.head, STATIC)
        else:
            connection.send_response(request, answer.head, body, STATIC)

    async def _serve(
        self, request: Request, path: bytes, coding: bytes, conditions: dict[bytes, bytes]
    ) -> None:
        """Answer a request that needs the disk."""
        file = -1
        try:
            found = await self._find(request, path, coding)
            if found is None:
                self._send(request, None, _refusal(404, b"not found\n"))
                return
            form, file = found
            connection = request.connection
            if connection is None:
                return
            answer = decide(request, form, conditions)
            if file < 0 or not answer.size or request.is_head:
                self._send(request, form, answer)
            else:
                transfer = Transfer(connection, request, file, answer.start, answer.size, self._transfers)
                await transfer.run(answer.head, STATIC)
        except OSError as error:
            self._server.log.error(
                'msg="static file cannot be read" file="%s" error="%s"', _shown(path), error
            )
            self._send(request, None, _refusal(500, b"internal server error\n"))
        except Exception:
            self._server.log.exception('msg="static file failed" file="%s"', _shown(path))
            if request.connection is not None:
                request.connection.transport.abort()
        finally:
            if file >= 0:
                os.close(file)

    async def _find(self, request: Request, path: bytes, coding: bytes) -> tuple[Form, int] | None:
        """Look a file up, compressing it if need be, and keep what was found. (form, open file or -1); None:
        there is none."""
        key = path, coding
        found = await self._in_thread(self._lookups, functools.partial(self._look_up, path, coding, True))
        if isinstance(found, ToCompress):
            if key not in self._compressing and len(self._compressing) < MAX_COMPRESSING:
                self._compressing.add(key)
                try:
                    await self._in_thread(
                        self._compressor, functools.partial(self._cache.fill, found, coding)
                    )
                finally:
                    self._compressing.discard(key)
            found = await self._in_thread(
                self._lookups, functools.partial(self._look_up, path, coding, False)
            )
        if found is None:
            return None
        assert not isinstance(found, ToCompress)
        form, file, final = found
        if final:
            self._keep(key, form)
        return form, file

    async def _in_thread(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Do work in a thread; if the task is cancelled meanwhile, a file it has opened is closed all the
        same."""
        future = threads.submit(work)
        try:
            return await asyncio.wrap_future(future, loop=self._server.loop)
        except asyncio.CancelledError:
            future.add_done_callback(_close_result)
            raise

    def _keep(self, key: tuple[bytes, bytes], form: Form) -> None:
        self._forget(key)
        self._kept[key] = form
        self._kept_size += len(form.content or b"")
        while len(self._kept) > MAX_KEPT or self._kept_size > MAX_KEPT_SIZE:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: tuple[bytes, bytes]) -> None:
        form = self._kept.pop(key, None)
        if form is not None:
            self._kept_size -= len(form.content or b"")

    # --- the disk: in a thread -----------------------------------------------------------------------------

    def _look_up(
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
        final = True
        try:
            status = os.fstat(original)
            sources: tuple[tuple[str, Signature], ...] = ((name, _signature(status)),)
            if coding:
                beside = name + compress.SUFFIXES[coding]
                copy = self._open(beside)
                if copy is not None:
                    if compress.fresh(os.fstat(copy), status):
                        sources += ((beside, _signature(os.fstat(copy))),)
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
            content = self._content(original) if os.fstat(original).st_size <= SMALL else None
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
            place = os.open(name, os.O_PATH | os.O_CLOEXEC)
        except (*MISSING, ValueError):
            return None
        except OSError as error:
            if error.errno in _NO_FILE:
                return None
            raise
        try:
            real = os.readlink(f"/proc/self/fd/{place}")
            beneath = (
                real.startswith(self._root.rstrip("/") + "/")
                and "/." not in real[len(self._root.rstrip("/")) :]
            )
            if not beneath or not stat.S_ISREG(os.fstat(place).st_mode):
                return None
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        except MISSING:
            return None
        finally:
            os.close(place)

    def _content(self, file: int) -> bytes:
        """The whole of a small file, read at a moment when nobody wrote to it."""
        for _ in range(CHANGES):
            before = os.fstat(file)
            content = os.pread(file, before.st_size + 1, 0)
            if len(content) == before.st_size and _signature(os.fstat(file)) == _signature(before):
                break
        return content

    def _form(
        self,
        name: str,
        coding: bytes,
        status: os.stat_result,
        size: int,
        sources: tuple[tuple[str, Signature], ...],
    ) -> Form:
        etag = b'"%x-%x%s"' % (status.st_mtime_ns, status.st_size, b"-" + coding if coding else b"")
        kind = self._types.get_type(name).encode()
        if kind.startswith(b"text/"):
            kind += b"; charset=utf-8"
        modified = int(status.st_mtime)
        common = [(b"ETag", [etag]), (b"Last-Modified", [formatdate(modified, usegmt=True).encode()])]
        if self._codings and compress.compressible(name):
            common.append((b"Vary", [b"Accept-Encoding"]))
        fields = [(b"Content-Type", [kind]), *common, (b"Accept-Ranges", [b"bytes"])]
        if coding:
            fields.append((b"Content-Encoding", [coding]))
        return Form(size, modified, etag, ResponseHead(200, fields), ResponseHead(304, common), sources)


class Cache:
    """The copies made at first use: static_cache_dir, or a directory of this user's in the temporary one."""

    def __init__(self, folder: str | None, server: Server) -> None:
        self._server = server
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
            repr((name, _signature(original))).encode(errors="surrogateescape"), digest_size=20
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
            if _signature(os.stat(wanted.name)) != _signature(status):
                return
            packed = compress.compress(data, coding, live=True) or b""
            compress.write(wanted.cached, packed, 0o600, status.st_mtime_ns)
            self._trim()
        except OSError as error:
            self._retry_at = monotonic() + CACHE_RETRY
            self._server.log.error(
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


# --- what a request gets: no I/O from here on --------------------------------------------------------------


def servable(path: bytes) -> bool:
    """Whether a path below the prefix may name a file: not empty, not a directory's, nothing hidden on the
    way."""
    return bool(path) and b"\0" not in path and not any(part[:1] in (b"", b".") for part in path.split(b"/"))


def _conditions(request: Request) -> dict[bytes, bytes]:
    """The fields that decide about the answer, by their names in lower case; repeated ones joined."""
    conditions: dict[bytes, bytes] = {}
    for name, value in request.fields:
        if len(name) in _LENGTHS:
            lower = name.lower()
            if lower in _CONDITIONS:
                value = value.strip(b" \t")
                conditions[lower] = conditions[lower] + b", " + value if lower in conditions else value
    return conditions


_CONDITIONS = frozenset(
    (
        b"accept-encoding",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
    )
)
_LENGTHS = frozenset(map(len, _CONDITIONS))


def decide(request: Request, form: Form, conditions: dict[bytes, bytes]) -> Answer:
    """Status and part for a request: RFC 9110, 13.2.2 and 14."""
    whole = Answer(form.whole, 0, form.size)
    if not conditions:
        return whole
    match = conditions.get(b"if-match")
    if match is not None:
        if match != b"*" and form.etag not in _strong_etags(match):
            return _refusal(412, b"the file is another one\n")
    else:
        since = _date(conditions.get(b"if-unmodified-since"))
        if since is not None and form.modified > since:
            return _refusal(412, b"the file has changed\n")
    none_match = conditions.get(b"if-none-match")
    if none_match is not None:
        if none_match == b"*" or form.etag in _etags(none_match):
            return Answer(form.unchanged)
    else:
        since = _date(conditions.get(b"if-modified-since"))
        if since is not None and form.modified <= since:
            return Answer(form.unchanged)
    asked = _range(conditions.get(b"range", b""))
    if asked is None or request.is_head:
        return whole  # several ranges too: a server may send the whole (RFC 9110, 14.2)
    if_range = conditions.get(b"if-range")
    if if_range is not None and if_range != form.etag and _date(if_range) != form.modified:
        return whole
    part = byte_range(asked[1], asked[2], form.size)
    if part is None:
        return whole
    start, size = part
    if not size:
        return _refusal(416, b"the file has no such part\n", (b"Content-Range", [b"bytes */%d" % form.size]))
    content_range = b"bytes %d-%d/%d" % (start, start + size - 1, form.size)
    return Answer(ResponseHead(206, [*form.whole.headers, (b"Content-Range", [content_range])]), start, size)


def byte_range(first: bytes, last: bytes, size: int) -> tuple[int, int] | None:
    """(start, number of bytes) of one range, 0 bytes where the file has none of it; None: it is no range."""
    if not first:
        if not last:
            return None
        length = min(int(last), size)
        return size - length, length
    start = int(first)
    end = int(last) if last else size - 1
    if last and end < start:
        return None
    return (start, max(min(end, size - 1) - start + 1, 0)) if start < size else (0, 0)


@functools.lru_cache(256)
def accepted_codings(field: bytes) -> frozenset[bytes]:
    """The content codings that an Accept-Encoding field asks for by name, those with q=0 left out."""
    codings = set()
    for part in field.split(b","):
        match = _coding(part)
        if match is not None and (match[2] is None or match[2].strip(b"0.")):
            codings.add(b"gzip" if match[1].lower() == b"x-gzip" else match[1].lower())
    return frozenset(codings)


@functools.lru_cache(256)
def _date(field: bytes | None) -> int | None:
    """Seconds since the epoch, None for what is no date."""
    if field is None:
        return None
    try:
        parsed = parsedate_tz(field.decode("ascii"))
        return None if parsed is None else int(mktime_tz(parsed))
    except (ValueError, OverflowError, UnicodeDecodeError):
        return None


def _refusal(status: int, sentence: bytes, *fields: tuple[bytes, list[bytes]]) -> Answer:
    kind = (b"Content-Type", [b"text/plain; charset=utf-8"])
    return Answer(ResponseHead(status, [kind, *fields]), sentence=sentence)


def _signature(status: os.stat_result) -> Signature:
    """What changes whenever a file does."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _shown(path: bytes) -> str:
    return ascii(path[:200])[2:-1]


def _close_result(future: object) -> None:
    """A lookup that nobody waits for any more."""
    result = future.result() if not future.cancelled() and future.exception() is None else None  # type: ignore[attr-defined]
    if isinstance(result, tuple) and result[1] >= 0:
        os.close(result[1])
