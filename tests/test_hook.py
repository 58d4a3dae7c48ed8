"""The .pth file and its hook: stock gunicorn gains our options, and nothing else changes for anyone."""

from __future__ import annotations

import os
import re
import socket
import statistics
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import gunicorn
import pytest

from poolparty.settings import OPTIONS

ROOT = Path(__file__).resolve().parents[1]
PTH = ROOT / "poolparty_server.pth"


class Environment:
    """A virtual environment with gunicorn, and Poolparty as an editable install leaves it, or without."""

    def __init__(self, path: Path, with_poolparty: bool) -> None:
        venv.create(path, symlinks=True)
        self.python = str(path / "bin" / "python")
        [self.site] = path.glob("lib/python3*/site-packages")
        installed = {Path(module.__path__[0]).parent for module in (gunicorn,)}
        (self.site / "_dependencies.pth").write_text("".join(f"{folder}\n" for folder in sorted(installed)))
        if with_poolparty:
            (self.site / "__editable__.poolparty_server.pth").write_text(f"{ROOT}\n")
            (self.site / PTH.name).write_bytes(PTH.read_bytes())

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *words], cwd="/", env=clean(env), capture_output=True, text=True, timeout=30
        )

    def gunicorn(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("-c", "from gunicorn.app.wsgiapp import run; run(prog='gunicorn')", *words, **env)


def clean(env: dict[str, str]) -> dict[str, str]:
    names = ("GUNICORN_CMD_ARGS", "PORT", "WEB_CONCURRENCY", "PYTHONPATH")
    return {**{name: value for name, value in os.environ.items() if name not in names}, **env}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("with"), with_poolparty=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("without"), with_poolparty=False)


# What gunicorn gains.


def test_stock_gunicorn_has_our_options_in_a_group_of_their_own(
    ours: Environment, plain: Environment
) -> None:
    done = ours.gunicorn("--help")
    assert (done.returncode, done.stderr) == (0, "")
    before, group = done.stdout.split("\nPoolparty:\n")
    for option in OPTIONS:
        shown = f"  {option.flag} {option.meta or ''}".rstrip() in group
        assert shown != option.in_file_only
        assert option.flag not in before
    assert before.strip() == plain.gunicorn("--help").stdout.strip()


@pytest.mark.parametrize("source", ["command line", "environment", "file"])
def test_our_options_are_read_from_everywhere_gunicorn_reads(
    ours: Environment, tmp_path: Path, source: str
) -> None:
    config = tmp_path / "c.py"
    config.write_text("worker_class = 'poolparty.GWorker'\npool_cmd = 'sh'\nmax_pool_size = 'many'\n")
    words = {
        "command line": ("-k", "poolparty.GWorker", "--pool-cmd", "sh", "--max-pool-size", "many"),
        "environment": (),
        "file": ("-c", str(config)),
    }[source]
    env = {"GUNICORN_CMD_ARGS": "-k poolparty.GWorker --pool-cmd sh --max-pool-size many"}
    done = ours.gunicorn("--check-config", *words, **(env if source == "environment" else {}))
    assert done.returncode == 1
    assert (
        done.stderr == "\nError: max_pool_size = 'many': this has to be a whole number from 1 to 9,999,999.\n"
    )


def test_gworker_without_a_command_says_so(ours: Environment) -> None:
    done = ours.gunicorn("-k", "poolparty.GWorker")
    assert done.returncode == 1
    assert done.stderr.startswith("\nError: pool_cmd: there is no command")


# What must not change.


def test_gunicorn_alone_still_asks_for_an_application(ours: Environment, plain: Environment) -> None:
    done, before = ours.gunicorn(), plain.gunicorn()
    assert (done.returncode, done.stderr) == (before.returncode, before.stderr)
    assert "No application module specified" in done.stderr


def test_gunicorn_serves_a_plain_application_whatever_its_configuration_calls_things(
    ours: Environment, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [b'plain']\n"
    )
    config = tmp_path / "c.py"
    config.write_text("max_pool_size = 'many'\nctl_socket = object()\npool_cmd = len\nspare_workers = None\n")
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    command = "from gunicorn.app.wsgiapp import run; run(prog='gunicorn')"
    words = [
        "-c",
        str(config),
        "-b",
        f"127.0.0.1:{port}",
        "--chdir",
        str(tmp_path),
        "--no-control-socket",
        "app:app",
    ]
    server = subprocess.Popen(
        [ours.python, "-c", command, *words], env=clean({}), stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if "Booting worker" in line:
                break
        with urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            assert answer.read() == b"plain"
    finally:
        server.terminate()
        assert server.wait(10) == 0
        server.stderr.close()


def test_a_start_of_python_imports_nothing_for_us(ours: Environment, plain: Environment) -> None:
    code = "import sys; print(*sorted(sys.modules))"
    assert ours.run("-c", code).stdout == plain.run("-c", code).stdout


def test_a_start_of_python_costs_at_most_a_millisecond_more(ours: Environment, plain: Environment) -> None:
    """Measured at 0.5 ms, of 11. Noise is more than that: starts alternate, and the best of three series
    counts. On a machine where a start takes longer than ten milliseconds, a tenth of it."""

    def start(env: Environment) -> float:
        begin = time.perf_counter()
        os.waitpid(os.posix_spawn(env.python, [env.python, "-c", "pass"], clean({})), 0)
        return time.perf_counter() - begin

    def series() -> tuple[float, float]:
        pairs = [(start(ours), start(plain)) for _ in range(25)]
        without = statistics.median(second for _, second in pairs)
        return statistics.median(first for first, _ in pairs) - without, without

    start(ours), start(plain)
    more, without = min(series() for _ in range(3))
    assert more < max(0.001, 0.1 * without)


def test_a_pth_that_is_read_twice_as_virtual_environments_do_is_one_finder(ours: Environment) -> None:
    code = "import sys; print([type(finder).__name__ for finder in sys.meta_path].count('PoolpartyFinder'))"
    assert ours.run("-c", code).stdout == "1\n"


def test_the_hook_takes_itself_away_and_leaves_the_module_as_it_was(ours: Environment) -> None:
    code = (
        "import sys\n"
        "import gunicorn.config\n"
        "print([finder for finder in sys.meta_path if type(finder).__name__ == 'PoolpartyFinder'])\n"
        "print(type(gunicorn.config.__loader__).__name__, type(gunicorn.config.__spec__.loader).__name__)\n"
        "names = [setting.name for setting in gunicorn.config.KNOWN_SETTINGS]\n"
        "print(len(names) == len(set(names)))\n"
    )
    done = ours.run("-c", code)
    assert done.stdout.splitlines() == ["[]", "SourceFileLoader SourceFileLoader", "True"]
    assert done.stderr == ""


def test_asking_where_the_module_is_does_not_use_the_hook_up(ours: Environment) -> None:
    code = (
        "import importlib.util\n"
        "spec = importlib.util.find_spec('gunicorn.config')\n"
        "print(spec.loader.get_source('gunicorn.config')[:1])\n"
        "import gunicorn.config\n"
        "print('pool_cmd' in gunicorn.config.Config().settings)\n"
    )
    assert ours.run("-c", code).stdout.splitlines() == ["#", "True"]


def test_our_settings_can_also_be_imported_first(ours: Environment) -> None:
    code = (
        "import poolparty.settings, gunicorn.config\n"
        "names = [setting.name for setting in gunicorn.config.KNOWN_SETTINGS]\n"
        "print(names.count('pool_cmd'))\n"
    )
    assert ours.run("-c", code).stdout == "1\n"


@pytest.mark.parametrize("flag", ["-I", "-E", "-s", "-OO", "-W error"])
def test_the_hook_works_under_pythons_flags(ours: Environment, flag: str) -> None:
    code = "import gunicorn.config; print('pool_cmd' in gunicorn.config.Config().settings)"
    done = ours.run(*flag.split(), "-c", code)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_without_site_there_is_no_hook_and_no_complaint(ours: Environment) -> None:
    done = ours.run("-S", "-c", "import sys; print(len(sys.meta_path))")
    assert (done.stdout, done.stderr) == ("3\n", "")


# Odd environments.


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Environment]:
    yield Environment(tmp_path / "env", with_poolparty=True)


def test_gunicorn_imported_from_a_zip_file_gains_our_options_too(
    another: Environment, tmp_path: Path
) -> None:
    archive = tmp_path / "gunicorn.zip"
    package = Path(gunicorn.__path__[0])
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in package.rglob("*.py"):
            zipped.write(file, file.relative_to(package.parent))
    (another.site / "A_zip.pth").write_text(f"{archive}\n")
    code = (
        "import gunicorn.config; print(type(gunicorn.config.__loader__).__name__)\n"
        "print('pool_cmd' in gunicorn.config.Config().settings)\n"
    )
    done = another.run("-c", code)
    assert (done.stdout.splitlines(), done.stderr) == (["zipimporter", "True"], "")


@pytest.mark.parametrize("left", ["the hook", "the .pth alone"])
def test_a_package_that_was_removed_breaks_nothing(another: Environment, left: str) -> None:
    (another.site / "__editable__.poolparty_server.pth").unlink()
    if left == "the hook":
        (another.site / "_poolparty_hook.py").write_bytes((ROOT / "_poolparty_hook.py").read_bytes())
    done = another.run("-c", "import gunicorn.config; print('fine')")
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_a_package_that_is_broken_is_a_warning_to_gunicorn_and_no_more(another: Environment) -> None:
    (another.site / "__editable__.poolparty_server.pth").unlink()
    (another.site / "_poolparty_hook.py").write_bytes((ROOT / "_poolparty_hook.py").read_bytes())
    (another.site / "poolparty").mkdir()
    (another.site / "poolparty" / "settings.py").write_text("import a_dependency_nobody_has\n")
    assert another.run("-c", "pass").stderr == ""
    done = another.gunicorn("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"Warning: Poolparty's options .*a_dependency_nobody_has.*\n", done.stderr)


def test_the_pth_is_one_line_that_cannot_raise() -> None:
    [line] = PTH.read_text().splitlines()
    assert line.startswith("import ")
    code = f"{line}\ntry:\n import gunicorn.config\nexcept ModuleNotFoundError as error:\n print(error)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "No module named 'gunicorn'\n", "")
