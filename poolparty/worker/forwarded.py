"""Which proxies are believed, and whose request a trusted one passes on. Imports no I/O.

The rule of gunicorn's forwarded_allow_ips and proxy_allow_ips: addresses and networks, `*` for everybody; a
peer without an address (a Unix socket) is always trusted. X-Forwarded-For is read from its right end, where
the nearest proxy wrote: the first address that is no trusted proxy's is the client's, and what stands before
it is the client's own invention.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from poolparty.wire.bare import encode_string

NO_PEER = "@"
"""The address of a client at a Unix socket, as a child sees it."""

MAX_REMEMBERED = 1024
"""Values of X-Forwarded-For whose client is remembered."""

_entry = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?|([0-9A-Fa-f:]*:[0-9A-Fa-f:.]*)"
).fullmatch


class Proxies:
    """The peers that are believed."""

    def __init__(self, allowed: Iterable[str]) -> None:
        """allowed: addresses and networks, or `*`."""
        allowed = list(allowed)
        self._all = "*" in allowed
        self._networks = [ipaddress.ip_network(network) for network in allowed if network != "*"]
        self.client = lru_cache(MAX_REMEMBERED)(self._client)

    def trusts(self, host: str | None) -> bool:
        """Whether a peer is one of them; None is a peer without an address."""
        if host is None or self._all:
            return True
        return bool(self._networks) and self._holds(_parsed(host.partition("%")[0]))

    def _holds(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)

    def _client(self, forwarded_for: bytes) -> bytes | None:
        """The client that a trusted peer names, `host:port` as a BARE string; None: it names none.

        The port is 0 unless the proxy tells it. Behind several trusted proxies it is the last one that is not
        trusted, or the first of all; what is no address ends the search.
        """
        client: bytes | None = None
        for entry in reversed(forwarded_for.decode("latin-1").split(",")):
            match = _entry(entry.strip(" \t"))
            address = None if match is None else _parsed(match[1] or match[2] or match[4])
            if match is None or address is None or int(match[3] or 0) > 65535:
                break
            client = encode_string(host_and_port(str(address), int(match[3] or 0)).encode())
            if not self._all and not self._holds(address):
                break
        return client


def host_and_port(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address; one of IPv4 that comes through a socket of IPv6 is of IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
