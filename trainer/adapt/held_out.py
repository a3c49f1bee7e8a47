"""The end of each recording, which the network does not learn from and the gate judges by: how much of it is looked at,
and whether that is enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...edge.cameras import CameraError
from ...edge.cameras.replay import PngFolder
from ...edge.recordings.recording import Recording, RecordingError
from . import frames
from .suspicion import loose

HELD_OUT = (1 - frames.HELD_OUT, 1.0)  # the part of each recording that is judged by
MOST_S = 15.0  # of all recordings together, whatever their rate; from the beginning of what is held out
MOST_SINGLE = 450  # frames of all recordings of single ones together
BLOCK_S = 1.0  # of the bootstrap: neighbouring frames are wrong alike
LEAST_BLOCKS = 10  # of fewer, chance puts all on one side too often


class Part(NamedTuple):
    """Frames first, first + stride, ... below last, of a recording at rate_hz; alone: single ones, a block each."""

    first: int
    last: int
    stride: int
    rate_hz: float
    alone: bool

    @property
    def blocks(self) -> int:
        """How many blocks it reaches into, at least."""
        frames = len(range(self.first, self.last, self.stride))
        return frames if self.alone else math.ceil(frames / self.rate_hz / BLOCK_S)


def parts_of(recordings: Sequence[Path], part: tuple[float, float]) -> list[Part]:
    """What is looked at of this part of each recording: of all alike where it is more than `MOST_S` and `MOST_SINGLE`.
    Raises CameraError, RecordingError."""
    parts = []
    for path in recordings:
        total, rate_hz = _length(path)
        parts.append(Part(round(part[0] * total), round(part[1] * total), 1, rate_hz, loose(path)))
    share = MOST_S / max(MOST_S, sum((p.last - p.first) / p.rate_hz for p in parts if not p.alone))
    stride = max(1, sum(p.last - p.first for p in parts if p.alone) // MOST_SINGLE)
    return [
        p._replace(stride=stride) if p.alone else p._replace(last=p.first + round(share * (p.last - p.first)))
        for p in parts
    ]


def too_short(recordings: Sequence[Path], rig: Path | None = None) -> list[str]:
    """A reason not to learn from recordings of which too little is held out for the gate, whatever they show; with a
    rig file they are of the same time. What cannot be read at all is left to `check_recording`."""
    counted = recordings[:1] if rig is not None else recordings
    try:
        parts = parts_of(counted, HELD_OUT)
    except (CameraError, RecordingError):
        return []
    if sum(part.blocks for part in parts) >= LEAST_BLOCKS:
        return []
    share = HELD_OUT[1] - HELD_OUT[0]
    needed = round(LEAST_BLOCKS / share)
    if all(part.alone for part in parts):
        n = sum(len(range(part.first, part.last, part.stride)) for part in parts)
        return [f"of single frames the gate needs {LEAST_BLOCKS}, the last quarter, and has {n}: give {needed} or more"]
    seconds = sum(part.blocks if part.alone else (part.last - part.first) / part.rate_hz for part in parts)
    return [
        f"the gate needs {LEAST_BLOCKS * BLOCK_S:g} seconds with a hand, in the last quarter of what is recorded, and "
        f"that has {seconds:.1f}: record {needed * BLOCK_S:g} seconds or more"
    ]


def _length(path: Path) -> tuple[int, float]:
    """How many frames a recording has, and how many a second."""
    if path.is_dir():
        folder = PngFolder(path)
        return len(folder.paths), folder.fps
    with Recording(path) as recording:
        return len(recording), recording.fps
