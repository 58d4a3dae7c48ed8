"""Lines of the control socket: `python tests/fuzz/control_lines.py -max_total_time=120`."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["poolparty.wire"]):
    from poolparty.errors import ControlError
    from poolparty.wire import control


def commands(pieces: list[bytes]) -> list[str | None]:
    """What is read; None at the end if the connection is broken off."""
    reader = control.CommandReader()
    found: list[str | None] = []
    try:
        for piece in [*(piece for piece in pieces if piece), b""]:
            reader.feed(piece)
            while (command := reader.next()) is not None:
                found.append(command)
    except ControlError:
        found.append(None)
    return found


def one(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    cuts = sorted(provider.ConsumeIntListInRange(provider.ConsumeIntInRange(0, 5), 0, 100))
    text = provider.ConsumeBytes(provider.remaining_bytes())
    cuts = [cut for cut in cuts if cut <= len(text)]
    found = commands([text])
    assert found == commands([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)])
    for command in found:
        if command is None:
            continue
        try:
            words = control.split(command)
        except ControlError as error:
            words = []
            answer(str(error))
        for word in words:
            assert word
            try:
                assert control.parse_int(word) == int(word)
            except ControlError as error:
                answer(str(error))
            answer(word)


def answer(message: str) -> None:
    line = control.error_line(message)
    assert line.startswith("ERROR: ") and line.endswith("\n")
    assert line[:-1].isprintable() and len(line) < 10 * control.MAX_MESSAGE + 20


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
