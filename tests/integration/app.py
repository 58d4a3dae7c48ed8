"""The application that the integration tests serve.

/            hello, and the child's pid in X-Pid
/echo        JSON: what arrived, with the body's size and hash
/body        the body itself
/gate?path=  answers when the file is gone
/load        what tests/integration/load.py expects of an application: METHOD URI, a newline, the body
/size?n=     a body of n bytes
/answer      what the request's body, a Python literal (status, headers, body), says
/status?code=
/headers     repeated and odd headers
/bad-header?kind=  an answer that HTTP cannot carry
/raw?bytes=  these bytes, in hex, on descriptor 3, in place of an answer; with &hold, and then it hangs
/die         ends the process, before an answer
/die-after?n=  writes the first n bytes of an answer, then ends
/fds         what its descriptors are
/stubborn?path=  ignores SIGTERM and loops for ever; touches the path first
/stop        stops itself with SIGSTOP
/error       raises
/print?text= prints a line on stdout and one on stderr
/fork        starts a grandchild that sleeps for ever; answers its pid
"""

import ast
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse

import poolparty


def frame_of_answer(body):
    payload = b"\0\xc8\x01\0" + bytes([len(body)]) + body
    return len(payload).to_bytes(4, "little") + payload


def echo(request, query):
    headers = {name.lower(): value for name, value in dict(request.headers).items()}
    found = {
        "method": request.method,
        "uri": request.uri,
        "path": request.path,
        "query": request.query,
        "headers": headers,
        "remote_address": request.remote_address,
        "size": len(request.body),
        "sha256": hashlib.sha256(request.body).hexdigest(),
        "pid": os.getpid(),
    }
    return {"headers": {"Content-Type": "application/json"}, "body": json.dumps(found)}


def gate(request, query):
    while os.path.exists(query["path"][0]):
        time.sleep(0.001)
    return {"headers": {"X-Pid": str(os.getpid())}, "body": "through\n"}


def answer(request, query):
    status, headers, body = ast.literal_eval(request.body.decode())
    return {"status": status, "headers": headers, "body": body}


def bad_header(request, query):
    bad = {
        "newline": {"X-Bad": "one\r\nX-Injected: yes"},
        "nul": {"X-Bad": "a\0b"},
        "name": {"X Bad": "v"},
        "empty": {"": "v"},
    }
    return {"headers": bad[query["kind"][0]], "body": "never seen"}


def raw(request, query):
    data = bytes.fromhex(query["bytes"][0])
    if "hold" in query:
        os.write(3, data)
        signal.pause()
    library_writes = poolparty._write

    def write(sink, frame):
        poolparty._write = library_writes
        os.write(sink, data)

    poolparty._write = write
    return ""


def die(request, query):
    os._exit(int(query.get("status", ["3"])[0]))


def die_after(request, query):
    os.write(3, frame_of_answer(b"x" * 100)[: int(query["n"][0])])
    os._exit(3)


def fds(request, query):
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return json.dumps(found)


def stubborn(request, query):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(query["path"][0], "w").close()
    while True:
        pass


def stop(request, query):
    os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"


def say(request, query):
    print(query["text"][0])
    print(query["text"][0], file=sys.stderr, flush=True)
    return "said"


def fork(request, query):
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], stdin=subprocess.DEVNULL
    )
    return str(child.pid)


def error(request, query):
    raise RuntimeError("this page always fails")


def headers(request, query):
    return {
        "headers": {
            "Set-Cookie": ["a=1; Path=/", "b=2"],
            "X-Mixed-Case": "kept",
            "Content-Length": "7777",
            "Transfer-Encoding": "chunked",
            "Connection": "X-Hop",
        },
        "body": "body",
    }


PAGES = {
    "/": lambda request, query: {"headers": {"X-Pid": str(os.getpid())}, "body": "hello\n"},
    "/echo": echo,
    "/body": lambda request, query: request.body,
    "/gate": gate,
    "/load": lambda request, query: f"{request.method} {request.uri}\n".encode() + request.body,
    "/size": lambda request, query: b"x" * int(query["n"][0]),
    "/answer": answer,
    "/status": lambda request, query: {"status": int(query["code"][0]), "body": query.get("body", [""])[0]},
    "/headers": headers,
    "/bad-header": bad_header,
    "/raw": raw,
    "/die": die,
    "/die-after": die_after,
    "/fds": fds,
    "/stubborn": stubborn,
    "/stop": stop,
    "/error": error,
    "/print": say,
    "/fork": fork,
}


def handler(request):
    page = PAGES.get(request.path)
    if page is None:
        return {"status": 404, "body": "no such page\n"}
    return page(request, urllib.parse.parse_qs(request.query))


if "POOLPARTY_TEST_BOOT" in os.environ:
    # What a test wants to happen while an application loads.
    exec(os.environ["POOLPARTY_TEST_BOOT"], {"os": os, "sys": sys, "time": time, "signal": signal})

poolparty.serve(handler)
