"""Whether the hand has moved enough to calibrate with, and if not, what to do, in words.

The covariance does not see everything: a hand held still gives a thousand frames that all say the same wrong thing. So
the motion itself is asked for: room, turning, time, and every camera seeing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.se3 import so3_log
from ..hand.skeleton import PALM
from .observe import Sight, joints_at, palm_rotation, slope

LEAST_SPREAD_M = 0.025  # standard deviation of the palm along its least axis
LEAST_TURN_RAD = np.radians(15.0)  # of its orientation, about the second of its axes
LEAST_S = 8.0  # with a hand, in one camera at least
LEAST_SHARED = 0.25  # of a camera's frames with a hand that another sees too
LEAST_SEEN = 0.1  # of a camera's frames
FAST_M_S = 0.8  # median speed of the palm
RATE_HZ = 15.0


class Motion(NamedTuple):
    """How the hand moved: spread_m (3,) of the palm along its principal axes, the greatest first, axes (3, 3) as rows,
    turn_rad (3,) likewise, seconds with a hand, median speed, seen (C,): share of frames with a hand, shared (C,):
    seconds in which another camera saw it too, NaN where the clocks are too far apart to tell."""

    spread_m: Array
    axes: Array
    turn_rad: Array
    seconds: float
    speed_m_s: float
    seen: Array
    shared_s: Array


def measure(sights: Sequence[Sight], offsets_s: Array | None = None) -> Motion:
    """How the hand moved as the cameras, each for itself, saw it; the one that saw most speaks of spread and turn.
    offsets_s (C,) of their clocks, None while they are not known."""
    offsets = np.zeros(len(sights)) if offsets_s is None else offsets_s
    seen = np.array([s.seen.mean() if len(s.times_s) else 0.0 for s in sights])
    counts = [int(s.seen.sum()) for s in sights]
    best = int(np.argmax(counts))
    shared = np.array([_shared_s(sights, offsets, c) for c in range(len(sights))])
    if offsets_s is None and not _overlap(sights):
        shared = np.full(len(sights), np.nan)
    nothing = Motion(np.zeros(3), np.eye(3), np.zeros(3), 0.0, 0.0, seen, shared)
    if counts[best] < 10:
        return nothing
    sight = sights[best]
    times = np.arange(sight.times_s[0], sight.times_s[-1], 1 / RATE_HZ)
    joints = joints_at(sight, times)
    there = np.isfinite(joints[:, 0, 0])
    if there.sum() < 10:
        return nothing
    palm = joints[:, PALM].mean(1)
    speed = float(np.median(np.linalg.norm(slope(palm, RATE_HZ), axis=1)[there]))
    middle = np.median(palm[there], 0)
    away = palm[there] - middle
    away = away[np.linalg.norm(away, axis=1) < 0.8]  # a wild jump is no motion
    spread, axes = _principal(away)
    turns = palm_rotation(joints[there])
    mean = turns[int(np.argmin(np.linalg.norm(palm[there] - middle, axis=1)))]
    turn, _ = _principal(so3_log(mean.T @ turns))
    return Motion(spread, axes, turn, float(there.sum() / RATE_HZ), speed, seen, shared)


def lacks(motion: Motion, names: Sequence[str]) -> list[str]:
    """What is missing, a line each, in words that say what to do; none if the motion will do."""
    found = []
    unseen = [name for name, share in zip(names, motion.seen, strict=True) if share < LEAST_SEEN]
    found += [f"{name} never sees the hand: turn the camera or move the hand into its view" for name in unseen]
    if len(unseen) == len(names):
        return found
    wanted = LEAST_SHARED * min(motion.seconds, LEAST_S)
    found += [
        f"{name} sees the hand only when no other camera does: move the hand where both see it"
        for name, share in zip(names, motion.shared_s, strict=True)
        if name not in unseen and share < wanted
    ]
    if motion.seconds < LEAST_S:
        found.append(f"the hand was seen for {motion.seconds:.0f} s: move it for {LEAST_S:.0f} s or more")
    if motion.speed_m_s > FAST_M_S:
        found.append(f"the hand moves at {motion.speed_m_s:.1f} m/s: move it slower")
    still = motion.spread_m[0] < LEAST_SPREAD_M
    if still:
        found.append("the hand stays in one place: move it through the whole volume, near and far, left and right")
    elif motion.spread_m[1] < LEAST_SPREAD_M:
        found.append(f"the hand moves on a line: move it {_words(motion.axes[1])} and {_words(motion.axes[2])}, too")
    elif motion.spread_m[2] < LEAST_SPREAD_M:
        found.append(f"the hand moves in a plane: move it {_words(motion.axes[2])}, too")
    if motion.turn_rad[1] < LEAST_TURN_RAD:
        found.append("turn the hand more: palm up and down, fingers left and right")
    return found


def _principal(values: Array) -> tuple[Array, Array]:
    """Standard deviations (3,) along the principal axes, the greatest first, and the axes as rows (3, 3)."""
    if len(values) < 3:
        return np.zeros(3), np.eye(3)
    _, sizes, axes = np.linalg.svd(values - values.mean(0), full_matrices=False)
    return sizes / np.sqrt(len(values)), axes


def _words(axis: Array) -> str:
    return ("left and right", "up and down", "nearer and farther")[int(np.argmax(np.abs(axis)))]


def _overlap(sights: Sequence[Sight]) -> bool:
    """Whether the cameras' times lie over each other for half of the shortest, as those of one clock do."""
    times = [s.times_s for s in sights if len(s.times_s)]
    shared = min(t[-1] for t in times) - max(t[0] for t in times) if times else 0.0
    return bool(times) and shared >= 0.5 * min(t[-1] - t[0] for t in times)


def _shared_s(sights: Sequence[Sight], offsets: Array, camera: int) -> float:
    """Seconds in which this camera and another one saw the hand."""
    sight = sights[camera]
    if not len(sight.times_s):
        return 0.0
    times = np.arange(sight.times_s[0], sight.times_s[-1], 1 / RATE_HZ)
    here = np.isfinite(joints_at(sight, times)[:, 0, 0])
    other = np.zeros(len(times), bool)
    for c, another in enumerate(sights):
        if c != camera:
            there = joints_at(another, times + offsets[camera] - offsets[c])
            other |= np.isfinite(there[:, 0, 0])
    return float((here & other).sum() / RATE_HZ)
