"""`edge-hand fuse`: the hands of several daemons as one, in the rig's frame."""

from __future__ import annotations

from pathlib import Path

import click

from ..edge.cli.shell import CommandError, stop_on_signal

BIND = "tcp://127.0.0.1:5600"


@click.command(context_settings={"auto_envvar_prefix": "EDGE_HAND_FUSE"})
@click.argument("rig", type=Path)
@click.option("--from", "addresses", multiple=True, required=True, help="Where a daemon publishes; once for each.")
@click.option("--bind", default=BIND, show_default=True, help="Where to publish: tcp://HOST:PORT or ipc://PATH.")
@click.option("--insecure", is_flag=True, allow_from_autoenv=False, help="Allow an address anyone can read.")
@click.option("--keys", type=Path, help="Only clients with a key in this folder may read what is fused.")
@click.option("--client-key", type=Path, help="This client's key file, where the daemons run with --keys.")
@click.option("--smooth/--no-smooth", default=True, show_default=True, help="Smooth what is published.")
@click.option("--clouds/--no-clouds", default=True, show_default=True, help="Fit to the cameras' depth points too.")
@click.option("--force", is_flag=True, allow_from_autoenv=False, help="Take a rig that failed its calibration.")
def fuse(
    rig: Path, addresses: tuple[str, ...], bind: str, insecure: bool, keys: Path | None, client_key: Path | None,
    smooth: bool, clouds: bool, force: bool,
) -> None:  # fmt: skip
    """Fuse the hands that several cameras see and publish them as camera `rig`.

    \b
    edge-hand run --camera realsense --source SERIAL_A --bind tcp://127.0.0.1:5555
    edge-hand run --camera realsense --source SERIAL_B --bind tcp://127.0.0.1:5556
    edge-hand fuse rig.json --from tcp://127.0.0.1:5555 --from tcp://127.0.0.1:5556
    edge-hand watch --address tcp://127.0.0.1:5600
    """
    from ..edge.loop import topology
    from ..edge.publish import Publisher
    from .fuse_loop import FuseLoop
    from .listen import Listener
    from .rig import load_rig

    known = load_rig(rig)
    if known.quality.verdict == "fail" and not force:
        raise CommandError(f"{rig} failed its calibration ({'; '.join(known.quality.warnings)}); --force takes it")
    if bind in addresses:
        raise CommandError(
            f"--from {bind} is where fuse itself publishes; give the daemons' addresses, or another --bind"
        )
    stopping = stop_on_signal()
    topics = ("joints", "cloud") if clouds else ("joints",)
    with (
        Listener(addresses, topics, client_key) as listener,
        Publisher(bind, topology=topology(), insecure=insecure, keys=keys) as publisher,
    ):
        click.echo(f"{known.name}: {', '.join(c.serial for c in known.cameras)} -> {publisher.address}")
        loop = FuseLoop(known, publisher, smooth, click.echo)
        loop.run(listener, stopping)
    click.echo(loop.summary())
