"""Another hand tracker in the same run, turn by turn, so that both have the same machine: MediaPipe Hands."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...hand.whole import refusal
from . import BenchError
from .picture import colour_hand

WORKER = Path(__file__).with_name("mediapipe_worker.py")
FRAMES = 10  # a turn
PIN = "mediapipe==0.10.21"


class Peer(Protocol):
    """Another tracker."""

    name: str
    ms: list[float]  # per frame
    cpu_ms: list[float]  # per frame, of all its threads

    def turn(self) -> None:
        """Track some frames."""


class MediaPipe:
    """`with MediaPipe() as peer`: a process of python, an interpreter that has it, with the hand in its eye.

    It follows the hand of one rendered picture, with its full model: no palm detection in the frames that count.
    Raises BenchError on entry.
    """

    def __init__(self, python: Path | None = None) -> None:
        if python is None and importlib.util.find_spec("mediapipe") is None:
            raise BenchError(
                "bench: MediaPipe is not installed here, and wants an older numpy: "
                f"python3 -m venv mp && mp/bin/pip install {PIN}, then --compare-python mp/bin/python"
            )
        self._python = str(python or sys.executable)
        self.name = "MediaPipe Hands"
        self.ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.about: dict[str, Any] = {}

    def __enter__(self) -> MediaPipe:
        pipe = subprocess.PIPE
        try:
            self._child = subprocess.Popen([self._python, str(WORKER)], stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            why = refusal(error)
            raise BenchError(f"bench: --compare-python {self._python}: {why}") from None
        picture = colour_hand()
        height, width, _ = picture.shape
        head = json.dumps({"width": width, "height": height})
        self.about = self._ask(head.encode() + b"\n" + picture.tobytes())
        if not self.about["followed"]:
            self._child.kill()
            raise BenchError("bench: MediaPipe does not follow the hand of the picture; nothing to compare with")
        self.name = f"MediaPipe Hands {self.about['version']}, full model, tracking"
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def turn(self) -> None:
        heard = self._ask(f"{FRAMES}\n".encode())
        self.ms += heard["ms"]
        self.cpu_ms += heard["cpu_ms"]

    def _ask(self, what: bytes) -> Any:
        assert self._child.stdin and self._child.stdout
        try:
            self._child.stdin.write(what)
            self._child.stdin.flush()
            return json.loads(self._child.stdout.readline())
        except (OSError, ValueError):
            _, noise = self._child.communicate()
            heard = noise.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise BenchError(f"bench: {self._python} cannot run MediaPipe: {heard[-1][:200]}") from None


def judge(total_us: Sequence[float], cpu_ms: Sequence[float], peer: Peer) -> dict[str, Any]:
    """Medians (ms) of both and how many times faster ours is: by the clock, and by processor time, which a busy machine
    disturbs less."""
    ours, theirs = float(np.median(total_us)) * 1e-3, float(np.median(peer.ms))
    our_cpu, their_cpu = float(np.median(cpu_ms)), float(np.median(peer.cpu_ms))
    return {
        "name": peer.name,
        "frames": len(peer.ms),
        "p50_ms": round(theirs, 3),
        "ours_p50_ms": round(ours, 3),
        "times_faster": round(theirs / ours, 2),
        "cpu_p50_ms": round(their_cpu, 3),
        "ours_cpu_p50_ms": round(our_cpu, 3),
        "times_less_cpu": round(their_cpu / our_cpu, 2),
    }
