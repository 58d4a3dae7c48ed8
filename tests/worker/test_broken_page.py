"""What a request is told while the application does not start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from poolparty.stats.notice import Notice
from poolparty.worker.broken_page import OVERLOADED, BrokenPage

BROWSER = (b"Accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")


def ask(text: str, *fields: tuple[bytes, bytes]) -> tuple[int, dict[bytes, bytes], str, int] | None:
    answers: list[Any] = []
    connection = SimpleNamespace(send_response=lambda *answer: answers.append(answer))
    notice = Notice()
    notice.publish(text)
    dispatcher = SimpleNamespace(notice=notice)
    request: Any = SimpleNamespace(connection=connection, fields=list(fields), dispatcher=dispatcher)
    if not BrokenPage().takes(request):
        assert answers == []
        return None
    ((asker, head, body, outcome),) = answers
    assert asker is request
    return head.status, {name: value for name, (value,) in head.headers}, body.decode(), outcome


def test_a_pool_that_is_well_answers_itself() -> None:
    assert ask("") is None


def test_a_browser_gets_a_page_with_everything_escaped() -> None:
    found = ask('File "<b>"\n</pre><script>', BROWSER)
    assert found is not None
    status, fields, body, outcome = found
    assert (status, fields[b"Content-Type"], outcome) == (503, b"text/html; charset=utf-8", OVERLOADED)
    assert fields[b"Cache-Control"] == b"no-store"
    assert "File &quot;&lt;b&gt;&quot;\n&lt;/pre&gt;&lt;script&gt;" in body and "<script" not in body


def test_braces_are_only_braces() -> None:
    found = ask("{0} {x} %s", BROWSER)
    assert found is not None and "{0} {x} %s" in found[2]


@pytest.mark.parametrize("fields", [[], [(b"Accept", b"*/*")], [(b"Accept", b"application/json")]])
def test_others_get_a_text(fields: list[tuple[bytes, bytes]]) -> None:
    found = ask("<b>boo", *fields)
    assert found is not None
    assert found[1][b"Content-Type"] == b"text/plain; charset=utf-8"
    assert found[2] == "the application does not start:\n<b>boo\n"
