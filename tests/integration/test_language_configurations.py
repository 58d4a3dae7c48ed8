"""conf/languages: each file is a good configuration, and serves its example."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
from client import PATIENCE
from server import Server

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
    server = serve("-c", str(file), command=None, directory=directory, environment=environment)
    server.wait_ready()
    server.not_its_own.update({*server.session()} - {*server.children(), *server.http_workers()})  # php-cgi
    with contextlib.closing(HTTPConnection(*server.address, timeout=PATIENCE)) as connection:
        connection.request("GET", configuration.target)  # by a client that takes chunks, which CGI sends
        answer = connection.getresponse()
        assert (answer.status, answer.read().decode()) == (200, f"{configuration.greeting}\n")


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
