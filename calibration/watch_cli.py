"""`edge-hand calibrate watch`: an alarm when a camera of a running rig has moved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..edge.cli.shell import CommandError, FloatRange, must_write, stop_on_signal

if TYPE_CHECKING:
    from .views import Views

SAY_S = 10.0


@click.command(name="watch")
@click.argument("rig", type=Path)
@click.option("--from", "addresses", multiple=True, required=True, help="Where a daemon publishes; once for each.")
@click.option("--keys", "--client-key", type=Path, help="This client's key file, where the daemons run with --keys.")
@click.option("--propose", type=Path, help="Where to write a rig with the moved camera put right. [RIG.proposed.json]")
@click.option("--seconds", type=FloatRange(0, min_open=True), help="Stop after so long; default: at Ctrl-C.")
@click.pass_context
def watch(
    context: click.Context, rig: Path, addresses: tuple[str, ...], keys: Path | None, propose: Path | None,
    seconds: float | None,
) -> None:  # fmt: skip
    """Compare the hands that running cameras see and say when one of the cameras has moved.

    It needs hands that move in view of two cameras, of three to name the one that moved. Exit code 3 if one did, 4
    if --seconds passed and no two cameras saw a hand for long enough to tell.

    \b
    edge-hand calibrate watch rig.json --from tcp://127.0.0.1:5555 --from tcp://127.0.0.1:5556
    """
    from .listen import Listener
    from .rig import RigError, load_rig, save_rig
    from .views import Views
    from .watch import Watch

    out = propose or rig.with_suffix(".proposed.json")
    known = load_rig(rig)
    if out.resolve() == rig.resolve():
        raise CommandError(f"--propose {out}: the rig file itself is never overwritten")
    must_write(out)
    stopping = stop_on_signal()
    views, watcher = Views(known), Watch(known)
    begun = time.monotonic()
    said, asked = begun - SAY_S, begun
    state, words, compared, moved, proposed_mm, proposed_of, refused = "", "", False, False, 0.0, "", ""
    with Listener(addresses, ("joints",), keys) as listener:
        click.echo(f"{known.name}: watching {', '.join(camera.serial for camera in known.cameras)}")
        while not stopping() and (seconds is None or time.monotonic() - begun < seconds):
            for now_ns, message in listener.take(0.05):
                views.take(message, now_ns)
            now_ns = time.monotonic_ns()
            if time.monotonic() - asked > SAY_S:
                asked, trouble = time.monotonic(), listener.trouble()
                if views.unknown or trouble or views.astray or views.silent(now_ns):
                    click.echo(_words(views, trouble, now_ns), err=True)
            t_ns = views.due(now_ns)
            if t_ns is None or not watcher.observe(t_ns, views.at(t_ns)):
                continue
            found = watcher.judge()
            if found.state != state or time.monotonic() - said > SAY_S:
                click.echo(found.words)
                said = time.monotonic()
            state, moved, words = found.state, moved or found.state == "moved", found.words
            compared |= state != "watching"
            if found.state == "moved" and found.drift is not None:  # known better every second
                utc = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
                try:
                    save_rig(watcher.proposal(found.drift, utc), out)
                except RigError as error:  # the alarm is worth more than the file
                    if str(error) != refused:
                        refused = str(error)
                        click.echo(refused, err=True)
                    continue
                drift = found.drift
                if drift.camera != proposed_of or abs(drift.moved_mm - proposed_mm) > 0.2 * drift.moved_mm:
                    proposed_of, proposed_mm = drift.camera, drift.moved_mm
                    click.echo(
                        f"{out} proposes where {drift.camera} is now, {proposed_mm:.1f} mm from where it was; "
                        "it is made better while hands move; verify it before you use it"
                    )
            elif found.state == "holds":
                proposed_of = ""
        if seconds is not None and not compared:
            cameras = _words(views, listener.trouble(), time.monotonic_ns())
            click.echo(f"nothing can be said of the rig: {words}" if state else cameras, err=True)
            context.exit(4)
    if moved:
        context.exit(3)


def _words(views: Views, trouble: Mapping[str, str], now_ns: int) -> str:
    """Which cameras are there, and what is wrong, in one line."""
    wrong = [f"{address}: {why}" for address, why in trouble.items()]
    hint = [] if views.live(now_ns) or views.unknown or trouble else ["is `edge-hand run` running?"]
    return "; ".join([views.words(now_ns), *wrong, *hint])
