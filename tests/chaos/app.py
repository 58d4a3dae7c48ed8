"""The application that the chaos driver serves: it keeps to the protocol, until it is asked not to.

/load           METHOD URI, a newline, the body, after a millisecond: what tests/integration/load.py checks;
                something else if the request is for another host than HOST, the pool's
/die            the process ends before an answer
/garbage        bytes that are no frame
/huge           a frame's length that is over every limit, and no frame
/truncated      half of an answer, then the end
/early          an answer, and a second one that nobody asked for
/late           ignores SIGTERM, sleeps for longer than the time limit, and then answers
/stream         its process id, and then on and on, in pieces
/orphan         leaves a process in its group behind, then answers
"""

import os
import signal
import subprocess
import time

import poolparty


def frame(body):
    payload = b"\0\xc8\x01\0" + bytes([len(body)]) + body
    return len(payload).to_bytes(4, "little") + payload


HOST = os.environ["HOST"]


def load(request):
    time.sleep(0.001)
    if HOST and not request.uri.startswith(f"http://{HOST}/"):
        return "another pool's"
    return f"{request.method} {request.uri}\n".encode() + request.body


def die(request):
    os._exit(3)


def garbage(request):
    os.write(3, b"HTTP/1.1 200 OK\r\n\r\nwrong\n")
    time.sleep(0.01)
    return "wrong"


def huge(request):
    os.write(3, b"\xff\xff\xff\xff")
    time.sleep(0.01)
    return "wrong"


def truncated(request):
    os.write(3, frame(b"wrong" * 20)[:60])
    os._exit(3)


def early(request):
    os.write(3, frame(b"right") + frame(b"wrong"))
    time.sleep(0.5)  # before it reads on
    return "wrong"


def late(request):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        time.sleep(0.05)
    return "wrong: this is late"


def stream(request):
    def pieces():
        while True:
            yield f"{os.getpid()}\n"
            time.sleep(0.01)

    return {"body": pieces()}


def orphan(request):
    subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
    return "right"


def one_at_a_time(source, more):
    """The library's reader, but it takes no byte of the next request before it has answered this one.

    docs/security.md says why: where an answer too many is to be noticed for certain, whatever was written
    ahead has to stand unread in the pipe.
    """
    while frame_size := read(source, 4):
        size = int.from_bytes(frame_size, "little")
        yield read(source, size), 0, size


def read(source, size):
    data = b""
    while len(data) < size and (piece := os.read(source, size - len(data))):
        data += piece
    return data


poolparty._payloads = one_at_a_time
PAGES = {
    f"/{page.__name__}": page for page in (load, die, garbage, huge, truncated, early, late, stream, orphan)
}

poolparty.serve(lambda request: PAGES[request.path](request))
