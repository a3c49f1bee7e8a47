"""What the commands share: mistakes in one line, results as JSON, folders made before the work, an end by signal."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import click

from ...hand.whole import refusal, try_writing, write_json


class CommandError(Exception):
    """A user's mistake, in one line."""


class FloatRange(click.FloatRange):
    """click's, which lets nan through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is no number.", param, ctx)
        return found


def make_folders(*folders: Path | None) -> None:
    """Where results will go; before the work, so that a wrong path costs none."""
    for folder in folders:
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"folder {folder} cannot be made: {refusal(error)}") from None


def make_room(*files: Path | None) -> None:
    """Where results will go, their folders made and the files tried, before the work. Raises CommandError."""
    make_folders(*(file and file.parent for file in files))
    must_write(*files)


def must_write(*files: Path | None, read: Iterable[Path | str] = ()) -> None:
    """Raise CommandError for a file that cannot be written, or is one of those that are read or of another result,
    before the work whose result goes there."""
    taken = {os.path.realpath(one) for one in read}
    for file in files:
        if file and os.path.realpath(file) in taken:
            raise CommandError(f"{file} would be overwritten: it is given twice; give each result a name of its own")
        taken |= {os.path.realpath(file)} if file else set()
        if file and file.suffix == ".json" and file.with_suffix(".onnx").exists():
            raise CommandError(f"{file} is the card of {file.with_suffix('.onnx').name}; give the result another name")
        try:
            if file is not None:
                try_writing(file)
        except OSError as error:
            raise CommandError(f"{file} cannot be written: {refusal(error)}") from None


def write_result(result: Any, path: Path | None) -> None:
    """For --json, if it was given. Raises CommandError."""
    if path is not None:
        try:
            write_json(path, result)
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {refusal(error)}") from None


def stop_on_signal() -> Callable[[], bool]:
    """From now on Ctrl-C and SIGTERM are noted and end nothing by themselves; whether one came."""
    came: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: came.append(number))
    return lambda: bool(came)


def say(text: str) -> None:
    click.echo(text, err=True)


def unheard(echo: Callable[[str], object], stream: TextIO) -> Callable[[str], None]:
    """echo for a daemon, which goes on where nobody reads its stream any more: a pipe or terminal that was closed."""

    def told(text: str) -> None:
        try:
            echo(text)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    return told
