"""The command that says what is wrong with this machine, and what to type."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..cameras import CameraError
from ..networks.card import ModelError
from .config import ConfigError
from .options import json_option
from .shell import make_room, write_result

if TYPE_CHECKING:
    from ..machine.doctor import Setup


@click.command()
@click.option("--config", "config_path", type=Path, help="The settings to look at, as for `edge-hand run`.")
@click.option("--instance", metavar="NAME", help="And the camera of them.")
@json_option
@click.pass_context
def doctor(context: click.Context, config_path: Path | None, instance: str | None, json_path: Path | None) -> None:
    """Look at cameras, GPU, clocks, models, address and settings; say what mends them. Exit code 1 if any is bad.

    \b
    edge-hand doctor
    edge-hand doctor --json doctor.json
    """
    from ..machine.board import device
    from ..machine.doctor import examine
    from ..machine.finding import lines

    make_room(json_path)
    findings = examine(setup_of(context, config_path, instance))
    click.echo(lines(findings))
    write_result({"findings": [finding._asdict() for finding in findings], "device": device()}, json_path)
    if any(finding.level == "bad" for finding in findings):
        sys.exit(1)


def setup_of(context: click.Context, config: Path | None, instance: str | None) -> Setup:
    """What `edge-hand run` would take from its settings and the environment."""
    from ..machine.doctor import Setup
    from ..publish import ADDRESS
    from .settings import check_settings

    assert context.parent is not None
    run = context.parent.command.commands["run"]  # type: ignore[attr-defined]
    given = (("--config", config and str(config)), ("--instance", instance))
    try:
        with run.make_context("run", [part for name, value in given if value for part in (name, value)]) as parsed:
            values = parsed.params
            file = parsed.meta.get("edge_hand.config")
            check_settings(values)
            return Setup(values["bind"], values["keys"], values["model"], file, metrics=values["metrics"])
    except (ConfigError, CameraError, ModelError) as error:
        return Setup(ADDRESS, problem=str(error))
    except click.ClickException as error:
        return Setup(ADDRESS, problem=error.format_message())
