"""The daemon's configuration: one TOML file whose names are the flags of `edge-hand run`.

    camera = "realsense"
    hands = 1

    [cameras.left]          # for `run --instance left`, over what stands above
    source = "012345678901"

A flag beats the environment (EDGE_HAND_HANDS), which beats the file. What is unknown is refused.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ...hand.whole import refusal
from ..home import home

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 64 << 10
PREFIX = "EDGE_HAND"
SYSTEMS = Path("/etc/edge-hand/config.toml")
TYPED = {
    "insecure": "it must be typed on the command line",
    "record": "a file is never overwritten, so no service could start twice; type it",
    "config": "it names this file",
    "instance": "it is typed",
}


class ConfigError(Exception):
    """A configuration that cannot be used; one line."""


def default_path() -> Path | None:
    """~/.config/edge-hand/config.toml, or else /etc/edge-hand/config.toml; None if neither is there. Raises ConfigError
    if that cannot be told; a home that may not be looked into, another's or hidden from a service, has none."""
    given = os.environ.get("XDG_CONFIG_HOME")
    users = Path(given or home() / ".config", "edge-hand", "config.toml")
    for path in (users, SYSTEMS):
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                return path
        except PermissionError as error:
            if given or path is not users:
                mend = f"sudo chmod a+rx {path.parent}, or another with --config"
                raise ConfigError(f"config {path}: {refusal(error)}; {mend}") from None
        except OSError:
            continue
    return None


def read_config(path: Path) -> dict[str, Any]:
    """The file's values as TOML has them. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"config {path}: {refusal(error)}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"config {path}: over {MAX_BYTES} bytes")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # Windows puts a mark first
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise ConfigError(f"config {path}: not TOML ({why})") from None


def settings_of(
    values: dict[str, Any], instance: str | None, command: click.Command, path: Path | None
) -> dict[str, Any]:
    """What click takes as the defaults of a command: parameter name to value, checked against its options.

    instance picks a table of [cameras]. One without a table is a camera's serial number. Raises ConfigError.
    """
    where = f"config {path}"
    tables = values.get("cameras", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigError(f"{where}: cameras: expected tables such as [cameras.left]")
    if instance is not None and instance not in tables:
        instance = _unescaped(instance)
    top = {key: value for key, value in values.items() if key != "cameras"}
    chosen = _checked(top, command, where, also=("cameras",))
    for name, table in tables.items():
        found = _checked(table, command, f"{where}: [cameras.{name}]")
        if name == instance:
            chosen |= found
    if instance is not None and instance not in tables:
        chosen["source"] = instance
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]  # the first of systemd's
    if instance is not None and "bind" not in chosen and folder:
        chosen["bind"] = f"ipc://{folder}/hands"
    return chosen


def _unescaped(instance: str) -> str:
    """A name as a unit has it, `front\\x20left` for `front left` (systemd.unit(5)); dashes stay dashes."""
    plain = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), os.fsencode(instance))
    return os.fsdecode(plain)


def load_defaults(context: click.Context, path: Path | None, instance: str | None) -> None:
    """Put the file's settings, if there is one, under a command's flags and environment. Raises ConfigError."""
    path = path or default_path()
    values = {} if path is None else read_config(path)
    context.default_map = settings_of(values, instance, context.command, path)
    _check_environment(context.command)
    context.meta["edge_hand.config"] = path


def _check_environment(command: click.Command) -> None:
    """Refuse a variable that sets nothing but nearly has the name of one that would, as NO_TUNE has. Others may
    be anybody's: where a Kubernetes service is called edge-hand there is an EDGE_HAND_PORT."""
    names = [option.name.upper() for option in _options(command) if option.name]
    switches = [option.name.upper() for option in _options(command) if option.name and option.is_flag]
    for variable in os.environ:
        name = variable.removeprefix(f"{PREFIX}_")
        near = difflib.get_close_matches(name, names, 1, 0.8)
        if not near and name.removeprefix("NO_") in switches:
            near = [name.removeprefix("NO_")]
        if name not in (variable, *names) and near:
            meant = near[0] + ("=0" if name == f"NO_{near[0]}" else "")
            raise ConfigError(f"environment: {variable[:60]} is unknown; did you mean {PREFIX}_{meant}?")


def shown(context: click.Context) -> list[str]:
    """Every setting of a parsed command as a line of TOML, with a comment that says where it is from."""
    lines = []
    for option in _options(context.command):
        name, value = option.name or "", context.params.get(option.name or "")
        if name in ("config", "instance"):
            continue
        if name == "model":  # `own` stays so, whatever is in use today
            value = context.meta.get("edge_hand.model", value)
        text = f"# {_flag(option)} is not set" if value is None else f"{_flag(option)} = {_toml(value)}"
        if name in TYPED and value is not None:
            text = f"# {text}"  # the file may not set it
        source = context.get_parameter_source(name)
        where = {
            ParameterSource.COMMANDLINE: "command line",
            ParameterSource.ENVIRONMENT: f"environment, {PREFIX}_{name.upper()}",
            ParameterSource.DEFAULT_MAP: str(context.meta.get("edge_hand.config") or "--instance"),
        }.get(source, "default") if source else "default"  # fmt: skip
        lines.append(f"{text:<44} # {where}")
    return lines


class Rereadable(click.Command):
    """A command that remembers what was typed, for `reread`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["edge_hand.typed"] = list(args)
        return super().parse_args(ctx, args)


def reread(context: click.Context) -> dict[str, Any]:
    """The settings of a Rereadable command as they would be if it began now: the same flags and environment over what
    the file says today. Raises ConfigError and click.ClickException."""
    typed = list(context.meta["edge_hand.typed"])
    with context.command.make_context(context.info_name, typed) as again:
        return dict(again.params)


def _checked(values: dict[str, Any], command: click.Command, where: str, also: Iterable[str] = ()) -> dict[str, Any]:
    """Names as flags to names as parameters, each value of the kind its flag has."""
    options = {_flag(option): option for option in _options(command)}
    chosen = {}
    for key, value in values.items():
        option = options.get(key)
        if option is None or option.name is None:
            near = difflib.get_close_matches(key, [*options, *also], 1, 0.5)
            raise ConfigError(f"{where}: {key[:40]!r} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
        if option.name in TYPED:
            raise ConfigError(f"{where}: {key} cannot stand here: {TYPED[option.name]}")
        chosen[option.name] = _checked_value(option, value, f"{where}: {key} = {_toml(value)}", command)
    return chosen


def _checked_value(option: click.Option, value: Any, what: str, command: click.Command) -> Any:
    """click alone would take 2.7 for 2, and true for 1."""
    kinds: tuple[type, ...]
    if option.is_flag:
        kinds, expected = (bool,), "true or false"
    elif isinstance(option.type, click.types.IntParamType):
        kinds, expected = (int,), "a whole number"
    elif isinstance(option.type, click.types.FloatParamType):
        kinds, expected = (int, float), "a number"
    else:
        kinds, expected = (str,), 'text in quotes, "..."'
    if type(value) not in kinds:
        table = option.name == "camera" and isinstance(value, dict) and len(value) == 1
        hint = f"; did you mean [cameras.{_text(*value)}]?" if table else ""
        raise ConfigError(f"{what}: expected {expected}{hint}")
    if kinds != (bool,) and isinstance(value, int) and abs(value) >= 1 << 63:
        raise ConfigError(f"{what}: too large a number")
    try:
        option.type.convert(value, option, click.Context(command))
    except click.BadParameter as error:
        raise ConfigError(f"{what}: {error.message}") from None
    return value


def _options(command: click.Command) -> list[click.Option]:
    return [o for o in command.params if isinstance(o, click.Option) and o.name not in ("help", "version")]


def _flag(option: click.Option) -> str:
    """`--far` for far_m; `--smooth` for --smooth/--no-smooth."""
    return max(option.opts, key=len).lstrip("-")


def _text(value: Any) -> str:
    try:
        return str(value)[:200]
    except ValueError:  # an int of thousands of digits, written in hexadecimal
        return "..."


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return _text(value)
    text = _text(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text) + '"'
