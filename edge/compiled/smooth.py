"""The One-Euro filter of a hand compiled by numba. See `depth.py`."""

from __future__ import annotations

import math

import numpy as np

from ...hand.arrays import Array
from ..smooth import JUMP_POWER, MOTION_HZ, TURN
from .depth import array_of, compiled, types

_one, _two = array_of(types.float64, 1), array_of(types.float64, 2)
_own_one, _own_two = array_of(types.float64, 1, readonly=False), array_of(types.float64, 2, readonly=False)


@compiled()
def _length(v: Array, i: int, first: int) -> float:
    """Of the wrist's vector that number i belongs to, or its own size."""
    if i >= 6:
        return abs(v[i])
    return math.sqrt(v[first] ** 2 + v[first + 1] ** 2 + v[first + 2] ** 2)


@compiled()
def _vector_between(R: Array, before: Array, out: Array) -> None:
    """`smooth.rotation_vector` of R before^T into out[3:6]."""
    m = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            m[i, j] = R[i, 0] * before[j, 0] + R[i, 1] * before[j, 1] + R[i, 2] * before[j, 2]
    a, e, i9 = m[0, 0], m[1, 1], m[2, 2]
    if a + e + i9 > 0:
        w, x, y, z = 1 + a + e + i9, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    elif a >= e and a >= i9:
        w, x, y, z = m[2, 1] - m[1, 2], 1 + a - e - i9, m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]
    elif e >= i9:
        w, x, y, z = m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], 1 - a + e - i9, m[1, 2] + m[2, 1]
    else:
        w, x, y, z = m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], 1 - a - e + i9
    sine = math.sqrt(x * x + y * y + z * z)
    if w < 0:
        w, sine = -w, -sine
    scale = 2 / w if abs(sine) < 1e-12 * w else 2 * math.atan2(abs(sine), w) / sine
    out[3], out[4], out[5] = x * scale, y * scale, z * scale


@compiled()
def _turn_by(x: float, y: float, z: float, R: Array) -> None:
    """R becomes `smooth.rotation_matrix` of the vector, times R."""
    angle2 = x * x + y * y + z * z
    s, c = 1.0, 0.5
    if angle2 >= 1e-12:
        angle = math.sqrt(angle2)
        s, c = math.sin(angle) / angle, (1 - math.cos(angle)) / angle2
    for k in range(3):
        a, b, d = R[0, k], R[1, k], R[2, k]
        R[0, k] = (1 - c * (y * y + z * z)) * a + (c * x * y - s * z) * b + (c * x * z + s * y) * d
        R[1, k] = (c * x * y + s * z) * a + (1 - c * (x * x + z * z)) * b + (c * y * z - s * x) * d
        R[2, k] = (c * x * z - s * y) * a + (c * y * z + s * x) * b + (1 - c * (x * x + y * y)) * d


@compiled(types.void(_two, _one, _two, _one, _two, types.float64, _own_one, _own_two, _own_one, _own_one))
def step(
    channels: Array, raw: Array, R: Array, raw_before: Array, R_before: Array, dt: float,
    value: Array, filtered: Array, speed: Array, motion: Array,
) -> None:  # fmt: skip
    """`Smoother._step`: channels (5, 26) are its cut-offs, openings, still, speeds' cut-offs and 1 / jumps, value to
    motion its state, moved on."""
    turn = TURN * dt
    travel, off, move = raw - raw_before, raw - value, np.empty(26)
    _vector_between(R, R_before, travel)
    _vector_between(R, filtered, off)
    for i in range(26):
        gain = turn * channels[3, i]
        speed[i] += (travel[i] / dt - speed[i]) * (gain / (1 + gain))
    follow = 1 / (1 + 1 / (turn * MOTION_HZ))
    for i in range(26):
        first = i // 3 * 3
        opened = turn * (channels[0, i] + channels[1, i] * max(_length(speed, i, first) - channels[2, i], 0.0))
        loose = max(opened, (_length(off, i, first) * channels[4, i]) ** JUMP_POWER)
        move[i] = loose / (1 + loose) * off[i]
        motion[i] += (move[i] / dt - motion[i]) * follow
        value[i] += move[i]
    value[3:6] = 0
    _turn_by(move[3], move[4], move[5], filtered)
