"""What the cameras of a rig saw of one moving hand: joints, the hand's own depth points, and when.

A camera's times are its own clock's. Where a camera looked and saw no hand, its joints are NaN: that a camera never
sees the hand is something to be said, not something to be missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.extras import to_get

JOINTS = 21
LONGEST_GAP = 2.5  # frame periods between two looks that may be interpolated


class ObserveError(Exception):
    """What the cameras saw cannot be used; one line."""


class DepthError(ObserveError):
    """The hand's depth points do not say where the cameras are."""


class Cloud(NamedTuple):
    """The hand's own depth points (N, 3) m of one frame, camera frame; the frame's time; the mesh (V, 3) m fitted."""

    t_s: float
    points_m: Array
    mesh_m: Array | None = None


@dataclass(frozen=True, eq=False)
class Sight:
    """One camera's view of the motion: times_s (K,) rising, joints_m (K, 21, 3), NaN where no hand was seen."""

    serial: str
    stream: str
    intrinsics: Intrinsics
    times_s: Array
    joints_m: Array
    clouds: tuple[Cloud, ...] = ()

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Frames (K,) with a hand."""
        return np.isfinite(self.joints_m[:, 0, 0])

    @property
    def period_s(self) -> float:
        return float(np.median(np.diff(self.times_s))) if len(self.times_s) > 1 else 1 / 30

    def between(self, start_s: float, stop_s: float) -> Sight:
        """What was seen from start_s (with it) to stop_s (without it), in this camera's time."""
        keep = (self.times_s >= start_s) & (self.times_s < stop_s)
        clouds = tuple(cloud for cloud in self.clouds if start_s <= cloud.t_s < stop_s)
        return Sight(self.serial, self.stream, self.intrinsics, self.times_s[keep], self.joints_m[keep], clouds)


def joints_at(sight: Sight, times_s: Array) -> Array:
    """Joints (N, 21, 3) m at times (N,) of this camera's clock, straight between frames; NaN where it saw no hand."""
    seen = sight.seen
    known, joints = sight.times_s[seen], sight.joints_m[seen]
    out = np.full((len(times_s), JOINTS, 3), np.nan)
    if len(known) < 2:
        return out
    after = np.clip(np.searchsorted(known, times_s), 1, len(known) - 1)
    before = after - 1
    gap = known[after] - known[before]
    share = (times_s - known[before]) / gap
    good = (share >= 0) & (share <= 1) & (gap <= LONGEST_GAP * sight.period_s)
    share = share[good, None, None]
    out[good] = (1 - share) * joints[before[good]] + share * joints[after[good]]
    return out


def common_times(sights: Sequence[Sight], offsets_s: Array, rate_hz: float = 30.0) -> Array:
    """A grid (N,) of times on the reference's clock that covers what any two cameras may share."""
    starts = sorted(sight.times_s[0] + o for sight, o in zip(sights, offsets_s, strict=True) if len(sight.times_s))
    stops = sorted(sight.times_s[-1] + o for sight, o in zip(sights, offsets_s, strict=True) if len(sight.times_s))
    if len(starts) < 2:
        return np.zeros(0)
    return np.arange(starts[1], stops[-2], 1 / rate_hz)


def palm_rotation(joints_m: Array) -> Array:
    """The hand's orientation (N, 3, 3) from its joints (N, 21, 3): towards the fingers, across, and their normal."""
    along = joints_m[:, 9] - joints_m[:, 0]
    across = joints_m[:, 5] - joints_m[:, 17]
    x = along / np.linalg.norm(along, axis=1, keepdims=True)
    z = np.cross(x, across)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], 2)


def slope(values: Array, rate_hz: float, window_s: float = 0.23) -> Array:
    """Change a second of values (K, ...) on an even grid, NaN bridged: the slope of local cubics (Savitzky and Golay).

    Shorter windows follow noise: a wobbling speed makes a time offset that is fitted with it too small.
    """
    flat = bridged(values.reshape(len(values), -1))
    half = max(2, round(window_s * rate_hz / 2))
    ticks = np.arange(-half, half + 1) / rate_hz
    kernel = np.linalg.pinv(np.vander(ticks, 4))[-2]  # of t in the cubic
    padded = np.concatenate([np.repeat(flat[:1], half, 0), flat, np.repeat(flat[-1:], half, 0)])
    out = sum(weight * padded[i : i + len(flat)] for i, weight in enumerate(kernel))
    return np.asarray(out).reshape(values.shape)


def bridged(flat: Array) -> Array:
    """(K, D) with NaN replaced by straight lines in time; 0 where a column has nothing."""
    out, ticks = flat.copy(), np.arange(len(flat))
    missing = ~np.isfinite(flat)
    for column in np.flatnonzero(missing.any(0)):
        hole = missing[:, column]
        out[hole, column] = 0 if hole.all() else np.interp(ticks[hole], ticks[~hole], flat[~hole, column])
    return out


def tree_of(points: Array) -> Any:
    """A tree that finds the nearest of points (N, 3). Raises ObserveError without scipy."""
    return import_tree()(points)


def import_tree() -> Any:
    """scipy's tree; to be called before the work that will need it. Raises ObserveError without scipy."""
    try:
        from scipy.spatial import cKDTree
    except ImportError:
        raise ObserveError(f"this needs scipy: {to_get('calibration')}") from None
    return cKDTree


def different(serials: Sequence[str], sources: Sequence[str] = ()) -> None:
    """Raise ObserveError if two sources are one camera, or folders or videos of one name."""
    if len(set(serials)) != len(serials):
        named = any(Path(source).is_dir() or Path(source).with_suffix(".json").is_file() for source in sources)
        hint = '; if they are not, give each a name: "camera" in the JSON that holds its intrinsics' if named else ""
        raise ObserveError(f"two sources are the same camera: {', '.join(serials)}{hint}")
