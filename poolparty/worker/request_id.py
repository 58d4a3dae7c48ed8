"""X-Request-Id: each request gets one that has none to be trusted. Runs in HTTP workers, with request_ids."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from poolparty.wire.bare import encode_string

if TYPE_CHECKING:
    from poolparty.worker.request import Request

FIELD = b"X-Request-Id"
NAME = encode_string(FIELD)
LOWER = FIELD.lower()

SIZE = 20
"""Bytes of an id of ours: 12 hexadecimal digits for this HTTP worker, 8 for the request."""

_acceptable = re.compile(rb"[A-Za-z0-9_.:/+=@-]{1,128}").fullmatch


def id_of(request: Request) -> bytes:
    """The id a request came with or was given; empty if it has none."""
    for name, value in request.fields:
        if len(name) == len(LOWER) and name.lower() == LOWER:
            return value
    return b""


class RequestIds:
    """Makes ids that are unique among all HTTP workers that run at a time, and over their restarts."""

    def __init__(self) -> None:
        self._prefix = os.urandom(6).hex().encode()
        self._last = int.from_bytes(os.urandom(4), "big")

    def next(self) -> bytes:
        """A new id, of SIZE bytes."""
        self._last = last = (self._last + 1) & 0xFFFFFFFF
        return b"%s%08x" % (self._prefix, last)

    def settle(self, request: Request, headers: dict[bytes, bytes], trusted: bool) -> bool:
        """Keep the id that a trusted proxy has sent, or give a new one, as the last of the headers: whether
        it is new."""
        given = headers.get(NAME)
        if given is not None:
            if trusted and _acceptable(given):
                return False
            del headers[NAME]
            request.fields = [field for field in request.fields if field[0].lower() != LOWER]
        headers[NAME] = made = self.next()
        request.fields.append((FIELD, made))
        return True
