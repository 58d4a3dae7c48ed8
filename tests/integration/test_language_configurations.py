"""conf/languages: each file is a good configuration, and serves its example whatever befalls its children."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
from client import PATIENCE, Address
from server import Server, wait_until

PYTHON = Path(sys.executable).parent


@dataclass(frozen=True)
class Configuration:
    """A file of conf/languages, what it needs on this machine, and what its example says."""

    name: str
    greeting: str
    needs: Sequence[str]  # a command that runs where the example can
    target: str = "/"
    large: bool = False  # installed by bin/test --all only


CONFIGURATIONS = [
    Configuration("janet", "Hello from Janet!", ("janet", "-e", "(+)")),
    Configuration("python", "Hello from Python!", ("python3", "-c", "")),
    Configuration("wsgi", "Hello from Flask!", ("python3", "-c", "import flask")),
    Configuration("asgi", "Hello from Starlette!", ("python3", "-c", "import starlette")),
    Configuration("cgi", "Hello, Ada, from CGI!", ("python3", "-c", ""), "/hello.cgi/Ada"),
    Configuration("ruby", "Hello from Ruby!", ("ruby", "-e", "")),
    Configuration("rack", "Hello from Sinatra!", ("ruby", "-rsinatra/base", "-e", "")),
    Configuration("perl", "Hello from Perl!", ("perl", "-MJSON::PP", "-e", "")),
    Configuration("psgi", "Hello from Dancer2!", ("perl", "-MDancer2", "-e", "")),
    Configuration("php", "Hello from PHP!", ("php", "-v")),
    Configuration("php-front", "Hello from plain PHP!", ("php-cgi", "-v")),
    Configuration("lua", "Hello from Lua!", ("lua5.4", "-v")),
    Configuration("node", "Hello from JavaScript!", ("node", "-v")),
    Configuration("tcl", "Hello from Tcl!", ("tclsh",)),
    Configuration("r", "Hello from R!", ("Rscript", "--version"), large=True),
    Configuration("guile", "Hello from Guile!", ("guile", "--version"), large=True),
    Configuration("go", "Hello from Go!", ("go", "version"), large=True),
]


FRAMEWORKS = {"asgi", "cgi", "php-front", "psgi", "rack", "wsgi"}
"""Their examples have other routes than examples/app.*, which their own tests try."""

TWO = "--min-pool-size", "2", "--max-pool-size", "2", "--spare-workers", "0"
EXPECTED = ["worker died", "this page always fails", "Traceback"]


@pytest.fixture(scope="module")
def path(checkout: Path) -> str:
    """PATH with this Python, whose environment has the frameworks, and the interpreters of this checkout."""
    ours = checkout / ".cache" / "interpreters" / "bin"
    return os.pathsep.join((str(PYTHON), str(ours), os.environ.get("PATH", os.defpath)))


CHECK = """
import os, sys
from poolparty.cli import main
for file in sys.argv[1:]:
    child = os.fork()
    if not child:
        out = os.open(os.path.basename(file) + ".checked", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv[1:] = ["-c", file, "--check-config"]
        main()
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, checkout: Path, path: str) -> dict[str, str]:
    """What `poolparty --check-config` says of each; by one process, which imports all that once."""
    directory = tmp_path_factory.mktemp("checked")
    (directory / "examples").symlink_to(checkout / "examples")
    (directory / "app").touch(0o755)  # what go.py has built
    files = sorted((checkout / "conf" / "languages").glob("*.py"))
    command = [sys.executable, "-c", CHECK, *map(str, files)]
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(checkout)}
    subprocess.run(command, cwd=directory, env=environment, check=True)
    return {file.stem: (directory / f"{file.name}.checked").read_text() for file in files}


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda each: each.name)
def test_it_is_good_and_serves_its_example(
    configuration: Configuration,
    serve: Callable[..., Server],
    tmp_path: Path,
    checkout: Path,
    path: str,
    checked: dict[str, str],
) -> None:
    environment = {"PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    there(configuration, {**os.environ, **environment})
    file = checkout / "conf" / "languages" / f"{configuration.name}.py"
    directory = tmp_path / "server"  # in the checkout's place, so that nothing is left there
    directory.mkdir()
    (directory / "examples").symlink_to(checkout / "examples")
    if configuration.name == "go":
        build(checkout / "examples", directory / "app", path)
    assert checked[configuration.name].startswith("The configuration is good.\n"), checked[configuration.name]
    options = "-c", str(file), *TWO
    server = serve(*options, command=None, directory=directory, environment=environment, expected=EXPECTED)
    server.wait_ready(2)
    survives_kills(server, configuration)
    if configuration.name not in FRAMEWORKS:
        survives_requests(server)
    server.wait_ready(2)
    # Children of children, CGI's scripts and php-cgi.
    server.not_its_own.update({*server.session()} - {*server.children(), *server.http_workers()})


def survives_kills(server: Server, configuration: Configuration) -> None:
    """Under load, no request fails that can be run again."""
    clients = [Client(server.address, configuration) for _ in range(4)]
    for client in clients:
        client.start()
    killed: list[int] = []
    try:
        for _ in range(3):
            # One that waited at the last kill has its answer by now: it was run a second time at most.
            marks = [client.answers + 2 for client in clients]
            wait_until(
                lambda marks=marks: all(  # type: ignore[misc]
                    client.answers >= mark or not client.is_alive()
                    for client, mark in zip(clients, marks, strict=True)
                ),
                "answers",
            )
            alive = wait_until(lambda: {*server.children("idle", "busy")} - {*killed}, "a child")
            killed.append(alive.pop())
            os.kill(killed[-1], signal.SIGKILL)
    finally:
        for client in clients:
            client.stopping = True
        for client in clients:
            client.join()
    assert [client.failure for client in clients if client.failure] == []
    server.wait_log("worker died", 3)


class Client(threading.Thread):
    """Asks for the greeting again and again, by a client that takes chunks, which CGI sends."""

    def __init__(self, address: Address, configuration: Configuration) -> None:
        super().__init__()
        assert not isinstance(address, str)
        self.connection = HTTPConnection(*address, timeout=PATIENCE)
        self.configuration = configuration
        self.answers = 0
        self.failure = ""
        self.stopping = False

    def run(self) -> None:
        expected = (200, f"{self.configuration.greeting}\n")
        with contextlib.closing(self.connection):
            while not self.stopping:
                try:
                    self.connection.request("GET", self.configuration.target)
                    answer = self.connection.getresponse()
                    got = (answer.status, answer.read().decode())
                    assert got == expected, got
                except Exception as error:
                    self.failure = repr(error)
                    return
                self.answers += 1


def survives_requests(server: Server) -> None:
    """An exception, a body as large as may be, and one of no byte: they cost no child."""
    children = server.wait_ready(2)
    assert server.get("/error").status == 500
    for size in (4 << 20, 0):
        answer = server.ask("POST", "/upload", bytes(size))
        assert (answer.status, answer.body) == (200, f"{size} bytes\n".encode())
    assert server.children() == children


def there(configuration: Configuration, environment: dict[str, str]) -> None:
    """Skip, or fail in CI, where the example cannot run."""
    found = shutil.which(configuration.needs[0], path=environment["PATH"])
    if found is not None:
        done = subprocess.run(
            configuration.needs, stdin=subprocess.DEVNULL, capture_output=True, env=environment
        )
        if done.returncode == 0:
            return
    reason = f"no {' '.join(configuration.needs)}: bin/install-interpreters, or the extra `test`, has it"
    if os.environ.get("CI") and (not configuration.large or os.environ.get("POOLPARTY_TEST_ALL")):
        pytest.fail(reason)
    pytest.skip(reason)


def build(examples: Path, target: Path, path: str) -> None:
    """As the file's first lines say it."""
    settings = {"PATH": path, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    command = ["go", "build", "-o", str(target), "app.go"]
    subprocess.run(command, cwd=examples, env={**os.environ, **settings}, check=True)


def test_every_file_is_tried_and_linked(checkout: Path) -> None:
    files = {path.stem for path in (checkout / "conf" / "languages").glob("*.py")}
    assert files == {configuration.name for configuration in CONFIGURATIONS}
    page = (checkout / "docs" / "languages.md").read_text()
    assert [name for name in files if f"(../conf/languages/{name}.py)" not in page] == []
