"""The command line. Every command is a thin shell around a function; heavy imports happen inside the commands."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from .cameras import CameraError
from .cli_models import bench, evaluate, export, train
from .cli_options import camera_options, engine_options, tracking_options
from .cli_service import config, daemon_options, keys, service
from .model_card import ModelError
from .shell import CommandError, say

BIND = "tcp://127.0.0.1:5555"


class Commands(click.Group):
    """With `calibrate`, which stands above the daemon and is only imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "calibrate"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "calibrate":
            return super().get_command(ctx, cmd_name)
        from ..calibration.cli import calibrate

        return calibrate


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edge-hand")
def cli() -> None:
    """Hand tracking from depth cameras: joints, angles and mesh over ZeroMQ.

    \b
    edge-hand run --camera realsense          track and publish
    edge-hand watch                           see what is published
    """


@cli.command(context_settings={"auto_envvar_prefix": "EDGE_HAND"})
@camera_options
@engine_options
@tracking_options
@daemon_options
@click.option("--bind", default=BIND, show_default=True, help="Where to publish: tcp://HOST:PORT or ipc://PATH.")
@click.option(
    "--insecure",
    is_flag=True,
    allow_from_autoenv=False,
    help="Allow an address beyond this machine, readable by anyone.",
)
@click.option("--fps", type=float, help="Replay rate, Hz; 0 is as fast as possible.")
@click.option("--loop", is_flag=True, help="Start a recording over when it ends.")
@click.option("--frames", type=click.IntRange(1), help="Stop after so many frames.")
@click.option("--view/--no-view", default=None, help="Draw in the terminal; default: if there is one.")
def run(
    camera: str, source: str | None, mode: str | None, engine: str, model: Path, threads: int, finder: str, hands: int,
    smooth: bool, person: Path | None, bind: str, insecure: bool, fps: float | None, loop: bool, frames: int | None,
    view: bool | None, keys: Path | None, log: str | None,
) -> None:  # fmt: skip
    """Track hands and publish them until the stream ends or Ctrl-C.

    \b
    edge-hand run --camera realsense --mode 848x480@90
    edge-hand run --camera replay --source recording.mcap
    edge-hand run --camera synthetic
    """
    from .cameras import open_camera
    from .engines import open_engine
    from .finder import open_finder
    from .log import LOG, StateLog, open_log
    from .loop import Loop, Minder, topology
    from .notify import Notifier
    from .person import keep_shape, person_maker
    from .publish import Publisher
    from .tracker import Tracker
    from .viewer import Viewer
    from .watch import Screen

    if log:
        open_log(log)
    tell, complain = (LOG.info, LOG.warning) if log else (click.echo, say)
    stopping: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: stopping.append(number))
    tracker = Tracker(
        open_engine(engine, model, threads, say=tell),
        open_finder(finder, threads),
        smooth,
        hands,
        new_person=person_maker(person),
    )
    with (
        open_camera(camera, source, mode=mode, fps=fps, loop=loop) as opened,
        Publisher(bind, topology=topology(), insecure=insecure, keys=keys) as publisher,
    ):
        tell(f"{opened.name} at {opened.fps:g} Hz -> {publisher.address}  ({tracker.engine.name}, {model.name})")

        minders: list[Minder] = [Notifier()]
        if log:
            minders.append(StateLog(opened.name))

        def done() -> bool:
            return bool(stopping) or (frames is not None and the_loop.totals.frames >= frames)

        if view or (view is None and sys.stdout.isatty()):
            with Viewer(Screen()) as viewer:
                the_loop = Loop(opened, tracker, publisher, viewer, minders)
                totals = the_loop.run(done)
        else:
            the_loop = Loop(opened, tracker, publisher, minders=minders)
            totals = the_loop.run(done)
    tell(totals.summary())
    if person is not None:
        complain(keep_shape(person, tracker.person))
    if totals.frames == 0 and not stopping:
        raise CommandError(f"no frame could be used ({totals.bad_frames} were bad): {the_loop.trouble or 'none came'}")
    if the_loop.trouble:
        complain(f"last trouble: {the_loop.trouble}")


@cli.command()
@click.option("--address", default=BIND, show_default=True)
@click.option("--camera", help="Which camera, if several publish there.")
@click.option("--frames", type=click.IntRange(1), help="Stop after so many messages.")
@click.option("--keys", type=Path, help="This client's key file, where the daemon runs with --keys.")
def watch(address: str, camera: str | None, frames: int | None, keys: Path | None) -> None:
    """See in the terminal what `edge-hand run` publishes.

    \b
    edge-hand watch --address tcp://127.0.0.1:5555
    """
    from .watch import watch as watch_address

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    watch_address(address, camera, frames, keys)


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


for command in (bench, evaluate, train, export, config, keys, service):
    cli.add_command(command)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 1 (2 for a wrong option); a bug is a traceback."""
    from ..calibration.cli import CalibrateError
    from ..hand.messages import WireError
    from .bench import BenchError
    from .client import SubscribeError
    from .config import ConfigError
    from .keys import KeysError
    from .log import LOG, log_is_open
    from .person import PersonError
    from .publish import PublishError
    from .recording import RecordingError
    from .service import ServiceError

    known = (
        CommandError, CameraError, ModelError, PublishError, SubscribeError, WireError, RecordingError, BenchError,
        PersonError, KeysError, ServiceError, ConfigError, CalibrateError,
    )  # fmt: skip
    try:
        cli()
    except known as error:
        if log_is_open():
            LOG.error("%s", error)
        else:
            say(f"edge-hand: {error}")
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
