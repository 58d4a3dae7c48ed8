"""An application that says of each request's body: its size, its SHA-256, and whether it is in a file.

With POOLPARTY_TEST_FEATURES in the environment that is what it believes to be offered.
"""

from __future__ import annotations

import hashlib
import os

import poolparty


def handler(request: poolparty.Request) -> object:
    digest = hashlib.sha256()
    size = 0
    with request.open_body() as body:
        while data := body.read(1 << 20):
            digest.update(data)
            size += len(data)
    if request.path == "/whole":
        assert len(request.body) == size
    return f"{size} {digest.hexdigest()} {request.body_path}"


os.environ["POOLPARTY_FEATURES"] = os.environ.get("POOLPARTY_TEST_FEATURES", os.environ["POOLPARTY_FEATURES"])
poolparty.serve(handler)
