"""Several daemons heard at once: a thread an address, one queue of messages with the time each came."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..edge.client import SubscribeError, subscribe
from ..hand.messages import Header, Message, WireError

POLL_S = 0.2
MOST = 4096  # messages kept; beyond them the oldest are lost
TROUBLE_NS = 2_000_000_000  # for so long it is told what was wrong with a message, and a camera is its address's


class Heard(NamedTuple):
    """A message and when it came, this host's CLOCK_MONOTONIC."""

    now_ns: int
    message: Message


class Listener:
    """`with Listener(addresses) as listener`, then `take()`. Raises SubscribeError or KeysError on entry.

    lost counts the messages that were not taken in time. A camera is heard from one address: another that has its name
    is passed over while the first one speaks.
    """

    def __init__(self, addresses: Sequence[str], topics: Sequence[str], keys: Path | None = None) -> None:
        self.addresses, self.topics, self.keys = tuple(addresses), tuple(topics), keys
        self.lost = 0
        self._trouble: dict[str, tuple[int, str]] = {}
        self._speaks: dict[str, tuple[str, int]] = {}  # from where a camera was heard, and when
        self._queue: queue.Queue[Heard] = queue.Queue(MOST)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Listener:
        if twice := {address for address in self.addresses if self.addresses.count(address) > 1}:
            raise SubscribeError(f"--from {min(twice)} is given twice; once for each daemon")
        for address in self.addresses:
            subscribe(address, self.topics, keys=self.keys).close()  # a wrong address is told here, not in a thread
        for address in self.addresses:
            thread = threading.Thread(target=self._listen, args=(address,), name=f"listen {address}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def take(self, timeout_s: float) -> list[Heard]:
        """All messages that are there, in order; waits for the first one so long, and gives none then."""
        heard: list[Heard] = []
        try:
            heard.append(self._queue.get(timeout=max(timeout_s, 0)) if timeout_s > 0 else self._queue.get_nowait())
            while True:
                heard.append(self._queue.get_nowait())
        except queue.Empty:
            return heard

    def trouble(self) -> dict[str, str]:
        """By address, what was wrong with its last message that could not be taken, if it came of late."""
        since_ns = time.monotonic_ns() - TROUBLE_NS
        return {address: why for address, (t_ns, why) in self._trouble.copy().items() if t_ns > since_ns}

    def _listen(self, address: str) -> None:
        with subscribe(address, self.topics, latest=False, timeout_s=POLL_S, keys=self.keys) as messages:
            while not self._stop.is_set():
                try:
                    message = next(messages)
                except TimeoutError:
                    continue
                except WireError as error:
                    self._trouble[address] = time.monotonic_ns(), str(error)
                    continue
                now_ns = time.monotonic_ns()
                if isinstance(message, Header):
                    other, heard_ns = self._speaks.get(message.camera, (address, now_ns))
                    if other != address and now_ns - heard_ns < TROUBLE_NS:
                        self._trouble[address] = now_ns, f"{message.camera} is heard from {other} already"
                        continue
                    self._speaks[message.camera] = address, now_ns
                if self._queue.full():
                    self.lost += 1
                    with suppress(queue.Empty):  # who reads may have emptied it meanwhile
                        self._queue.get_nowait()
                self._queue.put(Heard(now_ns, message))
