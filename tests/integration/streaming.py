"""An application that answers in pieces.

/three            three lines, each a piece
/events?ms=&n=    so many Server-Sent Events, one every so many milliseconds
/blocks?n=&seed=  so many pieces of 64 KiB each, pseudo-random by the seed
/raises           a piece, and then an exception
/length?says=     six bytes in two pieces, and a Content-Length that is said to be another
/closed           how many streams have been closed in this process, and its pid
/pid              the process
"""

from __future__ import annotations

import os
import random
import time
import urllib.parse
from collections.abc import Iterator

import poolparty

closed = 0


def events(count: int, pause: float) -> Iterator[str]:
    global closed
    try:
        for number in range(count):
            yield f"data: {number} {time.monotonic()}\n\n"
            time.sleep(pause)
    finally:
        closed += 1


def blocks(count: int, seed: int) -> Iterator[bytes]:
    block = random.Random(seed).randbytes(1 << 16)
    for number in range(count):
        yield number.to_bytes(8, "little") + block[8:]


def raises() -> Iterator[str]:
    yield "one\n"
    raise RuntimeError("in the middle")


def handler(request: poolparty.Request) -> object:
    query = dict(urllib.parse.parse_qsl(request.query))
    match request.path:
        case "/three":
            return {"body": iter(["one\n", "two\n", "three\n"])}
        case "/events":
            stream = events(int(query.get("n", "10000")), int(query.get("ms", "50")) / 1000)
            return {"headers": {"Content-Type": "text/event-stream"}, "body": stream}
        case "/blocks":
            return {"body": blocks(int(query["n"]), int(query.get("seed", "1")))}
        case "/raises":
            return {"body": raises()}
        case "/length":
            return {"headers": {"Content-Length": query["says"]}, "body": iter(["one", "two"])}
        case "/closed":
            return f"{closed} {os.getpid()}"
        case _:
            return str(os.getpid())


poolparty.serve(handler)
