"""The commands that make and measure models: eval, train, export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..networks.card import ModelCard, find_model
from .options import engine_options, eval_options, json_option, model_note, train_options
from .shell import CommandError, make_folders, make_room, write_result


@click.command(name="eval")
@eval_options
@engine_options
@json_option
@click.pass_context
def evaluate(
    ctx: click.Context, /, data: str | None, source: str | None, engine: str, model: Path, threads: int, n: int | None,
    out: Path | None, every: int, track: bool, person: Path | None, json_path: Path | None, **labelled: Any,
) -> None:  # fmt: skip
    """Measure a model: joint and vertex errors with labels, distance from depth to mesh without.

    \b
    edge-hand eval --data synthetic:test --json test.json
    edge-hand eval --data synthetic:test --model runs/dgn/last.pt    # a checkpoint, not exported yet
    edge-hand eval --source recording/ --out overlays/
    """
    if (data is None) == (source is None):
        raise CommandError("eval: give either --data synthetic:test or --source PATH")
    unlabelled = track or person or every != 1
    has_labels = any(labelled[k] for k in ("finder", "predictions", "score"))
    has_labels |= ctx.get_parameter_source("workers") is ParameterSource.COMMANDLINE
    if (data and unlabelled) or (source and has_labels):
        raise CommandError(
            "eval: --track, --person, --every go with --source; --finder, --predictions, --score, --workers with --data"
        )
    if source and model.suffix == ".pt":
        raise CommandError(f"eval: {model} is a checkpoint, which goes with --data; `edge-hand export` makes a model")
    make_folders(out)
    make_room(json_path, labelled["predictions"])
    if not labelled["score"]:
        click.echo(model_note(ctx))
    if source:
        from ..engines import open_engine
        from ..evaluate import evaluate_recording, recording_table
        from ..person import Person

        shape = Person.load(person).shape if person else None
        opened = open_engine(engine, model, threads, say=click.echo)
        result = evaluate_recording(source, opened, out=out, track=track, every=every, limit=n, shape=shape)
        click.echo(recording_table(result))
    else:
        from ...trainer import evaluate as trainer

        assert data is not None
        try:
            result = trainer.evaluate(data, trainer.Model(model, engine, threads, click.echo), n, out=out, **labelled)
        except trainer.EvaluateError as error:
            raise CommandError(str(error)) from None
        click.echo(trainer.table(result))
    write_result(result, json_path)


@click.command()
@train_options
def train(
    out: Path, processes: int | None, threads: int | None, workers: int | None, minutes: float | None,
    validate_every: int, tensorboard: bool, resume: bool, **options: Any,
) -> None:  # fmt: skip
    """Train a network on rendered hands, and on real ones. With --resume the run's own options hold, but for --samples.

    \b
    edge-hand train --out runs/dgn --samples 1500000
    edge-hand train --out runs/dgn --processes 8
    edge-hand train --out runs/dgn --real recording:hand.mcap --real-share 0.25
    torchrun --nproc-per-node 4 --no-python edge-hand train --out runs/dgn
    """
    from ...trainer import train as trainer

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


@click.command()
@click.option("--checkpoint", type=Path, help="last.pt of a training run.")
@click.option("--model", type=find_model, metavar="NAME|FILE", help="A float model, to make another form of.")
@click.option("--out", type=Path, help="The .onnx to write, its card goes beside it; or a .pt. For TensorRT a folder.")
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="The engine that is to run it.",
)
@click.option(
    "--precision",
    default=None,
    help="fp32 (default), int8; for TensorRT fp16 (default), int8: in fp32 it takes the float model as it is.",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, path_type=Path),
    metavar="RECORDING",
    help="With --model and int8: take the scales from the hands in a recording, not from rendered ones.",
)
@click.option("--metrics", type=Path, help="JSON of `edge-hand eval` to keep in the card.")
def export(
    checkpoint: Path | None, model: Path | None, out: Path | None, target: str, precision: str | None,
    calibration: Path | None, metrics: Path | None,
) -> None:  # fmt: skip
    """Write a trained network as ONNX with its card, if it agrees with torch; or its weights alone, to train on; or
    another form of a float model, if it agrees with that.

    \b
    edge-hand export --checkpoint runs/dgn/last.pt --out dgn.onnx
    edge-hand export --checkpoint runs/dgn/last.pt --out dgn.pt     # weights alone, for edge-hand train --init
    edge-hand export --model dgn-nano --target tensorrt --precision fp16
    edge-hand export --model dgn.onnx --precision int8 --out dgn-int8.onnx --calibration hand.mcap
    """
    if calibration and (model is None or precision != "int8"):
        raise click.UsageError("--calibration is for 8 bits: give --model, a float .onnx, and --precision int8")
    if out and target == "onnxruntime" and out.suffix not in ((".onnx",) if model else (".onnx", ".pt")):
        raise click.UsageError(f"--out {out}: give a name that ends in .onnx{'' if model else ', or .pt'}")
    if model or target == "tensorrt":
        _export_form(checkpoint, model, out, target, precision, calibration, metrics)
        return
    if checkpoint is None or out is None:
        raise click.UsageError("give --checkpoint RUN/last.pt --out FILE, or --model NAME")
    from ...exporters import ExportError
    from ...exporters.onnx import export as write
    from ...exporters.onnx import read_metrics
    from ...trainer.checkpoint import TrainError, save_weights

    try:
        if out.suffix == ".pt" and out.resolve() == checkpoint.resolve():
            raise ExportError(f"export {out}: it would take the place of the run's checkpoint")
        if out.suffix == ".pt":
            make_folders(out.parent)
            save_weights(checkpoint, out)
            click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
            return
        card = write(checkpoint, out, read_metrics(metrics) if metrics else None, precision or "fp32")
    except (ExportError, TrainError, OSError, ValueError) as error:
        raise CommandError(str(error)) from None
    _tell(out, card, "torch")


def _export_form(
    checkpoint: Path | None, model: Path | None, out: Path | None, target: str, precision: str | None,
    calibration: Path | None, metrics: Path | None,
) -> None:  # fmt: skip
    """Another form of a float model: TensorRT's in the model's folder or in that of --out, or 8 bits for CPUs."""
    if model is None or checkpoint is not None or metrics is not None:
        raise click.UsageError(
            "another form of a network: give --model, the float .onnx that `export --checkpoint` wrote, without "
            "--checkpoint and --metrics"
        )
    if target == "onnxruntime" and (precision != "int8" or out is None):
        raise click.UsageError("--model: give --precision int8 --out FILE, or --target tensorrt")
    from ...exporters import ExportError
    from ...exporters.onnxruntime import export_int8
    from ...exporters.tensorrt import export_tensorrt

    try:
        if target == "tensorrt":
            written = export_tensorrt(model, precision or "fp16", out, calibration)
            click.echo(
                f"{written}: {written.stat().st_size / 1e6:.1f} MB; the device builds its plan from it when it starts"
            )
            return
        assert out is not None
        card = export_int8(model, out, calibration)
    except ExportError as error:
        raise CommandError(str(error)) from None
    _tell(out, card, model.name)


def _tell(out: Path, card: ModelCard, what: str) -> None:
    mean_mm, max_mm = card.parity["mean_mm"], card.parity["max_mm"]
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {mean_mm:.3f} mm from {what}, at most {max_mm:.2f}")
