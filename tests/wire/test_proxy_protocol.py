"""The PROXY header's two forms: each fed byte by byte and with trailing bytes, and what is none of them."""

from __future__ import annotations

import ipaddress

import pytest

from poolparty.wire.proxy_protocol import (
    ABSENT,
    MAX_HEADER,
    MAX_LINE,
    SIGNATURE,
    ProxyHeader,
    ProxyHeaderError,
    read_header,
)


def binary(source: str, port: int, command: int = 1, family: int | None = None, more: bytes = b"") -> bytes:
    address = ipaddress.ip_address(source)
    if family is None:
        family = 0x11 if address.version == 4 else 0x21
    target = bytes(len(address.packed))
    body = address.packed + target + port.to_bytes(2, "big") + b"\x01\xbb" + more
    return SIGNATURE + bytes([0x20 | command, family]) + len(body).to_bytes(2, "big") + body


HEADERS = {
    "v1 IPv4": (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", "192.0.2.1", 56324),
    "v1 IPv6": (b"PROXY TCP6 2001:DB8::1 2001:db8::2 1 65535\r\n", "2001:db8::1", 1),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None, 0),
    "v1 unknown with words": (b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n", None, 0),
    "v2 IPv4": (binary("192.0.2.1", 12345), "192.0.2.1", 12345),
    "v2 IPv6": (binary("2001:db8::1", 1), "2001:db8::1", 1),
    "v2 with more behind": (binary("192.0.2.1", 7, more=b"\x04\0\1x"), "192.0.2.1", 7),
    "v2 local": (binary("192.0.2.1", 7, command=0), None, 0),
    "v2 local and empty": (SIGNATURE + b"\x20\0\0\0", None, 0),
    "v2 without addresses": (SIGNATURE + b"\x21\0\0\0", None, 0),
    "v2 Unix": (SIGNATURE + b"\x21\x31\0\xd8" + bytes(216), None, 0),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("behind", [b"", b"GET / HTTP/1.1\r\n", b"PROXY UNKNOWN\r\n", SIGNATURE])
def test_a_header_is_read_once_it_is_whole_and_nothing_behind_it(name: str, behind: bytes) -> None:
    data, host, port = HEADERS[name]
    for mode in ("auto", name[:2]):
        for size in range(1, len(data)):
            assert read_header(data[:size], mode) is None
        assert read_header(data + behind, mode) == ProxyHeader(len(data), host, port)


@pytest.mark.parametrize("name", HEADERS)
def test_the_other_version_is_no_header(name: str) -> None:
    assert read_header(HEADERS[name][0], "v2" if name.startswith("v1") else "v1") == ABSENT


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"PROPFIND / HTTP/1.1", b"PROXYX", b"\x16\x03\x01", b"\r\nGET", b"proxy "]
)
def test_a_connection_without_a_header_is_told_from_its_first_bytes(data: bytes) -> None:
    assert read_header(data, "auto") == ABSENT


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65iii 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 nowhere 1 2\r\n",
        b"PROXY TCP4 2001:db8::1 192.0.2.2 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 2001:db8::1 1 2\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4 192.0.2.1 192.16...\r\n",
        b"PROXY " + b"x" * MAX_LINE,
    ],
)
def test_a_malformed_line_is_refused(line: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        read_header(line, "auto")


@pytest.mark.parametrize(
    "rest",
    [
        b"\x11\x11\0\x0c" + bytes(12),
        b"\x22\x11\0\x0c" + bytes(12),
        b"\x21\x12\0\x0c" + bytes(12),
        b"\x21\x22\0\x24" + bytes(36),
        b"\x21\x11\0\x0b" + bytes(11),
        b"\x21\x21\0\x23" + bytes(35),
        b"\x21\x41\0\x0c" + bytes(12),
        b"\x21\x11" + (MAX_HEADER - 15).to_bytes(2, "big"),
    ],
)
def test_a_binary_header_that_names_no_tcp_client_is_refused(rest: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        read_header(SIGNATURE + rest, "auto")
