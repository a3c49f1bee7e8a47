"""The commands with which a person looks at running daemons: view in a browser, status over ssh."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ..publish import ADDRESS
from .options import engine_options, model_note

addresses_option = click.option(
    "--address", "addresses", multiple=True, help=f"Of a daemon, may be given several times.  [default: {ADDRESS}]"
)
keys_option = click.option("--keys", type=Path, help="This client's key file, where the daemons run with --keys.")
metrics_option = click.option(
    "--metrics", metavar="[HOST:]PORT", help="Serve Prometheus metrics, for example at 127.0.0.1:9100."
)


@click.command()
@addresses_option
@click.option("--source", help="A recording, shown over and over: what was recorded with it, or tracked anew.")
@engine_options
@click.option("--rig", type=Path, help="A rig file: its cameras are shown together, in the reference's frame.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the page is served.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option("--insecure", is_flag=True, help="Allow a host beyond this machine; who reaches it sees the hands.")
@keys_option
@click.pass_context
def view(
    ctx: click.Context, addresses: tuple[str, ...], source: str | None, engine: str, model: Path, threads: int,
    rig: Path | None, host: str, port: int, insecure: bool, keys: Path | None,
) -> None:  # fmt: skip
    """See hands, depth and timing in the browser, live or from a recording.

    \b
    edge-hand view
    edge-hand view --address tcp://127.0.0.1:5555 --address tcp://127.0.0.1:5556 --rig rig.json
    edge-hand view --source recording.mcap
    """
    from ..view.live import served
    from ..view.source import published

    poses: dict[str, Any] = {}
    recordings: dict[str, str] = {}
    if rig is not None:
        from ...calibration.rig import load_rig

        poses = {camera.serial: camera.T_ref_cam for camera in load_rig(rig).cameras}
    over = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: over.set())
    with ExitStack() as stack:
        shown = [*addresses] or ([] if source else [ADDRESS])
        if source:
            shown.append(
                stack.enter_context(published(source, model, engine, threads, lambda: click.echo(model_note(ctx))))
            )
            recordings[shown[-1]] = Path(source).name
        server = stack.enter_context(
            served(shown, host=host, port=port, poses=poses, recordings=recordings, keys=keys, insecure=insecure)
        )
        click.echo(f"{server.url} shows {', '.join(recordings.get(a, a) for a in shown)}; Ctrl-C ends it")
        over.wait()


@click.command()
@addresses_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@keys_option
def status(addresses: tuple[str, ...], as_json: bool, keys: Path | None) -> None:
    """See how running daemons fare; takes about a second.

    Exit code 0: all is well; 1: an address is silent; 3: a camera gives no frames.

    \b
    edge-hand status
    edge-hand status --address tcp://127.0.0.1:5556 --json
    """
    from ..view.status import exit_code, listen, report

    fares, silent = listen(addresses or (ADDRESS,), keys)
    now_s = time.monotonic()
    if as_json:
        cameras = [fare.as_dict(now_s) | {"stalled": fare.is_stalled} for fare in fares]
        click.echo(json.dumps({"cameras": cameras, "silent": list(silent)}, indent=1))
    else:
        click.echo(report(fares, silent, now_s, keys))
    sys.exit(exit_code(fares, silent))
