"""A worker with one mistake, named on its command line: python wrong.py MISTAKE; `none` is right.

Without a library, as an author's first attempt may look. It is the echo application that
docs/writing-a-worker.md describes.
"""

import faulthandler
import io
import itertools
import os
import select
import signal
import sys

MISTAKE = sys.argv[1]
OFFERED = os.environ.get("POOLPARTY_FEATURES", "").split(",")

source = io.FileIO(0, "rb")
behind = b""  # read while a stream ran
sink = io.FileIO(1 if MISTAKE == "answers on stdout" else 3, "wb")
if MISTAKE == "never flushes":
    sink = io.BufferedWriter(sink, 1 << 30)


def uint(number):
    out = b""
    while number > 127:
        out += bytes([number % 128 + 128])
        number //= 128
    if MISTAKE == "padded uint" and not out:
        return bytes([number + 128, 0])
    return out + bytes([number])


def string(text):
    data = text.encode() if isinstance(text, str) else text
    return uint(len(data)) + data


def write(payload):
    size = len(payload)
    if MISTAKE == "size too large":
        size += 3
    if MISTAKE == "size too small":
        size -= 3
    if MISTAKE == "size counts itself":
        size += 4
    data = size.to_bytes(4, "big" if MISTAKE == "big-endian size" else "little") + payload
    if MISTAKE == "forgets descriptor 3":
        return
    while data:
        data = data[sink.write(data) :]


def read(size):
    """size bytes, or b"" at the end."""
    if MISTAKE == "short reads":
        return source.read(size)
    global behind
    data, behind = behind[:size], behind[size:]
    while len(data) < size:
        piece = source.read(size - len(data))
        if not piece:
            return b""
        data += piece
    return data


def frames():
    while True:
        if MISTAKE == "loses bytes":
            data = source.read(65536)
            while data and len(data) < 4 + int.from_bytes(data[:4], "little"):
                data += source.read(65536)
            if not data:
                return
            yield data[4 : 4 + int.from_bytes(data[:4], "little")]
            continue
        size = read(4)
        if not size:
            return
        payload = read(int.from_bytes(size, "little"))
        if int.from_bytes(size, "little") > 0x7FFFFFFF:
            sys.exit("wrong.py: a frame beyond the limit")
        if not payload and size != bytes(4):
            return
        yield payload


def cancelled():
    """Whether a StreamCancel stands behind the request that runs."""
    global behind
    while select.select([source], [], [], 0)[0]:
        piece = source.read(65536)
        if not piece:
            return True
        behind += piece
    at = 0
    while len(behind) >= at + 5:
        if behind[at + 4] == 3:
            behind = behind[:at] + behind[at + 5 :]
            return MISTAKE != "ignores a cancel"
        if MISTAKE == "looks at the next frame only":
            return False
        at += 4 + int.from_bytes(behind[at : at + 4], "little")
    return False


class Message:
    def __init__(self, payload):
        self.payload, self.at = payload, 1  # behind the tag

    def uint(self):
        number = shift = 0
        while True:
            byte = self.payload[self.at]
            self.at += 1
            number += byte % 128 << shift
            shift += 7
            if byte < 128 or MISTAKE == "lengths of one byte":
                return number

    def string(self):
        size = self.uint()
        if self.at + size > len(self.payload):
            raise IndexError
        self.at += size
        return self.payload[self.at - size : self.at]


def handle(remote_address, uri, method, headers, body):
    """The echo application: status, headers, body."""
    path = uri.partition("://")[2].partition("/")[2].partition("?")[0]
    if path == "fail":
        raise RuntimeError("this page always fails")
    if path == "print":
        print("printed")
    if path == "stream":
        return 200, {}, iter([b"one\n", b"two\n", b"three\n"])
    if path == "endless":
        return 200, {}, itertools.repeat(b"more\n")
    check = {name.lower(): value for name, value in headers.items()}.get("x-check", "")
    answer = {
        "Echo-Method": [method],
        "Echo-Uri": [uri],
        "Echo-Remote-Address": [remote_address],
        "Echo-Check": [check],
        "Echo-Headers": [f"{name}: {value}" for name, value in headers.items()],
    }
    if MISTAKE == "newline in a header":
        answer["X-Note"] = ["one\ntwo"]
    if MISTAKE == "status 0":
        return 0, answer, body
    return 200, answer, body


def answer(message, in_a_file=False):
    remote_address, uri, method = (message.string().decode() for _ in range(3))
    headers = {}
    for _ in range(message.uint()):
        name = message.string().decode()
        headers[name] = message.string().decode("latin-1" if MISTAKE == "headers as Latin-1" else "utf-8")
    body = message.string()
    if in_a_file:
        size = message.uint()
        if MISTAKE != "takes the path for the body":
            with open(body, "rb") as file:
                body = file.read(size if MISTAKE != "reads a part of the file" else 4096)
    if message.at != len(message.payload):
        raise IndexError
    try:
        status, fields, content = handle(remote_address, uri, method, headers, body)
    except Exception as error:
        if MISTAKE == "dies of an exception":
            raise
        print(f"wrong.py: {error!r}", file=sys.stderr, flush=True)
        status, fields, content = 500, {}, b"internal server error\n"
        if MISTAKE == "tells the client":
            content = repr(error).encode()
    in_pieces = not isinstance(content, bytes)
    if in_pieces and (not streams or MISTAKE == "announces streams, and answers whole"):
        content = b"".join(content)
    elif in_pieces:
        write(b"\3" + uint(status) + uint(0))
        for piece in content:
            if MISTAKE == "pieces without a length":
                write(b"\4" + piece)
            else:
                write(b"\4" + string(piece))
            if cancels and cancelled():
                if MISTAKE == "no ResponseEnd after a cancel":
                    return
                break
        if MISTAKE != "no ResponseEnd":
            write(b"\5")
        return
    out = b"" if MISTAKE == "no tag" else b"\0"
    out += uint(status) + uint(len(fields))
    for name, values in fields.items():
        if MISTAKE == "headers without lists":
            out += string(name) + string(", ".join(values))
        else:
            out += string(name) + uint(len(values)) + b"".join(map(string, values))
    if MISTAKE == "body length wrong":
        out += uint(len(content) + 1) + content
    elif MISTAKE == "text mode":
        out += string(content.replace(b"\r\n", b"\n"))
    else:
        out += string(content)
    write(out)
    if MISTAKE == "answers twice":
        write(out)
    if MISTAKE == "debug output on descriptor 3":
        sink.write(b"answered\n")


def say_ready():
    announced = ["health-reply"] if replies or MISTAKE == "announces what is not offered" else []
    announced += ["stream"] if streams else []
    announced += ["stream-cancel"] if cancels else []
    announced += ["body-file"] if files else []
    if "stack" in OFFERED:
        announced += ["stack"]
        if MISTAKE == "announces a stack, and shows none":
            signal.signal(signal.SIGUSR1, lambda *_: None)
        elif MISTAKE != "announces a stack, and dies":
            faulthandler.register(signal.SIGUSR1, 2)
    if MISTAKE == "announces nothing, and replies":
        announced = []
    write(b"\1" + uint(len(announced)) + b"".join(map(string, announced)))


def main():
    global replies, streams, cancels, files
    says_ready = "ready" in OFFERED or MISTAKE == "Ready without an offer"
    replies = says_ready and "health-reply" in OFFERED
    streams = says_ready and "stream" in OFFERED
    cancels = streams and "stream-cancel" in OFFERED
    files = says_ready and "body-file" in OFFERED
    if MISTAKE != "dies of SIGINT":
        signal.signal(signal.SIGINT, lambda *_: None)
    if MISTAKE != "buffered stdout":
        sys.stdout.reconfigure(line_buffering=True)
    if says_ready and MISTAKE != "Ready after the first read":
        say_ready()
    if MISTAKE == "reads nothing":
        signal.pause()
    for payload in frames():
        if says_ready and MISTAKE == "Ready after the first read":
            says_ready = False
            say_ready()
        tag = payload[0]
        if tag == 0:
            answer(Message(payload))
        elif tag == 2 and files:
            answer(Message(payload), in_a_file=True)
        elif tag == 1:
            if replies or MISTAKE == "health check answered in version 1":
                write(b"\2\1" + string(""))
            if MISTAKE == "replies twice" and replies:
                write(b"\2\1" + string(""))
        elif tag == 3 and cancels and MISTAKE != "dies of a late cancel":
            pass
        elif MISTAKE != "unknown tags ignored":
            sys.exit(f"wrong.py: the unknown tag {tag}")
    if MISTAKE == "noise at the end":
        raise EOFError("the server has gone")
    if MISTAKE == "farewell":
        print("bye", file=sys.stderr)
    if MISTAKE == "stays":
        signal.pause()


replies = streams = cancels = False
if MISTAKE == "cannot start":
    import no_such_module  # noqa: F401
main()
