"""Imported by Python programs that a program under ``python -m conmon run`` starts."""

import contextlib
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _watch() -> None:
    path = os.environ.get("CONMON_RUN_RECORDS")
    if path and sys.version_info >= (3, 9):
        from conmon.run import watch_this_process

        watch_this_process(path)


def _import_the_other() -> None:
    # The sitecustomize that this one hides is still imported, under its own name.
    others = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


with contextlib.suppress(Exception):  # a program must not fail for being watched
    _watch()
_import_the_other()
