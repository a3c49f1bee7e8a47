"""One hand's kinematic chain, fast: its bones, what each angle moves, and the skin, for the loop.

The slow twin is `hand/kinematics.py`. Parts are held in their anatomical frames (columns flexion axis, bone, palmar)
and relative to the wrist, so that a pose is one product of 4x4 matrices a bone, and a point's motion under all 26
degrees of freedom is its wrench against 20 screws.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.kinematics import Shape
from ..hand.normals import vertex_normals
from ..hand.skeleton import (
    ANGLE_PARTS,
    IS_FLEXION,
    PARENT_OR_PALM,
    PART_JOINTS,
    PART_PARENTS,
    PART_SCALES,
    THUMB_TWIST_PER_FLEX,
    TIPS,
)
from ..hand.template import HandTemplate

_PARENTS = np.array(PARENT_OR_PALM)
_JOINTS, _TIPS, _SCALES = list(PART_JOINTS), list(TIPS), list(PART_SCALES)
JOINT_PARTS = np.array([_JOINTS.index(j) if j in _JOINTS else _TIPS.index(j) * 3 + 3 for j in range(21)])


class Rest(NamedTuple):
    """A shape's bones at rest. Each angle has a link, a finger's flexion, abduction and two hinges: the 4x4 matrix from
    the frame before it to the frame after it is links (3, 20, 16) times 1, cosine and sine. tips_m (5, 4, 1)
    homogeneous in the distal parts' frames, scale (16,) of the parts' skin."""

    links: Array
    tips_m: Array
    scale: Array


class Posed(NamedTuple):
    """A posed chain relative to its wrist: frames (16, 4, 4) of the parts, joints_m (21, 3), spread (5, 4, 4) the
    frames of the fingers' first parts before they flex."""

    frames: Array
    joints_m: Array
    spread: Array


class Chain:
    """Holds what is fixed of the template."""

    def __init__(self, t: HandTemplate) -> None:
        self.template = t
        moved = [[_moves(a, p) for a in range(20)] for p in range(16)]
        self.moved = np.array(moved, float)  # (16, 20) which angles move a part
        self._joints = t.joints_m
        self._parent_axes = t.axes[_PARENTS]
        self._bones = np.zeros((16, 4, 4))
        self._bones[:, :3, :3] = np.swapaxes(self._parent_axes, 1, 2) @ t.axes
        self._bones[:, 3, 3] = 1
        self._root_axes = t.axes[0]
        self._root = np.zeros((4, 4))
        self._root[3, 3] = 1
        self._turns = _turns()
        self.flat_angles = np.zeros(20)
        self.flat_angles[IS_FLEXION] = t.flat_flex_rad[1:]

    def at_rest(self, shape: Shape) -> Rest:
        """What a shape's bones fix."""
        t, (alpha, beta) = self.template, shape
        joints = self._joints + np.tensordot(beta, t.morph_joints_m, 1) if beta.any() else self._joints
        axes, scale = t.axes, alpha[_SCALES]
        start = joints[_JOINTS]
        bones = self._bones.copy()
        offset = (start - start[_PARENTS]) * scale[_PARENTS][:, None]
        bones[:, :3, 3] = (offset[:, None] @ self._parent_axes)[:, 0]
        before = np.broadcast_to(np.eye(4), (5, 4, 4, 4)).copy()  # flexion begins where abduction ends
        before[:, 1:] = bones[1:].reshape(5, 3, 4, 4)
        tips = np.ones((5, 4, 1))
        tips[:, :3, 0] = (((joints[_TIPS] - start[3::3]) * scale[3::3, None])[:, None] @ axes[3::3])[:, 0]
        return Rest((before @ self._turns).reshape(3, 20, 16), tips, scale)

    def skin_of(self, beta: Array) -> Array:
        """(64, V) float32 with which posed parts make vertices (LBS as one matrix product); takes milliseconds."""
        t = self.template
        vertices = t.vertices_m + np.tensordot(beta, t.morph_vertices_m, 1)
        start = (t.joints_m + np.tensordot(beta, t.morph_joints_m, 1))[_JOINTS]
        local = (vertices[None] - start[:, None]) @ t.axes  # (16, V, 3)
        homogeneous = np.concatenate([local, np.ones((16, len(vertices), 1))], 2)  # (16, V, 4)
        skin = (homogeneous * t.weights.T[..., None]).transpose(0, 2, 1).reshape(64, -1)
        return np.ascontiguousarray(skin, np.float32)

    def normal_skin(self) -> Array:
        """(48, V) float32 with which the parts' rotations make the skin's normals, of about unit length."""
        t = self.template
        local = vertex_normals(t.vertices_m, t.faces)[None] @ t.axes  # (16, V, 3)
        skin = (local * t.weights.T[..., None]).transpose(0, 2, 1).reshape(48, -1)
        return np.ascontiguousarray(skin, np.float32)

    def pose(self, root: Array, angles: Array, rest: Rest) -> Posed:
        """The chain at a wrist's rotation (3, 3) and angles (20,) rad."""
        bent = (self.flat_angles + angles)[:, None]
        still, along, across = rest.links
        links = (still + np.cos(bent) * along + np.sin(bent) * across).reshape(5, 4, 4, 4)
        frames = np.empty((16, 4, 4))
        frames[0] = self._root
        frames[0, :3, :3] = root @ self._root_axes
        fingers = frames[1:].reshape(5, 3, 4, 4)
        spread = frames[0] @ links[:, 1]
        np.matmul(spread, links[:, 0], out=fingers[:, 0])
        twist = THUMB_TWIST_PER_FLEX * float(angles[0])
        ct, st = math.cos(twist), math.sin(twist)
        fingers[0, 0, :3, :3:2] = fingers[0, 0, :3, :3:2] @ np.array(((ct, st), (-st, ct)))
        np.matmul(fingers[:, 0], links[:, 2], out=fingers[:, 1])
        np.matmul(fingers[:, 1], links[:, 3], out=fingers[:, 2])
        joints = np.zeros((21, 3))
        points = joints[1:].reshape(5, 4, 3)
        points[:, :3] = fingers[..., :3, 3]
        points[:, 3] = (fingers[:, 2] @ rest.tips_m)[:, :3, 0]
        return Posed(frames, joints, spread)

    def angles(self, rotation: Array) -> Array:
        """Nearest angles (20,) rad to the parts' rotations (16, 3, 3) from the template; limits ignored. As
        `kinematics.angles_from_rotations`, of the parts of one hand."""
        axes = self.template.axes
        local = np.swapaxes(rotation.take(_PARENTS, 0) @ axes, 1, 2) @ (rotation @ axes)
        fingers = local[1:].reshape(5, 3, 3, 3)
        angles = np.empty((5, 4))
        base, hinges = fingers[:, 0], fingers[:, 1:]
        x, y = base[:, 0, 1], base[:, 1, 1]
        flex, abd = np.arctan2(base[:, 2, 1], np.hypot(x, y)), np.arctan2(x, y)
        if y.min() < 0:  # past a quarter turn both wrap; the solution with |abd| < 90 deg is the hand's
            flex = np.where(y < 0, np.copysign(np.pi, flex) - flex, flex)
            abd = np.where(y < 0, abd - np.copysign(np.pi, abd), abd)
        angles[:, 0], angles[:, 1] = flex, abd
        # One axis only: a hinge takes all of its rotation about it.
        angles[:, 2:] = np.arctan2(hinges[..., 2, 1] - hinges[..., 1, 2], hinges[..., 1, 1] + hinges[..., 2, 2])
        return angles.ravel() - self.flat_angles

    def screws(self, posed: Posed) -> Array:
        """(6, 20) of the angles: moment about the wrist over direction of the axis. Flexion is about a frame's x, and
        abduction about -z."""
        fingers = posed.frames[1:].reshape(5, 3, 4, 4)
        axis = np.empty((5, 4, 3))
        axis[:, 0], axis[:, 1], axis[:, 2:] = posed.spread[:, :3, 0], -posed.spread[:, :3, 2], fingers[:, 1:, :3, 0]
        axis[0, 0] += THUMB_TWIST_PER_FLEX * fingers[0, 0, :3, 1]  # the thumb's roll goes with its flexion
        screws = np.empty((20, 6))
        screws[:, 3:] = flat = axis.reshape(20, 3)
        screws[:, :3] = cross(posed.frames[:, :3, 3].take(ANGLE_PARTS, 0), flat)
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
        vertices = frames.transpose(1, 0, 2).reshape(3, 64) @ skin
        vertices += at_m.astype(np.float32)[:, None]
        return vertices.T


def cross(a: Array, b: Array) -> Array:
    """a x b of (N, 3) and (N, 3); np.cross takes ten times as long."""
    (x, y, z), (u, v, w) = a.T, b.T
    out = np.empty((len(a), 3))
    out[:, 0], out[:, 1], out[:, 2] = y * w - z * v, z * u - x * w, x * v - y * u
    return out


def _turns() -> Array:
    """(3, 5, 4, 4, 4): what of the turn of each finger's angles is constant, goes with the cosine and with the sine."""
    still, along, across = np.zeros((3, 5, 4, 4, 4))
    still[..., 3, 3] = 1
    for angle in range(4):
        axis, first, second = (2, 1, 0) if angle == 1 else (0, 1, 2)  # flexion about x, abduction about -z
        still[:, angle, axis, axis] = along[:, angle, first, first] = along[:, angle, second, second] = 1
        across[:, angle, first, second], across[:, angle, second, first] = -1, 1
    return np.stack([still, along, across])


def _moves(angle: int, part: int) -> bool:
    while part > 0:
        if ANGLE_PARTS[angle] == part:
            return True
        part = PART_PARENTS[part]
    return False
