"""The slow log, and `poolparty-ctl dump`, with the script's own stack: real interpreters whose handler waits
until a file is gone."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from server import Server, wait_until

Serve = Callable[..., Server]

TIMEOUT = 0.1
"""slowlog_timeout, in seconds."""


@dataclass(frozen=True)
class Script:
    """A program whose handler, on the line with MARK, waits as long as there is the file in the query."""

    name: str
    command: tuple[str, ...]
    file: str
    source: str
    place: str
    """A pattern of the line in the log that names its place; FILE and LINE stand for themselves."""


SCRIPTS = [
    Script(
        "Python",
        (sys.executable, "app.py"),
        "app.py",
        """
import os, time
import poolparty

def slow(request):
    while os.path.exists(request.query):
        time.sleep(0.02)  # MARK
    return "done"

poolparty.serve(slow)
""",
        r'File "FILE", line LINE in slow$',
    ),
    Script(
        "WSGI",
        (sys.executable, "-m", "poolparty.wsgi", "app.py:app"),
        "app.py",
        """
import os, time

def slow(environ, start_response):
    while os.path.exists(environ["QUERY_STRING"]):
        time.sleep(0.02)  # MARK
    start_response("200 OK", [])
    return [b"done"]

app = slow
""",
        r'File "FILE", line LINE in slow$',
    ),
    Script(
        "ASGI, waiting",
        (sys.executable, "-m", "poolparty.asgi", "app.py:app"),
        "app.py",
        """
import asyncio, os

async def gone(path):
    while os.path.exists(path):
        await asyncio.sleep(0.02)  # MARK

async def slow(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan")
    await asyncio.gather(gone(scope["query_string"]))
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"done"})

app = slow
""",
        r'File "FILE", line LINE in gone$',
    ),
    Script(
        "ASGI, blocking",
        (sys.executable, "-m", "poolparty.asgi", "app.py:app"),
        "app.py",
        """
import os, time

async def slow(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})
    while os.path.exists(scope["query_string"]):
        time.sleep(0.02)  # MARK
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"done"})

app = slow
""",
        r'File "FILE", line LINE in slow$',
    ),
    Script(
        "Ruby",
        ("ruby", "app.rb"),
        "app.rb",
        """
require "poolparty"

def slow(path)
  sleep 0.02 while File.exist?(path) # MARK
  "done"
end

Poolparty.serve { |request| slow(request.query_string) }
""",
        r"from FILE:LINE:in .*slow'$",
    ),
    Script(
        "Perl",
        ("perl", "app.pl"),
        "app.pl",
        """
use strict;
use warnings;
use Poolparty 'serve';
use Time::HiRes 'sleep';

sub slow {
    my ($path) = @_;
    sleep 0.02 while -e $path; # MARK
    return 'done';
}

serve(sub { slow($_[0]->query_string) });
""",
        r"at FILE line LINE$",
    ),
    Script(
        "PHP",
        ("php", "app.php"),
        "app.php",
        r"""<?php
require 'poolparty.php';

function slow(string $path): string
{
    while (file_exists($path)) { usleep(20000); clearstatcache(); } // MARK
    return 'done';
}

Poolparty\serve(fn (Poolparty\Request $request): string => slow($request->query));
""",
        r"at FILE:LINE$",
    ),
]


@pytest.fixture
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Script:
    """It, written to tmp_path. In CI its interpreter's absence is a failure."""
    script: Script = request.param
    if shutil.which(script.command[0]) is None:
        reason = f"no {script.command[0]}: bin/install-interpreters has it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    (tmp_path / script.file).write_text(script.source)
    return script


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.name for script in SCRIPTS], indirect=True)
def test_a_slow_request_is_told_with_the_file_and_line_of_the_script(
    serve: Serve, script: Script, tmp_path: Path
) -> None:
    server = serve(*("--slowlog-timeout", f"{TIMEOUT}s"), command=script.command, directory=tmp_path)
    (pid,) = server.wait_ready()
    line = 1 + script.source[: script.source.index("MARK")].count("\n")
    place = script.place.replace("FILE", f"[^ ]*{re.escape(script.file)}").replace("LINE", str(line))
    gate = tmp_path / "gate"
    gate.touch()
    client = server.connect()
    client.send(f"GET /?{gate} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    server.wait_log(rf'msg="slow request" worker-pid={pid} age=\S+ method=GET target=/\?{gate} ')
    server.wait_log(place)
    # Once a request, however long it goes on.
    runs = wait_until(
        lambda: (found := server.pool()["children"][0]["runs"]) and found["seconds"] > 4 * TIMEOUT and found,
        "several looks of the slow log",
    )
    assert (runs["method"], runs["target"]) == ("GET", f"/?{gate}")
    assert len(server.wait_log(place)) == len(server.wait_log('msg="slow request"')) == 1
    # And whenever somebody asks.
    dumped = server.ctl(f"dump {pid}")
    assert 'msg="its script\'s stack is in the log"' in dumped
    server.wait_log(place, 2)
    gate.unlink()
    assert client.answer().body == b"done"
    # The next one is a request of its own.
    gate.touch()
    client.send(f"GET /?{gate} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    server.wait_log('msg="slow request"', 2)
    server.wait_log(place, 3)
    gate.unlink()
    assert client.answer().body == b"done"
    assert server.children() == [pid]
