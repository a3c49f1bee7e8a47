"""A subscriber in a process of its own, as a user's would be: takes in all that is published and counts it.

python -m edge_hand.edge.bench.subscriber ADDRESS, until its standard input ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import msgpack
import zmq

from ..child import module_command
from ..publish import Publisher
from . import BenchError

STARTS_S = 10.0


class Subscriber:
    """The child process: `with Subscriber(publisher, camera) as subscriber`, and after it `subscriber.seen`."""

    def __init__(self, publisher: Publisher, camera: str) -> None:
        self._publisher, self._topics = publisher, (f"joints.{camera}", f"mesh.{camera}")
        self.seen: dict[str, Any] = {}

    def __enter__(self) -> Subscriber:
        command = module_command(__name__, self._publisher.address)
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        until = time.monotonic() + STARTS_S
        while not all(map(self._publisher.wants, self._topics)):
            self._publisher.poll_subscriptions()
            if time.monotonic() > until or self._child.poll() is not None:
                self._child.kill()
                raise BenchError("bench: the subscriber's process does not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            told, _noise = self._child.communicate(timeout=5.0)
            self.seen = json.loads(told)
        except (subprocess.TimeoutExpired, ValueError):
            self._child.kill()
            self._child.wait()


def listen(address: str, over: threading.Event) -> dict[str, Any]:
    """Take in joints and mesh until it is over: how many came, how many frames' joints are missing among them."""
    seen = {"joints": 0, "mesh": 0, "missing": 0}
    last: int | None = None
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        socket.connect(address)
        socket.subscribe(b"joints")
        socket.subscribe(b"mesh")
        while not over.is_set():
            if not socket.poll(50):
                continue
            topic, body = socket.recv_multipart()
            kind = "joints" if topic.startswith(b"joints") else "mesh"
            seen[kind] += 1
            if kind == "joints":
                message = msgpack.unpackb(body)
                seq = message["seq"] - message["dropped"]  # what the daemon itself skipped is counted there
                seen["missing"] += 0 if last is None else max(0, seq - last - 1)
                last = seq
    return seen


def _main() -> None:
    os.nice(5)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # where there is one core, it does not push in
    over = threading.Event()

    def wait() -> None:
        sys.stdin.buffer.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    print(json.dumps(listen(sys.argv[1], over)), flush=True)


if __name__ == "__main__":
    _main()
