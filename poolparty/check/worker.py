"""One worker under examination: a process started as the server starts it, and the other ends of its pipes.

Every wait goes through `_wait`, which moves bytes in all directions meanwhile, so that neither side can block
the other, and ends at a limit. What the worker owes and does not give raises Failed, whose text says what to
mend.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence

from poolparty.arbiter.children import LAUNCHER
from poolparty.arbiter.environment import child_environment
from poolparty.check.diagnosis import (
    frames_in,
    incomplete_fault,
    not_canonical,
    payload_fault,
    shown,
    size_fault,
)
from poolparty.errors import AnswerError, FrameError, PoolpartyError
from poolparty.wire.frames import (
    HEALTH_CHECK,
    HealthReply,
    HTTPResponse,
    Ready,
    Response,
    ResponseHead,
    decode_response,
)
from poolparty.worker.response import render

PIECE = 65536
KEPT_OUTPUT = 64 * 1024
"""Bytes of stdout and of stderr that are kept, the last ones."""

MAX_ANSWERS = 64 * 1024 * 1024
"""Bytes on descriptor 3 that are kept unread; no answer that is asked for here comes near it."""

LOOK = 0.001
"""Seconds between two looks at what no descriptor tells: whether the worker has read all, or has ended."""


class Failed(PoolpartyError):
    """The worker breaks a promise; the text says which, and what its author has to change."""


class Worker:
    """A started process. `patience`: seconds for whatever it owes. Close it."""

    def __init__(self, command: Sequence[str], features: str | None, patience: float) -> None:
        """Start it, offering `features`; None: as a server that knows version 1 only."""
        self.features = features
        self.patience = patience
        self.output = bytearray()
        self.errors = bytearray()
        self._answers = bytearray()
        self._unsent = bytearray()
        self._answers_end = False
        environment = child_environment(os.environ, command)
        del environment["POOLPARTY_FEATURES"]
        if features is not None:
            environment["POOLPARTY_FEATURES"] = features
        stdin, self._stdin = os.pipe()
        self._fd3, fd3 = os.pipe()
        lc_ctype = environment.get("LC_CTYPE", "-")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", LAUNCHER, str(fd3), str(os.getpid()), "-", lc_ctype),
                *("-", "-", "-", "--", *command),
            ],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(fd3,),
            env=environment,
            process_group=0,
        )
        os.close(stdin)
        os.close(fd3)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._outputs = {
            self._process.stdout.fileno(): self.output,
            self._process.stderr.fileno(): self.errors,
        }
        for fd in (self._stdin, self._fd3, *self._outputs):
            os.set_blocking(fd, False)

    # --- towards it ----------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Put bytes on its way; they leave while something is waited for."""
        self._unsent += data
        self._send()

    def write_and_wait(self, data: bytes) -> None:
        """Write, and return when it has taken all of it out of the pipe."""
        self.write(data)
        if not self._wait(lambda: not self._unsent and self.bytes_unread() == 0):
            if self.has_ended():
                raise Failed(f"it {self.end_words()} while there was something to read")
            unread = len(self._unsent) + self.bytes_unread()
            raise Failed(
                f"{unread} of {len(data)} bytes were still not read after {self.patience:g} s: read "
                "descriptor 0 from the start on, and again after each answer; if it only starts slowly, give "
                "it longer (--timeout)"
            )

    def close_stdin(self) -> None:
        """Let it see the end of its requests."""
        self._wait(lambda: not self._unsent)
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def interrupt(self) -> None:
        """What a terminal's Ctrl-C does to a process group."""
        self._signal(signal.SIGINT)

    def terminate(self) -> None:
        """What the server sends to end it."""
        self._signal(signal.SIGTERM)

    def ask_for_stack(self) -> None:
        """What the server sends to one that has announced `stack`: to it alone, not to its group."""
        if not self.has_ended():
            os.kill(self._process.pid, signal.SIGUSR1)

    def _signal(self, number: int) -> None:
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def bytes_unread(self) -> int:
        """How much stands in its stdin's pipe."""
        if self._stdin < 0:
            return 0
        return int.from_bytes(fcntl.ioctl(self._stdin, termios.FIONREAD, bytes(4)), sys.byteorder)

    # --- from it -------------------------------------------------------------------------------------------

    def has_message(self, patience: float) -> bool:
        """Whether a message comes in that time."""
        return self._wait(self._has_frame, patience)

    def payload(self, awaited: str) -> bytes:
        """The next frame's payload. Failed: none came in time; `awaited` names what was due."""
        if not (self._has_frame() or self._wait(self._has_frame)):  # of a stream thousands may be here
            raise Failed(self._why_nothing(awaited))
        return self._take_payload()

    def message(self, awaited: str) -> Response:
        """The next message. Failed: none came in time, or it is none."""
        return self._decoded(self.payload(awaited))

    def answer(self, awaited: str) -> HTTPResponse:
        """The next message, which has to be an HTTPResponse that HTTP can carry."""
        message = self.message(awaited)
        if isinstance(message, Ready):
            raise Failed(f"it said Ready where {awaited} was due: {self._why_no_ready()}")
        if isinstance(message, HealthReply):
            raise Failed(f"it wrote a HealthReply where {awaited} was due: {self._why_no_reply()}")
        if not isinstance(message, HTTPResponse):
            raise Failed(f"it wrote a part of a stream where {awaited} was due: `stream` was not offered")
        try:
            render(ResponseHead(message.head.status, message.head.headers))
        except AnswerError as error:
            raise Failed(f"HTTP cannot carry this answer: {error}") from None
        return message

    def says_more_than(self, written: int) -> bool:
        """Whether it comes to have written more than so many bytes to stderr."""
        return self._wait(lambda: len(self.errors) > written)

    def settle(self) -> None:
        """Return when it is back at reading, by a health check (answered, if it has announced that).

        Whatever it wrote before is in the pipe then.
        """
        self.write_and_wait(HEALTH_CHECK)
        self._wait(lambda: True)

    def leftover(self) -> str | None:
        """What stands on descriptor 3 and was not asked for."""
        if not self._answers:
            return None
        count = frames_in(bytes(self._answers))
        if count:
            return f"{count} more well-formed frame{'s' if count > 1 else ''}"
        return f"{len(self._answers)} bytes, {shown(bytes(self._answers))}"

    def _has_frame(self) -> bool:
        have = len(self._answers) - 4
        size = int.from_bytes(self._answers[:4], "little")
        # A size in the wrong order of bytes would keep us waiting for hundreds of megabytes.
        return have >= 0 and (have >= size or (size > MAX_ANSWERS and have == _big_endian(self._answers[:4])))

    def _take_payload(self) -> bytes:
        size = int.from_bytes(self._answers[:4], "little")
        payload = bytes(self._answers[4 : 4 + size])
        fault = size_fault(self._answers)
        if len(payload) < size:
            fault = incomplete_fault(bytes(self._answers))
        if fault:
            raise Failed(fault)
        del self._answers[: 4 + size]
        return payload

    def _decoded(self, payload: bytes) -> Response:
        try:
            message = decode_response(payload)
        except FrameError as error:
            raise Failed(payload_fault(payload, error, bytes(self._answers))) from None
        fault = not_canonical(payload, message)
        if fault:
            raise Failed(fault)
        return message

    def _why_nothing(self, awaited: str) -> str:
        """The complaint when no whole frame came."""
        if self._answers:
            return incomplete_fault(bytes(self._answers))
        if self.has_ended():
            return f"it {self.end_words()} instead of writing {awaited}"
        wrong_place = (
            f"{awaited} was written to standard output (descriptor 1), which is for printing: "
            "write it to descriptor 3 (or open /dev/fd/3)"
        )
        if frames_in(bytes(self.output)):
            return wrong_place
        if self._answers_end:
            return f"it closed descriptor 3 before it had written {awaited}: keep it open, and write there"
        nothing = f"nothing came on descriptor 3 in {self.patience:g} s where {awaited} was due"
        unread = len(self._unsent) + self.bytes_unread()
        if unread:
            return (
                f"{nothing}, and {unread} bytes on descriptor 0 were not read: read until the frame is "
                "complete"
            )
        self.close_stdin()
        self._wait(lambda: bool(self._answers) or self.has_ended())
        if self._answers:
            return f"{awaited} came only when descriptor 0 was closed: flush descriptor 3 after each answer"
        if frames_in(bytes(self.output)):
            return wrong_place
        return f"{nothing}: write it there (or open /dev/fd/3), and flush after each answer"

    def _why_no_ready(self) -> str:
        if "ready" not in (self.features or "").split(","):
            return "say Ready only if POOLPARTY_FEATURES names `ready`"
        return "say it once, before the first request is read"

    def _why_no_reply(self) -> str:
        if "health-reply" not in (self.features or "").split(","):
            return (
                "a health check is answered only if POOLPARTY_FEATURES names `health-reply` and Ready did too"
            )
        return "a health check is answered once, in its turn, and only if Ready named `health-reply`"

    # --- its end -------------------------------------------------------------------------------------------

    def wait_for_end(self, why: str, after: str = "after") -> int:
        """Its exit status, negative for a signal. Failed: it lives on although `why`, or answers."""
        if not self._wait(lambda: self.has_ended() or bool(self._answers)):
            raise Failed(f"it was still running {self.patience:g} s {after} {why}")
        if self._answers:
            raise Failed(f"it wrote to descriptor 3 {after} {why}")
        self._read()
        return self._status()

    def has_ended(self) -> bool:
        """Whether it waits to be reaped."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end_words(self) -> str:
        """How it ended, as the rest of a sentence."""
        status = self._status()
        if status >= 0:
            return f"ended with exit status {status}"
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"

    def _status(self) -> int:
        if self._process.returncode is None:
            # The group before its leader is reaped: afterwards the number may be another's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def close(self) -> None:
        """End it and whatever it started; its last words are in `errors`."""
        self._status()
        self._read()
        for fd in (self._stdin, self._fd3):
            if fd >= 0:
                os.close(fd)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()
        self._stdin = self._fd3 = -1
        self._outputs.clear()

    # --- moving bytes --------------------------------------------------------------------------------------

    def _wait(self, done: Callable[[], bool], patience: float | None = None) -> bool:
        """Move bytes until done(): True; or until the limit, or the process's end: False."""
        end = time.monotonic() + (self.patience if patience is None else patience)
        while True:
            ended = self.has_ended()
            self._send()
            self._read()
            if done():
                return True
            left = end - time.monotonic()
            if ended or left <= 0:
                return False
            reading = [*self._outputs, *([] if self._answers_end else [self._fd3])]
            select.select(reading, [], [], min(left, LOOK))

    def _send(self) -> None:
        while self._unsent and self._stdin >= 0:
            try:
                del self._unsent[: os.write(self._stdin, self._unsent[:PIECE])]
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._unsent.clear()  # it has closed its stdin, or ended: what it owes shows that

    def _read(self) -> None:
        for fd, kept in list(self._outputs.items()):
            for _ in range(KEPT_OUTPUT // PIECE + 1):  # one that floods must not hold us here
                piece = _read_now(fd)
                if piece == b"":
                    del self._outputs[fd]
                if not piece:
                    break
                kept += piece
                del kept[:-KEPT_OUTPUT]
        while not self._answers_end and len(self._answers) < MAX_ANSWERS:
            piece = _read_now(self._fd3)
            if piece is None:
                return
            self._answers_end = piece == b""
            self._answers += piece


def _big_endian(data: bytearray) -> int:
    return int.from_bytes(data, "big")


def _read_now(fd: int) -> bytes | None:
    """What is there; b"" at the end, None if nothing is there yet."""
    try:
        return os.read(fd, PIECE)
    except BlockingIOError:
        return None
