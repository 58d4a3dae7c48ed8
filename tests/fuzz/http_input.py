"""What a client sends: `python tests/fuzz/http_input.py -max_total_time=300 -max_len=600`.

The connection stands on the fake transport of tests/worker/test_connection.py; each request is answered with
its own target. Sent whole and sent in pieces, a stream must be read the same way: the same requests, answers
and end. Only with which status it is refused may depend on how much of it has arrived.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "worker")]
with atheris.instrument_imports(include=["poolparty.worker"]):
    from side import Side

Seen = list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]]


def talk(pieces: list[bytes]) -> tuple[Seen, list[int], bool]:
    """What children see, with which statuses the client is answered, whether the connection was ended."""
    side = Side()
    seen: Seen = []

    def serve() -> None:
        while side.running is not None:
            request = side.seen()
            seen.append((request.method, request.uri, request.headers, request.body))
            side.answer(side.running.target)

    try:
        for piece in pieces:
            serve()
            if side.transport.closed or side.transport.eof:
                break
            assert side.transport.reading
            side.connection.data_received(piece)
        serve()
        assert not side.log.errors, side.log.errors
        return seen, statuses(side.transport.written), side.transport.closed or side.transport.eof
    finally:
        side.close()


def one(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    cuts = sorted(provider.ConsumeIntListInRange(provider.ConsumeIntInRange(0, 4), 1, 300))
    stream = provider.ConsumeBytes(provider.remaining_bytes())
    cuts = sorted({cut for cut in cuts if cut < len(stream)})
    if not stream:
        return
    whole = talk([stream])
    pieces = talk([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)])
    assert whole[0] == pieces[0], (stream, cuts, whole[0], pieces[0])
    assert whole[1] == pieces[1], (stream, cuts, whole[1], pieces[1])
    assert whole[2] == pieces[2], (stream, cuts, whole, pieces)
    assert REFUSED not in whole[1][:-1], (stream, whole[1])
    assert len(whole[1]) == len(whole[0]) + (REFUSED in whole[1]), (stream, whole)


REFUSED = 400


def statuses(written: bytes) -> list[int]:
    """Without 100 Continue; every refusal is one. The bodies are targets, in which there is no blank."""
    found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", written)]
    return [min(status, REFUSED) for status in found if status != 100]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
