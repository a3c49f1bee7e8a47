"""From the start of a fresh daemon to its first message."""

from __future__ import annotations

import os
import socket
import subprocess
import time

import zmq

from ..child import module_command
from . import BenchError

LIMIT_S = 30.0
FOLDERS = ("EDGE_HAND_CACHE", "EDGE_HAND_STORE")  # what a daemon finds there is part of its start


def startup_s(arguments: list[str], limit_s: float = LIMIT_S) -> float:
    """Seconds from starting `edge-hand run ARGUMENTS` to its first joints message at a subscriber, with a hand in it or
    without. This device's own settings are left out, in its file and in the environment. Raises BenchError."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    command = module_command("edge_hand.edge.cli.main", "run", *arguments, "--no-view", "--bind", address)
    command += ["--config", os.devnull]
    plain = {name: value for name, value in os.environ.items() if name in FOLDERS or not name.startswith("EDGE_HAND_")}
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.linger = 0
        subscriber.setsockopt(zmq.RECONNECT_IVL, 5)
        subscriber.subscribe(b"joints")
        subscriber.connect(address)
        begun = time.perf_counter()
        daemon = subprocess.Popen(command, env=plain, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while not subscriber.poll(100):
                if daemon.poll() is not None:
                    heard = daemon.stderr.read().strip().splitlines() if daemon.stderr else []
                    raise BenchError(
                        f"bench: a fresh daemon ended at once ({(heard or ['it said nothing'])[-1][:200]})"
                    )
                if time.perf_counter() - begun > limit_s:
                    raise BenchError(f"bench: a fresh daemon sent nothing within {limit_s:g} s")
            return round(time.perf_counter() - begun, 3)
        finally:
            daemon.terminate()
            try:
                daemon.wait(10.0)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
            if daemon.stderr:
                daemon.stderr.close()
