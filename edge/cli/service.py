"""The commands and options that run it for long: service, keys, config."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

import click

from .config import load_defaults, shown

AFTER = (
    "next: systemd-sysusers; udevadm control --reload; udevadm trigger; systemctl daemon-reload; "
    "systemctl enable --now edge-hand"
)


def _set_defaults(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Of --config and --instance, which are read before all others in either order: the second loads."""
    known = context.meta.setdefault("edge_hand.defaults", {})
    known[option.name] = value
    if len(known) == 2:
        load_defaults(context, known["config"], known["instance"])


def daemon_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a daemon left to itself has besides: configuration, keys, log."""
    default_log = "text" if "NOTIFY_SOCKET" in os.environ else None
    for option in (
        click.option(
            "--log", type=click.Choice(["text", "json"]), default=default_log, help="Log a line an event to stderr."
        ),
        click.option("--keys", type=Path, help="Only clients with a key in this folder: `edge-hand keys`."),
        config_option,
        instance_option,
    ):
        command = option(command)
    return command


config_option = click.option(
    "--config", type=Path, is_eager=True, expose_value=False, callback=_set_defaults,
    help="Settings, TOML. [default: ~/.config/edge-hand/config.toml or /etc/edge-hand/config.toml]",
)  # fmt: skip
instance_option = click.option(
    "--instance", is_eager=True, expose_value=False, callback=_set_defaults, metavar="NAME",
    help="Take [cameras.NAME] of the settings, or the camera of this serial number.",
)  # fmt: skip


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--show", is_flag=True, help="Print every setting and where it is from.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def config(context: click.Context, show: bool, flags: tuple[str, ...]) -> None:
    """Check the settings `edge-hand run` would take, given its flags.

    \b
    edge-hand config --show
    edge-hand config --show --config config.toml --instance left
    """
    from .settings import check_settings

    assert context.parent is not None
    run = context.parent.command.commands["run"]  # type: ignore[attr-defined]
    with run.make_context("run", list(flags), parent=context.parent) as parsed:
        path = parsed.meta.get("edge_hand.config")
        if show:
            click.echo("\n".join(shown(parsed)))
        check_settings(parsed.params)
        if not show:
            click.echo(f"{path or 'no file; the defaults'}: all is well")


@click.group()
def service() -> None:
    """Run at boot, under systemd.

    \b
    edge-hand service print
    sudo /opt/edge-hand/bin/edge-hand service install
    """


@service.command("print")
@click.argument("name", required=False)
@click.option("--program", type=Path, help="The edge-hand to run.")
def service_print(name: str | None, program: Path | None) -> None:
    """Print the files, or the one of this name.

    \b
    edge-hand service print edge-hand.service
    """
    from ..service.units import ServiceError, service_files, this_program

    files = service_files(program or this_program())
    if name is not None and name not in (file.name for file in files):
        raise ServiceError(f"{name}: there is no such file; there are {', '.join(file.name for file in files)}")
    for file in files:
        if name is None:
            click.echo(f"# --- {file.path}")
        if name in (None, file.name):
            click.echo(file.text, nl=name is None)


@service.command("install")
@click.option("--prefix", type=Path, default=Path("/"), show_default=True, help="Write under this folder.")
@click.option("--program", type=Path, help="The edge-hand to run.")
@click.option("--force", is_flag=True, help="Replace files that were changed.")
def service_install(prefix: Path, program: Path | None, force: bool) -> None:
    """Write the units, the udev rules, the user and, where there is none, a configuration.

    \b
    sudo edge-hand service install
    edge-hand service install --prefix /tmp/look
    """
    from ..service.units import check_reachable, install, service_files, this_program

    program = program or this_program()
    check_reachable(program)
    for line in install(service_files(program, prefix), force):
        click.echo(line)
    click.echo(AFTER)


@click.group()
def keys() -> None:
    """Who may subscribe from other machines.

    \b
    edge-hand keys new /etc/edge-hand/keys
    edge-hand keys add /etc/edge-hand/keys robot --out robot.key_secret
    """


@keys.command("new")
@click.argument("folder", type=Path)
def keys_new(folder: Path) -> None:
    """Make the daemon's keys in a folder.

    \b
    edge-hand keys new /etc/edge-hand/keys
    """
    from ..keys import make_server

    make_server(folder)
    named = quote(str(folder))
    click.echo(f"made {folder}; next: edge-hand keys add {named} NAME, and edge-hand run --keys {named}")


@keys.command("add")
@click.argument("folder", type=Path)
@click.argument("name")
@click.option("--out", type=Path, help="The client's file. [default: NAME.key_secret]")
@click.option("--public-key", help="A key the client made itself, Z85; then no file is written for it.")
def keys_add(folder: Path, name: str, out: Path | None, public_key: str | None) -> None:
    """Let a client in.

    \b
    edge-hand keys add /etc/edge-hand/keys robot
    """
    from ..keys import add_client, load_server

    file = add_client(folder, name, out, public_key)
    if file is None:
        click.echo(f"{name} may subscribe; the daemon's public key is {load_server(folder).public.decode()}")
    else:
        click.echo(f"{name} may subscribe; move {file} there: edge-hand watch --keys {quote(str(file))}")


@keys.command("list")
@click.argument("folder", type=Path)
def keys_list(folder: Path) -> None:
    """Names and public keys of all who may subscribe.

    \b
    edge-hand keys list /etc/edge-hand/keys
    """
    from ..keys import clients, load_server

    load_server(folder)
    for key, name in sorted(clients(folder).items(), key=lambda item: item[1]):
        click.echo(f"{name}  {key.decode()}")


@keys.command("remove")
@click.argument("folder", type=Path)
@click.argument("name")
def keys_remove(folder: Path, name: str) -> None:
    """Take a client's access away.

    \b
    edge-hand keys remove /etc/edge-hand/keys robot
    """
    from ..keys import remove_client

    remove_client(folder, name)
    click.echo(f"{name} cannot connect any more; restart the daemon to cut it off if it is connected now")
