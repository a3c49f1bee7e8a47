"""The user's home folder, also where there is none: a container's user has no HOME and no entry in passwd."""

from __future__ import annotations

from pathlib import Path

NONE = Path("/nonexistent")  # as Debian has it for users without: nothing is read there and nothing can be written


def home() -> Path:
    """The home folder, or NONE."""
    try:
        return Path.home()
    except RuntimeError:
        return NONE
