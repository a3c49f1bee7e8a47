"""How a module of ours is run in a process of its own."""

from __future__ import annotations

import os
import sys


def module_command(name: str, *words: str) -> list[str]:
    """`python -m name words`, its imports from where this process has its own: -m looks in the current folder first,
    which may hold anything and be anybody's."""
    paths = [os.path.abspath(path) for path in sys.path]
    code = f"import sys; sys.path[:] = {paths!r}; import runpy; runpy.run_module({name!r}, None, '__main__', True)"
    return [sys.executable, "-c", code, *words]
