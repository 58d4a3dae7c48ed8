"""Gives stock gunicorn our options: imports poolparty.settings as soon as `gunicorn.config` has executed.

gunicorn parses its arguments before it imports a worker class, so no later moment would do. At every start of
Python in an environment that has Poolparty installed, poolparty_server.pth puts a PoolpartyFinder on
sys.meta_path that knows this one name. It imports this module when it is asked for that name, and only then:
what stands in the .pth itself costs a start half a millisecond, with or without compiled files, where this
module would cost two more wherever PYTHONDONTWRITEBYTECODE is set. A virtual environment reads each .pth
twice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def find_config(path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    """Finds gunicorn.config where the other finders find it, with a loader that calls us when it is done."""
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        if find_spec is None or _is_ours(finder):
            continue
        spec: ModuleSpec | None = find_spec("gunicorn.config", path, target)
        if spec is not None:
            # A loader without exec_module (from before PEP 451) is left alone: no options then.
            if hasattr(spec.loader, "exec_module"):
                spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
            return spec
    return None


def _is_ours(finder: object) -> bool:
    return type(finder).__name__ == "PoolpartyFinder"


class _Loader:
    """Stands in for the real loader until the module has executed; the module only ever sees the real one."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_ours(finder)]
        try:
            import poolparty.settings  # noqa: F401
        except Exception as error:
            # gunicorn has to start whatever state we are in. A package that was removed is no news.
            if getattr(error, "name", None) != "poolparty":
                sys.stderr.write(f"Warning: Poolparty's options are not available to gunicorn: {error!r}\n")
