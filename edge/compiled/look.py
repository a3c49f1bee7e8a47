"""What the network says of a crop, compiled by numba. See `depth.py`."""

from __future__ import annotations

import math

import numpy as np

from ...hand.arrays import Array
from ..confidence import LEAST_M, RADIUS_M
from ..reading import MOST_LOG_ERROR, POINTS
from .depth import array_of, compiled, types

_f32, _f64 = types.float32, types.float64
_row, _rows, _places = array_of(_f32, 1), array_of(_f32, 2), array_of(_f64, 2)
_ints, _bytes = array_of(types.int64, 1), array_of(types.int8, 1)
_to = (
    array_of(_f32, 2, readonly=False),
    array_of(_f32, 1, readonly=False),
    array_of(_f32, 1, readonly=False),
    array_of(_f64, 1, readonly=False),
    array_of(_f64, 2, readonly=False),
)


@compiled()
def _place(u: float, v: float, d: float, distance: float, half: float, out: Array) -> None:
    """`crop.points_from_uvd` of one point."""
    z = distance + d * half
    scale = z * (half / distance)
    out[0], out[1], out[2] = u * scale, v * scale, z


@compiled(
    types.Tuple((_f64, types.int64))(_rows, _rows, _row, _row, _ints, _ints, _row, _row, _places, _f64, _f64, *_to)
)
def read(
    image: Array, uvd: Array, log_error: Array, hand_logit: Array, ends: Array, skin: Array, weights: Array,
    middle: Array, places: Array, distance: float, half: float,
    vertices: Array, error: Array, joint_error: Array, centre: Array, points: Array,
) -> tuple[float, int]:  # fmt: skip
    """`reading.read` into vertices (3, V) and error (V,), joint_error (21,), centre (3,) and points (POINTS, 3); the
    mean error, m, and how many pixels show the hand. skin (K,) and weights (K,) are each joint's up to its end, of
    ends (21,); half is half the cube, m."""
    far, reach = np.float32(distance), np.float32(half)
    slope = np.float32(half / distance)
    total = np.float32(0)
    aim = np.zeros(3, np.float32)
    for i in range(len(error)):
        z = far + uvd[i, 2] * reach
        scale = z * slope
        vertices[0, i], vertices[1, i], vertices[2, i] = uvd[i, 0] * scale, uvd[i, 1] * scale, z
        error[i] = np.exp(min(log_error[i], np.float32(MOST_LOG_ERROR))) * reach
        total += error[i]
        for k in range(3):
            aim[k] += middle[i] * uvd[i, k]
    k = 0
    for j in range(len(joint_error)):
        expected = np.float32(0)
        while k < ends[j]:
            expected += weights[k] * error[skin[k]]
            k += 1
        joint_error[j] = expected
    _place(aim[0], aim[1], aim[2], distance, half, centre)
    size = image.shape[0] // 2
    taken = np.empty(size * size, np.int32)
    n = 0
    for row in range(size):
        for column in range(size):
            if hand_logit[row * size + column] > 0 and image[2 * row, 2 * column] < 1:
                taken[n] = row * size + column
                n += 1
    for i in range(min(n, POINTS)):
        at = taken[i * (n - 1) // (POINTS - 1) if n > POINTS else i]
        _place(places[at, 0], places[at, 1], image[at // size * 2, at % size * 2], distance, half, points[i])
    return total / len(error), n


@compiled(types.void(_row, _bytes, _f64, _f64, _f64, array_of(_f64, 1, readonly=False)))
def confidence(error: Array, seen: Array, offset: float, slope: float, hidden: float, out: Array) -> None:
    """`confidence.joint_confidence` of errors (21,) into out (21,)."""
    for j in range(len(out)):
        logit = offset + slope * math.log(max(error[j], LEAST_M) / RADIUS_M)
        out[j] = 1 / (1 + math.exp(-logit if seen[j] == 1 else -logit - hidden))
