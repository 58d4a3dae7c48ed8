"""Rack applications under the Ruby library's adapter: the Sinatra example, and others that show one thing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.only("Ruby")

FAILURE = (500, {"Content-Type": ["text/plain; charset=utf-8"]}, b"internal server error\n")
STREAM = {"POOLPARTY_FEATURES": "ready,stream"}


@pytest.fixture
def rack(
    interpreter: str, start_program: Callable[..., Any], needs: Any, tmp_path: Path
) -> Callable[..., Any]:
    """rack(source, environment={}): a worker that serves the .ru file of this source, through Rack::Lint."""
    needs("Rack", interpreter, "-rrack", "-e", "0")

    def rack(source: str, environment: dict[str, str] | None = None) -> Any:
        program = tmp_path / "config.ru"
        program.write_text(f"require 'uri'\nuse Rack::Lint\n{source}")  # Rack 2's lint forgets the first
        return start_program(program, environment, ["-rpoolparty/rack"])

    return rack


@pytest.fixture
def sinatra(rack: Any, interpreter: str, needs: Any, checkout: Path) -> Any:
    needs("Sinatra", interpreter, "-rsinatra/base", "-e", "0")
    return rack(f"require '{checkout}/examples/sinatra/app'\nrun App\n")


def test_the_environment_is_racks(rack: Any) -> None:
    worker = rack("""
        run lambda { |env|
          shown = env.select { |_, value| value.is_a?(String) || value == true || value == false }
          [200, {"content-type" => "text/plain"}, shown.map { |pair| pair.join("=") + "\\n" }]
        }
    """)
    headers = {
        "Host": "example.org:8080",
        "Content-Type": "a/b",
        "Content-Length": "4",
        "X-Text": "grün",
        "Transfer-Encoding": "chunked",
    }
    _, _, body = worker.ask("https://example.org:8080/a%20b/c?x=1%20&y", "PUT", headers, b"body")
    shown = dict(line.split("=", 1) for line in body.decode().splitlines())
    assert shown == {
        "REQUEST_METHOD": "PUT",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a%20b/c",
        "QUERY_STRING": "x=1%20&y",
        "REQUEST_URI": "/a%20b/c?x=1%20&y",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": shown["SERVER_SOFTWARE"],
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "4711",
        "HTTPS": "on",
        "HTTP_HOST": "example.org:8080",
        "HTTP_X_TEXT": "grün",
        "CONTENT_TYPE": "a/b",
        "CONTENT_LENGTH": "4",
        "rack.url_scheme": "https",
        "rack.multithread": "false",
        "rack.multiprocess": "true",
        "rack.run_once": "false",
        "rack.hijack?": "false",
    }
    assert shown["SERVER_SOFTWARE"].startswith("poolparty/")


@pytest.mark.parametrize(
    ("uri", "name", "port"),
    [
        ("http://h/", "h", "80"),
        ("https://h", "h", "443"),
        ("http://[::1]:81/?q", "[::1]", "81"),
        ("http:///", "localhost", "80"),
    ],
)
def test_the_servers_name_and_port(rack: Any, uri: str, name: str, port: str) -> None:
    show = 'env.values_at("SERVER_NAME", "SERVER_PORT").inspect'
    worker = rack(f'run lambda {{ |env| [200, {{"content-type" => "a/b"}}, [{show}]] }}')
    assert worker.ask(uri)[2].decode() == f'["{name}", "{port}"]'


def test_the_body_is_read_in_every_way(rack: Any) -> None:
    worker = rack("""
        run lambda { |env|
          input = env["rack.input"]
          said = [input.gets, input.read(3), input.read.bytesize, input.read(1).inspect]
          [200, {"content-type" => "a/b"}, [said.join("|")]]
        }
    """)
    assert worker.ask("http://h/", "POST", {}, b"line\nabc" + b"\xff" * 70000)[2] == b"line\n|abc|70000|nil"


def test_an_answer_of_rack_2(rack: Any) -> None:
    """Lines in a header's value are several fields. (Rack 3's lint wants an Array there.)"""
    worker = rack(
        """
        lines = Rack.release >= "3" ? ["a=1", "b=2"] : "a=1\\nb=2"
        run lambda { |env| [201, {"content-type" => "a/b", "set-cookie" => lines}, ["x", "grün", "\\xff".b]] }
        """
    )
    status, headers, body = worker.ask()
    assert (status, body) == (201, b"xgr\xc3\xbcn\xff")
    assert headers == {"content-type": ["a/b"], "set-cookie": ["a=1", "b=2"]}


def test_an_answer_of_rack_3(rack: Any, start_program: Any, tmp_path: Path) -> None:
    program = tmp_path / "config.ru"
    program.write_text("""
        run lambda { |env|
          body = lambda { |stream| stream << "one\\n"; stream.write("two\\n", "three\\n"); stream.close }
          [200, {"set-cookie" => ["a=1", "b=2"], "rack.something" => 7, "x-empty" => ""}, body]
        }
    """)
    expected = {"set-cookie": ["a=1", "b=2"], "x-empty": [""]}
    worker = start_program(program, {}, ["-rpoolparty/rack"])
    assert worker.ask() == (200, expected, b"one\ntwo\nthree\n")


def test_a_body_is_streamed_and_closed(rack: Any, frame_of: Any) -> None:
    source = """
        class Body
          def each = 3.times { |number| yield "line #{number}\\n" }
          def close = puts("closed")
        end
        run lambda { |env| [200, {"content-type" => "a/b"}, Body.new] }
    """
    worker = rack(source, STREAM)
    assert worker.ready() == ["stream"]
    worker.send(frame_of())
    assert [worker.frame()[0] for _ in range(5)] == [3, 4, 4, 4, 5]
    assert worker.line_of_stdout() == b"closed\n"


def test_a_body_that_calls_back_is_ended_when_its_client_has_left(
    start_program: Any, tmp_path: Path, frame_of: Any
) -> None:
    program = tmp_path / "config.ru"
    program.write_text("""
        run lambda { |env|
          body = lambda do |stream|
            loop { stream << "more" }
          ensure
            puts "closed"
          end
          [200, {}, body]
        }
    """)
    features = {"POOLPARTY_FEATURES": "ready,stream,stream-cancel"}
    worker = start_program(program, features, ["-rpoolparty/rack"])
    assert worker.ready() == ["stream", "stream-cancel"]
    for _ in range(2):
        worker.send(frame_of())
        assert worker.pieces(2) == [b"more"] * 2
        worker.cancel_stream()
        assert worker.line_of_stdout() == b"closed\n"
    assert worker.leave() == (0, "")


def test_what_the_application_raises_is_logged_and_answered(rack: Any) -> None:
    worker = rack("run lambda { |env| raise 'this one' }")
    assert worker.ask() == FAILURE
    assert worker.ask() == FAILURE
    assert "this one" in worker.leave()[1]


def test_errors_go_to_the_log(rack: Any) -> None:
    worker = rack(
        'run lambda { |env| env["rack.errors"].puts("noted"); [200, {"content-type" => "a/b"}, []] }'
    )
    assert worker.ask()[2] == b""
    assert worker.leave() == (0, "noted\n")


def test_a_file_that_does_not_load_ends_the_start(rack: Any) -> None:
    worker = rack("run nothing_of_this_name")
    assert worker.process.wait(20) == 1
    assert "nothing_of_this_name" in worker.leave()[1]


def test_a_program_of_ones_own_serves_an_application(serve: Any) -> None:
    worker = serve("""
        require "poolparty/rack"
        health_check = -> { raise "no database" }
        app = ->(env) { [200, { "content-type" => "a/b" }, ["mine"]] }
        Poolparty::Rack.serve(app, health_check: health_check)
    """)
    assert worker.ask()[2] == b"mine"


def test_a_body_may_say_that_it_is_no_array(rack: Any) -> None:
    """As Rails' do, whose to_ary is nil."""
    worker = rack("""
        body = Class.new do
          def each = 3.times { |number| yield "line #{number}\\n" }
          def to_ary = nil
        end
        run lambda { |env| [200, { "content-type" => "text/plain" }, body.new] }
    """)
    assert worker.ask()[2] == b"line 0\nline 1\nline 2\n"


# ---- Sinatra, through Rack::Lint.


def test_sinatra_routes_and_templates(sinatra: Any) -> None:
    assert sinatra.ask("http://h/")[2] == b"Hello from Sinatra!\n"
    assert sinatra.ask("http://h/hello/%3Cb%3E")[2] == b"<h1>Hello, &lt;b&gt;!</h1>\n"
    assert sinatra.ask("http://h/nowhere")[::2] == (404, b"no such page\n")
    assert sinatra.ask("http://h/", "HEAD")[::2] == (200, b"")


def test_sinatra_forms_and_uploads(sinatra: Any) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert sinatra.ask("http://h/form", "POST", form, b"name=a+b")[2] == b"Hello, a b!\n"
    content = os.urandom(300_000)
    body = (
        b'--XX\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--XX--\r\n"
    )
    upload = {"Content-Type": "multipart/form-data; boundary=XX", "Content-Length": str(len(body))}
    assert sinatra.ask("http://h/upload", "POST", upload, body)[2] == b"f.bin: 300000 bytes\n"


def test_sinatra_sessions_and_cookies(sinatra: Any) -> None:
    _, headers, body = sinatra.ask("http://h/count")
    assert body == b"1\n"
    match = re.match("[^;]*", headers["Set-Cookie"][-1])
    assert match is not None
    assert sinatra.ask("http://h/count", headers={"Cookie": match[0]})[2] == b"2\n"
    _, headers, body = sinatra.ask("http://h/cookies", headers={"Cookie": "x=y; z=1"})
    assert body == b"x=y z=1"
    assert headers["Set-Cookie"][:2] == ["a=1", "b=2; path=/"]


def test_sinatra_streams_and_errors(sinatra: Any) -> None:
    assert sinatra.ask("http://h/stream")[2] == b"line 0\nline 1\nline 2\n"
    assert sinatra.ask("http://h/error")[::2] == (500, b"something went wrong\n")
    assert "this page always fails" in sinatra.leave()[1]


# ---- Rails, as it is in production.


@pytest.fixture
def rails(interpreter: str, start_program: Callable[..., Any], needs: Any, checkout: Path) -> Any:
    """One worker, asked for everything: it starts slowly."""
    needs("Rails", interpreter, "-rrails", "-raction_controller/railtie", "-e", "0", large=True)
    environment = {"RAILS_ENV": "production", **STREAM}
    worker = start_program(checkout / "examples" / "rails" / "config.ru", environment, ["-rpoolparty/rack"])
    worker.ready()
    return worker


def test_rails(rails: Any, frame_of: Any) -> None:
    host = {"Host": "h"}
    assert rails.ask("http://h/", headers=host)[::2] == (200, b"Hello from Rails!\n")
    assert rails.ask("http://h/", "HEAD", host)[::2] == (200, b"")
    assert rails.ask("http://h/hello/%3Cb%3E", headers=host)[2] == b"<h1>Hello, &lt;b&gt;!</h1>\n"
    form = {**host, "Content-Type": "application/x-www-form-urlencoded"}
    assert rails.ask("http://h/form", "POST", form, b"name=gr%C3%BC")[2].decode() == "Hello, grü!\n"
    content = os.urandom(300_000)
    body = (
        b'--XX\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--XX--\r\n"
    )
    upload = {**host, "Content-Type": "multipart/form-data; boundary=XX", "Content-Length": str(len(body))}
    assert rails.ask("http://h/upload", "POST", upload, body)[2] == b"f.bin: 300000 bytes\n"
    _, headers, body = rails.ask("http://h/count", headers=host)
    cookie = headers["Set-Cookie"][0].split(";")[0]
    assert rails.ask("http://h/count", headers={**host, "Cookie": cookie})[2] == b"2\n"
    rails.send(frame_of("http://h/stream", headers=host))
    assert [rails.frame()[0] for _ in range(5)] == [3, 4, 4, 4, 5]
    assert rails.ask("http://h/error", headers=host)[0] == 500
    assert rails.ask("http://h/nowhere", headers=host)[0] == 404
