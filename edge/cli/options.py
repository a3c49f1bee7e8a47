"""Options of the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..cameras import camera_kinds
from ..engines import engine_kinds
from ..networks.card import find_model
from .shell import FloatRange

OWN = "own"


def camera_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--mode", metavar="WIDTHxHEIGHT@HZ", help='Camera mode such as "848x480@90".'),
        click.option("--source", help="A folder, recording or serial number."),
        click.option(
            "--camera", default="realsense", metavar="KIND", show_default=True, help=f"{', '.join(camera_kinds())}."
        ),
    ):
        command = option(command)
    return command


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--threads", default=0, type=click.IntRange(0, 64), help="Engine threads; default: tuned, or 1."),
        click.option(
            "--model",
            type=chosen_model,
            metavar="NAME|FILE",
            default=OWN,
            show_default=True,
            help="own: the network in use (see `edge-hand models list`); a shipped one's name; "
            "or an .onnx file with its card beside it.",
        ),
    ):
        command = option(command)
    return command


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    kinds = f"auto, {', '.join(engine_kinds())}."
    engine = click.option("--engine", default="auto", metavar="KIND", show_default=True, help=kinds)
    return engine(model_options(command))


def chosen_model(name: str) -> Path:
    """As `find_model`, and `own`: the network that was accepted on this device last, else the one that ships."""
    if context := click.get_current_context(silent=True):
        context.meta["edge_hand.model"] = name
    if name != OWN:
        return find_model(name)
    from ..networks.store import own_model

    return own_model()[0]


def own_note(context: click.Context) -> str:
    """One line about the device's own network where nothing else was asked for; empty if it is the one that ships."""
    from ..networks.store import own_model

    return own_model()[1] if context.meta.get("edge_hand.model") == OWN else ""


def model_note(context: click.Context) -> str:
    """One line that says which network --model stands for."""
    return own_note(context) or f"model: {context.params['model'].name}"


json_option = click.option("--json", "json_path", type=Path, help="Also write the result to this file.")


def tracking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How hands are found and followed."""
    for option in (
        click.option("--person", type=Path, help="Keep the hand's shape in this file, and start from it."),
        click.option("--smooth/--no-smooth", default=True, show_default=True, help="Smooth what is published."),
        click.option("--hands", default=2, show_default=True, type=click.IntRange(1, 8), help="Track so many at most."),
        click.option("--finder", default="finder", show_default=True, help="A model, or geometry for none."),
    ):
        command = option(command)
    return command


def eval_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `edge-hand eval` measures, and how."""
    for option in (
        click.option("--score", type=Path, help="Score the predictions in this file instead of a model's."),
        click.option("--predictions", type=Path, help="Write the predictions here: u v d a joint, a frame a line."),
        click.option("--workers", default=os.cpu_count() or 1, type=click.IntRange(1), help="Processes (synthetic)."),
        click.option("--finder", is_flag=True, help="Find the hand as the daemon does; default: the truth's centre."),
        click.option("--track", is_flag=True, help="Follow the hand from frame to frame, not find it in each."),
        click.option("--person", type=Path, help="Hold the hand's shape in this file, of `run --person` or `adapt`."),
        click.option("--every", default=1, show_default=True, type=click.IntRange(1), help="Each N-th frame only."),
        click.option("--out", type=Path, help="Folder for pictures: overlays, or with --data the success rates."),
        click.option("--n", "--frames", "n", type=click.IntRange(1), help="How many samples or frames."),
        click.option("--source", help="A recording without labels: a folder of depth PNGs, .mcap, .bag, .db3."),
        click.option("--data", help="Labelled: synthetic:test, :val or :clean, or {nyu,icvl,msra,recording}:PATH."),
    ):
        command = option(command)
    return command


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `edge-hand train` learns, and how it runs."""
    for option in (
        click.option("--resume", is_flag=True, help="Go on where the run in --out stopped."),
        click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files too."),
        click.option(
            "--validate-every", type=click.IntRange(0), default=50_000, show_default=True, help="Samples; 0: never."
        ),
        click.option("--minutes", type=float, help="Stop after so long; go on later with --resume."),
        click.option("--workers", type=click.IntRange(0), help="Processes that render ahead; 0: none."),
        click.option("--threads", type=click.IntRange(1), help="Threads of each process."),
        click.option("--processes", type=click.IntRange(1), help="Train in so many processes of this machine."),
        click.option("--sync-bn", is_flag=True, default=None, help="Batch statistics over all processes."),
        click.option("--compile", is_flag=True, default=None, help="Let torch.compile rewrite the network."),
        click.option("--room-share", type=FloatRange(0, 1, max_open=True), help="Crops of rooms; default none."),
        click.option(
            "--real-share", type=FloatRange(0, 1, min_open=True, max_open=True), help="Of a batch; default 0.25."
        ),
        click.option("--real", help="Real frames with joints to learn from too: {nyu,icvl,msra,recording}:PATH."),
        click.option("--teacher-weight", type=FloatRange(0), help="How much they count."),
        click.option("--teacher", help="Learn from this checkpoint's vertices too."),
        click.option("--init", help="Start from the weights of this checkpoint."),
        click.option("--seed", type=click.IntRange(0, 2**23 - 1)),
        click.option("--negative-share", type=FloatRange(0, 1), help="Share of crops without a hand."),
        click.option("--left-share", type=FloatRange(0, 1), help="Share of left hands, for the side."),
        click.option("--kind", type=click.Choice(["full", "sensorless", "clean"]), help="Of samples; default full."),
        click.option(
            "--coarse",
            type=click.IntRange(0),
            help="Samples before the refit, and so real frames' joints, teach a dgn.",
        ),
        click.option("--warmup", type=click.IntRange(0), help="Samples until the rates are full."),
        click.option(
            "--decay",
            type=FloatRange(0, 1, max_open=True),
            help="Share of the samples, at the end, over which the rates fall.",
        ),
        click.option("--muon-lr", type=FloatRange(0, 1, min_open=True), help="Muon's peak rate."),
        click.option("--lr", type=FloatRange(0, 1, min_open=True), help="AdamW's peak rate."),
        click.option("--optimizer", help="muon (default), adamw."),
        click.option("--batch", type=click.IntRange(2), help="Samples a step, of all processes together."),
        click.option("--samples", type=click.IntRange(1)),
        click.option("--width", type=click.IntRange(4, 512), help="Channels, where not those the name stands for."),
        click.option("--net", help="dgn-nano (default), dgn-base, deephps, dibra."),
        click.option("--out", type=Path, required=True, help="Folder for checkpoints and the log."),
    ):
        command = option(command)
    return command
