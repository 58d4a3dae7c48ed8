"""What `poolparty --check-config` and `--version` say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import gunicorn
import httptools
import pytest

from poolparty import __version__
from poolparty.sdk_files import INTERPRETERS, SDK, interpreter_of, language_of, languages

ROOT = Path(__file__).resolve().parents[1]


def run(directory: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    ours = {"GUNICORN_CMD_ARGS", "PORT", "WEB_CONCURRENCY"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    command = [sys.executable, str(ROOT / "bin" / "poolparty"), *words]
    return subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=30, env={**kept, **env}
    )


def found(directory: Path, *words: str, **env: str) -> dict[str, str]:
    """The lines by their labels."""
    done = run(directory, "--check-config", *words, **env)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == "The configuration is good."
    pairs = [re.fullmatch(r"  (\S.*?)  +(\S.*)", line) for line in lines]
    return {pair[1]: pair[2] for pair in pairs if pair}


def script(directory: Path, name: str, text: str = "#!/bin/sh\n") -> Path:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_each_line_says_what_was_found_and_where_it_was_set(tmp_path: Path) -> None:
    (tmp_path / "poolparty.conf.py").write_text(
        'max_pool_size = 8\nworker_request_timeout = "20s"\nraw_env = ["TOKEN=secret"]\n'
    )
    script(tmp_path, "serve", "#!/usr/bin/env ruby\n")
    words = ("--admin-address", "[::1]:9090", "-w", "2", "--bind", "unix:x", "--bind", "[::]:80")
    lines = found(tmp_path, *words, "--", "./serve", "a b", GUNICORN_CMD_ARGS="--min-pool-size 2 --backlog 9")
    assert lines == {
        "configuration file": str(tmp_path / "poolparty.conf.py"),
        "command": "./serve 'a b'  [command line]",
        "program": f"{tmp_path}/serve, run by /usr/bin/env ruby",
        "worker library": str(SDK / "ruby"),
        "directory": f"{tmp_path}  [default]",
        "serves on": "unix:x, http://[::]:80  [command line]",
        "HTTP workers": "2  [command line]",
        "pool": "2 to 8 workers  [min_pool_size: GUNICORN_CMD_ARGS, max_pool_size: ./poolparty.conf.py]",
        "control socket": f"{tmp_path}/poolparty.sock  [default]",
        "admin listener": "[::1]:9090  [command line]",
        "backlog": "9  [GUNICORN_CMD_ARGS]",
        "raw_env": "TOKEN=…  [./poolparty.conf.py]",
        "worker_request_timeout": "20s  [./poolparty.conf.py]",
    }


def test_what_nobody_has_set_is_told_as_such(tmp_path: Path) -> None:
    program = script(tmp_path, "python3.99")
    lines = found(tmp_path, "--", "python3.99", "app.py", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert lines == {
        "configuration file": "none (./poolparty.conf.py would be read)",
        "command": "python3.99 app.py  [command line]",
        "program": f"{program}, run by /bin/sh",
        "worker library": str(SDK / "python"),
        "directory": f"{tmp_path}  [default]",
        "serves on": "http://127.0.0.1:8080  [default]",
        "HTTP workers": "1  [default]",
        "pool": "1 worker  [default]",
        "control socket": f"{tmp_path}/poolparty.sock  [default]",
        "admin listener": "off  [default]",
    }


def test_the_options_that_count_are_those_given_last(tmp_path: Path) -> None:
    script(tmp_path, "shop")
    (tmp_path / "app").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "shop")
    (tmp_path / "c.py").write_text(
        "bind = '127.0.0.1:1'\nworkers = 4\nmax_pool_size = 3\nmin_pool_size = 3\n"
    )
    lines = found(
        *(tmp_path, "-c", "c.py", "--listen-address", "127.0.0.1:2", "--chdir", "app"),
        *("--ctl-socket", "c.sock", "--ctl-socket-group", "0", "--admin-prefix", "/-/p", "--", "../link"),
        PORT="99",
        WEB_CONCURRENCY="7",
    )
    assert lines["serves on"] == "http://127.0.0.1:2  [command line]"
    assert lines["HTTP workers"] == "4  [c.py]"
    assert lines["pool"] == "3 workers  [c.py]"
    assert lines["program"] == f"{tmp_path}/link, a link to {tmp_path}/shop"
    assert lines["worker library"].startswith("none that comes with poolparty")
    assert lines["control socket"] == f"{tmp_path}/app/c.sock, also for group 0  [command line]"
    assert lines["admin pages below"] == "/-/p/  [command line]"
    lines = found(tmp_path, "--agent-address", "unix:a", "--", "./shop", PORT="99", WEB_CONCURRENCY="7")
    assert lines["serves on"] == "http://0.0.0.0:99  [PORT in the environment]"
    assert lines["HTTP workers"] == "7  [WEB_CONCURRENCY in the environment]"
    assert lines["agent check"] == "unix:a  [command line]"


def test_a_bad_configuration_is_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "--check-config", "--max-pool-size", "none", "--", "sh")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("\nError: max_pool_size = 'none': ")


def test_the_version_is_told_with_what_it_stands_on(tmp_path: Path) -> None:
    done = run(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        rf"poolparty {re.escape(__version__)}\n"
        rf"gunicorn {re.escape(gunicorn.__version__)}\n"
        r"\w+ 3\.\d+\.\S+\n"
        r"event loop: (uvloop \S+|asyncio \(uvloop is not installed\))\n"
        rf"HTTP parser: httptools {re.escape(httptools.__version__)}\n",
        done.stdout,
    )


def test_without_uvloop_the_event_loop_is_asyncios(monkeypatch: pytest.MonkeyPatch) -> None:
    from poolparty.findings import versions

    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert "event loop: asyncio (uvloop is not installed)" in versions()


def test_each_library_has_its_interpreters_names() -> None:
    assert set(INTERPRETERS) == set(languages()) - {"go"}  # whose programs have their own names
    for command, language in (
        (("/usr/bin/php8.2", "app.php"), "php"),
        (("nice", "python3.12", "-m", "poolparty.wsgi", "app:app"), "python"),
        (("luajit", "app.lua"), "lua"),
        (("lua5.1", "app.lua"), "lua"),
        (("nodejs", "app.js"), "node"),
        (("Rscript", "app.R"), "r"),
        (("ruby", "perl"), "ruby"),
        (("./janet.py",), None),
    ):
        assert language_of(command) == language
    assert interpreter_of(("nice", "php"), "php") == "php"


def test_further_pools_have_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "poolparty.conf.py").write_text(
        'pool_cmd = "sh site.sh"\nmax_pool_size = 2\n'
        'pools = {"api": {"routes": ["/api", "api.example.com/"], "pool_cmd": ["sh", "a b"],'
        ' "max_pool_size": 9},'
        ' "health": {"routes": ["/health"], "raw_env": ["TOKEN=secret"]}}\n'
    )
    lines = found(tmp_path)
    assert lines["pool"] == "1 to 2 workers  [max_pool_size: ./poolparty.conf.py]"
    assert lines["pool api"] == "1 to 9 workers, sh 'a b', for /api, api.example.com/  [./poolparty.conf.py]"
    assert lines["pool health"] == "1 to 2 workers, sh site.sh, for /health  [./poolparty.conf.py]"
    assert "secret" not in str(lines)
