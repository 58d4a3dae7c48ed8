"""Files that children name in their answers: what an answer says, which file that is, what of it is sent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from pipes import LIMIT, FakeConnection, Pool
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from side import Side, get

from poolparty.errors import AnswerError
from poolparty.wire.frames import HTTPResponse, ResponseHead, ResponsePiece, ResponseStart, encode_response
from poolparty.wire.seat import Reason, Return
from poolparty.worker import beneath
from poolparty.worker.beneath import SMALL, UnfitError
from poolparty.worker.lease import Lease
from poolparty.worker.request import Request
from poolparty.worker.response import render
from poolparty.worker.sendfile import Order, Sendfile
from poolparty.worker.static_answer import Answer, Form, conditions_of, decide

SECRET = b"outside"
CONTENT = b"0123456789"
MODIFIED = 1_700_000_000
MODIFIED_DATE = b"Tue, 14 Nov 2023 22:13:20 GMT"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with links that lead out of it, and secrets around it."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / ".drafts").mkdir()
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "secret").write_bytes(SECRET)
    for name in ("a.txt", "sub/b", ".drafts/c", "a b%2e", "ä.pdf"):
        (root / name).write_bytes(CONTENT)
        os.utime(root / name, (MODIFIED, MODIFIED))
    (root / "inside").symlink_to("sub/b")
    (root / "folder").symlink_to("sub")
    (root / "out").symlink_to("../secret")
    (root / "out-folder").symlink_to("..")
    (root / "neighbour").symlink_to(tmp_path / "root-too")
    (root / "nowhere").symlink_to("../missing")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


def order(*fields: tuple[bytes, bytes], status: int = 200) -> Order:
    found = Order.of(ResponseHead(status, [(name, [value]) for name, value in fields]))
    assert found is not None
    return found


def sendfile(root: Path) -> Sendfile:
    return Sendfile(SimpleNamespace(), str(root))  # type: ignore[arg-type]


def look_up(root: Path, name: bytes, value: bytes) -> bytes | None:
    """What a field names, None: what is missing."""
    found = sendfile(root).look_up(order((name, value)))
    if found is None:
        return None
    form, file = found
    assert file < 0 and form.content is not None
    return form.content


# --- which file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"X-Sendfile", b"a.txt"),
        (b"x-sendfile", b" a.txt "),
        (b"X-Sendfile", b"sub/b"),
        (b"X-Sendfile", b"./sub//../a.txt"),
        (b"X-Sendfile", b"folder/b"),
        (b"X-Sendfile", b"inside"),
        (b"X-Sendfile", b".drafts/c"),
        (b"X-Sendfile", b"a b%2e"),
        (b"X-Sendfile", "ä.pdf".encode()),
        (b"X-Sendfile", b"../root/a.txt"),
        (b"X-Accel-Redirect", b"/a.txt"),
        (b"x-accel-redirect", b"a.txt"),
        (b"X-Accel-Redirect", b"//sub/b"),
        (b"X-Accel-Redirect", b"/a.txt?x=/../secret"),
        (b"X-Accel-Redirect", b"/a%20b%252e"),
        (b"X-Accel-Redirect", b"/%C3%A4.pdf"),
        (b"X-Accel-Redirect", "/ä.pdf".encode()),
    ],
)
def test_a_field_names_a_file_below_the_root(root: Path, name: bytes, value: bytes) -> None:
    assert look_up(root, name, value) == CONTENT


def test_x_sendfile_may_be_absolute_by_the_roots_own_path_or_through_a_link(root: Path) -> None:
    link = root.parent / "current"
    link.symlink_to("root")
    for configured in (root, link):
        for said in (root, link):
            assert look_up(configured, b"X-Sendfile", os.fsencode(said / "a.txt")) == CONTENT


@pytest.mark.parametrize("name", [b"X-Sendfile", b"X-Accel-Redirect"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"../secret", "outside"),
        (b"sub/../../secret", "outside"),
        (b"../root-too/secret", "outside"),
        (b"out", "outside"),
        (b"out-folder/secret", "outside"),
        (b"neighbour/secret", "outside"),
        (b"nowhere", "outside"),
        (b"../missing", "outside"),
        (b"out-folder/missing", "outside"),
        (b"..", "outside"),
        (b"", "a directory"),
        (b"sub", "a directory"),
        (b"sub/", "a directory"),
        (b"pipe", "no regular file"),
    ],
)
def test_what_is_no_file_below_the_root_is_refused(root: Path, name: bytes, value: bytes, why: str) -> None:
    with pytest.raises(UnfitError, match=why):
        look_up(root, name, value)


def test_an_absolute_path_elsewhere_is_outside_whether_it_exists_or_not(root: Path) -> None:
    for path in (root.parent / "secret", root.parent / "missing", Path("/etc/passwd"), Path(f"{root}-too")):
        with pytest.raises(UnfitError, match="outside"):
            look_up(root, b"X-Sendfile", os.fsencode(path))
    assert look_up(root, b"X-Accel-Redirect", os.fsencode(root / "a.txt")) is None


@pytest.mark.parametrize("value", [b"missing", b"sub/missing", b"a.txt/x"])
def test_what_is_not_there_is_missing(root: Path, value: bytes) -> None:
    assert look_up(root, b"X-Sendfile", value) is None


@pytest.mark.parametrize("value", [b"loop", b"x" * 300])
def test_what_the_system_cannot_look_up_is_its_error(root: Path, value: bytes) -> None:
    with pytest.raises(OSError):
        look_up(root, b"X-Sendfile", value)


def test_a_file_that_may_not_be_read_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError

    monkeypatch.setattr(beneath.os, "open", refuse)
    with pytest.raises(PermissionError):
        look_up(root, b"X-Sendfile", b"a.txt")


def test_a_nul_ends_no_name(root: Path) -> None:
    with pytest.raises(UnfitError, match="NUL"):
        look_up(root, b"X-Accel-Redirect", b"/a.txt%00.pdf")


WORDS = """
    / // . .. ../ /.. %2e %2E%2e %2f %5c \\ %00 ? # root root-too secret a.txt sub b out out-folder inside
    folder neighbour nowhere loop pipe .drafts c etc/passwd proc/self/environ % %c0%af ~ missing
""".split()
ANY_PATH = st.lists(st.sampled_from([*WORDS, "x" * 300]), max_size=12).map(lambda words: "".join(words))


@given(ANY_PATH, st.sampled_from(["relative", "absolute", "elsewhere", "accel", "quoted"]))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_leads_out_of_the_root(root: Path, path: str, how: str) -> None:
    value = {"absolute": f"{root}/{path}", "elsewhere": f"/{path}", "quoted": quote(path)}.get(how, path)
    name = b"X-Accel-Redirect" if how in ("accel", "quoted") else b"X-Sendfile"
    try:
        found = look_up(root, name, value.encode())
    except (UnfitError, OSError):
        return
    assert found is None or found == CONTENT


@given(st.binary(max_size=40), st.sampled_from([b"X-Sendfile", b"X-Accel-Redirect"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_file_or_none(root: Path, value: bytes, name: bytes) -> None:
    try:
        found = look_up(root, name, value)
    except (UnfitError, OSError):
        return
    assert found is None or found == CONTENT


def test_lookups_leave_open_only_what_is_to_be_sent(root: Path) -> None:
    (root / "large").write_bytes(b"x" * (SMALL + 1))

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for value in (b"a.txt", b"out", b"missing", b"sub", b"pipe", b"loop", b"..", b"nowhere"):
        try:
            look_up(root, b"X-Sendfile", value)
        except (UnfitError, OSError):
            continue
    assert descriptors() == before
    found = sendfile(root).look_up(order((b"X-Sendfile", b"large")))
    assert found is not None and found[0].content is None and found[0].size == SMALL + 1
    os.close(found[1])


# --- what an answer says -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"X-Sendfil", b"a.txt"), (b"X-Other-Fld", b"1"), (b"X-Accel-Buffering", b"no")],
        [(b"X-Sendfile-Type", b"X-Sendfile")],
    ],
)
def test_an_answer_that_names_no_file_is_one_as_any_other(fields: list[tuple[bytes, bytes]]) -> None:
    assert Order.of(ResponseHead(200, [(name, [value]) for name, value in fields])) is None


@pytest.mark.parametrize(
    "fields",
    [
        [(b"X-Sendfile", [b"a", b"b"])],
        [(b"X-Sendfile", [b"a"]), (b"x-sendfile", [b"a"])],
        [(b"X-Sendfile", [b"a"]), (b"X-Accel-Redirect", [b"/a"])],
    ],
)
def test_an_answer_that_names_two_files_is_refused(fields: list[tuple[bytes, list[bytes]]]) -> None:
    with pytest.raises(AnswerError, match="more than one file"):
        Order.of(ResponseHead(200, fields))


def form(*fields: tuple[bytes, bytes], status: int = 200, name: str = "a.txt") -> Form:
    times = SimpleNamespace(st_size=len(CONTENT), st_mtime=MODIFIED + 0.5, st_mtime_ns=MODIFIED * 10**9)
    said = order((b"X-Sendfile", name.encode()), *fields, status=status)
    return said.form(name, times, CONTENT)  # type: ignore[arg-type]


def fields_of(head: ResponseHead) -> dict[bytes, bytes]:
    assert all(len(values) == 1 for _, values in head.headers)
    return {name: values[0] for name, values in head.headers}


def test_what_the_child_does_not_say_the_file_does() -> None:
    found = form()
    assert fields_of(found.whole) == {
        b"Content-Type": b"text/plain; charset=utf-8",
        b"Content-Length": b"10",
        b"ETag": b'"%x-a"' % (MODIFIED * 10**9),
        b"Last-Modified": MODIFIED_DATE,
        b"Accept-Ranges": b"bytes",
    }
    assert set(fields_of(found.unchanged)) == {b"ETag", b"Last-Modified"}
    assert fields_of(form(name="report.pdf").whole)[b"Content-Type"] == b"application/pdf"
    assert fields_of(form(name="report").whole)[b"Content-Type"] == b"application/octet-stream"


def test_what_the_child_says_counts_but_for_the_bodys_bytes() -> None:
    kept = {
        b"content-type": b"image/png",
        b"Content-Disposition": b"attachment; filename=x.png",
        b"Cache-Control": b"private",
        b"Set-Cookie": b"a=b",
        b"ETag": b'"v1"',
        b"Last-Modified": b"Mon, 01 Jan 2024 00:00:00 GMT",
    }
    dropped = {b"content-length": b"0", b"Content-Range": b"bytes 0-4/10", b"Accept-Ranges": b"none"}
    found = form(*kept.items(), *dropped.items())
    assert fields_of(found.whole) == {**kept, b"Content-Length": b"10", b"Accept-Ranges": b"bytes"}
    del kept[b"content-type"]
    assert fields_of(found.unchanged) == kept


@pytest.mark.parametrize("bad", [b"v1", b'"a" "b"', b'"a\r\nX: y"', b"", b'w/"a"'])
def test_a_bad_etag_of_the_child_gives_way_to_the_files(bad: bytes) -> None:
    assert form((b"ETag", bad)).etag == form().etag


@pytest.mark.parametrize(
    "bad", [b"yesterday", b"", b"Fri, 01 Jan 99999 00:00:00 GMT", b"Fri, 31 Dec 9999 23:59:59 -1200"]
)
def test_a_bad_last_modified_of_the_child_gives_way_to_the_files(bad: bytes) -> None:
    assert fields_of(form((b"Last-Modified", bad)).whole)[b"Last-Modified"] == MODIFIED_DATE


def test_last_modified_reaches_the_client_in_one_form() -> None:
    said = b"Monday, 01-Jan-24 00:00:00 GMT\r\nX-Injected: yes"
    assert b"\r" not in fields_of(form((b"Last-Modified", said)).whole)[b"Last-Modified"]


def answer(found: Form, *fields: tuple[bytes, bytes]) -> Answer:
    request = Request(None, b"", b"GET", b"/", "1.1", list(fields), True)  # type: ignore[arg-type]
    return decide(request, found, conditions_of(request))


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        (b"If-None-Match", b'"v1"', 304),
        (b"If-None-Match", b'W/"v1"', 304),
        (b"If-None-Match", b'"v2"', 200),
        (b"If-Modified-Since", b"Mon, 01 Jan 2024 00:00:00 GMT", 304),
        (b"If-Modified-Since", MODIFIED_DATE, 200),
        (b"If-Match", b'"v1"', 200),
        (b"If-Match", b'"v2"', 412),
        (b"If-Unmodified-Since", MODIFIED_DATE, 412),
    ],
)
def test_conditions_are_about_what_the_child_says(field: bytes, value: bytes, status: int) -> None:
    found = form((b"ETag", b'"v1"'), (b"Last-Modified", b"Mon, 01 Jan 2024 00:00:00 GMT"))
    assert answer(found, (field, value)).head.status == status


def test_a_weak_etag_is_good_for_if_none_match_alone() -> None:
    found = form((b"ETag", b'W/"v1"'))
    assert fields_of(found.whole)[b"ETag"] == b'W/"v1"'
    assert answer(found, (b"If-None-Match", b'"v1"')).head.status == 304
    assert answer(found, (b"If-Match", b'"v1"')).head.status == 412
    for same in (b'"v1"', b'W/"v1"'):
        assert answer(found, (b"Range", b"bytes=1-2"), (b"If-Range", same)).head.status == 200
    assert answer(found, (b"Range", b"bytes=1-2"), (b"If-Range", MODIFIED_DATE)).head.status == 206


@pytest.mark.parametrize("status", [200, 206])
def test_a_part_is_the_servers_to_choose(status: int) -> None:
    found = form((b"Content-Range", b"bytes 0-1/10"), (b"Content-Length", b"2"), status=status)
    assert found.whole.status == 200
    part = answer(found, (b"Range", b"bytes=2-4"))
    assert (part.head.status, part.start, part.size) == (206, 2, 3)
    assert fields_of(part.head)[b"Content-Range"] == b"bytes 2-4/10"


def test_with_another_status_the_file_is_whole() -> None:
    found = form((b"Content-Type", b"text/html"), status=404)
    assert found.whole.status == 404
    assert b"Accept-Ranges" not in fields_of(found.whole)


TOKENS = st.sampled_from(
    [b"ETag", b"Last-Modified", b"Content-Type", b"Connection", b"X-A", b"Content-Length"]
)
VALUES = st.lists(st.binary(max_size=12) | st.sampled_from([b'"a"', b'W/"b"', MODIFIED_DATE]), max_size=3)


@given(st.lists(st.tuples(TOKENS | st.binary(max_size=4), VALUES), max_size=6), st.integers(200, 599))
@settings(deadline=None)
def test_what_http_can_carry_without_the_file_it_can_carry_with_it(
    fields: list[tuple[bytes, list[bytes]]], status: int
) -> None:
    """Nothing may be found wrong with a head once the file is being sent."""
    try:
        render(ResponseHead(status, fields))
        said = Order.of(ResponseHead(status, [*fields, (b"X-Sendfile", [b"a.txt"])]))
    except AnswerError:
        return
    assert said is not None
    found = said.form("a.txt", os.stat(__file__), CONTENT)
    render(found.whole)
    render(found.unchanged)


# --- the child ---------------------------------------------------------------------------------------------


class Elsewhere(FakeConnection):
    """A client that gets a file in place of what its child sends."""

    def start_response(self, request: Request, head: ResponseHead, size: int | None, lease: Lease) -> bool:
        return False


@pytest.mark.parametrize("size", [None, 200_000])
@pytest.mark.parametrize("end", ["dies", "times out", "ends"])
def test_what_becomes_of_the_child_does_not_touch_the_file(
    pools: Callable[..., Pool], size: int | None, end: str
) -> None:
    pool = pools()
    child = pool.child()
    client = Elsewhere()
    request = pool.request(client, b"/1")
    assert pool.dispatcher.submit(request, pool.now)
    assert child.target() == b"/1"
    head = ResponseHead(200, [(b"X-Sendfile", [b"a"])])
    if size is None:
        child.write(encode_response(ResponseStart(head, None)))
        thrown_away = ResponsePiece(b"thrown away", False)
        rest = encode_response(thrown_away) + encode_response(ResponsePiece(b"", True))
    else:
        wire = encode_response(HTTPResponse(head, bytes(size)))
        child.write(wire[:100_000])
        rest = wire[100_000:]
    if end == "dies":
        child.die()
    elif end == "times out":
        pool.later(LIMIT + 1)
    else:
        child.write(rest)
        pool.ask(b"/2")
        assert child.target() == b"/2"
    assert client.told == [] and request.connection is client
    reasons = {"dies": [Reason.BROKEN], "times out": [Reason.TIMED_OUT], "ends": []}
    assert pool.mail() == [Return(child.number, reason) for reason in reasons[end]]


def test_without_sendfile_root_the_fields_pass_through() -> None:
    side = Side()
    try:
        side.send(get())
        fields: Any = [(b"X-Sendfile", [b"/etc/passwd"]), (b"X-Accel-Redirect", [b"/private/a"])]
        side.answer(b"body", headers=fields)
        assert b"\r\nX-Sendfile: /etc/passwd\r\nX-Accel-Redirect: /private/a\r\n" in side.transport.written
        assert side.received() == [(200, b"body")]
    finally:
        side.close()
