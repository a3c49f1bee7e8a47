"""A camera's mode: size and rate, "848x480@90" on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .cameras import CameraError

# Of the D400 cameras, the usual one first.
MODES = ("848x480@90", "848x480@60", "640x480@90", "640x480@60", "640x480@30", "480x270@90", "1280x720@30")
MOST_PIXELS, MOST_HZ = 4_000_000, 300  # more than any depth camera has


@dataclass(frozen=True, slots=True, order=True)
class Mode:
    """A depth stream's size in px and rate in Hz."""

    width: int
    height: int
    fps: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}@{self.fps}"


def parse_mode(text: str) -> Mode:
    """ "848x480@90" as a Mode; raises CameraError."""
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})@(\d{1,4})", text)
    if match is None:
        raise CameraError(f"mode {text!r}: expected WIDTHxHEIGHT@FPS, such as {', '.join(MODES)}")
    mode = Mode(*map(int, match.groups()))
    if mode.width * mode.height > MOST_PIXELS or mode.fps > MOST_HZ:
        raise CameraError(f"mode {text}: more than {MOST_PIXELS} pixels or {MOST_HZ} Hz are not possible")
    return mode
