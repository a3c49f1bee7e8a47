"""The publisher: an XPUB socket that never waits for anyone."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path
from urllib.parse import urlsplit

import zmq

from ..hand.whole import refusal
from .door import Doorkeeper, guard

ADDRESS = "tcp://127.0.0.1:5555"

# Messages kept for a subscriber that does not read; then it loses what is new. libzmq learns of reads up to half a
# queue late, so that 12 are sure to take one frame's joints, mesh, cloud, status and topology.
QUEUE = 12
SEND_BUFFER = 128 << 10  # bytes the kernel keeps, so that a slow reader is not fed seconds of old poses
LINGER_MS = 100
# pyzmq's flags are enums, slow to combine at each message: send_multipart takes half as long again as its parts.
_NOW, _MORE, _READABLE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.POLLIN)
MAX_TOPIC, MAX_TOPICS = 300, 1000  # bytes of a topic that may be asked for, and how many of them count


class PublishError(RuntimeError):
    """The socket cannot be opened as asked; the text is one line with what to type next."""


class Publisher:
    """Owns the socket: `with Publisher("tcp://127.0.0.1:5555", topology=encode_topology(faces)) as publisher`.

    A subscriber that stops reading loses messages (libzmq drops them per subscriber and does not say how many: it
    sees the gap in `seq`); nobody else notices. `dropped` counts messages the socket refused as a whole.
    topology is sent whenever someone subscribes to it. keys is the folder of `edge_hand.edge.keys`: then only who has
    a key in it can subscribe, and what is sent is encrypted. One thread only. Raises PublishError or KeysError on
    entry.
    """

    def __init__(
        self,
        bind: str = ADDRESS,
        *,
        topology: list[bytes] | None = None,
        insecure: bool = False,
        keys: Path | None = None,
        queue: int = QUEUE,
    ) -> None:
        self.address = bind
        self.dropped = 0
        self._topology = topology
        self._insecure = insecure
        self._keys = keys
        self._doorkeeper: Doorkeeper | None = None
        self._queue = queue
        self._subscriptions: set[bytes] = set()
        self._crowded = False  # more were asked for than count: from then on all is wanted
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def __enter__(self) -> Publisher:
        target = check_address(self.address, insecure=self._insecure, keys=self._keys)
        if target.startswith("ipc"):
            _check_ipc(target, target.removeprefix("ipc://"))
        self._context = context = zmq.Context()
        try:
            self._socket = context.socket(zmq.XPUB)
            if self._keys is not None:
                guard(self._socket, self._keys)
                self._doorkeeper = Doorkeeper(context, self._keys)
            self._socket.setsockopt(zmq.LINGER, LINGER_MS)
            self._socket.setsockopt(zmq.SNDHWM, self._queue)
            self._socket.setsockopt(zmq.SNDBUF, SEND_BUFFER)
            self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # each new subscriber is told, so each gets the topology
            self._socket.setsockopt(zmq.MAXMSGSIZE, 1024)  # what comes in is subscriptions
            self._socket.setsockopt(zmq.IPV6, int("[" in target))
            self._socket.bind(target)
        except zmq.ZMQError as error:
            self._close(linger_ms=0)
            raise PublishError(_explained(self.address, error)) from None
        except BaseException:
            self._close(linger_ms=0)
            raise
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)  # the port that `:*` became
        return self

    def __exit__(self, *_: object) -> None:
        self._close(LINGER_MS)

    def wants(self, topic: str) -> bool:
        """Whether someone subscribed to a prefix of this topic, as of the last `poll_subscriptions`."""
        return self._crowded or topic.encode().startswith(tuple(self._subscriptions))

    def poll_subscriptions(self) -> None:
        """Read who came and went, and send the topology to whoever just asked; call it once a frame."""
        asked = False
        for _ in range(256):
            if not int(self._socket.getsockopt(zmq.EVENTS)) & _READABLE:
                break
            event = self._socket.recv(zmq.NOBLOCK)
            if event[:1] == b"\x01" and len(event) <= 1 + MAX_TOPIC:
                self._crowded |= len(self._subscriptions) >= MAX_TOPICS
                if not self._crowded:
                    self._subscriptions.add(event[1:])
                asked |= b"topology".startswith(event[1:])
            elif event[:1] == b"\x00":
                self._subscriptions.discard(event[1:])
        if asked and self._topology is not None:
            self.publish(self._topology)

    def publish(self, parts: list[bytes]) -> bool:
        """Hand over one message and return at once; False if the socket would not take it."""
        try:
            for part in parts[:-1]:
                self._socket.send(part, _MORE)
            self._socket.send(parts[-1], _NOW)
        except zmq.Again:
            self.dropped += 1
            return False
        return True

    def _close(self, linger_ms: int) -> None:
        if self._context is None:
            return
        self._socket.close(linger=linger_ms)  # before the doorkeeper leaves
        if self._doorkeeper is not None:
            self._doorkeeper.stop()
            self._doorkeeper = None
        self._context.destroy(linger=linger_ms)
        self._context = None


def check_address(address: str, *, insecure: bool = False, keys: Path | None = None) -> str:
    """The address as libzmq wants it; PublishError if it is malformed or open to others without keys or insecure."""
    if keys is not None and insecure:
        raise PublishError("--insecure and --keys: choose one; with keys only who has one can read")
    scheme, _, rest = address.partition("://")
    if scheme == "ipc" and rest:
        try:
            too_long = len(rest.encode()) > zmq.IPC_PATH_MAX_LEN
        except UnicodeEncodeError:
            raise PublishError(f"--bind {address}: libzmq takes paths in UTF-8; choose another") from None
        if too_long or "\0" in rest:
            raise PublishError(
                f"--bind {address}: a socket's path has at most {zmq.IPC_PATH_MAX_LEN} bytes, none of them 0"
            )
        return address
    try:
        url = urlsplit(address)
        host, port = url.hostname, "*" if url.netloc.endswith(":*") else url.port
    except ValueError:
        host = port = None
    if scheme != "tcp" or not host or port is None:
        raise PublishError(f"--bind {address}: expected tcp://HOST:PORT or ipc://PATH, for example {ADDRESS}")
    if host == "localhost":
        host = "127.0.0.1"  # libzmq binds to numbers only
    if not insecure and keys is None and not _is_loopback(host):
        raise PublishError(
            f"--bind {address}: anyone who can reach this address could read the hands; "
            f"use {ADDRESS}, or make keys (edge-hand keys new DIR) and add --keys DIR; "
            "--insecure does without, on a network you trust"
        )
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_ipc(address: str, path: str) -> None:
    """libzmq removes whatever lies at the path, a running daemon's socket or a plain file alike: look first."""
    if path.startswith("@") or not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise PublishError(f"--bind {address}: {path} is not a socket and would be lost; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return  # left behind by a process that is gone
    raise PublishError(_in_use(address))


def _in_use(address: str) -> str:
    other = f"{address}-2" if address.startswith("ipc") else _next_free(address)
    return f"{address} is in use, perhaps by another edge-hand; stop it or take another" + (
        other and f": --bind {other}"
    )


def _next_free(address: str) -> str:
    """The same address with the next port that nobody uses; empty if there is none near."""
    url = urlsplit(address)
    host, port = url.hostname or "", url.port or 0
    for other in range(port + 1, min(port + 100, 1 << 16)):
        if not taken("" if host == "*" else host, other):
            return f"{address.rpartition(':')[0]}:{other}"
    return ""


def taken(host: str, port: int) -> str:
    """Why one may not listen there; empty if one may."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as test:
        test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test.bind((host, port))
        except OSError as error:
            return refusal(error)
    return ""


def _explained(address: str, error: zmq.ZMQError) -> str:
    if error.errno == zmq.EADDRINUSE:
        return _in_use(address)
    if error.errno in (zmq.EADDRNOTAVAIL, errno.ENODEV):
        return f"--bind {address}: this machine has no such address; `ip addr` lists those it has"
    if error.errno == errno.EACCES:
        return f"--bind {address}: not permitted for this user; take a port above 1023 or a path you can write"
    if error.errno == errno.ENOENT:
        return f"--bind {address}: the folder does not exist; create it first"
    return f"--bind {address}: {str(error).lower()}; for example {ADDRESS}"
