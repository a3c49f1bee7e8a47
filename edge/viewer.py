"""The live view beside a running loop: a thread draws the newest message, so that a slow terminal costs nothing."""

from __future__ import annotations

import threading
from types import TracebackType

from ..hand.frames import DepthFrame
from ..hand.wire import JointsMessage, decode
from .watch import Screen


class Viewer:
    """Call it with each frame and its joints message; it keeps only the newest."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._newest: tuple[DepthFrame, list[bytes]] | None = None
        self._due = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._draw, name="viewer", daemon=True)

    def __call__(self, frame: DepthFrame, parts: list[bytes]) -> None:
        self._newest = (frame, parts)
        self._due.set()

    def _draw(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._over:
                return
            newest, self._newest = self._newest, None
            if newest:
                message = decode(newest[1])
                if isinstance(message, JointsMessage):
                    self._screen.show(message, frame=newest[0])

    def __enter__(self) -> Viewer:
        self._screen.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._due.set()
        self._thread.join(timeout=1.0)
        self._screen.__exit__(kind, error, trace)
