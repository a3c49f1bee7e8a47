"""What to type for packages that only some parts of edge-hand need: the extras of pyproject.toml."""

from __future__ import annotations


def to_get(extra: str) -> str:
    """The command that brings an extra. edge-hand is installed from its own folder, as no registry has it."""
    return f"pip install '.[{extra}]' in edge-hand's folder"
