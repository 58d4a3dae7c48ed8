"""Poolparty: an application server for programs that answer one request at a time.

Imported by everyone: the `poolparty` command, gunicorn's master (which looks for `poolparty.GWorker`), and
children written in Python that ask for `poolparty.serve`. So nothing is imported before it is asked for.
"""

from __future__ import annotations

__version__ = "0.1.0"

# `python -m poolparty.wsgi` is a module of the child's library, also where this package is found first.
__path__.append(__path__[0] + "/sdk/python/poolparty")

TYPE_CHECKING = False  # typing's constant of this name would cost the import of typing
if TYPE_CHECKING:
    from poolparty.sdk.python.poolparty import Headers, Request, Response, serve
    from poolparty.worker.gworker import GWorker

__all__ = ["GWorker", "Headers", "Request", "Response", "__version__", "serve"]

_HOMES = {
    "GWorker": "poolparty.worker.gworker",
    "Headers": "poolparty.sdk.python.poolparty",
    "Request": "poolparty.sdk.python.poolparty",
    "Response": "poolparty.sdk.python.poolparty",
    "serve": "poolparty.sdk.python.poolparty",
}


def __getattr__(name: str) -> object:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'poolparty' has no attribute {name!r}") from None
    import sys

    __import__(home)  # importlib would cost the child's start more than what it asks for
    value: object = getattr(sys.modules[home], name)
    globals()[name] = value
    return value
