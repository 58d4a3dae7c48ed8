"""A worker in a process of its own, as the server would have it: requests on descriptor 0, answers on 3.

Frames are written and read by hand here, so that a mistake common to our codec and a library does not pass.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from poolparty.arbiter.environment import child_environment

PATIENCE = 20.0  # for whatever a worker owes; reached only by a failing test

HEALTH_CHECK = b"\x01\x00\x00\x00\x01"
STREAM_CANCEL = b"\x01\x00\x00\x00\x03"

FORGOTTEN = {"PYTHONPATH", "JANET_PATH", "POOLPARTY_FEATURES"}


# What a language can have no means for: ignoring SIGINT, keeping descriptor 3 from the programs it starts.
ABILITIES = frozenset({"interrupts", "close-on-exec"})


STREAM = frozenset({"health-reply", "stream"})
CANCEL = frozenset({"stream-cancel"})
STACK = frozenset({"health-reply", "stream", "stack"})


@dataclass(frozen=True)
class Language:
    """An interpreter whose worker library the shared tests try (test_every_library.py, test_examples.py)."""

    name: str  # as examples/app.EXT says it in its greeting
    programs: tuple[str, ...]  # the first that is installed is used
    suffix: str  # of applications/application.SUFFIX and examples/app.SUFFIX
    folder: str  # below poolparty/sdk
    features: frozenset[str] = STREAM  # its Ready names them, where offered
    cannot: frozenset[str] = frozenset()  # of ABILITIES
    large: bool = False  # installed by bin/test --all only
    label: str = ""  # of the test, where several interpreters speak one language


LANGUAGES = [
    Language("Python", (sys.executable,), "py", "python", STACK | CANCEL),
    Language("Janet", ("janet",), "janet", "janet", STREAM | CANCEL),
    Language("Ruby", ("ruby",), "rb", "ruby", STACK | CANCEL),
    Language("Perl", ("perl",), "pl", "perl", STACK | CANCEL),
    Language("PHP", ("php",), "php", "php", STACK | CANCEL),
    *(
        Language("Lua", (program,), "lua", "lua", cannot=frozenset({"interrupts"}), label=program)
        for program in ("lua5.1", "lua5.2", "lua5.3", "lua5.4")
    ),
    Language("Lua", ("luajit",), "lua", "lua", label="luajit"),
    Language("JavaScript", ("node", "nodejs"), "js", "node", STREAM | CANCEL),
    Language(
        "Tcl",
        ("tclsh", "tclsh8.6"),
        "tcl",
        "tcl",
        STREAM | CANCEL,
        cannot=frozenset({"interrupts", "close-on-exec"}),
    ),
    Language("R", ("Rscript",), "R", "r", cannot=frozenset({"close-on-exec"}), large=True),
    Language("Guile", ("guile", "guile3.0"), "scm", "guile", STREAM | CANCEL, large=True),
    Language("Go", ("go",), "go", "go", STACK | CANCEL, large=True),
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "feature(name): in the languages whose library has this feature")
    config.addinivalue_line("markers", "only(name): in this language alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `language` runs in each; with the mark `feature` in each that has it."""
    if "language" in metafunc.fixturenames:
        marks = [mark.args[0] for mark in metafunc.definition.iter_markers("feature")]
        only = [mark.args[0] for mark in metafunc.definition.iter_markers("only")]
        chosen = [each for each in LANGUAGES if (each.features | ABILITIES - each.cannot).issuperset(marks)]
        chosen = [each for each in chosen if not only or each.name in only]
        metafunc.parametrize(
            "language", chosen, ids=[each.label or each.name for each in chosen], scope="session"
        )


@pytest.fixture(scope="session")
def interpreter(language: Language, checkout: Path) -> str:
    """The interpreter's path. In CI the absence of one that bin/test installs is a failure."""
    ours = checkout / ".cache" / "interpreters" / "bin"
    for program in language.programs:
        if os.access(ours / program, os.X_OK):
            return str(ours / program)
        found = shutil.which(program)
        if found is not None:
            return found
    reason = f"no {language.name}: bin/install-interpreters has it"
    if os.environ.get("CI") and (not language.large or os.environ.get("POOLPARTY_TEST_ALL")):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def command_for(
    language: Language, interpreter: str, sdk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[str]]:
    """command_for(program, options=()): what runs the program; one in Go is built first."""
    built: dict[str, str] = {}

    def build(program: Path) -> str:
        folder = tmp_path_factory.mktemp("go")
        shutil.copy(program, folder)
        module = "module application\ngo 1.19\nrequire poolparty v0.0.0\nreplace poolparty => %s\n"
        (folder / "go.mod").write_text(module % (sdk / "go"))
        command = [interpreter, "build", "-o", "application", program.name]
        environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
        subprocess.run(command, cwd=folder, env=environment, check=True)
        return str(folder / "application")

    def command(program: Path | str, options: Sequence[str] = ()) -> list[str]:
        if language.name != "Go":
            return [interpreter, *options, str(program)]
        if str(program) not in built:
            built[str(program)] = build(Path(program))
        return [built[str(program)], *options]

    return command


@pytest.fixture
def start_program(
    start_worker: Callable[..., Worker], language: Language, command_for: Callable[..., list[str]]
) -> Callable[..., Worker]:
    """start_program(path, environment={}, options=()): a worker that runs the program as the server does; but
    features are offered by `environment` alone."""

    def start(
        program: Path | str, environment: Mapping[str, str] | None = None, options: Sequence[str] = ()
    ) -> Worker:
        command = command_for(program, options)
        whole = child_environment(os.environ, command)
        if language.name == "Guile":
            # It would speak of compiling a program that it has not seen before, or has seen otherwise.
            whole |= {"GUILE_AUTO_COMPILE": "0", "XDG_CACHE_HOME": "/nonexistent"}
        del whole["POOLPARTY_FEATURES"]
        return start_worker(command, {**whole, **(environment or {})})

    return start


@pytest.fixture
def needs() -> Callable[..., None]:
    """needs(package, *command, large=False): skip, in CI fail, where the command does not succeed.

    large: it is installed by bin/test --all only."""

    def needs(package: str, *command: str, large: bool = False) -> None:
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            reason = f"{package} is missing: bin/install-interpreters has it"
            if os.environ.get("CI") and (not large or os.environ.get("POOLPARTY_TEST_ALL")):
                pytest.fail(reason)
            pytest.skip(reason)

    return needs


@pytest.fixture
def serve(language: Language, start_program: Callable[..., Worker], tmp_path: Path) -> Callable[..., Worker]:
    """serve(source, environment={}): a worker that runs source."""

    def serve(source: str, environment: Mapping[str, str] | None = None) -> Worker:
        program = tmp_path / f"app.{language.suffix}"
        program.write_text(source)
        return start_program(program, environment)

    return serve


def uint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return uint(len(data)) + data


def request_frame(
    uri: str = "http://example.org/",
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    remote_address: str = "192.0.2.1:4711",
) -> bytes:
    headers = headers or {}
    payload = b"\x00" + string(remote_address) + string(uri) + string(method) + uint(len(headers))
    for name, value in headers.items():
        payload += string(name) + string(value)
    payload += string(body)
    return len(payload).to_bytes(4, "little") + payload


class Payload:
    """Takes a frame's payload apart, and insists that nothing is left at the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def uint(self) -> int:
        number = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            number += (byte % 128) << shift
            shift += 7
            if byte < 128:
                return number

    def bytes(self) -> bytes:
        size = self.uint()
        assert self.at + size <= len(self.data), "a length beyond the frame's end"
        self.at += size
        return self.data[self.at - size : self.at]

    def text(self) -> str:
        return self.bytes().decode()

    def end(self) -> None:
        assert self.at == len(self.data), "bytes behind the message"


class Worker:
    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        reading, writing = os.pipe()
        launcher = (
            f"import os, sys; os.dup2({writing}, 3); {writing} == 3 or os.close({writing}); "
            "os.execvp(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", launcher, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(writing,),
            env={**{k: v for k, v in os.environ.items() if k not in FORGOTTEN}, **environment},
            bufsize=0,
            process_group=0,
        )
        os.close(writing)
        self.fd3 = reading
        self.buffer = b""

    def send(self, *frames: bytes) -> None:
        """Write the frames as one piece: a library has to find the borders."""
        assert self.process.stdin is not None
        data = memoryview(b"".join(frames))
        while data:
            data = data[os.write(self.process.stdin.fileno(), data) :]

    def _read(self, size: int) -> bytes:
        end = time.monotonic() + PATIENCE
        while len(self.buffer) < size:
            readable, _, _ = select.select([self.fd3], [], [], max(0, end - time.monotonic()))
            assert readable, f"no answer; on stderr: {self.kill_and_read_stderr()}"
            piece = os.read(self.fd3, 1 << 20)
            assert piece, f"the worker has gone; on stderr: {self.kill_and_read_stderr()}"
            self.buffer += piece
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def frame(self) -> tuple[int, Payload]:
        """The next frame's tag, and its payload behind the tag."""
        payload = Payload(self._read(int.from_bytes(self._read(4), "little")))
        return payload.uint(), payload

    def response(self) -> tuple[int, dict[str, list[str]], bytes]:
        tag, payload = self.frame()
        assert tag == 0
        status = payload.uint()
        headers = {}
        for _ in range(payload.uint()):
            name = payload.text()
            headers[name] = [payload.text() for _ in range(payload.uint())]
        body = payload.bytes()
        payload.end()
        return status, headers, body

    def ask(
        self,
        uri: str = "http://example.org/",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> tuple[int, dict[str, list[str]], bytes]:
        self.send(request_frame(uri, method, headers, body))
        return self.response()

    def ready(self) -> list[str]:
        """The features that the worker's Ready names."""
        tag, payload = self.frame()
        assert tag == 1
        features = [payload.text() for _ in range(payload.uint())]
        payload.end()
        return features

    def pieces(self, count: int) -> list[bytes]:
        """A stream's next pieces; its head is passed over."""
        pieces: list[bytes] = []
        while len(pieces) < count:
            tag, payload = self.frame()
            if tag == 3:
                continue
            assert tag == 4
            pieces.append(payload.bytes())
            payload.end()
        return pieces

    def read_to_the_end_of_the_stream(self) -> None:
        while (tag := self.frame()[0]) == 4:
            pass
        assert tag == 5

    def cancel_stream(self) -> None:
        """The client of the stream that runs has left. Return when the stream has ended."""
        self.send(STREAM_CANCEL)
        self.read_to_the_end_of_the_stream()

    def health(self) -> tuple[bool, str]:
        tag, payload = self.frame()
        assert tag == 2
        ok, message = payload.uint(), payload.text()
        payload.end()
        return {0: False, 1: True}[ok], message

    def says_nothing_more(self) -> bool:
        """After its end: whether all that it wrote on descriptor 3 has been read."""
        return self.buffer == b"" and os.read(self.fd3, 1) == b""

    def line_of_stdout(self) -> bytes:
        """The next line, which must come while the worker goes on running."""
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            assert readable, "no line on stdout"
            line += os.read(self.process.stdout.fileno(), 1)
        return line

    def stderr_up_to(self, word: str) -> str:
        """What it writes to stderr, up to the word, which must come while the worker goes on running."""
        assert self.process.stderr is not None
        end = time.monotonic() + PATIENCE
        text = b""
        while word.encode() not in text:
            readable, _, _ = select.select([self.process.stderr], [], [], max(0, end - time.monotonic()))
            assert readable, f"no {word!r} on stderr: {text!r}"
            piece = os.read(self.process.stderr.fileno(), 65536)
            assert piece, f"the worker has gone, with {text!r} on stderr"
            text += piece
        return text.decode(errors="replace")

    def wait_until_read(self) -> None:
        """Return when it has taken all that was sent out of the pipe."""
        assert self.process.stdin is not None
        end = time.monotonic() + PATIENCE
        while any(fcntl.ioctl(self.process.stdin.fileno(), termios.FIONREAD, bytes(4))):
            assert time.monotonic() < end, "it does not read"
            time.sleep(0.001)

    def leave(self) -> tuple[int, str]:
        """Close its stdin. Its exit status (negative: the signal) and what it wrote to stderr."""
        _, stderr = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, stderr.decode(errors="replace")

    def kill_and_read_stderr(self) -> str:
        """End it with all that it has started, as the server does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        _, stderr = self.process.communicate()
        return stderr.decode(errors="replace")

    def close(self) -> None:
        if self.process.returncode is None:
            self.kill_and_read_stderr()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        os.close(self.fd3)


@pytest.fixture
def start_worker() -> Iterator[Callable[..., Worker]]:
    """start_worker(command, environment={}) -> Worker"""
    workers: list[Worker] = []

    def start(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Worker:
        workers.append(Worker(command, environment or {}))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture(scope="session")
def sdk(checkout: Path) -> Path:
    return checkout / "poolparty" / "sdk"


@pytest.fixture
def frame_of() -> Callable[..., bytes]:
    """frame_of(uri, method, headers, body, remote_address) -> a request's frame"""
    return request_frame


@pytest.fixture
def health_check() -> bytes:
    """A HealthCheckRequest's frame."""
    return HEALTH_CHECK


@pytest.fixture
def stream_cancel() -> bytes:
    """A StreamCancel's frame."""
    return STREAM_CANCEL
