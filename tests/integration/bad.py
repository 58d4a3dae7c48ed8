"""An application whose pages misbehave; whatever else is asked, it answers as load.py expects.

/own-sigterm   ignores SIGTERM from now on
/stop          stops itself with SIGSTOP
/close         closes descriptor 3, and lives on
/close-later   answers, then closes descriptor 3
/flood?mb=     writes so many MB to stdout, in long lines, while others are served
/grow?mb=      keeps so many MB more
/swell         grows by 50 MB again and again, and never answers
/pid           the process
/…?ms=         answers after so many milliseconds

The variable POOLPARTY_TEST_SICK names a file: while it is there and says so, health checks fail ("false"),
are late ("late"), or the program exits before it is ready ("exit").
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import poolparty

SICK = Path(os.environ.get("POOLPARTY_TEST_SICK", "/nonexistent"))
kept: list[bytearray] = []


def sickness() -> str:
    return SICK.read_text() if SICK.exists() else ""


def flood(megabytes: int) -> None:
    line = b"y" * 999 + b"\n"
    for _ in range(megabytes * 1000):
        os.write(1, line)


def close_later() -> None:
    time.sleep(0.1)
    os.close(3)


def handler(request: poolparty.Request) -> object:
    query = dict(urllib.parse.parse_qsl(request.query))
    match request.path:
        case "/own-sigterm":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "/stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "/close":
            os.close(3)
            signal.pause()
        case "/close-later":
            threading.Thread(target=close_later).start()
        case "/flood":
            threading.Thread(target=flood, args=[int(query["mb"])], daemon=True).start()
        case "/grow":
            kept.append(bytearray(int(query["mb"]) << 20))
        case "/swell":
            while True:
                kept.append(bytearray(50 << 20))
                time.sleep(0.05)
        case "/pid":
            pass
        case _:
            time.sleep(int(query.get("ms", "0")) / 1000)
            return f"{request.method} {request.uri}\n".encode() + request.body
    return str(os.getpid())


def well() -> None:
    if sickness() == "late":
        time.sleep(3600)
    assert sickness() != "false", "a sick child"


if sickness() == "exit":
    sys.exit("the database is missing")
poolparty.serve(handler, health_check=well)
