"""A child as the operating system knows it: starting it, hearing whether it is ready, signalling and reaping
it.

Runs in the arbiter's pool thread, under its lock; a child must be started there, because its parent-death
signal follows the thread that forked it. What happens next to a child is decided elsewhere (pool_thread.py,
pool/policy.py).

The arbiter keeps its ends of all three pipes as long as the child lives: stdin's and fd 3's, of which an HTTP
worker gets copies, and the output's, which belongs to the relay. Its ends are non-blocking, the child's are
not: the two ends of a pipe are two open files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolparty.arbiter.confinement import words_for_launcher
from poolparty.arbiter.environment import child_environment, kept
from poolparty.arbiter.relay import Stream
from poolparty.errors import FrameError
from poolparty.pool.child import Event, State, next_state
from poolparty.pool.policy import RECYCLED, Cause
from poolparty.settings import Options
from poolparty.wire.features import Feature, named
from poolparty.wire.frames import HEALTH_CHECK, FrameReader, HealthReply, Ready, decode_response

if TYPE_CHECKING:
    from poolparty.arbiter.pool import Pool

LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launcher.py")

MAX_HANDSHAKE = 64 * 1024
"""Bytes of a frame that a child may send while the arbiter holds it: names of features, a health check's
message."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides what is started; two children of one recipe differ only in their time."""

    command: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    user: int | None
    group: int | None
    groups: tuple[int, ...] | None
    umask: int
    confinement: tuple[str, ...] = ()  # words for launcher.py

    @classmethod
    def from_cfg(cls, options: Options, cfg: Any) -> Recipe:
        """As gunicorn's settings have it now; symbolic links in chdir are followed here, once for all its
        children."""
        uid = cfg.uid if cfg.uid != os.geteuid() else None
        gid = cfg.gid if cfg.gid != os.getegid() else None
        groups: tuple[int, ...] | None = None
        if uid is not None:
            # gunicorn leaves its HTTP workers root's supplementary groups; a program of somebody else's gets
            # none.
            gid = cfg.gid
            groups = (cfg.gid,)
            if cfg.initgroups:
                with contextlib.suppress(KeyError):  # a number without a name has no other groups
                    groups = tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, cfg.gid))
        base: dict[str, str] = dict(os.environ)
        if options.worker_env_clear:
            base = kept(base, options.worker_env_keep)
        return cls(
            options.pool_cmd,
            child_environment({**base, **cfg.env}, options.pool_cmd),
            os.path.realpath(cfg.chdir),
            uid,
            gid,
            groups,
            # gunicorn's default of 0 is for its own files; for a child it would mean files that anyone may
            # write.
            cfg.umask or -1,
            words_for_launcher(options),
        )

    def __str__(self) -> str:
        return " ".join(self.command)


@dataclass(slots=True, eq=False)
class Child:
    """One process, from its start until it is reaped. Times are time.monotonic()."""

    pool: Pool
    id: int
    pid: int
    slot: int  # its row on the scoreboard
    generation: int
    recipe: Recipe
    process: subprocess.Popen[bytes]
    stdin: int  # where the arbiter writes, -1 once closed
    fd3: int  # where it reads, -1 once closed
    output: Stream
    pidfd: int  # readable once the process has ended; -1 where there is no pidfd
    spawned_at: float
    state: State = State.BOOTING
    seat: int | None = None  # who holds it
    lease: int | None = None
    ready_at: float | None = None
    checked: float = 0.0  # when its last health check was written
    cause: Cause | None = None  # why it was told to leave
    complaint: str = ""  # what was wrong with it, in words
    kill_at: float | None = None  # when SIGTERM has had its time
    killed: bool = False
    settled: bool = False  # the policy has been told that it is gone
    replaced_in: float = 0.0
    features: Feature | None = None  # None: it has not said Ready
    reader: FrameReader = field(default_factory=lambda: FrameReader(MAX_HANDSHAKE))
    replied: bool = False  # to the last health check
    rss: int = 0  # its resident memory in bytes where a limit of it is watched
    drain: bool = False  # somebody has asked for it to be replaced

    def move(self, event: Event) -> None:
        """Go on in its life. ValueError: it cannot, which is a bug."""
        self.state = next_state(self.state, event)

    # --- while the arbiter holds it ------------------------------------------------------------------------

    def ask(self, now: float) -> bool:
        """Write a HealthCheckRequest: whether all of it went in, as it does where no other request is
        unread."""
        self.replied = False
        self.checked = now
        try:
            return os.write(self.stdin, HEALTH_CHECK) == len(HEALTH_CHECK)
        except OSError:
            return False

    def listen(self) -> bool:
        """Take what it says on its way to being ready, or to a health check's answer: whether it is there.

        FrameError: it said something else, or that it is unwell, or closed fd 3; the message says which.
        """
        # In this order: a child that says Ready does so before it reads, so one that has read and has
        # not said it will not say it.
        unread = _bytes_unread(self.stdin)
        while True:
            try:
                data = os.read(self.fd3, MAX_HANDSHAKE)
            except BlockingIOError:
                break
            if not data:
                raise FrameError("it closed fd 3")
            self.reader.feed(data)
            while (payload := self.reader.next_payload()) is not None:
                self._hear(payload)
        if self.features is not None and Feature.HEALTH_REPLY in self.features:
            return self.replied
        return unread == 0

    def _hear(self, payload: bytes) -> None:
        message = decode_response(payload)
        if isinstance(message, Ready) and self.features is None and self.state is State.BOOTING:
            self.features = named(message.features)
        elif isinstance(message, HealthReply) and self.features is not None and not self.replied:
            if not message.ok:
                raise Unwell(message.message)
            self.replied = True
        else:
            raise FrameError(f"it sent a {type(message).__name__} that nobody had asked for")

    def silent(self) -> bool:
        """Whether fd 3 is open and holds nothing, as it must be before the child is lent."""
        try:
            os.read(self.fd3, 1)
        except BlockingIOError:
            return True
        return False

    # --- its end -------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Signal its whole process group; it is ours to signal, since the leader has not been reaped."""
        # Nobody may be left in it; or, on macOS, only the dead.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def has_exited(self) -> bool:
        """Whether it waits to be reaped."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def reap(self) -> int:
        """End what is left of its group, then take its exit status (as os.waitpid gives it). It must have
        exited.

        The other order would signal a group whose number may be another's by then.
        """
        self.signal(signal.SIGKILL)
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            status = 0  # somebody's hook has waited for every process there is
        # Or Popen's destructor would wait for whoever has the number next.
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return status

    def close(self) -> None:
        """Close the arbiter's ends of stdin and fd 3."""
        for fd in (self.stdin, self.fd3):
            if fd >= 0:
                os.close(fd)
        self.stdin = self.fd3 = -1

    def close_pidfd(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def fds(self) -> list[int]:
        """Descriptors of ours: what a forked HTTP worker closes."""
        return [fd for fd in (self.stdin, self.fd3, self.pidfd) if fd >= 0]


class Unwell(FrameError):
    """A health check was answered: not ok."""


@dataclass(frozen=True, slots=True)
class Process:
    """What `start` returns: a process and the arbiter's ends of its pipes."""

    popen: subprocess.Popen[bytes]
    stdin: int
    fd3: int
    output: int
    pidfd: int


def start(recipe: Recipe, file_limit: int | None) -> Process:
    """Start a process of a recipe. file_limit: the soft limit of open files it gets, None: as ours; a limit
    of the recipe's replaces it.

    OSError: there are no more processes or descriptors, or the user may not be changed; nothing is left
    behind.
    """
    fds: list[int] = []
    try:
        stdin_r, stdin_w = _pipe(fds)
        fd3_r, fd3_w = _pipe(fds)
        output_r, output_w = _pipe(fds)
        for fd in (stdin_w, fd3_r, output_r):
            os.set_blocking(fd, False)
        if recipe.user is not None or recipe.group is not None:
            # Whoever opens /dev/fd/3 or /dev/stdout opens the pipe anew, with the rights on its inode.
            for fd in (stdin_r, fd3_w, output_w):
                os.fchown(
                    fd,
                    -1 if recipe.user is None else recipe.user,
                    -1 if recipe.group is None else recipe.group,
                )
        popen = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", LAUNCHER, str(fd3_w), str(os.getpid())),
                _word(file_limit),
                _word(recipe.environment.get("LC_CTYPE")),
                *(_word(recipe.user), _word(recipe.group)),
                ",".join(map(str, recipe.groups)) if recipe.groups else "-",
                *recipe.confinement,
                *("--", *recipe.command),
            ],
            stdin=stdin_r,
            stdout=output_w,
            stderr=output_w,
            pass_fds=(fd3_w,),
            cwd=recipe.directory,
            env=recipe.environment,
            process_group=0,
            umask=recipe.umask,
        )
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    for fd in (stdin_r, fd3_w, output_w):
        os.close(fd)
    try:
        pidfd = os.pidfd_open(popen.pid)
    except (OSError, AttributeError):
        pidfd = -1  # Linux before 5.3, or out of descriptors: the main thread's reaping finds it
    return Process(popen, stdin_w, fd3_r, output_r, pidfd)


def _word(value: int | str | None) -> str:
    return "-" if value is None else str(value)


def _pipe(opened: list[int]) -> tuple[int, int]:
    pair = os.pipe()
    opened += pair
    return pair


def _bytes_unread(pipe: int) -> int:
    """How much of what was written into a pipe has not been read; Linux answers at its writing end too."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


# --- obituaries: the one place that puts a child's life and death into words
# -------------------------------------


def logfmt(message: str, **values: object) -> str:
    """`msg="…" key=value …`, keys with dashes, as the original logs; values with spaces are quoted."""
    parts = [f'msg="{message}"']
    for key, value in values.items():
        text = str(value)
        if not text or any(character in ' "=\n\\' for character in text):
            text = '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        parts.append(f"{key.replace('_', '-')}={text}")
    return " ".join(parts)


def exit_words(status: int) -> dict[str, object]:
    """How a process ended, as fields of its obituary."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = str(number)
        words: dict[str, object] = {"signal": name}
        if os.WCOREDUMP(status):
            words["core"] = "dumped"
        return words
    return {"exit_code": os.WEXITSTATUS(status)}


EXPECTED = RECYCLED | {Cause.RESTART, Cause.REMOVED, Cause.UNUSED, Cause.STOP}
"""Causes that are no fault of anyone's."""

NOTABLE = frozenset({Cause.MEMORY_LIMIT, Cause.DRAINED})
"""Of these, what whoever looks for the reason of a restart wants to know all the same."""


def died_by_itself(child: Child, status: int) -> bool:
    """Whether nobody told it to leave, or it was leaving anyway when it was told since its pipe had
    closed."""
    if child.cause is None:
        return True
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    ours = number == signal.SIGTERM or (number == signal.SIGKILL and child.killed)
    return child.cause is Cause.BROKEN and not ours


def obituary(
    child: Child, status: int, now: float, served: int, tail: list[str], label: Mapping[str, object]
) -> str:
    """The one line about a child's end; its level is for the caller. label: fields that name its pool."""
    values: dict[str, object] = {"worker_pid": child.pid, **label, **exit_words(status)}
    values["age"] = f"{now - child.spawned_at:.1f}s"
    values["requests"] = served
    if died_by_itself(child, status):
        message = "worker died"
        if child.ready_at is None:
            message = "worker died before it was ready"
    else:
        assert child.cause is not None
        message = "worker ended"
        values["cause"] = child.cause.value
        if child.cause in (Cause.MEMORY_LIMIT, Cause.MEMORY_KILL):
            values["rss"] = f"{child.rss / 2**20:.1f}M"
        if child.complaint:
            values["complaint"] = child.complaint
        if child.killed and child.cause in EXPECTED:
            values["killed"] = "it did not leave within worker_request_grace"
    if child.cause not in EXPECTED:
        values["replaced_in"] = f"{child.replaced_in:g}s"
        if not served and tail:
            values["last_output"] = "\n".join(tail[-LAST_LINES:])
    return logfmt(message, **values)


LAST_LINES = 5
"""Lines of a child's last output that its obituary repeats, if it never answered."""


def spawned(child: Child, label: Mapping[str, object]) -> str:
    return logfmt("worker spawned", worker_pid=child.pid, **label)
