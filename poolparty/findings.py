"""What `poolparty --check-config` and `poolparty --version` say: what was found, in plain lines.

Runs in the `poolparty` command, which ends then. FINDINGS is the one table of the lines about a
configuration; an option that none of them is about gets a line of its own if somebody has set it.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gunicorn
import httptools
from gunicorn.config import Config

import poolparty
from poolparty.pools import PoolConfig, pool_configs
from poolparty.sdk_files import SDK, language_of
from poolparty.settings import Options

DEFAULT = "default"

ENVIRONMENT = {"bind": "PORT", "workers": "WEB_CONCURRENCY"}
"""Options that gunicorn takes from a variable of the environment where nothing else sets them."""

MAX_INTERPRETER = 256
"""Bytes of a script's first line that the kernel looks at."""


class Finding(NamedTuple):
    """A line: its label, the options whose origin stands behind it, and its text; None: there is no line."""

    label: str
    options: tuple[str, ...]
    text: Callable[[Config, Options], str | None]


def _program(cfg: Config, options: Options) -> str | None:
    """The file that is run, and where a link leads, or what runs a script."""
    found = _file_of(cfg, options)
    if os.path.realpath(found) != found:
        found += f", a link to {os.path.realpath(found)}"
    elif (interpreter := _shebang(found)) is not None:
        found += f", run by {interpreter}"
    return found


def _file_of(cfg: Config, options: Options) -> str:
    program = options.pool_cmd[0]
    if os.path.dirname(program):
        return os.path.normpath(os.path.join(cfg.chdir, program))
    return shutil.which(program, path=cfg.env.get("PATH", os.environ.get("PATH", os.defpath))) or program


def _shebang(file: str) -> str | None:
    try:
        with open(file, "rb") as opened:
            line = opened.read(MAX_INTERPRETER).partition(b"\n")[0]
    except OSError:
        return None
    return os.fsdecode(line[2:]).strip() or None if line.startswith(b"#!") else None


def _library(cfg: Config, options: Options) -> str | None:
    language = language_of(options.pool_cmd)
    if language is None:
        language = language_of((_shebang(_file_of(cfg, options)) or "").split())
    if language is None:
        return "none that comes with poolparty, by the program's name; see `poolparty-ctl sdk`"
    return str(SDK / language)


def _listeners(cfg: Config, options: Options) -> str:
    scheme = "https" if cfg.is_ssl else "http"
    addresses: list[str] = cfg.settings["bind"].get()
    return ", ".join(a if a.startswith(("unix:", "fd://")) else f"{scheme}://{a}" for a in addresses)


def _pool(cfg: Config, options: Options) -> str:
    low, high = options.min_pool_size, options.max_pool_size
    size = str(high) if low == high else f"{low} to {high}"
    return f"{size} {'worker' if size == '1' else 'workers'}"


def _other_pool(pool: PoolConfig) -> str:
    """One of `pools`: its size, its command, and which requests are for it."""
    routes = ", ".join(map(str, pool.routes))
    return f"{_pool(pool.cfg, pool.options)}, {shlex.join(pool.options.pool_cmd)}, for {routes}"


def _control_socket(cfg: Config, options: Options) -> str:
    group = f", also for group {options.ctl_socket_group}" if options.ctl_socket_group else ""
    return os.path.normpath(os.path.join(cfg.chdir, options.ctl_socket)) + group


def _admin_listener(cfg: Config, options: Options) -> str:
    return _own_listener(options.admin_address)


def _admin_pages(cfg: Config, options: Options) -> str | None:
    return options.admin_prefix


def _agent(cfg: Config, options: Options) -> str | None:
    return None if options.agent_address is None else _own_listener(options.agent_address)


def _own_listener(address: tuple[str, int] | str | None) -> str:
    if address is None:
        return "off"
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


FINDINGS = (
    Finding("command", ("pool_cmd",), lambda cfg, options: shlex.join(options.pool_cmd)),
    Finding("program", (), _program),
    Finding("worker library", (), _library),
    Finding("directory", ("chdir",), lambda cfg, options: str(cfg.chdir)),
    Finding("serves on", ("bind",), _listeners),
    Finding("HTTP workers", ("workers",), lambda cfg, options: str(cfg.workers)),
    Finding("pool", ("min_pool_size", "max_pool_size"), _pool),
    Finding("control socket", ("ctl_socket", "ctl_socket_group"), _control_socket),
    Finding("admin listener", ("admin_address",), _admin_listener),
    Finding("admin pages below", ("admin_prefix",), _admin_pages),
    Finding("agent check", ("agent_address",), _agent),
)

NOT_SHOWN = frozenset({"config", "check_config", "print_config", "worker_class", "listen_address"})
"""Options that are no part of what a server does, or another name of one that is told."""


def findings(cfg: Config, origins: Mapping[str, str]) -> str:
    """All lines. origins: where each option was set that somebody has set."""
    options = Options.from_cfg(cfg)
    if "listen_address" in origins and cfg.settings["bind"].get() == [options.listen_address]:
        origins = {**origins, "bind": origins["listen_address"]}
    rows: list[tuple[str, str, str]] = [("configuration file", _file(cfg), "")]
    for finding in FINDINGS:
        text = finding.text(cfg, options)
        if text is not None:
            rows.append((finding.label, text, _origin(finding.options, origins)))
    for pool in pool_configs(cfg)[1:]:
        rows.append((f"pool {pool.name}", _other_pool(pool), _origin(("pools",), origins)))
    told = {name for finding in FINDINGS for name in finding.options} | NOT_SHOWN | {"pools"}
    rows += (
        (name, _shown(cfg, name), origin) for name, origin in sorted(origins.items()) if name not in told
    )
    width = max(len(label) for label, _, _ in rows)
    lines = (f"  {label:<{width}}  {text}{origin and f'  [{origin}]'}" for label, text, origin in rows)
    return "\n".join(("The configuration is good.", *lines))


def _file(cfg: Config) -> str:
    location: str | None = cfg.settings["config"].get()
    if location is None or (location == cfg.settings["config"].default and not os.path.exists(location)):
        return f"none ({cfg.settings['config'].default} would be read)"
    return location if location.startswith("python:") else os.path.abspath(location.removeprefix("file:"))


def _origin(names: tuple[str, ...], origins: Mapping[str, str]) -> str:
    """Where the options of a line were set; of several each by its name, unless that is one place."""
    found = {name: origins.get(name) or _from_environment(name) for name in names}
    if len(set(found.values())) <= 1:
        return next(iter(found.values()), "")
    return ", ".join(f"{name}: {origin}" for name, origin in found.items() if origin != DEFAULT)


def _from_environment(name: str) -> str:
    variable = ENVIRONMENT.get(name, "")
    return f"{variable} in the environment" if variable in os.environ else DEFAULT


def _shown(cfg: Config, name: str) -> str:
    value: Any = cfg.settings[name].get()
    if name == "raw_env":  # where passwords stand
        value = [f"{variable.partition('=')[0]}=…" for variable in value]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(getattr(value, "__qualname__", value))


def versions() -> Iterator[str]:
    """Lines: the server's version, and those of what it stands on."""
    yield f"poolparty {poolparty.__version__}"
    yield f"gunicorn {gunicorn.__version__}"
    yield f"{platform.python_implementation()} {platform.python_version()}"
    try:
        import uvloop
    except ImportError:
        yield "event loop: asyncio (uvloop is not installed)"
    else:
        yield f"event loop: uvloop {uvloop.__version__}"
    yield f"HTTP parser: httptools {httptools.__version__}"
