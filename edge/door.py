"""The check at the door of a socket with keys: who is not known gets nothing (ZAP, RFC 27)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from ..hand.whole import refusal
from .keys import CLIENTS, KeysError, clients, load_server
from .log import LOG

DOMAIN = "edge-hand"
LOG_S = 60.0  # refused clients are written at most so often


class Doorkeeper:
    """Answers libzmq in a thread of its own whether a client may come in, for as long as `stop` is not called.

    A client added or removed while it runs counts from the next connection on. Who is refused is counted, and
    written once a minute. If it dies, libzmq waits for its answer and nobody new comes in.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
        self.refused = 0
        self._folder = folder
        self._stamp = _stamp(folder)  # before reading: what comes between is read again
        self._known = clients(folder)
        self._written_s, self._written_refused = float("-inf"), 0
        self._authenticator = ThreadAuthenticator(context, log=LOG)
        self._authenticator.configure_curve_callback(DOMAIN, self)
        self._authenticator.start()

    def stop(self) -> None:
        self._authenticator.stop()

    def callback(self, domain: str, key: bytes) -> bool:
        """Called by the authenticator with a client's public key; an error counts as no."""
        try:
            stamp = _stamp(self._folder)
            if stamp != self._stamp:
                self._known, self._stamp = clients(self._folder), stamp
        except (OSError, KeysError) as error:
            self._write(f"cannot read who may subscribe, so nobody may: {error}")
            return False
        if key in self._known:
            return True
        self._write(f"a client with an unknown key was refused: {key.decode('ascii', 'replace')}")
        return False

    def _write(self, text: str) -> None:
        self.refused += 1
        now_s = time.monotonic()
        if now_s - self._written_s >= LOG_S:
            more = self.refused - self._written_refused - 1
            LOG.warning(text + (f" (and {more} before it)" if more else ""))
            self._written_s, self._written_refused = now_s, self.refused


def _stamp(folder: Path) -> list[tuple[str, int]]:
    """Another one whenever a client's file was made, removed, or changed in place, its rights too. Raises KeysError."""
    try:
        with os.scandir(folder / CLIENTS) as files:
            return sorted((file.name, file.stat().st_ctime_ns) for file in files if file.name.endswith(".key"))
    except OSError as error:
        raise KeysError(f"{error.filename}: {refusal(error)}") from None


def guard(socket: zmq.Socket[bytes], folder: Path) -> None:
    """Make a socket one that only known clients can talk to, once it is bound; needs a Doorkeeper in its context."""
    keys = load_server(folder)
    socket.curve_server = True
    socket.curve_secretkey = keys.secret
    socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a Doorkeeper libzmq would let every key in
