"""Compressed copies of static files: the command `poolparty-compress`, and what the HTTP worker makes at
first use.

`poolparty-compress ROOT` writes `app.css.br` and `app.css.gz` beside `app.css`, for --static-compress to
serve. A copy has its original's modification time, which is how a stale one is known, and takes its name in
one step, so it may be made under a running server. What whitenoise knows is not worth compressing is left
alone, hidden files too."""

from __future__ import annotations

import argparse
import gzip
import os
import stat
import sys
import tempfile
from collections.abc import Iterator

from whitenoise import compress as whitenoise

SUFFIXES = {b"br": ".br", b"gzip": ".gz"}
"""How the copy of each content coding is named, in the order of preference."""

BROTLI_AHEAD, BROTLI_LIVE = 11, 5
"""Brotli's quality: its best takes two seconds a megabyte, this one fifteen milliseconds, for 10 % more
bytes."""

GZIP_AHEAD, GZIP_LIVE = 9, 6

brotli_installed: bool = whitenoise.brotli_installed
_worth = whitenoise.Compressor(quiet=True)


def compressible(name: str) -> bool:
    """Whether a file of this name may become smaller."""
    return bool(_worth.should_compress(name))


def compress(data: bytes, encoding: bytes, live: bool) -> bytes | None:
    """The data in a content coding, None if that saves less than whitenoise thinks worth it (5 %)."""
    if encoding == b"br":
        packed = whitenoise.brotli.compress(data, quality=BROTLI_LIVE if live else BROTLI_AHEAD)
    else:
        packed = gzip.compress(data, GZIP_LIVE if live else GZIP_AHEAD, mtime=0)
    return packed if _worth.is_compressed_effectively(encoding.decode(), "", len(data), packed) else None


def write(path: str, data: bytes, mode: int, mtime_ns: int) -> None:
    """Give `path` this content in one step."""
    file, name = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".poolparty-")
    try:
        with os.fdopen(file, "wb") as out:
            out.write(data)
            os.fchmod(out.fileno(), mode)
        os.utime(name, ns=(mtime_ns, mtime_ns))
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def fresh(copy: os.stat_result, original: os.stat_result) -> bool:
    """Whether a copy is of the original as it is now: not older, or only as far as an archive that
    keeps whole seconds made it so."""
    if not stat.S_ISREG(copy.st_mode):
        return False
    older = original.st_mtime_ns - copy.st_mtime_ns
    return older <= 0 or (copy.st_mtime_ns % 10**9 == 0 and older < 10**9)


def originals(root: str) -> Iterator[str]:
    """Every file below root that may be served and may become smaller; directories that are links are not
    entered."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not name.startswith(".") and compressible(name) and os.path.isfile(path):
                yield path


def compress_beside(path: str, encodings: list[bytes]) -> list[str]:
    """Make the copies of one file that are missing or stale; a stale one that is not worth it any more
    goes."""
    original = os.stat(path)
    made = []
    data: bytes | None = None
    for encoding in encodings:
        copy = path + SUFFIXES[encoding]
        try:
            if fresh(os.stat(copy), original):
                continue
        except FileNotFoundError:
            pass
        if data is None:
            with open(path, "rb") as file:
                data = file.read()
        packed = compress(data, encoding, live=False)
        if packed is not None:
            write(copy, packed, stat.S_IMODE(original.st_mode), original.st_mtime_ns)
            made.append(copy)
        elif os.path.lexists(copy):
            os.unlink(copy)
    return made


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="poolparty-compress",
        description="Makes compressed copies (.br, .gz) beside the files below ROOT, for --static-compress.",
    )
    parser.add_argument("root", metavar="ROOT", help="the directory that is given to --static-root")
    parser.add_argument("--no-brotli", action="store_true", help="make .gz only")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not name the files made")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if not os.path.isdir(arguments.root):
        print(f"Error: {arguments.root} is no directory.", file=sys.stderr)
        return 1
    encodings = list(SUFFIXES)
    if arguments.no_brotli or not brotli_installed:
        encodings.remove(b"br")
    status = 0
    for path in originals(arguments.root):
        try:
            made = compress_beside(path, encodings)
        except OSError as error:
            print(f"Error: {path}: {error.strerror}.", file=sys.stderr)
            status = 1
            continue
        if not arguments.quiet:
            for copy in made:
                print(copy)
    return status


if __name__ == "__main__":
    sys.exit(main())
