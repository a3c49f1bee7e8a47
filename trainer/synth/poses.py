"""Random hands: joint angles inside the limits and without fingers passing through each other, shapes, views.

Every draw comes from the generator given, so a sample depends on its seed alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...hand import se3
from ...hand.kinematics import clamp_angles, forward_kinematics
from ...hand.poses import POSES
from ...hand.skeleton import ANGLE_LIMITS_RAD, ANGLE_NAMES
from ...hand.template import HandTemplate

Array = NDArray[Any]
_INDEX = {name: i for i, name in enumerate(ANGLE_NAMES)}
_NAMED = np.stack(list(POSES.values()))
_FINGER_MCP = [_INDEX[f"{f}_mcp_flex"] for f in ("index", "middle", "ring", "little")]
# Half the thickness of a finger at its bones, for the penetration test (m): thumb first, proximal to distal.
_RADIUS = np.array([[0.011, 0.0095, 0.0085]] + [[0.0095, 0.0085, 0.007]] * 3 + [[0.008, 0.007, 0.006]])
_SEGMENTS = np.array([[1 + 4 * f + k, 2 + 4 * f + k] for f in range(5) for k in range(3)])  # (15, 2) joints
_FINGER_OF = np.repeat(np.arange(5), 3)
_PAIRS = np.array([(a, b) for a in range(15) for b in range(a) if _FINGER_OF[a] != _FINGER_OF[b]])
_ALONG = np.array([0.1, 0.4, 0.7, 1.0])


def sample_angles(t: HandTemplate, rng: np.random.Generator, tries: int = 12) -> Array:
    """20 joint angles (rad) inside the limits whose bones keep their distance from each other and the palm."""
    angles = np.stack([_draw_angles(rng) for _ in range(4)])
    for _ in range(tries // 4):
        free = ~penetrates(t, angles)
        if free.any():
            return angles[np.argmax(free)]
        angles = np.stack([_draw_angles(rng) for _ in range(4)])
    return _NAMED[0].copy()  # the open hand


def _draw_angles(rng: np.random.Generator) -> Array:
    low, high = ANGLE_LIMITS_RAD.T
    kind = rng.random()
    if kind < 0.45:  # between two named hand shapes, finger by finger or as a whole
        a, b = _NAMED[rng.integers(len(_NAMED), size=2)]
        if rng.random() < 0.5:
            mix = np.full(20, rng.beta(0.6, 0.6))
        else:
            mix = np.repeat(rng.beta(0.4, 0.4, 5), 4)
        angles = a + mix * (b - a) + rng.normal(0, np.radians(rng.choice([4, 9])), 20)
    elif kind < 0.8:  # every finger curls by itself, its joints together
        curl = np.where(rng.random(4) < 0.45, rng.choice([0.0, 1.0], 4), rng.random(4))
        if rng.random() < 0.4:
            curl = curl[rng.integers(4)] + rng.normal(0, 0.12, 4)
        angles = rng.uniform(low, high)
        mcp = np.radians(-5 + 92 * np.clip(curl + rng.normal(0, 0.15, 4), -0.15, 1))
        pip = np.radians(2 + 100 * np.clip(curl + rng.normal(0, 0.15, 4), -0.1, 1.05))
        angles[_FINGER_MCP] = mcp
        angles[[i + 2 for i in _FINGER_MCP]] = pip
        thumb = _NAMED[rng.integers(len(_NAMED)), :4]
        if rng.random() < 0.6:
            angles[:4] = thumb + rng.normal(0, np.radians(8), 4)
    else:
        angles = rng.uniform(low, high)
    # The tip joint follows the middle one (a shared tendon); spread goes away as the knuckle bends.
    for i in _FINGER_MCP:
        if rng.random() < 0.8:
            angles[i + 3] = 0.62 * angles[i + 2] + rng.normal(0, np.radians(7))
        angles[i + 1] *= 1 - 0.75 * np.clip(angles[i] / np.radians(80), 0, 1)
    return clamp_angles(angles)


def penetrates(t: HandTemplate, angles: Array) -> NDArray[np.bool_]:
    """Whether bones of two fingers, or a finger and the palm, come closer than flesh allows; (N, 20) to (N,)."""
    n = len(angles)
    theta = np.zeros((n, 26))
    theta[:, 6:] = angles
    joints = forward_kinematics(t, theta, np.ones((n, 6)), np.zeros((n, 7))).joints_m
    start, end = joints[:, _SEGMENTS[:, 0]], joints[:, _SEGMENTS[:, 1]]
    radius = _RADIUS.ravel()
    gap = segment_distance(start[:, _PAIRS[:, 0]], end[:, _PAIRS[:, 0]], start[:, _PAIRS[:, 1]], end[:, _PAIRS[:, 1]])
    touching = 0.8 * (radius[_PAIRS[:, 0]] + radius[_PAIRS[:, 1]])
    between = (gap < touching).any(1)
    # The palm is a slab: finger points over it must stay on its palmar side.
    points = start[:, 1:, None] + (end - start)[:, 1:, None] * _ALONG[:, None]  # the thumb's metacarpal is palm
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    over = (y > 0.015) & (y < 0.085) & (np.abs(x) < 0.034)
    inside = over & (z > -0.017) & (z < 0.02)
    return between | inside.any((1, 2))


def segment_distance(a0: Array, a1: Array, b0: Array, b1: Array) -> Array:
    """Least distance between segments a0-a1 and b0-b1, all (..., 3), in their unit."""
    u, v, w = a1 - a0, b1 - b0, a0 - b0
    a, b, c = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    d, e = (u * w).sum(-1), (v * w).sum(-1)
    det = np.maximum(a * c - b * b, 1e-12)
    s = np.clip((b * e - c * d) / det, 0, 1)
    r = np.clip((b * s + e) / np.maximum(c, 1e-12), 0, 1)
    s = np.clip((b * r - d) / np.maximum(a, 1e-12), 0, 1)
    return np.linalg.norm(w + s[..., None] * u - r[..., None] * v, axis=-1)


def sample_shape(rng: np.random.Generator) -> tuple[Array, Array]:
    """alpha (6,) and beta (7,): nine hands in ten are 158 to 220 mm long, the others 134 to 253."""
    alpha = np.clip(rng.normal(1, 0.035, 6), 0.88, 1.12)
    beta = np.clip(rng.normal(0, 0.4, 7), -1, 1)
    beta[2] = rng.uniform(-1, 0.9)  # size
    return alpha, beta


def sample_view(rng: np.random.Generator) -> Array:
    """Rotation (3, 3) of the hand in the crop camera: half of all draws any, half palm or back towards the camera."""
    if rng.random() < 0.5:
        q = rng.normal(size=4)
        return _rotation_from_quaternion(q / np.linalg.norm(q))
    # The hand's +z (back) towards or away from the camera within a cone, any roll.
    flip = rng.random() < 0.5
    base = se3.so3_exp(np.array([np.pi, 0, 0])) if flip else np.eye(3)
    tilt_axis = rng.uniform(0, 2 * np.pi)
    tilt = np.radians(60) * np.sqrt(rng.random())
    tilted = se3.so3_exp(tilt * np.array([np.cos(tilt_axis), np.sin(tilt_axis), 0]))
    roll = se3.so3_exp(np.array([0, 0, rng.uniform(0, 2 * np.pi)]))
    return roll @ tilted @ base


def _rotation_from_quaternion(q: Array) -> Array:
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
