"""A live view in the browser: `edge-hand view`. One more subscriber, and a page on this machine; no other package.

The page asks for meshes and clouds only while it is open, gets the newest at its own pace, and shows no old hand.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ...hand.messages import WireError
from ..client import Subscription, forbidden
from ..keys import Keys, load_client
from .board import Board
from .http_server import Handler, LocalServer, local_address
from .packet import Packets

PAGE = Path(__file__).parent / "page"
PACKETS_HZ = 30.0
SEND_BUFFER = 256 << 10  # bytes, so that a slow line does not show what was seconds ago
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FEW, ALL = ("joints", "status"), ("joints", "mesh", "cloud", "status", "topology")
POLL_S = 0.1


@contextmanager
def served(
    addresses: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    poses: Mapping[str, NDArray[Any]] | None = None,
    recordings: Mapping[str, str] | None = None,
    keys: Path | None = None,
    insecure: bool = False,
) -> Iterator[LocalServer]:
    """Show what is published at the addresses on a page, its `url`, while the context is open; port 0 takes any.

    poses: T_ref_cam (4, 4) of cameras by name; those are shown together in the reference's frame, the others apart.
    recordings: what to call the addresses of `source.published`, which has no keys.
    Raises ServeError, SubscribeError and KeysError.
    """
    board, ours = Board(poses), recordings or {}
    with ExitStack() as stack:
        for address in addresses:
            name = ours.get(address, address)
            stack.enter_context(_fed(board, address, name, None if address in ours else keys))
        server = LocalServer(local_address("--host", host, port, insecure), port, _handler(board))
        stack.callback(server.server_close)
        server.start()
        yield server


@contextmanager
def _fed(board: Board, address: str, name: str, keys: Path | None) -> Iterator[None]:
    """A thread that gives the board what is published at an address."""
    over = threading.Event()
    client = None if keys is None else load_client(keys)  # once: the file may go
    Subscription(address, FEW, latest=True, timeout_s=POLL_S, keys=client).close()  # what is wrong with it is said here
    board.expect(name)
    if why := forbidden(address):
        board.say(f"{name}: {why}")
    thread = threading.Thread(target=_feed, args=(board, address, name, client, over.is_set), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _feed(board: Board, address: str, name: str, keys: Keys | None, over: Callable[[], bool]) -> None:
    complained = False
    while not over():
        looked_at = board.watched > 0
        with Subscription(address, ALL if looked_at else FEW, latest=True, timeout_s=POLL_S, keys=keys) as messages:
            while not over() and (board.watched > 0) == looked_at:
                try:
                    board.take(name, next(messages), time.monotonic())
                except TimeoutError:
                    continue
                except WireError as error:
                    if not complained:
                        board.say(f"{name}: {error}")
                    complained = True


def _handler(board: Board) -> type[Handler]:
    class Page(Handler):
        def get(self, path: str) -> None:
            name = "view.html" if path == "/" else path[1:]
            if path == "/stream":
                self._stream()
            elif name in FILES:
                self.answer(200, TYPES[Path(name).suffix], (PAGE / name).read_bytes())
            else:
                self.answer(404, "text/plain", b"there is nothing here; the page is at /\n")

        def _stream(self) -> None:
            """The newest of all cameras, again and again, as fast as the page takes it."""
            import socket

            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self.answer(200, "application/octet-stream", None)
            packets = Packets()
            with board.looked_at():
                while self.server.is_open:
                    now_s = time.monotonic()
                    views, silent = board.views(now_s), board.silent()
                    events = board.events()
                    self.wfile.write(packets.packet(views, board.topology, now_s=now_s, events=events, silent=silent))
                    time.sleep(max(0.005, 1 / PACKETS_HZ - (time.monotonic() - now_s)))

    return Page


FILES = frozenset(path.name for path in PAGE.glob("*.*") if path.suffix in TYPES)
