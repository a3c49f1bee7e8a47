"""`edge-hand calibrate`: the commands that make, convert and check a rig file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..edge.cli.shell import CommandError, must_write, say
from ..hand.fields import printable
from ..hand.whole import write_whole
from .cli_hand import hand, mistake, verify
from .watch_cli import watch

if TYPE_CHECKING:
    from .board import BoardResult


@click.group()
def calibrate() -> None:
    """Find out where the cameras of a rig are, and whether that still holds.

    \b
    edge-hand calibrate print --target a4 board.pdf
    edge-hand calibrate board --source cam0.mp4 --source cam1.mp4 --out rig.json
    edge-hand calibrate hand --source cam0.mcap --source cam1.mcap --out rig.json
    edge-hand calibrate verify --rig rig.json --source cam0.mcap --source cam1.mcap
    """


calibrate.add_command(hand)
calibrate.add_command(verify)
calibrate.add_command(watch)


@calibrate.command(name="print")
@click.argument("out", type=Path)
@click.option("--target", default="a4", show_default=True, help="a4, a3, or a board of your own.")
@click.option("--paper", type=click.Choice(["a4", "a3"]), help="Default: the target's own.")
def print_target(out: Path, target: str, paper: str | None) -> None:
    """Write the board as a PDF to print at 100 %.

    \b
    edge-hand calibrate print --target a3 board.pdf
    """
    from .target import TargetError, find_target, print_pdf

    try:
        found = find_target(target)
        data = print_pdf(found, paper or (target if target in ("a4", "a3") else "a4"))
        write_whole(out, data)
    except (TargetError, OSError) as error:
        raise mistake(error) from None
    click.echo(f"{out}: print at 100 %, measure the ruler, glue it on a flat plate")


@calibrate.command()
@click.option("--source", "sources", multiple=True, required=True, help="A video, a folder of pictures or KIND:SERIAL.")
@click.option("--target", default="a4", show_default=True, help="The printed board: a4, a3, or one of your own.")
@click.option("--out", type=Path, required=True, help="The rig file to write.")
@click.option("--picture", type=Path, help="Also draw the rig and the residuals into this PNG.")
@click.option("--mode", help="Of cameras, WIDTHxHEIGHT@FPS; the rig is for this size.  [default: realsense 848x480@30]")
@click.option("--every", default=1, show_default=True, type=click.IntRange(1), help="Look at every n-th picture.")
@click.option("--offsets/--no-offsets", default=True, show_default=True, help="Solve for the clocks' offsets.")
@click.option("--intrinsics", is_flag=True, help="Also refine focal lengths and centres; not for factory-made ones.")
def board(
    sources: tuple[str, ...], target: str, out: Path, picture: Path | None, mode: str | None, every: int, offsets: bool,
    intrinsics: bool,
) -> None:  # fmt: skip
    """Calibrate with the printed board. The first source is the reference camera. Ctrl-C ends the capture.

    \b
    edge-hand calibrate board --source left/ --source right/ --target a4 --out rig.json
    """
    from ..edge.cameras import CameraError
    from .board import BoardCamera
    from .board import calibrate as solve
    from .bundle import BundleError, Options
    from .capture import capture, views_to_solve
    from .observe import ObserveError, different
    from .rig import RigError, save_rig
    from .sources import SourceError, open_sources
    from .square import board_scale
    from .target import TargetError, find_target

    if len(sources) < 2:
        raise CommandError("calibrate board: a rig needs two or more --source")
    must_write(out, picture, read=sources)
    try:
        printed = find_target(target)
        with open_sources(sources, mode) as opened:
            different([source.serial for source in opened], sources)
            found = capture(opened, printed, every=every, say=say)
        cameras = [
            BoardCamera(s.serial, s.stream, s.intrinsics, period_s)
            for s, period_s in zip(opened, found.periods_s, strict=True)
        ]
        corners = printed.corners_m()
        square = board_scale(found.with_depth, corners, [source.intrinsics for source in opened])
        result = solve(
            printable(out.stem), cameras, views_to_solve(found), corners,
            Options(offsets=offsets, intrinsics=intrinsics), square=square,
            of_host=all(source.of_host for source in opened),
        )  # fmt: skip
        save_rig(result.rig, out)
        if picture is not None:
            from .draw import draw_board

            draw_board(result, picture)
    except (SourceError, CameraError, TargetError, BundleError, ObserveError, RigError, OSError) as error:
        raise mistake(error) from None
    for line in report(result):
        click.echo(line)
    click.echo(f"{out} is written")
    if result.rig.quality.verdict == "fail":
        raise SystemExit(3)


@calibrate.command()
@click.argument("rig", type=Path)
@click.option("--format", "kind", required=True, metavar="KIND", help="ros, kalibr, opencv, colmap.")
@click.option("--out", type=Path, required=True, help="The folder to write to.")
def convert(rig: Path, kind: str, out: Path) -> None:
    """Write a rig file in another tool's format.

    \b
    edge-hand calibrate convert rig.json --format ros --out launch/
    """
    from .convert import export_rig
    from .rig import load_rig

    for path in export_rig(load_rig(rig), kind, out):
        click.echo(f"{path}")


def report(result: BoardResult) -> Sequence[str]:
    """The result in words: a line a camera, how well it fits, what is wrong."""
    rig, solution = result.rig, result.solution
    lines = []
    for camera in rig.cameras[1:]:
        x, y, z = camera.T_ref_cam[:3, 3]
        sigma_mm = rig.quality.sigma_volume_mm[camera.serial]
        lines.append(
            f"{camera.serial}: at {x:+.3f} {y:+.3f} {z:+.3f} m, sigma {sigma_mm:.2f} mm "
            f"in the volume, clock {1e3 * camera.time.offset_s:+.1f} +- {1e3 * camera.time.sigma_s:.1f} ms"
        )
    others = zip(rig.cameras, solution.scene.offsets_s, strict=True)
    own = [f"{camera.serial} {1e3 * s:+.1f} ms" for camera, s in others if s != camera.time.offset_s]
    if own:
        lines.append(f"clocks of the files, which live cameras do not have and the rig leaves out: {', '.join(own)}")
    fit = f"corners fit to {solution.rms_px:.2f} px (median {solution.median_px:.2f})"
    if result.without_offsets is not None:
        fit += f", {result.without_offsets.rms_px:.2f} without time offsets"
    lines.append(fit)
    if result.halves is not None:
        q = rig.quality
        lines.append(
            f"halves differ by {q.split_half_deg:.2f} deg, {q.split_half_mm:.1f} mm; "
            f"one half predicts the other to {result.halves.heldout_rms_px:.2f} px"
        )
    if result.square is not None:
        lines.append(f"squares measured by depth: {100 * result.square:.2f} % of the size said")
    else:
        lines.append("squares not measured, for there is no depth: is the printed ruler 100 mm? 1 % costs 5 to 8 mm")
    lines += [f"warning: {warning}" for warning in rig.quality.warnings]
    return [*lines, f"verdict: {rig.quality.verdict}"]
