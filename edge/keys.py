"""Who may read the hands beyond this machine: CurveZMQ keys in files.

    keys/server.key_secret      the daemon's own pair
    keys/clients/NAME.key       the public key of everyone who may subscribe
    NAME.key_secret             what a client keeps: its own pair and the daemon's public key

Files have the ZPL lines of zmq.auth's certificates. They are created 0600, folders 0700, and refused if wider.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import struct
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import zmq
from zmq.utils import z85

from ..hand.whole import give, refusal

SERVER, CLIENTS = "server.key_secret", "clients"
MAX_BYTES = 4096  # of a key file


class KeysError(Exception):
    """Keys that are missing, damaged or open to others; one line that says what to type."""


class Keys(NamedTuple):
    """A pair and the daemon's public key, each 40 characters of Z85."""

    public: bytes
    secret: bytes
    server: bytes


def make_server(folder: Path) -> None:
    """The daemon's keys in a folder, made if need be. Raises KeysError if it has some."""
    secret = folder / SERVER
    if secret.exists():
        raise KeysError(f"{secret} exists already; a new one would lock out every client: take another folder")
    _make_folder(folder)
    _make_folder(folder / CLIENTS)
    _check_private(folder)
    public_key, secret_key = zmq.curve_keypair()
    _write(secret, {"public-key": public_key, "secret-key": secret_key}, owner=folder)


def load_server(folder: Path) -> Keys:
    """The daemon's keys. Raises KeysError if there are none or others can get at them."""
    if not (folder / SERVER).exists():
        raise KeysError(f"{folder} has no {SERVER}: edge-hand keys new {quote(str(folder))}")
    for path in (folder, folder / SERVER, folder / CLIENTS):
        _check_private(path)
    public, secret = _read(folder / SERVER, "public-key", "secret-key")
    return Keys(public, secret, public)


def add_client(folder: Path, name: str, out: Path | None = None, public: str | None = None) -> Path | None:
    """Let a client in: a new pair in the file `out` (NAME.key_secret), or the one whose public key is given.

    Returns the file that the client needs, None for a public key. Raises KeysError.
    """
    server = load_server(folder)
    path = _client_path(folder, name)
    if path.exists():
        remove = f"edge-hand keys remove {quote(str(folder))} {name}"
        raise KeysError(f"{name} is known already: {remove}, or take another name")
    if public is not None:
        key = _checked(public.encode(), "the public key")
        if key in (known := clients(folder)):
            raise KeysError(f"{name}: this key is that of {known[key]}, who may subscribe already")
        _write(path, {"public-key": key}, owner=folder)
        return None
    out = out or Path(f"{name}.key_secret")
    if out.exists():
        raise KeysError(f"{out} exists already; choose another with --out")
    public_key, secret_key = zmq.curve_keypair()
    _write(out, {"public-key": public_key, "secret-key": secret_key, "server-key": server.public})
    try:
        _write(path, {"public-key": public_key}, owner=folder)
    except KeysError:
        out.unlink()  # nobody knows it, and it would stand in the way of the next try
        raise
    return out


def remove_client(folder: Path, name: str) -> None:
    """Let a client in no more. Raises KeysError if nobody of that name is known."""
    load_server(folder)
    path = _client_path(folder, name)
    if not path.exists():
        raise KeysError(f"{name} is not known; known are {', '.join(sorted(clients(folder).values())) or 'none'}")
    path.unlink()


def clients(folder: Path) -> dict[bytes, str]:
    """Public key to name of everyone who may subscribe, or to all names of a file that was copied. Raises KeysError for
    a damaged file."""
    found: dict[bytes, str] = {}
    for path in sorted((folder / CLIENTS).glob("*.key")):
        _check_private(path)
        key = _read(path, "public-key")[0]
        found[key] = f"{found[key]}, {path.stem}" if key in found else path.stem
    return found


def load_client(path: Path) -> Keys:
    """What `subscribe(keys=...)` needs. Raises KeysError if it is no such file or open to others."""
    if path.is_dir():
        add = f"edge-hand keys add {quote(str(path))} NAME"
        raise KeysError(f"{path} is a folder; a client gives NAME.key_secret, the file that {add} writes")
    if not path.is_file():
        raise KeysError(f"{path}: no such key file; the daemon's owner makes it: edge-hand keys add FOLDER NAME")
    _check_private(path)
    return Keys(*_read(path, "public-key", "secret-key", "server-key"))


def unlock(socket: zmq.Socket[bytes], keys: Keys) -> None:
    """Let a client's socket, not yet connected, show its keys."""
    socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = keys


# --- files


def _client_path(folder: Path, name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
        raise KeysError(f"name {name!r}: expected 1 to 64 letters, digits, dots, dashes and underscores")
    return folder / CLIENTS / f"{name}.key"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KeysError(f"folder {folder} cannot be made: {refusal(error)}") from None


def _check_private(path: Path) -> None:
    """Nobody but the owner, who is this user (root may use everyone's), may do anything with it."""
    try:
        status = path.stat()
    except OSError as error:
        raise KeysError(f"{path}: {refusal(error)}") from None
    if status.st_mode & 0o077:
        private = "700" if stat.S_ISDIR(status.st_mode) else "600"
        mode = stat.S_IMODE(status.st_mode)
        raise KeysError(f"{path} is open to other users (mode {mode:04o}): chmod {private} {quote(str(path))}")
    if os.geteuid() not in (0, status.st_uid):
        raise KeysError(
            f"{path} belongs to another user (uid {status.st_uid}): sudo chown {os.geteuid()} {quote(str(path))}"
        )


def _read(path: Path, *names: str) -> tuple[bytes, ...]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES)
    except OSError as error:
        raise KeysError(f"{path}: {refusal(error)}") from None
    found = dict(re.findall(rb'^\s*([a-z-]{1,16})\s*=\s*"([^"\n]{1,64})"\s*$', text, re.MULTILINE))
    if missing := [name for name in names if name.encode() not in found]:
        raise KeysError(f"{path} has no {' and no '.join(missing)}: it is no such key file, or is damaged")
    return tuple(_checked(found[name.encode()], f"{path}: {name}") for name in names)


def _checked(key: bytes, what: str) -> bytes:
    try:
        if len(key) == 40 and len(z85.decode(key)) == 32:
            return key
    except (ValueError, KeyError, struct.error):
        pass
    raise KeysError(f"{what} is not a key: expected 40 characters of Z85")


def _write(path: Path, values: dict[str, bytes], owner: Path | None = None) -> None:
    """A new file of mode 0600, whole or not at all; root gives it to the folder's owner, the daemon's user."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    lines = ["metadata", "curve", *(f'    {name} = "{value.decode()}"' for name, value in values.items()), ""]
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("\n".join(lines))
            if owner is not None:
                give(temporary, owner)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise KeysError(f"{path} cannot be written: {refusal(error)}") from None
