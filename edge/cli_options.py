"""Options of the command line that would crowd `cli.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def eval_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `edge-hand eval` measures, and how."""
    for option in (
        click.option("--score", type=Path, help="Score the predictions in this file instead of a model's."),
        click.option("--predictions", type=Path, help="Write the predictions here: u v d a joint, a frame a line."),
        click.option("--workers", default=os.cpu_count() or 1, type=click.IntRange(1), help="Processes (synthetic)."),
        click.option("--finder", is_flag=True, help="Find the hand as the daemon does; default: the truth's centre."),
        click.option("--track", is_flag=True, help="Follow the hand from frame to frame, not find it in each."),
        click.option("--every", default=1, show_default=True, type=click.IntRange(1), help="Each N-th frame only."),
        click.option("--out", type=Path, help="Folder for pictures: overlays, or with --data the success rates."),
        click.option("--n", "--frames", "n", type=click.IntRange(1), help="How many samples or frames."),
        click.option("--source", help="A recording without labels: a folder of depth PNGs, .mcap, .bag, .db3."),
        click.option("--data", help="Labelled: synthetic:test, :val or :clean, or {nyu,icvl,msra,recording}:PATH."),
    ):
        command = option(command)
    return command
