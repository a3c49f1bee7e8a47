"""Thumbs that touch: pinches with each finger or all of them, key grips, the thumb on a finger's middle segment.

Angles that make two points of skin meet are found once a template by damped least squares from loose starts, about as a
hand would: the thumb moves freely, the fingers it meets bend together.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...hand.arrays import Array
from ...hand.kinematics import clamp_angles, forward_kinematics
from ...hand.template import HandTemplate

STARTS = 32  # loose starts a touch
STEPS = 12
REACHED_M = 0.004
BETWEEN_M = np.array([0.018, 0.0165, 0.0155])  # from bone to bone through the flesh of thumb and finger
TIP_BEND = 0.55  # the tip joint's share of the middle joint's flexion while a touch is looked for
_MCP = np.array([4, 8, 12, 16])


class Touch(NamedTuple):
    """Where the thumb's pad goes: fingers (0 index .. 3 little), bone 0 proximal .. 2 distal, share of its length, the
    side of the skin, and the range the knuckle and middle joint start in (degrees)."""

    fingers: tuple[int, ...]
    bone: int
    along: float
    side: str
    mcp_deg: tuple[float, float]
    pip_deg: tuple[float, float]


TOUCHES = (
    *(Touch((f,), 2, 0.6, "palmar", (35, 75), (15, 70)) for f in (0, 0, 1, 2, 3)),  # pinches
    *(Touch((f,), 2, 0.9, "palmar", (10, 60), (40, 95)) for f in (0, 1, 2, 3)),  # tip to tip, an O
    Touch((0, 1, 2, 3), 2, 0.7, "palmar", (20, 75), (5, 60)),  # all tips, a beak
    *(Touch((0,), bone, along, "radial", (20, 80), (30, 95)) for bone, along in ((1, 0.5), (2, 0.4))),  # key grip
    *(Touch((f,), 1, 0.5, "palmar", (40, 90), (10, 70)) for f in (0, 1, 2)),  # counting on segments
)


@lru_cache(maxsize=2)
def touches(t: HandTemplate) -> tuple[Array, NDArray[np.bool_]]:
    """Hands (N, 20) rad whose thumb touches, the other fingers straight, and which fingers it meets (N, 4)."""
    rng = np.random.default_rng(20)  # the same touches for every seed
    kind = np.repeat(np.arange(len(TOUCHES)), STARTS)
    met = np.array([[f in touch.fingers for f in range(4)] for touch in TOUCHES])[kind]  # (N, 4)
    angles = _starts(rng, kind, met)
    for _ in range(STEPS):
        angles = _step(t, angles, kind, met)
    reached = np.linalg.norm(_gap(t, angles, kind, met), axis=1) < REACHED_M
    return angles[reached], met[reached]


def _starts(rng: np.random.Generator, kind: Array, met: Array) -> Array:
    n = len(kind)
    angles = np.zeros((n, 20))
    angles[:, :4] = np.radians([20, 14, 10, 20] + [12, 9, 14, 18] * rng.standard_normal((n, 4)))
    for offset, ranges in ((0, [x.mcp_deg for x in TOUCHES]), (2, [x.pip_deg for x in TOUCHES])):
        least, most = np.array(ranges)[kind].T
        bend = np.radians(rng.uniform(least, most))
        angles[:, _MCP + offset] = met * bend[:, None]
    angles[:, _MCP + 1] = np.radians([-3, 0, 3, 5] + rng.normal(0, 3, (n, 4)))
    angles[:, _MCP + 3] = TIP_BEND * angles[:, _MCP + 2]
    return angles


def _step(t: HandTemplate, angles: Array, kind: Array, met: Array) -> Array:
    """One damped step in the thumb's four angles and the common knuckle and middle flexion of the fingers it meets."""
    gap, eps = _gap(t, angles, kind, met), 1e-4
    moves = np.zeros((6, len(angles), 20))  # what each unknown turns
    moves[np.arange(4), :, np.arange(4)] = 1
    moves[4][:, _MCP] = 2 * met  # fingers give way more readily than the thumb
    moves[5][:, _MCP + 2] = 2 * met
    moves[5][:, _MCP + 3] = 2 * TIP_BEND * met
    jacobian = np.stack([(_gap(t, angles + eps * m, kind, met) - gap) / eps for m in moves], -1)  # (N, 3, 6)
    damped = jacobian @ np.swapaxes(jacobian, 1, 2) + 2e-4 * np.eye(3)
    change = -(np.swapaxes(jacobian, 1, 2) @ np.linalg.solve(damped, gap[..., None]))[..., 0]  # (N, 6)
    return clamp_angles(angles + np.einsum("nk,knj->nj", np.clip(change, -0.3, 0.3), moves))


def _gap(t: HandTemplate, angles: Array, kind: Array, met: Array) -> Array:
    """How far the thumb's pad is from touching (N, 3) m; of several fingers it meets the mean point."""
    n = len(angles)
    theta = np.zeros((n, 26))
    theta[:, 6:] = angles
    hand = forward_kinematics(t, theta, np.ones((n, 6)), np.zeros((n, 7)))
    frames = hand.rotations @ t.axes  # (N, 16, 3, 3) columns flexion axis, bone, palmar
    pad = 0.35 * hand.joints_m[:, 3] + 0.65 * hand.joints_m[:, 4]
    rows = np.arange(n)[:, None]
    bone = np.array([x.bone for x in TOUCHES])[kind][:, None]  # (N, 1)
    first = bone + np.array([5, 9, 13, 17])  # (N, 4) joint where the bone begins
    along = np.array([x.along for x in TOUCHES])[kind][:, None, None]
    radial = np.array([x.side == "radial" for x in TOUCHES])[kind][:, None, None]
    frame = frames[rows, bone + np.array([4, 7, 10, 13])]  # (N, 4, 3, 3)
    outward = np.where(radial, frame[..., 0], frame[..., 2])
    points = (1 - along) * hand.joints_m[rows, first] + along * hand.joints_m[rows, first + 1]
    share = met / met.sum(1, keepdims=True)
    point, outward = ((x * share[..., None]).sum(1) for x in (points, outward))
    facing = outward - frames[:, 3, :, 2]  # pads seldom face each other squarely: meet halfway
    facing /= np.linalg.norm(facing, axis=1, keepdims=True)
    return pad - point - BETWEEN_M[bone[:, 0], None] * facing
