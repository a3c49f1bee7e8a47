"""`edge-hand calibrate watch`: an alarm when a camera of a running rig has moved."""

from __future__ import annotations

import signal
import time
from datetime import datetime, timezone
from pathlib import Path

import click

SAY_S = 10.0


@click.command(name="watch")
@click.argument("rig", type=Path)
@click.option("--from", "addresses", multiple=True, required=True, help="Where a daemon publishes; once for each.")
@click.option("--client-key", type=Path, help="This client's key file, where the daemons run with --keys.")
@click.option("--propose", type=Path, help="Where to write a rig with the moved camera put right. [RIG.proposed.json]")
@click.option("--seconds", type=float, help="Stop after so long; default: when Ctrl-C is pressed.")
@click.pass_context
def watch(
    context: click.Context, rig: Path, addresses: tuple[str, ...], client_key: Path | None, propose: Path | None,
    seconds: float | None,
) -> None:  # fmt: skip
    """Compare the hands that running cameras see and say when one of the cameras has moved.

    It needs hands that move in view of two cameras, of three to name the one that moved. Exit code 3 if one did.

    \b
    edge-hand calibrate watch rig.json --from tcp://127.0.0.1:5555 --from tcp://127.0.0.1:5556
    """
    from .cli import CalibrateError
    from .listen import Listener
    from .rig import RigError, load_rig, save_rig
    from .views import Views
    from .watch import Watch

    out = propose or rig.with_suffix(".proposed.json")
    try:
        known = load_rig(rig)
    except RigError as error:
        raise CalibrateError(str(error)) from None
    if out.resolve() == rig.resolve():
        raise CalibrateError(f"--propose {out}: the rig file itself is never overwritten")
    stopping: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: stopping.append(number))
    views, watcher = Views(known), Watch(known)
    begun = time.monotonic()
    said = begun - SAY_S
    state = last = ""
    with Listener(addresses, ("joints",), client_key) as listener:
        click.echo(f"{known.name}: watching {', '.join(camera.serial for camera in known.cameras)}")
        while not stopping and (seconds is None or time.monotonic() - begun < seconds):
            for now_ns, message in listener.take(0.05):
                views.take(message, now_ns)
            now_ns = time.monotonic_ns()
            t_ns = views.due(now_ns)
            if t_ns is None or not watcher.observe(t_ns, views.at(t_ns)):
                if time.monotonic() - said > SAY_S and not views.live(now_ns):
                    wrong = [f"{address}: {why}" for address, why in listener.trouble().items()]
                    silence = f"nothing is heard of {', '.join(addresses)}: is `edge-hand run` running there?"
                    click.echo("; ".join(wrong) or silence, err=True)
                    said = time.monotonic()
                continue
            found = watcher.judge()
            if found.state != state or time.monotonic() - said > SAY_S:
                click.echo(found.words)
                said = time.monotonic()
            if found.state == "moved" and found.drift is not None and found.words.partition(" moved")[0] != last:
                last = found.words.partition(" moved")[0]
                try:
                    utc = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
                    save_rig(watcher.proposal(found.drift, utc), out)
                except RigError as error:
                    raise CalibrateError(str(error)) from None
                click.echo(f"{out} proposes where {found.drift.camera} is now; verify it before you use it")
            state = found.state
    if last:
        context.exit(3)
