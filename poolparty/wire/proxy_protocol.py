"""The header that a proxy of the PROXY protocol, version 1 or 2, sends before the connection's own bytes.

From the protocol's specification (haproxy.org, proxy-protocol.txt). `read_header` is given the first bytes of
a connection, again with more of them for as long as it asks for more; it never takes a byte that is not the
header's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MAX_LINE = 107
"""Bytes of a header of version 1, its line end included (2.1)."""

MAX_HEADER = 16 + 1024
"""Bytes of a header of version 2 that are read: addresses, and what a proxy adds to them (TLVs)."""

_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|(TCP[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) "
    rb"(0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\r\n"
).fullmatch


class ProxyHeaderError(ValueError):
    """It begins as a header of the protocol and is none; the message says why."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """size: bytes of it, 0 if the connection begins without one. host and port: the client's; host is None if
    the header names none (LOCAL, UNKNOWN, a Unix socket): the client is the peer then."""

    size: int
    host: str | None = None
    port: int = 0


ABSENT = ProxyHeader(0)


def read_header(data: bytes, mode: str) -> ProxyHeader | None:
    """The header that `data` begins with; None: more is needed. mode: "v1", "v2" or "auto".
    ProxyHeaderError."""
    if mode != "v1" and (data.startswith(SIGNATURE) or SIGNATURE.startswith(data)):
        return _binary(data)
    if mode != "v2" and (data.startswith(b"PROXY ") or b"PROXY ".startswith(data)):
        return _line(data)
    return ABSENT


def _line(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\n", 0, MAX_LINE) + 1
    if not end:
        if len(data) >= MAX_LINE:
            raise ProxyHeaderError("the line is too long")
        return None
    match = _LINE(data[:end])
    if match is None:
        raise ProxyHeaderError("the line is malformed")
    family, source, target, source_port, target_port = match.groups()
    if family is None:
        return ProxyHeader(end)
    kind = IPv4Address if family == b"TCP4" else IPv6Address
    try:
        host, _ = str(kind(source.decode())), kind(target.decode())
    except AddressValueError:
        raise ProxyHeaderError("an address is malformed") from None
    if int(source_port) > 65535 or int(target_port) > 65535:
        raise ProxyHeaderError("there is no such port")
    return ProxyHeader(end, host, int(source_port))


def _binary(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    version, command, family = data[12] >> 4, data[12] & 15, data[13]
    length = int.from_bytes(data[14:16], "big")
    size = 16 + length
    if version != 2 or command > 1:
        raise ProxyHeaderError(f"version {version} and command {command} are unknown")
    if size > MAX_HEADER:
        raise ProxyHeaderError("the header is too long")
    if len(data) < size:
        return None
    if command == 0 or family in (0x00, 0x31):
        return ProxyHeader(size)  # the proxy's own connection, or one without addresses, or of a Unix socket
    if family == 0x11 and length >= 12:
        return ProxyHeader(size, str(IPv4Address(data[16:20])), int.from_bytes(data[24:26], "big"))
    if family == 0x21 and length >= 36:
        return ProxyHeader(size, str(IPv6Address(data[16:32])), int.from_bytes(data[48:50], "big"))
    raise ProxyHeaderError(f"family and protocol {family:#04x} with {length} bytes are none of TCP's")
