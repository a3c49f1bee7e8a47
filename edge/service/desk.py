"""What a running daemon hears from outside: signals, and the control socket. The loop asks it between two frames."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..loop import Loop
from ..networks.reload import Reloader, ReloadError
from ..networks.swap import SwapEngine
from .control import ControlError, ControlSocket, Reply, Request


class Desk:
    """Made when the daemon starts: from then on SIGINT and SIGTERM ask for an orderly end, SIGHUP for a reload.

    In a terminal, whose closing sends SIGHUP too, that ends the daemon as well. tell and complain hear one line each.
    """

    def __init__(self, tell: Callable[[str], None], complain: Callable[[str], None]) -> None:
        self.stopping = self._at_once = False
        self._tell, self._complain = tell, complain
        self._reload_asked = False
        self._note = ""  # of the engine, as last published
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._stop if _has_terminal() else self._ask_reload)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """As long as the block lasts, what asks for an end raises KeyboardInterrupt: engines take minutes to build."""
        self._at_once = True
        try:
            if self.stopping:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    @contextlib.contextmanager
    def serve(self, loop: Loop, reloader: Reloader, address: str) -> Iterator[None]:
        """Answer for this loop, as long as the block lasts. Without a control socket it goes on, and says so once."""
        self._loop, self._reloader, self._address = loop, reloader, address
        self._begun_s = time.monotonic()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(ControlSocket(loop.camera.name, self.answer))
            except ControlError as error:
                self._complain(f"{error}; `edge-hand reload` cannot reach this daemon, SIGHUP can")
            yield

    def between(self) -> bool:
        """Called by the loop's thread before each frame: puts changes in place; True if the daemon shall end."""
        if self._reload_asked:
            self._reload_asked = False
            threading.Thread(target=self._reload, name="reload", daemon=True).start()
        self._reloader.apply(self._loop.tracker)
        engine = self._loop.tracker.engine
        if isinstance(engine, SwapEngine) and engine.note != self._note:
            self._note = engine.note
            self._loop.tell(self._note)
        return self.stopping

    def answer(self, request: Request) -> Reply:
        """What the control socket asks, in a thread of its own."""
        camera = self._loop.camera.name
        if request.what == "status":
            return self._status()
        if request.what == "stop":
            self.stopping = True
            return Reply(True, camera, "stopping")
        change = self._reloader.reload if request.what == "reload" else lambda: self._reloader.use(Path(request.model))
        try:
            line = change()
        except ReloadError as error:
            self._complain(f"{request.what}: {error}")
            return Reply(False, camera, str(error))
        self._tell(f"{request.what}: {line}")
        return Reply(True, camera, line)

    def _status(self) -> Reply:
        loop, totals = self._loop, self._loop.totals
        card = loop.tracker.engine.card
        values = {
            "state": loop.state, "fps": round(loop.fps, 2), "frames": totals.frames, "tracked": totals.tracked,
            "dropped": totals.dropped, "bad_frames": totals.bad_frames, "engine": loop.tracker.engine.name,
            "model": f"{card.name} {card.sha256[:12]}", "model_path": os.path.abspath(self._reloader.model),
            "address": self._address, "pid": os.getpid(), "note": self._note,
            "uptime_s": round(time.monotonic() - self._begun_s, 1),
        }  # fmt: skip
        return Reply(True, loop.camera.name, loop.message, values)

    def _reload(self) -> None:
        self.answer(Request("reload"))

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True
        if self._at_once:
            raise KeyboardInterrupt

    def _ask_reload(self, number: int, frame: object) -> None:
        self._reload_asked = True


def _has_terminal() -> bool:
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):  # closed
        return False
