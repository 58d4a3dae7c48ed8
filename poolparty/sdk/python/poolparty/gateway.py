"""What WSGI, ASGI and CGI have in common: whom a request was meant for, whence it came, its fields."""

from __future__ import annotations

MAX_CACHED = 512  # a client can ask for any host


def server_of(uri: str) -> tuple[str, str, str]:
    """(scheme, host, port) of an absolute uri; an IPv6 host keeps its brackets."""
    slash = uri.find("/", 8)  # behind http:// or https://
    authority = uri[:slash] if slash > 0 else uri.partition("?")[0]
    server = _servers.get(authority)
    if server is None:
        scheme, _, netloc = authority.partition("://")
        host, colon, port = netloc.rpartition(":")
        if not colon or "]" in port:
            host, port = netloc, ""
        server = (scheme, host or "localhost", port or ("443" if scheme == "https" else "80"))
        if len(_servers) >= MAX_CACHED:
            _servers.clear()
        _servers[authority] = server
    return server


_servers: dict[str, tuple[str, str, str]] = {}


def client_of(remote_address: str) -> tuple[str, str]:
    """(host, port) of `host:port`, an IPv6 host without brackets; ("", "") for a Unix socket's client."""
    host, _, port = remote_address.rpartition(":")
    if host[:1] == "[":
        host = host[1:-1]
    return (host, port) if host else ("", "")


def add_field(fields: dict[str, str | list[str]], name: str, value: str) -> None:
    """Put a header where a Response has it: a name once, the values of one that is repeated in a list."""
    before = fields.get(name)
    if before is None:
        fields[name] = value
    elif isinstance(before, list):
        before.append(value)
    else:
        fields[name] = [before, value]


def text_of(value: bytes) -> str:
    """A header's bytes as text: UTF-8, or else Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
