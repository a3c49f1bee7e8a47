"""The command that speaks to the daemons that run on this machine: reload."""

from __future__ import annotations

import re

import click

from .shell import CommandError, say

STATUS_S = 5.0  # for a daemon to say which camera is its


@click.command()
@click.option("--camera", help="Only the daemon of this camera.")
def reload(camera: str | None) -> None:
    """Let running daemons read their settings and models again; what is wrong is refused and all goes on.

    \b
    edge-hand reload
    edge-hand reload --camera front
    """
    from ..service.control import ControlError, ask, socket_name, sockets

    there, asked = list[str](), list[tuple[str, bool]]()
    for path in sockets():
        name = path.stem  # of one that does not say it
        try:
            name = ask(path, "status", timeout_s=STATUS_S).camera
            if camera in (None, name):
                reply = ask(path, "reload", say=click.echo)
                click.echo(f"{name}: {reply.message}")
                asked.append((name, reply.ok))
        except ControlError as error:
            if camera is None or re.fullmatch(rf"{socket_name(camera)}(-\d+)?", path.stem):
                say(str(error))
                asked.append((name, False))
        there.append(name)
    if not asked:
        known = f"; there is {', '.join(there)}" if there else " on this machine"
        raise CommandError(f"reload: no daemon runs{f' for {camera}' if camera else ''}{known}")
    if failed := [name for name, ok in asked if not ok]:
        raise CommandError(f"reload: refused or not answered by {', '.join(failed)}")
