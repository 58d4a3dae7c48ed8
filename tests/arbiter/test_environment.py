"""A child's environment, and the interpreters' own view of it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import poolparty
from poolparty.arbiter.environment import child_environment
from poolparty.wire.features import NAMES as FEATURES


@pytest.fixture
def python_sdk(checkout: Path) -> str:
    return str(checkout / "poolparty" / "sdk" / "python")


@pytest.fixture
def janet_sdk(checkout: Path) -> str:
    return str(checkout / "poolparty" / "sdk" / "janet")


def test_what_the_server_offers() -> None:
    environment = child_environment({}, ["true"])
    assert environment["POOLPARTY"] == poolparty.__version__
    assert environment["POOLPARTY_FEATURES"].split(",") == list(FEATURES)


def test_the_users_variables_pass_and_the_servers_own_do_not() -> None:
    base = {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "7",
        "LISTEN_FDNAMES": "web",
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_USEC": "1",
        "SERVER_SOFTWARE": "gunicorn",
        "GUNICORN_CMD_ARGS": "--workers 3",
        "GUNICORN_FD": "5",
        "POOLPARTY_FEATURES": "of a server that started this one",
    }
    before = dict(base)
    environment = child_environment(base, ["true"])
    assert base == before
    assert {*base, *environment} - set(environment) == {
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "SERVER_SOFTWARE",
        "GUNICORN_CMD_ARGS",
        "GUNICORN_FD",
    }
    assert (environment["PATH"], environment["LANG"]) == ("/bin", "C.UTF-8")
    assert environment["POOLPARTY_FEATURES"] == ",".join(FEATURES)


@pytest.mark.parametrize("theirs", ["/theirs", "/theirs::/more"])
def test_the_users_own_python_path_comes_first(python_sdk: str, theirs: str) -> None:
    environment = child_environment({"PYTHONPATH": theirs}, ["true"])
    assert environment["PYTHONPATH"] == f"{theirs}:{python_sdk}"
    assert child_environment(environment, ["true"]) == environment


@pytest.mark.parametrize("base", [{}, {"PYTHONPATH": ""}])
def test_python_path_names_no_folder_that_nobody_asked_for(python_sdk: str, base: dict[str, str]) -> None:
    assert child_environment(base, ["true"])["PYTHONPATH"] == python_sdk


def test_a_python_child_finds_the_library(python_sdk: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import poolparty; print(poolparty.__file__)"]
    environment = child_environment({}, command)
    said = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert said == f"{python_sdk}/poolparty/__init__.py\n"


def test_only_janet_is_asked_where_its_modules_are(tmp_path: Path) -> None:
    trace = tmp_path / "started"
    for name in ("rscript", "janet-like", "myjanet"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho $0 >> {trace}\n")
        program.chmod(stat.S_IRWXU)
        assert "JANET_PATH" not in child_environment({}, [str(program), "app.r"])
    assert not trace.exists()


def _found_by(janet: str, environment: dict[str, str], module: str = "poolparty") -> str:
    show = f"(prin (first (module/find `{module}`)))"
    return subprocess.run(
        [janet, "-e", show], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_a_janet_child_finds_the_library(janet: str, janet_sdk: str) -> None:
    environment = child_environment({}, [janet, "app.janet"])
    assert environment["JANET_PATH"].endswith(f":{janet_sdk}")
    assert _found_by(janet, environment) == f"{janet_sdk}/poolparty.janet"


@pytest.mark.parametrize(
    "command", [["nice", "janet", "app.janet"], ["env", "X=1", "janet"], ["./app.janet"]]
)
def test_janet_is_found_behind_another_program(janet: str, janet_sdk: str, command: list[str]) -> None:
    path = f"{os.path.dirname(janet)}:{os.environ['PATH']}"
    environment = child_environment({"PATH": path}, command)
    assert _found_by(janet, environment) == f"{janet_sdk}/poolparty.janet"


def test_what_the_user_has_installed_comes_first(janet: str, janet_sdk: str, tmp_path: Path) -> None:
    """The original's library, say; and what is not ours is still found."""
    for name in ("poolparty.janet", "theirs.janet"):
        (tmp_path / name).write_text("")
    environment = child_environment({"JANET_PATH": str(tmp_path)}, [janet, "app.janet"])
    assert environment["JANET_PATH"] == f"{tmp_path}:{janet_sdk}"
    assert _found_by(janet, environment) == str(tmp_path / "poolparty.janet")
    assert _found_by(janet, environment, "theirs") == str(tmp_path / "theirs.janet")
    assert child_environment(environment, [janet, "app.janet"]) == environment


def test_the_default_folder_of_modules_stays_the_first(janet: str, janet_sdk: str) -> None:
    show = [janet, "-e", "(prin (dyn :syspath))"]
    default = subprocess.run(show, env={}, capture_output=True, text=True, check=True).stdout
    environment = child_environment({}, [janet, "app.janet"])
    assert environment["JANET_PATH"] == f"{default}:{janet_sdk}"
    assert subprocess.run(show, env=environment, capture_output=True, text=True, check=True).stdout == default


def test_an_interpreter_that_knows_no_list_of_folders_keeps_its_own(tmp_path: Path) -> None:
    """Janet of some years ago: JANET_PATH is one folder's name, whatever it contains."""
    old = tmp_path / "janet"
    old.write_text('#!/bin/sh\nprintf %s "${JANET_PATH:-/usr/lib/janet}"\n')
    old.chmod(stat.S_IRWXU)
    assert "JANET_PATH" not in child_environment({}, [str(old), "app.janet"])
    assert child_environment({"JANET_PATH": "/theirs"}, [str(old), "app.janet"])["JANET_PATH"] == "/theirs"


@pytest.mark.parametrize("script", ["exit 1", "exit 0", None])
def test_an_interpreter_that_does_not_start_is_the_childs_own_trouble(
    tmp_path: Path, script: str | None
) -> None:
    program = tmp_path / "janet"
    if script is not None:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(stat.S_IRWXU)
    assert "JANET_PATH" not in child_environment({}, [str(program), "app.janet"])


@pytest.mark.parametrize(
    "name, folder", [("PYTHONPATH", "python"), ("RUBYLIB", "ruby"), ("PERL5LIB", "perl")]
)
def test_every_interpreter_is_led_to_its_library_behind_the_users_own(
    checkout: Path, name: str, folder: str
) -> None:
    ours = str(checkout / "poolparty" / "sdk" / folder)
    assert child_environment({}, ["true"])[name] == ours
    environment = child_environment({name: "/theirs"}, ["true"])
    assert environment[name] == f"/theirs:{ours}"
    assert child_environment(environment, ["true"]) == environment


@pytest.fixture
def php() -> str:
    found = shutil.which("php")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no PHP: bin/install-interpreters has it")
        pytest.skip("no PHP: bin/install-interpreters has it")
    return found


def _include_path(php: str, environment: dict[str, str]) -> str:
    show = [php, "-r", "echo get_include_path();"]
    return subprocess.run(show, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_php_child_finds_the_library_behind_what_php_has(php: str, checkout: Path) -> None:
    default = _include_path(php, {})
    environment = child_environment({"PATH": os.environ["PATH"]}, [php, "app.php"])
    assert _include_path(php, environment) == f"{default}:{checkout}/poolparty/sdk/php"
    assert child_environment(environment, [php, "app.php"]) == environment


def test_a_users_own_php_settings_hold(php: str, checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "own.ini").write_text("include_path = /theirs\nprecision = 5\n")
    environment = child_environment({"PHP_INI_SCAN_DIR": str(tmp_path)}, ["nice", php, "app.php"])
    assert _include_path(php, environment) == f"/theirs:{checkout}/poolparty/sdk/php"
    show = [php, "-r", "echo ini_get('precision');"]
    assert subprocess.run(show, env=environment, capture_output=True, text=True, check=True).stdout == "5"


def test_only_php_is_asked_for_its_include_path(tmp_path: Path) -> None:
    trace = tmp_path / "started"
    for name in ("phpunit", "php-fpm", "myphp"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho $0 >> {trace}\n")
        program.chmod(stat.S_IRWXU)
        assert "PHP_INI_SCAN_DIR" not in child_environment({}, [str(program), "app.php"])
    assert not trace.exists()
