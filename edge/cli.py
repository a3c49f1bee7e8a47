"""The command line. Every command is a thin shell around a function; heavy imports happen inside the commands."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .cameras import CameraError, camera_kinds
from .cli_options import eval_options, train_options
from .model_card import DEFAULT_MODEL, ModelError, find_model

BIND = "tcp://127.0.0.1:5555"


class CommandError(Exception):
    """A user's mistake, in one line."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edge-hand")
def cli() -> None:
    """Hand tracking from depth cameras: joints, angles and mesh over ZeroMQ.

    \b
    edge-hand run --camera realsense          track and publish
    edge-hand watch                           see what is published
    """


def camera_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--mode", help='Camera mode such as "848x480@90".'),
        click.option("--source", help="A folder, recording or serial number."),
        click.option("--camera", default="realsense", show_default=True, help=f"{', '.join(camera_kinds())}."),
    ):
        command = option(command)
    return command


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 64), help="Engine threads."),
        click.option(
            "--model",
            type=find_model,
            metavar="NAME|FILE",
            default=DEFAULT_MODEL.stem,
            show_default=True,
            help="A shipped model's name, or an .onnx file with its card beside it.",
        ),
        click.option("--engine", default="auto", show_default=True, help="auto, onnxruntime."),
    ):
        command = option(command)
    return command


json_option = click.option("--json", "json_path", type=Path, help="Also write the result to this file.")


@cli.command()
@camera_options
@engine_options
@click.option("--bind", default=BIND, show_default=True, help="Where to publish: tcp://HOST:PORT or ipc://PATH.")
@click.option("--insecure", is_flag=True, help="Allow an address beyond this machine, readable by anyone.")
@click.option("--fps", type=float, help="Replay rate, Hz; 0 is as fast as possible.")
@click.option("--loop", is_flag=True, help="Start a recording over when it ends.")
@click.option("--frames", type=click.IntRange(1), help="Stop after so many frames.")
@click.option("--view/--no-view", default=None, help="Draw in the terminal; default: if there is one.")
def run(
    camera: str, source: str | None, mode: str | None, engine: str, model: Path, threads: int, bind: str,
    insecure: bool, fps: float | None, loop: bool, frames: int | None, view: bool | None,
) -> None:  # fmt: skip
    """Track hands and publish them until the stream ends or Ctrl-C.

    \b
    edge-hand run --camera realsense --mode 848x480@90
    edge-hand run --camera replay --source recording.mcap
    edge-hand run --camera synthetic
    """
    from .cameras import open_camera
    from .engines import open_engine
    from .loop import Loop, topology
    from .publish import Publisher
    from .tracker import Tracker
    from .viewer import Viewer
    from .watch import Screen

    stopping: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: stopping.append(number))
    tracker = Tracker(open_engine(engine, model, threads))
    with (
        open_camera(camera, source, mode=mode, fps=fps, loop=loop) as opened,
        Publisher(bind, topology=topology(), insecure=insecure) as publisher,
    ):
        click.echo(f"{opened.name} at {opened.fps:g} Hz -> {publisher.address}  ({tracker.engine.name}, {model.name})")

        def done() -> bool:
            return bool(stopping) or (frames is not None and the_loop.totals.frames >= frames)

        if view or (view is None and sys.stdout.isatty()):
            with Viewer(Screen()) as viewer:
                the_loop = Loop(opened, tracker, publisher, viewer)
                totals = the_loop.run(done)
        else:
            the_loop = Loop(opened, tracker, publisher)
            totals = the_loop.run(done)
    click.echo(totals.summary())
    if totals.frames == 0 and not stopping:
        raise CommandError(f"no frame could be used ({totals.bad_frames} were bad): {the_loop.trouble or 'none came'}")
    if the_loop.trouble:
        say(f"last trouble: {the_loop.trouble}")


@cli.command()
@click.option("--address", default=BIND, show_default=True)
@click.option("--camera", help="Which camera, if several publish there.")
@click.option("--frames", type=click.IntRange(1), help="Stop after so many messages.")
def watch(address: str, camera: str | None, frames: int | None) -> None:
    """See in the terminal what `edge-hand run` publishes.

    \b
    edge-hand watch --address tcp://127.0.0.1:5555
    """
    from .watch import watch as watch_address

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    watch_address(address, camera, frames)


@cli.command()
@camera_options
@engine_options
@click.option("--frames", type=click.IntRange(1), help="Measure so many frames.")
@click.option("--flat-out/--at-rate", default=True, help="As fast as possible, or at the recorded rate.")
@json_option
def bench(
    camera: str, source: str | None, mode: str | None, engine: str, model: Path, threads: int, frames: int | None,
    flat_out: bool, json_path: Path | None,
) -> None:  # fmt: skip
    """Time every stage of the pipeline: p50, p95, p99 and frames a second.

    \b
    edge-hand bench --camera replay --source recording.mcap --threads 1 --json bench.json
    """
    from .bench import bench as measure
    from .bench import table

    make_folders(json_path and json_path.parent)
    result = measure(
        camera, source, mode=mode, engine=engine, model=model, threads=threads, frames=frames, flat_out=flat_out
    )
    click.echo(table(result))
    write_json(result, json_path)


@cli.command()
@camera_options
@click.argument("out", type=Path)
@click.option("--frames", type=click.IntRange(1), help="Stop after so many frames.")
@click.option("--far", "far_m", type=click.FloatRange(0, min_open=True), help="Leave out readings beyond this, m.")
def record(
    camera: str, source: str | None, mode: str | None, out: Path, frames: int | None, far_m: float | None
) -> None:
    """Record depth frames, lossless, until Ctrl-C.

    \b
    edge-hand record --camera realsense hand.mcap
    """
    from dataclasses import replace

    import numpy as np

    from .cameras import BadFrame, EndOfStream, FrameTimeout, open_camera
    from .recording import RecordingWriter

    stopping: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: stopping.append(number))
    n = skipped = 0
    last_seq: int | None = None
    settings = {"camera": camera, "mode": mode or "", "far_m": str(far_m or "")}
    with (
        open_camera(camera, source, mode=mode) as opened,
        RecordingWriter(out, sensor=camera, settings=settings, compress_level=3) as writer,
    ):
        while not stopping and (frames is None or n < frames):
            try:
                frame = opened.read()
                if far_m is not None:
                    near = np.where(frame.depth * frame.depth_unit_m <= far_m, frame.depth, 0).astype(np.uint16)
                    frame = replace(frame, depth=near)
                writer.write(frame)
                skipped += max(0, frame.seq - last_seq - 1) if last_seq is not None else 0
                last_seq = frame.seq
            except EndOfStream:
                break
            except (BadFrame, FrameTimeout) as error:
                say(str(error))
                continue
            n += 1
    if n == 0:
        raise CommandError(f"record: no frame came, {out} was not written")
    click.echo(
        f"{n} frames in {out}" + (f"; {skipped} were lost: the disk or this machine is too slow" if skipped else "")
    )


@cli.command()
def cameras() -> None:
    """List the RealSense cameras that are connected.

    \b
    edge-hand cameras
    """
    from .cameras.realsense import list_cameras

    found = list_cameras()
    for info in found:
        click.echo(str(info))
    if not found:
        click.echo("no RealSense camera is connected; --camera synthetic needs none")


@cli.command(name="eval")
@eval_options
@engine_options
@json_option
def evaluate(
    data: str | None, source: str | None, engine: str, model: Path, threads: int, n: int | None, out: Path | None,
    every: int, track: bool, json_path: Path | None, **labelled: Any,
) -> None:  # fmt: skip
    """Measure a model: joint and vertex errors with labels, distance from depth to mesh without.

    \b
    edge-hand eval --data synthetic:test --json test.json
    edge-hand eval --source recording/ --out overlays/
    """
    if (data is None) == (source is None):
        raise CommandError("eval: give either --data synthetic:test or --source PATH")
    if (data and (track or every != 1)) or (source and any(labelled[k] for k in ("finder", "predictions", "score"))):
        raise CommandError("eval: --track, --every go with --source; --finder, --predictions, --score with --data")
    make_folders(out, json_path and json_path.parent, labelled["predictions"] and labelled["predictions"].parent)
    if source:
        from .engines import open_engine
        from .evaluate import evaluate_recording, recording_table

        opened = open_engine(engine, model, threads)
        result = evaluate_recording(source, opened, out=out, track=track, every=every, limit=n)
        click.echo(recording_table(result))
    else:
        trainer = need_trainer("evaluate")
        try:
            result = trainer.evaluate(data, trainer.Model(model, engine, threads), n, out=out, **labelled)
        except trainer.EvaluateError as error:
            raise CommandError(str(error)) from None
        click.echo(trainer.table(result))
    write_json(result, json_path)


@cli.command()
@train_options
def train(
    out: Path, processes: int | None, threads: int | None, workers: int | None, minutes: float | None,
    validate_every: int, tensorboard: bool, resume: bool, **options: Any,
) -> None:  # fmt: skip
    """Train a network on rendered hands. With --resume the run's own options hold; only --samples may change.

    \b
    edge-hand train --out runs/dgn --samples 1500000
    edge-hand train --out runs/dgn --processes 8
    torchrun --nproc-per-node 4 --no-python edge-hand train --out runs/dgn
    """
    trainer = need_trainer("train")
    make_folders(out)
    try:
        config = trainer.config_of(out, {k: v for k, v in options.items() if v is not None}, resume)
        path = trainer.train(
            config, out, resume=resume, processes=processes, threads=threads, workers=workers, minutes=minutes,
            validate_every=validate_every, tensorboard=tensorboard,
        )  # fmt: skip
    except trainer.TrainError as error:
        raise CommandError(str(error)) from None
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"{path}")


@cli.command()
@click.option("--checkpoint", type=Path, required=True, help="last.pt of a training run.")
@click.option("--out", type=Path, required=True, help="The .onnx file to write, its card goes beside it; or a .pt.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, int8.")
@click.option("--metrics", type=Path, help="JSON of `edge-hand eval` to keep in the card.")
def export(checkpoint: Path, out: Path, precision: str, metrics: Path | None) -> None:
    """Write a trained network as ONNX with its card, if it agrees with torch; or its weights alone, to train on.

    \b
    edge-hand export --checkpoint runs/dgn/last.pt --out dgn.onnx
    edge-hand export --checkpoint runs/dgn/last.pt --out dgn.pt     # 2 MB, for edge-hand train --init
    """
    need_trainer("train")
    from ..exporters.onnx import ExportError
    from ..exporters.onnx import export as write
    from ..trainer.checkpoint import TrainError, save_weights

    try:
        if out.suffix == ".pt" and out.resolve() == checkpoint.resolve():
            raise ExportError(f"export {out}: it would take the place of the run's checkpoint")
        if out.suffix == ".pt":
            make_folders(out.parent)
            save_weights(checkpoint, out)
            click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
            return
        card = write(checkpoint, out, json.loads(metrics.read_text()) if metrics else None, precision)
    except (ExportError, TrainError, OSError, ValueError) as error:
        raise CommandError(str(error)) from None
    mean_mm, max_mm = card.parity["mean_mm"], card.parity["max_mm"]
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {mean_mm:.3f} mm from torch, at most {max_mm:.2f}")


def need_trainer(module: str) -> Any:
    """A module of the trainer, or the one line that says what to install."""
    import importlib

    try:
        return importlib.import_module(f"edge_hand.trainer.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("edge_hand"):
            raise
        raise CommandError(f"this command needs {error.name}: pip install 'edge-hand[train]'") from None


def make_folders(*folders: Path | None) -> None:
    """Where results will go; before the work, so that a wrong path costs none."""
    for folder in folders:
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"folder {folder} cannot be made: {(error.strerror or str(error)).lower()}") from None


def write_json(result: Any, path: Path | None) -> None:
    if path is None:
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from None


def say(text: str) -> None:
    click.echo(text, err=True)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 1 (2 for a wrong option); a bug is a traceback."""
    from ..hand.messages import WireError
    from .bench import BenchError
    from .client import SubscribeError
    from .publish import PublishError
    from .recording import RecordingError

    known = (
        CommandError, CameraError, ModelError, PublishError, SubscribeError, WireError, RecordingError, BenchError,
    )  # fmt: skip
    try:
        cli()
    except known as error:
        say(f"edge-hand: {error}")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
