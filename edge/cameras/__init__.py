"""Depth cameras: one file of this folder is one backend.

A backend `<kind>.py` has `open_camera(source: str | None, **options) -> Camera` and declares as keywords the options
it knows, of `mode` ("848x480@90"), `fps` (float; replay: None = as recorded, 0 = as fast as possible) and `loop`
(bool). Its SDK is imported inside it, when a camera is opened. It may have `check_camera(source, **options)`, which
raises CameraError for what open_camera would refuse whatever is plugged in.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections import deque
from typing import Any, Protocol

from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame
from ...hand.whole import refusal


class CameraError(Exception):
    """The camera cannot be opened or has failed; one line that says what was seen and what to do."""


class NotThere(CameraError):
    """What was asked for does not exist yet; waiting for it may help."""


class FrameTimeout(CameraError):
    """No frame came in the time given to `read`; reading on may still work."""


class BadFrame(Exception):
    """One frame cannot be used; the next `read` goes on with the one after it."""


class EndOfStream(Exception):
    """The recording has no more frames."""


class Camera(Protocol):
    """An open depth camera; leaving its `with` block closes it."""

    @property
    def name(self) -> str: ...  # the serial number, or the name of a recording
    @property
    def intrinsics(self) -> Intrinsics: ...
    @property
    def fps(self) -> float: ...  # Hz, the rate frames come at; a replay at full speed says its recorded rate

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        """Wait for the next frame (live: the newest) at most timeout_s seconds.

        Raises FrameTimeout, BadFrame, EndOfStream, or CameraError when the camera is gone.
        """

    def __enter__(self) -> Camera: ...
    def __exit__(self, *_: object) -> None: ...


def camera_kinds() -> list[str]:
    """The backends there are: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def open_camera(kind: str, source: str | None = None, **options: Any) -> Camera:
    """Open a camera of one kind; options that are None or False count as not given.

    Raises CameraError for an unknown kind, an option that this kind does not have, and whatever the backend finds.
    """
    camera: Camera = _ask("open_camera", kind, source, options)
    return camera


def check_camera(kind: str, source: str | None = None, **options: Any) -> None:
    """Raise CameraError as `open_camera` would, as far as that can be told without opening anything."""
    _ask("check_camera", kind, source, options)


def is_recording(kind: str, source: str | None) -> bool:
    """Whether what is opened is a recording, which shows every frame that it holds, and no camera."""
    return kind == "replay" or (source is not None and os.path.isfile(source))  # False for a name that is too long


def _ask(what: str, kind: str, source: str | None, options: dict[str, Any]) -> Any:
    """Call a backend's function with the options that were given."""
    if kind not in camera_kinds():
        raise CameraError(f"camera {kind!r}: there is no such camera; possible are {', '.join(camera_kinds())}")
    backend = importlib.import_module(f".{kind}", __name__)
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    known = list(inspect.signature(backend.open_camera).parameters)[1:]
    for key in given:
        if key not in known:
            has = ", ".join(f"--{name}" for name in known if name in options)  # and the command has too
            raise CameraError(f"camera {kind!r} has no option --{key}" + (f"; it has {has}" if has else ""))
    try:
        return getattr(backend, what, lambda *_, **__: None)(source, **given)
    except OSError as error:  # a folder that may not be searched
        raise CameraError(f"{source}: cannot be opened ({refusal(error)})") from error


class ClockMap:
    """Maps a camera's time stamps to the host's CLOCK_MONOTONIC.

    A device clock runs beside ours with an unknown offset, and a frame arrives a varying latency after its stamp.
    The smallest arrival - stamp of the last window_s seconds is the offset plus the smallest latency: so times are
    late by that latency (transport, a few ms), but free of jitter. If a frame's time is told, by the wall clock,
    that is taken, and says what the latency is: so much earlier are then frames of which nothing is told. A time in the
    future or over a second ago is not believed.
    A clock whose stamp went back was set or wrapped, and is learned anew; a frame whose stamp went on is late, and old.
    Times never go back and are never later than the arrival.
    """

    JUMP_NS = 1_000_000_000  # a stamp this far off the estimate: the clock was set or wrapped, or the frame is late
    AHEAD_NS = 20_000_000  # a time that is told may be this far in the future: librealsense estimates it

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_ns = round(window_s * 1e9)
        self._offsets: deque[tuple[int, int]] = deque()  # (arrival, arrival - stamp), both rising: the front is least
        self._latency_ns = 0
        self._last_ns: int | None = None
        self._stamp_ns = 0  # of the last frame

    def to_monotonic(self, stamp_ns: int, arrival_ns: int, told_ns: int | None = None) -> int:
        """A frame's stamp in ns of CLOCK_MONOTONIC.

        arrival_ns is CLOCK_MONOTONIC when the frame came, told_ns what it was at the stamp, if that is told.
        """
        back, self._stamp_ns = stamp_ns < self._stamp_ns, stamp_ns
        t_ns = stamp_ns + self._least_offset(arrival_ns, arrival_ns - stamp_ns, back)
        if told_ns is not None and -self.AHEAD_NS <= arrival_ns - told_ns <= self.JUMP_NS:
            self._latency_ns = t_ns - told_ns
        t_ns -= self._latency_ns
        if self._last_ns is not None:
            t_ns = max(t_ns, self._last_ns + 1)
        self._last_ns = min(t_ns, arrival_ns)
        return self._last_ns

    def _least_offset(self, arrival_ns: int, offset_ns: int, back: bool) -> int:
        """The smallest offset of the window, with the new one in it; back: the stamp went back."""
        offsets = self._offsets
        if offsets and offset_ns - offsets[0][1] > self.JUMP_NS and not back:
            return offsets[0][1]  # as old as it is; no other frame is judged by it
        if offsets and abs(offset_ns - offsets[0][1]) > self.JUMP_NS:
            offsets.clear()
        while offsets and offsets[-1][1] >= offset_ns:
            offsets.pop()
        offsets.append((arrival_ns, offset_ns))
        while offsets[0][0] < arrival_ns - self._window_ns:
            offsets.popleft()
        return offsets[0][1]
