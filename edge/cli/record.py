"""The commands that record and play: record, play."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cameras import Camera
from ..clock import HOST, Clock
from ..publish import ADDRESS
from .options import camera_options
from .shell import CommandError, FloatRange, say, stop_on_signal

if TYPE_CHECKING:
    from ..recordings.recorder import Recorder

UNRECORDED = {"record", "bind", "keys", "view", "log", "insecure"}  # options that say nothing of what was tracked


def new_recording(name: str) -> Path:
    """A file to record to. Raises click.BadParameter for a name under which nothing here would read it."""
    if not name.endswith(".mcap"):
        raise click.BadParameter(f"{name}: a recording's name ends in .mcap, for example {name}.mcap")
    return Path(name)


def recording_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `edge-hand run` writes down, and whether another run gives the same."""
    for option in (
        click.option(
            "--deterministic",
            is_flag=True,
            help="Replay with the recorded times: same file, model and engine, same bytes.",
        ),
        click.option(
            "--record",
            type=new_recording,
            metavar="FILE",
            allow_from_autoenv=False,
            help="Record frames and messages to a new .mcap file.",
        ),
    ):
        command = option(command)
    return command


def clock_of(camera: Camera, deterministic: bool) -> Clock:
    """The host's, or in a deterministic replay the recording's."""
    if not deterministic:
        return HOST
    clock: Clock = camera.clock  # type: ignore[attr-defined]  # only a camera that took the option gets here
    return clock


@contextmanager
def recording_to(
    path: Path | None, clock: Clock, tell: Callable[[str], None], stopping: Callable[[], bool]
) -> Iterator[Recorder | None]:
    """`edge-hand run`'s recorder, with its options as settings; None without a path."""
    if path is None:
        yield None
        return
    from ..loop import topology
    from ..recordings.recorder import Recorder
    from ..recordings.recording import RecordingWriter

    options = click.get_current_context().params
    settings = {name: str(value) for name, value in options.items() if name not in UNRECORDED and value is not None}
    offset_ns = clock.unix_ns() - clock.monotonic_ns()
    steady = not clock.measures
    writer = RecordingWriter(path, sensor=options["camera"], settings=settings, wall_offset_ns=offset_ns)
    with Recorder(writer, tell, patient=lambda: steady and not stopping(), steady=steady) as recorder:
        recorder.message(topology(), clock.monotonic_ns())
        yield recorder


@click.command()
@camera_options
@click.argument("out", type=new_recording)
@click.option("--frames", type=click.IntRange(1), help="Stop after so many frames.")
@click.option("--far", "far_m", type=FloatRange(0, min_open=True), help="Leave out readings beyond this, m.")
def record(
    camera: str, source: str | None, mode: str | None, out: Path, frames: int | None, far_m: float | None
) -> None:
    """Record depth frames, lossless, until Ctrl-C; with what is tracked: edge-hand run --record.

    \b
    edge-hand record --camera realsense hand.mcap
    """
    from dataclasses import replace

    import numpy as np

    from ..cameras import BadFrame, CameraError, EndOfStream, FrameTimeout, is_recording, open_camera
    from ..recordings.recorder import Recorder
    from ..recordings.recording import RecordingError, RecordingWriter

    stopping = stop_on_signal()
    n, skipped, lost = 0, 0, ""
    live = not is_recording(camera, source)  # what a recording lacks was lost long ago
    last_seq: int | None = None
    settings = {"camera": camera, "mode": mode or "", "far_m": str(far_m or "")}
    with (
        open_camera(camera, source, mode=mode) as opened,
        Recorder(
            RecordingWriter(out, sensor=camera, settings=settings), lambda _: None, patient=lambda: not stopping()
        ) as recorder,
    ):
        while not stopping() and not recorder.trouble and (frames is None or n < frames):
            try:
                frame = opened.read()
            except EndOfStream:
                break
            except (BadFrame, FrameTimeout) as error:
                say(str(error))
                if last_seq is not None and isinstance(error, BadFrame):
                    last_seq += 1
                continue
            except CameraError as error:  # it is gone, or the recording is damaged from here on
                lost = str(error)
                break
            if far_m is not None:
                near = np.where(frame.depth * frame.depth_unit_m <= far_m, frame.depth, 0).astype(np.uint16)
                frame = replace(frame, depth=near)
            recorder.frame(frame)
            skipped += max(0, frame.seq - last_seq - 1) if last_seq is not None and live else 0
            last_seq, n = frame.seq, n + 1
    if recorder.trouble:
        raise RecordingError(f"{recorder.trouble}; {recorder.writer.frames} frames are in {out}")
    if n == 0:
        raise CommandError(lost or f"record: no frame came, {out} was not written")
    if lost:
        raise CommandError(f"{lost}; {n} frames are in {out}")
    click.echo(
        f"{recorder.writer.frames} frames in {out}"
        + (f"; {skipped} were lost: the disk or this machine is too slow" if skipped else "")
    )


@click.command()
@click.argument("file", type=Path)
@click.option("--speed", type=FloatRange(0.01, 100), default=1.0, show_default=True, help="Times the original.")
@click.option("--loop", is_flag=True, help="Start over at the end.")
@click.option("--keep-stamps", is_flag=True, help="Leave the recorded times as they are; default: as if it were now.")
@click.option("--bind", default=ADDRESS, show_default=True, help="Where to publish: tcp://HOST:PORT or ipc://PATH.")
@click.option("--insecure", is_flag=True, help="Allow an address beyond this machine, readable by anyone.")
@click.option("--keys", type=Path, help="Only clients with a key in this folder: `edge-hand keys`.")
def play(file: Path, speed: float, loop: bool, keep_stamps: bool, bind: str, insecure: bool, keys: Path | None) -> None:
    """Publish again what `edge-hand run --record` recorded, at the times it was published.

    \b
    edge-hand play hand.mcap
    edge-hand play hand.mcap --loop --speed 0.5
    """
    from ..publish import Publisher
    from ..recordings.play import Player, topology_of
    from ..recordings.recording import Recording

    stopping = stop_on_signal()
    with (
        Recording(file) as recording,
        Publisher(bind, topology=topology_of(recording), insecure=insecure, keys=keys) as publisher,
    ):
        player = Player(recording, publisher, speed=speed, keep_stamps=keep_stamps)
        click.echo(f"{recording.camera} from {file} -> {publisher.address}")
        if not recording.whole:
            say(f"{file} was cut: it is played up to its last whole part")
        player.run(stopping, loop)
    click.echo(f"{player.count} messages in {player.laps} laps" if loop else f"{player.count} messages")
