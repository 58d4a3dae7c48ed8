"""Static files: what lies below static_root is answered here, and no child is asked. Runs in the HTTP worker.

A target is compared in the form a child would see it in: decoded, `//` and `..` resolved. Names are looked up
when they are asked for, in a thread. What was found is kept, small files with their content, and is compared
with the disk (stat) before each use: a changed file is served changed.

whitenoise gives the media types and says what is worth compressing. Its responder is not used: of version
6.12 it was seen to answer `bytes=0-0` with 416, to give all encodings one strong ETag, to send gzip to
`gzip;q=0`, and to know no If-Range and no list in If-None-Match; and it looks everything up at the start, or
at each request on the calling thread."""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from poolparty import compress
from poolparty.stats.scoreboard import COUNTER_INDEX
from poolparty.wire.path import normal_path
from poolparty.worker.access import quoted
from poolparty.worker.file_sender import FileSender
from poolparty.worker.request import PLAIN_TARGET, absolute_uri, not_normal
from poolparty.worker.static_answer import (
    Form,
    accepted_codings,
    conditions_of,
    decide,
    refusal,
    servable,
)
from poolparty.worker.static_disk import PLAIN, Cache, Disk, ToCompress

if TYPE_CHECKING:
    from poolparty.settings import Options
    from poolparty.worker.request import Request
    from poolparty.worker.server import Server

MAX_KEPT = 1024
"""Files known at a time …"""

MAX_KEPT_SIZE = 32 * 1024 * 1024
"""… and bytes of their content."""

RECHECK = 10.0
"""Seconds after which a file is looked up anew, in a thread. Sooner it is compared by stat where it is used:
what the kernel was asked a moment ago it answers from memory."""

MAX_COMPRESSING = 64
"""Files that may wait to be compressed; meanwhile others are sent as they are."""

STATIC = COUNTER_INDEX["static"]


class StaticFiles:
    """The static files of one HTTP worker."""

    def __init__(self, server: Server, options: Options) -> None:
        assert options.static_root is not None
        self._server = server
        prefix = normal_path(options.static_url_prefix.encode(errors="surrogateescape"))
        self._prefix = prefix if prefix.endswith(b"/") else prefix + b"/"
        self._codings: tuple[bytes, ...] = ()
        if options.static_compress:
            brotli = compress.brotli_installed and not options.static_no_brotli
            self._codings = (b"br", b"gzip") if brotli else (b"gzip",)
        self._cache = Cache(options.static_cache_dir, server.log)
        self._disk = Disk(options.static_root, self._cache, options.static_compress)
        self._kept: OrderedDict[tuple[bytes, bytes], Form] = OrderedDict()
        self._kept_size = 0
        self._compressing: set[tuple[bytes, bytes]] = set()
        self._sender = FileSender(server, "static", STATIC, STATIC)
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
            self._sender.send(
                request,
                None,
                refusal(405, b"only GET and HEAD are answered here\n", (b"Allow", [b"GET, HEAD"])),
            )
            return True
        if not servable(path):
            self._sender.send(request, None, refusal(404, b"not found\n"))
            return True
        conditions = conditions_of(request)
        coding = self._coding(path, conditions)
        form = self._kept.get((path, coding))
        if form is not None:
            if monotonic() - form.checked < RECHECK and form.current():
                answer = decide(request, form, conditions)
                if form.content is not None or not answer.size or request.is_head:
                    self._kept.move_to_end((path, coding))
                    self._sender.send(request, form, answer)
                    return True
            else:
                self._forget((path, coding))
        self._sender.start(self._serve(request, path, coding, conditions))
        return True

    async def close(self) -> None:
        """End what is being sent."""
        await self._sender.close()
        self._compressor.shutdown(wait=False, cancel_futures=True)

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

    async def _serve(
        self, request: Request, path: bytes, coding: bytes, conditions: dict[bytes, bytes]
    ) -> None:
        """Answer a request that needs the disk."""
        file = -1
        try:
            found = await self._find(request, path, coding)
            if found is None:
                self._sender.send(request, None, refusal(404, b"not found\n"))
                return
            form, file = found
            await self._sender.send_file(request, form, file, decide(request, form, conditions))
        except OSError as error:
            self._server.log.error(
                'msg="static file cannot be read" file="%s" error="%s"', quoted(path), error
            )
            self._sender.send(request, None, refusal(500, b"internal server error\n"))
        except Exception:
            self._server.log.exception('msg="static file failed" file="%s"', quoted(path))
            if request.connection is not None:
                request.connection.transport.abort()
        finally:
            if file >= 0:
                os.close(file)

    async def _find(self, request: Request, path: bytes, coding: bytes) -> tuple[Form, int] | None:
        """Look a file up, compressing it if need be, and keep what was found. (form, open file or -1); None:
        there is none."""
        key = path, coding
        found = await self._sender.in_thread(
            self._sender.lookups, functools.partial(self._disk.look_up, path, coding, True)
        )
        if isinstance(found, ToCompress):
            if key not in self._compressing and len(self._compressing) < MAX_COMPRESSING:
                self._compressing.add(key)
                try:
                    await self._sender.in_thread(
                        self._compressor, functools.partial(self._cache.fill, found, coding)
                    )
                finally:
                    self._compressing.discard(key)
            found = await self._sender.in_thread(
                self._sender.lookups, functools.partial(self._disk.look_up, path, coding, False)
            )
        if found is None:
            return None
        assert not isinstance(found, ToCompress)
        form, file, final = found
        if final:
            self._keep(key, form)
        return form, file

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
