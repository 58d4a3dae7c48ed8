"""The applications that the contestants serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import applications

ASK = """
from wsgiref.util import setup_testing_defaults
from wsgi import application

def start_response(status, headers):
    print(status, dict(headers)["Content-Type"])

environ = {}
setup_testing_defaults(environ)
print(b"".join(application(environ, start_response)))
"""


@pytest.mark.parametrize("kind", ["hello", "flask", "django"])
def test_wsgi_applications_say_hello(kind: str, tmp_path: Path) -> None:
    applications.write(tmp_path, "wsgi", kind)
    done = subprocess.run([sys.executable, "-c", ASK], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "200 OK text/plain; charset=utf-8\nb'hello\\n'\n", done.stderr
