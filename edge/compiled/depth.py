"""The loop's arithmetic on depth pictures compiled by numba, and how the rest of it (the other files here) is compiled.

Only `fast.py` imports these files, and only when it is asked for. Every function has a slow twin in numpy, named beside
it, and `tests/test_fast.py` compares the pairs. What is called from outside has a signature, so that importing this
compiles or loads all there is, and nothing ever compiles in the middle of a frame. numba's own linear algebra is not
used: it would need scipy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from ...hand.arrays import Array
from ...hand.crop import BACKGROUND
from ..look import GAUGE_POINTS
from ..visibility import BEHIND_M, NEAREST_M, STEP_M

types: Any = numba.types
F = TypeVar("F", bound=Callable[..., Any])
LOOSE = {"contract", "reassoc", "nsz", "arcp"}  # sums in any order; NaN stays NaN


def array_of(dtype: Any, ndim: int, layout: str = "C", readonly: bool = True) -> Any:
    return types.Array(dtype, ndim, layout, readonly=readonly)


def compiled(signature: Any = None, exact: bool = False) -> Callable[[F], F]:
    """Compile a function; one that is called from outside has a signature, and is kept."""
    options = {"error_model": "numpy", "fastmath": False if exact else LOOSE}
    njit: Any = numba.njit
    decorate: Callable[[F], F] = njit(signature, cache=True, **options) if signature is not None else njit(**options)
    return decorate


@compiled()
def nearest(points: Array, places: Array, n: int, which: Array, squared: Array) -> None:
    """For each of the points (3, N) float32 which (N,) int32 of the first n of the places (3, V) float32 is nearest,
    and its squared distance (N,) float32."""
    squared[:] = np.float32(np.inf)
    which[:] = 0
    for v in range(n):
        x, y, z = places[0, v], places[1, v], places[2, v]
        for i in range(len(which)):
            a, b, c = points[0, i] - x, points[1, i] - y, points[2, i] - z
            d = a * a + b * b + c * c
            nearer = d < squared[i]
            which[i] = np.int32(v) if nearer else which[i]
            squared[i] = d if nearer else squared[i]


_depth, _vector, _matrix = array_of(types.uint16, 2), array_of(types.float64, 1), array_of(types.float64, 2)


@compiled(types.float64(_matrix, array_of(types.float32, 2, "A")))
def fit_mm(points: Array, mesh: Array) -> float:
    """`look.fit_mm`, mesh float32."""
    n = len(points)
    if n == 0:
        return math.nan
    stride = (n + GAUGE_POINTS - 1) // GAUGE_POINTS
    few, places = np.empty((3, (n + stride - 1) // stride), np.float32), np.empty((3, (len(mesh) + 1) // 2), np.float32)
    for i in range(3):
        for k in range(few.shape[1]):
            few[i, k] = points[k * stride, i] - mesh[0, i]
        for k in range(places.shape[1]):
            places[i, k] = mesh[2 * k, i] - mesh[0, i]
    which, squared = np.empty(few.shape[1], np.int32), np.empty(few.shape[1], np.float32)
    nearest(few, places, places.shape[1], which, squared)
    squared.sort()
    k = len(squared)
    return 500 * (math.sqrt(squared[(k - 1) // 2]) + math.sqrt(squared[k // 2]))


@compiled(types.void(array_of(types.int8, 1, readonly=False), _depth, _vector, _matrix, _vector))
def visible(seen: Array, depth: Array, camera: Array, joints: Array, reach: Array) -> None:
    """`visibility.visible` into seen (21,) int8; camera is fx, fy, cx, cy and the depth's unit (m), no distortion."""
    fx, fy, cx, cy, unit = camera
    for j in range(len(seen)):
        seen[j] = -1
        x, y, z = joints[j]
        if not z > NEAREST_M:
            continue
        step = max(np.rint(fx * STEP_M / z), 1.0)
        column, row = x / z * fx + cx, y / z * fy + cy
        hiding = skin = 0
        for k in range(9):
            u, v = np.rint(column + step * (k % 3 - 1)), np.rint(row + step * (k // 3 - 1))
            if not (0 <= u < depth.shape[1] and 0 <= v < depth.shape[0]):
                continue
            count = depth[int(v), int(u)]
            in_front = z - count * unit
            if count == 0 or in_front <= -BEHIND_M:
                continue
            if in_front > reach[j]:
                hiding += 1
            else:
                skin += 1
        seen[j] = 0 if hiding > skin else 1 if skin > 0 else -1


_f32, _f64 = types.float32, types.float64


@compiled(
    types.void(array_of(_f32, 2, readonly=False), _depth, _vector, _matrix, _vector, _f64, _f64, _f32, _f32), exact=True
)
def crop(
    image: Array, depth: Array, grid: Array, rotation: Array, camera: Array, down: float, across: float, scale: float,
    middle: float,
) -> None:  # fmt: skip
    """`crop_depth` into image (S, S) float32. grid (2S,) are the sub-pixels, down and across its steps, camera fx, fy,
    cx and cy; depth counts times scale over the ray's z, less middle, are d."""
    size, (height, width) = len(image), depth.shape
    counts, one, none = depth.reshape(-1), np.float32(1), np.float32(0)
    rays, slopes = np.empty((3, 3)), np.empty((3, 2 * size), np.float32)
    for i in range(3):
        rays[0, i] = camera[0] * rotation[0, i] + camera[2] * rotation[2, i]
        rays[1, i] = camera[1] * rotation[1, i] + camera[3] * rotation[2, i]
        rays[2, i] = rotation[2, i]
    for i in range(3):
        for u in range(2 * size):
            slopes[i, u] = rays[i, 0] * (grid[u] * across) + rays[i, 2]
    at, per_z = np.empty(2 * size, np.int32), np.empty(2 * size, np.float32)
    d = np.empty((2, 2 * size), np.float32)
    for v in range(size):
        for half in range(2):
            y = grid[v + half * size] * down
            u0, v0, w0 = np.float32(rays[0, 1] * y), np.float32(rays[1, 1] * y), np.float32(rays[2, 1] * y)
            for u in range(2 * size):
                per_z[u] = one / (w0 + slopes[2, u])
                column, row = np.rint((u0 + slopes[0, u]) * per_z[u]), np.rint((v0 + slopes[1, u]) * per_z[u])
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (per_z[u] > 0)
                at[u] = np.int32(row) * np.int32(width) + np.int32(column) if inside else np.int32(-1)
            for u in range(2 * size):
                k = at[u]
                count = counts[k] if k >= 0 else np.uint16(0)
                d[half, u] = np.float32(count) * per_z[u] * scale - middle if count > 0 else BACKGROUND
        for u in range(size):
            a, b, c, e = d[0, u], d[0, u + size], d[1, u], d[1, u + size]
            total = (a if abs(a) < 1 else none) + (b if abs(b) < 1 else none)
            total += c if abs(c) < 1 else none
            total += e if abs(e) < 1 else none
            n = np.float32((abs(a) < 1) + (abs(b) < 1) + (abs(c) < 1) + (abs(e) < 1))
            image[v, u] = total / n if n > 0 else BACKGROUND


@compiled(types.void(array_of(_f32, 2, readonly=False), array_of(_f32, 2), array_of(_f32, 2), _f32, _f32), exact=True)
def calmed(out: Array, image: Array, before: Array, noise: float, kept: float) -> None:
    """`calm.calmed` into out (S, S) float32; kept is the share of what was before."""
    for v in range(image.shape[0]):
        for u in range(image.shape[1]):
            change = image[v, u] - before[v, u]
            same = (abs(change) < noise) & (max(before[v, u], image[v, u]) < BACKGROUND)
            out[v, u] = image[v, u] - kept * change if same else image[v, u]
