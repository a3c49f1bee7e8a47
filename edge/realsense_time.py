"""When a RealSense's frames were exposed, on the host's CLOCK_MONOTONIC, and when a recording's are to be shown."""

from __future__ import annotations

from typing import Any

from .cameras import ClockMap
from .clock import HOST, Clock

STEP_NS = 5_000_000  # the wall clock was set; slewing moves CLOCK_MONOTONIC too
LONGEST_NS = 60_000_000_000  # between two frames of a recording; beyond it its clock jumped
SETTLED_NS = 20_000_000_000  # librealsense fits its global time to 16 readings of the wall clock, a second apart


class FrameTimes:
    """The times of one camera's frames, from its opening on.

    librealsense's global time is the camera's own clock, fitted to the wall clock. When the wall clock is set, the fit
    takes 16 s to follow and is wrong meanwhile, by up to the step and more. So long frames are timed by the camera's
    clock alone, whose latency is known from before.
    """

    def __init__(self, rs: Any, clock: Clock = HOST) -> None:
        self._rs, self._clock, self._map = rs, clock, ClockMap()
        self._ahead_ns = clock.unix_ns() - clock.monotonic_ns()  # the wall clock, of CLOCK_MONOTONIC
        self._set_ns: int | None = None  # when it was set last

    def exposed_ns(self, depth: Any, arrival_ns: int) -> int:
        """The middle of a depth frame's exposure as well as the camera tells it; arrival_ns is when the frame came."""
        domain, own = self._rs.timestamp_domain, self._rs.frame_metadata_value.frame_timestamp
        stamp_ns, told_ns = round(depth.get_timestamp() * 1e6), None
        if depth.get_frame_timestamp_domain() != domain.hardware_clock:
            was_set = self._follow_wall_clock()
            told_ns = stamp_ns = stamp_ns - self._ahead_ns
            if depth.get_frame_timestamp_domain() == domain.global_time and depth.supports_frame_metadata(own):
                stamp_ns = int(depth.get_frame_metadata(own)) * 1000
                told_ns = None if was_set else told_ns
        return self._map.to_monotonic(stamp_ns, arrival_ns, told_ns) - _exposure_to_stamp_ns(self._rs, depth)

    def _follow_wall_clock(self) -> bool:
        """Whether it was set of late."""
        now_ns = self._clock.monotonic_ns()
        ahead_ns = self._clock.unix_ns() - now_ns
        if abs(ahead_ns - self._ahead_ns) > STEP_NS:
            self._set_ns = now_ns
        self._ahead_ns = ahead_ns
        return self._set_ns is not None and now_ns - self._set_ns < SETTLED_NS


class RecordedTimes:
    """The times of a recording's frames on one clock that goes on. Where the recorded one is set, begins anew or is
    another one (librealsense changes from the camera's to the wall clock's), it goes on by one frame."""

    def __init__(self, frame_ns: int) -> None:
        self._frame_ns = frame_ns
        self._t_ns, self._stamp_ns, self._domain = 0, 0, None

    def begin_anew(self) -> None:
        """The recording is shown from its beginning."""
        self._domain = None

    def follow(self, stamp_ns: int, domain: Any) -> int:
        """The time of the next frame, from its stamp and of which clock that is."""
        step_ns = stamp_ns - self._stamp_ns
        goes_on = domain == self._domain and 0 <= step_ns <= LONGEST_NS
        self._t_ns += step_ns if goes_on else self._frame_ns
        self._stamp_ns, self._domain = stamp_ns, domain
        return self._t_ns


def _exposure_to_stamp_ns(rs: Any, depth: Any) -> int:
    """How long before its stamp (start of the readout) the frame's exposure was half over, if the camera tells it."""
    kind = rs.frame_metadata_value
    if not all(depth.supports_frame_metadata(k) for k in (kind.frame_timestamp, kind.sensor_timestamp)):
        return 0
    us = int(depth.get_frame_metadata(kind.frame_timestamp) - depth.get_frame_metadata(kind.sensor_timestamp))
    return us * 1000 if 0 <= us < 100_000 else 0
