"""Forward kinematics and linear blend skinning of the 26-DoF hand, batched numpy.

DeepHPS (Malik et al. 2018), section 4.1: morphable rest shape (eq. 3), kinematic chain with bone scales (eq. 4),
skinning (eq. 5) with C = M M*^-1 (eq. 6). A bone scale also scales its part's vertices about the part's joint, so
skin and bone stay together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import se3
from .arrays import Array
from .skeleton import (
    ANGLE_LIMITS_RAD,
    ANGLE_PARTS,
    IS_FLEXION,
    PARENT_OR_PALM,
    PART_JOINTS,
    PART_SCALES,
    THUMB_TWIST_PER_FLEX,
    TIPS,
)
from .template import HandTemplate

_FLEX = np.flatnonzero(IS_FLEXION)
_ABD = np.flatnonzero(~IS_FLEXION)


class Skeleton(NamedTuple):
    """Posed skeletons: joints_m (N, 21, 3); parts (N, 16, 3, 4) map rest points of a part to posed ones (eq. 6);
    rotations (N, 16, 3, 3) of the parts."""

    joints_m: Array
    parts: Array
    rotations: Array


class Shape(NamedTuple):
    """A hand's own shape: bone scales alpha (6,) and morph weights beta (7,)."""

    alpha: Array
    beta: Array


AVERAGE = Shape(np.ones(6), np.zeros(7))


def forward_kinematics(t: HandTemplate, theta: Array, alpha: Array, beta: Array) -> Skeleton:
    """Pose the skeleton (DeepHPS, eq. 4). theta (N, 26) m and rad, alpha (N, 6), beta (N, 7)."""
    rest = t.joints_m + np.einsum("nk,kjc->njc", beta, t.morph_joints_m)  # (N, 21, 3), eq. 3 for the joints
    return chain(part_rotations(t, theta[:, 6:]), se3.so3_exp(theta[:, 3:6]), theta[:, :3], alpha, rest)


def chain(local: Array, root: Array, translation: Array, alpha: Array, rest: Array) -> Skeleton:
    """The kinematic chain: local (N, 16, 3, 3) rotations of parts in their parents, root (N, 3, 3) and translation
    (N, 3) m of the wrist, alpha (N, 6), rest joints (N, 21, 3) m."""
    n = len(local)
    scale = alpha[:, PART_SCALES]  # (N, 16)
    start = rest[:, PART_JOINTS]  # (N, 16, 3)
    bone = (start - start[:, PARENT_OR_PALM]) * scale[:, PARENT_OR_PALM, None]
    glob = np.empty((n, 16, 3, 3))
    origin = np.empty((n, 16, 3))
    glob[:, 0], origin[:, 0] = root, translation
    parent: Any = slice(0, 1)
    for level in range(1, 4):  # the same bone of all fingers at once
        part = slice(level, 16, 3)
        glob[:, part] = glob[:, parent] @ local[:, part]
        origin[:, part] = origin[:, parent] + (glob[:, parent] @ bone[:, part, :, None])[..., 0]
        parent = part
    parts = np.empty((n, 16, 3, 4))
    parts[..., :3] = glob * scale[..., None, None]
    parts[..., 3] = origin - (parts[..., :3] @ start[..., None])[..., 0]
    joints = np.empty((n, 21, 3))
    joints[:, PART_JOINTS] = origin
    last = parts[:, 3::3]  # (N, 5, 3, 4) the distal phalanges
    joints[:, TIPS] = (last[..., :3] @ rest[:, TIPS][..., None])[..., 0] + last[..., 3]
    return Skeleton(joints, parts, glob)


def part_rotations(t: HandTemplate, angles_rad: Array) -> Array:
    """Rotation of every part in its parent, (N, 20) rad to (N, 16, 3, 3) in the template's frame; the palm's is I."""
    n = len(angles_rad)
    flex = np.zeros((n, 16))
    abd = np.zeros((n, 16))
    twist = np.zeros((n, 16))
    flex[:, ANGLE_PARTS[_FLEX]] = angles_rad[:, _FLEX]
    abd[:, ANGLE_PARTS[_ABD]] = angles_rad[:, _ABD]
    twist[:, 1] = THUMB_TWIST_PER_FLEX * flex[:, 1]
    flex += t.flat_flex_rad
    ca, sa, cf, sf, ct, st = np.cos(abd), np.sin(abd), np.cos(flex), np.sin(flex), np.cos(twist), np.sin(twist)
    local = np.empty((n, 16, 3, 3))  # Rz(-abd) Rx(flex) Ry(twist) in the part's anatomical frame
    local[..., 0, 0] = ca * ct + sa * sf * st
    local[..., 0, 1] = sa * cf
    local[..., 0, 2] = ca * st - sa * sf * ct
    local[..., 1, 0] = -sa * ct + ca * sf * st
    local[..., 1, 1] = ca * cf
    local[..., 1, 2] = -sa * st - ca * sf * ct
    local[..., 2, 0] = -cf * st
    local[..., 2, 1] = sf
    local[..., 2, 2] = cf * ct
    return t.axes @ local @ np.swapaxes(t.axes, -1, -2)


def angles_from_rotations(t: HandTemplate, rotation: Array) -> Array:
    """Inverse of `part_rotations`: (N, 16, 3, 3) in the parent to the nearest angles (N, 20) rad, limits ignored."""
    local = np.swapaxes(t.axes, -1, -2) @ rotation @ t.axes
    flex = np.arctan2(local[..., 2, 1], np.hypot(local[..., 0, 1], local[..., 1, 1]))
    abd = np.arctan2(local[..., 0, 1], local[..., 1, 1])
    # One axis only: the middle and distal joints take all of their rotation about the flexion axis.
    hinge = np.arctan2(local[..., 2, 1] - local[..., 1, 2], local[..., 1, 1] + local[..., 2, 2])
    has_abd = np.zeros(16, bool)
    has_abd[ANGLE_PARTS[_ABD]] = True
    # Past a quarter turn flexion and abduction both wrap; the solution with |abd| < 90 deg is the hand's.
    over = np.abs(abd) > np.pi / 2
    flex = np.where(over, np.copysign(np.pi, flex) - flex, flex)
    abd = np.where(over, abd - np.copysign(np.pi, abd), abd)
    flex = np.where(has_abd, flex, hinge) - t.flat_flex_rad
    angles = np.empty((*rotation.shape[:-3], 20))
    angles[..., _FLEX] = flex[..., ANGLE_PARTS[_FLEX]]
    angles[..., _ABD] = abd[..., ANGLE_PARTS[_ABD]]
    return angles


def clamp_angles(angles_rad: Array) -> Array:
    """Joint angles (..., 20) rad put inside their anatomical limits."""
    return np.clip(angles_rad, ANGLE_LIMITS_RAD[:, 0], ANGLE_LIMITS_RAD[:, 1])


def rest_vertices(t: HandTemplate, beta: Array) -> Array:
    """Morphable rest hand, (N, 7) to (N, V, 3) m (DeepHPS, eq. 3)."""
    return t.vertices_m + np.einsum("nk,kvc->nvc", beta, t.morph_vertices_m)


def skin(weights: Array, vertices_m: Array, parts: Array) -> Array:
    """Linear blend skinning (DeepHPS, eq. 5): weights (V, P), rest (N, V, 3), parts (N, P, 3, 4) to (N, V, 3) m."""
    n, p = parts.shape[:2]
    blend = (parts.reshape(n, p, 12).transpose(0, 2, 1) @ weights.T).reshape(n, 3, 4, -1)  # (N, 3, 4, V)
    x, y, z = (vertices_m[:, None, :, i] for i in range(3))
    posed = blend[:, :, 0] * x + blend[:, :, 1] * y + blend[:, :, 2] * z + blend[:, :, 3]  # (N, 3, V)
    return posed.transpose(0, 2, 1)


def pose_hand(t: HandTemplate, theta: Array, alpha: Array, beta: Array) -> tuple[Array, Array]:
    """HPSL of DeepHPS (eq. 1): (N, 26), (N, 6), (N, 7) to joints (N, 21, 3) and vertices (N, V, 3), m."""
    skeleton = forward_kinematics(t, theta, alpha, beta)
    return skeleton.joints_m, skin(t.weights, rest_vertices(t, beta), skeleton.parts)
