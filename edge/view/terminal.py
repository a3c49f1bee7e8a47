"""The live view beside a running loop: a thread draws the newest message, so that a slow terminal costs nothing."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace

from ...hand.frames import DepthFrame
from ...hand.wire import JointsMessage, decode
from .watch import STALE_S, Screen


class Viewer:
    """Call it with each frame and its joints message; it keeps only the newest."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._newest: tuple[DepthFrame, list[bytes]] | None = None
        self._due = threading.Event()
        self._over = False
        self._calls = 0
        self._thread = threading.Thread(target=self._draw, name="viewer", daemon=True)

    def __call__(self, frame: DepthFrame, parts: list[bytes]) -> None:
        self._newest = (frame, parts)
        self._calls += 1
        self._due.set()

    def _draw(self) -> None:
        message, drawn = None, 0
        with suppress(OSError):  # who looked is gone; tracking goes on
            while True:
                came = self._due.wait(STALE_S)
                self._due.clear()
                if self._over:
                    return
                if not came and message is not None:  # an old hand is never shown as if it were there
                    self._screen.show(replace(message, hands=()), "no frame for a while", count=0)
                newest, self._newest = self._newest, None
                if newest:
                    decoded = decode(newest[1])
                    if isinstance(decoded, JointsMessage):
                        message, calls = decoded, self._calls
                        self._screen.show(message, frame=newest[0], count=calls - drawn)
                        drawn = calls

    def __enter__(self) -> Viewer:
        self._screen.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *how: object) -> None:
        self._over = True
        self._due.set()
        self._thread.join(timeout=1.0)
        self._screen.__exit__(*how)
