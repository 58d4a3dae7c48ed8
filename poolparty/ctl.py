"""The `poolparty-ctl` command: says one command to a server's control socket and shows the answer.

A process of its own, often started from scripts, so it imports neither gunicorn nor psutil. Output goes to
stdout, an error to stderr. Exit status: 0 for OK, 1 for an error, 2 for a command line that cannot be
understood. What needs more than this module (rich for `top`, every option for `completion`) is imported when
it is asked for.
"""

from __future__ import annotations

import errno
import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence

from poolparty import __version__
from poolparty.errors import PoolpartyError
from poolparty.wire.control import COMMANDS, UNKNOWN_COMMAND, Command, join

DEFAULT_SOCKET = "./poolparty.sock"
SOCKET_VARIABLE = "POOLPARTY_CTL_SOCKET"

# What the server is asked for here, again and again.
WATCHING_COMMANDS = (
    Command(
        "top",
        "[-d SECONDS] [--sort COLUMN] [--lines N] [--once]",
        "figures and processes in the terminal, each second",
    ),
)
# What is done here, without a server.
LOCAL_COMMANDS = (
    Command(
        "check",
        "[--echo] [--first] [--timeout SECONDS] -- CMD …",
        "whether the worker CMD keeps the worker protocol",
    ),
    Command("sdk", "[LANGUAGE [--copy DIR]]", "where a language's worker library is; copy it into a folder"),
    Command("completion", "bash|zsh|fish", "a script for the shell that completes our commands"),
    Command("man", "[PAGE]", "a manual page, of poolparty, poolparty-ctl or poolparty-compress"),
)

SOCKET_HELP = f"the server's control socket [${SOCKET_VARIABLE} or else {DEFAULT_SOCKET}]"

HELP_COLUMN = 39
"""Where the help says what a command does."""

USAGE = "usage: poolparty-ctl [--ctl-socket PATH] COMMAND [ARGUMENT …]"


class UsageError(PoolpartyError):
    """The command line cannot be understood."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `poolparty-ctl` command; returns the exit status."""
    # Ends quietly where the reader of a pipe has gone, as other commands do.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except UsageError as error:
        print(f"poolparty-ctl: {error}\n{USAGE}\nTry `poolparty-ctl --help`.", file=sys.stderr)
        return 2
    except PoolpartyError as error:
        print(f"poolparty-ctl: {error}", file=sys.stderr)
        return 1


def run(argv: Sequence[str]) -> int:
    """Do what the command line says. Raises UsageError, PoolpartyError for a server that cannot be asked."""
    path = os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
    words: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--ctl-socket" or argument.startswith("--ctl-socket="):
            _, given, value = argument.partition("=")
            path = value if given else next(arguments, "")
            if not path:
                raise UsageError("--ctl-socket wants the path of a control socket")
        elif words:
            words.append(argument)
        elif argument in ("-h", "--help"):
            print(help_text(), end="")
            return 0
        elif argument == "--version":
            print(f"poolparty-ctl {__version__}")
            return 0
        elif argument.startswith("-"):
            raise UsageError(f"there is no option {argument}")
        else:
            words.append(argument)
    if not words:
        print(help_text(), end="", file=sys.stderr)
        return 2
    if words[0] in _DOERS:
        return _run_here(words)
    if words[0] == "top":
        from poolparty.top.command import main as run_top

        return run_top(words[1:], path)
    if words[0] not in {command.name for command in COMMANDS}:
        raise UsageError(UNKNOWN_COMMAND)
    return ask(path, words)


# Who does what is done here: imported when it is asked for. Each takes the words behind the command's own.
_DOERS = {
    "check": "poolparty.check.command:main",
    "sdk": "poolparty.sdk_files:main",
    "completion": "poolparty.completion:main",
    "man": "poolparty.manual:show",
}
assert list(_DOERS) == [command.name for command in LOCAL_COMMANDS]


def _run_here(words: Sequence[str]) -> int:
    doer: Callable[[Sequence[str]], int] = pkgutil.resolve_name(_DOERS[words[0]])
    return doer(words[1:])


def help_text() -> str:
    """What --help prints; a server's commands come from the table that it answers by."""
    lines, local_lines = (
        [line for command in commands for line in _help_lines(command)]
        for commands in ((*COMMANDS, *WATCHING_COMMANDS), LOCAL_COMMANDS)
    )
    return "\n".join(
        [
            USAGE,
            "",
            "Says one command to a running server and shows the answer.",
            "",
            "commands:",
            *lines,
            "",
            "commands that need no server:",
            *local_lines,
            "",
            "options:",
            f"  --ctl-socket PATH  {SOCKET_HELP}",
            "  --help, --version",
            "",
            "Exit status: 0 if the server says OK, 1 if not, 2 if the command line makes no sense.",
            "",
        ]
    )


def _help_lines(command: Command) -> list[str]:
    """A command with many arguments has a line of its own."""
    said = f"  {command.name} {command.arguments}"
    if len(said) >= HELP_COLUMN:
        return [said, " " * HELP_COLUMN + command.help]
    return [f"{said:{HELP_COLUMN}}{command.help}"]


def ask(path: str, words: Sequence[str]) -> int:
    """Say the command and print its output as it comes; returns the exit status."""
    with connect(path) as server:
        try:
            server.sendall(join(words), socket.MSG_NOSIGNAL)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused: why, stands in the answer
        for line in answer_lines(server):
            if line == b"OK\n":
                return 0
            if line.startswith(b"ERROR: "):
                sys.stderr.buffer.write(b"poolparty-ctl: " + line.removeprefix(b"ERROR: "))
                return 1
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
    if words[0] == "exit":
        return 0
    raise PoolpartyError(f"the server at {path} closed the connection before it had answered: it is stopping")


def connect(path: str, patience: float | None = None) -> socket.socket:
    """A connection to the control socket; PoolpartyError says why there is none. patience: its time limit for
    whatever blocks, in seconds."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.settimeout(patience)
    try:
        server.connect(path)
    except OSError as error:
        server.close()
        raise PoolpartyError(_no_connection(path, error)) from None
    return server


def _no_connection(path: str, error: OSError) -> str:
    elsewhere = f"name the server's socket with --ctl-socket PATH or ${SOCKET_VARIABLE}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"no server has its control socket at {path}; start one there, or {elsewhere}"
    if error.errno == errno.ECONNREFUSED:
        return f"nobody answers at {path}: its server has ended; start it again, or {elsewhere}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"the control socket {path} is for root and the user who runs the server; run this as one of them"
        )
    return f"cannot connect to {path} ({error.strerror or error}); {elsewhere}"


def answer_lines(server: socket.socket) -> Iterator[bytes]:
    """The lines of the answer, each as soon as it is whole."""
    with server.makefile("rb") as lines:
        try:
            yield from lines
        except ConnectionError:
            return


if __name__ == "__main__":
    sys.exit(main())
