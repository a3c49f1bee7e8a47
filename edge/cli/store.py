"""The commands for the networks this device has accepted: models list, use, rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..networks.card import behind
from ..networks.store import ANEW, SHIPPED, StoreError, Version, default_store, model_of
from .options import json_option
from .shell import CommandError, write_result

store_option = click.option(
    "--store", type=Path, default=default_store, show_default="~/.local/share/edge-hand/models",
    help="The folder of accepted networks.",
)  # fmt: skip


@click.group()
def models() -> None:
    """The networks adapted on this device: see them, choose one, go back.

    \b
    edge-hand models list
    edge-hand models rollback
    """


@models.command("list")
@store_option
@json_option
def models_list(store: Path, json_path: Path | None) -> None:
    """Every version: when, from what, what the gate measured, which is in use.

    \b
    edge-hand models list
    """
    from ..networks.store import by_number, in_use, version

    now, found = in_use(store), by_number(store)
    if now not in {SHIPPED, *found}:
        version(store, now)  # raises
    click.echo(table(found, now))
    if (used := found.get(now)) and isinstance(used, Version) and (why := behind(used.model)):
        click.echo(f"version {now}: {why}: {ANEW}")
    entries = [_entry(each, each.number == now) for each in found.values() if isinstance(each, Version)]
    damaged = [str(each) for each in found.values() if isinstance(each, StoreError)]
    write_result({"store": str(store), "in_use": now, "versions": entries, "damaged": damaged}, json_path)


@models.command("use")
@store_option
@click.argument("which")
def models_use(store: Path, which: str) -> None:
    """Serve with version N from now on, or with the shipped network; running daemons change between frames.

    \b
    edge-hand models use 2
    edge-hand models use shipped
    """
    from ..networks.use import name_of, put_in_use

    if which != "shipped" and not (which.isascii() and which.isdecimal()):
        raise CommandError(f"models use {which}: expected a version's number or `shipped`; see `edge-hand models list`")
    found = put_in_use(store, SHIPPED if which == "shipped" else int(which), click.echo)
    click.echo(f"{name_of(found)} is in use: {model_of(found)}")


@models.command("rollback")
@store_option
def models_rollback(store: Path) -> None:
    """Go back to the network that was in use before the last change.

    \b
    edge-hand models rollback
    """
    from ..networks.use import name_of, take_back

    found = take_back(store, click.echo)
    click.echo(f"{name_of(found)} is in use: {model_of(found)}")


def table(found: dict[int, Version | StoreError], in_use: int) -> str:
    """Lines for people; the gate's numbers are old -> new."""
    rows = [("", "version", "made", "from", "better than", "depth to mesh", "silhouette", "rendered test set")]
    rows.append(("*" if in_use == SHIPPED else "", "shipped", "", "", "", "", "", ""))
    for number, v in found.items():
        used = "*" if number == in_use else ""
        if isinstance(v, StoreError):
            rows.append((used, str(number), "damaged", "", "", "", "", ""))
            continue
        over = "shipped" if v.over == SHIPPED else f"version {v.over}"
        rows.append(
            (used, str(number), v.made_utc[:16].replace("T", " "), v.made_from, over,
             _change(v, "fit_p50_mm", "mm"), _change(v, "silhouette", ""), _change(v, "synthetic_mm", "mm"))
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "* in use", *(str(v) for v in found.values() if isinstance(v, StoreError))])


def _change(version: Version, name: str, unit: str) -> str:
    digits = 1 if unit else 3
    try:
        measure = version.report["measures"][name]
        return f"{measure['old']:.{digits}f} -> {measure['new']:.{digits}f}" + (f" {unit}" if unit else "")
    except (KeyError, TypeError, ValueError):  # not measured, or another edge-hand's report
        return "-"


def _entry(version: Version, in_use: bool) -> dict[str, Any]:
    fields = version._asdict() | {"folder": str(version.folder), "model": str(version.model)}
    return fields | {"in_use": in_use}
