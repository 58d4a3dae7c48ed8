"""Gives stock gunicorn our options: waits for `gunicorn.config`, then imports poolparty.settings.

Runs at every start of Python in an environment that has Poolparty installed (poolparty_server.pth imports
it), long before anyone knows whether gunicorn will be used. So it defines two small classes, imports nothing
but `sys`, and takes itself away once done. gunicorn parses its arguments before it imports a worker class: no
later moment would do.
"""

import sys


class _Finder:
    """Finds `gunicorn.config` where the other finders find it, and has its loader call back."""

    def find_spec(self, name, path=None, target=None):
        if name != "gunicorn.config":
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec = find_spec(name, path, target)
            if spec is not None:
                # A loader without exec_module (from before PEP 451) is left alone: no options then.
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader:
    """Stands in for the real loader until the module has executed; the module only ever sees the real one."""

    def __init__(self, loader, finder):
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        try:
            import poolparty.settings  # noqa: F401
        except Exception as error:
            # gunicorn has to start whatever state we are in. A package that was removed without its .pth is
            # no news.
            if getattr(error, "name", None) != "poolparty":
                sys.stderr.write(f"Warning: Poolparty's options are not available to gunicorn: {error!r}\n")


sys.meta_path.insert(0, _Finder())
