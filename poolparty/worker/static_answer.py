"""What a request for a static file gets: status, part and fields, by what is known of the file. Imports no
I/O but stat.

Preconditions and ranges are RFC 9110's, 13.2.2 and 14. Several ranges in one request are answered with the
whole file."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from time import monotonic
from typing import TYPE_CHECKING

from poolparty.wire.frames import ResponseHead

if TYPE_CHECKING:
    from poolparty.worker.request import Request

Signature = tuple[int, int, int, int, int]

_range = re.compile(rb"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE).fullmatch
_coding = re.compile(
    rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t]*q=([0-9.]{1,5})[ \t]*)?", re.IGNORECASE
).fullmatch
_etags = re.compile(rb'"[^"]*"').findall
_strong_etags = re.compile(rb'(?<!W/)"[^"]*"').findall


def signature(status: os.stat_result) -> Signature:
    """What changes whenever a file does."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(slots=True)
class Form:
    """A file in one coding, ready to be sent.

    sources: the files it depends on, each with what stat said of it. content: None if it is read as it is
    sent. weak: its ETag is, and so is good for If-None-Match alone (RFC 9110, 8.8.3.2)."""

    size: int
    modified: int  # seconds since the epoch, the original's
    etag: bytes
    whole: ResponseHead
    unchanged: ResponseHead
    sources: tuple[tuple[str, Signature], ...]
    content: bytes | None = None
    weak: bool = False
    checked: float = field(default_factory=monotonic)

    def current(self) -> bool:
        """Whether the disk still says the same."""
        try:
            return all(signature(os.stat(path)) == known for path, known in self.sources)
        except OSError:
            return False


@dataclass(slots=True)
class Answer:
    """What a request gets: a head, and `size` bytes of the file from `start` on, or a sentence."""

    head: ResponseHead
    start: int = 0
    size: int = 0
    sentence: bytes | None = None


def servable(path: bytes) -> bool:
    """Whether a path below the prefix may name a file: not empty, not a directory's, nothing hidden on the
    way."""
    return bool(path) and b"\0" not in path and not any(part[:1] in (b"", b".") for part in path.split(b"/"))


def conditions_of(request: Request) -> dict[bytes, bytes]:
    """The fields that decide about the answer, by their names in lower case; repeated ones joined."""
    conditions: dict[bytes, bytes] = {}
    for name, value in request.fields:
        if len(name) in _LENGTHS:
            lower = name.lower()
            if lower in _DECIDING:
                value = value.strip(b" \t")
                conditions[lower] = conditions[lower] + b", " + value if lower in conditions else value
    return conditions


_DECIDING = frozenset(
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
_LENGTHS = frozenset(map(len, _DECIDING))


def decide(request: Request, form: Form, conditions: dict[bytes, bytes]) -> Answer:
    """Status and part for a request: RFC 9110, 13.2.2 and 14."""
    whole = Answer(form.whole, 0, form.size)
    if not conditions:
        return whole
    match = conditions.get(b"if-match")
    if match is not None:
        if match != b"*" and (form.weak or form.etag not in _strong_etags(match)):
            return refusal(412, b"the file is another one\n")
    else:
        since = date_of(conditions.get(b"if-unmodified-since"))
        if since is not None and form.modified > since:
            return refusal(412, b"the file has changed\n")
    none_match = conditions.get(b"if-none-match")
    if none_match is not None:
        if none_match == b"*" or form.etag in _etags(none_match):
            return Answer(form.unchanged)
    else:
        since = date_of(conditions.get(b"if-modified-since"))
        if since is not None and form.modified <= since:
            return Answer(form.unchanged)
    asked = _range(conditions.get(b"range", b""))
    if asked is None or request.is_head:
        return whole  # several ranges too: a server may send the whole (RFC 9110, 14.2)
    if_range = conditions.get(b"if-range")
    if if_range is not None and (form.weak or if_range != form.etag) and date_of(if_range) != form.modified:
        return whole
    part = byte_range(asked[1], asked[2], form.size)
    if part is None:
        return whole
    start, size = part
    if not size:
        return refusal(416, b"the file has no such part\n", (b"Content-Range", [b"bytes */%d" % form.size]))
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
def date_of(field: bytes | None) -> int | None:
    """A date as HTTP writes it in seconds since the epoch, None for what is none."""
    if field is None:
        return None
    try:
        parsed = parsedate_tz(field.decode("ascii"))
        return None if parsed is None else int(mktime_tz(parsed))
    except (ValueError, OverflowError, UnicodeDecodeError):
        return None


def refusal(status: int, sentence: bytes, *fields: tuple[bytes, list[bytes]]) -> Answer:
    kind = (b"Content-Type", [b"text/plain; charset=utf-8"])
    return Answer(ResponseHead(status, [kind, *fields]), sentence=sentence)
