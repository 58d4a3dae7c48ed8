"""Where the pool's figures go if `statsd_host` names a statsd: by datagrams, in place of gunicorn's own.

Runs in the arbiter's pool thread and under its lock, so nothing here waits: a name is looked up in a thread
of its own, and a datagram that the kernel does not take at once is not sent. What was counted while nothing
could be sent goes with the next round.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from poolparty.errors import ConfigError
from poolparty.settings import complaint, parse_socket_path
from poolparty.stats.statsd import Naming, datagrams, lines

INTERVAL = 2.0
"""Seconds between two rounds: a fraction of the ten in which most receivers sum up, so that it matters little
whether a round falls into the one or the other of theirs."""

LOOKUP_INTERVAL = 60.0
"""Seconds after which a name is looked up again: what it stands for may have moved."""

LOOKUP_POLL = 0.1
"""Seconds between two looks whether it has been found for the first time."""

LOOKUP_RETRY = 5.0
"""Seconds after which one that was not found is looked up again."""

MAX_WORDS = 1000
"""Bytes that statsd_prefix and dogstatsd_tags may have together: a line has to fit in a datagram."""


class Log(Protocol):
    """What is used of the relay's log, or of a logger."""

    def info(self, message: str, *args: object) -> None: ...
    def warning(self, message: str, *args: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """host: (name or address, port), or the path of a Unix datagram socket."""

    host: tuple[str, int] | str
    naming: Naming

    @classmethod
    def from_cfg(cls, cfg: Any) -> Target:
        """From gunicorn's options; statsd_host has a value. ConfigError: it cannot be used."""
        host = cfg.settings["statsd_host"].get()
        shown = host
        if isinstance(host, (tuple, list)):
            host = str(host[0]).strip("[]"), int(host[1])
            if not 1 <= host[1] <= 65535:
                wrong = "there is no such port; give HOST:PORT with one from 1 to 65,535"
                raise ConfigError(complaint("statsd_host", shown, wrong))
        elif isinstance(host, str):
            try:
                host = parse_socket_path(host)
            except ValueError as error:
                raise ConfigError(complaint("statsd_host", shown, str(error))) from None
        else:
            wrong = "nothing is sent to a descriptor; give HOST:PORT or unix:PATH"
            raise ConfigError(complaint("statsd_host", shown, wrong))
        prefix, tags = (str(cfg.settings[name].get() or "") for name in ("statsd_prefix", "dogstatsd_tags"))
        if not re.fullmatch(r"[!-~]*", prefix) or re.search(r"[:|@#]", prefix):
            wrong = "a name cannot begin so; give letters, digits, dots, dashes and underscores"
            raise ConfigError(complaint("statsd_prefix", prefix, wrong))
        if not tags.isprintable() or re.search(r"[|\s]", tags):
            wrong = "these are no tags; give them as name:value, with commas between"
            raise ConfigError(complaint("dogstatsd_tags", tags, wrong))
        if len((prefix + tags).encode()) > MAX_WORDS:
            longer = "dogstatsd_tags" if len(tags) > len(prefix) else "statsd_prefix"
            wrong = f"with it a line does not fit in a datagram; give at most {MAX_WORDS} bytes"
            raise ConfigError(complaint(longer, None, wrong))
        prefix = prefix.rstrip(".")
        return cls(host, Naming(prefix + "." if prefix else "", tags.strip(",")))

    def __str__(self) -> str:
        if isinstance(self.host, str):
            return f"unix:{self.host}"
        host, port = self.host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Address = tuple[socket.AddressFamily, Any]
"""A socket's family, and what its sendto takes."""


class _Lookup:
    """Finds the address of a name, again and again, in threads that nobody waits for."""

    def __init__(self, host: str, port: int) -> None:
        self.error: str | None = None
        self.found: Address | None = None
        self._where = host, port
        self._due = 0.0
        self._thread: threading.Thread | None = None
        try:
            self.found = self._ask(socket.AI_NUMERICHOST)
            self._due = float("inf")
        except (OSError, ValueError):
            pass  # it is a name, or what looks like one

    @property
    def pending(self) -> bool:
        """Whether the first answer has not come yet."""
        return self.found is None and self.error is None

    def tick(self, now: float) -> None:
        """Start a look-up if it is time for one."""
        if now >= self._due and (self._thread is None or not self._thread.is_alive()):
            self._due = now + LOOKUP_INTERVAL
            self._thread = threading.Thread(target=self._look_up, name="statsd-lookup", daemon=True)
            self._thread.start()

    def _look_up(self) -> None:
        try:
            self.found, self.error = self._ask(), None
        except (OSError, ValueError) as error:
            self.error = f"its name is not found: {error}"
            self._due = time.monotonic() + LOOKUP_RETRY

    def _ask(self, flags: int = 0) -> Address:
        family, _, _, _, address = socket.getaddrinfo(*self._where, type=socket.SOCK_DGRAM, flags=flags)[0]
        return family, address


class StatsdSender:
    """`stats` gives the object that `stats --json` shows; what is counted in `previous` is not sent."""

    def __init__(
        self,
        target: Target,
        stats: Callable[[], dict[str, Any]],
        log: Log,
        previous: dict[str, Any] | None = None,
    ) -> None:
        self._stats = stats
        self._log = log
        self._previous = previous
        self._socket: socket.socket | None = None
        self._trouble: str | None = None
        self.due = 0.0
        self._aim(target)

    def _aim(self, target: Target) -> None:
        self._target = target
        self._lookup = None if isinstance(target.host, str) else _Lookup(*target.host)

    def redirect(self, target: Target) -> None:
        """Send to another receiver, or under other names, from now on."""
        if target != self._target:
            self.close()
            self._trouble = None
            self._aim(target)
            self.due = 0.0

    def tick(self, now: float) -> None:
        """To be called when it is `due`."""
        if self._lookup is not None:
            self._lookup.tick(now)
            if self._lookup.pending:
                self.due = now + LOOKUP_POLL
                return
        # Not one round after the other for a time without any, as when the machine slept.
        self.due = max(self.due + INTERVAL, now + INTERVAL / 2)
        self.send()

    def send(self) -> None:
        """Send what there is now; what has been counted is kept for the next time if nothing can be sent."""
        snapshot = self._stats()
        sent = 0
        try:
            address = self._address()
            if address is None:
                return
            for datagram in datagrams(lines(snapshot, self._previous, self._target.naming)):
                self._send(datagram, address)
                sent += 1
        except OSError as error:
            self._tell(error.strerror or str(error))
        else:
            self._tell(None)
        if sent:
            self._previous = snapshot

    def _address(self) -> Address | None:
        """Where to send to, None while its name is looked up for the first time. OSError: it is not found."""
        if self._lookup is None:
            return socket.AF_UNIX, self._target.host
        if self._lookup.found is None and not self._lookup.pending:
            raise OSError(self._lookup.error)
        return self._lookup.found

    def _send(self, datagram: bytes, address: Address) -> None:
        family, where = address
        if self._socket is not None and self._socket.family != family:
            self.close()
        if self._socket is None:
            self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.sendto(datagram, socket.MSG_NOSIGNAL, where)

    def _tell(self, trouble: str | None) -> None:
        """Log that something goes wrong, or goes well again: once each."""
        if trouble is not None and self._trouble is None:
            self._log.warning(
                "statsd: nothing can be sent to %s (%s); counts are kept until it can", self._target, trouble
            )
        elif trouble is None and self._trouble is not None:
            self._log.info("statsd: figures are sent to %s again", self._target)
        self._trouble = trouble

    def close(self) -> None:
        """Close the descriptor: at the end, and in a process forked from the arbiter."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
