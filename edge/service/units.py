"""The systemd service: its files, and where they go."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from ...hand.whole import refusal, write_whole

SOURCE = Path(__file__).parents[2] / "systemd"
# The file here, where it goes, and whether it is the owner's from then on.
RULES = "etc/udev/rules.d/70-edge-hand.rules"  # before 73-seat-late, which acts on uaccess
FILES = (
    ("edge-hand.service", "etc/systemd/system/edge-hand.service", False),
    ("edge-hand@.service", "etc/systemd/system/edge-hand@.service", False),
    ("70-edge-hand.rules", RULES, False),
    ("edge-hand.sysusers", "etc/sysusers.d/edge-hand.conf", False),
    ("config.toml", "etc/edge-hand/config.toml", True),
    ("environment", "etc/edge-hand/environment", True),
)
OLD_RULES = "99-edge-hand.rules"  # of before; it would have the last word
UNREADABLE = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # for a service with ProtectHome and PrivateTmp


class ServiceError(Exception):
    """A file of the service that cannot be made or written; one line."""


class ServiceFile(NamedTuple):
    """name as in the package; where it goes; its text; whether its text is the owner's once it is there."""

    name: str
    path: Path
    text: str
    own: bool


def service_files(program: Path, prefix: Path = Path("/")) -> list[ServiceFile]:
    """All files, for a program at this absolute path. Raises ServiceError if a unit could not name it."""
    if not program.is_absolute() or any(c.isspace() or c in "\"'\\%$;" for c in str(program)):
        raise ServiceError(f"program {program}: expected an absolute path without spaces, quotes, %, $ or ;")
    return [
        ServiceFile(name, prefix / path, (SOURCE / name).read_text().replace("@EDGE_HAND@", str(program)), own)
        for name, path, own in FILES
    ]


def this_program() -> Path:
    """The `edge-hand` that runs now, or the one on the PATH. Raises ServiceError if there is none."""
    here = Path(sys.argv[0])
    found = str(here) if here.name == "edge-hand" and here.exists() else shutil.which("edge-hand")
    if found is None:
        raise ServiceError("edge-hand is not on the PATH; say where it is: --program /opt/edge-hand/bin/edge-hand")
    return Path(os.path.abspath(found))


def check_reachable(program: Path) -> None:
    """Raises ServiceError if the service could not run this program. Of the one that runs now, its Python and its
    source are looked at too."""
    if not os.access(program, os.X_OK):
        raise ServiceError(f"program {program}: there is no such program")
    needed = [program]
    if program.resolve() == Path(sys.argv[0]).resolve():
        needed += [Path(sys.prefix), Path(sys.executable), SOURCE.parent]
    places = (place for path in needed for place in (path, path.resolve()))
    hidden = next((place for place in places if str(place).startswith(UNREADABLE)), None)
    if hidden is not None:
        raise ServiceError(
            f"program {program}: the service sees no home or temporary folders, and it needs {hidden}; "
            "install edge-hand elsewhere (/usr/bin/python3 -m venv /opt/edge-hand; no pip install -e) "
            "or name another with --program"
        )


def install(files: list[ServiceFile], force: bool = False) -> list[str]:
    """Write the files, all or none, and say what was done to each. The owner's own files are left as they are;
    udev rules of before are named.

    Raises ServiceError if a file with another text is there and force is not given, or it cannot be written.
    """
    changed = [file.path for file in files if not file.own and _text(file.path) not in (None, file.text)]
    if changed and not force:
        raise ServiceError(f"{', '.join(map(str, changed))}: not what this edge-hand writes; --force to replace")
    old = [file.path.with_name(OLD_RULES) for file in files if file.path.suffix == ".rules"]
    placed = [f"{_place(file)} {file.path}" for file in files]
    return [*placed, *(f"old, of no use any more: sudo rm {path}" for path in old if path.exists())]


def _place(file: ServiceFile) -> str:
    before = _text(file.path)
    if before is not None and (file.own or before == file.text):
        return "kept"
    try:
        made = [folder for folder in file.path.parents if not folder.exists()]
        file.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file.path, file.text)
        file.path.chmod(0o644)  # whatever the umask: the service's user reads them
        for folder in made:
            folder.chmod(0o755)
    except OSError as error:
        why = refusal(error)
        raise ServiceError(f"{file.path} cannot be written: {why}; sudo, or another --prefix") from None
    return "wrote" if before is None else "replaced"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"{path} cannot be read: {refusal(error)}") from None
