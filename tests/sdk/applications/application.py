"""What test_every_library.py asks of a library; the same in every language."""

import os
import subprocess

import poolparty


def health_check():
    if os.environ.get("TEST_HEALTH") == "fail":
        raise RuntimeError("no database")
    if os.environ.get("TEST_HEALTH") == "long":
        raise RuntimeError("ü" * 5000)


def echo(request):
    headers = {
        "Method": request.method,
        "Uri": request.uri,
        "Path": request.path,
        "Query": request.query,
        "Remote-Address": request.remote_address,
        "Headers": str(len(request.headers)),
    }
    return poolparty.Response(201, headers, request.body)


def header(request):
    value = request.headers.get(request.query)
    return poolparty.Response(404, {}, "none") if value is None else value


def text(request):
    return "grün\n"


def octets(request):
    return bytes(range(256)) * (int(request.query) // 256)


def headers(request):
    return poolparty.Response(200, {"Set-Cookie": ["a=1", "b=2"], "X-Long": "v" * 300}, "")


def many_headers(request):
    return {"headers": {f"X-{number}": str(number) for number in range(300)}}


def empty(request):
    return poolparty.Response(204)


def fail(request):
    raise RuntimeError("this one fails")


def bad_status(request):
    return poolparty.Response(99)


def bad_header(request):
    return poolparty.Response(200, {"A": {}})


def bad_body(request):
    return poolparty.Response(200, {}, 7)


def bad_answer(request):
    return None


def say(request):
    print("seen", request.path)
    return ""


def program(request):
    script = "cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open"
    return subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE).stdout


def pieces(query):
    yield "one\n"
    yield ""
    yield b"\xff\n"
    yield "grün\n"
    if query == "fail":
        raise RuntimeError("this one fails")


def stream(request):
    return poolparty.Response(200, {"Content-Type": "text/plain"}, pieces(request.query))


def endless(request):
    return {"body": more()}


def more():
    try:
        while True:
            yield "more\n"
    finally:
        print("closed")


def stream_nothing(request):
    return {"body": iter(())}


def stream_fail_first(request):
    return {"body": fail_first()}


def fail_first():
    raise RuntimeError("this one fails")
    yield


def spin(request):
    """Run until the file that the query names is there, and say where that begins."""
    print("spins")
    while not os.path.exists(request.query):
        pass
    return "stopped"


def leave(request):
    raise SystemExit(7)


ROUTES = {
    "/echo": echo, "/header": header, "/text": text, "/octets": octets, "/headers": headers, "/empty": empty,
    "/many-headers": many_headers, "/fail": fail, "/bad-status": bad_status, "/bad-header": bad_header,
    "/bad-body": bad_body, "/bad-answer": bad_answer, "/say": say, "/program": program, "/leave": leave,
    "/spin": spin, "/stream": stream, "/endless": endless,
    "/stream-nothing": stream_nothing, "/stream-fail-first": stream_fail_first,
}  # fmt: skip

if __name__ == "__main__":
    poolparty.serve(lambda request: ROUTES[request.path](request), health_check)
