"""Which pool a request is for: by its host and the longest prefix of its path. No I/O.

A route is `/prefix`, `host/` or `host/prefix`. A prefix ends where a segment of the path does: `/api` is for
`/api`, `/api?x` and what is below `/api/`, not for `/apix`. Routes of the request's own host come before
those without a host. Paths are compared in the form that a child sees (wire/path.py), so that no other way of
writing one leads elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from poolparty.wire.path import normal_path

MAX_TABLES = 1024
"""Hosts whose routes are remembered; a client that sends ever new ones gains nothing by it."""

MAX_HOST = 256
"""Bytes of the longest host whose routes are remembered."""

T = TypeVar("T")

Table = tuple[tuple[bytes, T], ...]
"""Prefixes and what they lead to, in the order in which they are tried."""

_HOST = re.compile(r"[a-z0-9._-]*|\[[0-9a-f:.]+\]")
_PREFIX = re.compile(r"/[^?#\x00-\x20\x7f]*")


@dataclass(frozen=True, slots=True)
class Route:
    """host: in lower case and without a port, empty for any. prefix: without the slash at its end, empty for
    every path."""

    host: bytes
    prefix: bytes

    def __str__(self) -> str:
        return (self.host + (self.prefix or b"/")).decode()


def parse_route(text: object) -> Route:
    """From `/prefix`, `host/` or `host/prefix`. ValueError: the rest of a sentence that says what is
    wrong."""
    host, slash, rest = text.partition("/") if isinstance(text, str) else ("", "", "")
    host = host.lower().rstrip(".")
    if not slash or not _HOST.fullmatch(host) or not _PREFIX.fullmatch(slash + rest):
        raise ValueError(
            f"{text!r} is no route; give a path as /api, or a host and a slash, as api.example.com/"
        )
    path = normal_path((slash + rest).encode(errors="surrogateescape"))
    return Route(host.encode(), path.rstrip(b"/"))


class Router(Generic[T]):
    """Routes, each with what it leads to, and what all other requests go to."""

    def __init__(self, routes: Iterable[tuple[Route, T]], default: T) -> None:
        self.default = default
        self._of_host: dict[bytes, list[tuple[bytes, T]]] = {b"": []}
        for route, target in routes:
            self._of_host.setdefault(route.host, []).append((route.prefix, target))
        for routes_of_host in self._of_host.values():
            routes_of_host.sort(key=lambda pair: len(pair[0]), reverse=True)
        self._tables: dict[bytes, Table[T]] = {}

    def table(self, host: bytes) -> Table[T]:
        """What `find` looks in for requests to a host, as the Host field names it, with its port or
        without."""
        return self._tables.get(host) or self._make_table(host)

    def _make_table(self, host: bytes) -> Table[T]:
        bare = host.lower()
        if not bare.endswith(b"]"):  # an IPv6 address without a port
            bare = re.sub(rb":[0-9]*\Z", b"", bare)
        bare = bare.rstrip(b".")
        own = self._of_host.get(bare, []) if bare else []
        # What stands last is for everything: so a table is never empty, nor is the search without a find.
        table = (*own, *self._of_host[b""], (b"", self.default))
        if len(self._tables) < MAX_TABLES and len(host) <= MAX_HOST:
            self._tables[host] = table
        return table


def find(table: Table[T], path: bytes) -> T:
    """Where a path leads, in its normal form; its query may follow."""
    for prefix, target in table:
        if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in _ENDS:
            return target
    raise LookupError("a table ends with what is for every path")


_ENDS = (b"", b"/", b"?")
