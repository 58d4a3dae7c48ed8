"""The access log, by gunicorn's logger and its access_log_format: we only say what its atoms are made of.

Also how a text of a client's or a child's looks in any other line of the log. Runs in HTTP workers.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime, timedelta
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

    def __init__(self, log: Any, cfg: Any, as_json: bool = False) -> None:
        """as_json: an object a line in place of access_log_format."""
        self._log = log
        self._as_json = as_json
        # gunicorn's own statsd logger counts with each line; it is there only if logger_class names it.
        self._counts = cfg.statsd_host is not None and hasattr(log, "increment")
        self.enabled = bool(log.access_log_enabled) or self._counts

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
        remote = connection.address if request is None else decode_address(request.remote)
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
                "poolparty.pool": request.dispatcher.name,
            }
            # The parser leaves a tab behind a value, which is no part of it (RFC 9110, 5.5).
            headers = [(_escape(name), _escape(value.strip(b" \t"))) for name, value in request.fields]
            for name, value in headers:
                environ["HTTP_" + name.upper().replace("-", "_")] = value
            if "HTTP_AUTHORIZATION" in environ:
                environ["HTTP_AUTHORIZATION"] = _safe_credentials(environ["HTTP_AUTHORIZATION"])
            now = monotonic()
            seconds = now - request.accepted
            if request.worker_pid:
                # For an access_log_format: %({poolparty.queue_wait}e)s and its like.
                environ |= {
                    "poolparty.worker_pid": str(request.worker_pid),
                    "poolparty.queue_wait": f"{request.started - request.accepted:.6f}",
                    "poolparty.service_time": f"{getattr(request, 'answered', now) - request.started:.6f}",
                }
        answered = (
            [] if head is None else [(_escape(n), _escape(v)) for n, values in head.headers for v in values]
        )
        if self._as_json:
            self._log.access_log.info("%s", _as_json(environ, headers, status, sent, seconds))
            if self._counts:  # what gunicorn's statsd logger does beside its line
                self._log.timer("gunicorn.request.duration", 1000 * seconds)
                self._log.increment("gunicorn.requests", 1)
                self._log.increment(f"gunicorn.request.status.{status}", 1)
            return
        self._log.access(
            _Response(status, sent, answered), _Request(headers), environ, timedelta(seconds=seconds)
        )


def _as_json(
    environ: dict[str, str], headers: list[tuple[str, str]], status: int, sent: int, seconds: float
) -> str:
    """One object: times in seconds, sizes in bytes; None is what there is not."""
    fields = {name.lower(): value for name, value in headers}
    pid, wait, service = (
        environ.get(f"poolparty.{name}") for name in ("worker_pid", "queue_wait", "service_time")
    )
    return json.dumps(
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "remote_address": environ["REMOTE_ADDR"],
            "method": environ["REQUEST_METHOD"],
            "target": environ["RAW_URI"],
            "protocol": environ["SERVER_PROTOCOL"],
            "host": fields.get("host"),
            "status": status,
            "bytes": sent,
            "seconds": round(seconds, 6),
            "queue_wait": None if wait is None else float(wait),
            "service_time": None if service is None else float(service),
            "pool": environ.get("poolparty.pool"),
            "worker_pid": None if pid is None else int(pid),
            "request_id": fields.get("x-request-id"),
            "traceparent": fields.get("traceparent"),
            "referer": fields.get("referer"),
            "user_agent": fields.get("user-agent"),
        }
    )


def quoted(value: bytes, most: int = 200) -> str:
    """The same, to stand between quotes in a line of ours: at most so many bytes of it, and no quote."""
    return _escape(value[:most]).replace('"', "\\x22")


def _safe_credentials(field: str) -> str:
    """Basic credentials in which the user, whom gunicorn's logger takes out of them, is escaped."""
    scheme, _, encoded = field.partition(" ")
    if not scheme.lower().startswith("basic"):
        return field
    try:
        user = base64.b64decode(encoded).split(b":", 1)[0]
    except (binascii.Error, ValueError):
        return scheme
    return f"{scheme} {base64.b64encode(_escape(user).encode()).decode()}"


def decode_address(remote: bytes) -> str:
    """The text of a BARE string that is shorter than 128 bytes, as every address is."""
    return remote[1:].decode()


def _escape(value: bytes) -> str:
    """Text of a client for a log line: ASCII; backslashes, controls and everything beyond as \\x escapes.

    A backslash would take the closing quote with it where it is the last character.
    """
    text = value.replace(b"\\", b"\\x5c").decode("ascii", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
