"""--reload: what a developer sees after saving a file, be it a good one or one that does not start."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from server import Server, wait_until

APPLICATION = """\
import poolparty

{}

poolparty.serve(lambda request: "{}")
"""
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
BROKEN = ["died before it was ready", "not restarted", "Traceback", "RuntimeError"]


def save(path: Path, answer: str, line: str = "") -> None:
    """As an editor does: a new file in place of the old one."""
    new = path.with_name(".new")
    new.write_text(APPLICATION.format(line, answer))
    new.rename(path)


@pytest.fixture
def application(tmp_path: Path) -> Path:
    (tmp_path / "server1").mkdir()
    path = tmp_path / "server1" / "main.py"
    save(path, "one")
    return path


COMMAND = [sys.executable, "main.py"]


def wait_answer(server: Server, text: str) -> None:
    wait_until(lambda: server.get("/").text == text, f"the answer {text!r}")


@pytest.mark.parametrize("engine", ["auto", "poll"])
def test_a_saved_file_is_served(serve: Callable[..., Server], application: Path, engine: str) -> None:
    server = serve("--reload", "--reload-engine", engine, command=COMMAND)
    assert server.get("/").text == "one"
    save(application, "two")
    wait_answer(server, "two")
    (application.parent / "part.py").write_text("text = 'three'")
    application.write_text("import part, poolparty\npoolparty.serve(lambda request: part.text)\n")
    wait_answer(server, "three")
    (application.parent / "part.py").write_text("text = 'four'")
    wait_answer(server, "four")


def test_with_gunicorns_command_its_own_reloader_stays_off(
    serve: Callable[..., Server], application: Path
) -> None:
    server = serve("--reload", command=COMMAND, gunicorn=True)
    wait_answer(server, "one")
    workers = server.http_workers()
    save(application, "two")
    wait_answer(server, "two")
    assert server.http_workers() == workers
    assert "Worker reloading" not in server.log


def test_without_the_option_nothing_is_watched(serve: Callable[..., Server], application: Path) -> None:
    server = serve(command=COMMAND)
    assert server.get("/").text == "one"
    before = server.children()
    save(application, "two")
    assert not any(
        "watch" in Path(f"/proc/{server.pid}/task/{task}/comm").read_text()
        for task in [entry.name for entry in Path(f"/proc/{server.pid}/task").iterdir()]
    )
    assert server.children() == before
    assert server.get("/").text == "one"
    server.ctl("restart-workers")
    assert server.get("/").text == "two"


def test_while_the_new_code_does_not_start_every_request_is_told_why(
    serve: Callable[..., Server], application: Path
) -> None:
    server = serve("--reload", "--static-root", ".", command=COMMAND, expected=BROKEN)
    assert server.get("/").text == "one"
    save(application, "two", 'raise RuntimeError("<b>mended soon")')
    wait_until(lambda: server.get("/").status == 503, "the failure")
    answer = server.get("/", BROWSER)
    assert (answer.status, answer.get("content-type")) == (503, "text/html; charset=utf-8")
    assert "Traceback (most recent call last)" in answer.text
    assert "RuntimeError: &lt;b&gt;mended soon" in answer.text and "<b>mended" not in answer.text
    answer = server.ask("POST", "/", b"body")
    assert (answer.status, answer.get("content-type")) == (503, "text/plain; charset=utf-8")
    assert "RuntimeError: <b>mended soon" in answer.text
    assert server.get("/static/main.py").status == 200
    save(application, "three", 'raise RuntimeError("another fault")')
    wait_until(lambda: "another fault" in server.get("/", BROWSER).text, "the new failure")
    save(application, "four")
    wait_answer(server, "four")


def test_an_application_broken_from_the_start_is_served_once_it_is_mended(
    serve: Callable[..., Server], application: Path
) -> None:
    save(application, "one", 'raise RuntimeError("from the start")')
    server = serve("--reload", "--worker-restart-delay", "60s", command=COMMAND, expected=BROKEN)
    wait_until(lambda: "from the start" in server.get("/", BROWSER, patience=30).text, "the page")
    save(application, "two")
    wait_answer(server, "two")


def test_without_the_option_no_client_sees_what_a_child_says(
    serve: Callable[..., Server], application: Path
) -> None:
    server = serve("--worker-rendezvous-timeout", "1s", command=COMMAND, expected=BROKEN)
    assert server.get("/").text == "one"
    save(application, "two", 'raise RuntimeError("secret")')
    assert server.ctl("restart-workers")[-1].startswith("ERROR:")
    assert server.get("/", BROWSER).text == "one"


def test_reload_paths_bound_what_is_watched(serve: Callable[..., Server], application: Path) -> None:
    (application.parent / "lib").mkdir()
    (application.parent / "lib" / "a.txt").write_text("1")
    server = serve("--reload", "--reload-paths", "lib", command=COMMAND)
    assert server.get("/").text == "one"
    save(application, "two")
    (application.parent / "lib" / "a.txt").write_text("2")
    wait_answer(server, "two")
    server.wait_log('reason="the application has changed: lib/a.txt"')
    assert len(server.wait_log("the application has changed")) == 1


def test_a_new_configuration_may_begin_and_end_the_watching(
    serve: Callable[..., Server], application: Path
) -> None:
    conf = application.with_name("poolparty.conf.py")
    conf.write_text("reload = False\n")
    server = serve(command=COMMAND)
    assert server.get("/").text == "one"
    conf.write_text("reload = True\n")
    server.signal(signal.SIGHUP)
    server.wait_log("Reloader is on")
    server.wait_log("are those of the new configuration")
    save(application, "two")
    wait_answer(server, "two")
    conf.write_text("reload = False\n")
    server.signal(signal.SIGHUP)
    server.wait_log("are those of the new configuration", 2)
    wait_until(lambda: "watcher" not in threads(server.pid), "the watcher's end")


def threads(pid: int) -> list[str]:
    return [path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")]
