"""Serves CGI scripts (RFC 3875), any executable: poolparty -- python -m poolparty.cgi SCRIPT

Given a folder in place of a script, /name/rest asks the folder's executable `name`. Runs in the child, on top
of `poolparty.serve`: each request starts the script, gives it the body on its standard input and reads its
answer from its standard output; what it writes to standard error is in the server's log. The script belongs
to this process's group, so the server's time limit ends both. Python 3.8 or later.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from . import Request, Response, serve
from .gateway import add_field, text_of
from .wsgi import environ_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

__all__ = ["Scripts", "main"]

BLOCK = 65536
MAX_HEADER = 1024 * 1024
"""Bytes of a script's header."""

MAX_REDIRECTS = 10
"""Local redirects (RFC 3875, 6.2.2) that one request may take."""

TEXT = {"Content-Type": "text/plain; charset=utf-8"}


def main() -> None:
    """What `python -m poolparty.cgi SCRIPT` does."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(
            "usage: poolparty -- python -m poolparty.cgi SCRIPT\n\nSCRIPT is an executable, or a folder of "
            "them"
        )
    serve(Scripts(sys.argv[1]).handle)


class ScriptFailed(Exception):
    """The script did not answer as RFC 3875 wants it; the text says what is wrong."""


class Scripts:
    """One script, or a folder of them. SystemExit says why there is none."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self.is_folder = os.path.isdir(self.path)
        if not self.is_folder:
            if not os.path.isfile(self.path):
                raise SystemExit(f"poolparty.cgi: there is no file {self.path}")
            if not os.access(self.path, os.X_OK):
                raise SystemExit(f"poolparty.cgi: {self.path} is not executable: chmod +x {path}")
        self.environment = {
            name: value
            for name, value in os.environ.items()
            # A script takes HTTP_… for a header of the request; the others are for this process.
            if not name.startswith(("HTTP_", "POOLPARTY"))
        }

    def handle(self, request: Request) -> Response:
        """One request, answered by the script it is for. ScriptFailed: it has not answered."""
        for _ in range(MAX_REDIRECTS):
            variables = variables_of(request)
            script = self.find(variables)
            if script is None:
                return Response(404, TEXT, "not found\n")
            status, headers, body = self.run(script, variables, request)
            location = headers.get("Location")
            if location is None or not isinstance(location, str):
                return Response(status or 200, headers, body)
            if not location.startswith("/") or status is not None or location.startswith("//"):
                return Response(status or 302, headers, body)
            body.close()
            request = Request(
                "GET", _origin(request.uri) + location, _without_body(request), b"", request.remote_address
            )
        raise ScriptFailed(f"more than {MAX_REDIRECTS} local redirects, the last one to {location}")

    def find(self, variables: dict[str, str]) -> str | None:
        """The script for the path, whose SCRIPT_NAME and PATH_INFO are set; None: there is none."""
        if not self.is_folder:
            return self.path
        name, slash, rest = variables["PATH_INFO"].lstrip("/").partition("/")
        if not name or name[0] == "." or "\0" in name:
            return None
        script = os.path.join(self.path, name)
        if not os.path.isfile(script) or not os.access(script, os.X_OK):
            return None
        variables["SCRIPT_NAME"] += "/" + name
        variables["PATH_INFO"] = slash + rest
        return script

    def run(
        self, script: str, variables: dict[str, str], request: Request
    ) -> tuple[int | None, dict[str, str | list[str]], _Output]:
        """Start the script and read its header: (status, headers, the rest)."""
        variables["SCRIPT_FILENAME"] = script
        with _input(request) as source:
            process = subprocess.Popen(
                [script],
                stdin=source,
                stdout=subprocess.PIPE,
                cwd=os.path.dirname(script),
                env={**self.environment, **variables},
            )
        output = _Output(process, script)
        try:
            status, headers = output.header()
        except BaseException:
            output.close()
            raise
        return status, headers, output


def variables_of(request: Request) -> dict[str, str]:
    """The request's meta-variables (RFC 3875, 4.1) and what servers usually set besides."""
    variables = {
        name: value.replace("\0", "")
        for name, value in environ_of(request).items()
        if isinstance(value, str) and "." not in name
    }
    variables.pop("HTTP_PROXY", None)  # a client's header, which programs take for their own setting
    for secret in ("HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"):
        variables.pop(secret, None)
    variables["GATEWAY_INTERFACE"] = "CGI/1.1"
    if variables.get("CONTENT_LENGTH", "0") == "0":
        variables["CONTENT_LENGTH"] = ""
    if request.uri.startswith("https:"):
        variables["HTTPS"] = "on"
    # What WSGI holds as one character a byte; the environment wants the bytes.
    return {name: os.fsdecode(value.encode("latin-1", "replace")) for name, value in variables.items()}


def _origin(uri: str) -> str:
    slash = uri.find("/", 8)
    return uri[:slash] if slash > 0 else uri


def _without_body(request: Request) -> dict[str, str]:
    return {
        name: value
        for name, value in request.headers.items()
        if name.lower() not in ("content-length", "content-type", "transfer-encoding")
    }


def _input(request: Request) -> IO[bytes]:
    """A file, so that a script which does not read its input holds nothing up."""
    if request.body_path is not None:
        return request.open_body()
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the caller)
    file.write(request.body)
    file.seek(0)
    return file


class _Output:
    """What a script writes: a header, then a body, which is read as it is sent."""

    def __init__(self, process: subprocess.Popen[bytes], script: str) -> None:
        assert process.stdout is not None
        self.process = process
        self.script = script
        self.stream = process.stdout
        self.ended = False

    def header(self) -> tuple[int | None, dict[str, str | list[str]]]:
        """Read to the empty line. ScriptFailed: there is none, or a line is no field."""
        status: int | None = None
        fields: dict[str, str | list[str]] = {}
        room = MAX_HEADER
        while True:
            line = self.stream.readline(room + 1)
            room -= len(line)
            if room < 0:
                raise ScriptFailed(f"{self.script}: its header goes beyond {MAX_HEADER} bytes")
            if not line:
                code = self.process.wait()
                raise ScriptFailed(
                    f"{self.script} ended (exit status {code}) before the empty line that ends an answer's "
                    "header"
                )
            line = line.rstrip(b"\r\n")
            if not line:
                break
            name, colon, value = text_of(line).partition(":")
            if not colon or not name.strip():
                raise ScriptFailed(
                    f"{self.script}: the line {text_of(line)[:80]!r} of its header is no `Name: value`"
                )
            name, value = name.strip(), value.strip()
            if name.lower() == "status":
                if not value[:3].isdigit():
                    raise ScriptFailed(f"{self.script}: {value[:80]!r} is no status")
                status = int(value[:3])
                continue
            if name.lower() == "location":
                name = "Location"
            add_field(fields, name, value)
        if not fields and status is None:
            raise ScriptFailed(
                f"{self.script}: its header is empty; it needs Content-Type, Location or Status"
            )
        return status, fields

    def __iter__(self) -> Iterator[bytes]:
        read = self.stream.read1  # type: ignore[attr-defined]  # a BufferedReader's: what there is
        while True:
            block = read(BLOCK)
            if not block:
                break
            yield block
        self.ended = True

    def close(self) -> None:
        """Wait for the script's end; one whose answer nobody reads to its end is ended."""
        self.stream.close()
        if not self.ended:
            self.process.kill()
        code = self.process.wait()
        if code and self.ended:
            print(f"poolparty.cgi: {self.script} ended with exit status {code}", file=sys.stderr)


if __name__ == "__main__":
    main()
