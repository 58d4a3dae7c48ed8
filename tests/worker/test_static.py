"""Static files without a server: which file a target names, what a request gets, what the disk says."""

from __future__ import annotations

import gzip
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import brotli
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolparty import compress
from poolparty.wire.frames import ResponseHead
from poolparty.worker import static_disk
from poolparty.worker.beneath import SMALL
from poolparty.worker.request import Request, absolute_uri
from poolparty.worker.static import StaticFiles
from poolparty.worker.static_answer import (
    Answer,
    Form,
    accepted_codings,
    byte_range,
    conditions_of,
    decide,
    servable,
)
from poolparty.worker.static_disk import Cache, Disk, ToCompress

SECRET = b"outside"
TEXT = b"body { color: red }\n" * 100


class Log:
    def __init__(self) -> None:
        self.errors: list[str] = []

    def error(self, text: str, *values: object) -> None:
        self.errors.append(text % values)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with everything in it that must not be served, and secrets around it."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / ".git").mkdir()
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "secret").write_bytes(SECRET)
    (root / "a.txt").write_bytes(b"0123456789")
    (root / "app.css").write_bytes(TEXT)
    (root / "sub" / "b.js").write_bytes(b"1;")
    (root / ".hidden").write_bytes(SECRET)
    (root / ".git" / "config").write_bytes(SECRET)
    (root / "inside").symlink_to("sub/b.js")
    (root / "folder").symlink_to("sub")
    (root / "out").symlink_to("../secret")
    (root / "out-folder").symlink_to("..")
    (root / "neighbour").symlink_to("../root-too/secret")
    (root / "git").symlink_to(".git")
    (root / "loop").symlink_to("loop")
    (root / "absolute").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "pipe")
    for folder, _, names in os.walk(root):
        for name in names:
            age(Path(folder, name))
    return root


def age(path: Path, seconds: float = 100.0) -> None:
    """As if it had been changed then; the change time stays."""
    if path.is_file():
        os.utime(path, (time.time() - seconds,) * 2)


def disk(root: Path, folder: Path | None = None, compressing: bool = False) -> Disk:
    return Disk(str(root), Cache(str(folder or root.parent / "cache"), Log()), compressing)


def content(found: Any) -> bytes:
    """What a lookup found."""
    form, file, _ = found
    if file < 0:
        assert form.content is not None and len(form.content) == form.size
        return bytes(form.content)
    try:
        return os.pread(file, form.size + 1, 0)
    finally:
        os.close(file)


def look_up(root: Path, path: bytes) -> bytes | None:
    found = disk(root).look_up(path, b"", False)
    return None if found is None else content(found)


# --- which file --------------------------------------------------------------------------------------------


@pytest.fixture
def files(root: Path) -> Iterator[StaticFiles]:
    yield static_files(root)


def static_files(root: Path, prefix: str = "/static/", **options: Any) -> StaticFiles:
    values = {"static_compress": False, "static_no_brotli": False, "static_cache_dir": None, **options}
    chosen = SimpleNamespace(static_root=str(root), static_url_prefix=prefix, **values)
    return StaticFiles(SimpleNamespace(log=Log()), chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/static/a.txt", b"a.txt"),
        (b"/static/a.txt?v=1", b"a.txt"),
        (b"/static/sub/b.js", b"sub/b.js"),
        (b"/static/", b""),
        (b"/static/sub/", b"sub/"),
        (b"//static//a.txt", b"a.txt"),
        (b"/x/../static/a.txt", b"a.txt"),
        (b"/%73tatic/a%2etxt", b"a.txt"),
        (b"/static/a%20b", b"a b"),
        (b"/static/%E4", b"\xe4"),
        (b"/static/a%3Fb", b"a?b"),
        (b"/static/sub%2Fb.js", b"sub/b.js"),
        (b"http://h/static/a.txt", b"a.txt"),
        (b"HTTP://h/static/a.txt?x", b"a.txt"),
        (b"/static", None),
        (b"/staticx", None),
        (b"/", None),
        (b"/static/../a.txt", None),
        (b"/static/..%2Fa.txt", None),
        (b"/static%2F..%2Fa.txt", None),
        (b"/api?/static/", None),
        (b"http://static/", None),
        (b"http://h", None),
        (b"http://h?/static/", None),
    ],
)
def test_a_target_is_compared_as_a_child_would_see_it(
    files: StaticFiles, target: bytes, path: bytes | None
) -> None:
    assert files.path_of(target) == path


def test_the_prefix_can_be_everything(root: Path) -> None:
    assert static_files(root, "/").path_of(b"/a.txt") == b"a.txt"


def test_a_prefix_with_other_characters_is_compared_in_its_one_form(root: Path) -> None:
    files = static_files(root, "/st\u00e4tic files/")
    assert files.path_of(b"/st%C3%A4tic%20files/a.txt") == b"a.txt"
    assert files.path_of(b"/st\xc3\xa4tic%20files/a.txt") == b"a.txt"


WORDS = """
    / // . .. %2e %2E%2e %2f %5c \\ %00 ? # ; static /static/ root root-too secret a.txt sub b.js out
    out-folder git .git config folder inside neighbour absolute loop pipe .hidden etc passwd % %c0%af
""".split()
TARGETS = st.lists(st.sampled_from([*WORDS, "x" * 300]), max_size=12).map(
    lambda words: b"/static/" + "".join(words).encode()
)


@given(TARGETS)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_outside_the_root_is_ever_served(root: Path, target: bytes) -> None:
    path = static_files(root).path_of(target)
    seen = absolute_uri(b"http", b"h", target, b"GET").removeprefix(b"http://h").partition(b"?")[0]
    assert (path is not None) == seen.startswith(b"/static/")
    if path is None or not servable(path):
        return
    found = look_up(root, path)
    assert found is None or found in (b"0123456789", TEXT, b"1;")


@given(st.binary(max_size=40))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_a_path_are_a_file_or_none(root: Path, path: bytes) -> None:
    if servable(path):
        found = look_up(root, path)
        assert found is None or found in (b"0123456789", TEXT, b"1;")


@pytest.mark.parametrize(
    "path",
    [b"", b"sub/", b"/etc/passwd", b".hidden", b".git/config", b"sub/../a.txt", b"sub//b.js", b"..", b"a\0b"],
)
def test_what_can_name_no_file_is_not_looked_up(path: bytes) -> None:
    assert not servable(path)


@pytest.mark.parametrize(
    "path",
    [
        b"missing",
        b"sub",
        b"a.txt/b",
        b"out",
        b"out-folder/secret",
        b"neighbour",
        b"absolute",
        b"git/config",
        b"loop",
        b"pipe",
        b"x" * 5000,
        b"x/" * 3000 + b"x",
    ],
)
def test_what_is_no_file_below_the_root_is_not_found(root: Path, path: bytes) -> None:
    assert look_up(root, path) is None


@pytest.mark.parametrize("path", [b"inside", b"folder/b.js"])
def test_links_within_the_root_are_followed(root: Path, path: bytes) -> None:
    assert look_up(root, path) == b"1;"


def test_a_root_that_is_a_link_or_lies_in_a_hidden_directory_is_served(root: Path) -> None:
    hidden = root.parent / ".deploy"
    root.rename(hidden)
    link = root.parent / "current"
    link.symlink_to(hidden)
    assert look_up(link, b"a.txt") == b"0123456789"


def test_a_file_that_nobody_may_read_is_not_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError

    monkeypatch.setattr(static_disk.os, "open", refuse)
    assert look_up(root, b"a.txt") is None


def test_lookups_leave_no_descriptor_open(root: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for path in (b"a.txt", b"app.css", b"out", b"missing", b"sub", b"pipe", b"loop"):
        for coding in (b"", b"br"):
            found = disk(root, compressing=True).look_up(path, coding, True)
            if isinstance(found, tuple):
                content(found)
    assert descriptors() == before


# --- what is known of it -----------------------------------------------------------------------------------


def form_of(root: Path, path: bytes, coding: bytes = b"", compressing: bool = False) -> Form:
    found = disk(root, compressing=compressing).look_up(path, coding, False)
    assert found is not None and not isinstance(found, ToCompress)
    if found[1] >= 0:
        os.close(found[1])
    return found[0]


def fields(head: ResponseHead) -> dict[bytes, bytes]:
    assert all(len(values) == 1 for _, values in head.headers)
    return {name: values[0] for name, values in head.headers}


def test_a_file_is_described(root: Path) -> None:
    os.utime(root / "app.css", ns=(0, 1_700_000_000_123_456_789))
    form = form_of(root, b"app.css")
    assert (form.size, form.modified) == (len(TEXT), 1_700_000_000)
    assert fields(form.whole) == {
        b"Content-Type": b"text/css; charset=utf-8",
        b"ETag": b'"%x-%x"' % (1_700_000_000_123_456_789, len(TEXT)),
        b"Last-Modified": b"Tue, 14 Nov 2023 22:13:20 GMT",
        b"Accept-Ranges": b"bytes",
    }
    assert form.unchanged.status == 304
    assert set(fields(form.unchanged)) == {b"ETag", b"Last-Modified"}


def test_small_files_are_kept_and_large_ones_are_left_open(root: Path) -> None:
    (root / "edge").write_bytes(b"x" * SMALL)
    (root / "large").write_bytes(b"x" * (SMALL + 1))
    assert form_of(root, b"edge").content == b"x" * SMALL
    assert form_of(root, b"large").content is None


@pytest.mark.parametrize("change", ["content", "times", "replaced", "removed", "link"])
def test_a_changed_file_is_noticed(root: Path, change: str) -> None:
    path = root / "a.txt"
    before = os.stat(path)
    form = form_of(root, b"a.txt")
    assert form.current()
    if change == "content":
        path.write_bytes(b"9876543210")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "times":
        os.utime(path)
    elif change == "removed":
        path.unlink()
    else:
        other = root / "other"
        other.write_bytes(b"0123456789")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        if change == "replaced":
            other.rename(path)
        else:
            path.unlink()
            path.symlink_to("other")
    assert not form.current()


def test_a_file_changed_a_moment_ago_is_not_kept(root: Path) -> None:
    """Within a step of the kernel's clock it could change again and show the same times."""
    (root / "new").write_bytes(b"1")
    found = disk(root).look_up(b"new", b"", False)
    assert isinstance(found, tuple) and not found[2]


# --- compressed copies -------------------------------------------------------------------------------------


def test_a_copy_beside_the_file_is_used(root: Path) -> None:
    (root / "app.css.br").write_bytes(b"brotli")
    form = form_of(root, b"app.css", b"br", compressing=True)
    assert (form.content, fields(form.whole)[b"Content-Encoding"]) == (b"brotli", b"br")
    assert fields(form.whole)[b"Content-Type"] == b"text/css; charset=utf-8"
    assert form.etag.endswith(b'-br"') and form.etag != form_of(root, b"app.css").etag
    assert fields(form.whole)[b"Vary"] == fields(form.unchanged)[b"Vary"] == b"Accept-Encoding"


def test_a_copy_that_is_older_than_its_file_is_not_used(root: Path) -> None:
    (root / "app.css.br").write_bytes(b"brotli")
    age(root / "app.css.br", 200)
    form = form_of(root, b"app.css", b"br")
    assert form.content == TEXT and b"Content-Encoding" not in fields(form.whole)


def test_a_copy_whose_time_an_archive_has_cut_to_seconds_is_used(root: Path) -> None:
    os.utime(root / "app.css", ns=(0, 1_700_000_000_900_000_000))
    (root / "app.css.br").write_bytes(b"brotli")
    os.utime(root / "app.css.br", ns=(0, 1_700_000_000_000_000_000))
    assert form_of(root, b"app.css", b"br").content == b"brotli"


def test_a_file_that_changed_soon_after_its_copy_was_made_is_served_as_it_is(root: Path) -> None:
    os.utime(root / "app.css", ns=(0, 1_700_000_000_500_000_001))
    (root / "app.css.br").write_bytes(b"brotli")
    os.utime(root / "app.css.br", ns=(0, 1_700_000_000_500_000_000))
    assert form_of(root, b"app.css", b"br").content == TEXT


def test_a_copy_that_leads_out_of_the_root_is_not_used(root: Path) -> None:
    (root / "app.css.br").symlink_to("../secret")
    assert form_of(root, b"app.css", b"br").content == TEXT


def test_a_copy_that_changes_is_noticed(root: Path) -> None:
    (root / "app.css.gz").write_bytes(b"one")
    form = form_of(root, b"app.css", b"gzip")
    (root / "app.css.gz").write_bytes(b"three")
    assert not form.current()


@pytest.mark.parametrize(("coding", "unpack"), [(b"br", brotli.decompress), (b"gzip", gzip.decompress)])
def test_a_copy_is_made_in_the_cache_directory_and_nowhere_else(
    root: Path, coding: bytes, unpack: Any
) -> None:
    before = sorted(root.iterdir())
    cache = root.parent / "cache"
    files = disk(root, cache, True)
    wanted = files.look_up(b"app.css", coding, True)
    assert isinstance(wanted, ToCompress)
    Cache(str(cache), Log()).fill(wanted, coding)
    found = files.look_up(b"app.css", coding, True)
    assert isinstance(found, tuple)
    packed = content(found)
    assert len(packed) < len(TEXT) and unpack(packed) == TEXT
    assert sorted(root.iterdir()) == before
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_copy_in_the_cache_is_not_used_for_a_file_that_changed(root: Path) -> None:
    files = disk(root, compressing=True)
    wanted = files.look_up(b"app.css", b"gzip", True)
    assert isinstance(wanted, ToCompress)
    times = os.stat(root / "app.css")
    Cache(str(root.parent / "cache"), Log()).fill(wanted, b"gzip")
    (root / "app.css").write_bytes(TEXT.replace(b"red", b"tan"))
    os.utime(root / "app.css", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert isinstance(files.look_up(b"app.css", b"gzip", True), ToCompress)


def test_what_does_not_become_smaller_is_remembered_and_sent_as_it_is(root: Path) -> None:
    noise = os.urandom(5000)
    (root / "noise").write_bytes(noise)
    files = disk(root, compressing=True)
    wanted = files.look_up(b"noise", b"gzip", True)
    assert isinstance(wanted, ToCompress)
    Cache(str(root.parent / "cache"), Log()).fill(wanted, b"gzip")
    found = files.look_up(b"noise", b"gzip", True)
    assert isinstance(found, tuple) and content(found) == noise


def test_a_cache_directory_that_cannot_be_written_is_logged_once_and_files_are_sent_as_they_are(
    root: Path,
) -> None:
    blocked = root.parent / "secret" / "cache"
    log = Log()
    cache = Cache(str(blocked), log)
    files = Disk(str(root), cache, True)
    wanted = files.look_up(b"app.css", b"br", True)
    assert isinstance(wanted, ToCompress)
    cache.fill(wanted, b"br")
    assert len(log.errors) == 1 and str(blocked) in log.errors[0]
    found = files.look_up(b"app.css", b"br", True)
    assert isinstance(found, tuple) and content(found) == TEXT


@pytest.mark.parametrize("kind", ["writable", "link"])
def test_a_directory_in_the_temporary_one_that_others_may_write_is_not_trusted(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(static_disk.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"poolparty-static-{os.geteuid()}"
    if kind == "writable":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to("elsewhere")
    log = Log()
    cache = Cache(None, log)
    files = Disk(str(root), cache, True)
    wanted = files.look_up(b"app.css", b"br", True)
    assert isinstance(wanted, ToCompress)
    cache.fill(wanted, b"br")
    assert len(log.errors) == 1
    assert list(folder.iterdir()) == []
    Path(wanted.cached).write_bytes(b"planted")
    assert cache.open(wanted.cached) is None


def test_the_oldest_copies_go_when_the_cache_is_full(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root.parent / "cache"
    cache = Cache(str(folder), Log())
    monkeypatch.setattr(static_disk, "MAX_CACHE_SIZE", 1500)
    folder.mkdir()
    (folder / "old.br").write_bytes(b"x" * 1490)
    (folder / "mine.txt").write_bytes(b"x" * 5000)
    wanted = Disk(str(root), cache, True).look_up(b"app.css", b"gzip", True)
    assert isinstance(wanted, ToCompress)
    cache.fill(wanted, b"gzip")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [os.path.basename(wanted.cached), "mine.txt"]
    )


@pytest.mark.parametrize("size", [static_disk.MIN_COMPRESSED - 1, static_disk.MAX_COMPRESSED + 1])
def test_very_small_and_very_large_files_are_not_compressed_at_first_use(root: Path, size: int) -> None:
    with (root / "file.txt").open("wb") as file:
        file.truncate(size)
    found = disk(root, compressing=True).look_up(b"file.txt", b"gzip", True)
    assert isinstance(found, tuple) and content(found) == b"\0" * size


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_makes_copies_beside_the_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "image.png").write_bytes(TEXT)
    (root / "noise.bin").write_bytes(os.urandom(5000))
    assert compress.main([str(root)]) == 0
    made = [root / "app.css.br", root / "app.css.gz"]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in made]
    assert brotli.decompress(made[0].read_bytes()) == gzip.decompress(made[1].read_bytes()) == TEXT
    original = os.stat(root / "app.css")
    assert all(path.stat().st_mtime_ns == original.st_mtime_ns for path in made)
    assert all(path.stat().st_mode == original.st_mode for path in made)
    assert sorted(root.glob("**/*.br")) == made[:1]
    assert form_of(root, b"app.css", b"br").content == made[0].read_bytes()


def test_the_command_renews_what_is_stale_and_nothing_else(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compress.main(["--no-brotli", str(root)]) == 0
    assert capsys.readouterr().out == f"{root / 'app.css.gz'}\n"
    assert compress.main(["--no-brotli", str(root)]) == 0
    assert capsys.readouterr().out == ""
    (root / "app.css").write_bytes(TEXT + TEXT)
    assert compress.main(["--no-brotli", "-q", str(root)]) == 0
    assert gzip.decompress((root / "app.css.gz").read_bytes()) == TEXT + TEXT
    (root / "app.css").write_bytes(b"short")
    assert compress.main(["--no-brotli", str(root)]) == 0
    assert not (root / "app.css.gz").exists()


def test_the_command_says_what_is_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress.main([str(tmp_path / "missing")]) == 1
    assert capsys.readouterr().err == f"Error: {tmp_path / 'missing'} is no directory.\n"


# --- what a request gets -----------------------------------------------------------------------------------

ETAG = b'"1-a"'
MODIFIED = 1_700_000_000
AT = b"Tue, 14 Nov 2023 22:13:20 GMT"
BEFORE = b"Tue, 14 Nov 2023 22:13:19 GMT"
FORM = Form(
    10, MODIFIED, ETAG, ResponseHead(200, [(b"ETag", [ETAG])]), ResponseHead(304, [(b"ETag", [ETAG])]), ()
)


def answer(*fields: tuple[bytes, bytes], method: bytes = b"GET", form: Form = FORM) -> Answer:
    request = Request(None, b"", method, b"/static/a", "1.1", list(fields), True)  # type: ignore[arg-type]
    return decide(request, form, conditions_of(request))


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ([], 200),
        ([(b"If-None-Match", ETAG)], 304),
        ([(b"If-None-Match", b"W/" + ETAG)], 304),
        ([(b"If-None-Match", b'"x", ' + ETAG)], 304),
        ([(b"If-None-Match", b'"x"'), (b"if-none-match", ETAG)], 304),
        ([(b"If-None-Match", b"*")], 304),
        ([(b"If-None-Match", b'"1-b"')], 200),
        ([(b"If-None-Match", b"1-a")], 200),
        ([(b"If-None-Match", b'"x"'), (b"If-Modified-Since", AT)], 200),
        ([(b"If-Modified-Since", AT)], 304),
        ([(b"If-Modified-Since", b"Tuesday, 14-Nov-23 22:13:20 GMT")], 304),
        ([(b"If-Modified-Since", BEFORE)], 200),
        ([(b"If-Modified-Since", b"yesterday")], 200),
        ([(b"If-Modified-Since", b"\xff")], 200),
        ([(b"If-Unmodified-Since", AT)], 200),
        ([(b"If-Unmodified-Since", BEFORE)], 412),
        ([(b"If-Match", ETAG)], 200),
        ([(b"If-Match", b"*")], 200),
        ([(b"If-Match", b"W/" + ETAG)], 412),
        ([(b"If-Match", b'"x"')], 412),
        ([(b"If-Match", ETAG), (b"If-Unmodified-Since", BEFORE)], 200),
        ([(b"If-Match", ETAG), (b"If-None-Match", ETAG)], 304),
        ([(b"Range", b"bytes=0-0"), (b"If-None-Match", ETAG)], 304),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_preconditions(given: list[tuple[bytes, bytes]], status: int, method: bytes) -> None:
    assert answer(*given, method=method).head.status == status


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (b"bytes=0-0", (0, 1)),
        (b"bytes=2-4", (2, 3)),
        (b"bytes=2-", (2, 8)),
        (b"bytes=9-", (9, 1)),
        (b"bytes=0-99999999999999999", (0, 10)),
        (b"bytes=-3", (7, 3)),
        (b"bytes=-99", (0, 10)),
        (b"Bytes=2-4", (2, 3)),
        (b"bytes= 2-4 ", (2, 3)),
    ],
)
def test_one_range_is_answered_with_a_part(value: bytes, part: tuple[int, int]) -> None:
    found = answer((b"Range", value))
    assert (found.head.status, found.start, found.size) == (206, *part)
    last = part[0] + part[1] - 1
    assert fields(found.head)[b"Content-Range"] == b"bytes %d-%d/10" % (part[0], last)
    assert fields(found.head)[b"ETag"] == ETAG


@pytest.mark.parametrize("value", [b"bytes=10-", b"bytes=10-20", b"bytes=-0"])
def test_a_range_beyond_the_end_is_416_with_the_size(value: bytes) -> None:
    found = answer((b"Range", value))
    assert (found.head.status, fields(found.head)[b"Content-Range"]) == (416, b"bytes */10")


@pytest.mark.parametrize(
    "value",
    [
        b"bytes=0-1,3-4",
        b"bytes=-",
        b"bytes=4-2",
        b"bytes=a-b",
        b"bytes=+1-2",
        b"lines=0-1",
        b"0-1",
        b"bytes=1_0-",
    ],
)
def test_several_ranges_and_what_is_none_get_the_whole_file(value: bytes) -> None:
    found = answer((b"Range", value))
    assert (found.head.status, found.start, found.size) == (200, 0, 10)


def test_head_has_no_part() -> None:
    assert answer((b"Range", b"bytes=0-0"), method=b"HEAD").head.status == 200


@pytest.mark.parametrize(
    ("value", "status"),
    [(ETAG, 206), (AT, 206), (b"W/" + ETAG, 200), (b'"x"', 200), (BEFORE, 200), (b"nonsense", 200)],
)
def test_a_part_of_a_file_that_has_changed_is_the_whole_file(value: bytes, status: int) -> None:
    assert answer((b"Range", b"bytes=0-0"), (b"If-Range", value)).head.status == status


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_a_range_is_the_slice_it_names(first: int, last: int, size: int) -> None:
    whole = bytes(range(size))
    part = byte_range(b"%d" % first, b"%d" % last, size)
    if last < first:
        assert part is None
    else:
        assert part is not None and whole[part[0] : part[0] + part[1]] == whole[first : last + 1]
    part = byte_range(b"", b"%d" % last, size)
    assert part is not None and whole[part[0] : part[0] + part[1]] == (whole[-last:] if last else b"")


@pytest.mark.parametrize(
    ("field", "codings"),
    [
        (b"gzip", {b"gzip"}),
        (b"gzip, deflate, br;q=0.9", {b"gzip", b"deflate", b"br"}),
        (b"GZIP ; q=1.0", {b"gzip"}),
        (b"x-gzip", {b"gzip"}),
        (b"gzip;q=0", set()),
        (b"br;q=0.000, gzip;q=0.001", {b"gzip"}),
        (b"", set()),
        (b"brx", {b"brx"}),
        (b"br;level=1", set()),
    ],
)
def test_which_codings_a_client_takes(field: bytes, codings: set[bytes]) -> None:
    assert accepted_codings(field) == codings
