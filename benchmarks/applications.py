"""The same small application for every contestant, in the language and interface it speaks.

One file a kind, with no routing in it, so that what is measured is the server and not a dispatch on paths. A
kind is what the handler does:

    hello    7 bytes of text            10k, 1m  that many bytes, made once
    upload   says how long the body was sleep    waits 5 ms
    mixed    waits 200 ms if the path ends in `slow`, else 0.1 ms
    flask, django                     7 bytes of text by a route of that framework, in WSGI only
"""

from __future__ import annotations

from pathlib import Path

KINDS = ("hello", "10k", "1m", "upload", "sleep", "mixed", "flask", "django")
SLEEP = 0.005
SLOW = 0.2
FAST = 0.0001

_SIZES = {"10k": 10_240, "1m": 1_048_576}


def write(folder: Path, interface: str, kind: str) -> Path:
    """Write the application of this kind into `folder`; its path. `interface` is a key of INTERFACES."""
    name, make = INTERFACES[interface]
    path = folder / name
    path.write_text(make(kind))
    return path


def _janet(kind: str) -> str:
    answer = '{{:headers {{"Content-Type" "text/plain; charset=utf-8"}} :body {}}}'
    before, body, act = "", '"hello\\n"', ""
    if kind in _SIZES:
        before, body = f'(def content (string/repeat "x" {_SIZES[kind]}))\n', "content"
    elif kind == "upload":
        body = '(string (length (request :body)) "\\n")'
    elif kind == "sleep":
        act = f"(os/sleep {SLEEP})"
    elif kind == "mixed":
        act = f'(os/sleep (if (string/has-suffix? "slow" (request :uri)) {SLOW} {FAST}))'
    return (
        f"(import poolparty)\n{before}(defn handler [request]\n  {act}\n  {answer.format(body)})\n"
        "(defn main [&] (poolparty/serve handler))\n"
    )


def _python_body(kind: str, path: str, body: str) -> tuple[str, str, str]:
    """Lines before the handler, lines in it, and the expression of the answer's bytes."""
    if kind in _SIZES:
        return f"CONTENT = b'x' * {_SIZES[kind]}\n", "", "CONTENT"
    if kind == "upload":
        return "", "", f"b'%d\\n' % len({body})"
    if kind == "sleep":
        return "import time\n", f"    time.sleep({SLEEP})\n", "b'hello\\n'"
    if kind == "mixed":
        return (
            "import time\n",
            f"    time.sleep({SLOW} if {path}.endswith('slow') else {FAST})\n",
            "b'hello\\n'",
        )
    return "", "", "b'hello\\n'"


def _python(kind: str) -> str:
    before, act, body = _python_body(kind, "request.path", "request.body")
    return (
        f"import poolparty\n{before}\ndef handler(request):\n{act}"
        f"    return {{'headers': {{'Content-Type': 'text/plain; charset=utf-8'}}, 'body': {body}}}\n\n"
        "poolparty.serve(handler)\n"
    )


def _python_minimal(kind: str) -> str:
    """The least that answers: one read a frame, nothing decoded. Serves GETs of the kind `hello` only."""
    assert kind == "hello"
    return """import os, sys
from struct import unpack_from
BODY = b"\\x00\\xc8\\x01\\x01\\x0cContent-Type\\x01\\x19text/plain; charset=utf-8\\x06hello\\n"
ANSWER = len(BODY).to_bytes(4, "little") + BODY
rest = b""
while True:
    data = os.read(0, 65536)
    if not data:
        sys.exit(0)
    rest += data
    at = 0
    answers = 0
    while len(rest) - at >= 4:
        end = at + 4 + unpack_from("<I", rest, at)[0]
        if end > len(rest):
            break
        if rest[at + 4] == 0:
            answers += 1
        at = end
    rest = rest[at:]
    if answers:
        os.write(3, ANSWER * answers)
"""


_FRAMEWORKS = {
    "flask": r"""from flask import Flask

application = Flask(__name__)


@application.get("/")
def hello():
    return "hello\n", {"Content-Type": "text/plain; charset=utf-8"}
""",
    "django": r"""from django.conf import settings

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="of no secret")

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path


def hello(request):
    return HttpResponse("hello\n", content_type="text/plain; charset=utf-8")


urlpatterns = [path("", hello)]
application = get_wsgi_application()
""",
}


def _wsgi(kind: str) -> str:
    if kind in _FRAMEWORKS:
        return _FRAMEWORKS[kind]
    before, act, body = _python_body(kind, "environ['PATH_INFO']", "environ['wsgi.input'].read()")
    return (
        f"{before}\ndef application(environ, start_response):\n{act}    body = {body}\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain; charset=utf-8'),\n"
        "                              ('Content-Length', str(len(body)))])\n"
        "    return [body]\n"
    )


def _asgi(kind: str) -> str:
    before, act, body = _python_body(kind, "scope['path']", "data")
    before = before.replace("import time", "import asyncio")
    act = act.replace("time.sleep", "await asyncio.sleep")
    read = ""
    if kind == "upload":
        read = (
            "    data, more = bytearray(), True\n"
            "    while more:\n"
            "        message = await receive()\n"
            "        data += message.get('body', b'')\n"
            "        more = message.get('more_body', False)\n"
        )
    return (
        f"{before}\nasync def application(scope, receive, send):\n"
        "    if scope['type'] != 'http':\n        raise RuntimeError('HTTP only')\n"
        f"{read}{act}    body = {body}\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': [\n"
        "        (b'content-type', b'text/plain; charset=utf-8'),\n"
        "        (b'content-length', b'%d' % len(body))]})\n"
        "    await send({'type': 'http.response.body', 'body': body})\n"
    )


def _php(kind: str) -> str:
    act, body = "", '"hello\\n"'
    if kind in _SIZES:
        body = f'str_repeat("x", {_SIZES[kind]})'
    elif kind == "upload":
        body = 'strlen(file_get_contents("php://input")) . "\\n"'
    elif kind == "sleep":
        act = f"usleep({round(SLEEP * 1e6)});\n"
    elif kind == "mixed":
        slow, fast = round(SLOW * 1e6), round(FAST * 1e6)
        act = f'usleep(str_ends_with($_SERVER["REQUEST_URI"], "slow") ? {slow} : {fast});\n'
    return (
        f'<?php\n{act}$body = {body};\nheader("Content-Type: text/plain; charset=utf-8");\n'
        'header("Content-Length: " . strlen($body));\necho $body;\n'
    )


def _rack(kind: str) -> str:
    before, act, body = "", "", '"hello\\n"'
    if kind in _SIZES:
        before, body = f'CONTENT = "x" * {_SIZES[kind]}\n', "CONTENT"
    elif kind == "upload":
        body = '"#{env["rack.input"].read.bytesize}\\n"'
    elif kind == "sleep":
        act = f"  sleep {SLEEP}\n"
    elif kind == "mixed":
        act = f'  sleep(env["PATH_INFO"].end_with?("slow") ? {SLOW} : {FAST})\n'
    return (
        f"# frozen_string_literal: true\n{before}run(lambda do |env|\n{act}  body = {body}\n"
        '  [200, {"Content-Type" => "text/plain; charset=utf-8", '
        '"Content-Length" => body.bytesize.to_s}, [body]]\n'
        "end)\n"
    )


INTERFACES = {
    "janet": ("app.janet", _janet),
    "python": ("app.py", _python),
    "python-minimal": ("minimal.py", _python_minimal),
    "wsgi": ("wsgi.py", _wsgi),
    "asgi": ("asgi.py", _asgi),
    "php": ("index.php", _php),
    "rack": ("config.ru", _rack),
}
"""Interface → the file's name and what writes it."""
