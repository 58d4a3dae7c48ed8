"""An HTTP/1.1 client that believes nothing: raw bytes out, strictly framed answers in."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any

PATIENCE = 30.0  # seconds for whatever a server owes; reached only by a failing test

Address = tuple[str, int] | str
"""Host and port, or a Unix socket's path."""


@dataclass(frozen=True)
class Answer:
    """One response. `fields` in order and as they came; names in lower case."""

    version: str
    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes
    head: bytes

    def all(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field == name.lower()]

    def get(self, name: str) -> str | None:
        """The one value of a field that may stand there once at most."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} stands there more than once: {values}"
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection. Reading past what the server owes, or less of it, is an AssertionError."""

    def __init__(self, address: Address, patience: float = PATIENCE, source: str | None = None) -> None:
        """source: the address to connect from, of this machine."""
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.settimeout(patience)
        try:
            if source is not None:
                self.socket.bind((source, 0))
            self.socket.connect(address)
        except BaseException:
            self.socket.close()
            raise
        self.buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Leave as a client does that has crashed."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(
        self,
        method: str = "GET",
        target: str = "/",
        body: bytes | None = None,
        fields: dict[str, str] | None = None,
    ) -> None:
        """Send a well-formed request."""
        lines = [f"{method} {target} HTTP/1.1"]
        fields = {"Host": "test.example", **(fields or {})}
        if body is not None and "Transfer-Encoding" not in fields:
            fields.setdefault("Content-Length", str(len(body)))
        lines += [f"{name}: {value}" for name, value in fields.items()]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def ask(
        self,
        method: str = "GET",
        target: str = "/",
        body: bytes | None = None,
        fields: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request and read its answer; nothing may follow it."""
        self.request(method, target, body, fields)
        answer = self.answer(method)
        assert self.buffer == b"", f"bytes behind the answer: {self.buffer[:200]!r}"
        return answer

    def answer(self, method: str = "GET") -> Answer:
        """The next response, to a request of this method."""
        head = self._until(b"\r\n\r\n")
        status_line, *lines = head[:-4].decode("latin-1").split("\r\n")
        version, status, reason = status_line.split(" ", 2)
        fields = []
        for line in lines:
            name, colon, value = line.partition(": ")
            assert colon, f"no field: {line!r}"
            assert name == name.strip()
            fields.append((name.lower(), value))
        answer = Answer(version, int(status), reason, fields, b"", head)
        length = answer.get("content-length")
        coding = answer.get("transfer-encoding")
        assert coding in (None, "chunked") and not (coding and length), head
        if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
            return answer
        if coding is not None:
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self._until_closed() if length is None else self._exactly(int(length))
        return Answer(version, int(status), reason, fields, body, head)

    def at_end(self) -> bool:
        """Whether the server has closed the connection, with nothing more sent; waits for either."""
        if self.buffer:
            return False
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _receive(self) -> bool:
        data = self.socket.recv(1 << 18)
        self.buffer += data
        return bool(data)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            assert self._receive(), f"the connection ended in a head: {self.buffer[:500]!r}"
        end = self.buffer.index(mark) + len(mark)
        taken, self.buffer = self.buffer[:end], self.buffer[end:]
        return taken

    def _chunk(self) -> bytes:
        """The next chunk of a streamed answer; nothing at its end."""
        data = self._exactly(int(self._until(b"\r\n"), 16))
        assert self._exactly(2) == b"\r\n"
        return data

    def _exactly(self, size: int) -> bytes:
        parts, have = [self.buffer], len(self.buffer)
        while have < size:
            data = self.socket.recv(min(size - have, 1 << 18))
            assert data, f"the connection ended after {have} of a body's {size} bytes"
            parts.append(data)
            have += len(data)
        data = b"".join(parts)
        self.buffer = data[size:]
        return data[:size]

    def _until_closed(self) -> bytes:
        while self._receive():
            pass
        taken, self.buffer = self.buffer, b""
        return taken
