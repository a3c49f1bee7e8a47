"""Packages that only some parts need, the extras of pyproject.toml: what is there, and what to type for them."""

from __future__ import annotations

import importlib.metadata


def to_get(extra: str) -> str:
    """The command that brings an extra. edge-hand is installed from its own folder, as no registry has it."""
    return f"pip install '.[{extra}]' in edge-hand's folder"


def installed(package: str) -> str:
    """The version of a package, without importing it; "" where that is not known."""
    try:
        return importlib.metadata.version(package) or ""  # None, or a KeyError: what is left of one half removed
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return ""
