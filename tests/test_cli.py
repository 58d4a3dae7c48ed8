"""The `poolparty` command until it starts: where values come from, and what bad input is answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gunicorn.config
import pytest
from gunicorn.app.wsgiapp import WSGIApplication

from poolparty.cli import Poolparty
from poolparty.settings import OPTIONS, Options

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to start in, and nothing in the environment that sets an option."""
    for name in ("GUNICORN_CMD_ARGS", "PORT", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gunicorn.config.Chdir, "default", str(tmp_path))
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "__config__", raising=False)
    return tmp_path


def start(monkeypatch: pytest.MonkeyPatch, *words: str) -> Poolparty:
    monkeypatch.setattr(sys, "argv", ["poolparty", *words])
    return Poolparty("%(prog)s [options] -- CMD [ARG ...]", prog="poolparty")


def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str, status: int = 1
) -> str:
    """What a start that must fail says on stderr: one line after gunicorn's empty one."""
    with pytest.raises(SystemExit) as caught:
        start(monkeypatch, *words)
    assert caught.value.code == status
    output = capsys.readouterr()
    assert output.out == ""
    said = output.err.strip()
    if status == 1:
        assert said.startswith("Error: ") and "\n" not in said
    return said.removeprefix("Error: ")


# The command.


@pytest.mark.parametrize(
    "words",
    [
        ("--", "sh", "app.sh"),
        ("--", "sh", "-c", "echo --; exit", "--", "--help"),
        ("--max-pool-size", "2", "--", "sh", "", "a b", "'", "--max-pool-size", "9"),
        ("sh", "app.sh"),
        ("--max-pool-size", "2", "sh", "app.sh"),
        ("sh", "app.sh", "--max-pool-size", "2"),
        ("--pool-cmd", "sh 'a b' app.sh"),
        ("--", "sh", "\udcff\udcfe"),
    ],
)
def test_the_command_is_what_follows_the_first_double_dash_word_for_word(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    options = Options.from_cfg(start(monkeypatch, *words).cfg)
    if "--" in words:
        assert options.pool_cmd == words[words.index("--") + 1 :]
    else:
        assert options.pool_cmd in (("sh", "app.sh"), ("sh", "a b", "app.sh"))
    assert options.max_pool_size == (2 if "--max-pool-size" in words else 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "pool_cmd: there is no command"),
        (("--",), "pool_cmd: there is no command"),
        (
            ("--", "no-such-program"),
            "pool_cmd = 'no-such-program': no program no-such-program is on the PATH",
        ),
        (("--pool-cmd", "sh a", "--", "sh", "b"), "pool_cmd is given twice"),
        (("stray", "--", "sh"), "stray: this is no option"),
        (("--max-pool-size", "0", "--", "sh"), "max_pool_size = '0': this has to be a whole number from 1"),
        (("--min-pool-size", "3", "--", "sh"), "min_pool_size = 3: this is more than max_pool_size = 1"),
        (
            ("--listen-address", "localhost:x", "--", "sh"),
            "listen_address = 'localhost:x': this is no address",
        ),
        (("--bind", "localhost:65536", "--", "sh"), "bind = 'localhost:65536': there is no such port"),
        (("-k", "sync", "--", "sh"), "worker_class = 'sync': poolparty serves with poolparty.GWorker only"),
        (("--threads", "4", "--", "sh"), "threads = 4: an HTTP worker is one event loop"),
        (("--certfile", "nowhere", "--", "sh"), "certfile = 'nowhere': this cannot be read"),
        (("--user", "nobody-here", "--", "sh"), "user = 'nobody-here': No such user"),
        (("--chdir", "nowhere", "--", "sh"), "chdir = 'nowhere': can't chdir to 'nowhere'."),
        (("--env", "x", "--", "sh"), "raw_env = ['x']: give each as NAME=value."),
        (("-c", "nowhere.py", "--", "sh"), "config = 'nowhere.py': No such file or directory"),
        (("-c", "python:nowhere", "--", "sh"), "config = 'python:nowhere': ModuleNotFoundError"),
        (("-c", ".", "--", "sh"), "config = '.': Is a directory"),
    ],
)
def test_what_cannot_be_served_ends_the_start_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    sentence: str,
) -> None:
    said = refusal(monkeypatch, capsys, *words)
    assert said.startswith(sentence)
    assert said.endswith(".")


@pytest.mark.parametrize("words", [("--bogus",), ("--workers", "x"), ("--max-pool-size",)])
def test_what_is_no_option_prints_the_usage_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    said = refusal(monkeypatch, capsys, *words, "--", "sh", status=2)
    assert said.startswith("usage: poolparty [options] -- CMD [ARG ...]")


# Where values come from.


def test_the_command_line_wins_over_the_environment_wins_over_the_file(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    (elsewhere / "poolparty.conf.py").write_text(
        "pool_cmd = 'sh file'\nmax_pool_size = 3\nmin_pool_size = 2\nspare_workers = 1\nworkers = 5\n"
    )
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--max-pool-size 4 --min-pool-size 4 --workers 6 -- sh env")
    cfg = start(monkeypatch, "--max-pool-size", "5", "--", "sh", "line").cfg
    options = Options.from_cfg(cfg)
    assert options.pool_cmd == ("sh", "line")
    assert (options.max_pool_size, options.min_pool_size, options.spare_workers) == (5, 4, 1)
    assert cfg.workers == 6


def test_listen_address_and_bind_obey_the_same_order(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    (elsewhere / "poolparty.conf.py").write_text("listen_address = '127.0.0.1:1'\n")
    assert start(monkeypatch, "--", "sh").cfg.bind == ["127.0.0.1:1"]
    assert start(monkeypatch, "--bind", "127.0.0.1:2", "--", "sh").cfg.bind == ["127.0.0.1:2"]
    (elsewhere / "poolparty.conf.py").write_text("bind = ['127.0.0.1:1']\n")
    assert start(monkeypatch, "--listen-address", "127.0.0.1:3", "--", "sh").cfg.bind == ["127.0.0.1:3"]


def test_of_two_configuration_files_the_command_lines_is_read(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    (elsewhere / "a.py").write_text("workers = 2\n")
    (elsewhere / "b.py").write_text("workers = 3\ntimeout = 9\n")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "-c b.py")
    cfg = start(monkeypatch, "-c", "a.py", "--", "sh").cfg
    assert (cfg.workers, cfg.timeout, cfg.config) == (2, 30, "a.py")
    cfg = start(monkeypatch, "--", "sh").cfg
    assert (cfg.workers, cfg.timeout, cfg.config) == (3, 9, "b.py")


def test_the_defaults_differ_from_gunicorns_where_a_server_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = start(monkeypatch, "--", "sh").cfg
    assert cfg.bind == ["127.0.0.1:8080"]
    assert (cfg.keepalive, cfg.worker_connections, cfg.graceful_timeout) == (75, 10_000, 65)
    assert cfg.control_socket_disable
    assert cfg.proc_name == "poolparty"


def test_a_configuration_file_of_gunicorns_that_lies_here_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    (elsewhere / "gunicorn.conf.py").write_text("workers = 9\n")
    assert start(monkeypatch, "--", "sh").cfg.workers == 1
    assert start(monkeypatch, "-c", "gunicorn.conf.py", "--", "sh").cfg.workers == 9


def test_a_changed_configuration_file_is_read_again_at_a_reload(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    file = elsewhere / "poolparty.conf.py"
    file.write_text("max_pool_size = 3\npool_cmd = 'sh a'\n")
    app = start(monkeypatch)
    before = file.stat()
    file.write_text("max_pool_size = 4\npool_cmd = 'sh b'\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as quick as an editor and a SIGHUP can be
    app.reload()
    options = Options.from_cfg(app.cfg)
    assert (options.max_pool_size, options.pool_cmd) == (4, ("sh", "b"))
    assert not (elsewhere / "__pycache__").exists()


def test_a_configuration_file_can_change_the_directory(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    (elsewhere / "app").mkdir()
    program = elsewhere / "app" / "serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (elsewhere / "poolparty.conf.py").write_text("chdir = 'app'\npool_cmd = './serve'\n")
    app = start(monkeypatch)
    assert os.getcwd() == str(elsewhere / "app")
    app.reload()
    assert os.getcwd() == str(elsewhere / "app")
    assert Options.from_cfg(app.cfg).pool_cmd == ("./serve",)


def test_what_lies_beside_the_application_shadows_nothing_of_ours(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    start(monkeypatch, "--", "sh")
    assert sys.path[-1] == str(elsewhere)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("workers = 1\nbind = [", "config = 'c.py': '[' was never closed (line 2); mend the file."),
        ("\n\nworkers = n()\n", "config = 'c.py': NameError: name 'n' is not defined (line 3); mend the"),
        ("open('nowhere')\n", "config = 'c.py': FileNotFoundError: "),
        ("workers = 'many'\n", "workers = 'many': invalid literal for int()"),
        ("max_pool_size = 'many'\n", "max_pool_size = 'many': this has to be a whole number from 1 to "),
        ("worker_spawn_timeout = None\n", "worker_spawn_timeout: this is no duration; "),
        ("on_exit = 5\n", "on_exit = 5: Value is not callable: 5."),
        ("a = '\0'\n", "config = 'c.py': "),
    ],
)  # fmt: skip
def test_a_mistake_in_a_configuration_file_is_a_sentence_that_says_where(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    elsewhere: Path,
    text: str,
    sentence: str,
) -> None:
    (elsewhere / "c.py").write_text(text)
    said = refusal(monkeypatch, capsys, "-c", "c.py", "--", "sh")
    assert said.startswith(sentence)
    assert said.endswith(".")


def test_a_configuration_can_be_a_module(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    (elsewhere / "poolparty_test_conf.py").write_text("max_pool_size = 7\n")
    monkeypatch.delitem(sys.modules, "poolparty_test_conf", raising=False)
    cfg = start(monkeypatch, "-c", "python:poolparty_test_conf", "--", "sh").cfg
    assert Options.from_cfg(cfg).max_pool_size == 7


# The configurations that come with us.


@pytest.mark.parametrize("name", ["minimal.py", "pools.py", "annotated.py"])
def test_a_configuration_of_ours_serves_both_ways_of_starting(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    command = ("--pool-cmd", "python3 examples/app.py") if name == "annotated.py" else ()
    words = ("-c", str(ROOT / "conf" / name), *command)
    ours = start(monkeypatch, *words).cfg
    monkeypatch.setattr(sys, "argv", ["gunicorn", *words])
    stock = WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn").cfg
    assert (
        Options.from_cfg(ours).pool_cmd == Options.from_cfg(stock).pool_cmd == ("python3", "examples/app.py")
    )
    assert stock.worker_class_str == "poolparty.GWorker"
    if name != "annotated.py":
        assert ours.bind == stock.bind == ["127.0.0.1:8080"]


# As a program.


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bin" / "poolparty"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **env})


def test_help_shows_our_options_in_a_group_before_gunicorns() -> None:
    done = run("--help", COLUMNS="100")
    assert (done.returncode, done.stderr) == (0, "")
    ours, gunicorns = done.stdout.split("\ngunicorn: ", 1)
    own_group = ours.split("\nPoolparty:\n")[1]
    for option in OPTIONS:
        shown = f"  {option.flag} {option.meta or ''}".rstrip() in own_group
        assert shown != option.in_file_only
        assert option.flag not in gunicorns
    for flag in ("--bind", "--workers", "--access-logfile", "--keep-alive", "--certfile", "--user"):
        assert flag in gunicorns
    for flag in ("--threads", "--preload", "--paste", "--worker-class", "--http2-cleartext"):
        assert flag not in done.stdout
    assert ":ref:" not in done.stdout and "None" not in done.stdout


def test_print_config_prints_ours_among_gunicorns() -> None:
    done = run("--print-config", "--max-pool-size", "4", "--", "sh")
    assert done.returncode == 0
    values = dict(line.split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)
    found = {name.strip(): value for name, value in values.items()}
    assert found["max_pool_size"] == "4"
    assert found["pool_cmd"] == "['sh']"
    assert found["bind"] == "['127.0.0.1:8080']"


def test_what_only_a_start_can_find_out_is_a_sentence_too(elsewhere: Path) -> None:
    (elsewhere / "file").write_text("")
    for words, sentence in (
        (("--listen-address", "unix:file"), "'file' is not a socket"),
        (("--pid", "nowhere/pid"), "nowhere doesn't exist"),
        (("--error-logfile", "nowhere/log"), "'nowhere/log' isn't writable"),
        (("--ctl-socket", "nowhere/ctl", "--bind", "unix:http"), "ctl_socket = 'nowhere/ctl'"),
    ):
        done = run(*words, "--", "sh")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("Error: ")
        assert sentence in done.stderr.splitlines()[-1]


def test_the_settings_module_run_as_a_program_prints_what_is_committed() -> None:
    for argument, file in ((), "docs/settings.md"), (("--annotated",), "conf/annotated.py"):
        done = subprocess.run(
            [sys.executable, "-m", "poolparty.settings", *argument], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout == (ROOT / file).read_text()
