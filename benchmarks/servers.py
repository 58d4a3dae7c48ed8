"""The contestants: where each is found on this machine, its version, and how it is started with an
application.

All serve with the same number of processes (or threads, where a process has several) as Poolparty has
children. Where a server has a faster and a slower way to be set up, the faster one is taken. Access logs are
off everywhere.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import applications
from benchmarks.processes import Server, free_port

CHECKOUT = Path(__file__).resolve().parent.parent
CACHE = CHECKOUT / ".cache" / "bench"
VENV = CACHE / "venv"

DEBIAN_PACKAGES = ("wrk", "strace", "nginx-light", "php-fpm", "uwsgi-core", "uwsgi-plugin-python3", "puma")
PYTHON_PACKAGES = ("gunicorn>=27.0.1,<28", "uvicorn", "uvloop", "httptools", "flask", "django")


class NotFound(Exception):
    """This contestant is not on this machine; the text says what is missing."""


@dataclass(frozen=True)
class Setup:
    """One contestant of a case: a server, what its children are, how many, and what is put on it."""

    server: str
    child: str = ""
    children: int = 2
    http_workers: int = 1
    connections: int = 16
    slow_share: float = 0.0
    options: tuple[str, ...] = ()
    note: str = ""

    @property
    def peer(self) -> str:
        """What --peer chooses by."""
        return f"{self.server}-{self.child}" if self.child else self.server

    @property
    def label(self) -> str:
        words = LABELS[self.server]
        if self.server == "original":
            words += ", Janet"  # with its own library, as the page says
        elif self.child:
            words += f", {CHILDREN[self.child]}"
        return f"{words}, {self.note}" if self.note else words


LABELS = {
    "poolparty": "Poolparty",
    "original": "the original",
    "relay": "C relay",
    "nginx": "nginx + PHP-FPM",
    "uwsgi": "uWSGI",
    "puma": "Puma",
    "gunicorn-sync": "gunicorn sync",
    "gunicorn-gthread": "gunicorn gthread",
    "gunicorn-asgi": "gunicorn asgi",
    "uvicorn": "uvicorn",
}
CHILDREN = {
    "janet": "Janet",
    "janet-original": "Janet with the original's library",
    "python": "Python",
    "python-minimal": "Python, minimal loop",
    "wsgi": "Python's WSGI",
}


def find(name: str, *others: str) -> str:
    """The path of a program, from PATH or where Debian puts what only root runs."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    for candidate in (name, *others):
        found = shutil.which(candidate, path=path)
        if found:
            return found
    raise NotFound(f"{name} is not on PATH")


def said(*command: str) -> str:
    """What a program says of its version, errors included."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()


def _version(*command: str, pattern: str = r"\d+(?:\.\d+)+") -> str:
    found = re.search(pattern, said(*command))
    return found.group(0) if found else "of unknown version"


# The interpreters.


@functools.cache
def server_python() -> str:
    """A Python that has Poolparty's dependencies: the one that runs us, the checkout's, or one made for
    it."""
    for candidate in (
        sys.executable,
        str(CHECKOUT / ".venv" / "bin" / "python"),
        str(VENV / "bin" / "python"),
    ):
        if os.access(candidate, os.X_OK) and _has(
            candidate, "gunicorn, httptools, psutil, setproctitle, uvloop"
        ):
            return candidate
    packages = ["setproctitle", "psutil", *PYTHON_PACKAGES]
    print("making an environment with Poolparty's dependencies in .cache/bench …", file=sys.stderr)
    make_environment(packages)
    return str(VENV / "bin" / "python")


@functools.cache
def generator_python() -> str:
    """The load generator's Python: any, but one with uvloop if there is one."""
    for candidate in (
        str(VENV / "bin" / "python"),
        sys.executable,
        str(CHECKOUT / ".venv" / "bin" / "python"),
    ):
        if os.access(candidate, os.X_OK) and _has(candidate, "uvloop"):
            return candidate
    return sys.executable


def _has(python: str, modules: str) -> bool:
    done = subprocess.run([python, "-c", f"import {modules}"], capture_output=True, check=False)
    return done.returncode == 0


def make_environment(packages: list[str]) -> None:
    if not (VENV / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run([str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages], check=True)


def peer_python(module: str) -> str:
    """The Python of the environment that holds the other Python servers, or any that has these modules."""
    for candidate in (
        str(VENV / "bin" / "python"),
        sys.executable,
        str(CHECKOUT / ".venv" / "bin" / "python"),
    ):
        if os.access(candidate, os.X_OK) and _has(candidate, module):
            return candidate
    raise NotFound(f"no Python has {module}: bin/bench --install-peers makes an environment that does")


@functools.cache
def janet() -> str:
    ours = CHECKOUT / ".cache" / "interpreters" / "bin" / "janet"
    if os.access(ours, os.X_OK):
        return str(ours)
    try:
        return find("janet")
    except NotFound:
        raise NotFound("there is no Janet: bin/install-interpreters unpacks one") from None


@functools.cache
def original() -> str:
    return find("poolparty-go")


@functools.cache
def original_library() -> tuple[str, str]:
    """(interpreter, folder) of the original's own Janet library, which is partly in C.

    Sought in ORIGINAL_JANET_PATH, or in `jlib` beside the original's binary; an interpreter that can load it
    in `bin` there, on PATH, or in the checkout.
    """
    folder = os.environ.get("ORIGINAL_JANET_PATH", "")
    if not folder:
        try:
            folder = str(Path(original()).parent / "jlib")
        except NotFound:
            raise NotFound("neither ORIGINAL_JANET_PATH nor poolparty-go is there") from None
    if not (Path(folder) / "poolparty.janet").exists():
        raise NotFound("the original's Janet library was not found: ORIGINAL_JANET_PATH names its folder")
    candidates = [str(Path(folder).parent / "bin" / "janet"), shutil.which("janet") or ""]
    candidates.append(str(CHECKOUT / ".cache" / "interpreters" / "bin" / "janet"))
    environment = {**os.environ, "JANET_PATH": folder}
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            done = subprocess.run(
                [candidate, "-e", "(import poolparty)"],
                env=environment,
                capture_output=True,
                check=False,
                timeout=20,
            )
            if done.returncode == 0 and not done.stderr:
                return candidate, folder
    raise NotFound("no Janet on this machine can load the original's library")


def child(name: str, folder: Path, kind: str) -> tuple[list[str], dict[str, str]]:
    """A child's command, and its environment for a server that does not set one."""
    if name == "janet-original":
        interpreter, library = original_library()
        return [interpreter, str(applications.write(folder, "janet", kind))], {"JANET_PATH": library}
    if name == "janet":
        library = str(CHECKOUT / "poolparty" / "sdk" / "janet")
        return [janet(), str(applications.write(folder, "janet", kind))], {"JANET_PATH": library}
    library = str(CHECKOUT / "poolparty" / "sdk" / "python")
    if name == "wsgi":  # under the Python that the servers it is compared with run under
        script = applications.write(folder, "wsgi", kind)
        python = peer_python(_modules(kind))
        return [python, "-m", "poolparty.wsgi", f"{script}:application"], {"PYTHONPATH": library}
    return [server_python(), str(applications.write(folder, name, kind))], {"PYTHONPATH": library}


def _modules(kind: str) -> str:
    """What a WSGI application of this kind and its servers import."""
    return f"gunicorn, {kind}" if kind in ("flask", "django") else "gunicorn"


# The servers. Each takes (setup, kind, folder, port) and gives the Server, not yet started.


def _poolparty(setup: Setup, kind: str, folder: Path, port: int) -> Server:
    command, environment = child(setup.child, folder, kind)
    if setup.child != "janet-original":
        environment = {}  # the server sets what its library needs
    own = [server_python(), str(CHECKOUT / "bin" / "poolparty"), "--listen-address", f"127.0.0.1:{port}"]
    own += ["--ctl-socket", str(folder / "ctl.sock"), "--workers", str(setup.http_workers)]
    own += ["--min-pool-size", str(setup.children), "--max-pool-size", str(setup.children), *setup.options]
    return Server([*own, "--", *command], port, folder, {**os.environ, **environment})


def _original(setup: Setup, kind: str, folder: Path, port: int) -> Server:
    command, environment = child(setup.child, folder, kind)
    own = [original(), "--listen-address", f"127.0.0.1:{port}", "--ctl-socket", str(folder / "ctl.sock")]
    own += ["--min-pool-size", str(setup.children), "--max-pool-size", str(setup.children), *setup.options]
    return Server([*own, "--", *command], port, folder, {**os.environ, **environment}, signal.SIGINT)


RELAY_PORT = 8091
RELAY_CHILDREN = 64
RELAY_KINDS = ("hello", "sleep")


def _relay(setup: Setup, kind: str, folder: Path, port: int) -> Server:
    relay = find("poolparty-limit")
    if kind not in RELAY_KINDS or setup.children > RELAY_CHILDREN:
        raise NotFound("the relay serves small answers from at most 64 children")
    if b"PORT\0" not in Path(relay).read_bytes():
        port = RELAY_PORT
    command, environment = child(setup.child, folder, kind)
    own = {"N": str(setup.children), "PORT": str(port)}
    return Server([relay, *command], port, folder, {**os.environ, **environment, **own})


def _nginx(setup: Setup, kind: str, folder: Path, port: int) -> Server:
    nginx = find("nginx")
    fpm = find("php-fpm", "php-fpm8.2", "php-fpm8.3", "php-fpm8.4", "php-fpm8.1")
    script = applications.write(folder, "php", kind)
    root = os.getuid() == 0
    (folder / "fpm.conf").write_text(
        f"[global]\nerror_log = {folder}/fpm.log\ndaemonize = no\n[www]\nlisten = {folder}/fpm.sock\n"
        f"listen.backlog = 4096\npm = static\npm.max_children = {setup.children}\n"
        + ("user = root\ngroup = root\n" if root else "")
    )
    # No fastcgi_keep_conn: a PHP process that is kept on one connection serves no other, and requests on
    # those starve.
    types = "client_body", "proxy", "fastcgi", "uwsgi", "scgi"
    temporary = "".join(f"{name}_temp_path {folder}/{name};\n" for name in types)
    (folder / "nginx.conf").write_text(
        ("user root;\n" if root else "")
        + f"worker_processes {os.cpu_count()};\nerror_log {folder}/nginx.log;\n"
        f"pid {folder}/nginx.pid;\ndaemon off;\nevents {{ worker_connections 8192; }}\n"
        f"http {{\naccess_log off;\n{temporary}client_max_body_size 8m;\nclient_body_buffer_size 2m;\n"
        "keepalive_requests 100000000;\nfastcgi_buffers 64 32k;\n"
        f"server {{ listen 127.0.0.1:{port} backlog=4096;\n"
        f"location / {{\nfastcgi_pass unix:{folder}/fpm.sock;\n"
        f"fastcgi_param SCRIPT_FILENAME {script};\nfastcgi_param REQUEST_METHOD $request_method;\n"
        "fastcgi_param REQUEST_URI $request_uri;\nfastcgi_param QUERY_STRING $query_string;\n"
        "fastcgi_param CONTENT_TYPE $content_type;\nfastcgi_param CONTENT_LENGTH $content_length;\n"
        "fastcgi_param SERVER_PROTOCOL $server_protocol;\nfastcgi_param REMOTE_ADDR $remote_addr;\n}}}\n"
    )
    companion = [fpm, "--nodaemonize", "--fpm-config", str(folder / "fpm.conf")]
    if root:
        companion.append("--allow-to-run-as-root")
    own = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "nginx.log")]
    return Server(own, port, folder, os.environ, signal.SIGTERM, [companion])


def _uwsgi(setup: Setup, kind: str, folder: Path, port: int) -> Server:
    script = applications.write(folder, "wsgi", kind)
    own = [find("uwsgi"), "--plugin", "http,python3", "--master", "--wsgi-file", str(script)]
    own += ["--processes", str(setup.children), "--disable-logging", "--die-on-term"]
    own += ["--listen", str(_backlog()), "--post-buffering", "0"]
    if kind in ("10k", "1m"):
        # Its router sends these in pieces with Nagle's algorithm on, and each answer takes 44 ms: without it
        # they are ten times as fast, in spite of a connection each (an HTTP socket keeps none, or keeps a
        # process busy).
        own += ["--http-socket", f"127.0.0.1:{port}", "--add-header", "Connection: close"]
    else:
        own += ["--http", f"127.0.0.1:{port}", "--http-keepalive"]
    return Server(own, port, folder, os.environ)


def _backlog() -> int:
    """uWSGI does not start with more than the kernel allows."""
    return min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))


def _processes_and_threads(children: int) -> tuple[int, int]:
    """A process for each of few; beyond the cores' number threads, which is how these servers are run."""
    processes = min(children, os.cpu_count() or 1)
    return processes, -(-children // processes)


def _puma(setup: Setup, kind: str, folder: Path, port: int) -> Server:
    script = applications.write(folder, "rack", kind)
    processes, threads = _processes_and_threads(setup.children)
    own = [find("puma"), "--no-config", "-e", "production", "-b", f"tcp://127.0.0.1:{port}?backlog=4096"]
    own += ["-w", str(processes), "-t", f"{threads}:{threads}", str(script)]
    return Server(own, port, folder, os.environ)


def _gunicorn(setup: Setup, kind: str, folder: Path, port: int) -> Server:
    python = peer_python(_modules(kind))
    worker_class = setup.server.removeprefix("gunicorn-")
    interface = "asgi" if worker_class == "asgi" else "wsgi"
    script = applications.write(folder, interface, kind)
    own = [python, "-m", "gunicorn", "-k", worker_class, "-b", f"127.0.0.1:{port}", "--keep-alive", "75"]
    own += ["--no-control-socket", "--log-level", "warning"]
    processes = setup.children
    if worker_class == "gthread":
        # A thread for each connection that is kept alive would be another server: as many as there are
        # children.
        processes, threads = _processes_and_threads(setup.children)
        own += ["--threads", str(max(2, threads))]
    elif worker_class == "asgi":
        processes = min(setup.children, os.cpu_count() or 1)
    own += ["--workers", str(processes), *setup.options, f"{script.stem}:application"]
    return Server(own, port, folder, os.environ)


def _uvicorn(setup: Setup, kind: str, folder: Path, port: int) -> Server:
    script = applications.write(folder, "asgi", kind)
    processes = min(setup.children, os.cpu_count() or 1)
    own = [peer_python("uvicorn"), "-m", "uvicorn", "--port", str(port), "--workers", str(processes)]
    own += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    return Server([*own, f"{script.stem}:application"], port, folder, os.environ)


_MAKERS: Mapping[str, Callable[[Setup, str, Path, int], Server]] = {
    "poolparty": _poolparty,
    "original": _original,
    "relay": _relay,
    "nginx": _nginx,
    "uwsgi": _uwsgi,
    "puma": _puma,
    "gunicorn-sync": _gunicorn,
    "gunicorn-gthread": _gunicorn,
    "gunicorn-asgi": _gunicorn,
    "uvicorn": _uvicorn,
}


def make(setup: Setup, kind: str, folder: Path) -> Server:
    """The server of a setup with an application of a kind; raises NotFound."""
    return _MAKERS[setup.server](setup, kind, folder, free_port())


def versions() -> dict[str, str]:
    """Name → version of all that is found, for the page's description of the machine."""
    found: dict[str, str] = {}
    sources: list[tuple[str, Callable[[], str]]] = [
        ("Python", lambda: _version(server_python(), "--version")),
        ("gunicorn", lambda: _module_version(server_python(), "gunicorn")),
        ("uvloop", lambda: _module_version(server_python(), "uvloop")),
        ("httptools", lambda: _module_version(server_python(), "httptools")),
        ("Janet", lambda: _version(janet(), "--version")),
        ("the original", lambda: f"built with {_go_version(original())}"),
        ("nginx", lambda: _version(find("nginx"), "-v")),
        ("PHP-FPM", lambda: _version(find("php-fpm", "php-fpm8.2", "php-fpm8.3", "php-fpm8.4"), "--version")),
        ("uWSGI", lambda: _version(find("uwsgi"), "--version")),
        ("Puma", lambda: _version(find("puma"), "--version")),
        ("Ruby", lambda: _version(find("ruby"), "--version")),
        ("uvicorn", lambda: _module_version(peer_python("uvicorn"), "uvicorn")),
        ("Flask", lambda: _module_version(peer_python("flask"), "flask")),
        ("Django", lambda: _module_version(peer_python("django"), "django")),
        ("wrk", lambda: _version(find("wrk"), "-v")),
    ]
    for name, source in sources:
        try:
            found[name] = source()
        except NotFound:
            continue
    return found


def _module_version(python: str, module: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({module!r}))"
    return _version(python, "-c", code)


def _go_version(binary: str) -> str:
    found = re.search(rb"go1\.\d+(?:\.\d+)?", Path(binary).read_bytes())
    return found.group(0).decode() if found else "an unknown Go"


def install_peers() -> None:
    """Debian's packages, and an environment of their own for the Python servers."""
    names = [name for name in DEBIAN_PACKAGES if not _installed(name)]
    if names:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = [
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=300",
            "install",
            "--yes",
            "--no-install-recommends",
            *names,
        ]
        if os.getuid() != 0:
            command.insert(0, "sudo")
        subprocess.run(command, env=environment, check=True)
    make_environment(list(PYTHON_PACKAGES))


def _installed(package: str) -> bool:
    return "install ok installed" in said("dpkg-query", "-W", "-f", "${Status}", package)
