"""Who is believed, and what client a trusted proxy's X-Forwarded-For names."""

from __future__ import annotations

import pytest

from poolparty.worker.forwarded import Proxies, host_and_port


@pytest.mark.parametrize(
    ("allowed", "host", "trusted"),
    [
        (["127.0.0.1", "::1"], "127.0.0.1", True),
        (["127.0.0.1", "::1"], "::1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["*"], "203.0.113.1", True),
        ([], "127.0.0.1", False),
        ([], None, True),
    ],
)
def test_a_peer_is_trusted_by_its_address(allowed: list[str], host: str | None, trusted: bool) -> None:
    assert Proxies(allowed).trusts(host) is trusted


@pytest.mark.parametrize(
    ("field", "client"),
    [
        ("203.0.113.7", "203.0.113.7:0"),
        (" 203.0.113.7 ", "203.0.113.7:0"),
        ("203.0.113.7:5000", "203.0.113.7:5000"),
        ("2001:DB8::7", "[2001:db8::7]:0"),
        ("[2001:db8::7]", "[2001:db8::7]:0"),
        ("[2001:db8::7]:5000", "[2001:db8::7]:5000"),
        ("::ffff:203.0.113.7", "203.0.113.7:0"),
        # What the client itself sent stands to the left and counts for nothing.
        ("1.1.1.1, 203.0.113.7", "203.0.113.7:0"),
        ("127.0.0.1, 203.0.113.7", "203.0.113.7:0"),
        ("garbage, 203.0.113.7", "203.0.113.7:0"),
        # Proxies that are trusted themselves pass on for somebody else.
        ("203.0.113.7, 10.0.0.2", "203.0.113.7:0"),
        ("1.1.1.1, 203.0.113.7, 10.0.0.3, 10.0.0.2", "203.0.113.7:0"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3:0"),
        ("unknown, 10.0.0.2", "10.0.0.2:0"),
        # None that can be believed.
        ("", None),
        ("unknown", None),
        ("203.0.113.7, ", None),
        ("203.0.113.7, _hidden", None),
        ("203.0.113.256", None),
        ("203.0.113.7:65536", None),
        ("203.0.113.7:", None),
        ("[203.0.113.7", None),
        ("203.0.113.7 1.1.1.1", None),
        ("\xe9", None),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_trusted_proxys(
    field: str, client: str | None
) -> None:
    named = Proxies(["10.0.0.0/8"]).client(field.encode("latin-1"))
    assert (None if named is None else named[1:].decode()) == client
    if named is not None:
        assert named[0] == len(named) - 1


def test_where_everybody_is_trusted_it_is_the_first() -> None:
    named = Proxies(["*"]).client(b"203.0.113.7, 10.0.0.3")
    assert named is not None and named[1:] == b"203.0.113.7:0"


def test_an_address_and_port_are_written_as_children_know_them() -> None:
    assert host_and_port("1.2.3.4", 5) == "1.2.3.4:5"
    assert host_and_port("::1", 5) == "[::1]:5"
