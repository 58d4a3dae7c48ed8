"""PHP applications as they are, run by a php-cgi beside the child: the example, and scripts for one thing."""

from __future__ import annotations

import json
import os
import re
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.only("PHP")

CODE = 'require "poolparty/cgi.php";'
STREAM = {"POOLPARTY_FEATURES": "ready,stream"}


@pytest.fixture
def cgi(start_program: Callable[..., Any], needs: Any) -> Callable[..., Any]:
    """cgi(path, environment={}): a worker that serves a script or a folder."""
    needs("php-cgi", "php-cgi", "-v")
    return lambda path, environment=None: start_program(path, environment, ["-r", CODE])


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.fixture
def script(cgi: Any, tmp_path: Path) -> Callable[..., Any]:
    """script(source, environment={}): a worker that serves this script."""

    def script(source: str, environment: dict[str, str] | None = None) -> Any:
        (tmp_path / "index.php").write_text(f"<?php\n{source}\n")
        return cgi(tmp_path / "index.php", environment)

    return script


@pytest.fixture
def example(cgi: Any, checkout: Path) -> Any:
    return cgi(checkout / "examples" / "php-front" / "index.php")


def test_the_environment_is_a_web_servers(script: Any, tmp_path: Path) -> None:
    worker = script("header('Content-Type: a/b'); echo json_encode($_SERVER);")
    headers = {
        "Host": "example.org:8080",
        "Content-Type": "a/b",
        "Content-Length": "4",
        "X-Some": "thing",
        "Proxy": "http://evil",
        "Transfer-Encoding": "chunked",
    }
    _, _, body = worker.ask("https://example.org:8080/a%20b/c?x=1%20&y", "PUT", headers, b"body")
    shown = json.loads(body)
    expected = {
        "REQUEST_METHOD": "PUT",
        "REQUEST_URI": "/a%20b/c?x=1%20&y",
        "QUERY_STRING": "x=1%20&y",
        "DOCUMENT_ROOT": str(tmp_path),
        "SCRIPT_FILENAME": f"{tmp_path}/index.php",
        "SCRIPT_NAME": "/index.php",
        "PHP_SELF": "/index.php",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "4711",
        "HTTPS": "on",
        "HTTP_HOST": "example.org:8080",
        "HTTP_X_SOME": "thing",
        "CONTENT_TYPE": "a/b",
        "CONTENT_LENGTH": "4",
    }
    assert {name: shown.get(name) for name in expected} == expected
    assert not {"HTTP_PROXY", "HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_TYPE", "POOLPARTY_FEATURES"} & set(
        shown
    )


@pytest.mark.parametrize(
    ("uri", "name", "port"),
    [("http://h/", "h", "80"), ("https://h", "h", "443"), ("http://[::1]:81/", "[::1]", "81")],
)
def test_the_servers_name_and_port(script: Any, uri: str, name: str, port: str) -> None:
    worker = script('echo "$_SERVER[SERVER_NAME] $_SERVER[SERVER_PORT] $_SERVER[REQUEST_URI]";')
    assert worker.ask(uri)[2].decode() == f"{name} {port} /"


def test_each_request_finds_php_as_new(script: Any) -> None:
    worker = script(
        "function once() { static $count = 0; return ++$count; } $GLOBALS['x'][] = 1; echo once(), count($x);"
    )
    assert [worker.ask()[2] for _ in range(3)] == [b"11"] * 3


def test_headers_are_what_header_said(script: Any) -> None:
    worker = script("""
        header('X-A: 1');
        header('X-B: 1');
        header('X-B: 2', false);
        header_remove('X-Powered-By');
        header('Content-Type: a/b');
        http_response_code(418);
        echo 'pot';
    """)
    assert worker.ask() == (418, {"X-A": ["1"], "X-B": ["1", "2"], "Content-Type": ["a/b"]}, b"pot")


def test_exit_ends_the_request_and_not_the_worker(script: Any) -> None:
    worker = script("echo 'before'; exit(7); echo 'after';")
    assert [worker.ask()[2] for _ in range(2)] == [b"before"] * 2


def test_an_error_is_logged_and_the_worker_lives(script: Any) -> None:
    worker = script("if ($_SERVER['QUERY_STRING']) { nothing_of_this_name(); } echo 'fine';")
    assert worker.ask("http://h/?fail")[0] == 500
    assert worker.ask("http://h/")[2] == b"fine"
    assert "nothing_of_this_name" in worker.leave()[1]


@pytest.mark.parametrize("size", [0, 1, 65000, 65528, 65536, 70000, 4 << 20])
def test_bodies_of_every_size_both_ways(script: Any, size: int) -> None:
    worker = script("header('Content-Type: a/b'); readfile('php://input');")
    body = os.urandom(size)
    for _ in range(2):
        assert worker.ask("http://h/", "PUT", {"Content-Type": "a/b"}, body)[2] == body


def test_a_script_may_write_much_before_it_reads(script: Any) -> None:
    worker = script("echo str_repeat('x', 4 << 20); flush(); echo strlen(file_get_contents('php://input'));")
    answer = worker.ask("http://h/", "PUT", {"Content-Type": "a/b"}, b"." * (4 << 20))[2]
    assert answer == b"x" * (4 << 20) + b"4194304"


def test_a_script_may_leave_the_body_unread(script: Any) -> None:
    worker = script("echo 'unread';")
    for _ in range(3):
        assert worker.ask("http://h/", "PUT", {"Content-Type": "a/b"}, b"." * 1000000)[2] == b"unread"


# Goes on when the files 0, 1, … are there.
STEPS = """
for ($n = 0; $n < 3; $n++) {
    echo $n;
    @ob_flush();
    flush();
    while (!file_exists(__DIR__ . "/$n")) { usleep(1000); clearstatcache(); }
}
"""


def test_what_a_script_flushes_is_sent_at_once(script: Any, frame_of: Any, tmp_path: Path) -> None:
    worker = script(STEPS, STREAM)
    assert worker.ready() == ["stream"]
    worker.send(frame_of())
    for number in range(3):
        assert worker.pieces(1) == [b"%d" % number]
        (tmp_path / str(number)).touch()
    assert worker.frame()[0] == 5


CANCELS = {"POOLPARTY_FEATURES": "ready,stream,stream-cancel"}


def test_a_script_that_goes_on_when_its_client_has_left_is_aborted(
    script: Any, frame_of: Any, tmp_path: Path
) -> None:
    worker = script(
        f"""
        if ($_SERVER['REQUEST_URI'] === '/after') {{
            foreach (scandir('/proc/self/fd') as $number) {{
                $target = @readlink("/proc/self/fd/$number");
                if ($number > 2 && str_starts_with((string) $target, 'pipe:')) {{ echo "$number is $target
"; }}
            }}
            exit('its own');
        }}
        register_shutdown_function(fn () => touch('{tmp_path}/' . connection_status()));
        while (true) {{ echo 'more'; flush(); }}
        """,
        CANCELS,
    )
    assert worker.ready() == ["stream", "stream-cancel"]
    for _ in range(2):
        worker.send(frame_of("http://h/"))
        worker.pieces(2)
        worker.cancel_stream()
        assert worker.ask("http://h/after")[2] == b"its own"
        (tmp_path / "1").unlink()  # CONNECTION_ABORTED
    assert len(_children(worker.process.pid)) == 1
    assert worker.leave() == (0, "")


def test_a_script_that_soon_ends_is_left_to_itself_when_its_client_has_left(
    script: Any, frame_of: Any, stream_cancel: bytes, tmp_path: Path
) -> None:
    worker = script(
        "if ($_SERVER['REQUEST_URI'] === '/after') { exit((string) getmypid()); }" + STEPS, CANCELS
    )
    worker.ready()
    before = worker.ask("http://h/after")[2]
    worker.send(frame_of("http://h/"))
    assert worker.pieces(1) == [b"0"]
    worker.send(stream_cancel)
    for number in range(3):
        (tmp_path / str(number)).touch()
    worker.read_to_the_end_of_the_stream()
    assert worker.ask("http://h/after")[2] == before


def test_an_answer_that_cannot_be_sent_leaves_nothing_to_the_next_request(script: Any) -> None:
    worker = script("""
        if ($_SERVER['REQUEST_URI'] === '/after') { exit('its own'); }
        header('X-Wrong: 1', true, 600);
        for ($n = 0; $n < 10; $n++) { echo 'theirs'; flush(); }
    """)
    assert worker.ask("http://h/")[0] == 500
    assert worker.ask("http://h/after")[2] == b"its own"


def test_a_php_cgi_that_ends_takes_its_child_along(script: Any, frame_of: Any) -> None:
    worker = script("posix_kill(getmypid(), SIGKILL);")
    worker.send(frame_of())
    assert worker.process.wait(20) == 1
    assert worker.says_nothing_more()
    assert "php-cgi has ended" in worker.leave()[1]


def test_the_end_of_the_pipe_ends_both(script: Any) -> None:
    worker = script("echo getmypid();")
    php_cgi = int(worker.ask()[2])
    assert php_cgi in _children(worker.process.pid)
    descriptor = os.pidfd_open(php_cgi)
    try:
        assert worker.leave() == (0, "")
        ended, _, _ = select.select([descriptor], [], [], 20)  # it sees its connection's end by itself
        assert ended
    finally:
        os.close(descriptor)


def test_php_cgi_has_none_of_the_servers_pipes(script: Any) -> None:
    worker = script("""
        foreach (scandir('/proc/self/fd') as $number) {
            $target = @readlink("/proc/self/fd/$number");
            if ($number > 2 && str_starts_with((string) $target, 'pipe:')) { echo "$number is $target\n"; }
        }
    """)
    assert worker.ask()[2] == b""


def test_no_socket_is_left_in_the_file_system(script: Any, tmp_path: Path) -> None:
    folder = tmp_path / ("a name too long for a socket's path " * 3)
    folder.mkdir()
    worker = script("echo getcwd();", {"TMPDIR": str(folder)})
    assert worker.ask()[2] == os.fsencode(tmp_path)
    assert list(folder.iterdir()) == []


def test_without_php_cgi_the_start_says_what_is_missing(script: Any) -> None:
    worker = script("", {"POOLPARTY_PHP_CGI": "/nowhere/php-cgi"})
    assert worker.process.wait(20) == 1
    assert "/nowhere/php-cgi does not start" in worker.leave()[1]


def test_a_script_that_is_missing_is_named(cgi: Any, tmp_path: Path) -> None:
    worker = cgi(tmp_path / "none.php")
    assert worker.process.wait(20) == 1
    assert "none.php is neither a PHP script nor a folder with an index.php" in worker.leave()[1]


def test_a_folder_is_served_by_paths(cgi: Any, tmp_path: Path) -> None:
    root = tmp_path / "public"
    (root / "admin").mkdir(parents=True)
    show = '<?php echo "$_SERVER[SCRIPT_NAME] ", $_SERVER["PATH_INFO"] ?? "-";'
    for name in ("index.php", "page.php", "admin/index.php", "admin/two words.php", "../outside.php"):
        (root / name).write_text(show)
    (root / "linked.php").symlink_to(root / ".." / "outside.php")
    (root / "text.txt").write_text("not a script")
    worker = cgi(root)

    def said(path: str) -> str:
        return str(worker.ask(f"http://h{path}")[2].decode())

    assert said("/") == said("/nothing") == said("/text.txt") == "/index.php -"
    assert said("/page.php?x") == "/page.php -"
    assert said("/page.php/more/info") == "/page.php /more/info"
    assert said("/admin") == said("/admin/") == "/admin/index.php -"
    assert said("/admin/two%20words.php") == "/admin/two words.php -"
    # Nothing beyond the folder, by whatever way.
    for path in (
        "/../outside.php",
        "/%2e%2e/outside.php",
        "/admin/..%2f..%2foutside.php",
        "/linked.php",
        "/page.php%00",
    ):
        assert said(path) == "/index.php -", path


def test_a_program_of_ones_own_serves_a_script(serve: Any, needs: Any, tmp_path: Path) -> None:
    needs("php-cgi", "php-cgi", "-v")
    (tmp_path / "front.php").write_text("<?php echo ini_get('upload_max_filesize');")
    worker = serve("""<?php
        require 'poolparty/cgi.php';
        Poolparty\\Cgi\\serve(__DIR__ . '/front.php', ['-d', 'upload_max_filesize=3M']);
    """)
    assert worker.ask()[2] == b"3M"
    assert worker.leave() == (0, "")


# ---- The example.


def test_the_example_reads_what_is_sent(example: Any) -> None:
    assert example.ask("http://h/")[2] == b"Hello from plain PHP!\n"
    assert example.ask("http://h/hello?name=%3Cb%3E")[2] == b"<h1>Hello, &lt;b&gt;!</h1>\n"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert example.ask("http://h/form", "POST", form, b"name=a+b")[2] == b"Hello, a b!\n"
    answer = example.ask("http://h/json", "POST", {"Host": "h"}, b'{"a": [1]}')[2]
    assert json.loads(answer) == {"given": {"a": [1]}, "host": "h", "method": "POST"}


def test_the_example_takes_an_upload(example: Any) -> None:
    body = (
        b'--XX\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + os.urandom(300_000) + b"\r\n--XX--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=XX"}
    assert example.ask("http://h/upload", "POST", headers, body)[2] == b"f.bin: 300000 bytes\n"


def test_the_example_keeps_sessions_and_sets_cookies(example: Any) -> None:
    _, headers, body = example.ask("http://h/count")
    assert body == b"1\n"
    match = re.match("[^;]*", headers["Set-Cookie"][0])
    assert match is not None
    assert example.ask("http://h/count", headers={"Cookie": match[0]})[2] == b"2\n"
    _, headers, body = example.ask("http://h/cookies", headers={"Cookie": "x=y; z=1"})
    assert body == b"x=y&z=1"
    assert headers["Set-Cookie"] == ["a=1", "b=2; path=/; HttpOnly"]


def test_the_example_redirects_streams_and_fails(example: Any) -> None:
    status, headers, _ = example.ask("http://h/redirect")
    assert (status, headers["Location"]) == (302, ["/"])
    assert example.ask("http://h/stream")[2] == b"line 0\nline 1\nline 2\n"
    assert example.ask("http://h/nowhere")[::2] == (404, b"no such page\n")
    assert example.ask("http://h/error")[0] == 500
    assert "this page always fails" in example.leave()[1]
