"""The subscriber: `for message in subscribe(): ...`, newest wins."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import zmq

from ..hand.wire import MAX_BYTES, Message, decode
from .keys import Keys, load_client, unlock

KINDS = ("joints", "mesh", "cloud", "status", "topology")
QUEUE = 1024  # messages kept while the caller is busy: half of it is nearly two seconds of one camera's topics at 90 Hz
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
AGAIN_S = 1.0  # after which a publisher that refused us is asked again
CONNECT_MS = 3000  # then it is tried again; the kernel would ask a host that is off but once a minute


class SubscribeError(ValueError):
    """An address or a topic that cannot be; the text is one line."""


def subscribe(
    address: str = "tcp://127.0.0.1:5555",
    topics: Sequence[str] = ("joints",),
    *,
    latest: bool = True,
    timeout_s: float | None = None,
    keys: Path | str | None = None,
) -> Subscription:
    """Messages of a running `edge-hand run`, decoded: iterate, and use `with` to close it in time.

    topics are `joints`, `mesh`, `cloud`, `status` (of every camera), `joints.<camera>` and so on (of one), `topology`.
    latest: a caller slower than the camera gets the newest message of each topic and skips what is older; otherwise
    every message comes, in order, as long as the queues hold. timeout_s: how long to wait for one message. keys: the
    file that `edge-hand keys add` made for this client, where the daemon runs with --keys.

    Raises SubscribeError for a bad address or topic and `edge.keys.KeysError` for bad keys; while iterating,
    TimeoutError after timeout_s and `hand.wire.WireError` for a message that is not the contract's. Iterating may go on
    after both.
    """
    client = None if keys is None else load_client(Path(keys))
    return Subscription(address, (topics,) if isinstance(topics, str) else tuple(topics), latest, timeout_s, client)


def forbidden(address: str) -> str:
    """That this user may not open the socket of an ipc:// address, in one line; empty if it may or there is none."""
    path = address.removeprefix("ipc://")
    try:
        os.stat(path)
        if os.access(path, os.W_OK):
            return ""
    except PermissionError:
        pass
    except OSError:  # tcp:// too
        return ""
    return "not permitted for this user; take sudo, or join the socket's group (of a service: edge-hand)"


class Subscription:
    """An open subscription, made by `subscribe`: an iterator and a context manager.

    skipped counts the messages passed over because a newer one of their topic was there. One thread only, `close` too:
    a loop that another is to end takes a timeout_s and looks whether it should.
    """

    def __init__(
        self,
        address: str,
        topics: tuple[str, ...],
        latest: bool,
        timeout_s: float | None,
        keys: Keys | None = None,
    ) -> None:
        for topic in topics or ("",):
            kind, dot, camera = topic.partition(".")
            no_name = not camera or not camera.isprintable() or " " in camera
            if kind not in KINDS or (dot and (no_name or kind == "topology")):
                raise SubscribeError(
                    f"topic {topic!r}: expected {', '.join(KINDS)}, or one camera's, like joints.front"
                )
        self.skipped = 0
        self._address, self._topics = address, topics
        self._latest, self._keys = latest, keys
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._exact = {topic.encode() for topic in topics if "." in topic}
        self._kinds = {topic.encode() for topic in topics if "." not in topic}
        self._waiting: dict[bytes, list[bytes]] = {}  # newest of each topic, the longest waiting topic first
        self._socket: zmq.Socket[bytes] | None = None
        self._refused: zmq.Socket[bytes] | None = None
        self._open()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Message:
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            if self._socket is None:
                raise StopIteration
            if self._latest:
                self._drain()
            if self._waiting:
                return decode(self._waiting.pop(next(iter(self._waiting))))
            left_s = max(0.0, deadline_s - time.monotonic())
            if not self._socket.poll(round(1000 * min(left_s, AGAIN_S))):
                self._ask_again()
                if left_s > AGAIN_S:
                    continue
                how = ", and does it know these keys" if self._keys else " without --keys"
                why = forbidden(self._address) or f"is `edge-hand run` running there{how}?"
                raise TimeoutError(
                    f"no message on {', '.join(self._topics)} from {self._address} in {self._timeout_s:g} s; {why}"
                )
            if not self._latest:
                self._take(self._socket.recv_multipart())

    def close(self) -> None:
        """Close the socket; iterating ends."""
        if self._socket is not None:
            if self._refused is not None:
                self._socket.disable_monitor()
                self._refused.close(linger=0)
            self._socket.close(linger=0)
            self._socket = self._refused = None
        self._waiting.clear()

    def _open(self) -> None:
        self._opened_s = time.monotonic()
        try:
            self._socket = zmq.Context.instance().socket(zmq.SUB)
            self._refused = self._socket.get_monitor_socket(REFUSED)
            self._socket.setsockopt(zmq.RCVHWM, QUEUE)
            self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
            self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            self._socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
            # A host that lost its power closes no connection. With HEARTBEAT_IVL libzmq aborts, where a queue is full.
            for option in (zmq.TCP_KEEPALIVE, zmq.TCP_KEEPALIVE_IDLE, zmq.TCP_KEEPALIVE_INTVL):
                self._socket.setsockopt(option, 1)  # yes; after a second; each second
            self._socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
            self._socket.setsockopt(zmq.IPV6, int("[" in self._address))
            if self._keys is not None:
                unlock(self._socket, self._keys)
            for topic in self._topics:
                self._socket.setsockopt_string(zmq.SUBSCRIBE, topic)
            if not _can_be(self._address):  # libzmq would wait there for ever
                raise zmq.ZMQError(zmq.EINVAL)
            self._socket.connect(self._address)
        except (zmq.ZMQError, UnicodeEncodeError) as error:
            self.close()
            why = str(error).lower()
            raise SubscribeError(
                f"cannot subscribe at {self._address!r}: {why}; expected tcp://HOST:PORT or ipc://PATH"
            ) from None

    def _ask_again(self) -> None:
        """libzmq asks no more where it was refused, for other keys or for none; the daemon may know better by now."""
        refused = self._refused is not None and int(self._refused.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        if refused and time.monotonic() - self._opened_s > AGAIN_S:
            self.close()
            self._open()

    def _drain(self) -> None:
        """Take all there is. After a long absence what is queued is old and the newest was lost: start anew."""
        assert self._socket is not None
        taken = 0
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._take(self._socket.recv_multipart())
            taken += 1
            if taken == QUEUE // 2:  # libzmq's queue counts as full from half on, see its low-water mark
                self.skipped += len(self._waiting)
                self.close()
                self._open()
                return

    def _take(self, parts: list[bytes]) -> None:
        topic = parts[0]
        # SUB matches prefixes: `joints.cam1` would bring `joints.cam10` too.
        if topic in self._exact or topic.partition(b".")[0] in self._kinds:
            self.skipped += topic in self._waiting
            self._waiting[topic] = parts


def _can_be(address: str) -> bool:
    """Whether a TCP address names a host and a port that exist."""
    if not address.startswith("tcp://"):
        return True
    try:
        url = urlsplit(address)
        return bool(url.hostname and url.port)
    except ValueError:
        return False
