"""Development: while the application does not start, every request is told why. Runs in the HTTP worker, with
--reload alone.

What a failed child printed may hold anything, secrets included; so this is never asked for unless the server
was started for development."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from poolparty.stats.scoreboard import COUNTER_INDEX
from poolparty.wire.frames import ResponseHead

if TYPE_CHECKING:
    from poolparty.worker.dispatcher import Dispatcher
    from poolparty.worker.request import Request

OVERLOADED = COUNTER_INDEX["overloaded"]

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>The application does not start</title>
<style>
body {{ font-family: sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }}
pre {{ background: #eee; overflow-x: auto; padding: 1em }}
</style>
<h1>The application does not start</h1>
<p>This is the last it said. It is started anew when one of its files changes; then reload this page.</p>
<pre>{0}</pre>
</html>
"""


class BrokenPage:
    """Answers for a pool as long as the arbiter's notice about it says something."""

    def takes(self, request: Request) -> bool:
        """Answer a request if the application is broken: a page for a browser, a text for all others, both
        503."""
        text = request.dispatcher.notice.read()
        connection = request.connection
        if not text or connection is None:
            return False
        if wants_html(request):
            kind, body = b"text/html; charset=utf-8", PAGE.format(html.escape(text))
        else:
            kind, body = b"text/plain; charset=utf-8", f"the application does not start:\n{text}\n"
        fields = [
            (b"Content-Type", [kind]),
            (b"Cache-Control", [b"no-store"]),
            (b"Retry-After", [b"1"]),
            (b"Content-Security-Policy", [b"default-src 'none'; style-src 'unsafe-inline'"]),
        ]
        connection.send_response(request, ResponseHead(503, list(fields)), body.encode(), OVERLOADED)
        return True

    def sweep(self, dispatcher: Dispatcher) -> None:
        """Answer what has come before the application broke, and waits for a child."""
        if dispatcher.queue and dispatcher.notice.read():
            for request in list(dispatcher.queue):
                dispatcher.forget(request)
                self.takes(request)


def wants_html(request: Request) -> bool:
    """Whether a request's Accept names HTML, as browsers' do."""
    return any(name.lower() == b"accept" and b"text/html" in value.lower() for name, value in request.fields)
