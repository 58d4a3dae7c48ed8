"""Packets on a seat's channel: `python tests/fuzz/seats.py -max_total_time=60`."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["poolparty.wire"]):
    from poolparty.wire import seat


def one(packet: bytes) -> None:
    try:
        message = seat.decode(packet)
    except ValueError:
        return
    assert seat.decode(seat.encode(message)) == message
    assert len(seat.encode(message)) <= seat.MAX_PACKET


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
