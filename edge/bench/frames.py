"""Frames that are in memory before the clock starts, so that what is measured is the tracking and not the decoding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ...hand.frames import DepthFrame
from ..cameras import BadFrame, Camera, EndOfStream, FrameTimeout

MOST_BYTES = 256 << 20
MOST_FRAMES = 2000


class Memory:
    """A camera that shows frames taken in before, as a sensor would have put them there; at least one.

    hz is the rate at which they come: one that is not fetched before the next is due is lost. 0 gives each as soon as
    it is asked for. With cycle they are shown forwards and backwards without end, so that no hand jumps.
    """

    def __init__(self, camera: Camera, frames: Sequence[DepthFrame], hz: float = 0.0, cycle: bool = False) -> None:
        self.name, self.intrinsics, self.fps = camera.name, camera.intrinsics, hz or camera.fps
        self._frames, self._hz, self._cycle = frames, hz, cycle
        self._next = 0
        self._begun_ns: int | None = None

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        """The next frame. Raises EndOfStream after the last, FrameTimeout if the next is due later."""
        now_ns = due_ns = time.monotonic_ns()
        if self._begun_ns is None:
            self._begun_ns = now_ns
        seq = self._next
        if self._hz:
            period_ns = 1e9 / self._hz
            seq = max(seq, int((now_ns - self._begun_ns) / period_ns))
            due_ns = self._begun_ns + round(seq * period_ns)
            if due_ns - now_ns > timeout_s * 1e9:
                raise FrameTimeout(f"{self.name}: the next frame is due in {(due_ns - now_ns) * 1e-9:.3f} s")
            time.sleep(max(0, due_ns - now_ns) * 1e-9)
        n = len(self._frames)
        if seq >= n and not self._cycle:
            raise EndOfStream(f"{self.name}: no more frames")
        self._next = seq + 1
        at = seq % max(1, 2 * n - 2)
        return replace(self._frames[at if at < n else 2 * n - 2 - at], seq=seq, t_ns=due_ns)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def take_in(camera: Camera, most: int | None) -> list[DepthFrame]:
    """The camera's frames, at most so many and at most 256 MB of them; those that are bad are left out."""
    frames: list[DepthFrame] = []
    held = 0
    while len(frames) < min(MOST_FRAMES, most or MOST_FRAMES) and held < MOST_BYTES:
        try:
            frames.append(camera.read(10.0))
        except EndOfStream:
            break
        except BadFrame:
            continue
        held += frames[-1].depth.nbytes
    return frames
