"""The command that speaks to the daemons that run on this machine: reload."""

from __future__ import annotations

import click

from .shell import CommandError


@click.command()
@click.option("--camera", help="Only the daemon of this camera.")
def reload(camera: str | None) -> None:
    """Let running daemons read their settings and models again; what is wrong is refused and all goes on.

    \b
    edge-hand reload
    edge-hand reload --camera front
    """
    from .control import ask, sockets

    daemons = {path: ask(path, "status").camera for path in sockets()}
    chosen = [path for path, name in daemons.items() if camera in (None, name)]
    if not chosen:
        there = f"; there is {', '.join(daemons.values())}" if daemons else " on this machine"
        raise CommandError(f"reload: no daemon runs{f' for {camera}' if camera else ''}{there}")
    replies = [ask(path, "reload", say=click.echo) for path in chosen]
    for reply in replies:
        click.echo(f"{reply.camera}: {reply.message}")
    if not all(reply.ok for reply in replies):
        raise CommandError("reload: refused, all goes on as before")
