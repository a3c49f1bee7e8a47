"""When recorded or drawn frames are due."""

from __future__ import annotations

import math
import time

from .cameras import CameraError, FrameTimeout

SLOWEST_HZ = 0.001


class Pacer:
    """Shows recorded frames at their recorded times (fps None), every 1/fps seconds, or at once (fps 0)."""

    def __init__(self, fps: float | None) -> None:
        if fps is not None and not (math.isfinite(fps) and (fps == 0 or fps >= SLOWEST_HZ)):
            raise CameraError(
                f"--fps {fps:g}: give the rate in Hz, or 0 for as fast as possible (least: {SLOWEST_HZ:g})"
            )
        self._fps = fps
        self._before: tuple[int, int] | None = None  # recorded time, due time of the frame before, ns

    def wait(self, recorded_ns: int, deadline_ns: int) -> int:
        """Sleep until a frame is due and return that time (ns, CLOCK_MONOTONIC).

        A reader that is late by more than a frame does not get a burst: the frame is due now and the rest follows.
        Raises FrameTimeout if the frame is due after deadline_ns; the same frame may then be waited for again.
        """
        now_ns = time.monotonic_ns()
        due_ns = now_ns
        if self._before is not None and self._fps != 0:
            recorded_before_ns, due_before_ns = self._before
            step_ns = max(0, recorded_ns - recorded_before_ns) if self._fps is None else round(1e9 / self._fps)
            due_ns = due_before_ns + step_ns
            if now_ns - due_ns > step_ns:
                due_ns = now_ns
        time.sleep(max(0, min(due_ns, deadline_ns) - now_ns) * 1e-9)
        if due_ns > max(deadline_ns, now_ns):
            raise FrameTimeout(f"the next recorded frame is due in {(due_ns - deadline_ns) * 1e-9:.3f} s")
        self._before = (recorded_ns, due_ns)
        return due_ns
