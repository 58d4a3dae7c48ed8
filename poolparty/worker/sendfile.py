"""Files sent for a child whose answer names one below sendfile_root, by X-Sendfile or X-Accel-Redirect. Runs
in the HTTP worker.

The child is free as soon as it has answered. What it says of the file (type, ETag, Last-Modified) counts
before what the disk says; parts and conditions are ours. Where sendfile_root is not set nothing here is
loaded, and both fields pass through."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from poolparty.errors import AnswerError
from poolparty.stats.scoreboard import COUNTER_INDEX
from poolparty.wire.frames import ResponseHead
from poolparty.worker.access import quoted
from poolparty.worker.beneath import (
    OUTSIDE,
    SMALL,
    UnfitError,
    entity_tag,
    http_date,
    is_beneath,
    media_type,
    open_beneath,
    read_small,
)
from poolparty.worker.file_sender import FileSender
from poolparty.worker.response import render
from poolparty.worker.static_answer import Form, conditions_of, date_of, decide, refusal

if TYPE_CHECKING:
    from poolparty.worker.request import Request
    from poolparty.worker.server import Server

Fields = list[tuple[bytes, list[bytes]]]

SENDFILE = b"x-sendfile"
ACCEL_REDIRECT = b"x-accel-redirect"
NAMING = frozenset((SENDFILE, ACCEL_REDIRECT))
LENGTHS = frozenset(map(len, NAMING))

LAST_DATE = 253402300799
"""The last second that HTTP can write, of the year 9999."""

OURS = frozenset((b"content-length", b"content-range", b"accept-ranges"))
"""Fields about the body's bytes, which are not the child's."""

OF_CONTENT = frozenset((b"content-type", b"content-encoding", b"content-language"))
"""What a 304 leaves out (RFC 9110, 15.4.5)."""

OF_SUCCESS = OF_CONTENT | {b"cache-control", b"content-disposition", b"content-location", b"expires"}
"""What is true of the file, and not of the sentence that stands there in its place."""

PARTS = frozenset((200, 206))
"""Statuses of a child at which conditions and ranges count. Of a 206 the part is ours to choose: Werkzeug's
send_file says it, and leaves the file to the server nevertheless."""

FILES_SENT = COUNTER_INDEX["files_sent"]

_etag = re.compile(rb'(W/)?("[\x21\x23-\x7e\x80-\xff]*")').fullmatch


@dataclass(frozen=True, slots=True)
class Order:
    """What a child's answer says about a file to be sent: which (`field`, the name it was said by; `path`,
    absolute or relative to the root), and of what else it says all but that."""

    field: bytes
    path: bytes
    status: int
    kept: Fields
    etag: tuple[bool, bytes] | None  # whether it is weak; with its quotes
    modified: int | None  # seconds since the epoch

    @classmethod
    def of(cls, head: ResponseHead) -> Order | None:
        """None: it is an answer as any other. AnswerError: it names more than one file."""
        found: list[tuple[bytes, bytes]] = []
        kept: Fields = []
        validators: dict[bytes, bytes] = {}
        for name, values in head.headers:
            lower = name.lower()
            if lower in NAMING:
                found += ((name, value.strip(b" \t")) for value in values)
            elif lower in (b"etag", b"last-modified"):
                validators |= ((lower, value.strip(b" \t")) for value in values)
            elif lower not in OURS:
                kept.append((name, values))
        if not found:
            return None
        if len(found) > 1:
            raise AnswerError(f"it names more than one file: {b', '.join(value for _, value in found)!r}")
        ((field, value),) = found
        # X-Sendfile is a path as it is, X-Accel-Redirect a URI, as nginx has it.
        path = value if field.lower() == SENDFILE else unquote_to_bytes(value.partition(b"?")[0]).lstrip(b"/")
        tag = _etag(validators.get(b"etag", b""))
        modified = date_of(validators.get(b"last-modified"))
        return cls(
            field,
            path,
            200 if head.status in PARTS else head.status,
            kept,
            (tag[1] is not None, tag[2]) if tag is not None else None,
            modified if modified is not None and 0 <= modified <= LAST_DATE else None,
        )

    def but(self, left_out: frozenset[bytes]) -> Fields:
        """The fields that are kept, without some."""
        return [(name, values) for name, values in self.kept if name.lower() not in left_out]

    def form(self, name: str, status: os.stat_result, content: bytes | None) -> Form:
        """The file, ready to be sent: what the child says of it, and of the rest what the disk says."""
        size = status.st_size if content is None else len(content)
        weak, etag = self.etag or (False, entity_tag(status))
        modified = int(status.st_mtime) if self.modified is None else self.modified
        validators: Fields = [
            (b"ETag", [b"W/" + etag if weak else etag]),
            (b"Last-Modified", [http_date(modified)]),
        ]
        fields = [*self.kept, *validators, (b"Content-Length", [b"%d" % size])]
        if not any(name.lower() == b"content-type" and values for name, values in self.kept):
            fields.append((b"Content-Type", [media_type(name)]))
        if self.status == 200:
            fields.append((b"Accept-Ranges", [b"bytes"]))
        unchanged = ResponseHead(304, [*self.but(OF_CONTENT), *validators])
        whole = ResponseHead(self.status, fields)
        return Form(size, modified, etag, whole, unchanged, (), content, weak)


class Sendfile:
    """The files that one HTTP worker sends for children."""

    def __init__(self, server: Server, root: str) -> None:
        self._server = server
        self._root = os.path.realpath(root)
        self._below = self._root.rstrip("/") + "/"
        self.sender = FileSender(server, "sendfile", COUNTER_INDEX["answered"], COUNTER_INDEX["failed"])

    def takes(self, request: Request, head: ResponseHead) -> bool:
        """Send the file that a child's answer names, in place of its body. False: it names none."""
        if not any(len(name) in LENGTHS and name.lower() in NAMING for name, _ in head.headers):
            return False
        connection = request.connection
        assert connection is not None
        try:
            order = Order.of(head)
            if order is None:
                return False
            fields = [(name, values) for name, values in head.headers if name.lower() not in NAMING]
            bodiless = render(plain := ResponseHead(head.status, fields)).bodiless
        except AnswerError as error:
            connection.unusable(request, error)
            return True
        if bodiless:
            connection.send_response(request, plain, b"")
        else:
            request.answered = monotonic()
            self.sender.start(self._serve(request, order))
        return True

    async def _serve(self, request: Request, order: Order) -> None:
        file = -1
        try:
            look_up = functools.partial(self.look_up, order)
            found = await self.sender.in_thread(self.sender.lookups, look_up)
            if request.connection is None:
                return
            if found is None:
                self._server.log.warning(
                    'msg="the file that is to be sent is missing" field="%s" file="%s" method=%s target="%s"',
                    *map(quoted, (order.field, order.path, request.method, request.target)),
                )
                answer = refusal(404, b"not found\n", *order.but(OF_SUCCESS))
                self.sender.send(request, None, answer)
                return
            form, file = found
            conditional = order.status == 200 and request.retryable
            answer = decide(request, form, conditions_of(request) if conditional else {})
            if answer.sentence is not None:
                answer.head.headers += order.but(OF_SUCCESS)
            elif answer.head.status != 304:
                request.dispatcher.count(FILES_SENT)
            await self.sender.send_file(request, form, file, answer)
        except (UnfitError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else f"{error}"
            if request.connection is not None:
                path = order.path.decode(errors="replace")
                fault = f"the file that {order.field.decode()} names cannot be sent ({why}): {path}"
                request.connection.unusable(request, AnswerError(fault))
        except Exception:
            self._server.log.exception('msg="sending a file failed" file="%s"', quoted(order.path))
            if request.connection is not None:
                request.connection.transport.abort()
        finally:
            if file >= 0:
                os.close(file)

    def look_up(self, order: Order) -> tuple[Form, int] | None:
        """In a thread: (form, open file or -1 with its content in the form); None: there is no such file
        below the root. UnfitError, OSError: it cannot be sent."""
        name = os.path.join(self._root, os.fsdecode(order.path))
        try:
            file = open_beneath(name, self._below, hidden=True)
        except (FileNotFoundError, NotADirectoryError):
            if is_beneath(os.path.realpath(name), self._below):
                return None
            raise UnfitError(OUTSIDE) from None  # whether it is there is nobody's business
        try:
            status = os.fstat(file)
            if status.st_size > SMALL:
                return order.form(name, status, None), file
            form = order.form(name, status, read_small(file))
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        return form, -1
