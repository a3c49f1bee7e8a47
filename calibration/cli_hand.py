"""`edge-hand calibrate hand` and `verify`: a moving hand in front of recordings, cameras or daemons."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..edge.cli.shell import CommandError, FloatRange, must_write, say
from ..hand.fields import printable
from ..hand.whole import refusal, write_json

if TYPE_CHECKING:
    from .hand import HandResult
    from .observe import Sight
    from .rig import Rig

SOURCES = "A recording, a folder of depth pictures, or KIND:SERIAL for a camera; one a camera."
WIDTH = 150  # of the line on the screen
ADDRESSES = "A running daemon, tcp://HOST:PORT; one a camera, on any host."


def _options(command: Any) -> Any:
    """What both commands take to find their cameras."""
    for option in reversed(
        (
            click.option("--source", "sources", multiple=True, help=SOURCES),
            click.option("--address", "addresses", multiple=True, help=ADDRESSES),
            click.option("--mode", help="Of cameras that are a --source, WIDTHxHEIGHT@FPS."),
            click.option("--keys", type=Path, help="The client's keys, if the daemons run with --keys."),
            click.option("--seconds", default=20.0, show_default=True, type=FloatRange(2, 300), help="At most."),
            click.option("--json", "json_path", type=Path, help="Also write the numbers here."),
        )
    ):
        command = option(command)
    return command


@click.command()
@_options
@click.option("--out", type=Path, required=True, help="The rig file to write.")
@click.option("--picture", type=Path, help="Also draw the rig and the residuals into this PNG.")
@click.option("--force", is_flag=True, help="Go on with a motion that will not do; the verdict is fail.")
def hand(
    sources: tuple[str, ...], addresses: tuple[str, ...], mode: str | None, keys: Path | None, seconds: float,
    json_path: Path | None, out: Path, picture: Path | None, force: bool,
) -> None:  # fmt: skip
    """Calibrate with a moving hand and no board. The first camera is the reference.

    Move one open hand through the whole volume, near and far, and turn it, for 10 to 20 seconds.

    \b
    edge-hand calibrate hand --source left.mcap --source right.mcap --out rig.json --picture rig.png
    edge-hand calibrate hand --address tcp://hostA:5555 --address tcp://hostB:5555 --out rig.json
    """
    from .hand import calibrate
    from .rig import save_rig

    must_write(out, picture, json_path, read=sources)
    sights = _gather(sources, addresses, mode, keys, seconds)
    ended = time.monotonic()
    with _one_line():
        result = calibrate(printable(out.stem), sights, force=force, say=say)
        save_rig(result.rig, out)
        took_s = time.monotonic() - ended
        if picture is not None:
            from .draw import draw_hand

            draw_hand(result, picture)
        if json_path is not None:
            write_json(json_path, summary(result))
    for line in report(result):
        click.echo(line)
    if any(Path(source).is_dir() for source in sources):
        click.echo("clocks are those of the folders' pictures; for live cameras calibrate with these or their .mcap")
    click.echo(f"{out} is written, {took_s:.1f} s after the motion")
    if result.rig.quality.verdict == "fail":
        raise SystemExit(3)


@click.command()
@_options
@click.option("--rig", "rig_path", type=Path, required=True, help="The rig file to check.")
def verify(
    sources: tuple[str, ...], addresses: tuple[str, ...], mode: str | None, keys: Path | None, seconds: float,
    json_path: Path | None, rig_path: Path,
) -> None:  # fmt: skip
    """Check a rig with new frames of a moving hand. Exit code 0 if it holds, 3 if not, 4 if they do not say.

    \b
    edge-hand calibrate verify --rig rig.json --source left.mcap --source right.mcap
    """
    from .rig import load_rig
    from .verify import as_json
    from .verify import report as words
    from .verify import verify as check

    must_write(json_path, read=(rig_path, *sources))
    with _one_line():
        rig = load_rig(rig_path)
    sights = _gather(sources, addresses, mode, keys, seconds, rig)
    with _one_line():
        result = check(rig, sights)
        if json_path is not None:
            write_json(json_path, as_json(result))
    for line in words(result):
        click.echo(line)
    raise SystemExit({"pass": 0, "fail": 3, "unverified": 4}[result.verdict])


def report(result: HandResult) -> Sequence[str]:
    """The result in words: a line a camera, how well it fits, what is wrong."""
    rig, q = result.rig, result.rig.quality
    lines = []
    for camera in rig.cameras[1:]:
        x, y, z = camera.T_ref_cam[:3, 3]
        lines.append(
            f"{camera.serial}: at {x:+.3f} {y:+.3f} {z:+.3f} m, sigma {q.sigma_volume_mm[camera.serial]:.2f} mm in the "
            f"volume, clock {1e3 * camera.time.offset_s:+.1f} +- {1e3 * camera.time.sigma_s:.1f} ms, "
            f"depth {_depth_mm(camera.depth.offset_per_m, q.volume_centre_m[2]):+.1f} mm"
        )
    lines.append(
        f"joints agree to {q.rms['joints_mm']:.1f} mm, depth points to {q.rms['depth_mm']:.1f} mm "
        f"({result.clouds.matches} of {len(result.clouds.moments)} moments)"
    )
    if result.halves is not None:
        lines.append(
            f"halves differ by {q.split_half_deg:.2f} deg, {q.split_half_mm:.1f} mm; one half's rig leaves the other's "
            f"points {q.rms['heldout_p50_mm']:.1f} mm apart (95 of 100: {q.rms['heldout_p95_mm']:.1f})"
        )
    lines += [
        f"{pair.a} - {pair.b}: {pair.overlap} moments, alone {pair.loop_deg:.2f} deg, {pair.loop_mm:.1f} mm off the rig"
        for pair in rig.pairs
        if pair.loop_mm is not None
    ]
    lines += [f"warning: {warning}" for warning in q.warnings]
    return [*lines, f"verdict: {q.verdict}"]


def summary(result: HandResult) -> dict[str, Any]:
    """For a program to read; mm, degrees, seconds."""
    q, motion = result.rig.quality, result.motion
    return {
        "verdict": q.verdict, "warnings": list(q.warnings), "rms": q.rms, "sigma_volume_mm": q.sigma_volume_mm,
        "split_half_deg": q.split_half_deg, "split_half_mm": q.split_half_mm,
        "offsets_s": {camera.serial: camera.time.offset_s for camera in result.rig.cameras},
        "motion": {
            "spread_m": motion.spread_m.tolist(), "turn_rad": motion.turn_rad.tolist(), "seconds": motion.seconds,
            "speed_m_s": motion.speed_m_s, "seen": motion.seen.tolist(), "shared_s": motion.shared_s.tolist(),
        },
    }  # fmt: skip


def _gather(
    sources: tuple[str, ...], addresses: tuple[str, ...], mode: str | None, keys: Path | None, seconds: float,
    rig: Rig | None = None,
) -> list[Sight]:  # fmt: skip
    """What all cameras saw: of a given rig's for all the time, else until it is enough. Raises CommandError, at once
    for cameras that are not the rig's."""
    from .gate import lacks, measure
    from .gather import listen
    from .look_at import look_at
    from .observe import import_tree
    from .progress import line
    from .verify import must_be_of

    if bool(sources) == bool(addresses) or len(sources) + len(addresses) < 2:
        raise CommandError("a rig needs two or more --source, or two or more --address")
    if addresses and mode is not None:
        raise CommandError("--mode is for a --source; at an --address it is what `edge-hand run --mode` says there")
    shown = [-10.0]

    def watch(sights: list[Sight]) -> bool:
        if rig is not None:
            must_be_of(rig, sights)
        motion, names = measure(sights), [sight.serial for sight in sights]
        elapsed_s = max(float(s.times_s[-1] - s.times_s[0]) for s in sights if len(s.times_s))
        terminal = sys.stderr.isatty()
        if elapsed_s - shown[0] >= (0.0 if terminal else 2.0):
            shown[0] = elapsed_s
            text = line(motion, names, elapsed_s)
            click.echo(f"\r{text[:WIDTH]:{WIDTH}s}" if terminal else text, err=True, nl=not terminal)
        return rig is None and elapsed_s >= 10 and not lacks(motion, names)

    with _one_line():
        import_tree()  # before anybody moves a hand
        found = (
            listen(addresses, seconds, keys, watch) if addresses else look_at(sources, seconds, watch, mode, click.echo)
        )
    if sys.stderr.isatty():
        click.echo(err=True)
    return found


def _depth_mm(offset_per_m: float, z_m: float) -> float:
    """What an offset of the inverse depth is at a distance."""
    return -1e3 * offset_per_m * z_m**2


@contextmanager
def _one_line() -> Iterator[None]:
    """Inside it, what a user may get wrong becomes a CommandError."""
    from ..edge.cameras import CameraError
    from ..edge.client import SubscribeError
    from ..edge.keys import KeysError
    from .observe import ObserveError
    from .rig import RigError

    try:
        yield
    except (CameraError, SubscribeError, KeysError, ObserveError, RigError, OSError) as error:
        raise mistake(error) from None


def mistake(error: Exception | str) -> CommandError:
    """An error in one line, an operating system's with its file."""
    if isinstance(error, OSError) and error.filename:
        return CommandError(f"{error.filename}: {refusal(error)}")
    return CommandError(" ".join(str(error).split()))
