"""Every option of Poolparty, declared once; command line, configuration files, help and docs come from here.

Imported in each process that has gunicorn.config (by _poolparty_hook, or by the `poolparty` command), so also
where a plain gunicorn application runs. There a setting of ours only keeps what it is given: an application's
configuration may hold a name like `ctl_socket` for purposes of its own. Values are parsed and checked in
Options.from_cfg, which is called only when the worker class is GWorker. What gunicorn lacks for that is added
to its Config at the end of this file.

Over 400 lines because it is mostly tables: a second file for the texts would part an option from its meaning.
`python -m poolparty.settings` prints docs/settings.md, with --annotated conf/annotated.py.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import ssl
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gunicorn import util
from gunicorn.config import Config, NewSSLContext, PostRequest, PreRequest, Setting, SettingMeta

from poolparty.errors import ConfigError
from poolparty.pool.routing import Route, parse_route

SECTION = "Poolparty"
WORKER_CLASS = "poolparty.GWorker"
APPLICATION = "poolparty.worker.gworker:application"

# PROTOCOL: a frame holds at most 0x7fffffff bytes; what is not body (uri, headers) has 1 MiB of it, which is
# more than gunicorn's limits let through (100 fields of 8,190 bytes by default).
MAX_BODY = 1 << 50
# The bound of the original, which formats no more digits.
MAX_CHILDREN = 10_000_000
# A year: timers of every kind still take it, and whoever wants "never" has it.
MAX_DURATION = 366 * 86_400.0
# Beyond it the kernel's own numbers wrap.
MAX_LIMIT = 2**62
# sun_path is 108 bytes on Linux, one of them the terminating NUL.
MAX_SOCKET_PATH = 107
# Beyond the longest request a stop has to wait for, time to write the answer and to end the children.
GRACE_BEYOND_REQUEST = 5


# Parsers: from the raw value to the checked one, ValueError with the rest of a sentence otherwise.

_UNITS = {"h": (3600, 1), "m": (60, 1), "s": (1, 1), "ms": (1, 10**3), "us": (1, 10**6), "ns": (1, 10**9)}
_UNITS["\u00b5s"] = _UNITS["\u03bcs"] = _UNITS["us"]
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_NUMBER = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")


def parse_duration(value: object) -> float:
    """Seconds, from a number of them or from Go's notation (time.ParseDuration): "50ms", "1m30s", "2us"."""
    if isinstance(value, str):
        text = value.strip()
        unsigned = text[1:] if text.startswith(("+", "-")) else text
        if _NUMBER.fullmatch(unsigned):
            seconds = float(unsigned)
        elif _DURATION.fullmatch(unsigned):
            parts = ((float(number), *_UNITS[unit]) for number, unit in _PART.findall(unsigned))
            seconds = math.fsum(number * up / down for number, up, down in parts)
        else:
            raise ValueError(
                "this is no duration; give a number of seconds, or one with units as in 50ms, 60s or 1m30s"
            )
        if text.startswith("-"):
            seconds = -seconds
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value if isinstance(value, int) and abs(value) > MAX_DURATION else float(value)
    else:
        raise ValueError(
            "this is no duration; give a number of seconds, or a string as in '50ms', '60s' or '1m30s'"
        )
    if seconds < 0:
        raise ValueError("a duration cannot be negative; give 0 or more")
    if not seconds <= MAX_DURATION:  # nan too
        raise ValueError("this is longer than a year, the longest duration there is; give a shorter one")
    return seconds


def positive_duration(value: object) -> float:
    seconds = parse_duration(value)
    if seconds == 0:
        raise ValueError("this has to be longer than zero; give a duration as in 50ms or 60s")
    return seconds


def whole_number(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        number: int | None = None
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,30}", value.strip()):
            number = int(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        if number is None or not low <= number <= high:
            raise ValueError(f"this has to be a whole number from {low:,} to {high:,}")
        return number

    return parse


_SIZE = re.compile(r"([0-9]{1,20})([KMGT]?)i?B?", re.IGNORECASE)


def parse_size(value: object) -> int:
    """Bytes, from a number of them or from a string with a unit (powers of 1024): "512M", "2GiB"."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("this is no size; give a number of bytes, or one with a unit as in 512M or 2G")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


def size_up_to(high: int) -> Callable[[object], int]:
    """parse_size with a bound."""

    def parse(value: object) -> int:
        size = parse_size(int(value) if isinstance(value, str) and value.strip().isdigit() else value)
        if size > high:
            raise ValueError(f"this has to be a size of at most {high:,} bytes")
        return size

    return parse


def parse_command(value: object) -> tuple[str, ...]:
    """A string is split as a shell splits it; a list or tuple is taken as it is."""
    words: list[Any]
    if value is None:
        words = []
    elif isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise ValueError(
                f"this cannot be split into words ({str(error).lower()}); mend the quotes"
            ) from None
    elif isinstance(value, (list, tuple)):
        words = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in value]
    else:
        raise ValueError("a command is a string, or a list of strings")
    for word in words:
        if not isinstance(word, str) or "\0" in word:
            raise ValueError(f"{word!r} cannot be a word of a command; give strings without NUL characters")
    if not words or not words[0]:
        raise ValueError(
            "there is no command to answer requests; give it after `--` to poolparty, or with --pool-cmd, "
            "or as pool_cmd in the configuration file"
        )
    return tuple(words)


def parse_address(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise ValueError("an address is a string: HOST:PORT, unix:PATH or fd://N")
    address = value.strip()
    check_address(address)
    return address


def parse_own_address(value: object) -> tuple[str, int] | str | None:
    """Of a listener of ours: (host, port), or the path of a Unix socket."""
    if value is None or value == "":
        return None
    address = parse_address(value)
    assert address is not None
    parsed = util.parse_address(address)
    if isinstance(parsed, tuple):
        return str(parsed[0]), int(parsed[1])
    if isinstance(parsed, str):
        return parse_socket_path(parsed)
    raise ValueError("this listener is opened by the server itself; give HOST:PORT or unix:PATH")


def check_address(address: str) -> None:
    try:
        parsed = util.parse_address(address)
    except RuntimeError:
        raise ValueError("this is no address; give HOST:PORT, unix:PATH or fd://N") from None
    if isinstance(parsed, tuple) and not 0 <= parsed[1] <= 65535:
        raise ValueError("there is no such port; give one from 0 to 65,535")


def parse_socket_path(value: object) -> str:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError("this is no path; give the file name of the socket")
    path = os.fspath(value)
    if not isinstance(path, str) or "\0" in path:
        raise ValueError("this is no path; give the file name of the socket")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ValueError(
            f"a socket's path has at most {MAX_SOCKET_PATH} bytes; give a shorter one, or a relative one"
        )
    return path


def parse_directory(value: object) -> str | None:
    return None if value is None else parse_path(value)


def parse_path(value: object) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError("this is no path; give the name of a file or directory")
    return path


def parse_paths(value: object) -> tuple[str, ...] | None:
    """A list of paths, or a string with colons between them."""
    if value is None:
        return None
    paths = value.split(":") if isinstance(value, str) else value
    if not isinstance(paths, (list, tuple)) or not paths:
        raise ValueError("this is no list of paths; give at least one, with colons between several")
    return tuple(parse_path(path) for path in paths)


def parse_prefix(value: object) -> str:
    """With the slash at its end that belongs there."""
    if not isinstance(value, str) or not re.fullmatch(r"/[^?#%\x00-\x20\x7f]*", value):
        raise ValueError("this is no prefix of a path; give one that begins with a slash, as /static/")
    return value if value.endswith("/") else value + "/"


def parse_optional_prefix(value: object) -> str | None:
    return None if value is None or value == "" else parse_prefix(value)


def parse_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise ValueError("this is on or off; give True or False")


@dataclass(frozen=True, slots=True)
class PoolTable:
    """One of `pools` as it was written: `settings` are raw values by the names of options."""

    name: str
    routes: tuple[Route, ...]
    settings: dict[str, Any]


DEFAULT_POOL = "default"
"""The pool that the server's own options describe."""

_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

POOLS_OF_GUNICORN = ("chdir", "raw_env")
"""gunicorn's options that each pool may have its own of."""


def parse_pools(value: object) -> tuple[PoolTable, ...]:
    """By name what differs from the server's own options, and the routes."""
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise ValueError('this is no dict of pools; give one as {"api": {"routes": ["/api"]}}')
    taken: dict[Route, str] = {}
    return tuple(_pool_table(name, table, taken) for name, table in value.items())


def _pool_table(name: object, table: object, taken: dict[Route, str]) -> PoolTable:
    """taken: the routes of the pools before it, and whose they are."""
    if not isinstance(name, str) or not _POOL_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a pool; give letters, digits, dashes and underscores")
    if name == DEFAULT_POOL:
        raise ValueError(
            f"the pool {name} is what the server's own options describe; name this one otherwise"
        )
    if not isinstance(table, dict):
        raise ValueError(f'the pool {name} is no dict; give one as {{"routes": ["/{name}"]}}')
    own = {option.name for option in OPTIONS if option.each_pool}.union(POOLS_OF_GUNICORN)
    for key in table:
        if key != "routes" and key not in own:
            what = "is the server's alone" if key in {option.name for option in OPTIONS} else "is no option"
            raise ValueError(
                f"the pool {name} has {key!r}, which {what}; it may have routes, {', '.join(sorted(own))}"
            )
    routes = table.get("routes")
    if not isinstance(routes, (list, tuple)) or not routes:
        raise ValueError(
            f'the pool {name} has no list of routes, so nothing would reach it; give one as ["/{name}"]'
        )
    parsed = tuple(_routes_of(name, routes))
    for route in parsed:
        if taken.setdefault(route, name) != name:
            raise ValueError(
                f"the pools {taken[route]} and {name} have the same route {route}; leave it with one"
            )
    return PoolTable(name, parsed, {key: table[key] for key in table if key != "routes"})


def _routes_of(name: str, routes: Sequence[object]) -> Iterator[Route]:
    for text in routes:
        try:
            yield parse_route(text)
        except ValueError as error:
            raise ValueError(f"the pool {name}: {error}") from None


UNLIMITED = -1
"""A limit that is lifted; resource.RLIM_INFINITY has the same value."""


def limit(parse: Callable[[object], int], low: int) -> Callable[[object], int | None]:
    """Of a resource: None where it stays what the server has, UNLIMITED for "unlimited"."""

    def parse_limit(value: object) -> int | None:
        if value is None:
            return None
        if isinstance(value, str) and value.strip().lower() in ("unlimited", "infinity"):
            return UNLIMITED
        number = parse(value)
        if number < low:
            raise ValueError(f"with less than {low:,} no program starts; give more, or leave it out")
        if number > MAX_LIMIT:
            raise ValueError('there is no such limit; give a lower one, or "unlimited"')
        return number

    return parse_limit


def whole_seconds(value: object) -> int:
    """A duration, rounded up: the kernel counts no fractions of a second."""
    return math.ceil(parse_duration(value))


def parse_oom_score_adj(value: object) -> int | None:
    return None if value is None else whole_number(-1000, 1000)(value)


_PATTERN = re.compile(r"[^=*\0]+\*?|\*")


def parse_names(value: object) -> tuple[str, ...]:
    """Names of variables, a `*` at the end standing for any; a list, or a string with commas between."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        raise ValueError("this is no list of variables' names; give their names with commas between")
    for name in names:
        if not isinstance(name, str) or (name and not _PATTERN.fullmatch(name)):
            raise ValueError(f"{name!r} is no variable's name; give such as HOME or LC_*")
    return tuple(name for name in names if name)


def parse_group(value: object) -> str | None:
    """A group's name or number; it is looked up when it is used."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ValueError("this is no group; give its name or its number")
    return value.strip() if isinstance(value, str) else None


@dataclass(frozen=True)
class Option:
    """One row: a raw default, how a raw value is parsed, what to tell a user (a short sentence, then why).

    meta: what the help calls the value; None for a flag that takes none.
    """

    name: str
    default: str | int | None
    parse: Callable[[Any], Any]
    meta: str | None
    text: str
    example: Any = None  # where the default is None, for conf/annotated.py
    each_pool: bool = False  # whether each of `pools` may have its own
    in_file_only: bool = False  # no word of a command line could say it

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def short(self) -> str:
        return self.text.split("\n\n")[0]


OPTIONS = (
    Option(
        "pool_cmd", None, parse_command, "CMD", example="python3 examples/app.py",
        each_pool=True,
        text="""The command whose processes answer the requests.

        A string is split into words as a shell splits it, but no shell runs it; in a configuration file it
        can also be a list of words, which is taken as it is. With `poolparty` everything after the first `--`
        is the command. The program is looked for on the PATH its children get (`raw_env` included), a
        relative path from `chdir`.""",
    ),
    Option(
        "listen_address", None, parse_address, "ADDRESS", example="127.0.0.1:8080",
        text="""The address to serve on: HOST:PORT, unix:PATH or fd://N.

        The original's name for one `bind` of gunicorn, which can be given several times. Of the two the one
        given last counts, where a configuration file comes first, GUNICORN_CMD_ARGS second and the command
        line last. With neither, `poolparty` serves on 127.0.0.1:8080 (0.0.0.0:$PORT where PORT is set, as
        gunicorn does) and `gunicorn` on its own default.""",
    ),
    Option(
        "ctl_socket", "./poolparty.sock", parse_socket_path, "PATH",
        text="""The control socket, for poolparty-ctl and for whatever speaks to a Unix socket.

        Relative to `chdir`. Only the user that runs the server may use it (mode 0600), unless
        `ctl_socket_group` is set. A file left behind by a crash is replaced; a socket that a running server
        answers on is not.""",
    ),
    Option(
        "ctl_socket_group", None, parse_group, "GROUP", example="operators",
        text="""A group whose members may use the control socket too (mode 0660).

        A name or a number. Whoever may use the socket can restart, add and end children, and see who is
        connected; it runs no commands and reads no files. A server that root does not run has to be in the
        group itself.""",
    ),
    Option(
        "admin_address", None, parse_own_address, "ADDRESS", example="127.0.0.1:8081",
        text="""Where the status page, /health, /ready and /metrics are served: HOST:PORT or unix:PATH.

        An address of its own, served by the master, so it answers when the HTTP workers do not. On loopback
        or a Unix socket (mode 0600) the status page has buttons to restart, add and remove children; on any
        other address it only shows. Off by default. docs/monitoring.md says more.""",
    ),
    Option(
        "admin_prefix", None, parse_optional_prefix, "PATH", example="/-/poolparty/",
        text="""A path of the public listeners below which the same pages are served, without the buttons.

        For platforms that give an application one port. Whoever can reach the port sees them, requests'
        targets included, so have the proxy in front keep strangers away. Off by default; what is below it
        never reaches a child.""",
    ),
    Option(
        "agent_address", None, parse_own_address, "ADDRESS", example="127.0.0.1:8082",
        text="""Where HAProxy's agent check is answered: HOST:PORT or unix:PATH.

        Each connection is told one line: a weight by the share of free children, at most 10 % while the
        children are being restarted; `drain` while the server stops; `down` while it could serve nothing.
        Off by default. docs/monitoring.md says more.""",
    ),
    Option(
        "slowlog_timeout", "0", parse_duration, "DURATION",
        each_pool=True,
        text="""A request that runs longer is logged while it runs, 0 for never.

        One line a request: method, target, age, the child's pid, the processor time it used and what it waits
        for; and, where its worker library can, the script's own stack. docs/monitoring.md says more.""",
    ),
    Option(
        "request_ids", False, parse_flag, None,
        text="""Give every request an X-Request-Id that has none from a trusted proxy.

        Children see it as a header, and it stands in the slow log and, with access_log_json, in the access
        log. One that a proxy of `forwarded_allow_ips` sends is passed on, if it is at most 128 letters,
        digits and characters of `-_.:/+=@`; anybody else's is replaced. Without this, the field is passed on
        like any other.""",
    ),
    Option(
        "access_log_json", False, parse_flag, None,
        text="""Write the access log as one JSON object a line, in place of `access_log_format`.

        With how long the request waited for a child and how long that took, the child's pid, and the ids in
        X-Request-Id and traceparent. It needs `accesslog`.""",
    ),
    Option(
        "min_pool_size", 1, whole_number(0, MAX_CHILDREN - 1), "INT",
        each_pool=True,
        text="""Children that are kept however little there is to do.

        They are started at once. With 0 the first request after a quiet time waits for a child to start.""",
    ),
    Option(
        "max_pool_size", 1, whole_number(1, MAX_CHILDREN - 1), "INT",
        each_pool=True,
        text="""Children there may be at once, whatever the load.

        A child answers one request at a time, so this is also how many requests run at once. Memory is
        usually what bounds it: children times what one of them needs at its largest.""",
    ),
    Option(
        "pools", None, parse_pools, "POOLS", in_file_only=True,
        example={"reports": {"routes": ["/reports", "reports.example.com/"], "max_pool_size": 2}},
        text="""Further pools, each with its own children, for requests to certain hosts or paths.

        A dict: the name of each pool, and another dict with its `routes` and whatever of its options differs
        from the server's. `/api` is the route of that path and of all below it, `api.example.com/` that of a
        host, `api.example.com/v2` of both; the host's own routes come first, then the longest path. What no
        route names goes to the pool `default`, which the server's own options describe. docs/pools.md says
        more. In a configuration file only.""",
    ),
    Option(
        "total_pool_size", 0, whole_number(0, MAX_CHILDREN - 1), "INT",
        text="""Children there may be at once in all `pools` together, 0 for the sum of their maxima.

        Each pool's min_pool_size is kept free for it; the rest goes to the pool that needs it first, and
        comes back after its worker_attrition_delay.""",
    ),
    Option(
        "total_memory_limit", 0, parse_size, "BYTES",
        text="""Resident memory of all children together above which no pool grows, 0 for no limit.

        Above it, children that are idle leave, one a second, down to each pool's min_pool_size. In bytes, or
        with a unit as in 512M or 2G.""",
    ),
    Option(
        "worker_spawn_timeout", "50ms", positive_duration, "DURATION",
        each_pool=True,
        text="""How long a request waits for a free child before one is started for it.

        Below the maximum only. Children that are starting already count, so a short burst starts few. Shorter
        follows a rising load faster; longer saves starts when requests merely overlap.""",
    ),
    Option(
        "worker_rendezvous_timeout", "60s", positive_duration, "DURATION",
        each_pool=True,
        text="""How long a request waits for any child before it is answered 503.

        Counted from the moment the request was read. A client, or the proxy in front, that gives up earlier
        is noticed and its request forgotten, so this only bounds how long the patient wait.""",
    ),
    Option(
        "worker_request_timeout", "60s", positive_duration, "DURATION",
        each_pool=True,
        text="""How long a child may take for one request before it is ended and the request answered 504.

        Set it above the slowest answer that is not a fault. It is also what a stop waits for: see gunicorn's
        `graceful_timeout`, which becomes this plus 5 seconds unless it is set.""",
    ),
    Option(
        "worker_request_grace", "5s", parse_duration, "DURATION",
        each_pool=True,
        text="""How long a child that has to end may take, from SIGTERM to SIGKILL.

        After a request time-out, at a restart and at a stop. With 0 it is killed at once. A child that
        handles SIGTERM can roll back a transaction in this time; one that does not handle it ends at once
        anyway.""",
    ),
    Option(
        "stream_cancel_timeout", "5s", parse_duration, "DURATION",
        each_pool=True,
        text="""How long a child may go on with a streamed answer whose client has left; then it is ended.

        A library that looks for it learns at once that the answer is not wanted and ends it, and its child
        takes the next request; for one that does not, this is how long the child is lost to others.""",
    ),
    Option(
        "worker_restart_delay", "1s", parse_duration, "DURATION",
        each_pool=True,
        text="""How long to wait before a child that died without ever answering is started again.

        Doubled at each further such death, up to 30 seconds, so that a program that cannot start does not eat
        the machine. A child that had answered a request is replaced at once.""",
    ),
    Option(
        "worker_boot_timeout", "60s", positive_duration, "DURATION",
        each_pool=True,
        text="""How long a child may take from its start until it is ready for requests.

        It is ready when it says so, or, written for version 1 of the protocol, when it has read its first
        message. One that takes longer is ended and counts as dead before its first answer.""",
    ),
    Option(
        "worker_health_check_interval", "120s", positive_duration, "DURATION",
        each_pool=True,
        text="""How often a child with nothing to do is asked whether it is well.

        A child that is busy shows by its answers that it lives, and is not asked.""",
    ),
    Option(
        "worker_health_check_timeout", "10s", positive_duration, "DURATION",
        each_pool=True,
        text="""How long a child may take for a health check before it is ended and replaced.

        A child of version 1 of the protocol answers nothing; it has to have read the question in this
        time.""",
    ),
    Option(
        "worker_attrition_delay", "120s", positive_duration, "DURATION",
        each_pool=True,
        text="""How long the pool keeps children that the load no longer needs.

        Children beyond the most that were busy at once in this window, plus spare_workers, are retired, down
        to min_pool_size. Longer than the pauses between bursts saves starting them again.""",
    ),
    Option(
        "worker_restart_surge", 1, whole_number(0, MAX_CHILDREN - 1), "INT",
        each_pool=True,
        text="""How many children beyond the pool's size a rolling restart may start at a time.

        Each new one has to be ready before an old one is retired. With 0, for machines without the memory for
        one more, an old one goes first; the pool is then one short while its successor starts.""",
    ),
    Option(
        "spare_workers", 0, whole_number(0, MAX_CHILDREN - 1), "INT",
        each_pool=True,
        text="""Idle children kept beyond what the load needed lately.

        They catch the next burst without a start's wait. At most max_pool_size.""",
    ),
    Option(
        "worker_max_requests", 0, whole_number(0, 2**53), "INT",
        each_pool=True,
        text="""After how many answers a child is replaced, 0 for never.

        A remedy for leaks that nobody can mend. Whatever the limit, a child is replaced while it is idle, one
        child at a time, and only when its successor is ready (see worker_restart_surge).""",
    ),
    Option(
        "worker_max_requests_jitter", 0, whole_number(0, 2**53), "INT",
        each_pool=True,
        text="""Up to how many answers more than worker_max_requests each child may give, chosen at its start.

        So that the children of a pool, which started together, are not all due together.""",
    ),
    Option(
        "worker_max_age", "0", parse_duration, "DURATION",
        each_pool=True,
        text="""At what age a child is replaced, 0 for never.

        Counted from its start. For what goes stale in a process: credentials, time zones, caches.""",
    ),
    Option(
        "worker_idle_timeout", "0", parse_duration, "DURATION",
        each_pool=True,
        text="""After how long without a request a child is replaced, 0 for never.

        For connections to databases and the like that the other side closes when nothing happens. To have
        fewer children when there is little to do, see worker_attrition_delay.""",
    ),
    Option(
        "worker_memory_limit", 0, parse_size, "BYTES",
        each_pool=True,
        text="""Above which resident memory a child is replaced after its request, 0 for never.

        In bytes, or with a unit as in 512M or 2G (powers of 1024). Looked at once a second.""",
    ),
    Option(
        "worker_memory_kill", 0, parse_size, "BYTES",
        each_pool=True,
        text="""Above which resident memory a child is killed at once, 0 for never.

        Its request is answered 502, or tried on another child if it is a GET or HEAD. The last resort before
        the kernel chooses a process to kill; set it well above worker_memory_limit.""",
    ),
    Option(
        "worker_env_clear", False, parse_flag, None,
        each_pool=True,
        text="""Children get no variable of the server's environment but those of worker_env_keep.

        For secrets that the server was given and the application is not to see, and for children that behave
        the same whoever started the server. What `raw_env` sets they get all the same, and what leads them to
        our worker libraries.""",
    ),
    Option(
        "worker_env_keep",
        "PATH,LANG,LANGUAGE,LC_*,TZ,HOME,USER,LOGNAME,SHELL,TMPDIR",
        parse_names, "NAMES",
        each_pool=True,
        text="""The variables that children keep where worker_env_clear is set.

        A list, or a string with commas between; a `*` at the end of a name stands for any that begin so.""",
    ),
    Option(
        "worker_rlimit_as", None, limit(parse_size, 32 << 20), "BYTES", example="2G",
        each_pool=True,
        text="""How much address space a child may have (RLIMIT_AS).

        Its next allocation fails then, which most interpreters end with an error of their own. Address space
        is more than memory: a program with threads, or one that maps files, needs a multiple of what it uses.
        For what it really uses see worker_memory_limit.""",
    ),
    Option(
        "worker_rlimit_nofile", None, limit(whole_number(0, 2**31), 16), "INT", example=1024,
        each_pool=True,
        text="""How many files and sockets a child may have open (RLIMIT_NOFILE).

        Four of them are the pipes it starts with. By default as many as the server itself might when it was
        started; the server raises its own limit as far as it may.""",
    ),
    Option(
        "worker_rlimit_cpu", None, limit(whole_seconds, 1), "DURATION", example="1h",
        each_pool=True,
        text="""How much processor time a child may use in its whole life (RLIMIT_CPU), in whole seconds.

        Then it is sent SIGXCPU, which ends it, and five seconds of processor time later SIGKILL. The request
        it ran fails with it, so this is a last resort; worker_request_timeout bounds a request,
        worker_max_age a life.""",
    ),
    Option(
        "worker_rlimit_core", None, limit(parse_size, 0), "BYTES", example=0,
        each_pool=True,
        text="""How large a core dump a child may leave (RLIMIT_CORE), 0 for none.

        A dump holds what the child had in memory: requests, passwords, keys.""",
    ),
    Option(
        "worker_nice", 0, whole_number(-20, 19), "INT",
        each_pool=True,
        text="""How much nicer than the server the children are, as the command nice counts.

        With a few, HTTP workers and control socket stay quick on a machine whose processors the children
        fill. Only root may go below 0.""",
    ),
    Option(
        "worker_no_new_privs", False, parse_flag, None,
        each_pool=True,
        text="""Children, and what they start, gain no rights by running a program (no_new_privs).

        A setuid program such as sudo or ping then runs as the child's own user. Nothing else changes, so it
        is worth setting wherever no child needs one. Linux only.""",
    ),
    Option(
        "worker_oom_score_adj", None, parse_oom_score_adj, "INT", example=500,
        each_pool=True,
        text="""Which the kernel ends first when the machine is out of memory: from -1000 (never) to 1000.

        With a few hundred for the children the server itself survives them and starts new ones. Only root may
        go below what the server has. Linux only.""",
    ),
    Option(
        "pool_prefetch", 4, whole_number(1, 64), "INT",
        each_pool=True,
        text="""Requests that may be written to one child at once, the one it runs included.

        A child that finds its next request in its pipe is spared a sleep, which is worth half of the
        throughput of quick answers. It happens only for GET and HEAD, only while no child is idle, and only
        as long as fewer than 1 in 500 answers take more than 2 ms. With 1 it never happens.""",
    ),
    Option(
        "response_buffer_size", 1_048_576, whole_number(65_536, 0x7FFFFFFF), "BYTES",
        text="""How much of an answer is kept for a slow client before its child has to wait for it.

        An answer that fits frees its child at once. This times the connections is what slow clients can make
        one HTTP worker hold.""",
    ),
    Option(
        "request_read_timeout", "60s", positive_duration, "DURATION",
        text="""How long a client may take to send one request, head and body, before it is answered 408.

        From its first byte. A request is read whole before a child is asked, so a slow client holds no child.
        Waiting between requests is gunicorn's `keepalive`.""",
    ),
    Option(
        "request_write_timeout", "60s", positive_duration, "DURATION",
        text="""How long a client may take to receive one answer before its connection is closed.

        Without it a client that stops reading would hold its connection, and what is buffered for it, for
        ever.""",
    ),
    Option(
        "request_backlog", 1024, whole_number(1, 1_000_000), "INT",
        each_pool=True,
        text="""Requests that may wait for a child in one HTTP worker; one more is answered 503 at once.

        A queue longer than the pool answers within its clients' patience only wastes their time. Connections
        that have not been accepted are gunicorn's `backlog`, open ones its `worker_connections`.""",
    ),
    Option(
        "max_request_body_size", 4_194_304, size_up_to(MAX_BODY), "SIZE",
        each_pool=True,
        text="""The largest request body; a larger one is answered 413.

        Bytes, or with a unit: `20M`, `4G`. What goes beyond request_spool_size waits in a file, not in
        memory. A child whose worker library does not announce `body-file` gets the body in a frame, which
        holds just under 2 GiB.""",
    ),
    Option(
        "request_spool_size", 1_048_576, parse_size, "SIZE",
        text="""Up to this size a request body is held in memory; a larger one goes to a file as it comes.

        It is kept until its request is answered: this times the requests at once has to fit in memory.""",
    ),
    Option(
        "request_spool_dir", None, parse_directory, "DIRECTORY", example="/var/spool/app",
        text="""Where those files are made; by default where the system has its temporary files (TMPDIR).

        On many systems /tmp is in memory: name a directory on a disk where uploads are large. A child that
        announces `body-file` is given the file's path, and may link it elsewhere to keep it: it is removed
        when the request is answered. Where no room is left a client is answered 507.""",
    ),
    Option(
        "static_root", None, parse_directory, "DIRECTORY", example="/srv/app/static",
        text="""A directory whose files are served below static_url_prefix, before any child is asked.

        Relative to `chdir`. Hidden files, and links that lead out of the directory, are not served; a
        directory has no page. docs/static-files.md says more.""",
    ),
    Option(
        "static_url_prefix", "/static/", parse_prefix, "PATH",
        text="""Where the files of static_root appear.

        What is below it never reaches a child, not even if there is no such file.""",
    ),
    Option(
        "static_compress", False, parse_flag, None,
        text="""Send static files compressed to clients that can take it.

        A copy beside a file (`app.css.br`, `app.css.gz`), as the command `poolparty-compress` makes them,
        is used if it is not older than the file; otherwise one is made at first use, in static_cache_dir.
        Without this, files are sent as they are.""",
    ),
    Option(
        "static_no_brotli", False, parse_flag, None,
        text="""Compress static files by gzip only.

        Brotli makes them smaller, and browsers take it over HTTPS alone.""",
    ),
    Option(
        "static_cache_dir", None, parse_directory, "DIRECTORY", example="/var/cache/poolparty",
        text="""Where the compressed copies of static files are kept that are made at first use.

        It is made if it is missing, and has to be one that HTTP workers can write. By default it is a
        directory of the user's own in the temporary one; nothing is lost with it but the time to make
        them again. It is kept below 512 MiB.""",
    ),
    Option(
        "sendfile_root", None, parse_directory, "DIRECTORY", example="/srv/app/private",
        text="""A directory whose files are sent for a child that names one in its answer.

        A child names it by the header X-Sendfile, with a path below the directory, or X-Accel-Redirect, and
        is free at once. Without this, both headers are passed on as they are. Relative to `chdir`.
        docs/sendfile.md says more.""",
    ),
    Option(
        "reload_paths", None, parse_paths, "PATHS", example=["app.py", "lib", "templates"],
        text="""What is watched with gunicorn's `reload`: files and directories, separated by colons.

        Relative to `chdir`. By default the files named in the command, and the working directory; gunicorn's
        `reload_extra_files` come on top. Hidden files, logs, sockets, databases and the like are left out.
        For development alone: see docs/development.md.""",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """The options, parsed and checked; durations are seconds. A field for each row of OPTIONS."""

    pool_cmd: tuple[str, ...]
    listen_address: str | None
    ctl_socket: str
    ctl_socket_group: str | None
    admin_address: tuple[str, int] | str | None
    admin_prefix: str | None
    agent_address: tuple[str, int] | str | None
    slowlog_timeout: float
    request_ids: bool
    access_log_json: bool
    min_pool_size: int
    max_pool_size: int
    pools: tuple[PoolTable, ...]
    total_pool_size: int
    total_memory_limit: int
    worker_spawn_timeout: float
    worker_rendezvous_timeout: float
    worker_request_timeout: float
    worker_request_grace: float
    stream_cancel_timeout: float
    worker_restart_delay: float
    worker_boot_timeout: float
    worker_health_check_interval: float
    worker_health_check_timeout: float
    worker_attrition_delay: float
    worker_restart_surge: int
    spare_workers: int
    worker_max_requests: int
    worker_max_requests_jitter: int
    worker_max_age: float
    worker_idle_timeout: float
    worker_memory_limit: int
    worker_memory_kill: int
    worker_env_clear: bool
    worker_env_keep: tuple[str, ...]
    worker_rlimit_as: int | None
    worker_rlimit_nofile: int | None
    worker_rlimit_cpu: int | None
    worker_rlimit_core: int | None
    worker_nice: int
    worker_no_new_privs: bool
    worker_oom_score_adj: int | None
    pool_prefetch: int
    response_buffer_size: int
    request_read_timeout: float
    request_write_timeout: float
    request_backlog: int
    max_request_body_size: int
    request_spool_size: int
    request_spool_dir: str | None
    static_root: str | None
    static_url_prefix: str
    static_compress: bool
    static_no_brotli: bool
    static_cache_dir: str | None
    sendfile_root: str | None
    reload_paths: tuple[str, ...] | None

    @classmethod
    def from_cfg(cls, cfg: Config) -> Options:
        """Reads no file and no environment: any process may call it. Raises ConfigError."""
        values: dict[str, Any] = {}
        for option in OPTIONS:
            raw = cfg.settings[option.name].get()
            try:
                values[option.name] = option.parse(raw)
            except ValueError as error:
                raise ConfigError(complaint(option.name, raw, str(error))) from None
        options = cls(**values)
        top = options.max_pool_size
        for name in ("min_pool_size", "spare_workers"):
            if getattr(options, name) > top:
                wrong = f"this is more than max_pool_size = {top}; lower the one or raise the other"
                raise ConfigError(complaint(name, getattr(options, name), wrong))
        if 0 < options.worker_memory_kill <= options.worker_memory_limit:
            wrong = f"this has to be more than worker_memory_limit = {options.worker_memory_limit}; raise it"
            raise ConfigError(complaint("worker_memory_kill", options.worker_memory_kill, wrong))
        return options


def complaint(name: str, value: object, wrong: str) -> str:
    """The one shape of a sentence about an option; the value is left out where there is none to print, or
    where it is a table that may hold passwords beside what is wrong."""
    if value is None or isinstance(value, dict):
        return f"{name}: {wrong}."
    shown = getattr(value, "__qualname__", None) if callable(value) else repr(value)
    if shown is None or len(shown) > 200:
        return f"{name}: {wrong}."
    return f"{name} = {shown}: {wrong}."


# gunicorn's own options, where GWorker is not what they were made for.


@dataclass(frozen=True)
class Refusal:
    """An option that would mislead if it were accepted: `accepted` tells the values that ask for nothing."""

    name: str
    accepted: Callable[[Any], bool]
    why: str


def _unset(value: object) -> bool:
    return not value


def _is(*values: object) -> Callable[[Any], bool]:
    return lambda value: value in values


def _default_hook(setting: Any) -> Callable[[Any], bool]:
    return lambda value: value is setting.default


_LLHTTP = (
    "GWorker's parser has no such leniency, which would let requests be smuggled past a proxy; leave it out"
)
_DIRTY = "the pool takes the place of gunicorn's dirty arbiter; leave it out"
_WSGI_HOOK = "the hook is given a WSGI request, and there is none; use the access log, or leave it out"
_PASTE = "PasteDeploy describes a WSGI application, and the requests go to pool_cmd; leave it out"

REFUSED = (
    Refusal("wsgi_app", _is(None), "the requests go to pool_cmd, not to a WSGI application; leave it out"),
    Refusal("workers", lambda n: n >= 1, "without an HTTP worker nothing is served; give 1 or more"),
    Refusal("worker_connections", lambda n: n >= 1, "no connection could be accepted; give 1 or more"),
    Refusal(
        "threads",
        lambda n: n <= 1,
        "an HTTP worker is one event loop; raise max_pool_size to run more requests at once",
    ),
    Refusal(
        "loglevel",
        lambda level: level is None or level.lower() in {"debug", "info", "warning", "error", "critical"},
        "there is no such level; give debug, info, warning, error or critical",
    ),
    Refusal("max_requests", _unset, "HTTP workers run none of your code and need no recycling; leave it out"),
    Refusal(
        "preload_app",
        _unset,
        "children are programs of their own and cannot share what is loaded; leave it out",
    ),
    Refusal("paste", _is(None), _PASTE),
    Refusal("raw_paste_global_conf", _unset, _PASTE),
    Refusal("pre_request", _default_hook(PreRequest), _WSGI_HOOK),
    Refusal("post_request", _default_hook(PostRequest), _WSGI_HOOK),
    Refusal(
        "protocol", _is("http", None), "GWorker speaks HTTP; use nginx's proxy_pass in place of uwsgi_pass"
    ),
    Refusal(
        "http_protocols", _is(["h1"]), "GWorker speaks HTTP/1.1 only; have a proxy in front speak HTTP/2"
    ),
    Refusal("http2_cleartext", _is("off"), "GWorker speaks HTTP/1.1 only; leave it out"),
    Refusal("http_parser", _is("auto"), "GWorker has a parser of its own; leave it out"),
    Refusal(
        "root_path", _unset, "children see the path as the client sent it; have the proxy in front rewrite it"
    ),
    Refusal("permit_obsolete_folding", _unset, _LLHTTP),
    Refusal("strip_header_spaces", _unset, _LLHTTP),
    Refusal("permit_unconventional_http_method", _unset, _LLHTTP),
    Refusal("permit_unconventional_http_version", _unset, _LLHTTP),
    Refusal("casefold_http_method", _unset, "methods reach a child as the client sent them; leave it out"),
    Refusal("dirty_apps", _unset, _DIRTY),
    Refusal("dirty_workers", _unset, _DIRTY),
)
# Of the refused, those that are refused at an odd value only, and stay in `poolparty --help`.
REFUSED_AT_ODD_VALUES = frozenset({"loglevel", "workers", "worker_connections"})

# Accepted, and nothing depends on them: they refine what is refused, or serve worker classes and parsers not
# in use.
WITHOUT_EFFECT = frozenset(
    (
        "asgi_disconnect_grace_period",
        "asgi_lifespan",
        "asgi_loop",
        "dirty_graceful_timeout",
        "dirty_post_fork",
        "dirty_threads",
        "dirty_timeout",
        "dirty_worker_exit",
        "dirty_worker_init",
        "do_handshake_on_connect",
        "http2_initial_window_size",
        "http2_max_concurrent_streams",
        "http2_max_frame_size",
        "http2_max_header_list_size",
        "max_requests_jitter",
        "on_dirty_starting",
        "sendfile",
        "ssl_version",
        "suppress_ragged_eofs",
        "tmp_upload_dir",
        "uwsgi_allow_ips",
        "websocket_max_message_size",
    )
)


# Checks of the whole: in the master only, at the start and at each reload, before anything is changed.


def serves_a_pool(cfg: Config) -> bool:
    """Whether the worker class is GWorker or derived from it; imports nothing to find out."""
    worker_class = cfg.settings["worker_class"].get()
    if isinstance(worker_class, str):
        return worker_class in (WORKER_CLASS, "poolparty.worker.gworker.GWorker")
    bases = getattr(worker_class, "__mro__", ())
    return any(base.__module__ == "poolparty.worker.gworker" and base.__name__ == "GWorker" for base in bases)


def prepare(cfg: Config) -> Options:
    """Checks what GWorker needs; sets `bind` and `graceful_timeout` from our options. Raises ConfigError."""
    for refusal in REFUSED:
        if refusal.name in cfg.settings:
            value = cfg.settings[refusal.name].get()
            if not refusal.accepted(value):
                raise ConfigError(complaint(refusal.name, value, refusal.why))
    from poolparty.arbiter.confinement import check_rights  # the master's alone
    from poolparty.pools import of_pool, pool_configs

    options = Options.from_cfg(cfg)
    _set_bind(cfg, options)
    pools = pool_configs(cfg)
    for pool in pools:
        try:
            _check_program(pool.cfg, pool.options)
            check_rights(pool.options)
        except ConfigError as error:
            raise of_pool(pool.name, error) from None
    for name in ("static_root", "sendfile_root"):
        _check_root(cfg, name, getattr(options, name))
    if options.request_spool_dir is not None:
        _check_spool_dir(cfg, options.request_spool_dir)
    heartbeats = cfg.settings["worker_tmp_dir"].get()
    if heartbeats is not None and not os.access(heartbeats, os.W_OK | os.X_OK):
        wrong = "no file can be made there; give a directory that can be written, as /dev/shm"
        raise ConfigError(complaint("worker_tmp_dir", heartbeats, wrong))
    if cfg.settings["certfile"].get() or cfg.settings["keyfile"].get():
        _check_tls(cfg)
    if cfg.settings["statsd_host"].get() is not None:
        from poolparty.arbiter.statsd_sender import Target  # with prometheus_client, for those who want it

        Target.from_cfg(cfg)
    if "graceful_timeout" not in _given(cfg):
        longest = max(pool.options.worker_request_timeout for pool in pools)
        enough = math.ceil(longest) + GRACE_BEYOND_REQUEST
        cfg.settings["graceful_timeout"].set(max(enough, cfg.settings["graceful_timeout"].get()))
    return options


def _set_bind(cfg: Config, options: Options) -> None:
    given = _given(cfg)
    if options.listen_address is not None and given.get("listen_address", 0) >= given.get("bind", 0):
        cfg.settings["bind"].set([options.listen_address])
    for address in cfg.settings["bind"].get():
        try:
            check_address(address)
        except ValueError as error:
            raise ConfigError(complaint("bind", address, str(error))) from None


def _check_program(cfg: Config, options: Options) -> None:
    try:
        path = cfg.env.get("PATH", os.environ.get("PATH", os.defpath))
    except RuntimeError:
        raise ConfigError(
            complaint("raw_env", cfg.settings["raw_env"].get(), "give each as NAME=value")
        ) from None
    program = options.pool_cmd[0]
    if not os.path.dirname(program):
        if shutil.which(program, path=path) is None:
            wrong = f"no program {program} is on the PATH; install it, or give its path"
            raise ConfigError(complaint("pool_cmd", shlex.join(options.pool_cmd), wrong))
        return
    program = os.path.normpath(os.path.join(cfg.settings["chdir"].get(), program))
    if not os.path.exists(program):
        wrong = f"there is no file {program}; give the path of a program"
    elif os.path.isdir(program) or not os.access(program, os.X_OK):
        wrong = f"{program} is not executable; give a program, or the interpreter and then the file"
    else:
        return
    raise ConfigError(complaint("pool_cmd", shlex.join(options.pool_cmd), wrong))


def _check_root(cfg: Config, name: str, root: str | None) -> None:
    if root is None:
        return
    folder = os.path.join(cfg.settings["chdir"].get(), root)
    if not os.path.isdir(folder):
        wrong = f"there is no directory {os.path.normpath(folder)}; give the one that holds the files"
        raise ConfigError(complaint(name, root, wrong))


def _check_spool_dir(cfg: Config, directory: str) -> None:
    folder = os.path.join(cfg.settings["chdir"].get(), directory)
    if not os.path.isdir(folder):
        wrong = f"there is no directory {os.path.normpath(folder)}; make it, for the user that serves"
    elif os.geteuid() == cfg.settings["user"].get() and not os.access(folder, os.W_OK | os.X_OK):
        wrong = "no file can be made there; give a directory that can be written"
    else:
        return
    raise ConfigError(complaint("request_spool_dir", directory, wrong))


def _check_tls(cfg: Config) -> None:
    """Loads the certificates once: a bad one is a sentence here, and a trace in every HTTP worker later."""
    certfile, keyfile = cfg.settings["certfile"].get(), cfg.settings["keyfile"].get()
    if not certfile:
        raise ConfigError(complaint("keyfile", keyfile, "a key needs its certificate; give certfile too"))
    for name in ("certfile", "keyfile", "ca_certs"):
        path = cfg.settings[name].get()
        if path:
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                wrong = f"this cannot be read ({error.strerror}); give a file that can"
                raise ConfigError(complaint(name, path, wrong)) from None
    if cfg.settings["ssl_context"].get() is not NewSSLContext.default:
        return  # the user's own function decides what is loaded, and how
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=cfg.settings["ca_certs"].get())
        context.load_cert_chain(certfile, keyfile, password=_no_passphrase)
    except (OSError, ValueError) as error:
        what = certfile if not keyfile else f"{certfile} with keyfile = {keyfile}"
        wrong = f"this cannot be used for TLS ({error}); give a certificate and its key, both PEM"
        raise ConfigError(complaint("certfile", what, wrong)) from None
    for name, setter in (("cert_reqs", _set_verify_mode), ("ciphers", ssl.SSLContext.set_ciphers)):
        value = cfg.settings[name].get()
        try:
            if value:
                setter(context, value)
        except (OSError, ValueError) as error:
            raise ConfigError(complaint(name, value, f"the ssl module refuses it ({error})")) from None


def _set_verify_mode(context: ssl.SSLContext, value: int) -> None:
    context.check_hostname = False
    context.verify_mode = ssl.VerifyMode(value)


def _no_passphrase() -> str:
    raise ValueError("its key is encrypted, and nobody is there to type the passphrase")


# What gunicorn lacks: our settings, and four small patches of Config.


def _setting(option: Option) -> Any:
    """A Setting subclass; gunicorn's metaclass registers it as it is made."""
    attributes = {
        "name": option.name,
        "section": SECTION,
        "cli": None if option.in_file_only else [option.flag],
        "meta": option.meta,
        "validator": _keep,
        "default": option.default,
        "desc": option.text,
        "add_option": _add_to_own_group,
        "__module__": __name__,
    }
    return SettingMeta(option.name.title().replace("_", ""), (Setting,), attributes)


def _keep(value: object) -> object:
    return value


def _add_to_own_group(setting: Any, parser: Any) -> None:
    if not setting.cli:
        return
    group = getattr(parser, "poolparty_group", None)
    if group is None:
        group = parser.poolparty_group = parser.add_argument_group(SECTION)
    default = "" if setting.default is None else f" [{setting.default}]"
    value = {"metavar": setting.meta} if setting.meta else {"action": "store_const", "const": True}
    group.add_argument(*setting.cli, dest=setting.name, help=setting.short + default, **value)


def _given(cfg: Config) -> dict[str, int]:
    """The options that were set, numbered in that order: file, GUNICORN_CMD_ARGS, command line."""
    given: dict[str, int] = cfg.__dict__.setdefault("_poolparty_given", {})
    return given


def _patch_config() -> None:
    gunicorn_set, gunicorn_validate = Config.set, Config.validate
    gunicorn_logger_class = Config.logger_class.fget

    def set_and_remember(self: Config, name: str, value: object) -> None:
        gunicorn_set(self, name, value)
        given = _given(self)
        given.pop(name, None)
        given[name] = max(given.values(), default=0) + 1

    def validate(self: Config) -> None:
        if serves_a_pool(self):
            prepare(self)
        gunicorn_validate(self)

    def wsgi_app(self: Config) -> str | None:
        """With GWorker there is no application to name; gunicorn asks for one all the same."""
        value: str | None = self.settings["wsgi_app"].get()
        return APPLICATION if value is None and serves_a_pool(self) else value

    def logger_class(self: Config) -> Any:
        """Where nothing else is asked for, statsd_host is the pool thread's affair: gunicorn's logger for it
        sends three datagrams a request, and waits where a socket is full."""
        default = self.settings["logger_class"].default
        if serves_a_pool(self) and self.settings["logger_class"].get() in (default, "simple"):
            return util.load_class(default)
        return gunicorn_logger_class(self)

    Config.set = set_and_remember
    Config.validate = validate
    Config.wsgi_app = property(wsgi_app)
    Config.logger_class = property(logger_class)


# Documentation.

# gunicorn's options that a user of Poolparty will want, for conf/annotated.py: an example, and why.
GUNICORN_OPTIONS = (
    ("bind", ["127.0.0.1:8080"], "Addresses to serve on; `poolparty` serves on this one by default."),
    (
        "workers",
        1,
        "HTTP workers. One core moves some ten thousand requests a second; children need theirs too.",
    ),
    ("worker_connections", 10000, "Open connections in one HTTP worker; gunicorn's own default is 1000."),
    (
        "keepalive",
        75,
        "Seconds an idle connection is kept; above the proxy's own, so that the proxy closes first.",
    ),
    (
        "graceful_timeout",
        65,
        "Seconds a stop waits for running requests: worker_request_timeout plus 5 unless set.",
    ),
    ("limit_request_line", 4094, "Bytes of a request line; a longer one is answered 414."),
    ("limit_request_fields", 100, "Header fields of a request; more are answered 431."),
    ("limit_request_field_size", 8190, "Bytes of one header field; a longer one is answered 431."),
    (
        "forwarded_allow_ips",
        "127.0.0.1,::1",
        "Proxies whose word is taken on whether the client came by TLS.",
    ),
    ("accesslog", "-", "A line for each answer: a file, or - for stdout. Off by default."),
    ("errorlog", "-", "Everything else, what children print included: a file, or - for stderr."),
    ("loglevel", "info", "debug, info, warning, error or critical."),
    ("certfile", "/etc/ssl/certs/poolparty.pem", "Serve TLS with this certificate."),
    ("keyfile", "/etc/ssl/private/poolparty.key", "Its key, where it is not in the same file."),
    ("user", "www-data", "HTTP workers and children run as this user, when the server was started by root."),
    ("group", "www-data", "And as this group."),
    ("umask", 0o022, "For the files that children make."),
    ("chdir", "/srv/app", "Where children start, and what relative paths are relative to."),
    ("raw_env", ["LANG=C.UTF-8"], "Variables for the children's environment."),
    ("pidfile", "/run/poolparty.pid", "A file for the master's process id."),
    ("statsd_host", "127.0.0.1:8125", "Send the pool's figures there; docs/monitoring.md names them."),
)


def paragraphs(text: str) -> Iterator[str]:
    """An option's text, each paragraph on one line."""
    for paragraph in textwrap.dedent(" " * 8 + text).split("\n\n"):
        yield " ".join(paragraph.split())


def settings_md() -> str:
    lines = [
        "# Options",
        "",
        "<!-- made by `python -m poolparty.settings > docs/settings.md` -->",
        "",
        "The name is for a configuration file (a Python file: `max_pool_size = 8`), the flag for the command",
        "line and the variable GUNICORN_CMD_ARGS. The command line wins over the variable, the variable over",
        "the file.",
        "",
        'A DURATION is a number of seconds, or a string as in Go: `"50ms"`, `"60s"`, `"1m30s"`, `"1.5h"`',
        "(units h, m, s, ms, us, ns).",
    ]
    for option in OPTIONS:
        default = "none" if option.default is None else f"`{option.default}`"
        lines += ["", f"## {option.name}", "", "| flag | default |", "|---|---|"]
        flag = option.flag if option.meta is None else f"{option.flag} {option.meta}"
        lines += [f"| {'none' if option.in_file_only else f'`{flag}`'} | {default} |"]
        for paragraph in paragraphs(option.text):
            lines += ["", *textwrap.wrap(paragraph, 118, break_on_hyphens=False, break_long_words=False)]
        if option.each_pool:
            lines += ["", "Each of [`pools`](#pools) may have its own."]
    lines += [
        "",
        "# gunicorn's options",
        "",
        "They work as gunicorn's own documentation says, with these exceptions. Refused at the start, since",
        "accepting them would mislead:",
        "",
        "| option | why |",
        "|---|---|",
        *(f"| `{row.name}` | {row.why} |" for row in REFUSED if row.name not in REFUSED_AT_ODD_VALUES),
        "",
        "Accepted, and without effect: " + ", ".join(f"`{name}`" for name in sorted(WITHOUT_EFFECT)) + ".",
        "",
        "`statsd_host` sends what [monitoring.md](monitoring.md#statsd) names; gunicorn's own figures only",
        'with `logger_class = "gunicorn.instrument.statsd.Statsd"`, at three datagrams a request.',
    ]
    return "\n".join(lines) + "\n"


def annotated_conf() -> str:
    lines = [
        "# Every option of Poolparty with its default, and those of gunicorn a server is likely to want.",
        "# Copy it and uncomment what you change.",
        "#",
        "# Made by `python -m poolparty.settings --annotated > conf/annotated.py`.",
        "#",
        "#     poolparty -c poolparty.conf.py",
        "#     gunicorn -c poolparty.conf.py",
        "",
        "# Needed by the stock gunicorn command; poolparty knows it anyway.",
        f'worker_class = "{WORKER_CLASS}"',
    ]
    for option in OPTIONS:
        value = repr(option.example if option.default is None else option.default).replace("'", '"')
        sentences = textwrap.wrap(option.short, 110)
        lines += ["", *(f"# {line}" for line in sentences), f"# {option.name} = {value}"]
    lines += ["", "# gunicorn's own."]
    for name, example, why in GUNICORN_OPTIONS:
        value = f"0o{example:03o}" if name == "umask" else repr(example).replace("'", '"')
        lines += ["", f"# {why}", f"# {name} = {value}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    sys.stdout.write(annotated_conf() if "--annotated" in sys.argv[1:] else settings_md())


if __name__ == "__main__":
    # Run as a program this file is a second module; only the one that was imported may register settings.
    from poolparty import settings

    settings.main()
else:
    for _option in OPTIONS:
        _setting(_option)
    _patch_config()
