"""conf/docker, without an engine: each image has what its command needs, and the command is right."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from server import CHECKOUT, program

from poolparty.arbiter.admin import PAGES

FOLDER = CHECKOUT / "conf" / "docker"


@dataclass
class Stage:
    """What the instructions of one stage, and of those it stands on, come to."""

    image: str
    directory: str = "/"
    command: list[str] = field(default_factory=list)
    user: str = "root"
    ports: list[int] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # path in the image: where it comes from
    environment: dict[str, str] = field(default_factory=dict)


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    with (FOLDER / "Dockerfile").open("rb") as file:
        instructions = DockerfileParser(fileobj=file).structure
    for step in instructions:
        value = step["value"]
        match step["instruction"]:
            case "FROM":
                image, _, name = value.split()
                below = found.get(image, Stage(image))
                stage = found[name] = Stage(
                    below.image,
                    below.directory,
                    ports=below.ports,
                    health=below.health,
                    files=dict(below.files),
                    environment=dict(below.environment),
                )
            case "WORKDIR":
                stage.directory = value
            case "ENV":
                stage.environment |= dict(word.split("=", 1) for word in shlex.split(value))
            case "USER":
                stage.user = value
            case "EXPOSE":
                stage.ports = [int(port) for port in value.split()]
            case "CMD":
                stage.command = json.loads(value)
            case "HEALTHCHECK":
                stage.health = json.loads(value.partition("CMD ")[2])
            case "COPY":
                words = value.split()
                source = words.pop(0) if words[0].startswith("--from=") else ""
                *names, to = words
                for name in names:
                    path = os.path.normpath(os.path.join(stage.directory, to))
                    path = os.path.join(path, os.path.basename(name)) if to.endswith("/") else path
                    stage.files[path] = f"{source.removeprefix('--from=')}:{name}"
            case "RUN" | "COMMENT":
                pass
            case other:
                raise AssertionError(f"this test does not know {other}")
    return found


STAGES = stages()
SERVING = [name for name, stage in STAGES.items() if stage.command]


def from_checkout(stage: Stage) -> dict[str, Path]:
    return {path: CHECKOUT / name[1:] for path, name in stage.files.items() if name.startswith(":")}


def test_what_is_copied_is_there_and_seen_by_the_build() -> None:
    shown = [
        line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copied = {
        str(path.relative_to(CHECKOUT)) for stage in STAGES.values() for path in from_checkout(stage).values()
    }
    assert copied == set(shown)
    for name in copied:
        assert (CHECKOUT / name).exists()
    for stage in STAGES.values():
        for source in stage.files.values():
            of, _, path = source.partition(":")
            assert not of or path == "/opt/poolparty" or path == STAGES[of].directory


def test_the_package_is_built_from_what_is_copied() -> None:
    """The build stage has every file that setup.py and setup.cfg name."""
    copied = set(from_checkout(STAGES["build"]).values())
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "poolparty"):
        assert CHECKOUT / name in copied
    named = re.findall(
        r"^license_files = (\S+)|^py_modules = (\S+)", (CHECKOUT / "setup.cfg").read_text(), re.M
    )
    named += re.findall(r"^PTH = \"(\S+)()\"", (CHECKOUT / "setup.py").read_text(), re.M)
    assert len(named) == 3
    for name, module in named:
        assert CHECKOUT / (name or f"{module}.py") in copied


def started(stage: Stage) -> list[str]:
    """The image's command, with the checkout's files in place of the image's, and this Python."""
    mapped = {path: str(source) for path, source in from_checkout(stage).items()}
    words = [mapped.get(os.path.join(stage.directory, word), word) for word in stage.command]
    return [*program(words[0]), *(sys.executable if word == "python3" else word for word in words[1:])]


@pytest.mark.parametrize("name", SERVING)
def test_the_command_is_one_that_the_server_takes(name: str, janet: str) -> None:
    stage = STAGES[name]
    assert stage.command[0] == "poolparty"
    program_file = os.path.join(stage.directory, stage.command[-1])
    assert program_file in from_checkout(stage)
    words = [janet if word == "janet" else word for word in started(stage)]
    done = subprocess.run(
        [*words[: words.index("--")], "--check-config", *words[words.index("--") :]],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert words[-1] in done.stdout
    ports = [
        re.search(rf"{what} +(?:http://)?0\.0\.0\.0:(\d+)", done.stdout)
        for what in ("serves on", "admin listener")
    ]
    assert [int(port[1]) for port in ports if port] == stage.ports
    assert f"control socket          {stage.environment['POOLPARTY_CTL_SOCKET']}" in done.stdout


@pytest.mark.parametrize("name", SERVING)
def test_it_is_not_root_and_by_number(name: str) -> None:
    """Kubernetes' runAsNonRoot cannot tell of a name."""
    assert STAGES[name].user.isdigit() and STAGES[name].user != "0"


def test_its_health_is_a_page_of_the_admin_listener() -> None:
    for name in SERVING:
        stage = STAGES[name]
        address = re.search(r"http://[^']+", stage.health[-1])
        assert address
        url = urlsplit(address[0])
        assert url.path in PAGES and url.port == stage.ports[1]
        compile(stage.health[-1], "HEALTHCHECK", "exec")


def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    return services


@pytest.mark.parametrize("name", compose())
def test_compose_builds_and_publishes_what_there_is(name: str) -> None:
    service = compose()[name]
    build = service["build"]
    assert (FOLDER / build["context"]).resolve() == CHECKOUT
    assert (CHECKOUT / build["dockerfile"]).is_file()
    stage = STAGES[build["target"]]
    assert name and stage.command
    (published,) = service["ports"]
    assert int(published.rpartition(":")[2]) == stage.ports[0]
    for variable in service["environment"]:
        assert f'"{variable}"' in (FOLDER / "poolparty.conf.py").read_text()
    assert service["read_only"]
    assert os.path.dirname(stage.environment["POOLPARTY_CTL_SOCKET"]) in {
        path.partition(":")[0] for path in service["tmpfs"]
    }
    assert any(f"uid={stage.user}," in path for path in service["tmpfs"])


def resolved(**environment: str) -> dict[str, str]:
    """The image's configuration as the server takes it."""
    words = [
        *program("poolparty"),
        "--config",
        str(FOLDER / "poolparty.conf.py"),
        "--print-config",
        "--",
        sys.executable,
    ]
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        name.strip(): value for name, _, value in (line.partition(" = ") for line in done.stdout.splitlines())
    }


def test_compose_waits_longer_than_requests_may_take() -> None:
    for service in compose().values():
        assert int(service["stop_grace_period"].removesuffix("s")) > int(resolved()["graceful_timeout"]) + 5


def test_the_environment_changes_what_it_says() -> None:
    found = resolved(
        MAX_POOL_SIZE="9",
        MIN_POOL_SIZE="3",
        HTTP_WORKERS="2",
        WORKER_REQUEST_TIMEOUT="10s",
        FORWARDED_ALLOW_IPS="10.0.0.1",
    )
    assert (found["max_pool_size"], found["min_pool_size"], found["workers"]) == ("9", "3", "2")
    assert found["worker_request_timeout"] == "10s"
    assert "10.0.0.1" in found["forwarded_allow_ips"]
