"""Files that are there as a whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import secrets
from contextlib import suppress
from errno import EISDIR
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes | memoryview | str, mode: int = 0o666) -> None:
    """Write a file under another name, onto the disk, and rename it: nobody reads half of it, and a power cut leaves
    the file of before. mode: its rights, less the umask. Raises OSError, which names path, and all is as it was."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
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
    if path.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """The same of a value as JSON."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def refusal(error: OSError) -> str:
    """What the system says, as the end of a line."""
    return (error.strerror or str(error)).lower()
