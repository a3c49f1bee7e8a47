"""One hand's kinematic chain, fast: its bones, what each angle moves, and the skin, for the loop.

The slow twin is `hand/kinematics.py`. Parts are held in their anatomical frames (columns flexion axis, bone, palmar)
and relative to the wrist, so that a pose is one product of 4x4 matrices a bone, and a point's motion under all 26
degrees of freedom is its wrench against 20 screws.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hand.kinematics import Shape
from ..hand.skeleton import (
    ANGLE_PARTS,
    IS_FLEXION,
    PART_JOINTS,
    PART_PARENTS,
    PART_SCALES,
    THUMB_TWIST_PER_FLEX,
    TIPS,
)
from ..hand.template import HandTemplate

Array = NDArray[Any]
_PARENTS = [max(p, 0) for p in PART_PARENTS]
_JOINTS, _TIPS, _SCALES = list(PART_JOINTS), list(TIPS), list(PART_SCALES)
_FLEX, _ABD = np.flatnonzero(IS_FLEXION), np.flatnonzero(~IS_FLEXION)
_NEXT, _AFTER = [1, 2, 0], [2, 0, 1]
JOINT_PARTS = np.array([_JOINTS.index(j) if j in _JOINTS else _TIPS.index(j) * 3 + 3 for j in range(21)])


class Rest(NamedTuple):
    """A shape's bones at rest: (16, 4, 4) from a part's parent to the part, tips_m (5, 4) homogeneous in the distal
    parts' frames, scale (16,) of the parts' skin."""

    bones: Array
    tips_m: Array
    scale: Array


class Posed(NamedTuple):
    """A posed chain relative to its wrist: frames (16, 4, 4) of the parts, joints_m (21, 3), bend the cosines and sines
    that its screws need."""

    frames: Array
    joints_m: Array
    bend: tuple[Array, Array, float, float]


class Chain:
    """Holds what is fixed of the template."""

    def __init__(self, t: HandTemplate) -> None:
        self.template = t
        self._flat = t.flat_flex_rad[1:]
        moved = [[_moves(a, p) for a in range(20)] for p in range(16)]
        self.moved = np.array(moved, float)  # (16, 20) which angles move a part
        self._joints = t.joints_m
        self._parent_axes = t.axes[_PARENTS]
        self._bones = np.zeros((16, 4, 4))
        self._bones[:, :3, :3] = np.swapaxes(self._parent_axes, 1, 2) @ t.axes
        self._bones[:, 3, 3] = 1
        self._root = np.zeros((4, 4))
        self._root[3, 3] = 1
        self._local = np.zeros((16, 4, 4))
        self._local[:, 0, 0] = self._local[:, 3, 3] = 1
        self._axes = np.zeros((20, 3))
        self._axes[_FLEX, 0] = 1

    def at_rest(self, shape: Shape) -> Rest:
        """What a shape's bones fix."""
        t, (alpha, beta) = self.template, shape
        joints = self._joints + np.tensordot(beta, t.morph_joints_m, 1) if beta.any() else self._joints
        axes, scale = t.axes, alpha[_SCALES]
        start = joints[_JOINTS]
        bones = self._bones.copy()
        offset = (start - start[_PARENTS]) * scale[_PARENTS][:, None]
        bones[:, :3, 3] = (offset[:, None] @ self._parent_axes)[:, 0]
        tips = np.ones((5, 4))
        tips[:, :3] = (((joints[_TIPS] - start[3::3]) * scale[3::3, None])[:, None] @ axes[3::3])[:, 0]
        return Rest(bones, tips, scale)

    def skin_of(self, beta: Array) -> Array:
        """(64, V) float32 with which posed parts make vertices (LBS as one matrix product); takes milliseconds."""
        t = self.template
        vertices = t.vertices_m + np.tensordot(beta, t.morph_vertices_m, 1)
        start = (t.joints_m + np.tensordot(beta, t.morph_joints_m, 1))[_JOINTS]
        local = (vertices[None] - start[:, None]) @ t.axes  # (16, V, 3)
        homogeneous = np.concatenate([local, np.ones((16, len(vertices), 1))], 2)  # (16, V, 4)
        skin = (homogeneous * t.weights.T[..., None]).transpose(0, 2, 1).reshape(64, -1)
        return np.ascontiguousarray(skin, np.float32)

    def pose(self, root: Array, angles: Array, rest: Rest) -> Posed:
        """The chain at a wrist's rotation (3, 3) and angles (20,) rad."""
        flex = self._flat + angles[_FLEX]  # (15,)
        cf, sf = np.cos(flex), np.sin(flex)
        abd = angles[_ABD]  # (5,)
        ca, sa = np.cos(abd), np.sin(abd)
        local = self._local  # Rz(-abd) Rx(flex) Ry(twist)
        local[1:, 1, 1] = local[1:, 2, 2] = cf
        local[1:, 1, 2], local[1:, 2, 1] = -sf, sf
        base, c, s = local[1::3], cf[::3], sf[::3]
        base[:, 0, 0], base[:, 0, 1], base[:, 0, 2] = ca, sa * c, -sa * s
        base[:, 1, 0], base[:, 1, 1], base[:, 1, 2] = -sa, ca * c, -ca * s
        twist = THUMB_TWIST_PER_FLEX * float(angles[0])
        ct, st = math.cos(twist), math.sin(twist)
        x, z = base[0, :3, 0].copy(), base[0, :3, 2].copy()
        x[2] = 0
        base[0, :3, 0], base[0, :3, 2] = x * ct - z * st, x * st + z * ct
        step = rest.bones @ local
        frames = np.empty((16, 4, 4))
        frames[0] = self._root
        frames[0, :3, :3] = root @ self.template.axes[0]
        np.matmul(frames[0], step[1::3], out=frames[1::3])
        np.matmul(frames[1::3], step[2::3], out=frames[2::3])
        np.matmul(frames[2::3], step[3::3], out=frames[3::3])
        joints = np.zeros((21, 3))
        fingers = joints[1:].reshape(5, 4, 3)
        fingers[:, :3] = frames[1:, :3, 3].reshape(5, 3, 3)
        fingers[:, 3] = (frames[3::3] @ rest.tips_m[..., None])[:, :3, 0]
        return Posed(frames, joints, (c, s, ct, st))

    def screws(self, posed: Posed) -> Array:
        """(6, 20) of the angles: moment about the wrist over direction of the axis. In a part's own frame flexion is
        about x, and abduction about the -z that its own flexion has turned."""
        c, s, ct, st = posed.bend
        axes = self._axes
        axes[_ABD, 1], axes[_ABD, 2] = -s, -c
        axes[0] = ct, THUMB_TWIST_PER_FLEX, st  # the thumb's roll goes with its flexion
        axes[1] = c[0] * st, -s[0], -c[0] * ct
        own = posed.frames[ANGLE_PARTS]  # (20, 4, 4)
        screws = np.empty((20, 6))
        screws[:, 3:] = axis = (own[:, :3, :3] @ axes[..., None])[..., 0]
        screws[:, :3] = cross(own[:, :3, 3], axis)
        return screws.T

    def rows(self, screws: Array, points_m: Array, directions: Array, moved: Array) -> Array:
        """(N, 26) how far points (N, 3) relative to the wrist move along directions (N, 3); moved (N, 20) are the rows
        of `moved` of the parts that they are on. The wrist turns in the outer frame."""
        rows = np.empty((len(points_m), 26))
        rows[:, :3] = directions
        rows[:, 3:6] = cross(points_m, directions)
        np.multiply(rows[:, :6] @ screws, moved, out=rows[:, 6:])
        return rows

    def skin(self, posed: Posed, rest: Rest, skin: Array, at_m: Array) -> Array:
        """Vertices (V, 3) float32 m of a skin (64, V), or of some of its columns, with the wrist at (3,) m."""
        frames = posed.frames[:, :3].astype(np.float32)  # (16, 3, 4)
        frames[:, :, :3] *= rest.scale[:, None, None]
        return (frames.transpose(1, 0, 2).reshape(3, 64) @ skin).T + at_m.astype(np.float32)


def cross(a: Array, b: Array) -> Array:
    """a x b of (N, 3) and (N, 3); np.cross takes ten times as long."""
    return a[:, _NEXT] * b[:, _AFTER] - a[:, _AFTER] * b[:, _NEXT]


def _moves(angle: int, part: int) -> bool:
    while part > 0:
        if ANGLE_PARTS[angle] == part:
            return True
        part = PART_PARENTS[part]
    return False
