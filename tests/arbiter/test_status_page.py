"""The status page as a file: one of each kind of block, nothing from elsewhere."""

from __future__ import annotations

import re

from poolparty.arbiter.admin import STATUS_PAGE, _policy

PAGE = STATUS_PAGE.read_text()


def test_it_brings_everything_with_it() -> None:
    assert len(re.findall(r"<script\b", PAGE)) == len(re.findall("<script>", PAGE)) == 1
    assert len(re.findall(r"<style\b", PAGE)) == len(re.findall("<style>", PAGE)) == 1
    addresses = set(re.findall(r"""https?://[^\s"'<>)]+""", PAGE))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in PAGE


def test_a_policy_without_exceptions_lets_it_work() -> None:
    policy = _policy(PAGE.encode())
    assert policy.count("'sha256-") == 2
    assert "unsafe" not in policy
    markup = re.sub(r"<(script|style)>.*?</\1>", "", PAGE, flags=re.DOTALL)
    assert not re.search(r"\s(on[a-z]+|style)\s*=", markup), "handlers and styles in the markup are refused"
    assert "innerHTML" not in PAGE, "what clients send is text"


def test_it_says_what_it_is_to_every_reader() -> None:
    assert '<html lang="en">' in PAGE
    assert re.search(r"<title>[^<]+</title>", PAGE)
    assert 'name="viewport"' in PAGE
    assert "prefers-color-scheme" in PAGE
    assert PAGE.count('role="status"') == 3, "an outage, a restart and an action's outcome are read out"
