"""Which files are watched, and that a change of one is told once, by whichever way it is noticed."""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from poolparty.arbiter import watcher as module
from poolparty.arbiter.watcher import Watched, Watcher
from poolparty.pools import pool_configs

PATIENCE = 10.0
LOG = logging.getLogger("test_watcher")


def watched(folder: Path, command: list[str], **values: object) -> Watched:
    cfg = Config()
    for name, value in {"worker_class": "poolparty.GWorker", "pool_cmd": command, **values}.items():
        cfg.set(name, value)
    cfg.set("chdir", str(folder))
    return Watched.of_pools(pool_configs(cfg))


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A directory with an application in it, and with what is none of it."""
    for name in (
        *("app/main.py", "app/lib/deep/a.janet", "app/templates/index.html", "app/Makefile"),
        *("app/.git/HEAD", "app/.env", "app/__pycache__/main.pyc", "app/node_modules/x/index.js"),
        *("app/server.log", "app/data.sqlite3-wal", "app/main.py~", "app/.main.py.swp", "app/own.pid"),
        *(
            "app/env/pyvenv.cfg",
            "app/env/lib/x.py",
            "app/static/site.css",
            "app/access",
            "elsewhere/start.py",
        ),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    return tmp_path / "app"


def names(watched: Watched, folder: Path) -> set[str]:
    return {os.path.relpath(path, folder) for path, state in watched.all().items() if state is not None}


def test_the_commands_files_and_the_working_directory_are_watched(application: Path) -> None:
    found = watched(
        application,
        ["python3", "../elsewhere/start.py", "--x", "missing.py"],
        static_root="static",
        accesslog="access",
    )
    assert names(found, application) == {
        *("main.py", "lib/deep/a.janet", "templates/index.html", "Makefile"),
        "../elsewhere/start.py",
    }


def test_a_program_given_by_its_path_is_watched_and_an_interpreter_is_not(application: Path) -> None:
    assert "../elsewhere/start.py" in names(watched(application, ["../elsewhere/start.py"]), application)
    assert not any(
        "python" in name for name in names(watched(application, ["python3", "main.py"]), application)
    )


def test_reload_paths_take_the_place_of_both(application: Path) -> None:
    found = watched(application, ["python3", "main.py"], reload_paths="lib:.env:not-yet.py")
    assert names(found, application) == {"lib/deep/a.janet", ".env"}
    (application / "not-yet.py").touch()
    assert "not-yet.py" in names(found, application)


def test_gunicorns_extra_files_come_on_top(application: Path) -> None:
    extra = [str(application.parent / "elsewhere" / "*.py"), str(application / ".env")]
    found = watched(application, ["python3", "main.py"], reload_paths=["lib"], reload_extra_files=extra)
    assert names(found, application) == {"lib/deep/a.janet", ".env", "../elsewhere/start.py"}


def test_the_file_that_the_servers_output_goes_to_is_no_part_of_it(application: Path) -> None:
    output = os.dup(1)
    try:
        with (application / "out.txt").open("w") as file:
            os.dup2(file.fileno(), 1)
            assert "out.txt" not in names(watched(application, ["python3"]), application)
    finally:
        os.dup2(output, 1)
        os.close(output)
    assert "out.txt" in names(watched(application, ["python3"]), application)


def test_a_socket_is_no_file(application: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(application / "s"))
        assert "s" not in names(watched(application, ["python3"]), application)


def test_a_tree_without_end_is_cut(application: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 2)
    found = watched(application, ["python3"])
    assert len(found.all()) == 2 and found.cut


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("main.py", True),
        ("new/file.R", True),
        (".git/index", False),
        ("lib/__pycache__/x.py", False),
        ("a.log", False),
        ("static/site.css", False),
        ("../elsewhere/start.py", False),
    ],
)
@pytest.mark.parametrize("root", ["static_root", "sendfile_root"])
def test_what_happens_around_the_application_does_not_count(
    application: Path, name: str, counts: bool, root: str
) -> None:
    found = watched(application, ["python3"], **{root: "static"})
    assert found.counts(os.path.normpath(application / name)) is counts


# --- noticing ----------------------------------------------------------------------------------------------


class Watching:
    """A watcher and what it has told."""

    def __init__(self, watched: Watched, polling: bool) -> None:
        self.told: queue.Queue[str] = queue.Queue()
        self.watcher = Watcher(watched, self.told.put, LOG, polling)

    def tells(self) -> str:
        return os.path.basename(self.told.get(timeout=PATIENCE))


@pytest.fixture(params=["watchfiles", "polling", "not installed"])
def watching(
    application: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watching]:
    monkeypatch.setattr(module, "POLL", 0.05)
    if request.param == "watchfiles":
        pytest.importorskip("watchfiles")
    elif request.param == "not installed":
        monkeypatch.setitem(sys.modules, "watchfiles", None)
    files = watched(application, ["python3", "../elsewhere/start.py"])
    watching = Watching(files, request.param == "polling")
    yield watching
    watching.watcher.stop()


def test_each_change_is_told(application: Path, watching: Watching) -> None:
    (application / "main.py").write_text("22")
    assert watching.tells() == "main.py"
    (application / "lib" / "new.py").write_text("1")
    assert watching.tells() == "new.py"
    (application / "lib" / "deep" / "a.janet").unlink()
    assert watching.tells() == "a.janet"
    (application / "added").mkdir()
    (application / "added" / "b.py").write_text("1")
    assert watching.tells() == "b.py"
    assert watching.told.empty()


def test_a_named_file_elsewhere_is_noticed_also_when_it_is_replaced(
    application: Path, watching: Watching
) -> None:
    start = application.parent / "elsewhere" / "start.py"
    for text in ("22", "333"):
        new = start.with_name("new")
        new.write_text(text)
        new.rename(start)
        assert watching.tells() == "start.py"


def test_many_files_written_at_once_are_one_change(application: Path, watching: Watching) -> None:
    for number in range(300):
        (application / f"m{number}.py").write_text("1")
    assert watching.tells().startswith("m")
    (application / "z.py").write_text("1")
    assert watching.tells() == "z.py"


def test_what_does_not_count_is_not_told(application: Path, watching: Watching) -> None:
    for name in (
        "server.log",
        "data.sqlite3-wal",
        ".env",
        ".git/HEAD",
        "env/lib/x.py",
        "__pycache__/main.pyc",
    ):
        (application / name).write_text("changed")
    os.chmod(application / "main.py", 0o755)
    (application / "z.py").write_text("1")
    assert watching.tells() == "z.py"
    assert watching.told.empty()


def test_what_the_application_writes_at_each_start_is_left_out_in_the_end(
    application: Path, watching: Watching
) -> None:
    """Otherwise it would be started again and again."""
    for number in range(module.REPEATED):
        (application / "written.json").write_text("x" * number)
        assert watching.tells() == "written.json"
    (application / "written.json").write_text("the last one")
    (application / "z.py").write_text("1")
    assert watching.tells() == "z.py"
    (application / "written.json").write_text("more")
    (application / "z.py").write_text("22")
    assert watching.tells() == "z.py"
    assert watching.told.empty()


def test_a_stopped_watcher_tells_nothing_more(application: Path, watching: Watching) -> None:
    watching.watcher.stop()
    (application / "main.py").write_text("22")
    assert watching.told.empty()


def test_where_watchfiles_cannot_watch_the_files_are_looked_at(
    application: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchfiles = pytest.importorskip("watchfiles")

    def refuse(*paths: str, **options: Any) -> Iterator[Any]:
        raise OSError("No space left on device (os error 28)")
        yield

    monkeypatch.setattr(watchfiles, "watch", refuse)
    monkeypatch.setattr(module, "POLL", 0.05)
    watching = Watching(watched(application, ["python3"]), False)
    try:
        (application / "main.py").write_text("22")
        assert watching.tells() == "main.py"
    finally:
        watching.watcher.stop()


def test_what_other_pools_run_is_watched_too(application: Path) -> None:
    elsewhere = application.parent / "elsewhere"
    table = {"routes": ["/api"], "pool_cmd": ["python3", "start.py"], "chdir": str(elsewhere)}
    found = names(watched(application, ["python3", "main.py"], pools={"api": table}), application)
    assert {"main.py", "../elsewhere/start.py"} <= found
