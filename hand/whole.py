"""Files that are there as a whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

LONGEST_JSON = 16 << 20  # bytes


def write_whole(path: Path, content: bytes | memoryview | str, mode: int = 0o666) -> None:
    """Write a file under another name, onto the disk, and rename it: nobody reads half of it, and a power cut leaves
    the file of before. mode: its rights, less the umask. Raises OSError, which names path, and all is as it was."""
    temporary = _beside(path)
    try:
        with open(_created(temporary, mode), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise


def try_writing(path: Path) -> None:
    """Raise the OSError that `write_whole` would, before the work whose result goes there; leaves nothing behind."""
    temporary = _beside(path)
    os.close(_created(temporary, 0o600))
    temporary.unlink()


def _beside(path: Path) -> Path:
    """The name under which a file is written first. Raises IsADirectoryError, and PermissionError for a device or a
    pipe, whose place a file would take: root would lose /dev/null."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if (path.exists() and not path.is_file()) or os.path.realpath(path.parent) == "/dev":
        raise PermissionError(errno.EPERM, "not a plain file", str(path))
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")  # a name has room for 255 bytes


def _created(path: Path, mode: int) -> int:
    """A descriptor of a new file, to be written."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)


def write_json(path: Path, value: Any) -> None:
    """The same of a value as JSON."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """A file's value. Raises OSError, and ValueError for what is no JSON, too long or nested too deep."""
    with path.open("rb") as file:
        content = file.read(LONGEST_JSON + 1)
    if len(content) > LONGEST_JSON:
        raise ValueError(f"over {LONGEST_JSON >> 20} MiB")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def give(path: Path, folder: Path) -> None:
    """What root makes for a folder belongs to the folder's owner. Raises OSError."""
    if os.geteuid() == 0:
        status = folder.stat()
        os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)


def refusal(error: OSError) -> str:
    """What the system says, as the end of a line."""
    return (error.strerror or str(error)).lower()
