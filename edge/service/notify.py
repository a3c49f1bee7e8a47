"""What the service manager is told: ready, alive, how it fares (sd_notify(3), the datagrams of NOTIFY_SOCKET)."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from ...hand.fields import one_line

PUT_OFF_S = 60
LOOK_S = 1.0


class Notifier:
    """Tells systemd of the loop's progress; where NOTIFY_SOCKET is not set, it does nothing.

    READY=1 goes out with the first frame. WATCHDOG=1 follows, twice in the watchdog's time (WATCHDOG_USEC), with frames
    and while a camera that is away is tried again and again; a loop, an engine or a driver that hangs, or a camera that
    is there and gives nothing, ends in a restart. No call waits.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address[:1] in ("@", "/") else None
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID") or str(os.getpid())
        self._every_s = int(usec) / 2e6 if usec.isdecimal() and pid == str(os.getpid()) else None
        self._ready = False
        self._status = ""
        self._pinged_s = self._put_off_s = float("-inf")

    def frame(self) -> None:
        """A frame was tracked and published."""
        if not self._ready:
            self._ready = self._send("READY=1")
        self._ping()

    def alive(self) -> None:
        """No frame came, but the camera was tried again or a plan is being built: it is known what is missing. Before
        the first frame this puts off the time by which the service must be ready."""
        if self._ready:
            self._ping()
        elif time.monotonic() - self._put_off_s > PUT_OFF_S / 3 and self._send(
            f"EXTEND_TIMEOUT_USEC={PUT_OFF_S}000000"
        ):
            self._put_off_s = time.monotonic()

    @contextlib.contextmanager
    def alive_while(self, busy: Callable[[], bool]) -> Iterator[None]:
        """For what holds up its thread: as long as the block lasts and busy() holds, alive() is called beside it."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_S):
                if busy():
                    self.alive()

        beside = threading.Thread(target=look, name="alive", daemon=True)
        beside.start()
        try:
            yield
        finally:
            over.set()
            beside.join()

    def _ping(self) -> None:
        now_s = time.monotonic()
        if self._every_s is not None and now_s - self._pinged_s >= self._every_s and self._send("WATCHDOG=1"):
            self._pinged_s = now_s

    def status(self, state: str, message: str) -> None:
        """One line for `systemctl status`."""
        text = one_line(f"{state}: {message}" if message else state)  # a second line would be another word to systemd
        if text != self._status and self._send(f"STATUS={text}" + ("\nSTOPPING=1" if state == "stopping" else "")):
            self._status = text

    def _send(self, text: str) -> bool:
        if self._socket is None:
            return True
        try:
            self._socket.sendto(text.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError:  # supervision never takes the service down; it is told again next time
            return False
        return True
