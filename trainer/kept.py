"""Folders of results that are kept for the next time: what is in one belongs to one network and one set of options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..hand.whole import write_json

NAME = "settings.json"


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or go on in it. Raises ClickException if its results are of other settings, or of unknown."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    if not path.exists():
        if any(folder.iterdir()):
            raise click.ClickException(f"{folder}: has results of unknown settings; choose another folder")
        write_json(path, settings)
        return
    was = json.loads(path.read_text())
    other = [name for name in sorted({*was, *settings}) if was.get(name) != settings.get(name)]
    if other:
        says = ", ".join(f"{name} {was.get(name)} for {settings.get(name)}" for name in other)
        raise click.ClickException(f"{folder}: has results of other settings ({says}); choose another folder")
