"""The access log, by gunicorn's logger and its access_log_format: we only say what its atoms are made of."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolparty.wire.frames import ResponseHead
    from poolparty.worker.connection import Connection
    from poolparty.worker.request import Request


class _Response:
    """What gunicorn's logger reads of a response."""

    def __init__(self, status: int, sent: int, headers: list[tuple[str, str]]) -> None:
        self.status = str(status)
        self.sent = sent
        self.headers = headers


class _Request:
    """What gunicorn's logger reads of a request."""

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self.headers = headers


class AccessLog:
    """Writes a line for each request that was answered or given up. Every text a client sent is escaped."""

    def __init__(self, log: Any, cfg: Any) -> None:
        self._log = log
        self.enabled = bool(log.access_log_enabled) or cfg.statsd_host is not None

    def write(
        self,
        connection: Connection,
        request: Request | None,
        status: int,
        sent: int,
        head: ResponseHead | None,
    ) -> None:
        """Write one line. `sent` is in bytes, the head included; request is None for one that could not be
        read."""
        remote = connection.address
        environ = {
            "REMOTE_ADDR": remote.rpartition(":")[0].strip("[]") or "-",
            "REQUEST_METHOD": "-",
            "RAW_URI": "-",
            "SERVER_PROTOCOL": "-",
        }
        headers: list[tuple[str, str]] = []
        seconds = 0.0
        if request is not None:
            target = _escape(request.target)
            path, _, query = target.partition("?")
            environ |= {
                "REQUEST_METHOD": _escape(request.method),
                "RAW_URI": target,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "SERVER_PROTOCOL": f"HTTP/{request.version}",
            }
            headers = [(_escape(name), _escape(value)) for name, value in request.fields]
            for name, value in headers:
                environ["HTTP_" + name.upper().replace("-", "_")] = value
            seconds = monotonic() - request.accepted
        answered = (
            [] if head is None else [(_escape(n), _escape(v)) for n, values in head.headers for v in values]
        )
        self._log.access(
            _Response(status, sent, answered), _Request(headers), environ, timedelta(seconds=seconds)
        )


def _escape(value: bytes) -> str:
    """Text of a client for a log line: ASCII, controls and everything beyond as \\x escapes."""
    text = value.decode("ascii", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
