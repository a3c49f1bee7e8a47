"""The command line. Every command is a thin shell around a function; heavy imports happen inside the commands."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from ...hand.extras import to_get
from ...hand.fields import one_line
from ..cameras import Camera, CameraError
from ..networks.card import ModelError
from ..publish import ADDRESS
from .adapt import adapt
from .bench import bench
from .config import Rereadable, reread
from .control import reload
from .doctor import doctor
from .models import evaluate, export, train
from .options import camera_options, engine_options, own_note, tracking_options
from .record import play, record, recording_options
from .service import config, daemon_options, keys, service
from .shell import CommandError, say, unheard
from .store import models
from .view import metrics_option, status
from .view import view as view_command

# What a disk or its rights refuse, wherever it happens, is the user's to mend and no bug.
THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
            errno.ENAMETOOLONG}  # fmt: skip

TRAIN = {"torch", "numba", "onnx"}  # what the extra brings


class Commands(click.Group):
    """With `calibrate` and `fuse`, which stand above the daemon and are only imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "calibrate", "fuse"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "calibrate":
            from ...calibration.cli import calibrate

            return calibrate
        if cmd_name == "fuse":
            from ...calibration.fuse_cli import fuse

            return fuse
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Ctrl-C ends whatever does not handle it with the exit code that shells expect, and no word. A package of the
        extra `train` that is missing is one line, wherever a command finds out."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(130)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in TRAIN:
                raise
            raise CommandError(f"this command needs {error.name}: {to_get('train')}") from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edge-hand")
def cli() -> None:
    """Hand tracking from depth cameras: joints, angles and mesh over ZeroMQ.

    \b
    edge-hand run --camera realsense          track and publish
    edge-hand watch                           see what is published
    """


@cli.command(cls=Rereadable, context_settings={"auto_envvar_prefix": "EDGE_HAND"})
@camera_options
@engine_options
@tracking_options
@daemon_options
@click.option("--bind", default=ADDRESS, show_default=True, help="Where to publish: tcp://HOST:PORT or ipc://PATH.")
@click.option(
    "--insecure",
    is_flag=True,
    allow_from_autoenv=False,
    help="Allow an address beyond this machine, readable by anyone.",
)
@recording_options
@metrics_option
@click.option("--tune/--no-tune", default=True, show_default=True, help="Try once which CPU engine is fastest here.")
@click.option(
    "--fast/--no-fast", default=True, show_default=True, help="Compute with what numba compiled, if anything."
)
@click.option(
    "--refit-plans/--no-refit-plans",
    default=False,
    show_default=True,
    help="TensorRT: plans that take other weights at once; these may be slower.",
)
@click.option("--fps", type=float, help="Replay rate, Hz; 0 is as fast as possible.")
@click.option("--loop", is_flag=True, help="Start a recording over when it ends.")
@click.option("--wait", is_flag=True, help="Wait for a camera that is not there yet.")
@click.option("--frames", type=click.IntRange(1), help="Stop after so many frames.")
@click.option("--view/--no-view", default=None, help="Draw in the terminal; default: if there is one.")
@click.pass_context
def run(
    context: click.Context, camera: str, source: str | None, mode: str | None, engine: str, model: Path, threads: int,
    finder: str, hands: int, smooth: bool, person: Path | None, bind: str, insecure: bool, fps: float | None,
    loop: bool, wait: bool, frames: int | None, view: bool | None, keys: Path | None, log: str | None,
    record: Path | None, deterministic: bool, metrics: str | None, tune: bool, fast: bool,
    refit_plans: bool,
) -> None:  # fmt: skip
    """Track hands and publish them until the stream ends or Ctrl-C.

    \b
    edge-hand run --camera realsense --mode 848x480@90
    edge-hand run --camera replay --source recording.mcap
    edge-hand run --camera synthetic
    """
    from ..arithmetic import PLAIN
    from ..compiled.compiling import open_arithmetic
    from ..engines.tensorrt.plan import building
    from ..finder import open_finder
    from ..log import LOG, StateLog, open_log
    from ..loop import Loop, Minder, topology
    from ..networks.health import watch_health
    from ..networks.reload import Reloader, open_lasting_engine
    from ..person import keep_shape, person_maker
    from ..publish import Publisher
    from ..recordings.recording import RecordingWriter
    from ..reopen import open_lasting, wait_for
    from ..service.desk import Desk
    from ..service.notify import Notifier
    from ..tracker import Tracker
    from ..view.metrics import Metrics
    from ..view.terminal import Viewer
    from ..view.watch import Screen
    from .record import clock_of, recording_to
    from .settings import check_settings

    if log:
        open_log(log)
    check_settings(context.params)
    tell, complain = (LOG.info, LOG.warning) if log else (unheard(click.echo, sys.stdout), unheard(say, sys.stderr))
    desk, notifier = Desk(tell, complain), Notifier()
    # Before a network is loaded and a camera waited for: what cannot be kept there, and an address that is in use.
    new_person = person_maker(person)
    if record is not None:
        RecordingWriter(record).close()  # leaves no file
    to_keep = None if person is None or person.exists() else person  # who is known stays as in the file
    publisher = context.with_resource(Publisher(bind, topology=topology(), insecure=insecure, keys=keys))
    served_metrics = Metrics(metrics, lambda: the_loop, insecure=insecure) if metrics else None
    if served_metrics:
        context.call_on_close(served_metrics.close)
        tell(f"metrics at {served_metrics.url}")
    if note := own_note(context):
        tell(note)
    tuned = tune and not deterministic
    try:
        with notifier.alive_while(building), desk.at_once():
            serving = open_lasting_engine(engine, model, threads, tell, tuned, refit_plans, not deterministic)
    except KeyboardInterrupt:
        tell("stopped before there was an engine")
        return
    proposer = open_finder(finder, threads, say=tell, tune=tuned and engine == "auto")

    def open_it() -> Camera:
        options = {"mode": mode, "fps": fps, "loop": loop, "deterministic": deterministic}
        return open_lasting(camera, source, notifier.alive, **options)

    found = wait_for(open_it, lambda: desk.stopping, complain, notifier.alive) if wait else open_it()
    if found is None:
        tell("stopped before there was a camera")
        return
    with (
        found as opened,
        recording_to(record, clock_of(opened, deterministic), complain, lambda: desk.stopping) as sink,
    ):
        # A service that finds no camera ends, and with it whatever compiles: that begins with a camera.
        arithmetic = open_arithmetic(tell) if fast and not deterministic else PLAIN
        tracker = Tracker(serving, proposer, smooth, hands, new_person=new_person, arithmetic=arithmetic)
        rate = "full speed" if fps == 0 else f"{opened.fps:g} Hz"
        tell(f"{opened.name} at {rate} -> {publisher.address}  ({serving.name}, {model.name})")

        minders: list[Minder] = [notifier]
        if log:
            minders.append(StateLog(opened.name))
        if served_metrics:
            minders.append(served_metrics)
        the_loop = Loop(opened, tracker, publisher, minders, sink=sink, clock=clock_of(opened, deterministic))

        def done() -> bool:
            return desk.between() or (frames is not None and the_loop.totals.frames >= frames)

        reloader = Reloader(context.params, lambda: reread(context), serving, tell, tuned)
        minders.append(watch_health(tracker, serving, reloader, complain))
        draws = view or (view is None and sys.stdout.isatty())
        with desk.serve(the_loop, reloader, publisher.address), Viewer(Screen()) if draws else nullcontext() as viewer:
            the_loop.watcher = viewer
            try:
                totals = the_loop.run(done)
            finally:  # also of a recording that is damaged, and before a word to a terminal that was closed
                kept = "" if to_keep is None else keep_shape(to_keep, tracker.person)
    tell(totals.summary())
    if sink is not None:
        tell(sink.summary())
    if kept:
        complain(kept)
    if totals.frames == 0 and not desk.stopping:
        raise CommandError(f"no frame could be used ({totals.bad_frames} were bad): {the_loop.trouble or 'none came'}")
    if the_loop.trouble:
        complain(f"last trouble: {one_line(the_loop.trouble)}")


@cli.command()
@click.option("--address", default=ADDRESS, show_default=True)
@click.option("--camera", help="Which camera, if several publish there.")
@click.option("--frames", type=click.IntRange(1), help="Stop after so many messages.")
@click.option("--keys", type=Path, help="This client's key file, where the daemon runs with --keys.")
def watch(address: str, camera: str | None, frames: int | None, keys: Path | None) -> None:
    """See in the terminal what `edge-hand run` publishes.

    \b
    edge-hand watch --address tcp://127.0.0.1:5555
    """
    from ..view.watch import watch as watch_address

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    watch_address(address, camera, frames, keys)


@cli.command()
def cameras() -> None:
    """List the RealSense cameras that are connected.

    \b
    edge-hand cameras
    """
    from ..cameras.realsense import list_cameras

    found = list_cameras()
    for info in found:
        click.echo(str(info))
    if not found:
        click.echo("no RealSense camera is connected; --camera synthetic needs none")


for command in (
    adapt, bench, doctor, evaluate, train, export, record, play, config, keys, models, reload, service, status,
    view_command,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 1 (2 for a wrong option); a bug is a traceback."""
    from ...hand.messages import WireError
    from ...hand.whole import refusal
    from ..bench import BenchError
    from ..client import SubscribeError
    from ..keys import KeysError
    from ..log import LOG, log_is_open
    from ..networks.store import StoreError
    from ..person import PersonError
    from ..publish import PublishError
    from ..recordings.recording import RecordingError
    from ..service.control import ControlError
    from ..service.units import ServiceError
    from ..view.http_server import ServeError
    from .config import ConfigError

    known = (
        CommandError, CameraError, ModelError, PublishError, SubscribeError, WireError, RecordingError, BenchError,
        PersonError, KeysError, ServiceError, ConfigError, ControlError, ServeError, StoreError,
    )  # fmt: skip

    def fail(line: str) -> None:
        if log_is_open():
            LOG.error("%s", line)
        else:
            say(f"edge-hand: {line}")

    _mend_streams()
    try:
        cli()
    except known as error:
        fail(str(error))
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.errno not in THE_DISK:
            raise
        fail(f"{error.filename}: {refusal(error)}" if error.filename else refusal(error))
        sys.exit(1)


def _mend_streams() -> None:
    """Where an output is closed (`>&-`) nothing is written, and what its encoding lacks is written as an escape."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
