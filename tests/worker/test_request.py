"""From a parsed head to what a child sees: targets, hosts, fields, and each reason to refuse a request.

The tables of targets and hosts were recorded from the original, which was asked each of them with a child
that echoes its uri. Where ours differs, the original's answer stands in a third column with the reason.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from poolparty.errors import RequestError
from poolparty.wire.bare import encode_string
from poolparty.wire.frames import HTTPRequest, decode_request
from poolparty.worker.request import (
    MAX_CACHED,
    SMALL_BODY,
    FieldRules,
    build_request,
    canonical_name,
    finish_request,
)

Fields = list[tuple[bytes, bytes]]

SECURE = {"X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"}


def rules(header_map: str = "drop", forwarder: tuple[str, ...] = ()) -> FieldRules:
    return FieldRules(header_map, forwarder, SECURE)


def build(
    target: bytes = b"/",
    fields: Fields | None = None,
    method: bytes = b"GET",
    version: str = "1.1",
    scheme: bytes = b"http",
    trusted: bool = False,
    with_rules: FieldRules | None = None,
) -> tuple[Any, dict[bytes, bytes], bytes]:
    connection: Any = SimpleNamespace(scheme=scheme, trusted=trusted)
    fields = [(b"Host", b"h")] if fields is None else fields
    return build_request(connection, with_rules or rules(), method, target, version, fields, True)


def seen(fields: Fields, with_rules: FieldRules | None = None, version: str = "1.1") -> dict[bytes, bytes]:
    """The headers a child sees, by name; a Host field is added, and not shown, unless `fields` has one."""
    added = [] if any(name.lower() == b"host" for name, _ in fields) else [(b"Host", b"h")]
    request, headers, uri = build(fields=added + fields, with_rules=with_rules, version=version)
    finish_request(request, headers, uri, encode_string(b"1.2.3.4:5"))
    decoded = decode_request(request.head[4:])
    assert isinstance(decoded, HTTPRequest)
    names = [name for name, _ in decoded.headers]
    assert len(names) == len(set(names))
    return {name: value for name, value in decoded.headers if not added or name != b"Host"}


def refused(status: int, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(RequestError) as caught:
        build(*args, **kwargs)
    assert caught.value.status == status
    return str(caught.value)


# --- targets -----------------------------------------------------------------------------------------------

LIKE_THE_ORIGINAL = """
    /                            /
    /a/../b//c%20d?x=1&y=%41     /b/c%20d?x=1&y=%41
    /a/b/                        /a/b/
    /a/./b                       /a/b
    /./                          /
    /./a                         /a
    /a/./                        /a/
    /a/..                        /
    /a/../                       /
    /..                          /
    /../..                       /
    /../../a/                    /a/
    //                           /
    //a                          /a
    //h.example/x                /h.example/x
    //a//b//                     /a/b/
    /a//                         /a/
    /a//..//b                    /b
    /...                         /...
    /a./b.                       /a./b.
    /.a/.b                       /.a/.b
    /a/.../b                     /a/.../b
    /a../b                       /a../b
    /..a                         /..a
    /a/..b                       /a/..b
    /a/b/../..                   /
    /a/b/../../..                /
    /a/b/c/../..                 /a/
    /a/b/c/../../d               /a/d
    /a/../../b                   /b
    /%2e%2e/a                    /a
    /a/%2E%2e/b                  /b
    /a/%2e/b                     /a/b
    /a%2Fb                       /a/b
    /a%2f%2fb                    /a/b
    /a%2F..%2Fb                  /b
    /a/..%2f                     /
    /a%2F.%2Fb                   /a/b
    /a/b%2F                      /a/b/
    /%2F                         /
    /!*'()                       /%21%2A%27%28%29
    /%21%2A%27%28%29             /%21%2A%27%28%29
    /$&+,/:;=@                   /$&+,/:;=@
    /%24%26%2B%2C%3A%3B%3D%40    /$&+,:;=@
    /-_.~                        /-_.~
    /%7Euser                     /~user
    /%41%42                      /AB
    /%zz                         /%25zz
    /%                           /%25
    /%2                          /%252
    /a%                          /a%25
    /%2zb                        /%252zb
    /%00                         /%00
    /%0a                         /%0A
    /%25                         /%25
    /%2525                       /%2525
    /é                           /%C3%A9
    /%c3%a9                      /%C3%A9
    /%e2%82%ac                   /%E2%82%AC
    /%ff                         /%FF
    /a|b                         /a%7Cb
    /a"b<c>                      /a%22b%3Cc%3E
    /a\\b                        /a%5Cb
    /\\..\\b                     /%5C..%5Cb
    /a%5C..%5Cb                  /a%5C..%5Cb
    /a^b`{}                      /a%5Eb%60%7B%7D
    /[x]                         /%5Bx%5D
    /a?                          /a
    /?                           /
    /??                          /??
    /a?b?c                       /a?b?c
    /?a=/../b//c                 /?a=/../b//c
    /a?x=%zz&é                   /a?x=%zz&é
    /a?\\                        /a?\\
    /a%23b                       /a%23b
    /a%3Fb                       /a%3Fb
    /a;b=1                       /a;b=1
    /a+b                         /a+b
    /a:b                         /a:b
    /http://x/y                  /http:/x/y
    /#                           /
"""


@pytest.mark.parametrize("line", LIKE_THE_ORIGINAL.strip().splitlines())
def test_a_path_becomes_what_the_original_made_of_it(line: str) -> None:
    target, path = line.encode().replace(rb"\\", b"\\").split()
    assert build(target)[2] == b"http://h" + path


def test_a_byte_that_is_no_utf8_is_encoded_like_any_other() -> None:
    assert build(b"/\xff")[2] == b"http://h/%FF"


@pytest.mark.parametrize(
    ("target", "uri"),
    [
        (b"http://other.example/p", b"http://other.example/p"),
        (b"http://Other.Example:81/p/../q?x", b"http://other.example:81/q?x"),
        (b"HTTP://o.example/x", b"http://o.example/x"),
        (b"http://o.example", b"http://o.example/"),
        (b"http://o.example?x", b"http://o.example/?x"),
        (b"http://o.example//a", b"http://o.example/a"),
    ],
)
def test_an_absolute_target_brings_its_own_host(target: bytes, uri: bytes) -> None:
    assert build(target, [], version="1.0")[2] == uri
    host = uri.split(b"/")[2]
    assert build(target, [(b"Host", host)])[2] == uri
    assert build(target, [(b"Host", host.upper())])[2] == uri


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://h:80/", b"h"),
        (b"http://h/", b"h:80"),
        (b"http://h:/", b"h"),
        (b"https://h/", b"h:443"),
        (b"http://[::1]:80/", b"[::1]"),
    ],
)
def test_the_default_port_makes_no_other_host(target: bytes, host: bytes) -> None:
    build(target, [(b"Host", host)], trusted=True)


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://h/", b"g"),
        (b"http://h/", b""),
        (b"http://h:81/", b"h"),
        (b"http://h/", b"h:443"),
        (b"https://h/", b"h:80"),
        (b"http://h.example/", b"h.example.org"),
    ],
)
def test_a_host_field_that_disagrees_with_an_absolute_target_is_refused(target: bytes, host: bytes) -> None:
    # RFC 9112, 3.2.2. The original let the target win: whoever reads the field then sees another host.
    assert "different" in refused(400, target, [(b"Host", host)], trusted=True)


def test_a_target_that_says_https_needs_a_connection_that_can_vouch_for_it() -> None:
    # RFC 9110, 7.4
    target, fields = b"https://h/x", [(b"Host", b"h")]
    refused(421, target, fields)
    assert build(target, fields, scheme=b"https")[2] == b"https://h/x"
    assert build(target, fields, trusted=True)[2] == b"http://h/x", "the proxy does not say so itself"
    forwarded = [*fields, (b"X-Forwarded-Proto", b"https")]
    assert build(target, forwarded, trusted=True)[2] == b"https://h/x"


def test_a_star_is_encoded_as_the_original_does_it_and_is_for_options_alone() -> None:
    assert build(b"*", method=b"OPTIONS")[2] == b"http://h/%2A"
    assert "OPTIONS" in refused(400, b"*")  # the original: /%2A for every method


@pytest.mark.parametrize(
    ("target", "ours", "original", "why"),
    [
        (b"/a/.", b"/a/", b"/a/.", "RFC 3986, 5.2.4: a dot at the end is resolved like any other"),
        (b"/.", b"/", b"/.", "the same"),
        (b"/a/%2e", b"/a/", b"/a/.", "the same"),
        (b"/a%2F.", b"/a/", b"/a/.", "the same"),
        (b"/a#f", b"/a", b"/a#f", "RFC 9112, 3.2: a fragment is no part of a target"),
        (b"/a?q#f", b"/a?q", b"/a?q#f", "the same"),
        (b"/a?#f", b"/a", b"/a#f", "the same"),
    ],
)
def test_where_a_path_differs_from_the_original_on_purpose(
    target: bytes, ours: bytes, original: bytes, why: str
) -> None:
    assert ours != original, why
    assert build(target)[2] == b"http://h" + ours, why


@pytest.mark.parametrize(
    "target",
    [
        b"a",  # the original took these for paths
        b"a/b",
        b"?x",
        b"ftp://o.example/x",  # and passed these on
        b"http:///x",
        b"http://u:p@o.example/x",  # RFC 9110, 4.2.4: user information in a uri is to be treated as an error
        b"http://o .example/x",
        b"h:80",
    ],
)
def test_a_target_that_is_neither_a_path_nor_an_http_uri_is_refused(target: bytes) -> None:
    refused(400, target)


def test_the_target_itself_is_kept_as_it_came() -> None:
    assert build(b"/a/../b?")[0].target == b"/a/../b?"


# --- hosts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b"H", b"h"),
        (b"H.Example:8080", b"h.example:8080"),
        (b"h:", b"h:"),
        (b"[::1]", b"[::1]"),
        (b"[FE80::1]:80", b"[fe80::1]:80"),
        (b"a_b", b"a_b"),
        (b"a..b", b"a..b"),
        (b"", b""),
    ],
)
def test_a_host_is_in_lower_case_in_the_uri_and_as_it_came_among_the_headers(
    value: bytes, host: bytes
) -> None:
    _, headers, uri = build(b"/x", [(b"host", value)])
    assert uri == b"http://" + host + b"/x"
    assert headers[encode_string(b"Host")] == value


@pytest.mark.parametrize(
    "value",
    [
        b"a b",
        b"a/b",
        b"a@b",
        b"a:b",
        b"a:123456",
        b"a?b",
        b"a#b",
        b"a\\b",
        b"\xc3\xa9",
        b"[::1",
        b"a:1:2",
        b"a:65536",
        b"a%zz",
        b"a%",
    ],
)
def test_what_is_no_host_is_refused(value: bytes) -> None:
    # The original built uris like http://a/b/ from these: the child would read another path than was asked.
    refused(400, b"/x", [(b"Host", value)])


def test_a_missing_host_is_refused_in_1_1_and_empty_in_1_0() -> None:
    assert "missing" in refused(400, b"/p", [])
    assert build(b"/p", [], version="1.0")[2] == b"http:///p"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_repeated_host_is_refused_also_if_it_says_the_same(version: str) -> None:
    assert "repeated" in refused(400, b"/", [(b"Host", b"h"), (b"host", b"h")], version=version)


def test_many_hosts_are_not_all_remembered() -> None:
    from poolparty.worker import request

    for number in range(MAX_CACHED + 10):
        build(b"/", [(b"Host", b"h%d.example" % number)])
    build(b"/", [(b"Host", b"x" * 300)])
    assert len(request._hosts) <= MAX_CACHED
    assert b"x" * 300 not in request._hosts


# --- the scheme --------------------------------------------------------------------------------------------


def test_the_scheme_is_the_connections_unless_a_trusted_proxy_says_otherwise() -> None:
    forwarded = [(b"Host", b"h"), (b"X-Forwarded-Proto", b"HTTPS")]
    assert build(fields=forwarded)[2] == b"http://h/"
    assert build(fields=forwarded, trusted=True)[2] == b"https://h/"
    assert build(scheme=b"https")[2] == b"https://h/"
    forwarded = [(b"Host", b"h"), (b"x-forwarded-proto", b"http")]
    assert build(fields=forwarded, scheme=b"https", trusted=True)[2] == b"http://h/"


def test_a_trusted_proxy_that_contradicts_itself_is_refused_as_gunicorn_does_it() -> None:
    fields = [(b"Host", b"h"), (b"X-Forwarded-Proto", b"https"), (b"X-Forwarded-Ssl", b"off")]
    refused(400, fields=fields, trusted=True)
    assert build(fields=fields)[2] == b"http://h/"
    agreed = [(b"Host", b"h"), (b"X-Forwarded-Proto", b"https"), (b"X-Forwarded-Ssl", b"on")]
    assert build(fields=agreed, trusted=True)[2] == b"https://h/"


def test_an_underscore_does_not_fake_a_proxys_field() -> None:
    fields = [(b"Host", b"h"), (b"X_Forwarded_Proto", b"https")]
    assert build(fields=fields, trusted=True)[2] == b"http://h/"


# --- fields ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        (b"user-agent", b"User-Agent"),
        (b"x-csrf-TOKEN", b"X-Csrf-Token"),
        (b"ETag", b"Etag"),
        (b"WWW-auth", b"Www-Auth"),
        (b"DNT", b"Dnt"),
        (b"Sec-CH-UA", b"Sec-Ch-Ua"),
        (b"x1-2y", b"X1-2y"),
        (b"x.y!z-a", b"X.y!z-A"),
        (b"a--b-", b"A--B-"),
    ],
)
def test_names_arrive_in_the_originals_canonical_case(name: bytes, canonical: bytes) -> None:
    assert canonical_name(name) == canonical
    assert seen([(name, b"v")]) == {canonical: b"v"}


def test_repeated_fields_are_joined_in_their_order() -> None:
    fields = [(b"A", b"1"), (b"B", b"x"), (b"a", b"2"), (b"A", b"")]
    assert seen(fields) == {b"A": b"1, 2, ", b"B": b"x"}


def test_repeated_cookies_are_joined_as_cookies_are() -> None:
    assert seen([(b"cookie", b"a=1"), (b"Cookie", b"b=2; c=3")]) == {b"Cookie": b"a=1; b=2; c=3"}


def test_a_value_is_utf8_and_taken_for_latin_1_where_it_is_none() -> None:
    fields = [(b"A", "é€".encode()), (b"B", b"caf\xe9"), (b"C", b"\xc3")]
    assert seen(fields) == {b"A": "é€".encode(), b"B": "café".encode(), b"C": "Ã".encode()}


def test_space_behind_a_value_goes_and_inside_it_stays() -> None:
    assert seen([(b"A", b"a  b \t "), (b"B", b" ")]) == {b"A": b"a  b", b"B": b""}


def test_a_name_with_an_underscore_is_gunicorns_affair() -> None:
    fields = [(b"X_Y", b"1"), (b"X-Y", b"2")]
    assert seen(fields) == {b"X-Y": b"2"}
    assert seen(fields, rules("dangerous")) == {b"X_y": b"1", b"X-Y": b"2"}
    assert seen(fields, rules("drop", ("X_Y",))) == {b"X_y": b"1", b"X-Y": b"2"}
    message = refused(400, fields=[(b"Host", b"h"), *fields], with_rules=rules("refuse"))
    assert "X_Y" in message


def test_a_name_is_refused_each_time_not_only_when_it_is_new() -> None:
    strict = rules("refuse")
    for _ in range(2):
        refused(400, fields=[(b"Host", b"h"), (b"X_Y", b"1")], with_rules=strict)


def test_ever_new_names_are_not_all_remembered() -> None:
    some = rules()
    for number in range(MAX_CACHED + 10):
        some.lookup(b"X-%d" % number)
    some.lookup(b"x" * 300)
    assert len(some._known) <= MAX_CACHED
    assert some.lookup(b"x-%d" % (MAX_CACHED + 5))[0] == encode_string(b"X-%d" % (MAX_CACHED + 5))
    assert b"x" * 300 not in some._known


def test_the_framing_fields_are_among_the_headers() -> None:
    assert seen([(b"transfer-encoding", b"chunked")]) == {b"Transfer-Encoding": b"chunked"}
    assert seen([(b"content-length", b"3")]) == {b"Content-Length": b"3"}
    assert seen([(b"Connection", b"close")]) == {b"Connection": b"close"}


# --- what the fields demand --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"chunked "])
def test_a_chunked_body_is_taken(value: bytes) -> None:
    build(fields=[(b"Host", b"h"), (b"Transfer-Encoding", value)], method=b"POST")


@pytest.mark.parametrize(
    "values", [[b"gzip, chunked"], [b"identity"], [b""], [b"chunked", b"chunked"], [b"gzip", b"chunked"]]
)
def test_another_transfer_coding_is_not_implemented(values: list[bytes]) -> None:
    fields = [(b"Host", b"h"), *((b"Transfer-Encoding", value) for value in values)]
    assert "chunked" in refused(501, fields=fields, method=b"POST")


def test_a_transfer_coding_in_1_0_is_refused() -> None:
    # RFC 9112, 6.1: its framing is to be taken as faulty.
    refused(400, fields=[(b"Transfer-Encoding", b"chunked")], version="1.0")


def test_the_one_expectation_is_met_and_another_is_refused() -> None:
    assert build()[0].expects_continue is False
    assert build(fields=[(b"Host", b"h"), (b"Expect", b"100-Continue")])[0].expects_continue is True
    refused(417, fields=[(b"Host", b"h"), (b"Expect", b"200-ok")])


def test_an_expectation_of_1_0_is_not_met() -> None:
    # RFC 9110, 10.1.1: such a client would not know what to do with an interim response.
    assert build(fields=[(b"Expect", b"100-continue")], version="1.0")[0].expects_continue is False


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", "3.0"])
def test_another_version_is_not_served(version: str) -> None:
    assert version in refused(505, version=version)


def test_connect_is_not_served() -> None:
    refused(501, b"h:80", method=b"CONNECT")


@pytest.mark.parametrize(
    ("method", "retryable"), [(b"GET", True), (b"HEAD", True), (b"POST", False), (b"PUT", False)]
)
def test_only_safe_requests_may_run_twice(method: bytes, retryable: bool) -> None:
    request = build(method=method)[0]
    assert request.retryable is retryable
    assert request.is_head is (method == b"HEAD")


# --- the frame ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 127, 128, SMALL_BODY, SMALL_BODY + 1])
@pytest.mark.parametrize("method", [b"POST", b"PROPFIND"])
def test_head_and_body_together_are_the_frame(size: int, method: bytes) -> None:
    request, headers, uri = build(b"/x?y", [(b"Host", b"h"), (b"A", b"b")], method=method)
    request.body = [b"x" * (size // 2), b"y" * (size - size // 2)] if size else []
    request.body_size = size
    finish_request(request, headers, uri, encode_string(b"[::1]:9"))
    wire = b"".join((request.head, *request.body))
    assert int.from_bytes(wire[:4], "little") == len(wire) - 4
    assert decode_request(wire[4:]) == HTTPRequest(
        b"[::1]:9",
        b"http://h/x?y",
        method,
        [(b"Host", b"h"), (b"A", b"b")],
        b"x" * (size // 2) + b"y" * (size - size // 2),
    )


def test_a_small_body_is_written_with_its_head_and_a_large_one_is_not_copied() -> None:
    for size, parts in ((SMALL_BODY, 0), (SMALL_BODY + 1, 1)):
        request, headers, uri = build(method=b"POST")
        request.body = [bytes(size)]
        request.body_size = size
        finish_request(request, headers, uri, encode_string(b"@"))
        assert len(request.body) == parts
