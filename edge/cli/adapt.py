"""The command that lets a network get better on one user's hand: adapt."""

from __future__ import annotations

from pathlib import Path

import click

from .options import json_option
from .shell import CommandError, FloatRange, make_folders, make_room, write_result


@click.command()
@click.option("--source", "sources", type=Path, multiple=True, required=True, help="A recording; again for each more.")
@click.option("--rig", type=Path, help="The rig file, if the recordings are of its cameras at the same time.")
@click.option("--method", default="dgn", show_default=True, help="What to learn from: dgn (Dual Grid Net) or dibra.")
@click.option(
    "--minutes", default=20.0, show_default=True, type=FloatRange(0, min_open=True), help="Most minutes to learn."
)
@click.option("--steps", default=1800, show_default=True, type=click.IntRange(1), help="Most steps to learn.")
@click.option("--model", default="dgn-nano", show_default=True, help="A shipped model that has weights to train.")
@click.option("--out", type=Path, default=Path("adapted"), show_default=True, help="Folder for all that comes of it.")
@click.option("--store", type=Path, help="Where adapted models are kept; default: this user's own.")
@click.option("--without", multiple=True, help="Leave out a term (icp, lifting, ..., teacher, user); for experiments.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 64))
@click.option("--gate/--no-gate", default=True, help="Judge what comes of it, and use it only if it is better.")
@click.option("--resume", is_flag=True, help="Go on where the adaptation in --out stopped.")
@json_option
def adapt(
    sources: tuple[Path, ...], rig: Path | None, method: str, minutes: float, steps: int, model: str, out: Path,
    store: Path | None, without: tuple[str, ...], threads: int, gate: bool, resume: bool, json_path: Path | None,
) -> None:  # fmt: skip
    """Fine-tune a network on recordings without labels: this user's hand, this sensor.

    The last quarter of each recording is kept for the gate, which uses the new network only if it is better there. It
    needs 10 seconds with a hand: record 40 seconds or more, better a minute.

    \b
    edge-hand record --camera realsense hand.mcap --mode 848x480@30 --frames 1800
    edge-hand adapt --source hand.mcap --out adapted
    edge-hand adapt --source a.mcap --source b.mcap --source c.mcap --rig rig.json
    """
    from ...calibration.rig import RigError
    from ...exporters import ExportError
    from ...trainer.adapt import session
    from ...trainer.adapt.run import without_terms
    from ...trainer.checkpoint import TrainError

    if json_path and json_path.resolve() == (out / "adapted.json").resolve():
        raise CommandError(f"{json_path} will be the card of adapted.onnx; give the result another name")
    make_folders(out)
    make_room(json_path)
    try:
        config = without_terms(session.AdaptConfig(method=method, steps=steps), without)
        report = session.adapt(
            list(sources), out, model=model, rig=rig, config=config, minutes=minutes, threads=threads, resume=resume,
            gate=gate, store=store, say=click.echo,
        )  # fmt: skip
    except (session.AdaptError, RigError, TrainError, ExportError) as error:
        raise CommandError(str(error)) from None
    if not report:
        return
    target, fit = report["target"], report["fit_mm"]
    click.echo(
        f"{report['steps']} steps in {report['seconds'] / 60:.1f} minutes, at most {report['peak_mib']} MiB; hand "
        f"{target['hand_length_mm']:.0f} mm from wrist to middle tip; depth to mesh {fit['before']:.1f} -> "
        f"{fit['after']:.1f} mm; pictures in {out / 'fits.png'}"
    )
    write_result(report, json_path)
