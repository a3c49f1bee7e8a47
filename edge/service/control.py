"""The control socket: how a daemon on this machine is asked how it fares, to reload, to use another model, to stop.

For those who ask (all that follows raises ControlError, one line):

    sockets() -> list[Path]                 the daemons that run here and may be asked
    ask(path, "status") -> Reply            one of them; "reload" and "stop" are the other words
    ask(path, "use", model) -> Reply        serve with this .onnx file; ok is False if it was refused, message says why
    ask(path, "use", model, say=print)      the same, and hear when it takes long: plans for GPUs are built for minutes
    Reply(ok, camera, message, values)      values holds the numbers of a "status"

A daemon looks at the model before it answers: it must load, be of the same kind and give plausible hands on the probe
crops. What fails is refused and the old model goes on; a new one that fails in its first frames is taken back, and that
is said in the log and by the next "status".

It is a Unix socket of mode 0600, apart from the sockets of the data, in $RUNTIME_DIRECTORY (systemd), else
$XDG_RUNTIME_DIR/edge-hand, else /tmp/edge-hand-UID, named after the camera: front.sock. Who asks looks in all of them.
A connection is one request and one answer, each a line of JSON:
{"request": "use", "model": "/var/lib/edge-hand/a.onnx"}.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...hand.whole import refusal

REQUESTS = ("status", "reload", "use", "stop")
MAX_REQUEST, MAX_REPLY = 4096, 64 << 10  # bytes of a line
MAX_PATH = 107  # bytes of a Unix socket's path
MAX_CLIENTS = 4  # at once; more of them wait
PATIENCE_S = 2.0  # for a client to say what it wants
LOOK_S = 10.0  # how often a daemon looks whether its socket is still there
ANSWER_S = 60.0  # for a daemon to answer
CHANGE_S = 3720.0  # to answer a change, for which it may build a plan (`engines/tensorrt/plan.py`), after another does
CHANGES = ("reload", "use")
USERS = ("/run/user/{}/edge-hand", "/tmp/edge-hand-{}")  # a user's daemons with and without $XDG_RUNTIME_DIR


class ControlError(Exception):
    """A daemon cannot be asked, or its answer is none; one line."""


class Request(NamedTuple):
    """what is one of REQUESTS; model the path that comes with `use`."""

    what: str
    model: str = ""


class Reply(NamedTuple):
    """ok: it was done. message: one line for a human. values: of a `status`, plain numbers and text by name."""

    ok: bool
    camera: str
    message: str
    values: dict[str, Any] = {}  # noqa: RUF012


# --- those who ask


def sockets() -> list[Path]:
    """The control sockets behind which a daemon listens. Raises ControlError if there are some, all of others."""
    users = [Path(name.format(os.getuid())) for name in USERS]
    folders = [folder for folder in (default_folder(), *users) if folder not in users or _is_private(folder)]
    folders += [Path("/run/edge-hand"), *sorted(Path("/run").glob("edge-hand-*"))]
    found: list[Path] = []
    forbidden: list[Path] = []
    for folder in dict.fromkeys(folders):
        try:
            paths = _sockets_in(folder)
        except PermissionError:  # a service's, while it runs
            forbidden.append(folder)
            continue
        for path in paths:
            try:
                with _connected(path, PATIENCE_S):
                    found.append(path)
            except PermissionError:
                forbidden.append(path)
            except OSError:
                continue  # left behind by a process that is gone
    if forbidden and not found:
        raise ControlError(f"{forbidden[0]}: not permitted for this user; run it as the daemon's user, or with sudo")
    return found


def socket_name(camera: str) -> str:
    """What the socket of a camera's daemon is called; that of a second daemon of this camera has -PID behind it."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", camera) or "camera"


def ask(
    path: Path, request: str, model: Path | None = None, *, timeout_s: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Reply:  # fmt: skip
    """Ask one daemon and wait for its answer; for that to a change as long as an engine may take to be made ready: who
    leaves earlier does not stop it. say hears of one that takes a while. Raises ControlError."""
    asked = Request(request, "" if model is None else os.path.abspath(model))
    changes = request in CHANGES
    timeout_s = timeout_s or (CHANGE_S if changes else ANSWER_S)
    try:
        with _connected(path, timeout_s) as connection:
            connection.sendall(json.dumps({"request": asked.what, "model": asked.model}).encode() + b"\n")
            if changes and not select.select([connection], [], [], min(timeout_s, PATIENCE_S))[0]:
                say(f"{path.stem}: makes an engine ready; a plan for a GPU takes minutes, and leaving does not stop it")
            line = _read_line(connection, MAX_REPLY)
    except TimeoutError:
        raise ControlError(f"{path}: the daemon did not answer within {timeout_s:g} s") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ControlError(f"{path}: no daemon can be asked there ({why.lower()})") from None
    return decode_reply(line)


# --- the daemon


class ControlSocket:
    """A daemon's end: `with ControlSocket(camera, answer)`. answer is called in a thread of its own and may take long;
    whatever it raises becomes a refusal. Raises ControlError on entry."""

    def __init__(self, camera: str, answer: Callable[[Request], Reply], folder: Path | None = None) -> None:
        self._camera, self._answer = camera, answer
        self._folder = folder or default_folder()
        self._room = threading.BoundedSemaphore(MAX_CLIENTS)
        self._closed, self._binding = threading.Event(), threading.Lock()

    def __enter__(self) -> ControlSocket:
        try:
            self._bind()
        except OSError as error:
            raise ControlError(f"control socket in {self._folder}: {refusal(error)}") from None
        threading.Thread(target=self._serve, name="control", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._binding:
            self._closed.set()
            if self._is_there():
                self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _bind(self) -> None:
        name = socket_name(self._camera)
        _make_private(self._folder)
        taken = _remove_the_dead(self._folder)
        path = self._folder / f"{name}.sock"
        if path in taken:  # another daemon shows a camera of this name
            path = self._folder / f"{name}-{os.getpid()}.sock"
        if len(os.fsencode(path)) > MAX_PATH:  # a shorter one can be renamed to it, but nobody connects to it
            raise OSError(errno.ENAMETOOLONG, f"a socket's path has at most {MAX_PATH} bytes")
        fresh = self._folder / f".{os.getpid()}"
        fresh.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(fresh))
            os.chmod(fresh, 0o600)
            listening.listen(64)
            listening.settimeout(LOOK_S)
            self._file = os.stat(fresh)
            os.rename(fresh, path)  # nobody meets it before it is private and listens
        except OSError:
            listening.close()
            raise
        self.path, self._socket = path, listening

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path), self._file)
        except OSError:
            return False

    def _stay(self) -> None:
        """Be there again where the file was removed: old ones in /tmp are, and a session's when its user logs out."""
        with self._binding, contextlib.suppress(OSError):
            if not self._closed.is_set() and not self._is_there():
                before = self._socket
                self._bind()
                before.close()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                self._stay()
                continue
            except OSError:
                if self._closed.wait(0.1):  # closed; or too many files are open
                    return
                continue
            self._room.acquire()
            threading.Thread(target=self._serve_one, args=(connection,), daemon=True).start()

    def _serve_one(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(PATIENCE_S)
                line = _read_line(connection, MAX_REQUEST)
                if line:
                    connection.sendall(encode_reply(self._reply_to(line)))
        except (OSError, ValueError):
            return  # gone, silent or too long
        finally:
            self._room.release()

    def _reply_to(self, line: bytes) -> Reply:
        try:
            return self._answer(decode_request(line))
        except Exception as error:  # of whatever kind: a request never ends the daemon
            return Reply(False, self._camera, " ".join(str(error).split())[:500] or type(error).__name__)


def default_folder() -> Path:
    """Where this user's daemons have their sockets."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    user = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(given) if given else Path(user, "edge-hand") if user else Path(f"/tmp/edge-hand-{os.getuid()}")


# --- lines


def decode_request(line: bytes) -> Request:
    """A request of at most MAX_REQUEST bytes. Raises ControlError."""
    if len(line) > MAX_REQUEST:
        raise ControlError(f"a request is at most {MAX_REQUEST} bytes")
    body = _object(line, "request")
    what, model = body.get("request"), body.get("model", "")
    if what not in REQUESTS or not isinstance(model, str) or set(body) - {"request", "model"}:
        raise ControlError(f'a request is {{"request": one of {", ".join(REQUESTS)}}}, with "model": PATH for use')
    if what == "use" and not os.path.isabs(model):
        raise ControlError("use needs the absolute path of a model")
    return Request(what, model)


def encode_reply(reply: Reply) -> bytes:
    return json.dumps(reply._replace(message=reply.message[:2000])._asdict()).encode() + b"\n"


def decode_reply(line: bytes) -> Reply:
    """Raises ControlError."""
    body = _object(line, "answer")
    kinds = {"ok": bool, "camera": str, "message": str, "values": dict}
    if set(body) != set(kinds) or not all(isinstance(body[key], kind) for key, kind in kinds.items()):
        raise ControlError("the daemon's answer is none of this version of edge-hand")
    return Reply(**body)


def _object(line: bytes, what: str) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError(f"a {what} is one line of JSON") from None
    if not isinstance(body, dict):
        raise ControlError(f"a {what} is a JSON object")
    return body


def _read_line(connection: socket.socket, most: int) -> bytes:
    """Up to the newline, or the end if nothing came. Raises ValueError if it is longer than `most`."""
    line = bytearray()
    while not line.endswith(b"\n"):
        part = connection.recv(min(4096, most + 1 - len(line)))
        if not part:
            if line:
                raise ValueError("it ended in the middle")
            return b""
        line += part
        if len(line) > most:
            raise ValueError(f"over {most} bytes")
    return bytes(line)


# --- files


def _connected(path: Path, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def _sockets_in(folder: Path) -> list[Path]:
    """Raises PermissionError for a folder that this user may not look into; one that is not there has none."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".sock")
    except PermissionError:
        raise
    except OSError:
        return []


def _remove_the_dead(folder: Path) -> set[Path]:
    """Remove the sockets that processes left behind which are gone; what remains is taken."""
    taken = set()
    for path in _sockets_in(folder):
        try:
            _connected(path, PATIENCE_S).close()
            taken.add(path)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            taken.add(path)
    return taken


def _make_private(folder: Path) -> None:
    """A folder that only this user can change; another's could hold a socket that is not ours."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(folder):
        raise PermissionError(1, "the folder is another user's or open to others")


def _is_private(folder: Path) -> bool:
    """Whether it is there, and only this user can change it."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
