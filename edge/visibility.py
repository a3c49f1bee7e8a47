"""Which joints the depth image itself shows: the skin over a joint is read there, or something nearer, or nothing.

Nine readings about each joint's pixel vote. What lies up to the joint's reach in front of it is its own flesh, what is
nearer than that hides it, and what lies behind it says nothing of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.camera import fold_slope
from ..hand.frames import DepthFrame

# How far in front of a joint its own skin may be, m. Chosen on rendered hands, where the face at the joint's pixel is
# known: these tell own flesh from others' best. They hold flesh seen aslant, so they exceed a finger's radius.
REACH_M = np.array([0.048, 0.032, 0.026, 0.026, 0.022, *(0.026, 0.024, 0.022, 0.018) * 4])
BEHIND_M = 0.015  # a reading further behind the joint is of what lies behind the hand
STEP_M = 0.003  # between the readings
NEAREST_M = 0.02  # a joint nearer to the camera's plane is not in the picture
THROUGH_M = 0.04  # what is read so far behind a joint is seen through where a hand should be
_ACROSS = np.tile([-1.0, 0.0, 1.0], 3)
_DOWN = np.repeat([-1.0, 0.0, 1.0], 3)


def visible(frame: DepthFrame, joints_m: Array, reach_m: Array = REACH_M) -> NDArray[np.int8]:
    """(21,) int8 for joints (21, 3) m in the camera frame: 1 seen, 0 hidden by something nearer, -1 unknown.

    Unknown is a joint outside the picture, without a reading about it, or with readings only of what lies behind it.
    Three in ten readings may be missing. reach_m (21,) is how far in front of the joint its skin may lie.
    """
    z, pixel, before = _in_picture(frame, joints_m)
    camera = frame.intrinsics
    step_px = np.maximum(np.rint(camera.fx * STEP_M / z), 1)[:, None]
    column = np.rint(pixel[:, :1] + step_px * _ACROSS).astype(np.intp)  # (21, 9)
    row = np.rint(pixel[:, 1:] + step_px * _DOWN).astype(np.intp)
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height) & before[:, None]
    counts = frame.depth.ravel()[np.where(inside, row * camera.width + column, 0)]
    in_front = z[:, None] - counts * frame.depth_unit_m  # (21, 9) m
    read = inside & (counts > 0)
    near = in_front > reach_m[:, None]
    hiding = (read & near).sum(1)
    skin = (read & ~near & (in_front > -BEHIND_M)).sum(1)
    return np.where(hiding > skin, 0, np.where(skin > 0, 1, -1)).astype(np.int8)


def refuted(frame: DepthFrame, joints_m: Array) -> bool:
    """Whether a hand with joints (21, 3) m in the camera frame counts as gone: most of them are outside the picture, or
    what is read there lies behind them. A hand behind something, or in a hole, may be there."""
    z, pixel, before = _in_picture(frame, joints_m)
    camera = frame.intrinsics
    column, row = np.rint(pixel).astype(np.intp).T  # (21,)
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height) & before
    counts = frame.depth.ravel()[np.where(inside, row * camera.width + column, 0)]
    through = counts * frame.depth_unit_m - z > THROUGH_M  # 0, no reading, is before every joint
    return bool((~inside | through).mean() > 0.5)


def _in_picture(frame: DepthFrame, joints_m: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Distances (21,) m along the axis and pixels (21, 2) of joints (21, 3) m; and which are before the camera, for the
    others' numbers mean nothing."""
    camera = frame.intrinsics
    z = joints_m[:, 2]
    before = z > NEAREST_M
    if camera.is_distorted:  # what no lens shows would lead back into the picture
        before &= np.hypot(joints_m[:, 0], joints_m[:, 1]) < fold_slope(camera.distortion) * z
    if not before.all():
        z = np.where(before, z, 1.0)
        joints_m = np.where(before[:, None], joints_m, (0.0, 0.0, 1.0))
    return z, camera.project(joints_m), before
